//! Sources whose times are not as plain as could be: what is kept of them is right by what they show and when.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;
use tests::check;
use tests::clip::{Clip, Container};

use super::{FLAGS, Made, Part, clip, faults, remade};

const FRAGMENTED: &[&str] = &["-movflags", "frag_keyframe+delay_moov+default_base_moof"];

/// What is wrong with the stretch of a source that should be this part.
fn stretch_faults(source: &Path, (from, to): (f64, f64), part: Part) -> Result<Vec<String>> {
    let made = Made::of(source, &json!([{"keep": {"from": from, "to": to}}]), FLAGS)?;
    let sound = made.presentation.audios().next().map(|sound| sound.path.as_path());
    let off_ns_max = i64::try_from(check::tolerance_ns())?;
    faults(&made.file("v180/index.m3u8"), sound, (clip("25", 1).rate, off_ns_max), &[part])
}

fn none_of(faults: impl IntoIterator<Item = (String, Result<Vec<String>>)>) {
    let told = |(name, faults): (String, Result<Vec<String>>)| {
        let faults = faults.unwrap_or_else(|error| vec![format!("{error:#}")]);
        faults.into_iter().map(move |fault| format!("{name}: {fault}"))
    };
    assert_eq!(faults.into_iter().flat_map(told).collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn in_every_container_times_count_from_the_first_frame() {
    let source = |container| Clip { container, ..clip("25", 8) };
    none_of([Container::Ts, Container::Mkv, Container::Mov].map(|container| {
        let clip = source(container);
        let faults = clip.file().and_then(|file| stretch_faults(&file, (2.04, 5.0), Part::of(&clip, 51..125)));
        (container.extension().to_owned(), faults)
    }));
}

/// Cut without encoding: pictures and sound from the key frame on are in the file, and an edit list takes them off.
#[test]
fn by_the_times_of_an_edit_list() -> Result<()> {
    let (folder, clip) = (tempfile::tempdir()?, clip("25", 8));
    let cut = |name: &str, options: &[&str]| -> Result<PathBuf> {
        let after = [&["-map", "0:v", "-map", "0:a", "-c", "copy"], options].concat();
        remade(&["-ss", "2.4"], &clip.file()?, &after, folder.path().join(name))
    };
    none_of([("cut.mp4", &[][..]), ("fragmented.mp4", FRAGMENTED)].map(|(name, options)| {
        let faults = cut(name, options).and_then(|file| stretch_faults(&file, (1.0, 3.0), Part::of(&clip, 85..135)));
        (name.to_owned(), faults)
    }));
    Ok(())
}

#[test]
fn pictures_that_are_reordered_are_cut_in_the_order_in_which_they_are_shown() -> Result<()> {
    let (folder, clip) = (tempfile::tempdir()?, Clip { audio: false, ..clip("25", 8) });
    let silent = clip.file()?;
    let no_list = ["-map", "0:v", "-c", "copy", "-use_editlist", "0"];
    let no_list = remade(&[], &silent, &no_list, folder.path().join("no-list.mp4"))?;
    // Pictures that are shown before the key frame after which they are sent.
    let open = "keyint=50:min-keyint=50:scenecut=0:open-gop=1:bframes=3:threads=1";
    let open = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-x264-params", open];
    let open = remade(&[], &silent, &open, folder.path().join("open.mp4"))?;
    none_of([
        ("no list".to_owned(), stretch_faults(&no_list, (2.04, 5.0), Part::of(&clip, 51..125))),
        ("open GOPs, before a key frame".to_owned(), stretch_faults(&open, (3.92, 6.0), Part::of(&clip, 98..150))),
        ("open GOPs, at a key frame".to_owned(), stretch_faults(&open, (4.0, 6.04), Part::of(&clip, 100..151))),
    ]);
    Ok(())
}

/// Places that the source has no frame for show the one before, at the end of what is kept too.
#[test]
fn of_a_variable_frame_rate_each_frame_is_at_its_time() -> Result<()> {
    let clip = clip("25", 8).leave_out(60..63).leave_out(110..112);
    let shown = |place: u32| match place {
        60..63 => 59,
        110..112 => 109,
        own => own,
    };
    let part = Part::of(&clip, 25..111);
    let part = Part { numbers: part.numbers.iter().map(|place| shown(*place)).collect(), ..part };
    none_of([("holes".to_owned(), stretch_faults(&clip.file()?, (1.0, 4.44), part))]);
    Ok(())
}

/// Of several frames at a place the one of the place's own time is shown: also at the first one after a cut, where the frame before
/// it is as near.
#[test]
fn of_a_source_with_more_frames_than_the_result_none_is_shown_that_was_cut_out() -> Result<()> {
    let clip = clip("50", 8);
    let edit = json!([{"remove": [{"to": 1.0}, {"from": 2.04, "to": 3.0}, {"from": 4.6, "to": 6.12}]}]);
    let ladder = ["--ladder", r#"[{"height":180,"fps":"25"}]"#, "--segment-seconds", "2"];
    let grid = clip_rate("25");
    for chunks in [&["--chunk-seconds", "3600"][..], &["--chunk-seconds", "1"], &["--publish", "in-stages"]] {
        let made = Made::of(&clip.file()?, &edit, &[&ladder[..], chunks].concat())?;
        let part = |places: std::ops::Range<u32>| Part {
            numbers: places.map(|place| 2 * place).collect(),
            within: None,
            beeps_ns: Vec::new(),
        };
        let parts = [part(25..51), part(75..115), part(153..200)];
        none_of([(format!("{chunks:?}"), faults(&made.file("v180/index.m3u8"), None, (grid, 1_000_000), &parts))]);
    }
    Ok(())
}

fn clip_rate(rate: &str) -> farm::Rate {
    clip(rate, 1).rate
}
