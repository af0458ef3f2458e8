//! How the encoders of devices are set up to do what a rung asks for.
//!
//! A rung's quality is a number on x264's scale. This is taken for the same by each family; none of it was measured on a
//! device:
//!
//! | Family | What is set | H.264 | HEVC | AV1 |
//! |---|---|---|---|---|
//! | NVENC | the quality that `vbr` aims at | the same number | 2 more | libaom's number, at most 51 |
//! | VA-API | the quality that `qvbr` aims at, and the least quantizer | the same number | 2 more | 4 times libaom's number |
//! | Quick Sync | the least quantizer of `vbr` | the same number | 2 more | none: the element has no such property |
//! | V4L2 | the least quantizer of its variable rate | the same number | 2 more | there is no such encoder |
//!
//! Where there is no quality to aim at, a least quantizer comes near to it: with bits to spare, no frame is better than asked
//! for. Key frames may be three steps better, as x264's are.
//!
//! GOPs are closed and of one length, and have no B-frames: how far a device reorders frames, and whether it does so across key
//! frames, was not measured, and without there is nothing to reorder. No key frames are put where scenes change: that takes
//! lookahead, which is off.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use farm::encoder::Device;
use farm::job::VideoCodec;
use farm::plan::{RateControl, Rung};
use farm::{Class, Code, Failure};
use gst::glib;
use gst::prelude::*;

use crate::encoders::{element_of, encoder_on, name_of};
use crate::picture_encoder::{copied, kbit, on_aom_scale};
use crate::source::internal;

/// Steps that the scale for HEVC lies above the one for H.264; x265's was measured to lie 2.5 above.
const HEVC_STEPS: u32 = 2;
/// The end of the scale of both.
const QUALITY_WORST: u32 = 51;
/// Steps that key frames may be better than asked for.
const KEY_FRAME_STEPS: u32 = 3;
/// Average rate that is aimed at where a quality is asked for and there is none to aim at, in percent of the cap.
const SHARE_PERCENT: u64 = 66;
/// Highest rate in kbit/s that Quick Sync's AV1 encoder can be told.
const QSV_AV1_KBIT_MAX: u32 = 65_535;

/// A device's encoder for a rung, which makes a key frame of every so many frames and of no other.
///
/// # Errors
/// When there is no such encoder, or it lacks a property that it takes.
pub fn encoder(device: &Device, rung: &Rung, gop_frames: u32) -> Result<gst::Element, Failure> {
    let recipe = recipe(device, rung, gop_frames)?;
    let encoder = encoder_on(device, name_of(rung.codec))?;
    recipe.settings.iter().try_for_each(|setting| setting.apply(&encoder))?;
    force_key_frames(&encoder, gop_frames)?;
    Ok(encoder)
}

/// What an encoder is, and how it is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The element, by its factory's name.
    pub element: String,
    /// What is set.
    pub settings: Vec<Setting>,
}

/// A property of an element, and what it is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The property.
    pub name: &'static str,
    /// Values as text, in order of preference: the first that the element takes.
    pub values: Vec<String>,
    /// Whether an element that takes none of them is refused.
    pub is_needed: bool,
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.element)?;
        self.settings.iter().try_for_each(|setting| write!(f, " {setting}"))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.is_needed { "" } else { "?" };
        write!(f, "{}{mark}={}", self.name, self.values.join("|"))
    }
}

/// What must be set.
fn needed(name: &'static str, value: impl ToString) -> Setting {
    Setting { name, values: vec![value.to_string()], is_needed: true }
}

/// What must be set, to the first of these that is known.
fn one_of(name: &'static str, values: [&str; 2]) -> Setting {
    Setting { name, values: values.map(str::to_owned).to_vec(), is_needed: true }
}

/// What is set where it is there.
fn wanted(name: &'static str, value: impl ToString) -> Setting {
    Setting { is_needed: false, ..needed(name, value) }
}

/// What a rung asks of an encoder's rate control, in bit/s.
struct Aim {
    /// On x264's scale, if that is what is asked for.
    quality: Option<u32>,
    average: u32,
    cap: u32,
    /// Over how many seconds the cap is.
    cap_seconds: u32,
}

impl Aim {
    fn of(rate_control: RateControl) -> Result<Self, Failure> {
        match rate_control {
            RateControl::CappedQuality { quality, max_bitrate: cap } => {
                let average = u64::from(cap) * SHARE_PERCENT / 100;
                let average = u32::try_from(average).unwrap_or(cap);
                Ok(Self { quality: Some(quality.whole()), average, cap, cap_seconds: 2 })
            }
            RateControl::Average { bitrate, max_bitrate } => {
                Ok(Self { quality: None, average: bitrate, cap: max_bitrate.max(bitrate), cap_seconds: 1 })
            }
            RateControl::Copied { .. } => Err(copied()),
        }
    }

    /// The quality on the codec's scale, and what key frames may have.
    fn quality_for(&self, codec: VideoCodec) -> Option<(u32, u32)> {
        let scaled = |quality: u32| match codec {
            VideoCodec::H264 => quality.clamp(1, QUALITY_WORST),
            VideoCodec::Hevc => (quality + HEVC_STEPS).min(QUALITY_WORST),
            VideoCodec::Av1 => on_aom_scale(quality),
        };
        self.quality.map(|quality| (scaled(quality), scaled(quality.saturating_sub(KEY_FRAME_STEPS))))
    }

    /// The average rate in percent of the cap, as far as VA-API's elements take it. Rounded up: the cap comes of both.
    fn percent(&self) -> u64 {
        (u64::from(self.average) * 100).div_ceil(u64::from(self.cap.max(1))).clamp(50, 100)
    }
}

/// How the encoder of a device is set up for a rung.
///
/// # Errors
/// When the device has none for its codec, or the rung is not one to encode.
pub fn recipe(device: &Device, rung: &Rung, gop_frames: u32) -> Result<Recipe, Failure> {
    let aim = Aim::of(rung.rate_control)?;
    let none = || {
        let message = format!("{device} has no encoder for {}", name_of(rung.codec));
        Failure::new(Code::MissingElement, message)
    };
    let element = element_of(device, name_of(rung.codec)).ok_or_else(none)?;
    let settings = match device.class {
        Class::Cpu => return Err(none()),
        Class::Nvenc => nvenc(rung.codec, &aim, gop_frames),
        Class::Vaapi => vaapi(rung.codec, &aim, gop_frames),
        Class::Qsv => qsv(rung.codec, &aim, gop_frames),
        Class::V4l2 => v4l2(rung.codec, &aim, gop_frames),
    };
    Ok(Recipe { element, settings })
}

fn nvenc(codec: VideoCodec, aim: &Aim, gop_frames: u32) -> Vec<Setting> {
    // Its kilobits have 1024 bits each.
    let kibit = |bits: u32| (bits / 1024).max(1);
    let rate = match aim.quality_for(codec) {
        Some((quality, _)) => needed("const-quality", quality.min(QUALITY_WORST)),
        None => needed("bitrate", kibit(aim.average)),
    };
    vec![
        needed("rc-mode", "vbr"),
        rate,
        needed("max-bitrate", kibit(aim.cap)),
        wanted("vbv-buffer-size", kibit(aim.cap).saturating_mul(aim.cap_seconds)),
        needed("gop-size", gop_frames),
        wanted("bframes", 0),
        wanted("strict-gop", true),
        wanted("i-adapt", false),
        // The elements before 1.24 know only the older names.
        Setting { is_needed: false, ..one_of("preset", ["p4", "hq"]) },
        wanted("spatial-aq", true),
        wanted("aud", false),
    ]
}

fn vaapi(codec: VideoCodec, aim: &Aim, gop_frames: u32) -> Vec<Setting> {
    // Of these an element has those that its driver has.
    let modes = if aim.quality.is_some() { ["qvbr", "vbr"] } else { ["vbr", "cbr"] };
    let mut settings = vec![
        one_of("rate-control", modes),
        needed("bitrate", kbit(aim.average)),
        wanted("target-percentage", aim.percent()),
        wanted("cpb-size", kbit(aim.cap).saturating_mul(aim.cap_seconds)),
        needed("key-int-max", gop_frames),
    ];
    let qualities = aim.quality_for(codec);
    if codec == VideoCodec::Av1 {
        // No frame refers to a later one.
        settings.push(wanted("hierarchical-level", 1));
        // The index that quantizers have in the stream, of which libaom's numbers are every fourth.
        let qualities = qualities.map(|(quality, key)| [wanted("qp", 4 * quality), wanted("min-qp", 4 * key)]);
        settings.extend(qualities.into_iter().flatten());
    } else {
        settings.extend([wanted("b-frames", 0), wanted("i-frames", 0), wanted("aud", false)]);
        let qualities = qualities.map(|(quality, key)| [wanted("qpi", quality), wanted("qpp", quality), wanted("min-qp", key)]);
        settings.extend(qualities.into_iter().flatten());
    }
    settings
}

fn qsv(codec: VideoCodec, aim: &Aim, gop_frames: u32) -> Vec<Setting> {
    let kbit = |bits: u32| if codec == VideoCodec::Av1 { kbit(bits).min(QSV_AV1_KBIT_MAX) } else { kbit(bits) };
    let mut settings = vec![
        // Not `icq`, which has no cap, nor `qvbr`, which not every device has.
        needed("rate-control", "vbr"),
        needed("bitrate", kbit(aim.average)),
        needed("max-bitrate", kbit(aim.cap)),
        needed("gop-size", gop_frames),
    ];
    match codec {
        // Every I-frame is an IDR frame: said otherwise for each.
        VideoCodec::H264 => settings.extend([wanted("idr-interval", 0), wanted("b-frames", 0)]),
        VideoCodec::Hevc => settings.extend([wanted("idr-interval", 1), wanted("b-frames", 0)]),
        VideoCodec::Av1 => return settings,
    }
    let qualities = aim.quality_for(codec).map(|(quality, key)| [wanted("min-qp-i", key), wanted("min-qp-p", quality)]);
    settings.extend(qualities.into_iter().flatten());
    settings
}

fn v4l2(codec: VideoCodec, aim: &Aim, gop_frames: u32) -> Vec<Setting> {
    // Controls go by the names that the kernel gives them. Those that a driver does not have are passed over.
    let mut controls = vec![
        ("video_bitrate_mode", 0),
        ("video_bitrate", aim.average),
        ("video_peak_bitrate", aim.cap),
        ("frame_level_rate_control_enable", 1),
        ("video_gop_size", gop_frames),
        ("video_b_frames", 0),
    ];
    let (period, least) = match codec {
        VideoCodec::Hevc => (None, "hevc_minimum_qp_value"),
        VideoCodec::H264 | VideoCodec::Av1 => (Some("h264_i_frame_period"), "h264_minimum_qp_value"),
    };
    controls.extend(period.map(|period| (period, gop_frames)));
    // One for all kinds of frames: the better one.
    controls.extend(aim.quality_for(codec).map(|(_, key)| (least, key)));
    let told: String = controls.iter().map(|(name, value)| format!(",{name}=(int){value}")).collect();
    vec![needed("extra-controls", format!("controls{told}"))]
}

impl Setting {
    /// Sets it, as far as the element has it.
    fn apply(&self, encoder: &gst::Element) -> Result<(), Failure> {
        let property = encoder.find_property(self.name).filter(|spec| spec.flags().contains(glib::ParamFlags::WRITABLE));
        match property.and_then(|spec| self.values.iter().find_map(|text| value(&spec, text))) {
            Some(value) => encoder.set_property_from_value(self.name, &value),
            None if self.is_needed => {
                let values = self.values.join(" or ");
                let message = format!("it has no property '{}' that takes {values}", self.name);
                return Err(Failure::new(Code::EncoderFailed, message));
            }
            None => {}
        }
        Ok(())
    }
}

/// A value that a property takes, from its text. To set any other would end the process.
fn value(spec: &glib::ParamSpec, text: &str) -> Option<glib::Value> {
    let value = glib::Value::deserialize_with_pspec(text, spec).ok()?;
    let is_in_range = if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt>() {
        value.get::<u32>().is_ok_and(|number| (spec.minimum()..=spec.maximum()).contains(&number))
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecInt>() {
        value.get::<i32>().is_ok_and(|number| (spec.minimum()..=spec.maximum()).contains(&number))
    } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecDouble>() {
        value.get::<f64>().is_ok_and(|number| (spec.minimum()..=spec.maximum()).contains(&number))
    } else {
        true
    };
    is_in_range.then_some(value)
}

/// Asks for a key frame before each frame that begins a GOP, but the first, which is one anyway: not every device counts its
/// own GOPs to the frame, and one that does is asked for what it would do.
fn force_key_frames(encoder: &gst::Element, gop_frames: u32) -> Result<(), Failure> {
    let pad = encoder.static_pad("sink").ok_or_else(|| internal("an encoder without a sink pad"))?;
    let (gop_frames, frames) = (u64::from(gop_frames.max(1)), AtomicU64::new(0));
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, _| {
        let frame = frames.fetch_add(1, Ordering::Relaxed);
        if frame > 0 && frame.is_multiple_of(gop_frames) {
            // Without a time: it is meant for the very next frame. One that is not heard shows in what comes out.
            pad.send_event(gst_video::DownstreamForceKeyUnitEvent::builder().all_headers(true).build());
        }
        gst::PadProbeReturn::Ok
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::encoders::{pass, pictures, rung};
    use crate::source::element;

    const QUALITY: RateControl = RateControl::CappedQuality { quality: farm::Quality::USUAL, max_bitrate: 3_000_000 };
    const AVERAGE: RateControl = RateControl::Average { bitrate: 2_000_000, max_bitrate: 3_000_000 };

    fn told(class: Class, codec: VideoCodec, rate_control: RateControl) -> String {
        let device = Device { class, number: 0, node: "/dev/stand-in".into() };
        let rung = Rung { rate_control, ..rung(codec, (1280, 720)) };
        recipe(&device, &rung, 50).map_or_else(|failure| failure.message, |recipe| recipe.to_string())
    }

    #[test]
    fn nvenc_aims_at_a_quality_or_an_average() {
        let rest = "gop-size=50 bframes?=0 strict-gop?=true i-adapt?=false preset?=p4|hq spatial-aq?=true aud?=false";
        for (codec, element, quality) in
            [(VideoCodec::H264, "nvh264enc", 23), (VideoCodec::Hevc, "nvh265enc", 25), (VideoCodec::Av1, "nvav1enc", 29)]
        {
            let wanted = format!("{element} rc-mode=vbr const-quality={quality} max-bitrate=2929 vbv-buffer-size?=5858 {rest}");
            assert_eq!(told(Class::Nvenc, codec, QUALITY), wanted);
            let wanted = format!("{element} rc-mode=vbr bitrate=1953 max-bitrate=2929 vbv-buffer-size?=2929 {rest}");
            assert_eq!(told(Class::Nvenc, codec, AVERAGE), wanted);
        }
    }

    #[test]
    fn va_api_aims_at_a_quality_where_its_driver_can() {
        let quality = "rate-control=qvbr|vbr bitrate=1980 target-percentage?=66 cpb-size?=6000 key-int-max=50";
        let average = "rate-control=vbr|cbr bitrate=2000 target-percentage?=67 cpb-size?=3000 key-int-max=50";
        let frames = "b-frames?=0 i-frames?=0 aud?=false";
        for (codec, wanted) in [
            (VideoCodec::H264, format!("vah264enc {quality} {frames} qpi?=23 qpp?=23 min-qp?=20")),
            (VideoCodec::Hevc, format!("vah265enc {quality} {frames} qpi?=25 qpp?=25 min-qp?=22")),
            (VideoCodec::Av1, format!("vaav1enc {quality} hierarchical-level?=1 qp?=116 min-qp?=96")),
        ] {
            assert_eq!(told(Class::Vaapi, codec, QUALITY), wanted);
        }
        for (codec, wanted) in [
            (VideoCodec::H264, format!("vah264enc {average} {frames}")),
            (VideoCodec::Hevc, format!("vah265enc {average} {frames}")),
            (VideoCodec::Av1, format!("vaav1enc {average} hierarchical-level?=1")),
        ] {
            assert_eq!(told(Class::Vaapi, codec, AVERAGE), wanted);
        }
    }

    #[test]
    fn quick_sync_spends_no_more_than_a_quality_takes() {
        let quality = "rate-control=vbr bitrate=1980 max-bitrate=3000 gop-size=50";
        let average = "rate-control=vbr bitrate=2000 max-bitrate=3000 gop-size=50";
        for (codec, wanted) in [
            (VideoCodec::H264, format!("qsvh264enc {quality} idr-interval?=0 b-frames?=0 min-qp-i?=20 min-qp-p?=23")),
            (VideoCodec::Hevc, format!("qsvh265enc {quality} idr-interval?=1 b-frames?=0 min-qp-i?=22 min-qp-p?=25")),
            (VideoCodec::Av1, format!("qsvav1enc {quality}")),
        ] {
            assert_eq!(told(Class::Qsv, codec, QUALITY), wanted);
        }
        for (codec, wanted) in [
            (VideoCodec::H264, format!("qsvh264enc {average} idr-interval?=0 b-frames?=0")),
            (VideoCodec::Hevc, format!("qsvh265enc {average} idr-interval?=1 b-frames?=0")),
            (VideoCodec::Av1, format!("qsvav1enc {average}")),
        ] {
            assert_eq!(told(Class::Qsv, codec, AVERAGE), wanted);
        }
    }

    #[test]
    fn v4l2_is_told_by_controls() {
        let controls = |average: u32| {
            format!(
                "extra-controls=controls,video_bitrate_mode=(int)0,video_bitrate=(int){average},video_peak_bitrate=(int)3000000,\
                 frame_level_rate_control_enable=(int)1,video_gop_size=(int)50,video_b_frames=(int)0"
            )
        };
        for (codec, element, period, least) in [
            (VideoCodec::H264, "v4l2h264enc", ",h264_i_frame_period=(int)50", ",h264_minimum_qp_value=(int)20"),
            (VideoCodec::Hevc, "v4l2h265enc", "", ",hevc_minimum_qp_value=(int)22"),
        ] {
            let wanted = format!("{element} {}{period}{least}", controls(1_980_000));
            assert_eq!(told(Class::V4l2, codec, QUALITY), wanted);
            assert_eq!(told(Class::V4l2, codec, AVERAGE), format!("{element} {}{period}", controls(2_000_000)));
        }
        assert_eq!(told(Class::V4l2, VideoCodec::Av1, QUALITY), "v4l2 on /dev/stand-in has no encoder for av1");
    }

    #[test]
    fn what_is_needed_is_set_or_refused_and_what_is_wanted_passed_over() {
        crate::init().expect("GStreamer");
        let encoder = element("x264enc").expect("x264");
        assert_eq!(needed("key-int-max", 50).apply(&encoder), Ok(()));
        assert_eq!(encoder.property::<u32>("key-int-max"), 50);
        let failure = needed("const-quality", 23).apply(&encoder).expect_err("no such property");
        assert_eq!(failure.code, Code::EncoderFailed);
        assert_eq!(failure.message, "it has no property 'const-quality' that takes 23");
        assert_eq!(wanted("const-quality", 23).apply(&encoder), Ok(()));
        assert_eq!(one_of("speed-preset", ["p4", "veryfast"]).apply(&encoder), Ok(()));
        assert!(one_of("speed-preset", ["p4", "hq"]).apply(&encoder).is_err());
        assert!(needed("quantizer", 1000).apply(&encoder).is_err(), "out of range");
    }

    #[test]
    fn a_key_frame_is_asked_for_before_each_gop_but_the_first() {
        crate::init().expect("GStreamer");
        let encoder = element("identity").expect("identity");
        force_key_frames(&encoder, 25).expect("a pad");
        let seen: Arc<Mutex<(u32, Vec<u32>)>> = Arc::default();
        let listener = Arc::clone(&seen);
        let pad = encoder.static_pad("src").expect("a pad");
        pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            let mut seen = listener.lock().expect("no panic");
            match info.event() {
                Some(event) if gst_video::ForceKeyUnitEvent::is(event) => {
                    let frames = seen.0;
                    seen.1.push(frames);
                }
                Some(_) => {}
                None => seen.0 += 1,
            }
            gst::PadProbeReturn::Ok
        });
        let passed = pass(&pictures((320, 180), 60).expect("pictures"), &[encoder]);
        assert_eq!(passed, Ok(60));
        assert_eq!(*seen.lock().expect("no panic"), (60, vec![25, 50]));
    }
}
