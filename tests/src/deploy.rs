//! The files of `deploy/`, as the tools read them that they are for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Prints every document of a YAML file as one JSON list.
const YAML_AS_JSON: &str = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder itself.
pub fn deploy() -> PathBuf {
    root().join("deploy")
}

/// A file of `deploy/`.
///
/// # Errors
/// When there is none.
pub fn text(path: &str) -> Result<String> {
    fs::read_to_string(deploy().join(path)).with_context(|| format!("deploy/{path}"))
}

/// What a tool says, on both outputs. It is to be there and to be content.
///
/// # Errors
/// When it is not.
pub fn tool(name: &str, package: &str, arguments: &[&str], folder: &Path) -> Result<String> {
    let run = Command::new(name).args(arguments).current_dir(folder).output();
    let run = run.with_context(|| format!("{name} cannot be started: install the Debian package {package}"))?;
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    ensure!(run.status.success(), "{name} {arguments:?}: {}: {said}", run.status);
    Ok(said)
}

/// The documents of a YAML file of `deploy/`.
///
/// # Errors
/// When it is none.
pub fn yaml(path: &str) -> Result<Vec<Value>> {
    // Debian's own, which has Debian's package; another may come first on the path.
    let printed = tool("/usr/bin/python3", "python3-yaml", &["-c", YAML_AS_JSON, path], &deploy());
    let printed = printed.context("the Debian package python3-yaml is needed")?;
    serde_json::from_str(&printed).with_context(|| format!("deploy/{path}: {printed}"))
}

/// The one document of such a file.
///
/// # Errors
/// When it holds none, or more.
pub fn document(path: &str) -> Result<Value> {
    let mut all = yaml(path)?;
    ensure!(all.len() == 1, "deploy/{path}: {} documents", all.len());
    all.pop().with_context(|| format!("deploy/{path}: empty"))
}

/// What a list holds; nothing, when there is no list.
pub fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value[key].as_array().into_iter().flatten()
}

/// A text; empty, when there is none.
pub fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
