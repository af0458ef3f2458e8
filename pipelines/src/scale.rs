//! Scaling to a rung: size, pixel shape, depth and colours in one go.

use farm::Failure;
use farm::media::Colour;
use gst::prelude::*;

use crate::source::element;

/// Raw formats that can be scaled.
const FORMATS: [&str; 9] = ["I420", "Y42B", "Y444", "I420_10LE", "I422_10LE", "Y444_10LE", "I420_12LE", "NV12", "GRAY8"];

/// Caps of pictures that can be scaled.
pub fn input_caps() -> gst::Caps {
    gst::Caps::builder("video/x-raw").field("format", gst::List::new(FORMATS)).build()
}

/// Elements that make pictures of this size out of any that [`input_caps`] lets in: square pixels, BT.709, 8 bits.
pub fn elements(width: u32, height: u32, _colour: Colour) -> Result<Vec<gst::Element>, Failure> {
    let scale = element("videoconvertscale")?;
    scale.set_property_from_str("method", "4-tap");
    scale.set_property("add-borders", false);
    let filter = element("capsfilter")?;
    let caps = gst::Caps::builder("video/x-raw")
        .field("format", "I420")
        .field("width", width.cast_signed())
        .field("height", height.cast_signed())
        .field("pixel-aspect-ratio", gst::Fraction::new(1, 1));
    filter.set_property("caps", caps.build());
    Ok(vec![scale, filter])
}
