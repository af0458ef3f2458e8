//! What workers offer beside encoding on the processor, as far as was heard lately.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use farm::Class;
use farm::encoder::{Offer, Offered};
use farm::job::VideoCodec;
use farm::task::Token;
use tokio::time::Instant;

/// How long an offer stands without being told again. Workers tell theirs every 5 s.
const OFFER_KEPT: Duration = Duration::from_secs(30);
/// Most workers whose offers are remembered.
const WORKERS_MAX: usize = 10_000;

/// Offers of workers.
#[derive(Debug)]
pub struct Offers {
    workers: BTreeMap<Token, Heard>,
    /// When each class was last offered by somebody.
    told: BTreeMap<Class, Instant>,
    /// From when on all offers that there are have been heard.
    known_from: Instant,
}

#[derive(Debug)]
struct Heard {
    until: Instant,
    encoders: Vec<Offered>,
}

impl Offers {
    /// None heard yet; `is_alone` where all workers are of this process, and have told theirs before anything is planned.
    pub fn new(now: Instant, is_alone: bool) -> Self {
        let known_from = if is_alone { now } else { now + OFFER_KEPT };
        Self { workers: BTreeMap::new(), told: BTreeMap::new(), known_from }
    }

    /// Takes note of what a worker offers.
    pub fn note(&mut self, offer: Offer, now: Instant) {
        self.told.extend(offer.encoders.iter().map(|offered| (offered.class, now)));
        if offer.encoders.is_empty() {
            self.workers.remove(&offer.worker);
        } else if self.workers.len() < WORKERS_MAX || self.workers.contains_key(&offer.worker) {
            self.workers.insert(offer.worker, Heard { until: now + OFFER_KEPT, encoders: offer.encoders });
        }
    }

    /// What each worker offers by what it said last.
    pub fn now(&self, now: Instant) -> BTreeMap<Token, Vec<Offered>> {
        let fresh = self.workers.iter().filter(|(_, heard)| heard.until > now);
        fresh.map(|(worker, heard)| (worker.clone(), heard.encoders.clone())).collect()
    }

    /// Nothing could be heard until now: what was offered stands for as long again.
    pub fn was_deaf(&mut self, now: Instant) {
        self.workers.values_mut().for_each(|heard| heard.until = now + OFFER_KEPT);
        self.told.values_mut().for_each(|told| *told = now);
        self.known_from = self.known_from.max(now + OFFER_KEPT);
    }

    /// Forgets what was not told again.
    pub fn expire(&mut self, now: Instant) {
        self.workers.retain(|_, heard| heard.until > now);
    }

    /// Whether a class of devices was offered by nobody for so long that nobody will take what is on its queue. A device that is
    /// put aside is often back at once, and its worker does meanwhile what it has.
    pub fn is_gone(&self, class: Class, now: Instant) -> bool {
        class.is_hardware() && self.told.get(&class).is_none_or(|told| *told + OFFER_KEPT <= now)
    }

    /// What every worker of a class can do, for each class.
    pub fn served(&self, now: Instant) -> Served {
        let of_class = |class| self.workers.values().map(move |heard| of(&heard.encoders, class)).filter(|own| !own.is_empty());
        let common = |class| {
            of_class(class).reduce(|common, own| {
                let both = |one: Offered| own.iter().find(|other| other.codec == one.codec).map(|other| least(one, *other));
                common.into_iter().filter_map(both).collect()
            })
        };
        let classes: BTreeMap<_, _> = Class::ALL.into_iter().filter_map(|class| Some((class, common(class)?))).collect();
        let is_away = |class: &Class| !classes.contains_key(class) && !self.is_gone(*class, now);
        let is_known = self.known_from <= now && !self.told.keys().any(is_away);
        Served { classes, is_known, crowded: BTreeSet::new() }
    }
}

fn of(encoders: &[Offered], class: Class) -> Vec<Offered> {
    encoders.iter().filter(|offered| offered.class == class).copied().collect()
}

/// What both can do.
fn least(one: Offered, other: Offered) -> Offered {
    let sessions_max = match (one.sessions_max, other.sessions_max) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (known, unknown) => known.or(unknown),
    };
    Offered { largest: one.largest.least(other.largest), sessions_max, ..one }
}

/// The classes of devices that there are workers for, and what all workers of a class can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    classes: BTreeMap<Class, Vec<Offered>>,
    /// Whether that is all there is: workers may not have been heard yet, or be about to come back.
    is_known: bool,
    /// Classes that have much more to do already than others.
    pub crowded: BTreeSet<Class>,
}

impl Served {
    /// Nothing but the processor, and nothing else to be expected.
    pub const NONE: Self = Self { classes: BTreeMap::new(), is_known: true, crowded: BTreeSet::new() };

    /// Whether there is somebody to take tasks of a class. The processor is always there: its tasks wait for workers.
    pub fn has(&self, class: Class) -> bool {
        class.is_cpu() || self.classes.contains_key(&class)
    }

    /// Whether what is not served now may be in a moment.
    pub fn may_change(&self) -> bool {
        !self.is_known
    }

    /// Encoders of a codec that every worker of a class has.
    pub(crate) fn encoder(&self, class: Class, codec: VideoCodec) -> Option<&Offered> {
        self.classes.get(&class)?.iter().find(|offered| offered.codec == codec)
    }
}

#[cfg(test)]
mod tests {
    use farm::encoder::Extent;

    use super::*;

    fn offered(class: Class, codec: VideoCodec, side: u32, sessions_max: Option<u32>) -> Offered {
        Offered { class, codec, largest: Extent::of(side, 1), sessions_max }
    }

    #[tokio::test(start_paused = true)]
    async fn an_offer_stands_while_it_is_told_and_one_of_nothing_ends_it() {
        let now = Instant::now();
        let mut offers = Offers::new(now, true);
        let (one, other) = (Token::random(), Token::random());
        let h264 = offered(Class::Nvenc, VideoCodec::H264, 100, None);
        offers.note(Offer { worker: one, encoders: vec![h264] }, now);
        offers.note(Offer { worker: other.clone(), encoders: vec![h264] }, now + OFFER_KEPT / 2);
        let served = offers.served(now);
        assert!(served.has(Class::Nvenc) && served.has(Class::Cpu) && !served.has(Class::Vaapi) && !served.may_change());
        offers.expire(now + OFFER_KEPT);
        assert!(offers.served(now + OFFER_KEPT).has(Class::Nvenc), "the other's stands");
        offers.note(Offer { worker: other, encoders: Vec::new() }, now + OFFER_KEPT);
        let served = offers.served(now + OFFER_KEPT);
        assert!(!served.has(Class::Nvenc) && served.may_change(), "it may be back at once");
        assert!(!offers.is_gone(Class::Nvenc, now + OFFER_KEPT) && !offers.is_gone(Class::Cpu, now + 9 * OFFER_KEPT));
        let later = now + OFFER_KEPT / 2 + OFFER_KEPT;
        assert!(offers.is_gone(Class::Nvenc, later) && offers.served(later) == Served::NONE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_just_begun_to_listen_or_was_deaf_does_not_know_all() {
        let now = Instant::now();
        let mut offers = Offers::new(now, false);
        assert!(offers.served(now).may_change() && !offers.served(now + OFFER_KEPT).may_change());
        let h264 = offered(Class::Qsv, VideoCodec::H264, 100, None);
        offers.note(Offer { worker: Token::random(), encoders: vec![h264] }, now);
        offers.was_deaf(now + OFFER_KEPT);
        offers.expire(now + OFFER_KEPT);
        assert!(offers.served(now + OFFER_KEPT).has(Class::Qsv) && offers.served(now + OFFER_KEPT).may_change());
        offers.expire(now + 2 * OFFER_KEPT);
        assert!(offers.is_gone(Class::Qsv, now + 2 * OFFER_KEPT) && offers.served(now + 2 * OFFER_KEPT) == Served::NONE);
    }

    #[test]
    fn a_class_can_do_what_all_of_its_workers_can() {
        let now = Instant::now();
        let mut offers = Offers::new(now, true);
        let (hevc, h264) = (VideoCodec::Hevc, VideoCodec::H264);
        let strong = vec![offered(Class::Nvenc, h264, 800, None), offered(Class::Nvenc, hevc, 800, None)];
        let weak = vec![offered(Class::Nvenc, h264, 200, Some(3)), offered(Class::Vaapi, hevc, 100, None)];
        offers.note(Offer { worker: Token::random(), encoders: strong }, now);
        assert_eq!(offers.served(now).encoder(Class::Nvenc, h264), Some(&offered(Class::Nvenc, h264, 800, None)));
        offers.note(Offer { worker: Token::random(), encoders: weak }, now);
        let served = offers.served(now);
        assert_eq!(served.encoder(Class::Nvenc, h264), Some(&offered(Class::Nvenc, h264, 200, Some(3))));
        assert_eq!(served.encoder(Class::Nvenc, hevc), None, "one of them has none");
        assert_eq!(served.encoder(Class::Vaapi, hevc), Some(&offered(Class::Vaapi, hevc, 100, None)));
        assert_eq!(served.encoder(Class::Qsv, h264), None);
    }
}
