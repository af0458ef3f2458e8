//! What must hold of a result that a runner hands in: the server itself hardly looks, and publishes what it gets.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process;

/// Longest that looking at a file may take.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// What there must be in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tracks {
    /// Picture and sound.
    Both,
    /// Picture alone.
    Picture,
    /// Sound alone.
    Sound,
}

impl Tracks {
    /// What there is in a whole file of this resolution.
    pub(super) fn of(resolution: u32) -> Self {
        if resolution == 0 { Self::Sound } else { Self::Both }
    }
}

/// What is wrong with a result.
pub(super) fn faults(media: &Path, playlist: Option<&Path>, resolution: u32, tracks: Tracks) -> Vec<String> {
    let mut faults = Vec::new();
    if let Err(error) = look(media, resolution, tracks, &mut faults) {
        faults.push(format!("{error:#}"));
    }
    if let Some(playlist) = playlist
        && let Err(error) = ranges(media, playlist, resolution, &mut faults)
    {
        faults.push(format!("{error:#}"));
    }
    faults
}

/// How large the picture of a file is, its short edge in pixels, and how many frames it has per second, as the server rounds them.
pub(super) fn size(media: &Path) -> Result<(u32, u32)> {
    let streams = streams(media)?;
    let picture = streams.iter().find(|stream| stream["codec_type"] == "video").context("a picture")?;
    let short = picture["width"].as_u64().min(picture["height"].as_u64()).context("a size")?;
    let rate = picture["avg_frame_rate"].as_str().and_then(|rate| rate.split_once('/')).context("a rate")?;
    let (frames, seconds): (u32, u32) = (rate.0.parse()?, rate.1.parse()?);
    Ok((u32::try_from(short)?, (frames + seconds / 2) / seconds.max(1)))
}

/// What is wrong with a sheet of small pictures.
pub(super) fn sheet_faults(sheet: &Path, sprites: &Value) -> Vec<String> {
    let wanted = ["width", "height"].map(|side| {
        let product = sprites["size"][side].as_u64().zip(sprites["count"][side].as_u64());
        product.map(|(size, count)| size * count)
    });
    match streams(sheet) {
        Ok(streams) => match &streams[..] {
            [picture]
                if picture["codec_name"] == "mjpeg" && [&picture["width"], &picture["height"]].map(Value::as_u64) == wanted =>
            {
                Vec::new()
            }
            other => vec![format!("{other:?} instead of one picture of {wanted:?}")],
        },
        Err(error) => vec![format!("{error:#}")],
    }
}

fn streams(media: &Path) -> Result<Vec<Value>> {
    let mut probe = Command::new("ffprobe");
    probe.args(["-v", "error", "-show_streams", "-of", "json"]).arg(media);
    let probed: Value = serde_json::from_slice(&process::run(&mut probe, LOOK_MAX)?.success()?.stdout)?;
    Ok(probed["streams"].as_array().context("streams")?.clone())
}

fn look(media: &Path, resolution: u32, tracks: Tracks, faults: &mut Vec<String>) -> Result<()> {
    let streams = streams(media)?;
    let kinds: Vec<&str> = streams.iter().filter_map(|stream| stream["codec_type"].as_str()).collect();
    let wanted: &[&str] = match tracks {
        Tracks::Both => &["video", "audio"],
        Tracks::Picture => &["video"],
        Tracks::Sound => &["audio"],
    };
    if kinds != wanted {
        faults.push(format!("{kinds:?} instead of {wanted:?}"));
    }
    for stream in &streams {
        let tag = stream["codec_tag_string"].as_str().unwrap_or_default();
        let short = stream["width"].as_u64().min(stream["height"].as_u64());
        match tag {
            "avc1" if short == Some(resolution.into()) => {}
            "mp4a" => {}
            _ => faults.push(format!("{tag} of {short:?} instead of {resolution}")),
        }
    }
    let mut decode = Command::new("ffmpeg");
    decode.args(["-v", "error", "-nostdin", "-i"]).arg(media).args(["-map", "0", "-f", "null", "-"]);
    let said = process::run(&mut decode, LOOK_MAX)?.stderr;
    if !said.is_empty() {
        faults.push(format!("does not decode: {said}"));
    }
    Ok(())
}

/// The name that a server replaces: `<uuid>-<digits>-fragmented.mp4`, in lower case.
fn is_replaced(name: &str, resolution: u32) -> bool {
    let Some(uuid) = name.strip_suffix(&format!("-{resolution}-fragmented.mp4")) else { return false };
    let parts: Vec<&str> = uuid.split('-').collect();
    let hex = |part: &&str| part.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(hex)
}

fn ranges(media: &Path, playlist: &Path, resolution: u32, faults: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(playlist)?;
    let (mut next, mut segments) = (0_u64, 0);
    for line in text.lines() {
        if let Some(map) = line.strip_prefix("#EXT-X-MAP:URI=\"") {
            let (name, range) = map.split_once("\",BYTERANGE=\"").context("a range of the init segment")?;
            let (bytes, from) = range.trim_end_matches('"').split_once('@').context("a range")?;
            if !is_replaced(name, resolution) || from != "0" {
                faults.push(format!("init segment: {line}"));
            }
            next = bytes.parse()?;
        } else if let Some(range) = line.strip_prefix("#EXT-X-BYTERANGE:") {
            let (bytes, from) = range.split_once('@').context("a place")?;
            if from.parse::<u64>()? != next {
                faults.push(format!("a gap before {from}"));
            }
            next += bytes.parse::<u64>()?;
            segments += 1;
        } else if !line.starts_with('#') && !line.is_empty() && !is_replaced(line, resolution) {
            faults.push(format!("named '{line}'"));
        }
    }
    let named = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
    let bytes = std::fs::metadata(media)?.len();
    if next != bytes || segments != named || segments == 0 || !text.ends_with("#EXT-X-ENDLIST\n") {
        faults.push(format!("{segments} ranges for {named} segments, up to {next} of {bytes} bytes"));
    }
    Ok(())
}
