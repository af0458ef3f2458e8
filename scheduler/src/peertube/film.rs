//! What is kept of a video while an instance asks for its forms: the source, which is fetched once, and the jobs made of it.
//!
//! An instance says where the *best* file of a video is, and that is soon one that was handed in here: made of a picture that
//! was encoded already. So each file that is handed in is remembered by size and beginning. As long as the instance has the
//! source or one of those, the source that is kept is still what the video was made of.

use std::time::Duration;

use bytes::BytesMut;
use farm::job::JobId;
use farm::storage::{Kind, Part, Storage, StorageError};
use farm::{Failure, keys};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use url::Url;

use super::answer::{HEAD_BYTES, digest};
use super::ladder::Asked;
use super::order::Size;
use super::protocol::{Client, Refusal, chunk};
use super::settings::Token;
use crate::scheduler::fetch_if_there;

/// Size of the pieces in which a source is stored while it comes in, in bytes: object stores take 10 000 of them at most.
const PIECE_BYTES: usize = 16 << 20;
/// Largest source, in bytes.
pub(super) const SOURCE_BYTES_MAX: u64 = 10_000 * PIECE_BYTES as u64;
/// How often the rest of a source is asked for when the connection breaks without having brought anything, and the wait before.
const BREAKS_MAX: u32 = 8;
const BREAK_PAUSE: Duration = Duration::from_secs(2);

/// Longest that fetching a source may take.
const FETCH_MAX: Duration = Duration::from_secs(12 * 3600);

/// By what a file is told from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Look {
    /// Its size; none where the server does not say.
    pub(super) bytes: Option<u64>,
    /// The digest of its beginning.
    pub(super) head: String,
}

impl Look {
    /// Whether both are of the same file, as far as can be told.
    pub(super) fn fits(&self, other: &Self) -> bool {
        self.head == other.head && (self.bytes.is_none() || other.bytes.is_none() || self.bytes == other.bytes)
    }
}

/// A job that was given to the farm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    /// Its name.
    pub(super) job: JobId,
    /// What it makes.
    pub(super) rungs: Vec<Asked>,
    /// Short edges that the instance has asked for by now.
    pub(super) asked: Vec<u32>,
}

/// A video.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Film {
    /// Key of the source.
    pub(super) source: String,
    /// The source, then what was handed in.
    pub(super) known: Vec<Look>,
    /// Jobs made of it.
    pub(super) made: Vec<Made>,
}

impl Film {
    /// The job that makes what is asked for, if there is one.
    pub(super) fn made(&mut self, rung: Option<Size>) -> Option<&mut Made> {
        let fits = |made: &Made| match rung {
            None => true,
            Some(size) => made.rungs.iter().any(|own| own.short == size.short && [0, size.fps].contains(&own.fps)),
        };
        self.made.iter_mut().find(|made| fits(made))
    }
}

/// Where an instance's videos are kept.
#[derive(Clone)]
pub(super) struct Films {
    pub(super) state: Storage,
    /// The state's URL.
    pub(super) url: Url,
    pub(super) slug: String,
}

impl Films {
    pub(super) fn prefix(&self, video: &str) -> String {
        keys::peertube_video(&self.slug, video)
    }

    fn key(&self, video: &str) -> String {
        format!("{}film.json", self.prefix(video))
    }

    /// What is known of a video.
    ///
    /// # Errors
    /// Storage's.
    pub(super) async fn get(&self, video: &str) -> Result<Option<Film>, Failure> {
        fetch_if_there(&self.state, &self.key(video)).await
    }

    /// Remembers a video.
    ///
    /// # Errors
    /// Storage's.
    pub(super) async fn put(&self, video: &str, film: &Film) -> Result<(), Failure> {
        let content = serde_json::to_vec(film).map_err(|error| Failure::new(farm::Code::Internal, error.to_string()))?;
        Ok(self.state.put(&self.key(video), content.into(), Kind::Json).await?)
    }

    /// The URL by which workers reach a key.
    ///
    /// # Errors
    /// When the state has no such URL.
    pub(super) fn url_of(&self, key: &str) -> Result<Url, Failure> {
        let mut url = self.url.clone();
        let odd = || Failure::new(farm::Code::InvalidRequest, "storage: its URL can have no path".to_owned());
        url.path_segments_mut().map_err(|()| odd())?.pop_if_empty().extend(key.split('/'));
        Ok(url)
    }
}

/// What the instance has now.
pub(super) async fn look(client: &Client, job_token: &Token, input: &Url) -> Result<Look, Refusal> {
    let (mut answer, bytes) = client.file(input, job_token, 0, Some(HEAD_BYTES as u64 - 1)).await?;
    let mut head = BytesMut::new();
    while head.len() < HEAD_BYTES
        && let Some(chunk) = chunk(&mut answer).await?
    {
        head.extend_from_slice(&chunk);
    }
    head.truncate(HEAD_BYTES);
    Ok(Look { bytes, head: digest(&head) })
}

/// Fetches a source of up to `bytes_max` to `key`; how it looks. Where the connection breaks it goes on. Nothing is left of what
/// is not whole.
///
/// # Errors
/// What the instance says, or storage.
pub(super) async fn fetch(
    client: &Client,
    state: &Storage,
    job_token: &Token,
    input: &Url,
    key: &str,
    (wanted, bytes_max): (&Look, u64),
) -> Result<Look, Refusal> {
    let late = |_| Err(Refusal::Unreachable("a file takes too long to come".to_owned()));
    let fetched = timeout(FETCH_MAX, pieces(client, state, job_token, input, (key, bytes_max))).await.unwrap_or_else(late);
    let fetched = fetched.and_then(|look| match look.fits(wanted) {
        true => Ok(look),
        false => Err(Refusal::BrokenOff("a file changed while it was fetched".to_owned())),
    });
    if fetched.is_err() {
        let folder = key.rsplit_once('/').map_or(key, |(folder, _)| folder);
        let left = state.list(&format!("{folder}/")).await?;
        state.delete(&left.into_iter().map(|entry| entry.key).collect::<Vec<_>>()).await?;
    }
    fetched
}

async fn pieces(
    client: &Client,
    state: &Storage,
    job_token: &Token,
    input: &Url,
    (key, bytes_max): (&str, u64),
) -> Result<Look, Refusal> {
    let mut incoming =
        Incoming { state, key, bytes_max, pieces: Vec::new(), held: BytesMut::new(), head: BytesMut::new(), stored: 0 };
    let (mut total, mut breaks) = (None, 0);
    loop {
        let before = incoming.bytes();
        let why = match connection(client, job_token, input, &mut incoming, &mut total).await {
            Ok(()) => "the instance broke off in a file".to_owned(),
            Err(Refusal::Unreachable(why) | Refusal::BrokenOff(why)) => why,
            Err(refusal) => return Err(refusal),
        };
        if total.is_some_and(|total| incoming.bytes() >= total) {
            return incoming.finish().await;
        }
        breaks = if incoming.bytes() > before { 1 } else { breaks + 1 };
        if breaks > BREAKS_MAX {
            return Err(Refusal::BrokenOff(why));
        }
        tokio::time::sleep(BREAK_PAUSE).await;
    }
}

/// Takes in what one connection brings, from where the last one broke.
async fn connection(
    client: &Client,
    job_token: &Token,
    input: &Url,
    incoming: &mut Incoming<'_>,
    total: &mut Option<u64>,
) -> Result<(), Refusal> {
    let (mut answer, size) = client.file(input, job_token, incoming.bytes(), None).await?;
    if total.is_some() && size.is_some() && *total != size {
        return Err(Refusal::BrokenOff("a file changed while it was fetched".to_owned()));
    }
    *total = size.or(*total);
    while let Some(chunk) = chunk(&mut answer).await? {
        if incoming.bytes() + chunk.len() as u64 > total.unwrap_or(u64::MAX).min(incoming.bytes_max) {
            let bytes_max = incoming.bytes_max;
            return Err(Refusal::Refused(format!("its file is larger than it says, or than {bytes_max} bytes")));
        }
        incoming.push(&chunk).await?;
    }
    // Without a size, the end is the end.
    total.get_or_insert(incoming.bytes());
    Ok(())
}

/// A file on its way into storage.
struct Incoming<'a> {
    state: &'a Storage,
    key: &'a str,
    /// How large it may get.
    bytes_max: u64,
    /// Keys of what is stored.
    pieces: Vec<String>,
    /// What is not stored yet.
    held: BytesMut,
    /// How the file begins.
    head: BytesMut,
    /// Bytes that are stored.
    stored: u64,
}

impl Incoming<'_> {
    fn bytes(&self) -> u64 {
        self.stored + self.held.len() as u64
    }

    async fn push(&mut self, chunk: &[u8]) -> Result<(), StorageError> {
        let missing = HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(chunk.get(..missing.min(chunk.len())).unwrap_or_default());
        self.held.extend_from_slice(chunk);
        while self.held.len() >= PIECE_BYTES {
            self.store(PIECE_BYTES).await?;
        }
        Ok(())
    }

    async fn store(&mut self, bytes: usize) -> Result<(), StorageError> {
        let key = format!("{}.{}", self.key, self.pieces.len());
        self.state.put(&key, self.held.split_to(bytes).freeze(), Kind::VideoMp4).await?;
        self.stored += bytes as u64;
        self.pieces.push(key);
        Ok(())
    }

    /// Puts the file in its place.
    async fn finish(mut self) -> Result<Look, Refusal> {
        let look = Look { bytes: Some(self.bytes()), head: digest(&self.head) };
        if self.pieces.is_empty() {
            self.state.put(self.key, self.held.freeze(), Kind::VideoMp4).await?;
            return Ok(look);
        }
        if !self.held.is_empty() {
            self.store(self.held.len()).await?;
        }
        let parts: Vec<Part> = self.pieces.iter().map(|key| Part::whole(key.as_str())).collect();
        self.state.join(self.key, &parts, Kind::VideoMp4).await?;
        self.state.delete(&self.pieces).await?;
        Ok(look)
    }
}
