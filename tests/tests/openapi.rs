//! The API is what its description says: a running scheduler is asked by schemathesis what can be made up from the description,
//! rightly and wrongly, with a tenant's token. It never fails, answers nothing that is not described, and nothing of another
//! tenant's is touched. Streams of events are asked for here: whoever makes up requests waits for each to end, and they do not.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::Value;
use tests::farm::{Farm, TOKEN};
use tests::service::Service;
use tests::{process, shoal};

/// Longest time that the tools may take; on two cores it is some ten seconds.
const TOOL_LIMIT: Duration = Duration::from_secs(300);
/// Longest time of a command that asks the scheduler once.
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// The token of tenant A, which everything is asked with. Tenant B has the harness's usual one.
const A: &str = "the token of tenant a";
/// A's only job to begin with.
const OWN: &str = "own-1";
/// B's jobs. The first is named as the job of the description's examples.
const OTHERS: [&str; 2] = ["film-1", "film-2"];

/// What is looked at in each answer. Not whether all that fits the schema is taken: it cannot say what a tenant's places are.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                      negative_data_rejection,unsupported_method,allow_header_conformance,ignored_auth";

/// Answers that are sure to be among those that were given: of every route, to A about its own job and B's, and to nobody.
const GIVEN: [(&str, &[u16]); 12] = [
    ("/", &[200]),
    ("/page/{file}", &[200]),
    ("/v1/openapi.json", &[200]),
    ("/v1/jobs", &[200, 201, 400, 401, 405]),
    ("/v1/jobs/{id}", &[200, 401, 404, 405]),
    ("/v1/jobs/{id}/cancel", &[202, 401, 404, 405]),
    ("/v1/jobs/{id}/retry", &[404, 405]),
    ("/v1/jobs/{id}/output", &[401, 404, 405]),
    ("/v1/jobs/{id}/output/{*path}", &[404, 405]),
    (EVENTS, &[200, 400, 401, 405]),
    ("/v1/workers", &[200, 401, 405]),
    ("/v1/encoders", &[200, 401, 405]),
];

/// The route of streams.
const EVENTS: &str = "/v1/events";

/// A program of the environment that `make test-deps` makes.
fn tool(name: &str) -> Result<PathBuf> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/schemathesis/bin").join(name);
    ensure!(program.exists(), "{} is not there: run `make test-deps`", program.display());
    Ok(program.canonicalize()?)
}

/// A farm of two tenants, each with a place of its own.
fn two_tenants() -> Result<Farm> {
    let farm = Farm::new()?;
    let (a, b) = (farm.url("a/")?, farm.url("b/")?);
    farm.set_tenants(&format!(
        "[[tenants]]\nname = 'a'\ntoken = '{A}'\nplaces = ['{a}']\nmax_jobs = 100\n\
         [[tenants]]\nname = 'b'\ntoken = '{TOKEN}'\nplaces = ['{b}']\n"
    ))?;
    Ok(farm)
}

/// Submits a job that nobody will do.
fn submit(farm: &Farm, (tenant, token): (&str, &str), id: &str) -> Result<()> {
    let output = farm.url(&format!("{tenant}/{id}/"))?;
    let mut command = farm.command(&["submit", "https://tube.example/film.mp4", "--output", &output, "--id", id])?;
    command.env("SHOAL_TOKEN", token);
    shoal::run(command, ASK_LIMIT)?.success()?;
    Ok(())
}

/// How B's jobs stand, as B is told.
fn statuses(farm: &Farm) -> Result<Vec<Value>> {
    OTHERS.into_iter().map(|id| farm.run(&["status", id, "--json"]).map(|(_, status)| status)).collect()
}

/// All objects of B's jobs.
fn objects(farm: &Farm) -> Result<BTreeMap<String, Bytes>> {
    let is_others = |key: &String| key.starts_with("b/") || key.split('/').any(|part| OTHERS.contains(&part));
    let keys = farm.keys("")?.into_iter().filter(is_others);
    keys.map(|key| farm.object(&key)?.with_context(|| format!("{key} is listed and not there")).map(|object| (key, object)))
        .collect()
}

/// The settings of schemathesis: whose token is sent, and words to make use of. Every job that there is is named, many messages
/// are such as are taken, and whoever would be called at the end of a job is nobody.
fn settings(farm: &Farm) -> Result<String> {
    let [first, second] = OTHERS;
    let output = farm.url("a/made-up/")?;
    Ok(format!(
        r#"headers = {{ Authorization = "Bearer {A}" }}
[dictionaries]
jobs = {{ values = ["{OWN}", "{first}", "{second}"] }}
outputs = {{ values = ["{output}"] }}
sources = {{ values = ["https://tube.example/film.mp4"] }}
calls = {{ values = ["http://127.0.0.1:9/"] }}
[parameters]
"path.id" = {{ dictionary = "jobs", probability = 0.8 }}
"body.id" = {{ dictionary = "jobs", probability = 0.5 }}
"body.output.url" = {{ dictionary = "outputs", probability = 0.9 }}
"body.source.url" = {{ dictionary = "sources", probability = 0.9 }}
"body.notify.url" = {{ dictionary = "calls", probability = 1.0 }}
"#
    ))
}

/// Has schemathesis ask for all that is described: examples, limits of every field, what is drawn by lot, and one thing after the
/// other about the same job.
fn ask_everything(farm: &Farm) -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("schemathesis.toml"), settings(farm)?)?;
    let mut command = Command::new(tool("schemathesis")?);
    command
        .current_dir(folder.path())
        .envs([("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")])
        .args(["--config-file", "schemathesis.toml", "run", "--no-color", "--checks", CHECKS])
        .args(["--seed", "1", "--max-examples", "100", "--no-shrink", "--generation-database", "none"])
        .args(["--suppress-health-check", "all", "--warnings", "off", "--request-timeout", "60", "--exclude-path", EVENTS])
        .arg(format!("http://{}/v1/openapi.json", farm.api()));
    let done = process::run(&mut command, TOOL_LIMIT)?;
    ensure!(done.status.success(), "{}\n{}\n{}", done.text(), done.stderr, farm.logs());
    Ok(())
}

/// Asks for events, once and wrongly.
fn ask_for_events(farm: &Farm) -> Result<()> {
    let bearer = format!("Authorization: Bearer {A}\r\n");
    let bearer = bearer.as_str();
    for (method, query, header, status) in [
        ("GET", "?once=true", bearer, 200),
        ("HEAD", "", bearer, 200),
        ("GET", "?once=maybe", bearer, 400),
        ("GET", "?always=true", bearer, 400),
        ("GET", "?once=true", "", 401),
        ("POST", "", bearer, 405),
    ] {
        let mut socket = TcpStream::connect(farm.api())?;
        socket.set_read_timeout(Some(ASK_LIMIT))?;
        let head = format!("{method} {EVENTS}{query} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{header}\r\n");
        socket.write_all(head.as_bytes())?;
        let mut said = String::new();
        socket.read_to_string(&mut said).with_context(|| format!("{method} {EVENTS}{query} does not end"))?;
        ensure!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {EVENTS}{query}: {said}");
        ensure!(status != 200 || said.contains("content-type: text/event-stream"), "{said}");
        ensure!(OTHERS.iter().all(|id| !said.contains(id)), "B's jobs are told of: {said}");
    }
    Ok(())
}

/// Whether enough was asked for, and nothing went wrong.
fn look_at_the_answers(scheduler: &Service) -> Result<()> {
    let given = |label: &str| scheduler.series("shoal_http_requests_total", label).context("no metrics");
    for (route, statuses) in GIVEN {
        for status in statuses {
            let count = given(&format!("route=\"{route}\",status=\"{status}\""))?;
            ensure!(count > 0.0, "{route} was never answered {status}");
        }
    }
    let failed = given("status=\"5")?;
    ensure!(failed == 0.0, "{failed} requests failed: {}", scheduler.log());
    Ok(())
}

#[test]
fn the_api_is_what_its_description_says_and_touches_nothing_of_another_tenant() -> Result<()> {
    let mut farm = two_tenants()?;
    let scheduler = farm.scheduler()?;
    submit(&farm, ("a", A), OWN)?;
    for id in OTHERS {
        submit(&farm, ("b", TOKEN), id)?;
    }
    // There are no workers: so they stay.
    farm.until("B's jobs wait for a worker", || Ok(statuses(&farm)?.iter().all(|job| job["state"] == "waiting")))?;
    let (stood, before) = (statuses(&farm)?, objects(&farm)?);
    ensure!(before.keys().any(|key| key.ends_with("/spec.json")), "{:?}", before.keys());
    ask_everything(&farm)?;
    ask_for_events(&farm)?;
    look_at_the_answers(&scheduler)?;
    let stands = statuses(&farm)?;
    ensure!(stands == stood, "B's jobs are not as they were: {stood:?} {stands:?}\n{}", farm.logs());
    ensure!(objects(&farm)? == before, "objects of B's jobs are not as they were: {:?}", before.keys());
    let logs = farm.logs();
    ensure!(!logs.contains(A), "a token stands in a log:\n{logs}");
    Ok(())
}

#[test]
fn the_description_is_openapi() -> Result<()> {
    let description = scheduler::api::description();
    let example = &description["paths"]["/v1/jobs/{id}"]["get"]["parameters"][0]["example"];
    ensure!(example == OTHERS[0], "{example} is the job of examples, and not one of B's");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("openapi.json");
    fs::write(&file, description.to_string())?;
    let mut command = Command::new(tool("openapi-spec-validator")?);
    let done = process::run(command.args(["--schema", "3.1"]).arg(&file), TOOL_LIMIT)?;
    ensure!(done.status.success(), "{}\n{}", done.text(), done.stderr);
    Ok(())
}
