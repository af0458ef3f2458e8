//! Still pictures: a poster and the sheets of a storyboard, of key frames alone; but for an exact storyboard.
//!
//! ```text
//! some key frames, or spans of frames → decoder ─┬→ scale → the best so far → JPEG → poster
//!                                                └→ scale → sheet → JPEG → storyboard
//! ```

mod exact;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use farm::media::{Colour, Interlace};
use farm::stills::{PosterPlan, Showing, StillsPlan, StoryboardPlan, Tile};
use farm::{Code, Failure};
use gst::prelude::*;
use gst_video::prelude::*;

use self::exact::ExactBoard;
use crate::decode::{self, Frames, OnPad, Raw, decode_picked, decode_some};
use crate::fragment::handed_on;
use crate::key_frames::{Wanted, pick};
use crate::mend::Source;
use crate::scale;
use crate::source::{element, internal};
use crate::spans::{self, Span};
use crate::{Output, Pictured, StillPlace};

/// Quality of all pictures, on the scale of libjpeg.
const JPEG_QUALITY: i32 = 85;
/// Variance of the brightness (0 to 255) from which on a picture shows something: black and blank ones stay far below.
const SHOWS_SOMETHING: u64 = 200;
/// Every how many pixels, across and down, the brightness is looked at.
const LOOK_STEP: usize = 4;
/// What JFIF files are in: full range, the matrix of BT.601; primaries and transfer stay those of BT.709.
const JFIF_COLORIMETRY: &str = "1:4:5:1";
/// Longest time that a picture may take from one end of a small pipeline to the other.
const STAGE_WAIT: gst::ClockTime = gst::ClockTime::from_seconds(30);
/// Of frames that are no key frames that are wanted, every how many progress is told.
const PROGRESS_FRAMES: u64 = 12;
/// Bytes behind the last row of a sheet: JPEG's encoder reads whole blocks.
const SPARE_BYTES: usize = 64;

/// Makes the still pictures of a plan. Frames that do not decode are passed over.
///
/// # Errors
/// When the source cannot be read, or an element is missing or fails.
pub fn make(plan: &StillsPlan, source: &Source, output: &dyn Output) -> Result<Pictured, Failure> {
    let (wanted, on_stream) = picked(plan);
    let elements = decode::picture_elements(&plan.picture, Frames::Some)?;
    let mut poster = plan.poster.as_ref().map(|poster| Poster::new(poster, plan.picture.colour)).transpose()?;
    let mut board = plan.storyboard.as_ref().map(|board| Storyboard::new(board, plan.picture.colour)).transpose()?;
    let caps = scale::input_caps();
    let mut decoded = match is_exact(plan) {
        true => decode_some(source, plan.track, elements, &caps, on_stream)?,
        false => decode_picked(source, plan.track, 0, elements, &caps, on_stream)?,
    };
    let mut frames = 0_u64;
    while let Some(raw) = decoded.next()? {
        let (key_ns, start_ns) = (wanted.at(raw.start_ns), raw.start_ns);
        if let (Some(poster), Some(key_ns)) = (&mut poster, key_ns) {
            poster.take(key_ns, &raw)?;
        }
        match (&mut board, key_ns) {
            (Some(Storyboard::OfKeyFrames(board)), Some(key_ns)) => board.take(key_ns, &raw, output)?,
            (Some(Storyboard::Exact(board)), _) => board.take(raw)?,
            (Some(Storyboard::OfKeyFrames(_)) | None, _) => {}
        }
        if key_ns.is_some() || frames.is_multiple_of(PROGRESS_FRAMES) {
            output.progress(start_ns).map_err(handed_on)?;
        }
        frames += 1;
    }
    drop(decoded);
    let poster_ns = poster.map(|poster| poster.finish(output)).transpose()?.flatten();
    let tiles = match board {
        Some(Storyboard::OfKeyFrames(board)) => board.finish(output)?,
        Some(Storyboard::Exact(board)) => board.finish(output)?,
        None => Vec::new(),
    };
    Ok(Pictured { poster_ns, tiles })
}

/// The key frames that are wanted as such, and what is let through to the decoder.
fn picked(plan: &StillsPlan) -> (Arc<Wanted>, OnPad) {
    let candidates_ns: Vec<u64> = plan.poster.iter().flat_map(|poster| poster.candidates_ns.iter().copied()).collect();
    let tiles = plan.storyboard.iter().flat_map(|board| &board.tiles);
    if is_exact(plan) {
        let key_frames = candidates_ns.iter().map(|key_ns| Span { from_ns: *key_ns, until_ns: *key_ns });
        let frames = tiles.map(|tile| Span { from_ns: tile.decode_from_ns.unwrap_or(tile.frame_ns), until_ns: tile.frame_ns });
        let spans: Vec<Span> = key_frames.chain(frames).collect();
        let on_pad: OnPad = Box::new(move |pad: &gst::Pad| spans::pick(pad, &spans));
        return (Arc::new(Wanted::new(candidates_ns, false)), on_pad);
    }
    let times_ns = candidates_ns.into_iter().chain(tiles.map(|tile| tile.frame_ns)).collect();
    let wanted = Arc::new(Wanted::new(times_ns, plan.picture.interlace != Interlace::Progressive));
    let picked = Arc::clone(&wanted);
    let on_pad: OnPad = Box::new(move |pad: &gst::Pad| pick(pad, Arc::clone(&picked)));
    (wanted, on_pad)
}

/// Whether frames are wanted that are no key frames.
fn is_exact(plan: &StillsPlan) -> bool {
    plan.storyboard.as_ref().is_some_and(|board| board.showing == Showing::Exact)
}

/// Chooses the poster.
struct Poster {
    candidates_ns: Vec<u64>,
    scale: Stage,
    best: Option<Candidate>,
}

/// A picture that may be the poster.
struct Candidate {
    key_ns: u64,
    /// How much it shows, up to where it is enough; then how good its place is.
    worth: (u64, Reverse<usize>),
    picture: gst::Sample,
}

impl Poster {
    fn new(plan: &PosterPlan, colour: Colour) -> Result<Self, Failure> {
        let scale = Stage::scaling(plan.width, plan.height, colour)?;
        Ok(Self { candidates_ns: plan.candidates_ns.clone(), scale, best: None })
    }

    fn take(&mut self, key_ns: u64, raw: &Raw) -> Result<(), Failure> {
        let Some(place) = self.candidates_ns.iter().position(|candidate_ns| *candidate_ns == key_ns) else { return Ok(()) };
        let is_better = |worth: &(u64, Reverse<usize>)| self.best.as_ref().is_none_or(|best| *worth > best.worth);
        if !is_better(&(SHOWS_SOMETHING, Reverse(place))) {
            return Ok(());
        }
        let picture = self.scale.pass(&raw.sample)?;
        let worth = (variance(&picture)?.min(SHOWS_SOMETHING), Reverse(place));
        if self.best.as_ref().is_none_or(|best| worth > best.worth) {
            self.best = Some(Candidate { key_ns, worth, picture });
        }
        Ok(())
    }

    /// Hands the poster out; the stream time of what it shows.
    fn finish(self, output: &dyn Output) -> Result<Option<u64>, Failure> {
        let Some(Candidate { key_ns, picture, .. }) = self.best else { return Ok(None) };
        output.still(StillPlace::Poster, jpeg(&picture)?).map_err(handed_on)?;
        Ok(Some(key_ns))
    }
}

/// A storyboard that is being made.
enum Storyboard {
    /// Of key frames.
    OfKeyFrames(Board),
    /// Of the frames of given times.
    Exact(Box<ExactBoard>),
}

impl Storyboard {
    fn new(plan: &StoryboardPlan, colour: Colour) -> Result<Self, Failure> {
        match plan.showing {
            Showing::KeyFrames => Board::new(plan, colour).map(Self::OfKeyFrames),
            Showing::Exact => ExactBoard::new(plan, colour).map(Box::new).map(Self::Exact),
        }
    }
}

/// Puts key frames onto sheets.
struct Board {
    plan: StoryboardPlan,
    tiles: BTreeMap<u64, Tile>,
    scale: Stage,
    /// Pictures of the sheet that is not full yet.
    open: Vec<gst::Sample>,
    sheets: u32,
    made: Vec<Tile>,
}

impl Board {
    fn new(plan: &StoryboardPlan, colour: Colour) -> Result<Self, Failure> {
        let tiles = plan.tiles.iter().map(|tile| (tile.frame_ns, *tile)).collect();
        let scale = Stage::scaling(plan.width, plan.height, colour)?;
        Ok(Self { plan: plan.clone(), tiles, scale, open: Vec::new(), sheets: 0, made: Vec::new() })
    }

    fn take(&mut self, key_ns: u64, raw: &Raw, output: &dyn Output) -> Result<(), Failure> {
        // Taken out: a picture that is shown twice at a time counts once.
        let Some(tile) = self.tiles.remove(&key_ns) else { return Ok(()) };
        if self.made.last().is_some_and(|last| last.start_ns > tile.start_ns) {
            return Ok(());
        }
        self.open.push(self.scale.pass(&raw.sample)?);
        self.made.push(tile);
        if self.open.len() == self.plan.sheet_tiles() { self.close(output) } else { Ok(()) }
    }

    /// Hands the open sheet out.
    fn close(&mut self, output: &dyn Output) -> Result<(), Failure> {
        if self.open.is_empty() {
            return Ok(());
        }
        let sheet = sheet(&self.plan, &std::mem::take(&mut self.open))?;
        output.still(StillPlace::Sheet(self.sheets), jpeg(&sheet)?).map_err(handed_on)?;
        self.sheets += 1;
        Ok(())
    }

    /// Hands the last sheet out; what all of them show.
    fn finish(mut self, output: &dyn Output) -> Result<Vec<Tile>, Failure> {
        self.close(output)?;
        Ok(self.made)
    }
}

/// A sheet that is being drawn on.
type Sheet = gst_video::VideoFrame<gst_video::video_frame::Writable>;

/// A black sheet.
fn blank(format: gst_video::VideoFormat, (width, height): (u32, u32)) -> Result<Sheet, Failure> {
    let info = gst_video::VideoInfo::builder(format, width, height).build().map_err(internal)?;
    let buffer = gst::Buffer::from_mut_slice(vec![0_u8; info.size() + SPARE_BYTES]);
    let sheet = gst_video::VideoFrame::from_buffer_writable(buffer, &info);
    let mut sheet = sheet.map_err(|_| internal("a sheet that cannot be written"))?;
    for plane in 1..3 {
        sheet.plane_data_mut(plane).map_err(internal)?.fill(128);
    }
    Ok(sheet)
}

/// Bytes from one row of a plane to the next.
fn stride(sheet: &Sheet, plane: u32) -> Result<usize, Failure> {
    usize::try_from(sheet.plane_stride().get(plane as usize).copied().unwrap_or(0)).map_err(internal)
}

/// A sheet that is done, as a picture.
fn drawn(sheet: Sheet) -> Result<gst::Sample, Failure> {
    let caps = sheet.info().to_caps().map_err(internal)?;
    Ok(gst::Sample::builder().buffer(&sheet.into_buffer()).caps(&caps).build())
}

/// The pictures beside and below each other.
fn sheet(plan: &StoryboardPlan, pictures: &[gst::Sample]) -> Result<gst::Sample, Failure> {
    let mut sheet = blank(gst_video::VideoFormat::I420, plan.sheet_size(pictures.len()))?;
    for plane in 0..3 {
        let (halved, stride) = (u32::from(plane > 0), stride(&sheet, plane)?);
        let data = sheet.plane_data_mut(plane).map_err(internal)?;
        for (number, picture) in pictures.iter().enumerate() {
            let (x, y) = plan.place(number);
            let at = (y >> halved) as usize * stride + (x >> halved) as usize;
            copy_plane(picture, plane, data.get_mut(at..).unwrap_or_default(), stride)?;
        }
    }
    drawn(sheet)
}

/// Copies a plane of a 4:2:0 picture into a larger one, row by row.
///
/// # Errors
/// When it is not one, or its memory cannot be read.
pub fn copy_plane(picture: &gst::Sample, plane: u32, into: &mut [u8], stride: usize) -> Result<(), Failure> {
    rows(picture, plane, |number, row| {
        if let Some(place) = into.get_mut(number * stride..).and_then(|rest| rest.get_mut(..row.len())) {
            place.copy_from_slice(row);
        }
    })
}

/// Goes through the rows of a plane of a 4:2:0 picture.
///
/// # Errors
/// When it is not one, or its memory cannot be read.
pub fn rows(picture: &gst::Sample, plane: u32, mut each: impl FnMut(usize, &[u8])) -> Result<(), Failure> {
    let caps = picture.caps().ok_or_else(|| internal("a picture without caps"))?;
    let info = gst_video::VideoInfo::from_caps(caps).map_err(internal)?;
    let buffer = picture.buffer().ok_or_else(|| internal("a picture without a buffer"))?;
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info);
    let frame = frame.map_err(|_| internal("a picture that cannot be read"))?;
    let stride = usize::try_from(frame.plane_stride().get(plane as usize).copied().unwrap_or(0)).map_err(internal)?;
    let halved = u32::from(plane > 0);
    let (width, height) = ((info.width() >> halved) as usize, (info.height() >> halved) as usize);
    let data = frame.plane_data(plane).map_err(internal)?;
    for (number, row) in data.chunks(stride.max(1)).take(height).enumerate() {
        each(number, row.get(..width).unwrap_or(row));
    }
    Ok(())
}

/// How much the brightness differs over a picture.
fn variance(picture: &gst::Sample) -> Result<u64, Failure> {
    let (mut count, mut sum, mut squares) = (0_u64, 0_u64, 0_u64);
    rows(picture, 0, |number, row| {
        if number % LOOK_STEP == 0 {
            for level in row.iter().step_by(LOOK_STEP).map(|level| u64::from(*level)) {
                (count, sum, squares) = (count + 1, sum + level, squares + level * level);
            }
        }
    })?;
    let count = count.max(1);
    Ok((squares / count).saturating_sub((sum / count) * (sum / count)))
}

/// A picture that is ready for it as a JPEG file.
fn jpeg(picture: &gst::Sample) -> Result<bytes::Bytes, Failure> {
    let encoder = element("jpegenc")?;
    encoder.set_property("quality", JPEG_QUALITY);
    let file = Stage::new(&[encoder])?.pass(picture)?;
    let map = file.buffer().ok_or_else(|| internal("a file without a buffer"))?.map_readable().map_err(internal)?;
    Ok(bytes::Bytes::copy_from_slice(&map))
}

/// A small pipeline through which pictures go one by one.
pub struct Stage {
    pipeline: gst::Pipeline,
    source: gst_app::AppSrc,
    sink: gst_app::AppSink,
    passed: u64,
}

impl Stage {
    /// Makes pictures of this size, as JPEG files hold them.
    fn scaling(width: u32, height: u32, colour: Colour) -> Result<Self, Failure> {
        let convert = |caps: gst::Caps| {
            let filter = element("capsfilter")?;
            filter.set_property("caps", caps);
            Ok::<_, Failure>([element("videoconvert")?, filter])
        };
        let caps = |format| gst::Caps::builder("video/x-raw").field("format", format);
        // By way of 10 bits: the element's 8-bit matrix makes everything darker by up to 3 of 255.
        let deep = convert(caps("I420_10LE").build())?;
        let jfif = convert(caps("I420").field("colorimetry", JFIF_COLORIMETRY).field("chroma-site", "jpeg").build())?;
        let elements = [scale::element(width, height, colour)].into_iter().chain(deep).chain(jfif);
        Self::new(&elements.collect::<Vec<_>>())
    }

    /// Of these elements.
    ///
    /// # Errors
    /// When they do not fit together.
    pub fn new(elements: &[gst::Element]) -> Result<Self, Failure> {
        let pipeline = gst::Pipeline::new();
        let source = gst_app::AppSrc::builder().format(gst::Format::Time).build();
        let sink = gst_app::AppSink::builder().sync(false).async_(false).enable_last_sample(false).build();
        let chain: Vec<gst::Element> =
            [source.clone().upcast()].into_iter().chain(elements.iter().cloned()).chain([sink.clone().upcast()]).collect();
        pipeline.add_many(&chain).and_then(|()| gst::Element::link_many(&chain)).map_err(internal)?;
        pipeline.set_state(gst::State::Playing).map_err(internal)?;
        Ok(Self { pipeline, source, sink, passed: 0 })
    }

    /// What comes out for a picture.
    ///
    /// # Errors
    /// What an element says, or that nothing came.
    pub fn pass(&mut self, picture: &gst::Sample) -> Result<gst::Sample, Failure> {
        let mut buffer = picture.buffer_owned().ok_or_else(|| internal("a picture without a buffer"))?;
        let frame = buffer.make_mut();
        frame.set_pts(gst::ClockTime::from_seconds(self.passed));
        frame.set_dts(gst::ClockTime::NONE);
        self.passed += 1;
        self.source.set_caps(picture.caps_owned().as_ref());
        let stopped = |_| Failure::new(Code::Internal, "a picture is not taken");
        self.source.push_buffer(buffer).map_err(stopped)?;
        self.sink.try_pull_sample(STAGE_WAIT).ok_or_else(|| self.failure())
    }

    fn failure(&self) -> Failure {
        let posted = self.pipeline.bus().and_then(|bus| bus.pop_filtered(&[gst::MessageType::Error]));
        let why = posted.as_ref().and_then(|message| match message.view() {
            gst::MessageView::Error(error) => Some(error.error().to_string()),
            _ => None,
        });
        Failure::new(Code::EncoderFailed, format!("a picture cannot be made: {}", why.as_deref().unwrap_or("nothing came out")))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Nothing can be done about a pipeline that does not stop; the process is about to end.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}
