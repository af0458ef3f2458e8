//! A remote source in blocks that are read ahead and kept, whatever it is fetched with. Demuxers ask for a few KiB at a time,
//! mostly one after another; servers are asked for [`BLOCK_BYTES`].

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use farm::media::SourceVersion;
use farm::{Code, Failure};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;
use tokio_util::task::AbortOnDropHandle;

use crate::retry::Patience;

/// Unit of fetching. Large enough that a request's latency does not count, small enough for a source of a few seconds.
pub(crate) const BLOCK_BYTES: u64 = 2 << 20;
/// Blocks kept per source, those being fetched among them: whatever the source's size, it takes so much memory.
const BLOCKS_KEPT: NonZeroUsize = NonZeroUsize::new(12).expect("not zero");
/// Blocks fetched ahead of a reader that goes forward.
const BLOCKS_AHEAD: u64 = 2;

/// What blocks are fetched from: one version of a source.
pub(crate) trait Remote: Send + Sync + 'static {
    /// Which version that is.
    fn version(&self) -> SourceVersion;

    /// A range within its size, all of it. Tries again what may pass, as long as patience lasts.
    ///
    /// # Errors
    /// As [`super::Source::read_at`].
    fn fetch(&self, range: Range<u64>, patience: Patience) -> impl Future<Output = Result<Bytes, Failure>> + Send;
}

/// A source in blocks.
pub(crate) struct Blocks<R> {
    remote: Arc<R>,
    version: SourceVersion,
    /// Whether bytes came, now or for an earlier attempt: only then is their staying away an outage, and waited for.
    is_proven: Arc<AtomicBool>,
    cache: Mutex<Cache>,
}

type Fetch = Shared<BoxFuture<'static, Result<Bytes, Failure>>>;

struct Cache {
    kept: LruCache<u64, Fetch>,
    last: Option<u64>,
}

impl<R: Remote> Blocks<R> {
    /// Nothing fetched yet. Whoever is impatient becomes patient when the first bytes have come.
    pub(crate) fn new(remote: R, patience: Patience) -> Self {
        let cache = Mutex::new(Cache { kept: LruCache::new(BLOCKS_KEPT), last: None });
        let is_proven = Arc::new(AtomicBool::new(patience == Patience::Long));
        Self { version: remote.version(), remote: Arc::new(remote), is_proven, cache }
    }

    /// Which version is read.
    pub(crate) fn version(&self) -> &SourceVersion {
        &self.version
    }

    /// Keeps none of what was fetched.
    pub(crate) fn forget(&self) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.kept.clear();
        cache.last = None;
    }

    /// As [`super::Source::read_at`].
    pub(crate) async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Failure> {
        let mut gathered = BytesMut::new();
        let mut wanted = len;
        let mut at = offset;
        while wanted > 0 {
            let index = at / BLOCK_BYTES;
            let block = self.block(index).await?;
            let from = ((at - index * BLOCK_BYTES) as usize).min(block.len());
            let part = block.slice(from..(from + wanted).min(block.len()));
            if part.is_empty() {
                return Err(Failure::new(Code::Internal, "a read beyond the end of the source"));
            }
            if part.len() == len {
                return Ok(part);
            }
            at += part.len() as u64;
            wanted -= part.len();
            gathered.extend_from_slice(&part);
        }
        Ok(gathered.freeze())
    }

    /// A block, and the next ones set going when the reader goes forward.
    fn block(&self, index: u64) -> Fetch {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let forward = cache.last.is_some_and(|last| last == index || last + 1 == index);
        cache.last = Some(index);
        // What failed ahead of time may have passed since.
        if cache.kept.peek(&index).is_some_and(|fetch| matches!(fetch.peek(), Some(Err(_)))) {
            cache.kept.pop(&index);
        }
        let wanted = cache.kept.get_or_insert(index, || self.fetch(index)).clone();
        let end = self.version.bytes.div_ceil(BLOCK_BYTES);
        let ahead = if forward { BLOCKS_AHEAD } else { 0 };
        for next in (index + 1..end).take(ahead as usize) {
            cache.kept.get_or_insert(next, || self.fetch(next));
        }
        wanted
    }

    /// Sets a block going. It stops when nobody holds it any more.
    fn fetch(&self, index: u64) -> Fetch {
        let remote = self.remote.clone();
        let first = index * BLOCK_BYTES;
        let end = (first + BLOCK_BYTES).min(self.version.bytes);
        let is_proven = self.is_proven.clone();
        let fetching = AbortOnDropHandle::new(tokio::spawn(async move {
            let patience = if is_proven.load(Ordering::Relaxed) { Patience::Long } else { Patience::Short };
            let fetched = remote.fetch(first..end, patience).await;
            is_proven.fetch_or(fetched.is_ok(), Ordering::Relaxed);
            fetched
        }));
        async move { fetching.await.unwrap_or_else(|_| Err(Failure::new(Code::Internal, "a fetch came to nothing"))) }
            .boxed()
            .shared()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::Instant;

    use crate::retry::{Hope, hopefully};

    /// A source of ten blocks that cannot be reached between two moments.
    struct Flaky {
        began: Instant,
        away: Range<u64>,
    }

    impl Remote for Flaky {
        fn version(&self) -> SourceVersion {
            SourceVersion { bytes: 10 * BLOCK_BYTES, etag: None, modified: None }
        }

        async fn fetch(&self, range: Range<u64>, patience: Patience) -> Result<Bytes, Failure> {
            let ask = || {
                let is_away = self.away.contains(&self.began.elapsed().as_secs());
                let bytes = Bytes::from(vec![7; (range.end - range.start) as usize]);
                std::future::ready(if is_away { Err(Failure::new(Code::SourceUnreadable, "away")) } else { Ok(bytes) })
            };
            hopefully(patience, |_| Hope::Soon, ask).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_was_read_before_is_waited_for_and_one_that_was_not_is_given_up() {
        let source = |away, patience| Blocks::new(Flaky { began: Instant::now(), away }, patience);
        let unread = source(0..100, Patience::Short);
        assert!(unread.read_at(0, 10).await.is_err() && unread.remote.began.elapsed().as_secs() < 5);
        let known = source(0..100, Patience::Long);
        assert!(known.read_at(0, 10).await.is_ok() && known.remote.began.elapsed().as_secs() >= 100);
        let read = source(10..110, Patience::Short);
        read.read_at(0, 10).await.expect("there");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(read.read_at(5 * BLOCK_BYTES, 10).await.is_ok() && read.remote.began.elapsed().as_secs() >= 110);
        let gone = source(10..1000, Patience::Short);
        gone.read_at(0, 10).await.expect("there");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(gone.read_at(5 * BLOCK_BYTES, 10).await.is_err() && gone.remote.began.elapsed().as_secs() < 150);
    }
}
