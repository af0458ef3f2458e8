//! The scheduler on a real storage and broker. Only the worker is made up: it does what a worker does with storage and
//! broker, but encodes nothing. Time is the runtime's: it passes when nothing else can happen.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::Poll;

use farm::Class;
use farm::job::{AutoLadder, LadderSpec, Layout, PosterSpec, StoryboardSpec};
use farm::media::MediaInfo;
use farm::plan::Plan;
use farm::task::{Marker, Progress, TaskId, TaskMessage, Word};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::timeout;
use url::Url;

use super::job::{Conduct, News, Stand, drive};
use super::*;
use crate::step::JobResult;
use crate::testing::{marker, picture, sound, source, spec};

mod hardware;
mod stills;

/// Longer than anything here takes, on the runtime's clock.
pub(crate) const LONG: Duration = Duration::from_secs(24 * 3600);

/// What a worker does with a task.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Does it.
    Do,
    /// Fails.
    Fail(Code),
    /// Takes the message and is never heard of again.
    Vanish,
    /// Says how far it is, and never ends.
    Hold,
    /// Says every second that it is at it, and never ends.
    Beat,
    /// Says that it is at it, and then nobody has the message any more: it killed everyone who took it.
    Kill,
    /// Says that it is at it, and gives the message back, since the worker stops.
    GiveBack,
}

/// A farm in folders: state, output, broker, and workers that behave as told.
pub(crate) struct Farm {
    pub(crate) folder: TempDir,
    pub(crate) state: Storage,
    pub(crate) output: Storage,
    pub(crate) broker: Broker,
    pub(crate) workers: JoinSet<()>,
    pub(crate) taken: Arc<Mutex<Vec<(String, u32)>>>,
}

impl Farm {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let state = Storage::folder(&folder.path().join("state"));
        let output = Storage::folder(&folder.path().join("out"));
        Self { folder, state, output, broker: Broker::local(), workers: JoinSet::new(), taken: Arc::default() }
    }

    pub(crate) fn spec(&self, layout: Layout) -> JobSpec {
        let mut spec = spec();
        spec.output.url = Url::from_directory_path(self.folder.path().join("out")).expect("a URL");
        spec.output.layout = layout;
        spec.ladder = LadderSpec::Auto(AutoLadder { max_height: Some(240) });
        spec.chunk_seconds = Some(4);
        spec.id = Some(JobId::try_from("job".to_owned()).expect("an id"));
        spec
    }

    /// Adds a worker.
    pub(crate) fn add_worker(&mut self, act: impl Fn(&TaskMessage) -> Act + Send + 'static) {
        self.add_worker_of(Class::Cpu, act);
    }

    /// Adds a worker that takes tasks of this class.
    fn add_worker_of(&mut self, class: Class, act: impl Fn(&TaskMessage) -> Act + Send + 'static) {
        let (state, broker, taken) = (self.state.clone(), self.broker.clone(), Arc::clone(&self.taken));
        self.workers.spawn(async move {
            let mut tasks = broker.consume(Queue::Tasks(class)).await.expect("a consumer");
            loop {
                let delivery = tasks.next().await.expect("a delivery");
                let message: TaskMessage = delivery.read().expect("a message");
                let term = fetch_if_there::<u64>(&state, &keys::term(PARTITION)).await.expect("storage");
                if message.term < term.unwrap_or(0) {
                    let stale = Event::Stale { job: message.job, task: message.task };
                    broker.publish(Queue::Events, &stale).await.expect("published");
                    delivery.ack().await.expect("acked");
                    continue;
                }
                taken.lock().expect("not poisoned").push((message.task.to_string(), message.attempt));
                let is_done =
                    fetch_if_there::<Marker>(&state, &keys::done(&message.job, &message.task)).await.expect("storage").is_some();
                match act(&message) {
                    _ if is_done => {}
                    Act::Do => {
                        work(&state, &message.job, &message.task).await;
                        let done = Event::TaskDone { job: message.job, task: message.task };
                        broker.publish(Queue::Events, &done).await.expect("published");
                    }
                    Act::Fail(code) => fail(&state, &broker, message, Failure::new(code, "as told")).await,
                    Act::Vanish => {}
                    Act::Kill => broker.tell(word(&message)),
                    Act::GiveBack => {
                        broker.tell(word(&message));
                        let back = Event::GivenBack { job: message.job, task: message.task };
                        broker.publish(Queue::Events, &back).await.expect("published");
                        return;
                    }
                    Act::Beat => loop {
                        broker.tell(word(&message));
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    },
                    Act::Hold => {
                        let (job, task) = (message.job, message.task);
                        broker.tell(Word::Progress(Progress { job, task, token: Token::random(), media_ns: 1_000_000_000 }));
                        std::future::pending::<()>().await;
                    }
                }
                delivery.ack().await.expect("acked");
            }
        });
    }

    fn start(&self) -> Handle {
        Scheduler::start(Settings::for_slots(2), self.state.clone(), self.broker.clone())
    }

    /// How often a task was taken, by attempt.
    pub(crate) fn attempts(&self, task: &str) -> Vec<u32> {
        let taken = self.taken.lock().expect("not poisoned");
        taken.iter().filter(|(name, _)| name == task).map(|(_, attempt)| *attempt).collect()
    }

    pub(crate) async fn put(&self, key: &str) {
        self.output.put(key, bytes::Bytes::from_static(b"old"), Kind::Playlist).await.expect("stored");
    }

    pub(crate) async fn outputs(&self) -> BTreeSet<String> {
        self.output.list("").await.expect("a listing").into_iter().map(|entry| entry.key).collect()
    }

    pub(crate) async fn active(&self) -> usize {
        self.state.list(&keys::active_prefix(PARTITION)).await.expect("a listing").len()
    }
}

/// Word that an execution has just begun.
fn word(message: &TaskMessage) -> Word {
    Word::Progress(Progress { job: message.job.clone(), task: message.task.clone(), token: Token::random(), media_ns: 1 })
}

fn info() -> MediaInfo {
    source(vec![picture(426, 240, "25", 14)], vec![sound(1, 48_000, 14)])
}

/// Does a task as far as others can see: objects of the right size, then the marker.
pub(crate) async fn work(state: &Storage, job: &JobId, task: &TaskId) {
    let info = info();
    let spec: JobSpec = fetch(state, &keys::spec(job)).await.expect("a spec");
    let output = Storage::open(&spec.output.url).expect("a storage");
    let plan = fetch_if_there::<Plan>(state, &keys::plan(job, 1)).await.expect("storage");
    let plan = plan.unwrap_or_else(|| crate::plan::plan(&spec, &info).expect("a plan"));
    let mut markers = std::collections::BTreeMap::new();
    for entry in state.list(&keys::done_prefix(job)).await.expect("a listing") {
        let marker: Marker = fetch(state, &entry.key).await.expect("a marker");
        markers.insert(marker.task.clone(), marker);
    }
    let made = marker(&plan, &info, task, &Token::random(), &markers);
    for object in made.outcome.objects() {
        let content = vec![0; usize::try_from(object.bytes).expect("a size")];
        output.put(&object.key, content.into(), Kind::VideoSegment).await.expect("stored");
    }
    let content = serde_json::to_vec(&made).expect("JSON");
    state.put_new(&keys::done(job, task), content.into(), Kind::Json).await.expect("stored");
}

async fn fail(state: &Storage, broker: &Broker, message: TaskMessage, failure: Failure) {
    let TaskMessage { job, life, task, attempt, .. } = message;
    let record = serde_json::to_vec(&failure).expect("JSON");
    state.put(&keys::fail(&job, life, &task, attempt, &Token::random()), record.into(), Kind::Json).await.expect("stored");
    broker.publish(Queue::Events, &Event::TaskFailed { job, life, task, attempt, failure }).await.expect("published");
}

async fn end(scheduler: &Handle, job: &JobId) -> Result<JobResult, Failure> {
    timeout(LONG, scheduler.wait(job)).await.expect("an end")
}

/// The output is complete: playlists name objects that are there, and nothing else of any execution is.
pub(crate) async fn check_complete(farm: &Farm) {
    let outputs = farm.outputs().await;
    let text =
        |key: String| async move { String::from_utf8(farm.output.get(&key).await.expect("it is there").to_vec()).expect("text") };
    let master = text(keys::MASTER.to_owned()).await;
    let (_, master) = m3u8_rs::parse_master_playlist(master.as_bytes()).expect("a multivariant playlist");
    let playlists = master.variants.iter().map(|variant| variant.uri.clone());
    let mut named = BTreeSet::new();
    for playlist in playlists.chain(master.alternatives.iter().filter_map(|media| media.uri.clone())) {
        let media = text(playlist.clone()).await;
        let (_, media) = m3u8_rs::parse_media_playlist(media.as_bytes()).expect("a media playlist");
        assert!(media.end_list && !media.segments.is_empty());
        let (rendition, _) = playlist.rsplit_once('/').expect("a rendition's playlist");
        let maps = media.segments.iter().filter_map(|segment| segment.map.as_ref()).map(|map| &map.uri);
        named.extend(media.segments.iter().map(|segment| &segment.uri).chain(maps).map(|uri| format!("{rendition}/{uri}")));
    }
    // The report leads to the poster, and the storyboard's track to its sheets.
    if let Ok(track) = farm.output.get(keys::STORYBOARD).await {
        let track = String::from_utf8(track.to_vec()).expect("text");
        let sheets = track.lines().filter_map(|line| line.split_once("#xywh"));
        named.extend(sheets.map(|(uri, _)| format!("{}{uri}", keys::STILLS_FOLDER)));
    }
    let report: serde_json::Value = serde_json::from_str(&text(keys::REPORT.to_owned()).await).expect("a report");
    named.extend(report["stills"]["poster"]["key"].as_str().map(str::to_owned));
    let media: BTreeSet<String> = outputs.iter().filter(|key| keys::token_in(key).is_some()).cloned().collect();
    assert_eq!(media, named);
    assert!(outputs.contains(keys::REPORT));
    assert_eq!(farm.active().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_is_taken_to_its_end_and_only_its_result_is_left() {
    for layout in [Layout::Segments, Layout::SingleFile] {
        let mut farm = Farm::new();
        for stale in [
            "stills/storyboard.vtt",
            "stills/0123456789abcdef/poster.jpg",
            "master.m3u8",
            "v1080/index.m3u8",
            "v1080/i-frames.m3u8",
            "v1080/0123456789abcdef/00000.m4s",
            "t0/index.m3u8",
            "t0/0123456789abcdef/00001.vtt",
            "mine.txt",
            "v1080/mine.mp4",
        ] {
            farm.put(stale).await;
        }
        farm.add_worker(|_| Act::Do);
        farm.add_worker(|_| Act::Do);
        let scheduler = farm.start();
        let spec = farm.spec(layout);
        let spec = JobSpec { poster: Some(PosterSpec::default()), storyboard: Some(StoryboardSpec::default()), ..spec };
        let job = scheduler.submit(spec).await.expect("a job");
        let ended = end(&scheduler, &job).await;
        assert!(matches!(ended, Ok(JobResult::Done(_))), "{ended:?}");
        check_complete(&farm).await;
        let outputs = farm.outputs().await;
        assert!(outputs.contains(keys::STORYBOARD) && outputs.iter().any(|key| key.ends_with("/poster.jpg")), "{outputs:?}");
        assert!(outputs.contains("mine.txt") && outputs.contains("v1080/mine.mp4"), "what is not ours stays");
        assert!(!outputs.contains("v1080/index.m3u8") && !outputs.contains("v1080/i-frames.m3u8"));
        assert!(!outputs.contains("stills/0123456789abcdef/poster.jpg"));
        assert!(!outputs.contains("v1080/0123456789abcdef/00000.m4s"));
        assert!(!outputs.iter().any(|key| key.starts_with("t0/")));
        let view = scheduler.view(&job).expect("a view");
        assert_eq!((view.tasks_done, view.media_done_ns), (view.tasks_total, view.media_total_ns));
        scheduler.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_job_is_done_once_and_another_under_its_name_is_refused() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let scheduler = farm.start();
    let spec = farm.spec(Layout::Segments);
    let job = scheduler.submit(spec.clone()).await.expect("a job");
    assert_eq!(scheduler.submit(spec.clone()).await, Ok(job.clone()));
    assert!(end(&scheduler, &job).await.is_ok());
    let taken = farm.taken.lock().expect("not poisoned").len();
    assert_eq!(scheduler.submit(spec.clone()).await, Ok(job.clone()));
    assert!(end(&scheduler, &job).await.is_ok());
    assert_eq!(farm.taken.lock().expect("not poisoned").len(), taken);
    let other = JobSpec { segment_seconds: 6, ..spec.clone() };
    assert_eq!(scheduler.submit(other).await.map_err(|failure| failure.code), Err(Code::InvalidRequest));
    let unnamed = JobSpec { id: None, ..spec.clone() };
    assert_ne!(scheduler.submit(unnamed.clone()).await, scheduler.submit(unnamed).await);
    let nobody = JobId::try_from("nobody".to_owned()).expect("an id");
    assert_eq!(scheduler.wait(&nobody).await.map_err(|failure| failure.code), Err(Code::InvalidRequest));
    let mut elsewhere = spec;
    elsewhere.output.url = "gopher://x/".parse().expect("a URL");
    assert_eq!(scheduler.submit(elsewhere).await.map_err(|failure| failure.code), Err(Code::InvalidRequest));
}

/// Polls a future until it has waited so often, and then drops it: a crash. What it had begun may still happen.
pub(crate) async fn cut<F: Future>(work: F, waits_left: &mut Option<usize>) -> Option<F::Output> {
    pause(&mut pin!(work), waits_left).await
}

/// Polls a future until it has waited so often, and then lets it be: what it goes on with later, it does on an old copy.
pub(crate) async fn pause<F: Future>(work: &mut Pin<&mut F>, waits_left: &mut Option<usize>) -> Option<F::Output> {
    std::future::poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => match waits_left {
            Some(0) => {
                *waits_left = None;
                Poll::Ready(None)
            }
            Some(waits) => {
                *waits -= 1;
                Poll::Pending
            }
            None => Poll::Pending,
        },
    })
    .await
}

/// Every wait of a drive is one for storage: so this stops it before, while and after each thing that it reads or writes.
/// Where storage answers at once there is no wait, so now and then a life is not cut short that could have been.
#[tokio::test]
async fn a_job_goes_on_wherever_the_scheduler_is_stopped() {
    let (mut cuts, mut uncut) = (0, 0);
    while uncut < 3 {
        let farm = Farm::new();
        farm.put(keys::MASTER).await;
        let job = submit(&farm.state, &farm.broker, farm.spec(Layout::SingleFile)).await.expect("a job");
        let mut waits_left = Some(cuts);
        let mut done = Vec::new();
        loop {
            let driven = cut(
                drive(farm.state.clone(), job.clone(), Life::FIRST, None, News::fresh_start(), Conduct::usual(Aftercare::AtOnce)),
                &mut waits_left,
            )
            .await;
            match driven.map(|driven| driven.stand) {
                None => {}
                Some(Stand::Due(due)) => {
                    let task = due.first().expect("a task").task.clone();
                    assert!(!done.contains(&task), "{task} is done twice");
                    work(&farm.state, &job, &task).await;
                    done.push(task);
                }
                Some(Stand::Ended(JobResult::Done(_))) => break,
                Some(Stand::Ended(result)) => panic!("{result:?}"),
                Some(Stand::Gone) => panic!("the spec is there"),
                Some(Stand::Halted(failure) | Stand::Trouble(failure)) => panic!("{failure}"),
            }
            assert!(done.len() < 100, "it never ends");
        }
        check_complete(&farm).await;
        cuts += 1;
        uncut = if waits_left.is_some() { uncut + 1 } else { 0 };
    }
    assert!(cuts > 20, "only {cuts} places to stop at");
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_result_is_stored_has_ended_when_what_is_left_of_it_is_gone() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let job = submit(&farm.state, &farm.broker, farm.spec(Layout::Segments)).await.expect("a job");
    let scheduler = farm.start();
    assert!(matches!(end(&scheduler, &job).await, Ok(JobResult::Done(_))));
    scheduler.shutdown().await;
    // As if it had been stopped when the result was stored and nothing done about it yet.
    farm.put(&format!("v240/{}/00000.m4s", Token::random())).await;
    farm.state.put(&keys::active(PARTITION, &job, Life::FIRST), bytes::Bytes::new(), Kind::Json).await.expect("stored");
    assert!(matches!(end(&farm.start(), &job).await, Ok(JobResult::Done(_))));
    check_complete(&farm).await;
}

#[tokio::test(start_paused = true)]
async fn a_scheduler_takes_up_what_another_left_at_any_stage() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let job = submit(&farm.state, &farm.broker, farm.spec(Layout::Segments)).await.expect("a job");
    let mut schedulers = 0;
    loop {
        let scheduler = farm.start();
        schedulers += 1;
        let mut views = scheduler.follow(&job).await.expect("a view");
        // The first view is of nobody having looked; each scheduler may see one change.
        let next =
            timeout(LONG, views.wait_for(|view| view.phase != Phase::Waiting)).await.expect("a change").map(|view| view.clone());
        let before = next.expect("it runs");
        if matches!(before.phase, Phase::Ended(_)) {
            break;
        }
        let _ = timeout(LONG, views.wait_for(|view| *view != before)).await.expect("a change");
        drop(scheduler);
    }
    assert!(schedulers > 2, "{schedulers}");
    check_complete(&farm).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_made_again_after_a_while() {
    let mut farm = Farm::new();
    farm.add_worker(|message| match (message.task.to_string().as_str(), message.attempt) {
        ("video-00001", 1 | 2) => Act::Fail(Code::ChildCrashed),
        _ => Act::Do,
    });
    let scheduler = farm.start();
    let begin = tokio::time::Instant::now();
    let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
    assert!(matches!(end(&scheduler, &job).await, Ok(JobResult::Done(_))));
    assert_eq!(farm.attempts("video-00001"), [1, 2, 3]);
    assert!((11..30).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    check_complete(&farm).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_fails_leaves_nothing_that_looks_finished() {
    for (task, code, attempts) in [
        ("probe", Code::NotMedia, vec![1]),
        ("video-00001", Code::Undecodable, vec![1]),
        ("video-00002", Code::ChildCrashed, vec![1, 2, 3]),
    ] {
        let mut farm = Farm::new();
        farm.put(keys::MASTER).await;
        farm.add_worker(move |message| if message.task.to_string() == task { Act::Fail(code) } else { Act::Do });
        let scheduler = farm.start();
        let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
        let Ok(JobResult::Failed { failure, at: Some(at) }) = end(&scheduler, &job).await else { panic!("a failure") };
        assert_eq!((failure.code, at.task.to_string().as_str()), (code, task));
        assert_eq!(Some(&at.attempts), attempts.last());
        assert_eq!(farm.attempts(task), attempts);
        // A worker may have been at another chunk when the job ended.
        farm.workers.shutdown().await;
        let left: Vec<_> =
            farm.outputs().await.into_iter().filter(|key| !key.ends_with(".m4s") && !key.ends_with(".mp4")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(farm.active().await, 0);
        assert!(matches!(end(&scheduler, &job).await, Ok(JobResult::Failed { .. })), "and stays so");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_environment_halts_a_job_and_mending_it_takes_it_on() {
    let mut farm = Farm::new();
    let is_full = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let full = Arc::clone(&is_full);
    farm.add_worker(move |message| {
        let fails = matches!(message.task, TaskId::Video(_)) && full.load(std::sync::atomic::Ordering::Relaxed);
        if fails { Act::Fail(Code::StorageFull) } else { Act::Do }
    });
    let scheduler = farm.start();
    let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
    assert_eq!(end(&scheduler, &job).await.map_err(|failure| failure.code), Err(Code::StorageFull));
    assert!(fetch_if_there::<JobResult>(&farm.state, &keys::result(&job, Life::FIRST)).await.expect("storage").is_none());
    assert_eq!(farm.active().await, 1);
    is_full.store(false, std::sync::atomic::Ordering::Relaxed);
    let mut views = scheduler.follow(&job).await.expect("a view");
    let ended = timeout(LONG, views.wait_for(|view| matches!(view.phase, Phase::Ended(_)))).await;
    assert!(ended.is_ok_and(|ended| ended.is_ok()));
    check_complete(&farm).await;
}

#[tokio::test(start_paused = true)]
async fn an_output_that_cannot_be_written_is_told_at_once_and_the_job_kept() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    farm.put("report.json/in-the-way").await;
    let scheduler = farm.start();
    let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
    let refused = end(&scheduler, &job).await.map_err(|failure| failure.code);
    assert_eq!(refused, Err(Code::StorageUnwritable));
    assert!(!farm.outputs().await.contains(keys::MASTER), "it comes last");
    farm.output.delete(&["report.json/in-the-way".to_owned()]).await.expect("deleted");
    let mut views = scheduler.follow(&job).await.expect("a view");
    let ended = timeout(LONG, views.wait_for(|view| matches!(view.phase, Phase::Ended(_)))).await;
    assert!(ended.is_ok_and(|ended| ended.is_ok()));
    check_complete(&farm).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_job_stops_and_its_media_goes() {
    let mut farm = Farm::new();
    farm.add_worker(|message| if message.task == TaskId::Video(2) { Act::Hold } else { Act::Do });
    let scheduler = farm.start();
    let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
    let mut views = scheduler.follow(&job).await.expect("a view");
    let second_ns = 1_000_000_000;
    let is_held = |view: &JobView| {
        view.media_done_ns.is_multiple_of(second_ns) && view.tasks_done >= 4 && view.media_done_ns > 8 * second_ns
    };
    timeout(LONG, views.wait_for(is_held)).await.expect("it is held").expect("it runs");
    scheduler.cancel(&job).await.expect("cancelled");
    assert_eq!(end(&scheduler, &job).await, Ok(JobResult::Cancelled));
    assert_eq!(farm.outputs().await, BTreeSet::new());
    assert_eq!(farm.active().await, 0);
    let nobody = JobId::try_from("nobody".to_owned()).expect("an id");
    assert_eq!(scheduler.cancel(&nobody).await.map_err(|failure| failure.code), Err(Code::InvalidRequest));
}

#[tokio::test(start_paused = true)]
async fn a_task_of_which_nothing_is_heard_is_handed_out_again() {
    let mut farm = Farm::new();
    let lost = std::sync::atomic::AtomicBool::new(false);
    farm.add_worker(move |message| {
        let first = message.task == TaskId::Video(0) && !lost.swap(true, std::sync::atomic::Ordering::Relaxed);
        if first { Act::Vanish } else { Act::Do }
    });
    let scheduler = farm.start();
    let begin = tokio::time::Instant::now();
    let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
    assert!(matches!(end(&scheduler, &job).await, Ok(JobResult::Done(_))));
    assert!(farm.attempts("video-00000").len() == 2 && begin.elapsed() >= Duration::from_secs(25 * 60), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_kills_whoever_takes_it_ends_its_job_within_its_attempts() {
    let mut farm = Farm::new();
    farm.add_worker(|message| if message.task == TaskId::Video(1) { Act::Kill } else { Act::Do });
    let scheduler = farm.start();
    let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
    let Ok(JobResult::Failed { failure, at: Some(at) }) = end(&scheduler, &job).await else { panic!("a failure") };
    assert_eq!((failure.code, at.task, at.attempts), (Code::ChildStalled, TaskId::Video(1), 3));
    assert_eq!(farm.attempts("video-00001"), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_for_a_worker_is_not_lost() {
    let mut farm = Farm::new();
    let scheduler = farm.start();
    let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
    tokio::time::sleep(Duration::from_secs(5 * 3600)).await;
    // It stops in the midst of a task, and again there is nobody.
    farm.add_worker(|message| if message.task == TaskId::Video(1) { Act::GiveBack } else { Act::Do });
    tokio::time::sleep(Duration::from_secs(5 * 3600)).await;
    assert!(farm.workers.join_next().await.is_some_and(|ended| ended.is_ok()), "it has stopped");
    farm.add_worker(|_| Act::Do);
    assert!(matches!(end(&scheduler, &job).await, Ok(JobResult::Done(_))));
    let taken = farm.taken.lock().expect("not poisoned").clone();
    assert!(taken.iter().all(|(_, attempt)| *attempt == 1), "{taken:?}");
}

#[tokio::test(start_paused = true)]
async fn what_no_event_told_is_found() {
    let mut farm = Farm::new();
    let scheduler = farm.start();
    let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
    let mut tasks = farm.broker.consume(Queue::Tasks(farm::Class::Cpu)).await.expect("a consumer");
    let delivery = timeout(LONG, tasks.next()).await.expect("in time").expect("a delivery");
    assert_eq!(delivery.read::<TaskMessage>().expect("a message").task, TaskId::Probe);
    work(&farm.state, &job, &TaskId::Probe).await;
    delivery.ack().await.expect("acked");
    drop(tasks);
    farm.add_worker(|_| Act::Do);
    let begin = tokio::time::Instant::now();
    assert!(matches!(end(&scheduler, &job).await, Ok(JobResult::Done(_))));
    assert!(begin.elapsed() <= Duration::from_secs(31), "at the next look: {:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_kept_short() {
    let mut farm = Farm::new();
    for _ in 0..10 {
        farm.add_worker(|message| if message.task == TaskId::Probe { Act::Do } else { Act::Hold });
    }
    let scheduler = Scheduler::start(
        Settings { window: Window::Fixed(3), ..Settings::for_slots(1) },
        farm.state.clone(),
        farm.broker.clone(),
    );
    let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
    let mut views = scheduler.follow(&job).await.expect("a view");
    // Two chunks and the sound are held, and each has said that it is one second in.
    let is_held = |view: &JobView| view.media_done_ns == 3_000_000_000;
    timeout(LONG, views.wait_for(is_held)).await.expect("they are held").expect("it runs");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(farm.taken.lock().expect("not poisoned").len(), 1 + 3);
}

#[tokio::test(start_paused = true)]
async fn a_scheduler_that_takes_over_hands_out_nothing_that_is_running() {
    let mut farm = Farm::new();
    for _ in 0..3 {
        farm.add_worker(|message| if message.task == TaskId::Probe { Act::Do } else { Act::Beat });
    }
    let settings = || Settings { aftercare: Aftercare::AtOnce, ..Settings::for_farm() };
    let start = || Scheduler::start(settings(), farm.state.clone(), farm.broker.clone());
    let first = start();
    let job = first.submit(farm.spec(Layout::Segments)).await.expect("a job");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let running = farm.taken.lock().expect("not poisoned").clone();
    assert_eq!(running.len(), 1 + 3, "the probe, and a task on each worker: {running:?}");
    assert_eq!(fetch::<u64>(&farm.state, &keys::term(PARTITION)).await, Ok(1));
    drop(first);
    let second = start();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fetch::<u64>(&farm.state, &keys::term(PARTITION)).await, Ok(2));
    assert_eq!(*farm.taken.lock().expect("not poisoned"), running, "nothing is done a second time");
    // What waited on the queue is of an earlier term; it was sent again.
    farm.add_worker(|_| Act::Do);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let taken = farm.taken.lock().expect("not poisoned").clone();
    let distinct: BTreeSet<_> = taken.iter().collect();
    assert!(taken.len() > running.len() && distinct.len() == taken.len(), "{taken:?}");
    // A worker that vanishes leaves its message to another, who finds it stale: then it is handed out again.
    farm.workers.abort_all();
    farm.add_worker(|_| Act::Do);
    assert!(matches!(end(&second, &job).await, Ok(JobResult::Done(_))));
    check_complete(&farm).await;
}

#[tokio::test(start_paused = true)]
async fn two_schedulers_at_once_do_no_harm() {
    let mut farm = Farm::new();
    for _ in 0..3 {
        farm.add_worker(|_| Act::Do);
    }
    let settings = Settings { settle: Duration::from_secs(1), ..Settings::for_slots(3) };
    let one = Scheduler::start(settings.clone(), farm.state.clone(), farm.broker.clone());
    let two = Scheduler::start(settings, farm.state.clone(), farm.broker.clone());
    for round in 0..5 {
        let mut spec = farm.spec(Layout::Segments);
        spec.id = Some(JobId::try_from(format!("job-{round}")).expect("an id"));
        let folder = farm.folder.path().join(format!("out-{round}"));
        spec.output.url = Url::from_directory_path(&folder).expect("a URL");
        farm.output = Storage::folder(&folder);
        // The simulated workers write where the spec says; this looks there.
        let job = submit(&farm.state, &farm.broker, spec).await.expect("a job");
        let result = tokio::select! { ended = end(&one, &job) => ended, ended = end(&two, &job) => ended };
        assert!(matches!(result, Ok(JobResult::Done(_))), "{result:?}");
        check_complete(&farm).await;
    }
    let seals = farm.state.list("jobs/").await.expect("a listing").into_iter().filter(|entry| entry.key.ends_with("seal.json"));
    assert_eq!(seals.count(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_failed_job_taken_up_again_keeps_what_is_done() {
    let mut farm = Farm::new();
    let is_broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    farm.add_worker(move |message| {
        let fails = message.task == TaskId::Video(2) && broken.load(std::sync::atomic::Ordering::Relaxed);
        if fails { Act::Fail(Code::Undecodable) } else { Act::Do }
    });
    let scheduler = Scheduler::start(Settings::for_farm(), farm.state.clone(), farm.broker.clone());
    let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
    assert!(matches!(end(&scheduler, &job).await, Ok(JobResult::Failed { .. })));
    let before = farm.taken.lock().expect("not poisoned").len();
    is_broken.store(false, std::sync::atomic::Ordering::Relaxed);
    scheduler.retry(&job).await.expect("taken up again");
    assert!(matches!(end(&scheduler, &job).await, Ok(JobResult::Done(_))));
    let taken = farm.taken.lock().expect("not poisoned").clone();
    let distinct: BTreeSet<_> = taken.iter().map(|(task, _)| task).collect();
    assert_eq!(taken.len(), distinct.len() + 1, "only what failed is done again: {taken:?}");
    assert!(taken.len() > before);
    // What the result does not name is the janitor's.
    farm.put("v240/0123456789abcdef/00000.m4s").await;
    farm.state.put(&keys::sweep(PARTITION, &job, Life::FIRST.next()), bytes::Bytes::new(), Kind::Json).await.expect("stored");
    let at_once = crate::janitor::Settings { grace: Duration::ZERO, ..crate::janitor::Settings::default() };
    crate::janitor::round(&at_once, &farm.state).await.expect("a round");
    check_complete(&farm).await;
    assert!(farm.state.list(&keys::sweep_prefix(PARTITION)).await.expect("a listing").is_empty());
    for (id, said) in [("job", "is done"), ("nobody", "no job")] {
        let id = JobId::try_from(id.to_owned()).expect("an id");
        let refused = scheduler.retry(&id).await.expect_err("refused");
        assert!(refused.code == Code::InvalidRequest && refused.message.contains(said), "{refused}");
    }
}
