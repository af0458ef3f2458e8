//! Tasks on devices, by real children: a device works as long as its node is there, which is a file of ours.

use super::*;
use std::path::PathBuf;

use farm::encoder::{Extent, Offered};
use tokio::sync::broadcast;

use crate::testing::{device, plan_on};

/// A bench with a plan whose picture is pinned to a device, and what workers say.
struct Stand {
    bench: Bench,
    node: PathBuf,
    heard: broadcast::Receiver<Word>,
}

impl Stand {
    async fn new(layout: Layout) -> Self {
        let bench = Bench::new(layout).await;
        let plan = Plan { layout, ..plan_on(Class::Nvenc) };
        store(&bench.state, &keys::plan(&bench.job, 1), &plan, false).await.expect("stored");
        let (node, heard) = (bench.folder.path().join("node"), bench.broker.listen());
        std::fs::write(&node, "").expect("written");
        Self { bench, node, heard }
    }

    fn worker(&self) -> Handle {
        self.bench.worker_with(vec![device(&self.node)], 1, "by-node")
    }

    fn name(&self) -> String {
        format!("nvenc on {}", self.node.display())
    }

    /// What is offered by the next word that offers or takes back.
    async fn offered(&mut self) -> Vec<Offered> {
        loop {
            let word = tokio::time::timeout(Duration::from_secs(60), self.heard.recv()).await.expect("a word comes");
            if let Word::Offer(offer) = word.expect("a working broker") {
                return offer.encoders;
            }
        }
    }

    /// Waits until something is offered, or nothing.
    async fn offers(&mut self, something: bool) {
        while self.offered().await.is_empty() == something {}
    }

    async fn failure(&mut self) -> Failure {
        match self.bench.event().await {
            Event::TaskFailed { failure, .. } => failure,
            other => panic!("no failure: {other:?}"),
        }
    }

    /// Waits until a task is done, and says on what.
    async fn done_on(&mut self, task: TaskId) -> Option<String> {
        let Stand { bench, .. } = self;
        assert_eq!(bench.event().await, Event::TaskDone { job: bench.job.clone(), task: task.clone() });
        let marker = bench.state.get(&keys::done(&bench.job, &task)).await.expect("stored before the event");
        serde_json::from_slice::<Marker>(&marker).expect("a marker").device
    }
}

#[tokio::test]
async fn a_device_is_offered_and_its_tasks_are_done_on_it() {
    let mut stand = Stand::new(Layout::Segments).await;
    let worker = stand.worker();
    let offered = stand.offered().await;
    let largest = Extent::of(3840, 2160);
    assert!(offered.iter().all(|one| (one.class, one.largest, one.sessions_max) == (Class::Nvenc, largest, None)));
    assert_eq!(offered.len(), 3, "each codec: {offered:?}");
    stand.bench.send_to(Class::Nvenc, TaskId::Video(0), 1).await;
    let name = stand.name();
    assert_eq!(stand.done_on(TaskId::Video(0)).await, Some(name));
    // Whatever the plan says, the message does not allow a device.
    stand.bench.send(TaskId::Video(1)).await;
    assert_eq!(stand.done_on(TaskId::Video(1)).await, None);
    assert_eq!(worker.shutdown().await, Drain::Complete);
    stand.offers(false).await;
}

#[tokio::test]
async fn a_device_that_fails_is_told_of_and_put_aside_and_the_processor_does_its_tasks() {
    let mut stand = Stand::new(Layout::Segments).await;
    let worker = stand.worker();
    stand.offers(true).await;
    std::fs::remove_file(&stand.node).expect("removed");
    stand.bench.send_to(Class::Nvenc, TaskId::Video(0), 1).await;
    let failure = stand.failure().await;
    assert_eq!((failure.code, failure.message), (Code::DeviceFailed, format!("{}: the card is gone", stand.name())));
    stand.offers(false).await;
    assert_eq!(stand.bench.objects().await, Vec::<String>::new());
    // Its slot does one more that comes all the same, and leaves what is on the queue then to others.
    stand.bench.send_to(Class::Nvenc, TaskId::Video(1), 1).await;
    assert_eq!(stand.done_on(TaskId::Video(1)).await, None);
    stand.bench.send_to(Class::Nvenc, TaskId::Video(0), 2).await;
    stand.bench.send_to(Class::Cpu, TaskId::Video(0), 3).await;
    assert_eq!(stand.done_on(TaskId::Video(0)).await, None);
    worker.shutdown().await;
    assert!(stand.bench.task_waits_for(Class::Nvenc).await);
}

#[tokio::test]
async fn a_device_that_bears_fewer_encoders_is_found_out_and_used_for_fewer() {
    let mut stand = Stand::new(Layout::Segments).await;
    let worker = stand.bench.worker_with(vec![device(&stand.node)], 1, "one-session");
    stand.offers(true).await;
    stand.bench.send_to(Class::Nvenc, TaskId::Video(0), 1).await;
    assert_eq!(stand.failure().await.code, Code::DeviceFailed);
    stand.offers(false).await;
    let again = stand.offered().await;
    let limits: Vec<_> = again.iter().map(|offered| offered.sessions_max).collect();
    assert_eq!(limits, [Some(1); 3], "two at a time were too many");
    stand.bench.send_to(Class::Nvenc, TaskId::Video(1), 1).await;
    let name = stand.name();
    assert_eq!(stand.done_on(TaskId::Video(1)).await, Some(name), "with one");
    worker.shutdown().await;
}

#[tokio::test]
async fn where_no_device_ever_worked_tasks_for_it_are_left_to_others() {
    let mut stand = Stand::new(Layout::Segments).await;
    std::fs::remove_file(&stand.node).expect("removed");
    let worker = stand.worker();
    stand.bench.send_to(Class::Nvenc, TaskId::Video(0), 1).await;
    stand.bench.send(TaskId::Audio(0)).await;
    assert_eq!(stand.done_on(TaskId::Audio(0)).await, None);
    assert_eq!(worker.shutdown().await, Drain::Complete);
    assert!(stand.bench.task_waits_for(Class::Nvenc).await);
}

#[tokio::test]
async fn a_device_whose_parameter_sets_do_not_go_with_others_fails_early_and_stays() {
    let mut stand = Stand::new(Layout::SingleFile).await;
    let worker = stand.worker();
    stand.offers(true).await;
    stand.bench.send_to(Class::Nvenc, TaskId::Video(0), 1).await;
    let name = stand.name();
    assert_eq!(stand.done_on(TaskId::Video(0)).await.as_ref(), Some(&name));
    let key = keys::sets(&stand.bench.job, &RenditionId("v360".to_owned()));
    stand.bench.state.get(&key).await.expect("it is noted what the first one made");
    store(&stand.bench.state, &key, &"of another device", false).await.expect("stored");
    stand.bench.send_to(Class::Nvenc, TaskId::Video(1), 1).await;
    let failure = stand.failure().await;
    let expected = format!("{name} makes other parameter sets than were made before of v360");
    assert_eq!((failure.code, failure.message), (Code::DeviceFailed, expected));
    // It is lent again without another proof.
    stand.bench.send_to(Class::Nvenc, TaskId::Video(1), 1).await;
    assert_eq!(stand.failure().await.code, Code::DeviceFailed);
    worker.shutdown().await;
    while let Ok(word) = stand.heard.try_recv() {
        let Word::Offer(offer) = word else { continue };
        assert!(!offer.encoders.is_empty() || stand.heard.is_empty(), "only the drain takes it back");
    }
}
