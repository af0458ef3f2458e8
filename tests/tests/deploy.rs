//! The files of `deploy/`, held to the tools that read them, and to the program that they run.

#[path = "deploy/checks.rs"]
mod checks;
#[path = "deploy/first.rs"]
mod first;
#[path = "deploy/package.rs"]
mod package;
#[path = "deploy/samples.rs"]
mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use scheduler::tenants::Tenants;
use serde_json::Value;
use tests::deploy::{deploy, document, list, root, text, tool, word, yaml};
use tests::shoal;

/// Files that ask Prometheus for series.
const ASKING: [&str; 5] = [
    "prometheus/rules.yaml",
    "prometheus/rules_test.yaml",
    "grafana/shoal.json",
    "kubernetes/keda/worker.yaml",
    "kubernetes/jobs/worker.yaml",
];
/// Files that say how many workers there are to be.
const SCALING: [&str; 2] = ["kubernetes/keda/worker.yaml", "kubernetes/jobs/worker.yaml"];

/// From the end of draining until a worker is sure to have ended: half a minute to give back, and a little.
const AFTER_DRAIN_SECONDS: u64 = 35;

/// How YAML is to look.
const YAML_LOOKS: &str = "{extends: default, rules: {line-length: {max: 140}, document-start: disable, \
                          comments: {min-spaces-from-content: 1}}}";

/// Every file below `deploy/` that belongs to the repository, by its path from there.
fn files() -> Result<BTreeSet<String>> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![deploy()]);
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder)? {
            let path = item?.path();
            if path.ends_with("deploy/secrets") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(deploy())?.display().to_string());
            }
        }
    }
    ensure!(found.contains("compose.yaml") && found.contains("kubernetes/base/worker.yaml"), "files are missing: {found:?}");
    Ok(found)
}

/// The words of a text that begin so and are made of such characters.
fn words<'a>(text: &'a str, prefix: &str, is_part: fn(char) -> bool) -> BTreeSet<&'a str> {
    text.split(|c: char| !is_part(c)).filter(|word| word.starts_with(prefix) && word.len() > prefix.len()).collect()
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_recorded_name(c: char) -> bool {
    is_name(c) || c == ':'
}

fn none(broken: &[String]) -> Result<()> {
    ensure!(broken.is_empty(), "deploy/ is not true of the program:\n{}", broken.join("\n"));
    Ok(())
}

/// The alerts of the rules, and their annotations.
fn alerts() -> Result<BTreeMap<String, Value>> {
    let rules = document("prometheus/rules.yaml")?;
    let all = list(&rules, "groups").flat_map(|group| list(group, "rules"));
    let alerts: BTreeMap<_, _> = all
        .filter(|rule| rule["alert"].is_string())
        .map(|rule| (word(rule, "alert").to_owned(), rule["annotations"].clone()))
        .collect();
    ensure!(alerts.len() > 15, "only {} alerts were found", alerts.len());
    Ok(alerts)
}

#[test]
fn every_alert_is_seen_to_come_and_to_stay_away() -> Result<()> {
    let tests = document("prometheus/rules_test.yaml")?;
    let cases: Vec<&Value> = list(&tests, "tests").flat_map(|test| list(test, "alert_rule_test")).collect();
    let mut broken = Vec::new();
    for alert in alerts()?.keys() {
        let counts: Vec<usize> =
            cases.iter().filter(|case| word(case, "alertname") == alert).map(|case| list(case, "exp_alerts").count()).collect();
        if !counts.iter().any(|count| *count > 0) || !counts.contains(&0) {
            broken.push(format!("prometheus/rules_test.yaml: {alert} is not tested both ways"));
        }
    }
    none(&broken)
}

#[test]
fn every_alert_has_its_entry_in_the_run_book() -> Result<()> {
    let readme = text("README.md")?;
    let (_, book) = readme.split_once("\n## Run book\n").context("README.md has no run book")?;
    let alerts = alerts()?;
    let mut broken = Vec::new();
    for (alert, annotations) in &alerts {
        if word(annotations, "runbook") != format!("deploy/README.md#{}", alert.to_lowercase()) {
            broken.push(format!("prometheus/rules.yaml: {alert}: the annotation `runbook` does not lead to its entry"));
        }
        let entry = book.split("\n### ").find(|entry| entry.lines().next() == Some(alert.as_str()));
        let told = |part: &str| entry.is_some_and(|entry| entry.contains(&format!("\n* **{part}:** ")));
        let missing = ["Means", "Look at", "Do"].into_iter().filter(|part| !told(part));
        broken.extend(missing.map(|part| format!("README.md: the entry of {alert} has no `{part}`")));
    }
    let entries = book.split("\n### ").skip(1).filter_map(|entry| entry.lines().next());
    let left = entries.filter(|entry| !alerts.contains_key(*entry));
    broken.extend(left.map(|entry| format!("README.md: there is no alert `{entry}`")));
    none(&broken)
}

/// Names that can be asked for, with what histograms are made of.
fn series() -> Result<BTreeSet<String>> {
    let documented = fs::read_to_string(root().join("docs/metrics.md"))?;
    let histograms: BTreeSet<&str> = documented
        .lines()
        .filter(|line| line.contains("| histogram |"))
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name))
        .collect();
    ensure!(histograms.len() > 4, "only these histograms are documented: {histograms:?}");
    let mut names = BTreeSet::new();
    // Series with labels that nobody knows beforehand are not in the documentation, but here.
    for path in ["farm/src/metrics.rs", "farm/src/admin.rs"] {
        let code = fs::read_to_string(root().join(path))?;
        let literals = code.split('"').skip(1).step_by(2).filter(|literal| literal.chars().all(is_name));
        for name in literals.filter(|literal| literal.starts_with("shoal_")) {
            if histograms.contains(name) {
                names.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
            } else {
                names.insert(name.to_owned());
            }
        }
    }
    ensure!(names.len() > 40 && names.contains("shoal_peertube_up"), "series are missing: {names:?}");
    Ok(names)
}

#[test]
fn what_is_asked_of_prometheus_is_shown_by_the_program() -> Result<()> {
    let known = series()?;
    let rules = document("prometheus/rules.yaml")?;
    let all = list(&rules, "groups").flat_map(|group| list(group, "rules"));
    let recorded: BTreeSet<&str> = all.map(|rule| word(rule, "record")).filter(|name| !name.is_empty()).collect();
    let mut broken = Vec::new();
    for path in ASKING {
        let asking = text(path)?;
        let named = words(&asking, "shoal_", is_name);
        ensure!(!named.is_empty(), "deploy/{path} names no series");
        broken.extend(named.iter().filter(|name| !known.contains(**name)).map(|name| format!("{path}: no series `{name}`")));
        let named = words(&asking, "shoal:", is_recorded_name);
        broken.extend(named.iter().filter(|name| !recorded.contains(**name)).map(|name| format!("{path}: no rule `{name}`")));
    }
    none(&broken)
}

/// The labels of documented series.
fn labels() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let documented = fs::read_to_string(root().join("docs/metrics.md"))?;
    let of = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let name = cells.next()?.trim_end_matches('`').to_owned();
        let labels: BTreeSet<String> = cells.nth(1)?.split(", ").filter(|label| !label.is_empty()).map(str::to_owned).collect();
        Some((name, labels))
    };
    let labels: BTreeMap<String, BTreeSet<String>> = documented.lines().filter_map(of).collect();
    ensure!(labels.get("shoal_tasks_total").is_some_and(|labels| labels.contains("outcome")), "labels are missing: {labels:?}");
    Ok(labels)
}

#[test]
fn labels_that_are_asked_for_are_those_of_their_series() -> Result<()> {
    let known = labels()?;
    let mut broken = Vec::new();
    for path in ASKING {
        let asking = text(path)?.replace("\\\"", "\"");
        // Each place where a name is followed by its braces.
        for (at, _) in asking.match_indices("shoal_") {
            let rest = asking.get(at..).unwrap_or_default();
            let name: String = rest.chars().take_while(|c| is_name(*c)).collect();
            let inner = rest.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('{')?.split_once('}'));
            let (Some((inner, _)), Some(labels)) = (inner, known.get(&name)) else { continue };
            for matcher in inner.split(", ").flat_map(|part| part.split(",\n")) {
                let label: String = matcher.trim().chars().take_while(|c| is_name(*c)).collect();
                if !labels.contains(&label) && !["job", "instance"].contains(&label.as_str()) {
                    broken.push(format!("{path}: {name} has no label `{label}`"));
                }
            }
        }
    }
    none(&broken)
}

#[test]
fn every_panel_of_the_dashboard_asks_what_prometheus_understands() -> Result<()> {
    let dashboard: Value = serde_json::from_str(&text("grafana/shoal.json")?)?;
    let (mut ids, mut places, mut asked) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for panel in list(&dashboard, "panels") {
        let title = word(panel, "title");
        ensure!(!title.is_empty() && ids.insert(panel["id"].as_u64()), "`{title}`: no title, or an id twice");
        let side = |key: &str| panel["gridPos"][key].as_u64().with_context(|| format!("`{title}` has no place"));
        let (x, y, width, height) = (side("x")?, side("y")?, side("w")?, side("h")?);
        ensure!(x + width <= 24, "`{title}` stands out");
        for place in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
            ensure!(places.insert(place), "`{title}` stands where another does");
        }
        if word(panel, "type") == "row" {
            continue;
        }
        ensure!(!word(panel, "description").is_empty(), "`{title}` does not say what it shows");
        ensure!(list(panel, "targets").count() > 0, "`{title}` asks for nothing");
        for target in list(panel, "targets") {
            ensure!(word(&target["datasource"], "uid") == "${datasource}", "`{title}` asks another source");
            asked.push(word(target, "expr").to_owned());
        }
    }
    for path in SCALING {
        let scaling = yaml(path)?;
        let triggers = scaling.iter().flat_map(|object| list(&object["spec"], "triggers"));
        asked.extend(triggers.map(|trigger| word(&trigger["metadata"], "query").to_owned()));
    }
    ensure!(asked.len() > 40, "only {} questions were found", asked.len());
    // As rules they are read by Prometheus' own parser. JSON is YAML.
    let rules: Vec<Value> =
        (1..).zip(&asked).map(|(n, expr)| serde_json::json!({"record": format!("asked:{n}"), "expr": expr})).collect();
    let folder = tempfile::tempdir()?;
    let file = serde_json::json!({"groups": [{"name": "asked", "rules": rules}]});
    fs::write(folder.path().join("asked.yaml"), file.to_string())?;
    let said = tool("promtool", "prometheus", &["check", "rules", "asked.yaml"], folder.path())?;
    ensure!(said.contains(&format!("{} rules found", asked.len())), "promtool: {said}");
    Ok(())
}

/// `--help` of a command.
fn help(command: &[&str]) -> Result<String> {
    let run = shoal::command(command.iter().chain(&["--help"]))?.output()?;
    ensure!(run.status.success(), "shoal {command:?} --help: {}", String::from_utf8_lossy(&run.stderr));
    Ok(String::from_utf8(run.stdout)?)
}

const COMMANDS: [&[&str]; 18] = [
    &["transcode"],
    &["probe"],
    &["encoders"],
    &["scheduler"],
    &["worker"],
    &["submit"],
    &["status"],
    &["cancel"],
    &["retry"],
    &["delete"],
    &["doctor"],
    &["child"],
    &["peertube", "register"],
    &["peertube", "list"],
    &["peertube", "unregister"],
    &["settings"],
    &["completions"],
    &["man"],
];

/// The flags in a help or a command line.
fn flags(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    words(text, "--", is_part)
}

#[test]
fn settings_and_flags_are_the_programs() -> Result<()> {
    let mut helps = Vec::new();
    for command in COMMANDS {
        helps.push((command.join(" "), help(command)?));
    }
    // Of the environment alone, and so in no help: what is logged.
    let known: BTreeSet<&str> = helps.iter().flat_map(|(_, help)| words(help, "SHOAL_", is_name)).chain(["SHOAL_LOG"]).collect();
    ensure!(known.len() > 20, "only these settings were found: {known:?}");
    let (mut broken, mut lines_seen) = (Vec::new(), 0);
    for path in files()? {
        let content = text(&path)?;
        let unknown = words(&content, "SHOAL_", is_name).into_iter().filter(|name| !known.contains(name));
        broken.extend(unknown.map(|name| format!("{path}: `{name}` is no setting")));
        for line in content.lines() {
            for (command, help) in &helps {
                // What comes after the command, up to a comment or the end of an example in a sentence.
                let Some((_, rest)) = line.split_once(&format!("shoal {command} ")) else { continue };
                let rest = rest.split(['#', '`', '|', '&']).next().unwrap_or_default();
                lines_seen += 1;
                let (there, used) = (flags(help), flags(rest));
                broken.extend(used.difference(&there).map(|flag| format!("{path}: `shoal {command}` knows no `{flag}`")));
            }
        }
    }
    ensure!(lines_seen >= 5, "only {lines_seen} command lines were found");
    none(&broken)
}

/// The value of a variable of the Makefile, with the lines that follow it.
fn makefile(name: &str) -> Result<BTreeSet<String>> {
    let makefile = fs::read_to_string(root().join("Makefile"))?.replace("\\\n", " ");
    let value = makefile.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" := "));
    Ok(value.with_context(|| format!("Makefile: no {name}"))?.split_whitespace().map(str::to_owned).collect())
}

/// The packages that each stage of the Dockerfile installs.
fn packages() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let dockerfile = text("Dockerfile")?.replace("\\\n", " ");
    let (mut stages, mut stage) = (BTreeMap::<String, BTreeSet<String>>::new(), String::new());
    for line in dockerfile.lines() {
        if let Some((_, name)) = line.strip_prefix("FROM ").and_then(|from| from.split_once(" AS ")) {
            stage = name.to_owned();
        }
        let Some((_, rest)) = line.split_once("apt-get install -y --no-install-recommends ") else { continue };
        let named = rest.split("&&").next().unwrap_or_default();
        stages.entry(stage.clone()).or_default().extend(named.split_whitespace().map(str::to_owned));
    }
    Ok(stages)
}

#[test]
fn images_have_the_packages_that_the_makefile_has() -> Result<()> {
    let (wanted, stages) = (makefile("PACKAGES")?, packages()?);
    let stage = |name: &str| stages.get(name).with_context(|| format!("Dockerfile: {name} installs nothing"));
    let (plugins, building): (BTreeSet<String>, BTreeSet<String>) =
        wanted.into_iter().partition(|name| name.starts_with("gstreamer1.0-"));
    // Tools are for the clip of `make run` alone.
    let plugins: BTreeSet<String> = plugins.into_iter().filter(|name| name != "gstreamer1.0-tools").collect();
    ensure!(plugins.len() > 3 && building.len() > 3, "Makefile: {plugins:?}, {building:?}");
    ensure!(*stage("build")? == building, "Dockerfile: build has {:?}, the Makefile {building:?}", stage("build")?);
    ensure!(*stage("worker")? == plugins, "Dockerfile: worker has {:?}, the Makefile {plugins:?}", stage("worker")?);
    for library in building.iter().filter_map(|name| name.strip_suffix("-dev")) {
        let is_there = stage("scheduler")?.iter().any(|name| name.starts_with(library));
        ensure!(is_there, "Dockerfile: what is linked with {library} cannot start without it");
    }
    Ok(())
}

#[test]
fn yaml_is_tidy() -> Result<()> {
    let named = files()?;
    let is_yaml = |path: &&String| Path::new(path.as_str()).extension().is_some_and(|end| end == "yaml" || end == "yml");
    let paths: Vec<&str> = named.iter().filter(is_yaml).map(String::as_str).collect();
    ensure!(paths.len() > 8, "only these were found: {paths:?}");
    let arguments: Vec<&str> = ["--strict", "-d", YAML_LOOKS].into_iter().chain(paths).collect();
    tool("yamllint", "yamllint", &arguments, &deploy()).map(drop)
}

/// What a unit sets.
fn of_unit(unit: &str, key: &str) -> Result<u64> {
    let value = unit.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    value.with_context(|| format!("no {key}"))?.parse::<u64>().with_context(|| key.to_owned())
}

#[test]
fn a_worker_has_the_time_that_it_drains_for() -> Result<()> {
    let unit = text("systemd/shoal-worker.service")?;
    let (drain, stop) = (of_unit(&unit, "SHOAL_DRAIN_SECONDS")?, of_unit(&unit, "TimeoutStopSec")?);
    ensure!(stop == drain + AFTER_DRAIN_SECONDS, "systemd: {drain} s to drain, {stop} s to stop");
    ensure!(unit.contains("\nKillMode=mixed\n"), "systemd would stop the children of a worker that drains");

    let compose = document("compose.yaml")?;
    let worker = &compose["services"]["worker"];
    let drain: u64 = word(&worker["environment"], "SHOAL_DRAIN_SECONDS").parse()?;
    let stop: u64 = word(worker, "stop_grace_period").trim_end_matches('s').parse()?;
    ensure!(stop == drain + AFTER_DRAIN_SECONDS, "compose: {drain} s to drain, {stop} s to stop");

    let all = yaml("kubernetes/base/worker.yaml")?;
    let deployment = all.iter().find(|object| word(object, "kind") == "Deployment").context("no Deployment")?;
    let pod = &deployment["spec"]["template"]["spec"];
    let settings: Vec<&Value> = list(pod, "containers").flat_map(|container| list(container, "env")).collect();
    let setting = |name: &str| settings.iter().find(|set| word(set, "name") == name).map(|set| word(set, "value"));
    let drain: u64 = setting("SHOAL_DRAIN_SECONDS").context("kubernetes: no drain")?.parse()?;
    let stop = pod["terminationGracePeriodSeconds"].as_u64();
    ensure!(stop == Some(drain + AFTER_DRAIN_SECONDS), "kubernetes: {drain} s to drain, {stop:?} s to stop");

    let schedulers = yaml("kubernetes/base/scheduler.yaml")?;
    let scheduler = schedulers.iter().find(|object| word(object, "kind") == "Deployment").context("no Deployment")?;
    let mut set = list(&scheduler["spec"]["template"]["spec"], "containers").flat_map(|container| list(container, "env"));
    let counted = set.find(|set| word(set, "name") == "SHOAL_SLOTS_PER_WORKER").map(|set| word(set, "value"));
    ensure!(counted.is_some() && counted == setting("SHOAL_SLOTS"), "{counted:?} slots are counted, not those of a worker");
    for path in SCALING {
        let scaling = yaml(path)?;
        let trigger = scaling.iter().flat_map(|object| list(&object["spec"], "triggers")).next().context("no trigger")?;
        ensure!(word(&trigger["metadata"], "threshold") == "1", "{path}: the series counts workers");
    }
    Ok(())
}

#[test]
fn services_of_compose_are_contained_and_open_to_nobody() -> Result<()> {
    let compose = document("compose.yaml")?;
    let services = compose["services"].as_object().context("no services")?;
    ensure!(services.len() == 6, "services: {:?}", services.keys().collect::<Vec<_>>());
    let mut broken = Vec::new();
    for (name, service) in services {
        let limits = &service["deploy"]["resources"]["limits"];
        let is_ours = service["build"].is_object();
        for (holds, what) in [
            (service["read_only"] == true, "may write to its root file system"),
            (service["cap_drop"] == serde_json::json!(["ALL"]), "keeps capabilities"),
            (list(service, "security_opt").any(|option| option == "no-new-privileges:true"), "may gain privileges"),
            (limits["memory"].is_string() && limits["cpus"].is_string(), "has no limits"),
            // Our images have one of their own.
            (is_ours || service["healthcheck"]["test"].is_array(), "is not asked for its health"),
            (
                list(service, "ports").all(|port| port.as_str().is_some_and(|port| port.starts_with("127.0.0.1:"))),
                "is open to others",
            ),
        ] {
            if !holds {
                broken.push(format!("compose.yaml: {name} {what}"));
            }
        }
        for kind in ["secrets", "configs"] {
            let used = list(service, kind).map(|used| used.as_str().unwrap_or_else(|| word(used, "source")));
            // As files they are mounted; what is written in the file itself cannot be copied into a read-only container.
            let lost = used.filter(|used| !compose[kind][*used]["file"].is_string());
            broken.extend(lost.map(|used| format!("compose.yaml: {name}: `{used}` is no file among the {kind}")));
        }
    }
    none(&broken)
}

#[test]
fn secrets_are_made_once_and_fit() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("secrets.sh");
    fs::copy(deploy().join("secrets.sh"), &script)?;
    let script = script.to_str().context("a path that is no text")?;
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).with_context(|| name.to_owned());
    tool("bash", "bash", &[script], folder.path())?;

    let compose = document("compose.yaml")?;
    let services = compose["services"].as_object().context("no services")?;
    let secrets = compose["secrets"].as_object().context("no secrets")?;
    let env = services.values().flat_map(|service| list(service, "env_file")).filter_map(Value::as_str);
    let named: BTreeSet<&str> = secrets.values().map(|secret| word(secret, "file")).chain(env).collect();
    ensure!(named.len() > 4, "only these secrets are named: {named:?}");
    let mut made = BTreeMap::new();
    for name in named {
        made.insert(name, read(name)?);
    }

    let token = read("secrets/token")?;
    let tenants = Tenants::read(&read("secrets/tokens.toml")?)?;
    ensure!(tenants.of_token(token.trim()).is_some(), "the token is nobody's");
    let rabbit = read("secrets/rabbitmq.conf")?;
    let password = rabbit.lines().find_map(|line| line.strip_prefix("default_pass = ")).context("no password")?;
    ensure!(read("secrets/broker")?.contains(&format!("shoal:{password}@rabbitmq")), "the broker has another password");

    tool("bash", "bash", &[script], folder.path())?;
    for (name, before) in &made {
        ensure!(read(name)? == *before, "{name} was made anew");
    }
    Ok(())
}

#[test]
fn pods_are_restricted_and_probed_where_the_program_answers() -> Result<()> {
    let admin = fs::read_to_string(root().join("farm/src/admin.rs"))?;
    let mut broken = Vec::new();
    for path in ["kubernetes/base/scheduler.yaml", "kubernetes/base/worker.yaml"] {
        let all = yaml(path)?;
        let deployment = all.iter().find(|object| word(object, "kind") == "Deployment").context("no Deployment")?;
        let pod = &deployment["spec"]["template"]["spec"];
        let mut rules = vec![
            (pod["securityContext"]["runAsNonRoot"] == true, "may run as root"),
            (pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "may make any system call"),
            (pod["automountServiceAccountToken"] == false, "has a token of the cluster"),
            (pod["enableServiceLinks"] == false, "has variables of services, which begin as ours do"),
            (deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"], "is lost"),
            (list(pod, "containers").count() == 1, "is not one container"),
        ];
        for container in list(pod, "containers") {
            let context = &container["securityContext"];
            rules.extend([
                (context["allowPrivilegeEscalation"] == false, "may gain privileges"),
                (context["readOnlyRootFilesystem"] == true, "may write to its root file system"),
                (context["capabilities"]["drop"] == serde_json::json!(["ALL"]), "keeps capabilities"),
                (container["resources"]["limits"]["memory"].is_string(), "has no limit of memory"),
            ]);
            for (probe, route) in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
                let asked = &container[probe]["httpGet"];
                let is_route = admin.contains(&format!(".route(\"{route}\""));
                rules.push((is_route && asked["path"] == route && asked["port"] == "admin", "is probed at another route"));
            }
        }
        broken.extend(rules.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| format!("{path}: the pod {what}")));
    }
    // What nobody names is not applied.
    for folder in ["kubernetes/base", "kubernetes/keda", "kubernetes/jobs"] {
        let settings = document(&format!("{folder}/kustomization.yaml"))?;
        let named = ["resources", "configurations"].into_iter().flat_map(|key| list(&settings, key)).filter_map(Value::as_str);
        let named: BTreeSet<String> = named.map(|name| format!("{folder}/{name}")).collect();
        for path in files()?.iter().filter(|path| path.starts_with(folder) && !path.ends_with("/kustomization.yaml")) {
            if !named.contains(path) {
                broken.push(format!("{folder}/kustomization.yaml does not name {path}"));
            }
        }
    }
    none(&broken)
}

#[test]
fn monitoring_looks_where_the_services_listen() -> Result<()> {
    let dockerfile = text("Dockerfile")?;
    ensure!(
        dockerfile.contains("SHOAL_ADMIN_LISTEN=0.0.0.0:9420") && dockerfile.contains("/dev/tcp/127.0.0.1/9420"),
        "another port"
    );
    let (settings, compose) = (document("prometheus/prometheus.yaml")?, document("compose.yaml")?);
    let jobs: Vec<&Value> = list(&settings, "scrape_configs").collect();
    for service in ["scheduler", "worker"] {
        let job = jobs.iter().find(|job| word(job, "job_name") == format!("shoal-{service}")).context("no such job")?;
        let asks = |place: &Value| place["names"] == serde_json::json!([service]) && place["port"] == 9420;
        ensure!(list(job, "dns_sd_configs").any(asks), "{service} is not looked at");
        ensure!(compose["services"][service].is_object(), "compose has no {service}");
    }
    Ok(())
}
