//! A stand-in for an instance of PeerTube: the server's side of the runner protocol, as strict as the real one and stricter.
//! What a runner does that it must not is kept as a fault.

mod check;
mod orders;
mod routes;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::broadcast;

pub use self::orders::Task;
use crate::process;

/// The token with which runners register.
pub const REGISTRATION: &str = "ptrrt-9d1e6a0c-5a4f-4f0e-8c36-5d0b7b7f3f10";

/// Longest silence about a job that is being done: a server takes it away after two minutes.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Which server it is like, and how it is set.
#[derive(Clone, Copy, Debug)]
pub struct Like {
    /// Whether payloads know of sound that stands apart (6.3 and later), and whether HLS is made so.
    pub apart: Option<bool>,
    /// Whether it offers only the types that were asked for (7.0 and later).
    pub filters_types: bool,
    /// Whether runners make storyboards, and orders for sound alone name a file with sound (8.0 and later).
    pub storyboards: bool,
    /// How a watermark's distance to the right edge is called: up to 7 it was misspelled.
    pub margin: &'static str,
    /// Whether numbers of the studio's tasks come as text, as they were typed in.
    pub typed: bool,
    /// Resolutions that are made, the source's own besides.
    pub resolutions: &'static [u32],
}

/// PeerTube 6.2: no sound apart, every type offered.
pub const V6_2: Like = Like { apart: None, filters_types: false, resolutions: &[0, 240], ..V7_3 };
/// PeerTube 7.3 with sound apart.
pub const V7_3: Like = Like {
    apart: Some(true),
    filters_types: true,
    storyboards: false,
    margin: "horitonzalMarginRatio",
    typed: true,
    resolutions: &[0, 144, 240],
};
/// PeerTube 8.2 with sound apart.
pub const V8_2: Like = Like { storyboards: true, margin: "horizontalMarginRatio", typed: false, ..V7_3 };

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It may be taken.
    Pending,
    /// It is being done.
    Processing,
    /// It is done.
    Completed,
    /// It failed too often.
    Errored,
    /// Another has to be done first.
    Waiting,
    /// An admin stopped it.
    Cancelled,
}

/// A job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub uuid: String,
    /// The video that it is about.
    pub video: String,
    /// Its type.
    pub kind: &'static str,
    /// What is asked for.
    pub payload: Value,
    /// How it stands.
    pub state: State,
    /// How often it failed.
    pub failures: u32,
    /// What was said the last time.
    pub error: String,
    /// How often it was taken.
    pub accepted: u32,
    /// Highest progress that was told, in percent.
    pub progress: u32,
    token: Option<String>,
    heard: Instant,
    after: Option<String>,
}

/// A file of a video.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Where it is.
    pub path: PathBuf,
    /// Short edge in pixels; 0 for sound alone.
    pub resolution: u32,
    /// Its playlist, for HLS.
    pub playlist: Option<PathBuf>,
    /// Whether there is sound in it.
    pub sound: bool,
}

/// What goes wrong, a number of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A request for jobs is answered with this status.
    Request(u16),
    /// A job that is accepted was taken by another.
    LostRace,
    /// A file breaks off after so many bytes.
    BreakOff(u64),
    /// A result is refused with this status.
    Success(u16),
    /// The connection breaks in the middle of a result.
    HangUp,
    /// A result is refused as one that came too slowly.
    TooSlow,
    /// A result is taken, and the answer takes so many seconds.
    LongAnswer(u64),
    /// A result is taken, and the answer does not come.
    LostAnswer,
    /// A result is taken, and the job is offered again all the same.
    OfferedAgain,
    /// The file of the studio's task at this place is not there.
    NoTaskFile(usize),
}

struct World {
    like: Like,
    /// Its URL, without the last slash.
    base: String,
    folder: PathBuf,
    runners: BTreeMap<String, String>,
    jobs: Vec<Job>,
    videos: BTreeMap<String, Vec<Stored>>,
    /// Storyboards by video.
    storyboards: BTreeMap<String, PathBuf>,
    troubles: Vec<Trouble>,
    faults: Vec<String>,
    /// Bytes of sources that were sent.
    sent_bytes: u64,
    calls: broadcast::Sender<()>,
    requests: u64,
}

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running instance.
pub struct Instance {
    world: Shared,
    address: SocketAddr,
    folder: TempDir,
    runtime: Option<Runtime>,
}

impl Instance {
    /// Starts one.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(like: Like) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let world = World {
            like,
            base: format!("http://{address}"),
            folder: folder.path().to_owned(),
            runners: BTreeMap::new(),
            jobs: Vec::new(),
            videos: BTreeMap::new(),
            storyboards: BTreeMap::new(),
            troubles: Vec::new(),
            faults: Vec::new(),
            sent_bytes: 0,
            calls: broadcast::Sender::new(16),
            requests: 0,
        };
        let world = Arc::new(Mutex::new(world));
        let router = routes::router(Arc::clone(&world));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Self { world, address, folder, runtime: Some(runtime) })
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// A file of instances that names this one, and others as they are.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, tenant: &str, more: &str) -> Result<PathBuf> {
        let token = format!("ptrt-of-{tenant}");
        lock(&self.world).runners.insert(token.clone(), tenant.to_owned());
        let path = self.folder.path().join(format!("{tenant}.toml"));
        let own =
            format!("[[instances]]\nurl = '{}'\nname = '{tenant}'\nrunner_token = '{token}'\ntenant = '{tenant}'\n", self.url());
        std::fs::write(&path, format!("{own}{more}"))?;
        Ok(path)
    }

    /// Takes a video in, with everything that is to be made of it: the picture at its own size first, then the others.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn upload(&self, file: &Path, short: u32, fps: u32) -> Result<String> {
        let mut world = lock(&self.world);
        let video = uuid();
        let stored = world.store(&video, file, short)?;
        world.videos.insert(video.clone(), vec![stored]);
        world.graph(&video, short, fps);
        if !world.like.filters_types {
            world.add(&video, "video-transcription", 0, 0, None);
        }
        let _ = world.calls.send(());
        Ok(video)
    }

    /// Takes a video in whose sound stands apart, as one that another runner has made: nothing is to be made of it yet.
    ///
    /// # Errors
    /// When its files cannot be copied.
    pub fn upload_apart(&self, picture: &Path, sound: &Path, short: u32) -> Result<String> {
        let mut world = lock(&self.world);
        let video = uuid();
        let picture = Stored { sound: false, ..world.store(&video, picture, short)? };
        let sound = world.store(&video, sound, 0)?;
        world.videos.insert(video.clone(), vec![picture, sound]);
        Ok(video)
    }

    /// Takes a sound in, and the picture that is to be seen with it.
    ///
    /// # Errors
    /// When they cannot be copied.
    pub fn upload_sound(&self, sound: &Path, picture: &Path) -> Result<String> {
        let mut world = lock(&self.world);
        let video = uuid();
        let stored = world.store(&video, sound, 0)?;
        std::fs::copy(picture, world.folder.join(format!("{video}.jpg")))?;
        world.videos.insert(video.clone(), vec![stored]);
        let first = world.add(&video, "vod-audio-merge-transcoding", 480, 25, None);
        world.add(&video, "vod-hls-transcoding", 480, 25, Some(&first));
        world.add(&video, "vod-web-video-transcoding", 240, 25, Some(&first));
        let _ = world.calls.send(());
        Ok(video)
    }

    /// Has something go wrong so many times.
    pub fn trouble(&self, trouble: Trouble, times: usize) {
        lock(&self.world).troubles.extend(std::iter::repeat_n(trouble, times));
    }

    /// Troubles that did not come to pass yet.
    pub fn troubles_left(&self) -> usize {
        lock(&self.world).troubles.len()
    }

    /// Every job, in the order they were made.
    pub fn jobs(&self) -> Vec<Job> {
        lock(&self.world).jobs.clone()
    }

    /// The files of a video.
    pub fn files(&self, video: &str) -> Vec<Stored> {
        lock(&self.world).videos.get(video).cloned().unwrap_or_default()
    }

    /// The storyboard of a video.
    pub fn storyboard(&self, video: &str) -> Option<PathBuf> {
        lock(&self.world).storyboards.get(video).cloned()
    }

    /// What runners did that they must not.
    pub fn faults(&self) -> Vec<String> {
        let mut world = lock(&self.world);
        world.note_silence();
        world.faults.clone()
    }

    /// Bytes of sources that were sent.
    pub fn sent_bytes(&self) -> u64 {
        lock(&self.world).sent_bytes
    }

    /// Requests that came.
    pub fn requests(&self) -> u64 {
        lock(&self.world).requests
    }

    /// Stops the jobs that are not done, as an admin would who deletes the video.
    pub fn cancel(&self) {
        let mut world = lock(&self.world);
        for job in world.jobs.iter_mut().filter(|job| job.state != State::Completed) {
            (job.state, job.token) = (State::Cancelled, None);
        }
    }

    /// Takes away what is being done and offers it again, as after two minutes of silence.
    pub fn lose(&self) {
        let mut world = lock(&self.world);
        for job in world.jobs.iter_mut().filter(|job| job.state == State::Processing) {
            (job.state, job.token) = (State::Pending, None);
        }
        let _ = world.calls.send(());
    }

    /// Knows no runner any more.
    pub fn revoke(&self) {
        lock(&self.world).runners.clear();
    }

    /// Waits until every job of a kind that runners do is done, but for those that were stopped.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn until_done(&self, limit: Duration) -> Result<()> {
        let is_over = |job: &Job| [State::Completed, State::Cancelled].contains(&job.state);
        let left = || self.jobs().into_iter().filter(|job| job.kind != "video-transcription" && !is_over(job));
        process::until("every runner job is done", limit, || Ok(left().next().is_none()))
            .with_context(|| format!("{:?}", left().map(|job| (job.kind, job.state, job.error)).collect::<Vec<_>>()))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A name as PeerTube makes them.
fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

impl World {
    fn fault(&mut self, what: impl Into<String>) {
        self.faults.push(what.into());
    }

    fn take(&mut self, wanted: impl Fn(&Trouble) -> bool) -> Option<Trouble> {
        let place = self.troubles.iter().position(wanted)?;
        Some(self.troubles.remove(place))
    }

    fn note_silence(&mut self) {
        let silent = |job: &&Job| job.state == State::Processing && job.heard.elapsed() > SILENCE_MAX;
        let silent: Vec<String> = self.jobs.iter().filter(silent).map(|job| job.uuid.clone()).collect();
        self.faults.extend(silent.into_iter().map(|job| format!("nothing was heard of {job} for too long")));
    }

    /// A job is done: those that waited for it may be taken.
    fn release(&mut self, done: &str) {
        for job in self.jobs.iter_mut().filter(|job| job.state == State::Waiting && job.after.as_deref() == Some(done)) {
            job.state = State::Pending;
        }
        let _ = self.calls.send(());
    }
}
