//! Visits the farm's page in headless Chromium as people do, and tells what was seen. The visits themselves stand in
//! `tests/player/visitor.mjs`.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::farm::{Farm, TOKEN};
use crate::process;

/// Longest time of a visit.
const VISIT_LIMIT: Duration = Duration::from_secs(240);

/// One at a time: a browser that has to share its cores stalls.
static ALONE: Mutex<()> = Mutex::new(());

/// Makes a visit of this name to the page of the farm's scheduler, with what it needs to know; what was seen. Pictures of the page
/// are in `page` below the target folder.
///
/// # Errors
/// When something is not there on the page, or is and should not be: words on the browser's console, requests of other servers,
/// and what axe-core calls serious.
pub fn visit(farm: &Farm, name: &str, wanted: &Value) -> Result<Value> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("player");
    ensure!(here.join("node_modules/axe-core").exists(), "the player's packages are not there: run `make test-deps`");
    let pictures = process::target_folder()?.join("page");
    fs::create_dir_all(&pictures)?;
    let mut request = wanted.clone();
    request["visit"] = json!(name);
    request["server"] = json!(format!("http://{}", farm.api()));
    request["token"] = json!(TOKEN);
    request["shots"] = json!(pictures);
    let request = request.to_string();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut node = Command::new("node");
    node.arg(here.join("visitor.mjs"));
    let done = process::run_fed(&mut node, VISIT_LIMIT, |stdin| stdin.write_all(request.as_bytes()))?;
    ensure!(done.status.success(), "{name}: {}\n{}", done.stderr, farm.logs());
    let seen: Value = serde_json::from_slice(&done.stdout).context("what visitor.mjs printed")?;
    for what in ["console", "elsewhere", "violations"] {
        ensure!(seen[what] == json!([]), "{name}: {what}: {:#}", seen[what]);
    }
    Ok(seen)
}
