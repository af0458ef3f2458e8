//! Raises or lowers sound and keeps its samples below a ceiling, without a click: a look-ahead limiter.
//!
//! Own code, as the filters at hand change what they should leave alone: GStreamer's `rglimiter` bends all samples above half
//! of full scale, and the levellers (`audioloudnorm`, ffmpeg's `loudnorm`) ride the gain of music that needs no limit.

use std::collections::VecDeque;

/// How long before a peak the gain begins to fall, in ms.
const LOOK_AHEAD_MS: u32 = 5;
/// How long the gain takes to come back by all but a third, in ms.
const RELEASE_MS: f64 = 120.0;

/// A gain, and the level that no sample passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Gain in dB.
    pub gain_db: f64,
    /// Highest magnitude of a sample in dB of full scale; none where nothing is limited.
    pub ceiling_db: Option<f64>,
}

impl Level {
    /// Sound as it is.
    pub const AS_IS: Self = Self { gain_db: 0.0, ceiling_db: None };
}

/// Amplitude of a level in dB.
fn amplitude(db: f64) -> f64 {
    10_f64.powf(db / 20.0)
}

/// Brings interleaved samples to a level. What is given comes out later by the look-ahead.
pub struct Leveller {
    gain: f64,
    limit: Option<Limit>,
}

struct Limit {
    channels: usize,
    ceiling: f64,
    release: f64,
    /// Samples of all channels that wait, as many as the look-ahead and one.
    waiting: VecDeque<f32>,
    /// Gains that the samples of the look-ahead need, with their numbers; rising, the smallest first.
    needed: VecDeque<(u64, f64)>,
    /// The last gains, each the smallest of its look-ahead but for the release; their mean is what is done.
    held: VecDeque<f64>,
    sum: f64,
    look_ahead: u64,
    came: u64,
}

impl Leveller {
    /// For samples of so many channels at this rate.
    pub fn new(level: Level, rate: u32, channels: u32) -> Self {
        let look_ahead = u64::from(rate * LOOK_AHEAD_MS / 1000).max(1);
        let limit = level.ceiling_db.map(|ceiling_db| Limit {
            channels: channels as usize,
            ceiling: amplitude(ceiling_db),
            release: 1.0 - (-1000.0 / (RELEASE_MS * f64::from(rate))).exp(),
            waiting: VecDeque::new(),
            needed: VecDeque::new(),
            held: VecDeque::new(),
            sum: 0.0,
            look_ahead,
            came: 0,
        });
        Self { gain: amplitude(level.gain_db), limit }
    }

    /// Takes samples of all channels in turn; gives those that are ready.
    pub fn push(&mut self, samples: &[f32]) -> Vec<f32> {
        let gain = self.gain;
        #[expect(clippy::cast_possible_truncation, reason = "samples are 32-bit floats")]
        let louder = samples.iter().map(|sample| (f64::from(*sample) * gain) as f32);
        match &mut self.limit {
            None => louder.collect(),
            Some(limit) => limit.push(&louder.collect::<Vec<_>>()),
        }
    }

    /// How many samples of each channel wait.
    pub fn held(&self) -> u64 {
        self.limit.as_ref().map_or(0, |limit| (limit.waiting.len() / limit.channels) as u64)
    }

    /// Gives what still waits.
    pub fn finish(&mut self) -> Vec<f32> {
        let Some(limit) = &mut self.limit else { return Vec::new() };
        let waiting = limit.waiting.len();
        let look_ahead = usize::try_from(limit.look_ahead).unwrap_or(usize::MAX);
        let mut rest = limit.push(&vec![0.0; limit.channels.saturating_mul(look_ahead)]);
        rest.truncate(waiting);
        rest
    }
}

impl Limit {
    fn push(&mut self, samples: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(samples.len());
        for frame in samples.chunks_exact(self.channels) {
            let peak = frame.iter().map(|sample| f64::from(sample.abs())).fold(0.0, f64::max);
            let need = if peak > self.ceiling { self.ceiling / peak } else { 1.0 };
            while self.needed.back().is_some_and(|(_, other)| *other >= need) {
                self.needed.pop_back();
            }
            self.needed.push_back((self.came, need));
            self.waiting.extend(frame);
            self.came += 1;
            let Some(first) = self.came.checked_sub(self.look_ahead + 1) else { continue };
            // The smallest that any sample from `first` to the newest needs.
            while self.needed.front().is_some_and(|(number, _)| *number < first) {
                self.needed.pop_front();
            }
            let smallest = self.needed.front().map_or(1.0, |(_, need)| *need);
            let last = self.held.back().copied().unwrap_or(smallest);
            let held = smallest.min(last + (1.0 - last) * self.release);
            self.hold(held);
            // Every one of the gains in the mean was held with this sample ahead, so none is above what it needs.
            let gain = self.sum / self.held.len() as f64;
            for sample in self.waiting.drain(..self.channels) {
                #[expect(clippy::cast_possible_truncation, reason = "samples are 32-bit floats")]
                out.push((f64::from(sample) * gain) as f32);
            }
        }
        out
    }

    fn hold(&mut self, gain: f64) {
        self.held.push_back(gain);
        self.sum += gain;
        if self.held.len() as u64 > self.look_ahead + 1 {
            self.sum -= self.held.pop_front().unwrap_or(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn levelled(level: Level, samples: &[f32], step: usize) -> Vec<f32> {
        let mut leveller = Leveller::new(level, 8000, 2);
        let mut out: Vec<f32> = samples.chunks(step).flat_map(|part| leveller.push(part)).collect();
        out.extend(leveller.finish());
        out
    }

    proptest! {
        #[test]
        fn no_sample_passes_the_ceiling_and_none_is_lost(
            samples in prop::collection::vec(-4.0_f32..4.0, 0..600),
            step in 1_usize..40,
            gain_db in -20.0..20.0_f64,
        ) {
            let samples: Vec<f32> = samples.iter().flat_map(|sample| [*sample, -sample / 2.0]).collect();
            let level = Level { gain_db, ceiling_db: Some(-3.0) };
            let made = levelled(level, &samples, 2 * step);
            prop_assert_eq!(made.len(), samples.len());
            prop_assert!(made.iter().all(|sample| f64::from(sample.abs()) <= amplitude(-3.0) + 1e-6));
            let whole = levelled(level, &samples, samples.len().max(2));
            prop_assert_eq!(made, whole, "however they come");
        }
    }

    #[test]
    fn sound_below_the_ceiling_is_only_made_louder() {
        let samples: Vec<f32> = (0..4000_u16).map(|n| 0.2 * (f32::from(n) * 0.1).sin()).collect();
        for ceiling_db in [None, Some(-1.0)] {
            let made = levelled(Level { gain_db: 6.0, ceiling_db }, &samples, 300);
            let louder = amplitude(6.0) as f32;
            assert!(made.iter().zip(&samples).all(|(made, sample)| (made - sample * louder).abs() < 1e-6));
        }
        assert_eq!(levelled(Level::AS_IS, &samples, 300), samples);
    }

    #[test]
    fn the_gain_falls_before_a_peak_and_comes_back_slowly() {
        let mut samples = vec![0.1_f32; 2 * 8000];
        samples[8000] = 1.0;
        let made = levelled(Level { gain_db: 0.0, ceiling_db: Some(-6.0) }, &samples, 1000);
        let gains: Vec<f32> = made.iter().zip(&samples).map(|(made, sample)| made / sample).collect();
        let steps = gains.windows(4).map(|pair| (pair[2] - pair[0]).abs()).fold(0.0, f32::max);
        assert!(steps < 0.03, "{steps}");
        assert!((gains[8000] - amplitude(-6.0) as f32).abs() < 1e-3, "{}", gains[8000]);
        assert!(gains[8000 - 200] > 0.999 && gains[8000 + 200] < 0.6 && gains[2 * 8000 - 2] > 0.95);
    }
}
