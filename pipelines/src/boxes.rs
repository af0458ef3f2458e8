//! MP4 boxes of init and media segments (ISO/IEC 14496-12): read strictly, written anew.
//!
//! Segments are read down to their samples and their `moof` is written again with exact integer times, so that the result
//! holds neither a rounding of the muxer's nor the time of day.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use farm::boxes::{BoxError, Fields, children, descend, find, put_box, put_full};
use farm::task::{KeyFrame, Segment};
use serde::{Deserialize, Serialize};

use crate::codecs::av1_level;

/// Most samples that a segment may hold: more than ten minutes of 100 frames per second.
const SAMPLES_MAX: usize = 65_536;

/// `sample_flags` of a sample that decoding can start from (ISO/IEC 14496-12, 8.8.3.1: depends on no other).
const SYNC_FLAGS: u32 = 0x0200_0000;
/// `sample_flags` of any other sample (depends on others, is not a sync sample).
const DELTA_FLAGS: u32 = 0x0101_0000;
/// The bit that says a sample is not a sync sample.
const NON_SYNC_BIT: u32 = 0x0001_0000;

/// A sample of a media segment. As JSON it is an array of its fields: there are many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32, i32, bool)", into = "(u32, u32, i32, bool)")]
pub struct Sample {
    /// Duration in ticks.
    pub duration: u32,
    /// Size in bytes.
    pub bytes: u32,
    /// Composition time minus decode time, in ticks.
    pub composition_offset: i32,
    /// Whether decoding can start from it.
    pub sync: bool,
}

impl From<(u32, u32, i32, bool)> for Sample {
    fn from((duration, bytes, composition_offset, sync): (u32, u32, i32, bool)) -> Self {
        Self { duration, bytes, composition_offset, sync }
    }
}

impl From<Sample> for (u32, u32, i32, bool) {
    fn from(sample: Sample) -> Self {
        (sample.duration, sample.bytes, sample.composition_offset, sample.sync)
    }
}

/// A media segment of one track, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Number in the `mfhd` box.
    pub sequence: u32,
    /// Decode time of the first sample in ticks.
    pub base_time: u64,
    /// The samples, in decode order.
    pub samples: Vec<Sample>,
    /// Their bytes, one after another.
    pub data: Bytes,
}

impl Fragment {
    /// Reads `[styp] moof mdat`, with one track and one run of samples.
    ///
    /// # Errors
    /// When anything about it is not as it should be, down to sample sizes that do not add up to the data.
    pub fn read(segment: &Bytes) -> Result<Self, BoxError> {
        let top = children(segment)?;
        let moof = children(find(&top, b"moof", "moof")?)?;
        let mdat = find(&top, b"mdat", "mdat")?;
        if top.iter().any(|b| !matches!(&b.kind, b"styp" | b"moof" | b"mdat"))
            || top.iter().filter(|b| &b.kind == b"mdat").count() != 1
        {
            return Err(BoxError::Unexpected("box in a media segment"));
        }
        let mut sequence = Fields::new(find(&moof, b"mfhd", "mfhd")?);
        sequence.full_box()?;
        let traf = children(find(&moof, b"traf", "traf")?)?;
        let defaults = Defaults::read(find(&traf, b"tfhd", "tfhd")?)?;
        let mut tfdt = Fields::new(find(&traf, b"tfdt", "tfdt")?);
        let (version, _) = tfdt.full_box()?;
        let base_time = if version == 1 { tfdt.u64()? } else { u64::from(tfdt.u32()?) };
        if traf.iter().filter(|b| &b.kind == b"trun").count() != 1 || moof.iter().filter(|b| &b.kind == b"traf").count() != 1 {
            return Err(BoxError::Unexpected("number of tracks or runs"));
        }
        let samples = read_run(find(&traf, b"trun", "trun")?, &defaults)?;
        let total: u64 = samples.iter().map(|s| u64::from(s.bytes)).sum();
        if total != mdat.len() as u64 {
            return Err(BoxError::Unexpected("amount of sample data"));
        }
        Ok(Self { sequence: sequence.u32()?, base_time, samples, data: segment.slice_ref(mdat) })
    }

    /// Adds the fragment to a segment's bytes: `moof mdat`. The data offset is right by construction.
    fn put(&self, segment: &mut BytesMut) {
        let uniform = self.samples.windows(2).all(|pair| pair.first().map(|s| s.duration) == pair.last().map(|s| s.duration));
        let all_sync = self.samples.iter().all(|s| s.sync && s.composition_offset == 0);
        let mut moof = BytesMut::with_capacity(128 + 16 * self.samples.len());
        let mut offset_at = 0;
        put_box(&mut moof, b"moof", |moof| {
            put_full(moof, b"mfhd", 0, 0, |b| b.put_u32(self.sequence));
            put_box(moof, b"traf", |traf| {
                // default-base-is-moof, default duration, default flags
                put_full(traf, b"tfhd", 0, 0x02_0028, |b| {
                    b.put_u32(1);
                    b.put_u32(self.samples.first().map_or(0, |s| s.duration));
                    b.put_u32(if all_sync { SYNC_FLAGS } else { DELTA_FLAGS });
                });
                put_full(traf, b"tfdt", 1, 0, |b| b.put_u64(self.base_time));
                let flags = 0x201 | if uniform { 0 } else { 0x100 } | if all_sync { 0 } else { 0xC00 };
                put_full(traf, b"trun", 1, flags, |b| {
                    b.put_u32(self.samples.len() as u32);
                    offset_at = b.len();
                    b.put_u32(0);
                    for sample in &self.samples {
                        if !uniform {
                            b.put_u32(sample.duration);
                        }
                        b.put_u32(sample.bytes);
                        if !all_sync {
                            b.put_u32(if sample.sync { SYNC_FLAGS } else { DELTA_FLAGS });
                            b.put_i32(sample.composition_offset);
                        }
                    }
                });
            });
        });
        let data_offset = moof.len() as u32 + 8;
        if let Some(field) = moof.get_mut(offset_at..offset_at + 4) {
            field.copy_from_slice(&data_offset.to_be_bytes());
        }
        segment.put_slice(&moof);
        put_box(segment, b"mdat", |b| b.put_slice(&self.data));
    }

    /// Adds the samples of the fragment that follows.
    pub fn append(&mut self, next: Self) {
        let mut data = BytesMut::with_capacity(self.data.len() + next.data.len());
        data.put_slice(&self.data);
        data.put_slice(&next.data);
        self.data = data.freeze();
        self.samples.extend(next.samples);
    }

    /// Keeps the first `samples` and gives the others, which may be none; or nothing when there are not so many.
    pub fn split_off(&mut self, samples: usize) -> Option<Self> {
        if self.samples.len() < samples {
            return None;
        }
        let rest = self.samples.split_off(samples);
        let bytes: usize = self.samples.iter().map(|s| s.bytes as usize).sum();
        let data = self.data.split_off(bytes.min(self.data.len()));
        Some(Self { sequence: self.sequence, base_time: self.base_time + self.ticks(), samples: rest, data })
    }

    /// Sum of the samples' durations in ticks.
    pub fn ticks(&self) -> u64 {
        self.samples.iter().map(|s| u64::from(s.duration)).sum()
    }
}

/// The bytes of a segment of these fragments: `styp`, then `moof mdat` of each.
pub fn write_segment(fragments: &[Fragment]) -> Bytes {
    let bytes: usize = fragments.iter().map(|f| 160 + 16 * f.samples.len() + f.data.len()).sum();
    let mut segment = BytesMut::with_capacity(bytes + 24);
    put_box(&mut segment, b"styp", |b| b.put_slice(b"msdh\0\0\0\0msdhcmfc"));
    fragments.iter().for_each(|fragment| fragment.put(&mut segment));
    segment.freeze()
}

/// What a segment is by its bytes: `styp`, then `moof mdat` once or more often, without gap between decode times.
///
/// # Errors
/// When it is no such segment.
pub fn segment(bytes: &Bytes) -> Result<Segment, BoxError> {
    let mut segment = Segment { ticks: 0, samples: 0, bytes: bytes.len() as u64, key_frames: Vec::new() };
    let mut start: Option<(u64, i32)> = None;
    for place in fragments(bytes)? {
        let (offset, len) = (place.start as u64, place.len() as u64);
        let fragment = Fragment::read(&bytes.slice(place))?;
        let first = fragment.samples.first().ok_or(BoxError::Unexpected("fragment without samples"))?;
        let (start_ticks, start_offset) = *start.get_or_insert((fragment.base_time, first.composition_offset));
        if fragment.base_time != start_ticks.saturating_add(segment.ticks) {
            return Err(BoxError::Unexpected("gap between fragments"));
        }
        // All key frames are shown equally long after they are decoded, for nothing before them is shown later.
        if fragment.samples.len() == 1 && first.sync && first.composition_offset == start_offset {
            segment.key_frames.push(KeyFrame { ticks: segment.ticks, offset, bytes: len });
        }
        segment.ticks = segment.ticks.saturating_add(fragment.ticks());
        segment.samples = segment.samples.saturating_add(fragment.samples.len() as u32);
    }
    if segment.samples == 0 || segment.samples as usize > SAMPLES_MAX {
        return Err(BoxError::Unexpected("number of samples"));
    }
    Ok(segment)
}

/// Where the fragments of a segment stand: each a `moof` and the `mdat` that follows it.
pub(crate) fn fragments(segment: &[u8]) -> Result<Vec<Range<usize>>, BoxError> {
    let mut places = Vec::new();
    let (mut at, mut moof) = (0, None);
    for child in children(segment)? {
        let end = at + 8 + child.body.len();
        match (&child.kind, moof.take()) {
            (b"styp", None) if at == 0 => {}
            (b"moof", None) => moof = Some(at),
            (b"mdat", Some(start)) => places.push(start..end),
            _ => return Err(BoxError::Unexpected("box in a media segment")),
        }
        at = end;
    }
    if moof.is_some() {
        return Err(BoxError::Missing("mdat"));
    }
    Ok(places)
}

/// What a `tfhd` box sets for samples that do not say otherwise.
struct Defaults {
    duration: u32,
    bytes: u32,
    flags: u32,
}

impl Defaults {
    fn read(tfhd: &[u8]) -> Result<Self, BoxError> {
        let mut fields = Fields::new(tfhd);
        let (_, flags) = fields.full_box()?;
        fields.u32()?;
        if flags & 0x1 != 0 {
            return Err(BoxError::Unexpected("base data offset"));
        }
        fields.u32_if(flags & 0x2 != 0, 0)?;
        Ok(Self {
            duration: fields.u32_if(flags & 0x8 != 0, 0)?,
            bytes: fields.u32_if(flags & 0x10 != 0, 0)?,
            flags: fields.u32_if(flags & 0x20 != 0, SYNC_FLAGS)?,
        })
    }
}

fn read_run(trun: &[u8], defaults: &Defaults) -> Result<Vec<Sample>, BoxError> {
    let mut fields = Fields::new(trun);
    let (_, flags) = fields.full_box()?;
    let count = fields.u32()? as usize;
    if count > SAMPLES_MAX {
        return Err(BoxError::Unexpected("number of samples"));
    }
    fields.u32_if(flags & 0x1 != 0, 0)?;
    let first_flags = fields.u32_if(flags & 0x4 != 0, defaults.flags)?;
    (0..count)
        .map(|n| {
            let duration = fields.u32_if(flags & 0x100 != 0, defaults.duration)?;
            let bytes = fields.u32_if(flags & 0x200 != 0, defaults.bytes)?;
            let default_flags = if n == 0 { first_flags } else { defaults.flags };
            let sample_flags = fields.u32_if(flags & 0x400 != 0, default_flags)?;
            // Version 0 has unsigned offsets; none of ours reaches 2³¹, so both read as signed.
            let offset = fields.u32_if(flags & 0x800 != 0, 0)?;
            Ok(Sample { duration, bytes, composition_offset: offset.cast_signed(), sync: sample_flags & NON_SYNC_BIT == 0 })
        })
        .collect()
}

/// The init segment with its edit list set to start at `lead` ticks of media time, and without times of day: so it is the
/// same whenever and by whomever it is made. The level of AV1, which `cmafmux` is not told, is that of its stream.
///
/// # Errors
/// When it is not an init segment of one track.
pub fn finish_init(init: &[u8], lead: u32) -> Result<Bytes, BoxError> {
    let mut out = BytesMut::with_capacity(init.len() + 36);
    copy_tree(init, lead, &mut out)?;
    find(&children(&out)?, b"moov", "moov")?;
    Ok(out.freeze())
}

fn copy_tree(boxes: &[u8], lead: u32, out: &mut BytesMut) -> Result<(), BoxError> {
    for child in children(boxes)? {
        match &child.kind {
            b"edts" => {}
            b"moov" | b"trak" | b"mdia" | b"minf" | b"stbl" => {
                let mut inner = BytesMut::with_capacity(child.body.len() + 36);
                copy_tree(child.body, lead, &mut inner)?;
                put_box(out, &child.kind, |b| b.put_slice(&inner));
            }
            b"mvhd" | b"tkhd" | b"mdhd" => {
                let mut body = child.body.to_vec();
                let stamps = if body.first() == Some(&1) { 4..20 } else { 4..12 };
                body.get_mut(stamps).ok_or(BoxError::Short)?.fill(0);
                put_box(out, &child.kind, |b| b.put_slice(&body));
            }
            b"stsd" => {
                let (head, entries) = child.body.split_at_checked(8).ok_or(BoxError::Short)?;
                let mut inner = BytesMut::from(head);
                copy_entries(entries, &mut inner)?;
                put_box(out, b"stsd", |b| b.put_slice(&inner));
            }
            kind => put_box(out, kind, |b| b.put_slice(child.body)),
        }
        if &child.kind == b"tkhd" && lead > 0 {
            put_box(out, b"edts", |edts| {
                // One entry: from `lead` on, at normal speed, to the end (duration 0 in a fragmented file).
                put_full(edts, b"elst", 0, 0, |b| [1, 0, lead, 0x0001_0000].into_iter().for_each(|field| b.put_u32(field)));
            });
        }
    }
    Ok(())
}

fn copy_entries(entries: &[u8], out: &mut BytesMut) -> Result<(), BoxError> {
    for entry in children(entries)? {
        let mut body = entry.body.to_vec();
        if &entry.kind == b"av01" {
            let (head, boxes) = body.split_at_checked(78).ok_or(BoxError::Short)?;
            let mut inner = BytesMut::from(head);
            for child in children(boxes)? {
                let mut own = child.body.to_vec();
                if &child.kind == b"av1C" {
                    let level = av1_level(own.get(4..).ok_or(BoxError::Short)?)?;
                    let profile_level = own.get_mut(1).ok_or(BoxError::Short)?;
                    *profile_level = *profile_level & 0xE0 | level;
                }
                put_box(&mut inner, &child.kind, |b| b.put_slice(&own));
            }
            body = inner.to_vec();
        }
        put_box(out, &entry.kind, |b| b.put_slice(&body));
    }
    Ok(())
}

/// Ticks per second of an init segment's track.
///
/// # Errors
/// When it is not an init segment.
pub fn timescale(init: &[u8]) -> Result<u32, BoxError> {
    let mut mdhd = Fields::new(descend(init, &[(b"moov", "moov"), (b"trak", "trak"), (b"mdia", "mdia"), (b"mdhd", "mdhd")])?);
    let (version, _) = mdhd.full_box()?;
    for _ in 0..if version == 1 { 4 } else { 2 } {
        mdhd.u32()?;
    }
    mdhd.u32()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(durations: &[u32], offset: i32) -> Fragment {
        let samples = durations.iter().enumerate();
        let samples =
            samples.map(|(n, &duration)| Sample { duration, bytes: 3, composition_offset: offset * n as i32, sync: n == 0 });
        let data = Bytes::from(vec![7; 3 * durations.len()]);
        Fragment { sequence: 9, base_time: 1 << 40, samples: samples.collect(), data }
    }

    #[test]
    fn a_fragment_is_read_as_it_was_written() {
        for written in [fragment(&[10, 10, 10], -4), fragment(&[10, 11], 5), fragment(&[1], 0)] {
            assert_eq!(Fragment::read(&write_segment(std::slice::from_ref(&written))), Ok(written));
        }
    }

    /// Two GOPs of three frames, their key frames apart.
    fn segment_of_gops() -> Vec<Fragment> {
        let at = |ticks: u64, durations: &[u32]| Fragment { base_time: (1 << 40) + ticks, ..fragment(durations, 5) };
        let rest = |mut fragment: Fragment| {
            fragment.samples.iter_mut().for_each(|sample| sample.sync = false);
            fragment
        };
        vec![at(0, &[10]), rest(at(10, &[10, 10])), at(30, &[10]), rest(at(40, &[10, 10]))]
    }

    #[test]
    fn a_segment_tells_where_its_key_frames_are() {
        let fragments = segment_of_gops();
        let bytes = write_segment(&fragments);
        let told = segment(&bytes).expect("a segment");
        assert_eq!((told.ticks, told.samples, told.bytes), (60, 6, bytes.len() as u64));
        assert_eq!(told.key_frames.iter().map(|key| key.ticks).collect::<Vec<_>>(), [0, 30]);
        for (key, fragment) in told.key_frames.iter().zip([&fragments[0], &fragments[2]]) {
            let place = key.offset as usize..(key.offset + key.bytes) as usize;
            assert_eq!(Fragment::read(&bytes.slice(place)).as_ref(), Ok(fragment));
        }
    }

    #[test]
    fn a_segment_with_a_gap_or_strange_boxes_is_refused() {
        let mut fragments = segment_of_gops();
        fragments[2].base_time += 1;
        assert!(segment(&write_segment(&fragments)).is_err());
        let whole = write_segment(&segment_of_gops());
        for end in (0..whole.len()).filter(|end| segment(&whole.slice(..*end)).is_ok()) {
            assert!(fragments_end_at(&whole, end), "cut at {end}");
        }
        let twice = [&whole[..], &whole[..]].concat();
        assert!(segment(&twice.into()).is_err(), "a second styp");
    }

    fn fragments_end_at(whole: &Bytes, end: usize) -> bool {
        super::fragments(whole).is_ok_and(|places| places.iter().any(|place| place.end == end))
    }

    #[test]
    fn a_fragment_comes_apart_where_it_was_joined() {
        let (first, second) = (fragment(&[10, 10], 5), Fragment { base_time: (1 << 40) + 20, ..fragment(&[10], 5) });
        let mut joined = first.clone();
        joined.append(second.clone());
        assert_eq!(joined.clone().split_off(4), None);
        assert_eq!(joined.split_off(2), Some(second));
        assert_eq!(joined, first);
        assert_eq!(joined.split_off(2).map(|rest| rest.samples.len()), Some(0));
    }

    #[test]
    fn a_fragment_cut_anywhere_is_refused() {
        let whole = write_segment(&[fragment(&[10, 10], 5)]);
        for end in 0..whole.len() {
            assert!(Fragment::read(&whole.slice(..end)).is_err(), "cut at {end}");
        }
    }
}
