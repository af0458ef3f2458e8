//! The engine's part in who acts: it sends ticks, hears them, and begins terms.

use std::time::Duration;

use farm::broker::Queue;
use farm::task::Event;
use farm::{Failure, metrics};
use tokio::time::Instant;

use super::engine::{Engine, Work, Working};
use super::lead::{OnTick, take_term};

impl Engine {
    /// Sends a tick when none came for too long.
    pub(super) async fn beat(&mut self) {
        if self.consumer.is_some() && self.lead.expire(Instant::now()) {
            metrics::scheduler().leader.set(0);
            self.board.set_acting(false);
            self.send_tick(Duration::ZERO).await;
        }
    }

    pub(super) async fn send_tick(&mut self, delay: Duration) {
        if let Err(error) = self.broker.publish_later(Queue::Events, &Event::Tick, delay).await {
            tracing::warn!(%error, "no tick can be sent now");
        }
    }

    pub(super) async fn tick(&mut self) {
        let now = Instant::now();
        let OnTick::Keep(own) = self.lead.on_tick(now) else { return };
        metrics::scheduler().last_tick.set(metrics::now_seconds());
        self.ask_term(own);
        self.send_tick(self.settings.tick).await;
    }

    pub(super) fn ask_term(&mut self, own: Option<u64>) {
        self.term_at = None;
        let state = self.state.clone();
        let started = self.work.spawn(async move { Work::Termed(take_term(&state, own).await) });
        self.working.insert(started.id(), Working::Term);
    }

    pub(super) fn settle_term(&mut self, taken: Result<u64, Failure>) {
        let term = match taken {
            Ok(term) => term,
            Err(failure) => {
                self.term_troubles = self.term_troubles.saturating_add(1);
                self.term_at = Some(Instant::now() + self.settings.backoff(self.term_troubles));
                tracing::warn!(%failure, "the term cannot be learned now");
                return;
            }
        };
        self.term_troubles = 0;
        if !self.lead.on_term(term, Instant::now()) {
            return;
        }
        tracing::info!(term, "this scheduler acts");
        let series = metrics::scheduler();
        series.leader.set(1);
        self.board.set_acting(true);
        series.term.set(i64::try_from(term).unwrap_or(i64::MAX));
        // What was handed out before may be lost or dropped by workers; what is running will be heard of.
        self.heard.clear();
        self.scan.is_wanted = true;
        for (id, entry) in &mut self.jobs {
            entry.outstanding.clear();
            entry.running.clear();
            entry.news.everything = true;
            self.dirty.insert(id.clone());
        }
    }
}
