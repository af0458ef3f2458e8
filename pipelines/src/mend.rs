//! What of an MP4 or MOV file the demuxer gets to read otherwise than it is: a track that it cannot read, for which it would
//! refuse the whole file, is free space to it; and edit lists, which it follows badly, say that all is presented:
//! [`crate::edits`] does what they ask for.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use farm::media::Chapter;

use crate::edits::{self, Edit, Edits};
use crate::looks::{self, Look, Looks};
use crate::{Reader, chapters, mp3, wav};

/// Largest `moov` box that is looked into.
const MOOV_BYTES_MAX: u64 = 64 << 20;
/// Most boxes before the `moov` box that are passed over.
const TOP_BOXES_MAX: usize = 64;
/// Longest read of a reader.
const READ_BYTES_MAX: usize = 4 << 20;

/// A source as the demuxer is to see it.
#[derive(Clone)]
pub struct Source {
    /// Its bytes, mended.
    pub reader: Arc<dyn Reader>,
    /// How many it has without that.
    pub bytes: u64,
    /// What its edit lists say.
    pub edits: Edits,
    /// What it says of its tracks.
    pub looks: Looks,
    /// Chapters that its header lists.
    pub chapters: Vec<Chapter>,
}

/// A source as the demuxer is to see it, and what there is to say about its tracks.
///
/// # Errors
/// When the source cannot be read.
pub fn mend(reader: Arc<dyn Reader>) -> io::Result<(Source, Vec<String>)> {
    let source_bytes = reader.bytes();
    let Some(moov) = find_moov(reader.as_ref())? else {
        let edits = mp3::edit(reader.as_ref())?.map_or(Edits::None, Edits::Mp3);
        let reader: Arc<dyn Reader> = match wav::end(reader.as_ref())? {
            Some(bytes) => Arc::new(wav::Beginning { reader, bytes }),
            None => reader,
        };
        return Ok((Source { reader, bytes: source_bytes, edits, looks: Looks::default(), chapters: Vec::new() }, Vec::new()));
    };
    let mut bytes = BytesMut::new();
    while (bytes.len() as u64) < moov.end - moov.start {
        let left = usize::try_from(moov.end - moov.start).unwrap_or(usize::MAX) - bytes.len();
        let part = reader.read_at(moov.start + bytes.len() as u64, left.min(READ_BYTES_MAX))?;
        if part.is_empty() {
            break;
        }
        bytes.extend_from_slice(&part);
    }
    let found = look_into(&bytes);
    let mut patches: Vec<_> = found.patches.into_iter().map(|patch| Patch { at: moov.start + patch.at, ..patch }).collect();
    if found.is_fragmented && !found.edits.is_empty() {
        patches.extend(hide_fragment_index(reader.as_ref())?);
    }
    let reader: Arc<dyn Reader> = if patches.is_empty() { reader } else { Arc::new(Mended { reader, patches }) };
    let source = Source {
        reader,
        bytes: source_bytes,
        edits: Edits::Tracks(Arc::new(found.edits)),
        looks: Arc::new(found.looks),
        chapters: found.chapters,
    };
    Ok((source, found.warnings))
}

/// What was found in the body of a `moov` box.
#[derive(Debug, Default)]
struct Findings {
    /// What is to be read otherwise, by its place in the body.
    patches: Vec<Patch>,
    edits: HashMap<u32, Edit>,
    looks: HashMap<u32, Look>,
    chapters: Vec<Chapter>,
    is_fragmented: bool,
    warnings: Vec<String>,
}

fn look_into(moov: &[u8]) -> Findings {
    let tracks: Vec<_> = boxes(moov).filter(|b| b.kind == *b"trak").collect();
    let mut found = Findings::default();
    for (number, track) in (1..).zip(&tracks) {
        if !is_readable(moov, track) {
            found.patches.push(Patch { at: track.at as u64 + 4, bytes: b"free".to_vec() });
            let handler = handler(moov, track);
            found.warnings.push(format!("track {number} of the container ({handler}) cannot be read: it does not say its codec"));
        }
    }
    if found.patches.len() == tracks.len() {
        // Nothing would be left: the demuxer has its own words for that.
        found = Findings::default();
    }
    found.looks = tracks.iter().filter_map(|track| Some((track_id(moov, track)?, look(moov, track)))).collect();
    for named in tracks.iter().filter_map(|track| descend(moov, track, &[b"tref", b"chap"])) {
        let ids =
            moov.get(named).unwrap_or_default().chunks_exact(4).filter_map(|id| Some(u32::from_be_bytes(*id.first_chunk()?)));
        ids.for_each(|id| found.looks.entry(id).or_default().names_chapters = true);
    }
    let list = boxes(moov).find(|b| b.kind == *b"udta").and_then(|udta| descend(moov, &udta, &[b"chpl"]));
    found.chapters = list.and_then(|body| moov.get(body)).map(chapters::read).unwrap_or_default();
    let timing = boxes(moov).find(|b| b.kind == *b"mvhd").and_then(|b| timescale(moov, b.body));
    found.is_fragmented = boxes(moov).any(|b| b.kind == *b"mvex");
    for (number, track) in (1..).zip(&tracks) {
        let (Some(movie_timescale), Some(id), Some(media_timescale)) =
            (timing, track_id(moov, track), descend(moov, track, &[b"mdia", b"mdhd"]).and_then(|body| timescale(moov, body)))
        else {
            continue;
        };
        let Some(list) = descend(moov, track, &[b"edts", b"elst"]) else {
            // Without a list the demuxer ends a track after the duration in its header, from time 0 on: reordered pictures, which
            // start later, lose their last.
            if !found.is_fragmented {
                found.edits.entry(id).or_insert(Edit::WHOLE);
            }
            continue;
        };
        match edits::read(moov.get(list.clone()).unwrap_or_default(), media_timescale, movie_timescale, found.is_fragmented) {
            Some((edit, told)) if !found.edits.contains_key(&id) => {
                found.edits.insert(id, edit);
                found.patches.push(Patch { at: list.start as u64, bytes: told });
            }
            Some(_) => {}
            None => found.warnings.push(format!(
                "track {number} of the container ({}) is put together of several pieces: where they meet, times may be off",
                handler(moov, track)
            )),
        }
    }
    found
}

/// Hides the index of a fragmented file, which is found by a box at its very end: after a seek the demuxer takes times of
/// presentation from there for times of the media.
fn hide_fragment_index(reader: &dyn Reader) -> io::Result<Option<Patch>> {
    const BOX_BYTES: u64 = 16;
    let Some(at) = reader.bytes().checked_sub(BOX_BYTES) else { return Ok(None) };
    let last = reader.read_at(at, 8)?;
    Ok((last.get(4..8) == Some(b"mfro")).then(|| Patch { at: at + 4, bytes: b"free".to_vec() }))
}

/// Bytes that stand at a place instead of those of the source.
#[derive(Debug)]
struct Patch {
    at: u64,
    bytes: Vec<u8>,
}

/// Reads some bytes otherwise than they are.
struct Mended {
    reader: Arc<dyn Reader>,
    patches: Vec<Patch>,
}

impl Reader for Mended {
    fn bytes(&self) -> u64 {
        self.reader.bytes()
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let read = self.reader.read_at(offset, len)?;
        let end = offset + read.len() as u64;
        if !self.patches.iter().any(|patch| patch.at < end && patch.at + patch.bytes.len() as u64 > offset) {
            return Ok(read);
        }
        let mut mended = BytesMut::from(&read[..]);
        for patch in &self.patches {
            for (&patched, position) in patch.bytes.iter().zip(patch.at..) {
                let index = position.checked_sub(offset).and_then(|i| usize::try_from(i).ok());
                if let Some(byte) = index.and_then(|i| mended.get_mut(i)) {
                    *byte = patched;
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

/// Ticks per second in the body of an `mvhd` or `mdhd` box, which begin alike.
fn timescale(bytes: &[u8], body: Range<usize>) -> Option<u32> {
    let body = bytes.get(body)?;
    let at = if body.first() == Some(&1) { 20 } else { 12 };
    Some(u32::from_be_bytes(*body.get(at..)?.first_chunk()?)).filter(|&ticks| ticks > 0)
}

/// The number by which a track is known in its container.
fn track_id(bytes: &[u8], track: &Found) -> Option<u32> {
    let body = descend(bytes, track, &[b"tkhd"]).and_then(|body| bytes.get(body))?;
    let at = if body.first() == Some(&1) { 20 } else { 12 };
    Some(u32::from_be_bytes(*body.get(at..)?.first_chunk()?))
}

/// What a track says of its picture: its header, and the colour box of its first sample entry.
fn look(bytes: &[u8], track: &Found) -> Look {
    let header = descend(bytes, track, &[b"tkhd"]).and_then(|body| bytes.get(body));
    let entries = descend(bytes, track, &[b"mdia", b"minf", b"stbl", b"stsd"]);
    let entry = entries.and_then(|body| boxes_in(bytes, body.start + 8..body.end).next());
    let colour = entry.and_then(|entry| {
        let mut within = boxes_in(bytes, entry.body.start + looks::SAMPLE_ENTRY_BYTES..entry.body.end);
        within.find(|b| b.kind == *b"colr").and_then(|b| bytes.get(b.body))
    });
    let full_range = colour.is_some_and(looks::is_full_range);
    Look { orientation: header.and_then(looks::orientation), full_range, names_chapters: false }
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
