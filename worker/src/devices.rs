//! The devices of this worker: found at its start, lent to tasks, proven while it runs, and told of to the farm. What is decided
//! about them is in [`crate::rack`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use farm::broker::Broker;
use farm::encoder::{Device, Extent, Offer, Offered};
use farm::job::VideoCodec;
use farm::presence::Presence;
use farm::task::{Token, Word};
use farm::{Class, Code, Failure, metrics};
use pipelines::OnDevice;
use pipelines::encoders::{CANDIDATES, Proof, devices_of, name_of};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::rack::{Ending, Lending, Loan, Need, News, Proven, Rack, Tally, Tried};

/// Time between two words on what is offered when nothing changes: who begins to listen learns of it.
const OFFER_PAUSE: Duration = Duration::from_secs(5);
/// Longest wait of tasks for the processor until it is known what is offered: plans that are made before know of no device.
const FIRST_PROOFS_WAIT: Duration = Duration::from_secs(60);
/// Longest wait of a task for a device: the processor is there meanwhile.
pub(crate) const LEND_WAIT: Duration = Duration::from_secs(30);

/// Longest name of a device that is told, in characters: of up to four bytes each.
const DEVICE_CHARS_MAX: usize = Presence::TEXT_BYTES_MAX / 4;

/// Width and height of the pictures that a device is tried with: the largest first, where that fails a usual one, and in any
/// case the smallest that is ever asked of one.
const LARGE: (u32, u32) = (3840, 2160);
const USUAL: (u32, u32) = (1920, 1080);
const SMALL: (u32, u32) = (256, 144);

/// Where devices are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Devices {
    /// In the file system, as drivers make their nodes.
    #[default]
    Found,
    /// Just these.
    These(Vec<Device>),
}

impl Devices {
    /// The devices. Looks for nodes, and asks nothing of a driver.
    pub(crate) fn list(&self) -> Vec<Device> {
        let found = |class: Class| {
            devices_of(class).unwrap_or_else(|failure| {
                tracing::debug!(%class, %failure, "no device");
                Vec::new()
            })
        };
        match self {
            Self::Found => Class::ALL.into_iter().filter(|class| class.is_hardware()).flat_map(found).collect(),
            Self::These(devices) => devices.clone(),
        }
    }
}

/// Keeps the devices of a worker.
pub(crate) struct Keeper {
    /// The worker, to those who hear what it offers.
    name: Token,
    rack: Mutex<Rack>,
    /// Told of whatever others may wait for.
    changed: watch::Sender<()>,
    /// When it began.
    since: Instant,
    /// Whether it was said that the first proofs take too long.
    is_late: AtomicBool,
}

/// Sessions of a device that are a task's own until this is dropped.
pub(crate) struct Lease {
    keeper: Arc<Keeper>,
    loan: Loan,
    ending: Ending,
}

impl Keeper {
    /// Of these devices, of which nothing is known.
    pub(crate) fn new(devices: Vec<Device>) -> Self {
        let since = Instant::now();
        let rack = Mutex::new(Rack::new(devices, since));
        Self { name: Token::random(), rack, changed: watch::Sender::new(()), since, is_late: AtomicBool::new(false) }
    }

    /// What this worker is called by those who hear of it.
    pub(crate) fn name(&self) -> &Token {
        &self.name
    }

    /// The devices that work, in words.
    pub(crate) fn working(&self) -> Vec<String> {
        let rack = self.rack();
        let shown = rack.working().map(|device| {
            let text = format!("{} {}", device.class, device.node.display());
            text.chars().take(DEVICE_CHARS_MAX).collect::<String>()
        });
        shown.take(Presence::DEVICES_MAX).collect()
    }

    /// Changes whenever something does in how the devices stand.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits until tasks of a class may be taken: for those on hardware until a device of it works, for others until all devices
    /// were tried, or for a while.
    pub(crate) async fn ready(&self, class: Class) {
        if class.is_hardware() {
            return self.until(|rack| rack.serves(class).then_some(())).await;
        }
        let tried = self.until(|rack| rack.is_tried().then_some(()));
        let is_late = timeout_at(self.since + FIRST_PROOFS_WAIT, tried).await.is_err();
        if is_late && !self.is_late.swap(true, Ordering::Relaxed) {
            tracing::warn!("devices are not tried yet: tasks are taken all the same");
        }
    }

    /// Whether tasks of a class may be taken now.
    pub(crate) fn serves(&self, class: Class) -> bool {
        class.is_cpu() || self.rack().serves(class)
    }

    /// Lends a device of a class for rungs that need this; waits up to [`LEND_WAIT`] while all that would do are in use. None
    /// when there is none that would do, or none in time.
    pub(crate) async fn lend(self: &Arc<Self>, class: Class, needs: &[Need]) -> Option<Lease> {
        let lent = self.until(|rack| match rack.lend(class, needs) {
            Lending::Now(loan) => Some(Some(loan)),
            Lending::Later => None,
            Lending::Never => Some(None),
        });
        let loan = timeout(LEND_WAIT, lent).await.ok().flatten()?;
        Some(Lease { keeper: Arc::clone(self), loan, ending: Ending::Neither })
    }

    /// Has devices proven when they are due, and tells what they offer, until told to stop; then, that nothing is offered.
    pub(crate) async fn keep<F>(&self, broker: &Broker, stop: &CancellationToken, prove: impl Fn(Proof) -> F)
    where
        F: Future<Output = Result<(), Failure>>,
    {
        tokio::join!(self.tell(broker, stop), stop.run_until_cancelled(self.prove_all(&prove)));
    }

    async fn tell(&self, broker: &Broker, stop: &CancellationToken) {
        let tell = |encoders| broker.tell(Word::Offer(Offer { worker: self.name.clone(), encoders }));
        let mut told: Vec<Offered> = Vec::new();
        while !stop.is_cancelled() {
            let offered = self.rack().offered();
            // That there is nothing is said once.
            if !offered.is_empty() || !told.is_empty() {
                tell(offered.clone());
            }
            told = offered;
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.until(|rack| (rack.offered() != told).then_some(())) => {}
                () = sleep(OFFER_PAUSE) => {}
            }
        }
        tell(Vec::new());
    }

    async fn prove_all<F: Future<Output = Result<(), Failure>>>(&self, prove: &impl Fn(Proof) -> F) {
        let mut changes = self.changed.subscribe();
        loop {
            let next = self.rack().next_proof();
            match next {
                Some((due, place)) if due <= Instant::now() => self.prove(place, prove).await,
                Some((due, _)) => tokio::select! {
                    () = sleep_until(due) => {}
                    _ = changes.changed() => {}
                },
                None => {
                    // The sender is ours, and does not end before.
                    let _ = changes.changed().await;
                }
            }
        }
    }

    /// Has the device at this place prove what it can do.
    async fn prove<F: Future<Output = Result<(), Failure>>>(&self, place: usize, prove: &impl Fn(Proof) -> F) {
        let Some(device) = self.change(|rack| rack.begin_proof(place)) else { return };
        let is_looked_for = |codec: &VideoCodec| CANDIDATES.iter().any(|c| c.class == device.class && c.codec == name_of(*codec));
        let (mut proven, mut works, mut fails, mut hangs) = (Vec::new(), Vec::new(), Vec::new(), false);
        for codec in VideoCodec::ALL.into_iter().filter(is_looked_for) {
            match largest(prove, &device, codec).await {
                Ok((width, height)) => {
                    proven.push(Proven { codec, largest: Extent::of(width, height) });
                    works.push(format!("{} up to {width}x{height}", name_of(codec)));
                }
                Err(failure) => {
                    tracing::debug!(%device, codec = name_of(codec), code = %failure.code, %failure, "an encoder does not work");
                    fails.push(format!("{}: {failure}", name_of(codec)));
                    if is_hang(failure.code) {
                        (hangs, works) = (true, Vec::new());
                        break;
                    }
                }
            }
        }
        let (works, fails) = (works.join(", "), fails.join("; "));
        let tried = if hangs { Tried::Hangs } else { Tried::Shows(proven) };
        match self.change(|rack| rack.end_proof(place, tried, Instant::now())) {
            News::None => {}
            News::Changed => tracing::info!(%device, works, fails, "a device was tried"),
            News::LeftAlone => {
                tracing::warn!(%device, fails, "its driver hangs every time: a device is left alone until this worker ends");
            }
        }
    }

    /// Waits until something is found in how the devices stand.
    async fn until<T>(&self, mut find: impl FnMut(&mut Rack) -> Option<T>) -> T {
        let mut changes = self.changed.subscribe();
        loop {
            let found = {
                let mut rack = self.rack();
                find(&mut rack).inspect(|_| show(&rack))
            };
            if let Some(found) = found {
                return found;
            }
            // The sender is ours, and does not end before.
            let _ = changes.changed().await;
        }
    }

    /// Changes how the devices stand, and has all look who wait for something.
    fn change<T>(&self, action: impl FnOnce(&mut Rack) -> T) -> T {
        let done = {
            let mut rack = self.rack();
            let done = action(&mut rack);
            show(&rack);
            done
        };
        self.changed.send_replace(());
        done
    }

    fn rack(&self) -> MutexGuard<'_, Rack> {
        self.rack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows in numbers how the devices stand.
fn show(rack: &Rack) {
    let series = metrics::worker();
    for class in Class::ALL.into_iter().filter(|class| class.is_hardware()) {
        let Tally { works, aside, sessions } = rack.tally(class);
        series.devices.with_label_values(&[class.word(), "works"]).set(works);
        series.devices.with_label_values(&[class.word(), "aside"]).set(aside);
        series.device_sessions.with_label_values(&[class.word()]).set(sessions);
    }
}

/// The largest picture that a device encodes, if a small one passes as well.
async fn largest<F>(prove: &impl Fn(Proof) -> F, device: &Device, codec: VideoCodec) -> Result<(u32, u32), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let with = |(width, height)| prove(Proof { codec: name_of(codec).to_owned(), device: Some(device.clone()), width, height });
    let largest = match with(LARGE).await {
        Ok(()) => LARGE,
        Err(failure) if may_be_too_large(failure.code) => with(USUAL).await.map(|()| USUAL)?,
        Err(failure) => return Err(failure),
    };
    with(SMALL).await.map(|()| largest)
}

/// Whether a proof that failed so may pass with a smaller picture: not where there is no encoder.
fn may_be_too_large(code: Code) -> bool {
    matches!(code, Code::EncoderFailed | Code::ChildCrashed)
}

/// Whether a proof that failed so never came to its end. Whoever hangs at one thing hangs at others: nothing more is tried, as
/// every child that cannot be ended stays.
fn is_hang(code: Code) -> bool {
    matches!(code, Code::ChildStalled | Code::DeadlineExceeded | Code::Internal)
}

impl Lease {
    /// What is lent.
    pub(crate) fn on(&self) -> &OnDevice {
        &self.loan.on
    }

    /// Gives it back, and says how the task ended.
    pub(crate) fn end(mut self, ending: Ending) {
        self.ending = ending;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let OnDevice { device, sessions } = &self.loan.on;
        if let Ending::Failed { .. } = self.ending {
            metrics::worker().device_failures.with_label_values(&[device.class.word()]).inc();
        }
        if self.keeper.change(|rack| rack.take_back(&self.loan, &self.ending, Instant::now())) {
            tracing::warn!(%device, sessions, "a device failed: it is put aside until it proves itself again");
        }
    }
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
