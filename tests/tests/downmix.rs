//! Sources of many channels come out in two, each channel as loud as ITU-R BS.775 has it against the others.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tests::{process, shoal};

const LIMIT: Duration = Duration::from_secs(60);
const RATE: usize = 48_000;
/// Samples in the middle of a second that are measured: whole periods of the tone.
const MEASURED: usize = RATE / 2;
/// The tone's amplitude in the source.
const AMPLITUDE: f64 = 0.5;
/// What is as good as silence, in dB against the tone.
const SILENCE_DB: f64 = -50.0;
const TOLERANCE_DB: f64 = 0.3;

/// -3 and -6 dB as weights.
const LOWER: f64 = std::f64::consts::FRAC_1_SQRT_2;
const LOWEST: f64 = 0.5;

/// Left and right of what comes of a source in which each channel sounds for a second, in order.
fn sides(folder: &Path, layout: &str, channels: usize) -> Result<[Vec<f64>; 2]> {
    let tone = |channel: usize| format!("{AMPLITUDE}*sin(2*PI*500*t)*between(t,{channel},{channel}.99999)");
    let tones = (0..channels).map(tone).collect::<Vec<_>>().join("|");
    decoded(folder, layout, &tones, channels)
}

fn decoded(folder: &Path, layout: &str, channels: &str, seconds: usize) -> Result<[Vec<f64>; 2]> {
    let (input, output) = (folder.join(format!("{layout}.wav")), folder.join(format!("{layout}-out")));
    let mut make = Command::new("ffmpeg");
    make.args(["-v", "error", "-f", "lavfi", "-i", &format!("aevalsrc=exprs='{channels}':c='{layout}':s={RATE}:d={seconds}")]);
    process::run(make.arg(&input), LIMIT)?.success()?;
    shoal::done(&input, &output, &[])?;
    let mut read = Command::new("ffmpeg");
    read.args(["-v", "error", "-copyts", "-i"]).arg(output.join("a0/index.m3u8"));
    // What lies before 0 is there for the decoder to warm up on.
    read.args(["-af", "atrim=start=0", "-f", "f32le", "pipe:1"]);
    let samples = process::run(&mut read, LIMIT)?.success()?.stdout;
    let samples: Vec<f64> = samples.as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect();
    Ok([0, 1].map(|side| samples.iter().skip(side).step_by(2).copied().collect()))
}

fn decibels(amplitude: f64) -> f64 {
    20.0 * amplitude.max(1e-9).log10()
}

/// How loud the tone is in one second of a side, against the source, in dB.
fn level_db(side: &[f64], second: usize) -> f64 {
    let from = second * RATE + (RATE - MEASURED) / 2;
    let power = side[from..from + MEASURED].iter().map(|sample| sample * sample).sum::<f64>() / MEASURED as f64;
    decibels((2.0 * power).sqrt() / AMPLITUDE)
}

/// Where the levels are not those of the weights, lowered so that they sum up to 1 on the louder side.
fn faults(layout: &str, weights: &[(f64, f64)]) -> Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    let sides = sides(folder.path(), layout, weights.len())?;
    let sum = weights.iter().map(|w| w.0).sum::<f64>().max(1.0);
    let mut faults = Vec::new();
    for (channel, &(left, right)) in weights.iter().enumerate() {
        for (side, weight) in sides.iter().zip([left, right]) {
            let (made_db, wanted_db) = (level_db(side, channel), decibels(weight / sum));
            let is_right = if weight == 0.0 { made_db < SILENCE_DB } else { (made_db - wanted_db).abs() < TOLERANCE_DB };
            if !is_right {
                faults.push(format!("{layout}, channel {channel}: {made_db:.2} dB instead of {wanted_db:.2}"));
            }
        }
    }
    Ok(faults)
}

#[test]
fn every_channel_has_its_weight_on_its_side() -> Result<()> {
    const LEFT: (f64, f64) = (1.0, 0.0);
    const RIGHT: (f64, f64) = (0.0, 1.0);
    const CENTRE: (f64, f64) = (LOWER, LOWER);
    const NOTHING: (f64, f64) = (0.0, 0.0);
    const SURROUND_LEFT: (f64, f64) = (LOWER, 0.0);
    const SURROUND_RIGHT: (f64, f64) = (0.0, LOWER);
    let mut found = Vec::new();
    found.extend(faults("5.1", &[LEFT, RIGHT, CENTRE, NOTHING, SURROUND_LEFT, SURROUND_RIGHT])?);
    found.extend(faults("5.1(side)", &[LEFT, RIGHT, CENTRE, NOTHING, SURROUND_LEFT, SURROUND_RIGHT])?);
    let seven = [LEFT, RIGHT, CENTRE, NOTHING, SURROUND_LEFT, SURROUND_RIGHT, SURROUND_LEFT, SURROUND_RIGHT];
    found.extend(faults("7.1", &seven)?);
    found.extend(faults("4.0", &[LEFT, RIGHT, CENTRE, (LOWEST, LOWEST)])?);
    found.extend(faults("stereo", &[LEFT, RIGHT])?);
    found.extend(faults("mono", &[(1.0, 1.0)])?);
    assert_eq!(found, Vec::<String>::new());
    Ok(())
}

#[test]
fn channels_that_all_sound_at_once_do_not_clip() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [left, right] = decoded(folder.path(), "7.1", &["0.99*sin(2*PI*500*t)"; 8].join("|"), 3)?;
    for side in [left, right] {
        let peak = side[RATE..2 * RATE].iter().fold(0.0_f64, |peak, sample| peak.max(sample.abs()));
        assert!((0.95..1.0).contains(&peak), "a peak of {peak}");
    }
    Ok(())
}
