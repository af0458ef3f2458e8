//! Hands in what was made.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use farm::job::{JobId, JobSpec};
use farm::plan::Plan;
use farm::task::{Marker, TaskId};
use farm::{Code, Failure, keys, metrics};
use futures::future::Either;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;

use super::Trouble;
use crate::peertube::answer::{self, Answer, Content};
use crate::peertube::film::Look;
use crate::peertube::order::{Order, Size, Wanted};
use crate::peertube::protocol::{File, Refusal};
use crate::peertube::runner::{Runner, Taken};
use crate::scheduler::{FIRST_EPOCH, fetch, fetch_if_there};
use crate::seal::{Seal, seal};

/// What is made of a video, or the part of it that is made first.
pub(super) struct Part {
    /// Its objects.
    pub(super) seal: Seal,
    /// Sizes of all rungs that are made.
    sizes: Vec<Size>,
}

/// What a job of the farm makes first, as far as somebody wants it.
pub(super) enum First {
    /// It is made.
    Made(Box<Part>),
    /// It will be.
    NotYet,
    /// What is wanted is not among it.
    Never,
}

/// Markers fetched at a time.
const FETCHES_MAX: usize = 16;

/// An upload that takes longer is near the five minutes that instances usually give.
const UPLOAD_USUAL_MAX: Duration = Duration::from_secs(240);

impl Runner {
    /// All that a job of the farm has made.
    pub(super) async fn whole(&self, job: &JobId) -> Result<Part, Trouble> {
        let seal = fetch(&self.state, &keys::seal(job)).await?;
        Ok(Part { sizes: answer::sizes(&seal), seal })
    }

    /// What a job of the farm makes first, if that is what is wanted, with its files for download.
    pub(super) async fn first(&self, job: &JobId, wanted: &Wanted) -> Result<First, Trouble> {
        let Some(plan) = fetch_if_there::<Plan>(&self.state, &keys::plan(job, FIRST_EPOCH)).await? else {
            return Ok(First::NotYet);
        };
        let stage = plan.first_stage().map(|stage| Plan { mp4: plan.mp4, ..stage });
        let Some(stage) = stage.filter(|stage| answer::is_in(stage, &plan, wanted)) else { return Ok(First::Never) };
        let done: BTreeSet<String> = self.state.list(&keys::done_prefix(job)).await?.into_iter().map(|entry| entry.key).collect();
        let tasks: Vec<TaskId> = TaskId::encodes_of(&stage).chain(TaskId::joins_of(&stage)).collect();
        if !tasks.iter().all(|task| done.contains(&keys::done(job, task))) {
            return Ok(First::NotYet);
        }
        let fetched = |task: TaskId| async move {
            let marker = fetch::<Marker>(&self.state, &keys::done(job, &task)).await?;
            Ok::<_, Failure>((task, marker))
        };
        let markers: BTreeMap<_, _> = stream::iter(tasks).map(fetched).buffered(FETCHES_MAX).try_collect().await?;
        Ok(First::Made(Box::new(Part { seal: seal(&stage, &markers)?, sizes: answer::sizes_in(&plan) })))
    }

    /// Hands in what a job of the farm has made for an order.
    pub(super) async fn hand_in(&self, taken: &Taken, order: &Order, job: &JobId, part: &Part) -> Result<(), Trouble> {
        let spec: JobSpec = fetch(&self.state, &keys::spec(job)).await?;
        let output = self.state.open_beside(&spec.output.url)?;
        let Answer { file, content, name, playlist } = answer::of(&output, &part.seal, &order.wanted).await?;
        if content == Content::Media {
            let look = Look { bytes: Some(file.bytes), head: answer::digest(&file.head(&output).await?) };
            self.know(&order.video, job, look, &part.sizes).await?;
        }
        let (bytes, (field, media_type)) = (file.bytes, content.words());
        let mut files = vec![File { field, name, media_type, bytes, content: Either::Left(file.stream(output)) }];
        if let Some((name, text)) = playlist {
            let (bytes, text) = (text.len() as u64, bytes::Bytes::from(text));
            files.push(File {
                field: "payload[resolutionPlaylistFile]",
                name,
                media_type: "application/vnd.apple.mpegurl",
                bytes,
                content: Either::Right(stream::iter([Ok(text)])),
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

    /// Remembers a file that is about to be handed in: by it the instance is known to have taken it, whatever becomes of the
    /// answer.
    async fn know(&self, video: &str, job: &JobId, look: Look, sizes: &[Size]) -> Result<(), Trouble> {
        let _alone = self.alone(video).await;
        let Some(known) = self.films.get(video).await? else { return Ok(()) };
        let mut now = known.clone();
        now.hand_in(job, look, sizes);
        if now != known {
            self.films.put(video, &now).await?;
        }
        Ok(())
    }
}
