//! What is answered: what was asked for, or why not, as RFC 9457 has it and with a code.

use std::collections::BTreeMap;
use std::fmt;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use farm::encoder::Offered;
use farm::job::{JobId, VideoCodec};
use farm::presence::{Duty, Presence};
use farm::task::Token;
use farm::{Class, Code, Failure, Fault};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::Listed;

/// The media type of what is answered.
pub(super) const JSON: &str = "application/json";
/// The media type of a problem.
pub(super) const PROBLEM: &str = "application/problem+json";

/// A job that is only named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Named {
    /// Its name.
    pub id: JobId,
}

/// A page of jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Page {
    /// The jobs.
    pub jobs: Vec<Listed>,
    /// After which job the next page begins, if there may be one.
    pub next: Option<JobId>,
}

/// The workers of the farm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Crew {
    /// Those that were heard in the last half minute, in the order of their names.
    pub workers: Vec<Worker>,
}

/// A worker, by what it says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Worker {
    /// Its name, made up anew each time that it is started.
    pub id: Token,
    /// Its version.
    pub version: String,
    /// Tasks that it does at a time, those that take a device among them.
    pub slots: u32,
    /// Tasks that it has now.
    pub running: u32,
    /// Whether it takes no more, and brings what it has to an end.
    pub draining: bool,
    /// Its devices that work: class and node.
    pub devices: Vec<String>,
    /// Seconds of media that it has gone through per second, in the last minute; none when it encoded nothing.
    pub speed: Option<f64>,
}

impl From<Presence> for Worker {
    fn from(presence: Presence) -> Self {
        let Presence { worker: id, version, slots, running, duty, devices, speed } = presence;
        Self { id, version, slots, running, draining: duty == Duty::Draining, devices, speed }
    }
}

impl From<Vec<Presence>> for Crew {
    fn from(there: Vec<Presence>) -> Self {
        Self { workers: there.into_iter().map(Worker::from).collect() }
    }
}

/// What the workers of the farm encode pictures with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Equipment {
    /// The classes of encoders that there are now, the processor first.
    pub classes: Vec<Encoders>,
}

/// Encoders of a class: libraries on the processor, or those of devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Encoders {
    /// Whose they are.
    pub class: Class,
    /// Workers that have them and take tasks.
    pub workers: usize,
    /// Tasks that those workers do at a time, of whatever kind.
    pub slots: u64,
    /// What is made with them. On the processor that is all that jobs can ask for: it is not tried beforehand.
    pub codecs: Vec<Encoder>,
}

/// Encoders of a class for a codec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Encoder {
    /// The codec.
    pub codec: VideoCodec,
    /// Workers that have one for it.
    pub workers: usize,
    /// The longer side in pixels of the largest picture that all of them take; none on the processor.
    pub side_max: Option<u32>,
    /// How many a task may use at a time at each of them, where that is known.
    pub sessions_max: Option<u32>,
}

impl Equipment {
    /// That of these workers, with what they offer beside encoding on the processor.
    pub fn of(there: &[Presence], offers: &BTreeMap<Token, Vec<Offered>>) -> Self {
        let taking: Vec<&Presence> = there.iter().filter(|presence| presence.duty == Duty::Taking).collect();
        let class = |class: Class| {
            let own = |presence: &Presence| -> Vec<Offered> {
                let all = offers.get(&presence.worker).into_iter().flatten();
                all.filter(|offered| offered.class == class).copied().collect()
            };
            let having: Vec<(&Presence, Vec<Offered>)> = taking.iter().map(|presence| (*presence, own(presence))).collect();
            let having: Vec<_> = having.into_iter().filter(|(_, own)| class.is_cpu() || !own.is_empty()).collect();
            let codec = |codec: VideoCodec| {
                let of_codec = having.iter().flat_map(|(_, own)| own.iter().find(|offered| offered.codec == codec));
                let of_codec: Vec<&Offered> = of_codec.collect();
                let workers = if class.is_cpu() { having.len() } else { of_codec.len() };
                let side_max = of_codec.iter().map(|offered| offered.largest.side).min();
                let sessions_max = of_codec.iter().filter_map(|offered| offered.sessions_max).min();
                (workers > 0).then_some(Encoder { codec, workers, side_max, sessions_max })
            };
            let slots = having.iter().map(|(presence, _)| u64::from(presence.slots)).sum();
            let codecs = VideoCodec::ALL.into_iter().filter_map(codec).collect();
            (!having.is_empty()).then_some(Encoders { class, workers: having.len(), slots, codecs })
        };
        Self { classes: Class::ALL.into_iter().filter_map(class).collect() }
    }
}

/// Why a request is not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// Always `about:blank`: `code` says what is wrong.
    #[serde(rename = "type")]
    #[schemars(extend("format" = "uri-reference"))]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The status.
    pub status: u16,
    /// What is wrong, for people: one line.
    pub detail: String,
    /// What is wrong, for programs.
    pub code: Word,
}

/// What is wrong, as a word that scripts can test. There may be others in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Word {
    /// How, by whom or when it was asked.
    Ground(Ground),
    /// What was asked for, or the farm.
    Farm(Code),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// On what ground a request is refused, beside those for which a job fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ground {
    /// No token that is known comes with it.
    Unauthorized,
    /// There is no such page, no such job of this tenant, or nothing of that name in its output.
    NotFound,
    /// It was there, and was deleted because somebody asked for it.
    Deleted,
    /// The page knows no such method.
    MethodNotAllowed,
    /// What is asked for has no such bytes.
    RangeNotSatisfiable,
    /// It cannot be done as the job stands, or the name stands for another job.
    Conflict,
    /// The body is too large.
    TooLarge,
    /// The body (408) or what storage answers (504) does not come in time.
    Timeout,
    /// As many requests are under way as there may be for whoever asks.
    TooManyRequests,
    /// As many jobs are under way as the tenant may have.
    TooManyJobs,
    /// As many requests are under way as there may be in all.
    Busy,
}

/// A request that is not done.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: Word,
    detail: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, ground: Ground, detail: impl Into<String>) -> Self {
        Self { status, code: Word::Ground(ground), detail: detail.into() }
    }

    /// For what a job fails with.
    pub(super) fn of(failure: Failure) -> Self {
        let status = match failure.code.fault() {
            Fault::Request => StatusCode::BAD_REQUEST,
            Fault::Source | Fault::Interruption => StatusCode::CONFLICT,
            Fault::Environment if failure.code == Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Fault::Environment => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self { status, code: Word::Farm(failure.code), detail: failure.message }
    }

    /// A request that cannot be understood or done.
    pub(super) fn invalid(why: impl Into<String>) -> Self {
        Self::of(Failure::new(Code::InvalidRequest, why))
    }

    /// A body that is not taken.
    pub(super) fn of_body(status: StatusCode) -> Self {
        match status {
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(status, Ground::TooLarge, "the body is larger than 256 KiB"),
            StatusCode::REQUEST_TIMEOUT => Self::new(status, Ground::Timeout, "the body does not come in time"),
            _ => Self::invalid("the body cannot be read"),
        }
    }

    /// A request without a token that is known.
    pub(super) fn unauthorized() -> Self {
        let why = "send a token that is known: 'Authorization: Bearer …'";
        Self::new(StatusCode::UNAUTHORIZED, Ground::Unauthorized, why)
    }

    /// A tenant, or all strangers together, ask for more at a time than they may.
    pub(super) fn too_many_requests() -> Self {
        let why = "as many requests are under way as there may be for whoever asks: wait for an answer";
        Self::new(StatusCode::TOO_MANY_REQUESTS, Ground::TooManyRequests, why)
    }

    /// A tenant submits more than it may have under way.
    pub(super) fn too_many_jobs() -> Self {
        let why = "this tenant has as many jobs under way as it may: wait until one has ended";
        Self::new(StatusCode::TOO_MANY_REQUESTS, Ground::TooManyJobs, why)
    }

    /// All together ask for more at a time than can be done.
    pub(super) fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Ground::Busy, "too many requests at a time: try again")
    }

    /// A request that takes too long.
    pub(super) fn late() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, Ground::Timeout, "storage does not answer in time")
    }

    /// There is nothing at all under this path.
    pub(super) fn no_page() -> Self {
        Self::new(StatusCode::NOT_FOUND, Ground::NotFound, "there is no such page")
    }

    /// There is none, or it is another tenant's: which, is not told.
    pub(super) fn no_job() -> Self {
        Self::new(StatusCode::NOT_FOUND, Ground::NotFound, "there is no such job")
    }

    /// The job is not done, its result is there no more, or it has nothing of that name.
    pub(super) fn no_output() -> Self {
        Self::new(StatusCode::NOT_FOUND, Ground::NotFound, "the job has no such output")
    }

    /// The output of the job was deleted.
    pub(super) fn deleted() -> Self {
        Self::new(StatusCode::GONE, Ground::Deleted, "the output of the job was deleted")
    }

    /// It ends before the bytes that are asked for.
    pub(super) fn no_range() -> Self {
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, Ground::RangeNotSatisfiable, "it has no such bytes")
    }

    /// A request that does not go with how the job stands.
    pub(super) fn conflict(why: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, Ground::Conflict, why)
    }

    /// As it is sent.
    pub(super) fn problem(self) -> Problem {
        let title = self.status.canonical_reason().unwrap_or_default().to_owned();
        Problem { kind: "about:blank".to_owned(), title, status: self.status.as_u16(), detail: self.detail, code: self.code }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let refusal = Self::of(failure);
        if refusal.status.is_server_error() {
            tracing::warn!(code = %refusal.code, failure = refusal.detail, "a request fails");
        }
        refusal
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut answer = (status, Json(self.problem())).into_response();
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM));
        if status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer
    }
}
