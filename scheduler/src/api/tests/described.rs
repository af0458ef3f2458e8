//! Whether the API is what its description says: every answer of these tests is held against it.

use std::sync::LazyLock;

use axum::http::{HeaderMap, header};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Farm, LIMIT, Limits, ONE, Running};
use crate::api::answer::{JSON, PROBLEM};
use crate::api::description;

/// The description, but that nothing may be said that it does not name.
static STRICT: LazyLock<Value> = LazyLock::new(|| {
    let mut strict = description();
    close(&mut strict["components"]["schemas"]);
    strict
});

/// Has every object in schemas hold what is named alone.
fn close(value: &mut Value) {
    if let Value::Object(object) = value {
        if object.get("properties").is_some_and(Value::is_object) {
            object.entry("additionalProperties").or_insert(json!(false));
        }
        object.values_mut().for_each(close);
    }
}

/// What is described for a method on a path.
fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let given: Vec<&str> = path.split('/').collect();
    let is_it = |described: &str| {
        let parts: Vec<&str> = described.split('/').collect();
        // A path is all that follows.
        let is_long = parts.last() == Some(&"{path}") && parts.len() < given.len();
        (is_long || parts.len() == given.len())
            && parts.iter().zip(&given).all(|(part, given)| part == given || part.starts_with('{'))
    };
    let paths = STRICT["paths"].as_object().expect("paths");
    paths.iter().find(|(described, _)| is_it(described.as_str())).and_then(|(_, methods)| methods.get(method))
}

/// The media type of an answer, without its parameters.
fn kind_of(head: &HeaderMap) -> &str {
    let kind = head.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default()
}

/// Whether an answer is JSON.
pub(super) fn is_json(head: &HeaderMap) -> bool {
    [JSON, PROBLEM].contains(&kind_of(head))
}

/// Holds an answer against the description: method and path, status and head, and the body.
pub(super) fn check((method, path): (&str, &str), (status, head): (u16, &HeaderMap), body: &Value) {
    let kind = kind_of(head);
    let mut schema = match operation(method, path) {
        Some(operation) => operation["responses"][status.to_string()]["content"][kind]["schema"].clone(),
        None if [404, 405].contains(&status) && kind == PROBLEM => json!({ "$ref": "#/components/schemas/Problem" }),
        None => Value::Null,
    };
    assert!(schema.is_object(), "{method} {path}: {status}, {kind} is not described: {body}");
    assert_eq!(kind == PROBLEM, status >= 400, "{method} {path}: {status}, {kind}: {body}");
    assert!(kind != PROBLEM || body["status"] == status, "{method} {path}: {status}: {body}");
    // What the schema refers to stands where it says.
    schema["components"] = STRICT["components"].clone();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    validator.validate(body).unwrap_or_else(|refused| panic!("{method} {path}: {status}: {refused}: {body}"));
}

#[tokio::test]
async fn what_is_described_is_answered_and_nothing_else() {
    let farm = Farm::new();
    let (running, _) = Running::bare(&farm, Limits::USUAL).await;
    let paths = STRICT["paths"].as_object().expect("paths");
    assert!(paths.len() > 4, "{paths:?}");
    for (path, known) in paths {
        let path = path.replace("{id}", "none").replace("{file}", "app.js").replace("{path}", "master.m3u8");
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS] {
            let asked = running.client.request(method.clone(), format!("{}{path}", running.base));
            let (status, said) = running.send(asked).await;
            let wanted = match known.get(method.as_str().to_lowercase()) {
                None => 405,
                Some(known) if known["security"] == json!([]) => 200,
                Some(_) => 401,
            };
            assert_eq!(status, wanted, "{method} {path}: {said}");
        }
        let (status, said) = running.get(&format!("{path}/"), ONE).await;
        assert_eq!(status, 404, "{path}/: {said}");
    }
    running.stop().await;
}

#[tokio::test]
async fn the_description_is_for_everybody() {
    let farm = Farm::new();
    let (running, _) = Running::bare(&farm, Limits::USUAL).await;
    let page = format!("{}/v1/openapi.json", running.base);
    assert_eq!(running.send(running.client.get(&page)).await, (200, description()));
    let head = timeout(LIMIT, running.client.head(&page).send()).await.expect("in time").expect("an answer");
    assert_eq!(head.headers()["content-type"], "application/json");
    assert_eq!(head.headers()["content-length"], description().to_string().len().to_string().as_str());
    running.stop().await;
}
