//! The two layouts carry the same media; one file per rendition is also a right MP4 file by itself.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tests::clip::Clip;
use tests::hls::Presentation;
use tests::{check, process, reader, rules, shoal};

const CHUNKED: &[&str] = &["--chunk-seconds", "4", "--ladder", "360,240"];

#[test]
fn both_hold_the_same_frames_and_sound() -> Result<()> {
    let clip = Clip::new("25", 20);
    let (many, one) = (tempfile::tempdir()?, tempfile::tempdir()?);
    shoal::done(clip.file()?, many.path(), CHUNKED)?;
    shoal::done(clip.file()?, one.path(), &[CHUNKED, &["--layout", "single-file"]].concat())?;
    for output in [&many, &one] {
        assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new());
    }
    let (many, one) = (Presentation::read(many.path())?, Presentation::read(one.path())?);
    assert_eq!(many.renditions.len(), one.renditions.len());
    for (a, b) in many.renditions.iter().zip(&one.renditions) {
        assert_eq!(a.segment_list(), b.segment_list(), "{}", a.name());
        assert!(a.segments.iter().zip(&b.segments).all(|(a, b)| a.bytes == b.bytes), "{}", a.name());
    }
    Ok(())
}

/// Where both are made, files have playlists of their own beside those of segments.
#[test]
fn both_at_once_are_two_whole_presentations_of_the_same_bytes() -> Result<()> {
    let clip = Clip::new("25", 20);
    let output = tempfile::tempdir()?;
    shoal::done(clip.file()?, output.path(), &[CHUNKED, &["--layout", "both"]].concat())?;
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    for file in rules::files_below(output.path())? {
        let relative = file.strip_prefix(output.path())?.to_string_lossy().into_owned();
        let of_files = relative.contains("single-file") || relative.ends_with(".mp4") && !relative.ends_with("init.mp4");
        let [segments, files] = &folders;
        let folder = if of_files { files } else { segments };
        // As it would be called if it were alone.
        let alone = |name: &str| match name {
            "single-file.m3u8" => "master.m3u8".to_owned(),
            name => name.replace("/single-file.m3u8", "/index.m3u8").replace("single-file-i-frames", "i-frames"),
        };
        let place = folder.path().join(alone(&relative));
        fs::create_dir_all(place.parent().unwrap_or(folder.path()))?;
        if relative == "single-file.m3u8" {
            fs::write(place, alone(&fs::read_to_string(file)?))?;
        } else {
            fs::copy(file, place)?;
        }
    }
    for folder in &folders {
        assert_eq!(check::faults(folder.path(), &clip)?, Vec::<String>::new());
    }
    let [segments, files] = [Presentation::read(folders[0].path())?, Presentation::read(folders[1].path())?];
    assert_eq!(segments.renditions.len(), files.renditions.len());
    for (a, b) in segments.renditions.iter().zip(&files.renditions) {
        assert!(a.init == b.init && a.segments.iter().zip(&b.segments).all(|(a, b)| a.bytes == b.bytes), "{}", a.name());
        assert!(b.files.len() == 1 && a.files.len() > 5, "{}: {:?}, {:?}", a.name(), a.files, b.files);
    }
    Ok(())
}

#[test]
fn one_file_per_rendition_is_one_file_and_its_byte_ranges_leave_nothing_out() -> Result<()> {
    let clip = Clip::new("25", 20);
    let output = tempfile::tempdir()?;
    shoal::done(clip.file()?, output.path(), &[CHUNKED, &["--layout", "single-file"]].concat())?;
    let presentation = Presentation::read(output.path())?;
    for rendition in &presentation.renditions {
        let files: Vec<_> = rendition.files.iter().collect();
        let [file] = files.as_slice() else { panic!("{}: {files:?}", rendition.name()) };
        let ranged = rendition.init.len() + rendition.segments.iter().map(|segment| segment.bytes.len()).sum::<usize>();
        assert_eq!(fs::metadata(file)?.len(), u64::try_from(ranged)?, "{}", rendition.name());
        let kind = if rendition.is_video() { "0:v" } else { "0:a" };
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-nostdin", "-v", "warning", "-i"]).arg(file).args(["-map", kind, "-f", "null", "-"]);
        let run = process::run(&mut ffmpeg, Duration::from_secs(60))?.success()?;
        assert_eq!(run.stderr, "", "{}", file.display());
        if rendition.is_video() {
            let frames = reader::frames(file, "0:v:0")?;
            assert_eq!(reader::frame_faults(&frames, &clip.numbers(), |n| clip.start_ns(n)), Vec::<String>::new());
        }
    }
    // A media playlist and a file for each, an I-frame playlist for each rung, the multivariant playlist and the report.
    let files = 2 * presentation.renditions.len() + presentation.videos().count() + 2;
    assert_eq!(rules::files_below(output.path())?.len(), files);
    Ok(())
}
