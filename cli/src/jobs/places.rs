//! Where each of many results goes: to a folder named after its source. A function of the sources.

use std::collections::{BTreeMap, BTreeSet};

use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use url::Url;

/// Longest part of a name that is taken from a source, in characters.
const STEM_CHARS_MAX: usize = 64;
/// Characters of a source's digest behind a name that others have too.
const DIGEST_CHARS: usize = 8;
/// What a source is called whose name has nothing that is taken.
const NAMELESS: &str = "video";

/// A folder's name for each of these sources, which differ, in their order: of ASCII letters, digits, `.`, `_` and `-`, and no
/// two the same. It is the name of the file; where several have that, with some of a digest of the whole URL, so that the order
/// does not matter.
pub fn folders(sources: &[Url]) -> Vec<String> {
    let stems: Vec<String> = sources.iter().map(stem).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    stems.iter().for_each(|stem| *counts.entry(stem.as_str()).or_default() += 1);
    let mut taken = BTreeSet::new();
    let name = |(url, stem): (&Url, &String)| {
        let digest = digest(url);
        let short: String = digest.chars().take(DIGEST_CHARS).collect();
        let is_alone = counts.get(stem.as_str()) == Some(&1);
        let name = if is_alone { stem.clone() } else { format!("{stem}-{short}") };
        // Somebody's file may be called as that.
        let name = if taken.contains(&name) { format!("{stem}-{digest}") } else { name };
        taken.insert(name.clone());
        name
    };
    sources.iter().zip(&stems).map(name).collect()
}

/// The name of a source's file without its ending, of characters that can stand in any path.
fn stem(url: &Url) -> String {
    let last = url.path_segments().into_iter().flatten().rfind(|part| !part.is_empty()).unwrap_or_default();
    let decoded = percent_decode_str(last).decode_utf8_lossy();
    let plain: &str = match decoded.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => &decoded,
    };
    let kept = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
    let mut name = String::new();
    for c in plain.chars().map(kept) {
        if name.len() < STEM_CHARS_MAX && !(c == '-' && name.ends_with('-')) {
            name.push(c);
        }
    }
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { NAMELESS.to_owned() } else { name.to_owned() }
}

fn digest(url: &Url) -> String {
    Sha256::digest(url.as_str().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use farm::job::JobId;

    use super::*;

    fn named(urls: &[&str]) -> Vec<String> {
        folders(&urls.iter().map(|url| Url::parse(url).expect("a URL")).collect::<Vec<_>>())
    }

    #[test]
    fn a_folder_is_named_after_its_file_in_safe_characters() {
        for (url, name) in [
            ("s3://b/videos/Summer_2024.final.mp4", "Summer_2024.final"),
            ("file:///v/The%20film%20%5B1%5D.mkv", "The-film-1"),
            ("https://tube.example/a/b/?v=1", "b"),
            ("https://tube.example/", "video"),
            ("s3://bucket", "video"),
            ("file:///v/%E6%98%A0%E7%94%BB.mp4", "video"),
            ("file:///v/..%2Fetc%2Fpasswd.mp4", "etc-passwd"),
            ("file:///v/.hidden", "hidden"),
            ("file:///v/%00%0a%FF", "video"),
        ] {
            assert_eq!(named(&[url]), [name], "{url}");
        }
        let long = named(&[&format!("s3://b/{}.mp4", "a".repeat(300))]);
        assert_eq!(long, ["a".repeat(STEM_CHARS_MAX)]);
    }

    #[test]
    fn files_of_the_same_name_have_different_folders_in_any_order() {
        let (a, b, c) = ("s3://a/film.mp4", "s3://b/film.mp4", "s3://b/film.mkv");
        let names = named(&[a, b, c, "s3://b/other.mp4"]);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 4, "{names:?}");
        assert!(names.iter().take(3).all(|name| name.starts_with("film-") && name.len() == 13), "{names:?}");
        assert_eq!(names.last().map(String::as_str), Some("other"));
        let turned = named(&[c, b, a]);
        assert_eq!(turned.iter().rev().collect::<Vec<_>>(), names.iter().take(3).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_that_is_called_as_a_folder_would_be_takes_no_place_from_it() {
        let (a, b) = ("s3://a/film.mp4", "s3://b/film.mp4");
        let called = named(&[a, b]);
        let taken = format!("s3://c/{}.mp4", called.first().expect("a name"));
        for urls in [[a, b, taken.as_str()], [taken.as_str(), a, b]] {
            let names = named(&urls);
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 3, "{names:?}");
            assert!(names.iter().all(|name| JobId::try_from(name.clone()).is_ok()), "{names:?}");
        }
    }
}
