//! Scaling to a rung: size, pixel shape, depth and colours in one go.

mod colour;
mod convert;
mod imp;
mod memory;
mod shoalscale;
#[cfg(test)]
mod tests;
mod tone;
mod zimg;

use farm::media::Colour;
use gst::prelude::*;

/// Raw formats that can be scaled.
const FORMATS: [&str; 9] = ["I420", "Y42B", "Y444", "I420_10LE", "I422_10LE", "Y444_10LE", "I420_12LE", "NV12", "GRAY8"];

/// Caps of pictures that can be scaled.
pub fn input_caps() -> gst::Caps {
    gst::Caps::builder("video/x-raw").field("format", gst::List::new(FORMATS)).build()
}

/// The element that makes pictures of this size out of any that [`input_caps`] lets in: square pixels, BT.709, 8 bits.
pub fn element(width: u32, height: u32, colour: Colour) -> gst::Element {
    shoalscale::ShoalScale::new(width, height, colour).upcast()
}
