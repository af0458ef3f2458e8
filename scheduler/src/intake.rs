//! Job messages from the queue: stored, then acknowledged; or refused with the reason.

use std::time::Duration;

use farm::broker::{Broker, Delivery, Queue};
use farm::job::{JobId, JobSpec};
use farm::storage::Storage;
use farm::{Code, Failure, Fault, metrics};
use sha2::{Digest as _, Sha256};

use crate::admit::{Policy, admit};
use crate::scheduler::{Accepted, Watch, accept, is_deleted, tell_again};

/// Messages taken in at a time.
const INTAKES: usize = 4;
/// Pauses while storage or broker do not work: each twice as long as the one before.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_LONGEST: Duration = Duration::from_secs(30);
/// After so many tries a message is postponed, so that it is not held longer than brokers bear.
const TRIES_MAX: u32 = 12;

/// What a message is taken in with.
struct Intake {
    policy: Policy,
    state: Storage,
    broker: Broker,
    /// Wakes whoever tells the end of jobs.
    watch: Watch,
}

/// Takes jobs in until the future is dropped.
pub async fn run(policy: Policy, state: Storage, broker: Broker, watch: Watch) {
    let intake = Intake { policy, state, broker, watch };
    let intakes = (0..INTAKES).map(|_| take(&intake));
    futures::future::join_all(intakes).await;
}

async fn take(intake: &Intake) {
    let mut troubles = 0;
    loop {
        let error = match intake.broker.consume(Queue::Jobs).await {
            Err(error) => error,
            Ok(mut consumer) => loop {
                match consumer.next().await {
                    Err(error) => break error,
                    Ok(delivery) => {
                        troubles = 0;
                        settle(intake, delivery).await;
                    }
                }
            },
        };
        troubles += 1;
        tracing::warn!(%error, "no jobs can be taken in now");
        tokio::time::sleep(pause(troubles)).await;
    }
}

fn pause(troubles: u32) -> Duration {
    PAUSE_FIRST.saturating_mul(1 << troubles.saturating_sub(1).min(16)).min(PAUSE_LONGEST)
}

/// Takes one message in and settles it. While storage does not work the message is kept, unacknowledged, and then postponed: it
/// comes again as long as that takes.
async fn settle(intake: &Intake, delivery: Delivery) {
    let count = |result| metrics::scheduler().intake.with_label_values(&["queue", result]).inc();
    let mut tries = 0;
    let settled = loop {
        match store(intake, &delivery).await {
            Ok(id) => {
                count("accepted");
                tracing::info!(job = %id, "taken in");
                break delivery.ack().await;
            }
            Err(failure) if failure.code.fault() == Fault::Request => {
                count("rejected");
                tracing::warn!(%failure, "a job message is refused");
                break delivery.reject(&failure.message).await;
            }
            Err(failure) => {
                tries += 1;
                count("postponed");
                tracing::warn!(%failure, tries, "a job cannot be taken in now");
                tokio::time::sleep(pause(tries)).await;
                if tries >= TRIES_MAX {
                    let pause = delivery.pause();
                    break delivery.postpone(pause).await;
                }
            }
        }
    };
    if let Err(error) = settled {
        tracing::warn!(%error, "a job message will come again");
    }
}

/// Stores the job of a message.
async fn store(intake: &Intake, delivery: &Delivery) -> Result<JobId, Failure> {
    let mut spec: JobSpec = delivery.read()?;
    admit(&spec, &intake.policy)?;
    if spec.id.is_none() {
        spec.id = Some(id_of(delivery.body())?);
    }
    let (id, accepted) = accept(&intake.state, &intake.broker, spec).await?;
    match accepted {
        Accepted::New | Accepted::Known => {}
        Accepted::Ended(_) if is_deleted(&intake.state, &id).await? => {
            let message = format!("id: the output of job {id} was deleted: submit it under another id");
            return Err(Failure::new(Code::InvalidRequest, message));
        }
        // Whoever sends a job again wants to know how it ended.
        Accepted::Ended(result) => {
            tell_again(&intake.state, &id, &result).await?;
            intake.watch.wake();
        }
        Accepted::Other => {
            return Err(Failure::new(Code::InvalidRequest, format!("id: job {id} was submitted before with another message")));
        }
    }
    Ok(id)
}

/// The name of a job whose message has none: made of the message, so that one that is delivered twice is one job. To have the
/// same done again it takes an id.
fn id_of(body: &[u8]) -> Result<JobId, Failure> {
    let digest = Sha256::digest(body);
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    JobId::try_from(format!("m-{hex}"))
}
