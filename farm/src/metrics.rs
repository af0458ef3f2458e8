//! What the farm's processes count and measure: every series, with its name, help, labels and buckets.
//!
//! One set of series per kind of process, made when it is first asked for. `docs/metrics.md` is made from this; a test
//! holds them together. Labels have few values: never a job, a tenant or a file name.

use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::Class;
use crate::presence::Duty;
use crate::storage::Observer;
use crate::task::TaskId;

/// Buckets in seconds for what takes as long as a chunk, or waits for one.
const CHUNK_SECONDS: [f64; 16] =
    [0.2, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 900.0, 1200.0, 1800.0];
/// Buckets in seconds for what takes as long as a job.
const JOB_SECONDS: [f64; 13] =
    [10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 86_400.0];
/// Buckets in seconds for what takes as long as a few requests to storage.
const REQUEST_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 60.0];
/// Buckets for how much media is gone through in a second.
const SPEED_RATIO: [f64; 10] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

/// Which kind of process shows its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// `shoal scheduler`.
    Scheduler,
    /// `shoal worker`.
    Worker,
}

/// What the scheduler counts.
pub struct SchedulerSeries {
    registry: Registry,
    /// Jobs that have not ended, by phase.
    pub jobs: IntGaugeVec,
    /// Job messages taken from the queue or the API, by what became of them.
    pub intake: IntCounterVec,
    /// Jobs that ended, by outcome.
    pub jobs_finished: IntCounterVec,
    /// From submission to the end of a job.
    pub job_duration: Histogram,
    /// From submission to the first sign of a worker.
    pub job_queue_wait: Histogram,
    /// Tasks that could be handed out.
    pub tasks_runnable: IntGaugeVec,
    /// Tasks on the queue or with workers.
    pub tasks_outstanding: IntGaugeVec,
    /// Media still to be gone through.
    pub backlog_media_seconds: IntGauge,
    /// Workers that would do what there is in time, by class.
    pub wanted_workers: IntGaugeVec,
    /// Workers that were heard of lately, by whether they take tasks.
    pub workers: IntGaugeVec,
    /// Tasks handed out, by why.
    pub tasks_issued: IntCounterVec,
    /// Failed attempts.
    pub task_failures: IntCounterVec,
    /// Whether this scheduler acts.
    pub leader: IntGauge,
    /// Its term.
    pub term: IntGauge,
    /// When the last tick came.
    pub last_tick: IntGauge,
    /// How long listing the active jobs takes.
    pub reconcile_duration: Histogram,
    /// Ends of jobs told, by what became of it.
    pub notifications: IntCounterVec,
    /// Traces of jobs that have ended.
    pub traces: IntCounterVec,
    /// Objects that the janitor deleted.
    pub janitor_deleted: IntCounter,
    /// Requests to the API.
    pub http_requests: IntCounterVec,
    /// Runner jobs of PeerTube that ended.
    pub peertube_jobs: IntCounterVec,
    /// Runner jobs that are held.
    pub peertube_jobs_held: IntGaugeVec,
    /// Sources that were needed.
    pub peertube_sources: IntCounterVec,
    /// Rungs that are kept no more.
    pub peertube_speculative: IntCounterVec,
    /// Whether an instance answers.
    pub peertube_up: IntGaugeVec,
    /// How long handing in took.
    pub peertube_upload: Histogram,
}

/// What a worker counts.
pub struct WorkerSeries {
    registry: Registry,
    /// Slots.
    pub slots: IntGauge,
    /// Slots with a task.
    pub slots_busy: IntGauge,
    /// Deliveries, by what became of them.
    pub tasks: IntCounterVec,
    /// How long a task took that was done.
    pub task_duration: HistogramVec,
    /// Media gone through per second, by a task that was done.
    pub encode_speed: Histogram,
    /// Media gone through.
    pub media_encoded: IntCounter,
    /// Bytes of media stored by tasks that were done.
    pub output_bytes: IntCounter,
    /// Deliveries that were no longer ours when they were to be acknowledged.
    pub lost_leases: IntCounter,
    /// Whether it takes no more.
    pub draining: IntGauge,
    /// Notices that its machine is to be taken away.
    pub notices: IntCounterVec,
    /// When a child last said how far it is.
    pub last_progress: IntGauge,
    /// How far children are walled in.
    pub walls: IntGaugeVec,
    /// Devices that encode, by how they stand.
    pub devices: IntGaugeVec,
    /// Slots for tasks that take a device.
    pub device_slots: IntGaugeVec,
    /// Those of them with a task.
    pub device_slots_busy: IntGaugeVec,
    /// Encoders that are open on devices.
    pub device_sessions: IntGaugeVec,
    /// Tasks that devices failed at.
    pub device_failures: IntCounterVec,
}

/// The scheduler's series.
pub fn scheduler() -> &'static SchedulerSeries {
    static SERIES: LazyLock<SchedulerSeries> = LazyLock::new(SchedulerSeries::new);
    &SERIES
}

/// What every process counts of its storage.
pub struct StorageSeries {
    registry: Registry,
    /// Operations, by which and how they ended.
    pub requests: IntCounterVec,
    /// How long they took.
    pub duration: HistogramVec,
}

/// The series of the storage port.
pub fn storage() -> &'static StorageSeries {
    static SERIES: LazyLock<StorageSeries> = LazyLock::new(|| {
        let r = Registry::new();
        let help = "How long operations on storage took, their retries included.";
        let duration = HistogramOpts::new("shoal_store_request_duration_seconds", help).buckets(REQUEST_SECONDS.to_vec());
        StorageSeries {
            requests: counters(&r, "shoal_store_requests_total", "Operations on storage.", &["op", "code"]),
            duration: registered(&r, HistogramVec::new(duration, &["op"])),
            registry: r,
        }
    });
    &SERIES
}

/// Counts what a storage does: for [`crate::storage::Stores::observed_by`].
pub fn storage_observer() -> Observer {
    let series = storage();
    Arc::new(|observed| {
        series.requests.with_label_values(&[observed.operation, observed.outcome]).inc();
        series.duration.with_label_values(&[observed.operation]).observe(observed.took.as_secs_f64());
    })
}

/// The worker's series.
pub fn worker() -> &'static WorkerSeries {
    static SERIES: LazyLock<WorkerSeries> = LazyLock::new(WorkerSeries::new);
    &SERIES
}

impl SchedulerSeries {
    fn new() -> Self {
        let r = Registry::new();
        let series = Self {
            jobs: gauges(
                &r,
                "shoal_jobs",
                "Jobs that have not ended, as this scheduler knows them; waiting: no worker has begun with it yet.",
                &["phase"],
            ),
            intake: counters(&r, "shoal_intake_total", "Jobs asked for, by way in and what became of them.", &["via", "result"]),
            jobs_finished: counters(&r, "shoal_jobs_finished_total", "Jobs that ended.", &["outcome"]),
            job_duration: histogram(&r, "shoal_job_duration_seconds", "From submission to the end of a job.", &JOB_SECONDS),
            job_queue_wait: histogram(
                &r,
                "shoal_job_queue_wait_seconds",
                "From submission until a worker is first heard of.",
                &CHUNK_SECONDS,
            ),
            tasks_runnable: gauges(&r, "shoal_tasks_runnable", "Tasks that could be handed out and are not yet.", &["kind"]),
            tasks_outstanding: gauges(&r, "shoal_tasks_outstanding", "Tasks on the queue or with workers.", &["kind"]),
            backlog_media_seconds: gauge(
                &r,
                "shoal_backlog_media_seconds",
                "Media that planned tasks have still to go through, in seconds.",
            ),
            wanted_workers: gauges(
                &r,
                "shoal_wanted_workers",
                "Workers, of as many slots as the scheduler is told, that do what there is in time; 0 while it stands by.",
                &["class"],
            ),
            workers: gauges(&r, "shoal_workers", "Workers that this scheduler has heard of in the last half minute.", &["state"]),
            tasks_issued: counters(&r, "shoal_tasks_issued_total", "Tasks handed out.", &["reason"]),
            task_failures: counters(&r, "shoal_task_failures_total", "Failed attempts, by task and code.", &["kind", "code"]),
            leader: gauge(&r, "shoal_leader", "1 while this scheduler is the one that acts."),
            term: gauge(&r, "shoal_term", "Number of the last term in which this scheduler acted."),
            last_tick: gauge(&r, "shoal_last_tick_timestamp_seconds", "When the last tick came, in seconds since 1970."),
            reconcile_duration: histogram(
                &r,
                "shoal_reconcile_duration_seconds",
                "How long listing the active jobs takes.",
                &REQUEST_SECONDS,
            ),
            notifications: counters(&r, "shoal_notifications_total", "Attempts to tell the end of a job.", &["way", "result"]),
            traces: counters(&r, "shoal_traces_total", "Traces of jobs that ended, by what became of them.", &["result"]),
            janitor_deleted: counter(&r, "shoal_janitor_deleted_objects_total", "Objects that the janitor deleted."),
            http_requests: counters(&r, "shoal_http_requests_total", "Requests to the API.", &["route", "status"]),
            peertube_jobs: counters(
                &r,
                "shoal_peertube_jobs_total",
                "Runner jobs that ended, by what they were for and how.",
                &["peertube", "form", "end"],
            ),
            peertube_jobs_held: gauges(
                &r,
                "shoal_peertube_jobs_held",
                "Runner jobs that were taken and have not ended.",
                &["peertube"],
            ),
            peertube_sources: counters(
                &r,
                "shoal_peertube_sources_total",
                "Sources that runner jobs needed: fetched, or kept from before.",
                &["peertube", "from"],
            ),
            peertube_speculative: counters(
                &r,
                "shoal_peertube_speculative_rungs_total",
                "Rungs that are kept no more, by whether they were ever asked for.",
                &["peertube", "rung"],
            ),
            peertube_up: gauges(&r, "shoal_peertube_up", "1 while an instance answers.", &["peertube"]),
            peertube_upload: histogram(
                &r,
                "shoal_peertube_upload_seconds",
                "How long handing a result in took, with what the instance does meanwhile.",
                &CHUNK_SECONDS,
            ),
            registry: r,
        };
        for phase in PHASES {
            series.jobs.with_label_values(&[phase]);
        }
        for kind in KINDS {
            series.tasks_runnable.with_label_values(&[kind]);
            series.tasks_outstanding.with_label_values(&[kind]);
        }
        for class in Class::ALL.map(Class::word) {
            series.wanted_workers.with_label_values(&[class]);
        }
        for duty in Duty::ALL {
            series.workers.with_label_values(&[duty.word()]);
        }
        for (via, result) in [("queue", "accepted"), ("queue", "rejected"), ("queue", "postponed"), ("http", "accepted")] {
            series.intake.with_label_values(&[via, result]);
        }
        series.intake.with_label_values(&["http", "rejected"]);
        for outcome in crate::ended::JobOutcome::ALL {
            series.jobs_finished.with_label_values(&[outcome.word()]);
        }
        for reason in ["first", "retry"] {
            series.tasks_issued.with_label_values(&[reason]);
        }
        for (way, result) in [("exchange", "told"), ("exchange", "failed"), ("call", "told"), ("call", "failed")] {
            series.notifications.with_label_values(&[way, result]);
        }
        for result in ["sent", "failed", "dropped"] {
            series.traces.with_label_values(&[result]);
        }
        for (way, result) in [("letter", "told"), ("letter", "failed"), ("call", "given_up")] {
            series.notifications.with_label_values(&[way, result]);
        }
        series
    }
}

impl WorkerSeries {
    fn new() -> Self {
        let r = Registry::new();
        let series = Self {
            slots: gauge(&r, "shoal_slots", "Places where this worker runs a task."),
            slots_busy: gauge(&r, "shoal_slots_busy", "Places that have a task."),
            tasks: counters(&r, "shoal_tasks_total", "Deliveries, by task and what became of them.", &["kind", "outcome"]),
            task_duration: histograms(&r, "shoal_task_duration_seconds", "How long tasks took that were done.", &["kind"]),
            encode_speed: histogram(
                &r,
                "shoal_encode_speed_ratio",
                "Seconds of media gone through in a second, by encode tasks that were done.",
                &SPEED_RATIO,
            ),
            media_encoded: counter(&r, "shoal_media_seconds_encoded_total", "Media that encode tasks went through, in seconds."),
            output_bytes: counter(&r, "shoal_output_bytes_total", "Bytes of media stored by tasks that were done."),
            lost_leases: counter(
                &r,
                "shoal_lost_leases_total",
                "Deliveries that were no longer this worker's when it wanted to settle them.",
            ),
            draining: gauge(&r, "shoal_draining", "1 while this worker takes no more tasks."),
            notices: counters(
                &r,
                "shoal_worker_notices_total",
                "Notices that this machine is to be taken away, by who gave them.",
                &["provider"],
            ),
            last_progress: gauge(
                &r,
                "shoal_last_progress_timestamp_seconds",
                "When a child last said how far it is, in seconds since 1970.",
            ),
            walls: gauges(
                &r,
                "shoal_sandbox_walls",
                "How far children are walled in: 2 as they should be, 1 as far as an old kernel can, 0 not at all.",
                &["wall"],
            ),
            devices: gauges(
                &r,
                "shoal_worker_devices",
                "Devices that encode: those that work, and those that are put aside until they prove themselves.",
                &["class", "state"],
            ),
            device_slots: gauges(
                &r,
                "shoal_worker_device_slots",
                "Places, beside the others, where this worker runs a task that takes a device.",
                &["class"],
            ),
            device_slots_busy: gauges(
                &r,
                "shoal_worker_device_slots_busy",
                "Of the places for tasks that take a device, those that have one.",
                &["class"],
            ),
            device_sessions: gauges(&r, "shoal_worker_device_sessions", "Encoders that are open on devices.", &["class"]),
            device_failures: counters(&r, "shoal_worker_device_failures_total", "Tasks that devices failed at.", &["class"]),
            registry: r,
        };
        for kind in KINDS {
            series.task_duration.with_label_values(&[kind]);
            for outcome in ["done", "failed", "moot", "stale", "rejected", "given_back", "postponed", "covered"] {
                series.tasks.with_label_values(&[kind, outcome]);
            }
        }
        for provider in ["ec2", "gcp", "azure"] {
            series.notices.with_label_values(&[provider]);
        }
        for wall in ["files", "system_calls"] {
            series.walls.with_label_values(&[wall]);
        }
        for class in Class::ALL.into_iter().filter(|class| class.is_hardware()).map(Class::word) {
            for state in ["works", "aside"] {
                series.devices.with_label_values(&[class, state]);
            }
            series.device_slots.with_label_values(&[class]);
            series.device_slots_busy.with_label_values(&[class]);
            series.device_sessions.with_label_values(&[class]);
            series.device_failures.with_label_values(&[class]);
        }
        series
    }
}

/// How jobs that have not ended stand, in labels.
pub const PHASES: [&str; 5] = ["waiting", "probing", "encoding", "packing", "halted"];

/// What tasks are called in labels.
pub const KINDS: [&str; 8] = ["probe", "first", "video", "audio", "stills", "text", "pack", "mp4"];

/// What a task is called in labels.
pub fn kind(task: &TaskId) -> &'static str {
    match task {
        TaskId::Probe | TaskId::ProbeOther(_) => "probe",
        TaskId::Video(_) => "video",
        TaskId::First(_) => "first",
        TaskId::Audio(_) => "audio",
        TaskId::Stills => "stills",
        TaskId::Text => "text",
        TaskId::Pack(_) => "pack",
        TaskId::Mp4(_) => "mp4",
    }
}

/// Now, in seconds since 1970, for series that show when something was.
pub fn now_seconds() -> i64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(passed.as_secs()).unwrap_or(i64::MAX)
}

/// The registries of a kind of process.
pub fn registries(process: Process) -> [&'static Registry; 2] {
    let own = match process {
        Process::Scheduler => &scheduler().registry,
        Process::Worker => &worker().registry,
    };
    [own, &storage().registry]
}

/// Everything in these registries, in Prometheus' text format.
pub fn text(registries: &[&Registry]) -> String {
    let mut families: Vec<_> = registries.iter().flat_map(|registry| registry.gather()).collect();
    families.sort_by(|a, b| a.name().cmp(b.name()));
    let mut text = Vec::new();
    // Writing to memory does not fail, and what is gathered is well formed.
    let _ = TextEncoder::new().encode(&families, &mut text);
    String::from_utf8(text).unwrap_or_default()
}

/// Registers what was made. Names and labels are fixed, so what fails here fails in every test.
pub(crate) fn registered<M: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<M>) -> M {
    let made = made.expect("a name and labels that Prometheus knows");
    registry.register(Box::new(made.clone())).expect("a name that nothing else has");
    made
}

pub(crate) fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::new(name, help))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

pub(crate) fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(name, help))
}

pub(crate) fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    registered(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
}

fn histograms(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    registered(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(CHUNK_SECONDS.to_vec()), labels))
}
