//! Words of workers: told and heard through a fanout exchange, and lost wherever they would be in the way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use tokio::sync::{broadcast, mpsc};
use tokio::time::timeout;

use super::connection::{Backoff, Link, Session, while_it_lasts};
use super::{TRANSIENT, bounded, topology};
use crate::broker::BrokerError;
use crate::job::JobId;
use crate::task::{TaskId, Token, Word};

/// Most reports that wait to be sent, and that wait at the broker for a listener.
const REPORTS_MAX: u16 = 256;
/// Most reports kept for a listener that does not fetch them.
const HEARD_MAX: usize = 1024;
/// Longest time that a report takes to go out.
const TELL_TIME_MAX: Duration = Duration::from_secs(5);
/// A task is told of at most this often.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Most tasks whose last report is remembered. More than a process has slots.
const TASKS_MAX: usize = 1024;

/// Sends reports.
pub(super) struct Teller {
    reports: mpsc::Sender<Word>,
    last: Mutex<HashMap<(JobId, TaskId), Instant>>,
}

impl Teller {
    /// Starts the task that sends. It ends with this.
    pub(super) fn start(link: Arc<Link>) -> Self {
        let (reports, queue) = mpsc::channel(usize::from(REPORTS_MAX));
        tokio::spawn(tell(link, queue));
        Self { reports, last: Mutex::default() }
    }

    /// Sends a word, or drops it: when the last about this task was just now, or too many wait.
    pub(super) fn tell(&self, word: Word) {
        if self.is_due(&word, Instant::now()) {
            let _ = self.reports.try_send(word);
        }
    }

    fn is_due(&self, word: &Word, now: Instant) -> bool {
        let Word::Progress(progress) = word else { return true };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |at: &Instant| now.duration_since(*at) < TELL_INTERVAL;
        let task = (progress.job.clone(), progress.task.clone());
        if last.get(&task).is_some_and(is_recent) {
            return false;
        }
        if last.len() >= TASKS_MAX {
            last.retain(|_, at| is_recent(at));
        }
        let room = last.len() < TASKS_MAX;
        if room {
            last.insert(task, now);
        }
        room
    }
}

async fn tell(link: Arc<Link>, mut queue: mpsc::Receiver<Word>) {
    let mut channel: Option<Channel> = None;
    while let Some(word) = queue.recv().await {
        let Some(session) = link.session_now().filter(|session| !session.is_blocked()) else { continue };
        let open = match channel.take().filter(|channel| channel.status().connected()) {
            Some(open) => open,
            None => match session.channel().await {
                Ok(open) => open,
                Err(_) => continue,
            },
        };
        if send(&open, &word).await.is_some() {
            channel = Some(open);
        }
    }
}

/// Sends a report without waiting for a confirm. `None` when the channel is no good any more.
async fn send(channel: &Channel, word: &Word) -> Option<()> {
    let body = serde_json::to_vec(word).ok()?;
    let exchange = topology::progress();
    let properties = BasicProperties::default().with_delivery_mode(TRANSIENT).with_content_type("application/json".into());
    let sending = channel.basic_publish(exchange.as_str().into(), "".into(), BasicPublishOptions::default(), &body, properties);
    timeout(TELL_TIME_MAX, sending).await.ok()?.ok().map(drop)
}

/// Hears reports, those of this process among them.
pub(super) struct Hearer {
    heard: broadcast::Sender<Word>,
}

impl Hearer {
    /// Starts to hear, for as long as the runtime and the link are there.
    pub(super) fn start(link: Arc<Link>) -> (Self, tokio_util::task::AbortOnDropHandle<()>) {
        let heard = broadcast::Sender::new(HEARD_MAX);
        let task = tokio::spawn(hear(link, heard.clone()));
        (Self { heard }, tokio_util::task::AbortOnDropHandle::new(task))
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<Word> {
        self.heard.subscribe()
    }
}

async fn hear(link: Arc<Link>, heard: broadcast::Sender<Word>) {
    let mut backoff = Backoff::default();
    loop {
        let session = link.session().await;
        match subscribe(&session).await {
            Ok(mut consumer) => {
                backoff = Backoff::default();
                while let Some(Some(Ok(delivery))) = while_it_lasts(&session, consumer.next()).await {
                    // What cannot be read is of a newer version: a later report may do. An error means that nobody listens.
                    if let Ok(word) = serde_json::from_slice(&delivery.data) {
                        let _ = heard.send(word);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "progress cannot be heard"),
        }
        backoff.rest().await;
    }
}

/// A queue of our own at the exchange, gone with the connection.
async fn subscribe(session: &Session) -> Result<lapin::Consumer, BrokerError> {
    let channel = session.channel().await?;
    // A name of our own: one given by the broker could not be declared again.
    let name = format!("{}.{}", topology::progress(), Token::random());
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(i64::from(REPORTS_MAX)));
    bounded("declaring a queue for progress", channel.queue_declare(name.as_str().into(), options, arguments)).await?;
    let exchange = topology::progress();
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    let binding = channel.queue_bind(name.as_str().into(), exchange.as_str().into(), "".into(), options, none);
    bounded("binding a queue for progress", binding).await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    bounded("listening", channel.basic_consume(name.as_str().into(), "".into(), options, FieldTable::default())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_told_of_once_a_second_and_others_do_not_wait_for_it() {
        let (reports, _queue) = mpsc::channel(1);
        let teller = Teller { reports, last: Mutex::default() };
        let progress = |chunk| {
            Word::Progress(crate::task::Progress {
                job: JobId::try_from("j1".to_owned()).unwrap(),
                task: TaskId::Video(chunk),
                token: Token::random(),
                media_ns: 0,
            })
        };
        let now = Instant::now();
        let due = |chunk, millis| teller.is_due(&progress(chunk), now + Duration::from_millis(millis));
        assert_eq!([due(0, 0), due(0, 999), due(1, 999), due(0, 1000), due(0, 1001)], [true, false, true, true, false]);
        // Every task of a process with more of them than can be remembered is heard of in turn, and memory stays bounded.
        assert!((0..10_000).map(|chunk| due(chunk, 5000)).filter(|due| *due).count() <= TASKS_MAX);
        assert!(due(20_000, 6000));
        assert!(teller.last.lock().unwrap().len() <= TASKS_MAX);
    }
}
