//! One runner job, from being taken to its end: the source is fetched or there, the farm makes what is asked for, and the
//! result is handed in. Meanwhile the instance hears that it is being done.

use std::time::Duration;

use farm::job::{JobId, JobSpec};
use farm::task::Token as RandomToken;
use farm::{Code, Failure, keys, metrics};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::answer::{self, Answer};
use super::film::{self, Film, Look, Made};
use super::ladder;
use super::order::{Form, Order};
use super::protocol::{File, Refusal};
use super::runner::{Runner, Taken};
use crate::scheduler::{Phase, fetch, fetch_if_there};
use crate::step::JobResult;

/// How often the instance hears of a job, at least and at most. It takes it away after two minutes of silence.
const BEAT: Duration = Duration::from_secs(15);
const BEAT_SOONEST: Duration = Duration::from_secs(3);
/// Wait after something did not work that may work later: first and longest.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LONGEST: Duration = Duration::from_secs(30);
/// After so many failures in a row, about an hour, a job is given back for others to try.
const TROUBLES_MAX: u32 = 120;
/// What went on for so long before it failed did work.
const WORKED: Duration = Duration::from_secs(300);
/// How long the farm goes on with what nobody waits for any more: the instance may have lost sight of this runner, and give it
/// the same again.
const LINGER: Duration = Duration::from_secs(10);
/// How far a job is when the farm has made everything, in percent; the rest is handing in.
const MADE_PERCENT: u64 = 95;
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

/// The job of the farm that somebody waits for, as long as this is there.
struct Waiting<'a> {
    runner: &'a Runner,
    job: JobId,
}

impl<'a> Waiting<'a> {
    fn new(runner: &'a Runner, job: JobId) -> Self {
        runner.note_waiting(&job, true);
        Self { runner, job }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.runner.note_waiting(&self.job, false);
    }
}

impl Runner {
    /// Sees a job through.
    pub(super) async fn see_through(&self, taken: &Taken) {
        let began = Instant::now();
        let (order, form) = match Order::read(&taken.kind, &taken.payload) {
            Ok(order) => (Ok(order.clone()), order.form.word()),
            Err(why) => (Err(why), "unknown"),
        };
        let made = std::sync::Mutex::new(None);
        let end = match order {
            Ok(order) => {
                let (percent, seen) = watch::channel(0);
                tokio::select! {
                    end = self.beat(taken, seen) => end,
                    end = self.work(taken, &order, &percent, &made) => end,
                }
            }
            Err(why) => self.refuse(taken, &why).await,
        };
        let labels = [self.slug(), form, end.word()];
        metrics::scheduler().peertube_jobs.with_label_values(&labels).inc();
        tracing::info!(instance = self.slug(), job = taken.uuid, end = end.word(), seconds = began.elapsed().as_secs(), "ended");
        let made = made.into_inner().unwrap_or_default();
        if let (End::Gone, Some(job)) = (end, made) {
            self.let_go(&job).await;
        }
    }

    /// Stops what the farm does for nobody.
    async fn let_go(&self, job: &JobId) {
        sleep(LINGER).await;
        if self.waiting_for(job) == 0 {
            // A job that has ended stays as it is.
            if let Err(failure) = self.scheduler.cancel(job).await {
                tracing::warn!(%job, %failure, "nobody waits for it, and it cannot be stopped now");
            }
        }
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

    async fn work(
        &self,
        taken: &Taken,
        order: &Order,
        percent: &watch::Sender<u8>,
        made: &std::sync::Mutex<Option<JobId>>,
    ) -> End {
        let mut troubles = 0;
        loop {
            let began = Instant::now();
            let why = match self.attempt(taken, order, percent, made).await {
                Ok(()) => return End::Done,
                Err(Trouble::Instance(Refusal::Gone | Refusal::UnknownRunner)) => return End::Gone,
                Err(Trouble::Cannot(failure)) => return self.refuse(taken, &failure.to_string()).await,
                Err(Trouble::Instance(refusal @ (Refusal::Refused(_) | Refusal::TooSlow))) => {
                    return self.refuse(taken, &refusal.to_string()).await;
                }
                Err(Trouble::Instance(refusal)) => refusal.to_string(),
                Err(Trouble::Now(failure)) => failure.message,
            };
            tracing::warn!(instance = self.slug(), job = taken.uuid, "not now: {why}");
            troubles = if began.elapsed() > WORKED { 1 } else { troubles + 1 };
            if troubles > TROUBLES_MAX {
                // An instance that does not even hear this takes it away by itself.
                let _ = self.client.abort(&taken.uuid, &taken.token, &why).await;
                return End::GivenBack;
            }
            sleep(AGAIN_FIRST.saturating_mul(1 << (troubles - 1).min(16)).min(AGAIN_LONGEST)).await;
        }
    }

    /// Tells the instance that a job cannot be done.
    async fn refuse(&self, taken: &Taken, why: &str) -> End {
        tracing::warn!(instance = self.slug(), job = taken.uuid, "it cannot be done: {why}");
        for _ in 0..5 {
            match self.client.error(&taken.uuid, &taken.token, why).await {
                Err(Refusal::Unreachable(_)) => sleep(BEAT).await,
                Ok(()) | Err(_) => break,
            }
        }
        End::Failed
    }

    async fn attempt(
        &self,
        taken: &Taken,
        order: &Order,
        percent: &watch::Sender<u8>,
        made: &std::sync::Mutex<Option<JobId>>,
    ) -> Result<(), Trouble> {
        let waiting = self.prepare(taken, order).await?;
        if let Ok(mut made) = made.lock() {
            *made = Some(waiting.job.clone());
        }
        match self.made(&waiting.job, percent).await? {
            JobResult::Done(_) => {}
            JobResult::Failed { failure, .. } => return Err(Trouble::Cannot(failure)),
            JobResult::Cancelled => {
                return Err(Trouble::Cannot(Failure::new(Code::Cancelled, "somebody cancelled it at the farm")));
            }
        }
        self.hand_in(taken, order, &waiting.job).await
    }

    /// The job of the farm that makes what is asked for: one that is there, or a new one.
    async fn prepare(&self, taken: &Taken, order: &Order) -> Result<Waiting<'_>, Trouble> {
        let lock = {
            let mut preparing = self.preparing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            preparing.retain(|_, lock| std::sync::Arc::strong_count(lock) > 1);
            std::sync::Arc::clone(preparing.entry(order.video.clone()).or_default())
        };
        let _alone = lock.lock().await;
        let seen = film::look(&self.client, &taken.token, order).await?;
        let known = self.films.get(&order.video).await?.filter(|film| film.known.contains(&seen));
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
        let waiting = Waiting::new(self, made.job.clone());
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
        let key = format!("{}{}/source", self.films.prefix(&order.video), RandomToken::random());
        let fetched = film::fetch(&self.client, &self.state, &taken.token, &order.input, &key).await?;
        if fetched != *seen {
            return Err(Trouble::Instance(Refusal::Unreachable("a file changed while it was fetched".to_owned())));
        }
        Ok(Film { source: key, known: vec![fetched], made: Vec::new() })
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
        loop {
            let view = views.borrow_and_update().clone();
            if let Phase::Ended(result) = view.phase {
                return Ok(result);
            }
            let so_far = (view.media_done_ns.saturating_mul(MADE_PERCENT)).checked_div(view.media_total_ns).unwrap_or(0);
            percent.send_replace(u8::try_from(so_far).unwrap_or(0));
            if views.changed().await.is_err() {
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
        let look = Look { bytes: file.bytes, head: answer::digest(&file.head(&output).await?) };
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
        let began = Instant::now();
        self.client.success(&taken.uuid, &taken.token, files).await?;
        let took = began.elapsed();
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
        let lock = {
            let mut preparing = self.preparing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            std::sync::Arc::clone(preparing.entry(video.to_owned()).or_default())
        };
        let _alone = lock.lock().await;
        if let Some(mut film) = self.films.get(video).await?
            && !film.known.contains(&look)
        {
            film.known.push(look);
            self.films.put(video, &film).await?;
        }
        Ok(())
    }
}
