//! How `shoalscale` negotiates, keeps memory aligned, and converts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use farm::media::Colour;
use gst::glib;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::BaseTransformMode;
use gst_video::prelude::*;
use gst_video::subclass::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};

use super::colour;
use super::convert::Converter;
use super::memory::{ALIGN, Plane, copy_rows, is_aligned};
use super::zimg::{Error, Format, UNSPECIFIED, View, ViewMut};

/// Raw formats that zimg reads as they are: planar, in the machine's byte order.
pub const FORMATS: [&str; 17] = [
    "I420",
    "Y42B",
    "Y444",
    "Y41B",
    "GRAY8",
    "GBR",
    "I420_10LE",
    "I422_10LE",
    "Y444_10LE",
    "GBR_10LE",
    "I420_12LE",
    "I422_12LE",
    "Y444_12LE",
    "GBR_12LE",
    "Y444_16LE",
    "GBR_16LE",
    "GRAY16_LE",
];

/// Longest side of a picture in pixels: more than any codec of the farm has.
const SIDE_MAX: i32 = 16_384;

static CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| gst::DebugCategory::new(super::shoalscale::NAME, gst::DebugColorFlags::empty(), Some("Shoal's scaler")));

/// The element's state.
#[derive(Default, glib::Properties)]
#[properties(wrapper_type = super::shoalscale::ShoalScale)]
pub struct ShoalScale {
    #[property(name = "width", get, set, type = u32, member = width, maximum = 16_384, blurb = "Width of the result, even; 0: as downstream asks")]
    #[property(name = "height", get, set, type = u32, member = height, maximum = 16_384, blurb = "Height of the result, even; 0: as downstream asks")]
    #[property(name = "primaries", get, set, type = u32, member = primaries, maximum = 255, default = 2, blurb = "ColourPrimaries of the source (H.273)")]
    #[property(name = "transfer", get, set, type = u32, member = transfer, maximum = 255, default = 2, blurb = "TransferCharacteristics of the source (H.273)")]
    #[property(name = "matrix", get, set, type = u32, member = matrix, maximum = 255, default = 2, blurb = "MatrixCoefficients of the source (H.273); 2: all colours as the caps say")]
    #[property(name = "full-range", get, set, type = bool, member = full_range, blurb = "Whether the source uses the whole range")]
    settings: Mutex<Settings>,
    #[property(name = "staged", get = |this: &Self| this.staged.load(Ordering::Relaxed), type = u64, blurb = "Pictures copied because memory was not aligned")]
    staged: AtomicU64,
    /// None before caps are set, and while pictures are passed on as they are.
    conversion: Mutex<Option<Conversion>>,
}

#[derive(Clone, Copy)]
struct Settings {
    width: u32,
    height: u32,
    primaries: u32,
    transfer: u32,
    matrix: u32,
    full_range: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let unspecified = u32::from(UNSPECIFIED);
        Self { width: 0, height: 0, primaries: unspecified, transfer: unspecified, matrix: unspecified, full_range: false }
    }
}

impl Settings {
    /// The source's colours, where they are set.
    fn colour(&self) -> Option<Colour> {
        let byte = |number: u32| u8::try_from(number).unwrap_or(UNSPECIFIED);
        (self.matrix != u32::from(UNSPECIFIED)).then(|| Colour {
            primaries: byte(self.primaries),
            transfer: byte(self.transfer),
            matrix: byte(self.matrix),
            full_range: self.full_range,
        })
    }
}

#[glib::object_subclass]
impl ObjectSubclass for ShoalScale {
    const NAME: &'static str = "ShoalScale";
    type Type = super::shoalscale::ShoalScale;
    type ParentType = gst_video::VideoFilter;
}

#[glib::derived_properties]
impl ObjectImpl for ShoalScale {
    fn constructed(&self) {
        self.parent_constructed();
        // Every picture counts, however late.
        self.obj().set_property("qos", false);
    }
}

impl GstObjectImpl for ShoalScale {}

impl ElementImpl for ShoalScale {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            let what = "Scales and converts to 8-bit 4:2:0 BT.709 over zimg";
            gst::subclass::ElementMetadata::new("Shoal's scaler", "Filter/Converter/Video/Scaler", what, "Shoal")
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let template = |name: &str, direction, caps: gst::Structure| {
                gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &gst::Caps::from(caps)).ok()
            };
            let source = source_caps(gst::Structure::new_empty("video/x-raw"));
            let rung = rung_caps(gst::Structure::new_empty("video/x-raw"), 0, 0);
            [template("sink", gst::PadDirection::Sink, source), template("src", gst::PadDirection::Src, rung)]
                .into_iter()
                .flatten()
                .collect()
        });
        &TEMPLATES
    }
}

impl BaseTransformImpl for ShoalScale {
    const MODE: BaseTransformMode = BaseTransformMode::NeverInPlace;
    // What is passed on also depends on the colours that properties tell: `set_info` decides.
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.conversion) = None;
        Ok(())
    }

    fn transform_caps(&self, direction: gst::PadDirection, caps: &gst::Caps, filter: Option<&gst::Caps>) -> Option<gst::Caps> {
        let Settings { width, height, .. } = *lock(&self.settings);
        let other: gst::Caps = caps
            .iter()
            .map(|structure| match direction {
                gst::PadDirection::Sink => rung_caps(structure.to_owned(), width, height),
                _ => source_caps(structure.to_owned()),
            })
            .collect();
        Some(match filter {
            Some(filter) => filter.intersect_with_mode(&other, gst::CapsIntersectMode::First),
            None => other,
        })
    }

    /// A side that nobody asks for is the source's, made even.
    fn fixate_caps(&self, direction: gst::PadDirection, caps: &gst::Caps, mut other: gst::Caps) -> gst::Caps {
        other.truncate();
        if let (gst::PadDirection::Sink, Some(source), Some(rung)) =
            (direction, caps.structure(0), other.make_mut().structure_mut(0))
        {
            for side in ["width", "height"] {
                if let Ok(pixels) = source.get::<i32>(side) {
                    rung.fixate_field_nearest_int(side, (pixels & !1).max(2));
                }
            }
        }
        self.parent_fixate_caps(direction, caps, other)
    }

    fn propose_allocation(
        &self,
        decide_query: Option<&gst::query::Allocation>,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        if decide_query.is_none() {
            // Pictures are passed on: downstream answers.
            return self.parent_propose_allocation(decide_query, query);
        }
        let (pool, bytes) = aligned_pool(query.get_owned().0, 0)?;
        query.add_allocation_param(None::<&gst::Allocator>, aligned());
        query.add_allocation_pool(Some(&pool), bytes, 0, 0);
        query.add_allocation_meta::<gst_video::VideoMeta>(None);
        Ok(())
    }

    fn decide_allocation(&self, query: &mut gst::query::Allocation) -> Result<(), gst::LoggableError> {
        if query.find_allocation_meta::<gst_video::VideoMeta>().is_none() {
            // Downstream knows packed rows only; pictures are staged.
            return self.parent_decide_allocation(query);
        }
        let asked = query.allocation_pools().next().map(|(_, _, buffers_min, _)| buffers_min);
        let (pool, bytes) = aligned_pool(query.get_owned().0, asked.unwrap_or(0))?;
        // No upper limit: as many as downstream's bounded queues and lookahead hold.
        match asked {
            Some(buffers_min) => query.set_nth_allocation_pool(0, Some(&pool), bytes, buffers_min, 0),
            None => query.add_allocation_pool(Some(&pool), bytes, 0, 0),
        }
        Ok(())
    }
}

impl VideoFilterImpl for ShoalScale {
    fn set_info(&self, caps: &gst::Caps, source: &VideoInfo, _: &gst::Caps, rung: &VideoInfo) -> Result<(), gst::LoggableError> {
        let colour = lock(&self.settings).colour();
        let sited = caps.structure(0).is_some_and(|caps| caps.has_field("chroma-site"));
        let (from, to) = (colour::source_format(source, colour, sited), colour::rung_format(rung.width(), rung.height()));
        let cropped = (source.width(), source.height()) != (from.width, from.height);
        let converter = Converter::new(from, to, cropped).map_err(|error| {
            gst::element_imp_error!(self, gst::StreamError::Format, ("{error}"), ["from {from:?} to {to:?}"]);
            gst::loggable_error!(CAT, "{error}")
        })?;
        gst::debug!(CAT, imp = self, "from {from:?} to {to:?}{}", if converter.is_none() { ": kept" } else { "" });
        self.obj().set_passthrough(converter.is_none());
        *lock(&self.conversion) =
            converter.map(|converter| Conversion { converter, input: Side::new(from), output: Side::new(to) });
        Ok(())
    }

    fn transform_frame(
        &self,
        source: &VideoFrameRef<&gst::BufferRef>,
        rung: &mut VideoFrameRef<&mut gst::BufferRef>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let mut conversion = lock(&self.conversion);
        let conversion = conversion.as_mut().ok_or(gst::FlowError::NotNegotiated)?;
        let staged = conversion.run(source, rung).map_err(|error| {
            gst::element_imp_error!(self, gst::StreamError::Failed, ("{error}"));
            gst::FlowError::Error
        })?;
        self.staged.fetch_add(u64::from(staged), Ordering::Relaxed);
        Ok(gst::FlowSuccess::Ok)
    }
}

/// What is made when caps are set.
struct Conversion {
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

impl Side {
    fn new(format: Format) -> Self {
        Self { format, staging: Vec::new() }
    }

    fn staging(&mut self) -> &mut [Plane<u8>] {
        if self.staging.is_empty() {
            let plane = |index| Plane::new(self.format.row_bytes(index), self.format.plane_size(index).1);
            self.staging = (0..self.format.planes()).map(plane).collect();
        }
        &mut self.staging
    }
}

impl Conversion {
    /// Converts one picture; says whether it had to be copied.
    fn run(
        &mut self,
        source: &VideoFrameRef<&gst::BufferRef>,
        rung: &mut VideoFrameRef<&mut gst::BufferRef>,
    ) -> Result<bool, Error> {
        let Self { converter, input, output } = self;
        let (data, strides) = (source.planes_data(), source.plane_stride());
        // Components are in zimg's order, planes need not be: GBR.
        let format = source.info().format_info();
        let places = format.plane();
        let planes = places.iter().take(input.format.planes()).map(|&place| {
            let place = place as usize;
            Ok((data.get(place).copied().ok_or(Error::Memory("a plane is missing"))?, stride(strides, place)?))
        });
        let planes = planes.collect::<Result<Vec<_>, Error>>()?;
        let stage_input = !planes.iter().all(|&(data, stride)| is_aligned(data, stride));
        let from: Vec<_> = if stage_input {
            let staging = input.staging();
            for (&(data, stride), plane) in planes.iter().zip(staging.iter_mut()) {
                let to_stride = plane.stride();
                copy_rows(data, stride, plane.samples_mut(), to_stride);
            }
            staging.iter().map(View::of).collect()
        } else {
            planes.iter().map(|&(data, stride)| View::new(data, stride)).collect()
        };

        let strides = rung.plane_stride().to_vec();
        let strides = (0..output.format.planes()).map(|place| stride(&strides, place)).collect::<Result<Vec<_>, Error>>()?;
        let planes = rung.planes_data_mut();
        let stage_output = !planes.iter().zip(&strides).all(|(data, &stride)| is_aligned(data, stride));
        if stage_output {
            let staging = output.staging();
            let mut to: Vec<_> = staging.iter_mut().map(ViewMut::of).collect();
            converter.convert(&from, &mut to)?;
            for ((plane, data), &stride) in staging.iter().zip(planes).zip(&strides) {
                copy_rows(plane.samples(), plane.stride(), data, stride);
            }
        } else {
            let mut to: Vec<_> = planes.into_iter().zip(&strides).map(|(data, &stride)| ViewMut::new(data, stride)).collect();
            converter.convert(&from, &mut to)?;
        }
        Ok(stage_input || stage_output)
    }
}

fn stride(strides: &[i32], place: usize) -> Result<usize, Error> {
    let stride = strides.get(place).and_then(|&stride| usize::try_from(stride).ok());
    stride.filter(|&stride| stride > 0).ok_or(Error::Memory("rows are upside down"))
}

/// Caps of what this may be made of.
fn source_caps(mut caps: gst::Structure) -> gst::Structure {
    forget_picture(&mut caps);
    caps.set("format", gst::List::new(FORMATS));
    caps.set("width", gst::IntRange::new(2, SIDE_MAX));
    caps.set("height", gst::IntRange::new(2, SIDE_MAX));
    caps
}

/// Caps of a rung; a side of 0 is left open.
fn rung_caps(mut caps: gst::Structure, width: u32, height: u32) -> gst::Structure {
    forget_picture(&mut caps);
    caps.set("format", "I420");
    for (name, side) in [("width", width), ("height", height)] {
        match side {
            0 => caps.set(name, gst::IntRange::with_step(2, SIDE_MAX, 2)),
            side => caps.set(name, side.cast_signed()),
        }
    }
    caps.set("pixel-aspect-ratio", gst::Fraction::new(1, 1));
    caps.set("colorimetry", "bt709");
    caps.set("chroma-site", "mpeg2");
    caps
}

/// Removes all that a conversion changes. What is left, as the frame rate, holds on both sides.
fn forget_picture(caps: &mut gst::Structure) {
    caps.remove_fields(["format", "width", "height", "pixel-aspect-ratio", "colorimetry", "chroma-site"]);
    caps.remove_fields(["mastering-display-info", "content-light-level"]);
}

fn aligned() -> gst::AllocationParams {
    gst::AllocationParams::new(gst::MemoryFlags::empty(), ALIGN - 1, 0, 0)
}

/// A pool of pictures that zimg may touch, and the bytes of one.
fn aligned_pool(caps: Option<gst::Caps>, buffers_min: u32) -> Result<(gst_video::VideoBufferPool, u32), gst::LoggableError> {
    let failed = |what: &dyn std::fmt::Display| gst::loggable_error!(CAT, "no pool of pictures: {what}");
    let caps = caps.ok_or_else(|| failed(&"no caps"))?;
    let mut info = VideoInfo::from_caps(&caps).map_err(|error| failed(&error))?;
    let mut alignment = gst_video::VideoAlignment::new(0, 0, 0, 0, &[ALIGN as u32 - 1; gst_video::VIDEO_MAX_PLANES]);
    info.align(&mut alignment).map_err(|error| failed(&error))?;
    let bytes = u32::try_from(info.size()).map_err(|error| failed(&error))?;
    let pool = gst_video::VideoBufferPool::new();
    let mut config = pool.config();
    config.set_params(Some(&caps), bytes, buffers_min, 0);
    config.set_allocator(None::<&gst::Allocator>, Some(&aligned()));
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_ALIGNMENT);
    config.set_video_alignment(&alignment);
    pool.set_config(config).map_err(|error| failed(&error))?;
    Ok((pool, bytes))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
