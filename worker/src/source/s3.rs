//! A source in S3: ranged GETs, pinned to the version there was when it was opened.

use std::ops::Range;

use bytes::Bytes;
use farm::job::{SourceSpec, shown_url};
use farm::media::SourceVersion;
use farm::storage::{PinError, PinnedObject, StorageError, Stores};
use farm::{Code, Failure};

use super::blocks::Remote;
use crate::retry::{Hope, Patience, hopefully, storage_may_pass};

/// A source in S3. The SDK below it tries again what may pass, which is enough for the impatient.
pub(crate) struct S3Remote {
    object: PinnedObject,
}

impl S3Remote {
    /// Asks for size and version.
    ///
    /// # Errors
    /// As [`super::Source::open`].
    pub(crate) async fn open(spec: &SourceSpec, stores: &Stores, patience: Patience) -> Result<Self, Failure> {
        let opened = hopefully(patience, |error| hope(patience, error), || stores.pin(&spec.url)).await;
        opened.map(|object| Self { object }).map_err(|error| match error {
            StorageError::BadUrl(_) | StorageError::BadKey(_) => {
                let message = format!("{} is no object: use s3://bucket/key", shown_url(&spec.url));
                Failure::new(Code::InvalidRequest, message)
            }
            error => unreadable(&error),
        })
    }
}

impl Remote for S3Remote {
    fn version(&self) -> SourceVersion {
        SourceVersion { bytes: self.object.bytes(), etag: self.object.etag().map(str::to_owned), modified: None }
    }

    async fn fetch(&self, range: Range<u64>, patience: Patience) -> Result<Bytes, Failure> {
        let hope = |error: &PinError| match error {
            PinError::Changed(_) => Hope::None,
            PinError::Storage(error) => hope(patience, error),
        };
        let fetched = hopefully(patience, hope, || self.object.read(range.clone())).await;
        fetched.map_err(|error| match error {
            PinError::Changed(_) => Failure::new(Code::SourceChanged, error.to_string()),
            PinError::Storage(error) => unreadable(&error),
        })
    }
}

fn hope(patience: Patience, error: &StorageError) -> Hope {
    if patience == Patience::Long && storage_may_pass(error) { Hope::Soon } else { Hope::None }
}

/// A source that is not there, or not for us, stays so.
fn unreadable(error: &StorageError) -> Failure {
    let failure = Failure::new(Code::SourceUnreadable, error.to_string());
    match error {
        StorageError::NotFound(_) | StorageError::Denied(_) => failure.lasting(),
        StorageError::BadKey(_) | StorageError::Full(_) | StorageError::Unavailable { .. } | StorageError::BadUrl(_) => failure,
    }
}
