//! Six minutes of 1080p in many chunks, of which nothing is lost; and of half a minute in as many the number of slots changes
//! nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tests::hls::Presentation;
use tests::{corpus, process, reader, rules, shoal};

const LONG_LIMIT: Duration = Duration::from_secs(900);

fn source(name: &str) -> Option<PathBuf> {
    Some(corpus::folder()?.join(name))
}

/// Frames and duration of sound in s, as `ffprobe` counts them in the source.
fn counted(source: &Path) -> Result<(usize, i64)> {
    let mut ffprobe = Command::new("ffprobe");
    ffprobe.args([
        "-v",
        "error",
        "-count_packets",
        "-select_streams",
        "v:0",
        "-show_entries",
        "stream=nb_read_packets",
        "-of",
        "csv=p=0",
    ]);
    let frames = process::run(ffprobe.arg(source), LONG_LIMIT)?.success()?.text().trim().parse()?;
    Ok((frames, reader::sound(source, "0:a:0")?.duration_ns()))
}

/// Every frame decodes.
fn check_frames(made: &Presentation, frames: usize) -> Result<()> {
    for rung in made.videos() {
        assert_eq!(reader::frames(&rung.path, "0:v:0")?.len(), frames, "{}", rung.name());
    }
    Ok(())
}

fn check_counts(made: &Presentation, frames: usize, sound_ns: i64) -> Result<()> {
    let mut key_times = BTreeSet::new();
    for rung in made.videos() {
        assert_eq!(rung.samples().count(), frames, "{}", rung.name());
        key_times.insert(rung.key_times_ns().iter().map(|ns| ns / 100_000).collect::<Vec<_>>());
    }
    assert_eq!(key_times.len(), 1, "key frames are not at the same times in all rungs");
    for sound in made.audios() {
        let heard = reader::sound(&sound.path, "0:a:0")?;
        // What lies before 0 is there for the decoder to warm up on.
        let made_ns = heard.duration_ns() + heard.start_ns.min(0);
        let packet_ns = sound.track.ns(1024);
        assert!((made_ns - sound_ns).abs() <= packet_ns, "sound lasts {made_ns} ns instead of {sound_ns}");
    }
    Ok(())
}

#[test]
fn many_chunks_on_one_and_four_slots() -> Result<()> {
    let Some(source) = source("bbb_480p_30s.mp4") else { return Ok(()) };
    let (frames, sound_ns) = counted(&source)?;
    let mut first: Option<Presentation> = None;
    for slots in ["1", "4"] {
        let output = tempfile::tempdir()?;
        let flags = ["--ladder", "360,240", "--slots", slots, "--segment-seconds", "2", "--chunk-seconds", "2"];
        let run = shoal::run(shoal::transcode(&source, output.path(), &flags)?, LONG_LIMIT)?.success()?;
        corpus::say(&format!("{slots} slots: {:.1} s", run.elapsed.as_secs_f32()));
        let made = Presentation::read(output.path())?;
        check_counts(&made, frames, sound_ns)?;
        // What is the same by its sizes is decoded once.
        let Some(first) = &first else {
            check_frames(&made, frames)?;
            first = Some(made);
            continue;
        };
        for (a, b) in first.renditions.iter().zip(&made.renditions) {
            assert_eq!(a.segment_list(), b.segment_list(), "{} on 1 and on {slots} slots", a.name());
        }
    }
    Ok(())
}

#[test]
fn the_whole_ladder() -> Result<()> {
    let Some(source) = source("long_1080p_lowbitrate.mp4") else { return Ok(()) };
    let (frames, sound_ns) = counted(&source)?;
    let output = tempfile::tempdir()?;
    let run = shoal::run(shoal::transcode(&source, output.path(), &[])?, LONG_LIMIT)?.success()?;
    corpus::say(&format!("whole ladder: {:.1} s", run.elapsed.as_secs_f32()));
    // All of it is decoded there.
    assert_eq!(rules::faults(output.path())?, Vec::<String>::new());
    check_counts(&Presentation::read(output.path())?, frames, sound_ns)
}
