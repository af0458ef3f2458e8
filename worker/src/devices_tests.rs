//! Devices by a clock that is turned. A proof takes a second, and no child: H.264 up to 1920x1080 passes while the device works.

use super::*;
use std::sync::atomic::AtomicU32;

use farm::job::JobId;
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;

/// A device that is kept.
struct Stand {
    keeper: Arc<Keeper>,
    works: Arc<AtomicBool>,
    heard: broadcast::Receiver<Word>,
    stop: CancellationToken,
    _keeping: AbortOnDropHandle<()>,
}

impl Stand {
    fn new(proof_seconds: u64) -> Self {
        let (keeper, works) = (Arc::new(Keeper::new(vec![stand_in()])), Arc::new(AtomicBool::new(true)));
        let (broker, stop) = (Broker::local(), CancellationToken::new());
        let heard = broker.listen();
        let (kept, stopping, switch) = (keeper.clone(), stop.clone(), works.clone());
        let keeping = tokio::spawn(async move {
            let prove = |proof: Proof| {
                let switch = switch.clone();
                async move {
                    sleep(Duration::from_secs(proof_seconds)).await;
                    let is_passed = switch.load(Ordering::Relaxed) && proof.codec == "h264" && proof.height <= 1080;
                    if is_passed { Ok(()) } else { Err(Failure::new(Code::EncoderFailed, "it does not")) }
                }
            };
            kept.keep(&broker, &stopping, prove).await;
        });
        Self { keeper, works, heard, stop, _keeping: AbortOnDropHandle::new(keeping) }
    }

    /// What is offered by the next word.
    async fn offered(&mut self) -> Vec<Offered> {
        match self.heard.recv().await.expect("a word") {
            Word::Offer(offer) => offer.encoders,
            other => panic!("nothing else is told: {other:?}"),
        }
    }

    async fn lend(&self) -> Option<Lease> {
        self.keeper.lend(Class::Nvenc, &[Need { codec: VideoCodec::H264, extent: Extent::of(1920, 1080) }]).await
    }
}

fn h264(sessions_max: Option<u32>) -> Vec<Offered> {
    vec![Offered { class: Class::Nvenc, codec: VideoCodec::H264, largest: Extent::of(1920, 1080), sessions_max }]
}

/// The device failed at a task of this job.
fn failed(job: &str, may_be_full: bool) -> Ending {
    Ending::Failed { job: JobId::try_from(job.to_owned()).expect("a job id"), may_be_full }
}

fn stand_in() -> Device {
    Device { class: Class::Nvenc, number: 0, node: "/dev/stand-in0".into() }
}

#[tokio::test(start_paused = true)]
async fn what_works_is_offered_as_soon_as_it_is_known_and_then_again_and_again_until_the_drain() {
    let mut stand = Stand::new(1);
    assert!(stand.lend().await.is_none(), "nothing is known of it");
    let (began, mut seconds) = (Instant::now(), Vec::new());
    for _ in 0..3 {
        assert_eq!(stand.offered().await, h264(None));
        seconds.push(began.elapsed().as_secs());
    }
    assert_eq!(seconds, [7, 12, 17], "three proofs of H.264, and two of each other codec");
    stand.stop.cancel();
    assert_eq!(stand.offered().await, Vec::new());
    assert!(stand.heard.recv().await.is_err(), "that was the last word");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_fails_is_neither_offered_nor_lent_until_it_has_proven_itself() {
    let mut stand = Stand::new(1);
    assert_eq!(stand.offered().await, h264(None));
    for (job, seconds) in [("a", 7), ("a", 7), ("b", 7), ("a", 17)] {
        let began = Instant::now();
        stand.lend().await.expect("it works").end(failed(job, false));
        assert!(stand.lend().await.is_none() && !stand.keeper.serves(Class::Nvenc));
        assert_eq!((stand.offered().await, began.elapsed().as_secs()), (Vec::new(), 0));
        assert_eq!((stand.offered().await, began.elapsed().as_secs()), (h264(None), seconds), "{job}");
    }
    assert!(stand.keeper.serves(Class::Nvenc));
    // What it is not to blame for is forgiven.
    drop(stand.lend().await.expect("it works"));
    assert!(stand.lend().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_device_that_breaks_while_it_has_nothing_to_do_is_found_out() {
    let mut stand = Stand::new(1);
    assert_eq!(stand.offered().await, h264(None));
    let began = Instant::now();
    stand.works.store(false, Ordering::Relaxed);
    while stand.offered().await == h264(None) {}
    assert_eq!(began.elapsed().as_secs(), 606, "ten minutes, and two proofs of each codec");
    stand.works.store(true, Ordering::Relaxed);
    assert_eq!((stand.offered().await, began.elapsed().as_secs()), (h264(None), 606 + 10 + 7));
}

#[tokio::test(start_paused = true)]
async fn who_comes_when_all_sessions_are_in_use_waits_for_one() {
    let mut stand = Stand::new(1);
    assert_eq!(stand.offered().await, h264(None));
    let (first, second) = (stand.lend().await.expect("room"), stand.lend().await.expect("room"));
    second.end(failed("j", true));
    assert_eq!(stand.offered().await, Vec::new());
    // The one session that it bears is in use, so it cannot prove itself yet.
    sleep(Duration::from_secs(60)).await;
    assert!(stand.lend().await.is_none());
    first.end(Ending::Done);
    assert_eq!(stand.offered().await, h264(Some(1)));
    let first = stand.lend().await.expect("it works");
    let mut waiting = std::pin::pin!(stand.lend());
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    drop(first);
    let lease = waiting.await.expect("its turn");
    assert_eq!(lease.on().sessions, 1);
    // Not for ever: the processor is there.
    let began = Instant::now();
    assert!(stand.lend().await.is_none());
    assert_eq!(began.elapsed().as_secs(), LEND_WAIT.as_secs());
    drop(lease);
    assert!(stand.lend().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn tasks_wait_for_the_first_proofs_but_not_for_ever() {
    let began = Instant::now();
    let none = Keeper::new(Vec::new());
    none.ready(Class::Cpu).await;
    assert!(futures::poll!(std::pin::pin!(none.ready(Class::Nvenc))).is_pending());
    let stand = Stand::new(1);
    tokio::join!(stand.keeper.ready(Class::Cpu), stand.keeper.ready(Class::Nvenc));
    assert_eq!(began.elapsed().as_secs(), 7);
    let began = Instant::now();
    let slow = Stand::new(1000);
    for _ in 0..2 {
        slow.keeper.ready(Class::Cpu).await;
        assert_eq!(began.elapsed().as_secs(), 60, "together");
    }
    let broken = Stand::new(1);
    broken.works.store(false, Ordering::Relaxed);
    broken.keeper.ready(Class::Cpu).await;
    assert!(futures::poll!(std::pin::pin!(broken.keeper.ready(Class::Nvenc))).is_pending(), "it never worked");
}

/// Has a device proven for an hour where each proof takes a while and ends so. How many were begun.
async fn proofs(seconds: u64, code: Code) -> (u32, Tally) {
    let (keeper, begun, stop) = (Keeper::new(vec![stand_in()]), AtomicU32::new(0), CancellationToken::new());
    let prove = |_: Proof| {
        begun.fetch_add(1, Ordering::Relaxed);
        async move {
            sleep(Duration::from_secs(seconds)).await;
            Err::<(), _>(Failure::new(code, "it does not"))
        }
    };
    let hour = Duration::from_secs(3600);
    timeout(hour, keeper.keep(&Broker::local(), &stop, prove)).await.expect_err("it is kept until it is told to stop");
    (begun.load(Ordering::Relaxed), keeper.rack().tally(Class::Nvenc))
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_hangs_is_not_asked_for_ever_and_for_nothing_more_at_a_time() {
    for code in [Code::ChildStalled, Code::DeadlineExceeded, Code::Internal] {
        assert_eq!(proofs(20, code).await, (5, Tally { works: 0, aside: 1, sessions: 0 }), "{code}");
    }
    // Who says no is asked for each codec, for smaller pictures where that may help, and again and again.
    let (refused, missing) = (proofs(1, Code::EncoderFailed).await.0, proofs(1, Code::MissingElement).await.0);
    assert!(refused == 2 * missing && missing > 3 * 5, "{refused} and {missing}");
}
