//! Which scheduler acts. A tick circulates on the event queue, which has one active consumer: whoever receives it acts, and
//! stops when none came for three periods. Each time the lead is gained a new *term* begins.
//!
//! This saves work and nothing more: every action can be done by two schedulers at once without harm.

use std::time::Duration;

use bytes::Bytes;
use farm::Failure;
use farm::keys;
use farm::storage::{Kind, Storage, StorageError};
use tokio::time::Instant;

use super::PARTITION;

/// After so many periods without a tick the lead is lost.
const PERIODS_MAX: u32 = 3;

/// How this scheduler stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Another acts, or nobody.
    Standby,
    /// Ticks come here; the term is not known yet.
    Gaining,
    /// This one acts.
    Acting {
        /// The term.
        term: u64,
        /// From then on tasks are handed out: before that, those that are running are listened to.
        issue_at: Instant,
    },
}

/// What is to be done about a tick that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnTick {
    /// There are two of them, and this one goes.
    Drop,
    /// Send it on, and look at the stored term, which should be this one.
    Keep(Option<u64>),
}

/// The lead of one scheduler.
pub(super) struct Lead {
    period: Duration,
    settle: Duration,
    standing: Standing,
    last_tick: Option<Instant>,
    /// When to send a tick because none came.
    missed_at: Instant,
}

impl Lead {
    /// A standby that will send a tick at once.
    pub(super) fn new(period: Duration, settle: Duration) -> Self {
        Self { period, settle, standing: Standing::Standby, last_tick: None, missed_at: Instant::now() }
    }

    /// The term, while this scheduler acts.
    pub(super) fn term(&self) -> Option<u64> {
        match self.standing {
            Standing::Acting { term, .. } => Some(term),
            Standing::Standby | Standing::Gaining => None,
        }
    }

    /// When tasks may be handed out; never on a standby.
    pub(super) fn issue_at(&self) -> Option<Instant> {
        match self.standing {
            Standing::Acting { issue_at, .. } => Some(issue_at),
            Standing::Standby | Standing::Gaining => None,
        }
    }

    /// A tick came.
    pub(super) fn on_tick(&mut self, now: Instant) -> OnTick {
        let too_soon = self.last_tick.is_some_and(|last| now.duration_since(last) < self.period.mul_f64(0.9));
        if too_soon {
            return OnTick::Drop;
        }
        self.last_tick = Some(now);
        self.missed_at = now + self.period * PERIODS_MAX;
        let term = self.term();
        if term.is_none() {
            self.standing = Standing::Gaining;
        }
        OnTick::Keep(term)
    }

    /// The stored term was looked at. Whether a new term begins.
    pub(super) fn on_term(&mut self, term: u64, now: Instant) -> bool {
        match self.standing {
            Standing::Acting { term: own, .. } if own == term => false,
            // The lead was lost while storage took its time.
            Standing::Standby => false,
            Standing::Acting { .. } | Standing::Gaining => {
                self.standing = Standing::Acting { term, issue_at: now + self.settle };
                true
            }
        }
    }

    /// Nothing is running that could be heard of: tasks may be handed out at once.
    pub(super) fn settle_now(&mut self, now: Instant) {
        if let Standing::Acting { issue_at, .. } = &mut self.standing {
            *issue_at = now.min(*issue_at);
        }
    }

    /// When something is to be done without a tick.
    pub(super) fn wake_at(&self) -> Instant {
        self.missed_at
    }

    /// Time has passed: whether a tick is to be sent because none came. The lead is lost then.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        if now < self.missed_at {
            return false;
        }
        if self.term().is_some() {
            tracing::warn!("no tick came for {} s: this scheduler stands by", (self.period * PERIODS_MAX).as_secs());
        }
        self.standing = Standing::Standby;
        self.last_tick = None;
        self.missed_at = now + self.period * PERIODS_MAX;
        true
    }
}

/// The term to act in: `own` while it is the stored one, or else a new one, stored.
///
/// # Errors
/// Storage's.
pub(super) async fn take_term(state: &Storage, own: Option<u64>) -> Result<u64, Failure> {
    let key = keys::term(PARTITION);
    let stored = match state.get(&key).await {
        // One that cannot be read was written by nobody of ours; it starts anew.
        Ok(text) => std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0),
        Err(StorageError::NotFound(_)) => 0,
        Err(error) => return Err(error.into()),
    };
    if own == Some(stored) {
        return Ok(stored);
    }
    let term: u64 = own.unwrap_or(0).max(stored) + 1;
    state.put(&key, Bytes::from(term.to_string()), Kind::Json).await?;
    Ok(term)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn it_acts_while_ticks_come_and_each_gain_is_a_new_term() {
        let (mut lead, start) = (Lead::new(PERIOD, Duration::from_secs(3)), Instant::now());
        assert!(lead.expire(start), "a tick is sent at once");
        assert_eq!(lead.on_tick(start), OnTick::Keep(None));
        assert_eq!(lead.term(), None, "not before the term is stored");
        assert!(lead.on_term(7, start));
        assert_eq!((lead.term(), lead.issue_at()), (Some(7), Some(start + Duration::from_secs(3))));
        lead.settle_now(start);
        assert_eq!(lead.issue_at(), Some(start));
        assert_eq!(lead.on_tick(start + PERIOD / 2), OnTick::Drop, "two ticks circulate");
        assert_eq!(lead.on_tick(start + PERIOD), OnTick::Keep(Some(7)));
        assert!(!lead.on_term(7, start + PERIOD));
        assert!(!lead.expire(start + PERIOD * 3) && lead.term().is_some());
        assert!(lead.expire(start + PERIOD * 4) && lead.term().is_none());
        assert!(!lead.on_term(7, start + PERIOD * 4), "an answer that comes too late");
        assert_eq!(lead.on_tick(start + PERIOD * 5), OnTick::Keep(None));
        assert!(lead.on_term(8, start + PERIOD * 5));
    }

    #[tokio::test]
    async fn terms_grow_and_one_that_was_overtaken_takes_a_new_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = Storage::folder(folder.path());
        assert_eq!(take_term(&state, None).await, Ok(1));
        assert_eq!(take_term(&state, Some(1)).await, Ok(1));
        assert_eq!(take_term(&state, None).await, Ok(2));
        assert_eq!(take_term(&state, Some(1)).await, Ok(3));
        state.delete(&[keys::term(PARTITION)]).await.expect("deleted");
        assert_eq!(take_term(&state, Some(3)).await, Ok(4), "also when storage was wiped");
    }
}
