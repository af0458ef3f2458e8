//! A plain MP4 file (ISO/IEC 14496-12) of tracks that were made as fragments: all that a player needs stands before the media,
//! and the media are the fragments' samples, byte by byte.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use farm::boxes::{BoxError, Child, Fields, children, descend, find, put_box, put_full};

use crate::boxes::{Fragment, Sample, fragments, timescale};

/// Ticks per second of the movie's own times: durations of tracks and edits.
const TIMESCALE: u32 = 90_000;

/// Samples whose bytes stand together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Where they begin, in bytes: in the segment, then in the file.
    pub offset: u64,
    /// Decode time of the first one in ticks.
    pub start: u64,
    /// The samples, in decode order.
    pub samples: Vec<Sample>,
}

impl Run {
    /// Where the samples' bytes are.
    pub fn bytes(&self) -> Range<u64> {
        self.offset..self.offset + self.samples.iter().map(|sample| u64::from(sample.bytes)).sum::<u64>()
    }
}

/// A track of the file.
pub struct Track<'a> {
    /// Its init segment.
    pub init: &'a [u8],
    /// How long it is shown, in ticks of its own time scale.
    pub ticks: u64,
    /// Its samples in order of decoding, with their places in the file's media.
    pub runs: Vec<Run>,
}

/// The samples of a segment.
///
/// # Errors
/// When it is no segment as they are written here.
pub fn runs(segment: &Bytes) -> Result<Vec<Run>, BoxError> {
    let run = |place: Range<usize>| {
        let fragment = Fragment::read(&segment.slice(place.clone()))?;
        // The data are the end of the fragment.
        Ok(Run { offset: (place.end - fragment.data.len()) as u64, start: fragment.base_time, samples: fragment.samples })
    };
    fragments(segment)?.into_iter().map(run).collect()
}

/// What stands before so many bytes of media in the file.
///
/// # Errors
/// When an init segment is not of one track, or a track has no samples.
pub fn head(tracks: &[Track<'_>], media_bytes: u64) -> Result<Bytes, BoxError> {
    // Places do not change the size of what says them.
    let before = movie(tracks, 0)?.len() as u64 + MEDIA_HEAD_BYTES;
    let mut head = BytesMut::from(&movie(tracks, before)?[..]);
    // With a 64-bit size, whatever the size is.
    head.put_u32(1);
    head.put_slice(b"mdat");
    head.put_u64(media_bytes + MEDIA_HEAD_BYTES);
    Ok(head.freeze())
}

/// Bytes of the head of an `mdat` box with a 64-bit size.
const MEDIA_HEAD_BYTES: u64 = 16;

/// `ftyp` and `moov`, for media that begin after so many bytes.
fn movie(tracks: &[Track<'_>], before: u64) -> Result<Bytes, BoxError> {
    let mut out = BytesMut::new();
    put_box(&mut out, b"ftyp", |b| b.put_slice(b"isom\0\0\x02\0isomiso2avc1mp41"));
    let rewritten = (1..).zip(tracks).map(|(id, track)| Rewritten::new(id, track, before)).collect::<Result<Vec<_>, _>>()?;
    let traks = rewritten.iter().zip(tracks).map(|(trak, track)| trak.of(track.init)).collect::<Result<Vec<_>, _>>()?;
    let duration = rewritten.iter().map(|trak| trak.movie_ticks).max().ok_or(BoxError::Missing("track"))?;
    put_box(&mut out, b"moov", |moov| {
        put_full(moov, b"mvhd", 1, 0, |b| {
            b.put_bytes(0, 16);
            b.put_u32(TIMESCALE);
            b.put_u64(duration);
            b.put_slice(&[0, 1, 0, 0, 1, 0]);
            b.put_bytes(0, 10);
            [0x0001_0000, 0, 0, 0, 0x0001_0000, 0, 0, 0, 0x4000_0000].into_iter().for_each(|field| b.put_u32(field));
            b.put_bytes(0, 24);
            b.put_u32(tracks.len() as u32 + 1);
        });
        traks.iter().for_each(|trak| moov.put_slice(trak));
    });
    Ok(out.freeze())
}

/// Ticks of a track in those of the movie, upwards: a part of a tick must not cost a frame.
fn in_movie(ticks: u64, timescale: u32) -> u64 {
    let exact = (u128::from(ticks) * u128::from(TIMESCALE)).div_ceil(u128::from(timescale).max(1));
    u64::try_from(exact).unwrap_or(u64::MAX)
}

/// Media time at which an init segment's edit list starts.
fn lead(init: &[u8]) -> Result<u32, BoxError> {
    let trak = children(descend(init, &[(b"moov", "moov"), (b"trak", "trak")])?)?;
    let Ok(edts) = find(&trak, b"edts", "edts") else { return Ok(0) };
    let mut fields = Fields::new(descend(edts, &[(b"elst", "elst")])?);
    fields.full_box()?;
    // Number of entries, and how long the first one lasts.
    fields.u32()?;
    fields.u32()?;
    fields.u32()
}

/// What is other in a plain file's `trak`.
struct Rewritten {
    id: u32,
    timescale: u32,
    movie_ticks: u64,
    media_ticks: u64,
    edit_start: u64,
    /// The sample tables without the descriptions.
    tables: Bytes,
}

impl Rewritten {
    fn new(id: u32, track: &Track<'_>, before: u64) -> Result<Self, BoxError> {
        let timescale = timescale(track.init)?;
        let first = track.runs.first().ok_or(BoxError::Missing("sample"))?;
        Ok(Self {
            id,
            timescale,
            movie_ticks: in_movie(track.ticks, timescale),
            media_ticks: track.runs.iter().flat_map(|run| &run.samples).map(|sample| u64::from(sample.duration)).sum(),
            // Media time begins with the first sample here.
            edit_start: u64::from(lead(track.init)?).saturating_sub(first.start),
            tables: tables(&track.runs, before),
        })
    }

    /// The `trak` of an init segment, with all that is other.
    fn of(&self, init: &[u8]) -> Result<Bytes, BoxError> {
        let (mut body, mut out) = (BytesMut::new(), BytesMut::new());
        self.copy(&children(descend(init, &[(b"moov", "moov"), (b"trak", "trak")])?)?, &mut body)?;
        put_box(&mut out, b"trak", |b| b.put_slice(&body));
        Ok(out.freeze())
    }

    fn copy(&self, boxes: &[Child<'_>], out: &mut BytesMut) -> Result<(), BoxError> {
        for child in boxes {
            match &child.kind {
                b"edts" => {}
                b"mdia" | b"minf" => {
                    let mut body = BytesMut::new();
                    self.copy(&children(child.body)?, &mut body)?;
                    put_box(out, &child.kind, |b| b.put_slice(&body));
                }
                b"tkhd" => {
                    let (flags, rest) = after_duration(child.body, 1)?;
                    put_full(out, b"tkhd", 1, flags, |b| {
                        b.put_bytes(0, 16);
                        b.put_u32(self.id);
                        b.put_u32(0);
                        b.put_u64(self.movie_ticks);
                        b.put_slice(rest);
                    });
                    put_box(out, b"edts", |edts| {
                        put_full(edts, b"elst", 1, 0, |b| {
                            b.put_u32(1);
                            b.put_u64(self.movie_ticks);
                            b.put_u64(self.edit_start);
                            b.put_u32(0x0001_0000);
                        });
                    });
                }
                b"mdhd" => {
                    let (flags, rest) = after_duration(child.body, 0)?;
                    put_full(out, b"mdhd", 1, flags, |b| {
                        b.put_bytes(0, 16);
                        b.put_u32(self.timescale);
                        b.put_u64(self.media_ticks);
                        b.put_slice(rest);
                    });
                }
                b"stbl" => {
                    let tables = children(child.body)?;
                    let descriptions = find(&tables, b"stsd", "stsd")?;
                    put_box(out, b"stbl", |stbl| {
                        put_box(stbl, b"stsd", |b| b.put_slice(descriptions));
                        stbl.put_slice(&self.tables);
                    });
                }
                kind => put_box(out, kind, |b| b.put_slice(child.body)),
            }
        }
        Ok(())
    }
}

/// Flags of a `tkhd` or `mdhd`, and what follows its duration. `reserved`: fields of 32 bits between time scale or track, and
/// duration.
fn after_duration(body: &[u8], reserved: usize) -> Result<(u32, &[u8]), BoxError> {
    let (version, flags) = Fields::new(body).full_box()?;
    let times = if version == 1 { 3 * 8 } else { 3 * 4 };
    Ok((flags, body.get(4 + times + 4 + 4 * reserved..).ok_or(BoxError::Short)?))
}

/// Durations, composition offsets, sync samples, sizes and places of all samples.
fn tables(runs: &[Run], before: u64) -> Bytes {
    let samples = || runs.iter().flat_map(|run| &run.samples);
    let count = samples().count() as u32;
    let mut out = BytesMut::new();
    put_pairs(&mut out, b"stts", &lengths(samples().map(|sample| sample.duration)));
    if samples().any(|sample| sample.composition_offset != 0) {
        put_pairs(&mut out, b"ctts", &lengths(samples().map(|sample| sample.composition_offset.cast_unsigned())));
    }
    if samples().any(|sample| !sample.sync) {
        let sync: Vec<u32> = (1..).zip(samples()).filter(|(_, sample)| sample.sync).map(|(number, _)| number).collect();
        put_full(&mut out, b"stss", 0, 0, |b| {
            b.put_u32(sync.len() as u32);
            sync.iter().for_each(|number| b.put_u32(*number));
        });
    }
    put_full(&mut out, b"stsz", 0, 0, |b| {
        b.put_u32(0);
        b.put_u32(count);
        samples().for_each(|sample| b.put_u32(sample.bytes));
    });
    let mut first = 1;
    let chunks = lengths(runs.iter().map(|run| run.samples.len() as u32));
    put_full(&mut out, b"stsc", 0, 0, |b| {
        b.put_u32(chunks.len() as u32);
        for (count, samples) in &chunks {
            [first, *samples, 1].into_iter().for_each(|field| b.put_u32(field));
            first += count;
        }
    });
    put_full(&mut out, b"co64", 0, 0, |b| {
        b.put_u32(runs.len() as u32);
        runs.iter().for_each(|run| b.put_u64(before + run.offset));
    });
    out.freeze()
}

/// How often each value comes one after another.
fn lengths(values: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut lengths: Vec<(u32, u32)> = Vec::new();
    for value in values {
        match lengths.last_mut() {
            Some((count, last)) if *last == value => *count += 1,
            _ => lengths.push((1, value)),
        }
    }
    lengths
}

fn put_pairs(out: &mut BytesMut, kind: &[u8; 4], pairs: &[(u32, u32)]) {
    put_full(out, kind, 0, 0, |b| {
        b.put_u32(pairs.len() as u32);
        for (count, value) in pairs {
            b.put_u32(*count);
            b.put_u32(*value);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::write_segment;

    fn fragment(base_time: u64, kinds: &str) -> Fragment {
        let sample = |kind| Sample { duration: 10, bytes: 2, composition_offset: 20, sync: kind == 'K' };
        let samples: Vec<Sample> = kinds.chars().map(sample).collect();
        let data = kinds.chars().flat_map(|kind| [kind as u8, b'.']).collect();
        Fragment { sequence: 1, base_time, samples, data }
    }

    #[test]
    fn the_bytes_of_every_sample_are_found_in_a_segment() {
        let segment = write_segment(&[fragment(0, "K"), fragment(10, "abc"), fragment(40, "K")]);
        let found = runs(&segment).expect("a segment");
        let bytes =
            |run: &Run| String::from_utf8_lossy(&segment[run.bytes().start as usize..run.bytes().end as usize]).into_owned();
        assert_eq!(found.iter().map(bytes).collect::<Vec<_>>(), ["K.", "a.b.c.", "K."]);
        assert_eq!(found.iter().map(|run| run.start).collect::<Vec<_>>(), [0, 10, 40]);
        assert!(runs(&segment.slice(..segment.len() - 1)).is_err());
    }

    #[test]
    fn values_are_counted_one_after_another() {
        assert_eq!(lengths([7, 7, 3, 7].into_iter()), [(2, 7), (1, 3), (1, 7)]);
        assert_eq!(lengths([].into_iter()), []);
    }

    #[test]
    fn durations_in_the_movie_cost_no_frame() {
        assert_eq!(in_movie(1, 30_000), 3);
        assert_eq!(in_movie(1, 48_000), 2, "1.875");
        assert_eq!(in_movie(3 * 12_800, 12_800), 270_000);
    }
}
