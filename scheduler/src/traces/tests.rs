//! What a trace says of a job.

use std::collections::{BTreeMap, BTreeSet};

use farm::Failure;
use farm::task::{Object, Outcome};
use serde_json::Value;

use super::*;
use crate::step::{FailedTask, Summary};

const TOKENS: [&str; 4] = ["0000000000000001", "0000000000000002", "0000000000000003", "0000000000000004"];

fn job() -> JobId {
    JobId::try_from("film".to_owned()).expect("an id")
}

fn name(attempt: u32, token: usize) -> Name {
    Name { attempt, token: TOKENS[token].to_owned() }
}

fn done(task: TaskId, at_ms: u64, wall_ms: u64, token: usize) -> Execution {
    let token = serde_json::from_value(TOKENS[token].into()).expect("a token");
    let object = Object { key: "v720/x/v720.mp4".to_owned(), bytes: 5, sha256: String::new() };
    let cost = Cost { cpu_ms: 7, wall_ms, rss_kib: 9 };
    let outcome = Outcome::Packed { object };
    let marker = Marker { task: task.clone(), token, outcome, cost, device: None, attempt: Some(2), worker: None };
    Execution::done(task, at_ms, marker)
}

fn failed(task: TaskId, at_ms: u64, wall_ms: Option<u64>, name: Name) -> Execution {
    let failure = Failure::new(Code::ChildCrashed, "https://me:hush@tube.example/a.mkv: it crashed");
    Execution::failed(task, at_ms, name, FailedAttempt { failure, wall_ms, worker: None })
}

fn facts(result: JobResult, executions: Vec<Execution>) -> Facts {
    let times = Times { began_ms: 1_000, planned_ms: Some(2_000), sealed_ms: None, ended_ms: 9_000 };
    Facts { job: job(), life: Life::FIRST, tenant: "me".to_owned(), times, result, executions, left_out: 0 }
}

fn made() -> JobResult {
    let summary = Summary { master: None, renditions: Vec::new(), duration_ns: 4_000_000_000, bytes: 5, warnings: Vec::new() };
    JobResult::Done(summary)
}

/// The spans of a trace, the job's first.
fn spans(facts: &Facts) -> Vec<Value> {
    let request = serde_json::to_value(trace(facts)).expect("JSON");
    request["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans").clone()
}

fn text<'a>(span: &'a Value, field: &str) -> &'a str {
    span[field].as_str().unwrap_or_default()
}

/// From when to when a span is, in ms.
fn when(span: &Value) -> (u64, u64) {
    let ms = |field| text(span, field).parse::<u64>().expect("a number") / MS_NS;
    (ms("startTimeUnixNano"), ms("endTimeUnixNano"))
}

fn attribute<'a>(span: &'a Value, key: &str) -> Option<&'a str> {
    let found = span["attributes"].as_array()?.iter().find(|attribute| attribute["key"] == key)?;
    found["value"].as_object()?.values().next()?.as_str()
}

/// Name and times of every span but the job's, in order.
fn told(facts: &Facts) -> Vec<(String, (u64, u64))> {
    spans(facts).iter().skip(1).map(|span| (text(span, "name").to_owned(), when(span))).collect()
}

#[test]
fn every_span_is_in_its_parent_and_has_an_id_of_its_own() {
    let executions = vec![
        done(TaskId::Probe, 2_000, 500, 0),
        failed(TaskId::Video(0), 4_000, Some(1_000), name(1, 1)),
        done(TaskId::Video(0), 8_000, 2_000, 2),
        // It took longer than the job is old, and came after its end.
        done(TaskId::Audio(0), 9_500, 20_000, 3),
    ];
    let facts = facts(made(), executions);
    let spans = spans(&facts);
    let by_id: BTreeMap<&str, &Value> = spans.iter().map(|span| (text(span, "spanId"), span)).collect();
    assert_eq!((spans.len(), by_id.len()), (1 + 3 + 4, 1 + 3 + 4));
    let is_hex = |id: &str, length: usize| id.len() == length && id.bytes().all(|b| b.is_ascii_hexdigit());
    for span in &spans {
        assert!(is_hex(text(span, "spanId"), 16), "{span}");
        assert_eq!(text(span, "traceId"), trace_id(&job(), Life::FIRST));
        let (start, end) = when(span);
        assert!(start <= end, "{span}");
        match span.get("parentSpanId") {
            None => assert_eq!((text(span, "name"), start, end), ("job", 1_000, 9_000)),
            Some(parent) => {
                let parent = by_id[parent.as_str().expect("an id")];
                assert!(when(parent).0 <= start && end <= when(parent).1, "{span} in {parent}");
                assert_eq!(text(span, "name") == "attempt", text(parent, "name") != "job");
            }
        }
    }
    assert!(is_hex(text(&spans[0], "traceId"), 32));
    assert_eq!(spans[0]["events"].as_array().map(Vec::len), Some(1), "only what happened is told");
    assert_eq!(attribute(&spans[0], "shoal.media_ms"), Some("4000"));
    let expected = [
        ("probe", (1_500, 2_000)),
        ("attempt", (1_500, 2_000)),
        ("video-00000", (3_000, 8_000)),
        ("attempt", (3_000, 4_000)),
        ("attempt", (6_000, 8_000)),
        ("audio-0", (1_000, 9_000)),
        ("attempt", (1_000, 9_000)),
    ];
    assert_eq!(told(&facts), expected.map(|(name, when)| (name.to_owned(), when)));
}

#[test]
fn the_same_job_has_the_same_trace_and_another_life_another() {
    let executions = [done(TaskId::Probe, 2_000, 500, 0), done(TaskId::Text, 3_000, 500, 1)];
    let turned = facts(made(), executions.iter().rev().cloned().collect());
    let facts = facts(made(), executions.to_vec());
    assert_eq!(trace(&facts), trace(&turned), "in whatever order they are found");
    // printf shoal/film/1 | sha256sum
    let digest = Sha256::digest(b"shoal/film/1");
    let expected: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(trace_id(&job(), Life::FIRST), expected);
    let next = Facts { life: Life::FIRST.next(), ..facts.clone() };
    let ids = |facts: &Facts| spans(facts).iter().map(|span| text(span, "spanId").to_owned()).collect::<BTreeSet<_>>();
    assert!(ids(&facts).is_disjoint(&ids(&next)));
}

#[test]
fn what_failed_says_its_code_and_no_message() {
    let executions = vec![
        done(TaskId::Probe, 2_000, 500, 0),
        failed(TaskId::Video(0), 3_000, Some(500), name(1, 1)),
        failed(TaskId::Video(0), 4_000, Some(500), name(2, 2)),
        failed(TaskId::Video(0), 5_000, Some(500), name(3, 3)),
    ];
    let at = Some(FailedTask { task: TaskId::Video(0), attempts: 3 });
    let failure = Failure::new(Code::ChildCrashed, "https://me:hush@tube.example/a.mkv: it crashed");
    let facts = facts(JobResult::Failed { failure, at }, executions);
    let spans = spans(&facts);
    let failed: Vec<&Value> = spans.iter().filter(|span| span["status"]["code"] == 2).collect();
    assert_eq!(failed.len(), 1 + 1 + 3, "the job, its task, and every attempt");
    assert!(failed.iter().all(|span| span["status"]["message"] == "child_crashed"), "{failed:?}");
    assert_eq!(attribute(&spans[0], "shoal.failed_task"), Some("video-00000"));
    let whole = serde_json::to_string(&trace(&facts)).expect("JSON");
    assert!(!whole.contains("hush") && !whole.contains("tube.example"), "{whole}");
    let cancelled = Facts { result: JobResult::Cancelled, ..facts };
    assert_eq!(self::spans(&cancelled)[0].get("status"), None, "nobody's mistake");
}

#[test]
fn an_execution_without_an_end_lasts_until_another_begins_and_one_that_was_given_up_is_told_once() {
    let video = TaskId::Video(0);
    // Its worker died; another did it.
    let died = vec![Execution::begun(video.clone(), 2_000, name(1, 0)), done(video.clone(), 8_000, 3_000, 1)];
    let expected = [("video-00000", (2_000, 8_000)), ("attempt", (2_000, 5_000)), ("attempt", (5_000, 8_000))];
    assert_eq!(told(&facts(made(), died)), expected.map(|(name, when)| (name.to_owned(), when)));
    // A scheduler noted that nothing was heard of it, under a token of its own.
    let lost = vec![Execution::begun(video.clone(), 2_000, name(1, 0)), failed(video.clone(), 6_000, None, name(1, 1))];
    let expected = [("video-00000", (2_000, 6_000)), ("attempt", (2_000, 6_000))];
    assert_eq!(told(&facts(JobResult::Cancelled, lost)), expected.map(|(name, when)| (name.to_owned(), when)));
    // Its record was still there when its marker was.
    let both = vec![Execution::begun(video.clone(), 2_000, name(1, 0)), done(video.clone(), 6_000, 3_000, 0)];
    let expected = [("video-00000", (3_000, 6_000)), ("attempt", (3_000, 6_000))];
    assert_eq!(told(&facts(made(), both)), expected.map(|(name, when)| (name.to_owned(), when)));
    // It ran when the job was cancelled.
    let running = facts(JobResult::Cancelled, vec![Execution::begun(video, 2_000, name(1, 0))]);
    let expected = [("video-00000", (2_000, 9_000)), ("attempt", (2_000, 9_000))];
    assert_eq!(told(&running), expected.map(|(name, when)| (name.to_owned(), when)));
}

#[test]
fn what_an_earlier_life_made_is_counted_and_not_told_again() {
    let facts = Facts { left_out: 3, ..facts(made(), vec![done(TaskId::Probe, 900, 500, 0), done(TaskId::Text, 3_000, 500, 1)]) };
    let spans = spans(&facts);
    assert_eq!(attribute(&spans[0], "shoal.tasks_of_earlier_lives"), Some("1"));
    assert_eq!(attribute(&spans[0], "shoal.tasks"), Some("1"));
    assert_eq!(attribute(&spans[0], "shoal.attempts_left_out"), Some("3"));
    assert!(spans.iter().all(|span| text(span, "name") != "probe"));
}

#[test]
fn keys_say_when_a_life_was_and_which_executions_there_were() {
    let (job, life) = (job(), Life::FIRST.next());
    let token = |index: usize| serde_json::from_value::<Token>(TOKENS[index].into()).expect("a token");
    let task = TaskId::Video(3);
    let listed: Vec<Entry> = (1_000..)
        .zip([
            keys::spec(&job),
            keys::plan(&job, 1),
            keys::done(&job, &task),
            keys::result(&job, Life::FIRST),
            keys::fail(&job, Life::FIRST, &task, 1, &token(0)),
            keys::life(&job, life),
            keys::fail(&job, life, &task, 1, &token(1)),
            keys::begun_alone(&job, life, &task, 2, &token(2)),
            keys::fail(&job, life, &task, 1, &token(1)).replace(TOKENS[1], "odd"),
            keys::seal(&job),
            keys::result(&job, life),
        ])
        .map(|(modified_ms, key)| Entry { key, bytes: 1, modified_ms })
        .collect();
    let times = Times { began_ms: 1_005, planned_ms: Some(1_001), sealed_ms: Some(1_009), ended_ms: 1_010 };
    assert_eq!(Times::among(&job, life, &listed), Some(times));
    assert_eq!(Times::among(&job, life.next(), &listed), None, "it has not ended");
    let found = noted(&job, life, &listed);
    let expected = [(1_002, What::Marker), (1_006, What::Failure(name(1, 1))), (1_007, What::Begun(name(2, 2)))];
    assert_eq!(found.iter().map(|noted| (noted.at_ms, noted.what.clone())).collect::<Vec<_>>(), expected);
    assert!(found.iter().all(|noted| noted.task == task));
}
