//! Takes jobs, decides, hands out tasks, and publishes what workers made.
//!
//! Everything is decided by pure functions of what storage says; only [`scheduler`] acts.
//!
//! ```text
//! spec ──▶ probe ──▶ plan ──▶ tasks ──▶ markers ──▶ seal ──▶ playlists, report ──▶ result
//!          step says what is next; dispatch says whose turn it is; the scheduler does it
//! ```

pub mod admit;
pub mod api;
pub mod copy;
pub mod damage;
pub mod dispatch;
pub mod edit;
pub mod intake;
pub mod janitor;
pub mod ladder;
pub mod names;
pub mod notify;
pub mod offers;
pub mod pace;
pub mod peertube;
pub mod pin;
pub mod plan;
pub mod playlist;
pub mod published;
pub mod report;
pub mod scheduler;
pub mod seal;
pub mod service;
pub mod status;
pub mod step;
pub mod stills;
pub mod tenants;
pub mod text;
pub mod tracer;
pub mod traces;
pub mod wanted;
pub mod workers;

pub use scheduler::{Handle, JobView, Phase, Scheduler, Settings, cancel, submit};
pub use step::{JobResult, Summary};

#[cfg(test)]
mod testing;
