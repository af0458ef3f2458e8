//! What commands cost, side by side.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

use crate::process;

const LIMIT: Duration = Duration::from_secs(1800);

/// How often each side is run: `BENCH_RUNS`, or 5.
///
/// # Errors
/// When that is no number.
pub fn runs() -> Result<usize> {
    Ok(std::env::var("BENCH_RUNS").ok().map_or(Ok(5), |runs| runs.parse())?)
}

/// What a run cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// CPU time of all its processes in seconds, user and system.
    pub cpu_s: f64,
    /// How long it took in seconds.
    pub wall_s: f64,
    /// Resident memory of all its processes together, as seen 20 times a second.
    pub rss_mib: f64,
}

fn seconds(time: TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

fn cpu_of_children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Resident memory of all processes below this one, in MiB.
fn resident_mib() -> f64 {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let own = std::process::id();
    process::descendants(own).into_iter().filter(|pid| *pid != own).map(of).sum::<f64>() / 1024.0
}

/// Runs commands one after another.
///
/// # Errors
/// When one fails.
pub fn cost(commands: Vec<Command>) -> Result<Cost> {
    let before = cpu_of_children()?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0.0_f64;
            while !is_over.load(Ordering::Relaxed) {
                most = most.max(resident_mib());
                std::thread::sleep(Duration::from_millis(50));
            }
            most
        });
        let run = |mut command: Command| process::run(&mut command, LIMIT)?.success().map(|finished| finished.elapsed);
        let ran: Result<Vec<Duration>> = commands.into_iter().map(run).collect();
        is_over.store(true, Ordering::Relaxed);
        let rss_mib = watch.join().unwrap_or(f64::NAN);
        let wall_s = ran?.iter().map(Duration::as_secs_f64).sum();
        Ok(Cost { cpu_s: cpu_of_children()? - before, wall_s, rss_mib })
    })
}

/// One of the things that are compared.
pub struct Side<'a> {
    /// What it is called.
    pub name: &'static str,
    /// What it runs, one after another.
    pub commands: Box<dyn Fn() -> Result<Vec<Command>> + 'a>,
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The sides in turns, so many times after one to warm up; the median of each figure, side by side.
///
/// # Errors
/// When one fails.
pub fn in_turns(sides: &[Side<'_>], runs: usize) -> Result<Vec<Cost>> {
    let mut costs = vec![Vec::new(); sides.len()];
    for run in 0..=runs {
        for (side, costs) in sides.iter().zip(&mut costs) {
            let cost = cost((side.commands)()?).with_context(|| side.name)?;
            // The first round warms up.
            costs.extend((run > 0).then_some(cost));
        }
    }
    let of = |costs: &[Cost], figure: fn(&Cost) -> f64| median(costs.iter().map(figure).collect());
    let medians = |costs: &Vec<Cost>| Cost {
        cpu_s: of(costs, |cost| cost.cpu_s),
        wall_s: of(costs, |cost| cost.wall_s),
        rss_mib: of(costs, |cost| cost.rss_mib),
    };
    Ok(costs.iter().map(medians).collect())
}
