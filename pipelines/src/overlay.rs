//! Pictures that are laid over others: a PNG, JPEG or WebP file, scaled and blended in the colours of the result.

use bytes::Bytes;
use farm::edit::Overlay;
use farm::{Code, Failure};
use gst::prelude::*;
use gst_video::prelude::*;

use crate::jpeg;
use crate::source::{decoder_for, element, internal};
use crate::stills::Stage;

/// Most pixels of a file.
const FILE_PX_MAX: u64 = 1 << 25;
/// Media type of JPEG.
const JPEG: &str = "image/jpeg";
/// Luma of black and of white, and how far chroma goes from its middle: 8 bits, limited range.
const BLACK: f32 = 16.0;
const LUMA: f32 = 219.0;
const CHROMA: f32 = 224.0;
const CHROMA_MIDDLE: f32 = 128.0;
/// Shares of red and blue in luma (ITU-T H.273, matrix 1: BT.709).
const KR: f32 = 0.2126;
const KB: f32 = 0.0722;

/// A picture, ready to be laid over frames of one size.
pub struct Drawn {
    planes: [Plane; 3],
}

/// What is laid over a plane of a frame.
struct Plane {
    /// Left and upper edge, in samples of the plane.
    x: usize,
    y: usize,
    width: usize,
    /// Row by row: what is added, and how much of the frame's sample stays.
    samples: Vec<(f32, f32)>,
}

impl Drawn {
    /// Of a file, over frames of this size.
    ///
    /// # Errors
    /// [`Code::Undecodable`] for what is no such picture, [`Code::LimitExceeded`] for one that is too large.
    pub fn new(file: &Bytes, plan: &Overlay, frame: (u32, u32)) -> Result<Self, Failure> {
        let told = |failure: Failure| Failure::new(failure.code, format!("{}: {}", plan.name, failure.message));
        let picture = Rgba::decode(file).map_err(told)?;
        let (height, frame_width) = (plan.height as usize, frame.0 as usize);
        let wide = ((picture.width * height + picture.height / 2) / picture.height.max(1)).max(1);
        // Of what is wider than the frame its right end is seen.
        let (picture, width) = match wide > frame_width {
            true => (picture.right_end(frame_width, wide), frame_width),
            false => (picture, wide),
        };
        let scaled = picture.scaled(width, height);
        let left = i64::from(frame.0) - i64::from(plan.right) - i64::try_from(width).map_err(internal)?;
        Ok(Self { planes: planes(&scaled, (left, plan.top.into()), (frame.0 as usize, frame.1 as usize)) })
    }

    /// How many pixels of a frame it covers.
    pub fn covered(&self) -> u64 {
        self.planes.first().map_or(0, |luma| luma.samples.len() as u64)
    }

    /// Lays it over a plane of a frame.
    pub fn blend(&self, plane: usize, stride: usize, data: &mut [u8]) {
        let Some(own) = self.planes.get(plane).filter(|own| own.width > 0) else { return };
        for (row, samples) in own.samples.chunks(own.width).enumerate() {
            let at = (own.y + row) * stride + own.x;
            let Some(under) = data.get_mut(at..at + own.width) else { return };
            for (under, (added, stays)) in under.iter_mut().zip(samples) {
                *under = (added + stays * f32::from(*under) + 0.5) as u8;
            }
        }
    }
}

/// Red, green, blue and how much each covers, from 0 to 1; colours are multiplied by that, so that what does not cover has none.
struct Rgba {
    width: usize,
    height: usize,
    pixels: Vec<[f32; 4]>,
}

impl Rgba {
    fn decode(file: &Bytes) -> Result<Self, Failure> {
        let refused = |why: &str| Failure::new(Code::Undecodable, format!("a picture to lay over: {why}"));
        let (kind, (width, height)) = look(file).ok_or_else(|| refused("it is no PNG, JPEG or WebP"))?;
        if width == 0 || height == 0 || u64::from(width) * u64::from(height) > FILE_PX_MAX {
            let message = format!("a picture to lay over has {width}x{height} pixels: up to {FILE_PX_MAX} in all are read");
            return Err(Failure::new(Code::LimitExceeded, message));
        }
        let caps = gst::Caps::builder(kind).field("width", width.cast_signed()).field("height", height.cast_signed());
        let caps = caps.field("framerate", gst::Fraction::new(1, 1));
        // The file is the one picture.
        let caps = if kind == JPEG { caps.field("parsed", true) } else { caps }.build();
        let decoder = decoder_for(&caps).ok_or_else(|| Failure::new(Code::MissingElement, format!("no decoder for {kind}")))?;
        let filter = element("capsfilter")?;
        filter.set_property("caps", gst::Caps::builder("video/x-raw").field("format", "RGBA").build());
        let sample = gst::Sample::builder().buffer(&gst::Buffer::from_slice(file.clone())).caps(&caps).build();
        let decoded = Stage::new(&[decoder, element("videoconvert")?, filter])?.pass(&sample);
        let decoded = decoded.map_err(|failure| refused(&failure.message))?;
        let info = decoded.caps().and_then(|caps| gst_video::VideoInfo::from_caps(caps).ok());
        let info = info.filter(|info| (info.width(), info.height()) == (width, height));
        let (info, buffer) = info.zip(decoded.buffer()).ok_or_else(|| refused("it is not of the size that it says"))?;
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).map_err(|_| internal("no picture"))?;
        let stride = usize::try_from(frame.plane_stride().first().copied().unwrap_or(0));
        let stride = stride.map_err(internal)?.max(1);
        let rows = frame.plane_data(0).map_err(internal)?.chunks(stride);
        let (width, height) = (width as usize, height as usize);
        let mut pixels = Vec::with_capacity(width * height);
        for row in rows.take(height) {
            pixels.extend(row.chunks_exact(4).take(width).map(|pixel| {
                let level = |place: usize| f32::from(pixel.get(place).copied().unwrap_or(0)) / 255.0;
                let covers = level(3);
                [level(0) * covers, level(1) * covers, level(2) * covers, covers]
            }));
        }
        Ok(Self { width, height, pixels })
    }

    /// The right `part` of so many columns of it in `whole`.
    fn right_end(&self, part: usize, whole: usize) -> Self {
        let width = (self.width * part).div_ceil(whole.max(1)).clamp(1, self.width.max(1));
        let rows = self.pixels.chunks(self.width.max(1));
        let pixels = rows.flat_map(|row| row.get(row.len().saturating_sub(width)..).unwrap_or_default()).copied().collect();
        Self { width, height: self.height, pixels }
    }

    /// In another size, by a cubic kernel.
    fn scaled(&self, width: usize, height: usize) -> Self {
        let across: Vec<_> = (0..width).map(|x| weights(x, width, self.width)).collect();
        let down: Vec<_> = (0..height).map(|y| weights(y, height, self.height)).collect();
        let sum = |taps: &[(usize, f32)], at: &dyn Fn(usize) -> [f32; 4]| {
            taps.iter().fold([0.0; 4], |sum: [f32; 4], (place, weight)| {
                let pixel = at(*place);
                std::array::from_fn(|channel| {
                    let (so_far, own) = (sum.get(channel).copied(), pixel.get(channel).copied());
                    so_far.unwrap_or(0.0) + weight * own.unwrap_or(0.0)
                })
            })
        };
        let none = [0.0; 4];
        let mut narrow = Vec::with_capacity(width * self.height);
        for row in self.pixels.chunks(self.width.max(1)) {
            narrow.extend(across.iter().map(|taps| sum(taps, &|x| row.get(x).copied().unwrap_or(none))));
        }
        let mut pixels = Vec::with_capacity(width * height);
        for taps in &down {
            pixels.extend((0..width).map(|x| {
                let [r, g, b, covers] = sum(taps, &|y| narrow.get(y * width + x).copied().unwrap_or(none));
                let covers = covers.clamp(0.0, 1.0);
                [r.clamp(0.0, covers), g.clamp(0.0, covers), b.clamp(0.0, covers), covers]
            }));
        }
        Self { width, height, pixels }
    }
}

/// Which samples make a sample of another size, and how much each counts: Catmull-Rom, as wide as the step is.
fn weights(place: usize, to: usize, from: usize) -> Vec<(usize, f32)> {
    let step = from as f32 / to.max(1) as f32;
    let (centre, stretch) = ((place as f32 + 0.5) * step - 0.5, step.max(1.0));
    let first = (centre - 2.0 * stretch).ceil() as i64;
    let last = (centre + 2.0 * stretch).floor() as i64;
    let end = i64::try_from(from).unwrap_or(i64::MAX) - 1;
    let taps: Vec<_> = (first..=last)
        .map(|at| (usize::try_from(at.clamp(0, end.max(0))).unwrap_or(0), cubic((at as f32 - centre) / stretch)))
        .collect();
    let total: f32 = taps.iter().map(|(_, weight)| weight).sum();
    taps.into_iter().map(|(at, weight)| (at, weight / total)).collect()
}

fn cubic(x: f32) -> f32 {
    match x.abs() {
        x if x < 1.0 => 1.5 * x * x * x - 2.5 * x * x + 1.0,
        x if x < 2.0 => -0.5 * x * x * x + 2.5 * x * x - 4.0 * x + 2.0,
        _ => 0.0,
    }
}

/// The three planes of a picture whose left and upper edge is here in a frame of this size, as far as it lies in that.
fn planes(picture: &Rgba, (left, top): (i64, i64), (width, height): (usize, usize)) -> [Plane; 3] {
    let inside = |start: i64, length: usize, whole: usize| {
        let end =
            start.saturating_add(i64::try_from(length).unwrap_or(i64::MAX)).clamp(0, i64::try_from(whole).unwrap_or(i64::MAX));
        let start = usize::try_from(start.max(0)).unwrap_or(0);
        (start, usize::try_from(end).unwrap_or(0).max(start))
    };
    let (x0, x1) = inside(left, picture.width, width);
    let (y0, y1) = inside(top, picture.height, height);
    let pixel = |x: usize, y: usize| -> [f32; 4] {
        let own = |at: usize, edge: i64| usize::try_from(i64::try_from(at).unwrap_or(i64::MAX) - edge).ok();
        let place = own(x, left).filter(|x| *x < picture.width).zip(own(y, top).filter(|y| *y < picture.height));
        place.and_then(|(x, y)| picture.pixels.get(y * picture.width + x)).copied().unwrap_or_default()
    };
    let luma = |[r, g, b, covers]: [f32; 4]| (covers * BLACK + LUMA * (KR * r + (1.0 - KR - KB) * g + KB * b), 1.0 - covers);
    let mut samples = Vec::with_capacity((x1 - x0) * (y1 - y0));
    for y in y0..y1 {
        samples.extend((x0..x1).map(|x| luma(pixel(x, y))));
    }
    let whole = Plane { x: x0, y: y0, width: x1 - x0, samples };
    let (cx0, cx1, cy0, cy1) = (x0 / 2, x1.div_ceil(2).min(width / 2), y0 / 2, y1.div_ceil(2).min(height / 2));
    let chroma = |place: usize| {
        let of = |x: usize, y: usize| {
            let four = [pixel(2 * x, 2 * y), pixel(2 * x + 1, 2 * y), pixel(2 * x, 2 * y + 1), pixel(2 * x + 1, 2 * y + 1)];
            let [r, g, b, covers]: [f32; 4] =
                std::array::from_fn(|channel| four.iter().filter_map(|pixel| pixel.get(channel)).sum::<f32>() / 4.0);
            let light = KR * r + (1.0 - KR - KB) * g + KB * b;
            let difference = if place == 1 { (b - light) / (2.0 * (1.0 - KB)) } else { (r - light) / (2.0 * (1.0 - KR)) };
            (covers * CHROMA_MIDDLE + CHROMA * difference, 1.0 - covers)
        };
        let mut samples = Vec::new();
        for y in cy0..cy1 {
            samples.extend((cx0..cx1).map(|x| of(x, y)));
        }
        Plane { x: cx0, y: cy0, width: cx1.saturating_sub(cx0), samples }
    };
    [whole, chroma(1), chroma(2)]
}

/// What a file is, and its size in pixels: by its first bytes, before anything of it is decoded.
fn look(file: &[u8]) -> Option<(&'static str, (u32, u32))> {
    let big = |at: usize| Some(u32::from_be_bytes(file.get(at..at + 4)?.try_into().ok()?));
    let little = |at: usize, bytes: usize| {
        Some(file.get(at..at + bytes)?.iter().rev().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)))
    };
    if file.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Some(("image/png", (big(16)?, big(20)?)));
    }
    if file.starts_with(b"\xff\xd8") {
        // Some have something behind their end.
        let end = file.windows(2).rposition(|pair| pair == b"\xff\xd9")? + 2;
        return Some((JPEG, jpeg::size(file.get(..end)?)?));
    }
    if !file.starts_with(b"RIFF") || file.get(8..12)? != b"WEBP" {
        return None;
    }
    let size = match file.get(12..16)? {
        b"VP8X" => (little(24, 3)? + 1, little(27, 3)? + 1),
        b"VP8L" => (little(21, 4)? & 0x3fff, (little(21, 4)? >> 14) & 0x3fff),
        b"VP8 " => (little(26, 2)? & 0x3fff, little(28, 2)? & 0x3fff),
        _ => return None,
    };
    let is_lossless = file.get(12..16) == Some(b"VP8L");
    Some(("image/webp", if is_lossless { (size.0 + 1, size.1 + 1) } else { size }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(side: usize, pixel: [f32; 4]) -> Rgba {
        Rgba { width: side, height: side, pixels: vec![pixel; side * side] }
    }

    #[test]
    fn colours_are_those_of_bt_709() {
        // White, red, green and blue, as H.273 has them in 8 bits.
        for (rgb, yuv) in [
            ([1.0, 1.0, 1.0], [235, 128, 128]),
            ([1.0, 0.0, 0.0], [63, 102, 240]),
            ([0.0, 1.0, 0.0], [173, 42, 26]),
            ([0.0, 0.0, 1.0], [32, 240, 118]),
        ] {
            let planes = planes(&square(4, [rgb[0], rgb[1], rgb[2], 1.0]), (2, 0), (8, 4));
            let drawn = Drawn { planes };
            for (plane, level) in yuv.into_iter().enumerate() {
                let (width, height) = if plane == 0 { (8, 4) } else { (4, 2) };
                let mut data = vec![77; width * height];
                drawn.blend(plane, width, &mut data);
                let edge = if plane == 0 { 2 } else { 1 };
                assert_eq!((data[edge - 1], data[edge], data[width - edge]), (77, level, 77), "{rgb:?}, plane {plane}");
            }
        }
    }

    #[test]
    fn what_does_not_cover_leaves_what_is_under_it() {
        let mut data = vec![100; 64];
        let drawn = |covers: f32| Drawn { planes: planes(&square(8, [0.0, 0.0, 0.0, covers]), (0, 0), (8, 8)) };
        drawn(0.0).blend(0, 8, &mut data);
        assert_eq!(data, [100; 64]);
        drawn(0.5).blend(0, 8, &mut data);
        assert_eq!(data, [58; 64], "half way between 100 and black");
    }

    #[test]
    fn what_reaches_beyond_the_frame_is_cut_off() {
        let drawn = Drawn { planes: planes(&square(10, [1.0; 4]), (-5, -5), (8, 8)) };
        let mut data = vec![0; 64];
        drawn.blend(0, 8, &mut data);
        assert_eq!(data.iter().filter(|level| **level == 235).count(), 25);
        let beside = Drawn { planes: planes(&square(4, [1.0; 4]), (20, 20), (8, 8)) };
        beside.blend(0, 8, &mut data);
    }

    #[test]
    fn scaling_keeps_flat_areas_and_makes_none_brighter_than_they_cover() {
        let flat = square(9, [0.5, 0.25, 0.0, 0.5]);
        for side in [3, 9, 20] {
            let scaled = flat.scaled(side, side);
            assert_eq!(scaled.pixels.len(), side * side);
            assert!(scaled.pixels.iter().flatten().zip([0.5, 0.25, 0.0, 0.5].iter().cycle()).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn files_are_known_by_their_first_bytes() {
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        png.extend([0, 0, 1, 0, 0, 0, 0, 9]);
        assert_eq!(look(&png), Some(("image/png", (256, 9))));
        let mut webp = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
        webp.extend([99, 0, 0, 49, 0, 0]);
        assert_eq!(look(&webp), Some(("image/webp", (100, 50))));
        assert_eq!(look(b"GIF89a"), None);
        assert_eq!(look(b""), None);
    }
}
