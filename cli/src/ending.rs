//! How the program ends: a line on standard error or an object on standard output, and an exit code.
#![expect(clippy::print_stderr, reason = "this is the program's edge")]

use std::process::ExitCode;

use farm::{Failure, Fault};
use serde::Serialize;

/// What `--json` prints of a failure: what it promises, and nothing that is for the farm alone.
#[derive(Serialize)]
struct Told<'a> {
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
pub fn end(ended: Result<(), Failure>, json: bool) -> ExitCode {
    let Err(failure) = ended else { return ExitCode::SUCCESS };
    if json {
        print_json(&serde_json::json!({ "error": Told::from(&failure) }));
    } else {
        eprintln!("shoal: {failure} ({})", failure.code);
    }
    ExitCode::from(match failure.code.fault() {
        Fault::Source => 1,
        Fault::Request => 2,
        Fault::Environment => 3,
        Fault::Interruption => 130,
    })
}

/// Ends the program with a command line that cannot be understood, or with the help that it asks for.
pub fn end_usage(refused: &clap::Error) -> ExitCode {
    if refused.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
        let text = refused.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        return end(Err(Failure::new(farm::Code::InvalidRequest, first)), true);
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
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Says something to people.
pub fn say(line: &str) {
    eprintln!("{line}");
}
