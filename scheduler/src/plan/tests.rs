//! Tables of sources and what is decided about them, and properties that hold for every source.

use farm::job::{LadderSpec, PosterSpec, Publishing, RungSpec, StoryboardSpec};
use farm::media::{Orientation, TrackId};
use farm::plan::Rung;
use farm::task::TaskId;
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::testing::{picture, rate, sound, source, spec};

fn video_of(info: &MediaInfo, spec: &JobSpec) -> VideoPlan {
    plan(spec, info).expect("a plan").video.expect("a picture")
}

fn spans(video: &VideoPlan) -> Vec<(u64, u64)> {
    video.chunks.iter().map(|chunk| (chunk.start, chunk.end)).collect()
}

#[test]
fn gops_last_two_seconds_and_segments_are_whole_gops() {
    for (width, height, fps, segment_seconds, gop, segment) in [
        (1280, 720, "25", 4, 50, 100),
        (1280, 720, "30000/1001", 4, 60, 120),
        (1280, 720, "24000/1001", 4, 48, 96),
        (1280, 720, "60", 4, 120, 240),
        (1280, 720, "60", 1, 60, 60),
        (1280, 720, "25", 5, 42, 126),
        (1280, 720, "25", 6, 50, 150),
        (1280, 720, "25", 30, 50, 750),
        (640, 360, "1", 1, 1, 1),
    ] {
        let spec = JobSpec { segment_seconds, ..spec() };
        let video = video_of(&source(vec![picture(width, height, fps, 100)], vec![]), &spec);
        assert_eq!((video.gop_frames, video.segment_frames), (gop, segment), "{fps}, {segment_seconds} s");
    }
}

#[test]
fn where_the_grid_has_fewer_frames_decoding_starts_no_later_than_with_the_one_that_is_shown() {
    let source_rate = rate("60");
    for gop in [1, 3, 7, 121] {
        let key_frames_ns = (0..6000).step_by(gop).map(|frame| source_rate.start_ns(frame)).collect();
        let track = VideoTrack { key_frames_ns, ..picture(640, 360, "60", 100) };
        let spec = JobSpec { chunk_seconds: Some(4), ..spec() };
        let video = video_of(&source(vec![track], vec![]), &spec);
        assert_eq!((video.rate, video.chunks.len()), (rate("30"), 25));
        for chunk in &video.chunks {
            let shown = 2 * chunk.start;
            let key = shown - shown % gop as u64;
            assert_eq!(chunk.decode_from_ns, source_rate.start_ns(key), "every {gop}, frame {shown}");
        }
    }
}

#[test]
fn a_picture_that_is_copied_sets_everyones_grid_and_lead() {
    let key_frames_ns = (0..2500).step_by(75).map(|frame| rate("25").start_ns(frame)).collect();
    let h264 = farm::media::H264Packets { keys_are_idr: true, reorder_frames: 3, peak_bps: 2_000_000 };
    let track = VideoTrack { h264: Some(h264), key_frames_ns, ..picture(1280, 720, "25", 100) };
    let made = plan(&spec(), &source(vec![track.clone()], vec![])).expect("a plan");
    let video = made.video.expect("a picture");
    assert_eq!((video.gop_frames, video.segment_frames), (75, 75), "as near to 2 s and 4 s as it has them");
    assert_eq!(video.rungs.iter().map(Rung::is_copied).collect::<Vec<_>>(), [true, false, false, false]);
    assert!(video.chunks.iter().all(|chunk| chunk.start.is_multiple_of(75)), "{:?}", video.chunks);
    assert!(made.lead_ns >= rate("25").start_ns(3), "{} ns", made.lead_ns);
    let never = JobSpec { copy: farm::job::Copying::Never, ..spec() };
    let video = video_of(&source(vec![track], vec![]), &never);
    assert_eq!((video.gop_frames, video.rungs.iter().any(Rung::is_copied)), (50, false));
}

#[test]
fn what_is_published_first_is_an_encoded_rung_of_a_fifth_of_the_work_on_everyones_grid() {
    let staged = |track: VideoTrack, heights: &[u32]| {
        let ladder = match heights {
            [] => LadderSpec::default(),
            heights => LadderSpec::Rungs(heights.iter().map(|&height| RungSpec { height, fps: None, video: None }).collect()),
        };
        let spec = JobSpec { publish: Publishing::InStages, ladder, ..spec() };
        plan(&spec, &source(vec![track], vec![])).expect("a plan")
    };
    for (width, height, fps, heights, wanted) in [
        (1920, 1080, "25", &[][..], Some("v360")),
        (1280, 720, "25", &[], Some("v240")),
        (1280, 720, "50", &[], Some("v240")),
        (1280, 720, "25", &[720, 480], Some("v480")),
        (1280, 720, "25", &[720], None),
        (320, 240, "25", &[], None),
    ] {
        let made = staged(picture(width, height, fps, 600), heights);
        let first = made.first.as_ref().map(|first| first.rungs.iter().map(|rung| rung.id.0.as_str()).collect::<Vec<_>>());
        assert_eq!(first, wanted.map(|rung| vec![rung]), "{height} {heights:?}");
        let whole = video_of(&source(vec![picture(width, height, fps, 600)], vec![]), &spec());
        for video in made.passes().map(|pass| pass.video) {
            assert_eq!((video.frames, video.rate), (whole.frames, whole.rate), "{height} {heights:?}");
            assert_eq!(
                (video.gop_frames, video.segment_frames),
                (whole.gop_frames, whole.segment_frames),
                "{height} {heights:?}"
            );
        }
        assert_eq!(made.notes.iter().any(|note| note.contains("published before")), wanted.is_none(), "{:?}", made.notes);
        let tasks = |name: &str| TaskId::encodes_of(&made).filter(|task| task.to_string().starts_with(name)).count();
        assert!(wanted.is_none() || tasks("first-") > tasks("video-") / 2, "many can be at it at once");
    }
}

#[test]
fn the_largest_rung_comes_first_where_that_is_asked_for_be_it_copied_or_not() {
    let spec = JobSpec { publish: Publishing::LargestFirst, ..spec() };
    let h264 = farm::media::H264Packets { keys_are_idr: true, reorder_frames: 3, peak_bps: 2_000_000 };
    let key_frames_ns = (0..1875).step_by(75).map(|frame| rate("25").start_ns(frame)).collect();
    let fits = VideoTrack { h264: Some(h264), key_frames_ns, ..picture(1280, 720, "25", 75) };
    for (track, is_copied) in [(picture(1280, 720, "25", 75), false), (fits.clone(), true)] {
        let made = plan(&spec, &source(vec![track], vec![])).expect("a plan");
        let ids = |video: &VideoPlan| video.rungs.iter().map(|rung| rung.id.0.clone()).collect::<Vec<_>>();
        let (first, rest) = (made.first.as_ref().expect("a first"), made.video.as_ref().expect("others"));
        assert_eq!((ids(first), ids(rest)), (vec!["v720".to_owned()], ["v480", "v360", "v240"].map(str::to_owned).to_vec()));
        assert_eq!(first.rungs.iter().any(Rung::is_copied), is_copied);
    }
    let copy_first = JobSpec { publish: Publishing::CopyFirst, ..spec.clone() };
    let first_of = |track| plan(&copy_first, &source(vec![track], vec![])).expect("a plan").first.is_some();
    assert!(first_of(fits) && !first_of(picture(1280, 720, "25", 75)), "only where it costs nothing");
    let small = LadderSpec::Rungs(vec![RungSpec { height: 720, fps: None, video: None }]);
    let alone = plan(&JobSpec { ladder: small, ..spec }, &source(vec![picture(1280, 720, "25", 75)], vec![])).expect("a plan");
    assert!(alone.first.is_none(), "there is nothing that it could be before");
}

#[test]
fn only_a_video_that_is_one_piece_of_work_has_threads() {
    let threads = |seconds| {
        let video = video_of(&source(vec![picture(1280, 720, "25", seconds)], vec![]), &spec());
        video.rungs.iter().map(|rung| rung.threads.get()).collect::<Vec<_>>()
    };
    assert_eq!(threads(60), [2, 1, 1, 1]);
    assert_eq!(threads(150), [1, 1, 1, 1]);
}

#[test]
fn chunks_are_whole_segments_of_nearly_equal_number() {
    let cut = |seconds, chunk_seconds| {
        let spec = JobSpec { chunk_seconds, ..spec() };
        spans(&video_of(&source(vec![picture(1280, 720, "25", seconds)], vec![]), &spec))
    };
    assert_eq!(cut(64, Some(32)), [(0, 1600)], "up to two chunk lengths it is one");
    assert_eq!(cut(65, Some(32)), [(0, 900), (900, 1625)], "17 segments in 9 and 8");
    assert_eq!(cut(100, Some(32)), [(0, 900), (900, 1700), (1700, 2500)]);
    assert_eq!(cut(100, None), [(0, 2500)], "a minute of work is one");
    assert_eq!(cut(150, None), [(0, 1300), (1300, 2600), (2600, 3200), (3200, 3750)], "the last third in smaller ones");
    assert_eq!(cut(10, Some(4)), [(0, 100), (100, 200), (200, 250)]);
    assert_eq!(cut(0, None), [(0, 1)], "never empty");
    assert_eq!(cut(9, Some(1)), [(0, 100), (100, 200), (200, 225)], "a chunk is a segment at least");
}

#[test]
fn very_long_sources_get_longer_chunks_instead_of_more() {
    let spec = JobSpec { chunk_seconds: Some(1), segment_seconds: 1, ..spec() };
    let video = video_of(&source(vec![picture(320, 240, "25", 100 * 3600)], vec![]), &spec);
    assert!(video.chunks.len() as u64 <= CHUNKS_MAX && video.chunks.len() > 10_000, "{}", video.chunks.len());
}

#[test]
fn presentation_starts_with_the_picture_unless_the_sound_is_much_earlier() {
    let ms = |ms: u64| ms * 1_000_000;
    for (picture_ms, sound_ms, origin_ms, frames, notes) in
        [(0, 0, 0, 250, 0), (1000, 0, 0, 250, 1), (1000, 750, 1000, 225, 0), (1000, 749, 749, 231, 1), (0, 5000, 0, 250, 0)]
    {
        let mut video = picture(640, 360, "25", 10);
        video.timing.start_ns = ms(picture_ms);
        let mut audio = sound(1, 48_000, 10);
        audio.start_ns = ms(sound_ms);
        let plan = plan(&spec(), &source(vec![video], vec![audio])).expect("a plan");
        assert_eq!(plan.origin_ns, ms(origin_ms), "picture {picture_ms}, sound {sound_ms}");
        assert_eq!(plan.video.expect("a picture").frames, frames, "picture {picture_ms}, sound {sound_ms}");
        assert_eq!(plan.notes.len(), notes, "{:?}", plan.notes);
    }
}

#[test]
fn sound_keeps_its_length_and_it_is_said_when_it_ends_early() {
    let samples = |sound_ms: u64| {
        let mut audio = sound(1, 48_000, 0);
        audio.end_ns = sound_ms * 1_000_000;
        let plan = plan(&spec(), &source(vec![picture(640, 360, "25", 10)], vec![audio])).expect("a plan");
        (plan.audio.first().expect("sound").samples, plan.duration_ns / 1_000_000, plan.notes.len())
    };
    assert_eq!(samples(10_000), (480_000, 10_000, 0));
    assert_eq!(samples(9_500), (456_000, 10_000, 0));
    assert_eq!(samples(9_499), (455_952, 10_000, 1));
    assert_eq!(samples(10_040), (481_920, 10_040, 0));
    assert_eq!(samples(12_000), (576_000, 12_000, 1));
}

#[test]
fn sound_is_made_at_a_usual_rate_and_does_not_inflate() {
    for (source, expected) in
        [(48_000, 48_000), (44_100, 44_100), (22_050, 44_100), (96_000, 48_000), (8000, 48_000), (0, 48_000)]
    {
        assert_eq!(output_rate(source), expected, "{source} Hz");
    }
    for (source, expected) in
        [(0, 128_000), (1, 48_000), (64_000, 64_000), (64_001, 80_000), (320_000, 128_000), (u64::MAX, 128_000)]
    {
        assert_eq!(output_bps(source), expected, "{source} bit/s");
    }
}

#[test]
fn sound_tracks_have_different_names_and_the_first_is_the_default() {
    let mut tracks: Vec<_> = (1..=10).map(|number| sound(number, 48_000, 10)).collect();
    tracks[0].title = Some("  Commentary\n".to_owned());
    tracks[1].title = Some("Commentary".to_owned());
    tracks[2].language = Some("de".to_owned());
    tracks[3].language = Some("und".to_owned());
    tracks[4].language = Some("\"x".to_owned());
    let plan = plan(&spec(), &source(vec![], tracks)).expect("a plan");
    let names: Vec<_> = plan.audio.iter().map(|audio| audio.name.as_str()).collect();
    assert_eq!(names, ["Commentary", "Commentary 2", "de", "Audio 4", "Audio 5", "Audio 6", "Audio 7", "Audio 8"]);
    let languages: Vec<_> = plan.audio.iter().filter_map(|audio| audio.language.as_deref()).collect();
    assert_eq!(languages, ["de"]);
    assert_eq!(plan.audio.iter().filter(|audio| audio.default).count(), 1);
    assert_eq!(plan.audio[0].segment_ns, 4 * SECOND_NS);
    assert_eq!(plan.notes, ["2 sound tracks are left out: up to 8 are made"]);
    assert_eq!(plan.lead_ns, 42_666_667);
    assert_eq!(TaskId::encodes_of(&plan).count(), 8);
}

#[test]
fn the_lead_holds_two_frames_of_the_lowest_rate_in_whole_packets_of_sound() {
    let lead = |fps, height, hertz| {
        let info = source(vec![picture(height * 16 / 9, height, fps, 10)], vec![sound(1, hertz, 10)]);
        plan(&spec(), &info).expect("a plan").lead_ns
    };
    // Two frames at 30 frames per second are 3200 samples, at 24 they are 3675: four packets each.
    assert_eq!(lead("60", 720, 48_000), 85_333_334);
    assert_eq!(lead("24", 480, 44_100), 92_879_819);
    let silent = plan(&spec(), &source(vec![picture(640, 360, "25", 10)], vec![])).expect("a plan");
    assert_eq!(silent.lead_ns % 1_000_000, 333_334, "four packets of 48 kHz: {}", silent.lead_ns);
}

#[test]
fn the_largest_picture_is_made_and_the_first_of_equals() {
    let mut tracks = vec![picture(320, 240, "25", 1), picture(640, 480, "25", 1), picture(480, 640, "25", 1)];
    for (number, track) in (0..).zip(&mut tracks) {
        track.track = TrackId(number);
    }
    let plan = plan(&spec(), &source(tracks, vec![])).expect("a plan");
    assert_eq!(plan.video.expect("a picture").track, TrackId(1));
    assert_eq!(plan.notes.len(), 2);
}

#[test]
fn hostile_sources_are_refused_by_name() {
    let long = source(vec![], vec![sound(1, 48_000, 100 * 3600 + 1)]);
    let many = source(vec![], (0..33).map(|number| sound(number, 48_000, 1)).collect());
    let large = source(vec![picture(farm::media::VideoTrack::SIDE_PX_MAX + 1, 16, "25", 1)], vec![]);
    for info in [long, many, large] {
        assert_eq!(plan(&spec(), &info).map_err(|failure| failure.code), Err(Code::LimitExceeded));
    }
    assert_eq!(plan(&spec(), &source(vec![], vec![])).map_err(|failure| failure.code), Err(Code::NoDecodableStream));
    let rungs = [60, 9, 8, 6, 5].map(|fps| RungSpec { height: 200 + 2 * fps, fps: Rate::new(fps, 1), video: None });
    let spec = JobSpec { ladder: LadderSpec::Rungs(rungs.to_vec()), ..spec() };
    let refused = plan(&spec, &source(vec![picture(1280, 720, "60", 10)], vec![]));
    assert_eq!(refused.map_err(|failure| failure.code), Err(Code::InvalidRequest));
}

#[test]
fn of_still_pictures_alone_nothing_else_is_made_and_their_times_are_those_of_the_video() {
    let storyboard = Some(StoryboardSpec { seconds: Some(5), exact_width: Some(193), ..StoryboardSpec::default() });
    let hls = JobSpec { poster: Some(PosterSpec::default()), storyboard, publish: Publishing::InStages, ..spec() };
    let mut alone = JobSpec { make: Make::Stills, ..hls.clone() };
    alone.output.mp4 = Mp4::EachRung;
    let mut track = picture(1280, 720, "25", 101);
    track.timing.start_ns = SECOND_NS;
    // As a clock of 90 kHz rounds it.
    track.timing.end_ns += 11_111;
    track.key_frames_ns = (1..101).step_by(10).map(|second| second * SECOND_NS).collect();
    let info = source(vec![track], (1..=9).map(|number| sound(number, 48_000, 100)).collect());
    let (made, video) = (plan(&alone, &info).expect("a plan"), plan(&hls, &info).expect("a plan"));
    assert!(!made.has_media() && made.text.is_none() && made.mp4 == Mp4::None && video.has_media());
    assert_eq!(TaskId::encodes_of(&made).chain(TaskId::joins_of(&made)).collect::<Vec<_>>(), [TaskId::Stills]);
    assert_eq!((made.origin_ns, &made.stills), (video.origin_ns, &video.stills));
    assert_eq!(made.duration_ns, 101 * SECOND_NS, "the picture is late by a second");
    assert_eq!(made.notes.len(), 1, "{:?}", made.notes);
    let heard = source(vec![], vec![sound(1, 48_000, 10)]);
    let refused = plan(&alone, &heard).expect_err("no picture");
    assert_eq!(refused.code, Code::NoDecodableStream);
    assert!(refused.message.starts_with("there is no picture"), "{refused}");
    assert!(plan(&hls, &heard).expect("a plan").stills.is_none());
}

fn any_rate() -> impl Strategy<Value = Rate> {
    (1..=u32::MAX, 1..=u32::MAX).prop_filter_map("a rate", |(num, den)| Rate::new(num, den))
}

fn usual_rate() -> impl Strategy<Value = Rate> {
    prop::sample::select(vec!["24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60", "120", "90000/1001", "10"])
        .prop_map(rate)
}

fn any_picture() -> impl Strategy<Value = VideoTrack> {
    let rates = proptest::prop_oneof![usual_rate(), any_rate()];
    let shape = (1..5000_u32, 1..5000_u32, (any::<u8>(), any::<u8>()), 0..4_u8);
    (rates, shape, any::<u32>(), 0..4 * 3600 * SECOND_NS).prop_map(|(rate, (width, height, aspect, turns), start, length_ns)| {
        let mut track = picture(width, height, "25", 0);
        track.pixel_aspect = (aspect.0.into(), aspect.1.into());
        track.orientation = Orientation { mirrored: false, quarter_turns: turns };
        track.timing.rate = rate;
        track.timing.start_ns = start.into();
        track.timing.end_ns = u64::from(start) + length_ns;
        track
    })
}

fn any_spec() -> impl Strategy<Value = JobSpec> {
    let rung = (16..4320_u32, prop::option::of(1..=60_u32));
    let ladder = prop::option::of(prop::collection::vec(rung, 1..5));
    (1..=30_u32, prop::option::of(1..=3600_u32), ladder).prop_map(|(segment_seconds, chunk_seconds, rungs)| {
        let to_rung =
            |(height, fps): (u32, Option<u32>)| RungSpec { height, fps: fps.and_then(|fps| Rate::new(fps, 1)), video: None };
        let ladder = rungs.map(|rungs| LadderSpec::Rungs(rungs.into_iter().map(to_rung).collect())).unwrap_or_default();
        JobSpec { segment_seconds, chunk_seconds, ladder, ..spec() }
    })
}

proptest! {
    #[test]
    fn what_holds_for_every_plan(spec in any_spec(), track in any_picture(), seconds in 0..20_000_u64) {
        let shape = Shape::of(&track);
        let info = source(vec![track], vec![sound(1, 44_100, seconds)]);
        let made = plan(&spec, &info);
        prop_assert_eq!(&made, &plan(&spec, &info), "the same arguments give the same plan");
        let (Ok(plan), Ok(shape)) = (made, shape) else { return Ok(()) };
        let video = plan.video.expect("a picture");

        let segment = u64::from(video.segment_frames);
        prop_assert_eq!(video.chunks.first().map(|chunk| chunk.start), Some(0));
        prop_assert_eq!(video.chunks.last().map(|chunk| chunk.end), Some(video.frames));
        for pair in video.chunks.windows(2) {
            prop_assert_eq!(pair[0].end, pair[1].start);
        }
        for chunk in &video.chunks {
            prop_assert!(chunk.start < chunk.end && chunk.start % segment == 0);
        }
        let segments = |chunk: &Chunk| (chunk.end - chunk.start).div_ceil(segment);
        let sizes: Vec<_> = video.chunks.iter().map(segments).collect();
        // By a segment, where the last third begins and where the last segment is longer than the others and counts for two.
        prop_assert!(sizes.is_sorted_by(|a, b| a + 1 >= *b), "{sizes:?}");
        if spec.chunk_seconds.is_some() {
            prop_assert!(sizes.iter().all(|size| size + 1 >= sizes[0] && *size <= sizes[0] + 1), "{sizes:?}");
        }

        prop_assert_eq!(video.segment_frames % video.gop_frames, 0);
        prop_assert!(!video.rungs.is_empty());
        for (rung, below) in video.rungs.iter().zip(video.rungs.iter().skip(1).map(Some).chain([None])) {
            prop_assert!(rung.width % 2 == 0 && rung.height % 2 == 0);
            prop_assert!(rung.width.min(rung.height) >= 2);
            prop_assert!(rung.height <= shape.own_size().1 && rung.width <= shape.own_size().0);
            prop_assert!(below.is_none_or(|below| below.width.min(below.height) < rung.width.min(rung.height)));
            prop_assert_eq!(video.gop_frames % rung.divisor.get(), 0);
            let rate = video.rate.divided_by(rung.divisor.get()).expect("a rate");
            prop_assert!(u128::from(plan.lead_ns) * u128::from(rate.num()) >= 2 * u128::from(SECOND_NS) * u128::from(rate.den()));
        }
        prop_assert!(plan.duration_ns >= video.rate.start_ns(video.frames));
        prop_assert!(plan.audio.iter().all(|audio| audio.samples > 0));
    }
}
