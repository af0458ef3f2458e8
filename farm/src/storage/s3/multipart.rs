//! Large objects in parts. An upload that does not come to its end is aborted, also when its future is dropped; what a dead
//! process leaves behind, [`Bucket::abort_uploads`] finds.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::StalledStreamProtectionConfig;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use super::error::{Meaning, failed, meaning_of};
use super::{Bucket, Kind, PAGES_MAX, StorageError, Tries};

/// Usual size of a part in bytes.
pub(super) const PART_BYTES: u64 = 8 << 20;
/// Most parts of an object. S3 takes 10 000.
pub(super) const PARTS_MAX: u64 = 9_000;
/// Parts on their way at a time, for each object.
const PARTS_AT_ONCE: usize = 3;
/// Longest wait for an upload to be aborted.
const ABORT_WAIT: Duration = Duration::from_secs(30);
/// How much the time for copying or putting together on the server's side may exceed that of an empty request: as if so
/// many bytes were sent.
const SERVER_WORK_BYTES: u64 = 32 << 20;

/// Size of the parts of an object of so many bytes: all alike but the last, as some servers demand.
pub(super) fn part_bytes(whole: u64) -> u64 {
    whole.div_ceil(PARTS_MAX).max(PART_BYTES)
}

/// An upload that has begun. Dropped before it is finished, it is aborted in the background.
pub(super) struct Upload {
    bucket: Bucket,
    path: String,
    id: String,
    is_open: bool,
}

impl Upload {
    pub(super) async fn begin(bucket: &Bucket, path: &str, kind: Kind) -> Result<Self, StorageError> {
        let create = bucket.s3.client.create_multipart_upload().bucket(&bucket.bucket).key(path);
        let begun = create.content_type(kind.media_type()).cache_control(kind.cache_control()).send().await;
        let begun = begun.map_err(|error| failed(&bucket.place(path), &error))?;
        let id = begun.upload_id().ok_or_else(|| bucket.unfit(path, "an upload without an id"))?.to_owned();
        Ok(Self { bucket: bucket.clone(), path: path.to_owned(), id, is_open: true })
    }

    /// Uploads part `number`, from 1.
    pub(super) async fn put(&self, number: i32, content: Bytes) -> Result<CompletedPart, StorageError> {
        let Bucket { s3, bucket, .. } = &self.bucket;
        let limits = self.bucket.limits(content.len() as u64);
        let put = s3.client.upload_part().bucket(bucket).key(&self.path).upload_id(&self.id).part_number(number);
        let put = put.body(ByteStream::from(content)).customize().config_override(limits).send().await;
        let tag = put.map_err(|error| failed(&self.place(), &error))?.e_tag().map(str::to_owned);
        Ok(CompletedPart::builder().part_number(number).set_e_tag(tag).build())
    }

    /// Copies a range of another object of the bucket as part `number`. `None` when the server will not.
    pub(super) async fn copy(
        &self,
        number: i32,
        from: &str,
        range: std::ops::Range<u64>,
    ) -> Result<Option<CompletedPart>, StorageError> {
        let Bucket { s3, bucket, .. } = &self.bucket;
        // A copy sends nothing for a while, which the SDK takes for a stall.
        let limits = self.bucket.limits(SERVER_WORK_BYTES).stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let from = percent_encoding::utf8_percent_encode(from, COPY_SOURCE);
        let copy = s3.client.upload_part_copy().bucket(bucket).key(&self.path).upload_id(&self.id).part_number(number);
        let copy =
            copy.copy_source(format!("{bucket}/{from}")).copy_source_range(format!("bytes={}-{}", range.start, range.end - 1));
        match copy.customize().config_override(limits).send().await {
            Ok(copied) => {
                let tag = copied.copy_part_result().and_then(|part| part.e_tag()).map(str::to_owned);
                Ok(Some(CompletedPart::builder().part_number(number).set_e_tag(tag).build()))
            }
            // Some servers do not know copies, some not with a range: they say so by one of these.
            Err(error) if meaning_of(&error) == Meaning::Unsupported => Ok(None),
            Err(error) if error.raw_response().is_some_and(|raw| raw.status().as_u16() == 400) => Ok(None),
            Err(error) => Err(failed(&self.place(), &error)),
        }
    }

    /// Makes the object of its parts, which come in any order.
    pub(super) async fn finish(mut self, mut parts: Vec<CompletedPart>, bytes: u64) -> Result<(), Unfinished> {
        parts.sort_by_key(CompletedPart::part_number);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let Bucket { s3, bucket, .. } = &self.bucket;
        let tries = Tries::default();
        let finish = s3.client.complete_multipart_upload().bucket(bucket).key(&self.path).upload_id(&self.id);
        let finish = finish.multipart_upload(parts).customize().config_override(self.bucket.limits(SERVER_WORK_BYTES));
        match finish.interceptor(tries.clone()).send().await {
            Ok(_) => {}
            // The answer to an earlier try was lost. Servers say in different ways that the upload is no more.
            Err(error) if tries.count() > 1 && error.as_service_error().is_some() && self.is_finished(bytes).await => {}
            Err(error) => {
                let (meaning, error) = (meaning_of(&error), failed(&self.place(), &error));
                self.abort().await;
                return Err(match meaning {
                    Meaning::PartsUnfit => Unfinished::PartsUnfit(error),
                    _ => Unfinished::Failed(error),
                });
            }
        }
        self.is_open = false;
        Ok(())
    }

    /// Whether the object is there, in this size.
    async fn is_finished(&self, bytes: u64) -> bool {
        self.bucket.size(&self.path).await.is_ok_and(|there| there == bytes)
    }

    /// Gives the upload up. What cannot be aborted is left to the janitor.
    pub(super) async fn abort(mut self) {
        self.is_open = false;
        abort(&self.bucket, &self.path, &self.id).await;
    }

    fn place(&self) -> String {
        self.bucket.place(&self.path)
    }
}

/// Why no object was made of parts.
pub(super) enum Unfinished {
    /// The server does not take such parts: others may do.
    PartsUnfit(StorageError),
    /// Anything else.
    Failed(StorageError),
}

impl From<Unfinished> for StorageError {
    fn from(unfinished: Unfinished) -> Self {
        match unfinished {
            Unfinished::PartsUnfit(error) | Unfinished::Failed(error) => error,
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(runtime) = tokio::runtime::Handle::try_current().ok().filter(|_| self.is_open) else { return };
        let (bucket, path, id) = (self.bucket.clone(), std::mem::take(&mut self.path), std::mem::take(&mut self.id));
        runtime.spawn(async move { abort(&bucket, &path, &id).await });
    }
}

/// What is escaped in the name of a copy's source: all but what is plain in every server, and the slash.
const COPY_SOURCE: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

async fn abort(bucket: &Bucket, path: &str, id: &str) -> bool {
    let abort = bucket.s3.client.abort_multipart_upload().bucket(&bucket.bucket).key(path).upload_id(id).send();
    let why = match tokio::time::timeout(ABORT_WAIT, abort).await {
        Ok(Ok(_)) => return true,
        Ok(Err(error)) if meaning_of(&error) == Meaning::NoUpload => return false,
        Ok(Err(error)) => failed(&bucket.place(path), &error).to_string(),
        Err(_) => "the server does not answer in time".to_owned(),
    };
    tracing::warn!(object = bucket.place(path), why, "an upload could not be aborted: its parts are left behind");
    false
}

impl Bucket {
    /// Stores an object in parts of equal size.
    pub(super) async fn put_in_parts(&self, path: &str, content: Bytes, kind: Kind) -> Result<(), StorageError> {
        let bytes = content.len() as u64;
        let size = usize::try_from(part_bytes(bytes)).unwrap_or(usize::MAX);
        let part = |start: usize| content.slice(start..start.saturating_add(size).min(content.len()));
        let parts: Vec<Bytes> = (0..content.len()).step_by(size).map(part).collect();
        let upload = Upload::begin(self, path, kind).await?;
        let uploading = (1..).zip(parts).map(|(number, part)| upload.put(number, part));
        match gather(uploading).await {
            Ok(parts) => Ok(upload.finish(parts, bytes).await?),
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }

    /// Aborts uploads below the prefix that began before `limit`; how many. Servers that cannot list uploads, or will not to
    /// these credentials, have none: a lifecycle rule of the bucket is to do it there.
    pub(super) async fn abort_uploads(&self, limit: SystemTime) -> Result<u64, StorageError> {
        let limit = DateTime::from(limit);
        let (mut key_marker, mut id_marker, mut aborted) = (None, None, 0);
        for _ in 0..PAGES_MAX {
            let list = self.s3.client.list_multipart_uploads().bucket(&self.bucket).prefix(&self.prefix);
            let page = match list.set_key_marker(key_marker).set_upload_id_marker(id_marker).send().await {
                Ok(page) => page,
                Err(error) if matches!(meaning_of(&error), Meaning::Unsupported | Meaning::Denied) => return Ok(aborted),
                Err(error) => return Err(failed(&self.shown(), &error)),
            };
            for upload in page.uploads() {
                let is_stale = upload.initiated().is_some_and(|begun| *begun < limit);
                let Some((path, id)) = upload.key().zip(upload.upload_id()).filter(|_| is_stale) else { continue };
                // Not every server heeds the prefix here.
                if path.starts_with(&self.prefix) {
                    aborted += u64::from(abort(self, path, id).await);
                }
            }
            if page.is_truncated() != Some(true) {
                return Ok(aborted);
            }
            (key_marker, id_marker) =
                (page.next_key_marker().map(str::to_owned), page.next_upload_id_marker().map(str::to_owned));
        }
        Ok(aborted)
    }

    /// Whether objects can be made of copies, as far as is known.
    pub(super) fn copies(&self) -> bool {
        !self.s3.unsupported.copies.load(Ordering::Relaxed)
    }
}

/// Waits for parts, a few at a time. When one has failed no other is begun, and those on their way are waited for: one that
/// arrives when its upload was aborted may stay with the server.
pub(super) async fn gather<T>(
    mut parts: impl Iterator<Item = impl Future<Output = Result<T, StorageError>>>,
) -> Result<Vec<T>, StorageError> {
    let mut running: FuturesUnordered<_> = parts.by_ref().take(PARTS_AT_ONCE).collect();
    let (mut stored, mut failure) = (Vec::new(), None);
    while let Some(part) = running.next().await {
        match part {
            Ok(part) => stored.push(part),
            Err(error) => failure = failure.or(Some(error)),
        }
        running.extend(parts.next().filter(|_| failure.is_none()));
    }
    failure.map_or(Ok(stored), Err)
}
