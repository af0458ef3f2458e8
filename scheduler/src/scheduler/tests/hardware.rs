//! Tasks for devices: over which queue they go, and what becomes of them when it is not served.

use farm::encoder::{Extent, Offer, Offered};
use farm::job::VideoCodec;

use super::*;
use crate::report::Report;

/// An offer of one device for H.264, or of none any more.
fn offer(worker: &Token, class: Option<Class>) -> Word {
    let offered = |class| Offered { class, codec: VideoCodec::H264, largest: Extent::of(1280, 720), sessions_max: None };
    Word::Offer(Offer { worker: worker.clone(), encoders: class.map(offered).into_iter().collect() })
}

/// Tells an offer again and again, until what is returned is dropped.
fn offering(broker: &Broker, class: Class) -> JoinSet<()> {
    let (broker, worker) = (broker.clone(), Token::random());
    let mut telling = JoinSet::new();
    telling.spawn(async move {
        loop {
            broker.tell(offer(&worker, Some(class)));
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
    telling
}

async fn report(farm: &Farm) -> Report {
    let text = farm.output.get(keys::REPORT).await.expect("a report");
    serde_json::from_slice(&text).expect("as it was written")
}

#[tokio::test(start_paused = true)]
async fn the_picture_goes_to_the_device_and_what_that_fails_at_to_the_processor() {
    let mut farm = Farm::new();
    let pictures = |message: &TaskMessage| matches!(message.task, TaskId::Video(_));
    farm.add_worker_of(Class::Nvenc, move |message| {
        assert!(pictures(message) && message.class == Class::Nvenc && message.attempt == 1, "{message:?}");
        if message.task == TaskId::Video(1) { Act::Fail(Code::DeviceFailed) } else { Act::Do }
    });
    farm.add_worker(move |message| {
        assert!(message.class == Class::Cpu && (!pictures(message) || message.task == TaskId::Video(1)), "{message:?}");
        Act::Do
    });
    let scheduler = farm.start();
    let _offer = offering(&farm.broker, Class::Nvenc);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
    let ended = end(&scheduler, &job).await;
    assert!(matches!(ended, Ok(JobResult::Done(_))), "{ended:?}");
    assert_eq!((farm.attempts("video-00000"), farm.attempts("video-00001")), (vec![1], vec![1, 2]));
    let report = report(&farm).await;
    let fallbacks: Vec<_> = report.fallbacks.iter().map(|one| (one.task.to_string(), one.attempt, one.failure.code)).collect();
    assert_eq!(fallbacks, [("video-00001".to_owned(), 1, Code::DeviceFailed)]);
    let encoders: Vec<_> = report.renditions.iter().map(|made| made.encoder).collect();
    assert_eq!(encoders, [Some(Class::Nvenc), None], "picture and sound");
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_device_holds_up_nothing_and_is_made_elsewhere_when_its_workers_go() {
    for told in [true, false] {
        let mut farm = Farm::new();
        farm.add_worker(|_| Act::Do);
        let scheduler = farm.start();
        // There is an offer, and nobody to take what it leads to.
        let worker = Token::random();
        tokio::time::sleep(Duration::from_secs(1)).await;
        farm.broker.tell(offer(&worker, Some(Class::Vaapi)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let job = scheduler.submit(farm.spec(Layout::Segments)).await.expect("a job");
        let started = tokio::time::Instant::now();
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert_eq!(farm.attempts("audio-0"), [1], "other tasks go on");
        assert_eq!(farm.attempts("video-00000"), [0; 0]);
        if told {
            farm.broker.tell(offer(&worker, None));
        }
        let ended = end(&scheduler, &job).await;
        assert!(matches!(ended, Ok(JobResult::Done(_))), "{ended:?}");
        let took = started.elapsed().as_secs();
        assert!((20..50).contains(&took), "{took} s");
        assert_eq!(farm.attempts("video-00000"), [1]);
        let report = report(&farm).await;
        assert!(report.fallbacks.is_empty(), "nothing failed");
        assert_eq!(report.renditions.first().and_then(|made| made.encoder), Some(Class::Vaapi), "as it was planned");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_or_else_its_tenant_says_whether_hardware_is_used() {
    for (tenant, job, wanted) in [
        (None, None, Class::Nvenc),
        (Some(Hardware::Avoid), None, Class::Cpu),
        (Some(Hardware::Avoid), Some(Hardware::Prefer), Class::Nvenc),
        (None, Some(Hardware::Avoid), Class::Cpu),
    ] {
        let mut farm = Farm::new();
        farm.add_worker(|_| Act::Do);
        farm.add_worker_of(Class::Nvenc, |_| Act::Do);
        let hardware = tenant.map(|policy| ("default".to_owned(), policy)).into_iter().collect();
        let settings = Settings { hardware: Arc::new(hardware), ..Settings::for_slots(2) };
        let scheduler = Scheduler::start(settings, farm.state.clone(), farm.broker.clone());
        let _offer = offering(&farm.broker, Class::Nvenc);
        tokio::time::sleep(Duration::from_secs(6)).await;
        let spec = JobSpec { hardware: job, ..farm.spec(Layout::Segments) };
        let id = scheduler.submit(spec).await.expect("a job");
        let ended = end(&scheduler, &id).await;
        assert!(matches!(ended, Ok(JobResult::Done(_))), "{ended:?}");
        assert_eq!(report(&farm).await.renditions.first().and_then(|made| made.encoder), Some(wanted), "{tenant:?} {job:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_device_failed_at_is_remembered_and_a_job_that_none_bears_is_left_to_the_processor() {
    let mut farm = Farm::new();
    farm.add_worker_of(Class::Nvenc, |_| Act::Fail(Code::DeviceFailed));
    let scheduler = Scheduler::start(Settings::for_slots(1), farm.state.clone(), farm.broker.clone());
    let offer = offering(&farm.broker, Class::Nvenc);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let spec = JobSpec { chunk_seconds: Some(2), segment_seconds: 2, ..farm.spec(Layout::Segments) };
    let job = scheduler.submit(spec).await.expect("a job");
    // Nobody does what goes to the processor yet, but for the probe.
    let failed = || async { farm.state.list(&keys::fail_prefix(&job, Life::FIRST)).await.expect("a listing").len() };
    farm.workers.spawn({
        let (state, broker, job) = (farm.state.clone(), farm.broker.clone(), job.clone());
        async move {
            work(&state, &job, &TaskId::Probe).await;
            broker.publish(Queue::Events, &Event::TaskDone { job, task: TaskId::Probe }).await.expect("published");
        }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    let fallen = failed().await;
    assert!((3..=5).contains(&fallen), "{fallen} of 7 pieces were tried on a device");
    scheduler.shutdown().await;
    let scheduler = farm.start();
    farm.add_worker(|_| Act::Do);
    let ended = end(&scheduler, &job).await;
    assert!(matches!(ended, Ok(JobResult::Done(_))), "{ended:?}");
    let report = report(&farm).await;
    assert_eq!(report.fallbacks.len(), fallen, "also after another scheduler took over");
    assert!(report.fallbacks.iter().all(|fallback| farm.attempts(&fallback.task.to_string()) == [1, 2]));
    drop(offer);
}
