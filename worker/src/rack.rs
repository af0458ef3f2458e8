//! How the devices of a worker stand: what each has proven, what of it is lent, when it is to prove itself again, and what of all
//! that is offered. Pure.

use std::cmp::Reverse;
use std::time::Duration;

use farm::Class;
use farm::encoder::{Device, Offered};
use farm::job::VideoCodec;
use pipelines::OnDevice;
use tokio::time::Instant;

/// How long a device is believed that has nothing to do.
const BELIEVED: Duration = Duration::from_secs(600);
/// From the second failure in a row to the proof, each time twice as long. After the first it is tried at once.
const PAUSE_SECOND: Duration = Duration::from_secs(10);
/// Longest pause before a proof.
const PAUSE_LONGEST: Duration = Duration::from_secs(600);

/// What a device has shown that it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proven {
    /// In this codec.
    pub(crate) codec: VideoCodec,
    /// Pixels of the largest picture that was tried.
    pub(crate) pixels_max: u32,
}

/// What one rung asks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// This codec.
    pub(crate) codec: VideoCodec,
    /// Pictures of so many pixels.
    pub(crate) pixels: u32,
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
}

/// A device and all that is to be remembered of it.
#[derive(Debug)]
struct Place {
    device: Device,
    standing: Standing,
    /// Failures since it last did what it was asked for.
    failures: u32,
    /// Encoders that are open on it.
    open: u32,
    /// How many it bears at a time, as far as is known.
    sessions_max: Option<u32>,
    /// From when on it is to prove itself.
    due: Instant,
}

/// The devices of a worker.
#[derive(Debug)]
pub(crate) struct Rack {
    places: Vec<Place>,
}

/// What comes of asking for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lending {
    /// The one at this place, with so many sessions.
    Now(usize, OnDevice),
    /// All that would do are in use.
    Later,
    /// There is none that would do.
    Never,
}

/// How a task ended that had a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was done.
    Done,
    /// The device failed.
    Failed {
        /// Whether something had come of it before.
        has_begun: bool,
    },
    /// Otherwise, for which the device can do nothing.
    Neither,
}

/// How many devices stand in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Those that work.
    pub(crate) works: i64,
    /// Those that are put aside.
    pub(crate) aside: i64,
    /// Encoders that are open on all of them.
    pub(crate) sessions: i64,
}

impl Rack {
    /// These devices, of which nothing is known.
    pub(crate) fn new(devices: Vec<Device>, now: Instant) -> Self {
        let place = |device| Place { device, standing: Standing::New, failures: 0, open: 0, sessions_max: None, due: now };
        Self { places: devices.into_iter().map(place).collect() }
    }

    /// Whether each was tried, whatever came of it.
    pub(crate) fn is_tried(&self) -> bool {
        self.places.iter().all(|place| place.standing != Standing::New)
    }

    /// Whether a device of this class works.
    pub(crate) fn serves(&self, class: Class) -> bool {
        self.places.iter().any(|place| place.device.class == class && matches!(place.standing, Standing::Works(_)))
    }

    /// Lends a device of a class for rungs that need this, with a session for each, or fewer where it has no room for more: of
    /// those that would do, one with the most room, and of these the one with the least to do.
    pub(crate) fn lend(&mut self, class: Class, needs: &[Need]) -> Lending {
        let wanted = u32::try_from(needs.len()).unwrap_or(u32::MAX);
        let fit = self.places.iter_mut().enumerate().filter(|(_, place)| place.device.class == class && place.bears(needs));
        match fit.min_by_key(|(_, place)| (Reverse(place.room().min(wanted)), place.open)) {
            None => Lending::Never,
            Some((_, place)) if place.room() == 0 => Lending::Later,
            Some((number, place)) => {
                let sessions = place.room().min(wanted);
                place.open = place.open.saturating_add(sessions);
                Lending::Now(number, OnDevice { device: place.device.clone(), sessions })
            }
        }
    }

    /// Takes so many sessions of the device at this place back.
    pub(crate) fn take_back(&mut self, place: usize, sessions: u32, ending: Ending, now: Instant) {
        let Some(place) = self.places.get_mut(place) else { return };
        let open = place.open;
        place.open = open.saturating_sub(sessions);
        match ending {
            Ending::Neither => {}
            Ending::Done => {
                place.failures = 0;
                if let Standing::Works(_) = place.standing {
                    place.due = now + BELIEVED;
                }
            }
            Ending::Failed { has_begun } => {
                if !has_begun && open > 1 {
                    place.sessions_max = Some(place.sessions_max.map_or(open - 1, |max| max.min(open - 1)));
                }
                // One fault of a device may be the end of several tasks.
                if place.standing != Standing::Aside {
                    place.standing = Standing::Aside;
                    place.failures = place.failures.saturating_add(1);
                    place.due = now + pause(place.failures);
                }
            }
        }
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
        Some(place.device.clone())
    }

    /// Takes note of what a device has proven; nothing means that it failed. Whether that is news.
    pub(crate) fn end_proof(&mut self, place: usize, proven: Vec<Proven>, now: Instant) -> bool {
        let Some(place) = self.places.get_mut(place) else { return false };
        place.open = place.open.saturating_sub(1);
        let standing = match (&place.standing, proven.is_empty()) {
            (_, false) => Standing::Works(proven),
            (Standing::New | Standing::Unfit, true) => Standing::Unfit,
            (Standing::Works(_) | Standing::Aside, true) => Standing::Aside,
        };
        place.due = match standing {
            Standing::Works(_) => now + BELIEVED,
            Standing::New | Standing::Unfit | Standing::Aside => {
                // This was the try at once.
                place.failures = place.failures.saturating_add(1).max(2);
                now + pause(place.failures)
            }
        };
        let is_news = place.standing != standing;
        place.standing = standing;
        is_news
    }

    /// What is offered: of each class and codec, as much as the best of the devices can do.
    pub(crate) fn offered(&self) -> Vec<Offered> {
        let mut all: Vec<Offered> = Vec::new();
        for Place { device, standing, sessions_max, .. } in &self.places {
            let Standing::Works(proven) = standing else { continue };
            for Proven { codec, pixels_max } in proven {
                let own = Offered { class: device.class, codec: *codec, pixels_max: *pixels_max, sessions_max: *sessions_max };
                match all.iter_mut().find(|other| (other.class, other.codec) == (own.class, own.codec)) {
                    None => all.push(own),
                    Some(other) => {
                        other.pixels_max = other.pixels_max.max(own.pixels_max);
                        other.sessions_max = other.sessions_max.zip(own.sessions_max).map(|(one, other)| one.max(other));
                    }
                }
            }
        }
        all
    }

    /// How the devices of a class stand.
    pub(crate) fn tally(&self, class: Class) -> Tally {
        let mut tally = Tally::default();
        for place in self.places.iter().filter(|place| place.device.class == class) {
            match place.standing {
                Standing::New | Standing::Unfit => {}
                Standing::Works(_) => tally.works += 1,
                Standing::Aside => tally.aside += 1,
            }
            tally.sessions += i64::from(place.open);
        }
        tally
    }
}

impl Place {
    /// How many more encoders may be opened on it.
    fn room(&self) -> u32 {
        self.sessions_max.map_or(u32::MAX, |max| max.saturating_sub(self.open))
    }

    fn bears(&self, needs: &[Need]) -> bool {
        let Standing::Works(proven) = &self.standing else { return false };
        needs.iter().all(|need| proven.iter().any(|own| own.codec == need.codec && own.pixels_max >= need.pixels))
    }

    /// Whether it can be asked for a proof: one that works proves itself by what it does.
    fn may_prove(&self) -> bool {
        match self.standing {
            Standing::Works(_) => self.open == 0,
            Standing::New | Standing::Unfit | Standing::Aside => self.room() > 0,
        }
    }
}

/// How long a device is left alone after so many failures in a row.
fn pause(failures: u32) -> Duration {
    match failures.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => PAUSE_SECOND.saturating_mul(1 << doublings.min(16)).min(PAUSE_LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use VideoCodec::{Av1, H264, Hevc};

    const HD: u32 = 1920 * 1080;
    const UHD: u32 = 3840 * 2160;
    const FAILED: Ending = Ending::Failed { has_begun: true };

    fn device(class: Class, number: u32) -> Device {
        Device { class, number, node: format!("/dev/{class}{number}").into() }
    }

    fn proven(codec: VideoCodec, pixels_max: u32) -> Proven {
        Proven { codec, pixels_max }
    }

    fn needs(count: usize) -> Vec<Need> {
        vec![Need { codec: H264, pixels: HD }; count]
    }

    /// Devices of NVIDIA that have proven this.
    fn rack(works: &[&[Proven]], now: Instant) -> Rack {
        let mut rack = Rack::new((0..).take(works.len()).map(|number| device(Class::Nvenc, number)).collect(), now);
        for (place, proven) in works.iter().enumerate() {
            prove(&mut rack, place, proven, now);
        }
        rack
    }

    fn prove(rack: &mut Rack, place: usize, proven: &[Proven], now: Instant) -> bool {
        rack.begin_proof(place).expect("there");
        rack.end_proof(place, proven.to_vec(), now)
    }

    /// The place and sessions that are lent.
    fn lent(rack: &mut Rack, count: usize) -> Option<(usize, u32)> {
        match rack.lend(Class::Nvenc, &needs(count)) {
            Lending::Now(place, on) => Some((place, on.sessions)),
            Lending::Later | Lending::Never => None,
        }
    }

    #[test]
    fn a_device_is_lent_that_bears_what_is_needed_and_has_the_least_to_do() {
        let now = Instant::now();
        let mut rack = rack(&[&[proven(H264, UHD), proven(Hevc, HD)], &[proven(H264, HD)]], now);
        assert_eq!([lent(&mut rack, 3), lent(&mut rack, 2), lent(&mut rack, 1)], [Some((0, 3)), Some((1, 2)), Some((1, 1))]);
        let large = [Need { codec: H264, pixels: UHD }];
        let lending = rack.lend(Class::Nvenc, &large);
        assert_eq!(lending, Lending::Now(0, OnDevice { device: device(Class::Nvenc, 0), sessions: 1 }), "one alone bears that");
        for (codec, pixels) in [(Hevc, UHD), (Av1, HD), (H264, UHD + 2)] {
            assert_eq!(rack.lend(Class::Nvenc, &[Need { codec, pixels }]), Lending::Never, "{codec:?} of {pixels}");
        }
        assert_eq!(rack.lend(Class::Vaapi, &needs(1)), Lending::Never);
        assert_eq!(rack.tally(Class::Nvenc), Tally { works: 2, aside: 0, sessions: 7 });
    }

    #[test]
    fn a_limit_of_sessions_is_found_and_kept_to() {
        let now = Instant::now();
        let mut rack = rack(&[&[proven(H264, HD)]], now);
        assert_eq!([lent(&mut rack, 3), lent(&mut rack, 3)], [Some((0, 3)); 2]);
        rack.take_back(0, 3, Ending::Failed { has_begun: false }, now);
        assert_eq!(rack.lend(Class::Nvenc, &needs(1)), Lending::Never, "it is put aside");
        prove(&mut rack, 0, &[proven(H264, HD)], now);
        assert_eq!(rack.offered().first().and_then(|offered| offered.sessions_max), Some(5), "six were too many");
        assert_eq!(lent(&mut rack, 3), Some((0, 2)), "what is left");
        assert_eq!(rack.lend(Class::Nvenc, &needs(1)), Lending::Later);
        rack.take_back(0, 2, FAILED, now);
        prove(&mut rack, 0, &[proven(H264, HD)], now);
        assert_eq!(rack.offered().first().and_then(|offered| offered.sessions_max), Some(5), "it had begun");
        rack.take_back(0, 3, Ending::Done, now);
        assert_eq!(lent(&mut rack, 1), Some((0, 1)));
        rack.take_back(0, 1, Ending::Failed { has_begun: false }, now);
        prove(&mut rack, 0, &[proven(H264, HD)], now);
        assert_eq!(lent(&mut rack, 9), Some((0, 5)), "one alone was not too many");
        assert_eq!(rack.next_proof(), None, "it has no room for one, nor need");
    }

    #[test]
    fn a_device_that_failed_is_tried_at_once_and_then_ever_later() {
        let start = Instant::now();
        let mut rack = rack(&[&[proven(H264, HD)]], start);
        let mut waits = Vec::new();
        for n in 0..9 {
            let now = start + Duration::from_secs(n);
            let [one, other] = [lent(&mut rack, 1), lent(&mut rack, 1)].map(|lent| lent.expect("it works"));
            rack.take_back(one.0, one.1, FAILED, now);
            rack.take_back(other.0, other.1, FAILED, now);
            assert_eq!((rack.offered(), rack.serves(Class::Nvenc)), (Vec::new(), false));
            waits.extend(rack.next_proof().map(|(due, _)| (due - now).as_secs()));
            assert!(prove(&mut rack, 0, &[proven(H264, HD)], now), "it works again");
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 320, 600, 600]);
        let (place, sessions) = lent(&mut rack, 1).expect("it works");
        rack.take_back(place, sessions, Ending::Done, start);
        let (place, sessions) = lent(&mut rack, 1).expect("it works");
        rack.take_back(place, sessions, FAILED, start);
        assert_eq!(rack.next_proof(), Some((start, 0)), "what it did well ended the row");
    }

    #[test]
    fn a_proof_that_fails_puts_a_device_aside_for_longer_and_longer() {
        let now = Instant::now();
        let mut rack = Rack::new(vec![device(Class::Nvenc, 0)], now);
        assert!(!rack.is_tried() && rack.next_proof() == Some((now, 0)));
        let mut waits = Vec::new();
        for n in 0..3 {
            assert_eq!(prove(&mut rack, 0, &[], now), n == 0, "it is news once");
            waits.extend(rack.next_proof().map(|(due, _)| (due - now).as_secs()));
        }
        assert_eq!(waits, [10, 20, 40]);
        assert!(rack.is_tried() && !rack.serves(Class::Nvenc));
        assert_eq!(rack.tally(Class::Nvenc), Tally::default(), "it may be a camera");
        assert!(prove(&mut rack, 0, &[proven(H264, HD)], now) && prove(&mut rack, 0, &[], now));
        assert_eq!(rack.tally(Class::Nvenc), Tally { works: 0, aside: 1, sessions: 0 });
    }

    #[test]
    fn one_that_has_nothing_to_do_is_proven_again_after_a_while() {
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        let mut rack = rack(&[&[proven(H264, HD)], &[proven(H264, HD)]], now);
        assert_eq!(rack.next_proof(), Some((now + BELIEVED, 0)));
        let (place, sessions) = lent(&mut rack, 1).expect("it works");
        assert_eq!(rack.next_proof(), Some((now + BELIEVED, 1)), "the first is at work");
        rack.take_back(place, sessions, Ending::Done, later);
        assert_eq!(rack.next_proof(), Some((now + BELIEVED, 1)), "the first has shown that it works");
        assert!(!prove(&mut rack, 1, &[proven(H264, HD)], later + BELIEVED), "no news");
        assert_eq!(rack.next_proof(), Some((later + BELIEVED, 0)));
        assert!(prove(&mut rack, 0, &[proven(H264, UHD)], later + BELIEVED), "it can do more than before");
    }

    #[test]
    fn what_is_offered_of_a_class_and_codec_is_the_best_of_its_devices() {
        let now = Instant::now();
        let mut rack = rack(&[&[proven(H264, UHD), proven(Hevc, HD)], &[proven(H264, HD)]], now);
        let offered = |codec, pixels_max, sessions_max| Offered { class: Class::Nvenc, codec, pixels_max, sessions_max };
        assert_eq!(rack.offered(), [offered(H264, UHD, None), offered(Hevc, HD, None)]);
        for (sessions, own_max) in [(3, 2), (4, 3)] {
            let (place, sessions) = lent(&mut rack, sessions).expect("there is room");
            rack.take_back(place, sessions, Ending::Failed { has_begun: false }, now);
            prove(&mut rack, place, &[proven(H264, HD)], now);
            assert_eq!(rack.places.get(place).and_then(|place| place.sessions_max), Some(own_max));
        }
        assert_eq!(rack.offered(), [offered(H264, HD, Some(3))]);
    }
}
