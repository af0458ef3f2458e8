//! What an MP3 file says of the samples that its encoder added: the tag that LAME and others write into the first frame.
//!
//! Layer III delays sound by more than its packets tell: by what the encoder says, and by 529 samples in any decoder. What
//! is left at the end of the last packet is padding. Both are taken off as an edit list's cuts are.

use std::io;

use farm::rate::SECOND_NS;

use crate::Reader;
use crate::edits::Edit;

/// Delay of every Layer III decoder in samples (528, and one of the synthesis filter).
const DECODER_SAMPLES: u64 = 529;
/// Most ID3v2 tags before the first frame.
const TAGS_MAX: usize = 8;
/// Bytes of a first frame that are looked at: the tag ends before.
const FRAME_BYTES: usize = 192;

/// What of a bare MP3 file is presented, if it is one and says so.
///
/// # Errors
/// When the source cannot be read.
pub fn edit(reader: &dyn Reader) -> io::Result<Option<Edit>> {
    let mut at = 0;
    for _ in 0..TAGS_MAX {
        let head = reader.read_at(at, FRAME_BYTES)?;
        match id3_bytes(&head) {
            Some(bytes) => at += bytes,
            None => return Ok(from_frame(&head)),
        }
    }
    Ok(None)
}

/// Bytes of the ID3v2 tag that these begin with, if they do (ID3v2.4, 3.1).
fn id3_bytes(head: &[u8]) -> Option<u64> {
    let header: &[u8; 10] = head.strip_prefix(b"ID3").and_then(|_| head.first_chunk())?;
    let [_, _, _, _, _, flags, size @ ..] = header;
    let size = size.iter().fold(0_u64, |sum, &byte| sum << 7 | u64::from(byte & 0x7F));
    let footer = if flags & 0x10 != 0 { 10 } else { 0 };
    Some(10 + size + footer)
}

/// Reads a first frame: its header (ISO/IEC 11172-3, 2.4.1.3), and behind the room for its side information the tag.
fn from_frame(frame: &[u8]) -> Option<Edit> {
    let [0xFF, second, third, fourth] = *frame.first_chunk::<4>()? else { return None };
    if second & 0xE6 != 0xE2 {
        // Not Layer III.
        return None;
    }
    let version = second >> 3 & 3;
    let rate = [44_100_u64, 48_000, 32_000].get(usize::from(third >> 2 & 3))?;
    let is_mono = fourth >> 6 == 3;
    // MPEG 1, 2 and 2.5: samples per second are halved each time.
    let (rate, frame_samples, side_bytes) = match (version, is_mono) {
        (3, false) => (*rate, 1152, 32),
        (3, true) => (*rate, 1152, 17),
        (2, false) => (rate / 2, 576, 17),
        (2, true) => (rate / 2, 576, 9),
        (0, false) => (rate / 4, 576, 17),
        (0, true) => (rate / 4, 576, 9),
        _ => return None,
    };
    let tag = frame.get(4 + side_bytes..)?;
    let mut fields = tag.strip_prefix(b"Xing").or_else(|| tag.strip_prefix(b"Info"))?;
    let mut u32 = || {
        let (field, rest) = fields.split_first_chunk::<4>()?;
        fields = rest;
        Some(u32::from_be_bytes(*field))
    };
    let flags = u32()?;
    // Frames, then bytes, a table of 100 bytes and the quality, of which only the first matters.
    let frames = if flags & 1 != 0 { u64::from(u32()?) } else { return None };
    let skipped = [(2, 4), (4, 100), (8, 4)].into_iter().filter(|(flag, _)| flags & flag != 0).map(|(_, bytes)| bytes).sum();
    let encoder = fields.get(skipped..)?;
    let [first, second, third] = *encoder.get(21..)?.first_chunk::<3>()?;
    let (delay, padding) = (u64::from(first) << 4 | u64::from(second >> 4), u64::from(second & 0xF) << 8 | u64::from(third));
    let samples = (frames * frame_samples).checked_sub(delay + padding).filter(|&samples| samples > 0)?;
    if delay + padding == 0 {
        return None;
    }
    let to_ns = |samples: u64| {
        u64::try_from((u128::from(samples) * u128::from(SECOND_NS) + u128::from(rate) / 2) / u128::from(rate)).ok()
    };
    Some(Edit { media_ns: to_ns(delay + DECODER_SAMPLES)?, start_ns: 0, end_ns: Some(to_ns(samples)?) })
}
