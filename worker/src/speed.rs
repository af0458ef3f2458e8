//! How fast this worker goes through media: the last minute's. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How far back it is looked.
const WINDOW: Duration = Duration::from_secs(60);
/// What is gone through in so long is one sum.
const STEP: Duration = Duration::from_secs(1);

/// What was gone through in the last minute.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    /// Media in ns, each with when it began to be counted; the oldest first.
    steps: VecDeque<(Instant, u64)>,
}

impl Speed {
    /// Takes note of media that was gone through, in ns.
    pub(crate) fn note(&mut self, media_ns: u64, now: Instant) {
        self.forget(now);
        match self.steps.back_mut() {
            Some((began, sum)) if now < *began + STEP => *sum = sum.saturating_add(media_ns),
            _ => self.steps.push_back((now, media_ns)),
        }
    }

    /// Seconds of media per second, in hundredths, since the first of it; none when there was none.
    pub(crate) fn now(&mut self, now: Instant) -> Option<f64> {
        self.forget(now);
        let (since, _) = self.steps.front()?;
        let media_ns = self.steps.iter().fold(0_u64, |sum, (_, ns)| sum.saturating_add(*ns));
        let passed = now.duration_since(*since).max(STEP);
        let speed = Duration::from_nanos(media_ns).as_secs_f64() / passed.as_secs_f64();
        Some((speed * 100.0).round() / 100.0)
    }

    fn forget(&mut self, now: Instant) {
        while self.steps.front().is_some_and(|(began, _)| *began + WINDOW <= now) {
            self.steps.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn it_is_that_of_the_last_minute_and_of_what_there_was_of_it() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut speed = Speed::default();
        assert_eq!(speed.now(start), None);
        for tenth in 0..200 {
            speed.note(SECOND_NS / 5, start + second * tenth / 10);
        }
        assert_eq!(speed.now(start + 20 * second), Some(2.0), "20 s of it, twice as fast as it plays");
        assert_eq!(speed.now(start + 40 * second), Some(1.0), "and nothing for as long");
        assert!(speed.steps.len() <= 60, "{}", speed.steps.len());
        assert_eq!(speed.now(start + 70 * second), Some(0.31), "what was made in the last minute alone");
        assert_eq!(speed.now(start + 80 * second), None);
    }

    #[test]
    fn what_came_at_once_is_not_endlessly_fast() {
        let start = Instant::now();
        let mut speed = Speed::default();
        speed.note(10 * SECOND_NS, start);
        assert_eq!(speed.now(start), Some(10.0));
        speed.note(u64::MAX, start);
        assert!(speed.now(start).is_some_and(f64::is_finite));
    }
}
