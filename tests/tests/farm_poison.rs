//! Poison: messages that cannot be understood, and a source of which every child dies. Each ends with its reason within its
//! attempts, and the good jobs around it are untouched.

use anyhow::{Context as _, Result, ensure};
use farm::broker::DeadLetter;
use farm::job::{JobId, Layout};
use farm::{Life, keys};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::farm::{Farm, JOBS, Job, LIMIT};
use tests::process::until;
use tests::s3::{Moment, Operation};

/// Most attempts at a task.
const ATTEMPTS_MAX: usize = 3;

/// Waits for the letters on the dead queue that are about `what`.
fn letters(farm: &Farm, what: &str, count: usize) -> Result<Vec<DeadLetter>> {
    let mut found = Vec::new();
    until(&format!("{count} dead letters about {what}"), LIMIT, || {
        let letters = farm.broker.peek("shoal.v1.dead")?;
        let letters = letters.iter().filter_map(|body| serde_json::from_slice::<DeadLetter>(body).ok());
        found = letters.filter(|letter| letter.body.contains(what)).collect();
        Ok(found.len() >= count)
    })?;
    ensure!(found.len() == count, "{found:?}");
    Ok(found)
}

fn tiny(id: &str) -> Job {
    let job = Job::new(id, 4, Layout::Segments);
    Job { clip: tests::clip::Clip { audio: false, ..job.clip.clone() }, ..job }
}

#[test]
fn messages_that_cannot_be_understood_are_dead_letters_with_their_reason() -> Result<()> {
    let mut farm = Farm::new()?;
    let _services = [farm.scheduler()?, farm.worker()?];
    let good = tiny("good");
    let unknown = {
        let mut message = farm.message(&good.named("poison-field"))?;
        message["colour"] = "green".into();
        message.to_string()
    };
    let cases = [
        ("poison-cut", r#"{"version":1,"id":"poison-cut","#.to_owned(), "message cannot be understood"),
        ("poison-field", unknown, "colour"),
        (
            "poison-url",
            r#"{"version":1,"id":"poison-url","source":{"url":"nowhere"},"output":{"url":"s3://b/c/"}}"#.to_owned(),
            "source.url",
        ),
    ];
    for (_, message, _) in &cases {
        farm.broker.publish(JOBS, message.as_bytes())?;
    }
    farm.broker.publish(JOBS, b"\xff\xfe\x00poison-bytes")?;
    farm.send(&good)?;
    farm.ends_well(&good, 0)?;
    for (what, message, reason) in cases {
        let letter = letters(&farm, what, 1)?.pop().context("a letter")?;
        ensure!(letter.reason.contains(reason) && letter.body == message, "{letter:?}");
    }
    letters(&farm, "poison-bytes", 1)?;
    Ok(())
}

#[test]
fn a_source_of_which_every_child_dies_ends_failed_and_twenty_jobs_around_it_are_done() -> Result<()> {
    let mut farm = Farm::new()?;
    let _scheduler = farm.scheduler()?;
    let workers = [farm.worker()?, farm.worker()?];
    let good: Vec<Job> = (0..20).map(|number| tiny(&format!("good-{number:02}"))).collect();
    let poison = tiny("poison");
    let reads = |farm: &Farm| {
        farm.s3.hold(Moment::Before, |operation, path| operation == Operation::Get && path.ends_with("/source/poison.mp4"))
    };
    let mut hold = reads(&farm);
    for (number, job) in good.iter().enumerate() {
        if number == 5 {
            farm.send(&poison)?;
        }
        farm.send(job)?;
    }
    // A child that reads the poison dies of it.
    let mut deaths = 0;
    let result = format!("state/{}", keys::result(&poison.id, Life::FIRST));
    farm.until("the poison has ended", || {
        if let Some(caught) = hold.caught() {
            let victim = workers.iter().find(|worker| worker.owns(caught.peer)).context("a worker reads it")?;
            for child in victim.children() {
                kill(Pid::from_raw(child.cast_signed()), Signal::SIGKILL)?;
                deaths += 1;
            }
            hold = reads(&farm);
        }
        Ok(farm.object(&result)?.is_some())
    })?;
    let ended = farm.ended(&poison)?;
    ensure!(ended["failed"]["failure"]["code"] == "child_crashed", "{ended}");
    ensure!(deaths == ATTEMPTS_MAX, "{deaths} children died");
    let records = farm.keys(&format!("state/{}", keys::fail_prefix(&poison.id, Life::FIRST)))?;
    ensure!(records.len() == ATTEMPTS_MAX, "{records:?}");
    ensure!(farm.keys("out/poison/")?.is_empty(), "something is left of it: {:?}", farm.keys("out/poison/")?);
    for job in &good {
        farm.ends_well(job, 0)?;
        let records = farm.keys(&format!("state/{}", keys::fail_prefix(&job.id, Life::FIRST)))?;
        ensure!(records.is_empty(), "{records:?}");
    }
    Ok(())
}

#[test]
fn a_job_that_failed_is_a_dead_letter_with_its_reason() -> Result<()> {
    let mut farm = Farm::new()?;
    let _services = [farm.scheduler()?, farm.worker()?];
    let poison = tiny("poison");
    let message = farm.message(&poison)?;
    farm.put("source/poison.mp4", b"this is no film".to_vec())?;
    farm.broker.publish(JOBS, message.to_string().as_bytes())?;
    let ended = farm.ended(&poison)?;
    let reason = ended["failed"]["failure"]["message"].as_str().context("a reason")?.to_owned();
    let letter = letters(&farm, JobId::as_str(&poison.id), 1)?.pop().context("a letter")?;
    ensure!(letter.reason.contains(&reason), "{letter:?} instead of {reason}");
    Ok(())
}
