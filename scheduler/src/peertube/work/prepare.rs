//! What the farm is given to do for a runner job: the version of the video that the instance has is found, or fetched, and a job
//! made of it, unless one is there that makes what is asked for.

use std::time::Duration;

use farm::edit::{EditStep, STEPS_MAX};
use farm::job::{JobId, JobSpec};
use farm::storage::{Kind, StorageError};
use farm::task::{Object, Token as RandomToken};
use farm::{Code, Failure, keys, metrics};
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

use super::hand_in::First;
use super::{There, Trouble};
use crate::peertube::film::{self, Film, Look, Made, Makes, Video};
use crate::peertube::order::{Order, Sheet, Size, Wanted};
use crate::peertube::runner::{Held, Runner, Taken};
use crate::peertube::slide::Picture;
use crate::peertube::studio::{self, Task};
use crate::peertube::{answer, ladder};
use crate::scheduler::{Phase, fetch, fetch_if_there};
use crate::seal::Seal;
use crate::step::JobResult;

/// Largest picture that is merged with a sound, in bytes.
const PICTURE_BYTES_MAX: u64 = 32 << 20;
/// How long what the instance makes of its videos stands.
const AHEAD_AGE_MAX: Duration = Duration::from_secs(300);

impl Runner {
    /// The job of the farm that makes what is asked for: one that is there, or a new one.
    pub(super) async fn prepare(&self, taken: &Taken, order: &Order) -> Result<Held<JobId>, Trouble> {
        let _alone = self.alone(&order.video).await;
        let seen = film::look(&self.client, &taken.token, &order.input).await?;
        let mut video = self.films.get(&order.video).await?.unwrap_or_default();
        let (film, word) = match self.kept(&mut video, taken, order, &seen).await? {
            Some(film) => (film, "kept"),
            None => {
                let film = self.fetched(taken, order, &seen).await?;
                self.remember(order, &video, &film).await?;
                (film, "fetched")
            }
        };
        metrics::scheduler().peertube_sources.with_label_values(&[self.slug(), word]).inc();
        let film = self.with_sound(taken, order, film, &seen, &video).await?;
        let size = film.size_in(&seen);
        let mut film = match &order.wanted {
            Wanted::Studio(tasks) => self.edited(taken, order, tasks, film, &mut video).await?,
            Wanted::Film { .. } | Wanted::Storyboard(_) => film,
        };
        let made = self.given(order, &mut film, size).await?;
        let waiting = self.wait_for(made.job.clone());
        let spec = match fetch_if_there::<JobSpec>(&self.state, &keys::spec(&made.job)).await? {
            Some(spec) => spec,
            None => self.spec(taken, order, &film, &made).await?,
        };
        // First what there will be, then the job: after a crash between the two it is given to the farm again.
        video.put(film);
        self.films.put(&order.video, &video).await?;
        self.scheduler.submit(spec).await?;
        Ok(waiting)
    }

    /// Remembers a version beside the others as soon as something was fetched for it: whatever fails afterwards, that is not
    /// fetched again.
    async fn remember(&self, order: &Order, others: &Video, film: &Film) -> Result<(), Trouble> {
        let mut known = others.clone();
        known.put(film.clone());
        Ok(self.films.put(&order.video, &known).await?)
    }

    /// The version that the instance has, if its source is kept.
    async fn kept(&self, video: &mut Video, taken: &Taken, order: &Order, seen: &Look) -> Result<Option<Film>, Trouble> {
        let Some(film) = video.take(|film| film.knows(seen)) else { return Ok(None) };
        // Somebody may have deleted it.
        if !self.is_there(&film.source).await? {
            return Ok(None);
        }
        let steps = match &order.wanted {
            Wanted::Studio(tasks) if film.editor.as_ref() != Some(&taken.uuid) => tasks.len(),
            Wanted::Studio(_) | Wanted::Film { .. } | Wanted::Storyboard(_) => 0,
        };
        if film.edit.len() + steps > STEPS_MAX {
            // More than one job of the farm can do: what came of the edits before is edited.
            video.put(film);
            return Ok(None);
        }
        Ok(Some(film))
    }

    /// Fetches the source of a video.
    async fn fetched(&self, taken: &Taken, order: &Order, seen: &Look) -> Result<Film, Trouble> {
        // What is merged is remembered at the end only: till then it is found again by its name.
        let name = if order.picture.is_some() { taken.name.clone() } else { RandomToken::random().to_string() };
        let folder = format!("{}{name}", self.films.prefix(&order.video));
        let source = format!("{folder}/source");
        let fetched = match self.is_there(&source).await? {
            true => seen.clone(),
            false => {
                let limits = (seen, film::SOURCE_BYTES_MAX);
                film::fetch(&self.client, &self.state, &taken.token, &order.input, &source, limits).await?
            }
        };
        let source = match &order.picture {
            None => source,
            Some(picture) => self.merged(taken, order, picture, &folder, &source).await?,
        };
        Ok(Film { source, edit: Vec::new(), editor: None, known: vec![fetched], made: Vec::new() })
    }

    /// The film with the sound that stands apart from its source. Files that were handed in may be apart too; what they were made
    /// of is not. Small pictures may have been made before anybody said that there is a sound.
    async fn with_sound(
        &self,
        taken: &Taken,
        order: &Order,
        mut film: Film,
        seen: &Look,
        others: &Video,
    ) -> Result<Film, Trouble> {
        let is_source = film.edit.is_empty() && film.known.first().is_some_and(|source| source.fits(seen));
        if let Some(sound) = order.sound.as_ref().filter(|_| is_source) {
            let (kept, look) = self.beside(taken, order, sound, film::SOURCE_BYTES_MAX).await?;
            film.edit.push(EditStep::Sound(studio::at(self.films.url_of(&kept)?)));
            // Who asks for the sound alone may be sent to that file.
            film.known.push(look);
            film.made.retain(|made| matches!(made.makes, Makes::Sheet(_)));
            self.remember(order, others, &film).await?;
        }
        Ok(film)
    }

    /// The version that a studio job asks for: the one that it has asked for before, or a new one. The one that it is made of
    /// stays as it is.
    async fn edited(&self, taken: &Taken, order: &Order, tasks: &[Task], base: Film, video: &mut Video) -> Result<Film, Trouble> {
        // The instance has taken its file, and asks again all the same: it gets that file once more.
        if base.editor.as_ref() == Some(&taken.uuid) {
            return Ok(base);
        }
        let is_begun = |film: &Film| film.editor.as_ref() == Some(&taken.uuid) && film.is_edited_from(&base);
        let film = match video.take(is_begun) {
            Some(film) => film,
            None => {
                let mut edit = base.edit.clone();
                edit.extend(self.steps(taken, order, tasks).await?);
                let (source, editor) = (base.source.clone(), Some(taken.uuid.clone()));
                Film { source, edit, editor, known: Vec::new(), made: Vec::new() }
            }
        };
        video.put(base);
        Ok(film)
    }

    /// The steps that tasks are, with their files here. When one of these cannot be had, none of them stays.
    async fn steps(&self, taken: &Taken, order: &Order, tasks: &[Task]) -> Result<Vec<EditStep>, Trouble> {
        let (mut steps, mut keys) = (Vec::new(), Vec::new());
        for task in tasks {
            let step = match task {
                Task::Plain(step) => step.clone(),
                Task::With { file, role } => match self.beside(taken, order, file, role.bytes_max()).await {
                    Ok((key, _)) => {
                        let step = role.step(studio::at(self.films.url_of(&key)?));
                        keys.push(key);
                        step
                    }
                    Err(trouble) => {
                        if let Err(error) = self.state.delete(&keys).await {
                            tracing::warn!(instance = self.slug(), job = taken.uuid, %error, "files that are not needed stay");
                        }
                        return Err(trouble);
                    }
                },
            };
            steps.push(step);
        }
        Ok(steps)
    }

    /// Fetches a file that belongs to a video; its key, and how it looks.
    async fn beside(&self, taken: &Taken, order: &Order, file: &Url, bytes_max: u64) -> Result<(String, Look), Trouble> {
        let key = format!("{}{}/file", self.films.prefix(&order.video), RandomToken::random());
        let seen = film::look(&self.client, &taken.token, file).await?;
        let fetched = film::fetch(&self.client, &self.state, &taken.token, file, &key, (&seen, bytes_max)).await?;
        Ok((key, fetched))
    }

    /// The job that makes what is asked for of a film, which remembers it. Edits are made in this size, where it is known.
    async fn given(&self, order: &Order, film: &mut Film, size: Option<Size>) -> Result<Made, Trouble> {
        let there = film.made(&order.wanted).map(|made| made.job.clone());
        if let Some(job) = &there
            && let Some(JobResult::Failed { .. } | JobResult::Cancelled) = self.result_of(job).await?
        {
            // The instance wants it tried again.
            film.made.retain(|made| made.job != *job);
        }
        if film.made(&order.wanted).is_none() {
            let job = JobId::try_from(format!("pt-{}", RandomToken::random()))?;
            let makes = self.makes(&order.wanted, size).await;
            film.made.push(Made { job, handed_in: false, makes });
        }
        let Some(made) = film.made(&order.wanted) else {
            return Err(Trouble::Now(Failure::new(Code::Internal, "a job that was just made is not there")));
        };
        if let (Makes::Rungs { asked, .. }, Wanted::Film { rung, .. }) = (&mut made.makes, &order.wanted) {
            let short = rung.map_or(0, |size| size.short);
            if !asked.contains(&short) {
                asked.push(short);
            }
        }
        Ok(made.clone())
    }

    /// What is made for a first order.
    async fn makes(&self, wanted: &Wanted, size: Option<Size>) -> Makes {
        let ahead = match wanted {
            Wanted::Film { .. } | Wanted::Studio(_) if self.instance.policy.ahead => self.ahead().await,
            Wanted::Film { .. } | Wanted::Studio(_) | Wanted::Storyboard(_) => Vec::new(),
        };
        match wanted {
            Wanted::Film { rung, .. } => Makes::Rungs { rungs: ladder::rungs(*rung, &ahead), asked: Vec::new() },
            Wanted::Storyboard(sheet) => Makes::Sheet(*sheet),
            // The edited video takes the place of all files, and then they are asked for as after an upload.
            // Its size is that of the video as the instance has it.
            Wanted::Studio(_) => match size {
                Some(size) => Makes::Rungs { rungs: ladder::rungs(Some(size), &ahead), asked: vec![size.short] },
                None => Makes::Rungs { rungs: ladder::rungs_unsized(&ahead), asked: vec![ladder::OWN.short] },
            },
        }
    }

    /// A job as the farm takes it.
    async fn spec(&self, taken: &Taken, order: &Order, film: &Film, made: &Made) -> Result<JobSpec, Trouble> {
        let output = self.films.url_of(&format!("{}{}/", self.films.prefix(&order.video), made.job))?;
        let policy = &self.instance.policy;
        let mut spec = match &made.makes {
            Makes::Rungs { rungs, .. } => {
                let mut spec = ladder::job(self.films.url_of(&film.source)?, output, rungs, policy);
                spec.edit.clone_from(&film.edit);
                spec
            }
            Makes::Sheet(sheet) => ladder::sheet(self.shown(taken, order, film, sheet).await?, output, sheet, policy),
        };
        spec.id = Some(made.job.clone());
        Ok(spec)
    }

    /// What small pictures are made of: the source, or an edited film as it was made. Where that is not kept any more, what the
    /// instance has of it is fetched.
    async fn shown(&self, taken: &Taken, order: &Order, film: &Film, sheet: &Sheet) -> Result<Url, Trouble> {
        if film.edit.iter().all(|step| matches!(step, EditStep::Sound(_))) {
            return Ok(self.films.url_of(&film.source)?);
        }
        for made in &film.made {
            if !matches!(made.makes, Makes::Rungs { .. }) {
                continue;
            }
            let seal = match fetch_if_there::<Seal>(&self.state, &keys::seal(&made.job)).await? {
                Some(seal) => Some(seal),
                // What was handed in may be all that is made so far.
                None => match self.first(&made.job, &Wanted::Studio(Vec::new())).await? {
                    First::Made(part) => Some(part.seal),
                    First::NotYet | First::Never => None,
                },
            };
            if let Some(Ok(object)) = seal.as_ref().map(|seal| answer::mp4_of(seal, sheet.width.min(sheet.height))) {
                let key = format!("{}{}/{}", self.films.prefix(&order.video), made.job, object.key);
                if self.is_there(&key).await? {
                    return Ok(self.films.url_of(&key)?);
                }
            }
        }
        let (key, _) = self.beside(taken, order, &order.input, film::SOURCE_BYTES_MAX).await?;
        Ok(self.films.url_of(&key)?)
    }

    /// Makes a film of a sound and a picture: the farm makes AAC of the one, and the other is seen all the time.
    async fn merged(&self, taken: &Taken, order: &Order, picture: &Url, folder: &str, sound: &str) -> Result<String, Trouble> {
        let cannot = |why: String| Trouble::Cannot(Failure::new(Code::InvalidRequest, why));
        let key = format!("{folder}/picture/jpeg");
        let seen = film::look(&self.client, &taken.token, picture).await?;
        film::fetch(&self.client, &self.state, &taken.token, picture, &key, (&seen, PICTURE_BYTES_MAX)).await?;
        let shown = Picture::of(&self.state.get(&key).await?).ok_or_else(|| cannot("its picture is no JPEG".to_owned()))?;
        let job = JobId::try_from(format!("pt-{}", taken.name))?;
        let spec = match fetch_if_there::<JobSpec>(&self.state, &keys::spec(&job)).await? {
            Some(spec) => spec,
            None => {
                let (source, output) = (self.films.url_of(sound)?, self.films.url_of(&format!("{folder}/sound/"))?);
                let mut spec = ladder::job(source, output, &ladder::rungs(None, &[]), &self.instance.policy);
                spec.id = Some(job.clone());
                spec
            }
        };
        let waiting = self.wait_for(job);
        self.scheduler.submit(spec).await?;
        match self.made(&waiting.what, None, &watch::channel(0).0).await? {
            There::All(JobResult::Done(_)) | There::First(_) => {}
            There::All(JobResult::Failed { failure, .. }) => return Err(Trouble::Cannot(failure)),
            // It has its name for as long as the runner job is taken: once that is taken anew, another is made.
            There::All(JobResult::Cancelled) => {
                return Err(Trouble::Cannot(Failure::new(Code::Cancelled, "it was stopped at the farm")));
            }
        }
        let seal = fetch(&self.state, &keys::seal(&waiting.what)).await?;
        let made = answer::plain_sound(&seal)?;
        let film = format!("{folder}/film");
        // The farm's output is below its state here.
        let made = Object { key: format!("{folder}/sound/{}", made.key), ..made.clone() };
        let fps = match &order.wanted {
            Wanted::Film { rung: Some(size), .. } => size.fps.clamp(1, 60),
            Wanted::Film { rung: None, .. } | Wanted::Studio(_) | Wanted::Storyboard(_) => 1,
        };
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
}
