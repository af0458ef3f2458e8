//! Poster and storyboard: the right pictures, the right way up, in the right colours, and cheap.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::clip::{Clip, Container};
use tests::{check, corpus, process, rules, shoal, stills};

const MAKE_LIMIT: Duration = Duration::from_secs(60);

/// A clip of 23 s with a key frame every 5 s.
fn clip(container: Container) -> Clip {
    Clip { gop: 125, ..Clip::new("25", 23).container(container) }
}

/// Each picture of the storyboard shows the key frame that stands for its time, and no time is left out.
fn storyboard_is_of(folder: &Path, clip: &Clip, size: (u32, u32)) -> Result<()> {
    let cues = stills::storyboard(folder)?;
    assert_eq!(cues.iter().map(|cue| cue.start_ms).collect::<Vec<_>>(), [0, 5000, 10_000, 15_000, 20_000]);
    let ends: Vec<u64> = cues.iter().map(|cue| cue.end_ms).collect();
    assert!(cues.iter().skip(1).map(|cue| cue.start_ms).eq(ends.iter().copied().take(4)), "{cues:?}");
    // Sound may be longer than the picture by a packet.
    assert!(matches!(ends[..], [.., 23_000..=23_022]), "{ends:?}");
    for (cue, number) in cues.iter().zip((0..).step_by(clip.gop as usize)) {
        assert_eq!((cue.place[2], cue.place[3]), size);
        assert_eq!(stills::barcode(&cue.sheet, cue.place)?.number, Ok(number), "{cue:?}");
    }
    Ok(())
}

#[test]
fn a_storyboard_shows_the_key_frames_of_every_container_in_both_layouts() -> Result<()> {
    for (container, layout) in [
        (Container::Mp4, "segments"),
        (Container::Mkv, "single-file"),
        (Container::Ts, "segments"),
        (Container::Webm, "segments"),
    ] {
        let (clip, output) = (clip(container), tempfile::tempdir()?);
        let grid = r#"--storyboard={"columns":2,"rows":2,"height":120,"seconds":5}"#;
        shoal::done(clip.file()?, output.path(), &["--ladder", "240", "--layout", layout, "--poster", grid])?;
        assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new(), "{container:?}");
        storyboard_is_of(output.path(), &clip, (214, 120)).with_context(|| format!("{container:?}"))?;
        let report = stills::report(output.path())?;
        let sheets: Vec<PathBuf> = report["storyboard"]["sheets"]
            .as_array()
            .context("sheets")?
            .iter()
            .filter_map(|key| Some(output.path().join(key.as_str()?)))
            .collect();
        let sizes: Vec<_> = sheets.iter().map(|sheet| stills::size(sheet)).collect::<Result<_>>()?;
        assert_eq!(sizes, [(428, 240), (214, 120)], "{container:?}: four on the first, one on the second");
        let poster = stills::poster(output.path())?;
        assert_eq!(stills::size(&poster)?, (640, 360), "{container:?}: as large as the source");
        assert_eq!(stills::barcode(&poster, [0, 0, 640, 360])?.number, Ok(0), "{container:?}: the key frame at a tenth");
    }
    Ok(())
}

#[test]
fn all_of_the_video_is_on_one_sheet_unless_seconds_are_asked_for() -> Result<()> {
    let (clip, output) = (clip(Container::Mp4), tempfile::tempdir()?);
    shoal::done(clip.file()?, output.path(), &["--ladder", "240", "--storyboard=2x1"])?;
    assert_eq!(rules::faults(output.path())?, Vec::<String>::new());
    let cues = stills::storyboard(output.path())?;
    assert_eq!(
        cues.iter().map(|cue| (cue.start_ms, cue.place)).collect::<Vec<_>>(),
        [(0, [0, 0, 160, 90]), (11_500, [160, 0, 160, 90])]
    );
    assert_eq!(stills::barcode(&cues[1].sheet, cues[1].place)?.number, Ok(250));
    assert_eq!(stills::report(output.path())?["poster"], Value::Null);
    Ok(())
}

/// Eleven pictures of odd sides, three seconds apart, where there are places for twelve.
const EXACT: &str = r#"--storyboard={"columns":4,"rows":3,"height":121,"exact_width":193,"seconds":3}"#;

#[test]
fn an_exact_storyboard_shows_the_frames_of_its_times_and_black_where_there_is_none() -> Result<()> {
    for container in [Container::Mp4, Container::Mkv, Container::Ts, Container::Webm] {
        // A key frame every 10 s.
        let (clip, output) = (Clip { gop: 250, ..Clip::new("25", 33).container(container) }, tempfile::tempdir()?);
        shoal::done(clip.file()?, output.path(), &["--make", "stills", "--poster", EXACT])?;
        let cues = stills::storyboard(output.path())?;
        let starts: Vec<u64> = cues.iter().map(|cue| cue.start_ms).collect();
        assert_eq!(starts, (0..11).map(|number| number * 3000).collect::<Vec<_>>(), "{container:?}");
        let sheets: BTreeSet<&PathBuf> = cues.iter().map(|cue| &cue.sheet).collect();
        let sheet = sheets.first().context("a sheet")?;
        assert_eq!((sheets.len(), stills::size(sheet)?), (1, (4 * 193, 3 * 121)), "{container:?}");
        for (number, cue) in (0..).zip(&cues) {
            assert_eq!(cue.place, [number % 4 * 193, number / 4 * 121, 193, 121], "{container:?}");
            assert_eq!(stills::barcode(sheet, cue.place)?.number, Ok(75 * number), "{container:?}: {cue:?}");
            assert!(stills::brightest(sheet, cue.place)? > 200, "{container:?}: {cue:?}");
        }
        assert!(stills::brightest(sheet, [3 * 193, 2 * 121, 193, 121])? < 10, "{container:?}: nothing is in the last place");
        let poster = stills::poster(output.path())?;
        assert_eq!(stills::barcode(&poster, [0, 0, 640, 360])?.number, Ok(0), "{container:?}: still a key frame");
    }
    Ok(())
}

#[test]
fn an_exact_storyboard_beside_the_ladder_has_no_more_pictures_than_places() -> Result<()> {
    let (clip, output) = (clip(Container::Mp4), tempfile::tempdir()?);
    let grid = r#"--storyboard={"columns":3,"rows":1,"height":121,"exact_width":193,"seconds":6}"#;
    shoal::done(clip.file()?, output.path(), &["--ladder", "240", grid])?;
    assert_eq!(check::faults(output.path(), &clip)?, Vec::<String>::new());
    let cues = stills::storyboard(output.path())?;
    assert_eq!(cues.iter().map(|cue| cue.start_ms).collect::<Vec<_>>(), [0, 6000, 12_000]);
    assert_eq!(stills::size(&cues[0].sheet)?, (3 * 193, 121));
    for (cue, number) in cues.iter().zip([0, 150, 300]) {
        assert_eq!(stills::barcode(&cue.sheet, cue.place)?.number, Ok(number), "{cue:?}");
    }
    Ok(())
}

#[test]
fn still_pictures_alone_are_all_there_is_and_the_report_leads_to_them() -> Result<()> {
    let (clip, output) = (clip(Container::Mkv), tempfile::tempdir()?);
    let asked = ["--make", "stills", "--poster", "--storyboard=2x1", "--mp4", "--publish", "in-stages", "--json"];
    let told: Value = serde_json::from_slice(&shoal::done(clip.file()?, output.path(), &asked)?.stdout)?;
    assert!(told.get("master").is_none() && told["renditions"] == json!([]), "{told}");
    assert!(told["report"].as_str().is_some_and(|path| path.ends_with("/report.json")), "{told}");
    let mut named = stills::files(output.path())?;
    named.insert(output.path().join("report.json"));
    assert_eq!(rules::files_below(output.path())?.into_iter().collect::<BTreeSet<_>>(), named);
    assert_eq!(named.len(), 4, "poster, sheet, track and report: {named:?}");
    let cues = stills::storyboard(output.path())?;
    assert_eq!(cues.iter().map(|cue| cue.start_ms).collect::<Vec<_>>(), [0, 11_500]);
    assert_eq!(stills::barcode(&cues[1].sheet, cues[1].place)?.number, Ok(250));
    Ok(())
}

#[test]
fn still_pictures_alone_take_a_picture_and_something_to_make() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (sound, output) = (folder.path().join("sound.m4a"), folder.path().join("out"));
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error", "-f", "lavfi", "-i", "sine=d=3", "-c:a", "aac"]).arg(&sound);
    process::run(&mut ffmpeg, MAKE_LIMIT)?.success()?;
    for (flags, status, code, said) in [
        (&["--make", "stills", "--poster", "--json"][..], 1, "no_decodable_stream", "there is no picture"),
        (&["--make", "stills", "--json"], 2, "invalid_request", "make: "),
    ] {
        let run = shoal::run(shoal::transcode(&sound, &output, flags)?, shoal::RUN_LIMIT)?;
        let told = shoal::told(&run.stdout)?;
        assert_eq!((run.status.code(), told.code.as_str()), (Some(status), code), "{}", told.message);
        assert!(told.message.starts_with(said), "{}", told.message);
        assert_eq!(rules::files_below(&output)?, Vec::<PathBuf>::new());
    }
    Ok(())
}

#[test]
fn nothing_is_made_unless_it_is_asked_for() -> Result<()> {
    let output = tempfile::tempdir()?;
    shoal::done(Clip::new("25", 6).file()?, output.path(), &["--ladder", "240"])?;
    assert_eq!(stills::report(output.path())?, Value::Null);
    assert!(!output.path().join("stills").exists());
    Ok(())
}

/// The quarters of the picture, by red, green and blue.
const QUARTERS: [[u8; 3]; 4] = [[200, 40, 40], [40, 180, 60], [50, 60, 200], [210, 200, 60]];

/// Five seconds of [`QUARTERS`] in this matrix, turned when shown.
fn quarters(folder: &Path, matrix: &str, turned: Option<&str>) -> Result<PathBuf> {
    let file = folder.join(format!("{matrix}.mp4"));
    let colour = |rgb: [u8; 3]| format!("color=0x{:02x}{:02x}{:02x}:s=160x120:r=25:d=5,format=gbrp", rgb[0], rgb[1], rgb[2]);
    let sources: Vec<String> =
        QUARTERS.iter().zip(["a", "b", "c", "d"]).map(|(rgb, name)| format!("{}[{name}]", colour(*rgb))).collect();
    let graph = format!(
        "{};[a][b]hstack[u];[c][d]hstack[l];[u][l]vstack,scale=out_color_matrix={matrix}:out_range=tv,format=yuv420p",
        sources.join(";")
    );
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error", "-f", "lavfi", "-i", &graph, "-c:v", "libx264", "-preset", "veryfast", "-crf", "8"]);
    let tag = if matrix == "bt601" { "smpte170m" } else { matrix };
    ffmpeg.args(["-colorspace", tag, "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]);
    process::run(ffmpeg.arg(&file), MAKE_LIMIT)?.success()?;
    let Some(degrees) = turned else { return Ok(file) };
    // Only what is copied keeps its turn.
    let copy = folder.join(format!("{matrix}-{degrees}.mp4"));
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error", "-i"]).arg(&file).args(["-c", "copy", "-metadata:s:v", &format!("rotate={degrees}")]);
    process::run(ffmpeg.arg(&copy), MAKE_LIMIT)?.success()?;
    Ok(copy)
}

#[test]
fn colours_are_the_sources_whatever_it_is_coded_in_and_pictures_are_upright() -> Result<()> {
    // ffmpeg writes and reads "90" as a quarter turn to the left: the right column is the upper row then.
    for (matrix, turned, order) in
        [("bt709", None, [0, 1, 2, 3]), ("bt601", None, [0, 1, 2, 3]), ("bt709", Some("90"), [1, 3, 0, 2])]
    {
        let (folder, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let source = quarters(folder.path(), matrix, turned)?;
        shoal::done(&source, output.path(), &["--ladder", "240", "--poster", "--storyboard=1x1"])?;
        let poster = stills::poster(output.path())?;
        assert_eq!(stills::size(&poster)?, if turned.is_some() { (240, 320) } else { (320, 240) });
        let alone = tempfile::tempdir()?;
        let exact = r#"--storyboard={"columns":1,"rows":1,"height":91,"exact_width":161,"seconds":1}"#;
        shoal::done(&source, alone.path(), &["--make", "stills", exact])?;
        let cues = [stills::storyboard(output.path())?, stills::storyboard(alone.path())?];
        assert_eq!(stills::size(&cues[1][0].sheet)?, (161, 91), "whatever its shape was");
        for picture in [&poster, &cues[0][0].sheet, &cues[1][0].sheet] {
            let seen = stills::quarters(picture)?;
            let wanted = order.map(|quarter| QUARTERS[quarter]);
            let off = seen.iter().flatten().zip(wanted.iter().flatten()).map(|(a, b)| a.abs_diff(*b)).max();
            // Up to 3 are lost in coding the source.
            assert!(off <= Some(5), "{matrix} {}: {seen:?} instead of {wanted:?}", picture.display());
            corpus::say(&format!("{matrix} {turned:?}: off by at most {off:?} of 255"));
        }
    }
    Ok(())
}

#[test]
fn a_poster_is_not_black_when_something_is_shown_anywhere_near() -> Result<()> {
    let (folder, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let source = folder.path().join("dark.mp4");
    let mut ffmpeg = Command::new("ffmpeg");
    let graph = "color=black:s=320x240:r=25:d=8[a];testsrc2=s=320x240:r=25:d=12[b];[a][b]concat=n=2";
    ffmpeg.args(["-nostdin", "-v", "error", "-f", "lavfi", "-i", graph, "-c:v", "libx264", "-preset", "veryfast", "-g", "25"]);
    process::run(ffmpeg.args(["-pix_fmt", "yuv420p"]).arg(&source), MAKE_LIMIT)?.success()?;
    shoal::done(&source, output.path(), &["--ladder", "240", "--poster"])?;
    let report = stills::report(output.path())?;
    assert_eq!(report["poster"]["shown_ns"], 10_000_000_000_u64, "the middle is the first place that is not black: {report}");
    let seen = stills::quarters(&stills::poster(output.path())?)?;
    assert!(seen.iter().flatten().any(|level| *level > 60), "{seen:?}");
    Ok(())
}

/// The CPU time of all tasks whose name begins so, in ms.
fn cpu_ms(report: &Value, task: &str) -> u64 {
    let tasks = report["cost"]["tasks"].as_array().into_iter().flatten();
    tasks
        .filter(|cost| cost["task"].as_str().is_some_and(|name| name.starts_with(task)))
        .filter_map(|cost| cost["cost"]["cpu_ms"].as_u64())
        .sum()
}

#[test]
fn still_pictures_cost_a_small_part_of_the_encode() -> Result<()> {
    let (clip, output) = (Clip::new("25", 60).size(1280, 720), tempfile::tempdir()?);
    shoal::done(clip.file()?, output.path(), &["--poster", "--storyboard"])?;
    let report: Value = serde_json::from_slice(&std::fs::read(output.path().join("report.json"))?)?;
    let (stills, video) = (cpu_ms(&report, "stills"), cpu_ms(&report, "video"));
    corpus::say(&format!("still pictures: {stills} ms of CPU, the picture's rungs {video} ms"));
    assert!(stills > 0 && stills * 8 < video, "{stills} ms beside {video} ms");
    // Alone, by their exact times, with all that is done for them.
    let output = tempfile::tempdir()?;
    let grid = r#"--storyboard={"columns":3,"rows":2,"height":108,"exact_width":192,"seconds":10}"#;
    shoal::done(clip.file()?, output.path(), &["--make", "stills", grid])?;
    let report: Value = serde_json::from_slice(&std::fs::read(output.path().join("report.json"))?)?;
    let alone = cpu_ms(&report, "");
    corpus::say(&format!("an exact storyboard alone: {alone} ms of CPU"));
    assert!(alone > 0 && alone * 5 < video, "{alone} ms beside {video} ms");
    Ok(())
}
