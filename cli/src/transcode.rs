//! `shoal transcode`: the whole farm in one process, for one job.
//!
//! The broker is in memory and the storage is the output folder or bucket, with the state in `.shoal` below it. The same job run
//! again after it was cut off finds its state there and goes on; when it has ended, the state is taken away.

use farm::broker::Broker;
use farm::job::{Hardware, JobId, JobSpec};
use farm::plan::RenditionId;
use farm::{Code, Failure, Fault, keys};
use scheduler::scheduler::{Scheduler, Settings, submit};
use scheduler::step::{JobResult, Summary};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use crate::arguments::Transcode;
use crate::ending::{print_json, say};
use crate::input;
use crate::output::Output;
use crate::progress::{Progress, REDRAW};

/// Runs the command.
///
/// # Errors
/// Why there is no result.
pub async fn run(transcode: &Transcode) -> Result<(), Failure> {
    let source = input::source(&transcode.input)?;
    let output = Output::take(&transcode.output).await?;
    let slots = transcode.slots.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let ended = match spec(transcode, source, &output) {
        Ok(spec) => farm(spec, &output, worker::Settings::new(slots, transcode.sandbox.child())).await,
        Err(failure) => Err(failure),
    };
    match ended {
        Ok(summary) => {
            output.forget_state().await;
            tell(&output, &summary, transcode.json);
            Ok(())
        }
        Err(failure) => {
            // A source at fault stays so; anything else may be taken up again where it stopped.
            if matches!(failure.code.fault(), Fault::Source | Fault::Request) {
                output.forget().await;
            }
            Err(failure)
        }
    }
}

/// What the command asks for.
fn spec(transcode: &Transcode, source: Url, output: &Output) -> Result<JobSpec, Failure> {
    let mut spec = JobSpec::new(source, output.url().clone());
    transcode.result.ask(&mut spec, input::source)?;
    spec.id = Some(identity(&spec)?);
    spec.check()?;
    Ok(spec)
}

/// Runs one job to its end, or until a signal.
async fn farm(spec: JobSpec, output: &Output, mut workers: worker::Settings) -> Result<Summary, Failure> {
    let stop = |kind| signal(kind).map_err(|e| Failure::new(Code::Internal, format!("signals cannot be heard: {e}")));
    let (mut interrupt, mut terminate) = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
    let state = output.state().clone();
    let broker = Broker::local();
    if spec.hardware == Some(Hardware::Avoid) {
        // Nor does anybody wait for devices to be tried.
        workers.devices = worker::Devices::These(Vec::new());
    }
    output.forget_other_jobs(spec.id.as_ref()).await;
    let job = submit(&state, &broker, spec).await?;
    workers.drain_budget = std::time::Duration::ZERO;
    let slots = workers.slots;
    let workers = worker::Worker::start(workers, state.clone(), broker.clone())?;
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
    // Both have stopped: nobody writes to the state any more when it is taken away.
    scheduler.shutdown().await;
    match ended? {
        JobResult::Done(summary) => Ok(summary),
        JobResult::Failed { failure, .. } => Err(failure),
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
    let others = farm::edit::others(&spec.edit).map(|(_, _, source)| &source.url);
    for path in std::iter::once(&spec.source.url).chain(others).filter_map(|url| url.to_file_path().ok()) {
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

/// What `--json` prints of a finished job.
#[derive(Serialize)]
struct Told<'a> {
    /// None of still pictures alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    master: Option<String>,
    report: String,
    renditions: &'a [RenditionId],
    duration_ns: u64,
    bytes: u64,
    warnings: &'a [String],
}

fn tell(output: &Output, summary: &Summary, json: bool) {
    let (master, report) = (summary.master.as_ref().map(|key| output.place(key)), output.place(keys::REPORT));
    if json {
        let Summary { renditions, duration_ns, bytes, warnings, .. } = summary;
        print_json(&Told { master, report, renditions, duration_ns: *duration_ns, bytes: *bytes, warnings });
        return;
    }
    summary.warnings.iter().for_each(|warning| say(&format!("warning: {warning}")));
    let seconds = summary.duration_ns as f64 / 1e9;
    let Some(master) = master else {
        say(&format!("done: still pictures of {seconds:.1} s"));
        say(&format!("  {report} leads to them"));
        return;
    };
    let names: Vec<_> = summary.renditions.iter().map(ToString::to_string).collect();
    say(&format!("done: {seconds:.1} s as {}", names.join(", ")));
    say(&format!("  {master}"));
    if output.is_local() {
        say(&format!("play it: ffplay {master}   or serve the folder and open it with hls.js"));
    }
}
