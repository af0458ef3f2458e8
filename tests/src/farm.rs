//! A farm of processes: schedulers and workers as they are run, over a real RabbitMQ and a real S3 server; the jobs that are
//! sent to it, and what must hold of them when they have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use farm::job::{JobId, Layout};
use farm::storage::{Kind, Storage, StorageError};
use farm::task::{TaskId, TaskMessage, Token};
use farm::{Class, Life, keys};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::clip::Clip;
use crate::hls::Presentation;
use crate::process::{Group, until};
use crate::rabbit::{self, Vhost};
use crate::s3::{Operation, S3Server};
use crate::service::{Service, free_address};
use crate::{check, shoal};

/// The token of the only tenant.
pub const TOKEN: &str = "the token of a tenant";
/// Longest wait for what must come: a machine of two cores that others use too.
pub const LIMIT: Duration = Duration::from_secs(240);
/// The queue of job messages.
pub const JOBS: &str = "shoal.v1.jobs";
/// The queue of task messages.
pub const TASKS: &str = "shoal.v1.tasks.cpu";
/// The queue of dead letters.
pub const DEAD: &str = "shoal.v1.dead";
/// Part of the farm's jobs that a scheduler looks after; there is one.
const PARTITION: u32 = 0;

/// A farm and where it is. Dropped, its objects are deleted.
pub struct Farm {
    /// Where logs are, and results that were written to files.
    pub folder: TempDir,
    /// Its virtual host.
    pub broker: Vhost,
    /// Its storage.
    pub s3: S3Server,
    /// The file of instances of PeerTube that schedulers serve.
    pub instances: Option<PathBuf>,
    /// First part of all its keys, so that farms may share a bucket.
    name: String,
    server: String,
    services: u32,
    /// Everything of this farm, for who looks on.
    objects: Storage,
    runtime: Runtime,
}

/// How a service reaches the rest of the farm, where that is not the usual way.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    /// URL of the broker.
    pub broker: Option<String>,
    /// URL of the S3 server.
    pub s3: Option<String>,
    /// URL of the farm's state.
    pub state: Option<String>,
    /// Where schedulers send traces, and the headers that they send along.
    pub collector: Option<(String, String)>,
    /// The folder that it runs in, and takes for temporary files.
    pub folder: Option<PathBuf>,
}

/// A job as the tests send it: the clip comes from S3, the result goes there.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Its source.
    pub clip: Clip,
    /// How its result is laid out.
    pub layout: Layout,
    /// The only rung.
    pub height: u32,
}

impl Job {
    /// A job of so many seconds of picture and sound in chunks of 4 s, one segment each.
    ///
    /// # Panics
    /// When `id` is no name of a job.
    pub fn new(id: &str, seconds: u32, layout: Layout) -> Self {
        let id = JobId::try_from(id.to_owned()).expect("a name");
        Self { id, clip: Clip::new("25", seconds).size(426, 240), layout, height: 240 }
    }

    /// The same under another name.
    #[must_use]
    pub fn named(&self, id: &str) -> Self {
        Self { id: JobId::try_from(id.to_owned()).expect("a name"), ..self.clone() }
    }

    /// How many chunks its picture has.
    pub fn chunks(&self) -> usize {
        usize::try_from(self.clip.duration_ns() / 4_000_000_000).unwrap_or_default()
    }

    /// The rendition of its picture.
    pub fn picture(&self) -> String {
        format!("v{}", self.height)
    }

    /// The task of its picture's `chunk`, from 0.
    pub fn chunk(&self, chunk: u32) -> TaskId {
        TaskId::Video(chunk)
    }

    /// Every task of it.
    fn tasks(&self) -> usize {
        let packs = if self.layout == Layout::SingleFile { 2 } else { 0 };
        1 + self.chunks() + usize::from(self.clip.audio) + packs
    }
}

impl Farm {
    /// A farm on the RabbitMQ that all tests of this process share.
    ///
    /// # Errors
    /// When a server is missing.
    pub fn new() -> Result<Self> {
        Self::on(rabbit::shared()?)
    }

    /// A farm on this virtual host.
    ///
    /// # Errors
    /// When there is no S3 server.
    pub fn on(broker: Vhost) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("farm-").tempdir()?;
        let name = folder.path().file_name().and_then(|name| name.to_str()).context("a name")?.to_owned();
        fs::write(folder.path().join("tokens.toml"), format!("[[tenants]]\nname = 'me'\ntoken = '{TOKEN}'\n"))?;
        let s3 = S3Server::named_or_start()?;
        let objects = s3.quiet_storage(&format!("{name}/"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { folder, broker, s3, instances: None, name, server: String::new(), services: 0, objects, runtime })
    }

    /// Has these tenants instead of the only one, at schedulers that are started from now on: the text of a tokens file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_tenants(&self, tokens: &str) -> Result<()> {
        Ok(fs::write(self.folder.path().join("tokens.toml"), tokens)?)
    }

    /// Host and port of the API that commands talk to.
    pub fn api(&self) -> &str {
        self.server.trim_start_matches("http://")
    }

    /// A command with everything that is secret in variables.
    ///
    /// # Errors
    /// When there is no program.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        self.command_by(&Ways::default(), arguments)
    }

    fn command_by(&self, ways: &Ways, arguments: &[&str]) -> Result<Command> {
        let mut command = shoal::command(arguments)?;
        let broker = ways.broker.clone().unwrap_or_else(|| self.broker.url());
        command
            .envs(self.s3.environment())
            .env("SHOAL_BROKER", broker)
            .env("SHOAL_ALLOW_NETWORKS", "127.0.0.0/8")
            .env("SHOAL_TOKEN", TOKEN);
        if let Some(s3) = &ways.s3 {
            command.env("SHOAL_S3_ENDPOINT", s3);
        }
        if let Some((endpoint, headers)) = &ways.collector {
            command.env("SHOAL_OTLP_ENDPOINT", endpoint).env("SHOAL_OTLP_HEADERS", headers);
        }
        if let Some(folder) = &ways.folder {
            command.current_dir(folder).env("TMPDIR", folder);
        }
        let state = self.s3.url(&format!("{}/state/", self.name))?;
        command.env("SHOAL_STORAGE", ways.state.as_deref().unwrap_or(state.as_str())).env("SHOAL_SERVER", &self.server);
        Ok(command)
    }

    fn start(&mut self, ways: &Ways, arguments: &[&str]) -> Result<Service> {
        self.services += 1;
        let (admin, what) = (free_address()?, arguments.first().context("a command")?);
        let log = self.folder.path().join(format!("{:02}-{what}.log", self.services));
        let mut command = self.command_by(ways, arguments)?;
        command.args(["--admin-listen", &admin]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        Ok(Service::new(Group::spawn(&mut command)?, admin, log))
    }

    /// Starts a scheduler, the one that commands talk to from now on.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn scheduler(&mut self) -> Result<Service> {
        self.scheduler_by(&Ways::default())
    }

    /// As [`Farm::scheduler`].
    ///
    /// # Errors
    /// As [`Farm::scheduler`].
    pub fn scheduler_by(&mut self, ways: &Ways) -> Result<Service> {
        let api = free_address()?;
        self.server = format!("http://{api}");
        let tokens = self.folder.path().join("tokens.toml");
        let tokens = tokens.to_str().context("a path")?;
        let mut arguments = vec!["scheduler", "--listen", &api, "--tokens", tokens, "--allow-file-urls"];
        let instances = self.instances.clone();
        if let Some(instances) = &instances {
            arguments.extend(["--peertube", instances.to_str().context("a path")?]);
        }
        self.start(ways, &arguments)?.ready()
    }

    /// Starts a worker with one slot.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn worker(&mut self) -> Result<Service> {
        self.worker_by(&Ways::default())
    }

    /// As [`Farm::worker`].
    ///
    /// # Errors
    /// As [`Farm::worker`].
    pub fn worker_by(&mut self, ways: &Ways) -> Result<Service> {
        self.start(ways, &["worker", "--slots", "1"])?.ready()
    }

    /// Runs a command that prints JSON objects, one a line: its exit code, and the last of them.
    ///
    /// # Errors
    /// When it prints anything else.
    pub fn run(&self, arguments: &[&str]) -> Result<(Option<i32>, Value)> {
        let done = shoal::run(self.command(arguments)?, LIMIT)?;
        let text = done.text();
        let told = serde_json::from_str(text.lines().last().unwrap_or_default())
            .with_context(|| format!("{arguments:?}: {}", done.stderr))?;
        Ok((done.status.code(), told))
    }

    /// What its services are given to keep to themselves.
    fn secrets(&self) -> Vec<String> {
        let keys = self.s3.environment().into_iter().filter(|(name, _)| name.contains("SECRET")).map(|(_, secret)| secret);
        let broker = self.broker.url();
        let password = broker.split_once("://").and_then(|(_, rest)| rest.split_once('@')).map(|(user, _)| format!("{user}@"));
        keys.chain(password).chain([TOKEN.to_owned()]).collect()
    }

    /// Everything that the services have logged, the older ones first.
    pub fn logs(&self) -> String {
        let files = fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let mut logs: Vec<PathBuf> =
            files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
        logs.sort();
        let text = |log: &PathBuf| format!("--- {}\n{}", log.display(), fs::read_to_string(log).unwrap_or_default());
        logs.iter().map(text).collect()
    }

    /// The path of an object of this farm as requests name it, relative to what is the farm's: `out/film/master.m3u8`.
    pub fn key_in<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.split_once(&format!("/{}/", self.name)).map(|(_, key)| key)
    }

    /// The URL of an object of this farm.
    ///
    /// # Errors
    /// When it makes none.
    pub fn url(&self, key: &str) -> Result<String> {
        Ok(self.s3.url(&format!("{}/{key}", self.name))?.to_string())
    }

    /// An object of this farm, if it is there: `state/…` or `out/…`. Nobody notices that it is looked at.
    ///
    /// # Errors
    /// When storage does not say.
    pub fn object(&self, key: &str) -> Result<Option<Bytes>> {
        match self.runtime.block_on(self.objects.get(key)) {
            Ok(content) => Ok(Some(content)),
            Err(StorageError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The message of the first attempt at a task, as the scheduler that acts sends it.
    ///
    /// # Errors
    /// When nobody has acted yet.
    pub fn task_message(&self, job: &Job, task: TaskId) -> Result<TaskMessage> {
        let term = self.object("state/term/0")?.context("no term")?;
        let term = std::str::from_utf8(&term)?.trim().parse()?;
        Ok(TaskMessage { job: job.id.clone(), task, life: Life::FIRST, attempt: 1, class: Class::Cpu, epoch: 1, term })
    }

    /// Stores an object. Nobody notices.
    ///
    /// # Errors
    /// Storage's.
    pub fn put(&self, key: &str, content: Vec<u8>) -> Result<()> {
        Ok(self.runtime.block_on(self.objects.put(key, content.into(), Kind::VideoMp4))?)
    }

    /// Deletes objects. Nobody notices.
    ///
    /// # Errors
    /// Storage's.
    pub fn delete(&self, keys: &[String]) -> Result<()> {
        Ok(self.runtime.block_on(self.objects.delete(keys))?)
    }

    /// The keys that begin with `prefix`.
    ///
    /// # Errors
    /// Storage's.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(self.runtime.block_on(self.objects.list(prefix))?.into_iter().map(|entry| entry.key).collect())
    }

    /// The message of a job; its source is put where it says.
    ///
    /// # Errors
    /// When the clip cannot be made or stored.
    pub fn message(&self, job: &Job) -> Result<Value> {
        let source = format!("source/{}.mp4", job.id);
        self.put(&source, fs::read(job.clip.file()?)?)?;
        Ok(json!({
            "version": 1, "id": job.id, "tenant": "me", "source": {"url": self.url(&source)?},
            "output": {"url": self.url(&format!("out/{}/", job.id))?, "layout": job.layout},
            "ladder": {"rungs": [{"height": job.height}]}, "segment_seconds": 4, "chunk_seconds": 4
        }))
    }

    /// Sends a job on the queue.
    ///
    /// # Errors
    /// When the broker does not take it.
    pub fn send(&self, job: &Job) -> Result<()> {
        self.broker.publish(JOBS, self.message(job)?.to_string().as_bytes())
    }

    /// Which tasks of a job have a marker.
    ///
    /// # Errors
    /// Storage's.
    pub fn marked(&self, job: &Job) -> Result<BTreeSet<TaskId>> {
        let prefix = format!("state/{}", keys::done_prefix(&job.id));
        Ok(self.keys(&prefix)?.iter().filter_map(|key| key.strip_prefix(&prefix)?.parse().ok()).collect())
    }

    /// Waits until a task of a job has its marker.
    ///
    /// # Errors
    /// When it never has.
    pub fn until_marked(&self, job: &Job, task: &TaskId) -> Result<()> {
        self.until(&format!("{task} of {} is done", job.id), || Ok(self.marked(job)?.contains(task)))
    }

    /// As [`until`]; what does not come to hold is told with the logs.
    ///
    /// # Errors
    /// When it does not hold in time.
    pub fn until(&self, what: &str, holds: impl FnMut() -> Result<bool>) -> Result<()> {
        until(what, LIMIT, holds).with_context(|| self.logs())
    }

    /// Waits until a job has ended and its end was told; how it ended, by its result.
    ///
    /// # Errors
    /// When it does not end.
    pub fn ended(&self, job: &Job) -> Result<Value> {
        let result = format!("state/{}", keys::result(&job.id, Life::FIRST));
        let active = format!("state/{}", keys::active(PARTITION, &job.id, Life::FIRST));
        let notified = format!("state/{}", keys::told(&job.id, Life::FIRST));
        let outbox = format!("state/{}", keys::outbox_of(PARTITION, &job.id));
        self.until(&format!("{} has ended", job.id), || {
            let told = || Ok::<_, anyhow::Error>(self.object(&notified)?.is_some() && self.keys(&outbox)?.is_empty());
            Ok(self.object(&result)?.is_some() && self.object(&active)?.is_none() && told()?)
        })?;
        Ok(serde_json::from_slice(&self.object(&result)?.context("no result")?)?)
    }

    /// How many executions ever stored anything of a rendition.
    pub fn executions(&self, job: &Job, rendition: &str) -> usize {
        let prefix = format!("out/{}/", job.id);
        let writes = [Operation::Put, Operation::PutNew, Operation::BeginUpload];
        let seen = self.s3.seen().into_iter().filter(|seen| writes.contains(&seen.operation));
        let token = |path: &str| {
            let key = self.key_in(path)?.strip_prefix(&prefix)?;
            let (_, rest) = key.split_once('/').filter(|(first, _)| *first == rendition)?;
            keys::token_in(key).map(|_| rest.split('/').next().map(str::to_owned))?
        };
        // What packs writes is one object for the whole rendition.
        let is_pack = |path: &str| path.ends_with(&format!("/{rendition}.mp4"));
        seen.filter(|seen| !is_pack(&seen.path)).filter_map(|seen| token(&seen.path)).collect::<BTreeSet<_>>().len()
    }

    /// Fetches everything under the output prefix of a job into a folder.
    ///
    /// # Errors
    /// Storage's, and when it cannot be written.
    pub fn download(&self, job: &Job) -> Result<TempDir> {
        let (folder, prefix) = (tempfile::tempdir()?, format!("out/{}/", job.id));
        for key in self.keys(&prefix)? {
            let file = folder.path().join(key.strip_prefix(&prefix).unwrap_or(&key));
            fs::create_dir_all(file.parent().context("a folder")?)?;
            fs::write(file, self.object(&key)?.with_context(|| format!("{key} is listed and not there"))?)?;
        }
        Ok(folder)
    }

    /// Waits until a job has ended, which is to be as in an undisturbed run: done once, playlists and media the same byte by
    /// byte, nothing missing, nothing left to do; and at most `again` executions of chunks more than there are chunks. What
    /// killed executions have begun is left to the janitor, who is not waited for.
    ///
    /// # Errors
    /// What is not so.
    pub fn ends_well(&self, job: &Job, again: usize) -> Result<()> {
        let result = self.ended(job)?;
        self.is_well(job, &result, again).with_context(|| format!("{}:\n{}", job.id, self.logs()))
    }

    fn is_well(&self, job: &Job, result: &Value, again: usize) -> Result<()> {
        ensure!(result["done"].is_object(), "it ended otherwise: {result}");
        undisturbed(job)?.same_as(self.download(job)?.path())?;
        let marked = self.marked(job)?.len();
        ensure!(marked == job.tasks(), "{marked} markers of {} tasks", job.tasks());
        let ended = self.keys("state/ended/")?.into_iter().filter(|key| key.contains(&format!("/{}/", job.id))).count();
        ensure!(ended == 1, "it ended {ended} times");
        let (executions, chunks) = (self.executions(job, &job.picture()), job.chunks());
        ensure!(
            (chunks..=chunks + again).contains(&executions),
            "{executions} executions of {chunks} chunks, {again} may be more"
        );
        Ok(())
    }

    /// What is at the output of a job either does not look finished, or is all there and as it should be.
    ///
    /// # Errors
    /// When it looks whole and is not.
    pub fn nothing_half_made(&self, job: &Job) -> Result<()> {
        match self.object(&format!("out/{}/{}", job.id, keys::MASTER))? {
            None => Ok(()),
            Some(_) => undisturbed(job)?.same_as(self.download(job)?.path()).context("a half-made result looks whole"),
        }
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        // Only a server elsewhere keeps what is left here.
        let delete = async {
            let keys: Vec<String> = self.objects.list("").await.unwrap_or_default().into_iter().map(|entry| entry.key).collect();
            let _ = self.objects.delete(&keys).await;
        };
        let _ = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), delete).await });
        // Of every farm of every suite, whatever went wrong in it.
        let logs = self.logs();
        let told = self.secrets().into_iter().find(|secret| logs.contains(secret.as_str()));
        assert!(std::thread::panicking() || told.is_none(), "{told:?} stands in a log:\n{logs}");
    }
}

/// What came of an undisturbed run.
pub struct Undisturbed {
    made: Made,
    /// As [`Undisturbed::steps`], of its own job.
    steps: Vec<Step>,
}

/// A write of a scheduler: what is asked for, and the key, relative to what is the farm's; none for deletes of many, whose path
/// has no key.
pub type Step = (Operation, Option<String>);

/// The job of every undisturbed run.
const UNDISTURBED: &str = "undisturbed";

/// An undisturbed run of such a job. It is made once in a process.
///
/// # Errors
/// When it does not end well.
pub fn undisturbed(job: &Job) -> Result<Arc<Undisturbed>> {
    static MADE: Mutex<BTreeMap<String, Arc<Undisturbed>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let key = format!("{:?} {:?} {}", job.clip, job.layout, job.height);
    if let Some(made) = made.get(&key) {
        return Ok(Arc::clone(made));
    }
    let job = job.named(UNDISTURBED);
    let mut farm = Farm::new()?;
    let (_scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    farm.send(&job)?;
    let result = farm.ended(&job)?;
    ensure!(result["done"].is_object(), "{result}\n{}", farm.logs());
    let folder = farm.download(&job)?;
    let faults = check::faults(folder.path(), &job.clip)?;
    ensure!(faults.is_empty(), "without disturbance: {faults:?}");
    ensure!(farm.executions(&job, &job.picture()) == job.chunks(), "without disturbance a chunk was encoded twice");
    let run = Arc::new(Undisturbed { made: Made::read(folder.path())?, steps: farm.steps() });
    made.insert(key, Arc::clone(&run));
    Ok(run)
}

impl Farm {
    /// What schedulers wrote so far. Workers write markers, failures, and media under their tokens; all else is a scheduler's.
    fn steps(&self) -> Vec<Step> {
        let seen = self.s3.seen().into_iter().filter(|seen| seen.operation.writes());
        let steps = seen.map(|seen| (seen.operation, self.key_in(&seen.path).map(str::to_owned)));
        let is_workers = |key: &str| {
            let media = key.strip_prefix("out/").and_then(|key| key.split_once('/')).and_then(|(_, key)| keys::token_in(key));
            ["/begun/", "/done/", "/fail/"].iter().any(|part| key.contains(part)) || media.is_some()
        };
        steps.filter(|(_, key)| !key.as_deref().is_some_and(is_workers)).collect()
    }
}

impl Undisturbed {
    /// What schedulers write in the life of this job, in order.
    pub fn steps(&self, job: &Job) -> Vec<Step> {
        let of_job = |key: &String| key.replace(UNDISTURBED, job.id.as_str());
        self.steps.iter().map(|(operation, key)| (*operation, key.as_ref().map(of_job))).collect()
    }

    /// Compares a result with this one, byte by byte.
    ///
    /// # Errors
    /// Where they differ.
    pub fn same_as(&self, folder: &Path) -> Result<()> {
        let (wanted, made) = (&self.made, Made::read(folder)?);
        ensure!(wanted.playlists == made.playlists, "playlists {:#?} instead of {:#?}", made.playlists, wanted.playlists);
        for (name, wanted) in &wanted.media {
            let made = made.media.get(name).with_context(|| format!("no {name}"))?;
            ensure!(made.len() == wanted.len(), "{name}: {} segments instead of {}", made.len() - 1, wanted.len() - 1);
            if let Some(at) = wanted.iter().zip(made).position(|(wanted, made)| wanted != made) {
                bail!("{name}: segment {at} (0 is the init segment) is another than in an undisturbed run");
            }
        }
        let report = fs::read(folder.join(keys::REPORT)).context("no report")?;
        serde_json::from_slice::<Value>(&report).context("the report")?;
        Ok(())
    }
}

/// What is to be the same however a job went.
struct Made {
    /// Every playlist by its place; where tokens of executions stood are dots.
    playlists: BTreeMap<PathBuf, String>,
    /// By rendition: the init segment and every media segment.
    media: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Made {
    fn read(folder: &Path) -> Result<Self> {
        let presentation = Presentation::read(folder)?;
        let media = presentation.renditions.iter().map(|rendition| rendition.path.clone());
        let mut playlists = BTreeMap::new();
        for path in std::iter::once(folder.join(keys::MASTER)).chain(media) {
            playlists.insert(path.strip_prefix(folder)?.to_owned(), without_tokens(&fs::read_to_string(&path)?));
        }
        let media = presentation.renditions.into_iter().map(|rendition| {
            let name = rendition.name().to_owned();
            (name, std::iter::once(rendition.init).chain(rendition.segments.into_iter().map(|segment| segment.bytes)).collect())
        });
        Ok(Self { playlists, media: media.collect() })
    }
}

fn without_tokens(playlist: &str) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric();
    let words = playlist.split_inclusive(|c| !is_name(c)).map(|word| {
        let name = word.trim_end_matches(|c| !is_name(c));
        if Token::is_shape_of(name) { word.replace(name, "…") } else { word.to_owned() }
    });
    words.collect()
}
