//! Edits: what is cut out of a source, joined to it and laid over it before anything is made of it. They are part of the one
//! encode, so nothing is encoded twice.
//!
//! [`EditStep`]s are what is asked for, one after the other, each of what the ones before have left. [`EditPlan`] is what they
//! come to once the sources are known: clips in a row.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::SourceSpec;
use crate::media::{SourceVersion, TrackId};
use crate::plan::PicturePlan;
use crate::rate::SECOND_NS;
use crate::{Code, Failure};

/// Most steps of a job.
pub const STEPS_MAX: usize = 32;
/// Most stretches that one step may take out.
pub const STRETCHES_MAX: usize = 100;

/// Largest file of a picture that is laid over, in bytes.
pub const OVERLAY_BYTES_MAX: u64 = 32 << 20;

/// A step of editing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum EditStep {
    /// Keeps a stretch, and nothing else.
    Keep(Stretch),
    /// Takes stretches out. Their times are those before any of them is taken out.
    Remove(#[schemars(length(min = 1, max = STRETCHES_MAX))] Vec<Stretch>),
    /// Puts another video before it, whole, in its frame.
    Before(SourceSpec),
    /// Puts another video after it, whole, in its frame.
    After(SourceSpec),
    /// Lays a picture (PNG, JPEG or WebP) over all there is so far.
    Overlay(OverlaySpec),
    /// The sound of all there is so far is that of another file, at the same times.
    Sound(SourceSpec),
}

impl EditStep {
    /// The other source that it names, if it names one.
    pub fn source(&self) -> Option<&SourceSpec> {
        match self {
            Self::Before(source) | Self::After(source) | Self::Sound(source) => Some(source),
            Self::Overlay(overlay) => Some(&overlay.source),
            Self::Keep(_) | Self::Remove(_) => None,
        }
    }

    /// Whether the other source that it names is media, which is to be probed.
    pub fn names_media(&self) -> bool {
        matches!(self, Self::Before(_) | Self::After(_) | Self::Sound(_))
    }

    /// Refuses values that are out of range.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Keep(stretch) => stretch.check(),
            Self::Remove(stretches) if stretches.is_empty() || stretches.len() > STRETCHES_MAX => {
                Err(format!("remove: {} stretches, 1 to {STRETCHES_MAX} can be taken out", stretches.len()))
            }
            Self::Remove(stretches) => stretches.iter().try_for_each(|stretch| match stretch.to {
                Some(_) => stretch.check(),
                None => stretch.check().and_then(|()| match stretch.from.0 {
                    0 => Err("remove: nothing would be left".to_owned()),
                    _ => Ok(()),
                }),
            }),
            Self::Overlay(overlay) => match overlay.height.0 {
                0 => Err("overlay: its height is 0".to_owned()),
                _ => Ok(()),
            },
            Self::Before(_) | Self::After(_) | Self::Sound(_) => Ok(()),
        }
    }
}

/// Refuses steps that are too many or out of range, saying which.
///
/// # Errors
/// [`Code::InvalidRequest`] for the first.
pub fn check(steps: &[EditStep]) -> Result<(), Failure> {
    let refuse = |message: String| Err(Failure::new(Code::InvalidRequest, message));
    if steps.len() > STEPS_MAX {
        return refuse(format!("edit: {} steps, up to {STEPS_MAX} can be done", steps.len()));
    }
    match (1..).zip(steps).find_map(|(number, step)| step.check().err().map(|why| (number, why))) {
        Some((number, why)) => refuse(format!("edit: step {number}: {why}")),
        None => Ok(()),
    }
}

/// The other sources that steps name, in order; the first is number 1, the job's own being 0.
pub fn others(steps: &[EditStep]) -> impl Iterator<Item = (u32, &EditStep, &SourceSpec)> {
    (1..).zip(steps.iter().filter_map(|step| Some((step, step.source()?)))).map(|(number, (step, source))| (number, step, source))
}

/// A stretch of a video, by presentation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stretch {
    /// Where it begins: at the start when absent.
    #[serde(default)]
    pub from: Seconds,
    /// Where it ends: at the end when absent, or when that comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Seconds>,
}

impl Stretch {
    fn check(&self) -> Result<(), String> {
        match self.to {
            Some(to) if to <= self.from => Err(format!("from {} to {} there is nothing", f64::from(self.from), f64::from(to))),
            _ => Ok(()),
        }
    }
}

/// A time in seconds, to the microsecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "f64", into = "f64")]
#[schemars(extend("minimum" = 0, "maximum" = 360_000))]
pub struct Seconds(u64);

impl Seconds {
    /// Longest: 100 hours, in µs.
    const MAX_US: u64 = 360_000_000_000;

    /// In ns.
    pub fn ns(self) -> u64 {
        self.0 * 1_000
    }
}

impl TryFrom<f64> for Seconds {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, String> {
        let us = (seconds * 1e6).round();
        match us.is_finite() && us >= 0.0 && us <= Self::MAX_US as f64 {
            true => Ok(Self(us as u64)),
            false => Err(format!("{seconds} s is not from 0 to 360000")),
        }
    }
}

impl From<Seconds> for f64 {
    fn from(seconds: Seconds) -> Self {
        seconds.0 as Self / 1e6
    }
}

/// A picture that is laid over the video, in its upper right corner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OverlaySpec {
    /// Where the picture is.
    pub source: SourceSpec,
    /// Its height, as a share of the video's. Its width follows from its shape.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub height: Share,
    /// Distance to the right edge, as a share of the video's height.
    #[serde(default)]
    pub right: Share,
    /// Distance to the upper edge, as a share of the video's height.
    #[serde(default)]
    pub top: Share,
}

/// A share from 0 to 1, to the millionth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "f64", into = "f64")]
#[schemars(extend("minimum" = 0, "maximum" = 1))]
pub struct Share(u32);

impl Share {
    /// So much of something, to the nearest.
    pub fn of(self, whole: u32) -> u32 {
        let part = (u64::from(self.0) * u64::from(whole) + 500_000) / 1_000_000;
        u32::try_from(part).unwrap_or(u32::MAX)
    }
}

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        match (0.0..=1.0).contains(&share) {
            true => Ok(Self((share * 1e6).round() as u32)),
            false => Err(format!("{share} is not from 0 to 1")),
        }
    }
}

impl From<Share> for f64 {
    fn from(share: Share) -> Self {
        Self::from(share.0) / 1e6
    }
}

/// What the steps of a job come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EditPlan {
    /// Versions of the other sources, from number 1 on; none where versions cannot be told apart.
    pub others: Vec<Option<SourceVersion>>,
    /// Size in pixels to which every picture is brought, even: width and height. None without picture.
    pub canvas: Option<(u32, u32)>,
    /// Pictures that are laid over.
    pub overlays: Vec<Overlay>,
    /// What is shown and heard, in order, without gap or overlap.
    pub clips: Vec<Clip>,
}

/// A picture that is laid over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Overlay {
    /// Number of its source.
    pub source: u32,
    /// Where it is, without anything that may be secret.
    pub name: String,
    /// Its height in pixels.
    pub height: u32,
    /// Distance to the right edge in pixels.
    pub right: u32,
    /// Distance to the upper edge in pixels.
    pub top: u32,
}

/// A stretch of a source in the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Clip {
    /// Presentation time in ns at which it starts: a place of the frame grid, where there is picture.
    pub start_ns: u64,
    /// Presentation time in ns at which it ends.
    pub end_ns: u64,
    /// Stream time of its source, in ns, at its start.
    pub origin_ns: u64,
    /// Number of its source.
    pub source: u32,
    /// Its picture.
    pub picture: Option<ClipPicture>,
    /// Its sound in each rendition, in the plan's order: none is silence.
    pub sounds: Vec<Option<ClipSound>>,
    /// Which pictures are laid over it, by their places in the plan, the lowest first.
    pub overlays: Vec<u32>,
}

/// The picture of a clip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClipPicture {
    /// The stream to decode.
    pub track: TrackId,
    /// How decoded pictures become upright, progressive and square.
    pub picture: PicturePlan,
    /// Size in pixels that it has on the canvas, even, in its middle: width and height.
    pub size: (u32, u32),
    /// Stream time in ns of the key frame that decoding starts at; 0 for the start of the source.
    pub decode_from_ns: u64,
    /// Stream time in ns of its source's last frame, where that is known: one that ends before has lost some.
    pub last_ns: Option<u64>,
}

/// The sound of a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClipSound {
    /// Number of its source.
    pub source: u32,
    /// The stream to decode.
    pub track: TrackId,
    /// Stream time of its source, in ns, at the clip's start.
    pub origin_ns: u64,
}

impl Clip {
    /// The samples of a rendition of this rate that it makes, or the frames of a grid.
    pub fn units(&self, at: impl Fn(u64) -> u64) -> std::ops::Range<u64> {
        at(self.start_ns)..at(self.end_ns)
    }

    /// Its length in ns.
    pub fn length_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }
}

/// How many samples of this rate there are before a presentation time, to the nearest.
pub fn samples_before(time_ns: u64, rate: u32) -> u64 {
    let samples = (u128::from(time_ns) * u128::from(rate) + u128::from(SECOND_NS / 2)) / u128::from(SECOND_NS);
    u64::try_from(samples).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(json: &str) -> Result<Vec<EditStep>, String> {
        let steps: Vec<EditStep> = serde_json::from_str(json).map_err(|error| error.to_string())?;
        check(&steps).map_err(|failure| failure.message)?;
        Ok(steps)
    }

    #[test]
    fn steps_are_read_and_written_as_they_are_said() {
        let json = r#"[{"keep":{"from":1.5,"to":20.0}},{"remove":[{"from":3.0,"to":4.0},{"from":9.0}]},{"before":{"url":"s3://b/i"}},
            {"overlay":{"source":{"url":"s3://b/w.png"},"height":0.1,"right":0.015,"top":0.0}},{"sound":{"url":"s3://b/s"}}]"#;
        let read = steps(json).expect("steps");
        let written = serde_json::to_value(&read).expect("JSON");
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(json).expect("JSON"));
        assert_eq!(
            others(&read).map(|(number, step, _)| (number, step.names_media())).collect::<Vec<_>>(),
            [(1, true), (2, false), (3, true)]
        );
        assert_eq!(Seconds::try_from(1.5).expect("a time").ns(), 1_500_000_000);
        assert_eq!(Share::try_from(0.1).expect("a share").of(719), 72);
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_its_number() {
        for (json, said) in [
            (r#"[{"keep":{"from":2,"to":2}}]"#, "step 1: from 2 to 2 there is nothing"),
            (r#"[{"keep":{}},{"remove":[]}]"#, "step 2: remove: 0 stretches"),
            (r#"[{"remove":[{}]}]"#, "nothing would be left"),
            (r#"[{"keep":{"from":-1}}]"#, "-1 s is not from 0"),
            (r#"[{"overlay":{"source":{"url":"s3://b/w"},"height":0}}]"#, "height is 0"),
            (r#"[{"overlay":{"source":{"url":"s3://b/w"},"height":1.5}}]"#, "1.5 is not from 0 to 1"),
            (r#"[{"blur":{}}]"#, "unknown variant"),
        ] {
            let refused = steps(json).expect_err("refused");
            assert!(refused.contains(said), "'{said}' in '{refused}'");
        }
    }
}
