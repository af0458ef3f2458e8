//! `shoal probe`: says what a source is.

use std::collections::BTreeMap;

use farm::Failure;
use farm::job::SourceSpec;
use farm::media::MediaInfo;
use worker::Settings;

use crate::arguments::Probe;
use crate::ending::{print_json, print_line};
use crate::input;

/// Runs the command.
///
/// # Errors
/// Why the source cannot be used.
pub async fn run(probe: &Probe) -> Result<(), Failure> {
    let source = SourceSpec { url: input::source(&probe.input)?, headers: BTreeMap::new() };
    let settings = Settings::new(1, probe.sandbox.child());
    let info = worker::probe(&source, &settings).await?;
    if probe.json {
        print_json(&info);
    } else {
        lines(&info).iter().for_each(|line| print_line(line));
    }
    Ok(())
}

fn lines(info: &MediaInfo) -> Vec<String> {
    let seconds = |ns: u64| ns as f64 / 1e9;
    let mut lines = vec![format!("{}, {:.3} s, {} bytes", info.container, seconds(info.duration_ns), info.bytes)];
    for v in &info.video {
        let t = &v.timing;
        let steady = if t.constant { "" } else { ", uneven" };
        let rate = t.rate.as_f64();
        let (frames, kbit) = (t.frames, v.bitrate / 1000);
        let line = format!(
            "picture {}: {} {}x{} {rate:.3} fps{steady}, {frames} frames, {kbit} kbit/s, {}",
            v.track.0, v.codec, v.width, v.height, v.format
        );
        lines.push(line);
    }
    for a in &info.audio {
        let language = a.language.as_deref().map(|l| format!(", {l}")).unwrap_or_default();
        let kbit = a.bitrate / 1000;
        lines.push(format!("sound {}: {} {} Hz, {} channels, {kbit} kbit/s{language}", a.track.0, a.codec, a.rate, a.channels));
    }
    lines.extend(info.dropped.iter().map(|d| format!("not used {}: {}", d.track.0, d.why)));
    lines.extend(info.warnings.iter().map(|w| format!("warning: {w}")));
    if !info.chapters.is_empty() {
        lines.push(format!("{} chapters", info.chapters.len()));
    }
    lines
}
