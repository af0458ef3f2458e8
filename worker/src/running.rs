//! What this worker is at. After a lost connection the broker delivers again what is still worked on here: such a delivery waits
//! for the end of the work that is under way, instead of doing it a second time beside it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farm::job::JobId;
use farm::task::{TaskId, TaskMessage};
use tokio::sync::watch;

type Key = (JobId, TaskId);

/// The tasks that slots of this worker are at.
#[derive(Clone, Default)]
pub(crate) struct Running {
    tasks: Arc<Mutex<HashMap<Key, Other>>>,
}

/// How it stands with work on a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    UnderWay,
    /// It came to an end, and the scheduler was told of it.
    Told,
}

/// A task that is ours alone in this process, until dropped.
pub(crate) struct Place {
    running: Running,
    key: Key,
    stage: watch::Sender<Stage>,
}

/// Work on the same task by another slot.
#[derive(Clone)]
pub(crate) struct Other {
    attempt: u32,
    stage: watch::Receiver<Stage>,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Other>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a task, unless another slot is at it.
    pub(crate) fn take(&self, message: &TaskMessage) -> Result<Place, Other> {
        let key = (message.job.clone(), message.task.clone());
        let mut tasks = self.lock();
        if let Some(other) = tasks.get(&key) {
            return Err(other.clone());
        }
        let (sender, stage) = watch::channel(Stage::UnderWay);
        tasks.insert(key.clone(), Other { attempt: message.attempt, stage });
        drop(tasks);
        Ok(Place { running: self.clone(), key, stage: sender })
    }
}

impl Place {
    /// The scheduler knows how it ended.
    pub(crate) fn note_told(&self) {
        self.stage.send_replace(Stage::Told);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.running.lock().remove(&self.key);
    }
}

impl Other {
    /// Waits for its end; whether nothing is left to be done for a message of this attempt.
    pub(crate) async fn covers(mut self, attempt: u32) -> bool {
        // It ends with its place, which is an error here.
        while self.stage.changed().await.is_ok() {}
        let stage = *self.stage.borrow();
        stage == Stage::Told && self.attempt == attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attempt: u32) -> TaskMessage {
        let job = JobId::try_from("j1".to_owned()).expect("a job id");
        let (life, class) = (farm::Life::FIRST, farm::Class::Cpu);
        TaskMessage { job, task: TaskId::Probe, life, attempt, class, epoch: 1, term: 0 }
    }

    #[tokio::test]
    async fn a_task_is_taken_once_and_who_comes_later_learns_how_it_ended() {
        let running = Running::default();
        for (told, attempt, covered) in [(true, 1, true), (false, 1, false), (true, 2, false)] {
            let place = running.take(&message(1)).ok().expect("free");
            let other = running.take(&message(attempt)).err().expect("taken");
            let mut waiting = std::pin::pin!(other.covers(attempt));
            if told {
                place.note_told();
            }
            assert!(futures::poll!(waiting.as_mut()).is_pending(), "its delivery is not settled yet");
            drop(place);
            assert_eq!(waiting.await, covered);
        }
    }
}
