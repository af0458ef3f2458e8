//! Whether frames are woven of two fields, by what is seen: in motion, lines of one field lie off those of the other.
//!
//! The measure is that of ffmpeg's `idet`: how well a line of the frame before or after fits between its neighbours here. The field
//! that came first fits the frame before; where both fit worse than the frame's own line, the frame is whole.

use farm::media::Fields;

/// How much worse one field has to fit than the other (`intl_thres` of `idet`).
const FIELDS_DIFFER: f64 = 1.04;
/// How much worse other frames' lines have to fit than a frame's own (`prog_thres` of `idet`).
const FRAMES_DIFFER: f64 = 1.5;
/// Fewest frames that have to look woven.
const WOVEN_MIN: u32 = 6;
/// How many times as many frames have to look woven one way as whole or the other way together.
const WOVEN_FACTOR: u32 = 4;

/// What frames looked like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    whole: u32,
    top_first: u32,
    bottom_first: u32,
}

impl Seen {
    /// Looks at the middle one of three frames in a row, by their luma of one byte a pixel.
    pub fn look(&mut self, [before, here, after]: [&[u8]; 3], width: usize) {
        let Some(row) = Some(width).filter(|width| *width > 0) else { return };
        // How badly a line of the frame before fits on each parity, the frame after on the other, and the frame's own.
        let (mut other, mut own) = ([0_u64; 2], 0_u64);
        let rows = here.chunks_exact(row).zip(before.chunks_exact(row).zip(after.chunks_exact(row)));
        let lines: Vec<_> = rows.collect();
        for (y, lines) in lines.windows(3).enumerate() {
            let [(above, _), (line, (earlier, later)), (below, _)] = lines else { continue };
            let y = y + 1;
            let misfit = |line: &[u8]| -> u64 {
                let three = above.iter().zip(line).zip(below.iter());
                three.map(|((a, b), c)| u64::from((i32::from(*a) + i32::from(*c) - 2 * i32::from(*b)).unsigned_abs())).sum()
            };
            other[y & 1] += misfit(earlier);
            other[(y & 1) ^ 1] += misfit(later);
            own += misfit(line);
        }
        #[expect(clippy::cast_precision_loss, reason = "sums over a frame are far below 2^52")]
        let [top, bottom, own] = [other[0] as f64, other[1] as f64, own as f64];
        if top > FIELDS_DIFFER * bottom {
            self.top_first += 1;
        } else if bottom > FIELDS_DIFFER * top {
            self.bottom_first += 1;
        } else if bottom > FRAMES_DIFFER * own {
            self.whole += 1;
        }
    }

    /// Which field comes first, if nearly all frames that tell are woven.
    pub fn fields(self) -> Option<Fields> {
        let Self { whole, top_first, bottom_first } = self;
        let is_clear = |woven: u32, other: u32| woven >= WOVEN_MIN && woven >= WOVEN_FACTOR * (other + whole);
        if is_clear(top_first, bottom_first) {
            Some(Fields::TopFirst)
        } else if is_clear(bottom_first, top_first) {
            Some(Fields::BottomFirst)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 64;
    const HEIGHT: usize = 32;

    /// A bar at a time in fields, on the lines of this parity or on all.
    fn draw(into: &mut [u8], time: usize, parity: Option<usize>) {
        for y in (0..HEIGHT).filter(|y| parity.is_none_or(|parity| y % 2 == parity)) {
            for x in 0..WIDTH {
                // A slanted edge, so that lines differ in whole frames too.
                let inside = (x + y / 3 + 60 - 2 * time % 60) % 20 < 8;
                into[y * WIDTH + x] = if inside { 200 } else { 40 };
            }
        }
    }

    fn seen(frame: impl Fn(usize) -> Vec<u8>) -> Option<Fields> {
        let frames: Vec<Vec<u8>> = (0..12).map(frame).collect();
        let mut seen = Seen::default();
        frames.windows(3).for_each(|three| seen.look([&three[0], &three[1], &three[2]], WIDTH));
        seen.fields()
    }

    #[test]
    fn woven_frames_are_told_from_whole_ones_and_from_each_other() {
        let woven = |first: usize| {
            move |number: usize| {
                let mut frame = vec![0; WIDTH * HEIGHT];
                draw(&mut frame, 2 * number, Some(first));
                draw(&mut frame, 2 * number + 1, Some(1 - first));
                frame
            }
        };
        assert_eq!(seen(woven(0)), Some(Fields::TopFirst));
        assert_eq!(seen(woven(1)), Some(Fields::BottomFirst));
        let whole = |number: usize| {
            let mut frame = vec![0; WIDTH * HEIGHT];
            draw(&mut frame, 2 * number, None);
            frame
        };
        assert_eq!(seen(whole), None);
        assert_eq!(seen(|_| whole(1)), None, "nothing moves");
        assert_eq!(seen(|_| Vec::new()), None);
    }

    #[test]
    fn some_woven_frames_among_whole_ones_do_not_count() {
        assert_eq!(Seen { whole: 6, top_first: 8, bottom_first: 0 }.fields(), None, "telecine");
        assert_eq!(Seen { whole: 0, top_first: 5, bottom_first: 0 }.fields(), None, "too few");
        assert_eq!(Seen { whole: 1, top_first: 1, bottom_first: 8 }.fields(), Some(Fields::BottomFirst));
    }
}
