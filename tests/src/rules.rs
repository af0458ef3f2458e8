//! What must hold of every HLS presentation, checked against its bytes: RFC 8216, CMAF, and Shoal's own media contract.
//!
//! [`faults`] lists what does not hold, in words; a right presentation has none.

mod i_frames;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use m3u8_rs::{MediaPlaylist, MediaPlaylistType, VariantStream};

use crate::hls::{Presentation, Rendition, Segment};
use crate::mp4::Kind;
use crate::{process, stills, text};

/// How far two times may be apart that should be the same, in ns: less than a tick of any time scale used.
const SAME_NS: i64 = 100_000;
/// How far a bit rate may be from what it should be, in bit/s: durations in playlists are rounded.
const SAME_BITRATE: f64 = 2.0;
const TOOL_LIMIT: Duration = Duration::from_secs(300);

/// Everything that is wrong with the presentation in a folder. Nothing else may be in the folder but `report.json` and the
/// state of a job that runs.
///
/// # Errors
/// When it cannot even be read, or `ffmpeg` or `ffprobe` cannot be run.
pub fn faults(folder: &Path) -> Result<Vec<String>> {
    let presentation = Presentation::read(folder)?;
    let mut faults = Vec::new();
    for rendition in &presentation.renditions {
        let found = [playlist(rendition), samples(rendition), tables(rendition)].concat();
        faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", rendition.uri)));
    }
    faults.extend(alignment(&presentation));
    faults.extend(multivariant(&presentation)?);
    faults.extend(i_frames::faults(&presentation)?);
    faults.extend(texts(&presentation));
    faults.extend(strangers(&presentation)?);
    // Players wait for ever at a playlist without an end, and the like: only what is right so far is given to them.
    if faults.is_empty() {
        faults.extend(tools(&presentation)?);
    }
    Ok(faults)
}

/// A fault, if it is one.
fn unless(holds: bool, fault: impl FnOnce() -> String) -> Option<String> {
    (!holds).then(fault)
}

fn playlist(rendition: &Rendition) -> Vec<String> {
    let mut faults = headers(&rendition.playlist);
    for (number, segment) in rendition.segments.iter().enumerate() {
        let true_s = as_f64(segment.ticks()) / f64::from(rendition.track.timescale);
        // The parser keeps durations as f32, which is exact to 2 µs below 32 s.
        let listed = (segment.extinf_s - true_s).abs() < 4e-6;
        faults.extend(unless(listed, || format!("segment {number} lasts {true_s} s, EXTINF says {}", segment.extinf_s)));
    }
    faults
}

/// What holds of every media playlist.
fn headers(playlist: &MediaPlaylist) -> Vec<String> {
    let longest = playlist.segments.iter().map(|segment| segment.duration).fold(0.0, f32::max);
    let target = f64::from(longest).round();
    [
        unless(playlist.version == Some(7), || format!("version {:?} instead of 7", playlist.version)),
        unless(playlist.end_list, || "no EXT-X-ENDLIST".to_owned()),
        unless(playlist.playlist_type == Some(MediaPlaylistType::Vod), || "not EXT-X-PLAYLIST-TYPE:VOD".to_owned()),
        unless(playlist.media_sequence == 0, || format!("media sequence {}", playlist.media_sequence)),
        unless(as_f64(playlist.target_duration) == target.max(1.0), || {
            format!("target duration {}, the longest segment lasts {longest} s", playlist.target_duration)
        }),
        unless(!playlist.segments.iter().any(|segment| segment.discontinuity), || "a discontinuity".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Decoding times without gap across all segments, key frames where segments begin, and what the tables say of key frames
/// true by the bytes.
fn samples(rendition: &Rendition) -> Vec<String> {
    let mut faults = Vec::new();
    let mut next_dts = rendition.samples().next().map_or(0, |first| first.dts);
    for (number, segment) in rendition.segments.iter().enumerate() {
        faults.extend(unless(segment.samples.first().is_some_and(|s| s.idr && s.sync), || {
            format!("segment {number} begins with no IDR")
        }));
        for sample in &segment.samples {
            if sample.dts != next_dts {
                faults.push(format!("segment {number}: decode time jumps from {next_dts} to {}", sample.dts));
            }
            // A key frame that is copied and begins no GOP of the grid is not called one.
            if sample.sync && !sample.idr {
                faults.push(format!("segment {number}: sample at {} is no IDR but called sync", sample.dts));
            }
            if sample.pts < sample.dts {
                faults.push(format!("segment {number}: composition offset below 0 at {}", sample.dts));
            }
            next_dts = sample.dts + i64::from(sample.duration);
        }
        // A closed GOP: nothing of this segment is shown before its first frame or after the next segment's.
        let first = segment.samples.first().map_or(0, |sample| sample.pts);
        let end = first + segment.ticks().cast_signed();
        let inside = segment.samples.iter().all(|sample| (first..end).contains(&sample.pts));
        faults.extend(unless(inside, || format!("segment {number} shows frames outside its time")));
    }
    faults.truncate(10);
    faults
}

/// Presentation begins at 0 by the edit list, and pictures stand on an even grid.
fn tables(rendition: &Rendition) -> Vec<String> {
    let order = rendition.presentation_order();
    let Some(&first) = order.first() else { return Vec::new() };
    let first_ns = rendition.track.presented_ns(first);
    if !rendition.is_video() {
        // Packets of priming come before 0; sound that is heard begins there.
        return unless(first_ns <= 0, || format!("sound begins at {first_ns} ns")).into_iter().collect();
    }
    let steps: Vec<i64> = order.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let even = steps.iter().all(|step| Some(step) == steps.first());
    let mut faults: Vec<_> =
        unless(first_ns.abs() < SAME_NS, || format!("the first frame is shown at {first_ns} ns")).into_iter().collect();
    faults.extend(unless(even, || "frames are not at a constant rate".to_owned()));
    faults
}

/// Key frames at the same times in every rung, and the same lead of media time in every track, so that readers that look
/// at edit lists and readers that do not agree.
fn alignment(presentation: &Presentation) -> Vec<String> {
    let mut faults = Vec::new();
    let lead_ns = |rendition: &Rendition| rendition.track.ns(rendition.track.media_time);
    let Some(first) = presentation.renditions.first() else { return vec!["no renditions".to_owned()] };
    for rendition in &presentation.renditions {
        let (lead, wanted) = (lead_ns(rendition), lead_ns(first));
        faults.extend(unless((lead - wanted).abs() < SAME_NS, || {
            format!("{} leads by {lead} ns, {} by {wanted}", rendition.name(), first.name())
        }));
    }
    let key_times = first.key_times_ns();
    for rung in presentation.videos() {
        let times = rung.key_times_ns();
        let same = times.len() == key_times.len() && times.iter().zip(&key_times).all(|(a, b)| (a - b).abs() < SAME_NS);
        faults.extend(unless(same, || format!("{}: key frames are not where those of {} are", rung.name(), first.name())));
        let starts = |rendition: &Rendition| {
            rendition.segments.iter().map(Segment::ticks).map(|t| rendition.track.ns(t.cast_signed())).collect::<Vec<_>>()
        };
        let (lasts, wanted) = (starts(rung), starts(first));
        // The last one may end half a frame of the lower rate later.
        let same = lasts.len() == wanted.len() && lasts.iter().zip(&wanted).rev().skip(1).all(|(a, b)| (a - b).abs() < SAME_NS);
        faults.extend(unless(same, || format!("{}: segments are not cut where those of {} are", rung.name(), first.name())));
    }
    faults
}

fn multivariant(presentation: &Presentation) -> Result<Vec<String>> {
    let master = &presentation.master;
    let mut faults: Vec<_> = [
        unless(master.version == Some(7), || format!("master.m3u8: version {:?} instead of 7", master.version)),
        unless(master.independent_segments, || "master.m3u8: no EXT-X-INDEPENDENT-SEGMENTS".to_owned()),
        unless(!master.variants.is_empty(), || "master.m3u8: no variants".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect();
    for variant in master.variants.iter().filter(|variant| !variant.is_i_frame) {
        let (own, sounds) = presentation.renditions_of(variant);
        let Some(own) = own else { continue };
        let found = [bandwidths(variant, own, &sounds), attributes(variant, own, &sounds)?].concat();
        faults.extend(found.into_iter().map(|fault| format!("variant {}: {fault}", variant.uri)));
        let group_exists = variant.audio.is_none() || !sounds.is_empty();
        faults.extend(unless(group_exists, || format!("variant {}: audio group without renditions", variant.uri)));
    }
    for media in &master.alternatives {
        let defaults = master.alternatives.iter().filter(|other| other.group_id == media.group_id && other.default).count();
        // Nobody is shown text without having asked for it.
        let wanted = usize::from(!text::Rendition::is_one(media));
        faults.extend(unless(defaults == wanted, || format!("group {}: {defaults} defaults", media.group_id)));
        let names =
            master.alternatives.iter().filter(|other| other.group_id == media.group_id && other.name == media.name).count();
        faults.extend(unless(names == 1, || format!("group {}: the name {} twice", media.group_id, media.name)));
    }
    Ok(faults)
}

/// BANDWIDTH and AVERAGE-BANDWIDTH against the definitions of RFC 8216, 4.1 and 4.3.4.2.
fn bandwidths(variant: &VariantStream, own: &Rendition, sounds: &[&Rendition]) -> Vec<String> {
    let largest = |of: fn(&Rendition) -> f64| sounds.iter().filter(|s| s.uri != own.uri).map(|s| of(s)).fold(0.0, f64::max);
    let peak = peak_bitrate(own) + largest(peak_bitrate);
    let average = average_bitrate(own) + largest(average_bitrate);
    let said = variant.average_bandwidth.map(as_f64);
    [
        unless((as_f64(variant.bandwidth) - peak).abs() <= SAME_BITRATE, || {
            format!("BANDWIDTH {}, by its bytes {peak}", variant.bandwidth)
        }),
        unless(said.is_some_and(|said| (said - average).abs() <= SAME_BITRATE), || {
            format!("AVERAGE-BANDWIDTH {said:?}, by its bytes {average}")
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The largest bit rate of any contiguous set of segments whose total duration is between 0.5 and 1.5 times the target
/// duration, in bit/s; of the whole rendition when there is no such set.
fn peak_bitrate(rendition: &Rendition) -> f64 {
    let entries: Vec<(u64, u64)> = rendition.segments.iter().map(|s| (s.ticks(), s.bytes.len() as u64)).collect();
    peak_of(&entries, rendition.track.timescale, rendition.playlist.target_duration)
}

/// The same of entries of which each has its ticks and its bytes.
fn peak_of(entries: &[(u64, u64)], timescale: u32, target_duration: u64) -> f64 {
    let (target, timescale) = (as_f64(target_duration), f64::from(timescale));
    let mut peak: Option<f64> = None;
    for start in 0..entries.len() {
        let (mut bits, mut ticks) = (0, 0);
        for (entry_ticks, entry_bytes) in &entries[start..] {
            bits += 8 * entry_bytes;
            ticks += entry_ticks;
            let seconds = as_f64(ticks) / timescale;
            if seconds > 1.5 * target {
                break;
            }
            if seconds >= 0.5 * target {
                peak = Some(peak.unwrap_or(0.0).max(as_f64(bits) / seconds));
            }
        }
    }
    peak.unwrap_or_else(|| average_of(entries, timescale))
}

/// All bits of the media segments over their duration, in bit/s.
fn average_bitrate(rendition: &Rendition) -> f64 {
    let entries: Vec<(u64, u64)> = rendition.segments.iter().map(|s| (s.ticks(), s.bytes.len() as u64)).collect();
    average_of(&entries, f64::from(rendition.track.timescale))
}

fn average_of(entries: &[(u64, u64)], timescale: f64) -> f64 {
    let (ticks, bytes) = entries.iter().fold((0, 0), |sum, entry| (sum.0 + entry.0, sum.1 + entry.1));
    8.0 * as_f64(bytes) * timescale / as_f64(ticks)
}

/// CODECS, RESOLUTION and FRAME-RATE against init segments, tables, and what a decoder gives out.
fn attributes(variant: &VariantStream, own: &Rendition, sounds: &[&Rendition]) -> Result<Vec<String>> {
    let mut wanted: Vec<&str> = std::iter::once(own).chain(sounds.iter().copied()).map(|r| r.track.codecs.as_str()).collect();
    wanted.dedup();
    let said = variant.codecs.clone().unwrap_or_default();
    let mut faults: Vec<_> =
        // The hexadecimal digits of `avc1.64001E` may be of either case.
        unless(said.to_ascii_lowercase().split(',').eq(wanted.iter().copied()), || format!("CODECS {said}, by the init segments {wanted:?}"))
            .into_iter()
            .collect();
    let Kind::Video { width, height, .. } = own.track.kind else {
        faults.extend(unless(variant.resolution.is_none(), || "RESOLUTION of sound".to_owned()));
        return Ok(faults);
    };
    let size = format!("{width}x{height}");
    let said = variant.resolution.map(|r| format!("{}x{}", r.width, r.height));
    faults.extend(unless(said.as_ref() == Some(&size), || format!("RESOLUTION {said:?}, by the init segment {size}")));
    let mut ffprobe = Command::new("ffprobe");
    ffprobe.args([
        "-v",
        "error",
        "-select_streams",
        "v:0",
        "-show_entries",
        "stream=width,height,sample_aspect_ratio,pix_fmt",
        "-of",
        "csv=p=0:s=x",
    ]);
    let decoded = process::run(ffprobe.arg(&own.path), TOOL_LIMIT)?.success()?.text();
    let decoded = decoded.lines().next().unwrap_or_default().trim().to_owned();
    let square = [format!("{size}x1:1xyuv420p"), format!("{size}xN/Axyuv420p")].contains(&decoded);
    faults.extend(unless(square, || format!("decoded as {decoded} instead of {size}, square, 8-bit 4:2:0")));
    let (samples, ticks) = (own.samples().count() as u64, own.segments.iter().map(Segment::ticks).sum::<u64>());
    let rate = as_f64(samples) * f64::from(own.track.timescale) / as_f64(ticks);
    let said = variant.frame_rate;
    faults.extend(unless(said.is_some_and(|said| (said - rate).abs() <= 0.0006), || {
        format!("FRAME-RATE {said:?}, by the tables {rate}")
    }));
    Ok(faults)
}

/// Renditions of text: as long as the rest, named by every variant, cues where they are shown.
fn texts(presentation: &Presentation) -> Vec<String> {
    let mut faults = Vec::new();
    let longest_ns = presentation.renditions.iter().map(Rendition::duration_ns).max().unwrap_or(0);
    for text in &presentation.texts {
        let found = [headers(&text.playlist), text.faults()].concat();
        faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", text.path.display())));
        let seconds: f64 = text.playlist.segments.iter().map(|segment| f64::from(segment.duration)).sum();
        // Sound has a packet of priming, and may have one at its end.
        let as_long = (seconds - longest_ns as f64 / 1e9).abs() < 0.1;
        faults.extend(unless(as_long, || format!("{} lasts {seconds} s", text.path.display())));
    }
    let group = presentation.texts.first().map(|text| text.media.group_id.clone());
    let variants = presentation.master.variants.iter().filter(|variant| !variant.is_i_frame);
    let others = variants.filter(|variant| variant.subtitles != group);
    faults.extend(others.map(|variant| format!("{} names SUBTITLES {:?}", variant.uri, variant.subtitles)));
    faults
}

/// Files that no playlist leads to.
fn strangers(presentation: &Presentation) -> Result<Vec<String>> {
    let stills = stills::files(&presentation.folder)?;
    let known = |file: &Path| {
        let by_name = ["master.m3u8", "report.json"].iter().any(|name| file == presentation.folder.join(name));
        let of_rendition = presentation.renditions.iter().any(|r| r.path == file || r.files.contains(file));
        let of_text = presentation.texts.iter().any(|t| t.path == file || t.segments.iter().any(|(segment, _)| segment == file));
        by_name || of_rendition || of_text || stills.contains(file) || presentation.i_frames.iter().any(|list| list.path == file)
    };
    let files = files_below(&presentation.folder)?;
    Ok(files.iter().filter(|file| !known(file)).map(|file| format!("{} is named by no playlist", file.display())).collect())
}

/// Every file below a folder, but for the state that lies in `.shoal` while a job runs; none when there is no folder.
///
/// # Errors
/// When a folder cannot be read.
pub fn files_below(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    if !folder.is_dir() {
        return Ok(files);
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == ".shoal" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// `ffprobe` and `ffmpeg` read the multivariant and every media playlist to the end and have nothing to say.
fn tools(presentation: &Presentation) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let media = presentation.renditions.iter().map(|rendition| rendition.path.clone());
    for path in std::iter::once(presentation.folder.join("master.m3u8")).chain(media) {
        let mut ffprobe = Command::new("ffprobe");
        ffprobe.args(["-v", "warning", "-show_streams", "-show_format"]).arg(&path);
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-nostdin", "-v", "warning", "-i"]).arg(&path).args(["-map", "0", "-f", "null", "-"]);
        for tool in [&mut ffprobe, &mut ffmpeg] {
            let run = process::run(tool, TOOL_LIMIT)?;
            let name = tool.get_program().to_string_lossy().into_owned();
            // It reads no text of playlists, and says so of each.
            let lines = run.stderr.lines().filter(|line| !line.contains("Can't support the subtitle"));
            let said = lines.collect::<Vec<_>>().join("\n");
            let fine = run.status.success() && said.is_empty();
            faults.extend(unless(fine, || format!("{name} on {}: {} {said}", path.display(), run.status)));
        }
    }
    Ok(faults)
}

#[expect(clippy::cast_precision_loss, reason = "sizes and ticks of test media are far below 2^52")]
fn as_f64(number: u64) -> f64 {
    number as f64
}
