//! A result that is published in stages: a small rung with sound can be played while the others are made, and whatever becomes
//! of the job, what is there is whole.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::clip::Clip;
use tests::hls::Presentation;
use tests::process::{Group, until};
use tests::{check, reader, rules, shoal};

const STAGED: &[&str] =
    &["--publish", "in-stages", "--ladder", "720,480,360,240", "--chunk-seconds", "4", "--slots", "1", "--copy", "never"];

/// Waits for the multivariant playlist.
fn wait_for_master(running: &mut Group, output: &Path) -> Result<()> {
    let master = output.join("master.m3u8");
    until("a first stage", Duration::from_secs(120), || Ok(master.exists() || running.has_ended()?))
}

/// What can be played before the end: one rung and the sound, from beginning to end.
fn check_first_stage(output: &Path, clip: &Clip) -> Result<()> {
    let first = Presentation::read(output)?;
    let names: Vec<&str> = first.renditions.iter().map(|rendition| rendition.name()).collect();
    assert_eq!(names, ["v240", "a0"], "a fifth of the work");
    let rung = first.rendition("v240")?;
    let frames = reader::frames(&rung.path, "0:v:0")?;
    assert_eq!(reader::frame_faults(&frames, &clip.numbers(), |n| clip.start_ns(n)), Vec::<String>::new());
    // With what comes before presentation time 0.
    let sound_ns = first.rendition("a0")?.duration_ns() - clip.duration_ns();
    assert!((0..200_000_000).contains(&sound_ns), "{sound_ns} ns more than the clip");
    // Files that no playlist leads to are of the rungs to come.
    let faults = rules::faults(output)?;
    let strange: Vec<_> = faults.iter().filter(|fault| !fault.ends_with("is named by no playlist")).collect();
    assert!(strange.is_empty(), "{strange:?}");
    Ok(())
}

#[test]
fn a_rung_can_be_played_while_the_others_are_made() -> Result<()> {
    let clip = Clip::new("25", 20).size(1280, 720);
    let output = tempfile::tempdir()?;
    let mut running = Group::spawn(&mut shoal::transcode(clip.file()?, output.path(), STAGED)?)?;
    wait_for_master(&mut running, output.path())?;
    // Held, so that it cannot end while it is looked at.
    running.signal(Signal::SIGSTOP);
    check_first_stage(output.path(), &clip)?;
    assert!(!output.path().join("report.json").exists(), "the report is of all");
    running.signal(Signal::SIGCONT);
    assert!(running.wait(Duration::from_secs(120))?.success());
    assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new());
    let whole = Presentation::read(output.path())?;
    assert_eq!(whole.videos().count(), 4);
    let report: Value = serde_json::from_slice(&fs::read(output.path().join("report.json"))?)?;
    assert_eq!(report["frames"]["kept"], 500, "frames are counted once");
    Ok(())
}

#[test]
fn killed_after_its_first_stage_it_goes_on() -> Result<()> {
    let clip = Clip::new("25", 20).size(1280, 720);
    let output = tempfile::tempdir()?;
    let mut running = Group::spawn(&mut shoal::transcode(clip.file()?, output.path(), STAGED)?)?;
    wait_for_master(&mut running, output.path())?;
    running.kill()?;
    check_first_stage(output.path(), &clip)?;
    let first = fs::read(output.path().join("v240/index.m3u8"))?;
    shoal::done(clip.file()?, output.path(), STAGED)?;
    assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new());
    assert_eq!(fs::read(output.path().join("v240/index.m3u8"))?, first, "it is not made twice");
    Ok(())
}
