//! The words of the farm and its two ports.
//!
//! Everything here is data ([`job`], [`media`], [`plan`], [`task`], [`failure`], [`keys`], [`rate`]) or a port
//! ([`storage`], [`broker`]). Nothing here knows GStreamer.

pub mod broker;
pub mod failure;
pub mod job;
pub mod keys;
pub mod media;
pub mod plan;
pub mod rate;
pub mod storage;
pub mod task;

pub use failure::{Code, Failure, Fault};
pub use rate::Rate;
