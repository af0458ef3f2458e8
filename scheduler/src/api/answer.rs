//! How requests are refused: a status, and one JSON object with a code and a line for people.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use farm::{Code, Failure, Fault};
use serde_json::json;

/// A request that is not done.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: String,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }

    /// A request that cannot be understood or done.
    pub(super) fn invalid(why: impl Into<String>) -> Self {
        Failure::new(Code::InvalidRequest, why).into()
    }

    /// A body that is not taken.
    pub(super) fn of_body(status: StatusCode) -> Self {
        match status {
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(status, "too_large", "the body is larger than 256 KiB"),
            StatusCode::REQUEST_TIMEOUT => Self::new(status, "timeout", "the body does not come in time"),
            _ => Self::new(StatusCode::BAD_REQUEST, "invalid_request", "the body cannot be read"),
        }
    }

    /// A request without a token that is known.
    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "send a token that is known: 'Authorization: Bearer …'")
    }

    /// A tenant, or all strangers together, ask for more at a time than they may.
    pub(super) fn too_many_requests() -> Self {
        let why = "as many requests are under way as there may be for whoever asks: wait for an answer";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", why)
    }

    /// All together ask for more at a time than can be done.
    pub(super) fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many requests at a time: try again")
    }

    /// A request that takes too long.
    pub(super) fn late() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "storage does not answer in time")
    }

    /// There is none, or it is another tenant's: which, is not told.
    pub(super) fn no_job() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such job")
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let status = match failure.code.fault() {
            Fault::Request => StatusCode::BAD_REQUEST,
            Fault::Source | Fault::Interruption => StatusCode::CONFLICT,
            Fault::Environment if failure.code == Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Fault::Environment => StatusCode::SERVICE_UNAVAILABLE,
        };
        if status.is_server_error() {
            tracing::warn!(%failure, "a request fails");
        }
        Self { status, code: failure.code.to_string(), message: failure.message }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": { "code": self.code, "message": self.message } }));
        let mut answer = (self.status, body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer
    }
}
