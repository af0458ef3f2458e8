//! The farm's page in a browser, over a running scheduler: jobs are submitted, watched, played, cancelled and retried there, by
//! mouse and by keyboard, on a desk and on a phone, and a thousand of them do not make it slow.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use farm::job::JobId;
use farm::{Life, keys};
use serde_json::{Value, json};
use tests::clip::Clip;
use tests::corpus;
use tests::farm::{Farm, TOKEN, Ways};
use tests::visitor::visit;

/// Jobs that are looked at together, and how many of them are cancelled meanwhile.
const JOBS: u32 = 1000;
const CANCELLED: u32 = 300;
/// Most rows of them that the page draws.
const ROWS_MAX: u64 = 100;
/// Longest task of the page's thread in ms of its CPU time: from there on people feel that they wait.
const TASK_MS_MAX: f64 = 200.0;

/// A job as somebody fills it in: its source and its output are named after it.
fn job(farm: &Farm, id: &str) -> Result<Value> {
    Ok(json!({"id": id, "source": farm.url(&format!("source/{id}.mp4"))?, "output": farm.url(&format!("out/{id}/"))?}))
}

/// Whether the film was seen to go on until it was done, and plays at each of its levels.
fn was_watched_and_played(seen: &Value) -> Result<()> {
    let progress: Vec<f64> = seen["progress"].as_array().context("no progress")?.iter().filter_map(Value::as_f64).collect();
    ensure!(progress.iter().any(|share| *share > 0.0 && *share < 1.0), "its progress was not seen: {progress:?}");
    let played = &seen["played"];
    ensure!(played["error"] == "", "{played}");
    ensure!(played["time"].as_f64() > Some(1.0) && played["frames"].as_u64() > Some(20), "{played}");
    // It is chosen by itself, or one of the two.
    ensure!(played["levels"].as_array().map(Vec::len) == Some(3), "{played}");
    ensure!(played["playing"].as_array().map(Vec::len) == Some(2), "{played}");
    ensure!(played["narrow"] == json!([]), "on a phone: {played}");
    ensure!(played["focus"] == "Play film", "closed, the player leaves the focus elsewhere: {played}");
    Ok(())
}

#[test]
fn a_film_is_submitted_watched_and_played_and_a_job_that_failed_is_taken_up_again_by_keyboard() -> Result<()> {
    let mut farm = Farm::new()?;
    let (_scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    let film = fs::read(Clip::new("25", 40).file()?)?;
    farm.put("source/film.mp4", film.clone())?;
    farm.put("source/bad.mp4", b"this is no film".to_vec())?;
    let wanted = json!({"film": job(&farm, "film")?, "bad": job(&farm, "bad")?});
    let seen = visit(&farm, "film", &wanted)?;
    ensure!(seen["refused"].as_array().map(Vec::len) == Some(1), "of a wrong token: {seen}");
    was_watched_and_played(&seen)?;
    let is_told = |seen: &Value| seen["reason"].as_str().is_some_and(|reason| reason.ends_with("[not_media]"));
    ensure!(is_told(&seen), "the reason is not told: {seen}");
    ensure!(seen["hostile"] == json!({"shown": true, "images": 0, "title": "Shoal"}), "text was taken for markup: {seen}");
    // The token is kept for the tab, and gone with whoever signs out.
    ensure!(seen["kept"] == json!([["shoal-token"], [], ""]) && seen["left"] == json!([[], 0]), "{seen}");
    farm.put("source/bad.mp4", film)?;
    let seen = visit(&farm, "retry", &wanted)?;
    ensure!(is_told(&seen) && seen["after"] == true, "the reason is told no longer than it holds: {seen}");
    ensure!(seen["inside"] == "source" && seen["back"] == "submit-open" && seen["focus"] == "bad", "the focus: {seen}");
    let second = keys::result(&JobId::try_from("bad".to_owned())?, Life::FIRST.next());
    let result = farm.object(&format!("state/{second}"))?.context("there was no second life")?;
    ensure!(serde_json::from_slice::<Value>(&result)?["done"].is_object(), "it ended otherwise");
    Ok(())
}

#[test]
fn a_thousand_jobs_stay_smooth_fit_a_phone_and_are_reached_by_keyboard() -> Result<()> {
    let mut farm = Farm::new()?;
    // There are no workers: so the jobs stay. The state is in a folder, as the S3 server of the tests looks through all objects to
    // list some.
    let state = tempfile::tempdir()?;
    let ways = Ways { state: Some(format!("file://{}/", state.path().display())), ..Ways::default() };
    // Who looks at it looks after all tenants.
    let other = "[[tenants]]\nname = 'tube'\ntoken = 'the token of another tenant'\n";
    farm.set_tenants(&format!("[[tenants]]\nname = 'me'\ntoken = '{TOKEN}'\nadmin = true\n{other}"))?;
    let _scheduler = farm.scheduler_by(&ways)?;
    let source = "https://tube.example/film.mp4";
    let wanted = json!({"jobs": JOBS, "cancelled": CANCELLED, "source": source, "output": farm.url("out/")?});
    let seen = visit(&farm, "crowd", &wanted)?;
    corpus::say(&format!(
        "{JOBS} jobs on the page: longest task {} ms of CPU time; as seen: {}",
        seen["task_ms"], seen["smooth"]
    ));
    // The measure itself: a task that is too long is seen to be.
    ensure!(seen["stalled_ms"].as_f64() > Some(TASK_MS_MAX), "a task of 1.5 s was not seen: {seen}");
    ensure!(seen["task_ms"].as_f64().is_some_and(|longest| longest > 0.0 && longest < TASK_MS_MAX), "{seen}");
    ensure!(seen["rows"].as_u64().is_some_and(|rows| rows > 0 && rows <= ROWS_MAX), "{seen}");
    ensure!(seen["narrow"] == json!({"page": [], "form": []}), "on a phone: {:#}", seen["narrow"]);
    // A quarter is the other tenant's, of those that were cancelled too; the very first one is.
    let queues: Vec<String> = serde_json::from_value(seen["queues"].clone())?;
    let queues: Vec<Vec<&str>> = queues.iter().map(|row| row.split_whitespace().collect()).collect();
    ensure!(queues == [["me", "525", "0"], ["tube", "174", "0"]], "{queues:?}");
    // Who asks for it by mistake only has to press Enter again.
    ensure!(seen["cancelled"]["first"] == "Keep it", "{seen}");
    Ok(())
}

#[test]
fn the_pages_player_is_the_one_that_results_are_tried_with() -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tried = fs::read(here.join("player/node_modules/hls.js/dist/hls.min.js")).context("run `make test-deps`")?;
    let served = fs::read(here.join("../scheduler/src/api/page/hls.min.js"))?;
    ensure!(tried == served, "the page has another version of hls.js than tests/player/package.json");
    Ok(())
}
