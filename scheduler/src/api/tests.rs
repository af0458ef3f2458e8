//! The service as outsiders see it: over real sockets, with a local broker, a folder, and workers that encode nothing.

use std::sync::Mutex;

use axum::routing::post;
use farm::broker::{DeadLetter, Queue};
use farm::ended::{Ended, JobOutcome};
use farm::job::{Layout, NotifySpec};
use farm::storage::Kind;
use farm::task::{TaskId, Token};
use farm::{Life, keys};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::scheduler::PARTITION;
use crate::scheduler::tests::{Act, Farm, check_complete};
use crate::service::{self, Config};
use crate::tenants::Register;
use crate::{janitor, notify, scheduler};

mod deleted;
mod described;
mod followed;
mod given;

const LIMIT: Duration = Duration::from_secs(60);
const ONE: &str = "the token of tenant one";
const TWO: &str = "the token of tenant two";
const ADMIN: &str = "the token of the admin";

/// A service that runs.
struct Running {
    base: String,
    client: reqwest::Client,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Failure>>,
}

impl Running {
    async fn start(farm: &Farm, policy: Policy) -> Self {
        Self::of(farm, policy, Register::new(tenants())).await
    }

    /// For these tenants.
    async fn of(farm: &Farm, policy: Policy, tenants: Register) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let short = Duration::from_millis(20);
        let config = Config {
            settings: scheduler::Settings { settle: short, ..scheduler::Settings::for_farm() },
            policy: Policy { tenants, ..policy },
            notify: notify::Settings { retry_first: short, ..notify::Settings::default() },
            janitor: janitor::Settings::default(),
            peertube: None,
            traces: None,
            api: Some(listener),
            admin: None,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(service::run(config, farm.state.clone(), farm.broker.clone(), stop.clone()));
        Self { base, client: reqwest::Client::new(), stop, task }
    }

    /// The API alone, and where it listens.
    async fn bare(farm: &Farm, limits: Limits) -> (Self, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let settings = scheduler::Settings::for_farm();
        let scheduler = Arc::new(scheduler::Scheduler::start(settings, farm.state.clone(), farm.broker.clone()));
        let (state, broker) = (farm.state.clone(), farm.broker.clone());
        let router =
            router(Api { scheduler, state, broker, policy: Policy { tenants: Register::new(tenants()), ..open() } }, limits);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let served = serve::serve(listener, router, serve::Limits::new(8));
            assert!(stopped.run_until_cancelled(served).await.is_none(), "it serves until it is told to stop");
            Ok(())
        });
        (Self { base: format!("http://{address}"), client: reqwest::Client::new(), stop, task }, address)
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(LIMIT, self.task).await.expect("in time").expect("no panic").expect("a good end");
    }

    /// Status and body of the answer, which is to be one of those that are described. What is no JSON comes as a text.
    async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let request = request.build().expect("a request");
        let asked = (request.method().as_str().to_lowercase(), request.url().path().to_owned());
        let answer = timeout(LIMIT, self.client.execute(request)).await.expect("in time").expect("an answer");
        let (status, head) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.bytes().await.expect("a body");
        let text = String::from_utf8_lossy(&body);
        let body = match described::is_json(&head) {
            true => serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}")),
            false => Value::String(text.into_owned()),
        };
        described::check((asked.0.as_str(), asked.1.as_str()), (status, &head), &body);
        (status, body)
    }

    async fn get(&self, path: &str, token: &str) -> (u16, Value) {
        self.send(self.client.get(format!("{}{path}", self.base)).bearer_auth(token)).await
    }

    async fn post(&self, path: &str, token: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
        self.send(self.client.post(format!("{}{path}", self.base)).bearer_auth(token).body(body)).await
    }

    /// Waits until a list is answered so.
    async fn hear(&self, token: &str, status: u16, code: &str) {
        let heard = async {
            loop {
                let (got, answer) = self.get("/v1/jobs", token).await;
                if (got, answer["code"].as_str().unwrap_or_default()) == (status, code) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, heard).await.unwrap_or_else(|_| panic!("{token} is never answered {status} {code}"));
    }

    /// Waits until a job is in this state.
    async fn reach(&self, id: &str, token: &str, state: &str) -> Value {
        let reached = async {
            loop {
                let (status, job) = self.get(&format!("/v1/jobs/{id}"), token).await;
                assert_eq!(status, 200, "{job}");
                if job["state"] == state {
                    return job;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, reached).await.unwrap_or_else(|_| panic!("{id} never is {state}"))
    }
}

fn tenants() -> Tenants {
    let text = format!(
        "[[tenants]]\nname = 'one'\ntoken = '{ONE}'\nmax_jobs = 2\n[[tenants]]\nname = 'two'\ntoken = '{TWO}'\n\
         [[tenants]]\nname = 'boss'\ntoken = '{ADMIN}'\nadmin = true\n"
    );
    Tenants::read(&text).expect("tenants")
}

/// A request whose body never comes whole.
async fn half(address: std::net::SocketAddr, token: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.expect("connected");
    let head = format!("POST /v1/jobs HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\nContent-Length: 99\r\n\r\n{{");
    socket.write_all(head.as_bytes()).await.expect("sent");
    socket
}

fn message(farm: &Farm, id: &str) -> JobSpec {
    let mut spec = farm.spec(Layout::Segments);
    spec.id = Some(JobId::try_from(id.to_owned()).expect("an id"));
    spec
}

fn text(spec: &JobSpec) -> String {
    serde_json::to_string(spec).expect("JSON")
}

fn open() -> Policy {
    Policy { allow_file_urls: true, ..Policy::default() }
}

#[tokio::test]
async fn a_job_is_submitted_followed_and_seen_by_its_tenant_only() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let running = Running::start(&farm, open()).await;
    let spec = text(&message(&farm, "film"));
    assert_eq!(running.post("/v1/jobs", ONE, spec.clone()).await, (201, json!({ "id": "film" })));
    assert_eq!(running.post("/v1/jobs", ONE, spec.clone()).await, (200, json!({ "id": "film" })));
    let job = running.reach("film", ONE, "done").await;
    assert_eq!((&job["tenant"], &job["result"]["master"]), (&json!("one"), &json!("master.m3u8")));
    assert_eq!(job["progress"]["tasks_done"], job["progress"]["tasks_total"]);
    check_sealed_only_after_sweep(&farm).await;
    let other = JobSpec { segment_seconds: 6, ..message(&farm, "film") };
    let (status, refused) = running.post("/v1/jobs", ONE, text(&other)).await;
    assert_eq!((status, &refused["code"]), (409, &json!("conflict")));
    assert_eq!(running.get("/v1/jobs/film", ADMIN).await.0, 200);
    for path in ["/v1/jobs/film/cancel", "/v1/jobs/film/retry"] {
        assert_eq!(running.post(path, TWO, "").await.0, 404, "{path}");
    }
    for (path, token) in [("/v1/jobs/film", TWO), ("/v1/jobs/none", ONE), ("/v1/jobs/..%2Fterm", ADMIN), ("/v1/jobs/%FF", ADMIN)]
    {
        let (status, refused) = running.get(path, token).await;
        assert_eq!((status, &refused["code"]), (404, &json!("not_found")), "{path}");
    }
    let (status, refused) = running.post("/v1/jobs/film/retry", ONE, "").await;
    assert_eq!((status, &refused["code"]), (409, &json!("conflict")));
    running.stop().await;
}

async fn check_sealed_only_after_sweep(farm: &Farm) {
    let swept = async {
        while farm.state.list(&keys::sweep_prefix(PARTITION)).await.expect("a listing").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, swept).await.expect("told, and then left to the janitor");
    janitor::round(&janitor::Settings { grace: Duration::ZERO, ..janitor::Settings::default() }, &farm.state)
        .await
        .expect("a round");
    check_complete(farm).await;
}

#[tokio::test]
async fn two_equal_jobs_in_one_place_leave_the_later_result_whole() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let running = Running::start(&farm, open()).await;
    for id in ["first", "second"] {
        assert_eq!(running.post("/v1/jobs", ONE, text(&message(&farm, id))).await.0, 201);
        running.reach(id, ONE, "done").await;
    }
    let swept = async {
        while farm.state.list(&keys::sweep_prefix(PARTITION)).await.expect("a listing").len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, swept).await.expect("both are left to the janitor");
    let at_once = janitor::Settings { grace: Duration::ZERO, ..janitor::Settings::default() };
    janitor::round(&at_once, &farm.state).await.expect("a round");
    check_complete(&farm).await;
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_the_right_status() {
    let farm = Farm::new();
    let running = Running::start(&farm, Policy::default()).await;
    let files = text(&message(&farm, "files"));
    let big = vec![b' '; BODY_BYTES_MAX + 1];
    let unknown = r#"{"version":1,"source":{"url":"https://x/","urll":"a"},"output":{"url":"s3://b/"}}"#.to_owned();
    for (body, status, code, said) in [
        ("{".to_owned().into_bytes(), 400, "invalid_request", "EOF"),
        (unknown.into_bytes(), 400, "invalid_request", "source.urll"),
        (files.into_bytes(), 400, "invalid_request", "source.url: file:"),
        (big, 413, "too_large", "256 KiB"),
    ] {
        let (got, refused) = running.post("/v1/jobs", ONE, body).await;
        assert_eq!((got, &refused["code"]), (status, &json!(code)), "{refused}");
        assert!(refused["detail"].as_str().is_some_and(|message| message.contains(said)), "{said}: {refused}");
    }
    for token in ["", "no token of anybody"] {
        let (status, refused) = running.get("/v1/jobs", token).await;
        assert_eq!((status, &refused["code"]), (401, &json!("unauthorized")));
    }
    for (path, status) in
        [("/v1/jobs?limit=0", 400), ("/v1/jobs?state=odd", 400), ("/v1/jobs?no=1", 400), ("/v2", 404), ("/v1/jobs", 200)]
    {
        assert_eq!(running.get(path, ONE).await.0, status, "{path}");
    }
    assert_eq!(running.post("/v1/jobs/a", ONE, "").await.0, 405);
    running.stop().await;
}

#[tokio::test]
async fn a_tenant_has_so_many_requests_at_a_time_and_so_have_strangers_together() {
    let farm = Farm::new();
    let limits = Limits { all: 3, of_tenant: 2, of_strangers: 1, time: LIMIT, body_time: LIMIT };
    let (running, address) = Running::bare(&farm, limits).await;
    let own = [half(address, ONE).await, half(address, ONE).await];
    running.hear(ONE, 429, "too_many_requests").await;
    running.hear(TWO, 200, "").await;
    // A stranger's body is not waited for.
    let mut stranger = half(address, "no token of anybody").await;
    let mut said = String::new();
    timeout(LIMIT, stranger.read_to_string(&mut said)).await.expect("it is closed").expect("an answer");
    assert!(said.starts_with("HTTP/1.1 401 "), "{said}");
    let other = half(address, TWO).await;
    running.hear(TWO, 503, "busy").await;
    running.hear(ADMIN, 503, "busy").await;
    drop(other);
    running.hear(ADMIN, 200, "").await;
    running.hear(ONE, 429, "too_many_requests").await;
    drop(own);
    running.hear(ONE, 200, "").await;
    running.stop().await;
    let (running, _) = Running::bare(&farm, Limits { of_strangers: 0, ..Limits::USUAL }).await;
    running.hear("no token of anybody", 429, "too_many_requests").await;
    running.hear(ONE, 200, "").await;
    running.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let farm = Farm::new();
    let short = Duration::from_millis(200);
    for (time, body_time, status) in [(LIMIT, short, "408"), (short, LIMIT, "504")] {
        let limits = Limits { time, body_time, ..Limits::USUAL };
        let (running, address) = Running::bare(&farm, limits).await;
        let mut socket = half(address, ONE).await;
        let mut said = String::new();
        timeout(LIMIT, socket.read_to_string(&mut said)).await.expect("it is closed").expect("an answer");
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")) && said.contains("timeout"), "{said}");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_tenant_has_so_many_jobs_and_lists_its_own() {
    let mut farm = Farm::new();
    // A place for every task of three jobs, and one for a probe.
    for _ in 0..16 {
        farm.add_worker(|message| if message.task == TaskId::Probe { Act::Do } else { Act::Beat });
    }
    let running = Running::start(&farm, open()).await;
    for (id, token) in [("one-a", ONE), ("one-b", ONE), ("two-a", TWO)] {
        assert_eq!(running.post("/v1/jobs", token, text(&message(&farm, id))).await.0, 201);
        running.reach(id, token, "encoding").await;
    }
    let (status, refused) = running.post("/v1/jobs", ONE, text(&message(&farm, "one-c"))).await;
    assert_eq!((status, &refused["code"]), (429, &json!("too_many_jobs")));
    assert_eq!(running.post("/v1/jobs/one-a/cancel", ONE, "").await.0, 202);
    running.reach("one-a", ONE, "cancelled").await;
    let closed = async {
        while farm.active().await > 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, closed).await.expect("closed");
    let ids = |list: &Value| {
        let line = |job: &Value| format!("{} {}", job["id"].as_str().unwrap_or(""), job["state"].as_str().unwrap_or(""));
        list["jobs"].as_array().expect("a list").iter().map(line).collect::<Vec<_>>()
    };
    let (_, mine) = running.get("/v1/jobs", ONE).await;
    assert_eq!(ids(&mine), ["one-b active", "one-a cancelled"]);
    let (_, all) = running.get("/v1/jobs?state=active", ADMIN).await;
    assert_eq!(ids(&all), ["one-b active", "two-a active"]);
    let (_, first) = running.get("/v1/jobs?limit=1", ONE).await;
    assert_eq!((ids(&first), &first["next"]), (vec!["one-b active".to_owned()], &json!("one-b")));
    let (_, second) = running.get("/v1/jobs?limit=1&after=one-b", ONE).await;
    assert_eq!(ids(&second), ["one-a cancelled"]);
    running.stop().await;
}

#[tokio::test]
async fn jobs_come_from_the_queue_and_what_is_refused_does_not_stop_the_others() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let mut results = farm.broker.consume(Queue::Results).await.expect("a consumer");
    let mut dead = farm.broker.consume(Queue::Dead).await.expect("a consumer");
    let running = Running::start(&farm, open()).await;
    let mut unnamed = message(&farm, "unnamed");
    unnamed.id = None;
    let odd = serde_json::json!({ "version": 1, "sauce": {} });
    farm.broker.publish(Queue::Jobs, &odd).await.expect("published");
    // Twice the same message is one job.
    farm.broker.publish(Queue::Jobs, &unnamed).await.expect("published");
    farm.broker.publish(Queue::Jobs, &unnamed).await.expect("published");
    let letter = timeout(LIMIT, dead.next()).await.expect("in time").expect("a letter");
    assert!(letter.read::<DeadLetter>().expect("a letter").reason.contains("sauce"));
    let told = timeout(LIMIT, results.next()).await.expect("in time").expect("a result");
    let ended: Ended = told.read().expect("an end");
    assert_eq!((ended.outcome, ended.master.as_deref()), (JobOutcome::Done, Some("master.m3u8")));
    told.ack().await.expect("acked");
    assert_eq!(farm.attempts("probe"), [1]);
    // Sent once more when it has ended, the end is told once more.
    farm.broker.publish(Queue::Jobs, &unnamed).await.expect("published");
    let again = timeout(LIMIT, results.next()).await.expect("in time").expect("a result");
    assert_eq!(again.read::<Ended>().expect("an end"), ended);
    running.stop().await;
}

type Heard = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

/// Takes calls; refuses as many as told.
async fn receiver(refusals: usize) -> (String, Heard, JoinHandle<()>) {
    let heard: Heard = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook?key=hidden", listener.local_addr().expect("an address"));
    let note = Arc::clone(&heard);
    let take = move |headers: HeaderMap, body: Bytes| async move {
        let mut heard = note.lock().expect("not poisoned");
        heard.push((headers, body));
        if heard.len() <= refusals { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::NO_CONTENT }
    };
    let app = Router::new().route("/hook", post(take));
    (url, heard, tokio::spawn(async move { axum::serve(listener, app).await.expect("served") }))
}

#[tokio::test]
async fn the_end_of_a_job_is_told_by_a_signed_call_until_it_is_taken() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let (url, heard, _receiver) = receiver(2).await;
    let mut spec = message(&farm, "called");
    spec.notify = Some(NotifySpec { url: url.parse().expect("a URL"), secret: "a secret of two".to_owned() });
    let running = Running::start(&farm, open()).await;
    assert_eq!(running.post("/v1/jobs", ONE, text(&spec)).await.0, 201);
    running.reach("called", ONE, "done").await;
    let told = async {
        while farm.state.get(&keys::told(&JobId::try_from("called".to_owned()).expect("an id"), Life::FIRST)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, told).await.expect("told");
    running.stop().await;
    let calls = heard.lock().expect("not poisoned").clone();
    assert_eq!(calls.len(), 3);
    for (headers, body) in calls {
        assert_eq!(headers["x-shoal-signature"], notify::signature(b"a secret of two", &body));
        let said: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((&said["job"], &said["outcome"]), (&json!("called"), &json!("done")));
        assert_eq!(headers["x-shoal-timestamp"].to_str().ok(), Some(said["sent_at"].to_string().as_str()));
        assert!(!String::from_utf8_lossy(&body).contains("secret"));
    }
}

#[tokio::test]
async fn what_one_scheduler_could_not_tell_the_next_one_tells() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let mut spec = message(&farm, "late");
    let url = format!("http://{address}/hook");
    spec.notify = Some(NotifySpec { url: url.parse().expect("a URL"), secret: "a secret of two".to_owned() });
    let first = Running::start(&farm, open()).await;
    assert_eq!(first.post("/v1/jobs", ONE, text(&spec)).await.0, 201);
    first.reach("late", ONE, "done").await;
    first.stop().await;
    let heard: Heard = Arc::default();
    let note = Arc::clone(&heard);
    let app = Router::new().route(
        "/hook",
        post(move |headers: HeaderMap, body: Bytes| async move { note.lock().expect("not poisoned").push((headers, body)) }),
    );
    let listener = TcpListener::bind(address).await.expect("the same port");
    let _receiver = tokio::spawn(async move { axum::serve(listener, app).await });
    let second = Running::start(&farm, open()).await;
    let told = async {
        // It may not even have been closed when the first stopped.
        while farm.active().await > 0 || !farm.state.list(&keys::outbox_prefix(PARTITION)).await.expect("a listing").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, told).await.expect("told");
    second.stop().await;
    assert_eq!(heard.lock().expect("not poisoned").len(), 1);
}

#[tokio::test]
async fn a_failed_job_is_given_up_by_the_janitor_and_then_cannot_be_retried() {
    let mut farm = Farm::new();
    farm.add_worker(|message| match message.task {
        TaskId::Video(1) => Act::Fail(farm::Code::Undecodable),
        _ => Act::Do,
    });
    let running = Running::start(&farm, open()).await;
    assert_eq!(running.post("/v1/jobs", ONE, text(&message(&farm, "bad"))).await.0, 201);
    let job = running.reach("bad", ONE, "failed").await;
    assert_eq!(job["error"]["code"], "undecodable");
    let id = JobId::try_from("bad".to_owned()).expect("an id");
    let closed = async {
        while farm.active().await > 0 || farm.state.list(&keys::sweep_prefix(PARTITION)).await.expect("a listing").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, closed).await.expect("closed");
    assert!(!farm.outputs().await.is_empty(), "its media is kept for a while");
    let at_once = janitor::Settings { grace: Duration::ZERO, ..janitor::Settings::default() };
    // While somebody takes it up again, the janitor keeps away.
    let flag = keys::retrying(&id, Life::FIRST, &Token::random());
    farm.state.put(&flag, Bytes::new(), Kind::Json).await.expect("stored");
    janitor::round(&at_once, &farm.state).await.expect("a round");
    assert!(!farm.outputs().await.is_empty());
    farm.state.delete(&[flag]).await.expect("deleted");
    janitor::round(&at_once, &farm.state).await.expect("a round");
    assert_eq!(farm.outputs().await, std::collections::BTreeSet::new());
    let (status, refused) = running.post("/v1/jobs/bad/retry", ONE, "").await;
    assert_eq!(status, 409, "{refused}");
    assert!(refused["detail"].as_str().is_some_and(|message| message.contains("media is gone")), "{refused}");
    let forgetful = janitor::Settings { retention: Some(Duration::ZERO), ..at_once };
    janitor::round(&forgetful, &farm.state).await.expect("a round");
    assert!(farm.state.list(&keys::job_prefix(&id)).await.expect("a listing").is_empty());
    assert_eq!(running.get("/v1/jobs/bad", ONE).await.0, 404);
    running.stop().await;
}

/// The next message of a queue, which must come in time.
async fn next<T: serde::de::DeserializeOwned>(queue: &mut farm::broker::Consumer) -> T {
    let delivery = timeout(LIMIT, queue.next()).await.expect("in time").expect("a message");
    let message = delivery.read().expect("understood");
    delivery.ack().await.expect("acked");
    message
}

#[tokio::test]
async fn each_life_of_a_job_has_an_end_that_is_told_once_and_a_failed_one_leaves_a_letter() {
    let mut farm = Farm::new();
    let is_broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    farm.add_worker(move |message| match message.task {
        TaskId::Video(1) if broken.load(std::sync::atomic::Ordering::Relaxed) => Act::Fail(farm::Code::Undecodable),
        _ => Act::Do,
    });
    let mut results = farm.broker.consume(Queue::Results).await.expect("a consumer");
    let mut dead = farm.broker.consume(Queue::Dead).await.expect("a consumer");
    // It refuses the first call, so that the end of the first life is still to be told when the second begins.
    let (url, heard, _receiver) = receiver(1).await;
    let mut spec = message(&farm, "twice");
    spec.notify = Some(NotifySpec { url: url.parse().expect("a URL"), secret: "a secret of two".to_owned() });
    let running = Running::start(&farm, open()).await;
    assert_eq!(running.post("/v1/jobs", ONE, text(&spec)).await.0, 201);
    running.reach("twice", ONE, "failed").await;
    is_broken.store(false, std::sync::atomic::Ordering::Relaxed);
    let asked = async {
        // It may still be being closed.
        while running.post("/v1/jobs/twice/retry", ONE, "").await.0 != 202 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, asked).await.expect("it is taken up again");
    running.reach("twice", ONE, "done").await;
    let ends = [next::<Ended>(&mut results).await.outcome, next::<Ended>(&mut results).await.outcome];
    assert_eq!(std::collections::BTreeSet::from(ends), [JobOutcome::Done, JobOutcome::Failed].into());
    let letter: DeadLetter = next(&mut dead).await;
    assert!(letter.reason.starts_with("job twice failed: undecodable: "), "{}", letter.reason);
    let body: Value = serde_json::from_str(&letter.body).expect("JSON");
    assert_eq!((&body["task"], &body["attempts"], &body["tenant"]), (&json!("video-00001"), &json!(1), &json!("one")));
    let told = async {
        while !farm.state.list(&keys::outbox_prefix(PARTITION)).await.expect("a listing").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, told).await.expect("both are told");
    let (_, all) = running.get("/v1/jobs", ONE).await;
    let lines = all["jobs"].as_array().expect("a list");
    assert_eq!((lines.len(), &lines[0]["state"]), (1, &json!("done")), "it is in the list once");
    running.stop().await;
    let outcomes: Vec<Value> = heard
        .lock()
        .expect("not poisoned")
        .iter()
        .map(|(_, body)| serde_json::from_slice::<Value>(body).expect("JSON")["outcome"].clone())
        .collect();
    let (failed, done) = outcomes.iter().partition::<Vec<&Value>, _>(|outcome| *outcome == "failed");
    assert_eq!(
        (failed.len() + done.len(), done.is_empty(), failed.is_empty()),
        (3, false, false),
        "two, and one that was refused"
    );
    let more = tokio::time::timeout(Duration::ZERO, dead.next()).await;
    assert!(more.is_err(), "one letter for one failure");
    assert!(tokio::time::timeout(Duration::ZERO, results.next()).await.is_err(), "each end is told once");
}

#[tokio::test]
async fn a_receiver_that_never_answers_delays_nobody_else() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let dead = format!("http://{}/hook", silent.local_addr().expect("an address"));
    let _held = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok(connection) = silent.accept().await {
            held.push(connection);
        }
    });
    let (well, heard, _receiver) = receiver(0).await;
    let mut results = farm.broker.consume(Queue::Results).await.expect("a consumer");
    let running = Running::start(&farm, open()).await;
    for n in 0..20 {
        let id = format!("job-{n:02}");
        let (url, token) = if n == 19 { (&well, TWO) } else { (&dead, ADMIN) };
        let mut spec = message(&farm, &id);
        spec.output.url = url::Url::from_directory_path(farm.folder.path().join(&id)).expect("a URL");
        spec.notify = Some(NotifySpec { url: url.parse().expect("a URL"), secret: "a secret of two".to_owned() });
        assert_eq!(running.post("/v1/jobs", token, text(&spec)).await.0, 201);
    }
    for _ in 0..20 {
        next::<Ended>(&mut results).await;
    }
    let called = async {
        while heard.lock().expect("not poisoned").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // One after the other, two at a time, the silent ones would take 15 s each: more than twice the limit.
    timeout(LIMIT, called).await.expect("the one that answers is called");
    running.stop().await;
}
