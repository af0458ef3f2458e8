//! The worker as a service: slots, each with a consumer of its own, and their drain.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farm::broker::{Broker, BrokerError, Consumer, Queue};
use farm::encoder::Device;
use farm::job::SourceSpec;
use farm::media::MediaInfo;
use farm::outbound::Reach;
use farm::storage::{Storage, Stores};
use farm::{Class, Code, Failure, metrics};
use pipelines::encoders::Proof;
use pipelines::{Done, Order};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::attempt::{Attempt, Sink};
use crate::begun::Gate;
use crate::devices::{Devices, Keeper};
use crate::guard::Guard;
use crate::presence;
use crate::process::{Spawner, Urgency};
use crate::proof;
use crate::retry::Patience;
use crate::running::Running;
use crate::source::Source;
use crate::tally::{Ends, Tally};
use crate::task::{Farm, Handled, handle, postpone};

/// First and longest pause of a slot whose surroundings do not work.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);
/// How long killed attempts may take to delete their objects and give their deliveries back.
const CLEAN_UP_WAIT: Duration = Duration::from_secs(30);

/// How a worker starts itself again as a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, which are to lead to [`crate::child::main`].
    pub args: Vec<String>,
}

impl ChildCommand {
    /// This very program, even if the file it was started from has been replaced.
    pub fn this_program(args: Vec<String>) -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), args }
    }
}

/// How a worker works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Tasks done at a time, at least 1; and half as many beside them of those that take a device, for each class of devices.
    pub slots: usize,
    /// How children are started.
    pub child: ChildCommand,
    /// Longest duration of an attempt. Stays below the 30 minutes after which brokers take a delivery back.
    pub deadline: Duration,
    /// Longest silence of a child.
    pub stall: Duration,
    /// How long a drain waits for running attempts before it kills them.
    pub drain_budget: Duration,
    /// When no more tasks are taken though nobody asks for that.
    pub ends: Ends,
    /// Where sources behind HTTP may be.
    pub reach: Reach,
    /// Which devices are used to encode, as far as they prove that they can.
    pub devices: Devices,
}

impl Settings {
    /// The usual limits: deadline 20 minutes, stall 60 s, drain budget 60 s. Sources may be anywhere, and devices are those that
    /// are found.
    pub fn new(slots: usize, child: ChildCommand) -> Self {
        Self {
            slots,
            child,
            deadline: Duration::from_secs(20 * 60),
            stall: Duration::from_secs(60),
            drain_budget: Duration::from_secs(60),
            ends: Ends::default(),
            reach: Reach::Anywhere,
            devices: Devices::Found,
        }
    }
}

/// A worker.
pub enum Worker {}

/// A running worker. Dropped, it stops at once: children are killed, deliveries go back to the broker.
pub struct Handle {
    slots: JoinSet<()>,
    /// Tells that it is there, for as long as it is.
    _presence: AbortOnDropHandle<()>,
    stop: CancellationToken,
    kill: CancellationToken,
    drain_budget: Duration,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Every attempt that ran came to its end.
    Complete,
    /// Some were killed and their deliveries given back.
    Interrupted,
}

impl Worker {
    /// Starts taking tasks: at once where there is no device, or else when what devices can do is known and offered. Needs a
    /// running tokio runtime with time and I/O.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for no slots; [`Code::Internal`] when no thread can be started.
    pub fn start(settings: Settings, state: Storage, broker: Broker) -> Result<Handle, Failure> {
        if settings.slots == 0 {
            return Err(Failure::new(Code::InvalidRequest, "slots: 0, at least 1 is needed to do anything"));
        }
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let drain_budget = settings.drain_budget;
        let tally = Arc::new(Tally::new(settings.ends, stop.clone()));
        let devices = settings.devices.list();
        let (has_devices, classes) = (!devices.is_empty(), classes(&devices));
        let all = classes.iter().map(|class| slots_of(*class, settings.slots)).fold(0, usize::saturating_add);
        let (running, gate) = (Running::default(), Gate::new(all));
        let (spawner, keeper) = (spawner()?, Arc::new(Keeper::new(devices)));
        let (stopping, killing, speed) = (stop.clone(), kill.clone(), Mutex::default());
        let farm = Farm { settings, state, broker, spawner, running, gate, keeper, speed, stop: stopping, kill: killing };
        let farm = Arc::new(farm);
        metrics::worker().slots.set(i64::try_from(farm.settings.slots).unwrap_or(i64::MAX));
        // Until a child says how far it is, the silence is as old as the worker.
        metrics::worker().last_progress.set(metrics::now_seconds());
        let mut slots = JoinSet::new();
        for class in classes {
            for _ in 0..slots_of(class, farm.settings.slots) {
                slots.spawn(slot(farm.clone(), Arc::clone(&tally), class));
            }
        }
        if has_devices {
            slots.spawn(keep_devices(Arc::clone(&farm)));
        }
        let telling = tokio::spawn(presence::tell(Arc::clone(&farm), Arc::clone(&tally), all));
        let broker = farm.broker.clone();
        slots.spawn(async move { tally.watch(|| broker.stats().connected).await });
        Ok(Handle { slots, _presence: AbortOnDropHandle::new(telling), stop, kill, drain_budget })
    }
}

impl Handle {
    /// Waits until no more tasks are taken, for its [`Ends`] have come. What runs goes on: it is for [`Handle::drain`] to end.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Drains within the drain budget and half a minute: see [`Handle::drain`].
    pub async fn shutdown(self) -> Drain {
        let budget = tokio::time::sleep(self.drain_budget);
        self.drain(budget).await
    }

    /// Drains: takes no more, waits for what runs until `patience` ends, then kills it and gives it back. Ends half a minute
    /// after that at the latest. Dropping the future ends everything at once.
    pub async fn drain(mut self, patience: impl Future<Output = ()>) -> Drain {
        metrics::worker().draining.set(1);
        self.stop.cancel();
        tokio::select! {
            biased;
            () = ended(&mut self.slots) => return Drain::Complete,
            () = patience => {}
        }
        tracing::warn!("what still runs is given back: there is no more time");
        self.kill.cancel();
        if tokio::time::timeout(CLEAN_UP_WAIT, ended(&mut self.slots)).await.is_err() {
            tracing::warn!("attempts that were given back leave objects behind");
        }
        Drain::Interrupted
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.cancel();
        self.kill.cancel();
    }
}

async fn ended(slots: &mut JoinSet<()>) {
    while slots.join_next().await.is_some() {}
}

fn spawner() -> Result<Spawner, Failure> {
    Spawner::start().map_err(|error| Failure::new(Code::Internal, format!("no thread to start children from: {error}")))
}

/// The classes whose tasks are taken: the processor's, and those of devices.
fn classes(devices: &[Device]) -> Vec<Class> {
    let is_there = |class: &Class| class.is_cpu() || devices.iter().any(|device| device.class == *class);
    Class::ALL.into_iter().filter(is_there).collect()
}

/// How many tasks of a class are done at a time where there are so many slots. With a device a task still decodes and scales on
/// the processor, which has tasks of its own.
fn slots_of(class: Class, slots: usize) -> usize {
    if class.is_cpu() { slots } else { slots.div_ceil(2) }
}

/// Has devices prove themselves, and tells what they offer, until told to stop.
async fn keep_devices(farm: Arc<Farm>) {
    let prove = |proof: Proof| {
        let farm = farm.clone();
        async move { proof::prove(&proof, &farm.spawner, &farm.settings.child).await }
    };
    farm.keeper.keep(&farm.broker, &farm.stop, prove).await;
}

/// Takes deliveries of a class one after another until told to stop, while there is a device for them. A slot is free before it
/// takes, so none waits in a worker.
async fn slot(farm: Arc<Farm>, tally: Arc<Tally>, class: Class) {
    let stop = &farm.stop;
    let mut pause = *PAUSES.start();
    while stop.run_until_cancelled(farm.keeper.ready(class)).await.is_some() {
        let _open = Open::new(class);
        let error = match stop.run_until_cancelled(farm.broker.consume(Queue::Tasks(class))).await {
            None => return,
            Some(Err(error)) => error,
            Some(Ok(consumer)) => match take(&farm, &tally, (class, consumer), &mut pause).await {
                Ok(()) => continue,
                Err(error) => error,
            },
        };
        tracing::warn!(%error, "no deliveries: trying again");
        rest(stop, &mut pause).await;
    }
}

/// Takes deliveries from the queue of a class until told to stop. Of a class of devices of which none works it takes one more,
/// which the processor does, and leaves the others to workers that have some.
///
/// # Errors
/// The broker's.
async fn take(
    farm: &Arc<Farm>,
    tally: &Tally,
    (class, mut consumer): (Class, Consumer),
    pause: &mut Duration,
) -> Result<(), BrokerError> {
    let stop = &farm.stop;
    while let Some(delivery) = stop.run_until_cancelled(consumer.next()).await {
        let (delivery, was_served) = (delivery?, farm.keeper.serves(class));
        let _busy = tally.begin(class);
        let handling = farm.clone();
        // A task of its own, so that a panic costs one delivery and not the slot.
        let handled = AbortOnDropHandle::new(tokio::spawn(async move { handle(&handling, delivery).await })).await;
        match handled {
            Ok(Handled::Settled) => {
                tally.note_settled();
                *pause = *PAUSES.start();
            }
            Ok(Handled::GivenBack) => rest(stop, pause).await,
            Ok(Handled::Unsettled(delivery)) => {
                rest(stop, pause).await;
                if !stop.is_cancelled() {
                    postpone(delivery).await;
                }
            }
            Err(error) => {
                tracing::error!(%error, "a delivery was dropped");
                rest(stop, pause).await;
            }
        }
        if !was_served && !farm.keeper.serves(class) {
            return Ok(());
        }
    }
    Ok(())
}

/// A slot that takes tasks, counted where they are those of devices.
struct Open(Class);

impl Open {
    fn new(class: Class) -> Self {
        let open = Self(class);
        open.show(1);
        open
    }

    fn show(&self, more: i64) {
        if self.0.is_hardware() {
            metrics::worker().device_slots.with_label_values(&[self.0.word()]).add(more);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.show(-1);
    }
}

/// Waits a while, the next time twice as long.
async fn rest(stop: &CancellationToken, pause: &mut Duration) {
    let _ = stop.run_until_cancelled(tokio::time::sleep(*pause)).await;
    *pause = (*pause * 2).min(*PAUSES.end());
}

/// Finds out what a source is, in a child and without a broker. Dropping the future kills the child.
///
/// # Errors
/// Why it cannot be told: see [`Code`].
pub async fn probe(source: &SourceSpec, settings: &Settings) -> Result<MediaInfo, Failure> {
    let spawner = spawner()?;
    let guard = Guard::new(CancellationToken::new(), settings.deadline);
    let attempt = async {
        let source = Source::open(source, (&Stores::default(), &settings.reach), Patience::Short).await?;
        let (order, stall, progress) = (&Order::Probe, settings.stall, &mut |_| {});
        Attempt {
            spawner: &spawner,
            command: &settings.child,
            urgency: Urgency::Usual,
            stall,
            order,
            source: &source,
            sink: Sink::None,
            progress,
        }
        .run()
        .await
    };
    match guard.hold(attempt).await? {
        (Done::Probed(info), _) => Ok(*info),
        _ => Err(Failure::new(Code::Internal, "something else came of a probe")),
    }
}

/// Has an encoder prove itself, in a child and without a broker. Dropping the future kills the child.
///
/// # Errors
/// What is wrong with it: [`Code::MissingElement`] when there is none, [`Code::EncoderFailed`] when it does not do what it
/// should, [`Code::ChildStalled`] when nothing is heard of it for 20 s.
pub async fn prove(proof: &Proof, settings: &Settings) -> Result<(), Failure> {
    proof::prove(proof, &spawner()?, &settings.child).await
}
