//! How much the scheduler bears: jobs per second with tasks that do nothing, the wait of a job on an idle farm, and memory
//! over many jobs, through a real RabbitMQ. Run by `make bench-scheduler`; prints figures, and fails on what must hold.
//!
//! `BENCH_BROKER=local` leaves RabbitMQ out; `BENCH_JOBS` and `BENCH_WORKERS` set the size.
#![expect(clippy::print_stdout, reason = "figures are what this is for")]
#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends at once")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use farm::broker::{Broker, Queue};
use farm::job::{JobId, JobSpec};
use farm::keys;
use farm::plan::Plan;
use farm::storage::{Kind, Storage};
use farm::task::{Event, Marker, Progress, TaskId, TaskMessage, Token, Word};
use scheduler::admit::Policy;
use scheduler::service::{self, Config};
use scheduler::{Settings, janitor, notify};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use url::Url;

#[expect(dead_code, reason = "shared with the scheduler's own tests, which use all of it")]
#[path = "../../scheduler/src/testing.rs"]
mod testing;

const LIMIT: Duration = Duration::from_secs(1800);
/// Jobs on their way at a time.
const AHEAD: usize = 500;

fn number(variable: &str, usual: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn rss_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

/// Does what a worker does with storage and broker, and encodes nothing.
async fn work(state: Storage, broker: Broker, started: mpsc::UnboundedSender<(JobId, TaskId, Instant)>) {
    let info = testing::source(vec![], vec![testing::sound(0, 48_000, 4)]);
    let mut tasks = broker.consume(Queue::Tasks(farm::Class::Cpu)).await.unwrap();
    loop {
        let delivery = tasks.next().await.unwrap();
        let TaskMessage { job, task, epoch, .. } = delivery.read().unwrap();
        let token = Token::random();
        broker.tell(Word::Progress(Progress { job: job.clone(), task: task.clone(), token: token.clone(), media_ns: 0 }));
        started.send((job.clone(), task.clone(), Instant::now())).unwrap();
        let spec: JobSpec = serde_json::from_slice(&state.get(&keys::spec(&job)).await.unwrap()).unwrap();
        let plan: Plan = match task {
            TaskId::Probe => scheduler::plan::plan(&spec, &info).unwrap(),
            _ => serde_json::from_slice(&state.get(&keys::plan(&job, epoch)).await.unwrap()).unwrap(),
        };
        let made: Marker = testing::marker(&plan, &info, &task, &token, &BTreeMap::new());
        let content = serde_json::to_vec(&made).unwrap();
        state.put_new(&keys::done(&job, &task), content.into(), Kind::Json).await.unwrap();
        broker.publish(Queue::Events, &Event::TaskDone { job, task }).await.unwrap();
        delivery.ack().await.unwrap();
    }
}

fn spec(folder: &Path, id: String) -> JobSpec {
    let output = Url::from_directory_path(folder.join("out").join(&id)).unwrap();
    let mut spec = JobSpec::new("file:///source.mkv".parse().unwrap(), output);
    spec.id = Some(JobId::try_from(id).unwrap());
    spec
}

/// Waits until so many jobs have ended since the last call.
async fn ended(results: &mut mpsc::UnboundedReceiver<()>, count: usize) {
    for _ in 0..count {
        timeout(LIMIT, results.recv()).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run by make bench-scheduler"]
async fn throughput_wait_and_memory() {
    let (jobs, workers) = (number("BENCH_JOBS", 10_000), number("BENCH_WORKERS", 1000));
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let state = Storage::folder(&folder.path().join("state"));
    let vhost = (std::env::var("BENCH_BROKER").as_deref() != Ok("local")).then(|| tests::rabbit::shared().unwrap());
    let local = Broker::local();
    let connect = || async {
        match &vhost {
            Some(vhost) => Broker::connect(&vhost.url().parse().unwrap()).await.unwrap(),
            None => local.clone(),
        }
    };
    let (broker, stop) = (connect().await, CancellationToken::new());
    let config = Config {
        settings: Settings::for_farm(),
        policy: Policy { allow_file_urls: true, ..Policy::default() },
        notify: notify::Settings::default(),
        janitor: janitor::Settings::default(),
        api: None,
        peertube: None,
        traces: None,
        admin: None,
    };
    let service = tokio::spawn(service::run(config, state.clone(), broker.clone(), stop.clone()));
    let (starts, mut started) = mpsc::unbounded_channel();
    // A hundred workers to a connection, as one machine would have them.
    for at in (0..workers).step_by(100) {
        let theirs = connect().await;
        for _ in at..workers.min(at + 100) {
            tokio::spawn(work(state.clone(), theirs.clone(), starts.clone()));
        }
    }
    let (tell_end, mut results) = mpsc::unbounded_channel();
    let count = Arc::new(AtomicUsize::new(0));
    let (listener, counted) = (connect().await, Arc::clone(&count));
    tokio::spawn(async move {
        let mut queue = listener.consume(Queue::Results).await.unwrap();
        loop {
            queue.next().await.unwrap().ack().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            tell_end.send(()).unwrap();
        }
    });

    // One at a time: the wait of a job on an idle farm.
    let mut waits = Vec::new();
    for n in 0..200 {
        let sent = Instant::now();
        broker.publish(Queue::Jobs, &spec(folder.path(), format!("idle-{n}"))).await.unwrap();
        let (_, _, at) = timeout(LIMIT, started.recv()).await.unwrap().unwrap();
        ended(&mut results, 1).await;
        while started.try_recv().is_ok() {}
        // The first waits for the scheduler to begin.
        if n > 0 {
            waits.push(at.duration_since(sent));
        }
    }
    waits.sort();
    let (middle, p99) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
    println!("submit → first task started, idle farm, {workers} workers: median {middle:.1?}, p99 {p99:.1?}");

    // As many as go through.
    let begin = Instant::now();
    let (mut sent, mut early_mib) = (0, 0);
    while sent < jobs {
        let some = AHEAD.min(jobs - sent);
        let publishing = (0..some).map(|n| {
            let message = spec(folder.path(), format!("load-{}", sent + n));
            let broker = broker.clone();
            async move { broker.publish(Queue::Jobs, &message).await.unwrap() }
        });
        futures::future::join_all(publishing).await;
        sent += some;
        ended(&mut results, some).await;
        while started.try_recv().is_ok() {}
        if early_mib == 0 && sent * 5 >= jobs {
            early_mib = rss_mib();
        }
        println!("{sent} jobs in {:.1?}, {} MiB", begin.elapsed(), rss_mib());
    }
    let rate = jobs as f64 / begin.elapsed().as_secs_f64();
    let (late_mib, done) = (rss_mib(), count.load(Ordering::Relaxed));
    println!("{jobs} jobs of 2 tasks: {rate:.0} jobs/s; memory {early_mib} MiB after a fifth, {late_mib} MiB at the end");
    stop.cancel();
    service.await.unwrap().unwrap();
    assert!(done >= jobs + 200, "{done} ends were told");
    assert!(late_mib <= early_mib + 64, "memory grows: {early_mib} → {late_mib} MiB");
    if !cfg!(debug_assertions) {
        assert!(p99 <= Duration::from_millis(200), "{p99:?}");
    }
}
