//! The part of OTLP/JSON that is spoken: `ExportTraceServiceRequest` of opentelemetry-proto 1, as its stable mapping to JSON has
//! it. Ids are hex, and whole numbers of 64 bits are texts.

use std::ops::Range;

use farm::Code;
use serde::Serialize;

/// Work inside a service (`SPAN_KIND_INTERNAL`).
const KIND_INTERNAL: u8 = 1;

/// A request to a collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans {
    resource: Resource,
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Resource {
    attributes: Vec<Attribute>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ScopeSpans {
    scope: Scope,
    spans: Vec<Span>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Scope {
    name: &'static str,
    version: &'static str,
}

/// A piece of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Span {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    name: String,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<Attribute>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<Happening>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Told>,
}

/// Something that happened at one time in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Happening {
    time_unix_nano: String,
    name: &'static str,
}

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Attribute {
    key: &'static str,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Value {
    StringValue(String),
    IntValue(String),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    Error(Code),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Told {
    code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Request {
    pub(super) fn of(spans: Vec<Span>) -> Self {
        let (name, version) = ("shoal", env!("CARGO_PKG_VERSION"));
        let texts = [("service.name", name), ("service.version", version)];
        let attributes = texts.into_iter().map(|(key, text)| Attribute::text(key, text.to_owned())).collect();
        let scope_spans = vec![ScopeSpans { scope: Scope { name, version }, spans }];
        Self { resource_spans: vec![ResourceSpans { resource: Resource { attributes }, scope_spans }] }
    }
}

impl Span {
    /// A span by its trace, its own id and that of the one it is in; in ns since 1970.
    pub(super) fn new(
        (trace, id, parent): (&str, &str, Option<&str>),
        name: String,
        when: Range<u64>,
        attributes: Vec<Attribute>,
        status: Option<Status>,
    ) -> Self {
        Self {
            trace_id: trace.to_owned(),
            span_id: id.to_owned(),
            parent_span_id: parent.map(str::to_owned),
            name,
            kind: KIND_INTERNAL,
            start_time_unix_nano: when.start.to_string(),
            end_time_unix_nano: when.end.to_string(),
            attributes,
            events: Vec::new(),
            status: status.map(Told::from),
        }
    }

    /// The same, in which this happened.
    #[must_use]
    pub(super) fn with(self, events: Vec<Happening>) -> Self {
        Self { events, ..self }
    }
}

impl Happening {
    /// At a time in ns since 1970.
    pub(super) fn new(name: &'static str, at_ns: u64) -> Self {
        Self { time_unix_nano: at_ns.to_string(), name }
    }
}

impl Attribute {
    pub(super) fn text(key: &'static str, text: String) -> Self {
        Self { key, value: Value::StringValue(text) }
    }

    pub(super) fn number(key: &'static str, number: u64) -> Self {
        Self { key, value: Value::IntValue(number.to_string()) }
    }
}

impl From<Status> for Told {
    fn from(status: Status) -> Self {
        match status {
            Status::Ok => Self { code: 1, message: None },
            Status::Error(code) => Self { code: 2, message: Some(code.to_string()) },
        }
    }
}
