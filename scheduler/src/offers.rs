//! What workers offer beside encoding on the processor, as far as was heard lately.

use std::collections::BTreeMap;
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
#[derive(Debug, Default)]
pub struct Offers {
    workers: BTreeMap<Token, Heard>,
}

#[derive(Debug)]
struct Heard {
    until: Instant,
    encoders: Vec<Offered>,
}

impl Offers {
    /// Takes note of what a worker offers.
    pub fn note(&mut self, offer: Offer, now: Instant) {
        if offer.encoders.is_empty() {
            self.workers.remove(&offer.worker);
        } else if self.workers.len() < WORKERS_MAX || self.workers.contains_key(&offer.worker) {
            self.workers.insert(offer.worker, Heard { until: now + OFFER_KEPT, encoders: offer.encoders });
        }
    }

    /// Forgets what was not told again.
    pub fn expire(&mut self, now: Instant) {
        self.workers.retain(|_, heard| heard.until > now);
    }

    /// What every worker of a class can do, for each class.
    pub fn served(&self) -> Served {
        let of_class = |class| self.workers.values().map(move |heard| of(&heard.encoders, class)).filter(|own| !own.is_empty());
        let common = |class| {
            of_class(class).reduce(|common, own| {
                let both = |one: Offered| own.iter().find(|other| other.codec == one.codec).map(|other| least(one, *other));
                common.into_iter().filter_map(both).collect()
            })
        };
        let classes = Class::ALL.into_iter().filter_map(|class| Some((class, common(class)?)));
        Served { classes: classes.collect() }
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
    Offered { pixels_max: one.pixels_max.min(other.pixels_max), sessions_max, ..one }
}

/// The classes of devices that there are workers for, and what all workers of a class can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    classes: BTreeMap<Class, Vec<Offered>>,
}

impl Served {
    /// Whether there is somebody to take tasks of a class. The processor is always there: its tasks wait for workers.
    pub fn has(&self, class: Class) -> bool {
        class.is_cpu() || self.classes.contains_key(&class)
    }

    /// Encoders of a codec that every worker of a class has.
    pub(crate) fn encoder(&self, class: Class, codec: VideoCodec) -> Option<&Offered> {
        self.classes.get(&class)?.iter().find(|offered| offered.codec == codec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: fn() -> Instant = Instant::now;

    fn offered(class: Class, codec: VideoCodec, pixels_max: u32, sessions_max: Option<u32>) -> Offered {
        Offered { class, codec, pixels_max, sessions_max }
    }

    #[tokio::test(start_paused = true)]
    async fn an_offer_stands_while_it_is_told_and_one_of_nothing_ends_it() {
        let (mut offers, now) = (Offers::default(), NOW());
        let (one, other) = (Token::random(), Token::random());
        let h264 = offered(Class::Nvenc, VideoCodec::H264, 100, None);
        offers.note(Offer { worker: one, encoders: vec![h264] }, now);
        offers.note(Offer { worker: other.clone(), encoders: vec![h264] }, now + OFFER_KEPT / 2);
        assert!(offers.served().has(Class::Nvenc) && offers.served().has(Class::Cpu) && !offers.served().has(Class::Vaapi));
        offers.expire(now + OFFER_KEPT);
        assert!(offers.served().has(Class::Nvenc), "the other's stands");
        offers.note(Offer { worker: other, encoders: Vec::new() }, now + OFFER_KEPT);
        assert_eq!(offers.served(), Served::default());
    }

    #[test]
    fn a_class_can_do_what_all_of_its_workers_can() {
        let mut offers = Offers::default();
        let (hevc, h264) = (VideoCodec::Hevc, VideoCodec::H264);
        let strong = vec![offered(Class::Nvenc, h264, 800, None), offered(Class::Nvenc, hevc, 800, None)];
        let weak = vec![offered(Class::Nvenc, h264, 200, Some(3)), offered(Class::Vaapi, hevc, 100, None)];
        offers.note(Offer { worker: Token::random(), encoders: strong }, NOW());
        assert_eq!(offers.served().encoder(Class::Nvenc, h264).map(|offered| offered.pixels_max), Some(800));
        offers.note(Offer { worker: Token::random(), encoders: weak }, NOW());
        let served = offers.served();
        assert_eq!(served.encoder(Class::Nvenc, h264), Some(&offered(Class::Nvenc, h264, 200, Some(3))));
        assert_eq!(served.encoder(Class::Nvenc, hevc), None, "one of them has none");
        assert_eq!(served.encoder(Class::Vaapi, hevc), Some(&offered(Class::Vaapi, hevc, 100, None)));
        assert_eq!(served.encoder(Class::Qsv, h264), None);
    }
}
