//! Runs the `shoal` program as a user would: by its command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::{self, Finished, Group};

/// How long a run may take when nothing else is said: a machine of two cores that others use too.
pub const RUN_LIMIT: Duration = Duration::from_secs(300);

/// The program under test: `SHOAL_BIN`, or what cargo has built, release before debug.
///
/// # Errors
/// When there is none.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SHOAL_BIN") {
        return Ok(path.into());
    }
    let target = process::target_folder()?;
    let built = ["release", "debug"].map(|profile| target.join(profile).join("shoal"));
    let found = built.iter().find(|path| path.exists());
    Ok(found.with_context(|| format!("no shoal below {}: run `make build`", target.display()))?.clone())
}

/// A command line of `shoal`, with an environment that holds nothing of the caller's settings.
///
/// # Errors
/// As [`program`].
pub fn command(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Command> {
    let mut command = Command::new(program()?);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"SHOAL_") || name.as_encoded_bytes().starts_with(b"AWS_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    Ok(command)
}

/// `shoal transcode INPUT --output OUTPUT` with more flags.
///
/// # Errors
/// As [`program`].
pub fn transcode(input: impl AsRef<OsStr>, output: &Path, flags: &[&str]) -> Result<Command> {
    let mut command = command(["transcode"])?;
    command.arg(input.as_ref()).arg("--output").arg(output).args(flags);
    Ok(command)
}

/// Runs it to its end and returns what came of it.
///
/// # Errors
/// When it cannot be started or takes longer than `limit`.
pub fn run(mut command: Command, limit: Duration) -> Result<Finished> {
    process::run(&mut command, limit)
}

/// Transcodes, which must work.
///
/// # Errors
/// The exit status and what was said, when it does not.
pub fn done(input: impl AsRef<OsStr>, output: &Path, flags: &[&str]) -> Result<Finished> {
    let shown = format!("shoal transcode {:?} {flags:?}", input.as_ref());
    run(transcode(input, output, flags)?, RUN_LIMIT)?.success().context(shown)
}

/// Starts it without waiting, its output thrown away.
///
/// # Errors
/// When it cannot be started.
pub fn start(mut command: Command) -> Result<Group> {
    Group::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

/// The error object that `--json` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The code.
    pub code: String,
    /// The line for people.
    pub message: String,
    /// The stream it concerns, if one.
    pub stream: Option<String>,
}

/// Reads the error object from stdout, which must hold nothing else.
///
/// # Errors
/// When it is not of the promised form.
pub fn told(stdout: &[u8]) -> Result<Told> {
    let value: Value = serde_json::from_slice(stdout).with_context(|| String::from_utf8_lossy(stdout).into_owned())?;
    let Value::Object(outer) = &value else { bail!("not an object: {value}") };
    ensure!(outer.len() == 1, "more than an error: {value}");
    let error = outer.get("error").and_then(Value::as_object).with_context(|| format!("no error: {value}"))?;
    let text = |key: &str| error.get(key).and_then(Value::as_str).map(str::to_owned);
    let told = Told {
        code: text("code").with_context(|| format!("no code: {value}"))?,
        message: text("message").with_context(|| format!("no message: {value}"))?,
        stream: text("stream"),
    };
    let known = ["code", "message", "stream"];
    ensure!(error.keys().all(|key| known.contains(&key.as_str())), "unknown fields: {value}");
    Ok(told)
}
