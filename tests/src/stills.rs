//! Reads the still pictures of a result as a player would: the report leads to the poster and the storyboard's track, the track
//! to the pictures.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::barcode::{self, Seen};
use crate::process;

const READ_LIMIT: Duration = Duration::from_secs(60);

/// A cue of a storyboard's track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cue {
    /// From when on its picture stands for the video, in ms.
    pub start_ms: u64,
    /// Until when, in ms.
    pub end_ms: u64,
    /// The sheet.
    pub sheet: PathBuf,
    /// Where on the sheet: left, top, width and height in pixels.
    pub place: [u32; 4],
}

/// What the report of a result says of still pictures; null when it says nothing.
///
/// # Errors
/// When it cannot be read.
pub fn report(folder: &Path) -> Result<Value> {
    let report: Value = serde_json::from_slice(&fs::read(folder.join("report.json"))?)?;
    Ok(report["stills"].clone())
}

/// The poster.
///
/// # Errors
/// When there is none.
pub fn poster(folder: &Path) -> Result<PathBuf> {
    let report = report(folder)?;
    let key = report["poster"]["key"].as_str().with_context(|| format!("no poster: {report}"))?;
    Ok(folder.join(key))
}

/// The cues of the storyboard's track, in order.
///
/// # Errors
/// When there is no such track, or it is not WebVTT of cues with places.
pub fn storyboard(folder: &Path) -> Result<Vec<Cue>> {
    let report = report(folder)?;
    let track = folder.join(report["storyboard"]["track"].as_str().with_context(|| format!("no storyboard: {report}"))?);
    let text = fs::read_to_string(&track)?;
    let mut blocks = text.trim_end().split("\n\n");
    ensure!(blocks.next() == Some("WEBVTT"), "not WebVTT: {text}");
    let cue = |block: &str| {
        let [times, target] = block.lines().collect::<Vec<_>>()[..] else { bail!("not a cue of two lines: {block}") };
        let (start, end) = times.split_once(" --> ").context("no times")?;
        let (sheet, place) = target.split_once("#xywh=").context("no place")?;
        let place: Vec<u32> = place.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let place = place.try_into().map_err(|place| anyhow::anyhow!("a place of {place:?}"))?;
        let sheet = track.parent().context("a folder")?.join(sheet);
        Ok(Cue { start_ms: milliseconds(start)?, end_ms: milliseconds(end)?, sheet, place })
    };
    blocks.map(|block| cue(block).with_context(|| block.to_owned())).collect()
}

/// A time of WebVTT, `hh:mm:ss.ttt`.
///
/// # Errors
/// When it is none.
pub fn milliseconds(text: &str) -> Result<u64> {
    let (clock, ms) = text.split_once('.').context("no fraction")?;
    ensure!(ms.len() == 3, "a fraction of {} digits", ms.len());
    let [hours, minutes, seconds] = clock.split(':').collect::<Vec<_>>()[..] else { bail!("'{text}' is no time") };
    let number = |text: &str| text.parse::<u64>();
    Ok(((number(hours)? * 60 + number(minutes)?) * 60 + number(seconds)?) * 1000 + number(ms)?)
}

/// Every file of the still pictures, by report and track.
///
/// # Errors
/// When they cannot be read.
pub fn files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let Ok(report) = report(folder) else { return Ok(BTreeSet::new()) };
    let mut files: BTreeSet<PathBuf> = report["poster"]["key"].as_str().map(|key| folder.join(key)).into_iter().collect();
    if let Some(track) = report["storyboard"]["track"].as_str() {
        files.insert(folder.join(track));
        files.extend(storyboard(folder)?.into_iter().map(|cue| cue.sheet));
    }
    Ok(files)
}

/// What the bar code in a part of a picture says.
///
/// # Errors
/// When `ffmpeg` cannot read the picture.
pub fn barcode(file: &Path, [x, y, width, height]: [u32; 4]) -> Result<Seen> {
    let (wide, high) = (barcode::READ_WIDTH, barcode::READ_HEIGHT);
    let filter = format!("crop={width}:{height}:{x}:{y},scale={wide}:{high}:flags=area,format=gray");
    let small = raw(file, &filter, "gray")?;
    ensure!(small.len() == wide * high, "{} bytes", small.len());
    Ok(barcode::read(&small))
}

/// Red, green and blue in the middle of each quarter of a picture: upper left, upper right, lower left, lower right.
///
/// # Errors
/// When `ffmpeg` cannot read the picture.
pub fn quarters(file: &Path) -> Result<[[u8; 3]; 4]> {
    let pixels = raw(file, "scale=4:4:flags=area", "rgb24")?;
    let pixels = pixels.as_chunks::<3>().0;
    // The outer corners: nothing of them is mixed with another quarter.
    match pixels {
        [upper_left, _, _, upper_right, .., lower_left, _, _, lower_right] if pixels.len() == 16 => {
            Ok([*upper_left, *upper_right, *lower_left, *lower_right])
        }
        _ => bail!("{} pixels", pixels.len()),
    }
}

/// How much is left out on each side of a part whose brightness is looked at, in pixels: blocks of JPEG lie across its edges.
const EDGE: u32 = 8;

/// The brightest level within a part of a picture.
///
/// # Errors
/// When `ffmpeg` cannot read the picture.
pub fn brightest(file: &Path, [x, y, width, height]: [u32; 4]) -> Result<u8> {
    let (inner_width, inner_height) = (width - 2 * EDGE, height - 2 * EDGE);
    let filter = format!("crop={inner_width}:{inner_height}:{}:{},format=gray", x + EDGE, y + EDGE);
    raw(file, &filter, "gray")?.into_iter().max().context("no pixels")
}

/// Width and height of a picture.
///
/// # Errors
/// When `ffprobe` cannot read it.
pub fn size(file: &Path) -> Result<(u32, u32)> {
    let mut ffprobe = Command::new("ffprobe");
    ffprobe.args(["-v", "error", "-show_entries", "stream=codec_name,width,height", "-of", "csv=p=0"]).arg(file);
    let said = process::run(&mut ffprobe, READ_LIMIT)?.success()?.text();
    let ["mjpeg", width, height] = said.trim().split(',').collect::<Vec<_>>()[..] else { bail!("not a JPEG: {said}") };
    Ok((width.parse()?, height.parse()?))
}

fn raw(file: &Path, filter: &str, format: &str) -> Result<Vec<u8>> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error", "-i"]).arg(file);
    ffmpeg.args(["-vf", filter, "-f", "rawvideo", "-pix_fmt", format, "pipe:1"]);
    Ok(process::run(&mut ffmpeg, READ_LIMIT)?.success()?.stdout)
}
