//! Parameter sets of devices, where all parts of a rendition are to decode with one init segment: an encoder of one device may
//! write others than that of another. Those of the first part that is done are noted, and whoever makes others is told early.

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
    state: Storage,
    job: JobId,
    device: Device,
    /// Places of the renditions that it makes.
    places: Vec<usize>,
    /// What came of them so far, by hash.
    made: Vec<(RenditionId, Bytes)>,
}

impl Sets {
    /// Of a job whose renditions at these places are made on a device. What others made is noted in `state`.
    pub(crate) fn new(state: Storage, job: JobId, device: Device, places: Vec<usize>) -> Self {
        Self { state, job, device, places, made: Vec::new() }
    }

    /// Holds the init segment of a rendition against what is noted, if it is one that the device makes.
    ///
    /// # Errors
    /// [`Code::DeviceFailed`] when it is another; of the storage.
    pub(crate) async fn check(&mut self, place: usize, rendition: &RenditionId, init: &[u8]) -> Result<(), Failure> {
        if !self.places.contains(&place) {
            return Ok(());
        }
        let (key, own) = (keys::sets(&self.job, rendition), Bytes::from(format!("\"{}\"", hex(&Sha256::digest(init)))));
        match patiently(storage_may_pass, || self.state.get(&key)).await {
            Err(StorageError::NotFound(_)) => {}
            noted => self.compare(rendition, &noted?, &own)?,
        }
        self.made.push((rendition.clone(), own));
        Ok(())
    }

    /// Notes what was made, where nobody was faster: not before all of it is there, for what comes to nothing is to bind nobody.
    ///
    /// # Errors
    /// [`Code::DeviceFailed`] when others were noted meanwhile; of the storage.
    pub(crate) async fn note(&self) -> Result<(), Failure> {
        for (rendition, own) in &self.made {
            let key = keys::sets(&self.job, rendition);
            // Where storage cannot tell whether it created, two that come at once are not told apart here; joining them does.
            if let Creation::Existed = patiently(storage_may_pass, || self.state.put_new(&key, own.clone(), Kind::Json)).await? {
                let noted = patiently(storage_may_pass, || self.state.get(&key)).await?;
                self.compare(rendition, &noted, own)?;
            }
        }
        Ok(())
    }

    fn compare(&self, rendition: &RenditionId, noted: &Bytes, own: &Bytes) -> Result<(), Failure> {
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

    fn id(name: &str) -> RenditionId {
        RenditionId(name.to_owned())
    }

    /// Execution after execution on devices of these numbers.
    fn on_devices(state: &Storage) -> impl Fn(u32) -> Sets {
        let job = JobId::try_from("j1".to_owned()).expect("a job id");
        move |number| {
            let node = format!("/dev/dri/renderD{}", 128 + number).into();
            Sets::new(state.clone(), job.clone(), Device { class: Class::Vaapi, number, node }, vec![0, 1])
        }
    }

    #[tokio::test]
    async fn what_the_first_device_makes_of_a_rendition_holds_for_all_that_follow() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = Storage::folder(folder.path());
        let on = on_devices(&state);
        for number in [0, 0, 1] {
            let mut sets = on(number);
            assert_eq!(sets.check(0, &id("v720"), b"sets").await, Ok(()));
            assert_eq!(sets.note().await, Ok(()));
        }
        let mut other = on(1);
        let failure = other.check(0, &id("v720"), b"others").await.expect_err("others");
        assert_eq!(failure.code, Code::DeviceFailed);
        assert!(failure.message.starts_with("vaapi on /dev/dri/renderD129 makes other parameter sets"), "{failure}");
        assert_eq!(other.check(1, &id("v360"), b"others").await, Ok(()), "another rendition");
        assert_eq!(other.check(2, &id("v720"), b"others").await, Ok(()), "not made on the device");
        assert_eq!(other.note().await, Ok(()));
    }

    #[tokio::test]
    async fn what_comes_to_nothing_binds_nobody_and_of_two_at_once_the_first_that_is_done_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = Storage::folder(folder.path());
        let on = on_devices(&state);
        let [mut lost, mut first, mut second] = [0, 1, 2].map(on);
        for (sets, init) in [(&mut lost, b"a"), (&mut first, b"b"), (&mut second, b"c")] {
            assert_eq!(sets.check(0, &id("v720"), init).await, Ok(()), "nothing is done yet");
        }
        drop(lost);
        assert_eq!(first.note().await, Ok(()));
        let failure = second.note().await.expect_err("others");
        assert_eq!(failure.code, Code::DeviceFailed);
        assert_eq!(first.note().await, Ok(()), "it may be told twice");
    }
}
