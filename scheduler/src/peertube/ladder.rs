//! Which rungs are made of a video: what is asked for, and what the instance is going to ask for next.

use farm::job::{Copying, JobSpec, LadderSpec, Layout, Make, Mp4, RUNGS_MAX, RungSpec, StoryboardSpec, VideoCodec, VideoSpec};
use farm::{Quality, Rate};
use serde::{Deserialize, Serialize};
use url::Url;

use super::order::{Sheet, Size};
use super::settings::Policy;
use crate::ladder::OWN_HEIGHT;

/// Short edge in pixels below which PeerTube asks for fewer frames per second.
const SMALL_BELOW: u32 = 720;
/// Frame rates that it asks for there, and above which a source has too many.
const SMALL_FPS: [u32; 3] = [24, 25, 30];
const SMALL_FPS_MAX: u32 = 30;
/// The same of larger ones, where the instance has not set its `transcoding.fps.max` otherwise.
const LARGE_FPS: [u32; 2] = [50, 60];
const FPS_MAX: u32 = 60;

/// A rung that is made, as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asked {
    /// Short edge in pixels.
    pub(super) short: u32,
    /// Frames per second; 0 when nobody said.
    pub(super) fps: u32,
}

/// The frame rate that PeerTube asks for on a smaller rung of a source that has `fps` at its own size: the largest of a few
/// that divides it, or else the one that leaves the smallest rest.
fn fps_of(short: u32, fps: u32) -> u32 {
    let usual: &[u32] = match short {
        _ if short < SMALL_BELOW && fps > SMALL_FPS_MAX => &SMALL_FPS,
        _ if fps > FPS_MAX => &LARGE_FPS,
        _ => return fps,
    };
    let dividing = usual.iter().rev().find(|usual| fps.is_multiple_of(**usual));
    dividing.or_else(|| usual.iter().min_by_key(|usual| fps % **usual)).copied().unwrap_or(fps)
}

/// The rungs to make for a first order: the one asked for (none for sound alone), and with `ahead` every smaller one among
/// those that the instance makes of its videos, from the largest on.
pub(super) fn rungs(asked: Option<Size>, ahead: &[u32]) -> Vec<Asked> {
    match asked {
        Some(Size { short, fps }) => {
            let smaller = ahead.iter().filter(|other| (1..short).contains(*other));
            let smaller = smaller.map(|other| Asked { short: *other, fps: fps_of(*other, fps) });
            in_order([Asked { short, fps }].into_iter().chain(smaller).collect())
        }
        // Of a video of which nothing else is known to be wanted: a picture has to be made with it.
        None if ahead.iter().all(|other| *other == 0) => vec![Asked { short: SMALLEST, fps: 0 }],
        None => rungs_unsized(ahead),
    }
}

fn in_order(mut rungs: Vec<Asked>) -> Vec<Asked> {
    rungs.sort_by_key(|rung| std::cmp::Reverse(rung.short));
    rungs.dedup_by_key(|rung| rung.short);
    rungs.truncate(RUNGS_MAX);
    rungs
}

/// Quality of rungs that are smaller than the source, where nobody asked for one. The pictures are sharper than those of
/// PeerTube's own runner, whose scaling is bicubic: at its quality they would take 5 % more bits (README has figures).
const SCALED: Quality = Quality::of_tenths(235);

/// Short edge of a rung that nobody asked for, in pixels.
const SMALLEST: u32 = 144;

/// The rung of a film's own size and rate, whatever they are.
pub(super) const OWN: Asked = Asked { short: OWN_HEIGHT, fps: FPS_MAX };

/// The rungs to make of a film of which nobody says how large it is: its own, and with `ahead` those that the instance makes of
/// its videos; what of these is larger than the film is not made.
pub(super) fn rungs_unsized(ahead: &[u32]) -> Vec<Asked> {
    let smaller = ahead.iter().filter(|short| (1..OWN.short).contains(*short));
    in_order([OWN].into_iter().chain(smaller.map(|short| Asked { short: *short, fps: 0 })).collect())
}

/// Rungs that were made of such a film, as the instance is going to ask for them.
pub(super) fn rungs_sized(made: &[Size]) -> Vec<Asked> {
    let largest = made.iter().max_by_key(|size| size.short).copied();
    rungs(largest, &made.iter().map(|size| size.short).collect::<Vec<_>>())
}

/// The job that makes a sheet of small pictures, and nothing else.
pub(super) fn sheet(source: Url, output: Url, sheet: &Sheet, policy: &Policy) -> JobSpec {
    let mut spec = own(source, output, policy);
    spec.make = Make::Stills;
    spec.storyboard = Some(StoryboardSpec {
        columns: sheet.columns,
        rows: sheet.rows,
        height: sheet.height,
        seconds: Some(sheet.seconds),
        exact_width: Some(sheet.width),
    });
    spec
}

/// A job for an instance.
fn own(source: Url, output: Url, policy: &Policy) -> JobSpec {
    let mut spec = JobSpec::new(source, output);
    spec.tenant.clone_from(&policy.tenant);
    spec.priority = policy.priority;
    spec
}

/// The highest frame rate to make where `fps` is asked for; none where nobody said.
///
/// The farm makes whole fractions of the source's rate, and PeerTube's own runner any rate. An instance may ask for one that is
/// none of these: of a source of which it does not know the rate, for 25 of 30. What is asked for is no limit there, and half
/// as many frames are further from it than all of them. Allowed seven fifths of it and the farm's own 1 %, which is the square
/// root of two, the rate that is made is never further from it than by that factor, unless the source's own is.
///
/// From 50 on it may be what the instance makes at most (`transcoding.fps.max`), which is a limit.
fn highest(fps: u32) -> Option<Rate> {
    match LARGE_FPS.iter().any(|large| fps >= *large) {
        true => Rate::new(fps.min(Rate::MAX), 1),
        false => Rate::new(fps.saturating_mul(7), 5),
    }
}

/// The job that makes these rungs in every form an instance asks for.
pub(super) fn job(source: Url, output: Url, rungs: &[Asked], policy: &Policy) -> JobSpec {
    let mut spec = own(source, output, policy);
    let largest = rungs.iter().map(|asked| asked.short).max();
    let rung = |asked: &Asked| {
        let scaled = (Some(asked.short) < largest).then_some(SCALED);
        let quality = policy.quality.or(scaled);
        let video = quality.map(|_| VideoSpec { codec: VideoCodec::H264, quality, bitrate: None, max_bitrate: None });
        // The server asks for what a picture has, be it odd or tiny.
        RungSpec { height: asked.short.clamp(16, OWN_HEIGHT), fps: highest(asked.fps), video }
    };
    spec.ladder = LadderSpec::Rungs(rungs.iter().map(rung).collect());
    spec.output.layout = Layout::SingleFile;
    spec.output.mp4 = Mp4::EachRungAndSound;
    // The instance asks for the largest first, and for all others once it has that.
    if rungs.len() > 1 {
        spec.publish = policy.publish;
    }
    spec.copy = if policy.copy { Copying::WhenFits } else { Copying::Never };
    spec.audio.loudness = policy.loudness;
    spec
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use farm::job::{Loudness, Publishing};

    use super::*;
    use crate::testing::{picture, rate};

    #[test]
    fn the_frame_rate_that_is_made_is_a_whole_fraction_near_the_one_that_is_asked_for() {
        let (tenant, jobs, loudness, publish) = (String::new(), BTreeSet::new(), Loudness::default(), Publishing::AtEnd);
        let (priority, jobs_max, quality, copy, ahead, keep, keep_bytes) = (0, 1, None, true, true, Duration::ZERO, 0);
        let policy = Policy { tenant, priority, jobs, jobs_max, quality, copy, loudness, ahead, publish, keep, keep_bytes };
        let url = |text: &str| text.parse::<Url>().expect("a URL");
        let made = |source: &str, short, fps| {
            let spec = job(url("file:///source"), url("file:///out/"), &[Asked { short, fps }], &policy);
            let track = picture(1920, 1080, source, 10);
            let shape = crate::ladder::Shape::of(&track).expect("a shape");
            crate::ladder::ladder(&spec.ladder, shape, track.timing.rate, 0, &mut Vec::new()).expect("a ladder").rate
        };
        for (source, short, fps, expected) in [
            ("30", 360, 30, "30"),
            ("30", 360, 25, "30"),
            ("24", 360, 25, "24"),
            ("40", 360, 30, "40"),
            ("45", 360, 30, "45/2"),
            ("48", 360, 24, "24"),
            ("50", 360, 25, "25"),
            ("50", 360, 30, "25"),
            ("60", 360, 30, "30"),
            ("60", 360, 25, "30"),
            ("60000/1001", 360, 30, "30000/1001"),
            ("60", 1080, 60, "60"),
            ("60", 1080, 50, "30"),
            ("120", 1080, 60, "60"),
            ("120", 360, 30, "30"),
            // Of a clock that was taken for a rate.
            ("60", 360, 1000, "60"),
            ("60", 360, u32::MAX, "60"),
            // Nobody said.
            ("60", 360, 0, "30"),
            ("60", 720, 0, "60"),
        ] {
            assert_eq!(made(source, short, fps), rate(expected), "{fps} of {source} at {short}");
        }
    }

    fn asked(rungs: &[(u32, u32)]) -> Vec<Asked> {
        rungs.iter().map(|&(short, fps)| Asked { short, fps }).collect()
    }

    #[test]
    fn smaller_rungs_are_made_at_the_rates_that_will_be_asked_for() {
        let enabled = [0, 144, 240, 360, 480, 720, 1080];
        let of = |short, fps| rungs(Some(Size { short, fps }), &enabled);
        assert_eq!(of(720, 25), asked(&[(720, 25), (480, 25), (360, 25), (240, 25), (144, 25)]));
        assert_eq!(of(1080, 60)[..3], asked(&[(1080, 60), (720, 60), (480, 30)]));
        assert_eq!(of(1080, 120)[..3], asked(&[(1080, 120), (720, 60), (480, 30)]));
        assert_eq!(of(718, 50)[..2], asked(&[(718, 50), (480, 25)]), "the source's own, be it small, keeps its rate");
        assert_eq!(of(720, 48)[1..2], asked(&[(480, 24)]));
        assert_eq!(of(720, 40)[1..2], asked(&[(480, 30)]), "none divides it: the smallest rest");
        assert_eq!(rungs(Some(Size { short: 720, fps: 25 }), &[]), asked(&[(720, 25)]), "nothing ahead");
        assert_eq!(rungs(None, &enabled), rungs_unsized(&enabled), "sound alone comes first where it stands apart");
        assert_eq!(rungs(None, &[0]), asked(&[(144, 0)]));
    }

    #[test]
    fn rungs_of_a_film_of_unknown_size_are_its_own_and_those_that_will_be_asked_for() {
        assert_eq!(rungs_unsized(&[0, 240, 1080]), asked(&[(4320, 60), (1080, 0), (240, 0)]));
        assert_eq!(rungs_unsized(&[]), [OWN]);
        let made = [(720, 50), (480, 25), (240, 25)].map(|(short, fps)| Size { short, fps });
        assert_eq!(rungs_sized(&made), rungs(Some(Size { short: 720, fps: 50 }), &[0, 240, 480]), "as it asks after an upload");
    }
}
