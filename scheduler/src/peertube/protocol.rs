//! The runner protocol of PeerTube: one request each. Tokens travel in bodies alone.

use std::time::Duration;

use farm::{Code, Failure};
use futures::Stream;
use reqwest::multipart::{Form, Part};
use reqwest::redirect::Policy as Redirects;
use reqwest::{RequestBuilder, Response, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;
use url::Url;

use super::order::JOB_TYPES;
use super::settings::{Instance, Token};

/// Longest time to be reached, to answer a small request, and between two pieces of an answer.
const CONNECT_MAX: Duration = Duration::from_secs(10);
const ANSWER_MAX: Duration = Duration::from_secs(30);
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Longest time to take a result: the server probes and moves it, and rebuilds playlists, before it answers.
const RESULT_MAX: Duration = Duration::from_secs(30 * 60);
/// Most characters of a reason.
const REASON_CHARS_MAX: usize = 2000;
/// Largest answer that is read as JSON, and largest of an error, in bytes.
const JSON_BYTES_MAX: usize = 8 << 20;
const ERROR_BYTES_MAX: usize = 64 << 10;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The job was cancelled, taken by another, or done: it is nobody's business here any more.
    #[error("the job is not this runner's any more")]
    Gone,
    /// The runner's token is not known.
    #[error("the instance does not know this runner: register it again")]
    UnknownRunner,
    /// The result was not there in the time that the instance gives.
    #[error(
        "the instance waits no longer for a result: raise http_timeouts.request there, and its proxy's time-outs, or bring the farm nearer"
    )]
    TooSlow,
    /// It will be refused each time.
    #[error("the instance refuses: {0}")]
    Refused(String),
    /// Nobody answers, or nobody who could; later it may be otherwise.
    #[error("{0}")]
    Unreachable(String),
    /// The connection broke in the middle of something.
    #[error("{0}")]
    BrokenOff(String),
    /// The farm's own storage.
    #[error("{0}")]
    Own(#[from] farm::storage::StorageError),
}

/// A runner job that may be taken.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Available {
    /// Its name.
    pub(super) uuid: String,
    /// Its type.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// What is asked for.
    pub(super) payload: Value,
}

/// A file of a result.
pub(super) struct File<S> {
    /// Which one it is in the protocol.
    pub(super) field: &'static str,
    /// What it is called.
    pub(super) name: String,
    /// Its media type: the server names the published file by it.
    pub(super) media_type: &'static str,
    /// Its size.
    pub(super) bytes: u64,
    /// Its bytes.
    pub(super) content: S,
}

/// A way to talk to an instance.
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Token,
    /// Types of runner jobs that are done for it.
    types: Vec<&'static str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Registered {
    runner_token: Token,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Offer {
    available_jobs: Vec<Available>,
}

#[derive(Deserialize)]
struct Taken {
    job: TakenJob,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TakenJob {
    job_token: Token,
}

#[derive(Default, Deserialize)]
struct Problem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    transcoding: Transcoding,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transcoding {
    #[serde(default)]
    enabled_resolutions: Vec<u32>,
}

fn http() -> Result<reqwest::Client, Failure> {
    // A redirect would carry the tokens to whom it names.
    let builder = reqwest::Client::builder().connect_timeout(CONNECT_MAX).redirect(Redirects::none());
    let builder = builder.user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")));
    builder.build().map_err(|error| Failure::new(Code::Internal, format!("no requests can be made: {error}")))
}

/// Makes this farm a runner of an instance; the runner's token.
///
/// # Errors
/// What the instance says, or that it is not reached.
pub async fn register(instance: &Url, registration: &Token, name: &str) -> Result<Token, Failure> {
    let body = json!({ "registrationToken": registration.reveal(), "name": name, "version": env!("CARGO_PKG_VERSION"),
                       "description": "Shoal: a farm of workers" });
    let request = json_body(http()?.post(path(instance, &["register"])?), &body);
    let registered: Registered = answer(request.timeout(ANSWER_MAX)).await.map_err(|refusal| told(instance, &refusal))?;
    Ok(registered.runner_token)
}

/// Has an instance forget a runner.
///
/// # Errors
/// As [`register`]. A runner that is not known there is no error.
pub async fn unregister(instance: &Url, token: &Token) -> Result<(), Failure> {
    let request = json_body(http()?.post(path(instance, &["unregister"])?), &json!({ "runnerToken": token.reveal() }));
    match sent(request.timeout(ANSWER_MAX)).await {
        Ok(_) | Err(Refusal::UnknownRunner) => Ok(()),
        Err(refusal) => Err(told(instance, &refusal)),
    }
}

fn told(instance: &Url, refusal: &Refusal) -> Failure {
    let code = match refusal {
        Refusal::Unreachable(_) | Refusal::BrokenOff(_) => Code::SourceUnreadable,
        _ => Code::InvalidRequest,
    };
    let why = match refusal {
        Refusal::Gone => "it does not know this registration token".to_owned(),
        other => other.to_string(),
    };
    Failure::new(code, format!("{instance}: {why}"))
}

fn path(base: &Url, rest: &[&str]) -> Result<Url, Failure> {
    let mut url = base.clone();
    let refused = || Failure::new(Code::InvalidRequest, format!("{base} can have no path"));
    url.path_segments_mut().map_err(|()| refused())?.pop_if_empty().extend(["api", "v1", "runners"]).extend(rest);
    Ok(url)
}

fn json_body(request: RequestBuilder, body: &Value) -> RequestBuilder {
    request.header(header::CONTENT_TYPE, "application/json").body(body.to_string())
}

fn unreachable(error: &reqwest::Error) -> Refusal {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    // Not the error itself, which names the URL.
    match error.is_connect() {
        true => Refusal::Unreachable(format!("the instance does not answer: {deepest}")),
        false => Refusal::BrokenOff(format!("the instance broke off: {deepest}")),
    }
}

/// What is left of an answer, if it is no more than so many bytes.
async fn rest(mut answer: Response, bytes_max: usize) -> Result<Vec<u8>, Refusal> {
    let mut body = Vec::new();
    while let Some(chunk) = chunk(&mut answer).await? {
        if body.len() + chunk.len() > bytes_max {
            return Err(Refusal::Unreachable("no answer of a PeerTube: it is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The next bytes of an answer, none at its end.
///
/// # Errors
/// [`Refusal::BrokenOff`], also when nothing comes for too long.
pub(super) async fn chunk(answer: &mut Response) -> Result<Option<bytes::Bytes>, Refusal> {
    let silent = || Refusal::BrokenOff("the instance says no more".to_owned());
    timeout(SILENCE_MAX, answer.chunk()).await.map_err(|_| silent())?.map_err(|error| unreachable(&error))
}

/// Sends a request; the answer, if it is a good one.
async fn sent(request: RequestBuilder) -> Result<Response, Refusal> {
    let answer = request.send().await.map_err(|error| unreachable(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    if let Some(to) = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok()).filter(|_| status.is_redirection()) {
        return Err(Refusal::Refused(format!("it is at {to} now: name it by that address")));
    }
    let body = rest(answer, ERROR_BYTES_MAX).await.unwrap_or_default();
    Err(refusal(status, &body))
}

/// What an answer that is no good one means.
fn refusal(status: StatusCode, body: &[u8]) -> Refusal {
    let problem: Option<Problem> = serde_json::from_slice(body).ok();
    // A proxy whose server is away may say that there is nothing, too.
    let is_peertube = problem.is_some();
    let problem = problem.unwrap_or_default();
    let said = [problem.detail, problem.error].into_iter().find(|text| !text.is_empty());
    let said: String = said.unwrap_or_default().chars().take(300).collect();
    match (status, problem.code.as_str()) {
        (_, "unknown_runner_token") => Refusal::UnknownRunner,
        (_, "runner_job_not_in_processing_state" | "runner_job_not_in_pending_state") => Refusal::Gone,
        (StatusCode::NOT_FOUND | StatusCode::CONFLICT, _) if is_peertube => Refusal::Gone,
        (StatusCode::NOT_FOUND, _) => Refusal::Unreachable("no PeerTube answers there".to_owned()),
        (StatusCode::REQUEST_TIMEOUT, _) => Refusal::TooSlow,
        (StatusCode::PAYLOAD_TOO_LARGE, _) => {
            Refusal::Refused("a file is too large for it or its proxy (client_max_body_size)".to_owned())
        }
        (StatusCode::TOO_MANY_REQUESTS, _) => Refusal::Unreachable("the instance wants fewer requests".to_owned()),
        (status, _) if status.is_server_error() => Refusal::Unreachable(format!("the instance answers {status}")),
        (status, _) => Refusal::Refused(format!("{status} {said}").trim().to_owned()),
    }
}

async fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, Refusal> {
    let answer = sent(request).await?;
    let odd = |why: String| Refusal::Unreachable(format!("no answer of a PeerTube: {why}"));
    let body = rest(answer, JSON_BYTES_MAX).await?;
    serde_json::from_slice(&body).map_err(|error| odd(error.to_string()))
}

impl Client {
    pub(super) fn new(instance: &Instance) -> Result<Self, Failure> {
        let types = JOB_TYPES.into_iter().filter(|(_, work)| instance.policy.jobs.contains(work));
        let types = types.map(|(name, _)| name).collect();
        Ok(Self { http: http()?, base: instance.url.clone(), token: instance.token.clone(), types })
    }

    fn post(&self, rest: &[&str]) -> Result<RequestBuilder, Refusal> {
        let url = path(&self.base, rest).map_err(|failure| Refusal::Refused(failure.message))?;
        Ok(self.http.post(url))
    }

    /// Jobs that may be taken, the most urgent first.
    pub(super) async fn available(&self) -> Result<Vec<Available>, Refusal> {
        let body = json!({ "runnerToken": self.token.reveal(), "jobTypes": self.types, "version": env!("CARGO_PKG_VERSION") });
        let offer: Offer = answer(json_body(self.post(&["jobs", "request"])?, &body).timeout(ANSWER_MAX)).await?;
        // Servers before 7.0 offer every type.
        Ok(offer.available_jobs.into_iter().filter(|job| self.types.contains(&job.kind.as_str())).collect())
    }

    /// Takes a job; its token. [`Refusal::Gone`] when another was faster.
    pub(super) async fn accept(&self, job: &str) -> Result<Token, Refusal> {
        let body = json!({ "runnerToken": self.token.reveal() });
        let request = json_body(self.post(&["jobs", job, "accept"])?, &body).timeout(ANSWER_MAX);
        match answer::<Taken>(request).await {
            Ok(taken) => Ok(taken.job.job_token),
            // "Not in pending state", without a code.
            Err(Refusal::Refused(_)) => Err(Refusal::Gone),
            Err(refusal) => Err(refusal),
        }
    }

    /// Says that a job is being done, and how far it is in percent.
    pub(super) async fn update(&self, job: &str, token: &Token, percent: u8) -> Result<(), Refusal> {
        let form = self.form(token).text("progress", percent.min(100).to_string());
        sent(self.post(&["jobs", job, "update"])?.multipart(form).timeout(ANSWER_MAX)).await.map(drop)
    }

    /// Says that a job cannot be done.
    pub(super) async fn error(&self, job: &str, token: &Token, message: &str) -> Result<(), Refusal> {
        let message: String = message.chars().take(REASON_CHARS_MAX).collect();
        let body = json!({ "runnerToken": self.token.reveal(), "jobToken": token.reveal(), "message": message });
        sent(json_body(self.post(&["jobs", job, "error"])?, &body).timeout(ANSWER_MAX)).await.map(drop)
    }

    /// Gives a job back, for another runner or for later.
    pub(super) async fn abort(&self, job: &str, token: &Token, reason: &str) -> Result<(), Refusal> {
        let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
        let body = json!({ "runnerToken": self.token.reveal(), "jobToken": token.reveal(), "reason": reason });
        sent(json_body(self.post(&["jobs", job, "abort"])?, &body).timeout(ANSWER_MAX)).await.map(drop)
    }

    /// Hands in a result.
    pub(super) async fn success<S>(&self, job: &str, token: &Token, files: Vec<File<S>>) -> Result<(), Refusal>
    where
        S: Stream<Item = Result<bytes::Bytes, farm::storage::StorageError>> + Send + 'static,
    {
        let mut form = self.form(token);
        for file in files {
            let part = Part::stream_with_length(reqwest::Body::wrap_stream(file.content), file.bytes).file_name(file.name);
            let part = part.mime_str(file.media_type).map_err(|error| Refusal::Refused(error.to_string()))?;
            form = form.part(file.field, part);
        }
        sent(self.post(&["jobs", job, "success"])?.multipart(form).timeout(RESULT_MAX)).await.map(drop)
    }

    fn form(&self, token: &Token) -> Form {
        Form::new().text("runnerToken", self.token.reveal().to_owned()).text("jobToken", token.reveal().to_owned())
    }

    /// A file of a job, from a byte on, up to `last` if that is given; and how large it is in all, where the server says so.
    pub(super) async fn file(
        &self,
        url: &Url,
        token: &Token,
        from: u64,
        last: Option<u64>,
    ) -> Result<(Response, Option<u64>), Refusal> {
        // At the address that the runner was registered at: the tokens go nowhere else.
        let mut at = self.base.clone();
        at.set_path(url.path());
        let body = json!({ "runnerToken": self.token.reveal(), "jobToken": token.reveal() });
        let request = json_body(self.http.post(at), &body).header(
            header::RANGE,
            match last {
                Some(last) => format!("bytes={from}-{last}"),
                None => format!("bytes={from}-"),
            },
        );
        let silent = |_| Refusal::Unreachable("the instance sends no file".to_owned());
        let answer = timeout(SILENCE_MAX, sent(request)).await.map_err(silent)??;
        let total = if answer.status() == StatusCode::PARTIAL_CONTENT {
            let range = answer.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let begins = range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")));
            if !begins {
                return Err(Refusal::Unreachable("the instance sends another part of a file than was asked for".to_owned()));
            }
            range.and_then(|range| range.rsplit('/').next()).and_then(|total| total.parse().ok())
        } else if from > 0 {
            return Err(Refusal::Unreachable("the instance cannot send the rest of a file".to_owned()));
        } else {
            answer.content_length()
        };
        Ok((answer, total))
    }

    /// The resolutions that the instance makes of its videos, 0 for sound alone.
    pub(super) async fn resolutions(&self) -> Result<Vec<u32>, Refusal> {
        let mut url = self.base.clone();
        url.set_path("/api/v1/config");
        answer::<Config>(self.http.get(url).timeout(ANSWER_MAX)).await.map(|config| config.transcoding.enabled_resolutions)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::response::IntoResponse as _;

    use super::*;

    #[test]
    fn what_an_answer_means() {
        let of = |status: u16, body: &str| refusal(StatusCode::from_u16(status).expect("a status"), body.as_bytes());
        assert!(matches!(of(404, r#"{"code":"unknown_runner_token"}"#), Refusal::UnknownRunner));
        assert!(matches!(of(400, r#"{"code":"runner_job_not_in_processing_state"}"#), Refusal::Gone));
        assert!(matches!(of(409, r#"{"code":"runner_job_not_in_pending_state"}"#), Refusal::Gone));
        assert!(matches!(of(404, "{}"), Refusal::Gone));
        assert!(matches!(of(404, "404 page not found"), Refusal::Unreachable(_)), "a proxy");
        assert!(matches!(of(408, ""), Refusal::TooSlow));
        assert!(matches!(of(429, "Too many requests"), Refusal::Unreachable(_)));
        assert!(matches!(of(502, "<html>"), Refusal::Unreachable(_)));
        let Refusal::Refused(said) = of(400, r#"{"detail":"Payload is invalid"}"#) else { panic!("refused") };
        assert_eq!(said, "400 Bad Request Payload is invalid");
        let Refusal::Refused(said) = of(413, "") else { panic!("refused") };
        assert!(said.contains("client_max_body_size"));
    }

    /// A server that gives this answer to all, and how often each path was asked for.
    async fn server(answer: impl Fn() -> axum::response::Response + Clone + Send + Sync + 'static) -> (Url, Asked) {
        let asked = Asked::default();
        let note = Arc::clone(&asked);
        let app = axum::Router::new().fallback(move |request: axum::extract::Request| async move {
            note.lock().expect("not poisoned").push(request.uri().path().to_owned());
            answer()
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        (url.parse().expect("a URL"), asked)
    }

    type Asked = Arc<std::sync::Mutex<Vec<String>>>;

    fn client(instance: &Url) -> Client {
        let file = format!("[[instances]]\nurl = '{instance}'\nname = 'shoal'\nrunner_token = 'of the runner'\n");
        let instances = crate::peertube::settings::read(&file).expect("an instance");
        Client::new(instances.first().expect("one")).expect("a client")
    }

    #[tokio::test]
    async fn tokens_go_to_the_registered_address_alone() {
        let (elsewhere, strayed) = server(|| "[]".into_response()).await;
        let to = elsewhere.to_string();
        let moved = move || (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to.clone())]).into_response();
        let (base, asked) = server(moved).await;
        let (client, token) = (client(&base), Token::from("of the job".to_owned()));
        let refused = client.available().await.err();
        assert!(matches!(&refused, Some(Refusal::Refused(said)) if said.contains("name it by that address")), "{refused:?}");
        let file = elsewhere.join("files/of/a/video").expect("a URL");
        assert!(client.file(&file, &token, 0, None).await.is_err());
        assert_eq!(asked.lock().expect("not poisoned").last().map(String::as_str), Some("/files/of/a/video"));
        assert_eq!(*strayed.lock().expect("not poisoned"), Vec::<String>::new(), "nobody else is asked");
    }

    #[tokio::test]
    async fn an_answer_is_heard_up_to_a_length() {
        let long = || format!("{{\"availableJobs\":[],\"more\":\"{}\"}}", "x".repeat(JSON_BYTES_MAX)).into_response();
        let (base, _) = server(long).await;
        let refused = client(&base).available().await.err();
        assert!(matches!(&refused, Some(Refusal::Unreachable(said)) if said.contains("too long")), "{refused:?}");
        let (base, _) = server(|| "{\"availableJobs\":[]}".into_response()).await;
        assert!(client(&base).available().await.is_ok_and(|jobs| jobs.is_empty()));
    }
}
