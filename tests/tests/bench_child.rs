//! What it costs to do a task in a child of its own, behind walls: CPU time of a probe of a source that has next to nothing in it.
//!
//! `make bench-child`; a measurement, not a test.

#![expect(clippy::print_stdout, reason = "figures are what this is for")]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::{process, shoal};

const RUNS: usize = 21;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
#[ignore = "a measurement"]
fn cpu_of_a_child_with_walls_and_without() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("tick.wav");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-f", "lavfi", "-i", "sine=d=0.1"]).arg(&source);
    process::run(&mut ffmpeg, LIMIT)?.success()?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // In turn, so that whatever else the machine does meets both.
    for _ in 0..RUNS {
        for (sandbox, costs) in [("best-effort", &mut with), ("off", &mut without)] {
            let output = tempfile::tempdir()?;
            shoal::done(&source, output.path(), &["--sandbox", sandbox])?;
            let report: Value = serde_json::from_slice(&std::fs::read(output.path().join("report.json"))?)?;
            let tasks = report["cost"]["tasks"].as_array().context("no tasks")?;
            let probe = tasks.iter().find(|task| task["task"] == "probe").context("no probe")?;
            costs.push(probe["cost"]["cpu_ms"].as_u64().context("no CPU time")?);
        }
    }
    for (what, costs) in [("with walls", &mut with), ("without", &mut without)] {
        costs.sort_unstable();
        println!("child {what}: CPU {} ms (median of {RUNS}; {} to {})", costs[RUNS / 2], costs[0], costs[RUNS - 1]);
    }
    Ok(())
}
