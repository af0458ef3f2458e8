//! Text goes to the output storage as files of WebVTT, under the token of its execution: there are many, and small.

use farm::storage::{Kind, Storage};
use farm::task::{Object, Token};
use farm::text::{self, Cue, TextAccount, TextPlan, Texts};
use farm::{Code, Failure, keys};
use futures::{StreamExt, TryStreamExt};

use crate::upload::{discard, put};

/// Most files on their way at a time.
const UPLOADS_MAX: usize = 8;

/// The text of one execution, as far as it is stored.
pub(crate) struct TextUploads {
    output: Storage,
    token: Token,
    plan: TextPlan,
    /// Segments of each rendition.
    stored: Vec<Vec<Object>>,
    /// What may be stored, of uploads that failed too.
    keys: Vec<String>,
}

impl TextUploads {
    /// None yet.
    pub(crate) fn new(output: Storage, token: Token, plan: TextPlan) -> Self {
        Self { output, token, plan, stored: Vec::new(), keys: Vec::new() }
    }

    /// Stores the cues of the next rendition.
    ///
    /// # Errors
    /// The storage's.
    pub(crate) async fn take(&mut self, cues: &[Cue]) -> Result<(), Failure> {
        let track = self.plan.tracks.get(self.stored.len());
        let track = track.ok_or_else(|| Failure::new(Code::Internal, "more text than was ordered"))?;
        let key = |number| keys::text_segment(&track.id, &self.token, number);
        let files: Vec<(String, String)> = (1..).map(key).zip(text::segments(&self.plan, cues)).collect();
        self.keys.extend(files.iter().map(|(key, _)| key.clone()));
        let uploads = files.into_iter().map(|(key, content)| put(&self.output, key, Kind::TextTrack, content.into()));
        self.stored.push(futures::stream::iter(uploads).buffered(UPLOADS_MAX).try_collect().await?);
        Ok(())
    }

    /// What was made, with what is told of it.
    ///
    /// # Errors
    /// [`Code::Internal`] when renditions are missing.
    pub(crate) fn finish(&mut self, told: Vec<TextAccount>) -> Result<Vec<Texts>, Failure> {
        if self.stored.len() != self.plan.tracks.len() || told.len() != self.stored.len() {
            return Err(Failure::new(Code::Internal, "text is missing"));
        }
        let made = self.plan.tracks.iter().zip(std::mem::take(&mut self.stored)).zip(told);
        Ok(made.map(|((track, segments), account)| Texts { rendition: track.id.clone(), segments, account }).collect())
    }

    /// Deletes whatever may be stored: the execution came to nothing.
    pub(crate) async fn abandon(self) {
        discard(&self.output, &self.keys).await;
    }
}
