//! The frame that clips of all sizes and shapes are brought to: black where a picture does not reach, and with what is laid over.

use std::collections::BTreeMap;
use std::sync::Arc;

use farm::edit::{Clip, EditPlan, OVERLAY_BYTES_MAX, Overlay};
use farm::media::Colour;
use farm::{Code, Failure};
use gst_video::prelude::*;

use crate::overlay::Drawn;
use crate::scale;
use crate::source::internal;
use crate::sources::Sources;
use crate::stills::copy_plane;

/// Levels of black in the planes of a frame.
const BLACK: [u8; 3] = [16, 128, 128];

/// Most pixels that all overlays of an order cover, some 12 bytes each.
const COVERED_PX_MAX: u64 = 1 << 24;

/// What the pictures of a clip are put into.
pub struct Canvas {
    frame: (u32, u32),
    /// Size of the clip's pictures, which are in the middle.
    picture: (u32, u32),
    overlays: Vec<Arc<Drawn>>,
}

/// Pictures that are laid over, each read once for all clips.
#[derive(Default)]
pub struct Overlays {
    drawn: BTreeMap<u32, Arc<Drawn>>,
    /// Pixels that they cover.
    covered: u64,
}

impl Overlays {
    fn get(&mut self, place: u32, plan: &Overlay, frame: (u32, u32), sources: &Sources) -> Result<Arc<Drawn>, Failure> {
        if let Some(drawn) = self.drawn.get(&place) {
            return Ok(Arc::clone(drawn));
        }
        let drawn = Arc::new(Drawn::new(&sources.read(plan.source, OVERLAY_BYTES_MAX)?, plan, frame)?);
        self.covered = self.covered.saturating_add(drawn.covered());
        if self.covered > COVERED_PX_MAX {
            let message = format!("{}: all pictures to lay over cover more than {COVERED_PX_MAX} pixels", plan.name);
            return Err(Failure::new(Code::LimitExceeded, message));
        }
        self.drawn.insert(place, Arc::clone(&drawn));
        Ok(drawn)
    }
}

impl Canvas {
    /// Of a clip; none for one without picture.
    ///
    /// # Errors
    /// Of pictures to lay over that cannot be read or decoded.
    pub fn new(plan: &EditPlan, clip: &Clip, sources: &Sources, overlays: &mut Overlays) -> Result<Option<Self>, Failure> {
        let Some((frame, picture)) = plan.canvas.zip(clip.picture.as_ref()) else { return Ok(None) };
        let planned = |place: &u32| plan.overlays.get(*place as usize).ok_or_else(|| internal("a plan without its overlay"));
        let drawn = |place: &u32| overlays.get(*place, planned(place)?, frame, sources);
        let overlays = clip.overlays.iter().map(drawn).collect::<Result<_, Failure>>()?;
        Ok(Some(Self { frame, picture: picture.size, overlays }))
    }

    /// The element that brings the clip's pictures, of these colours, to their size.
    pub fn scaling(&self, colour: Colour) -> gst::Element {
        scale::element(self.picture.0, self.picture.1, colour)
    }

    /// The frame with a picture in it.
    ///
    /// # Errors
    /// [`Code::Internal`] for a picture that is not of the clip's size and 4:2:0.
    pub fn put(&self, picture: gst::Sample) -> Result<gst::Sample, Failure> {
        if self.frame == self.picture && self.overlays.is_empty() {
            return Ok(picture);
        }
        let mut caps = picture.caps_owned().ok_or_else(|| internal("a picture without caps"))?;
        let own = gst_video::VideoInfo::from_caps(&caps).map_err(internal)?;
        if own.format() != gst_video::VideoFormat::I420 || (own.width(), own.height()) != self.picture {
            return Err(Failure::new(Code::Internal, format!("a picture of {own:?} in a clip of {:?}", self.picture)));
        }
        let (width, height) = (self.frame.0.cast_signed(), self.frame.1.cast_signed());
        let changed = caps.make_mut();
        changed.set("width", width);
        changed.set("height", height);
        let info = gst_video::VideoInfo::from_caps(&caps).map_err(internal)?;
        let buffer = gst::Buffer::with_size(info.size()).map_err(internal)?;
        let frame = gst_video::VideoFrame::from_buffer_writable(buffer, &info);
        let mut frame = frame.map_err(|_| internal("a frame that cannot be written"))?;
        // In the middle, at even places.
        let edge = |whole: u32, own: u32| ((whole.saturating_sub(own) / 2) & !1) as usize;
        let (x, y) = (edge(self.frame.0, self.picture.0), edge(self.frame.1, self.picture.1));
        for (plane, black) in (0..).zip(BLACK) {
            let stride = frame.plane_stride().get(plane as usize).copied().unwrap_or(0);
            let stride = usize::try_from(stride).map_err(internal)?;
            let data = frame.plane_data_mut(plane).map_err(internal)?;
            if self.frame != self.picture {
                data.fill(black);
            }
            let halved = u32::from(plane > 0);
            let at = (y >> halved) * stride + (x >> halved);
            copy_plane(&picture, plane, data.get_mut(at..).unwrap_or_default(), stride)?;
            self.overlays.iter().for_each(|drawn| drawn.blend(plane as usize, stride, data));
        }
        let mut buffer = frame.into_buffer();
        if let (Some(made), Some(from)) = (buffer.get_mut(), picture.buffer()) {
            made.set_flags(from.flags() & gst::BufferFlags::CORRUPTED);
        }
        Ok(gst::Sample::builder().buffer(&buffer).caps(&caps).build())
    }
}
