//! The broker port: queues of messages. A cheap handle over one of several backends.
//!
//! The contract, held by every backend (see the `broker_contract` suite):
//! - a published message is delivered to one consumer of its queue, and again if that one neither acks nor rejects it;
//! - a consumer holds one unsettled delivery at a time;
//! - a rejected message is kept on the dead queue with its reason;
//! - a postponed message comes again after its delay, as often as it is postponed, and holds up no other meanwhile;
//! - a message published with a delay comes after it, and not before.
//!
//! Nothing is kept here that storage does not know: losing every queue loses no job.

mod local;
mod rabbit;
mod stats;

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use url::Url;

pub use self::stats::{BrokerInfo, BrokerStats, QueueInfo};
use crate::task::Word;
use crate::{Class, Code, Failure};

/// A queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Job messages from submitters.
    Jobs,
    /// Task messages for workers whose devices are of this class.
    Tasks(Class),
    /// Events for the scheduler.
    Events,
    /// What was rejected, with the reason: each message is a [`DeadLetter`].
    Dead,
    /// How jobs ended, for whoever listens: each message is a [`crate::ended::Ended`]. Where nobody has asked for them they
    /// may be lost, and of many that nobody fetches the oldest are.
    Results,
}

/// What the dead queue holds: a message that was rejected, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Why it was rejected: at most [`DeadLetter::REASON_CHARS_MAX`] characters.
    pub reason: String,
    /// The message as it was sent, as text: at most its first [`DeadLetter::BODY_BYTES_MAX`] bytes; bytes that are no UTF-8 are
    /// replaced by U+FFFD.
    pub body: String,
}

impl DeadLetter {
    /// Longest reason in characters; longer ones are cut. Reasons may quote a hostile message.
    pub const REASON_CHARS_MAX: usize = 1024;

    /// Most bytes of the message that are kept: eight times what a message should have. Escaped as JSON it may be six times as
    /// long, and has still to pass as a message.
    pub const BODY_BYTES_MAX: usize = 1 << 19;

    /// The letter for a message rejected for this reason.
    pub fn new(reason: &str, body: &[u8]) -> Self {
        let reason = reason.chars().take(Self::REASON_CHARS_MAX).collect();
        let body = body.get(..Self::BODY_BYTES_MAX).unwrap_or(body);
        Self { reason, body: String::from_utf8_lossy(body).into_owned() }
    }
}

/// A handle on the broker.
#[derive(Clone)]
pub struct Broker {
    backend: Arc<dyn Backend>,
}

/// What a broker operation failed of.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The broker is not there, refuses, or is gone for good.
    #[error("broker does not work: {0}")]
    Unavailable(String),
    /// The delivery is no longer ours: the broker gave it to another.
    #[error("the delivery is no longer ours")]
    LostLease,
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        Self::new(Code::BrokerUnavailable, error.to_string())
    }
}

#[async_trait::async_trait]
trait Backend: Send + Sync {
    async fn publish(&self, queue: Queue, body: Vec<u8>, delay: Duration) -> Result<(), BrokerError>;
    async fn consume(&self, queue: Queue) -> Result<Box<dyn Source>, BrokerError>;
    fn tell(&self, word: Word);
    fn listen(&self) -> tokio::sync::broadcast::Receiver<Word>;
    fn stats(&self) -> BrokerStats;
    async fn check(&self) -> Result<BrokerInfo, BrokerError>;
}

/// Where a consumer's deliveries come from.
#[async_trait::async_trait]
trait Source: Send {
    async fn next(&mut self) -> Result<Delivery, BrokerError>;
}

/// How a delivery is settled. Dropped unsettled, the message goes back to its queue.
#[async_trait::async_trait]
trait Settle: Send + Sync {
    fn is_ours(&self) -> bool;
    async fn postpone(self: Box<Self>, delay: Duration) -> Result<(), BrokerError>;
    async fn ack(self: Box<Self>) -> Result<(), BrokerError>;
    async fn reject(self: Box<Self>, reason: &str) -> Result<(), BrokerError>;
}

impl Broker {
    /// The broker at this URL: `amqp://` and `amqps://` for RabbitMQ, `local:` for one inside this process.
    ///
    /// User and password stand in the URL, the virtual host is its path, `?heartbeat=` gives seconds (15). What is to be on the
    /// broker is declared. From then on a lost connection is made again, for as long as it takes: consumers wait through an
    /// outage, publishes wait for 30 s. Needs a running tokio runtime with time and I/O.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] when it is not there, refuses the credentials, or holds queues of the same names that were
    /// made otherwise. Credentials are in no error.
    pub async fn connect(url: &Url) -> Result<Self, BrokerError> {
        match url.scheme() {
            "local" => Ok(Self::local()),
            "amqp" | "amqps" => Ok(Self { backend: Arc::new(rabbit::Rabbit::connect(url).await?) }),
            other => Err(BrokerError::Unavailable(format!("'{other}:' is no broker: amqp:, amqps: and local: are known"))),
        }
    }

    /// A broker inside this process. It forgets everything when dropped.
    pub fn local() -> Self {
        Self { backend: Arc::new(local::Local::default()) }
    }

    /// Puts a message on a queue; when this returns, the broker has it.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`]; the message may or may not have been taken then.
    pub async fn publish<T: Serialize + Sync>(&self, queue: Queue, message: &T) -> Result<(), BrokerError> {
        self.publish_later(queue, message, Duration::ZERO).await
    }

    /// Puts a message on a queue after a delay, at most 4095 s (68 minutes). RabbitMQ counts in whole seconds, rounded up.
    ///
    /// # Errors
    /// As [`Broker::publish`].
    pub async fn publish_later<T: Serialize + Sync>(
        &self,
        queue: Queue,
        message: &T,
        delay: Duration,
    ) -> Result<(), BrokerError> {
        let body = serde_json::to_vec(message).map_err(|e| BrokerError::Unavailable(e.to_string()))?;
        self.backend.publish(queue, body, delay).await
    }

    /// A consumer of a queue, holding at most one unsettled delivery.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`].
    pub async fn consume(&self, queue: Queue) -> Result<Consumer, BrokerError> {
        Ok(Consumer { source: self.backend.consume(queue).await? })
    }

    /// Says how far something is, what is offered or who is there, to whoever listens. Never waits, never fails.
    pub fn tell(&self, word: Word) {
        self.backend.tell(word);
    }

    /// Hears what [`Broker::tell`] says from now on; the oldest is lost when nobody fetches.
    pub fn listen(&self) -> tokio::sync::broadcast::Receiver<Word> {
        self.backend.listen()
    }

    /// How the handle stands with its broker, and what came of its publishes: for metrics.
    pub fn stats(&self) -> BrokerStats {
        self.backend.stats()
    }

    /// Asks the broker who it is and what its queues hold, within 30 s.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] with what is wrong.
    pub async fn check(&self) -> Result<BrokerInfo, BrokerError> {
        self.backend.check().await
    }
}

/// A consumer of a queue.
pub struct Consumer {
    source: Box<dyn Source>,
}

impl Consumer {
    /// Waits for the next message. Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] when the queue is gone for good. An outage is no error: the wait goes on through it.
    pub async fn next(&mut self) -> Result<Delivery, BrokerError> {
        self.source.next().await
    }
}

/// A message in our hands until it is settled. Dropped unsettled, it goes back to the head of its queue; brokers bear that some
/// 20 times, so it is for whoever stops, and what cannot be done for now is postponed.
pub struct Delivery {
    body: Vec<u8>,
    past: Past,
    settle: Box<dyn Settle>,
}

/// What became of a message before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Past {
    /// Whether it was in somebody's hands, and came back unsettled.
    came_back: bool,
    /// How often it was postponed.
    postponed: u32,
}

impl Delivery {
    /// The bytes of the message.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The message, read.
    ///
    /// # Errors
    /// What is wrong with it, and in which field: reject it with that.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let mut reader = serde_json::Deserializer::from_slice(&self.body);
        let refused =
            |why: String| Failure::new(Code::InvalidRequest, format!("message cannot be understood: {}", without_values(&why)));
        let message = serde_path_to_error::deserialize(&mut reader).map_err(|error| refused(error.to_string()))?;
        reader.end().map_err(|error| refused(error.to_string()))?;
        Ok(message)
    }

    /// Whether somebody may have had it before, and gave it back, postponed it, or died.
    pub fn came_before(&self) -> bool {
        self.past.came_back || self.past.postponed > 0
    }

    /// How often it was postponed.
    pub fn postponed(&self) -> u32 {
        self.past.postponed
    }

    /// How long to postpone what cannot be done for now: 2 s, and twice as long every time, up to 5 minutes.
    pub fn pause(&self) -> Duration {
        pause(self.past.postponed)
    }

    /// Whether it is still ours, as far as is known: the broker gives it to another when the connection that it came on is lost.
    pub fn is_ours(&self) -> bool {
        self.settle.is_ours()
    }

    /// Not now: it comes again after a delay (as in [`Broker::publish_later`]; without one, at the end of its queue). It is
    /// published anew, and then the delivery at hand is acknowledged, so a crash between the two makes a duplicate and never a
    /// loss.
    ///
    /// # Errors
    /// [`BrokerError::LostLease`] when it was no longer ours, [`BrokerError::Unavailable`] when it could not be published: it
    /// comes again in both cases, perhaps twice.
    pub async fn postpone(self, delay: Duration) -> Result<(), BrokerError> {
        self.settle.postpone(delay).await
    }

    /// Done with it.
    ///
    /// # Errors
    /// [`BrokerError::LostLease`] when it was no longer ours.
    pub async fn ack(self) -> Result<(), BrokerError> {
        self.settle.ack().await
    }

    /// Never again: moves it to the dead queue with the reason.
    ///
    /// # Errors
    /// [`BrokerError::LostLease`] when it was no longer ours.
    pub async fn reject(self, reason: &str) -> Result<(), BrokerError> {
        self.settle.reject(reason).await
    }
}

/// The pause after so many.
fn pause(postponed: u32) -> Duration {
    let (first, longest) = (Duration::from_secs(2), Duration::from_secs(300));
    first.saturating_mul(1 << postponed.min(16)).min(longest)
}

/// The text of an error of serde without the strings that it quotes, which may hold a password: the field is named before.
fn without_values(why: &str) -> String {
    match (why.split_once('"'), why.rsplit_once('"')) {
        (Some((before, _)), Some((_, after))) => format!("{before}\"…\"{after}"),
        _ => why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_postponed_again_waits_longer_up_to_a_limit() {
        let pauses: Vec<_> = [0, 1, 2, 7, 8, u32::MAX].map(|postponed| pause(postponed).as_secs()).to_vec();
        assert_eq!(pauses, [2, 4, 8, 256, 300, 300]);
    }

    #[test]
    fn what_is_wrong_is_said_without_what_was_given() {
        let url = r#"source.url: relative URL without a base: "tube/a.mp4?token=\"secret" at line 1 column 60"#;
        assert_eq!(without_values(url), r#"source.url: relative URL without a base: "…" at line 1 column 60"#);
        let unknown = "source.urll: unknown field `urll`, expected `url` or `headers`";
        assert_eq!(without_values(unknown), unknown);
    }
}
