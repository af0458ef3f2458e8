//! An object that is read in ranges as long as it stays the same: a source.

use std::ops::Range;
use std::sync::Arc;

use aws_sdk_s3::config::Config;
use aws_sdk_s3::config::retry::RetryConfig;
use bytes::Bytes;
use url::Url;

use super::read::NotGot;
use super::{Bucket, S3, StorageError, bad_url, failed, place_of};

/// Tries at a first look: nothing is lost yet, and whoever wants to look can ask again.
const OPEN_TRIES: u32 = 2;

/// An object as it was when it was first looked at.
pub struct PinnedObject {
    bucket: Bucket,
    path: String,
    bytes: u64,
    etag: Option<String>,
}

/// Why a range of a pinned object cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It was replaced, or deleted.
    #[error("{0} was changed while it was read")]
    Changed(String),
    /// Of the storage.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl PinnedObject {
    pub(in crate::storage) async fn open(s3: &Arc<S3>, url: &Url) -> Result<Self, StorageError> {
        let (bucket, path) = place_of(url)?;
        if path.is_empty() {
            return Err(bad_url(url));
        }
        let bucket = Bucket { s3: s3.clone(), bucket, prefix: String::new() };
        let retries = Config::builder().retry_config(RetryConfig::standard().with_max_attempts(OPEN_TRIES));
        let head = s3.client.head_object().bucket(&bucket.bucket).key(&path).customize().config_override(retries).send().await;
        let head = head.map_err(|error| failed(&bucket.place(&path), &error))?;
        let bytes = head.content_length().and_then(|bytes| u64::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| bucket.unfit(&path, "it does not tell the object's size"))?;
        Ok(Self { bytes, etag: head.e_tag().map(str::to_owned), bucket, path })
    }

    /// Its ETag, if it has one.
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The bytes of a range, all of them. It is to lie within [`PinnedObject::bytes`].
    ///
    /// # Errors
    /// [`PinError::Changed`] when the object is not the same any more; [`PinError::Storage`].
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, PinError> {
        let changed = || PinError::Changed(self.bucket.place(&self.path));
        let wanted = range.end.saturating_sub(range.start);
        let got = match self.bucket.get_patiently(&self.path, Some(range), self.etag.as_deref()).await {
            Ok(got) => got,
            // It was there when it was opened.
            Err(NotGot::Changed | NotGot::BeyondTheEnd | NotGot::Failed(StorageError::NotFound(_))) => return Err(changed()),
            Err(NotGot::Failed(error) | NotGot::Broken(error)) => return Err(error.into()),
        };
        // Not every server heeds the condition.
        let other_tag = self.etag.as_ref().zip(got.etag.as_ref()).is_some_and(|(mine, theirs)| mine != theirs);
        if other_tag || got.whole.is_some_and(|whole| whole != self.bytes) || got.bytes.len() as u64 != wanted {
            return Err(changed());
        }
        Ok(got.bytes)
    }
}
