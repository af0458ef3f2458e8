//! How much faster a farm of many workers is: measured with one and two real ones, and replayed for more. Run by
//! `make bench-scaling`; prints tables, and fails where the replay is not true of what was measured.
//!
//! The replay drives the scheduler's own functions ([`plan`], [`step`], [`pick_next`], [`room`]) in virtual time. A task takes what
//! the real ones took, by the frames or seconds of it; requests to storage and messages take [`REQUEST_US`] each.
#![expect(clippy::print_stdout, reason = "figures are what this is for")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farm::Life;
use farm::job::{Copying, JobId, JobSpec};
use farm::media::MediaInfo;
use farm::plan::Plan;
use farm::task::{TaskId, Token};
use scheduler::dispatch::{Candidate, Shares, Window, pick_next, room};
use scheduler::plan::plan;
use scheduler::step::{JobState, Next, step};
use serde_json::Value;
use tests::{corpus, process, shoal};

#[expect(dead_code, reason = "shared with the scheduler's own tests, which use all of it")]
#[path = "../../scheduler/src/testing.rs"]
mod testing;

const LIMIT: Duration = Duration::from_secs(1800);
const SECOND_US: u64 = 1_000_000;
/// What a request to storage or a message takes in a farm, in µs.
const REQUEST_US: u64 = 30_000;
/// Requests one after another that a worker makes for a task: marker, cancellation, spec, plan and its note before; marker,
/// event and acknowledgement after.
const TASK_REQUESTS: u64 = 8;
/// Requests one after another until the scheduler acts on a task that was done: the event, its marker, handing out.
const TURN_REQUESTS: u64 = 3;
/// By how much the replay of what was measured may be off.
const ERROR_MAX: f64 = 0.05;

/// What tasks take on one core, in µs.
#[derive(Clone, Copy, Debug)]
struct Costs {
    frame: f64,
    chunk: f64,
    sound_second: f64,
    source_second: f64,
}

impl Costs {
    /// By what the tasks of a run took, which had chunks of different lengths: a line through them.
    fn of(report: &Value, plan: &Plan) -> Result<Self> {
        let video = plan.video.as_ref().context("no picture")?;
        let seconds = plan.duration_ns as f64 / 1e9;
        let tasks = report["cost"]["tasks"].as_array().context("no costs")?;
        let us = |task: &TaskId| {
            let told =
                tasks.iter().find(|told| told["task"] == task.to_string()).and_then(|told| told["cost"]["wall_ms"].as_f64());
            told.map(|ms| ms * 1000.0).with_context(|| format!("no {task}"))
        };
        let mut points = Vec::new();
        for (chunk, index) in video.chunks.iter().zip(0..) {
            points.push(((chunk.end - chunk.start) as f64, us(&TaskId::Video(index))?));
        }
        let count = points.len() as f64;
        let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
        let (over, under) = points.iter().fold((0.0, 0.0), |(o, u), p| (o + (p.0 - x) * (p.1 - y), u + (p.0 - x) * (p.0 - x)));
        ensure!(under > 0.0, "chunks of one length only: {points:?}");
        let frame = over / under;
        let (sound_second, source_second) = (us(&TaskId::Audio(0))? / seconds, us(&TaskId::Probe)? / seconds);
        Ok(Self { frame, chunk: (y - frame * x).max(0.0), sound_second, source_second })
    }

    fn us(&self, plan: &Plan, task: &TaskId) -> u64 {
        let seconds = plan.duration_ns as f64 / 1e9;
        let us = match task {
            TaskId::Probe | TaskId::ProbeOther(_) => self.source_second * seconds,
            TaskId::Video(index) => {
                let chunk = plan.video.as_ref().and_then(|video| video.chunks.get(*index as usize));
                self.chunk + self.frame * chunk.map_or(0.0, |chunk| (chunk.end - chunk.start) as f64)
            }
            TaskId::Audio(_) => self.sound_second * seconds,
            TaskId::First(_) | TaskId::Stills | TaskId::Text | TaskId::Pack(_) | TaskId::Mp4(_) => 0.0,
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive time")]
        let us = us.round() as u64;
        us
    }
}

/// What happens in virtual time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// The scheduler hears that a worker is at it.
    Heard(TaskId),
    /// A worker is free again.
    Free,
    /// The scheduler knows of the marker.
    Done(TaskId),
}

/// A farm with one job.
struct Replay<'a> {
    info: &'a MediaInfo,
    plan: &'a Plan,
    costs: Costs,
    request_us: u64,
    now_us: u64,
    happenings: BinaryHeap<Reverse<(u64, Happening)>>,
    job: JobState,
    shares: Shares,
    queue: VecDeque<TaskId>,
    outstanding: BTreeSet<TaskId>,
    running: BTreeSet<TaskId>,
    finished_us: VecDeque<u64>,
    free: usize,
}

impl<'a> Replay<'a> {
    fn new(spec: &JobSpec, info: &'a MediaInfo, plan: &'a Plan, costs: Costs, request_us: u64, workers: usize) -> Result<Self> {
        Ok(Self {
            info,
            plan,
            costs,
            request_us,
            now_us: 0,
            happenings: BinaryHeap::new(),
            job: JobState::new(JobId::try_from("job".to_owned())?, Life::FIRST, spec.clone()),
            shares: Shares::default(),
            queue: VecDeque::new(),
            outstanding: BTreeSet::new(),
            running: BTreeSet::new(),
            finished_us: VecDeque::new(),
            free: workers,
        })
    }

    /// From submission to the multivariant playlist, in µs.
    fn makespan_us(mut self) -> Result<u64> {
        loop {
            if self.advance()? {
                return Ok(self.now_us);
            }
            while self.free > 0
                && let Some(task) = self.queue.pop_front()
            {
                self.free -= 1;
                let taken_us = self.costs.us(self.plan, &task) + TASK_REQUESTS * self.request_us;
                self.at(self.request_us, Happening::Heard(task.clone()));
                self.at(taken_us, Happening::Free);
                self.at(taken_us + TURN_REQUESTS * self.request_us, Happening::Done(task));
            }
            let Reverse((at_us, happening)) = self.happenings.pop().context("nothing happens any more")?;
            self.now_us = at_us;
            match happening {
                Happening::Heard(task) => {
                    // What is told late of a task that is done is not believed.
                    if self.outstanding.contains(&task) {
                        self.running.insert(task);
                    }
                }
                Happening::Free => self.free += 1,
                Happening::Done(task) => {
                    self.outstanding.remove(&task);
                    self.running.remove(&task);
                    self.finished_us.push_back(self.now_us);
                    let made = testing::marker(self.plan, self.info, &task, &Token::random(), &self.job.markers);
                    self.job.markers.insert(task, made);
                }
            }
        }
    }

    fn at(&mut self, later_us: u64, happening: Happening) {
        self.happenings.push(Reverse((self.now_us + later_us, happening)));
    }

    /// What the scheduler does until only workers can go on; whether the job has ended.
    fn advance(&mut self) -> Result<bool> {
        loop {
            match step(&self.job) {
                Next::Clear => self.job.cleared = true,
                Next::StorePlan(plan) => {
                    ensure!(*plan == *self.plan, "another plan");
                    self.job.plan = Some(*plan);
                }
                Next::StoreSeal(seal) => self.job.seal = Some(seal),
                Next::Publish { documents, .. } => {
                    self.now_us += (documents.len() as u64 + 2) * self.request_us;
                    return Ok(true);
                }
                Next::Run(due) => {
                    self.hand_out(due.into_iter().map(|due| due.task).collect());
                    return Ok(false);
                }
                next @ (Next::Open(_) | Next::Finish(_) | Next::Close(_) | Next::Halt(_)) => anyhow::bail!("{next:?}"),
            }
            self.now_us += self.request_us;
        }
    }

    fn hand_out(&mut self, due: Vec<TaskId>) {
        while self.finished_us.front().is_some_and(|at| at + SECOND_US < self.now_us) {
            self.finished_us.pop_front();
        }
        let window = Window::Following { least: 1, most: 10_000 };
        let left = room(window, self.outstanding.len(), self.running.len(), self.finished_us.len());
        let mut free: Vec<TaskId> = due.into_iter().filter(|task| !self.outstanding.contains(task)).take(left).collect();
        for _ in 0..left {
            let candidate = |task| Candidate { tenant: "tube", priority: 0, submitted: 0, job: &self.job.job, task, cost_ns: 1 };
            let candidates: Vec<_> = free.iter().map(candidate).collect();
            let Some(place) = pick_next(&candidates, &self.shares) else { break };
            let task = free.swap_remove(place);
            self.shares.charge("tube", 1);
            self.outstanding.insert(task.clone());
            self.queue.push_back(task);
        }
    }
}

fn spec() -> JobSpec {
    JobSpec { copy: Copying::Never, ..testing::spec() }
}

/// Four minutes of 720p, whose key frames are 10 s apart.
fn film(folder: &Path) -> Result<Option<PathBuf>> {
    let Some(media) = corpus::folder() else { return Ok(None) };
    let file = folder.join("film.mp4");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-y", "-stream_loop", "-1", "-i"]).arg(media.join("bbb_480p_30s.mp4"));
    ffmpeg.args(["-vf", "scale=1280:720,fps=25", "-c:v", "libx264", "-preset", "veryfast", "-b:v", "5M", "-g", "250"]);
    ffmpeg.args(["-c:a", "aac", "-ac", "2", "-t", "240"]).arg(&file);
    process::run(&mut ffmpeg, LIMIT)?.success()?;
    Ok(Some(file))
}

/// A real run on so many cores, a slot each: how long it took in µs, and its report.
fn real(film: &Path, cores: &str, slots: &str) -> Result<(u64, Value)> {
    let output = tempfile::tempdir()?;
    let ours = shoal::transcode(film, output.path(), &["--copy", "never", "--slots", slots])?;
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", cores]).arg(ours.get_program()).args(ours.get_args());
    let took = process::run(&mut pinned, LIMIT)?.success()?.elapsed;
    let report = serde_json::from_slice(&std::fs::read(output.path().join("report.json"))?)?;
    Ok((u64::try_from(took.as_micros())?, report))
}

#[test]
#[ignore = "a measurement: run by make bench-scaling"]
fn a_farm_of_many_workers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(film) = film(folder.path())? else { return Ok(()) };
    let told = process::run(&mut shoal::command(["probe".as_ref(), film.as_os_str(), "--json".as_ref()])?, LIMIT)?.success()?;
    let info: MediaInfo = serde_json::from_slice(&told.stdout)?;
    let decided = plan(&spec(), &info)?;
    let (one_us, report) = real(&film, "0", "1")?;
    let (two_us, _) = real(&film, "0,1", "2")?;
    let costs = Costs::of(&report, &decided)?;
    println!(
        "a frame {:.2} ms, a chunk {:.0} ms, sound {:.2} ms/s, probe {:.2} ms/s",
        costs.frame / 1e3,
        costs.chunk / 1e3,
        costs.sound_second / 1e3,
        costs.source_second / 1e3
    );
    println!("| workers | real s | replayed s | error |\n|---|---|---|---|");
    for (workers, real_us) in [(1, one_us), (2, two_us)] {
        let replayed_us = Replay::new(&spec(), &info, &decided, costs, 0, workers)?.makespan_us()?;
        let error = replayed_us as f64 / real_us as f64 - 1.0;
        println!("| {workers} | {:.1} | {:.1} | {:+.1} % |", real_us as f64 / 1e6, replayed_us as f64 / 1e6, error * 100.0);
        ensure!(error.abs() <= ERROR_MAX, "the replay is off by {:.1} %", error * 100.0);
    }
    println!("efficiency of two real workers: {:.3}", one_us as f64 / 2.0 / two_us as f64);

    let info = testing::source(vec![testing::picture(1280, 720, "25", 3600)], vec![testing::sound(1, 48_000, 3600)]);
    let decided = plan(&spec(), &info)?;
    let tasks: Vec<u64> =
        [TaskId::Probe].into_iter().chain(TaskId::encodes_of(&decided)).map(|task| costs.us(&decided, &task)).collect();
    let (total_us, longest_us) = (tasks.iter().sum::<u64>(), tasks.iter().copied().max().unwrap_or(0));
    println!(
        "an hour: {} tasks, {:.0} s of work, the longest {:.0} s",
        tasks.len(),
        total_us as f64 / 1e6,
        longest_us as f64 / 1e6
    );
    println!("| workers | makespan s | times as fast as one | efficiency | bound s |\n|---|---|---|---|---|");
    let mut speed = BTreeMap::new();
    let mut alone_us = 0;
    for workers in [1, 2, 4, 8, 16, 32, 64, 128, 256, 1000] {
        let us = Replay::new(&spec(), &info, &decided, costs, REQUEST_US, workers)?.makespan_us()?;
        alone_us = if workers == 1 { us } else { alone_us };
        let times = alone_us as f64 / us as f64;
        let bound_us = longest_us.max(total_us / workers as u64);
        println!(
            "| {workers} | {:.1} | {times:.1} | {:.2} | {:.1} |",
            us as f64 / 1e6,
            times / workers as f64,
            bound_us as f64 / 1e6
        );
        speed.insert(workers, times);
    }
    let at = |workers: usize| speed.get(&workers).copied().unwrap_or(0.0);
    ensure!(at(16) >= 9.3 && at(64) >= 25.0, "16 workers {:.1}, 64 workers {:.1} times", at(16), at(64));
    Ok(())
}
