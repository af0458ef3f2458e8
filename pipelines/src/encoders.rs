//! Which encoders there are, which devices they run on, and whether they work: looked for, and proven by a real encode that is
//! decoded again.
//!
//! That an element is there says little: a driver may refuse, or hang. So each proof is for a process of its own, with a
//! deadline that its parent keeps.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use farm::encoder::Device;
use farm::job::VideoCodec;
use farm::plan::{RateControl, RenditionId, Rung};
use farm::{Class, Code, Failure, Quality};
use gst::glib;
use gst::prelude::*;
use nix::unistd::{AccessFlags, eaccess};
use serde::{Deserialize, Serialize};

use crate::copy::Stopped;
use crate::likeness::{Likeness, Part, drain, play};
use crate::picture_encoder::{Maker, go_together, picture_encoder};
use crate::source::{decoder_for, element, internal};

/// Frames of a proof: two GOPs and a bit, more than any encoder holds back.
const PROOF_FRAMES: u32 = 60;
/// Frames from one key frame to the next in a proof.
const PROOF_GOP: u32 = 25;
/// Width and height of a proof's pictures where nothing else is asked for: of a library, and of a device.
const SOFTWARE_SIZE: (u32, u32) = (320, 180);
const DEVICE_SIZE: (u32, u32) = (1920, 1080);

/// An encoder that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// The codec: `h264`, `hevc`, `av1`, `aac`.
    pub codec: &'static str,
    /// Whose it is.
    pub class: Class,
    /// The GStreamer element; of a device, as it is called on the first one.
    pub element: &'static str,
}

/// Every encoder that is looked for, in order of preference for each codec and class.
pub const CANDIDATES: [Candidate; 15] = {
    const fn of(class: Class, codec: &'static str, element: &'static str) -> Candidate {
        Candidate { codec, class, element }
    }
    [
        of(Class::Cpu, "h264", "x264enc"),
        of(Class::Cpu, "hevc", "x265enc"),
        of(Class::Cpu, "av1", "av1enc"),
        of(Class::Cpu, "aac", "avenc_aac"),
        of(Class::Nvenc, "h264", "nvh264enc"),
        of(Class::Nvenc, "hevc", "nvh265enc"),
        of(Class::Nvenc, "av1", "nvav1enc"),
        of(Class::Vaapi, "h264", "vah264enc"),
        of(Class::Vaapi, "hevc", "vah265enc"),
        of(Class::Vaapi, "av1", "vaav1enc"),
        of(Class::Qsv, "h264", "qsvh264enc"),
        of(Class::Qsv, "hevc", "qsvh265enc"),
        of(Class::Qsv, "av1", "qsvav1enc"),
        of(Class::V4l2, "h264", "v4l2h264enc"),
        of(Class::V4l2, "hevc", "v4l2h265enc"),
    ]
};

impl Candidate {
    /// How it is proven, on a device where it takes one.
    pub fn proof(&self, device: Option<Device>) -> Proof {
        let (width, height) = if device.is_some() { DEVICE_SIZE } else { SOFTWARE_SIZE };
        Proof { codec: self.codec.to_owned(), device, width, height }
    }
}

/// Where the devices of a class are.
struct Nodes {
    folder: &'static str,
    /// How their names begin. A number follows.
    prefix: &'static str,
    /// Another one that has to be there.
    gate: Option<&'static str>,
    /// What has to be there for them to be.
    needs: &'static str,
}

fn nodes_of(class: Class) -> Option<Nodes> {
    let (folder, prefix, gate, needs) = match class {
        Class::Cpu => return None,
        Class::Nvenc => ("/dev", "nvidia", Some("nvidiactl"), "a GPU of NVIDIA and its driver"),
        Class::Vaapi => ("/dev/dri", "renderD", None, "a GPU of Intel or AMD and its kernel driver"),
        Class::Qsv => ("/dev/dri", "renderD", None, "a GPU of Intel and its kernel driver"),
        Class::V4l2 => ("/dev", "video", None, "a board with an encoder, or a camera"),
    };
    Some(Nodes { folder, prefix, gate, needs })
}

/// The Debian packages that make an encoder out of a device.
fn packages(class: Class) -> &'static str {
    match class {
        Class::Cpu => "gstreamer1.0-plugins-bad",
        Class::Nvenc => "gstreamer1.0-plugins-bad and libnvidia-encode1",
        Class::Vaapi => "gstreamer1.0-plugins-bad and va-driver-all",
        Class::Qsv => "gstreamer1.0-plugins-bad and libmfx-gen1.2",
        Class::V4l2 => "gstreamer1.0-plugins-good",
    }
}

/// Every device of a class that this process may use, in order; cheap, and without GStreamer. None for the processor.
///
/// # Errors
/// [`Code::MissingElement`] with the reason when there are none.
pub fn devices_of(class: Class) -> Result<Vec<Device>, Failure> {
    let Some(nodes) = nodes_of(class) else { return Ok(Vec::new()) };
    let folder = Path::new(nodes.folder);
    let failed = |why: String| Err(Failure::new(Code::MissingElement, why));
    let missing = |name: &str| failed(format!("no {}: it takes {}", folder.join(name).display(), nodes.needs));
    let closed = |node: &Path| failed(format!("{} may not be opened by this user: see which group it has", node.display()));
    if let Some(gate) = nodes.gate {
        let node = folder.join(gate);
        if !is_usable(&node) {
            return if node.exists() { closed(&node) } else { missing(gate) };
        }
    }
    let names = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    devices_among(class, &nodes, names, is_usable).or_else(|refused| match refused {
        Some(node) => closed(&node),
        None => missing(&format!("{}*", nodes.prefix)),
    })
}

/// The devices whose nodes are among the files of a folder and can be used, in order; or else the first node that cannot.
fn devices_among(
    class: Class,
    nodes: &Nodes,
    names: impl Iterator<Item = String>,
    is_usable: impl Fn(&Path) -> bool,
) -> Result<Vec<Device>, Option<PathBuf>> {
    let found = numbered(names, nodes.prefix).into_iter().map(|(number, name)| (number, Path::new(nodes.folder).join(name)));
    let (usable, refused): (Vec<_>, Vec<_>) = found.partition(|(_, node)| is_usable(node));
    if usable.is_empty() {
        return Err(refused.into_iter().next().map(|(_, node)| node));
    }
    // Elements of V4L2 are named by the number in the node's name. Others count what they can use: in a container, a node keeps
    // its name and CUDA counts from 0 all the same.
    let number = |named, place| if class == Class::V4l2 { named } else { place };
    let device = |((named, node), place)| Device { class, number: number(named, place), node };
    Ok(usable.into_iter().zip(0_u32..).map(device).collect())
}

/// The names that are a prefix and a number, by their number.
fn numbered(names: impl Iterator<Item = String>, prefix: &str) -> Vec<(u32, String)> {
    let number = |name: &str| {
        let digits = name.strip_prefix(prefix)?;
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse::<u32>().ok() } else { None }
    };
    let mut found: Vec<(u32, String)> = names.filter_map(|name| Some((number(&name)?, name))).collect();
    found.sort();
    found
}

/// Whether this process may open a node. It is not opened: that is a driver's doing, and may never end.
fn is_usable(node: &Path) -> bool {
    eaccess(node, AccessFlags::R_OK | AccessFlags::W_OK).is_ok()
}

/// A codec of pictures in a word, as candidates and proofs have it.
pub fn name_of(codec: VideoCodec) -> &'static str {
    match codec {
        VideoCodec::H264 => "h264",
        VideoCodec::Hevc => "hevc",
        VideoCodec::Av1 => "av1",
    }
}

/// GStreamer's name for the encoder of a device for a codec; none where there is no such encoder. The first device that has one
/// goes without saying, which number 0 is taken for.
pub fn element_of(device: &Device, codec: &str) -> Option<String> {
    let usual = CANDIDATES.into_iter().find(|candidate| candidate.class == device.class && candidate.codec == codec)?.element;
    let (prefix, form) = match device.class {
        Class::Cpu => return None,
        Class::Nvenc => ("nv", usual.strip_prefix("nv")?),
        Class::Vaapi => ("va", usual.strip_prefix("va")?),
        Class::Qsv => ("qsv", usual.strip_prefix("qsv")?),
        Class::V4l2 => ("v4l2", usual.strip_prefix("v4l2")?),
    };
    let number = device.number;
    if number == 0 {
        return Some(usual.to_owned());
    }
    Some(match device.class {
        Class::Vaapi => format!("{prefix}{}{form}", device.node.file_name()?.to_str()?),
        Class::V4l2 => format!("{prefix}video{number}{form}"),
        Class::Cpu | Class::Nvenc | Class::Qsv => format!("{prefix}{}device{number}enc", form.strip_suffix("enc")?),
    })
}

/// Names that the encoder of a device may go by: its own, or the one without a device in it. Which device is the first is known
/// to GStreamer alone.
pub(crate) fn names_on(device: &Device, codec: &str) -> Vec<String> {
    let first = Device { number: 0, ..device.clone() };
    let mut names: Vec<String> = [device, &first].into_iter().filter_map(|device| element_of(device, codec)).collect();
    names.dedup();
    names
}

/// The encoder of a device for a codec.
///
/// # Errors
/// [`Code::MissingElement`] when there is none.
pub(crate) fn encoder_on(device: &Device, codec: &str) -> Result<gst::Element, Failure> {
    let own = element_of(device, codec).unwrap_or_default();
    let found = names_on(device, codec).into_iter().find_map(|name| {
        let encoder = gst::ElementFactory::make(&name).build().ok()?;
        let is_its = node_of(&encoder).map_or(name == own, |node| node == device.node);
        is_its.then_some(encoder)
    });
    found.ok_or_else(|| {
        let message = format!("its driver offers no {own}: see that {} are installed", packages(device.class));
        Failure::new(Code::MissingElement, message)
    })
}

/// The device that an element says it runs on. Those of NVIDIA tell no node.
fn node_of(encoder: &gst::Element) -> Option<PathBuf> {
    ["device-path", "device"].into_iter().find_map(|name| {
        let property = encoder.find_property(name)?;
        let is_told = property.value_type() == String::static_type() && property.flags().contains(glib::ParamFlags::READABLE);
        is_told.then(|| encoder.property::<Option<String>>(name)).flatten().map(PathBuf::from)
    })
}

/// An encode that shows whether an encoder works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The codec: `h264`, `hevc`, `av1`, `aac`.
    pub codec: String,
    /// The device that it is done on; none for a library.
    pub device: Option<Device>,
    /// Width of the pictures in pixels, even.
    pub width: u32,
    /// Their height in pixels, even.
    pub height: u32,
}

impl Proof {
    /// The element that is proven.
    fn element(&self) -> String {
        let usual = || CANDIDATES.iter().find(|candidate| candidate.class.is_cpu() && candidate.codec == self.codec);
        match &self.device {
            Some(device) => element_of(device, &self.codec).unwrap_or_default(),
            None => usual().map(|candidate| candidate.element.to_owned()).unwrap_or_default(),
        }
    }

    /// Elements that it takes beside those that every order may use.
    pub(crate) fn elements(&self) -> Vec<String> {
        let sources = ["videotestsrc", "audiotestsrc"].map(str::to_owned);
        sources.into_iter().chain(self.device.iter().flat_map(|device| names_on(device, &self.codec))).collect()
    }
}

/// Encodes something, looks at what comes out, decodes it again in software and compares. May hang where a driver does.
///
/// # Errors
/// [`Code::MissingElement`] when there is no such element, [`Code::EncoderFailed`] when it does not do what it should.
pub fn prove(proof: &Proof) -> Result<(), Failure> {
    crate::init()?;
    let picture = VideoCodec::ALL.into_iter().find(|codec| name_of(*codec) == proof.codec);
    let proven = match (picture, proof.codec.as_str()) {
        (Some(codec), _) => prove_picture(proof, codec),
        (None, "aac") => prove_sound(),
        (None, codec) => Err(Failure::new(Code::InvalidRequest, format!("no encoder is looked for that makes '{codec}'"))),
    };
    proven.map_err(|failure| by_name(&proof.element(), failure))
}

/// A failure of a proof with the element's name before it. What is missing is named already.
fn by_name(element: &str, failure: Failure) -> Failure {
    match failure.code {
        Code::EncoderFailed => Failure::new(failure.code, format!("{element} fails a test encode: {failure}")),
        _ => failure,
    }
}

fn prove_picture(proof: &Proof, codec: VideoCodec) -> Result<(), Failure> {
    let size = (proof.width, proof.height);
    let rung = rung(codec, size);
    let told = |maker: Maker<'_>, frames| prove_chain(&picture_encoder(&rung, PROOF_GOP, maker)?, size, frames);
    let Some(device) = &proof.device else { return told(Maker::Software, PROOF_FRAMES).map(drop) };
    let told_by_device = told(Maker::Device(device), PROOF_FRAMES)?;
    match codec {
        // In one file there may be parts of both.
        VideoCodec::H264 => go_together(&told_by_device, &told(Maker::Instead, 1)?),
        VideoCodec::Hevc | VideoCodec::Av1 => Ok(()),
    }
}

/// Proves elements from frames to packets, with so many frames. What the muxer would be told of the packets.
fn prove_chain(chain: &[gst::Element], size: (u32, u32), frames: u32) -> Result<gst::Caps, Failure> {
    let likeness = Likeness::watch(chain, frames.into(), PROOF_GOP, Part::Whole)?;
    pass(&pictures(size, frames)?, chain)?;
    likeness.check()?;
    likeness.told().ok_or_else(|| internal("an encoder that says nothing of its stream"))
}

fn prove_sound() -> Result<(), Failure> {
    let caps = |text: &str| text.parse::<gst::Caps>().map_err(internal);
    let decoder = decoder_for(&caps("audio/mpeg,mpegversion=(int)4,framed=(boolean)true,stream-format=raw")?);
    let decoder = decoder.ok_or_else(|| Failure::new(Code::MissingElement, "there is no decoder for AAC"))?;
    let feed = feed("audiotestsrc", PROOF_FRAMES, caps("audio/x-raw,format=F32LE,rate=48000,channels=2,layout=interleaved")?)?;
    // Its packets are other stretches than what went in: that there are some is all that is asked for.
    match pass(&feed, &[element("avenc_aac")?, decoder])? {
        0 => Err(Failure::new(Code::EncoderFailed, "nothing comes out of it")),
        _ => Ok(()),
    }
}

/// A rung of this size like those of a job.
pub(crate) fn rung(codec: VideoCodec, (width, height): (u32, u32)) -> Rung {
    // Plenty for any codec.
    let max_bitrate = width.saturating_mul(height).saturating_mul(10).clamp(500_000, 100_000_000);
    Rung {
        id: RenditionId(String::new()),
        width,
        height,
        divisor: NonZeroU32::MIN,
        codec,
        rate_control: RateControl::CappedQuality { quality: Quality::USUAL, max_bitrate },
        class: Class::Cpu,
        threads: NonZeroU32::MIN,
    }
}

/// Makes pictures that move, and are bright and dark in any size, of the same form as those of a job.
pub(crate) fn pictures((width, height): (u32, u32), frames: u32) -> Result<[gst::Element; 2], Failure> {
    let form = "pixel-aspect-ratio=1/1,colorimetry=bt709,chroma-site=mpeg2";
    let caps = format!("video/x-raw,format=I420,width={width},height={height},framerate=25/1,{form}");
    let feed = feed("videotestsrc", frames, caps.parse().map_err(internal)?)?;
    let [source, _] = &feed;
    source.set_property_from_str("pattern", "smpte100");
    source.set_property("horizontal-speed", 8_i32);
    Ok(feed)
}

/// Makes so many buffers of something.
fn feed(source: &str, buffers: u32, caps: gst::Caps) -> Result<[gst::Element; 2], Failure> {
    let (source, filter) = (element(source)?, element("capsfilter")?);
    source.set_property("num-buffers", i32::try_from(buffers).map_err(internal)?);
    filter.set_property("caps", caps);
    Ok([source, filter])
}

/// Lets what a feed makes through elements; how many buffers come out at the end.
pub(crate) fn pass(feed: &[gst::Element], chain: &[gst::Element]) -> Result<u32, Failure> {
    let sink = gst_app::AppSink::builder().sync(false).build();
    let stopped = Stopped(gst::Pipeline::new());
    let elements: Vec<&gst::Element> = feed.iter().chain(chain).chain([sink.upcast_ref()]).collect();
    stopped.0.add_many(elements.iter().copied()).map_err(internal)?;
    gst::Element::link_many(&elements).map_err(|error| Failure::new(Code::EncoderFailed, error.to_string()))?;
    play(&stopped.0)?;
    let mut count = 0;
    drain(&stopped.0, &sink, |_| {
        count += 1;
        Ok(())
    })?;
    Ok(count)
}

/// Elements that pipelines are made of, beside encoders and what parses and decodes a particular format.
pub(crate) const ELEMENTS: [&str; 17] = [
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
    "h264parse",
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
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_is_used_works_and_what_loses_frames_does_not() {
        for candidate in CANDIDATES.iter().filter(|candidate| candidate.class.is_cpu()) {
            assert_eq!(devices_of(candidate.class), Ok(Vec::new()));
            assert_eq!(prove(&candidate.proof(None)), Ok(()), "{candidate:?}");
        }
        let lossy = [element("x264enc").expect("x264"), element("identity").expect("identity")];
        lossy[1].set_property("drop-probability", 0.5_f32);
        let failure = by_name("x264enc", prove_chain(&lossy, SOFTWARE_SIZE, PROOF_FRAMES).expect_err("frames are missing"));
        assert_eq!(failure.code, Code::EncoderFailed);
        assert!(failure.message.starts_with("x264enc fails a test encode: "), "{failure}");
        let deaf = [element("x264enc").expect("x264"), element("fakesink").expect("a sink")];
        let failure = prove_chain(&deaf, SOFTWARE_SIZE, PROOF_FRAMES).expect_err("nothing comes out");
        assert_eq!(failure.code, Code::EncoderFailed);
    }

    #[test]
    fn what_is_not_there_cannot_be_proven() {
        let device = Device { class: Class::Nvenc, number: 99, node: "/dev/nvidia99".into() };
        let candidate = CANDIDATES.into_iter().find(|candidate| candidate.element == "nvh264enc").expect("it is looked for");
        let proof = candidate.proof(Some(device));
        assert_eq!((proof.width, proof.height), DEVICE_SIZE);
        let failure = prove(&proof).expect_err("there is no such device");
        assert_eq!(failure.code, Code::MissingElement);
        assert!(failure.message.starts_with("its driver offers no nvh264device99enc: "), "{failure}");
        let failure = prove(&Proof { codec: "vp8".to_owned(), device: None, ..proof }).expect_err("nobody makes it");
        assert_eq!(failure.code, Code::InvalidRequest);
    }

    #[test]
    fn devices_are_numbered_by_what_their_names_end_with() {
        let names = ["nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "nvidia", "nvidia+1", "null", "nvidia0"];
        let found = numbered(names.into_iter().map(str::to_owned), "nvidia");
        let found: Vec<_> = found.iter().map(|(number, name)| (*number, name.as_str())).collect();
        assert_eq!(found, [(0, "nvidia0"), (2, "nvidia2"), (10, "nvidia10")]);
    }

    #[test]
    fn devices_are_counted_as_their_elements_count_them() {
        let names = ["nvidia3", "nvidiactl", "nvidia12", "nvidia1", "video11", "video-dec0", "renderD129", "renderD128", "card0"];
        let of = |class: Class, closed: &str| {
            let nodes = nodes_of(class).expect("a class of hardware");
            let is_usable = |node: &Path| !node.ends_with(closed);
            let found = devices_among(class, &nodes, names.into_iter().map(str::to_owned), is_usable);
            found.map(|devices| devices.into_iter().map(|found| (found.number, found.node)).collect::<Vec<_>>())
        };
        let at = |number: u32, node: &str| (number, PathBuf::from(node));
        assert_eq!(of(Class::Nvenc, "none"), Ok(vec![at(0, "/dev/nvidia1"), at(1, "/dev/nvidia3"), at(2, "/dev/nvidia12")]));
        assert_eq!(of(Class::Nvenc, "nvidia1"), Ok(vec![at(0, "/dev/nvidia3"), at(1, "/dev/nvidia12")]));
        assert_eq!(of(Class::V4l2, "none"), Ok(vec![at(11, "/dev/video11")]));
        assert_eq!(of(Class::V4l2, "video11"), Err(Some("/dev/video11".into())));
        for class in [Class::Vaapi, Class::Qsv] {
            assert_eq!(of(class, "renderD128"), Ok(vec![at(0, "/dev/dri/renderD129")]), "{class}");
        }
        let nodes = nodes_of(Class::Nvenc).expect("a class of hardware");
        assert_eq!(devices_among(Class::Nvenc, &nodes, std::iter::empty(), |_| true), Err(None));
    }

    #[test]
    fn whether_a_node_may_be_opened_is_asked_without_opening_it() {
        // A socket cannot be opened, by nobody.
        let node = std::env::temp_dir().join(format!("shoal-node-{}", std::process::id()));
        let socket = UnixListener::bind(&node).expect("a socket");
        assert!(is_usable(&node) && std::fs::File::open(&node).is_err());
        drop(socket);
        std::fs::remove_file(&node).expect("it is ours");
        assert!(!is_usable(&node));
    }

    #[test]
    fn elements_go_by_the_device_unless_it_is_the_first() {
        let name = |class, number, node: &str, codec| element_of(&Device { class, number, node: node.into() }, codec);
        for (class, number, node, names) in [
            (Class::Nvenc, 0, "/dev/nvidia0", ["nvh264enc", "nvh265enc", "nvav1enc"]),
            (Class::Nvenc, 2, "/dev/nvidia2", ["nvh264device2enc", "nvh265device2enc", "nvav1device2enc"]),
            (Class::Vaapi, 0, "/dev/dri/renderD128", ["vah264enc", "vah265enc", "vaav1enc"]),
            (Class::Vaapi, 1, "/dev/dri/renderD129", ["varenderD129h264enc", "varenderD129h265enc", "varenderD129av1enc"]),
            (Class::Qsv, 0, "/dev/dri/renderD128", ["qsvh264enc", "qsvh265enc", "qsvav1enc"]),
            (Class::Qsv, 1, "/dev/dri/renderD129", ["qsvh264device1enc", "qsvh265device1enc", "qsvav1device1enc"]),
            (Class::V4l2, 0, "/dev/video0", ["v4l2h264enc", "v4l2h265enc", ""]),
            (Class::V4l2, 11, "/dev/video11", ["v4l2video11h264enc", "v4l2video11h265enc", ""]),
            (Class::Cpu, 0, "", ["", "", ""]),
        ] {
            let named = VideoCodec::ALL.map(|codec| name(class, number, node, name_of(codec)).unwrap_or_default());
            assert_eq!(named, names, "{class} {number}");
        }
        assert_eq!(name(Class::Nvenc, 0, "/dev/nvidia0", "aac"), None);
        let device = Device { class: Class::V4l2, number: 11, node: "/dev/video11".into() };
        assert_eq!(names_on(&device, "h264"), ["v4l2video11h264enc", "v4l2h264enc"]);
    }
}
