//! Which source frame is shown at each place of the constant frame grid.
//!
//! A frame stands at the place nearest to its time. A place that no frame stands at shows the frame before it; of several
//! frames at one place the last is shown. The rule looks at times alone, so chunks decide alike about the same frames.

use std::ops::Range;

use farm::Rate;
use farm::task::Account;

/// Places frames on the part of the grid that a chunk covers.
pub struct Cadence<F> {
    rate: Rate,
    origin_ns: u64,
    frames: Range<u64>,
    /// The next place to fill.
    next: u64,
    /// The frame to show from `next` on until another comes, and whether it has not been shown yet.
    held: Option<(F, bool)>,
    account: Account,
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
        Self { rate, origin_ns, next: frames.start, frames, held: None, account: Account::default() }
    }

    /// Takes the next frame in order of time; says what is now known to be shown.
    pub fn push(&mut self, start_ns: u64, frame: F) -> Option<Show<F>> {
        let place = self.rate.nearest_frame(start_ns.saturating_sub(self.origin_ns));
        let shown = self.show_until(place.min(self.frames.end));
        if place >= self.frames.end {
            return shown;
        }
        // A frame held for a place inside the chunk that is overtaken at the same place was never shown.
        if self.held.as_ref().is_some_and(|(_, fresh)| *fresh)
            && place >= self.frames.start
            && shown.is_none()
            && self.in_chunk(place)
        {
            self.account.dropped += 1;
        }
        let fresh = place >= self.frames.start;
        self.held = Some((frame, fresh));
        shown
    }

    /// Whether every place of the chunk is filled.
    pub fn is_full(&self) -> bool {
        self.next >= self.frames.end
    }

    /// No more frames come: the last one fills the rest. Places that it fills beyond its own are missing frames when
    /// the source ended early.
    pub fn finish(mut self) -> (Option<Show<F>>, Account) {
        let before = self.account.filled;
        let shown = self.show_until(self.frames.end);
        self.account.missing = self.account.filled - before;
        if shown.is_none() && !self.is_full() {
            self.account.missing = self.frames.end - self.next;
        }
        (shown, self.account)
    }

    fn in_chunk(&self, place: u64) -> bool {
        self.frames.contains(&place)
    }

    /// Shows the held frame at all places before `place`.
    fn show_until(&mut self, place: u64) -> Option<Show<F>> {
        // Before the first frame of all there is nothing to show: the first frame is shown early instead.
        let (frame, fresh) = self.held.as_mut()?;
        if place <= self.next {
            return None;
        }
        let places = self.next..place;
        let count = places.end - places.start;
        self.account.kept += u64::from(*fresh);
        self.account.filled += count - u64::from(*fresh);
        *fresh = false;
        self.next = place;
        Some(Show { frame: frame.clone(), places })
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
        let mut take =
            |show: Option<Show<usize>>| shown.extend(show.into_iter().flat_map(|s| s.places.map(move |p| (p, s.frame))));
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
        assert_eq!(shown.iter().map(|(_, frame)| *frame).collect::<Vec<_>>(), [1, 1, 1, 1, 2, 2]);
        assert_eq!(account, Account { kept: 2, dropped: 1, filled: 4, missing: 1, decode_errors: 0 });
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
        }
    }
}
