//! `shoalscale`, the element, as the rest of Shoal sees it.

use farm::media::Colour;
use gst::glib;
#[cfg(test)]
use gst::prelude::*;

use super::imp;

/// Name of the element.
pub const NAME: &str = "shoalscale";

glib::wrapper! {
    /// Turns pictures into those of a rung: size, depth, range, subsampling and colours in one go, over zimg.
    ///
    /// Out come 4:2:0, 8 bits, BT.709, limited range, square pixels, even sides. A picture that is all that already is
    /// passed on untouched.
    ///
    /// | property | type | what |
    /// |---|---|---|
    /// | `width`, `height` | uint | sides of the result; even, or 0 (default) for what downstream's caps ask for, else the source's |
    /// | `primaries`, `transfer`, `matrix` | uint | colours of the source by ITU-T H.273; they count once `matrix` is not 2 |
    /// | `full-range` | boolean | whether the source uses the whole range; counts with `matrix` |
    /// | `staged` | uint64, read-only | pictures copied because one side's memory was not aligned |
    ///
    /// Properties count from the next caps on.
    pub struct ShoalScale(ObjectSubclass<imp::ShoalScale>)
        @extends gst_video::VideoFilter, gst_base::BaseTransform, gst::Element, gst::Object;
}

impl ShoalScale {
    /// The element, for pictures of this colour.
    pub fn new(width: u32, height: u32, colour: Colour) -> Self {
        glib::Object::builder()
            .property("width", width)
            .property("height", height)
            .property("primaries", u32::from(colour.primaries))
            .property("transfer", u32::from(colour.transfer))
            .property("matrix", u32::from(colour.matrix))
            .property("full-range", colour.full_range)
            .build()
    }
}

/// Makes the element known to GStreamer, so that tests can name it in a pipeline. May be called again.
#[cfg(test)]
pub fn register() -> Result<(), glib::BoolError> {
    gst::Element::register(None, NAME, gst::Rank::NONE, ShoalScale::static_type())
}
