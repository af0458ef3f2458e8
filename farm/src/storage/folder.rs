//! Objects as files below a folder.
//!
//! An object is written to a temporary file beside its place, made durable, and only then given its name, so that a reader,
//! a crash or a full disk never shows half of it. The folder belongs to the user: symbolic links in it are followed when
//! objects are read and written, but listings show only regular files and real folders, so a link cannot make them endless.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tempfile::{NamedTempFile, PersistError};

use super::{Backend, Creation, Entry, Kind, Part, StorageError, check_key};

/// How the names of unfinished files begin: like no file of anybody else's. No key may hold a part that begins so.
const TEMPORARY: &str = ".shoal-tmp-";

/// How often a folder that a `delete` took away under us is made again.
const RACES_MAX: usize = 100;

/// Mode of new files before the umask: whoever serves the result may read it.
const FILE_MODE: u32 = 0o666;

/// A folder that holds objects.
#[derive(Clone)]
pub(super) struct Folder {
    root: Arc<Path>,
}

impl Folder {
    /// Objects below `root`, which is made when something is first written.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Runs `work` where it may block.
    async fn block<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (folder, shown) = (self.clone(), self.root.display().to_string());
        let done = tokio::task::spawn_blocking(move || work(&folder)).await;
        done.unwrap_or_else(|gone| Err(StorageError::Unavailable { key: shown, why: gone.to_string() }))
    }

    fn path(&self, key: &str) -> Result<PathBuf, StorageError> {
        if key.split('/').any(|part| part.starts_with(TEMPORARY)) {
            return Err(StorageError::BadKey(key.to_owned()));
        }
        Ok(self.root.join(key))
    }

    /// The file of an object, and its size in bytes.
    fn open(&self, key: &str) -> Result<(File, u64), StorageError> {
        let path = self.path(key)?;
        let failed = |error| reading_failed(key, &error);
        // Looked at before it is opened: opening a named pipe would wait for its writer.
        if !fs::metadata(&path).map_err(failed)?.is_file() {
            return Err(StorageError::NotFound(key.to_owned()));
        }
        let file = File::open(&path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        Ok((file, bytes))
    }

    fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        let (mut file, bytes) = self.open(key)?;
        let end = range.end.min(bytes);
        let Some(wanted) = end.checked_sub(range.start).filter(|wanted| *wanted > 0) else { return Ok(Bytes::new()) };
        let mut content = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
        file.seek(SeekFrom::Start(range.start))
            .and_then(|_| file.take(wanted).read_to_end(&mut content))
            .map_err(|error| reading_failed(key, &error))?;
        Ok(content.into())
    }

    fn put_bytes(&self, key: &str, content: &[u8]) -> Result<(), StorageError> {
        let mut draft = self.draft(key)?;
        draft.write_all(content).map_err(|error| writing_failed(key, &error))?;
        self.publish(key, draft, |draft, path| draft.persist(path)).map_err(|error| writing_failed(key, &error))
    }

    fn put_new_bytes(&self, key: &str, content: &[u8]) -> Result<Creation, StorageError> {
        let path = self.path(key)?;
        if path.is_file() {
            return Ok(Creation::Existed);
        }
        let mut draft = self.draft(key)?;
        draft.write_all(content).map_err(|error| writing_failed(key, &error))?;
        match self.publish(key, draft, |draft, path| draft.persist_noclobber(path)) {
            Ok(()) => Ok(Creation::Created),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && !path.is_dir() => Ok(Creation::Existed),
            Err(error) => Err(writing_failed(key, &error)),
        }
    }

    fn join_files(&self, key: &str, parts: &[Part]) -> Result<u64, StorageError> {
        let mut draft = self.draft(key)?;
        let mut bytes = 0;
        let failed = |error| writing_failed(key, &error);
        for part in parts {
            let (part, range) = match part {
                Part::Object { key, range } => (key, range),
                Part::Bytes(content) => {
                    draft.as_file_mut().write_all(content).map_err(failed)?;
                    bytes += content.len() as u64;
                    continue;
                }
            };
            let (mut file, _) = self.open(part)?;
            // On Linux this is copy_file_range(2): the bytes do not pass through here.
            let Some(range) = range else {
                bytes += io::copy(&mut file, draft.as_file_mut()).map_err(failed)?;
                continue;
            };
            file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
            let wanted = range.end.saturating_sub(range.start);
            let copied = io::copy(&mut file.take(wanted), draft.as_file_mut()).map_err(failed)?;
            if copied != wanted {
                let why = format!("{part} has no bytes {} to {}", range.start, range.end);
                return Err(StorageError::Unavailable { key: key.to_owned(), why });
            }
            bytes += copied;
        }
        self.publish(key, draft, |draft, path| draft.persist(path)).map_err(|error| writing_failed(key, &error))?;
        Ok(bytes)
    }

    /// An empty temporary file in the folder where the object is to stand. While it is there, the folder is not empty, so no
    /// `delete` removes it; before that, one may, and it is made again.
    fn draft(&self, key: &str) -> Result<NamedTempFile, StorageError> {
        let path = self.path(key)?;
        let folder = path.parent().unwrap_or(&self.root);
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY).permissions(Permissions::from_mode(FILE_MODE));
        let failed = |error| writing_failed(key, &error);
        let (mut tries, mut grown) = (0, Vec::new());
        let draft = loop {
            match make_folder(folder, &mut grown).and_then(|()| builder.tempfile_in(folder)) {
                Err(error) if error.kind() == ErrorKind::NotFound && tries < RACES_MAX => tries += 1,
                other => break other.map_err(failed)?,
            }
        };
        // Now that no folder on the way can be removed, the new ones are made durable.
        grown.iter().try_for_each(|folder| sync_folder(folder)).map_err(failed)?;
        Ok(draft)
    }

    /// Gives a finished file its name: content first, then the name, each made durable.
    fn publish(
        &self,
        key: &str,
        draft: NamedTempFile,
        rename: impl FnOnce(NamedTempFile, &Path) -> Result<File, PersistError>,
    ) -> io::Result<()> {
        let path = self.root.join(key);
        draft.as_file().sync_all()?;
        rename(draft, &path).map_err(|refused| refused.error)?;
        sync_folder(path.parent().unwrap_or(&self.root))
    }

    /// Every object below `prefix`. What goes away meanwhile is left out.
    fn entries(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        let mut found = Vec::new();
        self.walk(prefix, |key, name, about| {
            if !name.starts_with(TEMPORARY) {
                found.push(Entry { key, bytes: about.len(), modified_ms: since_1970_ms(about.modified().unwrap_or(UNIX_EPOCH)) });
            }
        })?;
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// Removes unfinished files that were not written to for as long as `older_than`, and the folders that are empty then.
    fn sweep(&self, older_than: Duration) -> Result<u64, StorageError> {
        let now = SystemTime::now();
        let mut old = Vec::new();
        self.walk("", |key, name, about| {
            let age = about.modified().ok().and_then(|modified| now.duration_since(modified).ok()).unwrap_or_default();
            if name.starts_with(TEMPORARY) && age >= older_than {
                old.push(key);
            }
        })?;
        for key in &old {
            there(fs::remove_file(self.root.join(key))).map_err(|error| writing_failed(key, &error))?;
        }
        self.remove_empty(&old);
        Ok(old.len() as u64)
    }

    /// Shows every regular file below `prefix` whose path could be a key, with its key and name.
    fn walk(&self, prefix: &str, mut show: impl FnMut(String, &str, &fs::Metadata)) -> Result<(), StorageError> {
        let mut prefixes = vec![prefix.to_owned()];
        while let Some(prefix) = prefixes.pop() {
            let failed = |error| reading_failed(&prefix, &error);
            let Some(listing) = there(fs::read_dir(self.root.join(&prefix))).map_err(failed)? else { continue };
            for item in listing {
                let item = item.map_err(failed)?;
                // A name that is no text cannot be part of a key.
                let Ok(name) = item.file_name().into_string() else { continue };
                let Some(about) = there(item.metadata()).map_err(failed)? else { continue };
                let key = format!("{prefix}{name}");
                if check_key(&key).is_err() {
                    // Put there by somebody else under a name that is no key.
                } else if about.is_dir() {
                    prefixes.push(format!("{key}/"));
                } else if about.is_file() {
                    show(key, &name, &about);
                }
            }
        }
        Ok(())
    }

    fn remove(&self, keys: &[String]) -> Result<(), StorageError> {
        for key in keys {
            let path = self.path(key)?;
            match there(fs::remove_file(&path)) {
                // A folder is no object; Linux says EISDIR, others EPERM.
                Err(_) if path.is_dir() => {}
                Err(error) => return Err(writing_failed(key, &error)),
                Ok(_) => {}
            }
        }
        self.remove_empty(keys);
        Ok(())
    }

    /// Removes the folders in which these were, if nothing is in them now.
    fn remove_empty(&self, removed: &[String]) {
        let folders = |key: &String| -> Vec<PathBuf> {
            let path = self.root.join(key);
            path.ancestors().skip(1).take_while(|folder| *folder != &*self.root).map(PathBuf::from).collect()
        };
        let folders: BTreeSet<PathBuf> = removed.iter().flat_map(folders).collect();
        // The deepest first. One that is in use stays; that is no failure.
        for folder in folders.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
}

#[async_trait::async_trait]
impl Backend for Folder {
    async fn get(&self, key: &str) -> Result<Bytes, StorageError> {
        self.get_range(key, 0..u64::MAX).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        let key = key.to_owned();
        self.block(move |folder| folder.read(&key, range)).await
    }

    async fn put(&self, key: &str, content: Bytes, _: Kind) -> Result<(), StorageError> {
        let key = key.to_owned();
        self.block(move |folder| folder.put_bytes(&key, &content)).await
    }

    async fn put_new(&self, key: &str, content: Bytes, _: Kind) -> Result<Creation, StorageError> {
        let key = key.to_owned();
        self.block(move |folder| folder.put_new_bytes(&key, &content)).await
    }

    async fn join(&self, key: &str, parts: &[Part], _: Kind) -> Result<u64, StorageError> {
        let (key, parts) = (key.to_owned(), parts.to_owned());
        self.block(move |folder| folder.join_files(&key, &parts)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        let prefix = prefix.to_owned();
        self.block(move |folder| folder.entries(&prefix)).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StorageError> {
        let keys = keys.to_owned();
        self.block(move |folder| folder.remove(&keys)).await
    }

    async fn abort_stale_uploads(&self, older_than: Duration) -> Result<u64, StorageError> {
        self.block(move |folder| folder.sweep(older_than)).await
    }
}

/// Makes a folder and those above it. Adds to `grown` the folders in which a new one was made.
fn make_folder(path: &Path, grown: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folder(above, grown)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            grown.push(above.to_owned());
            Ok(())
        }
    }
}

/// Makes names given in a folder durable. File systems that have no such call (they say EINVAL) are taken at their word; a
/// folder that somebody has removed by now holds no names.
fn sync_folder(path: &Path) -> io::Result<()> {
    match File::open(path).and_then(|folder| folder.sync_all()) {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => Ok(()),
        done => done,
    }
}

fn since_1970_ms(time: SystemTime) -> u64 {
    let passed = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
}

/// `None` when nothing is there, or when a part of its path is an object.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        other => other.map(Some),
    }
}

/// What an error means to one who reads: below an object, or in place of a folder, there is no object.
fn reading_failed(key: &str, error: &io::Error) -> StorageError {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory => StorageError::NotFound(key.to_owned()),
        ErrorKind::PermissionDenied => StorageError::Denied(key.to_owned()),
        ErrorKind::InvalidFilename => StorageError::BadKey(key.to_owned()),
        _ => StorageError::Unavailable { key: key.to_owned(), why: error.to_string() },
    }
}

/// What an error means to one who writes.
fn writing_failed(key: &str, error: &io::Error) -> StorageError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::Full(key.to_owned()),
        ErrorKind::PermissionDenied => StorageError::Denied(key.to_owned()),
        ErrorKind::ReadOnlyFilesystem => StorageError::Denied(format!("{key}: the file system is read-only")),
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            StorageError::Denied(format!("{key}: a part of its path is a file, not a folder"))
        }
        ErrorKind::IsADirectory => StorageError::Denied(format!("{key}: a folder is there")),
        ErrorKind::InvalidFilename => StorageError::BadKey(key.to_owned()),
        _ => StorageError::Unavailable { key: key.to_owned(), why: error.to_string() },
    }
}
