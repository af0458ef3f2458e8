//! A film of one picture, to be the picture of a sound: a plain MP4 (ISO/IEC 14496-12) whose every frame is the same JPEG, which
//! stands in it once, and whose sound is that of another plain MP4, byte by byte.

use bytes::{BufMut as _, Bytes, BytesMut};
use farm::boxes::{BoxError, Child, Fields, children, find, put_box, put_full};

/// Size of the header of the media box, in bytes: it has a 64-bit size.
pub(super) const MEDIA_HEADER_BYTES: u64 = 16;
/// Most frames of a film: ten hours at 30 frames per second.
const FRAMES_MAX: u64 = 1_080_000;

/// A JPEG picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Picture {
    /// Its size in bytes.
    pub(super) bytes: u32,
    /// Its width in pixels.
    pub(super) width: u16,
    /// Its height in pixels.
    pub(super) height: u16,
}

impl Picture {
    /// Reads the size of a JPEG picture (ITU-T T.81, B.2.2); none when it is no such picture.
    pub(super) fn of(jpeg: &[u8]) -> Option<Self> {
        let bytes = u32::try_from(jpeg.len()).ok()?;
        let mut rest = jpeg.strip_prefix(&[0xFF, 0xD8])?;
        loop {
            let [0xFF, marker, high, low, ..] = *rest else { return None };
            let length = usize::from(u16::from_be_bytes([high, low]));
            // A frame header, but no table of codes, of arithmetic conditioning, or extension.
            if (0xC0..=0xCF).contains(&marker) && !matches!(marker, 0xC4 | 0xC8 | 0xCC) {
                let [_, h1, h2, w1, w2, ..] = *rest.get(4..)? else { return None };
                let (width, height) = (u16::from_be_bytes([w1, w2]), u16::from_be_bytes([h1, h2]));
                return (width > 0 && height > 0).then_some(Self { bytes, width, height });
            }
            rest = rest.get(2 + length..)?;
        }
    }
}

/// The sound's file: what stands before its media, and the media.
pub(super) struct Sound<'a> {
    /// Its boxes up to the media.
    pub(super) head: &'a [u8],
    /// Where its media begin, in bytes.
    pub(super) media_start: u64,
    /// How many bytes they are.
    pub(super) media_bytes: u64,
}

/// What stands before the picture's and then the sound's media in the film.
///
/// # Errors
/// When the sound's file is no plain MP4, or lasts too long.
pub(super) fn head(picture: Picture, fps: u32, sound: &Sound<'_>) -> Result<Bytes, BoxError> {
    // Places do not change the size of what says them.
    let bytes = written(picture, fps, sound, 0)?.len() as u64;
    written(picture, fps, sound, bytes)
}

fn written(picture: Picture, fps: u32, sound: &Sound<'_>, media_start: u64) -> Result<Bytes, BoxError> {
    let boxes = children(sound.head)?;
    let movie = children(find(&boxes, b"moov", "moov")?)?;
    let (timescale, ticks) = duration(find(&movie, b"mvhd", "mvhd")?)?;
    let frames = (u128::from(ticks) * u128::from(fps)).div_ceil(u128::from(timescale.max(1)));
    let frames = u64::try_from(frames).ok().filter(|frames| *frames <= FRAMES_MAX).ok_or(BoxError::Unexpected("length"))?.max(1);
    let later = (media_start + u64::from(picture.bytes)).wrapping_sub(sound.media_start);
    let mut out = BytesMut::new();
    put_box(&mut out, b"ftyp", |b| b.put_slice(b"isom\0\0\x02\0isomiso6mp41"));
    let mut inside = BytesMut::new();
    for Child { kind, body } in &movie {
        match kind {
            b"mvhd" => {
                let (fields, _) = body.split_last_chunk::<4>().ok_or(BoxError::Short)?;
                put_box(&mut inside, kind, |b| {
                    b.put_slice(fields);
                    b.put_u32(TRACK + 1);
                });
                let place = u32::try_from(media_start).map_err(|_| BoxError::Unexpected("place"))?;
                let size = (u64::from(timescale), ticks);
                track(&mut inside, picture, (fps, u32::try_from(frames).unwrap_or(u32::MAX)), size, place);
            }
            _ => {
                let mut own = BytesMut::new();
                moved(&[Child { kind: *kind, body }], later, &mut own)?;
                inside.put_slice(&own);
            }
        }
    }
    put_box(&mut out, b"moov", |b| b.put_slice(&inside));
    out.put_u32(1);
    out.put_slice(b"mdat");
    out.put_u64(MEDIA_HEADER_BYTES + u64::from(picture.bytes) + sound.media_bytes);
    Ok(out.freeze())
}

/// Number of the picture's track; the sound has the first.
const TRACK: u32 = 2;

/// Time scale and duration of a movie.
fn duration(header: &[u8]) -> Result<(u32, u64), BoxError> {
    let mut fields = Fields::new(header);
    let (version, _) = fields.full_box()?;
    if version == 1 {
        let _times = (fields.u64()?, fields.u64()?);
        return Ok((fields.u32()?, fields.u64()?));
    }
    let _times = (fields.u32()?, fields.u32()?);
    Ok((fields.u32()?, u64::from(fields.u32()?)))
}

/// The boxes, with every place of media so much later.
fn moved(boxes: &[Child<'_>], later: u64, out: &mut BytesMut) -> Result<(), BoxError> {
    for Child { kind, body } in boxes {
        let mut inside = BytesMut::new();
        match kind {
            b"trak" | b"mdia" | b"minf" | b"stbl" => moved(&children(body)?, later, &mut inside)?,
            b"co64" => {
                let mut fields = Fields::new(body);
                let (head, count) = (fields.u32()?, fields.u32()?);
                inside.put_u32(head);
                inside.put_u32(count);
                for _ in 0..count {
                    inside.put_u64(fields.u64()?.wrapping_add(later));
                }
            }
            // Ours are of 64 bits.
            b"stco" => return Err(BoxError::Unexpected("stco")),
            _ => inside.put_slice(body),
        }
        put_box(out, kind, |b| b.put_slice(&inside));
    }
    Ok(())
}

/// The picture's track: so many frames per second and in all, of one sample at one place.
fn track(out: &mut BytesMut, picture: Picture, (fps, frames): (u32, u32), (timescale, ticks): (u64, u64), place: u32) {
    let unity = [0x0001_0000_u32, 0, 0, 0, 0x0001_0000, 0, 0, 0, 0x4000_0000];
    let shown = u64::from(frames) * timescale / u64::from(fps.max(1));
    put_box(out, b"trak", |trak| {
        put_full(trak, b"tkhd", 1, 3, |b| {
            b.put_slice(&[0; 16]);
            b.put_u32(TRACK);
            b.put_u32(0);
            b.put_u64(shown.max(ticks));
            b.put_slice(&[0; 16]);
            unity.into_iter().for_each(|field| b.put_u32(field));
            b.put_u32(u32::from(picture.width) << 16);
            b.put_u32(u32::from(picture.height) << 16);
        });
        put_box(trak, b"mdia", |mdia| {
            put_full(mdia, b"mdhd", 0, 0, |b| [0, 0, fps, frames, 0x55C4_0000].into_iter().for_each(|field| b.put_u32(field)));
            put_full(mdia, b"hdlr", 0, 0, |b| {
                b.put_u32(0);
                b.put_slice(b"vide");
                b.put_slice(&[0; 13]);
            });
            put_box(mdia, b"minf", |minf| {
                put_full(minf, b"vmhd", 0, 1, |b| b.put_u64(0));
                put_box(minf, b"dinf", |b| {
                    put_full(b, b"dref", 0, 0, |b| {
                        b.put_u32(1);
                        put_full(b, b"url ", 0, 1, |_| {});
                    });
                });
                put_box(minf, b"stbl", |stbl| samples(stbl, picture, frames, place));
            });
        });
    });
}

fn samples(stbl: &mut BytesMut, picture: Picture, frames: u32, place: u32) {
    put_full(stbl, b"stsd", 0, 0, |b| {
        b.put_u32(1);
        put_box(b, b"jpeg", |b| {
            b.put_slice(&[0; 6]);
            b.put_u16(1);
            b.put_slice(&[0; 16]);
            b.put_u16(picture.width);
            b.put_u16(picture.height);
            // 72 dots per inch, one frame a sample, 24 bits, no table of colours.
            [0x0048_0000, 0x0048_0000, 0].into_iter().for_each(|field| b.put_u32(field));
            b.put_u16(1);
            b.put_slice(&[0; 32]);
            b.put_u16(24);
            b.put_u16(0xFFFF);
        });
    });
    put_full(stbl, b"stts", 0, 0, |b| [1, frames, 1].into_iter().for_each(|field| b.put_u32(field)));
    put_full(stbl, b"stsc", 0, 0, |b| [1, 1, 1, 1].into_iter().for_each(|field| b.put_u32(field)));
    put_full(stbl, b"stsz", 0, 0, |b| [picture.bytes, frames].into_iter().for_each(|field| b.put_u32(field)));
    put_full(stbl, b"stco", 0, 0, |b| {
        b.put_u32(frames);
        (0..frames).for_each(|_| b.put_u32(place));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_picture_is_in_its_frame_header() {
        let jpeg = [0xFF, 0xD8, 0xFF, 0xE0, 0, 4, 1, 2, 0xFF, 0xC4, 0, 3, 9, 0xFF, 0xC2, 0, 11, 8, 1, 0xE0, 3, 0x52, 3, 0];
        assert_eq!(Picture::of(&jpeg), Some(Picture { bytes: 24, width: 850, height: 480 }));
        for wrong in [&jpeg[..18], &jpeg[1..], b"\x89PNG\r\n", b""] {
            assert_eq!(Picture::of(wrong), None);
        }
    }
}
