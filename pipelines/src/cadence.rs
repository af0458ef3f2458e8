//! Which source frame is shown at each place of the constant frame grid.
//!
//! A frame stands at the place nearest to its time. Of several frames at one place the one nearest to the place's own time
//! is shown there. Places that no frame stands at show the last frame before them. The rule looks at times alone, so chunks
//! decide alike about the same frames.

use std::ops::Range;

use farm::Rate;
use farm::task::Account;

/// Places frames on the part of the grid that a chunk covers.
pub struct Cadence<F> {
    rate: Rate,
    origin_ns: u64,
    frames: Range<u64>,
    held: Option<Held<F>>,
    account: Account,
}

/// The frames of one place, until a frame of a later place comes.
struct Held<F> {
    /// Where they stand.
    place: u64,
    /// The first place that has not been filled: before `place` only for the first frame of all, which is shown early.
    next: u64,
    /// The frame that is nearest to the place, and its distance.
    nearest: F,
    distance_ns: u64,
    /// The last frame, where it is another.
    last: Option<F>,
}

/// What to show: this frame, at these places.
#[derive(Debug, PartialEq, Eq)]
pub struct Show<F> {
    /// The frame.
    pub frame: F,
    /// Places of the grid.
    pub places: Range<u64>,
}

impl<F: Clone> Cadence<F> {
    /// For the places `frames` of a grid whose place 0 is at stream time `origin_ns`.
    pub fn new(rate: Rate, origin_ns: u64, frames: Range<u64>) -> Self {
        Self { rate, origin_ns, frames, held: None, account: Account::default() }
    }

    /// Takes the next frame in order of time; says what is now known to be shown.
    pub fn push(&mut self, start_ns: u64, frame: F) -> Vec<Show<F>> {
        let time_ns = start_ns.saturating_sub(self.origin_ns);
        let place = self.rate.nearest_frame(time_ns);
        let distance_ns = start_ns.abs_diff(self.origin_ns.saturating_add(self.rate.start_ns(place)));
        let alone = |next| Held { place, next, nearest: frame.clone(), distance_ns, last: None };
        let Some(held) = self.held.take() else {
            self.held = Some(alone(place.min(self.frames.start)));
            return Vec::new();
        };
        if place > held.place {
            self.held = Some(alone(place));
            return self.show(held, place);
        }
        let dropped = u64::from(self.frames.contains(&held.place));
        self.held = Some(if distance_ns < held.distance_ns {
            self.account.dropped += dropped * (1 + u64::from(held.last.is_some()));
            Held { nearest: frame, distance_ns, last: None, ..held }
        } else {
            self.account.dropped += dropped * u64::from(held.last.is_some());
            Held { last: Some(frame), ..held }
        });
        Vec::new()
    }

    /// Whether every place of the chunk is filled.
    pub fn is_full(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.next >= self.frames.end)
    }

    /// No more frames come: the last one fills the rest. Places that it fills beyond its own are missing frames when
    /// the source ended early.
    pub fn finish(mut self) -> (Vec<Show<F>>, Account) {
        let Some(held) = self.held.take() else {
            self.account.missing = self.frames.end - self.frames.start;
            return (Vec::new(), self.account);
        };
        let own_end = (held.place + 1).max(self.frames.start);
        self.account.missing = self.frames.end.saturating_sub(own_end);
        let shows = self.show(held, self.frames.end);
        (shows, self.account)
    }

    /// Shows what is held at all places before `until`, as far as they belong to the chunk.
    fn show(&mut self, held: Held<F>, until: u64) -> Vec<Show<F>> {
        let Held { place, next, nearest, last, .. } = held;
        let mut shows = Vec::new();
        // What no longer has a place of its own after the one it shares is not shown.
        if last.is_some() && until <= place + 1 {
            self.account.dropped += u64::from(self.frames.contains(&place));
        }
        let nearest_until = if last.is_some() { place + 1 } else { until };
        let parts = [(Some(nearest), next..nearest_until, place), (last, place + 1..until, place + 1)];
        for (frame, places, own) in parts {
            let places = places.start.max(self.frames.start)..places.end.min(self.frames.end);
            let Some(frame) = frame.filter(|_| !places.is_empty()) else { continue };
            let is_own = u64::from(places.contains(&own));
            self.account.kept += is_own;
            self.account.filled += places.end - places.start - is_own;
            shows.push(Show { frame, places });
        }
        shows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(text: &str) -> Rate {
        text.parse().expect("a rate")
    }

    fn run(rate: Rate, frames: Range<u64>, times: &[u64]) -> (Vec<(u64, usize)>, Account) {
        let mut cadence = Cadence::new(rate, 0, frames);
        let mut shown = Vec::new();
        let mut take = |shows: Vec<Show<usize>>| {
            shown.extend(shows.into_iter().flat_map(|s| s.places.map(move |p| (p, s.frame))));
        };
        for (n, &time) in times.iter().enumerate() {
            take(cadence.push(time, n));
        }
        let (rest, account) = cadence.finish();
        take(rest);
        (shown, account)
    }

    #[test]
    fn constant_frames_stand_each_at_its_own_place_whatever_the_rounding() {
        let ntsc = rate("30000/1001");
        for rounding in [1, 1_000, 1_000_000] {
            let times: Vec<_> = (0..100).map(|n| ntsc.start_ns(n) / rounding * rounding).collect();
            let (shown, account) = run(ntsc, 0..100, &times);
            assert_eq!(shown, (0..100).map(|n| (n as u64, n)).collect::<Vec<_>>());
            assert_eq!(account, Account { kept: 100, ..Account::default() });
        }
    }

    #[test]
    fn gaps_are_filled_and_crowds_thinned() {
        let (shown, account) = run(rate("10"), 0..6, &[0, 20_000_000, 400_000_000]);
        assert_eq!(shown.iter().map(|(_, frame)| *frame).collect::<Vec<_>>(), [0, 1, 1, 1, 2, 2]);
        assert_eq!(account, Account { kept: 3, filled: 3, missing: 1, ..Account::default() });
    }

    #[test]
    fn at_half_the_rate_every_second_frame_is_shown_whatever_the_rounding() {
        let (double, half) = (rate("60"), rate("30"));
        for shift in [0, 1, 2] {
            let times: Vec<_> = (0..100).map(|n| double.start_ns(n) + shift).collect();
            let (shown, account) = run(half, 0..50, &times);
            assert_eq!(shown, (0..50).map(|n| (n, 2 * n as usize)).collect::<Vec<_>>());
            assert_eq!(account.kept, 50);
        }
    }

    proptest! {
        /// Chunks show together just what the whole shows.
        #[test]
        fn chunks_agree_with_the_whole(steps in prop::collection::vec(0_u64..300_000_000, 1..60), cut in 1_u64..40) {
            let times: Vec<u64> = steps.iter().scan(0, |t, step| { *t += step; Some(*t - steps.first().copied().unwrap_or(0)) }).collect();
            let rate = rate("25");
            let end = rate.nearest_frame(*times.last().expect("one")) + 1;
            let cut = cut.min(end);
            let (whole, account) = run(rate, 0..end, &times);
            let (first, a) = run(rate, 0..cut, &times);
            let (second, b) = run(rate, cut..end, &times);
            prop_assert_eq!(whole.len() as u64, end);
            prop_assert_eq!(whole, [first, second].concat());
            prop_assert_eq!(account.kept, a.kept + b.kept);
            prop_assert_eq!(account.dropped, a.dropped + b.dropped);
            prop_assert_eq!(account.kept + account.dropped, times.len() as u64);
            prop_assert_eq!(account.kept + account.filled, end);
            prop_assert_eq!(account.filled, a.filled + b.filled);
        }
    }
}
