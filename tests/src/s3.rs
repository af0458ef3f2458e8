//! A real S3 server over a socket: s3s for protocol and signatures, s3s-fs for the objects, a folder for each server; or a
//! server elsewhere, to which requests are passed on as they come. Faults are put between the two and the network, so that a
//! client sees what it would see of a server or a network that goes wrong.

mod files;
mod hold;
mod remote;

pub use hold::{Caught, Hold, Moment};

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use farm::storage::{Checksums, S3Settings, Storage, Stores};
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, IF_NONE_MATCH};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use url::Url;

use self::hold::{Trap, Way};
use self::remote::Remote;

/// The only bucket of a server of ours.
pub const BUCKET: &str = "farm";
const ACCESS_KEY_ID: &str = "test-key";
const SECRET_ACCESS_KEY: &str = "test-secret";
/// How long a server may take to stop.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// An object, or a range of it.
    Get,
    /// What an object is.
    Head,
    /// A listing of objects.
    List,
    /// A listing of uploads that have begun.
    ListUploads,
    /// To store an object.
    Put,
    /// To store an object unless there is one.
    PutNew,
    /// To begin an upload in parts.
    BeginUpload,
    /// To store a part.
    PutPart,
    /// To copy a part from another object.
    CopyPart,
    /// To make an object of parts.
    FinishUpload,
    /// To give an upload up.
    AbortUpload,
    /// To delete an object.
    Delete,
    /// To delete many.
    DeleteBatch,
    /// Anything else.
    Other,
}

impl Operation {
    fn of(head: &Parts) -> Self {
        let query = head.uri.query().unwrap_or_default();
        let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
        match head.method {
            Method::GET if has("list-type") => Self::List,
            Method::GET if has("uploads") => Self::ListUploads,
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::PUT if has("partNumber") && head.headers.contains_key("x-amz-copy-source") => Self::CopyPart,
            Method::PUT if has("partNumber") => Self::PutPart,
            Method::PUT if head.headers.contains_key(IF_NONE_MATCH) => Self::PutNew,
            Method::PUT => Self::Put,
            Method::POST if has("uploads") => Self::BeginUpload,
            Method::POST if has("uploadId") => Self::FinishUpload,
            Method::POST if has("delete") => Self::DeleteBatch,
            Method::DELETE if has("uploadId") => Self::AbortUpload,
            Method::DELETE => Self::Delete,
            _ => Self::Other,
        }
    }
}

/// How a request goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status and error code, and not done.
    Refused(u16, &'static str),
    /// Done, but the connection breaks before the answer.
    AnswerLost,
    /// Done, and answered so much later.
    AnswerLate(Duration),
    /// The connection breaks before the request is read to its end, and it is not done.
    RequestCut,
    /// The connection breaks in the middle of the answer's body.
    AnswerCut,
    /// The answer's body comes in so many pieces with a pause before each.
    Slow(usize, Duration),
    /// The condition in the request is not heeded. A server elsewhere is asked as it is: this is for one that heeds none.
    Unconditional,
    /// An upload is refused whose parts, the last one excepted, differ in size: as R2 does it.
    UnequalParts,
}

/// Which requests go wrong, and how.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What they ask for.
    pub operation: Operation,
    /// What their path holds.
    pub path: String,
    /// How many do; the rest is served as it should be.
    pub times: usize,
    /// How.
    pub fault: Fault,
}

impl Operation {
    /// Whether it may change what is stored.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Get | Self::Head | Self::List | Self::ListUploads)
    }
}

/// What was asked, for what path, and with which status it was answered, if it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What was asked.
    pub operation: Operation,
    /// Of which path, `/bucket/key`.
    pub path: String,
    /// The answer; none when the connection broke.
    pub status: Option<u16>,
}

/// Who keeps the objects.
enum Keeper {
    /// s3s-fs, in this process.
    Files {
        service: S3Service,
        folder: PathBuf,
        /// s3s-fs looks and then writes: of several creators more than one would win. Real servers do better.
        creating: tokio::sync::Mutex<()>,
    },
    /// A server elsewhere.
    Remote(Remote),
}

/// What the connections of a server share.
struct Shared {
    keeper: Keeper,
    rules: Mutex<Vec<Rule>>,
    traps: Mutex<Vec<Trap>>,
    seen: Mutex<Vec<Seen>>,
}

/// Where, and as whom, a server is asked.
struct Access {
    bucket: String,
    region: String,
    key_id: String,
    secret: String,
}

/// A running server. Dropped, it stops; the objects of one of ours are gone then.
pub struct S3Server {
    address: SocketAddr,
    /// The same objects without faults, holds and notes.
    quiet: SocketAddr,
    access: Access,
    shared: Arc<Shared>,
    folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts a server with an empty bucket on a free port, on a thread of its own: it serves also while a test blocks.
    ///
    /// # Errors
    /// When there is no room for its objects, or no port to be had.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join(BUCKET))?;
        let files = s3s_fs::FileSystem::new(folder.path()).map_err(|error| anyhow::anyhow!("s3s-fs: {error:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        let creating = tokio::sync::Mutex::default();
        let keeper = Keeper::Files { service: builder.build(), folder: folder.path().to_owned(), creating };
        let access = Access {
            bucket: BUCKET.to_owned(),
            region: "us-east-1".to_owned(),
            key_id: ACCESS_KEY_ID.to_owned(),
            secret: SECRET_ACCESS_KEY.to_owned(),
        };
        Self::serve(keeper, access, folder)
    }

    /// The server that `SHOAL_CONFORMANCE_S3` names, behind the same faults; without the variable, as [`S3Server::start`].
    /// Objects of others may be in its bucket.
    ///
    /// # Errors
    /// As [`S3Server::start`], and when a variable makes no sense.
    pub fn named_or_start() -> Result<Self> {
        let Ok(endpoint) = std::env::var("SHOAL_CONFORMANCE_S3") else { return Self::start() };
        let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        let access = Access {
            bucket: std::env::var("SHOAL_CONFORMANCE_BUCKET").unwrap_or_else(|_| BUCKET.to_owned()),
            region: std::env::var("AWS_REGION").unwrap_or_else(|_| "us-east-1".to_owned()),
            key_id: variable("AWS_ACCESS_KEY_ID")?,
            secret: variable("AWS_SECRET_ACCESS_KEY")?,
        };
        Self::serve(Keeper::Remote(Remote::new(&endpoint)?), access, tempfile::tempdir()?)
    }

    fn serve(keeper: Keeper, access: Access, folder: tempfile::TempDir) -> Result<Self> {
        let shared = Arc::new(Shared { keeper, rules: Mutex::default(), traps: Mutex::default(), seen: Mutex::default() });
        let listen = || -> Result<_> {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        let ((address, listener), (quiet, quiet_listener)) = (listen()?, listen()?);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = shared.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = stopped => {}
                    _ = accept(listener, Way::Watched, &serving) => {}
                    _ = accept(quiet_listener, Way::Quiet, &serving) => {}
                }
            });
            runtime.shutdown_timeout(STOP_WAIT);
        });
        Ok(Self { address, quiet, access, shared, folder, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What programs need in their environment to use it.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        self.environment_at(self.endpoint())
    }

    fn environment_at(&self, endpoint: String) -> [(&'static str, String); 4] {
        let Access { region, key_id, secret, .. } = &self.access;
        [
            ("SHOAL_S3_ENDPOINT", endpoint),
            ("AWS_REGION", region.clone()),
            ("AWS_ACCESS_KEY_ID", key_id.clone()),
            ("AWS_SECRET_ACCESS_KEY", secret.clone()),
        ]
    }

    /// The same as settings.
    ///
    /// # Errors
    /// Never: they are well formed.
    pub fn settings(&self) -> Result<S3Settings> {
        self.settings_at(self.endpoint())
    }

    fn settings_at(&self, endpoint: String) -> Result<S3Settings> {
        let environment = self.environment_at(endpoint);
        let variable = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
        Ok(S3Settings { checksums: Checksums::Auto, ..S3Settings::from_variables(variable)? })
    }

    /// A prefix of the bucket, opened with connections of its own.
    ///
    /// # Errors
    /// When `prefix` is none.
    pub fn storage(&self, prefix: &str) -> Result<Storage> {
        Ok(Stores::new(self.settings()?).open(&self.url(prefix)?)?)
    }

    /// The same for who looks on: nothing goes wrong, is held, or is noted.
    ///
    /// # Errors
    /// As [`S3Server::storage`].
    pub fn quiet_storage(&self, prefix: &str) -> Result<Storage> {
        Ok(Stores::new(self.settings_at(format!("http://{}", self.quiet))?).open(&self.url(prefix)?)?)
    }

    /// `s3://bucket/path`
    ///
    /// # Errors
    /// When it makes no URL.
    pub fn url(&self, path: &str) -> Result<Url> {
        Url::parse(&format!("s3://{}/{path}", self.access.bucket)).context("a URL")
    }

    /// Has requests go wrong, from now on.
    pub fn inject(&self, operation: Operation, path: &str, times: usize, fault: Fault) {
        lock(&self.shared.rules).push(Rule { operation, path: path.to_owned(), times, fault });
    }

    /// Has nothing go wrong any more.
    pub fn calm(&self) {
        lock(&self.shared.rules).clear();
    }

    /// Holds the next request that is `wanted`, of those that nothing else holds.
    pub fn hold(&self, moment: Moment, wanted: impl Fn(Operation, &str) -> bool + Send + Sync + 'static) -> Hold {
        let (trap, hold) = hold::set(moment, Box::new(wanted));
        lock(&self.shared.traps).push(trap);
        hold
    }

    /// How often faults are still to happen; 0 when a test has seen all that it ordered.
    pub fn faults_left(&self) -> usize {
        lock(&self.shared.rules).iter().map(|rule| rule.times).sum()
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// How many requests asked for that.
    pub fn count(&self, operation: Operation) -> usize {
        lock(&self.shared.seen).iter().filter(|seen| seen.operation == operation).count()
    }

    /// Where the server keeps its objects: below [`BUCKET`]; and beside it those of uploads that have not ended.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that it has stopped already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: std::net::TcpListener, way: Way, shared: &Arc<Shared>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, peer) = listener.accept().await?;
        tokio::spawn(connection(stream, peer, way, shared.clone()));
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, way: Way, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let answer = hyper::service::service_fn(move |request| {
        let shared = shared.clone();
        async move {
            match way {
                Way::Watched => shared.answer(request, peer).await,
                Way::Quiet => {
                    let (head, body) = request.into_parts();
                    shared.done(head, body.collect().await.map_err(io::Error::other)?.to_bytes()).await
                }
            }
        }
    });
    // A connection that ends badly is the client's business, or a fault that was ordered.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> io::Result<Response<Body>> {
        let (head, body) = request.into_parts();
        let (operation, path) = (Operation::of(&head), head.uri.path().to_owned());
        let fault = self.fault(operation, &path);
        let see = |status| lock(&self.seen).push(Seen { operation, path: path.clone(), status });
        match &fault {
            Some(Fault::Refused(status, code)) => {
                // Read to its end first: a server that answers while it is being sent to makes the client see a broken pipe.
                let _ = body.collect().await;
                see(Some(*status));
                return Ok(refusal(*status, code));
            }
            Some(Fault::RequestCut) => {
                see(None);
                return Err(io::Error::other("ordered"));
            }
            _ => {}
        }
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let caught = Caught { operation, path: path.clone(), peer };
        let trap = self.trap(operation, &path);
        if let Some(trap) = &trap {
            trap.stop(Moment::Before, &caught).await?;
        }
        if let Keeper::Files { folder, .. } = &self.keeper {
            if fault == Some(Fault::UnequalParts) && files::has_unequal_parts(folder, head.uri.query().unwrap_or_default()) {
                see(Some(400));
                return Ok(refusal(400, "InvalidPart"));
            }
            if fault == Some(Fault::Unconditional) {
                files::remove(folder, &path);
            }
        }
        let answer = self.done(head, body).await?;
        see(Some(answer.status().as_u16()).filter(|_| fault != Some(Fault::AnswerLost)));
        if let Some(trap) = &trap {
            trap.stop(Moment::After, &caught).await?;
        }
        match fault {
            Some(Fault::AnswerLost) => Err(io::Error::other("ordered")),
            Some(Fault::AnswerLate(pause)) => {
                tokio::time::sleep(pause).await;
                Ok(answer)
            }
            Some(Fault::AnswerCut) => Ok(in_pieces(answer, 2, Duration::ZERO, true).await?),
            Some(Fault::Slow(pieces, pause)) => Ok(in_pieces(answer, pieces, pause, false).await?),
            _ => Ok(answer),
        }
    }

    /// Does what a request asks for.
    async fn done(&self, head: Parts, body: Bytes) -> io::Result<Response<Body>> {
        let (operation, path) = (Operation::of(&head), head.uri.path());
        match &self.keeper {
            Keeper::Remote(remote) => remote.ask(head, body).await,
            Keeper::Files { service, folder, creating } => {
                if let Some((status, code)) = files::in_the_way(folder, operation, path, &body) {
                    return Ok(refusal(status, code));
                }
                let _one = if operation == Operation::PutNew { Some(creating.lock().await) } else { None };
                let done = service.call(Request::from_parts(head, Body::from(body))).await;
                done.map_err(|error| io::Error::other(format!("{error:?}")))
            }
        }
    }

    /// Takes the trap that a request walks into.
    fn trap(&self, operation: Operation, path: &str) -> Option<Trap> {
        let mut traps = lock(&self.traps);
        let at = traps.iter().position(|trap| trap.wants(operation, path))?;
        Some(traps.swap_remove(at))
    }

    /// The fault that is due for a request.
    fn fault(&self, operation: Operation, path: &str) -> Option<Fault> {
        let mut rules = lock(&self.rules);
        let rule = rules.iter_mut().find(|rule| rule.times > 0 && rule.operation == operation && path.contains(&rule.path))?;
        rule.times -= 1;
        Some(rule.fault.clone())
    }
}

fn refusal(status: u16, code: &str) -> Response<Body> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as ordered</Message></Error>");
    let mut answer = Response::new(Body::from(text));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/xml"));
    answer
}

/// The same answer, its body in pieces with pauses; cut, the last piece does not come and the connection breaks.
async fn in_pieces(answer: Response<Body>, pieces: usize, pause: Duration, cut: bool) -> io::Result<Response<Body>> {
    let (head, body) = answer.into_parts();
    let whole = body.collect().await.map_err(|error| io::Error::other(error.to_string()))?.to_bytes();
    let size = whole.len().div_ceil(pieces.max(1)).max(1);
    let mut parts: Vec<Result<Bytes, io::Error>> =
        (0..whole.len()).step_by(size).map(|at| Ok(whole.slice(at..(at + size).min(whole.len())))).collect();
    if cut {
        parts.pop();
        parts.push(Err(io::Error::other("ordered")));
    }
    let body = stream::unfold(parts.into_iter(), move |mut parts| async move {
        let part = parts.next()?;
        tokio::time::sleep(pause).await;
        Some((part.map(Frame::data), parts))
    });
    let body = StreamBody::new(Box::pin(body) as std::pin::Pin<Box<dyn futures::Stream<Item = _> + Send + Sync>>);
    Ok(Response::from_parts(head, Body::http_body(body)))
}
