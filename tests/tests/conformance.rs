//! The storage contract over a server that the environment names: `make conformance`. Needs the feature `conformance`.
//!
//! `SHOAL_CONFORMANCE_S3` is its endpoint, `SHOAL_CONFORMANCE_BUCKET` a bucket (`farm` without), `AWS_*` the credentials.

use std::time::Duration;

use anyhow::{Context as _, Result};
use farm::storage::{CreateOnly, S3Settings, Storage, Stores};
use tests::contract::storage::Fresh;
use tokio::runtime::Handle;
use url::Url;

tests::storage_contract!(server, crate::server);

/// Longest wait for the objects of a case to be deleted.
const CLEAN_UP_WAIT: Duration = Duration::from_secs(60);

async fn server() -> Result<Fresh> {
    let name = |name: &str| if name == "SHOAL_S3_ENDPOINT" { "SHOAL_CONFORMANCE_S3".to_owned() } else { name.to_owned() };
    let settings = S3Settings::from_variables(|variable| std::env::var(name(variable)).ok())?;
    settings.endpoint.as_ref().context("SHOAL_CONFORMANCE_S3 is not set")?;
    let bucket = std::env::var("SHOAL_CONFORMANCE_BUCKET").unwrap_or_else(|_| "farm".to_owned());
    let random = tempfile::Builder::new().prefix("case-").tempdir()?;
    let prefix = random.path().file_name().and_then(|name| name.to_str()).context("a name")?;
    let url = Url::parse(&format!("s3://{bucket}/conformance/{prefix}/"))?;
    let storage = Stores::new(settings).open(&url)?;
    let found = storage.check().await?;
    tell(&format!("{url}: create-only writes {}", found.create_only));
    let keep = Box::new(Objects { storage: storage.clone(), runtime: Handle::current() });
    let one_creator = found.create_only == CreateOnly::Holds;
    Ok(Fresh { storage, one_creator, flat_keys: true, key_bytes_max: 900, keep })
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
