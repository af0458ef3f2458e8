//! The broker port's contract over every backend, and what the in-process one promises beyond it.

use std::time::Duration;

use anyhow::{Result, ensure};
use farm::broker::{Broker, BrokerError, Queue};
use tests::contract::broker::Fresh;

tests::broker_contract!(local, crate::local);
tests::broker_contract!(rabbit, crate::rabbit);

async fn local() -> Result<Fresh> {
    Ok(Fresh { broker: Broker::local(), delay_excess_max: Duration::from_millis(500), keep: Box::new(()) })
}

/// Delays are in whole seconds there, rounded up, and a message may be written to disk more than once on its way.
async fn rabbit() -> Result<Fresh> {
    let vhost = tests::rabbit::shared()?;
    let broker = Broker::connect(&vhost.url().parse()?).await?;
    Ok(Fresh { broker, delay_excess_max: Duration::from_millis(2500), keep: Box::new(vhost) })
}

#[tokio::test]
async fn a_dropped_delivery_is_the_next_to_come() -> Result<()> {
    let broker = Broker::local();
    for n in 0..3_u32 {
        broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
    }
    let mut consumer = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    for _ in 0..2 {
        ensure!(consumer.next().await?.read::<u32>()? == 0);
    }
    for n in 0..3 {
        let delivery = consumer.next().await?;
        ensure!(delivery.read::<u32>()? == n);
        delivery.ack().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_full_queue_refuses_and_has_room_again_when_one_is_taken() -> Result<()> {
    const QUEUE_MESSAGES_MAX: u32 = 100_000;
    let broker = Broker::local();
    broker.publish_later(Queue::Tasks(farm::Class::Cpu), &0_u32, Duration::from_secs(3600)).await?;
    for n in 1..QUEUE_MESSAGES_MAX {
        broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
    }
    for delay in [Duration::ZERO, Duration::from_secs(1)] {
        let refused = broker.publish_later(Queue::Tasks(farm::Class::Cpu), &0_u32, delay).await;
        ensure!(matches!(refused, Err(BrokerError::Unavailable(_))), "{refused:?}");
    }
    broker.publish(Queue::Jobs, &"another queue has its own room").await?;
    let mut consumer = broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    consumer.next().await?.ack().await?;
    broker.publish(Queue::Tasks(farm::Class::Cpu), &0_u32).await?;
    Ok(())
}

#[tokio::test]
async fn a_full_dead_queue_keeps_the_newest() -> Result<()> {
    const QUEUE_MESSAGES_MAX: u32 = 100_000;
    let broker = Broker::local();
    for n in 0..QUEUE_MESSAGES_MAX {
        broker.publish(Queue::Dead, &n).await?;
    }
    broker.publish(Queue::Jobs, &"bad").await?;
    broker.consume(Queue::Jobs).await?.next().await?.reject("why").await?;
    let mut dead = broker.consume(Queue::Dead).await?;
    for n in 1..QUEUE_MESSAGES_MAX {
        let delivery = dead.next().await?;
        ensure!(delivery.read::<u32>()? == n);
        delivery.ack().await?;
    }
    ensure!(dead.next().await?.body() == br#"{"reason":"why","body":"\"bad\""}"#);
    Ok(())
}
