//! Edits that cannot be done: whose fault it is, in one line that says which step or source; and what edits leave out.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::{rules, shoal};

use super::pictures::{grey, still};
use super::{FLAGS, LIMIT, Made, at, clip, remade};

/// Asks for an edit that cannot be done: with one of these exit codes, and all of these words in the one line that says why.
fn refused(input: &Path, edit: &str, flags: &[&str], exits: &[i32], words: &[&str]) -> Result<()> {
    let output = tempfile::tempdir()?;
    let flags = [&["--edit", edit][..], FLAGS, flags].concat();
    let programs = shoal::run(shoal::transcode(input, output.path(), &[&flags[..], &["--json"]].concat())?, LIMIT)?;
    let exit = programs.status.code().context("it was killed")?;
    assert!(exits.contains(&exit), "{edit}: {exit} instead of {exits:?}: {}", programs.stderr);
    let told = shoal::told(&programs.stdout).context(edit.to_owned())?;
    assert!(!told.message.is_empty() && !told.message.contains('\n'), "{edit}: {told:?}");
    assert!(words.iter().all(|word| told.message.contains(word)), "{edit}: {told:?} without {words:?}");
    assert_eq!(told.code == "invalid_request", exit == 2, "{edit}: {told:?}");
    let people = shoal::run(shoal::transcode(input, output.path(), &flags)?, LIMIT)?;
    assert_eq!(people.status.code(), Some(exit), "{edit}: {}", people.stderr);
    // How to use it may follow where a command line is not understood.
    let is_usage = people.stderr.starts_with("error: ");
    assert!(is_usage || people.stderr.lines().count() == 1, "{edit} says more or less than one line: {}", people.stderr);
    assert!(people.stderr.contains(&told.message), "{edit} says '{}' to people and {told:?} to programs", people.stderr);
    assert_eq!(rules::files_below(output.path())?, Vec::<PathBuf>::new(), "{edit} leaves files");
    Ok(())
}

#[test]
fn steps_that_make_no_sense() -> Result<()> {
    let clip = clip("25", 4).file()?;
    let many = |count: usize| json!(vec![json!({"keep": {}}); count]).to_string();
    let stretches = json!([{"remove": vec![json!({"from": 1, "to": 2}); 101]}]).to_string();
    for (edit, words) in [
        ("nonsense", &[][..]),
        (r#"{"keep":{"from":1}}"#, &[]),
        (r#"[{"blur":{}}]"#, &["blur"]),
        (r#"[{"keep":{"start":1}}]"#, &["start"]),
        (r#"[{"keep":{"from":-1}}]"#, &["-1"]),
        (r#"[{"keep":{}},{"keep":{"from":2,"to":2}}]"#, &["step 2"]),
        (r#"[{"overlay":{"source":{"url":"file:///x.png"},"height":1.5}}]"#, &["1.5"]),
        (&many(33), &["33 steps"]),
        (&stretches, &["101 stretches"]),
    ] {
        refused(&clip, edit, &[], &[2], words)?;
    }
    refused(&clip, &many(1), &["--poster"], &[2], &["still pictures"])
}

#[test]
fn steps_that_leave_nothing() -> Result<()> {
    let clip = clip("25", 4).file()?;
    for edit in [
        json!([{"keep": {"from": 100}}]),
        json!([{"keep": {"from": 1, "to": 2}}, {"keep": {"from": 1}}]),
        json!([{"remove": [{"from": 0, "to": 2}, {"from": 2, "to": 9}]}]),
        // Less than half a frame.
        json!([{"keep": {"from": 1, "to": 1.001}}]),
    ] {
        refused(&clip, &edit.to_string(), &[], &[1, 2], &[])?;
    }
    Ok(())
}

#[test]
fn other_sources_that_cannot_be_used_are_named() -> Result<()> {
    let (folder, clip) = (tempfile::tempdir()?, clip("25", 4).file()?);
    let file = |name: &str, content: &[u8]| -> Result<PathBuf> {
        let path = folder.path().join(name);
        fs::write(&path, content)?;
        Ok(path)
    };
    let picture = fs::read(still(folder.path(), "whole.png", (320, 180), |x, y| [(x * y) as u8, x as u8, y as u8, 255])?)?;
    let film = fs::read(grey(folder.path(), "film.mp4", 60, 1)?)?;
    let media = ["before", "after", "sound"];
    let step = |kind: &str, source: Value| match kind {
        "overlay" => json!([{"overlay": {"source": source, "height": 0.2}}]),
        _ => json!([{ kind: source }]),
    };
    let nowhere = folder.path().join("nowhere.bin");
    for kind in ["before", "after", "sound", "overlay"] {
        refused(&clip, &step(kind, at(&nowhere)).to_string(), &[], &[1], &["nowhere.bin"])?;
    }
    for kind in media {
        let text = file("text.mp4", b"This is no video at all, but a text that somebody gave the wrong name.\n")?;
        refused(&clip, &step(kind, at(&text)).to_string(), &[], &[1], &["text.mp4"])?;
    }
    for (name, content) in [
        ("broken.png", [b"\x89PNG\r\n\x1a\n".as_slice(), &[0; 5000]].concat()),
        ("cut.png", picture[..picture.len() / 2].to_vec()),
        ("empty.png", Vec::new()),
        ("film.png", film),
    ] {
        refused(&clip, &step("overlay", at(&file(name, &content)?)).to_string(), &[], &[1], &[name])?;
    }
    Ok(())
}

#[test]
fn text_and_chapters_are_left_out_and_that_is_told() -> Result<()> {
    let (folder, clip) = (tempfile::tempdir()?, clip("25", 6));
    let (text, chapters) = (folder.path().join("text.srt"), folder.path().join("chapters.txt"));
    fs::write(&text, "1\n00:00:01,000 --> 00:00:02,500\nOne\n\n2\n00:00:04,200 --> 00:00:05,000\nTwo\n")?;
    fs::write(
        &chapters,
        ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=3000\ntitle=One\n\
                          [CHAPTER]\nTIMEBASE=1/1000\nSTART=3000\nEND=6000\ntitle=Two\n",
    )?;
    let [text, chapters] = [&text, &chapters].map(|path| path.to_str().expect("a path"));
    let after = ["-i", text, "-i", chapters, "-map", "0", "-map", "1", "-map_chapters", "2", "-c", "copy", "-c:s", "srt"];
    let source = remade(&[], &clip.file()?, &after, folder.path().join("all.mkv"))?;
    let made = Made::of(&source, &json!([{"keep": {"from": 1, "to": 4}}]), FLAGS)?;
    assert!(made.presentation.texts.is_empty(), "{:?}", made.presentation.texts);
    let report = made.report()?;
    assert_eq!(report["chapters"], json!([]));
    let notes = report["notes"].to_string();
    assert!(notes.contains("text") && notes.contains("chapter"), "{notes}");
    Ok(())
}
