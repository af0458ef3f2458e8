//! What the edits of a job come to: from steps, one after the other, and what their sources are, to clips in a row.
//!
//! All is counted in *places* of the frame grid, so that picture and sound are cut at the same instants and no frame lies across
//! a cut; in ns where there is no picture.

use std::collections::BTreeMap;
use std::ops::Range;

use farm::edit::{Clip, ClipPicture, ClipSound, EditPlan, EditStep, Overlay, OverlaySpec, Stretch, others};
use farm::job::shown_url;
use farm::media::{AudioTrack, MediaInfo, SourceVersion, VideoTrack};
use farm::plan::{PicturePlan, Rung};
use farm::{Code, Failure, Rate};

use crate::ladder::Shape;
use crate::plan::{decode_from, length, main_picture, origin};

/// Most clips of a result.
const CLIPS_MAX: usize = 2_000;

/// The sources of an edited job.
pub struct Sources<'a> {
    /// The job's own.
    pub main: &'a MediaInfo,
    /// The others, by number. Of those that are no media only the version is known.
    pub others: &'a BTreeMap<u32, &'a MediaInfo>,
}

/// Clips in a row.
pub struct Montage<'a> {
    grid: Option<Rate>,
    parts: BTreeMap<u32, Part<'a>>,
    overlays: Vec<(u32, &'a OverlaySpec)>,
    pieces: Vec<Piece>,
    sounds: Vec<&'a AudioTrack>,
    /// Of the other sources, in order.
    versions: Vec<Option<SourceVersion>>,
}

/// A source that is media.
struct Part<'a> {
    info: &'a MediaInfo,
    picture: Option<&'a VideoTrack>,
    /// Stream time of its start, in ns.
    origin_ns: u64,
    /// How long it is, in places.
    places: u64,
}

/// A stretch of a source, in places.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    source: u32,
    own: Range<u64>,
    sound: u32,
    /// Where in its source the sound begins.
    sound_from: u64,
    overlays: Vec<u32>,
}

impl Piece {
    fn len(&self) -> u64 {
        self.own.end - self.own.start
    }

    /// What of it lies in a range of the whole, of which it begins at `at`.
    fn within(&self, at: u64, range: &Range<u64>) -> Option<Self> {
        let (start, end) = (range.start.max(at), range.end.min(at + self.len()));
        let own = (start < end).then(|| self.own.start + (start - at)..self.own.start + (end - at))?;
        Some(Self { own, sound_from: self.sound_from + (start - at), ..self.clone() })
    }
}

impl<'a> Montage<'a> {
    /// Does the steps. `grid` is the rate of the result's frames, if it has a picture.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when nothing is left, or too many clips; [`Code::NoDecodableStream`] for a source without what the
    /// result has.
    pub fn new(
        steps: &'a [EditStep],
        sources: &Sources<'a>,
        grid: Option<Rate>,
        notes: &mut Vec<String>,
    ) -> Result<Self, Failure> {
        let mut parts = BTreeMap::from([(0, Part::of(sources.main, grid)?)]);
        for (number, step, source) in others(steps).filter(|(_, step, _)| step.names_media()) {
            let info = sources.others.get(&number).copied();
            let info =
                info.ok_or_else(|| Failure::new(Code::Internal, format!("source {number} of the edits was not probed")))?;
            notes.extend(info.warnings.iter().map(|warning| format!("{}: {warning}", shown_url(&source.url))));
            let lacks = |what: &str| {
                let at = steps.iter().position(|other| std::ptr::eq(other, step)).map_or(0, |place| place + 1);
                Err(Failure::new(
                    Code::NoDecodableStream,
                    format!("edit: step {at}: its source has no {what} that can be decoded"),
                ))
            };
            match step {
                EditStep::Sound(_) if info.audio.is_empty() => return lacks("sound"),
                EditStep::Sound(_) => {
                    // Its times are those of the video.
                    let origin_ns = parts.get(&0).map_or(0, |main| main.origin_ns);
                    parts.insert(number, Part { info, picture: None, origin_ns, places: 0 });
                }
                _ if grid.is_some() && info.video.is_empty() => return lacks("picture"),
                _ => {
                    parts.insert(number, Part::of(info, grid)?);
                }
            }
        }
        let whole = parts.get(&0).map_or(0, |main| main.places);
        let mut montage = Self {
            grid,
            parts,
            overlays: Vec::new(),
            pieces: vec![Piece { source: 0, own: 0..whole, sound: 0, sound_from: 0, overlays: Vec::new() }],
            sounds: Vec::new(),
            versions: others(steps).map(|(number, _, _)| sources.others.get(&number)?.version.clone()).collect(),
        };
        let mut numbers = others(steps).map(|(number, _, _)| number);
        for (at, step) in (1..).zip(steps) {
            let number = step.source().and_then(|_| numbers.next()).unwrap_or(0);
            montage.take(step, number);
            if montage.pieces.is_empty() {
                return Err(Failure::new(Code::InvalidRequest, format!("edit: step {at}: it leaves nothing of the video")));
            }
            if montage.pieces.len() > CLIPS_MAX {
                return Err(Failure::new(Code::InvalidRequest, format!("edit: step {at}: more than {CLIPS_MAX} pieces")));
            }
        }
        montage.sounds = montage.renditions(steps);
        Ok(montage)
    }

    fn take(&mut self, step: &'a EditStep, number: u32) {
        let places = self.parts.get(&number).map_or(0, |part| part.places);
        let whole = Piece { source: number, own: 0..places, sound: number, sound_from: 0, overlays: Vec::new() };
        match step {
            EditStep::Keep(stretch) => self.keep(&[self.range(stretch)]),
            EditStep::Remove(stretches) => {
                let mut out: Vec<Range<u64>> = stretches.iter().map(|stretch| self.range(stretch)).collect();
                out.sort_by_key(|range| range.start);
                let (mut kept, mut at) = (Vec::new(), 0);
                for range in out {
                    kept.push(at..range.start);
                    at = at.max(range.end);
                }
                kept.push(at..self.places());
                self.keep(&kept);
            }
            EditStep::Before(_) => self.pieces.insert(0, whole),
            EditStep::After(_) => self.pieces.push(whole),
            EditStep::Overlay(overlay) => {
                let place = u32::try_from(self.overlays.len()).unwrap_or(u32::MAX);
                self.overlays.push((number, overlay));
                self.pieces.iter_mut().for_each(|piece| piece.overlays.push(place));
            }
            EditStep::Sound(_) => {
                let mut at = 0;
                for piece in &mut self.pieces {
                    (piece.sound, piece.sound_from) = (number, at);
                    at += piece.len();
                }
            }
        }
        self.pieces.retain(|piece| piece.len() > 0);
    }

    /// Keeps what lies in any of these ranges, which are in order.
    fn keep(&mut self, ranges: &[Range<u64>]) {
        let mut kept = Vec::new();
        for range in ranges {
            let mut at = 0;
            for piece in &self.pieces {
                kept.extend(piece.within(at, range));
                at += piece.len();
            }
        }
        self.pieces = kept;
    }

    /// A stretch in places.
    fn range(&self, stretch: &Stretch) -> Range<u64> {
        let end = self.places();
        let to = stretch.to.map_or(end, |to| to_places(self.grid, to.ns()).min(end));
        to_places(self.grid, stretch.from.ns()).min(to)..to
    }

    /// Which tracks stand for the renditions of sound: the main source's, or one where its sound is another's or it has none.
    fn renditions(&self, steps: &[EditStep]) -> Vec<&'a AudioTrack> {
        let main = self.parts.get(&0).map(|part| part.info);
        let is_replaced = steps.iter().any(|step| matches!(step, EditStep::Sound(_)));
        if let Some(main) = main.filter(|main| !is_replaced && !main.audio.is_empty()) {
            return main.audio.iter().take(crate::plan::AUDIO_RENDITIONS_MAX).collect();
        }
        let used = |number: &u32| self.pieces.iter().any(|piece| piece.sound == *number);
        let heard = self.parts.iter().filter(|(number, _)| used(number)).filter_map(|(_, part)| part.info.audio.first());
        // Where sounds were replaced, the one that replaced goes before what was joined.
        let replaced = others(steps).filter(|(_, step, _)| matches!(step, EditStep::Sound(_)));
        let replaced =
            replaced.filter_map(|(number, _, _)| self.parts.get(&number).filter(|_| used(&number))?.info.audio.first());
        replaced.chain(heard).take(1).collect()
    }

    /// Length of the result in places: frames, where there is picture.
    pub fn places(&self) -> u64 {
        self.pieces.iter().map(Piece::len).sum()
    }

    /// Length of the result in ns.
    pub fn duration_ns(&self) -> u64 {
        to_ns(self.grid, self.places())
    }

    /// The picture that takes longest to decode.
    pub fn dearest(&self) -> Option<&'a VideoTrack> {
        let shown = self.parts.values().filter_map(|part| part.picture);
        shown.max_by_key(|track| u64::from(track.width) * u64::from(track.height))
    }

    /// The tracks that the renditions of sound are named after.
    pub fn sounds(&self) -> &[&'a AudioTrack] {
        &self.sounds
    }

    /// Where decoding has to start for what begins at this place of the result: stream time in ns of the source that is shown
    /// there, 0 for its start.
    pub fn decode_from(&self, place: u64) -> u64 {
        let mut at = 0;
        for piece in &self.pieces {
            if place < at + piece.len() {
                return self.decode_piece_from(piece, piece.own.start + (place - at));
            }
            at += piece.len();
        }
        0
    }

    fn decode_piece_from(&self, piece: &Piece, place: u64) -> u64 {
        let part = self.parts.get(&piece.source);
        let (Some(part), Some(rate)) = (part, self.grid) else { return 0 };
        part.picture.map_or(0, |track| decode_from(track, rate, part.origin_ns, place))
    }

    /// What workers are told. `top` is the largest rung, to whose size every picture is brought.
    ///
    /// # Errors
    /// [`Code::LimitExceeded`] for pictures that cannot be read.
    pub fn plan(&self, top: Option<&Rung>) -> Result<EditPlan, Failure> {
        let canvas = top.map(|rung| (rung.width, rung.height));
        let mut clips = Vec::with_capacity(self.pieces.len());
        let mut at = 0;
        for piece in &self.pieces {
            let part = self.parts.get(&piece.source).ok_or_else(|| Failure::new(Code::Internal, "a clip without a source"))?;
            let picture = canvas.zip(part.picture).map(|(canvas, track)| {
                let size = inside(canvas, Shape::of(track)?.own_size());
                let decode_from_ns = self.decode_piece_from(piece, piece.own.start);
                let timing = &track.timing;
                let last_ns = timing.constant.then(|| timing.end_ns.saturating_sub(timing.rate.start_ns(1)));
                let picture = PicturePlan::of(track);
                Ok::<_, Failure>(ClipPicture { track: track.track, picture, size, decode_from_ns, last_ns })
            });
            clips.push(Clip {
                start_ns: to_ns(self.grid, at),
                end_ns: to_ns(self.grid, at + piece.len()),
                origin_ns: part.origin_ns + to_ns(self.grid, piece.own.start),
                source: piece.source,
                picture: picture.transpose()?,
                sounds: (0..self.sounds.len()).map(|rendition| self.sound(piece, rendition)).collect(),
                overlays: piece.overlays.clone(),
            });
            at += piece.len();
        }
        let height = canvas.map_or(0, |(_, height)| height);
        let overlay = |(source, spec): &(u32, &OverlaySpec)| Overlay {
            source: *source,
            name: shown_url(&spec.source.url),
            height: spec.height.of(height).max(1),
            right: spec.right.of(height),
            top: spec.top.of(height),
        };
        let overlays = self.overlays.iter().map(overlay).collect();
        Ok(EditPlan { others: self.versions.clone(), canvas, overlays, clips })
    }

    /// What is heard of a piece in a rendition: the track of the same number in the main source, the first in others.
    fn sound(&self, piece: &Piece, rendition: usize) -> Option<ClipSound> {
        let part = self.parts.get(&piece.sound)?;
        let track = if piece.sound == 0 { part.info.audio.get(rendition) } else { part.info.audio.first() };
        let origin_ns = part.origin_ns + to_ns(self.grid, piece.sound_from);
        track.map(|track| ClipSound { source: piece.sound, track: track.track, origin_ns })
    }
}

impl<'a> Part<'a> {
    fn of(info: &'a MediaInfo, grid: Option<Rate>) -> Result<Self, Failure> {
        // What there is to note of the job's own source is noted by its plan.
        let picture = if grid.is_some() { main_picture(&info.video, &mut Vec::new()) } else { None };
        let origin_ns = origin(picture, &info.audio, &mut Vec::new())?;
        let ends_ns = picture.map(|track| track.timing.end_ns).into_iter().chain(info.audio.iter().map(|track| track.end_ns));
        let places = to_places(grid, length(origin_ns, ends_ns.max().unwrap_or(0))?).max(1);
        Ok(Self { info, picture, origin_ns, places })
    }
}

fn to_places(grid: Option<Rate>, ns: u64) -> u64 {
    grid.map_or(ns, |rate| rate.nearest_frame(ns))
}

fn to_ns(grid: Option<Rate>, places: u64) -> u64 {
    grid.map_or(places, |rate| rate.start_ns(places))
}

/// The largest even size of a picture's shape that fits into a canvas.
fn inside((width, height): (u32, u32), (own_width, own_height): (u32, u32)) -> (u32, u32) {
    let scaled = |side: u32, by: u32, of: u32| {
        let half = (u64::from(side) * u64::from(by) + u64::from(of)) / (2 * u64::from(of.max(1)));
        u32::try_from(2 * half).unwrap_or(u32::MAX).max(2)
    };
    let (across, down) = (u64::from(own_width) * u64::from(height), u64::from(own_height) * u64::from(width));
    match across.cmp(&down) {
        // Shapes that differ by the rounding of their sides are the same.
        _ if scaled(own_height, width, own_width) == height || scaled(own_width, height, own_height) == width => (width, height),
        std::cmp::Ordering::Greater => (width, scaled(own_height, width, own_width).min(height)),
        _ => (scaled(own_width, height, own_height).min(width), height),
    }
}

#[cfg(test)]
mod tests;
