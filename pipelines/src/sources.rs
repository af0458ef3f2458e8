//! The sources of an edited video. One reader has the bytes of all, one after the other; each is opened when a clip of it comes.

use std::collections::BTreeSet;
use std::io;
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

impl Order {
    /// What is edited, and the clips of it that this order makes; none where the one source is taken as it is.
    fn clips(&self) -> Option<(&EditPlan, Vec<&Clip>)> {
        match self {
            Self::Video(order) => {
                let (edit, chunk) = order.edit.as_ref().zip(order.plan.chunks.get(order.chunk as usize))?;
                let (start_ns, end_ns) = (order.plan.rate.start_ns(chunk.start), order.plan.rate.start_ns(chunk.end));
                let shown = edit.plan.clips.iter().filter(|clip| clip.start_ns < end_ns && clip.end_ns > start_ns);
                Some((&edit.plan, shown.collect()))
            }
            Self::Audio(order) => order.edit.as_ref().map(|edit| (&edit.plan, edit.plan.clips.iter().collect())),
            Self::Prove(_) | Self::Probe | Self::Stills(_) | Self::Text(_) => None,
        }
    }

    /// Numbers of the sources that it reads: 0 is the job's own, others are named by its edits.
    pub fn sources(&self) -> BTreeSet<u32> {
        match (self, self.clips()) {
            (Self::Prove(_), _) => BTreeSet::new(),
            (Self::Audio(_), Some((_, clips))) => sounds(&clips).map(|sound| sound.source).collect(),
            (_, Some((plan, clips))) => {
                let overlays = clips.iter().flat_map(|clip| &clip.overlays);
                let overlays = overlays.filter_map(|place| plan.overlays.get(*place as usize)).map(|overlay| overlay.source);
                overlays.chain(clips.iter().map(|clip| clip.source)).collect()
            }
            (_, None) => BTreeSet::from([0]),
        }
    }

    /// How often it opens a source: once, or once for each clip; of sound only for those that do not go on where one before ended.
    pub fn openings(&self) -> u64 {
        let count = match (self, self.clips()) {
            (Self::Audio(_), Some((_, clips))) => {
                let after: Vec<ClipSound> = sounds(&clips).skip(1).collect();
                let goes_on = |(one, next): &(ClipSound, &ClipSound)| {
                    (one.source, one.track) == (next.source, next.track) && one.origin_ns <= next.origin_ns
                };
                1 + after.len() - sounds(&clips).zip(&after).filter(goes_on).count()
            }
            (_, Some((_, clips))) => clips.len(),
            (_, None) => 1,
        };
        u64::try_from(count).unwrap_or(u64::MAX).max(1)
    }
}

/// What is heard of clips that have the sound of one rendition.
fn sounds(clips: &[&Clip]) -> impl Iterator<Item = ClipSound> {
    clips.iter().filter_map(|clip| clip.sounds.first().copied().flatten())
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

    /// An order for sound of clips, each as source and ns at its start; none is silence.
    fn heard(clips: &[Option<(u32, u64)>]) -> Order {
        let sound = |(source, origin_ns)| ClipSound { source, track: farm::media::TrackId(1), origin_ns };
        let clip = |clip: &Option<(u32, u64)>| Clip {
            start_ns: 0,
            end_ns: 0,
            origin_ns: 0,
            source: 0,
            picture: None,
            sounds: vec![clip.map(sound)],
            overlays: Vec::new(),
        };
        let clips = clips.iter().map(clip).collect();
        let plan = EditPlan { others: Vec::new(), canvas: None, overlays: Vec::new(), clips };
        let audio = serde_json::json!({
            "id": "a0", "track": 1, "rate": 48000, "channels": 2, "bitrate": 128000, "samples": 1, "segment_ns": 1, "language": null,
            "name": "Audio", "default": true
        });
        let plan_of_sound = serde_json::from_value(audio).expect("a plan");
        let edit = Some(Montage { plan, bytes: Vec::new() });
        Order::Audio(crate::AudioOrder { plan: plan_of_sound, origin_ns: 0, lead_ns: 0, edit })
    }

    #[test]
    fn a_source_is_opened_again_where_sound_does_not_go_on() {
        for (clips, openings, sources) in [
            (&[Some((0, 0)), Some((0, 5)), Some((0, 9))][..], 1, &[0][..]),
            (&[Some((0, 5)), Some((0, 0))], 2, &[0]),
            (&[Some((2, 0)), Some((0, 0)), None, Some((0, 7)), Some((3, 0))], 3, &[0, 2, 3]),
            (&[None, None], 1, &[]),
        ] {
            let order = heard(clips);
            assert_eq!(order.openings(), openings, "{clips:?}");
            assert_eq!(order.sources(), sources.iter().copied().collect(), "{clips:?}");
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
