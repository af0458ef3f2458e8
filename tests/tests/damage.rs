//! Real files, damaged: bits flipped, the end cut off, ranges taken out. Whatever is left of one, nothing hangs, nothing
//! crashes, and what comes out is whole or said to be damaged.
//!
//! All 300 variants with `DAMAGE_VARIANTS=all` (`make damage`), every tenth without.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tests::hls::Presentation;
use tests::{corpus, process, rules, shoal};

/// One of each family of containers and codecs, none longer than 6 s.
const FILES: [&str; 6] =
    ["sample.mp4", "sample.mkv", "sample_h264.ts", "sample.avi", "video_short.ogv", "bbb_642x642_768kbps_30fps_vp9.webm"];
/// Variants of each file: a third of each kind.
const VARIANTS: usize = 50;
/// Every how many variants are tried when not all are.
const STEP: usize = 10;
/// Chunks of a second, so that damaged files are sought in as well.
const FLAGS: &[&str] = &["--json", "--ladder", "144", "--chunk-seconds", "1", "--segment-seconds", "1", "--slots", "1"];
/// A few seconds of media in a small size: what takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(90);

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// So many per cent are left.
    Cut(usize),
    /// So many bits are flipped, at places by this seed.
    Flip(usize, u64),
    /// A range of up to a tenth is taken out, by this seed.
    Drop(u64),
}

impl Harm {
    /// The harm of a variant. Between them the files are cut at every per cent.
    fn of(file: usize, variant: usize) -> Self {
        let (kind, number) = (variant % 3, variant / 3);
        let seed = (file * VARIANTS + variant) as u64;
        match kind {
            0 => Self::Cut((number * FILES.len() + file) % 100),
            1 => Self::Flip(1 << (number % 9), seed),
            _ => Self::Drop(seed),
        }
    }

    fn done_to(self, mut bytes: Vec<u8>) -> Vec<u8> {
        let len = bytes.len();
        match self {
            Self::Cut(percent) => bytes.truncate(len * percent / 100),
            Self::Flip(bits, seed) => {
                let mut random = StdRng::seed_from_u64(seed);
                for _ in 0..bits {
                    if let Some(byte) = bytes.get_mut(random.random_range(0..len)) {
                        *byte ^= 1 << random.random_range(0..8_u32);
                    }
                }
            }
            Self::Drop(seed) => {
                let mut random = StdRng::seed_from_u64(seed);
                let start = random.random_range(0..len);
                let end = (start + random.random_range(1..=len / 10)).min(len);
                bytes.drain(start..end);
            }
        }
        bytes
    }
}

/// What came of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// As much as the undamaged file gives, and no warning.
    Complete,
    /// Less, or with a warning: the report tells.
    Reported,
    /// No result, with a typed error.
    Refused,
}

/// What came of a file.
#[derive(Clone, Debug)]
struct Made {
    /// Frames of the largest rung.
    frames: u64,
    /// Duration of the result in seconds.
    seconds: f64,
    /// What its report tells of loss.
    told: Vec<String>,
}

fn made(output: &Path) -> Result<Made> {
    let report: Value = serde_json::from_slice(&std::fs::read(output.join("report.json"))?)?;
    let presentation = Presentation::read(output)?;
    let frames = presentation.videos().next().map_or(0, |rung| rung.samples().count() as u64);
    let seconds = report["duration_ns"].as_f64().context("no duration")? / 1e9;
    let lists = ["warnings", "dropped", "notes"].iter().filter_map(|list| report[list].as_array()).flatten();
    let counts = ["filled", "missing"].iter().map(|count| &report["frames"][count]).filter(|count| count.as_u64() > Some(0));
    let told = lists.chain(counts).map(Value::to_string).collect();
    Ok(Made { frames, seconds, told })
}

/// Transcodes a variant; what came of it, or what is wrong with that.
fn tried(file: &Path, harm: Harm, whole: &Made) -> Result<End> {
    let folder = tempfile::tempdir()?;
    let name = file.file_name().context("a file has a name")?;
    let (source, output) = (folder.path().join(name), folder.path().join("out"));
    std::fs::write(&source, harm.done_to(std::fs::read(file)?))?;
    let run = shoal::run(shoal::transcode(&source, &output, FLAGS)?, LIMIT)?;
    match run.status.code() {
        Some(0) => {
            let faults = rules::faults(&output)?;
            ensure!(faults.is_empty(), "{faults:?}");
            let made = made(&output)?;
            // Of the undamaged file other things may be told, but nothing that is not.
            let is_told = made.told.iter().any(|told| !whole.told.contains(told));
            let is_complete = !is_told && made.frames >= whole.frames;
            ensure!(is_complete || is_told || made.seconds < whole.seconds, "{} frames and not a word", made.frames);
            Ok(if is_complete { End::Complete } else { End::Reported })
        }
        Some(1) => {
            let told = shoal::told(&run.stdout)?;
            ensure!(!output.exists() || rules::files_below(&output)?.is_empty(), "{}: files are left", told.code);
            ensure!(!told.message.contains('\n'), "{}: {}", told.code, told.message);
            Ok(End::Refused)
        }
        _ => anyhow::bail!("{}: {}", run.status, run.stderr.trim()),
    }
}

/// Keeps a variant at which something went wrong.
fn keep(file: &Path, harm: Harm) -> Result<PathBuf> {
    let folder = process::target_folder()?.join("damaged");
    std::fs::create_dir_all(&folder)?;
    let (stem, extension) = (file.file_stem().unwrap_or_default(), file.extension().unwrap_or_default());
    let path = folder.join(format!("{}-{harm:?}.{}", stem.display(), extension.display()));
    std::fs::write(&path, harm.done_to(std::fs::read(file)?))?;
    Ok(path)
}

#[test]
fn damaged_files_end_well_or_are_refused() -> Result<()> {
    let Some(folder) = corpus::folder() else { return Ok(()) };
    let all = std::env::var("DAMAGE_VARIANTS").is_ok_and(|which| which == "all");
    let step = if all { 1 } else { STEP };
    let mut variants = Vec::new();
    let mut wholes = BTreeMap::new();
    for (index, name) in FILES.iter().enumerate() {
        let file: PathBuf = folder.join(name);
        let output = tempfile::tempdir()?;
        shoal::done(&file, output.path(), FLAGS)?;
        wholes.insert(index, made(output.path())?);
        // Another kind of harm at each step, whatever the step is.
        variants.extend((index % step..VARIANTS).step_by(step).map(|variant| (index, file.clone(), Harm::of(index, variant))));
    }
    let (next, ends, faults) = (AtomicUsize::new(0), Mutex::new(BTreeMap::<End, usize>::new()), Mutex::new(Vec::new()));
    let work = || {
        while let Some((index, file, harm)) = variants.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Some(whole) = wholes.get(index) else { continue };
            match tried(file, *harm, whole) {
                Ok(end) => *ends.lock().expect("no panics").entry(end).or_default() += 1,
                Err(fault) => {
                    let kept = keep(file, *harm).map_or_else(|error| error.to_string(), |path| path.display().to_string());
                    let fault = format!("{} {harm:?}: {fault:#} (kept as {kept})", FILES[*index]);
                    faults.lock().expect("no panics").push(fault);
                }
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    corpus::say(&format!("{} damaged files: {:?}", variants.len(), ends.lock().expect("no panics")));
    let faults = faults.into_inner().expect("no panics");
    ensure!(faults.is_empty(), "{} of {}: {faults:#?}", faults.len(), variants.len());
    Ok(())
}
