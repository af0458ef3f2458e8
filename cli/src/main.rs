//! The one binary, `shoal`: reads arguments, calls the library that does it, and turns what comes of it into lines and an
//! exit code. Results go to standard output, everything for people to standard error.

mod arguments;
mod encoders;
mod ending;
mod input;
mod probe;
mod progress;
mod transcode;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};
use crate::ending::{end, end_usage};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(refused) => return end_usage(&refused),
    };
    if let Command::Child = arguments.command {
        // An attempt's child: no runtime, no logs, no settings.
        return worker::child::main();
    }
    start_logging();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return end(Err(farm::Failure::new(farm::Code::Internal, format!("no threads can be started: {error}"))), false);
        }
    };
    let (ended, json) = match arguments.command {
        Command::Transcode(transcode) => (runtime.block_on(transcode::run(&transcode)), transcode.json),
        Command::Probe(probe) => (runtime.block_on(probe::run(&probe)), probe.json),
        Command::Encoders(encoders) => (encoders::run(&encoders), encoders.json),
        Command::Child => (Ok(()), false),
    };
    // Reads of the source may hang in a thread that nobody can stop; the process ends all the same.
    runtime.shutdown_background();
    end(ended, json)
}

/// Logs go to standard error; `SHOAL_LOG` sets what is shown, as `tracing` filters read it.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SHOAL_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
