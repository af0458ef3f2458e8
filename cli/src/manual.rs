//! `shoal completions` and `shoal man`: what the command line is, for shells and for man(1). What is hidden of it is in neither.

use std::io::{self, Write as _};

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use farm::{Code, Failure};

use crate::arguments::{self, Arguments, Completions};
use crate::ending::print_text;

/// Prints what a shell needs to complete command lines.
pub fn completions(asked: &Completions) {
    print_text(&completions_for(asked.shell));
}

/// Prints the page of all commands, or writes one of each.
///
/// # Errors
/// When the pages cannot be written.
pub fn man(asked: &arguments::Man) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new(Code::StorageUnwritable, format!("manual pages: {error}"));
    match &asked.dir {
        None => print_text(&page().map_err(failed)?),
        Some(folder) => {
            std::fs::create_dir_all(folder).map_err(failed)?;
            clap_mangen::generate_to(shown(&Arguments::command()), folder).map_err(failed)?;
        }
    }
    Ok(())
}

/// A command line without what is hidden of it. It is only looked at: what arguments want of each other is left out.
pub fn shown(command: &Command) -> Command {
    let mut kept = Command::new(command.get_name().to_owned())
        .disable_help_subcommand(true)
        .subcommand_required(command.is_subcommand_required_set())
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|part| !part.is_hide_set()).map(shown));
    if let Some(about) = command.get_about() {
        kept = kept.about(about.clone());
    }
    if let Some(about) = command.get_long_about() {
        kept = kept.long_about(about.clone());
    }
    if let Some(version) = command.get_version() {
        kept = kept.version(version.to_owned());
    }
    kept
}

fn completions_for(shell: clap_complete::Shell) -> String {
    let mut text: Vec<u8> = Vec::new();
    clap_complete::generate(shell, &mut shown(&Arguments::command()), "shoal", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// One page for all: the program, and then each command as a section.
fn page() -> io::Result<String> {
    let mut command = shown(&Arguments::command());
    command.build();
    let mut text: Vec<u8> = Vec::new();
    let page = Man::new(command.clone());
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    for part in command.get_subcommands() {
        section(part, &mut text)?;
    }
    page.render_version_section(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A command as a section, and those below it as sections behind it. What are sections of a page of its own are parts of one here.
fn section(command: &Command, text: &mut Vec<u8>) -> io::Result<()> {
    let mut parts: Vec<u8> = Vec::new();
    let page = Man::new(command.clone());
    page.render_description_section(&mut parts)?;
    page.render_synopsis_section(&mut parts)?;
    page.render_options_section(&mut parts)?;
    writeln!(text, ".SH \"{}\"", command.get_bin_name().unwrap_or_else(|| command.get_name()))?;
    for line in String::from_utf8_lossy(&parts).lines() {
        match line.strip_prefix(".SH ") {
            Some(title) => writeln!(text, ".SS {title}")?,
            None => writeln!(text, "{line}")?,
        }
    }
    command.get_subcommands().try_for_each(|part| section(part, text))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;
    use clap_complete::Shell;

    use super::*;

    /// A flag of a command that is hidden, and a flag that is.
    const HIDDEN: [&str; 2] = ["prepare", "spot-endpoint"];

    #[test]
    fn every_shell_is_told_of_what_is_not_hidden() {
        for shell in Shell::value_variants() {
            let text = completions_for(*shell);
            for named in ["transcode", "unregister", "drain-seconds"] {
                assert!(text.contains(named), "{shell}: no {named}");
            }
            for hidden in HIDDEN {
                assert!(!text.contains(hidden), "{shell}: {hidden}");
            }
        }
    }

    #[test]
    fn the_page_has_a_section_for_each_command_and_nothing_that_is_hidden() {
        let text = page().expect("a page").replace("\\-", "-");
        assert_eq!(text.lines().filter(|line| line.starts_with(".TH ")).count(), 1);
        let sections: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(".SH \"")?.strip_suffix('"')).collect();
        let commands = shown(&Arguments::command());
        for command in commands.get_subcommands() {
            let name = format!("shoal {}", command.get_name());
            assert!(sections.contains(&name.as_str()), "no {name}: {sections:?}");
        }
        assert!(sections.contains(&"shoal peertube register"), "{sections:?}");
        assert!(text.contains("--drain-seconds") && text.contains("SHOAL_DRAIN_SECONDS"), "{text}");
        assert!(HIDDEN.iter().all(|hidden| !text.contains(hidden)), "{text}");
    }

    #[test]
    fn each_command_has_a_page_of_its_own_in_a_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("man");
        man(&arguments::Man { dir: Some(dir.clone()) }).expect("written");
        for name in ["shoal.1", "shoal-transcode.1", "shoal-peertube-register.1"] {
            assert!(dir.join(name).is_file(), "no {name}");
        }
        assert!(!dir.join("shoal-child.1").exists());
    }
}
