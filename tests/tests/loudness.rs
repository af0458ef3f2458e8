//! `--loudness ebu-r128`: loudness and peaks of what is heard, by an independent meter (ffmpeg's `ebur128`).

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::clip::Clip;
use tests::{check, corpus, process, rules, shoal};

const LIMIT: Duration = Duration::from_secs(120);
/// What is asked for, as EBU R 128 counts.
const TARGET_LUFS: f64 = -16.0;
const TOLERANCE_LU: f64 = 1.0;
const PEAK_DBTP_MAX: f64 = -1.5;
/// How far two meters may differ: ffmpeg prints tenths, and filters other than we do.
const METERS_DIFFER_DB: f64 = 0.25;
const FLAGS: [&str; 4] = ["--ladder", "240", "--loudness", "ebu-r128"];

/// Integrated loudness in LUFS and true peak in dB of full scale, by ffmpeg.
fn meter(input: &Path) -> Result<(f64, f64)> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-nostats", "-hide_banner", "-i"]).arg(input).args(["-map", "0:a:0", "-af", "ebur128=peak=true"]);
    let said = process::run(ffmpeg.args(["-f", "null", "-"]), LIMIT)?.success()?.stderr;
    let summary = said.rsplit("Summary:").next().context("no summary")?;
    let value = |name: &str| -> Result<f64> {
        let line = summary.lines().map(str::trim).find_map(|line| line.strip_prefix(name));
        let line = line.with_context(|| format!("no {name} in {summary}"))?;
        Ok(line.split_whitespace().next().context("no number")?.parse()?)
    };
    Ok((value("I:")?, value("Peak:")?))
}

/// What the report says of the first rendition of sound.
fn levelling(folder: &Path) -> Result<Value> {
    let report: Value = serde_json::from_slice(&fs::read(folder.join("report.json"))?)?;
    Ok(report["samples"][0]["account"]["levelling"].clone())
}

/// What is wrong with the loudness of what is made of a source; says what was measured.
fn faults(source: &Path) -> Result<Vec<String>> {
    let output = tempfile::tempdir()?;
    shoal::done(source, output.path(), &FLAGS)?;
    let mut faults = rules::faults(output.path())?;
    let name = source.file_name().unwrap_or_default().display().to_string();
    let ((before, _), (lufs, peak)) = (meter(source)?, meter(&output.path().join("a0/index.m3u8"))?);
    let told = levelling(output.path())?;
    corpus::say(&format!("{name}: {before} LUFS to {lufs} LUFS, {peak} dBTP; {told}"));
    if (lufs - TARGET_LUFS).abs() > TOLERANCE_LU {
        faults.push(format!("{lufs} LUFS"));
    }
    if peak > PEAK_DBTP_MAX {
        faults.push(format!("{peak} dBTP"));
    }
    let thousandths = |field: &str| told["result"][field].as_f64().map_or(f64::NAN, |number| number / 1000.0);
    for (told, measured) in [(thousandths("millilufs"), lufs), (thousandths("peak_millidbtp"), peak)] {
        if !(told - measured).abs().le(&METERS_DIFFER_DB) {
            faults.push(format!("the report says {told}, ffmpeg {measured}"));
        }
    }
    Ok(faults.into_iter().map(|fault| format!("{name}: {fault}")).collect())
}

/// Sound by an expression of ffmpeg's.
fn made(folder: &Path, name: &str, filter: &str) -> Result<std::path::PathBuf> {
    let file = folder.join(name);
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-f", "lavfi", "-i", filter]).arg(&file);
    process::run(&mut ffmpeg, LIMIT)?.success()?;
    Ok(file)
}

#[test]
fn soft_loud_and_spiky_sound_comes_to_one_loudness_without_passing_the_peak() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let make = |name, filter| made(folder.path(), name, filter);
    let sources = [
        make("soft.wav", "anoisesrc=color=pink:amplitude=0.01:d=20:r=48000:seed=1")?,
        make("loud.wav", "anoisesrc=color=white:amplitude=1:d=20:r=44100:seed=2")?,
        // Clicks of full scale over soft noise: peaks are in the way of any gain.
        make("spikes.wav", "aevalsrc='0.05*(random(0)-0.5)+0.95*between(mod(t,1),0,0.002)*sin(2*PI*1500*t)':d=20:s=48000")?,
        make("tone.wav", "aevalsrc='0.9*sin(2*PI*997*t)*between(mod(t,2),0,0.4)|0.1*sin(2*PI*440*t)':d=20:s=48000")?,
        make("mono.wav", "aevalsrc='0.3*sin(2*PI*300*t)*(0.6+0.4*sin(2*PI*0.5*t))':d=20:s=22050")?,
        make(
            "six.wav",
            "aevalsrc='0.2*sin(200*t)|0.2*sin(301*t)|0.5*sin(402*t)|0|0.1*sin(503*t)|0.1*sin(604*t)':c=5.1:d=20:s=48000",
        )?,
    ];
    let found = sources.iter().map(|source| faults(source)).collect::<Result<Vec<_>>>()?.concat();
    assert_eq!(found, Vec::<String>::new());
    Ok(())
}

#[test]
fn real_sound_comes_to_that_loudness() -> Result<()> {
    let Some(folder) = corpus::folder() else { return Ok(()) };
    let names = ["bbb_480p_30s.mp4", "sample.avi", "bear.flac", "bear-id3.mp3", "sample.mkv"];
    let found = names.iter().map(|name| faults(&folder.join(name))).collect::<Result<Vec<_>>>()?.concat();
    assert_eq!(found, Vec::<String>::new());
    Ok(())
}

#[test]
fn sound_stays_where_it_was_however_much_is_limited() -> Result<()> {
    let (clip, output) = (Clip::new("25", 20), tempfile::tempdir()?);
    shoal::done(clip.file()?, output.path(), &[&FLAGS[..], &["--layout", "single-file"]].concat())?;
    assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new());
    assert_eq!(check::sync_faults(output.path(), 0)?, Vec::<String>::new());
    assert_eq!(levelling(output.path())?["is_limited"], true);
    Ok(())
}

#[test]
fn silence_stays_silent_and_nothing_is_done_unasked() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = made(folder.path(), "silence.wav", "anullsrc=d=5")?;
    let output = folder.path().join("asked");
    shoal::done(&source, &output, &FLAGS)?;
    assert_eq!(levelling(&output)?["gain_millidb"], 0);
    assert_eq!(levelling(&output)?["result"]["millilufs"], Value::Null);
    let output = folder.path().join("not-asked");
    shoal::done(&source, &output, &[])?;
    assert_eq!(levelling(&output)?, Value::Null);
    Ok(())
}
