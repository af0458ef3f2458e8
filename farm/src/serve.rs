//! How connections are taken on both HTTP ports: so many at a time, and each for so long.
//!
//! `axum::serve` waits for the rest of a request for ever, takes as many connections as come, and leaves those that are open
//! behind when it is dropped.

mod impatient;

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Request, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use self::impatient::Impatient;

/// Most bytes of a request's head, and of anything else that is read before it is asked for.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Wait when no connection can be taken: descriptors or memory are short, and may not be a moment later.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How often it is said that connections are turned away.
const FULL_PAUSE: Duration = Duration::from_secs(60);

/// What a server puts up with.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. Further ones are closed at once.
    pub connections: usize,
    /// Longest wait for the head of a request, of the first and of each that follows.
    pub head: Duration,
    /// How old a connection is when its next answer is its last. Who is told so with it sends nothing into the void.
    pub age: Duration,
    /// How long after that it is cut off, whatever is still under way but an answer that [`Lasts`].
    pub last: Duration,
    /// Longest wait until something is taken of what is sent.
    pub stall: Duration,
}

impl Limits {
    /// So many connections, each with 75 s for a head, two minutes for its requests, and one more for the last of them; a minute
    /// for whoever takes nothing. Proxies keep idle connections for 60 s: whoever closes them first should be the proxy.
    pub fn new(connections: usize) -> Self {
        let (age, minute) = (Duration::from_secs(120), Duration::from_secs(60));
        Self { connections, head: Duration::from_secs(75), age, last: minute, stall: minute }
    }
}

/// An extension of an answer whose body comes over a long time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lasts {
    /// When it ends at the latest. Until then its connection is not cut off for being old.
    pub until: Instant,
}

/// Answers HTTP/1 until the future is dropped, which ends all connections.
///
/// # Errors
/// None so far: what cannot be taken now may be a moment later.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits) -> io::Result<()> {
    let mut connections = JoinSet::new();
    let mut full_at: Option<Instant> = None;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Those that are about one connection are not worth a wait.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                    tracing::error!(%error, "no connection can be taken now");
                    sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if connections.len() < limits.connections {
            connections.spawn(attend(stream, router.clone(), limits));
        } else if full_at.is_none_or(|at| at.elapsed() >= FULL_PAUSE) {
            full_at = Some(Instant::now());
            tracing::warn!(connections = limits.connections, "all connections are taken: further ones are closed");
        }
    }
}

/// Sees a connection to its end.
async fn attend(stream: TcpStream, router: Router, limits: Limits) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(HEAD_BYTES_MAX);
    let (pages, old_at) = (TowerToHyperService::new(router), Instant::now() + limits.age);
    let (put_off, cut_at) = watch::channel(old_at + limits.last);
    let answers = service_fn(move |request: Request<Incoming>| {
        let (answered, put_off) = (pages.call(request), put_off.clone());
        async move {
            let mut answer = answered.await?;
            if Instant::now() >= old_at {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            if let Some(Lasts { until }) = answer.extensions().get::<Lasts>().copied() {
                put_off.send_modify(|at| *at = (until + limits.last).max(*at));
            }
            Ok::<Response, Infallible>(answer)
        }
    });
    let stream = Impatient::new(stream, limits.stall);
    tokio::select! {
        ended = http.serve_connection(TokioIo::new(stream), answers) => if let Err(error) = ended {
            tracing::debug!(%error, "a connection ends badly");
        },
        () = over(cut_at) => tracing::debug!("a connection is cut off"),
    }
}

/// Waits until a time that may be put off meanwhile.
async fn over(at: watch::Receiver<Instant>) {
    loop {
        let at = *at.borrow();
        if at <= Instant::now() {
            return;
        }
        sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::body::{Body, Bytes};
    use axum::routing::{get, post};
    use futures::{StreamExt as _, stream};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    /// Longer than anything here takes that comes to an end.
    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(300);
    /// Limits that nobody here comes to.
    const WIDE: Limits = Limits { connections: 8, head: LONG, age: LONG, last: LONG, stall: LONG };
    /// More bytes than may be on their way between the two ends of a connection.
    const BYTES_MAX: u64 = 256 << 20;

    /// A server, and where it listens: `/` answers `well`, `/slow` a while later, and `/body` when it has heard all; `/endless`
    /// never ends, and `/lasting` takes as long as it says.
    async fn start(limits: Limits) -> (SocketAddr, AbortOnDropHandle<io::Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let slow = || async {
            sleep(2 * SHORT).await;
            "well"
        };
        let lasting = || async {
            let said = stream::iter(["so ", "far ", "well"]).then(|said| async move {
                sleep(2 * SHORT).await;
                Ok::<_, Infallible>(Bytes::from_static(said.as_bytes()))
            });
            let mut answer = Response::new(Body::from_stream(said));
            answer.extensions_mut().insert(Lasts { until: Instant::now() + LONG });
            answer
        };
        let endless = || async { Body::from_stream(stream::repeat(Ok::<_, Infallible>(Bytes::from_static(&[0; 1 << 16])))) };
        let router = Router::new()
            .route("/", get(|| async { "well" }))
            .route("/slow", get(slow))
            .route("/lasting", get(lasting))
            .route("/endless", get(endless))
            .route("/body", post(|body: Bytes| async move { format!("{} bytes", body.len()) }));
        (address, AbortOnDropHandle::new(tokio::spawn(serve(listener, router, limits))))
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.expect("connected")
    }

    /// Whether a request is answered, on a connection that lives on.
    async fn is_answered(socket: &mut TcpStream) -> bool {
        let mut said = Vec::new();
        let answered = async {
            socket.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").await?;
            while !said.ends_with(b"well") {
                if socket.read_buf(&mut said).await? == 0 {
                    return Ok(false);
                }
            }
            Ok::<_, io::Error>(true)
        };
        timeout(LONG, answered).await.expect("answered or closed").unwrap_or(false)
    }

    /// All that is still said until the connection is closed, or cut off.
    async fn rest(socket: &mut TcpStream) -> String {
        let mut said = Vec::new();
        if let Err(error) = timeout(LONG / 2, socket.read_to_end(&mut said)).await.expect("it is closed") {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        }
        String::from_utf8_lossy(&said).into_owned()
    }

    #[tokio::test]
    async fn a_connection_that_asks_for_nothing_or_never_ends_asking_is_closed() {
        let (address, _server) = start(Limits { head: SHORT, ..WIDE }).await;
        for begun in ["", "GET / HTTP/1.1\r\nHost: te"] {
            let began = Instant::now();
            let mut socket = connect(address).await;
            socket.write_all(begun.as_bytes()).await.expect("sent");
            assert_eq!(rest(&mut socket).await, "", "{begun}");
            assert!(began.elapsed() >= SHORT, "{begun}: {:?}", began.elapsed());
        }
        let mut idle = connect(address).await;
        assert!(is_answered(&mut idle).await);
        assert_eq!(rest(&mut idle).await, "");
        // Nor does it help to go on, a little at a time.
        let mut trickle = connect(address).await;
        trickle.write_all(b"GET / HTTP/1.1\r\n").await.expect("sent");
        let cut_off = async {
            while trickle.write_all(b"X-Word: more\r\n").await.is_ok() {
                sleep(SHORT / 10).await;
            }
        };
        timeout(LONG, cut_off).await.expect("it is closed");
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_refused() {
        let (address, _server) = start(WIDE).await;
        let mut socket = connect(address).await;
        let head = format!("GET / HTTP/1.1\r\nHost: test\r\nX-Word: {}\r\n\r\n", "m".repeat(2 * HEAD_BYTES_MAX));
        // It may be closed before all is sent, and then its answer be lost.
        let _ = socket.write_all(head.as_bytes()).await;
        let said = rest(&mut socket).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 431"), "{said}");
    }

    #[tokio::test]
    async fn connections_above_the_limit_are_closed_until_there_is_a_place() {
        let (address, _server) = start(Limits { connections: 2, ..WIDE }).await;
        let (mut first, mut second) = (connect(address).await, connect(address).await);
        assert!(is_answered(&mut first).await && is_answered(&mut second).await);
        assert_eq!(rest(&mut connect(address).await).await, "");
        assert!(is_answered(&mut first).await && is_answered(&mut second).await, "those that are there are not touched");
        drop(first);
        let taken = async {
            while !is_answered(&mut connect(address).await).await {
                sleep(SHORT / 10).await;
            }
        };
        timeout(LONG, taken).await.expect("there is a place again");
    }

    #[tokio::test]
    async fn a_connection_grows_so_old_and_its_last_request_takes_so_long() {
        let (address, _server) = start(Limits { age: SHORT, ..WIDE }).await;
        let mut socket = connect(address).await;
        socket.write_all(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n").await.expect("sent");
        let said = rest(&mut socket).await;
        assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("well"), "what was under way is answered: {said}");
        assert!(said.contains("connection: close"), "{said}");
        let (address, _server) = start(Limits { age: SHORT, last: SHORT, ..WIDE }).await;
        let mut socket = connect(address).await;
        socket.write_all(b"POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nhalf").await.expect("sent");
        assert_eq!(rest(&mut socket).await, "", "a body that never ends is not waited for");
    }

    #[tokio::test]
    async fn an_answer_that_lasts_is_not_cut_off_with_its_connections_age() {
        let (address, _server) = start(Limits { age: SHORT, last: SHORT, ..WIDE }).await;
        let mut socket = connect(address).await;
        let began = Instant::now();
        socket.write_all(b"GET /lasting HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.expect("sent");
        let said = rest(&mut socket).await;
        assert!(said.contains("so ") && said.contains("well") && began.elapsed() > 4 * SHORT, "{said}");
    }

    #[tokio::test]
    async fn whoever_takes_nothing_is_given_up() {
        let (address, _server) = start(Limits { stall: SHORT, ..WIDE }).await;
        let mut socket = connect(address).await;
        socket.write_all(b"GET /endless HTTP/1.1\r\nHost: test\r\n\r\n").await.expect("sent");
        sleep(8 * SHORT).await;
        // What was on its way still comes, and then no more.
        let mut said = Vec::new();
        let taken = timeout(LONG, (&mut socket).take(BYTES_MAX).read_to_end(&mut said)).await.expect("it comes to an end");
        assert!(taken.is_err() || (said.len() as u64) < BYTES_MAX, "it goes on and on");
    }

    #[tokio::test]
    async fn requests_follow_each_other_and_all_ends_with_the_server() {
        let (address, server) = start(WIDE).await;
        let mut socket = connect(address).await;
        for _ in 0..3 {
            assert!(is_answered(&mut socket).await);
        }
        let mut begun = connect(address).await;
        begun.write_all(b"POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nhalf").await.expect("sent");
        drop(server);
        assert_eq!((rest(&mut socket).await.as_str(), rest(&mut begun).await.as_str()), ("", ""));
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }
}
