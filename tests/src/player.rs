//! Plays media in headless Chromium, playlists with hls.js, and tells what was seen, heard and said.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use serde::Deserialize;

use crate::process;
use crate::reader::{Frame, frame_at};
use crate::{barcode, clip::Clip};

/// How long the browser may take to start, to visit moments and to end, beside playing.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How many moments are visited after the end.
const VISITS: usize = 32;

/// What came of playing something to its end.
#[derive(Debug)]
pub struct Played {
    /// What the player says.
    pub said: Said,
    /// The frames that were put on the screen while it played, as far as the script was called for them, by media time. A
    /// browser that is short of time calls late, so that one may be of a later time than its own.
    frames: Vec<Frame>,
    /// What was there when it was sent to moments spread evenly, after the end.
    pub visits: Vec<Visit>,
    /// When beeps were heard, by media time in ns.
    pub beeps_ns: Vec<i64>,
}

/// What the player says of a play.
#[derive(Debug, Deserialize)]
pub struct Said {
    /// Levels hls.js found.
    pub level_count: usize,
    /// Levels it played, in order.
    pub levels: Vec<usize>,
    /// Everything it called an error, fatal or not.
    pub errors: Vec<String>,
    /// How often it waited for data after it had begun.
    pub stalls: u32,
    /// Whether it came to the end.
    pub ended: bool,
    /// How long the media lasts, in s.
    pub duration_s: f64,
    /// Where it stopped, in s.
    pub end_s: f64,
    /// Frames that were decoded.
    pub frames_total: u32,
    /// Frames that were decoded and not shown: the machine's speed, not the media's fault.
    pub frames_dropped: u32,
    /// What each source buffer held at the end.
    pub buffered: Vec<Buffered>,
    /// The cues of the first rendition of text at the end.
    pub texts: Vec<TextCue>,
    frames: Vec<Shown>,
    visits: Vec<Visited>,
    beeps_s: Vec<f64>,
    clocks_s: Vec<(f64, f64)>,
}

/// What a source buffer held.
#[derive(Debug, Deserialize)]
pub struct Buffered {
    /// Its media type, with codecs.
    pub mime: String,
    /// From when to when it holds media, in s. A gap makes two of one.
    pub ranges_s: Vec<(f64, f64)>,
}

/// A cue as the browser has it.
#[derive(Debug, Deserialize)]
pub struct TextCue {
    /// From when, in s of media time.
    pub start_s: f64,
    /// Until when, in s.
    pub end_s: f64,
    /// What, with its tags.
    pub text: String,
}

/// What was there at a moment it was sent to.
#[derive(Debug)]
pub struct Visit {
    /// The moment, in s of media time.
    pub at_s: f64,
    /// The frame that was shown.
    pub frame: Frame,
    /// The text that was shown; empty for none.
    pub text: String,
}

#[derive(Debug, Deserialize)]
struct Visited {
    at_s: f64,
    text: String,
    #[serde(flatten)]
    shown: Shown,
}

#[derive(Debug, Deserialize)]
struct Shown {
    time_s: f64,
    grey: String,
}

/// Plays `file` of `folder` to its end, changing to the next level every `switch_seconds` unless that is 0.
///
/// # Errors
/// When node, Chromium or the packages of `tests/player` are not there, or it does not end within `limit`.
pub fn play(folder: &Path, file: &str, switch_seconds: u32, limit: Duration) -> Result<Played> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("player");
    ensure!(here.join("node_modules/hls.js").exists(), "the player's packages are not there: run `make test-deps`");
    let request = serde_json::json!({
        "folder": folder, "file": file, "switch_seconds": switch_seconds, "limit_seconds": limit.as_secs(),
        "visits": VISITS,
        "picture": [barcode::READ_WIDTH, barcode::READ_HEIGHT],
    });
    let mut node = Command::new("node");
    node.arg(here.join("play.mjs")).arg(request.to_string());
    let out = process::run(&mut node, limit + START_LIMIT)?.success()?;
    let mut said: Said = serde_json::from_slice(&out.stdout).context("what play.mjs printed")?;
    let frames = said.frames.iter().map(Shown::read).collect::<Result<Vec<_>>>()?;
    let visit = |visited: Visited| Ok(Visit { at_s: visited.at_s, frame: visited.shown.read()?, text: visited.text });
    let visits = std::mem::take(&mut said.visits).into_iter().map(visit).collect::<Result<Vec<_>>>()?;
    let clock = clock_s(&said.clocks_s).context("the media clock never ran")?;
    let beeps_ns = said.beeps_s.iter().map(|beep| nanoseconds(beep + clock)).collect();
    Ok(Played { said, frames, visits, beeps_ns })
}

impl Shown {
    fn read(&self) -> Result<Frame> {
        let grey = base64::engine::general_purpose::STANDARD.decode(&self.grey)?;
        ensure!(grey.len() == barcode::READ_WIDTH * barcode::READ_HEIGHT, "a picture of {} bytes", grey.len());
        Ok(frame_at(nanoseconds(self.time_s), &grey))
    }
}

impl Played {
    /// What is wrong with the frames at the moments visited, if they should be of `clip`: each readable, at its own time, and the
    /// one that is due.
    pub fn frame_faults(&self, clip: &Clip) -> Vec<String> {
        let mut faults: Vec<String> = Vec::new();
        for Visit { at_s, frame, .. } in &self.visits {
            match frame.number {
                Ok(number) if (frame.time_ns - clip.start_ns(number)).abs() <= 1_000_000 => {
                    let due = clip.start_ns(number) - 1_000_000..clip.start_ns(number + 1) + 1_000_000;
                    if !due.contains(&nanoseconds(*at_s)) {
                        faults.push(format!("frame {number} at {at_s} s"));
                    }
                }
                seen => faults.push(format!("at {} ns: {seen:?}", frame.time_ns)),
            }
        }
        if self.visits.len() < VISITS {
            faults.push(format!("only {} of {VISITS} moments were seen", self.visits.len()));
        }
        faults.truncate(10);
        faults
    }

    /// By how much each beep comes after the frame it belongs to, in ns, by the clip's own times.
    ///
    /// # Errors
    /// When there are more or fewer beeps than flashes in the clip, or no frames to compare with.
    pub fn offsets_ns(&self, clip: &Clip) -> Result<Vec<i64>> {
        let flashes = clip.flashes();
        ensure!(flashes.len() == self.beeps_ns.len(), "{} flashes and {} beeps", flashes.len(), self.beeps_ns.len());
        // Frames tell where the clip's time stands on the media's: the middle of them, so that one alone cannot mislead.
        let mut late: Vec<i64> = self.frames.iter().filter_map(|f| Some(f.time_ns - clip.start_ns(f.number.ok()?))).collect();
        late.sort_unstable();
        let picture_late_ns = *late.get(late.len() / 2).context("no frames were seen")?;
        Ok(flashes.iter().zip(&self.beeps_ns).map(|(&flash, beep)| beep - clip.start_ns(flash) - picture_late_ns).collect())
    }
}

/// How far media time is ahead of the audio context's, in s: the middle of what was seen while it played.
fn clock_s(clocks_s: &[(f64, f64)]) -> Option<f64> {
    let mut ahead: Vec<f64> = clocks_s.iter().map(|(context, media)| media - context).collect();
    ahead.sort_unstable_by(f64::total_cmp);
    ahead.get(ahead.len() / 2).copied()
}

#[expect(clippy::cast_possible_truncation, reason = "media times of tests are far below 2^52 ns")]
fn nanoseconds(seconds: f64) -> i64 {
    (seconds * 1e9).round() as i64
}
