//! Sends the traces of jobs that have ended to a collector (OTLP over HTTP, in JSON).
//!
//! Nobody waits for it, and no job fails by it: a trace is sent once, and what cannot be sent is counted and forgotten. The
//! acting scheduler notes an end when it has closed the job, so one that is killed at that moment leaves a job without a trace.

use std::time::Duration;

use bytes::Bytes;
use farm::job::{JobId, JobSpec};
use farm::outbound::Reach;
use farm::storage::Storage;
use farm::task::{FailedAttempt, Marker};
use farm::{Code, Failure, Life, keys, metrics};
use futures::{StreamExt as _, TryStreamExt as _};
use percent_encoding::percent_decode_str;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use tokio::sync::mpsc;
use url::Url;

use crate::scheduler::fetch_if_there;
use crate::step::JobResult;
use crate::traces::{EXECUTIONS_MAX, Execution, Facts, Noted, Times, What, noted, trace, trace_id};

/// Most ends that wait for their trace; more are dropped.
const QUEUE_MAX: usize = 1000;
/// Most headers.
const HEADERS_MAX: usize = 32;
/// Objects fetched at a time.
const FETCHES_MAX: usize = 16;
/// Longest a collector may take to be reached, and to answer.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Longest a trace may take, with what storage takes.
const TRACE_MAX: Duration = Duration::from_secs(60);

/// Where traces go. What it shows of itself holds no secret.
#[derive(Clone, Debug)]
pub struct Settings {
    url: Url,
    headers: HeaderMap,
}

impl Settings {
    /// To the collector at this address, with these headers: `name=value,name=value`, in which `%` stands before the hex of what
    /// cannot stand for itself (as in `OTEL_EXPORTER_OTLP_HEADERS`).
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for what is none of these; what was given is not repeated.
    pub fn new(endpoint: &str, headers: &str) -> Result<Self, Failure> {
        let refused = |why: &str| Failure::new(Code::InvalidRequest, why);
        // What is no URL may hold a password all the same.
        let mut url: Url = endpoint.parse().map_err(|_| refused("otlp-endpoint: it is no URL"))?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(refused("otlp-endpoint: use http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(refused("otlp-endpoint: what is secret belongs in the headers"));
        }
        url.set_fragment(None);
        url.path_segments_mut().map_err(|()| refused("otlp-endpoint: it has no path"))?.pop_if_empty().extend(["v1", "traces"]);
        let mut map = HeaderMap::new();
        for (place, pair) in (1_usize..).zip(headers.split(',').map(str::trim).filter(|pair| !pair.is_empty())) {
            if place > HEADERS_MAX {
                return Err(refused(&format!("otlp headers: more than {HEADERS_MAX}")));
            }
            let (name, value) = header(pair).ok_or_else(|| refused(&format!("otlp headers: number {place} is no name=value")))?;
            map.append(name, value);
        }
        Ok(Self { url, headers: map })
    }
}

/// A header, which is not shown.
fn header(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair.split_once('=')?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    let mut value = HeaderValue::from_str(&value).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

/// Where a scheduler notes that a job has ended.
#[derive(Clone, Debug)]
pub struct Traced(mpsc::Sender<Ending>);

/// The life of a job that has ended.
type Ending = (JobId, Life);

/// Those that wait for their trace.
pub type Endings = mpsc::Receiver<Ending>;

/// A queue of jobs that have ended.
pub fn queue() -> (Traced, Endings) {
    let (sender, endings) = mpsc::channel(QUEUE_MAX);
    (Traced(sender), endings)
}

impl Traced {
    /// Notes the end of a life. It does not wait: where too many do already, there will be no trace.
    pub(crate) fn note(&self, job: &JobId, life: Life) {
        if self.0.try_send((job.clone(), life)).is_err() {
            count("dropped");
        }
    }
}

/// Sends the trace of each, one after the other, until the future is dropped.
/// Those that still wait then are not sent.
///
/// # Errors
/// None: where there is no way to make requests at all, that is said once.
pub async fn run(settings: Settings, state: Storage, mut endings: Endings) -> Result<(), Failure> {
    let client = match Reach::Anywhere.client().connect_timeout(CONNECT_MAX).timeout(ANSWER_MAX).build() {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "no traces can be sent");
            return std::future::pending().await;
        }
    };
    while let Some((job, life)) = endings.recv().await {
        let sent = tokio::time::timeout(TRACE_MAX, send(&settings, &client, &state, (&job, life))).await;
        match sent.unwrap_or_else(|_| Err(format!("it took longer than {} s", TRACE_MAX.as_secs()))) {
            Ok(()) => {
                count("sent");
                tracing::debug!(%job, %life, trace_id = trace_id(&job, life), "the trace is sent");
            }
            Err(why) => {
                count("failed");
                tracing::warn!(%job, %life, why, "the trace is not sent");
            }
        }
    }
    // Nobody ends jobs any more.
    std::future::pending().await
}

fn count(result: &str) {
    metrics::scheduler().traces.with_label_values(&[result]).inc();
}

async fn send(settings: &Settings, client: &reqwest::Client, state: &Storage, (job, life): (&JobId, Life)) -> Result<(), String> {
    let facts = facts(state, job, life).await.map_err(|failure| failure.message)?;
    let facts = facts.ok_or_else(|| "nothing is known of it any more".to_owned())?;
    let body = serde_json::to_vec(&trace(&facts)).map_err(|error| error.to_string())?;
    let request = client.post(settings.url.clone()).headers(settings.headers.clone());
    let request = request.header(CONTENT_TYPE, "application/json").body(Bytes::from(body));
    let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("the collector answers {status}")),
    }
}

/// What storage knows of a life that has ended; none where it is gone.
async fn facts(state: &Storage, job: &JobId, life: Life) -> Result<Option<Facts>, Failure> {
    let Some(spec) = fetch_if_there::<JobSpec>(state, &keys::spec(job)).await? else { return Ok(None) };
    let Some(result) = fetch_if_there::<JobResult>(state, &keys::result(job, life)).await? else { return Ok(None) };
    let listed = state.list(&keys::job_prefix(job)).await?;
    let Some(times) = Times::among(job, life, &listed) else { return Ok(None) };
    let mut all = noted(job, life, &listed);
    let left_out = all.len().saturating_sub(EXECUTIONS_MAX);
    all.truncate(EXECUTIONS_MAX);
    let read = futures::stream::iter(all).map(|noted| execution(state, noted)).buffered(FETCHES_MAX);
    let executions: Vec<Option<Execution>> = read.try_collect().await?;
    let executions = executions.into_iter().flatten().collect();
    Ok(Some(Facts { job: job.clone(), life, tenant: spec.tenant, times, result, executions, left_out }))
}

/// What is noted of an execution; none where it is gone.
async fn execution(state: &Storage, noted: Noted) -> Result<Option<Execution>, Failure> {
    let Noted { key, at_ms, task, what } = noted;
    Ok(match what {
        What::Marker => {
            let marker = fetch_if_there::<Marker>(state, &key).await?;
            marker.map(|marker| Execution::done(task, at_ms, marker))
        }
        What::Failure(name) => {
            let record = fetch_if_there::<FailedAttempt>(state, &key).await?;
            record.map(|record| Execution::failed(task, at_ms, name, record))
        }
        What::Begun(name) => Some(Execution::begun(task, at_ms, name)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(endpoint: &str, headers: &str) -> Result<Settings, Failure> {
        Settings::new(endpoint, headers)
    }

    #[test]
    fn traces_go_below_the_endpoint_with_headers_that_are_not_shown() {
        for (endpoint, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://collector.example/otlp/", "https://collector.example/otlp/v1/traces"),
            ("https://collector.example/otlp", "https://collector.example/otlp/v1/traces"),
        ] {
            assert_eq!(settings(endpoint, "").expect("settings").url.as_str(), url);
        }
        let settings = settings("http://collector.example", "authorization=Bearer%20hush, x-team = video,").expect("settings");
        let header = |name: &str| settings.headers.get(name).and_then(|value| value.to_str().ok());
        assert_eq!((header("authorization"), header("x-team")), (Some("Bearer hush"), Some("video")));
        assert!(!format!("{settings:?}").contains("hush"), "{settings:?}");
    }

    #[test]
    fn what_is_no_collector_is_refused_without_what_was_given() {
        for (endpoint, headers) in [
            ("ftp://collector.example", ""),
            ("http://me:hush@collector.example", ""),
            ("http://collector.example/?key=hush", ""),
            ("http://collector.example", "hush"),
            ("http://collector.example", "na me=hush"),
            ("http://collector.example", "name=hush%0Ahush"),
        ] {
            let failure = settings(endpoint, headers).expect_err(endpoint);
            assert!(failure.code == Code::InvalidRequest && !failure.message.contains("hush"), "{failure}");
        }
    }

    #[tokio::test]
    async fn an_end_that_finds_the_queue_full_is_dropped_and_holds_nobody_up() {
        let (traced, mut endings) = queue();
        let job = JobId::try_from("film".to_owned()).expect("an id");
        let dropped = || metrics::scheduler().traces.with_label_values(&["dropped"]).get();
        let before = dropped();
        for _ in 0..=QUEUE_MAX {
            traced.note(&job, Life::FIRST);
        }
        assert_eq!(dropped() - before, 1);
        assert_eq!(endings.recv().await, Some((job, Life::FIRST)));
    }
}
