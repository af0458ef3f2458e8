//! Where `shoal transcode` writes: a folder or a prefix of a bucket, with the state of the job in `.shoal` below it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use farm::job::JobId;
use farm::storage::{Storage, StorageError};
use farm::{Code, Failure};
use url::Url;

use crate::arguments::state_folder;
use crate::input;

/// Name of the lock in the state folder.
const LOCK: &str = "lock";

/// How long the lock is waited for, and between two tries. One that was killed while it started a child holds it until that
/// child is another program.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Where the result goes.
pub struct Output {
    url: Url,
    state: Storage,
    /// A folder is taken by one process alone. A bucket has no locks: there, two that do the same job do it twice, and spoil
    /// nothing.
    folder: Option<Folder>,
}

struct Folder {
    path: PathBuf,
    /// Whether it was made by this run.
    made: bool,
    _lock: File,
}

impl Output {
    /// Takes a place to write to: a path or an `s3:` URL. A bucket is tried out, so that one that cannot be written to is
    /// known before the work is done.
    ///
    /// # Errors
    /// When it cannot be written to.
    pub async fn take(text: &str) -> Result<Self, Failure> {
        if let Some(url) = input::s3_url(text) {
            let state = Storage::open(&below(&url, ".shoal/")?)?;
            state.open_beside(&url)?.check().await?;
            return Ok(Self { url, state, folder: None });
        }
        let (path, made) = input::output_folder(text)?;
        let url = Url::from_directory_path(&path).map_err(|()| Failure::new(Code::Internal, "the output has no URL"))?;
        let lock = take_folder(&path).await?;
        // Nobody else writes here, so what is unfinished stays so.
        Storage::folder(&path).abort_stale_uploads(Duration::ZERO).await?;
        Ok(Self { url, state: Storage::folder(&state_folder(&path)), folder: Some(Folder { path, made, _lock: lock }) })
    }

    /// As a job names it.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The farm's state.
    pub fn state(&self) -> &Storage {
        &self.state
    }

    /// An object of the result, as a path or URL.
    pub fn place(&self, key: &str) -> String {
        match &self.folder {
            Some(folder) => folder.path.join(key).display().to_string(),
            None => format!("{}/{key}", self.url.as_str().trim_end_matches('/')),
        }
    }

    /// Whether the result is files here.
    pub fn is_local(&self) -> bool {
        self.folder.is_some()
    }

    /// Takes the state away, as far as that goes: what stays does no harm.
    pub async fn forget_state(&self) {
        match &self.folder {
            Some(folder) => drop(std::fs::remove_dir_all(state_folder(&folder.path))),
            None => self.forget_jobs(None).await,
        }
    }

    /// As above, and the folder itself when this run made it and nothing is in it.
    pub async fn forget(&self) {
        self.forget_state().await;
        if let Some(folder) = self.folder.as_ref().filter(|folder| folder.made) {
            let _ = std::fs::remove_dir(&folder.path);
        }
    }

    /// Takes away what jobs before this one left unfinished here: their state is of no more use.
    pub async fn forget_other_jobs(&self, job: Option<&JobId>) {
        self.forget_jobs(job).await;
    }

    async fn forget_jobs(&self, but: Option<&JobId>) {
        // What stands elsewhere of a job stands under its name too.
        let kept = but.map(|job| format!("/{job}/"));
        let is_kept = |key: &str| kept.as_ref().is_some_and(|kept| key.contains(kept));
        let forgotten = async {
            let entries = self.state.list("").await?;
            let old: Vec<String> =
                entries.into_iter().map(|entry| entry.key).filter(|key| key != LOCK && !is_kept(key)).collect();
            self.state.delete(&old).await
        };
        let done: Result<(), StorageError> = forgotten.await;
        if let Err(error) = done {
            tracing::debug!(%error, "state of former jobs is left behind");
        }
    }
}

/// Makes the state folder, and takes the lock in it.
async fn take_folder(path: &Path) -> Result<File, Failure> {
    let state = state_folder(path);
    let refused = |e: std::io::Error| {
        let code = if e.kind() == std::io::ErrorKind::StorageFull { Code::StorageFull } else { Code::StorageUnwritable };
        Failure::new(code, format!("{} cannot be written to: {e}", path.display()))
    };
    std::fs::create_dir_all(&state).map_err(refused)?;
    let lock = File::create(state.join(LOCK)).map_err(refused)?;
    let since = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_WAIT => tokio::time::sleep(LOCK_PAUSE).await,
            Err(TryLockError::WouldBlock) => {
                let message = format!("another shoal is writing to {}: wait for it, or choose another folder", path.display());
                return Err(Failure::new(Code::StorageUnwritable, message));
            }
            Err(TryLockError::Error(e)) => return Err(refused(e)),
        }
    }
}

/// A URL of something below a prefix.
fn below(url: &Url, name: &str) -> Result<Url, Failure> {
    let text = format!("{}/{name}", url.as_str().trim_end_matches('/'));
    Url::parse(&text).map_err(|error| Failure::new(Code::InvalidRequest, format!("{}: {error}", farm::job::shown_url(url))))
}
