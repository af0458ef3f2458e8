//! Reads the renditions of text of a result as a player would: the multivariant playlist leads to theirs, and those to files of
//! WebVTT.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use m3u8_rs::{AlternativeMedia, AlternativeMediaType, MediaPlaylist};

/// A text and when it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cue {
    /// From when, in ms.
    pub start_ms: u64,
    /// Until when, in ms.
    pub end_ms: u64,
    /// What, with its tags.
    pub text: String,
}

/// A rendition of text.
#[derive(Debug)]
pub struct Rendition {
    /// Where the multivariant playlist names it.
    pub media: AlternativeMedia,
    /// The playlist.
    pub playlist: MediaPlaylist,
    /// Where the playlist lies.
    pub path: PathBuf,
    /// Its segments in order: the file, and the cues in it.
    pub segments: Vec<(PathBuf, Vec<Cue>)>,
}

impl Rendition {
    /// Whether a rendition of the multivariant playlist is text.
    pub fn is_one(media: &AlternativeMedia) -> bool {
        media.media_type == AlternativeMediaType::Subtitles
    }

    /// Reads it.
    ///
    /// # Errors
    /// When its playlist cannot be read, or its segments are not WebVTT with the times of the whole.
    pub fn read(folder: &Path, media: &AlternativeMedia) -> Result<Self> {
        let path = folder.join(media.uri.as_deref().context("text without a URI")?);
        let playlist = match m3u8_rs::parse_media_playlist_res(&fs::read(&path)?) {
            Ok(playlist) => playlist,
            Err(error) => bail!("{}: {error}", path.display()),
        };
        let inside = path.parent().unwrap_or(folder);
        let read = |uri: &str| {
            let file = inside.join(uri);
            let cues = cues(&fs::read_to_string(&file)?).with_context(|| file.display().to_string())?;
            Ok((file, cues))
        };
        let segments = playlist.segments.iter().map(|segment| read(&segment.uri)).collect::<Result<_>>()?;
        Ok(Self { media: media.clone(), playlist, path, segments })
    }

    /// Its cues, each once: those that are shown where segments meet stand in both.
    pub fn cues(&self) -> Vec<Cue> {
        let mut cues: Vec<Cue> = Vec::new();
        for cue in self.segments.iter().flat_map(|(_, cues)| cues) {
            if !cues.contains(cue) {
                cues.push(cue.clone());
            }
        }
        cues
    }

    /// What is wrong with it: cues in segments where they are not shown, or missing where they are.
    pub fn faults(&self) -> Vec<String> {
        let (all, mut start_s) = (self.cues(), 0.0);
        let mut faults = Vec::new();
        for ((file, cues), listed) in self.segments.iter().zip(&self.playlist.segments) {
            let end_s = start_s + f64::from(listed.duration);
            let (start_ms, end_ms) = (milliseconds(start_s), milliseconds(end_s));
            let shown = |cue: &&Cue| cue.start_ms < end_ms && cue.end_ms > start_ms;
            if !all.iter().filter(shown).eq(cues) {
                faults.push(format!("{} has other cues than are shown from {start_ms} to {end_ms} ms", file.display()));
            }
            start_s = end_s;
        }
        faults
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "times of tests are positive and small")]
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}

/// The cues of a segment.
fn cues(text: &str) -> Result<Vec<Cue>> {
    let mut blocks = text.trim_end().split("\n\n");
    let head = blocks.next().unwrap_or_default();
    ensure!(head == "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:0", "begins with {head:?}");
    blocks
        .map(|block| {
            let (times, text) = block.split_once('\n').context("a cue without text")?;
            let (start, end) = times.split_once(" --> ").with_context(|| format!("no times in {times:?}"))?;
            Ok(Cue { start_ms: clock_ms(start)?, end_ms: clock_ms(end)?, text: text.to_owned() })
        })
        .collect()
}

/// `hh:mm:ss.ttt` in ms.
fn clock_ms(clock: &str) -> Result<u64> {
    let fields: Vec<u64> = clock.split([':', '.']).map(str::parse).collect::<Result<_, _>>()?;
    let [hours, minutes, seconds, ms] = fields[..] else { bail!("{clock:?} is no time") };
    Ok(((hours * 60 + minutes) * 60 + seconds) * 1000 + ms)
}
