//! Hands in what was made.

use std::time::Duration;

use farm::job::{JobId, JobSpec};
use farm::{Code, Failure, keys, metrics};
use futures::future::Either;
use tokio::time::Instant;

use super::Trouble;
use crate::peertube::answer::{self, Answer, Content};
use crate::peertube::film::Look;
use crate::peertube::order::Order;
use crate::peertube::protocol::{File, Refusal};
use crate::peertube::runner::{Runner, Taken};
use crate::scheduler::fetch;
use crate::seal::Seal;

/// An upload that takes longer is near the five minutes that instances usually give.
const UPLOAD_USUAL_MAX: Duration = Duration::from_secs(240);

impl Runner {
    /// Hands in what a job of the farm has made for an order.
    pub(super) async fn hand_in(&self, taken: &Taken, order: &Order, job: &JobId) -> Result<(), Trouble> {
        let seal: Seal = fetch(&self.state, &keys::seal(job)).await?;
        let spec: JobSpec = fetch(&self.state, &keys::spec(job)).await?;
        let output = self.state.open_beside(&spec.output.url)?;
        let Answer { file, content, name, playlist } = answer::of(&output, &seal, &order.wanted).await?;
        if content == Content::Media {
            let look = Look { bytes: Some(file.bytes), head: answer::digest(&file.head(&output).await?) };
            self.know(&order.video, job, look, &seal).await?;
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
                content: Either::Right(futures::stream::iter([Ok(text)])),
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
    async fn know(&self, video: &str, job: &JobId, look: Look, seal: &Seal) -> Result<(), Trouble> {
        let _alone = self.alone(video).await;
        let Some(known) = self.films.get(video).await? else { return Ok(()) };
        let mut now = known.clone();
        now.hand_in(job, look, &answer::sizes(seal));
        if now != known {
            self.films.put(video, &now).await?;
        }
        Ok(())
    }
}
