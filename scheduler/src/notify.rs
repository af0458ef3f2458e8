//! Tells the end of jobs: on the results exchange, by the signed call that a job may ask for, and, where a job has failed, by
//! a letter on the dead queue.
//!
//! What is to be told stands in the outbox in storage, so it outlives a scheduler. It is told at least once, and more than once
//! only after a crash or when another scheduler takes over. Nothing waits for a call but the call itself: a receiver that does
//! not answer costs nobody else.

mod letter;
mod teller;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use farm::broker::Broker;
use farm::outbound::Reach;
use farm::storage::Storage;
use farm::{Code, Failure, keys};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::Instant;

pub use self::teller::signature;
use self::teller::{Call, Outcome, Steps, Teller, Told};
use crate::scheduler::{PARTITION, Watch};

/// How telling is done.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Wait after the first failure; it doubles each time.
    pub retry_first: Duration,
    /// Longest wait.
    pub retry_longest: Duration,
    /// So long after the end of a job telling it is given up.
    pub give_up: Duration,
    /// How often the outbox is looked at when nothing was heard.
    pub poll: Duration,
    /// Where calls may go.
    pub reach: Reach,
}

impl Default for Settings {
    /// A second to 15 minutes, for a day; a look every 30 s; calls go anywhere.
    fn default() -> Self {
        Self {
            retry_first: Duration::from_secs(1),
            retry_longest: Duration::from_secs(15 * 60),
            give_up: Duration::from_secs(24 * 3600),
            poll: Duration::from_secs(30),
            reach: Reach::Anywhere,
        }
    }
}

/// Ends told on the exchange at a time.
const TELLINGS_MAX: usize = 8;
/// Calls at a time: in all, for a tenant, and to a receiver.
const CALLS_MAX: usize = 64;
const CALLS_OF_TENANT_MAX: usize = 16;
const CALLS_TO_RECEIVER_MAX: usize = 2;

/// An entry of the outbox.
#[derive(Debug)]
struct Telling {
    /// When it was put there, in ms since 1970 by storage's clock.
    since_ms: u64,
    steps: Steps,
    failures: u32,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// To be told at that time.
    Due(Instant),
    /// Being told on the exchange.
    Telling,
    /// Waits for a place among the calls.
    Callable(Arc<Call>),
    /// Being called.
    Calling(Arc<Call>),
}

/// Tells what is in the outbox, while this scheduler acts, until the future is dropped.
///
/// # Errors
/// [`Code::Internal`] when there is no way to make calls at all.
pub async fn run(settings: Settings, state: Storage, broker: Broker, watch: Watch) -> Result<(), Failure> {
    let teller = Teller::new((settings.give_up, settings.reach.clone()), state, broker)?;
    let poll = settings.poll;
    let mut desk = Desk::new(settings, teller);
    let mut look_at = Instant::now();
    loop {
        let mut wake_at = Instant::now() + poll;
        if watch.is_acting() {
            if look_at <= Instant::now() {
                desk.look().await;
                look_at = Instant::now() + poll;
            }
            desk.start_tellings();
            desk.start_calls();
            wake_at = desk.next_at().map_or(look_at, |at| at.min(look_at));
        }
        tokio::select! {
            () = watch.ended() => look_at = Instant::now(),
            Some(done) = desk.work.join_next_with_id() => desk.settle(done),
            () = tokio::time::sleep_until(wake_at) => {}
        }
    }
}

/// What is to be told, and what is going on about it.
struct Desk {
    settings: Settings,
    teller: Arc<Teller>,
    /// By key in the outbox.
    tellings: BTreeMap<String, Telling>,
    work: JoinSet<Result<Told, Failure>>,
    /// The key that each piece of work is about.
    working: HashMap<task::Id, String>,
}

impl Desk {
    fn new(settings: Settings, teller: Teller) -> Self {
        let (tellings, work, working) = (BTreeMap::new(), JoinSet::new(), HashMap::new());
        Self { settings, teller: Arc::new(teller), tellings, work, working }
    }

    /// Looks into the outbox.
    async fn look(&mut self) {
        let listed = match self.teller.state.list(&keys::outbox_prefix(PARTITION)).await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "the outbox cannot be listed now");
                return;
            }
        };
        let mut known = std::mem::take(&mut self.tellings);
        for entry in listed {
            let stage = Stage::Due(Instant::now());
            let fresh = Telling { since_ms: entry.modified_ms, steps: Steps::default(), failures: 0, stage };
            let telling = known.remove(&entry.key).unwrap_or(fresh);
            self.tellings.insert(entry.key, telling);
        }
        let at_work = known.into_iter().filter(|(_, telling)| matches!(telling.stage, Stage::Telling | Stage::Calling(_)));
        self.tellings.extend(at_work);
    }

    /// Places left for telling on the exchange.
    fn places(&self) -> usize {
        TELLINGS_MAX.saturating_sub(self.tellings.values().filter(|telling| matches!(telling.stage, Stage::Telling)).count())
    }

    /// When the next is due, if there is a place for it.
    fn next_at(&self) -> Option<Instant> {
        let due = self.tellings.values().filter_map(|telling| match telling.stage {
            Stage::Due(at) => Some(at),
            Stage::Telling | Stage::Callable(_) | Stage::Calling(_) => None,
        });
        due.min().filter(|_| self.places() > 0)
    }

    fn start_tellings(&mut self) {
        let (now, places) = (Instant::now(), self.places());
        let is_due = |stage: &Stage| matches!(stage, Stage::Due(at) if *at <= now);
        for (key, telling) in self.tellings.iter_mut().filter(|(_, telling)| is_due(&telling.stage)).take(places) {
            telling.stage = Stage::Telling;
            let (teller, wanted, steps, since_ms) = (Arc::clone(&self.teller), key.clone(), telling.steps, telling.since_ms);
            let started = self.work.spawn(async move { teller.tell(&wanted, steps, since_ms).await });
            self.working.insert(started.id(), key.clone());
        }
    }

    fn start_calls(&mut self) {
        for key in choose(&self.tellings) {
            let Some(telling) = self.tellings.get_mut(&key) else { continue };
            let Stage::Callable(call) = &telling.stage else { continue };
            let (teller, call, steps, since_ms) = (Arc::clone(&self.teller), Arc::clone(call), telling.steps, telling.since_ms);
            telling.stage = Stage::Calling(Arc::clone(&call));
            let wanted = key.clone();
            let started = self.work.spawn(async move { teller.call(&wanted, &call, steps, since_ms).await });
            self.working.insert(started.id(), key);
        }
    }

    /// Takes in what came of a piece of work.
    fn settle(&mut self, done: Result<(task::Id, Result<Told, Failure>), JoinError>) {
        let (id, told) = match done {
            Ok((id, told)) => (id, told),
            Err(error) => (error.id(), Err(Failure::new(Code::Internal, format!("telling ended badly: {error}")))),
        };
        let Some(key) = self.working.remove(&id) else { return };
        let Some(telling) = self.tellings.get_mut(&key) else { return };
        let outcome = told.map(|told| {
            telling.steps = told.steps;
            told.outcome
        });
        match outcome {
            Ok(Outcome::Finished) => {
                self.tellings.remove(&key);
                return;
            }
            Ok(Outcome::ToCall(call)) => {
                telling.stage = Stage::Callable(call);
                return;
            }
            Ok(Outcome::NotYet) => {}
            Err(failure) => tracing::warn!(key, %failure, "the end of a job cannot be told now"),
        }
        telling.failures = telling.failures.saturating_add(1);
        telling.stage = Stage::Due(Instant::now() + self.settings.pause(telling.failures));
    }
}

/// Which calls are to be made now, by key: those that failed least go first, so that receivers that do not answer come last.
fn choose(tellings: &BTreeMap<String, Telling>) -> Vec<String> {
    let mut places = Places::default();
    let mut waiting = Vec::new();
    for (key, telling) in tellings {
        match &telling.stage {
            Stage::Calling(call) => places.take(call),
            Stage::Callable(call) => waiting.push((telling.failures, key, call)),
            Stage::Due(_) | Stage::Telling => {}
        }
    }
    waiting.sort_by_key(|(failures, key, _)| (*failures, *key));
    let mut chosen = Vec::new();
    for (_, key, call) in waiting {
        if places.is_there_one_for(call) {
            places.take(call);
            chosen.push(key.clone());
        }
    }
    chosen
}

/// Places that are taken by calls.
#[derive(Default)]
struct Places<'a> {
    all: usize,
    of_tenant: HashMap<&'a str, usize>,
    to_receiver: HashMap<&'a str, usize>,
}

impl<'a> Places<'a> {
    fn is_there_one_for(&self, call: &Call) -> bool {
        let taken = |map: &HashMap<&str, usize>, name: &str| map.get(name).copied().unwrap_or(0);
        self.all < CALLS_MAX
            && taken(&self.of_tenant, &call.ended.tenant) < CALLS_OF_TENANT_MAX
            && taken(&self.to_receiver, &call.receiver) < CALLS_TO_RECEIVER_MAX
    }

    fn take(&mut self, call: &'a Call) {
        self.all += 1;
        *self.of_tenant.entry(&call.ended.tenant).or_default() += 1;
        *self.to_receiver.entry(&call.receiver).or_default() += 1;
    }
}

impl Settings {
    /// The wait after so many failures, from 1.
    fn pause(&self, failures: u32) -> Duration {
        self.retry_first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.retry_longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let settings = Settings::default();
        let pauses: Vec<u64> = [1, 2, 5, 10, 11, 99].iter().map(|count| settings.pause(*count).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 16, 512, 900, 900]);
    }

    fn callable(job: &str, tenant: &str, url: &str, failures: u32) -> (String, Telling) {
        let stage = Stage::Callable(Arc::new(Call::to(job, tenant, url)));
        (format!("outbox/0/{job}/1"), Telling { since_ms: 0, steps: Steps::default(), failures, stage })
    }

    /// Gives places to all who wait; whose calls are under way then, sorted.
    fn placed(tellings: &mut BTreeMap<String, Telling>) -> Vec<String> {
        let chosen = choose(tellings);
        for key in &chosen {
            let telling = tellings.get_mut(key).expect("it is there");
            let Stage::Callable(call) = &telling.stage else { panic!("it waits") };
            telling.stage = Stage::Calling(Arc::clone(call));
        }
        assert!(choose(tellings).is_empty(), "what is chosen takes its place");
        chosen
    }

    #[test]
    fn no_receiver_and_no_tenant_takes_the_places_of_others() {
        let dead = (0..500).map(|n| callable(&format!("a-{n:03}"), "one", "http://dead.example/hook", 0));
        let mut tellings: BTreeMap<_, _> = dead.chain([callable("b", "two", "http://well.example/hook", 0)]).collect();
        assert_eq!(placed(&mut tellings), ["outbox/0/a-000/1", "outbox/0/a-001/1", "outbox/0/b/1"]);
        let many = (0..500).map(|n| callable(&format!("a-{n:03}"), "one", &format!("http://{n}.example/hook"), 0));
        let mut tellings: BTreeMap<_, _> = many.chain([callable("b", "two", "http://well.example/hook", 0)]).collect();
        let chosen = placed(&mut tellings);
        assert_eq!((chosen.len(), chosen.last().map(String::as_str)), (CALLS_OF_TENANT_MAX + 1, Some("outbox/0/b/1")));
        let tenants = (0..500).map(|n| callable(&format!("a-{n:03}"), &format!("t{n}"), &format!("http://{n}.example/"), 9));
        let mut tellings: BTreeMap<_, _> = tenants.chain([callable("b", "two", "http://well.example/hook", 0)]).collect();
        let chosen = placed(&mut tellings);
        assert_eq!((chosen.len(), chosen[0].as_str()), (CALLS_MAX, "outbox/0/b/1"), "those that never failed go first");
    }
}
