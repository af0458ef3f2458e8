//! How a message waits inside the broker, without a plugin: a chain of levels.
//!
//! Level *n* is a queue whose messages expire after 2ⁿ s, behind a topic exchange. The routing key spells the delay in binary,
//! highest level first, then the target. At each level the message goes through the queue when its bit is 1, past it when it is
//! 0, and on to the exchange of the next lower level; below level 0 stands the exchange that leads to the target. Every queue
//! holds messages of one age only, so none waits behind another that is due later.

use std::time::Duration;

use super::topology::PREFIX;

/// How many levels there are.
pub(super) const LEVELS: u32 = 12;

/// Longest delay: all bits set.
pub(super) const DELAY_MAX: Duration = Duration::from_secs((1 << LEVELS) - 1);

/// Exchange that leads from the end of the chain to the target.
pub(super) fn end() -> String {
    format!("{PREFIX}.delay.end")
}

/// Name of a level's exchange, and of its queue.
pub(super) fn level(n: u32) -> String {
    format!("{PREFIX}.delay.{n:02}")
}

/// Exchange that follows a level's queue.
pub(super) fn after(n: u32) -> String {
    n.checked_sub(1).map_or_else(end, level)
}

/// Pattern of the routing keys that have this bit at a level.
pub(super) fn bit_pattern(n: u32, bit: u8) -> String {
    let above = usize::try_from(LEVELS - 1 - n).unwrap_or_default();
    format!("{}{bit}.#", "*.".repeat(above))
}

/// Pattern of the routing keys that lead to this queue.
pub(super) fn target_pattern(queue: &str) -> String {
    format!("{}{queue}", "*.".repeat(LEVELS as usize))
}

/// Where to publish a message so that it comes to this queue after the delay: exchange and routing key. Rounded up to whole
/// seconds; `None` above [`DELAY_MAX`].
pub(super) fn route(queue: &str, delay: Duration) -> Option<(String, String)> {
    let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
    let Some(top) = seconds.checked_ilog2() else {
        // The default exchange: the routing key is the name of the queue.
        return Some((String::new(), queue.to_owned()));
    };
    if top >= LEVELS {
        return None;
    }
    let bits = (0..LEVELS).rev().map(|n| if seconds >> n & 1 == 1 { "1." } else { "0." });
    Some((level(top), bits.chain([queue]).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows a message through the exchanges as a broker would; gives the seconds it spent in queues and where it ended.
    fn walk(exchange: &str, key: &str) -> (u64, String) {
        let matches = |pattern: &str| {
            let (pattern, open) = pattern.strip_suffix(".#").map_or((pattern, false), |start| (start, true));
            let (wanted, words): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), key.split('.').collect());
            (open || wanted.len() == words.len()) && wanted.iter().zip(&words).all(|(a, b)| *a == "*" || a == b)
        };
        let (mut at, mut seconds) = (exchange.to_owned(), 0);
        while at != end() {
            let n = (0..LEVELS).find(|n| level(*n) == at).unwrap();
            let (through, past) = (matches(&bit_pattern(n, 1)), matches(&bit_pattern(n, 0)));
            assert!(through != past, "a message takes one way: {key} at {at}");
            seconds += if through { 1 << n } else { 0 };
            at = after(n);
        }
        let target = ["shoal.v1.jobs", "shoal.v1.tasks.cpu", "shoal.v1.dead"].into_iter().find(|q| matches(&target_pattern(q)));
        (seconds, target.unwrap().to_owned())
    }

    #[test]
    fn a_message_waits_as_long_as_its_key_says_and_never_less() {
        for millis in (1..40_000).step_by(7).chain([999, 1000, 1001, 4_094_001, 4_095_000]) {
            let delay = Duration::from_millis(millis);
            let (exchange, key) = route("shoal.v1.tasks.cpu", delay).unwrap();
            assert!(key.len() < 255);
            let (seconds, target) = walk(&exchange, &key);
            let waited = Duration::from_secs(seconds);
            assert!(waited >= delay && waited < delay + Duration::from_secs(1), "{delay:?} became {waited:?}");
            assert_eq!(target, "shoal.v1.tasks.cpu");
        }
    }

    #[test]
    fn no_delay_goes_straight_and_too_long_a_one_nowhere() {
        assert_eq!(route("q", Duration::ZERO), Some((String::new(), "q".to_owned())));
        assert!(route("q", DELAY_MAX).is_some());
        assert_eq!(route("q", DELAY_MAX + Duration::from_nanos(1)), None);
    }
}
