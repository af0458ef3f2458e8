//! What becomes of a tenant's jobs, told while it happens: a stream of events (`text/event-stream`) that the status page reads.
//!
//! Nothing is put up for a reader that is slow: a stream is asked for more when there is room for it, and says then how things
//! stand by that time. Who takes nothing at all for a minute is cut off by [`farm::serve`].

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use farm::Failure;
use farm::job::JobId;
use farm::serve::Lasts;
use futures::{StreamExt as _, stream};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::answer::{Crew, Refusal};
use super::places::{Place, Places};
use super::routes::Following;
use super::{Answer, Caller, Shared};
use crate::scheduler::JobView;
use crate::status::{self, JobStatus, Owners};

/// Streams at a time: in all, and of a tenant.
const STREAMS_MAX: (usize, usize) = (64, 8);
/// How long a stream lasts. Whoever wants to hear more begins another.
const LASTS: Duration = Duration::from_secs(3600);
/// A job is told of at most this often.
const TICK: Duration = Duration::from_secs(1);
/// Workers are told of at most this often.
const CREW_PAUSE: Duration = Duration::from_secs(5);
/// Time between two words when there is nothing to tell: proxies close what is silent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often storage is asked which jobs there are by a scheduler that acts, and is told of all that happens.
const LOOK_ACTING: Duration = Duration::from_secs(30);
/// How often it is asked where all that is known comes from there.
const LOOK_STANDBY: Duration = Duration::from_secs(10);
/// Pause after storage did not answer.
const TROUBLE_PAUSE: Duration = Duration::from_secs(5);
/// Most jobs that are told of at a time: of more, those that were submitted first.
const JOBS_MAX: usize = 2000;
/// Jobs looked up at a time, and before something is told of them.
const READS_MAX: usize = 8;
const LOOK_UPS_MAX: usize = 64;

/// The streams that are open, and what they have learned together.
pub(super) struct Streams {
    places: Places,
    owners: Owners,
}

impl Default for Streams {
    fn default() -> Self {
        let (all, each) = STREAMS_MAX;
        Self { places: Places::new(all, each, 0), owners: Owners::default() }
    }
}

/// Tells how all stands, and then what changes.
pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    asked: Result<Query<Following>, QueryRejection>,
) -> Answer<Response> {
    let Query(Following { once }) = asked.map_err(|refused| Refusal::invalid(refused.body_text()))?;
    let place = shared.streams.places.take(Some(caller.tenant.name.as_str()))?;
    let mut follower = Follower::new(shared, caller, place);
    // Whether storage answers can still be told as a refusal; to look all jobs up may take longer than a request may.
    let listed = follower.look().await?;
    follower.pending.extend(listed);
    let until = follower.ends_at;
    // The place is held until the last of it is taken.
    let told = stream::unfold(follower, move |mut follower| async move {
        let events = follower.next(once).await?;
        Some((stream::iter(events), follower))
    });
    let told = told.flatten().map(Ok::<Event, Infallible>);
    let mut answer = Sse::new(told).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // nginx would keep it until there is much of it.
    answer.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer.extensions_mut().insert(Lasts { until });
    Ok(answer)
}

/// What the reader of a stream was told of a job.
struct Told {
    status: JobStatus,
    /// What the scheduler knew when that was made.
    view: Option<JobView>,
}

/// What is to be done about a job.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    /// Nothing: all was told.
    None,
    /// To tell this: it has come further.
    Moved(Box<JobStatus>),
    /// To look it up.
    Unknown,
}

/// What is to be done about a job of which this was told, by what the scheduler knows now.
fn change(told: Option<&Told>, view: Option<&JobView>) -> Change {
    let Some(Told { status, view: before }) = told else { return Change::Unknown };
    match (before, view) {
        (before, view) if before.as_ref() == view => Change::None,
        (Some(before), Some(view)) if before.phase == view.phase && !status.state.has_ended() => {
            let moved = status.moved(view);
            if moved == *status { Change::None } else { Change::Moved(Box::new(moved)) }
        }
        _ => Change::Unknown,
    }
}

/// One stream.
struct Follower {
    shared: Arc<Shared>,
    caller: Caller,
    told: BTreeMap<JobId, Told>,
    /// Jobs that are to be looked up.
    pending: BTreeSet<JobId>,
    /// How many jobs had ended when it was last asked: one may begin and end between two ticks.
    ends: u64,
    /// When storage is asked again which jobs there are.
    look_at: Instant,
    /// The workers as they were told of, and when they may be told of again.
    crew: Option<Crew>,
    crew_at: Instant,
    /// When it is seen again what has changed.
    scan_at: Instant,
    ends_at: Instant,
    _place: Place,
}

impl Follower {
    /// One that has told nothing yet.
    fn new(shared: Arc<Shared>, caller: Caller, place: Place) -> Self {
        let now = Instant::now();
        let (_, ends) = shared.api.scheduler.ended_since(u64::MAX, None);
        let (told, ends_at) = (BTreeMap::new(), now + LASTS);
        Self {
            shared,
            caller,
            told,
            pending: BTreeSet::new(),
            ends,
            look_at: now,
            crew: None,
            crew_at: now,
            scan_at: now,
            ends_at,
            _place: place,
        }
    }

    /// What is told next, once there is something; none when the stream ends: it is old, its token is not known any more, or all
    /// was told that was to be told `once`.
    async fn next(&mut self, once: bool) -> Option<Vec<Event>> {
        loop {
            // What is to be looked up needs no pause between its parts.
            if self.pending.is_empty() {
                if once && self.crew.is_some() {
                    return None;
                }
                sleep_until(self.scan_at).await;
            }
            let now = Instant::now();
            if now >= self.ends_at || !self.is_known() {
                return None;
            }
            let mut events = Vec::new();
            if now >= self.scan_at {
                self.scan_at = now + TICK;
                events = self.news().await;
            }
            events.extend(self.look_up().await);
            if !events.is_empty() {
                return Some(events);
            }
        }
    }

    /// Whether the token that the stream was asked for with still means the same.
    fn is_known(&self) -> bool {
        let now = self.shared.api.policy.tenants.now();
        Arc::ptr_eq(&now, &self.caller.among) || now.has(&self.caller.tenant)
    }

    /// Whose jobs are told of; all for an admin.
    fn tenant(&self) -> Option<&str> {
        let Caller { tenant, .. } = &self.caller;
        (!tenant.is_admin).then_some(tenant.name.as_str())
    }

    /// What has changed since it was last asked, beside jobs that are to be looked up.
    async fn news(&mut self) -> Vec<Event> {
        let scheduler = Arc::clone(&self.shared.api.scheduler);
        let is_acting = scheduler.watch().is_acting();
        let listed = if self.look_at <= Instant::now() { self.look_or_wait().await } else { None };
        let open = self.told.iter().filter(|(_, told)| !told.status.state.has_ended()).map(|(id, _)| id.clone());
        let mut ids: BTreeSet<JobId> = open.chain(listed.iter().flatten().cloned()).collect();
        // One that acts no more does not hear of what others end.
        if is_acting {
            ids.extend(scheduler.unended(self.tenant(), JOBS_MAX));
        }
        let (ended, ends) = scheduler.ended_since(self.ends, self.tenant());
        ids.extend(ended);
        let mut events = self.crew_news();
        for id in ids {
            let view = scheduler.view(&id);
            // Whoever does not hear of a job asks storage.
            let is_stale = listed.is_some() && (view.is_none() || !is_acting);
            match change(self.told.get(&id), view.as_ref()) {
                Change::None if !is_stale => {}
                Change::Moved(status) if !is_stale => {
                    events.extend(event("job", &status));
                    self.told.insert(id, Told { status: *status, view });
                }
                _ => {
                    self.pending.insert(id);
                }
            }
        }
        self.ends = ends;
        events
    }

    /// As [`Follower::look`]; none when storage does not answer, which is not asked again for a while.
    async fn look_or_wait(&mut self) -> Option<Vec<JobId>> {
        let looked = self.look().await;
        looked
            .map_err(|failure| {
                tracing::debug!(%failure, "jobs cannot be followed now");
                self.look_at = Instant::now() + TROUBLE_PAUSE;
            })
            .ok()
    }

    /// The jobs that have not ended by what storage says.
    async fn look(&mut self) -> Result<Vec<JobId>, Failure> {
        let is_acting = self.shared.api.scheduler.watch().is_acting();
        let Shared { api, streams, .. } = &*self.shared;
        let tenant_of = |id: &JobId| api.scheduler.view(id).map(|view| view.tenant).filter(|tenant| !tenant.is_empty());
        let listed = status::unended(&api.state, (self.tenant(), JOBS_MAX), &streams.owners, tenant_of).await?;
        self.look_at = Instant::now() + if is_acting { LOOK_ACTING } else { LOOK_STANDBY };
        // One that has ended is in the list until it is closed, and again when it was taken up again.
        let is_listed: BTreeSet<&JobId> = listed.iter().collect();
        self.told.retain(|id, told| !told.status.state.has_ended() || is_listed.contains(id));
        Ok(listed)
    }

    /// Looks up how some of the jobs stand of which that is not known, and tells what is new of that.
    async fn look_up(&mut self) -> Vec<Event> {
        let mut ids: Vec<JobId> = self.pending.iter().take(LOOK_UPS_MAX).cloned().collect();
        ids.iter().for_each(|id| {
            self.pending.remove(id);
        });
        // Those of which something was told before have their places.
        let mut room = (2 * JOBS_MAX).saturating_sub(self.told.len());
        ids.retain(|id| {
            let has_place = self.told.contains_key(id) || room > 0;
            room = if self.told.contains_key(id) { room } else { room.saturating_sub(1) };
            has_place
        });
        let (state, scheduler) = (&self.shared.api.state, &self.shared.api.scheduler);
        let found: Vec<_> = stream::iter(ids)
            .map(|id| async move {
                let view = scheduler.view(&id);
                let status = status::status(state, &id, view.clone()).await;
                (id, view, status)
            })
            .buffered(READS_MAX)
            .collect()
            .await;
        let mut events = Vec::new();
        for (id, view, status) in found {
            let status = match status {
                Ok(status) => status,
                // It is looked up again when it moves, or when storage is asked which jobs there are.
                Err(failure) => {
                    tracing::debug!(job = %id, %failure, "how a job stands cannot be read");
                    continue;
                }
            };
            let Some(status) = status.filter(|status| self.caller.may_see(&status.tenant)) else {
                self.told.remove(&id);
                continue;
            };
            if self.told.get(&id).is_none_or(|told| told.status != status) {
                events.extend(event("job", &status));
            }
            self.told.insert(id, Told { status, view });
        }
        events
    }

    /// The workers, if they are others than were told of, and that was a while ago.
    fn crew_news(&mut self) -> Vec<Event> {
        let now = Instant::now();
        if now < self.crew_at {
            return Vec::new();
        }
        let crew = Crew::from(self.shared.api.scheduler.workers());
        if self.crew.as_ref() == Some(&crew) {
            return Vec::new();
        }
        let told = event("workers", &crew);
        (self.crew, self.crew_at) = (Some(crew), now + CREW_PAUSE);
        told.into_iter().collect()
    }
}

/// An event of this name. What is told can always be written as JSON.
fn event(name: &str, content: &impl Serialize) -> Option<Event> {
    Event::default().event(name).json_data(content).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Phase;
    use crate::status::{Progress, State as Stand};

    fn view(phase: Phase, tasks_done: usize) -> JobView {
        JobView { tenant: "one".to_owned(), phase, tasks_done, tasks_total: 9, ..JobView::default() }
    }

    fn status(state: Stand, tasks_done: usize) -> JobStatus {
        let progress = Progress { tasks_done, tasks_total: 9, ..Progress::default() };
        let id = JobId::try_from("film".to_owned()).expect("an id");
        let (tenant, source, output) = ("one".to_owned(), String::new(), String::new());
        JobStatus { id, tenant, state, source, output, progress, result: None, deleted_ms: None, error: None }
    }

    #[test]
    fn what_moves_is_told_by_what_the_scheduler_knows_and_what_turns_is_looked_up() {
        let told = Told { status: status(Stand::Encoding, 2), view: Some(view(Phase::Encoding, 2)) };
        assert_eq!(change(None, None), Change::Unknown);
        assert_eq!(change(None, Some(&view(Phase::Encoding, 2))), Change::Unknown);
        assert_eq!(change(Some(&told), Some(&view(Phase::Encoding, 2))), Change::None);
        let moved = Change::Moved(Box::new(status(Stand::Encoding, 3)));
        assert_eq!(change(Some(&told), Some(&view(Phase::Encoding, 3))), moved);
        assert_eq!(change(Some(&told), Some(&view(Phase::Packing, 3))), Change::Unknown);
        assert_eq!(change(Some(&told), None), Change::Unknown, "it was known, and is no more");
        let cancelling = Told { status: status(Stand::Cancelling, 2), view: Some(view(Phase::Encoding, 2)) };
        let moved = Change::Moved(Box::new(status(Stand::Cancelling, 3)));
        assert_eq!(change(Some(&cancelling), Some(&view(Phase::Encoding, 3))), moved, "it is to stop all the same");
        let ended = Told { status: status(Stand::Done, 9), view: Some(view(Phase::Packing, 8)) };
        assert_eq!(change(Some(&ended), Some(&view(Phase::Packing, 9))), Change::Unknown, "what has ended moves no more");
        let unheard = Told { status: status(Stand::Waiting, 0), view: None };
        assert_eq!(change(Some(&unheard), None), Change::None);
        assert_eq!(change(Some(&unheard), Some(&view(Phase::Probing, 0))), Change::Unknown);
    }
}
