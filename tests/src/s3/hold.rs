//! Requests that are held: a test then knows to the letter where a program stands, and does to it what it likes.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::watch;

use super::Operation;

/// Whether a connection is one that things are done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Faults, holds and notes are for it.
    Watched,
    /// Nothing of that kind.
    Quiet,
}

/// When a request is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before it is done.
    Before,
    /// When it is done, before its answer.
    After,
}

/// A request that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caught {
    /// What it asks for.
    pub operation: Operation,
    /// Of which path, `/bucket/key`.
    pub path: String,
    /// The client's end of its connection.
    pub peer: SocketAddr,
}

/// What becomes of a held request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Held,
    GoesOn,
    /// The connection breaks. Held before it was done, it is not done.
    Breaks,
}

type Wanted = Box<dyn Fn(Operation, &str) -> bool + Send + Sync>;

/// Holds one request. Dropped, it lets go.
pub struct Hold {
    caught: mpsc::Receiver<Caught>,
    fate: watch::Sender<Fate>,
}

/// The server's side of a [`Hold`].
pub(super) struct Trap {
    moment: Moment,
    wanted: Wanted,
    caught: mpsc::Sender<Caught>,
    fate: watch::Receiver<Fate>,
}

pub(super) fn set(moment: Moment, wanted: Wanted) -> (Trap, Hold) {
    let (caught_sender, caught) = mpsc::channel();
    let (fate, fate_receiver) = watch::channel(Fate::Held);
    (Trap { moment, wanted, caught: caught_sender, fate: fate_receiver }, Hold { caught, fate })
}

impl Hold {
    /// Waits until a request is held.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub fn wait(&self, limit: Duration) -> Result<Caught> {
        self.caught.recv_timeout(limit).with_context(|| format!("no such request within {limit:?}"))
    }

    /// Whether a request is held, and which.
    pub fn caught(&self) -> Option<Caught> {
        self.caught.try_recv().ok()
    }

    /// Breaks its connection. One that was held before it was done is not done.
    pub fn break_off(self) {
        self.fate.send_replace(Fate::Breaks);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.fate.send_if_modified(|fate| {
            std::mem::replace(fate, if *fate == Fate::Held { Fate::GoesOn } else { *fate }) == Fate::Held
        });
    }
}

impl Trap {
    /// Whether a request is one for it. One that nobody waits for any more wants none.
    pub(super) fn wants(&self, operation: Operation, path: &str) -> bool {
        *self.fate.borrow() == Fate::Held && (self.wanted)(operation, path)
    }

    /// Holds the request, if this is the moment.
    pub(super) async fn stop(&self, moment: Moment, caught: &Caught) -> io::Result<()> {
        if self.moment != moment {
            return Ok(());
        }
        // Nobody may be there to hear of it: then it is let go at once.
        let _ = self.caught.send(caught.clone());
        let mut fate = self.fate.clone();
        let breaks = fate.wait_for(|fate| *fate != Fate::Held).await.is_ok_and(|fate| *fate == Fate::Breaks);
        if breaks { Err(io::Error::other("ordered")) } else { Ok(()) }
    }
}
