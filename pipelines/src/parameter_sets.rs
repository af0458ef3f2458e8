//! The parameter sets of H.264 in init segments (`avcC`, ISO/IEC 14496-15, 5.3.3.1): joined, where pieces of one file were made
//! by different encoders.
//!
//! What refers to a set does so by its id. So the sets of two encoders can stand side by side as long as no id means two
//! things: encoders of devices use 0, x264 in the place of one uses 1.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use farm::boxes::{BoxError, children, put_box};

/// Fields of a visual sample entry before its boxes, in bytes (ISO/IEC 14496-12, 12.1.3).
const ENTRY_BYTES: usize = 78;

/// The init segment that samples of any of these decode with.
///
/// # Errors
/// When they differ in more than parameter sets of one profile, or an id means two things.
pub fn join(inits: &[Bytes]) -> Result<Bytes, BoxError> {
    let (first, others) = inits.split_first().ok_or(BoxError::Missing("moov"))?;
    let mut sets = taken_out(first)?;
    for other in others {
        let taken = taken_out(other)?;
        if taken.rest != sets.rest {
            return Err(BoxError::Unexpected("init segment, other than before in more than its parameter sets"));
        }
        sets.avcc.add(taken.avcc)?;
    }
    let mut out = BytesMut::with_capacity(first.len() * inits.len());
    rewrite(first, &PATH, &mut out, &mut |_, out| sets.avcc.write(out))?;
    Ok(out.freeze())
}

/// The parameter sets of an init segment, and the init segment without them.
struct TakenOut {
    avcc: Avcc,
    rest: BytesMut,
}

fn taken_out(init: &[u8]) -> Result<TakenOut, BoxError> {
    let (mut rest, mut avcc) = (BytesMut::with_capacity(init.len()), None);
    rewrite(init, &PATH, &mut rest, &mut |body, _| avcc = Some(Avcc::read(body)))?;
    Ok(TakenOut { avcc: avcc.ok_or(BoxError::Missing("avcC"))??, rest })
}

/// Where an init segment of one track has its parameter sets: each box in the one before, behind so many bytes of fields.
const PATH: [(&[u8; 4], usize); 8] =
    [(b"moov", 0), (b"trak", 0), (b"mdia", 0), (b"minf", 0), (b"stbl", 0), (b"stsd", 8), (b"avc1", ENTRY_BYTES), (b"avcC", 0)];

/// The boxes, with what `avcc` makes of the content of `avcC`, and without what encoders say differently. Only the path is gone:
/// the boxes may come from a child that was taken over.
fn rewrite(
    boxes: &[u8],
    path: &[(&[u8; 4], usize)],
    out: &mut BytesMut,
    avcc: &mut dyn FnMut(&[u8], &mut BytesMut),
) -> Result<(), BoxError> {
    let Some(((next, head_bytes), rest)) = path.split_first() else {
        avcc(boxes, out);
        return Ok(());
    };
    for child in children(boxes)? {
        match &child.kind {
            kind if kind == *next => {
                let (head, inside) = child.body.split_at_checked(*head_bytes).ok_or(BoxError::Short)?;
                let mut inner = BytesMut::from(head);
                rewrite(inside, rest, &mut inner, avcc)?;
                put_box(out, kind, |out| out.put_slice(&inner));
            }
            // The bits that an encoder says it takes, which not every one does; no reader needs it.
            b"btrt" => {}
            kind => put_box(out, kind, |out| out.put_slice(child.body)),
        }
    }
    Ok(())
}

/// What stands in `avcC`.
struct Avcc {
    profile: u8,
    compatibility: u8,
    level: u8,
    length_size: u8,
    /// Sets by id.
    sequence: BTreeMap<u32, Vec<u8>>,
    picture: BTreeMap<u32, Vec<u8>>,
    /// Chroma and bit depth of profiles above Main.
    extension: Vec<u8>,
}

/// Most sets of a kind: what the smaller of the two counts can say.
const SETS_MAX: usize = 31;
/// Bytes of a sequence parameter set before its id: NAL header, profile, constraints, level (Rec. ITU-T H.264, 7.3.2.1.1).
const SEQUENCE_ID_AT: usize = 4;
/// The same of a picture parameter set: NAL header.
const PICTURE_ID_AT: usize = 1;

impl Avcc {
    fn read(body: &[u8]) -> Result<Self, BoxError> {
        let ([_version, profile, compatibility, level, length_size], mut rest) =
            body.split_first_chunk::<5>().ok_or(BoxError::Short)?;
        let sequence = sets(&mut rest, 0x1F, SEQUENCE_ID_AT)?;
        let picture = sets(&mut rest, 0xFF, PICTURE_ID_AT)?;
        let [profile, compatibility, level, length_size] = [*profile, *compatibility, *level, *length_size];
        Ok(Self { profile, compatibility, level, length_size, sequence, picture, extension: rest.to_vec() })
    }

    fn add(&mut self, other: Self) -> Result<(), BoxError> {
        let (ours, theirs) =
            ((self.profile, self.length_size, &self.extension), (other.profile, other.length_size, &other.extension));
        if ours != theirs {
            return Err(BoxError::Unexpected("profile, other than before"));
        }
        // What all keep to, and the highest of their levels (5.3.3.1.2).
        self.compatibility &= other.compatibility;
        self.level = self.level.max(other.level);
        for (own, others) in [(&mut self.sequence, other.sequence), (&mut self.picture, other.picture)] {
            if own.len() + others.len() > SETS_MAX {
                return Err(BoxError::Unexpected("number of parameter sets"));
            }
            for (id, set) in others {
                if own.entry(id).or_insert_with(|| set.clone()) != &set {
                    return Err(BoxError::Unexpected("parameter set, another under the same id"));
                }
            }
        }
        Ok(())
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_slice(&[1, self.profile, self.compatibility, self.level, self.length_size]);
        // Three bits before the first count are reserved and set.
        for (sets, reserved) in [(&self.sequence, 0xE0), (&self.picture, 0)] {
            out.put_u8(reserved | sets.len() as u8);
            for set in sets.values() {
                out.put_u16(set.len() as u16);
                out.put_slice(set);
            }
        }
        out.put_slice(&self.extension);
    }
}

/// A count, and so many sets with their lengths; by id.
fn sets(rest: &mut &[u8], count_mask: u8, id_at: usize) -> Result<BTreeMap<u32, Vec<u8>>, BoxError> {
    let (count, mut left) = rest.split_first().ok_or(BoxError::Short)?;
    let mut sets = BTreeMap::new();
    for _ in 0..count & count_mask {
        let (length, after) = left.split_first_chunk::<2>().ok_or(BoxError::Short)?;
        let (set, after) = after.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(BoxError::Short)?;
        sets.insert(id(set.get(id_at..).ok_or(BoxError::Short)?)?, set.to_vec());
        left = after;
    }
    *rest = left;
    Ok(sets)
}

/// The Exp-Golomb code that these bits begin with (9.1). Ids have at most 8 bits.
fn id(bits: &[u8]) -> Result<u32, BoxError> {
    let word = bits.iter().chain(std::iter::repeat(&0)).take(4).fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
    let zeros = word.leading_zeros();
    if zeros > 8 {
        return Err(BoxError::Unexpected("id of a parameter set"));
    }
    Ok((word >> (31 - 2 * zeros)) - 1)
}

#[cfg(test)]
mod tests {
    use farm::boxes::descend;

    use super::*;

    /// An init segment with these sets, of a width that something else tells.
    fn init(level: u8, sequence: &[&[u8]], picture: &[&[u8]], width: u8) -> Bytes {
        let mut avcc = vec![1, 0x64, 0, level, 0xFF, 0xE0 | sequence.len() as u8];
        let put = |avcc: &mut Vec<u8>, sets: &[&[u8]]| {
            for set in sets {
                avcc.extend((set.len() as u16).to_be_bytes());
                avcc.extend_from_slice(set);
            }
        };
        put(&mut avcc, sequence);
        avcc.push(picture.len() as u8);
        put(&mut avcc, picture);
        avcc.extend([0xFD, 0xF8, 0xF8, 0]);
        let mut out = BytesMut::new();
        put_box(&mut out, b"ftyp", |out| out.put_slice(b"cmf2"));
        let mut entry = vec![width; ENTRY_BYTES];
        let mut boxed = BytesMut::new();
        put_box(&mut boxed, b"avcC", |out| out.put_slice(&avcc));
        put_box(&mut boxed, b"pasp", |out| out.put_slice(&[0, 0, 0, 1, 0, 0, 0, 1]));
        // Not every encoder says it.
        if level > 30 {
            put_box(&mut boxed, b"btrt", |out| out.put_slice(&[0; 12]));
        }
        entry.extend_from_slice(&boxed);
        let mut inner = BytesMut::new();
        put_box(&mut inner, b"avc1", |out| out.put_slice(&entry));
        let stsd = [&[0, 0, 0, 0, 0, 0, 0, 1][..], &inner].concat();
        let mut body = stsd;
        for kind in [b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"] {
            let mut around = BytesMut::new();
            put_box(&mut around, kind, |out| out.put_slice(&body));
            body = around.to_vec();
        }
        out.put_slice(&body);
        out.freeze()
    }

    fn avcc(init: &[u8]) -> Avcc {
        taken_out(init).expect("an init segment").avcc
    }

    // Id 0 is the bit 1, id 1 is 010.
    const SPS_0: &[u8] = &[0x67, 0x64, 0, 30, 0x80, 7];
    const SPS_1: &[u8] = &[0x67, 0x64, 0, 40, 0x40, 9];
    const PPS_0: &[u8] = &[0x68, 0x80];
    const PPS_1: &[u8] = &[0x68, 0x40, 1];

    #[test]
    fn sets_of_two_encoders_stand_side_by_side() {
        let (device, library) = (init(30, &[SPS_0], &[PPS_0], 1), init(40, &[SPS_1], &[PPS_1], 1));
        assert_eq!(join(&[device.clone(), device.clone()]), Ok(device.clone()), "nothing to join");
        let joined = join(&[device.clone(), library.clone(), device.clone()]).expect("they go together");
        let sets = avcc(&joined);
        assert_eq!(sets.sequence.values().collect::<Vec<_>>(), [SPS_0, SPS_1]);
        assert_eq!(sets.picture.values().collect::<Vec<_>>(), [PPS_0, PPS_1]);
        assert_eq!((sets.level, sets.extension.as_slice()), (40, &[0xFD, 0xF8, 0xF8, 0][..]));
        assert_eq!(joined, join(&[device.clone(), library]).expect("they go together"));
        let stsd =
            [(b"moov", "moov"), (b"trak", "trak"), (b"mdia", "mdia"), (b"minf", "minf"), (b"stbl", "stbl"), (b"stsd", "stsd")];
        assert_eq!(descend(&joined, &stsd).map(|body| body.len() > SPS_0.len() + SPS_1.len()), Ok(true), "sizes fit");
        assert_eq!(joined.len(), device.len() + 2 + SPS_1.len() + 2 + PPS_1.len());
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let device = init(30, &[SPS_0], &[PPS_0], 1);
        let other_set: &[u8] = &[0x67, 0x64, 0, 30, 0x80, 8];
        for other in [init(30, &[other_set], &[PPS_0], 1), init(40, &[SPS_1], &[PPS_1], 2), Bytes::from_static(b"nothing")] {
            assert!(join(&[device.clone(), other]).is_err());
        }
        assert!(join(&[]).is_err());
        // As deep as an init segment may be long.
        let mut deep = BytesMut::from(&device[..]);
        for n in (1..100_000_u32).rev() {
            deep.put_slice(&(8 * n).to_be_bytes());
            deep.put_slice(b"trak");
        }
        let deep = deep.freeze();
        assert_eq!(join(&[deep.clone(), deep.clone()]), Ok(deep.clone()));
        assert!(join(&[device, deep]).is_err());
    }

    #[test]
    fn ids_are_read() {
        assert_eq!([&[0x80][..], &[0x40], &[0x60], &[0x20, 0], &[0x08, 0x80]].map(id), [Ok(0), Ok(1), Ok(2), Ok(3), Ok(16)]);
        assert!(id(&[0, 0, 0]).is_err() && id(&[]).is_err());
    }
}
