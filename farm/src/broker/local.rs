//! A broker inside this process: for `shoal transcode` and for tests. It forgets everything when it is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};

use super::{Backend, BrokerError, BrokerInfo, BrokerStats, DeadLetter, Queue, Settle, Source};
use crate::task::Progress;

/// Most messages that wait in a queue, delayed ones among them.
const QUEUE_MESSAGES_MAX: usize = 100_000;

/// Most results kept that nobody fetches.
const RESULTS_MAX: usize = 1000;

/// Most progress reports kept for a listener that does not fetch them.
const PROGRESS_REPORTS_MAX: usize = 1024;

/// The queues.
pub(super) struct Local {
    jobs: Arc<Line>,
    tasks: Arc<Line>,
    events: Arc<Line>,
    dead: Arc<Line>,
    results: Arc<Line>,
    progress: broadcast::Sender<Progress>,
}

impl Default for Local {
    fn default() -> Self {
        let progress = broadcast::Sender::new(PROGRESS_REPORTS_MAX);
        let line = Arc::<Line>::default;
        Self { jobs: line(), tasks: line(), events: line(), dead: line(), results: line(), progress }
    }
}

impl Local {
    fn line(&self, queue: Queue) -> &Arc<Line> {
        match queue {
            Queue::Jobs => &self.jobs,
            Queue::Tasks => &self.tasks,
            Queue::Events => &self.events,
            Queue::Dead => &self.dead,
            Queue::Results => &self.results,
        }
    }
}

#[async_trait::async_trait]
impl Backend for Local {
    async fn publish(&self, queue: Queue, body: Vec<u8>, delay: Duration) -> Result<(), BrokerError> {
        let line = self.line(queue);
        if queue == Queue::Results {
            line.change(|waiting| waiting.push_newest(body, RESULTS_MAX));
            return Ok(());
        }
        if delay.is_zero() {
            return line.change(|waiting| waiting.push(body));
        }
        line.change(Waiting::promise)?;
        // The timer does not keep the queue alive: it may end before its messages are due.
        let line = Arc::downgrade(line);
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(line) = line.upgrade() {
                line.change(|waiting| waiting.keep_promise(body));
            }
        });
        Ok(())
    }

    async fn consume(&self, queue: Queue) -> Result<Box<dyn Source>, BrokerError> {
        let (line, dead) = (self.line(queue).clone(), self.dead.clone());
        Ok(Box::new(Turn { line, dead, free: Arc::new(Semaphore::new(1)) }))
    }

    fn tell(&self, progress: Progress) {
        // An error means that nobody listens.
        let _ = self.progress.send(progress);
    }

    fn listen(&self) -> broadcast::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn stats(&self) -> BrokerStats {
        BrokerStats::LOCAL
    }

    async fn check(&self) -> Result<BrokerInfo, BrokerError> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(BrokerInfo { product: "in-process".to_owned(), version, queues: Vec::new() })
    }
}

/// A queue and those who wait for its messages.
struct Line {
    waiting: Mutex<Waiting>,
    /// As many permits as messages are ready: a consumer takes a permit, then the message at the head. Waiting consumers are
    /// served in the order in which they came.
    ready: Semaphore,
}

impl Default for Line {
    fn default() -> Self {
        Self { waiting: Mutex::default(), ready: Semaphore::new(0) }
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what waits, and lets a consumer in for each message that this made ready.
    fn change<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        let mut waiting = self.lock();
        let before = waiting.ready.len();
        let changed = change(&mut waiting);
        self.ready.add_permits(waiting.ready.len().saturating_sub(before));
        changed
    }
}

/// The messages of a queue that no consumer holds.
#[derive(Default)]
struct Waiting {
    ready: VecDeque<Vec<u8>>,
    /// How many are still to come out of a delay.
    promised: usize,
}

impl Waiting {
    fn room(&self) -> Result<(), BrokerError> {
        if self.ready.len() + self.promised < QUEUE_MESSAGES_MAX {
            return Ok(());
        }
        Err(BrokerError::Unavailable(format!("the queue is full, {QUEUE_MESSAGES_MAX} messages wait in it")))
    }

    fn push(&mut self, body: Vec<u8>) -> Result<(), BrokerError> {
        self.room()?;
        self.ready.push_back(body);
        Ok(())
    }

    fn promise(&mut self) -> Result<(), BrokerError> {
        self.room()?;
        self.promised += 1;
        Ok(())
    }

    fn keep_promise(&mut self, body: Vec<u8>) {
        self.promised -= 1;
        self.ready.push_back(body);
    }

    /// Adds a message at the cost of the oldest when so many are there.
    fn push_newest(&mut self, body: Vec<u8>, messages_max: usize) {
        if self.ready.len() >= messages_max {
            self.ready.pop_front();
        }
        self.ready.push_back(body);
    }
}

/// A consumer's place in the queue.
struct Turn {
    line: Arc<Line>,
    dead: Arc<Line>,
    /// One permit: held by the delivery that is not settled yet.
    free: Arc<Semaphore>,
}

#[async_trait::async_trait]
impl Source for Turn {
    async fn next(&mut self) -> Result<(Vec<u8>, Box<dyn Settle>), BrokerError> {
        let gone = |_| BrokerError::Unavailable("the queue is closed".to_owned());
        let permit = self.free.clone().acquire_owned().await.map_err(gone)?;
        loop {
            // Nothing is awaited from here until the message is handed out, so a dropped future loses none.
            self.line.ready.acquire().await.map_err(gone)?.forget();
            let taken = self.line.lock().ready.pop_front();
            if let Some(body) = taken {
                let held = Held {
                    body: body.clone(),
                    line: self.line.clone(),
                    dead: self.dead.clone(),
                    settled: false,
                    _permit: permit,
                };
                return Ok((body, Box::new(held)));
            }
        }
    }
}

/// A message in the hands of a consumer.
struct Held {
    body: Vec<u8>,
    line: Arc<Line>,
    dead: Arc<Line>,
    settled: bool,
    _permit: OwnedSemaphorePermit,
}

#[async_trait::async_trait]
impl Settle for Held {
    async fn ack(mut self: Box<Self>) -> Result<(), BrokerError> {
        self.settled = true;
        Ok(())
    }

    async fn reject(mut self: Box<Self>, reason: &str) -> Result<(), BrokerError> {
        let letter = DeadLetter::new(reason, &self.body);
        let letter = serde_json::to_vec(&letter).map_err(|error| BrokerError::Unavailable(error.to_string()))?;
        self.dead.change(|waiting| waiting.push_newest(letter, QUEUE_MESSAGES_MAX));
        self.settled = true;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.settled {
            // Always taken back, also above the limit: there are at most as many as there are consumers.
            let body = std::mem::take(&mut self.body);
            self.line.change(|waiting| waiting.ready.push_front(body));
        }
    }
}
