//! What is handed in for an order: files of a finished job, and the playlist that the server wants beside them.

use std::ops::Range;

use bytes::Bytes;
use farm::plan::{Pass, Plan, RenditionId, Rung};
use farm::storage::{Part, Storage, StorageError};
use farm::task::Object;
use farm::{Code, Failure, Rate};
use futures::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::muxed;
use super::order::{Form, Size, Wanted};
use super::slide::{self, Picture};
use crate::playlist;
use crate::seal::{Media, Medium, Rendition, Seal};

/// Most bytes that are fetched at a time, and how often at once.
const FETCH_BYTES: u64 = 4 << 20;
const FETCHES: usize = 2;

/// Bytes by which a file is told from another.
pub(super) const HEAD_BYTES: usize = 64 << 10;

/// A file that is put together while it is sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Body {
    pieces: Vec<Piece>,
    /// Its size.
    pub(super) bytes: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    /// These bytes.
    Given(Bytes),
    /// Some of an object.
    Object { key: String, range: Range<u64> },
    /// A segment of sound, called by this number.
    Sound { key: String, range: Range<u64>, track: u32 },
}

impl Piece {
    async fn fetch(self, storage: &Storage) -> Result<Bytes, StorageError> {
        let broken = |key: &str, why: String| StorageError::Unavailable { key: key.to_owned(), why };
        let (key, range) = match &self {
            Self::Given(bytes) => return Ok(bytes.clone()),
            Self::Object { key, range } | Self::Sound { key, range, .. } => (key, range),
        };
        let bytes = storage.get_range(key, range.clone()).await?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(broken(key, "it is shorter than it was".to_owned()));
        }
        match &self {
            Self::Sound { track, .. } => muxed::segment(&bytes, *track).map_err(|error| broken(key, error.to_string())),
            Self::Given(_) | Self::Object { .. } => Ok(bytes),
        }
    }
}

impl Body {
    fn of(pieces: Vec<Piece>) -> Self {
        let size = |piece: &Piece| match piece {
            Piece::Given(bytes) => bytes.len() as u64,
            Piece::Object { range, .. } | Piece::Sound { range, .. } => range.end - range.start,
        };
        Self { bytes: pieces.iter().map(size).sum(), pieces }
    }

    fn object(object: &Object) -> Self {
        let starts = (0..object.bytes).step_by(usize::try_from(FETCH_BYTES).unwrap_or(usize::MAX));
        let piece = |start| Piece::Object { key: object.key.clone(), range: start..object.bytes.min(start + FETCH_BYTES) };
        Self::of(starts.map(piece).collect())
    }

    /// Its bytes, a few at a time.
    pub(super) fn stream(self, storage: Storage) -> impl Stream<Item = Result<Bytes, StorageError>> + Send + 'static {
        let fetched = move |piece: Piece| {
            let storage = storage.clone();
            async move { piece.fetch(&storage).await }
        };
        futures::stream::iter(self.pieces).map(fetched).buffered(FETCHES)
    }

    /// How it begins.
    ///
    /// # Errors
    /// Storage's.
    pub(super) async fn head(&self, storage: &Storage) -> Result<Vec<u8>, StorageError> {
        let mut head = Vec::new();
        for piece in &self.pieces {
            if head.len() >= HEAD_BYTES {
                break;
            }
            let wanted = match piece.clone() {
                Piece::Object { key, range } => {
                    let end = range.end.min(range.start + HEAD_BYTES as u64);
                    Piece::Object { key, range: range.start..end }
                }
                other => other,
            };
            head.extend_from_slice(&wanted.fetch(storage).await?);
        }
        head.truncate(HEAD_BYTES);
        Ok(head)
    }
}

/// What is handed in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// The file.
    pub(super) file: Body,
    /// What that is.
    pub(super) content: Content,
    /// What it is called: the server publishes playlists only that name it in this way.
    pub(super) name: String,
    /// Its playlist, and what that is called.
    pub(super) playlist: Option<(String, String)>,
}

/// What a file is that is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Picture, sound or both.
    Media,
    /// A sheet of small pictures.
    Sheet,
}

impl Content {
    /// Which file of a result it is in the protocol, and its media type.
    pub(super) fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Media => ("payload[videoFile]", "video/mp4"),
            Self::Sheet => ("payload[storyboardFile]", "image/jpeg"),
        }
    }
}

/// The answer to an order, from the result of a job.
///
/// # Errors
/// [`Code::NoDecodableStream`] when the video has no picture or no sound that was asked for, [`Code::LimitExceeded`] when it is
/// too long for a plain MP4; storage's.
pub(super) async fn of(output: &Storage, seal: &Seal, wanted: &Wanted) -> Result<Answer, Failure> {
    match wanted {
        Wanted::Film { rung, form } => film(output, seal, *form, *rung).await,
        Wanted::Studio(_) => {
            let file = Body::object(mp4_of(seal, u32::MAX)?);
            Ok(Answer { file, content: Content::Media, name: "edited.mp4".to_owned(), playlist: None })
        }
        Wanted::Storyboard(_) => {
            let sheet = seal.stills.as_ref().and_then(|stills| stills.sheets.first()).ok_or_else(|| absent("picture"))?;
            Ok(Answer { file: Body::object(sheet), content: Content::Sheet, name: "storyboard.jpg".to_owned(), playlist: None })
        }
    }
}

fn absent(what: &str) -> Failure {
    Failure::new(Code::NoDecodableStream, format!("the video has no {what}"))
}

async fn film(output: &Storage, seal: &Seal, form: Form, rung: Option<Size>) -> Result<Answer, Failure> {
    let sound = main_sound(seal);
    let wanted = match rung {
        Some(size) => nearest(seal, size.short).ok_or_else(|| absent("picture"))?,
        None => sound.ok_or_else(|| absent("sound"))?,
    };
    let short = rung.map_or(0, |size| size.short);
    let broken = |why: &str| Failure::new(Code::Internal, format!("{}: {why}", wanted.id));
    match (form, sound.filter(|_| rung.is_some())) {
        (Form::WebVideo, _) => {
            let (file, name) = (Body::object(plain(seal, &wanted.id)?), format!("{short}.mp4"));
            Ok(Answer { file, content: Content::Media, name, playlist: None })
        }
        (Form::Together, Some(sound)) => {
            let (file, joined) = together(output, wanted, sound).await?;
            Ok(named(file, &joined, short))
        }
        (Form::Together | Form::Apart, _) => {
            let Media::File { object, .. } = &wanted.media else { return Err(broken("it is not in one file")) };
            Ok(named(Body::object(object), wanted, short))
        }
    }
}

/// The rung whose short edge is nearest. A source's own may be a pixel or two off, as pictures have even sides.
fn nearest(seal: &Seal, short: u32) -> Option<&Rendition> {
    pictures(seal).min_by_key(|(own, _)| own.short.abs_diff(short)).map(|(_, rendition)| rendition)
}

/// The rungs, and how large they are; their rates are rounded, as the server has them.
fn pictures(seal: &Seal) -> impl Iterator<Item = (Size, &Rendition)> {
    seal.renditions.iter().filter_map(|rendition| match rendition.medium {
        Medium::Picture { width, height, rate } => Some((size(width, height, rate), rendition)),
        Medium::Sound { .. } => None,
    })
}

/// Whether what is wanted is among what a plan makes first.
pub(super) fn is_in(stage: &Plan, plan: &Plan, wanted: &Wanted) -> bool {
    let nearest = |plan: &Plan, short: u32| sizes_in(plan).into_iter().min_by_key(|size| size.short.abs_diff(short));
    match wanted {
        Wanted::Film { rung: Some(size), .. } => nearest(stage, size.short) == nearest(plan, size.short),
        Wanted::Film { rung: None, .. } => true,
        // It gets the largest.
        Wanted::Studio(_) => nearest(stage, u32::MAX) == nearest(plan, u32::MAX),
        Wanted::Storyboard(_) => false,
    }
}

/// How large the rungs of a plan are; their rates are rounded, as the server has them.
pub(super) fn sizes_in(plan: &Plan) -> Vec<Size> {
    let of = |(rung, pass): (&Rung, Pass<'_>)| {
        let rate = pass.video.rate.divided_by(rung.divisor.get()).unwrap_or(pass.video.rate);
        size(rung.width, rung.height, rate)
    };
    plan.rungs().into_iter().map(of).collect()
}

fn size(width: u32, height: u32, rate: Rate) -> Size {
    Size { short: width.min(height), fps: rate.num().saturating_add(rate.den() / 2) / rate.den() }
}

/// How large the rungs of a result are.
pub(super) fn sizes(seal: &Seal) -> Vec<Size> {
    pictures(seal).map(|(size, _)| size).collect()
}

/// The plain MP4 of the smallest rung whose short edge has so many pixels, or else of the largest.
///
/// # Errors
/// [`Code::NoDecodableStream`] when there is no picture, [`Code::LimitExceeded`] when it is too long for a plain MP4.
pub(super) fn mp4_of(seal: &Seal, short: u32) -> Result<&Object, Failure> {
    let enough = pictures(seal).filter(|(size, _)| size.short >= short).min_by_key(|(size, _)| size.short);
    let found = enough.or_else(|| pictures(seal).max_by_key(|(size, _)| size.short));
    let (_, wanted) = found.ok_or_else(|| absent("picture"))?;
    plain(seal, &wanted.id)
}

/// The plain MP4 of a rendition.
fn plain<'a>(seal: &'a Seal, id: &RenditionId) -> Result<&'a Object, Failure> {
    let made = seal.mp4.iter().find(|made| made.id == *id).map(|made| &made.object);
    made.ok_or_else(|| match seal.mp4.is_empty() {
        // They are always asked for: there is no other reason to have none at all.
        true => Failure::new(Code::LimitExceeded, "the video is too long for a plain MP4"),
        false => Failure::new(Code::Internal, format!("{id}: no plain MP4 was made of it")),
    })
}

fn main_sound(seal: &Seal) -> Option<&Rendition> {
    let mut sounds = seal.renditions.iter().filter(|rendition| matches!(rendition.medium, Medium::Sound { .. }));
    sounds.clone().find(|sound| matches!(sound.medium, Medium::Sound { default: true, .. })).or_else(|| sounds.next())
}

/// The file under a name that the server knows how to replace: a UUID, the resolution and `-fragmented.mp4`.
fn named(file: Body, rendition: &Rendition, short: u32) -> Answer {
    let stem = format!("{}-{short}", Uuid::new_v4());
    let name = format!("{stem}-fragmented.mp4");
    let mut renamed = rendition.clone();
    if let Media::File { object, .. } = &mut renamed.media {
        object.key = format!("{}/{name}", renamed.id);
    }
    let playlist = Some((format!("{stem}.m3u8"), playlist::media(&renamed)));
    Answer { file, content: Content::Media, name, playlist }
}

/// Picture and sound in one file: the file, and a rendition that says where its segments are.
async fn together(output: &Storage, picture: &Rendition, sound: &Rendition) -> Result<(Body, Rendition), Failure> {
    let broken = |id: &RenditionId, why: String| Failure::new(Code::Internal, format!("{id}: {why}"));
    let not_whole = |id: &RenditionId| broken(id, "it is not in one file".to_owned());
    let Media::File { object, init_bytes, segments } = &picture.media else { return Err(not_whole(&picture.id)) };
    let Media::File { object: sound_object, init_bytes: sound_init, segments: sounds } = &sound.media else {
        return Err(not_whole(&sound.id));
    };
    let own_init = output.get_range(&object.key, 0..*init_bytes).await?;
    let sound_head = output.get_range(&sound_object.key, 0..*sound_init).await?;
    let unfit = |error: farm::boxes::BoxError| broken(&sound.id, error.to_string());
    let init = muxed::init(&own_init, &sound_head).map_err(unfit)?;
    let track = muxed::sound_track(&own_init).map_err(unfit)?;
    let init_bytes_both = init.len() as u64;
    let (mut pieces, mut both) = (vec![Piece::Given(init)], Vec::new());
    let (mut at, mut sound_at) = (*init_bytes, *sound_init);
    let mut left = sounds.iter();
    for (place, segment) in segments.iter().enumerate() {
        let own = at..at + segment.bytes;
        at = own.end;
        pieces.push(Piece::Object { key: object.key.clone(), range: own });
        let mut joined = segment.clone();
        // What sound there is beyond the picture goes to the last one.
        let count = if place + 1 == segments.len() { left.len() } else { 1 };
        for sound in left.by_ref().take(count) {
            let range = sound_at..sound_at + sound.bytes;
            sound_at = range.end;
            joined.bytes += sound.bytes;
            pieces.push(Piece::Sound { key: sound_object.key.clone(), range, track });
        }
        both.push(joined);
    }
    let file = Body::of(pieces);
    let whole = Object { bytes: file.bytes, ..object.clone() };
    let media = Media::File { object: whole, init_bytes: init_bytes_both, segments: both };
    Ok((file, Rendition { media, ..picture.clone() }))
}

/// The plain MP4 of a job's sound alone.
///
/// # Errors
/// [`Code::NoDecodableStream`] when it has none, [`Code::LimitExceeded`] when it is too long for a plain MP4.
pub(super) fn plain_sound(seal: &Seal) -> Result<&Object, Failure> {
    let sound = main_sound(seal).ok_or_else(|| Failure::new(Code::NoDecodableStream, "there is no sound in it"))?;
    plain(seal, &sound.id)
}

/// What a film of one picture and a plain MP4 of sound is joined from.
///
/// # Errors
/// Storage's; [`Code::Internal`] when the MP4 is not as they are made here.
pub(super) async fn slide(
    state: &Storage,
    picture: Picture,
    fps: u32,
    picture_key: &str,
    sound: &Object,
) -> Result<Vec<Part>, Failure> {
    let odd = || Failure::new(Code::Internal, format!("{}: no plain MP4", sound.key));
    // Boxes up to the media, which come last and have a 64-bit size.
    let mut at = 0;
    let media_start = loop {
        let header = state.get_range(&sound.key, at..at + slide::MEDIA_HEADER_BYTES).await?;
        let (size, kind) =
            header.split_first_chunk::<4>().and_then(|(size, rest)| Some((size, rest.get(..4)?))).ok_or_else(odd)?;
        match (kind, u32::from_be_bytes(*size)) {
            (b"mdat", 1) => break at + slide::MEDIA_HEADER_BYTES,
            (_, size) if size >= 8 => at += u64::from(size),
            _ => return Err(odd()),
        }
    };
    let head = state.get_range(&sound.key, 0..at).await?;
    let media_bytes = sound.bytes.checked_sub(media_start).ok_or_else(odd)?;
    let film = slide::head(picture, fps, &slide::Sound { head: &head, media_start, media_bytes });
    let film = film.map_err(|error| Failure::new(Code::Internal, format!("{}: {error}", sound.key)))?;
    Ok(vec![
        Part::Bytes(film),
        Part::Object { key: picture_key.to_owned(), range: Some(0..picture.bytes.into()) },
        Part::Object { key: sound.key.clone(), range: Some(media_start..sound.bytes) },
    ])
}

/// The name of a file's beginning.
pub(super) fn digest(head: &[u8]) -> String {
    Sha256::digest(head).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Download;

    #[test]
    fn what_is_made_first_serves_who_wants_its_rung_or_the_sound_and_nobody_else() {
        use farm::job::{JobSpec, Publishing};

        use crate::testing::{picture, sound, source, spec};

        let info = source(vec![picture(1280, 720, "50", 10)], vec![sound(1, 48_000, 10)]);
        let plan = crate::plan::plan(&JobSpec { publish: Publishing::LargestFirst, ..spec() }, &info).expect("a plan");
        let stage = plan.first_stage().expect("a stage");
        let shorts: Vec<u32> = sizes_in(&plan).iter().map(|size| size.short).collect();
        assert_eq!((shorts.first(), sizes_in(&stage).len()), (Some(&720), 1), "{shorts:?}");
        let rung = |short| Wanted::Film { rung: Some(Size { short, fps: 50 }), form: Form::Apart };
        for (wanted, is_wanted) in [
            (rung(718), true),
            (rung(720), true),
            (rung(4320), true),
            (rung(480), false),
            (rung(240), false),
            (Wanted::Film { rung: None, form: Form::Apart }, true),
            (Wanted::Studio(Vec::new()), true),
        ] {
            assert_eq!(is_in(&stage, &plan, &wanted), is_wanted, "{wanted:?}");
        }
    }

    #[test]
    fn a_video_that_is_too_long_for_a_plain_mp4_is_refused_for_that() {
        let (one, two) = (RenditionId("one".to_owned()), RenditionId("two".to_owned()));
        let mut seal = Seal {
            renditions: Vec::new(),
            files: Vec::new(),
            mp4: Vec::new(),
            stills: None,
            text: Vec::new(),
            executions: Vec::new(),
            fallbacks: Vec::new(),
        };
        let refused = plain(&seal, &one).expect_err("there is none");
        assert_eq!((refused.code, refused.code.fault()), (Code::LimitExceeded, farm::Fault::Source));
        let object = Object { key: "one.mp4".to_owned(), bytes: 1, sha256: String::new() };
        seal.mp4.push(Download { id: one.clone(), object: object.clone() });
        assert_eq!(plain(&seal, &one), Ok(&object));
        assert_eq!(plain(&seal, &two).expect_err("not this one").code, Code::Internal);
    }
}
