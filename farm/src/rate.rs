//! Frame rates as exact rationals, and the arithmetic between frame numbers and nanoseconds.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nanoseconds in one second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// A frame rate in frames per second, always in lowest terms, never zero. Written `30000/1001`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Rate {
    num: u32,
    den: u32,
}

/// A text that is not a frame rate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a frame rate: write it as 25, 30/1 or 30000/1001, above 0 and up to 1000 frames per second")]
pub struct NotARate(String);

impl Rate {
    /// Highest rate that is taken for real, in frames per second. Containers that use their clock as a rate claim more.
    pub const MAX: u32 = 1000;

    /// `num/den` frames per second, or `None` when it is zero or above [`Rate::MAX`].
    pub fn new(num: u32, den: u32) -> Option<Self> {
        if num == 0 || den == 0 || u64::from(num) > u64::from(den) * u64::from(Self::MAX) {
            return None;
        }
        let divisor = gcd(num, den);
        Some(Self { num: num / divisor, den: den / divisor })
    }

    /// Numerator in lowest terms.
    pub fn num(self) -> u32 {
        self.num
    }

    /// Denominator in lowest terms.
    pub fn den(self) -> u32 {
        self.den
    }

    /// Frames per second as a float: for texts and comparisons of size only, never for times.
    pub fn as_f64(self) -> f64 {
        f64::from(self.num) / f64::from(self.den)
    }

    /// This rate divided by a whole number.
    pub fn divided_by(self, divisor: u32) -> Option<Self> {
        Self::new(self.num, self.den.checked_mul(divisor)?)
    }

    /// The time at which frame `n` starts, in ns, rounded up: so that the frame number found again from the time,
    /// rounding down, is `n`.
    pub fn start_ns(self, n: u64) -> u64 {
        let scaled = u128::from(n) * u128::from(self.den) * u128::from(SECOND_NS);
        u64::try_from(scaled.div_ceil(u128::from(self.num))).unwrap_or(u64::MAX)
    }

    /// The frame whose start is nearest to `time_ns` (half a frame rounds up).
    pub fn nearest_frame(self, time_ns: u64) -> u64 {
        let scaled = 2 * u128::from(time_ns) * u128::from(self.num);
        let unit = u128::from(SECOND_NS) * u128::from(self.den);
        u64::try_from((scaled + unit) / (2 * unit)).unwrap_or(u64::MAX)
    }

    /// Ticks per second of a media time scale in which a frame lasts a whole number of ticks: at least 10 000, so that
    /// it also serves as the unit of a track.
    pub fn timescale(self) -> u32 {
        self.num * 10_000_u32.div_ceil(self.num)
    }

    /// How many ticks of [`Rate::timescale`] a frame lasts.
    pub fn frame_ticks(self) -> u32 {
        self.den * 10_000_u32.div_ceil(self.num)
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.num, self.den)
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Rate {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Self, NotARate> {
        let (num, den) = text.split_once('/').unwrap_or((text, "1"));
        let parsed = num.trim().parse().ok().zip(den.trim().parse().ok());
        parsed.and_then(|(num, den)| Self::new(num, den)).ok_or_else(|| NotARate(text.to_owned()))
    }
}

impl TryFrom<String> for Rate {
    type Error = NotARate;

    fn try_from(text: String) -> Result<Self, NotARate> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_found_again_from_its_start_at_every_rate() {
        for text in ["24000/1001", "24", "25", "30000/1001", "50", "60000/1001", "60", "12.5", "25/2", "120000/1999", "1/10"] {
            let Ok(rate) = text.parse::<Rate>() else {
                assert_eq!(text, "12.5");
                continue;
            };
            for n in (0..1000).chain(10_000_000..10_000_100) {
                assert_eq!(rate.nearest_frame(rate.start_ns(n)), n, "{rate} frame {n}");
                let floored = u128::from(rate.start_ns(n)) * u128::from(rate.timescale()) / u128::from(SECOND_NS);
                assert_eq!(floored, u128::from(n) * u128::from(rate.frame_ticks()), "{rate} frame {n}");
            }
        }
    }

    #[test]
    fn a_rate_is_read_in_lowest_terms_and_nonsense_is_refused() {
        assert_eq!("60/2".parse::<Rate>().map(|r| r.to_string()), Ok("30/1".to_owned()));
        for nonsense in ["0", "-1", "1/0", "x", "", "2000", "30/1/1"] {
            assert!(nonsense.parse::<Rate>().is_err(), "{nonsense}");
        }
    }
}
