//! Quality of each rung at equal bits, beside ffmpeg with its bicubic scaler and the same x264 settings. Run by
//! `make bench-quality`; prints a table, and fails where a rung is below.
//!
//! VMAF over raw frames of 4:2:0, both scaled up to the source's size. ffmpeg encodes at three qualities around the rung's own;
//! what it would reach with the rung's bits lies between.
#![expect(clippy::print_stdout, reason = "figures are what this is for")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::hls::Presentation;
use tests::mp4::Kind;
use tests::raw::{Raw, size_of};
use tests::{corpus, process, shoal};

const LIMIT: Duration = Duration::from_secs(900);
/// Animation, and what cameras and phones filmed: of 8 bits, with at most 30 frames per second.
const SOURCES: [&str; 4] = ["bbb_720p_5s.mp4", "bbb_480p_30s.mp4", "sample_portrait.mp4", "video_short_no_audio.mp4"];
/// Points of VMAF that runs of the same encoder differ by where nothing but its input's rounding does.
const NOISE: f64 = 0.2;

/// Whether hardware is to encode: on a machine that has some, `require` tells how its qualities compare.
fn hardware() -> String {
    std::env::var("BENCH_HARDWARE").unwrap_or_else(|_| "avoid".to_owned())
}

/// Bytes and VMAF of ffmpeg's encode at this CRF.
fn ffmpeg_point(folder: &Path, source: &Raw, rung: &Rung, crf: u32) -> Result<(f64, f64)> {
    let file = folder.join("ffmpeg.h264");
    let (width, height) = rung.size;
    let kbit = rung.max_bitrate / 1000;
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-y"]).args(source.input(&rung.rate));
    ffmpeg.args(["-vf", &format!("scale={width}:{height}:flags=bicubic"), "-c:v", "libx264", "-preset", "veryfast"]);
    ffmpeg.args(["-profile:v", "high", "-threads", "1", "-crf", &crf.to_string()]);
    ffmpeg.args(["-maxrate", &format!("{kbit}k"), "-bufsize", &format!("{}k", 2 * kbit)]);
    ffmpeg.args(["-g", &rung.gop_frames.to_string(), "-sc_threshold", "0"]).arg(&file);
    process::run(&mut ffmpeg, LIMIT)?.success()?;
    let bytes = fs::metadata(&file)?.len() as f64;
    Ok((bytes, Raw::of(&file, rung.size, folder.join("ffmpeg.yuv"))?.vmaf(source)?))
}

/// Bytes of a file's picture as a bare stream.
fn stream_bytes(file: &Path, bare: &Path) -> Result<f64> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-y", "-i"]).arg(file).args(["-c", "copy", "-f", "h264"]).arg(bare);
    process::run(&mut ffmpeg, LIMIT)?.success()?;
    Ok(fs::metadata(bare)?.len() as f64)
}

/// A rung of ours.
struct Rung {
    name: String,
    size: (u32, u32),
    rate: String,
    gop_frames: u64,
    quality: u32,
    max_bitrate: u64,
    /// Bytes of its stream, without what the container adds.
    bytes: f64,
}

/// The value at `x` of the line through the two of these points that are nearest.
fn between(points: &mut [(f64, f64)], x: f64) -> f64 {
    points.sort_by(|a, b| (a.0.ln() - x.ln()).abs().total_cmp(&(b.0.ln() - x.ln()).abs()));
    match points {
        [(x0, y0), (x1, y1), ..] => *y0 + (*y1 - *y0) * (x.ln() - x0.ln()) / (x1.ln() - x0.ln()),
        _ => f64::NAN,
    }
}

fn measured(file: &Path) -> Result<Vec<String>> {
    let (folder, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
    shoal::done(file, output.path(), &["--ladder", "480,360,240", "--copy", "never", "--hardware", &hardware()])?;
    let source = Raw::of(file, size_of(file)?, folder.path().join("source.yuv"))?;
    let report: Value = serde_json::from_slice(&fs::read(output.path().join("report.json"))?)?;
    let presentation = Presentation::read(output.path())?;
    let mut faults = Vec::new();
    for made in presentation.videos() {
        let Kind::Video { width, height, .. } = made.track.kind else { continue };
        let told = report["renditions"].as_array().into_iter().flatten().find(|one| one["id"] == made.name());
        let told = told.context("the report has no such rung")?;
        let control = &told["rate_control"]["capped_quality"];
        let number = |value: &Value| value.as_u64().context("no number");
        let rung = Rung {
            name: made.name().to_owned(),
            size: (width.into(), height.into()),
            rate: told["medium"]["picture"]["rate"].as_str().context("no rate")?.to_owned(),
            gop_frames: number(&report["grid"]["gop_frames"])?,
            quality: u32::try_from(number(&control["quality"])?)?,
            max_bitrate: number(&control["max_bitrate"])?,
            bytes: stream_bytes(&made.path, &folder.path().join("ours.h264"))?,
        };
        let ours = Raw::of(&made.path, rung.size, folder.path().join("ours.yuv"))?.vmaf(&source)?;
        let mut points = Vec::new();
        for crf in [rung.quality - 1, rung.quality, rung.quality + 1] {
            points.push(ffmpeg_point(folder.path(), &source, &rung, crf)?);
        }
        let theirs = between(&mut points, rung.bytes);
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        println!("| {name} | {} | {:.0} | {ours:.2} | {theirs:.2} | {:+.2} |", rung.name, rung.bytes / 1000.0, ours - theirs);
        // A device's encoder is measured here, and not held to x264's.
        if hardware() == "avoid" && ours < theirs - NOISE {
            faults.push(format!("{name} {}: {ours:.2}, ffmpeg {theirs:.2}", rung.name));
        }
    }
    Ok(faults)
}

#[test]
#[ignore = "a measurement: run by make bench-quality"]
fn no_rung_is_below_ffmpeg_at_equal_bits() -> Result<()> {
    let Some(folder) = corpus::folder() else { return Ok(()) };
    println!("| source | rung | kB | VMAF | ffmpeg's at these bits | difference |\n|---|---|---|---|---|---|");
    let mut faults = Vec::new();
    for name in SOURCES {
        faults.extend(measured(&folder.join(name))?);
    }
    ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}
