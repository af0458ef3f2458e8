//! Edits on a farm of processes, whose sources are all in storage: done by several workers, and though one is killed.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use farm::job::{JobId, Layout};
use serde_json::{Value, json};
use tests::farm::{Farm, JOBS, Job, LIMIT};
use tests::hls::Presentation;
use tests::s3::Moment;

use super::pictures::still;
use super::{BEEP_OFF_NS, Part, clip, faults};

/// Sends a job with this edit, in chunks of a segment each.
fn send(farm: &Farm, job: &Job, edit: &Value) -> Result<()> {
    let mut message = farm.message(job)?;
    message["edit"] = edit.clone();
    message["segment_seconds"] = 2.into();
    message["chunk_seconds"] = 2.into();
    farm.broker.publish(JOBS, message.to_string().as_bytes())
}

/// Waits until it is done, and fetches what was made.
fn fetched(farm: &Farm, job: &Job) -> Result<tempfile::TempDir> {
    let result = farm.ended(job)?;
    ensure!(result["done"].is_object(), "{}: {result}\n{}", job.id, farm.logs());
    farm.download(job)
}

#[test]
fn all_sources_come_from_storage_and_a_worker_that_is_killed_changes_nothing() -> Result<()> {
    let mut farm = Farm::new()?;
    let _scheduler = farm.scheduler()?;
    let mut workers = vec![farm.worker()?, farm.worker()?];
    let (folder, main, other) = (tempfile::tempdir()?, clip("25", 6), clip("25", 2));
    let logo = still(folder.path(), "logo.png", (40, 40), |_, _| [250, 200, 0, 200])?;
    farm.put("others/film.mp4", fs::read(other.file()?)?)?;
    farm.put("others/logo.png", fs::read(logo)?)?;
    let [film, logo] = ["others/film.mp4", "others/logo.png"].map(|key| farm.url(key).map(|url| json!({ "url": url })));
    let (film, logo) = (film?, logo?);
    let edit = json!([
        {"remove": [{"from": 1, "to": 2}]}, {"overlay": {"source": logo, "height": 0.2, "top": 0.7}},
        {"before": film}, {"after": film}, {"sound": {"url": farm.url("source/quiet.mp4")?}},
    ]);
    let job = |id: &str| -> Result<Job> {
        Ok(Job { id: JobId::try_from(id.to_owned())?, clip: main.clone(), layout: Layout::Segments, height: 180 })
    };
    let (quiet, film) = (job("quiet")?, job("film")?);
    send(&farm, &quiet, &edit)?;
    let wanted = fetched(&farm, &quiet)?;
    // The sound is that of the main video's file, from its start on.
    let all = Part::of(&main, 0..150);
    let mut parts = [(&other, 0..50), (&main, 0..25), (&main, 50..150), (&other, 0..50)]
        .map(|(clip, frames)| Part::of(clip, frames).beeping(&[]));
    parts[0].beeps_ns = all.beeps_ns;
    let [picture, sound] = ["v180/index.m3u8", "a0/index.m3u8"].map(|name| wanted.path().join(name));
    assert_eq!(faults(&picture, Some(&sound), (main.rate, BEEP_OFF_NS), &parts)?, Vec::<String>::new());
    // The third of five chunks, in its first segment.
    let hold = farm.s3.hold(Moment::Before, |operation, path| {
        operation.writes() && path.contains("/film/v180/") && path.ends_with("/00002.m4s")
    });
    send(&farm, &film, &edit)?;
    let caught = hold.wait(LIMIT).with_context(|| farm.logs())?;
    let unlucky = workers.iter().position(|worker| worker.owns(caught.peer)).context("nobody sent it")?;
    workers.swap_remove(unlucky).kill()?;
    hold.break_off();
    let _other = farm.worker()?;
    let made = fetched(&farm, &film)?;
    let (wanted, made) = (Presentation::read(wanted.path())?, Presentation::read(made.path())?);
    ensure!(wanted.renditions.len() == made.renditions.len(), "{:?}", made.master);
    for (a, b) in wanted.renditions.iter().zip(&made.renditions) {
        let same = a.segments.len() == b.segments.len() && a.segments.iter().zip(&b.segments).all(|(a, b)| a.bytes == b.bytes);
        ensure!(same && a.init == b.init, "{} is another", a.name());
    }
    Ok(())
}
