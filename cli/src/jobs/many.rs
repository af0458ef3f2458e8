//! `shoal submit` of many: all are handed in, and with `--wait` all are followed to their ends.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::time::Duration;

use farm::job::{JobId, JobSpec, shown_url};
use farm::{Code, Failure, Fault};
use futures::stream::{self, StreamExt as _};
use scheduler::status::{JobStatus, State};
use serde::Serialize;
use tokio::time::sleep;
use url::Url;
use uuid::Uuid;

use super::places::folders;
use super::{LOOK, REQUESTS_MAX, TROUBLES_MAX, interrupts, look, outcome, show, spec};
use crate::arguments::Submit;
use crate::client::Client;
use crate::ending::{Ended, Told, print_json, print_line, say, say_failure};
use crate::input;
use crate::progress::Board;

/// How often a job is handed in that a farm has no time for, and the first pause between; each further one is twice as long.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// Of those that wait, how many are looked at in a round: a farm with thousands of jobs is not to be kept busy by this.
const WAITING_LOOKS: usize = 64;
/// Characters of a name that nobody chose.
const LOT_CHARS: usize = 12;

/// A job of many.
struct Job {
    /// Its source and output, as they may be shown.
    source: String,
    output: String,
    fate: Fate,
}

/// How a job stands, as far as is known.
enum Fate {
    /// It was not handed in.
    Refused(Failure),
    /// It was taken, and has not ended.
    Waiting(JobId),
    /// It has not ended.
    UnderWay(Box<JobStatus>),
    /// It has ended.
    Ended(Box<JobStatus>),
    /// What becomes of it is not known.
    Lost(JobId, Failure),
}

impl Fate {
    /// The name of a job whose end is still to come.
    fn open(&self) -> Option<&JobId> {
        match self {
            Self::Waiting(id) => Some(id),
            Self::UnderWay(status) => Some(&status.id),
            Self::Refused(_) | Self::Ended(_) | Self::Lost(..) => None,
        }
    }

    /// Why there is no result, or none that is known.
    fn failure(&self) -> Option<Failure> {
        match self {
            Self::Refused(failure) | Self::Lost(_, failure) => Some(failure.clone()),
            Self::Ended(status) => outcome(status).err(),
            Self::Waiting(_) | Self::UnderWay(_) => None,
        }
    }
}

/// Hands in a job for each of these inputs. All is read and checked before the first goes.
///
/// # Errors
/// Why none was handed in, and that Ctrl-C cannot be heard.
pub async fn submit(client: &Client, asked: &Submit, inputs: &[String]) -> Result<Ended, Failure> {
    let specs = specs(asked, inputs)?;
    apart(&specs)?;
    let mut jobs = hand_in(client, asked, specs).await;
    if asked.wait {
        follow(client, &mut jobs, asked.json).await?;
    }
    let failures: Vec<Failure> = jobs.iter().filter_map(|job| job.fate.failure()).collect();
    if asked.json {
        print_json(&Jobs { jobs: jobs.iter().map(Line::from).collect() });
    } else if !failures.is_empty() {
        let what = if asked.wait { "have no result" } else { "were not handed in" };
        say(&format!("{} of {} jobs {what}", failures.len(), jobs.len()));
    }
    Ok(Ended::of_many(failures.iter().map(|failure| failure.code.fault())))
}

/// The jobs: one for each source, however often it is named.
fn specs(asked: &Submit, inputs: &[String]) -> Result<Vec<JobSpec>, Failure> {
    let mut seen = BTreeSet::new();
    let mut sources = Vec::new();
    for input in inputs {
        let source = input::any_source(input)?;
        if seen.insert(source.clone()) {
            sources.push(source);
        }
    }
    let output = input::any_output(&asked.output)?;
    let Some(first) = sources.first() else { return Ok(Vec::new()) };
    let model = spec(asked, first.clone(), output.clone(), None)?;
    let job = |(source, folder): (Url, String)| {
        let mut spec = model.clone();
        spec.id = Some(name(asked.id.as_ref(), &folder)?);
        spec.source.url = source;
        spec.output.url = below(&output, &folder)?;
        spec.check()?;
        Ok::<_, Failure>(spec)
    };
    let folders = folders(&sources);
    sources.into_iter().zip(folders).map(job).collect()
}

/// The name of a job: with a name for all of them the same each time, so that who runs the same command again has the same jobs.
fn name(all: Option<&JobId>, folder: &str) -> Result<JobId, Failure> {
    JobId::try_from(match all {
        Some(all) => format!("{all}-{folder}"),
        None => {
            let lot: String = Uuid::new_v4().simple().to_string().chars().take(LOT_CHARS).collect();
            format!("{folder}-{lot}")
        }
    })
}

/// A folder below an output.
fn below(output: &Url, folder: &str) -> Result<Url, Failure> {
    let mut url = output.clone();
    let refused = |()| Failure::new(Code::InvalidRequest, format!("{} can have nothing below it", shown_url(output)));
    url.path_segments_mut().map_err(refused)?.pop_if_empty().extend([folder, ""]);
    Ok(url)
}

/// Hands them all in. Once the farm does not answer, no more are tried.
async fn hand_in(client: &Client, asked: &Submit, specs: Vec<JobSpec>) -> Vec<Job> {
    let away: &OnceCell<Failure> = &OnceCell::new();
    let handed = stream::iter(specs).map(|spec| async move {
        let fate = match away.get() {
            Some(failure) => Fate::Refused(failure.clone()),
            None => match persist(client, &spec).await {
                Ok(id) => Fate::Waiting(id),
                Err(failure) => {
                    if failure.code.fault() == Fault::Environment {
                        // Whoever was first has said it.
                        let _ = away.set(failure.clone());
                    }
                    Fate::Refused(failure)
                }
            },
        };
        let job = Job { source: shown_url(&spec.source.url), output: shown_url(&spec.output.url), fate };
        tell(&job, asked.json);
        job
    });
    handed.buffered(REQUESTS_MAX).collect().await
}

/// Tells what became of a job that was handed in, at once: whoever stops the command then knows which jobs there are.
fn tell(job: &Job, json: bool) {
    match &job.fate {
        Fate::Waiting(_) if json => print_json(&Line::from(job)),
        Fate::Waiting(id) => print_line(&format!("{id} {}", job.source)),
        Fate::Refused(failure) if !json => say_failure(Some(&job.source), failure),
        _ => {}
    }
}

/// Refuses jobs that would write to the same place: the later result would take the place of the other.
fn apart(specs: &[JobSpec]) -> Result<(), Failure> {
    let mut taken = BTreeSet::new();
    match specs.iter().map(|spec| &spec.output.url).find(|url| !taken.insert(url.as_str().trim_end_matches('/'))) {
        Some(url) => Err(Failure::new(Code::InvalidRequest, format!("output: {} is that of two jobs", shown_url(url)))),
        None => Ok(()),
    }
}

/// Hands a job in, again while the farm does not answer or has too much to do. It has a name: what is handed in twice is one job.
async fn persist(client: &Client, spec: &JobSpec) -> Result<JobId, Failure> {
    let mut pause = PAUSE;
    for _ in 1..TRIES {
        match client.submit(spec).await {
            Err(failure) if failure.code.fault() == Fault::Environment => sleep(pause).await,
            other => return other,
        }
        pause *= 2;
    }
    client.submit(spec).await
}

/// Follows all to their ends, and tells each.
async fn follow(client: &Client, jobs: &mut [Job], json: bool) -> Result<(), Failure> {
    let mut interrupt = interrupts()?;
    let mut board = Board::start();
    let (mut troubles, mut after) = (0, usize::MAX);
    let interrupted = || Failure::new(Code::Interrupted, "the jobs go on; see shoal status");
    let given_up = loop {
        let round = due(jobs, after);
        if round.is_empty() {
            break None;
        }
        after = round.iter().map(|(place, _)| *place).rfind(|place| is_waiting(jobs, *place)).unwrap_or(after);
        let seen = tokio::select! {
            seen = look(client, round) => seen,
            _ = interrupt.recv() => break Some(interrupted()),
        };
        let trouble = seen.iter().filter_map(|(_, seen)| seen.as_ref().err()).find(|e| e.code.fault() == Fault::Environment);
        troubles = if trouble.is_some() { troubles + 1 } else { 0 };
        if let Some(failure) = trouble.filter(|_| troubles > TROUBLES_MAX) {
            break Some(failure.clone());
        }
        for (place, seen) in seen {
            if let Some(job) = jobs.get_mut(place) {
                learn(job, seen, json, &board);
            }
        }
        let under_way = jobs.iter().filter_map(|job| match &job.fate {
            Fate::UnderWay(status) => Some(&**status),
            _ => None,
        });
        let left = jobs.iter().filter(|job| job.fate.open().is_some()).count();
        board.show(under_way, format!("{left} of {} jobs have not ended", jobs.len()));
        tokio::select! {
            () = sleep(LOOK) => {}
            _ = interrupt.recv() => break Some(interrupted()),
        }
    };
    board.clear();
    if let Some(failure) = given_up {
        lose(jobs, &failure, json);
    }
    Ok(())
}

/// Which jobs to look at next: those under way, and some of those that wait, in turn, beginning behind this place. Those that wait
/// come last.
fn due(jobs: &[Job], after: usize) -> Vec<(usize, JobId)> {
    let open = jobs.iter().enumerate().filter_map(|(place, job)| Some((place, job.fate.open()?.clone())));
    let (waiting, under_way): (Vec<_>, Vec<_>) = open.partition(|(place, _)| is_waiting(jobs, *place));
    let (next, before): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(place, _)| *place > after);
    under_way.into_iter().chain(next.into_iter().chain(before).take(WAITING_LOOKS)).collect()
}

fn is_waiting(jobs: &[Job], place: usize) -> bool {
    jobs.get(place).is_some_and(|job| matches!(job.fate, Fate::Waiting(_)))
}

/// Takes in how a job stands. What ends it is told.
fn learn(job: &mut Job, seen: Result<JobStatus, Failure>, json: bool, board: &Board) {
    match seen {
        Ok(status) if status.state.has_ended() => {
            if !json {
                board.above(|| match outcome(&status) {
                    Ok(()) => show(&status, json),
                    Err(failure) => say_failure(Some(status.id.as_str()), &failure),
                });
            }
            job.fate = Fate::Ended(Box::new(status));
        }
        Ok(status) if status.state == State::Waiting => job.fate = Fate::Waiting(status.id),
        Ok(status) => job.fate = Fate::UnderWay(Box::new(status)),
        // It is looked at again.
        Err(failure) if failure.code.fault() == Fault::Environment => {}
        Err(failure) => {
            let Some(id) = job.fate.open().cloned() else { return };
            if !json {
                board.above(|| say_failure(Some(id.as_str()), &failure));
            }
            job.fate = Fate::Lost(id, failure);
        }
    }
}

/// Gives up on all that have not ended, and says why, once.
fn lose(jobs: &mut [Job], failure: &Failure, json: bool) {
    for job in jobs {
        if let Some(id) = job.fate.open().cloned() {
            job.fate = Fate::Lost(id, failure.clone());
        }
    }
    if !json {
        say_failure(None, failure);
    }
}

/// What `--json` prints of many.
#[derive(Serialize)]
struct Jobs<'a> {
    jobs: Vec<Line<'a>>,
}

/// One of them: all that is known.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Seen(&'a JobStatus),
    Named {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a JobId>,
        source: &'a str,
        output: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<Told<'a>>,
    },
}

impl<'a> From<&'a Job> for Line<'a> {
    fn from(Job { source, output, fate }: &'a Job) -> Self {
        match fate {
            Fate::UnderWay(status) | Fate::Ended(status) => Self::Seen(status),
            Fate::Waiting(id) => Self::Named { id: Some(id), source, output, error: None },
            Fate::Lost(id, failure) => Self::Named { id: Some(id), source, output, error: Some(failure.into()) },
            Fate::Refused(failure) => Self::Named { id: None, source, output, error: Some(failure.into()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(fate: Fate) -> Job {
        Job { source: "s3://b/s".to_owned(), output: "s3://b/o/".to_owned(), fate }
    }

    fn id(text: &str) -> JobId {
        JobId::try_from(text.to_owned()).expect("a name")
    }

    fn status(name: &str, state: &str) -> Box<JobStatus> {
        let progress = serde_json::json!({"tasks_done": 0, "tasks_total": 1, "media_done_ns": 0, "media_total_ns": 0});
        let status = serde_json::json!({
            "id": name, "tenant": "me", "state": state, "source": "s3://b/s", "output": "s3://b/o/", "progress": progress
        });
        Box::new(serde_json::from_value(status).expect("a status"))
    }

    #[test]
    fn every_job_that_waits_is_looked_at_in_turn_and_those_under_way_each_time() {
        let mut jobs: Vec<Job> = (0..150).map(|n| job(Fate::Waiting(id(&format!("job-{n}"))))).collect();
        for (place, fate) in [(3, Fate::UnderWay(status("job-3", "encoding"))), (4, Fate::Ended(status("job-4", "done")))] {
            if let Some(job) = jobs.get_mut(place) {
                job.fate = fate;
            }
        }
        let mut looked: BTreeSet<usize> = BTreeSet::new();
        let mut after = usize::MAX;
        for _ in 0..3 {
            let round = due(&jobs, after);
            assert!(round.len() <= WAITING_LOOKS + 1, "{} at once", round.len());
            assert_eq!(round.first(), Some(&(3, id("job-3"))));
            after = round.last().map_or(after, |(place, _)| *place);
            looked.extend(round.iter().map(|(place, _)| *place));
        }
        assert_eq!(looked, (0..150).filter(|place| *place != 4).collect::<BTreeSet<usize>>());
        assert!(due(&[job(Fate::Ended(status("a", "failed")))], 0).is_empty());
    }

    #[test]
    fn jobs_are_named_the_same_each_time_when_a_name_is_given_and_never_otherwise() {
        let all = id("set");
        assert_eq!(name(Some(&all), "film-1"), Ok(id("set-film-1")));
        let made_up = [name(None, "film-1"), name(None, "film-1")].map(|name| name.expect("a name").to_string());
        assert!(made_up.iter().all(|name| name.starts_with("film-1-") && name.len() == 7 + LOT_CHARS), "{made_up:?}");
        assert_ne!(made_up.first(), made_up.last());
    }

    #[test]
    fn two_jobs_of_one_place_are_refused_together() {
        let to = |output: &str| JobSpec::new(Url::parse("s3://b/s").expect("a URL"), Url::parse(output).expect("a URL"));
        assert_eq!(apart(&[to("s3://b/1/"), to("s3://b/12/"), to("s3://b/2")]), Ok(()));
        let refused = apart(&[to("s3://b/1/"), to("s3://b/2/"), to("s3://b/1")]).expect_err("refused");
        assert_eq!(refused, Failure::new(Code::InvalidRequest, "output: s3://b/1 is that of two jobs"));
    }

    #[test]
    fn folders_stand_below_the_output_however_that_is_written() {
        for (output, place) in [
            ("s3://b/videos/", "s3://b/videos/film/"),
            ("s3://b/videos", "s3://b/videos/film/"),
            ("s3://b", "s3://b/film/"),
            ("file:///srv/videos/", "file:///srv/videos/film/"),
        ] {
            assert_eq!(below(&Url::parse(output).expect("a URL"), "film").map(String::from).as_deref(), Ok(place), "{output}");
        }
        assert!(below(&Url::parse("mailto:me").expect("a URL"), "film").is_err());
    }

    #[test]
    fn many_are_told_with_all_that_is_known_of_each() {
        let refused = Failure::new(Code::InvalidRequest, "why");
        let jobs = [
            job(Fate::Waiting(id("a"))),
            job(Fate::Refused(refused.clone())),
            job(Fate::Lost(id("b"), refused)),
            job(Fate::Ended(status("c", "done"))),
        ];
        let told = serde_json::to_value(Jobs { jobs: jobs.iter().map(Line::from).collect() }).expect("JSON");
        let error = serde_json::json!({"code": "invalid_request", "message": "why"});
        let (source, output) = ("s3://b/s", "s3://b/o/");
        assert_eq!(
            told,
            serde_json::json!({"jobs": [
                {"id": "a", "source": source, "output": output},
                {"source": source, "output": output, "error": error},
                {"id": "b", "source": source, "output": output, "error": error},
                serde_json::to_value(status("c", "done")).expect("JSON")
            ]})
        );
    }
}
