//! What a child may say, when, and how much of it. Pure: a frame in, what it means out.
//!
//! A child has read a stranger's file and is taken for hostile. So offsets, renditions, sequence, amounts and the media
//! itself are held against the order here, before anything is served or stored; any breach is the end of the child.

use bytes::Bytes;
use farm::boxes::BoxError;
use farm::rate::SECOND_NS;
use farm::stills::{Stills, StillsPlan};
use farm::task::{Object, Segment};
use farm::text::{Cue, TextAccount, TextPlan};
use farm::{Code, Failure};
use pipelines::{Done, Order, Pictured, StillPlace, jpeg};
use pipelines::{boxes, codecs};

use crate::protocol::{Frame, FromChild, READ_BYTES_MAX};

/// How often a source may be read over, in whole, each time that it is opened.
const READINGS_MAX: u64 = 8;
/// Bytes that may be read of any source, on top: small sources are read over more often.
const SERVED_BYTES_FREE: u64 = 256 << 20;
/// Smallest read on average, in bytes, once the free ones are used up.
const READ_BYTES_MEAN_MIN: u64 = 64 << 10;
/// Reads of any size that are free.
const READS_FREE: u64 = 65_536;
/// Bytes of a rendition on top of what its rate allows: headers, and what a rate control may owe.
const WRITTEN_BYTES_FREE: u64 = 4 << 20;
/// How far a rendition may exceed its rate: a cap is a promise of the encoder's, this is what we believe of it.
const WRITTEN_EXCESS_MAX: u64 = 3;

/// What a frame means, once it is believed.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    /// Wants these bytes of the source; they are all there.
    Read { offset: u64, len: usize },
    /// Hands out an init segment.
    Init { rendition: usize, timescale: u32, codecs: String, bytes: Bytes },
    /// Hands out the next media segment.
    Segment { rendition: usize, segment: Segment, bytes: Bytes },
    /// Hands out a still picture.
    Still { place: StillPlace, bytes: Bytes },
    /// Hands out all cues of the next rendition of text.
    Cues(Vec<Cue>),
    /// Has gone through this much media, in ns.
    Progress { media_ns: u64 },
    /// Is done, and everything that was ordered is there.
    Done(Done),
    /// Says why it cannot be done.
    Failed(Failure),
}

/// A lie, or a mistake that looks like one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Breach {
    #[error("a read of {len} bytes at {offset} of a source of {source_bytes}")]
    OutsideSource { offset: u64, len: u32, source_bytes: u64 },
    #[error("more reads than any order needs")]
    TooMuchRead,
    #[error("rendition {0}, which was not ordered")]
    NoSuchRendition(u32),
    #[error("a second init segment of rendition {0}")]
    SecondInit(u32),
    #[error("a segment of rendition {0} before its init segment")]
    SegmentBeforeInit(u32),
    #[error("more of rendition {0} than was ordered")]
    TooMuchMade(u32),
    #[error("a segment that is not what it is said to be")]
    SegmentDiffers,
    #[error("a segment that is no segment: {0}")]
    NoSegment(#[from] BoxError),
    #[error("a still picture that was not ordered, or not then")]
    OtherStill,
    #[error("text that was not ordered, or not then")]
    OtherText,
    #[error("cues that are none")]
    NoCues,
    #[error("the end of another order")]
    OtherOrder,
    #[error("the end, with {made} of {ordered} {what} of rendition {rendition}")]
    Incomplete { rendition: usize, what: &'static str, made: u64, ordered: u64 },
    #[error("findings about another source")]
    OtherSource,
    #[error("something else than the end of a proof")]
    NoProof,
    #[error("something after the end")]
    AfterEnd,
}

impl From<Breach> for Failure {
    fn from(breach: Breach) -> Self {
        Self::new(Code::ChildCrashed, format!("the child broke the protocol: it sent {breach}"))
    }
}

/// The state of the talk with one child.
pub(crate) struct Session {
    asked: Asked,
    source_bytes: u64,
    /// How often the order opens a source.
    openings: u64,
    reads: u64,
    served_bytes: u64,
    renditions: Vec<Making>,
    ended: bool,
}

/// What is to come of an order.
enum Asked {
    /// What the source is.
    Findings,
    /// Whether an encoder works, and not a word beside.
    Proof,
    /// Media of renditions.
    Media,
    /// Still pictures.
    Stills(Picturing),
    /// Renditions of text.
    Text(Texting),
}

impl Asked {
    fn by(order: &Order) -> Self {
        match order {
            Order::Probe => Self::Findings,
            Order::Prove(_) => Self::Proof,
            Order::Video(_) | Order::Audio(_) => Self::Media,
            Order::Stills(plan) => Self::Stills(Picturing { plan: plan.clone(), poster: false, sheets: 0 }),
            Order::Text(plan) => Self::Text(Texting { plan: plan.clone(), cues: Vec::new() }),
        }
    }
}

/// Still pictures that were ordered, and what came of them so far.
struct Picturing {
    plan: StillsPlan,
    poster: bool,
    sheets: usize,
}

/// Text that was ordered, and how many cues came of each rendition so far.
struct Texting {
    plan: TextPlan,
    cues: Vec<u64>,
}

/// What was ordered of a rendition, and what came of it so far.
struct Making {
    ordered: Ordered,
    timescale: Option<u32>,
    made: Amount,
    bytes: u64,
}

/// What an order asks of a rendition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ordered {
    amount: Amount,
    /// What will do as well: sound that is to be copied is encoded where it does not decode.
    or: Amount,
    bytes_max: u64,
}

/// How much is made of a rendition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    segments: u64,
    /// Frames, or packets of sound.
    samples: u64,
}

impl Amount {
    fn of_sound(plan: &farm::plan::AudioPlan, packets: u64) -> Option<Self> {
        Some(Self { segments: u64::try_from(plan.in_segments(packets).len()).ok()?, samples: packets })
    }
}

impl Session {
    /// A talk about this order and a source of this size.
    ///
    /// # Errors
    /// [`Code::Internal`] for an order that names a chunk it does not have.
    pub(crate) fn new(order: &Order, source_bytes: u64) -> Result<Self, Failure> {
        let ordered =
            ordered(order).ok_or_else(|| Failure::new(Code::Internal, "the order names a chunk that its plan has not"))?;
        let making = |ordered| Making { ordered, timescale: None, made: Amount::default(), bytes: 0 };
        let renditions = ordered.into_iter().map(making).collect();
        Ok(Self {
            asked: Asked::by(order),
            source_bytes,
            openings: order.openings(),
            reads: 0,
            served_bytes: 0,
            renditions,
            ended: false,
        })
    }

    /// What a frame means.
    ///
    /// # Errors
    /// A [`Breach`]: the child is to be killed.
    pub(crate) fn hear(&mut self, frame: Frame<FromChild>) -> Result<Said, Breach> {
        if self.ended {
            return Err(Breach::AfterEnd);
        }
        let is_end = matches!(frame.header, FromChild::Done(_) | FromChild::Failed(_));
        if matches!(self.asked, Asked::Proof) && !is_end {
            return Err(Breach::NoProof);
        }
        match frame.header {
            FromChild::Read { offset, len } => self.read(offset, len),
            FromChild::Init { rendition, timescale } => self.init(rendition, timescale, frame.payload),
            FromChild::Segment { rendition, segment } => self.segment(rendition, segment, frame.payload),
            FromChild::Still { place } => self.still(place, frame.payload),
            FromChild::Cues { rendition } => self.cues(rendition, &frame.payload),
            FromChild::Progress { media_ns } => Ok(Said::Progress { media_ns }),
            FromChild::Done(done) => self.done(done),
            FromChild::Failed(failure) => {
                self.ended = true;
                Ok(Said::Failed(believable(&failure)))
            }
        }
    }

    fn read(&mut self, offset: u64, len: u32) -> Result<Said, Breach> {
        let inside = offset.checked_add(u64::from(len)).is_some_and(|end| end <= self.source_bytes);
        if !inside || len == 0 || len > READ_BYTES_MAX {
            return Err(Breach::OutsideSource { offset, len, source_bytes: self.source_bytes });
        }
        self.reads += 1;
        self.served_bytes += u64::from(len);
        let readings_max = READINGS_MAX.saturating_mul(self.openings);
        let served_max = self.source_bytes.saturating_mul(readings_max).saturating_add(SERVED_BYTES_FREE);
        if self.served_bytes > served_max || self.reads > READS_FREE.saturating_add(served_max / READ_BYTES_MEAN_MIN) {
            return Err(Breach::TooMuchRead);
        }
        Ok(Said::Read { offset, len: len as usize })
    }

    fn init(&mut self, rendition: u32, timescale: u32, bytes: Bytes) -> Result<Said, Breach> {
        let making = self.renditions.get_mut(rendition as usize).ok_or(Breach::NoSuchRendition(rendition))?;
        let codecs = codecs::of_init(&bytes)?;
        if timescale == 0 || boxes::timescale(&bytes)? != timescale {
            return Err(Breach::SegmentDiffers);
        }
        match making.timescale.replace(timescale) {
            None => Ok(Said::Init { rendition: rendition as usize, timescale, codecs, bytes }),
            Some(_) => Err(Breach::SecondInit(rendition)),
        }
    }

    fn segment(&mut self, rendition: u32, segment: Segment, bytes: Bytes) -> Result<Said, Breach> {
        let making = self.renditions.get_mut(rendition as usize).ok_or(Breach::NoSuchRendition(rendition))?;
        if making.timescale.is_none() {
            return Err(Breach::SegmentBeforeInit(rendition));
        }
        if boxes::segment(&bytes)? != segment {
            return Err(Breach::SegmentDiffers);
        }
        making.made.segments += 1;
        making.made.samples += u64::from(segment.samples);
        making.bytes += segment.bytes;
        let Ordered { amount, or, bytes_max } = making.ordered;
        let Amount { segments, samples } = making.made;
        let is_too_much = segments > amount.segments.max(or.segments) || samples > amount.samples.max(or.samples);
        if is_too_much || making.bytes > bytes_max {
            return Err(Breach::TooMuchMade(rendition));
        }
        Ok(Said::Segment { rendition: rendition as usize, segment, bytes })
    }

    /// A poster once; sheets in order, each of a size that the plan may lead to: of an exact storyboard of the one that it has.
    fn still(&mut self, place: StillPlace, bytes: Bytes) -> Result<Said, Breach> {
        let Asked::Stills(Picturing { plan, poster, sheets }) = &mut self.asked else { return Err(Breach::OtherStill) };
        let size = jpeg::size(&bytes).ok_or(Breach::OtherStill)?;
        let is_ordered = match place {
            StillPlace::Poster => {
                let is_first = !std::mem::replace(poster, true);
                is_first && plan.poster.as_ref().is_some_and(|poster| (poster.width, poster.height) == size)
            }
            StillPlace::Sheet(number) => plan.storyboard.as_ref().is_some_and(|board| {
                let is_next = number as usize == *sheets;
                *sheets += 1;
                let (full, left) = (board.sheet_tiles(), board.tiles.len().saturating_sub(number as usize * board.sheet_tiles()));
                is_next && (1..=left.min(full)).any(|tiles| board.sheet_size(tiles) == size)
            }),
        };
        if is_ordered { Ok(Said::Still { place, bytes }) } else { Err(Breach::OtherStill) }
    }

    /// The cues of each rendition once, in the order of renditions and of time.
    fn cues(&mut self, rendition: u32, json: &[u8]) -> Result<Said, Breach> {
        let Asked::Text(Texting { plan, cues: came }) = &mut self.asked else { return Err(Breach::OtherText) };
        if rendition as usize != came.len() || came.len() >= plan.tracks.len() {
            return Err(Breach::OtherText);
        }
        let cues: Vec<Cue> = serde_json::from_slice(json).map_err(|_| Breach::NoCues)?;
        let are_proper = cues.iter().all(|cue| cue.is_proper(plan.duration_ns)) && cues.is_sorted_by_key(|cue| cue.start_ns);
        let written = cues.iter().map(|cue| plan.written_bytes(cue)).fold(0, u64::saturating_add);
        if !are_proper || cues.len() > Cue::COUNT_MAX || written > TextPlan::WRITTEN_BYTES_MAX {
            return Err(Breach::NoCues);
        }
        came.push(cues.len() as u64);
        Ok(Said::Cues(cues))
    }

    fn done(&mut self, done: Done) -> Result<Said, Breach> {
        self.ended = true;
        match (&self.asked, &done) {
            (Asked::Findings, Done::Probed(info)) if info.bytes != self.source_bytes => return Err(Breach::OtherSource),
            (Asked::Findings, Done::Probed(_)) | (Asked::Proof, Done::Proven) | (Asked::Media, Done::Encoded(_)) => {}
            (Asked::Stills(stills), Done::Pictured(pictured)) if stills.fit(pictured) => {}
            (Asked::Text(text), Done::Texted(told)) if text.fit(told) => {}
            (_, Done::Probed(_) | Done::Proven | Done::Encoded(_) | Done::Pictured(_) | Done::Texted(_)) => {
                return Err(Breach::OtherOrder);
            }
        }
        for (rendition, making) in self.renditions.iter().enumerate() {
            let (Ordered { amount, or, .. }, made) = (making.ordered, making.made);
            if made == amount || made == or {
                continue;
            }
            if made.segments < amount.segments {
                return Err(Breach::Incomplete { rendition, what: "segments", made: made.segments, ordered: amount.segments });
            }
            return Err(Breach::Incomplete { rendition, what: "samples", made: made.samples, ordered: amount.samples });
        }
        Ok(Said::Done(done))
    }
}

impl Picturing {
    /// Whether what is told of the pictures fits those that came.
    fn fit(&self, told: &Pictured) -> bool {
        let object = || Object { key: String::new(), bytes: 0, sha256: String::new() };
        let stills = Stills {
            poster: told.poster_ns.map(|shown_ns| (object(), shown_ns)),
            sheets: vec![object(); self.sheets],
            tiles: told.tiles.clone(),
        };
        self.poster == told.poster_ns.is_some() && stills.are_of(&self.plan)
    }
}

impl Texting {
    /// Whether what is told of the text fits what came, and all came.
    fn fit(&self, told: &[TextAccount]) -> bool {
        self.cues.len() == self.plan.tracks.len() && told.iter().map(|account| account.cues).eq(self.cues.iter().copied())
    }
}

/// What an order asks of each rendition; `None` when it names a chunk that its plan has not.
fn ordered(order: &Order) -> Option<Vec<Ordered>> {
    match order {
        Order::Probe | Order::Prove(_) | Order::Stills(_) | Order::Text(_) => Some(Vec::new()),
        Order::Video(order) => {
            let chunk = order.plan.chunks.get(order.chunk as usize)?;
            let frames = chunk.end.checked_sub(chunk.start)?;
            let segments = u64::try_from(order.plan.segments(chunk).len()).ok()?;
            let duration_ns = order.plan.rate.start_ns(frames);
            let rung = |rung: &farm::plan::Rung| {
                let (farm::plan::RateControl::CappedQuality { max_bitrate, .. }
                | farm::plan::RateControl::Average { max_bitrate, .. }
                | farm::plan::RateControl::Copied { max_bitrate }) = rung.rate_control;
                let amount = Amount { segments, samples: frames.div_ceil(u64::from(rung.divisor.get())) };
                Ordered { amount, or: amount, bytes_max: bytes_max(max_bitrate, duration_ns) }
            };
            Some(order.plan.rungs.iter().map(rung).collect())
        }
        Order::Audio(order) => {
            let plan = &order.plan;
            let duration_ns = u128::from(plan.samples) * u128::from(SECOND_NS) / u128::from(plan.rate.max(1));
            let duration_ns = u64::try_from(duration_ns).unwrap_or(u64::MAX);
            let amount = Amount::of_sound(plan, plan.segment_packets().iter().sum())?;
            let or = plan.copy.map_or(Some(amount), |copy| Amount::of_sound(plan, copy.packets))?;
            Some(vec![Ordered { amount, or, bytes_max: bytes_max(plan.bitrate, duration_ns) }])
        }
    }
}

fn bytes_max(bits_per_second: u32, duration_ns: u64) -> u64 {
    let bytes = u128::from(bits_per_second) * u128::from(duration_ns) / u128::from(8 * SECOND_NS);
    let believed = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(WRITTEN_EXCESS_MAX);
    believed.saturating_add(WRITTEN_BYTES_FREE)
}

/// A failure as a child may report one. It knows about the source, its elements and itself; it may not claim that the job
/// was cancelled, the worker stopped, or a service is down: those change what becomes of the task.
fn believable(failure: &Failure) -> Failure {
    let code = match failure.code {
        Code::NotMedia
        | Code::NoDecodableStream
        | Code::UnsupportedCodec
        | Code::Truncated
        | Code::Undecodable
        | Code::LimitExceeded
        | Code::SourceUnreadable
        | Code::MissingElement
        | Code::SandboxMissing
        | Code::EncoderFailed
        | Code::Internal => failure.code,
        Code::SourceChanged
        | Code::InvalidRequest
        | Code::StorageUnwritable
        | Code::StorageFull
        | Code::StorageUnavailable
        | Code::BrokerUnavailable
        | Code::SchedulerUnavailable
        | Code::ChildCrashed
        | Code::ChildStalled
        | Code::DeadlineExceeded
        | Code::DeviceFailed
        | Code::Cancelled
        | Code::Interrupted => Code::ChildCrashed,
    };
    let told = Failure::new(code, failure.message.as_str());
    match &failure.stream {
        Some(stream) => told.on_stream(Failure::new(code, stream.chars().take(64).collect::<String>()).message),
        None => told,
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
