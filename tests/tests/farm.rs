//! A farm of processes: scheduler and workers as they are run, over a real RabbitMQ and a real S3 server. Killed in mid-job,
//! it loses nothing and does little twice.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tests::clip::Clip;
use tests::process::Group;
use tests::rabbit::{self, Vhost};
use tests::s3::S3Server;
use tests::{check, shoal};

const TOKEN: &str = "the token of a tenant";
const LIMIT: Duration = Duration::from_secs(240);

/// A farm and where it is.
struct Farm {
    folder: TempDir,
    broker: Vhost,
    s3: S3Server,
    server: String,
    schedulers: u32,
}

impl Farm {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("tokens.toml"), format!("[[tenants]]\nname = 'me'\ntoken = '{TOKEN}'\n"))?;
        Ok(Self { folder, broker: rabbit::shared()?, s3: S3Server::start()?, server: String::new(), schedulers: 0 })
    }

    /// A command with everything that is secret in variables.
    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = shoal::command(arguments)?;
        command.envs(self.s3.environment()).env("SHOAL_BROKER", self.broker.url()).env("SHOAL_TOKEN", TOKEN);
        command.env("SHOAL_STORAGE", self.s3.url("state/")?.as_str()).env("SHOAL_SERVER", &self.server);
        Ok(command)
    }

    fn start(&self, arguments: &[&str], log: &str) -> Result<Group> {
        let log = File::create(self.folder.path().join(log))?;
        Group::spawn(self.command(arguments)?.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))
    }

    fn scheduler(&mut self) -> Result<Group> {
        let (api, admin) = (free_address()?, free_address()?);
        self.server = format!("http://{api}");
        self.schedulers += 1;
        let tokens = self.folder.path().join("tokens.toml");
        let tokens = tokens.to_str().context("a path")?;
        let arguments = ["scheduler", "--listen", &api, "--admin-listen", &admin, "--tokens", tokens, "--allow-file-urls"];
        let started = self.start(&arguments, &format!("scheduler-{}.log", self.schedulers))?;
        ready(&admin)?;
        Ok(started)
    }

    fn worker(&self, name: &str) -> Result<Group> {
        let admin = free_address()?;
        let started = self.start(&["worker", "--slots", "1", "--admin-listen", &admin], &format!("{name}.log"))?;
        ready(&admin)?;
        Ok(started)
    }

    fn run(&self, arguments: &[&str]) -> Result<(Option<i32>, Value)> {
        let done = shoal::run(self.command(arguments)?, LIMIT)?;
        let told = serde_json::from_slice(&done.stdout).with_context(|| format!("{arguments:?}: {}", done.stderr))?;
        Ok((done.status.code(), told))
    }

    /// Waits until so many tasks of a job are done.
    fn reach(&self, job: &str, tasks: u64) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            let (_, status) = self.run(&["status", job, "--json"])?;
            if status["progress"]["tasks_done"].as_u64().is_some_and(|done| done >= tasks) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("{job} never has {tasks} tasks done:\n{}", self.logs())
    }

    fn logs(&self) -> String {
        let files = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let logs = files.filter(|file| file.path().extension().is_some_and(|end| end == "log"));
        logs.map(|log| std::fs::read_to_string(log.path()).unwrap_or_default()).collect()
    }
}

/// An address that nobody listens on.
fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// Waits until a service says that it is ready.
fn ready(admin: &str) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let ask = || -> Result<bool> {
        let mut socket = std::net::TcpStream::connect(admin)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(60) {
        // Not yet listening is not yet ready.
        if ask().unwrap_or(false) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("{admin} is never ready")
}

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
    let mut workers = [farm.worker("worker-1")?, farm.worker("worker-2")?];
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
        worker.signal(Signal::SIGTERM);
        ensure!(worker.wait(Duration::from_secs(30))?.success(), "a worker that drains:\n{}", farm.logs());
    }
    scheduler.signal(Signal::SIGTERM);
    ensure!(scheduler.wait(Duration::from_secs(30))?.success(), "a scheduler that stops:\n{}", farm.logs());
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
    let (mut unlucky, _steady) = (farm.worker("unlucky")?, farm.worker("steady")?);
    let clip = Clip::new("25", 30).size(640, 360);
    let (input, output) = (clip.file()?, farm.folder.path().join("out"));
    let (input, to) = (input.to_str().context("a path")?, output.to_str().context("a path")?);
    let submit = ["submit", input, "--output", to, "--id", "film", "--chunk-seconds", "4", "--json"];
    ensure!(farm.run(&submit)?.0 == Some(0), "{}", farm.logs());
    farm.reach("film", 3)?;
    first.kill()?;
    let _second = farm.scheduler()?;
    unlucky.kill()?;
    let _other = farm.worker("other")?;
    let (code, job) = farm.run(&["status", "film", "--follow", "--json"])?;
    ensure!(code == Some(0) && job["state"] == "done", "{code:?} {job}\n{}", farm.logs());
    // What the killed worker had begun is left to the janitor, who is not waited for here.
    let faults = check::faults(&output, &clip)?;
    ensure!(faults.iter().all(|fault| fault.contains("named by no playlist")), "{faults:?}");
    let made = executions(&output, "v360")?;
    ensure!((8..=9).contains(&made), "{made} executions for 8 chunks and one killed worker:\n{}", farm.logs());
    Ok(())
}
