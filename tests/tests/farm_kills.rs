//! A farm whose processes are killed, frozen and doubled, at moments that are chosen to the request: every job is done once,
//! byte by byte as in an undisturbed run, and hardly anything is encoded again.
//!
//! `make conformance` runs this over Garage as well, where conditional writes are ignored.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use farm::job::Layout;
use farm::keys;
use farm::task::{TaskId, TaskMessage};
use tests::farm::{Farm, Job, LIMIT, Step, TASKS, Ways, undisturbed};
use tests::rabbit;
use tests::s3::{Caught, Hold, Moment, Operation};
use tests::service::Service;

/// Longest wait for what a process does once it is woken.
const SOON: Duration = Duration::from_secs(60);

/// Holds the next write of an object of the picture or of the state whose key ends so.
fn hold_write(farm: &Farm, moment: Moment, end: &str) -> Hold {
    let end = end.to_owned();
    farm.s3.hold(moment, move |operation, path| operation.writes() && path.ends_with(&end) && !path.contains("/a0/"))
}

/// Holds the next write that is this step.
fn hold_step(farm: &Farm, moment: Moment, (wanted, key): Step) -> Hold {
    let bucket_only = |path: &str| path.trim_matches('/').split('/').count() == 1;
    farm.s3.hold(moment, move |operation, path| {
        operation == wanted && key.as_ref().map_or_else(|| bucket_only(path), |key| path.ends_with(key))
    })
}

/// Which of these a request comes from.
fn asker(services: &mut Vec<Service>, caught: &Caught) -> Result<Service> {
    let at = services.iter().position(|service| service.owns(caught.peer)).with_context(|| format!("nobody sent {caught:?}"))?;
    Ok(services.swap_remove(at))
}

/// A broker that takes who is silent for 6 s for dead, so that a test need not wait long for that.
fn soon_dead(farm: &Farm) -> Ways {
    Ways { broker: Some(format!("{}?heartbeat=3", farm.broker.url())), ..Ways::default() }
}

#[test]
fn a_worker_that_is_killed_costs_at_most_the_chunk_it_was_at() -> Result<()> {
    let mut farm = Farm::new()?;
    let _scheduler = farm.scheduler()?;
    let mut workers = vec![farm.worker()?, farm.worker()?];
    // Half-way: at the third segment of five, from 0, and the marker of its chunk.
    for (moment, end) in [
        (Moment::Before, "/00002.m4s"),
        (Moment::After, "/00002.m4s"),
        (Moment::Before, "/done/video-00002"),
        (Moment::After, "/done/video-00002"),
    ] {
        let job = Job::new(&format!("film-{moment:?}-{}", end.len()), 20, Layout::Segments);
        let hold = hold_write(&farm, moment, end);
        farm.send(&job)?;
        let caught = hold.wait(LIMIT).with_context(|| farm.logs())?;
        asker(&mut workers, &caught)?.kill()?;
        hold.break_off();
        farm.nothing_half_made(&job)?;
        let stored_its_marker = end.contains("done") && moment == Moment::After;
        farm.ends_well(&job, usize::from(!stored_its_marker))?;
        workers.push(farm.worker()?);
    }
    Ok(())
}

/// Kills the scheduler at each of its writes in the life of one job.
fn killed_at_every_step(moment: Moment, job: &Job) -> Result<()> {
    let steps = undisturbed(job)?.steps(job);
    let names = |name: &str| steps.iter().any(|(_, key)| key.as_ref().is_some_and(|key| key.ends_with(name)));
    for name in
        ["spec.json", "active/0/film/1", "term/0", "plan-1.json", "seal.json", "v240/index.m3u8", "report.json", "master.m3u8"]
    {
        ensure!(names(name), "no step writes {name}: {steps:?}");
    }
    ensure!(
        names("result-1.json") && names("/told-1") && names("outbox/0/film/1") && steps.len() > 15,
        "steps are missing: {steps:?}"
    );
    let mut farm = Farm::new()?;
    // It declares the queues, so that there is one for the message.
    farm.scheduler()?.kill()?;
    let _worker = farm.worker()?;
    // What it writes when it starts, and then what it writes for the job. Some parts of it work side by side, so every write
    // that is left is held, and whichever come are those at which it is killed.
    let (start, life): (Vec<_>, Vec<_>) = steps.into_iter().partition(|(_, key)| key.as_deref() == Some("state/term/0"));
    for mut left in [start, life] {
        let is_life = left.iter().any(|(_, key)| key.as_ref().is_some_and(|key| key.ends_with("/spec.json")));
        if is_life {
            farm.send(job)?;
        }
        while !left.is_empty() {
            let holds: Vec<Hold> = left.iter().map(|step| hold_step(&farm, moment, step.clone())).collect();
            let mut scheduler = farm.scheduler()?;
            let mut at: Vec<Option<Caught>> = vec![None; left.len()];
            let look = |at: &mut Vec<Option<Caught>>| {
                at.iter_mut().zip(&holds).for_each(|(at, hold)| *at = at.take().or_else(|| hold.caught()));
                at.iter().flatten().count() > 0
            };
            farm.until(&format!("one of {left:?}"), || Ok(look(&mut at)))?;
            ensure!(at.iter().flatten().all(|caught| scheduler.owns(caught.peer)), "not all are the scheduler's: {at:?}");
            scheduler.kill()?;
            look(&mut at);
            holds.into_iter().for_each(Hold::break_off);
            farm.nothing_half_made(job).with_context(|| format!("killed {moment:?} {at:?}"))?;
            let mut caught = at.into_iter();
            left.retain(|_| caught.next().flatten().is_none());
        }
    }
    let _last = farm.scheduler()?;
    farm.ends_well(job, 0)
}

#[test]
fn a_scheduler_is_killed_before_each_of_its_writes() -> Result<()> {
    killed_at_every_step(Moment::Before, &Job::new("film", 12, Layout::Segments))
}

#[test]
fn a_scheduler_is_killed_after_each_of_its_writes() -> Result<()> {
    killed_at_every_step(Moment::After, &Job::new("film", 12, Layout::SingleFile))
}

#[test]
fn scheduler_and_worker_are_killed_together() -> Result<()> {
    let mut farm = Farm::new()?;
    let (mut scheduler, mut worker) = (farm.scheduler()?, farm.worker()?);
    let job = Job::new("film", 20, Layout::Segments);
    let hold = hold_write(&farm, Moment::Before, "/00002.m4s");
    farm.send(&job)?;
    hold.wait(LIMIT).with_context(|| farm.logs())?;
    scheduler.kill()?;
    worker.kill()?;
    hold.break_off();
    farm.nothing_half_made(&job)?;
    let _anew = (farm.worker()?, farm.scheduler()?);
    farm.ends_well(&job, 1)
}

#[test]
fn a_submission_whose_answer_was_lost_is_the_same_job_the_second_time() -> Result<()> {
    let mut farm = Farm::new()?;
    let _worker = farm.worker()?;
    let moments = [(Moment::Before, "/spec.json"), (Moment::After, "/spec.json"), (Moment::After, "/active/0/")];
    for (number, (moment, end)) in moments.into_iter().enumerate() {
        let job = Job::new(&format!("film-{number}"), 4, Layout::Segments);
        let message = farm.message(&job)?;
        let text = |field: &str| message[field]["url"].as_str().map(str::to_owned).context("a URL");
        let (source, output, rungs) = (text("source")?, text("output")?, message["ladder"]["rungs"].to_string());
        let (id, chunk) = (job.id.as_str(), ["--chunk-seconds", "4", "--ladder", &rungs, "--json"]);
        let submit = [&["submit", &source, "--output", &output, "--id", id][..], &chunk].concat();
        let mut scheduler = farm.scheduler()?;
        let name = job.id.to_string();
        let hold = farm.s3.hold(moment, move |operation, path| {
            operation.writes() && path.contains(&name) && (path.ends_with(end) || path.contains(end))
        });
        let (code, told) = std::thread::scope(|scope| {
            let submitting = scope.spawn(|| farm.run(&submit));
            let caught = hold.wait(LIMIT);
            let killed = scheduler.kill();
            let done = submitting.join().map_err(|_| anyhow::anyhow!("a panic"))?;
            let done = done?;
            caught.with_context(|| format!("{done:?}"))?;
            killed?;
            anyhow::Ok(done)
        })?;
        hold.break_off();
        ensure!(code == Some(3) && told["error"]["code"] == "scheduler_unavailable", "{code:?} {told}");
        let _next = farm.scheduler()?;
        let (code, told) = farm.run(&submit)?;
        ensure!(code == Some(0), "{code:?} {told}");
        farm.ends_well(&job, 0)?;
    }
    Ok(())
}

#[test]
fn a_worker_that_was_frozen_wakes_up_when_its_task_is_done_by_another() -> Result<()> {
    // While the job is still going on, and when it is over.
    for late in [false, true] {
        let mut farm = Farm::new()?;
        let _scheduler = farm.scheduler()?;
        let job = Job::new("film", 20, Layout::Segments);
        let frozen = farm.worker_by(&soon_dead(&farm))?;
        let hold = hold_write(&farm, Moment::Before, "/00001.m4s");
        farm.send(&job)?;
        hold.wait(LIMIT).with_context(|| farm.logs())?;
        frozen.freeze();
        // Its segment is stored; it hears of that when it wakes.
        drop(hold);
        let _other = farm.worker()?;
        match late {
            false => farm.until_marked(&job, &job.chunk(1))?,
            true => drop(farm.ended(&job)?),
        }
        frozen.thaw();
        // It comes to the end of its task, and finds that it is no longer its own.
        frozen.until_series("shoal_tasks_total", "kind=\"video\",outcome=\"done\"", SOON, |done| done >= 2.0)?;
        frozen.until_series("shoal_lost_leases_total", "", SOON, |lost| lost >= 1.0)?;
        farm.ends_well(&job, 1)?;
        // It is fit for work.
        frozen.until_series("shoal_slots_busy", "", SOON, |busy| busy == 0.0)?;
        drop(_other);
        let next = Job::new("next", 4, Layout::Segments);
        farm.send(&next)?;
        farm.ends_well(&next, 0)?;
        farm.ends_well(&job, 1)?;
    }
    Ok(())
}

#[test]
fn a_scheduler_that_was_frozen_wakes_up_when_another_has_done_its_work() -> Result<()> {
    for step in ["/seal.json", "/master.m3u8"] {
        let mut farm = Farm::new()?;
        let ways = soon_dead(&farm);
        let frozen = farm.scheduler_by(&ways)?;
        frozen.until_series("shoal_leader", "", LIMIT, |leader| leader == 1.0)?;
        let mut standby = farm.scheduler_by(&ways)?;
        let _worker = farm.worker()?;
        let job = Job::new("film", 12, Layout::Segments);
        let hold = farm.s3.hold(Moment::Before, move |operation, path| {
            matches!(operation, Operation::Put | Operation::PutNew) && path.ends_with(step)
        });
        farm.send(&job)?;
        let caught = hold.wait(LIMIT).with_context(|| farm.logs())?;
        ensure!(frozen.owns(caught.peer), "the standby acts");
        frozen.freeze();
        farm.ended(&job)?;
        // What it was about to write is written now, after all.
        drop(hold);
        frozen.thaw();
        frozen.until_series("shoal_leader", "", SOON, |leader| leader == 0.0)?;
        farm.ends_well(&job, 0).with_context(|| step.to_owned())?;
        standby.kill()?;
        let next = Job::new("next", 4, Layout::Segments);
        farm.send(&next)?;
        farm.ends_well(&next, 0)?;
        farm.ends_well(&job, 0).with_context(|| step.to_owned())?;
    }
    Ok(())
}

/// Two brokers that know nothing of each other, and one storage: nothing tells the schedulers that there are two of them.
#[test]
fn two_schedulers_act_at_once_on_the_same_jobs() -> Result<()> {
    let mut farm = Farm::new()?;
    let apart = rabbit::shared()?;
    let ways = Ways { broker: Some(apart.url()), ..Ways::default() };
    let schedulers = [farm.scheduler()?, farm.scheduler_by(&ways)?];
    let _workers = [farm.worker()?, farm.worker_by(&ways)?];
    for scheduler in &schedulers {
        scheduler.until_series("shoal_leader", "", LIMIT, |leader| leader == 1.0)?;
    }
    let jobs: Vec<Job> = [Layout::Segments, Layout::SingleFile]
        .into_iter()
        .map(|layout| Job::new(&format!("film-{}", layout as u8), 12, layout))
        .collect();
    for job in &jobs {
        let message = farm.message(job)?.to_string();
        farm.broker.publish(tests::farm::JOBS, message.as_bytes())?;
        apart.publish(tests::farm::JOBS, message.as_bytes())?;
    }
    for job in &jobs {
        // Each side may do everything, and once more for each time that the other's term overtakes its own.
        farm.ends_well(job, 3 * job.chunks())?;
    }
    Ok(())
}

#[test]
fn the_same_message_twice_is_the_same_work_once() -> Result<()> {
    let mut farm = Farm::new()?;
    let _scheduler = farm.scheduler()?;
    let mut workers = vec![farm.worker()?, farm.worker()?];
    let job = Job::new("film", 12, Layout::Segments);
    farm.send(&job)?;
    farm.send(&job)?;
    // The first worker is held in the middle of a chunk while another is sent the same task, and does it.
    let hold = hold_write(&farm, Moment::Before, "/00001.m4s");
    let caught = hold.wait(LIMIT).with_context(|| farm.logs())?;
    let held = asker(&mut workers, &caught)?;
    let message = farm.task_message(&job, job.chunk(1))?;
    farm.broker.publish(TASKS, &serde_json::to_vec(&message)?)?;
    farm.until_marked(&job, &job.chunk(1))?;
    drop(hold);
    farm.ends_well(&job, 1)?;
    held.until_series("shoal_slots_busy", "", SOON, |busy| busy == 0.0)?;
    // Late copies of everything: of each task, and of the job.
    for task in farm.marked(&job)? {
        farm.broker.publish(TASKS, &serde_json::to_vec(&TaskMessage { task, ..message.clone() })?)?;
    }
    farm.send(&job)?;
    farm.until("the copies are gone", || {
        let left = |queue: &str| Ok::<_, anyhow::Error>(farm.broker.queue(queue)?["messages"].as_u64() == Some(0));
        Ok(left(TASKS)? && left(tests::farm::JOBS)?)
    })?;
    farm.ends_well(&job, 1)?;
    ensure!(farm.object(&format!("state/{}", keys::done(&job.id, &TaskId::Probe)))?.is_some(), "the probe's marker is gone");
    Ok(())
}
