//! Geometry, orientation, colour and range, from pixels: sources of known patches, made here, and the patches of what comes out.
//! What is expected is worked out from the standards' formulas, by none of Shoal's code.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::hls::Presentation;
use tests::mp4::Kind;
use tests::{process, rules, shoal};

const LIMIT: Duration = Duration::from_secs(60);
/// Code values by which a patch may be off.
const TOLERANCE: f64 = 3.0;
/// Columns and rows of patches.
const GRID: (usize, usize) = (4, 2);
/// Gamma-coded R, G, B of each patch, row by row.
const PATCHES: [[f64; 3]; 8] = [
    [0.75, 0.75, 0.75],
    [0.75, 0.10, 0.10],
    [0.10, 0.70, 0.15],
    [0.10, 0.15, 0.75],
    [0.18, 0.18, 0.18],
    [0.70, 0.65, 0.10],
    [0.10, 0.65, 0.70],
    [0.60, 0.15, 0.60],
];
/// As good as an encoder gets, so that what is off is not its doing.
const LADDER: &str = r#"[{"height":360,"video":{"quality":1,"max_bitrate":40000000}},{"height":240,"video":{"quality":1,"max_bitrate":40000000}}]"#;

/// What a source's samples mean.
#[derive(Clone, Copy, Debug)]
struct Look {
    depth: u32,
    /// Weights of R and B in luma.
    weights: (f64, f64),
    full_range: bool,
    /// What ffmpeg calls matrix, transfer and primaries; none where the source does not say.
    tags: Option<[&'static str; 3]>,
}

const BT601: (f64, f64) = (0.299, 0.114);
const BT709: (f64, f64) = (0.2126, 0.0722);
const BT2020: (f64, f64) = (0.2627, 0.0593);
const PLAIN: Look = Look { depth: 8, weights: BT709, full_range: false, tags: Some(["bt709"; 3]) };

impl Look {
    /// Code values of a patch.
    fn yuv(self, [r, g, b]: [f64; 3]) -> [f64; 3] {
        let (kr, kb) = self.weights;
        let luma = kr * r + (1.0 - kr - kb) * g + kb * b;
        let differences = [(b - luma) / (2.0 - 2.0 * kb), (r - luma) / (2.0 - 2.0 * kr)];
        let unit = f64::from(1 << (self.depth - 8));
        let top = 256.0 * unit - 1.0;
        match self.full_range {
            true => [luma * top, differences[0] * top + 128.0 * unit, differences[1] * top + 128.0 * unit],
            false => {
                [(16.0 + 219.0 * luma) * unit, (128.0 + 224.0 * differences[0]) * unit, (128.0 + 224.0 * differences[1]) * unit]
            }
        }
    }
}

/// A frame in planes of 4:2:0, by a function of place (0 to 1) and plane.
fn frame(look: Look, (width, height): (usize, usize), value: impl Fn(f64, f64) -> [f64; 3]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for plane in 0..3 {
        let by = if plane == 0 { 1 } else { 2 };
        for y in 0..height / by {
            for x in 0..width / by {
                let at = |place: usize, size: usize| (place as f64 + 0.5) * by as f64 / size as f64;
                let code = look.yuv(value(at(x, width), at(y, height)))[plane].round() as u16;
                let code = code.to_le_bytes();
                bytes.extend_from_slice(&code[..if look.depth > 8 { 2 } else { 1 }]);
            }
        }
    }
    bytes
}

/// The patch at a place of the picture.
fn patch(x: f64, y: f64) -> usize {
    let cell = |place: f64, count: usize| ((place * count as f64) as usize).min(count - 1);
    cell(y, GRID.1) * GRID.0 + cell(x, GRID.0)
}

/// A file of these frames, lossless.
fn film(folder: &Path, look: Look, (width, height): (usize, usize), frames: &[Vec<u8>], more: &[&str]) -> Result<PathBuf> {
    let file = folder.join("film.mp4");
    let format = if look.depth > 8 { "yuv420p10le" } else { "yuv420p" };
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", format, "-r", "25", "-s", &format!("{width}x{height}")]);
    ffmpeg.args(["-i", "pipe:0", "-c:v", "libx264", "-preset", "ultrafast", "-qp", "0", "-pix_fmt", format]);
    if let Some([matrix, transfer, primaries]) = look.tags {
        ffmpeg.args(["-colorspace", matrix, "-color_trc", transfer, "-color_primaries", primaries]);
        ffmpeg.args(["-color_range", if look.full_range { "pc" } else { "tv" }]);
    }
    ffmpeg.args(more).arg(&file);
    process::run_fed(&mut ffmpeg, LIMIT, |input| frames.iter().try_for_each(|frame| input.write_all(frame)))?.success()?;
    Ok(file)
}

/// A picture of 8-bit 4:2:0.
struct Picture {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

impl Picture {
    /// Mean code values around a place.
    fn code(&self, x: f64, y: f64) -> [f64; 3] {
        let luma = self.width * self.height;
        let plane = |start: usize, width: usize, height: usize| {
            let (x, y) = ((x * width as f64) as usize, (y * height as f64) as usize);
            let around = (y - 2..y + 3).flat_map(|y| (x - 2..x + 3).map(move |x| start + y * width + x));
            around.map(|at| f64::from(self.bytes[at])).sum::<f64>() / 25.0
        };
        let half = (self.width / 2, self.height / 2);
        [plane(0, self.width, self.height), plane(luma, half.0, half.1), plane(luma + half.0 * half.1, half.0, half.1)]
    }

    fn row(&self, y: usize) -> &[u8] {
        &self.bytes[y * self.width..][..self.width]
    }
}

/// Every frame of every rung, from the largest to the smallest; what the rungs say of themselves is checked on the way.
fn transcoded(file: &Path, ladder: &str) -> Result<Vec<Vec<Picture>>> {
    Ok(transcoded_with_report(file, ladder)?.0)
}

/// As [`transcoded`], and the report.
fn transcoded_with_report(file: &Path, ladder: &str) -> Result<(Vec<Vec<Picture>>, Value)> {
    let output = tempfile::tempdir()?;
    shoal::done(file, output.path(), &["--ladder", ladder, "--slots", "1"])?;
    let faults = rules::faults(output.path())?;
    ensure!(faults.is_empty(), "{faults:?}");
    let presentation = Presentation::read(output.path())?;
    let mut rungs = Vec::new();
    for rung in presentation.videos() {
        let Kind::Video { width, height, .. } = rung.track.kind else { continue };
        let mut probe = Command::new("ffprobe");
        let fields = "stream=sample_aspect_ratio,pix_fmt,color_range,color_space,color_transfer,color_primaries";
        probe.args(["-v", "error", "-of", "csv=p=0", "-show_entries", fields]).arg(&rung.path);
        let said = process::run(&mut probe, LIMIT)?.success()?.text();
        let said = said.lines().next().unwrap_or_default().trim();
        ensure!(said == "1:1,yuv420p,tv,bt709,bt709,bt709", "{}: {said}", rung.name());
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin", "-i"]).arg(&rung.path).args(["-fps_mode", "passthrough"]);
        ffmpeg.args(["-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1"]);
        let raw = process::run(&mut ffmpeg, LIMIT)?.success()?.stdout;
        let (width, height) = (usize::from(width), usize::from(height));
        let pictures = raw.chunks_exact(width * height * 3 / 2);
        rungs.push(pictures.map(|bytes| Picture { width, height, bytes: bytes.to_vec() }).collect());
    }
    let report = serde_json::from_slice(&std::fs::read(output.path().join("report.json"))?)?;
    Ok((rungs, report))
}

/// What is off in a picture whose patch at a place should be the one that `from` says, in the colours that `to` makes of it.
fn faults(picture: &Picture, from: impl Fn(f64, f64) -> (f64, f64), to: impl Fn([f64; 3]) -> [f64; 3]) -> Vec<String> {
    let mut faults = Vec::new();
    let (columns, rows) = if picture.width > picture.height { GRID } else { (GRID.1, GRID.0) };
    for row in 0..rows {
        for column in 0..columns {
            let (x, y) = ((column as f64 + 0.5) / columns as f64, (row as f64 + 0.5) / rows as f64);
            let (from_x, from_y) = from(x, y);
            let number = patch(from_x, from_y);
            let (made, wanted) = (picture.code(x, y), PLAIN.yuv(to(PATCHES[number])));
            if made.iter().zip(wanted).any(|(made, wanted)| (made - wanted).abs() > TOLERANCE) {
                faults.push(format!("{}x{}: patch {number} is {made:.1?}, not {wanted:.1?}", picture.width, picture.height));
            }
        }
    }
    faults
}

/// Faults of the first and the last picture of every rung.
fn rung_faults(
    rungs: &[Vec<Picture>],
    from: impl Fn(f64, f64) -> (f64, f64) + Copy,
    to: impl Fn([f64; 3]) -> [f64; 3] + Copy,
) -> Vec<String> {
    let ends = rungs.iter().flat_map(|pictures| pictures.first().into_iter().chain(pictures.last()));
    ends.flat_map(|picture| faults(picture, from, to)).collect()
}

fn same(x: f64, y: f64) -> (f64, f64) {
    (x, y)
}

/// What becomes of a source of patches in this look.
fn check_colour(what: &str, look: Look, to: impl Fn([f64; 3]) -> [f64; 3] + Copy) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let still = frame(look, (640, 360), |x, y| PATCHES[patch(x, y)]);
    let file = film(folder.path(), look, (640, 360), &vec![still; 10], &[])?;
    let rungs = transcoded(&file, LADDER)?;
    ensure!(rungs.len() == 2 && rungs.iter().all(|rung| rung.len() == 10), "{what}: rungs or frames are missing");
    let faults = rung_faults(&rungs, same, to);
    ensure!(faults.is_empty(), "{what}: {faults:#?}");
    Ok(())
}

#[test]
fn matrices_and_ranges_are_converted_and_not_just_relabelled() -> Result<()> {
    let bt601 = Some(["smpte170m"; 3]);
    let as_it_is = |rgb| rgb;
    check_colour("BT.709", PLAIN, as_it_is)?;
    check_colour("BT.709, full range", Look { full_range: true, ..PLAIN }, as_it_is)?;
    check_colour("BT.709, 10 bits", Look { depth: 10, ..PLAIN }, as_it_is)?;
    check_colour("BT.601", Look { weights: BT601, tags: bt601, ..PLAIN }, as_it_is)?;
    check_colour("BT.601, full range", Look { weights: BT601, full_range: true, tags: bt601, ..PLAIN }, as_it_is)?;
    check_colour("not said, few lines", Look { weights: BT601, tags: None, ..PLAIN }, as_it_is)
}

#[test]
fn hdr_is_tone_mapped_by_the_stated_curve() -> Result<()> {
    let look = |transfer| Look { depth: 10, weights: BT2020, full_range: false, tags: Some(["bt2020nc", transfer, "bt2020"]) };
    check_colour("PQ", look("smpte2084"), |rgb| to_sdr(rgb.map(pq_light)))?;
    check_colour("HLG", look("arib-std-b67"), |rgb| {
        let scene = rgb.map(hlg_scene);
        let luminance = 0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2];
        to_sdr(scene.map(|light| 1000.0 * luminance.powf(0.2) * light))
    })
}

/// PQ's constants: ITU-R BT.2100, table 4.
const M1: f64 = 2610.0 / 16384.0;
const M2: f64 = 2523.0 / 4096.0 * 128.0;
const C1: f64 = 3424.0 / 4096.0;
const C2: f64 = 2413.0 / 4096.0 * 32.0;
const C3: f64 = 2392.0 / 4096.0 * 32.0;

/// cd/m² of a code value.
fn pq_light(code: f64) -> f64 {
    let root = code.powf(1.0 / M2);
    10_000.0 * ((root - C1).max(0.0) / (C2 - C3 * root)).powf(1.0 / M1)
}

fn pq_code(light: f64) -> f64 {
    let power = (light / 10_000.0).powf(M1);
    ((C1 + C2 * power) / (1.0 + C3 * power)).powf(M2)
}

/// HLG's inverse OETF: ITU-R BT.2100, table 5.
fn hlg_scene(code: f64) -> f64 {
    let (a, b, c) = (0.178_832_77, 0.284_668_92, 0.559_910_73);
    if code <= 0.5 { code * code / 3.0 } else { (((code - c) / a).exp() + b) / 12.0 }
}

/// The EETF of ITU-R BT.2390 from 1000 to 203 cd/m², on light in cd/m².
fn eetf(light: f64) -> f64 {
    let peak = pq_code(1000.0);
    let (from, top) = ((pq_code(light) / peak).min(1.0), pq_code(203.0) / peak);
    let knee = 1.5 * top - 0.5;
    let to = if from < knee {
        from
    } else {
        let t = (from - knee) / (1.0 - knee);
        let (t2, t3) = (t * t, t * t * t);
        (2.0 * t3 - 3.0 * t2 + 1.0) * knee + (t3 - 2.0 * t2 + t) * (1.0 - knee) + (3.0 * t2 - 2.0 * t3) * top
    };
    pq_light(to * peak)
}

/// From light of BT.2020 in cd/m² to gamma-coded BT.709, as README says: by the largest of three, then the matrix of
/// ITU-R BT.2087 the other way round, clipped, then the inverse of BT.1886.
fn to_sdr(light: [f64; 3]) -> [f64; 3] {
    let largest = light.iter().copied().fold(1e-6, f64::max);
    let light = light.map(|one| one * eetf(largest) / largest / 203.0);
    let matrix = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]];
    matrix.map(|row| row.iter().zip(light).map(|(a, b)| a * b).sum::<f64>().clamp(0.0, 1.0).powf(1.0 / 2.4))
}

/// Writes the matrix of a track header (ISO/IEC 14496-12, 8.3.2): x' = ax + cy, y' = bx + dy.
fn set_matrix(file: &Path, [a, b, c, d]: [i32; 4]) -> Result<()> {
    let mut bytes = fs::read(file)?;
    let header = bytes.windows(4).position(|four| four == b"tkhd").context("no track header")?;
    // Version 0: 40 bytes before the matrix, from the box's type on 44.
    let fixed = |n: i32| (n << 16).to_be_bytes();
    let rows = [fixed(a), fixed(b), [0; 4], fixed(c), fixed(d), [0; 4], [0; 4], [0; 4], 0x4000_0000_i32.to_be_bytes()];
    bytes[header + 44..header + 80].copy_from_slice(&rows.concat());
    Ok(fs::write(file, bytes)?)
}

#[test]
fn every_turn_and_mirroring_comes_out_upright() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let still = frame(PLAIN, (640, 360), |x, y| PATCHES[patch(x, y)]);
    let file = film(folder.path(), PLAIN, (640, 360), &vec![still; 5], &[])?;
    let turns = [[1, 0, 0, 1], [0, 1, -1, 0], [-1, 0, 0, -1], [0, -1, 1, 0]];
    let mirrors = [[-1, 0, 0, 1], [1, 0, 0, -1], [0, 1, 1, 0], [0, -1, -1, 0]];
    for matrix in turns.into_iter().chain(mirrors) {
        set_matrix(&file, matrix)?;
        let rungs = transcoded(&file, LADDER)?;
        let [a, b, c, d] = matrix.map(f64::from);
        // The inverse of such a matrix is its transpose; places are taken from the middle.
        let from = |x: f64, y: f64| (a * (x - 0.5) + b * (y - 0.5) + 0.5, c * (x - 0.5) + d * (y - 0.5) + 0.5);
        let largest = rungs.first().and_then(|rung| rung.first()).context("no picture")?;
        let upright = if a == 0.0 { (360, 640) } else { (640, 360) };
        ensure!((largest.width, largest.height) == upright, "{matrix:?}: {}x{}", largest.width, largest.height);
        let faults = rung_faults(&rungs, from, |rgb| rgb);
        ensure!(faults.is_empty(), "{matrix:?}: {faults:#?}");
    }
    Ok(())
}

#[test]
fn pixels_become_square() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let size = (720, 576);
    let still = frame(PLAIN, size, |x, y| PATCHES[patch(x, y)]);
    let file = film(folder.path(), PLAIN, size, &vec![still; 5], &["-aspect", "16:9"])?;
    let rungs = transcoded(&file, r#"[{"height":576,"video":{"quality":1}},{"height":360,"video":{"quality":1}}]"#)?;
    let sizes: Vec<_> = rungs.iter().filter_map(|rung| rung.first()).map(|picture| (picture.width, picture.height)).collect();
    ensure!(sizes == [(1024, 576), (640, 360)], "{sizes:?}");
    let faults = rung_faults(&rungs, same, |rgb| rgb);
    ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}

/// Fields of a bar that moves to the right over the upper half, patches below, woven into frames.
fn woven(size: (usize, usize), top_first: bool, frames: usize) -> Vec<Vec<u8>> {
    let field = |number: usize| {
        let bar = 0.1 + 0.01 * number as f64;
        frame(PLAIN, size, |x, y| match (y < 0.45, (bar..bar + 0.2).contains(&x)) {
            (true, true) => [0.9; 3],
            (true, false) => [0.1; 3],
            _ => PATCHES[patch(x, y)],
        })
    };
    let (width, height) = size;
    let planes = [(0, width, height), (width * height, width / 2, height / 2), (width * height * 5 / 4, width / 2, height / 2)];
    let weave = |number: usize| {
        let (mut first, second) = (field(2 * number), field(2 * number + 1));
        for (start, width, height) in planes {
            for row in (0..height).filter(|row| (row % 2 == 1) == top_first) {
                let at = start + row * width..start + (row + 1) * width;
                first[at.clone()].copy_from_slice(&second[at]);
            }
        }
        first
    };
    (0..frames).map(weave).collect()
}

#[test]
fn interlaced_pictures_of_both_field_orders_are_whole_again() -> Result<()> {
    let top = ["-flags", "+ilme+ildct", "-vf", "setfield=tff"];
    let bottom = ["-flags", "+ilme+ildct", "-vf", "setfield=bff"];
    // Where no flag tells of fields, they are seen.
    for (top_first, flags) in [(true, &top[..]), (false, &bottom), (true, &[]), (false, &[])] {
        let folder = tempfile::tempdir()?;
        let order = format!("top first: {top_first}, flags {flags:?}");
        let frames = woven((640, 480), top_first, 20);
        let file = film(folder.path(), PLAIN, (640, 480), &frames, flags)?;
        let (rungs, report) = transcoded_with_report(&file, &LADDER.replace("360", "480"))?;
        let account = serde_json::json!({"kept": 20, "dropped": 0, "filled": 0, "missing": 0, "decode_errors": 0});
        ensure!(report["frames"] == account, "{order}: {}", report["frames"]);
        let pictures = rungs.first().context("no rung")?;
        ensure!(pictures.len() == 20, "{order}: {} frames", pictures.len());
        for (number, picture) in pictures.iter().enumerate() {
            for row in 0..GRID.0 {
                let (x, y) = ((row as f64 + 0.5) / GRID.0 as f64, 0.75);
                let (made, wanted) = (picture.code(x, y), PLAIN.yuv(PATCHES[patch(x, y)]));
                let is_off = made.iter().zip(wanted).any(|(made, wanted)| (made - wanted).abs() > TOLERANCE);
                ensure!(!is_off, "{order}, frame {number}: {made:?}, not {wanted:?}");
            }
            // A bar with straight edges: rows are alike, where fields of two times would differ.
            let (above, below) = (picture.row(60), picture.row(61));
            let comb = above.iter().zip(below).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
            ensure!(comb < 20, "{order}, frame {number}: rows differ by {comb}");
            let bar = above.iter().position(|luma| *luma > 128).context("no bar")?;
            // Where it was at the time of the first field.
            let wanted = (0.1 + 0.02 * number as f64) * 640.0;
            ensure!((bar as f64 - wanted).abs() <= 3.0, "{order}, frame {number}: the bar is at {bar}, not {wanted}");
        }
    }
    Ok(())
}
