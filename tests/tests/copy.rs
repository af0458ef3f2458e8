//! What of the source fits is handed on as it is: the same frames and samples, at their times, beside rungs that are encoded.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::clip::{Clip, Container};
use tests::{check, process, reader, shoal};

const LIMIT: Duration = Duration::from_secs(60);
/// The largest rung is as large as the clips are.
const LADDER: &[&str] = &["--chunk-seconds", "4", "--ladder", "360,240"];

fn clip(gop: u32) -> Clip {
    Clip { gop, ..Clip::new("25", 20) }
}

fn report(output: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(output.join("report.json"))?)?)
}

/// How each rendition was made: `v360 copied`.
fn made(report: &Value) -> Vec<String> {
    let renditions = report["renditions"].as_array().into_iter().flatten();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    renditions.map(|rendition| format!("{} {}", word(&rendition["id"]), word(&rendition["made"]))).collect()
}

/// A hash of each frame of the picture, and its time in frames.
fn frames(input: &Path) -> Result<Vec<String>> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-i"]).arg(input).args(["-map", "0:v:0", "-f", "framemd5", "-"]);
    let out = process::run(&mut ffmpeg, LIMIT)?.success()?.text();
    let fields = |line: &str| line.split(',').map(str::trim).map(str::to_owned).collect::<Vec<_>>();
    let lines = out.lines().filter(|line| !line.starts_with('#')).map(fields);
    Ok(lines.filter_map(|line| Some(format!("{} {}", line.get(2)?, line.last()?))).collect())
}

/// The samples of the first channel from time 0 on, as `ffmpeg` decodes them.
fn samples(input: &Path) -> Result<Vec<f32>> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-copyts", "-i"]).arg(input);
    ffmpeg.args(["-map", "0:a:0", "-af", "atrim=start=0,pan=mono|c0=c0", "-f", "f32le", "pipe:1"]);
    let bytes = process::run(&mut ffmpeg, LIMIT)?.success()?.stdout;
    Ok(bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect())
}

#[test]
fn the_sources_own_rung_is_copied_frame_by_frame_and_the_others_follow_its_key_frames() -> Result<()> {
    for (gop, gop_made, layout, container) in [
        (50, 50, "segments", Container::Mp4),
        (25, 50, "single-file", Container::Mp4),
        (75, 75, "segments", Container::Mkv),
        (125, 125, "single-file", Container::Mkv),
    ] {
        let (clip, output) = (clip(gop).container(container), tempfile::tempdir()?);
        shoal::done(clip.file()?, output.path(), &[LADDER, &["--layout", layout]].concat())?;
        let what = format!("a key frame every {gop} frames in {container:?}, {layout}");
        let report = report(output.path())?;
        assert_eq!(made(&report), ["v360 copied", "v240 encoded", "a0 copied"], "{what}: {}", report["notes"]);
        assert_eq!(report["grid"]["gop_frames"], gop_made, "{what}");
        assert!(report["grid"]["chunks"].as_u64() > Some(2), "{what}: {}", report["grid"]);
        assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new(), "{what}");
        assert_eq!(check::sync_faults(output.path(), 0)?, Vec::<String>::new(), "{what}");
        let (copied, source) = (frames(&output.path().join("v360/index.m3u8"))?, frames(&clip.file()?)?);
        assert_eq!(copied.len(), 500, "{what}");
        // Times of Matroska are milliseconds.
        let hashes = |frames: &[String]| frames.iter().filter_map(|f| Some(f.split_once(' ')?.1.to_owned())).collect::<Vec<_>>();
        assert!(hashes(&copied) == hashes(&source), "{what}: other frames");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_encoded_and_the_report_says_why() -> Result<()> {
    let seven = Clip::new("25", 12);
    let rate = r#"[{"height":360,"video":{"bitrate":400000}}]"#;
    for (clip, flags, wanted, note) in [
        (&seven, &["--ladder", "360"][..], ["v360 encoded", "a0 copied"], Some("v360: it has no key frame at every")),
        (&clip(50), &["--ladder", "360", "--copy", "never"], ["v360 encoded", "a0 encoded"], None),
        (&clip(50), &["--ladder", rate], ["v360 encoded", "a0 copied"], None),
        (&clip(50), &["--ladder", "360", "--loudness", "ebu-r128"], ["v360 copied", "a0 encoded"], None),
    ] {
        let output = tempfile::tempdir()?;
        shoal::done(clip.file()?, output.path(), flags)?;
        let report = report(output.path())?;
        assert_eq!(made(&report), wanted, "{flags:?}: {}", report["notes"]);
        let notes: Vec<_> = report["notes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert_eq!(notes.len(), usize::from(note.is_some()), "{flags:?}: {notes:?}");
        assert!(notes.iter().zip(note).all(|(said, note)| said.contains(note)), "{flags:?}: {notes:?}");
    }
    Ok(())
}

/// Cut without encoding anew, a file begins within a packet of its sound: the samples before are to be decoded and not heard.
fn cut(source: &Path, at: &str, into: &Path) -> Result<()> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-ss", at, "-i"]).arg(source).args(["-map", "0:a", "-c", "copy"]).arg(into);
    process::run(&mut ffmpeg, LIMIT)?.success()?;
    Ok(())
}

#[test]
fn copied_sound_is_the_sources_sample_by_sample_wherever_its_packets_begin() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = clip(50).file()?;
    let mut sources = vec![source.clone()];
    for at in ["1.007", "2.5", "3.333"] {
        let file = folder.path().join(format!("from-{at}.m4a"));
        cut(&source, at, &file)?;
        sources.push(file);
    }
    for source in sources {
        let output = tempfile::tempdir()?;
        shoal::done(&source, output.path(), &["--ladder", "240"])?;
        let report = report(output.path())?;
        ensure!(made(&report).contains(&"a0 copied".to_owned()), "{}: {report:#}", source.display());
        let (made, wanted) = (samples(&output.path().join("a0/index.m3u8"))?, samples(&source)?);
        let least = made.len().min(wanted.len());
        ensure!(
            made.len().abs_diff(wanted.len()) <= 1024 && least > 48_000,
            "{}: {} of {}",
            source.display(),
            made.len(),
            wanted.len()
        );
        // Times are rounded to whole ns: a sample more or less. Noise that a decoder makes up (PNS) depends on where it began.
        let differ = |lag: usize| {
            let pairs = made.iter().skip(lag).zip(&wanted).take(least - 1024);
            pairs.filter(|(a, b)| (*a - *b).abs() > 1e-6).count()
        };
        let best = [0, 1].map(differ);
        let few = best.iter().any(|differ| differ * 20 < least);
        ensure!(few, "{}: {best:?} of {least} samples differ", source.display());
    }
    Ok(())
}

/// What does not decode is concealed and told of, as anywhere; players would stumble over it.
#[test]
fn sound_that_does_not_decode_is_not_copied() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (sound, damaged) = (folder.path().join("sound.aac"), folder.path().join("damaged.m4a"));
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-i"]).arg(clip(50).file()?).args(["-map", "0:a", "-c", "copy"]).arg(&sound);
    process::run(&mut ffmpeg, LIMIT)?.success()?;
    let whole = std::fs::read(&sound)?;
    for broken in [1..21, 100..120, 900..930] {
        let mut bytes = whole.clone();
        // The bodies of some packets; what says where each one begins stays whole (ADTS: 7 bytes, of which 13 bits are the length).
        let mut at = 0;
        for packet in 0.. {
            let Some(header) = bytes.get(at..at + 7) else { break };
            let length = usize::from(header[3] & 3) << 11 | usize::from(header[4]) << 3 | usize::from(header[5] >> 5);
            if broken.contains(&packet) {
                bytes[at + 7..at + length].fill(0xff);
            }
            at += length;
        }
        std::fs::write(&sound, bytes)?;
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-y", "-i"]).arg(&sound).args(["-c", "copy"]).arg(&damaged);
        process::run(&mut ffmpeg, LIMIT)?.success()?;
        let output = tempfile::tempdir()?;
        shoal::done(&damaged, output.path(), &[])?;
        assert_eq!(made(&report(output.path())?), ["a0 encoded"], "{broken:?}");
        let heard = reader::sound(&output.path().join("a0/index.m3u8"), "0:a:0")?;
        assert!((heard.duration_ns() - 20_000_000_000).abs() < 100_000_000, "{broken:?}: {} ns", heard.duration_ns());
    }
    Ok(())
}
