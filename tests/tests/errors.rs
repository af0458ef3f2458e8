//! Everything that can go wrong from outside: an exit code that says whose fault it is, one line that says what, a code for
//! programs, and nothing in the output that looks like a result.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::clip::Clip;
use tests::server::{Answer, Server, closed_url};
use tests::{corpus, process, rules, shoal};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs it twice, for people and for programs, and checks everything but the output folder's content.
/// `codes` are those allowed.
fn fails(input: impl Into<OsString>, output: &Path, flags: &[&str], exit: i32, codes: &[&str]) -> Result<()> {
    let input = input.into();
    let shown = format!("{} → {} {flags:?}", input.display(), output.display());
    let people = shoal::run(shoal::transcode(&input, output, flags)?, LIMIT)?;
    assert_eq!(people.status.code(), Some(exit), "{shown}: {}", people.stderr);
    assert_eq!(people.stderr.lines().count(), 1, "{shown} says more or less than one line: {}", people.stderr);
    assert_eq!(people.text(), "", "{shown} prints to stdout");
    let programs = shoal::run(shoal::transcode(&input, output, &[flags, &["--json"]].concat())?, LIMIT)?;
    assert_eq!(programs.status.code(), Some(exit), "{shown} --json");
    let told = shoal::told(&programs.stdout).context(shown.clone())?;
    assert!(codes.contains(&told.code.as_str()), "{shown}: {told:?} instead of {codes:?}");
    assert!(!told.message.is_empty() && !told.message.contains('\n'), "{shown}: {told:?}");
    assert!(
        people.stderr.contains(&told.message),
        "{shown} says '{}' to people and '{}' to programs",
        people.stderr,
        told.message
    );
    let left = rules::files_below(output).unwrap_or_default();
    assert_eq!(left, Vec::<PathBuf>::new(), "{shown} leaves files");
    Ok(())
}

#[test]
fn sources_that_are_no_media() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str, content: &[u8]| -> Result<PathBuf> {
        let path = folder.path().join(name);
        fs::write(&path, content)?;
        Ok(path)
    };
    let clip = fs::read(Clip::new("25", 6).file()?)?;
    let sources = [
        (file("text.mp4", b"This is no video at all, but a text that somebody gave the wrong name.\n")?, &["not_media"][..]),
        (file("empty.mp4", b"")?, &["not_media", "truncated"]),
        (file("zeros.mp4", &[0; 100_000])?, &["not_media"]),
        // Cut off before its tables, which this clip has at the end.
        (file("cut.mp4", &clip[..clip.len() / 2])?, &["truncated", "not_media", "no_decodable_stream"]),
        (file("page.html", b"<!doctype html><title>Not found</title><p>The video is not here.")?, &["not_media"]),
    ];
    for (source, codes) in sources {
        fails(source, &folder.path().join("out"), &[], 1, codes)?;
    }
    Ok(())
}

#[test]
fn a_source_that_names_others_reaches_nobody() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (inside, clip) = (TcpListener::bind("127.0.0.1:0")?, Clip::new("25", 6).file()?);
    inside.set_nonblocking(true)?;
    let (there, here) = (format!("http://{}/a.ts", inside.local_addr()?), format!("file://{}", clip.display()));
    for (name, content) in [
        ("list.m3u8", format!("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{there}\n#EXT-X-ENDLIST\n")),
        ("file.m3u8", format!("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{here}\n#EXT-X-ENDLIST\n")),
        (
            "manifest.mpd",
            format!(
                "<?xml version=\"1.0\"?><MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" type=\"static\" \
                 mediaPresentationDuration=\"PT4S\"><Period><AdaptationSet mimeType=\"video/mp4\"><Representation id=\"1\" \
                 bandwidth=\"1\"><BaseURL>{there}</BaseURL></Representation></AdaptationSet></Period></MPD>"
            ),
        ),
        ("session.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n".to_owned()),
        (
            "picture.svg",
            format!("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"9\" height=\"9\"><image href=\"{there}\"/></svg>"),
        ),
        ("list.pls", format!("[playlist]\nFile1={there}\nNumberOfEntries=1\n")),
        ("list.asx", format!("<asx version=\"3.0\"><entry><ref href=\"{there}\"/></entry></asx>")),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, content)?;
        let codes = &["not_media", "no_decodable_stream", "unsupported_codec"];
        fails(&path, &folder.path().join("out"), &[], 1, codes)?;
        // The plugins are gone even where there are no walls.
        fails(&path, &folder.path().join("out"), &["--sandbox", "off"], 1, codes)?;
    }
    assert!(inside.accept().is_err(), "somebody was asked");
    Ok(())
}

#[test]
fn a_picture_that_is_too_large_is_refused_before_it_is_decoded() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("clip.webm");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-f", "lavfi", "-i", "testsrc=s=320x256:r=5:d=2", "-c:v", "libvpx"]).arg(&source);
    process::run(&mut ffmpeg, LIMIT)?.success()?;
    shoal::done(&source, &folder.path().join("good"), &[])?;
    // PixelWidth and PixelHeight. What decodes them is the stream, which is as small as ever.
    let (good, large) = ([0xB0, 0x82, 1, 64, 0xBA, 0x82, 1, 0], [0xB0, 0x82, 0x40, 0, 0xBA, 0x82, 0x3F, 0xFF]);
    let mut bytes = fs::read(&source)?;
    let at = bytes.windows(good.len()).position(|window| window == good).context("no size in the header")?;
    bytes[at..at + large.len()].copy_from_slice(&large);
    fs::write(&source, bytes)?;
    fails(&source, &folder.path().join("out"), &[], 1, &["limit_exceeded"])
}

#[test]
fn sources_of_the_corpus_that_cannot_be_decoded() -> Result<()> {
    let Some(media) = corpus::folder() else { return Ok(()) };
    for (name, codes) in [
        ("sample_vvc.mp4", &["unsupported_codec"][..]),
        ("invalid-bitstream.webm", &["undecodable"]),
        ("large_stbl_truncated_after_moov.m4b", &["truncated"]),
        ("video_short_fake.webm", &["not_media"]),
    ] {
        let output = tempfile::tempdir()?;
        fails(media.join(name), output.path(), &[], 1, codes)?;
    }
    let output = tempfile::tempdir()?;
    let run = shoal::run(shoal::transcode(media.join("sample_vvc.mp4"), output.path(), &[])?, LIMIT)?;
    assert!(["H.266", "VVC"].iter().any(|name| run.stderr.contains(name)), "does not name the codec: {}", run.stderr);
    Ok(())
}

#[test]
fn sources_that_cannot_be_read() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("out");
    fails(folder.path().join("nowhere.mp4"), &output, &[], 1, &["source_unreadable"])?;
    fails(folder.path(), &output, &[], 1, &["source_unreadable"])?;
    fails(closed_url()?, &output, &[], 1, &["source_unreadable"])?;
    for answer in [Answer::Status(404), Answer::Status(403), Answer::RedirectLoop, Answer::Status(200)] {
        let server = Server::start(answer.clone())?;
        let codes = ["source_unreadable", "not_media"];
        fails(server.url("video.mp4"), &output, &[], 1, &codes).with_context(|| format!("{answer:?}"))?;
    }
    Ok(())
}

#[test]
fn other_sources_that_an_edit_names_and_that_are_not_there() -> Result<()> {
    let (source, folder) = (Clip::new("25", 6).file()?, tempfile::tempdir()?);
    let edit = r#"[{"before": {"url": "nowhere/intro.mp4"}}]"#;
    fails(&source, &folder.path().join("out"), &["--edit", edit], 1, &["source_unreadable"])
}

#[test]
fn a_url_shows_no_secrets_when_it_fails() -> Result<()> {
    let output = tempfile::tempdir()?;
    let server = Server::start(Answer::Status(404))?;
    let url = server.url("video.mp4?signature=dont-tell").replace("http://", "http://user:hush@");
    let run = shoal::run(shoal::transcode(url, output.path(), &[])?, LIMIT)?;
    assert_eq!(run.status.code(), Some(1));
    for secret in ["dont-tell", "hush"] {
        assert!(!run.stderr.contains(secret), "{}", run.stderr);
    }
    Ok(())
}

#[test]
fn outputs_that_cannot_be_written() -> Result<()> {
    let source = Clip::new("25", 6).file()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    fs::write(&file, "a file, not a folder")?;
    fails(&source, &file, &[], 3, &["storage_unwritable"])?;
    fails(&source, &file.join("below"), &[], 3, &["storage_unwritable"])?;
    assert_eq!(fs::read(&file)?, b"a file, not a folder");
    let Some(_mounted) = Mounted::tmpfs(folder.path(), "readonly", "ro,size=1m")? else { return Ok(()) };
    fails(&source, &folder.path().join("readonly"), &[], 3, &["storage_unwritable"])
}

/// Room for the tables and the first segments, not for the rest.
#[test]
fn a_disk_that_gets_full() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(_mounted) = Mounted::tmpfs(folder.path(), "small", "size=300k")? else { return Ok(()) };
    let output = folder.path().join("small");
    let run = shoal::run(shoal::transcode(Clip::new("25", 20).file()?, &output, &["--json"])?, LIMIT)?;
    assert_eq!(run.status.code(), Some(3), "{}", run.stderr);
    assert_eq!(shoal::told(&run.stdout)?.code, "storage_full");
    assert!(!output.join("master.m3u8").exists(), "it looks whole");
    Ok(())
}

/// A file system mounted for a test; root's privilege.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts it, or prints why not.
    fn tmpfs(folder: &Path, name: &str, options: &str) -> Result<Option<Self>> {
        let at = folder.join(name);
        fs::create_dir(&at)?;
        let run = process::run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "shoal-test"]).arg(&at), LIMIT)?;
        if run.status.success() {
            return Ok(Some(Self(at)));
        }
        corpus::skip(&format!("no file system can be mounted here: {}", run.stderr.trim()));
        Ok(None)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, for what a failed test may still hold open.
        let _ = process::run(Command::new("umount").arg("-l").arg(&self.0), LIMIT);
    }
}

#[test]
fn command_lines_that_make_no_sense() -> Result<()> {
    let source = Clip::new("25", 6).file()?;
    let output = tempfile::tempdir()?;
    for flags in [
        &["--no-such-flag"][..],
        &["--layout", "tape"],
        &["--ladder", "many"],
        &["--ladder", ""],
        &["--ladder", "8"],
        &["--ladder", "[]"],
        &["--ladder", r#"[{"height":240,"colour":"blue"}]"#],
        &["--ladder", r#"[{"height":240,"video":{"quality":20,"bitrate":100000}}]"#],
        &["--segment-seconds", "0"],
        &["--segment-seconds", "31"],
        &["--segment-seconds", "two"],
        &["--chunk-seconds", "0"],
        &["--slots", "0"],
        &["--slots", "-1"],
        &["--edit", "many"],
        &["--edit", r#"[{"blur":{}}]"#],
        &["--edit", r#"[{"keep":{"from":2,"to":1}}]"#],
    ] {
        let run = shoal::run(shoal::transcode(&source, output.path(), flags)?, LIMIT)?;
        assert_eq!(run.status.code(), Some(2), "{flags:?}: {}", run.stderr);
        assert!(!run.stderr.is_empty(), "{flags:?} says nothing");
        assert_eq!(rules::files_below(output.path())?, Vec::<PathBuf>::new(), "{flags:?}");
    }
    for arguments in [
        &["transcode"][..],
        &["transcode", "--output", "x"],
        &["probe"],
        &["dance"],
        &["submit", "--output", "s3://b/o/"],
        &["submit", "--output", "s3://b/o/", "--from", "/nowhere/list"],
        &["status", "film", "--watch"],
        &["completions", "csh"],
    ] {
        let run = shoal::run(shoal::command(arguments)?, LIMIT)?;
        assert_eq!(run.status.code(), Some(2), "{arguments:?}: {}", run.stderr);
    }
    Ok(())
}

#[test]
fn with_json_a_wrong_command_line_is_told_as_json_too() -> Result<()> {
    let output = tempfile::tempdir()?;
    let source = Clip::new("25", 6).file()?;
    for flags in [&["--json", "--no-such-flag"][..], &["--json", "--ladder", "many"], &["--json", "--ladder", "8"]] {
        let run = shoal::run(shoal::transcode(&source, output.path(), flags)?, LIMIT)?;
        assert_eq!(run.status.code(), Some(2), "{flags:?}");
        assert_eq!(shoal::told(&run.stdout)?.code, "invalid_request", "{flags:?}");
    }
    Ok(())
}

#[test]
fn probing_fails_the_same_way() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let text = folder.path().join("text.mp4");
    fs::write(&text, "no media")?;
    for (input, code) in [(text, "not_media"), (folder.path().join("nowhere"), "source_unreadable")] {
        let mut command = shoal::command(["probe", "--json"])?;
        command.arg(&input);
        let run = shoal::run(command, LIMIT)?;
        assert_eq!((run.status.code(), shoal::told(&run.stdout)?.code.as_str()), (Some(1), code), "{}", input.display());
    }
    Ok(())
}

#[test]
fn a_failed_source_leaves_an_older_result_gone_not_mixed() -> Result<()> {
    let output = tempfile::tempdir()?;
    shoal::done(Clip::new("25", 6).file()?, output.path(), &["--ladder", "240"])?;
    let text = output.path().with_extension("txt");
    fs::write(&text, "no media")?;
    let run = shoal::run(shoal::transcode(&text, output.path(), &[])?, LIMIT);
    fs::remove_file(&text)?;
    assert_eq!(run?.status.code(), Some(1));
    let files = rules::files_below(output.path())?;
    let whole = files.iter().any(|file| file.ends_with("master.m3u8"));
    // Either all of the old one, or nothing that a player would begin with.
    if whole {
        assert_eq!(rules::faults(output.path())?, Vec::<String>::new(), "a master.m3u8 that names what is not there");
    }
    Ok(())
}
