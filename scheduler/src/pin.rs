//! Whose encoders make the rungs of a plan. Pinned once for the whole job, so that what the pieces of a rung are made by does
//! not change from one to the next.

use farm::job::{Hardware, Mp4, VideoCodec};
use farm::plan::{Plan, Rung, VideoPlan};
use farm::{Class, Code, Failure};

use crate::offers::Served;

/// Sides in pixels of the smallest picture that devices are tried with, lying. None that is smaller in either is asked of one.
const TRIED_PX: (u32, u32) = (256, 144);

/// The plan with a class for each rung: hardware of the class that is preferred among those that there are workers for and
/// that can do any of its rungs, and the processor for all others.
///
/// # Errors
/// [`Code::InvalidRequest`] where hardware is required, and there is none for a rung.
pub fn pin(mut plan: Plan, policy: Hardware, served: &Served) -> Result<Plan, Failure> {
    if policy == Hardware::Avoid {
        return Ok(plan);
    }
    // In a file the parameter sets of all pieces stand side by side, which is made for H.264 alone.
    let h264_alone = plan.layout.has_files() || plan.mp4 != Mp4::None;
    let can = |class, rung: &Rung| can_make(served, class, rung, h264_alone);
    for video in plan.first.iter_mut().chain(plan.video.iter_mut()) {
        let hardware = Class::ALL.into_iter().filter(|class| class.is_hardware());
        let class = hardware.clone().find(|class| video.rungs.iter().any(|rung| can(*class, rung).is_some()));
        if let Some(class) = class {
            pin_rungs(video, class, can);
        }
        let left = video.rungs.iter().find(|rung| rung.class.is_cpu() && !rung.is_copied());
        if let (Hardware::Require, Some(rung)) = (policy, left) {
            let message = format!("hardware: it is required, and no worker offers any that makes {}", rung.id);
            return Err(Failure::new(Code::InvalidRequest, message));
        }
    }
    Ok(plan)
}

/// Pins the largest rungs that a class can make, as many as one task may have sessions.
fn pin_rungs(video: &mut VideoPlan, class: Class, can: impl Fn(Class, &Rung) -> Option<u32>) {
    let mut pinned = 0;
    for rung in &mut video.rungs {
        if can(class, rung).is_some_and(|sessions_max| pinned < sessions_max) {
            rung.class = class;
            pinned += 1;
        }
    }
}

/// How many sessions one task may have where a class makes this rung; nothing where it does not.
fn can_make(served: &Served, class: Class, rung: &Rung, h264_alone: bool) -> Option<u32> {
    let offered = served.encoder(class, rung.codec)?;
    let fits =
        rung.width >= TRIED_PX.0 && rung.height >= TRIED_PX.1 && rung.width.saturating_mul(rung.height) <= offered.pixels_max;
    let is_wanted = !rung.is_copied() && (rung.codec == VideoCodec::H264 || !h264_alone);
    (fits && is_wanted).then_some(offered.sessions_max.unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
