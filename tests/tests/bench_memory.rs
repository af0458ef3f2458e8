//! Memory and disk of a worker by the length of its source, from S3 to S3. Run by `make bench-memory`; prints a table, and
//! fails when either grows with the length.
//!
//! `BENCH_MINUTES` sets the lengths, `1,10,60` without; the last is compared with the one before.
#![expect(clippy::print_stdout, reason = "figures are what this is for")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use farm::job::{JobId, Layout};
use farm::{Life, keys};
use serde_json::json;
use tests::farm::{Farm, JOBS, Ways};
use tests::process::{self, descendants, until};

/// How much more the longest source may take than the one before.
const GROWTH_MAX: f64 = 1.15;
/// Most bytes that a worker may have written to disk: its log, and no media.
const WRITTEN_BYTES_MAX: u64 = 1 << 20;
/// How often a worker is looked at.
const LOOK: Duration = Duration::from_millis(25);
const LIMIT: Duration = Duration::from_secs(1800);

/// What a worker and its children took at most.
#[derive(Debug, Default)]
struct Peak {
    worker_kib: u64,
    child_kib: u64,
    together_kib: u64,
    /// Bytes written to disk, by process.
    written: BTreeMap<u32, u64>,
    /// Files open for writing.
    files: BTreeSet<PathBuf>,
}

/// A number in a file below `/proc`, by the word before it; 0 when the process is gone.
fn number(path: &str, word: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Regular files that a process has open for writing.
fn open_files(pid: u32) -> BTreeSet<PathBuf> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let file = |link: fs::DirEntry| {
        let target = fs::read_link(link.path()).ok()?;
        let is_file = target.is_absolute() && !target.starts_with("/dev") && !target.starts_with("/proc");
        let number = link.file_name().into_string().ok()?;
        let flags = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
        // The last octal digit of the flags says whether it is open for reading alone.
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"))?.trim().to_owned();
        (is_file && !flags.ends_with('0') && !flags.ends_with('4')).then_some(target)
    };
    links.filter_map(file).collect()
}

impl Peak {
    fn look(&mut self, worker: u32) {
        let children = descendants(worker);
        let status = |pid: u32, word: &str| number(&format!("/proc/{pid}/status"), word);
        self.worker_kib = self.worker_kib.max(status(worker, "VmHWM:"));
        self.child_kib = children.iter().map(|child| status(*child, "VmHWM:")).fold(self.child_kib, u64::max);
        let together = std::iter::once(worker).chain(children.iter().copied()).map(|pid| status(pid, "VmRSS:")).sum();
        self.together_kib = self.together_kib.max(together);
        for pid in std::iter::once(worker).chain(children) {
            let written = self.written.entry(pid).or_default();
            *written = number(&format!("/proc/{pid}/io"), "write_bytes:").max(*written);
            self.files.extend(open_files(pid));
        }
    }
}

/// A film of so many minutes: small and slow, with sound, and with as many bits as films have, so that ten minutes fill
/// whatever is kept of a source.
fn film(minutes: u64) -> Result<PathBuf> {
    let folder = process::target_folder()?.join("test-clips");
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("bench_1mbps_{minutes}min.mp4"));
    if !file.exists() {
        let making = tempfile::Builder::new().prefix(".making-").tempdir_in(&folder)?;
        let (made, seconds) = (making.path().join("film.mp4"), (minutes * 60).to_string());
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=10"]);
        ffmpeg.args(["-f", "lavfi", "-i", "sine=frequency=330:sample_rate=48000", "-t", &seconds, "-pix_fmt", "yuv420p"]);
        ffmpeg.args(["-c:v", "libx264", "-preset", "ultrafast", "-g", "50", "-x264-params", "nal-hrd=cbr"]);
        ffmpeg.args(["-b:v", "1M", "-maxrate", "1M", "-bufsize", "1M", "-c:a", "aac", "-b:a", "96k"]).arg(&made);
        process::run(&mut ffmpeg, LIMIT)?.success()?;
        fs::rename(made, &file)?;
    }
    Ok(file)
}

/// Transcodes a film on a farm with one fresh worker, which is watched.
fn watched(minutes: u64, layout: Layout) -> Result<(Peak, Duration)> {
    let mut farm = Farm::new()?;
    let _scheduler = farm.scheduler()?;
    let home = tempfile::tempdir()?;
    let worker = farm.worker_by(&Ways { folder: Some(home.path().to_owned()), ..Ways::default() })?;
    farm.put("source/film.mp4", fs::read(film(minutes)?)?)?;
    let id = JobId::try_from("film".to_owned())?;
    let message = json!({
        "version": 1, "id": id, "tenant": "me", "source": {"url": farm.url("source/film.mp4")?},
        "output": {"url": farm.url("out/film/")?, "layout": layout}
    });
    let result = format!("state/{}", keys::result(&id, Life::FIRST));
    let (began, over) = (Instant::now(), AtomicBool::new(false));
    farm.broker.publish(JOBS, message.to_string().as_bytes())?;
    let mut peak = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut peak = Peak::default();
            while !over.load(Ordering::Relaxed) {
                peak.look(worker.pid());
                std::thread::sleep(LOOK);
            }
            peak
        });
        let done = until("the film is done", LIMIT, || Ok(farm.object(&result)?.is_some()));
        over.store(true, Ordering::Relaxed);
        let peak = watching.join().map_err(|_| anyhow::anyhow!("a panic"));
        done.and(peak)
    })?;
    let took = began.elapsed();
    let result: serde_json::Value = serde_json::from_slice(&farm.object(&result)?.context("no result")?)?;
    ensure!(result["done"].is_object(), "{result}\n{}", farm.logs());
    let left: Vec<PathBuf> = files_below(home.path())?;
    ensure!(left.is_empty(), "files are left: {left:?}");
    // Its log goes where the harness has told it.
    peak.files.retain(|file| file.extension().is_none_or(|end| end != "log"));
    Ok((peak, took))
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => files.extend(files_below(&path)?),
            false => files.push(path),
        }
    }
    Ok(files)
}

#[test]
#[ignore = "a measurement: run by make bench-memory"]
fn memory_and_disk_do_not_grow_with_the_source() -> Result<()> {
    let minutes = std::env::var("BENCH_MINUTES").unwrap_or_else(|_| "1,10,60".to_owned());
    let minutes: Vec<u64> = minutes.split(',').map(|number| Ok(number.trim().parse()?)).collect::<Result<_>>()?;
    println!("| source | layout | worker MiB | largest child MiB | together MiB | written to disk KiB | files | took s |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut faults = Vec::new();
    for layout in [Layout::Segments, Layout::SingleFile] {
        let mut before: Option<u64> = None;
        for length in &minutes {
            let (peak, took) = watched(*length, layout)?;
            let written: u64 = peak.written.values().sum();
            let mib = |kib: u64| kib / 1024;
            println!(
                "| {length} min | {layout:?} | {} | {} | {} | {} | {} | {} |",
                mib(peak.worker_kib),
                mib(peak.child_kib),
                mib(peak.together_kib),
                written / 1024,
                peak.files.len(),
                took.as_secs()
            );
            if written > WRITTEN_BYTES_MAX || !peak.files.is_empty() {
                faults.push(format!("{length} min {layout:?}: {written} bytes written to disk, open: {:?}", peak.files));
            }
            let is_last = Some(length) == minutes.last();
            if let Some(before) = before.filter(|before| is_last && peak.together_kib as f64 > *before as f64 * GROWTH_MAX) {
                faults.push(format!("{length} min {layout:?}: {} KiB, {before} for the source before", peak.together_kib));
            }
            before = Some(peak.together_kib);
        }
    }
    ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}
