//! The storage contract over a server that the environment names: `make conformance`. Needs the feature `conformance`.
//!
//! `SHOAL_CONFORMANCE_S3` is its endpoint, `SHOAL_CONFORMANCE_BUCKET` a bucket (`farm` without), `AWS_*` the credentials.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use farm::storage::{CreateOnly, Kind, S3Settings, Storage, Stores};
use tests::contract::storage::Fresh;
use tokio::runtime::Handle;
use url::Url;

tests::storage_contract!(server, crate::server);

/// Longest wait for the objects of a case to be deleted.
const CLEAN_UP_WAIT: Duration = Duration::from_secs(60);

/// The server, with connections of its own.
fn stores() -> Result<Stores> {
    let name = |name: &str| if name == "SHOAL_S3_ENDPOINT" { "SHOAL_CONFORMANCE_S3".to_owned() } else { name.to_owned() };
    let settings = S3Settings::from_variables(|variable| std::env::var(name(variable)).ok())?;
    settings.endpoint.as_ref().context("SHOAL_CONFORMANCE_S3 is not set")?;
    Ok(Stores::new(settings))
}

async fn server() -> Result<Fresh> {
    let bucket = std::env::var("SHOAL_CONFORMANCE_BUCKET").unwrap_or_else(|_| "farm".to_owned());
    let random = tempfile::Builder::new().prefix("case-").tempdir()?;
    let prefix = random.path().file_name().and_then(|name| name.to_str()).context("a name")?;
    let url = Url::parse(&format!("s3://{bucket}/conformance/{prefix}/"))?;
    let storage = stores()?.open(&url)?;
    let found = storage.check().await?;
    tell(&format!("{url}: create-only writes {}", found.create_only));
    let keep = Box::new(Objects { storage: storage.clone(), runtime: Handle::current() });
    let one_creator = found.create_only == CreateOnly::Holds;
    Ok(Fresh { storage, one_creator, flat_keys: true, key_bytes_max: 900, keep })
}

/// A writer that dies half-way leaves no object; what it leaves is found and aborted, where the server lists uploads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_dead_writers_are_aborted() -> Result<()> {
    let fresh = server().await?;
    let url = Url::parse(fresh.storage.shown())?;
    let mut aborted = 0;
    for wait_ms in [10, 30, 60, 100, 200] {
        let storage = stores()?.open(&url)?;
        let writer = std::thread::spawn(move || {
            // Nothing runs on this runtime once `block_on` has ended: as if the process were killed.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let put = storage.put("large", vec![1; 64 << 20].into(), Kind::VideoMp4);
            let _ = runtime.block_on(async { tokio::time::timeout(Duration::from_millis(wait_ms), put).await });
            anyhow::Ok(())
        });
        tokio::task::spawn_blocking(|| writer.join()).await?.map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        aborted += fresh.storage.abort_stale_uploads(Duration::ZERO).await?;
        ensure!(fresh.storage.list("").await?.iter().all(|entry| entry.bytes == 64 << 20), "half an object");
    }
    tell(&format!("{aborted} uploads of dead writers were aborted (0: the server does not list uploads)"));
    Ok(())
}

#[expect(clippy::print_stderr, reason = "says what was found")]
fn tell(line: &str) {
    eprintln!("{line}");
}

/// The objects of a case. Dropped, they are deleted.
struct Objects {
    storage: Storage,
    runtime: Handle,
}

impl Drop for Objects {
    fn drop(&mut self) {
        let deleting = async {
            let entries = self.storage.list("").await.unwrap_or_default();
            let keys: Vec<String> = entries.into_iter().map(|entry| entry.key).collect();
            // What stays is in nobody's way but the bucket's owner's, who sees it under `conformance/`.
            let _ = self.storage.delete(&keys).await;
        };
        tokio::task::block_in_place(|| {
            let _ = self.runtime.block_on(async { tokio::time::timeout(CLEAN_UP_WAIT, deleting).await });
        });
    }
}
