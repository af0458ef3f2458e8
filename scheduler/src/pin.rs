//! Whose encoders make the rungs of a plan. Pinned once for the whole job, so that what the pieces of a rung are made by does
//! not change from one to the next.

use farm::encoder::Extent;
use farm::job::{Hardware, Mp4, VideoCodec};
use farm::plan::{Plan, Rung, VideoPlan};
use farm::{Class, Code, Failure};

use crate::offers::Served;

/// Least width and height in pixels that are asked of a device. They are tried with 256x144; NVIDIA's for AV1, which takes the
/// least, takes widths from 192 on.
const PX_MIN: (u32, u32) = (192, 144);

/// The plan with a class for each rung: hardware of the class that is preferred among those that there are workers for and
/// that can do any of its rungs, and the processor for all others.
///
/// A class with much to do is left to what waits for it, unless hardware is required.
///
/// # Errors
/// Where hardware is required, and there is none for a rung: [`Code::InvalidRequest`], or [`Code::SchedulerUnavailable`] while
/// it is not known what there is.
pub fn pin(mut plan: Plan, policy: Hardware, served: &Served) -> Result<Plan, Failure> {
    if policy == Hardware::Avoid {
        return Ok(plan);
    }
    // In a file the parameter sets of all pieces stand side by side, which is made for H.264 alone.
    let h264_alone = plan.layout.has_files() || plan.mp4 != Mp4::None;
    let can = |class, rung: &Rung| can_make(served, class, rung, h264_alone);
    for video in plan.first.iter_mut().chain(plan.video.iter_mut()) {
        let is_free = |class: &Class| policy == Hardware::Require || !served.crowded.contains(class);
        let mut hardware = Class::ALL.into_iter().filter(|class| class.is_hardware()).filter(is_free);
        let class = hardware.find(|class| video.rungs.iter().any(|rung| can(*class, rung).is_some()));
        if let Some(class) = class {
            pin_rungs(video, class, policy, can);
        }
        let left = video.rungs.iter().find(|rung| rung.class.is_cpu() && !rung.is_copied());
        if let (Hardware::Require, Some(rung)) = (policy, left) {
            let message = format!("hardware: it is required, and no worker offers any that makes {}", rung.id);
            let code = if served.may_change() { Code::SchedulerUnavailable } else { Code::InvalidRequest };
            return Err(Failure::new(code, message));
        }
    }
    Ok(plan)
}

/// Pins the largest rungs that a class can make, as many as one task may have sessions; all of them where hardware is required,
/// of which tasks then make as many on it as they get sessions for.
fn pin_rungs(video: &mut VideoPlan, class: Class, policy: Hardware, can: impl Fn(Class, &Rung) -> Option<u32>) {
    let mut pinned = 0;
    for rung in &mut video.rungs {
        if can(class, rung).is_some_and(|sessions_max| policy == Hardware::Require || pinned < sessions_max) {
            rung.class = class;
            pinned += 1;
        }
    }
}

/// How many sessions one task may have where a class makes this rung; nothing where it does not.
fn can_make(served: &Served, class: Class, rung: &Rung, h264_alone: bool) -> Option<u32> {
    let offered = served.encoder(class, rung.codec)?;
    let is_large_enough = rung.width >= PX_MIN.0 && rung.height >= PX_MIN.1;
    let fits = is_large_enough && Extent::of(rung.width, rung.height).fits(offered.largest);
    let is_wanted = !rung.is_copied() && (rung.codec == VideoCodec::H264 || !h264_alone);
    (fits && is_wanted).then_some(offered.sessions_max.unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
