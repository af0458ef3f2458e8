//! Storage on S3 when the server or the network goes wrong: what was promised holds, or an error says what does not.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use farm::storage::{CreateOnly, Creation, Kind, Observer, Part, PinError, S3Settings, Storage, StorageError, Stores};
use tests::s3::{BUCKET, Fault, Operation, S3Server};

/// Longest time that a case may take: the SDK's five tries with their pauses, a few times over.
const CASE_TIME_MAX: Duration = Duration::from_secs(90);
const BUSY: Fault = Fault::Refused(503, "SlowDown");
/// More than any client asks for.
const ALWAYS: usize = 1000;
/// Large enough to go up in parts.
const LARGE: usize = 33 << 20;

/// Runs a case over a fresh server, within the limit.
async fn over<F: Future<Output = Result<()>>>(case: impl FnOnce(Arc<S3Server>, Storage) -> F) -> Result<()> {
    let server = Arc::new(S3Server::start()?);
    let storage = server.storage("p/")?;
    tokio::time::timeout(CASE_TIME_MAX, case(server, storage)).await.context("the case takes too long")?
}

async fn keys(storage: &Storage) -> Result<Vec<String>> {
    Ok(storage.list("").await?.into_iter().map(|entry| entry.key).collect())
}

/// Every file beside the bucket that belongs to an upload.
fn upload_files(server: &S3Server) -> Result<usize> {
    let items = std::fs::read_dir(server.folder())?.collect::<Result<Vec<_>, _>>()?;
    Ok(items.iter().filter(|item| item.file_name().to_string_lossy().starts_with(".upload")).count())
}

fn unavailable<T: std::fmt::Debug>(done: Result<T, StorageError>, words: &str) -> Result<()> {
    ensure!(matches!(&done, Err(StorageError::Unavailable { why, .. }) if why.contains(words)), "{done:?}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_busy_for_a_moment_is_asked_again() -> Result<()> {
    over(|server, storage| async move {
        storage.put("there", "x".into(), Kind::Json).await?;
        for operation in [
            Operation::Get,
            Operation::List,
            Operation::Put,
            Operation::PutNew,
            Operation::Delete,
            Operation::DeleteBatch,
            Operation::BeginUpload,
            Operation::PutPart,
            Operation::FinishUpload,
        ] {
            server.inject(operation, "", 1, BUSY);
        }
        let large = Bytes::from(vec![7; LARGE]);
        let (got, listed, put, created, in_parts) = tokio::join!(
            storage.get("there"),
            storage.list(""),
            storage.put("put", "y".into(), Kind::Json),
            storage.put_new("new", "z".into(), Kind::Json),
            storage.put("large", large.clone(), Kind::VideoMp4),
        );
        ensure!(got? == "x" && !listed?.is_empty() && created? == Creation::Created);
        put.and(in_parts)?;
        ensure!(storage.get("large").await? == large);
        ensure!(keys(&storage).await? == ["large", "new", "put", "there"]);
        storage.delete(&["put".to_owned()]).await?;
        storage.delete(&["new".to_owned(), "large".to_owned()]).await?;
        ensure!(keys(&storage).await? == ["there"]);
        ensure!(server.faults_left() == 0, "not every fault happened");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_server_that_stays_busy_is_given_up_and_named() -> Result<()> {
    over(|server, storage| async move {
        server.inject(Operation::Put, "", ALWAYS, BUSY);
        server.inject(Operation::Get, "", ALWAYS, BUSY);
        let (put, get) = tokio::join!(storage.put("k", "x".into(), Kind::Json), storage.get("k"));
        unavailable(put, "503 SlowDown")?;
        unavailable(get, "503 SlowDown")?;
        ensure!(server.count(Operation::Put) == 5, "{} tries", server.count(Operation::Put));
        ensure!(keys(&storage).await?.is_empty());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_known_to_be_ours() -> Result<()> {
    over(|server, storage| async move {
        server.inject(Operation::Put, "", 1, Fault::AnswerLost);
        storage.put("put", "x".into(), Kind::Json).await?;
        server.inject(Operation::PutNew, "", 1, Fault::AnswerLost);
        ensure!(storage.put_new("new", "mine".into(), Kind::Json).await? == Creation::Created);
        ensure!(server.count(Operation::PutNew) == 2 && storage.get("new").await? == "mine");
        // The same, but what is there is another's: the refusal was lost, and so is the race.
        storage.put("taken", "theirs".into(), Kind::Json).await?;
        server.inject(Operation::PutNew, "", 1, Fault::AnswerLost);
        ensure!(storage.put_new("taken", "mine".into(), Kind::Json).await? == Creation::Existed);
        ensure!(storage.get("taken").await? == "theirs");
        server.inject(Operation::FinishUpload, "", 1, Fault::AnswerLost);
        storage.put("large", vec![1; LARGE].into(), Kind::VideoMp4).await?;
        ensure!(storage.get("large").await?.len() == LARGE);
        ensure!(server.faults_left() == 0, "not every fault happened");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_server_that_does_not_answer_in_time_is_asked_again_and_at_last_given_up() -> Result<()> {
    over(|server, _| async move {
        // Longer than is waited for, whatever is sent.
        let late = || Fault::AnswerLate(Duration::from_secs(20));
        let settings = S3Settings { answer_wait: Duration::from_secs(1), ..server.settings()? };
        let storage = Stores::new(settings).open(&server.url("p/")?)?;
        for operation in [Operation::Put, Operation::Get, Operation::List, Operation::Delete] {
            server.inject(operation, "", 1, late());
        }
        storage.put("k", "x".into(), Kind::Json).await?;
        ensure!(storage.get("k").await? == "x" && keys(&storage).await? == ["k"]);
        storage.delete(&["k".to_owned()]).await?;
        // The write was done before the time was over; the second one finds it.
        server.inject(Operation::PutNew, "", 1, late());
        ensure!(storage.put_new("new", "mine".into(), Kind::Json).await? == Creation::Created);
        ensure!(server.count(Operation::PutNew) == 2 && storage.get("new").await? == "mine");
        // A body that stands still.
        server.inject(Operation::Get, "", 1, Fault::Slow(2, Duration::from_secs(20)));
        ensure!(storage.get("new").await? == "mine");
        ensure!(server.faults_left() == 0, "not every fault happened");
        server.inject(Operation::Put, "", ALWAYS, late());
        let began = Instant::now();
        unavailable(storage.put("never", "x".into(), Kind::Json).await, "in time")?;
        ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_write_that_breaks_off_leaves_nothing_and_is_made_again() -> Result<()> {
    over(|server, storage| async move {
        server.inject(Operation::Put, "", 1, Fault::RequestCut);
        storage.put("k", "whole".into(), Kind::Json).await?;
        ensure!(server.count(Operation::Put) == 2 && storage.get("k").await? == "whole");
        server.inject(Operation::Put, "", ALWAYS, Fault::RequestCut);
        let done = storage.put("never", "x".into(), Kind::Json).await;
        ensure!(matches!(done, Err(StorageError::Unavailable { .. })), "{done:?}");
        ensure!(keys(&storage).await? == ["k"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_asked_for_again_and_never_taken_for_whole() -> Result<()> {
    over(|server, storage| async move {
        let content = Bytes::from_iter((0..3_000_000_u32).map(|n| (n >> 7) as u8));
        storage.put("k", content.clone(), Kind::VideoMp4).await?;
        server.inject(Operation::Get, "", 2, Fault::AnswerCut);
        ensure!(storage.get("k").await? == content);
        ensure!(server.count(Operation::Get) == 3);
        server.inject(Operation::Get, "", ALWAYS, Fault::AnswerCut);
        let done = storage.get_range("k", 10..2_000_000).await;
        ensure!(matches!(done, Err(StorageError::Unavailable { .. })), "{:?}", done.map(|bytes| bytes.len()));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_slow_answer_is_waited_for() -> Result<()> {
    over(|server, storage| async move {
        let content = Bytes::from(vec![3; 1 << 20]);
        storage.put("k", content.clone(), Kind::VideoMp4).await?;
        server.inject(Operation::Get, "", 1, Fault::Slow(20, Duration::from_millis(150)));
        let began = Instant::now();
        ensure!(storage.get("k").await? == content);
        ensure!(began.elapsed() >= Duration::from_secs(3) && server.count(Operation::Get) == 1, "{:?}", began.elapsed());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_upload_in_parts_that_fails_or_is_dropped_is_aborted() -> Result<()> {
    over(|server, storage| async move {
        let large = Bytes::from(vec![9; LARGE]);
        server.inject(Operation::PutPart, "", 1, Fault::Refused(403, "AccessDenied"));
        let done = storage.put("large", large.clone(), Kind::VideoMp4).await;
        ensure!(matches!(done, Err(StorageError::Denied(_))), "{done:?}");
        ensure!(server.count(Operation::AbortUpload) == 1 && server.count(Operation::FinishUpload) == 0);
        server.inject(Operation::FinishUpload, "", 1, Fault::Refused(400, "InvalidPart"));
        unavailable(storage.put("large", large.clone(), Kind::VideoMp4).await, "InvalidPart")?;
        ensure!(server.count(Operation::AbortUpload) == 2);
        // Dropped once the first part is on its way.
        server.inject(Operation::PutPart, "", ALWAYS, BUSY);
        let parts = server.count(Operation::PutPart);
        let putting = tokio::spawn({
            let storage = storage.clone();
            async move { storage.put("large", large, Kind::VideoMp4).await }
        });
        until("no part is sent", || server.count(Operation::PutPart) > parts).await?;
        putting.abort();
        until("the upload is not aborted", || server.count(Operation::AbortUpload) == 3).await?;
        ensure!(keys(&storage).await?.is_empty());
        until("parts are left", || upload_files(&server).is_ok_and(|files| files == 0)).await
    })
    .await
}

async fn until(otherwise: &str, condition: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !condition() {
        ensure!(began.elapsed() < Duration::from_secs(30), "{otherwise} within 30 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn what_a_server_does_not_know_is_done_the_plain_way_and_asked_once() -> Result<()> {
    over(|server, storage| async move {
        let unknown = || Fault::Refused(501, "NotImplemented");
        for operation in [Operation::PutNew, Operation::CopyPart, Operation::DeleteBatch, Operation::ListUploads] {
            server.inject(operation, "", ALWAYS, unknown());
        }
        for round in ["a", "b"] {
            ensure!(storage.put_new(&format!("new/{round}"), "x".into(), Kind::Json).await? == Creation::Created);
            let parts = [format!("part/{round}/1"), format!("part/{round}/2")];
            storage.put(&parts[0], vec![1; 100].into(), Kind::VideoSegment).await?;
            storage.put(&parts[1], vec![2; 20_000_000].into(), Kind::VideoSegment).await?;
            let joined = parts.each_ref().map(Part::whole);
            ensure!(storage.join(&format!("whole/{round}"), &joined, Kind::VideoMp4).await? == 20_000_100);
            let whole = storage.get(&format!("whole/{round}")).await?;
            ensure!(whole.len() == 20_000_100 && whole[..100] == [1; 100] && whole[100..].iter().all(|byte| *byte == 2));
            storage.delete(&parts).await?;
        }
        ensure!(storage.abort_stale_uploads(Duration::ZERO).await? == 0);
        ensure!(keys(&storage).await? == ["new/a", "new/b", "whole/a", "whole/b"]);
        ensure!(server.count(Operation::PutNew) == 1 && server.count(Operation::DeleteBatch) == 1);
        ensure!(server.count(Operation::AbortUpload) == 1, "the upload that wanted copies");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_large_join_is_copied_by_the_server_and_fetches_little() -> Result<()> {
    over(|server, storage| async move {
        storage.put("init", vec![1; 1000].into(), Kind::VideoMp4).await?;
        let parts: Vec<String> = std::iter::once("init".to_owned()).chain((0..3).map(|n| format!("part/{n}"))).collect();
        for part in &parts[1..] {
            storage.put(part, vec![2; 12_000_000].into(), Kind::VideoSegment).await?;
        }
        let parts: Vec<Part> = parts.iter().map(Part::whole).collect();
        ensure!(storage.join("whole", &parts, Kind::VideoMp4).await? == 36_001_000);
        ensure!(server.count(Operation::CopyPart) == 3 && server.count(Operation::PutPart) == 1, "{:?}", server.seen());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_storage_that_is_tried_out_says_what_it_is() -> Result<()> {
    over(|server, storage| async move {
        ensure!(storage.check().await?.create_only == CreateOnly::Holds);
        server.inject(Operation::PutNew, "", ALWAYS, Fault::Unconditional);
        ensure!(storage.check().await?.create_only == CreateOnly::Ignored);
        ensure!(keys(&storage).await?.is_empty(), "something is left behind");
        let settings = server.settings()?;
        let wrong = S3Settings { secret_access_key: "another-secret".to_owned(), ..settings.clone() };
        let denied = Stores::new(wrong).open(&server.url("p/")?)?.check().await;
        ensure!(matches!(&denied, Err(StorageError::Denied(why)) if !why.contains("secret")), "{denied:?}");
        let nowhere = Stores::new(settings).open(&"s3://nowhere/p/".parse()?)?.check().await;
        ensure!(matches!(&nowhere, Err(StorageError::Denied(why)) if why.contains("there is no such bucket")), "{nowhere:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_pinned_object_is_read_until_it_changes() -> Result<()> {
    over(|server, storage| async move {
        let content = Bytes::from_iter((0..1_000_000_u32).map(|n| (n >> 5) as u8));
        storage.put("film é.mp4", content.clone(), Kind::VideoMp4).await?;
        let stores = Stores::new(server.settings()?);
        let url = server.url("p/film é.mp4")?;
        let pinned = stores.pin(&url).await?;
        ensure!(pinned.bytes() == 1_000_000);
        server.inject(Operation::Get, "", 1, Fault::AnswerCut);
        ensure!(pinned.read(500..900_000).await? == content.slice(500..900_000));
        // As large, but another.
        storage.put("film é.mp4", vec![0; 1_000_000].into(), Kind::VideoMp4).await?;
        let changed = pinned.read(0..10).await;
        ensure!(matches!(changed, Err(PinError::Changed(_))), "{changed:?}");
        storage.delete(&["film é.mp4".to_owned()]).await?;
        ensure!(matches!(pinned.read(0..10).await, Err(PinError::Changed(_))));
        let gone = stores.pin(&url).await.err();
        ensure!(matches!(gone, Some(StorageError::NotFound(_))), "{gone:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_to_be() -> Result<()> {
    let gone = S3Server::start()?;
    let (settings, url) = (gone.settings()?, gone.url("film.mp4")?);
    drop(gone);
    let began = Instant::now();
    let error = Stores::new(settings).pin(&url).await.err().context("nothing is there")?;
    let told = error.to_string();
    ensure!(matches!(error, StorageError::Unavailable { .. }) && told.contains("refused"), "{told}");
    ensure!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn an_observer_is_told_of_every_operation() -> Result<()> {
    over(|server, _| async move {
        let told = Arc::new(Mutex::new(Vec::new()));
        let noted = told.clone();
        let observer: Observer = Arc::new(move |observed| {
            noted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((observed.operation, observed.outcome));
        });
        let storage = Stores::new(server.settings()?).observed_by(observer).open(&server.url("")?)?;
        ensure!(storage.shown() == format!("s3://{BUCKET}/"));
        storage.put("k", "x".into(), Kind::Json).await?;
        let beside = storage.open_beside(&server.url("beside/")?)?;
        ensure!(beside.get("k").await.is_err());
        let told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        ensure!(told == [("put", "ok"), ("get", "not_found")], "{told:?}");
        Ok(())
    })
    .await
}
