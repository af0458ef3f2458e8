//! `shoal submit`, `status`, `cancel` and `retry`: what those who use a farm do.

use std::time::Duration;

use farm::job::{JobSpec, NotifySpec};
use farm::{Code, Failure, keys};
use scheduler::scheduler::{JobView, Phase};
use scheduler::status::{JobStatus, State};
use serde::Serialize;
use url::Url;

use crate::arguments::{JobCommand, Status, Submit};
use crate::client::Client;
use crate::ending::{print_json, print_line, say};
use crate::input;
use crate::progress::Progress;

/// How often a job is looked at while it is followed.
const LOOK: Duration = Duration::from_secs(1);
/// After so many looks in a row that failed, following ends.
const TROUBLES_MAX: u32 = 60;
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
/// Why the job was not taken; with `--wait`, why it has no result.
pub async fn submit(submit: &Submit) -> Result<(), Failure> {
    let client = Client::new(&submit.server)?;
    let id = client.submit(&spec(submit)?).await?;
    if !submit.wait {
        if submit.json {
            print_json(&Named { id: id.as_str() });
        } else {
            print_line(id.as_str());
        }
        return Ok(());
    }
    follow(&client, id.as_str(), submit.json).await
}

fn spec(submit: &Submit) -> Result<JobSpec, Failure> {
    let mut spec = JobSpec::new(input::any_source(&submit.input)?, input::any_output(&submit.output)?);
    spec.id.clone_from(&submit.id);
    if let Some(tenant) = &submit.tenant {
        spec.tenant.clone_from(tenant);
    }
    submit.result.ask(&mut spec);
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
        None => {
            let page = client.list(status.limit, status.after.as_deref()).await?;
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
            Err(failure) if failure.code.fault() == farm::Fault::Environment && troubles < TROUBLES_MAX => troubles += 1,
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
    match (ended.state, &ended.error) {
        (State::Done, _) => {
            show(&ended, json);
            Ok(())
        }
        (_, Some(failure)) => Err(failure.clone()),
        (_, None) => Err(Failure::new(Code::Cancelled, "the job was cancelled")),
    }
}

/// What the progress bar shows of it. The duration of the result is not told: media to go through stands for it.
fn view(status: &JobStatus) -> JobView {
    let progress = status.progress;
    JobView {
        tenant: status.tenant.clone(),
        phase: Phase::Encoding,
        tasks_done: progress.tasks_done,
        tasks_total: progress.tasks_total,
        media_done_ns: progress.media_done_ns,
        media_total_ns: progress.media_total_ns,
        duration_ns: progress.media_total_ns,
    }
}

fn show(job: &JobStatus, json: bool) {
    if json {
        print_json(job);
        return;
    }
    let state = serde_json::to_value(job.state).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default();
    print_line(&format!("{} {state}, {} of {} tasks", job.id, job.progress.tasks_done, job.progress.tasks_total));
    if let Some(failure) = &job.error {
        print_line(&format!("  {failure} ({})", failure.code));
    }
    if let Some(result) = &job.result {
        result.warnings.iter().for_each(|warning| print_line(&format!("  warning: {warning}")));
        let made = result.master.as_deref().unwrap_or(keys::REPORT);
        print_line(&format!("  {}/{made}", job.output.trim_end_matches('/')));
    }
}
