//! What every broker backend must do.
//!
//! That something does *not* come is shown, where it can be, by what comes in its place: a message published later.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use farm::broker::{Broker, Consumer, DeadLetter, Delivery, Queue};
use farm::job::JobId;
use farm::task::{Progress, TaskId, Token, Word};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A fresh, empty broker of the backend under test.
pub struct Fresh {
    /// The broker.
    pub broker: Broker,
    /// How much later than its delay a message may come.
    pub delay_excess_max: Duration,
    /// What must live as long as the broker is used: a server.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// Runs the contract over a backend: `broker_contract!(name, crate::fresh)`, where `fresh` is
/// `async fn() -> anyhow::Result<Fresh>`.
#[macro_export]
macro_rules! broker_contract {
    ($backend:ident, $fresh:path) => {
        mod $backend {
            $crate::contract_cases!(
                $fresh,
                $crate::contract::broker,
                a_message_comes_as_it_was_sent,
                messages_come_in_the_order_sent,
                queues_do_not_mix,
                a_waiting_consumer_is_woken,
                an_acked_message_never_comes_again,
                a_dropped_delivery_comes_again,
                a_delivery_may_be_dropped_often,
                a_dropped_consumer_gives_back_what_it_held,
                a_consumer_holds_one_unsettled_delivery,
                consumers_share_a_queue,
                a_rejected_message_goes_to_the_dead_queue,
                a_delayed_message_comes_after_its_delay,
                a_delayed_message_holds_up_no_other,
                a_postponed_message_comes_again_once_and_after_its_delay,
                a_message_may_be_postponed_more_often_than_it_may_be_dropped,
                a_message_knows_its_past,
                an_abandoned_wait_loses_nothing,
                of_ten_thousand_messages_none_is_lost_or_doubled,
                progress_is_heard_by_all_who_listen,
                progress_never_waits_for_listeners,
            );
        }
    };
}

/// Longest wait for a message that must come.
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(20);

/// How long to wait for a message that must not come, where nothing else can show it.
const SILENCE: Duration = Duration::from_millis(250);

async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    Ok(timeout(ARRIVAL_TIME_MAX, consumer.next()).await.context("no message came")??)
}

/// The next message, settled.
async fn take(consumer: &mut Consumer) -> Result<u32> {
    let delivery = next(consumer).await?;
    let message = delivery.read()?;
    delivery.ack().await?;
    Ok(message)
}

/// Nothing comes for a while.
async fn is_silent(consumer: &mut Consumer) -> bool {
    timeout(SILENCE, consumer.next()).await.is_err()
}

/// Every byte and letter, up to the size that a message may have.
pub async fn a_message_comes_as_it_was_sent(fresh: &Fresh) -> Result<()> {
    let mut consumer = fresh.broker.consume(Queue::Jobs).await?;
    for message in ["".to_owned(), "é \u{0} \n 日本 \"quoted\"".to_owned(), "x".repeat(64 * 1024)] {
        fresh.broker.publish(Queue::Jobs, &message).await?;
        let delivery = next(&mut consumer).await?;
        ensure!(delivery.body() == serde_json::to_vec(&message)?);
        ensure!(delivery.read::<String>()? == message);
        ensure!(delivery.read::<u32>().is_err(), "a text is no number");
        delivery.ack().await?;
    }
    Ok(())
}

/// For one publisher and one consumer.
pub async fn messages_come_in_the_order_sent(fresh: &Fresh) -> Result<()> {
    for n in 0..200_u32 {
        fresh.broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
    }
    let mut consumer = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    for n in 0..200 {
        ensure!(take(&mut consumer).await? == n);
    }
    Ok(())
}

/// What is published to one is not delivered from another.
pub async fn queues_do_not_mix(fresh: &Fresh) -> Result<()> {
    let queues = [Queue::Jobs, Queue::Tasks(farm::Class::Cpu), Queue::Events, Queue::Dead];
    for (n, queue) in (0..).zip(queues) {
        for message in [n, 100 + n] {
            fresh.broker.publish(queue, &message).await?;
        }
    }
    for (n, queue) in (0..).zip(queues) {
        let mut consumer = fresh.broker.clone().consume(queue).await?;
        ensure!(take(&mut consumer).await? == n && take(&mut consumer).await? == 100 + n, "{queue:?}");
    }
    Ok(())
}

/// One that came before the message.
pub async fn a_waiting_consumer_is_woken(fresh: &Fresh) -> Result<()> {
    let mut consumer = fresh.broker.consume(Queue::Events).await?;
    for n in 0..50 {
        let (taken, published) = tokio::join!(take(&mut consumer), async {
            // Lets the consumer begin to wait.
            tokio::task::yield_now().await;
            fresh.broker.publish(Queue::Events, &n).await
        });
        published?;
        ensure!(taken? == n);
    }
    Ok(())
}

/// Not to this consumer and not to the next.
pub async fn an_acked_message_never_comes_again(fresh: &Fresh) -> Result<()> {
    for n in 0..3_u32 {
        fresh.broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
    }
    let mut taken = Vec::new();
    for _ in 0..3 {
        let mut consumer = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
        taken.push(take(&mut consumer).await?);
    }
    // A consumer that is dropped may hold the next message already; it goes back, perhaps behind the one after it.
    taken.sort_unstable();
    ensure!(taken == [0, 1, 2], "{taken:?}");
    fresh.broker.publish(Queue::Tasks(farm::Class::Cpu), &99_u32).await?;
    let mut consumer = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    ensure!(take(&mut consumer).await? == 99, "an acked message came again");
    ensure!(is_silent(&mut consumer).await);
    Ok(())
}

/// The same message, once for each time it was dropped; none of the others is lost.
pub async fn a_dropped_delivery_comes_again(fresh: &Fresh) -> Result<()> {
    for n in 0..3_u32 {
        fresh.broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
    }
    let mut consumer = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    let first = next(&mut consumer).await?;
    ensure!(first.read::<u32>()? == 0);
    drop(first);
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(take(&mut consumer).await?);
    }
    taken.sort_unstable();
    ensure!(taken == [0, 1, 2], "{taken:?}");
    ensure!(is_silent(&mut consumer).await);
    Ok(())
}

/// A worker that gives work back again and again does not lose it.
pub async fn a_delivery_may_be_dropped_often(fresh: &Fresh) -> Result<()> {
    fresh.broker.publish(Queue::Tasks(farm::Class::Cpu), &7_u32).await?;
    let mut consumer = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    for _ in 0..10 {
        let delivery = next(&mut consumer).await?;
        ensure!(delivery.read::<u32>()? == 7);
    }
    ensure!(take(&mut consumer).await? == 7);
    ensure!(is_silent(&mut consumer).await);
    Ok(())
}

/// In whichever order the two are dropped.
pub async fn a_dropped_consumer_gives_back_what_it_held(fresh: &Fresh) -> Result<()> {
    fresh.broker.publish(Queue::Tasks(farm::Class::Cpu), &7_u32).await?;
    let mut other = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    for consumer_first in [true, false] {
        let mut consumer = std::mem::replace(&mut other, fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?);
        let delivery = next(&mut consumer).await?;
        if consumer_first {
            drop(consumer);
            drop(delivery);
        } else {
            drop(delivery);
            drop(consumer);
        }
    }
    ensure!(take(&mut other).await? == 7);
    Ok(())
}

/// The next comes when the one at hand is settled, in whatever way.
pub async fn a_consumer_holds_one_unsettled_delivery(fresh: &Fresh) -> Result<()> {
    for n in 0..4_u32 {
        fresh.broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
    }
    let mut consumer = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    let held = next(&mut consumer).await?;
    ensure!(is_silent(&mut consumer).await, "a second delivery came before the first was settled");
    held.ack().await?;
    let held = next(&mut consumer).await?;
    ensure!(is_silent(&mut consumer).await, "a third delivery came before the second was settled");
    held.reject("not wanted").await?;
    let held = next(&mut consumer).await?;
    ensure!(is_silent(&mut consumer).await, "a fourth delivery came before the third was settled");
    held.postpone(Duration::ZERO).await?;
    let held = next(&mut consumer).await?;
    ensure!(is_silent(&mut consumer).await, "a fifth delivery came before the fourth was settled");
    drop(held);
    let mut left = [take(&mut consumer).await?, take(&mut consumer).await?];
    left.sort_unstable();
    ensure!(left == [2, 3], "{left:?}");
    Ok(())
}

/// One that holds a message keeps it from the others, and keeps nothing else from them.
pub async fn consumers_share_a_queue(fresh: &Fresh) -> Result<()> {
    let mut consumers = [
        fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?,
        fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?,
    ];
    for n in 0..20_u32 {
        fresh.broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
    }
    let mut taken = BTreeSet::new();
    for _ in 0..9 {
        let [first, second] = &mut consumers;
        let (first, second) = tokio::try_join!(next(first), next(second))?;
        taken.extend([first.read::<u32>()?, second.read::<u32>()?]);
        first.ack().await?;
        second.ack().await?;
    }
    ensure!(taken.len() == 18, "one message was delivered to two consumers: {taken:?}");
    let [first, second] = &mut consumers;
    let held = next(first).await?;
    taken.extend([held.read::<u32>()?, take(second).await?]);
    ensure!(taken.len() == 20 && is_silent(second).await, "{taken:?}");
    held.ack().await?;
    Ok(())
}

/// With its reason and its body, and nowhere else.
pub async fn a_rejected_message_goes_to_the_dead_queue(fresh: &Fresh) -> Result<()> {
    let mut jobs = fresh.broker.consume(Queue::Jobs).await?;
    let mut dead = fresh.broker.consume(Queue::Dead).await?;
    fresh.broker.publish(Queue::Jobs, &"not a job é").await?;
    fresh.broker.publish(Queue::Jobs, &1_u32).await?;
    let reasons = ["missing field `version`: \"é\"\nsecond line", &"long ".repeat(1000)];
    for (reason, body) in reasons.into_iter().zip(["\"not a job é\"", "1"]) {
        next(&mut jobs).await?.reject(reason).await?;
        let delivery = next(&mut dead).await?;
        let letter: DeadLetter = delivery.read()?;
        ensure!(letter.body == body, "{letter:?}");
        ensure!(reason.starts_with(&letter.reason) && letter.reason.len() >= reason.len().min(1000), "{letter:?}");
        delivery.ack().await?;
    }
    fresh.broker.publish(Queue::Jobs, &2_u32).await?;
    ensure!(take(&mut jobs).await? == 2, "a rejected message came again");
    ensure!(is_silent(&mut dead).await);
    Ok(())
}

/// Not before, and not much later.
pub async fn a_delayed_message_comes_after_its_delay(fresh: &Fresh) -> Result<()> {
    let mut consumer = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    for delay in [Duration::from_millis(1), Duration::from_millis(700), Duration::from_millis(1500)] {
        let before = Instant::now();
        fresh.broker.publish_later(Queue::Tasks(farm::Class::Cpu), &1_u32, delay).await?;
        let limit = before.elapsed() + delay + fresh.delay_excess_max;
        let delivery = timeout(limit, consumer.next()).await.context("the delayed message did not come")??;
        ensure!(before.elapsed() >= delay, "came after {:?} instead of {delay:?}", before.elapsed());
        delivery.ack().await?;
    }
    Ok(())
}

/// Those without a delay, and those with a shorter one.
pub async fn a_delayed_message_holds_up_no_other(fresh: &Fresh) -> Result<()> {
    let unit = Duration::from_millis(500) + fresh.delay_excess_max;
    for (n, delay) in [(3_u32, unit * 3), (2, unit), (1, Duration::ZERO)] {
        fresh.broker.publish_later(Queue::Tasks(farm::Class::Cpu), &n, delay).await?;
    }
    let mut consumer = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    for n in 1..=3 {
        ensure!(take(&mut consumer).await? == n);
    }
    Ok(())
}

/// Those behind it come first.
pub async fn a_postponed_message_comes_again_once_and_after_its_delay(fresh: &Fresh) -> Result<()> {
    for n in 0..2_u32 {
        fresh.broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
    }
    let mut consumer = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    let delivery = next(&mut consumer).await?;
    let delay = Duration::from_millis(1500);
    let before = Instant::now();
    delivery.postpone(delay).await?;
    ensure!(take(&mut consumer).await? == 1, "the one behind it has to wait");
    let limit = delay + fresh.delay_excess_max;
    let delivery = timeout(limit, consumer.next()).await.context("the postponed message did not come")??;
    ensure!(delivery.read::<u32>()? == 0 && before.elapsed() >= delay, "it came after {:?}", before.elapsed());
    delivery.ack().await?;
    ensure!(is_silent(&mut consumer).await, "it came twice");
    Ok(())
}

/// Brokers move a message to the dead queue that was given back 20 times.
pub async fn a_message_may_be_postponed_more_often_than_it_may_be_dropped(fresh: &Fresh) -> Result<()> {
    fresh.broker.publish(Queue::Tasks(farm::Class::Cpu), &7_u32).await?;
    let mut consumer = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    let mut dead = fresh.broker.consume(Queue::Dead).await?;
    for n in 0..25 {
        let delivery = next(&mut consumer).await?;
        ensure!(delivery.read::<u32>()? == 7 && delivery.postponed() == n, "{} instead of {n}", delivery.postponed());
        delivery.postpone(Duration::ZERO).await?;
    }
    ensure!(take(&mut consumer).await? == 7);
    ensure!(is_silent(&mut consumer).await && is_silent(&mut dead).await);
    Ok(())
}

/// Whether somebody had it, and how often it was postponed.
pub async fn a_message_knows_its_past(fresh: &Fresh) -> Result<()> {
    fresh.broker.publish_later(Queue::Tasks(farm::Class::Cpu), &7_u32, Duration::from_millis(1)).await?;
    let mut consumer = fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?;
    let delivery = next(&mut consumer).await?;
    ensure!(!delivery.came_before() && delivery.postponed() == 0 && delivery.is_ours());
    drop(delivery);
    let delivery = next(&mut consumer).await?;
    ensure!(delivery.came_before() && delivery.postponed() == 0);
    delivery.postpone(Duration::ZERO).await?;
    let delivery = next(&mut consumer).await?;
    ensure!(delivery.came_before() && delivery.postponed() == 1);
    drop(delivery);
    let delivery = next(&mut consumer).await?;
    ensure!(delivery.came_before() && delivery.postponed() == 1);
    Ok(delivery.ack().await?)
}

/// A wait that is given up, at any moment, takes no message with it.
pub async fn an_abandoned_wait_loses_nothing(fresh: &Fresh) -> Result<()> {
    const MESSAGES: u32 = 500;
    let broker = fresh.broker.clone();
    let publishing = tokio::spawn(async move {
        for n in 0..MESSAGES {
            broker.publish(Queue::Events, &n).await?;
            if n % 5 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        anyhow::Ok(())
    });
    let mut consumers = [fresh.broker.consume(Queue::Events).await?, fresh.broker.consume(Queue::Events).await?];
    let mut taken = Vec::new();
    let mut last_arrival = Instant::now();
    while taken.len() < MESSAGES as usize && last_arrival.elapsed() < ARRIVAL_TIME_MAX {
        for consumer in &mut consumers {
            // The timer's grain is 1 ms, so the wait ends on either side of an arrival.
            if let Ok(delivery) = timeout(Duration::from_micros(300), consumer.next()).await {
                let delivery = delivery?;
                taken.push(delivery.read::<u32>()?);
                delivery.ack().await?;
                last_arrival = Instant::now();
            }
        }
    }
    publishing.await??;
    taken.sort_unstable();
    ensure!(taken == (0..MESSAGES).collect::<Vec<_>>(), "{} messages came", taken.len());
    Ok(())
}

/// Four publishers, four consumers; every seventh message is dropped when it first comes.
pub async fn of_ten_thousand_messages_none_is_lost_or_doubled(fresh: &Fresh) -> Result<()> {
    const MESSAGES: u32 = 10_000;
    let acked = Arc::new(AtomicUsize::new(0));
    let mut consumers = JoinSet::new();
    for _ in 0..4 {
        let (mut consumer, acked) = (fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?, acked.clone());
        consumers.spawn(async move {
            // How often each message was dropped by this consumer, and which it acked.
            let (mut dropped, mut kept) = (BTreeSet::new(), Vec::new());
            while acked.load(Ordering::Relaxed) < MESSAGES as usize {
                // Once the last is acked by another consumer, none comes here: look again from time to time.
                let Ok(delivery) = timeout(SILENCE, consumer.next()).await else { continue };
                let delivery = delivery?;
                let n = delivery.read::<u32>()?;
                if n % 7 != 0 || !dropped.insert(n) {
                    delivery.ack().await?;
                    acked.fetch_add(1, Ordering::Relaxed);
                    kept.push(n);
                }
            }
            anyhow::Ok(kept)
        });
    }
    let mut publishers = JoinSet::new();
    for quarter in 0..4 {
        let broker = fresh.broker.clone();
        publishers.spawn(async move {
            for n in (0..MESSAGES).filter(|n| n % 4 == quarter) {
                broker.publish(Queue::Tasks(farm::Class::Cpu), &n).await?;
            }
            anyhow::Ok(())
        });
    }
    publishers.join_all().await.into_iter().collect::<Result<()>>()?;
    let mut counts = BTreeMap::new();
    for kept in consumers.join_all().await {
        for n in kept? {
            *counts.entry(n).or_insert(0) += 1;
        }
    }
    let doubled: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).collect();
    ensure!(counts.len() == MESSAGES as usize && doubled.is_empty(), "{} came, doubled: {doubled:?}", counts.len());
    ensure!(is_silent(&mut fresh.broker.consume(Queue::Tasks(farm::Class::Cpu)).await?).await);
    Ok(())
}

fn progress(media_ns: u64) -> Result<Word> {
    Ok(Word::Progress(Progress {
        job: JobId::try_from("j1".to_owned())?,
        task: TaskId::Video(3),
        token: Token::random(),
        media_ns,
    }))
}

/// Tells until each listener has heard it: a single report may be lost.
async fn tell_until_heard(
    broker: &Broker,
    listeners: &mut [&mut tokio::sync::broadcast::Receiver<Word>],
    told: &Word,
) -> Result<()> {
    for listener in listeners {
        let hearing = async {
            loop {
                match listener.recv().await {
                    Ok(heard) if heard == *told => return anyhow::Ok(()),
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => anyhow::bail!("the listener was closed"),
                }
            }
        };
        let telling = async {
            loop {
                broker.tell(told.clone());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(ARRIVAL_TIME_MAX, async {
            tokio::select! { heard = hearing => heard, () = telling => Ok(()) }
        })
        .await
        .context("progress was not heard")??;
    }
    Ok(())
}

/// From when they began to listen.
pub async fn progress_is_heard_by_all_who_listen(fresh: &Fresh) -> Result<()> {
    let broker = &fresh.broker;
    broker.tell(progress(1)?);
    let (mut first, mut second) = (broker.listen(), broker.clone().listen());
    tell_until_heard(broker, &mut [&mut first, &mut second], &progress(2)?).await?;
    drop(first);
    let mut third = broker.listen();
    tell_until_heard(broker, &mut [&mut second, &mut third], &progress(3)?).await
}

/// One that does not fetch costs the others nothing, and hears the newest when it comes back.
pub async fn progress_never_waits_for_listeners(fresh: &Fresh) -> Result<()> {
    const REPORTS: u64 = 20_000;
    let (broker, mut lazy) = (&fresh.broker, fresh.broker.listen());
    let before = Instant::now();
    for n in 0..REPORTS {
        broker.tell(progress(n)?);
    }
    ensure!(before.elapsed() < Duration::from_secs(5), "telling took {:?}", before.elapsed());
    let mut kept = 0;
    loop {
        match lazy.try_recv() {
            Ok(_) => kept += 1,
            Err(TryRecvError::Lagged(_)) => {}
            Err(_) => break,
        }
    }
    ensure!(kept < REPORTS / 2, "{kept} reports are kept for a listener that does not fetch");
    tell_until_heard(broker, &mut [&mut lazy], &progress(REPORTS)?).await
}
