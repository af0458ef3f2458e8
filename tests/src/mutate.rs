//! Mutates media as fuzzers do, by a seed: bits, numbers and lengths that parsers stumble over, pieces moved about, pieces of
//! other files. Half of the mutants are changed so little that most of the file is still read.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Where most headers are.
const HEAD_BYTES: usize = 4 << 10;
/// From the length of a box on, where its version, its counts and its first entries are.
const HEADER_BYTES: usize = 40;
/// Longest piece that is moved about, and in a file that is changed only a little.
const PIECE_BYTES_MAX: usize = 64 << 10;
const SLIGHT_PIECE_BYTES_MAX: usize = 64;
/// Most bytes that repeating a piece adds.
const REPEATED_BYTES_MAX: usize = 256 << 10;
/// Most lengths that are looked for in a file.
const LENGTHS_MAX: usize = 10_000;

/// Boxes of MP4 and QuickTime: their length stands before the name. Four letters each.
const BOXES: &[u8] = b"ftypmoovmvhdtrakmdiaminfstbldinfedtsmvexmooftrafudtailstmetatkhdelstmdhdhdlrvmhdsmhddrefstsdsttscttsstss\
    stscstszstz2stcoco64sgpdsbgpsdtpsubsavc1avcChvc1hev1hvcCav01av1Cvp08vp09vpcCmp4vs263d263mp4aesdssowttwosalacac-3ec-3\
    wavechanpaspcolrbtrtclapfreeskipwidemdatmfhdtfhdtfdttrunsidxtrexmehdmfratfrauuidchplgmhdtmcdvvc1vvcC";
/// Chunks of RIFF: their length stands after the name.
const CHUNKS: &[u8] = b"RIFFLISTavihstrhstrfstrnstrdindxidx1JUNKfmt datafact00dc00db01wb";
/// The name that begins a page of Ogg, and where its count of segments is from there.
const PAGE: &[u8] = b"OggS";
const PAGE_COUNT: usize = 26;

/// How a file of EBML begins: Matroska and WebM.
const EBML: [u8; 4] = [0x1A, 0x45, 0xDF, 0xA3];
/// Elements of Matroska that hold others.
const MASTERS: [u64; 18] = [
    0x1A45_DFA3, // EBML
    0x1853_8067, // Segment
    0x114D_9B74, // SeekHead
    0x4DBB,      // Seek
    0x1549_A966, // Info
    0x1654_AE6B, // Tracks
    0xAE,        // TrackEntry
    0xE0,        // Video
    0xE1,        // Audio
    0x55B0,      // Colour
    0x6D80,      // ContentEncodings
    0x6240,      // ContentEncoding
    0x1F43_B675, // Cluster
    0xA0,        // BlockGroup
    0x1C53_BB6B, // Cues
    0xBB,        // CuePoint
    0xB7,        // CueTrackPositions
    0x1254_C367, // Tags
];

/// A way to change a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Bits are flipped.
    Flip,
    /// A number at a limit of its range is written over what is there.
    Number,
    /// A field that says how long something is says something else.
    Length,
    /// A piece is written over another.
    Copy,
    /// Two pieces change places.
    Swap,
    /// A piece is taken out.
    Remove,
    /// A piece is there several times.
    Repeat,
    /// A piece of another file is put in.
    Splice,
    /// A piece of another file is written over what is there.
    Graft,
    /// A piece is all zeros, or all ones.
    Blank,
    /// The end is cut off.
    Truncate,
}

impl Change {
    const ALL: &[Self] = &[
        Self::Flip,
        Self::Number,
        Self::Length,
        Self::Copy,
        Self::Swap,
        Self::Remove,
        Self::Repeat,
        Self::Splice,
        Self::Graft,
        Self::Blank,
        Self::Truncate,
    ];
    /// Those that leave most of a file as it was.
    const SLIGHT: &[Self] = &[Self::Flip, Self::Number, Self::Length, Self::Copy, Self::Remove, Self::Blank];
}

/// A mutated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// What is in it; never what was in the original.
    pub bytes: Vec<u8>,
    /// What was done, in order.
    pub changes: Vec<Change>,
}

/// The mutant of a file that this seed gives, with pieces of `donor` where it takes some. The same arguments give the same.
pub fn mutate(original: &[u8], donor: &[u8], seed: u64) -> Mutant {
    let mut random = StdRng::seed_from_u64(seed);
    let is_slight = random.random_bool(0.5);
    let (kinds, most) = if is_slight { (Change::SLIGHT, 2) } else { (Change::ALL, 6) };
    let count: usize = random.random_range(1..=most);
    let mut draft = Draft { bytes: original.to_vec(), donor, lengths: lengths(original), is_slight, random };
    let mut changes = Vec::new();
    for _ in 0..count {
        if let Some(change) = draft.pick(kinds) {
            draft.apply(change);
            changes.push(change);
        }
    }
    // A number may have been there already, and in a small file there is not much to do.
    if draft.bytes == original {
        let at = draft.below(original.len());
        match draft.bytes.get_mut(at) {
            Some(byte) => *byte ^= 1,
            None => draft.bytes.push(0),
        }
        changes.push(Change::Flip);
    }
    Mutant { bytes: draft.bytes, changes }
}

/// A mutant in the making.
struct Draft<'a> {
    bytes: Vec<u8>,
    donor: &'a [u8],
    /// Where lengths were when they were last looked for.
    lengths: Vec<Length>,
    is_slight: bool,
    random: StdRng,
}

impl<'a> Draft<'a> {
    /// A number below `limit`; 0 when that is 0.
    fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { self.random.random_range(0..limit) }
    }

    fn coin(&mut self) -> bool {
        self.random.random_bool(0.5)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = self.below(from.len());
        from.get(at).copied()
    }

    /// A place in the file; in headers more often than elsewhere.
    fn place(&mut self) -> usize {
        let len = self.bytes.len();
        match self.below(10) {
            0..=3 => self.below(len.min(HEAD_BYTES)),
            4..=6 if !self.lengths.is_empty() => {
                let at = self.below(self.lengths.len());
                let start = self.lengths.get(at).map_or(0, |length| length.at);
                let place = start + self.below(HEADER_BYTES);
                place.min(len.saturating_sub(1))
            }
            _ => self.below(len),
        }
    }

    /// How long a piece is, from 1. Most are short.
    fn size(&mut self) -> usize {
        let most = if self.is_slight { SLIGHT_PIECE_BYTES_MAX } else { PIECE_BYTES_MAX };
        let most = most >> self.below(8);
        1 + self.below(most)
    }

    /// Where a piece of the file begins and ends.
    fn piece(&mut self) -> Range<usize> {
        let start = self.place();
        let end = start + self.size();
        start..end.min(self.bytes.len())
    }

    /// A piece of the other file.
    fn foreign(&mut self) -> &'a [u8] {
        let donor = self.donor;
        let near = if self.coin() { HEAD_BYTES } else { donor.len() };
        let start = self.below(donor.len().min(near));
        let end = start + self.size();
        donor.get(start..end.min(donor.len())).unwrap_or_default()
    }

    fn copied(&self, piece: Range<usize>) -> Vec<u8> {
        self.bytes.get(piece).unwrap_or_default().to_vec()
    }

    fn overwrite(&mut self, at: usize, piece: &[u8]) {
        self.bytes.iter_mut().skip(at).zip(piece).for_each(|(there, byte)| *there = *byte);
    }

    fn insert(&mut self, at: usize, piece: &[u8]) {
        let at = at.min(self.bytes.len());
        drop(self.bytes.splice(at..at, piece.iter().copied()));
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Flip => self.flip(),
            Change::Number => self.number(),
            Change::Length => self.length(),
            Change::Copy => {
                let (from, to) = (self.piece(), self.place());
                let piece = self.copied(from);
                self.overwrite(to, &piece);
            }
            Change::Swap => {
                let (one, other) = (self.piece(), self.place());
                let end = (other + one.len()).min(self.bytes.len());
                let (here, there) = (self.copied(one.clone()), self.copied(other..end));
                self.overwrite(one.start, &there);
                self.overwrite(other, &here);
            }
            Change::Remove => {
                let piece = self.piece();
                drop(self.bytes.drain(piece));
            }
            Change::Repeat => {
                let piece = self.piece();
                let times = 1 + self.below(32_usize.min(REPEATED_BYTES_MAX / piece.len().max(1)));
                let copies = self.copied(piece.clone()).repeat(times);
                self.insert(piece.end, &copies);
            }
            Change::Splice => {
                let (piece, at) = (self.foreign(), self.place());
                self.insert(at, piece);
            }
            Change::Graft => {
                let (piece, at) = (self.foreign(), self.place());
                self.overwrite(at, piece);
            }
            Change::Blank => {
                let (piece, value) = (self.piece(), if self.coin() { 0 } else { u8::MAX });
                if let Some(there) = self.bytes.get_mut(piece) {
                    there.fill(value);
                }
            }
            Change::Truncate => {
                let len = self.bytes.len();
                let cut = self.below(len);
                // Often not much of it.
                let cut = cut >> self.below(8);
                self.bytes.truncate(len - cut);
            }
        }
    }

    fn flip(&mut self) {
        let most = if self.is_slight { 4 } else { 10 };
        let count = 1_usize << self.below(most);
        for _ in 0..count {
            let (at, bit) = (self.place(), self.below(8));
            if let Some(byte) = self.bytes.get_mut(at) {
                *byte ^= 1_u8 << bit;
            }
        }
    }

    fn number(&mut self) {
        let width = 1_usize << self.below(4);
        let (value, place) = (self.limit(width), self.place());
        let at = if self.coin() { place - place % width } else { place };
        let is_big = self.coin();
        self.write(at, width, value, is_big);
    }

    /// A number at a limit of what so many bytes hold, or of what fewer do.
    fn limit(&mut self, width: usize) -> u64 {
        let most = ones(8 * width);
        let half = most >> 1;
        self.pick(&[0, 1, 2, 0xFF, 0xFFFF, half, half + 1, most - 1, most]).unwrap_or(0) & most
    }

    /// Writes the lowest `width` bytes of a number, where that many are left.
    fn write(&mut self, at: usize, width: usize, value: u64, is_big: bool) {
        let bytes = value.to_le_bytes();
        let Some(field) = self.bytes.get_mut(at..at + width) else { return };
        let lowest_first = bytes.iter().take(width);
        if is_big {
            field.iter_mut().rev().zip(lowest_first).for_each(|(there, byte)| *there = *byte);
        } else {
            field.iter_mut().zip(lowest_first).for_each(|(there, byte)| *there = *byte);
        }
    }

    fn length(&mut self) {
        // What was changed before may have moved them.
        self.lengths = lengths(&self.bytes);
        let at = self.below(self.lengths.len());
        let Some(length) = self.lengths.get(at).copied() else {
            self.number();
            return;
        };
        let old = length.of(&self.bytes);
        let step = 1_u64 << self.below(8);
        let new = match self.below(6) {
            0 => old.wrapping_add(step),
            1 => old.wrapping_sub(step),
            2 => old.wrapping_mul(2),
            3 => old / 2,
            4 => self.bytes.len() as u64,
            _ => self.limit(length.width),
        };
        match length.form {
            Form::Big => self.write(length.at, length.width, new, true),
            Form::Little => self.write(length.at, length.width, new, false),
            Form::Ebml => {
                let bits = 7 * length.width;
                self.write(length.at, length.width, new & ones(bits) | 1_u64 << bits, true);
            }
        }
    }
}

/// How a length is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Highest byte first.
    Big,
    /// Lowest byte first.
    Little,
    /// Highest byte first, after a bit that says how many bytes there are (RFC 8794). All ones: not known.
    Ebml,
}

/// A field that says how long something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Length {
    at: usize,
    /// Its bytes, 1 to 8.
    width: usize,
    form: Form,
}

impl Length {
    /// What it says.
    fn of(self, bytes: &[u8]) -> u64 {
        let field = bytes.get(self.at..self.at + self.width).unwrap_or_default();
        match self.form {
            Form::Big => big_endian(field),
            Form::Little => field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)),
            Form::Ebml => big_endian(field) & ones(7 * self.width),
        }
    }
}

fn big_endian(field: &[u8]) -> u64 {
    field.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// So many ones, 1 to 64.
fn ones(bits: usize) -> u64 {
    u64::MAX >> (64 - bits.clamp(1, 64))
}

/// Every field found that says how long a part of the file is.
fn lengths(bytes: &[u8]) -> Vec<Length> {
    if bytes.starts_with(&EBML) {
        return lengths_of_elements(bytes);
    }
    let is_name = |name: &[u8]| name.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    let is_among = |names: &[u8], name: &[u8]| names.chunks(4).any(|known| known == name);
    let length = |(at, name): (usize, &[u8])| {
        if !is_name(name) {
            None
        } else if is_among(BOXES, name) {
            Some(Length { at: at.checked_sub(4)?, width: 4, form: Form::Big })
        } else if is_among(CHUNKS, name) {
            Some(Length { at: at + 4, width: 4, form: Form::Little })
        } else {
            (name == PAGE).then_some(Length { at: at + PAGE_COUNT, width: 1, form: Form::Little })
        }
    };
    bytes.windows(4).enumerate().filter_map(length).take(LENGTHS_MAX).collect()
}

/// The lengths of the elements of a file of EBML.
fn lengths_of_elements(bytes: &[u8]) -> Vec<Length> {
    let mut found = Vec::new();
    let mut open = vec![(0, bytes.len())];
    while let Some((mut at, end)) = open.pop() {
        while at < end && found.len() < LENGTHS_MAX {
            let Some((id, id_width)) = variable(bytes, at) else { break };
            let Some((size, width)) = variable(bytes, at + id_width) else { break };
            found.push(Length { at: at + id_width, width, form: Form::Ebml });
            let (start, size) = (at + id_width + width, size & ones(7 * width));
            let is_known = size != ones(7 * width);
            let size = usize::try_from(size).ok().filter(|_| is_known);
            let next = size.and_then(|size| start.checked_add(size)).unwrap_or(end).min(end);
            if MASTERS.contains(&id) {
                open.push((start, next));
            }
            at = next;
        }
    }
    found
}

/// A number of EBML, with the bit that says how long it is, and how many bytes it has.
fn variable(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let width = 1 + bytes.get(at)?.leading_zeros() as usize;
    let field = bytes.get(at..at + width).filter(|_| width <= 8)?;
    Some((big_endian(field), width))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn boxed(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let length = 8 + u32::try_from(body.len()).expect("small");
        [&length.to_be_bytes()[..], &kind[..], body].concat()
    }

    /// Boxes with 20 KB of media.
    fn film() -> Vec<u8> {
        let media: Vec<u8> = (0..20_000_u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let moov = boxed(b"moov", &boxed(b"mvhd", &[1; 100]));
        [boxed(b"ftyp", b"isom\0\0\0\0"), moov, boxed(b"mdat", &media)].concat()
    }

    /// A head, and a segment of unknown length with a duration and one cluster.
    fn matroska() -> Vec<u8> {
        let head = [&EBML[..], &[0x84, 0x42, 0x86, 0x81, 1]].concat();
        let info = [0x15, 0x49, 0xA9, 0x66, 0x40, 0x04, 0x44, 0x89, 0x81, 9];
        let cluster = [0x1F, 0x43, 0xB6, 0x75, 0x83, 0xE7, 0x81, 0];
        [&head[..], &[0x18, 0x53, 0x80, 0x67, 0xFF], &info, &cluster].concat()
    }

    #[test]
    fn a_seed_gives_a_mutant() {
        let (film, donor) = (film(), matroska());
        let mutants: Vec<Mutant> = (0..500).map(|seed| mutate(&film, &donor, seed)).collect();
        assert!((0..).zip(&mutants).all(|(seed, mutant)| mutate(&film, &donor, seed) == *mutant), "the same again");
        let different: BTreeSet<&[u8]> = mutants.iter().map(|mutant| &mutant.bytes[..]).collect();
        assert!(different.len() > 450, "only {} are different", different.len());
        let done: BTreeSet<Change> = mutants.iter().flat_map(|mutant| mutant.changes.clone()).collect();
        assert_eq!(done.len(), Change::ALL.len(), "{done:?}");
    }

    #[test]
    fn every_mutant_of_any_file_is_another_file() {
        for original in [film(), matroska(), b"OggS".to_vec(), vec![7], Vec::new()] {
            for donor in [matroska(), Vec::new()] {
                for seed in 0..500 {
                    let mutant = mutate(&original, &donor, seed);
                    assert_ne!(mutant.bytes, original, "seed {seed}: {:?}", mutant.changes);
                    assert!(mutant.bytes.len() < 4 << 20, "seed {seed}: {} bytes", mutant.bytes.len());
                }
            }
        }
    }

    #[test]
    fn many_mutants_are_hardly_changed() {
        let film = film();
        let is_near = |seed: &u64| {
            let mutant = mutate(&film, &film, *seed).bytes;
            mutant.len() == film.len() && mutant.iter().zip(&film).filter(|(a, b)| a != b).count() < 200
        };
        let near = (0..400).filter(is_near).count();
        assert!((100..300).contains(&near), "{near} of 400");
    }

    #[test]
    fn lengths_are_found_where_they_are() {
        let film = film();
        let found: Vec<(usize, u64)> = lengths(&film).iter().map(|length| (length.at, length.of(&film))).collect();
        // By chance a name may stand in the media as well.
        assert!(found.starts_with(&[(0, 16), (16, 116), (24, 108), (132, 20_008)]), "{found:?}");
        let matroska = matroska();
        let mut found: Vec<(usize, u64)> = lengths(&matroska).iter().map(|length| (length.at, length.of(&matroska))).collect();
        found.sort_unstable();
        // The head, its version, the segment, the info, its duration, the cluster, its time.
        assert_eq!(found, [(4, 4), (7, 1), (13, 127), (18, 4), (22, 1), (28, 3), (30, 1)]);
        let riff = b"RIFF\x10\0\0\0WAVEfmt \x02\x01\0\0";
        let found: Vec<(usize, u64)> = lengths(riff).iter().map(|length| (length.at, length.of(riff))).collect();
        assert_eq!(found, [(4, 16), (16, 258)]);
    }

    #[test]
    fn a_length_of_ebml_stays_one() {
        let matroska = matroska();
        let mut changed = BTreeSet::new();
        for seed in 0..200 {
            let random = StdRng::seed_from_u64(seed);
            let (bytes, lengths) = (matroska.clone(), lengths(&matroska));
            let mut draft = Draft { bytes, donor: &[], lengths, is_slight: true, random };
            draft.length();
            let places: Vec<usize> = (0..matroska.len()).filter(|at| draft.bytes[*at] != matroska[*at]).collect();
            for length in lengths_of_elements(&matroska) {
                let field = length.at..length.at + length.width;
                if places.iter().any(|at| field.contains(at)) {
                    assert_eq!(variable(&draft.bytes, length.at).map(|(_, width)| width), Some(length.width), "seed {seed}");
                    assert!(places.iter().all(|at| field.contains(at)), "seed {seed}: {places:?}");
                    changed.insert(length.at);
                }
            }
        }
        assert_eq!(changed.len(), 7, "{changed:?}");
    }
}
