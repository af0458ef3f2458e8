//! Which bytes of an object a request asks for (RFC 9110, 14): all, or one range of them. Pure.

use std::ops::Range;

use axum::http::{HeaderMap, header};

/// What is asked for of an object whose size is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// All of it. So are several ranges, and what is not understood: whoever answers may.
    All,
    /// These bytes, of which there is one at least.
    Part(Range<u64>),
    /// Bytes that it has not.
    Nothing,
}

impl Asked {
    /// What these headers ask for of an object of so many bytes.
    pub(super) fn of(headers: &HeaderMap, bytes: u64) -> Self {
        // Nothing is told by which it could be seen whether it is still the same.
        if headers.contains_key(header::IF_RANGE) {
            return Self::All;
        }
        let text = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
        range(text, bytes)
    }
}

fn range(text: &str, bytes: u64) -> Asked {
    let given = text.split_once('=').filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"));
    let Some((first, last)) = given.and_then(|(_, range)| range.trim().split_once('-')) else { return Asked::All };
    let part = match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => return Asked::All,
        (Some(first), Some(last)) => first..bytes.min(last.saturating_add(1)),
        (Some(first), None) if last.is_empty() => first..bytes,
        (None, Some(last)) if first.is_empty() => bytes.saturating_sub(last)..bytes,
        _ => return Asked::All,
    };
    if part.is_empty() { Asked::Nothing } else { Asked::Part(part) }
}

/// A number; one that is too large for any object is as large as can be.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn one_range_is_taken_as_it_is_meant() {
        for (text, asked) in [
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=0-99", Asked::Part(0..100)),
            ("Bytes=7-", Asked::Part(7..100)),
            ("bytes= 7-8", Asked::Part(7..9)),
            ("bytes=99-99999999999999999999999", Asked::Part(99..100)),
            ("bytes=-1", Asked::Part(99..100)),
            ("bytes=-1000", Asked::Part(0..100)),
            ("bytes=100-", Asked::Nothing),
            ("bytes=100-200", Asked::Nothing),
            ("bytes=99999999999999999999999-", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
        ] {
            assert_eq!(range(text, 100), asked, "{text}");
        }
        assert_eq!([range("bytes=0-", 0), range("bytes=-5", 0)], [Asked::Nothing, Asked::Nothing]);
    }

    #[test]
    fn what_is_not_one_range_is_all_of_it() {
        for text in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=9-8",
            "bytes=0-1,3-4",
            "bytes=a-b",
            "bytes=0x1-2",
            "bytes=+1-2",
            "items=0-1",
        ] {
            assert_eq!(range(text, 100), Asked::All, "{text}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(Asked::of(&headers, 100), Asked::All);
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-9"));
        assert_eq!(Asked::of(&headers, 100), Asked::Part(0..10));
        headers.insert(header::IF_RANGE, HeaderValue::from_static("\"a\""));
        assert_eq!(Asked::of(&headers, 100), Asked::All);
    }
}
