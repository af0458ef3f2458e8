//! Any number of channels to two, by ITU-R BS.775-3, annex 4, table 2: front channels as they are, the centre and the
//! surround channels of a side 3 dB lower, a single rear centre 6 dB lower on both sides; low-frequency effects are left out.
//!
//! All weights are lowered alike until those of one side sum up to 1 (ATSC A/52:2018, 7.8.1): whatever the channels hold,
//! nothing clips, and no limiter is needed. A source of 5.1 comes out 7.7 dB lower for that, one of 7.1 by 9.9 dB.

use gst::prelude::*;
use gst_audio::AudioChannelPosition as Position;

use crate::source::internal;
use farm::Failure;

/// -3 dB.
const LOWER: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// -6 dB.
const LOWEST: f32 = 0.5;

/// Has an `audioconvert` mix down what has more than two channels, as soon as it is told what they are.
///
/// # Errors
/// When it is no converter.
pub fn apply(convert: &gst::Element) -> Result<(), Failure> {
    let pad = convert.static_pad("sink").ok_or_else(|| internal("a converter without a sink pad"))?;
    let convert = convert.downgrade();
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view())
            && let Ok(sound) = gst_audio::AudioInfo::from_caps(caps.caps())
            && let Some(convert) = convert.upgrade()
        {
            let matrix = if sound.channels() > 2 { matrix(&positions(&sound)).to_vec() } else { Vec::new() };
            let rows = matrix.iter().map(|row| gst::Array::new(row).to_send_value());
            convert.set_property("mix-matrix", gst::Array::from_values(rows));
        }
        gst::PadProbeReturn::Ok
    });
    Ok(())
}

/// Where the channels stand; the usual places for so many where the source does not say.
fn positions(sound: &gst_audio::AudioInfo) -> Vec<Position> {
    use Position::{FrontCenter, FrontLeft, FrontRight, Lfe1, Mono, RearCenter, RearLeft, RearRight, SideLeft, SideRight};
    let told = sound.positions().unwrap_or_default();
    if !told.is_empty() && !told.contains(&Position::None) {
        return told.to_vec();
    }
    let usual: &[Position] = match sound.channels() {
        3 => &[FrontLeft, FrontRight, FrontCenter],
        4 => &[FrontLeft, FrontRight, RearLeft, RearRight],
        5 => &[FrontLeft, FrontRight, FrontCenter, RearLeft, RearRight],
        6 => &[FrontLeft, FrontRight, FrontCenter, Lfe1, RearLeft, RearRight],
        7 => &[FrontLeft, FrontRight, FrontCenter, Lfe1, RearCenter, SideLeft, SideRight],
        8 => &[FrontLeft, FrontRight, FrontCenter, Lfe1, RearLeft, RearRight, SideLeft, SideRight],
        // As of nobody knows where: each as loud on both sides.
        channels => return vec![Mono; channels as usize],
    };
    usual.to_vec()
}

/// The weight of each channel on the left and on the right.
fn matrix(positions: &[Position]) -> [Vec<f32>; 2] {
    let weights: Vec<_> = positions.iter().map(|&position| weight(position)).collect();
    let sides = [weights.iter().map(|w| w.0).collect::<Vec<_>>(), weights.iter().map(|w| w.1).collect()];
    let loudest = sides.iter().map(|side| side.iter().sum::<f32>()).fold(1.0, f32::max);
    sides.map(|side| side.into_iter().map(|weight| weight / loudest).collect())
}

/// The weight of a channel on the left and on the right, before all are lowered. Channels that the recommendation does
/// not know count as the surround channels of their side, or as the rear centre.
fn weight(position: Position) -> (f32, f32) {
    match position {
        Position::FrontLeft => (1.0, 0.0),
        Position::FrontRight => (0.0, 1.0),
        Position::FrontCenter | Position::Mono => (LOWER, LOWER),
        Position::RearLeft
        | Position::SideLeft
        | Position::SurroundLeft
        | Position::WideLeft
        | Position::FrontLeftOfCenter
        | Position::TopFrontLeft
        | Position::TopRearLeft
        | Position::TopSideLeft
        | Position::BottomFrontLeft => (LOWER, 0.0),
        Position::RearRight
        | Position::SideRight
        | Position::SurroundRight
        | Position::WideRight
        | Position::FrontRightOfCenter
        | Position::TopFrontRight
        | Position::TopRearRight
        | Position::TopSideRight
        | Position::BottomFrontRight => (0.0, LOWER),
        Position::Lfe1 | Position::Lfe2 => (0.0, 0.0),
        _ => (LOWEST, LOWEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Position::{FrontCenter, FrontLeft, FrontRight, Lfe1, RearCenter, RearLeft, RearRight, SideLeft, SideRight};

    fn decibels(weight: f32) -> f32 {
        (20.0 * weight.log10() * 10.0).round() / 10.0
    }

    #[test]
    fn five_channels_and_effects_by_the_recommendation() {
        let [left, right] = matrix(&[FrontLeft, FrontRight, FrontCenter, Lfe1, RearLeft, RearRight]);
        assert_eq!(left.iter().map(|&w| decibels(w)).collect::<Vec<_>>()[..3], [-7.7, f32::NEG_INFINITY, -10.7]);
        assert_eq!((left[3], left[5], right[4]), (0.0, 0.0, 0.0));
        assert_eq!((left[4], left[0]), (right[5], right[1]));
        assert!((left[4] / left[0] - LOWER).abs() < 1e-6);
    }

    #[test]
    fn nothing_clips_whatever_the_channels_hold() {
        let layouts: [&[Position]; 4] = [
            &[FrontLeft, FrontRight, FrontCenter, Lfe1, RearLeft, RearRight, SideLeft, SideRight],
            &[FrontLeft, FrontRight, FrontCenter, RearCenter],
            &[FrontCenter, Lfe1, RearCenter],
            &[Position::Mono; 16],
        ];
        for layout in layouts {
            for side in matrix(layout) {
                let sum: f32 = side.iter().sum();
                assert!((0.0..=1.000_001).contains(&sum), "{layout:?}: {sum}");
            }
        }
    }
}
