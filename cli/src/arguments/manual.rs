//! The arguments of commands that print what the command line is.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// `shoal completions`.
#[derive(Args)]
pub struct Completions {
    /// The shell.
    pub shell: Shell,
}

/// `shoal man`.
#[derive(Args)]
pub struct Man {
    /// Write a page for each command to this folder, made when it is not there, instead of one page for all.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}
