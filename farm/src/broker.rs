//! The broker port: queues of messages. A cheap handle over one of several backends.
//!
//! The contract, held by every backend (see the `broker_contract` suite):
//! - a published message is delivered to one consumer of its queue, and again if that one neither acks nor rejects it;
//! - a consumer holds one unsettled delivery at a time;
//! - a rejected message is kept on the dead queue with its reason;
//! - a message published with a delay comes after it, and not before.
//!
//! Nothing is kept here that storage does not know: losing every queue loses no job.

mod local;

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::task::Progress;
use crate::{Code, Failure};

/// A queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Job messages from submitters.
    Jobs,
    /// Task messages for workers.
    Tasks,
    /// Events for the scheduler.
    Events,
    /// What was rejected, with the reason: each message is a [`DeadLetter`].
    Dead,
}

/// What the dead queue holds: a message that was rejected, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Why it was rejected: at most [`DeadLetter::REASON_CHARS_MAX`] characters.
    pub reason: String,
    /// The message as it was sent, as text; bytes that are no UTF-8 are replaced by U+FFFD.
    pub body: String,
}

impl DeadLetter {
    /// Longest reason in characters; longer ones are cut. Reasons may quote a hostile message.
    pub const REASON_CHARS_MAX: usize = 1024;

    /// The letter for a message rejected for this reason.
    pub fn new(reason: &str, body: &[u8]) -> Self {
        let reason = reason.chars().take(Self::REASON_CHARS_MAX).collect();
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
    fn tell(&self, progress: Progress);
    fn listen(&self) -> tokio::sync::broadcast::Receiver<Progress>;
}

/// Where a consumer's deliveries come from.
#[async_trait::async_trait]
trait Source: Send {
    async fn next(&mut self) -> Result<(Vec<u8>, Box<dyn Settle>), BrokerError>;
}

/// How a delivery is settled. Dropped unsettled, the message goes back to its queue.
#[async_trait::async_trait]
trait Settle: Send + Sync {
    async fn ack(self: Box<Self>) -> Result<(), BrokerError>;
    async fn reject(self: Box<Self>, reason: &str) -> Result<(), BrokerError>;
}

impl Broker {
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

    /// Puts a message on a queue after a delay.
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

    /// Says how far something is, to whoever listens. Never waits, never fails.
    pub fn tell(&self, progress: Progress) {
        self.backend.tell(progress);
    }

    /// Hears what [`Broker::tell`] says from now on; the oldest is lost when nobody fetches.
    pub fn listen(&self) -> tokio::sync::broadcast::Receiver<Progress> {
        self.backend.listen()
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
    /// [`BrokerError::Unavailable`] when the queue is gone for good.
    pub async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let (body, settle) = self.source.next().await?;
        Ok(Delivery { body, settle })
    }
}

/// A message in our hands until it is settled. Dropped unsettled, it goes back to its queue.
pub struct Delivery {
    body: Vec<u8>,
    settle: Box<dyn Settle>,
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
        let refused = |why: String| Failure::new(Code::InvalidRequest, format!("message cannot be understood: {why}"));
        let message = serde_path_to_error::deserialize(&mut reader).map_err(|error| refused(error.to_string()))?;
        reader.end().map_err(|error| refused(error.to_string()))?;
        Ok(message)
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
