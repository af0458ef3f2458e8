//! What a picture's samples mean, and by which way it becomes what every rung is: 4:2:0, 8 bits, BT.709, limited range.

use farm::media::Colour;
use gst_video::{VideoChromaSite, VideoColorRange, VideoInfo};

use super::zimg::{ChromaSite, Family, Format, Sample, UNSPECIFIED};

/// Code points of H.273 that have names here.
mod h273 {
    pub const RGB: u8 = 0;
    pub const BT709: u8 = 1;
    pub const BT2020: u8 = 9;
    pub const DISPLAY_P3: u8 = 12;
    pub const PQ: u8 = 16;
    pub const HLG: u8 = 18;
}

/// How code values stand for light on the display.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transfer {
    /// Perceptual quantizer: ITU-R BT.2100, table 4.
    Pq,
    /// Hybrid log-gamma: ITU-R BT.2100, table 5.
    Hlg,
    /// A power of the code value, as of ITU-R BT.1886.
    Gamma(f64),
}

/// Which red, green and blue are meant: CIE xy of each. White is D65.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Primaries(pub [[f64; 2]; 3]);

impl Primaries {
    /// ITU-R BT.709.
    pub const BT709: Self = Self([[0.640, 0.330], [0.300, 0.600], [0.150, 0.060]]);
    /// ITU-R BT.2020.
    pub const BT2020: Self = Self([[0.708, 0.292], [0.170, 0.797], [0.131, 0.046]]);
    /// SMPTE EG 432-1, Display P3.
    pub const DISPLAY_P3: Self = Self([[0.680, 0.320], [0.265, 0.690], [0.150, 0.060]]);
}

/// By which way a picture gets to a rung's format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Route {
    /// It is what it should be already, every sample in its place.
    Keep,
    /// Size, depth, range, subsampling and matrix, in one graph.
    Direct,
    /// To gamma-coded RGB, through linear light into the range and colours of BT.709, and back.
    ThroughLight(Transfer, Primaries),
}

/// The format of what arrives. `colour` overrides what the caps say, and `sited` tells whether they say where colour
/// differences lie: if not, [`VideoInfo`] has made a guess of its own, that of JPEG for small pictures.
///
/// An odd last column or row of subsampled pictures is left out: zimg needs whole chroma samples.
pub fn source_format(info: &VideoInfo, colour: Option<Colour>, sited: bool) -> Format {
    let format = info.format_info();
    let halvings = |of: &[u32]| of.get(1).copied().unwrap_or(0);
    let subsampling = (halvings(format.w_sub()), halvings(format.h_sub()));
    let depth = format.depth().first().copied().unwrap_or(8);
    let family = match (info.is_gray(), info.is_rgb()) {
        (true, _) => Family::Grey,
        (_, true) => Family::Rgb,
        _ => Family::Yuv,
    };
    let colour = colour.unwrap_or_else(|| colour_of(info));
    Format {
        width: info.width() >> subsampling.0 << subsampling.0,
        height: info.height() >> subsampling.1 << subsampling.1,
        family,
        sample: if depth > 8 { Sample::Word } else { Sample::Byte },
        depth,
        subsampling,
        // Not told: what H.264 and all its followers default to.
        chroma_site: if sited { chroma_site(info.chroma_site()) } else { ChromaSite::Left },
        full_range: colour.full_range || family == Family::Rgb,
        matrix: if family == Family::Rgb { h273::RGB } else { known_matrix(colour) },
        transfer: colour.transfer,
        primaries: colour.primaries,
    }
}

/// The format of what leaves.
pub fn rung_format(width: u32, height: u32) -> Format {
    Format {
        width,
        height,
        family: Family::Yuv,
        sample: Sample::Byte,
        depth: 8,
        subsampling: (1, 1),
        chroma_site: ChromaSite::Left,
        full_range: false,
        matrix: h273::BT709,
        transfer: h273::BT709,
        primaries: h273::BT709,
    }
}

/// Which way leads from one to the other; `cropped` where what arrives has a column or row more than its format tells.
///
/// The primaries of BT.601 (H.273: 5, 6, 7, 22) count as those of BT.709, and all transfers of its family as one: the
/// difference is a few code values in the most saturated colours, the conversion would be twenty times as slow, and
/// browsers and ffmpeg's scaler do not make it either. BT.2020 and P3 are wide enough that it has to be made.
pub fn route(from: &Format, to: &Format, cropped: bool) -> Route {
    let primaries = match from.primaries {
        h273::BT2020 => Primaries::BT2020,
        h273::DISPLAY_P3 => Primaries::DISPLAY_P3,
        // PQ and HLG are only defined with BT.2020's.
        UNSPECIFIED if matches!(from.transfer, h273::PQ | h273::HLG) => Primaries::BT2020,
        _ => Primaries::BT709,
    };
    let transfer = match from.transfer {
        h273::PQ => Transfer::Pq,
        h273::HLG => Transfer::Hlg,
        // Assumed display gamma 2.2, 2.8, and of the rest BT.1886's 2.4.
        4 | 13 => Transfer::Gamma(2.2),
        5 => Transfer::Gamma(2.8),
        8 => Transfer::Gamma(1.0),
        _ => Transfer::Gamma(2.4),
    };
    let light_alike = primaries == Primaries::BT709 && matches!(transfer, Transfer::Gamma(_));
    if from.family != Family::Grey && !light_alike {
        return Route::ThroughLight(transfer, primaries);
    }
    let as_displayed = Format { transfer: to.transfer, primaries: to.primaries, ..*from };
    if as_displayed == *to && !cropped { Route::Keep } else { Route::Direct }
}

/// The matrix by which zimg can make RGB; where it is not told, the one that goes with the primaries.
fn known_matrix(colour: Colour) -> u8 {
    match colour.matrix {
        matrix @ (1 | 4..=9) => matrix,
        _ if colour.primaries == h273::BT2020 || colour.is_hdr() => h273::BT2020,
        _ => h273::BT709,
    }
}

fn colour_of(info: &VideoInfo) -> Colour {
    let told = info.colorimetry();
    let byte = |number: u32| u8::try_from(number).unwrap_or(UNSPECIFIED);
    Colour {
        primaries: byte(told.primaries().to_iso()),
        transfer: byte(told.transfer().to_iso()),
        matrix: byte(told.matrix().to_iso()),
        full_range: told.range() == VideoColorRange::Range0_255,
    }
}

fn chroma_site(site: VideoChromaSite) -> ChromaSite {
    match (site.contains(VideoChromaSite::H_COSITED), site.contains(VideoChromaSite::V_COSITED)) {
        (true, true) => ChromaSite::TopLeft,
        (false, true) => ChromaSite::Top,
        (false, false) if site == VideoChromaSite::JPEG => ChromaSite::Centre,
        _ => ChromaSite::Left,
    }
}

#[cfg(test)]
mod tests {
    use super::{Family, Format, Primaries, Route, Transfer, route, rung_format};

    fn with(matrix: u8, transfer: u8, primaries: u8) -> Format {
        Format { matrix, transfer, primaries, ..rung_format(640, 360) }
    }

    #[test]
    fn what_is_right_is_kept() {
        let rung = rung_format(640, 360);
        assert_eq!(route(&with(1, 1, 1), &rung, false), Route::Keep);
        assert_eq!(route(&with(1, 6, 6), &rung, false), Route::Keep);
        assert_eq!(route(&with(1, 1, 1), &rung, true), Route::Direct);
        assert_eq!(route(&with(6, 6, 6), &rung, false), Route::Direct);
        assert_eq!(route(&Format { full_range: true, ..rung }, &rung, false), Route::Direct);
        assert_eq!(route(&Format { width: 854, ..rung }, &rung, false), Route::Direct);
        assert_eq!(route(&Format { depth: 10, ..rung }, &rung, false), Route::Direct);
    }

    #[test]
    fn wide_and_bright_colours_go_through_light() {
        let rung = rung_format(640, 360);
        assert_eq!(route(&with(9, 16, 9), &rung, false), Route::ThroughLight(Transfer::Pq, Primaries::BT2020));
        assert_eq!(route(&with(9, 18, 2), &rung, false), Route::ThroughLight(Transfer::Hlg, Primaries::BT2020));
        assert_eq!(route(&with(9, 14, 9), &rung, false), Route::ThroughLight(Transfer::Gamma(2.4), Primaries::BT2020));
        assert_eq!(route(&with(1, 13, 12), &rung, false), Route::ThroughLight(Transfer::Gamma(2.2), Primaries::DISPLAY_P3));
        let grey = Format { family: Family::Grey, ..with(9, 14, 9) };
        assert_eq!(route(&grey, &rung, false), Route::Direct);
    }
}
