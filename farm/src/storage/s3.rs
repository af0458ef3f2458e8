//! Objects under a prefix of a bucket, on AWS or any server that speaks S3.
//!
//! Servers differ, so nothing here relies on more than they have in common: where one does not know conditional writes,
//! deletes in batches or copies on its side, it is asked once and then served in the plain way.

mod error;
mod join;
mod multipart;
mod object;
mod read;
mod settings;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::{Config, ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use aws_sdk_s3::{Client, config};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use url::Url;

use self::error::{Meaning, failed, meaning_of};
use self::join::Source;
use self::settings::{transfer_wait, wait_for};
use super::{Backend, Creation, Entry, Kind, Part, StorageError, check_key};

pub use object::{PinError, PinnedObject};
pub use settings::{Checksums, S3Settings};

/// Objects from this size on are uploaded in parts, in bytes.
const SINGLE_PUT_BYTES: usize = 32 << 20;
/// Longest key, prefix included, in bytes: what S3 allows.
const PATH_BYTES_MAX: usize = 1024;
/// Objects deleted with one request: what S3 allows.
const BATCH: usize = 1000;
/// Single deletes on their way at a time.
const DELETES_MAX: usize = 8;
/// Pages of a listing, of up to 1000 objects each: more than a farm ever has under one prefix.
const PAGES_MAX: usize = 10_000;
/// Tries at a key that somebody else writes at the same moment, and the first pause between two, which doubles.
const CONFLICTS_MAX: u32 = 6;
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);
/// Longest validity of a presigned URL: what S3 allows.
const PRESIGNED_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A connection to S3, shared by all its buckets.
pub(super) struct S3 {
    client: Client,
    /// As [`S3Settings::answer_wait`].
    answer_wait: Duration,
    unsupported: Unsupported,
}

/// What the server was found not to know.
#[derive(Default)]
struct Unsupported {
    conditions: AtomicBool,
    batches: AtomicBool,
    /// To copy parts, or to take them in the sizes that copies have.
    copies: AtomicBool,
}

impl S3 {
    pub(super) fn new(settings: &S3Settings) -> Self {
        Self { client: settings.client(), answer_wait: settings.answer_wait, unsupported: Unsupported::default() }
    }

    /// The prefix of a bucket that `s3://bucket/prefix/` names.
    pub(super) fn bucket(self: &Arc<Self>, url: &Url) -> Result<Bucket, StorageError> {
        let (bucket, path) = place_of(url)?;
        let path = path.trim_end_matches('/');
        if !path.is_empty() {
            check_key(path).map_err(|_| bad_url(url))?;
        }
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        Ok(Bucket { s3: self.clone(), bucket, prefix })
    }
}

fn bad_url(url: &Url) -> StorageError {
    StorageError::BadUrl(crate::job::shown_url(url))
}

/// Bucket and path of an `s3:` URL, the path without its first `/` and with escapes undone.
fn place_of(url: &Url) -> Result<(String, String), StorageError> {
    let bad = || bad_url(url);
    let plain = url.scheme() == "s3" && url.username().is_empty() && url.password().is_none() && url.port().is_none();
    let bucket = url.host_str().filter(|_| plain && url.query().is_none() && url.fragment().is_none()).ok_or_else(bad)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !(3..=255).contains(&bucket.len()) || !bucket.chars().all(is_name) || bucket.starts_with('.') {
        return Err(bad());
    }
    let path = percent_encoding::percent_decode_str(url.path().trim_start_matches('/'));
    Ok((bucket.to_owned(), path.decode_utf8().map_err(|_| bad())?.into_owned()))
}

/// A prefix of a bucket.
#[derive(Clone)]
pub(super) struct Bucket {
    s3: Arc<S3>,
    bucket: String,
    /// Empty, or ends with `/`.
    prefix: String,
}

impl Bucket {
    /// `s3://bucket/prefix/`
    pub(super) fn shown(&self) -> String {
        self.place(&self.prefix)
    }

    /// An object as it is named in messages, by its whole path.
    fn place(&self, path: &str) -> String {
        format!("s3://{}/{path}", self.bucket)
    }

    /// The whole path of a key.
    fn path(&self, key: &str) -> Result<String, StorageError> {
        let path = format!("{}{key}", self.prefix);
        if path.len() > PATH_BYTES_MAX { Err(StorageError::BadKey(path)) } else { Ok(path) }
    }

    /// The limits of a request that sends so many bytes.
    fn limits(&self, bytes: u64) -> config::Builder {
        Config::builder().timeout_config(wait_for(transfer_wait(self.s3.answer_wait, bytes)))
    }

    /// Puts the object in one request. Set here, so that no place forgets it: what it is, and how long it may be cached.
    fn single_put(&self, path: &str, content: Bytes, kind: Kind) -> PutObjectFluentBuilder {
        let put = self.s3.client.put_object().bucket(&self.bucket).key(path);
        put.content_type(kind.media_type()).cache_control(kind.cache_control()).body(ByteStream::from(content))
    }

    async fn put_whole(&self, path: &str, content: Bytes, kind: Kind) -> Result<(), StorageError> {
        if content.len() >= SINGLE_PUT_BYTES {
            return self.put_in_parts(path, content, kind).await;
        }
        let limits = self.limits(content.len() as u64);
        let put = self.single_put(path, content, kind).customize().config_override(limits).send().await;
        put.map(drop).map_err(|error| failed(&self.place(path), &error))
    }

    /// A create-only write. The SDK repeats a request whose answer was lost, so a refusal may be due to our own success:
    /// only then is what is there compared with what was to be written.
    async fn put_if_absent(&self, path: &str, content: &Bytes, kind: Kind) -> Result<Conditional, StorageError> {
        let tries = Tries::default();
        let put = self.single_put(path, content.clone(), kind).if_none_match("*").customize();
        let put = put.config_override(self.limits(content.len() as u64)).interceptor(tries.clone()).send().await;
        let Err(error) = put else { return Ok(Conditional::Done(Creation::Created)) };
        match meaning_of(&error) {
            Meaning::ConditionFails if tries.count() > 1 && self.holds(path, content).await? => {
                Ok(Conditional::Done(Creation::Created))
            }
            Meaning::ConditionFails => Ok(Conditional::Done(Creation::Existed)),
            Meaning::Conflict => Ok(Conditional::Conflict(failed(&self.place(path), &error))),
            Meaning::Unsupported => Ok(Conditional::Unsupported),
            _ => Err(failed(&self.place(path), &error)),
        }
    }

    /// Whether exactly this is there.
    async fn holds(&self, path: &str, content: &Bytes) -> Result<bool, StorageError> {
        match self.read(path, None).await {
            Ok(there) => Ok(there == *content),
            Err(StorageError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Size in bytes.
    async fn size(&self, path: &str) -> Result<u64, StorageError> {
        let head = self.s3.client.head_object().bucket(&self.bucket).key(path).send().await;
        let head = head.map_err(|error| failed(&self.place(path), &error))?;
        Ok(head.content_length().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default())
    }

    /// Deletes up to [`BATCH`] objects with one request; false when the server does not know how.
    async fn delete_batch(&self, paths: &[String]) -> Result<bool, StorageError> {
        let place = self.shown();
        let senseless =
            |error: aws_sdk_s3::error::BuildError| StorageError::Unavailable { key: place.clone(), why: error.to_string() };
        let objects = paths.iter().map(|path| ObjectIdentifier::builder().key(path).build());
        let objects = objects.collect::<Result<Vec<_>, _>>().map_err(senseless)?;
        let delete = Delete::builder().set_objects(Some(objects)).quiet(true).build().map_err(senseless)?;
        let answer = match self.s3.client.delete_objects().bucket(&self.bucket).delete(delete).send().await {
            Ok(answer) => answer,
            // 400: older servers demand a checksum of another kind.
            Err(error) if error.raw_response().is_some_and(|raw| raw.status().as_u16() == 400) => return Ok(false),
            Err(error) if meaning_of(&error) == Meaning::Unsupported => return Ok(false),
            Err(error) => return Err(failed(&place, &error)),
        };
        let left = answer.errors().iter().find(|error| error.code() != Some("NoSuchKey"));
        left.map_or(Ok(true), |error| {
            let place = self.place(error.key().unwrap_or_default());
            let why = error.code().unwrap_or("it is not deleted").to_owned();
            Err(if why == "AccessDenied" { StorageError::Denied(place) } else { StorageError::Unavailable { key: place, why } })
        })
    }

    async fn delete_one(&self, path: String) -> Result<(), StorageError> {
        match self.s3.client.delete_object().bucket(&self.bucket).key(&path).send().await {
            Ok(_) => Ok(()),
            Err(error) if meaning_of(&error) == Meaning::NoObject => Ok(()),
            Err(error) => Err(failed(&self.place(&path), &error)),
        }
    }
}

/// What became of a create-only write.
enum Conditional {
    Done(Creation),
    Conflict(StorageError),
    Unsupported,
}

/// Counts how often a request was sent.
#[derive(Clone, Debug, Default)]
struct Tries(Arc<AtomicU32>);

impl Tries {
    fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Intercept for Tries {
    fn name(&self) -> &'static str {
        "tries"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[async_trait::async_trait]
impl Backend for Bucket {
    async fn get(&self, key: &str) -> Result<Bytes, StorageError> {
        self.read(&self.path(key)?, None).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.read(&self.path(key)?, Some(range)).await
    }

    async fn put(&self, key: &str, content: Bytes, kind: Kind) -> Result<(), StorageError> {
        self.put_whole(&self.path(key)?, content, kind).await
    }

    async fn put_new(&self, key: &str, content: Bytes, kind: Kind) -> Result<Creation, StorageError> {
        let path = self.path(key)?;
        // Nothing of that size is ever written so; parts have no condition that all servers know.
        let is_large = content.len() >= SINGLE_PUT_BYTES;
        let mut pause = CONFLICT_PAUSE;
        let mut left = CONFLICTS_MAX;
        while !is_large && !self.s3.unsupported.conditions.load(Ordering::Relaxed) {
            match self.put_if_absent(&path, &content, kind).await? {
                Conditional::Done(creation) => return Ok(creation),
                Conditional::Unsupported => self.s3.unsupported.conditions.store(true, Ordering::Relaxed),
                Conditional::Conflict(error) if left == 0 => return Err(error),
                Conditional::Conflict(_) => {
                    left -= 1;
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
                    pause *= 2;
                }
            }
        }
        self.put_whole(&path, content, kind).await.map(|()| Creation::Created)
    }

    async fn join(&self, key: &str, parts: &[Part], kind: Kind) -> Result<u64, StorageError> {
        let source = |part: &Part| match part {
            Part::Object { key, range } => Ok(Source::Object { path: self.path(key)?, range: range.clone() }),
            Part::Bytes(content) => Ok(Source::Bytes(content.clone())),
        };
        let sources = parts.iter().map(source).collect::<Result<Vec<_>, StorageError>>()?;
        self.join_sources(&self.path(key)?, &sources, kind).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        let prefix = self.path(prefix)?;
        let list = self.s3.client.list_objects_v2().bucket(&self.bucket).prefix(&prefix);
        let mut pages = list.into_paginator().send();
        let mut entries = Vec::new();
        for _ in 0..PAGES_MAX {
            let Some(page) = pages.next().await else {
                // The port's order is that of bytes; not every server keeps to it.
                entries.sort_unstable_by(|a: &Entry, b| a.key.cmp(&b.key));
                return Ok(entries);
            };
            let page = page.map_err(|error| failed(&self.place(&prefix), &error))?;
            entries.extend(page.contents().iter().filter_map(|object| {
                // What is no key of ours (`folder/`, made by file browsers) is not shown.
                let key = check_key(object.key()?.strip_prefix(&self.prefix)?).ok()?.to_owned();
                let modified_ms = object.last_modified().and_then(|time| time.to_millis().ok()).unwrap_or_default();
                let bytes = object.size().unwrap_or_default();
                Some(Entry { key, bytes: u64::try_from(bytes).ok()?, modified_ms: u64::try_from(modified_ms).ok()? })
            }));
        }
        let why = format!("more than {PAGES_MAX} pages of objects");
        Err(StorageError::Unavailable { key: self.place(&prefix), why })
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StorageError> {
        let paths = keys.iter().map(|key| self.path(key)).collect::<Result<Vec<_>, _>>()?;
        for batch in paths.chunks(BATCH) {
            let batches = &self.s3.unsupported.batches;
            if batch.len() > 1 && !batches.load(Ordering::Relaxed) {
                if self.delete_batch(batch).await? {
                    continue;
                }
                batches.store(true, Ordering::Relaxed);
            }
            let deletes = stream::iter(batch.to_vec()).map(|path| self.delete_one(path)).buffer_unordered(DELETES_MAX);
            deletes.try_collect::<()>().await?;
        }
        Ok(())
    }

    async fn presigned_get(&self, key: &str, valid: Duration) -> Result<Option<Url>, StorageError> {
        let path = self.path(key)?;
        let senseless = |why: String| StorageError::Unavailable { key: self.place(&path), why };
        let valid = PresigningConfig::expires_in(valid.min(PRESIGNED_MAX)).map_err(|error| senseless(error.to_string()))?;
        let signed = self.s3.client.get_object().bucket(&self.bucket).key(&path).presigned(valid).await;
        let signed = signed.map_err(|error| failed(&self.place(&path), &error))?;
        Url::parse(signed.uri()).map(Some).map_err(|error| senseless(error.to_string()))
    }

    async fn abort_stale_uploads(&self, older_than: Duration) -> Result<u64, StorageError> {
        self.abort_uploads(SystemTime::now().checked_sub(older_than).unwrap_or(SystemTime::UNIX_EPOCH)).await
    }
}
