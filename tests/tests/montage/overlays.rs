//! Pictures that are laid over the video: their place, their colours and what shows through them, by the pixels.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::pictures::{self, Picture, grey, rectangle_fault, still, yuv};
use super::{FINE, Made, SIZE, at};

/// Luma of the films that pictures are laid over, as code values.
const MAIN: u8 = 126;
const OTHER: u8 = 60;
/// Code values by which a colour may be off.
const COLOUR_OFF_MAX: f64 = 5.0;
/// By how much what nothing is laid over may be off.
const GREY_OFF_MAX: f64 = 2.0;

const RED: [u8; 3] = [255, 0, 0];
const GREEN: [u8; 3] = [0, 255, 0];
const BLUE: [u8; 3] = [0, 0, 255];

/// Four stripes: red, half of white, nothing, blue.
fn stripes(x: u32, _y: u32) -> [u8; 4] {
    match x / 20 {
        0 => [255, 0, 0, 255],
        1 => [255, 255, 255, 128],
        2 => [0, 255, 0, 0],
        _ => [0, 0, 255, 255],
    }
}

fn plain([r, g, b]: [u8; 3]) -> impl Fn(u32, u32) -> [u8; 4] {
    move |_, _| [r, g, b, 255]
}

fn shade(code: u8) -> [f64; 3] {
    [code.into(), 128.0, 128.0]
}

/// Half of white over the main film.
fn half_of_white() -> [f64; 3] {
    [f64::from(MAIN) + (235.0 - f64::from(MAIN)) * 128.0 / 255.0, 128.0, 128.0]
}

fn step(picture: &Path, height: f64, right: f64, top: f64) -> Value {
    json!({"overlay": {"source": at(picture), "height": height, "right": right, "top": top}})
}

/// Where a picture has other colours than it should.
fn colour_faults(picture: &Picture, wanted: &[((usize, usize), [f64; 3], f64)]) -> Vec<String> {
    let fault = |((x, y), wanted, off_max): &((usize, usize), [f64; 3], f64)| {
        let seen = picture.code(*x, *y);
        let off = seen.iter().zip(wanted).any(|(seen, wanted)| (seen - wanted).abs() > *off_max);
        off.then(|| format!("at {x}, {y} is {seen:.1?} instead of {wanted:.1?}"))
    };
    wanted.iter().filter_map(fault).collect()
}

/// Whether a pixel is not of the main film.
fn is_laid_over([luma, cb, cr]: [u8; 3]) -> bool {
    luma.abs_diff(MAIN) > 20 || cb.abs_diff(128) > 20 || cr.abs_diff(128) > 20
}

#[test]
fn a_picture_is_at_its_place_in_its_colours_and_shows_what_is_under_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let film = grey(folder.path(), "film.mp4", MAIN, 2)?;
    let logo = still(folder.path(), "logo.png", (80, 40), stripes)?;
    let rungs = [180, 90].map(|height| json!({"height": height, "video": {"quality": 1, "max_bitrate": 40_000_000}}));
    let rungs = json!(rungs).to_string();
    let flags = ["--ladder", rungs.as_str(), "--segment-seconds", "2"];
    let made = Made::of(&film, &json!([step(&logo, 0.4, 0.1, 0.1)]), &flags)?;
    for (rung, by) in [("v180", 1), ("v90", 2)] {
        let pictures = pictures::decoded(&made.file(&format!("{rung}/index.m3u8")), (SIZE.0 / by, SIZE.1 / by))?;
        ensure!(pictures.len() == 50, "{rung}: {} frames", pictures.len());
        let place = [158, 18, 144, 72].map(|px| px / by);
        let by = usize::try_from(by)?;
        let mut found = Vec::new();
        for number in [0, 25, 49] {
            let picture = &pictures[number];
            found.extend(rectangle_fault(picture.bounds(is_laid_over), place));
            let stripe = |n: usize| ((158 + 18 + 36 * n) / by, 54 / by);
            let colours = [
                (stripe(0), yuv(RED), COLOUR_OFF_MAX),
                (stripe(1), half_of_white(), COLOUR_OFF_MAX),
                (stripe(2), shade(MAIN), GREY_OFF_MAX),
                (stripe(3), yuv(BLUE), COLOUR_OFF_MAX),
                ((20 / by, 160 / by), shade(MAIN), GREY_OFF_MAX),
            ];
            found.extend(colour_faults(picture, &colours));
        }
        assert_eq!(found, Vec::<String>::new(), "{rung}");
    }
    Ok(())
}

#[test]
fn jpeg_and_webp_are_laid_over_as_well() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let film = grey(folder.path(), "film.mp4", MAIN, 1)?;
    // Of a green the two matrices of JPEG and of video make different things.
    let leaf = [40, 200, 60];
    let (photo, logo) =
        (still(folder.path(), "photo.jpg", (60, 60), plain(leaf))?, still(folder.path(), "logo.webp", (80, 40), stripes)?);
    // Nothing is said of the photo's place: it is in the corner.
    let photo = json!({"overlay": {"source": at(&photo), "height": 0.3}});
    let made = Made::of(&film, &json!([photo, step(&logo, 0.4, 0.8, 0.5)]), FINE)?;
    let pictures = pictures::decoded(&made.file("v180/index.m3u8"), SIZE)?;
    let left = 320 - 144 - 144;
    let stripe = |n: usize| (left + 18 + 36 * n, 126);
    for picture in [&pictures[0], &pictures[24]] {
        let colours = [
            ((293, 27), yuv(leaf), COLOUR_OFF_MAX),
            ((317, 2), yuv(leaf), COLOUR_OFF_MAX),
            ((272, 48), yuv(leaf), COLOUR_OFF_MAX),
            ((260, 27), shade(MAIN), GREY_OFF_MAX),
            ((293, 60), shade(MAIN), GREY_OFF_MAX),
            (stripe(0), yuv(RED), COLOUR_OFF_MAX),
            (stripe(1), half_of_white(), COLOUR_OFF_MAX),
            (stripe(2), shade(MAIN), GREY_OFF_MAX),
            (stripe(3), yuv(BLUE), COLOUR_OFF_MAX),
        ];
        assert_eq!(colour_faults(picture, &colours), Vec::<String>::new());
    }
    Ok(())
}

#[test]
fn a_picture_is_over_what_there_was_before_it_and_over_nothing_else() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (main, other) = (grey(folder.path(), "main.mp4", MAIN, 2)?, grey(folder.path(), "other.mp4", OTHER, 1)?);
    let of = |name: &str, colour| still(folder.path(), name, (40, 40), plain(colour));
    let (red, green, blue) = (of("red.png", RED)?, of("green.png", GREEN)?, of("blue.png", BLUE)?);
    let edit = json!([
        step(&red, 0.3, 0.0, 0.0), step(&green, 0.15, 0.0, 0.0), {"before": at(&other)}, step(&blue, 0.3, 1.0, 0.5),
    ]);
    let made = Made::of(&main, &edit, FINE)?;
    let pictures = pictures::decoded(&made.file("v180/index.m3u8"), SIZE)?;
    ensure!(pictures.len() == 75, "{} frames", pictures.len());
    // In the corner: red, and over a quarter of it green. Blue is elsewhere.
    let (on_red, on_green, on_blue, beside) = ((274, 45), (306, 13), (113, 117), (40, 40));
    let colours = |under: u8, red: [f64; 3], green: [f64; 3]| {
        [(on_red, red), (on_green, green), (on_blue, yuv(BLUE)), (beside, shade(under))]
            .map(|(at, colour)| (at, colour, COLOUR_OFF_MAX))
    };
    for number in [0, 24] {
        let wanted = colours(OTHER, shade(OTHER), shade(OTHER));
        assert_eq!(colour_faults(&pictures[number], &wanted), Vec::<String>::new(), "frame {number}");
    }
    for number in [25, 74] {
        let wanted = colours(MAIN, yuv(RED), yuv(GREEN));
        assert_eq!(colour_faults(&pictures[number], &wanted), Vec::<String>::new(), "frame {number}");
    }
    Ok(())
}

#[test]
fn a_picture_of_the_frames_own_size_covers_all_of_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let film = grey(folder.path(), "film.mp4", MAIN, 1)?;
    for (name, size) in [("same.png", SIZE), ("larger.png", (1280, 720))] {
        let cover = still(folder.path(), name, size, plain(GREEN))?;
        let made = Made::of(&film, &json!([step(&cover, 1.0, 0.0, 0.0)]), FINE)?;
        let pictures = pictures::decoded(&made.file("v180/index.m3u8"), SIZE)?;
        let everywhere = [(0, 0), (319, 0), (0, 179), (319, 179), (160, 90)].map(|at| (at, yuv(GREEN), COLOUR_OFF_MAX));
        for picture in [&pictures[0], &pictures[24]] {
            assert_eq!(colour_faults(picture, &everywhere), Vec::<String>::new(), "{name}");
        }
    }
    Ok(())
}
