//! Picture and sound in one fragmented file: a segment of the one, then the segment of the other. Only names of tracks and
//! the init segment are written anew; media bytes stay as they are.

use bytes::{BufMut as _, Bytes, BytesMut};
use farm::boxes::{BoxError, Child, Fields, children, descend, find, put_box};

/// Where a box names its track, after version and flags: in bytes from its start, by version.
fn track_place(kind: &[u8; 4], body: &[u8]) -> Result<usize, BoxError> {
    let (version, _) = Fields::new(body).full_box()?;
    // Two times of 4 or 8 bytes stand before it in a track header.
    Ok(match (kind, version) {
        (b"tkhd", 1) => 20,
        (b"tkhd", _) => 12,
        _ => 4,
    })
}

/// The boxes, with every track in them called `track`.
fn renamed(boxes: &[Child<'_>], track: u32, out: &mut BytesMut) -> Result<(), BoxError> {
    for Child { kind, body } in boxes {
        let mut inside = BytesMut::new();
        match kind {
            b"moof" | b"traf" | b"trak" => renamed(&children(body)?, track, &mut inside)?,
            b"tfhd" | b"tkhd" | b"trex" => {
                inside.put_slice(body);
                let place = track_place(kind, body)?;
                inside.get_mut(place..place + 4).ok_or(BoxError::Short)?.copy_from_slice(&track.to_be_bytes());
            }
            _ => inside.put_slice(body),
        }
        put_box(out, kind, |b| b.put_slice(&inside));
    }
    Ok(())
}

/// The track that an init segment is of.
fn track_of(init: &[u8]) -> Result<u32, BoxError> {
    let header = descend(init, &[(b"moov", "moov"), (b"trak", "trak"), (b"tkhd", "tkhd")])?;
    Fields::new(header.get(track_place(b"tkhd", header)?..).ok_or(BoxError::Short)?).u32()
}

/// The number of the sound's track in a file whose picture has this init segment.
///
/// # Errors
/// When it is no init segment.
pub(super) fn sound_track(picture_init: &[u8]) -> Result<u32, BoxError> {
    track_of(picture_init)?.checked_add(1).ok_or(BoxError::Unexpected("track"))
}

/// The init segment of both tracks.
///
/// # Errors
/// When one is no init segment.
pub(super) fn init(picture: &[u8], sound: &[u8]) -> Result<Bytes, BoxError> {
    let track = sound_track(picture)?;
    let sound = children(descend(sound, &[(b"moov", "moov")])?)?;
    let (mut trak, mut trex) = (BytesMut::new(), BytesMut::new());
    let is_trak = |child: &&Child<'_>| &child.kind == b"trak";
    let own = sound.iter().find(is_trak).ok_or(BoxError::Missing("trak"))?;
    renamed(&[Child { kind: own.kind, body: own.body }], track, &mut trak)?;
    renamed(&children(find(&sound, b"mvex", "mvex")?)?, track, &mut trex)?;
    let mut out = BytesMut::new();
    for Child { kind, body } in children(picture)? {
        let inside = if &kind == b"moov" { movie(body, track, &trak, &trex)? } else { BytesMut::from(body) };
        put_box(&mut out, &kind, |b| b.put_slice(&inside));
    }
    Ok(out.freeze())
}

fn movie(picture: &[u8], track: u32, trak: &[u8], trex: &[u8]) -> Result<BytesMut, BoxError> {
    let mut out = BytesMut::new();
    for Child { kind, body } in children(picture)? {
        let mut inside = BytesMut::from(body);
        match &kind {
            b"mvhd" => {
                // The last field is the number of the next track.
                let place = inside.len().checked_sub(4).ok_or(BoxError::Short)?;
                inside.get_mut(place..).ok_or(BoxError::Short)?.copy_from_slice(&(track + 1).to_be_bytes());
            }
            b"mvex" => inside.put_slice(trex),
            _ => {}
        }
        put_box(&mut out, &kind, |b| b.put_slice(&inside));
        if &kind == b"trak" {
            out.put_slice(trak);
        }
    }
    Ok(out)
}

/// A segment of sound as it stands in a file in which its track has this number: as long as before.
///
/// # Errors
/// When it is no segment.
pub(super) fn segment(sound: &[u8], track: u32) -> Result<Bytes, BoxError> {
    let mut out = BytesMut::with_capacity(sound.len());
    renamed(&children(sound)?, track, &mut out)?;
    Ok(out.freeze())
}

#[cfg(test)]
mod tests {
    use farm::boxes::put_full;

    use super::*;

    fn init_of(track: u32, version: u8) -> Bytes {
        let mut out = BytesMut::new();
        put_box(&mut out, b"ftyp", |b| b.put_slice(b"iso6"));
        put_box(&mut out, b"moov", |b| {
            put_full(b, b"mvhd", 0, 0, |b| [0, 0, 1000, 0, 2].into_iter().for_each(|field| b.put_u32(field)));
            put_box(b, b"trak", |b| {
                put_full(b, b"tkhd", version, 3, |b| {
                    b.put_slice(if version == 1 { &[9; 16] } else { &[9; 8] });
                    b.put_u32(track);
                });
                put_box(b, b"mdia", |b| b.put_u8(track as u8));
            });
            put_box(b, b"mvex", |b| put_full(b, b"trex", 0, 0, |b| [track, 1].into_iter().for_each(|field| b.put_u32(field))));
        });
        out.freeze()
    }

    #[test]
    fn tracks_of_both_stand_in_one_movie_under_their_own_numbers() {
        for version in [0, 1] {
            let both = init(&init_of(1, version), &init_of(1, version)).expect("an init segment");
            let movie = children(descend(&both, &[(b"moov", "moov")]).expect("a movie")).expect("boxes");
            let kinds: Vec<&[u8; 4]> = movie.iter().map(|child| &child.kind).collect();
            assert_eq!(kinds, [b"mvhd", b"trak", b"trak", b"mvex"]);
            let next = find(&movie, b"mvhd", "mvhd").ok().and_then(|body| body.last_chunk::<4>()).expect("a number");
            assert_eq!(u32::from_be_bytes(*next), 3);
            let numbers = movie.iter().filter(|child| &child.kind == b"trak").map(|child| {
                let header = descend(child.body, &[(b"tkhd", "tkhd")]).expect("a header");
                Fields::new(&header[track_place(b"tkhd", header).expect("a place")..]).u32().expect("a number")
            });
            assert_eq!(numbers.collect::<Vec<_>>(), [1, 2]);
            let defaults = children(find(&movie, b"mvex", "mvex").expect("defaults")).expect("boxes");
            let numbers = defaults.iter().map(|child| Fields::new(&child.body[4..]).u32().expect("a number"));
            assert_eq!(numbers.collect::<Vec<_>>(), [1, 2]);
        }
    }

    #[test]
    fn a_segment_of_sound_says_its_number_and_is_the_same_otherwise() {
        let mut own = BytesMut::new();
        put_box(&mut own, b"moof", |b| {
            put_full(b, b"mfhd", 0, 0, |b| b.put_u32(7));
            put_box(b, b"traf", |b| put_full(b, b"tfhd", 0, 0x02_0000, |b| b.put_u32(1)));
        });
        put_box(&mut own, b"mdat", |b| b.put_slice(b"sound"));
        let renamed = segment(&own, 2).expect("a segment");
        let header = descend(&renamed, &[(b"moof", "moof"), (b"traf", "traf"), (b"tfhd", "tfhd")]).expect("a header");
        assert_eq!(header, [0, 2, 0, 0, 0, 0, 0, 2]);
        let differing = own.iter().zip(&renamed).filter(|(before, after)| before != after).count();
        assert_eq!((renamed.len(), differing), (own.len(), 1));
        assert_eq!(segment(&own[..own.len() - 1], 2), Err(BoxError::Short));
    }
}
