//! What every storage backend must do, modelled on the integration suite of the `object_store` crate.

use std::any::Any;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use farm::storage::{Creation, Entry, Kind, Part, Storage, StorageError};
use tokio::task::JoinSet;

/// A fresh, empty storage of the backend under test.
pub struct Fresh {
    /// The storage.
    pub storage: Storage,
    /// Whether of several writers of a new object exactly one is told that it created it.
    pub one_creator: bool,
    /// Whether a key may be the beginning of another (`a` beside `a/b`), as it may in a bucket.
    pub flat_keys: bool,
    /// Longest key that it is asked to hold, in bytes: 900 for all but a server that keeps a key in one file name.
    pub key_bytes_max: usize,
    /// What must live as long as the storage is used: a temporary folder, a server.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// Runs the contract over a backend: `storage_contract!(name, crate::fresh)`, where `fresh` is
/// `async fn() -> anyhow::Result<Fresh>`.
#[macro_export]
macro_rules! storage_contract {
    ($backend:ident, $fresh:path) => {
        mod $backend {
            $crate::contract_cases!(
                $fresh,
                $crate::contract::storage,
                what_was_put_is_read_and_listed,
                what_is_not_there_is_not_found,
                a_put_replaces_the_whole_object,
                readers_see_an_object_whole,
                of_several_writers_one_wins_whole,
                an_abandoned_put_leaves_all_or_nothing,
                a_big_object_comes_back_as_it_was,
                an_empty_object_is_an_object,
                a_range_ends_where_the_object_ends,
                a_listing_is_in_the_order_of_keys,
                a_prefix_is_made_of_whole_parts,
                a_listing_is_complete_beyond_a_thousand_objects,
                an_object_says_when_it_was_changed,
                an_existing_object_stays,
                of_sixteen_creators_one_creates,
                what_is_no_key_is_refused,
                keys_may_hold_any_letters,
                keys_may_be_long,
                parts_are_joined_in_order,
                many_small_and_some_big_parts_are_joined,
                pieces_of_objects_are_joined_with_other_bytes,
                what_is_too_large_for_one_request_is_stored_and_joined,
                a_presigned_url_reads_one_object,
                a_join_without_a_part_stores_nothing,
                a_delete_takes_what_it_names_and_nothing_else,
                puts_and_deletes_side_by_side_all_work,
                one_key_may_begin_another,
            );
        }
    };
}

async fn put(storage: &Storage, key: &str, content: impl Into<Bytes>) -> Result<()> {
    storage.put(key, content.into(), Kind::Json).await.with_context(|| format!("put {key}"))
}

async fn keys(storage: &Storage, prefix: &str) -> Result<Vec<String>> {
    let listing = storage.list(prefix).await.with_context(|| format!("list '{prefix}'"))?;
    Ok(listing.into_iter().map(|entry| entry.key).collect())
}

/// Bytes that differ from place to place, so that a mix-up of parts shows.
fn pattern(seed: u32, bytes: u32) -> Bytes {
    (0..bytes).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(97)) >> 13) as u8).collect()
}

fn not_found<T: std::fmt::Debug>(result: &Result<T, StorageError>, what: &str) -> Result<()> {
    ensure!(matches!(result, Err(StorageError::NotFound(_))), "{what}: expected NotFound, got {result:?}");
    Ok(())
}

fn bad_key<T: std::fmt::Debug>(result: &Result<T, StorageError>, what: &str) -> Result<()> {
    ensure!(matches!(result, Err(StorageError::BadKey(_))), "{what}: expected BadKey, got {result:?}");
    Ok(())
}

/// What was put can be read and listed at once, also through another handle.
pub async fn what_was_put_is_read_and_listed(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    ensure!(storage.list("").await?.is_empty(), "a fresh storage is empty");
    for (n, kind) in [Kind::Json, Kind::Playlist, Kind::VideoMp4, Kind::AudioMp4, Kind::VideoSegment, Kind::AudioSegment]
        .into_iter()
        .enumerate()
    {
        let (key, content) = (format!("jobs/j1/kind-{n}"), format!("content {n}"));
        storage.put(&key, content.clone().into(), kind).await?;
        ensure!(storage.clone().get(&key).await? == content, "{key}");
        let listing = storage.list("jobs/j1/").await?;
        let entry = listing.last().context("listed")?;
        ensure!(entry.key == key && entry.bytes == content.len() as u64, "{entry:?}");
    }
    Ok(())
}

/// Absence is its own answer, also where only longer or shorter keys are there.
pub async fn what_is_not_there_is_not_found(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    put(storage, "a/b/c", "x").await?;
    for key in ["none", "a", "a/b", "a/b/none", "a/b/c/d", "a/b/c/d/e", "A/b/c"] {
        not_found(&storage.get(key).await, key)?;
        not_found(&storage.get_range(key, 0..1).await, key)?;
    }
    ensure!(keys(storage, "").await? == ["a/b/c"]);
    Ok(())
}

/// Nothing of the former content stays.
pub async fn a_put_replaces_the_whole_object(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    for content in ["a long first content", "short", "", "a longer content than before"] {
        put(storage, "k", content).await?;
        ensure!(storage.get("k").await? == content);
        let sizes: Vec<u64> = storage.list("").await?.iter().map(|entry| entry.bytes).collect();
        ensure!(sizes == [content.len() as u64], "{sizes:?}");
    }
    Ok(())
}

/// A reader beside a writer sees one content or another, never a mixture, never a part.
pub async fn readers_see_an_object_whole(fresh: &Fresh) -> Result<()> {
    const ROUNDS: u8 = 40;
    // Every version is made of one byte and has its own size.
    let size = |version: u8| 300_000 + usize::from(version) * 1000;
    let storage = fresh.storage.clone();
    put(&storage, "live/object", vec![0; size(0)]).await?;
    let writing = tokio::spawn({
        let storage = storage.clone();
        async move {
            for version in 1..=ROUNDS {
                put(&storage, "live/object", vec![version; size(version)]).await?;
            }
            anyhow::Ok(())
        }
    });
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let storage = storage.clone();
        readers.spawn(async move {
            let mut newest = 0;
            let mut reads = 0;
            while newest < ROUNDS {
                let content = storage.get("live/object").await?;
                let version = *content.first().context("an empty object was seen")?;
                ensure!(content.iter().all(|byte| *byte == version), "two versions were mixed");
                ensure!(content.len() == size(version), "{} bytes of version {version}", content.len());
                ensure!(version >= newest, "version {version} was seen after {newest}");
                let listing = storage.list("live/").await?;
                let whole = |entry: &Entry| (0..=ROUNDS).any(|v| entry.bytes == size(v) as u64);
                ensure!(listing.len() == 1 && listing.iter().all(whole), "{listing:?}");
                (newest, reads) = (version, reads + 1);
            }
            Ok(reads)
        });
    }
    let reads: Vec<i32> = readers.join_all().await.into_iter().collect::<Result<_>>()?;
    ensure!(reads.iter().all(|n| *n > 0), "{reads:?}");
    writing.await?
}

/// Of contents put at the same time, one is there at the end, whole.
pub async fn of_several_writers_one_wins_whole(fresh: &Fresh) -> Result<()> {
    let mut writers = JoinSet::new();
    for n in 0..8 {
        let storage = fresh.storage.clone();
        writers.spawn(async move { put(&storage, "a/b/contended", pattern(n, 200_000 + n)).await });
    }
    writers.join_all().await.into_iter().collect::<Result<()>>()?;
    let content = fresh.storage.get("a/b/contended").await?;
    ensure!((0..8).any(|n| content == pattern(n, 200_000 + n)), "no writer's content: {} bytes", content.len());
    ensure!(keys(&fresh.storage, "").await? == ["a/b/contended"]);
    Ok(())
}

/// A writer that is dropped in the middle leaves the whole object or none.
pub async fn an_abandoned_put_leaves_all_or_nothing(fresh: &Fresh) -> Result<()> {
    let content = pattern(7, 8_000_000);
    for round in 0..8 {
        let key = format!("abandoned/{round}");
        // Dropped after 0, 1, 3, … ms: before, while and after it is stored.
        let _ = tokio::time::timeout(Duration::from_millis((1 << round) - 1), put(&fresh.storage, &key, content.clone())).await;
        match fresh.storage.get(&key).await {
            Ok(found) => ensure!(found == content, "{} bytes of {}", found.len(), content.len()),
            Err(StorageError::NotFound(_)) => {}
            Err(error) => bail!(error),
        }
    }
    let sizes: BTreeSet<u64> = fresh.storage.list("").await?.iter().map(|entry| entry.bytes).collect();
    ensure!(sizes.iter().all(|bytes| *bytes == content.len() as u64), "{sizes:?}");
    Ok(())
}

/// 20 MB in one piece: more than one part of a multipart upload.
pub async fn a_big_object_comes_back_as_it_was(fresh: &Fresh) -> Result<()> {
    let content = pattern(1, 20_000_000);
    put(&fresh.storage, "big", content.clone()).await?;
    ensure!(fresh.storage.get("big").await? == content, "changed");
    for range in [0..1, 5_242_879..5_242_881, 12_345_678..17_345_678, 19_999_999..20_000_000] {
        let wanted = content.slice(range.start as usize..range.end as usize);
        ensure!(fresh.storage.get_range("big", range.clone()).await? == wanted, "{range:?}");
    }
    Ok(())
}

/// Nothing in it, but it is there.
pub async fn an_empty_object_is_an_object(fresh: &Fresh) -> Result<()> {
    put(&fresh.storage, "active/0/j", Bytes::new()).await?;
    ensure!(fresh.storage.get("active/0/j").await?.is_empty());
    ensure!(fresh.storage.get_range("active/0/j", 0..10).await?.is_empty());
    let listing = fresh.storage.list("active/0/").await?;
    ensure!(listing.len() == 1 && listing.iter().all(|entry| entry.bytes == 0), "{listing:?}");
    Ok(())
}

/// A range is cut at the end of the object; beyond it there is nothing, and that is no error.
pub async fn a_range_ends_where_the_object_ends(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    put(storage, "k", "0123456789").await?;
    for (range, wanted) in [
        (0..10, "0123456789"),
        (0..4, "0123"),
        (3..7, "3456"),
        (9..10, "9"),
        (7..100, "789"),
        (0..u64::MAX, "0123456789"),
        (10..11, ""),
        (50..60, ""),
        (u64::MAX - 1..u64::MAX, ""),
        (4..4, ""),
        (0..0, ""),
    ] {
        ensure!(storage.get_range("k", range.clone()).await? == wanted, "{range:?}");
    }
    Ok(())
}

/// Keys are compared by their bytes, `/` among them; a walk through folders gives another order.
pub async fn a_listing_is_in_the_order_of_keys(fresh: &Fresh) -> Result<()> {
    let mut sorted =
        ["a+b", "a-b", "a-b/d", "a.b", "a/b", "a/b-c/d", "a/b.c", "a/c/d", "a0", "aa", "b", "á", "Z", "a/B", "日本/語"];
    // A folder cannot hold both `a-b` and `a-b/d`.
    sorted[2] = "a-bb/d";
    for key in sorted {
        put(&fresh.storage, key, key).await?;
    }
    sorted.sort_unstable();
    ensure!(keys(&fresh.storage, "").await? == sorted, "{:?}", keys(&fresh.storage, "").await?);
    ensure!(keys(&fresh.storage, "a/").await? == ["a/B", "a/b", "a/b-c/d", "a/b.c", "a/c/d"]);
    Ok(())
}

/// `a/` is not the beginning of `ab/x`, a listing goes down all levels, and a prefix is never half a name.
pub async fn a_prefix_is_made_of_whole_parts(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    for key in ["jobs/j1/spec", "jobs/j1/done/t1", "jobs/j1/done/t2", "jobs/j10/spec", "jobs/j1", "other"] {
        if key != "jobs/j1" || fresh.flat_keys {
            put(storage, key, "x").await?;
        }
    }
    ensure!(keys(storage, "jobs/j1/").await? == ["jobs/j1/done/t1", "jobs/j1/done/t2", "jobs/j1/spec"]);
    ensure!(keys(storage, "jobs/j1/done/").await? == ["jobs/j1/done/t1", "jobs/j1/done/t2"]);
    ensure!(keys(storage, "jobs/j10/").await? == ["jobs/j10/spec"]);
    for nothing in ["none/", "jobs/j2/", "jobs/j1/spec/", "jobs/j1/spec/x/", "job/"] {
        ensure!(keys(storage, nothing).await?.is_empty(), "{nothing}");
    }
    for refused in ["jobs", "jobs/j1/do", "/", "//", "../", "jobs/../", "jobs//", "/jobs/"] {
        bad_key(&storage.list(refused).await, refused)?;
    }
    Ok(())
}

/// Backends list and delete by pages of a thousand.
pub async fn a_listing_is_complete_beyond_a_thousand_objects(fresh: &Fresh) -> Result<()> {
    const OBJECTS: usize = 1100;
    let names: Vec<String> = (0..OBJECTS).map(|n| format!("many/{}/{n:05}", n % 3)).collect();
    let mut writers = JoinSet::new();
    for some in names.chunks(OBJECTS / 16 + 1).map(<[String]>::to_vec) {
        let storage = fresh.storage.clone();
        writers.spawn(async move {
            for name in some {
                put(&storage, &name, name.clone()).await?;
            }
            anyhow::Ok(())
        });
    }
    writers.join_all().await.into_iter().collect::<Result<()>>()?;
    let mut sorted = names.clone();
    sorted.sort_unstable();
    ensure!(keys(&fresh.storage, "many/").await? == sorted, "listed {}", keys(&fresh.storage, "many/").await?.len());
    fresh.storage.delete(&names).await?;
    ensure!(keys(&fresh.storage, "").await?.is_empty());
    Ok(())
}

/// By the storage's clock, which is taken to be right to the hour, and does not run backwards.
pub async fn an_object_says_when_it_was_changed(fresh: &Fresh) -> Result<()> {
    const HOUR_MS: u128 = 3_600_000;
    let mut former = 0;
    for content in ["one", "two", "three"] {
        put(&fresh.storage, "k", content).await?;
        let modified_ms = fresh.storage.list("").await?.first().context("listed")?.modified_ms;
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        ensure!(now_ms.abs_diff(modified_ms.into()) < HOUR_MS, "{modified_ms} ms, and it is {now_ms} ms");
        ensure!(modified_ms >= former, "{modified_ms} ms after {former} ms");
        former = modified_ms;
    }
    Ok(())
}

/// A create-only write creates; where the backend can tell, the next one leaves what is there.
pub async fn an_existing_object_stays(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    ensure!(storage.put_new("a/new", "first".into(), Kind::Json).await? == Creation::Created);
    ensure!(storage.get("a/new").await? == "first");
    let second = storage.put_new("a/new", "second".into(), Kind::Json).await?;
    let found = storage.get("a/new").await?;
    match second {
        Creation::Existed => ensure!(found == "first"),
        Creation::Created => ensure!(!fresh.one_creator && found == "second", "created twice"),
    }
    storage.delete(&["a/new".to_owned()]).await?;
    ensure!(storage.put_new("a/new", "third".into(), Kind::Json).await? == Creation::Created, "deleted, so new again");
    ensure!(storage.get("a/new").await? == "third");
    Ok(())
}

/// At the same time, in a folder that is not there yet. The winner's content is there, whole.
pub async fn of_sixteen_creators_one_creates(fresh: &Fresh) -> Result<()> {
    for round in 0..10 {
        let key = format!("race/{round}/marker");
        let mut racers = JoinSet::new();
        for n in 0..16 {
            let (storage, key) = (fresh.storage.clone(), key.clone());
            racers.spawn(async move { Ok((n, storage.put_new(&key, pattern(n, 50_000), Kind::Json).await?)) });
        }
        let outcomes: Vec<(u32, Creation)> = racers.join_all().await.into_iter().collect::<Result<_, StorageError>>()?;
        let winners: Vec<u32> = outcomes.iter().filter(|(_, c)| *c == Creation::Created).map(|(n, _)| *n).collect();
        ensure!(!winners.is_empty() && (winners.len() == 1 || !fresh.one_creator), "created by {winners:?}");
        let content = fresh.storage.get(&key).await?;
        ensure!(winners.iter().any(|n| content == pattern(*n, 50_000)), "not the content of {winners:?}");
    }
    Ok(())
}

/// Every operation refuses what is no key, and does nothing.
pub async fn what_is_no_key_is_refused(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    put(storage, "good", "x").await?;
    let (long, long_prefix) = ("k".repeat(901), format!("{}/", "k".repeat(901)));
    for key in ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../../b", "a/./b", "a/..", "a\\b", "a\0b", &long] {
        bad_key(&storage.put(key, "x".into(), Kind::Json).await, key)?;
        bad_key(&storage.put_new(key, "x".into(), Kind::Json).await, key)?;
        bad_key(&storage.get(key).await, key)?;
        bad_key(&storage.get_range(key, 0..1).await, key)?;
        bad_key(&storage.join(key, &[Part::whole("good")], Kind::Json).await, key)?;
        bad_key(&storage.join("joined", &[Part::whole("good"), Part::whole(key)], Kind::Json).await, key)?;
        bad_key(&storage.delete(&["good".to_owned(), key.to_owned()]).await, key)?;
    }
    bad_key(&storage.list(&long_prefix).await, "long prefix")?;
    ensure!(keys(storage, "").await? == ["good"], "{:?}", keys(storage, "").await?);
    Ok(())
}

/// Spaces, and everything that means something in a URL, in XML, in a shell or in a pattern.
pub async fn keys_may_hold_any_letters(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    let parts = [
        "with space",
        " lead",
        "plus+plus",
        "per%20cent",
        "%",
        "ha#sh",
        "que?ry",
        "am&p;",
        "a:b",
        "semi;colon",
        "equals=",
        "it's",
        "\"quoted\"",
        "<tag>",
        "til~de",
        "st*ar",
        "[br]{ace}",
        "co,mma",
        "@at",
        "do$llar",
        "ümlaut",
        "日本語",
        "🐟 shoal",
        "-dash",
        "e\u{301}",
        ".hidden",
        "...",
        "a..b",
    ];
    let mut names: Vec<String> = parts.iter().map(|part| format!("odd/{part}/{part}")).collect();
    for name in &names {
        put(storage, name, name.clone()).await?;
    }
    for (name, part) in names.iter().zip(parts) {
        ensure!(storage.get(name).await? == *name, "{name}");
        ensure!(keys(storage, &format!("odd/{part}/")).await? == [name.as_str()], "{name}");
    }
    storage.join("odd/joined é %2F", &names[..3].iter().map(Part::whole).collect::<Vec<_>>(), Kind::Json).await?;
    ensure!(storage.get("odd/joined é %2F").await? == names[..3].concat());
    names.push("odd/joined é %2F".to_owned());
    names.sort_unstable();
    ensure!(keys(storage, "odd/").await? == names, "{:?}", keys(storage, "odd/").await?);
    storage.delete(&names).await?;
    ensure!(keys(storage, "").await?.is_empty());
    Ok(())
}

/// Up to 900 bytes in all, in names of up to 225.
pub async fn keys_may_be_long(fresh: &Fresh) -> Result<()> {
    let mut key = ["x".repeat(224), "y".repeat(224), "z".repeat(224), "w".repeat(225)].join("/");
    key.truncate(fresh.key_bytes_max);
    ensure!(key.len() == fresh.key_bytes_max.min(900));
    put(&fresh.storage, &key, "x").await?;
    ensure!(fresh.storage.get(&key).await? == "x");
    ensure!(keys(&fresh.storage, "").await? == [key]);
    Ok(())
}

/// One after another, as often as named; onto an object that is there; of none.
pub async fn parts_are_joined_in_order(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    for (key, content) in [("p/1", "one "), ("p/2", ""), ("p/3", "three "), ("whole", "former content, longer than what comes")] {
        put(storage, key, content).await?;
    }
    let parts = ["p/3", "p/1", "p/2", "p/1"].map(Part::whole);
    ensure!(storage.join("whole", &parts, Kind::VideoMp4).await? == 14);
    ensure!(storage.get("whole").await? == "three one one ");
    ensure!(storage.join("new/alone", &parts[..1], Kind::VideoMp4).await? == 6);
    ensure!(storage.get("new/alone").await? == "three ");
    ensure!(storage.join("empty", &[], Kind::VideoMp4).await? == 0);
    ensure!(storage.get("empty").await?.is_empty());
    ensure!(storage.join("p/1", &["p/1", "p/3"].map(Part::whole), Kind::VideoMp4).await? == 10, "onto one of its parts");
    ensure!(storage.get("p/1").await? == "one three ");
    ensure!(keys(storage, "").await? == ["empty", "new/alone", "p/1", "p/2", "p/3", "whole"]);
    Ok(())
}

/// S3 takes no part below 5 MiB but the last, and no more than 10 000.
pub async fn many_small_and_some_big_parts_are_joined(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    let sizes = [1000, 7_000_000, 10, 6_000_000, 1, 5_242_879, 5_242_880, 3].into_iter().chain((0..40).map(|n| 1000 + n));
    let (mut parts, mut whole) = (Vec::new(), Vec::new());
    for (n, bytes) in (0..).zip(sizes) {
        let (key, content) = (format!("parts/{n:03}"), pattern(n, bytes));
        put(storage, &key, content.clone()).await?;
        whole.extend_from_slice(&content);
        parts.push(Part::whole(key));
    }
    ensure!(storage.join("v720/whole.mp4", &parts, Kind::VideoMp4).await? == whole.len() as u64);
    ensure!(storage.get("v720/whole.mp4").await? == whole, "changed");
    Ok(())
}

/// Some of an object's bytes, in any order, between bytes that are nowhere yet; what an object has not is an error.
pub async fn pieces_of_objects_are_joined_with_other_bytes(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    let (large, small) = (pattern(5, 13_000_000), pattern(6, 3000));
    put(storage, "large", large.clone()).await?;
    put(storage, "small", small.clone()).await?;
    let some = |key: &str, range: std::ops::Range<u64>| Part::Object { key: key.to_owned(), range: Some(range) };
    let head = pattern(7, 6_000_000);
    let parts = [
        Part::Bytes(head.clone()),
        some("small", 100..200),
        some("small", 300..400),
        some("large", 1..12_000_001),
        some("small", 0..0),
        some("small", 2000..3000),
        some("large", 7..8),
        Part::Bytes("end".into()),
    ];
    let wanted =
        [&head[..], &small[100..200], &small[300..400], &large[1..12_000_001], &small[2000..], &large[7..8], b"end"].concat();
    ensure!(storage.join("whole", &parts, Kind::VideoMp4).await? == wanted.len() as u64);
    ensure!(storage.get("whole").await? == wanted, "changed");
    ensure!(storage.join("few", &parts[1..3], Kind::VideoMp4).await? == 200);
    ensure!(storage.get("few").await? == [&small[100..200], &small[300..400]].concat());
    for range in [2999..3001, 4000..4001] {
        let refused = storage.join("more", &[Part::whole("small"), some("small", range)], Kind::VideoMp4).await;
        ensure!(matches!(refused, Err(StorageError::Unavailable { .. })), "{refused:?}");
    }
    ensure!(keys(storage, "").await? == ["few", "large", "small", "whole"]);
    Ok(())
}

/// 40 MB in one piece, and joined with others: uploads in parts, and copies on the server's side.
pub async fn what_is_too_large_for_one_request_is_stored_and_joined(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    let (large, small) = (pattern(3, 40_000_000), pattern(4, 1000));
    put(storage, "parts/large", large.clone()).await?;
    put(storage, "parts/small", small.clone()).await?;
    ensure!(storage.get_range("parts/large", 33_554_430..33_554_440).await? == large.slice(33_554_430..33_554_440));
    let parts = ["parts/small", "parts/large", "parts/small"].map(Part::whole);
    ensure!(storage.join("whole", &parts, Kind::VideoMp4).await? == 40_002_000);
    let whole = storage.get("whole").await?;
    ensure!(whole.len() == 40_002_000 && whole.starts_with(&small) && whole.ends_with(&small), "{} bytes", whole.len());
    ensure!(whole.slice(1000..40_001_000) == large, "changed");
    let sizes: Vec<u64> = storage.list("").await?.iter().map(|entry| entry.bytes).collect();
    ensure!(sizes == [40_000_000, 1000, 40_002_000], "{sizes:?}");
    Ok(())
}

/// Without credentials, with the media type it was stored with.
pub async fn a_presigned_url_reads_one_object(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    put(storage, "other", "secret").await?;
    storage.put("a b/ü.m3u8", "#EXTM3U".into(), Kind::Playlist).await?;
    let Some(url) = storage.presigned_get("a b/ü.m3u8", Duration::from_secs(60)).await? else { return Ok(()) };
    let answer = fetch(&url).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
    ensure!(head.starts_with("HTTP/1.1 200") && body == "#EXTM3U", "{answer}");
    ensure!(head.to_lowercase().contains("content-type: application/vnd.apple.mpegurl"), "{head}");
    ensure!(head.to_lowercase().contains("cache-control: public, max-age=60"), "{head}");
    Ok(())
}

/// GETs a URL over plain HTTP; the answer as text.
async fn fetch(url: &url::Url) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = (url.host_str().context("a host")?, url.port_or_known_default().context("a port")?);
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let (path, query) = (url.path(), url.query().unwrap_or_default());
    let request = format!("GET {path}?{query} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n\r\n", address.0, address.1);
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// It says which, and what was there under the key stays.
pub async fn a_join_without_a_part_stores_nothing(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    put(storage, "p/1", "one").await?;
    put(storage, "there", "stays").await?;
    let parts = ["p/1", "p/missing"].map(Part::whole);
    for key in ["there", "not/there"] {
        let refused = storage.join(key, &parts, Kind::VideoMp4).await;
        ensure!(matches!(&refused, Err(StorageError::NotFound(part)) if part.contains("p/missing")), "{refused:?}");
    }
    ensure!(keys(storage, "").await? == ["p/1", "there"]);
    ensure!(storage.get("there").await? == "stays");
    Ok(())
}

/// Not its neighbours, not what is below; what is not there is no error.
pub async fn a_delete_takes_what_it_names_and_nothing_else(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    for key in ["a/b/c", "a/b/d", "a/bc", "e/f/g/h", "i"] {
        put(storage, key, "x").await?;
    }
    let delete = async |names: &[&str]| storage.delete(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).await;
    delete(&[]).await?;
    delete(&["none", "a/none", "none/at/all", "a", "a/b", "i/below", "i/below/that"]).await?;
    ensure!(keys(storage, "").await? == ["a/b/c", "a/b/d", "a/bc", "e/f/g/h", "i"]);
    delete(&["a/b/c", "e/f/g/h", "a/b/c", "missing"]).await?;
    ensure!(keys(storage, "").await? == ["a/b/d", "a/bc", "i"]);
    not_found(&storage.get("a/b/c").await, "a/b/c")?;
    delete(&["a/b/d", "a/bc", "i"]).await?;
    ensure!(keys(storage, "").await?.is_empty());
    put(storage, "e/f", "where a folder was").await?;
    ensure!(storage.get("e/f").await? == "where a folder was");
    Ok(())
}

/// A folder that empties while another writes into it is no reason to fail.
pub async fn puts_and_deletes_side_by_side_all_work(fresh: &Fresh) -> Result<()> {
    let mut tasks = JoinSet::new();
    for n in 0..6 {
        let storage = fresh.storage.clone();
        tasks.spawn(async move {
            let key = format!("shared/deep/folder/{n}");
            for round in 0..60 {
                if round % 2 == 0 {
                    put(&storage, &key, key.clone()).await?;
                } else {
                    storage.put_new(&key, key.clone().into(), Kind::Json).await?;
                }
                ensure!(storage.get(&key).await? == key);
                storage.list("shared/").await?;
                storage.delete(std::slice::from_ref(&key)).await?;
                not_found(&storage.get(&key).await, &key)?;
            }
            Ok(())
        });
    }
    tasks.join_all().await.into_iter().collect::<Result<()>>()?;
    ensure!(keys(&fresh.storage, "").await?.is_empty());
    Ok(())
}

/// In a bucket `a` may stand beside `a/b`. A folder cannot hold both: it refuses the second, and keeps the first.
pub async fn one_key_may_begin_another(fresh: &Fresh) -> Result<()> {
    let storage = &fresh.storage;
    for (first, second) in [("a", "a/b"), ("c/d/e", "c/d"), ("f", "f/g/h")] {
        put(storage, first, first).await?;
        let stored = storage.put(second, second.into(), Kind::Json).await;
        let created = storage.put_new(second, second.into(), Kind::Json).await;
        let joined = storage.join(second, &[Part::whole(first)], Kind::Json).await;
        if fresh.flat_keys {
            stored?;
            created?;
            joined?;
            ensure!(storage.get(second).await? == first, "{second}");
        } else {
            ensure!(matches!(stored, Err(StorageError::Denied(_))), "{stored:?}");
            ensure!(matches!(created, Err(StorageError::Denied(_))), "{created:?}");
            ensure!(matches!(joined, Err(StorageError::Denied(_))), "{joined:?}");
            not_found(&storage.get(second).await, second)?;
        }
        ensure!(storage.get(first).await? == first, "{first}");
    }
    Ok(())
}
