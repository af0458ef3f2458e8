//! `shoal submit`, `status`, `cancel`, `retry` and `delete`: what those who use a farm do.

mod inputs;
mod many;
mod places;
mod watch;

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::time::Duration;

use farm::job::{JobId, JobSpec, NotifySpec};
use farm::{Code, Failure, Fault, keys};
use futures::stream::{self, StreamExt as _};
use scheduler::status::{JobStatus, State};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use url::Url;

use self::inputs::Inputs;
use crate::arguments::{Delete, JobCommand, Status, Submit};
use crate::client::{Client, Part};
use crate::ending::{Ended, Told, print_json, print_line, say, say_failure};
use crate::input;
use crate::progress::{Progress, view};

/// How often a job is looked at while it is followed.
const LOOK: Duration = Duration::from_secs(1);
/// After so many looks in a row that failed, following ends.
const TROUBLES_MAX: u32 = 60;
/// Requests at a time.
const REQUESTS_MAX: usize = 16;
/// Variable that holds the key for the signed call.
const SECRET_VARIABLE: &str = "SHOAL_NOTIFY_SECRET";

/// What is printed of a job that is only named.
#[derive(Serialize)]
struct Named<'a> {
    id: &'a str,
}

/// Runs `shoal submit`.
///
/// # Errors
/// Why the job was not taken; with `--wait`, why it has no result. Of many, why none was handed in.
pub async fn submit(submit: &Submit) -> Result<Ended, Failure> {
    let client = Client::new(&submit.server)?;
    match inputs::gather(&submit.inputs, submit.from.as_deref())? {
        Inputs::One(input) => one(&client, submit, &input).await.map(|()| Ended::Done),
        Inputs::Many(inputs) => many::submit(&client, submit, &inputs).await,
    }
}

async fn one(client: &Client, submit: &Submit, input: &str) -> Result<(), Failure> {
    let spec = spec(submit, input::any_source(input)?, input::any_output(&submit.output)?, submit.id.clone())?;
    let id = client.submit(&spec).await?;
    if !submit.wait {
        if submit.json {
            print_json(&Named { id: id.as_str() });
        } else {
            print_line(id.as_str());
        }
        return Ok(());
    }
    follow(client, id.as_str(), submit.json).await
}

fn spec(submit: &Submit, source: Url, output: Url, id: Option<JobId>) -> Result<JobSpec, Failure> {
    let mut spec = JobSpec::new(source, output);
    spec.id = id;
    if let Some(tenant) = &submit.tenant {
        spec.tenant.clone_from(tenant);
    }
    submit.result.ask(&mut spec, input::any_source)?;
    spec.priority = submit.priority;
    spec.notify = submit.notify_url.clone().map(notify).transpose()?;
    spec.check()?;
    Ok(spec)
}

fn notify(url: Url) -> Result<NotifySpec, Failure> {
    let missing =
        |_| Failure::new(Code::InvalidRequest, format!("--notify-url needs a key for the signature in {SECRET_VARIABLE}"));
    Ok(NotifySpec { url, secret: std::env::var(SECRET_VARIABLE).map_err(missing)? })
}

/// Runs `shoal status`.
///
/// # Errors
/// When the farm does not tell; with `--follow`, why the job has no result.
pub async fn status(status: &Status) -> Result<(), Failure> {
    let client = Client::new(&status.server)?;
    match &status.job {
        Some(job) if status.follow => follow(&client, job, status.json).await,
        Some(job) => {
            show(&client.status(job).await?, status.json);
            Ok(())
        }
        None if status.watch && !status.json && is_terminal() => watch::run(&client, status.limit).await,
        None => {
            let page = client.list(Part::All, status.limit, status.after.as_deref()).await?;
            if status.json {
                print_json(&page);
                return Ok(());
            }
            for job in &page.jobs {
                print_line(&format!("{:10} {:24} {}", job.state, job.tenant, job.id));
            }
            if let Some(next) = &page.next {
                say(&format!("there may be more: --after {next}"));
            }
            Ok(())
        }
    }
}

/// Runs `shoal cancel` or `shoal retry`.
///
/// # Errors
/// Why it was not taken.
pub async fn ask(command: &JobCommand, what: &str) -> Result<(), Failure> {
    let client = Client::new(&command.server)?;
    let id = client.ask(&command.job, what).await?;
    if command.json {
        print_json(&Named { id: id.as_str() });
    } else {
        say(&format!("{what}: asked for; see shoal status {id}"));
    }
    Ok(())
}

/// What is printed of one of many jobs whose output is deleted.
#[derive(Serialize)]
struct Deleted<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Told<'a>>,
}

/// Runs `shoal delete`: one after the other, and each is told.
///
/// # Errors
/// Why the only one was not deleted.
pub async fn delete(command: &Delete) -> Result<Ended, Failure> {
    let client = Client::new(&command.server)?;
    if let [job] = command.jobs.as_slice() {
        let id = client.delete(job).await?;
        if command.json {
            print_json(&Named { id: id.as_str() });
        } else {
            say(&format!("{id}: deleted"));
        }
        return Ok(Ended::Done);
    }
    let mut faults = Vec::new();
    for job in &command.jobs {
        let failure = client.delete(job).await.err();
        match &failure {
            _ if command.json => print_json(&Deleted { id: job, error: failure.as_ref().map(Told::from) }),
            Some(failure) => say_failure(Some(job), failure),
            None => say(&format!("{job}: deleted")),
        }
        faults.extend(failure.map(|failure| failure.code.fault()));
    }
    Ok(Ended::of_many(faults))
}

/// Shows how a job goes on until it has ended.
async fn follow(client: &Client, job: &str, json: bool) -> Result<(), Failure> {
    let mut progress = Progress::start();
    let mut troubles = 0;
    let ended = loop {
        match client.status(job).await {
            Ok(status) if status.state.has_ended() => break Ok(status),
            Ok(status) => {
                troubles = 0;
                progress.show(&view(&status));
            }
            Err(failure) if failure.code.fault() == Fault::Environment && troubles < TROUBLES_MAX => troubles += 1,
            Err(failure) => break Err(failure),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => {
                break Err(Failure::new(Code::Interrupted, format!("the job goes on; see shoal status {job}")));
            }
        }
    };
    progress.clear();
    let ended = ended?;
    outcome(&ended)?;
    show(&ended, json);
    Ok(())
}

/// Why a job that has ended has no result, if so.
fn outcome(ended: &JobStatus) -> Result<(), Failure> {
    match (ended.state, &ended.error) {
        (State::Done, _) if ended.deleted_ms.is_some() => {
            Err(Failure::new(Code::InvalidRequest, "its output was deleted: submit it under another id"))
        }
        (State::Done, _) => Ok(()),
        (_, Some(failure)) => Err(failure.clone()),
        (_, None) => Err(Failure::new(Code::Cancelled, "the job was cancelled")),
    }
}

/// How these jobs stand, in their order. Once the farm does not answer, the rest is not asked for.
async fn look<K>(client: &Client, jobs: Vec<(K, JobId)>) -> Vec<(K, Result<JobStatus, Failure>)> {
    let is_away = &Cell::new(false);
    let seen = stream::iter(jobs).map(|(key, id)| async move {
        if is_away.get() {
            return None;
        }
        let seen = client.status(id.as_str()).await;
        let is_trouble = |failure: &Failure| failure.code.fault() == Fault::Environment;
        is_away.set(is_away.get() || seen.as_ref().err().is_some_and(is_trouble));
        Some((key, seen))
    });
    let seen: Vec<_> = seen.buffered(REQUESTS_MAX).collect().await;
    seen.into_iter().flatten().collect()
}

/// Ctrl-C from now on: none is lost while nobody waits for it.
fn interrupts() -> Result<Signal, Failure> {
    signal(SignalKind::interrupt()).map_err(|e| Failure::new(Code::Internal, format!("signals cannot be heard: {e}")))
}

fn is_terminal() -> bool {
    std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
}

/// A state as it is shown.
pub fn word(state: State) -> String {
    serde_json::to_value(state).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn show(job: &JobStatus, json: bool) {
    if json {
        print_json(job);
        return;
    }
    let scheduler::status::Progress { tasks_done, tasks_total, .. } = job.progress;
    print_line(&format!("{} {}, {tasks_done} of {tasks_total} tasks", job.id, word(job.state)));
    if let Some(failure) = &job.error {
        print_line(&format!("  {failure} ({})", failure.code));
    }
    if job.deleted_ms.is_some() {
        print_line("  its output was deleted");
    }
    if let Some(result) = &job.result {
        result.warnings.iter().for_each(|warning| print_line(&format!("  warning: {warning}")));
        let made = result.master.as_deref().unwrap_or(keys::REPORT);
        print_line(&format!("  {}/{made}", job.output.trim_end_matches('/')));
    }
}
