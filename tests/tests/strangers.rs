//! Strangers: every route of the API, every place in storage and every queue of the broker is tried by whoever has no right to
//! it. With no token, a wrong one or another tenant's nothing is read and nothing is written, and a user of the broker who may
//! only submit does nothing else.

#[path = "strangers/places.rs"]
mod places;
#[path = "strangers/queues.rs"]
mod queues;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use farm::job::Layout;
use serde_json::{Value, json};
use tests::clip::Clip;
use tests::farm::{Farm, Job};
use tests::server::{Answer, Server};
use tests::service::Service;

/// Longest wait for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The only routes that need no token: they say and show what everybody may know.
const OPEN: [&str; 3] = ["/", "/page/{file}", "/v1/openapi.json"];
/// The routes of the API as its description has them, each with the methods that it knows.
const ROUTES: [(&str, &[&str]); 12] = [
    ("/", &["GET", "HEAD"]),
    ("/page/{file}", &["GET", "HEAD"]),
    ("/v1/openapi.json", &["GET", "HEAD"]),
    ("/v1/jobs", &["GET", "HEAD", "POST"]),
    ("/v1/jobs/{id}", &["GET", "HEAD"]),
    ("/v1/jobs/{id}/cancel", &["POST"]),
    ("/v1/jobs/{id}/retry", &["POST"]),
    ("/v1/jobs/{id}/output", &["DELETE"]),
    ("/v1/jobs/{id}/output/{path}", &["GET", "HEAD"]),
    ("/v1/events", &["GET", "HEAD"]),
    ("/v1/workers", &["GET", "HEAD"]),
    ("/v1/encoders", &["GET", "HEAD"]),
];
/// The methods that are tried on all of them.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"];
/// The pages of the admin port as `farm/src/admin.rs` has them.
const ADMIN_ROUTES: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

/// Tokens of two tenants and of an operator.
const A: &str = "the token of tenant a";
const B: &str = "the token of tenant b";
const OPERATOR: &str = "the token of the operator";

/// What A has: a job that is done, one that has failed, and one that no worker has begun.
const DONE: &str = "film-7c31d0";
const FAILED: &str = "film-9b02aa";
const ACTIVE: &str = "film-e5d84f";
const IDS: [&str; 3] = [DONE, FAILED, ACTIVE];
/// The only job that B may submit.
const REEL: &str = "reel-1";
/// Below which A's results are.
const OUTPUT: &str = "a/output-of-a/";
/// What is secret in the message of A's job: in the URLs of source and call, in a header, and the key of the call.
const QUERY: &str = "query-secret-c0de41";
const HEADER: &str = "header-secret-1f6b97";
const KEY: &str = "call-secret-83aa5d";
/// What nobody but A is to hear of.
const HIDDEN: [&str; 10] = [DONE, FAILED, ACTIVE, "output-of-a", "source-of-a", QUERY, HEADER, KEY, A, OPERATOR];

/// Paths that are not those of routes, or are them in disguise. `{escaped}` is a name with every letter escaped.
const TRICKS: &[&str] = &[
    "/page",
    "/page/",
    "/page/index.html",
    "/page/../v1/jobs/{id}",
    "/page/..%2fpage.rs",
    "/v1",
    "/v1/",
    "/v2/jobs",
    "/v1/jobs/",
    "/v1//jobs",
    "//v1/jobs",
    "/v1/jobs//",
    "/v1/jobs//cancel",
    "/V1/JOBS",
    "/v1/JOBS/{id}",
    "/v1%2fjobs",
    "/v1/jobs%2f{id}",
    "/v1/job%73/{id}",
    "/v1/jobs/{ID}",
    "/v1/jobs/{escaped}",
    "/v1/jobs/{escaped}/cancel",
    "/v1/jobs/{escaped}/retry",
    "/v1/jobs/{id}/",
    "/v1/jobs/{id}/.",
    "/v1/jobs/{id}//cancel",
    "/v1/jobs/{id}/cancel/",
    "/v1/jobs/{id}/CANCEL",
    "/v1/jobs/{id}%2fcancel",
    "/v1/jobs/{id}/output",
    "/v1/jobs/{id}/output/",
    "/v1/jobs/{id}/output/%2fmaster.m3u8",
    "/v1/jobs/{id}/output/../spec.json",
    "/v1/jobs/{id}/output/..%2f..%2fspec.json",
    "/v1/jobs/{id}/output?path=master.m3u8",
    "/v1/jobs/{escaped}/output/master.m3u8",
    "/v1/events/",
    "/v1/events/{id}",
    "/v1/workers/{id}",
    "/v1/jobs/{id}/spec.json",
    "/v1/jobs/{id}%2fspec.json",
    "/v1/jobs/{id}.json",
    "/v1/jobs/{id};tenant=a",
    "/v1/jobs/{id}%00",
    "/v1/jobs/{id}%20",
    "/v1/jobs/{id}%ff",
    "/v1/jobs/{id}?tenant=a",
    "/v1/jobs/{id}?/../",
    "/v1/jobs/{id}#/x",
    "/v1/jobs/./{id}",
    "/v1/jobs/../jobs/{id}",
    "/v1/jobs/%2e%2e/jobs/{id}",
    "/v1/jobs/..%2f{id}",
    "/v1/jobs/..%2fjobs%2f{id}",
    "/v1/jobs/..%2f..%2fterm%2f0",
    "/v1/jobs/..",
    "/v1/jobs/*",
    "/v1/jobs/{id}/../../jobs",
    "/v1/openapi.json/{id}",
    "/v1/openapi.json/../jobs/{id}",
    "/state/jobs/{id}/spec.json",
    "/metrics",
    "/healthz",
    "/readyz",
    "v1/jobs/{id}",
    "http://elsewhere.example/v1/jobs/{id}",
];

/// Queries of lists.
const LISTS: [&str; 11] = [
    "",
    "?",
    "?tenant=a",
    "?tenant=%61",
    "?tenant=",
    "?state=active&tenant=a",
    "?state=ended&tenant=a&limit=1000",
    "?after={id}",
    "?after={id}&tenant=a&limit=1",
    "?tenant=b&tenant=a",
    "?tenant[]=a",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// What came back.
struct Said {
    status: u16,
    /// All of it, head and body.
    whole: String,
}

impl Said {
    fn body(&self) -> &str {
        self.whole.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }

    fn json(&self) -> Result<Value> {
        serde_json::from_str(self.body()).with_context(|| self.whole.clone())
    }

    /// The jobs of a list.
    fn jobs(&self) -> Result<Vec<Value>> {
        let list = self.json()?;
        Ok(list["jobs"].as_array().with_context(|| self.whole.clone())?.clone())
    }

    /// Whether nothing of A is in it but what stood in the message that was sent.
    fn told_nothing(&self, sent: &str) -> Result<()> {
        for hidden in HIDDEN {
            ensure!(!self.whole.contains(hidden) || sent.contains(hidden), "{hidden} is told: {}", self.whole);
        }
        Ok(())
    }
}

/// Sends a request just as it is written here: a client would mend its path and its headers.
fn ask(address: &str, (method, path): (&str, &str), headers: &[String], body: &str) -> Result<Said> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}");
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(ANSWER_WAIT))?;
    socket.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes())?;
    let mut whole = Vec::new();
    socket.take(ANSWER_BYTES_MAX).read_to_end(&mut whole).with_context(|| format!("{method} {path}"))?;
    let whole = String::from_utf8_lossy(&whole).into_owned();
    let status = whole.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Said { status: status.with_context(|| format!("{method} {path}: not HTTP: {whole}"))?, whole })
}

fn get(farm: &Farm, token: &str, path: &str) -> Result<Said> {
    ask(farm.api(), ("GET", path), &[bearer(token)], "")
}

/// Submits a job.
fn submit(farm: &Farm, token: &str, message: &Value) -> Result<Said> {
    let body = message.to_string();
    let said = ask(farm.api(), ("POST", "/v1/jobs"), &[bearer(token)], &body)?;
    said.told_nothing(&body)?;
    Ok(said)
}

/// A farm with two tenants, each with a place of its own, and an operator.
fn two_tenants() -> Result<Farm> {
    let farm = Farm::new()?;
    let (a, b) = (farm.url("a/")?, farm.url("b/")?);
    farm.set_tenants(&format!(
        "[[tenants]]\nname = 'a'\ntoken = '{A}'\nplaces = ['{a}']\n[[tenants]]\nname = 'b'\ntoken = '{B}'\nplaces = ['{b}']\n\
         [[tenants]]\nname = 'operator'\ntoken = '{OPERATOR}'\nadmin = true\n"
    ))?;
    Ok(farm)
}

/// The smallest job.
fn tiny(id: &str) -> Job {
    let job = Job::new(id, 4, Layout::Segments);
    Job { clip: Clip { audio: false, ..job.clip.clone() }, ..job }
}

/// The message of such a job.
fn message(id: &str, source: &str, output: &str) -> Value {
    json!({
        "version": 1, "id": id, "source": {"url": source}, "output": {"url": output},
        "ladder": {"rungs": [{"height": 240}]}, "segment_seconds": 4, "chunk_seconds": 4
    })
}

/// Everything in storage, but for the term, which changes when a scheduler was cut off for a while.
fn objects(farm: &Farm) -> Result<BTreeMap<String, Bytes>> {
    let mut objects = BTreeMap::new();
    for key in farm.keys("")?.into_iter().filter(|key| !key.starts_with("state/term/")) {
        let content = farm.object(&key)?.with_context(|| format!("{key} is listed and not there"))?;
        objects.insert(key, content);
    }
    Ok(objects)
}

/// Whether nothing was changed or deleted, and nothing is new but what B's own job has.
fn nothing_was_written(farm: &Farm, before: &BTreeMap<String, Bytes>) -> Result<()> {
    let after = objects(farm)?;
    for (key, content) in before {
        ensure!(after.get(key) == Some(content), "{key} was changed or deleted");
    }
    let new: Vec<&String> = after.keys().filter(|key| !before.contains_key(*key) && !key.contains(REEL)).collect();
    ensure!(new.is_empty(), "{new:?} were written");
    Ok(())
}

/// The paths of a route: with each of A's jobs, where it is about one.
fn paths(route: &str) -> BTreeSet<String> {
    let named = route.replace("{file}", "app.js").replace("{path}", "master.m3u8");
    IDS.iter().map(|id| named.replace("{id}", id)).collect()
}

/// Whoever has no token, or does not send it as one is sent: in words, and the headers.
fn strangers() -> Vec<(&'static str, Vec<String>)> {
    let wrong = "no token of anybody";
    let basic = STANDARD.encode(format!("a:{A}"));
    vec![
        ("no token", vec![]),
        ("an empty token", vec!["Authorization: Bearer".to_owned()]),
        ("a wrong token", vec![bearer(wrong)]),
        ("a token cut short", vec![bearer(A.trim_end_matches('a'))]),
        ("a token with more behind", vec![bearer(&format!("{A}a"))]),
        ("a token in capitals", vec![bearer(&A.to_uppercase())]),
        ("a token in quotes", vec![bearer(&format!("'{A}'"))]),
        ("two tokens in one", vec![bearer(&format!("{wrong}, Bearer {A}"))]),
        ("a wrong token before a right one", vec![bearer(wrong), bearer(A)]),
        ("another's token before a right one", vec![bearer(B), bearer(A)]),
        ("a password", vec![format!("Authorization: Basic {basic}")]),
        ("another scheme", vec![format!("Authorization: Token {A}")]),
        ("no scheme", vec![format!("Authorization: {A}")]),
        ("other headers", ["X-Authorization", "Proxy-Authorization", "Cookie"].map(|name| format!("{name}: Bearer {A}")).into()),
        ("names alone", ["X-Tenant", "X-Remote-User", "X-Forwarded-User"].map(|name| format!("{name}: a")).into()),
    ]
}

/// Has A's first two jobs come to their ends; the message of the first, which is full of secrets.
fn have_jobs_end(farm: &Farm) -> Result<Value> {
    let films = Server::start(Answer::File(tiny(DONE).clip.file()?))?;
    let calls = Server::start(Answer::Status(204))?;
    let output = farm.url(&format!("{OUTPUT}{DONE}/"))?;
    let mut done = message(DONE, &films.url(&format!("source-of-a.mp4?key={QUERY}")), &output);
    done["source"]["headers"] = json!({ "x-key": HEADER });
    done["notify"] = json!({"url": calls.url(&format!("ended?key={QUERY}")), "secret": KEY});
    farm.put("a/source-of-a.mp4", b"this is no film".to_vec())?;
    let failed = message(FAILED, &farm.url("a/source-of-a.mp4")?, &farm.url(&format!("{OUTPUT}{FAILED}/"))?);
    for message in [&done, &failed] {
        let said = submit(farm, A, message)?;
        ensure!(said.status == 201, "{}", said.whole);
    }
    let (made, broken) = (farm.ended(&tiny(DONE))?, farm.ended(&tiny(FAILED))?);
    ensure!(made["done"].is_object() && broken["failed"].is_object(), "{made} {broken}\n{}", farm.logs());
    // What is looked for below is there to be found.
    let spec = farm.object(&format!("state/jobs/{DONE}/spec.json"))?.context("no spec")?;
    let spec = String::from_utf8_lossy(&spec);
    ensure!([QUERY, HEADER, KEY].iter().all(|secret| spec.contains(*secret)), "{spec}");
    Ok(done)
}

/// Has A's last job wait for a worker, of which there is none.
fn have_a_job_wait(farm: &Farm) -> Result<()> {
    let waits = message(ACTIVE, &farm.url("a/source-of-a.mp4")?, &farm.url(&format!("{OUTPUT}{ACTIVE}/"))?);
    let said = submit(farm, A, &waits)?;
    ensure!(said.status == 201, "{}", said.whole);
    farm.until("it waits for a worker", || Ok(get(farm, A, &format!("/v1/jobs/{ACTIVE}"))?.json()?["state"] == "waiting"))
}

/// How A's jobs stand, as A is told.
fn statuses(farm: &Farm) -> Result<Vec<Value>> {
    let status = |id: &&str| {
        let said = get(farm, A, &format!("/v1/jobs/{id}"))?;
        ensure!(said.status == 200, "{}", said.whole);
        said.json()
    };
    IDS.iter().map(status).collect()
}

#[test]
fn strangers_and_other_tenants_get_nothing_from_any_route() -> Result<()> {
    let mut farm = two_tenants()?;
    let (scheduler, mut worker) = (farm.scheduler()?, farm.worker()?);
    let of_a = have_jobs_end(&farm)?;
    the_admin_port_holds_nothing(&farm, &scheduler)?;
    the_admin_port_holds_nothing(&farm, &worker)?;
    ensure!(worker.stop(Duration::from_secs(30))?.success(), "{}", farm.logs());
    have_a_job_wait(&farm)?;
    farm.put("b/source.mp4", b"this is no film either".to_vec())?;
    let (stood, before) = (statuses(&farm)?, objects(&farm)?);
    no_token_opens_a_route(&farm)?;
    no_other_path_leads_in(&farm)?;
    what_another_tenant_submits_is_its_own(&farm, &of_a)?;
    another_tenants_token_opens_no_job(&farm)?;
    lists_hold_what_is_the_callers(&farm)?;
    results_and_events_are_for_their_tenant(&farm)?;
    let stands = statuses(&farm)?;
    ensure!(stood == stands, "A's jobs are not as they were: {stood:?} {stands:?}\n{}", farm.logs());
    nothing_was_written(&farm, &before)?;
    the_admin_port_holds_nothing(&farm, &scheduler)?;
    a_token_that_is_taken_back_is_nobodys(&farm)?;
    let logs = farm.logs();
    for secret in [QUERY, HEADER, KEY, A, B, OPERATOR] {
        ensure!(!logs.contains(secret), "{secret} stands in a log:\n{logs}");
    }
    Ok(())
}

/// While the scheduler runs.
fn a_token_that_is_taken_back_is_nobodys(farm: &Farm) -> Result<()> {
    farm.set_tenants(&format!("[[tenants]]\nname = 'a'\ntoken = '{A}'\nplaces = ['{}']\n", farm.url("a/")?))?;
    farm.until("B is nobody", || Ok(get(farm, B, "/v1/jobs")?.status == 401))?;
    ensure!(get(farm, A, "/v1/jobs")?.status == 200 && get(farm, OPERATOR, "/v1/jobs")?.status == 401);
    Ok(())
}

fn no_token_opens_a_route(farm: &Farm) -> Result<()> {
    let job = message("film-new", &farm.url("a/source-of-a.mp4")?, &farm.url("a/new/")?).to_string();
    let token = A.replace(' ', "%20");
    let in_query = format!("?token={token}&access_token={token}&authorization=Bearer%20{token}");
    for (who, headers) in strangers() {
        for (route, known) in ROUTES {
            for (path, query) in paths(route).into_iter().flat_map(|path| [(path.clone(), ""), (path, in_query.as_str())]) {
                for method in METHODS {
                    let body = if method == "POST" { job.as_str() } else { "" };
                    let said = ask(farm.api(), (method, &format!("{path}{query}")), &headers, body)?;
                    let wanted = match known.contains(&method) {
                        true if OPEN.contains(&route) => 200,
                        true => 401,
                        false => 405,
                    };
                    ensure!(said.status == wanted, "{who}: {method} {path}{query}: {}", said.whole);
                    said.told_nothing("")?;
                }
            }
        }
    }
    Ok(())
}

fn no_other_path_leads_in(farm: &Farm) -> Result<()> {
    for id in IDS {
        let escaped: String = id.bytes().map(|byte| format!("%{byte:02x}")).collect();
        // A disguise that works, for whom it may.
        let said = get(farm, A, &format!("/v1/jobs/{escaped}"))?;
        ensure!(said.status == 200, "{}", said.whole);
        for trick in TRICKS {
            let path = trick.replace("{id}", id).replace("{ID}", &id.to_uppercase()).replace("{escaped}", &escaped);
            for (method, headers) in ["GET", "POST", "DELETE"].into_iter().flat_map(|way| [(way, vec![]), (way, vec![bearer(B)])])
            {
                let said = ask(farm.api(), (method, &path), &headers, "")?;
                ensure!((400..500).contains(&said.status), "{method} {path}: {}", said.whole);
                said.told_nothing("")?;
            }
        }
    }
    Ok(())
}

/// Whoever a message names, it is for whoever sends it; a name that is taken and a place of another are not to be had.
fn what_another_tenant_submits_is_its_own(farm: &Farm, of_a: &Value) -> Result<()> {
    let (source, output) = (farm.url("b/source.mp4")?, farm.url("b/reel/")?);
    let mut reel = message(REEL, &source, &output);
    for (tenant, status) in [("a", 201), ("operator", 200), ("b", 200)] {
        reel["tenant"] = tenant.into();
        let said = submit(farm, B, &reel)?;
        ensure!(said.status == status, "for {tenant}: {}", said.whole);
    }
    let path = format!("/v1/jobs/{REEL}");
    let (own, others) = (get(farm, B, &path)?, get(farm, A, &path)?);
    ensure!(own.status == 200 && own.json()?["tenant"] == "b", "{}", own.whole);
    ensure!(others.status == 404, "{}", others.whole);
    for id in IDS {
        let mut taken = message(id, &source, &output);
        for tenant in ["a", "b"] {
            taken["tenant"] = tenant.into();
            let said = submit(farm, B, &taken)?;
            ensure!(said.status == 409, "{}", said.whole);
        }
    }
    let mut same = of_a.clone();
    same["tenant"] = "a".into();
    for message in [of_a, &same] {
        let said = submit(farm, B, message)?;
        ensure!(said.status == 400, "{}", said.whole);
    }
    Ok(())
}

fn another_tenants_token_opens_no_job(farm: &Farm) -> Result<()> {
    let ways = [vec![bearer(B)], vec![format!("authorization: BEARER  {B} ")]];
    for headers in ways {
        for (route, known) in ROUTES.into_iter().filter(|(route, _)| route.contains("{id}")) {
            for path in paths(route).into_iter().flat_map(|path| [format!("{path}?tenant=a"), path]) {
                for method in METHODS {
                    let said = ask(farm.api(), (method, &path), &headers, "")?;
                    let wanted = if known.contains(&method) { 404 } else { 405 };
                    ensure!(said.status == wanted, "{method} {path}: {}", said.whole);
                    said.told_nothing("")?;
                }
            }
        }
    }
    Ok(())
}

fn lists_hold_what_is_the_callers(farm: &Farm) -> Result<()> {
    let ids = |token: &str, query: &str| -> Result<BTreeSet<String>> {
        let jobs = get(farm, token, &format!("/v1/jobs{query}"))?.jobs()?;
        Ok(jobs.iter().filter_map(|job| Some(job["id"].as_str()?.to_owned())).collect())
    };
    let (of_a, of_b) = (BTreeSet::from(IDS.map(str::to_owned)), BTreeSet::from([REEL.to_owned()]));
    ensure!(ids(A, "")? == of_a && ids(A, "?tenant=b")? == of_a && ids(OPERATOR, "?tenant=a")? == of_a, "{:?}", ids(A, "")?);
    ensure!(ids(B, "")? == of_b && ids(B, "?tenant=a")? == of_b, "{:?}", ids(B, "")?);
    for (list, id) in LISTS.iter().flat_map(|list| IDS.map(|id| (list, id))) {
        let path = format!("/v1/jobs{}", list.replace("{id}", id));
        let said = get(farm, B, &path)?;
        said.told_nothing("")?;
        match said.status {
            200 => ensure!(said.jobs()?.iter().all(|job| job["tenant"] == "b"), "{path}: {}", said.whole),
            status => ensure!(status == 400, "{path}: {}", said.whole),
        }
        let head = ask(farm.api(), ("HEAD", &path), &[bearer(B)], "")?;
        ensure!(head.status == said.status && head.body().is_empty(), "HEAD {path}: {}", head.whole);
    }
    Ok(())
}

/// What was made is given to whom it was made for, and of that what its playlists lead to; and so is word of jobs.
fn results_and_events_are_for_their_tenant(farm: &Farm) -> Result<()> {
    let output = |id: &str, key: &str| format!("/v1/jobs/{id}/output/{key}");
    let made: Vec<String> = farm.keys(&format!("{OUTPUT}{DONE}/"))?;
    let keys: Vec<&str> = made.iter().filter_map(|key| key.split(&format!("{DONE}/")).nth(1)).collect();
    ensure!(keys.contains(&"master.m3u8") && keys.iter().any(|key| key.ends_with(".m4s")), "{made:?}");
    for path in keys.iter().map(|key| output(DONE, key)) {
        let (own, others, nobodys) = (get(farm, A, &path)?, get(farm, B, &path)?, ask(farm.api(), ("GET", &path), &[], "")?);
        ensure!(own.status == 200, "{path}: {}", own.whole);
        ensure!((others.status, nobodys.status) == (404, 401), "{path}: {} {}", others.whole, nobodys.whole);
        others.told_nothing("")?;
    }
    for (id, key) in [(DONE, "spec.json"), (DONE, "..%2f..%2fsource-of-a.mp4"), (FAILED, "master.m3u8"), (ACTIVE, "master.m3u8")]
    {
        let said = get(farm, A, &output(id, key))?;
        ensure!(said.status == 404, "{id}/{key}: {}", said.whole);
    }
    for path in ["/v1/events?once=true", "/v1/workers", "/v1/encoders"] {
        let said = get(farm, B, path)?;
        ensure!(said.status == 200, "{path}: {}", said.whole);
        said.told_nothing("")?;
    }
    let (own, all) = (get(farm, A, "/v1/events?once=true")?, get(farm, OPERATOR, "/v1/events?once=true")?);
    ensure!(own.whole.contains(ACTIVE) && !own.whole.contains(REEL), "{}", own.whole);
    ensure!(all.whole.contains(ACTIVE) && all.whole.contains(REEL), "{}", all.whole);
    for secret in [QUERY, HEADER, KEY] {
        ensure!(!own.whole.contains(secret) && !all.whole.contains(secret), "{secret} is told: {} {}", own.whole, all.whole);
    }
    Ok(())
}

/// It asks nobody who they are: nothing may stand there that is not for everybody.
fn the_admin_port_holds_nothing(farm: &Farm, service: &Service) -> Result<()> {
    let [.., (_, storage_key)] = farm.s3.environment();
    let broker = farm.broker.url();
    for path in ADMIN_ROUTES {
        let said = ask(service.admin(), ("GET", path), &[], "")?;
        ensure!(said.status == 200, "{path}: {}", said.whole);
        said.told_nothing("")?;
        for secret in [storage_key.as_str(), broker.as_str(), B] {
            ensure!(!said.whole.contains(secret), "{path} tells a secret: {}", said.whole);
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let said = ask(service.admin(), (method, path), &[bearer(OPERATOR)], "")?;
            ensure!(said.status == 405, "{method} {path}: {}", said.whole);
        }
    }
    let others = ["/", "/v1/jobs", "/metrics/", "//metrics", "/METRICS", "/metrics/../v1/jobs", "/debug", "/config", "/env"];
    for path in others.into_iter().map(str::to_owned).chain(IDS.map(|id| format!("/v1/jobs/{id}"))) {
        let said = ask(service.admin(), ("GET", &path), &[bearer(OPERATOR)], "")?;
        ensure!(said.status == 404 && said.body().is_empty(), "{path}: {}", said.whole);
    }
    Ok(())
}

/// A route by what follows `.route(`: its path, and the methods that it knows.
fn route(code: &str) -> Option<(&str, BTreeSet<&'static str>)> {
    let (path, handlers) = code.strip_prefix('"')?.split_once('"')?;
    let handlers = handlers.lines().next()?;
    let mut known: BTreeSet<&'static str> =
        METHODS.into_iter().filter(|method| handlers.contains(&format!("{}(", method.to_lowercase()))).collect();
    // Whoever answers GET answers HEAD.
    if known.contains("GET") {
        known.insert("HEAD");
    }
    Some((path, known))
}

/// How routes may come that nobody looks for here.
const OTHER_WAYS: [&str; 5] = [".nest(", ".nest_service(", ".merge(", ".route_service(", ".fallback_service("];

/// The routes of a router's code.
fn routes(code: &str) -> Result<BTreeMap<&str, BTreeSet<&'static str>>> {
    let found = code.split(".route(").skip(1).map(|code| route(code).with_context(|| format!("no route: {code}")));
    found.collect()
}

/// The routes of the API by its description.
fn described() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let description = scheduler::api::description();
    let paths = description["paths"].as_object().context("no paths")?;
    let known = |methods: &Value| -> BTreeSet<String> {
        let known = methods.as_object().into_iter().flat_map(|methods| methods.keys()).map(|method| method.to_uppercase());
        // Whoever answers GET answers HEAD.
        known.flat_map(|method| if method == "GET" { vec![method, "HEAD".to_owned()] } else { vec![method] }).collect()
    };
    Ok(paths.iter().map(|(path, methods)| (path.clone(), known(methods))).collect())
}

#[test]
fn the_tables_of_routes_are_those_of_the_program() -> Result<()> {
    let api = fs::read_to_string(root().join("scheduler/src/api.rs"))?;
    let admin = fs::read_to_string(root().join("farm/src/admin.rs"))?;
    for way in OTHER_WAYS {
        ensure!(!api.contains(way) && !admin.contains(way), "routes come by {way} too: tell these tests");
    }
    // Router and description are made of one table, of which the router takes all.
    ensure!(
        api.matches(".route(").count() == 1 && api.contains("pages.route(route.path(), answerer(route))"),
        "routes come from elsewhere too: tell these tests"
    );
    let of = |known: &[&str]| -> BTreeSet<String> { known.iter().map(|method| (*method).to_owned()).collect() };
    let table = BTreeMap::from(ROUTES.map(|(route, known)| (route.to_owned(), of(known))));
    ensure!(described()? == table, "{:?} are routes, {table:?} are tried", described()?);
    let pages: BTreeSet<&str> = routes(&admin)?.into_keys().collect();
    ensure!(pages == BTreeSet::from(ADMIN_ROUTES), "{pages:?} are on the admin port");
    Ok(())
}
