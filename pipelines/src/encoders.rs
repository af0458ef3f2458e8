//! Which encoders there are, proven by a short real encode.

use farm::{Code, Failure};
use gst::prelude::*;
use serde::Serialize;

use crate::source::element;

/// Longest time that a proof may take.
const PROOF_WAIT: gst::ClockTime = gst::ClockTime::from_seconds(10);

/// Every encoder looked for.
#[derive(Debug, Serialize)]
pub struct Encoders {
    /// In order of preference for each codec.
    pub encoders: Vec<Encoder>,
}

/// An encoder looked for.
#[derive(Debug, Serialize)]
pub struct Encoder {
    /// The codec: `h264`, `hevc`, `av1`, `aac`.
    pub codec: &'static str,
    /// The GStreamer element.
    pub element: &'static str,
    /// Why it is not usable, if it is not.
    pub failure: Option<Failure>,
    /// Whether it is the one that is used for its codec.
    pub chosen: bool,
}

/// Looks for every encoder and encodes something with each that is there.
///
/// # Errors
/// When GStreamer does not start.
pub fn encoders() -> Result<Encoders, Failure> {
    crate::init()?;
    let prove = |codec, name, source, caps| {
        let failure = prove(name, source, caps).err();
        Encoder { codec, element: name, chosen: failure.is_none(), failure }
    };
    let picture = "video/x-raw,format=I420,width=320,height=180,framerate=25/1";
    let sound = "audio/x-raw,format=F32LE,rate=48000,channels=2,layout=interleaved";
    let pictures = [("h264", "x264enc"), ("hevc", "x265enc"), ("av1", "av1enc")];
    let pictures = pictures.map(|(codec, element)| prove(codec, element, "videotestsrc", picture));
    Ok(Encoders { encoders: pictures.into_iter().chain([prove("aac", "avenc_aac", "audiotestsrc", sound)]).collect() })
}

/// Elements that pipelines are made of, beside encoders and what parses and decodes a particular format.
const ELEMENTS: [&str; 14] = [
    "appsrc",
    "appsink",
    "parsebin",
    "capsfilter",
    "queue",
    "tee",
    "audioconvert",
    "audioresample",
    "videoconvert",
    "videoflip",
    "deinterlace",
    "cmafmux",
    "avdec_h264",
    "jpegenc",
];

/// Elements that are not there, each with what to install.
///
/// # Errors
/// When GStreamer does not start.
pub fn missing_elements() -> Result<Vec<Failure>, Failure> {
    crate::init()?;
    Ok(ELEMENTS.iter().filter_map(|name| element(name).err()).collect())
}

fn prove(encoder: &str, source: &str, caps: &str) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::new(Code::EncoderFailed, format!("{encoder} fails a test encode: {why}"));
    element(encoder)?;
    let line = format!("{source} num-buffers=12 ! {caps} ! {encoder} ! fakesink");
    let pipeline = gst::parse::launch(&line).map_err(|e| failed(&e))?;
    let bus = pipeline.bus().ok_or_else(|| failed(&"no bus"))?;
    let started = pipeline.set_state(gst::State::Playing);
    let ended = bus.timed_pop_filtered(PROOF_WAIT, &[gst::MessageType::Eos, gst::MessageType::Error]);
    // The verdict does not depend on how the pipeline stops.
    let _ = pipeline.set_state(gst::State::Null);
    started.map_err(|e| failed(&e))?;
    match ended.as_deref().map(gst::MessageRef::view) {
        Some(gst::MessageView::Eos(_)) => Ok(()),
        Some(gst::MessageView::Error(error)) => Err(failed(&error.error())),
        _ => Err(failed(&"it hangs")),
    }
}
