//! A source in S3: ranged GETs, pinned to the version there was when it was opened.

use std::ops::Range;

use bytes::Bytes;
use farm::job::{SourceSpec, shown_url};
use farm::media::SourceVersion;
use farm::storage::{PinError, PinnedObject, StorageError, Stores};
use farm::{Code, Failure};

use super::blocks::Remote;

/// A source in S3. The SDK below it tries again what may pass.
pub(crate) struct S3Remote {
    object: PinnedObject,
}

impl S3Remote {
    /// Asks for size and version.
    ///
    /// # Errors
    /// As [`super::Source::open`].
    pub(crate) async fn open(spec: &SourceSpec, stores: &Stores) -> Result<Self, Failure> {
        let opened = stores.pin(&spec.url).await;
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

    async fn fetch(&self, range: Range<u64>) -> Result<Bytes, Failure> {
        self.object.read(range).await.map_err(|error| match error {
            PinError::Changed(_) => Failure::new(Code::SourceChanged, error.to_string()),
            PinError::Storage(error) => unreadable(&error),
        })
    }
}

/// A source that is not there, or not for us, stays so.
fn unreadable(error: &StorageError) -> Failure {
    let failure = Failure::new(Code::SourceUnreadable, error.to_string());
    match error {
        StorageError::NotFound(_) | StorageError::Denied(_) => failure.lasting(),
        StorageError::BadKey(_) | StorageError::Full(_) | StorageError::Unavailable { .. } | StorageError::BadUrl(_) => failure,
    }
}
