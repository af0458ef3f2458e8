//! What an instance answers.

use std::path::{Path, PathBuf};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{DefaultBodyLimit, Multipart, Path as In, State as With};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::{Shared, State, Stored, Trouble, World, check, lock, uuid};

/// A request that is refused.
struct Refused(Box<Response>);

impl From<Response> for Refused {
    fn from(answer: Response) -> Self {
        Self(Box::new(answer))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        *self.0
    }
}

/// As PeerTube says it.
fn problem(status: u16, code: &str, detail: &str) -> Refused {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = json!({ "status": status.as_u16(), "code": code, "detail": detail });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response().into()
}

type Answer = Result<Response, Refused>;

pub(super) fn router(world: Shared) -> Router {
    Router::new()
        .route("/api/v1/config", get(config))
        .route("/api/v1/runners/register", post(register))
        .route("/api/v1/runners/unregister", post(unregister))
        .route("/api/v1/runners/jobs/request", post(request))
        .route("/api/v1/runners/jobs/{job}/accept", post(accept))
        .route("/api/v1/runners/jobs/{job}/abort", post(abort))
        .route("/api/v1/runners/jobs/{job}/error", post(error))
        .route("/api/v1/runners/jobs/{job}/update", post(update))
        .route("/api/v1/runners/jobs/{job}/success", post(success))
        .route("/api/v1/runners/jobs/{job}/files/videos/{video}/max-quality", post(file))
        .route("/api/v1/runners/jobs/{job}/files/videos/{video}/max-quality/audio", post(sound))
        .route("/api/v1/runners/jobs/{job}/files/videos/{video}/studio/task-files/{name}", post(task_file))
        .route("/api/v1/runners/jobs/{job}/files/videos/{video}/previews/max-quality", post(preview))
        .route("/socket.io/", get(socket))
        .layer(DefaultBodyLimit::disable())
        .with_state(world)
}

async fn config(With(world): With<Shared>) -> Response {
    axum::Json(json!({ "transcoding": { "enabledResolutions": lock(&world).like.resolutions } })).into_response()
}

fn body(world: &Shared, body: &Bytes) -> Result<Value, Refused> {
    lock(world).requests += 1;
    serde_json::from_slice(body).map_err(|_| {
        lock(world).fault("a body that is no JSON");
        problem(400, "", "body")
    })
}

fn text<'a>(body: &'a Value, name: &str, most: usize) -> Result<&'a str, Refused> {
    let text = body[name].as_str().filter(|text| !text.is_empty() && text.chars().count() <= most);
    text.ok_or_else(|| problem(400, "", &format!("{name} is not valid")))
}

/// Refuses a runner that is not known.
fn known(world: &Shared, token: &str) -> Result<(), Refused> {
    match lock(world).runners.contains_key(token) {
        true => Ok(()),
        false => Err(problem(404, "unknown_runner_token", "Unknown runner token")),
    }
}

fn version(world: &Shared, body: &Value) -> Result<(), Refused> {
    let Some(version) = body.get("version") else { return Ok(()) };
    let parts: Vec<&str> = version.as_str().unwrap_or_default().split('.').collect();
    if parts.len() == 3 && parts.iter().all(|part| part.parse::<u32>().is_ok()) {
        return Ok(());
    }
    lock(world).fault(format!("version {version}"));
    Err(problem(400, "", "version"))
}

async fn register(With(world): With<Shared>, raw: Bytes) -> Answer {
    let body = body(&world, &raw)?;
    version(&world, &body)?;
    let name = text(&body, "name", 100)?;
    if text(&body, "registrationToken", 1000)? != super::REGISTRATION {
        return Err(problem(404, "", "Registration token is invalid"));
    }
    let mut world = lock(&world);
    if world.runners.values().any(|other| other == name) {
        return Err(problem(400, "", "This runner name already exists on this instance"));
    }
    let token = format!("ptrt-{}", uuid());
    world.runners.insert(token.clone(), name.to_owned());
    Ok(axum::Json(json!({ "id": world.runners.len(), "runnerToken": token })).into_response())
}

async fn unregister(With(world): With<Shared>, raw: Bytes) -> Answer {
    let body = body(&world, &raw)?;
    let token = text(&body, "runnerToken", 1000)?;
    known(&world, token)?;
    lock(&world).runners.remove(token);
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn request(With(world): With<Shared>, raw: Bytes) -> Answer {
    let body = body(&world, &raw)?;
    version(&world, &body)?;
    if let Some(Trouble::Request(status)) = lock(&world).take(|trouble| matches!(trouble, Trouble::Request(_))) {
        return Err((StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), "Too many requests, sorry")
            .into_response()
            .into());
    }
    known(&world, text(&body, "runnerToken", 1000)?)?;
    let mut world = lock(&world);
    world.note_silence();
    let kinds = body["jobTypes"].as_array().cloned().unwrap_or_default();
    let offered = world.jobs.iter().filter(|job| job.state == State::Pending);
    let offered = offered.filter(|job| !world.like.filters_types || kinds.contains(&json!(job.kind)));
    let offered: Vec<Value> =
        offered.take(10).map(|job| json!({ "uuid": job.uuid, "type": job.kind, "payload": job.payload })).collect();
    Ok(axum::Json(json!({ "availableJobs": offered })).into_response())
}

async fn accept(With(world): With<Shared>, In(job): In<String>, raw: Bytes) -> Answer {
    let body = body(&world, &raw)?;
    known(&world, text(&body, "runnerToken", 1000)?)?;
    let mut world = lock(&world);
    if world.take(|trouble| *trouble == Trouble::LostRace).is_some() {
        return Err(problem(409, "runner_job_not_in_pending_state", "This job is not in pending state anymore"));
    }
    let Some(place) = world.jobs.iter().position(|own| own.uuid == job) else {
        return Err(problem(404, "", "Unknown runner job"));
    };
    let own = &mut world.jobs[place];
    if own.state != State::Pending {
        return Err(problem(400, "", "Job is not in pending state"));
    }
    (own.state, own.token, own.heard) = (State::Processing, Some(format!("ptrjt-{}", uuid())), Instant::now());
    own.accepted += 1;
    let answer = json!({ "job": { "uuid": own.uuid, "type": own.kind, "payload": own.payload, "jobToken": own.token,
                                   "state": { "id": 2, "label": "Processing" }, "failures": own.failures } });
    let is_ours = own.kind != "video-transcription";
    if !is_ours {
        world.fault("a job was taken that this runner does not do");
    }
    Ok(axum::Json(answer).into_response())
}

/// The place of a job that is in one of these states, by its token.
fn held(world: &Shared, job: &str, body: &Value, states: &[State]) -> Result<usize, Refused> {
    let (runner, token) = (text(body, "runnerToken", 1000)?, text(body, "jobToken", 1000)?);
    known(world, runner)?;
    let mut world = lock(world);
    let place = world.jobs.iter().position(|own| own.uuid == job && own.token.as_deref() == Some(token));
    let place = place.ok_or_else(|| problem(404, "", "Unknown runner job"))?;
    if !states.contains(&world.jobs[place].state) {
        return Err(problem(400, "runner_job_not_in_processing_state", "Job is not in processing state"));
    }
    world.note_silence();
    world.jobs[place].heard = Instant::now();
    Ok(place)
}

/// The place of a job that is being done, by its token.
fn held_by(world: &Shared, job: &str, body: &Value) -> Result<usize, Refused> {
    held(world, job, body, &[State::Processing])
}

async fn abort(With(world): With<Shared>, In(job): In<String>, raw: Bytes) -> Answer {
    let body = body(&world, &raw)?;
    let place = held_by(&world, &job, &body)?;
    text(&body, "reason", 5000)?;
    let job = &mut lock(&world).jobs[place];
    (job.state, job.token) = (State::Pending, None);
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn error(With(world): With<Shared>, In(job): In<String>, raw: Bytes) -> Answer {
    let body = body(&world, &raw)?;
    let place = held_by(&world, &job, &body)?;
    let message = text(&body, "message", 5000)?.to_owned();
    let job = &mut lock(&world).jobs[place];
    job.failures += 1;
    (job.error, job.token) = (message, None);
    job.state = if job.failures < 5 { State::Pending } else { State::Errored };
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Text fields of a form, and its files on disk.
struct Form {
    texts: Value,
    files: Vec<(String, String, PathBuf)>,
}

/// Files of the requests that have some.
const UPDATE_FILES: [&str; 3] = ["payload[videoChunkFile]", "payload[resolutionPlaylistFile]", "payload[masterPlaylistFile]"];
const SUCCESS_FILES: [&str; 3] = ["payload[videoFile]", "payload[resolutionPlaylistFile]", "payload[vttFile]"];
/// One more, from 8.0 on.
const STORYBOARD_FILE: &str = "payload[storyboardFile]";

async fn form(world: &Shared, mut parts: Multipart, named: &[&str]) -> Result<Form, Refused> {
    lock(world).requests += 1;
    let folder = lock(world).folder.clone();
    let broken = |_| problem(400, "", "the form broke off");
    let (mut texts, mut files) = (json!({}), Vec::new());
    while let Some(mut part) = parts.next_field().await.map_err(broken)? {
        let name = part.name().unwrap_or_default().to_owned();
        let Some(file) = part.file_name().map(str::to_owned) else {
            texts[name.as_str()] = json!(part.text().await.map_err(broken)?);
            continue;
        };
        if !named.contains(&&*name) {
            lock(world).fault(format!("a file as {name}"));
            return Err(problem(500, "", "Unexpected field"));
        }
        if lock(world).take(|trouble| *trouble == Trouble::HangUp).is_some() {
            // Axum closes a connection whose request it did not read to its end.
            let _ = part.chunk().await;
            return Err(problem(503, "", "gone"));
        }
        // The published name ends as the media type says.
        let kind = part.content_type().unwrap_or_default().to_owned();
        let ends = match kind.as_str() {
            "video/mp4" => "mp4",
            "application/vnd.apple.mpegurl" => "m3u8",
            "image/jpeg" => "jpg",
            other => {
                lock(world).fault(format!("{name} is sent as '{other}'"));
                "bin"
            }
        };
        let path = folder.join(format!("{}.{ends}", uuid()));
        let mut bytes = Vec::new();
        while let Some(chunk) = part.chunk().await.map_err(broken)? {
            bytes.extend_from_slice(&chunk);
        }
        std::fs::write(&path, bytes).map_err(|error| problem(500, "", &error.to_string()))?;
        files.push((name, file, path));
    }
    Ok(Form { texts, files })
}

async fn update(With(world): With<Shared>, In(job): In<String>, parts: Multipart) -> Answer {
    let form = form(&world, parts, &UPDATE_FILES).await?;
    // To one that is done it says nothing else.
    let place = held(&world, &job, &form.texts, &[State::Processing, State::Completed])?;
    let odd = form.texts.as_object().is_some_and(|texts| texts.keys().any(|key| key.starts_with("payload")));
    if odd || !form.files.is_empty() {
        return Err(problem(400, "", "Payload is invalid"));
    }
    let progress = form.texts["progress"].as_str().unwrap_or("0").parse().ok().filter(|percent| *percent <= 100);
    let mut world = lock(&world);
    match progress {
        Some(progress) => world.jobs[place].progress = world.jobs[place].progress.max(progress),
        None => world.fault("a progress that is no percentage"),
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn success(With(world): With<Shared>, In(job): In<String>, parts: Multipart) -> Answer {
    if let Some(Trouble::Success(status)) = lock(&world).take(|trouble| matches!(trouble, Trouble::Success(_))) {
        return Err(problem(status, "", "not now"));
    }
    if lock(&world).take(|trouble| *trouble == Trouble::TooSlow).is_some() {
        return Err(StatusCode::REQUEST_TIMEOUT.into_response().into());
    }
    let storyboard = lock(&world).like.storyboards.then_some(STORYBOARD_FILE);
    let form = form(&world, parts, &Vec::from_iter(SUCCESS_FILES.into_iter().chain(storyboard))).await?;
    let place = held_by(&world, &job, &form.texts)?;
    let own = lock(&world).jobs[place].clone();
    let Some(handed) = Handed::of(own.kind, &form) else { return Err(problem(400, "", "Payload is invalid")) };
    let (wanted, apart) = {
        let mut world = lock(&world);
        if form.files.len() != handed.files() {
            world.fault(format!("{}: {} files", own.kind, form.files.len()));
        }
        let asked = own.payload["output"]["resolution"].as_u64().and_then(|resolution| u32::try_from(resolution).ok());
        let best = world.best(&own.video, false).map_or(0, |best| best.resolution);
        (asked.unwrap_or(best), world.like.apart == Some(true))
    };
    let looked = tokio::task::spawn_blocking({
        let (handed, sprites) = (handed.clone(), own.payload["sprites"].clone());
        move || handed.look(wanted, apart, &sprites)
    });
    let (faults, size) = looked.await.unwrap_or_else(|error| (vec![error.to_string()], None));
    let long = lock(&world).take(|trouble| matches!(trouble, Trouble::LongAnswer(_)));
    if let Some(Trouble::LongAnswer(seconds)) = long {
        tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
    }
    let mut world = lock(&world);
    if world.jobs[place].state != State::Processing || world.jobs[place].token != own.token {
        world.fault(format!("{} {wanted}: handed in twice at once, or after it was taken away", own.kind));
    }
    world.faults.extend(faults.into_iter().map(|fault| format!("{} {wanted}: {fault}", own.kind)));
    world.jobs[place].state = State::Completed;
    let is_over = world.take(|trouble| *trouble == Trouble::OfferedAgain).is_none();
    if !is_over {
        (world.jobs[place].state, world.jobs[place].token) = (State::Pending, None);
    }
    let video = own.video;
    match handed {
        Handed::Sheet(sheet) => {
            world.storyboards.insert(video, sheet);
        }
        Handed::Edited(path) => {
            // It takes the place of all files, and everything is made of it anew.
            let (resolution, fps) = size.unwrap_or((wanted, 25));
            world.videos.insert(video.clone(), vec![Stored { path, resolution, playlist: None, sound: true }]);
            if is_over {
                world.graph(&video, resolution, fps);
            }
        }
        Handed::Film { media, playlist } => {
            let sound = playlist.is_none() || !apart || wanted == 0;
            let files = world.videos.entry(video).or_default();
            // The source is replaced by what was made of it at its own size.
            files.retain(|file| file.resolution != wanted || file.playlist.is_some() != playlist.is_some());
            files.push(Stored { path: media, resolution: wanted, playlist, sound });
        }
    }
    world.release(&own.uuid);
    match world.take(|trouble| *trouble == Trouble::LostAnswer) {
        Some(_) => Err(problem(504, "", "no answer")),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// What is handed in for a job, on disk.
#[derive(Clone)]
enum Handed {
    Film { media: PathBuf, playlist: Option<PathBuf> },
    Edited(PathBuf),
    Sheet(PathBuf),
}

impl Handed {
    /// None when a file is missing.
    fn of(kind: &str, form: &Form) -> Option<Self> {
        let file = |field: &str| form.files.iter().find(|(name, ..)| name == field).map(|(_, _, path)| path.clone());
        let media = || file("payload[videoFile]");
        Some(match kind {
            "generate-video-storyboard" => Self::Sheet(file(STORYBOARD_FILE)?),
            "video-studio-transcoding" => Self::Edited(media()?),
            "vod-hls-transcoding" => Self::Film { media: media()?, playlist: Some(file("payload[resolutionPlaylistFile]")?) },
            _ => Self::Film { media: media()?, playlist: None },
        })
    }

    /// How many files it is.
    fn files(&self) -> usize {
        match self {
            Self::Film { playlist: Some(_), .. } => 2,
            Self::Film { playlist: None, .. } | Self::Edited(_) | Self::Sheet(_) => 1,
        }
    }

    /// What is wrong with it, and of an edited video its short edge and frames per second.
    fn look(&self, resolution: u32, apart: bool, sprites: &Value) -> (Vec<String>, Option<(u32, u32)>) {
        match self {
            Self::Film { media, playlist } => {
                let is_picture = playlist.is_some() && apart && resolution > 0;
                let tracks = if is_picture { check::Tracks::Picture } else { check::Tracks::of(resolution) };
                (check::faults(media, playlist.as_deref(), resolution, tracks), None)
            }
            Self::Edited(media) => (check::faults(media, None, resolution, check::Tracks::Both), check::size(media).ok()),
            Self::Sheet(sheet) => (check::sheet_faults(sheet, sprites), None),
        }
    }
}

type Named = In<(String, String)>;

async fn file(With(world): With<Shared>, In((job, video)): Named, headers: HeaderMap, raw: Bytes) -> Answer {
    media(&world, &job, &video, &headers, &raw, false)
}

async fn sound(With(world): With<Shared>, In((job, video)): Named, headers: HeaderMap, raw: Bytes) -> Answer {
    media(&world, &job, &video, &headers, &raw, true)
}

/// The best file of a video, for its picture or for its sound.
fn media(world: &Shared, job: &str, video: &str, headers: &HeaderMap, raw: &Bytes, for_sound: bool) -> Answer {
    let body = body(world, raw)?;
    let place = held_by(world, job, &body)?;
    let mut world = lock(world);
    if world.jobs[place].video != video {
        return Err(problem(403, "", "not this job's video"));
    }
    let best = world.best(video, for_sound).map(|best| best.path.clone()).ok_or_else(|| problem(404, "", "no such video"))?;
    send(&mut world, &best, headers)
}

/// A file that a task of a studio job needs.
async fn task_file(
    With(world): With<Shared>,
    In((job, video, name)): In<(String, String, String)>,
    headers: HeaderMap,
    raw: Bytes,
) -> Answer {
    let body = body(&world, &raw)?;
    let place = held_by(&world, &job, &body)?;
    let mut world = lock(&world);
    let end = format!("/{job}/files/videos/{video}/studio/task-files/{name}");
    let tasks = world.jobs[place].payload["tasks"].as_array().cloned().unwrap_or_default();
    if !tasks.iter().any(|task| task["options"]["file"].as_str().is_some_and(|file| file.ends_with(&end))) {
        world.fault(format!("{name} is of no task"));
        return Err(problem(400, "", "File does not belong to the tasks of this job"));
    }
    let is_meant = |place: usize| name.contains(&format!("{job}-{place}."));
    if world.take(|trouble| matches!(*trouble, Trouble::NoTaskFile(place) if is_meant(place))).is_some() {
        return Err(problem(404, "", "no such file"));
    }
    let path = world.folder.join(&name);
    send(&mut world, &path, &headers)
}

/// A file, or the part of it that is asked for.
fn send(world: &mut World, path: &Path, headers: &HeaderMap) -> Answer {
    let whole = read(path)?;
    let asked = headers.get(header::RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
    let from: Option<usize> = asked.and_then(|(from, _)| from.parse().ok());
    let last: Option<usize> = asked.and_then(|(_, last)| last.parse().ok());
    let from_byte = from.unwrap_or(0);
    let mut part = whole.get(from_byte..).unwrap_or_default().to_vec();
    part.truncate(last.map_or(usize::MAX, |last| last + 1 - from_byte));
    let left = part.len();
    let range = format!("bytes {from_byte}-{}/{}", (from_byte + left).saturating_sub(1), whole.len());
    // A look at how a file begins is over before.
    let broken_off = world.take(|trouble| matches!(trouble, Trouble::BreakOff(bytes) if *bytes < left as u64));
    if let Some(Trouble::BreakOff(bytes)) = broken_off {
        part.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    world.sent_bytes += part.len() as u64;
    let ends_badly = part.len() < left;
    let pieces = futures::stream::iter(
        [Ok(Bytes::from(part))]
            .into_iter()
            .chain(ends_badly.then(|| Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)))),
    );
    let answer = Response::builder().header(header::CONTENT_LENGTH, left);
    let answer = match from {
        Some(_) => answer.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, range),
        None => answer,
    };
    answer.body(Body::from_stream(pieces)).map_err(|error| problem(500, "", &error.to_string()))
}

async fn preview(With(world): With<Shared>, In((job, video)): In<(String, String)>, raw: Bytes) -> Answer {
    let body = body(&world, &raw)?;
    held_by(&world, &job, &body)?;
    let path = lock(&world).folder.join(format!("{video}.jpg"));
    // As a server does that knows no ranges.
    Ok(read(&path)?.into_response())
}

fn read(path: &Path) -> Result<Vec<u8>, Refused> {
    std::fs::read(path).map_err(|error| problem(500, "", &error.to_string()))
}

async fn socket(With(world): With<Shared>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(move |socket| call(world, socket))
}

/// Calls a runner when there are jobs.
async fn call(world: Shared, mut socket: WebSocket) {
    let mut calls = lock(&world).calls.subscribe();
    let _ = socket.send(Message::text(r#"0{"sid":"s","pingInterval":25000,"pingTimeout":20000}"#)).await;
    let Some(Ok(Message::Text(asked))) = socket.recv().await else { return };
    let token = asked.strip_prefix("40/runners,").and_then(|auth| serde_json::from_str::<Value>(auth).ok());
    let token = token.and_then(|auth| auth["runnerToken"].as_str().map(str::to_owned)).unwrap_or_default();
    if !lock(&world).runners.contains_key(&token) {
        let _ = socket.send(Message::text(r#"44/runners,{"message":"Invalid runner token."}"#)).await;
        return;
    }
    let _ = socket.send(Message::text(r#"40/runners,{"sid":"n"}"#)).await;
    let _ = socket.send(Message::text("2")).await;
    loop {
        tokio::select! {
            _ = calls.recv() => {
                if socket.send(Message::text(r#"42/runners,["available-jobs"]"#)).await.is_err() { return }
            }
            said = socket.recv() => match said {
                Some(Ok(Message::Text(text))) if text == "3" => {}
                Some(Ok(Message::Text(text))) => lock(&world).fault(format!("'{text}' on the socket")),
                Some(Ok(_)) => {}
                None | Some(Err(_)) => return,
            }
        }
    }
}
