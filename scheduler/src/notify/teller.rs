//! Telling one end: what is done about an entry of the outbox, step by step.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use farm::broker::{Broker, DeadLetter, Queue};
use farm::ended::{Ended, JobOutcome};
use farm::job::{JobSpec, NotifySpec, shown_url};
use farm::outbound::{Reach, forbidden};
use farm::storage::{Kind, Storage, StorageError};
use farm::{Code, Failure, Life, keys, metrics};
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::StatusCode;
use serde::Serialize;
use sha2::Sha256;

use super::letter::letter;
use crate::scheduler::{PARTITION, fetch_if_there, is_there};
use crate::step::JobResult;

/// Longest a receiver may take to be reached, and to answer.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// What of an end was done, as far as this scheduler remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Steps {
    /// It was told on the results exchange.
    published: bool,
    /// The letter is on the dead queue, or there is none to be.
    buried: bool,
    /// The call was taken, or there is none to be made.
    called: bool,
}

impl Steps {
    const DONE: Self = Self { published: true, buried: true, called: true };
}

/// A call to be made.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) ended: Ended,
    notify: NotifySpec,
    /// Scheme, host and port of the URL.
    pub(super) receiver: String,
}

/// What came of telling, or of a call.
pub(super) struct Told {
    pub(super) steps: Steps,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    /// All who are to know were told, and it is out of the outbox.
    Finished,
    /// The call is still to be made.
    ToCall(Arc<Call>),
    /// Not all were told.
    NotYet,
}

/// Tells.
pub(super) struct Teller {
    give_up: Duration,
    reach: Reach,
    pub(super) state: Storage,
    broker: Broker,
    client: reqwest::Client,
}

impl Teller {
    /// # Errors
    /// [`Code::Internal`] when there is no way to make calls at all.
    pub(super) fn new((give_up, reach): (Duration, Reach), state: Storage, broker: Broker) -> Result<Self, Failure> {
        let builder = reach.client().connect_timeout(CONNECT_MAX).timeout(ANSWER_MAX);
        let client = builder.build().map_err(|error| Failure::new(Code::Internal, format!("no calls can be made: {error}")))?;
        Ok(Self { give_up, reach, state, broker, client })
    }

    /// Tells an end on the exchange and writes the letter, as far as that was not done, and says what call is to be made.
    pub(super) async fn tell(&self, key: &str, mut steps: Steps, since_ms: u64) -> Result<Told, Failure> {
        let finished = Ok(Told { steps: Steps::DONE, outcome: Outcome::Finished });
        let Some(ended) = fetch_if_there::<Ended>(&self.state, key).await? else { return finished };
        let Some(life) = life_of(key) else {
            // Somebody asked to be told once more, on the exchange alone.
            steps = Steps { published: steps.published || self.publish(&ended).await, ..Steps::DONE };
            return self.close(key, &ended, steps, since_ms).await;
        };
        if is_there(&self.state, &keys::told(&ended.job, life)).await? {
            // Whoever told it did not come to take it out, or it was put there again by one who was late.
            return self.close(key, &ended, Steps::DONE, since_ms).await;
        }
        let spec = fetch_if_there::<JobSpec>(&self.state, &keys::spec(&ended.job)).await?;
        let letter = if steps.buried { None } else { self.letter(&ended, life, spec.as_ref()).await? };
        steps.published = steps.published || self.publish(&ended).await;
        steps.buried = match letter {
            Some(letter) => self.bury(&ended, &letter).await,
            None => true,
        };
        match spec.and_then(|spec| spec.notify) {
            Some(notify) if !steps.called => {
                let receiver = notify.url.origin().ascii_serialization();
                Ok(Told { steps, outcome: Outcome::ToCall(Arc::new(Call { ended, notify, receiver })) })
            }
            _ => self.close(key, &ended, Steps { called: true, ..steps }, since_ms).await,
        }
    }

    /// Makes a call.
    pub(super) async fn call(&self, key: &str, call: &Call, mut steps: Steps, since_ms: u64) -> Result<Told, Failure> {
        let sent_at = metrics::now_seconds();
        let body = serde_json::to_vec(&Body { sent_at, ended: &call.ended });
        let body = body.map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        let answer = self.post(&call.notify, body, sent_at).await;
        steps.called = answer.as_ref().is_ok_and(StatusCode::is_success);
        count("call", if steps.called { "told" } else { "failed" });
        let job = &call.ended.job;
        match answer {
            Ok(status) if !steps.called => tracing::warn!(%job, %status, "the call was not taken"),
            Err(why) => tracing::warn!(%job, url = shown_url(&call.notify.url), why, "the call failed"),
            Ok(_) => {}
        }
        self.close(key, &call.ended, steps, since_ms).await
    }

    /// Takes an end out of the outbox when all was done, or when it was tried for long enough. That it was told is noted first,
    /// so that it is not told again.
    async fn close(&self, key: &str, ended: &Ended, steps: Steps, since_ms: u64) -> Result<Told, Failure> {
        let job = &ended.job;
        let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_millis(since_ms)).unwrap_or_default();
        if steps != Steps::DONE && age <= self.give_up {
            return Ok(Told { steps, outcome: Outcome::NotYet });
        }
        if !steps.called {
            count("call", "given_up");
            tracing::error!(%job, "the call at the end of a job is given up");
        }
        // When storage does not work, what was done so far is remembered.
        let outcome = match self.take_out(key, ended, if steps == Steps::DONE { "told" } else { "given up" }).await {
            Ok(()) => Outcome::Finished,
            Err(error) => {
                tracing::warn!(%job, %error, "it cannot be noted now that the end of a job was told");
                Outcome::NotYet
            }
        };
        Ok(Told { steps, outcome })
    }

    async fn take_out(&self, key: &str, ended: &Ended, word: &'static str) -> Result<(), StorageError> {
        if let Some(life) = life_of(key) {
            self.state.put(&keys::told(&ended.job, life), Bytes::from_static(word.as_bytes()), Kind::Json).await?;
            self.state.put(&keys::sweep(PARTITION, &ended.job, life), Bytes::new(), Kind::Json).await?;
        }
        self.state.delete(&[key.to_owned()]).await
    }

    async fn publish(&self, ended: &Ended) -> bool {
        let published = self.broker.publish(Queue::Results, ended).await;
        count("exchange", if published.is_ok() { "told" } else { "failed" });
        if let Err(error) = &published {
            tracing::warn!(job = %ended.job, %error, "no result event");
        }
        published.is_ok()
    }

    /// The letter about a job that has failed.
    async fn letter(&self, ended: &Ended, life: Life, spec: Option<&JobSpec>) -> Result<Option<DeadLetter>, Failure> {
        let (JobOutcome::Failed, Some(spec)) = (ended.outcome, spec) else { return Ok(None) };
        match fetch_if_there::<JobResult>(&self.state, &keys::result(&ended.job, life)).await? {
            Some(result) => letter(&ended.job, life, spec, &result),
            None => Ok(None),
        }
    }

    async fn bury(&self, ended: &Ended, letter: &DeadLetter) -> bool {
        let published = self.broker.publish(Queue::Dead, letter).await;
        count("letter", if published.is_ok() { "told" } else { "failed" });
        if let Err(error) = &published {
            tracing::warn!(job = %ended.job, %error, "no letter on the dead queue");
        }
        published.is_ok()
    }

    async fn post(&self, notify: &NotifySpec, body: Vec<u8>, sent_at: i64) -> Result<StatusCode, String> {
        self.reach.check(&notify.url).map_err(|forbidden| forbidden.to_string())?;
        let signature = signature(notify.secret.as_bytes(), &body);
        let request = self.client.post(notify.url.clone()).header("content-type", "application/json");
        let request = request.header("x-shoal-signature", signature).header("x-shoal-timestamp", sent_at).body(body);
        // The URL may hold a secret; it is told apart, without it.
        let answer = request.send().await.map_err(reqwest::Error::without_url);
        let why = |error: reqwest::Error| forbidden(&error).map_or_else(|| error.to_string(), |forbidden| forbidden.to_string());
        answer.map(|answer| answer.status()).map_err(why)
    }
}

/// The life whose end a key of the outbox is about; none where somebody asked to be told once more.
fn life_of(key: &str) -> Option<Life> {
    key.strip_prefix(&keys::outbox_prefix(PARTITION)).and_then(Life::in_key).map(|(_, life)| life)
}

/// The body of a call. The time is part of what is signed, so that an old call can be told from a new one.
#[derive(Serialize)]
struct Body<'a> {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Router;
    use axum::extract::Path;
    use axum::routing::any;
    use farm::job::JobId;
    use tokio::net::TcpListener;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    impl Call {
        /// A call of a job that is done.
        pub(in crate::notify) fn to(job: &str, tenant: &str, url: &str) -> Self {
            let (job, url): (_, url::Url) = (JobId::try_from(job.to_owned()).expect("an id"), url.parse().expect("a URL"));
            let outcome = JobOutcome::Done;
            let (tenant, output) = (tenant.to_owned(), "file:///out/".to_owned());
            let ended = Ended { job, tenant, outcome, code: None, message: None, output, master: None };
            let receiver = url.origin().ascii_serialization();
            Self { ended, notify: NotifySpec { url, secret: "a secret".to_owned() }, receiver }
        }
    }

    #[tokio::test]
    async fn a_call_goes_neither_inside_nor_where_its_receiver_sends_it() {
        let called = Arc::new(AtomicU32::new(0));
        let (redirecting, elsewhere) = (Arc::clone(&called), Arc::clone(&called));
        let redirect = move |Path(status): Path<u16>| async move {
            redirecting.fetch_add(1, Ordering::SeqCst);
            (StatusCode::from_u16(status).expect("a status"), [("location", "/elsewhere")])
        };
        let app = Router::new().route("/hook/{status}", any(redirect)).fallback(move || async move {
            elsewhere.fetch_add(100, Ordering::SeqCst);
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let _receiver = AbortOnDropHandle::new(tokio::spawn(async move { axum::serve(listener, app).await }));
        let folder = tempfile::tempdir().expect("a folder");
        let teller = |reach| {
            Teller::new((Duration::ZERO, reach), Storage::folder(folder.path()), Broker::local()).expect("calls can be made")
        };
        let notify = |url: String| NotifySpec { url: url.parse().expect("a URL"), secret: "a secret".to_owned() };
        let open = teller(Reach::Anywhere);
        for status in [301, 302, 303, 307, 308] {
            let receiver = notify(format!("http://127.0.0.1:{port}/hook/{status}"));
            let answer = open.post(&receiver, b"{}".to_vec(), 0).await;
            assert_eq!(answer.map(|status| status.as_u16()), Ok(status));
        }
        assert_eq!(called.load(Ordering::SeqCst), 5, "each is called, and nobody else");
        let kept = teller(Reach::PublicAnd(Arc::new([])));
        for host in ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"] {
            let answer = kept.post(&notify(format!("http://{host}:{port}/hook/200")), b"{}".to_vec(), 0).await;
            assert!(answer.as_ref().is_err_and(|why| why.contains("may not reach")), "{host}: {answer:?}");
        }
        assert_eq!(called.load(Ordering::SeqCst), 5, "nobody inside is called");
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_has_so_long_to_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let folder = tempfile::tempdir().expect("a folder");
        let teller = Teller::new((Duration::ZERO, Reach::Anywhere), Storage::folder(folder.path()), Broker::local());
        let receiver = NotifySpec { url: url.parse().expect("a URL"), secret: "a secret".to_owned() };
        let began = tokio::time::Instant::now();
        // It is connected to, and says nothing.
        let answer = teller.expect("calls can be made").post(&receiver, b"{}".to_vec(), 0).await;
        assert!(answer.is_err(), "{answer:?}");
        let waits = ANSWER_MAX..ANSWER_MAX + Duration::from_secs(1);
        assert!(waits.contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[test]
    fn an_entry_is_about_a_life_or_asks_for_one_more_word() {
        let job = JobId::try_from("film".to_owned()).expect("an id");
        assert_eq!(life_of(&keys::outbox(PARTITION, &job, Life::FIRST.next())), Some(Life::FIRST.next()));
        assert_eq!(life_of(&keys::outbox_again(PARTITION, &job, &farm::task::Token::random())), None);
    }

    #[test]
    fn a_signature_is_the_hmac_of_the_body() {
        // RFC 4231, test case 2.
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature(b"Jefe", b"what do ya want for nothing?"), expected);
    }
}
