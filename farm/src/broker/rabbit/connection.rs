//! A connection that is kept: when it is lost, another is made.
//!
//! Nothing of a lost connection is used again: channels, consumers and what they hold end with it. The client library's own
//! recovery is not used, because it gives up silently in several ways.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::address::Address;
use super::{bounded, greeting, topology};
use crate::broker::BrokerError;
use crate::broker::stats::Counters;

/// Longest time to connect.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// First and longest pause before a connection is made again.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(30);
/// A connection that held this long was a good one: the next pause is the first again.
const GOOD_AFTER: Duration = Duration::from_secs(30);
/// How often a connection is asked whether it is still there, should it not say so by itself.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for the broker's farewell.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);

/// What a connection is for. A broker short of memory stops connections that publish, and whatever else is on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Publish,
    Consume,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Publish => "shoal publish",
            Self::Consume => "shoal consume",
        }
    }

    fn is_up(self, counters: &Counters) -> &AtomicBool {
        match self {
            Self::Publish => &counters.publish_up,
            Self::Consume => &counters.consume_up,
        }
    }
}

/// One connection, while it lasts.
#[derive(Clone)]
pub(super) struct Session {
    connection: Arc<Connection>,
    over: CancellationToken,
}

impl Session {
    /// A new channel.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        let channel = bounded("opening a channel", self.connection.create_channel()).await;
        if channel.is_err() && !self.is_blocked() {
            self.give_up();
        }
        channel
    }

    /// Whether the broker takes nothing on it for now.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Says that it is no good any more: another is to be made.
    pub(super) fn give_up(&self) {
        self.over.cancel();
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) {
        self.over.cancelled().await;
    }

    /// Makes a connection, and on one for publishing everything that is to be on the broker.
    async fn open(address: &Address, role: Role) -> Result<Self, BrokerError> {
        let properties = ConnectionProperties::default()
            .with_connection_name(role.name().into())
            .with_client_property("product".into(), "shoal".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let connecting = timeout(CONNECT_TIME_MAX, Connection::connect_uri(address.uri(), properties));
        let failed = |why: String| BrokerError::Unavailable(format!("{address}: {why}"));
        let connection = match connecting.await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed(format!("no connection within {} s", CONNECT_TIME_MAX.as_secs()))),
        };
        let session = Self { connection: Arc::new(connection), over: CancellationToken::new() };
        if role == Role::Publish {
            session.declare().await?;
        }
        Ok(session)
    }

    /// Declares everything that is to be on the broker.
    pub(super) async fn declare(&self) -> Result<(), BrokerError> {
        topology::declare_all(&self.channel().await?).await
    }

    /// Follows the connection to its end, and says why it ended.
    async fn watch(&self, role: Role, counters: &Counters) -> String {
        let mut events = std::pin::pin!(self.connection.events_listener());
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        loop {
            tokio::select! {
                () = self.ended() => return "it did not answer".to_owned(),
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(connection = role.name(), reason, "the broker takes no messages");
                        counters.blocked.store(true, Ordering::Relaxed);
                    }
                    Some(Event::ConnectionUnblocked) => counters.blocked.store(false, Ordering::Relaxed),
                    // A soft error ends one channel, and whoever uses that sees it.
                    Some(Event::Error(error)) if !error.is_amqp_soft_error() => return error.to_string(),
                    Some(_) => {}
                    None => return "it ended".to_owned(),
                },
                _ = look.tick() => if !self.connection.status().connected() {
                    return "it was closed".to_owned();
                },
            }
        }
    }

    /// Takes leave of the broker, where that is still possible.
    async fn close(self) {
        self.give_up();
        if self.connection.status().connected() {
            let _ = timeout(CLOSE_TIME_MAX, self.connection.close(200, "".into())).await;
        }
    }
}

/// A connection that is made again whenever it is lost, for as long as this is kept.
pub(super) struct Link {
    current: watch::Receiver<Option<Session>>,
    _keeper: AbortOnDropHandle<()>,
}

impl Link {
    /// Connects, once: what is wrong with an address is to be known at once.
    pub(super) async fn connect(address: Address, role: Role, counters: Arc<Counters>) -> Result<Self, BrokerError> {
        let session = Session::open(&address, role).await?;
        role.is_up(&counters).store(true, Ordering::Relaxed);
        let (sender, current) = watch::channel(Some(session.clone()));
        let keeper = tokio::spawn(keep(address, role, counters, session, sender));
        Ok(Self { current, _keeper: AbortOnDropHandle::new(keeper) })
    }

    /// The connection, as soon as there is one.
    pub(super) async fn session(&self) -> Session {
        let mut current = self.current.clone();
        loop {
            // One that was given up stays here until its keeper has seen that.
            if let Some(session) = current.borrow_and_update().clone().filter(|session| !session.over.is_cancelled()) {
                return session;
            }
            if current.changed().await.is_err() {
                // The keeper ends only with this process.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The connection, if there is one.
    pub(super) fn session_now(&self) -> Option<Session> {
        self.current.borrow().clone().filter(|session| !session.over.is_cancelled())
    }
}

async fn keep(
    address: Address,
    role: Role,
    counters: Arc<Counters>,
    mut session: Session,
    current: watch::Sender<Option<Session>>,
) {
    let mut backoff = Backoff::default();
    loop {
        let since = Instant::now();
        let reason = session.watch(role, &counters).await;
        tracing::warn!(broker = %address, connection = role.name(), reason, "connection lost");
        role.is_up(&counters).store(false, Ordering::Relaxed);
        if role == Role::Publish {
            counters.blocked.store(false, Ordering::Relaxed);
        }
        current.send_replace(None);
        session.close().await;
        if since.elapsed() >= GOOD_AFTER {
            backoff = Backoff::default();
        }
        session = reopen(&address, role, &mut backoff).await;
        tracing::info!(broker = %address, connection = role.name(), "connected again");
        Counters::add(&counters.reconnects);
        role.is_up(&counters).store(true, Ordering::Relaxed);
        current.send_replace(Some(session.clone()));
    }
}

/// Tries until there is a connection.
async fn reopen(address: &Address, role: Role, backoff: &mut Backoff) -> Session {
    loop {
        backoff.rest().await;
        // A broker that takes a connection and says nothing would cost the client library a thread each time, and never
        // give it back: so it is asked first for a sign of life.
        let opened = match greeting::greet(address).await {
            Ok(_) => Session::open(address, role).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(session) => return session,
            Err(error) => tracing::warn!(connection = role.name(), %error, "no connection: trying again"),
        }
    }
}

/// Pauses that grow, with jitter so that those who lost the same broker do not come back all at once.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    step: u32,
}

impl Backoff {
    /// Longest pause of the next step.
    fn next(&mut self) -> Duration {
        let pause = PAUSES.start().saturating_mul(1 << self.step.min(16)).min(*PAUSES.end());
        self.step += 1;
        pause
    }

    /// Waits between half of the step's pause and all of it.
    pub(super) async fn rest(&mut self) {
        let pause = self.next();
        let jittered = rand::rng().random_range(pause / 2..=pause);
        tokio::time::sleep(jittered).await;
    }
}

/// Runs something only as long as a connection lasts.
pub(super) async fn while_it_lasts<T>(session: &Session, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = session.ended() => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_stay_there() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..100).map(|_| backoff.next()).collect();
        assert_eq!(pauses[..4], [500, 1000, 2000, 4000].map(Duration::from_millis));
        assert!(pauses.is_sorted() && pauses[6..].iter().all(|pause| pause == PAUSES.end()), "{pauses:?}");
    }
}
