//! The scheduler as a service: everything that `shoal scheduler` runs, and its end.

use std::sync::Arc;
use std::time::Duration;

use farm::admin::{self, Readiness};
use farm::broker::Broker;
use farm::metrics::Process;
use farm::storage::{Storage, StorageError};
use farm::{Code, Failure, keys};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admit::Policy;
use crate::api::{self, Api};
use crate::scheduler::{PARTITION, Scheduler, Settings};
use crate::{intake, janitor, notify, peertube, tracer};

/// How often it is looked whether storage and broker answer.
const READY_PAUSE: Duration = Duration::from_secs(5);
/// Longest wait for storage to answer that.
const READY_MAX: Duration = Duration::from_secs(5);
/// How often, and how long apart, it is looked whether what was shared is let go of.
const LET_GO_LOOKS: u32 = 100;
const LET_GO_PAUSE: Duration = Duration::from_millis(10);

/// What a scheduler service is made of.
pub struct Config {
    /// How the scheduler works.
    pub settings: Settings,
    /// What may be asked for.
    pub policy: Policy,
    /// How the end of jobs is told.
    pub notify: notify::Settings,
    /// How long what has ended is kept.
    pub janitor: janitor::Settings,
    /// Where the API listens; without it jobs come from the queue alone.
    pub api: Option<TcpListener>,
    /// The instances of PeerTube whose jobs are done.
    pub peertube: Option<peertube::Config>,
    /// Where traces of jobs go; without it there are none.
    pub traces: Option<tracer::Settings>,
    /// Where monitoring reaches it.
    pub admin: Option<TcpListener>,
}

/// Runs until `stop` is given. What workers are doing goes on meanwhile, and counts when a scheduler runs again.
///
/// # Errors
/// When a part of it ends by itself.
pub async fn run(config: Config, state: Storage, broker: Broker, stop: CancellationToken) -> Result<(), Failure> {
    let Config { mut settings, policy, notify, janitor, api, peertube, traces, admin } = config;
    let tenants = policy.tenants.now();
    (settings.weights, settings.hardware) = (Arc::new(tenants.weights()), Arc::new(tenants.hardware()));
    let mut parts: JoinSet<Result<(), Failure>> = JoinSet::new();
    if let Some(traces) = traces {
        let (traced, ends) = tracer::queue();
        settings.traced = Some(traced);
        parts.spawn(tracer::run(traces, state.clone(), ends));
    }
    let scheduler = Arc::new(Scheduler::start(settings, state.clone(), broker.clone()));
    let watch = scheduler.watch();
    let (into, from, told, admitted) = (state.clone(), broker.clone(), watch.clone(), policy.clone());
    parts.spawn(async move {
        intake::run(admitted, into, from, told).await;
        Ok(())
    });
    parts.spawn(notify::run(notify, state.clone(), broker.clone(), watch.clone()));
    let swept = state.clone();
    let acting = watch.clone();
    parts.spawn(async move {
        janitor::run(janitor, swept, watch).await;
        Ok(())
    });
    if let Some(instances) = peertube {
        parts.spawn(peertube::run(instances, Arc::clone(&scheduler), state.clone(), acting));
    }
    let broken = |error: std::io::Error| Failure::new(Code::Internal, format!("requests cannot be taken any more: {error}"));
    if let Some(listener) = api {
        let api = Api { scheduler: Arc::clone(&scheduler), state: state.clone(), broker: broker.clone(), policy };
        parts.spawn(async move { api::serve(listener, api).await.map_err(broken) });
    }
    if let Some(listener) = admin {
        let (ready, seen) = watch::channel(Readiness::NotReady("starting".to_owned()));
        let looked_after = broker.clone();
        parts.spawn(async move { admin::serve(listener, Process::Scheduler, looked_after, seen).await.map_err(broken) });
        parts.spawn(async move {
            look(&state, &broker, &ready).await;
            Ok(())
        });
    }
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        Some(ended) = parts.join_next() => match ended {
            Ok(Ok(())) => Err(Failure::new(Code::Internal, "a part of the scheduler ended")),
            Ok(Err(failure)) => Err(failure),
            Err(error) => Err(Failure::new(Code::Internal, format!("a part of the scheduler ended badly: {error}"))),
        },
    };
    parts.shutdown().await;
    match sole(scheduler).await {
        Some(scheduler) => scheduler.shutdown().await,
        None => tracing::warn!("the scheduler is still in use, and stops where it is"),
    }
    ended
}

/// What is shared no more: connections of the API that are told to end let go of it a moment later.
async fn sole<T>(mut shared: Arc<T>) -> Option<T> {
    for _ in 0..LET_GO_LOOKS {
        match Arc::try_unwrap(shared) {
            Ok(own) => return Some(own),
            Err(still) => shared = still,
        }
        tokio::time::sleep(LET_GO_PAUSE).await;
    }
    Arc::into_inner(shared)
}

/// Looks again and again whether storage and broker answer.
async fn look(state: &Storage, broker: &Broker, ready: &watch::Sender<Readiness>) {
    loop {
        let term = keys::term(PARTITION);
        let asked = tokio::time::timeout(READY_MAX, state.get(&term)).await;
        let now = match asked {
            _ if !broker.stats().connected => Readiness::NotReady("the broker is not reached".to_owned()),
            Ok(Ok(_) | Err(StorageError::NotFound(_))) => Readiness::Ready,
            Ok(Err(error)) => Readiness::NotReady(error.to_string()),
            Err(_) => Readiness::NotReady("storage does not answer".to_owned()),
        };
        ready.send_replace(now);
        tokio::time::sleep(READY_PAUSE).await;
    }
}
