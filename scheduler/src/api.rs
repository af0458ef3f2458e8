//! The HTTP API: jobs are submitted, looked at, cancelled and retried, and their outputs deleted. A bearer token says whose they are.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/jobs` | 201 or, when it was there before, 200: `{"id"}` |
//! | `GET /v1/jobs?state=active\|ended&limit=&after=` | 200: `{"jobs": [..], "next"}` |
//! | `GET /v1/jobs/{id}` | 200: state, progress, result, error |
//! | `POST /v1/jobs/{id}/cancel`, `POST /v1/jobs/{id}/retry` | 202: `{"id"}` |
//! | `GET /v1/jobs/{id}/output/{path}` | 200, 206: an object of the result |
//! | `DELETE /v1/jobs/{id}/output` | 200: `{"id"}`: nothing of what it made is left |
//! | `GET /v1/events?once=` | 200: how jobs stand, and what becomes of them, as events |
//! | `GET /v1/workers` | 200: `{"workers": [..]}` |
//! | `GET /v1/encoders` | 200: `{"classes": [..]}` |
//! | `GET /v1/openapi.json` | 200: all this as OpenAPI has it; no token is needed |
//! | `GET /`, `GET /page/{file}` | 200: the status page, and its files; no token is needed |
//!
//! What is refused is told as RFC 9457 has it: `{"type", "title", "status", "detail", "code"}`. A job of another tenant does not
//! exist. There is no TLS here: outside of a trusted network this stands behind a proxy that has it.

mod answer;
mod description;
mod events;
mod output;
mod page;
mod places;
mod range;
mod routes;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, MatchedPath, Query, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, on};
use axum::{Json, Router};
use farm::broker::Broker;
use farm::job::{JobId, JobSpec};
use farm::storage::Storage;
use farm::{Failure, Fault, metrics, serve};
use tokio::net::TcpListener;
use tokio::time::timeout;

pub use self::answer::{Crew, Encoder, Encoders, Equipment, Ground, Named, Page, Problem, Word, Worker};
pub use self::description::description;

use self::answer::{JSON, Refusal};
use self::events::Streams;
use self::output::Outputs;
use self::places::Places;
use self::routes::{PAGE_MAX, Part, Route, Wanted};
use crate::admit::{Policy, admit_for};
use crate::scheduler::{Accepted, Handle, accept, fetch_if_there};
use crate::status::{self, Filter, JobStatus};
use crate::tenants::{Tenant, Tenants};

/// Largest body of a request.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Connections at a time: as many again as requests, for those that wait for their next one, or whose answer still comes.
const CONNECTIONS_MAX: usize = 512;

/// What the API works on.
pub struct Api {
    /// The scheduler of this process.
    pub scheduler: Arc<Handle>,
    /// The farm's state.
    pub state: Storage,
    /// The farm's broker.
    pub broker: Broker,
    /// What may be asked for, and by whom.
    pub policy: Policy,
}

/// What requests are held to.
#[derive(Clone, Copy)]
struct Limits {
    /// Requests at a time, in all, of one tenant, and of all whose token is not known; more are refused.
    all: usize,
    of_tenant: usize,
    of_strangers: usize,
    /// Longest a request may take, and its body of that.
    time: Duration,
    body_time: Duration,
}

impl Limits {
    const USUAL: Self =
        Self { all: 256, of_tenant: 64, of_strangers: 32, time: Duration::from_secs(30), body_time: Duration::from_secs(15) };
}

struct Shared {
    api: Api,
    limits: Limits,
    /// What the API is, as it is sent.
    description: Bytes,
    /// Places for requests until their answers begin.
    requests: Places,
    /// Places for those who delete outputs.
    deletions: Places,
    /// What answers have that go on for long.
    streams: Streams,
    outputs: Outputs,
}

/// Outputs that are deleted at a time: in all, and of a tenant.
const DELETIONS_MAX: usize = 8;
const DELETIONS_OF_TENANT_MAX: usize = 2;

/// Serves the API until the future is dropped.
///
/// # Errors
/// As [`serve::serve`].
pub async fn serve(listener: TcpListener, api: Api) -> std::io::Result<()> {
    serve::serve(listener, router(api, Limits::USUAL), serve::Limits::new(CONNECTIONS_MAX)).await
}

fn router(api: Api, limits: Limits) -> Router {
    let requests = Places::new(limits.all, limits.of_tenant, limits.of_strangers);
    let (description, streams, outputs) = (Bytes::from(description().to_string()), Streams::default(), Outputs::default());
    let deletions = Places::new(DELETIONS_MAX, DELETIONS_OF_TENANT_MAX, 0);
    let shared = Arc::new(Shared { api, limits, description, requests, deletions, streams, outputs });
    Route::ALL
        .into_iter()
        .fold(Router::new(), |pages, route| pages.route(route.path(), answerer(route)))
        .fallback(|| async { Refusal::no_page() })
        .method_not_allowed_fallback(|| async {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Ground::MethodNotAllowed, "this page knows no such method")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(Arc::clone(&shared), limited))
        .with_state(shared)
}

/// Who answers a route.
fn answerer(route: Route) -> MethodRouter<Arc<Shared>> {
    let way = route.way().filter();
    match route {
        Route::Page => on(way, page::index),
        Route::PageFile => on(way, page::file),
        Route::Describe => on(way, describe),
        Route::Submit => on(way, submit),
        Route::List => on(way, list),
        Route::Show => on(way, show),
        Route::Cancel => on(way, cancel),
        Route::Retry => on(way, retry),
        Route::Output => on(way, output::output),
        Route::Delete => on(way, delete),
        Route::Events => on(way, events::events),
        Route::Workers => on(way, workers),
        Route::Encoders => on(way, encoders),
    }
}

/// Keeps requests few and short, and counts them.
async fn limited(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let answer = admitted(&shared, request, next).await.unwrap_or_else(IntoResponse::into_response);
    metrics::scheduler().http_requests.with_label_values(&[route.as_str(), answer.status().as_str()]).inc();
    answer
}

/// Has a request answered if there is a place for it, and notes whose it is.
async fn admitted(shared: &Shared, mut request: Request, next: Next) -> Answer<Response> {
    let tenants = shared.api.policy.tenants.now();
    let tenant = tenant_of(request.headers(), &tenants);
    let _place = shared.requests.take(tenant.map(|tenant| tenant.name.as_str()))?;
    if let Some(tenant) = tenant {
        request.extensions_mut().insert(Caller { tenant: tenant.clone(), among: Arc::clone(&tenants) });
    }
    timeout(shared.limits.time, next.run(request)).await.map_err(|_| Refusal::late())
}

/// Whose token a request bears. Of two that say different things, a proxy before us may believe the other: then nobody's.
fn tenant_of<'a>(headers: &HeaderMap, tenants: &'a Tenants) -> Option<&'a Tenant> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let given = all.next().filter(|_| all.next().is_none())?.to_str().ok()?;
    let (_, token) = given.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))?;
    tenants.of_token(token.trim())
}

/// Who sends a request.
#[derive(Clone)]
struct Caller {
    tenant: Tenant,
    /// All of them, as they were when it was asked whose token it is.
    among: Arc<Tenants>,
}

impl FromRequestParts<Arc<Shared>> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Shared>) -> Result<Self, Refusal> {
        parts.extensions.get::<Self>().cloned().ok_or_else(Refusal::unauthorized)
    }
}

/// The body of a request.
struct Sent(Bytes);

impl FromRequest<Arc<Shared>> for Sent {
    type Rejection = Refusal;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, Refusal> {
        match timeout(shared.limits.body_time, Bytes::from_request(request, shared)).await {
            Ok(Ok(body)) => Ok(Self(body)),
            Ok(Err(refused)) => Err(Refusal::of_body(refused.status())),
            Err(_) => Err(Refusal::of_body(StatusCode::REQUEST_TIMEOUT)),
        }
    }
}

impl Caller {
    fn may_see(&self, tenant: &str) -> bool {
        self.tenant.is_admin || self.tenant.name == tenant
    }
}

/// The job that a path names, and what was asked for, if the caller may see it. Asked before anything else of it is read.
struct Visible(JobId, Box<JobSpec>);

impl FromRequestParts<Arc<Shared>> for Visible {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Refusal> {
        let caller = Caller::from_request_parts(parts, shared).await?;
        // What is no name is the name of no job.
        let named = RawPathParams::from_request_parts(parts, shared).await.map_err(|_| Refusal::no_job())?;
        let name = named.iter().find(|(param, _)| *param == "id").map(|(_, name)| name.to_owned());
        let id = JobId::try_from(name.unwrap_or_default()).map_err(|_| Refusal::no_job())?;
        let spec = fetch_if_there::<JobSpec>(&shared.api.state, &farm::keys::spec(&id)).await?;
        let spec = spec.filter(|spec| caller.may_see(&spec.tenant)).ok_or_else(Refusal::no_job)?;
        Ok(Self(id, Box::new(spec)))
    }
}

type Answer<T> = Result<T, Refusal>;

async fn describe(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, JSON)], shared.description.clone())
}

async fn submit(State(shared): State<Arc<Shared>>, caller: Caller, Sent(body): Sent) -> Answer<(StatusCode, Json<Named>)> {
    let (api, Caller { tenant, among }) = (&shared.api, caller);
    let mut reader = serde_json::Deserializer::from_slice(&body);
    let read = serde_path_to_error::deserialize::<_, JobSpec>(&mut reader).map_err(|error| error.to_string());
    let mut spec = read.and_then(|spec| reader.end().map(|()| spec).map_err(|e| e.to_string())).map_err(Refusal::invalid)?;
    if !tenant.is_admin {
        spec.tenant.clone_from(&tenant.name);
    }
    let count = |result| metrics::scheduler().intake.with_label_values(&["http", result]).inc();
    let accepted = async {
        admit_for(&spec, &api.policy, &among)?;
        if tenant.jobs_max.is_some_and(|most| api.scheduler.active_of(&spec.tenant) >= most) {
            return Err(Refusal::too_many_jobs());
        }
        Ok(accept(&api.state, &api.broker, spec).await?)
    };
    match accepted.await {
        Ok((id, Accepted::New)) => {
            count("accepted");
            tracing::info!(job = %id, tenant = tenant.name, "submitted");
            Ok((StatusCode::CREATED, Json(Named { id })))
        }
        Ok((id, Accepted::Known | Accepted::Ended(_))) => Ok((StatusCode::OK, Json(Named { id }))),
        Ok((id, Accepted::Other)) => {
            count("rejected");
            Err(Refusal::conflict(format!("id: job {id} was submitted before with another message")))
        }
        Err(refusal) => {
            count("rejected");
            Err(refusal)
        }
    }
}

async fn list(
    State(shared): State<Arc<Shared>>,
    Caller { tenant, .. }: Caller,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Answer<Json<Page>> {
    let Query(Wanted { state, limit, after, tenant: wanted }) =
        wanted.map_err(|refused| Refusal::invalid(refused.body_text()))?;
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Refusal::invalid(format!("limit: {limit} is not from 1 to {PAGE_MAX}")));
    }
    let of = if tenant.is_admin { wanted } else { Some(tenant.name) };
    let filter = Filter { tenant: of, ended: state.map(|part| part == Part::Ended), after, limit };
    let scheduler = &shared.api.scheduler;
    let tenant_of = |id: &JobId| scheduler.view(id).map(|view| view.tenant).filter(|tenant| !tenant.is_empty());
    let jobs = status::list(&shared.api.state, &filter, tenant_of).await?;
    let next = (jobs.len() == limit).then(|| jobs.last().map(|job| job.id.clone())).flatten();
    Ok(Json(Page { jobs, next }))
}

async fn workers(State(shared): State<Arc<Shared>>, _: Caller) -> Json<Crew> {
    Json(Crew::from(shared.api.scheduler.workers()))
}

async fn encoders(State(shared): State<Arc<Shared>>, _: Caller) -> Json<Equipment> {
    Json(Equipment::of(&shared.api.scheduler.workers(), &shared.api.scheduler.offers()))
}

async fn show(State(shared): State<Arc<Shared>>, Visible(id, _): Visible) -> Answer<Json<JobStatus>> {
    let status = status::status(&shared.api.state, &id, shared.api.scheduler.view(&id)).await?;
    status.map(Json).ok_or_else(Refusal::no_job)
}

async fn cancel(State(shared): State<Arc<Shared>>, Visible(id, _): Visible) -> Answer<(StatusCode, Json<Named>)> {
    // One that was just seen may have been forgotten since.
    let not_now = |failure: Failure| match failure.code.fault() {
        Fault::Request => Refusal::no_job(),
        Fault::Source | Fault::Environment | Fault::Interruption => Refusal::from(failure),
    };
    shared.api.scheduler.cancel(&id).await.map_err(not_now)?;
    Ok((StatusCode::ACCEPTED, Json(Named { id })))
}

async fn retry(State(shared): State<Arc<Shared>>, Visible(id, _): Visible) -> Answer<(StatusCode, Json<Named>)> {
    shared.api.scheduler.retry(&id).await.map_err(not_as_it_stands)?;
    Ok((StatusCode::ACCEPTED, Json(Named { id })))
}

/// Deletes the output of a job, within the time that a request has: many thousands of objects. What is left after that is deleted
/// when it is asked for again, or by the janitor.
async fn delete(State(shared): State<Arc<Shared>>, caller: Caller, Visible(id, _): Visible) -> Answer<Json<Named>> {
    // All that stands at the place of an output is listed for it.
    let _place = shared.deletions.take(Some(caller.tenant.name.as_str()))?;
    shared.outputs.forget(&id);
    let deleted = shared.api.scheduler.delete_output(&id).await;
    shared.outputs.forget(&id);
    deleted.map_err(not_as_it_stands)?;
    Ok(Json(Named { id }))
}

/// What does not go with how a job stands.
fn not_as_it_stands(failure: Failure) -> Refusal {
    match failure.code.fault() {
        Fault::Request => Refusal::conflict(failure.message),
        Fault::Source | Fault::Environment | Fault::Interruption => Refusal::from(failure),
    }
}

#[cfg(test)]
mod tests;
