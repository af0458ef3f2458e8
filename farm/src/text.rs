//! Text tracks: subtitles and captions, which become renditions of WebVTT (<https://www.w3.org/TR/webvtt1/>).

use std::fmt;
use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::{RenditionId, segment_lengths};
use crate::task::Object;

/// Which text tracks become renditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TextPlan {
    /// The renditions, in the source's order.
    pub tracks: Vec<TextTrackPlan>,
    /// Stream time at which presentation starts, in ns.
    pub origin_ns: u64,
    /// How long the result lasts, in ns: what is shown later is left out.
    pub duration_ns: u64,
    /// Wanted duration of a segment in ns.
    pub segment_ns: u64,
}

/// A rendition of text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TextTrackPlan {
    /// Its name in paths.
    pub id: RenditionId,
    /// The stream to read.
    pub stream: StreamName,
    /// Language as ISO 639, if known.
    pub language: Option<String>,
    /// Name to show.
    pub name: String,
}

/// Names a text stream of a source, as its demuxer does: other than picture and sound, which have a
/// [`crate::media::TrackId`], streams of text are not shown in the same order every time.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct StreamName(pub String);

impl TextPlan {
    /// Most bytes of the segments of a rendition together, but for their heads.
    pub const WRITTEN_BYTES_MAX: u64 = 64 << 20;
    /// Bytes of a cue beside its text: two times, an arrow and line ends.
    const TIMES_BYTES: u64 = 32;

    /// Bytes that a cue takes in all segments in which it stands, about.
    pub fn written_bytes(&self, cue: &Cue) -> u64 {
        let whole = self.segment_ns.max(1);
        let segments = cue.end_ns.div_ceil(whole).saturating_sub(cue.start_ns / whole).max(1);
        (cue.text.len() as u64 + Self::TIMES_BYTES).saturating_mul(segments)
    }

    /// How long each segment lasts, in ns.
    pub fn segments(&self) -> Vec<u64> {
        segment_lengths(self.duration_ns, self.segment_ns)
    }
}

/// A text and when it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cue {
    /// When it appears, by presentation time in ns.
    pub start_ns: u64,
    /// When it goes away, by presentation time in ns.
    pub end_ns: u64,
    /// The cue text of WebVTT: lines, none of them empty, with `&`, `<` and `>` escaped but for tags.
    pub text: String,
}

impl Cue {
    /// Most cues of a rendition.
    pub const COUNT_MAX: usize = 100_000;
    /// Most bytes of the texts of a rendition together.
    pub const TEXT_BYTES_MAX: usize = 8 << 20;

    /// Whether it can stand in a file of WebVTT without being taken for something else, and is shown within a duration.
    pub fn is_proper(&self, duration_ns: u64) -> bool {
        let is_line = |line: &str| !line.trim().is_empty() && !line.contains("-->") && !line.chars().any(char::is_control);
        self.start_ns < self.end_ns && self.end_ns <= duration_ns && !self.text.is_empty() && self.text.split('\n').all(is_line)
    }
}

/// The segments of a rendition as files of WebVTT. A cue stands in each segment in which it is shown (RFC 8216, 3.5): players
/// know it again by its times and its text.
pub fn segments(plan: &TextPlan, cues: &[Cue]) -> Vec<String> {
    let mut start_ns = 0;
    let segment = |length_ns| {
        let shown = start_ns..start_ns + length_ns;
        start_ns = shown.end;
        // Times are those of the whole presentation.
        let mut text = "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:0\n".to_owned();
        for cue in cues.iter().filter(|cue| cue.start_ns < shown.end && cue.end_ns > shown.start) {
            // Writing to a text cannot fail.
            let _ = write!(text, "\n{} --> {}\n{}\n", Clock(cue.start_ns), Clock(cue.end_ns), cue.text);
        }
        text
    };
    plan.segments().into_iter().map(segment).collect()
}

/// A time in ns as WebVTT has it, to the ms.
#[derive(Clone, Copy, Debug)]
pub struct Clock(pub u64);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = (self.0 + 500_000) / 1_000_000;
        write!(f, "{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
    }
}

/// What became of a text track of the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TextAccount {
    /// Cues of the rendition.
    pub cues: u64,
    /// Cues that lost places, fonts or colours.
    pub plainer: u64,
    /// Cues beyond the limits, which are left out.
    pub cut: u64,
}

/// A rendition of text that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Texts {
    /// The rendition.
    pub rendition: RenditionId,
    /// Its segments in order, each as long as the plan says.
    pub segments: Vec<Object>,
    /// What became of the source's cues.
    pub account: TextAccount,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn cue(start_s: u64, end_s: u64, text: &str) -> Cue {
        Cue { start_ns: start_s * SECOND_NS, end_ns: end_s * SECOND_NS, text: text.to_owned() }
    }

    #[test]
    fn a_cue_stands_in_every_segment_in_which_it_is_shown() {
        let plan = TextPlan { tracks: Vec::new(), origin_ns: 0, duration_ns: 130 * SECOND_NS, segment_ns: 60 * SECOND_NS };
        let made = segments(&plan, &[cue(1, 2, "one"), cue(59, 61, "<i>over</i>\nthe edge"), cue(60, 61, "two")]);
        let head = "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:0\n";
        let over = "\n00:00:59.000 --> 00:01:01.000\n<i>over</i>\nthe edge\n";
        assert_eq!(
            made,
            [
                format!("{head}\n00:00:01.000 --> 00:00:02.000\none\n{over}"),
                format!("{head}{over}\n00:01:00.000 --> 00:01:01.000\ntwo\n"),
                head.to_owned(),
            ]
        );
    }

    #[test]
    fn a_cue_takes_its_bytes_in_every_segment() {
        let plan = TextPlan { tracks: Vec::new(), origin_ns: 0, duration_ns: 130 * SECOND_NS, segment_ns: 60 * SECOND_NS };
        let taken = |start_s, end_s| plan.written_bytes(&cue(start_s, end_s, "12345678")) / 40;
        assert_eq!([taken(0, 1), taken(59, 60), taken(59, 61), taken(0, 130)], [1, 1, 2, 3]);
    }

    #[test]
    fn what_would_be_taken_for_something_else_is_no_proper_cue() {
        let is_proper = |cue: Cue| cue.is_proper(10 * SECOND_NS);
        assert!(is_proper(cue(1, 2, "a\nb")) && is_proper(cue(0, 10, "a")));
        for text in ["", "a\n\nb", "a\n", "a\rb", "1 --> 2", "a\n \nb", "\u{0}"] {
            assert!(!is_proper(cue(1, 2, text)), "{text:?}");
        }
        assert!(!is_proper(cue(2, 2, "a")) && !is_proper(cue(3, 2, "a")) && !is_proper(cue(9, 11, "a")));
    }

    #[test]
    fn times_are_rounded_to_the_millisecond() {
        assert_eq!(Clock(3_723_004_499_999).to_string(), "01:02:03.004");
        assert_eq!(Clock(999_500_000).to_string(), "00:00:01.000");
    }
}
