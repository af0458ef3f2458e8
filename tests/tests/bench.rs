//! What a ladder costs, beside what would be used instead: plain x264 on frames that are scaled already (the floor), one `ffmpeg`
//! for the whole ladder, and one `ffmpeg` per rung. Run by `make bench`; writes `tests/bench/RESULTS.md`.
//!
//! Same source, sizes, x264 library and settings on all sides, run in turns; CPU seconds are those of all processes of a
//! command, user and system. `BENCH_RUNS` (5) and `BENCH_SOURCES` (all) make it shorter.
#![expect(clippy::print_stdout, reason = "figures are what this is for")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::cost::{Cost, Side, in_turns, runs};
use tests::hls::Presentation;
use tests::raw::Raw;
use tests::{corpus, process, shoal};

const LIMIT: Duration = Duration::from_secs(1800);
/// Width, height and kbit/s of each rung.
const RUNGS: [(u32, u32, u32); 4] = [(1280, 720, 1700), (854, 480, 900), (640, 360, 600), (426, 240, 300)];
/// Frames of a GOP: 2 s.
const GOP: &str = "50";
/// Seconds of each source.
const SECONDS: &str = "30";
/// What a camera or an editor makes of 720p, in kbit/s: decoding alone takes a fifth of what x264 takes for the ladder.
const UPLOAD_KBPS: u32 = 5000;
/// What was made for the web already.
const LEAN_KBPS: u32 = 1500;

/// What is measured over: a name, the bit rate of the upload in kbit/s, and what makes ffmpeg draw it, 720p at 25 frames per
/// second.
fn sources() -> Vec<(&'static str, u32, Vec<String>)> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut sources = vec![
        ("grain", UPLOAD_KBPS, words("-f lavfi -i testsrc2=s=1280x720:r=25,noise=alls=10:allf=t")),
        (
            "screen",
            UPLOAD_KBPS,
            words(
                "-f lavfi -i life=s=160x90:r=5:mold=10:seed=7:life_color=white:death_color=gray,scale=1280:720:flags=neighbor,fps=25",
            ),
        ),
    ];
    if let Some(media) = corpus::folder() {
        let looped = |file: &str| {
            let mut input = words("-stream_loop -1 -i");
            input.push(media.join(file).display().to_string());
            input
        };
        sources.insert(0, ("animation", UPLOAD_KBPS, looped("bbb_720p_5s.mp4")));
        sources.insert(1, ("lean", LEAN_KBPS, looped("bbb_720p_5s.mp4")));
        sources.push(("slides", UPLOAD_KBPS, looped("video_short_no_audio.mp4")));
    }
    sources
}

/// A source as uploads are: H.264 with a key frame every 10 s, which nothing can be copied of, and AAC.
fn upload(folder: &Path, kbps: u32, input: &[String]) -> Result<PathBuf> {
    let file = folder.join("source.mp4");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-y"]).args(input);
    ffmpeg.args(["-f", "lavfi", "-i", "anoisesrc=r=48000:a=0.1:c=pink,aformat=channel_layouts=stereo"]);
    ffmpeg.args([
        "-map",
        "0:v",
        "-map",
        "1:a",
        "-vf",
        "fps=25,scale=1280:720",
        "-t",
        SECONDS,
        "-c:v",
        "libx264",
        "-preset",
        "fast",
        "-pix_fmt",
        "yuv420p",
    ]);
    let rates = [kbps, kbps * 8 / 5, kbps * 2].map(|kbps| format!("{kbps}k"));
    ffmpeg.args(["-b:v", &rates[0], "-maxrate", &rates[1], "-bufsize", &rates[2], "-g", "250"]);
    ffmpeg.args(["-c:a", "aac", "-b:a", "128k"]).arg(&file);
    process::run(&mut ffmpeg, LIMIT)?.success()?;
    Ok(file)
}

fn x264(frames: &[PathBuf], folder: &Path) -> Vec<Command> {
    let command = |(file, (_, height, kbps)): (&PathBuf, (u32, u32, u32))| {
        let rate = kbps.to_string();
        let mut x264 = Command::new("x264");
        x264.args(["--quiet", "--no-progress", "--preset", "veryfast", "--profile", "high", "--keyint", GOP, "--scenecut", "0"]);
        x264.args(["--bitrate", &rate, "--vbv-maxrate", &rate, "--vbv-bufsize", &rate, "-o"]);
        x264.arg(folder.join(format!("x264-{height}.264"))).arg(file);
        x264
    };
    frames.iter().zip(RUNGS).map(command).collect()
}

fn encoder(kbps: u32) -> Vec<String> {
    let rate = format!("{kbps}k");
    let fixed = ["-c:v", "libx264", "-preset", "veryfast", "-profile:v", "high", "-g", GOP, "-sc_threshold", "0", "-b:v"];
    let rates = [&rate, "-maxrate", &rate, "-bufsize", &rate];
    fixed.iter().chain(&rates).map(|word| (*word).to_owned()).collect()
}

const SOUND: [&str; 6] = ["-c:a", "aac", "-b:a", "128k", "-ac", "2"];

fn one_ffmpeg(source: &Path, folder: &Path) -> Command {
    let mut graph = format!("[0:v]split={}[v0]", RUNGS.len());
    (1..RUNGS.len()).for_each(|n| _ = write!(graph, "[s{n}]"));
    for (n, (width, height, _)) in RUNGS.iter().enumerate().skip(1) {
        _ = write!(graph, ";[s{n}]scale={width}:{height}[v{n}]");
    }
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-y", "-i"]).arg(source).args(["-filter_complex", &graph]);
    for (n, (_, height, kbps)) in RUNGS.iter().enumerate() {
        ffmpeg.args(["-map", &format!("[v{n}]")]).args(encoder(*kbps)).arg(folder.join(format!("one-{height}.mp4")));
    }
    ffmpeg.args(["-map", "0:a"]).args(SOUND).arg(folder.join("one-sound.mp4"));
    ffmpeg
}

fn ffmpeg_per_rung(source: &Path, folder: &Path) -> Vec<Command> {
    let command = |(width, height, kbps): (u32, u32, u32)| {
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin", "-y", "-i"]).arg(source).args(["-vf", &format!("scale={width}:{height}")]);
        ffmpeg.args(encoder(kbps)).args(SOUND).arg(folder.join(format!("each-{height}.mp4")));
        ffmpeg
    };
    RUNGS.into_iter().map(command).collect()
}

fn ladder() -> String {
    let rung = |(_, height, kbps): &(u32, u32, u32)| {
        let rate = kbps * 1000;
        format!(r#"{{"height":{height},"video":{{"bitrate":{rate},"max_bitrate":{rate}}}}}"#)
    };
    format!("[{}]", RUNGS.iter().map(rung).collect::<Vec<_>>().join(","))
}

fn measured(name: &str, (kbps, input): (u32, &[String]), runs: usize) -> Result<(String, String)> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let source = upload(folder, kbps, input)?;
    let mut frames = Vec::new();
    for (width, height, _) in RUNGS {
        let file = folder.join(format!("{height}.y4m"));
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin", "-y", "-i"]).arg(&source).args(["-an", "-pix_fmt", "yuv420p", "-vf"]);
        ffmpeg.arg(format!("scale={width}:{height}:flags=lanczos")).arg(&file);
        process::run(&mut ffmpeg, LIMIT)?.success()?;
        frames.push(file);
    }
    let output = folder.join("shoal");
    let ours = || -> Result<Vec<Command>> {
        let _ = fs::remove_dir_all(&output);
        Ok(vec![shoal::transcode(&source, &output, &["--ladder", &ladder()])?])
    };
    let sides = [
        Side { name: "plain x264 on scaled frames, no sound", commands: Box::new(|| Ok(x264(&frames, folder))) },
        Side { name: "one ffmpeg for the ladder", commands: Box::new(|| Ok(vec![one_ffmpeg(&source, folder)])) },
        Side { name: "one ffmpeg per rung", commands: Box::new(|| Ok(ffmpeg_per_rung(&source, folder))) },
        Side { name: "`shoal transcode`", commands: Box::new(ours) },
    ];
    let costs = in_turns(&sides, runs)?;
    let own = *costs.last().context("no side")?;
    let mut table = String::new();
    for (side, cost) in sides.iter().zip(&costs) {
        let Cost { cpu_s, wall_s, rss_mib } = cost;
        let (cpu, wall) = (own.cpu_s / cpu_s, own.wall_s / wall_s);
        let line = format!("| {name} | {} | {cpu_s:.2} | {cpu:.2} | {wall_s:.2} | {wall:.2} | {rss_mib:.0} |\n", side.name);
        print!("{line}");
        table.push_str(&line);
    }
    Ok((table, quality(name, &source, &output, folder)?))
}

/// Bits and VMAF of each rung, ours and one ffmpeg's; nothing where no ffmpeg measures it.
fn quality(name: &str, source: &Path, output: &Path, folder: &Path) -> Result<String> {
    if std::env::var_os("VMAF_FFMPEG").is_none() {
        return Ok(String::new());
    }
    let (width, height, _) = RUNGS[0];
    let reference = Raw::of(source, (width, height), folder.join("source.yuv"))?;
    let presentation = Presentation::read(output)?;
    let mut table = String::new();
    for (width, height, _) in RUNGS {
        let made = &presentation.rendition(&format!("v{height}"))?.path;
        let theirs = folder.join(format!("one-{height}.mp4"));
        let figures = [made, &theirs].map(|file| {
            let bare = folder.join("bare.264");
            let mut ffmpeg = Command::new("ffmpeg");
            ffmpeg.args(["-v", "error", "-nostdin", "-y", "-i"]).arg(file).args(["-map", "0:v:0", "-c", "copy"]).arg(&bare);
            process::run(&mut ffmpeg, LIMIT)?.success()?;
            let kilobytes = fs::metadata(&bare)?.len() as f64 / 1000.0;
            Ok::<_, anyhow::Error>((kilobytes, Raw::of(file, (width, height), folder.join("made.yuv"))?.vmaf(&reference)?))
        });
        let [ours, theirs] = figures;
        let ((ours_kb, ours), (theirs_kb, theirs)) = (ours?, theirs?);
        let line =
            format!("| {name} | {height} | {ours_kb:.0} | {theirs_kb:.0} | {ours:.2} | {theirs:.2} | {:+.2} |\n", ours - theirs);
        print!("{line}");
        table.push_str(&line);
    }
    Ok(table)
}

/// A first line of what a program says.
fn said(program: &str, arguments: &[&str]) -> String {
    let run = process::run(Command::new(program).args(arguments), LIMIT);
    run.ok().and_then(|finished| finished.text().lines().next().map(str::to_owned)).unwrap_or_default()
}

#[test]
#[ignore = "a measurement: run by make bench"]
fn a_ladder_beside_what_would_be_used_instead() -> Result<()> {
    let runs = runs()?;
    let only = std::env::var("BENCH_SOURCES").unwrap_or_default();
    let sources = sources().into_iter().filter(|(name, ..)| only.is_empty() || only.split(',').any(|one| one == *name));
    let (mut costs, mut qualities) = (String::new(), String::new());
    for (name, kbps, input) in sources {
        let (cost, quality) = measured(name, (kbps, &input), runs)?;
        costs.push_str(&cost);
        qualities.push_str(&quality);
    }
    ensure!(!costs.is_empty(), "no source of the names {only}");
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, name)| name);
    let cores = std::thread::available_parallelism()?;
    let rungs: Vec<_> = RUNGS.iter().map(|(width, height, kbps)| format!("{width}x{height} at {kbps}")).collect();
    let text = format!(
        "# What a ladder costs\n\n\
         Written by `make bench` on {}: {cores} cores ({cpu}), {}, {}.\n\n\
         Sources of {SECONDS} s, 720p25, H.264 of up to 5 Mbit/s (*lean*: the animation at 1.5) with AAC. Ladder: {} kbit/s, x264 veryfast, a buffer of a second, GOPs of 2 s.\n\
         Medians of {runs} runs in turns after one to warm up. *ratio* is ours to that side's: below 1 we are cheaper. CPU is user and system\n\
         time of all processes; memory is all of them together.\n\n\
         | source | side | CPU s | ratio | wall s | ratio | MiB |\n|---|---|---|---|---|---|---|\n{costs}\n\
         Picture streams without container, VMAF at the source's size, ours beside one ffmpeg's:\n\n\
         | source | rung | kB | ffmpeg's kB | VMAF | ffmpeg's VMAF | difference |\n|---|---|---|---|---|---|---|\n{qualities}",
        said("date", &["--utc", "+%Y-%m-%d"]),
        said("x264", &["--version"]),
        said("ffmpeg", &["-version"]).split(" Copyright").next().unwrap_or_default(),
        rungs.join(", "),
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/RESULTS.md");
    fs::create_dir_all(file.parent().context("a folder")?)?;
    fs::write(&file, text)?;
    println!("written to {}", file.display());
    Ok(())
}
