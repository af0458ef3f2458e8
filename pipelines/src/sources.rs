//! The sources of an edited video. One reader has the bytes of all, one after the other; each is opened when a clip of it comes.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use farm::edit::{Clip, ClipSound, EditPlan};
use farm::{Code, Failure};
use serde::{Deserialize, Serialize};

use crate::mend::{self, Source};
use crate::{Order, Reader};

/// Longest read of a reader.
const READ_BYTES_MAX: usize = 4 << 20;

/// What the edits of a job come to, and where its sources are in what is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Montage {
    /// The clips. For sound, they have that of the one rendition.
    pub plan: EditPlan,
    /// Sizes of the sources in bytes, by number, in the order in which they are read; 0 of those that are not.
    pub bytes: Vec<u64>,
}

impl Montage {
    /// Numbers of the sources that make these places in time, in ns of presentation.
    fn sources(&self, span: &Range<u64>, of: impl Fn(&Clip) -> BTreeSet<u32>) -> BTreeSet<u32> {
        let shown = self.plan.clips.iter().filter(|clip| clip.start_ns < span.end && clip.end_ns > span.start);
        shown.flat_map(of).collect()
    }
}

impl Order {
    /// Numbers of the sources that it reads: 0 is the job's own, others are named by its edits.
    pub fn sources(&self) -> BTreeSet<u32> {
        match self {
            Self::Video(order) => match (&order.edit, order.plan.chunks.get(order.chunk as usize)) {
                (Some(edit), Some(chunk)) => {
                    let span = order.plan.rate.start_ns(chunk.start)..order.plan.rate.start_ns(chunk.end);
                    let overlay = |place: &u32| edit.plan.overlays.get(*place as usize).map(|overlay| overlay.source);
                    edit.sources(&span, |clip| clip.overlays.iter().filter_map(overlay).chain([clip.source]).collect())
                }
                _ => BTreeSet::from([0]),
            },
            Self::Audio(order) => match &order.edit {
                Some(edit) => {
                    edit.sources(&(0..u64::MAX), |clip| clip.sounds.iter().flatten().map(|sound| sound.source).collect())
                }
                None => BTreeSet::from([0]),
            },
            Self::Prove(_) => BTreeSet::new(),
            Self::Probe | Self::Stills(_) | Self::Text(_) => BTreeSet::from([0]),
        }
    }
}

impl Order {
    /// How often it opens a source: once, or once for each clip that does not go on where the one before ended.
    pub fn openings(&self) -> u64 {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX).max(1);
        match self {
            Self::Video(order) => match (&order.edit, order.plan.chunks.get(order.chunk as usize)) {
                (Some(edit), Some(chunk)) => {
                    let span = order.plan.rate.start_ns(chunk.start)..order.plan.rate.start_ns(chunk.end);
                    count(edit.plan.clips.iter().filter(|clip| clip.start_ns < span.end && clip.end_ns > span.start).count())
                }
                _ => 1,
            },
            Self::Audio(order) => order.edit.as_ref().map_or(1, |edit| {
                let sounds: Vec<_> = edit.plan.clips.iter().filter_map(|clip| clip.sounds.first().copied().flatten()).collect();
                let goes_on = |pair: &&[ClipSound]| match pair {
                    [one, next] => (one.source, one.track) == (next.source, next.track) && one.origin_ns <= next.origin_ns,
                    _ => false,
                };
                count(sounds.len().saturating_sub(sounds.windows(2).filter(goes_on).count()))
            }),
            Self::Prove(_) | Self::Probe | Self::Stills(_) | Self::Text(_) => 1,
        }
    }
}

/// The sources of an order.
pub struct Sources {
    parts: Vec<Arc<dyn Reader>>,
}

impl Sources {
    /// What one reader has: one source, or those of a montage.
    pub fn new(reader: Arc<dyn Reader>, montage: Option<&Montage>) -> Self {
        let Some(montage) = montage else { return Self { parts: vec![reader] } };
        let mut at = 0;
        let part = |bytes: &u64| {
            let start = at;
            at += bytes;
            Arc::new(Part { whole: Arc::clone(&reader), start, bytes: *bytes }) as Arc<dyn Reader>
        };
        Self { parts: montage.bytes.iter().map(part).collect() }
    }

    /// A source that is media.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(&self, number: u32) -> Result<Source, Failure> {
        mend::mend(self.part(number)?).map(|(source, _)| source).map_err(|error| unreadable(&error))
    }

    /// All of a source of at most `bytes_max`.
    ///
    /// # Errors
    /// When it cannot be read, or is larger.
    pub fn read(&self, number: u32, bytes_max: u64) -> Result<Bytes, Failure> {
        let part = self.part(number)?;
        let bytes = usize::try_from(part.bytes()).unwrap_or(usize::MAX);
        if part.bytes() > bytes_max {
            return Err(Failure::new(
                Code::LimitExceeded,
                format!("a picture file of {bytes} bytes: up to {bytes_max} are read"),
            ));
        }
        let mut all = BytesMut::new();
        while all.len() < bytes {
            let piece =
                part.read_at(all.len() as u64, (bytes - all.len()).min(READ_BYTES_MAX)).map_err(|error| unreadable(&error))?;
            if piece.is_empty() {
                break;
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    fn part(&self, number: u32) -> Result<Arc<dyn Reader>, Failure> {
        let part = self.parts.get(number as usize).cloned();
        part.ok_or_else(|| Failure::new(Code::Internal, format!("the order has no source {number}")))
    }
}

/// Why nothing can be done with a source.
pub fn unreadable(error: &io::Error) -> Failure {
    Failure::new(Code::SourceUnreadable, format!("the source cannot be read: {error}"))
}

/// A source among others.
struct Part {
    whole: Arc<dyn Reader>,
    start: u64,
    bytes: u64,
}

impl Reader for Part {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let left = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        match len.min(left) {
            0 => Ok(Bytes::new()),
            len => self.whole.read_at(self.start.saturating_add(offset), len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbers;

    impl Reader for Numbers {
        fn bytes(&self) -> u64 {
            100
        }

        fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
            Ok((offset..(offset + len as u64).min(100)).map(|number| number as u8).collect())
        }
    }

    #[test]
    fn each_source_has_its_own_bytes_and_no_more() {
        let plan = EditPlan { others: Vec::new(), canvas: None, overlays: Vec::new(), clips: Vec::new() };
        let sources = Sources::new(Arc::new(Numbers), Some(&Montage { plan, bytes: vec![10, 0, 5] }));
        assert_eq!(sources.read(0, 10).expect("read")[..], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(sources.read(1, 10).expect("read").len(), 0);
        assert_eq!(sources.read(2, 10).expect("read")[..], [10, 11, 12, 13, 14]);
        assert_eq!(sources.read(2, 4).expect_err("too large").code, Code::LimitExceeded);
        assert_eq!(sources.read(3, 4).expect_err("there is none").code, Code::Internal);
    }
}
