//! The test harness: makes media, runs `shoal` as a user would, and reads what comes out with readers that share no code
//! with it. The suites are in `tests/`.

pub mod barcode;
pub mod check;
pub mod clip;
pub mod collector;
pub mod contract;
pub mod corpus;
pub mod cost;
pub mod crash;
pub mod deploy;
pub mod farm;
pub mod hls;
pub mod http;
pub mod mp4;
pub mod mutate;
pub mod peertube;
pub mod player;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod rabbit;
pub mod raw;
pub mod reader;
pub mod rules;
pub mod s3;
pub mod server;
pub mod service;
pub mod shoal;
pub mod stills;
pub mod sync;
pub mod text;
pub mod visitor;
