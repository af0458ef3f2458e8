//! Parameter sets of devices, where all parts of a rendition are to decode with one init segment: an encoder of one device may
//! write others than that of another. Those of the first part that comes are noted, and whoever makes others is told early.

use bytes::Bytes;
use farm::encoder::Device;
use farm::job::JobId;
use farm::plan::RenditionId;
use farm::storage::{Creation, Kind, Storage, StorageError};
use farm::{Code, Failure, keys};
use sha2::{Digest, Sha256};

use crate::retry::{patiently, storage_may_pass};
use crate::upload::hex;

/// What a device makes is held against what was made of a job before.
pub(crate) struct Sets {
    /// Where it is noted.
    pub(crate) state: Storage,
    /// The job.
    pub(crate) job: JobId,
    /// The device.
    pub(crate) device: Device,
    /// Places of the renditions that it makes.
    pub(crate) places: Vec<usize>,
}

impl Sets {
    /// Holds the init segment of a rendition against what is noted, if it is one that the device makes.
    ///
    /// # Errors
    /// [`Code::DeviceFailed`] when it is another; of the storage.
    pub(crate) async fn check(&self, place: usize, rendition: &RenditionId, init: &[u8]) -> Result<(), Failure> {
        if !self.places.contains(&place) {
            return Ok(());
        }
        let key = keys::sets(&self.job, rendition);
        let own = Bytes::from(format!("\"{}\"", hex(&Sha256::digest(init))));
        // Where storage cannot tell whether it created, two that come at once are not told apart here; joining them does.
        let noted = match patiently(storage_may_pass, || self.state.get(&key)).await {
            Err(StorageError::NotFound(_)) => {
                match patiently(storage_may_pass, || self.state.put_new(&key, own.clone(), Kind::Json)).await? {
                    Creation::Created => return Ok(()),
                    Creation::Existed => patiently(storage_may_pass, || self.state.get(&key)).await?,
                }
            }
            noted => noted?,
        };
        if noted == own {
            return Ok(());
        }
        let message = format!("{} makes other parameter sets than were made before of {rendition}", self.device);
        Err(Failure::new(Code::DeviceFailed, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farm::Class;

    #[tokio::test]
    async fn what_the_first_device_makes_of_a_rendition_holds_for_all_that_follow() {
        let folder = tempfile::tempdir().expect("a folder");
        let job = JobId::try_from("j1".to_owned()).expect("a job id");
        let sets = |number| Sets {
            state: Storage::folder(folder.path()),
            job: job.clone(),
            device: Device { class: Class::Vaapi, number, node: format!("/dev/dri/renderD{}", 128 + number).into() },
            places: vec![0, 1],
        };
        let (one, other) = (sets(0), sets(1));
        let id = |name: &str| RenditionId(name.to_owned());
        for _ in 0..2 {
            assert_eq!(one.check(0, &id("v720"), b"sets").await, Ok(()));
        }
        assert_eq!(other.check(0, &id("v720"), b"sets").await, Ok(()));
        let failure = other.check(0, &id("v720"), b"others").await.expect_err("others");
        assert_eq!(failure.code, Code::DeviceFailed);
        assert!(failure.message.starts_with("vaapi on /dev/dri/renderD129 makes other parameter sets"), "{failure}");
        assert_eq!(other.check(1, &id("v360"), b"others").await, Ok(()), "another rendition");
        assert_eq!(other.check(2, &id("v720"), b"others").await, Ok(()), "not made on the device");
    }
}
