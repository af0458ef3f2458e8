//! The encoder of a rung, and what its stream is to look like.
//!
//! A rung's quality is a number on x264's scale. What the other encoders call the same was measured: as good by VMAF, over
//! qualities of 18 to 33 (README has figures). Of devices nothing was: [`crate::hardware`] says what is taken for the same.

use farm::encoder::Device;
use farm::job::VideoCodec;
use farm::plan::{RateControl, Rung};
use farm::{Code, Failure};
use gst::prelude::*;

use crate::hardware;
use crate::packets::{configuration, without_parameters};
use crate::source::{element, internal};

/// Who makes the stream of a rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker<'a> {
    /// A library.
    Software,
    /// A library, for a rung of which a device makes other parts.
    Instead,
    /// A device.
    Device(&'a Device),
}

/// The elements from frames to what `cmafmux` takes, with a key frame at every `gop_frames` and nowhere else.
///
/// # Errors
/// When an element is missing or lacks what it takes, or the rung is not one to encode.
pub fn picture_encoder(rung: &Rung, gop_frames: u32, maker: Maker<'_>) -> Result<Vec<gst::Element>, Failure> {
    let elements = match (maker, rung.codec) {
        // Many devices take NV12 alone.
        (Maker::Device(device), codec) => {
            vec![element("videoconvert")?, hardware::encoder(device, rung, gop_frames)?, parser(codec)?]
        }
        (_, VideoCodec::H264) => vec![x264(rung, gop_frames, maker)?],
        (_, VideoCodec::Hevc) => vec![x265(rung, gop_frames)?, parser(VideoCodec::Hevc)?],
        (_, VideoCodec::Av1) => vec![aom(rung, gop_frames)?, parser(VideoCodec::Av1)?],
    };
    let caps = match (maker, rung.codec) {
        (Maker::Device(_), VideoCodec::H264) => HIGH_ON_DEVICES,
        (_, VideoCodec::H264) => "video/x-h264,profile=high",
        (_, VideoCodec::Hevc) => "video/x-h265,stream-format=hvc1,alignment=au",
        (_, VideoCodec::Av1) => "video/x-av1,stream-format=obu-stream,alignment=tu",
    };
    let stream = element("capsfilter")?;
    stream.set_property("caps", caps.parse::<gst::Caps>().map_err(internal)?);
    if maker != Maker::Software && rung.codec == VideoCodec::H264 {
        tell_in_common(&stream)?;
    }
    Ok(elements.into_iter().chain([stream]).collect())
}

/// What devices make of H.264. Of High, the other two are what is left without interlacing, and without B-frames as well: some
/// drivers name it so.
const HIGH_ON_DEVICES: &str = "video/x-h264,profile={ (string)high, (string)progressive-high, (string)constrained-high },\
                               stream-format=avc,alignment=au";

/// Makes the first key frame of a chunk as good as the others. By constant quality x264 (core 164) gives it no more bits than a
/// frame that refers to others: three steps of its scale too few, seen at every joint (-4 VMAF, for half a second). The
/// factor is x264's own between the two kinds (`ipratio`).
const FIRST_AS_OTHERS: f32 = 1.4;

/// The option that does so, and takes a part of a step off the quality of all frames, which the element has whole steps for only:
/// by six steps bits are worth half as much.
fn zones(rest: f32) -> String {
    let all = 0.5_f32.powf(rest / 6.0);
    let first = format!(":zones=0,0,b={:.4}", FIRST_AS_OTHERS * all);
    if rest > 0.0 { format!("{first}/1,{},b={all:.4}", i32::MAX) } else { first }
}

/// Numbers x264's parameter sets otherwise than devices do theirs, which is by 0: so both can stand in the one header of a
/// rendition of which either made parts.
const SETS_APART: &str = ":sps-id=1";

/// Thousands of bits, rounded up.
pub fn kbit(bits: u32) -> u32 {
    bits.div_ceil(1000).max(1)
}

/// What there is to say about a rung that has no encoder.
pub fn copied() -> Failure {
    internal("a rung that is copied is not encoded")
}

/// Pixels from which on x264 looks ahead less far.
const LARGE_PX: u64 = 3840 * 2160;
/// Three frames less than the preset: of 2160p that is 115 MiB, and the quality is the same at the same bits (PSNR, within 0.03 dB).
const LARGE_LOOKAHEAD: &str = ":rc-lookahead=7";

/// Has x264 use what processors had before AVX-512. It takes no longer (854x480 on an EPYC of 2 cores: 1.95 beside 2.00 s).
const WITHOUT_AVX512: &str = ":asm=AVX2";

/// Whether x264 (r3095) plans pictures of this width rightly with AVX-512. It weighs macroblocks by what later frames take from
/// them, eight columns at a time; where eight do not divide the columns it counts in what happens to stand in memory, so that
/// the same pictures have other bits in every run (seen with `MALLOC_PERTURB_`, from 17 columns to 60).
fn is_right_with_avx512(width: u32) -> bool {
    width.div_ceil(16).is_multiple_of(8)
}

fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn x264(rung: &Rung, gop_frames: u32, maker: Maker<'_>) -> Result<gst::Element, Failure> {
    let x264 = element("x264enc")?;
    let mut options = "scenecut=0".to_owned();
    if u64::from(rung.width) * u64::from(rung.height) >= LARGE_PX {
        options.push_str(LARGE_LOOKAHEAD);
    }
    if has_avx512() && !is_right_with_avx512(rung.width) {
        options.push_str(WITHOUT_AVX512);
    }
    x264.set_property_from_str("speed-preset", "veryfast");
    x264.set_property("threads", rung.threads.get());
    x264.set_property("key-int-max", gop_frames);
    match rung.rate_control {
        RateControl::CappedQuality { quality, max_bitrate } => {
            x264.set_property_from_str("pass", "qual");
            let (steps, rest) = quality.split();
            x264.set_property("quantizer", steps);
            x264.set_property("bitrate", kbit(max_bitrate));
            x264.set_property("vbv-buf-capacity", 2000_u32);
            options.push_str(&zones(rest));
        }
        RateControl::Average { bitrate, max_bitrate } => {
            x264.set_property_from_str("pass", "cbr");
            x264.set_property("bitrate", kbit(bitrate));
            // The element fills the buffer at the average rate: the cap over one second is the size of the buffer.
            let capacity_ms = u64::from(max_bitrate) * 1000 / u64::from(bitrate.max(1));
            x264.set_property("vbv-buf-capacity", u32::try_from(capacity_ms.clamp(1, 10_000)).unwrap_or(10_000));
        }
        RateControl::Copied { .. } => return Err(copied()),
    }
    if maker == Maker::Instead {
        options.push_str(SETS_APART);
    }
    x264.set_property("option-string", options);
    Ok(x264)
}

/// Steps that x265's scale, in its preset `superfast`, lies above x264's.
const HEVC_STEPS: f32 = 2.5;
/// The end of its scale.
const HEVC_WORST: f32 = 51.0;

fn x265(rung: &Rung, gop_frames: u32) -> Result<gst::Element, Failure> {
    let x265 = element("x265enc")?;
    x265.set_property_from_str("speed-preset", "superfast");
    x265.set_property("key-int-max", i32::try_from(gop_frames).map_err(internal)?);
    // No pool: its threads would be as many as there are cores, for every rung.
    // With two threads its buffer model depends on who comes first, but for `const-vbv`.
    let structure =
        format!("scenecut=0:open-gop=0:min-keyint={gop_frames}:pools=none:const-vbv=1:frame-threads={}", rung.threads);
    let rate = match rung.rate_control {
        RateControl::CappedQuality { quality, max_bitrate } => {
            let (cap, quality) = (kbit(max_bitrate), (f32::from(quality) + HEVC_STEPS).min(HEVC_WORST));
            format!("crf={quality}:vbv-maxrate={cap}:vbv-bufsize={}", 2 * cap)
        }
        RateControl::Average { bitrate, max_bitrate } => {
            let cap = kbit(max_bitrate);
            x265.set_property("bitrate", kbit(bitrate));
            format!("vbv-maxrate={cap}:vbv-bufsize={cap}")
        }
        RateControl::Copied { .. } => return Err(copied()),
    };
    x265.set_property("option-string", format!("{structure}:{rate}"));
    Ok(x265)
}

/// What brings an encoder's stream into the form that it has in files.
fn parser(codec: VideoCodec) -> Result<gst::Element, Failure> {
    match codec {
        VideoCodec::H264 => bare("h264parse", |sample| without_parameters(&sample.map_readable().ok()?, LENGTH_BYTES)),
        VideoCodec::Hevc => bare("h265parse", without_parameter_sets),
        VideoCodec::Av1 => element("av1parse"),
    }
}

/// Has the muxer be told the same of a stream whoever makes it, but for its parameter sets: the headers of a rendition of which
/// several made parts are to go together.
fn tell_in_common(stream: &gst::Element) -> Result<(), Failure> {
    let pad = stream.static_pad("src").ok_or_else(|| internal("a capsfilter without a source pad"))?;
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |_, info| {
        let Some(gst::PadProbeData::Event(event)) = &mut info.data else { return gst::PadProbeReturn::Ok };
        // It would write the rates that they tell: what was asked for, or what a parser measured.
        if event.type_() == gst::EventType::Tag {
            *event = gst::event::Tag::builder(gst::TagList::new()).seqnum(event.seqnum()).build();
        }
        if let gst::EventView::Caps(told) = event.view() {
            let caps = in_common(told.caps_owned());
            *event = gst::event::Caps::builder(&caps).seqnum(event.seqnum()).build();
        }
        gst::PadProbeReturn::Ok
    });
    Ok(())
}

/// Caps without the level, which decides about brands, of the High profile by its usual name, and with all that belongs to its
/// header.
fn in_common(mut caps: gst::Caps) -> gst::Caps {
    let header = caps.structure(0).and_then(|structure| structure.get::<gst::Buffer>("codec_data").ok());
    let header = header.and_then(|header| completed(&header.map_readable().ok()?));
    let made = caps.make_mut();
    if let Some(structure) = made.structure_mut(0) {
        structure.remove_field("level");
        structure.set("profile", "high");
    }
    if let Some(header) = header {
        made.set("codec_data", gst::Buffer::from_slice(header));
    }
    caps
}

/// What the header of the High profile ends with, for 4:2:0 with 8 bits (ISO/IEC 14496-15, 5.3.3.1.2).
const HIGH_END: [u8; 4] = [0xFD, 0xF8, 0xF8, 0];
/// High, in that header.
const HIGH: u8 = 100;

/// A header with its end, which x264's element (1.22) leaves out; nothing when it has one.
fn completed(header: &[u8]) -> Option<Vec<u8>> {
    let (_, sets) = configuration(header)?;
    let is_cut_off = end(header, &sets)?.is_empty();
    (is_cut_off && header.get(1) == Some(&HIGH)).then(|| [header, HIGH_END.as_slice()].concat())
}

/// What a header has after these sets, which are its own.
fn end<'a>(header: &'a [u8], sets: &[Vec<u8>]) -> Option<&'a [u8]> {
    // Two counts stand before the sets, and a length before each.
    header.get(7 + sets.iter().map(|set| 2 + set.len()).sum::<usize>()..)
}

/// What else of caps `cmafmux` writes into an init segment of H.264.
const WRITTEN: [&str; 7] =
    ["stream-format", "width", "height", "pixel-aspect-ratio", "colorimetry", "content-light-level", "mastering-display-info"];

/// Sees that parts of a rendition which a device makes and parts which are made instead of it can stand in one file: that the
/// muxer is told the same of both but for parameter sets, and that those of the device have the numbers that it is taken to give.
///
/// # Errors
/// [`Code::EncoderFailed`] with what is in the way.
pub fn go_together(device: &gst::Caps, instead: &gst::Caps) -> Result<(), Failure> {
    let refused = |why: String| Err(Failure::new(Code::EncoderFailed, why));
    let (Some((sets, rest)), Some((_, other))) = (header(device), header(instead)) else {
        return refused("it has no header that can be read".to_owned());
    };
    if !are_first(&sets) {
        return refused("its parameter sets have other numbers than 0".to_owned());
    }
    if rest != other {
        return refused("its header differs in more than parameter sets from the one of what is made instead".to_owned());
    }
    match WRITTEN.into_iter().find(|field| written(device, field) != written(instead, field)) {
        Some(field) => refused(format!("its '{field}' differs from the one of what is made instead")),
        None => Ok(()),
    }
}

/// The parameter sets in the header that caps have, and what stands around them: profile, bytes of a length, and the end.
fn header(caps: &gst::CapsRef) -> Option<(Vec<Vec<u8>>, Vec<u8>)> {
    let header = caps.structure(0)?.get::<gst::Buffer>("codec_data").ok()?;
    let header = header.map_readable().ok()?;
    let (length_bytes, sets) = configuration(&header)?;
    let rest = [&[*header.get(1)?, u8::try_from(length_bytes).ok()?][..], end(&header, &sets)?].concat();
    Some((sets, rest))
}

/// Whether these are parameter sets with the number 0.
fn are_first(sets: &[Vec<u8>]) -> bool {
    // Numbers stand behind the unit's header, and in sequence parameter sets behind profile and level. For 0 there is one bit,
    // which is set (Rec. ITU-T H.264, 7.3.2.1.1, 7.3.2.2 and 9.1).
    let is_first = |set: &Vec<u8>| match set.first().map(|unit| unit & 0x1F) {
        Some(7) => set.get(4).is_some_and(|bits| bits & 0x80 != 0),
        Some(8) => set.get(1).is_some_and(|bits| bits & 0x80 != 0),
        _ => false,
    };
    !sets.is_empty() && sets.iter().all(is_first)
}

/// A field of caps as text.
fn written(caps: &gst::CapsRef, field: &str) -> Option<String> {
    Some(caps.structure(0)?.value(field).ok()?.serialize().ok()?.to_string())
}

/// Bytes of a unit's length, as the parsers write it.
const LENGTH_BYTES: usize = 4;

/// A parser whose samples have the form of `avc1` and `hvc1`: parameter sets stand in the sample entry and nowhere else. It
/// leaves the encoder's at each chunk's start, which Apple's players do not want.
fn bare(parser: &str, without: fn(&gst::BufferRef) -> Option<Vec<u8>>) -> Result<gst::Element, Failure> {
    let parser = element(parser)?;
    let pad = parser.static_pad("src").ok_or_else(|| internal("a parser without a source pad"))?;
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(buffer) = info.buffer_mut()
            && let Some(rest) = without(buffer)
        {
            let sample = buffer.make_mut();
            sample.remove_all_memory();
            sample.append_memory(gst::Memory::from_slice(rest));
        }
        gst::PadProbeReturn::Ok
    });
    Ok(parser)
}

/// The sample of HEVC without its parameter sets; nothing when it has none. A unit's length has four bytes here.
fn without_parameter_sets(buffer: &gst::BufferRef) -> Option<Vec<u8>> {
    let map = buffer.map_readable().ok()?;
    let (mut at, mut rest, mut found) = (0, Vec::new(), false);
    while let Some(size) = map.get(at..at + 4).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes) {
        let end = at + 4 + size as usize;
        let unit = map.get(at..end)?;
        // VPS, SPS and PPS by their type (Rec. ITU-T H.265, 7.4.2.2).
        match unit.get(4).map(|header| header >> 1 & 0x3F) {
            Some(32..=34) => found = true,
            _ => rest.extend_from_slice(unit),
        }
        // They come first in a sample, if at all.
        if !found && at > 0 {
            return None;
        }
        at = end;
    }
    found.then_some(rest)
}

/// The worst and the best quantizer of libaom's scale; below the best, bits buy nothing that can be seen.
const AOM_WORST: u32 = 63;
const AOM_BEST: u32 = 4;

/// A quality on libaom's scale: three of its steps for two of x264's.
pub fn on_aom_scale(quality: u32) -> u32 {
    ((3 * quality).saturating_sub(11) / 2).clamp(AOM_BEST, AOM_WORST)
}

fn aom(rung: &Rung, gop_frames: u32) -> Result<gst::Element, Failure> {
    let aom = element("av1enc")?;
    // Faster ones than 6 are only for its other profile, which costs a third as much and saves no bits beside x264.
    aom.set_property("cpu-used", 6_i32);
    // With frames held back the element (1.22) loses those at the end, or hangs there.
    aom.set_property("lag-in-frames", 0_u32);
    aom.set_property("threads", rung.threads.get());
    aom.set_property("row-mt", rung.threads.get() > 1);
    aom.set_property("keyframe-max-dist", i32::try_from(gop_frames).map_err(internal)?);
    aom.set_property_from_str("end-usage", "vbr");
    let (best, target) = match rung.rate_control {
        // With bits to spare, none better than asked for.
        RateControl::CappedQuality { quality, max_bitrate } => (on_aom_scale(quality.whole()), max_bitrate),
        RateControl::Average { bitrate, .. } => (AOM_BEST, bitrate),
        RateControl::Copied { .. } => return Err(copied()),
    };
    aom.set_property("min-quantizer", best);
    aom.set_property("max-quantizer", AOM_WORST);
    aom.set_property("target-bitrate", kbit(target));
    Ok(aom)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::encoders::{pass, pictures, rung};

    fn sample(units: &[&[u8]]) -> Vec<u8> {
        units.iter().flat_map(|unit| [&(unit.len() as u32).to_be_bytes()[..], unit].concat()).collect()
    }

    /// What the muxer is told of an encoder's stream.
    fn told(maker: Maker<'_>) -> gst::Caps {
        crate::init().expect("GStreamer");
        let chain = picture_encoder(&rung(VideoCodec::H264, (320, 180)), 25, maker).expect("an encoder");
        let (told, listener) = (Arc::new(Mutex::new(None)), chain.last().and_then(|last| last.static_pad("src")));
        let seen = Arc::clone(&told);
        listener.expect("a pad").add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            if let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view()) {
                *seen.lock().expect("no panic") = Some(caps.caps_owned());
            }
            gst::PadProbeReturn::Ok
        });
        pass(&pictures((320, 180), 30).expect("pictures"), &chain).expect("it works");
        let caps = told.lock().expect("no panic").take();
        caps.expect("caps")
    }

    #[test]
    fn what_stands_in_for_a_device_has_sets_of_its_own_and_a_header_like_any() {
        for (maker, id_bits) in [(Maker::Software, 0x80), (Maker::Instead, 0x40)] {
            let caps = told(maker);
            let structure = caps.structure(0).expect("a structure");
            let header = structure.get::<gst::Buffer>("codec_data").expect("a header");
            let header = header.map_readable().expect("readable");
            let (length_bytes, sets) = configuration(&header).expect("a header");
            assert_eq!((length_bytes, sets.len()), (LENGTH_BYTES, 2));
            // The id is the first code after the profile, and the first of all. Code 0 is the bit 1, code 1 is 010.
            let mask = if id_bits == 0x80 { 0x80 } else { 0xE0 };
            assert_eq!([sets[0][4] & mask, sets[1][1] & mask], [id_bits; 2], "{maker:?}");
            let is_instead = maker == Maker::Instead;
            assert_eq!(structure.has_field("level"), !is_instead, "{maker:?}");
            assert!(!is_instead || header.ends_with(&HIGH_END) && completed(&header).is_none(), "{header:?}");
        }
    }

    #[test]
    fn parts_of_a_device_go_together_with_what_is_made_instead() {
        let instead = told(Maker::Instead);
        let device = in_common(told(Maker::Software));
        assert_eq!(go_together(&device, &instead), Ok(()));
        let refused = |change: &dyn Fn(&mut gst::CapsRef)| {
            let mut changed = device.clone();
            change(changed.make_mut());
            let failure = go_together(&changed, &instead).expect_err("it differs");
            assert_eq!(failure.code, Code::EncoderFailed);
            failure.message
        };
        let with_header = |change: fn(&mut Vec<u8>)| {
            refused(&|caps| {
                let header = caps.structure(0).and_then(|told| told.get::<gst::Buffer>("codec_data").ok()).expect("a header");
                let mut bytes = header.map_readable().expect("readable").to_vec();
                change(&mut bytes);
                caps.set("codec_data", gst::Buffer::from_slice(bytes));
            })
        };
        let differs = |what: &str| format!("its '{what}' differs from the one of what is made instead");
        assert_eq!(refused(&|caps| caps.set("colorimetry", "bt601")), differs("colorimetry"));
        assert_eq!(refused(&|caps| caps.set("pixel-aspect-ratio", gst::Fraction::new(4, 3))), differs("pixel-aspect-ratio"));
        assert_eq!(refused(&|caps| caps.set("height", 192_i32)), differs("height"));
        let in_more = "its header differs in more than parameter sets from the one of what is made instead";
        assert_eq!(with_header(|bytes| bytes[1] = 77), in_more, "Main");
        assert_eq!(with_header(|bytes| bytes[4] = 0xFD), in_more, "lengths of two bytes");
        assert_eq!(with_header(|bytes| bytes.truncate(bytes.len() - HIGH_END.len())), in_more, "without an end");
        let numbers = "its parameter sets have other numbers than 0";
        // The first byte of the first set is at 8.
        assert_eq!(with_header(|bytes| bytes[8 + 4] = 0x40), numbers);
        let failure = go_together(&instead, &instead).expect_err("it is no device");
        assert_eq!(failure.message, numbers);
    }

    #[test]
    fn avx512_is_left_alone_where_eight_do_not_divide_the_columns_of_macroblocks() {
        assert!([256, 384, 512, 640, 768, 1270, 1280, 1920, 2560, 3840].into_iter().all(is_right_with_avx512));
        assert!(![272, 320, 400, 426, 428, 528, 720, 854, 960, 1080].into_iter().any(is_right_with_avx512));
    }

    #[test]
    fn numbers_of_parameter_sets_are_read() {
        let are_first = |sets: [&[u8]; 2]| are_first(&sets.map(<[u8]>::to_vec));
        assert!(are_first([&[0x67, 100, 0, 30, 0x80], &[0x68, 0xC0]]));
        assert!(!are_first([&[0x67, 100, 0, 30, 0x40], &[0x68, 0xC0]]));
        assert!(!are_first([&[0x67, 100, 0, 30, 0x80], &[0x68, 0x40]]));
        assert!(!are_first([&[0x67, 100, 0, 30], &[0x68, 0xC0]]), "cut off");
        assert!(!are_first([&[0x67, 100, 0, 30, 0x80], &[0x6F, 0xC0]]), "what else is there");
    }

    #[test]
    fn what_is_high_by_another_name_is_told_as_high() {
        crate::init().expect("GStreamer");
        let offered = HIGH_ON_DEVICES.parse::<gst::Caps>().expect("caps");
        for profile in ["high", "progressive-high", "constrained-high"] {
            let form = format!("video/x-h264,profile={profile},level=(string)3,stream-format=avc,alignment=au");
            let made = form.parse::<gst::Caps>().expect("caps");
            assert!(made.can_intersect(&offered), "{profile}");
            let told = in_common(made).structure(0).expect("a structure").to_string();
            assert!(told.contains("profile=(string)high,") && !told.contains("level"), "{told}");
        }
        let main = "video/x-h264,profile=main,stream-format=avc,alignment=au".parse::<gst::Caps>().expect("caps");
        assert!(!main.can_intersect(&offered));
    }

    #[test]
    fn parameter_sets_are_taken_out_of_a_sample() {
        crate::init().expect("GStreamer");
        const UNITS: [&[u8]; 5] = [&[32 << 1, 1, 9], &[33 << 1, 1], &[34 << 1, 1, 7, 7], &[39 << 1, 1], &[19 << 1, 1, 3]];
        let [vps, sps, pps, sei, idr] = UNITS;
        let without = |units: &[&[u8]]| without_parameter_sets(&gst::Buffer::from_slice(sample(units)));
        assert_eq!(without(&[vps, sps, pps, sei, idr]), Some(sample(&[sei, idr])));
        assert_eq!(without(&[sei, idr]), None, "nothing to take out");
        assert_eq!(without(&[idr]), None);
        assert_eq!(without(&[vps, sps, pps, idr, idr]), Some(sample(&[idr, idr])));
    }
}
