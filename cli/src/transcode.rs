//! `shoal transcode`: the whole farm in one process, for one job.
//!
//! The broker is in memory and the storage is the output folder, with the state in `.shoal` below it. The same job run
//! again after it was cut off finds its state there and goes on; when it has ended, the state is taken away.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use farm::broker::Broker;
use farm::job::{JobId, JobSpec, Layout};
use farm::plan::RenditionId;
use farm::storage::Storage;
use farm::{Code, Failure, Fault, keys};
use scheduler::scheduler::{Scheduler, Settings, submit};
use scheduler::step::{JobResult, Summary};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use crate::arguments::{Transcode, state_folder};
use crate::ending::{print_json, say};
use crate::input;
use crate::probe::child;
use crate::progress::{Progress, REDRAW};

/// Runs the command.
///
/// # Errors
/// Why there is no result.
pub async fn run(transcode: &Transcode) -> Result<(), Failure> {
    let source = input::source(&transcode.input)?;
    let spec = |output: &Path| -> Result<JobSpec, Failure> {
        let url = Url::from_directory_path(output).map_err(|()| Failure::new(Code::Internal, "the output has no URL"))?;
        let mut spec = JobSpec::new(source.clone(), url);
        spec.output.layout = Layout::from(transcode.layout);
        spec.ladder = transcode.ladder.0.clone();
        spec.segment_seconds = transcode.segment_seconds;
        spec.chunk_seconds = transcode.chunk_seconds;
        spec.id = Some(identity(&spec)?);
        spec.check()?;
        Ok(spec)
    };
    let (output, made) = input::output_folder(&transcode.output)?;
    let slots = transcode.slots.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let folder = OutputFolder::take(output, made)?;
    let ended = match spec(&folder.path) {
        Ok(spec) => farm(spec, &folder, slots).await,
        Err(failure) => Err(failure),
    };
    match ended {
        Ok(summary) => {
            folder.forget_state();
            tell(&folder.path, &summary, transcode.json);
            Ok(())
        }
        Err(failure) => {
            // A source at fault stays so; anything else may be taken up again where it stopped.
            if matches!(failure.code.fault(), Fault::Source | Fault::Request) {
                folder.forget();
            }
            Err(failure)
        }
    }
}

/// Runs one job to its end, or until a signal.
async fn farm(spec: JobSpec, folder: &OutputFolder, slots: usize) -> Result<Summary, Failure> {
    let stop = |kind| signal(kind).map_err(|e| Failure::new(Code::Internal, format!("signals cannot be heard: {e}")));
    let (mut interrupt, mut terminate) = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
    let state = Storage::folder(&state_folder(&folder.path));
    let broker = Broker::local();
    folder.forget_other_jobs(spec.id.as_ref());
    let job = submit(&state, &broker, spec).await?;
    let mut worker_settings = worker::Settings::new(slots, child());
    worker_settings.drain_budget = std::time::Duration::ZERO;
    let workers = worker::Worker::start(worker_settings, state.clone(), broker.clone())?;
    let scheduler = Scheduler::start(Settings::for_slots(slots), state, broker);
    let mut progress = Progress::start();
    let mut redraw = tokio::time::interval(REDRAW);
    let ended = loop {
        tokio::select! {
            ended = scheduler.wait(&job) => break ended,
            _ = interrupt.recv() => break Err(interrupted()),
            _ = terminate.recv() => break Err(interrupted()),
            _ = redraw.tick() => {
                if let Some(view) = scheduler.view(&job) {
                    progress.show(&view);
                }
            }
        }
    };
    progress.clear();
    workers.shutdown().await;
    match ended? {
        JobResult::Done(summary) => Ok(summary),
        JobResult::Failed { failure } => Err(failure),
        JobResult::Cancelled => Err(Failure::new(Code::Cancelled, "the job was cancelled")),
    }
}

fn interrupted() -> Failure {
    Failure::new(Code::Interrupted, "interrupted: run the same command again to go on where it stopped")
}

/// A job's name, made from all that decides its result: so the same command finds what it began.
fn identity(spec: &JobSpec) -> Result<JobId, Failure> {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(spec).map_err(|e| Failure::new(Code::Internal, e.to_string()))?);
    if let Ok(path) = spec.source.url.to_file_path() {
        let meta = std::fs::metadata(&path)
            .map_err(|e| Failure::new(Code::SourceUnreadable, format!("{} cannot be read: {e}", path.display())))?;
        hash.update(meta.len().to_le_bytes());
        let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        hash.update(modified.map_or(0, |t| t.as_nanos()).to_le_bytes());
    }
    let digest = hash.finalize();
    let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    JobId::try_from(format!("local-{hex}"))
}

/// The output folder, taken by this process alone.
struct OutputFolder {
    path: PathBuf,
    /// Whether it was made by this run.
    made: bool,
    _lock: File,
}

impl OutputFolder {
    fn take(path: PathBuf, made: bool) -> Result<Self, Failure> {
        let state = state_folder(&path);
        let refused = |e: std::io::Error| {
            let code = if e.kind() == std::io::ErrorKind::StorageFull { Code::StorageFull } else { Code::StorageUnwritable };
            Failure::new(code, format!("{} cannot be written to: {e}", path.display()))
        };
        std::fs::create_dir_all(&state).map_err(refused)?;
        let lock = File::create(state.join("lock")).map_err(refused)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, made, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let message = format!("another shoal is writing to {}: wait for it, or choose another folder", path.display());
                Err(Failure::new(Code::StorageUnwritable, message))
            }
            Err(TryLockError::Error(e)) => Err(refused(e)),
        }
    }

    /// Takes the state away, as far as that goes: what stays does no harm.
    fn forget_state(&self) {
        let _ = std::fs::remove_dir_all(state_folder(&self.path));
    }

    /// As above, and the folder itself when this run made it and nothing is in it.
    fn forget(&self) {
        self.forget_state();
        if self.made {
            let _ = std::fs::remove_dir(&self.path);
        }
    }

    /// Takes away what jobs before this one left unfinished here: their state is of no more use.
    fn forget_other_jobs(&self, job: Option<&JobId>) {
        let state = state_folder(&self.path);
        for folder in ["jobs", "active/0"] {
            let Ok(entries) = std::fs::read_dir(state.join(folder)) else { continue };
            for entry in entries.flatten() {
                if job.is_some_and(|job| entry.file_name() == job.as_str()) {
                    continue;
                }
                let path = entry.path();
                let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            }
        }
    }
}

/// What `--json` prints of a finished job.
#[derive(Serialize)]
struct Told<'a> {
    master: &'a Path,
    report: &'a Path,
    renditions: &'a [RenditionId],
    duration_ns: u64,
    bytes: u64,
    warnings: &'a [String],
}

fn tell(output: &Path, summary: &Summary, json: bool) {
    let (master, report) = (output.join(keys::MASTER), output.join(keys::REPORT));
    if json {
        let Summary { renditions, duration_ns, bytes, warnings, .. } = summary;
        print_json(&Told { master: &master, report: &report, renditions, duration_ns: *duration_ns, bytes: *bytes, warnings });
        return;
    }
    summary.warnings.iter().for_each(|warning| say(&format!("warning: {warning}")));
    let names: Vec<_> = summary.renditions.iter().map(ToString::to_string).collect();
    say(&format!("done: {:.1} s as {}", summary.duration_ns as f64 / 1e9, names.join(", ")));
    say(&format!("  {}", master.display()));
    say(&format!("play it: ffplay {}   or serve the folder and open it with hls.js", master.display()));
}
