//! A bar code that carries a frame's number in its picture, and the flash that marks whole seconds.
//!
//! The picture is seen as a grid of 24 columns and 18 rows. Rows 1–2 hold the code, rows 3–4 its complement, rows 9–16
//! are the flash area. A column is read as the difference of the two: it survives scaling, cropping of levels and coarse
//! quantisation, and a blend of two frames is seen as unreadable instead of as one of them.

/// Columns of the code: 2 guards, 16 bits of number, 4 bits of checksum, 2 guards.
pub const COLUMNS: usize = 24;
/// Rows of the grid.
pub const ROWS: usize = 18;
/// Width in pixels of the small picture that [`read`] takes.
pub const READ_WIDTH: usize = COLUMNS * 4;
/// Height in pixels of the small picture that [`read`] takes.
pub const READ_HEIGHT: usize = ROWS * 3;

const BLACK: u8 = 16;
const WHITE: u8 = 235;
/// Least difference between a column and its complement, of the 219 they are drawn with.
const CONTRAST_MIN: i32 = 90;
/// Least mean of the flash area for a flash; without, it is drawn below 110.
const FLASH_MIN: i32 = 170;

/// What a small picture shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The frame's number.
    pub number: Result<u32, Unreadable>,
    /// Whether the flash area is lit.
    pub flash: bool,
}

/// Why a code cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// A column is neither black nor white: a blend, or not our picture.
    Contrast,
    /// The guard columns are not there: mirrored, shifted or not our picture.
    Guard,
    /// The checksum does not fit the number.
    Checksum,
}

/// Draws a frame into a luma plane of `width` × `height` pixels without padding.
pub fn draw(plane: &mut [u8], width: usize, height: usize, number: u32, flash: bool) {
    let columns = columns_of(number);
    for (y, line) in plane.chunks_exact_mut(width).enumerate().take(height) {
        let row = y * ROWS / height;
        for (x, pixel) in line.iter_mut().enumerate() {
            let bit = || columns[(x * COLUMNS / width).min(COLUMNS - 1)];
            *pixel = match row {
                1 | 2 => level(bit()),
                3 | 4 => level(!bit()),
                8..=17 if flash => WHITE,
                _ => texture(x, y, number),
            };
        }
    }
}

fn level(bit: bool) -> u8 {
    if bit { WHITE } else { BLACK }
}

/// A pattern that moves, so that the encoder has something to do, of levels 40 to 103.
fn texture(x: usize, y: usize, number: u32) -> u8 {
    let moved = x / 2 + y + 3 * usize::try_from(number).unwrap_or(0);
    40 + u8::try_from((moved ^ (y / 3)) % 64).unwrap_or(0)
}

fn columns_of(number: u32) -> [bool; COLUMNS] {
    let word = (number << 4) | checksum(number);
    let mut columns = [false; COLUMNS];
    columns[0] = true;
    for (i, column) in columns[2..22].iter_mut().enumerate() {
        *column = word >> (19 - i) & 1 == 1;
    }
    // Both white, unlike the left guards: a mirrored picture is told apart.
    columns[22..].fill(true);
    columns
}

/// Four bits that no single changed bit, nor a number of all zeros or all ones, leaves right.
fn checksum(number: u32) -> u32 {
    let nibbles = (0..4).map(|i| (number >> (4 * i) & 15) * (i + 1)).sum::<u32>();
    (nibbles ^ (nibbles >> 4) ^ 9) & 15
}

/// Reads a small picture: grey, [`READ_WIDTH`] × [`READ_HEIGHT`] pixels.
pub fn read(small: &[u8]) -> Seen {
    let mean = |columns: std::ops::Range<usize>, rows: std::ops::Range<usize>| {
        let count = i32::try_from(columns.len() * rows.len()).unwrap_or(1);
        let pixels = rows.flat_map(|y| columns.clone().map(move |x| y * READ_WIDTH + x));
        pixels.map(|at| i32::from(small[at])).sum::<i32>() / count
    };
    let flash = mean(12..READ_WIDTH - 12, 30..50) >= FLASH_MIN;
    let mut columns = [false; COLUMNS];
    for (i, column) in columns.iter_mut().enumerate() {
        let inner = i * 4 + 1..i * 4 + 3;
        let contrast = mean(inner.clone(), 5..7) - mean(inner, 11..13);
        if contrast.abs() < CONTRAST_MIN {
            return Seen { number: Err(Unreadable::Contrast), flash };
        }
        *column = contrast > 0;
    }
    Seen { number: number_in(&columns), flash }
}

fn number_in(columns: &[bool; COLUMNS]) -> Result<u32, Unreadable> {
    let word = columns[2..22].iter().fold(0_u32, |word, &bit| word << 1 | u32::from(bit));
    match columns {
        [true, false, .., true, true] if word & 15 == checksum(word >> 4) => Ok(word >> 4),
        [true, false, .., true, true] => Err(Unreadable::Checksum),
        _ => Err(Unreadable::Guard),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(number: u32, flash: bool) -> Vec<u8> {
        let mut plane = vec![0; READ_WIDTH * READ_HEIGHT];
        draw(&mut plane, READ_WIDTH, READ_HEIGHT, number, flash);
        plane
    }

    #[test]
    fn what_is_drawn_is_read_again() {
        for number in (0..3000).chain(65_000..65_536) {
            for flash in [false, true] {
                assert_eq!(read(&small(number, flash)), Seen { number: Ok(number), flash });
            }
        }
    }

    #[test]
    fn a_blend_a_mirror_and_a_wrong_bit_are_not_read_as_a_number() {
        let blend: Vec<u8> = small(6, false).iter().zip(small(9, false)).map(|(a, b)| a / 2 + b / 2).collect();
        assert_eq!(read(&blend).number, Err(Unreadable::Contrast));
        let mirror: Vec<u8> =
            small(77, false).chunks(READ_WIDTH).flat_map(|line| line.iter().rev().copied().collect::<Vec<_>>()).collect();
        assert_eq!(read(&mirror).number, Err(Unreadable::Guard));
        for bit in 0..20 {
            let mut columns = columns_of(1234);
            columns[2 + bit] = !columns[2 + bit];
            assert_eq!(number_in(&columns), Err(Unreadable::Checksum), "bit {bit}");
        }
    }
}
