//! Rungs in HEVC and AV1, beside H.264 in one ladder: every frame at its time, and streams that are what the playlists say.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::clip::Clip;
use tests::hls::Presentation;
use tests::{check, process, reader, rules, shoal};

const LADDER: &str = r#"[{"height": 360}, {"height": 360, "video": {"codec": "hevc"}}, {"height": 360, "video": {"codec": "av1"}},
    {"height": 240, "video": {"codec": "hevc", "bitrate": 200000}}, {"height": 240, "video": {"codec": "av1", "bitrate": 200000}}]"#;

#[test]
fn codecs_stand_side_by_side_and_no_frame_is_lost() -> Result<()> {
    for clip in [Clip::new("25", 13), Clip::new("30000/1001", 9)] {
        let output = tempfile::tempdir()?;
        let flags = ["--ladder", LADDER, "--chunk-seconds", "4", "--layout", "single-file", "--mp4", "--copy", "never"];
        shoal::done(clip.file()?, output.path(), &flags)?;
        let mut faults = check::faults(output.path(), &clip)?;
        faults.retain(|fault| !fault.ends_with("/download.mp4 is named by no playlist"));
        assert_eq!(faults, Vec::<String>::new());
        let presentation = Presentation::read(output.path())?;
        let names: BTreeSet<_> = presentation.renditions.iter().map(tests::hls::Rendition::name).collect();
        assert_eq!(names, BTreeSet::from(["v360", "v360-hevc", "v360-av1", "v240-hevc", "v240-av1", "a0"]));
        let master = fs::read_to_string(output.path().join("master.m3u8"))?;
        for name in names.iter().filter(|name| name.starts_with('v')) {
            let file = plain_mp4(output.path(), name)?;
            let frames = reader::frames(&file, "0:v:0")?;
            let faults = reader::frame_faults(&frames, &clip.numbers(), |number| clip.start_ns(number));
            assert_eq!(faults, Vec::<String>::new(), "{}", file.display());
            is_as_said(&file, name, &master).with_context(|| format!("{name} of {}", clip.rate))?;
        }
    }
    Ok(())
}

/// The best and the worst that can be asked for, at a rate of which some rungs have half, and with two threads for the dearest.
#[test]
fn qualities_at_both_ends_can_be_made() -> Result<()> {
    let clip = Clip::new("50", 3).size(320, 180);
    let output = tempfile::tempdir()?;
    let rung = |height, codec, quality| json!({"height": height, "video": {"codec": codec, "quality": quality}});
    let ladder = json!([
        {"height": 180, "fps": "50", "video": {"codec": "hevc", "quality": 50}},
        rung(144, "hevc", 1),
        rung(120, "av1", 1),
        rung(90, "av1", 50),
        rung(90, "h264", 50),
    ]);
    shoal::done(clip.file()?, output.path(), &["--ladder", &ladder.to_string()])?;
    let renditions = Presentation::read(output.path())?.renditions;
    let frames = |name: &str| {
        let of_it = renditions.iter().find(|rendition| rendition.name() == name);
        let samples = of_it.map(|rendition| rendition.segments.iter().map(|segment| segment.samples.len()).sum::<usize>());
        samples.with_context(|| format!("no {name}"))
    };
    assert_eq!(frames("v180-hevc")?, 150);
    for name in ["v144-hevc", "v120-av1", "v90-av1", "v90"] {
        assert_eq!(frames(name)?, 75, "{name}");
    }
    Ok(())
}

/// The plain MP4 of a rendition.
fn plain_mp4(output: &Path, name: &str) -> Result<PathBuf> {
    let files = rules::files_below(&output.join(name))?;
    files.into_iter().find(|file| file.ends_with("download.mp4")).context("no plain MP4")
}

/// The stream is in the codec that its name says, as players on the market want it, and as the playlist says.
fn is_as_said(file: &Path, name: &str, master: &str) -> Result<()> {
    let lines: Vec<_> = master.lines().collect();
    let uri = format!("{name}/index.m3u8");
    let said = lines.windows(2).find(|pair| pair[1] == uri).context("not in the master")?[0];
    let stream = &probe(file, &["-show_entries", "stream=codec_tag_string,profile,level,pix_fmt"])?["streams"][0];
    let level = stream["level"].as_i64().context("no level")?;
    let (tag, codecs) = match name.rsplit_once('-') {
        Some((_, "hevc")) => ("hvc1", format!("hvc1.1.6.L{level}.90")),
        Some((_, "av1")) => ("av01", format!("av01.0.{level:02}M.08")),
        _ => ("avc1", format!("avc1.6400{level:02X}")),
    };
    ensure!(stream["codec_tag_string"] == tag && stream["pix_fmt"] == "yuv420p", "{stream}");
    ensure!(said.contains(&format!("CODECS=\"{codecs},mp4a.40.2\"")), "{codecs} is not in {said}");
    // Key frames every two seconds, and nowhere else.
    let packets = probe(file, &["-show_entries", "packet=pts_time,flags"])?;
    let packets = packets["packets"].as_array().context("no packets")?;
    let keys = packets.iter().filter(|packet| packet["flags"].as_str().is_some_and(|flags| flags.starts_with('K')));
    for (place, key) in keys.enumerate() {
        let time: f64 = key["pts_time"].as_str().context("no time")?.parse()?;
        ensure!((time - 2.0 * place as f64).abs() < 0.02, "key frame {place} at {time} s");
    }
    // What a decoder needs stands in the sample entry alone, and the container says the colours.
    let trace = process::run(
        Command::new("ffmpeg").args(["-v", "trace", "-i"]).arg(file).args([
            "-map",
            "0:v",
            "-c",
            "copy",
            "-bsf:v",
            "trace_headers",
            "-f",
            "null",
            "-",
        ]),
        Duration::from_secs(60),
    )?
    .success()?
    .stderr;
    if tag == "hvc1" {
        let sets = trace.lines().filter(|line| line.ends_with("] Sequence Parameter Set")).count();
        ensure!(sets == 1, "{sets} sequence parameter sets are in it");
    }
    ensure!(trace.contains("nclx: pri 1 trc 1 matrix 1 full 0"), "no colours");
    Ok(())
}

fn probe(file: &Path, what: &[&str]) -> Result<Value> {
    let mut ffprobe = Command::new("ffprobe");
    ffprobe.args(["-v", "error", "-select_streams", "v:0", "-of", "json"]).args(what).arg(file);
    Ok(serde_json::from_str(&process::run(&mut ffprobe, Duration::from_secs(60))?.success()?.text())?)
}
