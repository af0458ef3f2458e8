//! Edited videos: they have just the frames and samples that were asked for, each at its time, in every output, however the work
//! is cut up.

#[path = "montage/cuts.rs"]
mod cuts;
#[path = "montage/farms.rs"]
mod farms;
#[path = "montage/joins.rs"]
mod joins;
#[path = "montage/overlays.rs"]
mod overlays;
#[path = "montage/pictures.rs"]
mod pictures;
#[path = "montage/refusals.rs"]
mod refusals;
#[path = "montage/sounds.rs"]
mod sounds;
#[path = "montage/sources.rs"]
mod sources;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use farm::Rate;
use farm::rate::SECOND_NS;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::clip::Clip;
use tests::hls::Presentation;
use tests::reader::{self, Frame, Sound};
use tests::{process, rules, shoal};
use url::Url;

/// Longest wait for a tool that makes or reads a source.
const LIMIT: Duration = Duration::from_secs(60);
/// Width and height in pixels of the jobs' own videos, and so of what is made of them.
const SIZE: (u32, u32) = (320, 180);
/// One rung of that size, cut up as finely as GOPs allow.
const FLAGS: &[&str] = &["--ladder", "180", "--segment-seconds", "2"];
/// The same, as good as an encoder gets, so that what is off is not its doing.
const FINE: &[&str] = &["--ladder", r#"[{"height":180,"video":{"quality":1,"max_bitrate":40000000}}]"#, "--segment-seconds", "2"];
/// By how much a beep may come late or early: what telling its onset in lossy sound is exact to.
const BEEP_OFF_NS: i64 = 1_000_000;
/// By how much a frame's time may be off.
const FRAME_OFF_NS: i64 = 1_000_000;
/// Sound ends with a whole packet of AAC; of one at 44.1 kHz.
const PACKET_NS: i64 = 1024 * 1_000_000_000 / 44_100;
/// What is left of silence after an encoder, at most: -54 dB.
const SILENCE_MAX: f32 = 0.002;

/// A clip of that size with a key frame every 4 s: if nothing were edited its packets would be copied.
fn clip(rate: &str, seconds: u32) -> Clip {
    let clip = Clip::new(rate, seconds).size(320, 180);
    let gop = u32::try_from(clip.rate.nearest_frame(4 * SECOND_NS)).expect("a frame rate");
    Clip { gop, ..clip }
}

/// A file as a step names it.
fn at(file: &Path) -> Value {
    json!({ "url": Url::from_file_path(file).expect("an absolute path").as_str() })
}

/// Makes a file of another by `ffmpeg`, with what it is told before the input and after it.
fn remade(before: &[&str], input: &Path, after: &[&str], file: PathBuf) -> Result<PathBuf> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-y"]).args(before).arg("-i").arg(input).args(after).arg(&file);
    process::run(&mut ffmpeg, LIMIT)?.success().with_context(|| file.display().to_string())?;
    Ok(file)
}

/// A stretch of a result: what it shows, and when beeps begin in it.
struct Part {
    /// The number at each place of the result's grid.
    numbers: Vec<u32>,
    /// Where in the frame the picture is that carries them, if it does not fill it: left, top, width and height in pixels.
    within: Option<[u32; 4]>,
    /// Times of beeps, in ns after its start.
    beeps_ns: Vec<i64>,
}

impl Part {
    /// These frames of a clip of the result's own rate and shape, and their sound.
    fn of(clip: &Clip, frames: Range<u32>) -> Self {
        let start_ns = clip.start_ns(frames.start);
        let flashes = clip.flashes().into_iter().filter(|flash| clip.audio && frames.contains(flash));
        let beeps_ns = flashes.map(|flash| clip.start_ns(flash) - start_ns).collect();
        Self { numbers: frames.collect(), within: None, beeps_ns }
    }

    /// All of a clip that is brought to this rate, and into the frame: each place shows the frame that is nearest to it.
    fn joined(clip: &Clip, rate: Rate) -> Self {
        let places = 0..rate.nearest_frame(clip.duration_ns().cast_unsigned());
        let nearest = |place| u32::try_from(clip.rate.nearest_frame(rate.start_ns(place))).unwrap_or(u32::MAX);
        let flashes = clip.flashes().into_iter().filter(|_| clip.audio);
        Self {
            numbers: places.map(nearest).map(|number| number.min(clip.frames - 1)).collect(),
            within: Some(place_of(clip)),
            beeps_ns: flashes.map(|flash| clip.start_ns(flash)).collect(),
        }
    }

    /// The same with beeps at other times.
    fn beeping(self, beeps_ns: &[i64]) -> Self {
        Self { beeps_ns: beeps_ns.to_vec(), ..self }
    }
}

/// Where a clip's picture stands in the frame: as large as it can be in its own shape, in the middle. Left, top, width and height
/// in pixels.
fn place_of(clip: &Clip) -> [u32; 4] {
    let (frame, own) = ([SIZE.0, SIZE.1].map(f64::from), [clip.width as f64, clip.height as f64]);
    let scale = (frame[0] / own[0]).min(frame[1] / own[1]);
    let [width, height] = own.map(|side| side * scale);
    // Sides are even, and so are edges.
    let [width, height] = [width, height].map(|side| 2 * (side / 2.0).round() as u32);
    [((SIZE.0 - width) / 2) & !1, ((SIZE.1 - height) / 2) & !1, width, height]
}

/// What was made of an edited video. It is right by all rules.
struct Made {
    folder: TempDir,
    presentation: Presentation,
}

impl Made {
    /// Edits and transcodes, which must work.
    fn of(input: &Path, edit: &Value, flags: &[&str]) -> Result<Self> {
        let (folder, edit) = (tempfile::tempdir()?, edit.to_string());
        shoal::done(input, folder.path(), &[&["--edit", edit.as_str()][..], flags].concat())?;
        let mut faults = rules::faults(folder.path())?;
        // Where there are two layouts or plain files, the usual playlists do not lead to all there is.
        if flags.iter().any(|flag| ["--layout", "--mp4"].contains(flag)) {
            faults.retain(|fault| !fault.ends_with("is named by no playlist"));
        }
        ensure!(faults.is_empty(), "{edit}: {faults:#?}");
        Ok(Self { presentation: Presentation::read(folder.path())?, folder })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn report(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.file("report.json"))?)?)
    }

    fn sound(&self) -> Result<Sound> {
        reader::sound(&self.file("a0/index.m3u8"), "0:a:0")
    }

    /// What is wrong with it, if it should be these parts one after the other.
    fn faults(&self, rate: Rate, parts: &[Part]) -> Result<Vec<String>> {
        let sound = self.presentation.audios().next().map(|sound| sound.path.as_path());
        faults(&self.file("v180/index.m3u8"), sound, (rate, BEEP_OFF_NS), parts)
    }
}

/// What is wrong with a picture and the sound beside it, if they should be these parts one after the other: at this rate, with
/// beeps that are off by so much at most.
fn faults(picture: &Path, sound: Option<&Path>, (rate, off_ns_max): (Rate, i64), parts: &[Part]) -> Result<Vec<String>> {
    let wanted: usize = parts.iter().map(|part| part.numbers.len()).sum();
    let (mut faults, mut beeps_ns, mut start, mut first_ns) = (Vec::new(), Vec::new(), 0, 0);
    let mut seen: BTreeMap<Option<[u32; 4]>, Vec<Frame>> = BTreeMap::new();
    let start_ns = |place: usize| anyhow::Ok(i64::try_from(rate.start_ns(u64::try_from(place)?))?);
    for part in parts {
        let frames = match seen.entry(part.within) {
            Entry::Occupied(seen) => seen.into_mut(),
            Entry::Vacant(unseen) => unseen.insert(match part.within {
                Some(place) => reader::frames_in(picture, "0:v:0", place)?,
                None => reader::frames(picture, "0:v:0")?,
            }),
        };
        if frames.len() != wanted {
            return Ok(vec![format!("{} frames instead of {wanted}", frames.len())]);
        }
        first_ns = frames[0].time_ns;
        for (place, (frame, number)) in (start..).zip(frames[start..].iter().zip(&part.numbers)) {
            if frame.number != Ok(*number) {
                faults.push(format!("place {place} shows {:?} instead of {number}", frame.number));
            }
            let (shown_ns, due_ns) = (frame.time_ns - first_ns, start_ns(place)?);
            if (shown_ns - due_ns).abs() > FRAME_OFF_NS {
                faults.push(format!("place {place} is shown at {shown_ns} ns instead of {due_ns}"));
            }
        }
        let part_ns = start_ns(start)?;
        beeps_ns.extend(part.beeps_ns.iter().map(|beep| part_ns + beep));
        start += part.numbers.len();
    }
    faults.truncate(10);
    match sound {
        Some(sound) => {
            let sound = reader::sound(sound, "0:a:0")?;
            faults.extend(sound_faults(
                &Sound { start_ns: sound.start_ns - first_ns, ..sound },
                start_ns(wanted)?,
                off_ns_max,
                &beeps_ns,
            ));
        }
        None if !beeps_ns.is_empty() => faults.push("there is no sound".to_owned()),
        None => {}
    }
    Ok(faults)
}

/// What is wrong with sound that should last so long, with beeps at these times.
fn sound_faults(sound: &Sound, length_ns: i64, off_ns_max: i64, wanted_ns: &[i64]) -> Vec<String> {
    let heard_ns = sound.beeps_ns();
    let same = heard_ns.len() == wanted_ns.len()
        && heard_ns.iter().zip(wanted_ns).all(|(heard, wanted)| (heard - wanted).abs() <= off_ns_max);
    let end_ns = sound.time_ns(sound.samples.len());
    let beeps = (!same).then(|| format!("beeps at {heard_ns:?} ns instead of {wanted_ns:?}"));
    let end = ((end_ns - length_ns).abs() > PACKET_NS).then(|| format!("sound ends at {end_ns} ns instead of {length_ns}"));
    beeps.into_iter().chain(end).collect()
}

/// The samples of so many ns from a time on.
fn samples(sound: &Sound, from_ns: i64, length_ns: i64) -> Result<&[f32]> {
    let place = |ns: i64| {
        let samples = (i128::from(ns - sound.start_ns) * i128::from(sound.rate) + 500_000_000).div_euclid(1_000_000_000);
        usize::try_from(samples).context("before the first sample")
    };
    let (from, to) = (place(from_ns)?, place(from_ns + length_ns)?);
    sound.samples.get(from..to).with_context(|| format!("samples {from} to {to} of {}", sound.samples.len()))
}

/// By how many samples half a second of sound comes late that should be at `at_ns`, and stands at `from_ns` in its source.
fn late_samples(made: &Sound, at_ns: i64, source: &Sound, from_ns: i64) -> Result<i64> {
    const LENGTH_NS: i64 = 500_000_000;
    const OFF_SAMPLES_MAX: usize = 50;
    ensure!(made.rate == source.rate, "sound of {} Hz instead of {}", made.rate, source.rate);
    let margin_ns = 1_000_000_000 * i64::try_from(OFF_SAMPLES_MAX)? / i64::from(made.rate);
    let wanted = samples(source, from_ns, LENGTH_NS)?;
    let around = samples(made, at_ns - margin_ns, LENGTH_NS + 2 * margin_ns)?;
    let alike = |window: &[f32]| window.iter().zip(wanted).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let best = around.windows(wanted.len()).map(alike).enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
    Ok(i64::try_from(best.context("too short")?.0)? - i64::try_from(OFF_SAMPLES_MAX)?)
}

/// The loudest sample.
fn peak(samples: &[f32]) -> f32 {
    samples.iter().fold(0.0, |peak, sample| peak.max(sample.abs()))
}
