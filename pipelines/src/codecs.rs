//! What an init segment says of its codec, and how players want it named.

use farm::boxes::{BoxError, children, descend, find};

/// The codec of an init segment's track as RFC 6381 writes it: `avc1.64001F`, `hvc1.1.6.L93.90`, `av01.0.04M.08`, `mp4a.40.2`.
///
/// # Errors
/// When it is not an init segment of one track in a codec that is made here.
pub fn of_init(init: &[u8]) -> Result<String, BoxError> {
    let stsd = descend(
        init,
        &[(b"moov", "moov"), (b"trak", "trak"), (b"mdia", "mdia"), (b"minf", "minf"), (b"stbl", "stbl"), (b"stsd", "stsd")],
    )?;
    let entries = children(stsd.get(8..).ok_or(BoxError::Short)?)?;
    let entry = entries.first().ok_or(BoxError::Missing("sample entry"))?;
    match &entry.kind {
        b"avc1" | b"avc3" => {
            let boxes = children(entry.body.get(78..).ok_or(BoxError::Short)?)?;
            let avcc = find(&boxes, b"avcC", "avcC")?;
            let [profile, constraints, level] = avcc.get(1..4).and_then(|b| b.try_into().ok()).ok_or(BoxError::Short)?;
            let kind = if &entry.kind == b"avc1" { "avc1" } else { "avc3" };
            Ok(format!("{kind}.{profile:02X}{constraints:02X}{level:02X}"))
        }
        b"hvc1" => {
            let boxes = children(entry.body.get(78..).ok_or(BoxError::Short)?)?;
            hevc_codec(find(&boxes, b"hvcC", "hvcC")?)
        }
        b"av01" => {
            let boxes = children(entry.body.get(78..).ok_or(BoxError::Short)?)?;
            av1_codec(find(&boxes, b"av1C", "av1C")?)
        }
        b"mp4a" => {
            let boxes = children(entry.body.get(28..).ok_or(BoxError::Short)?)?;
            let esds = find(&boxes, b"esds", "esds")?;
            Ok(format!("mp4a.40.{}", audio_object_type(esds.get(4..).ok_or(BoxError::Short)?)?))
        }
        _ => Err(BoxError::Unexpected("codec")),
    }
}

/// As ISO/IEC 14496-15, E.3 writes it: profile, its compatible ones (the bits from behind), tier and level, and further bounds
/// without the zeros at their end.
fn hevc_codec(hvcc: &[u8]) -> Result<String, BoxError> {
    let [profile, flags @ .., level] = hvcc.get(1..13).and_then(|b| <[u8; 12]>::try_from(b).ok()).ok_or(BoxError::Short)?;
    let (compatible, bounds) = flags.split_first_chunk::<4>().ok_or(BoxError::Short)?;
    let space = ["", "A", "B", "C"].get(usize::from(profile >> 6)).copied().unwrap_or_default();
    let tier = if profile & 0x20 == 0 { 'L' } else { 'H' };
    let mut text = format!("hvc1.{space}{}", profile & 0x1F);
    text += &format!(".{:X}.{tier}{level}", u32::from_be_bytes(*compatible).reverse_bits());
    let used = bounds.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    text.extend(bounds.iter().take(used).map(|byte| format!(".{byte:X}")));
    Ok(text)
}

/// As "AV1 Codec ISO Media File Format Binding" writes it in short, for 4:2:0 in the colours of BT.709.
fn av1_codec(av1c: &[u8]) -> Result<String, BoxError> {
    let [profile_level, depth] = av1c.get(1..3).and_then(|b| b.try_into().ok()).ok_or(BoxError::Short)?;
    let tier = if depth & 0x80 == 0 { 'M' } else { 'H' };
    let bits = match (depth & 0x40 != 0, depth & 0x20 != 0) {
        (false, _) => 8,
        (true, false) => 10,
        (true, true) => 12,
    };
    Ok(format!("av01.{}.{:02}{tier}.{bits:02}", profile_level >> 5, profile_level & 0x1F))
}

/// `seq_level_idx` of the first operating point in a sequence header OBU (AV1 specification, 5.5.1), as libaom writes it.
pub(crate) fn av1_level(obu: &[u8]) -> Result<u8, BoxError> {
    // Type 1, with its size; that is less than 128 bytes.
    let (&[0x0A, size], header) = obu.split_first_chunk::<2>().ok_or(BoxError::Short)? else {
        return Err(BoxError::Unexpected("AV1 configuration"));
    };
    let header = header.get(..usize::from(size)).ok_or(BoxError::Short)?;
    let bits = header.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes)).ok_or(BoxError::Short)?;
    // Profile (3), no still picture (2), no timing (1); whatever is said of delays (1), of one operating point (5 and 12).
    match bits >> 26 & 0b111 == 0 && bits >> 20 & 0b1_1111 == 0 {
        true => Ok(u8::try_from(bits >> 3 & 0b1_1111).unwrap_or(31)),
        false => Err(BoxError::Unexpected("AV1 sequence header")),
    }
}

/// Audio object type in an ES descriptor (ISO/IEC 14496-1, 7.2.6; 14496-3, 1.6.2.1).
fn audio_object_type(mut bytes: &[u8]) -> Result<u8, BoxError> {
    loop {
        let (&tag, mut rest) = bytes.split_first().ok_or(BoxError::Missing("audio configuration"))?;
        let mut length = 0_usize;
        loop {
            let (&byte, after) = rest.split_first().ok_or(BoxError::Short)?;
            rest = after;
            length = (length << 7 | usize::from(byte & 0x7F)) & 0x0FFF_FFFF;
            if byte & 0x80 == 0 {
                break;
            }
        }
        // ES descriptor (3 bytes before its children), decoder configuration (13 bytes), then the specific information.
        let skip = match tag {
            0x03 => 3,
            0x04 => 13,
            0x05 => return rest.first().map(|b| b >> 3).ok_or(BoxError::Short),
            _ => length,
        };
        bytes = rest.get(skip..).ok_or(BoxError::Short)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codecs_are_named_as_players_read_them() {
        let hvcc = [1, 0x01, 0x60, 0, 0, 0, 0x90, 0, 0, 0, 0, 0, 93, 0xF0];
        assert_eq!(hevc_codec(&hvcc).as_deref(), Ok("hvc1.1.6.L93.90"));
        let high_tier = [1, 0x22, 0x20, 0, 0, 0, 0xB0, 0, 0x23, 0, 0, 0, 150, 0xF0];
        assert_eq!(hevc_codec(&high_tier).as_deref(), Ok("hvc1.2.4.H150.B0.0.23"));
        assert_eq!(av1_codec(&[0x81, 0x04, 0x0C, 0]).as_deref(), Ok("av01.0.04M.08"));
        assert_eq!(av1_codec(&[0x81, 0x0D, 0xCC, 0]).as_deref(), Ok("av01.0.13H.10"));
        assert_eq!(av1_level(&[10, 12, 0, 0, 0, 4, 62, 167, 191, 129, 181, 242, 0, 128]), Ok(0));
        assert_eq!(av1_level(&[10, 5, 0, 0, 0, 0x2C, 0]), Ok(5));
        assert!(av1_level(&[10, 12, 0, 0, 0, 4]).is_err() && av1_level(&[10, 5, 0x04, 0, 0, 0x2C, 0]).is_err());
        assert!(hevc_codec(&hvcc[..12]).is_err() && av1_codec(&[0x81, 4]).is_err());
    }
}
