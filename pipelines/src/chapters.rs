//! The list of chapters that Nero's software put into MP4 files (`moov/udta/chpl`), as many programs write it since: there
//! is no standard; mp4v2 and FFmpeg agree on this form.

use farm::media::Chapter;

/// Units of its times per ns: they are in 100 ns.
const UNIT_NS: u64 = 100;

/// The chapters in the body of a `chpl` box, each up to the next. The last, whose end it does not tell, ends with the media.
pub fn read(chpl: &[u8]) -> Vec<Chapter> {
    // Version and flags; version 1 has four more bytes before the count.
    let count_at = if chpl.first() == Some(&0) { 4 } else { 8 };
    let Some((count, mut rest)) = chpl.get(count_at..).and_then(<[u8]>::split_first) else { return Vec::new() };
    let mut chapters: Vec<Chapter> = Vec::new();
    for _ in 0..*count {
        let Some((start, after)) = rest.split_first_chunk::<8>() else { break };
        let Some((length, after)) = after.split_first() else { break };
        let Some((title, after)) = after.split_at_checked(usize::from(*length)) else { break };
        let start_ns = u64::from_be_bytes(*start).saturating_mul(UNIT_NS);
        if let Some(last) = chapters.last_mut() {
            last.end_ns = start_ns;
        }
        chapters.push(Chapter { start_ns, end_ns: u64::MAX, title: String::from_utf8_lossy(title).into_owned() });
        rest = after;
    }
    chapters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(version: u8, chapters: &[(u64, &str)]) -> Vec<u8> {
        let mut bytes = vec![version, 0, 0, 0];
        bytes.extend(std::iter::repeat_n(0, if version == 0 { 0 } else { 4 }));
        bytes.push(u8::try_from(chapters.len()).expect("few"));
        for (start, title) in chapters {
            bytes.extend(start.to_be_bytes());
            bytes.push(u8::try_from(title.len()).expect("short"));
            bytes.extend(title.as_bytes());
        }
        bytes
    }

    #[test]
    fn each_chapter_lasts_up_to_the_next() {
        let chapter = |start_ns, end_ns, title: &str| Chapter { start_ns, end_ns, title: title.to_owned() };
        for version in [0, 1] {
            let bytes = list(version, &[(0, "One"), (25_000_000, "Zwölf")]);
            let read = read(&bytes);
            assert_eq!(read, [chapter(0, 2_500_000_000, "One"), chapter(2_500_000_000, u64::MAX, "Zwölf")]);
        }
    }

    #[test]
    fn a_list_that_is_cut_off_gives_what_is_there() {
        let bytes = list(1, &[(0, "One"), (10, "Two")]);
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).len() < 2);
        }
    }
}
