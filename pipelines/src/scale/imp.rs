//! How `shoalscale` negotiates, keeps memory aligned, and converts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use farm::media::Colour;
use gst::glib;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::BaseTransformMode;
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;
use gst_video::subclass::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};

use super::colour;
use super::convert::Converter;
use super::memory::{ALIGN, Plane, copy_rows, is_aligned};
use super::zimg::{Error, Format, UNSPECIFIED, View, ViewMut};

/// Raw formats that zimg reads as they are: planar, in the machine's byte order.
pub const FORMATS: [&str; 19] = [
    "I420", "Y42B", "Y444", "Y41B", "I420_10LE", "I422_10LE", "Y444_10LE", "I420_12LE", "I422_12LE", "Y444_12LE", "Y444_16LE",
    "GRAY8", "GRAY16_LE", "GBR", "GBR_10LE", "GBR_12LE", "GBR_16LE", "Y444_16LE", "I420",
];

/// Longest side of a picture in pixels: more than any codec of the farm has.
const SIDE_MAX: i32 = 16_384;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(super::element::NAME, gst::DebugColorFlags::empty(), Some("Shoal's scaler"))
});

/// The element's state.
#[derive(Default)]
pub struct ShoalScale {
    settings: Mutex<Settings>,
    state: Mutex<Option<State>>,
    staged: AtomicU64,
}

#[derive(Clone, Copy)]
struct Settings {
    width: u32,
    height: u32,
    colour: Colour,
}

impl Default for Settings {
    fn default() -> Self {
        let colour = Colour { primaries: UNSPECIFIED, transfer: UNSPECIFIED, matrix: UNSPECIFIED, full_range: false };
        Self { width: 0, height: 0, colour }
    }
}

/// What is made when caps are set.
struct State {
    converter: Converter,
    input: Side,
    output: Side,
}

/// One end of a conversion.
struct Side {
    format: Format,
    /// Aligned planes for pictures that are not; made when the first such picture comes.
    staging: Vec<Plane<u8>>,
}
