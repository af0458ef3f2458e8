//! MP4 and MOV files with a track that no demuxer can read: the demuxer refuses the whole file then. The track is hidden
//! from it, by reading its box as free space, so that the others can be used.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::Reader;

/// Largest `moov` box that is looked into.
const MOOV_BYTES_MAX: u64 = 64 << 20;
/// Most boxes before the `moov` box that are passed over.
const TOP_BOXES_MAX: usize = 64;
/// Longest read of a reader.
const READ_BYTES_MAX: usize = 4 << 20;

/// A reader without the unreadable tracks, and what each of them was.
///
/// # Errors
/// When the source cannot be read.
pub fn mend(reader: Arc<dyn Reader>) -> io::Result<(Arc<dyn Reader>, Vec<String>)> {
    let Some(moov) = find_moov(reader.as_ref())? else { return Ok((reader, Vec::new())) };
    let mut bytes = BytesMut::new();
    while (bytes.len() as u64) < moov.end - moov.start {
        let left = usize::try_from(moov.end - moov.start).unwrap_or(usize::MAX) - bytes.len();
        let part = reader.read_at(moov.start + bytes.len() as u64, left.min(READ_BYTES_MAX))?;
        if part.is_empty() {
            break;
        }
        bytes.extend_from_slice(&part);
    }
    let tracks: Vec<_> = boxes(&bytes).filter(|b| b.kind == *b"trak").collect();
    let mut hidden = Vec::new();
    let mut warnings = Vec::new();
    for (number, track) in tracks.iter().enumerate() {
        if !is_readable(&bytes, track) {
            hidden.push(moov.start + track.at as u64 + 4);
            warnings.push(format!(
                "track {} of the container ({}) cannot be read: it does not say its codec",
                number + 1,
                handler(&bytes, track)
            ));
        }
    }
    if hidden.is_empty() || hidden.len() == tracks.len() {
        return Ok((reader, Vec::new()));
    }
    Ok((Arc::new(Mended { reader, hidden }), warnings))
}

/// Reads the types of some boxes as `free`.
struct Mended {
    reader: Arc<dyn Reader>,
    /// Where these types stand in the source.
    hidden: Vec<u64>,
}

impl Reader for Mended {
    fn bytes(&self) -> u64 {
        self.reader.bytes()
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let read = self.reader.read_at(offset, len)?;
        let end = offset + read.len() as u64;
        if !self.hidden.iter().any(|&at| at < end && at + 4 > offset) {
            return Ok(read);
        }
        let mut mended = BytesMut::from(&read[..]);
        for &at in &self.hidden {
            for (letter, position) in b"free".iter().zip(at..) {
                let index = position.checked_sub(offset).and_then(|i| usize::try_from(i).ok());
                if let Some(byte) = index.and_then(|i| mended.get_mut(i)) {
                    *byte = *letter;
                }
            }
        }
        Ok(mended.freeze())
    }
}

/// Where the body of the `moov` box is, if the source begins as an MP4 or MOV file does.
fn find_moov(reader: &dyn Reader) -> io::Result<Option<Range<u64>>> {
    let mut at = 0;
    for _ in 0..TOP_BOXES_MAX {
        let head = reader.read_at(at, 16)?;
        let (Some(size), Some(kind)) = (head.first_chunk::<4>(), head.get(4..8)) else { return Ok(None) };
        if at == 0 && !matches!(kind, b"ftyp" | b"moov" | b"mdat" | b"wide" | b"free" | b"skip") {
            return Ok(None);
        }
        let (header, size) = match u32::from_be_bytes(*size) {
            0 => (8, reader.bytes() - at),
            1 => match head.get(8..16).and_then(|b| b.first_chunk::<8>()) {
                Some(size) => (16, u64::from_be_bytes(*size)),
                None => return Ok(None),
            },
            size => (8, u64::from(size)),
        };
        let Some(end) = at.checked_add(size).filter(|&end| size >= header && end <= reader.bytes()) else { return Ok(None) };
        if kind == b"moov" {
            return Ok(Some(at + header..end).filter(|_| size <= MOOV_BYTES_MAX));
        }
        at = end;
    }
    Ok(None)
}

/// A box in a buffer.
struct Found {
    kind: [u8; 4],
    /// Where it starts.
    at: usize,
    body: Range<usize>,
}

/// The boxes of a buffer, as far as they are whole.
fn boxes(bytes: &[u8]) -> impl Iterator<Item = Found> {
    boxes_in(bytes, 0..bytes.len())
}

fn boxes_in(bytes: &[u8], range: Range<usize>) -> impl Iterator<Item = Found> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let head = bytes.get(at..at.checked_add(8)?)?;
        let size = usize::try_from(u32::from_be_bytes(*head.first_chunk()?)).ok()?;
        let kind = *head.last_chunk()?;
        let end = at.checked_add(size).filter(|&end| size >= 8 && end <= range.end)?;
        let found = Found { kind, at, body: at + 8..end };
        at = end;
        Some(found)
    })
}

fn descend(bytes: &[u8], from: &Found, path: &[&[u8; 4]]) -> Option<Range<usize>> {
    path.iter().try_fold(from.body.clone(), |range, kind| boxes_in(bytes, range).find(|b| b.kind == **kind).map(|b| b.body))
}

/// Whether a track says what its samples are: an `stsd` box with an entry.
fn is_readable(bytes: &[u8], track: &Found) -> bool {
    let table = descend(bytes, track, &[b"mdia", b"minf", b"stbl", b"stsd"]);
    table.is_some_and(|body| body.len() > 16)
}

/// What a track's handler says it is.
fn handler(bytes: &[u8], track: &Found) -> &'static str {
    let kind = descend(bytes, track, &[b"mdia", b"hdlr"]).and_then(|body| bytes.get(body.start + 8..body.start + 12));
    match kind {
        Some(b"vide") => "picture",
        Some(b"soun") => "sound",
        Some(b"text" | b"subt" | b"sbtl") => "text",
        _ => "data",
    }
}
