//! Whose encoders make the picture: classes of them, what a worker offers of each, and one of its devices.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::VideoCodec;
use crate::task::Token;

/// Who makes the encoders, and where they run. A plan pins one for each rendition, and tasks of each go over a queue of their
/// own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Libraries, on the processor.
    #[default]
    Cpu,
    /// NVIDIA's encoder.
    Nvenc,
    /// Those that a VA-API driver offers: of Intel and AMD.
    Vaapi,
    /// Intel's, by its own library.
    Qsv,
    /// Those of small boards.
    V4l2,
}

impl Class {
    /// Every one, those of hardware in order of preference.
    pub const ALL: [Self; 5] = [Self::Cpu, Self::Nvenc, Self::Vaapi, Self::Qsv, Self::V4l2];

    /// In a word, as it stands in names of queues and labels.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Nvenc => "nvenc",
            Self::Vaapi => "vaapi",
            Self::Qsv => "qsv",
            Self::V4l2 => "v4l2",
        }
    }

    /// Whether it takes a device.
    pub fn is_hardware(self) -> bool {
        self != Self::Cpu
    }

    /// Whether it does without one.
    pub fn is_cpu(&self) -> bool {
        *self == Self::Cpu
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A device with encoders.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Device {
    /// Whose it is.
    pub class: Class,
    /// Its number as names of elements have it: its place among those of its class, from 0, or that of its node (V4L2).
    pub number: u32,
    /// Its node in the file system.
    pub node: PathBuf,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.class, self.node.display())
    }
}

/// How large a picture is, whichever way it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Its longer side in pixels.
    pub side: u32,
    /// All its pixels.
    pub pixels: u32,
}

impl Extent {
    /// That of a picture of this width and height.
    pub fn of(width: u32, height: u32) -> Self {
        Self { side: width.max(height), pixels: width.saturating_mul(height) }
    }

    /// Whether it is no larger than another, in side and pixels.
    pub fn fits(self, largest: Self) -> bool {
        self.side <= largest.side && self.pixels <= largest.pixels
    }

    /// What fits both.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self { side: self.side.min(other.side), pixels: self.pixels.min(other.pixels) }
    }
}

/// What one worker has proven to work, told every few seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The worker, by a name that it gives itself.
    pub worker: Token,
    /// What it offers beside encoding on the processor; nothing (any more) when empty.
    pub encoders: Vec<Offered>,
}

/// Encoders of a codec that a worker offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// Whose they are.
    pub class: Class,
    /// The codec.
    pub codec: VideoCodec,
    /// The largest picture that was tried.
    pub largest: Extent,
    /// How many one task may use at a time, as far as is known.
    pub sessions_max: Option<u32>,
}
