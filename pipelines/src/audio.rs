//! One rendition of the sound, the whole length in one go: never cut up, so nothing joins.
//!
//! ```text
//! decoded samples → convert, resample → counted against their times → level → appsrc → AAC → cmafmux → segments
//! ```
//!
//! The encoder's priming and the silence before it together last exactly the lead, which an edit list takes off.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use farm::edit::{Clip, samples_before};
use farm::job::Loudness;
use farm::media::TrackId;
use farm::plan::AudioPlan;
use farm::task::{Account, Segment};
use farm::text::Cue;
use farm::{Code, Failure};
use gst::prelude::*;

use crate::copy;
use crate::decode::{Decoded, Raw, decode};
use crate::fragment::{Grid, Muxed, Muxer, handed_on};
use crate::limiter::{Level, Leveller};
use crate::loudness::{self, Meter, floats};
use crate::source::{element, internal, push};
use crate::sources::Sources;
use crate::{AudioOrder, Init, Output, StillPlace, downmix};

const PACKET_SAMPLES: u32 = AudioPlan::PACKET_SAMPLES;
/// Samples by which the encoder is late: what it gives for the first input sample comes after so many others (measured).
pub const PRIMING_SAMPLES: u32 = 1024;
/// Time stamps may be off by so much before samples are moved; containers round, and round differently.
pub const JITTER_NS: u64 = 40_000_000;
/// Most samples of silence that are pushed at once.
const SILENCE_SAMPLES_MAX: u64 = 48_000;
/// Buffers of samples that wait for the encoder.
const BUFFERS_MAX: u64 = 16;
/// Bytes of one sample of all channels, as 32-bit floats.
const fn frame_bytes(channels: u32) -> usize {
    channels as usize * 4
}

/// Encodes a rendition of the sound.
///
/// # Errors
/// When the source does not decode, or the encoder fails.
pub fn encode(order: &AudioOrder, sources: &Sources, output: &Arc<dyn Output>) -> Result<Account, Failure> {
    if let Some(copy) = order.plan.copy
        && let Some(account) = copy::sound(order, copy, &sources.open(0)?, output)?
    {
        return Ok(account);
    }
    match order.plan.loudness {
        Loudness::Off => pass(order, sources, Level::AS_IS, output, None),
        Loudness::EbuR128 => {
            let trial: Arc<dyn Output> = Arc::new(Trial(Arc::clone(output)));
            let measured = |level, output| {
                let meter = Meter::new(order.plan.rate, order.plan.channels)?;
                let account = pass(order, sources, level, output, Some(&meter))?;
                Ok((account, meter.finish()?))
            };
            let (level, before) = loudness::find(|level| measured(level, &trial).map(|(_, measured)| measured))?;
            let (account, after) = measured(level, output)?;
            Ok(Account { levelling: Some(loudness::account(level, before, after)), ..account })
        }
    }
}

/// Takes what is only tried.
struct Trial(Arc<dyn Output>);

impl Output for Trial {
    fn init(&self, _: Init) -> io::Result<()> {
        Ok(())
    }

    fn segment(&self, _: u32, _: Segment, _: Bytes) -> io::Result<()> {
        Ok(())
    }

    fn still(&self, _: StillPlace, _: Bytes) -> io::Result<()> {
        Ok(())
    }

    fn cues(&self, _: u32, _: Vec<Cue>) -> io::Result<()> {
        Ok(())
    }

    /// There is a sign of life, but nothing to show for it.
    fn progress(&self, _: u64) -> io::Result<()> {
        self.0.progress(0)
    }
}

/// Encodes it all once, heard by a meter if there is one.
fn pass(
    order: &AudioOrder,
    sources: &Sources,
    level: Level,
    output: &Arc<dyn Output>,
    meter: Option<&Meter>,
) -> Result<Account, Failure> {
    let plan = &order.plan;
    let caps = gst_audio::AudioCapsBuilder::new_interleaved()
        .format(gst_audio::AUDIO_FORMAT_F32)
        .rate(plan.rate.cast_signed())
        .channels(plan.channels.cast_signed())
        .build();
    let mut encoder = Encoder::start(order, &caps, level, Arc::clone(output), meter)?;
    let mut open: Option<Open> = None;
    for span in spans(order) {
        encoder.begin(&span)?;
        let Some(of) = span.of else { continue };
        // One that goes on in the same source is not read from its start again.
        let mut source = match open.take().filter(|open| open.of == of && open.origin_ns <= span.origin_ns) {
            Some(open) => Open { origin_ns: span.origin_ns, again: open.last.or(open.again), last: None, ..open },
            None => Open::new(of, span.origin_ns, sources, plan.channels, &caps)?,
        };
        while encoder.left() > 0 {
            let Some(raw) = source.next()? else { break };
            encoder.push(raw.start_ns, raw.buffer()?.as_ref(), output.as_ref())?;
            source.last = Some(raw);
        }
        open = Some(source);
    }
    drop(open);
    encoder.finish()
}

/// A source that is being read.
struct Open {
    of: (u32, TrackId),
    /// Where what is wanted of it begins, in ns of its stream time.
    origin_ns: u64,
    decoded: Decoded,
    /// What came last, of which the next stretch may want some as well.
    last: Option<Raw>,
    /// What is given out again first.
    again: Option<Raw>,
}

impl Open {
    fn new(of: (u32, TrackId), origin_ns: u64, sources: &Sources, channels: u32, caps: &gst::Caps) -> Result<Self, Failure> {
        let convert = element("audioconvert")?;
        if channels == 2 {
            downmix::apply(&convert)?;
        }
        let after = vec![convert, element("audioresample")?];
        let decoded = decode(&sources.open(of.0)?, of.1, 0, after, caps)?;
        Ok(Self { of, origin_ns, decoded, last: None, again: None })
    }

    fn next(&mut self) -> Result<Option<Raw>, Failure> {
        match self.again.take() {
            Some(last) => Ok(Some(last)),
            None => self.decoded.next(),
        }
    }
}

/// A stretch of the result that is of one source.
#[derive(Clone, Debug)]
struct Span {
    /// Its samples.
    samples: Range<u64>,
    /// Stream time of its source at its start, in ns.
    origin_ns: u64,
    /// The source and its stream; none is silence.
    of: Option<(u32, TrackId)>,
}

/// What is heard: one source, or clips.
fn spans(order: &AudioOrder) -> Vec<Span> {
    let plan = &order.plan;
    let Some(edit) = &order.edit else {
        return vec![Span { samples: 0..plan.samples, origin_ns: order.origin_ns, of: Some((0, plan.track)) }];
    };
    let span = |clip: &Clip| {
        let sound = clip.sounds.first().copied().flatten();
        Span {
            samples: clip.units(|time_ns| samples_before(time_ns, plan.rate).min(plan.samples)),
            origin_ns: sound.map_or(0, |sound| sound.origin_ns),
            of: sound.map(|sound| (sound.source, sound.track)),
        }
    };
    edit.plan.clips.iter().map(span).collect()
}

struct Encoder<'a> {
    order: &'a AudioOrder,
    /// What is being pushed.
    span: Span,
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    source: gst_app::AppSrc,
    ended: mpsc::Receiver<Result<Muxed, Failure>>,
    leveller: Leveller,
    /// Packets at the start that are not handed to the muxer.
    unused: u64,
    /// Packets of the result.
    packets: u64,
    /// Samples pushed, with those of the lead.
    pushed: u64,
    /// Samples of the result pushed.
    placed: u64,
    account: Account,
}

impl<'a> Encoder<'a> {
    fn start(
        order: &'a AudioOrder,
        caps: &gst::Caps,
        level: Level,
        output: Arc<dyn Output>,
        meter: Option<&Meter>,
    ) -> Result<Self, Failure> {
        let plan = &order.plan;
        let grid = Grid {
            timescale: plan.rate,
            sample_ticks: PACKET_SAMPLES,
            phase_ticks: 0,
            lead_ticks: Grid::lead_ticks(order.lead_ns, plan.rate),
            raise_offsets: false,
        };
        let source = gst_app::AppSrc::builder().format(gst::Format::Time).caps(caps).max_bytes(0).build();
        source.set_property("max-buffers", BUFFERS_MAX);
        let aac = element("avenc_aac")?;
        aac.set_property("bitrate", plan.bitrate.cast_signed());
        // Its mid-side coding, on unless it is switched off, loses what differs between the sides: a tone of one came out of both
        // at -5 to -8 dB (libavcodec 59).
        aac.set_property("aac-ms", false);
        let (end, ended) = mpsc::channel();
        let segments = plan.segment_packets();
        let packets: u64 = segments.iter().sum();
        let muxer = Muxer {
            rendition: 0,
            grid,
            fragment_ns: plan.segment_ns,
            segments: segments.into(),
            first_sequence: 1,
            key_frames_apart: false,
        };
        let [mux, sink] = muxer.elements(output, end)?;
        let pipeline = gst::Pipeline::new();
        let chain: [gst::Element; 4] = [source.clone().upcast(), aac, mux, sink];
        pipeline.add_many(&chain).and_then(|()| gst::Element::link_many(&chain)).map_err(internal)?;
        let bus = pipeline.bus().ok_or_else(|| internal("a pipeline without a bus"))?;
        let silence = grid
            .lead_ticks
            .checked_sub(PRIMING_SAMPLES)
            .ok_or_else(|| internal("the lead is shorter than the encoder's priming"))?;
        // Of the packets before the first sound only the last is of use: it is what the decoder warms up on.
        let unused = u64::from(silence / PACKET_SAMPLES);
        let made = chain[1].static_pad("src").ok_or_else(|| internal("an encoder without a source pad"))?;
        keep_only(&made, unused..unused + packets);
        if let Some(meter) = meter {
            meter.listen(&made);
        }
        let leveller = Leveller::new(level, plan.rate, plan.channels);
        pipeline.set_state(gst::State::Playing).map_err(internal)?;
        let mut encoder = Self {
            order,
            span: Span { samples: 0..0, origin_ns: order.origin_ns, of: None },
            pipeline,
            bus,
            source,
            ended,
            leveller,
            unused,
            packets,
            pushed: 0,
            placed: 0,
            account: Account::default(),
        };
        encoder.push_silence(u64::from(silence))?;
        Ok(encoder)
    }

    /// Ends what was pushed with as much silence as it is short of its end, and begins another stretch.
    fn begin(&mut self, span: &Span) -> Result<(), Failure> {
        self.fill()?;
        self.span = span.clone();
        // Before a stretch that does not begin where the last one ended there is silence.
        let gap = span.samples.start.saturating_sub(self.placed);
        self.push_silence(gap)?;
        self.placed += gap;
        self.account.filled += gap;
        Ok(())
    }

    /// As much silence as the stretch is short of its end.
    fn fill(&mut self) -> Result<(), Failure> {
        let missing = self.left();
        self.push_silence(missing)?;
        self.placed += missing;
        self.account.filled += missing;
        self.account.missing += if self.span.of.is_some() { missing } else { 0 };
        Ok(())
    }

    /// Samples of the stretch that are still to come.
    fn left(&self) -> u64 {
        self.span.samples.end.saturating_sub(self.placed)
    }

    /// Places decoded samples by their time: silence into gaps, overlaps cut.
    fn push(&mut self, start_ns: u64, buffer: &gst::BufferRef, output: &dyn Output) -> Result<(), Failure> {
        let plan = &self.order.plan;
        let frame = frame_bytes(plan.channels);
        let have = (buffer.size() / frame) as u64;
        let to_samples =
            |ns: u64| u64::try_from((u128::from(ns) * u128::from(plan.rate) + 500_000_000) / 1_000_000_000).unwrap_or(u64::MAX);
        let Span { samples, origin_ns, .. } = self.span.clone();
        let mut skip = 0;
        if start_ns < origin_ns {
            skip = to_samples(origin_ns - start_ns);
        }
        let at = samples.start + to_samples(start_ns.saturating_sub(origin_ns));
        let jitter = to_samples(JITTER_NS);
        // What is cut off is not lost.
        let is_whole = self.order.edit.is_none();
        if skip >= have && !is_whole {
            return Ok(());
        }
        if at > samples.end + jitter {
            // The plan ends with the last sound that is believed.
            if is_whole {
                self.account.dropped += have;
                return Ok(());
            }
            return self.fill();
        }
        if self.placed == samples.start || at > self.placed + jitter {
            let silence = at.saturating_sub(self.placed).min(self.left());
            self.push_silence(silence)?;
            self.placed += silence;
            self.account.filled += silence;
        } else if at + jitter < self.placed {
            skip = skip.max(self.placed - at);
        }
        let skip = skip.min(have);
        let take = (have - skip).min(self.left());
        self.account.dropped += if is_whole { skip } else { 0 };
        if take > 0 {
            let map = buffer.map_readable().map_err(internal)?;
            let part = map.get(skip as usize * frame..(skip + take) as usize * frame).unwrap_or_default();
            self.push_samples(&floats(part))?;
            self.placed += take;
            self.account.kept += take;
        }
        output.progress(self.placed * 1_000_000_000 / u64::from(plan.rate)).map_err(handed_on)
    }

    fn push_silence(&mut self, mut samples: u64) -> Result<(), Failure> {
        while samples > 0 {
            let now = samples.min(SILENCE_SAMPLES_MAX);
            self.push_samples(&vec![0.0; now as usize * self.order.plan.channels as usize])?;
            samples -= now;
        }
        Ok(())
    }

    fn push_samples(&mut self, samples: &[f32]) -> Result<(), Failure> {
        let levelled = self.leveller.push(samples);
        self.push_levelled(&levelled)
    }

    fn push_levelled(&mut self, levelled: &[f32]) -> Result<(), Failure> {
        let samples = (levelled.len() / self.order.plan.channels as usize) as u64;
        if samples == 0 {
            return Ok(());
        }
        let bytes: Vec<u8> = levelled.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        let mut buffer = gst::Buffer::from_slice(bytes);
        let rate = u64::from(self.order.plan.rate);
        let time = |samples: u64| {
            gst::ClockTime::from_nseconds(
                u64::try_from(u128::from(samples) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX),
            )
        };
        let made = buffer.make_mut();
        made.set_pts(time(self.pushed));
        made.set_dts(gst::ClockTime::NONE);
        made.set_duration(time(self.pushed + samples).saturating_sub(time(self.pushed)));
        self.pushed += samples;
        push(&self.source, buffer, &|| self.posted().map_or(Ok(()), Err))
    }

    fn finish(mut self) -> Result<Account, Failure> {
        if self.account.kept == 0 && self.order.edit.is_none() {
            return Err(Failure::new(Code::Undecodable, "no sound could be decoded"));
        }
        self.fill()?;
        // Whole packets: the encoder keeps back what does not fill one.
        let last = (self.unused + self.packets) * u64::from(PACKET_SAMPLES);
        let held = self.leveller.held();
        self.push_silence(last.saturating_sub(self.pushed + held))?;
        let rest = self.leveller.finish();
        self.push_levelled(&rest)?;
        self.source.end_of_stream().map_err(|_| self.failure())?;
        loop {
            match self.ended.recv_timeout(Duration::from_millis(100)) {
                Ok(muxed) => {
                    let (made, wanted) = (muxed?.samples, self.packets);
                    if made != wanted {
                        return Err(Failure::new(Code::EncoderFailed, format!("the encoder made {made} packets of {wanted}")));
                    }
                    return Ok(self.account);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Some(failure) = self.posted() {
                        return Err(failure);
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(self.failure()),
            }
        }
    }

    fn posted(&self) -> Option<Failure> {
        let message = self.bus.pop_filtered(&[gst::MessageType::Error])?;
        let gst::MessageView::Error(error) = message.view() else { return None };
        Some(Failure::new(Code::EncoderFailed, format!("the sound cannot be encoded: {}", error.error())))
    }

    fn failure(&self) -> Failure {
        let reported = self.ended.try_recv().ok().and_then(Result::err);
        reported
            .or_else(|| self.posted())
            .unwrap_or_else(|| Failure::new(Code::EncoderFailed, "the encoder stopped without a word"))
    }
}

/// Makes a pad drop all but these of its buffers.
fn keep_only(pad: &gst::Pad, wanted: Range<u64>) {
    let made = AtomicU64::new(0);
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        let is_wanted = wanted.contains(&made.fetch_add(1, Ordering::Relaxed));
        if is_wanted { gst::PadProbeReturn::Ok } else { gst::PadProbeReturn::Drop }
    });
}

impl Drop for Encoder<'_> {
    fn drop(&mut self) {
        // Nothing can be done about a pipeline that does not stop; the process is about to end.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}
