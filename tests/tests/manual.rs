//! What the program prints of its own command line: manual pages, completions and settings, as those take them for whom they are.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::process;
use tests::shoal;

const LIMIT: Duration = Duration::from_secs(60);

/// What a command prints, which must work.
fn printed(arguments: &[&str]) -> Result<String> {
    Ok(shoal::run(shoal::command(arguments)?, LIMIT)?.success()?.text())
}

/// The commands that help names.
fn commands() -> Result<BTreeSet<String>> {
    let help = printed(&["--help"])?;
    let (_, listed) = help.split_once("Commands:\n").context("no commands")?;
    let names = listed.lines().take_while(|line| line.starts_with("  ")).filter_map(|line| line.split_whitespace().next());
    let names: BTreeSet<String> = names.filter(|name| *name != "help").map(str::to_owned).collect();
    ensure!(names.contains("transcode") && names.contains("man") && !names.contains("child"), "{names:?}");
    Ok(names)
}

#[test]
fn bash_completes_every_command_and_its_flags() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("shoal");
    fs::write(&script, printed(&["completions", "bash"])?)?;
    let completed = |line: &str| -> Result<BTreeSet<String>> {
        let words: Vec<&str> = line.split(' ').collect();
        let (last, before) = (words.last().context("a word")?, words.iter().rev().nth(1).context("a word before")?);
        let ask = format!(
            "source {}; COMP_WORDS=({line}); COMP_CWORD={}; _shoal shoal '{last}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.len() - 1
        );
        let run = process::run(Command::new("bash").args(["-c", &ask]), LIMIT)?.success()?;
        Ok(run.text().lines().map(str::to_owned).collect())
    };
    for name in commands()? {
        ensure!(completed(&format!("shoal {name}"))?.contains(&name), "{name} is not completed");
    }
    ensure!(completed("shoal worker --dr")? == BTreeSet::from(["--drain-seconds".to_owned()]), "a flag is not completed");
    ensure!(!completed("shoal worker --spot-")?.contains("--spot-endpoint"), "what is hidden is completed");
    Ok(())
}

#[test]
fn the_manual_page_is_set_without_complaint_and_names_every_command() -> Result<()> {
    let page = printed(&["man"])?;
    let mut groff = Command::new("groff");
    // Every warning but those of the terminal's fonts and lines that cannot be filled.
    groff.args(["-man", "-Tutf8", "-ww", "-Wfont", "-Wbreak", "-P-cbou"]);
    let set = process::run_fed(&mut groff, LIMIT, |input| input.write_all(page.as_bytes()))?.success()?;
    ensure!(set.stderr.is_empty(), "groff: {}", set.stderr);
    for name in commands()? {
        ensure!(set.text().contains(&format!("\nshoal {name}\n")), "{name} has no section:\n{}", set.text());
    }
    Ok(())
}

#[test]
fn settings_are_printed_for_every_command_that_has_any() -> Result<()> {
    let settings = printed(&["settings"])?;
    for name in commands()? {
        let has_any = !["peertube", "settings", "completions"].contains(&name.as_str());
        ensure!(settings.contains(&format!("\n[{name}]\n")) == has_any, "[{name}]");
    }
    Ok(())
}
