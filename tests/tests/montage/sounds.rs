//! The sound of another file, sound that stands apart from its picture, and sound alone: to the sample.

use anyhow::Result;
use serde_json::json;
use tests::clip::Clip;
use tests::{reader, shoal};

use super::{FLAGS, Made, Part, SILENCE_MAX, at, clip, late_samples, peak, remade, samples};

const NS: i64 = 1_000_000_000;

#[test]
fn the_sound_of_another_file_takes_the_place_of_its_own_at_the_same_times() -> Result<()> {
    let (folder, main) = (tempfile::tempdir()?, clip("25", 6));
    // By its beeps it is told from the video's own.
    let late = Clip { beeps_late_ms: 300, ..clip("25", 6) };
    let other = remade(&[], &late.file()?, &["-vn", "-c", "copy"], folder.path().join("other.m4a"))?;
    let short = remade(&[], &late.file()?, &["-vn", "-c", "copy", "-t", "2"], folder.path().join("short.m4a"))?;
    let (sound, short, cut) =
        (json!({"sound": at(&other)}), json!({"sound": at(&short)}), json!({"keep": {"from": 2.4, "to": 5.4}}));
    let ms = |times: &[i64]| times.iter().map(|ms| ms * 1_000_000).collect::<Vec<_>>();
    for (edit, frames, beeps_ms) in [
        (json!([sound]), 0..150, &[300, 1340, 2300, 3340, 4300, 5340][..]),
        (json!([sound, cut]), 60..135, &[940, 1900, 2940]),
        (json!([cut, sound]), 60..135, &[300, 1340, 2300]),
        (json!([short]), 0..150, &[300, 1340]),
    ] {
        let made = Made::of(&main.file()?, &edit, FLAGS)?;
        let part = Part::of(&main, frames).beeping(&ms(beeps_ms));
        assert_eq!(made.faults(main.rate, &[part])?, Vec::<String>::new(), "{edit}");
        if edit == json!([short]) {
            let rest = peak(samples(&made.sound()?, 2_100_000_000, 3_700_000_000)?);
            assert!(rest < SILENCE_MAX, "{rest} after the end of the sound");
        }
    }
    Ok(())
}

#[test]
fn picture_and_sound_of_two_files_give_what_the_whole_file_gives() -> Result<()> {
    let (folder, clip) = (tempfile::tempdir()?, clip("25", 6));
    let file = |name: &str| folder.path().join(name);
    let (whole, fragmented) = (clip.file()?, "frag_keyframe+delay_moov+default_base_moof");
    let picture = remade(&[], &whole, &["-map", "0:v", "-c", "copy"], file("picture.mp4"))?;
    let sound = remade(&[], &whole, &["-map", "0:a", "-c", "copy"], file("sound.mp4"))?;
    // As HLS has them.
    let in_fragments = |map| ["-map", map, "-c", "copy", "-movflags", fragmented];
    let pictures = remade(&[], &whole, &in_fragments("0:v"), file("picture-fragments.mp4"))?;
    let sounds = remade(&[], &whole, &in_fragments("0:a"), file("sound-fragments.mp4"))?;
    let plain = tempfile::tempdir()?;
    shoal::done(&whole, plain.path(), &[FLAGS, &["--copy", "never"]].concat())?;
    let wanted = reader::sound(&plain.path().join("a0/index.m3u8"), "0:a:0")?;
    for (picture, sound) in [(&picture, &sound), (&pictures, &sounds)] {
        let made = Made::of(picture, &json!([{"sound": at(sound)}]), FLAGS)?;
        assert_eq!(made.faults(clip.rate, &[Part::of(&clip, 0..150)])?, Vec::<String>::new(), "{}", picture.display());
        let heard = made.sound()?;
        let length_ns = 11 * NS / 2;
        let (heard, wanted) = (samples(&heard, NS / 5, length_ns)?, samples(&wanted, NS / 5, length_ns)?);
        let off = heard.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // A beep that comes a sample late is off by twice as much.
        assert!(off < 0.05, "{}: off by {off}", sound.display());
    }
    Ok(())
}

/// Cut points at whole samples and at no frame of any video.
#[test]
fn of_sound_alone_just_the_samples_are_kept_that_were_asked_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sweep = "aevalsrc=0.25*sin(2*PI*(200*t+200*t*t))+0.05*sin(2*PI*(3100*t-100*t*t)):s=48000:d=7.123";
    let source = remade(&["-f", "lavfi"], sweep.as_ref(), &["-c:a", "pcm_s16le"], folder.path().join("sweep.wav"))?;
    let edit = json!([{"keep": {"from": 1.2345, "to": 5}}, {"remove": [{"from": 1, "to": 2}]}]);
    let made = Made::of(&source, &edit, &["--segment-seconds", "2"])?;
    assert_eq!(made.presentation.videos().count(), 0);
    assert_eq!(made.report()?["duration_ns"], 2_765_500_000_u64);
    let (heard, source) = (made.sound()?, reader::sound(&source, "0:a:0")?);
    for (at_ns, from_ns) in
        [(NS / 10, 1_334_500_000), (NS / 2, 1_734_500_000), (NS + 1_000_000, 3_235_500_000), (2 * NS, 4_234_500_000)]
    {
        assert_eq!(late_samples(&heard, at_ns, &source, from_ns)?, 0, "at {at_ns} ns");
    }
    Ok(())
}
