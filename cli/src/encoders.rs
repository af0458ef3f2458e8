//! `shoal encoders`: every encoder that is looked for, and whether it passed a real encode.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use farm::{Code, Failure};
use pipelines::encoders::{CANDIDATES, Candidate, Family};
use serde::Serialize;
use tokio::process::Command;

use crate::arguments::Encoders;
use crate::ending::{print_json, print_line};

/// Longest time that a proof may take: drivers hang.
const PROOF_MAX: Duration = Duration::from_secs(20);

/// An encoder that was looked for.
#[derive(Serialize)]
pub struct Found {
    /// Which it is.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// The device that it runs on.
    pub device: Option<PathBuf>,
    /// Why it is not usable, if it is not.
    pub failure: Option<Failure>,
    /// Whether it is the one that is used for its codec.
    pub chosen: bool,
}

/// Runs the command.
///
/// # Errors
/// None; what does not work is what is asked for.
pub async fn run(encoders: &Encoders) -> Result<(), Failure> {
    let found = look().await;
    if encoders.json {
        #[derive(Serialize)]
        struct Answer {
            encoders: Vec<Found>,
        }
        print_json(&Answer { encoders: found });
        return Ok(());
    }
    for found in found.chunk_by(is_told_with) {
        let Some(first) = found.first() else { continue };
        let codecs: Vec<_> = found.iter().map(|found| found.candidate.codec).collect();
        let name = match first.candidate.family {
            Family::Software => first.candidate.element,
            Family::Nvenc => "nvenc",
            Family::VaApi => "va-api",
            Family::QuickSync => "quick-sync",
            Family::V4l2 => "v4l2",
        };
        print_line(&format!("{:14} {name:10} {}", codecs.join(" "), first.verdict()));
    }
    Ok(())
}

/// Whether both stand on one line: of one kind of hardware, and with the same to say.
fn is_told_with(one: &Found, other: &Found) -> bool {
    let family = one.candidate.family;
    family != Family::Software && family == other.candidate.family && one.verdict() == other.verdict()
}

impl Found {
    fn verdict(&self) -> String {
        match (&self.failure, self.chosen, &self.device) {
            (None, true, _) => "works, is used".to_owned(),
            (None, false, Some(device)) => format!("works on {}; hardware is not used yet", device.display()),
            (None, false, None) => "works".to_owned(),
            (Some(failure), _, _) => failure.message.clone(),
        }
    }
}

/// Looks for every encoder, and has each that may be there prove itself.
pub async fn look() -> Vec<Found> {
    let mut all = Vec::new();
    for candidate in CANDIDATES {
        let (device, failure) = match candidate.device() {
            Ok(device) => (device, prove(candidate).await.err()),
            Err(failure) => (None, Some(failure)),
        };
        let chosen = failure.is_none() && candidate.is_used();
        all.push(Found { candidate, device, failure, chosen });
    }
    all
}

/// Has a process of its own prove an encoder.
async fn prove(candidate: Candidate) -> Result<(), Failure> {
    let name = candidate.element;
    let failed = |why: String| Failure::new(Code::EncoderFailed, format!("{name} fails a test encode: {why}"));
    let mut child = Command::new("/proc/self/exe");
    child.args(["child", "--prove", name]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PROOF_MAX, child.output()).await;
    let output = output.map_err(|_| failed(format!("it hangs for {} s", PROOF_MAX.as_secs())))?;
    let output = output.map_err(|error| failed(error.to_string()))?;
    // A driver may have said something before.
    let last = output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    match serde_json::from_slice(last) {
        Ok(None) => Ok(()),
        Ok(Some(failure)) => Err(failure),
        Err(_) => Err(failed(format!("its process ended with {}", output.status))),
    }
}

/// What that process does: prints what is wrong, or `null`.
pub fn prove_here(element: &str) -> Result<(), Failure> {
    let unknown = || Failure::new(Code::InvalidRequest, format!("'{element}' is not looked for"));
    let proven = Candidate::of(element).ok_or_else(unknown)?.prove();
    print_json(&proven.err());
    Ok(())
}
