//! Whether a storage does what the port promises, tried out: for `shoal doctor` and for the start of a service.

use std::fmt;

use bytes::Bytes;
use rand::RngExt as _;

use super::{Creation, Kind, Storage, StorageError};

/// Creators that race for one key.
const RACERS: usize = 8;

/// What a storage was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conformance {
    /// What create-only writes are worth.
    pub create_only: CreateOnly,
}

/// What create-only writes are worth. Shoal needs none of it: it only saves work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateOnly {
    /// Of several creators exactly one is told that it created.
    Holds,
    /// They hold for one after another, not for several at once.
    Racy,
    /// They are ordinary writes.
    Ignored,
}

impl fmt::Display for CreateOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Holds => "hold",
            Self::Racy => "do not hold against several writers at once",
            Self::Ignored => "are ignored",
        })
    }
}

impl Storage {
    /// Writes, reads, lists and deletes under a random key. Leaves nothing behind, as far as it may delete.
    ///
    /// # Errors
    /// What does not work, and what to do about it where that is known.
    pub async fn check(&self) -> Result<Conformance, StorageError> {
        let random: u64 = rand::rng().random();
        let prefix = format!("probe/{random:016x}/");
        let checked = self.try_out(&prefix).await;
        let left: Vec<String> = match self.list(&prefix).await {
            Ok(entries) => entries.into_iter().map(|entry| entry.key).collect(),
            Err(error) => return checked.and(Err(error)),
        };
        let deleted = self.delete(&left).await;
        let checked = checked?;
        deleted?;
        match self.list(&prefix).await?.first() {
            Some(entry) => Err(wrong(self, &entry.key, "it is still listed after it was deleted")),
            None => Ok(checked),
        }
    }

    async fn try_out(&self, prefix: &str) -> Result<Conformance, StorageError> {
        let key = format!("{prefix}object");
        match self.get(&key).await {
            Err(StorageError::NotFound(_)) => {}
            Ok(_) => return Err(wrong(self, &key, "an object is there that nobody wrote")),
            // S3 hides from those who may not list whether an object is there.
            Err(StorageError::Denied(why)) => {
                return Err(StorageError::Denied(format!("{why}; reading and listing (s3:GetObject, s3:ListBucket) are needed")));
            }
            Err(error) => return Err(error),
        }
        let content = Bytes::from(key.clone());
        self.put(&key, content.clone(), Kind::Json).await?;
        if self.get(&key).await? != content {
            return Err(wrong(self, &key, "reading it back gives something else"));
        }
        if self.get_range(&key, 2..5).await? != content.slice(2..5) {
            return Err(wrong(self, &key, "a range of it gives other bytes: the storage does not know ranges"));
        }
        let listed = self.list(prefix).await?;
        if !matches!(listed.as_slice(), [entry] if entry.key == key && entry.bytes == content.len() as u64) {
            return Err(wrong(self, &key, "it is not listed right after it was written"));
        }
        let create_only = self.create_only(prefix).await?;
        Ok(Conformance { create_only })
    }

    async fn create_only(&self, prefix: &str) -> Result<CreateOnly, StorageError> {
        let key = format!("{prefix}new");
        self.put_new(&key, "first".into(), Kind::Json).await?;
        if self.put_new(&key, "second".into(), Kind::Json).await? == Creation::Created {
            return Ok(CreateOnly::Ignored);
        }
        let key = format!("{prefix}race");
        let racers = (0..RACERS).map(|n| self.put_new(&key, format!("racer {n}").into(), Kind::Json));
        let outcomes = futures::future::join_all(racers).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let winners = outcomes.iter().filter(|outcome| **outcome == Creation::Created).count();
        Ok(if winners == 1 { CreateOnly::Holds } else { CreateOnly::Racy })
    }
}

fn wrong(storage: &Storage, key: &str, why: &str) -> StorageError {
    StorageError::Unavailable { key: format!("{key} in {}", storage.shown()), why: why.to_owned() }
}
