//! One command with every setting at its default: what comes out is right in every respect that is checked here at all.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};
use tests::clip::Clip;
use tests::hls::Presentation;
use tests::server::{Answer, Server};
use tests::{check, rules, shoal};

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
