//! Tasks for devices: over which queue they go, and what becomes of them when it is not served.

use farm::encoder::{Offer, Offered};
use farm::job::VideoCodec;

use super::*;
use crate::report::Report;

/// An offer of one device for H.264, or of none any more.
fn offer(worker: &Token, class: Option<Class>) -> Word {
    let offered = |class| Offered { class, codec: VideoCodec::H264, pixels_max: 1 << 20, sessions_max: None };
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
        assert!(took < if told { 20 } else { 60 }, "{took} s");
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
