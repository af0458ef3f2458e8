//! Tables of sources and the ladders they get.

use farm::Quality;
use farm::job::VideoSpec;
use farm::media::Orientation;

use super::*;
use crate::testing::{picture, rate};

fn made(spec: &LadderSpec, track: &VideoTrack) -> (Ladder, Vec<String>) {
    let mut notes = Vec::new();
    let shape = Shape::of(track).expect("a shape");
    (ladder(spec, shape, track.timing.rate, track.bitrate, &mut notes).expect("a ladder"), notes)
}

fn sizes(ladder: &Ladder) -> String {
    let sizes = ladder.rungs.iter().map(|rung| format!("{}x{}/{}", rung.width, rung.height, rung.divisor));
    sizes.collect::<Vec<_>>().join(" ")
}

fn rungs(texts: &[(u32, Option<&str>)]) -> LadderSpec {
    LadderSpec::Rungs(texts.iter().map(|(height, fps)| RungSpec { height: *height, fps: fps.map(rate), video: None }).collect())
}

#[test]
fn the_automatic_ladder_keeps_the_shape_and_stays_below_the_source() {
    let usual = [
        (1920, 1080, "30", "30/1", "1920x1080/1 1280x720/1 854x480/1 640x360/1 426x240/1"),
        (1280, 720, "60", "60/1", "1280x720/1 854x480/2 640x360/2 426x240/2"),
        (1280, 720, "50", "50/1", "1280x720/1 854x480/2 640x360/2 426x240/2"),
        (1280, 720, "60000/1001", "60000/1001", "1280x720/1 854x480/2 640x360/2 426x240/2"),
        (854, 480, "60", "30/1", "854x480/1 640x360/1 428x240/1"),
        (3840, 2160, "24000/1001", "24000/1001", "3840x2160/1 2560x1440/1 1920x1080/1 1280x720/1 854x480/1 640x360/1 426x240/1"),
        (720, 1080, "25", "25/1", "720x1080/1 480x720/1 360x540/1 240x360/1"),
        (1088, 1088, "10", "10/1", "1080x1080/1 720x720/1 480x480/1 360x360/1 240x240/1"),
        (161, 121, "30", "30/1", "160x120/1"),
        (10, 8, "25", "25/1", "10x8/1"),
        (1, 1, "25", "25/1", "2x2/1"),
        (1920, 1080, "120000/1999", "60/1", "1920x1080/1 1280x720/1 854x480/2 640x360/2 426x240/2"),
        (1920, 1080, "144", "48/1", "1920x1080/1 1280x720/1 854x480/2 640x360/2 426x240/2"),
        (640, 360, "1000", "500/17", "640x360/1 426x240/1"),
        (640, 360, "1/10", "1/1", "640x360/1 426x240/1"),
        (640, 360, "7/10", "7/5", "640x360/1 426x240/1"),
    ];
    for (width, height, fps, grid, expected) in usual {
        let (ladder, notes) = made(&LadderSpec::default(), &picture(width, height, fps, 10));
        assert_eq!(sizes(&ladder), expected, "{width}x{height} at {fps}");
        assert_eq!(ladder.rate, rate(grid), "{width}x{height} at {fps}");
        assert!(notes.is_empty(), "{notes:?}");
    }
}

#[test]
fn pixels_become_square_and_turned_pictures_upright() {
    let mut anamorphic = picture(800, 640, "30", 10);
    anamorphic.pixel_aspect = (64, 45);
    assert_eq!(Shape::of(&anamorphic), Ok(Shape { width: 1138, height: 640 }));
    anamorphic.pixel_aspect = (1, 2);
    assert_eq!(Shape::of(&anamorphic), Ok(Shape { width: 800, height: 1280 }));
    anamorphic.orientation = Orientation { mirrored: true, quarter_turns: 3 };
    assert_eq!(Shape::of(&anamorphic), Ok(Shape { width: 1280, height: 800 }));
    anamorphic.pixel_aspect = (0, 7);
    assert_eq!(Shape::of(&anamorphic), Ok(Shape { width: 640, height: 800 }));
    anamorphic.pixel_aspect = (u32::MAX, 1);
    assert_eq!(Shape::of(&anamorphic).map_err(|failure| failure.code), Err(Code::LimitExceeded));
    for (width, height) in [(0, 100), (100, SIDE_PX_MAX + 1), (SIDE_PX_MAX, SIDE_PX_MAX)] {
        assert!(Shape::of(&picture(width, height, "25", 1)).is_err(), "{width}x{height}");
    }
}

#[test]
fn limits_on_the_automatic_ladder_hold_also_for_small_sources() {
    let limited = |max_height| LadderSpec::Auto(AutoLadder { max_height: Some(max_height) });
    let source = picture(1280, 720, "25", 10);
    assert_eq!(sizes(&made(&limited(480), &source).0), "854x480/1 640x360/1 426x240/1");
    assert_eq!(sizes(&made(&limited(101), &source).0), "178x100/1");
    assert_eq!(sizes(&made(&limited(101), &picture(64, 48, "25", 10)).0), "64x48/1");
}

#[test]
fn rungs_that_cannot_be_made_are_left_out_with_a_note() {
    let source = picture(1280, 720, "50", 10);
    let (ladder, notes) = made(&rungs(&[(1080, None), (480, None), (720, None), (481, Some("50")), (360, Some("50"))]), &source);
    assert_eq!(sizes(&ladder), "1280x720/1 854x480/2 640x360/1");
    assert_eq!(notes.len(), 2, "{notes:?}");
    let (ladder, notes) = made(&rungs(&[(2160, None), (1080, Some("25"))]), &source);
    assert_eq!(sizes(&ladder), "1280x720/1");
    assert_eq!(ladder.rate, rate("25"));
    assert_eq!(notes.len(), 1, "{notes:?}");
}

#[test]
fn the_highest_rung_that_can_be_asked_for_is_of_the_sources_own_size() {
    let own = [(4320, Some("60")), (1080, None), (480, None), (240, None)];
    for (width, height, fps, expected) in [
        (1280, 720, "50", "1280x720/1 854x480/2 426x240/2"),
        (854, 480, "50", "854x480/1 428x240/2"),
        (161, 121, "60", "160x120/1"),
        (10, 8, "25", "10x8/1"),
    ] {
        let (ladder, notes) = made(&rungs(&own), &picture(width, height, fps, 10));
        assert_eq!(sizes(&ladder), expected, "{width}x{height}: {notes:?}");
    }
}

#[test]
fn frame_rates_of_rungs_are_whole_fractions_of_one_grid() {
    let source = picture(1280, 720, "60", 10);
    let (ladder, _) = made(&rungs(&[(720, Some("30")), (480, Some("20"))]), &source);
    assert_eq!((ladder.rate, sizes(&ladder).as_str()), (rate("60"), "1280x720/2 854x480/3"));
    assert_eq!((ladder.common_frames(), ladder.lowest_rate()), (6, rate("20")));
    let shape = Shape::of(&source).expect("a shape");
    let refused = super::ladder(&rungs(&[(720, Some("1/100"))]), shape, rate("60"), 0, &mut Vec::new());
    assert_eq!(refused.map_err(|failure| failure.code), Err(Code::InvalidRequest));
}

#[test]
fn caps_are_those_of_peertube() {
    let listed = [
        (25, 144, 175_106),
        (25, 240, 435_205),
        (25, 360, 864_010),
        (25, 480, 1_228_815),
        (25, 720, 2_534_431),
        (25, 1080, 5_184_064),
        (30, 720, 3_041_318),
        (60, 1440, 19_906_808),
        (60, 2160, 39_813_617),
    ];
    let shape = Shape { width: 3840, height: 2160 };
    for (fps, short, expected) in listed {
        let cap = Cap { shape, short, fps: rate(&fps.to_string()), source_bps: 0 };
        assert_eq!(cap.bps(), expected, "{short}p{fps}");
    }
    let cap = |short, source_bps| Cap { shape, short, fps: rate("30"), source_bps }.bps();
    assert_eq!(cap(720, 1_000_000), 1_300_000);
    assert_eq!(cap(720, 33_000), 42_900, "not inflated");
    assert_eq!(cap(100, 0), 192_000);
    assert_eq!(cap(100, 1), 10_000);
}

#[test]
fn rate_control_is_what_was_asked_for() {
    let cap = Cap { shape: Shape { width: 1280, height: 720 }, short: 720, fps: rate("30"), source_bps: 0 };
    let video = |quality, bitrate, max_bitrate| VideoSpec { codec: VideoCodec::H264, quality, bitrate, max_bitrate };
    let quality =
        |quality: u16, max_bitrate| RateControl::CappedQuality { quality: Quality::of_tenths(10 * quality), max_bitrate };
    for (asked, expected) in [
        (None, quality(23, 3_041_318)),
        (Some(video(None, None, None)), quality(23, 3_041_318)),
        (Some(video(Some(Quality::of_tenths(300)), None, None)), quality(30, 3_041_318)),
        (Some(video(Some(Quality::of_tenths(300)), None, Some(500_000))), quality(30, 500_000)),
        (Some(video(None, Some(400_000), None)), RateControl::Average { bitrate: 400_000, max_bitrate: 400_000 }),
        (Some(video(None, Some(400_000), Some(800_000))), RateControl::Average { bitrate: 400_000, max_bitrate: 800_000 }),
    ] {
        assert_eq!(rate_control(asked.as_ref(), &cap), expected, "{asked:?}");
    }
}

#[test]
fn codecs_of_one_size_are_rungs_of_their_own() {
    let in_codec = |height, codec| RungSpec {
        height,
        fps: None,
        video: Some(VideoSpec { codec, quality: None, bitrate: None, max_bitrate: None }),
    };
    let (h264, hevc, av1) = (VideoCodec::H264, VideoCodec::Hevc, VideoCodec::Av1);
    let asked = [in_codec(360, av1), in_codec(720, av1), in_codec(720, h264), in_codec(720, hevc), in_codec(720, av1)];
    let ids = |ladder: &Ladder| ladder.rungs.iter().map(|rung| rung.id.to_string()).collect::<Vec<_>>();
    let (ladder, notes) = made(&LadderSpec::Rungs(asked.to_vec()), &picture(1280, 720, "25", 10));
    assert_eq!(ids(&ladder), ["v720", "v720-hevc", "v720-av1", "v360-av1"]);
    assert_eq!(notes.len(), 1, "{notes:?}");
    let (ladder, _) = made(&LadderSpec::Rungs(asked[1..].to_vec()), &picture(320, 180, "25", 10));
    assert_eq!(ids(&ladder), ["v180", "v180-hevc", "v180-av1"], "all of them at the source's own size");
    assert!(ladder.rungs.iter().all(|rung| farm::keys::is_rendition(&rung.id.0)));
    let (ladder, notes) = made(&LadderSpec::Rungs(vec![in_codec(360, av1), in_codec(360, hevc)]), &picture(320, 12, "25", 10));
    assert_eq!(
        (ids(&ladder), ladder.rungs[0].codec),
        (vec!["v12".to_owned(), "v12-av1".to_owned()], h264),
        "too small for HEVC: {notes:?}"
    );
}
