//! Stretches that are kept and taken out: to the frame and to the sample, in every output.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::clip::Clip;
use tests::reader;

use super::{BEEP_OFF_NS, FLAGS, Made, Part, clip, faults, late_samples};

const NS: i64 = 1_000_000_000;

fn parts(clip: &Clip, stretches: &[(u32, u32)]) -> Vec<Part> {
    stretches.iter().map(|&(from, to)| Part::of(clip, from..to)).collect()
}

#[test]
fn a_stretch_that_is_kept_has_just_its_frames_and_samples_in_every_output() -> Result<()> {
    let clip = clip("25", 10);
    let edit = json!([{"keep": {"from": 2.04, "to": 7.52}}]);
    let made = Made::of(&clip.file()?, &edit, &[FLAGS, &["--layout", "both", "--mp4"]].concat())?;
    let report = made.report()?;
    assert_eq!(report["duration_ns"], 5_480_000_000_u64);
    let frames = &report["frames"];
    assert_eq!((&frames["kept"], &frames["filled"], &frames["missing"]), (&json!(137), &json!(0), &json!(0)), "{frames}");
    // The clip could be copied, as it is, but is not what was asked for.
    let renditions = report["renditions"].as_array().context("renditions")?;
    assert!(renditions.len() == 2 && renditions.iter().all(|made| made["made"] == "encoded"), "{renditions:?}");
    let download = renditions.iter().find_map(|made| made["mp4"]["key"].as_str()).context("no plain file")?;
    let (parts, source) = ([Part::of(&clip, 51..188)], reader::sound(&clip.file()?, "0:a:0")?);
    for [picture, sound] in
        [["v180/index.m3u8", "a0/index.m3u8"], ["v180/single-file.m3u8", "a0/single-file.m3u8"], [download, download]]
    {
        let (picture_file, sound_file) = (made.file(picture), made.file(sound));
        let faults = faults(&picture_file, Some(&sound_file), (clip.rate, BEEP_OFF_NS), &parts)?;
        assert_eq!(faults, Vec::<String>::new(), "{picture}");
        let heard = reader::sound(&sound_file, "0:a:0")?;
        for (at_ns, from_ns) in [(NS / 5, 2_240_000_000), (9 * NS / 2, 6_540_000_000)] {
            let late = late_samples(&heard, at_ns, &source, from_ns)?;
            assert!(late.abs() <= 1, "{sound}: {late} samples late at {at_ns} ns");
        }
    }
    Ok(())
}

#[test]
fn cut_points_go_to_the_nearest_frame_and_sound_with_them() -> Result<()> {
    for (rate, from, to, frames) in [("25", 2.05, 4.37, 51..109), ("30000/1001", 2.0, 4.01, 60..120)] {
        let clip = clip(rate, 10);
        let made = Made::of(&clip.file()?, &json!([{"keep": {"from": from, "to": to}}]), FLAGS)?;
        let from_ns = clip.start_ns(frames.start);
        assert_eq!(made.faults(clip.rate, &[Part::of(&clip, frames)])?, Vec::<String>::new(), "{rate}");
        let source = reader::sound(&clip.file()?, "0:a:0")?;
        let late = late_samples(&made.sound()?, NS / 5, &source, from_ns + NS / 5)?;
        assert!(late.abs() <= 1, "{rate}: {late} samples late");
    }
    Ok(())
}

#[test]
fn stretches_are_taken_out_by_the_times_before_and_later_steps_count_what_is_left() -> Result<()> {
    let clip = clip("25", 10);
    let taken_out = json!({"remove": [{"from": 5.52, "to": 8}, {"from": 1, "to": 2}]});
    let (source, mut found) = (reader::sound(&clip.file()?, "0:a:0")?, Vec::new());
    for (edit, stretches) in [
        (json!([taken_out]), &[(0, 25), (50, 138), (200, 250)][..]),
        (json!([taken_out, {"keep": {"from": 0.52, "to": 4}}]), &[(13, 25), (50, 125)]),
        // One that goes on to the end, and over another.
        (json!([{"remove": [{"from": 3, "to": 6}, {"from": 5}]}, {"keep": {"from": 1}}]), &[(25, 75)]),
        (json!([{"keep": {"from": 8, "to": 100}}]), &[(200, 250)]),
        (json!([{"keep": {}}]), &[(0, 250)]),
    ] {
        let made = Made::of(&clip.file()?, &edit, FLAGS)?;
        let mut faults = made.faults(clip.rate, &parts(&clip, stretches))?;
        let (heard, mut at) = (made.sound()?, 0);
        for &(from, to) in stretches {
            if to - from > 20 {
                let late = late_samples(&heard, clip.start_ns(at + 4), &source, clip.start_ns(from + 4))?;
                faults.extend((late.abs() > 1).then(|| format!("the sound of {from}..{to} is {late} samples late")));
            }
            at += to - from;
        }
        found.extend(faults.into_iter().map(|fault| format!("{edit}: {fault}")));
    }
    assert_eq!(found, Vec::<String>::new());
    Ok(())
}

/// Most of them shorter than a GOP, and many in one segment.
#[test]
fn many_short_stretches_are_joined_frame_by_frame() -> Result<()> {
    let clip = clip("25", 10);
    let seconds = |frame: u32| f64::from(frame) / 25.0;
    let taken_out: Vec<_> = (0..20).map(|n| json!({"from": seconds(12 * n + 5), "to": seconds(12 * n + 11)})).collect();
    let made = Made::of(&clip.file()?, &json!([{"remove": taken_out}]), FLAGS)?;
    let mut stretches = vec![(0, 5), (239, 250)];
    stretches.splice(1..1, (0..19).map(|n| (12 * n + 11, 12 * n + 17)));
    assert_eq!(made.faults(clip.rate, &parts(&clip, &stretches))?, Vec::<String>::new());
    Ok(())
}

#[test]
fn what_is_published_first_is_edited_too() -> Result<()> {
    let clip = clip("25", 8);
    let edit = json!([{"remove": [{"from": 1.4, "to": 3}]}]);
    let flags = ["--ladder", "180,90", "--segment-seconds", "2", "--chunk-seconds", "2", "--publish", "in-stages"];
    let made = Made::of(&clip.file()?, &edit, &flags)?;
    let parts = parts(&clip, &[(0, 35), (75, 200)]);
    for rung in made.presentation.videos() {
        let faults = faults(&rung.path, Some(&made.file("a0/index.m3u8")), (clip.rate, BEEP_OFF_NS), &parts)?;
        assert_eq!(faults, Vec::<String>::new(), "{}", rung.name());
    }
    ensure!(made.presentation.videos().count() == 2, "{:?}", made.presentation.master);
    Ok(())
}
