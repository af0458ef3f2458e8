//! Light: from the gamma-coded RGB of HDR and wide-gamut pictures to that of BT.709, on planes of floats.
//!
//! Per pixel, in units where 1.0 is the white of SDR:
//!
//! 1. code values to display light: PQ's EOTF, HLG's inverse OETF and OOTF for a display of 1000 cd/m² (ITU-R BT.2100), or
//!    the power of a gamma display (ITU-R BT.1886);
//! 2. HDR only: the EETF of ITU-R BT.2390 (§5.4.1) from 1000 cd/m² down to 203 cd/m², applied to the largest of R, G, B and
//!    the other two in proportion, so hues stay. SDR's white is taken as HDR reference white, 203 cd/m² (ITU-R BT.2408): an
//!    18 % grey stays one, and everything above reference white is what gets compressed;
//! 3. BT.2020 (or P3) to BT.709 by a matrix, hard-clipped to 0..1 (ITU-R BT.2407, §2);
//! 4. display light to BT.709 code values, by the inverse of BT.1886.
//!
//! All powers come from tables: `powf` per sample would cost more than an encoder.

use super::colour::{Primaries, Transfer};

/// HDR reference white, which becomes SDR's white, in cd/m² (ITU-R BT.2408).
const WHITE: f64 = 203.0;
/// The brightest light that is told apart, in cd/m²: HLG's nominal peak and the usual mastering display of PQ. The same for
/// every source, so that no chunk depends on metadata that only some packets carry.
const PEAK: f64 = 1000.0;
/// Gamma of the display that BT.709 pictures are made for (ITU-R BT.1886).
const DISPLAY_GAMMA: f64 = 2.4;
/// Exponent of HLG's OOTF less one, at 1000 cd/m² (ITU-R BT.2100, table 5).
const HLG_OOTF: f64 = 0.2;
/// Pixels gone through at a time.
const BLOCK: usize = 512;
/// Weights of R, G and B of BT.2020 in luminance (ITU-R BT.2100).
const LUMINANCE_2020: [f32; 3] = [0.2627, 0.6780, 0.0593];

/// The way from a picture's light to that of BT.709.
pub struct Curve {
    /// Code value to light; for HLG to scene light, 1.0 at the peak.
    decode: CodeTable,
    gain: Gain,
    gamut: [[f32; 3]; 3],
    /// Light to code value.
    encode: LightTable,
}

/// By what a pixel's three lights are multiplied.
enum Gain {
    One,
    /// By the largest light.
    Tone(LightTable),
    /// By the luminance, then by the largest light.
    OotfAndTone(LightTable, LightTable),
}

impl Curve {
    /// The tables for pictures of this kind.
    pub fn new(transfer: Transfer, primaries: Primaries) -> Self {
        let decode = match transfer {
            Transfer::Pq => CodeTable::new(|code| pq_eotf(code) / WHITE),
            Transfer::Hlg => CodeTable::new(hlg_inverse_oetf),
            Transfer::Gamma(gamma) => CodeTable::new(|code| code.powf(gamma)),
        };
        let tone = || LightTable::new(|light| eetf(light * WHITE) / (light * WHITE));
        let gain = match transfer {
            Transfer::Pq => Gain::Tone(tone()),
            Transfer::Hlg => Gain::OotfAndTone(LightTable::new(|light| light.powf(HLG_OOTF) * PEAK / WHITE), tone()),
            Transfer::Gamma(_) => Gain::One,
        };
        // What is too dark for the table is black, without a rest for dither to show.
        let black = f64::from(LightTable::MIN);
        let encode = LightTable::new(|light| if light > black { light.powf(1.0 / DISPLAY_GAMMA) } else { 0.0 });
        Self { decode, gain, gamut: to_bt709(primaries), encode }
    }

    /// Converts pixels in place: the code values of red, green and blue, nominally 0 to 1.
    ///
    /// One simple loop after another over a block that stays in cache, for compilers to make SIMD of.
    pub fn apply(&self, red: &mut [f32], green: &mut [f32], blue: &mut [f32]) {
        let mut gains = [1.0; BLOCK];
        let blocks = red.chunks_mut(BLOCK).zip(green.chunks_mut(BLOCK)).zip(blue.chunks_mut(BLOCK));
        for ((red, green), blue) in blocks {
            for channel in [&mut *red, &mut *green, &mut *blue] {
                self.decode.apply(channel);
            }
            self.gain.of(red, green, blue, &mut gains);
            for (((red, green), blue), gain) in red.iter_mut().zip(green.iter_mut()).zip(blue.iter_mut()).zip(&gains) {
                let light = [*red, *green, *blue].map(|light| gain * light);
                let [to_red, to_green, to_blue] = self.gamut.map(|row| weighted(row, light).min(1.0));
                (*red, *green, *blue) = (to_red, to_green, to_blue);
            }
            for channel in [red, green, blue] {
                self.encode.apply(channel);
            }
        }
    }
}

impl Gain {
    /// Sets the gain of each pixel.
    fn of(&self, red: &[f32], green: &[f32], blue: &[f32], gains: &mut [f32; BLOCK]) {
        let pixels = || red.iter().zip(green).zip(blue).map(|((red, green), blue)| [*red, *green, *blue]);
        let largest = |[red, green, blue]: [f32; 3]| red.max(green).max(blue);
        match self {
            Self::One => {}
            Self::Tone(tone) => {
                gains.iter_mut().zip(pixels()).for_each(|(gain, light)| *gain = largest(light));
                tone.apply(gains);
            }
            Self::OotfAndTone(ootf, tone) => {
                gains.iter_mut().zip(pixels()).for_each(|(gain, light)| *gain = weighted(LUMINANCE_2020, light));
                ootf.apply(gains);
                let mut brightest = [0.0; BLOCK];
                brightest
                    .iter_mut()
                    .zip(pixels())
                    .zip(&*gains)
                    .for_each(|((brightest, light), gain)| *brightest = gain * largest(light));
                tone.apply(&mut brightest);
                gains.iter_mut().zip(&brightest).for_each(|(gain, tone)| *gain *= tone);
            }
        }
    }
}

fn weighted(weights: [f32; 3], values: [f32; 3]) -> f32 {
    weights[0] * values[0] + weights[1] * values[1] + weights[2] * values[2]
}

/// The value at the start of a piece, and what it rises by until the end.
type Piece = [f32; 2];

/// The pieces of a function between points that follow one another.
fn pieces<const N: usize>(points: impl Fn(usize) -> f64) -> Box<[Piece; N]> {
    Box::new(std::array::from_fn(|index| [points(index) as f32, (points(index + 1) - points(index)) as f32]))
}

/// A function of code values, in pieces of equal length from 0 to 1.
struct CodeTable(Box<[Piece; CodeTable::PIECES]>);

impl CodeTable {
    const PIECES: usize = 4096;
    /// 1.5 · 2^23: added to a small float, of either sign, it leaves the nearest whole number in the lowest bits.
    const ROUND: f32 = 1.5 * (1_u32 << (f32::MANTISSA_DIGITS - 1)) as f32;

    fn new(function: impl Fn(f64) -> f64) -> Self {
        Self(pieces(|index| function(index as f64 / Self::PIECES as f64)))
    }

    fn apply(&self, codes: &mut [f32]) {
        for code in codes {
            *code = self.at(*code);
        }
    }

    #[inline]
    fn at(&self, code: f32) -> f32 {
        let place = code.clamp(0.0, 1.0 - f32::EPSILON) * Self::PIECES as f32;
        // Half a piece less, rounded: the piece that the place is in, or at its end.
        let rounded = place - 0.5 + Self::ROUND;
        let [start, rise] = self.0[rounded.to_bits() as usize & (Self::PIECES - 1)];
        start + (place - (rounded - Self::ROUND)) * rise
    }
}

/// A function of light from 2^-26 to 2^6, in 64 pieces for each doubling, so that it is as fine in the dark as in the bright.
/// A float's own bits tell the piece: its exponent and the six highest bits of its fraction.
struct LightTable(Box<[Piece; LightTable::PIECES]>);

impl LightTable {
    const PIECES: usize = 32 * 64;
    /// Bits of a float's fraction in all, and below the six that tell the piece.
    const FRACTION_BITS: u32 = f32::MANTISSA_DIGITS - 1;
    const FINE_BITS: u32 = Self::FRACTION_BITS - 6;
    /// 2^-26.
    const MIN: f32 = 1.0 / (1_u32 << 26) as f32;
    /// The float just below 2^6.
    const MAX: f32 = 64.0 * (1.0 - f32::EPSILON / 2.0);

    fn new(function: impl Fn(f64) -> f64) -> Self {
        let light = |index: usize| f32::from_bits(Self::MIN.to_bits() + ((index as u32) << Self::FINE_BITS));
        Self(pieces(|index| function(f64::from(light(index)))))
    }

    fn apply(&self, lights: &mut [f32]) {
        for light in lights {
            *light = self.at(*light);
        }
    }

    #[inline]
    fn at(&self, light: f32) -> f32 {
        let bits = light.clamp(Self::MIN, Self::MAX).to_bits().wrapping_sub(Self::MIN.to_bits());
        let [start, rise] = self.0[(bits >> Self::FINE_BITS) as usize & (Self::PIECES - 1)];
        // The fine bits as the fraction of a float from 1 to 2: how far into the piece.
        let fine = (bits & ((1 << Self::FINE_BITS) - 1)) << (Self::FRACTION_BITS - Self::FINE_BITS);
        start + (f32::from_bits(fine | 1.0_f32.to_bits()) - 1.0) * rise
    }
}

/// PQ's constants (ITU-R BT.2100, table 4).
mod pq {
    pub const M1: f64 = 2610.0 / 16384.0;
    pub const M2: f64 = 2523.0 / 4096.0 * 128.0;
    pub const C1: f64 = 3424.0 / 4096.0;
    pub const C2: f64 = 2413.0 / 4096.0 * 32.0;
    pub const C3: f64 = 2392.0 / 4096.0 * 32.0;
    /// Light of the highest code value, in cd/m².
    pub const MAX: f64 = 10_000.0;
}

/// Code value to cd/m².
fn pq_eotf(code: f64) -> f64 {
    let power = code.powf(1.0 / pq::M2);
    pq::MAX * ((power - pq::C1).max(0.0) / (pq::C2 - pq::C3 * power)).powf(1.0 / pq::M1)
}

/// Light in cd/m² to code value.
fn pq_inverse_eotf(light: f64) -> f64 {
    let power = (light / pq::MAX).powf(pq::M1);
    ((pq::C1 + pq::C2 * power) / (1.0 + pq::C3 * power)).powf(pq::M2)
}

/// Code value to scene light (ITU-R BT.2100, table 5).
fn hlg_inverse_oetf(code: f64) -> f64 {
    const A: f64 = 0.178_832_77;
    const B: f64 = 1.0 - 4.0 * A;
    let c = 0.5 - A * (4.0 * A).ln();
    if code <= 0.5 { code * code / 3.0 } else { (((code - c) / A).exp() + B) / 12.0 }
}

/// The EETF of ITU-R BT.2390 (§5.4.1) from [`PEAK`] to [`WHITE`], both displays' black being 0; lights in cd/m².
fn eetf(light: f64) -> f64 {
    let peak = pq_inverse_eotf(PEAK);
    let max = pq_inverse_eotf(WHITE) / peak;
    let knee = 1.5 * max - 0.5;
    let e1 = (pq_inverse_eotf(light) / peak).min(1.0);
    let e2 = if e1 < knee {
        e1
    } else {
        let t = (e1 - knee) / (1.0 - knee);
        let (t2, t3) = (t * t, t * t * t);
        (2.0 * t3 - 3.0 * t2 + 1.0) * knee + (t3 - 2.0 * t2 + t) * (1.0 - knee) + (-2.0 * t3 + 3.0 * t2) * max
    };
    pq_eotf(e2 * peak)
}

/// The matrix that takes linear RGB of these primaries to that of BT.709.
fn to_bt709(primaries: Primaries) -> [[f32; 3]; 3] {
    let (from, to) = (rgb_to_xyz(primaries), inverse(rgb_to_xyz(Primaries::BT709)));
    let cell = |row: usize, column: usize| (0..3).map(|k| to[row][k] * from[k][column]).sum::<f64>() as f32;
    std::array::from_fn(|row| std::array::from_fn(|column| cell(row, column)))
}

/// The normalized primary matrix (SMPTE RP 177) for a D65 white.
fn rgb_to_xyz(Primaries(xy): Primaries) -> [[f64; 3]; 3] {
    const WHITE_XY: [f64; 2] = [0.3127, 0.3290];
    let xyz = |[x, y]: [f64; 2]| [x / y, 1.0, (1.0 - x - y) / y];
    let (columns, white) = (xy.map(xyz), xyz(WHITE_XY));
    let unscaled = std::array::from_fn(|row| columns.map(|column| column[row]));
    let scale = inverse(unscaled).map(|row| (0..3).map(|k| row[k] * white[k]).sum::<f64>());
    unscaled.map(|row| std::array::from_fn(|k| row[k] * scale[k]))
}

fn inverse(m: [[f64; 3]; 3]) -> [[f64; 3]; 3] {
    // Cyclic neighbours make each cofactor's sign come out by itself.
    let cofactor = |r: usize, c: usize| {
        let (r1, r2, c1, c2) = ((r + 1) % 3, (r + 2) % 3, (c + 1) % 3, (c + 2) % 3);
        m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
    };
    let determinant: f64 = (0..3).map(|c| m[0][c] * cofactor(0, c)).sum();
    std::array::from_fn(|row| std::array::from_fn(|column| cofactor(column, row) / determinant))
}

#[cfg(test)]
mod tests {
    use super::{CodeTable, LightTable, Primaries, eetf, hlg_inverse_oetf, pq_eotf, pq_inverse_eotf, to_bt709};

    /// Values printed in the recommendations.
    #[test]
    fn curves_meet_their_documents() {
        // BT.2408, table 1: reference white 203 cd/m² is 58 % PQ and 75 % HLG; 18 % grey at 26 cd/m² is 38 % either way.
        assert!((pq_inverse_eotf(203.0) - 0.58).abs() < 0.005);
        assert!((pq_eotf(0.38) - 26.0).abs() < 1.5);
        assert!((1000.0 * hlg_inverse_oetf(0.75).powf(1.2) - 203.0).abs() < 1.0);
        assert!((hlg_inverse_oetf(1.0) - 1.0).abs() < 1e-6);
        // BT.2407, §2: BT.2020 to BT.709.
        let expected = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]];
        for (got, wanted) in to_bt709(Primaries::BT2020).iter().flatten().zip(expected.iter().flatten()) {
            assert!((got - wanted).abs() < 2e-4, "{got} for {wanted}");
        }
    }

    #[test]
    fn tone_curve_keeps_greys_and_reaches_white() {
        assert!((eetf(26.0) - 26.0).abs() < 1e-6);
        assert!((eetf(1000.0) - 203.0).abs() < 1e-6);
        assert!((eetf(4000.0) - 203.0).abs() < 1e-6);
        let lights = [1.0, 50.0, 90.0, 100.0, 203.0, 400.0, 800.0, 1000.0].map(eetf);
        assert!(lights.is_sorted_by(|a, b| a < b), "{lights:?}");
    }

    #[test]
    fn tables_follow_their_functions() {
        let pq = CodeTable::new(pq_eotf);
        let gamma = LightTable::new(|light| light.powf(1.0 / 2.4));
        for step in 1..=9_999_u16 {
            let x = f64::from(step) / 10_000.0;
            let (got, exact) = (f64::from(pq.at(x as f32)), pq_eotf(x));
            assert!((got - exact).abs() <= 1e-4 * exact + 1e-4, "PQ at {x}: {got} for {exact}");
            let (got, exact) = (f64::from(gamma.at(x as f32)), x.powf(1.0 / 2.4));
            assert!((got - exact).abs() <= 2e-5, "gamma at {x}: {got} for {exact}");
        }
        assert!(gamma.at(0.0) < 1e-3 && gamma.at(-1.0) < 1e-3);
        assert!(pq.at(-1.0) == 0.0 && (pq.at(2.0) - 10_000.0).abs() < 1.0);
    }
}
