//! Every frame once, in order, at its time, in every rung: whatever the rate and the container, and into however many pieces
//! the work is cut.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tests::clip::{Clip, Container};
use tests::hls::Presentation;
use tests::{check, corpus, process, shoal};

/// Chunks of one segment each: as many joints as can be.
const CHUNKED: &[&str] = &["--chunk-seconds", "4", "--ladder", "360,240"];

/// What is wrong with what is made of a clip, each fault with the clip it is of.
fn faults(clip: &Clip, flags: &[&str]) -> Result<Vec<String>> {
    let output = tempfile::tempdir()?;
    shoal::done(clip.file()?, output.path(), flags)?;
    let mut faults = check::faults(output.path(), clip)?;
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(output.path().join("report.json"))?)?;
    // 30 s in pieces of 4 s.
    if report["grid"]["chunks"] != 8 {
        faults.push(format!("{} chunks instead of 8", report["grid"]["chunks"]));
    }
    Ok(faults.into_iter().map(|fault| format!("{} {:?}: {fault}", clip.rate, clip.container)).collect())
}

fn in_every_container(rate: &str) -> Result<()> {
    let mut found = Vec::new();
    for container in [Container::Mp4, Container::Mkv, Container::Ts, Container::Webm, Container::Mov] {
        found.extend(faults(&Clip::new(rate, 30).container(container), CHUNKED)?);
    }
    assert_eq!(found, Vec::<String>::new());
    Ok(())
}

#[test]
fn at_25_frames_a_second() -> Result<()> {
    in_every_container("25")
}

#[test]
fn at_29_97_frames_a_second() -> Result<()> {
    in_every_container("30000/1001")
}

#[test]
fn at_23_976_frames_a_second() -> Result<()> {
    in_every_container("24000/1001")
}

#[test]
fn at_60_frames_a_second_where_small_rungs_show_every_second_one() -> Result<()> {
    in_every_container("60")
}

#[test]
fn at_60_frames_a_second_with_a_rung_that_shows_them_all() -> Result<()> {
    let clip = Clip::new("60", 30).size(1280, 720);
    assert_eq!(faults(&clip, &["--chunk-seconds", "4", "--ladder", "720,240"])?, Vec::<String>::new());
    Ok(())
}

#[test]
fn the_number_of_slots_changes_nothing() -> Result<()> {
    for (rate, layout) in [("25", "segments"), ("30000/1001", "single-file")] {
        let clip = Clip::new(rate, 30);
        let mut first: Option<Presentation> = None;
        for slots in ["1", "2", "4"] {
            let output = tempfile::tempdir()?;
            let flags = [CHUNKED, &["--slots", slots, "--layout", layout]].concat();
            shoal::done(clip.file()?, output.path(), &flags)?;
            let made = Presentation::read(output.path())?;
            let first = first.get_or_insert(Presentation::read(output.path())?);
            for (a, b) in first.renditions.iter().zip(&made.renditions) {
                assert_eq!(a.segment_list(), b.segment_list(), "{} on 1 and on {slots} slots", a.name());
                let same = a.segments.iter().zip(&b.segments).all(|(a, b)| a.bytes == b.bytes);
                assert!(same, "{}: bytes of segments on 1 and on {slots} slots differ", a.name());
            }
            assert_eq!(first.renditions.len(), made.renditions.len());
        }
    }
    Ok(())
}

#[test]
fn cutting_the_work_up_changes_neither_frames_nor_segments() -> Result<()> {
    let clip = Clip::new("25", 30);
    let (whole, cut) = (tempfile::tempdir()?, tempfile::tempdir()?);
    shoal::done(clip.file()?, whole.path(), &["--ladder", "360,240"])?;
    shoal::done(clip.file()?, cut.path(), CHUNKED)?;
    assert_eq!(check::faults(whole.path(), &clip)?, Vec::<String>::new());
    let (whole, cut) = (Presentation::read(whole.path())?, Presentation::read(cut.path())?);
    for (a, b) in whole.renditions.iter().zip(&cut.renditions) {
        let durations = |r: &tests::hls::Rendition| r.segments.iter().map(|s| (s.ticks(), s.samples.len())).collect::<Vec<_>>();
        assert_eq!(durations(a), durations(b), "{}", a.name());
        assert_eq!(a.presentation_order(), b.presentation_order(), "{}", a.name());
    }
    Ok(())
}

/// Bytes of the first packet of each 4 s at 25 frames per second.
fn key_frame_bytes(playlist: &Path) -> Result<Vec<f64>> {
    let mut ffprobe = Command::new("ffprobe");
    ffprobe.args(["-v", "error", "-select_streams", "v:0", "-show_entries", "packet=size", "-of", "csv=p=0"]).arg(playlist);
    let sizes = process::run(&mut ffprobe, Duration::from_secs(60))?.success()?.text();
    let sizes = sizes.lines().filter(|line| !line.is_empty()).step_by(100);
    sizes.map(|line| Ok(line.trim_end_matches(',').parse()?)).collect()
}

/// A film, since bits are what this is about: where pieces of work join, key frames are given what they are given elsewhere.
#[test]
fn a_joint_is_given_as_many_bits_as_any_other_place() -> Result<()> {
    let Some(media) = corpus::folder() else { return Ok(()) };
    let (folder, whole, cut) = (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
    let source = folder.path().join("film.mp4");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg
        .args(["-v", "error", "-i"])
        .arg(media.join("bbb_480p_30s.mp4"))
        .args(["-vf", "fps=25", "-an", "-g", "999"])
        .arg(&source);
    process::run(&mut ffmpeg, Duration::from_secs(120))?.success()?;
    shoal::done(&source, whole.path(), &["--ladder", "240"])?;
    shoal::done(&source, cut.path(), &["--ladder", "240", "--chunk-seconds", "4"])?;
    let [whole, cut] = [whole, cut].map(|output| key_frame_bytes(&output.path().join("v240/index.m3u8")));
    let ratios: Vec<f64> = cut?.iter().zip(&whole?).map(|(cut, whole)| cut / whole).collect();
    assert_eq!(ratios.len(), 8);
    // The first is the first in both. Left to itself x264 gives a joint three quarters.
    let mean = ratios.iter().skip(1).sum::<f64>() / 7.0;
    assert!((0.93..1.12).contains(&mean), "{ratios:?}");
    Ok(())
}

/// A source's own holes: places on the grid where it has no frame show the one before.
#[test]
fn frames_that_the_source_lacks_are_filled_and_counted() -> Result<()> {
    let clip = Clip::new("25", 12).leave_out(60..63).leave_out(203..204);
    let output = tempfile::tempdir()?;
    shoal::done(clip.file()?, output.path(), &["--ladder", "240", "--chunk-seconds", "4"])?;
    let frames = tests::reader::frames(&Presentation::read(output.path())?.rendition("v240")?.path, "0:v:0")?;
    let shown = |place: u32| match place {
        60..63 => 59,
        203 => 202,
        own => own,
    };
    let wrong = (0..).zip(&frames).filter(|&(place, frame)| frame.number != Ok(shown(place))).take(5);
    assert_eq!(wrong.map(|(place, frame)| (place, frame.number)).collect::<Vec<_>>(), []);
    assert_eq!(frames.len(), 300);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(output.path().join("report.json"))?)?;
    assert_eq!((&report["frames"]["kept"], &report["frames"]["filled"]), (&296.into(), &4.into()), "{}", report["frames"]);
    Ok(())
}
