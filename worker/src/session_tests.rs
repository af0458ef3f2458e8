//! What the session believes and what it does not.

use super::*;
use crate::testing::{audio_order, init_segment, media_info, media_segment, video_order};
use farm::plan::RenditionId;
use farm::stills::{PosterPlan, Showing, StoryboardPlan, Tile};
use farm::task::{Account, KeyFrame};
use farm::text::{StreamName, TextTrackPlan};
use pipelines::encoders::Proof;

const SOURCE_BYTES: u64 = 1000;

fn frame(header: FromChild) -> Frame<FromChild> {
    Frame { header, payload: Bytes::new() }
}

fn init(rendition: u32, timescale: u32) -> Frame<FromChild> {
    Frame { header: FromChild::Init { rendition, timescale }, payload: init_segment(12_800) }
}

fn segment(rendition: u32, frames: u32) -> Frame<FromChild> {
    let (segment, payload) = media_segment(frames);
    Frame { header: FromChild::Segment { rendition, segment }, payload }
}

fn done() -> Frame<FromChild> {
    frame(FromChild::Done(Done::Encoded(Account::default())))
}

/// What the frames come to: the breach that the last of them is, or nothing.
fn breach(order: &Order, frames: Vec<Frame<FromChild>>) -> Option<Breach> {
    let mut session = Session::new(order, SOURCE_BYTES).expect("a good order");
    let mut breach = None;
    for frame in frames {
        assert_eq!(breach, None, "only the last frame is to be a breach");
        breach = session.hear(frame).err();
    }
    breach
}

/// A whole chunk of the test plan: 100 and 50 frames in 2 segments of 2 renditions.
fn whole_chunk() -> Vec<Frame<FromChild>> {
    vec![init(0, 12_800), init(1, 12_800), segment(0, 50), segment(1, 25), segment(1, 25), segment(0, 50)]
}

#[test]
fn a_whole_chunk_is_believed() {
    let mut frames = whole_chunk();
    frames.push(done());
    assert_eq!(breach(&video_order(), frames), None);
}

#[test]
fn sound_that_is_to_be_copied_may_be_encoded_and_nothing_between() {
    let Order::Audio(mut order) = audio_order() else { panic!("not sound") };
    // 8 s: encoded it is 376 packets in segments of 187 and 189.
    order.plan.copy = Some(farm::plan::AacCopy { early_samples: 1088, packets: 377 });
    let order = Order::Audio(order);
    let of = |packets: &[u32]| {
        let mut frames = vec![init(0, 12_800)];
        frames.extend(packets.iter().map(|&packets| segment(0, packets)));
        frames.push(done());
        breach(&order, frames)
    };
    assert_eq!(of(&[187, 189]), None);
    assert_eq!(of(&[187, 190]), None);
    assert!(matches!(of(&[187, 188]), Some(Breach::Incomplete { what: "samples", .. })));
    assert_eq!(breach(&order, vec![init(0, 12_800), segment(0, 378)]), Some(Breach::TooMuchMade(0)));
}

#[test]
fn what_was_not_ordered_is_refused() {
    let video = video_order();
    assert_eq!(breach(&video, vec![init(2, 12_800)]), Some(Breach::NoSuchRendition(2)));
    assert_eq!(breach(&video, vec![segment(9, 50)]), Some(Breach::NoSuchRendition(9)));
    assert_eq!(breach(&Order::Probe, vec![init(0, 12_800)]), Some(Breach::NoSuchRendition(0)));
    assert_eq!(breach(&Order::Probe, vec![done()]), Some(Breach::OtherOrder));
    let probed = || frame(FromChild::Done(Done::Probed(Box::new(media_info(SOURCE_BYTES)))));
    assert_eq!(breach(&video, vec![probed()]), Some(Breach::OtherOrder));
    assert_eq!(breach(&Order::Probe, vec![probed()]), None);
    let other = frame(FromChild::Done(Done::Probed(Box::new(media_info(7)))));
    assert_eq!(breach(&Order::Probe, vec![other]), Some(Breach::OtherSource));
}

#[test]
fn the_sequence_is_init_then_segments_then_the_end() {
    let video = video_order();
    assert_eq!(breach(&video, vec![segment(0, 50)]), Some(Breach::SegmentBeforeInit(0)));
    assert_eq!(breach(&video, vec![init(0, 12_800), init(0, 12_800)]), Some(Breach::SecondInit(0)));
    let mut after = whole_chunk();
    after.extend([done(), frame(FromChild::Progress { media_ns: 0 })]);
    assert_eq!(breach(&video, after), Some(Breach::AfterEnd));
}

#[test]
fn of_a_proof_nothing_is_said_but_how_it_ended() {
    let order = Order::Prove(Proof { codec: "h264".to_owned(), device: None, width: 320, height: 180 });
    let proven = || frame(FromChild::Done(Done::Proven));
    assert_eq!(breach(&order, vec![proven()]), None);
    assert_eq!(breach(&order, vec![frame(FromChild::Failed(Failure::new(Code::EncoderFailed, "it does not")))]), None);
    assert_eq!(breach(&order, vec![done()]), Some(Breach::OtherOrder));
    let read = FromChild::Read { offset: 0, len: 1 };
    for other in [frame(read), frame(FromChild::Progress { media_ns: 0 }), init(0, 12_800), segment(0, 50), cues(0, &[])] {
        assert_eq!(breach(&order, vec![other]), Some(Breach::NoProof));
    }
    for order in [Order::Probe, video_order(), audio_order(), stills_order(), text_order()] {
        assert_eq!(breach(&order, vec![proven()]), Some(Breach::OtherOrder));
    }
}

#[test]
fn amounts_are_those_of_the_order() {
    let video = video_order();
    let mut more = whole_chunk();
    more.push(segment(0, 1));
    assert_eq!(breach(&video, more), Some(Breach::TooMuchMade(0)));
    let mut less = whole_chunk();
    less.pop();
    less.push(done());
    assert_eq!(breach(&video, less), Some(Breach::Incomplete { rendition: 0, what: "segments", made: 1, ordered: 2 }));
    let mut short = whole_chunk();
    short.pop();
    short.extend([segment(0, 49), done()]);
    assert_eq!(breach(&video, short), Some(Breach::Incomplete { rendition: 0, what: "samples", made: 99, ordered: 100 }));
    let sound = |packets: &[u32]| {
        let segments = packets.iter().map(|&packets| segment(0, packets));
        breach(&audio_order(), [init(0, 12_800)].into_iter().chain(segments).chain([done()]).collect())
    };
    let Order::Audio(pipelines::AudioOrder { plan, .. }) = audio_order() else { panic!("an order of sound") };
    let packets: Vec<u32> = plan.segment_packets().into_iter().map(|packets| packets.try_into().expect("few")).collect();
    let ordered = packets.len() as u64;
    assert_eq!(sound(&packets), None);
    assert_eq!(sound(&[]), Some(Breach::Incomplete { rendition: 0, what: "segments", made: 0, ordered }));
}

#[test]
fn a_segment_is_what_it_is_said_to_be() {
    let video = video_order();
    assert_eq!(breach(&video, vec![init(0, 1000)]), Some(Breach::SegmentDiffers), "another time scale");
    let garbage = Frame { header: FromChild::Init { rendition: 0, timescale: 1 }, payload: Bytes::from_static(b"garbage") };
    assert!(matches!(breach(&video, vec![garbage]), Some(Breach::NoSegment(_))));
    let key_frame = KeyFrame { ticks: 0, offset: 24, bytes: 100 };
    let lies: [&dyn Fn(&mut Segment); 4] =
        [&|s| s.bytes += 1, &|s| s.samples -= 1, &|s| s.ticks += 1, &|s| s.key_frames.push(key_frame)];
    for lie in lies {
        let (mut said, payload) = media_segment(50);
        lie(&mut said);
        let frame = Frame { header: FromChild::Segment { rendition: 0, segment: said }, payload };
        assert_eq!(breach(&video, vec![init(0, 12_800), frame]), Some(Breach::SegmentDiffers));
    }
}

#[test]
fn reads_stay_inside_the_source_and_come_to_an_end() {
    for (offset, len) in [(1000, 1), (999, 2), (u64::MAX, 1), (u64::MAX, u32::MAX), (0, 0), (0, READ_BYTES_MAX + 1)] {
        let asked = frame(FromChild::Read { offset, len });
        let refused = Some(Breach::OutsideSource { offset, len, source_bytes: SOURCE_BYTES });
        assert_eq!(breach(&Order::Probe, vec![asked]), refused, "{len} at {offset}");
    }
    let mut session = Session::new(&Order::Probe, 4 << 20).expect("a good order");
    let reads = (0..1000).map(|_| session.hear(frame(FromChild::Read { offset: 0, len: READ_BYTES_MAX })));
    let served = reads.take_while(Result::is_ok).count();
    assert_eq!(served, 8 + 64, "eight times the source and 256 MiB");
    let mut session = Session::new(&Order::Probe, 1).expect("a good order");
    let tiny = (0..1_000_000).map(|_| session.hear(frame(FromChild::Read { offset: 0, len: 1 }))).take_while(Result::is_ok);
    assert!(tiny.count() < 100_000, "tiny reads come to an end too");
}

#[test]
fn a_child_may_not_claim_what_it_cannot_know() {
    for (claimed, believed) in [
        (Code::Interrupted, Code::ChildCrashed),
        (Code::Cancelled, Code::ChildCrashed),
        (Code::StorageFull, Code::ChildCrashed),
        (Code::DeviceFailed, Code::ChildCrashed),
        (Code::NotMedia, Code::NotMedia),
    ] {
        let told = Failure { code: claimed, message: "a\nb".repeat(1000), stream: Some("\u{1b}".repeat(5000)), lasting: false };
        let believed_failure = believable(&told);
        assert_eq!(believed_failure.code, believed);
        assert!(believed_failure.message.len() <= Failure::MESSAGE_BYTES_MAX && !believed_failure.message.contains('\n'));
        assert!(believed_failure.stream.is_some_and(|s| s.len() <= 64 && !s.contains('\u{1b}')));
    }
}

/// An order of a poster and of a storyboard of three pictures, two to a sheet.
fn stills_order() -> Order {
    let tiles = (0..3).map(tile).collect();
    board_order(StoryboardPlan { showing: Showing::KeyFrames, columns: 2, rows: 1, width: 160, height: 90, tiles })
}

fn board_order(board: StoryboardPlan) -> Order {
    let plan = crate::testing::plan().video.expect("a picture");
    let poster = PosterPlan { width: 1280, height: 720, candidates_ns: vec![7] };
    Order::Stills(StillsPlan { track: plan.track, picture: plan.picture, poster: Some(poster), storyboard: Some(board) })
}

fn tile(n: u64) -> Tile {
    Tile { start_ns: n, frame_ns: 10 * n, decode_from_ns: None }
}

fn still(place: StillPlace, (width, height): (u16, u16)) -> Frame<FromChild> {
    let [wide, narrow, high, low] = [width.to_be_bytes(), height.to_be_bytes()].concat()[..] else { panic!("four bytes") };
    let payload = vec![0xFF, 0xD8, 0xFF, 0xC0, 0, 8, 8, high, low, wide, narrow, 0, 0xFF, 0xD9];
    Frame { header: FromChild::Still { place }, payload: payload.into() }
}

fn pictured(poster_ns: Option<u64>, tiles: &[u64]) -> Frame<FromChild> {
    let tiles = tiles.iter().copied().map(tile).collect();
    frame(FromChild::Done(Done::Pictured(Pictured { poster_ns, tiles })))
}

#[test]
fn still_pictures_are_those_of_the_order_and_fit_what_is_told_of_them() {
    use StillPlace::{Poster, Sheet};
    let order = stills_order();
    let all = || vec![still(Sheet(0), (320, 90)), still(Sheet(1), (160, 90)), still(Poster, (1280, 720))];
    let with = |mut frames: Vec<Frame<FromChild>>, last| {
        frames.push(last);
        breach(&order, frames)
    };
    assert_eq!(with(all(), pictured(Some(7), &[0, 1, 2])), None);
    assert_eq!(with(vec![still(Sheet(0), (320, 90))], pictured(None, &[0, 2])), None, "some do not decode");
    assert_eq!(with(vec![], pictured(None, &[])), None);
    for odd in [
        still(Poster, (1280, 718)),
        still(Sheet(1), (160, 90)),
        still(Sheet(0), (480, 90)),
        Frame { header: FromChild::Still { place: Poster }, payload: Bytes::from_static(b"GIF") },
    ] {
        assert_eq!(with(vec![], odd), Some(Breach::OtherStill));
    }
    assert_eq!(with(all(), still(Poster, (1280, 720))), Some(Breach::OtherStill), "a second poster");
    assert_eq!(with(all(), still(Sheet(2), (160, 90))), Some(Breach::OtherStill), "more sheets than pictures");
    for untrue in [
        pictured(None, &[0, 1, 2]),
        pictured(Some(8), &[0, 1, 2]),
        pictured(Some(7), &[0, 1]),
        pictured(Some(7), &[1, 0, 2]),
        pictured(Some(7), &[0, 1, 3]),
        done(),
    ] {
        assert_eq!(with(all(), untrue), Some(Breach::OtherOrder));
    }
    assert_eq!(breach(&video_order(), vec![still(Poster, (1280, 720))]), Some(Breach::OtherStill));
    assert_eq!(breach(&video_order(), vec![pictured(None, &[])]), Some(Breach::OtherOrder));
}

#[test]
fn an_exact_sheet_is_one_and_of_full_size_whatever_is_on_it() {
    use StillPlace::Sheet;
    let tiles = (0..3).map(tile).collect();
    let order = board_order(StoryboardPlan { showing: Showing::Exact, columns: 2, rows: 2, width: 161, height: 91, tiles });
    let whole = || still(Sheet(0), (322, 182));
    assert_eq!(breach(&order, vec![whole(), pictured(None, &[0, 1, 2])]), None);
    assert_eq!(breach(&order, vec![whole(), pictured(None, &[1])]), None, "some do not decode");
    for odd in [still(Sheet(0), (322, 91)), still(Sheet(0), (321, 182)), still(Sheet(1), (322, 182))] {
        assert_eq!(breach(&order, vec![odd]), Some(Breach::OtherStill));
    }
    assert_eq!(breach(&order, vec![whole(), still(Sheet(1), (322, 182))]), Some(Breach::OtherStill), "a second sheet");
    for untrue in [pictured(None, &[]), pictured(None, &[1, 0]), pictured(None, &[3])] {
        assert_eq!(breach(&order, vec![whole(), untrue]), Some(Breach::OtherOrder));
    }
    assert_eq!(breach(&order, vec![pictured(None, &[0])]), Some(Breach::OtherOrder), "there is no sheet");
}

/// An order of two renditions of text, 10 ns long.
fn text_order() -> Order {
    let track = |number: u32| TextTrackPlan {
        id: RenditionId(format!("t{number}")),
        stream: StreamName(number.to_string()),
        language: None,
        name: number.to_string(),
    };
    Order::Text(TextPlan { tracks: vec![track(0), track(1)], origin_ns: 0, duration_ns: 10, segment_ns: 60 })
}

fn cues(rendition: u32, cues: &[(u64, u64, &str)]) -> Frame<FromChild> {
    let cues = cues.iter().map(|(start_ns, end_ns, text)| Cue { start_ns: *start_ns, end_ns: *end_ns, text: (*text).to_owned() });
    let payload = serde_json::to_vec(&cues.collect::<Vec<_>>()).expect("JSON");
    Frame { header: FromChild::Cues { rendition }, payload: payload.into() }
}

fn texted(cues: &[u64]) -> Frame<FromChild> {
    let account = |cues: &u64| TextAccount { cues: *cues, ..TextAccount::default() };
    frame(FromChild::Done(Done::Texted(cues.iter().map(account).collect())))
}

#[test]
fn text_is_proper_and_comes_once_for_each_rendition_in_order() {
    let order = text_order();
    let some = || vec![cues(0, &[(1, 2, "a"), (1, 3, "b")]), cues(1, &[])];
    let with = |mut frames: Vec<Frame<FromChild>>, last| {
        frames.push(last);
        breach(&order, frames)
    };
    assert_eq!(with(some(), texted(&[2, 0])), None);
    for untrue in [texted(&[2]), texted(&[1, 0]), texted(&[2, 0, 0]), done()] {
        assert_eq!(with(some(), untrue), Some(Breach::OtherOrder));
    }
    assert_eq!(with(vec![cues(0, &[])], texted(&[0, 0])), Some(Breach::OtherOrder), "one is missing");
    for unordered in [cues(1, &[]), cues(2, &[])] {
        assert_eq!(with(vec![], unordered), Some(Breach::OtherText));
    }
    assert_eq!(with(some(), cues(2, &[])), Some(Breach::OtherText), "one too many");
    for odd in [&[(2, 3, "a"), (1, 2, "b")][..], &[(1, 11, "a")], &[(1, 2, "a\n\nb")], &[(1, 2, "1 --> 2")], &[(2, 2, "a")]] {
        assert_eq!(with(vec![], cues(0, odd)), Some(Breach::NoCues), "{odd:?}");
    }
    let garbage = Frame { header: FromChild::Cues { rendition: 0 }, payload: Bytes::from_static(b"[{}]") };
    assert_eq!(with(vec![], garbage), Some(Breach::NoCues));
    assert_eq!(breach(&video_order(), vec![cues(0, &[])]), Some(Breach::OtherText));
    assert_eq!(breach(&video_order(), vec![texted(&[])]), Some(Breach::OtherOrder));
}

#[test]
fn the_fuzzers_orders_are_of_every_kind() {
    let orders: Vec<Order> = serde_json::from_str(include_str!("../../fuzz/orders.json")).expect("orders as children are told");
    let kinds: std::collections::HashSet<_> = orders.iter().map(std::mem::discriminant).collect();
    assert_eq!(kinds.len(), 6);
    assert!(orders.iter().all(|order| Session::new(order, SOURCE_BYTES).is_ok()));
}
