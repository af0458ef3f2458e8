//! How the devices of a worker stand: what each has proven, what of it is lent, when it is to prove itself again, and what of all
//! that is offered. Pure.
//!
//! A device fails for reasons of its own, or for what it was given: a source may be made so that no device bears it. So a failure
//! is held against a device as long as its proof takes, and for longer only where tasks of several jobs failed.

use std::cmp::Reverse;
use std::time::Duration;

use farm::Class;
use farm::encoder::{Device, Extent, Offered};
use farm::job::{JobId, VideoCodec};
use pipelines::OnDevice;
use tokio::time::Instant;

/// How long a device is believed that has nothing to do, and how long a limit of its sessions.
const BELIEVED: Duration = Duration::from_secs(600);
/// From the second failure in a row to the proof, each time twice as long. After the first it is tried at once.
const PAUSE_SHORTEST: Duration = Duration::from_secs(10);
/// Longest pause before a proof.
const PAUSE_LONGEST: Duration = Duration::from_secs(600);
/// Proofs in a row at which a driver may hang: each may leave a process behind that cannot be ended.
const HANGS_MAX: u32 = 5;

/// What a device has shown that it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proven {
    /// In this codec.
    pub(crate) codec: VideoCodec,
    /// The largest picture that was tried.
    pub(crate) largest: Extent,
}

/// What one rung asks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// This codec.
    pub(crate) codec: VideoCodec,
    /// Pictures that are so large.
    pub(crate) extent: Extent,
}

/// What came of a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// It can do this; nothing where nothing works.
    Shows(Vec<Proven>),
    /// It never came to its end.
    Hangs,
}

/// What is to be said after a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing: all is as it was.
    None,
    /// The device stands in another way than before.
    Changed,
    /// It is tried no more.
    LeftAlone,
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing yet.
    New,
    /// It was tried, and has never worked: not every camera or card encodes.
    Unfit,
    /// It works, as far as this goes.
    Works(Vec<Proven>),
    /// It has worked, failed, and proven nothing since.
    Aside,
    /// Its driver hung too often: it is left alone until the worker starts again.
    LeftAlone,
}

/// To how many tasks a device is lent at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// To as many as it has room for.
    Full,
    /// To one: it was put aside, and nothing was done on it since.
    One {
        /// Whether it is lent to that one.
        is_lent: bool,
    },
}

/// Whose tasks a device failed at since it last did what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Blame {
    /// Nobody's.
    None,
    /// Those of this job alone: its source may be to blame.
    One(JobId),
    /// Those of several: it is the device.
    Several,
}

/// How many encoders a device bears at a time. It is found by too many, and believed for so long: then one more is tried when all
/// are in use and do well. So a device that really has a limit fails for it once in [`BELIEVED`] at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    sessions: u32,
    /// When it was found, or last raised.
    since: Instant,
}

/// A device and all that is to be remembered of it.
#[derive(Debug)]
struct Place {
    device: Device,
    standing: Standing,
    trust: Trust,
    blame: Blame,
    /// Failures in a row, of tasks and proofs.
    failures: u32,
    /// Proofs in a row that hung.
    hangs: u32,
    /// Proofs that it was asked for so far.
    proofs: u32,
    /// Whether one is under way.
    is_proving: bool,
    /// Encoders that are open on it.
    open: u32,
    /// How many it bears at a time, as far as is known.
    limit: Option<Limit>,
    /// From when on it is to prove itself.
    due: Instant,
    /// Whether it could do more before its last proof. Then nothing that is done on it puts the next one off.
    is_less: bool,
}

/// The devices of a worker.
#[derive(Debug)]
pub(crate) struct Rack {
    places: Vec<Place>,
}

/// What a task has of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loan {
    place: usize,
    /// Proofs that the device had been asked for.
    proofs: u32,
    /// The device, with so many sessions.
    pub(crate) on: OnDevice,
}

/// What comes of asking for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lending {
    /// This.
    Now(Loan),
    /// All that would do are in use.
    Later,
    /// There is none that would do.
    Never,
}

/// How a task ended that had a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was done.
    Done,
    /// The device failed.
    Failed {
        /// At a task of this job.
        job: JobId,
        /// Whether an encoder failed before anything came of it: there may have been too many.
        may_be_full: bool,
    },
    /// Otherwise, for which the device can do nothing.
    Neither,
}

/// How many devices stand in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Those that work.
    pub(crate) works: i64,
    /// Those that are put aside, or left alone.
    pub(crate) aside: i64,
    /// Encoders that are open on all of them.
    pub(crate) sessions: i64,
}

impl Rack {
    /// These devices, of which nothing is known.
    pub(crate) fn new(devices: Vec<Device>, now: Instant) -> Self {
        Self { places: devices.into_iter().map(|device| Place::new(device, now)).collect() }
    }

    /// Whether each was tried, whatever came of it.
    pub(crate) fn is_tried(&self) -> bool {
        self.places.iter().all(|place| place.standing != Standing::New)
    }

    /// Whether a device of this class works.
    pub(crate) fn serves(&self, class: Class) -> bool {
        self.places.iter().any(|place| place.device.class == class && matches!(place.standing, Standing::Works(_)))
    }

    /// The devices that work.
    pub(crate) fn working(&self) -> impl Iterator<Item = &Device> {
        self.places.iter().filter(|place| matches!(place.standing, Standing::Works(_))).map(|place| &place.device)
    }

    /// Lends a device of a class for rungs that need this, with a session for each, or fewer where it has no room for more: of
    /// those that would do, one with the most room, and of these the one with the least to do.
    pub(crate) fn lend(&mut self, class: Class, needs: &[Need]) -> Lending {
        let wanted = u32::try_from(needs.len()).unwrap_or(u32::MAX);
        let fit = self.places.iter_mut().enumerate().filter(|(_, place)| place.device.class == class && place.bears(needs));
        match fit.min_by_key(|(_, place)| (Reverse(place.free().min(wanted)), place.open)) {
            None => Lending::Never,
            Some((_, place)) if place.free() == 0 => Lending::Later,
            Some((number, place)) => {
                let sessions = place.free().min(wanted);
                place.open = place.open.saturating_add(sessions);
                if let Trust::One { is_lent } = &mut place.trust {
                    *is_lent = true;
                }
                let on = OnDevice { device: place.device.clone(), sessions };
                Lending::Now(Loan { place: number, proofs: place.proofs, on })
            }
        }
    }

    /// Takes back what was lent. Whether the device is put aside for how the task ended.
    pub(crate) fn take_back(&mut self, loan: &Loan, ending: &Ending, now: Instant) -> bool {
        let Some(place) = self.places.get_mut(loan.place) else { return false };
        let open = place.open;
        place.open = open.saturating_sub(loan.on.sessions);
        // One fault may be the end of several tasks: what was lent before a proof says nothing against it.
        if loan.proofs != place.proofs {
            return false;
        }
        if let Trust::One { is_lent } = &mut place.trust {
            *is_lent = false;
        }
        match (ending, &place.standing) {
            (Ending::Done, Standing::Works(_)) => place.note_done(open, now),
            (Ending::Failed { job, may_be_full }, Standing::Works(_)) => {
                if *may_be_full {
                    place.lower(open, now);
                }
                place.note_failure(job, now);
                return true;
            }
            (Ending::Done | Ending::Failed { .. } | Ending::Neither, _) => {}
        }
        false
    }

    /// Which device is the next to prove itself, and from when on; none while all that could have to wait for tasks to end.
    pub(crate) fn next_proof(&self) -> Option<(Instant, usize)> {
        let places = self.places.iter().enumerate().filter(|(_, place)| place.may_prove());
        places.map(|(number, place)| (place.due, number)).min()
    }

    /// The device at this place, which takes one session for its proof.
    pub(crate) fn begin_proof(&mut self, place: usize) -> Option<Device> {
        let place = self.places.get_mut(place)?;
        place.open = place.open.saturating_add(1);
        (place.is_proving, place.proofs) = (true, place.proofs.wrapping_add(1));
        Some(place.device.clone())
    }

    /// Takes note of what came of a proof, and says what of that is news.
    pub(crate) fn end_proof(&mut self, place: usize, tried: Tried, now: Instant) -> News {
        let Some(place) = self.places.get_mut(place) else { return News::None };
        (place.is_proving, place.open) = (false, place.open.saturating_sub(1));
        let proven = match tried {
            Tried::Shows(proven) => {
                place.hangs = 0;
                proven
            }
            Tried::Hangs => {
                place.hangs = place.hangs.saturating_add(1);
                Vec::new()
            }
        };
        let before = place.standing.clone();
        if place.hangs >= HANGS_MAX {
            place.standing = Standing::LeftAlone;
        } else if proven.is_empty() {
            place.fail_proof(now);
        } else {
            place.pass_proof(proven, now);
        }
        match &place.standing {
            standing if *standing == before => News::None,
            Standing::LeftAlone => News::LeftAlone,
            _ => News::Changed,
        }
    }

    /// What is offered: of each class, what every device of it can do that works. A task needs one that bears all of it, and may
    /// be given any.
    pub(crate) fn offered(&self) -> Vec<Offered> {
        let of_class = |class: Class| {
            let places = self.places.iter().filter(move |place| place.device.class == class);
            places.filter_map(Place::offered)
        };
        let common = |class| {
            of_class(class).reduce(|common, own| {
                let both = |one: Offered| own.iter().find(|other| other.codec == one.codec).map(|other| least(one, *other));
                common.into_iter().filter_map(both).collect()
            })
        };
        Class::ALL.into_iter().filter_map(common).flatten().collect()
    }

    /// How the devices of a class stand.
    pub(crate) fn tally(&self, class: Class) -> Tally {
        let mut tally = Tally::default();
        for place in self.places.iter().filter(|place| place.device.class == class) {
            match place.standing {
                Standing::New | Standing::Unfit => {}
                Standing::Works(_) => tally.works += 1,
                Standing::Aside | Standing::LeftAlone => tally.aside += 1,
            }
            tally.sessions += i64::from(place.open);
        }
        tally
    }
}

impl Place {
    fn new(device: Device, now: Instant) -> Self {
        Self {
            device,
            standing: Standing::New,
            trust: Trust::Full,
            blame: Blame::None,
            failures: 0,
            hangs: 0,
            proofs: 0,
            is_proving: false,
            open: 0,
            limit: None,
            due: now,
            is_less: false,
        }
    }

    /// How many more encoders may be opened on it.
    fn room(&self) -> u32 {
        self.limit.map_or(u32::MAX, |limit| limit.sessions.saturating_sub(self.open))
    }

    /// How many of these a task may have. None is to make a proof one too many.
    fn free(&self) -> u32 {
        let is_kept = self.is_proving && self.limit.is_some();
        if is_kept || self.trust == (Trust::One { is_lent: true }) { 0 } else { self.room() }
    }

    fn bears(&self, needs: &[Need]) -> bool {
        let Standing::Works(proven) = &self.standing else { return false };
        needs.iter().all(|need| proven.iter().any(|own| own.codec == need.codec && need.extent.fits(own.largest)))
    }

    /// Whether it can be asked for a proof: one that works proves itself by what it does.
    fn may_prove(&self) -> bool {
        match self.standing {
            Standing::Works(_) => self.open == 0,
            Standing::New | Standing::Unfit | Standing::Aside => self.room() > 0,
            Standing::LeftAlone => false,
        }
    }

    /// What it offers, if it works.
    fn offered(&self) -> Option<Vec<Offered>> {
        let Standing::Works(proven) = &self.standing else { return None };
        let (class, sessions_max) = (self.device.class, self.limit.map(|limit| limit.sessions));
        let offered = |own: &Proven| Offered { class, codec: own.codec, largest: own.largest, sessions_max };
        Some(proven.iter().map(offered).collect())
    }

    /// A task was done, while so many encoders were open.
    fn note_done(&mut self, open: u32, now: Instant) {
        (self.failures, self.blame, self.trust) = (0, Blame::None, Trust::Full);
        if !self.is_less {
            self.due = now + BELIEVED;
        }
        if let Some(limit) = &mut self.limit
            && open >= limit.sessions
            && now >= limit.since + BELIEVED
        {
            *limit = Limit { sessions: limit.sessions.saturating_add(1), since: now };
        }
    }

    /// So many encoders were too many.
    fn lower(&mut self, open: u32, now: Instant) {
        let fewer = open.saturating_sub(1);
        if fewer > 0 {
            let sessions = self.limit.map_or(fewer, |limit| limit.sessions.min(fewer));
            self.limit = Some(Limit { sessions, since: now });
        }
    }

    /// It failed at a task of this job.
    fn note_failure(&mut self, job: &JobId, now: Instant) {
        self.blame = match &self.blame {
            Blame::None => Blame::One(job.clone()),
            Blame::One(other) if other == job => Blame::One(job.clone()),
            Blame::One(_) | Blame::Several => Blame::Several,
        };
        self.failures = self.failures.saturating_add(1);
        self.put_aside(now);
    }

    fn put_aside(&mut self, now: Instant) {
        (self.standing, self.trust) = (Standing::Aside, Trust::One { is_lent: false });
        self.due = now + pause(self.failures);
    }

    fn fail_proof(&mut self, now: Instant) {
        // This was the try at once.
        self.failures = self.failures.saturating_add(1).max(2);
        match self.standing {
            Standing::New | Standing::Unfit => (self.standing, self.due) = (Standing::Unfit, now + pause(self.failures)),
            Standing::Works(_) | Standing::Aside | Standing::LeftAlone => self.put_aside(now),
        }
    }

    fn pass_proof(&mut self, proven: Vec<Proven>, now: Instant) {
        // What one job alone saw fail may be its own fault. Whose it was is remembered until something is done.
        if self.blame != Blame::Several {
            self.failures = 0;
        }
        let is_gone = |one: &Proven| proven.iter().all(|own| own.codec != one.codec);
        self.is_less = matches!(&self.standing, Standing::Works(before) if before.iter().any(is_gone));
        self.due = now + if self.is_less { PAUSE_SHORTEST } else { BELIEVED };
        self.standing = Standing::Works(proven);
    }
}

/// What both can do.
fn least(one: Offered, other: Offered) -> Offered {
    let sessions_max = match (one.sessions_max, other.sessions_max) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (known, unknown) => known.or(unknown),
    };
    Offered { largest: one.largest.least(other.largest), sessions_max, ..one }
}

/// How long a device is left alone after so many failures in a row.
fn pause(failures: u32) -> Duration {
    match failures.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => PAUSE_SHORTEST.saturating_mul(1 << doublings.min(16)).min(PAUSE_LONGEST),
    }
}

#[cfg(test)]
#[path = "rack_tests.rs"]
mod tests;
