//! A source behind HTTP: ranged GETs, pinned to one version.
//!
//! The headers of a job may hold credentials: they go to the server that the job names, and to no other that it redirects to.

use std::error::Error as _;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use farm::job::{SourceSpec, shown_url};
use farm::media::SourceVersion;
use farm::outbound::{Forbidden, Reach, forbidden};
use farm::{Code, Failure};
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, LAST_MODIFIED, LOCATION, RANGE,
    RETRY_AFTER,
};
use reqwest::{Client, Response, StatusCode};
use url::Url;

use super::blocks::Remote;
use crate::retry::{Hope, Patience, hopefully};

/// Longest wait for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for the next bytes of an answer.
const READ_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for a whole block.
const BLOCK_WAIT: Duration = Duration::from_secs(180);
/// Most redirects that are followed.
const REDIRECTS_MAX: usize = 5;

/// A source behind HTTP, in the version there was when it was opened.
pub(crate) struct HttpRemote {
    server: Server,
    pin: SourceVersion,
}

/// Whom to ask, and what to send along.
struct Server {
    client: Client,
    reach: Reach,
    url: Url,
    /// What the job wants sent.
    headers: HeaderMap,
}

/// Why bytes did not come.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// No connection, or no answer in time.
    #[error("{0}")]
    Unreachable(String),
    /// The connection broke.
    #[error("{0}")]
    Broken(String),
    /// The server says no; and when to ask again, where it says that.
    #[error("the server answers {0}")]
    Status(StatusCode, Option<Duration>),
    /// It may not be reached from here.
    #[error("{0}")]
    Forbidden(#[from] Forbidden),
    #[error("its server redirects {0}")]
    Redirect(&'static str),
    #[error("the server does not serve byte ranges, without which a source cannot be read")]
    NoRanges,
    #[error("the server's answer does not fit the question: {0}")]
    Unfit(&'static str),
    #[error("it was changed while it was read")]
    Changed,
}

impl FetchError {
    /// What to hope for when a source is opened: as when it is read, but the impatient give one up at once that cannot be
    /// reached.
    fn hope_opening(&self, patience: Patience) -> Hope {
        match (patience, self) {
            (Patience::Short, Self::Unreachable(_)) => Hope::None,
            _ => self.hope(),
        }
    }

    fn hope(&self) -> Hope {
        match self {
            Self::Unreachable(_) | Self::Broken(_) => Hope::Soon,
            Self::Status(status, after) if is_passing(*status) => after.map_or(Hope::Soon, Hope::After),
            Self::Status(..) | Self::Forbidden(_) | Self::Redirect(_) | Self::NoRanges | Self::Unfit(_) | Self::Changed => {
                Hope::None
            }
        }
    }

    fn into_failure(self, url: &Url) -> Failure {
        let message = format!("{}: {self}", shown_url(url));
        let unreadable = |message| Failure::new(Code::SourceUnreadable, message);
        match self {
            Self::Changed => Failure::new(Code::SourceChanged, message),
            Self::Unreachable(_) | Self::Broken(_) => unreadable(message),
            Self::Status(status, _) if is_passing(status) => unreadable(message),
            Self::Status(..) | Self::Forbidden(_) | Self::Redirect(_) | Self::NoRanges | Self::Unfit(_) => {
                unreadable(message).lasting()
            }
        }
    }
}

/// Whether a server that answers so may answer otherwise a while later.
fn is_passing(status: StatusCode) -> bool {
    let asks_to_wait = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED || asks_to_wait
}

impl From<reqwest::Error> for FetchError {
    /// The innermost cause: it says what the outer ones only hint at, and it does not hold the URL.
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if let Some(forbidden) = forbidden(&error) {
            return Self::Forbidden(forbidden);
        }
        if error.is_timeout() {
            return Self::Unreachable("the server does not answer in time".to_owned());
        }
        let mut cause = error.source();
        while let Some(inner) = cause.and_then(std::error::Error::source) {
            cause = Some(inner);
        }
        let why = cause.map_or_else(|| error.to_string(), ToString::to_string);
        if error.is_connect() { Self::Unreachable(why) } else { Self::Broken(why) }
    }
}

impl HttpRemote {
    /// Asks for the first byte, and learns size and version.
    ///
    /// # Errors
    /// As [`super::Source::open`].
    pub(crate) async fn open(spec: &SourceSpec, reach: &Reach, patience: Patience) -> Result<Self, Failure> {
        let server = Server::new(spec, reach)?;
        let opened = hopefully(patience, |error: &FetchError| error.hope_opening(patience), || server.open()).await;
        let pin = opened.map_err(|error| error.into_failure(&server.url))?;
        Ok(Self { server, pin })
    }
}

impl Remote for HttpRemote {
    fn version(&self) -> SourceVersion {
        self.pin.clone()
    }

    async fn fetch(&self, range: Range<u64>, patience: Patience) -> Result<Bytes, Failure> {
        let fetched = hopefully(patience, FetchError::hope, || self.server.fetch(range.start, range.end, &self.pin)).await;
        fetched.map_err(|error| error.into_failure(&self.server.url))
    }
}

impl Server {
    fn new(spec: &SourceSpec, reach: &Reach) -> Result<Self, Failure> {
        let client = reach
            .client()
            .connect_timeout(CONNECT_WAIT)
            .read_timeout(READ_WAIT)
            .timeout(BLOCK_WAIT)
            .build()
            .map_err(|error| Failure::new(Code::Internal, format!("HTTP cannot be set up: {}", FetchError::from(error))))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &spec.headers {
            let bad = || Failure::new(Code::InvalidRequest, format!("source: header '{name}' cannot be sent"));
            let mut value = HeaderValue::from_str(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?, value);
        }
        Ok(Self { client, reach: reach.clone(), url: spec.url.clone(), headers })
    }

    /// Asks for a range of one version, where the server sends us.
    async fn ask(&self, range: &str, version: Option<&str>) -> Result<Response, FetchError> {
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            self.reach.check(&url)?;
            let mut headers = if url.origin() == self.url.origin() { self.headers.clone() } else { HeaderMap::new() };
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            let request = self.client.get(url.clone()).headers(headers).header(RANGE, range);
            let request = version.iter().fold(request, |request, version| request.header(IF_MATCH, *version));
            let answer = request.send().await?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok()).ok_or(FetchError::Redirect("to nowhere"))?;
            if !matches!(next.scheme(), "http" | "https") {
                return Err(FetchError::Redirect("to what is not HTTP"));
            }
            url = next;
        }
        Err(FetchError::Redirect("too often"))
    }

    async fn open(&self) -> Result<SourceVersion, FetchError> {
        let answer = self.ask("bytes=0-0", None).await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => match content_range(&answer) {
                Some((0, 1, bytes)) => Ok(version(bytes, &answer)),
                Some(_) => Err(FetchError::Unfit("other bytes than asked for")),
                None => Err(FetchError::Unfit("it does not tell the size of the source")),
            },
            // No first byte: it is empty.
            StatusCode::RANGE_NOT_SATISFIABLE
                if answer.headers().get(CONTENT_RANGE).is_some_and(|range| range == "bytes */0") =>
            {
                Ok(version(0, &answer))
            }
            StatusCode::OK => Err(FetchError::NoRanges),
            status => Err(FetchError::Status(status, retry_after(&answer))),
        }
    }

    async fn fetch(&self, first: u64, end: u64, pin: &SourceVersion) -> Result<Bytes, FetchError> {
        // A weak tag never matches; it is compared below.
        let etag = pin.etag.as_ref().filter(|etag| !etag.starts_with("W/"));
        let mut answer = self.ask(&format!("bytes={first}-{}", end - 1), etag.map(String::as_str)).await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => return Err(FetchError::Changed),
            StatusCode::OK => return Err(FetchError::NoRanges),
            status => return Err(FetchError::Status(status, retry_after(&answer))),
        }
        let (from, to, bytes) = content_range(&answer).ok_or(FetchError::Unfit("it does not tell which bytes it holds"))?;
        if !pin.fits(&version(bytes, &answer)) {
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
            false => Err(FetchError::Broken("the answer ended early".to_owned())),
        }
    }
}

/// The version that an answer is of.
fn version(bytes: u64, answer: &Response) -> SourceVersion {
    let text = |name| answer.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
    SourceVersion { bytes, etag: text(ETAG), modified: text(LAST_MODIFIED) }
}

/// How long the server asks us to wait, as seconds or as a date.
fn retry_after(answer: &Response) -> Option<Duration> {
    let text = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()
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
