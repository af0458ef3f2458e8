//! What is said to a running farm over its HTTP API.

use std::time::Duration;

use farm::job::{JobId, JobSpec};
use farm::{Code, Failure};
use reqwest::{Method, RequestBuilder, StatusCode};
use scheduler::api::{Equipment, Named, Page};
use scheduler::status::JobStatus;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::arguments::Server;
use crate::services::read;

/// Variable that holds the token.
const TOKEN_VARIABLE: &str = "SHOAL_TOKEN";
/// Longest an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(40);

/// Which jobs to list.
#[derive(Clone, Copy)]
pub enum Part {
    /// All: those that have not ended first.
    All,
    /// Those that have not ended.
    Active,
}

/// A farm that can be talked to.
pub struct Client {
    http: reqwest::Client,
    server: Url,
    token: String,
}

/// What is read of a problem. A newer farm may have other codes.
#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: String,
}

impl Client {
    /// For the farm that is named.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when server or token are not given.
    pub fn new(server: &Server) -> Result<Self, Failure> {
        let missing = |what: &str| Failure::new(Code::InvalidRequest, what);
        let url = server.server.clone().ok_or_else(|| missing("no server: give --server URL or SHOAL_SERVER"))?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(missing("server: use http:// or https://"));
        }
        let token = match &server.token_file {
            Some(file) => Some(read(file)?),
            None => std::env::var(TOKEN_VARIABLE).ok(),
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| missing("no token: set SHOAL_TOKEN, or give --token-file FILE"))?;
        let http = reqwest::Client::builder().timeout(ANSWER_MAX).connect_timeout(Duration::from_secs(10)).build();
        let http = http.map_err(|error| Failure::new(Code::Internal, format!("no requests can be made: {error}")))?;
        Ok(Self { http, server: url, token })
    }

    /// Gives a job to the farm.
    ///
    /// # Errors
    /// What the farm says, or that it does not answer.
    pub async fn submit(&self, spec: &JobSpec) -> Result<JobId, Failure> {
        let body = serde_json::to_vec(spec).map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        let request = self.request(Method::POST, &["jobs"])?.header("content-type", "application/json").body(body);
        self.send::<Named>(request).await.map(|named| named.id)
    }

    /// How a job stands.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub async fn status(&self, job: &str) -> Result<JobStatus, Failure> {
        self.send(self.request(Method::GET, &["jobs", job])?).await
    }

    /// A page of the list of jobs.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub async fn list(&self, part: Part, limit: u16, after: Option<&str>) -> Result<Page, Failure> {
        let mut url = self.url(&["jobs"])?;
        url.query_pairs_mut().append_pair("limit", &limit.to_string());
        match part {
            Part::All => {}
            Part::Active => {
                url.query_pairs_mut().append_pair("state", "active");
            }
        }
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after);
        }
        self.send(self.http.get(url)).await
    }

    /// Asks for something to be done with a job: `cancel` or `retry`.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub async fn ask(&self, job: &str, what: &str) -> Result<JobId, Failure> {
        self.send::<Named>(self.request(Method::POST, &["jobs", job, what])?).await.map(|named| named.id)
    }

    /// Has what a job has made deleted.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub async fn delete(&self, job: &str) -> Result<JobId, Failure> {
        self.send::<Named>(self.request(Method::DELETE, &["jobs", job, "output"])?).await.map(|named| named.id)
    }

    /// What the farm's workers encode with.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub async fn encoders(&self) -> Result<Equipment, Failure> {
        self.send(self.request(Method::GET, &["encoders"])?).await
    }

    fn url(&self, path: &[&str]) -> Result<Url, Failure> {
        let mut url = self.server.clone();
        let refused = || Failure::new(Code::InvalidRequest, "server: not a URL that can have a path");
        url.path_segments_mut().map_err(|()| refused())?.pop_if_empty().push("v1").extend(path);
        Ok(url)
    }

    fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder, Failure> {
        Ok(self.http.request(method, self.url(path)?))
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let silent = |error: reqwest::Error| {
            let server = farm::job::shown_url(&self.server);
            Failure::new(Code::SchedulerUnavailable, format!("{server} does not answer: {}", cause(&error.without_url())))
        };
        let answer = request.bearer_auth(&self.token).send().await.map_err(silent)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(silent)?;
        if !status.is_success() {
            return Err(refused(status, &body));
        }
        let odd = |error| Failure::new(Code::SchedulerUnavailable, format!("the answer cannot be understood: {error}"));
        serde_json::from_slice(&body).map_err(odd)
    }
}

/// The deepest reason that an error names.
fn cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// What the farm says is wrong. Codes that are about requests alone are all the request's fault.
fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let Ok(Problem { code, detail }) = serde_json::from_slice(body) else {
        return Failure::new(Code::SchedulerUnavailable, format!("the answer is {status}, not of a scheduler"));
    };
    // It has too much to do at the moment, and not this request is wrong.
    let is_busy = status == StatusCode::REQUEST_TIMEOUT || code == "too_many_requests";
    let usual = if status.is_server_error() || is_busy { Code::SchedulerUnavailable } else { Code::InvalidRequest };
    let known = serde_json::from_value::<Code>(serde_json::Value::String(code));
    Failure::new(known.unwrap_or(usual), detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_becomes_a_failure_of_whose_fault_it_is() {
        let problem = |code: &str| format!(r#"{{"type":"about:blank","status":400,"detail":"why","code":"{code}"}}"#);
        for (status, code, failure) in [
            (400, "invalid_request", Code::InvalidRequest),
            (404, "not_found", Code::InvalidRequest),
            (408, "timeout", Code::SchedulerUnavailable),
            (429, "too_many_requests", Code::SchedulerUnavailable),
            (429, "too_many_jobs", Code::InvalidRequest),
            (503, "busy", Code::SchedulerUnavailable),
            (503, "storage_full", Code::StorageFull),
            (409, "a word of another year", Code::InvalidRequest),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(refused(status, problem(code).as_bytes()), Failure::new(failure, "why"), "{status} {code}");
        }
        for odd in ["", "<html>", "{}", r#"{"error":{"code":"busy","message":"why"}}"#] {
            assert_eq!(refused(StatusCode::BAD_GATEWAY, odd.as_bytes()).code, Code::SchedulerUnavailable, "{odd}");
        }
    }
}
