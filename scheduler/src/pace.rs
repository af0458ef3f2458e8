//! How fast pictures are encoded here, and so how much of one makes a good piece of work.

use farm::Rate;
use farm::media::VideoTrack;
use farm::plan::{Plan, Rung, VideoPlan};
use farm::rate::SECOND_NS;
use farm::task::TaskId;

use crate::seal::Seal;

/// CPU time that a piece of work should take: so short that little is lost with it, so long that starting it does not count (a
/// third of a CPU second: a process, its plugins, the frames from the key frame before).
const PIECE_NS: u64 = 45 * SECOND_NS;

/// The same of a rung that can be played before the others: so many workers can be at it at once, also for half a minute of
/// video. Starting them costs up to a sixth of it, of what is a fifth of all.
const FIRST_PIECE_NS: u64 = 2 * SECOND_NS;

/// Pieces of a video's last third are so much smaller: workers that run out of pieces wait for the others' last ones.
const LAST_DIVISOR: u64 = 2;

/// What takes no longer is one piece of work.
const ALONE_NS: u64 = 60 * SECOND_NS;

/// Longest piece of work, in ns of media, however little it costs.
const MEDIA_NS_MAX: u64 = 600 * SECOND_NS;

/// A pixel that is decoded and scaled costs about so much less than one that is encoded (measured on 720p of 5 Mbit/s).
const DECODE_DIVISOR: u64 = 3;

/// CPU time per pixel of work, in ps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace(u64);

impl Pace {
    /// What it is until something was measured: x264 veryfast on a core of 2023.
    pub const USUAL: Self = Self(10_000);

    /// What is believed of a measure, against [`Pace::USUAL`]: a clock may lie, and a child may be told to wait.
    const BELIEVED: std::ops::RangeInclusive<u64> = Self::USUAL.0 / 20..=Self::USUAL.0 * 50;

    /// The pace when so much CPU time was spent on so many pixels; it is approached by quarters.
    #[must_use]
    pub fn measured(self, cpu_ms: u64, pixels: u128) -> Self {
        let Some(found) = (u128::from(cpu_ms) * 1_000_000_000).checked_div(pixels) else { return self };
        let found = u64::try_from(found).unwrap_or(u64::MAX).clamp(*Self::BELIEVED.start(), *Self::BELIEVED.end());
        Self((3 * self.0 + found) / 4)
    }

    /// The pace when this job's pictures have been made.
    #[must_use]
    pub fn after(self, plan: &Plan, track: &VideoTrack, seal: &Seal) -> Self {
        let Some(video) = &plan.video else { return self };
        let of_picture = seal.executions.iter().filter(|execution| matches!(execution.task, TaskId::Video(_)));
        self.measured(of_picture.map(|execution| execution.cost.cpu_ms).sum(), work(video, track))
    }

    /// As [`Pace::pieces`], of the rung that is made before the others.
    pub fn first_pieces(self, segments: u64, segment_frames: u64, frame_pixels: u64, rate: Rate) -> Vec<u64> {
        shares(segments, self.segments_in(FIRST_PIECE_NS, segment_frames, frame_pixels, rate))
    }

    /// How many segments are made in so much CPU time, at least one.
    fn segments_in(self, cpu_ns: u64, segment_frames: u64, frame_pixels: u64, rate: Rate) -> u64 {
        let segment_ps = u128::from(self.0) * u128::from(frame_pixels.max(1)) * u128::from(segment_frames.max(1));
        let media_max = MEDIA_NS_MAX / rate.start_ns(segment_frames.max(1)).max(1);
        let fit = u64::try_from(u128::from(cpu_ns) * 1000 / segment_ps.max(1)).unwrap_or(u64::MAX);
        fit.min(media_max).max(1)
    }

    /// Sizes of the pieces that so many segments of a picture are cut up into, in segments.
    pub fn pieces(self, segments: u64, segment_frames: u64, frame_pixels: u64, rate: Rate) -> Vec<u64> {
        let in_time = |cpu_ns| self.segments_in(cpu_ns, segment_frames, frame_pixels, rate);
        if segments <= in_time(ALONE_NS) {
            return vec![segments];
        }
        let (first, size) = (segments - segments / 3, in_time(PIECE_NS));
        let last_size = (size / LAST_DIVISOR).max(1);
        let of = |total: u64, size: u64| parts(total, total.div_ceil(size));
        [of(first, size), of(segments - first, last_size)].concat()
    }
}

/// `total` in parts of about `wanted` each, of which none is much smaller than the others; the larger ones come first.
pub fn shares(total: u64, wanted: u64) -> Vec<u64> {
    let wanted = wanted.max(1);
    parts(total, (2 * total + wanted) / (2 * wanted))
}

/// `total` in so many parts, or fewer where they would be empty.
fn parts(total: u64, count: u64) -> Vec<u64> {
    let count = count.clamp(1, total.max(1));
    let (share, larger) = (total / count, total % count);
    (0..count).map(|index| if index < larger { share + 1 } else { share }).filter(|&size| size > 0).collect()
}

/// Pixels of work that a frame of the grid is, on average.
pub fn frame_pixels(rungs: &[Rung], track: &VideoTrack) -> u64 {
    let encoded = rungs.iter().filter(|rung| !rung.is_copied());
    let encoded: u64 = encoded.map(effort).sum();
    encoded + u64::from(track.width) * u64::from(track.height) / DECODE_DIVISOR
}

/// Work of encoding a rung, in pixels of H.264 for each frame of the grid.
pub fn effort(rung: &Rung) -> u64 {
    let pixels = u64::from(rung.width) * u64::from(rung.height);
    pixels * u64::from(rung.codec.effort()) / u64::from(rung.divisor.get())
}

fn work(video: &VideoPlan, track: &VideoTrack) -> u128 {
    u128::from(frame_pixels(&video.rungs, track)) * u128::from(video.frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 900;

    fn pieces(pace: Pace, segments: u64, pixels: u64) -> Vec<u64> {
        pace.pieces(segments, 100, pixels, "25".parse().expect("a rate"))
    }

    #[test]
    fn pieces_cost_about_as_much_whatever_the_size_and_the_last_ones_half() {
        // A ladder from 720p: 1.97 million pixels, 2 s for each segment.
        let ladder = pieces(Pace::USUAL, HOUR, 1_970_000);
        assert_eq!((ladder.first(), ladder.last(), ladder.iter().sum()), (Some(&22), Some(&10), HOUR));
        assert!(ladder.is_sorted_by(|a, b| a >= b), "{ladder:?}");
        // From 2160p ten times as many.
        let large = pieces(Pace::USUAL, HOUR, 19_700_000);
        assert_eq!((large.first(), large.last(), large.iter().sum()), (Some(&2), Some(&1), HOUR));
        assert_eq!(pieces(Pace::USUAL, 30, 1_970_000), [30], "a minute of work is one piece");
        assert_eq!(pieces(Pace::USUAL, 1, u64::MAX), [1], "a piece is a segment at least");
        assert_eq!(pieces(Pace::USUAL, HOUR, 1_000).first(), Some(&150), "and ten minutes at most");
        assert_eq!(pieces(Pace::USUAL, 0, 1), [0]);
    }

    #[test]
    fn a_slow_farm_has_smaller_pieces_once_it_is_known_to_be_slow() {
        let mut pace = Pace::USUAL;
        for _ in 0..20 {
            // Four times as long as usual.
            pace = pace.measured(40_000, 1_000_000_000);
        }
        let slow = pieces(pace, HOUR, 1_970_000);
        assert!(matches!(slow.first(), Some(5 | 6)), "{slow:?}");
        assert_eq!(Pace::USUAL.measured(1, 0), Pace::USUAL, "nothing was done");
        assert!(Pace::USUAL.measured(u64::MAX, 1).0 <= 14 * Pace::USUAL.0, "no measure is believed without limit");
    }

    #[test]
    fn shares_are_equal_but_for_one() {
        assert_eq!(shares(17, 8), [9, 8]);
        assert_eq!(shares(3, 1), [1, 1, 1]);
        assert_eq!(shares(1, 9), [1]);
        assert_eq!(shares(0, 9), [0; 0]);
    }
}
