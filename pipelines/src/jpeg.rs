//! JPEG files (ITU-T T.81), as far as their headers.

/// Width and height in pixels, by the frame header, of what is a JPEG file from its first marker to its last.
pub fn size(file: &[u8]) -> Option<(u32, u32)> {
    let mut segments = file.strip_prefix(&[0xFF, 0xD8])?;
    file.ends_with(&[0xFF, 0xD9]).then_some(())?;
    loop {
        let [0xFF, marker, high, low, body @ ..] = segments else { return None };
        // Start of frame, of any kind; what has other meanings among these codes is no frame (table B.1).
        if matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC) {
            let [_precision, height @ .., _, _] = body.get(..7)? else { return None };
            let [high, low, wide, narrow] = *height else { return None };
            return Some((u16::from_be_bytes([wide, narrow]).into(), u16::from_be_bytes([high, low]).into()));
        }
        if *marker == 0xDA {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        segments = body.get(length.checked_sub(2)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_header_is_found_and_nothing_else_is_taken_for_one() {
        let mut file = vec![0xFF, 0xD8, 0xFF, 0xE0, 0, 4, 0xAA, 0xBB, 0xFF, 0xC4, 0, 3, 0];
        let headless = [&file[..], &[0xFF, 0xDA, 0, 2, 0xFF, 0xD9]].concat();
        file.extend([0xFF, 0xC0, 0, 11, 8, 0x01, 0x68, 0x02, 0x80, 1, 0, 0x11, 0, 0xFF, 0xD9]);
        assert_eq!(size(&file), Some((640, 360)));
        assert_eq!(size(&headless), None);
        assert!((0..file.len()).all(|end| size(&file[..end]).is_none()));
        assert_eq!(size(&[0xFF, 0xD8, 0xFF, 0xE0, 0, 1, 0xFF, 0xD9]), None, "a segment shorter than its length");
    }
}
