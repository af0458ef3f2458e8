//! A remote source in blocks that are read ahead and kept, whatever it is fetched with. Demuxers ask for a few KiB at a time,
//! mostly one after another; servers are asked for [`BLOCK_BYTES`].

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use farm::media::SourceVersion;
use farm::{Code, Failure};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;
use tokio_util::task::AbortOnDropHandle;

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

    /// A range within its size, all of it. Tries again what may pass, and ends within a limit.
    ///
    /// # Errors
    /// As [`super::Source::read_at`].
    fn fetch(&self, range: Range<u64>) -> impl Future<Output = Result<Bytes, Failure>> + Send;
}

/// A source in blocks.
pub(crate) struct Blocks<R> {
    remote: Arc<R>,
    version: SourceVersion,
    cache: Mutex<Cache>,
}

type Fetch = Shared<BoxFuture<'static, Result<Bytes, Failure>>>;

struct Cache {
    kept: LruCache<u64, Fetch>,
    last: Option<u64>,
}

impl<R: Remote> Blocks<R> {
    /// Nothing fetched yet.
    pub(crate) fn new(remote: R) -> Self {
        let cache = Mutex::new(Cache { kept: LruCache::new(BLOCKS_KEPT), last: None });
        Self { version: remote.version(), remote: Arc::new(remote), cache }
    }

    /// Which version is read.
    pub(crate) fn version(&self) -> &SourceVersion {
        &self.version
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
        let fetching = AbortOnDropHandle::new(tokio::spawn(async move { remote.fetch(first..end).await }));
        async move { fetching.await.unwrap_or_else(|_| Err(Failure::new(Code::Internal, "a fetch came to nothing"))) }
            .boxed()
            .shared()
    }
}
