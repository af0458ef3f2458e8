//! Reads media back with `ffmpeg`, as anyone would: which frames are shown when, and when the beeps begin.
//!
//! Works on files and on playlists. Times are those of the demuxer, untouched (`-copyts`), so that a shift of one stream
//! against another shows.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::barcode::{self, Unreadable};
use crate::{clip, process};

const READ_LIMIT: Duration = Duration::from_secs(300);
/// How far time stamps of sound may be from where the samples before them end, before it is called a gap: containers that
/// round to whole ms are off by up to one.
const GAP_MIN_NS: i64 = 1_500_000;

/// A frame as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When it is shown, in ns.
    pub time_ns: i64,
    /// Its number.
    pub number: Result<u32, Unreadable>,
    /// Whether it flashes.
    pub flash: bool,
}

/// Sound as it was read, mixed down to one channel.
#[derive(Clone, Debug)]
pub struct Sound {
    /// Samples per second.
    pub rate: u32,
    /// When the first sample is heard, in ns.
    pub start_ns: i64,
    /// The samples, without a gap.
    pub samples: Vec<f32>,
}

/// Every frame of a picture stream, in order of presentation. `stream` is as `ffmpeg -map` takes it, `0:v:0`.
///
/// # Errors
/// When `ffmpeg` fails, or does not say the time of every frame.
pub fn frames(input: &Path, stream: &str) -> Result<Vec<Frame>> {
    read_frames(input, stream, "")
}

/// As [`frames`], of pictures in a part of the picture: its left, top, width and height in pixels.
///
/// # Errors
/// As [`frames`].
pub fn frames_in(input: &Path, stream: &str, [left, top, width, height]: [u32; 4]) -> Result<Vec<Frame>> {
    read_frames(input, stream, &format!("crop={width}:{height}:{left}:{top},"))
}

fn read_frames(input: &Path, stream: &str, crop: &str) -> Result<Vec<Frame>> {
    let small = format!("showinfo,{crop}scale={}:{}:flags=area,format=gray", barcode::READ_WIDTH, barcode::READ_HEIGHT);
    let mut ffmpeg = decode(input, stream, &[]);
    ffmpeg.args(["-vf", &small, "-fps_mode", "passthrough", "-f", "rawvideo", "pipe:1"]);
    let out = process::run(&mut ffmpeg, READ_LIMIT)?.success().with_context(|| shown(input, stream))?;
    let times = Times::of(&out.stderr, "Parsed_showinfo")?;
    let pictures = out.stdout.chunks_exact(barcode::READ_WIDTH * barcode::READ_HEIGHT);
    ensure!(
        times.stamps.len() == pictures.len(),
        "{}: {} times for {} frames",
        shown(input, stream),
        times.stamps.len(),
        pictures.len()
    );
    let frames = pictures.zip(times.stamps).map(|(picture, time_ns)| frame_at(time_ns, picture));
    Ok(frames.collect())
}

/// The frame that a small picture ([`barcode::read`]) shows.
pub fn frame_at(time_ns: i64, picture: &[u8]) -> Frame {
    let seen = barcode::read(picture);
    Frame { time_ns, number: seen.number, flash: seen.flash }
}

/// The whole sound of a stream. `stream` is as `ffmpeg -map` takes it, `0:a:0`.
///
/// # Errors
/// When `ffmpeg` fails, or the sound has a gap or overlap.
pub fn sound(input: &Path, stream: &str) -> Result<Sound> {
    read_sound(decode(input, stream, &[]), input, stream)
}

/// The whole sound of an MP4 file as it comes out of the decoder, priming and all: a packet's samples for each packet, and
/// times without the edit list.
///
/// # Errors
/// As [`sound`].
pub fn sound_untrimmed(mp4: &Path) -> Result<Sound> {
    read_sound(decode(mp4, "0:a:0", &["-ignore_editlist", "1"]), mp4, "0:a:0")
}

fn read_sound(mut ffmpeg: Command, input: &Path, stream: &str) -> Result<Sound> {
    ffmpeg.args(["-af", "ashowinfo", "-ac", "1", "-f", "f32le", "pipe:1"]);
    let out = process::run(&mut ffmpeg, READ_LIMIT)?.success().with_context(|| shown(input, stream))?;
    let lines = info_lines(&out.stderr, "Parsed_ashowinfo");
    let first = *lines.first().with_context(|| format!("{}: no sound", shown(input, stream)))?;
    let rate: u32 = number(first, "rate:")?;
    // The filter counts time in samples.
    let to_ns = |samples: i64| i64::try_from(i128::from(samples) * 1_000_000_000 / i128::from(rate));
    let start: i64 = number(first, "pts:")?;
    let mut expected = start;
    for line in &lines {
        let (at, count): (i64, i64) = (number(line, "pts:")?, number(line, "nb_samples:")?);
        if to_ns(at - expected)?.abs() >= GAP_MIN_NS {
            bail!("{}: sound jumps from sample {expected} to {at}", shown(input, stream));
        }
        expected += count;
    }
    let samples: Vec<f32> = out.stdout.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect();
    ensure!(i64::try_from(samples.len())? == expected - start, "{}: samples are missing", shown(input, stream));
    Ok(Sound { rate, start_ns: to_ns(start)?, samples })
}

impl Sound {
    /// When each beep begins, in ns: where the power over one period of its 1 kHz passes half of a beep's, which is exact
    /// to about a third of a ms, and does not fall for what an encoder smears before a hard onset.
    pub fn beeps_ns(&self) -> Vec<i64> {
        let period = usize::try_from(self.rate / 1000).unwrap_or(1).max(1);
        // Of a sine's power half its square, and a quarter of the amplitude's square is half of that.
        let threshold = f64::from(clip::BEEP_AMPLITUDE).powi(2) / 4.0;
        let quiet_samples = usize::try_from(self.rate / 5).unwrap_or(0);
        let mut beeps = Vec::new();
        let (mut next, mut energy) = (0, 0.0);
        for (end, &sample) in self.samples.iter().enumerate() {
            let left = end.checked_sub(period).and_then(|at| self.samples.get(at)).map_or(0.0, |&s| f64::from(s).powi(2));
            energy += f64::from(sample).powi(2) - left;
            let Some(start) = (end + 1).checked_sub(period) else { continue };
            #[expect(clippy::cast_precision_loss, reason = "a period has some 48 samples")]
            let power = energy / period as f64;
            if start >= next && power > threshold {
                beeps.push(self.time_ns(start + period / 2));
                next = start + quiet_samples;
            }
        }
        beeps
    }

    /// How long it lasts, in ns.
    pub fn duration_ns(&self) -> i64 {
        self.time_ns(self.samples.len()) - self.start_ns
    }

    /// When a sample is heard, in ns.
    pub fn time_ns(&self, sample: usize) -> i64 {
        let after = i128::try_from(sample).unwrap_or(0) * 1_000_000_000 / i128::from(self.rate);
        self.start_ns + i64::try_from(after).unwrap_or(i64::MAX)
    }
}

/// What is wrong with a run of frames that should be just `numbers`, each on its own place of the grid of `rate`.
/// The first frame's own time is free: sync is another question.
pub fn frame_faults(frames: &[Frame], numbers: &[u32], start_ns: impl Fn(u32) -> i64) -> Vec<String> {
    let mut faults = Vec::new();
    if frames.len() != numbers.len() {
        faults.push(format!("{} frames instead of {}", frames.len(), numbers.len()));
    }
    let (Some(first), Some(&first_number)) = (frames.first(), numbers.first()) else { return faults };
    for (place, (frame, &number)) in frames.iter().zip(numbers).enumerate() {
        if frame.number != Ok(number) {
            faults.push(format!("place {place} shows {:?} instead of {number}", frame.number));
        }
        let expected_ns = start_ns(number) - start_ns(first_number);
        // Half a ms for containers that round to whole ones, half again for the first frame's own rounding.
        if (frame.time_ns - first.time_ns - expected_ns).abs() > 1_000_000 {
            faults.push(format!(
                "frame {number} is shown {} ns after the first instead of {expected_ns}",
                frame.time_ns - first.time_ns
            ));
        }
    }
    let more = faults.len().saturating_sub(10);
    faults.truncate(10);
    faults.extend((more > 0).then(|| format!("and {more} more")));
    faults
}

/// By how much each beep comes after its flash, in ns. Every flash needs its beep within 900 ms, and every beep its flash:
/// clips have one of each a second.
///
/// # Errors
/// When one stands alone.
pub fn sync_ns(flashes_ns: &[i64], beeps_ns: &[i64]) -> Result<Vec<i64>> {
    ensure!(!flashes_ns.is_empty(), "no flash was seen");
    ensure!(flashes_ns.len() == beeps_ns.len(), "{} flashes and {} beeps", flashes_ns.len(), beeps_ns.len());
    let offsets: Vec<i64> = flashes_ns.iter().zip(beeps_ns).map(|(flash, beep)| beep - flash).collect();
    ensure!(offsets.iter().all(|o| o.abs() < 900_000_000), "flashes and beeps do not pair up: {offsets:?}");
    Ok(offsets)
}

/// The times of the frames that flash, in ns.
pub fn flashes_ns(frames: &[Frame]) -> Vec<i64> {
    frames.iter().filter(|frame| frame.flash).map(|frame| frame.time_ns).collect()
}

fn decode(input: &Path, stream: &str, options: &[&str]) -> Command {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg
        .args(["-hide_banner", "-nostdin", "-nostats", "-loglevel", "info", "-copyts"])
        .args(options)
        .arg("-i")
        .arg(input)
        .args(["-map", stream]);
    ffmpeg
}

fn shown(input: &Path, stream: &str) -> String {
    format!("{} {stream}", input.display())
}

/// Presentation times that `showinfo` printed.
struct Times {
    stamps: Vec<i64>,
}

impl Times {
    fn of(log: &str, filter: &str) -> Result<Self> {
        let lines = info_lines(log, filter);
        let (mut base, mut stamps) = ((0_i64, 1_i64), Vec::new());
        for line in log.lines().filter(|line| line.contains(filter)) {
            if let Some((_, rest)) = line.split_once("config in time_base: ") {
                let (num, den) = rest.split_once(',').and_then(|(base, _)| base.split_once('/')).context("time base")?;
                base = (num.parse()?, den.parse()?);
            } else if line.contains(" pts:") {
                let ticks: i64 = number(line, "pts:")?;
                stamps.push(i64::try_from(i128::from(ticks) * i128::from(base.0) * 1_000_000_000 / i128::from(base.1))?);
            }
        }
        ensure!(stamps.len() == lines.len(), "unknown lines of showinfo");
        Ok(Self { stamps })
    }
}

fn info_lines<'a>(log: &'a str, filter: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(filter) && line.contains(" pts:")).collect()
}

/// The number after ` key` in a line of `showinfo`, which writes `pts:    512 pts_time:0.04`.
fn number<T: std::str::FromStr>(line: &str, key: &str) -> Result<T> {
    let (_, after) = line.split_once(&format!(" {key}")).with_context(|| format!("no {key} in '{line}'"))?;
    let word = after.split_whitespace().next().unwrap_or_default();
    word.parse().ok().with_context(|| format!("{key} '{word}' is not a number"))
}
