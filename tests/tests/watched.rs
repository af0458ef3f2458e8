//! A farm that is watched: Debian's Prometheus, with the rules of `deploy/prometheus`, looks at running processes and at a real
//! RabbitMQ. What rules, dashboard and autoscalers ask for is there, and what goes wrong raises its alert.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use farm::job::Layout;
use serde_json::Value;
use tests::deploy::{self, list, word};
use tests::farm::{DEAD, Farm, JOBS, Job, TASKS};
use tests::peertube::{Instance, V8_2};
use tests::prometheus::Prometheus;
use tests::rabbit::Server;
use tests::service::Service;

/// Longest wait for what Prometheus is to see: a machine of two cores that others use too.
const LIMIT: Duration = Duration::from_secs(120);

/// So many dead letters, of the 100 000 that are held, are too many.
const NEARLY_FULL: usize = 90_001;

/// Panels and recorded series that show nothing of a farm that is well and at rest, and why that is right.
const EMPTY: [(&str, &str); 5] = [
    ("Silence of busy workers", "no worker is busy"),
    ("Runner jobs ended per hour", "the instance of PeerTube has no work"),
    ("Sources per hour", "the instance of PeerTube has no work"),
    ("Rungs kept no more, per hour", "the instance of PeerTube has no work"),
    ("shoal:store_failures:ratio_rate5m", "no operation on storage has failed"),
];

/// Series that are asked for and are not there in such a farm, and why that is right. All others are: an alert that names one
/// that is never there would never come.
const ABSENT: [(&str, &str); 7] = [
    ("shoal_peertube_jobs_total", "the instance of PeerTube has no work"),
    ("shoal_peertube_jobs_total{end=\"failed\"}", "the instance of PeerTube has no work"),
    ("shoal_peertube_sources_total", "the instance of PeerTube has no work"),
    ("shoal_peertube_speculative_rungs_total", "the instance of PeerTube has no work"),
    ("shoal_http_requests_total{status=~\"5..\"}", "no request has failed"),
    ("shoal_store_requests_total{code=~\"unavailable|denied|full\"}", "no operation on storage has failed"),
    ("shoal:store_failures:ratio_rate5m", "no operation on storage has failed"),
];

/// How the names of series begin that anything here asks for.
const NAMES: [&str; 5] = ["shoal_", "shoal:", "rabbitmq_", "process_", "up"];

/// A question to Prometheus, and whose it is.
type Question = (String, String);

/// A farm with one scheduler and one worker that serves an instance of PeerTube, and who watches it. What is watched goes last.
struct Watched {
    prometheus: Prometheus,
    scheduler: Service,
    worker: Service,
    farm: Farm,
    instance: Option<Instance>,
    server: Server,
}

impl Watched {
    /// Starts all of it, and waits until all of it is seen.
    fn start() -> Result<Self> {
        let (server, instance) = (Server::start()?, Instance::start(V8_2)?);
        let mut farm = Farm::on(server.vhost()?)?;
        farm.instances = Some(instance.file("one", "")?);
        let (scheduler, worker) = (farm.scheduler()?, farm.worker()?);
        let prometheus = Prometheus::start()?;
        let metrics = farm.broker.metrics().to_string();
        prometheus.look_at("shoal-scheduler", scheduler.admin())?;
        prometheus.look_at("shoal-worker", worker.admin())?;
        prometheus.look_at("rabbitmq", &metrics)?;
        prometheus.look_at("rabbitmq-queues", &metrics)?;
        prometheus.until_answered("count(up == 1) == 4", LIMIT)?;
        // The broker counts every few seconds. What comes before the first count is no change.
        prometheus.until_answered(&format!("rabbitmq_detailed_queue_messages_ready{{queue=\"{DEAD}\"}}"), LIMIT)?;
        Ok(Self { prometheus, scheduler, worker, farm, instance: Some(instance), server })
    }

    /// One job that is done, one that fails, and a request to the API.
    fn work(&self) -> Result<()> {
        let (farm, good, bad) = (&self.farm, film("film"), film("text"));
        let message = farm.message(&bad)?;
        farm.put(&format!("source/{}.mp4", bad.id), b"This is no video at all.\n".to_vec())?;
        farm.send(&good)?;
        farm.broker.publish(JOBS, message.to_string().as_bytes())?;
        let (done, failed) = (farm.ended(&good)?, farm.ended(&bad)?);
        ensure!(done["done"].is_object() && failed["failed"].is_object(), "{done} {failed}\n{}", farm.logs());
        let (code, told) = farm.run(&["status", "--json"])?;
        ensure!(code == Some(0), "{told}");
        Ok(())
    }

    /// Whether the kernel lets children be walled in as the alert about that demands.
    fn is_walled_in(&self) -> Result<bool> {
        let wall = |wall: &str| self.worker.series("shoal_sandbox_walls", &format!("wall=\"{wall}\"")).context("no metrics");
        Ok(wall("files")? >= 1.0 && wall("system_calls")? >= 2.0)
    }

    /// Waits until an alert fires and says this.
    fn until_fires(&self, alert: &str, says: &str) -> Result<()> {
        self.prometheus.until_fires(alert, says, LIMIT).with_context(|| self.farm.logs())
    }

    fn until_quiet(&self, alerts: &[&str]) -> Result<()> {
        self.prometheus.until_quiet(alerts, LIMIT).with_context(|| self.farm.logs())
    }
}

/// The job of these tests: two chunks.
fn film(id: &str) -> Job {
    Job::new(id, 8, Layout::Segments)
}

/// What every rule asks; recorded series and alerts by their names.
fn rules() -> Result<Vec<Question>> {
    let rules = deploy::document("prometheus/rules.yaml")?;
    let all = list(&rules, "groups").flat_map(|group| list(group, "rules"));
    let name = |rule: &Value| format!("{}{}", word(rule, "record"), word(rule, "alert"));
    Ok(all.map(|rule| (name(rule), word(rule, "expr").to_owned())).collect())
}

/// What every panel of the dashboard asks, by its title.
fn panels() -> Result<Vec<Question>> {
    let dashboard: Value = serde_json::from_str(&deploy::text("grafana/shoal.json")?)?;
    let mut asked = Vec::new();
    for panel in list(&dashboard, "panels") {
        asked.extend(list(panel, "targets").map(|target| (word(panel, "title").to_owned(), word(target, "expr").to_owned())));
    }
    ensure!(asked.len() > 40, "only {} questions of the dashboard were found", asked.len());
    Ok(asked)
}

/// What the autoscalers ask, by their files.
fn scalers() -> Result<Vec<Question>> {
    let mut asked = Vec::new();
    for path in ["kubernetes/keda/worker.yaml", "kubernetes/jobs/worker.yaml"] {
        let objects = deploy::yaml(path)?;
        let triggers = objects.iter().flat_map(|object| list(&object["spec"], "triggers"));
        asked.extend(triggers.map(|trigger| (path.to_owned(), word(&trigger["metadata"], "query").to_owned())));
    }
    ensure!(asked.len() == 2, "the autoscalers ask {asked:?}");
    Ok(asked)
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// The series that a question is about: names, each with what is asked of its labels.
fn series(expr: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in NAMES.iter().flat_map(|name| expr.match_indices(name)) {
        let (before, rest) = expr.split_at(at);
        if before.ends_with(is_name) {
            continue;
        }
        let name = rest.split(|c: char| !is_name(c)).next().unwrap_or_default();
        let labels = rest.strip_prefix(name).and_then(|rest| rest.strip_prefix('{')?.split_once('}'));
        found.insert(labels.map_or_else(|| name.to_owned(), |(labels, _)| format!("{name}{{{labels}}}")));
    }
    found
}

/// Waits until those whose questions are answered with nothing are these, no more and no fewer.
fn until_unanswered_are(watched: &Watched, asked: &[Question], wanted: &[(&str, &str)]) -> Result<()> {
    let wanted: BTreeSet<&str> = wanted.iter().map(|(whose, _)| *whose).collect();
    let mut unanswered = BTreeSet::new();
    let come = watched.prometheus.until("what is asked has its answer", LIMIT, || {
        unanswered.clear();
        for (whose, expr) in asked {
            if watched.prometheus.query(expr).with_context(|| whose.clone())?.is_empty() {
                unanswered.insert(whose.as_str());
            }
        }
        Ok(unanswered == wanted)
    });
    come.with_context(|| format!("no answer has {unanswered:?} instead of {wanted:?}\n{}", watched.farm.logs()))
}

/// Prometheus has taken every rule, and can make each out.
fn rules_are_well(prometheus: &Prometheus, wanted: &[Question]) -> Result<()> {
    let mut rules = Vec::new();
    prometheus.until("every rule was asked", LIMIT, || {
        rules = prometheus.rules()?;
        Ok(!rules.iter().any(|rule| word(rule, "health") == "unknown"))
    })?;
    ensure!(rules.len() == wanted.len(), "{} rules of {}", rules.len(), wanted.len());
    let is_well = |rule: &Value| word(rule, "health") == "ok" && word(rule, "lastError").is_empty();
    let ill: Vec<&Value> = rules.iter().filter(|rule| !is_well(rule)).collect();
    ensure!(ill.is_empty(), "{ill:#?}");
    Ok(())
}

#[test]
fn what_rules_dashboard_and_autoscalers_ask_is_answered_and_no_alert_fires_of_a_farm_that_is_well() -> Result<()> {
    let watched = Watched::start()?;
    watched.work()?;
    let rules = rules()?;
    rules_are_well(&watched.prometheus, &rules)?;
    let mut shown = panels()?;
    shown.extend(scalers()?);
    let asked: BTreeSet<String> = rules.iter().chain(&shown).flat_map(|(_, expr)| series(expr)).collect();
    ensure!(asked.len() > 60, "only these series were found: {asked:?}");
    let asked: Vec<Question> = asked.into_iter().map(|series| (series.clone(), series)).collect();
    // Those of alerts are to have no answer.
    shown.extend(rules.into_iter().filter(|(name, _)| name.starts_with("shoal:")));
    until_unanswered_are(&watched, &shown, &EMPTY)?;
    until_unanswered_are(&watched, &asked, &ABSENT)?;

    // The job that failed has left its letter.
    let mut wanted = BTreeSet::from(["ShoalDeadLetters".to_owned()]);
    if !watched.is_walled_in()? {
        wanted.insert("ShoalNotWalledIn".to_owned());
    }
    let mut firing = BTreeSet::new();
    let come = watched.prometheus.until("no other alert fires", LIMIT, || {
        firing = watched.prometheus.firing()?;
        Ok(firing == wanted)
    });
    come.with_context(|| format!("{firing:?} fire instead of {wanted:?}\n{}", watched.farm.logs()))
}

/// A worker is killed while a job is sent. Another comes in its place.
fn a_worker_dies(watched: &mut Watched) -> Result<()> {
    let gone = watched.worker.admin().to_owned();
    watched.worker.kill()?;
    let job = film("waits");
    watched.farm.send(&job)?;
    watched.until_fires("ShoalProcessDown", &format!("shoal-worker {gone} does not answer."))?;
    watched.until_fires("ShoalNoWorkers", "There is work, and no worker.")?;
    watched.until_fires("ShoalQueueUnattended", &format!("messages wait in {TASKS}, and nobody takes them."))?;
    watched.worker = watched.farm.worker()?;
    watched.prometheus.look_at("shoal-worker", watched.worker.admin())?;
    let ended = watched.farm.ended(&job)?;
    ensure!(ended["done"].is_object(), "{ended}\n{}", watched.farm.logs());
    watched.until_quiet(&["ShoalProcessDown", "ShoalNoWorkers", "ShoalQueueUnattended"])
}

/// The broker is killed, and started again.
fn a_broker_stops(watched: &mut Watched) -> Result<()> {
    watched.server.kill()?;
    for (job, service) in [("shoal-scheduler", &watched.scheduler), ("shoal-worker", &watched.worker)] {
        watched.until_fires("ShoalBrokerAway", &format!("{job} {} does not reach the broker.", service.admin()))?;
    }
    watched.server.restart()?;
    watched.prometheus.until_answered("count(shoal_broker_connected == 1) == 2", LIMIT)?;
    watched.until_quiet(&["ShoalBrokerAway"])
}

/// Nobody looks after the queue of dead letters.
fn a_dead_queue_fills(watched: &Watched) -> Result<()> {
    ensure!(!watched.prometheus.firing()?.contains("ShoalDeadLetters"), "a letter has come already");
    watched.farm.broker.fill(DEAD, NEARLY_FULL)?;
    watched.until_fires("ShoalDeadLetters", "Messages came to the queue of dead letters")?;
    watched.until_fires("ShoalDeadQueueFull", "dead letters wait; above 100 000 the oldest are lost.")
}

#[test]
fn what_goes_wrong_raises_its_alert_and_what_is_mended_ends_it() -> Result<()> {
    let mut watched = Watched::start()?;
    let away = format!("The instance {} does not answer.", slug(&watched)?);
    watched.prometheus.until_answered("shoal_peertube_up == 1", LIMIT)?;
    drop(watched.instance.take());
    a_worker_dies(&mut watched)?;
    watched.until_fires("ShoalPeerTubeAway", &away)?;
    a_broker_stops(&mut watched)?;
    a_dead_queue_fills(&watched)
}

/// What the instance of PeerTube is called in labels.
fn slug(watched: &Watched) -> Result<String> {
    let url = watched.instance.as_ref().context("no instance")?.url();
    Ok(url.trim_start_matches("http://").trim_end_matches('/').replace(':', "-"))
}
