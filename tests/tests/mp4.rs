//! Plain MP4 files beside the HLS: the same packets at the same times, playable from their first bytes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::clip::Clip;
use tests::hls::Presentation;
use tests::player::play;
use tests::{process, reader, rules, shoal};

const LIMIT: Duration = Duration::from_secs(60);

/// The plain files that the report names, by rendition.
fn files(output: &Path) -> Result<Vec<(String, PathBuf)>> {
    let report: Value = serde_json::from_slice(&fs::read(output.join("report.json"))?)?;
    let renditions = report["renditions"].as_array().context("renditions")?;
    let file = |made: &Value| {
        Some((made["id"].as_str()?.to_owned(), output.join(made["mp4"]["key"].as_str()?), made["mp4"]["bytes"].as_u64()?))
    };
    let mut files = Vec::new();
    for (id, path, bytes) in renditions.iter().filter_map(file) {
        ensure!(fs::metadata(&path)?.len() == bytes, "{id} has not the bytes that the report says");
        files.push((id, path));
    }
    Ok(files)
}

/// A hash of each packet of a stream, in decoding order, as `ffmpeg` finds them.
fn packets(input: &Path, stream: &str) -> Result<Vec<String>> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error", "-i"]).arg(input).args(["-map", stream, "-c", "copy", "-f", "framemd5", "-"]);
    let out = process::run(&mut ffmpeg, LIMIT)?.success()?;
    let text = String::from_utf8(out.stdout)?;
    Ok(text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split(',').nth(5)?.trim().to_owned()))
        .collect())
}

/// What stands before the media and what has to: everything.
fn check_order(file: &Path) -> Result<()> {
    let bytes = fs::read(file)?;
    let at =
        |kind: &[u8]| bytes.windows(4).position(|window| window == kind).with_context(|| format!("{}: no box", file.display()));
    ensure!(at(b"moov")? < at(b"mdat")? && at(b"moof").is_err(), "{}: no plain file", file.display());
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "warning", "-xerror", "-i"]).arg(file).args(["-map", "0", "-f", "null", "-"]);
    let run = process::run(&mut ffmpeg, LIMIT)?.success()?;
    ensure!(run.stderr.is_empty(), "{}: {}", file.display(), run.stderr);
    Ok(())
}

fn holds_what_the_hls_holds(clip: &Clip, flags: &[&str]) -> Result<()> {
    let output = tempfile::tempdir()?;
    shoal::done(clip.file()?, output.path(), &[&["--mp4", "--ladder", "360,240"], flags].concat())?;
    let presentation = Presentation::read(output.path())?;
    let made = files(output.path())?;
    assert_eq!(made.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["v360", "v240"]);
    for (id, file) in &made {
        check_order(file)?;
        let rung = presentation.rendition(id)?;
        assert_eq!(packets(file, "0:v")?, packets(&rung.path, "0:v")?, "{id}");
        let frames = reader::frames(file, "0:v:0")?;
        assert_eq!(reader::frame_faults(&frames, &clip.numbers(), |n| clip.start_ns(n)), Vec::<String>::new(), "{id}");
        let Some(sound) = presentation.audios().next() else { continue };
        assert_eq!(packets(file, "0:a")?, packets(&sound.path, "0:a")?, "{id}");
        let heard = reader::sound(file, "0:a:0")?;
        let flashes = reader::flashes_ns(&frames);
        let late = reader::sync_ns(&flashes, &heard.beeps_ns())?;
        assert!(late.iter().all(|ns| ns.abs() < 2_000_000), "{id}: {late:?}");
        assert!((heard.duration_ns() - clip.duration_ns()).abs() < 30_000_000, "{id}: {} ns", heard.duration_ns());
    }
    // Nothing is left of what only led to them.
    let strangers = rules::faults(output.path())?;
    assert!(strangers.len() == made.len() && strangers.iter().all(|fault| fault.contains("download.mp4")), "{strangers:?}");
    Ok(())
}

#[test]
fn of_segments_in_several_chunks() -> Result<()> {
    holds_what_the_hls_holds(&Clip::new("25", 20), &["--chunk-seconds", "4"])
}

#[test]
fn of_a_file_per_rendition() -> Result<()> {
    holds_what_the_hls_holds(&Clip::new("30000/1001", 13), &["--layout", "single-file", "--chunk-seconds", "4"])
}

#[test]
fn without_sound() -> Result<()> {
    holds_what_the_hls_holds(&Clip { audio: false, ..Clip::new("25", 6) }, &[])
}

#[test]
fn of_sound_alone_it_is_sound_alone() -> Result<()> {
    let clip = Clip::new("25", 8);
    let (folder, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let source = folder.path().join("sound.m4a");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error", "-i"]).arg(clip.file()?).args(["-vn", "-c:a", "aac"]).arg(&source);
    process::run(&mut ffmpeg, LIMIT)?.success()?;
    shoal::done(&source, output.path(), &["--mp4", "--layout", "single-file"])?;
    let made = files(output.path())?;
    let [(id, file)] = made.as_slice() else { panic!("{made:?}") };
    assert_eq!(id, "a0");
    check_order(file)?;
    let (ours, hls) = (reader::sound(file, "0:a:0")?, Presentation::read(output.path())?);
    let hls = hls.audios().next().context("sound")?;
    assert_eq!(packets(file, "0:a")?, packets(&hls.path, "0:a")?);
    assert!((ours.duration_ns() - clip.duration_ns()).abs() < 30_000_000, "{} ns", ours.duration_ns());
    Ok(())
}

#[test]
fn a_browser_plays_it_without_any_script() -> Result<()> {
    let clip = Clip::new("25", 12).size(1280, 720);
    let output = tempfile::tempdir()?;
    shoal::done(clip.file()?, output.path(), &["--mp4", "--ladder", "360", "--chunk-seconds", "4"])?;
    let made = files(output.path())?;
    let [(_, file)] = made.as_slice() else { panic!("{made:?}") };
    let relative = file.strip_prefix(output.path())?.to_string_lossy().into_owned();
    let played = play(output.path(), &relative, 0, Duration::from_secs(90))?;
    assert_eq!(played.said.errors, Vec::<String>::new());
    assert!(played.said.ended, "stopped at {} of {} s", played.said.end_s, played.said.duration_s);
    assert!((played.said.duration_s - 12.0).abs() < 0.03, "{}", played.said.duration_s);
    assert_eq!(played.frame_faults(&clip), Vec::<String>::new());
    let offsets = played.offsets_ns(&clip)?;
    assert!(offsets.iter().all(|offset| offset.abs() < clip.start_ns(1) / 2), "{offsets:?}");
    Ok(())
}
