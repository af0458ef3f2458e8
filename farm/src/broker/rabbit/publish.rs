//! Publishing: one task owns the channel, so that confirms and messages cannot be mixed up.
//!
//! Messages go out in windows. Each window is confirmed whole before the next is sent, so a message that comes back belongs to
//! it, and is known by its id: the client library may hand it out with the confirm of another.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{Link, Session};
use super::{PERSISTENT, bounded, delay, past};
use crate::broker::BrokerError;
use crate::broker::stats::Counters;
use crate::task::Token;

/// Most messages that wait for their confirms at a time.
const WINDOW_MESSAGES_MAX: usize = 128;
/// Most messages that wait behind them.
const QUEUE_MESSAGES_MAX: usize = 256;
/// Largest message in bytes: from 4.0 brokers refuse more than 16 MiB, by closing the channel.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Longest wait for the confirms of a window.
const CONFIRM_TIME_MAX: Duration = Duration::from_secs(15);
/// Pause when there is a connection and yet no channel.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Pause before queues that are missing are declared again. A broker (3.10.8) whose queue is deleted and declared again at once
/// does not tell the queue's consumers; they would wait for ever, with a message in their hands that they do not see.
const REDECLARE_PAUSE: Duration = Duration::from_secs(1);
/// Longest time that a publish takes, an outage in between included.
const PUBLISH_TIME_MAX: Duration = Duration::from_secs(30);

/// A message on its way.
struct Order {
    exchange: ShortString,
    key: ShortString,
    id: String,
    body: Vec<u8>,
    /// How often the message was postponed.
    postponed: u32,
    /// Whether it came back once already.
    returned: bool,
    done: oneshot::Sender<Result<(), BrokerError>>,
}

/// Sends messages. Cloned, it sends through the same channel.
#[derive(Clone)]
pub(super) struct Publisher {
    orders: mpsc::Sender<Order>,
}

impl Publisher {
    /// Starts the task that sends. It ends when the last clone is gone.
    pub(super) fn start(link: Arc<Link>, counters: Arc<Counters>) -> Self {
        let (orders, queue) = mpsc::channel(QUEUE_MESSAGES_MAX);
        tokio::spawn(run(link, counters, queue));
        Self { orders }
    }

    /// Sends a message to a queue; when this returns, the broker has it.
    pub(super) async fn publish(&self, queue: &str, body: Vec<u8>, wait: Duration) -> Result<(), BrokerError> {
        self.publish_again(queue, body, wait, 0).await
    }

    /// As [`Publisher::publish`], for a message that was postponed so often.
    pub(super) async fn publish_again(
        &self,
        queue: &str,
        body: Vec<u8>,
        wait: Duration,
        postponed: u32,
    ) -> Result<(), BrokerError> {
        let unavailable = |why: String| Err(BrokerError::Unavailable(why));
        if body.len() > MESSAGE_BYTES_MAX {
            return unavailable(format!("a message of {} bytes is too large, {MESSAGE_BYTES_MAX} may be sent", body.len()));
        }
        let Some((exchange, key)) = delay::route(queue, wait) else {
            return unavailable(format!("a delay of {wait:?} is too long, the longest is {:?}", delay::DELAY_MAX));
        };
        let (done, result) = oneshot::channel();
        let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
        let order = Order { exchange, key, id: Token::random().to_string(), body, postponed, returned: false, done };
        let sent = timeout(PUBLISH_TIME_MAX, async {
            // Neither fails while the task runs, and it runs while `self` is there.
            let _ = self.orders.send(order).await;
            result.await
        });
        match sent.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => unavailable("the publisher has stopped".to_owned()),
            Err(_) => unavailable(format!("the broker did not take the message within {} s", PUBLISH_TIME_MAX.as_secs())),
        }
    }
}

/// A channel in confirm mode, and the connection it is on.
struct Lane {
    session: Session,
    channel: Channel,
}

impl Lane {
    async fn open(session: Session) -> Result<Self, BrokerError> {
        let channel = session.channel().await?;
        bounded("asking for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self { session, channel })
    }
}

/// The lane at hand, or a new one.
async fn next_lane(link: &Link, lane: Option<Lane>) -> Result<Lane, BrokerError> {
    let session = match &lane {
        Some(lane) => lane.session.clone(),
        None => link.session().await,
    };
    if session.is_blocked() {
        return Err(BrokerError::Unavailable("the broker takes no messages: it is short of memory or disk".to_owned()));
    }
    match lane {
        Some(lane) => Ok(lane),
        None => Lane::open(session).await,
    }
}

/// Sends what comes, window by window.
async fn run(link: Arc<Link>, counters: Arc<Counters>, mut queue: mpsc::Receiver<Order>) {
    // What is to be sent next, oldest first.
    let mut waiting = VecDeque::new();
    let mut lane = None;
    loop {
        if waiting.is_empty() {
            let mut fresh = Vec::new();
            if queue.recv_many(&mut fresh, WINDOW_MESSAGES_MAX).await == 0 {
                return;
            }
            waiting.extend(fresh);
        }
        // Whoever waited too long is gone, and has told the caller.
        waiting.retain(|order: &Order| !order.done.is_closed());
        if waiting.is_empty() {
            continue;
        }
        let open = match next_lane(&link, lane.take()).await {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(%error, "nothing can be published for now");
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        let outcomes = send(&open.channel, &waiting).await;
        let (again, state) = settle(waiting, outcomes, &counters);
        waiting = again;
        lane = match state {
            LaneState::Good => Some(open),
            LaneState::Unbound => {
                tokio::time::sleep(REDECLARE_PAUSE).await;
                if let Err(error) = open.session.declare().await {
                    tracing::warn!(%error, "queues are missing and cannot be declared");
                }
                Some(open)
            }
            // A blocked connection is slow, not broken. Its channel is not used again: a message that comes back late
            // would take the place of another.
            LaneState::Slow if open.session.is_blocked() => None,
            LaneState::Slow | LaneState::Broken => {
                open.session.give_up();
                None
            }
        };
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The broker has it.
    Acked,
    /// A queue is full.
    Nacked,
    /// No queue takes it.
    Returned,
    /// The channel failed first: it may have been taken.
    Lost,
    /// No confirm came in time: it may have been taken.
    TimedOut,
}

/// Sends a window and waits for all its confirms. One outcome for each message, in order.
async fn send(channel: &Channel, window: &VecDeque<Order>) -> Vec<Outcome> {
    let deadline = Instant::now() + CONFIRM_TIME_MAX;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut confirms = Vec::with_capacity(window.len());
    for order in window {
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into())
            .with_message_id(order.id.as_str().into())
            .with_headers(past::headers(order.postponed));
        let sending = channel.basic_publish(order.exchange.clone(), order.key.clone(), options, &order.body, properties);
        confirms.push(timeout_at(deadline, sending).await);
    }
    let (mut outcomes, mut returned) = (Vec::with_capacity(window.len()), BTreeSet::new());
    for sent in confirms {
        let confirmed = match sent {
            Ok(Ok(confirm)) => timeout_at(deadline, confirm).await,
            Ok(Err(error)) => Ok(Err(error)),
            Err(late) => Err(late),
        };
        outcomes.push(match &confirmed {
            Ok(Ok(Confirmation::Ack(_))) => Outcome::Acked,
            Ok(Ok(Confirmation::Nack(_))) => Outcome::Nacked,
            Ok(Ok(Confirmation::NotRequested) | Err(_)) => Outcome::Lost,
            Err(_) => Outcome::TimedOut,
        });
        if let Ok(Ok(confirmation)) = confirmed
            && let Some(message) = confirmation.take_message()
            && let Some(id) = message.properties.message_id()
        {
            returned.insert(id.to_string());
        }
    }
    for (order, outcome) in window.iter().zip(&mut outcomes) {
        if returned.contains(&order.id) {
            *outcome = Outcome::Returned;
        }
    }
    outcomes
}

/// What a window says about the lane it went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LaneState {
    /// Goes on.
    Good,
    /// Goes on when the queues are declared again.
    Unbound,
    /// Answers too late.
    Slow,
    /// Is gone.
    Broken,
}

/// Tells those whose message is settled; gives back those that are to be sent again, in order, and the state of the lane.
fn settle(window: VecDeque<Order>, outcomes: Vec<Outcome>, counters: &Counters) -> (VecDeque<Order>, LaneState) {
    let (mut again, mut state) = (VecDeque::new(), LaneState::Good);
    let unavailable = |why: &str| Err(BrokerError::Unavailable(why.to_owned()));
    for (mut order, outcome) in window.into_iter().zip(outcomes) {
        let (counter, seen) = match outcome {
            Outcome::Acked => (Some(&counters.acked), LaneState::Good),
            Outcome::Nacked => (Some(&counters.nacked), LaneState::Good),
            Outcome::Returned => (Some(&counters.returned), LaneState::Unbound),
            Outcome::TimedOut => (Some(&counters.timed_out), LaneState::Slow),
            Outcome::Lost => (None, LaneState::Broken),
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        state = state.max(seen);
        let result = match outcome {
            Outcome::Acked => Ok(()),
            Outcome::Nacked => unavailable("the queue is full"),
            Outcome::Returned if order.returned => unavailable("no queue takes the message"),
            Outcome::TimedOut => unavailable("the broker did not confirm the message in time; it may have taken it"),
            Outcome::Returned | Outcome::Lost => {
                order.returned |= outcome == Outcome::Returned;
                again.push_back(order);
                continue;
            }
        };
        // An error means that nobody waits for it any more.
        let _ = order.done.send(result);
    }
    (again, state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(id: &str, returned: bool) -> (Order, oneshot::Receiver<Result<(), BrokerError>>) {
        let (done, result) = oneshot::channel();
        (
            Order { exchange: "".into(), key: "q".into(), id: id.to_owned(), body: Vec::new(), postponed: 0, returned, done },
            result,
        )
    }

    #[test]
    fn what_is_lost_goes_again_in_order_and_the_rest_is_told() {
        use Outcome::{Acked, Lost, Nacked, Returned, TimedOut};
        let outcomes = [Acked, Lost, Nacked, Returned, Returned, TimedOut, Lost];
        let (window, mut results): (VecDeque<_>, Vec<_>) =
            ["a", "b", "c", "d", "e", "f", "g"].into_iter().map(|id| order(id, id == "e")).unzip();
        let counters = Counters::default();
        let (again, state) = settle(window, outcomes.to_vec(), &counters);
        assert_eq!(
            again.iter().map(|order| (order.id.as_str(), order.returned)).collect::<Vec<_>>(),
            [("b", false), ("d", true), ("g", false)]
        );
        assert_eq!(state, LaneState::Broken);
        let told: Vec<_> = results.iter_mut().map(|result| result.try_recv().ok().map(|told| told.is_ok())).collect();
        assert_eq!(told, [Some(true), None, Some(false), None, Some(false), Some(false), None]);
        let stats = counters.snapshot();
        assert_eq!((stats.acked, stats.nacked, stats.returned, stats.timed_out), (1, 1, 2, 1));
    }

    #[test]
    fn a_window_without_losses_keeps_its_lane() {
        let state = |outcome| {
            let (order, _result) = order("a", false);
            settle(VecDeque::from([order]), vec![outcome], &Counters::default()).1
        };
        assert_eq!(state(Outcome::Acked), LaneState::Good);
        assert_eq!(state(Outcome::Nacked), LaneState::Good);
        assert_eq!(state(Outcome::Returned), LaneState::Unbound);
        assert_eq!(state(Outcome::TimedOut), LaneState::Slow);
    }
}
