//! A farm whose broker, network and storage go wrong while it works: every job is done once, byte by byte as in an undisturbed
//! run, and hardly anything is encoded again.
//!
//! `make conformance` runs this over Garage as well: the faults are put before it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use farm::job::Layout;
use tests::farm::{Farm, JOBS, Job, LIMIT, TASKS, Ways};
use tests::proxy::{Mode, Proxy};
use tests::rabbit::Server;
use tests::s3::{Fault, Hold, Moment, Operation};
use tests::service::Service;

/// More requests than any job makes.
const ALWAYS: usize = 100_000;
/// Longer than a client waits for an answer.
const TOO_LATE: Duration = Duration::from_secs(32);

/// The job of these tests: five chunks.
fn film() -> Job {
    Job::new("film", 20, Layout::Segments)
}

/// Holds the upload of the picture's segment with this number, from 0.
fn hold_segment(farm: &Farm, number: u32) -> Hold {
    let end = format!("/{number:05}.m4s");
    farm.s3.hold(Moment::Before, move |operation, path| operation.writes() && path.contains("/v240/") && path.ends_with(&end))
}

/// Waits until a hold has caught its request.
fn wait(farm: &Farm, hold: &Hold) -> Result<()> {
    hold.wait(LIMIT).map(drop).with_context(|| farm.logs())
}

#[test]
fn a_broker_that_is_killed_and_started_again_in_mid_job() -> Result<()> {
    let mut server = Server::start()?;
    let mut farm = Farm::on(server.vhost()?)?;
    let _services = [farm.scheduler()?, farm.worker()?, farm.worker()?];
    let job = film();
    let hold = hold_segment(&farm, 2);
    farm.send(&job)?;
    wait(&farm, &hold)?;
    server.kill()?;
    drop(hold);
    // What is on its way comes to its end without a broker.
    farm.until_marked(&job, &job.chunk(2))?;
    server.restart()?;
    farm.ends_well(&job, 2)
}

/// Who stops everything stops the broker first, or it has gone for good.
#[test]
fn services_end_when_they_are_told_to_though_the_broker_is_away() -> Result<()> {
    let mut server = Server::start()?;
    let mut farm = Farm::on(server.vhost()?)?;
    let mut services = [farm.scheduler()?, farm.scheduler()?, farm.worker()?];
    let job = film();
    farm.send(&job)?;
    farm.ends_well(&job, 0)?;
    server.kill()?;
    // Until they have noticed, and wait for answers that do not come.
    std::thread::sleep(Duration::from_secs(40));
    for service in &mut services {
        let ended = service.stop(Duration::from_secs(5)).with_context(|| farm.logs())?;
        ensure!(ended.success(), "{ended}");
    }
    Ok(())
}

#[test]
fn a_broker_that_is_wiped_in_mid_job() -> Result<()> {
    let mut farm = Farm::new()?;
    let _services = [farm.scheduler()?, farm.worker()?, farm.worker()?];
    let job = film();
    let hold = hold_segment(&farm, 2);
    farm.send(&job)?;
    wait(&farm, &hold)?;
    farm.broker.delete()?;
    drop(hold);
    farm.broker.make()?;
    farm.ends_well(&job, 2)
}

/// Has the way of one service to the broker cut, then stalled, then throttled, each until it was noticed.
fn on_a_bad_line(farm: &Farm, job: &Job, line: &Proxy, service: &Service) -> Result<()> {
    let holds = [1, 2, 3].map(|number| hold_segment(farm, number));
    let connected =
        |is: bool| service.until_series("shoal_broker_connected", "", LIMIT, move |connected| (connected == 1.0) == is);
    farm.send(job)?;
    for (hold, mode) in holds.into_iter().zip([Mode::Cut, Mode::Stall, Mode::Throttle(20_000)]) {
        wait(farm, &hold)?;
        line.set(mode);
        drop(hold);
        if matches!(mode, Mode::Cut | Mode::Stall) {
            connected(false)?;
            line.set(Mode::Pass);
            connected(true)?;
        }
    }
    farm.ends_well(job, 1)
}

/// A line to the farm's broker, on which silence is noticed after some seconds.
fn line(farm: &Farm) -> Result<(Proxy, Ways)> {
    let proxy = Proxy::start(farm.broker.address())?;
    let broker = format!("{}?heartbeat=3", farm.broker.url_by(proxy.address()));
    Ok((proxy, Ways { broker: Some(broker), ..Ways::default() }))
}

#[test]
fn a_worker_whose_line_to_the_broker_is_cut_stalled_and_throttled() -> Result<()> {
    let mut farm = Farm::new()?;
    let (line, ways) = line(&farm)?;
    let _scheduler = farm.scheduler()?;
    let worker = farm.worker_by(&ways)?;
    on_a_bad_line(&farm, &film(), &line, &worker)
}

#[test]
fn a_scheduler_whose_line_to_the_broker_is_cut_stalled_and_throttled() -> Result<()> {
    let mut farm = Farm::new()?;
    let (line, ways) = line(&farm)?;
    let scheduler = farm.scheduler_by(&ways)?;
    let _worker = farm.worker()?;
    on_a_bad_line(&farm, &film(), &line, &scheduler)
}

#[test]
fn a_line_to_storage_that_is_cut_stalled_and_throttled() -> Result<()> {
    let mut farm = Farm::new()?;
    let endpoint = farm.s3.endpoint();
    let proxy = Proxy::start(endpoint.trim_start_matches("http://").parse()?)?;
    let ways = Ways { s3: Some(format!("http://{}", proxy.address())), ..Ways::default() };
    let _services = [farm.scheduler_by(&ways)?, farm.worker_by(&ways)?];
    let job = film();
    let holds = [0, 1, 2, 3].map(|number| hold_segment(&farm, number));
    proxy.set(Mode::Throttle(400_000));
    farm.send(&job)?;
    for (number, hold) in holds.into_iter().enumerate() {
        wait(&farm, &hold)?;
        match number {
            0 => proxy.cut_once(),
            1 => proxy.set(Mode::Cut),
            2 => proxy.set(Mode::Stall),
            _ => proxy.set(Mode::Throttle(200_000)),
        }
        drop(hold);
        if number == 1 || number == 2 {
            // It is tried again and again; nothing shows from outside that it was, so the wait is by the clock.
            std::thread::sleep(Duration::from_secs(3));
            proxy.set(Mode::Pass);
        }
    }
    farm.ends_well(&job, 2)
}

#[test]
fn a_storage_that_answers_nothing_but_503_for_a_while() -> Result<()> {
    let mut farm = Farm::new()?;
    let _services = [farm.scheduler()?, farm.worker()?, farm.worker()?];
    let job = film();
    let hold = hold_segment(&farm, 2);
    farm.send(&job)?;
    wait(&farm, &hold)?;
    let all = [Operation::Get, Operation::Head, Operation::List, Operation::Put, Operation::PutNew, Operation::Delete];
    for operation in all {
        farm.s3.inject(operation, "", ALWAYS, Fault::Refused(503, "SlowDown"));
    }
    drop(hold);
    farm.until("30 requests were refused", || Ok(farm.s3.faults_left() + 30 <= all.len() * ALWAYS))?;
    farm.s3.calm();
    farm.ends_well(&job, 2)
}

/// What is written once in the life of a job, by whom ever, and how.
const WRITES: [(Operation, &str); 18] = [
    (Operation::Put, "/term/0"),
    (Operation::PutNew, "/spec.json"),
    (Operation::PutNew, "/active/0/"),
    (Operation::PutNew, "/done/probe"),
    (Operation::PutNew, "/plan-1.json"),
    (Operation::Put, "/00001.m4s"),
    (Operation::Put, "/00002.m4s"),
    (Operation::PutNew, "/done/video-00000"),
    (Operation::PutNew, "/done/audio-0"),
    (Operation::PutNew, "/seal.json"),
    (Operation::Put, "/v240/index.m3u8"),
    (Operation::Put, "/report.json"),
    (Operation::Put, "/master.m3u8"),
    (Operation::PutNew, "/result-1.json"),
    (Operation::Put, "/ended/0/"),
    (Operation::Put, "/outbox/0/"),
    (Operation::Put, "/told-1"),
    (Operation::Put, "/sweep/0/"),
];

/// A job in whose life each write goes wrong like that, once.
fn each_write_goes_wrong(fault: &Fault, wrong: impl Fn(Operation) -> bool) -> Result<()> {
    let mut farm = Farm::new()?;
    for (operation, path) in WRITES.into_iter().filter(|(operation, _)| wrong(*operation)) {
        farm.s3.inject(operation, path, 1, fault.clone());
    }
    let _services = [farm.scheduler()?, farm.worker()?];
    let job = film();
    farm.send(&job)?;
    farm.ends_well(&job, 1).with_context(|| format!("{fault:?}"))?;
    ensure!(farm.s3.faults_left() == 0, "{} writes of {fault:?} are not made as this test thinks", farm.s3.faults_left());
    Ok(())
}

#[test]
fn writes_that_are_done_and_whose_answer_is_lost() -> Result<()> {
    each_write_goes_wrong(&Fault::AnswerLost, |_| true)
}

#[test]
fn writes_that_are_cut_off() -> Result<()> {
    each_write_goes_wrong(&Fault::RequestCut, |_| true)
}

#[test]
fn creates_that_meet_a_conflict() -> Result<()> {
    each_write_goes_wrong(&Fault::Refused(409, "ConditionalRequestConflict"), |operation| operation == Operation::PutNew)
}

#[test]
fn creates_that_are_told_that_another_was_first_though_there_was_none() -> Result<()> {
    each_write_goes_wrong(&Fault::Refused(412, "PreconditionFailed"), |operation| operation == Operation::PutNew)
}

#[test]
fn a_marker_that_is_stored_and_whose_answer_comes_too_late() -> Result<()> {
    answer_too_late("/done/video-00001")
}

#[test]
fn a_seal_that_is_stored_and_whose_answer_comes_too_late() -> Result<()> {
    answer_too_late("/seal.json")
}

fn answer_too_late(path: &str) -> Result<()> {
    let mut farm = Farm::new()?;
    let _services = [farm.scheduler()?, farm.worker()?];
    farm.s3.inject(Operation::PutNew, path, 1, Fault::AnswerLate(TOO_LATE));
    let job = film();
    farm.send(&job)?;
    farm.ends_well(&job, 0)?;
    ensure!(farm.s3.faults_left() == 0, "it was never late");
    Ok(())
}

#[test]
fn bodies_that_come_slowly_or_not_to_their_end() -> Result<()> {
    let mut farm = Farm::new()?;
    let _services = [farm.scheduler()?, farm.worker()?];
    farm.s3.inject(Operation::Get, "/source/", 3, Fault::Slow(10, Duration::from_millis(200)));
    farm.s3.inject(Operation::Get, "/source/", 3, Fault::AnswerCut);
    farm.s3.inject(Operation::Get, "/spec.json", 2, Fault::AnswerCut);
    farm.s3.inject(Operation::Get, "/plan-1.json", 2, Fault::Slow(5, Duration::from_millis(200)));
    farm.s3.inject(Operation::Get, "/done/", 2, Fault::AnswerCut);
    farm.s3.inject(Operation::List, "", 1, Fault::Slow(5, Duration::from_millis(100)));
    farm.s3.inject(Operation::List, "", 2, Fault::AnswerCut);
    let job = film();
    farm.send(&job)?;
    farm.ends_well(&job, 0)?;
    ensure!(farm.s3.faults_left() == 0, "{} bodies were never asked for", farm.s3.faults_left());
    Ok(())
}

/// As on a server that knows no conditional writes, and with everything that conditions are good for: the same job twice, the
/// same task twice at once.
#[test]
fn creates_whose_condition_is_ignored() -> Result<()> {
    let mut farm = Farm::new()?;
    farm.s3.inject(Operation::PutNew, "", ALWAYS, Fault::Unconditional);
    let _services = [farm.scheduler()?, farm.worker()?, farm.worker()?];
    let job = film();
    let hold = hold_segment(&farm, 1);
    farm.send(&job)?;
    farm.send(&job)?;
    wait(&farm, &hold)?;
    let message = farm.task_message(&job, job.chunk(1))?;
    farm.broker.publish(TASKS, &serde_json::to_vec(&message)?)?;
    farm.until_marked(&job, &job.chunk(1))?;
    drop(hold);
    farm.ends_well(&job, 1)?;
    farm.send(&job)?;
    farm.until("the job's message is gone", || Ok(farm.broker.queue(JOBS)?["messages"].as_u64() == Some(0)))?;
    farm.ends_well(&job, 1)
}
