//! The Debian package (`make deb`), as far as it can be told without building it: what it is made of is there, and it agrees with
//! the units.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{deploy, list, makefile, none, root, text, tool, word, words};

/// Where the package puts units.
const UNITS: &str = "usr/lib/systemd/system/";

/// What cargo-deb is told.
fn metadata() -> Result<Value> {
    let manifest = fs::read_to_string(root().join("cli/Cargo.toml"))?;
    let manifest: Value = toml::from_str(&manifest)?;
    let deb = manifest["package"]["metadata"]["deb"].clone();
    ensure!(deb["assets"].is_array(), "cli/Cargo.toml has no package");
    Ok(deb)
}

/// Every file of the package: what it is made of, from the root of the repository, and where it goes.
fn assets() -> Result<Vec<(String, PathBuf)>> {
    let deb = metadata()?;
    let mut assets = Vec::new();
    for asset in list(&deb, "assets") {
        let part = |place: usize| asset[place].as_str().with_context(|| format!("{asset}: no source, place and mode"));
        ensure!(["644", "755"].contains(&part(2)?), "{asset}: another mode");
        let (source, place) = (part(0)?.trim_start_matches("../").to_owned(), part(1)?);
        let name = Path::new(&source).file_name().context("a name")?;
        let to = if place.ends_with('/') { Path::new(place).join(name) } else { PathBuf::from(place) };
        assets.push((source, to));
    }
    Ok(assets)
}

#[test]
fn what_the_package_is_made_of_is_there_or_is_made() -> Result<()> {
    let made_by = fs::read_to_string(root().join("Makefile"))?;
    let mut broken = Vec::new();
    for (source, _) in assets()? {
        let is_made = |folder: &Path| [" ", "\n", "/"].iter().any(|end| made_by.contains(&format!("{}{end}", folder.display())));
        let is_there = match Path::new(&source).parent() {
            Some(folder) if folder.starts_with("target/package") => is_made(folder),
            _ if source == "target/release/shoal" => true,
            _ => root().join(&source).is_file(),
        };
        if !is_there {
            broken.push(format!("cli/Cargo.toml: there is no {source}"));
        }
    }
    let shells: BTreeSet<String> = assets()?
        .into_iter()
        .filter_map(|(source, _)| Some(source.strip_prefix("target/package/completions/")?.to_owned()))
        .collect();
    ensure!(shells == makefile("COMPLETIONS")?, "completions are packed for {shells:?} and made for others");
    none(&broken)
}

#[test]
fn units_and_package_agree_on_program_user_and_files() -> Result<()> {
    let (assets, readme) = (assets()?, text("README.md")?);
    let is_packed = |to: &str| assets.iter().any(|(_, place)| place == Path::new(to));
    ensure!(is_packed("usr/bin/shoal"), "the program is not where units look for it");
    ensure!(is_packed("usr/lib/sysusers.d/shoal.conf"), "nobody makes the user");
    let users = text("systemd/sysusers.conf")?;
    let users: BTreeSet<&str> = users.lines().filter_map(|line| line.strip_prefix("u ")?.split(' ').next()).collect();
    let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_');
    let mut broken = Vec::new();
    for unit in ["shoal-scheduler.service", "shoal-worker.service"] {
        let written = text(&format!("systemd/{unit}"))?;
        ensure!(is_packed(&format!("{UNITS}{unit}")), "{unit} is not in the package");
        ensure!(written.contains("\nExecStart=shoal "), "{unit} names a place that the package does not put its program to");
        let user = written.lines().find_map(|line| line.strip_prefix("User=")).context("no user")?;
        ensure!(users == BTreeSet::from([user]), "{unit} runs as {user}, and the package makes {users:?}");
        for path in words(&written, "/etc/shoal/", is_path) {
            let name = path.trim_start_matches("/etc/shoal/");
            // What is not packed is a secret, or is made where something is to be set.
            if !is_packed(path.trim_start_matches('/')) && !readme.contains(&format!("`{name}`")) {
                broken.push(format!("{unit}: {path} is neither in the package nor explained in README.md"));
            }
        }
    }
    none(&broken)
}

#[test]
fn the_package_depends_on_the_plugins_of_the_makefile() -> Result<()> {
    let deb = metadata()?;
    // Tools are for the clip of `make run` alone.
    let is_plugin = |name: &String| name.starts_with("gstreamer1.0-") && name != "gstreamer1.0-tools";
    let depends: BTreeSet<String> =
        list(&deb, "depends").filter_map(Value::as_str).map(str::to_owned).filter(is_plugin).collect();
    let wanted: BTreeSet<String> = makefile("PACKAGES")?.into_iter().filter(is_plugin).collect();
    ensure!(wanted.len() > 3 && depends == wanted, "the package has {depends:?}, the Makefile {wanted:?}");
    ensure!(list(&deb, "depends").any(|name| name == "$auto"), "the libraries that the program is linked with are missing");
    Ok(())
}

#[test]
fn maintainer_scripts_are_scripts_and_leave_a_place_for_those_of_the_units() -> Result<()> {
    let deb = metadata()?;
    ensure!(word(&deb, "maintainer-scripts") == "../deploy/debian", "the scripts are elsewhere");
    ensure!(deb["systemd-units"]["enable"] == false && deb["systemd-units"]["start"] == false, "a farm is not set up by itself");
    for file in fs::read_dir(deploy().join("debian"))? {
        let path = file?.path();
        let script = fs::read_to_string(&path)?;
        ensure!(script.starts_with("#!/bin/sh\nset -e\n") && script.contains("\n#DEBHELPER#\n"), "{}", path.display());
        tool("sh", "dash", &["-n", path.to_str().context("a path that is no text")?], &deploy())?;
    }
    Ok(())
}
