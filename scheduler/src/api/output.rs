//! What was made of a job, to be played in the status page: the objects of its result, and nothing else that stands beside them.
//!
//! Nothing is held here but a piece of what is on its way. Which objects belong to a result is read from its seal, and remembered
//! for a minute: a player asks for hundreds of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use farm::job::{JobId, JobSpec};
use farm::serve::Lasts;
use farm::storage::{Kind, Storage, StorageError};
use farm::{Failure, keys};
use futures::{StreamExt as _, stream};
use tokio::time::{Instant, timeout};

use super::answer::Refusal;
use super::places::{Place, Places};
use super::range::Asked;
use super::{Answer, Caller, Shared, Visible};
use crate::published::{Item, Published};
use crate::scheduler::{current_life, fetch_if_there, is_deleted, is_published};
use crate::seal::Seal;
use crate::step::JobResult;

/// Objects that are given out at a time: in all, and to a tenant.
const OBJECTS_MAX: (usize, usize) = (128, 32);
/// Bytes that are read at a time. Storage and reader take turns, so there is one such piece for each that is given out.
const PIECE_BYTES: u64 = 1 << 20;
/// Longest wait for a piece to come from storage. Who takes nothing of it for as long is cut off by [`farm::serve`].
const PIECE_WAIT: Duration = Duration::from_secs(60);
/// Longest time that giving out an object may take in all.
const LASTS: Duration = Duration::from_secs(3600);
/// How long it is remembered what belongs to a result.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Most results of which that is remembered. Of a long film these are some MB.
const RESULTS_MAX: usize = 16;

/// What is known of results.
pub(super) struct Outputs {
    places: Places,
    /// Held while a result is read: each takes some memory.
    reading: tokio::sync::Mutex<()>,
    results: Mutex<BTreeMap<JobId, Arc<Output>>>,
}

/// The result of a job.
struct Output {
    /// The job, as it was when this was read: another may have its name by now.
    spec: JobSpec,
    storage: Storage,
    published: Published,
    read_at: Instant,
}

impl Default for Outputs {
    fn default() -> Self {
        let (all, each) = OBJECTS_MAX;
        Self { places: Places::new(all, each, 0), reading: tokio::sync::Mutex::default(), results: Mutex::default() }
    }
}

impl Outputs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<Output>>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what belongs to the result of a job.
    pub(super) fn forget(&self, id: &JobId) {
        self.lock().remove(id);
    }

    /// The result of a job; none when it is not done, when it was deleted, or when another's has taken the place of its own.
    async fn of(&self, state: &Storage, id: &JobId, spec: &JobSpec) -> Result<Option<Arc<Output>>, Failure> {
        let is_fresh = |known: &Arc<Output>| known.read_at.elapsed() < REMEMBERED;
        let known = || self.lock().get(id).filter(|known| is_fresh(known) && known.spec == *spec).cloned();
        if let Some(known) = known() {
            return Ok(Some(known));
        }
        let _alone = self.reading.lock().await;
        // Another may have read it meanwhile.
        if let Some(known) = known() {
            return Ok(Some(known));
        }
        let Some(output) = read(state, id, spec).await?.map(Arc::new) else { return Ok(None) };
        let mut results = self.lock();
        results.retain(|_, known| is_fresh(known));
        while results.len() >= RESULTS_MAX {
            let oldest = results.iter().min_by_key(|(_, known)| known.read_at).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { break };
            results.remove(&oldest);
        }
        results.insert(id.clone(), Arc::clone(&output));
        Ok(Some(output))
    }
}

/// Reads what belongs to a result that is still in its place.
async fn read(state: &Storage, id: &JobId, spec: &JobSpec) -> Result<Option<Output>, Failure> {
    let life = current_life(state, id).await?;
    let result = fetch_if_there::<JobResult>(state, &keys::result(id, life)).await?;
    let Some(JobResult::Done(_)) = result else { return Ok(None) };
    let Some(seal) = fetch_if_there::<Seal>(state, &keys::seal(id)).await? else { return Ok(None) };
    let storage = state.open_beside(&spec.output.url)?;
    if is_deleted(state, id).await? || !is_published(&storage, &seal).await? {
        return Ok(None);
    }
    let (spec, published) = (spec.clone(), Published::of(&seal));
    Ok(Some(Output { spec, storage, published, read_at: Instant::now() }))
}

/// Gives an object of a result.
pub(super) async fn output(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    Visible(id, spec): Visible,
    Path((_, key)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Answer<Response> {
    let place = shared.outputs.places.take(Some(caller.tenant.name.as_str()))?;
    let state = &shared.api.state;
    let output = match shared.outputs.of(state, &id, &spec).await? {
        Some(output) => output,
        None if is_deleted(state, &id).await? => return Err(Refusal::deleted()),
        None => return Err(Refusal::no_output()),
    };
    let item = output.published.get(&key).ok_or_else(Refusal::no_output)?;
    let mut pieces = Pieces::new(output.storage.clone(), key, place);
    let (kind, bytes, begun) = match item {
        Item::Made { kind, bytes } => (kind, Some(bytes), None),
        Item::Document { kind } => {
            // How large it is shows itself when it ends within a piece, as nearly all of them do.
            let first = pieces.read(0..PIECE_BYTES).await.map_err(refusal)?;
            let length = first.len() as u64;
            (kind, (length < PIECE_BYTES).then_some(length), Some(first))
        }
    };
    // Ranges are for GET alone (RFC 9110, 14.2).
    let asked = bytes.filter(|_| method == Method::GET).map_or(Asked::All, |bytes| Asked::of(&headers, bytes));
    let (status, range) = match asked {
        Asked::All => (StatusCode::OK, 0..bytes.unwrap_or(u64::MAX)),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Nothing => return Ok(beyond(bytes)),
    };
    // That it is there is seen before it is said.
    let first = match begun {
        Some(document) => part(&document, &range),
        None if method == Method::HEAD => pieces.read(range.start..range.end.min(range.start + 1)).await.map_err(refusal)?,
        None => pieces.read(range.start..range.end.min(range.start + PIECE_BYTES)).await.map_err(refusal)?,
    };
    pieces.left = range.start + first.len() as u64..range.end;
    // What is sent in one piece takes no longer than any other answer.
    let is_long = bytes.is_none() || !pieces.left.is_empty();
    pieces.ends = if bytes.is_some() { Ends::There } else { Ends::Anywhere };
    let mut answer = Response::new(pieces.body(first));
    *answer.status_mut() = status;
    if is_long {
        answer.extensions_mut().insert(Lasts { until: Instant::now() + LASTS });
    }
    Ok(with_headers(answer, kind, bytes.map(|bytes| (range, bytes))))
}

/// The part of a document that is wanted.
fn part(document: &Bytes, range: &Range<u64>) -> Bytes {
    let place = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX).min(document.len());
    document.slice(place(range.start)..place(range.end))
}

/// Says what is sent, and which bytes of how many, where that is known.
fn with_headers(mut answer: Response, kind: Kind, sent: Option<(Range<u64>, u64)>) -> Response {
    let is_part = answer.status() == StatusCode::PARTIAL_CONTENT;
    let mut said = vec![
        (header::CONTENT_TYPE, kind.media_type().to_owned()),
        (header::CACHE_CONTROL, "private, max-age=60".to_owned()),
        (header::VARY, "authorization".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    if let Some((range, bytes)) = sent {
        said.push((header::ACCEPT_RANGES, "bytes".to_owned()));
        said.push((header::CONTENT_LENGTH, (range.end - range.start).to_string()));
        if is_part {
            said.push((header::CONTENT_RANGE, format!("bytes {}-{}/{bytes}", range.start, range.end - 1)));
        }
    }
    // Each of these can stand in a header.
    let said = said.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::try_from(value).ok()?)));
    answer.headers_mut().extend(said);
    answer
}

/// It has no such bytes, but so many.
fn beyond(bytes: Option<u64>) -> Response {
    let mut answer = Refusal::no_range().into_response();
    let range = bytes.and_then(|bytes| HeaderValue::try_from(format!("bytes */{bytes}")).ok());
    answer.headers_mut().extend(range.map(|range| (header::CONTENT_RANGE, range)));
    answer
}

fn refusal(error: StorageError) -> Refusal {
    match error {
        StorageError::NotFound(_) => Refusal::no_output(),
        other => Refusal::from(Failure::from(other)),
    }
}

/// Where what is left of an object ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// Where it was said to: less is an error.
    There,
    /// Where storage has no more of it.
    Anywhere,
}

/// An object that is given out piece by piece, while its place is held.
struct Pieces {
    storage: Storage,
    key: String,
    left: Range<u64>,
    ends: Ends,
    _place: Place,
}

impl Pieces {
    /// Of which nothing is left so far.
    fn new(storage: Storage, key: String, place: Place) -> Self {
        Self { storage, key, left: 0..0, ends: Ends::There, _place: place }
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, StorageError> {
        let late = |_| self.unavailable("storage does not answer in time");
        timeout(PIECE_WAIT, self.storage.get_range(&self.key, range)).await.map_err(late)?
    }

    /// The next piece; none at its end.
    async fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let piece = self.read(self.left.start..self.left.end.min(self.left.start + PIECE_BYTES)).await?;
        self.left.start += piece.len() as u64;
        match (piece.is_empty(), self.ends) {
            (false, _) => Ok(Some(piece)),
            (true, Ends::Anywhere) => Ok(None),
            (true, Ends::There) => Err(self.unavailable("it is shorter than it was")),
        }
    }

    fn unavailable(&self, why: &str) -> StorageError {
        StorageError::Unavailable { key: self.key.clone(), why: why.to_owned() }
    }

    /// This piece, and all that is left. What goes wrong then can be told by nothing but an end before its time.
    fn body(self, first: Bytes) -> Body {
        let rest = stream::try_unfold(self, |mut pieces| async move {
            let piece = pieces.next().await.inspect_err(|error| tracing::debug!(%error, "an object ends early"))?;
            Ok::<_, StorageError>(piece.map(|piece| (piece, pieces)))
        });
        Body::from_stream(stream::iter([Ok(first)]).chain(rest))
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    fn place() -> Place {
        Places::new(1, 1, 0).take(Some("one")).expect("a place")
    }

    /// An object of so many bytes, of which these are left, and where that ends.
    async fn left(bytes: u64, left: Range<u64>, ends: Ends) -> Result<Vec<u8>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let storage = Storage::folder(folder.path());
        let content: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
        storage.put("v720/film.mp4", content.into(), Kind::VideoMp4).await.expect("stored");
        let pieces = Pieces { left, ends, ..Pieces::new(storage, "v720/film.mp4".to_owned(), place()) };
        let whole = to_bytes(pieces.body(Bytes::new()), usize::MAX).await;
        whole.map(|whole| whole.to_vec()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn what_is_larger_than_a_piece_comes_whole_and_what_is_shorter_than_it_was_breaks_off() {
        let (bytes, wanted) = (3 * PIECE_BYTES + 7, |range: Range<u64>| range.map(|n| (n % 251) as u8).collect::<Vec<u8>>());
        for range in [0..bytes, 5..PIECE_BYTES, PIECE_BYTES - 1..2 * PIECE_BYTES + 1, bytes - 1..bytes, 9..9] {
            assert!(left(bytes, range.clone(), Ends::There).await == Ok(wanted(range.clone())), "{range:?}");
        }
        let early = left(bytes, 0..bytes + 1, Ends::There).await.expect_err("it breaks off");
        assert!(early.contains("shorter than it was"), "{early}");
        assert!(left(bytes, 9..u64::MAX, Ends::Anywhere).await == Ok(wanted(9..bytes)));
    }
}
