//! `shoal status --watch`: the jobs that have not ended, and how they go on.

use std::collections::BTreeSet;

use farm::job::JobId;
use farm::{Failure, Fault};
use scheduler::status::JobStatus;
use tokio::time::sleep;

use super::{LOOK, TROUBLES_MAX, interrupts, look, word};
use crate::client::{Client, Part};
use crate::ending::print_line;
use crate::progress::Board;

/// Most jobs that are looked at in a round, beside those that are there no more. More than have room are: those that wait give
/// way to others.
const LOOKS_MAX: usize = 64;

/// How the jobs stand.
struct Table {
    /// Those that have not ended, as far as they are listed.
    active: BTreeSet<JobId>,
    /// Whether there are more.
    is_part: bool,
    /// How the first of them stand.
    jobs: Vec<JobStatus>,
    /// Those that were there before and have ended since.
    ended: Vec<JobStatus>,
}

/// Shows them until Ctrl-C, and a line of each that ends.
///
/// # Errors
/// When the farm does not tell.
pub async fn run(client: &Client, limit: u16) -> Result<(), Failure> {
    let mut interrupt = interrupts()?;
    let mut board = Board::start();
    let (mut troubles, mut known) = (0, BTreeSet::new());
    let ended = loop {
        let seen = tokio::select! {
            seen = table(client, limit, &known) => seen,
            _ = interrupt.recv() => break Ok(()),
        };
        match seen {
            Ok(table) => {
                troubles = 0;
                board.above(|| table.ended.iter().for_each(|job| print_line(&format!("{:10} {}", word(job.state), job.id))));
                board.show(&table.jobs, line(&table));
                known = table.active;
            }
            Err(failure) if failure.code.fault() == Fault::Environment && troubles < TROUBLES_MAX => troubles += 1,
            Err(failure) => break Err(failure),
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            _ = interrupt.recv() => break Ok(()),
        }
    };
    board.clear();
    ended
}

/// Asks how they stand; `known` are those of the last time.
async fn table(client: &Client, limit: u16, known: &BTreeSet<JobId>) -> Result<Table, Failure> {
    let page = client.list(Part::Active, limit, None).await?;
    let is_part = page.next.is_some();
    let listed: Vec<JobId> = page.jobs.into_iter().map(|job| job.id).collect();
    let active: BTreeSet<JobId> = listed.iter().cloned().collect();
    let gone = known.difference(&active).cloned();
    let wanted: Vec<((), JobId)> = listed.into_iter().take(LOOKS_MAX).chain(gone).map(|id| ((), id)).collect();
    let (mut jobs, mut ended) = (Vec::new(), Vec::new());
    for (_, seen) in look(client, wanted).await {
        match seen {
            Ok(job) if !job.state.has_ended() => jobs.push(job),
            // What is still listed is told when it is not.
            Ok(job) if !active.contains(&job.id) => ended.push(job),
            Ok(_) => {}
            Err(failure) if failure.code.fault() == Fault::Environment => return Err(failure),
            // It was taken away meanwhile.
            Err(_) => {}
        }
    }
    Ok(Table { active, is_part, jobs, ended })
}

fn line(table: &Table) -> String {
    let more = if table.is_part { " or more" } else { "" };
    format!("jobs that have not ended: {}{more}; Ctrl-C ends this", table.active.len())
}
