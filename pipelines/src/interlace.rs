//! Whether the frames of a track hold two fields: by their flags, and where none tells, by what is seen.

use std::collections::VecDeque;

use farm::media::{Fields, Interlace, TrackId};
use farm::{Failure, Rate};
use gst_video::prelude::*;

use crate::comb::Seen;
use crate::decode::{Raw, decode};
use crate::mend::Source;
use crate::source;

/// Heights of systems that were interlaced: only such pictures are looked at for fields that nothing tells of.
const FIELD_HEIGHTS: [u32; 7] = [480, 486, 512, 576, 608, 1080, 1088];
/// Highest rate at which frames hold two fields, with some room.
const FIELD_RATE_MAX: f64 = 30.1;
/// Where frames are looked at, in thirds of the key frames, and how many in a row.
const LOOKED_AT: [usize; 3] = [0, 1, 2];
const FRAMES_LOOKED_AT: usize = 12;

/// Looks at some frames in a row.
fn look_at(
    source: &Source,
    track: TrackId,
    from_ns: u64,
    (seen, flags): (&mut Seen, &mut Vec<gst_video::VideoBufferFlags>),
) -> Result<(), Failure> {
    let caps = gst_video::VideoCapsBuilder::new().format(gst_video::VideoFormat::Gray8).build();
    let mut decoded = decode(source, track, from_ns, vec![source::element("videoconvert")?], &caps)?;
    let mut frames: VecDeque<Luma> = VecDeque::new();
    for _ in 0..FRAMES_LOOKED_AT {
        let Some(frame) = decoded.next()? else { break };
        flags.push(frame.buffer()?.video_flags());
        frames.push_back(Luma::of(&frame)?);
        if let [before, here, after] = frames.make_contiguous() {
            if before.width == here.width && here.width == after.width {
                seen.look([&before.bytes, &here.bytes, &after.bytes], here.width);
            }
            frames.pop_front();
        }
    }
    Ok(())
}

/// Whether it is interlaced: by the flags of its frames; where none tells, by what is seen.
pub fn interlace(
    source: &Source,
    track: TrackId,
    key_frames_ns: &[u64],
    (raw, rate): (&gst_video::VideoInfo, Rate),
) -> Interlace {
    let is_flagged = raw.interlace_mode() != gst_video::VideoInterlaceMode::Progressive;
    if !is_flagged && (!FIELD_HEIGHTS.contains(&raw.height()) || rate.as_f64() > FIELD_RATE_MAX) {
        return Interlace::Progressive;
    }
    let (mut seen, mut flags) = (Seen::default(), Vec::new());
    let mut places = LOOKED_AT.map(|third| third * key_frames_ns.len() / LOOKED_AT.len()).to_vec();
    places.dedup();
    for place in places {
        let from_ns = if place == 0 { 0 } else { key_frames_ns.get(place).copied().unwrap_or(0) };
        // Where it does not decode there is nothing to be seen.
        if let Err(failure) = look_at(source, track, from_ns, (&mut seen, &mut flags)) {
            tracing::debug!(%failure, from_ns, "no frames to look at");
        }
    }
    if !is_flagged {
        return seen.fields().map_or(Interlace::Progressive, Interlace::Unflagged);
    }
    use gst_video::VideoBufferFlags as Flag;
    let always = raw.interlace_mode() == gst_video::VideoInterlaceMode::Interleaved;
    let all_are = |wanted: Flag| flags.iter().all(|flags| flags.intersection(Flag::TFF | Flag::RFF) == wanted);
    let are_interlaced = always || flags.iter().all(|flags| flags.contains(Flag::INTERLACED));
    if are_interlaced && all_are(Flag::TFF) {
        Interlace::Interlaced(Fields::TopFirst)
    } else if are_interlaced && all_are(Flag::empty()) {
        Interlace::Interlaced(Fields::BottomFirst)
    } else {
        Interlace::Mixed
    }
}

/// The luma of a frame, a byte a pixel, without what its lines are padded with.
struct Luma {
    width: usize,
    bytes: Vec<u8>,
}

impl Luma {
    fn of(grey: &Raw) -> Result<Self, Failure> {
        let caps = grey.sample.caps().ok_or_else(|| source::internal("a frame without caps"))?;
        let info = gst_video::VideoInfo::from_caps(caps).map_err(source::internal)?;
        let frame = gst_video::VideoFrame::from_buffer_readable(grey.buffer()?, &info);
        let frame = frame.map_err(|_| source::internal("a frame that cannot be read"))?;
        let stride = frame.plane_stride().first().copied().and_then(|stride| usize::try_from(stride).ok());
        let (stride, width) = (stride.unwrap_or(0).max(1), info.width() as usize);
        let rows = frame.plane_data(0).map_err(source::internal)?.chunks(stride);
        Ok(Self { width, bytes: rows.filter_map(|row| row.get(..width)).flatten().copied().collect() })
    }
}
