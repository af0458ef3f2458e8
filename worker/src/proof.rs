//! Proofs of encoders: each in a child of its own, walled in as a task is that has the device.

use std::time::Duration;

use farm::{Code, Failure};
use pipelines::encoders::Proof;
use pipelines::{Done, Order};
use tokio_util::sync::CancellationToken;

use crate::attempt::{Attempt, Sink};
use crate::guard::Guard;
use crate::process::{Spawner, Urgency};
use crate::source::Source;
use crate::worker::ChildCommand;

/// Longest silence of a child, which says nothing before its end: drivers hang.
const STALL: Duration = Duration::from_secs(20);
/// Longest time that a proof may take with all that comes before and after.
const LIMIT: Duration = Duration::from_secs(60);

/// Has a child prove an encoder. Dropping the future kills the child.
///
/// # Errors
/// What is wrong with it.
pub(crate) async fn prove(proof: &Proof, spawner: &Spawner, command: &ChildCommand) -> Result<(), Failure> {
    let (order, source) = (Order::Prove(proof.clone()), Source::empty());
    let attempt = Attempt {
        spawner,
        command,
        urgency: Urgency::Usual,
        stall: STALL,
        order: &order,
        source: &source,
        sink: Sink::None,
        progress: &mut |_| {},
    };
    match Guard::new(CancellationToken::new(), LIMIT).hold(attempt.run()).await? {
        (Done::Proven, _) => Ok(()),
        _ => Err(Failure::new(Code::Internal, "something else came of a proof")),
    }
}
