//! `shoal scheduler` and `shoal worker`: the farm's services, from their settings to their end.

use std::path::Path;
use std::time::Duration;

use farm::admin::{self, Readiness};
use farm::broker::Broker;
use farm::metrics::{self, Process};
use farm::storage::{S3Settings, Storage, Stores};
use farm::{Code, Failure};
use scheduler::admit::Policy;
use scheduler::tenants::{Register, Tenants};
use scheduler::{janitor, notify, peertube, service, tracer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use url::Url;
use worker::notice::Notices;

use crate::arguments::{Connection, Scheduler, Worker};
use crate::ending::say;
use crate::systemd::Attended;

/// Largest file of settings or secrets, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Headers for the collector of traces, where no file has them.
const OTLP_HEADERS_VARIABLE: &str = "SHOAL_OTLP_HEADERS";

/// Runs the scheduler until a signal.
///
/// # Errors
/// When it cannot be started, or a part of it ends by itself.
pub async fn scheduler(arguments: &Scheduler) -> Result<(), Failure> {
    let stop = stop_on_signal()?;
    let state = storage(&arguments.connection)?;
    let broker = broker(&arguments.connection).await?;
    let (tenants, _followed) = match arguments.tokens.clone() {
        Some(tokens) => {
            let text = read(&tokens)?;
            let tenants = Register::new(Tenants::read(&text)?);
            let followed = tenants.clone().follow(text, move || read(&tokens));
            (tenants, Some(AbortOnDropHandle::new(tokio::spawn(followed))))
        }
        None => (Register::default(), None),
    };
    let api = match arguments.listen.filter(|_| arguments.tokens.is_some()) {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let day = Duration::from_secs(24 * 3600);
    let config = service::Config {
        settings: scheduler::Settings {
            scale_target: Duration::from_secs(arguments.scale_seconds.into()),
            slots_per_worker: arguments.slots_per_worker.into(),
            ..scheduler::Settings::for_farm()
        },
        policy: Policy { allow_file_urls: arguments.allow_file_urls, state: arguments.connection.storage.clone(), tenants },
        notify: notify::Settings { reach: arguments.outbound.reach(), ..notify::Settings::default() },
        janitor: janitor::Settings {
            grace: Duration::from_secs(3600) * arguments.grace_hours,
            retention: arguments.keep_days.map(|days| day * days),
            ..janitor::Settings::default()
        },
        api,
        peertube: match &arguments.peertube {
            Some(file) => Some(instances(file, &arguments.connection)?),
            None => None,
        },
        traces: traces(arguments)?,
        admin: match arguments.admin_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        },
    };
    let workers = match arguments.slots {
        0 => None,
        slots => {
            worker::sandbox::announce(arguments.sandbox.sandbox.into())?;
            let mut settings = worker::Settings::new(slots.into(), arguments.sandbox.child());
            settings.reach = arguments.outbound.reach();
            Some(worker::Worker::start(settings, state.clone(), broker.clone())?)
        }
    };
    say("scheduler: running; Ctrl-C stops it, and nothing is lost");
    let attended = Attended::ready();
    let mut running = std::pin::pin!(service::run(config, state, broker, stop.clone()));
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => {
            attended.stopping();
            running.await
        }
        ended = &mut running => ended,
    };
    if let Some(workers) = workers {
        workers.shutdown().await;
    }
    ended
}

/// Where traces of jobs go, if they are wanted.
fn traces(arguments: &Scheduler) -> Result<Option<tracer::Settings>, Failure> {
    let Some(endpoint) = &arguments.otlp_endpoint else { return Ok(None) };
    let headers = match &arguments.otlp_headers_file {
        Some(file) => read(file)?,
        None => std::env::var(OTLP_HEADERS_VARIABLE).unwrap_or_default(),
    };
    tracer::Settings::new(endpoint, &headers).map(Some)
}

/// The instances of a file, and where what is made for them is kept.
fn instances(file: &Path, connection: &Connection) -> Result<peertube::Config, Failure> {
    let instances = peertube::settings::read(&read(file)?).map_err(|failure| {
        let message = format!("{}: {}", file.display(), failure.message);
        Failure::new(failure.code, message)
    })?;
    let url = connection.storage.clone().ok_or_else(|| Failure::new(Code::InvalidRequest, "no storage"))?;
    Ok(peertube::Config { instances, url })
}

/// Runs a worker until a signal, until notice that its machine is taken away, or until it has done as much as it was to do, and
/// then drains it. A second signal ends it at once.
///
/// # Errors
/// When it cannot be started.
pub async fn worker(arguments: &Worker) -> Result<(), Failure> {
    let stop = stop_on_signal()?;
    let state = storage(&arguments.connection)?;
    let broker = broker(&arguments.connection).await?;
    let notices = Notices::listen(arguments.spot_notices.provider(), arguments.spot_endpoint.as_ref()).await?;
    if notices.is_given() {
        // Whoever looks after it may start it again and again: it begins nothing that it could not end.
        Attended::ready().stopping();
        say("worker: this machine is to be taken away: nothing is begun");
        return Ok(());
    }
    let slots = arguments.slots.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    worker::sandbox::announce(arguments.sandbox.sandbox.into())?;
    let (ready, seen) = watch::channel(Readiness::Ready);
    let _admin = match arguments.admin_listen {
        Some(address) => {
            let served = admin::serve(listen(address).await?, Process::Worker, broker.clone(), seen);
            Some(AbortOnDropHandle::new(tokio::spawn(served)))
        }
        None => None,
    };
    let workers = worker::Worker::start(settings(arguments, slots), state, broker.clone())?;
    say(&format!("worker: running with {slots} slots; Ctrl-C drains it"));
    let attended = Attended::ready();
    let is_asked = tokio::select! {
        () = watch_broker(&broker, &ready, &stop) => true,
        _ = notices.given() => true,
        () = workers.stopped() => false,
    };
    ready.send_replace(Readiness::NotReady("draining".to_owned()));
    if is_asked {
        // From here on a service manager gives it no more than its time to stop.
        attended.stopping();
        say(&format!("worker: draining, {} s at most; Ctrl-C again ends it at once", arguments.drain_seconds));
    } else {
        say("worker: done; what still runs comes to its end");
    }
    tokio::select! {
        drained = workers.drain(patience(&stop, &notices, Duration::from_secs(arguments.drain_seconds.into()))) => {
            tracing::info!(?drained, "drained");
            Ok(())
        }
        again = asked_again(&stop) => {
            again?;
            Err(Failure::new(Code::Interrupted, "ended at once: what was running will be done elsewhere"))
        }
    }
}

/// How a worker works.
fn settings(arguments: &Worker, slots: usize) -> worker::Settings {
    let seconds = |count: u32| Duration::from_secs(count.into());
    let mut settings = worker::Settings::new(slots, arguments.sandbox.child());
    settings.reach = arguments.outbound.reach();
    settings.drain_budget = seconds(arguments.drain_seconds);
    settings.deadline = seconds(arguments.deadline_seconds);
    settings.stall = seconds(arguments.stall_seconds);
    settings.ends = worker::Ends { tasks: arguments.tasks, idle: arguments.idle_seconds.map(seconds) };
    settings
}

/// Waits until what still runs is to be given back: so long after a signal or notice, and in time before the machine goes. Nobody
/// waits for a worker that ends by itself: what it runs has deadlines of its own.
async fn patience(stop: &CancellationToken, notices: &Notices, budget: Duration) {
    let asked = async {
        stop.cancelled().await;
        sleep(budget).await;
    };
    let taken_away = async {
        let by = notices.given().await;
        sleep_until(by.min(Instant::now() + budget)).await;
    };
    tokio::select! {
        () = asked => {}
        () = taken_away => {}
    }
}

/// Waits for a second signal: the first may come after the drain has begun, when a machine that gave notice is shut down.
///
/// # Errors
/// When signals cannot be heard.
async fn asked_again(stop: &CancellationToken) -> Result<(), Failure> {
    stop.cancelled().await;
    stop_on_signal()?.cancelled().await;
    Ok(())
}

/// Keeps readiness up to date until it is time to stop.
async fn watch_broker(broker: &Broker, ready: &watch::Sender<Readiness>, stop: &CancellationToken) {
    let look = Duration::from_secs(5);
    while stop.run_until_cancelled(tokio::time::sleep(look)).await.is_some() {
        let now = match broker.stats().connected {
            true => Readiness::Ready,
            false => Readiness::NotReady("the broker is not reached".to_owned()),
        };
        ready.send_replace(now);
    }
}

/// Given when the process is asked to stop, by Ctrl-C or SIGTERM.
fn stop_on_signal() -> Result<CancellationToken, Failure> {
    let hear = |kind| signal(kind).map_err(|e| Failure::new(Code::Internal, format!("signals cannot be heard: {e}")));
    let (mut interrupt, mut terminate) = (hear(SignalKind::interrupt())?, hear(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let given = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        given.cancel();
    });
    Ok(stop)
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, Failure> {
    let refused = |error| Failure::new(Code::InvalidRequest, format!("{address} cannot be listened on: {error}"));
    TcpListener::bind(address).await.map_err(refused)
}

/// The farm's state, counted.
///
/// # Errors
/// When none is named, or it cannot be opened.
pub fn storage(connection: &Connection) -> Result<Storage, Failure> {
    let missing = || Failure::new(Code::InvalidRequest, "no storage: give --storage s3://bucket/prefix/ or file:///folder/");
    let url = connection.storage.as_ref().ok_or_else(missing)?;
    let stores = match &connection.s3_endpoint {
        Some(endpoint) => Stores::new(S3Settings::from_variables(|name| match name {
            "SHOAL_S3_ENDPOINT" => Some(endpoint.clone()),
            _ => std::env::var(name).ok(),
        })?),
        None => Stores::default(),
    };
    Ok(stores.observed_by(metrics::storage_observer()).open(url)?)
}

/// The farm's broker.
///
/// # Errors
/// When none is named, or it is not reached.
pub async fn broker(connection: &Connection) -> Result<Broker, Failure> {
    let text = match (&connection.broker, &connection.broker_file) {
        (Some(url), _) => url.clone(),
        (None, Some(file)) => read(file)?,
        (None, None) => {
            return Err(Failure::new(Code::InvalidRequest, "no broker: give --broker amqp://server/ or SHOAL_BROKER"));
        }
    };
    // What it could not understand may hold a password: it is not repeated.
    let url = Url::parse(text.trim()).map_err(|error| Failure::new(Code::InvalidRequest, format!("broker: no URL: {error}")))?;
    Ok(Broker::connect(&url).await?)
}

/// A small text file.
///
/// # Errors
/// When it cannot be read, or is too large.
pub fn read(path: &Path) -> Result<String, Failure> {
    let refused = |why: &dyn std::fmt::Display| Failure::new(Code::InvalidRequest, format!("{}: {why}", path.display()));
    let bytes = std::fs::metadata(path).map_err(|error| refused(&error))?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(refused(&format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    std::fs::read_to_string(path).map_err(|error| refused(&error))
}
