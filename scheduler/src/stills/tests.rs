//! Which key frames are chosen, and what the track says of them.

use farm::media::Orientation;
use farm::task::Object;

use super::*;
use crate::testing::{picture, spec};

/// A source of so many seconds with a key frame every so many, asked for these pictures.
fn planned(seconds: u64, key_seconds: usize, poster: Option<PosterSpec>, storyboard: Option<StoryboardSpec>) -> StillsPlan {
    let spec = JobSpec { poster, storyboard, ..spec() };
    let mut track = picture(1280, 720, "25", seconds);
    track.key_frames_ns = (0..seconds).step_by(key_seconds).map(|second| (second + 1) * SECOND_NS).collect();
    let upright = picture_plan();
    plan(&spec, &track, &upright, (SECOND_NS, seconds * SECOND_NS)).expect("a plan").expect("pictures")
}

fn picture_plan() -> PicturePlan {
    let track = picture(1280, 720, "25", 1);
    PicturePlan { orientation: track.orientation, interlace: track.interlace, colour: track.colour }
}

fn grid(columns: u32, rows: u32, height: u32, seconds: Option<u32>) -> StoryboardSpec {
    StoryboardSpec { columns, rows, height, seconds, exact_width: None }
}

fn exact(columns: u32, rows: u32, (width, height): (u32, u32), seconds: u32) -> StoryboardSpec {
    StoryboardSpec { exact_width: Some(width), ..grid(columns, rows, height, Some(seconds)) }
}

#[test]
fn nothing_is_made_unless_it_is_asked_for() {
    let track = picture(1280, 720, "25", 10);
    assert_eq!(plan(&spec(), &track, &picture_plan(), (0, 10 * SECOND_NS)).expect("a plan"), None);
}

#[test]
fn a_poster_is_looked_for_at_a_tenth_first_and_never_twice_at_a_place() {
    let stills = planned(100, 2, Some(PosterSpec { height: Some(360) }), None);
    let poster = stills.poster.expect("a poster");
    assert_eq!((poster.width, poster.height), (640, 360));
    let seconds: Vec<u64> = poster.candidates_ns.iter().map(|ns| ns / SECOND_NS - 1).collect();
    assert_eq!(seconds, [10, 20, 32, 4, 50, 0]);
    let stills = planned(100, 100, Some(PosterSpec { height: None }), None);
    let poster = stills.poster.expect("a poster");
    assert_eq!((poster.width, poster.height, poster.candidates_ns), (1280, 720, vec![SECOND_NS]));
}

#[test]
fn a_storyboard_fills_one_sheet_or_goes_by_seconds() {
    let board = |spec| planned(1000, 2, None, Some(spec)).storyboard.expect("a storyboard");
    let one = board(grid(5, 4, 90, None));
    assert_eq!((one.tiles.len(), one.width, one.height), (20, 160, 90));
    assert_eq!(one.tiles[1], Tile { start_ns: 50 * SECOND_NS, frame_ns: 51 * SECOND_NS, decode_from_ns: None });
    let many = board(grid(5, 4, 90, Some(10)));
    assert_eq!(many.tiles.len(), 100);
    let often = board(grid(5, 4, 90, Some(1)));
    assert_eq!(often.tiles.len(), 500, "no more than there are key frames");
    assert!(often.tiles.iter().all(|tile| tile.start_ns + SECOND_NS == tile.frame_ns), "each where it is shown");
}

#[test]
fn an_exact_storyboard_has_the_frames_of_its_times_and_the_key_frames_before_them() {
    // A key frame every 10 s; stream times are a second later.
    let board = |seconds, spec| planned(seconds, 10, None, Some(spec)).storyboard.expect("a storyboard");
    let made = board(35, exact(4, 3, (193, 109), 6));
    assert_eq!((made.showing, made.width, made.height), (Showing::Exact, 193, 109));
    assert_eq!(made.sheet_size(made.tiles.len()), (4 * 193, 3 * 109));
    let seconds = |of: fn(&Tile) -> u64| made.tiles.iter().map(|tile| of(tile) / SECOND_NS).collect::<Vec<_>>();
    assert_eq!(seconds(|tile| tile.start_ns), [0, 6, 12, 18, 24, 30]);
    assert_eq!(seconds(|tile| tile.frame_ns), [1, 7, 13, 19, 25, 31]);
    let from = made.tiles.iter().map(|tile| tile.decode_from_ns.expect("a key frame") / SECOND_NS).collect::<Vec<_>>();
    assert_eq!(from, [0, 0, 11, 11, 21, 31], "0 is the start of the source; a key frame that is on screen is the last");
    for (seconds, spec, tiles) in [
        (35, exact(4, 3, (16, 16), 5), 7),
        (36, exact(4, 3, (16, 16), 5), 8),
        (36, exact(2, 3, (16, 16), 5), 6),
        (1, exact(2, 3, (16, 16), 5), 1),
        (100_000, exact(64, 64, (16, 16), 1), 4096),
    ] {
        assert_eq!(board(seconds, spec.clone()).tiles.len(), tiles, "{seconds} s: {spec:?}");
    }
}

#[test]
fn an_exact_picture_is_not_smaller_than_asked_and_shows_the_first_frame_before_there_is_any() {
    let asked = |board| JobSpec { storyboard: Some(board), ..spec() };
    let track = picture(64, 36, "25", 10);
    // The sound starts two seconds before the picture.
    let mut late = track.clone();
    late.timing.start_ns = 2 * SECOND_NS;
    late.key_frames_ns = vec![2 * SECOND_NS, 7 * SECOND_NS];
    let stills = plan(&asked(exact(11, 1, (192, 107), 1)), &late, &picture_plan(), (0, 10 * SECOND_NS));
    let board = stills.expect("a plan").expect("pictures").storyboard.expect("a storyboard");
    assert_eq!((board.width, board.height), (192, 107));
    let frames: Vec<u64> = board.tiles.iter().map(|tile| tile.frame_ns / SECOND_NS).collect();
    assert_eq!(frames, [2, 2, 2, 3, 4, 5, 6, 7, 8, 9]);
    let refused = plan(&asked(exact(64, 64, (720, 720), 1)), &track, &picture_plan(), (0, 10 * SECOND_NS));
    assert_eq!(refused.map_err(|failure| failure.code), Err(Code::InvalidRequest));
}

#[test]
fn pictures_stay_upright_in_shape_and_sheets_within_limits() {
    let mut track = picture(1280, 720, "25", 10);
    track.orientation = Orientation { mirrored: false, quarter_turns: 1 };
    let asked = |board| JobSpec { storyboard: Some(board), ..spec() };
    let span = (0, 10 * SECOND_NS);
    let upright = plan(&asked(grid(2, 2, 90, None)), &track, &picture_plan(), span).expect("a plan").expect("pictures");
    let board = upright.storyboard.expect("a storyboard");
    assert_eq!((board.width, board.height), (90, 160));
    let refused = plan(&asked(grid(32, 32, 720, None)), &track, &picture_plan(), span);
    assert_eq!(refused.map_err(|failure| failure.code), Err(Code::InvalidRequest));
}

#[test]
fn the_track_leads_from_time_to_place_and_leaves_no_gap() {
    let plan = planned(20, 2, None, Some(grid(2, 2, 90, Some(4)))).storyboard.expect("a storyboard");
    let sheet = |n| Object { key: format!("stills/0123456789abcdef/{n}.jpg"), bytes: 1, sha256: String::new() };
    // The first did not decode.
    let made = Stills { poster: None, sheets: vec![sheet(0)], tiles: plan.tiles[1..].to_vec() };
    let expected = "WEBVTT\n\n\
        00:00:00.000 --> 00:00:08.000\n0123456789abcdef/0.jpg#xywh=0,0,160,90\n\n\
        00:00:08.000 --> 00:00:12.000\n0123456789abcdef/0.jpg#xywh=160,0,160,90\n\n\
        00:00:12.000 --> 00:00:16.000\n0123456789abcdef/0.jpg#xywh=0,90,160,90\n\n\
        00:00:16.000 --> 00:00:20.000\n0123456789abcdef/0.jpg#xywh=160,90,160,90\n";
    assert_eq!(track(&plan, &made, 20 * SECOND_NS), expected);
    let long = Stills { poster: None, sheets: vec![sheet(0), sheet(1)], tiles: plan.tiles.clone() };
    let text = track(&plan, &long, 4000 * SECOND_NS);
    assert!(text.ends_with("00:00:16.000 --> 01:06:40.000\n0123456789abcdef/1.jpg#xywh=0,0,160,90\n"), "{text}");
}

#[test]
fn the_track_of_an_exact_storyboard_leads_to_each_pictures_own_place() {
    let plan = planned(20, 2, None, Some(exact(2, 2, (33, 17), 5))).storyboard.expect("a storyboard");
    let sheet = Object { key: "stills/0123456789abcdef/0.jpg".to_owned(), bytes: 1, sha256: String::new() };
    // The third did not decode.
    let tiles = [0, 1, 3].map(|number| plan.tiles[number]).to_vec();
    let expected = "WEBVTT\n\n\
        00:00:00.000 --> 00:00:05.000\n0123456789abcdef/0.jpg#xywh=0,0,33,17\n\n\
        00:00:05.000 --> 00:00:15.000\n0123456789abcdef/0.jpg#xywh=33,0,33,17\n\n\
        00:00:15.000 --> 00:00:20.000\n0123456789abcdef/0.jpg#xywh=33,17,33,17\n";
    let made = Stills { poster: None, sheets: vec![sheet], tiles };
    assert_eq!(track(&plan, &made, 20 * SECOND_NS), expected);
}
