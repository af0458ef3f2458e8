//! `shoal encoders`: every encoder looked for, and whether it passed a real encode.

use farm::Failure;

use crate::arguments::Encoders;
use crate::ending::{print_json, print_line};

/// Runs the command.
///
/// # Errors
/// When GStreamer does not start.
pub fn run(encoders: &Encoders) -> Result<(), Failure> {
    let found = pipelines::encoders::encoders()?;
    if encoders.json {
        print_json(&found);
        return Ok(());
    }
    for encoder in &found.encoders {
        let verdict = match (&encoder.failure, encoder.chosen) {
            (None, true) => "works, is used".to_owned(),
            (None, false) => "works".to_owned(),
            (Some(failure), _) => failure.to_string(),
        };
        print_line(&format!("{:5} {:12} {verdict}", encoder.codec, encoder.element));
    }
    Ok(())
}
