//! What is given out as it is: the status page to everybody, and what was made to whom it was made for.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use farm::job::{Mp4, PosterSpec};
use farm::task::TaskId;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{ADMIN, Act, Farm, LIMIT, Limits, ONE, Running, TWO, message, open, text};

/// Status, head and bytes of an object; these headers go along.
async fn object(running: &Running, path: &str, token: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, Vec<u8>) {
    let mut asked = running.client.get(format!("{}/v1/jobs/{path}", running.base)).bearer_auth(token);
    for (name, value) in headers {
        asked = asked.header(*name, *value);
    }
    let answer = timeout(LIMIT, asked.send()).await.expect("in time").expect("an answer");
    let (status, head) = (answer.status().as_u16(), answer.headers().clone());
    (status, head, answer.bytes().await.expect("a body").to_vec())
}

/// A farm with a job of tenant one that is done, and its API.
async fn done() -> (Farm, Running) {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let running = Running::start(&farm, open()).await;
    let mut spec = message(&farm, "film");
    (spec.output.mp4, spec.poster) = (Mp4::EachRung, Some(PosterSpec::default()));
    assert_eq!(running.post("/v1/jobs", ONE, text(&spec)).await.0, 201);
    running.reach("film", ONE, "done").await;
    let closed = async {
        while farm.active().await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, closed).await.expect("closed");
    (farm, running)
}

#[tokio::test]
async fn the_page_and_its_files_are_for_everybody_and_say_what_a_browser_may_do_with_them() {
    let farm = Farm::new();
    let (running, _) = Running::bare(&farm, Limits::USUAL).await;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page/app.js", "text/javascript; charset=utf-8"),
        ("/page/app.css", "text/css; charset=utf-8"),
        ("/page/hls.min.js", "text/javascript; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
    ] {
        let page = format!("{}{path}", running.base);
        for asked in [running.client.get(&page), running.client.head(&page)] {
            let answer = timeout(LIMIT, asked.send()).await.expect("in time").expect("an answer");
            let head = answer.headers().clone();
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
            for (name, value) in [
                ("content-type", kind),
                ("x-content-type-options", "nosniff"),
                ("referrer-policy", "no-referrer"),
                ("cache-control", "no-cache"),
            ] {
                assert_eq!(head[name], value, "{path}");
            }
            let policy = head["content-security-policy"].to_str().expect("text");
            assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; "), "{policy}");
            assert!(policy.ends_with("; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"), "{policy}");
        }
        let (status, said) = running.send(running.client.post(&page)).await;
        assert_eq!((status, &said["code"]), (405, &json!("method_not_allowed")), "{path}");
    }
    for path in ["/page/index.html", "/page/app.js/", "/page/", "/page", "/page/..%2Fpage.rs", "/page/%FF", "/app.js"] {
        let (status, said) = running.send(running.client.get(format!("{}{path}", running.base))).await;
        assert_eq!((status, &said["code"]), (404, &json!("not_found")), "{path}");
    }
    running.stop().await;
}

#[tokio::test]
async fn what_was_made_is_given_whole_to_its_tenant_and_nothing_that_stands_beside_it() {
    let (farm, running) = done().await;
    for name in ["mine.txt", "v240/index.m3u8.bak", "v240/0123456789abcdef/00000.m4s"] {
        farm.put(name).await;
    }
    let (mut given, mut refused) = (Vec::new(), Vec::new());
    for key in farm.outputs().await {
        let (status, head, content) = object(&running, &format!("film/output/{key}"), ONE, &[]).await;
        if status == 200 {
            assert_eq!(content, farm.output.get(&key).await.expect("it is there"), "{key}");
            assert_eq!(head["content-length"], content.len().to_string().as_str(), "{key}");
            for (name, value) in
                [("cache-control", "private, max-age=60"), ("accept-ranges", "bytes"), ("x-content-type-options", "nosniff")]
            {
                assert_eq!(head[name], value, "{key}");
            }
            let (status, of_head, none) = head_of(&running, &key).await;
            assert_eq!((status, &of_head["content-length"], none.len()), (200, &head["content-length"], 0), "{key}");
            given.push((key, head["content-type"].to_str().expect("text").to_owned()));
        } else {
            assert_eq!(status, 404, "{key}");
            refused.push(key);
        }
    }
    assert_eq!(refused, ["mine.txt", "v240/0123456789abcdef/00000.m4s", "v240/index.m3u8.bak"]);
    for (end, kind) in [
        ("master.m3u8", "application/vnd.apple.mpegurl"),
        ("report.json", "application/json"),
        ("i-frames.m3u8", "application/vnd.apple.mpegurl"),
        ("init.mp4", "video/mp4"),
        ("download.mp4", "video/mp4"),
        ("poster.jpg", "image/jpeg"),
        (".m4s", "iso.segment"),
    ] {
        assert!(given.iter().any(|(key, told)| key.ends_with(end) && told.ends_with(kind)), "no {end} in {given:?}");
    }
    for path in [
        "film/output/../spec.json",
        "film/output/..%2F..%2Fstate%2Fjobs%2Ffilm%2Fspec.json",
        "film/output/..%2Fstate%2Fterm%2F0",
        "film/output/v240",
        "film/output/v240/",
        "film/output/v240%2F",
        "film/output/%2Fmaster.m3u8",
        "film/output//master.m3u8",
        "film/output/MASTER.m3u8",
        "film/output/master.m3u8%00",
        "film/output/%FF",
        "film/output/",
        "none/output/master.m3u8",
    ] {
        assert_eq!(object(&running, path, ONE, &[]).await.0, 404, "{path}");
    }
    assert_eq!(object(&running, "film/output", ONE, &[]).await.0, 405, "it can only be deleted");
    assert_eq!(object(&running, "film/output/v240%2Findex.m3u8", ONE, &[]).await.0, 200, "escaped, it is the same");
    for (token, status) in [(TWO, 404), (ADMIN, 200), ("no token of anybody", 401)] {
        let (given, _) = running.get("/v1/jobs/film/output/master.m3u8", token).await;
        assert_eq!(given, status, "{token}");
    }
    running.stop().await;
}

/// The head of an object.
async fn head_of(running: &Running, key: &str) -> (u16, HeaderMap, Vec<u8>) {
    let asked = running.client.head(format!("{}/v1/jobs/film/output/{key}", running.base)).bearer_auth(ONE);
    let answer = timeout(LIMIT, asked.send()).await.expect("in time").expect("an answer");
    let (status, head) = (answer.status().as_u16(), answer.headers().clone());
    (status, head, answer.bytes().await.expect("no body").to_vec())
}

#[tokio::test]
async fn one_range_is_given_alone_and_what_is_beyond_the_end_is_refused() {
    let (farm, running) = done().await;
    let outputs = farm.outputs().await;
    let segment = outputs.iter().find(|key| key.starts_with("v240/") && key.ends_with(".m4s")).expect("a segment");
    for key in [segment.as_str(), "master.m3u8"] {
        let whole = farm.output.get(key).await.expect("it is there").to_vec();
        let path = format!("film/output/{key}");
        for (range, wanted) in [
            ("bytes=0-0".to_owned(), 0..1),
            ("bytes=5-9".to_owned(), 5..10),
            ("bytes=9-".to_owned(), 9..whole.len()),
            ("bytes=-3".to_owned(), whole.len() - 3..whole.len()),
            (format!("bytes=1-{}", whole.len() + 5), 1..whole.len()),
        ] {
            let (status, head, content) = object(&running, &path, ONE, &[("range", range.as_str())]).await;
            assert_eq!((status, content.as_slice()), (206, &whole[wanted.clone()]), "{key}: {range}");
            let told = format!("bytes {}-{}/{}", wanted.start, wanted.end - 1, whole.len());
            assert_eq!(head["content-range"], told.as_str());
            assert_eq!(head["content-length"], wanted.len().to_string().as_str());
        }
        for all in ["bytes=0-1,3-4", "bytes=4-3", "lines=0-1", "bytes=x"] {
            let (status, _, content) = object(&running, &path, ONE, &[("range", all)]).await;
            assert_eq!((status, &content), (200, &whole), "{key}: {all}");
        }
        let (status, _, content) = object(&running, &path, ONE, &[("range", "bytes=0-0"), ("if-range", "\"a\"")]).await;
        assert_eq!((status, content.len()), (200, whole.len()));
        let beyond = format!("bytes={}-", whole.len());
        let (status, head, content) = object(&running, &path, ONE, &[("range", beyond.as_str())]).await;
        let problem: Value = serde_json::from_slice(&content).expect("a problem");
        assert_eq!((status, &problem["code"]), (416, &json!("range_not_satisfiable")), "{key}");
        assert_eq!(head["content-range"], format!("bytes */{}", whole.len()).as_str());
    }
    running.stop().await;
}

#[tokio::test]
async fn a_job_that_is_not_done_or_whose_result_was_replaced_has_no_output() {
    let mut farm = Farm::new();
    farm.add_worker(|message| match message.task {
        TaskId::Video(1) if message.job.as_str() == "bad" => Act::Fail(farm::Code::Undecodable),
        TaskId::Video(1) if message.job.as_str() == "slow" => Act::Vanish,
        _ => Act::Do,
    });
    let running = Running::start(&farm, open()).await;
    for (id, state) in [("bad", "failed"), ("first", "done"), ("slow", "encoding")] {
        let mut spec = message(&farm, id);
        let place = if id == "first" { "out".to_owned() } else { format!("out-{id}") };
        spec.output.url = url::Url::from_directory_path(farm.folder.path().join(place)).expect("a URL");
        assert_eq!(running.post("/v1/jobs", ADMIN, text(&spec)).await.0, 201);
        running.reach(id, ADMIN, state).await;
    }
    // What is in its place now is another's: it is not known whose.
    farm.put("v240/index.m3u8").await;
    for id in ["bad", "slow", "first"] {
        let (status, said) = running.get(&format!("/v1/jobs/{id}/output/master.m3u8"), ADMIN).await;
        assert_eq!((status, &said["code"]), (404, &json!("not_found")), "{id}");
    }
    running.stop().await;
}

#[tokio::test]
async fn what_is_gone_from_storage_is_not_there() {
    let (farm, running) = done().await;
    let outputs = farm.outputs().await;
    let segment = outputs.into_iter().find(|key| key.ends_with(".m4s")).expect("a segment");
    assert_eq!(object(&running, &format!("film/output/{segment}"), ONE, &[]).await.0, 200);
    farm.output.delete(std::slice::from_ref(&segment)).await.expect("deleted");
    assert_eq!(object(&running, &format!("film/output/{segment}"), ONE, &[]).await.0, 404);
    assert_eq!(head_of(&running, &segment).await.0, 404);
    running.stop().await;
}
