//! One runner job, from being taken to its end: the source is fetched or there, the farm makes what is asked for, and the
//! result is handed in. Meanwhile the instance hears that it is being done.

use std::time::Duration;

use farm::job::{JobId, JobSpec};
use farm::storage::{Kind, StorageError};
use farm::task::{Object, Token as RandomToken};
use farm::{Code, Failure, keys, metrics};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::answer::{self, Answer};
use super::film::{self, Film, Look, Made};
use super::ladder;
use super::order::{Form, Order};
use super::protocol::{File, Refusal};
use super::runner::{Held, Runner, Taken};
use super::slide::Picture;
use crate::scheduler::{Phase, fetch, fetch_if_there};
use crate::step::JobResult;

/// How often the instance hears of a job, at least and at most. It takes it away after two minutes of silence.
const BEAT: Duration = Duration::from_secs(15);
const BEAT_SOONEST: Duration = Duration::from_secs(3);
/// Wait after something did not work that may work later: first and longest.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LONGEST: Duration = Duration::from_secs(30);
/// After so many failures, about an hour of them, a job is given back for others to try.
const TROUBLES_MAX: u32 = 120;
/// As so many counts one that broke off a file on its way: much was sent for nothing.
const BROKEN_OFF: u32 = 20;
/// Longest that a job of the farm may be halted before the runner job is given back.
const HALTED_MAX: Duration = Duration::from_secs(600);
/// How far a job is when the farm has made everything, in percent; the rest is handing in.
const MADE_PERCENT: u64 = 95;
/// Largest picture that is merged with a sound, in bytes.
const PICTURE_BYTES_MAX: u64 = 32 << 20;
/// Files that are remembered of a video.
const KNOWN_MAX: usize = 256;
/// How long what the instance makes of its videos stands.
const AHEAD_AGE_MAX: Duration = Duration::from_secs(300);
/// An upload that takes longer is near the five minutes that instances usually give.
const UPLOAD_USUAL_MAX: Duration = Duration::from_secs(240);

/// Why a job is not done.
enum Trouble {
    /// The instance's word.
    Instance(Refusal),
    /// It cannot be done.
    Cannot(Failure),
    /// Something here does not work now.
    Now(Failure),
    /// The farm cannot do anything until somebody mends it.
    Halted(Failure),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Own(error) => Self::Now(error.into()),
            other => Self::Instance(other),
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure.code.fault() {
            farm::Fault::Source | farm::Fault::Request => Self::Cannot(failure),
            farm::Fault::Environment | farm::Fault::Interruption => Self::Now(failure),
        }
    }
}

impl From<farm::storage::StorageError> for Trouble {
    fn from(error: farm::storage::StorageError) -> Self {
        Self::from(Failure::from(error))
    }
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Failed,
    Gone,
    GivenBack,
}

impl End {
    fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Gone => "gone",
            Self::GivenBack => "given_back",
        }
    }
}

impl Runner {
    /// Sees a job through; what was asked for, if the farm may now be doing it for nobody.
    pub(super) async fn see_through(&self, taken: &Taken) -> Option<Order> {
        let began = Instant::now();
        let order = Order::read(&taken.kind, &taken.payload);
        let form = order.as_ref().map_or("unknown", |order| order.form.word());
        let end = match &order {
            Ok(order) => {
                let (percent, seen) = watch::channel(0);
                tokio::select! {
                    end = self.beat(taken, seen) => end,
                    end = self.work(taken, order, &percent) => end,
                }
            }
            Err(why) => self.refuse(taken, why).await,
        };
        let labels = [self.slug(), form, end.word()];
        metrics::scheduler().peertube_jobs.with_label_values(&labels).inc();
        tracing::info!(instance = self.slug(), job = taken.uuid, end = end.word(), seconds = began.elapsed().as_secs(), "ended");
        order.ok().filter(|_| end != End::Done)
    }

    /// Has the instance hear of a job again and again; comes back when it is nobody's business here any more.
    async fn beat(&self, taken: &Taken, mut percent: watch::Receiver<u8>) -> End {
        loop {
            let so_far = *percent.borrow_and_update();
            match self.client.update(&taken.uuid, &taken.token, so_far).await {
                Err(Refusal::Gone | Refusal::UnknownRunner) => return End::Gone,
                Err(refusal) => tracing::warn!(instance = self.slug(), job = taken.uuid, "not heard: {refusal}"),
                Ok(()) => {}
            }
            sleep(BEAT_SOONEST).await;
            let _ = timeout(BEAT - BEAT_SOONEST, percent.changed()).await;
        }
    }

    async fn work(&self, taken: &Taken, order: &Order, percent: &watch::Sender<u8>) -> End {
        let mut troubles = 0;
        loop {
            let (why, weight) = match self.attempt(taken, order, percent).await {
                Ok(()) => return End::Done,
                Err(Trouble::Instance(Refusal::Gone | Refusal::UnknownRunner)) => return End::Gone,
                Err(Trouble::Cannot(failure)) => return self.refuse(taken, &failure.to_string()).await,
                Err(Trouble::Instance(refusal @ (Refusal::Refused(_) | Refusal::TooSlow))) => {
                    return self.refuse(taken, &refusal.to_string()).await;
                }
                Err(Trouble::Instance(refusal @ Refusal::BrokenOff(_))) => (refusal.to_string(), BROKEN_OFF),
                Err(Trouble::Instance(refusal)) => (refusal.to_string(), 1),
                Err(Trouble::Now(failure)) => (failure.message, 1),
                Err(Trouble::Halted(failure)) => (failure.message, TROUBLES_MAX),
            };
            tracing::warn!(instance = self.slug(), job = taken.uuid, "not now: {why}");
            let pause = AGAIN_FIRST.saturating_mul(1 << (troubles / 4).min(16)).min(AGAIN_LONGEST);
            troubles += weight;
            if troubles >= TROUBLES_MAX {
                // An instance that does not even hear this takes it away by itself.
                let _ = self.client.abort(&taken.uuid, &taken.token, &why).await;
                return End::GivenBack;
            }
            sleep(pause).await;
        }
    }

    /// Tells the instance that a job cannot be done.
    async fn refuse(&self, taken: &Taken, why: &str) -> End {
        tracing::warn!(instance = self.slug(), job = taken.uuid, "it cannot be done: {why}");
        for _ in 0..5 {
            match self.client.error(&taken.uuid, &taken.token, why).await {
                Err(Refusal::Unreachable(_) | Refusal::BrokenOff(_)) => sleep(BEAT).await,
                Ok(()) | Err(_) => break,
            }
        }
        End::Failed
    }

    async fn attempt(&self, taken: &Taken, order: &Order, percent: &watch::Sender<u8>) -> Result<(), Trouble> {
        let waiting = match self.prepare(taken, order).await {
            // Of the job, or of the file alone?
            Err(Trouble::Instance(Refusal::Gone)) => {
                self.client.update(&taken.uuid, &taken.token, 0).await?;
                let why = "the instance has no such file";
                return Err(Trouble::Cannot(Failure::new(Code::SourceUnreadable, why)));
            }
            prepared => prepared?,
        };
        match self.made(&waiting.what, percent).await? {
            JobResult::Done(_) => {}
            JobResult::Failed { failure, .. } => return Err(Trouble::Cannot(failure)),
            // It was stopped when nobody waited for it: the next attempt makes another.
            JobResult::Cancelled => return Err(Trouble::Now(Failure::new(Code::Cancelled, "it was stopped at the farm"))),
        }
        self.hand_in(taken, order, &waiting.what).await
    }

    /// The job of the farm that makes what is asked for: one that is there, or a new one.
    async fn prepare(&self, taken: &Taken, order: &Order) -> Result<Held<JobId>, Trouble> {
        let _alone = self.alone(&order.video).await;
        let seen = film::look(&self.client, &taken.token, &order.input).await?;
        let known = self.films.get(&order.video).await?.filter(|film| film.known.iter().any(|known| known.fits(&seen)));
        let known = match known {
            // Somebody may have deleted it.
            Some(film) if self.is_there(&film.source).await? => Some(film),
            _ => None,
        };
        let word = if known.is_some() { "kept" } else { "fetched" };
        let mut film = match known {
            Some(film) => film,
            None => self.fetched(taken, order, &seen).await?,
        };
        metrics::scheduler().peertube_sources.with_label_values(&[self.slug(), word]).inc();
        let there = film.made(order.rung).map(|made| made.job.clone());
        if let Some(job) = &there
            && let Some(JobResult::Failed { .. } | JobResult::Cancelled) = self.result_of(job).await?
        {
            // The instance wants it tried again.
            film.made.retain(|made| made.job != *job);
        }
        if film.made(order.rung).is_none() {
            let ahead = if self.instance.policy.ahead { self.ahead().await } else { Vec::new() };
            let job = JobId::try_from(format!("pt-{}", RandomToken::random()))?;
            film.made.push(Made { job, rungs: ladder::rungs(order.rung, &ahead), asked: Vec::new() });
        }
        let Some(made) = film.made(order.rung) else {
            return Err(Trouble::Now(Failure::new(Code::Internal, "a job that was just made is not there")));
        };
        let short = order.rung.map_or(0, |size| size.short);
        if !made.asked.contains(&short) {
            made.asked.push(short);
        }
        let made = made.clone();
        // First what there will be, then the job: after a crash between the two it is given to the farm again.
        self.films.put(&order.video, &film).await?;
        let waiting = self.wait_for(made.job.clone());
        let spec = match fetch_if_there::<JobSpec>(&self.state, &keys::spec(&made.job)).await? {
            Some(spec) => spec,
            None => {
                let source = self.films.url_of(&film.source)?;
                let output = self.films.url_of(&format!("{}{}/", self.films.prefix(&order.video), made.job))?;
                let mut spec = ladder::job(source, output, &made.rungs, &self.instance.policy);
                spec.id = Some(made.job.clone());
                spec
            }
        };
        self.scheduler.submit(spec).await?;
        Ok(waiting)
    }

    /// Fetches the source of a video.
    async fn fetched(&self, taken: &Taken, order: &Order, seen: &Look) -> Result<Film, Trouble> {
        if order.sound.is_some() {
            let why = "its sound stands apart, and the farm has not made that: transcoding it anew from an upload works";
            return Err(Trouble::Cannot(Failure::new(Code::InvalidRequest, why)));
        }
        let folder = format!("{}{}", self.films.prefix(&order.video), RandomToken::random());
        let source = format!("{folder}/source");
        let fetched =
            film::fetch(&self.client, &self.state, &taken.token, &order.input, &source, (seen, film::SOURCE_BYTES_MAX)).await?;
        let source = match &order.picture {
            None => source,
            Some(picture) => self.merged(taken, order, picture, &folder, &source).await?,
        };
        Ok(Film { source, known: vec![fetched], made: Vec::new() })
    }

    /// Makes a film of a sound and a picture: the farm makes AAC of the one, and the other is seen all the time.
    async fn merged(&self, taken: &Taken, order: &Order, picture: &Url, folder: &str, sound: &str) -> Result<String, Trouble> {
        let cannot = |why: String| Trouble::Cannot(Failure::new(Code::InvalidRequest, why));
        let key = format!("{folder}/picture/jpeg");
        let seen = film::look(&self.client, &taken.token, picture).await?;
        film::fetch(&self.client, &self.state, &taken.token, picture, &key, (&seen, PICTURE_BYTES_MAX)).await?;
        let shown = Picture::of(&self.state.get(&key).await?).ok_or_else(|| cannot("its picture is no JPEG".to_owned()))?;
        let (source, output) = (self.films.url_of(sound)?, self.films.url_of(&format!("{folder}/sound/"))?);
        let smallest = ladder::rungs(None, &[]);
        let job = self.scheduler.submit(ladder::job(source, output, &smallest, &self.instance.policy)).await?;
        let waiting = self.wait_for(job);
        match self.made(&waiting.what, &watch::channel(0).0).await? {
            JobResult::Done(_) => {}
            JobResult::Failed { failure, .. } => return Err(Trouble::Cannot(failure)),
            JobResult::Cancelled => return Err(Trouble::Now(Failure::new(Code::Cancelled, "it was stopped at the farm"))),
        }
        let seal = fetch(&self.state, &keys::seal(&waiting.what)).await?;
        let made = answer::plain_sound(&seal)?;
        let film = format!("{folder}/film");
        // The farm's output is below its state here.
        let made = Object { key: format!("{folder}/sound/{}", made.key), ..made.clone() };
        let fps = order.rung.map_or(0, |size| size.fps).clamp(1, 60);
        let parts = answer::slide(&self.state, shown, fps, &key, &made).await?;
        self.state.join(&film, &parts, Kind::VideoMp4).await?;
        Ok(film)
    }

    async fn is_there(&self, key: &str) -> Result<bool, Trouble> {
        match self.state.get_range(key, 0..1).await {
            Ok(_) => Ok(true),
            Err(StorageError::NotFound(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// What the instance makes of its videos; nothing when it does not say.
    async fn ahead(&self) -> Vec<u32> {
        let mut ahead = self.ahead.lock().await;
        if let Some((at, resolutions)) = &*ahead
            && at.elapsed() < AHEAD_AGE_MAX
        {
            return resolutions.clone();
        }
        let resolutions = self.client.resolutions().await.unwrap_or_else(|refusal| {
            tracing::warn!(instance = self.slug(), "what it makes of its videos is not known: {refusal}");
            Vec::new()
        });
        *ahead = Some((Instant::now(), resolutions.clone()));
        resolutions
    }

    /// How a job of the farm ended, if it has.
    async fn result_of(&self, job: &JobId) -> Result<Option<JobResult>, Trouble> {
        if fetch_if_there::<JobSpec>(&self.state, &keys::spec(job)).await?.is_none() {
            return Ok(None);
        }
        let views = self.scheduler.follow(job).await?;
        let phase = views.borrow().phase.clone();
        Ok(match phase {
            Phase::Ended(result) => Some(result),
            Phase::Waiting | Phase::Probing | Phase::Encoding | Phase::Packing | Phase::Halted(_) => None,
        })
    }

    /// Waits for a job of the farm.
    async fn made(&self, job: &JobId, percent: &watch::Sender<u8>) -> Result<JobResult, Trouble> {
        let mut views = self.scheduler.follow(job).await?;
        let mut halted_at = None;
        loop {
            let view = views.borrow_and_update().clone();
            match view.phase {
                Phase::Ended(result) => return Ok(result),
                Phase::Halted(failure) => {
                    if halted_at.get_or_insert_with(Instant::now).elapsed() > HALTED_MAX {
                        return Err(Trouble::Halted(failure));
                    }
                }
                Phase::Waiting | Phase::Probing | Phase::Encoding | Phase::Packing => halted_at = None,
            }
            let so_far = (view.media_done_ns.saturating_mul(MADE_PERCENT)).checked_div(view.media_total_ns).unwrap_or(0);
            percent.send_replace(u8::try_from(so_far).unwrap_or(0));
            if let Ok(Err(_)) = timeout(HALTED_MAX, views.changed()).await {
                return Err(Trouble::Now(Failure::new(Code::Interrupted, "the scheduler stops")));
            }
        }
    }

    /// Hands in what was made.
    async fn hand_in(&self, taken: &Taken, order: &Order, job: &JobId) -> Result<(), Trouble> {
        let seal = fetch(&self.state, &keys::seal(job)).await?;
        let spec: JobSpec = fetch(&self.state, &keys::spec(job)).await?;
        let output = self.state.open_beside(&spec.output.url)?;
        let Answer { file, name, playlist } = answer::of(&output, &seal, order.form, order.rung).await?;
        let look = Look { bytes: Some(file.bytes), head: answer::digest(&file.head(&output).await?) };
        self.know(&order.video, look).await?;
        let bytes = file.bytes;
        let file = File {
            field: "payload[videoFile]",
            name,
            media_type: "video/mp4",
            bytes,
            content: futures::future::Either::Left(file.stream(output)),
        };
        let mut files = vec![file];
        if let (Form::Together | Form::Apart, Some((name, text))) = (order.form, playlist) {
            let (bytes, text) = (text.len() as u64, bytes::Bytes::from(text));
            files.push(File {
                field: "payload[resolutionPlaylistFile]",
                name,
                media_type: "application/vnd.apple.mpegurl",
                bytes,
                content: futures::future::Either::Right(futures::stream::iter([Ok(text)])),
            });
        }
        if !self.watch.is_acting() {
            return Err(Trouble::Now(Failure::new(Code::Interrupted, "another scheduler acts")));
        }
        let began = Instant::now();
        let said = self.client.success(&taken.uuid, &taken.token, files).await;
        let took = began.elapsed();
        match said {
            // The answer of a server that waits no longer often gets lost with the connection.
            Err(Refusal::BrokenOff(_) | Refusal::Unreachable(_)) if took > UPLOAD_USUAL_MAX => {
                return Err(Refusal::TooSlow.into());
            }
            said => said?,
        }
        metrics::scheduler().peertube_upload.observe(took.as_secs_f64());
        if took > UPLOAD_USUAL_MAX {
            tracing::warn!(
                instance = self.slug(),
                job = taken.uuid,
                bytes,
                seconds = took.as_secs(),
                "handing in took nearly as long as an instance waits: http_timeouts.request there should be more"
            );
        }
        Ok(())
    }

    /// Remembers a file that is about to be handed in.
    async fn know(&self, video: &str, look: Look) -> Result<(), Trouble> {
        let _alone = self.alone(video).await;
        if let Some(mut film) = self.films.get(video).await?
            && !film.known.contains(&look)
            && film.known.len() < KNOWN_MAX
        {
            film.known.push(look);
            self.films.put(video, &film).await?;
        }
        Ok(())
    }
}
