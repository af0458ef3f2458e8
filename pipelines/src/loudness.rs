//! Brings sound to a common loudness (EBU R 128): measured as it will be heard, after the encoder, and tried until it is right.
//!
//! ```text
//! decoded samples → level → AAC → decoder → meter, as often as it takes; then once more for the result
//! ```
//!
//! AAC raises the peaks of hard onsets by up to 3 dB. So what counts is what comes out of a decoder; and as encoder and decoder
//! give the same every time, a level that was tried is known.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebur128::{EbuR128, Mode};
use farm::task::{Levelling, Loudness};
use farm::{Code, Failure};
use gst::prelude::*;

use crate::limiter::Level;
use crate::source::{element, internal};

/// Wanted loudness of the whole in LUFS, as the job message promises.
const TARGET_LUFS: f64 = -16.0;
/// Highest true peak in dB of full scale, with some room to -1.5 for meters that differ.
const PEAK_DBTP: f64 = -1.7;
/// Loudness may be off by so much.
const TOLERANCE_LU: f64 = 0.5;
/// What peaks cost of loudness before they are limited: nobody hears so little, and nothing is bent.
const LOWER_RATHER_LU: f64 = 0.7;
/// How far below the wanted peak the first try's ceiling is: what AAC usually adds.
const HEADROOM_DB: f64 = 1.5;
/// Most tries with a limiter.
const TRIES_MAX: usize = 4;
/// Loudness below which there is nothing to measure: the gate of EBU R 128.
const SILENCE_LUFS: f64 = -70.0;
/// Longest wait for the meter's decoder to end.
const END_WAIT: gst::ClockTime = gst::ClockTime::from_seconds(60);
/// Packets that wait for the meter's decoder.
const PACKETS_MAX: u64 = 64;
/// How often it is looked whether the meter has room.
const ROOM_POLL: Duration = Duration::from_micros(500);

/// What a meter says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Integrated loudness in LUFS; none when all is silence.
    pub lufs: Option<f64>,
    /// Highest true peak in dB of full scale.
    pub peak_dbtp: f64,
}

/// Finds the level at which sound has the wanted loudness and peaks. `try_level` encodes it all at a level and measures that.
///
/// # Errors
/// Those of `try_level`.
pub fn find(mut try_level: impl FnMut(Level) -> Result<Measured, Failure>) -> Result<(Level, Measured), Failure> {
    let source = try_level(Level::AS_IS)?;
    let Some(lufs) = source.lufs else { return Ok((Level::AS_IS, source)) };
    let gain_db = TARGET_LUFS - lufs;
    let room_db = PEAK_DBTP - source.peak_dbtp;
    if gain_db - room_db <= LOWER_RATHER_LU {
        return Ok((Level { gain_db: gain_db.min(room_db), ceiling_db: None }, source));
    }
    let (mut gain_db, mut ceiling_db) = (gain_db, PEAK_DBTP - HEADROOM_DB);
    // The loudest that kept below the peak.
    let mut best: Option<(f64, Level)> = None;
    for _ in 0..TRIES_MAX {
        let level = Level { gain_db, ceiling_db: Some(ceiling_db) };
        let tried = try_level(level)?;
        let Some(lufs) = tried.lufs else { break };
        let (over_db, missing_lu) = ((tried.peak_dbtp - PEAK_DBTP).max(0.0), TARGET_LUFS - lufs);
        if over_db == 0.0 {
            if missing_lu.abs() <= TOLERANCE_LU {
                return Ok((level, source));
            }
            if best.is_none_or(|(other, _)| missing_lu.abs() < other) {
                best = Some((missing_lu.abs(), level));
            }
        }
        ceiling_db -= over_db;
        gain_db += missing_lu;
    }
    let careful = Level { gain_db, ceiling_db: Some(ceiling_db - 1.0) };
    Ok((best.map_or(careful, |(_, level)| level), source))
}

/// What was done to a rendition, in whole thousandths.
pub fn account(level: Level, source: Measured, result: Measured) -> Levelling {
    let loudness = |measured: Measured| Loudness {
        millilufs: measured.lufs.map(thousandths),
        peak_millidbtp: measured.lufs.map(|_| thousandths(measured.peak_dbtp)),
    };
    Levelling {
        source: loudness(source),
        gain_millidb: thousandths(level.gain_db),
        is_limited: level.ceiling_db.is_some(),
        result: loudness(result),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "levels are between -200 and 200 dB")]
fn thousandths(db: f64) -> i32 {
    (db.clamp(-200.0, 200.0) * 1000.0).round() as i32
}

/// Measures encoded sound by decoding it.
pub struct Meter {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    has_failed: Arc<AtomicBool>,
    source: gst_app::AppSrc,
    gauge: Arc<Mutex<EbuR128>>,
}

impl Meter {
    /// A meter of AAC at this rate.
    ///
    /// # Errors
    /// When an element is missing.
    pub fn new(rate: u32, channels: u32) -> Result<Self, Failure> {
        let gauge = EbuR128::new(channels, rate, Mode::I | Mode::TRUE_PEAK).map_err(internal)?;
        let gauge = Arc::new(Mutex::new(gauge));
        let source = gst_app::AppSrc::builder().format(gst::Format::Time).max_bytes(0).build();
        source.set_property("max-buffers", PACKETS_MAX);
        let caps = gst_audio::AudioCapsBuilder::new_interleaved().format(gst_audio::AUDIO_FORMAT_F32).build();
        let sink =
            gst_app::AppSink::builder().sync(false).async_(false).max_buffers(4).enable_last_sample(false).caps(&caps).build();
        let heard = Arc::clone(&gauge);
        let take = move |sink: &gst_app::AppSink| {
            let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            let bytes = sample.buffer().ok_or(gst::FlowError::Error)?.map_readable().map_err(|_| gst::FlowError::Error)?;
            lock(&heard).add_frames_f32(&floats(&bytes)).map_err(|_| gst::FlowError::Error)?;
            Ok(gst::FlowSuccess::Ok)
        };
        sink.set_callbacks(gst_app::AppSinkCallbacks::builder().new_sample(take).build());
        let pipeline = gst::Pipeline::new();
        let chain = [source.clone().upcast(), element("avdec_aac")?, element("audioconvert")?, sink.upcast()];
        pipeline.add_many(&chain).and_then(|()| gst::Element::link_many(&chain)).map_err(internal)?;
        let bus = pipeline.bus().ok_or_else(|| internal("a pipeline without a bus"))?;
        let has_failed = Arc::new(AtomicBool::new(false));
        let failed = Arc::clone(&has_failed);
        bus.set_sync_handler(move |_, message| {
            failed.fetch_or(message.type_() == gst::MessageType::Error, Ordering::Relaxed);
            gst::BusSyncReply::Pass
        });
        pipeline.set_state(gst::State::Playing).map_err(internal)?;
        Ok(Self { pipeline, bus, has_failed, source, gauge })
    }

    /// Has the packets that leave a pad measured, while they go on.
    pub fn listen(&self, pad: &gst::Pad) {
        let (source, has_failed) = (self.source.clone(), Arc::clone(&self.has_failed));
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            if let Some(gst::PadProbeData::Buffer(packet)) = &info.data {
                source.set_caps(pad.current_caps().as_ref());
                while source.current_level_buffers() >= PACKETS_MAX && !has_failed.load(Ordering::Relaxed) {
                    std::thread::sleep(ROOM_POLL);
                }
                // A meter that has failed says so at the end.
                let _ = source.push_buffer(packet.clone());
            }
            gst::PadProbeReturn::Ok
        });
    }

    /// What was measured, once all is through.
    ///
    /// # Errors
    /// [`Code::EncoderFailed`] when what was encoded does not decode.
    pub fn finish(self) -> Result<Measured, Failure> {
        let failed = |why: String| Failure::new(Code::EncoderFailed, format!("encoded sound cannot be measured: {why}"));
        self.source.end_of_stream().map_err(|error| failed(error.to_string()))?;
        let ended = self.bus.timed_pop_filtered(END_WAIT, &[gst::MessageType::Eos, gst::MessageType::Error]);
        match ended.as_ref().map(|message| message.view()) {
            Some(gst::MessageView::Eos(_)) => {}
            Some(gst::MessageView::Error(error)) => return Err(failed(error.error().to_string())),
            _ => return Err(failed("its decoder does not end".to_owned())),
        }
        let gauge = lock(&self.gauge);
        let lufs = gauge.loudness_global().map_err(|error| failed(error.to_string()))?;
        let peaks = (0..gauge.channels()).map(|channel| gauge.true_peak(channel));
        let peaks = peaks.collect::<Result<Vec<f64>, _>>().map_err(|error| failed(error.to_string()))?;
        let peak = peaks.into_iter().fold(f64::MIN_POSITIVE, f64::max);
        Ok(Measured { lufs: Some(lufs).filter(|lufs| *lufs > SILENCE_LUFS), peak_dbtp: 20.0 * peak.log10() })
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // Nothing can be done about a pipeline that does not stop; the process is about to end.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

fn lock(gauge: &Mutex<EbuR128>) -> MutexGuard<'_, EbuR128> {
    gauge.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Samples from their bytes, as GStreamer has them here: little endian.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sound of this loudness and peak, of which an encoder raises peaks by so much, and a limiter costs half of what it takes.
    fn tried(lufs: f64, peak_dbtp: f64, raised_db: f64) -> (Level, Vec<(Level, Measured)>) {
        let mut tries = Vec::new();
        let (level, _) = find(|level| {
            let peak = peak_dbtp + level.gain_db;
            let limited = level.ceiling_db.map_or(peak, |ceiling_db| peak.min(ceiling_db));
            let measured = Measured { lufs: Some(lufs + level.gain_db - (peak - limited) / 4.0), peak_dbtp: limited + raised_db };
            tries.push((level, measured));
            Ok(measured)
        })
        .expect("a level");
        (level, tries)
    }

    #[test]
    fn sound_with_room_is_only_made_louder_or_softer() {
        for (lufs, peak_dbtp) in [(-30.0, -20.0), (-16.0, -3.0), (-5.0, 3.0), (-25.0, -10.7)] {
            let (level, tries) = tried(lufs, peak_dbtp, 0.5);
            assert_eq!((level.ceiling_db, tries.len()), (None, 1), "{lufs} {peak_dbtp}");
            assert!((lufs + level.gain_db - TARGET_LUFS).abs() <= LOWER_RATHER_LU + 0.001);
            assert!(peak_dbtp + 0.5 + level.gain_db <= PEAK_DBTP + 0.001);
        }
    }

    #[test]
    fn peaks_in_the_way_are_limited_by_what_the_encoder_makes_of_them() {
        for (lufs, peak_dbtp, raised_db) in [(-30.0, -6.0, 0.0), (-30.0, -6.0, 3.0), (-24.0, -0.5, 2.0), (-40.0, 0.0, 4.0)] {
            let (level, tries) = tried(lufs, peak_dbtp, raised_db);
            let (_, last) = tries.iter().find(|(other, _)| *other == level).expect("a level that was tried");
            assert!(last.peak_dbtp <= PEAK_DBTP, "{tries:?}");
            assert!((last.lufs.expect("sound") - TARGET_LUFS).abs() <= TOLERANCE_LU, "{tries:?}");
        }
    }

    #[test]
    fn silence_stays_silent() {
        let silence = Measured { lufs: None, peak_dbtp: -100.0 };
        assert_eq!(find(|_| Ok(silence)).expect("a level"), (Level::AS_IS, silence));
    }
}
