//! What options of a job cost beside the job without them: more files of one encode, copying, publishing in stages; and what a
//! child has of memory in 2160p. Run by `make bench-options`.
#![expect(clippy::print_stdout, reason = "figures are what this is for")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tests::cost::{Side, in_turns, median, runs};
use tests::process::Group;
use tests::{corpus, process, shoal};

const LIMIT: Duration = Duration::from_secs(3600);

/// Big Buck Bunny, so many seconds in this height, of 5 Mbit/s, with a key frame every so many frames.
fn film(folder: &Path, height: u32, seconds: u32, gop: u32) -> Result<PathBuf> {
    let file = folder.join(format!("{height}-{seconds}-{gop}.mp4"));
    let clip = corpus::folder().context("the media folder is not there")?.join("bbb_720p_5s.mp4");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-y", "-stream_loop", "-1", "-i"]).arg(clip);
    ffmpeg.args([
        "-vf",
        &format!("fps=25,scale=-2:{height}"),
        "-t",
        &seconds.to_string(),
        "-c:v",
        "libx264",
        "-preset",
        "veryfast",
    ]);
    ffmpeg.args(["-pix_fmt", "yuv420p", "-b:v", "5M", "-maxrate", "8M", "-bufsize", "10M", "-sc_threshold", "0"]);
    ffmpeg.args(["-g", &gop.to_string(), "-c:a", "aac", "-b:a", "128k", "-ac", "2"]).arg(&file);
    process::run(&mut ffmpeg, LIMIT)?.success()?;
    Ok(file)
}

/// What the second flags cost beside the first.
fn beside(source: &Path, folder: &Path, sides: [(&'static str, &'static [&'static str]); 2]) -> Result<()> {
    let output = folder.join("out");
    let command = |flags: &[&str]| -> Result<Vec<Command>> {
        let _ = fs::remove_dir_all(&output);
        Ok(vec![shoal::transcode(source, &output, flags)?])
    };
    let sides = sides.map(|(name, flags)| Side { name, commands: Box::new(move || command(flags)) });
    let costs = in_turns(&sides, runs()?)?;
    for (side, cost) in sides.iter().zip(&costs) {
        println!("{}: {:.2} CPU s, {:.2} s, {:.0} MiB in all processes", side.name, cost.cpu_s, cost.wall_s, cost.rss_mib);
    }
    if let [one, other] = costs.as_slice() {
        println!("{:.3} of the CPU time", other.cpu_s / one.cpu_s);
    }
    Ok(())
}

const LADDER: &str = "720,480,360,240";

#[test]
#[ignore = "a measurement: run by make bench-options"]
fn both_layouts_and_plain_files_beside_one_layout() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = film(folder.path(), 720, 30, 250)?;
    beside(
        &source,
        folder.path(),
        [("segments", &["--ladder", LADDER]), ("both layouts and MP4", &["--ladder", LADDER, "--layout", "both", "--mp4"])],
    )
}

#[test]
#[ignore = "a measurement: run by make bench-options"]
fn copying_beside_encoding_everything() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let seconds = std::env::var("BENCH_COPY_SECONDS").ok().map_or(Ok(60), |seconds| seconds.parse())?;
    let source = film(folder.path(), 1080, seconds, 50)?;
    beside(
        &source,
        folder.path(),
        [("everything encoded", &["--copy", "never"]), ("the largest rung and the sound copied", &["--copy", "when-fits"])],
    )
}

/// How long it takes until something can be played, as a part of how long all takes.
#[test]
#[ignore = "a measurement: run by make bench-options"]
fn the_first_stage_beside_all() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for seconds in [30, 180] {
        let source = film(folder.path(), 720, seconds, 250)?;
        let (mut firsts, mut alls, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..=runs()? {
            let output = folder.path().join("out");
            let _ = fs::remove_dir_all(&output);
            let flags = ["--ladder", LADDER, "--publish", "in-stages"];
            let began = Instant::now();
            let mut running = Group::spawn(&mut shoal::transcode(&source, &output, &flags)?)?;
            process::until("a first stage", LIMIT, || Ok(output.join("master.m3u8").exists()))?;
            let first = began.elapsed().as_secs_f64();
            running.wait(LIMIT)?;
            let all = began.elapsed().as_secs_f64();
            // The first run warms up.
            if run > 0 {
                firsts.push(first);
                alls.push(all);
                parts.push(first / all);
            }
        }
        println!(
            "{seconds} s: something to play after {:.1} s, all after {:.1} s: {:.3}",
            median(firsts),
            median(alls),
            median(parts)
        );
    }
    Ok(())
}

#[test]
#[ignore = "a measurement: run by make bench-options"]
fn memory_of_a_child_in_2160p() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut most = Vec::new();
    let source = film(folder.path(), 2160, 10, 250)?;
    for _ in 0..runs()? {
        let output = folder.path().join("out");
        let _ = fs::remove_dir_all(&output);
        shoal::done(&source, &output, &["--slots", "1"])?;
        let report: Value = serde_json::from_slice(&fs::read(output.join("report.json"))?)?;
        most.push(report["cost"]["rss_kib_max"].as_f64().context("memory in the report")? / 1024.0);
    }
    println!("2160p, seven rungs: a child has {:.0} MiB at most ({most:.0?})", median(most.clone()));
    Ok(())
}
