//! How many workers are wanted: the law by which a farm grows and shrinks.
//!
//! A job is to be done within a *target* from when it was first heard of. For that it needs
//!
//! ```text
//! slots = min(tasks, slot time left / max(target − age, target / 2))
//! ```
//!
//! no more than it has tasks that can be done beside each other. A farm needs the sum over its jobs, rounded up to whole
//! workers, and one while anything is open:
//!
//! ```text
//! needed = max(⌈Σ slots / slots of a worker⌉, 1 if anything is open)
//! ```
//!
//! It is divided by the time that is left, and not by the target: a farm that takes the whole target for what is left by now
//! shrinks with its backlog, and comes to no end. What is late counts as if half of the target was left: it is helped along, and
//! does not ask for the world.
//!
//! From what is needed to what is wanted:
//!
//! * **Up at once**, when what is needed exceeds what is wanted by more than a tenth. Less is not worth a worker, and a load that
//!   wavers around a bound would call for one and send it away again and again.
//! * **Down to the most that was needed within the last five minutes**, so that fewer are wanted only after fewer would have done
//!   for so long. From the last rise to the next fall are five minutes at least: that bounds how often it can turn.
//! * **No further down than holds all the tasks that run now**, so that none is taken from a slot which the others have no slot
//!   for. Who has which task is not known here: whoever takes workers away takes idle ones, or lets them drain.
//! * **To none** by the same rule: when nothing was open for five minutes.
//!
//! Kubernetes' autoscaler, which KEDA feeds, has such a tenth and such five minutes of its own (`tolerance`,
//! `stabilizationWindowSeconds`). They are here too, for it knows neither tasks nor deadlines, and who starts machines by other
//! means need only do what the number says.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use farm::media::{MediaInfo, TrackId};
use farm::plan::{Plan, VideoPlan};
use farm::rate::SECOND_NS;
use farm::task::{Marker, TaskId};
use farm::{Class, Rate};

use crate::pace::frame_pixels;

/// Most workers that are ever wanted.
pub const WORKERS_MAX: u32 = 10_000;

/// How long fewer would have to do before fewer are wanted, in ns: what Kubernetes' autoscaler takes.
pub const QUIET_NS: u64 = 300 * SECOND_NS;

/// By how many thousandths the slots that are needed may exceed those that are wanted: what Kubernetes' autoscaler takes.
const TOLERANCE_MILLI: u64 = 100;

/// What a task takes at least, in ns: a process, its plugins, some requests to storage.
const TASK_NS: u64 = SECOND_NS;

/// Slot time that a piece of the picture takes, in ns, as [`crate::pace`] has them cut.
const PIECE_NS: u64 = 45 * SECOND_NS;

/// Sound takes so much less than it lasts: an hour of it took 48 s (README has figures).
const SOUND_DIVISOR: u64 = 75;

/// Time that a slot is taken for by a pixel of work, in ps.
///
/// The planner's [`crate::pace::Pace`] is the processor's time, and known of no device. For how many workers are needed it
/// counts how long a slot is taken, waits for storage and devices included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price(u64);

impl Price {
    /// What is believed of a measure: as of the planner's pace, a twentieth to fifty times what is usual.
    const BELIEVED: RangeInclusive<u64> = 500..=500_000;

    /// What it is until a piece was done. On the processor what the planner takes; beside a device decoding and scaling are left,
    /// about a quarter of it.
    pub fn usual(class: Class) -> Self {
        if class.is_cpu() { Self(10_000) } else { Self(2_500) }
    }

    /// The price when pieces of so many pixels of work took so long; it is approached by quarters.
    #[must_use]
    pub fn measured(self, wall_ms: u64, pixels: u128) -> Self {
        let Some(found) = (u128::from(wall_ms) * 1_000_000_000).checked_div(pixels) else { return self };
        let found = u64::try_from(found).unwrap_or(u64::MAX).clamp(*Self::BELIEVED.start(), *Self::BELIEVED.end());
        Self((3 * self.0 + found) / 4)
    }

    /// Slot time of so many pixels of work, in ns.
    fn of(self, pixels: u128) -> u64 {
        u64::try_from(pixels.saturating_mul(self.0.into()) / 1000).unwrap_or(u64::MAX)
    }
}

/// How much work the tasks of a plan are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// Pixels of work in a second of media: of the rung that is made first, of the others, and of those that no device makes.
    first: u128,
    others: u128,
    on_processor: u128,
    sounds: u64,
    duration_ns: u64,
}

impl Costs {
    /// What a plan's tasks cost, which was made for this source.
    pub fn of(plan: &Plan, info: &MediaInfo) -> Self {
        let track = |id: TrackId| info.video.iter().find(|track| track.track == id);
        let pixels = |video: &VideoPlan| {
            let frame = track(video.track).map_or(0, |track| frame_pixels(&video.rungs, track));
            in_second(frame, video.rate)
        };
        // For still pictures alone all of the picture is decoded at most.
        let alone = plan.stills.as_ref().filter(|_| !plan.has_media()).and_then(|stills| track(stills.track));
        let alone = alone.map_or(0, |track| in_second(frame_pixels(&[], track), track.timing.rate));
        let on_processor = plan.passes().filter(|pass| pass.video.class().is_cpu()).map(|pass| pixels(pass.video));
        Self {
            first: plan.first.as_ref().map_or(0, pixels),
            others: plan.video.as_ref().map_or(alone, pixels),
            on_processor: alone + on_processor.sum::<u128>(),
            sounds: u64::try_from(plan.audio.len()).unwrap_or(u64::MAX),
            duration_ns: plan.duration_ns,
        }
    }

    /// Slot time that a task takes, in ns, which has so much media to go through, in ns.
    pub fn slot_ns(&self, price: Price, task: &TaskId, media_ns: u64) -> u64 {
        let sound_ns = if matches!(task, TaskId::Audio(_)) { media_ns / SOUND_DIVISOR } else { 0 };
        price.of(self.pixels(task, media_ns)).saturating_add(sound_ns).max(TASK_NS)
    }

    /// Slot time that all of it takes from workers without devices, in ns.
    pub fn whole_ns(&self, price: Price) -> u64 {
        let picture_ns = price.of(in_media(self.on_processor, self.duration_ns));
        picture_ns.saturating_add(self.sounds.saturating_mul(self.duration_ns / SOUND_DIVISOR)).max(TASK_NS)
    }

    /// Pixels of work in so much of a task's media.
    fn pixels(&self, task: &TaskId, media_ns: u64) -> u128 {
        let per_second = match task {
            TaskId::First(_) => self.first,
            // Still pictures and text beside others are told as the part of the picture that is as much work.
            TaskId::Video(_) | TaskId::Stills | TaskId::Text => self.others,
            TaskId::Probe | TaskId::ProbeOther(_) | TaskId::Audio(_) | TaskId::Pack(_) | TaskId::Mp4(_) => 0,
        };
        in_media(per_second, media_ns)
    }
}

/// So many pixels for each frame, in a second.
fn in_second(frame_pixels: u64, rate: Rate) -> u128 {
    u128::from(frame_pixels) * u128::from(rate.num()) / u128::from(rate.den())
}

/// So much for each second, in so much media.
fn in_media(per_second: u128, media_ns: u64) -> u128 {
    per_second.saturating_mul(media_ns.into()) / u128::from(SECOND_NS)
}

/// How long the pieces of a picture took that are done, in ms, and how many pixels of work they were, by who made them.
pub fn spent(plan: &Plan, costs: &Costs, markers: &BTreeMap<TaskId, Marker>) -> BTreeMap<Class, (u64, u128)> {
    let mut spent = BTreeMap::<Class, (u64, u128)>::new();
    for pass in plan.passes() {
        for (task, chunk) in pass.pieces() {
            let Some(marker) = markers.get(&task) else { continue };
            let class = if marker.device.is_some() { pass.video.class() } else { Class::Cpu };
            let media_ns = pass.video.rate.start_ns(chunk.end.saturating_sub(chunk.start));
            let (wall_ms, pixels) = spent.entry(class).or_default();
            *wall_ms = wall_ms.saturating_add(marker.cost.wall_ms);
            *pixels = pixels.saturating_add(costs.pixels(&task, media_ns));
        }
    }
    spent
}

/// Slot time that a job will take of which nothing is known yet, in ns: by those that were planned before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected(u64);

impl Expected {
    /// Until a job was planned: one piece of work.
    pub const USUAL: Self = Self(PIECE_NS);

    /// What is expected when a job was planned that takes so long; it is approached by quarters.
    #[must_use]
    pub fn planned(self, whole_ns: u64) -> Self {
        Self(self.0 / 4 * 3 + whole_ns / 4)
    }

    /// What such a job needs, of whose tasks so many run: as many slots as it will have pieces. They are there by the time that
    /// workers are.
    pub fn need(self, running: u64) -> Need {
        Need { work_ns: self.0, tasks: self.0.div_ceil(PIECE_NS).max(1), running }
    }
}

/// What workers are to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aim {
    /// How long a job is to take from when it was first heard of, in ns.
    pub target_ns: u64,
    /// Tasks that a worker does at a time. 0 is taken as 1.
    pub slots: u32,
}

/// What a job needs of workers of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Slot time that is left, in ns.
    pub work_ns: u64,
    /// Tasks that can be done beside each other, those that run among them.
    pub tasks: u64,
    /// Tasks that workers are at.
    pub running: u64,
}

impl Need {
    /// Takes in a task that needs a slot for so long, in ns.
    pub fn add(&mut self, slot_ns: u64, is_running: bool) {
        self.work_ns = self.work_ns.saturating_add(slot_ns);
        self.tasks += 1;
        self.running += u64::from(is_running);
    }

    /// Thousandths of slots by which the work is done in time.
    fn slots_milli(&self, age_ns: u64, target_ns: u64) -> u64 {
        let left_ns = target_ns.saturating_sub(age_ns).max(target_ns / 2).max(1);
        let slots_milli = u128::from(self.work_ns) * 1000 / u128::from(left_ns);
        u64::try_from(slots_milli).unwrap_or(u64::MAX).min(self.tasks.saturating_mul(1000))
    }
}

/// What all jobs need of workers of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    slots_milli: u64,
    running: u64,
    is_open: bool,
}

impl Load {
    /// Takes in a job that was first heard of so long ago, in ns.
    pub fn add(&mut self, need: Need, age_ns: u64, aim: Aim) {
        self.slots_milli = self.slots_milli.saturating_add(need.slots_milli(age_ns, aim.target_ns));
        self.running = self.running.saturating_add(need.running);
        self.is_open |= need.tasks > 0;
    }

    /// Workers that are needed.
    fn needed(&self, aim: Aim) -> u32 {
        let workers = self.slots_milli.div_ceil(1000 * u64::from(aim.slots.max(1)));
        bounded(workers.max(u64::from(self.is_open)))
    }

    /// Workers that have room for what runs.
    fn holding(&self, aim: Aim) -> u32 {
        bounded(self.running.div_ceil(aim.slots.max(1).into()))
    }
}

fn bounded(workers: u64) -> u32 {
    u32::try_from(workers).unwrap_or(u32::MAX).min(WORKERS_MAX)
}

/// How many workers of a class are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    now: u32,
    /// When, in ns, and how many were needed within the last [`QUIET_NS`]. What was followed by as many or more is left out, so the
    /// first is the most.
    lately: VecDeque<(u64, u32)>,
}

impl Wanted {
    /// How many are wanted at a time, in ns from any beginning, that is no earlier than the last one.
    pub fn follow(&mut self, load: &Load, aim: Aim, now_ns: u64) -> u32 {
        let needed = load.needed(aim);
        while self.lately.back().is_some_and(|(_, before)| *before <= needed) {
            self.lately.pop_back();
        }
        self.lately.push_back((now_ns, needed));
        while self.lately.front().is_some_and(|(at_ns, _)| at_ns.saturating_add(QUIET_NS) < now_ns) {
            self.lately.pop_front();
        }
        if needed > self.now {
            if !self.will_do(load, aim) {
                self.now = needed;
            }
        } else {
            let most = self.lately.front().map_or(needed, |(_, most)| *most);
            self.now = self.now.min(most.max(load.holding(aim)));
        }
        self.now
    }

    /// Whether what is wanted already is near enough to what is needed.
    fn will_do(&self, load: &Load, aim: Aim) -> bool {
        let slots = u64::from(self.now) * u64::from(aim.slots.max(1));
        slots > 0 && load.slots_milli <= slots * (1000 + TOLERANCE_MILLI)
    }
}

#[cfg(test)]
mod tests;
