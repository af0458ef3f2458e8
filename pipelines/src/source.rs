//! The source's side of a pipeline: bytes from a [`Reader`], split into streams and, where asked, decoded.
//!
//! ```text
//! byte source → parsebin ─┬→ chosen stream → decoder → … → appsink
//!                         └→ other streams: dropped at the pad, so they never wait for a sink
//! ```
//!
//! Streams are numbered in the order in which `parsebin` shows them, so a number names the same stream in every attempt.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use farm::media::TrackId;
use farm::text::StreamName;
use farm::{Code, Failure};
use gst::prelude::*;

use crate::byte_source::ByteSource;
use crate::edits::Edits;
use crate::mend::Source;

/// Longest wait for a demuxer to show its streams.
const STREAMS_WAIT: Duration = Duration::from_secs(60);
/// How often it is looked whether a pipeline has room.
const ROOM_POLL: Duration = Duration::from_millis(2);
/// Most streams that are looked at.
const STREAMS_MAX: u32 = 64;

/// A pipeline whose demuxer has shown its streams. Those that are linked to nothing drop their data.
pub struct Streams {
    /// The pipeline, playing.
    pub pipeline: gst::Pipeline,
    /// Pads of the streams, in the order of [`TrackId`].
    pub pads: Vec<gst::Pad>,
    source: ByteSource,
    bus: gst::Bus,
    missing: Vec<String>,
}

/// What happens with a stream as soon as it shows, before any of its data flows.
pub type OnStream = Box<dyn Fn(&gst::Pipeline, TrackId, &gst::Pad) -> Result<(), Failure> + Send + Sync>;

/// Opens a source, calls `on_stream` for each stream that the demuxer shows, and returns when the stream `wanted` is there.
/// A demuxer shows all its streams at once, before any data flows: they are all there once a seek has gone through.
///
/// # Errors
/// When it is not media, nothing can take it apart, it cannot be read, or it has no stream `wanted`.
pub fn open(source: &Source, wanted: TrackId, on_stream: OnStream) -> Result<Streams, Failure> {
    if source.reader.bytes() == 0 {
        return Err(Failure::new(Code::NotMedia, "the source is empty"));
    }
    let pipeline = gst::Pipeline::new();
    let bytes = ByteSource::new(Arc::clone(&source.reader));
    let parse = element("parsebin")?;
    keep_dialogues(&parse);
    pipeline.add_many([bytes.upcast_ref(), &parse]).and_then(|()| bytes.link(&parse)).map_err(internal)?;
    keep_matroska_times(&pipeline);
    source.edits.apply(&pipeline);
    let shown = watch_streams(&pipeline, &parse, source.edits.clone(), on_stream);
    let bus = pipeline.bus().ok_or_else(|| Failure::new(Code::Internal, "a pipeline without a bus"))?;
    let mut streams = Streams { pipeline, source: bytes, pads: Vec::new(), bus, missing: Vec::new() };
    streams.pipeline.set_state(gst::State::Playing).map_err(internal)?;
    let deadline = Instant::now() + STREAMS_WAIT;
    loop {
        while let Ok(pad) = shown.try_recv() {
            streams.pads.push(pad?);
        }
        streams.check()?;
        if streams.pads.len() > wanted.0 as usize {
            return Ok(streams);
        }
        if Instant::now() > deadline {
            return Err(Failure::new(Code::NotMedia, "no streams were found in the source"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Streams {
    /// The pad of the stream with this number.
    ///
    /// # Errors
    /// When the source has none such: it is not the one that was probed.
    pub fn pad(&self, track: TrackId) -> Result<&gst::Pad, Failure> {
        let found = self.pads.get(track.0 as usize);
        found.ok_or_else(|| Failure::new(Code::SourceChanged, format!("the source has no stream {} any more", track.0)))
    }

    /// Takes what the pipeline has said so far.
    ///
    /// # Errors
    /// The first error that it posted, as a meaning.
    pub fn check(&mut self) -> Result<(), Failure> {
        while let Some(message) = self.bus.pop() {
            match message.view() {
                gst::MessageView::Element(element) => {
                    if let Some(detail) = missing_decoder(element) {
                        self.missing.push(detail);
                    }
                }
                gst::MessageView::Error(error) => return Err(self.failure(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn failure(&self, error: &gst::message::Error) -> Failure {
        if let Some(why) = self.source.failure() {
            return Failure::new(Code::SourceUnreadable, format!("the source cannot be read: {why}"));
        }
        let cause = error.error();
        let detail = error.debug().unwrap_or_default();
        let is = |kind: gst::StreamError| cause.matches(kind);
        if let Some(codec) = self.missing.first() {
            return Failure::new(Code::UnsupportedCodec, format!("there is no decoder for {codec}")).on_stream(codec);
        }
        if is(gst::StreamError::TypeNotFound) {
            return Failure::new(Code::NotMedia, "the source is not audio or video in any known container");
        }
        if is(gst::StreamError::CodecNotFound) {
            return Failure::new(Code::UnsupportedCodec, format!("there is no decoder for it: {cause}"));
        }
        if is(gst::StreamError::WrongType) {
            return Failure::new(Code::NotMedia, format!("the source is not audio or video: {cause}"));
        }
        let line = detail.lines().last().unwrap_or_default();
        if is(gst::StreamError::Decode) {
            return Failure::new(Code::Undecodable, format!("the source does not decode: {cause}"));
        }
        if is(gst::StreamError::Demux) {
            return Failure::new(Code::NoDecodableStream, format!("nothing can be read of the source: {cause}"));
        }
        if cause.matches(gst::CoreError::MissingPlugin) {
            return Failure::new(Code::MissingElement, format!("{cause} ({line})"));
        }
        Failure::new(Code::Undecodable, format!("the source cannot be taken apart: {cause} ({line})"))
    }

    /// Seeks to the key frame at or before `stream_time_ns`, where the source can seek. Says whether it did.
    ///
    /// Snapping backwards to a key frame and no stop: accurate seeks and stops lose or double frames in most containers.
    /// With picture, also the start is sought: some demuxers give other times than without. Sound alone is always read
    /// from its start, where parsers of bare streams would guess.
    pub fn seek(&self, through: &gst::Pad, stream_time_ns: u64) -> bool {
        let is_video = |pad: &gst::Pad| {
            let is_picture = |name: &str| name.starts_with("video/") || name.starts_with("image/");
            pad.current_caps().is_some_and(|caps| caps.structure(0).is_some_and(|s| is_picture(s.name())))
        };
        // `parsebin` shows picture first.
        if !self.pads.first().is_some_and(is_video) {
            return false;
        }
        through.send_event(gst::event::Seek::new(
            1.0,
            gst::SeekFlags::FLUSH | gst::SeekFlags::KEY_UNIT | gst::SeekFlags::SNAP_BEFORE,
            gst::SeekType::Set,
            gst::ClockTime::from_nseconds(stream_time_ns),
            gst::SeekType::None,
            gst::ClockTime::NONE,
        ))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // Nothing can be done about a pipeline that does not stop; the process is about to end.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// An element by its factory's name.
///
/// # Errors
/// [`Code::MissingElement`] naming the Debian package that holds it.
pub fn element(factory: &str) -> Result<gst::Element, Failure> {
    gst::ElementFactory::make(factory).build().map_err(|_| {
        let package = match factory {
            "x264enc" => "gstreamer1.0-plugins-ugly",
            "cmafmux" | "shoalscale" => "none, it is part of Shoal",
            "x265enc" | "h264parse" | "h265parse" | "av1enc" | "av1parse" => "gstreamer1.0-plugins-bad",
            name if name.starts_with("av") => "gstreamer1.0-libav",
            "parsebin" | "appsrc" | "appsink" | "audioconvert" | "audioresample" | "videoconvert" | "audiotestsrc"
            | "videotestsrc" => "gstreamer1.0-plugins-base",
            "deinterlace" | "videoflip" | "jpegenc" => "gstreamer1.0-plugins-good",
            _ => "libgstreamer1.0-0",
        };
        Failure::new(
            Code::MissingElement,
            format!("GStreamer element '{factory}' is missing: install the Debian package {package}"),
        )
    })
}

/// Hands a buffer to a pipeline as soon as it has room for it. `check` is asked while there is none: a pipeline that has
/// failed never has room again.
///
/// # Errors
/// What `check` says; [`Code::Internal`] when the pipeline refuses.
pub fn push(source: &gst_app::AppSrc, buffer: gst::Buffer, check: &dyn Fn() -> Result<(), Failure>) -> Result<(), Failure> {
    while source.current_level_buffers() >= source.max_buffers().max(1) {
        check()?;
        std::thread::sleep(ROOM_POLL);
    }
    source.push_buffer(buffer).map(|_| ()).or_else(|refused| {
        check()?;
        Err(internal(format!("a pipeline takes no data: {refused}")))
    })
}

/// Frames that may wait between two threads, for pictures of this size: enough that neither waits for the other, and in large
/// sizes no more than fit into 16 MiB of 4:2:0 with 8 bits. One of each is always let through.
pub fn frames_waiting(width: u32, height: u32) -> u32 {
    const FRAMES_MAX: u64 = 4;
    const BYTES_MAX: u64 = 8 << 20;
    let frame_bytes = u64::from(width) * u64::from(height) * 3 / 2;
    u32::try_from((BYTES_MAX / frame_bytes.max(1)).clamp(1, FRAMES_MAX)).unwrap_or(1)
}

/// As [`frames_waiting`], by caps of pictures; other buffers are small.
pub fn buffers_waiting(caps: &gst::CapsRef) -> u32 {
    let (width, height) = size(caps).unwrap_or_default();
    frames_waiting(width, height)
}

/// The size of the pictures that flow, where caps tell it.
pub fn size(caps: &gst::CapsRef) -> Option<(u32, u32)> {
    let structure = caps.structure(0)?;
    let side = |name| structure.get::<i32>(name).ok().map(i32::unsigned_abs);
    Some((side("width")?, side("height")?))
}

/// A mistake of ours, in words.
pub fn internal(error: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Internal, format!("a pipeline cannot be built: {error}"))
}

/// Numbers pads as they show (`parsebin` sorts them by kind and stream id, the same in every run), lets `on_stream` link
/// what it wants, and makes the others drop their data.
fn watch_streams(
    pipeline: &gst::Pipeline,
    parse: &gst::Element,
    edits: Edits,
    on_stream: OnStream,
) -> mpsc::Receiver<Result<gst::Pad, Failure>> {
    let (tell, shown) = mpsc::channel();
    let weak = pipeline.downgrade();
    let next = AtomicU32::new(0);
    parse.connect_pad_added(move |_, pad| {
        let track = TrackId(next.fetch_add(1, Ordering::Relaxed));
        edits.apply_to_shown(pad);
        let linked = match weak.upgrade() {
            Some(pipeline) if track.0 < STREAMS_MAX => on_stream(&pipeline, track, pad),
            _ => Ok(()),
        };
        if !pad.is_linked() {
            drop_data(pad);
        }
        // The receiver is gone when all that was wanted is there already.
        let _ = tell.send(linked.map(|()| pad.clone()));
    });
    shown
}

/// Has SSA and ASS come as they are: the parser for them takes their styles off without a word.
fn keep_dialogues(parse: &gst::Element) {
    parse.connect("autoplug-continue", false, |arguments| {
        let caps = arguments.get(2).and_then(|caps| caps.get::<gst::Caps>().ok());
        let name = caps.as_ref().and_then(|caps| caps.structure(0)).map(|structure| structure.name().as_str());
        Some((!matches!(name, Some("application/x-ass" | "application/x-ssa"))).to_value())
    });
}

/// Has stream times of Matroska be the time stamps in the file. Its demuxer takes off the earliest time stamp that it has
/// met so far, which depends on how far it had read when it was told to seek.
fn keep_matroska_times(pipeline: &gst::Pipeline) {
    pipeline.connect_deep_element_added(|_, _, element| {
        if element.factory().is_none_or(|factory| factory.name() != "matroskademux") {
            return;
        }
        element.connect_pad_added(|_, pad| {
            pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |_, info| {
                if let Some(gst::PadProbeData::Event(event)) = &mut info.data
                    && let gst::EventView::Segment(told) = event.view()
                    && let Some(mut segment) = told.segment().downcast_ref::<gst::ClockTime>().cloned()
                {
                    segment.set_time(segment.start());
                    *event = gst::event::Segment::builder(&segment).seqnum(event.seqnum()).build();
                }
                gst::PadProbeReturn::Ok
            });
        });
    });
}

/// Makes a pad drop its data as long as it is linked to nothing, which would be an error to its demuxer.
fn drop_data(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST, |pad, _| {
        if pad.is_linked() { gst::PadProbeReturn::Remove } else { gst::PadProbeReturn::Drop }
    });
}

/// What a `missing-plugin` message says is missing, in words.
fn missing_decoder(message: &gst::message::Element) -> Option<String> {
    let structure = message.structure().filter(|s| s.name() == "missing-plugin")?;
    let caps = structure.get::<gst::Caps>("detail").ok()?;
    Some(codec_name(&caps))
}

/// A codec's name for people.
pub fn codec_name(caps: &gst::CapsRef) -> String {
    let media_type = || caps.structure(0).map_or_else(|| "unknown".to_owned(), |s| s.name().to_string());
    // The binding cannot say "none", which is the answer for caps that leave something open.
    let name = if caps.is_fixed() { gst_pbutils::pb_utils_get_codec_description(caps).to_string() } else { media_type() };
    match name.rsplit_once("x-gst-fourcc-") {
        Some((_, "vvc1" | "vvi1")) => "H.266 (VVC)".to_owned(),
        Some((_, fourcc)) => format!("'{fourcc}'"),
        None => name,
    }
}

/// The number of a stream's track in an MP4 or MOV file: the demuxer's stream ids end with it.
pub fn track_number(pad: &gst::Pad) -> Option<u32> {
    pad.stream_id()?.rsplit('/').next()?.parse().ok()
}

/// How its demuxer calls a stream: the same in every run, other than what stands before.
pub fn stream_name(pad: &gst::Pad) -> Option<StreamName> {
    Some(StreamName(pad.stream_id()?.rsplit('/').next()?.to_owned()))
}

/// What flows on a stream's pad, also before the first data.
pub fn stream_caps(pad: &gst::Pad) -> gst::Caps {
    let known = pad.current_caps().or_else(|| pad.stream().and_then(|stream| stream.caps()));
    known.unwrap_or_else(|| pad.query_caps(None))
}

/// A decoder for these caps: the best ranked one in software, or none.
pub fn decoder_for(caps: &gst::Caps) -> Option<gst::Element> {
    let kinds = gst::ElementFactoryType::DECODER;
    let mut factories: Vec<_> = gst::ElementFactory::factories_with_type(kinds, gst::Rank::MARGINAL).into_iter().collect();
    factories.retain(|f| f.can_sink_any_caps(caps) && !f.metadata("klass").is_some_and(|class| class.contains("Hardware")));
    // One that takes just these caps goes before one that takes some of what they leave open, or only with a field more. That
    // of plugins-good, which ranks first for JPEG, moves the colours of pictures that are not 4:2:0 (seen in 1.22).
    factories.sort_by_key(|f| (f.name() == "jpegdec", !f.can_sink_all_caps(caps), std::cmp::Reverse(f.rank()), f.name()));
    let decoder = factories.first()?.create().build().ok()?;
    // One thread: parallelism comes from rungs, chunks and jobs; more threads cost CPU for nothing a farm wants.
    for property in ["max-threads", "threads"] {
        if decoder.find_property(property).is_some_and(|p| p.flags().contains(gst::glib::ParamFlags::WRITABLE)) {
            decoder.set_property_from_str(property, "1");
        }
    }
    Some(decoder)
}
