//! Sound is with its picture from the first second to the last, for every reader, whatever the source's own start was.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tests::clip::{Clip, Container};
use tests::{check, process, reader, shoal};

/// Where sound is not as late as wanted in what is made of a source.
fn faults(source: &Path, flags: &[&str], wanted_ns: i64) -> Result<Vec<String>> {
    let output = tempfile::tempdir()?;
    shoal::done(source, output.path(), &[&["--ladder", "240"], flags].concat())?;
    let name = source.file_name().unwrap_or_default().display();
    let faults = match check::sync_faults(output.path(), wanted_ns) {
        Ok(faults) => faults,
        Err(error) => vec![format!("{error:#}")],
    };
    Ok(faults.into_iter().map(|fault| format!("{name} {flags:?}: {fault}")).collect())
}

fn check_sync(source: &Path, flags: &[&str], wanted_ns: i64) -> Result<()> {
    assert_eq!(faults(source, flags, wanted_ns)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn at_every_rate_and_in_every_container_cut_up_or_whole() -> Result<()> {
    let clips = [
        Clip::new("25", 20),
        Clip::new("30000/1001", 20),
        Clip::new("24000/1001", 20),
        Clip::new("60", 20),
        Clip::new("25", 20).container(Container::Mkv),
        Clip::new("25", 20).container(Container::Ts),
        Clip::new("25", 20).container(Container::Webm),
    ];
    let mut found = Vec::new();
    for clip in clips {
        for flags in [&[][..], &["--chunk-seconds", "4"], &["--layout", "single-file"]] {
            found.extend(faults(&clip.file()?, flags, 0)?);
        }
    }
    assert_eq!(found, Vec::<String>::new());
    Ok(())
}

/// A copy of a clip whose streams are moved against each other, and by how much its sound is late then.
fn moved(folder: &Path, clip: &Clip, name: &str, shifts: [&str; 2]) -> Result<(PathBuf, i64)> {
    let file = folder.join(name);
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error"]);
    for shift in shifts {
        ffmpeg.args(["-itsoffset", shift, "-i"]).arg(clip.file()?);
    }
    ffmpeg.args(["-map", "0:v", "-map", "1:a", "-c", "copy"]).arg(&file);
    process::run(&mut ffmpeg, Duration::from_secs(60))?.success()?;
    let flashes = reader::flashes_ns(&reader::frames(&file, "0:v:0")?);
    let offsets = reader::sync_ns(&flashes, &reader::sound(&file, "0:a:0")?.beeps_ns())?;
    Ok((file, offsets[offsets.len() / 2]))
}

#[test]
fn a_source_whose_sound_is_late_stays_so_by_just_as_much() -> Result<()> {
    check_sync(&Clip { beeps_late_ms: 60, ..Clip::new("25", 12) }.file()?, &[], 60_000_000)
}

#[test]
fn streams_that_do_not_start_together_keep_their_distance() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let clip = Clip::new("25", 12);
    let mut found = Vec::new();
    // Sound that begins after the picture by itself, in containers with and without edit lists, and a start far from 0.
    for (name, shifts) in
        [("late.mp4", ["0", "0.3"]), ("late.mkv", ["0", "0.3"]), ("late.ts", ["0", "0.3"]), ("far.ts", ["100", "100"])]
    {
        let (file, late_ns) = moved(folder.path(), &clip, name, shifts)?;
        found.extend(faults(&file, &["--chunk-seconds", "4"], late_ns)?);
    }
    assert_eq!(found, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_variable_frame_rate_keeps_its_sound() -> Result<()> {
    // A third of the frames are missing in the middle; no flash is among them, nor a frame whose place a flash would fill.
    let even = Clip::new("25", 12);
    let flashes = even.flashes();
    let missing = (105..195).step_by(3).filter(|n| !flashes.contains(n) && !flashes.contains(&(n - 1)));
    let clip = missing.fold(even, |clip, n| clip.leave_out(n..n + 1));
    check_sync(&clip.file()?, &["--chunk-seconds", "4"], 0)
}

/// A rate that is no whole number, for a quarter of an hour: what is lost or rounded with every frame, packet or chunk would
/// add up. The source's frames are few and small, as only their times matter.
#[test]
fn nothing_drifts_in_a_quarter_of_an_hour() -> Result<()> {
    check_sync(&Clip::new("5000/1001", 16 * 60).size(320, 240).file()?, &["--chunk-seconds", "120"], 0)
}
