//! Which renditions of the picture to make: their sizes, frame rates and bit rates.

use std::num::NonZeroU32;

use farm::job::{AutoLadder, LadderSpec, RungSpec, VideoCodec, VideoSpec};
use farm::media::VideoTrack;
use farm::plan::{RateControl, RenditionId, Rung};
use farm::{Class, Code, Failure, Quality, Rate};
use num_integer::Integer;

const SIDE_PX_MAX: u32 = VideoTrack::SIDE_PX_MAX;

/// Short edges of the automatic ladder, in pixels.
const HEIGHTS: [u32; 7] = [2160, 1440, 1080, 720, 480, 360, 240];

/// Height of a rung that is of the source's own size where that is smaller: the highest that can be asked for.
pub const OWN_HEIGHT: u32 = 4320;

/// Highest frame rate of all, in frames per second. Rates up to 1 % above are taken for it.
const FPS_MAX: u32 = 60;

/// Highest frame rate of a rung below [`SMALL_BELOW`] that asks for none itself.
const SMALL_FPS_MAX: u32 = 30;

/// Short edge in pixels below which a picture is small.
const SMALL_BELOW: u32 = 720;

/// Caps that are computed stay in this range, in bit/s: it is also what a job may ask for, but for a higher lower end.
const CAP_BPS: std::ops::RangeInclusive<u128> = 10_000..=400_000_000;

/// The rungs of a picture and the frame grid they share.
#[derive(Clone, Debug, PartialEq)]
pub struct Ladder {
    /// Rate of the grid; every rung's rate divides it.
    pub rate: Rate,
    /// From the largest to the smallest; at least one.
    pub rungs: Vec<Rung>,
    /// What the source's own packets may have, in bit/s, to be the largest rung: the usual for its size, or what the job allows.
    /// None where the job asks for a quality or an average.
    pub copied_bps_max: Option<u32>,
}

impl Ladder {
    /// Smallest number of grid frames that is a whole number of frames of every rung.
    pub fn common_frames(&self) -> u64 {
        self.rungs.iter().map(|rung| u64::from(rung.divisor.get())).fold(1, |common: u64, divisor| {
            // Saturating: rates that meet so seldom are refused when the GOP is chosen.
            (common / common.gcd(&divisor)).saturating_mul(divisor)
        })
    }

    /// The lowest frame rate of a rung.
    pub fn lowest_rate(&self) -> Rate {
        let divisor = self.rungs.iter().map(|rung| rung.divisor.get()).max().unwrap_or(1);
        self.rate.divided_by(divisor).unwrap_or(self.rate)
    }
}

/// Size of the upright picture in square pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    width: u32,
    height: u32,
}

impl Shape {
    /// The upright shape of a track. Pixels are made square by stretching, so no detail is lost.
    ///
    /// # Errors
    /// [`Code::LimitExceeded`] for pictures without or with too many pixels.
    pub fn of(track: &VideoTrack) -> Result<Self, Failure> {
        let (width, height) = (track.width, track.height);
        VideoTrack::check_size(width, height)?;
        let (width, height) = match track.pixel_aspect {
            _ if track.pixels_are_square() => (u64::from(width), u64::from(height)),
            (across, down) if across > down => (stretched(width, across, down), u64::from(height)),
            (across, down) => (u64::from(width), stretched(height, down, across)),
        };
        let side = |px| {
            let px = u32::try_from(px).ok().filter(|px| *px <= SIDE_PX_MAX);
            px.ok_or_else(|| {
                Failure::new(
                    Code::LimitExceeded,
                    format!("picture of {width}x{height} square pixels: up to {SIDE_PX_MAX} a side"),
                )
            })
        };
        let (width, height) = (side(width)?, side(height)?);
        Ok(if track.orientation.swaps_sides() { Self { width: height, height: width } } else { Self { width, height } })
    }

    fn short(self) -> u32 {
        self.width.min(self.height)
    }

    fn long(self) -> u32 {
        self.width.max(self.height)
    }

    /// The short edge as it can be coded: even, at least 2.
    fn codable_short(self) -> u32 {
        even(self.short())
    }

    /// Width and height as they can be coded: even.
    pub(crate) fn own_size(self) -> (u32, u32) {
        (even(self.width), even(self.height))
    }

    /// Width and height of a picture with this short edge, made even, and never larger than the source.
    pub(crate) fn size_of(self, short: u32) -> (u32, u32) {
        self.scaled_to(even(short).min(self.codable_short()))
    }

    /// Width and height of a rung with this short edge: even, and of this shape as nearly as that allows.
    fn scaled_to(self, short: u32) -> (u32, u32) {
        if short == self.codable_short() {
            return self.own_size();
        }
        let (numerator, denominator) = (u64::from(short) * u64::from(self.long()), u64::from(self.short()));
        let long = 2 * ((numerator + denominator) / (2 * denominator));
        let long = u32::try_from(long).unwrap_or(u32::MAX - 1).max(2);
        if self.width >= self.height { (long, short) } else { (short, long) }
    }
}

/// `side × more / less`, to the nearest.
fn stretched(side: u32, more: u32, less: u32) -> u64 {
    let (side, more, less) = (u64::from(side), u64::from(more), u64::from(less));
    (2 * side * more + less) / (2 * less)
}

/// Rounded down to an even number, but at least 2.
fn even(side: u32) -> u32 {
    (side & !1).max(2)
}

/// The ladder of a source of this shape, frame rate and bit rate (bit/s, 0 when unknown).
///
/// # Errors
/// [`Code::InvalidRequest`] for frame rates that cannot be made.
pub fn ladder(
    spec: &LadderSpec,
    shape: Shape,
    source: Rate,
    source_bps: u64,
    notes: &mut Vec<String>,
) -> Result<Ladder, Failure> {
    let grid = grid_rate(source)?;
    let wanted = match spec {
        LadderSpec::Auto(limits) => automatic(limits, shape),
        LadderSpec::Rungs(rungs) => asked_for(rungs, shape, notes),
    };
    let mut divisors = Vec::with_capacity(wanted.len());
    for rung in &wanted {
        let ceiling = rung.fps.or_else(|| Rate::new(SMALL_FPS_MAX, 1).filter(|_| rung.height < SMALL_BELOW));
        divisors.push(ceiling.map_or(Ok(1), |ceiling| divisor(grid, ceiling))?);
    }
    // When no rung uses every frame of the grid, the grid is finer than anyone needs.
    let common = divisors.iter().fold(0_u32, |common, divisor| common.gcd(divisor)).max(1);
    let rate = grid.divided_by(common).ok_or_else(|| unusable(source))?;
    let copied_bps_max = wanted.first().and_then(|wanted| match &wanted.video {
        Some(VideoSpec { quality: Some(_), .. } | VideoSpec { bitrate: Some(_), .. }) => None,
        Some(VideoSpec { max_bitrate: Some(max_bitrate), .. }) => Some(*max_bitrate),
        _ => Some(Cap { shape, short: wanted.height, fps: rate, source_bps: 0 }.bps()),
    });
    let rungs = wanted.iter().zip(divisors).map(|(wanted, divisor)| {
        let divisor = NonZeroU32::new(divisor / common).unwrap_or(NonZeroU32::MIN);
        let fps = rate.divided_by(divisor.get()).ok_or_else(|| unusable(source))?;
        let (width, height) = shape.scaled_to(wanted.height);
        let cap = Cap { shape, short: wanted.height, fps, source_bps };
        Ok(Rung {
            id: id(wanted.height, codec(wanted)),
            width,
            height,
            divisor,
            codec: codec(wanted),
            rate_control: rate_control(wanted.video.as_ref(), &cap),
            class: Class::Cpu,
            threads: NonZeroU32::MIN,
        })
    });
    Ok(Ladder { rate, rungs: rungs.collect::<Result<_, Failure>>()?, copied_bps_max })
}

/// The codec that is asked for.
fn codec(rung: &RungSpec) -> VideoCodec {
    rung.video.as_ref().map(|video| video.codec).unwrap_or_default()
}

/// The name of a rung: `v720`, `v720-av1`.
fn id(height: u32, codec: VideoCodec) -> RenditionId {
    RenditionId(format!("v{height}{}", codec.suffix()))
}

fn unusable(rate: Rate) -> Failure {
    Failure::new(Code::LimitExceeded, format!("frame rate {rate}: cannot be brought onto a grid"))
}

/// The source's rate in the range that is made: a whole fraction of it up to 60, a whole multiple from 1 on.
fn grid_rate(source: Rate) -> Result<Rate, Failure> {
    let highest = Rate::new(FPS_MAX, 1).ok_or_else(|| unusable(source))?;
    let multiple = source.den().div_ceil(source.num());
    let raised =
        source.num().checked_mul(multiple).and_then(|num| Rate::new(num, source.den())).ok_or_else(|| unusable(source))?;
    let rate = raised.divided_by(divisor(raised, highest)?).ok_or_else(|| unusable(source))?;
    let above = u64::from(rate.num()) > u64::from(rate.den()) * u64::from(FPS_MAX);
    Ok(if above { highest } else { rate })
}

/// Smallest whole number that brings `rate` down to `ceiling`, or to 1 % above it.
fn divisor(rate: Rate, ceiling: Rate) -> Result<u32, Failure> {
    let numerator = u128::from(rate.num()) * u128::from(ceiling.den()) * 100;
    let denominator = u128::from(rate.den()) * u128::from(ceiling.num()) * 101;
    let divisor = u32::try_from(numerator.div_ceil(denominator).max(1)).ok().filter(|_| ceiling.num() >= ceiling.den());
    divisor.ok_or_else(|| Failure::new(Code::InvalidRequest, format!("ladder: fps {ceiling} is below 1")))
}

fn automatic(limits: &AutoLadder, shape: Shape) -> Vec<RungSpec> {
    let highest = limits.max_height.map_or(u32::MAX, even).min(shape.codable_short());
    let heights: Vec<u32> = HEIGHTS.into_iter().filter(|height| *height <= highest).collect();
    let heights = if heights.is_empty() { vec![highest] } else { heights };
    heights.into_iter().map(|height| RungSpec { height, fps: None, video: None }).collect()
}

fn asked_for(rungs: &[RungSpec], shape: Shape, notes: &mut Vec<String>) -> Vec<RungSpec> {
    let highest = shape.codable_short();
    let height = |asked: u32| if asked == OWN_HEIGHT { highest.min(asked) } else { even(asked) };
    let mut wanted: Vec<RungSpec> = rungs.iter().map(|rung| RungSpec { height: height(rung.height), ..rung.clone() }).collect();
    wanted.sort_by_key(|rung| (std::cmp::Reverse(rung.height), codec(rung).effort()));
    if let Some(smallest) = wanted.last().map(|smallest| smallest.height).filter(|height| *height > highest) {
        notes.push(format!("every rung asked for is above the source: one at its own size ({highest}) is made"));
        wanted.retain(|rung| rung.height == smallest);
        wanted.iter_mut().for_each(|rung| rung.height = highest);
    }
    wanted.retain(|rung| {
        let fits = rung.height <= highest;
        if !fits {
            notes.push(format!("rung {} is left out: the source has {highest}", rung.height));
        }
        fits
    });
    for rung in &mut wanted {
        let (own, (width, height)) = (codec(rung), shape.scaled_to(rung.height));
        if let Some(video) = rung.video.as_mut().filter(|_| width.min(height) < own.side_min()) {
            notes.push(format!("rung {} is made in H.264: its picture is too small for {}", rung.height, id(rung.height, own)));
            video.codec = VideoCodec::H264;
        }
    }
    wanted.sort_by_key(|rung| (std::cmp::Reverse(rung.height), codec(rung).effort()));
    wanted.dedup_by(|later, first| {
        let same = id(later.height, codec(later)) == id(first.height, codec(first));
        if same {
            notes.push(format!("rung {} is asked for more than once: the first counts", first.height));
        }
        same
    });
    wanted
}

fn rate_control(video: Option<&VideoSpec>, cap: &Cap) -> RateControl {
    let asked = video.map(|video| (video.bitrate, video.max_bitrate, video.quality));
    match asked {
        Some((Some(bitrate), max_bitrate, _)) => RateControl::Average { bitrate, max_bitrate: max_bitrate.unwrap_or(bitrate) },
        Some((None, max_bitrate, quality)) => RateControl::CappedQuality {
            quality: quality.unwrap_or(Quality::USUAL),
            max_bitrate: max_bitrate.unwrap_or_else(|| cap.bps()),
        },
        None => RateControl::CappedQuality { quality: Quality::USUAL, max_bitrate: cap.bps() },
    }
}

/// What PeerTube's cap on the bit rate depends on.
struct Cap {
    shape: Shape,
    short: u32,
    fps: Rate,
    source_bps: u64,
}

impl Cap {
    /// PeerTube's formula without its floor, which makes a poor source many times larger and no better: the usual rate for
    /// the size, but not above 1.3 times the source's own.
    fn bps(&self) -> u32 {
        // Hundredths of a bit per pixel by short edge; below the smallest PeerTube takes fixed rates.
        const USUAL: [(u32, u128); 8] = [(2160, 8), (1440, 9), (1080, 10), (720, 11), (480, 12), (360, 15), (240, 17), (144, 19)];
        let bits = USUAL.iter().find(|(short, _)| *short <= self.short).map(|(_, bits)| *bits);
        let usual = bits.map_or(192_000, |bits| self.theoretical_bps(bits));
        let source = match self.source_bps {
            0 => u128::MAX,
            known => u128::from(known) * 13 / 10,
        };
        let cap = usual.min(source).clamp(*CAP_BPS.start(), *CAP_BPS.end());
        u32::try_from(cap).unwrap_or(u32::MAX)
    }

    /// bit/s at so many hundredths of a bit per pixel. PeerTube knows a picture's shape to four decimals, so do we.
    fn theoretical_bps(&self, bits: u128) -> u128 {
        let (long, short) = (u128::from(self.shape.long()), u128::from(self.shape.short()));
        let aspect_e4 = (2 * 10_000 * long + short) / (2 * short);
        let rung = u128::from(self.short);
        rung * rung * aspect_e4 * u128::from(self.fps.num()) * bits / (1_000_000 * u128::from(self.fps.den()))
    }
}

#[cfg(test)]
mod tests;
