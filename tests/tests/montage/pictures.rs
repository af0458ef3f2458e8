//! Pictures by their pixels: made for overlays, and as they come out of a decoder.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use tests::process;

use super::{LIMIT, SIZE};

/// A decoded picture of 8-bit 4:2:0.
pub struct Picture {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

/// Every picture of a file or playlist, in order of presentation; of this size.
pub fn decoded(input: &Path, (width, height): (u32, u32)) -> Result<Vec<Picture>> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-i"]).arg(input).args(["-map", "0:v:0", "-fps_mode", "passthrough"]);
    ffmpeg.args(["-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1"]);
    let raw = process::run(&mut ffmpeg, LIMIT)?.success()?.stdout;
    let (width, height) = (usize::try_from(width)?, usize::try_from(height)?);
    let pictures = raw.chunks_exact(width * height * 3 / 2);
    ensure!(!raw.is_empty() && pictures.remainder().is_empty(), "{}: not of {width}x{height}", input.display());
    Ok(pictures.map(|bytes| Picture { width, height, bytes: bytes.to_vec() }).collect())
}

impl Picture {
    /// Code values of a pixel.
    fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let (luma, chroma) = (self.width * self.height, self.width * self.height / 4);
        let place = luma + y / 2 * (self.width / 2) + x / 2;
        [self.bytes[y * self.width + x], self.bytes[place], self.bytes[place + chroma]]
    }

    /// Mean code values of a pixel and those around it.
    pub fn code(&self, x: usize, y: usize) -> [f64; 3] {
        let rows = y.saturating_sub(1)..(y + 2).min(self.height);
        let around = rows.flat_map(|y| (x.saturating_sub(1)..(x + 2).min(self.width)).map(move |x| (x, y)));
        let pixels: Vec<[u8; 3]> = around.map(|(x, y)| self.pixel(x, y)).collect();
        [0, 1, 2].map(|plane| pixels.iter().map(|pixel| f64::from(pixel[plane])).sum::<f64>() / pixels.len() as f64)
    }

    /// The smallest rectangle around all pixels of which this holds: left, top, width and height.
    pub fn bounds(&self, holds: impl Fn([u8; 3]) -> bool) -> Option<[u32; 4]> {
        let places = (0..self.height).flat_map(|y| (0..self.width).map(move |x| (x, y)));
        let mut found: Option<[usize; 4]> = None;
        for (x, y) in places.filter(|&(x, y)| holds(self.pixel(x, y))) {
            let [left, top, right, bottom] = found.unwrap_or([x, y, x, y]);
            found = Some([left.min(x), top.min(y), right.max(x), bottom.max(y)]);
        }
        let sides = found.map(|[left, top, right, bottom]| [left, top, right - left + 1, bottom - top + 1]);
        sides.map(|sides| sides.map(|side| u32::try_from(side).unwrap_or(u32::MAX)))
    }

    /// By how much pixels outside of a rectangle are off these code values at most. Those next to it do not count: an encoder
    /// smears edges.
    pub fn off_outside(&self, [left, top, width, height]: [u32; 4], code: [u8; 3]) -> u8 {
        const EDGE: usize = 4;
        let [left, top, width, height] = [left, top, width, height].map(|side| usize::try_from(side).unwrap_or(usize::MAX));
        let inside = |x: usize, y: usize| {
            (left..left + 2 * EDGE + width).contains(&(x + EDGE)) && (top..top + 2 * EDGE + height).contains(&(y + EDGE))
        };
        let places = (0..self.height).flat_map(|y| (0..self.width).map(move |x| (x, y)));
        let off = |(x, y)| self.pixel(x, y).iter().zip(code).map(|(a, b)| a.abs_diff(b)).max().unwrap_or(0);
        places.filter(|&(x, y)| !inside(x, y)).map(off).max().unwrap_or(0)
    }

    /// Mean difference of luma.
    pub fn off(&self, other: &Self) -> f64 {
        let luma = self.width * self.height;
        let pairs = self.bytes[..luma].iter().zip(&other.bytes[..luma]);
        pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / luma as f64
    }
}

/// Where a rectangle is not the wanted one, by more pixels than edges are exact to.
pub fn rectangle_fault(seen: Option<[u32; 4]>, wanted: [u32; 4]) -> Option<String> {
    let edges = |[left, top, width, height]: [u32; 4]| [left, top, left + width, top + height];
    let near = seen.is_some_and(|seen| edges(seen).iter().zip(edges(wanted)).all(|(seen, wanted)| seen.abs_diff(wanted) <= 2));
    (!near).then(|| format!("{seen:?} instead of {wanted:?}"))
}

/// Code values of R, G and B from 0 to 255, by BT.709 in the usual range.
pub fn yuv(rgb: [u8; 3]) -> [f64; 3] {
    let [r, g, b] = rgb.map(|part| f64::from(part) / 255.0);
    let luma = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    [16.0 + 219.0 * luma, 128.0 + 224.0 * (b - luma) / 1.8556, 128.0 + 224.0 * (r - luma) / 1.5748]
}

/// A silent film at 25 frames per second of one shade of grey, by its code value.
pub fn grey(folder: &Path, name: &str, code: u8, seconds: usize) -> Result<PathBuf> {
    let (file, luma) = (folder.join(name), usize::try_from(SIZE.0 * SIZE.1)?);
    let size = format!("{}x{}", SIZE.0, SIZE.1);
    let frame = [vec![code; luma], vec![128; luma / 2]].concat();
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-r", "25", "-s", &size, "-i", "pipe:0"]);
    ffmpeg.args(["-c:v", "libx264", "-preset", "ultrafast", "-qp", "0", "-colorspace", "bt709", "-color_trc", "bt709"]);
    ffmpeg.args(["-color_primaries", "bt709", "-color_range", "tv"]).arg(&file);
    let draw = |input: &mut std::process::ChildStdin| (0..25 * seconds).try_for_each(|_| input.write_all(&frame));
    process::run_fed(&mut ffmpeg, LIMIT, draw)?.success()?;
    Ok(file)
}

/// A still picture, whose format its name says: R, G, B and A by pixel.
pub fn still(folder: &Path, name: &str, (width, height): (u32, u32), colour: impl Fn(u32, u32) -> [u8; 4]) -> Result<PathBuf> {
    let (file, size) = (folder.join(name), format!("{width}x{height}"));
    let pixels: Vec<u8> = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).flat_map(|(x, y)| colour(x, y)).collect();
    let options: &[&str] = match file.extension().and_then(|end| end.to_str()) {
        Some("jpg") => &["-pix_fmt", "yuvj420p", "-q:v", "2"],
        Some("webp") => &["-c:v", "libwebp", "-lossless", "1"],
        _ => &[],
    };
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgba", "-s", &size, "-i", "pipe:0", "-frames:v", "1"]);
    process::run_fed(ffmpeg.args(options).arg(&file), LIMIT, |input| input.write_all(&pixels))?.success()?;
    Ok(file)
}
