//! Steps and what they come to.

use super::*;
use crate::testing::{picture, sound, source};

const SECOND_NS: u64 = farm::rate::SECOND_NS;

fn steps(json: &str) -> Vec<EditStep> {
    serde_json::from_str(json).expect("steps")
}

/// A piece: its source, places, what is heard from where, and what is laid over it.
type Told = (u32, Range<u64>, (u32, u64), Vec<u32>);

/// Clips of a film of 10 s at 25 frames per second, and of others of 2 and 3 s.
fn pieces(json: &str) -> Vec<Told> {
    let film = |seconds| source(vec![picture(640, 360, "25", seconds)], vec![sound(1, 48_000, seconds)]);
    let (main, two, three) = (film(10), film(2), film(3));
    let steps = steps(json);
    let others = BTreeMap::from([(1, &two), (2, &three)]);
    let sources = Sources { main: &main, others: &others };
    let rate = "25".parse().ok();
    let montage = Montage::new(&steps, &sources, rate, &mut Vec::new()).expect("a montage");
    let told = |piece: &Piece| (piece.source, piece.own.clone(), (piece.sound, piece.sound_from), piece.overlays.clone());
    montage.pieces.iter().map(told).collect()
}

#[test]
fn each_step_is_taken_of_what_the_ones_before_left() {
    let plain = |source, own: Range<u64>| (source, own.clone(), (source, own.start), vec![]);
    assert_eq!(pieces(r#"[{"keep": {"from": 2, "to": 4}}]"#), [plain(0, 50..100)]);
    assert_eq!(pieces(r#"[{"keep": {"from": 2}}, {"keep": {"to": 1}}]"#), [plain(0, 50..75)]);
    assert_eq!(
        pieces(r#"[{"remove": [{"from": 8, "to": 9}, {"from": 2, "to": 4}, {"from": 3, "to": 5}]}]"#),
        [plain(0, 0..50), plain(0, 125..200), plain(0, 225..250)],
        "in any order, and overlapping"
    );
    let joined = r#"[{"before": {"url": "s3://b/i"}}, {"after": {"url": "s3://b/o"}}, {"keep": {"from": 1, "to": 13}}]"#;
    assert_eq!(pieces(joined), [plain(1, 25..50), plain(0, 0..250), plain(2, 0..25)]);
}

#[test]
fn what_is_laid_over_or_heard_is_so_of_all_there_is_at_that_step() {
    let overlay = r#"{"overlay": {"source": {"url": "s3://b/w"}, "height": 0.1}}"#;
    let under = |source, own: Range<u64>, over: &[u32]| (source, own.clone(), (source, own.start), over.to_vec());
    // The overlay is source 2 here, or 1.
    assert_eq!(
        pieces(&format!(r#"[{{"before": {{"url": "s3://b/i"}}}}, {overlay}]"#)),
        [under(1, 0..50, &[0]), under(0, 0..250, &[0])]
    );
    let sounds = pieces(
        r#"[{"keep": {"from": 1}}, {"before": {"url": "s3://b/i"}}, {"sound": {"url": "s3://b/s"}}, {"keep": {"from": 1}}]"#,
    );
    assert_eq!(sounds, [(1, 25..50, (2, 25), vec![]), (0, 25..250, (2, 50), vec![])]);
}

#[test]
fn nothing_left_and_sources_that_lack_something_are_refused_by_their_step() {
    let film = source(vec![picture(640, 360, "25", 10)], vec![]);
    let mute = source(vec![picture(640, 360, "25", 2)], vec![]);
    let deaf = source(vec![], vec![sound(1, 48_000, 2)]);
    let refused = |json: &str, other| {
        let (steps, others) = (steps(json), BTreeMap::from([(1, other)]));
        let montage = Montage::new(&steps, &Sources { main: &film, others: &others }, "25".parse().ok(), &mut Vec::new());
        montage.err().expect("refused")
    };
    let nothing = refused(r#"[{"keep": {"from": 2}}, {"keep": {"from": 9}}]"#, &mute);
    assert_eq!((nothing.code, nothing.message.as_str()), (Code::InvalidRequest, "edit: step 2: it leaves nothing of the video"));
    assert_eq!(refused(r#"[{"sound": {"url": "s3://b/s"}}]"#, &mute).code, Code::NoDecodableStream);
    assert_eq!(refused(r#"[{"after": {"url": "s3://b/s"}}]"#, &deaf).code, Code::NoDecodableStream);
}

#[test]
fn clips_lie_in_a_row_and_are_decoded_from_their_key_frames() {
    let mut track = picture(1280, 720, "25", 10);
    track.key_frames_ns = (0..5).map(|number| number * 2 * SECOND_NS).collect();
    let (main, upright) = (source(vec![track], vec![sound(1, 48_000, 10)]), source(vec![picture(360, 640, "50", 2)], vec![]));
    let steps = steps(r#"[{"remove": [{"from": 1, "to": 5}]}, {"after": {"url": "s3://b/o"}}]"#);
    let (others, rate) = (BTreeMap::from([(1, &upright)]), "25".parse().ok());
    let montage = Montage::new(&steps, &Sources { main: &main, others: &others }, rate, &mut Vec::new()).expect("a montage");
    assert_eq!((montage.places(), montage.duration_ns()), (200, 8 * SECOND_NS));
    let spec = farm::job::JobSpec { edit: steps.clone(), ..crate::testing::spec() };
    let plan = crate::plan::plan_at(crate::pace::Pace::USUAL, &spec, &Sources { main: &main, others: &others }).expect("a plan");
    let edit = plan.edit.expect("edits");
    let told =
        |clip: &Clip| (clip.source, clip.start_ns / 1_000_000, clip.origin_ns / 1_000_000, clip.picture.as_ref().map(|p| p.size));
    assert_eq!(
        edit.clips.iter().map(told).collect::<Vec<_>>(),
        [(0, 0, 0, Some((1280, 720))), (0, 1000, 5000, Some((1280, 720))), (1, 6000, 0, Some((406, 720)))]
    );
    assert_eq!(edit.clips[1].picture.as_ref().map(|picture| picture.decode_from_ns), Some(4 * SECOND_NS));
    assert_eq!([0, 25, 125, 150].map(|place| montage.decode_from(place)), [0, 4 * SECOND_NS, 8 * SECOND_NS, 0]);
    assert_eq!(edit.clips.iter().map(|clip| clip.sounds[0].is_some()).collect::<Vec<_>>(), [true, true, false]);
    let video = plan.video.expect("a picture");
    assert_eq!((video.frames, video.picture, plan.origin_ns), (200, PicturePlan::MADE, 0));
    assert_eq!(plan.audio.iter().map(|audio| (audio.samples, audio.copy)).collect::<Vec<_>>(), [(384_000, None)]);
}

#[test]
fn shapes_are_kept_inside_the_frame() {
    for (own, size) in
        [((1920, 1080), (1280, 720)), ((720, 1280), (406, 720)), ((1920, 800), (1280, 534)), ((64, 64), (720, 720))]
    {
        assert_eq!(inside((1280, 720), own), size, "{own:?}");
    }
    assert_eq!(inside((426, 240), (1920, 1080)), (426, 240), "sides that were made even are the same shape");
}
