//! A farm of processes: scheduler and workers as they are run, over a real RabbitMQ and a real S3 server. Killed in mid-job,
//! it loses nothing and does little twice.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::check;
use tests::clip::Clip;
use tests::farm::{Farm, TOKEN};

/// How many executions wrote media of a rendition.
fn executions(output: &Path, rendition: &str) -> Result<usize> {
    let folders = std::fs::read_dir(output.join(rendition))?.flatten().filter(|entry| entry.path().is_dir());
    Ok(folders.map(|entry| entry.file_name()).collect::<BTreeSet<_>>().len())
}

#[test]
fn a_job_goes_through_a_farm_of_processes_and_each_stops_when_told() -> Result<()> {
    let mut farm = Farm::new()?;
    let (code, found) = farm.run(&["doctor", "--json"])?;
    ensure!(code == Some(0) && found["ok"] == true, "{found}");
    let mut scheduler = farm.scheduler()?;
    let mut workers = [farm.worker()?, farm.worker()?];
    let clip = Clip::new("25", 12).size(426, 240);
    let (input, output) = (clip.file()?, farm.folder.path().join("out"));
    let (input, to) = (input.to_str().context("a path")?, output.to_str().context("a path")?);
    let submit = ["submit", input, "--output", to, "--id", "film", "--chunk-seconds", "4", "--wait", "--json"];
    let (code, job) = farm.run(&submit)?;
    ensure!(code == Some(0) && job["state"] == "done", "{code:?} {job}\n{}", farm.logs());
    ensure!(check::faults(&output, &clip)?.is_empty(), "{:?}", check::faults(&output, &clip)?);
    let (_, listed) = farm.run(&["status", "--json"])?;
    ensure!(listed["jobs"][0]["id"] == "film" && listed["jobs"][0]["tenant"] == "me", "{listed}");
    for (arguments, code) in [(["status", "none", "--json"], 2), (["retry", "film", "--json"], 2)] {
        let (got, told) = farm.run(&arguments)?;
        ensure!(got == Some(code) && told["error"]["code"] == "invalid_request", "{arguments:?}: {got:?} {told}");
    }
    for worker in &mut workers {
        ensure!(worker.stop(Duration::from_secs(30))?.success(), "a worker that drains:\n{}", farm.logs());
    }
    ensure!(scheduler.stop(Duration::from_secs(30))?.success(), "a scheduler that stops:\n{}", farm.logs());
    let (code, told) = farm.run(&["status", "film", "--json"])?;
    ensure!(code == Some(3) && told["error"]["code"] == "scheduler_unavailable", "{told}");
    let secrets = [farm.broker.url(), TOKEN.to_owned(), "AWS_SECRET".to_owned()];
    ensure!(!secrets.iter().any(|secret| farm.logs().contains(secret.as_str())), "a secret in the logs");
    Ok(())
}

#[test]
fn schedulers_and_workers_that_are_killed_lose_nothing_and_do_little_twice() -> Result<()> {
    let mut farm = Farm::new()?;
    let mut first = farm.scheduler()?;
    let (mut unlucky, _steady) = (farm.worker()?, farm.worker()?);
    let clip = Clip::new("25", 30).size(640, 360);
    let (input, output) = (clip.file()?, farm.folder.path().join("out"));
    let (input, to) = (input.to_str().context("a path")?, output.to_str().context("a path")?);
    let submit = ["submit", input, "--output", to, "--id", "film", "--chunk-seconds", "4", "--json"];
    ensure!(farm.run(&submit)?.0 == Some(0), "{}", farm.logs());
    farm.until("3 tasks are done", || {
        let (_, status) = farm.run(&["status", "film", "--json"])?;
        Ok(status["progress"]["tasks_done"].as_u64().is_some_and(|done| done >= 3))
    })?;
    first.kill()?;
    let _second = farm.scheduler()?;
    unlucky.kill()?;
    let _other = farm.worker()?;
    let (code, job) = farm.run(&["status", "film", "--follow", "--json"])?;
    ensure!(code == Some(0) && job["state"] == "done", "{code:?} {job}\n{}", farm.logs());
    // What the killed worker had begun is left to the janitor, who is not waited for here.
    let faults = check::faults(&output, &clip)?;
    ensure!(faults.iter().all(|fault| fault.contains("named by no playlist")), "{faults:?}");
    let made = executions(&output, "v360")?;
    ensure!((8..=9).contains(&made), "{made} executions for 8 chunks and one killed worker:\n{}", farm.logs());
    Ok(())
}
