//! One stream of a source, decoded: raw frames or samples with their stream times, pulled one by one.

use std::sync::{Arc, Mutex, PoisonError};

use farm::media::TrackId;
use farm::{Code, Failure};
use gst::prelude::*;

use crate::Reader;
use crate::source::{self, Streams, decoder_for, element, internal};

/// How long a pull waits before it looks at what the pipeline has said.
const PULL_WAIT: gst::ClockTime = gst::ClockTime::from_mseconds(100);
/// How often it is looked whether a stream's caps have come.
const LINK_POLL: std::time::Duration = std::time::Duration::from_millis(1);
/// Decoded buffers waiting to be pulled: enough to keep the decoder's thread busy.
const BUFFERS_MAX: u32 = 4;

/// A stream being decoded.
pub struct Decoded {
    streams: Streams,
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

/// Decodes one stream from about `from_ns` of stream time on: from the key frame before it, so that earlier buffers come
/// first and are to be passed over. `after` are elements that follow the decoder, and `caps` what comes out of the last.
///
/// # Errors
/// When the source cannot be read or has no such stream, or no decoder takes it.
pub fn decode(
    reader: Arc<dyn Reader>,
    track: TrackId,
    from_ns: u64,
    after: Vec<gst::Element>,
    caps: &gst::Caps,
) -> Result<Decoded, Failure> {
    let sink = gst_app::AppSink::builder()
        .sync(false)
        .async_(false)
        .max_buffers(BUFFERS_MAX)
        .enable_last_sample(false)
        .caps(caps)
        .build();
    want_video_meta(&sink);
    let plug = Arc::new(Plug { after: Mutex::new(after), sink: sink.clone(), linked: Mutex::new(None) });
    let on_stream = Arc::clone(&plug);
    let link = move |pipeline: &gst::Pipeline, shown: TrackId, pad: &gst::Pad| {
        if shown == track {
            Arc::clone(&on_stream).link_with_caps(pipeline, pad);
        }
        Ok(())
    };
    let mut streams = source::open(reader, track, Box::new(link))?;
    loop {
        let linked = plug.linked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(linked) = linked {
            linked?;
            break;
        }
        streams.check()?;
        std::thread::sleep(LINK_POLL);
    }
    // Elements linked while the pipeline was on its way to playing may have been left behind in the state it had then.
    let mut elements = streams.pipeline.iterate_elements();
    while let Ok(Some(element)) = elements.next() {
        element.sync_state_with_parent().map_err(internal)?;
    }
    let pad = streams.pad(track)?.clone();
    let mut decoded = Decoded { streams, sink };
    // A seek before data flows may meet a demuxer that is still putting its streams together.
    decoded.next()?;
    decoded.streams.seek(&pad, from_ns);
    Ok(decoded)
}

/// What is linked to a stream once its caps are known.
struct Plug {
    after: Mutex<Vec<gst::Element>>,
    sink: gst_app::AppSink,
    linked: Mutex<Option<Result<(), Failure>>>,
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
        let mut chain = Vec::new();
        if !is_raw(caps) {
            let missing = || {
                let codec = source::codec_name(caps);
                Failure::new(Code::UnsupportedCodec, format!("there is no decoder for {codec}")).on_stream(codec)
            };
            chain.push(decoder_for(caps).ok_or_else(missing)?);
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
    /// The next buffer, or none at the end of the stream.
    ///
    /// # Errors
    /// What the pipeline posted.
    pub fn next(&mut self) -> Result<Option<Raw>, Failure> {
        loop {
            if let Some(sample) = self.sink.try_pull_sample(PULL_WAIT) {
                match start_of(&sample) {
                    Some(start_ns) => return Ok(Some(Raw { sample, start_ns })),
                    // Outside of the segment: cut off by an edit list.
                    None => continue,
                }
            }
            self.streams.check()?;
            if self.sink.is_eos() {
                return Ok(None);
            }
        }
    }
}

fn start_of(sample: &gst::Sample) -> Option<u64> {
    let segment = sample.segment()?.downcast_ref::<gst::ClockTime>()?;
    segment.to_stream_time(sample.buffer()?.pts()?).map(gst::ClockTime::nseconds)
}

fn is_raw(caps: &gst::Caps) -> bool {
    caps.structure(0).is_some_and(|s| matches!(s.name().as_str(), "video/x-raw" | "audio/x-raw"))
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

/// The elements that make any decoded picture readable for the scaler, upright and progressive.
///
/// # Errors
/// When an element is missing.
pub fn picture_elements(picture: &farm::plan::PicturePlan) -> Result<Vec<gst::Element>, Failure> {
    use farm::media::Interlace;
    let mut chain = Vec::new();
    if picture.interlace != Interlace::Progressive {
        chain.push(element("videoconvert")?);
        let deinterlace = element("deinterlace")?;
        // One frame out for each in: the frame rate stays the source's.
        deinterlace.set_property_from_str("fields", "top");
        chain.push(deinterlace);
    }
    let turned = (picture.orientation.mirrored, picture.orientation.quarter_turns % 4);
    // `video-direction` mirrors after it turns; ours mirrors first.
    let direction = match turned {
        (false, 0) => None,
        (false, 1) => Some("90r"),
        (false, 2) => Some("180"),
        (false, _) => Some("90l"),
        (true, 0) => Some("horiz"),
        (true, 1) => Some("ul-lr"),
        (true, 2) => Some("vert"),
        (true, _) => Some("ur-ll"),
    };
    if let Some(direction) = direction {
        chain.push(element("videoconvert")?);
        let flip = element("videoflip")?;
        flip.set_property_from_str("video-direction", direction);
        chain.push(flip);
    }
    chain.push(element("videoconvert")?);
    Ok(chain)
}
