//! Whether all of a source is there, by what its container says of its own size. Demuxers read on to the end and say nothing.

use std::io;

use crate::Reader;

/// Most boxes of MP4 at the top that are passed over; files of more are fragmented, and say nothing of their size as a whole.
const TOP_BOXES_MAX: usize = 64;
/// Matroska's and WebM's first element, and the one that holds all the rest (RFC 8794, RFC 9559).
const EBML: u32 = 0x1A45_DFA3;
const SEGMENT: u32 = 0x1853_8067;
/// Sizes in RIFF files that say that nobody knew.
const RIFF_UNKNOWN: u32 = 0xFFFF_FF00;

/// How many bytes a source would have if none were missing at its end; none when it does not say.
///
/// # Errors
/// When it cannot be read.
pub fn promised(reader: &dyn Reader) -> io::Result<Option<u64>> {
    let head = reader.read_at(0, 64)?;
    let (Some(first), Some(second)) = (head.first_chunk::<4>(), head.get(4..8)) else { return Ok(None) };
    Ok(match (first, second) {
        (first, _) if u32::from_be_bytes(*first) == EBML => matroska(&head),
        (b"RIFF", size) => size.first_chunk().map(|size| u32::from_le_bytes(*size)).and_then(riff),
        (_, b"ftyp") => mp4(reader)?,
        _ => None,
    })
}

/// Head of the EBML header, then of the segment.
fn matroska(head: &[u8]) -> Option<u64> {
    let (size, length) = vint(head.get(4..)?)?;
    let segment = 4 + length + usize::try_from(size?).ok()?;
    let (id, rest) = head.get(segment..)?.split_first_chunk::<4>()?;
    let (size, length) = vint(rest)?;
    let begin = u64::try_from(segment + 4 + length).ok()?;
    (u32::from_be_bytes(*id) == SEGMENT).then(|| begin.checked_add(size?)).flatten()
}

/// A size of EBML, none for "unknown"; and how many bytes it takes.
fn vint(bytes: &[u8]) -> Option<(Option<u64>, usize)> {
    let first = *bytes.first()?;
    let length = first.leading_zeros() as usize + 1;
    let digits = bytes.get(..length).filter(|_| length <= 8)?;
    let bits = 7 * length as u32;
    let value = digits.iter().fold(0, |value: u64, byte| value << 8 | u64::from(*byte)) & ((1 << bits) - 1);
    Some(((value != (1 << bits) - 1).then_some(value), length))
}

fn riff(size: u32) -> Option<u64> {
    (size > 0 && size < RIFF_UNKNOWN).then(|| u64::from(size) + 8)
}

fn mp4(reader: &dyn Reader) -> io::Result<Option<u64>> {
    let mut at = 0;
    for _ in 0..TOP_BOXES_MAX {
        let head = reader.read_at(at, 16)?;
        let Some(size) = head.first_chunk::<4>().map(|size| u32::from_be_bytes(*size)) else { return Ok(None) };
        let size = match (size, head.get(8..16).and_then(|size| size.first_chunk())) {
            (1, Some(size)) => u64::from_be_bytes(*size),
            (size, _) => size.into(),
        };
        let is_box = head.get(4..8).is_some_and(|kind| kind.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b' '));
        let Some(end) = at.checked_add(size).filter(|_| is_box && size >= 8) else { return Ok(None) };
        if end >= reader.bytes() {
            return Ok(Some(end));
        }
        at = end;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    struct Memory(Vec<u8>);

    impl Reader for Memory {
        fn bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
            let from = usize::try_from(offset).map_err(io::Error::other)?.min(self.0.len());
            Ok(Bytes::copy_from_slice(&self.0[from..(from + len).min(self.0.len())]))
        }
    }

    fn of(bytes: Vec<u8>) -> Option<u64> {
        promised(&Memory(bytes)).expect("memory")
    }

    #[test]
    fn each_container_says_it_in_its_own_way() {
        let matroska = |size: [u8; 8]| [&[0x1A, 0x45, 0xDF, 0xA3, 0x82, 0, 0, 0x18, 0x53, 0x80, 0x67][..], &size].concat();
        assert_eq!(of(matroska([1, 0, 0, 0, 0, 0, 3, 0xE8])), Some(19 + 1000));
        assert_eq!(of(matroska([1, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])), None, "a live stream");
        assert_eq!(of(b"RIFF\x10\x27\0\0AVI LIST".to_vec()), Some(10_008));
        assert_eq!(of(b"RIFF\xFF\xFF\xFF\xFFWAVE".to_vec()), None);
        let boxes =
            [&b"\0\0\0\x10ftypisom\0\0\0\0"[..], b"\0\0\0\x08free", b"\0\0\0\x01mdat\0\0\0\x01\0\0\0\0", &[7; 9]].concat();
        assert_eq!(of(boxes), Some(24 + (1 << 32)));
        let whole = [&b"\0\0\0\x10ftypisom\0\0\0\0"[..], b"\0\0\0\x08free"].concat();
        assert_eq!(of(whole.clone()), Some(24));
        assert_eq!(of([&whole[..], b"\0\0\0\0mdat"].concat()), None, "up to the end");
        assert_eq!(of(Vec::new()), None);
        assert_eq!(of(b"OggS\0\x02\0\0\0\0".to_vec()), None);
    }
}
