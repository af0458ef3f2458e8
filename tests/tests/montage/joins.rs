//! Other videos before and after: scaled into the frame, brought to its rate, with their sound or silence; and one result,
//! however the work is cut up.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use tests::clip::Clip;

use super::pictures::{self, Picture, rectangle_fault};
use super::{BEEP_OFF_NS, FINE, FLAGS, Made, Part, SILENCE_MAX, SIZE, at, clip, faults, peak, place_of, remade, samples};

/// Luma by which decoded pictures may be off that should be the same, on average.
const OFF_MAX: f64 = 1.0;
/// Code values of black, and how far an encoder may be from them.
const BLACK: [u8; 3] = [16, 128, 128];
const BLACK_OFF_MAX: u8 = 4;
/// Luma that is surely not black; clips are drawn from 40 on.
const LIT: u8 = 28;

/// An upright clip of twice the frames per second.
fn upright() -> Clip {
    Clip::new("50", 2).size(180, 320)
}

/// A wide clip of another rate.
fn wide() -> Clip {
    Clip::new("30000/1001", 2).size(320, 136)
}

/// The wide clip with its sound in one channel at another rate.
fn wide_file(folder: &Path) -> Result<PathBuf> {
    let sound = ["-c:v", "copy", "-c:a", "pcm_s16le", "-ac", "1", "-ar", "44100"];
    remade(&[], &wide().file()?, &sound, folder.join("wide.mov"))
}

fn decoded(made: &Made) -> Result<Vec<Picture>> {
    pictures::decoded(&made.file("v180/index.m3u8"), SIZE)
}

/// What is wrong with a picture that should be a clip's, with black around it.
fn border_faults(picture: &Picture, clip: &Clip) -> Vec<String> {
    let place = place_of(clip);
    let edges = rectangle_fault(picture.bounds(|[luma, ..]| luma > LIT), place);
    let off = picture.off_outside(place, BLACK);
    edges.into_iter().chain((off > BLACK_OFF_MAX).then(|| format!("borders are off black by {off}"))).collect()
}

#[test]
fn other_videos_come_into_the_frame_at_its_rate_and_leave_the_main_one_as_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (main, small) = (clip("25", 4), Clip { audio: false, ..Clip::new("25", 2).size(160, 120) });
    let wide_file = wide_file(folder.path())?;
    let edit = json!([{"before": at(&upright().file()?)}, {"after": at(&wide_file)}, {"after": at(&small.file()?)}]);
    let made = Made::of(&main.file()?, &edit, FINE)?;
    let joined = |clip: &Clip| Part::joined(clip, main.rate);
    let parts = [joined(&upright()), Part::of(&main, 0..100), joined(&wide()), joined(&small)];
    let lengths: Vec<usize> = parts.iter().map(|part| part.numbers.len()).collect();
    assert_eq!(lengths, [50, 100, 50, 50]);
    assert_eq!(made.faults(main.rate, &parts)?, Vec::<String>::new());
    let pictures = decoded(&made)?;
    for (start, clip) in [(0, upright()), (150, wide()), (200, small)] {
        for number in [start, start + 25, start + 49] {
            assert_eq!(border_faults(&pictures[number], &clip), Vec::<String>::new(), "frame {number}");
        }
    }
    let own = pictures::decoded(&main.file()?, SIZE)?;
    for (number, (made, own)) in pictures[50..150].iter().zip(&own).enumerate() {
        let off = made.off(own);
        assert!(off < OFF_MAX, "frame {number} of the main video is off by {off}");
    }
    // The clip without sound stands from 8 s to the end.
    let sound = made.sound()?;
    let (silent, before) = (samples(&sound, 8_050_000_000, 1_900_000_000)?, samples(&sound, 6_000_000_000, 1_950_000_000)?);
    assert!(peak(silent) < SILENCE_MAX, "{} where nothing should be heard", peak(silent));
    assert!(peak(before) > 0.3, "{} where beeps should be heard", peak(before));
    Ok(())
}

#[test]
fn what_comes_before_and_after_is_cut_by_later_steps_alone() -> Result<()> {
    let (main, other) = (clip("25", 4), clip("25", 2));
    let (source, cut) = (at(&other.file()?), json!({"keep": {"from": 1, "to": 3}}));
    let taken_out = json!({"remove": [{"from": 0, "to": 1}, {"from": 5, "to": 7}]});
    for (edit, parts) in [
        (json!([cut, {"before": source}, {"after": source}]), [(&other, 0..50), (&main, 25..75), (&other, 0..50)].to_vec()),
        (json!([{"before": source}, cut]), [(&other, 25..50), (&main, 0..25)].to_vec()),
        (
            json!([{"after": source}, {"before": source}, taken_out]),
            [(&other, 25..50), (&main, 0..75), (&other, 25..50)].to_vec(),
        ),
    ] {
        let parts: Vec<Part> = parts.into_iter().map(|(clip, frames)| Part::of(clip, frames)).collect();
        let made = Made::of(&main.file()?, &edit, FLAGS)?;
        assert_eq!(made.faults(main.rate, &parts)?, Vec::<String>::new(), "{edit}");
    }
    Ok(())
}

/// Some of everything, and what it should come to: 277 frames.
fn everything(folder: &Path, main: &Clip) -> Result<(Value, Vec<Part>)> {
    // Below the bar code.
    let logo = pictures::still(folder, "logo.png", (40, 20), |x, _| [250, 200, 0, if x < 20 { 255 } else { 128 }])?;
    let edit = json!([
        {"remove": [{"from": 1, "to": 1.52}, {"from": 3.2, "to": 3.6}]},
        {"overlay": {"source": at(&logo), "height": 0.2, "right": 0.1, "top": 0.6}},
        {"before": at(&upright().file()?)},
        {"after": at(&wide_file(folder)?)},
    ]);
    let rate = main.rate;
    let kept = [0..25, 38..80, 90..200].map(|frames| Part::of(main, frames));
    let (before, after) = (Part::joined(&upright(), rate), Part::joined(&wide(), rate));
    Ok((edit, [before].into_iter().chain(kept).chain([after]).collect()))
}

#[test]
fn cutting_the_work_up_changes_neither_pictures_nor_sound() -> Result<()> {
    let (folder, main) = (tempfile::tempdir()?, clip("25", 8));
    let (edit, parts) = everything(folder.path(), &main)?;
    let of = |flags: &[&str], chunks: u32| -> Result<Made> {
        let made = Made::of(&main.file()?, &edit, &[FINE, flags].concat())?;
        assert_eq!(made.report()?["grid"]["chunks"], chunks, "{flags:?}");
        assert_eq!(made.faults(main.rate, &parts)?, Vec::<String>::new(), "{flags:?}");
        Ok(made)
    };
    let whole = of(&["--chunk-seconds", "3600", "--slots", "1"], 1)?;
    let cut = of(&["--chunk-seconds", "2", "--slots", "3"], 6)?;
    for (number, (a, b)) in decoded(&whole)?.iter().zip(&decoded(&cut)?).enumerate() {
        let off = a.off(b);
        assert!(off < OFF_MAX, "frame {number} is off by {off}");
    }
    let (whole, cut) = (whole.presentation.rendition("a0")?, cut.presentation.rendition("a0")?);
    let same = whole.segments.iter().zip(&cut.segments).all(|(a, b)| a.bytes == b.bytes);
    assert!(same && whole.segments.len() == cut.segments.len(), "the sound is another");
    Ok(())
}

/// Samples of ten periods.
const WINDOW: usize = 480;
/// Phase in radians by which a tone may be off: one sample at 48 kHz is 0.13.
const PHASE_OFF_MAX: f64 = 0.03;
/// What is not the tone, against its amplitude.
const REST_MAX: f64 = 0.01;

/// By how much a tone of 1 kHz in samples at 48 kHz is off the phase of a sine that begins with them; its amplitude; and the
/// mean of what is not the tone.
fn tone(samples: &[f32]) -> (f64, f64, f64) {
    let turn = |n: usize| (std::f64::consts::TAU * n as f64 / 48.0).sin_cos();
    let (mut sine, mut cosine) = (0.0, 0.0);
    for (n, sample) in samples.iter().enumerate() {
        let (sin, cos) = turn(n);
        sine += sin * f64::from(*sample) * 2.0 / samples.len() as f64;
        cosine += cos * f64::from(*sample) * 2.0 / samples.len() as f64;
    }
    let rest = samples.iter().enumerate().map(|(n, sample)| {
        let (sin, cos) = turn(n);
        (f64::from(*sample) - sine * sin - cosine * cos).powi(2)
    });
    (cosine.atan2(sine), sine.hypot(cosine), (rest.sum::<f64>() / samples.len() as f64).sqrt())
}

/// All cut points are whole periods of the tone away from each other: joined to the sample it is one tone throughout, over the
/// edges of clips, segments and chunks.
#[test]
fn a_tone_goes_on_over_every_edge() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let silent = Clip { audio: false, ..clip("25", 5) };
    let sine = "aevalsrc=0.4*sin(2*PI*1000*t)|0.4*sin(2*PI*1000*t):s=48000:d=5";
    let tones = ["-f", "lavfi", "-i", sine, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "pcm_s16le"];
    let source = remade(&[], &silent.file()?, &tones, folder.path().join("tone.mov"))?;
    let edit = json!([
        {"remove": [{"from": 1, "to": 1.52}, {"from": 3.04, "to": 3.4}]}, {"before": at(&source)}, {"after": at(&source)},
    ]);
    let made = Made::of(&source, &edit, &[FLAGS, &["--chunk-seconds", "2", "--slots", "3"]].concat())?;
    let parts = [0..125, 0..25, 38..76, 85..125, 0..125].map(|frames| Part::of(&silent, frames));
    // The tone is no beep.
    assert_eq!(faults(&made.file("v180/index.m3u8"), None, (silent.rate, BEEP_OFF_NS), &parts)?, Vec::<String>::new());
    let sound = made.sound()?;
    assert_eq!(sound.rate, 48_000);
    // At both ends of all there is nothing to go on from or to.
    let heard = samples(&sound, 100_000_000, 13_920_000_000)?;
    let (_, loud, _) = tone(&heard[..48_000]);
    let found: Vec<String> = heard
        .chunks_exact(WINDOW)
        .map(tone)
        .enumerate()
        .filter(|(_, (off, amplitude, rest))| {
            off.abs() > PHASE_OFF_MAX || (amplitude / loud - 1.0).abs() > 0.03 || *rest > REST_MAX * loud
        })
        .map(|(window, seen)| format!("at {} ms: {seen:.4?}", 100 + 10 * window))
        .collect();
    assert_eq!(found, Vec::<String>::new());
    Ok(())
}
