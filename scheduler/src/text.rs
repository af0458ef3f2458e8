//! Which text tracks become renditions.

use farm::media::TextTrack;
use farm::plan::RenditionId;
use farm::rate::SECOND_NS;
use farm::text::{TextPlan, TextTrackPlan};

use crate::names::{language, unique_name};

/// Most text tracks that are made.
const RENDITIONS_MAX: usize = 32;

/// Wanted duration of a segment: longer than those of picture and sound, as hours of text are a few KiB.
const SEGMENT_NS: u64 = 60 * SECOND_NS;

/// Most segments of a rendition: longer sources get longer segments.
const SEGMENTS_MAX: u64 = 600;

/// The text of a result that lasts so long from stream time `origin_ns` on; its segments end where some of picture and sound
/// do, which last `segment_ns`.
pub fn plan(
    tracks: &[TextTrack],
    (origin_ns, duration_ns): (u64, u64),
    segment_ns: u64,
    notes: &mut Vec<String>,
) -> Option<TextPlan> {
    if tracks.len() > RENDITIONS_MAX {
        notes.push(format!("{} text tracks are left out: up to {RENDITIONS_MAX} are made", tracks.len() - RENDITIONS_MAX));
    }
    let mut planned: Vec<TextTrackPlan> = Vec::new();
    for track in tracks.iter().take(RENDITIONS_MAX) {
        let before: Vec<&str> = planned.iter().map(|plan| plan.name.as_str()).collect();
        let language = language(track.language.as_deref());
        let name = unique_name(track.title.as_deref(), language.as_deref(), "Text", &before);
        let id = RenditionId(format!("t{}", planned.len()));
        planned.push(TextTrackPlan { id, stream: track.stream.clone(), language, name });
    }
    let whole = segment_ns.max(1);
    let segment_ns = whole * SEGMENT_NS.max(duration_ns / SEGMENTS_MAX).div_ceil(whole);
    (!planned.is_empty()).then_some(TextPlan { tracks: planned, origin_ns, duration_ns, segment_ns })
}

#[cfg(test)]
mod tests {
    use super::*;
    use farm::text::StreamName;

    fn track(stream: &str, language: Option<&str>, title: Option<&str>) -> TextTrack {
        let owned = |text: &str| text.to_owned();
        TextTrack {
            stream: StreamName(owned(stream)),
            codec: owned("SubRip"),
            packets: 1,
            language: language.map(owned),
            title: title.map(owned),
        }
    }

    #[test]
    fn each_track_has_a_name_of_its_own() {
        let tracks = [
            track("003", Some("de"), None),
            track("004", Some("de"), Some("for\nthe deaf")),
            track("005", None, None),
            track("006", Some("de"), None),
        ];
        let plan = plan(&tracks, (5, 200 * SECOND_NS), 4 * SECOND_NS, &mut Vec::new()).expect("text");
        let names: Vec<_> = plan.tracks.iter().map(|track| (track.id.0.as_str(), track.name.as_str())).collect();
        assert_eq!(names, [("t0", "de"), ("t1", "for the deaf"), ("t2", "Text 3"), ("t3", "de 2")]);
        assert_eq!(plan.tracks[3].stream, StreamName("006".to_owned()));
    }

    #[test]
    fn segments_end_where_some_of_the_picture_do() {
        let lasts = |segment_ns| plan(&[track("1", None, None)], (0, 1), segment_ns, &mut Vec::new()).expect("text").segment_ns;
        assert_eq!([4, 6, 7].map(|seconds| lasts(seconds * SECOND_NS) / SECOND_NS), [60, 60, 63]);
        assert_eq!(lasts(4_004_000_000), 60_060_000_000);
        let hours = plan(&[track("1", None, None)], (0, 100 * 3600 * SECOND_NS), 4 * SECOND_NS, &mut Vec::new()).expect("text");
        assert_eq!((hours.segment_ns / SECOND_NS, hours.segments().len()), (600, 600));
    }

    #[test]
    fn more_tracks_than_are_made_are_told_of() {
        let tracks: Vec<_> = (0..40).map(|number| track(&number.to_string(), None, None)).collect();
        let mut notes = Vec::new();
        assert_eq!(plan(&tracks, (0, 1), 1, &mut notes).expect("text").tracks.len(), RENDITIONS_MAX);
        assert_eq!(notes, ["8 text tracks are left out: up to 32 are made"]);
        assert_eq!(plan(&[], (0, 1), 1, &mut notes), None);
    }
}
