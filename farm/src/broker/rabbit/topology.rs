//! What the farm has on the broker: names, arguments, bindings.
//!
//! A queue's arguments can never change under its name: whoever changes one here raises the version in [`PREFIX`].

use std::time::Duration;

use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::{bounded, delay};
use crate::Class;
use crate::broker::{BrokerError, Queue};

/// What every name begins with, version included.
pub(super) const PREFIX: &str = "shoal.v1";

/// How often a message is delivered before the broker itself moves it to the dead queue.
const DELIVERIES_MAX: i64 = 20;
/// The same for queues with no other behind them: from 4.0 brokers would drop their messages after 20 deliveries.
const LAST_DELIVERIES_MAX: i64 = 1_000_000_000;
/// Most messages in a queue. A full one refuses, but the dead queue and the results drop their oldest.
const QUEUE_MESSAGES_MAX: i64 = 100_000;
/// Most results kept that nobody fetches.
const RESULTS_MAX: i64 = 1000;
/// How long a delivery of a task may be held, where the broker can be told. Longer than any task may take.
const TASK_HOLD_MAX: Duration = Duration::from_secs(45 * 60);

/// Every queue that can be consumed.
pub(super) const QUEUES: [Queue; 9] = [
    Queue::Dead,
    Queue::Jobs,
    Queue::Tasks(Class::Cpu),
    Queue::Tasks(Class::Nvenc),
    Queue::Tasks(Class::Vaapi),
    Queue::Tasks(Class::Qsv),
    Queue::Tasks(Class::V4l2),
    Queue::Events,
    Queue::Results,
];

/// Name of a queue.
pub(super) fn name(queue: Queue) -> String {
    let tail = match queue {
        Queue::Jobs => "jobs",
        Queue::Tasks(class) => return format!("{PREFIX}.tasks.{class}"),
        Queue::Events => "sched.0",
        Queue::Dead => "dead",
        Queue::Results => "results",
    };
    format!("{PREFIX}.{tail}")
}

/// The exchange that carries progress to all who listen.
pub(super) fn progress() -> String {
    format!("{PREFIX}.progress")
}

/// The arguments that a queue is declared with.
fn arguments(queue: Queue) -> FieldTable {
    let messages_max = if queue == Queue::Results { RESULTS_MAX } else { QUEUE_MESSAGES_MAX };
    let mut all = vec![text("x-queue-type", "quorum"), number("x-max-length", messages_max)];
    if matches!(queue, Queue::Dead | Queue::Results) {
        all.extend([text("x-overflow", "drop-head"), number("x-delivery-limit", LAST_DELIVERIES_MAX)]);
        return table(all);
    }
    all.push(number("x-delivery-limit", DELIVERIES_MAX));
    all.extend(dead_lettering_to(""));
    all.push(text("x-dead-letter-routing-key", &name(Queue::Dead)));
    match queue {
        Queue::Tasks(_) => all.push(number("x-consumer-timeout", millis(TASK_HOLD_MAX))),
        // One scheduler acts, the others stand by.
        Queue::Events => all.push(("x-single-active-consumer", AMQPValue::Boolean(true))),
        Queue::Jobs | Queue::Dead | Queue::Results => {}
    }
    table(all)
}

/// Without one of these three the broker may lose a message on its way.
fn dead_lettering_to(exchange: &str) -> [(&'static str, AMQPValue); 3] {
    [
        text("x-dead-letter-exchange", exchange),
        text("x-dead-letter-strategy", "at-least-once"),
        text("x-overflow", "reject-publish"),
    ]
}

fn text(name: &'static str, value: &str) -> (&'static str, AMQPValue) {
    (name, AMQPValue::LongString(value.into()))
}

fn number(name: &'static str, value: i64) -> (&'static str, AMQPValue) {
    (name, AMQPValue::LongLongInt(value))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn table(arguments: Vec<(&'static str, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(name.into(), value);
    }
    table
}

/// Declares what is needed to consume a queue: itself, the dead queue, and the way from the delays.
pub(super) async fn declare_queue(channel: &Channel, queue: Queue) -> Result<(), BrokerError> {
    declare_queues(channel, &[Queue::Dead, queue]).await
}

async fn declare_queues(channel: &Channel, queues: &[Queue]) -> Result<(), BrokerError> {
    declare_exchange(channel, &delay::end(), ExchangeKind::Topic).await?;
    for queue in queues {
        let name = name(*queue);
        declare(channel, &name, arguments(*queue)).await?;
        bind(channel, &name, &delay::end(), &delay::target_pattern(&name)).await?;
    }
    Ok(())
}

/// Declares everything. What is there already stays as it is.
pub(super) async fn declare_all(channel: &Channel) -> Result<(), BrokerError> {
    declare_queues(channel, &QUEUES).await?;
    declare_exchange(channel, &progress(), ExchangeKind::Fanout).await?;
    for n in 0..delay::LEVELS {
        let (level, after) = (delay::level(n), delay::after(n));
        let wait = Duration::from_secs(1 << n);
        let mut all = vec![text("x-queue-type", "quorum"), number("x-message-ttl", millis(wait))];
        all.push(number("x-max-length", QUEUE_MESSAGES_MAX));
        all.extend(dead_lettering_to(&after));
        declare(channel, &level, table(all)).await?;
        declare_exchange(channel, &level, ExchangeKind::Topic).await?;
        bind(channel, &level, &level, &delay::bit_pattern(n, 1)).await?;
        let pattern = delay::bit_pattern(n, 0);
        let past = channel.exchange_bind(
            after.as_str().into(),
            level.as_str().into(),
            pattern.as_str().into(),
            ExchangeBindOptions::default(),
            FieldTable::default(),
        );
        bounded("binding an exchange", past).await?;
    }
    Ok(())
}

async fn declare(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), BrokerError> {
    let declared = channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments);
    bounded(&format!("declaring queue {name}"), declared).await.map(drop)
}

async fn declare_exchange(channel: &Channel, name: &str, kind: ExchangeKind) -> Result<(), BrokerError> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared = channel.exchange_declare(name.into(), kind, options, FieldTable::default());
    bounded(&format!("declaring exchange {name}"), declared).await
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, pattern: &str) -> Result<(), BrokerError> {
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(queue.into(), exchange.into(), pattern.into(), options, FieldTable::default());
    bounded(&format!("binding queue {queue}"), bound).await
}
