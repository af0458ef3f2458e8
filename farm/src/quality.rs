//! A quality of encoding, on the scale of x264's CRF.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// A constant quality on x264's CRF scale: 1 (best) to 50, to the tenth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(try_from = "f64")]
#[schemars(extend("minimum" = 1, "maximum" = 50))]
pub struct Quality(u16);

/// A number that is no quality.
#[derive(Debug, thiserror::Error)]
#[error("quality {0} is not from 1 to 50")]
pub struct NotAQuality(f64);

impl Quality {
    /// What is asked of encoders where nothing is said.
    pub const USUAL: Self = Self(230);

    /// Of so many tenths, as far as the scale goes.
    pub const fn of_tenths(tenths: u16) -> Self {
        match tenths {
            ..10 => Self(10),
            501.. => Self(500),
            tenths => Self(tenths),
        }
    }

    /// The nearest whole number, for encoders that take no other.
    pub fn whole(self) -> u32 {
        u32::from((self.0 + 5) / 10)
    }

    /// The whole number below it, and the rest.
    pub fn split(self) -> (u32, f32) {
        (u32::from(self.0 / 10), f32::from(self.0 % 10) / 10.0)
    }
}

impl TryFrom<f64> for Quality {
    type Error = NotAQuality;

    fn try_from(number: f64) -> Result<Self, NotAQuality> {
        match (1.0..=50.0).contains(&number) {
            true => Ok(Self((number * 10.0).round() as u16)),
            false => Err(NotAQuality(number)),
        }
    }
}

impl From<Quality> for f32 {
    fn from(quality: Quality) -> Self {
        Self::from(quality.0) / 10.0
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f32::from(*self))
    }
}

impl Serialize for Quality {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.split() {
            (whole, 0.0) => serializer.serialize_u32(whole),
            _ => serializer.serialize_f64(f64::from(self.0) / 10.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_and_tenths_are_read_and_written_as_they_are() {
        for (text, whole) in [("23", 23), ("23.5", 24), ("1", 1), ("50", 50), ("17.4", 17)] {
            let quality: Quality = serde_json::from_str(text).expect("a quality");
            assert_eq!(serde_json::to_string(&quality).expect("JSON"), text);
            assert_eq!((quality.to_string().as_str(), quality.whole()), (text, whole));
        }
        for text in ["0", "0.9", "50.1", "-3", "1e9"] {
            let refused = serde_json::from_str::<Quality>(text).expect_err("refused");
            assert!(refused.to_string().contains("is not from 1 to 50"), "{refused}");
        }
        assert_eq!([0, 235, 900].map(Quality::of_tenths), [Quality(10), Quality(235), Quality(500)]);
    }
}
