//! Deletes what is kept of videos that nobody has asked for in a while, or that would be too much.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use farm::storage::Entry;
use farm::{Failure, keys, metrics};

use super::film::{Film, Makes};
use super::runner::Runner;
use crate::scheduler::{Phase, delete_all, is_there};

/// What is kept of a video.
#[derive(Debug, Default, PartialEq, Eq)]
struct Kept {
    bytes: u64,
    /// When it was last asked for, in ms since 1970.
    asked_ms: u64,
}

/// Now, in ms since 1970.
pub(super) fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Which videos are not to be kept: those that nobody has asked for so long, and of the others those that were asked for
/// longest ago, until the rest is no more than so many bytes.
fn unwanted(kept: &BTreeMap<String, Kept>, now_ms: u64, keep: Duration, keep_bytes: u64) -> BTreeSet<String> {
    let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
    let mut videos: Vec<(&String, &Kept)> = kept.iter().collect();
    videos.sort_by_key(|(_, kept)| std::cmp::Reverse(kept.asked_ms));
    let mut bytes = 0_u64;
    let mut unwanted = BTreeSet::new();
    for (video, kept) in videos {
        bytes = bytes.saturating_add(kept.bytes);
        if now_ms.saturating_sub(kept.asked_ms) > keep_ms || bytes > keep_bytes {
            unwanted.insert(video.clone());
        }
    }
    unwanted
}

fn kept(prefix: &str, listed: &[Entry]) -> BTreeMap<String, Kept> {
    let mut videos: BTreeMap<String, Kept> = BTreeMap::new();
    for entry in listed {
        let Some((video, rest)) = entry.key.strip_prefix(prefix).and_then(|rest| rest.split_once('/')) else { continue };
        let kept = videos.entry(video.to_owned()).or_default();
        kept.bytes += entry.bytes;
        // What is said of it is written anew whenever it is asked for. A source that is still coming in has no such thing yet.
        if rest == "film.json" || kept.asked_ms == 0 {
            kept.asked_ms = entry.modified_ms;
        }
    }
    videos
}

/// Looks at everything that is kept for an instance.
///
/// # Errors
/// Storage's.
pub(super) async fn sweep(runner: &Runner, now_ms: u64) -> Result<(), Failure> {
    let prefix = keys::peertube_videos(runner.slug());
    let listed = runner.state.list(&prefix).await?;
    let policy = &runner.instance.policy;
    for video in unwanted(&kept(&prefix, &listed), now_ms, policy.keep, policy.keep_bytes) {
        // A video whose source is coming in is locked for as long as that takes; here everything else would wait for it.
        if runner.is_held(&video) {
            continue;
        }
        let _alone = runner.alone(&video).await;
        if runner.is_held(&video) {
            continue;
        }
        let own = runner.films.prefix(&video);
        let versions = runner.films.get(&video).await?.unwrap_or_default().versions;
        if is_read(runner, &versions).await? {
            continue;
        }
        for made in versions.iter().flat_map(|film| &film.made) {
            let Makes::Rungs { rungs, asked } = &made.makes else { continue };
            let unasked = rungs.iter().filter(|rung| !asked.contains(&rung.short)).count();
            let counted = metrics::scheduler().peertube_speculative.with_label_values(&[runner.slug(), "unasked"]);
            counted.inc_by(unasked as u64);
            let counted = metrics::scheduler().peertube_speculative.with_label_values(&[runner.slug(), "asked"]);
            counted.inc_by((rungs.len() - unasked) as u64);
        }
        // What is said of it goes first: without that, nobody counts on the rest.
        runner.state.delete(&[format!("{own}film.json")]).await?;
        let keys = listed.iter().map(|entry| entry.key.clone()).filter(|key| key.starts_with(&own)).collect();
        delete_all(&runner.state, keys).await?;
        tracing::info!(instance = runner.slug(), video, "not kept any more");
    }
    Ok(())
}

/// Whether something is being made of a video though no runner job of it is held: the next one will be about that.
async fn is_read(runner: &Runner, versions: &[Film]) -> Result<bool, Failure> {
    for made in versions.iter().flat_map(|film| &film.made) {
        if is_there(&runner.state, &keys::spec(&made.job)).await? {
            let views = runner.scheduler.follow(&made.job).await?;
            let has_ended = matches!(views.borrow().phase, Phase::Ended(_));
            if !has_ended {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_longest_goes_first() {
        let entry = |key: &str, bytes, modified_ms| Entry { key: format!("peertube/a/videos/{key}"), bytes, modified_ms };
        let listed = [
            entry("new/film.json", 1, 9_000),
            entry("new/x/source", 99, 1_000),
            entry("old/film.json", 1, 5_000),
            entry("old/y/source", 99, 4_000),
            entry("coming/z/source.0", 50, 8_000),
        ];
        let kept = kept("peertube/a/videos/", &listed);
        assert_eq!(kept["new"], Kept { bytes: 100, asked_ms: 9_000 });
        assert_eq!(kept["coming"], Kept { bytes: 50, asked_ms: 8_000 });
        let of = |keep_ms, bytes| unwanted(&kept, 10_000, Duration::from_millis(keep_ms), bytes);
        assert_eq!(of(10_000, 1_000), BTreeSet::new());
        assert_eq!(of(4_000, 1_000), ["old".to_owned()].into());
        assert_eq!(of(10_000, 160), ["old".to_owned()].into());
        assert_eq!(of(10_000, 120), ["coming".to_owned(), "old".to_owned()].into());
    }
}
