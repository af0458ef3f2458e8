//! A source behind a server of a few lines that does what it is asked to, or the wrong thing.

use super::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::source::blocks::{BLOCK_BYTES, Blocks};
use crate::testing::pattern;
use tokio_util::task::AbortOnDropHandle;

const BYTES: u64 = 5 * BLOCK_BYTES + 77;

/// How a server behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Good,
    /// Answers 503 to so many requests first.
    BusyFor(u32),
    NoRanges,
    Status(u16),
    /// Has another version from the so-many-th request on, and says so by 412.
    ChangesAt(u32),
    /// As [`Manner::ChangesAt`], but does not know `If-Match`.
    ChangesUnasked(u32),
    /// As [`Manner::ChangesUnasked`], and tells versions apart by their date alone.
    ChangesDate(u32),
    /// Answers 429 once and asks for a pause of a second.
    AsksToWait,
    /// Sends elsewhere.
    Elsewhere(&'static str),
    /// Sends to itself for ever.
    Circles,
    /// Cuts every other answer short.
    CutsShort,
    /// Answers 503 for so long, from the third request on.
    AwayFor(Duration),
    /// Answers 404 once so many requests were served.
    GoneAfter(u32),
    Empty,
}

/// When the one server that goes away did so.
static LEFT: OnceLock<Instant> = OnceLock::new();

struct Host {
    url: Url,
    requests: Arc<AtomicU32>,
    heads: Arc<Mutex<Vec<String>>>,
    _running: AbortOnDropHandle<()>,
}

impl Host {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("known").port();
        let (requests, heads) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counted, kept) = (requests.clone(), heads.clone());
        let running = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, manner, counted.clone(), kept.clone()));
            }
        });
        let url = format!("http://user:secret@127.0.0.1:{port}/film.mp4?token=secret").parse().expect("a URL");
        Self { url, requests, heads, _running: AbortOnDropHandle::new(running) }
    }

    fn spec(&self) -> SourceSpec {
        SourceSpec { url: self.url.clone(), headers: BTreeMap::from([("X-Key".to_owned(), "secret".to_owned())]) }
    }

    async fn open(&self) -> Result<Blocks<HttpRemote>, Failure> {
        HttpRemote::open(&self.spec(), &Reach::Anywhere, Patience::Short).await.map(|remote| Blocks::new(remote, Patience::Short))
    }

    fn requests(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, manner: Manner, requests: Arc<AtomicU32>, heads: Arc<Mutex<Vec<String>>>) {
    let mut buffer = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut buffer).await {
        let text = String::from_utf8_lossy(&buffer).into_owned();
        let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
        buffer.clear();
        heads.lock().expect("unpoisoned").push(head.to_owned());
        let (answer, whole) = answer(manner, requests.fetch_add(1, Ordering::SeqCst), head);
        if stream.write_all(&answer).await.is_err() || !whole {
            return;
        }
    }
}

/// The bytes of an answer, and whether the connection lives on.
fn answer(manner: Manner, request: u32, head: &str) -> (Vec<u8>, bool) {
    let plain = |status: &str| (format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes(), true);
    let header = |name: &str| {
        head.lines().find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v))
    };
    let changed = matches!(manner, Manner::ChangesAt(at) | Manner::ChangesUnasked(at) | Manner::ChangesDate(at) if request >= at);
    let etag = if changed { "\"new\"" } else { "\"old\"" };
    let version = match manner {
        Manner::ChangesDate(_) => format!("Last-Modified: Mon, 23 Nov 2026 10:00:0{} GMT", u8::from(changed)),
        _ => format!("ETag: {etag}"),
    };
    match manner {
        Manner::BusyFor(times) if request < times => return plain("503 Service Unavailable"),
        Manner::AwayFor(time) if request >= 2 && LEFT.get_or_init(Instant::now).elapsed() < time => {
            return plain("503 Service Unavailable");
        }
        Manner::GoneAfter(requests) if request >= requests => return plain("404 Not Found"),
        Manner::Status(status) => return plain(&format!("{status} No")),
        Manner::NoRanges => return plain("200 OK"),
        Manner::Empty => return plain("416 Range Not Satisfiable\r\nContent-Range: bytes */0"),
        Manner::AsksToWait if request == 0 => return plain("429 Too Many Requests\r\nRetry-After: 1"),
        Manner::Elsewhere(location) => return plain(&format!("302 Found\r\nLocation: {location}")),
        Manner::Circles => return plain("302 Found\r\nLocation: /film.mp4"),
        Manner::ChangesAt(_) if header("if-match").is_some_and(|tag| tag != etag) => return plain("412 Precondition Failed"),
        _ => {}
    }
    let range = header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-')).expect("a range is asked for");
    let (first, last): (u64, u64) = (range.0.parse().expect("a number"), range.1.parse().expect("a number"));
    let last = last.min(BYTES - 1);
    let mut answer = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{last}/{BYTES}\r\n{version}\r\n\r\n",
        last + 1 - first
    )
    .into_bytes();
    let cut = manner == Manner::CutsShort && request % 2 == 1;
    answer.extend(pattern(first..if cut { (first + last) / 2 } else { last + 1 }));
    (answer, !cut)
}

/// Reads all, forward, in steps that do not fall on blocks.
async fn read_all(source: &Blocks<HttpRemote>) -> Result<(), Failure> {
    let mut at = 0;
    while at < source.version().bytes {
        let len = 1_000_003.min(source.version().bytes - at);
        assert_eq!(source.read_at(at, len as usize).await?, pattern(at..at + len), "at {at}");
        at += len;
    }
    Ok(())
}

#[tokio::test]
async fn every_byte_comes_once_and_the_version_is_pinned() {
    let server = Host::start(Manner::Good).await;
    let source = server.open().await.expect("readable");
    assert_eq!(source.version().bytes, BYTES);
    read_all(&source).await.expect("read");
    assert_eq!(server.requests(), 1 + 6, "one request to open, one for each block");
    let heads = server.heads.lock().expect("unpoisoned").clone();
    assert!(heads.iter().all(|head| head.to_lowercase().contains("x-key: secret")), "{heads:?}");
    assert!(heads.iter().skip(1).all(|head| head.to_lowercase().contains("if-match: \"old\"")), "{heads:?}");
}

#[tokio::test]
async fn jumping_about_does_not_fetch_ahead() {
    let server = Host::start(Manner::Good).await;
    let source = server.open().await.expect("readable");
    for index in [4, 0, 2, 4] {
        let at = index * BLOCK_BYTES;
        assert_eq!(source.read_at(at, 10).await.expect("read"), pattern(at..at + 10));
    }
    assert_eq!(server.requests(), 1 + 3);
}

#[tokio::test]
async fn a_server_that_is_busy_for_a_moment_is_asked_again() {
    let server = Host::start(Manner::BusyFor(3)).await;
    read_all(&server.open().await.expect("readable")).await.expect("read");
}

#[tokio::test]
async fn a_server_that_goes_away_after_the_first_bytes_is_waited_for() {
    // Longer than the impatient would try.
    let server = Host::start(Manner::AwayFor(Duration::from_secs(5))).await;
    let source = server.open().await.expect("readable");
    source.read_at(0, 10).await.expect("there");
    assert_eq!(source.read_at(3 * BLOCK_BYTES, 10).await.expect("there again"), pattern(3 * BLOCK_BYTES..3 * BLOCK_BYTES + 10));
    assert!(server.requests() > 2 + 4, "{}", server.requests());
    // What is not there any more is not waited for.
    let gone = Host::start(Manner::GoneAfter(2)).await;
    let source = gone.open().await.expect("readable");
    source.read_at(0, 10).await.expect("there");
    let failure = source.read_at(3 * BLOCK_BYTES, 10).await.expect_err("gone");
    assert!(failure.lasting && gone.requests() == 3, "{failure}");
}

#[tokio::test]
async fn an_answer_that_ends_early_is_asked_for_again() {
    let server = Host::start(Manner::CutsShort).await;
    read_all(&server.open().await.expect("readable")).await.expect("read");
}

#[tokio::test]
async fn a_source_that_cannot_be_read_says_why_and_tells_no_secret() {
    for (manner, code, words) in [
        (Manner::BusyFor(100), Code::SourceUnreadable, "503"),
        (Manner::Status(404), Code::SourceUnreadable, "404"),
        (Manner::Status(403), Code::SourceUnreadable, "403"),
        (Manner::NoRanges, Code::SourceUnreadable, "does not serve byte ranges"),
        (Manner::Elsewhere("ftp://127.0.0.1/film.mp4"), Code::SourceUnreadable, "redirects to what is not HTTP"),
        (Manner::Circles, Code::SourceUnreadable, "redirect"),
    ] {
        let server = Host::start(manner).await;
        let failure = server.open().await.err().expect(words);
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.message.contains(words) && failure.message.contains("/film.mp4"), "{failure}");
        assert!(!failure.message.contains("secret"), "{failure}");
    }
    for (status, requests, lasting) in [(404, 1, true), (403, 1, true), (410, 1, true), (401, 1, true), (500, 4, false)] {
        let server = Host::start(Manner::Status(status)).await;
        let failure = server.open().await.err().expect("not there");
        assert_eq!((server.requests(), failure.lasting), (requests, lasting), "{failure}");
    }
}

#[tokio::test]
async fn a_server_that_asks_to_wait_is_waited_for() {
    let server = Host::start(Manner::AsksToWait).await;
    let began = Instant::now();
    read_all(&server.open().await.expect("readable")).await.expect("read");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn headers_of_the_job_go_to_no_other_server() {
    let other = Host::start(Manner::Good).await;
    let mut there = other.url.clone();
    there.set_username("").and_then(|()| there.set_password(None)).expect("set");
    // Leaked: a test's server wants its manner for as long as the program runs.
    let first = Host::start(Manner::Elsewhere(String::leak(there.into()))).await;
    read_all(&first.open().await.expect("readable")).await.expect("read");
    let heads = other.heads.lock().expect("unpoisoned").clone();
    assert_eq!(heads.len(), 1 + 6);
    for head in heads {
        assert!(!head.to_lowercase().contains("x-key") && !head.to_lowercase().contains("authorization"), "{head}");
    }
    let heads = first.heads.lock().expect("unpoisoned").clone();
    assert!(heads.iter().all(|head| head.to_lowercase().contains("x-key: secret")), "{heads:?}");
}

#[tokio::test]
async fn a_server_inside_is_not_asked_by_name_by_number_or_by_redirect() {
    let inside = Host::start(Manner::Good).await;
    let port = inside.url.port().expect("a port");
    let one = |network: &str| Reach::PublicAnd([network.parse().expect("a network")].into());
    // Leaked, as below.
    let gate = Host::start(Manner::Elsewhere(String::leak(format!("http://127.0.0.2:{port}/film.mp4")))).await;
    for (url, reach, asked) in [
        (format!("http://127.0.0.1:{port}/"), one("10.0.0.0/8"), 0),
        (format!("http://localhost:{port}/"), one("10.0.0.0/8"), 0),
        (format!("http://[::ffff:7f00:1]:{port}/"), one("10.0.0.0/8"), 0),
        (gate.url.to_string(), one("127.0.0.1/32"), 1),
    ] {
        let spec = SourceSpec { url: url.parse().expect("a URL"), headers: BTreeMap::new() };
        let failure = HttpRemote::open(&spec, &reach, Patience::Long).await.err().expect("refused");
        assert_eq!(failure.code, Code::SourceUnreadable, "{failure}");
        assert!(failure.message.contains("may not reach") && failure.lasting, "{url}: {failure}");
        assert_eq!((inside.requests(), gate.requests()), (0, asked), "{url}");
    }
    for location in [
        "//127.0.0.2:PORT/film.mp4",
        "/\\127.0.0.2:PORT/film.mp4",
        "http:\\\\127.0.0.2:PORT\\film.mp4",
        "http://2130706434:PORT/",
        "http://0x7f.2:PORT/",
        "http://0177.0.0.2:PORT/",
        "http://127.0.0.2.:PORT/",
        "http://%31%32%37.0.0.2:PORT/",
        "http://[::ffff:7f00:2]:PORT/",
        "http://example.org@127.0.0.2:PORT/",
        "http://127.0.0.2:PORT#@example.org/",
        "http://0:PORT/",
        "http://[::]:PORT/",
        "http://169.254.169.254/latest/meta-data/",
    ] {
        let location = String::leak(location.replace("PORT", &port.to_string()));
        let gate = Host::start(Manner::Elsewhere(location)).await;
        let spec = SourceSpec { url: gate.url.clone(), headers: BTreeMap::new() };
        let failure = HttpRemote::open(&spec, &one("127.0.0.1/32"), Patience::Long).await.err().expect("refused");
        assert!(failure.message.contains("may not reach") && failure.lasting, "{location}: {failure}");
        assert_eq!((inside.requests(), gate.requests()), (0, 1), "{location}");
    }
    let spec = SourceSpec { url: inside.url.clone(), headers: BTreeMap::new() };
    assert!(HttpRemote::open(&spec, &one("127.0.0.0/8"), Patience::Short).await.is_ok(), "it is allowed");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_to_be() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("known").port();
    drop(listener);
    let url = format!("http://127.0.0.1:{port}/film.mp4?token=secret").parse().expect("a URL");
    let began = Instant::now();
    let spec = SourceSpec { url, headers: BTreeMap::new() };
    let failure = HttpRemote::open(&spec, &Reach::Anywhere, Patience::Short).await.err().expect("not there");
    assert_eq!(failure.code, Code::SourceUnreadable);
    assert!(failure.message.contains("refused") && !failure.message.contains("secret"), "{failure}");
    assert!(!failure.lasting && began.elapsed() < Duration::from_secs(2), "it is left to the next attempt");
}

#[tokio::test]
async fn a_source_that_changes_while_it_is_read_is_given_up() {
    for manner in [Manner::ChangesAt(2), Manner::ChangesUnasked(2), Manner::ChangesDate(2)] {
        let server = Host::start(manner).await;
        let source = server.open().await.expect("readable");
        let failure = read_all(&source).await.expect_err("changed");
        assert_eq!(failure.code, Code::SourceChanged, "{failure}");
    }
}

#[tokio::test]
async fn an_empty_source_is_a_source_of_no_bytes() {
    let server = Host::start(Manner::Empty).await;
    assert_eq!(server.open().await.expect("readable").version().bytes, 0);
}
