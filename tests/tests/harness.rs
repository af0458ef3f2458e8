//! The harness tested by itself: what is right is found right, and every fault it is there for is found.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tests::clip::{Clip, Container};
use tests::{process, reader};

/// What a clip's own sync may be off by: a third of a ms of the onset, and a ms where the container rounds.
const SYNC_TOLERANCE: Duration = Duration::from_micros(1500);

fn sync_of(clip: &Clip) -> Result<Vec<i64>> {
    let file = clip.file()?;
    let frames = reader::frames(&file, "0:v:0")?;
    reader::sync_ns(&reader::flashes_ns(&frames), &reader::sound(&file, "0:a:0")?.beeps_ns())
}

fn faults_of(made: &Clip, wanted: &Clip) -> Result<Vec<String>> {
    let frames = reader::frames(&made.file()?, "0:v:0")?;
    Ok(reader::frame_faults(&frames, &wanted.numbers(), |n| wanted.start_ns(n)))
}

#[test]
fn a_right_clip_is_read_without_fault_in_every_container_and_at_every_rate() -> Result<()> {
    for rate in ["25", "30000/1001", "24000/1001", "60"] {
        for container in [Container::Mp4, Container::Mkv, Container::Ts, Container::Webm, Container::Mov] {
            let clip = Clip::new(rate, 6).container(container);
            assert_eq!(faults_of(&clip, &clip)?, Vec::<String>::new(), "{rate} {container:?}");
            let offsets = sync_of(&clip)?;
            assert_eq!(offsets.len(), clip.flashes().len());
            for offset in offsets {
                assert!(Duration::from_nanos(offset.unsigned_abs()) < SYNC_TOLERANCE, "{rate} {container:?}: {offset} ns");
            }
        }
    }
    Ok(())
}

#[test]
fn a_dropped_a_doubled_and_a_late_frame_are_found() -> Result<()> {
    let right = Clip::new("25", 6);
    let dropped = right.clone().leave_out(70..71);
    let faults = faults_of(&dropped, &right)?;
    assert!(faults.iter().any(|f| f == "149 frames instead of 150"), "{faults:?}");
    assert!(faults.iter().any(|f| f == "place 70 shows Ok(71) instead of 70"), "{faults:?}");
    let doubled = Clip { doubled: vec![70], ..right.clone() };
    assert_eq!(faults_of(&doubled, &right)?, ["place 70 shows Ok(69) instead of 70"]);
    // All frames are there, but from frame 70 on shown a frame later than the grid says.
    let gap = Clip { frames: 151, ..right.clone() }.leave_out(70..71);
    let frames = reader::frames(&gap.file()?, "0:v:0")?;
    let renumbered = |n: u32| if n < 70 { n } else { n + 1 };
    let numbers: Vec<u32> = (0..150).map(renumbered).collect();
    let faults = reader::frame_faults(&frames, &numbers, |n| right.start_ns(if n < 70 { n } else { n - 1 }));
    assert!(faults.iter().any(|f| f.starts_with("frame 71 is shown 2840000000 ns after the first")), "{faults:?}");
    Ok(())
}

#[test]
fn sound_that_is_shifted_is_found_by_as_much_as_it_is_shifted() -> Result<()> {
    for late_ms in [-10, 10, 60] {
        let clip = Clip { beeps_late_ms: late_ms, ..Clip::new("25", 6) };
        // A first beep that is early begins before the sound does; it is cut off at its start and heard as if at 0.
        let offsets = sync_of(&clip)?.split_off(1);
        assert!(offsets.iter().all(|o| (o - i64::from(late_ms) * 1_000_000).abs() < 1_500_000), "{late_ms}: {offsets:?}");
    }
    let early = Clip { beeps_late_ms: -60, ..Clip::new("25", 6) };
    let error = sync_of(&early).expect_err("the first beep would end before the sound begins");
    assert_eq!(error.to_string(), "6 flashes and 5 beeps");
    Ok(())
}

#[test]
fn sound_shifted_by_its_time_stamps_alone_is_found() -> Result<()> {
    let clip = Clip::new("25", 6).file()?;
    let folder = tempfile::tempdir()?;
    let shifted = folder.path().join("shifted.mkv");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-i"]).arg(&clip).args(["-itsoffset", "0.06", "-i"]).arg(&clip);
    ffmpeg.args(["-map", "0:v", "-map", "1:a", "-c", "copy"]).arg(&shifted);
    process::run(&mut ffmpeg, Duration::from_secs(60))?.success()?;
    let frames = reader::frames(&shifted, "0:v:0")?;
    let offsets = reader::sync_ns(&reader::flashes_ns(&frames), &reader::sound(&shifted, "0:a:0")?.beeps_ns())?;
    assert!(offsets.iter().all(|o| (o - 60_000_000).abs() < 2_000_000), "{offsets:?}");
    Ok(())
}

#[test]
fn a_code_survives_240p_at_low_quality() -> Result<()> {
    let clip = Clip::new("25", 6).size(1280, 720);
    let folder = tempfile::tempdir()?;
    let small = folder.path().join("small.mp4");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-i"]).arg(clip.file()?).args(["-vf", "scale=426:240", "-crf", "36", "-preset", "veryfast"]);
    process::run(ffmpeg.arg(&small), Duration::from_secs(60))?.success()?;
    let frames = reader::frames(&small, "0:v:0")?;
    assert_eq!(reader::frame_faults(&frames, &clip.numbers(), |n| clip.start_ns(n)), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_program_that_does_not_end_is_killed_with_its_children() -> Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-c", "sleep 100 & echo $!; wait"]);
    let error = process::run(&mut shell, Duration::from_millis(300)).expect_err("it takes 100 s");
    assert!(format!("{error:#}").contains("did not end within"), "{error:#}");
    Ok(())
}
