//! One command with source and output in S3: the result is as right as on a disk, also when the server goes wrong.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use farm::storage::{Kind, Storage};
use tests::clip::Clip;
use tests::s3::{Fault, Operation, S3Server};
use tests::{check, shoal};

const FLAGS: &[&str] = &["--ladder", "360,240", "--chunk-seconds", "4"];

fn clip() -> Clip {
    Clip::new("25", 20)
}

/// A server that holds the clip as `in/a clip.mp4`.
async fn server() -> Result<S3Server> {
    let server = S3Server::start()?;
    server.storage("in/")?.put("a clip.mp4", std::fs::read(clip().file()?)?.into(), Kind::VideoMp4).await?;
    Ok(server)
}

/// The command that transcodes the clip to `out/`.
fn command(server: &S3Server, flags: &[&str]) -> Result<std::process::Command> {
    let mut command = shoal::transcode(server.url("in/a clip.mp4")?.as_str(), Path::new(server.url("out/")?.as_str()), flags)?;
    command.envs(server.environment());
    Ok(command)
}

/// Fetches what is stored under a prefix into a folder, and checks it.
async fn check(server: &S3Server) -> Result<()> {
    let (storage, folder) = (server.storage("out/")?, tempfile::tempdir()?);
    for entry in storage.list("").await? {
        ensure!(!entry.key.starts_with(".shoal"), "state is left over: {}", entry.key);
        let path = folder.path().join(&entry.key);
        std::fs::create_dir_all(path.parent().context("a folder")?)?;
        std::fs::write(path, storage.get(&entry.key).await?)?;
    }
    ensure!(check::faults(folder.path(), &clip())? == Vec::<String>::new(), "{:?}", check::faults(folder.path(), &clip())?);
    ensure!(check::sync_faults(folder.path(), 0)? == Vec::<String>::new());
    Ok(())
}

async fn markers(state: &Storage) -> Result<usize> {
    Ok(state.list("jobs/").await?.iter().filter(|entry| entry.key.contains("/done/")).count())
}

#[tokio::test]
async fn source_and_output_in_s3_give_a_right_ladder_in_both_layouts() -> Result<()> {
    for layout in ["segments", "single-file"] {
        let server = server().await?;
        let flags = [FLAGS, &["--json", "--layout", layout]].concat();
        let run = shoal::run(command(&server, &flags)?, shoal::RUN_LIMIT)?.success().context(layout)?;
        let told: serde_json::Value = serde_json::from_slice(&run.stdout)?;
        ensure!(told["master"] == "s3://farm/out/master.m3u8", "{told}");
        check(&server).await.context(layout)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_goes_wrong_in_every_way_changes_nothing_in_the_result() -> Result<()> {
    let server = server().await?;
    // What a server without conditional writes does (Garage), and much else.
    server.inject(Operation::PutNew, "", 1, Fault::AnswerLost);
    server.inject(Operation::PutNew, "/out/", 1000, Fault::Unconditional);
    server.inject(Operation::Put, ".m4s", 3, Fault::AnswerLost);
    server.inject(Operation::Put, ".m4s", 3, Fault::RequestCut);
    server.inject(Operation::Put, ".m3u8", 1, Fault::Refused(503, "SlowDown"));
    server.inject(Operation::Get, "/in/", 2, Fault::AnswerCut);
    server.inject(Operation::Get, "/in/", 2, Fault::Slow(10, Duration::from_millis(100)));
    server.inject(Operation::Get, "/out/", 3, Fault::Refused(503, "SlowDown"));
    server.inject(Operation::List, "", 2, Fault::Refused(500, "InternalError"));
    shoal::run(command(&server, FLAGS)?, shoal::RUN_LIMIT)?.success()?;
    check(&server).await?;
    ensure!(server.faults_left() < 1000, "not every fault happened");
    Ok(())
}

#[tokio::test]
async fn a_killed_run_goes_on_from_the_state_in_the_bucket() -> Result<()> {
    let server = server().await?;
    let state = server.storage("out/.shoal/")?;
    let running = shoal::start(command(&server, &[FLAGS, &["--slots", "1"]].concat())?)?;
    let began = Instant::now();
    // The probe's, and a chunk's.
    while markers(&state).await? < 2 {
        ensure!(began.elapsed() < shoal::RUN_LIMIT, "no chunk is done");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(running);
    let done = markers(&state).await?;
    let wholes =
        |server: &S3Server| server.seen().iter().filter(|seen| seen.path.contains("/done/") && is_write(seen.operation)).count();
    let before = wholes(&server);
    shoal::run(command(&server, FLAGS)?, shoal::RUN_LIMIT)?.success()?;
    check(&server).await?;
    // Probe, five chunks and the sound, of which what was done is not done again.
    ensure!(wholes(&server) - before == 7 - done, "{} markers were there, {} were written", done, wholes(&server) - before);
    Ok(())
}

fn is_write(operation: Operation) -> bool {
    matches!(operation, Operation::Put | Operation::PutNew)
}

#[tokio::test]
async fn a_source_that_is_replaced_in_mid_job_ends_it() -> Result<()> {
    let server = server().await?;
    let (state, sources) = (server.storage("out/.shoal/")?, server.storage("in/")?);
    let content = sources.get("a clip.mp4").await?;
    let mut command = command(&server, &[FLAGS, &["--slots", "1", "--json"]].concat())?;
    let running = std::thread::spawn(move || tests::process::run(&mut command, shoal::RUN_LIMIT));
    let began = Instant::now();
    while markers(&state).await? < 1 {
        ensure!(began.elapsed() < shoal::RUN_LIMIT, "it is not probed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The same picture for whoever reads on, but another version.
    sources.put("a clip.mp4", [&content[..], b"\0\0\0\x08free"].concat().into(), Kind::VideoMp4).await?;
    let run = running.join().map_err(|_| anyhow::anyhow!("the run panicked"))??;
    let told = shoal::told(&run.stdout)?;
    ensure!(told.code == "source_changed", "{told:?}");
    ensure!(server.storage("out/")?.list("").await?.is_empty(), "something is left behind");
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_a_bucket_is_said_at_once() -> Result<()> {
    let server = server().await?;
    for (input, output, code) in [
        ("s3://farm/in/none.mp4", "s3://farm/out/", "source_unreadable"),
        ("s3://nowhere/in/a.mp4", "s3://farm/out/", "source_unreadable"),
        ("s3://farm/in/a clip.mp4", "s3://nowhere/out/", "storage_unwritable"),
        ("s3://farm/in/a clip.mp4", "s3://fa/", "invalid_request"),
    ] {
        let mut command = shoal::transcode(input, Path::new(output), &["--json"])?;
        command.envs(server.environment());
        let began = Instant::now();
        let run = shoal::run(command, shoal::RUN_LIMIT)?;
        let told = shoal::told(&run.stdout)?;
        ensure!(told.code == code && !told.message.contains("secret"), "{told:?}");
        ensure!(began.elapsed() < Duration::from_secs(10), "{input} to {output}: {:?}", began.elapsed());
    }
    let run =
        shoal::run(shoal::transcode("s3://farm/in/a clip.mp4", Path::new("s3://farm/out/"), &["--json"])?, shoal::RUN_LIMIT)?;
    let told = shoal::told(&run.stdout)?;
    ensure!(told.code == "storage_unwritable" && told.message.contains("AWS_ACCESS_KEY_ID is not set"), "{told:?}");
    Ok(())
}
