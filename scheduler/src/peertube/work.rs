//! One runner job, from being taken to its end: the source is fetched or there, the farm makes what is asked for, and the
//! result is handed in. Meanwhile the instance hears that it is being done.

mod hand_in;
mod prepare;

use std::time::Duration;

use farm::job::JobId;
use farm::{Code, Failure, metrics};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use self::hand_in::{First, Part};
use super::order::{Order, Wanted};
use super::protocol::Refusal;
use super::runner::{Runner, Taken};
use crate::scheduler::Phase;
use crate::step::JobResult;

/// How often the instance hears of a job, at least and at most. After two minutes of silence it takes most jobs away; edits from
/// 7.3 on only, and storyboards never.
const BEAT: Duration = Duration::from_secs(15);
const BEAT_SOONEST: Duration = Duration::from_secs(3);
/// Wait after something did not work that may work later: first and longest.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LONGEST: Duration = Duration::from_secs(30);
/// After so many failures, about an hour of them, a job is given back for others to try.
const TROUBLES_MAX: u32 = 120;
/// As so many counts one that broke off a file on its way: much was sent for nothing.
const BROKEN_OFF: u32 = 20;
/// Longest that a job of the farm may be halted before the runner job is given back.
const HALTED_MAX: Duration = Duration::from_secs(600);
/// How far a job is when the farm has made everything, in percent; the rest is handing in.
const MADE_PERCENT: u64 = 95;

/// Why a job is not done.
enum Trouble {
    /// The instance's word.
    Instance(Refusal),
    /// It cannot be done.
    Cannot(Failure),
    /// Something here does not work now.
    Now(Failure),
    /// The farm cannot do anything until somebody mends it.
    Halted(Failure),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Own(error) => Self::Now(error.into()),
            other => Self::Instance(other),
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure.code.fault() {
            farm::Fault::Source | farm::Fault::Request => Self::Cannot(failure),
            farm::Fault::Environment | farm::Fault::Interruption => Self::Now(failure),
        }
    }
}

impl From<farm::storage::StorageError> for Trouble {
    fn from(error: farm::storage::StorageError) -> Self {
        Self::from(Failure::from(error))
    }
}

/// What there is of a job of the farm.
enum There {
    /// What it makes first, while it makes the rest.
    First(Part),
    /// What came of it.
    All(JobResult),
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Failed,
    Gone,
    GivenBack,
}

impl End {
    fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Gone => "gone",
            Self::GivenBack => "given_back",
        }
    }
}

/// How a job has ended once the instance was told so, by what it says to that; nothing when it did not hear it.
fn heard(said: &Result<(), Refusal>, end: End) -> Option<End> {
    match said {
        Err(Refusal::Unreachable(_) | Refusal::BrokenOff(_) | Refusal::TooSlow) => None,
        Err(Refusal::Gone | Refusal::UnknownRunner) => Some(End::Gone),
        Ok(()) | Err(Refusal::Refused(_) | Refusal::Own(_)) => Some(end),
    }
}

impl Runner {
    /// Sees a job through; what was asked for, if the farm may now be doing it for nobody.
    pub(super) async fn see_through(&self, taken: &Taken) -> Option<Order> {
        let began = Instant::now();
        let order = Order::read(&taken.kind, &taken.payload);
        let form = order.as_ref().map_or("unknown", |order| order.wanted.word());
        let end = match &order {
            Ok(order) => {
                let (percent, seen) = watch::channel(0);
                tokio::select! {
                    end = self.beat(taken, seen) => end,
                    end = self.work(taken, order, &percent) => end,
                }
            }
            Err(why) => self.refuse(taken, why).await,
        };
        let labels = [self.slug(), form, end.word()];
        metrics::scheduler().peertube_jobs.with_label_values(&labels).inc();
        tracing::info!(instance = self.slug(), job = taken.uuid, end = end.word(), seconds = began.elapsed().as_secs(), "ended");
        order.ok().filter(|_| end != End::Done)
    }

    /// Has the instance hear of a job again and again; comes back when it is nobody's business here any more.
    async fn beat(&self, taken: &Taken, mut percent: watch::Receiver<u8>) -> End {
        loop {
            let so_far = *percent.borrow_and_update();
            match self.client.update(&taken.uuid, &taken.token, so_far).await {
                Err(Refusal::Gone | Refusal::UnknownRunner) => return End::Gone,
                Err(refusal) => tracing::warn!(instance = self.slug(), job = taken.uuid, "not heard: {refusal}"),
                Ok(()) => {}
            }
            sleep(BEAT_SOONEST).await;
            let _ = timeout(BEAT - BEAT_SOONEST, percent.changed()).await;
        }
    }

    async fn work(&self, taken: &Taken, order: &Order, percent: &watch::Sender<u8>) -> End {
        let mut troubles = 0;
        loop {
            let (why, weight) = match self.attempt(taken, order, percent).await {
                Ok(()) => return End::Done,
                Err(Trouble::Instance(Refusal::Gone | Refusal::UnknownRunner)) => return End::Gone,
                Err(Trouble::Cannot(failure)) => return self.refuse(taken, &failure.to_string()).await,
                Err(Trouble::Instance(refusal @ (Refusal::Refused(_) | Refusal::TooSlow))) => {
                    return self.refuse(taken, &refusal.to_string()).await;
                }
                Err(Trouble::Instance(refusal @ Refusal::BrokenOff(_))) => (refusal.to_string(), BROKEN_OFF),
                Err(Trouble::Instance(refusal)) => (refusal.to_string(), 1),
                Err(Trouble::Now(failure)) => (failure.message, 1),
                Err(Trouble::Halted(failure)) => (failure.message, TROUBLES_MAX),
            };
            tracing::warn!(instance = self.slug(), job = taken.uuid, "not now: {why}");
            let pause = AGAIN_FIRST.saturating_mul(1 << (troubles / 4).min(16)).min(AGAIN_LONGEST);
            troubles += weight;
            if troubles >= TROUBLES_MAX {
                return self.give_back(taken, &why).await;
            }
            sleep(pause).await;
        }
    }

    /// Tells the instance that a job cannot be done.
    async fn refuse(&self, taken: &Taken, why: &str) -> End {
        tracing::warn!(instance = self.slug(), job = taken.uuid, "it cannot be done: {why}");
        self.tell(taken, End::Failed, || self.client.error(&taken.uuid, &taken.token, why)).await
    }

    /// Gives a job back, for other runners to try.
    pub(super) async fn give_back(&self, taken: &Taken, why: &str) -> End {
        self.tell(taken, End::GivenBack, || self.client.abort(&taken.uuid, &taken.token, why)).await
    }

    /// Tells the instance how a job ended until it hears that: not every version takes away by itself what it hears no more of.
    async fn tell<T: Future<Output = Result<(), Refusal>>>(&self, taken: &Taken, end: End, say: impl Fn() -> T) -> End {
        loop {
            let said = say().await;
            if let Err(refusal) = &said {
                tracing::warn!(instance = self.slug(), job = taken.uuid, end = end.word(), "not taken note of: {refusal}");
            }
            match heard(&said, end) {
                Some(end) => return end,
                None => sleep(AGAIN_LONGEST).await,
            }
        }
    }

    async fn attempt(&self, taken: &Taken, order: &Order, percent: &watch::Sender<u8>) -> Result<(), Trouble> {
        let waiting = match self.prepare(taken, order).await {
            // Of the job, or of the file alone?
            Err(Trouble::Instance(Refusal::Gone)) => {
                self.client.update(&taken.uuid, &taken.token, 0).await?;
                let why = "the instance has no such file";
                return Err(Trouble::Cannot(Failure::new(Code::SourceUnreadable, why)));
            }
            prepared => prepared?,
        };
        let part = match self.made(&waiting.what, Some(&order.wanted), percent).await? {
            There::First(part) => part,
            There::All(JobResult::Done(_)) => self.whole(&waiting.what).await?,
            There::All(JobResult::Failed { failure, .. }) => return Err(Trouble::Cannot(failure)),
            // It was stopped when nobody waited for it: the next attempt makes another.
            There::All(JobResult::Cancelled) => {
                return Err(Trouble::Now(Failure::new(Code::Cancelled, "it was stopped at the farm")));
            }
        };
        self.hand_in(taken, order, &waiting.what, &part).await
    }

    /// Waits for a job of the farm, or for what it makes first where that is all that is wanted.
    async fn made(&self, job: &JobId, wanted: Option<&Wanted>, percent: &watch::Sender<u8>) -> Result<There, Trouble> {
        let mut views = self.scheduler.follow(job).await?;
        let (mut halted_at, mut wanted, mut seen) = (None, wanted, None);
        loop {
            let view = views.borrow_and_update().clone();
            let is_under_way = view.opened && !matches!(view.phase, Phase::Ended(_));
            // With each task that is done, there may be more of it.
            if let Some(sought) = wanted.filter(|_| is_under_way)
                && seen.replace(view.tasks_done) != Some(view.tasks_done)
            {
                match self.first(job, sought).await? {
                    First::Made(part) => return Ok(There::First(*part)),
                    First::NotYet => {}
                    First::Never => wanted = None,
                }
            }
            match view.phase {
                Phase::Ended(result) => return Ok(There::All(result)),
                Phase::Halted(failure) => {
                    if halted_at.get_or_insert_with(Instant::now).elapsed() > HALTED_MAX {
                        return Err(Trouble::Halted(failure));
                    }
                }
                Phase::Waiting | Phase::Probing | Phase::Encoding | Phase::Packing => halted_at = None,
            }
            let so_far = (view.media_done_ns.saturating_mul(MADE_PERCENT)).checked_div(view.media_total_ns).unwrap_or(0);
            percent.send_replace(u8::try_from(so_far).unwrap_or(0));
            if let Ok(Err(_)) = timeout(HALTED_MAX, views.changed()).await {
                return Err(Trouble::Now(Failure::new(Code::Interrupted, "the scheduler stops")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_until_the_instance_answers() {
        let unheard = || "nobody answers".to_owned();
        for (said, ended) in [
            (Ok(()), Some(End::Failed)),
            (Err(Refusal::Unreachable(unheard())), None),
            (Err(Refusal::BrokenOff(unheard())), None),
            (Err(Refusal::TooSlow), None),
            (Err(Refusal::Gone), Some(End::Gone)),
            (Err(Refusal::UnknownRunner), Some(End::Gone)),
            (Err(Refusal::Refused("400".to_owned())), Some(End::Failed)),
        ] {
            assert_eq!(heard(&said, End::Failed), ended, "{said:?}");
        }
        assert_eq!(heard(&Ok(()), End::GivenBack), Some(End::GivenBack));
    }
}
