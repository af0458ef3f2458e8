//! By how much sound comes after its picture in a presentation, as different readers see it: by the file's own tables, with
//! and without the edit list, and by `ffmpeg` on each of the playlists. Browsers are asked in [`crate::player`].

use std::path::Path;

use anyhow::{Context, Result};

use crate::hls::{Presentation, Rendition};
use crate::reader::{self, Sound};

/// What one reader sees.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Who reads what: `v720, tables with edit list`.
    pub reader: String,
    /// By how much each beep comes after its flash, in ns.
    pub offsets_ns: Vec<i64>,
}

/// What every reader sees of every rung with the first rendition of sound.
///
/// # Errors
/// When something cannot be read, or flashes and beeps do not pair up.
pub fn readers(presentation: &Presentation) -> Result<Vec<Seen>> {
    let folder = tempfile::tempdir()?;
    let audio = presentation.audios().next().context("no sound")?;
    let tables = Tables::of(audio, folder.path())?;
    let master = presentation.folder.join("master.m3u8");
    let by_master = reader::sound(&master, "0:a:0").context("sound of the multivariant playlist")?.beeps_ns();
    let by_playlist = reader::sound(&audio.path, "0:a:0")?.beeps_ns();
    let mut seen = Vec::new();
    for rung in presentation.videos() {
        let frames = reader::frames(&rung.path, "0:v:0")?;
        let ticks = rung.presentation_order();
        let flashing = || frames.iter().zip(&ticks).filter(|(frame, _)| frame.flash).map(|(_, &ticks)| ticks);
        let with_edits: Vec<i64> = flashing().map(|ticks| rung.track.presented_ns(ticks)).collect();
        let without: Vec<i64> = flashing().map(|ticks| rung.track.ns(ticks)).collect();
        let place = presentation.master.variants.iter().filter(|v| v.resolution.is_some()).position(|v| v.uri == rung.uri);
        let stream = format!("0:v:{}", place.with_context(|| format!("no variant of {}", rung.uri))?);
        let flashes_by_master = reader::flashes_ns(&reader::frames(&master, &stream)?);
        for (reader, flashes, beeps) in [
            ("tables with edit list", &with_edits, &tables.beeps_with_edits_ns),
            ("tables without edit list", &without, &tables.beeps_without_ns),
            ("ffmpeg on media playlists", &reader::flashes_ns(&frames), &by_playlist),
            ("ffmpeg on the multivariant playlist", &flashes_by_master, &by_master),
        ] {
            let reader = format!("{}, {reader}", rung.name());
            let offsets_ns = reader::sync_ns(flashes, beeps).with_context(|| reader.clone())?;
            seen.push(Seen { reader, offsets_ns });
        }
    }
    Ok(seen)
}

/// When beeps begin by the tables of a rendition of sound.
struct Tables {
    beeps_with_edits_ns: Vec<i64>,
    beeps_without_ns: Vec<i64>,
}

impl Tables {
    fn of(audio: &Rendition, folder: &Path) -> Result<Self> {
        let sound = reader::sound_untrimmed(&audio.joined(folder)?)?;
        let first = *audio.presentation_order().first().context("no packets")?;
        let from = |start_ns: i64| Sound { start_ns, ..sound.clone() }.beeps_ns();
        Ok(Self { beeps_with_edits_ns: from(audio.track.presented_ns(first)), beeps_without_ns: from(audio.track.ns(first)) })
    }
}
