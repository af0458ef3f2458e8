//! The storage port: objects under keys. A cheap handle over one of several backends, chosen by URL.
//!
//! The contract, held by every backend (see the `storage_contract` suite):
//! - a reader sees an object whole or not at all, also when the writer dies;
//! - what was put can be read and listed at once;
//! - keys are relative, of the form `a/b/c`; a key that would leave the prefix is refused;
//! - nothing here decides correctness by a conditional write.

mod check;
mod folder;
mod s3;
mod stores;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use url::Url;

use crate::{Code, Failure};

pub use check::{Conformance, CreateOnly};
pub use s3::{Checksums, PinError, PinnedObject, S3Settings};
pub use stores::{Observed, Observer, Stores};

/// A place for objects: a folder, or a prefix of a bucket.
#[derive(Clone)]
pub struct Storage {
    backend: Arc<dyn Backend>,
    shown: Arc<str>,
    stores: Stores,
}

/// What an object is, for those who fetch it over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// JSON: state and reports.
    Json,
    /// A playlist.
    Playlist,
    /// MP4 with picture: init segment or whole file.
    VideoMp4,
    /// MP4 with sound alone.
    AudioMp4,
    /// A media segment of picture.
    VideoSegment,
    /// A media segment of sound.
    AudioSegment,
    /// A still picture.
    Jpeg,
    /// A WebVTT track of a whole video.
    TextTrack,
}

impl Kind {
    /// The media type (IANA; for segments RFC 8216 and CMAF usage).
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Playlist => "application/vnd.apple.mpegurl",
            Self::VideoMp4 => "video/mp4",
            Self::AudioMp4 => "audio/mp4",
            Self::VideoSegment => "video/iso.segment",
            Self::AudioSegment => "audio/iso.segment",
            Self::Jpeg => "image/jpeg",
            Self::TextTrack => "text/vtt; charset=utf-8",
        }
    }

    /// How long it may be cached: media never changes under its key, the rest may.
    pub fn cache_control(self) -> &'static str {
        match self {
            Self::Json => "no-cache",
            Self::Playlist | Self::TextTrack => "public, max-age=60",
            Self::VideoMp4 | Self::AudioMp4 | Self::VideoSegment | Self::AudioSegment | Self::Jpeg => {
                "public, max-age=31536000, immutable"
            }
        }
    }
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Key, relative to the storage.
    pub key: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Last change, in ms since 1970, by the storage's clock.
    pub modified_ms: u64,
}

/// What an object is joined from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// An object, or some of its bytes.
    Object {
        /// Its key.
        key: String,
        /// Which of its bytes; none for all. Whoever knows how many there are says so: then nobody has to ask.
        range: Option<Range<u64>>,
    },
    /// These bytes.
    Bytes(Bytes),
}

impl Part {
    /// All of an object.
    pub fn whole(key: impl Into<String>) -> Self {
        Self::Object { key: key.into(), range: None }
    }
}

/// Whether a create-only write created. Where the backend cannot tell, it answers `Created`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// The object is now there with this content.
    Created,
    /// Another was there already and stays.
    Existed,
}

/// What a storage operation failed of.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No object under that key.
    #[error("{0} is not there")]
    NotFound(String),
    /// The key is empty, absolute, or leaves the prefix.
    #[error("'{0}' is not a key")]
    BadKey(String),
    /// Reading or writing is not allowed.
    #[error("no permission for {0}")]
    Denied(String),
    /// No space left.
    #[error("no space left for {0}")]
    Full(String),
    /// Anything else; trying again may help.
    #[error("storage does not work at {key}: {why}")]
    Unavailable {
        /// The key.
        key: String,
        /// What the backend said.
        why: String,
    },
    /// A URL that names no kind of storage.
    #[error("{0} is not a storage: use s3://bucket/prefix/ or file:///folder/")]
    BadUrl(String),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        let code = match &error {
            StorageError::NotFound(_) | StorageError::Unavailable { .. } => Code::StorageUnavailable,
            StorageError::BadKey(_) => Code::Internal,
            StorageError::Denied(_) => Code::StorageUnwritable,
            StorageError::Full(_) => Code::StorageFull,
            StorageError::BadUrl(_) => Code::InvalidRequest,
        };
        Self::new(code, error.to_string())
    }
}

impl StorageError {
    /// Which error, as one word.
    fn word(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::BadKey(_) => "bad_key",
            Self::Denied(_) => "denied",
            Self::Full(_) => "full",
            Self::Unavailable { .. } => "unavailable",
            Self::BadUrl(_) => "bad_url",
        }
    }
}

/// What a backend does. Keys are checked before they get here.
#[async_trait::async_trait]
trait Backend: Send + Sync {
    async fn get(&self, key: &str) -> Result<Bytes, StorageError>;
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError>;
    async fn put(&self, key: &str, content: Bytes, kind: Kind) -> Result<(), StorageError>;
    async fn put_new(&self, key: &str, content: Bytes, kind: Kind) -> Result<Creation, StorageError>;
    async fn join(&self, key: &str, parts: &[Part], kind: Kind) -> Result<u64, StorageError>;
    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError>;
    async fn delete(&self, keys: &[String]) -> Result<(), StorageError>;

    async fn presigned_get(&self, _: &str, _: Duration) -> Result<Option<Url>, StorageError> {
        Ok(None)
    }

    async fn abort_stale_uploads(&self, _: Duration) -> Result<u64, StorageError> {
        Ok(0)
    }
}

impl Storage {
    /// The storage that a URL names, with S3 as the environment has it. Others that are to share its connections are opened
    /// with [`Storage::open_beside`].
    ///
    /// # Errors
    /// As [`Stores::open`].
    pub fn open(url: &Url) -> Result<Self, StorageError> {
        Stores::default().open(url)
    }

    /// Objects as files below a folder, which is made when something is first written.
    pub fn folder(path: &std::path::Path) -> Self {
        Stores::default().folder(path)
    }

    /// Another storage, with the settings and connections of this one: the outputs of jobs are opened beside the state.
    ///
    /// # Errors
    /// As [`Stores::open`].
    pub fn open_beside(&self, url: &Url) -> Result<Self, StorageError> {
        self.stores.open(url)
    }

    /// What it was opened with.
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// Where it is, for messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// A whole object.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] when there is none.
    pub async fn get(&self, key: &str) -> Result<Bytes, StorageError> {
        self.observed("get", self.backend.get(check_key(key)?)).await
    }

    /// Bytes `range` of an object; fewer when it ends before.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] when there is none.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.observed("get_range", self.backend.get_range(check_key(key)?, range)).await
    }

    /// Stores an object, replacing one that is there.
    ///
    /// # Errors
    /// Any but [`StorageError::NotFound`].
    pub async fn put(&self, key: &str, content: Bytes, kind: Kind) -> Result<(), StorageError> {
        self.observed("put", self.backend.put(check_key(key)?, content, kind)).await
    }

    /// Stores an object unless one is there. An optimisation: some backends replace and answer [`Creation::Created`].
    ///
    /// # Errors
    /// Any but [`StorageError::NotFound`].
    pub async fn put_new(&self, key: &str, content: Bytes, kind: Kind) -> Result<Creation, StorageError> {
        self.observed("put_new", self.backend.put_new(check_key(key)?, content, kind)).await
    }

    /// Stores `parts`, one after another, as one object; its size in bytes.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] when a part is not there, [`StorageError::Unavailable`] when one has not the bytes it should
    /// have; nothing is stored then.
    pub async fn join(&self, key: &str, parts: &[Part], kind: Kind) -> Result<u64, StorageError> {
        for part in parts {
            if let Part::Object { key, .. } = part {
                check_key(key)?;
            }
        }
        self.observed("join", self.backend.join(check_key(key)?, parts, kind)).await
    }

    /// Every object whose key starts with `prefix`, in the order of keys. `prefix` is empty or ends with `/`.
    ///
    /// # Errors
    /// Any but [`StorageError::NotFound`]: an empty listing is no error.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        if !prefix.is_empty() {
            let folder = prefix.strip_suffix('/').ok_or_else(|| StorageError::BadKey(prefix.to_owned()))?;
            check_key(folder)?;
        }
        self.observed("list", self.backend.list(prefix)).await
    }

    /// Deletes objects; those that are not there are no error.
    ///
    /// # Errors
    /// When one that is there cannot be deleted.
    pub async fn delete(&self, keys: &[String]) -> Result<(), StorageError> {
        for key in keys {
            check_key(key)?;
        }
        self.observed("delete", self.backend.delete(keys)).await
    }

    /// A URL at which anyone can GET an object for as long as `valid`, at most 7 days. It holds a signature: as good as a
    /// password while it is valid. `None` where objects have no URL.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`] when it cannot be signed. No server is asked.
    pub async fn presigned_get(&self, key: &str, valid: Duration) -> Result<Option<Url>, StorageError> {
        self.backend.presigned_get(check_key(key)?, valid).await
    }

    /// Aborts writes that were begun longer ago and never ended, by writers that died: multipart uploads, unfinished files. How
    /// many; 0 also where the server does not list them to us.
    ///
    /// # Errors
    /// Any but [`StorageError::NotFound`].
    pub async fn abort_stale_uploads(&self, older_than: Duration) -> Result<u64, StorageError> {
        self.backend.abort_stale_uploads(older_than).await
    }

    /// Tells the observer, if there is one, how an operation ended.
    async fn observed<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let Some(observer) = self.stores.observer() else { return work.await };
        let began = Instant::now();
        let done = work.await;
        let outcome = done.as_ref().map_or_else(StorageError::word, |_| "ok");
        observer(&Observed { operation, outcome, took: began.elapsed() });
        done
    }
}

/// Refuses keys that are not plain relative paths.
fn check_key(key: &str) -> Result<&str, StorageError> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\0', '\\']);
    if key.len() <= 900 && key.split('/').all(plain) { Ok(key) } else { Err(StorageError::BadKey(key.to_owned())) }
}
