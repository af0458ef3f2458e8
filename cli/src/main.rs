//! The one binary, `shoal`: reads arguments, calls the library that does it, and turns what comes of it into lines and an
//! exit code. Results go to standard output, everything for people to standard error.

mod arguments;
mod client;
mod config;
mod doctor;
mod edit;
mod encoders;
mod ending;
mod input;
mod jobs;
mod manual;
mod output;
mod peertube;
mod probe;
mod progress;
mod services;
mod settings;
mod systemd;
mod transcode;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::arguments::{Arguments, Command, LogFormat};
use crate::ending::{Ended, end, end_usage};

fn main() -> ExitCode {
    let given: Vec<_> = std::env::args_os().collect();
    let command = match config::with_file(Arguments::command(), &given) {
        Ok(command) => command,
        Err(failure) => return end(Ended::Failed(failure), given.iter().any(|argument| argument == "--json")),
    };
    let parsed = command.try_get_matches_from(given).and_then(|matches| Arguments::from_arg_matches(&matches));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(refused) => return end_usage(&refused),
    };
    if let Command::Child(child) = &arguments.command {
        // An attempt's child: no runtime, no logs, no settings.
        return match child.prepare {
            true => end(pipelines::init().into(), false),
            false => worker::child::main(child.sandbox.sandbox.into()),
        };
    }
    worker::memory::keep_little();
    start_logging(arguments.log_format, is_service(&arguments.command));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure = farm::Failure::new(farm::Code::Internal, format!("no threads can be started: {error}"));
            return end(Ended::Failed(failure), false);
        }
    };
    let (ended, json): (Ended, bool) = match arguments.command {
        Command::Transcode(transcode) => (runtime.block_on(transcode::run(&transcode)).into(), transcode.json),
        Command::Probe(probe) => (runtime.block_on(probe::run(&probe)).into(), probe.json),
        Command::Encoders(encoders) => (runtime.block_on(encoders::run(&encoders)).into(), encoders.json),
        Command::Scheduler(scheduler) => (runtime.block_on(services::scheduler(&scheduler)).into(), scheduler.json),
        Command::Worker(worker) => (runtime.block_on(services::worker(&worker)).into(), worker.json),
        Command::Submit(submit) => (runtime.block_on(jobs::submit(&submit)).unwrap_or_else(Ended::Failed), submit.json),
        Command::Status(status) => (runtime.block_on(jobs::status(&status)).into(), status.json),
        Command::Cancel(command) => (runtime.block_on(jobs::ask(&command, "cancel")).into(), command.json),
        Command::Retry(command) => (runtime.block_on(jobs::ask(&command, "retry")).into(), command.json),
        Command::Delete(delete) => (runtime.block_on(jobs::delete(&delete)).unwrap_or_else(Ended::Failed), delete.json),
        Command::PeerTube(peertube) => (runtime.block_on(peertube::run(&peertube)).into(), peertube.json()),
        Command::Doctor(doctor) => (runtime.block_on(doctor::run(&doctor)).into(), doctor.json),
        Command::Settings => {
            settings::print();
            (Ended::Done, false)
        }
        Command::Completions(completions) => {
            manual::completions(&completions);
            (Ended::Done, false)
        }
        Command::Man(man) => (manual::man(&man).into(), false),
        Command::Child(_) => (Ended::Done, false),
    };
    // Reads of the source may hang in a thread that nobody can stop; the process ends all the same.
    runtime.shutdown_background();
    end(ended, json)
}

fn is_service(command: &Command) -> bool {
    matches!(command, Command::Scheduler(_) | Command::Worker(_))
}

/// Logs go to standard error; `SHOAL_LOG` sets what is shown, as `tracing` filters read it.
fn start_logging(format: LogFormat, is_service: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SHOAL_LOG");
    let usual = if is_service { "info" } else { "error" };
    let mut filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    // Of one an error says all there is to say; the others would write whole messages into the log, which may hold secrets.
    for silent in ["lapin::returned_messages=off", "rustls_platform_verifier=off", "tungstenite=off", "tokio_tungstenite=off"] {
        if let Ok(silent) = silent.parse() {
            filter = filter.add_directive(silent);
        }
    }
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let logs = logs.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
}
