//! Packets of the source that are handed on as they are, put onto the result's timeline.
//!
//! ```text
//! picture   demuxer → packets (on their way to the decoder) → appsrc → cmafmux → segments
//! sound     demuxer → packets → appsrc → cmafmux → segments, once all of them are known to decode
//! ```

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use farm::plan::{AacCopy, AudioPlan};
use farm::task::Account;
use farm::{Code, Failure, Rate};
use gst::prelude::*;

use crate::audio::JITTER_NS;
use crate::decode::{decode, packets};
use crate::fragment::{Grid, Muxed, Muxer, handed_on};
use crate::mend::Source;
use crate::packets::{configuration, samples_ns, signed_stream_time, without_parameters};
use crate::source::{element, internal, push};
use crate::{AudioOrder, Output};

/// Running time 0 in the pipelines here: room for decode times before it.
const START: gst::ClockTime = gst::ClockTime::from_seconds(60);
/// Packets of sound that wait for the muxer.
const PACKETS_MAX: u64 = 64;

/// A rung that is made of the source's own packets.
pub struct PictureCopy {
    state: Mutex<State>,
    rate: Rate,
    origin_ns: u64,
    frames: std::ops::Range<u64>,
    gop_frames: u64,
    lead_ns: u64,
    pipeline: Stopped,
    source: gst_app::AppSrc,
    ended: Mutex<mpsc::Receiver<Result<Muxed, Failure>>>,
}

/// How far the packets are, which come in order of decoding.
enum State {
    /// None of the chunk has come.
    Before,
    /// So many of the chunk have come.
    Within(u64),
    /// All have come.
    After,
}

impl PictureCopy {
    /// For these frames of a grid whose place 0 is at stream time `origin_ns`.
    ///
    /// # Errors
    /// When an element is missing.
    pub fn start(
        (rate, origin_ns, lead_ns): (Rate, u64, u64),
        (frames, gop_frames): (std::ops::Range<u64>, u32),
        muxer: Muxer,
        output: Arc<dyn Output>,
    ) -> Result<Self, Failure> {
        let (end, ended) = mpsc::channel();
        let (pipeline, source) = pipeline(muxer, output, end, 0)?;
        let (state, ended, gop_frames) = (Mutex::new(State::Before), Mutex::new(ended), u64::from(gop_frames));
        Ok(Self { state, rate, origin_ns, frames, gop_frames, lead_ns, pipeline, source, ended })
    }

    /// Takes the packets that flow on a pad.
    pub fn listen(self: &Arc<Self>, pad: &gst::Pad) {
        let copy = Arc::downgrade(self);
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            if let (Some(copy), Some(packet)) = (copy.upgrade(), info.buffer()) {
                copy.take(pad, packet);
            }
            gst::PadProbeReturn::Ok
        });
    }

    /// A packet that cannot be taken is missed at the end.
    fn take(&self, pad: &gst::Pad, packet: &gst::Buffer) {
        let segment = pad.sticky_event::<gst::event::Segment>(0);
        let segment = segment.as_ref().and_then(|event| event.segment().downcast_ref::<gst::ClockTime>());
        let time = segment.zip(packet.pts()).and_then(|(segment, pts)| signed_stream_time(segment, pts));
        // Rounding may have put the first one a little before 0.
        let own_ns = self.rate.start_ns(1).cast_signed();
        let Some(time_ns) = time.filter(|&ns| ns > -own_ns / 2) else { return };
        let place = self.rate.nearest_frame(time_ns.max(0).cast_unsigned().saturating_sub(self.origin_ns));
        let is_key = !packet.flags().contains(gst::BufferFlags::DELTA_UNIT);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match *state {
            State::Before if is_key && place == self.frames.start => 0,
            State::Within(_) if is_key && place >= self.frames.end => {
                *state = State::After;
                return;
            }
            State::Within(count) => count,
            State::Before | State::After => return,
        };
        *state = State::Within(count + 1);
        let caps = pad.current_caps();
        let mut packet = bare(packet, caps.as_ref()).unwrap_or_else(|| packet.copy());
        let made = packet.make_mut();
        let start = |frame| START + gst::ClockTime::from_nseconds(self.rate.start_ns(frame));
        made.set_pts(start(place));
        made.set_dts(start(self.frames.start + count).saturating_sub(gst::ClockTime::from_nseconds(self.lead_ns)));
        made.set_duration(start(place + 1).saturating_sub(start(place)));
        // Only key frames of the grid begin a fragment.
        if is_key && place.is_multiple_of(self.gop_frames) {
            made.unset_flags(gst::BufferFlags::DELTA_UNIT);
        } else {
            made.set_flags(gst::BufferFlags::DELTA_UNIT);
        }
        let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
        segment.set_start(START);
        let caps = caps.map(picture_caps);
        let sample = gst::Sample::builder().buffer(&packet).segment(&segment);
        let sample = caps.iter().fold(sample, |sample, caps| sample.caps(caps)).build();
        // Refused only by a pipeline that has failed, which is found at the end.
        let _ = self.source.push_sample(&sample);
    }

    /// Waits until the last segment is handed out; counts the frames.
    ///
    /// # Errors
    /// When there are more or fewer packets than frames, or they cannot be handed on.
    pub fn finish(&self) -> Result<(), Failure> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let muxed = end(&self.pipeline.0, &self.source, &ended)?;
        let wanted = self.frames.end - self.frames.start;
        if muxed.samples != wanted {
            let message = format!("the source has {} packets for {wanted} frames that are to be copied", muxed.samples);
            return Err(Failure::new(Code::SourceChanged, message));
        }
        Ok(())
    }
}

/// A packet of H.264 without parameter sets, which the parser puts in; none where there are none.
fn bare(packet: &gst::Buffer, caps: Option<&gst::Caps>) -> Option<gst::Buffer> {
    let parameters = caps?.structure(0)?.get::<gst::Buffer>("codec_data").ok()?;
    let (length_bytes, _) = configuration(&parameters.map_readable().ok()?)?;
    let bytes = without_parameters(&packet.map_readable().ok()?, length_bytes)?;
    let mut made = gst::Buffer::from_mut_slice(bytes);
    made.get_mut()?.set_flags(packet.flags() & gst::BufferFlags::DELTA_UNIT);
    Some(made)
}

/// What is copied is BT.709, said or understood, upright and square: the file is to say so too.
fn picture_caps(caps: gst::Caps) -> gst::Caps {
    let mut caps = caps;
    let made = caps.make_mut();
    made.set("colorimetry", "bt709");
    made.set("pixel-aspect-ratio", gst::Fraction::new(1, 1));
    caps
}

/// Hands on a rendition's packets. `None` when the source's sound does not decode from beginning to end: then it is to be encoded,
/// so that what is damaged is known and concealed.
///
/// # Errors
/// When the source cannot be read, or the packets cannot be handed on.
pub fn sound(order: &AudioOrder, copy: AacCopy, source: &Source, output: &Arc<dyn Output>) -> Result<Option<Account>, Failure> {
    if !decodes(order, source, output.as_ref())? {
        return Ok(None);
    }
    let plan = &order.plan;
    let to_ns = |samples| samples_ns(samples, plan.rate);
    let lead_ticks = Grid::lead_ticks(order.lead_ns, plan.rate);
    let first = lead_ticks.checked_sub(copy.early_samples).ok_or_else(|| internal("the lead is shorter than what is early"))?;
    let grid = Grid {
        timescale: plan.rate,
        sample_ticks: AudioPlan::PACKET_SAMPLES,
        phase_ticks: first % AudioPlan::PACKET_SAMPLES,
        lead_ticks,
        raise_offsets: false,
    };
    let muxer = Muxer {
        rendition: 0,
        grid,
        fragment_ns: plan.segment_ns,
        segments: plan.in_segments(copy.packets).into(),
        first_sequence: 1,
        key_frames_apart: false,
    };
    let (end_of, ended) = mpsc::channel();
    let (pipeline, sink) = pipeline(muxer, Arc::clone(output), end_of, PACKETS_MAX)?;
    let caps = gst::Caps::builder("audio/mpeg").field("mpegversion", 4).field("stream-format", "raw").build();
    let mut stream = packets(source, plan.track, vec![element("aacparse")?], &caps)?;
    let early_ns = to_ns(copy.early_samples.into());
    let first_ns = i64::try_from(order.origin_ns).unwrap_or(i64::MAX).saturating_sub_unsigned(early_ns);
    let half_ns = to_ns(u64::from(AudioPlan::PACKET_SAMPLES) / 2).cast_signed();
    let mut count = 0;
    while count < copy.packets {
        let Some((sample, time_ns)) = stream.next_packet()? else { break };
        if time_ns < first_ns - half_ns {
            continue;
        }
        let mut packet = sample.buffer_owned().ok_or_else(|| internal("a sample without a buffer"))?;
        let start = |n: u64| {
            let samples = u64::from(first) + n * u64::from(AudioPlan::PACKET_SAMPLES);
            START + gst::ClockTime::from_nseconds(to_ns(samples))
        };
        let made = packet.make_mut();
        made.set_pts(start(count));
        made.set_dts(gst::ClockTime::NONE);
        made.set_duration(start(count + 1).saturating_sub(start(count)));
        made.unset_flags(gst::BufferFlags::DELTA_UNIT | gst::BufferFlags::DISCONT | gst::BufferFlags::HEADER);
        if count == 0 {
            let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
            segment.set_start(START);
            sink.set_caps(sample.caps_owned().as_ref());
            sink.push_sample(&gst::Sample::builder().buffer(&packet).segment(&segment).build()).map_err(internal)?;
        } else {
            push(&sink, packet, &|| check(&pipeline.0))?;
        }
        count += 1;
        if count % PACKETS_MAX == 0 {
            output.progress(to_ns(count * u64::from(AudioPlan::PACKET_SAMPLES))).map_err(handed_on)?;
        }
    }
    drop(stream);
    let made = end(&pipeline.0, &sink, &ended)?.samples;
    if made != copy.packets {
        let message = format!("the source has {made} packets of sound of {} that are to be copied", copy.packets);
        return Err(Failure::new(Code::SourceChanged, message));
    }
    Ok(Some(Account { kept: plan.samples, copied: plan.samples, ..Account::default() }))
}

/// Whether a track decodes without a gap as far as it is wanted.
fn decodes(order: &AudioOrder, source: &Source, output: &dyn Output) -> Result<bool, Failure> {
    let plan = &order.plan;
    let to_ns = |samples| samples_ns(samples, plan.rate);
    let wanted_ns = order.origin_ns + to_ns(plan.samples);
    let mut decoded = decode(source, plan.track, 0, Vec::new(), &gst::Caps::new_any())?;
    let mut end_ns: Option<u64> = None;
    // What does not decode is missing at the start, in the middle, or at the end.
    while end_ns.is_none_or(|end_ns| end_ns < wanted_ns) {
        let raw = match decoded.next() {
            Ok(Some(raw)) => raw,
            Ok(None) => break,
            // Nor would encoding go on after that; but what came before would be kept.
            Err(failure) if failure.code == Code::Undecodable => return Ok(false),
            Err(failure) => return Err(failure),
        };
        let info = raw.sample.caps().and_then(|caps| gst_audio::AudioInfo::from_caps(caps).ok());
        let Some(info) = info.filter(|info| (info.rate(), info.channels()) == (plan.rate, plan.channels)) else {
            return Ok(false);
        };
        let buffer = raw.buffer()?;
        let has_gap = match end_ns {
            None => raw.start_ns > order.origin_ns + JITTER_NS,
            Some(end_ns) => end_ns.abs_diff(raw.start_ns) > JITTER_NS,
        };
        if has_gap || buffer.flags().intersects(gst::BufferFlags::CORRUPTED | gst::BufferFlags::GAP) {
            return Ok(false);
        }
        // Counted, not told: what is lost shows in the sum.
        let samples = (buffer.size() / info.bpf().max(1) as usize) as u64;
        end_ns = Some(end_ns.unwrap_or(raw.start_ns) + to_ns(samples));
        output.progress(0).map_err(handed_on)?;
    }
    Ok(end_ns.is_some_and(|end_ns| end_ns + JITTER_NS >= wanted_ns))
}

/// A pipeline that is stopped when it is dropped.
pub struct Stopped(pub gst::Pipeline);

impl Drop for Stopped {
    fn drop(&mut self) {
        // Nothing can be done about a pipeline that does not stop; the process is about to end.
        let _ = self.0.set_state(gst::State::Null);
    }
}

/// Playing, from a source of packets, at most so many of them waiting (0: no limit), to a muxer's segments.
fn pipeline(
    muxer: Muxer,
    output: Arc<dyn Output>,
    end: mpsc::Sender<Result<Muxed, Failure>>,
    packets_max: u64,
) -> Result<(Stopped, gst_app::AppSrc), Failure> {
    let source = gst_app::AppSrc::builder().format(gst::Format::Time).handle_segment_change(true).max_bytes(0).build();
    source.set_property("max-buffers", packets_max);
    let [mux, sink] = muxer.elements(output, end)?;
    let stopped = Stopped(gst::Pipeline::new());
    let pipeline = &stopped.0;
    let chain: [gst::Element; 3] = [source.clone().upcast(), mux, sink];
    pipeline.add_many(&chain).and_then(|()| gst::Element::link_many(&chain)).map_err(internal)?;
    pipeline.set_state(gst::State::Playing).map_err(internal)?;
    Ok((stopped, source))
}

fn check(pipeline: &gst::Pipeline) -> Result<(), Failure> {
    let message = pipeline.bus().and_then(|bus| bus.pop_filtered(&[gst::MessageType::Error]));
    match message.as_ref().map(|message| message.view()) {
        Some(gst::MessageView::Error(error)) => {
            Err(Failure::new(Code::Internal, format!("packets cannot be copied: {}", error.error())))
        }
        _ => Ok(()),
    }
}

/// Ends a pipeline's stream and waits until the last segment is handed out.
fn end(
    pipeline: &gst::Pipeline,
    source: &gst_app::AppSrc,
    ended: &mpsc::Receiver<Result<Muxed, Failure>>,
) -> Result<Muxed, Failure> {
    // One that has failed has reported it.
    let _ = source.end_of_stream();
    loop {
        match ended.recv_timeout(Duration::from_millis(100)) {
            Ok(muxed) => return muxed,
            Err(mpsc::RecvTimeoutError::Timeout) => check(pipeline)?,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                check(pipeline)?;
                return Err(Failure::new(Code::Internal, "a muxer stopped without a word"));
            }
        }
    }
}
