//! Devices that are lent, fail and prove themselves, by a clock that is told.

use super::*;
use VideoCodec::{Av1, H264, Hevc};

const HD: Extent = Extent { side: 1920, pixels: 1920 * 1080 };
const UHD: Extent = Extent { side: 3840, pixels: 3840 * 2160 };
const SECOND: Duration = Duration::from_secs(1);

fn device(class: Class, number: u32) -> Device {
    Device { class, number, node: format!("/dev/{class}{number}").into() }
}

fn proven(codec: VideoCodec, largest: Extent) -> Proven {
    Proven { codec, largest }
}

fn needs(count: usize) -> Vec<Need> {
    vec![Need { codec: H264, extent: HD }; count]
}

/// The device failed at a task of this job.
fn failed(job: &str) -> Ending {
    Ending::Failed { job: JobId::try_from(job.to_owned()).expect("a job id"), may_be_full: false }
}

/// It failed at the first frame.
fn full() -> Ending {
    Ending::Failed { job: JobId::try_from("full".to_owned()).expect("a job id"), may_be_full: true }
}

/// Devices of NVIDIA that have proven this.
fn rack(works: &[&[Proven]], now: Instant) -> Rack {
    let mut rack = Rack::new((0..).take(works.len()).map(|number| device(Class::Nvenc, number)).collect(), now);
    for (place, proven) in works.iter().enumerate() {
        assert_eq!(prove(&mut rack, place, proven, now), News::Changed);
    }
    rack
}

fn prove(rack: &mut Rack, place: usize, proven: &[Proven], now: Instant) -> News {
    rack.begin_proof(place).expect("there");
    rack.end_proof(place, Tried::Shows(proven.to_vec()), now)
}

fn hang(rack: &mut Rack, now: Instant) -> News {
    rack.begin_proof(0).expect("there");
    rack.end_proof(0, Tried::Hangs, now)
}

/// What is lent for so many rungs.
fn lent(rack: &mut Rack, count: usize) -> Loan {
    match rack.lend(Class::Nvenc, &needs(count)) {
        Lending::Now(loan) => loan,
        other => panic!("nothing is lent: {other:?}"),
    }
}

/// Lends for so many rungs, and takes it back when that is done.
fn done(rack: &mut Rack, count: usize, now: Instant) {
    let loan = lent(rack, count);
    assert!(!rack.take_back(&loan, &Ending::Done, now));
}

/// How many seconds it is until the next proof.
fn wait(rack: &Rack, now: Instant) -> Option<u64> {
    rack.next_proof().map(|(due, _)| (due - now).as_secs())
}

fn sessions_max(rack: &Rack) -> Option<u32> {
    rack.offered().first().expect("something is offered").sessions_max
}

#[test]
fn a_device_is_lent_that_bears_what_is_needed_and_has_the_least_to_do() {
    let mut rack = rack(&[&[proven(H264, UHD), proven(Hevc, HD)], &[proven(H264, HD)]], Instant::now());
    let loans = [3, 2, 1].map(|count| lent(&mut rack, count));
    assert_eq!(loans.map(|loan| (loan.place, loan.on.sessions)), [(0, 3), (1, 2), (1, 1)]);
    let Lending::Now(loan) = rack.lend(Class::Nvenc, &[Need { codec: H264, extent: UHD }]) else { panic!("one bears that") };
    assert_eq!(loan.on, OnDevice { device: device(Class::Nvenc, 0), sessions: 1 });
    let long = Extent { side: UHD.side + 2, pixels: HD.pixels };
    let large = Extent { side: UHD.side, pixels: UHD.pixels + 2 };
    for (codec, extent) in [(Hevc, UHD), (Av1, HD), (H264, long), (H264, large)] {
        assert_eq!(rack.lend(Class::Nvenc, &[Need { codec, extent }]), Lending::Never, "{codec:?} of {extent:?}");
    }
    assert_eq!(rack.lend(Class::Vaapi, &needs(1)), Lending::Never);
    assert_eq!(rack.tally(Class::Nvenc), Tally { works: 2, aside: 0, sessions: 7 });
}

#[test]
fn a_limit_of_sessions_is_found_and_kept_to() {
    let now = Instant::now();
    let mut rack = rack(&[&[proven(H264, HD)]], now);
    let [one, other] = [3, 3].map(|count| lent(&mut rack, count));
    assert!(rack.take_back(&one, &full(), now));
    assert_eq!(rack.lend(Class::Nvenc, &needs(1)), Lending::Never, "it is put aside");
    prove(&mut rack, 0, &[proven(H264, HD)], now);
    assert_eq!(sessions_max(&rack), Some(5), "six were too many");
    let least = lent(&mut rack, 3);
    assert_eq!(least.on.sessions, 2, "what is left");
    assert_eq!(rack.lend(Class::Nvenc, &needs(1)), Lending::Later);
    assert!(!rack.take_back(&other, &full(), now), "this was the same fault");
    assert_eq!(sessions_max(&rack), Some(5));
    rack.take_back(&least, &Ending::Done, now);
    let five = lent(&mut rack, 9);
    assert_eq!(five.on.sessions, 5);
    assert!(rack.take_back(&five, &failed("j"), now));
    prove(&mut rack, 0, &[proven(H264, HD)], now);
    assert_eq!(sessions_max(&rack), Some(5), "it was something else");
    let alone = lent(&mut rack, 1);
    rack.take_back(&alone, &full(), now);
    prove(&mut rack, 0, &[proven(H264, HD)], now);
    assert_eq!(sessions_max(&rack), Some(5), "one alone was not too many");
}

#[test]
fn a_limit_of_sessions_is_raised_by_one_after_a_while_when_all_are_in_use_and_do_well() {
    let now = Instant::now();
    let mut rack = rack(&[&[proven(H264, HD)]], now);
    let loan = lent(&mut rack, 3);
    rack.take_back(&loan, &full(), now);
    prove(&mut rack, 0, &[proven(H264, HD)], now);
    let (soon, later) = (now + BELIEVED - SECOND, now + BELIEVED);
    for (sessions, at, expected) in [(2, soon, 2), (1, later, 2), (2, later, 3), (3, later, 3), (3, later + BELIEVED, 4)] {
        done(&mut rack, sessions, at);
        assert_eq!(sessions_max(&rack), Some(expected), "after {sessions}");
    }
    let loan = lent(&mut rack, 4);
    rack.take_back(&loan, &full(), later + BELIEVED);
    prove(&mut rack, 0, &[proven(H264, HD)], later + BELIEVED);
    done(&mut rack, 3, later + BELIEVED + SECOND);
    assert_eq!(sessions_max(&rack), Some(3), "it is believed again for a while");
}

#[test]
fn a_device_at_which_several_jobs_fail_is_tried_at_once_and_then_ever_later() {
    let now = Instant::now();
    let mut rack = rack(&[&[proven(H264, HD)]], now);
    let mut waits = Vec::new();
    for job in ["a", "b"].into_iter().cycle().take(10) {
        let loan = lent(&mut rack, 1);
        assert!(rack.take_back(&loan, &failed(job), now));
        assert_eq!((rack.offered(), rack.serves(Class::Nvenc)), (Vec::new(), false));
        waits.extend(wait(&rack, now));
        assert_eq!(prove(&mut rack, 0, &[proven(H264, HD)], now), News::Changed, "it works again");
    }
    assert_eq!(waits, [0, 0, 10, 20, 40, 80, 160, 320, 600, 600]);
    done(&mut rack, 1, now);
    let loan = lent(&mut rack, 1);
    rack.take_back(&loan, &failed("b"), now);
    assert_eq!(wait(&rack, now), Some(0), "what it did well ended the row");
}

#[test]
fn a_job_alone_keeps_a_device_away_no_longer_than_its_proof_takes() {
    let now = Instant::now();
    let mut rack = rack(&[&[proven(H264, HD)]], now);
    for _ in 0..9 {
        let loan = lent(&mut rack, 1);
        assert!(rack.take_back(&loan, &failed("a"), now));
        assert_eq!(wait(&rack, now), Some(0));
        prove(&mut rack, 0, &[proven(H264, HD)], now);
    }
    // A device that does not pass is away for longer, whoever was the first to see it.
    let loan = lent(&mut rack, 1);
    rack.take_back(&loan, &failed("a"), now);
    let waits = [(); 3].map(|()| {
        prove(&mut rack, 0, &[], now);
        wait(&rack, now)
    });
    assert_eq!(waits, [Some(10), Some(20), Some(40)]);
}

#[test]
fn one_fault_that_ends_several_tasks_counts_once() {
    let now = Instant::now();
    let mut rack = rack(&[&[proven(H264, HD)]], now);
    let [first, second, third] = [1, 1, 1].map(|count| lent(&mut rack, count));
    assert!(rack.take_back(&first, &failed("a"), now));
    assert!(!rack.take_back(&second, &failed("b"), now), "it is put aside already");
    prove(&mut rack, 0, &[proven(H264, HD)], now);
    assert!(!rack.take_back(&third, &failed("b"), now), "it has proven itself since");
    assert_eq!(rack.tally(Class::Nvenc), Tally { works: 1, aside: 0, sessions: 0 });
    for _ in 0..2 {
        let loan = lent(&mut rack, 1);
        assert!(rack.take_back(&loan, &failed("a"), now));
        assert_eq!(wait(&rack, now), Some(0), "no other job has seen it fail");
        prove(&mut rack, 0, &[proven(H264, HD)], now);
    }
}

#[test]
fn a_device_that_was_put_aside_is_lent_to_one_task_at_a_time_until_something_is_done_on_it() {
    let now = Instant::now();
    let mut rack = rack(&[&[proven(H264, HD)]], now);
    let [first, other] = [1, 1].map(|count| lent(&mut rack, count));
    rack.take_back(&first, &failed("a"), now);
    prove(&mut rack, 0, &[proven(H264, HD)], now);
    for ending in [Ending::Neither, failed("a"), Ending::Done] {
        let loan = lent(&mut rack, 2);
        assert_eq!((loan.on.sessions, rack.lend(Class::Nvenc, &needs(1))), (2, Lending::Later));
        if rack.take_back(&loan, &ending, now) {
            prove(&mut rack, 0, &[proven(H264, HD)], now);
        }
    }
    let _both = [1, 1].map(|count| lent(&mut rack, count));
    rack.take_back(&other, &Ending::Done, now);
    // What was lent before does not stand in the way.
    let [first, _second] = [1, 1].map(|count| lent(&mut rack, count));
    rack.take_back(&first, &failed("a"), now);
    prove(&mut rack, 0, &[proven(H264, HD)], now);
    lent(&mut rack, 1);
    assert_eq!(rack.lend(Class::Nvenc, &needs(1)), Lending::Later);
}

#[test]
fn a_proof_that_fails_puts_a_device_aside_for_longer_and_longer() {
    let now = Instant::now();
    let mut rack = Rack::new(vec![device(Class::Nvenc, 0)], now);
    assert!(!rack.is_tried() && rack.next_proof() == Some((now, 0)));
    let mut waits = Vec::new();
    for news in [News::Changed, News::None, News::None] {
        assert_eq!(prove(&mut rack, 0, &[], now), news);
        waits.extend(wait(&rack, now));
    }
    assert_eq!(waits, [10, 20, 40]);
    assert!(rack.is_tried() && !rack.serves(Class::Nvenc));
    assert_eq!(rack.tally(Class::Nvenc), Tally::default(), "it may be a camera");
    let news = [&[proven(H264, HD)][..], &[][..]].map(|proven| prove(&mut rack, 0, proven, now));
    assert_eq!(news, [News::Changed; 2]);
    assert_eq!(rack.tally(Class::Nvenc), Tally { works: 0, aside: 1, sessions: 0 });
}

#[test]
fn a_device_whose_driver_hangs_again_and_again_is_left_alone() {
    let now = Instant::now();
    let mut rack = Rack::new(vec![device(Class::Nvenc, 0)], now);
    let four = [(); 4].map(|()| hang(&mut rack, now));
    assert_eq!(four, [News::Changed, News::None, News::None, News::None]);
    assert_eq!((wait(&rack, now), rack.is_tried()), (Some(80), true));
    assert_eq!(prove(&mut rack, 0, &[proven(H264, HD)], now), News::Changed, "it ends the row");
    let five = [(); 5].map(|()| hang(&mut rack, now));
    assert_eq!(five, [News::Changed, News::None, News::None, News::None, News::LeftAlone]);
    assert_eq!((rack.next_proof(), rack.serves(Class::Nvenc)), (None, false));
    assert_eq!(rack.tally(Class::Nvenc), Tally { works: 0, aside: 1, sessions: 0 });
}

#[test]
fn one_that_has_nothing_to_do_is_proven_again_after_a_while() {
    let now = Instant::now();
    let later = now + Duration::from_secs(60);
    let mut rack = rack(&[&[proven(H264, HD)], &[proven(H264, HD)]], now);
    assert_eq!(rack.next_proof(), Some((now + BELIEVED, 0)));
    let loan = lent(&mut rack, 1);
    assert_eq!(rack.next_proof(), Some((now + BELIEVED, 1)), "the first is at work");
    rack.take_back(&loan, &Ending::Done, later);
    assert_eq!(rack.next_proof(), Some((now + BELIEVED, 1)), "the first has shown that it works");
    assert_eq!(prove(&mut rack, 1, &[proven(H264, HD)], later + BELIEVED), News::None);
    assert_eq!(rack.next_proof(), Some((later + BELIEVED, 0)));
    assert_eq!(prove(&mut rack, 0, &[proven(H264, UHD)], later + BELIEVED), News::Changed, "it can do more than before");
}

#[test]
fn a_codec_that_is_lost_is_tried_again_soon_whatever_is_done_meanwhile() {
    let now = Instant::now();
    let mut rack = rack(&[&[proven(H264, HD), proven(Hevc, HD)]], now);
    assert_eq!(prove(&mut rack, 0, &[proven(H264, HD)], now), News::Changed);
    assert_eq!(wait(&rack, now), Some(10));
    done(&mut rack, 1, now + SECOND);
    assert_eq!(wait(&rack, now), Some(10));
    assert_eq!(prove(&mut rack, 0, &[proven(H264, HD)], now), News::None);
    assert_eq!(wait(&rack, now), Some(600), "it is not tried so for ever");
    assert_eq!(prove(&mut rack, 0, &[proven(H264, HD), proven(Hevc, HD)], now), News::Changed);
    assert_eq!(wait(&rack, now), Some(600));
}

#[test]
fn a_proof_is_not_made_one_encoder_too_many() {
    let now = Instant::now();
    let mut rack = rack(&[&[proven(H264, HD)]], now);
    rack.begin_proof(0).expect("there");
    let loan = lent(&mut rack, 2);
    assert_eq!(rack.end_proof(0, Tried::Shows(vec![proven(H264, HD)]), now), News::None, "no limit is known");
    assert!(rack.take_back(&loan, &full(), now), "it was lent after that proof began");
    prove(&mut rack, 0, &[proven(H264, HD)], now);
    done(&mut rack, 1, now);
    rack.begin_proof(0).expect("there");
    assert_eq!(rack.lend(Class::Nvenc, &needs(1)), Lending::Later);
    rack.end_proof(0, Tried::Shows(vec![proven(H264, HD)]), now);
    lent(&mut rack, 1);
}

#[test]
fn what_is_offered_of_a_class_is_what_each_of_its_devices_can_do() {
    let now = Instant::now();
    let tall = Extent { side: 4000, pixels: 1000 };
    let [one, other] = [[proven(H264, UHD), proven(Hevc, HD)], [proven(H264, tall), proven(Av1, HD)]];
    let mut rack = rack(&[&one, &other], now);
    let offered = |sessions_max| Offered { class: Class::Nvenc, codec: H264, largest: UHD.least(tall), sessions_max };
    assert_eq!(rack.offered(), [offered(None)]);
    let small = [Need { codec: H264, extent: Extent::of(20, 20) }; 4];
    for (sessions, found, proven) in [(3, 2, &one), (4, 3, &other)] {
        let Lending::Now(loan) = rack.lend(Class::Nvenc, &small[..sessions]) else { panic!("there is room") };
        rack.take_back(&loan, &full(), now);
        prove(&mut rack, loan.place, proven, now);
        assert_eq!(rack.places[loan.place].limit.map(|limit| limit.sessions), Some(found));
        assert_eq!(rack.offered(), [offered(Some(2))], "the least that is known");
    }
    // One that is put aside does not count.
    let Lending::Now(loan) = rack.lend(Class::Nvenc, &small[..1]) else { panic!("there is room") };
    rack.take_back(&loan, &failed("j"), now);
    assert_eq!((loan.place, rack.offered().len()), (0, 2));
    prove(&mut rack, 0, &[], now);
    let left: Vec<_> = rack.offered().iter().map(|own| (own.codec, own.sessions_max)).collect();
    assert_eq!(left, [(H264, Some(3)), (Av1, Some(3))]);
}
