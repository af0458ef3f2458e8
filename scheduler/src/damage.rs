//! What a source lost: what is said of it, and when too much is gone for a result.

use std::collections::BTreeSet;

use farm::job::Damage;
use farm::media::MediaInfo;
use farm::plan::{AudioPlan, Plan};
use farm::stills::Stills;
use farm::task::{Account, TaskId};
use farm::{Code, Failure};

use crate::seal::Seal;

/// With [`Damage::BestEffort`], one in so many packets of the picture has to become a frame, one in so many samples of a source
/// without picture has to be sound.
const SHARE: u64 = 2;

/// What became of the source, by executions that count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// Frames of the picture, if there is one.
    pub frames: Option<Account>,
    /// Samples of each rendition of sound, in the plan's order.
    pub samples: Vec<Account>,
}

impl Accounts {
    /// As the executions of a seal tell.
    pub fn of(plan: &Plan, seal: &Seal) -> Self {
        let sum = |of: &dyn Fn(&TaskId) -> bool| {
            let counted = seal.executions.iter().filter(|execution| of(&execution.task));
            counted.filter_map(|execution| execution.account).fold(Account::default(), |mut sum, account| {
                sum += account;
                sum
            })
        };
        Self {
            // Each of them goes through all frames.
            frames: plan.passes().last().map(|pass| {
                let pieces: BTreeSet<TaskId> = pass.pieces().map(|(task, _)| task).collect();
                sum(&|task| pieces.contains(task))
            }),
            samples: (0..).take(plan.audio.len()).map(|index| sum(&|task| *task == TaskId::Audio(index))).collect(),
        }
    }
}

/// What a viewer of the result should know: the probe's warnings, tracks that are there and do not decode, and what came to
/// light while encoding.
pub fn warnings(info: &MediaInfo, plan: &Plan, accounts: &Accounts) -> Vec<String> {
    let mut warnings = info.warnings.clone();
    warnings.extend(broken_tracks(info));
    let Some(frames) = &accounts.frames else { return warnings };
    let lost = lost_frames(info, plan, frames);
    if lost > 0 {
        warnings.push(format!("{lost} frames of the picture do not decode: those before them are shown longer"));
    }
    if frames.missing > 0 {
        warnings.push(format!("the picture ends early: its last frame is shown for {} frames more", frames.missing));
    }
    if frames.decode_errors > 0 {
        warnings.push(format!("{} frames of the picture are damaged", frames.decode_errors));
    }
    warnings
}

/// Tracks that are left out because they are damaged, not for their kind.
fn broken_tracks(info: &MediaInfo) -> impl Iterator<Item = String> {
    let broken = info.dropped.iter().filter(|dropped| matches!(dropped.why.code, Code::Undecodable | Code::Truncated));
    broken.map(|dropped| format!("track {} ({}) is left out: {}", dropped.track.0, dropped.kind, dropped.why.message))
}

/// Frames in the middle that did not decode. Known where each packet has its own place on the grid: then no other place is
/// filled but those before the first frame and after the last.
fn lost_frames(info: &MediaInfo, plan: &Plan, frames: &Account) -> u64 {
    let Some(video) = plan.passes().last().map(|pass| pass.video).filter(|_| plan.edit.is_none()) else { return 0 };
    let track = info.video.iter().find(|track| track.track == video.track);
    let Some(timing) = track.map(|track| &track.timing).filter(|timing| timing.constant && timing.rate == video.rate) else {
        return 0;
    };
    let before = video.rate.nearest_frame(timing.start_ns.saturating_sub(plan.origin_ns));
    frames.filled.saturating_sub(frames.missing).saturating_sub(before)
}

/// Refuses what the job does not bear.
///
/// # Errors
/// [`Code::Undecodable`]: anything that would be a warning, with [`Damage::Strict`]; too little that decodes, with
/// [`Damage::BestEffort`].
pub fn judge(damage: Damage, info: &MediaInfo, plan: &Plan, accounts: &Accounts) -> Result<(), Failure> {
    match damage {
        Damage::Strict => warnings(info, plan, accounts).first().map_or(Ok(()), |warning| Err(refused(warning))),
        Damage::BestEffort => enough(info, plan, accounts),
    }
}

/// Refuses still pictures alone of which there is not one.
///
/// # Errors
/// [`Code::Undecodable`].
pub fn judge_stills(plan: &Plan, seal: &Seal) -> Result<(), Failure> {
    if plan.has_media() || seal.stills.iter().flat_map(Stills::objects).next().is_some() {
        return Ok(());
    }
    Err(Failure::new(Code::Undecodable, "none of the frames decodes that the pictures are to be made of"))
}

/// As [`judge`], of what is known before anything is encoded.
///
/// # Errors
/// As [`judge`].
pub fn judge_probe(damage: Damage, info: &MediaInfo) -> Result<(), Failure> {
    let warning = info.warnings.iter().cloned().chain(broken_tracks(info)).next().filter(|_| damage == Damage::Strict);
    warning.map_or(Ok(()), |warning| Err(refused(&warning)))
}

fn refused(warning: &str) -> Failure {
    Failure::new(Code::Undecodable, format!("{warning}: the job bears no damage"))
}

fn enough(info: &MediaInfo, plan: &Plan, accounts: &Accounts) -> Result<(), Failure> {
    if plan.edit.is_some() {
        return enough_of_clips(plan, accounts);
    }
    // Of what is published first there is no other pass.
    let used = plan.passes().last().and_then(|pass| info.video.iter().find(|track| track.track == pass.video.track));
    if let (Some(track), Some(frames)) = (used, &accounts.frames) {
        let decoded = frames.kept + frames.dropped;
        if decoded.saturating_mul(SHARE) < track.timing.frames {
            let message = format!("only {decoded} of {} frames of the picture decode", track.timing.frames);
            return Err(Failure::new(Code::Undecodable, message));
        }
        return Ok(());
    }
    let heard = plan.audio.iter().zip(&accounts.samples);
    match heard.max_by_key(|(_, account)| account.kept).filter(|(audio, account)| account.kept * SHARE < audio.samples) {
        Some((audio, account)) => {
            let message = format!("only {} of {} samples of the sound decode", account.kept, audio.samples);
            Err(Failure::new(Code::Undecodable, message))
        }
        None => Ok(()),
    }
}

/// As [`enough`], where what is not wanted of the sources was not decoded either.
fn enough_of_clips(plan: &Plan, accounts: &Accounts) -> Result<(), Failure> {
    let refused = |message: String| Err(Failure::new(Code::Undecodable, message));
    if let (Some(pass), Some(frames)) = (plan.passes().last(), &accounts.frames) {
        let (missing, places) = (frames.missing, pass.video.frames);
        return match missing.saturating_mul(SHARE) > places {
            true => refused(format!("{missing} of {places} frames are missing: the pictures of their sources end early")),
            false => Ok(()),
        };
    }
    let short = |(audio, account): &(&AudioPlan, &Account)| account.missing.saturating_mul(SHARE) > audio.samples;
    match plan.audio.iter().zip(&accounts.samples).find(short) {
        Some((audio, account)) => refused(format!("{} of {} samples of the sound are missing", account.missing, audio.samples)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
