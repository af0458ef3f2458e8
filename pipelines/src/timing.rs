//! The constant frame rate that fits a track's time stamps.

use farm::Rate;
use farm::media::Timing;
use farm::rate::SECOND_NS;

/// Rates in use, for sources that do not say theirs or say it wrong.
const USUAL: [(u32, u32); 19] = [
    (24_000, 1001),
    (24, 1),
    (25, 1),
    (30_000, 1001),
    (30, 1),
    (48, 1),
    (50, 1),
    (60_000, 1001),
    (60, 1),
    (120_000, 1001),
    (120, 1),
    (25, 2),
    (15, 1),
    (12, 1),
    (10, 1),
    (20, 1),
    (8, 1),
    (5, 1),
    (1, 1),
];
/// A last frame is believed to last this long at most.
const LAST_FRAME_NS_MAX: u64 = 10 * SECOND_NS;
/// What a single frame's rate is taken for.
const FALLBACK: (u32, u32) = (25, 1);

/// The timing of a track whose frames start at `times` (sorted, in ns), by the rate that puts each frame on its own place
/// if there is one: the container's, a usual one, or the mean; else the rate nearest to the usual distance of frames.
/// `None` without frames.
pub fn timing(times: &[u64], claimed: Option<Rate>, last_duration_ns: Option<u64>) -> Option<Timing> {
    let (&first, &last) = (times.first()?, times.last()?);
    let frames = times.len() as u64;
    let mean = mean_rate(frames, last - first);
    let near_mean = mean.and_then(|mean| nearest_usual(mean.as_f64()));
    let fits = |rate: &Rate| times.iter().zip(0..).all(|(t, place)| rate.nearest_frame(t - first) == place);
    let constant = [claimed, near_mean, mean].into_iter().flatten().find(fits);
    let fallback = || Rate::new(FALLBACK.0, FALLBACK.1);
    let rate = constant.or_else(|| usual_distance(times, claimed)).or(claimed).or_else(fallback)?;
    let own = rate.start_ns(1);
    let held = last_duration_ns.filter(|&d| d > 2 * own).map_or(own, |d| d.min(LAST_FRAME_NS_MAX));
    let end_ns = if constant.is_some() && held == own { first + rate.start_ns(frames) } else { last + held };
    Some(Timing { rate, start_ns: first, end_ns, frames, constant: constant.is_some() })
}

fn mean_rate(frames: u64, span_ns: u64) -> Option<Rate> {
    let intervals = frames.checked_sub(1).filter(|&n| n > 0)?;
    if span_ns == 0 {
        return None;
    }
    let milli = (u128::from(intervals) * u128::from(SECOND_NS) * 1000 + u128::from(span_ns) / 2) / u128::from(span_ns);
    Rate::new(u32::try_from(milli).ok()?, 1000)
}

/// A usual rate within 1 % of this.
fn nearest_usual(per_second: f64) -> Option<Rate> {
    let rates = USUAL.into_iter().filter_map(|(num, den)| Rate::new(num, den));
    let distance = |rate: &Rate| (rate.as_f64() / per_second - 1.0).abs();
    rates.min_by(|a, b| distance(a).total_cmp(&distance(b))).filter(|rate| distance(rate) < 0.01)
}

/// The rate on whose grid frames of uneven distance stand best: a usual one or the container's own near the median distance,
/// or that itself.
fn usual_distance(times: &[u64], claimed: Option<Rate>) -> Option<Rate> {
    let mut distances: Vec<_> =
        times.windows(2).filter_map(|pair| pair.last()?.checked_sub(*pair.first()?)).filter(|&d| d > 0).collect();
    distances.sort_unstable();
    let median = mean_rate(2, *distances.get(distances.len() / 2)?)?;
    let near = |rate: &Rate| (rate.as_f64() / median.as_f64() - 1.0).abs() < 0.04;
    let usual = USUAL.into_iter().filter_map(|(num, den)| Rate::new(num, den));
    // The first of those that are equally good.
    usual.chain(claimed).filter(near).min_by_key(|rate| misplacement(times, *rate)).or(Some(median))
}

/// How badly frames stand on a grid: how many share a place, and how far they are off it, in tenths of a place.
fn misplacement(times: &[u64], rate: Rate) -> (usize, u64) {
    let (Some(&first), own) = (times.first(), rate.start_ns(1).max(1)) else { return (0, 0) };
    let places: Vec<_> = times.iter().map(|t| rate.nearest_frame(t - first)).collect();
    let shared = places.windows(2).filter(|pair| pair.first() == pair.last()).count();
    let off: u64 = times.iter().zip(&places).map(|(t, &place)| (t - first).abs_diff(rate.start_ns(place))).sum();
    (shared, off * 10 / own / times.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        text.parse().expect("a rate")
    }

    fn times(rate: Rate, frames: u64, unit: u64) -> Vec<u64> {
        (0..frames).map(|n| 40_000_000 + rate.start_ns(n) / unit * unit).collect()
    }

    #[test]
    fn constant_rates_are_found_whatever_is_claimed_and_however_times_are_rounded() {
        for text in ["24000/1001", "24/1", "25/1", "30000/1001", "30/1", "50/1", "60000/1001", "60/1", "25/2"] {
            for unit in [1, 1_000_000] {
                for claimed in [None, Some(rate(text)), Some(rate("1000"))] {
                    let found = timing(&times(rate(text), 2000, unit), claimed, None).expect("frames");
                    assert_eq!((found.rate, found.constant), (rate(text), true), "{text} {unit} {claimed:?}");
                    assert_eq!(found.end_ns, 40_000_000 + rate(text).start_ns(2000));
                }
            }
        }
    }

    #[test]
    fn a_claim_is_believed_where_the_times_agree() {
        let found = timing(&times(rate("30000/1001"), 20, 1_000_000), Some(rate("30000/1001")), None).expect("frames");
        assert_eq!(found.rate, rate("30000/1001"));
        let odd = timing(&times(rate("120000/1999"), 300, 1), Some(rate("120000/1999")), None).expect("frames");
        assert_eq!((odd.rate, odd.constant), (rate("120000/1999"), true));
    }

    #[test]
    fn variable_rates_become_the_usual_distance() {
        let mut uneven = times(rate("30"), 300, 1);
        uneven.retain(|t| t % 7 != 0);
        uneven.drain(100..130);
        let found = timing(&uneven, None, Some(5 * SECOND_NS)).expect("frames");
        assert_eq!((found.rate, found.constant), (rate("30"), false));
        assert_eq!(found.end_ns, uneven.last().expect("one") + 5 * SECOND_NS);
    }

    #[test]
    fn frames_left_out_of_a_constant_rate_leave_its_grid() {
        for text in ["24000/1001", "25", "30000/1001", "30"] {
            let mut holes = times(rate(text), 300, 1);
            holes.drain(60..63);
            holes.remove(200);
            let mean = mean_rate(296, rate(text).start_ns(300));
            let found = timing(&holes, mean, None).expect("frames");
            assert_eq!((found.rate, found.constant), (rate(text), false));
        }
    }

    #[test]
    fn a_single_frame_has_a_duration() {
        assert_eq!(timing(&[7], None, None).map(|t| t.end_ns), Some(7 + 40_000_000));
        assert_eq!(timing(&[], None, None), None);
    }
}
