//! What an MP4 or MOV file says of a track that GStreamer's demuxer (1.22) does not pass on: turns that are also mirrored, of
//! which it knows only some, full range, which it takes for limited, and whether its text is the titles of chapters.

use std::collections::HashMap;
use std::sync::Arc;

use farm::media::Orientation;

/// One in the fixed point of a track header's matrix.
const ONE: i32 = 0x0001_0000;
/// Bytes of the body of a visual sample entry before its boxes (ISO/IEC 14496-12, 12.1.3).
pub const SAMPLE_ENTRY_BYTES: usize = 78;

/// The looks of a source's tracks, by their number in the container.
pub type Looks = Arc<HashMap<u32, Look>>;

/// What a container says of a track.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// How it is to be turned, where it says so.
    pub orientation: Option<Orientation>,
    /// Whether it says that code values use the whole range.
    pub full_range: bool,
    /// Whether its texts are the titles of another track's chapters.
    pub names_chapters: bool,
}

/// The turn that the body of a track header (`tkhd`) asks for; none for a matrix that does anything else.
pub fn orientation(tkhd: &[u8]) -> Option<Orientation> {
    // Before it come times, of 32 or 64 bits, and six other fields: ISO/IEC 14496-12, 8.3.2.
    let matrix = if tkhd.first() == Some(&1) { 52 } else { 40 };
    let number = |index: usize| {
        let at = matrix + 4 * index;
        tkhd.get(at..at + 4).and_then(|bytes| bytes.first_chunk()).map(|bytes| i32::from_be_bytes(*bytes))
    };
    // x' = ax + cy, y' = bx + dy, with y downwards.
    let [a, b, c, d] = [number(0)?, number(1)?, number(3)?, number(4)?];
    let unit = |number: i32| (number % ONE == 0).then_some(number / ONE);
    let (mirrored, quarter_turns) = match [unit(a)?, unit(b)?, unit(c)?, unit(d)?] {
        [1, 0, 0, 1] => (false, 0),
        [0, 1, -1, 0] => (false, 1),
        [-1, 0, 0, -1] => (false, 2),
        [0, -1, 1, 0] => (false, 3),
        [-1, 0, 0, 1] => (true, 0),
        [0, -1, -1, 0] => (true, 1),
        [1, 0, 0, -1] => (true, 2),
        [0, 1, 1, 0] => (true, 3),
        _ => return None,
    };
    Some(Orientation { mirrored, quarter_turns })
}

/// Whether the body of a colour box (`colr`) says full range: ISO/IEC 14496-12, 12.1.5.
pub fn is_full_range(colr: &[u8]) -> bool {
    colr.starts_with(b"nclx") && colr.get(10).is_some_and(|flags| flags & 0x80 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_read_in_both_versions_of_the_header() {
        for (version, before) in [(0_u8, 40), (1, 52)] {
            let mut header = vec![0; before];
            header[0] = version;
            for number in [0, -ONE, 0, -ONE, 0, 0, 0, 0, 0x4000_0000] {
                header.extend_from_slice(&i32::to_be_bytes(number));
            }
            assert_eq!(orientation(&header), Some(Orientation { mirrored: true, quarter_turns: 1 }));
            assert_eq!(orientation(&header[..before + 12]), None, "cut off");
            header[before] = 1;
            assert_eq!(orientation(&header), None, "a matrix that stretches");
        }
    }

    #[test]
    fn only_nclx_says_full_range() {
        let colour = |kind: &[u8], flags: u8| [kind, &[0, 1, 0, 1, 0, 1, flags]].concat();
        assert!(is_full_range(&colour(b"nclx", 0x80)));
        assert!(!is_full_range(&colour(b"nclx", 0)) && !is_full_range(&colour(b"nclc", 0x80)) && !is_full_range(b"nclx"));
    }
}
