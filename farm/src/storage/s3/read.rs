//! Reading objects: whole or in ranges, with the retries that the SDK does not make once an answer has begun.

use std::ops::Range;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};

use super::error::{Meaning, failed, innermost, meaning_of};
use super::settings::transfer_wait;
use super::{Bucket, StorageError};

/// Largest object that is read whole into memory, in bytes.
const WHOLE_BYTES_MAX: u64 = 512 << 20;
/// Tries at an object whose body breaks off.
const BODY_TRIES: u32 = 3;
/// No object is as large, so a range that begins there is beyond the end; larger numbers upset servers. In bytes.
const OBJECT_BYTES_MAX: u64 = 1 << 50;

/// One answer to a GET.
pub(super) struct Got {
    /// The body.
    pub(super) bytes: Bytes,
    /// Size of the whole object in bytes, as far as the answer says.
    pub(super) whole: Option<u64>,
    /// Its ETag.
    pub(super) etag: Option<String>,
}

/// Why a GET brought nothing.
pub(super) enum NotGot {
    /// The object ends before the range.
    BeyondTheEnd,
    /// The ETag is not the one asked for.
    Changed,
    /// Anything else.
    Failed(StorageError),
    /// The body broke off.
    Broken(StorageError),
}

impl Bucket {
    /// A whole object, or a range of it, cut where it ends.
    pub(super) async fn read(&self, path: &str, range: Option<Range<u64>>) -> Result<Bytes, StorageError> {
        if let Some(range) = range.as_ref().filter(|range| range.is_empty() || range.start >= OBJECT_BYTES_MAX) {
            // Nothing is asked for, but an object that is not there is still an error.
            tracing::trace!(path, ?range, "an empty range");
            return self.size(path).await.map(|_| Bytes::new());
        }
        match self.get_patiently(path, range, None).await {
            Ok(got) => Ok(got.bytes),
            Err(NotGot::BeyondTheEnd) => Ok(Bytes::new()),
            Err(NotGot::Failed(error) | NotGot::Broken(error)) => Err(error),
            Err(NotGot::Changed) => Err(self.unfit(path, "it compares versions unasked")),
        }
    }

    /// As [`Bucket::get_once`], again when the body breaks off.
    pub(super) async fn get_patiently(&self, path: &str, range: Option<Range<u64>>, etag: Option<&str>) -> Result<Got, NotGot> {
        for _ in 1..BODY_TRIES {
            match self.get_once(path, range.clone(), etag).await {
                Err(NotGot::Broken(error)) => tracing::debug!(%error, "an object is asked for again"),
                done => return done,
            }
        }
        self.get_once(path, range, etag).await
    }

    /// Asks for an object or a range of it, if its ETag is this one.
    async fn get_once(&self, path: &str, range: Option<Range<u64>>, etag: Option<&str>) -> Result<Got, NotGot> {
        let header = range.as_ref().map(|range| format!("bytes={}-{}", range.start, range.end.min(OBJECT_BYTES_MAX) - 1));
        let get = self.s3.client.get_object().bucket(&self.bucket).key(path).set_range(header);
        let answer = get.set_if_match(etag.map(str::to_owned)).send().await.map_err(|error| match meaning_of(&error) {
            Meaning::BeyondTheEnd => NotGot::BeyondTheEnd,
            Meaning::ConditionFails => NotGot::Changed,
            _ => NotGot::Failed(failed(&self.place(path), &error)),
        })?;
        let told = answer.content_range().map(content_range);
        let (from, whole) = match told {
            Some(Some((from, whole))) => (from, whole),
            Some(None) => return Err(NotGot::Failed(self.unfit(path, "its Content-Range cannot be understood"))),
            None => (0, content_length(&answer)),
        };
        let wanted = range.unwrap_or(0..OBJECT_BYTES_MAX);
        let etag = answer.e_tag().map(str::to_owned);
        let content = self.body(path, content_length(&answer), answer.body).await?;
        // A server that does not know ranges sends all.
        let skipped =
            wanted.start.checked_sub(from).ok_or_else(|| NotGot::Failed(self.unfit(path, "other bytes than asked for")))?;
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX).min(content.len());
        let length = usize::try_from(wanted.end - wanted.start).unwrap_or(usize::MAX).min(content.len() - skipped);
        Ok(Got { bytes: content.slice(skipped..skipped + length), whole, etag })
    }

    /// A body of this size, all of it.
    async fn body(&self, path: &str, bytes: Option<u64>, mut body: ByteStream) -> Result<Bytes, NotGot> {
        if bytes.is_some_and(|bytes| bytes > WHOLE_BYTES_MAX) {
            return Err(NotGot::Failed(self.unfit(path, "more bytes than can be kept in memory")));
        }
        let broken = |why: String| NotGot::Broken(StorageError::Unavailable { key: self.place(path), why });
        let limit = bytes.unwrap_or(WHOLE_BYTES_MAX);
        let gathering = async {
            let mut content = BytesMut::with_capacity(usize::try_from(bytes.unwrap_or_default()).unwrap_or_default());
            while let Some(piece) = body.next().await {
                let piece = piece.map_err(|error| broken(format!("the answer broke off: {}", innermost(&error))))?;
                if (content.len() + piece.len()) as u64 > limit {
                    return Err(NotGot::Failed(self.unfit(path, "more bytes than it said")));
                }
                content.extend_from_slice(&piece);
            }
            Ok(content.freeze())
        };
        let gathered = tokio::time::timeout(transfer_wait(self.s3.answer_wait, limit), gathering).await;
        let content = gathered.unwrap_or_else(|_| Err(broken("the answer does not come in time".to_owned())))?;
        match bytes.is_none_or(|bytes| bytes == content.len() as u64) {
            true => Ok(content),
            false => Err(broken("the answer ended early".to_owned())),
        }
    }

    /// An error for an answer that makes no sense.
    pub(super) fn unfit(&self, path: &str, what: &str) -> StorageError {
        StorageError::Unavailable { key: self.place(path), why: format!("the server's answer does not fit the question: {what}") }
    }
}

fn content_length(answer: &GetObjectOutput) -> Option<u64> {
    answer.content_length().and_then(|bytes| u64::try_from(bytes).ok())
}

/// First byte, and size of the whole if told, of `bytes 0-9/1234` or `bytes 0-9/*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let whole = if whole == "*" { None } else { Some(whole.trim().parse().ok()?) };
    Some((first.trim().parse().ok()?, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_tells_the_first_byte_and_the_size() {
        assert_eq!(content_range("bytes 5-9/1234"), Some((5, Some(1234))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for senseless in ["", "bytes */10", "5-9/10", "bytes 5-9", "bytes a-9/10", "bytes 5-9/x"] {
            assert_eq!(content_range(senseless), None, "{senseless}");
        }
    }
}
