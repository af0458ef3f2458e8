//! Whether a presentation is what it should be of a [`Clip`]: right by the rules, every frame there, in sync.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use farm::rate::SECOND_NS;

use crate::clip::Clip;
use crate::hls::{Presentation, Rendition};
use crate::mp4::Kind;
use crate::{reader, rules, sync};

/// How far sound may be from its picture: what telling a beep's onset in lossy sound is exact to, and the ms that some
/// containers round to.
pub const SYNC_TOLERANCE: Duration = Duration::from_millis(2);
/// Samples of an AAC packet: sound may be that much shorter or longer than its source.
pub const AAC_PACKET: u64 = 1024;

/// Everything that is wrong with the presentation in a folder, if it was made of `clip`.
///
/// # Errors
/// When it cannot be read at all.
pub fn faults(folder: &Path, clip: &Clip) -> Result<Vec<String>> {
    let mut faults = rules::faults(folder)?;
    let presentation = Presentation::read(folder)?;
    for rung in presentation.videos() {
        faults.extend(frame_faults(rung, clip)?.into_iter().map(|fault| format!("{}: {fault}", rung.name())));
    }
    for sound in presentation.audios() {
        let (made, wanted) = (sound.track.presented_ns(end_ticks(sound)), clip.duration_ns());
        let packet_ns = i64::try_from(AAC_PACKET * SECOND_NS)? / i64::from(sound.track.timescale);
        if (made - wanted).abs() > packet_ns {
            faults.push(format!("{}: sound ends at {made} ns instead of {wanted}", sound.name()));
        }
    }
    if presentation.i_frames.len() != presentation.videos().count() {
        faults.push(format!("{} I-frame playlists", presentation.i_frames.len()));
    }
    let sounds = presentation.audios().count();
    if sounds != usize::from(clip.audio) {
        faults.push(format!("{sounds} renditions of sound"));
    }
    Ok(faults)
}

fn end_ticks(rendition: &Rendition) -> i64 {
    rendition.samples().map(|sample| sample.pts + i64::from(sample.duration)).max().unwrap_or(0)
}

/// What is wrong with the frames of a rung, as `ffmpeg` reads its media playlist.
fn frame_faults(rung: &Rendition, clip: &Clip) -> Result<Vec<String>> {
    let frames = reader::frames(&rung.path, "0:v:0")?;
    let every = usize::try_from(every_nth(clip, rung))?;
    let numbers: Vec<u32> = clip.numbers().into_iter().step_by(every).collect();
    Ok(reader::frame_faults(&frames, &numbers, |n| clip.start_ns(n)))
}

/// Every how many frames of the clip a rung shows one: up to 60 a second, below 720 up to 30.
fn every_nth(clip: &Clip, rung: &Rendition) -> u32 {
    let Kind::Video { width, height, .. } = rung.track.kind else { return 1 };
    let most = if width.min(height) < 720 { 30.3 } else { 60.6 };
    let enough = |n: &u32| clip.rate.divided_by(*n).is_none_or(|rate| rate.as_f64() <= most);
    (1..).find(enough).unwrap_or(1)
}

/// Where sound is not `wanted_ns` after its picture, for any reader that is no browser.
///
/// # Errors
/// When it cannot be read at all, or beeps or flashes are missing.
pub fn sync_faults(folder: &Path, wanted_ns: i64) -> Result<Vec<String>> {
    let seen = sync::readers(&Presentation::read(folder)?)?;
    let fault = |seen: sync::Seen| {
        let is_wrong = |(_, offset): &(usize, &i64)| (**offset - wanted_ns).unsigned_abs() > tolerance_ns();
        let wrong: Vec<_> = seen.offsets_ns.iter().enumerate().filter(is_wrong).collect();
        let (some, beeps) = (wrong.get(..wrong.len().min(10))?, seen.offsets_ns.len());
        (!wrong.is_empty()).then(|| format!("{}: {} of {beeps} beeps, not {wanted_ns} but {some:?}", seen.reader, wrong.len()))
    };
    Ok(seen.into_iter().filter_map(fault).collect())
}

/// [`SYNC_TOLERANCE`] in ns.
pub fn tolerance_ns() -> u64 {
    u64::try_from(SYNC_TOLERANCE.as_nanos()).unwrap_or(u64::MAX)
}
