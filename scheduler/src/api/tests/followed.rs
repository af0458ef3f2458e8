//! What becomes of jobs, as those hear it who follow it, and who the workers are.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use farm::job::JobId;
use farm::keys;
use farm::presence::{Duty, Presence};
use farm::storage::Kind;
use farm::task::{TaskId, Token, Word};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{ADMIN, Act, Farm, LIMIT, ONE, Running, TWO, message, open, text};
use crate::tenants::Register;

/// A stream of events that is read.
struct Events {
    answer: reqwest::Response,
    /// What has come of the next one.
    heard: String,
}

impl Events {
    async fn of(running: &Running, token: &str) -> Self {
        let answer = ask(running, token, "").await;
        assert_eq!(answer.status(), 200);
        for (name, value) in [("content-type", "text/event-stream"), ("cache-control", "no-cache"), ("x-accel-buffering", "no")] {
            assert_eq!(answer.headers()[name], value);
        }
        Self { answer, heard: String::new() }
    }

    /// The next event: its name and what it tells; none when the stream ends.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.heard.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.heard = rest;
                match read(&event) {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let piece = timeout(LIMIT, self.answer.chunk()).await.expect("something comes").ok().flatten()?;
            self.heard.push_str(std::str::from_utf8(&piece).expect("text"));
        }
    }

    /// The next event of a job.
    async fn job(&mut self) -> Value {
        loop {
            let (name, told) = self.next().await.expect("it goes on");
            if name == "job" {
                return told;
            }
        }
    }
}

/// Name and content of an event; none of a comment.
fn read(event: &str) -> Option<(String, Value)> {
    let line = |prefix: &str| event.lines().find_map(|line| line.strip_prefix(prefix));
    Some((line("event: ")?.to_owned(), serde_json::from_str(line("data: ")?).expect("JSON")))
}

async fn ask(running: &Running, token: &str, query: &str) -> reqwest::Response {
    let asked = running.client.get(format!("{}/v1/events{query}", running.base)).bearer_auth(token);
    timeout(LIMIT, asked.send()).await.expect("in time").expect("an answer")
}

/// All that is told at once.
async fn once(running: &Running, token: &str) -> Vec<(String, Value)> {
    let (status, said) = running.get("/v1/events?once=true", token).await;
    assert_eq!(status, 200, "{said}");
    said.as_str().expect("a text").split("\n\n").filter_map(read).collect()
}

/// The names of jobs that are told of.
fn jobs(told: &[(String, Value)]) -> Vec<&str> {
    told.iter().filter(|(name, _)| name == "job").map(|(_, job)| job["id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn a_job_is_followed_to_its_end_by_its_tenant_however_short_it_is_and_nothing_is_told_twice() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let running = Running::start(&farm, open()).await;
    let (mut own, mut others) = (Events::of(&running, ONE).await, Events::of(&running, TWO).await);
    assert_eq!(own.next().await, Some(("workers".to_owned(), json!({ "workers": [] }))), "there is nothing else to tell");
    assert_eq!(running.post("/v1/jobs", ONE, text(&message(&farm, "film"))).await.0, 201);
    let mut heard: Vec<Value> = Vec::new();
    loop {
        let job = own.job().await;
        assert_eq!(heard.iter().find(|before| **before == job), None, "nothing is told twice");
        let has_ended = job["state"] == "done";
        heard.push(job);
        if has_ended {
            break;
        }
    }
    let last = heard.last().expect("the end");
    assert_eq!(*last, running.get("/v1/jobs/film", ONE).await.1, "as the job's own page has it");
    assert!(heard.iter().all(|job| job["id"] == "film"), "{heard:?}");
    // The other hears of its own alone, to whatever end that comes.
    assert_eq!(running.post("/v1/jobs", TWO, text(&message(&farm, "reel"))).await.0, 201);
    assert_eq!(others.job().await["id"], "reel");
    running.stop().await;
    while own.next().await.is_some() {}
}

#[tokio::test]
async fn whoever_asks_once_is_told_how_each_of_its_jobs_stands_that_has_not_ended() {
    let mut farm = Farm::new();
    for _ in 0..16 {
        farm.add_worker(|message| match message.task {
            TaskId::Probe => Act::Do,
            _ if message.job.as_str() == "one-c" => Act::Do,
            _ => Act::Beat,
        });
    }
    let running = Running::start(&farm, open()).await;
    for (id, token, state) in [("one-c", ONE, "done"), ("one-a", ONE, "encoding"), ("two-a", TWO, "encoding")] {
        let mut spec = message(&farm, id);
        spec.output.url = url::Url::from_directory_path(farm.folder.path().join(id)).expect("a URL");
        assert_eq!(running.post("/v1/jobs", token, text(&spec)).await.0, 201);
        running.reach(id, token, state).await;
    }
    let closed = async {
        while farm.active().await > 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, closed).await.expect("closed");
    let told = once(&running, ONE).await;
    assert_eq!(jobs(&told), ["one-a"]);
    let (_, own) = told.iter().find(|(name, _)| name == "job").expect("it is told");
    assert_eq!((&own["state"], &own["tenant"]), (&json!("encoding"), &json!("one")));
    assert_eq!(jobs(&once(&running, TWO).await), ["two-a"]);
    assert_eq!(jobs(&once(&running, ADMIN).await), ["one-a", "two-a"]);
    assert_eq!(told.iter().filter(|(name, _)| name == "workers").count(), 1);
    for (query, token, status) in [("?once=maybe", ONE, 400), ("?twice=true", ONE, 400), ("", "no token of anybody", 401)] {
        assert_eq!(running.get(&format!("/v1/events{query}"), token).await.0, status, "{query}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_job_that_cannot_be_read_holds_up_no_other() {
    let mut farm = Farm::new();
    // One for each: a job that no worker has begun with may not have been looked at by the scheduler either.
    farm.add_worker(|_| Act::Beat);
    farm.add_worker(|_| Act::Beat);
    let running = Running::start(&farm, open()).await;
    for id in ["odd", "sound"] {
        assert_eq!(running.post("/v1/jobs", ONE, text(&message(&farm, id))).await.0, 201);
    }
    running.reach("odd", ONE, "probing").await;
    let spec = keys::spec(&JobId::try_from("odd".to_owned()).expect("an id"));
    farm.state.put(&spec, "no JSON".into(), Kind::Json).await.expect("stored");
    // It ends though that job is never known.
    assert_eq!(jobs(&once(&running, ONE).await), ["sound"]);
    running.stop().await;
}

#[tokio::test]
async fn a_tenant_has_so_many_streams_which_take_no_places_of_its_requests() {
    let farm = Farm::new();
    let running = Running::start(&farm, open()).await;
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(Events::of(&running, ONE).await);
    }
    let (status, refused) = running.get("/v1/events?once=true", ONE).await;
    assert_eq!((status, &refused["code"]), (429, &json!("too_many_requests")));
    running.hear(ONE, 200, "").await;
    assert_eq!(once(&running, TWO).await.len(), 1);
    drop(open.pop());
    let again = async {
        while running.get("/v1/events?once=true", ONE).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LIMIT, again).await.expect("there is a place again");
    running.stop().await;
}

#[tokio::test]
async fn a_stream_ends_when_its_token_is_taken_back() {
    let farm = Farm::new();
    let (file, register) = (Arc::new(Mutex::new(String::new())), Register::new(super::tenants()));
    let read = Arc::clone(&file);
    let following = register.clone().follow(String::new(), move || Ok(read.lock().expect("not poisoned").clone()));
    let following = tokio::spawn(following);
    let running = Running::of(&farm, open(), register).await;
    let (mut gone, mut stays) = (Events::of(&running, ONE).await, Events::of(&running, TWO).await);
    *file.lock().expect("not poisoned") = format!("[[tenants]]\nname = 'two'\ntoken = '{TWO}'\n");
    while gone.next().await.is_some() {}
    running.hear(ONE, 401, "unauthorized").await;
    stays.next().await.expect("it goes on");
    farm.broker.tell(Word::Here(presence(Duty::Taking)));
    let (name, _) = stays.next().await.expect("and on");
    assert_eq!(name, "workers");
    following.abort();
    running.stop().await;
}

fn presence(duty: Duty) -> Presence {
    Presence {
        worker: Token::random(),
        version: "0.1.0".to_owned(),
        slots: 3,
        running: 2,
        duty,
        devices: vec!["vaapi /dev/dri/renderD128".to_owned()],
        speed: Some(1.5),
    }
}

#[tokio::test]
async fn workers_are_told_of_as_they_were_heard() {
    let farm = Farm::new();
    let running = Running::start(&farm, open()).await;
    assert_eq!(running.get("/v1/workers", ONE).await, (200, json!({ "workers": [] })));
    assert_eq!(running.get("/v1/workers", "no token of anybody").await.0, 401);
    let (taking, draining) = (presence(Duty::Taking), Presence { speed: None, devices: Vec::new(), ..presence(Duty::Draining) });
    let unsound = Presence { version: "x".repeat(1000), ..presence(Duty::Taking) };
    let wanted = |presence: &Presence| {
        json!({
            "id": presence.worker, "version": "0.1.0", "slots": 3, "running": 2, "draining": presence.duty == Duty::Draining,
            "devices": presence.devices, "speed": presence.speed,
        })
    };
    let heard = async {
        loop {
            // Before it listens, nothing is heard.
            [&unsound, &taking, &draining].into_iter().for_each(|presence| farm.broker.tell(Word::Here(presence.clone())));
            let (_, said) = running.get("/v1/workers", TWO).await;
            if said["workers"].as_array().expect("a list").len() == 2 {
                return said;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let said = timeout(LIMIT, heard).await.expect("both are heard of");
    let mut all = [wanted(&taking), wanted(&draining)];
    all.sort_by_key(|worker| worker["id"].as_str().map(str::to_owned));
    assert_eq!(said, json!({ "workers": all }));
    assert_eq!(once(&running, ONE).await, [("workers".to_owned(), said)]);
    running.stop().await;
}
