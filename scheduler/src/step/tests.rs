//! A job step by step, with storage as a value.

use farm::job::{Layout, Make, PosterSpec, Publishing, StoryboardSpec};
use farm::media::MediaInfo;
use farm::task::Token;

use super::*;
use crate::plan::plan;
use crate::testing::{marker, picture, sound, source, spec};

fn info() -> MediaInfo {
    source(vec![picture(640, 360, "25", 30)], vec![sound(1, 48_000, 30)])
}

fn new_job(layout: Layout) -> JobState {
    let mut spec = spec();
    spec.output.layout = layout;
    spec.chunk_seconds = Some(8);
    JobState::new(JobId::try_from("job".to_owned()).expect("an id"), Life::FIRST, spec)
}

fn due(next: &Next) -> Vec<(String, u32, u64)> {
    let Next::Run(due) = next else { panic!("tasks, not {next:?}") };
    due.iter().map(|due| (due.task.to_string(), due.attempt, due.wait_ms)).collect()
}

/// Does what is next as storage and workers would, one task at a time, until the job ends. What was done, in order.
fn live(mut job: JobState, info: &MediaInfo) -> (JobState, Vec<String>) {
    let mut log = Vec::new();
    for _ in 0..100 {
        let next = step(&job);
        assert_eq!(next, step(&job.clone()), "a function of its argument");
        match next {
            Next::Clear => {
                log.push("clear".to_owned());
                job.cleared = true;
            }
            Next::Run(due) => {
                let task = due.first().expect("a task").task.clone();
                log.push(task.to_string());
                let plan = job.plan.clone().unwrap_or_else(|| plan(&job.spec, info).expect("a plan"));
                let made = marker(&plan, info, &task, &Token::random(), &job.markers);
                job.markers.insert(task, made);
            }
            Next::StorePlan(plan) => {
                log.push("plan".to_owned());
                job.plan = Some(*plan);
            }
            Next::Open(documents) => {
                log.extend(documents.into_iter().map(|document| format!("open {}", document.key)));
                job.opened = true;
            }
            Next::StoreSeal(seal) => {
                log.push("seal".to_owned());
                job.seal = Some(seal);
            }
            Next::Publish { documents, result } => {
                log.extend(documents.into_iter().map(|document| document.key));
                job.result = Some(result);
            }
            Next::Finish(result) => job.result = Some(result),
            Next::Close(_) => return (job, log),
            Next::Halt(failure) => panic!("{failure}"),
        }
    }
    panic!("it never ends: {log:?}");
}

#[test]
fn in_stages_a_rung_and_the_sound_are_published_before_the_other_rungs_are_made() {
    let publish = Publishing::InStages;
    let spec = JobSpec { publish, chunk_seconds: Some(8), ..new_job(Layout::Both).spec };
    let (job, log) = live(JobState { spec, ..new_job(Layout::Both) }, &info());
    let place = |what: &str| log.iter().position(|done| done == what).unwrap_or_else(|| panic!("no {what} in {log:?}"));
    let opened = place("open master.m3u8");
    assert!(place("open single-file.m3u8") < opened && place("open v240/index.m3u8") < opened);
    assert_eq!(log.iter().filter(|done| done.starts_with("open master")).count(), 1);
    assert!(log[..opened].iter().any(|done| done == "pack-v240") && log[..opened].iter().any(|done| done == "audio-0"));
    assert!(!log[..opened].iter().any(|done| done.starts_with("video-")), "{log:?}");
    assert!(
        opened < place("video-00000")
            && place("video-00000") < place("seal")
            && log.last().is_some_and(|last| last == "master.m3u8")
    );
    let seal = job.seal.clone().expect("a seal");
    let ids: Vec<&str> = seal.renditions.iter().map(|rendition| rendition.id.0.as_str()).collect();
    assert_eq!(ids, ["v360", "v240", "a0"]);
    // What is published again at the end is what was published before.
    let (stage, first) =
        first_seal(&JobState { seal: None, ..job.clone() }, job.plan.as_ref().expect("a plan")).expect("made").expect("fits");
    for document in documents(&stage, &first, None)
        .expect("documents")
        .iter()
        .filter(|document| document.key != keys::MASTER && document.key != keys::FILES_MASTER)
    {
        assert!(sealed_documents(&job).expect("a report").expect("sealed").contains(document), "{}", document.key);
    }
}

#[test]
fn a_job_goes_from_probe_to_master_in_this_order() {
    let (job, log) = live(new_job(Layout::Segments), &info());
    let expected = [
        "clear",
        "probe",
        "plan",
        "audio-0",
        "video-00000",
        "video-00001",
        "video-00002",
        "video-00003",
        "seal",
        "v360/index.m3u8",
        "v360/i-frames.m3u8",
        "v240/index.m3u8",
        "v240/i-frames.m3u8",
        "a0/index.m3u8",
        "report.json",
        "master.m3u8",
    ];
    assert_eq!(log, expected);
    let Some(JobResult::Done(summary)) = job.result else { panic!("done") };
    assert_eq!(summary.renditions.len(), 3);
    assert!(summary.duration_ns >= 30_000_000_000);
}

#[test]
fn still_pictures_are_a_task_of_their_own_and_end_in_a_track_and_the_report() {
    let mut job = new_job(Layout::Segments);
    (job.spec.poster, job.spec.storyboard) = (Some(PosterSpec::default()), Some(StoryboardSpec::default()));
    let (job, log) = live(job, &info());
    let place = |name: &str| log.iter().position(|entry| entry == name).unwrap_or_else(|| panic!("no {name} in {log:?}"));
    assert!(place("plan") < place("stills") && place("stills") < place("seal"));
    assert!(place("seal") < place("stills/storyboard.vtt") && place("stills/storyboard.vtt") < place("report.json"));
    let stills = job.seal.expect("a seal").stills.expect("pictures");
    assert!(stills.poster.is_some() && stills.sheets.len() == 1);
}

#[test]
fn still_pictures_alone_end_in_their_track_and_the_report_and_in_no_playlist() {
    let mut job = new_job(Layout::Both);
    (job.spec.make, job.spec.publish) = (Make::Stills, Publishing::InStages);
    (job.spec.poster, job.spec.storyboard) = (Some(PosterSpec::default()), Some(StoryboardSpec::default()));
    let (job, log) = live(job, &info());
    assert_eq!(log, ["clear", "probe", "plan", "stills", "seal", "stills/storyboard.vtt", "report.json"]);
    let result = job.result.as_ref().expect("an end");
    let JobResult::Done(summary) = result else { panic!("done") };
    assert_eq!((&summary.master, summary.renditions.len(), summary.duration_ns), (&None, 0, 30_000_000_000));
    let ended = result.ended(&job.job, &job.spec);
    assert_eq!((ended.outcome, ended.master), (JobOutcome::Done, None));
}

#[test]
fn results_of_before_are_read() {
    let old = r#"{"done":{"master":"master.m3u8","renditions":["v240"],"duration_ns":1,"bytes":2,"warnings":[]}}"#;
    let JobResult::Done(summary) = serde_json::from_str(old).expect("a result") else { panic!("done") };
    assert_eq!(summary.master.as_deref(), Some("master.m3u8"));
}

#[test]
fn parts_are_joined_when_all_of_a_rendition_are_there() {
    let (job, log) = live(new_job(Layout::SingleFile), &info());
    let packs: Vec<_> = log.iter().filter(|entry| entry.starts_with("pack") || entry.starts_with("video")).collect();
    let pictures = ["video-00000", "video-00001", "video-00002", "video-00003", "pack-v360", "pack-v240"];
    assert_eq!(packs[0], "pack-a0", "the sound needs no picture: {log:?}");
    assert_eq!(packs[1..], pictures);
    assert!(matches!(job.result, Some(JobResult::Done(_))));
}

#[test]
fn every_missing_task_is_due_at_once() {
    let mut job = new_job(Layout::Segments);
    job.plan = Some(plan(&job.spec, &info()).expect("a plan"));
    let tasks: Vec<_> = due(&step(&job)).into_iter().map(|(task, attempt, _)| (task, attempt)).collect();
    let names = ["audio-0", "video-00000", "video-00001", "video-00002", "video-00003"];
    assert_eq!(tasks, names.map(|name| (name.to_owned(), 1)));
}

fn failed(codes: &[Code]) -> JobState {
    let mut job = JobState { cleared: true, ..new_job(Layout::Segments) };
    for (attempt, code) in (1..).zip(codes) {
        job.note_failure(TaskId::Probe, attempt, Failure::new(*code, format!("attempt {attempt}")));
    }
    job
}

#[test]
fn a_task_is_tried_again_as_long_as_there_is_hope() {
    let probe = |attempt, wait_ms| vec![("probe".to_owned(), attempt, wait_ms)];
    assert_eq!(due(&step(&failed(&[]))), probe(1, 0));
    assert_eq!(due(&step(&failed(&[Code::ChildCrashed]))), probe(2, 1000));
    assert_eq!(due(&step(&failed(&[Code::ChildCrashed, Code::SourceUnreadable]))), probe(3, 10_000));
    assert_eq!(
        due(&step(&failed(&[Code::Interrupted, Code::Cancelled, Code::Interrupted]))),
        probe(1, 0),
        "stopped is not failed"
    );
    let verdict = |codes: &[Code]| match step(&failed(codes)) {
        Next::Finish(JobResult::Failed { failure, at: Some(at) }) => {
            assert_eq!(at, FailedTask { task: TaskId::Probe, attempts: codes.len().try_into().expect("a few") });
            format!("failed: {}", failure.message)
        }
        Next::Halt(failure) => format!("halted: {}", failure.message),
        other => panic!("{other:?}"),
    };
    assert_eq!(verdict(&[Code::ChildCrashed, Code::ChildStalled, Code::ChildCrashed]), "failed: attempt 3");
    assert_eq!(verdict(&[Code::Internal, Code::Internal, Code::Internal]), "failed: attempt 3");
    assert_eq!(verdict(&[Code::NotMedia]), "failed: attempt 1");
    assert_eq!(verdict(&[Code::UnsupportedCodec, Code::ChildCrashed]), "failed: attempt 1");
    assert_eq!(verdict(&[Code::StorageFull]), "halted: attempt 1");
    assert_eq!(verdict(&[Code::MissingElement]), "halted: attempt 1");
    assert_eq!(verdict(&[Code::StorageUnavailable; 3]), "halted: attempt 3");
}

#[test]
fn an_attempt_that_was_begun_and_lost_counts_once_and_so_the_job_ends() {
    let mut job = failed(&[]);
    for attempt in 1..=ATTEMPTS_MAX {
        assert_eq!(due(&step(&job)), [("probe".to_owned(), attempt, wait_ms(attempt))]);
        let failure = lost(&job, &TaskId::Probe, attempt, 1500).expect("it counts");
        assert_eq!(failure.message, format!("attempt {attempt} at probe was begun, and nothing was heard of it for 1500 s"));
        job.note_failure(TaskId::Probe, attempt, failure);
        assert_eq!(lost(&job, &TaskId::Probe, attempt, 1500), None, "it is known");
    }
    let Next::Finish(JobResult::Failed { failure, .. }) = step(&job) else { panic!("a failure") };
    assert_eq!(failure.code, Code::ChildStalled);
    let (done, _) = live(new_job(Layout::Segments), &info());
    assert_eq!(lost(&done, &TaskId::Video(0), 1, 1500), None, "it is done");
    assert_eq!(lost(&failed(&[Code::ChildCrashed; 2]), &TaskId::Probe, 1, 1500), None, "a later attempt has failed since");
}

#[test]
fn a_failure_of_a_task_that_is_done_means_nothing() {
    let mut job = failed(&[Code::ChildCrashed, Code::NotMedia]);
    let info = info();
    let plan = plan(&job.spec, &info).expect("a plan");
    job.markers.insert(TaskId::Probe, marker(&plan, &info, &TaskId::Probe, &Token::random(), &job.markers));
    assert_eq!(step(&job), Next::StorePlan(Box::new(plan)));
}

#[test]
fn a_source_that_cannot_be_planned_fails_the_job() {
    let mut job = JobState { cleared: true, ..new_job(Layout::Segments) };
    let playable = plan(&job.spec, &info()).expect("a plan");
    let empty = MediaInfo { video: vec![], audio: vec![], ..info() };
    job.markers.insert(TaskId::Probe, marker(&playable, &empty, &TaskId::Probe, &Token::random(), &job.markers));
    let Next::Finish(JobResult::Failed { failure, at: None }) = step(&job) else { panic!("a failure of no task") };
    assert_eq!(failure.code, Code::NoDecodableStream);
}

#[test]
fn a_cancelled_job_ends_without_publishing_unless_it_has_ended() {
    let (mut job, _) = live(new_job(Layout::Segments), &info());
    job.cancelled = true;
    assert!(matches!(step(&job), Next::Close(JobResult::Done(_))), "too late");
    job.result = None;
    assert_eq!(step(&job), Next::Finish(JobResult::Cancelled), "also when sealed");
}

#[test]
fn markers_that_do_not_fit_fail_the_job_by_name() {
    let (mut job, _) = live(new_job(Layout::Segments), &info());
    (job.result, job.seal) = (None, None);
    let probe = job.markers[&TaskId::Probe].clone();
    job.markers.insert(TaskId::Video(1), probe);
    let Next::Finish(JobResult::Failed { failure, .. }) = step(&job) else { panic!("a failure") };
    assert_eq!(failure.code, Code::Internal);
    assert!(failure.message.contains("video-00001"), "{failure}");
}
