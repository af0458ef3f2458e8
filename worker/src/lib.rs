//! The worker: takes tasks from the broker, runs each in a child process of itself, uploads what the child makes, stores
//! the marker, publishes the event, and acknowledges last.
//!
//! ```text
//! worker (slots) → task (one delivery) → attempt (one child) ─ protocol ─ child → pipelines
//!                                           │        └ session: what the child may say
//!                                           ├ source: bytes in, on request
//!                                           └ upload: segments out, as they come
//! devices (lent to tasks, offered to the farm) → proof (one child) → attempt
//! ```
//! The parent never opens a demuxer and trusts nothing that a child says. The child has one socket and no credentials, and is
//! walled in by `sandbox`.

mod attempt;
mod awake;
mod begun;
pub mod child;
mod devices;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guard;
pub mod memory;
mod mp4;
pub mod notice;
mod pack;
mod presence;
mod process;
mod proof;
mod protocol;
mod rack;
mod retry;
mod running;
pub mod sandbox;
mod session;
mod sets;
mod source;
mod speed;
mod still_upload;
mod tally;
mod task;
mod text_upload;
mod upload;
mod work;
mod worker;

#[cfg(test)]
mod testing;

pub use devices::Devices;
pub use tally::Ends;
pub use worker::{ChildCommand, Drain, Handle, Settings, Worker, probe, prove};
