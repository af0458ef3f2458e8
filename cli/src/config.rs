//! The settings file: what stands in it becomes the default of the flag of that name, so flags and variables go first.
//!
//! ```toml
//! storage = "s3://farm/state/"     # for every command that knows it
//! [worker]
//! drain-seconds = 300              # for `shoal worker` alone
//! ```
//!
//! `shoal settings` prints one with all that there are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::Str;
use farm::{Code, Failure};
use toml::{Table, Value};

/// The command line with the file's settings as defaults, if a file is named.
///
/// # Errors
/// When the file cannot be read, or holds what is no setting: it is named.
pub fn with_file(command: clap::Command, arguments: &[OsString]) -> Result<clap::Command, Failure> {
    let Some(path) = path(arguments) else { return Ok(command) };
    let refused = |why: &dyn std::fmt::Display| Failure::new(Code::InvalidRequest, format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|error| refused(&error))?;
    // Only what is wrong and not the line, which may hold a secret.
    let table: Table = toml::from_str(&text).map_err(|error: toml::de::Error| refused(&error.message()))?;
    apply(command, table).map_err(|why| refused(&why))
}

fn path(arguments: &[OsString]) -> Option<PathBuf> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str().map(|text| text.split_once('=').unwrap_or((text, ""))) {
            Some(("--", _)) => break,
            Some(("--config", "")) => return arguments.next().map(PathBuf::from),
            Some(("--config", path)) => return Some(Path::new(path).to_owned()),
            _ => {}
        }
    }
    std::env::var_os("SHOAL_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The command line with these settings as defaults.
///
/// # Errors
/// What is no setting, by its name.
pub fn apply(mut command: clap::Command, table: Table) -> Result<clap::Command, String> {
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for (key, value) in table {
        if let Value::Table(settings) = value {
            if !names.contains(&key) {
                return Err(format!("[{key}] is no command"));
            }
            for (name, value) in settings {
                let (id, text) = setting(&name, &value)?;
                if !has(&command, &key, &id) {
                    return Err(format!("'{name}' is no setting of {key}"));
                }
                command = with_default(command, &key, id, text);
            }
            continue;
        }
        let (id, text) = setting(&key, &value)?;
        let knowing: Vec<&String> = names.iter().filter(|name| has(&command, name, &id)).collect();
        if knowing.is_empty() {
            return Err(format!("'{key}' is no setting"));
        }
        for name in knowing {
            command = with_default(command, name, id.clone(), text.clone());
        }
    }
    Ok(command)
}

/// The name of the argument, and its value as on the command line.
fn setting(name: &str, value: &Value) -> Result<(String, String), String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(is_set) => is_set.to_string(),
        _ => return Err(format!("'{name}' is neither a text, nor a whole number, nor true or false")),
    };
    Ok((name.replace('-', "_"), text))
}

fn has(command: &clap::Command, name: &str, id: &str) -> bool {
    let sub = command.get_subcommands().find(|sub| sub.get_name() == name);
    sub.is_some_and(|sub| sub.get_arguments().any(|argument| argument.get_id() == id && argument.get_long().is_some()))
}

fn with_default(command: clap::Command, name: &str, id: String, text: String) -> clap::Command {
    command.mut_subcommand(name, |sub| {
        sub.mut_arg(Str::from(id), |argument| {
            // It may be a secret, and is not for the help text.
            let is_shown = !argument.get_action().takes_values();
            argument.required(false).hide_default_value(!is_shown).default_value(clap::builder::OsStr::from(text))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command};
    use clap::{CommandFactory as _, FromArgMatches as _};

    fn parse(file: &str, line: &[&str]) -> Result<Arguments, String> {
        let table: Table = toml::from_str(file).expect("TOML");
        let command = apply(Arguments::command(), table)?;
        let matches = command.try_get_matches_from(line).map_err(|error| error.to_string())?;
        Arguments::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_what_is_usual() {
        let file = "storage = 'file:///state/'\nslots = 3\n[worker]\ndrain-seconds = 7\n[scheduler]\nallow_file_urls = true";
        let Ok(Arguments { command: Command::Worker(worker), .. }) = parse(file, &["shoal", "worker", "--slots", "5"]) else {
            panic!("a worker")
        };
        assert_eq!((worker.slots, worker.drain_seconds, worker.stall_seconds), (Some(5), 7, 60));
        assert_eq!(worker.connection.storage.map(String::from).as_deref(), Some("file:///state/"));
        let Ok(Arguments { command: Command::Scheduler(scheduler), .. }) = parse(file, &["shoal", "scheduler"]) else {
            panic!("a scheduler")
        };
        assert!(scheduler.allow_file_urls && scheduler.slots == 3);
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        for (file, said) in [
            ("storrage = 'x'", "'storrage' is no setting"),
            ("[workers]\nslots = 1", "[workers] is no command"),
            ("[worker]\nlisten = 'x'", "'listen' is no setting of worker"),
            ("[worker]\nslots = [1]", "'slots' is neither"),
            ("[worker]\nslots = 0", "0 is not in 1..=256"),
        ] {
            let refused = parse(file, &["shoal", "worker"]).err().unwrap_or_default();
            assert!(refused.contains(said), "{said}: {refused}");
        }
    }
}
