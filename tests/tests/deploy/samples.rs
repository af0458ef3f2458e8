//! The samples of files of settings: nothing is said in them as they stand, and everything that is said is taken.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use scheduler::peertube::settings;
use scheduler::tenants::Tenants;
use tests::shoal;

use super::text;

/// A sample with every line of it said.
fn said(path: &str) -> Result<String> {
    let is_said = |rest: &&str| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    let text = text(path)?;
    let lines: Vec<&str> = text.lines().map(|line| line.strip_prefix('#').filter(is_said).unwrap_or(line)).collect();
    ensure!(lines.iter().filter(|line| !line.is_empty() && !line.starts_with('#')).count() > 5, "deploy/{path} says nothing");
    Ok(lines.join("\n"))
}

#[test]
pub fn a_sample_of_tokens_lets_nobody_in_until_it_says_so() -> Result<()> {
    let places = |tenants: &Tenants| tenants.places_of("tube.example.org").map(|places| places.len());
    ensure!(places(&Tenants::read(&text("tokens.toml")?)?).is_none(), "somebody is let in");
    ensure!(places(&Tenants::read(&said("tokens.toml")?)?) == Some(1), "what is said is not taken");
    Ok(())
}

#[test]
pub fn a_sample_of_instances_names_none_until_it_says_so() -> Result<()> {
    ensure!(settings::read(&text("peertube.toml")?)?.is_empty(), "an instance is named");
    let named = settings::read(&said("peertube.toml")?)?;
    ensure!(
        named.len() == 1 && named.iter().all(|one| one.policy.quality == Some(farm::Quality::USUAL)),
        "what is said is not taken: {named:?}"
    );
    Ok(())
}

#[test]
pub fn the_program_takes_the_sample_of_settings_as_it_stands_and_with_all_of_it_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shoal.toml");
    for content in [text("shoal.toml")?, said("shoal.toml")?] {
        fs::write(&path, content)?;
        // Of a file that is not taken the program says so before it helps.
        let mut command = shoal::command(["worker", "--help", "--config"])?;
        command.arg(&path);
        shoal::run(command, Duration::from_secs(60))?.success()?;
    }
    fs::write(&path, format!("{}\nno-such-setting = 1\n", text("shoal.toml")?))?;
    let mut command = shoal::command(["worker", "--help", "--config"])?;
    command.arg(&path);
    ensure!(shoal::run(command, Duration::from_secs(60))?.status.code() == Some(2), "what is no setting is taken");
    Ok(())
}
