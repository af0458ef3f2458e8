//! A broker over RabbitMQ, from 3.10 on.
//!
//! Quorum queues with versioned names, publishes that are confirmed, one delivery per channel, delays in the broker, and two
//! connections (one publishes, one consumes) that are made again whenever they are lost.

mod address;
mod connection;
mod consume;
mod delay;
mod greeting;
mod past;
mod progress;
mod publish;
mod topology;

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::sync::broadcast;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use self::address::Address;
use self::connection::{Link, Role};
use self::consume::Turn;
use self::progress::{Hearer, Teller};
use self::publish::Publisher;
use super::stats::{BrokerInfo, BrokerStats, Counters, QueueInfo};
use super::{Backend, BrokerError, Queue, Source};
use crate::task::Word;

/// Longest wait for one answer of the broker.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest time of a check.
const CHECK_TIME_MAX: Duration = Duration::from_secs(30);

/// Delivery mode of a message that is kept on disk.
const PERSISTENT: u8 = 2;
/// Delivery mode of a message that is not.
const TRANSIENT: u8 = 1;

/// The connections to a broker, and the tasks that use them.
pub(super) struct Rabbit {
    address: Address,
    consume: Arc<Link>,
    publisher: Publisher,
    teller: Teller,
    hearer: OnceLock<(Hearer, AbortOnDropHandle<()>)>,
    counters: Arc<Counters>,
}

impl Rabbit {
    /// Connects, and declares everything that is to be on the broker.
    pub(super) async fn connect(url: &Url) -> Result<Self, BrokerError> {
        let address = Address::new(url)?;
        let counters = Arc::new(Counters::default());
        let publish = Arc::new(Link::connect(address.clone(), Role::Publish, counters.clone()).await?);
        let consume = Arc::new(Link::connect(address.clone(), Role::Consume, counters.clone()).await?);
        let publisher = Publisher::start(publish.clone(), counters.clone());
        let teller = Teller::start(publish);
        Ok(Self { address, consume, publisher, teller, hearer: OnceLock::new(), counters })
    }

    async fn ask(&self) -> Result<BrokerInfo, BrokerError> {
        let greeting = greeting::greet(&self.address).await?;
        let channel = self.consume.session().await.channel().await?;
        let mut queues = Vec::new();
        for queue in topology::QUEUES {
            let name = topology::name(queue);
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
            let asking = channel.queue_declare(name.as_str().into(), options, FieldTable::default());
            let found = bounded(&format!("looking for queue {name}"), asking).await?;
            queues.push(QueueInfo { name, ready: found.message_count(), consumers: found.consumer_count() });
        }
        Ok(BrokerInfo { product: greeting.product, version: greeting.version, queues })
    }
}

#[async_trait::async_trait]
impl Backend for Rabbit {
    async fn publish(&self, queue: Queue, body: Vec<u8>, delay: Duration) -> Result<(), BrokerError> {
        self.publisher.publish(&topology::name(queue), body, delay).await
    }

    async fn consume(&self, queue: Queue) -> Result<Box<dyn Source>, BrokerError> {
        Ok(Box::new(Turn::start(self.consume.clone(), self.publisher.clone(), queue).await?))
    }

    fn tell(&self, word: Word) {
        self.teller.tell(word);
    }

    fn listen(&self) -> broadcast::Receiver<Word> {
        let (hearer, _) = self.hearer.get_or_init(|| Hearer::start(self.consume.clone()));
        hearer.listen()
    }

    fn stats(&self) -> BrokerStats {
        self.counters.snapshot()
    }

    async fn check(&self) -> Result<BrokerInfo, BrokerError> {
        let late = |_| BrokerError::Unavailable(format!("no connection within {} s", CHECK_TIME_MAX.as_secs()));
        timeout(CHECK_TIME_MAX, self.ask()).await.map_err(late)?
    }
}

/// Waits for an answer of the broker, but not for ever.
async fn bounded<T>(what: &str, answer: impl Future<Output = lapin::Result<T>>) -> Result<T, BrokerError> {
    match timeout(ANSWER_TIME_MAX, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(BrokerError::Unavailable(format!("{what}: {error}"))),
        Err(_) => Err(BrokerError::Unavailable(format!("{what}: no answer within {} s", ANSWER_TIME_MAX.as_secs()))),
    }
}
