//! Notice that this machine is to be taken away. Its cloud gives it at an address that the machine alone reaches.
//!
//! That address hands out the machine's credentials as well, so jobs never get there ([`farm::outbound`]). This is another client:
//! it asks for the few paths below, follows nobody elsewhere, and believes no answer that it does not understand to the letter.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use farm::{Code, Failure, metrics};
use reqwest::header::HeaderValue;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// How often is asked.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest wait for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Most bytes of an answer: there may be many events, each of some hundred bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How long before the machine goes all that runs is to be given back.
const MARGIN: Duration = Duration::from_secs(10);

/// Where all three clouds answer their machines.
const ENDPOINT: &str = "http://169.254.169.254";

/// A word to be sent along with every question.
const EC2_TOKEN: &str = "/latest/api/token";
/// What becomes of a spot machine; there is no such page until something does.
const EC2_ACTION: &str = "/latest/meta-data/spot/instance-action";
/// How long a token counts, in seconds: it is asked for each time.
const EC2_TOKEN_SECONDS: &str = "30";
/// How long before EC2 gives notice.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html>
const EC2_NOTICE: Duration = Duration::from_secs(120);

/// Whether a machine is being taken away.
const GCP_PREEMPTED: &str = "/computeMetadata/v1/instance/preempted";
/// How long is left at least when it is heard: Google Cloud gives half a minute, and what comes right after a question is heard by
/// the next one's answer. <https://cloud.google.com/compute/docs/instances/spot>
const GCP_NOTICE: Duration = Duration::from_secs(30 - 5 - 2);

/// What is to become of the machines around. The first answer may take Azure two minutes: it is asked for until it comes.
/// <https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events>
const AZURE_EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
/// What this machine is called there.
const AZURE_NAME: &str = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";

/// Who gives notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Amazon EC2: of the end of spot machines, two minutes before. A recommendation to rebalance is none.
    Ec2,
    /// Google Cloud: of the end of spot machines, 30 s before. That a machine is to be maintained is none.
    Gcp,
    /// Azure: of the end of spot machines, of restarts and moves, 30 s to 15 minutes before.
    Azure,
}

impl Provider {
    /// What it is called in labels and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
        }
    }
}

/// Listens for notice, until it is dropped.
pub struct Notices {
    /// By when all that runs is to be given back, once notice is given.
    by: watch::Receiver<Option<Instant>>,
    _asking: Option<AbortOnDropHandle<()>>,
}

impl Notices {
    /// Asks a provider every 5 s. The first answer is waited for, up to 4 s, so that nothing is begun on a machine that goes.
    /// Without a provider no notice is ever given. `endpoint` takes the place of the providers' own address, for tests.
    ///
    /// # Errors
    /// [`Code::Internal`] when nobody can be asked at all.
    pub async fn listen(provider: Option<Provider>, endpoint: Option<&Url>) -> Result<Self, Failure> {
        let Some(provider) = provider else { return Ok(Self { by: watch::channel(None).1, _asking: None }) };
        let mut asker = Asker::new(provider, endpoint)?;
        let first = asker.ask().await;
        let (tell, by) = watch::channel(first);
        let asking = async move {
            tell.send_replace(Some(asker.heard().await));
        };
        let asking = first.is_none().then(|| AbortOnDropHandle::new(tokio::spawn(asking)));
        Ok(Self { by, _asking: asking })
    }

    /// Whether notice is given.
    pub fn is_given(&self) -> bool {
        self.by.borrow().is_some()
    }

    /// Waits until notice is given: by when all that runs is to be given back, 10 s before the machine goes.
    pub async fn given(&self) -> Instant {
        let mut by = self.by.clone();
        let given = by.wait_for(Option::is_some).await.map(|by| *by);
        match given {
            Ok(Some(by)) => by,
            // Nobody is asked.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

/// Why nothing was learned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Unheard {
    /// No connection, or no answer in time.
    #[error("{0}")]
    Unreached(String),
    /// An answer of another kind.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// An answer that is too long, or makes no sense.
    #[error("its answer is not understood")]
    Senseless,
}

impl From<reqwest::Error> for Unheard {
    /// The innermost cause: it says what the outer ones only hint at.
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::Unreached("it does not answer in time".to_owned());
        }
        let error = error.without_url();
        let mut cause = error.source();
        while let Some(inner) = cause.and_then(std::error::Error::source) {
            cause = Some(inner);
        }
        Self::Unreached(cause.map_or_else(|| error.to_string(), ToString::to_string))
    }
}

/// Asks one provider.
struct Asker {
    provider: Provider,
    client: Client,
    /// Scheme, host and port.
    endpoint: String,
    /// What this machine is called at Azure, once that is known.
    name: Option<String>,
    /// How the last question went.
    last: Answers,
}

/// Whether a provider answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// As far as is known.
    Yes,
    /// Not so that it is understood, which has been said.
    No,
}

impl Asker {
    fn new(provider: Provider, endpoint: Option<&Url>) -> Result<Self, Failure> {
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .referer(false)
            .timeout(ANSWER_WAIT)
            .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
            .build();
        let client = client.map_err(|error| Failure::new(Code::Internal, format!("nobody can be asked for notices: {error}")))?;
        let endpoint = endpoint.map_or(ENDPOINT, Url::as_str).trim_end_matches('/').to_owned();
        Ok(Self { provider, client, endpoint, name: None, last: Answers::Yes })
    }

    /// Asks until notice is given: by when all is to be given back.
    async fn heard(mut self) -> Instant {
        loop {
            tokio::time::sleep(PAUSE).await;
            if let Some(by) = self.ask().await {
                return by;
            }
        }
    }

    /// Asks once. Of a provider that does not answer it is said once, and once that it answers again.
    async fn ask(&mut self) -> Option<Instant> {
        let (answer, provider) = (self.answer().await, self.provider.word());
        match (&answer, self.last) {
            (Err(why), Answers::Yes) => {
                tracing::warn!(provider, %why, "nobody says whether this machine is to be taken away: it is asked on");
            }
            (Ok(_), Answers::No) => tracing::info!(provider, "it is said again whether this machine is to be taken away"),
            (Err(_), Answers::No) | (Ok(_), Answers::Yes) => {}
        }
        self.last = if answer.is_ok() { Answers::Yes } else { Answers::No };
        let left = answer.ok().flatten()?;
        metrics::worker().notices.with_label_values(&[provider]).inc();
        tracing::warn!(provider, seconds = left.as_secs(), "this machine is to be taken away");
        Some(Instant::now() + left.saturating_sub(MARGIN))
    }

    /// How long this machine is still there, if it is to go.
    async fn answer(&mut self) -> Result<Option<Duration>, Unheard> {
        match self.provider {
            Provider::Ec2 => {
                let token = self.client.put(self.url(EC2_TOKEN));
                let token = body(token.header("X-aws-ec2-metadata-token-ttl-seconds", EC2_TOKEN_SECONDS)).await?;
                let mut token = HeaderValue::from_bytes(&token).map_err(|_| Unheard::Senseless)?;
                token.set_sensitive(true);
                let action = self.client.get(self.url(EC2_ACTION)).header("X-aws-ec2-metadata-token", token);
                match body(action).await {
                    Err(Unheard::Status(StatusCode::NOT_FOUND)) => Ok(None),
                    action => ec2(&action?, SystemTime::now()).map(Some),
                }
            }
            Provider::Gcp => {
                let preempted = self.client.get(self.url(GCP_PREEMPTED)).header("Metadata-Flavor", "Google");
                gcp(&body(preempted).await?)
            }
            Provider::Azure => {
                let events = body(self.client.get(self.url(AZURE_EVENTS)).header("Metadata", "true")).await?;
                if self.name.is_none() {
                    let name = body(self.client.get(self.url(AZURE_NAME)).header("Metadata", "true")).await;
                    self.name = name.ok().and_then(|name| azure_name(&name));
                }
                match (azure(&events, self.name.as_deref(), SystemTime::now())?, &self.name) {
                    // It may be another machine's: asked again in a moment.
                    (Some(_), None) => Err(Unheard::Senseless),
                    (told, _) => Ok(told),
                }
            }
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.endpoint)
    }
}

/// The body of an answer with status 200.
async fn body(request: RequestBuilder) -> Result<Vec<u8>, Unheard> {
    let mut answer = request.send().await?;
    if answer.status() != StatusCode::OK {
        return Err(Unheard::Status(answer.status()));
    }
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await? {
        if body.len() + part.len() > BODY_BYTES_MAX {
            return Err(Unheard::Senseless);
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

/// From now on until then.
fn until(then: SystemTime, now: SystemTime) -> Duration {
    then.duration_since(now).unwrap_or_default()
}

/// How long a machine is still there by EC2's `instance-action`. Never longer than notice is given before: the machine's clock may
/// be slow.
fn ec2(body: &[u8], now: SystemTime) -> Result<Duration, Unheard> {
    #[derive(Deserialize)]
    struct Action {
        action: String,
        time: String,
    }
    let Action { action, time } = serde_json::from_slice(body).map_err(|_| Unheard::Senseless)?;
    if !["stop", "terminate", "hibernate"].contains(&action.as_str()) {
        return Err(Unheard::Senseless);
    }
    let then = OffsetDateTime::parse(&time, &Rfc3339).map_err(|_| Unheard::Senseless)?;
    Ok(until(then.into(), now).min(EC2_NOTICE))
}

/// How long a machine is still there by Google Cloud's `preempted`, if it is to go. When it goes is not told.
fn gcp(body: &[u8]) -> Result<Option<Duration>, Unheard> {
    match body.trim_ascii() {
        b"TRUE" => Ok(Some(GCP_NOTICE)),
        b"FALSE" => Ok(None),
        _ => Err(Unheard::Senseless),
    }
}

/// Azure's scheduled events.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Events {
    events: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    event_type: String,
    event_status: String,
    #[serde(default)]
    resources: Vec<String>,
    /// Empty once it has started.
    not_before: Option<String>,
}

impl Event {
    /// Whether a machine of this name goes by it; any, where the name is not known.
    fn takes(&self, name: Option<&str>) -> bool {
        let takes = match self.event_type.as_str() {
            "Preempt" | "Terminate" => matches!(self.event_status.as_str(), "Scheduled" | "Started"),
            // One that has started is told for a while after the machine is back.
            "Reboot" | "Redeploy" => self.event_status == "Scheduled",
            _ => false,
        };
        takes && name.is_none_or(|name| self.resources.iter().any(|resource| resource.eq_ignore_ascii_case(name)))
    }

    /// How long it is until it comes.
    fn left(&self, now: SystemTime) -> Result<Duration, Unheard> {
        if self.event_status == "Started" {
            return Ok(Duration::ZERO);
        }
        let then = self.not_before.as_deref().and_then(|time| httpdate::parse_http_date(time).ok());
        then.map(|then| until(then, now)).ok_or(Unheard::Senseless)
    }
}

/// How long a machine of this name is still there by Azure's scheduled events, if it is to go.
fn azure(body: &[u8], name: Option<&str>, now: SystemTime) -> Result<Option<Duration>, Unheard> {
    let Events { events } = serde_json::from_slice(body).map_err(|_| Unheard::Senseless)?;
    let left: Vec<Duration> =
        events.iter().filter(|event| event.takes(name)).map(|event| event.left(now)).collect::<Result<_, _>>()?;
    Ok(left.into_iter().min())
}

/// A machine's name, if it is one.
fn azure_name(body: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(body).ok()?.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
#[path = "notice_tests.rs"]
mod tests;
