//! Every file of the media corpus: what its README promises, and never a hang, a crash, or a half-made result that looks
//! whole. One test, one table, one line printed for each.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::hls::Presentation;
use tests::mp4::Kind;
use tests::{corpus, rules, shoal};

const FILE_LIMIT: Duration = Duration::from_secs(240);

/// What should come of a file.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// Picture with this size of the largest rung, and this many renditions of sound.
    Video(u16, u16, usize),
    /// Sound alone.
    Audio,
    /// A failure by the source's fault with this code.
    Error(&'static str),
    /// Either is allowed, if it is whole.
    AudioOrError,
}

use Outcome::{Audio, AudioOrError, Error, Video};

const CORPUS: &[(&str, Outcome)] = &[
    ("bbb_720p_5s.mp4", Video(1280, 720, 1)),
    ("bbb_480p_30s.mp4", Video(854, 480, 1)),
    ("echo_vp8_270p.webm", Video(426, 240, 1)),
    ("60fps_720p_small.mp4", Video(1280, 720, 1)),
    ("video_short_4k.mp4", Video(3840, 2160, 1)),
    ("video_short.ogv", Video(1364, 720, 1)),
    ("video_short.webm", Video(1364, 720, 1)),
    ("video_short_no_audio.mp4", Video(1364, 720, 0)),
    ("sample_video_only.mp4", Video(1080, 720, 0)),
    ("video_chapters.mp4", Video(1364, 720, 1)),
    ("low-bitrate.mp4", Video(1080, 1080, 0)),
    ("video_very_long_10p.mp4", Video(14, 8, 1)),
    ("sample.ogg", Audio),
    ("bear.flac", Audio),
    ("sample_float32.wav", Audio),
    ("bear-id3.mp3", Audio),
    ("bear_with_picture.flac", Audio),
    ("200kB-garbage-prefix.mp3", AudioOrError),
    ("bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4", Video(854, 480, 0)),
    ("bt601.mov", Video(538, 360, 1)),
    ("edit_list_positive_shift.mp4", Video(1920, 1080, 1)),
    ("sample_edit_list.mp4", Video(1080, 1920, 1)),
    ("hlg10-color-test.mp4", Video(1920, 1080, 1)),
    ("hdr10-av1.mp4", Video(720, 1280, 1)),
    ("portrait_4k60.mp4", Video(2160, 3840, 1)),
    ("internal_emulator_transformer_output_270_rotated.mp4", Video(720, 1280, 1)),
    ("sample_rotate_and_reflect.mp4", Video(720, 1080, 1)),
    ("sample_portrait.mp4", Video(720, 1080, 1)),
    ("h265_bframes.mp4", Video(854, 480, 0)),
    ("sample_12_5fps_720p_1s.mp4", Video(1280, 720, 1)),
    ("sample_fragmented.mp4", Video(1080, 720, 1)),
    ("sample_with_increasing_timestamps_360p.mp4", Video(640, 360, 1)),
    ("trim_optimization_failure.mp4", Video(510, 480, 1)),
    ("sample_without_stss.mp4", Video(1080, 720, 0)),
    ("sample_empty_track.mp4", Video(1080, 720, 1)),
    ("sample_missing_stsd.mp4", Video(1080, 720, 0)),
    ("sample_twos_pcm.mp4", Video(1080, 720, 1)),
    ("sowt-with-video.mov", Video(1920, 1080, 1)),
    ("sample.mp4", Video(1080, 720, 1)),
    ("sample.mkv", Video(1080, 720, 1)),
    ("sample_with_srt.mkv", Video(1080, 720, 1)),
    ("sample_with_pgs_subtitles.mkv", Video(1080, 720, 1)),
    ("sample.avi", Video(864, 360, 1)),
    ("sample.flv", Video(1080, 720, 1)),
    ("bbb_176x144_128kbps_15fps_h263.3gp", Video(192, 144, 0)),
    ("bbb_2500ms.ts", Video(1920, 1080, 1)),
    ("sample_h264.ts", Video(854, 480, 0)),
    ("sample_eac3.ts", Audio),
    ("bbb_642x642_768kbps_30fps_vp9.webm", Video(480, 480, 0)),
    ("roadtrip-vp92-10bit.webm", Video(426, 240, 0)),
    ("bear-vp9-odd-dimensions.webm", Video(160, 120, 0)),
    ("silent-black-10s.mp4", Video(320, 240, 1)),
    ("sample_vvc.mp4", Error("unsupported_codec")),
    ("invalid-bitstream.webm", Error("undecodable")),
    ("large_stbl_truncated_after_moov.m4b", Error("truncated")),
    ("video_short_fake.webm", Error("not_media")),
];

/// In the `long` suite: too much for a table.
const ELSEWHERE: &[&str] = &["long_1080p_lowbitrate.mp4", "README.md"];

/// What came of a file, in words, and what is wrong with that.
fn check(file: &Path, wanted: Outcome) -> Result<(String, Vec<String>)> {
    let output = tempfile::tempdir()?;
    let run = shoal::run(shoal::transcode(file, output.path(), &["--json"])?, FILE_LIMIT)?;
    let mut faults = Vec::new();
    match run.status.code() {
        Some(0) => faults.extend(rules::faults(output.path())?),
        Some(1) => {
            let told = shoal::told(&run.stdout)?;
            let left = rules::files_below(output.path())?;
            faults.extend((!left.is_empty()).then(|| format!("leaves {left:?}")));
            let said = format!("{}: {}", told.code, told.message);
            let right = match wanted {
                Error(code) => told.code == code,
                AudioOrError => true,
                Video(..) | Audio => false,
            };
            faults.extend((!right).then(|| format!("{said}, wanted {wanted:?}")));
            return Ok((said, faults));
        }
        _ => {
            faults.push(format!("{}: {}", run.status, run.stderr.trim()));
            return Ok(("neither done nor the source's fault".to_owned(), faults));
        }
    }
    let presentation = Presentation::read(output.path())?;
    let said = presentation.renditions.iter().map(tests::hls::Rendition::name).collect::<Vec<_>>().join(" ");
    let largest = presentation.videos().next().map(|rung| rung.track.kind);
    let sounds = presentation.audios().count();
    let right = match (wanted, largest) {
        (Video(wide, high, wanted_sounds), Some(Kind::Video { width, height, .. })) => {
            (width, height, sounds) == (wide, high, wanted_sounds)
        }
        (Audio | AudioOrError, None) => sounds == 1,
        _ => false,
    };
    faults.extend((!right).then(|| format!("{largest:?} and {sounds} of sound, wanted {wanted:?}")));
    Ok((said, faults))
}

#[test]
fn every_file_comes_to_what_its_readme_promises() -> Result<()> {
    let Some(folder) = corpus::folder() else { return Ok(()) };
    let mut wrong = Vec::new();
    for &(name, wanted) in CORPUS {
        let started = Instant::now();
        let (said, faults) =
            check(&folder.join(name), wanted).unwrap_or_else(|error| (String::new(), vec![format!("{error:#}")]));
        let seconds = started.elapsed().as_secs_f32();
        let verdict = if faults.is_empty() { "right" } else { "WRONG" };
        corpus::say(&format!("{verdict} {seconds:6.1} s  {name}: {said}"));
        wrong.extend(faults.into_iter().map(|fault| format!("{name}: {fault}")));
    }
    assert_eq!(wrong, Vec::<String>::new());
    Ok(())
}

#[test]
fn no_file_of_the_corpus_is_forgotten() -> Result<()> {
    let Some(folder) = corpus::folder() else { return Ok(()) };
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let listed = CORPUS.iter().any(|(listed, _)| *listed == name) || ELSEWHERE.contains(&name.as_str());
        ensure!(listed, "{name} is in the corpus and in no test");
    }
    Ok(())
}

/// What a file's README line says beyond size and tracks.
#[test]
fn what_is_lost_on_the_way_is_said() -> Result<()> {
    let Some(folder) = corpus::folder() else { return Ok(()) };
    let output = tempfile::tempdir()?;
    shoal::done(folder.join("sample_missing_stsd.mp4"), output.path(), &["--ladder", "240"])?;
    let report: Value = serde_json::from_slice(&std::fs::read(output.path().join("report.json"))?)?;
    let told = report["dropped"].to_string() + &report["warnings"].to_string();
    assert!(told.contains("audio") || told.contains("sound"), "the unreadable sound is not named: {told}");
    let output = tempfile::tempdir()?;
    shoal::done(folder.join("low-bitrate.mp4"), output.path(), &[])?;
    let source = std::fs::metadata(folder.join("low-bitrate.mp4"))?.len();
    let top = Presentation::read(output.path())?;
    let bytes: usize = top.videos().next().map_or(0, |rung| rung.segments.iter().map(|segment| segment.bytes.len()).sum());
    assert!(u64::try_from(bytes)? < 2 * source, "the largest rung takes {bytes} bytes for a source of {source}");
    Ok(())
}
