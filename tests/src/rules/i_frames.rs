//! I-frame playlists: each entry is a key frame's fragment, shown when the playlist says, and decodes alone.

use std::io::Write as _;
use std::process::Command;

use anyhow::Result;

use super::{SAME_BITRATE, SAME_NS, TOOL_LIMIT, as_f64, average_of, headers, peak_of, unless};
use crate::hls::{IFrames, Presentation, Rendition};
use crate::mp4::Kind;
use crate::process;

/// Most entries of a playlist that are decoded.
const DECODED_MAX: usize = 4;

/// Everything that is wrong with the I-frame playlists. There need not be any, but then for no rung.
pub fn faults(presentation: &Presentation) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for rung in presentation.videos().filter(|_| !presentation.i_frames.is_empty()) {
        let of_rung: Vec<_> = presentation.i_frames.iter().filter(|list| list.name() == rung.name()).collect();
        let [list] = of_rung.as_slice() else {
            faults.push(format!("{} I-frame playlists of {}", of_rung.len(), rung.name()));
            continue;
        };
        let found = [headers(&list.playlist), entries(list, rung), attributes(list, rung), decoded(list)?].concat();
        faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", list.variant.uri)));
    }
    let strange = presentation.i_frames.iter().filter(|list| presentation.rendition(list.name()).is_err());
    faults.extend(strange.map(|list| format!("{}: it belongs to no rendition", list.variant.uri)));
    Ok(faults)
}

/// One entry for each key frame of the rung: its fragment, of the same file, at its time.
fn entries(list: &IFrames, rung: &Rendition) -> Vec<String> {
    let mut faults: Vec<_> = [
        unless(list.playlist.i_frames_only, || "no EXT-X-I-FRAMES-ONLY".to_owned()),
        unless(list.init == rung.init, || "another init segment than the rung's".to_owned()),
        unless(list.files.is_subset(&rung.files), || "it names files that are not the rung's".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let times = rung.key_times_ns();
    faults.extend(unless(list.entries.len() == times.len(), || {
        format!("{} entries for {} key frames", list.entries.len(), times.len())
    }));
    let mut start_s = 0.0;
    for ((number, bytes), (listed, time_ns)) in list.entries.iter().enumerate().zip(list.playlist.segments.iter().zip(times)) {
        faults.extend(unless(bytes.get(4..8) == Some(b"moof"), || format!("entry {number} begins with no moof")));
        match rung.track.samples(bytes) {
            Ok(samples) => {
                let one = matches!(samples.as_slice(), [only] if only.idr && only.sync);
                faults.extend(unless(one, || format!("entry {number} is not one IDR picture: {samples:?}")));
                let shown_ns = samples.first().map_or(i64::MAX, |sample| rung.track.presented_ns(sample.pts));
                let at_its_time =
                    (shown_ns - time_ns).abs() < SAME_NS && (start_s * 1e9 - as_f64(time_ns.unsigned_abs())).abs() < 1e5;
                faults.extend(unless(at_its_time, || {
                    format!("entry {number} is shown at {shown_ns} ns, the rung's key frame at {time_ns}, the playlist says {start_s} s")
                }));
            }
            Err(error) => faults.push(format!("entry {number}: {error:#}")),
        }
        start_s += f64::from(listed.duration);
    }
    let end_s = as_f64(rung.duration_ns().unsigned_abs()) / 1e9;
    faults.extend(unless((start_s - end_s).abs() < 1e-4, || format!("it lasts {start_s} s, the rung {end_s}")));
    faults
}

/// BANDWIDTH and AVERAGE-BANDWIDTH by the entries; CODECS and RESOLUTION as of the rung; no group.
fn attributes(list: &IFrames, rung: &Rendition) -> Vec<String> {
    // To the µs, as playlists have it.
    let entries = list.playlist.segments.iter().zip(&list.entries);
    let entries: Vec<(u64, u64)> = entries.map(|(listed, bytes)| (micros(listed.duration), bytes.len() as u64)).collect();
    let (peak, average) = (peak_of(&entries, 1_000_000, list.playlist.target_duration), average_of(&entries, 1e6));
    // By one µs of the shortest entry a rate may be off, where its writer knows more exact durations.
    let shortest = entries.iter().map(|(micros, _)| *micros).min().unwrap_or(1).max(1);
    let is_near = |said: f64, rate: f64| (said - rate).abs() <= SAME_BITRATE + rate / as_f64(shortest);
    let said = list.variant.average_bandwidth.map(as_f64);
    let size = match rung.track.kind {
        Kind::Video { width, height, .. } => Some((u64::from(width), u64::from(height))),
        Kind::Audio { .. } => None,
    };
    let codecs = list.variant.codecs.clone().unwrap_or_default();
    [
        unless(is_near(as_f64(list.variant.bandwidth), peak), || {
            format!("BANDWIDTH {}, by its bytes {peak}", list.variant.bandwidth)
        }),
        unless(said.is_some_and(|said| is_near(said, average)), || format!("AVERAGE-BANDWIDTH {said:?}, by its bytes {average}")),
        unless(codecs.eq_ignore_ascii_case(&rung.track.codecs), || format!("CODECS {codecs}")),
        unless(list.variant.resolution.map(|r| (r.width, r.height)) == size, || {
            format!("RESOLUTION {:?}, by the init segment {size:?}", list.variant.resolution)
        }),
        unless(list.variant.audio.is_none(), || "it has sound".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "durations of test media")]
fn micros(seconds: f32) -> u64 {
    (f64::from(seconds) * 1e6).round() as u64
}

/// Some entries, each by itself after the init segment: one picture each, without a word from the decoder.
fn decoded(list: &IFrames) -> Result<Vec<String>> {
    let step = list.entries.len().div_ceil(DECODED_MAX).max(1);
    let mut faults = Vec::new();
    for (number, entry) in list.entries.iter().enumerate().step_by(step) {
        let bytes = [&list.init[..], entry].concat();
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args([
            "-nostdin",
            "-v",
            "warning",
            "-i",
            "pipe:0",
            "-map",
            "0",
            "-f",
            "framecrc",
            "-fps_mode",
            "passthrough",
            "-",
        ]);
        let run = process::run_fed(&mut ffmpeg, TOOL_LIMIT, |input| input.write_all(&bytes))?;
        let pictures = run.text().lines().filter(|line| !line.starts_with('#')).count();
        let fine = run.status.success() && run.stderr.trim().is_empty() && pictures == 1;
        faults
            .extend(unless(fine, || format!("entry {number} alone: {pictures} pictures, {} {}", run.status, run.stderr.trim())));
    }
    Ok(faults)
}
