//! One stream of a source, decoded: raw frames or samples with their stream times, pulled one by one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use farm::media::SAME_TIME_NS;
use farm::media::{Fields, Interlace, Orientation, TrackId, VideoTrack};
use farm::{Code, Failure};
use gst::prelude::*;

use crate::edits::{Edit, presented};
use crate::mend::Source;
use crate::packets::signed_stream_time;
use crate::source::{self, Streams, buffers_waiting, decoder_for, element, internal, size};

/// How long a pull waits before it looks at what the pipeline has said.
const PULL_WAIT: gst::ClockTime = gst::ClockTime::from_mseconds(100);
/// How much further before a seek goes when it missed its key frame; it doubles each time.
const SEEK_STEP_NS: u64 = 2_000_000_000;
/// How often it is looked whether a stream's caps or data have come.
const POLL: std::time::Duration = std::time::Duration::from_millis(1);

/// A stream being decoded.
pub struct Decoded {
    streams: Streams,
    /// Where the stream comes out of the demuxer.
    pad: gst::Pad,
    sink: gst_app::AppSink,
}

/// A raw buffer and the stream time at which it starts.
pub struct Raw {
    /// The frame or samples.
    pub sample: gst::Sample,
    /// Stream time in ns. Negative times are cut off by the demuxer's segment.
    pub start_ns: u64,
}

impl Raw {
    /// The buffer.
    ///
    /// # Errors
    /// When a sink delivers a sample without one, which none does.
    pub fn buffer(&self) -> Result<gst::Buffer, Failure> {
        self.sample.buffer_owned().ok_or_else(|| Failure::new(Code::Internal, "a sample without a buffer"))
    }
}

/// Decodes one stream from the key frame at stream time `from_ns` on; 0 is the start of the source. `after` are elements that follow the decoder, and `caps` what comes out of the last.
///
/// # Errors
/// When the source cannot be read or has no such stream, or no decoder takes it.
pub fn decode(
    source: &Source,
    track: TrackId,
    from_ns: u64,
    after: Vec<gst::Element>,
    caps: &gst::Caps,
) -> Result<Decoded, Failure> {
    decode_picked(source, track, from_ns, after, caps, Box::new(|_| ()))
}

/// One stream's packets from its start on, through the elements `after`. [`Decoded::next_packet`] gives them.
///
/// # Errors
/// When the source cannot be read or has no such stream.
pub fn packets(source: &Source, track: TrackId, after: Vec<gst::Element>, caps: &gst::Caps) -> Result<Decoded, Failure> {
    take(source, track, 0, (Take::Packets, after), caps, Box::new(|_| ()))
}

/// What is done with the pad of the stream that is decoded, before any of its data flows.
pub type OnPad = Box<dyn Fn(&gst::Pad) + Send + Sync>;

/// As [`decode`], of what `on_pad` lets through.
///
/// # Errors
/// As [`decode`].
pub fn decode_picked(
    source: &Source,
    track: TrackId,
    from_ns: u64,
    after: Vec<gst::Element>,
    caps: &gst::Caps,
    on_pad: OnPad,
) -> Result<Decoded, Failure> {
    take(source, track, from_ns, (Take::Decoded(Course::of(from_ns)), after), caps, on_pad)
}

/// As [`decode_picked`], of a stream out of which `on_pad` takes packets from the middle.
///
/// # Errors
/// As [`decode`].
pub fn decode_some(
    source: &Source,
    track: TrackId,
    after: Vec<gst::Element>,
    caps: &gst::Caps,
    on_pad: OnPad,
) -> Result<Decoded, Failure> {
    take(source, track, 0, (Take::Decoded(Course::Broken), after), caps, on_pad)
}

fn take(
    source: &Source,
    track: TrackId,
    from_ns: u64,
    (take, after): (Take, Vec<gst::Element>),
    caps: &gst::Caps,
    on_pad: OnPad,
) -> Result<Decoded, Failure> {
    let sink = gst_app::AppSink::builder().sync(false).async_(false).max_buffers(1).enable_last_sample(false).caps(caps).build();
    match take {
        Take::Decoded(_) => want_video_meta(&sink),
        Take::Packets => forget_segments(&sink),
    }
    let plug =
        Arc::new(Plug { take, after: Mutex::new(after), sink: sink.clone(), linked: Mutex::new(None), hold: OnceLock::new() });
    let on_stream = Arc::clone(&plug);
    let link = move |pipeline: &gst::Pipeline, shown: TrackId, pad: &gst::Pad| {
        if shown == track {
            let _ = on_stream.hold.set(Hold::new(pad)?);
            on_pad(pad);
            Arc::clone(&on_stream).link_with_caps(pipeline, pad);
        }
        Ok(())
    };
    let mut streams = source::open(source, track, Box::new(link))?;
    loop {
        let linked = plug.linked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(linked) = linked {
            linked?;
            break;
        }
        streams.check()?;
        std::thread::sleep(POLL);
    }
    // Elements linked while the pipeline was on its way to playing may have been left behind in the state it had then.
    let mut elements = streams.pipeline.iterate_elements();
    while let Ok(Some(element)) = elements.next() {
        element.sync_state_with_parent().map_err(internal)?;
    }
    let pad = streams.pad(track)?.clone();
    let hold = plug.hold.get().ok_or_else(|| Failure::new(Code::Internal, "a stream that is not held"))?;
    let edit = source.edits.of(&pad).unwrap_or(Edit::WHOLE);
    let mut decoded = Decoded { streams, pad: pad.clone(), sink };
    decoded.seek(&pad, hold, edit, from_ns)?;
    hold.release();
    Ok(decoded)
}

/// Holds a stream at its first data, so that a seek neither meets a demuxer that is still putting its streams together, nor
/// a decoder that has decoded something: some keep a state over a seek, and would then not decode alike in every run.
struct Hold {
    pad: gst::Pad,
    probes: Mutex<Vec<gst::PadProbeId>>,
    held: Arc<Mutex<Held>>,
}

/// Where a stream is held.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// What starts before this stream time in ns is dropped.
    from_ns: u64,
    /// At data of this stream time in ns; data before the start of the stream counts as time 0. Nowhere yet, when absent.
    at_ns: Option<u64>,
}

impl Hold {
    fn new(pad: &gst::Pad) -> Result<Self, Failure> {
        let held = Arc::new(Mutex::new(Held::default()));
        let state = Arc::clone(&held);
        let data = pad.add_probe(gst::PadProbeType::BLOCK | gst::PadProbeType::BUFFER, move |pad, info| {
            let Some(buffer) = info.buffer() else { return gst::PadProbeReturn::Ok };
            let segment = pad.sticky_event::<gst::event::Segment>(0);
            let time = segment.as_ref().and_then(|event| event.segment().downcast_ref::<gst::ClockTime>());
            let time = time.and_then(|segment| segment.to_stream_time(buffer.pts()?));
            let time_ns = time.map_or(0, gst::ClockTime::nseconds);
            let mut held = state.lock().unwrap_or_else(PoisonError::into_inner);
            if time_ns + SAME_TIME_NS < held.from_ns {
                return gst::PadProbeReturn::Drop;
            }
            held.at_ns = Some(time_ns);
            gst::PadProbeReturn::Ok
        });
        // Not every seek that goes through flushes: then the data that is held still is.
        let state = Arc::clone(&held);
        let flush = pad.add_probe(gst::PadProbeType::EVENT_FLUSH, move |_, info| {
            if info.event().is_some_and(|event| event.type_() == gst::EventType::FlushStop) {
                state.lock().unwrap_or_else(PoisonError::into_inner).at_ns = None;
            }
            gst::PadProbeReturn::Ok
        });
        let (Some(data), Some(flush)) = (data, flush) else { return Err(internal("a pad that cannot be held")) };
        Ok(Self { pad: pad.clone(), probes: Mutex::new(vec![data, flush]), held })
    }

    /// Has what starts before this stream time be dropped from now on.
    fn set_from(&self, from_ns: u64) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).from_ns = from_ns;
    }

    /// Where it is held.
    fn at_ns(&self) -> Option<u64> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).at_ns
    }

    fn release(&self) {
        let probes = std::mem::take(&mut *self.probes.lock().unwrap_or_else(PoisonError::into_inner));
        probes.into_iter().for_each(|probe| self.pad.remove_probe(probe));
    }
}

/// In what form a stream is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Take {
    /// Raw.
    Decoded(Course),
    /// As it is.
    Packets,
}

/// How a stream comes to its decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    /// From its start to its end.
    Whole,
    /// From a key frame in its middle, or with parts left out.
    Broken,
}

impl Course {
    fn of(from_ns: u64) -> Self {
        if from_ns == 0 { Self::Whole } else { Self::Broken }
    }

    /// Has a decoder bear it. That of H.264 (GStreamer's libav, 1.22) does not decode the first frame with one thread where that is
    /// a key frame of an open GOP: it makes up the frames that it misses before, more of them than it has room for. With two it
    /// does.
    fn prepare(self, decoder: &gst::Element) {
        let is_h264 = decoder.factory().is_some_and(|factory| factory.name() == "avdec_h264");
        if self == Self::Broken && is_h264 {
            decoder.set_property_from_str("max-threads", "2");
            decoder.set_property_from_str("thread-type", "frame");
        }
    }
}

/// What is linked to a stream once its caps are known.
struct Plug {
    take: Take,
    after: Mutex<Vec<gst::Element>>,
    sink: gst_app::AppSink,
    linked: Mutex<Option<Result<(), Failure>>>,
    hold: OnceLock<Hold>,
}

impl Plug {
    /// Links now, or when the caps come; a stream that ends before has none.
    fn link_with_caps(self: Arc<Self>, pipeline: &gst::Pipeline, pad: &gst::Pad) {
        let done = |plug: &Self, linked| *plug.linked.lock().unwrap_or_else(PoisonError::into_inner) = Some(linked);
        if let Some(caps) = pad.current_caps() {
            done(&self, self.link(pipeline, pad, &caps));
            return;
        }
        let pipeline = pipeline.downgrade();
        pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
            let linked = match (info.event().map(|event| event.view()), pipeline.upgrade()) {
                (Some(gst::EventView::Caps(caps)), Some(pipeline)) => self.link(&pipeline, pad, &caps.caps_owned()),
                (Some(gst::EventView::Eos(_)), _) => Err(Failure::new(Code::Undecodable, "the stream ends before it starts")),
                _ => return gst::PadProbeReturn::Ok,
            };
            done(&self, linked);
            gst::PadProbeReturn::Remove
        });
    }

    fn link(&self, pipeline: &gst::Pipeline, pad: &gst::Pad, caps: &gst::Caps) -> Result<(), Failure> {
        // Some containers leave the size to the stream.
        if let Some((width, height)) = size(caps).filter(|(width, height)| *width > 0 && *height > 0) {
            VideoTrack::check_size(width, height)?;
        }
        self.sink.set_max_buffers(buffers_waiting(caps));
        let mut chain = Vec::new();
        if let Take::Decoded(course) = self.take
            && !is_raw(caps)
        {
            let missing = || {
                let codec = source::codec_name(caps);
                Failure::new(Code::UnsupportedCodec, format!("there is no decoder for {codec}")).on_stream(codec)
            };
            let decoder = decoder_for(caps).ok_or_else(missing)?;
            course.prepare(&decoder);
            chain.push(decoder);
        }
        chain.append(&mut self.after.lock().unwrap_or_else(PoisonError::into_inner));
        chain.push(self.sink.clone().upcast());
        pipeline.add_many(&chain).and_then(|()| gst::Element::link_many(&chain)).map_err(internal)?;
        for element in chain.iter().rev() {
            element.sync_state_with_parent().map_err(internal)?;
        }
        let first = chain.first().and_then(|e| e.static_pad("sink"));
        let first = first.ok_or_else(|| Failure::new(Code::Internal, "a decoder without a sink pad"))?;
        pad.link(&first).map(|_| ()).map_err(internal)
    }
}

impl Decoded {
    /// Seeks to the key frame at `from_ns`, or to the start for 0. Demuxers without an index land about where they were told
    /// to: what comes too early is dropped, and when the key frame was missed it is tried again from further before.
    fn seek(&mut self, pad: &gst::Pad, hold: &Hold, edit: Edit, mut from_ns: u64) -> Result<(), Failure> {
        self.held_at(hold)?;
        let (mut target_ns, mut step_ns) = (edit.seek_target(from_ns), SEEK_STEP_NS);
        loop {
            hold.set_from(from_ns);
            if !self.streams.seek(pad, target_ns) || from_ns == 0 {
                return Ok(());
            }
            if self.held_at(hold)?.is_some_and(|at| at <= from_ns + SAME_TIME_NS) {
                return Ok(());
            }
            if target_ns == 0 {
                // No such key frame any more: everything is decoded.
                from_ns = 0;
            }
            target_ns = target_ns.saturating_sub(step_ns);
            step_ns *= 2;
        }
    }

    /// Waits until the stream is held, and says where; none at the stream's end.
    fn held_at(&mut self, hold: &Hold) -> Result<Option<u64>, Failure> {
        loop {
            if let Some(at_ns) = hold.at_ns() {
                return Ok(Some(at_ns));
            }
            if self.sink.is_eos() {
                return Ok(None);
            }
            self.streams.check()?;
            std::thread::sleep(POLL);
        }
    }

    /// The next buffer, or none at the end of the stream.
    ///
    /// # Errors
    /// What the pipeline posted.
    pub fn next(&mut self) -> Result<Option<Raw>, Failure> {
        while let Some(sample) = self.pull()? {
            // What lies outside of the segment is cut off by an edit list.
            if let Some(raw) = cut(sample) {
                return Ok(Some(raw));
            }
        }
        Ok(None)
    }

    /// The next packet and its stream time in ns, also of what is only there to warm up on; none at the end of the stream.
    ///
    /// # Errors
    /// What the pipeline posted.
    pub fn next_packet(&mut self) -> Result<Option<(gst::Sample, i64)>, Failure> {
        while let Some(sample) = self.pull()? {
            let segment = self.pad.sticky_event::<gst::event::Segment>(0);
            let segment = segment.as_ref().and_then(|event| event.segment().downcast_ref::<gst::ClockTime>());
            let time = segment.zip(sample.buffer().and_then(|buffer| buffer.pts()));
            if let Some(time_ns) = time.and_then(|(segment, pts)| signed_stream_time(segment, pts)) {
                return Ok(Some((sample, time_ns)));
            }
        }
        Ok(None)
    }

    fn pull(&mut self) -> Result<Option<gst::Sample>, Failure> {
        loop {
            if let Some(sample) = self.sink.try_pull_sample(PULL_WAIT) {
                return Ok(Some(sample));
            }
            self.streams.check()?;
            if self.sink.is_eos() {
                return Ok(None);
            }
        }
    }
}

/// A sample as far as it is presented. Decoders cut what they make; what comes without one is cut here.
fn cut(sample: gst::Sample) -> Option<Raw> {
    let segment = sample.segment()?.downcast_ref::<gst::ClockTime>()?;
    let buffer = sample.buffer()?;
    let start = buffer.pts()?;
    let start_ns = presented(segment, start, buffer.duration())?.start;
    let sound = sample.caps().filter(|_| segment.start().is_some_and(|first| start < first));
    let Some(sound) = sound.and_then(|caps| gst_audio::AudioInfo::from_caps(caps).ok()) else {
        return Some(Raw { sample, start_ns });
    };
    let cut = gst_audio::audio_buffer_clip(sample.buffer_owned()?, segment.upcast_ref(), sound.rate(), sound.bpf())?;
    let sample = gst::Sample::builder().buffer(&cut).caps(&sample.caps_owned()?).segment(segment).build();
    Some(Raw { sample, start_ns })
}

fn is_raw(caps: &gst::Caps) -> bool {
    caps.structure(0).is_some_and(|s| matches!(s.name().as_str(), "video/x-raw" | "audio/x-raw"))
}

/// A sink drops what lies before the start of its segment, which packets to warm up on do.
fn forget_segments(sink: &gst_app::AppSink) {
    let Some(pad) = sink.static_pad("sink") else { return };
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &mut info.data
            && event.type_() == gst::EventType::Segment
        {
            let whole = gst::FormattedSegment::<gst::ClockTime>::new();
            *event = gst::event::Segment::builder(&whole).seqnum(event.seqnum()).build();
        }
        gst::PadProbeReturn::Ok
    });
}

/// Asks decoders for frames in memory that the scaler can read in place: aligned, with strides told by a meta.
fn want_video_meta(sink: &gst_app::AppSink) {
    let Some(pad) = sink.static_pad("sink") else { return };
    pad.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, |_, info| {
        if let Some(gst::QueryViewMut::Allocation(query)) = info.query_mut().map(gst::QueryRef::view_mut) {
            query.add_allocation_meta::<gst_video::VideoMeta>(None);
            query.add_allocation_param(None::<&gst::Allocator>, gst::AllocationParams::new(gst::MemoryFlags::empty(), 63, 0, 0));
            return gst::PadProbeReturn::Handled;
        }
        gst::PadProbeReturn::Ok
    });
}

/// Which frames of a stream are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Each, in a row.
    All,
    /// Some, which do not all follow each other.
    Some,
}

/// The elements that make any decoded picture readable for the scaler, upright and progressive.
///
/// # Errors
/// When an element is missing.
pub fn picture_elements(picture: &farm::plan::PicturePlan, frames: Frames) -> Result<Vec<gst::Element>, Failure> {
    let mut chain = Vec::new();
    if picture.interlace != Interlace::Progressive {
        chain.push(element("videoconvert")?);
        chain.push(deinterlacer(picture.interlace, frames)?);
    }
    if let Some(direction) = direction(picture.orientation) {
        chain.push(element("videoconvert")?);
        let flip = element("videoflip")?;
        flip.set_property_from_str("video-direction", direction);
        chain.push(flip);
    }
    chain.push(element("videoconvert")?);
    Ok(chain)
}

/// One frame out for each in, at the time of its first field: the frame rate stays the source's.
fn deinterlacer(interlace: Interlace, frames: Frames) -> Result<gst::Element, Failure> {
    let element = element("deinterlace")?;
    let (fields, order) = match interlace {
        Interlace::Interlaced(Fields::BottomFirst) | Interlace::Unflagged(Fields::BottomFirst) => ("bottom", "bff"),
        _ => ("top", "tff"),
    };
    element.set_property_from_str("fields", fields);
    if matches!(interlace, Interlace::Unflagged(_)) {
        element.set_property_from_str("mode", "interlaced");
        element.set_property_from_str("tff", order);
    }
    // Frames of which only some have fields, or that do not follow each other, are made of one field each.
    if matches!((interlace, frames), (Interlace::Interlaced(_) | Interlace::Unflagged(_), Frames::All)) {
        adapt(&element)?;
    }
    Ok(element)
}

/// Has a deinterlacer keep the detail of what stands still, by the frames before and after. GStreamer's (1.22) leaves the first
/// frame as it is, having none before: so that is put in twice, and once taken out. And it gives the last frame the time of the
/// one before, which is put right.
fn adapt(deinterlace: &gst::Element) -> Result<(), Failure> {
    deinterlace.set_property_from_str("method", "yadif");
    let pad = |name| deinterlace.static_pad(name).ok_or_else(|| internal("a deinterlacer without a pad"));
    // Times of frames that went in and have not come out.
    let inside: Arc<Mutex<VecDeque<gst::ClockTime>>> = Arc::default();
    let (went_in, is_doubled) = (Arc::clone(&inside), AtomicBool::new(false));
    pad("sink")?.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let Some(gst::PadProbeData::Buffer(frame)) = &mut info.data else { return gst::PadProbeReturn::Ok };
        went_in.lock().unwrap_or_else(PoisonError::into_inner).extend(frame.pts());
        let copy = (!is_doubled.swap(true, Ordering::Relaxed)).then(|| frame.copy());
        // It would begin anew, with a first frame that has none before.
        if frame.flags().contains(gst::BufferFlags::DISCONT) {
            frame.make_mut().unset_flags(gst::BufferFlags::DISCONT);
        }
        match copy.map_or(Ok(gst::FlowSuccess::Ok), |copy| pad.chain(copy)) {
            Ok(_) => gst::PadProbeReturn::Ok,
            Err(error) => {
                info.flow_res = Err(error);
                gst::PadProbeReturn::Handled
            }
        }
    });
    let (is_dropped, last) = (AtomicBool::new(false), Mutex::new(None));
    pad("src")?.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if !is_dropped.swap(true, Ordering::Relaxed) {
            return gst::PadProbeReturn::Drop;
        }
        let Some(gst::PadProbeData::Buffer(frame)) = &mut info.data else { return gst::PadProbeReturn::Ok };
        let mut inside = inside.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        while inside.front().is_some_and(|pts| last.is_some_and(|last| *pts <= last)) {
            inside.pop_front();
        }
        if let (true, Some(pts)) = (frame.pts() <= *last, inside.front()) {
            frame.make_mut().set_pts(*pts);
        }
        *last = frame.pts();
        gst::PadProbeReturn::Ok
    });
    Ok(())
}

/// What `videoflip` calls an orientation, none for upright. Ours mirrors left-right first and turns clockwise then.
fn direction(orientation: Orientation) -> Option<&'static str> {
    match (orientation.mirrored, orientation.quarter_turns % 4) {
        (false, 0) => None,
        (false, 1) => Some("90r"),
        (false, 2) => Some("180"),
        (false, _) => Some("90l"),
        (true, 0) => Some("horiz"),
        (true, 1) => Some("ur-ll"),
        (true, 2) => Some("vert"),
        (true, _) => Some("ul-lr"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of four different pixels, row by row, as `videoflip` turns it.
    fn flipped(direction: Option<&str>) -> Vec<u8> {
        gst::init().expect("GStreamer");
        let Some(direction) = direction else { return vec![1, 2, 3, 4] };
        let pipeline = gst::parse::launch(&format!(
            "appsrc name=in format=time caps=video/x-raw,format=GRAY8,width=4,height=4,framerate=1/1 \
             ! videoflip video-direction={direction} ! appsink name=out sync=false"
        ));
        let pipeline = pipeline.expect("elements").downcast::<gst::Pipeline>().expect("a pipeline");
        let source = pipeline.by_name("in").and_downcast::<gst_app::AppSrc>().expect("a source");
        let sink = pipeline.by_name("out").and_downcast::<gst_app::AppSink>().expect("a sink");
        pipeline.set_state(gst::State::Playing).expect("playing");
        // Each pixel is drawn 2 x 2.
        let mut buffer = gst::Buffer::from_slice([1_u8, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4]);
        buffer.get_mut().expect("new").set_pts(gst::ClockTime::ZERO);
        source.push_buffer(buffer).expect("taken");
        let sample = sink.try_pull_sample(gst::ClockTime::from_seconds(10)).expect("a picture");
        let map = sample.buffer().expect("a buffer").map_readable().expect("readable");
        let turned = vec![map[0], map[2], map[8], map[10]];
        pipeline.set_state(gst::State::Null).expect("stopped");
        turned
    }

    #[test]
    fn pictures_are_mirrored_and_then_turned_clockwise() {
        for quarter_turns in 0..4 {
            for mirrored in [false, true] {
                let mut picture = if mirrored { vec![2, 1, 4, 3] } else { vec![1, 2, 3, 4] };
                for _ in 0..quarter_turns {
                    picture = vec![picture[2], picture[0], picture[3], picture[1]];
                }
                let direction = direction(Orientation { mirrored, quarter_turns });
                assert_eq!(flipped(direction), picture, "mirrored {mirrored}, {quarter_turns} quarter turns: {direction:?}");
            }
        }
    }
}
