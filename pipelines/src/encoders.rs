//! Which encoders there are, and whether they work: looked for, and proven by a real encode that is decoded again.
//!
//! That an element is there says little: a driver may refuse, or hang. So each proof is for a process of its own, with a
//! deadline that its parent keeps.

use std::fs::OpenOptions;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use farm::job::VideoCodec;
use farm::plan::{RateControl, RenditionId, Rung};
use farm::{Code, Failure};
use gst::prelude::*;
use serde::Serialize;

use crate::picture_encoder::picture_encoder;
use crate::source::{element, internal};

/// Longest time that a proof may take to come to its end by itself.
const PROOF_WAIT: gst::ClockTime = gst::ClockTime::from_seconds(10);
/// Frames of a proof: more than any encoder holds back.
const PROOF_FRAMES: u32 = 60;
/// Frames from one key frame to the next in a proof.
const PROOF_GOP: u32 = 25;

/// Who makes the encoders of a family, and where they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Libraries, on the processor.
    Software,
    /// NVIDIA's encoder.
    Nvenc,
    /// Those that a VA-API driver offers: of Intel and AMD.
    VaApi,
    /// Intel's, by its own library.
    QuickSync,
    /// Those of small boards.
    V4l2,
}

/// An encoder that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// The codec: `h264`, `hevc`, `av1`, `aac`.
    pub codec: &'static str,
    /// Whose it is.
    pub family: Family,
    /// The GStreamer element.
    pub element: &'static str,
}

/// Every encoder that is looked for, in order of preference for each codec and family.
pub const CANDIDATES: [Candidate; 15] = {
    const fn of(family: Family, codec: &'static str, element: &'static str) -> Candidate {
        Candidate { codec, family, element }
    }
    [
        of(Family::Software, "h264", "x264enc"),
        of(Family::Software, "hevc", "x265enc"),
        of(Family::Software, "av1", "av1enc"),
        of(Family::Software, "aac", "avenc_aac"),
        of(Family::Nvenc, "h264", "nvh264enc"),
        of(Family::Nvenc, "hevc", "nvh265enc"),
        of(Family::Nvenc, "av1", "nvav1enc"),
        of(Family::VaApi, "h264", "vah264enc"),
        of(Family::VaApi, "hevc", "vah265enc"),
        of(Family::VaApi, "av1", "vaav1enc"),
        of(Family::QuickSync, "h264", "qsvh264enc"),
        of(Family::QuickSync, "hevc", "qsvh265enc"),
        of(Family::QuickSync, "av1", "qsvav1enc"),
        of(Family::V4l2, "h264", "v4l2h264enc"),
        of(Family::V4l2, "hevc", "v4l2h265enc"),
    ]
};

impl Family {
    /// Its devices' folder, how their names begin, and what has to be there for them to be.
    fn devices(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Software => None,
            Self::Nvenc => Some(("/dev", "nvidiactl", "a GPU of NVIDIA and its driver")),
            Self::VaApi => Some(("/dev/dri", "renderD", "a GPU of Intel or AMD and its kernel driver")),
            Self::QuickSync => Some(("/dev/dri", "renderD", "a GPU of Intel and its kernel driver")),
            Self::V4l2 => Some(("/dev", "video", "a board with an encoder, or a camera")),
        }
    }

    /// The Debian packages that make an encoder of it out of a device.
    fn packages(self) -> &'static str {
        match self {
            Self::Software => "gstreamer1.0-plugins-bad",
            Self::Nvenc => "gstreamer1.0-plugins-bad and libnvidia-encode1",
            Self::VaApi => "gstreamer1.0-plugins-bad and va-driver-all",
            Self::QuickSync => "gstreamer1.0-plugins-bad and libmfx-gen1.2",
            Self::V4l2 => "gstreamer1.0-plugins-good",
        }
    }

    /// Its first device that this process may use.
    ///
    /// # Errors
    /// Why there is none.
    fn device(self) -> Result<Option<PathBuf>, Failure> {
        let Some((folder, start, needs)) = self.devices() else { return Ok(None) };
        let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)))
            .collect();
        found.sort();
        let usable = |path: &&PathBuf| OpenOptions::new().read(true).write(true).open(path).is_ok();
        match (found.iter().find(usable), found.first()) {
            (Some(path), _) => Ok(Some(path.clone())),
            (None, Some(path)) => Err(Failure::new(
                Code::MissingElement,
                format!("{} may not be opened by this user: see which group it has", path.display()),
            )),
            (None, None) => {
                let names = Path::new(folder).join(format!("{start}*"));
                Err(Failure::new(Code::MissingElement, format!("no {}: it takes {needs}", names.display())))
            }
        }
    }
}

impl Candidate {
    /// The candidate with this element.
    pub fn of(element: &str) -> Option<Self> {
        CANDIDATES.into_iter().find(|candidate| candidate.element == element)
    }

    /// Whether it is used when it works. Those of hardware are not yet.
    pub fn is_used(&self) -> bool {
        self.family == Family::Software
    }

    /// The device it would run on, if it takes one; cheap, and without GStreamer.
    ///
    /// # Errors
    /// [`Code::MissingElement`] with the reason when there is none, or this user may not use it.
    pub fn device(&self) -> Result<Option<PathBuf>, Failure> {
        self.family.device()
    }

    /// Encodes something, decodes it again and counts. May hang where a driver does.
    ///
    /// # Errors
    /// [`Code::MissingElement`] when there is no such element, [`Code::EncoderFailed`] when it does not do what it should.
    pub fn prove(&self) -> Result<(), Failure> {
        crate::init()?;
        if gst::ElementFactory::find(self.element).is_none() && self.family != Family::Software {
            let message = format!("its driver offers no {}: see that {} are installed", self.element, self.family.packages());
            return Err(Failure::new(Code::MissingElement, message));
        }
        match self.codec {
            "aac" => decoded(("audiotestsrc", SOUND), self.element, &[element(self.element)?], None),
            codec => decoded(("videotestsrc", PICTURE), self.element, &self.picture_encoder(codec)?, Some(PROOF_FRAMES)),
        }
    }

    /// The encoder as it is used, where it is.
    fn picture_encoder(&self, codec: &str) -> Result<Vec<gst::Element>, Failure> {
        if !self.is_used() {
            // Many take NV12 alone.
            return Ok(vec![element("videoconvert")?, element(self.element)?]);
        }
        let codec = match codec {
            "hevc" => VideoCodec::Hevc,
            "av1" => VideoCodec::Av1,
            _ => VideoCodec::H264,
        };
        let rate_control = RateControl::CappedQuality { quality: 23, max_bitrate: 1_000_000 };
        let (id, one) = (RenditionId(String::new()), NonZeroU32::MIN);
        picture_encoder(&Rung { id, width: 320, height: 180, divisor: one, codec, rate_control, threads: one }, PROOF_GOP)
    }
}

const PICTURE: &str = "video/x-raw,format=I420,width=320,height=180,framerate=25/1";
const SOUND: &str = "audio/x-raw,format=F32LE,rate=48000,channels=2,layout=interleaved";

/// Lets frames through an encoder and a decoder; an error unless just so many come out as went in, where they are counted.
fn decoded((source, caps): (&str, &str), name: &str, encoder: &[gst::Element], frames: Option<u32>) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::new(Code::EncoderFailed, format!("{name} fails a test encode: {why}"));
    let pipeline = gst::Pipeline::new();
    let feed = element(source)?;
    feed.set_property("num-buffers", i32::try_from(PROOF_FRAMES).map_err(internal)?);
    let filter = element("capsfilter")?;
    filter.set_property("caps", caps.parse::<gst::Caps>().map_err(internal)?);
    let (decoder, sink) = (element("decodebin")?, gst_app::AppSink::builder().sync(false).build());
    let chain: Vec<&gst::Element> = [&feed, &filter].into_iter().chain(encoder).chain([&decoder]).collect();
    pipeline.add_many(chain.iter().copied().chain([sink.upcast_ref()])).map_err(internal)?;
    gst::Element::link_many(&chain).map_err(|error| failed(&error))?;
    let end = sink.static_pad("sink").ok_or_else(|| internal("appsink has no pad"))?;
    decoder.connect_pad_added(move |_, pad| {
        // What does not fit shows in the count.
        let _ = pad.link(&end);
    });
    let bus = pipeline.bus().ok_or_else(|| internal("a pipeline without a bus"))?;
    let started = pipeline.set_state(gst::State::Playing);
    let mut count = 0;
    while started.is_ok() && sink.try_pull_sample(PROOF_WAIT).is_some() {
        count += 1;
    }
    let is_over = sink.is_eos();
    // Nothing depends on how the pipeline stops.
    let _ = pipeline.set_state(gst::State::Null);
    let posted = bus.pop_filtered(&[gst::MessageType::Error]);
    match (posted.as_deref().map(gst::MessageRef::view), frames) {
        (Some(gst::MessageView::Error(error)), _) => Err(failed(&error.error())),
        _ if !is_over || started.is_err() => Err(failed(&"nothing more comes out of it")),
        (_, Some(frames)) if frames != count => Err(failed(&format_args!("{count} of {frames} frames came out"))),
        _ => Ok(()),
    }
}

/// Elements that pipelines are made of, beside encoders and what parses and decodes a particular format.
pub(crate) const ELEMENTS: [&str; 16] = [
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
    "h265parse",
    "av1parse",
];

/// Elements that are not there, each with what to install.
///
/// # Errors
/// When GStreamer does not start.
pub fn missing_elements() -> Result<Vec<Failure>, Failure> {
    crate::init()?;
    Ok(ELEMENTS.iter().filter_map(|name| element(name).err()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_works_and_what_loses_frames_does_not() {
        for candidate in CANDIDATES.iter().filter(|candidate| candidate.is_used()) {
            assert_eq!(candidate.prove(), Ok(()), "{candidate:?}");
        }
        let lossy = [element("x264enc").expect("x264"), element("identity").expect("identity")];
        lossy[1].set_property("drop-probability", 0.5_f32);
        let failure = decoded(("videotestsrc", PICTURE), "x264enc", &lossy, Some(PROOF_FRAMES)).expect_err("frames are missing");
        assert_eq!(failure.code, Code::EncoderFailed);
        assert!(failure.message.starts_with("x264enc fails a test encode: "), "{failure}");
        let deaf = [element("x264enc").expect("x264"), element("fakesink").expect("a sink")];
        assert!(decoded(("videotestsrc", PICTURE), "x264enc", &deaf, None).is_err());
    }
}
