//! A browser plays it: Chromium with hls.js, to the end, through changes of level, in sync, without a word of complaint.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tests::clip::Clip;
use tests::player::{Buffered, play};
use tests::{check, corpus, shoal};

static PLAYER: Mutex<()> = Mutex::new(());
const PLAY_LIMIT: Duration = Duration::from_secs(90);

/// What a buffer of this kind holds, in one piece.
fn whole<'a>(buffered: &'a [Buffered], kind: &str) -> &'a (f64, f64) {
    let of_kind: Vec<_> = buffered.iter().filter(|buffer| buffer.mime.starts_with(kind)).collect();
    let [Buffered { ranges_s, .. }] = of_kind.as_slice() else { panic!("not one buffer of {kind}: {buffered:?}") };
    let [range] = ranges_s.as_slice() else { panic!("{kind} has gaps: {ranges_s:?}") };
    range
}

fn plays_to_its_end(clip: &Clip, flags: &[&str]) -> Result<()> {
    let output = tempfile::tempdir()?;
    shoal::done(clip.file()?, output.path(), flags)?;
    // One at a time: a browser that has to share its cores stalls.
    let _alone = PLAYER.lock().unwrap_or_else(PoisonError::into_inner);
    let played = play(output.path(), "master.m3u8", 4, PLAY_LIMIT)?;
    let said = &played.said;
    assert_eq!(said.errors, Vec::<String>::new(), "{flags:?}");
    assert!(said.ended, "{flags:?}: stopped at {} of {} s", said.end_s, said.duration_s);
    assert!(said.levels.len() >= 3, "{flags:?}: only levels {:?} of {} were played", said.levels, said.level_count);
    let duration_s = clip.duration_ns() as f64 / 1e9;
    // A packet of sound may be missing or be over at the end.
    assert!((said.duration_s - duration_s).abs() < 0.03, "{flags:?}: lasts {} instead of {duration_s} s", said.duration_s);
    for kind in ["video/", "audio/"] {
        let (start, end) = whole(&said.buffered, kind);
        // hls.js drops what was played of the picture when it is told to change the level.
        assert!(kind == "video/" || start.abs() < 0.001, "{flags:?}: {kind} begins at {start} s");
        assert!((end - duration_s).abs() < 0.03, "{flags:?}: {kind} ends at {end} instead of {duration_s} s");
    }
    assert_eq!(played.frame_faults(clip), Vec::<String>::new(), "{flags:?}");
    let offsets = played.offsets_ns(clip)?;
    let half_a_frame_ns = clip.start_ns(1) / 2;
    assert!(offsets.iter().all(|offset| offset.abs() < half_a_frame_ns), "{flags:?}: {offsets:?}");
    corpus::say(&format!(
        "{} {flags:?}: {} of {} frames dropped, {} stalls, levels {:?}, sound late by at most {} µs",
        clip.rate,
        said.frames_dropped,
        said.frames_total,
        said.stalls,
        said.levels,
        offsets.iter().map(|offset| offset / 1000).max_by_key(|late| late.abs()).unwrap_or(0),
    ));
    Ok(())
}

/// Of each codec a level: what the browser has no decoder for it leaves alone.
#[test]
fn av1_beside_others() -> Result<()> {
    let ladder = r#"[{"height": 360}, {"height": 360, "video": {"codec": "hevc"}}, {"height": 360, "video": {"codec": "av1"}},
        {"height": 240, "video": {"codec": "av1"}}]"#;
    plays_to_its_end(&Clip::new("25", 16), &["--chunk-seconds", "4", "--ladder", ladder])
}

#[test]
fn segments_cut_up() -> Result<()> {
    plays_to_its_end(&Clip::new("25", 20).size(1280, 720), &["--chunk-seconds", "4"])
}

#[test]
fn one_file_per_rendition() -> Result<()> {
    plays_to_its_end(&Clip::new("30000/1001", 20).size(1280, 720), &["--layout", "single-file"])
}

#[test]
fn the_sources_own_packets_among_rungs_that_are_encoded() -> Result<()> {
    plays_to_its_end(&Clip { gop: 75, ..Clip::new("25", 20).size(1280, 720) }, &["--chunk-seconds", "4"])
}

/// The measure itself: sound that is late is seen to be late by as much.
#[test]
fn sound_that_is_late_is_seen_to_be_late() -> Result<()> {
    let clip = Clip { beeps_late_ms: 60, ..Clip::new("25", 12) };
    let output = tempfile::tempdir()?;
    shoal::done(clip.file()?, output.path(), &["--ladder", "240"])?;
    // One at a time: a browser that has to share its cores stalls.
    let _alone = PLAYER.lock().unwrap_or_else(PoisonError::into_inner);
    let played = play(output.path(), "master.m3u8", 0, PLAY_LIMIT)?;
    let offsets = played.offsets_ns(&clip)?;
    let tolerance = i64::try_from(check::tolerance_ns())?;
    assert!(offsets.iter().all(|offset| (offset - 60_000_000).abs() < tolerance), "{offsets:?}");
    Ok(())
}
