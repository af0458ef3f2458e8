//! A farm of processes: scheduler and workers as they are run, over a real RabbitMQ and a real S3 server. Killed in mid-job,
//! it loses nothing and does little twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use farm::job::Layout;
use serde_json::Value;
use tests::check;
use tests::clip::Clip;
use tests::collector::Collector;
use tests::farm::{Farm, Job, LIMIT, TOKEN, Ways};

/// Has a job put its result into a bucket, beside somebody's object, and has it deleted again.
fn what_is_deleted_is_gone_from_storage(farm: &Farm, input: &str) -> Result<()> {
    let (prefix, beside) = ("out/s3/", "out/s3/mine.txt");
    farm.put(beside, b"mine".to_vec())?;
    let to = farm.url(prefix)?;
    let submit = ["submit", input, "--output", &to, "--id", "kept", "--chunk-seconds", "4", "--poster", "--wait", "--json"];
    let (code, job) = farm.run(&submit)?;
    ensure!(code == Some(0) && job["state"] == "done", "{code:?} {job}\n{}", farm.logs());
    ensure!(farm.object("out/s3/master.m3u8")?.is_some(), "{:?}", farm.keys(prefix)?);
    // It is done a moment before it is closed, which is waited for.
    for _ in 0..2 {
        let (code, told) = farm.run(&["delete", "kept", "--json"])?;
        ensure!(code == Some(0) && told["id"] == "kept", "{code:?} {told}");
        ensure!(farm.keys(prefix)? == [beside], "{:?}", farm.keys(prefix)?);
    }
    let (_, status) = farm.run(&["status", "kept", "--json"])?;
    ensure!(status["state"] == "done" && status["deleted_ms"].is_u64() && status["result"].is_null(), "{status}");
    // Of many each is told on a line.
    let (code, told) = farm.run(&["delete", "kept", "none", "--json"])?;
    ensure!(code == Some(2) && told["id"] == "none" && told["error"]["code"] == "invalid_request", "{told}");
    let (code, told) = farm.run(&["encoders", "--farm", "--json"])?;
    ensure!(code == Some(0) && told["classes"][0]["class"] == "cpu" && told["classes"][0]["workers"] == 2, "{told}");
    Ok(())
}

/// How many executions wrote media of a rendition.
fn executions(output: &Path, rendition: &str) -> Result<usize> {
    let folders = std::fs::read_dir(output.join(rendition))?.flatten().filter(|entry| entry.path().is_dir());
    Ok(folders.map(|entry| entry.file_name()).collect::<BTreeSet<_>>().len())
}

#[test]
fn a_job_goes_through_a_farm_of_processes_and_each_stops_when_told() -> Result<()> {
    let mut farm = Farm::new()?;
    let (code, found) = farm.run(&["doctor", "--json"])?;
    ensure!(code == Some(0) && found["ok"] == true, "{found}");
    let mut scheduler = farm.scheduler()?;
    let mut workers = [farm.worker()?, farm.worker()?];
    let clip = Clip::new("25", 12).size(426, 240);
    let (input, output) = (clip.file()?, farm.folder.path().join("out"));
    let (input, to) = (input.to_str().context("a path")?, output.to_str().context("a path")?);
    let submit = ["submit", input, "--output", to, "--id", "film", "--chunk-seconds", "4", "--wait", "--json"];
    let (code, job) = farm.run(&submit)?;
    ensure!(code == Some(0) && job["state"] == "done", "{code:?} {job}\n{}", farm.logs());
    ensure!(check::faults(&output, &clip)?.is_empty(), "{:?}", check::faults(&output, &clip)?);
    let (_, listed) = farm.run(&["status", "--json"])?;
    ensure!(listed["jobs"][0]["id"] == "film" && listed["jobs"][0]["tenant"] == "me", "{listed}");
    for (arguments, code) in [(["status", "none", "--json"], 2), (["retry", "film", "--json"], 2)] {
        let (got, told) = farm.run(&arguments)?;
        ensure!(got == Some(code) && told["error"]["code"] == "invalid_request", "{arguments:?}: {got:?} {told}");
    }
    what_is_deleted_is_gone_from_storage(&farm, input)?;
    for worker in &mut workers {
        ensure!(worker.stop(Duration::from_secs(30))?.success(), "a worker that drains:\n{}", farm.logs());
    }
    ensure!(scheduler.stop(Duration::from_secs(30))?.success(), "a scheduler that stops:\n{}", farm.logs());
    let (code, told) = farm.run(&["status", "film", "--json"])?;
    ensure!(code == Some(3) && told["error"]["code"] == "scheduler_unavailable", "{told}");
    let secrets = [farm.broker.url(), TOKEN.to_owned(), "AWS_SECRET".to_owned()];
    ensure!(!secrets.iter().any(|secret| farm.logs().contains(secret.as_str())), "a secret in the logs");
    Ok(())
}

#[test]
fn schedulers_and_workers_that_are_killed_lose_nothing_and_do_little_twice() -> Result<()> {
    let mut farm = Farm::new()?;
    let mut first = farm.scheduler()?;
    let (mut unlucky, _steady) = (farm.worker()?, farm.worker()?);
    let clip = Clip::new("25", 30).size(640, 360);
    let (input, output) = (clip.file()?, farm.folder.path().join("out"));
    let (input, to) = (input.to_str().context("a path")?, output.to_str().context("a path")?);
    let submit = ["submit", input, "--output", to, "--id", "film", "--chunk-seconds", "4", "--json"];
    ensure!(farm.run(&submit)?.0 == Some(0), "{}", farm.logs());
    farm.until("3 tasks are done", || {
        let (_, status) = farm.run(&["status", "film", "--json"])?;
        Ok(status["progress"]["tasks_done"].as_u64().is_some_and(|done| done >= 3))
    })?;
    first.kill()?;
    let _second = farm.scheduler()?;
    unlucky.kill()?;
    let _other = farm.worker()?;
    let (code, job) = farm.run(&["status", "film", "--follow", "--json"])?;
    ensure!(code == Some(0) && job["state"] == "done", "{code:?} {job}\n{}", farm.logs());
    // What the killed worker had begun is left to the janitor, who is not waited for here.
    let faults = check::faults(&output, &clip)?;
    ensure!(faults.iter().all(|fault| fault.contains("named by no playlist")), "{faults:?}");
    let made = executions(&output, "v360")?;
    ensure!((8..=9).contains(&made), "{made} executions for 8 chunks and one killed worker:\n{}", farm.logs());
    Ok(())
}

/// The job's span of a trace, and all of them by their ids. All that OTLP/JSON asks of a request is looked at.
fn spans(request: &Value) -> Result<(Value, BTreeMap<String, Value>)> {
    let all = request["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().context("no spans")?;
    let is_hex = |id: &Value, length: usize| {
        id.as_str().is_some_and(|id| id.len() == length && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
    };
    let mut by_id = BTreeMap::new();
    for span in all {
        ensure!(is_hex(&span["traceId"], 32) && span["traceId"] == all[0]["traceId"] && is_hex(&span["spanId"], 16), "{span}");
        ensure!(span["kind"] == 1 && span["name"].as_str().is_some_and(|name| !name.is_empty()), "{span}");
        for attribute in span["attributes"].as_array().context("no attributes")? {
            let value = attribute["value"].as_object().context("no value")?;
            ensure!(attribute["key"].is_string() && value.len() == 1 && value.values().all(Value::is_string), "{attribute}");
        }
        by_id.insert(span["spanId"].as_str().context("an id")?.to_owned(), span.clone());
    }
    ensure!(by_id.len() == all.len(), "an id stands twice: {request}");
    let mut roots = all.iter().filter(|span| span.get("parentSpanId").is_none());
    let root = roots.next().context("no root")?;
    ensure!(roots.next().is_none() && root["name"] == "job", "{request}");
    let ns =
        |span: &Value, end: &str| -> Result<u64> { Ok(span[format!("{end}TimeUnixNano")].as_str().context("a time")?.parse()?) };
    for span in all {
        let parent = match span["parentSpanId"].as_str() {
            Some(parent) => by_id.get(parent).with_context(|| format!("its parent is not there: {span}"))?,
            None => root,
        };
        let (start, end) = (ns(span, "start")?, ns(span, "end")?);
        ensure!(ns(parent, "start")? <= start && start <= end && end <= ns(parent, "end")?, "{span} is not within {parent}");
    }
    Ok((root.clone(), by_id))
}

#[test]
fn a_collector_is_sent_a_trace_of_each_job_and_a_farm_goes_on_when_it_is_gone() -> Result<()> {
    const HEADER: &str = "hush-that-is-for-the-collector";
    let (mut farm, collector) = (Farm::new()?, Collector::start()?);
    let ways = Ways { collector: Some((collector.url(), format!("authorization=Bearer%20{HEADER}"))), ..Ways::default() };
    let (scheduler, _worker) = (farm.scheduler_by(&ways)?, farm.worker()?);
    let (good, poison) = (Job::new("good", 8, Layout::Segments), Job::new("poison", 4, Layout::Segments));
    farm.send(&good)?;
    ensure!(farm.ended(&good)?["done"].is_object(), "{}", farm.logs());
    let message = farm.message(&poison)?;
    farm.put("source/poison.mp4", b"this is no film".to_vec())?;
    farm.broker.publish(tests::farm::JOBS, message.to_string().as_bytes())?;
    ensure!(farm.ended(&poison)?["failed"].is_object(), "{}", farm.logs());
    farm.until("both traces came", || Ok(collector.received().len() >= 2))?;
    let received = collector.received();
    for request in &received {
        let head = request.head.to_ascii_lowercase();
        ensure!(head.starts_with("post /v1/traces http/1.1") && head.contains("content-type: application/json"), "{head}");
        ensure!(head.contains(&format!("authorization: bearer {HEADER}")), "{head}");
    }
    let made: Value = serde_json::from_slice(&received[0].body)?;
    let (root, all) = spans(&made)?;
    ensure!(root["status"]["code"] == 1, "{root}");
    let is_task = |span: &&Value| span["parentSpanId"] == root["spanId"];
    let tasks: BTreeSet<String> = all.values().filter(is_task).map(|span| span["name"].to_string().replace('"', "")).collect();
    let marked: BTreeSet<String> = farm.marked(&good)?.iter().map(ToString::to_string).collect();
    ensure!(tasks == marked, "{tasks:?} instead of {marked:?}");
    ensure!(all.len() == 1 + 2 * marked.len(), "one attempt each: {made}");
    let workers = made.to_string().matches("\"shoal.worker\"").count();
    ensure!(workers == marked.len(), "each attempt names its worker: {made}");
    let broken: Value = serde_json::from_slice(&received[1].body)?;
    let (root, all) = spans(&broken)?;
    let other = &made["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"];
    ensure!(root["status"]["code"] == 2 && root["traceId"] != *other, "{root}");
    let wrong: Vec<&Value> = all.values().filter(|span| span["name"] == "attempt").map(|span| &span["status"]).collect();
    ensure!(wrong.iter().all(|status| status["code"] == 2 && status["message"] == root["status"]["message"]), "{broken}");
    ensure!(!wrong.is_empty() && !broken.to_string().contains("hush"), "{broken}");
    drop(collector);
    let late = good.named("late");
    farm.send(&late)?;
    ensure!(farm.ended(&late)?["done"].is_object(), "{}", farm.logs());
    scheduler.until_series("shoal_traces_total", "failed", LIMIT, |count| count >= 1.0)?;
    ensure!(scheduler.series("shoal_traces_total", "sent") == Some(2.0), "{}", farm.logs());
    ensure!(!farm.logs().contains("hush"), "a secret in the logs");
    Ok(())
}
