//! A source in a local file.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use farm::job::shown_url;
use farm::media::SourceVersion;
use farm::{Code, Failure};
use nix::libc::O_NONBLOCK;
use url::Url;

/// An open file.
pub(crate) struct FileSource {
    file: Arc<Pinned>,
}

struct Pinned {
    path: PathBuf,
    file: File,
    version: Version,
}

/// What must stay the same while a file is read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    bytes: u64,
    modified: (i64, i64),
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl FileSource {
    /// Opens the file that a `file:` URL names.
    ///
    /// # Errors
    /// [`Code::SourceUnreadable`], saying why.
    pub(crate) async fn open(url: &Url) -> Result<Self, Failure> {
        let no_path = |()| Failure::new(Code::SourceUnreadable, format!("{} names no local file", shown_url(url)));
        let path = url.to_file_path().map_err(no_path)?;
        let file = apart(move || Pinned::open(&path)).await?;
        Ok(Self { file: Arc::new(file) })
    }

    /// Which version is read.
    pub(crate) fn version(&self) -> SourceVersion {
        let Version { bytes, modified: (seconds, ns) } = self.file.version;
        SourceVersion { bytes, etag: None, modified: Some(format!("{seconds}.{ns:09}")) }
    }

    /// As [`super::Source::read_at`].
    pub(crate) async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Failure> {
        let file = self.file.clone();
        apart(move || file.read_at(offset, len)).await
    }
}

impl Pinned {
    fn open(path: &Path) -> Result<Self, Failure> {
        let unreadable = |error: io::Error| unreadable(path, &error);
        // Without blocking, or opening a pipe that nobody writes to would wait for ever.
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() { "is a directory" } else { "is not a regular file" };
            return Err(Failure::new(Code::SourceUnreadable, format!("{} {kind}, not a media file", path.display())));
        }
        Ok(Self { path: path.to_owned(), version: Version::of(&metadata), file })
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Failure> {
        let mut buffer = vec![0; len];
        let read = self.file.read_exact_at(&mut buffer, offset);
        let metadata = self.file.metadata().map_err(|error| unreadable(&self.path, &error))?;
        if Version::of(&metadata) != self.version {
            return Err(Failure::new(Code::SourceChanged, format!("{} was changed while it was read", self.path.display())));
        }
        read.map_err(|error| unreadable(&self.path, &error))?;
        Ok(buffer.into())
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let why = match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        ErrorKind::PermissionDenied => "no permission to read it".to_owned(),
        ErrorKind::NotADirectory => "a part of its path is not a directory".to_owned(),
        _ => error.to_string(),
    };
    Failure::new(Code::SourceUnreadable, format!("{}: {why}", path.display()))
}

/// Does blocking work on a thread made for it.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let gone = |_| Failure::new(Code::Internal, "a thread that read a file is gone");
    tokio::task::spawn_blocking(work).await.map_err(gone)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn url(path: &Path) -> Url {
        Url::from_file_path(path).expect("an absolute path")
    }

    async fn refused(path: &Path) -> Failure {
        FileSource::open(&url(path)).await.err().expect("not readable")
    }

    #[tokio::test]
    async fn what_is_no_readable_file_is_named_with_the_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = refused(&folder.path().join("missing.mp4")).await;
        assert_eq!(missing.code, Code::SourceUnreadable);
        assert!(missing.message.contains("missing.mp4") && missing.message.contains("no such file"), "{missing}");
        assert!(refused(folder.path()).await.message.contains("is a directory"));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert!(refused(&pipe).await.message.contains("not a regular file"));
    }

    #[tokio::test]
    async fn a_file_is_read_at_any_place_until_it_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a b.bin");
        std::fs::write(&path, b"0123456789").expect("written");
        let source = FileSource::open(&url(&path)).await.expect("readable");
        assert_eq!(source.version().bytes, 10);
        assert_eq!(source.read_at(3, 4).await, Ok(Bytes::from_static(b"3456")));
        let mut file = OpenOptions::new().append(true).open(&path).expect("opened");
        file.write_all(b"more").expect("written");
        assert_eq!(source.read_at(3, 4).await.map_err(|f| f.code), Err(Code::SourceChanged));
    }
}
