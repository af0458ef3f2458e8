//! Opens storages by URL. All that one [`Stores`] opens share settings, credentials and connections.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use url::Url;

use super::s3::{PinnedObject, S3, S3Settings};
use super::{Storage, StorageError, folder::Folder};

/// Opens storages. Cheap to clone; clones share everything.
#[derive(Clone, Default)]
pub struct Stores {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Absent: read from the environment when S3 is first needed, so that a farm of folders needs none.
    settings: Option<S3Settings>,
    s3: OnceLock<Arc<S3>>,
    observer: Option<Observer>,
}

/// Told of every operation when it has ended. Must not block.
pub type Observer = Arc<dyn Fn(&Observed) + Send + Sync>;

/// An operation that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Which: `get`, `get_range`, `put`, `put_new`, `join`, `list` or `delete`.
    pub operation: &'static str,
    /// How: `ok`, or which [`StorageError`], as one word in snake case.
    pub outcome: &'static str,
    /// How long it took, its own retries included.
    pub took: Duration,
}

impl Stores {
    /// With S3 as set here instead of in the environment.
    pub fn new(settings: S3Settings) -> Self {
        Self { shared: Arc::new(Shared { settings: Some(settings), ..Shared::default() }) }
    }

    /// The same settings; every operation on what is opened from here on is told to `observer`.
    #[must_use]
    pub fn observed_by(&self, observer: Observer) -> Self {
        let Shared { settings, s3, .. } = &*self.shared;
        Self { shared: Arc::new(Shared { settings: settings.clone(), s3: s3.clone(), observer: Some(observer) }) }
    }

    /// The storage that a URL names: `s3://bucket/prefix/` or `file:///folder/`. Asks no server.
    ///
    /// # Errors
    /// [`StorageError::BadUrl`] for a scheme without a backend, or a URL that is not of the form above;
    /// [`StorageError::Denied`] without credentials for S3; [`StorageError::Unavailable`] for settings that make no sense.
    pub fn open(&self, url: &Url) -> Result<Storage, StorageError> {
        let bad = || StorageError::BadUrl(crate::job::shown_url(url));
        match url.scheme() {
            "file" => Ok(self.folder(&url.to_file_path().map_err(|()| bad())?)),
            "s3" => {
                let bucket = self.s3()?.bucket(url)?;
                Ok(Storage { shown: bucket.shown().into(), backend: Arc::new(bucket), stores: self.clone() })
            }
            _ => Err(bad()),
        }
    }

    /// Objects as files below a folder, which is made when something is first written.
    pub fn folder(&self, path: &std::path::Path) -> Storage {
        let shown = path.display().to_string().into();
        Storage { backend: Arc::new(Folder::new(path)), shown, stores: self.clone() }
    }

    /// One object of S3, `s3://bucket/key`, as it is now: for a source that is read in ranges.
    ///
    /// # Errors
    /// As [`Stores::open`]; [`StorageError::NotFound`] when there is none.
    pub async fn pin(&self, url: &Url) -> Result<PinnedObject, StorageError> {
        PinnedObject::open(self.s3()?, url).await
    }

    pub(super) fn observer(&self) -> Option<&Observer> {
        self.shared.observer.as_ref()
    }

    fn s3(&self) -> Result<&Arc<S3>, StorageError> {
        if let Some(s3) = self.shared.s3.get() {
            return Ok(s3);
        }
        let settings = self.shared.settings.clone().map_or_else(S3Settings::from_env, Ok)?;
        Ok(self.shared.s3.get_or_init(|| Arc::new(S3::new(&settings))))
    }
}
