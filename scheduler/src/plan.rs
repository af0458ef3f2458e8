//! From what was asked for and what the source is to everything decided.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use farm::job::{JobSpec, Make, Mp4, Publishing};
use farm::media::{AudioTrack, Interlace, MediaInfo, VideoTrack};
use farm::plan::{AudioPlan, Chunk, PicturePlan, Plan, RateControl, RenditionId, Rung, VideoPlan, segment_lengths};
use farm::rate::SECOND_NS;
use farm::{Code, Failure, Rate};

use crate::copy::{self, PictureCopy};
use crate::edit::{Montage, Sources};
use crate::ladder::{Ladder, Shape, ladder};
use crate::names::{language, unique_name};
use crate::pace::{Pace, effort, frame_pixels, shares};
use crate::{stills, text};

/// Most chunks of a job; longer sources get longer chunks.
pub const CHUNKS_MAX: u64 = 20_000;

/// Longest source that is taken: 100 hours.
pub const DURATION_NS_MAX: u64 = 100 * 3600 * SECOND_NS;

/// Longest result of which plain MP4 files are made, 12 hours: what stands before the media, some 20 bytes for every sample, is
/// put together in memory.
const MP4_NS_MAX: u64 = 12 * 3600 * SECOND_NS;

/// Most tracks of picture and sound that a source may have.
pub const TRACKS_MAX: usize = 32;

/// Most tracks of sound that are made.
pub const AUDIO_RENDITIONS_MAX: usize = 8;

/// Wanted duration of a closed GOP in seconds.
const GOP_SECONDS: u32 = 2;

/// Longest closed GOP in seconds that different frame rates of the rungs may lead to.
const GOP_SECONDS_MAX: u32 = 10;

/// Sound that starts up to this much before the picture is cut there; when more, the picture waits.
const EARLY_SOUND_NS_MAX: u64 = 250_000_000;

/// Sound that ends more than this before the picture is worth a note. It stays so: no sound is made up.
const SHORT_SOUND_NS_MAX: u64 = 500_000_000;

/// Threads of the dearest rung's encoder in a video that is one piece of work: alone it costs about as much as all the others
/// together, which would wait for it. Elsewhere other pieces keep all cores busy, and threads only cost (README has figures).
const THREADS_ALONE: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);
/// Pixels of a picture from which on a second thread, which keeps more pictures, would take too much memory.
const THREADS_ALONE_PX: u64 = 3840 * 2160;

/// Samples of an AAC packet, and of the encoder's priming.
const AAC_PACKET_SAMPLES: u64 = 1024;

/// As [`plan_at`], at the usual pace, of a job that is not edited.
///
/// # Errors
/// As [`plan_at`].
pub fn plan(spec: &JobSpec, info: &MediaInfo) -> Result<Plan, Failure> {
    plan_at(Pace::USUAL, spec, &Sources { main: info, others: &BTreeMap::new() })
}

/// Decides everything about a job. A function of its arguments alone: how many workers there are changes nothing, and their
/// pace only how the work is cut up.
///
/// # Errors
/// [`Code::NoDecodableStream`] without picture and sound, or without picture for still pictures alone, [`Code::LimitExceeded`] for
/// a source that is too large, [`Code::InvalidRequest`] for a ladder that cannot be made of this source.
pub fn plan_at(pace: Pace, spec: &JobSpec, sources: &Sources<'_>) -> Result<Plan, Failure> {
    let (info, mut notes) = (sources.main, Vec::new());
    if info.video.len() + info.audio.len() > TRACKS_MAX {
        let message =
            format!("{} tracks of picture and sound: up to {TRACKS_MAX} can be read", info.video.len() + info.audio.len());
        return Err(Failure::new(Code::LimitExceeded, message));
    }
    let picture = main_picture(&info.video, &mut notes);
    let sound = info.audio.get(..AUDIO_RENDITIONS_MAX).unwrap_or(&info.audio);
    if info.audio.len() > sound.len() && spec.make == Make::Hls {
        notes
            .push(format!("{} sound tracks are left out: up to {AUDIO_RENDITIONS_MAX} are made", info.audio.len() - sound.len()));
    }
    if picture.is_some_and(|track| matches!(track.interlace, Interlace::Unflagged(_))) {
        notes.push("the picture is interlaced, though its flags say otherwise".to_owned());
    }
    if spec.make == Make::Stills {
        return stills_alone(spec, info, (picture, sound), notes);
    }
    let origin_ns = origin(picture, sound, &mut notes)?;
    let mut ladder = picture.map(|track| picture_ladder(spec, track, &mut notes)).transpose()?;
    let copied = picture.zip(ladder.as_mut()).and_then(|(track, ladder)| copied_rung(spec, track, ladder, origin_ns, &mut notes));
    let grid_rate = ladder.as_ref().map(|ladder| ladder.rate);
    let montage = match spec.edit.as_slice() {
        [] => None,
        steps => Some(Montage::new(steps, sources, grid_rate, &mut notes)?),
    };
    let top = ladder.as_ref().and_then(|ladder| ladder.rungs.first());
    let edit = montage.as_ref().map(|montage| montage.plan(top)).transpose()?;
    // Whatever is edited starts at 0.
    let origin_ns = if edit.is_some() { 0 } else { origin_ns };
    let heard: Vec<&AudioTrack> = montage.as_ref().map_or_else(|| sound.iter().collect(), |montage| montage.sounds().to_vec());
    let sound_rate = heard.first().map_or(SOUND_RATE, |track| output_rate(track.rate));
    let lead_ns = lead(ladder.as_ref(), copied, sound_rate);
    let (first, video) = match (picture, ladder) {
        (Some(track), Some(ladder)) => {
            let grid = match copied {
                Some(copy) => Grid::of(copy.gop_frames, spec.segment_seconds, ladder.rate)?,
                None => Grid::new(spec.segment_seconds, ladder.rate, ladder.common_frames())?,
            };
            let (first, others) = stages(spec, track, ladder.rungs, &mut notes);
            let course = match &montage {
                Some(montage) => Course::of(montage, origin_ns)?,
                None => Course::whole(track, ladder.rate, origin_ns)?,
            };
            let dearest = montage.as_ref().and_then(Montage::dearest).unwrap_or(track);
            let of =
                |cut, rungs| Ok::<_, Failure>(video_plan((spec, cut), (track, dearest), (ladder.rate, grid), rungs, &course));
            let cut = match spec.publish {
                Publishing::InStages => Cut::First(pace),
                Publishing::AtEnd | Publishing::LargestFirst | Publishing::CopyFirst => Cut::Rest(pace),
            };
            (first.map(|rung| of(cut, vec![rung])).transpose()?, Some(of(Cut::Rest(pace), others)?))
        }
        _ => (None, None),
    };
    let picture_ns = video.as_ref().map_or(0, |video| video.rate.start_ns(video.frames));
    let segment_ns = video
        .as_ref()
        .map_or(u64::from(spec.segment_seconds) * SECOND_NS, |video| video.rate.start_ns(video.segment_frames.into()));
    let mut audio: Vec<AudioPlan> = Vec::with_capacity(heard.len());
    let edited_ns = montage.as_ref().map(Montage::duration_ns);
    for track in heard {
        let before: Vec<&str> = audio.iter().map(|plan| plan.name.as_str()).collect();
        let name = unique_name(track.title.as_deref(), language(track.language.as_deref()).as_deref(), "Audio", &before);
        audio.push(audio_plan(
            spec,
            track,
            audio.len(),
            name,
            Timeline { origin_ns, edited_ns, picture_ns, segment_ns, sound_rate },
            &mut notes,
        )?);
    }
    let stills = match (picture, &video) {
        (Some(track), Some(video)) => stills::plan(spec, track, &video.picture, (origin_ns, picture_ns))?,
        _ => None,
    };
    if stills.is_none() && (spec.poster.is_some() || spec.storyboard.is_some()) {
        notes.push("there is no picture, so no still pictures are made".to_owned());
    }
    let sound_ns = audio.iter().map(|plan| samples_ns(plan.samples, plan.rate)).max().unwrap_or(0);
    if let Some(video) = video.as_ref().filter(|video| sound_ns > picture_ns + video.rate.start_ns(1)) {
        let short_ms = (sound_ns - picture_ns) / 1_000_000;
        notes.push(format!("the picture ends {short_ms} ms before the sound, after {} frames", video.frames));
    }
    let (source, duration_ns) = (info.version.clone(), picture_ns.max(sound_ns));
    let text = match &edit {
        None => text::plan(&info.text, (origin_ns, duration_ns), segment_ns, &mut notes),
        Some(_) => {
            let lost = [("text", info.text.is_empty()), ("chapters", info.chapters.is_empty())];
            let lost = lost.into_iter().filter(|(_, is_empty)| !is_empty);
            notes.extend(lost.map(|(what, _)| format!("the {what} of the source is left out: the video is edited")));
            None
        }
    };
    let layout = spec.output.layout;
    let mp4 = if duration_ns > MP4_NS_MAX { Mp4::None } else { spec.output.mp4 };
    if mp4 != spec.output.mp4 {
        notes.push(format!("no plain MP4 is made of more than {} hours", MP4_NS_MAX / 3600 / SECOND_NS));
    }
    Ok(Plan { source, origin_ns, duration_ns, lead_ns, layout, mp4, video, first, audio, stills, text, edit, notes })
}

/// The plan of a job of still pictures alone: at the times that HLS of the same source would have.
fn stills_alone(
    spec: &JobSpec,
    info: &MediaInfo,
    (picture, sound): (Option<&VideoTrack>, &[AudioTrack]),
    mut notes: Vec<String>,
) -> Result<Plan, Failure> {
    let Some(track) = picture else {
        let message = "there is no picture in the source that can be decoded, so no still pictures can be made";
        return Err(Failure::new(Code::NoDecodableStream, message));
    };
    let origin_ns = origin(picture, sound, &mut notes)?;
    let (timing, length_ns) = (&track.timing, length(origin_ns, track.timing.end_ns)?);
    let duration_ns = match timing.constant {
        // Whole frames, so that no rounding of times makes a picture more.
        true => timing.rate.start_ns(timing.rate.nearest_frame(length_ns).max(1)),
        false => length_ns.max(1),
    };
    let upright = PicturePlan::of(track);
    Ok(Plan {
        source: info.version.clone(),
        origin_ns,
        duration_ns,
        lead_ns: 0,
        layout: spec.output.layout,
        mp4: Mp4::None,
        video: None,
        first: None,
        audio: Vec::new(),
        stills: stills::plan(spec, track, &upright, (origin_ns, duration_ns))?,
        text: None,
        edit: None,
        notes,
    })
}

/// The track with most pixels, the first of several.
pub(crate) fn main_picture<'a>(tracks: &'a [VideoTrack], notes: &mut Vec<String>) -> Option<&'a VideoTrack> {
    // The last of equals wins here, so the order is turned round.
    let main = tracks.iter().rev().max_by_key(|track| u64::from(track.width) * u64::from(track.height))?;
    for track in tracks.iter().filter(|track| track.track != main.track) {
        notes.push(format!("picture track {} is left out: track {} has at least as many pixels", track.track.0, main.track.0));
    }
    Some(main)
}

/// Stream time at which presentation starts.
pub(crate) fn origin(picture: Option<&VideoTrack>, sound: &[AudioTrack], notes: &mut Vec<String>) -> Result<u64, Failure> {
    let sound_ns = sound.iter().map(|track| track.start_ns).min();
    match (picture.map(|track| track.timing.start_ns), sound_ns) {
        (Some(picture_ns), Some(sound_ns)) if picture_ns.saturating_sub(sound_ns) > EARLY_SOUND_NS_MAX => {
            let early_ms = (picture_ns - sound_ns) / 1_000_000;
            notes.push(format!("the sound starts {early_ms} ms before the picture: the first frame is shown from the start"));
            Ok(sound_ns)
        }
        (Some(picture_ns), _) => Ok(picture_ns),
        (None, Some(sound_ns)) => Ok(sound_ns),
        (None, None) => {
            Err(Failure::new(Code::NoDecodableStream, "the source has neither picture nor sound that can be decoded"))
        }
    }
}

/// How long after the origin something ends, in ns.
pub(crate) fn length(origin_ns: u64, end_ns: u64) -> Result<u64, Failure> {
    let length_ns = end_ns.saturating_sub(origin_ns);
    if length_ns > DURATION_NS_MAX {
        let message =
            format!("source of {} hours: up to {} can be read", length_ns / 3600 / SECOND_NS, DURATION_NS_MAX / 3600 / SECOND_NS);
        return Err(Failure::new(Code::LimitExceeded, message));
    }
    Ok(length_ns)
}

fn picture_ladder(spec: &JobSpec, track: &VideoTrack, notes: &mut Vec<String>) -> Result<Ladder, Failure> {
    ladder(&spec.ladder, Shape::of(track)?, track.timing.rate, track.bitrate, notes)
}

/// Room for the reordering of two frames of the lowest rate, in whole packets of sound: so the first sound starts a packet,
/// and of the packets before it one is enough for the decoder to warm up on; two where sound is copied, whose packets keep
/// their own places.
fn lead(ladder: Option<&Ladder>, copied: Option<PictureCopy>, sound_rate: u32) -> u64 {
    let picture_ns = ladder.map_or(0, |ladder| ladder.lowest_rate().start_ns(2));
    let copied_ns = copied.zip(ladder).map_or(0, |(copy, ladder)| ladder.rate.start_ns(copy.reorder_frames.into()));
    let picture_ns = picture_ns.max(copied_ns);
    let samples = (u128::from(picture_ns) * u128::from(sound_rate)).div_ceil(u128::from(SECOND_NS));
    let packets = u64::try_from(samples).unwrap_or(u64::MAX).div_ceil(AAC_PACKET_SAMPLES).max(2);
    samples_ns(packets.saturating_mul(AAC_PACKET_SAMPLES), sound_rate)
}

/// Makes the largest rung the source's own packets, where they fit.
fn copied_rung(
    spec: &JobSpec,
    track: &VideoTrack,
    ladder: &mut Ladder,
    origin_ns: u64,
    notes: &mut Vec<String>,
) -> Option<PictureCopy> {
    let decided = copy::picture(spec, track, ladder, origin_ns);
    let rung = ladder.rungs.first_mut()?;
    match decided {
        Ok(copy) => {
            rung.rate_control = RateControl::Copied { max_bitrate: copy.max_bitrate };
            Some(copy)
        }
        Err(why) => {
            notes.extend(why.map(|why| format!("the source's picture is not copied for {}: {why}", rung.id)));
            None
        }
    }
}

/// How the picture's work is cut up.
#[derive(Clone, Copy)]
enum Cut {
    /// That of a small rung that is made first.
    First(Pace),
    /// That of all others.
    Rest(Pace),
}

impl Cut {
    fn pieces(self, segments: u64, segment_frames: u64, frame_pixels: u64, rate: Rate) -> Vec<u64> {
        match self {
            Self::First(pace) => pace.first_pieces(segments, segment_frames, frame_pixels, rate),
            Self::Rest(pace) => pace.pieces(segments, segment_frames, frame_pixels, rate),
        }
    }
}

/// The rung that is made before the others, if one is to be.
fn stages(spec: &JobSpec, track: &VideoTrack, mut rungs: Vec<Rung>, notes: &mut Vec<String>) -> (Option<Rung>, Vec<Rung>) {
    let first = match spec.publish {
        Publishing::AtEnd => return (None, rungs),
        Publishing::CopyFirst if !rungs.first().is_some_and(Rung::is_copied) => return (None, rungs),
        Publishing::InStages => soonest(track, &rungs),
        // The first of them, as they are in order.
        Publishing::LargestFirst | Publishing::CopyFirst => Some(0),
    };
    let first = first.filter(|_| rungs.len() > 1);
    if first.is_none() {
        notes.push("there is no rung that could be published before others".to_owned());
    }
    (first.map(|place| rungs.remove(place)), rungs)
}

/// The largest rung that with its decoding costs up to a fifth of all, or else the one that costs least.
fn soonest(track: &VideoTrack, rungs: &[Rung]) -> Option<usize> {
    let cost = |rungs: &[Rung]| frame_pixels(rungs, track);
    // Whatever is made first has the source decoded once more.
    let all = cost(rungs) + cost(&[]);
    let cheap = rungs.iter().position(|rung| !rung.is_copied() && FIRST_DIVISOR * cost(std::slice::from_ref(rung)) <= all);
    let encoded = rungs.iter().enumerate().filter(|(_, rung)| !rung.is_copied());
    let least = encoded.min_by_key(|(_, rung)| effort(rung)).map(|(place, _)| place);
    cheap.or(least)
}

/// What is made first costs no more than this part of all, where there is something so small.
const FIRST_DIVISOR: u64 = 5;

/// `dearest` is the picture that takes longest to decode.
fn video_plan(
    (spec, cut): (&JobSpec, Cut),
    (track, dearest): (&VideoTrack, &VideoTrack),
    (rate, grid): (Rate, Grid),
    mut rungs: Vec<Rung>,
    course: &Course<'_>,
) -> VideoPlan {
    let frames = course.frames;
    let segment_frames = u64::from(grid.segment_frames);
    let segments = u64::try_from(segment_lengths(frames, segment_frames).len()).unwrap_or(u64::MAX);
    let pieces = match spec.chunk_seconds {
        Some(seconds) => asked_for(seconds, segments, segment_frames, rate),
        None => cut.pieces(segments, segment_frames, frame_pixels(&rungs, dearest), rate),
    };
    let pieces = if pieces.len() as u64 > CHUNKS_MAX { shares(segments, segments.div_ceil(CHUNKS_MAX)) } else { pieces };
    let chunks = chunks(frames, segment_frames, &pieces, &course.decode_from);
    let dearest = rungs.iter_mut().filter(|rung| !rung.is_copied()).max_by_key(|rung| effort(rung));
    if let (1, Some(dearest)) = (chunks.len(), dearest)
        && u64::from(dearest.width) * u64::from(dearest.height) < THREADS_ALONE_PX
    {
        dearest.threads = THREADS_ALONE;
    }
    VideoPlan {
        track: track.track,
        rate,
        frames,
        gop_frames: grid.gop_frames,
        segment_frames: grid.segment_frames,
        picture: course.picture.clone(),
        rungs,
        chunks,
    }
}

/// What the picture's work is cut up of.
struct Course<'a> {
    /// Frames of the result on the grid.
    frames: u64,
    /// What is done to pictures before they are scaled.
    picture: PicturePlan,
    /// Where decoding has to start for what begins at a place of the grid.
    decode_from: Box<dyn Fn(u64) -> u64 + 'a>,
}

impl<'a> Course<'a> {
    /// A source from its start to its end.
    fn whole(track: &'a VideoTrack, rate: Rate, origin_ns: u64) -> Result<Self, Failure> {
        let frames = rate.nearest_frame(length(origin_ns, track.timing.end_ns)?).max(1);
        let decode_from = Box::new(move |start| decode_from(track, rate, origin_ns, start));
        Ok(Self { frames, picture: PicturePlan::of(track), decode_from })
    }

    /// Clips in a row.
    fn of(montage: &'a Montage<'_>, origin_ns: u64) -> Result<Self, Failure> {
        length(origin_ns, montage.duration_ns())?;
        let decode_from = Box::new(|start| montage.decode_from(start));
        Ok(Self { frames: montage.places(), picture: PicturePlan::MADE, decode_from })
    }
}

/// Where GOPs and segments end, in frames of the grid.
#[derive(Clone, Copy)]
struct Grid {
    gop_frames: u32,
    segment_frames: u32,
}

impl Grid {
    /// `common_frames`: the smallest number of frames that is whole in every rung.
    fn new(segment_seconds: u32, rate: Rate, common_frames: u64) -> Result<Self, Failure> {
        let gops = (segment_seconds.saturating_add(GOP_SECONDS / 2) / GOP_SECONDS).max(1);
        let unit = u128::from(gops) * u128::from(rate.den()) * u128::from(common_frames);
        let units = rounded(u128::from(segment_seconds) * u128::from(rate.num()), unit).max(1);
        let gop_frames = units * u128::from(common_frames);
        let longest = u128::from(GOP_SECONDS_MAX) * u128::from(rate.num());
        if common_frames > 1 && gop_frames * u128::from(rate.den()) > longest {
            let message = format!(
                "ladder: the frame rates of the rungs meet only every {common_frames} frames of {rate}, too seldom for a GOP"
            );
            return Err(Failure::new(Code::InvalidRequest, message));
        }
        Self::whole(gop_frames, gops.into(), segment_seconds, rate)
    }

    /// Of GOPs of so many frames.
    fn of(gop_frames: u64, segment_seconds: u32, rate: Rate) -> Result<Self, Failure> {
        let gop = u128::from(gop_frames.max(1));
        let gops = rounded(u128::from(segment_seconds) * u128::from(rate.num()), gop * u128::from(rate.den())).max(1);
        Self::whole(gop, gops, segment_seconds, rate)
    }

    fn whole(gop_frames: u128, gops: u128, segment_seconds: u32, rate: Rate) -> Result<Self, Failure> {
        let too_large =
            |_| Failure::new(Code::LimitExceeded, format!("a segment of {segment_seconds} s at {rate} has too many frames"));
        let gop_frames = u32::try_from(gop_frames).map_err(too_large)?;
        let segment_frames = u32::try_from(u128::from(gop_frames) * gops).map_err(too_large)?;
        Ok(Self { gop_frames, segment_frames })
    }
}

/// Sizes of pieces that last about so many seconds each, in segments. Up to twice as long it is one piece.
fn asked_for(seconds: u32, segments: u64, segment_frames: u64, rate: Rate) -> Vec<u64> {
    let wanted = rounded(u128::from(seconds) * u128::from(rate.num()), u128::from(segment_frames) * u128::from(rate.den()));
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX).max(1);
    if segments <= wanted.saturating_mul(2) { vec![segments] } else { shares(segments, wanted) }
}

/// Pieces of work of so many segments each. `decode_from_ns` says where decoding has to start for a chunk that starts at this
/// frame.
fn chunks(frames: u64, segment_frames: u64, pieces: &[u64], decode_from_ns: impl Fn(u64) -> u64) -> Vec<Chunk> {
    let mut next = 0;
    let chunk = |(index, size): (usize, &u64)| {
        let start = next;
        // The last segment may be longer than the others.
        next = if index + 1 == pieces.len() { frames } else { start + size * segment_frames };
        Chunk { start, end: next, decode_from_ns: decode_from_ns(start) }
    };
    pieces.iter().enumerate().map(chunk).collect()
}

/// The key frame that decoding starts at for a chunk that starts at frame `start` of the grid, in ns of stream time; 0 when it
/// is the first of all. With a variable frame rate the frames before the first place decide what is shown there, so it is
/// one before that place. With a constant one it is the frame of that place at the latest: of several that stand there, because
/// the grid has fewer, the one at the place's own time is shown.
pub(crate) fn decode_from(track: &VideoTrack, rate: Rate, origin_ns: u64, start: u64) -> u64 {
    let place = |time_ns: u64| rate.nearest_frame(time_ns.saturating_sub(origin_ns));
    let frame_ns = track.timing.rate.start_ns(1).min(rate.start_ns(1));
    let latest_ns = origin_ns.saturating_add(rate.start_ns(start)).saturating_add(frame_ns / 2);
    let will_do = |time_ns: u64| if track.timing.constant { time_ns < latest_ns } else { place(time_ns) < start };
    let before = track.key_frames_ns.partition_point(|&time_ns| will_do(time_ns));
    before.checked_sub(1).filter(|&index| index > 0).and_then(|index| track.key_frames_ns.get(index).copied()).unwrap_or(0)
}

/// What a sound track has to fit.
#[derive(Clone, Copy)]
struct Timeline {
    origin_ns: u64,
    /// Duration of all, where it is edited.
    edited_ns: Option<u64>,
    /// Duration of the picture, 0 without one.
    picture_ns: u64,
    segment_ns: u64,
    /// Samples per second of all renditions of sound: one rate, so that one lead suits them all.
    sound_rate: u32,
}

fn audio_plan(
    spec: &JobSpec,
    track: &AudioTrack,
    index: usize,
    name: String,
    timeline: Timeline,
    notes: &mut Vec<String>,
) -> Result<AudioPlan, Failure> {
    let rate = timeline.sound_rate;
    let length_ns = match timeline.edited_ns {
        Some(edited_ns) => length(0, edited_ns)?,
        None => length(timeline.origin_ns, track.end_ns)?,
    };
    if timeline.picture_ns.saturating_sub(length_ns) > SHORT_SOUND_NS_MAX {
        let short_ms = (timeline.picture_ns - length_ns) / 1_000_000;
        notes.push(format!("sound '{name}' ends {short_ms} ms before the picture"));
    }
    let samples = rounded(u128::from(length_ns) * u128::from(rate), SECOND_NS.into());
    let samples = u64::try_from(samples).unwrap_or(u64::MAX).max(1);
    let copy = copy::sound(spec, track, rate, samples, timeline.origin_ns);
    let copy = copy.map_err(|why| notes.extend(why.map(|why| format!("sound '{name}' is encoded: {why}")))).ok();
    Ok(AudioPlan {
        id: RenditionId(format!("a{index}")),
        track: track.track,
        rate,
        channels: copy.map_or(2, |_| track.channels),
        bitrate: output_bps(track.bitrate),
        copy,
        samples,
        loudness: spec.audio.loudness,
        segment_ns: timeline.segment_ns,
        language: language(track.language.as_deref()),
        name,
        default: index == 0,
    })
}

/// Samples per second where the source does not speak for another rate.
const SOUND_RATE: u32 = 48_000;

/// 44 100 for sources of that family, else [`SOUND_RATE`].
fn output_rate(source: u32) -> u32 {
    const FAMILY: u32 = 11_025;
    let related = source != 0 && (source.is_multiple_of(FAMILY) || FAMILY.is_multiple_of(source));
    if related { 44_100 } else { SOUND_RATE }
}

/// 128 kbit/s, or what the source has when that is less, in steps of 16 kbit/s from 48 kbit/s on.
fn output_bps(source: u64) -> u32 {
    const USUAL: u64 = 128_000;
    let own = source.checked_next_multiple_of(16_000).filter(|bps| *bps > 0).unwrap_or(USUAL);
    u32::try_from(own.clamp(48_000, USUAL)).unwrap_or(u32::MAX)
}

/// How long so many samples last, in ns, rounded up.
fn samples_ns(samples: u64, rate: u32) -> u64 {
    let ns = (u128::from(samples) * u128::from(SECOND_NS)).div_ceil(u128::from(rate));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// `numerator / denominator` to the nearest whole number, half up.
fn rounded(numerator: u128, denominator: u128) -> u128 {
    (2 * numerator + denominator) / (2 * denominator)
}

#[cfg(test)]
mod tests;
