//! Tasks from delivery to settlement: a folder as storage, the broker of this process, real children.

use super::*;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use farm::broker::Consumer;
use farm::encoder::Device;
use farm::job::Layout;
use farm::plan::RenditionId;
use farm::presence::{Duty, Presence};
use farm::{Class, Life};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use url::Url;

use crate::devices::Devices;
use crate::testing::{child_command, pattern, plan};
use crate::worker::{Drain, Handle, Worker};

#[path = "task/device_tests.rs"]
mod on_devices;

/// A farm of one worker.
struct Bench {
    folder: TempDir,
    state: Storage,
    output: Storage,
    broker: Broker,
    events: Consumer,
    job: JobId,
}

impl Bench {
    async fn new(layout: Layout) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("source.bin"), pattern(0..(3 << 20) + 123)).expect("written");
        let url = |path: &Path| Url::from_file_path(path).expect("absolute");
        let mut spec = JobSpec::new(url(&path("source.bin")), url(&path("out")));
        spec.output.layout = layout;
        let (state, output, broker) = (Storage::folder(&path("state")), Storage::folder(&path("out")), Broker::local());
        let job = JobId::try_from("job-1".to_owned()).expect("a job id");
        let plan = Plan { layout, ..plan() };
        store(&state, &keys::spec(&job), &spec, true).await.expect("stored");
        store(&state, &keys::plan(&job, 1), &plan, true).await.expect("stored");
        let events = broker.consume(Queue::Events).await.expect("a consumer");
        Self { folder, state, output, broker, events, job }
    }

    fn worker(&self, how: &str) -> Handle {
        self.worker_of(1, how)
    }

    fn worker_of(&self, slots: usize, how: &str) -> Handle {
        self.worker_with(Vec::new(), slots, how)
    }

    fn worker_with(&self, devices: Vec<Device>, slots: usize, how: &str) -> Handle {
        let mut settings = Settings::new(slots, child_command(how));
        settings.devices = Devices::These(devices);
        settings.drain_budget = Duration::from_millis(200);
        settings.stall = Duration::from_secs(40);
        Worker::start(settings, self.state.clone(), self.broker.clone()).expect("started")
    }

    /// A worker that dies when its runtime is shut down: not a step of it is done from then on.
    fn mortal_worker(&self) -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let inside = runtime.enter();
        // Dropped, it would stop in an orderly way.
        std::mem::forget(self.worker_of(2, "hang"));
        drop(inside);
        runtime
    }

    fn message(&self, task: TaskId, attempt: u32, class: Class) -> TaskMessage {
        TaskMessage { job: self.job.clone(), task, life: Life::FIRST, attempt, class, epoch: 1, term: 0 }
    }

    async fn send(&self, task: TaskId) {
        self.send_to(Class::Cpu, task, 1).await;
    }

    async fn send_to(&self, class: Class, task: TaskId, attempt: u32) {
        self.broker.publish(Queue::Tasks(class), &self.message(task, attempt, class)).await.expect("published");
    }

    /// The next event, acknowledged.
    async fn event(&mut self) -> Event {
        let delivery = tokio::time::timeout(Duration::from_secs(60), self.events.next()).await;
        let delivery = delivery.expect("an event comes").expect("a working broker");
        let event = delivery.read().expect("an event");
        delivery.ack().await.expect("acknowledged");
        event
    }

    /// Sends a task, awaits that it is done, and returns its marker.
    async fn done(&mut self, task: TaskId) -> Marker {
        self.send(task.clone()).await;
        assert_eq!(self.event().await, Event::TaskDone { job: self.job.clone(), task: task.clone() });
        let marker = self.state.get(&keys::done(&self.job, &task)).await.expect("stored before the event");
        serde_json::from_slice(&marker).expect("a marker")
    }

    /// Keys of all objects of the output.
    async fn objects(&self) -> Vec<String> {
        self.output.list("").await.expect("listed").into_iter().map(|entry| entry.key).collect()
    }

    /// Records of executions that have begun and not ended, without what is before their attempt.
    async fn begun(&self, task: &TaskId) -> Vec<String> {
        let prefix = keys::begun_prefix(&self.job, Life::FIRST, task);
        let listed = self.state.list(&prefix).await.expect("listed");
        listed.into_iter().filter_map(|entry| Some(entry.key.strip_prefix(&prefix)?.to_owned())).collect()
    }

    /// Waits until so many are there.
    async fn begins(&self, task: &TaskId, count: usize) -> Vec<String> {
        let begun = async {
            loop {
                let begun = self.begun(task).await;
                if begun.len() == count {
                    return begun;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), begun).await.expect("an execution begins")
    }

    async fn failures(&self) -> usize {
        self.state.list(&keys::fail_prefix(&self.job, Life::FIRST)).await.expect("listed").len()
    }

    /// Waits until so many objects are stored.
    async fn stored(&self, count: usize) {
        let stored = async {
            while self.objects().await.iter().filter(|key| !key.contains(".tmp")).count() < count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), stored).await.expect("objects are stored as they come");
    }

    /// Whether the tasks queue still holds something, after its worker is gone.
    async fn task_waits(&self) -> bool {
        self.task_waits_for(Class::Cpu).await
    }

    async fn task_waits_for(&self, class: Class) -> bool {
        let mut tasks = self.broker.consume(Queue::Tasks(class)).await.expect("a consumer");
        tokio::time::timeout(Duration::from_millis(300), tasks.next()).await.is_ok()
    }
}

#[tokio::test]
async fn a_marker_names_exactly_the_objects_stored() {
    let mut bench = Bench::new(Layout::Segments).await;
    let worker = bench.worker("honest");
    let marker = bench.done(TaskId::Video(1)).await;
    let Outcome::Encoded { renditions, account } = &marker.outcome else { panic!("{marker:?}") };
    assert_eq!(account.kept, 100);
    assert!(marker.cost.rss_kib > 0 && marker.cost.wall_ms > 0);
    let token = &marker.token;
    let mut named = Vec::new();
    for (made, id) in renditions.iter().zip(["v720", "v360"]) {
        let expected = [format!("{id}/{token}/00002.m4s"), format!("{id}/{token}/00003.m4s")];
        assert_eq!(made.objects.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), expected);
        assert_eq!((made.codecs.as_str(), made.timescale, made.segments.len()), ("avc1.64001F", 12_800, 2));
        for object in made.objects.iter().chain([&made.init]) {
            let content = bench.output.get(&object.key).await.expect("stored");
            let sha256: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!((object.bytes, &object.sha256), (content.len() as u64, &sha256));
            named.push(object.key.clone());
        }
    }
    named.sort();
    assert_eq!(bench.objects().await, named);
    assert_eq!(worker.shutdown().await, Drain::Complete);
    assert!(!bench.task_waits().await, "acknowledged");
}

#[tokio::test]
async fn a_task_that_is_done_already_is_told_again_and_not_done_again() {
    let mut bench = Bench::new(Layout::Segments).await;
    let worker = bench.worker("honest");
    let marker = bench.done(TaskId::Audio(0)).await;
    let objects = bench.objects().await;
    assert_eq!(bench.done(TaskId::Audio(0)).await, marker);
    assert_eq!(bench.objects().await, objects);
    worker.shutdown().await;
}

#[tokio::test]
async fn a_probe_leaves_what_it_found() {
    let mut bench = Bench::new(Layout::Segments).await;
    let worker = bench.worker("honest");
    let marker = bench.done(TaskId::Probe).await;
    assert!(matches!(marker.outcome, Outcome::Probed { info } if info.bytes == (3 << 20) + 123));
    worker.shutdown().await;
    let spec: JobSpec = load(&bench.state, &keys::spec(&bench.job)).await.unwrap_or_else(|_| panic!("stored"));
    let info = crate::probe(&spec.source, &Settings::new(1, child_command("honest"))).await.expect("probed");
    assert_eq!(info.bytes, (3 << 20) + 123);
}

#[tokio::test]
async fn parts_are_packed_into_one_file() {
    let mut bench = Bench::new(Layout::SingleFile).await;
    let worker = bench.worker("honest");
    let mut expected = Vec::new();
    for chunk in [0, 1] {
        let marker = bench.done(TaskId::Video(chunk)).await;
        let Outcome::Encoded { renditions, .. } = marker.outcome else { panic!("no encode") };
        let made = renditions.first().expect("two renditions");
        let [part] = made.objects.as_slice() else { panic!("one part each: {made:?}") };
        assert_eq!(part.bytes, made.segments.iter().map(|segment| segment.bytes).sum::<u64>());
        if chunk == 0 {
            expected.extend(bench.output.get(&made.init.key).await.expect("stored"));
        }
        expected.extend(bench.output.get(&part.key).await.expect("stored"));
    }
    let marker = bench.done(TaskId::Pack(RenditionId("v720".to_owned()))).await;
    let Outcome::Packed { object } = marker.outcome else { panic!("no pack") };
    assert_eq!(bench.output.get(&object.key).await.expect("stored"), Bytes::from(expected));
    assert_eq!(object.key, format!("v720/{}/v720.mp4", marker.token));
    worker.shutdown().await;
}

#[tokio::test]
async fn a_failed_attempt_is_recorded_told_and_leaves_nothing() {
    let mut bench = Bench::new(Layout::Segments).await;
    let worker = bench.worker("segv");
    bench.send(TaskId::Video(0)).await;
    let Event::TaskFailed { attempt: 1, failure, .. } = bench.event().await else { panic!("no failure") };
    assert_eq!(failure.code, Code::ChildCrashed);
    assert!(failure.message.contains("SIGSEGV"), "{failure}");
    let records = bench.state.list(&keys::fail_prefix(&bench.job, Life::FIRST)).await.expect("listed");
    let [record] = records.as_slice() else { panic!("one record: {records:?}") };
    assert!(record.key.starts_with("jobs/job-1/fail/1/video-00000/1-"), "{}", record.key);
    let stored = bench.state.get(&record.key).await.expect("stored");
    let recorded: Failure = serde_json::from_slice(&stored).expect("a failure");
    assert_eq!(recorded, failure);
    let recorded: FailedAttempt = serde_json::from_slice(&stored).expect("a record");
    assert_eq!(recorded.failure, failure);
    assert!(recorded.worker.is_some() && recorded.wall_ms.is_some(), "{recorded:?}");
    assert!(bench.state.get(&keys::done(&bench.job, &TaskId::Video(0))).await.is_err(), "no marker");
    worker.shutdown().await;
    assert_eq!(bench.objects().await, Vec::<String>::new());
    assert!(!bench.task_waits().await, "acknowledged");
}

#[tokio::test]
async fn a_source_that_is_gone_fails_the_attempt_by_name() {
    let mut bench = Bench::new(Layout::Segments).await;
    std::fs::remove_file(bench.folder.path().join("source.bin")).expect("removed");
    let worker = bench.worker("honest");
    bench.send(TaskId::Probe).await;
    let Event::TaskFailed { failure, .. } = bench.event().await else { panic!("no failure") };
    assert_eq!(failure.code, Code::SourceUnreadable);
    assert!(failure.message.contains("source.bin"), "{failure}");
    worker.shutdown().await;
}

#[tokio::test]
async fn a_source_that_was_replaced_since_it_was_probed_is_not_encoded() {
    let mut bench = Bench::new(Layout::Segments).await;
    let worker = bench.worker("honest");
    let Outcome::Probed { info } = bench.done(TaskId::Probe).await.outcome else { panic!("no probe") };
    assert!(info.version.is_some());
    let planned = Plan { source: info.version, ..plan() };
    store(&bench.state, &keys::plan(&bench.job, 1), &planned, false).await.expect("stored");
    bench.done(TaskId::Video(0)).await;
    // As large as before.
    std::fs::write(bench.folder.path().join("source.bin"), pattern(1..(3 << 20) + 124)).expect("written");
    bench.send(TaskId::Video(1)).await;
    let Event::TaskFailed { failure, .. } = bench.event().await else { panic!("no failure") };
    assert_eq!(failure.code, Code::SourceChanged);
    worker.shutdown().await;
}

#[tokio::test]
async fn a_cancelled_job_is_not_begun_and_a_running_one_is_killed() {
    let bench = Bench::new(Layout::Segments).await;
    let worker = bench.worker("half");
    bench.send(TaskId::Video(0)).await;
    bench.stored(4).await;
    store(&bench.state, &keys::cancel(&bench.job, Life::FIRST), &"please", false).await.expect("stored");
    bench.send(TaskId::Video(1)).await;
    // There is one slot: when this is rejected, both before it are settled.
    let mut dead = bench.broker.consume(Queue::Dead).await.expect("a consumer");
    bench.broker.publish(Queue::Tasks(Class::Cpu), &"what?").await.expect("published");
    let rejected = tokio::time::timeout(Duration::from_secs(60), dead.next()).await;
    rejected.expect("settled").expect("a working broker").ack().await.expect("acknowledged");
    assert_eq!(bench.objects().await, Vec::<String>::new(), "its objects are deleted");
    assert_eq!(worker.shutdown().await, Drain::Complete);
    assert_eq!(bench.failures().await, 0, "cancelling is no failure");
    assert!(!bench.task_waits().await, "both acknowledged");
}

#[tokio::test]
async fn a_drain_gives_back_what_it_cannot_finish() {
    let bench = Bench::new(Layout::Segments).await;
    let worker = bench.worker("half");
    bench.send(TaskId::Video(0)).await;
    bench.stored(4).await;
    assert_eq!(worker.shutdown().await, Drain::Interrupted);
    assert_eq!(bench.objects().await, Vec::<String>::new(), "its objects are deleted");
    assert_eq!(bench.failures().await, 0);
    assert!(bench.task_waits().await, "another worker gets it");
}

#[tokio::test]
async fn a_dropped_worker_gives_back_at_once() {
    let bench = Bench::new(Layout::Segments).await;
    let worker = bench.worker("half");
    bench.send(TaskId::Video(0)).await;
    bench.stored(4).await;
    drop(worker);
    assert!(bench.task_waits().await, "another worker gets it");
}

#[tokio::test]
async fn a_task_at_which_workers_die_is_isolated_and_at_last_a_failed_attempt() {
    let mut bench = Bench::new(Layout::Segments).await;
    let task = TaskId::Video(0);
    bench.send(task.clone()).await;
    for death in 1..=4 {
        let worker = bench.mortal_worker();
        let begun = bench.begins(&task, death).await;
        let alone = begun.iter().filter(|name| name.ends_with("-alone")).count();
        assert_eq!(alone, death.saturating_sub(2), "{begun:?}");
        worker.shutdown_background();
    }
    let worker = bench.worker_of(2, "honest");
    let Event::TaskFailed { attempt: 1, failure, .. } = bench.event().await else { panic!("no failure") };
    assert_eq!((failure.code, failure.message.contains("4 workers died")), (Code::ChildCrashed, true), "{failure}");
    assert_eq!((bench.failures().await, bench.begun(&task).await.len()), (1, 0), "evidence becomes a failure");
    // The next attempt begins with a clean slate.
    bench.send_to(Class::Cpu, task.clone(), 2).await;
    assert_eq!(bench.event().await, Event::TaskDone { job: bench.job.clone(), task: task.clone() });
    worker.shutdown().await;
    assert_eq!(bench.begun(&task).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_worker_that_drains_leaves_no_evidence() {
    let mut bench = Bench::new(Layout::Segments).await;
    let task = TaskId::Video(0);
    bench.send(task.clone()).await;
    for _ in 0..5 {
        let worker = bench.worker("hang");
        bench.begins(&task, 1).await;
        assert_eq!(worker.shutdown().await, Drain::Interrupted);
        assert_eq!(bench.event().await, Event::GivenBack { job: bench.job.clone(), task: task.clone() });
        assert_eq!(bench.begun(&task).await, Vec::<String>::new());
    }
    let worker = bench.worker("honest");
    assert_eq!(bench.event().await, Event::TaskDone { job: bench.job.clone(), task });
    worker.shutdown().await;
}

/// As after a lost connection: two deliveries of one task in one process.
#[tokio::test]
async fn a_task_that_comes_again_while_it_is_worked_on_is_not_done_twice() {
    let mut bench = Bench::new(Layout::Segments).await;
    let worker = bench.worker_of(2, "honest");
    for task in [TaskId::Video(0), TaskId::Video(0), TaskId::Audio(0)] {
        bench.send(task).await;
    }
    let events = [bench.event().await, bench.event().await];
    let done = |task| Event::TaskDone { job: bench.job.clone(), task };
    assert_eq!(events, [done(TaskId::Video(0)), done(TaskId::Audio(0))], "each is told of once");
    assert_eq!(worker.shutdown().await, Drain::Complete);
    assert!(!bench.task_waits().await, "both are acknowledged");
    let tokens: std::collections::BTreeSet<_> =
        bench.objects().await.iter().filter_map(|key| Some(key.split('/').nth(1)?.to_owned())).collect();
    assert_eq!(tokens.len(), 2, "one execution of each");
}

#[tokio::test]
async fn what_storage_does_not_let_be_done_is_postponed() {
    let mut bench = Bench::new(Layout::Segments).await;
    let postponed = metrics::worker().tasks.with_label_values(&["audio", "postponed"]);
    // A loop: reading and writing below it fails, and may work some other time.
    let markers = bench.folder.path().join("state").join(keys::done_prefix(&bench.job).trim_end_matches('/'));
    std::os::unix::fs::symlink(&markers, &markers).expect("linked");
    bench.send(TaskId::Audio(0)).await;
    let worker = bench.worker("honest");
    let tried = async {
        while postponed.get() < 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), tried).await.expect("it is tried");
    std::fs::remove_file(&markers).expect("removed");
    let given_back = Event::GivenBack { job: bench.job.clone(), task: TaskId::Audio(0) };
    assert_eq!(bench.event().await, given_back, "the scheduler is told that it was not done");
    let mut last = given_back.clone();
    while last == given_back {
        last = bench.event().await;
    }
    assert_eq!(last, Event::TaskDone { job: bench.job.clone(), task: TaskId::Audio(0) });
    assert_eq!(bench.failures().await, 0);
    worker.shutdown().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_rejected_with_the_reason_and_the_worker_goes_on() {
    let mut bench = Bench::new(Layout::Segments).await;
    let mut dead = bench.broker.consume(Queue::Dead).await.expect("a consumer");
    let worker = bench.worker("honest");
    bench.broker.publish(Queue::Tasks(Class::Cpu), &"what?").await.expect("published");
    bench.send(TaskId::Video(99)).await;
    bench.send(TaskId::Pack(RenditionId("v1".to_owned()))).await;
    let other = JobId::try_from("other".to_owned()).expect("a job id");
    let message = TaskMessage { job: other, ..bench.message(TaskId::Probe, 1, Class::Cpu) };
    bench.broker.publish(Queue::Tasks(Class::Cpu), &message).await.expect("published");
    for words in ["cannot be understood", "has no task video-00099", "has no task pack-v1", "jobs/other/spec.json is not there"] {
        let delivery =
            tokio::time::timeout(Duration::from_secs(20), dead.next()).await.expect("rejected").expect("a working broker");
        let letter = String::from_utf8_lossy(delivery.body()).into_owned();
        assert!(letter.contains(words), "{words}: {letter}");
        delivery.ack().await.expect("acknowledged");
    }
    bench.done(TaskId::Audio(0)).await;
    worker.shutdown().await;
}

#[tokio::test]
async fn a_message_of_an_earlier_term_is_dropped_and_the_scheduler_told() {
    let mut bench = Bench::new(Layout::Segments).await;
    let worker = bench.worker("honest");
    let (job, task) = (bench.job.clone(), TaskId::Audio(0));
    bench.state.put(&keys::term(0), bytes::Bytes::from_static(b"5"), Kind::Json).await.expect("stored");
    let message = bench.message(task.clone(), 1, Class::Cpu);
    let of_term = |term| TaskMessage { term, ..message.clone() };
    bench.broker.publish(Queue::Tasks(Class::Cpu), &of_term(4)).await.expect("published");
    assert_eq!(bench.event().await, Event::Stale { job: job.clone(), task: task.clone() });
    assert!(bench.state.get(&keys::done(&job, &task)).await.is_err());
    bench.broker.publish(Queue::Tasks(Class::Cpu), &of_term(5)).await.expect("published");
    assert_eq!(bench.event().await, Event::TaskDone { job: job.clone(), task: task.clone() });
    // What is done is done in any term.
    bench.broker.publish(Queue::Tasks(Class::Cpu), &of_term(4)).await.expect("published");
    assert_eq!(bench.event().await, Event::TaskDone { job: job.clone(), task: task.clone() });
    worker.shutdown().await;
}

#[tokio::test]
async fn progress_is_told_while_a_task_runs() {
    let mut bench = Bench::new(Layout::Segments).await;
    let mut heard = bench.broker.listen();
    let worker = bench.worker("honest");
    let marker = bench.done(TaskId::Video(0)).await;
    let mut told = Vec::new();
    while let Ok(word) = heard.try_recv() {
        let progress = match word {
            Word::Progress(progress) => progress,
            Word::Here(_) => continue,
            Word::Offer(offer) => panic!("nothing is offered: {offer:?}"),
        };
        assert_eq!(progress.token, marker.token);
        told.push(progress.media_ns);
    }
    assert_eq!(told.first(), Some(&0), "at its start");
    assert!(told.contains(&4_000_000_000), "{told:?}");
    worker.shutdown().await;
}

/// What a worker says of itself next.
async fn here(heard: &mut tokio::sync::broadcast::Receiver<Word>) -> Presence {
    let hear = async {
        loop {
            if let Word::Here(presence) = heard.recv().await.expect("a working broker") {
                return presence;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), hear).await.expect("it says something of itself")
}

#[tokio::test]
async fn a_worker_tells_what_it_is_at_and_that_it_drains() {
    let bench = Bench::new(Layout::Segments).await;
    let mut heard = bench.broker.listen();
    let worker = bench.worker_of(2, "hang");
    let first = here(&mut heard).await;
    assert!(first.is_sound(), "{first:?}");
    assert_eq!((first.slots, first.running, first.duty, first.speed), (2, 0, Duty::Taking, None));
    bench.send(TaskId::Video(0)).await;
    let began = Instant::now();
    let busy = here(&mut heard).await;
    assert_eq!((busy.worker, busy.running, busy.duty), (first.worker.clone(), 1, Duty::Taking));
    assert!(began.elapsed() < Duration::from_secs(9), "when it changes, and not when it is time");
    let drained = tokio::spawn(worker.drain(std::future::pending()));
    let draining = here(&mut heard).await;
    assert_eq!((draining.running, draining.duty), (1, Duty::Draining));
    drained.abort();
}

#[tokio::test]
async fn a_worker_tells_how_fast_it_encodes_and_which_devices_work() {
    let mut bench = Bench::new(Layout::Segments).await;
    let mut heard = bench.broker.listen();
    let worker = bench.worker("honest");
    bench.done(TaskId::Video(0)).await;
    let mut last = here(&mut heard).await;
    while last.speed.is_none() {
        last = here(&mut heard).await;
    }
    assert!(last.speed.is_some_and(|speed| speed > 0.0) && last.devices.is_empty(), "{last:?}");
    worker.shutdown().await;
    let node = bench.folder.path().join("node");
    std::fs::write(&node, "").expect("written");
    let worker = bench.worker_with(vec![crate::testing::device(&node)], 2, "by-node");
    while last.devices.is_empty() {
        last = here(&mut heard).await;
    }
    let named = format!("nvenc {}", node.display());
    assert!(named.starts_with(&last.devices[0]) && last.slots == 3, "{named}: {last:?}");
    worker.shutdown().await;
}

#[tokio::test]
async fn a_marker_of_another_execution_condemns_our_objects_and_our_own_does_not() {
    let bench = Bench::new(Layout::Segments).await;
    let spawner = Spawner::start().expect("a thread");
    let settings = Settings::new(1, child_command("honest"));
    let (running, gate, keeper) = (Running::default(), Gate::new(1), Arc::new(Keeper::new(Vec::new())));
    let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
    let (state, broker) = (bench.state.clone(), bench.broker.clone());
    let speed = Mutex::default();
    let farm = Farm { settings, state, broker, spawner, running, gate, keeper, speed, stop, kill };
    let mut markers = Vec::new();
    for _ in 0..2 {
        let token = Token::random();
        let key = keys::whole(&RenditionId("v720".to_owned()), &token);
        bench.output.put(&key, Bytes::from_static(b"film"), Kind::VideoMp4).await.expect("stored");
        let object = farm::task::Object { key, bytes: 4, sha256: String::new() };
        let task = TaskId::Pack(RenditionId("v720".to_owned()));
        let (outcome, cost) = (Outcome::Packed { object }, Cost::default());
        markers.push(Marker { task, token, outcome, cost, device: None, attempt: Some(1), worker: None });
    }
    let [first, second] = markers.as_slice() else { panic!("two") };
    commit(&farm, &bench.job, &bench.output, first).await.expect("stored");
    commit(&farm, &bench.job, &bench.output, first).await.expect("stored before");
    commit(&farm, &bench.job, &bench.output, second).await.expect("another is there");
    let objects: Vec<String> = first.outcome.objects().into_iter().map(|object| object.key.clone()).collect();
    assert_eq!(bench.objects().await, objects, "the first execution's object is left alone");
}

/// The media corpus, where there is one.
fn corpus(name: &str) -> Option<Url> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/media").join(name).canonicalize();
    if path.is_err() {
        writeln!(std::io::stderr(), "skipped: no media corpus").expect("written");
    }
    Url::from_file_path(path.ok()?).ok()
}

#[tokio::test]
async fn a_real_film_is_probed_in_a_real_child() {
    let Some(url) = corpus("bbb_480p_30s.mp4") else { return };
    let source = JobSpec::new(url.clone(), url).source;
    let info = crate::probe(&source, &Settings::new(1, child_command("real"))).await.expect("probed");
    let video = info.video.first().expect("a picture");
    assert_eq!((video.width, video.height, video.timing.rate.to_string().as_str()), (854, 480, "24/1"));
    assert!(info.duration_ns.abs_diff(30_000_000_000) < 500_000_000, "{}", info.duration_ns);
}

#[tokio::test]
async fn a_real_film_is_encoded_in_real_children() {
    let Some(url) = corpus("bbb_480p_30s.mp4") else { return };
    let mut bench = Bench::new(Layout::SingleFile).await;
    let spec = JobSpec::new(url, Url::from_file_path(bench.folder.path().join("out")).expect("absolute"));
    store(&bench.state, &keys::spec(&bench.job), &spec, false).await.expect("stored");
    let worker = bench.worker("real");
    let Outcome::Probed { info } = bench.done(TaskId::Probe).await.outcome else { panic!("no probe") };
    let mut plan = Plan { layout: Layout::SingleFile, ..plan() };
    // 48 + 24 frames of the film at 24/s, in segments of one second.
    let (video, found) = (plan.video.as_mut().expect("a picture"), info.video.first().expect("a picture"));
    (video.track, video.rate, video.frames, video.gop_frames, video.segment_frames) =
        (found.track, found.timing.rate, 72, 24, 24);
    video.chunks = vec![
        farm::plan::Chunk { start: 0, end: 48, decode_from_ns: 0 },
        farm::plan::Chunk { start: 48, end: 72, decode_from_ns: 0 },
    ];
    for (rung, (width, height)) in video.rungs.iter_mut().zip([(426, 240), (284, 160)]) {
        (rung.width, rung.height) = (width, height);
    }
    let (audio, found) = (plan.audio.first_mut().expect("sound"), info.audio.first().expect("sound"));
    (audio.track, audio.samples, audio.segment_ns) = (found.track, 3 * 48_000, 1_000_000_000);
    (plan.origin_ns, plan.duration_ns) = (info.video.first().map_or(0, |video| video.timing.start_ns), 3_000_000_000);
    // Room for two frames at the lower rung's 12/s.
    plan.lead_ns = 166_666_667;
    store(&bench.state, &keys::plan(&bench.job, 1), &plan, false).await.expect("stored");
    let mut frames = 0;
    for (task, codec) in [(TaskId::Video(0), "avc1."), (TaskId::Video(1), "avc1."), (TaskId::Audio(0), "mp4a.40.2")] {
        let marker = bench.done(task.clone()).await;
        let Outcome::Encoded { renditions, .. } = marker.outcome else { panic!("no encode") };
        assert!(renditions.iter().all(|made| made.codecs.starts_with(codec)), "{task}: {renditions:?}");
        frames += renditions.first().map_or(0, |made| made.segments.iter().map(|segment| segment.samples).sum());
    }
    assert!((72 + 140..72 + 146).contains(&frames), "72 frames and about 3 s of packets of 1024 samples: {frames}");
    for (rendition, bytes_min) in [("v720", 20_000), ("v360", 8_000), ("a0", 20_000)] {
        let marker = bench.done(TaskId::Pack(RenditionId(rendition.to_owned()))).await;
        let Outcome::Packed { object } = marker.outcome else { panic!("no pack") };
        assert!(object.bytes > bytes_min, "{rendition}: {object:?}");
    }
    worker.shutdown().await;
}
