//! Many jobs by one command: all are handed in and followed at once, each to a place of its own, and the command ends as the worst
//! of them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::clip::Clip;
use tests::farm::{Farm, LIMIT};
use tests::{check, process, shoal};

/// Copies of a clip below a folder, under these names.
fn copies(folder: &Path, clip: &Clip, names: &[&str]) -> Result<Vec<PathBuf>> {
    let copy = |name: &&str| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::copy(clip.file()?, &path)?;
        Ok::<_, anyhow::Error>(path)
    };
    names.iter().map(copy).collect()
}

/// The jobs that were told, and a text of each.
fn texts<'a>(told: &'a Value, key: &str) -> BTreeSet<&'a str> {
    told["jobs"].as_array().into_iter().flatten().filter_map(|job| job[key].as_str()).collect()
}

#[test]
fn many_go_through_a_farm_at_once_and_the_same_command_again_finds_them_done() -> Result<()> {
    let mut farm = Farm::new()?;
    let (_scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    let (clip, folder) = (Clip::new("25", 6).size(426, 240), tempfile::tempdir()?);
    copies(folder.path(), &clip, &["a/film.mp4", "b/film.mp4", "b/The other [1].mp4"])?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("list"), format!("# films\n\n{}\n{}\n", path("b/*.mp4"), path("b/The other [1].mp4")))?;
    let (input, list, output) = (path("a/film.mp4"), path("list"), path("out"));
    let flags = ["--output", &output, "--ladder", "240", "--id", "set", "--wait", "--json"];
    let submit = [&["submit", &input, "--from", &list][..], &flags].concat();
    let (code, told) = farm.run(&submit)?;
    ensure!(code == Some(0) && texts(&told, "state") == BTreeSet::from(["done"]), "{code:?} {told}\n{}", farm.logs());
    let (ids, places) = (texts(&told, "id"), texts(&told, "output"));
    ensure!(ids.len() == 3 && ids.contains("set-The-other-1"), "one job for each source, however often it is named: {told}");
    ensure!(ids.iter().all(|id| id.starts_with("set-")) && places.len() == 3, "{told}");
    for id in &ids {
        let made = folder.path().join("out").join(id.trim_start_matches("set-"));
        ensure!(check::faults(&made, &clip)?.is_empty(), "{}: {:?}", made.display(), check::faults(&made, &clip)?);
    }
    let again = shoal::run(farm.command(&submit)?, LIMIT)?.success()?.text();
    let lines = again.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    let (all, taken) = lines.split_last().context("nothing is told")?;
    ensure!(texts(all, "id") == ids, "{again}");
    ensure!(taken.iter().filter_map(|job| job["id"].as_str()).collect::<BTreeSet<_>>() == ids && taken.len() == 3, "{again}");
    Ok(())
}

#[test]
fn one_that_fails_of_many_is_told_and_decides_how_the_command_ends() -> Result<()> {
    let mut farm = Farm::new()?;
    let (_scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    let (clip, folder) = (Clip::new("25", 6).size(426, 240), tempfile::tempdir()?);
    copies(folder.path(), &clip, &["good.mp4"])?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("text.mp4"), "no media")?;
    let (good, bad, output) = (path("good.mp4"), path("text.mp4"), path("out"));
    let submit = ["submit", &good, &bad, "--output", &output, "--ladder", "240", "--wait"];
    let (code, told) = farm.run(&[&submit[..], &["--json"]].concat())?;
    ensure!(code == Some(1) && texts(&told, "state") == BTreeSet::from(["done", "failed"]), "{code:?} {told}\n{}", farm.logs());
    let people = shoal::run(farm.command(&submit)?, LIMIT)?;
    ensure!(people.status.code() == Some(1), "{}", people.stderr);
    ensure!(people.text().contains("out/good/master.m3u8"), "{}", people.text());
    ensure!(people.stderr.contains("(not_media)") && people.stderr.contains("1 of 2 jobs have no result"), "{}", people.stderr);
    Ok(())
}

#[test]
fn a_list_from_standard_input_is_handed_in_and_told_line_by_line() -> Result<()> {
    let mut farm = Farm::new()?;
    let scheduler = farm.scheduler()?;
    let output = farm.url("out/")?;
    let list = "https://tube.example/a.mp4\n# not this\nhttps://tube.example/b.mp4\n";
    let submitted = |arguments: &[&str]| {
        let mut command = farm.command(&[&["submit", "--output", &output][..], arguments].concat())?;
        process::run_fed(&mut command, LIMIT, |input| input.write_all(list.as_bytes()))
    };
    let run = submitted(&["-"])?.success()?;
    let text = run.text();
    let lines: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let sources: Vec<&str> = lines.iter().map(|(_, source)| *source).collect();
    // Each is told as soon as it is taken.
    ensure!(
        BTreeSet::from_iter(sources) == BTreeSet::from(["https://tube.example/a.mp4", "https://tube.example/b.mp4"]),
        "{text}"
    );
    let ids: BTreeSet<&str> = lines.iter().map(|(id, _)| *id).collect();
    let (_, listed) = farm.run(&["status", "--json"])?;
    ensure!(texts(&listed, "id") == ids, "{listed} instead of {ids:?}");
    // Without a terminal there is nothing to watch on.
    let (code, watched) = farm.run(&["status", "--watch", "--json"])?;
    ensure!(code == Some(0) && texts(&watched, "id") == ids, "{watched}");
    let listed = shoal::run(farm.command(&["status", "--watch"])?, LIMIT)?.success()?;
    ensure!(ids.iter().all(|id| listed.text().contains(id)), "{}", listed.text());
    // Nothing is handed in when one of them cannot be.
    let refused = process::run_fed(
        &mut farm.command(&["submit", "--from", "-", "/nowhere/film.mp4", "--output", &output, "--json"])?,
        LIMIT,
        |input| input.write_all(list.as_bytes()),
    )?;
    ensure!(refused.status.code() == Some(1) && shoal::told(&refused.stdout)?.code == "source_unreadable", "{refused:?}");
    let (_, after) = farm.run(&["status", "--json"])?;
    ensure!(texts(&after, "id") == ids, "{after}");
    drop(scheduler);
    let away = submitted(&["--from", "-", "--json"])?;
    let told: Value = serde_json::from_slice(&away.stdout)?;
    ensure!(away.status.code() == Some(3) && texts(&told, "source").len() == 2, "{away:?}");
    ensure!(told["jobs"][1]["error"]["code"] == "scheduler_unavailable" && told["jobs"][1]["id"].is_null(), "{told}");
    Ok(())
}
