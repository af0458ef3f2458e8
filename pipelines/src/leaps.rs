//! Times that cannot be true: a few damaged bits put a packet hours away from all others, and the picture would stand still
//! for as long.

use std::ops::Range;

use farm::rate::SECOND_NS;

/// Shortest time without any packet that is doubted: screen recordings stand still for long.
const GAP_NS_MIN: u64 = 60 * SECOND_NS;
/// How many times as long as all the rest it has to be.
const GAP_FACTOR: u64 = 10;

/// The stream times, in ns, between which the packets of a source are believed: all of them, unless nearly all of its time is one
/// gap in all tracks; then those on the side of it that has more packets. `times` are the tracks' own, each in order.
pub fn believable(times: &[&[u64]]) -> Range<u64> {
    let mut all: Vec<u64> = times.iter().flat_map(|track| track.iter().copied()).collect();
    all.sort_unstable();
    let mut kept = all.as_slice();
    while let Some((end, gap_ns)) = widest_gap(kept) {
        let rest_ns = kept.last().zip(kept.first()).map_or(0, |(last, first)| last - first - gap_ns);
        if gap_ns < GAP_NS_MIN || gap_ns / GAP_FACTOR < rest_ns {
            break;
        }
        let (before, after) = kept.split_at(end);
        kept = if before.len() >= after.len() { before } else { after };
    }
    let first = kept.first().filter(|first| all.first() != Some(*first)).copied().unwrap_or(0);
    let end = kept.last().filter(|last| all.last() != Some(*last)).map_or(u64::MAX, |last| last + 1);
    first..end
}

/// After how many of these times there is the most time up to the next, and how much.
fn widest_gap(times: &[u64]) -> Option<(usize, u64)> {
    let gaps = times.iter().zip(times.iter().skip(1)).map(|(time, next)| next - time);
    (1..).zip(gaps).max_by_key(|(_, gap)| *gap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(times: impl IntoIterator<Item = u64>) -> Vec<u64> {
        times.into_iter().map(|second| second * SECOND_NS).collect()
    }

    #[test]
    fn a_packet_far_away_from_all_others_is_not_believed() {
        let late = seconds((0..6).chain([11_931]));
        assert_eq!(believable(&[&late]), 0..5 * SECOND_NS + 1);
        let early = seconds([0].into_iter().chain(95_000..95_009));
        assert_eq!(believable(&[&early]), 95_000 * SECOND_NS..u64::MAX);
        let both = seconds([0].into_iter().chain(5000..5009).chain([500_000]));
        assert_eq!(believable(&[&both]), 5000 * SECOND_NS..5008 * SECOND_NS + 1);
    }

    #[test]
    fn pictures_that_stand_still_are_believed() {
        assert_eq!(believable(&[&seconds([0, 1, 50])]), 0..u64::MAX, "not long");
        assert_eq!(believable(&[&seconds((0..30).chain([300]))]), 0..u64::MAX, "not ten times as long as the rest");
        assert_eq!(believable(&[&seconds([0, 3600]), &seconds(0..3600)]), 0..u64::MAX, "there is sound meanwhile");
        assert_eq!(believable(&[&[], &seconds([7])]), 0..u64::MAX);
        assert_eq!(believable(&[]), 0..u64::MAX);
    }
}
