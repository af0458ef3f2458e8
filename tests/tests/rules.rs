//! The HLS checks tested by themselves: a right presentation, made by `ffmpeg`, has no faults, and every way to spoil it is
//! found.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::clip::Clip;
use tests::hls::Presentation;
use tests::{process, rules, shoal, sync};

/// Makes a presentation with two rungs and sound, without B-frames, so that it needs no edit list. Sound is late by the
/// 1024 samples of priming then.
fn made(folder: &Path, options: &[&str]) -> Result<()> {
    let clip = Clip::new("25", 6).file()?;
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-i"]).arg(&clip);
    ffmpeg
        .args(["-map", "0:v", "-map", "0:v", "-s:v:0", "320x180", "-s:v:1", "160x90", "-c:v", "libx264", "-preset", "veryfast"]);
    ffmpeg.args(["-bf", "0", "-g", "50", "-keyint_min", "50", "-sc_threshold", "0", "-c:a", "aac", "-b:a", "128k"]);
    ffmpeg.args(["-f", "hls", "-hls_time", "4", "-hls_playlist_type", "vod", "-hls_segment_type", "fmp4"]);
    ffmpeg.args(["-hls_segment_options", "use_editlist=0", "-var_stream_map", "a:0,name:a0 v:0,name:v180 v:1,name:v90"]);
    ffmpeg.args(["-map", "0:a"]).args(options);
    ffmpeg.arg("-hls_segment_filename").arg(folder.join("%v/%03d.m4s")).arg(folder.join("%v/index.m3u8"));
    process::run(&mut ffmpeg, Duration::from_secs(60))?.success()?;
    fs::write(folder.join("master.m3u8"), master(folder)?)?;
    Ok(())
}

/// A multivariant playlist for it, with the bit rates of a 4 s and a 2 s segment worked out by hand: of the sets
/// {first}, {second} and {both}, all of 2 to 6 s, the largest.
fn master(folder: &Path) -> Result<String> {
    let size = |name: &str| fs::metadata(folder.join(name)).map(|file| 8.0 * file.len() as f64);
    let rates = |name: &str| -> Result<(f64, f64)> {
        let (first, second) = (size(&format!("{name}/000.m4s"))?, size(&format!("{name}/001.m4s"))?);
        let playlist = fs::read_to_string(folder.join(name).join("index.m3u8"))?;
        let lasts: Vec<f64> =
            playlist.lines().filter_map(|line| line.strip_prefix("#EXTINF:")?.trim_end_matches(',').parse().ok()).collect();
        let seconds = (lasts[0], lasts[1]);
        let both = (first + second) / (seconds.0 + seconds.1);
        Ok(((first / seconds.0).max(second / seconds.1).max(both), both))
    };
    let sound = rates("a0")?;
    let variant = |name: &str, codecs: &str, size: &str| -> Result<String> {
        let (peak, average) = rates(name)?;
        let (peak, average) = ((peak + sound.0).round(), (average + sound.1).round());
        let rates = format!("BANDWIDTH={peak},AVERAGE-BANDWIDTH={average},FRAME-RATE=25.000");
        Ok(format!(
            "#EXT-X-STREAM-INF:{rates},RESOLUTION={size},CODECS=\"{codecs},mp4a.40.2\",AUDIO=\"aud\"\n{name}/index.m3u8\n"
        ))
    };
    let head = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n";
    let media = "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"aud\",NAME=\"Audio\",DEFAULT=YES,AUTOSELECT=YES,URI=\"a0/index.m3u8\"\n";
    Ok([head, media, &variant("v180", "avc1.64000c", "320x180")?, &variant("v90", "avc1.64000b", "160x90")?].concat())
}

fn replace(folder: &Path, file: &str, from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(folder.join(file))?;
    assert!(text.contains(from), "{file} holds no '{from}': {text}");
    Ok(fs::write(folder.join(file), text.replacen(from, to, 1))?)
}

fn copied(from: &Path) -> Result<tempfile::TempDir> {
    let to = tempfile::tempdir()?;
    process::run(Command::new("cp").arg("-r").arg(from.join(".")).arg(to.path()), Duration::from_secs(10))?.success()?;
    Ok(to)
}

/// The faults of a presentation, as one text; also what makes it unreadable.
fn faults(folder: &Path) -> String {
    match rules::faults(folder) {
        Ok(faults) => faults.join("\n"),
        Err(error) => format!("{error:#}"),
    }
}

/// A way to spoil a text: file, what to replace, by what, and what is said of it.
type Spoiled = (&'static str, &'static str, &'static str, &'static str);

const SPOILED_TEXTS: &[Spoiled] = &[
    ("v180/index.m3u8", "EXTINF:4.000000", "EXTINF:3.960000", "segment 0 lasts 4 s, EXTINF says 3.96"),
    ("v180/index.m3u8", "EXTINF:2.000000", "EXTINF:2.000010", "segment 1 lasts 2 s, EXTINF says 2.0000"),
    ("v180/index.m3u8", "TARGETDURATION:4", "TARGETDURATION:6", "target duration 6"),
    ("v180/index.m3u8", "VERSION:7", "VERSION:6", "version Some(6)"),
    ("v180/index.m3u8", "#EXT-X-ENDLIST", "", "no EXT-X-ENDLIST"),
    ("v180/index.m3u8", "#EXT-X-PLAYLIST-TYPE:VOD\n", "", "not EXT-X-PLAYLIST-TYPE:VOD"),
    ("v180/index.m3u8", "001.m4s", "002.m4s", "002.m4s: No such file"),
    ("v180/index.m3u8", "000.m4s", "#EXT-X-BYTERANGE:99999999@0\n000.m4s", "bytes 0..99999999 are not there"),
    ("v180/index.m3u8", "#EXTINF:2.0", "#EXT-X-DISCONTINUITY\n#EXTINF:2.0", "a discontinuity"),
    ("master.m3u8", "BANDWIDTH=", "BANDWIDTH=1", "BANDWIDTH 1"),
    ("master.m3u8", "AVERAGE-BANDWIDTH=", "AVERAGE-BANDWIDTH=1", "AVERAGE-BANDWIDTH Some(1"),
    ("master.m3u8", "avc1.64000c", "avc1.64001f", "CODECS avc1.64001f,mp4a.40.2, by the init segments"),
    ("master.m3u8", "mp4a.40.2", "mp4a.40.5", "CODECS avc1.64000c,mp4a.40.5"),
    ("master.m3u8", "320x180", "320x176", "RESOLUTION Some(\"320x176\")"),
    ("master.m3u8", "FRAME-RATE=25", "FRAME-RATE=30", "FRAME-RATE Some(30.0)"),
    ("master.m3u8", "#EXT-X-INDEPENDENT-SEGMENTS\n", "", "no EXT-X-INDEPENDENT-SEGMENTS"),
    ("master.m3u8", "DEFAULT=YES", "DEFAULT=NO", "0 defaults"),
    ("master.m3u8", "v90/index.m3u8", "v91/index.m3u8", "v91/index.m3u8: No such file"),
    ("master.m3u8", "AUDIO=\"aud\"", "AUDIO=\"other\"", "audio group without renditions"),
];

/// A way to spoil bytes, and what is said of it.
type SpoiledBytes = (fn(&Path) -> Result<()>, &'static str);

const SPOILED_BYTES: &[SpoiledBytes] = &[
    (|folder| Ok(fs::write(folder.join("v180/left-over.m4s"), "x")?), "left-over.m4s is named by no playlist"),
    (
        |folder| Ok(fs::copy(folder.join("v180/000.m4s"), folder.join("v180/001.m4s")).map(drop)?),
        "decode time jumps from 51200 to 0",
    ),
    (|folder| Ok(fs::copy(folder.join("v90/init_2.mp4"), folder.join("v180/init_1.mp4")).map(drop)?), "RESOLUTION"),
    (
        |folder| {
            let bytes = fs::read(folder.join("v180/001.m4s"))?;
            Ok(fs::write(folder.join("v180/001.m4s"), &bytes[..bytes.len() - 1])?)
        },
        "segment 1: box at byte",
    ),
    (
        |folder| {
            // Slice data of the first picture: every table stays as it is, and only a decoder will notice.
            let mut bytes = fs::read(folder.join("v180/001.m4s"))?;
            let media = bytes.windows(4).position(|name| name == b"mdat").context("no mdat")?;
            bytes[media + 1000..media + 1100].fill(0x55);
            Ok(fs::write(folder.join("v180/001.m4s"), bytes)?)
        },
        "ffmpeg on",
    ),
];

#[test]
fn a_right_presentation_has_no_faults_and_every_spoiled_one_has() -> Result<()> {
    let right = tempfile::tempdir()?;
    made(right.path(), &[])?;
    assert_eq!(faults(right.path()), "");
    for (file, from, to, said) in SPOILED_TEXTS {
        let spoiled = copied(right.path())?;
        replace(spoiled.path(), file, from, to)?;
        let found = faults(spoiled.path());
        assert!(found.contains(said), "{file}: '{from}' → '{to}' is to be found as '{said}', found:\n{found}");
    }
    for (spoil, said) in SPOILED_BYTES {
        let spoiled = copied(right.path())?;
        spoil(spoiled.path())?;
        let found = faults(spoiled.path());
        assert!(found.contains(said), "'{said}' is to be found, found:\n{found}");
    }
    Ok(())
}

const SPOILED_I_FRAMES: &[Spoiled] = &[
    ("v240/i-frames.m3u8", "#EXT-X-I-FRAMES-ONLY\n", "", "no EXT-X-I-FRAMES-ONLY"),
    ("v240/i-frames.m3u8", "#EXT-X-BYTERANGE:", "#EXT-X-BYTERANGE:1", "entry 0"),
    ("v240/i-frames.m3u8", "@24\n", "@0\n", "entry 0 begins with no moof"),
    ("v240/i-frames.m3u8", "EXTINF:2.000000", "EXTINF:1.900000", "entry 1 is shown at 2000000000 ns"),
    ("v240/i-frames.m3u8", "TARGETDURATION:2", "TARGETDURATION:4", "target duration 4"),
    ("v240/i-frames.m3u8", "#EXT-X-ENDLIST", "", "no EXT-X-ENDLIST"),
    ("master.m3u8", "I-FRAME-STREAM-INF:BANDWIDTH=", "I-FRAME-STREAM-INF:BANDWIDTH=1", "i-frames.m3u8: BANDWIDTH 1"),
    ("master.m3u8", "v240/i-frames.m3u8", "v241/i-frames.m3u8", "v241/i-frames.m3u8: No such file"),
];

#[test]
fn i_frame_playlists_that_are_wrong_are_found() -> Result<()> {
    let right = tempfile::tempdir()?;
    shoal::done(Clip::new("25", 6).file()?, right.path(), &["--ladder", "240"])?;
    assert_eq!(faults(right.path()), "");
    for (file, from, to, said) in SPOILED_I_FRAMES {
        let spoiled = copied(right.path())?;
        replace(spoiled.path(), file, from, to)?;
        let found = faults(spoiled.path());
        assert!(found.contains(said), "{file}: '{from}' → '{to}' is to be found as '{said}', found:\n{found}");
    }
    Ok(())
}

#[test]
fn wrong_key_frames_composition_times_and_rates_are_found() -> Result<()> {
    let wrong: [(&[&str], &str); 5] = [
        (&["-g:v:1", "40"], "v90: key frames are not where those of v180 are"),
        (&["-hls_flags", "split_by_time", "-g", "75", "-keyint_min", "75"], "begins with no IDR"),
        (&["-bf", "2", "-hls_segment_options", "use_editlist=0:movflags=negative_cts_offsets"], "composition offset below 0"),
        (&["-bf", "2", "-hls_segment_options", "use_editlist=1"], "edit"),
        (&["-filter:v:0", "select='not(eq(n,70))'", "-fps_mode", "passthrough"], "frames are not at a constant rate"),
    ];
    for (options, said) in wrong {
        let folder = tempfile::tempdir()?;
        // `master` may have nothing to say about sizes it does not expect; the playlists are what this is about.
        made(folder.path(), options)?;
        let found = faults(folder.path());
        assert!(found.contains(said), "{options:?} is to be found as '{said}', found:\n{found}");
    }
    Ok(())
}

#[test]
fn every_reader_sees_the_shift_that_is_there() -> Result<()> {
    // 1024 samples of priming that no edit list takes away, and 60 ms more.
    let shifts: [(&[&str], i64); 2] = [(&[], 21_333_333), (&["-af", "adelay=60:all=1"], 81_333_333)];
    for (options, shift_ns) in shifts {
        let folder = tempfile::tempdir()?;
        made(folder.path(), options)?;
        let seen = sync::readers(&Presentation::read(folder.path())?)?;
        assert_eq!(seen.len(), 8, "two rungs, four readers");
        for sync::Seen { reader, offsets_ns } in seen {
            assert_eq!(offsets_ns.len(), 6, "{reader}");
            assert!(
                offsets_ns.iter().all(|offset| (offset - shift_ns).abs() < 1_500_000),
                "{reader}: {offsets_ns:?}, not {shift_ns}"
            );
        }
    }
    Ok(())
}
