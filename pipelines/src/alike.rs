//! How like two pictures are: by what is coarse of them, and pixel by pixel.
//!
//! With few bits an encoder gives up what is fine of a picture, and of noise that is all there is. What it keeps are the means of
//! blocks. So these are held against each other, of brightness and both colours, in bands of rows of which the worst decides:
//! a lower half that is grey does not hide behind an upper one that is right. Of a band it counts how far off its mean is, and
//! how far off its blocks are beside that.
//!
//! What is allowed comes of what good encoders made of pictures that are hard: noise, grain, flicker, fades, dark slopes, another
//! picture at every frame. They were x264, x265 and SVT-AV1, at qualities to 50, or under caps of 200 kbit/s for 640x360 and
//! 150 kbit/s for 256x144. The most that was seen, in levels of 255:
//!
//! | | mean of brightness | its blocks | mean of a colour | its blocks |
//! |---|---|---|---|---|
//! | key frames | 14 | 7 | 7 | 5 |
//! | others | 25 | 16 | 8 | 7 |
//!
//! More was seen only where blocks differ much in the picture itself, or change as much from one frame to the next: that is
//! allowed for. Squares that flicker, as large as blocks, are lost under a cap of 60 kbit/s, and taken for another picture.

use farm::Failure;

use crate::source::size;
use crate::stills::rows;

/// Side of a block of brightness, in pixels: that of a macroblock. Blocks of colours have half, and as much of the picture.
const BLOCK_SIDE: usize = 16;
/// Bands of a picture, at most.
const BANDS_MAX: usize = 8;
/// Part of the variance of a band's blocks that they may be off, as mean square. What is blank is off by all of it, what is
/// foreign by twice as much.
const VARIANCE_PART: f64 = 0.5;
/// Rows of a plane that are compared pixel by pixel, at most: enough, and little in large sizes.
const ROWS_MAX: u32 = 540;
/// Mean square errors of the pixels of brightness and of both colours that easy pictures may have with bits to spare: a PSNR of
/// 30 dB and of 28 dB. x264, x265 and libaom make those of a proof with more than 46 dB.
const ERRORS_MAX: [f64; 3] = [65.0, 103.0, 103.0];

/// What a frame is to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// It refers to none.
    Key,
    /// It refers to others, and may lag behind what it shows.
    Other,
}

/// How far off a band may be, in levels.
struct Limits {
    /// Its mean.
    mean: f64,
    /// Its blocks beside that, as root of the mean square.
    blocks: f64,
}

impl Frame {
    fn limits(self, is_colour: bool) -> Limits {
        let (mean, blocks) = match (self, is_colour) {
            (Self::Key, false) => (16.0, 10.0),
            (Self::Key, true) => (8.0, 6.0),
            (Self::Other, false) => (32.0, 20.0),
            (Self::Other, true) => (16.0, 10.0),
        };
        Limits { mean, blocks }
    }

    /// How many times what changes between frames may be off of the mean and of the blocks, as mean squares. What does not follow
    /// at all is off by about as much as changes. The mean of what refers to nothing is right whatever changes.
    fn times_changed(self) -> (f64, f64) {
        match self {
            Self::Key => (0.0, 1.0),
            Self::Other => (2.0, 2.0),
        }
    }
}

/// Means of blocks, in rows.
type Blocks = Vec<Vec<u8>>;

/// What is coarse of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coarse {
    size: (u32, u32),
    planes: [Blocks; 3],
}

impl Coarse {
    /// Of a 4:2:0 picture.
    ///
    /// # Errors
    /// When it is not one, or its memory cannot be read.
    pub fn of(picture: &gst::Sample) -> Result<Self, Failure> {
        let planes = [blocks(picture, 0)?, blocks(picture, 1)?, blocks(picture, 2)?];
        Ok(Self { size: picture.caps().and_then(size).unwrap_or_default(), planes })
    }

    /// Whether this, which was made of the original, has nothing to do with it. `beside` is an original that is shown just before
    /// or after: what changes as much is hard.
    pub fn is_another_than(&self, original: &Self, beside: Option<&Self>, frame: Frame) -> bool {
        if self.size != original.size {
            return true;
        }
        let beside = beside.unwrap_or(original);
        let planes = original.planes.iter().zip(&self.planes).zip(&beside.planes);
        planes.enumerate().any(|(plane, ((original, made), beside))| {
            let rows = original.len().div_ceil(BANDS_MAX).max(1);
            let mut bands = original.chunks(rows).zip(made.chunks(rows)).zip(beside.chunks(rows));
            bands.any(|((original, made), beside)| is_off(original, made, beside, (frame, plane > 0)))
        })
    }
}

/// Whether a band is further off than it may be.
fn is_off(original: &[Vec<u8>], made: &[Vec<u8>], beside: &[Vec<u8>], (frame, is_colour): (Frame, bool)) -> bool {
    let limits = frame.limits(is_colour);
    let (mean_times, blocks_times) = frame.times_changed();
    let (moved, stirred) = moments(differences(original, beside));
    let change = moved * moved + stirred;
    let (_, variance) = moments(original.iter().flatten().map(|level| f64::from(*level)));
    let (mean, blocks) = moments(differences(original, made));
    mean * mean > (limits.mean * limits.mean).max(mean_times * change)
        || blocks > (limits.blocks * limits.blocks).max(VARIANCE_PART * variance).max(blocks_times * change)
}

/// By how much each block of one band is brighter than the same of another.
fn differences(one: &[Vec<u8>], other: &[Vec<u8>]) -> impl Iterator<Item = f64> {
    one.iter().flatten().zip(other.iter().flatten()).map(|(one, other)| f64::from(*other) - f64::from(*one))
}

/// Mean and variance.
fn moments(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut count, mut sum, mut squares) = (0_u32, 0.0, 0.0);
    for value in values {
        (count, sum, squares) = (count + 1, sum + value, squares + value * value);
    }
    let count = f64::from(count.max(1));
    let mean = sum / count;
    (mean, squares / count - mean * mean)
}

/// The means of a plane's blocks. Those at the right and at the bottom may be cut off.
fn blocks(picture: &gst::Sample, plane: u32) -> Result<Blocks, Failure> {
    let side = if plane == 0 { BLOCK_SIDE } else { BLOCK_SIDE / 2 };
    // Sums with the number of pixels in them.
    let mut sums: Vec<Vec<(u32, u32)>> = Vec::new();
    rows(picture, plane, |number, row| {
        if number.is_multiple_of(side) {
            sums.push(vec![(0, 0); row.len().div_ceil(side)]);
        }
        let Some(open) = sums.last_mut() else { return };
        for ((sum, count), levels) in open.iter_mut().zip(row.chunks(side)) {
            *sum += levels.iter().map(|level| u32::from(*level)).sum::<u32>();
            *count += levels.len() as u32;
        }
    })?;
    let mean = |&(sum, count): &(u32, u32)| ((sum + count / 2) / count.max(1)) as u8;
    Ok(sums.iter().map(|row| row.iter().map(mean).collect()).collect())
}

/// Pixels of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels([Vec<u8>; 3]);

impl Pixels {
    /// Of a 4:2:0 picture.
    ///
    /// # Errors
    /// When it is not one, or its memory cannot be read.
    pub fn of(picture: &gst::Sample) -> Result<Self, Failure> {
        Ok(Self([pixels(picture, 0)?, pixels(picture, 1)?, pixels(picture, 2)?]))
    }

    /// Whether this is made of the original as well as any encoder makes an easy picture with bits to spare.
    pub fn is_near(&self, original: &Self) -> bool {
        let mut planes = original.0.iter().zip(&self.0).zip(ERRORS_MAX);
        planes.all(|((original, made), error_max)| {
            let squares = original.iter().zip(made).map(|(one, other)| u64::from(one.abs_diff(*other)).pow(2));
            original.len() == made.len() && squares.sum::<u64>() as f64 <= error_max * original.len() as f64
        })
    }
}

/// Rows of a plane, one after the other.
fn pixels(picture: &gst::Sample, plane: u32) -> Result<Vec<u8>, Failure> {
    let (_, height) = picture.caps().and_then(size).unwrap_or_default();
    let step = (height >> u32::from(plane > 0)).div_ceil(ROWS_MAX).max(1) as usize;
    let mut levels = Vec::new();
    rows(picture, plane, |number, row| {
        if number.is_multiple_of(step) {
            levels.extend_from_slice(row);
        }
    })?;
    Ok(levels)
}

#[cfg(test)]
mod tests {
    use gst_video::{VideoFormat, VideoInfo};

    use super::*;

    /// The smallest rung.
    const SIZE: (u32, u32) = (256, 144);

    /// A picture whose levels go by plane, column and row. Its width is a multiple of 8.
    fn picture((width, height): (u32, u32), level: impl Fn(u32, u32, u32) -> u8) -> gst::Sample {
        crate::init().expect("GStreamer");
        let mut levels = Vec::new();
        for plane in 0..3 {
            let halved = u32::from(plane > 0);
            for row in 0..height >> halved {
                levels.extend((0..width >> halved).map(|column| level(plane, column, row)));
            }
        }
        let info = VideoInfo::builder(VideoFormat::I420, width, height).build().expect("a form");
        assert_eq!(info.size(), levels.len(), "rows are packed");
        let caps = info.to_caps().expect("caps");
        gst::Sample::builder().buffer(&gst::Buffer::from_slice(levels)).caps(&caps).build()
    }

    /// Stripes on a slope, and slopes of colours.
    fn scene(plane: u32, column: u32, row: u32) -> u8 {
        let level = match plane {
            0 => 40 + column * 120 / SIZE.0 + if (row / 24).is_multiple_of(2) { 30 } else { 0 },
            1 => 100 + column / 4,
            _ => 170 - row / 2,
        };
        level as u8
    }

    fn coarse(level: impl Fn(u32, u32, u32) -> u8) -> Coarse {
        Coarse::of(&picture(SIZE, level)).expect("a picture")
    }

    /// The scene with all of its brightness so many levels higher.
    fn lifted(by: u8) -> Coarse {
        coarse(move |plane, column, row| scene(plane, column, row) + if plane == 0 { by } else { 0 })
    }

    #[test]
    fn blocks_have_the_means_of_their_pixels_also_where_they_are_cut_off() {
        let size = (40, 24);
        let steps = picture(size, |plane, column, row| {
            let side = if plane == 0 { 16 } else { 8 };
            // Rounded up from the half.
            let odd = u32::from(plane == 2) * (column % 2);
            (column / side * 10 + row / side * 100 + odd) as u8
        });
        let even = vec![vec![0, 10, 20], vec![100, 110, 120]];
        let odd = vec![vec![1, 11, 21], vec![101, 111, 121]];
        assert_eq!(Coarse::of(&steps), Ok(Coarse { size, planes: [even.clone(), even, odd] }));
    }

    #[test]
    fn what_has_too_few_bits_is_no_other_picture() {
        let original = coarse(scene);
        let grain = |column: u32, row: u32| (((column * 31 + row * 17) * 7919) % 81) as i8 - 40;
        let of_brightness = |change: &dyn Fn(u8, u32, u32) -> u8| {
            coarse(|plane, column, row| {
                let level = scene(plane, column, row);
                if plane == 0 { change(level, column, row) } else { level }
            })
        };
        for (what, made) in [
            ("itself", coarse(scene)),
            ("grain", of_brightness(&|level, column, row| level.saturating_add_signed(grain(column, row)))),
            ("pale", of_brightness(&|level, _, _| level / 4 * 3 + 28)),
            ("a bit too bright", lifted(12)),
            ("a bit green", coarse(|plane, column, row| scene(plane, column, row) - if plane > 0 { 6 } else { 0 })),
        ] {
            assert!(!made.is_another_than(&original, None, Frame::Key), "{what}");
        }
        let black = coarse(|plane, _, _| if plane == 0 { 16 } else { 128 });
        let nearly = coarse(|plane, column, _| if plane == 0 { 18 + (column % 7) as u8 } else { 127 });
        assert!(!nearly.is_another_than(&black, None, Frame::Key));
    }

    #[test]
    fn what_is_blank_foreign_moved_or_of_other_colours_is_another_picture() {
        let original = coarse(scene);
        let (width, height) = SIZE;
        let grey_from = |first: u32| {
            coarse(move |plane, column, row| if plane == 0 && row >= first { 128 } else { scene(plane, column, row) })
        };
        for (what, made) in [
            ("grey", coarse(|_, _, _| 128)),
            ("green", coarse(|_, _, _| 0)),
            ("its lower half grey", grey_from(height / 2)),
            ("its last rows grey", grey_from(height - 16)),
            ("without colours", coarse(|plane, column, row| if plane == 0 { scene(plane, column, row) } else { 128 })),
            ("with colours swapped", coarse(|plane, column, row| scene((3 - plane) % 3, column, row))),
            ("too bright", lifted(25)),
            ("mirrored", coarse(|plane, column, row| scene(plane, (width >> u32::from(plane > 0)) - 1 - column, row))),
            ("moved", coarse(|plane, column, row| scene(plane, (column + 64) % width, row))),
            ("of another size", Coarse::of(&picture((width, height + 2), scene)).expect("a picture")),
        ] {
            assert!(made.is_another_than(&original, None, Frame::Key), "{what}");
        }
        assert!(coarse(|_, _, _| 128).is_another_than(&original, None, Frame::Other));
        let night = coarse(|plane, _, _| if plane == 0 { 16 } else { 128 });
        let day = coarse(|plane, _, _| if plane == 0 { 41 } else { 128 });
        assert!(day.is_another_than(&night, None, Frame::Key), "black is not grey");
    }

    #[test]
    fn what_changes_may_lag_behind_but_in_key_frames() {
        let (original, next) = (coarse(scene), lifted(40));
        assert!(!lifted(20).is_another_than(&original, None, Frame::Other));
        assert!(lifted(20).is_another_than(&original, None, Frame::Key));
        assert!(lifted(40).is_another_than(&original, None, Frame::Other));
        assert!(!lifted(40).is_another_than(&original, Some(&next), Frame::Other));
        assert!(lifted(40).is_another_than(&original, Some(&next), Frame::Key));
        // Where blocks change as much as they differ, none of it can be asked for.
        let flicker =
            |odd: u32| coarse(move |_, column, row| if (column / 16 + row / 16 + odd).is_multiple_of(2) { 60 } else { 180 });
        let grey = coarse(|_, _, _| 120);
        assert!(grey.is_another_than(&flicker(0), None, Frame::Key));
        assert!(!grey.is_another_than(&flicker(0), Some(&flicker(1)), Frame::Key));
        assert!(flicker(1).is_another_than(&flicker(0), None, Frame::Other));
        assert!(!flicker(1).is_another_than(&flicker(0), Some(&flicker(1)), Frame::Other));
    }

    #[test]
    fn pixels_are_near_in_every_plane_or_not_at_all() {
        let with = |in_plane: u32, by: u8| {
            let level = move |plane, column, row| scene(plane, column, row) + if plane == in_plane { by } else { 0 };
            Pixels::of(&picture(SIZE, level)).expect("a picture")
        };
        let original = with(0, 0);
        assert!([with(0, 0), with(0, 8), with(1, 10), with(2, 10)].iter().all(|made| made.is_near(&original)));
        assert!(![with(0, 9), with(1, 11), with(2, 11)].iter().any(|made| made.is_near(&original)));
        let (width, height) = SIZE;
        assert!(!Pixels::of(&picture((width, height + 2), scene)).expect("a picture").is_near(&original));
        let large = Pixels::of(&picture((64, 1100), |_, _, row| row as u8)).expect("a picture");
        assert_eq!(large.0.map(|plane| plane.len()), [64 * 367, 32 * 275, 32 * 275], "every third row and every second");
    }
}
