//! The words of the farm and its two ports.
//!
//! Everything here is data ([`job`], [`media`], [`plan`], [`task`], [`life`], [`ended`], [`encoder`], [`presence`], [`edit`], [`failure`], [`keys`],
//! [`rate`], [`quality`], [`boxes`]) or a port ([`storage`], [`broker`]), and what both services show of themselves ([`metrics`], [`admin`]) and have
//! to do with strangers ([`serve`], [`outbound`]). Nothing here knows GStreamer.

pub mod admin;
pub mod boxes;
pub mod broker;
pub mod edit;
pub mod encoder;
pub mod ended;
pub mod failure;
pub mod job;
pub mod keys;
pub mod life;
pub mod media;
pub mod metrics;
pub mod outbound;
pub mod plan;
pub mod presence;
pub mod quality;
pub mod rate;
pub mod serve;
pub mod stills;
pub mod storage;
pub mod task;
pub mod text;

pub use encoder::Class;
pub use failure::{Code, Failure, Fault};
pub use life::Life;
pub use quality::Quality;
pub use rate::Rate;
