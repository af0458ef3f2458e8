//! A broker inside this process: for `shoal transcode` and for tests. It forgets everything when it is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};

use super::{Backend, BrokerError, BrokerInfo, BrokerStats, DeadLetter, Delivery, Past, Queue, Settle, Source};
use crate::Class;
use crate::task::Word;

/// Most messages that wait in a queue, delayed ones among them.
const QUEUE_MESSAGES_MAX: usize = 100_000;

/// Most results kept that nobody fetches.
const RESULTS_MAX: usize = 1000;

/// Most words kept for a listener that does not fetch them.
const WORDS_MAX: usize = 1024;

/// The queues.
pub(super) struct Local {
    jobs: Arc<Line>,
    tasks: [Arc<Line>; Class::ALL.len()],
    events: Arc<Line>,
    dead: Arc<Line>,
    results: Arc<Line>,
    words: broadcast::Sender<Word>,
}

impl Default for Local {
    fn default() -> Self {
        let words = broadcast::Sender::new(WORDS_MAX);
        let line = Arc::<Line>::default;
        Self { jobs: line(), tasks: Class::ALL.map(|_| line()), events: line(), dead: line(), results: line(), words }
    }
}

impl Local {
    fn line(&self, queue: Queue) -> &Arc<Line> {
        match queue {
            Queue::Jobs => &self.jobs,
            Queue::Tasks(class) => {
                let [cpu, nvenc, vaapi, qsv, v4l2] = &self.tasks;
                match class {
                    Class::Cpu => cpu,
                    Class::Nvenc => nvenc,
                    Class::Vaapi => vaapi,
                    Class::Qsv => qsv,
                    Class::V4l2 => v4l2,
                }
            }
            Queue::Events => &self.events,
            Queue::Dead => &self.dead,
            Queue::Results => &self.results,
        }
    }
}

#[async_trait::async_trait]
impl Backend for Local {
    async fn publish(&self, queue: Queue, body: Vec<u8>, delay: Duration) -> Result<(), BrokerError> {
        let (line, message) = (self.line(queue), Message { body, past: Past::default() });
        if queue == Queue::Results {
            line.change(|waiting| waiting.push_newest(message, RESULTS_MAX));
            return Ok(());
        }
        let taken = line.change(|waiting| {
            waiting.room()?;
            Ok::<_, BrokerError>(waiting.take_in(message, delay))
        });
        keep_promise_later(line, taken?, delay);
        Ok(())
    }

    async fn consume(&self, queue: Queue) -> Result<Box<dyn Source>, BrokerError> {
        let (line, dead) = (self.line(queue).clone(), self.dead.clone());
        Ok(Box::new(Turn { line, dead, free: Arc::new(Semaphore::new(1)) }))
    }

    fn tell(&self, word: Word) {
        // An error means that nobody listens.
        let _ = self.words.send(word);
    }

    fn listen(&self) -> broadcast::Receiver<Word> {
        self.words.subscribe()
    }

    fn stats(&self) -> BrokerStats {
        BrokerStats::LOCAL
    }

    async fn check(&self) -> Result<BrokerInfo, BrokerError> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(BrokerInfo { product: "in-process".to_owned(), version, queues: Vec::new() })
    }
}

/// Has a message that was promised come when its delay is over.
fn keep_promise_later(line: &Arc<Line>, promised: Option<Message>, delay: Duration) {
    let Some(message) = promised else { return };
    // The timer does not keep the queue alive: it may end before its messages are due.
    let line = Arc::downgrade(line);
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        if let Some(line) = line.upgrade() {
            line.change(|waiting| waiting.keep_promise(message));
        }
    });
}

/// A message, and what became of it before.
struct Message {
    body: Vec<u8>,
    past: Past,
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
    ready: VecDeque<Message>,
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

    /// Adds a message, or promises it and gives it back until its delay is over.
    fn take_in(&mut self, message: Message, delay: Duration) -> Option<Message> {
        if delay.is_zero() {
            self.ready.push_back(message);
            return None;
        }
        self.promised += 1;
        Some(message)
    }

    fn keep_promise(&mut self, message: Message) {
        self.promised -= 1;
        self.ready.push_back(message);
    }

    /// Adds a message at the cost of the oldest when so many are there.
    fn push_newest(&mut self, message: Message, messages_max: usize) {
        if self.ready.len() >= messages_max {
            self.ready.pop_front();
        }
        self.ready.push_back(message);
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
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let gone = |_| BrokerError::Unavailable("the queue is closed".to_owned());
        let permit = self.free.clone().acquire_owned().await.map_err(gone)?;
        loop {
            // Nothing is awaited from here until the message is handed out, so a dropped future loses none.
            self.line.ready.acquire().await.map_err(gone)?.forget();
            let taken = self.line.lock().ready.pop_front();
            if let Some(Message { body, past }) = taken {
                let message = Message { body: body.clone(), past };
                let (line, dead) = (self.line.clone(), self.dead.clone());
                let held = Held { message: Some(message), line, dead, _permit: permit };
                return Ok(Delivery { body, past, settle: Box::new(held) });
            }
        }
    }
}

/// A message in the hands of a consumer.
struct Held {
    /// Gone once it is settled.
    message: Option<Message>,
    line: Arc<Line>,
    dead: Arc<Line>,
    _permit: OwnedSemaphorePermit,
}

#[async_trait::async_trait]
impl Settle for Held {
    fn is_ours(&self) -> bool {
        true
    }

    async fn postpone(mut self: Box<Self>, delay: Duration) -> Result<(), BrokerError> {
        if let Some(Message { body, past }) = self.message.take() {
            let past = Past { postponed: past.postponed.saturating_add(1), ..past };
            // Always taken back, also above the limit: as in `drop`.
            let promised = self.line.change(|waiting| waiting.take_in(Message { body, past }, delay));
            keep_promise_later(&self.line, promised, delay);
        }
        Ok(())
    }

    async fn ack(mut self: Box<Self>) -> Result<(), BrokerError> {
        self.message = None;
        Ok(())
    }

    async fn reject(mut self: Box<Self>, reason: &str) -> Result<(), BrokerError> {
        let body = self.message.as_ref().map_or(&[][..], |message| &message.body);
        let letter = serde_json::to_vec(&DeadLetter::new(reason, body));
        let body = letter.map_err(|error| BrokerError::Unavailable(error.to_string()))?;
        self.dead.change(|waiting| waiting.push_newest(Message { body, past: Past::default() }, QUEUE_MESSAGES_MAX));
        self.message = None;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(Message { body, past }) = self.message.take() {
            // Always taken back, also above the limit: there are at most as many as there are consumers.
            let past = Past { came_back: true, ..past };
            self.line.change(|waiting| waiting.ready.push_front(Message { body, past }));
        }
    }
}
