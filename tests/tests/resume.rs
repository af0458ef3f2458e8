//! Killed at any moment, the same command goes on where it stopped: what was done is not done again, and what comes out is
//! what would have come out without.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::clip::Clip;
use tests::hls::Presentation;
use tests::process::{Group, descendants};
use tests::{check, corpus, rules, shoal};

const SLOTS: usize = 2;
const FLAGS: &[&str] = &["--chunk-seconds", "4", "--ladder", "360,240", "--slots", "2"];

fn clip() -> Clip {
    Clip::new("25", 60)
}

/// Executions by what lies in an output folder: their tokens.
struct Work {
    /// Of executions whose marker is stored: they count.
    marked: BTreeSet<String>,
    /// Of executions that have stored anything.
    begun: BTreeSet<String>,
}

impl Work {
    fn in_folder(output: &Path) -> Result<Self> {
        let mut work = Self { marked: BTreeSet::new(), begun: BTreeSet::new() };
        for file in rules::files_below(output)? {
            let token = file.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
            work.begun.extend(token.filter(|token| token.len() == 16));
        }
        let jobs = output.join(".shoal/jobs");
        for job in fs::read_dir(jobs).into_iter().flatten() {
            for marker in fs::read_dir(job?.path().join("done")).into_iter().flatten() {
                let marker = marker?;
                if marker.file_name().as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                let content: Value =
                    serde_json::from_slice(&fs::read(marker.path())?).with_context(|| format!("{:?}", marker.path()))?;
                let token = content["token"].as_str().context("a marker without token")?.to_owned();
                // The probe makes no media.
                if content["task"] != "probe" {
                    work.marked.insert(token);
                }
            }
        }
        Ok(work)
    }
}

/// Waits until none of these processes is there any more.
fn gone(pids: &[u32], limit: Duration) -> Result<()> {
    let started = Instant::now();
    let is_there = |pid: &&u32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    while let Some(pid) = pids.iter().find(is_there) {
        let name = || fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
        ensure!(started.elapsed() < limit, "process {pid} is still there: {}", name());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts a job and lets it run for a while; `None` when it was done before.
fn run_for(source: &Path, output: &Path, time: Duration) -> Result<Option<Group>> {
    let mut said = tempfile::tempfile()?;
    let mut command = shoal::transcode(source, output, FLAGS)?;
    let mut group = Group::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone()?))?;
    let started = Instant::now();
    while started.elapsed() < time {
        if group.has_ended()? {
            let status = group.wait(Duration::from_secs(5))?;
            let mut text = String::new();
            said.rewind()?;
            said.read_to_string(&mut text)?;
            ensure!(status.success(), "{status}: {text}");
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(Some(group))
}

/// What must hold of a result that was interrupted before, when this had been done.
fn check_resumed(output: &Path, before: &Work) -> Result<()> {
    assert_eq!(check::faults(output, &clip())?, Vec::<String>::new());
    assert!(!output.join(".shoal").exists(), "state is left over");
    let after = Work::in_folder(output)?;
    let redone: Vec<_> = before.marked.difference(&after.begun).collect();
    assert_eq!(redone, Vec::<&String>::new(), "executions that counted were done again");
    Ok(())
}

#[test]
fn killed_at_five_moments() -> Result<()> {
    let source = clip().file()?;
    let reference = tempfile::tempdir()?;
    let whole = shoal::done(&source, reference.path(), FLAGS)?.elapsed;
    let reference = Presentation::read(reference.path())?;
    // A fixed sequence spread over the run, the moments of a linear congruential generator.
    let mut seed = 20_261_123_u32;
    for round in 0..5_u32 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let part = (f64::from(round) + f64::from(seed) / f64::from(u32::MAX)) / 5.0;
        let output = tempfile::tempdir()?;
        let Some(mut group) = run_for(&source, output.path(), whole.mul_f64(part))? else {
            corpus::say(&format!("done before the kill at {part:.2}"));
            continue;
        };
        let children = descendants(group.pid());
        group.kill()?;
        gone(&children, Duration::from_secs(10)).context("children outlive a killed parent")?;
        let before = Work::in_folder(output.path())?;
        let lost = before.begun.difference(&before.marked).count();
        corpus::say(&format!("killed at {part:.2}: {} executions done, {lost} lost", before.marked.len()));
        assert!(lost <= SLOTS, "{lost} executions lost with {SLOTS} slots");
        assert!(
            !output.path().join("master.m3u8").exists() || rules::faults(output.path())?.is_empty(),
            "a half-made result looks whole"
        );
        shoal::done(&source, output.path(), FLAGS)?;
        check_resumed(output.path(), &before)?;
        let made = Presentation::read(output.path())?;
        for (a, b) in reference.renditions.iter().zip(&made.renditions) {
            assert_eq!(a.segment_list(), b.segment_list(), "{}, killed at {part:.2}", a.name());
        }
    }
    Ok(())
}

#[test]
fn killed_again_and_again_it_comes_to_its_end() -> Result<()> {
    let source = clip().file()?;
    let output = tempfile::tempdir()?;
    let mut before = Work::in_folder(output.path())?;
    // Each round longer, so that at last even the sound, which is one task, has the time it needs on a busy machine.
    for round in 0..60 {
        let Some(mut group) = run_for(&source, output.path(), Duration::from_millis(1500 + 100 * round))? else {
            return check_resumed(output.path(), &before);
        };
        group.kill()?;
        let now = Work::in_folder(output.path())?;
        assert!(before.marked.is_subset(&now.marked) || output.path().join("master.m3u8").exists(), "markers were lost");
        before = now;
    }
    panic!("{} executions done after 60 rounds", before.marked.len());
}

#[test]
fn interrupted_by_a_signal_it_says_so_and_goes_on_later() -> Result<()> {
    let source = clip().file()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let output = tempfile::tempdir()?;
        let mut group = run_for(&source, output.path(), Duration::from_millis(1500))?.context("done within 1.5 s")?;
        let children = descendants(group.pid());
        group.signal(signal);
        let status = group.wait(Duration::from_secs(15))?;
        assert_eq!(status.code(), Some(130), "{signal}");
        gone(&children, Duration::from_secs(5)).context("children outlive their parent")?;
        assert!(!output.path().join("master.m3u8").exists(), "{signal}: a half-made result looks whole");
        let before = Work::in_folder(output.path())?;
        shoal::done(&source, output.path(), FLAGS)?;
        check_resumed(output.path(), &before)?;
    }
    Ok(())
}

#[test]
fn another_command_on_what_was_interrupted_begins_anew_and_cleans_up() -> Result<()> {
    let source = clip().file()?;
    let output = tempfile::tempdir()?;
    run_for(&source, output.path(), Duration::from_millis(1500))?.context("done within 1.5 s")?.kill()?;
    let clip = Clip::new("25", 6);
    shoal::done(clip.file()?, output.path(), &["--ladder", "240"])?;
    assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new());
    assert!(!output.path().join(".shoal").exists(), "state is left over");
    Ok(())
}

#[test]
fn two_at_once_on_one_output_do_not_mix() -> Result<()> {
    let source = clip().file()?;
    let output = tempfile::tempdir()?;
    let mut first = run_for(&source, output.path(), Duration::from_millis(500))?.context("done within 0.5 s")?;
    let second = shoal::run(shoal::transcode(&source, output.path(), &[FLAGS, &["--json"]].concat())?, Duration::from_secs(30))?;
    assert_eq!(second.status.code(), Some(3));
    assert_eq!(shoal::told(&second.stdout)?.code, "storage_unwritable");
    assert!(first.wait(shoal::RUN_LIMIT)?.success(), "the first is harmed");
    assert_eq!(check::faults(output.path(), &clip())?, Vec::<String>::new());
    Ok(())
}
