//! Still pictures of a video: a poster that stands for it before it plays, and a storyboard of small pictures to find a place by.
//!
//! They are made from key frames alone, so that they cost little beside the ladder; but for exact storyboards, which show the
//! frames of given times.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::media::TrackId;
use crate::plan::PicturePlan;
use crate::task::Object;

/// Which still pictures are made, and of which frames.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StillsPlan {
    /// The stream to decode.
    pub track: TrackId,
    /// How decoded pictures become upright, progressive and square.
    pub picture: PicturePlan,
    /// The poster, if one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poster: Option<PosterPlan>,
    /// The storyboard, if one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storyboard: Option<StoryboardPlan>,
}

/// A poster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PosterPlan {
    /// Width in pixels, even.
    pub width: u32,
    /// Height in pixels, even.
    pub height: u32,
    /// Key frames that may be it, by stream time in ns, the best first: the first that shows something is taken.
    pub candidates_ns: Vec<u64>,
}

/// A storyboard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoryboardPlan {
    /// Which frames it shows.
    #[serde(default, skip_serializing_if = "Showing::is_key_frames")]
    pub showing: Showing,
    /// Pictures beside each other on a sheet.
    pub columns: u32,
    /// Rows of pictures on a sheet.
    pub rows: u32,
    /// Width of a picture in pixels; even, unless the storyboard is exact.
    pub width: u32,
    /// Height of a picture in pixels; even, unless the storyboard is exact.
    pub height: u32,
    /// The pictures, in order of time; of an exact storyboard no more than have places on one sheet.
    pub tiles: Vec<Tile>,
}

/// Which frames a storyboard shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Showing {
    /// Key frames near its times, each decoded by itself. Those that do not decode have no place, and a sheet is as large as
    /// what is on it.
    #[default]
    KeyFrames,
    /// The very frames of its times, on one sheet of full size. One that does not decode leaves its place to what the place
    /// before shows, so that each picture is at its number.
    Exact,
}

impl Showing {
    /// Whether it is key frames.
    pub fn is_key_frames(&self) -> bool {
        *self == Self::KeyFrames
    }
}

/// A picture of a storyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tile {
    /// Presentation time in ns from which on it stands for the video, until the next one.
    pub start_ns: u64,
    /// The frame it shows, by stream time in ns: that of a key frame, or of an exact storyboard any time that the frame is on
    /// screen.
    #[serde(alias = "key_frame_ns")]
    pub frame_ns: u64,
    /// Stream time in ns of the key frame that decoding starts at to come to it; 0 for the start of the source. None where it is
    /// a key frame, which decodes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_from_ns: Option<u64>,
}

impl StoryboardPlan {
    /// Pictures on a full sheet.
    pub fn sheet_tiles(&self) -> usize {
        (self.columns as usize).saturating_mul(self.rows as usize).max(1)
    }

    /// Size in pixels of a sheet of so many pictures: as much of the grid as they need, or all of it where it is exact.
    pub fn sheet_size(&self, tiles: usize) -> (u32, u32) {
        let tiles = match self.showing {
            Showing::KeyFrames => u32::try_from(tiles).unwrap_or(u32::MAX),
            Showing::Exact => u32::MAX,
        };
        let columns = self.columns.min(tiles).max(1);
        (columns * self.width, tiles.div_ceil(self.columns.max(1)).clamp(1, self.rows.max(1)) * self.height)
    }

    /// Where a picture stands on its sheet, by its number on it: left and upper edge in pixels.
    pub fn place(&self, number: usize) -> (u32, u32) {
        let (number, columns) = (u32::try_from(number).unwrap_or(u32::MAX), self.columns.max(1));
        ((number % columns) * self.width, (number / columns) * self.height)
    }

    /// The number of a picture on all sheets, of those that were made the `made`th from 0.
    pub fn number(&self, tile: &Tile, made: usize) -> usize {
        match self.showing {
            Showing::KeyFrames => made,
            Showing::Exact => self.tiles.partition_point(|planned| planned.start_ns < tile.start_ns),
        }
    }
}

/// The still pictures that were made. Frames that do not decode are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stills {
    /// The poster, and the stream time in ns of what it shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poster: Option<(Object, u64)>,
    /// Sheets of the storyboard, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sheets: Vec<Object>,
    /// The pictures on them, in order: each row from left to right, sheet by sheet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiles: Vec<Tile>,
}

impl Stills {
    /// Whether they are of a plan: nothing that it does not have, in its order, on as many sheets as that takes.
    pub fn are_of(&self, plan: &StillsPlan) -> bool {
        let poster = self
            .poster
            .as_ref()
            .is_none_or(|(_, shown_ns)| plan.poster.as_ref().is_some_and(|poster| poster.candidates_ns.contains(shown_ns)));
        let (planned, sheet_tiles) = plan.storyboard.as_ref().map_or((&[][..], 1), |board| (&board.tiles, board.sheet_tiles()));
        let mut planned = planned.iter();
        poster
            && self.sheets.len() == self.tiles.len().div_ceil(sheet_tiles)
            && self.tiles.iter().all(|tile| planned.any(|p| p == tile))
    }

    /// Every object.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.poster.iter().map(|(poster, _)| poster).chain(&self.sheets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(showing: Showing, (width, height): (u32, u32), tiles: Vec<Tile>) -> StoryboardPlan {
        StoryboardPlan { showing, columns: 3, rows: 2, width, height, tiles }
    }

    #[test]
    fn sheets_are_as_large_as_what_is_on_them() {
        let plan = grid(Showing::KeyFrames, (16, 10), Vec::new());
        assert_eq!(plan.sheet_tiles(), 6);
        assert_eq!([1, 2, 3, 4, 6].map(|tiles| plan.sheet_size(tiles)), [(16, 10), (32, 10), (48, 10), (48, 20), (48, 20)]);
        assert_eq!([0, 2, 3, 5].map(|number| plan.place(number)), [(0, 0), (32, 0), (0, 10), (32, 10)]);
    }

    #[test]
    fn an_exact_sheet_is_always_full_and_its_pictures_keep_their_numbers() {
        let tile = |n: u64| Tile { start_ns: 5 * n, frame_ns: 5 * n + 7, decode_from_ns: Some(0) };
        let plan = grid(Showing::Exact, (17, 9), (0..4).map(tile).collect());
        assert_eq!([0, 1, 4, 6].map(|tiles| plan.sheet_size(tiles)), [(51, 18); 4]);
        assert_eq!([1, 4].map(|number| plan.place(number)), [(17, 0), (17, 9)]);
        assert_eq!(plan.number(&tile(3), 1), 3, "the ones before it did not decode");
        let key_frames = StoryboardPlan { showing: Showing::KeyFrames, ..plan };
        assert_eq!(key_frames.number(&tile(3), 1), 1);
    }

    #[test]
    fn plans_of_before_are_read() {
        let old = r#"{"columns":1,"rows":1,"width":16,"height":10,"tiles":[{"start_ns":1,"key_frame_ns":2}]}"#;
        let read: StoryboardPlan = serde_json::from_str(old).expect("a plan");
        let tiles = vec![Tile { start_ns: 1, frame_ns: 2, decode_from_ns: None }];
        let now = StoryboardPlan { columns: 1, rows: 1, ..grid(Showing::KeyFrames, (16, 10), tiles) };
        assert_eq!(read, now);
        let written = serde_json::to_string(&now).expect("JSON");
        assert_eq!(serde_json::from_str::<StoryboardPlan>(&written).expect("a plan"), now);
    }
}
