//! Lives of a job, and those who act on an old copy of one.

use std::collections::BTreeMap;
use std::pin::pin;

use farm::ended::Ended;
use farm::job::{JobSpec, LadderSpec, Layout, Publishing, RungSpec};
use farm::plan::Plan;
use farm::task::TaskId;

use super::super::job::{Conduct, Job, News, Stand, drive};
use super::super::tests::{Farm, check_complete, cut, pause, work};
use super::super::{Aftercare, submit};
use super::*;
use crate::scheduler::job::fetch;
use crate::step::JobState;

fn second() -> Life {
    Life::FIRST.next()
}

/// Drives a life of a job once, without news of anything.
async fn driven(farm: &Farm, job: &JobId, life: Life) -> Stand {
    drive(farm.state.clone(), job.clone(), life, None, News::fresh_start(), Conduct::usual(Aftercare::Later)).await.stand
}

/// Does tasks of a life of a job until nothing is left to do. Fails one of them instead, if told so.
async fn live(farm: &Farm, job: &JobId, life: Life, fails: Option<TaskId>) -> JobResult {
    for _ in 0..100 {
        match driven(farm, job, life).await {
            Stand::Due(due) => {
                let task = due.iter().find(|due| Some(&due.task) == fails.as_ref()).or(due.first()).expect("a task").task.clone();
                if Some(&task) != fails.as_ref() {
                    work(&farm.state, job, &task).await;
                    continue;
                }
                let record = serde_json::to_vec(&Failure::new(Code::Undecodable, "as told")).expect("JSON");
                let key = keys::fail(job, life, &task, 1, &Token::random());
                farm.state.put(&key, record.into(), Kind::Json).await.expect("stored");
            }
            Stand::Ended(result) => return result,
            Stand::Gone => panic!("the spec is there"),
            Stand::Halted(failure) | Stand::Trouble(failure) => panic!("{failure}"),
        }
    }
    panic!("it never ends");
}

/// A job of which the first life has failed at its second chunk.
async fn failed(farm: &Farm) -> JobId {
    let job = submit(&farm.state, &farm.broker, farm.spec(Layout::SingleFile)).await.expect("a job");
    assert!(matches!(live(farm, &job, Life::FIRST, Some(TaskId::Video(1))).await, JobResult::Failed { .. }));
    job
}

/// The lives of a job that are active, in order.
async fn active(farm: &Farm, job: &JobId) -> Vec<Life> {
    let mut active: Vec<Life> = lives(&farm.state.list(&keys::active_of(PARTITION, job)).await.expect("a listing")).collect();
    active.sort();
    active
}

/// What is to be told, by life.
async fn outbox(farm: &Farm, job: &JobId) -> BTreeMap<Life, Ended> {
    let mut all = BTreeMap::new();
    for entry in farm.state.list(&keys::outbox_of(PARTITION, job)).await.expect("a listing") {
        let life = entry.key.rsplit('/').next().and_then(|life| life.parse().ok()).expect("a life");
        all.insert(life, fetch(&farm.state, &entry.key).await.expect("an end"));
    }
    all
}

/// Every life that is active is taken to its end, as a scheduler would; the last has to be done, and all of it in place.
async fn check_goes_on(farm: &Farm, job: &JobId) {
    while let Some(life) = active(farm, job).await.first() {
        live(farm, job, *life, None).await;
    }
    let ended = current_result(&farm.state, job).await.expect("storage");
    assert!(matches!(ended, Some(JobResult::Done(_))), "{ended:?}");
    farm.output.delete(&leftovers(farm, job).await).await.expect("deleted");
    check_complete(farm).await;
    let told: Vec<String> = outbox(farm, job).await.iter().map(|(life, end)| format!("{life} {}", end.outcome.word())).collect();
    assert_eq!(told, ["1 failed", "2 done"], "each end is told");
}

/// Media that the seal does not name: the janitor's.
async fn leftovers(farm: &Farm, job: &JobId) -> Vec<String> {
    let seal: crate::seal::Seal = fetch(&farm.state, &keys::seal(job)).await.expect("a seal");
    let sealed: Vec<&str> = seal.keys().collect();
    farm.outputs().await.into_iter().filter(|key| keys::token_in(key).is_some() && !sealed.contains(&key.as_str())).collect()
}

#[tokio::test]
async fn a_retry_that_is_cut_off_anywhere_leaves_a_job_that_has_failed_or_goes_on() {
    let (mut cuts, mut uncut) = (0, 0);
    while uncut < 3 {
        let farm = Farm::new();
        let job = failed(&farm).await;
        let mut waits_left = Some(cuts);
        let asked = cut(retry(&farm.state, &farm.broker, &job), &mut waits_left).await;
        assert!(asked.is_none_or(|asked| asked.is_ok()));
        // What storage had begun to do when it was cut off is done by now, or never will be: nobody waits for it.
        let ended = current_result(&farm.state, &job).await.expect("storage");
        if active(&farm, &job).await.is_empty() {
            assert!(matches!(ended, Some(JobResult::Failed { .. })), "neither active nor ended: {ended:?}");
            retry(&farm.state, &farm.broker, &job).await.expect("it can be asked for again");
        }
        check_goes_on(&farm, &job).await;
        cuts += 1;
        uncut = if waits_left.is_some() { uncut + 1 } else { 0 };
    }
    assert!(cuts > 8, "only {cuts} places to stop at");
}

#[tokio::test]
async fn whoever_acts_on_an_old_copy_at_any_place_does_not_touch_the_life_that_came_after() {
    let (mut cuts, mut uncut) = (0, 0);
    while uncut < 3 {
        let farm = Farm::new();
        let job = submit(&farm.state, &farm.broker, farm.spec(Layout::SingleFile)).await.expect("a job");
        work(&farm.state, &job, &TaskId::Probe).await;
        let Stand::Due(_) = driven(&farm, &job, Life::FIRST).await else { panic!("tasks") };
        let record = serde_json::to_vec(&Failure::new(Code::Undecodable, "as told")).expect("JSON");
        farm.state
            .put(&keys::fail(&job, Life::FIRST, &TaskId::Video(1), 1, &Token::random()), record.into(), Kind::Json)
            .await
            .expect("stored");
        // One finds that it failed, and is held up in the midst of it.
        let mut zombie = pin!(drive(
            farm.state.clone(),
            job.clone(),
            Life::FIRST,
            None,
            News::fresh_start(),
            Conduct::usual(Aftercare::Later)
        ));
        let mut waits_left = Some(cuts);
        pause(&mut zombie, &mut waits_left).await;
        let was_held_up = waits_left.is_none();
        // Another closes it, it is taken up again, and that life is under way.
        assert!(matches!(live(&farm, &job, Life::FIRST, None).await, JobResult::Failed { .. }));
        retry(&farm.state, &farm.broker, &job).await.expect("taken up again");
        work(&farm.state, &job, &TaskId::Video(0)).await;
        let Stand::Due(before) = driven(&farm, &job, second()).await else { panic!("tasks") };
        if was_held_up {
            let late = zombie.await;
            assert!(matches!(late.stand, Stand::Ended(JobResult::Failed { .. })), "it ends the life that it knows");
        }
        assert_eq!(active(&farm, &job).await, [second()]);
        assert_eq!(current_life(&farm.state, &job).await, Ok(second()));
        let Stand::Due(after) = driven(&farm, &job, second()).await else { panic!("it goes on") };
        assert_eq!(before, after, "with what it had");
        check_goes_on(&farm, &job).await;
        cuts += 1;
        uncut = if was_held_up { 0 } else { uncut + 1 };
    }
    assert!(cuts > 8, "only {cuts} places to stop at");
}

#[tokio::test]
async fn whoever_thinks_an_old_life_was_cancelled_takes_no_media_from_the_one_that_came_after() {
    let farm = Farm::new();
    let job = failed(&farm).await;
    let spec: JobSpec = fetch(&farm.state, &keys::spec(&job)).await.expect("a spec");
    let plan: Plan = fetch(&farm.state, &keys::plan(&job, 1)).await.expect("a plan");
    // On storage without conditional writes, both ends were stored.
    let mut state = JobState::new(job.clone(), Life::FIRST, spec);
    work(&farm.state, &job, &TaskId::Video(0)).await;
    for task in [TaskId::Probe, TaskId::Video(0)] {
        state.markers.insert(task.clone(), fetch(&farm.state, &keys::done(&job, &task)).await.expect("a marker"));
    }
    (state.plan, state.cancelled, state.result) = (Some(plan), true, Some(JobResult::Cancelled));
    retry(&farm.state, &farm.broker, &job).await.expect("taken up again");
    let before = farm.outputs().await;
    let old = Job { state, epoch: 1 };
    let late =
        drive(farm.state.clone(), job.clone(), Life::FIRST, Some(old), News::default(), Conduct::usual(Aftercare::Later)).await;
    assert!(matches!(late.stand, Stand::Ended(JobResult::Cancelled)));
    assert_eq!(farm.outputs().await, before);
    assert!(matches!(live(&farm, &job, second(), None).await, JobResult::Done(_)), "it is not cancelled");
}

#[tokio::test]
async fn two_who_retry_at_once_begin_one_life_and_one_who_is_late_begins_none() {
    let (mut cuts, mut uncut) = (0, 0);
    while uncut < 3 {
        let farm = Farm::new();
        let job = failed(&farm).await;
        let mut late = pin!(retry(&farm.state, &farm.broker, &job));
        let mut waits_left = Some(cuts);
        pause(&mut late, &mut waits_left).await;
        let was_held_up = waits_left.is_none();
        if was_held_up {
            // It may be refused when the first has begun the life already.
            let _ = retry(&farm.state, &farm.broker, &job).await;
        }
        assert!(matches!(live(&farm, &job, second(), None).await, JobResult::Done(_)));
        if was_held_up {
            let _ = late.await;
        }
        assert_eq!(current_life(&farm.state, &job).await, Ok(second()));
        check_goes_on(&farm, &job).await;
        cuts += 1;
        uncut = if was_held_up { 0 } else { uncut + 1 };
    }
}

#[tokio::test]
async fn media_is_never_deleted_under_a_life_that_wants_it() {
    let (mut begun, mut claimed) = (0, 0);
    for (first, second) in (0..12).flat_map(|first| (0..10).map(move |second| (first, second))) {
        let farm = Farm::new();
        let job = failed(&farm).await;
        let mut one = pin!(retry(&farm.state, &farm.broker, &job));
        let mut other = pin!(claim_media(&farm.state, &job, Life::FIRST));
        let retried = pause(&mut one, &mut Some(first)).await;
        let taken = pause(&mut other, &mut Some(second)).await;
        let retried = match retried {
            Some(retried) => retried,
            None => one.await,
        };
        let taken = match taken {
            Some(taken) => taken,
            None => other.await,
        };
        let (is_active, is_claimed) = (!active(&farm, &job).await.is_empty(), taken.expect("storage"));
        assert_eq!(retried.is_ok(), is_active, "{retried:?}");
        assert!(!(is_active && is_claimed), "retry held up at {first}, the janitor at {second}");
        begun += u32::from(is_active);
        claimed += u32::from(is_claimed);
    }
    assert!(begun > 0 && claimed > 0);
}

#[tokio::test]
async fn what_a_worker_of_an_old_life_records_does_not_count_in_the_next() {
    let farm = Farm::new();
    let job = failed(&farm).await;
    retry(&farm.state, &farm.broker, &job).await.expect("taken up again");
    let record = serde_json::to_vec(&Failure::new(Code::Undecodable, "late")).expect("JSON");
    let key = keys::fail(&job, Life::FIRST, &TaskId::Video(2), 1, &Token::random());
    farm.state.put(&key, record.into(), Kind::Json).await.expect("stored");
    assert!(matches!(live(&farm, &job, second(), None).await, JobResult::Done(_)));
}

/// A job that is published in stages, of which all is made that the first one needs.
async fn with_a_first_stage(farm: &Farm) -> JobId {
    let rung = |height| RungSpec { height, fps: None, video: None };
    let ladder = LadderSpec::Rungs(vec![rung(240), rung(144)]);
    let spec = JobSpec { publish: Publishing::InStages, ladder, ..farm.spec(Layout::Segments) };
    let job = submit(&farm.state, &farm.broker, spec).await.expect("a job");
    work(&farm.state, &job, &TaskId::Probe).await;
    let Stand::Due(due) = driven(farm, &job, Life::FIRST).await else { panic!("tasks") };
    let early = due.iter().filter(|due| matches!(due.task, TaskId::First(_) | TaskId::Audio(_)));
    for due in early {
        work(&farm.state, &job, &due.task).await;
    }
    job
}

/// How a life goes on while somebody is about to publish its first stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Done,
    Failed,
    FailedAndThenDone,
}

#[tokio::test]
async fn a_first_stage_that_is_published_too_late_is_put_right() {
    for course in [Course::Done, Course::Failed, Course::FailedAndThenDone] {
        let (mut cuts, mut uncut) = (0, 0);
        while uncut < 3 {
            let farm = Farm::new();
            let job = with_a_first_stage(&farm).await;
            let fresh = Conduct::usual(Aftercare::Later);
            let mut zombie = pin!(drive(farm.state.clone(), job.clone(), Life::FIRST, None, News::fresh_start(), fresh));
            let mut waits_left = Some(cuts);
            pause(&mut zombie, &mut waits_left).await;
            let fails = (course != Course::Done).then_some(TaskId::Video(1));
            let ended = live(&farm, &job, Life::FIRST, fails).await;
            assert_eq!(matches!(ended, JobResult::Done(_)), course == Course::Done);
            if course == Course::FailedAndThenDone {
                retry(&farm.state, &farm.broker, &job).await.expect("taken up again");
                assert!(matches!(live(&farm, &job, second(), None).await, JobResult::Done(_)));
            }
            if waits_left.is_none() {
                zombie.await;
            }
            match course {
                Course::Failed => assert!(!farm.outputs().await.contains(keys::MASTER), "{cuts}: it looks finished"),
                Course::Done | Course::FailedAndThenDone => {
                    check_complete(&farm).await;
                    let master = farm.output.get(keys::MASTER).await.expect("it is there");
                    let named = String::from_utf8_lossy(&master).matches("/index.m3u8").count();
                    assert_eq!(named, 3, "{course:?} {cuts}: two rungs and the sound");
                }
            }
            cuts += 1;
            uncut = if waits_left.is_some() { uncut + 1 } else { 0 };
        }
        assert!(cuts > 8, "only {cuts} places to stop at");
    }
}
