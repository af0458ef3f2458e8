//! The storage port's contract over every backend, and what a folder promises beyond it: when its writer is killed, when the
//! disk is full, when it may not be written to.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use farm::storage::{Creation, Kind, Part, Storage, StorageError};
use tests::contract::storage::Fresh;
use tests::s3::S3Server;

tests::storage_contract!(folder, crate::folder);
tests::storage_contract!(s3, crate::s3);

async fn folder() -> Result<Fresh> {
    let keep = tempfile::tempdir()?;
    // Not there yet: it is made when something is first written.
    let storage = Storage::folder(&keep.path().join("not/yet/there"));
    Ok(Fresh { storage, one_creator: true, flat_keys: false, key_bytes_max: 900, keep: Box::new(keep) })
}

async fn s3() -> Result<Fresh> {
    let server = S3Server::start()?;
    let storage = server.storage("a prefix/of two parts/")?;
    // The server keeps objects as files.
    Ok(Fresh { storage, one_creator: true, flat_keys: false, key_bytes_max: 100, keep: Box::new(server) })
}

/// Names the folder to the child process that is killed while it writes there.
const CRASH_FOLDER: &str = "SHOAL_TEST_CRASH_FOLDER";

/// Size of version `version` of the objects that the killed writer writes, in bytes.
fn crash_size(version: u8) -> usize {
    16_000_000 + usize::from(version)
}

/// Body of the child process: writes without end. Passes at once when it is not that child.
#[tokio::test]
async fn writer_that_is_killed() -> Result<()> {
    let Some(folder) = std::env::var_os(CRASH_FOLDER) else { return Ok(()) };
    let storage = Storage::folder(Path::new(&folder));
    for version in (1..=u8::MAX).cycle() {
        let content = vec![version; crash_size(version)];
        storage.put("a/replaced", content.clone().into(), Kind::VideoMp4).await?;
        storage.put_new(&format!("a/new-{version}"), content.into(), Kind::VideoMp4).await?;
        storage.join("b/joined", &[Part::whole("a/replaced")], Kind::VideoMp4).await?;
        storage.delete(&[format!("a/new-{version}")]).await?;
    }
    Ok(())
}

struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every unfinished file below a folder, with its size in bytes.
fn unfinished(folder: &Path) -> Vec<(PathBuf, u64)> {
    let Ok(listing) = fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for item in listing.flatten() {
        let Ok(about) = item.metadata() else { continue };
        if about.is_dir() {
            found.extend(unfinished(&item.path()));
        } else if item.file_name().to_string_lossy().starts_with(".shoal-tmp-") {
            found.push((item.path(), about.len()));
        }
    }
    found
}

#[tokio::test]
async fn a_killed_writer_leaves_no_half_object() -> Result<()> {
    const ROUNDS: u32 = 24;
    let keep = tempfile::tempdir()?;
    let storage = Storage::folder(keep.path());
    let mut killed_half_way = 0;
    for round in 0..ROUNDS {
        let before = unfinished(keep.path()).len();
        let mut writer = Command::new(std::env::current_exe()?);
        writer.args(["--exact", "writer_that_is_killed"]).env(CRASH_FOLDER, keep.path());
        let mut writer = Writer(writer.stdout(std::process::Stdio::null()).spawn()?);
        let spawned = Instant::now();
        while unfinished(keep.path()).len() <= before {
            ensure!(spawned.elapsed() < Duration::from_secs(30), "the writer does not write");
            ensure!(writer.0.try_wait()?.is_none(), "the writer ended by itself");
        }
        // Spread over a turn of the writer's loop, so that each of its writes is hit in some round.
        tokio::time::sleep(Duration::from_millis(4) * round).await;
        writer.0.kill()?;
        writer.0.wait()?;
        killed_half_way += usize::from(unfinished(keep.path()).len() > before);
        for entry in storage.list("").await? {
            let content = storage.get(&entry.key).await?;
            let version = *content.first().with_context(|| format!("{} is empty", entry.key))?;
            ensure!(content.len() == crash_size(version), "{}: {} bytes of version {version}", entry.key, content.len());
            ensure!(content.iter().all(|byte| *byte == version), "{} is a mixture", entry.key);
            ensure!(entry.bytes == content.len() as u64);
        }
    }
    ensure!(killed_half_way > 0, "no writer was killed in the middle of a write: this test has shown nothing");
    Ok(())
}

#[tokio::test]
async fn a_folder_that_is_taken_away_is_made_again() -> Result<()> {
    let keep = tempfile::tempdir()?;
    let storage = Storage::folder(keep.path());
    let (deep, above) = (keep.path().join("a/b"), keep.path().join("a"));
    let over = std::sync::Arc::new(AtomicBool::new(false));
    // What `delete` does to emptied folders, again and again.
    let remover = std::thread::spawn({
        let over = over.clone();
        move || {
            let mut removed = 0;
            while !over.load(Ordering::Relaxed) {
                removed += usize::from(fs::remove_dir(&deep).is_ok());
                removed += usize::from(fs::remove_dir(&above).is_ok());
                std::thread::sleep(Duration::from_micros(20));
            }
            removed
        }
    });
    let mut outcome = Ok(());
    for _ in 0..300 {
        outcome = outcome.and(storage.put("a/b/c", "x".into(), Kind::Json).await);
        outcome = outcome.and(storage.delete(&["a/b/c".to_owned()]).await);
    }
    over.store(true, Ordering::Relaxed);
    let removed = remover.join().map_err(|_| anyhow::anyhow!("the remover panicked"))?;
    ensure!(removed > 0, "no folder was taken away: this test has shown nothing");
    Ok(outcome?)
}

#[tokio::test]
async fn unfinished_files_are_never_shown_and_are_removed_when_old() -> Result<()> {
    let keep = tempfile::tempdir()?;
    let storage = Storage::folder(keep.path());
    storage.put("a/b", "x".into(), Kind::Json).await?;
    let (young, old) = (keep.path().join("a/.shoal-tmp-young"), keep.path().join("a/.shoal-tmp-old"));
    for path in [&young, &old] {
        fs::write(path, "half")?;
    }
    let two_hours_ago = SystemTime::now() - Duration::from_secs(7200);
    File::options().write(true).open(&old)?.set_modified(two_hours_ago)?;
    File::options().write(true).open(keep.path().join("a/b"))?.set_modified(two_hours_ago)?;
    let keys: Vec<_> = storage.list("").await?.into_iter().map(|entry| entry.key).collect();
    ensure!(keys == ["a/b"], "{keys:?}");
    ensure!(storage.abort_stale_uploads(Duration::from_secs(3600)).await? == 1);
    ensure!(young.exists() && !old.exists());
    for hidden in ["a/.shoal-tmp-young", ".shoal-tmp-x/y"] {
        ensure!(matches!(storage.get(hidden).await, Err(StorageError::BadKey(_))), "{hidden} is read");
        ensure!(matches!(storage.put(hidden, "x".into(), Kind::Json).await, Err(StorageError::BadKey(_))), "{hidden} is written");
    }
    Ok(())
}

#[tokio::test]
async fn a_deleted_object_leaves_no_folders_but_the_root() -> Result<()> {
    let keep = tempfile::tempdir()?;
    let root = keep.path().join("root");
    let storage = Storage::folder(&root);
    for key in ["a/b/c/d", "a/b/e"] {
        storage.put(key, "x".into(), Kind::Json).await?;
    }
    storage.delete(&["a/b/c/d".to_owned()]).await?;
    ensure!(root.join("a/b").is_dir() && !root.join("a/b/c").exists());
    storage.delete(&["a/b/e".to_owned()]).await?;
    ensure!(root.is_dir() && !root.join("a").exists());
    Ok(())
}

#[tokio::test]
async fn what_others_put_into_the_folder_is_no_object() -> Result<()> {
    let keep = tempfile::tempdir()?;
    let storage = Storage::folder(keep.path());
    storage.put("real/object", "x".into(), Kind::Json).await?;
    std::os::unix::fs::symlink(keep.path(), keep.path().join("real/circle"))?;
    std::os::unix::fs::symlink("object", keep.path().join("real/link"))?;
    std::os::unix::net::UnixListener::bind(keep.path().join("real/socket"))?;
    nix::unistd::mkfifo(&keep.path().join("real/pipe"), nix::sys::stat::Mode::S_IRWXU)?;
    fs::write(keep.path().join("real/back\\slash"), "x")?;
    let keys: Vec<_> = storage.list("").await?.into_iter().map(|entry| entry.key).collect();
    ensure!(keys == ["real/object"], "{keys:?}");
    ensure!(storage.get("real/link").await? == "x", "links are followed by readers");
    for key in ["real/pipe", "real/socket", "real"] {
        let read = tokio::time::timeout(Duration::from_secs(5), storage.get(key)).await.context("reading waits for ever")?;
        ensure!(matches!(read, Err(StorageError::NotFound(_))), "{key}: {read:?}");
    }
    Ok(())
}

#[tokio::test]
async fn results_may_be_read_by_whoever_serves_them() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let keep = tempfile::tempdir()?;
    let storage = Storage::folder(keep.path());
    storage.put("put", "x".into(), Kind::Json).await?;
    storage.join("joined", &[Part::whole("put")], Kind::Json).await?;
    // As a file that any program makes here, under this umask.
    fs::write(keep.path().join("usual"), "x")?;
    let mode = |name: &str| fs::metadata(keep.path().join(name)).map(|about| about.permissions().mode());
    ensure!(mode("put")? == mode("usual")? && mode("joined")? == mode("usual")?, "{:o}, not {:o}", mode("put")?, mode("usual")?);
    Ok(())
}

/// A small file system of its own, mounted on a folder.
struct Mount(tempfile::TempDir);

impl Mount {
    /// `None` where this process may not mount.
    fn new(options: &str) -> Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder.path()).output();
        Ok(mounted.is_ok_and(|done| done.status.success()).then_some(Self(folder)))
    }

    fn remount_read_only(&self) -> Result<()> {
        let done = Command::new("mount").args(["-o", "remount,ro"]).arg(self.0.path()).status()?;
        ensure!(done.success(), "remount: {done}");
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Were it still in use, the mount would outlive the test; nothing else is lost.
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[expect(clippy::print_stderr, reason = "says that a test did nothing")]
fn skipped(why: &str) -> Result<()> {
    eprintln!("skipped: {why}");
    Ok(())
}

#[tokio::test]
async fn a_full_disk_is_told_as_such_and_keeps_what_was_there() -> Result<()> {
    let Some(mount) = Mount::new("size=1m")? else { return skipped("no permission to mount a small file system") };
    let storage = Storage::folder(mount.0.path());
    storage.put("a/kept", vec![1; 600_000].into(), Kind::VideoMp4).await?;
    let full = |outcome: Result<(), StorageError>| match outcome {
        Err(StorageError::Full(_)) => Ok(()),
        other => bail!("expected Full, got {other:?}"),
    };
    full(storage.put("a/kept", vec![2; 600_000].into(), Kind::VideoMp4).await)?;
    full(storage.put_new("b/new", vec![2; 600_000].into(), Kind::VideoMp4).await.map(|_| ()))?;
    full(storage.join("c/joined", &[Part::whole("a/kept")], Kind::VideoMp4).await.map(|_| ()))?;
    ensure!(storage.get("a/kept").await? == vec![1; 600_000]);
    ensure!(storage.list("").await?.len() == 1 && unfinished(mount.0.path()).is_empty(), "something is left over");
    storage.delete(&["a/kept".to_owned()]).await?;
    storage.put("b/new", vec![2; 600_000].into(), Kind::VideoMp4).await?;
    Ok(())
}

#[tokio::test]
async fn a_folder_that_may_not_be_written_is_told_as_such() -> Result<()> {
    let Some(mount) = Mount::new("size=1m")? else { return skipped("no permission to mount a small file system") };
    let storage = Storage::folder(mount.0.path());
    storage.put("a/there", "x".into(), Kind::Json).await?;
    mount.remount_read_only()?;
    let denied = |outcome: Result<(), StorageError>| match outcome {
        Err(StorageError::Denied(_)) => Ok(()),
        other => bail!("expected Denied, got {other:?}"),
    };
    denied(storage.put("a/there", "y".into(), Kind::Json).await)?;
    denied(storage.put("new/folder", "y".into(), Kind::Json).await)?;
    denied(storage.join("joined", &[Part::whole("a/there")], Kind::Json).await.map(|_| ()))?;
    denied(storage.delete(&["a/there".to_owned()]).await)?;
    ensure!(storage.put_new("a/there", "y".into(), Kind::Json).await? == Creation::Existed);
    ensure!(storage.get("a/there").await? == "x");
    Ok(())
}
