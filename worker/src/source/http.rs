//! A source behind HTTP: ranged GETs, pinned to one version, in blocks that are read ahead and kept.

use std::error::Error as _;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use farm::job::{SourceSpec, shown_url};
use farm::{Code, Failure};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, LAST_MODIFIED, RANGE};
use reqwest::{Client, Response, StatusCode, redirect};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use crate::retry::patiently;

/// Unit of fetching. Large enough that a request's latency does not count, small enough for a source of a few seconds.
const BLOCK_BYTES: u64 = 2 << 20;
/// Blocks kept per source, those being fetched among them.
const BLOCKS_KEPT: NonZeroUsize = NonZeroUsize::new(12).expect("not zero");
/// Blocks fetched ahead of a reader that goes forward.
const BLOCKS_AHEAD: u64 = 2;
/// Longest wait for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Longest wait for the next bytes of an answer.
const READ_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for a whole block.
const BLOCK_WAIT: Duration = Duration::from_secs(180);
/// Most redirects that are followed.
const REDIRECTS_MAX: usize = 5;

/// A source behind HTTP.
pub(crate) struct HttpSource {
    remote: Arc<Remote>,
    pin: Pin,
    blocks: Mutex<Blocks>,
}

struct Remote {
    client: Client,
    url: Url,
    headers: HeaderMap,
}

/// The version of the source that is read: the one there was when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pin {
    bytes: u64,
    etag: Option<HeaderValue>,
    modified: Option<HeaderValue>,
}

impl Pin {
    fn new(bytes: u64, answer: &Response) -> Self {
        let header = |name| answer.headers().get(name).cloned();
        Self { bytes, etag: header(ETAG), modified: header(LAST_MODIFIED) }
    }

    /// Whether an answer is of this version. What it does not say is no evidence: some caches leave a header out.
    fn fits(&self, other: &Self) -> bool {
        let same = |a: &Option<HeaderValue>, b: &Option<HeaderValue>| a.as_ref().zip(b.as_ref()).is_none_or(|(a, b)| a == b);
        // An ETag that agrees outweighs a date: servers behind one name may have copied the file at different times.
        let dates = self.etag.is_some() && other.etag.is_some() || same(&self.modified, &other.modified);
        self.bytes == other.bytes && same(&self.etag, &other.etag) && dates
    }
}

type Fetch = Shared<BoxFuture<'static, Result<Bytes, Failure>>>;

struct Blocks {
    kept: LruCache<u64, Fetch>,
    last: Option<u64>,
}

/// Why bytes did not come.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Network(String),
    #[error("the server answers {0}")]
    Status(StatusCode),
    #[error("the server does not serve byte ranges, without which a source cannot be read")]
    NoRanges,
    #[error("the server's answer does not fit the question: {0}")]
    Unfit(&'static str),
    #[error("it was changed while it was read")]
    Changed,
}

impl FetchError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Network(_) => true,
            Self::Status(status) => {
                status.is_server_error() || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            }
            Self::NoRanges | Self::Unfit(_) | Self::Changed => false,
        }
    }

    fn into_failure(self, url: &Url) -> Failure {
        let code = match self {
            Self::Changed => Code::SourceChanged,
            Self::Network(_) | Self::Status(_) | Self::NoRanges | Self::Unfit(_) => Code::SourceUnreadable,
        };
        Failure::new(code, format!("{}: {self}", shown_url(url)))
    }
}

impl From<reqwest::Error> for FetchError {
    /// The innermost cause: it says what the outer ones only hint at, and it does not hold the URL.
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if error.is_timeout() {
            return Self::Network("the server does not answer in time".to_owned());
        }
        let mut cause = error.source();
        while let Some(inner) = cause.and_then(std::error::Error::source) {
            cause = Some(inner);
        }
        Self::Network(cause.map_or_else(|| error.to_string(), ToString::to_string))
    }
}

impl HttpSource {
    /// Asks for the first byte, and learns size and version.
    ///
    /// # Errors
    /// As [`super::Source::open`].
    pub(crate) async fn open(spec: &SourceSpec) -> Result<Self, Failure> {
        let remote = Remote::new(spec)?;
        let opened = patiently(FetchError::may_pass, || remote.open()).await;
        let pin = opened.map_err(|error| error.into_failure(&remote.url))?;
        let blocks = Mutex::new(Blocks { kept: LruCache::new(BLOCKS_KEPT), last: None });
        Ok(Self { remote: Arc::new(remote), pin, blocks })
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.pin.bytes
    }

    /// As [`super::Source::read_at`].
    pub(crate) async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Failure> {
        let mut gathered = BytesMut::new();
        let mut wanted = len;
        let mut at = offset;
        while wanted > 0 {
            let index = at / BLOCK_BYTES;
            let block = self.block(index).await?;
            let from = (at - index * BLOCK_BYTES) as usize;
            let part = block.slice(from.min(block.len())..(from + wanted).min(block.len()).max(from.min(block.len())));
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
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let forward = blocks.last.is_some_and(|last| last == index || last + 1 == index);
        blocks.last = Some(index);
        let wanted = blocks.kept.get_or_insert(index, || self.fetch(index)).clone();
        let end = self.pin.bytes.div_ceil(BLOCK_BYTES);
        let ahead = if forward { BLOCKS_AHEAD } else { 0 };
        for next in (index + 1..end).take(ahead as usize) {
            blocks.kept.get_or_insert(next, || self.fetch(next));
        }
        wanted
    }

    /// Sets a block going. It stops when nobody holds it any more.
    fn fetch(&self, index: u64) -> Fetch {
        let (remote, pin) = (self.remote.clone(), self.pin.clone());
        let first = index * BLOCK_BYTES;
        let end = (first + BLOCK_BYTES).min(pin.bytes);
        let fetching = tokio::spawn(async move {
            let fetched = patiently(FetchError::may_pass, || remote.fetch(first, end, &pin)).await;
            fetched.map_err(|error| error.into_failure(&remote.url))
        });
        let fetching = AbortOnDropHandle::new(fetching);
        async move { fetching.await.unwrap_or_else(|_| Err(Failure::new(Code::Internal, "a fetch came to nothing"))) }
            .boxed()
            .shared()
    }
}

impl Remote {
    fn new(spec: &SourceSpec) -> Result<Self, Failure> {
        let client = Client::builder()
            .connect_timeout(CONNECT_WAIT)
            .read_timeout(READ_WAIT)
            .timeout(BLOCK_WAIT)
            .redirect(redirect::Policy::limited(REDIRECTS_MAX))
            .referer(false)
            .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::new(Code::Internal, format!("HTTP cannot be set up: {}", FetchError::from(error))))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &spec.headers {
            let bad = || Failure::new(Code::InvalidRequest, format!("source: header '{name}' cannot be sent"));
            let mut value = HeaderValue::from_str(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?, value);
        }
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        Ok(Self { client, url: spec.url.clone(), headers })
    }

    async fn open(&self) -> Result<Pin, FetchError> {
        let answer = self.client.get(self.url.clone()).headers(self.headers.clone()).header(RANGE, "bytes=0-0").send().await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => match content_range(&answer) {
                Some((0, 1, bytes)) => Ok(Pin::new(bytes, &answer)),
                Some(_) => Err(FetchError::Unfit("other bytes than asked for")),
                None => Err(FetchError::Unfit("it does not tell the size of the source")),
            },
            // No first byte: it is empty.
            StatusCode::RANGE_NOT_SATISFIABLE
                if answer.headers().get(CONTENT_RANGE).is_some_and(|range| range == "bytes */0") =>
            {
                Ok(Pin::new(0, &answer))
            }
            StatusCode::OK => Err(FetchError::NoRanges),
            status => Err(FetchError::Status(status)),
        }
    }

    async fn fetch(&self, first: u64, end: u64, pin: &Pin) -> Result<Bytes, FetchError> {
        let mut request = self.client.get(self.url.clone()).headers(self.headers.clone());
        request = request.header(RANGE, format!("bytes={first}-{}", end - 1));
        // A weak tag never matches; it is compared below.
        if let Some(etag) = pin.etag.as_ref().filter(|etag| !etag.as_bytes().starts_with(b"W/")) {
            request = request.header(IF_MATCH, etag);
        }
        let mut answer = request.send().await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => return Err(FetchError::Changed),
            StatusCode::OK => return Err(FetchError::NoRanges),
            status => return Err(FetchError::Status(status)),
        }
        let (from, to, bytes) = content_range(&answer).ok_or(FetchError::Unfit("it does not tell which bytes it holds"))?;
        if !pin.fits(&Pin::new(bytes, &answer)) {
            return Err(FetchError::Changed);
        }
        if (from, to) != (first, end) {
            return Err(FetchError::Unfit("other bytes than asked for"));
        }
        let wanted = (end - first) as usize;
        let mut body = BytesMut::with_capacity(wanted);
        while let Some(piece) = answer.chunk().await? {
            if body.len() + piece.len() > wanted {
                return Err(FetchError::Unfit("more bytes than asked for"));
            }
            body.extend_from_slice(&piece);
        }
        match body.len() == wanted {
            true => Ok(body.freeze()),
            false => Err(FetchError::Network("the answer ended early".to_owned())),
        }
    }
}

/// First byte, one past the last, and size of the whole, as a `Content-Range: bytes 0-0/1234` says.
fn content_range(answer: &Response) -> Option<(u64, u64, u64)> {
    let text = answer.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, bytes) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, last.trim().parse::<u64>().ok()?.checked_add(1)?, bytes.trim().parse().ok()?))
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
