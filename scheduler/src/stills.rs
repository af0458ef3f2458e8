//! Still pictures: which frames to make them of, and the track that tells players where they are.

use std::fmt::Write as _;

use farm::job::{JobSpec, PosterSpec, StoryboardSpec};
use farm::media::{SAME_TIME_NS, VideoTrack};
use farm::plan::PicturePlan;
use farm::rate::SECOND_NS;
use farm::stills::{PosterPlan, Showing, Stills, StillsPlan, StoryboardPlan, Tile};
use farm::text::Clock;
use farm::{Code, Failure, keys};

use crate::ladder::Shape;

/// Where in the video a poster is looked for, in hundredths of its duration, the best place first: past titles and
/// fades, before what would give the end away.
const POSTER_PLACES: [u64; 6] = [10, 20, 33, 5, 50, 0];

/// Longest side of a sheet in pixels: what browsers draw.
const SHEET_SIDE_PX_MAX: u32 = 16_384;

/// Most pixels of a sheet.
const SHEET_PX_MAX: u64 = 1 << 26;

/// Most pictures of a storyboard: the time between them grows with longer videos.
const TILES_MAX: u64 = 10_000;

/// Shortest time between two pictures when none is asked for, in ns.
const TILE_NS_MIN: u64 = SECOND_NS;

/// The still pictures that a job asks for, of a video of this duration that starts at stream time `origin_ns`.
///
/// # Errors
/// [`Code::InvalidRequest`] for a storyboard whose sheets would be too large.
pub fn plan(
    spec: &JobSpec,
    track: &VideoTrack,
    picture: &PicturePlan,
    (origin_ns, duration_ns): (u64, u64),
) -> Result<Option<StillsPlan>, Failure> {
    if spec.poster.is_none() && spec.storyboard.is_none() {
        return Ok(None);
    }
    let shape = Shape::of(track)?;
    let source = Source { keys_ns: &track.key_frames_ns, first_ns: track.timing.start_ns, origin_ns, duration_ns };
    let poster = spec.poster.as_ref().map(|asked| poster(asked, shape, &source));
    let storyboard = spec.storyboard.as_ref().map(|asked| storyboard(asked, shape, &source)).transpose()?;
    Ok(Some(StillsPlan { track: track.track, picture: picture.clone(), poster, storyboard }))
}

/// What pictures can be taken from.
struct Source<'a> {
    /// Key frames by stream time, in order.
    keys_ns: &'a [u64],
    /// Stream time of the first frame.
    first_ns: u64,
    origin_ns: u64,
    duration_ns: u64,
}

impl Source<'_> {
    /// The last key frame that is shown at or before a presentation time, or the first after it.
    fn key_frame(&self, time_ns: u64) -> Option<u64> {
        let shown_ns = self.origin_ns.saturating_add(time_ns);
        let before = self.keys_ns.partition_point(|key_ns| *key_ns <= shown_ns);
        self.keys_ns.get(before.saturating_sub(1)).copied()
    }

    /// The key frame that decoding starts at for what is on screen at a stream time: the last one by then, or 0 for the start of
    /// the source.
    fn decode_from(&self, frame_ns: u64) -> u64 {
        let before = self.keys_ns.partition_point(|key_ns| *key_ns <= frame_ns.saturating_add(SAME_TIME_NS));
        before.checked_sub(1).filter(|index| *index > 0).and_then(|index| self.keys_ns.get(index).copied()).unwrap_or(0)
    }
}

fn poster(asked: &PosterSpec, shape: Shape, source: &Source<'_>) -> PosterPlan {
    let (width, height) = asked.height.map_or_else(|| shape.own_size(), |short| shape.size_of(short));
    let mut candidates_ns: Vec<u64> = Vec::new();
    for hundredths in POSTER_PLACES {
        let time_ns = u128::from(source.duration_ns) * u128::from(hundredths) / 100;
        let found = source.key_frame(u64::try_from(time_ns).unwrap_or(u64::MAX));
        candidates_ns.extend(found.filter(|key_ns| !candidates_ns.contains(key_ns)));
    }
    PosterPlan { width, height, candidates_ns }
}

fn storyboard(asked: &StoryboardSpec, shape: Shape, source: &Source<'_>) -> Result<StoryboardPlan, Failure> {
    let (columns, rows) = (asked.columns, asked.rows);
    let exact = asked.exact_width.zip(asked.seconds);
    let (width, height) = exact.map_or_else(|| shape.size_of(asked.height), |(width, _)| (width, asked.height));
    let (across, down) = (u64::from(columns) * u64::from(width), u64::from(rows) * u64::from(height));
    if across.max(down) > SHEET_SIDE_PX_MAX.into() || across * down > SHEET_PX_MAX {
        let message = format!(
            "storyboard: {columns}x{rows} pictures of {width}x{height} make a sheet of {across}x{down} pixels: up to \
             {SHEET_SIDE_PX_MAX} a side and {SHEET_PX_MAX} in all can be made"
        );
        return Err(Failure::new(Code::InvalidRequest, message));
    }
    let sheet_tiles = u64::from(columns) * u64::from(rows);
    let (showing, tiles) = match exact {
        Some((_, seconds)) => (Showing::Exact, exact_tiles(seconds, sheet_tiles, source)),
        None => (Showing::KeyFrames, key_frame_tiles(asked.seconds, sheet_tiles, source)),
    };
    Ok(StoryboardPlan { showing, columns, rows, width, height, tiles })
}

/// The frames on screen at multiples of so many seconds, as many as have places on a sheet.
fn exact_tiles(seconds: u32, sheet_tiles: u64, source: &Source<'_>) -> Vec<Tile> {
    let step_ns = u64::from(seconds.max(1)) * SECOND_NS;
    let tile = |number: u64| {
        let start_ns = number * step_ns;
        // The first frame is shown from the start.
        let frame_ns = source.origin_ns.saturating_add(start_ns).max(source.first_ns);
        Tile { start_ns, frame_ns, decode_from_ns: Some(source.decode_from(frame_ns)) }
    };
    (0..source.duration_ns.div_ceil(step_ns).min(sheet_tiles)).map(tile).collect()
}

/// Key frames that are so many seconds apart, or fill one sheet.
fn key_frame_tiles(seconds: Option<u32>, sheet_tiles: u64, source: &Source<'_>) -> Vec<Tile> {
    let wanted_ns = match seconds {
        Some(seconds) => u64::from(seconds) * SECOND_NS,
        // All of it on one sheet.
        None => source.duration_ns.div_ceil(sheet_tiles).max(TILE_NS_MIN),
    };
    let step_ns = wanted_ns.max(source.duration_ns.div_ceil(TILES_MAX)).max(1);
    let mut tiles: Vec<Tile> = Vec::new();
    for number in 0..source.duration_ns.div_ceil(step_ns) {
        let start_ns = number * step_ns;
        let Some(frame_ns) = source.key_frame(start_ns) else { break };
        // Between key frames that are far apart nothing new can be shown.
        if tiles.last().is_none_or(|last| last.frame_ns != frame_ns) {
            tiles.push(Tile { start_ns, frame_ns, decode_from_ns: None });
        }
    }
    tiles
}

/// The track of a storyboard, to stand at [`keys::STORYBOARD`]: a cue for each picture, with its place on its sheet (WebVTT with
/// media fragments, as players take it for thumbnails).
pub fn track(plan: &StoryboardPlan, made: &Stills, duration_ns: u64) -> String {
    let mut text = "WEBVTT\n".to_owned();
    // What was passed over at the start is stood for by the first that there is.
    let starts = made.tiles.iter().enumerate().map(|(made, tile)| if made == 0 { 0 } else { tile.start_ns });
    let ends = made.tiles.iter().skip(1).map(|tile| tile.start_ns).chain([duration_ns]);
    let numbers = made.tiles.iter().enumerate().map(|(made, tile)| plan.number(tile, made));
    for ((number, start_ns), end_ns) in numbers.zip(starts).zip(ends) {
        let Some(sheet) = made.sheets.get(number / plan.sheet_tiles()) else { break };
        let (x, y) = plan.place(number % plan.sheet_tiles());
        let uri = sheet.key.strip_prefix(keys::STILLS_FOLDER).unwrap_or(&sheet.key);
        // Writing to a text cannot fail.
        let _ = write!(text, "\n{} --> {}\n{uri}#xywh={x},{y},{},{}\n", Clock(start_ns), Clock(end_ns), plan.width, plan.height);
    }
    text
}

#[cfg(test)]
mod tests;
