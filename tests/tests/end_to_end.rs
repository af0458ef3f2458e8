//! One command with every setting at its default: what comes out is right in every respect that is checked here at all.

use std::fs;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use tests::clip::Clip;
use tests::hls::Presentation;
use tests::server::{Answer, Server};
use tests::{check, process, rules, shoal};

fn clip() -> Clip {
    Clip::new("30000/1001", 20).size(1280, 720)
}

fn names(folder: &std::path::Path) -> Result<Vec<String>> {
    Ok(Presentation::read(folder)?.renditions.iter().map(|rendition| rendition.name().to_owned()).collect())
}

#[test]
fn a_clip_becomes_a_right_ladder_in_both_layouts() -> Result<()> {
    let clip = clip();
    for layout in ["segments", "single-file"] {
        let output = tempfile::tempdir()?;
        shoal::done(clip.file()?, output.path(), &["--layout", layout])?;
        assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new(), "{layout}");
        assert_eq!(check::sync_faults(output.path(), 0)?, Vec::<String>::new(), "{layout}");
        assert_eq!(names(output.path())?, ["v720", "v480", "v360", "v240", "a0"], "{layout}");
        assert!(!output.path().join(".shoal").exists(), "{layout}: state is left over");
    }
    Ok(())
}

#[test]
fn the_report_and_the_printed_result_say_what_was_made() -> Result<()> {
    let clip = clip();
    let output = tempfile::tempdir()?;
    let run = shoal::done(clip.file()?, output.path(), &["--json"])?;
    let told: Value = serde_json::from_slice(&run.stdout)?;
    assert_eq!(told["renditions"], json!(["v720", "v480", "v360", "v240", "a0"]), "{told}");
    assert_eq!(run.text().matches("\"master\"").count(), 1, "a key twice in one object: {}", run.text());
    assert!(told["master"].as_str().is_some_and(|path| fs::exists(path).is_ok_and(|there| there)), "{told}");
    let report: Value = serde_json::from_slice(&fs::read(output.path().join("report.json"))?)?;
    let frames = json!({ "kept": clip.frames, "dropped": 0, "filled": 0, "missing": 0, "decode_errors": 0 });
    assert_eq!(report["frames"], frames);
    assert_eq!(report["source"]["picture"]["rate"], "30000/1001");
    assert_eq!(report["source"]["bytes"], fs::metadata(clip.file()?)?.len());
    assert_eq!(report["grid"]["frames"], clip.frames);
    let presentation = Presentation::read(output.path())?;
    for rendition in &presentation.renditions {
        let reported = report["renditions"].as_array().and_then(|all| all.iter().find(|r| r["id"] == rendition.name()));
        let reported = reported.unwrap_or_else(|| panic!("no {} in the report", rendition.name()));
        let bytes: usize = rendition.segments.iter().map(|segment| segment.bytes.len()).sum();
        assert_eq!(reported["bytes"], bytes, "{}", rendition.name());
        assert_eq!(reported["segments"], rendition.segments.len(), "{}", rendition.name());
    }
    Ok(())
}

#[test]
fn a_source_over_http_gives_the_same_as_from_a_file() -> Result<()> {
    let clip = Clip::new("25", 6);
    let file = clip.file()?;
    let server = Server::start(Answer::File(file))?;
    let output = tempfile::tempdir()?;
    shoal::done(server.url("video.mp4"), output.path(), &[])?;
    assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new());
    assert!(server.requests() > 0);
    Ok(())
}

#[test]
fn a_server_that_fails_now_and_then_is_asked_again() -> Result<()> {
    let clip = Clip::new("25", 6);
    let server = Server::start(Answer::Flaky(clip.file()?, 3))?;
    let output = tempfile::tempdir()?;
    shoal::done(server.url("video.mp4"), output.path(), &[])?;
    assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new());
    Ok(())
}

/// Amplitude of a tone among samples, by correlation with it.
fn amplitude(samples: &[f32], rate: f64, tone_hz: f64) -> f64 {
    let turn = std::f64::consts::TAU * tone_hz / rate;
    let (mut sin, mut cos) = (0.0, 0.0);
    for (n, sample) in (0_u32..).zip(samples) {
        let (s, c) = (turn * f64::from(n)).sin_cos();
        sin += s * f64::from(*sample);
        cos += c * f64::from(*sample);
    }
    2.0 * f64::hypot(sin, cos) / samples.len() as f64
}

#[test]
fn a_tone_of_one_side_stays_on_its_side() -> Result<()> {
    let (folder, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let input = folder.path().join("sides.wav");
    let tones = "aevalsrc=0.4*sin(2*PI*440*t)|0.4*sin(2*PI*1000*t):s=48000:d=4";
    let mut make = Command::new("ffmpeg");
    make.args(["-v", "error", "-f", "lavfi", "-i", tones]).arg(&input);
    process::run(&mut make, shoal::RUN_LIMIT)?.success()?;
    shoal::done(&input, output.path(), &[])?;
    let mut read = Command::new("ffmpeg");
    read.args(["-v", "error", "-i"]).arg(output.path().join("a0/index.m3u8")).args(["-f", "f32le", "-ar", "48000", "pipe:1"]);
    let samples: Vec<f32> = process::run(&mut read, shoal::RUN_LIMIT)?
        .success()?
        .stdout
        .as_chunks()
        .0
        .iter()
        .copied()
        .map(f32::from_le_bytes)
        .collect();
    // Two seconds from the middle, where both tones have whole periods.
    for (side, own_hz, other_hz) in [(0, 440.0, 1000.0), (1, 1000.0, 440.0)] {
        let heard: Vec<f32> = samples.chunks_exact(2).skip(48_000).take(96_000).map(|pair| pair[side]).collect();
        let (own, other) = (amplitude(&heard, 48_000.0, own_hz), amplitude(&heard, 48_000.0, other_hz));
        assert!((0.38..0.42).contains(&own) && other < 0.004, "side {side}: {own} of its own tone, {other} of the other's");
    }
    Ok(())
}

#[test]
fn a_silent_clip_has_no_audio_group() -> Result<()> {
    let clip = Clip { audio: false, ..Clip::new("25", 6) };
    let output = tempfile::tempdir()?;
    shoal::done(clip.file()?, output.path(), &[])?;
    assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new());
    assert!(!fs::read_to_string(output.path().join("master.m3u8"))?.contains("AUDIO"));
    Ok(())
}

#[test]
fn a_second_run_over_a_finished_one_replaces_it_and_leaves_nothing_behind() -> Result<()> {
    let clip = Clip::new("25", 6);
    let output = tempfile::tempdir()?;
    shoal::done(clip.file()?, output.path(), &[])?;
    shoal::done(clip.file()?, output.path(), &["--ladder", "240"])?;
    assert_eq!(names(output.path())?, ["v240", "a0"]);
    assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new());
    assert_eq!(rules::files_below(output.path())?.iter().filter(|file| file.ends_with("index.m3u8")).count(), 2);
    Ok(())
}

#[test]
fn segments_last_as_long_as_was_asked() -> Result<()> {
    let clip = Clip::new("25", 20);
    for (asked, wanted_ns) in [("2", 2_000_000_000), ("6", 6_000_000_000)] {
        let output = tempfile::tempdir()?;
        shoal::done(clip.file()?, output.path(), &["--ladder", "240", "--segment-seconds", asked])?;
        assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new(), "{asked} s");
        let presentation = Presentation::read(output.path())?;
        let rung = presentation.rendition("v240")?;
        assert_eq!(rung.track.ns(rung.segments[0].ticks().cast_signed()), wanted_ns, "{asked} s");
    }
    Ok(())
}
