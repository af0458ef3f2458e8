//! Which workers there are, as far as was heard lately. Nothing is decided by it: it is there to be shown.

use std::collections::BTreeMap;

use farm::presence::{Duty, Presence};
use farm::task::Token;

/// How long a worker counts as there that says nothing more, in ms. Workers say something every 10 s.
const KEPT_MS: u64 = 30_000;
/// Most workers that are remembered.
const WORKERS_MAX: usize = 10_000;

/// What workers said of themselves.
#[derive(Debug, Default)]
pub struct Workers {
    heard: BTreeMap<Token, Heard>,
}

#[derive(Debug)]
struct Heard {
    until_ms: u64,
    presence: Presence,
}

impl Workers {
    /// Takes note of what a worker says of itself at this time.
    pub fn note(&mut self, presence: Presence, now_ms: u64) {
        let has_room = self.heard.len() < WORKERS_MAX || self.heard.contains_key(&presence.worker);
        if has_room && presence.is_sound() {
            let until_ms = now_ms.saturating_add(KEPT_MS);
            self.heard.insert(presence.worker.clone(), Heard { until_ms, presence });
        }
    }

    /// Forgets those that say nothing more.
    pub fn expire(&mut self, now_ms: u64) {
        self.heard.retain(|_, heard| heard.until_ms > now_ms);
    }

    /// Those that are there, in the order of their names.
    pub fn now(&self, now_ms: u64) -> impl Iterator<Item = &Presence> {
        self.heard.values().filter(move |heard| heard.until_ms > now_ms).map(|heard| &heard.presence)
    }

    /// How many are there that take tasks, or that do not.
    pub fn count(&self, duty: Duty, now_ms: u64) -> usize {
        self.now(now_ms).filter(|presence| presence.duty == duty).count()
    }
}

#[cfg(test)]
mod tests;
