//! The encoder of a rung, and what its stream is to look like.
//!
//! A rung's quality is a number on x264's scale. What the other encoders call the same was measured: as good by VMAF, over
//! qualities of 18 to 33 (README has figures).

use farm::Failure;
use farm::job::VideoCodec;
use farm::plan::{RateControl, Rung};
use gst::prelude::*;

use crate::source::{element, internal};

/// The elements from frames to what `cmafmux` takes, with a key frame at every `gop_frames` and nowhere else.
///
/// # Errors
/// When an element is missing, or the rung is not one to encode.
pub fn picture_encoder(rung: &Rung, gop_frames: u32) -> Result<Vec<gst::Element>, Failure> {
    let (elements, caps) = match rung.codec {
        VideoCodec::H264 => (vec![x264(rung, gop_frames)?], "video/x-h264,profile=high"),
        VideoCodec::Hevc => (vec![x265(rung, gop_frames)?, hevc_parser()?], "video/x-h265,stream-format=hvc1,alignment=au"),
        VideoCodec::Av1 => {
            (vec![aom(rung, gop_frames)?, element("av1parse")?], "video/x-av1,stream-format=obu-stream,alignment=tu")
        }
    };
    let stream = element("capsfilter")?;
    stream.set_property("caps", caps.parse::<gst::Caps>().map_err(internal)?);
    Ok(elements.into_iter().chain([stream]).collect())
}

/// Makes the first key frame of a chunk as good as the others. By constant quality x264 (core 164) gives it no more bits than a
/// frame that refers to others: three steps of its scale too few, seen at every joint (-4 VMAF, for half a second). The
/// factor is x264's own between the two kinds (`ipratio`).
const FIRST_AS_OTHERS: &str = ":zones=0,0,b=1.4";

fn kbit(bits: u32) -> u32 {
    bits.div_ceil(1000).max(1)
}

fn copied() -> Failure {
    internal("a rung that is copied is not encoded")
}

fn x264(rung: &Rung, gop_frames: u32) -> Result<gst::Element, Failure> {
    let x264 = element("x264enc")?;
    let mut options = "scenecut=0".to_owned();
    x264.set_property_from_str("speed-preset", "veryfast");
    x264.set_property("threads", rung.threads.get());
    x264.set_property("key-int-max", gop_frames);
    match rung.rate_control {
        RateControl::CappedQuality { quality, max_bitrate } => {
            x264.set_property_from_str("pass", "qual");
            x264.set_property("quantizer", quality);
            x264.set_property("bitrate", kbit(max_bitrate));
            x264.set_property("vbv-buf-capacity", 2000_u32);
            options.push_str(FIRST_AS_OTHERS);
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
            let (cap, quality) = (kbit(max_bitrate), (quality as f32 + HEVC_STEPS).min(HEVC_WORST));
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

/// Brings the encoder's stream into the form of `hvc1`, whose parameter sets stand in the sample entry and nowhere else. The
/// parser leaves the encoder's at each chunk's start, which Apple's players do not want.
fn hevc_parser() -> Result<gst::Element, Failure> {
    let parser = element("h265parse")?;
    let pad = parser.static_pad("src").ok_or_else(|| internal("h265parse has no source pad"))?;
    pad.add_probe(gst::PadProbeType::BUFFER, |_, info| {
        if let Some(buffer) = info.buffer_mut()
            && let Some(rest) = without_parameter_sets(buffer)
        {
            let sample = buffer.make_mut();
            sample.remove_all_memory();
            sample.append_memory(gst::Memory::from_slice(rest));
        }
        gst::PadProbeReturn::Ok
    });
    Ok(parser)
}

/// The sample without its parameter sets; nothing when it has none. A unit's length has four bytes here.
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
        // Three of its steps for two of x264's; with bits to spare, none better than asked for.
        RateControl::CappedQuality { quality, max_bitrate } => ((3 * quality).saturating_sub(11) / 2, max_bitrate),
        RateControl::Average { bitrate, .. } => (AOM_BEST, bitrate),
        RateControl::Copied { .. } => return Err(copied()),
    };
    aom.set_property("min-quantizer", best.clamp(AOM_BEST, AOM_WORST));
    aom.set_property("max-quantizer", AOM_WORST);
    aom.set_property("target-bitrate", kbit(target));
    Ok(aom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(units: &[&[u8]]) -> Vec<u8> {
        units.iter().flat_map(|unit| [&(unit.len() as u32).to_be_bytes()[..], unit].concat()).collect()
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
