//! The job message as others write it: the examples are read, mistakes are refused by name, and the published schema says the
//! same as the parser.

use std::fs;
use std::path::{Path, PathBuf};

use farm::broker::{Broker, Queue};
use farm::job::JobSpec;
use farm::{Code, Failure};
use serde_json::{Value, json};

const UPDATE: &str = "UPDATE_SCHEMA";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn schema() -> Value {
    schemars::schema_for!(JobSpec).to_value()
}

/// What the farm makes of a message that comes by way of a broker.
async fn read(message: &Value) -> Result<JobSpec, Failure> {
    let broker = Broker::local();
    broker.publish(Queue::Jobs, message).await?;
    let delivery = broker.consume(Queue::Jobs).await?.next().await?;
    let spec: JobSpec = delivery.read()?;
    spec.check()?;
    Ok(spec)
}

fn examples() -> Vec<(PathBuf, Value)> {
    let listing = fs::read_dir(file("examples")).expect("farm/examples is there");
    let mut paths: Vec<_> = listing.map(|item| item.expect("listed").path()).collect();
    paths.sort();
    let parsed = |path: &PathBuf| serde_json::from_str(&fs::read_to_string(path).expect("read")).expect("JSON");
    paths.into_iter().map(|path| (path.clone(), parsed(&path))).collect()
}

fn minimal() -> Value {
    let (_, example) = examples().into_iter().find(|(path, _)| path.ends_with("minimal.json")).expect("minimal.json");
    example
}

/// The minimal message with something put in, named by a JSON pointer; objects on the way are made.
fn with(pointer: &str, value: Value) -> Value {
    let mut message = minimal();
    let mut place = &mut message;
    for part in pointer.split('/').skip(1) {
        if place.is_null() {
            *place = json!({});
        }
        place = &mut place[part];
    }
    *place = value;
    message
}

#[test]
fn the_schema_is_the_one_of_the_types() {
    let path = file("job.schema.json");
    let current = format!("{}\n", serde_json::to_string_pretty(&schema()).expect("JSON"));
    if std::env::var_os(UPDATE).is_some() {
        fs::write(&path, &current).expect("job.schema.json is written");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == current,
        "farm/job.schema.json is not that of the types: run `{UPDATE}=1 cargo test -p farm --test job_message`"
    );
}

#[tokio::test]
async fn every_example_is_accepted_and_comes_back_as_it_was() {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    let examples = examples();
    assert!(examples.len() >= 3, "{} examples", examples.len());
    for (path, message) in examples {
        let spec = read(&message).await.unwrap_or_else(|refused| panic!("{}: {refused}", path.display()));
        let again = serde_json::to_value(&spec).expect("JSON");
        assert_eq!(read(&again).await, Ok(spec), "{}", path.display());
        validator.validate(&message).unwrap_or_else(|refused| panic!("{}: the schema refuses: {refused}", path.display()));
        validator
            .validate(&again)
            .unwrap_or_else(|refused| panic!("{}: the schema refuses what we write: {refused}", path.display()));
    }
}

#[tokio::test]
async fn a_message_may_leave_out_what_has_a_default() {
    let spec = read(&minimal()).await.expect("accepted");
    assert_eq!(spec, JobSpec::new(spec.source.url.clone(), spec.output.url.clone()));
}

/// Where a value is put, the value, and what the refusal must name.
fn mistakes() -> Vec<(&'static str, Value, &'static str)> {
    let rung = |video: Value| json!([{ "height": 720, "video": video }]);
    vec![
        ("/qualty", json!(1), "qualty"),
        ("/source/uri", json!("https://tube.example/7"), "uri"),
        ("/output/format", json!("dash"), "format"),
        ("/audio/bitrate", json!(1), "bitrate"),
        ("/ladder/auto/min_height", json!(1), "min_height"),
        ("/ladder/heights", json!([720]), "heights"),
        ("/ladder/rungs", json!([{ "height": 720, "width": 1280 }]), "width"),
        ("/ladder/rungs", rung(json!({ "crf": 23 })), "crf"),
        ("/notify", json!({ "url": "https://tube.example/", "secret": "s", "retries": 3 }), "retries"),
        ("/notify", json!({ "url": "https://tube.example/" }), "secret"),
        ("/version", json!(2), "version"),
        ("/version", json!(0), "version"),
        ("/version", json!("1"), "u32"),
        ("/source", json!({}), "url"),
        ("/source/url", json!(7), "string"),
        ("/source/headers", json!({ "Range": 1 }), "string"),
        ("/output/layout", json!("one-file"), "one-file"),
        ("/ladder/rungs", rung(json!({ "codec": "theora" })), "theora"),
        ("/audio/codec", json!("opus"), "opus"),
        ("/audio/loudness", json!("loud"), "loud"),
        ("/id", json!(""), "job id"),
        ("/id", json!("a/b"), "a/b"),
        ("/id", json!("../x"), "../x"),
        ("/id", json!(".hidden"), ".hidden"),
        ("/id", json!("x".repeat(129)), "job id"),
        ("/tenant", json!(""), "tenant"),
        ("/tenant", json!("x".repeat(254)), "tenant"),
        ("/segment_seconds", json!(0), "segment_seconds"),
        ("/segment_seconds", json!(31), "segment_seconds"),
        ("/segment_seconds", json!(4.5), "4.5"),
        ("/segment_seconds", json!(-4), "-4"),
        ("/chunk_seconds", json!(0), "chunk_seconds"),
        ("/chunk_seconds", json!(3601), "chunk_seconds"),
        ("/poster/height", json!(15), "poster: height 15"),
        ("/poster/width", json!(640), "width"),
        ("/storyboard/columns", json!(0), "grid of 0x10"),
        ("/storyboard/rows", json!(65), "grid of 10x65"),
        ("/storyboard/height", json!(0), "storyboard: height 0"),
        ("/storyboard/height", json!(721), "storyboard: height 721"),
        ("/storyboard/seconds", json!(0), "storyboard: seconds 0"),
        ("/storyboard", json!({ "exact_width": 0, "seconds": 1 }), "storyboard: exact_width 0"),
        ("/storyboard", json!({ "exact_width": 721, "seconds": 1 }), "storyboard: exact_width 721"),
        ("/storyboard", json!({ "exact_width": 160 }), "needs seconds"),
        ("/make", json!("dash"), "dash"),
        ("/make", json!("stills"), "make: for stills"),
        ("/priority", json!("high"), "priority"),
        ("/ladder/auto/max_height", json!(15), "max_height"),
        ("/ladder/auto/max_height", json!(4321), "max_height"),
        ("/ladder/rungs", json!([]), "0 rungs"),
        ("/ladder/rungs", json!(vec![json!({ "height": 720 }); 17]), "17 rungs"),
        ("/ladder/rungs", json!([{ "height": 15 }]), "15"),
        ("/ladder/rungs", json!([{ "height": 4321 }]), "4321"),
        ("/ladder/rungs", json!([{}]), "height"),
        ("/ladder/rungs", json!([{ "height": 720, "fps": "0" }]), "frame rate"),
        ("/ladder/rungs", json!([{ "height": 720, "fps": "30fps" }]), "30fps"),
        ("/ladder/rungs", json!([{ "height": 720, "fps": 30 }]), "string"),
        ("/ladder/rungs", rung(json!({ "quality": 0 })), "quality 0"),
        ("/ladder/rungs", rung(json!({ "quality": 51 })), "quality 51"),
        ("/ladder/rungs", rung(json!({ "bitrate": 7999 })), "7999"),
        ("/ladder/rungs", rung(json!({ "max_bitrate": 400_000_001 })), "400000001"),
        ("/source/url", json!("not a url"), "URL"),
        ("/ladder/rungs", rung(json!({ "quality": 23, "bitrate": 1_000_000 })), "not both"),
        ("/ladder/rungs", rung(json!({ "bitrate": 1_000_000, "max_bitrate": 900_000 })), "max_bitrate"),
        ("/ladder", json!({ "auto": {}, "rungs": [{ "height": 720 }] }), "ladder"),
        ("/tenant", json!("two\nlines"), "tenant"),
    ]
}

/// Mistakes that a schema cannot see: they lie between two fields, or in the grammar of a text.
const BEYOND_THE_SCHEMA: [&str; 7] =
    ["URL", "not both", "max_bitrate", "frame rate", "30fps", "needs seconds", "make: for stills"];

#[tokio::test]
async fn a_mistake_is_refused_by_name() {
    for (pointer, value, named) in mistakes() {
        let message = with(pointer, value);
        let refused = read(&message).await.expect_err(&format!("accepted: {message}"));
        assert_eq!(refused.code, Code::InvalidRequest);
        assert!(refused.message.contains(named), "{message}: '{named}' is not in: {refused}");
    }
    for (pointer, value, path) in [
        ("/segment_seconds", json!("4"), "segment_seconds"),
        ("/source/headers", json!({ "Range": 1 }), "source.headers.Range"),
        ("/ladder/rungs", json!([{ "height": 720 }, { "height": "480" }]), "ladder.rungs[1].height"),
    ] {
        let refused = read(&with(pointer, value)).await.expect_err(path);
        assert!(refused.message.contains(path), "'{path}' is not in: {refused}");
    }
    for field in ["version", "source", "output"] {
        let mut message = minimal();
        message.as_object_mut().expect("an object").remove(field);
        let refused = read(&message).await.expect_err(field);
        assert!(refused.message.contains(field), "{refused}");
    }
}

#[test]
fn the_schema_refuses_what_the_parser_refuses() {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    for (pointer, value, named) in mistakes().into_iter().filter(|(_, _, named)| !BEYOND_THE_SCHEMA.contains(named)) {
        let message = with(pointer, value);
        assert!(!validator.is_valid(&message), "the schema accepts {message} ('{named}')");
    }
}

#[tokio::test]
async fn limits_are_accepted_by_both() {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    for (pointer, value) in [
        ("/id", json!("x".repeat(128))),
        ("/id", json!("-._A9")),
        ("/tenant", json!("x".repeat(253))),
        ("/tenant", json!("Über uns")),
        ("/segment_seconds", json!(1)),
        ("/segment_seconds", json!(30)),
        ("/chunk_seconds", json!(1)),
        ("/chunk_seconds", json!(3600)),
        ("/chunk_seconds", json!(null)),
        ("/priority", json!(i32::MIN)),
        ("/ladder/auto", json!({})),
        ("/ladder/auto/max_height", json!(16)),
        ("/ladder/auto/max_height", json!(4320)),
        ("/ladder/rungs", json!(vec![json!({ "height": 16, "fps": "1000" }); 16])),
        ("/ladder/rungs", json!([{ "height": 4320, "video": {} }])),
        ("/ladder/rungs", json!([{ "height": 720, "video": { "quality": 1, "max_bitrate": 8000 } }])),
        ("/ladder/rungs", json!([{ "height": 720, "video": { "quality": 50, "max_bitrate": 400_000_000 } }])),
        ("/ladder/rungs", json!([{ "height": 720, "video": { "bitrate": 8000, "max_bitrate": 8000 } }])),
        ("/audio", json!({})),
        ("/make", json!("hls")),
        ("/storyboard", json!({ "exact_width": 1, "height": 17, "seconds": 1 })),
        ("/storyboard", json!({ "exact_width": 192, "height": 1, "seconds": 1 })),
        ("/storyboard", json!({ "exact_width": 720, "height": 720, "seconds": 3600 })),
    ] {
        let message = with(pointer, value);
        let spec = read(&message).await.unwrap_or_else(|refused| panic!("{message}: {refused}"));
        validator.validate(&message).unwrap_or_else(|refused| panic!("{message}: the schema refuses: {refused}"));
        assert_eq!(read(&serde_json::to_value(&spec).expect("JSON")).await, Ok(spec));
    }
}

#[tokio::test]
async fn secrets_are_not_shown() {
    let (_, message) = examples().into_iter().find(|(path, _)| path.ends_with("every-field.json")).expect("every-field.json");
    let mut message = message;
    message["source"]["url"] = json!("https://user:hidden@tube.example/7?token=hidden#hidden");
    message["source"]["headers"] = json!({ "Authorization": "Bearer hidden" });
    message["notify"]["secret"] = json!("hidden");
    message["notify"]["url"] = json!("https://tube.example/?key=hidden");
    let shown = format!("{:?}", read(&message).await.expect("accepted"));
    assert!(!shown.contains("hidden") && shown.contains("Authorization"), "{shown}");
}
