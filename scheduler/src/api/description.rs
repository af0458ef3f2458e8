//! The API in the words of OpenAPI 3.1: made of the table of routes, of the types that are read and sent, and of the refusals.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use farm::job::{JobId, JobSpec};
use farm::storage::Kind;
use farm::{Code, Failure, keys};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::answer::{Crew, Equipment, JSON, Named, PROBLEM, Page, Problem, Refusal};
use super::page::FILES;
use super::routes::{Following, Route, Wanted};
use crate::status::JobStatus;

/// Where the schemas stand in the document.
const SCHEMAS: &str = "/components/schemas";
/// The name of the job that examples are about.
const JOB: &str = "film-1";
/// What an object of a result may be.
const OUTPUTS: [Kind; 8] = [
    Kind::Json,
    Kind::Playlist,
    Kind::VideoMp4,
    Kind::AudioMp4,
    Kind::VideoSegment,
    Kind::AudioSegment,
    Kind::Jpeg,
    Kind::TextTrack,
];

/// What the API is, as it is served at `/v1/openapi.json`: every route, what it takes, and each of its answers.
pub fn description() -> Value {
    let mut schemas = Schemas::new();
    let paths = paths(&mut schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Shoal",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Jobs of a farm that turns video and audio into HLS.",
            "description": "Jobs are submitted, looked at, cancelled and retried, and their outputs deleted. A bearer token says \
                whose they are: a job of another tenant does not exist. What is refused is told as a problem of RFC 9457, with a `code` that programs \
                can test; so it is told that there is no such page (404) and that a page knows no such method (405).",
            "license": { "name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT" },
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas.all(),
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "description": "A token of the farm's file of tenants." },
            },
        },
    })
}

/// What schemas are made with. What is read and what is sent may differ in what has to be there.
struct Schemas {
    read: SchemaGenerator,
    sent: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = SCHEMAS.into());
        Self { read: settings.clone().for_deserialize().into_generator(), sent: settings.for_serialize().into_generator() }
    }

    /// The schema of what is read.
    fn read<T: JsonSchema>(&mut self) -> Value {
        self.read.subschema_for::<T>().to_value()
    }

    /// The schema of what is sent.
    fn sent<T: JsonSchema>(&mut self) -> Value {
        self.sent.subschema_for::<T>().to_value()
    }

    /// The parameters of a query: each field of it is one.
    fn query<T: JsonSchema>(&mut self) -> Vec<Value> {
        let schema = T::json_schema(&mut self.read);
        let fields = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        let parameter = |(name, schema): (&String, &Value)| {
            let mut schema = schema.clone();
            let text = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            json!({ "name": name, "in": "query", "description": text, "schema": schema })
        };
        fields.map(parameter).collect()
    }

    /// Every schema that was asked for, and those that they refer to, by name.
    fn all(mut self) -> Map<String, Value> {
        let mut all = self.read.take_definitions(true);
        all.extend(self.sent.take_definitions(true));
        all
    }
}

/// A route as OpenAPI has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Operation {
    operation_id: &'static str,
    summary: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parameters: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_body: Option<Value>,
    /// Empty for what needs no token; otherwise as in the whole document.
    #[serde(skip_serializing_if = "Option::is_none")]
    security: Option<[Value; 0]>,
    responses: BTreeMap<u16, Answer>,
}

/// An answer as OpenAPI has it.
#[derive(Serialize)]
struct Answer {
    description: String,
    content: BTreeMap<&'static str, Content>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    links: BTreeMap<&'static str, Value>,
}

/// What a body is, by its media type.
#[derive(Serialize)]
struct Content {
    schema: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    example: Option<Value>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    examples: BTreeMap<String, Value>,
}

/// Every route by path and method.
fn paths(schemas: &mut Schemas) -> BTreeMap<String, BTreeMap<&'static str, Operation>> {
    let mut paths: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for route in Route::ALL {
        paths.entry(route.template()).or_default().insert(route.way().word(), operation(route, schemas));
    }
    paths
}

fn operation(route: Route, schemas: &mut Schemas) -> Operation {
    let (summary, description) = texts(route);
    let mut responses = refused(route, schemas);
    responses.extend(done(route, schemas).into_iter().map(|(status, answer)| (status.as_u16(), answer)));
    Operation {
        operation_id: route.name(),
        summary,
        description,
        parameters: parameters(route, schemas),
        request_body: (route == Route::Submit).then(|| body(schemas)),
        security: route.is_open().then_some([]),
        responses,
    }
}

/// What a route does, in a few words and in some more.
fn texts(route: Route) -> (&'static str, &'static str) {
    match route {
        Route::Page => ("Show the farm in a browser", "The status page. It asks for a token, and shows what that may see."),
        Route::PageFile => ("Give a file of the status page", "It is for everybody: no token is needed."),
        Route::Describe => ("Say what the API is", "This document. It is for everybody: no token is needed."),
        Route::Submit => (
            "Submit a job",
            "The same message twice is the same job, also when its output was deleted since: it is not made again but under another \
             `id`. It is for the tenant whose token it is, whatever `tenant` says; an admin's may be for others.",
        ),
        Route::List => (
            "List jobs",
            "The tenant's own, or all for an admin: those that have not ended, the oldest first; then those that have, the \
             last first.",
        ),
        Route::Show => (
            "Say how a job stands",
            "Its state, how far it is, what was made, and what went wrong. A job that is done stays so when its output is deleted: \
             `deleted_ms` says since when, and there is no `result`.",
        ),
        Route::Cancel => {
            ("Stop a job", "It may still end as done when it is at its very end. One that has ended stays as it is.")
        }
        Route::Retry => ("Take a failed job up again", "What is done stays done."),
        Route::Output => (
            "Give what was made",
            "An object of the result of a job that is done: a playlist, a segment, a file, a picture or the report. One `Range` is \
             given alone; several are not, nor one of a document of more than a MiB.",
        ),
        Route::Delete => (
            "Delete what was made",
            "All objects that a job which has ended has made and published, and nothing else under its output prefix: not what \
             another job has put there since. What is deleted already is deleted again; one that failed cannot be retried any \
             more. A request that is cut off can be sent again, and what it leaves is cleaned up after the grace of the farm.",
        ),
        Route::Events => (
            "Tell what becomes of jobs",
            "Server-sent events. `job` is the tenant's job as `/v1/jobs/{id}` has it: each that has not ended at first, and then \
             whichever changes, once a second at most, to its end. `workers` is what `/v1/workers` has, at first and then, when \
             it changes, every five seconds at most. The stream ends after an hour, and when its token is taken back.",
        ),
        Route::Workers => (
            "Say which workers there are",
            "What the workers of the farm said of themselves in the last half minute. No job is named.",
        ),
        Route::Encoders => (
            "Say what pictures are encoded with",
            "By class, what the workers have that were heard in the last half minute and take tasks. Devices are named once they \
             have passed a test.",
        ),
    }
}

fn parameters(route: Route, schemas: &mut Schemas) -> Vec<Value> {
    let in_path = |name: &str, text: &str, schema: Value, example: &str| json!({ "name": name, "in": "path", "required": true, "description": text, "schema": schema, "example": example });
    let mut id = || in_path("id", "The name of the job.", schemas.read::<JobId>(), JOB);
    match route {
        Route::Page | Route::Describe | Route::Submit | Route::Workers | Route::Encoders => Vec::new(),
        Route::Show | Route::Cancel | Route::Retry | Route::Delete => vec![id()],
        Route::Output => {
            let text = "Its key under the output prefix. Parts are set apart by `/`, which may be escaped.";
            vec![id(), in_path("path", text, json!({ "type": "string" }), keys::MASTER)]
        }
        Route::PageFile => {
            let names = FILES.map(|file| file.name);
            vec![in_path("file", "The name of the file.", json!({ "type": "string", "enum": names }), "app.js")]
        }
        Route::List => schemas.query::<Wanted>(),
        Route::Events => schemas.query::<Following>(),
    }
}

/// The body of what is submitted.
fn body(schemas: &mut Schemas) -> Value {
    let least = json!({
        "version": 1,
        "source": { "url": "https://tube.example/films/1.mp4" },
        "output": { "url": "s3://videos/films/1/" },
    });
    let more = json!({
        "version": 1,
        "id": JOB,
        "source": { "url": "https://tube.example/films/1.mp4", "headers": { "X-Purpose": "transcoding" } },
        "output": { "url": "s3://videos/films/1/", "layout": "single-file", "mp4": "each-rung" },
        "ladder": { "rungs": [{ "height": 720 }, { "height": 360, "video": { "codec": "h264", "quality": 25 } }] },
        "poster": { "height": 720 },
        "priority": 1,
    });
    let examples = json!({
        "least": { "summary": "All as usual, under a name that is made up", "value": least },
        "more": { "summary": "Some of what can be said", "value": more },
    });
    json!({ "required": true, "content": { (JSON): { "schema": schemas.read::<JobSpec>(), "examples": examples } } })
}

/// The answers when it is done.
fn done(route: Route, schemas: &mut Schemas) -> Vec<(StatusCode, Answer)> {
    let named = json!({ "id": JOB });
    match route {
        Route::Page => vec![(StatusCode::OK, of_kinds("The page.", &["text/html"]))],
        Route::PageFile => {
            vec![(StatusCode::OK, of_kinds("The file.", &["text/javascript", "text/css", "image/svg+xml"]))]
        }
        Route::Describe => vec![(StatusCode::OK, told("The description.", json!({ "type": "object" }), None))],
        Route::Submit => {
            let schema = schemas.sent::<Named>();
            let taken = |text| Answer { links: links(), ..told(text, schema.clone(), Some(named.clone())) };
            vec![
                (StatusCode::CREATED, taken("The job is stored and will be done.")),
                (StatusCode::OK, taken("The same was submitted before: nothing is done twice.")),
            ]
        }
        Route::List => {
            let jobs = json!({
                "jobs": [{ "id": JOB, "tenant": "tube.example", "state": "active", "since_ms": 1_767_225_600_000_u64 }],
                "next": null,
            });
            vec![(StatusCode::OK, told("A page of the list.", schemas.sent::<Page>(), Some(jobs)))]
        }
        Route::Show => {
            let status = json!({
                "id": JOB,
                "tenant": "tube.example",
                "state": "encoding",
                "source": "https://tube.example/films/1.mp4",
                "output": "s3://videos/films/1/",
                "progress": {
                    "tasks_done": 7,
                    "tasks_total": 16,
                    "media_done_ns": 240_000_000_000_u64,
                    "media_total_ns": 1_200_000_000_000_u64,
                },
            });
            vec![(StatusCode::OK, told("How it stands.", schemas.sent::<JobStatus>(), Some(status)))]
        }
        Route::Cancel | Route::Retry => {
            vec![(StatusCode::ACCEPTED, told("It is asked for.", schemas.sent::<Named>(), Some(named)))]
        }
        Route::Delete => vec![(StatusCode::OK, told("Nothing of it is left.", schemas.sent::<Named>(), Some(named)))],
        Route::Output => {
            let kinds = OUTPUTS.map(|kind| without_parameters(kind.media_type()));
            vec![(StatusCode::OK, of_kinds("All of it.", &kinds)), (StatusCode::PARTIAL_CONTENT, of_kinds("A range.", &kinds))]
        }
        Route::Events => vec![(StatusCode::OK, of_kinds("Events, one after another.", &["text/event-stream"]))],
        Route::Workers => {
            vec![(StatusCode::OK, told("Those that there are.", schemas.sent::<Crew>(), Some(crew())))]
        }
        Route::Encoders => {
            vec![(StatusCode::OK, told("What there is.", schemas.sent::<Equipment>(), Some(equipment())))]
        }
    }
}

/// An example of the workers of a farm.
fn crew() -> Value {
    json!({
        "workers": [{
            "id": "0123456789abcdef",
            "version": "0.1.0",
            "slots": 4,
            "running": 2,
            "draining": false,
            "devices": ["nvenc /dev/nvidia0"],
            "speed": 3.21,
        }],
    })
}

/// An example of what such workers encode with.
fn equipment() -> Value {
    json!({
        "classes": [
            {
                "class": "cpu",
                "workers": 1,
                "slots": 4,
                "codecs": [{ "codec": "h264", "workers": 1, "side_max": null, "sessions_max": null }],
            },
            {
                "class": "nvenc",
                "workers": 1,
                "slots": 4,
                "codecs": [{ "codec": "hevc", "workers": 1, "side_max": 4096, "sessions_max": 8 }],
            },
        ],
    })
}

/// What can be asked of a job that was submitted.
fn links() -> BTreeMap<&'static str, Value> {
    let link = |route: Route| {
        let job = json!({ "id": "$response.body#/id" });
        (route.name(), json!({ "operationId": route.name(), "parameters": job }))
    };
    BTreeMap::from([Route::Show, Route::Cancel, Route::Retry].map(link))
}

/// An answer that is no JSON of ours: text, or bytes of any kind.
fn of_kinds(text: &str, kinds: &[&'static str]) -> Answer {
    let content = |kind: &'static str| {
        let schema = if kind.starts_with("text/") { json!({ "type": "string" }) } else { json!({}) };
        (kind, Content { schema, example: None, examples: BTreeMap::new() })
    };
    let content = kinds.iter().copied().map(content).collect();
    Answer { description: text.to_owned(), content, links: BTreeMap::new() }
}

/// A media type alone, as descriptions have them.
fn without_parameters(kind: &'static str) -> &'static str {
    kind.split(';').next().unwrap_or(kind)
}

fn told(text: &str, schema: Value, example: Option<Value>) -> Answer {
    let content = Content { schema, example, examples: BTreeMap::new() };
    Answer { description: text.to_owned(), content: BTreeMap::from([(JSON, content)]), links: BTreeMap::new() }
}

/// The answers when it is not done: each is told by the very refusals that are sent.
fn refused(route: Route, schemas: &mut Schemas) -> BTreeMap<u16, Answer> {
    let mut by_status: BTreeMap<u16, Vec<Problem>> = BTreeMap::new();
    for problem in refusals(route).into_iter().map(Refusal::problem) {
        by_status.entry(problem.status).or_default().push(problem);
    }
    let schema = schemas.sent::<Problem>();
    let answer = |problems: Vec<Problem>| {
        let texts: Vec<String> = problems.iter().map(|problem| format!("`{}`: {}", problem.code, problem.detail)).collect();
        let examples = problems.iter().map(|problem| (problem.code.to_string(), json!({ "value": problem }))).collect();
        let content = Content { schema: schema.clone(), example: None, examples };
        Answer { description: texts.join("; "), content: BTreeMap::from([(PROBLEM, content)]), links: BTreeMap::new() }
    };
    by_status.into_iter().map(|(status, problems)| (status, answer(problems))).collect()
}

/// How a route may refuse, at least once for each status.
fn refusals(route: Route) -> Vec<Refusal> {
    let failure = |code, why: &str| Refusal::of(Failure::new(code, why));
    let mut all = vec![Refusal::too_many_requests(), Refusal::busy(), Refusal::late()];
    if !route.is_open() {
        all.push(Refusal::unauthorized());
    }
    if !route.is_open() && ![Route::Workers, Route::Encoders].contains(&route) {
        all.push(failure(Code::StorageUnavailable, "storage does not work now: try again later"));
        all.push(failure(Code::Internal, "what is stored cannot be understood: see the scheduler's log"));
    }
    match route {
        Route::Page | Route::Describe | Route::Workers | Route::Encoders => {}
        Route::PageFile => all.push(Refusal::no_page()),
        Route::Submit => all.extend([
            Refusal::invalid("segment_seconds: 31 is not from 1 to 30"),
            Refusal::of_body(StatusCode::REQUEST_TIMEOUT),
            Refusal::of_body(StatusCode::PAYLOAD_TOO_LARGE),
            Refusal::conflict(format!("id: job {JOB} was submitted before with another message")),
            Refusal::too_many_jobs(),
        ]),
        Route::List => all.push(Refusal::invalid("limit: 0 is not from 1 to 1000")),
        Route::Show | Route::Cancel => all.push(Refusal::no_job()),
        Route::Retry | Route::Delete => {
            all.extend([Refusal::no_job(), Refusal::conflict(format!("job {JOB} has not ended"))]);
        }
        Route::Output => {
            all.extend([Refusal::no_job(), Refusal::no_output(), Refusal::deleted(), Refusal::no_range()]);
        }
        Route::Events => all.push(Refusal::invalid("Failed to deserialize query string: unknown field `no`, expected `once`")),
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every object in a document.
    fn objects(value: &Value) -> Vec<&Map<String, Value>> {
        match value {
            Value::Object(object) => std::iter::once(object).chain(object.values().flat_map(objects)).collect(),
            Value::Array(list) => list.iter().flat_map(objects).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let description = description();
        let objects = objects(&description);
        let named: Vec<&str> = objects.iter().filter_map(|object| object.get("$ref")?.as_str()).collect();
        assert!(named.len() > 30, "{named:?}");
        for name in named {
            let place = name.strip_prefix('#').expect("in this document");
            assert!(description.pointer(place).is_some_and(Value::is_object), "{name}");
        }
        let known = Route::ALL.map(Route::name);
        let mut ids = objects.iter().filter_map(|object| object.get("operationId")?.as_str());
        assert!(ids.all(|id| known.contains(&id)));
    }

    #[test]
    fn what_is_both_read_and_sent_has_one_schema() {
        let mut schemas = Schemas::new();
        paths(&mut schemas);
        let (read, sent) = (schemas.read.definitions(), schemas.sent.definitions());
        let both: Vec<&String> = read.keys().filter(|name| sent.contains_key(*name)).collect();
        assert_eq!(both, ["JobId", "VideoCodec"]);
        assert!(both.iter().all(|name| read[*name] == sent[*name]));
    }

    #[test]
    fn examples_are_what_they_are_examples_of() {
        let description = description();
        let mut seen = 0;
        for content in objects(&description) {
            let Some(mut root) = content.get("schema").cloned() else { continue };
            root["components"] = description["components"].clone();
            let validator = jsonschema::validator_for(&root).expect("a schema");
            let named = content.get("examples").and_then(Value::as_object).into_iter().flat_map(Map::values);
            for example in named.map(|named| &named["value"]).chain(content.get("example")) {
                validator.validate(example).unwrap_or_else(|refused| panic!("{example}: {refused}"));
                seen += 1;
            }
        }
        assert!(seen > 20, "{seen} examples");
        let body = &description["paths"]["/v1/jobs"]["post"]["requestBody"]["content"][JSON];
        for example in body["examples"].as_object().expect("examples").values() {
            let spec: JobSpec = serde_json::from_value(example["value"].clone()).expect("a message");
            spec.check().expect("one that can be done");
        }
    }
}
