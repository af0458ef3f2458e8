//! Whether an encoder makes what it is given: right frames, key frames where they belong, one set of parameters, and pictures
//! that are like the original. Devices are known to give out something else without a word.
//!
//! ```text
//! frames → a few kept → encoder → counted, packets of some GOPs kept → muxer
//!                                      └→ at the end: decoded in software, counted again, and compared
//! ```
//! Of frames is kept what is coarse of them, see [`crate::alike`]: less than 100 KiB each.
//!
//! The muxer would take a key frame in the middle of a GOP as it comes. Other parameter sets it refuses, but not in words.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farm::{Code, Failure};
use gst::prelude::*;

use crate::alike::{Coarse, Frame, Pixels};
use crate::copy::Stopped;
use crate::source::{codec_name, decoder_for, element, internal};

/// How long a pull waits before it looks at what the pipeline has said.
const PULL_WAIT: gst::ClockTime = gst::ClockTime::from_mseconds(100);
/// Longest time in which nothing comes out of a pipeline that works.
const SILENCE_MAX: gst::ClockTime = gst::ClockTime::from_seconds(10);
/// What the header tells of a stream: none of it may change within.
const SETTLED: [&str; 6] = ["codec_data", "profile", "level", "tier", "width", "height"];

/// How much of a stream is decoded again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything, and single pixels are compared, too: the pictures are easy ones of ours, and there are bits to spare.
    Whole,
    /// The first GOP and the last.
    Ends,
}

impl Part {
    /// The frames that are decoded, in stretches that begin with a key frame.
    fn stretches(self, frames: u64, gop_frames: u64) -> Vec<Range<u64>> {
        let gop_frames = gop_frames.max(1);
        let last_start = frames.saturating_sub(1) / gop_frames * gop_frames;
        let (whole, first) = (0..frames, 0..gop_frames.min(frames));
        match self {
            Self::Whole => vec![whole],
            Self::Ends if last_start == 0 => vec![first],
            Self::Ends => vec![first, last_start..frames],
        }
    }
}

/// The frames of a stretch that are compared.
fn compared(stretch: &Range<u64>) -> [u64; 3] {
    [stretch.start, stretch.start + (stretch.end - stretch.start) / 2, stretch.end.saturating_sub(1)]
}

/// The frame that shows how much changes about another: of a GOP's first one the next, for there the scene may be new, and of
/// any other the one before.
fn beside(number: u64, gop_frames: u64) -> u64 {
    if number.is_multiple_of(gop_frames) { number + 1 } else { number - 1 }
}

/// Watches an encoder.
pub struct Likeness(Arc<Mutex<Seen>>);

/// What was seen of an encoder's work.
struct Seen {
    /// Frames that there are to be, and of each GOP.
    frames: u64,
    gop_frames: u64,
    stretches: Vec<Range<u64>>,
    part: Part,
    went_in: u64,
    came_out: u64,
    /// What is coarse of the frames to compare with, and of those beside them.
    originals: BTreeMap<u64, Coarse>,
    /// Pixels of the frames to compare with, where those are compared.
    pixels: BTreeMap<u64, Pixels>,
    /// Packets of the stretches, in order of decoding.
    packets: BTreeMap<u64, gst::Buffer>,
    /// What the packets are.
    caps: Option<gst::Caps>,
    /// The first thing that was wrong.
    fault: Option<Failure>,
}

impl Likeness {
    /// Watches what goes into the first of these elements, raw, and comes out of the last, before any of it flows. It is to be
    /// so many frames, with a key frame every `gop_frames` and nowhere else.
    ///
    /// # Errors
    /// When the elements have no such ends.
    pub fn watch(chain: &[gst::Element], frames: u64, gop_frames: u32, part: Part) -> Result<Self, Failure> {
        let inlet = chain.first().and_then(|first| first.static_pad("sink"));
        let outlet = chain.last().and_then(|last| last.static_pad("src"));
        let (Some(inlet), Some(outlet)) = (inlet, outlet) else { return Err(unlike("it has no way in, or none out")) };
        let gop_frames = u64::from(gop_frames.max(1));
        let seen = Arc::new(Mutex::new(Seen {
            frames,
            gop_frames,
            stretches: part.stretches(frames, gop_frames),
            part,
            went_in: 0,
            came_out: 0,
            originals: BTreeMap::new(),
            pixels: BTreeMap::new(),
            packets: BTreeMap::new(),
            caps: None,
            fault: None,
        }));
        let before = Arc::clone(&seen);
        inlet.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            if let (Some(frame), Some(caps)) = (info.buffer(), pad.current_caps()) {
                lock(&before).take_frame(frame, &caps);
            }
            gst::PadProbeReturn::Ok
        });
        let after = Arc::clone(&seen);
        outlet.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            if let Some(packet) = info.buffer() {
                lock(&after).take_packet(packet);
            } else if let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view()) {
                lock(&after).take_caps(caps.caps_owned());
            }
            gst::PadProbeReturn::Ok
        });
        Ok(Self(seen))
    }

    /// Looks at what was made, once all of it has come out.
    ///
    /// # Errors
    /// [`Code::EncoderFailed`] when it is not what it is to be.
    pub fn check(&self) -> Result<(), Failure> {
        let seen = lock(&self.0);
        if let Some(fault) = &seen.fault {
            return Err(fault.clone());
        }
        if seen.came_out != seen.frames {
            return Err(unlike(format!("{} of {} frames came out", seen.came_out, seen.frames)));
        }
        seen.stretches.iter().try_for_each(|stretch| seen.compare(stretch))
    }

    /// What the muxer was told of the stream.
    pub fn told(&self) -> Option<gst::Caps> {
        lock(&self.0).caps.clone()
    }
}

impl Seen {
    fn take_frame(&mut self, frame: &gst::Buffer, caps: &gst::Caps) {
        let number = self.went_in;
        self.went_in += 1;
        let is_wanted = |compared: u64| number == compared || number == beside(compared, self.gop_frames);
        if !self.stretches.iter().flat_map(compared).any(is_wanted) {
            return;
        }
        let picture = gst::Sample::builder().buffer(frame).caps(caps).build();
        if let Err(failure) = self.keep(number, &picture) {
            self.fail(failure);
        }
    }

    fn keep(&mut self, number: u64, picture: &gst::Sample) -> Result<(), Failure> {
        self.originals.insert(number, Coarse::of(picture)?);
        if self.part == Part::Whole && self.is_compared(number) {
            self.pixels.insert(number, Pixels::of(picture)?);
        }
        Ok(())
    }

    fn is_compared(&self, number: u64) -> bool {
        self.stretches.iter().any(|stretch| compared(stretch).contains(&number))
    }

    fn take_packet(&mut self, packet: &gst::BufferRef) {
        let number = self.came_out;
        self.came_out += 1;
        let is_key = !packet.flags().contains(gst::BufferFlags::DELTA_UNIT);
        if is_key != number.is_multiple_of(self.gop_frames) {
            let what = if is_key { "is a key frame, and is to be none" } else { "is to be a key frame, and is none" };
            self.fail(unlike(format!("frame {number} {what}")));
        }
        if !self.stretches.iter().any(|stretch| stretch.contains(&number)) {
            return;
        }
        // Copied: some devices have only a few buffers to put packets in.
        match packet.copy_deep() {
            Ok(packet) => drop(self.packets.insert(number, packet)),
            Err(error) => self.fail(internal(error)),
        }
    }

    fn take_caps(&mut self, caps: gst::Caps) {
        let goes_on = self.caps.as_ref().is_none_or(|first| settled(first) == settled(&caps));
        if !goes_on && self.came_out > 0 {
            self.fail(unlike("its parameter sets change"));
        }
        self.caps = Some(caps);
    }

    fn fail(&mut self, failure: Failure) {
        self.fault.get_or_insert(failure);
    }

    /// Decodes a stretch, and compares some of its frames.
    fn compare(&self, stretch: &Range<u64>) -> Result<(), Failure> {
        let caps = self.caps.as_ref().ok_or_else(|| unlike("it does not say what it makes"))?;
        let packets = self.packets.range(stretch.clone()).map(|(_, packet)| packet.clone());
        let mut number = stretch.start;
        decode(caps, packets, |picture| {
            if picture.buffer().is_some_and(|buffer| buffer.flags().contains(gst::BufferFlags::CORRUPTED)) {
                return Err(unlike(format!("frame {number} is damaged")));
            }
            if self.is_compared(number) {
                self.look(number, picture)?;
            }
            number += 1;
            Ok(())
        })?;
        if number != stretch.end {
            let (decoded, wanted) = (number - stretch.start, stretch.end - stretch.start);
            return Err(unlike(format!("{decoded} of {wanted} frames decode")));
        }
        Ok(())
    }

    /// Compares a picture with what went in.
    fn look(&self, number: u64, picture: &gst::Sample) -> Result<(), Failure> {
        let Some(original) = self.originals.get(&number) else { return Ok(()) };
        let frame = if number.is_multiple_of(self.gop_frames) { Frame::Key } else { Frame::Other };
        let beside = self.originals.get(&beside(number, self.gop_frames));
        if Coarse::of(picture)?.is_another_than(original, beside, frame) {
            return Err(unlike(format!("frame {number} is not what went in")));
        }
        if let Some(original) = self.pixels.get(&number)
            && !Pixels::of(picture)?.is_near(original)
        {
            return Err(unlike(format!("frame {number} is far from what went in")));
        }
        Ok(())
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unlike(why: impl Into<String>) -> Failure {
    Failure::new(Code::EncoderFailed, why)
}

/// What is settled by a stream's header.
fn settled(caps: &gst::CapsRef) -> [Option<String>; 6] {
    SETTLED.map(|field| Some(caps.structure(0)?.value(field).ok()?.serialize().ok()?.to_string()))
}

/// Decodes packets in software; hands out each picture, in order of time.
fn decode(
    caps: &gst::Caps,
    packets: impl Iterator<Item = gst::Buffer>,
    mut each: impl FnMut(&gst::Sample) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let missing = || {
        let codec = codec_name(caps);
        let message = format!("there is no decoder in software for {codec}: see that gstreamer1.0-libav is installed");
        Failure::new(Code::MissingElement, message)
    };
    let (decoder, convert) = (decoder_for(caps).ok_or_else(missing)?, element("videoconvert")?);
    let raw = gst::Caps::builder("video/x-raw").field("format", "I420").build();
    let source = gst_app::AppSrc::builder().format(gst::Format::Time).caps(caps).max_bytes(0).build();
    let sink = gst_app::AppSink::builder().sync(false).caps(&raw).max_buffers(2).enable_last_sample(false).build();
    let stopped = Stopped(gst::Pipeline::new());
    let chain: [gst::Element; 4] = [source.clone().upcast(), decoder, convert, sink.clone().upcast()];
    stopped.0.add_many(&chain).and_then(|()| gst::Element::link_many(&chain)).map_err(internal)?;
    play(&stopped.0)?;
    // Refused only by a pipeline that has failed, which is found at the end.
    packets.for_each(|packet| {
        let _ = source.push_buffer(packet);
    });
    let _ = source.end_of_stream();
    let mut said = None;
    let drained = drain(&stopped.0, &sink, |picture| each(picture).inspect_err(|failure| said = Some(failure.clone())));
    drained.map_err(|failure| said.unwrap_or_else(|| unlike(format!("what it makes does not decode: {failure}"))))
}

/// Starts a pipeline.
///
/// # Errors
/// [`Code::EncoderFailed`] when it does not start, with what it says.
pub fn play(pipeline: &gst::Pipeline) -> Result<(), Failure> {
    let started = pipeline.set_state(gst::State::Playing);
    started.map(|_| ()).map_err(|error| posted(pipeline).unwrap_or_else(|| unlike(error.to_string())))
}

/// Pulls everything out of a pipeline that has been started.
///
/// # Errors
/// [`Code::EncoderFailed`] when it fails or nothing more comes before its end; what `each` says.
pub fn drain(
    pipeline: &gst::Pipeline,
    sink: &gst_app::AppSink,
    mut each: impl FnMut(&gst::Sample) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut silence = gst::ClockTime::ZERO;
    while silence < SILENCE_MAX {
        if let Some(sample) = sink.try_pull_sample(PULL_WAIT) {
            each(&sample)?;
            silence = gst::ClockTime::ZERO;
            continue;
        }
        if let Some(failure) = posted(pipeline) {
            return Err(failure);
        }
        if sink.is_eos() {
            return Ok(());
        }
        silence += PULL_WAIT;
    }
    Err(unlike("nothing more comes out of it"))
}

/// The error that a pipeline has posted, if one.
fn posted(pipeline: &gst::Pipeline) -> Option<Failure> {
    let message = pipeline.bus()?.pop_filtered(&[gst::MessageType::Error])?;
    match message.view() {
        gst::MessageView::Error(error) => Some(unlike(error.error().to_string())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use farm::job::VideoCodec;
    use farm::plan::{RateControl, Rung};

    use super::*;
    use crate::encoders::{pass, pictures, rung};
    use crate::picture_encoder::{Maker, picture_encoder};

    const SIZE: (u32, u32) = (320, 180);
    const FRAMES: u32 = 60;
    const GOP: u32 = 25;

    /// An encoder whose key frames are so far apart.
    fn encoder(gop_frames: u32) -> Vec<gst::Element> {
        crate::init().expect("GStreamer");
        picture_encoder(&rung(VideoCodec::H264, SIZE), gop_frames, Maker::Software).expect("an encoder")
    }

    /// One that makes key frames every 25 frames, of this size, with this quality and this cap.
    fn encoder_of(size: (u32, u32), quality: u16, max_bitrate: u32) -> Vec<gst::Element> {
        crate::init().expect("GStreamer");
        let rate_control = RateControl::CappedQuality { quality: farm::Quality::of_tenths(10 * quality), max_bitrate };
        let rung = Rung { rate_control, ..rung(VideoCodec::H264, size) };
        picture_encoder(&rung, GOP, Maker::Software).expect("an encoder")
    }

    /// Pictures of this size by a name that `videotestsrc` has for them.
    fn showing(pattern: &str, size: (u32, u32)) -> [gst::Element; 2] {
        let feed = pictures(size, FRAMES).expect("pictures");
        feed[0].set_property_from_str("pattern", pattern);
        feed
    }

    /// What there is to say about an encoder that is to make key frames every 25 frames.
    fn verdict(chain: &[gst::Element], part: Part) -> Result<(), String> {
        verdict_on(&pictures(SIZE, FRAMES).expect("pictures"), chain, part)
    }

    fn verdict_on(feed: &[gst::Element], chain: &[gst::Element], part: Part) -> Result<(), String> {
        let likeness = Likeness::watch(chain, FRAMES.into(), GOP, part).expect("an encoder");
        pass(feed, chain).expect("all is encoded");
        likeness.check().map_err(|failure| {
            assert_eq!(failure.code, Code::EncoderFailed);
            failure.message
        })
    }

    /// An element that does this to packets, by their number; false drops one.
    fn spoiler(spoil: impl Fn(u64, &mut gst::Buffer) -> bool + Send + Sync + 'static) -> gst::Element {
        crate::init().expect("GStreamer");
        let element = element("identity").expect("identity");
        let count = AtomicU64::new(0);
        let pad = element.static_pad("sink").expect("a pad");
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let number = count.fetch_add(1, Ordering::Relaxed);
            let is_left = info.buffer_mut().is_none_or(|packet| spoil(number, packet));
            if is_left { gst::PadProbeReturn::Ok } else { gst::PadProbeReturn::Handled }
        });
        element
    }

    #[test]
    fn the_first_gop_and_the_last_are_decoded_or_everything() {
        let whole = 0..60;
        assert_eq!(Part::Whole.stretches(60, 25), [whole]);
        assert_eq!(Part::Ends.stretches(60, 25), [0..25, 50..60]);
        assert_eq!(Part::Ends.stretches(75, 25), [0..25, 50..75]);
        assert_eq!(Part::Ends.stretches(26, 25), [0..25, 25..26]);
        let (only, short) = (0..25, 0..7);
        assert_eq!(Part::Ends.stretches(25, 25), [only]);
        assert_eq!(Part::Ends.stretches(7, 25), [short]);
        assert_eq!([compared(&(0..25)), compared(&(50..60)), compared(&(25..26))], [[0, 12, 24], [50, 55, 59], [25, 25, 25]]);
        assert_eq!([0, 12, 24, 50, 59].map(|number| beside(number, 25)), [1, 11, 23, 51, 58]);
    }

    #[test]
    fn what_an_encoder_makes_well_is_like_the_original() {
        assert_eq!(verdict(&encoder(GOP), Part::Ends), Ok(()));
        assert_eq!(verdict(&encoder(GOP), Part::Whole), Ok(()));
    }

    #[test]
    fn noise_is_known_by_what_few_bits_leave_of_it() {
        let size = (640, 360);
        for max_bitrate in [864_000, 500_000, 200_000] {
            let verdict = verdict_on(&showing("snow", size), &encoder_of(size, 23, max_bitrate), Part::Ends);
            assert_eq!(verdict, Ok(()), "{max_bitrate}");
        }
    }

    #[test]
    fn pictures_that_are_dark_or_flat_or_badly_made_are_known() {
        for pattern in ["smpte100", "snow", "black", "white", "ball", "gradient", "spokes", "colors"] {
            for quality in [23, 50] {
                let verdict = verdict_on(&showing(pattern, SIZE), &encoder_of(SIZE, quality, 576_000), Part::Ends);
                assert_eq!(verdict, Ok(()), "{pattern} {quality}");
            }
        }
        let night = showing("solid-color", SIZE);
        night[0].set_property("foreground-color", 0xFF10_2018_u32);
        assert_eq!(verdict_on(&night, &encoder_of(SIZE, 50, 576_000), Part::Ends), Ok(()));
    }

    #[test]
    fn other_pictures_are_told_from_the_original() {
        const LUMA: usize = 320 * 180;
        type Spoil = fn(&mut [u8]);
        let rubbish: [(&str, Spoil); 8] = [
            ("grey", |levels| levels.fill(128)),
            ("green", |levels| levels.fill(0)),
            ("its lower half grey", |levels| levels[LUMA / 2..LUMA].fill(128)),
            ("without colours", |levels| levels[LUMA..].fill(128)),
            ("with colours swapped", |levels| levels[LUMA..].rotate_left(LUMA / 4)),
            ("too bright", |levels| levels[..LUMA].iter_mut().for_each(|level| *level = level.saturating_add(25))),
            ("moved", |levels| levels[..LUMA].rotate_left(32 * 320 + 32)),
            ("turned", |levels| levels[..LUMA].reverse()),
        ];
        for (what, spoil) in rubbish {
            let spoiled = spoiler(move |_, frame| {
                spoil(frame.make_mut().map_writable().expect("it can be written").as_mut_slice());
                true
            });
            // The first element is where it is seen what goes in.
            let ahead = [element("identity").expect("identity"), spoiled];
            let chain: Vec<gst::Element> = ahead.into_iter().chain(encoder(GOP)).collect();
            assert_eq!(verdict(&chain, Part::Ends), Err("frame 0 is not what went in".to_owned()), "{what}");
        }
    }

    #[test]
    fn of_easy_pictures_the_pixels_are_to_be_right() {
        for (part, said) in [(Part::Ends, Ok(())), (Part::Whole, Err("frame 0 is far from what went in".to_owned()))] {
            crate::init().expect("GStreamer");
            let brighter = element("videobalance").expect("videobalance");
            // Ten levels.
            brighter.set_property("brightness", 0.04_f64);
            let chain: Vec<gst::Element> = [brighter].into_iter().chain(encoder(GOP)).collect();
            assert_eq!(verdict(&chain, part), said);
        }
    }

    #[test]
    fn frames_that_are_missing_or_do_not_decode_are_missed() {
        let with = |spoiler: gst::Element| encoder(GOP).into_iter().chain([spoiler]).collect::<Vec<_>>();
        let early = verdict(&with(spoiler(|number, _| number != 10)), Part::Ends);
        assert_eq!(early, Err("frame 24 is a key frame, and is to be none".to_owned()));
        let late = verdict(&with(spoiler(|number, _| number != 59)), Part::Ends);
        assert_eq!(late, Err("59 of 60 frames came out".to_owned()));
        let broken = with(spoiler(|number, packet| {
            if number >= 50 {
                let bytes = vec![0; packet.size()];
                let packet = packet.make_mut();
                packet.remove_all_memory();
                packet.append_memory(gst::Memory::from_slice(bytes));
            }
            true
        }));
        assert!(verdict(&broken, Part::Ends).is_err());
    }

    #[test]
    fn key_frames_are_to_be_where_they_belong() {
        assert_eq!(verdict(&encoder(20), Part::Ends), Err("frame 20 is a key frame, and is to be none".to_owned()));
        assert_eq!(verdict(&encoder(50), Part::Ends), Err("frame 25 is to be a key frame, and is none".to_owned()));
    }
}
