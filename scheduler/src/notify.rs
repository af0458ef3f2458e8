//! Tells the end of jobs: on the results exchange, and by the signed call that a job may ask for.
//!
//! What is to be told stands in the outbox in storage, so it outlives a scheduler. It is told at least once.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use farm::broker::{Broker, Queue};
use farm::ended::Ended;
use farm::job::{JobId, JobSpec, NotifySpec, shown_url};
use farm::storage::{Entry, Kind, Storage};
use farm::{Code, Failure, keys, metrics};
use futures::StreamExt as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::StatusCode;
use reqwest::redirect::Policy as Redirects;
use serde::Serialize;
use sha2::Sha256;
use tokio::time::Instant;

use crate::scheduler::{PARTITION, Watch, fetch_if_there, is_there};

/// How telling is done.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Wait after the first failure; it doubles each time.
    pub retry_first: Duration,
    /// Longest wait.
    pub retry_longest: Duration,
    /// So long after the end of a job telling it is given up.
    pub give_up: Duration,
    /// How often the outbox is looked at when nothing was heard.
    pub poll: Duration,
}

impl Default for Settings {
    /// A second to 15 minutes, for a day; a look every 30 s.
    fn default() -> Self {
        Self {
            retry_first: Duration::from_secs(1),
            retry_longest: Duration::from_secs(15 * 60),
            give_up: Duration::from_secs(24 * 3600),
            poll: Duration::from_secs(30),
        }
    }
}

/// Ends told at a time.
const TELLINGS_MAX: usize = 8;
/// Longest a receiver may take to be reached, and to answer.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// How often telling was tried.
#[derive(Clone, Copy, Debug)]
struct Tries {
    count: u32,
    next_at: Instant,
    /// Whether it was told on the results exchange.
    published: bool,
}

struct Teller {
    settings: Settings,
    state: Storage,
    broker: Broker,
    client: reqwest::Client,
}

/// What one attempt came to.
enum Told {
    /// All who are to know were told.
    All,
    /// Not all; `published` tells whether the exchange was.
    Not { published: bool },
}

/// Tells what is in the outbox, while this scheduler acts, until the future is dropped.
///
/// # Errors
/// [`Code::Internal`] when there is no way to make calls at all.
pub async fn run(settings: Settings, state: Storage, broker: Broker, watch: Watch) -> Result<(), Failure> {
    let teller = Teller { settings, state, broker, client: client()? };
    let mut tries: BTreeMap<String, Tries> = BTreeMap::new();
    loop {
        if watch.is_acting() {
            teller.round(&mut tries).await;
        }
        let next_at = tries.values().map(|tried| tried.next_at).min();
        let poll_at = Instant::now() + settings.poll;
        tokio::select! {
            () = watch.ended() => {}
            () = tokio::time::sleep_until(next_at.map_or(poll_at, |at| at.min(poll_at))) => {}
        }
    }
}

fn client() -> Result<reqwest::Client, Failure> {
    let builder = reqwest::Client::builder().connect_timeout(CONNECT_MAX).timeout(ANSWER_MAX).redirect(Redirects::none());
    let builder = builder.user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")));
    builder.build().map_err(|error| Failure::new(Code::Internal, format!("no calls can be made: {error}")))
}

impl Teller {
    /// Looks at the outbox once and tells what is due.
    async fn round(&self, tries: &mut BTreeMap<String, Tries>) {
        let prefix = keys::outbox_prefix(PARTITION);
        let listed = match self.state.list(&prefix).await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "the outbox cannot be listed now");
                return;
            }
        };
        let now = Instant::now();
        tries.retain(|key, _| listed.iter().any(|entry| entry.key == *key));
        let due = listed.into_iter().filter(|entry| tries.get(&entry.key).is_none_or(|tried| tried.next_at <= now));
        let due: Vec<_> = due
            .map(|entry| {
                let published = tries.get(&entry.key).is_some_and(|tried| tried.published);
                async move { (self.tell(&entry, published).await, entry.key) }
            })
            .collect();
        let told: Vec<_> = futures::stream::iter(due).buffer_unordered(TELLINGS_MAX).collect().await;
        for (told, key) in told {
            let published = match told {
                Ok(Told::All) => {
                    tries.remove(&key);
                    continue;
                }
                Ok(Told::Not { published }) => published,
                Err(failure) => {
                    tracing::warn!(key, %failure, "the end of a job cannot be told now");
                    tries.get(&key).is_some_and(|tried| tried.published)
                }
            };
            let count = tries.get(&key).map_or(0, |tried| tried.count) + 1;
            tries.insert(key, Tries { count, next_at: Instant::now() + self.settings.pause(count), published });
        }
    }

    async fn tell(&self, entry: &Entry, published: bool) -> Result<Told, Failure> {
        let Some(ended) = fetch_if_there::<Ended>(&self.state, &entry.key).await? else { return Ok(Told::All) };
        let job = &ended.job;
        let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_millis(entry.modified_ms)).unwrap_or_default();
        let is_last = age > self.settings.give_up;
        let published = published || self.publish(&ended).await;
        let called = self.call(job, &ended).await?;
        let is_told = published && called;
        if !is_told && !is_last {
            return Ok(Told::Not { published });
        }
        if !called {
            count("call", "given_up");
            tracing::error!(%job, "the call at the end of a job is given up");
        }
        let told = if called { "told" } else { "given up" };
        self.state.put(&keys::notified(job), Bytes::from_static(told.as_bytes()), Kind::Json).await?;
        self.state.put(&keys::sweep(PARTITION, job), Bytes::new(), Kind::Json).await?;
        self.state.delete(std::slice::from_ref(&entry.key)).await?;
        Ok(Told::All)
    }

    async fn publish(&self, ended: &Ended) -> bool {
        let published = self.broker.publish(Queue::Results, ended).await;
        count("exchange", if published.is_ok() { "told" } else { "failed" });
        if let Err(error) = &published {
            tracing::warn!(job = %ended.job, %error, "no result event");
        }
        published.is_ok()
    }

    /// Makes the call that the job asks for, unless it was made. Whether nothing is left to do.
    async fn call(&self, job: &JobId, ended: &Ended) -> Result<bool, Failure> {
        let Some(spec) = fetch_if_there::<JobSpec>(&self.state, &keys::spec(job)).await? else { return Ok(true) };
        let Some(notify) = spec.notify else { return Ok(true) };
        if is_there(&self.state, &keys::notified(job)).await? {
            return Ok(true);
        }
        let sent_at = metrics::now_seconds();
        let body = serde_json::to_vec(&Call { sent_at, ended }).map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
        let answer = self.post(&notify, body, sent_at).await;
        let taken = answer.as_ref().is_ok_and(|status| status.is_success());
        count("call", if taken { "told" } else { "failed" });
        match answer {
            Ok(status) if !taken => tracing::warn!(%job, %status, "the call was not taken"),
            Err(why) => tracing::warn!(%job, url = shown_url(&notify.url), why, "the call failed"),
            Ok(_) => {}
        }
        Ok(taken)
    }

    async fn post(&self, notify: &NotifySpec, body: Vec<u8>, sent_at: i64) -> Result<StatusCode, String> {
        let signature = signature(notify.secret.as_bytes(), &body);
        let request = self.client.post(notify.url.clone()).header("content-type", "application/json");
        let request = request.header("x-shoal-signature", signature).header("x-shoal-timestamp", sent_at).body(body);
        // The URL may hold a secret; it is told apart, without it.
        request.send().await.map(|answer| answer.status()).map_err(|error| error.without_url().to_string())
    }
}

/// The body of a call. The time is part of what is signed, so that an old call can be told from a new one.
#[derive(Serialize)]
struct Call<'a> {
    /// Seconds since 1970.
    sent_at: i64,
    #[serde(flatten)]
    ended: &'a Ended,
}

fn count(way: &str, result: &str) {
    metrics::scheduler().notifications.with_label_values(&[way, result]).inc();
}

/// The value of `X-Shoal-Signature`: `sha256=` and the HMAC-SHA-256 of the body in hex.
pub fn signature(secret: &[u8], body: &[u8]) -> String {
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return String::new() };
    mac.update(body);
    let digest = mac.finalize().into_bytes();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

impl Settings {
    /// The wait after so many failures, from 1.
    fn pause(&self, failures: u32) -> Duration {
        self.retry_first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.retry_longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_hmac_of_the_body() {
        // RFC 4231, test case 2.
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature(b"Jefe", b"what do ya want for nothing?"), expected);
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let settings = Settings::default();
        let pauses: Vec<u64> = [1, 2, 5, 10, 11, 99].iter().map(|count| settings.pause(*count).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 16, 512, 900, 900]);
    }
}
