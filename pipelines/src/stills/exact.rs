//! A storyboard of the frames that are on screen at given times, each of an exact size, on one sheet.
//!
//! Sides may be odd, where 4:2:0 has no place for every second column. So pictures are made of twice the size, in the colours of
//! JPEG files, and each square of four pixels, which has one colour, becomes one pixel of 4:4:4.

use farm::Failure;
use farm::media::{Colour, SAME_TIME_NS};
use farm::stills::{StoryboardPlan, Tile};

use super::{Sheet, Stage, blank, drawn, jpeg, rows, stride};
use crate::decode::Raw;
use crate::fragment::handed_on;
use crate::source::internal;
use crate::{Output, StillPlace};

/// A first frame of all that is later than the first time by no more is shown at that time too, as it is in the video.
const FIRST_LATE_NS: u64 = 500_000_000;

/// Puts the frames of given times onto a sheet.
pub struct ExactBoard {
    plan: StoryboardPlan,
    /// Makes pictures of twice the size.
    scale: Stage,
    sheet: Sheet,
    /// The last frame that was decoded.
    frame: Option<Raw>,
    /// What the last place shows, of twice the size.
    picture: Option<gst::Sample>,
    /// The place that is drawn next.
    next: usize,
    made: Vec<Tile>,
}

impl ExactBoard {
    /// A black sheet for the pictures of a plan.
    ///
    /// # Errors
    /// When an element is missing or fails.
    pub fn new(plan: &StoryboardPlan, colour: Colour) -> Result<Self, Failure> {
        let scale = Stage::scaling(2 * plan.width, 2 * plan.height, colour)?;
        let sheet = blank(gst_video::VideoFormat::Y444, plan.sheet_size(plan.sheet_tiles()))?;
        Ok(Self { plan: plan.clone(), scale, sheet, frame: None, picture: None, next: 0, made: Vec::new() })
    }

    /// Takes the next frame in order of time. Not all frames of the source need come: each tile's from its key frame on do.
    ///
    /// # Errors
    /// When an element fails.
    pub fn take(&mut self, frame: Raw) -> Result<(), Failure> {
        let late_ns = if self.frame.is_none() { FIRST_LATE_NS } else { SAME_TIME_NS };
        let is_past = |tile: &Tile| tile.frame_ns.saturating_add(late_ns) < frame.start_ns;
        while self.plan.tiles.get(self.next).is_some_and(is_past) {
            self.draw_next()?;
        }
        self.frame = Some(frame);
        Ok(())
    }

    /// Draws the next place: the last frame, if it is one that decodes to the wanted one, and else what the place before shows.
    fn draw_next(&mut self) -> Result<(), Failure> {
        let Some(tile) = self.plan.tiles.get(self.next).copied() else { return Ok(()) };
        let from_ns = tile.decode_from_ns.unwrap_or(tile.frame_ns);
        if let Some(frame) = self.frame.as_ref().filter(|frame| frame.start_ns.saturating_add(SAME_TIME_NS) >= from_ns) {
            self.picture = Some(self.scale.pass(&frame.sample)?);
            self.made.push(tile);
        }
        if let Some(picture) = &self.picture {
            draw(picture, &mut self.sheet, self.plan.place(self.next))?;
        }
        self.next += 1;
        Ok(())
    }

    /// Hands the sheet out, unless nothing could be decoded; what was.
    ///
    /// # Errors
    /// When an element fails, or the sheet cannot be handed on.
    pub fn finish(mut self, output: &dyn Output) -> Result<Vec<Tile>, Failure> {
        while self.next < self.plan.tiles.len() {
            self.draw_next()?;
        }
        if !self.made.is_empty() {
            output.still(StillPlace::Sheet(0), jpeg(&drawn(self.sheet)?)?).map_err(handed_on)?;
        }
        Ok(self.made)
    }
}

/// Draws a 4:2:0 picture of twice the size with its left upper corner at a place of a 4:4:4 sheet.
fn draw(picture: &gst::Sample, sheet: &mut Sheet, (x, y): (u32, u32)) -> Result<(), Failure> {
    for plane in 0..3 {
        let stride = stride(sheet, plane)?;
        let at = y as usize * stride + x as usize;
        let data = sheet.plane_data_mut(plane).map_err(internal)?;
        let mut lines = data.get_mut(at..).unwrap_or_default().chunks_mut(stride.max(1));
        let mut above: Vec<u8> = Vec::new();
        rows(picture, plane, |number, row| {
            if plane == 0 && number.is_multiple_of(2) {
                above.clear();
                above.extend_from_slice(row);
                return;
            }
            let Some(line) = lines.next() else { return };
            if plane > 0 {
                line.iter_mut().zip(row).for_each(|(pixel, level)| *pixel = *level);
                return;
            }
            let squares = above.as_chunks::<2>().0.iter().zip(row.as_chunks::<2>().0);
            for (pixel, (above, below)) in line.iter_mut().zip(squares) {
                *pixel = mean(above, below);
            }
        })?;
    }
    Ok(())
}

/// The mean of four levels, to the nearest.
fn mean(above: &[u8; 2], below: &[u8; 2]) -> u8 {
    let sum: u16 = above.iter().chain(below).map(|level| u16::from(*level)).sum();
    u8::try_from((sum + 2) / 4).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    /// A grey frame of 64x48 pixels, whose right half is darker by 40.
    fn frame(start_ns: u64, level: u8) -> Raw {
        let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::I420, 64, 48);
        let info = info.fps(gst::Fraction::new(25, 1)).build().expect("a format");
        let mut bytes = vec![128_u8; info.size()];
        for row in bytes.chunks_mut(64).take(48) {
            row[..32].fill(level);
            row[32..].fill(level - 40);
        }
        let caps = info.to_caps().expect("caps");
        let sample = gst::Sample::builder().buffer(&gst::Buffer::from_mut_slice(bytes)).caps(&caps).build();
        Raw { sample, start_ns }
    }

    /// As the whole range has a level of the limited one.
    fn full(level: u8) -> u8 {
        u8::try_from((u32::from(level) - 16) * 255 / 219).expect("a level")
    }

    /// Brightness in the middle of each half of a place.
    fn seen(board: &ExactBoard, number: usize) -> [u8; 2] {
        let (x, y) = board.plan.place(number);
        let (stride, data) = (stride(&board.sheet, 0).expect("a stride"), board.sheet.plane_data(0).expect("a plane"));
        let row = (y + board.plan.height / 2) as usize * stride + x as usize;
        let width = board.plan.width as usize;
        [data[row + width / 4], data[row + width * 3 / 4]]
    }

    #[test]
    fn each_place_shows_its_frame_and_one_that_does_not_decode_what_was_before() {
        crate::init().expect("GStreamer");
        // The first and the third have no frame after their key frames.
        let tile = |n: u64| Tile { start_ns: n * 10 * S, frame_ns: n * 10 * S + S, decode_from_ns: Some(n * 10 * S) };
        let tiles = vec![Tile { decode_from_ns: Some(S / 2), ..tile(0) }, tile(1), tile(2), tile(3)];
        let showing = farm::stills::Showing::Exact;
        let plan = StoryboardPlan { showing, columns: 3, rows: 2, width: 17, height: 13, tiles: tiles.clone() };
        let mut board = ExactBoard::new(&plan, Colour::BT709).expect("a board");
        let frames =
            [(0, 60), (10 * S, 70), (11 * S, 100), (11 * S + S / 25, 80), (30 * S, 90), (31 * S + SAME_TIME_NS / 2, 200)];
        for (start_ns, level) in frames {
            board.take(frame(start_ns, level)).expect("taken");
        }
        while board.next < board.plan.tiles.len() {
            board.draw_next().expect("drawn");
        }
        assert_eq!(board.made, [tiles[1], tiles[3]]);
        let near = |number: usize, wanted: [u8; 2]| {
            let found = seen(&board, number);
            assert!(found.iter().zip(&wanted).all(|(a, b)| a.abs_diff(*b) <= 3), "{number}: {found:?}, not {wanted:?}");
        };
        near(0, [0, 0]);
        near(1, [full(100), full(60)]);
        near(2, [full(100), full(60)]);
        near(3, [full(200), full(160)]);
        near(4, [0, 0]);
        near(5, [0, 0]);
        let colours = board.sheet.plane_data(1).expect("a plane");
        assert!(colours.iter().all(|level| level.abs_diff(128) <= 2), "all is grey");
    }

    #[test]
    fn the_first_frame_is_shown_from_the_start_though_it_comes_late() {
        crate::init().expect("GStreamer");
        let tile = Tile { start_ns: 0, frame_ns: S, decode_from_ns: Some(0) };
        let showing = farm::stills::Showing::Exact;
        let plan = StoryboardPlan { showing, columns: 1, rows: 1, width: 17, height: 13, tiles: vec![tile] };
        for (start_ns, made) in [(S + S / 4, 1), (2 * S, 0)] {
            let mut board = ExactBoard::new(&plan, Colour::BT709).expect("a board");
            board.take(frame(start_ns, 100)).expect("taken");
            board.take(frame(start_ns + S, 200)).expect("taken");
            assert_eq!((board.next, board.made.len()), (1, made));
            assert_eq!(seen(&board, 0)[0] > 50, made == 1);
        }
    }

    #[test]
    fn four_pixels_become_their_mean() {
        assert_eq!(mean(&[0, 1], &[1, 0]), 1);
        assert_eq!(mean(&[255, 255], &[255, 255]), 255);
        assert_eq!(mean(&[10, 20], &[30, 41]), 25);
    }
}
