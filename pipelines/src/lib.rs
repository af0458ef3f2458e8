//! GStreamer and nothing else: what happens inside one attempt.
//!
//! One call, [`run`], does one [`Order`]: it reads the source through a [`Reader`], hands out media through an
//! [`Output`] as it gets ready, and blocks until it is done. It knows no job, no storage, no broker and no clock.
//!
//! ```text
//! probe   reader → source → parsebin → every packet counted; then one frame of each track decoded
//! video   reader → source → parsebin → decoder → cadence ─┬→ scale → encoder → cmafmux → fragment → output   (clip by clip, where edited)
//!                                                         └→ scale → encoder → cmafmux → fragment → output   (a rung each)
//! audio   reader → source → parsebin → decoder → convert → samples counted → level → AAC → cmafmux → fragment → output
//! stills  reader → source → parsebin → some key frames, or spans → decoder → scale → sheet → JPEG → output
//! text    reader → source → parsebin → every packet of text → cues → output
//! prove   test pictures → encoder → counted → decoder → compared
//! ```

mod alike;
mod audio;
pub mod boxes;
mod byte_source;
mod cadence;
mod canvas;
mod chapters;
pub mod codecs;
mod comb;
mod copy;
mod cue_text;
mod decode;
mod downmix;
mod edits;
pub mod encoders;
mod fragment;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hardware;
mod interlace;
pub mod jpeg;
mod key_frames;
mod leaps;
mod likeness;
mod limiter;
mod looks;
mod loudness;
mod mend;
pub mod movie;
mod mp3;
mod overlay;
mod packets;
pub mod parameter_sets;
mod picture_encoder;
mod plugins;
mod probe;
mod scale;
mod scan;
mod source;
mod sources;
mod spans;
mod stills;
mod text;
mod timing;
mod video;
mod wav;
mod whole;

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use farm::encoder::Device;
use farm::media::MediaInfo;
use farm::plan::{AudioPlan, VideoPlan};
use farm::stills::{StillsPlan, Tile};
use farm::task::{Account, Segment};
use farm::text::{Cue, TextAccount, TextPlan};
use farm::{Code, Failure};
use serde::{Deserialize, Serialize};

pub use crate::sources::Montage;
use crate::sources::{Sources, unreadable};

/// Random access to the bytes of the source.
pub trait Reader: Send + Sync + 'static {
    /// Size of the source in bytes.
    fn bytes(&self) -> u64;

    /// The bytes from `offset` on: exactly `len`, fewer only at the end of the source. `len` is at most 4 MiB.
    ///
    /// # Errors
    /// When the source cannot be read; the attempt fails with it.
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes>;
}

/// Takes what an order makes, as it gets ready. Called from several threads.
pub trait Output: Send + Sync + 'static {
    /// The init segment of a rendition, before its first segment.
    ///
    /// # Errors
    /// When it cannot be handed on; the attempt fails with it.
    fn init(&self, init: Init) -> io::Result<()>;

    /// The next media segment of a rendition.
    ///
    /// # Errors
    /// When it cannot be handed on; the attempt fails with it.
    fn segment(&self, rendition: u32, segment: Segment, bytes: Bytes) -> io::Result<()>;

    /// A still picture, as JPEG.
    ///
    /// # Errors
    /// When it cannot be handed on; the attempt fails with it.
    fn still(&self, place: StillPlace, bytes: Bytes) -> io::Result<()>;

    /// All cues of a rendition of text, in order, once.
    ///
    /// # Errors
    /// When they cannot be handed on; the attempt fails with it.
    fn cues(&self, rendition: u32, cues: Vec<Cue>) -> io::Result<()>;

    /// How much media has been gone through so far, in ns.
    ///
    /// # Errors
    /// When it cannot be handed on; the attempt fails with it.
    fn progress(&self, media_ns: u64) -> io::Result<()>;
}

/// Which still picture it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StillPlace {
    /// The poster.
    Poster,
    /// A sheet of the storyboard, by its number from 0.
    Sheet(u32),
}

/// The init segment of a rendition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Init {
    /// Place of the rendition in the order: of the rung in the ladder, or 0 for sound.
    pub rendition: u32,
    /// Ticks per second of its segments' durations.
    pub timescale: u32,
    /// The segment.
    pub bytes: Bytes,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Find out what the source is.
    Probe,
    /// Find out whether an encoder works. It takes no source.
    Prove(encoders::Proof),
    /// Encode one chunk of the picture into every rung.
    Video(VideoOrder),
    /// Encode one rendition of the sound, the whole length.
    Audio(AudioOrder),
    /// Make still pictures.
    Stills(StillsPlan),
    /// Make every rendition of text.
    Text(TextPlan),
}

impl Order {
    /// The device that it takes.
    pub fn device(&self) -> Option<&Device> {
        match self {
            Self::Prove(proof) => proof.device.as_ref(),
            Self::Video(order) => order.device.as_ref().map(|lent| &lent.device),
            Self::Probe | Self::Audio(_) | Self::Stills(_) | Self::Text(_) => None,
        }
    }

    /// Elements that it uses, and no other order may.
    fn elements(&self) -> Vec<String> {
        match self {
            Self::Prove(proof) => proof.elements(),
            Self::Video(VideoOrder { plan, device: Some(lent), .. }) => {
                let pinned = plan.rungs.iter().filter(|rung| rung.class == lent.device.class);
                let codecs = pinned.map(|rung| encoders::name_of(rung.codec));
                codecs.flat_map(|codec| encoders::names_on(&lent.device, codec)).collect()
            }
            Self::Probe | Self::Video(_) | Self::Audio(_) | Self::Stills(_) | Self::Text(_) => Vec::new(),
        }
    }
}

/// Encode one chunk of the picture into every rung.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VideoOrder {
    /// The picture's plan.
    pub plan: VideoPlan,
    /// Which of its chunks.
    pub chunk: u32,
    /// Stream time at which presentation starts, in ns.
    pub origin_ns: u64,
    /// Lead of every track, in ns.
    pub lead_ns: u64,
    /// The device, and how many of the rungs that are pinned to its class it makes, the first ones. The others are made in
    /// software instead.
    #[serde(default)]
    pub device: Option<OnDevice>,
    /// The clips that are shown, where the source is edited.
    #[serde(default)]
    pub edit: Option<Montage>,
}

/// A device that is lent to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDevice {
    /// The device.
    pub device: Device,
    /// How many encoders may run on it at a time.
    pub sessions: u32,
}

/// Encode one rendition of the sound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AudioOrder {
    /// The rendition's plan.
    pub plan: AudioPlan,
    /// Stream time at which presentation starts, in ns.
    pub origin_ns: u64,
    /// Lead of every track, in ns.
    pub lead_ns: u64,
    /// The clips that are heard, where the source is edited.
    #[serde(default)]
    pub edit: Option<Montage>,
}

/// What came of an order, beside the media already handed out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// The source, described.
    Probed(Box<MediaInfo>),
    /// What became of the source's frames or samples.
    Encoded(Account),
    /// Which still pictures there are.
    Pictured(Pictured),
    /// What became of each text track, in the order's order.
    Texted(Vec<TextAccount>),
    /// The encoder does what is asked of it.
    Proven,
}

/// The still pictures that were handed out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pictured {
    /// Stream time of the key frame that the poster shows, in ns; none when there is no poster.
    pub poster_ns: Option<u64>,
    /// What the sheets show, in order.
    pub tiles: Vec<Tile>,
}

/// Does one order; blocks until it is done.
///
/// # Errors
/// A [`Failure`] whose code tells whether the source, the machine or Shoal is at fault. What was handed out before does
/// not count then.
pub fn run(order: &Order, reader: Arc<dyn Reader>, output: &Arc<dyn Output>) -> Result<Done, Failure> {
    init()?;
    plugins::confine(&order.elements());
    let mended = || mend::mend(Arc::clone(&reader)).map_err(|error| unreadable(&error));
    let sources = |edit: &Option<Montage>| Sources::new(Arc::clone(&reader), edit.as_ref());
    match order {
        Order::Probe => {
            let (source, warnings) = mended()?;
            let promised = whole::promised(source.reader.as_ref()).map_err(|error| unreadable(&error))?;
            probe::probe(&source, warnings, promised).map(|info| Done::Probed(Box::new(info)))
        }
        Order::Prove(proof) => encoders::prove(proof).map(|()| Done::Proven),
        Order::Video(order) => video::encode(order, &sources(&order.edit), output).map(Done::Encoded),
        Order::Audio(order) => audio::encode(order, &sources(&order.edit), output).map(Done::Encoded),
        Order::Stills(plan) => stills::make(plan, &mended()?.0, output.as_ref()).map(Done::Pictured),
        Order::Text(plan) => text::make(plan, &mended()?.0, output.as_ref()).map(Done::Texted),
    }
}

/// Starts GStreamer with the elements that are part of Shoal. May be called again.
///
/// # Errors
/// [`Code::MissingElement`] when GStreamer does not start.
pub fn init() -> Result<(), Failure> {
    static STARTED: OnceLock<Result<(), Failure>> = OnceLock::new();
    let start = || {
        let failed =
            |error: &dyn std::fmt::Display| Failure::new(Code::MissingElement, format!("GStreamer does not start: {error}"));
        gst::init().map_err(|e| failed(&e))?;
        gst_fmp4::plugin_register_static().map_err(|e| failed(&e))
    };
    STARTED.get_or_init(start).clone()
}
