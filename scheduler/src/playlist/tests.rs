//! Playlists as they are written, and as others read them.

use farm::job::Layout;
use farm::media::{MediaInfo, TextTrack};
use farm::plan::RenditionId;
use farm::task::{Object, Outcome, Segment, TaskId};
use farm::text::StreamName;
use m3u8_rs::{AlternativeMedia, MasterPlaylist, MediaPlaylist};
use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::plan::plan;
use crate::seal::{Media, Piece, seal};
use crate::testing::{markers, picture, sound, source, spec};

fn sealed(layout: Layout, info: &MediaInfo) -> Seal {
    let mut spec = spec();
    spec.output.layout = layout;
    spec.chunk_seconds = Some(8);
    let plan = plan(&spec, info).expect("a plan");
    seal(&plan, &markers(&plan, info)).expect("a seal")
}

/// The usual multivariant playlist.
fn multivariant(seal: &Seal) -> String {
    super::multivariant(Set::all(seal).first().expect("there always is one"))
}

fn ordinary(layout: Layout) -> Seal {
    let mut second = sound(2, 48_000, 30);
    second.language = Some("de".to_owned());
    second.title = Some("Kommentar \"frei\"".to_owned());
    sealed(layout, &source(vec![picture(1920, 1080, "30000/1001", 30)], vec![sound(1, 48_000, 30), second]))
}

fn read_media(text: &str) -> MediaPlaylist {
    let (rest, playlist) = m3u8_rs::parse_media_playlist(text.as_bytes()).expect("a media playlist");
    assert!(rest.is_empty());
    playlist
}

fn read_master(text: &str) -> MasterPlaylist {
    let (rest, playlist) = m3u8_rs::parse_master_playlist(text.as_bytes()).expect("a multivariant playlist");
    assert!(rest.is_empty());
    playlist
}

#[test]
fn a_media_playlist_names_every_segment_in_order() {
    let seal = ordinary(Layout::Segments);
    let rendition = &seal.renditions[0];
    let text = media(rendition);
    let playlist = read_media(&text);
    assert_eq!((playlist.version, playlist.target_duration, playlist.end_list), (Some(7), 4, true));
    assert_eq!(playlist.playlist_type, Some(m3u8_rs::MediaPlaylistType::Vod));
    let keys: Vec<String> = playlist.segments.iter().map(|segment| format!("v1080/{}", segment.uri)).collect();
    let inits = playlist.segments.iter().filter_map(|segment| segment.map.as_ref()).map(|map| format!("v1080/{}", map.uri));
    assert_eq!(inits.chain(keys).collect::<Vec<_>>(), rendition.keys());
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("#EXTINF")).collect();
    assert_eq!(lines[..7], ["#EXTINF:4.004000,"; 7]);
    assert_eq!(lines[7..], ["#EXTINF:1.968633,"], "899 frames in all");
}

#[test]
fn a_single_file_is_addressed_by_ranges_without_gaps() {
    let seal = ordinary(Layout::SingleFile);
    for rendition in &seal.renditions {
        let Media::File { object, init_bytes, .. } = &rendition.media else { panic!("a file") };
        let playlist = read_media(&media(rendition));
        let map = playlist.segments[0].map.as_ref().expect("a map");
        let range = map.byte_range.as_ref().expect("a range");
        assert_eq!((range.offset, range.length), (Some(0), *init_bytes));
        let mut end = *init_bytes;
        for segment in &playlist.segments {
            let range = segment.byte_range.as_ref().expect("a range");
            assert_eq!(format!("{}/{}", rendition.id, segment.uri), object.key);
            assert_eq!(range.offset, Some(end));
            end += range.length;
        }
        assert_eq!(end, object.bytes);
    }
}

/// The I-frame playlist of a rendition, read: for each entry the object's key, its range, and its duration in s.
fn read_i_frames(rendition: &Rendition) -> Vec<(String, std::ops::Range<u64>, f32)> {
    let text = i_frames_only(rendition);
    let playlist = read_media(&text);
    assert!(playlist.i_frames_only && playlist.end_list, "{text}");
    let entry = |segment: &m3u8_rs::MediaSegment| {
        let range = segment.byte_range.as_ref().expect("a range");
        let start = range.offset.expect("where it begins");
        (format!("{}/{}", rendition.id, segment.uri), start..start + range.length, segment.duration)
    };
    playlist.segments.iter().map(entry).collect()
}

#[test]
fn the_i_frame_playlist_names_every_key_frame_by_its_bytes() {
    let (many, one) = (ordinary(Layout::Segments), ordinary(Layout::SingleFile));
    let frames = read_i_frames(&many.renditions[0]);
    assert_eq!(frames.len(), 15, "899 frames at 29.97/s, a GOP of 60");
    assert!(frames[..14].iter().all(|(.., lasts)| (lasts - 2.002).abs() < 1e-5));
    let rest = 899.0 * 1001.0 / 30_000.0 - 14.0 * 2.002;
    assert!((f64::from(frames[14].2) - rest).abs() < 1e-5, "{} s until the end, not {rest}", frames[14].2);
    let objects: Vec<&str> = many.renditions[0].keys()[1..].to_vec();
    assert!(frames.iter().enumerate().all(|(n, (key, ..))| *key == objects[n / 2]), "{frames:?}");
    assert_eq!((frames[0].1.clone(), frames[1].1.clone()), (24..324, 524..825));
    let Media::File { init_bytes, segments, .. } = &one.renditions[0].media else { panic!("a file") };
    let second = init_bytes + segments[0].bytes;
    assert_eq!(read_i_frames(&one.renditions[0])[2].1, second + 24..second + 324);
}

#[test]
fn i_frame_variants_say_what_their_playlists_cost() {
    let seal = ordinary(Layout::Segments);
    let master = read_master(&multivariant(&seal));
    let uris: Vec<_> = master.variants.iter().filter(|variant| variant.is_i_frame).map(|variant| variant.uri.as_str()).collect();
    assert_eq!(uris[0], "v1080/i-frames.m3u8");
    assert_eq!(uris.len(), 5, "one for each rung: {uris:?}");
    let first = master.variants.iter().find(|variant| variant.is_i_frame).expect("one");
    assert_eq!((first.codecs.as_deref(), first.audio.as_deref()), (Some("avc1.640028"), None));
    // The last of the entries lasts as its frames do, 59 of them; its run of a target duration is the dearest.
    let last_bps = (8.0_f64 * 300.0 / (59.0 * 1001.0 / 30_000.0)).ceil() as u64;
    let pair_bps = (8.0_f64 * (301.0 + 300.0) / (119.0 * 1001.0 / 30_000.0)).ceil() as u64;
    assert_eq!(first.bandwidth, last_bps.max(pair_bps));
}

#[test]
fn another_init_is_named_where_it_begins() {
    let info = source(vec![picture(426, 240, "25", 30)], vec![]);
    let plan = plan(&farm::job::JobSpec { chunk_seconds: Some(8), ..spec() }, &info).expect("a plan");
    let mut markers = markers(&plan, &info);
    if let Outcome::Encoded { renditions, .. } = &mut markers.get_mut(&TaskId::Video(2)).expect("a marker").outcome {
        renditions[0].init.sha256 = "other".to_owned();
    }
    let text = media(&seal(&plan, &markers).expect("a seal").renditions[0]);
    let changes: Vec<_> =
        text.lines().filter(|line| line.starts_with("#EXT")).map(|line| line.starts_with("#EXT-X-MAP")).collect();
    let places: Vec<_> = changes.iter().enumerate().filter(|(_, is_map)| **is_map).map(|(place, _)| place).collect();
    assert_eq!(places, [5, 10, 13], "before the first, the fifth and the seventh of eight segments:\n{text}");
    assert!(!text.contains("DISCONTINUITY"));
}

#[test]
fn the_multivariant_playlist_says_what_players_choose_by() {
    let seal = ordinary(Layout::Segments);
    let text = multivariant(&seal);
    let master = read_master(&text);
    assert_eq!((master.version, master.independent_segments), (Some(7), true));
    let variants: Vec<_> = master.variants.iter().filter(|variant| !variant.is_i_frame).collect();
    let uris: Vec<_> = variants.iter().map(|variant| variant.uri.as_str()).collect();
    assert_eq!(uris, ["v480/index.m3u8", "v1080/index.m3u8", "v720/index.m3u8", "v360/index.m3u8", "v240/index.m3u8"]);
    for variant in variants {
        assert_eq!(variant.codecs.as_deref(), Some("avc1.640028,mp4a.40.2"));
        assert_eq!(variant.audio.as_deref(), Some("audio"));
        let rendition =
            seal.renditions.iter().find(|rendition| keys::playlist(&rendition.id) == variant.uri).expect("it is sealed");
        let (video, audio) = (Bandwidth::of(rendition), Bandwidth::of(&seal.renditions[5]));
        assert_eq!(variant.bandwidth, video.peak_bps + audio.peak_bps);
        assert_eq!(variant.average_bandwidth, Some(video.average_bps + audio.average_bps));
    }
    assert!(text.contains(",RESOLUTION=854x480,FRAME-RATE=29.970,"), "{text}");
    let told = |media: &AlternativeMedia| {
        (media.name.clone(), media.language.clone(), media.default, media.autoselect, media.channels.clone(), media.uri.clone())
    };
    let channels = Some("2".to_owned());
    let told: Vec<_> = master.alternatives.iter().map(told).collect();
    assert_eq!(told[0], ("Audio 1".to_owned(), None, true, true, channels.clone(), Some("a0/index.m3u8".to_owned())));
    let second = ("Kommentar 'frei'".to_owned(), Some("de".to_owned()), false, true, channels, Some("a1/index.m3u8".to_owned()));
    assert_eq!(told[1], second);
}

#[test]
fn only_sound_is_a_variant_itself_and_only_picture_has_no_group() {
    let one = multivariant(&sealed(Layout::Segments, &source(vec![], vec![sound(1, 48_000, 30)])));
    assert!(!one.contains("EXT-X-MEDIA") && !one.contains("AUDIO=") && !one.contains("RESOLUTION"), "{one}");
    assert_eq!(read_master(&one).variants.len(), 1);
    let two = multivariant(&sealed(Layout::Segments, &source(vec![], vec![sound(1, 48_000, 30), sound(2, 48_000, 30)])));
    let master = read_master(&two);
    assert_eq!((master.variants.len(), master.alternatives.len()), (1, 2), "{two}");
    assert_eq!(master.alternatives.iter().filter(|media| media.autoselect).count(), 1, "nothing tells them apart: {two}");
    let silent = multivariant(&sealed(Layout::Segments, &source(vec![picture(3840, 2160, "25", 3)], vec![])));
    assert!(!silent.contains("AUDIO"), "{silent}");
}

/// A rendition of segments that last so many ms and have so many bytes.
fn of_segments(segments: &[(u64, u64)]) -> Rendition {
    let object = Object { key: "v240/0123456789abcdef/1.m4s".to_owned(), bytes: 0, sha256: String::new() };
    let segment = |(ms, bytes): &(u64, u64)| Segment { ticks: *ms, samples: 1, bytes: *bytes, key_frames: Vec::new() };
    let segments: Vec<Segment> = segments.iter().map(segment).collect();
    let pieces = vec![Piece { init: object.clone(), objects: vec![object; segments.len()], segments }];
    Rendition {
        id: RenditionId("v240".to_owned()),
        medium: Medium::Picture { width: 426, height: 240, rate: crate::testing::rate("25") },
        codecs: "avc1.640015".to_owned(),
        timescale: 1000,
        media: Media::Objects { pieces },
    }
}

#[test]
fn the_peak_is_that_of_runs_of_about_a_target_duration() {
    let peak = |segments: &[(u64, u64)]| Bandwidth::of(&of_segments(segments)).peak_bps;
    assert_eq!(peak(&[(4000, 1000), (4000, 3000), (4000, 1000)]), 6000);
    assert_eq!(peak(&[(4000, 1000), (1000, 3000)]), 6400, "the short one counts only with its neighbour");
    assert_eq!(peak(&[(4000, 1000), (2000, 3000)]), 12_000, "half a target duration is enough");
    assert_eq!(peak(&[(200, 1000)]), 40_000, "too short for any run: the average");
    assert_eq!(Bandwidth::of(&of_segments(&[(3000, 1), (3000, 1)])).average_bps, 3, "rounded up");
}

proptest! {
    #[test]
    fn durations_add_up_however_many_there_are(
        ticks in prop::collection::vec(1..400_000_u64, 1..300),
        timescale in (1..100_000_u32).prop_filter("some", |timescale| *timescale > 0),
    ) {
        let mut rendition = of_segments(&ticks.iter().map(|ticks| (*ticks, 1000)).collect::<Vec<_>>());
        rendition.timescale = timescale;
        let text = media(&rendition);
        let shown = text.lines().filter_map(|line| line.strip_prefix("#EXTINF:")?.strip_suffix(','));
        let shown_us: Vec<u64> = shown.map(|text| text.replace('.', "").parse().expect("digits")).collect();
        let exact_us: u128 = ticks.iter().map(|ticks| u128::from(*ticks)).sum::<u128>() * 1_000_000;
        let total_us: u128 = shown_us.iter().map(|us| u128::from(*us)).sum();
        prop_assert!((total_us * u128::from(timescale)).abs_diff(exact_us) <= u128::from(timescale));
        let target = read_media(&text).target_duration;
        prop_assert!(shown_us.iter().all(|us| (us + 500_000) / 1_000_000 <= target || (us + 499_999) / 1_000_000 <= target));
        prop_assert_eq!(shown_us.len(), ticks.len());
    }
}

#[test]
fn text_is_a_group_of_its_own_that_every_variant_names() {
    let mut info = source(vec![picture(1280, 720, "25", 130)], vec![sound(1, 48_000, 130)]);
    let track = |stream: &str, language: Option<&str>| TextTrack {
        stream: StreamName(stream.to_owned()),
        codec: "SubRip".to_owned(),
        packets: 3,
        language: language.map(str::to_owned),
        title: None,
    };
    info.text = vec![track("003", Some("de")), track("004", None)];
    let seal = sealed(Layout::Segments, &info);
    let master = read_master(&multivariant(&seal));
    let texts: Vec<&AlternativeMedia> = master.alternatives.iter().filter(|media| media.group_id == TEXT_GROUP).collect();
    let told: Vec<_> = texts.iter().map(|text| (text.name.as_str(), text.language.as_deref(), text.uri.as_deref())).collect();
    assert_eq!(told, [("de", Some("de"), Some("t0/index.m3u8")), ("Text 2", None, Some("t1/index.m3u8"))]);
    assert!(texts.iter().all(|text| text.autoselect && !text.default && !text.forced));
    let variants: Vec<_> = master.variants.iter().filter(|variant| !variant.is_i_frame).collect();
    assert!(!variants.is_empty() && variants.iter().all(|variant| variant.subtitles.as_deref() == Some(TEXT_GROUP)));
    let playlist = read_media(&text(&seal.text[0].made, &[60_000_000_000, 60_000_000_000, 10_000_000_000]));
    assert_eq!((playlist.target_duration, playlist.end_list, playlist.segments.len()), (60, true, 3));
    let keys: Vec<String> = playlist.segments.iter().map(|segment| format!("t0/{}", segment.uri)).collect();
    let sealed_keys: Vec<&str> = seal.keys().filter(|key| key.starts_with("t0/")).collect();
    assert_eq!(keys, sealed_keys);
    assert!(keys.iter().all(|key| farm::keys::token_in(key).is_some()));
}
