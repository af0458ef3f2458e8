//! What a broker handle counts, and what it finds out about its server.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How the handle stands with its broker at this moment, and what came of its publishes since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokerStats {
    /// Whether every connection that the handle needs is there.
    pub connected: bool,
    /// Whether the broker takes no messages for now, because it is short of memory or disk.
    pub blocked: bool,
    /// Connections made again after a loss.
    pub reconnects: u64,
    /// Messages that the broker has confirmed.
    pub acked: u64,
    /// Messages that the broker refused because a queue was full.
    pub nacked: u64,
    /// Messages that the broker gave back because no queue took them; those that were sent again are counted each time.
    pub returned: u64,
    /// Messages that were not confirmed in time. They may have been taken.
    pub timed_out: u64,
}

impl BrokerStats {
    /// Of a broker that cannot be lost.
    pub(super) const LOCAL: Self =
        Self { connected: true, blocked: false, reconnects: 0, acked: 0, nacked: 0, returned: 0, timed_out: 0 };
}

/// What a broker says about itself: see [`super::Broker::check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerInfo {
    /// The server's name for itself, such as `RabbitMQ`.
    pub product: String,
    /// Its version.
    pub version: String,
    /// The queues, as they are on the server.
    pub queues: Vec<QueueInfo>,
}

/// A queue as it is on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueInfo {
    /// Its name there.
    pub name: String,
    /// Messages ready to be delivered.
    pub ready: u32,
    /// Consumers that wait for its messages or hold one.
    pub consumers: u32,
}

/// What the tasks of a handle write down.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) publish_up: AtomicBool,
    pub(super) consume_up: AtomicBool,
    pub(super) blocked: AtomicBool,
    pub(super) reconnects: AtomicU64,
    pub(super) acked: AtomicU64,
    pub(super) nacked: AtomicU64,
    pub(super) returned: AtomicU64,
    pub(super) timed_out: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> BrokerStats {
        let (count, flag) = (|n: &AtomicU64| n.load(Ordering::Relaxed), |b: &AtomicBool| b.load(Ordering::Relaxed));
        BrokerStats {
            connected: flag(&self.publish_up) && flag(&self.consume_up),
            blocked: flag(&self.blocked),
            reconnects: count(&self.reconnects),
            acked: count(&self.acked),
            nacked: count(&self.nacked),
            returned: count(&self.returned),
            timed_out: count(&self.timed_out),
        }
    }
}
