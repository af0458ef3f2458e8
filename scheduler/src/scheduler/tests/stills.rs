//! Jobs of still pictures alone: what is at their output, and what is cleaned up after them.

use farm::job::Make;

use super::*;

/// A job of a poster and a storyboard alone.
fn alone(farm: &Farm) -> JobSpec {
    let spec = farm.spec(Layout::Segments);
    JobSpec { make: Make::Stills, poster: Some(PosterSpec::default()), storyboard: Some(StoryboardSpec::default()), ..spec }
}

/// Has the janitor come for a job that has ended.
async fn sweep(farm: &Farm, job: &JobId) {
    farm.state.put(&keys::sweep(PARTITION, job, Life::FIRST), bytes::Bytes::new(), Kind::Json).await.expect("stored");
    let at_once = crate::janitor::Settings { grace: Duration::ZERO, ..crate::janitor::Settings::default() };
    crate::janitor::round(&at_once, &farm.state).await.expect("a round");
}

/// Whether there are a poster and a sheet, the track, the report and nothing else.
async fn is_whole(farm: &Farm) -> bool {
    let outputs = farm.outputs().await;
    let named = |end: &str| outputs.iter().filter(|key| key.ends_with(end)).count();
    let documents = outputs.contains(keys::STORYBOARD) && outputs.contains(keys::REPORT);
    documents && outputs.len() == 4 && named("/poster.jpg") == 1 && named("/storyboard-00000.jpg") == 1
}

#[tokio::test(start_paused = true)]
async fn of_still_pictures_alone_there_are_no_playlists_and_none_of_an_earlier_job_are_left() {
    let mut farm = Farm::new();
    for stale in [keys::MASTER, keys::FILES_MASTER, "v240/index.m3u8", "v240/0123456789abcdef/00000.m4s"] {
        farm.put(stale).await;
    }
    farm.add_worker(|_| Act::Do);
    let scheduler = farm.start();
    let job = scheduler.submit(alone(&farm)).await.expect("a job");
    let Ok(JobResult::Done(summary)) = end(&scheduler, &job).await else { panic!("it is done") };
    assert_eq!((summary.master, summary.renditions.len()), (None, 0));
    assert!(is_whole(&farm).await, "{:?}", farm.outputs().await);
    let taken: Vec<String> = farm.taken.lock().expect("not poisoned").iter().map(|(task, _)| task.clone()).collect();
    assert_eq!(taken, ["probe", "stills"]);
    let view = scheduler.view(&job).expect("a view");
    assert_eq!((view.tasks_done, view.media_done_ns, view.media_total_ns), (2, view.duration_ns, view.duration_ns));
    scheduler.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_left_over_beside_still_pictures_is_deleted_and_nothing_of_a_job_that_came_later() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let scheduler = Scheduler::start(Settings::for_farm(), farm.state.clone(), farm.broker.clone());
    let first = scheduler.submit(alone(&farm)).await.expect("a job");
    assert!(matches!(end(&scheduler, &first).await, Ok(JobResult::Done(_))));
    farm.put("stills/0123456789abcdef/poster.jpg").await;
    sweep(&farm, &first).await;
    assert!(is_whole(&farm).await, "{:?}", farm.outputs().await);
    let later = JobSpec { id: Some(JobId::try_from("later".to_owned()).expect("an id")), ..farm.spec(Layout::Segments) };
    let later = scheduler.submit(later).await.expect("a job");
    assert!(matches!(end(&scheduler, &later).await, Ok(JobResult::Done(_))));
    let before = farm.outputs().await;
    sweep(&farm, &first).await;
    assert_eq!(farm.outputs().await, before, "another result is in its place");
    sweep(&farm, &later).await;
    check_complete(&farm).await;
}
