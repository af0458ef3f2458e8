//! What is heard is the source's sound: sample by sample at its time, as long, and as loud. Whatever encoders and decoders put
//! before and after it is taken off.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::{process, reader, shoal};

const LIMIT: Duration = Duration::from_secs(60);
/// Samples of an AAC packet: the result's end is rounded up to whole ones, and a source's own too.
const PACKET_SAMPLES: usize = 1024;
/// How late or early the result may be: a sample, since times are in whole ns and other rates have others in between.
const LAG_SAMPLES: i64 = 1;
/// By how many samples sound is looked for before and after its place.
const LAG_MAX: usize = 1500;
/// What is compared of the result, in samples: from one second on, four seconds.
const COMPARED: std::ops::Range<usize> = 48_000..240_000;
/// How loud the result may be against the source, in dB, where the source's codec loses nothing.
const LEVEL_DB: f64 = 0.2;
/// The same for a source that has lost something before: decoders differ in what they make of it.
const LOSSY_LEVEL_DB: f64 = 1.0;

/// A sound of its own at every instant, 7.123 s long: what the encoder is given.
fn original(rate: u32) -> String {
    format!("aevalsrc=0.25*sin(2*PI*(200*t+200*t*t))+0.05*sin(2*PI*(3100*t-100*t*t)):s={rate}:d=7.123")
}

fn source(folder: &Path, name: &str, rate: u32, encoder: &[&str]) -> Result<PathBuf> {
    let file = folder.join(name);
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-f", "lavfi", "-i", &original(rate)]).args(encoder).arg(&file);
    process::run(&mut ffmpeg, LIMIT)?.success().with_context(|| name.to_owned())?;
    Ok(file)
}

/// What `ffmpeg` hears in the first channel from time 0 on, at a rate.
fn heard(input: &[&OsStr], rate: u32) -> Result<Vec<f32>> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-copyts"]).args(input);
    // Before 0 lies what the decoder warms up on.
    ffmpeg.args(["-af", "atrim=start=0,pan=mono|c0=c0", "-ar", &rate.to_string(), "-f", "f32le", "pipe:1"]);
    let samples = process::run(&mut ffmpeg, LIMIT)?.success()?.stdout;
    Ok(samples.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect())
}

fn power(samples: &[f32]) -> f64 {
    samples.iter().map(|&sample| f64::from(sample).powi(2)).sum::<f64>() / samples.len() as f64
}

/// By how many samples `made` comes after `wanted`.
fn lag(made: &[f32], wanted: &[f32]) -> Result<i64> {
    let wanted = wanted.get(COMPARED).context("the source is too short")?;
    let alike = |start: usize| {
        let made = made.get(start..start + wanted.len())?;
        Some(made.iter().zip(wanted).step_by(3).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>())
    };
    let starts = COMPARED.start - LAG_MAX..=COMPARED.start + LAG_MAX;
    let best = starts.filter_map(|start| Some((start, alike(start)?))).max_by(|a, b| a.1.total_cmp(&b.1));
    Ok(i64::try_from(best.context("the result is too short")?.0)? - i64::try_from(COMPARED.start)?)
}

/// What is wrong with what is made of a source.
fn faults(source: &Path, rate: u32, level_db: f64) -> Result<Vec<String>> {
    let output = tempfile::tempdir()?;
    shoal::done(source, output.path(), &[])?;
    let playlist = output.path().join("a0/index.m3u8");
    let made_rate = reader::sound(&playlist, "0:a:0")?.rate;
    let made = heard(&["-i".as_ref(), playlist.as_ref()], made_rate)?;
    let original = original(rate);
    let wanted = heard(&["-f".as_ref(), "lavfi".as_ref(), "-i".as_ref(), original.as_ref()], made_rate)?;
    let mut faults = Vec::new();
    let lag = lag(&made, &wanted)?;
    if lag.abs() > LAG_SAMPLES {
        faults.push(format!("{lag} samples late"));
    }
    if made.len() + PACKET_SAMPLES < wanted.len() || made.len() > wanted.len() + PACKET_SAMPLES {
        faults.push(format!("{} samples of {}", made.len(), wanted.len()));
    }
    // The original is as loud at its end as anywhere.
    let end = wanted.len().min(made.len()) - PACKET_SAMPLES;
    let stretch = |samples: &[f32], to: usize| 10.0 * power(&samples[to - PACKET_SAMPLES..to]).log10();
    let (made_end_db, wanted_end_db) = (stretch(&made, end), stretch(&wanted, end));
    if (made_end_db - wanted_end_db).abs() > 3.0 {
        faults.push(format!("{made_end_db:.1} dB at the end instead of {wanted_end_db:.1}"));
    }
    let gain_db = 10.0 * (power(&made[COMPARED]) / power(&wanted[COMPARED])).log10();
    if gain_db.abs() > level_db {
        faults.push(format!("{gain_db:+.2} dB"));
    }
    Ok(faults)
}

#[test]
fn every_sample_of_every_codec_at_its_time() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut found = Vec::new();
    for (name, rate, encoder, level_db) in [
        ("s16-48000.wav", 48_000, &["-c:a", "pcm_s16le"][..], LEVEL_DB),
        ("s16-11025.wav", 11_025, &["-c:a", "pcm_s16le"], LEVEL_DB),
        // Of these the samples take an odd number of bytes.
        ("u8-11025.wav", 11_025, &["-c:a", "pcm_u8", "-af", "atrim=end_sample=78531"], LOSSY_LEVEL_DB),
        ("f32-96000.wav", 96_000, &["-c:a", "pcm_f32le"], LEVEL_DB),
        ("mulaw-8000.wav", 8_000, &["-c:a", "pcm_mulaw"], LOSSY_LEVEL_DB),
        ("flac-44100.flac", 44_100, &[], LEVEL_DB),
        ("flac-192000.flac", 192_000, &["-sample_fmt", "s32"], LEVEL_DB),
        ("alac-44100.m4a", 44_100, &["-c:a", "alac"], LEVEL_DB),
        ("opus.opus", 48_000, &["-c:a", "libopus"], LOSSY_LEVEL_DB),
        ("opus.webm", 48_000, &["-c:a", "libopus"], LOSSY_LEVEL_DB),
        ("vorbis.ogg", 44_100, &["-c:a", "libvorbis"], LOSSY_LEVEL_DB),
        ("mp3-44100.mp3", 44_100, &["-c:a", "libmp3lame"], LOSSY_LEVEL_DB),
        ("mp3-48000-stereo.mp3", 48_000, &["-c:a", "libmp3lame", "-af", "pan=stereo|c0=c0|c1=c0"], LOSSY_LEVEL_DB),
        ("mp3-22050.mp3", 22_050, &["-c:a", "libmp3lame"], LOSSY_LEVEL_DB),
        ("aac-44100.m4a", 44_100, &["-c:a", "aac"], LOSSY_LEVEL_DB),
        ("aac-48000.m4a", 48_000, &["-c:a", "aac"], LOSSY_LEVEL_DB),
        (
            "aac.mp4",
            48_000,
            &["-c:a", "aac", "-movflags", "frag_keyframe+delay_moov", "-frag_duration", "1000000"],
            LOSSY_LEVEL_DB,
        ),
    ] {
        let source = source(folder.path(), name, rate, encoder)?;
        match faults(&source, rate, level_db) {
            Ok(faults) => found.extend(faults.into_iter().map(|fault| format!("{name}: {fault}"))),
            Err(error) => found.push(format!("{name}: {error:#}")),
        }
    }
    assert_eq!(found, Vec::<String>::new());
    Ok(())
}
