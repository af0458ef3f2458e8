//! Executions that began and never ended, because their worker died: of its machine, or of the task.
//!
//! A child that dies is a failed attempt. A task that takes the whole worker with it (a container that is killed as one when its
//! memory is used up, a bug of ours) would come again and again, and kill worker after worker. So an execution leaves a record
//! before it starts, and takes it back at its end. It also takes it back at once when its delivery is lost or its worker is told to
//! stop: from then on its end says nothing about the task. What stays is evidence, looked at when a message comes again.
//!
//! Evidence is weighed, because most workers that die do so for no fault of a task: machines are reclaimed, and whoever dies takes
//! the tasks of all slots along. A task at which [`DEATHS_MAX`] workers died is run with nothing beside it, where it has all
//! memory, and where it harms no other and no other harms it. Only deaths there convict it, [`DEATHS_ALONE_MAX`] of them: so
//! machines may be reclaimed unannounced three times in a row and the attempt still goes on, and it takes four such times for each
//! of the attempts of a task to make its job fail.

use std::time::Duration;

use bytes::Bytes;
use farm::storage::{Kind, Storage, StorageError};
use farm::task::{TaskMessage, Token};
use farm::{Code, Failure, keys};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::retry::{patiently, storage_may_pass};

/// Deaths after which a task is run alone.
const DEATHS_MAX: usize = 2;
/// Deaths alone after which its attempt has failed.
const DEATHS_ALONE_MAX: usize = 2;

/// Longest wait for company to end, or for one who wants none: what runs beside may take its whole deadline, and deliveries are
/// not held longer than brokers bear.
const GATE_WAIT: Duration = Duration::from_secs(120);

/// With whom a task may be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    /// With others in other slots.
    Any,
    /// With no other.
    None,
}

/// What is known of executions of an attempt whose workers died.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deaths {
    /// Their records.
    records: Vec<String>,
    /// How many of them had no company.
    alone: usize,
}

impl Deaths {
    /// Asks storage about the attempt of a message that came before.
    ///
    /// # Errors
    /// Storage's.
    pub(crate) async fn of(state: &Storage, message: &TaskMessage) -> Result<Self, StorageError> {
        let prefix = keys::begun_prefix(&message.job, message.life, &message.task);
        let listed = patiently(storage_may_pass, || state.list(&prefix)).await?;
        let keys = listed.into_iter().map(|entry| entry.key);
        Ok(Self::among(&prefix, message.attempt, keys))
    }

    fn among(prefix: &str, attempt: u32, keys: impl Iterator<Item = String>) -> Self {
        let is_of_attempt = |key: &String| {
            let name = key.strip_prefix(prefix).and_then(|name| name.split_once('-'));
            name.is_some_and(|(number, _)| number.parse() == Ok(attempt))
        };
        let records: Vec<String> = keys.filter(is_of_attempt).collect();
        let alone = records.iter().filter(|key| key.ends_with(keys::ALONE)).count();
        Self { records, alone }
    }

    /// How the attempt is to be run after these.
    ///
    /// # Errors
    /// Not at all: it has failed.
    pub(crate) fn company(&self) -> Result<Company, Failure> {
        let all = self.records.len();
        if self.alone >= DEATHS_ALONE_MAX {
            let message = format!("{all} workers died at it, {} of them with nothing else to do", self.alone);
            return Err(Failure::new(Code::ChildCrashed, message));
        }
        Ok(if all >= DEATHS_MAX { Company::None } else { Company::Any })
    }

    /// Forgets them: they become a failure that is recorded. After a job is taken up again its tasks begin with a clean slate.
    pub(crate) async fn forget(&self, state: &Storage) {
        delete(state, &self.records).await;
    }
}

/// The record of an execution.
pub(crate) struct Begun {
    state: Storage,
    record: String,
    /// Of executions before it.
    deaths: Deaths,
}

impl Begun {
    /// Records that an execution begins after these deaths.
    ///
    /// # Errors
    /// Storage's: it is not to begin then.
    pub(crate) async fn note(
        state: &Storage,
        message: &TaskMessage,
        token: &Token,
        (company, deaths): (Company, Deaths),
    ) -> Result<Self, StorageError> {
        let TaskMessage { job, life, task, attempt, .. } = message;
        let record = match company {
            Company::Any => keys::begun(job, *life, task, *attempt, token),
            Company::None => keys::begun_alone(job, *life, task, *attempt, token),
        };
        patiently(storage_may_pass, || state.put(&record, Bytes::new(), Kind::Json)).await?;
        Ok(Self { state: state.clone(), record, deaths })
    }

    /// Does `work` and takes the record back at its end, or before, when `excuse` comes: whatever the end is then, it is no fault
    /// of the task. A task that came to its end is cleared of earlier deaths too.
    pub(crate) async fn hold<T>(self, excuse: impl Future<Output = ()>, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let record = std::slice::from_ref(&self.record);
        tokio::select! {
            biased;
            () = excuse => {
                let ((), done) = tokio::join!(delete(&self.state, record), work);
                done
            }
            done = &mut work => {
                delete(&self.state, &[record, &self.deaths.records].concat()).await;
                done
            }
        }
    }
}

/// What cannot be deleted may count as a death later. One is not enough to convict.
async fn delete(state: &Storage, records: &[String]) {
    if let Err(error) = patiently(storage_may_pass, || state.delete(records)).await {
        tracing::warn!(%error, "records of executions are left behind");
    }
}

/// Lets tasks in: many together, or one alone.
pub(crate) struct Gate {
    places: Semaphore,
    slots: u32,
}

impl Gate {
    /// For so many slots.
    pub(crate) fn new(slots: usize) -> Self {
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        Self { places: Semaphore::new(slots as usize), slots }
    }

    /// Lets a task in, for as long as what is returned is kept. Who wants to be alone goes before those who come later.
    ///
    /// # Errors
    /// [`Code::Interrupted`] when it takes too long: another worker may have room.
    pub(crate) async fn enter(&self, company: Company) -> Result<SemaphorePermit<'_>, Failure> {
        let places = match company {
            Company::Any => 1,
            Company::None => self.slots,
        };
        let entered = tokio::time::timeout(GATE_WAIT, self.places.acquire_many(places)).await;
        let late = |_| Failure::new(Code::Interrupted, "a task that is to be run alone and others have to wait for each other");
        entered.map_err(late)?.map_err(|_| Failure::new(Code::Internal, "no task is let in"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farm::job::JobId;
    use farm::task::TaskId;
    use farm::{Class, Life};

    fn company(deaths: usize, alone: usize) -> Option<Company> {
        let records = (0..deaths + alone).map(|n| format!("record {n}")).collect();
        Deaths { records, alone }.company().ok()
    }

    #[test]
    fn deaths_in_company_isolate_a_task_and_deaths_alone_convict_it() {
        assert_eq!([company(0, 0), company(1, 0)], [Some(Company::Any); 2]);
        assert_eq!([company(2, 0), company(9, 0), company(2, 1)], [Some(Company::None); 3]);
        assert_eq!([company(2, 2), company(0, 2)], [None; 2]);
    }

    #[test]
    fn machines_reclaimed_three_times_in_a_row_do_not_fail_an_attempt() {
        let (mut deaths, mut alone) = (0, 0);
        for _ in 0..3 {
            match company(deaths, alone).expect("it is run") {
                Company::Any => deaths += 1,
                Company::None => alone += 1,
            }
        }
        assert_eq!(company(deaths, alone), Some(Company::None), "it is run a fourth time");
    }

    #[test]
    fn only_records_of_the_same_attempt_count() {
        let token = "0123456789abcdef";
        let keys = [format!("p/1-{token}"), format!("p/2-{token}"), format!("p/2-{token}-alone"), "p/what".to_owned()];
        let deaths = |attempt| Deaths::among("p/", attempt, keys.iter().cloned());
        assert_eq!(deaths(1), Deaths { records: vec![keys[0].clone()], alone: 0 });
        assert_eq!(deaths(2), Deaths { records: keys[1..3].to_vec(), alone: 1 });
        assert_eq!(deaths(3), Deaths::default());
    }

    #[tokio::test]
    async fn a_record_goes_at_the_end_or_with_an_excuse_and_stays_when_all_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = Storage::folder(folder.path());
        let job = JobId::try_from("j1".to_owned()).expect("a job id");
        let (task, life, class) = (TaskId::Video(7), Life::FIRST, Class::Cpu);
        let message = TaskMessage { job, task, life, attempt: 2, class, epoch: 1, term: 0 };
        let begin = async || {
            let before = Deaths::of(&state, &message).await.expect("listed");
            Begun::note(&state, &message, &Token::random(), (Company::None, before)).await.expect("stored")
        };
        let deaths = async || Deaths::of(&state, &message).await.map(|deaths| (deaths.records.len(), deaths.alone)).ok();
        let never = std::future::pending::<()>;
        assert_eq!(deaths().await, Some((0, 0)));
        // As when the process is killed.
        let begun = begin().await;
        assert!(futures::poll!(std::pin::pin!(begun.hold(never(), never()))).is_pending());
        assert_eq!(deaths().await, Some((1, 1)));
        let begun = begin().await;
        let excused = begun.hold(std::future::ready(()), async {
            while deaths().await != Some((1, 1)) {
                tokio::task::yield_now().await;
            }
        });
        excused.await;
        assert_eq!(deaths().await, Some((1, 1)), "an excuse clears of nothing else");
        begin().await.hold(never(), async { assert_eq!(deaths().await, Some((2, 2))) }).await;
        assert_eq!(deaths().await, Some((0, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_to_be_alone_waits_for_the_others_and_they_for_him_but_not_for_ever() {
        let gate = Gate::new(2);
        let first = gate.enter(Company::Any).await.expect("room");
        let mut suspect = std::pin::pin!(gate.enter(Company::None));
        assert!(futures::poll!(suspect.as_mut()).is_pending());
        let mut second = std::pin::pin!(gate.enter(Company::Any));
        assert!(futures::poll!(second.as_mut()).is_pending(), "the suspect goes first");
        drop(first);
        let alone = suspect.await.expect("alone");
        assert!(futures::poll!(second.as_mut()).is_pending());
        assert_eq!(second.await.map(drop).map_err(|failure| failure.code), Err(Code::Interrupted));
        drop(alone);
        drop(gate.enter(Company::Any).await.expect("room again"));
    }
}
