//! Thousands of mutated files through one process, with a scheduler and a worker as `shoal transcode` has them. Children may
//! crash of them. Their parent may not, nor hang, nor keep anything, and every end has its reason.
//!
//! 60 mutants, or as many as `MUTANTS` says (`make mutants`: 5000). With `MUTANT=n` mutant n is made again, tried alone, and
//! kept in `target/mutants`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use farm::broker::Broker;
use farm::job::{JobId, JobSpec, LadderSpec, RungSpec};
use farm::media::MediaInfo;
use farm::rate::SECOND_NS;
use farm::storage::Storage;
use farm::task::TaskId;
use farm::{Failure, Fault, Life, keys, metrics};
use futures::StreamExt as _;
use scheduler::dispatch::Window;
use scheduler::{JobResult, Scheduler};
use tempfile::TempDir;
use tests::crash::Crash;
use tests::mutate::{Mutant, mutate};
use tests::{corpus, process, shoal};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use url::Url;
use worker::{ChildCommand, Worker};

/// How many mutants there are when nothing else is said.
const USUAL: usize = 60;
/// How many are on their way at a time: more than there are slots, as a task that failed waits before it is tried again.
const AT_A_TIME: usize = 8;
/// Room for the tasks of all of them: those that wait to be tried again would hold up the others.
const WINDOW: Window = Window::Fixed(64);
/// Files of the corpus that are larger are left out, and of the others no more than their beginnings are taken.
const FILE_BYTES_MAX: u64 = 1_200_000;
const SOURCE_BYTES_MAX: usize = 400_000;
/// What is longer than this is not transcoded here: a number that was changed may promise hours, and they would be made.
const SECONDS_MAX: u64 = 15;
/// About how many pieces a picture is made in, so that it is sought in as well.
const PIECES: u64 = 3;
/// Limits of an attempt.
const DEADLINE: Duration = Duration::from_secs(60);
const STALL: Duration = Duration::from_secs(20);
/// Three attempts at a task that takes each to its deadline, and the waits between, with others before: what takes longer than
/// this hangs.
const LIMIT: Duration = Duration::from_secs(900);
/// After how many mutants it is looked what the process holds, to compare with the end: when each part of it was in use, and
/// when the C library has had as much memory as it takes.
const FILES_AFTER: usize = 20;
const MEMORY_AFTER: usize = 200;
/// How many descriptors may come and go, and by how much memory may grow.
const FILES_SLACK: usize = 2;
const MEMORY_SLACK_KIB: u64 = 64 << 10;
/// How long what was given up may take to end.
const QUIET_WAIT: Duration = Duration::from_secs(30);
/// How many ended jobs keep their state: workers may still be at a task of one that failed.
const KEPT: usize = 64;
/// So many mutants are tried between two words on how far it is.
const NEWS: usize = 250;
/// Has each element say in a word what is wrong, so that the last to speak can be named when a child crashes. The registry of
/// plugins has always something to say.
const LOG: &str = "GST_DEBUG=2,GST_REGISTRY:0,GST_PLUGIN_LOADING:0";

const DONE: &str = "done";
const WARNED: &str = "done, with warnings";

/// Panics in any thread of this process.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        usual(panic);
    }));
}

/// A file of the corpus, or its beginning.
struct Source {
    name: String,
    bytes: Vec<u8>,
}

fn sources(folder: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for item in std::fs::read_dir(folder)? {
        let path = item?.path();
        let about = std::fs::metadata(&path)?;
        let is_media = about.is_file() && path.extension().is_some_and(|end| end != "md");
        let Some(name) = path.file_name().filter(|_| is_media && about.len() < FILE_BYTES_MAX) else { continue };
        let mut bytes = std::fs::read(&path)?;
        bytes.truncate(SOURCE_BYTES_MAX);
        sources.push(Source { name: name.to_string_lossy().into_owned(), bytes });
    }
    ensure!(!sources.is_empty(), "no files in {}", folder.display());
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sources)
}

/// The numbers of the mutants to be tried.
fn numbers() -> Result<Vec<usize>> {
    if let Ok(number) = std::env::var("MUTANT") {
        return Ok(vec![number.parse::<usize>().context("MUTANT")?]);
    }
    let count = std::env::var("MUTANTS").ok().map_or(Ok(USUAL), |count| count.parse::<usize>()).context("MUTANTS")?;
    Ok((0..count).collect())
}

/// The release program as a child, which logs.
fn child() -> Result<ChildCommand> {
    let program = shoal::program()?;
    if !worker::sandbox::has_registry() {
        shoal::run(shoal::command(["child", "--prepare"])?, shoal::RUN_LIMIT)?.success()?;
    }
    let program = program.to_str().context("the program's path is no text")?;
    let args = [LOG, "GST_DEBUG_NO_COLOR=1", program, "child", "--sandbox", "best-effort"];
    Ok(ChildCommand { program: PathBuf::from("/usr/bin/env"), args: args.map(str::to_owned).to_vec() })
}

/// Whether a failure is one that a source may have: with any other, somebody would look for what is wrong with the machine, or
/// with Shoal.
fn is_of_a_source(failure: &Failure) -> bool {
    matches!(failure.code.fault(), Fault::Source | Fault::Request)
}

/// What came of a mutant.
#[derive(Default)]
struct Tried {
    /// How it ended, in a word.
    end: String,
    /// Attempts that failed, and at what.
    failures: Vec<(String, Failure)>,
    /// What must not be.
    faults: Vec<String>,
}

impl Tried {
    /// Ends with this failure.
    fn failed(&mut self, at: &str, failure: &Failure) {
        self.end = format!("{at}: {}", failure.code);
        if !is_of_a_source(failure) {
            self.faults.push(format!("{}: {failure}", self.end));
        }
    }

    fn hung(&mut self, at: &str) {
        self.end = format!("{at}: hung");
        self.faults.push(format!("{at} did not end within {LIMIT:?}"));
    }
}

/// What came of all mutants.
#[derive(Default)]
struct Tally {
    tried: usize,
    ends: BTreeMap<String, usize>,
    /// The mutants of each kind of crash, and at what it was: as often as children crashed of them.
    crashes: BTreeMap<(Crash, String), Vec<usize>>,
    faults: Vec<String>,
}

impl Tally {
    fn say(&self) {
        corpus::say(&format!("{} mutants ended:", self.tried));
        table(self.ends.iter().map(|(end, count)| (*count, end.clone())).collect());
        let crashes = self.crashes.iter().map(|((crash, at), mutants)| {
            let first = mutants.first().copied().unwrap_or_default();
            (mutants.len(), format!("{} in {}, {at} (mutant {first})", crash.how, crash.speaker))
        });
        corpus::say(&format!("{} crashes of children, by who spoke last:", self.crashes.values().map(Vec::len).sum::<usize>()));
        table(crashes.collect());
    }
}

/// Says each line with its count, the highest first.
fn table(mut lines: Vec<(usize, String)>) {
    lines.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    lines.iter().for_each(|(count, line)| corpus::say(&format!("{count:>7}  {line}")));
}

/// A scheduler and a worker in this process, and what they are given.
struct Parent {
    sources: Vec<Source>,
    folder: TempDir,
    state: Storage,
    scheduler: scheduler::Handle,
    workers: worker::Handle,
    settings: worker::Settings,
    /// As many probes beside the worker's tasks as it has slots.
    probes: Semaphore,
    /// Jobs that have ended and whose state is still there, the oldest first.
    ended: Mutex<VecDeque<JobId>>,
}

impl Parent {
    fn start(sources: Vec<Source>) -> Result<Self> {
        let slots = std::thread::available_parallelism().map_or(1, usize::from);
        let folder = tempfile::tempdir()?;
        let (state, broker) = (Storage::folder(&folder.path().join("state")), Broker::local());
        let settings = worker::Settings { deadline: DEADLINE, stall: STALL, ..worker::Settings::new(slots, child()?) };
        let workers = Worker::start(settings.clone(), state.clone(), broker.clone())?;
        let settled = scheduler::Settings { window: WINDOW, ..scheduler::Settings::for_slots(slots) };
        let scheduler = Scheduler::start(settled, state.clone(), broker);
        let (probes, ended) = (Semaphore::new(slots), Mutex::default());
        Ok(Self { sources, folder, state, scheduler, workers, settings, probes, ended })
    }

    /// A mutant by its number: of which file, and what became of it.
    fn mutant(&self, number: usize) -> Result<(&Source, Mutant)> {
        let count = self.sources.len();
        let (index, round) = (number % count, number / count);
        let source = self.sources.get(index).context("no such source")?;
        // Another one in each round.
        let donor = self.sources.get((index + round + 1) % count).context("no such source")?;
        Ok((source, mutate(&source.bytes, &donor.bytes, number as u64)))
    }

    /// Tries these, several at a time.
    async fn try_all(&self, numbers: &[usize], tally: &mut Tally) -> Result<()> {
        let tries = numbers.iter().copied().map(|number| async move { (number, self.tried(number).await) });
        let mut tries = futures::stream::iter(tries).buffer_unordered(AT_A_TIME);
        while let Some((number, tried)) = tries.next().await {
            self.note(number, tried, tally)?;
        }
        Ok(())
    }

    fn note(&self, number: usize, tried: Result<Tried>, tally: &mut Tally) -> Result<()> {
        let tried = tried.unwrap_or_else(|error| {
            let (end, faults) = ("not tried".to_owned(), vec![format!("{error:#}")]);
            Tried { end, faults, ..Tried::default() }
        });
        let (source, mutant) = self.mutant(number)?;
        let shown = format!("mutant {number} of {} {:?}", source.name, mutant.changes);
        let mut said = BTreeSet::new();
        for (at, failure) in tried.failures {
            let Some(crash) = Crash::of(&failure) else { continue };
            let kind = (crash, at);
            if said.insert(kind.clone()) {
                corpus::say(&format!("{shown}: {}: {failure}", kind.1));
            }
            tally.crashes.entry(kind).or_default().push(number);
        }
        for fault in tried.faults {
            let kept = self.keep(number)?;
            let fault = format!("{shown}: {fault} (kept as {})", kept.display());
            corpus::say(&fault);
            tally.faults.push(fault);
        }
        *tally.ends.entry(tried.end).or_default() += 1;
        tally.tried += 1;
        if tally.tried.is_multiple_of(NEWS) {
            let crashes: usize = tally.crashes.values().map(Vec::len).sum();
            corpus::say(&format!("{} mutants, {crashes} crashes, {} MiB", tally.tried, resident_kib()? >> 10));
        }
        Ok(())
    }

    /// Keeps a mutant as a file.
    fn keep(&self, number: usize) -> Result<PathBuf> {
        let folder = process::target_folder()?.join("mutants");
        std::fs::create_dir_all(&folder)?;
        let (source, mutant) = self.mutant(number)?;
        let path = folder.join(format!("{number}-{}", source.name));
        std::fs::write(&path, &mutant.bytes)?;
        Ok(path)
    }

    /// Probes a mutant, and transcodes it when it probes well.
    async fn tried(&self, number: usize) -> Result<Tried> {
        let (source, mutant) = self.mutant(number)?;
        let folder = tempfile::tempdir_in(self.folder.path())?;
        let file = folder.path().join(&source.name);
        std::fs::write(&file, &mutant.bytes)?;
        drop(mutant);
        let no_url = |()| anyhow!("{} has no URL", file.display());
        let output = Url::from_directory_path(folder.path().join("out")).map_err(no_url)?;
        let spec = JobSpec::new(Url::from_file_path(&file).map_err(no_url)?, output);
        let probed = {
            let _turn = self.probes.acquire().await?;
            timeout(LIMIT, Box::pin(worker::probe(&spec.source, &self.settings))).await
        };
        let mut tried = Tried::default();
        match probed {
            Err(_) => tried.hung("probe"),
            Ok(Err(failure)) => {
                tried.failed("probe", &failure);
                let kind = file.extension().unwrap_or_default().to_string_lossy().into_owned();
                tried.failures.push((format!("probe of {kind}"), failure));
            }
            Ok(Ok(info)) if info.duration_ns > SECONDS_MAX * SECOND_NS => {
                tried.end = "probe: too long to be made here".to_owned();
            }
            Ok(Ok(info)) => Box::pin(self.transcode(number, spec, &info, &mut tried)).await?,
        }
        Ok(tried)
    }

    async fn transcode(&self, number: usize, mut spec: JobSpec, info: &MediaInfo, tried: &mut Tried) -> Result<()> {
        spec.id = Some(JobId::try_from(format!("mutant-{number}"))?);
        spec.ladder = LadderSpec::Rungs(vec![RungSpec { height: 144, fps: None, video: None }]);
        spec.segment_seconds = 1;
        spec.chunk_seconds = Some(u32::try_from(info.duration_ns.div_ceil(PIECES * SECOND_NS))?.max(1));
        let id = self.scheduler.submit(spec).await?;
        let ended = timeout(LIMIT, self.scheduler.wait(&id)).await;
        let prefix = keys::fail_prefix(&id, Life::FIRST);
        for entry in self.state.list(&prefix).await? {
            let failure: Failure = serde_json::from_slice(&self.state.get(&entry.key).await?)?;
            let (task, _) = entry.key.strip_prefix(&prefix).and_then(|rest| rest.split_once('/')).context("no task")?;
            let task: TaskId = task.parse()?;
            if !is_of_a_source(&failure) {
                tried.faults.push(format!("an attempt at {task}: {}: {failure}", failure.code));
            }
            tried.failures.push((concerned(&task, info), failure));
        }
        match ended {
            Ok(Ok(JobResult::Done(summary))) => {
                tried.end = if summary.warnings.is_empty() { DONE } else { WARNED }.to_owned();
            }
            Ok(Ok(JobResult::Failed { failure, .. })) => tried.failed("job", &failure),
            Ok(Ok(JobResult::Cancelled)) => tried.faults.push("cancelled by nobody".to_owned()),
            // It waits until the machine is mended, which a source must not bring about.
            Ok(Err(failure)) => {
                tried.failed("halted", &failure);
                self.scheduler.cancel(&id).await?;
            }
            Err(_) => {
                tried.hung("job");
                self.scheduler.cancel(&id).await?;
            }
        }
        self.forget_after(id).await
    }

    /// Has the state of a job forgotten a while after it ended.
    async fn forget_after(&self, id: JobId) -> Result<()> {
        let oldest = {
            let mut ended = self.ended.lock().expect("no panics");
            ended.push_back(id);
            if ended.len() > KEPT { ended.pop_front() } else { None }
        };
        let Some(oldest) = oldest else { return Ok(()) };
        let listed = self.state.list(&keys::job_prefix(&oldest)).await?;
        let keys: Vec<String> = listed.into_iter().map(|entry| entry.key).collect();
        Ok(self.state.delete(&keys).await?)
    }
}

/// What a task is at: the codec of its stream, or the container.
fn concerned(task: &TaskId, info: &MediaInfo) -> String {
    let codec = match task {
        TaskId::Video(_) | TaskId::First(_) => info.video.first().map(|track| track.codec.as_str()),
        TaskId::Audio(index) => info.audio.get(*index as usize).map(|track| track.codec.as_str()),
        _ => None,
    };
    format!("{} of {}", metrics::kind(task), codec.unwrap_or(&info.container))
}

/// Waits until no child is left.
async fn quiet() -> Result<()> {
    let none_left = async {
        while !process::descendants(std::process::id()).is_empty() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let left = || format!("children are left: {:?}", process::descendants(std::process::id()));
    timeout(QUIET_WAIT, none_left).await.with_context(left)
}

/// What this process has open.
fn open_files() -> Result<Vec<PathBuf>> {
    let listed = std::fs::read_dir("/proc/self/fd")?.flatten();
    Ok(listed.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect())
}

/// Memory of this process in KiB.
fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_serves_thousands_of_mutants_ends_each_and_keeps_nothing() -> Result<()> {
    let Some(folder) = corpus::folder() else { return Ok(()) };
    let numbers = numbers()?;
    count_panics();
    let (parent, mut tally, began) = (Parent::start(sources(&folder)?)?, Tally::default(), Instant::now());
    if let [number] = numbers[..] {
        corpus::say(&format!("kept as {}", parent.keep(number)?.display()));
    }
    // The second part is there where enough comes after it to see memory grow.
    let memory_after = if numbers.len() >= 2 * MEMORY_AFTER { MEMORY_AFTER } else { FILES_AFTER };
    let (first, rest) = numbers.split_at(FILES_AFTER.min(numbers.len()));
    let (second, rest) = rest.split_at((memory_after - FILES_AFTER).min(rest.len()));
    parent.try_all(first, &mut tally).await?;
    quiet().await?;
    let files_before = open_files()?.len();
    parent.try_all(second, &mut tally).await?;
    quiet().await?;
    let kib_before = resident_kib()?;
    parent.try_all(rest, &mut tally).await?;
    quiet().await?;

    // What ended with the last child is closed a moment later.
    let mut files = open_files()?;
    let looked_from = Instant::now();
    while files.len() > files_before + FILES_SLACK && looked_from.elapsed() < QUIET_WAIT {
        sleep(Duration::from_millis(100)).await;
        files = open_files()?;
    }
    let kib = resident_kib()?;
    tally.say();
    let (after, took) = (numbers.len() - rest.len(), began.elapsed());
    corpus::say(&format!("in {took:.0?}; memory {} MiB after {after}, {} MiB at the end", kib_before >> 10, kib >> 10));
    let Parent { workers, scheduler, .. } = parent;
    workers.shutdown().await;
    scheduler.shutdown().await;
    ensure!(tally.faults.is_empty(), "{} of {}: {:#?}", tally.faults.len(), numbers.len(), tally.faults);
    let panics = PANICS.load(Ordering::Relaxed);
    ensure!(panics == 0, "{panics} panics");
    ensure!(files.len() <= files_before + FILES_SLACK, "{files_before} descriptors became {}: {files:?}", files.len());
    ensure!(kib <= kib_before + MEMORY_SLACK_KIB, "{kib_before} KiB of memory became {kib}");
    let left = process::descendants(std::process::id());
    ensure!(left.is_empty(), "children are left: {left:?}");
    // Were none of them made, little of this would have been tried.
    let done: usize = [DONE, WARNED].iter().filter_map(|end| tally.ends.get(*end)).sum();
    ensure!(numbers.len() < USUAL || done * 10 >= numbers.len(), "only {done} of {} were made", numbers.len());
    Ok(())
}
