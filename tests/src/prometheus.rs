//! A real Prometheus: Debian's, with the settings and the rules of `deploy/prometheus`. Of these only what takes time is changed,
//! and where it looks.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use url::form_urlencoded;

use crate::process::{Group, until};
use crate::service::free_address;
use crate::{deploy, http};

/// Longest start.
const START_WAIT: Duration = Duration::from_secs(60);
/// How often it looks. That is also the time that an answer may take, and machines of two cores are busy.
const LOOK: &str = "2s";
/// How often rules are asked.
const ASK: &str = "1s";
/// How long an alert holds before it fires, whatever the rules say.
const PATIENCE: &str = "2s";

/// A running Prometheus. Dropped, it is killed.
pub struct Prometheus {
    group: Group,
    address: String,
    folder: TempDir,
}

impl Prometheus {
    /// Starts one that looks at nothing yet.
    ///
    /// # Errors
    /// When it is not installed, or does not start.
    pub fn start() -> Result<Self> {
        let (folder, address) = (tempfile::Builder::new().prefix("prometheus-").tempdir()?, free_address()?);
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("targets"))?;
        fs::write(path("prometheus.yaml"), settings(&path("targets"))?.to_string())?;
        fs::write(path("rules.yaml"), rules()?.to_string())?;
        // Whoever ends this process without a word ends it too.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "prometheus"])
            .arg(format!("--config.file={}", path("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(path("log"))?);
        let group = Group::spawn(&mut command).context("install the Debian package prometheus")?;
        Self { group, address, folder }.ready()
    }

    fn ready(mut self) -> Result<Self> {
        let ready = until("Prometheus is ready", START_WAIT, || {
            ensure!(!self.group.has_ended()?, "it ended");
            Ok(matches!(self.get("/-/ready"), Ok((200, _))))
        });
        ready.with_context(|| self.log())?;
        Ok(self)
    }

    /// What it has logged.
    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// From now on this is the one place where it looks for a job, host and port.
    ///
    /// # Errors
    /// When the settings know no such job.
    pub fn look_at(&self, job: &str, address: &str) -> Result<()> {
        let targets = self.folder.path().join("targets");
        let (file, new) = (targets.join(format!("{job}.json")), targets.join(format!("{job}.new")));
        ensure!(file.exists(), "deploy/prometheus/prometheus.yaml has no job {job}");
        fs::write(&new, json!([{"targets": [address]}]).to_string())?;
        // It reads at any time, so never half of it.
        Ok(fs::rename(new, file)?)
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        http::ask(self.address.parse()?, &format!("GET {path}"), "", "")
    }

    /// The data of an answer of its API.
    fn data(&self, path: &str) -> Result<Value> {
        let (status, answer) = self.get(path)?;
        ensure!(status == 200, "{path}: {status} {answer}");
        let mut answer: Value = serde_json::from_str(&answer)?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].take())
    }

    /// The samples that answer a question now.
    ///
    /// # Errors
    /// When it is not understood.
    pub fn query(&self, expr: &str) -> Result<Vec<Value>> {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("query", expr).finish();
        let mut data = self.data(&format!("/api/v1/query?{query}"))?;
        ensure!(data["resultType"] == "vector", "{expr} is no vector: {data}");
        Ok(serde_json::from_value(data["result"].take())?)
    }

    /// Its rules, with how they are.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn rules(&self) -> Result<Vec<Value>> {
        let data = self.data("/api/v1/rules")?;
        Ok(deploy::list(&data, "groups").flat_map(|group| deploy::list(group, "rules")).cloned().collect())
    }

    /// Names of the alerts that fire.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn firing(&self) -> Result<BTreeSet<String>> {
        let data = self.data("/api/v1/alerts")?;
        let firing = deploy::list(&data, "alerts").filter(|alert| deploy::word(alert, "state") == "firing");
        Ok(firing.map(|alert| deploy::word(&alert["labels"], "alertname").to_owned()).collect())
    }

    /// Waits until an alert fires and says this, among other words.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub fn until_fires(&self, alert: &str, says: &str, limit: Duration) -> Result<()> {
        let is_it = |one: &Value| {
            deploy::word(one, "state") == "firing"
                && deploy::word(&one["labels"], "alertname") == alert
                && deploy::word(&one["annotations"], "summary").contains(says)
        };
        self.until(&format!("{alert} fires: {says}"), limit, || {
            Ok(deploy::list(&self.data("/api/v1/alerts")?, "alerts").any(is_it))
        })
    }

    /// Waits until none of these alerts fires.
    ///
    /// # Errors
    /// When one does for longer than `limit`.
    pub fn until_quiet(&self, alerts: &[&str], limit: Duration) -> Result<()> {
        self.until(&format!("none of {alerts:?} fires"), limit, || {
            Ok(!self.firing()?.iter().any(|firing| alerts.contains(&firing.as_str())))
        })
    }

    /// Waits until a question has an answer.
    ///
    /// # Errors
    /// When it has none within `limit`.
    pub fn until_answered(&self, expr: &str, limit: Duration) -> Result<()> {
        self.until(expr, limit, || Ok(!self.query(expr)?.is_empty()))
    }

    /// As [`until`]; what does not come to hold is told with what Prometheus sees.
    ///
    /// # Errors
    /// When it does not hold in time.
    pub fn until(&self, what: &str, limit: Duration, holds: impl FnMut() -> Result<bool>) -> Result<()> {
        until(what, limit, holds).with_context(|| {
            let told = |path| self.data(path).map_or_else(|error| format!("{error:#}"), |data| format!("{data:#}"));
            format!("{}\n{}\n{}", told("/api/v1/targets?state=active"), told("/api/v1/alerts"), self.log())
        })
    }
}

/// The settings: every job looks where a file in this folder says.
fn settings(targets: &Path) -> Result<Value> {
    let mut settings = deploy::document("prometheus/prometheus.yaml")?;
    settings["global"] = json!({"scrape_interval": LOOK, "evaluation_interval": ASK});
    for job in settings["scrape_configs"].as_array_mut().context("no jobs")? {
        let file = targets.join(format!("{}.json", deploy::word(job, "job_name")));
        fs::write(&file, "[]")?;
        let job = job.as_object_mut().context("a job that is none")?;
        job.retain(|key, _| !key.ends_with("_sd_configs") && key != "static_configs");
        job.insert("file_sd_configs".to_owned(), json!([{"files": [file], "refresh_interval": "1s"}]));
    }
    Ok(settings)
}

/// The rules, whose alerts wait no longer than [`PATIENCE`].
fn rules() -> Result<Value> {
    let mut rules = deploy::document("prometheus/rules.yaml")?;
    for group in rules["groups"].as_array_mut().context("no groups")? {
        for rule in group["rules"].as_array_mut().context("no rules")? {
            if let Some(patience) = rule.get_mut("for") {
                *patience = json!(PATIENCE);
            }
        }
    }
    Ok(rules)
}
