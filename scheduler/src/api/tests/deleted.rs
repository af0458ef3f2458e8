//! What was made, deleted by whom it was made for: all of it, and nothing of anybody else's.

use std::collections::BTreeSet;
use std::time::Duration;

use farm::encoder::{Extent, Offer, Offered};
use farm::job::{JobId, JobSpec, Make, Mp4, PosterSpec, StoryboardSpec, VideoCodec};
use farm::presence::{Duty, Presence};
use farm::task::{TaskId, Token, Word};
use farm::{Class, Life, keys};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{ADMIN, Act, Farm, LIMIT, ONE, Running, TWO, check_complete, janitor, message, open, text};

/// Asks for the output of a job to be deleted.
async fn delete(running: &Running, id: &str, token: &str) -> (u16, Value) {
    running.send(running.client.delete(format!("{}/v1/jobs/{id}/output", running.base)).bearer_auth(token)).await
}

/// Whether these objects are all that there is at the output.
async fn are_left(farm: &Farm, keys: &[&str]) -> bool {
    farm.outputs().await == keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<String>>()
}

/// Waits until nothing is active.
async fn closed(farm: &Farm) {
    let closed = async {
        while farm.active().await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, closed).await.expect("closed");
}

/// Has a job of tenant one come to this end.
async fn ended(farm: &Farm, running: &Running, spec: &JobSpec, state: &str) {
    assert_eq!(running.post("/v1/jobs", ONE, text(spec)).await.0, 201);
    running.reach(spec.id.as_ref().expect("a name").as_str(), ONE, state).await;
    closed(farm).await;
}

#[tokio::test]
async fn all_of_a_job_goes_and_what_stands_beside_it_stays() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let running = Running::start(&farm, open()).await;
    let mut spec = message(&farm, "film");
    (spec.output.mp4, spec.poster) = (Mp4::EachRung, Some(PosterSpec::default()));
    spec.storyboard = Some(StoryboardSpec::default());
    ended(&farm, &running, &spec, "done").await;
    let foreign = ["mine.txt", "v240/0123456789abcdef/00000.m4s", "v1080/index.m3u8"];
    for key in foreign {
        farm.put(key).await;
    }
    assert_eq!(running.get("/v1/jobs/film/output/master.m3u8", ONE).await.0, 200);
    for (id, token, status) in [("film", TWO, 404), ("none", ONE, 404), ("film", "no token of anybody", 401)] {
        assert_eq!(delete(&running, id, token).await.0, status, "{id} {token}");
    }
    assert!(farm.outputs().await.contains(keys::MASTER));
    // Deleted twice, it is deleted.
    for token in [ONE, ADMIN] {
        assert_eq!(delete(&running, "film", token).await, (200, json!({ "id": "film" })));
        assert!(are_left(&farm, &foreign).await, "{:?}", farm.outputs().await);
    }
    let (_, job) = running.get("/v1/jobs/film", ONE).await;
    assert_eq!((&job["state"], job.get("result")), (&json!("done"), None), "{job}");
    assert!(job["deleted_ms"].as_u64().is_some_and(|ms| ms > 0), "{job}");
    let (status, said) = running.get("/v1/jobs/film/output/master.m3u8", ONE).await;
    assert_eq!((status, &said["code"]), (410, &json!("deleted")));
    // The same message is the same job: it is not made again.
    assert_eq!(running.post("/v1/jobs", ONE, text(&spec)).await, (200, json!({ "id": "film" })));
    assert_eq!(running.post("/v1/jobs/film/retry", ONE, "").await.0, 409);
    assert!(are_left(&farm, &foreign).await, "{:?}", farm.outputs().await);
    running.stop().await;
}

#[tokio::test]
async fn of_still_pictures_alone_nothing_is_left() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let running = Running::start(&farm, open()).await;
    let mut spec = message(&farm, "stills");
    (spec.make, spec.poster) = (Make::Stills, Some(PosterSpec::default()));
    spec.storyboard = Some(StoryboardSpec::default());
    ended(&farm, &running, &spec, "done").await;
    assert!(farm.outputs().await.contains(keys::REPORT));
    assert_eq!(delete(&running, "stills", ONE).await.0, 200);
    assert!(are_left(&farm, &[]).await, "{:?}", farm.outputs().await);
    running.stop().await;
}

#[tokio::test]
async fn what_a_later_job_has_put_in_the_place_stays_whole() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let running = Running::start(&farm, open()).await;
    for id in ["first", "second"] {
        ended(&farm, &running, &message(&farm, id), "done").await;
    }
    let before = farm.outputs().await;
    assert_eq!(delete(&running, "first", ONE).await.0, 200);
    check_complete(&farm).await;
    assert!(farm.outputs().await.len() < before.len(), "the media of the first is gone");
    assert_eq!(running.get("/v1/jobs/second/output/master.m3u8", ONE).await.0, 200);
    assert_eq!(delete(&running, "second", ONE).await.0, 200);
    assert!(are_left(&farm, &[]).await, "{:?}", farm.outputs().await);
    running.stop().await;
}

#[tokio::test]
async fn a_deletion_that_was_cut_short_is_finished_when_it_is_asked_for_again() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let running = Running::start(&farm, open()).await;
    let spec = JobSpec { poster: Some(PosterSpec::default()), ..message(&farm, "film") };
    ended(&farm, &running, &spec, "done").await;
    // In their order: the first of the playlists, the report, one media playlist, some media.
    for gone in [keys::MASTER, keys::REPORT, "v240/i-frames.m3u8", "v240/index.m3u8"] {
        farm.output.delete(&[gone.to_owned()]).await.expect("deleted");
    }
    assert_eq!(delete(&running, "film", ONE).await.0, 200);
    assert!(are_left(&farm, &[]).await, "{:?}", farm.outputs().await);
    running.stop().await;
}

#[tokio::test]
async fn a_job_that_goes_on_keeps_what_it_has_and_one_that_failed_is_over_once_its_media_is_deleted() {
    let mut farm = Farm::new();
    farm.add_worker(|message| match message.task {
        TaskId::Video(1) if message.job.as_str() == "bad" => Act::Fail(farm::Code::Undecodable),
        TaskId::Video(1) => Act::Beat,
        _ => Act::Do,
    });
    let running = Running::start(&farm, open()).await;
    ended(&farm, &running, &message(&farm, "bad"), "failed").await;
    assert!(!farm.outputs().await.is_empty(), "what is done is kept for a while");
    // A worker that has not heard yet that it is over may go on for a moment: what it makes goes when it is asked for again.
    let gone = async {
        loop {
            assert_eq!(delete(&running, "bad", ONE).await.0, 200);
            if are_left(&farm, &[]).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, gone).await.expect("nothing is left");
    let (status, refused) = running.post("/v1/jobs/bad/retry", ONE, "").await;
    assert_eq!(status, 409, "{refused}");
    assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("media is gone")), "{refused}");
    assert_eq!(running.post("/v1/jobs", ONE, text(&message(&farm, "slow"))).await.0, 201);
    running.reach("slow", ONE, "encoding").await;
    let (status, refused) = delete(&running, "slow", ONE).await;
    assert_eq!((status, &refused["code"]), (409, &json!("conflict")));
    let (_, job) = running.get("/v1/jobs/slow", ONE).await;
    assert_eq!(job.get("deleted_ms"), None, "{job}");
    running.stop().await;
}

#[tokio::test]
async fn the_janitor_deletes_what_came_after_a_deletion() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let running = Running::start(&farm, open()).await;
    // Of another job, which may go on.
    let other = "v240/0123456789abcdef/00000.m4s";
    farm.put(other).await;
    ended(&farm, &running, &message(&farm, "film"), "done").await;
    let id = JobId::try_from("film".to_owned()).expect("an id");
    let told = keys::told(&id, Life::FIRST);
    let is_told = async {
        while farm.state.get(&told).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, is_told).await.expect("told");
    let master = farm.output.get(keys::MASTER).await.expect("it is there");
    let segment = farm.outputs().await.into_iter().find(|key| key.ends_with(".m4s")).expect("a segment");
    assert_eq!(delete(&running, "film", ONE).await.0, 200);
    // A worker that was late, and a file of somebody's.
    farm.put(&segment).await;
    farm.put("mine.txt").await;
    let at_once = janitor::Settings { grace: Duration::ZERO, ..janitor::Settings::default() };
    janitor::round(&at_once, &farm.state).await.expect("a round");
    assert!(are_left(&farm, &["mine.txt", other]).await, "{:?}", farm.outputs().await);
    // A multivariant playlist that leads nowhere may be anybody's.
    farm.output.put(keys::MASTER, master, farm::storage::Kind::Playlist).await.expect("stored");
    assert_eq!(delete(&running, "film", ONE).await.0, 200);
    assert!(farm.outputs().await.contains(keys::MASTER));
    running.stop().await;
}

#[tokio::test]
async fn what_was_noted_of_a_job_that_is_forgotten_is_not_of_a_later_one_of_its_name() {
    let mut farm = Farm::new();
    farm.add_worker(|_| Act::Do);
    let running = Running::start(&farm, open()).await;
    let id = JobId::try_from("film".to_owned()).expect("an id");
    farm.state.put(&keys::deleted(&id), "".into(), farm::storage::Kind::Json).await.expect("stored");
    ended(&farm, &running, &message(&farm, "film"), "done").await;
    let (_, job) = running.get("/v1/jobs/film", ONE).await;
    assert!(job["result"].is_object() && job["deleted_ms"].is_null(), "{job}");
    assert_eq!(running.get("/v1/jobs/film/output/master.m3u8", ONE).await.0, 200);
    running.stop().await;
}

fn presence(worker: &Token, duty: Duty) -> Presence {
    let (version, devices) = ("0.1.0".to_owned(), Vec::new());
    Presence { worker: worker.clone(), version, slots: 3, running: 0, duty, devices, speed: None }
}

#[tokio::test]
async fn encoders_are_told_by_class_with_the_workers_that_have_them() {
    let farm = Farm::new();
    let running = Running::start(&farm, open()).await;
    assert_eq!(running.get("/v1/encoders", ONE).await, (200, json!({ "classes": [] })));
    assert_eq!(running.get("/v1/encoders", "no token of anybody").await.0, 401);
    let [plain, strong, leaving] = [(); 3].map(|()| Token::random());
    let offered =
        |side| Offered { class: Class::Nvenc, codec: VideoCodec::Hevc, largest: Extent::of(side, 1), sessions_max: Some(5) };
    let heard = async {
        loop {
            // Before it listens, nothing is heard.
            for (worker, duty) in [(&plain, Duty::Taking), (&strong, Duty::Taking), (&leaving, Duty::Draining)] {
                farm.broker.tell(Word::Here(presence(worker, duty)));
            }
            for (worker, side) in [(&strong, 4096), (&leaving, 1024)] {
                farm.broker.tell(Word::Offer(Offer { worker: worker.clone(), encoders: vec![offered(side)] }));
            }
            let (_, said) = running.get("/v1/encoders", TWO).await;
            if said["classes"].as_array().is_some_and(|classes| classes.len() == 2) && said["classes"][0]["workers"] == 2 {
                return said;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let said = timeout(LIMIT, heard).await.expect("all are heard of");
    let library = |codec: &str| json!({ "codec": codec, "workers": 2, "side_max": null, "sessions_max": null });
    let device = json!({ "codec": "hevc", "workers": 1, "side_max": 4096, "sessions_max": 5 });
    assert_eq!(
        said,
        json!({ "classes": [
            { "class": "cpu", "workers": 2, "slots": 6, "codecs": [library("h264"), library("hevc"), library("av1")] },
            { "class": "nvenc", "workers": 1, "slots": 3, "codecs": [device] },
        ] })
    );
    running.stop().await;
}
