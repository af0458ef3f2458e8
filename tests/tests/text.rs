//! Text tracks: their cues at their times, in their languages, in every container; in a player too. Chapters in the report.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::clip::{Clip, Container};
use tests::hls::Presentation;
use tests::player::{self, play};
use tests::text::Cue;
use tests::{corpus, process, rules, shoal};

const MAKE_LIMIT: Duration = Duration::from_secs(60);
const PLAY_LIMIT: Duration = Duration::from_secs(90);

const SUBRIP: &str = "1\n00:00:01,000 --> 00:00:02,500\n<i>One</i> & <font color=\"#ff0000\">only</font>\nsecond line\n\n\
                      2\n00:00:04,200 --> 00:00:05,000\n1 < 2\n\n3\n00:00:08,040 --> 00:00:09,000\n{\\an8}up\n";
const OTHER: &str = "1\n00:00:01,000 --> 00:00:02,500\nEins\n\n2\n00:00:03,000 --> 00:00:04,000\nZwölf\n";
const DIALOGUE: &str = "[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\nStyle: Default,Arial,20\n\n\
                        [Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n\
                        Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\i1}One{\\i0}, two\\Nthree\n\
                        Dialogue: 0,0:00:04.20,0:00:05.00,Default,,0,0,0,,{\\pos(10,20)}placed\n";

/// A clip of 12 s whose time starts at 0 in every container: priming of sound would move the picture.
fn silent(container: Container) -> Clip {
    Clip { audio: false, ..Clip::new("25", 12).container(container) }
}

fn cue(start_ms: u64, end_ms: u64, text: &str) -> Cue {
    Cue { start_ms, end_ms, text: text.to_owned() }
}

/// A clip with these text files put into its container by ffmpeg; `flags` say how.
fn with_text(folder: &Path, clip: &Clip, name: &str, texts: &[(&str, &str)], flags: &[&str]) -> Result<PathBuf> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-y", "-i"]).arg(clip.file()?);
    for (name, content) in texts {
        let file = folder.join(name);
        fs::write(&file, content)?;
        ffmpeg.arg("-i").arg(file);
    }
    ffmpeg.args(["-map", "0"]);
    for number in 1..=texts.len() {
        ffmpeg.args(["-map", &number.to_string()]);
    }
    let file = folder.join(name);
    ffmpeg.args(["-c:v", "copy", "-c:a", "copy"]).args(flags).arg(&file);
    process::run(&mut ffmpeg, MAKE_LIMIT)?.success()?;
    Ok(file)
}

fn report(folder: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(folder.join("report.json"))?)?)
}

/// Transcodes and reads; whatever else must hold of a result does.
fn made(source: &Path, folder: &Path, flags: &[&str]) -> Result<Presentation> {
    shoal::done(source, folder, &[&["--ladder", "240"], flags].concat())?;
    assert_eq!(rules::faults(folder)?, Vec::<String>::new());
    Presentation::read(folder)
}

#[test]
fn every_text_track_of_matroska_becomes_a_rendition_in_both_layouts() -> Result<()> {
    for layout in ["segments", "single-file"] {
        let (folder, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let languages =
            ["-metadata:s:s:0", "language=eng", "-metadata:s:s:1", "language=ger", "-metadata:s:s:1", "title=für alle"];
        let flags = [&["-c:s:0", "srt", "-c:s:1", "srt", "-c:s:2", "ass"][..], &languages].concat();
        let texts = [("a.srt", SUBRIP), ("b.srt", OTHER), ("c.ass", DIALOGUE)];
        let source = with_text(folder.path(), &silent(Container::Mkv), "text.mkv", &texts, &flags)?;
        let presentation = made(&source, output.path(), &["--layout", layout])?;
        let [first, second, third] = &presentation.texts[..] else { panic!("{:?}", presentation.texts) };
        let described = |media: &m3u8_rs::AlternativeMedia| (media.language.clone(), media.name.clone());
        assert_eq!(described(&first.media), (Some("en".to_owned()), "en".to_owned()));
        assert_eq!(described(&second.media), (Some("de".to_owned()), "für alle".to_owned()));
        assert_eq!(described(&third.media), (None, "Text 3".to_owned()));
        assert_eq!(
            first.cues(),
            [cue(1000, 2500, "<i>One</i> &amp; only\nsecond line"), cue(4200, 5000, "1 &lt; 2"), cue(8040, 9000, "up"),]
        );
        assert_eq!(second.cues(), [cue(1000, 2500, "Eins"), cue(3000, 4000, "Zwölf")]);
        assert_eq!(third.cues(), [cue(1000, 2500, "<i>One</i>, two\nthree"), cue(4200, 5000, "placed")]);
        let report = report(output.path())?;
        assert_eq!(report["text"][0]["account"], serde_json::json!({"cues": 3, "plainer": 2, "cut": 0}));
        let notes = report["notes"].to_string();
        assert!(notes.contains("text 'en': 2 cues lose") && notes.contains("text 'Text 3': 1 cues lose"), "{notes}");
    }
    Ok(())
}

/// MP4 keeps each text as a sample of its own, with empty ones between; a late start of the picture moves them too.
#[test]
fn text_of_mp4_and_webm_keeps_its_times() -> Result<()> {
    let (folder, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let source = with_text(folder.path(), &Clip::new("25", 12), "text.mp4", &[("a.srt", SUBRIP)], &["-c:s", "mov_text"])?;
    let presentation = made(&source, output.path(), &[])?;
    let [text] = &presentation.texts[..] else { panic!("{:?}", presentation.texts) };
    let lines: Vec<_> = text.cues().into_iter().map(|cue| (cue.start_ms, cue.end_ms, cue.text)).collect();
    let line = |start_ms, end_ms, text: &str| (start_ms, end_ms, text.to_owned());
    assert_eq!(lines, [line(1000, 2500, "One &amp; only\nsecond line"), line(4200, 5000, "1 &lt; 2"), line(8040, 9000, "up")]);

    let vtt = "WEBVTT\n\n00:01.000 --> 00:02.500 line:0\n<v Mary>One &amp; only</v>\n\n00:04.200 --> 00:05.000\ntwo\n";
    let output = tempfile::tempdir()?;
    let clip = silent(Container::Webm);
    let source = with_text(folder.path(), &clip, "text.webm", &[("a.vtt", vtt)], &["-c:s", "webvtt"])?;
    let presentation = made(&source, output.path(), &[])?;
    let [text] = &presentation.texts[..] else { panic!("{:?}", presentation.texts) };
    assert_eq!(text.cues(), [cue(1000, 2500, "One &amp; only"), cue(4200, 5000, "two")]);
    Ok(())
}

/// Presentation begins with the first frame, whatever the source's time is then; long texts reach over segments.
#[test]
fn cues_follow_the_picture_when_it_starts_late_and_reach_over_segments() -> Result<()> {
    let (folder, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let long = "1\n00:00:00,500 --> 00:00:03,000\nbefore\n\n2\n00:01:01,000 --> 00:01:03,000\nover the edge\n";
    let clip = Clip { audio: false, ..Clip::new("25", 70).container(Container::Mkv) };
    let flags = ["-c:s", "srt"];
    let plain = with_text(folder.path(), &clip, "plain.mkv", &[("a.srt", long)], &flags)?;
    // The first 2 s of the picture are left out, those of the text are not.
    let source = folder.path().join("late.mkv");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-y", "-i"]).arg(&plain);
    ffmpeg.args(["-map", "0", "-c:s", "copy", "-vf", "select='gte(n,50)'", "-fps_mode", "passthrough"]);
    ffmpeg.args(["-c:v", "libx264", "-preset", "ultrafast", "-copyts"]).arg(&source);
    process::run(&mut ffmpeg, MAKE_LIMIT)?.success()?;
    let presentation = made(&source, output.path(), &[])?;
    let [text] = &presentation.texts[..] else { panic!("{:?}", presentation.texts) };
    assert_eq!(text.segments.len(), 2, "a minute, and the rest");
    assert_eq!(text.cues(), [cue(0, 1000, "before"), cue(59_000, 61_000, "over the edge")]);
    assert!(text.segments.iter().all(|(_, cues)| cues.iter().any(|cue| cue.text == "over the edge")));
    Ok(())
}

#[test]
fn a_player_shows_cues_at_their_times() -> Result<()> {
    let (folder, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let flags = ["-c:s", "mov_text", "-metadata:s:s:0", "language=eng"];
    let clip = Clip::new("25", 12);
    let source = with_text(folder.path(), &clip, "text.mp4", &[("a.srt", SUBRIP), ("b.srt", OTHER)], &flags)?;
    made(&source, output.path(), &[])?;
    let played = play(output.path(), "master.m3u8", 0, PLAY_LIMIT)?;
    assert_eq!((played.said.errors.clone(), played.said.ended), (Vec::new(), true));
    assert_eq!(played.frame_faults(&clip), Vec::<String>::new(), "the picture is where cues are measured from");
    let near = |seconds: f64, ms: f64| (seconds * 1000.0 - ms).abs() < 1.0;
    let wanted = [(1000.0, 2500.0, "One &amp; only\nsecond line"), (4200.0, 5000.0, "1 &lt; 2"), (8040.0, 9000.0, "up")];
    let texts = &played.said.texts;
    assert_eq!(texts.len(), wanted.len(), "{texts:?}");
    for (cue, (start_ms, end_ms, text)) in texts.iter().zip(wanted) {
        assert!(near(cue.start_s, start_ms) && near(cue.end_s, end_ms) && cue.text == text, "{cue:?}");
    }
    for player::Visit { at_s, text, .. } in &played.visits {
        let due = wanted.iter().find(|(start_ms, end_ms, _)| (*start_ms..*end_ms).contains(&(at_s * 1000.0)));
        assert_eq!(text, due.map_or("", |(_, _, text)| text), "at {at_s} s");
    }
    for (start_ms, end_ms, text) in wanted {
        let seen = played.visits.iter().filter(|visit| visit.text == text).count();
        assert!(seen > 0, "no moment between {start_ms} and {end_ms} ms was visited");
    }
    Ok(())
}

#[test]
fn chapters_are_in_the_report_and_their_titles_no_subtitles() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let chapters = ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=5000\ntitle=One\n\
                    [CHAPTER]\nTIMEBASE=1/1000\nSTART=5000\nEND=12000\ntitle=Zwölf\n";
    for container in [Container::Mp4, Container::Mkv] {
        let clip = silent(container);
        let name = format!("chapters.{}", container.extension());
        let (list, source) = (folder.path().join("chapters.txt"), folder.path().join(&name));
        fs::write(&list, chapters)?;
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin", "-y", "-i"]).arg(clip.file()?).arg("-i").arg(&list);
        ffmpeg.args(["-map", "0", "-map_chapters", "1", "-c", "copy"]).arg(&source);
        process::run(&mut ffmpeg, MAKE_LIMIT)?.success()?;
        let output = tempfile::tempdir()?;
        let presentation = made(&source, output.path(), &[])?;
        assert!(presentation.texts.is_empty(), "{:?}", presentation.texts);
        let report = report(output.path())?;
        let told = report["chapters"].as_array().context("chapters")?;
        let told: Vec<_> = told.iter().map(|c| (c["start_ns"].as_u64(), c["end_ns"].as_u64(), c["title"].as_str())).collect();
        let at = |seconds: u64| Some(seconds * 1_000_000_000);
        assert_eq!(told[..1], [(at(0), at(5), Some("One"))], "{name}");
        assert_eq!((told[1].0, told[1].2, told.len()), (at(5), Some("Zwölf"), 2), "{name}");
        assert!(told[1].1.is_some_and(|end| (12_000_000_000..12_100_000_000).contains(&end)), "{name}: {told:?}");
    }
    Ok(())
}

#[test]
fn text_of_real_files() -> Result<()> {
    let Some(folder) = corpus::folder() else { return Ok(()) };
    let output = tempfile::tempdir()?;
    let presentation = made(&folder.join("sample_with_srt.mkv"), output.path(), &[])?;
    let [text] = &presentation.texts[..] else { panic!("{:?}", presentation.texts) };
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg
        .args(["-v", "error", "-nostdin", "-i"])
        .arg(folder.join("sample_with_srt.mkv"))
        .args(["-map", "0:s:0", "-f", "srt", "-"]);
    let read = process::run(&mut ffmpeg, MAKE_LIMIT)?.success()?.text();
    let wanted = read.matches(" --> ").count();
    assert_eq!(text.cues().len(), wanted, "{read}");
    let output = tempfile::tempdir()?;
    let presentation = made(&folder.join("sample_with_pgs_subtitles.mkv"), output.path(), &[])?;
    assert!(presentation.texts.is_empty());
    let dropped = report(output.path())?["dropped"].to_string();
    assert!(dropped.contains("subtitles that are pictures"), "{dropped}");
    let output = tempfile::tempdir()?;
    let presentation = made(&folder.join("video_chapters.mp4"), output.path(), &[])?;
    assert!(presentation.texts.is_empty());
    let chapters = report(output.path())?["chapters"].clone();
    assert!(chapters.as_array().is_some_and(|chapters| !chapters.is_empty()), "{chapters}");
    corpus::say(&format!("video_chapters.mp4: {chapters}"));
    Ok(())
}
