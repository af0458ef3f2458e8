//! Consuming: a channel per consumer, one delivery at a time, subscribed again when connection, channel or queue was lost.
//!
//! Not at once, but when somebody waits for a message: whoever still works on a delivery of the lost channel would not take the
//! next one for a while, and it would wait where no other can take it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, Channel};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::connection::{Backoff, Link, Session, while_it_lasts};
use super::publish::Publisher;
use super::{bounded, past, topology};
use crate::broker::{BrokerError, DeadLetter, Delivery, Past, Queue, Settle, Source};

/// Longest wait for the first subscription, an outage included.
const SUBSCRIBE_TIME_MAX: Duration = Duration::from_secs(30);
/// Longest time that a settlement takes to go out.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(10);
/// A subscription that held this long was a good one: the next pause is the first again.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// A consumer's place at a queue. Dropped, what it has not handed out goes back.
pub(super) struct Turn {
    deliveries: mpsc::Receiver<Held>,
    /// Whether somebody waits for a message.
    wanted: watch::Sender<bool>,
    _task: AbortOnDropHandle<()>,
}

impl Turn {
    /// Subscribes.
    pub(super) async fn start(link: Arc<Link>, publisher: Publisher, queue: Queue) -> Result<Self, BrokerError> {
        let first = timeout(SUBSCRIBE_TIME_MAX, async { Subscription::new(link.session().await, queue).await });
        let late = |_| BrokerError::Unavailable(format!("no connection within {} s", SUBSCRIBE_TIME_MAX.as_secs()));
        let first = first.await.map_err(late)??;
        let (sender, deliveries) = mpsc::channel(1);
        let (wanted, is_wanted) = watch::channel(false);
        let task = tokio::spawn(run(link, publisher, queue, first, (sender, is_wanted)));
        Ok(Self { deliveries, wanted, _task: AbortOnDropHandle::new(task) })
    }
}

/// Somebody who waits for a message, until dropped.
struct Wanting<'a>(&'a watch::Sender<bool>);

impl<'a> Wanting<'a> {
    fn new(wanted: &'a watch::Sender<bool>) -> Self {
        wanted.send_replace(true);
        Self(wanted)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

#[async_trait::async_trait]
impl Source for Turn {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let _wanting = Wanting::new(&self.wanted);
        loop {
            let Some(held) = self.deliveries.recv().await else {
                return Err(BrokerError::Unavailable("the consumer has stopped".to_owned()));
            };
            // One whose channel died while it waited here will come again.
            if held.is_ours() {
                return Ok(Delivery { body: held.body.clone(), past: held.past, settle: Box::new(held) });
            }
        }
    }
}

/// A channel that deliveries of one queue come on.
struct Subscription {
    session: Session,
    channel: Channel,
    consumer: lapin::Consumer,
}

impl Subscription {
    async fn new(session: Session, queue: Queue) -> Result<Self, BrokerError> {
        let channel = session.channel().await?;
        bounded("limiting deliveries", channel.basic_qos(1, BasicQosOptions::default())).await?;
        topology::declare_queue(&channel, queue).await?;
        let name = topology::name(queue);
        let subscribing = channel.basic_consume(
            name.as_str().into(),
            // The broker makes up a tag.
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = bounded(&format!("consuming {name}"), subscribing).await?;
        Ok(Self { session, channel, consumer })
    }
}

/// Hands out what comes, for ever.
async fn run(
    link: Arc<Link>,
    publisher: Publisher,
    queue: Queue,
    first: Subscription,
    (deliveries, mut wanted): (mpsc::Sender<Held>, watch::Receiver<bool>),
) {
    let mut backoff = Backoff::default();
    let mut subscription = first;
    loop {
        let since = Instant::now();
        let Subscription { session, channel, mut consumer } = subscription;
        // The end of the queue, of the channel and of the connection: all are cured in the same way.
        while let Some(Some(Ok(delivery))) = while_it_lasts(&session, consumer.next()).await {
            let Some(held) = Held::new(delivery, queue, channel.clone(), publisher.clone()) else { continue };
            if deliveries.send(held).await.is_err() {
                return;
            }
        }
        drop((consumer, channel));
        if since.elapsed() >= GOOD_AFTER {
            backoff = Backoff::default();
        }
        tracing::warn!(?queue, "the subscription has ended");
        if wanted.wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        subscription = resubscribe(&link, queue, &mut backoff).await;
    }
}

/// Tries until there is a subscription.
async fn resubscribe(link: &Link, queue: Queue, backoff: &mut Backoff) -> Subscription {
    loop {
        backoff.rest().await;
        match Subscription::new(link.session().await, queue).await {
            Ok(subscription) => return subscription,
            Err(error) => tracing::warn!(?queue, %error, "cannot subscribe: trying again"),
        }
    }
}

/// A message in the hands of a consumer.
struct Held {
    queue: Queue,
    body: Vec<u8>,
    past: Past,
    acker: Acker,
    publisher: Publisher,
    settled: bool,
    /// Keeps the channel open, should the consumer be gone before the message is settled.
    channel: Channel,
}

impl Held {
    fn new(delivery: lapin::message::Delivery, queue: Queue, channel: Channel, publisher: Publisher) -> Option<Self> {
        let past = past::of(&delivery);
        let body = match queue {
            Queue::Dead => dead_letter(delivery.properties.headers().as_ref(), delivery.data)?,
            Queue::Jobs | Queue::Tasks(_) | Queue::Events | Queue::Results => delivery.data,
        };
        Some(Self { queue, body, past, acker: delivery.acker, publisher, settled: false, channel })
    }
}

/// The body of a message on the dead queue. What was rejected is a [`DeadLetter`] already; what the broker itself moved there
/// is as it was sent, with a header that says why, and becomes one here. `None` never happens: a letter can be written.
fn dead_letter(headers: Option<&FieldTable>, body: Vec<u8>) -> Option<Vec<u8>> {
    let Some(death) = headers.and_then(|headers| headers.inner().get("x-death")) else { return Some(body) };
    let reason = match (field(death, "reason").as_deref(), field(death, "queue")) {
        (Some("delivery_limit"), Some(queue)) => format!("delivered from {queue} too often without being settled"),
        (Some(reason), Some(queue)) => format!("moved away from {queue} by the broker: {reason}"),
        _ => "moved here by the broker".to_owned(),
    };
    serde_json::to_vec(&DeadLetter::new(&reason, &body)).ok()
}

/// A text of the newest entry of the broker's list of a message's deaths.
fn field(death: &AMQPValue, name: &str) -> Option<String> {
    let AMQPValue::FieldArray(entries) = death else { return None };
    let AMQPValue::FieldTable(newest) = entries.as_slice().first()? else { return None };
    match newest.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

#[async_trait::async_trait]
impl Settle for Held {
    fn is_ours(&self) -> bool {
        self.acker.usable()
    }

    async fn postpone(mut self: Box<Self>, delay: Duration) -> Result<(), BrokerError> {
        if !self.is_ours() {
            return Err(BrokerError::LostLease);
        }
        let (body, postponed) = (std::mem::take(&mut self.body), self.past.postponed.saturating_add(1));
        self.publisher.publish_again(&topology::name(self.queue), body, delay, postponed).await?;
        self.ack().await
    }

    async fn ack(mut self: Box<Self>) -> Result<(), BrokerError> {
        // `false` and an error both mean that the channel is gone, and the delivery with it.
        let acked = timeout(SETTLE_TIME_MAX, self.acker.ack(BasicAckOptions::default())).await;
        self.settled = true;
        if matches!(acked, Ok(Ok(true))) { Ok(()) } else { Err(BrokerError::LostLease) }
    }

    async fn reject(mut self: Box<Self>, reason: &str) -> Result<(), BrokerError> {
        let letter = DeadLetter::new(reason, &self.body);
        let letter = serde_json::to_vec(&letter).map_err(|error| BrokerError::Unavailable(error.to_string()))?;
        if !self.is_ours() {
            return Err(BrokerError::LostLease);
        }
        self.publisher.publish(&topology::name(Queue::Dead), letter, Duration::ZERO).await?;
        self.ack().await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.settled || !self.is_ours() {
            return;
        }
        // Outside a runtime the end of the connection gives it back.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (acker, channel) = (self.acker.clone(), self.channel.clone());
        runtime.spawn(async move {
            let give_back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            // A channel that is gone gives it back as well.
            let _ = timeout(SETTLE_TIME_MAX, acker.nack(give_back)).await;
            drop(channel);
        });
    }
}
