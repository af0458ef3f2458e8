//! Which packets of the source can be renditions as they are, and why others cannot.

use farm::Rate;
use farm::job::{Copying, JobSpec, Loudness, VideoCodec};
use farm::media::{AacPackets, AudioTrack, Colour, H264Packets, Interlace, Orientation, VideoTrack};
use farm::plan::{AacCopy, AudioPlan};
use farm::rate::SECOND_NS;

use crate::ladder::Ladder;

/// Longest GOP in seconds that is taken over: segments are no shorter, and players start at one.
const GOP_SECONDS_MAX: u64 = 6;

/// Shortest GOP in seconds that is made of the source's: each costs bits in all other rungs.
const GOP_SECONDS_MIN: u64 = 1;

/// Frames that a source may hold back for reordering: the result's lead is as long.
const REORDER_FRAMES_MAX: u32 = 4;

/// Sound of more bit/s is encoded. The usual rates end at 192 kbit/s, of which encoders make a little more.
const AAC_BPS_MAX: u64 = 200_000;

/// Samples by which the last packet may be short of the sound's end, which is rounded.
const END_OFF_SAMPLES: u64 = 64;

/// A picture that is copied: its GOPs are those of all rungs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureCopy {
    /// Frames of a GOP: at every multiple of it there is an IDR picture.
    pub gop_frames: u64,
    /// Frames held back for reordering.
    pub reorder_frames: u32,
    /// What it may have in bit/s.
    pub max_bitrate: u32,
}

/// Whether the largest rung can be the source's own packets. `origin_ns` is the stream time of the result's start.
///
/// # Errors
/// Why not, in words for the report; without words where nobody would expect it.
pub fn picture(spec: &JobSpec, track: &VideoTrack, ladder: &Ladder, origin_ns: u64) -> Result<PictureCopy, Option<String>> {
    let (Some(h264), Some(rung), Some(bps_max)) = (track.h264, ladder.rungs.first(), ladder.copied_bps_max) else {
        return Err(None);
    };
    let is_asked_for = spec.copy != Copying::Never && spec.edit.is_empty() && rung.codec == VideoCodec::H264;
    if !is_asked_for || (rung.width, rung.height) != (track.width, track.height) {
        return Err(None);
    }
    let is_as_shown = track.pixels_are_square()
        && track.orientation == Orientation::default()
        && track.interlace == Interlace::Progressive
        && track.colour == Colour::BT709
        && track.format == "I420";
    if !is_as_shown {
        return Err(Some("it has to be turned, stretched, deinterlaced or converted".to_owned()));
    }
    let is_on_grid = track.timing.constant
        && track.timing.rate == ladder.rate
        && rung.divisor.get() == 1
        && track.timing.start_ns == origin_ns
        && ladder.rate.nearest_frame(track.timing.end_ns.saturating_sub(origin_ns)) == track.timing.frames;
    if !is_on_grid {
        return Err(Some("its frames are not all at their places on the grid".to_owned()));
    }
    bits(track, h264, bps_max)?;
    if h264.reorder_frames > REORDER_FRAMES_MAX {
        return Err(Some(format!("it reorders up to {} frames", h264.reorder_frames)));
    }
    let gop_frames = h264.keys_are_idr.then(|| gop(track, ladder.rate, ladder.common_frames(), origin_ns)).flatten();
    let gop_frames = gop_frames
        .ok_or_else(|| format!("it has no key frame at every multiple of {GOP_SECONDS_MIN} to {GOP_SECONDS_MAX} seconds"))?;
    Ok(PictureCopy { gop_frames, reorder_frames: h264.reorder_frames, max_bitrate: bps_max })
}

/// What an encoder would be held to: an average under the cap, and no more in two seconds than its buffer and the cap.
fn bits(track: &VideoTrack, h264: H264Packets, bps_max: u32) -> Result<(), String> {
    let kbps = |bps: u64| bps / 1000;
    if track.bitrate > bps_max.into() {
        return Err(format!("it has {} kbit/s, a rung of its size {} at most", kbps(track.bitrate), kbps(bps_max.into())));
    }
    if h264.peak_bps > 2 * u64::from(bps_max) {
        return Err(format!("it has {} kbit/s in its busiest two seconds", kbps(h264.peak_bps)));
    }
    Ok(())
}

/// The number of frames nearest to two seconds at whose every multiple there is a key frame.
fn gop(track: &VideoTrack, rate: Rate, common_frames: u64, origin_ns: u64) -> Option<u64> {
    let keys: Vec<u64> = track.key_frames_ns.iter().map(|ns| rate.nearest_frame(ns.saturating_sub(origin_ns))).collect();
    let is_thinned = keys.len() >= VideoTrack::KEY_FRAMES_MAX / 2;
    if keys.first() != Some(&0) || is_thinned {
        return None;
    }
    let frames = track.timing.frames;
    let allowed = rate.nearest_frame(GOP_SECONDS_MIN * SECOND_NS)..=rate.nearest_frame(GOP_SECONDS_MAX * SECOND_NS);
    let mut gops: Vec<u64> = keys.iter().copied().filter(|gop| allowed.contains(gop)).collect();
    if frames <= *allowed.end() {
        // One GOP is all there is.
        gops.push(frames.max(1).next_multiple_of(common_frames));
    }
    let wanted = rate.nearest_frame(2 * SECOND_NS);
    gops.sort_by_key(|gop| gop.abs_diff(wanted));
    gops.into_iter().find(|&gop| {
        let step = usize::try_from(gop).unwrap_or(usize::MAX).max(1);
        gop.is_multiple_of(common_frames) && (0..frames).step_by(step).all(|place| keys.binary_search(&place).is_ok())
    })
}

/// Which packets of a track can be a rendition of so many samples at this rate.
///
/// # Errors
/// Why none can, as for [`picture`].
pub fn sound(spec: &JobSpec, track: &AudioTrack, rate: u32, samples: u64, origin_ns: u64) -> Result<AacCopy, Option<String>> {
    let Some(aac) = track.aac.filter(|_| spec.copy == Copying::WhenFits) else { return Err(None) };
    if spec.audio.loudness != Loudness::Off || !spec.edit.is_empty() {
        return Err(None);
    }
    if track.rate != rate || track.channels > 2 {
        return Err(Some(format!("it has {} channels at {} Hz", track.channels, track.rate)));
    }
    if track.bitrate > AAC_BPS_MAX {
        return Err(Some(format!("it has {} kbit/s", track.bitrate / 1000)));
    }
    packets(aac, rate, samples, origin_ns)
        .ok_or_else(|| Some("it does not have packets from the result's beginning to its end".to_owned()))
}

fn packets(aac: AacPackets, rate: u32, samples: u64, origin_ns: u64) -> Option<AacCopy> {
    const PACKET: i64 = AudioPlan::PACKET_SAMPLES as i64;
    let first_ns = i128::from(aac.first_ns) - i128::from(origin_ns);
    let unit = i128::from(SECOND_NS);
    let first = i64::try_from((first_ns * i128::from(rate) * 2 + unit).div_euclid(2 * unit)).ok()?;
    // As late as leaves a packet to warm up on.
    let unused = if first <= -PACKET { (-PACKET - first) / PACKET } else { 0 };
    let early = u32::try_from(-(first + unused * PACKET)).ok()?;
    let left = aac.count.checked_sub(unused.cast_unsigned()).filter(|left| *left > 0)?;
    let wanted = (u64::from(early) + samples).div_ceil(PACKET.cast_unsigned());
    let packets = wanted.min(left);
    let lasts = packets * PACKET.cast_unsigned() + END_OFF_SAMPLES >= u64::from(early) + samples;
    lasts.then_some(AacCopy { early_samples: early, packets })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{picture as track, rate, spec};
    use farm::job::LadderSpec;

    fn copyable(seconds: u64, keys: impl IntoIterator<Item = u64>) -> VideoTrack {
        let h264 = Some(H264Packets { keys_are_idr: true, reorder_frames: 2, peak_bps: 2_000_000 });
        let key_frames_ns = keys.into_iter().map(|frame| rate("25").start_ns(frame)).collect();
        VideoTrack { h264, key_frames_ns, bitrate: 1_000_000, ..track(1280, 720, "25", seconds) }
    }

    fn decided(track: &VideoTrack) -> Result<PictureCopy, Option<String>> {
        let shape = crate::ladder::Shape::of(track).expect("a shape");
        let ladder = crate::ladder::ladder(&LadderSpec::default(), shape, track.timing.rate, track.bitrate, &mut Vec::new());
        picture(&spec(), track, &ladder.expect("a ladder"), track.timing.start_ns)
    }

    #[test]
    fn gops_are_those_multiples_of_the_sources_that_are_nearest_to_two_seconds() {
        let gop = |track: &VideoTrack| decided(track).map(|copy| copy.gop_frames).ok();
        assert_eq!(gop(&copyable(60, (0..1500).step_by(25))), Some(50), "every second");
        assert_eq!(gop(&copyable(60, (0..1500).step_by(75))), Some(75));
        assert_eq!(gop(&copyable(60, (0..1500).step_by(10))), Some(50));
        assert_eq!(gop(&copyable(60, 0..1500)), Some(50), "every frame");
        let mut cuts: Vec<_> = (0..1500).step_by(50).chain([7, 420, 1111]).collect();
        cuts.sort_unstable();
        assert_eq!(gop(&copyable(60, cuts)), Some(50), "more where scenes change");
        assert_eq!(gop(&copyable(60, (0..1500).step_by(250))), None, "every ten seconds");
        assert_eq!(gop(&copyable(60, [0, 50, 100, 151, 201])), None, "irregular");
        assert_eq!(gop(&copyable(4, [0])), Some(100), "one is all there is");
        assert_eq!(gop(&copyable(60, [0])), None);
        assert_eq!(gop(&copyable(60, (5..1500).step_by(25))), None, "none at the start");
    }

    #[test]
    fn what_is_not_as_a_rung_has_to_be_is_encoded_and_the_report_says_why() {
        let fit = copyable(60, (0..1500).step_by(50));
        assert_eq!(decided(&fit), Ok(PictureCopy { gop_frames: 50, reorder_frames: 2, max_bitrate: 2_534_431 }));
        assert!(decided(&VideoTrack { pixel_aspect: (1281, 1280), ..fit.clone() }).is_ok(), "as good as square");
        let h264 = fit.h264.expect("set");
        let mut late = fit.clone();
        late.timing.constant = false;
        for (track, said) in [
            (VideoTrack { pixel_aspect: (4, 3), width: 960, ..fit.clone() }, None),
            (VideoTrack { orientation: Orientation { mirrored: true, quarter_turns: 0 }, ..fit.clone() }, Some("turned")),
            (VideoTrack { interlace: Interlace::Mixed, ..fit.clone() }, Some("deinterlaced")),
            (VideoTrack { colour: Colour { matrix: 6, ..Colour::BT709 }, ..fit.clone() }, Some("converted")),
            (late, Some("places")),
            (VideoTrack { bitrate: 20_000_000, ..fit.clone() }, Some("20000 kbit/s")),
            (VideoTrack { h264: Some(H264Packets { peak_bps: 30_000_000, ..h264 }), ..fit.clone() }, Some("busiest")),
            (VideoTrack { h264: Some(H264Packets { keys_are_idr: false, ..h264 }), ..fit.clone() }, Some("key frame")),
            (VideoTrack { h264: Some(H264Packets { reorder_frames: 9, ..h264 }), ..fit.clone() }, Some("reorders")),
            (VideoTrack { h264: None, ..fit }, None),
        ] {
            let found = decided(&track).expect_err("it is encoded");
            assert_eq!(found.is_some(), said.is_some(), "{found:?}");
            assert!(found.iter().zip(said).all(|(found, said)| found.contains(said)), "{found:?}");
        }
    }

    #[test]
    fn sound_begins_with_a_packet_to_warm_up_on_where_there_is_one() {
        let rate = 48_000;
        let ns = |samples: i64| samples * 1_000_000_000 / 48_000;
        let found = |first: i64, count: u64| packets(AacPackets { first_ns: ns(first), count }, rate, 48_000, 0);
        assert_eq!(found(-1024, 60), Some(AacCopy { early_samples: 1024, packets: 48 }));
        assert_eq!(found(-2112, 60), Some(AacCopy { early_samples: 1088, packets: 48 }), "of an encoder that primes by 2112");
        assert_eq!(found(-5000, 60), Some(AacCopy { early_samples: 1928, packets: 49 }));
        assert_eq!(found(0, 60), Some(AacCopy { early_samples: 0, packets: 47 }), "nothing before");
        assert_eq!(found(-100, 60), Some(AacCopy { early_samples: 100, packets: 47 }));
        assert_eq!(found(500, 60), None, "it begins later than the picture");
        assert_eq!(found(-1024, 40), None, "it ends sooner");
        assert_eq!(found(-1024 - 64, 48), Some(AacCopy { early_samples: 1088, packets: 48 }));
    }
}
