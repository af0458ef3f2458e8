//! What the report says of a job.

use farm::job::{Make, PosterSpec, StoryboardSpec};
use farm::media::TrackId;
use farm::task::{Marker, Outcome};
use farm::{Code, Failure};

use super::*;
use crate::plan::plan;
use crate::seal::seal;
use crate::testing::{markers, picture, sound, source, spec};

/// A job of which much can be said: its source starts at 10 s, ends early and has chapters, and its URL holds a secret.
fn reported() -> (Report, Seal) {
    let mut spec = spec();
    spec.source.url = "https://user:hush@tube.example/v.mkv?token=hush".parse().expect("a URL");
    spec.chunk_seconds = Some(8);
    let mut info = source(vec![picture(1280, 720, "25", 40)], vec![sound(1, 48_000, 40)]);
    info.video[0].timing.start_ns = 10_000_000_000;
    info.audio[0].start_ns = 10_000_000_000;
    let chapter = |start_s: u64, end_s: u64, title: &str| Chapter {
        start_ns: start_s * 1_000_000_000,
        end_ns: end_s * 1_000_000_000,
        title: title.to_owned(),
    };
    info.chapters = vec![chapter(0, 20, "one"), chapter(20, 99, "two"), chapter(99, 100, "beyond")];
    let why = Failure::new(Code::UnsupportedCodec, "no decoder for PGS");
    info.dropped = vec![DroppedTrack { track: TrackId(2), kind: "subpicture/x-pgs".to_owned(), why }];
    info.warnings = vec!["the header lies".to_owned()];
    let plan = plan(&spec, &info).expect("a plan");
    let mut markers = markers(&plan, &info);
    if let Some(Marker { outcome: Outcome::Encoded { account, .. }, .. }) = markers.get_mut(&TaskId::Video(3)) {
        *account = Account { kept: 100, filled: 50, missing: 50, decode_errors: 3, ..Account::default() };
    }
    let seal = seal(&plan, &markers).expect("a seal");
    (report(&spec, &info, &plan, &seal), seal)
}

#[test]
fn frames_and_costs_of_all_chunks_are_added_up() {
    let (report, seal) = reported();
    let grid = report.grid.expect("a picture");
    assert_eq!((grid.frames, grid.chunks), (750, 4));
    let frames = report.frames.expect("a picture");
    assert_eq!((frames.kept, frames.filled, frames.missing, frames.decode_errors), (200 + 200 + 200 + 100, 50, 50, 3));
    assert_eq!(report.samples.iter().map(|samples| samples.account.kept).collect::<Vec<_>>(), [1_440_000]);
    // Four chunks, the sound and the probe.
    assert_eq!((report.cost.cpu_ms, report.cost.wall_ms, report.cost.rss_kib_max), (600, 360, 1000));
    assert_eq!(report.cost.tasks.len(), seal.executions.len());
    let bytes: u64 = seal.renditions[0].segments().map(|segment| segment.bytes).sum();
    let first = &report.renditions[0];
    assert_eq!((first.bytes, first.segments, first.average_bps), (bytes, 8, (bytes * 8).div_ceil(30)));
    assert!(first.rate_control.is_some() && report.renditions.last().is_some_and(|sound| sound.asked_bps == Some(128_000)));
}

#[test]
fn what_a_viewer_should_know_is_said() {
    let (report, _) = reported();
    let warnings = [
        "the header lies",
        "the picture ends early: its last frame is shown for 50 frames more",
        "3 frames of the picture are damaged",
    ];
    assert_eq!(report.warnings, warnings);
    assert_eq!(report.dropped.len(), 1);
    let chapters: Vec<_> =
        report.chapters.iter().map(|c| (c.start_ns / 1_000_000_000, c.end_ns / 1_000_000_000, c.title.as_str())).collect();
    assert_eq!(chapters, [(0, 10, "one"), (10, 30, "two")], "by the result's time, and within it");
}

#[test]
fn it_holds_no_secret_and_can_be_read_back() {
    let (report, _) = reported();
    let text = serde_json::to_string_pretty(&report).expect("JSON");
    assert!(!text.contains("hush"), "{text}");
    assert_eq!(serde_json::from_str::<Report>(&text).expect("a report"), report);
}

#[test]
fn still_pictures_alone_are_told_with_their_source_and_known_by_their_keys() {
    let mut spec = spec();
    spec.make = Make::Stills;
    spec.poster = Some(PosterSpec::default());
    spec.storyboard = Some(StoryboardSpec { seconds: Some(10), exact_width: Some(161), ..StoryboardSpec::default() });
    let info = source(vec![picture(1280, 720, "25", 40)], vec![sound(1, 48_000, 40)]);
    let plan = plan(&spec, &info).expect("a plan");
    let made = || {
        let mut sealed = seal(&plan, &markers(&plan, &info)).expect("a seal");
        // The second picture does not decode.
        sealed.stills.as_mut().expect("pictures").tiles.remove(1);
        sealed
    };
    let (sealed, other) = (made(), made());
    let report = report(&spec, &info, &plan, &sealed);
    assert!(report.renditions.is_empty() && report.samples.is_empty() && report.grid.is_none() && report.frames.is_none());
    assert_eq!(report.source.picture.as_ref().map(|picture| picture.height), Some(720));
    assert_eq!(report.cost.tasks.iter().map(|cost| cost.task.clone()).collect::<Vec<_>>(), [TaskId::Probe, TaskId::Stills]);
    assert_eq!(report.notes, ["1 of 4 pictures of the storyboard do not decode: their places show what was before"]);
    assert!(report.is_of(sealed.stills.as_ref().expect("pictures")));
    assert!(!report.is_of(other.stills.as_ref().expect("pictures")) && !report.is_of(&Stills::default()));
    let (hls, _) = reported();
    assert!(!hls.is_of_stills_alone() && !hls.is_of(&Stills::default()));
}
