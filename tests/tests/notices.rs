//! Workers whose machines are taken away, and workers that end by themselves: what runs comes to its end or is given back in time,
//! nothing is begun any more, and the job is done by others, byte by byte as in an undisturbed run.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use farm::job::Layout;
use farm::task::TaskId;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::farm::{Farm, Job, LIMIT, TASKS};
use tests::process::{Group, until};
use tests::s3::{Hold, Moment};
use tests::service::{Service, free_address};

#[path = "notices/metadata.rs"]
mod metadata;

use self::metadata::{Cloud, Metadata};

/// Longest wait for what a worker does once it is told something: it asks every 5 s.
const SOON: Duration = Duration::from_secs(60);
/// How long a worker may take, after its drain budget, to give back what is not done.
const GIVE_BACK_WAIT: Duration = Duration::from_secs(30);

/// The job of these tests: five chunks.
fn film() -> Job {
    Job::new("film", 20, Layout::Segments)
}

/// Holds the upload of the picture's third segment, from which on two are left.
fn hold_third(farm: &Farm) -> Hold {
    farm.s3.hold(Moment::Before, |operation, path| operation.writes() && path.contains("/v240/") && path.ends_with("/00002.m4s"))
}

/// Starts a service with more flags and variables than the harness gives it.
fn start(farm: &Farm, arguments: &[&str], variables: &[(&str, String)]) -> Result<Service> {
    let admin = free_address()?;
    let log = farm.folder.path().join(format!("at-{}.log", admin.replace(':', "-")));
    let mut command = farm.command(arguments)?;
    command.args(["--admin-listen", &admin]).envs(variables.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
    Ok(Service::new(Group::spawn(&mut command)?, admin, log))
}

/// Starts a worker with one slot.
fn worker(farm: &Farm, flags: &[&str], variables: &[(&str, String)]) -> Result<Service> {
    start(farm, &[&["worker", "--slots", "1"][..], flags].concat(), variables)
}

/// Waits until a service has ended by itself: nobody asks it to.
fn ended(service: &mut Service, limit: Duration) -> Result<ExitStatus> {
    let pid = Pid::from_raw(service.pid().cast_signed());
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let ended = until("it has ended", limit, || Ok(waitid(Id::Pid(pid), look)? != WaitStatus::StillAlive));
    ended.with_context(|| service.log())?;
    service.stop(limit)
}

/// What the admin port answers.
fn ask(service: &Service, path: &str) -> Result<String> {
    let mut socket = TcpStream::connect(service.admin())?;
    socket.set_read_timeout(Some(SOON))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Waits until a worker drains for a notice of this provider, and shows it.
fn drains(service: &Service, provider: &str) -> Result<()> {
    service.until_series("shoal_draining", "", SOON, |draining| draining == 1.0)?;
    let notices = service.series("shoal_worker_notices_total", &format!("provider=\"{provider}\""));
    ensure!(notices == Some(1.0), "notices of {provider}: {notices:?}");
    let answer = ask(service, "/readyz")?;
    ensure!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("draining\n"), "{answer}");
    Ok(())
}

/// So many seconds from now, in a format of date(1).
fn in_utc(seconds: u64, format: &str) -> Result<String> {
    let mut date = Command::new("date");
    date.env("LC_ALL", "C").args(["--utc", &format!("--date={seconds} seconds"), &format!("+{format}")]);
    let told = date.output()?;
    ensure!(told.status.success(), "date: {}", String::from_utf8_lossy(&told.stderr));
    Ok(String::from_utf8(told.stdout)?.trim().to_owned())
}

#[test]
fn on_ec2_what_runs_comes_to_its_end_and_nothing_is_begun() -> Result<()> {
    let (mut farm, metadata) = (Farm::new()?, Metadata::start(Cloud::Ec2)?);
    let _scheduler = farm.scheduler()?;
    let mut leaving = worker(&farm, &["--spot-notices", "ec2"], &[metadata.variable()])?.ready()?;
    let (job, hold) = (film(), hold_third(&farm));
    farm.send(&job)?;
    hold.wait(LIMIT).with_context(|| farm.logs())?;
    let action = json!({"action": "terminate", "time": in_utc(120, "%Y-%m-%dT%H:%M:%SZ")?});
    metadata.say(&action.to_string());
    drains(&leaving, "ec2")?;
    drop(hold);
    ensure!(ended(&mut leaving, SOON)?.success(), "{}", farm.logs());
    let marked = farm.marked(&job)?;
    ensure!(marked.contains(&job.chunk(2)) && !marked.contains(&job.chunk(4)), "{marked:?}\n{}", farm.logs());
    let _other = farm.worker()?;
    farm.ends_well(&job, 0)
}

#[test]
fn on_google_cloud_what_runs_is_given_back_before_the_machine_goes() -> Result<()> {
    let (mut farm, metadata) = (Farm::new()?, Metadata::start(Cloud::Gcp)?);
    let _scheduler = farm.scheduler()?;
    metadata.say("<html>TRUE</html>");
    // Longer than the machine is there: it is the notice that counts.
    let flags = ["--spot-notices", "gcp", "--drain-seconds", "600"];
    let mut leaving = worker(&farm, &flags, &[metadata.variable()])?.ready()?;
    metadata.until_asked(2)?;
    metadata.say("FALSE");
    let (job, hold) = (film(), hold_third(&farm));
    farm.send(&job)?;
    hold.wait(LIMIT).with_context(|| farm.logs())?;
    metadata.until_asked(2)?;
    let (log, draining) = (leaving.log(), leaving.series("shoal_draining", ""));
    ensure!(draining == Some(0.0), "what makes no sense is no notice:\n{log}");
    let said = |what: &str| log.matches(what).count();
    ensure!(said("nobody says whether") == 1 && said("it is said again whether") == 1, "{log}");
    metadata.say("TRUE");
    drains(&leaving, "gcp")?;
    ensure!(ended(&mut leaving, Duration::from_secs(30))?.success(), "{}", farm.logs());
    hold.break_off();
    let _other = farm.worker()?;
    farm.ends_well(&job, 1)
}

/// An event of Azure's.
fn event(kind: &str, machine: &str, not_before: &str) -> Value {
    json!({
        "EventId": "C7061BAC-AFDC-4513-B24B-AA5F13A16123", "EventStatus": "Scheduled", "EventType": kind,
        "ResourceType": "VirtualMachine", "Resources": [machine], "NotBefore": not_before, "EventSource": "Platform",
        "Description": "", "DurationInSeconds": -1
    })
}

#[test]
fn on_azure_what_becomes_of_this_machine_counts_and_of_no_other() -> Result<()> {
    let (mut farm, metadata) = (Farm::new()?, Metadata::start(Cloud::Azure)?);
    let _scheduler = farm.scheduler()?;
    let flags = ["--spot-notices", "azure", "--drain-seconds", "600"];
    let mut leaving = worker(&farm, &flags, &[metadata.variable()])?.ready()?;
    let (job, hold) = (film(), hold_third(&farm));
    farm.send(&job)?;
    hold.wait(LIMIT).with_context(|| farm.logs())?;
    let time = || in_utc(45, "%a, %d %b %Y %H:%M:%S GMT");
    let others = [event("Preempt", "worker_1", &time()?), event("Freeze", "worker_0", &time()?)];
    metadata.say(&json!({"DocumentIncarnation": 2, "Events": others}).to_string());
    metadata.until_asked(3)?;
    let draining = leaving.series("shoal_draining", "");
    ensure!(draining == Some(0.0), "{draining:?}: {}", leaving.log());
    let [preempt, freeze] = others;
    let told = Instant::now();
    let own = event("Terminate", "worker_0", &time()?);
    metadata.say(&json!({"DocumentIncarnation": 3, "Events": [preempt, freeze, own]}).to_string());
    drains(&leaving, "azure")?;
    ensure!(ended(&mut leaving, SOON)?.success(), "{}", farm.logs());
    ensure!(told.elapsed() < Duration::from_secs(45), "{:?}: {}", told.elapsed(), leaving.log());
    hold.break_off();
    let _other = farm.worker()?;
    farm.ends_well(&job, 1)
}

#[test]
fn on_a_machine_that_is_to_go_nothing_is_begun() -> Result<()> {
    let (mut farm, metadata) = (Farm::new()?, Metadata::start(Cloud::Gcp)?);
    let _scheduler = farm.scheduler()?;
    let job = film();
    farm.send(&job)?;
    farm.until("a task waits", || Ok(farm.broker.queue(TASKS)?["messages"].as_u64() == Some(1)))?;
    metadata.say("TRUE");
    let mut leaving = worker(&farm, &["--spot-notices", "gcp"], &[metadata.variable()])?;
    ensure!(ended(&mut leaving, SOON)?.success(), "{}", farm.logs());
    ensure!(farm.marked(&job)?.is_empty() && !leaving.log().contains("task taken"), "{}", farm.logs());
    let _other = farm.worker()?;
    farm.ends_well(&job, 0)
}

/// As when a pod is deleted, or the autoscaler takes the last one: whoever has gone may have been at one chunk.
#[test]
fn a_worker_that_is_stopped_in_mid_chunk_gives_it_back_and_others_may_come_much_later() -> Result<()> {
    let mut farm = Farm::new()?;
    let _scheduler = farm.scheduler()?;
    let budget = Duration::from_secs(2);
    let mut deleted = worker(&farm, &["--drain-seconds", "2"], &[])?.ready()?;
    let (job, hold) = (film(), hold_third(&farm));
    farm.send(&job)?;
    hold.wait(LIMIT).with_context(|| farm.logs())?;
    let began = Instant::now();
    ensure!(deleted.stop(budget + GIVE_BACK_WAIT)?.success(), "{}", farm.logs());
    ensure!(began.elapsed() >= budget, "it did not wait for what ran: {:?}", began.elapsed());
    hold.break_off();
    // Nobody is there. What was given back waits with the rest, and is no failure of anybody's.
    farm.until("the chunk waits", || Ok(farm.broker.queue(TASKS)?["messages_ready"].as_u64().is_some_and(|ready| ready >= 1)))?;
    let _other = farm.worker()?;
    farm.ends_well(&job, 1)
}

#[test]
fn workers_end_by_themselves_after_so_many_tasks_or_so_long_without_one_and_others_come() -> Result<()> {
    let mut farm = Farm::new()?;
    let _scheduler = farm.scheduler()?;
    let job = film();
    farm.send(&job)?;
    let mut settled = 0;
    for tasks in [1, 2] {
        let mut some = worker(&farm, &["--tasks", &tasks.to_string()], &[])?;
        ensure!(ended(&mut some, LIMIT)?.success(), "{}", farm.logs());
        settled += tasks;
        let marked = farm.marked(&job)?;
        ensure!(marked.len() == settled && marked.contains(&TaskId::Probe), "{settled} tasks: {marked:?}\n{}", farm.logs());
    }
    let idle = Duration::from_secs(15);
    let mut last = worker(&farm, &["--idle-seconds", "15"], &[])?;
    farm.ends_well(&job, 0)?;
    ensure!(ended(&mut last, idle + SOON)?.success(), "{}", farm.logs());
    let began = Instant::now();
    let mut unneeded = worker(&farm, &["--idle-seconds", "15"], &[])?;
    ensure!(ended(&mut unneeded, idle + SOON)?.success() && began.elapsed() >= idle, "{:?}: {}", began.elapsed(), farm.logs());
    let next = Job::new("next", 4, Layout::Segments);
    farm.send(&next)?;
    let _anew = farm.worker()?;
    farm.ends_well(&next, 0)
}

#[test]
fn the_service_manager_is_told_how_services_are() -> Result<()> {
    let farm = Farm::new()?;
    for (number, arguments) in [&["scheduler"][..], &["worker", "--slots", "1"]].into_iter().enumerate() {
        let path = farm.folder.path().join(format!("notify-{number}"));
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(SOON))?;
        let (heard, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut datagram = [0; 256];
            while let Ok(length) = socket.recv(&mut datagram) {
                // Nobody listens once the test is over.
                let text = String::from_utf8_lossy(datagram.get(..length).unwrap_or_default()).trim().to_owned();
                if heard.send(text).is_err() {
                    break;
                }
            }
        });
        let path = path.to_str().context("a path")?.to_owned();
        let variables = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "1000000".to_owned())];
        let mut service = start(&farm, arguments, &variables)?.ready()?;
        let next = || told.recv_timeout(SOON).with_context(|| farm.logs());
        for wanted in ["READY=1", "WATCHDOG=1", "WATCHDOG=1"] {
            let told = next()?;
            ensure!(told == wanted, "{arguments:?}: {told} instead of {wanted}");
        }
        ensure!(service.stop(SOON)?.success(), "{}", farm.logs());
        while next()? != "STOPPING=1" {}
    }
    Ok(())
}
