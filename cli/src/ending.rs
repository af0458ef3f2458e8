//! How the program ends: a line on standard error or an object on standard output, and an exit code.
#![expect(clippy::print_stderr, reason = "this is the program's edge")]

use std::io::Write as _;
use std::process::ExitCode;

use farm::{Failure, Fault};
use serde::Serialize;

/// What came of a command.
pub enum Ended {
    /// What was asked for.
    Done,
    /// Nothing, and why is still to be told.
    Failed(Failure),
    /// Not all, and why was told with each thing that was asked for: whose fault it was.
    Told(Fault),
}

impl From<Result<(), Failure>> for Ended {
    fn from(ended: Result<(), Failure>) -> Self {
        match ended {
            Ok(()) => Self::Done,
            Err(failure) => Self::Failed(failure),
        }
    }
}

impl Ended {
    /// What came of many things, by the faults of those that failed: the worst of them.
    pub fn of_many(faults: impl IntoIterator<Item = Fault>) -> Self {
        faults.into_iter().max_by_key(|fault| exit_number(*fault)).map_or(Self::Done, Self::Told)
    }
}

/// The exit code that says whose fault it was.
fn exit_number(fault: Fault) -> u8 {
    match fault {
        Fault::Source => 1,
        Fault::Request => 2,
        Fault::Environment => 3,
        Fault::Interruption => 130,
    }
}

/// What `--json` prints of a failure: what it promises, and nothing that is for the farm alone.
#[derive(Serialize)]
pub struct Told<'a> {
    code: farm::Code,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'a str>,
}

impl<'a> From<&'a Failure> for Told<'a> {
    fn from(failure: &'a Failure) -> Self {
        Self { code: failure.code, message: &failure.message, stream: failure.stream.as_deref() }
    }
}

/// Ends the program with what came of it.
pub fn end(ended: Ended, json: bool) -> ExitCode {
    let failure = match ended {
        Ended::Done => return ExitCode::SUCCESS,
        Ended::Told(fault) => return ExitCode::from(exit_number(fault)),
        Ended::Failed(failure) => failure,
    };
    if json {
        print_json(&serde_json::json!({ "error": Told::from(&failure) }));
    } else {
        say_failure(None, &failure);
    }
    ExitCode::from(exit_number(failure.code.fault()))
}

/// Says to people why something is not done; `of` which thing, where there are many.
pub fn say_failure(of: Option<&str>, failure: &Failure) {
    let of = of.map(|of| format!("{of}: ")).unwrap_or_default();
    eprintln!("shoal: {of}{failure} ({})", failure.code);
}

/// Ends the program with a command line that cannot be understood, or with the help that it asks for.
pub fn end_usage(refused: &clap::Error) -> ExitCode {
    if refused.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
        let text = refused.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        return end(Ended::Failed(Failure::new(farm::Code::InvalidRequest, first)), true);
    }
    // A terminal that has gone away is no error.
    let _ = refused.print();
    if refused.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

/// Prints one JSON object.
pub fn print_json(object: &impl Serialize) {
    // These types hold no map with keys that are not texts, which alone could fail.
    let text = serde_json::to_string(object).unwrap_or_default();
    print_line(&text);
}

/// Prints a line of a result. A reader that has gone away is no error.
pub fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a text that has lines of its own, as above.
pub fn print_text(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Says something to people.
pub fn say(line: &str) {
    eprintln!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_end_as_the_worst_of_them() {
        for (faults, number) in [
            (&[Fault::Source, Fault::Environment, Fault::Request][..], Some(3)),
            (&[Fault::Interruption, Fault::Environment], Some(130)),
            (&[Fault::Source, Fault::Source], Some(1)),
            (&[], None),
        ] {
            let number_of = |ended| match ended {
                Ended::Told(fault) => Some(exit_number(fault)),
                Ended::Done | Ended::Failed(_) => None,
            };
            assert_eq!(number_of(Ended::of_many(faults.iter().copied())), number, "{faults:?}");
        }
    }
}
