//! What a child makes goes to the output storage as it comes: a bounded number of objects and bytes at a time.
//!
//! Keys come from our own counters, under the token of this execution. Nothing here counts until a marker names it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use farm::storage::{Kind, Storage};
use farm::task::{Encoded, Object, Segment, Token};
use farm::{Code, Failure, keys};
use pipelines::movie::{self, Run};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::retry::{patiently, storage_may_pass};
use crate::sets::Sets;
use crate::work::{Medium, Rendition, Storing};

/// Most objects on their way at a time.
const UPLOADS_MAX: usize = 8;
/// Most KiB on their way at a time: a segment at its largest, and then some.
const UPLOAD_KIB_MAX: u32 = 64 << 10;
/// Limits of what the single-file layout gathers in memory before it goes out as a part. Parts are copied within S3 when they
/// are joined, if they have 5 MiB; so as a rule no part is smaller, nor the rest at the end.
const GATHER: Gather = Gather { part_bytes: 6 << 20, bytes_max: 48 << 20 };
/// How long objects on their way may take to settle before they are deleted, when the execution came to nothing.
const SETTLE_WAIT: Duration = Duration::from_secs(20);

/// The objects of one execution.
pub(crate) struct Uploads {
    output: Storage,
    storing: Storing,
    token: Token,
    made: Vec<Made>,
    /// Bytes of all parts that are still gathered.
    gathered: usize,
    gather: Gather,
    running: JoinSet<Result<Stored, Failure>>,
    slots: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    keys: Vec<String>,
    /// What init segments are held against, where a device makes some.
    sets: Option<Sets>,
}

/// How much is gathered.
#[derive(Clone, Copy)]
struct Gather {
    /// A rendition that has twice this many bytes keeps this many and sends the others.
    part_bytes: usize,
    /// With more than this many in all renditions, the largest sends all it has.
    bytes_max: usize,
}

/// What was made of a rendition so far.
struct Made {
    rendition: Rendition,
    init: Option<InitMade>,
    segments: Vec<Segment>,
    /// By place, as they are stored.
    objects: Vec<Option<Object>>,
    /// Of what is stored in parts, the segments that are not on their way yet.
    part: Gathered,
    /// By segment, where its samples are in it, if that is wanted.
    runs: Vec<Vec<Run>>,
    samples: Option<Object>,
}

/// Bytes in pieces, as they came: put together only when they go out.
#[derive(Default)]
struct Gathered {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Gathered {
    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        self.pieces.push_back(piece);
    }

    /// Takes so many bytes from the front, or what is there.
    fn take(&mut self, bytes: usize) -> Bytes {
        let mut taken = BytesMut::with_capacity(bytes.min(self.bytes));
        while taken.len() < bytes
            && let Some(mut piece) = self.pieces.pop_front()
        {
            taken.extend_from_slice(&piece.split_to(piece.len().min(bytes - taken.len())));
            if !piece.is_empty() {
                self.pieces.push_front(piece);
            }
        }
        self.bytes -= taken.len();
        taken.freeze()
    }
}

struct InitMade {
    codecs: String,
    timescale: u32,
    object: Option<Object>,
}

/// Where an object belongs in its rendition.
#[derive(Clone, Copy)]
enum Place {
    Init,
    Media(usize),
    Samples,
}

struct Stored {
    rendition: usize,
    place: Place,
    object: Object,
}

impl Uploads {
    /// Nothing made yet of these renditions.
    pub(crate) fn new(output: Storage, storing: Storing, token: Token, renditions: Vec<Rendition>) -> Self {
        let made = |rendition| Made {
            rendition,
            init: None,
            segments: Vec::new(),
            objects: Vec::new(),
            part: Gathered::default(),
            runs: Vec::new(),
            samples: None,
        };
        Self {
            output,
            storing,
            token,
            made: renditions.into_iter().map(made).collect(),
            gathered: 0,
            gather: GATHER,
            running: JoinSet::new(),
            slots: Arc::new(Semaphore::new(UPLOADS_MAX)),
            kib: Arc::new(Semaphore::new(UPLOAD_KIB_MAX as usize)),
            keys: Vec::new(),
            sets: None,
        }
    }

    /// The same, with init segments held against what was made before.
    pub(crate) fn with_sets(self, sets: Option<Sets>) -> Self {
        Self { sets, ..self }
    }

    /// Whether anything came of the renditions at these places.
    pub(crate) fn has_begun(&self, places: &[usize]) -> bool {
        places.iter().any(|place| self.made.get(*place).is_some_and(|made| made.init.is_some()))
    }

    /// Takes the init segment of a rendition. Waits while too much is on its way.
    ///
    /// # Errors
    /// [`Code::DeviceFailed`] for one that does not go with what was made before; of an upload that failed, this or an earlier
    /// one.
    pub(crate) async fn init(&mut self, rendition: usize, timescale: u32, codecs: String, bytes: Bytes) -> Result<(), Failure> {
        let made = self.made(rendition)?;
        made.init = Some(InitMade { codecs, timescale, object: None });
        let kind = match made.rendition.medium {
            Medium::Picture => Kind::VideoMp4,
            Medium::Sound => Kind::AudioMp4,
        };
        let id = made.rendition.id.clone();
        if let Some(sets) = &mut self.sets {
            sets.check(rendition, &id, &bytes).await?;
        }
        let key = keys::init(&id, &self.token);
        self.store(rendition, Place::Init, key, kind, bytes).await
    }

    /// Takes the next media segment of a rendition. Waits while too much is on its way.
    ///
    /// # Errors
    /// Of an upload that failed, this or an earlier one.
    pub(crate) async fn segment(&mut self, rendition: usize, segment: Segment, bytes: Bytes) -> Result<(), Failure> {
        let (storing, gather) = (self.storing, self.gather);
        let made = self.made(rendition)?;
        let number = made.rendition.first_segment + made.segments.len() as u64;
        made.segments.push(segment);
        if storing == Storing::SegmentsAndSamples {
            let broken = |error| Failure::new(Code::Internal, format!("a segment cannot be read: {error}"));
            made.runs.push(movie::runs(&bytes).map_err(broken)?);
        }
        match storing {
            Storing::Segments | Storing::SegmentsAndSamples => {
                let place = Place::Media(made.objects.len());
                made.objects.push(None);
                let (id, kind) = (made.rendition.id.clone(), made.rendition.segment_kind());
                self.store(rendition, place, keys::segment(&id, &self.token, number), kind, bytes).await
            }
            Storing::Parts => {
                let came = bytes.len();
                made.part.push(bytes);
                let have = made.part.bytes;
                self.gathered += came;
                if have >= 2 * gather.part_bytes {
                    self.send_part(rendition, have - gather.part_bytes).await?;
                } else if self.gathered > gather.bytes_max {
                    let sizes = self.made.iter().map(|made| made.part.bytes).enumerate();
                    let (largest, bytes) = sizes.max_by_key(|(_, bytes)| *bytes).unwrap_or((rendition, have));
                    self.send_part(largest, bytes).await?;
                }
                Ok(())
            }
        }
    }

    /// Sends so many bytes of what is gathered of a rendition on their way, as its next object.
    async fn send_part(&mut self, rendition: usize, bytes: usize) -> Result<(), Failure> {
        let made = self.made(rendition)?;
        let part = made.part.take(bytes);
        if part.is_empty() {
            return Ok(());
        }
        let (number, id, kind) = (made.objects.len(), made.rendition.id.clone(), made.rendition.segment_kind());
        made.objects.push(None);
        self.gathered -= part.len();
        self.store(rendition, Place::Media(number), keys::part(&id, &self.token, number), kind, part).await
    }

    /// Waits until everything is stored; what was made, in the order of renditions. Init segments hold for others from then on.
    ///
    /// # Errors
    /// Of an upload that failed; [`Code::DeviceFailed`] for init segments that do not go with what was made meanwhile.
    pub(crate) async fn finish(&mut self) -> Result<Vec<Encoded>, Failure> {
        for rendition in 0..self.made.len() {
            let bytes = self.made(rendition)?.part.bytes;
            self.send_part(rendition, bytes).await?;
            if self.storing == Storing::SegmentsAndSamples {
                let made = self.made(rendition)?;
                let (key, runs) = (made.rendition.id.clone(), std::mem::take(&mut made.runs));
                let unwritten = |error| Failure::new(Code::Internal, format!("samples: {error}"));
                let content = serde_json::to_vec(&runs).map_err(unwritten)?;
                let key = keys::samples(&key, &self.token);
                self.store(rendition, Place::Samples, key, Kind::Json, content.into()).await?;
            }
        }
        while let Some(stored) = self.running.join_next().await {
            self.note(stored)?;
        }
        let made: Vec<Encoded> = self.made.iter().map(Made::encoded).collect::<Result<_, _>>()?;
        if let Some(sets) = &self.sets {
            sets.note().await?;
        }
        Ok(made)
    }

    /// Deletes whatever was stored or may still be: the execution came to nothing. What cannot be deleted is left to the
    /// janitor.
    pub(crate) async fn abandon(mut self) {
        let settled = async { while self.running.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(SETTLE_WAIT, settled).await;
        self.running.abort_all();
        discard(&self.output, &self.keys).await;
    }

    fn made(&mut self, rendition: usize) -> Result<&mut Made, Failure> {
        self.made.get_mut(rendition).ok_or_else(|| Failure::new(Code::Internal, "a rendition that was not ordered"))
    }

    async fn store(&mut self, rendition: usize, place: Place, key: String, kind: Kind, content: Bytes) -> Result<(), Failure> {
        while let Some(stored) = self.running.try_join_next() {
            self.note(stored)?;
        }
        let permits = self.room(content.len()).await?;
        self.keys.push(key.clone());
        let output = self.output.clone();
        self.running.spawn(async move {
            let object = put(&output, key, kind, content).await?;
            drop(permits);
            Ok(Stored { rendition, place, object })
        });
        Ok(())
    }

    /// Waits for room for an object of so many bytes.
    async fn room(&self, bytes: usize) -> Result<[OwnedSemaphorePermit; 2], Failure> {
        let closed = |_| Failure::new(Code::Internal, "uploads are closed");
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(UPLOAD_KIB_MAX);
        let slot = self.slots.clone().acquire_owned().await.map_err(closed)?;
        Ok([slot, self.kib.clone().acquire_many_owned(kib).await.map_err(closed)?])
    }

    fn note(&mut self, stored: Result<Result<Stored, Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
        let stored = stored.map_err(|error| Failure::new(Code::Internal, format!("an upload came to nothing: {error}")))??;
        let made = self.made(stored.rendition)?;
        match stored.place {
            Place::Init => {
                if let Some(init) = &mut made.init {
                    init.object = Some(stored.object);
                }
            }
            Place::Samples => made.samples = Some(stored.object),
            Place::Media(index) => {
                if let Some(place) = made.objects.get_mut(index) {
                    *place = Some(stored.object);
                }
            }
        }
        Ok(())
    }
}

impl Rendition {
    fn segment_kind(&self) -> Kind {
        match self.medium {
            Medium::Picture => Kind::VideoSegment,
            Medium::Sound => Kind::AudioSegment,
        }
    }
}

impl Made {
    fn encoded(&self) -> Result<Encoded, Failure> {
        let missing = || Failure::new(Code::Internal, format!("an object of {} is not stored", self.rendition.id));
        let init = self.init.as_ref().ok_or_else(missing)?;
        Ok(Encoded {
            rendition: self.rendition.id.clone(),
            codecs: init.codecs.clone(),
            timescale: init.timescale,
            init: init.object.clone().ok_or_else(missing)?,
            objects: self.objects.iter().map(|object| object.clone().ok_or_else(missing)).collect::<Result<_, _>>()?,
            segments: self.segments.clone(),
            samples: self.samples.clone(),
        })
    }
}

/// Deletes objects that do not count. What cannot be deleted is left to the janitor.
pub(crate) async fn discard(output: &Storage, keys: &[String]) {
    if let Err(error) = patiently(storage_may_pass, || output.delete(keys)).await {
        tracing::warn!(%error, objects = keys.len(), "objects that do not count are left behind");
    }
}

/// Stores an object and hashes it.
pub(crate) async fn put(output: &Storage, key: String, kind: Kind, content: Bytes) -> Result<Object, Failure> {
    let hashed = content.clone();
    let hashing = tokio::task::spawn_blocking(move || hex(&Sha256::digest(&hashed)));
    let sha256 = hashing.await.map_err(|_| Failure::new(Code::Internal, "hashing came to nothing"))?;
    patiently(storage_may_pass, || output.put(&key, content.clone(), kind)).await?;
    Ok(Object { key, bytes: content.len() as u64, sha256 })
}

/// Bytes as text, two characters each.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use farm::plan::RenditionId;

    #[tokio::test]
    async fn a_long_part_goes_out_in_pieces_and_little_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let output = Storage::folder(folder.path());
        let rendition = |id: &str| Rendition { id: RenditionId(id.to_owned()), medium: Medium::Sound, first_segment: 0 };
        let renditions = vec![rendition("a0"), rendition("a1")];
        let mut uploads = Uploads::new(output.clone(), Storing::Parts, Token::random(), renditions);
        uploads.gather = Gather { part_bytes: 400, bytes_max: 1000 };
        let content = |index: usize, n: u8| Bytes::from(vec![n; if index == 0 { 90 } else { 30 }]);
        let mut expected = [Vec::new(), Vec::new()];
        for index in 0..expected.len() {
            uploads.init(index, 48_000, "mp4a.40.2".to_owned(), Bytes::from_static(b"init")).await.expect("taken");
        }
        for n in 0..100 {
            for (index, whole) in expected.iter_mut().enumerate() {
                let bytes = content(index, n);
                whole.extend_from_slice(&bytes);
                let segment = Segment { ticks: 1024, samples: 1, bytes: bytes.len() as u64, key_frames: Vec::new() };
                uploads.segment(index, segment, bytes).await.expect("taken");
                let kept: usize = uploads.made.iter().map(|made| made.part.bytes).sum();
                assert!(kept == uploads.gathered && kept <= 1000, "{kept} bytes are kept");
            }
        }
        let made = uploads.finish().await.expect("stored");
        for (made, whole) in made.iter().zip(expected) {
            assert_eq!(made.segments.len(), 100);
            assert!(made.objects.len() > 3, "{:?}", made.objects);
            let mut joined = Vec::new();
            for object in &made.objects {
                let stored = output.get(&object.key).await.expect("stored");
                assert_eq!(stored.len() as u64, object.bytes);
                joined.extend_from_slice(&stored);
            }
            assert_eq!(joined, whole, "{}", made.rendition);
        }
    }
}
