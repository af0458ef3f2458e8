//! Every file of `deploy/`, and the tool that is to take it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::shoal;

use super::{deploy, document, files, list, none, root, samples, text, tool, word, yaml};

/// Has a file read that is named by its path below `deploy/`.
type Check = fn(&str) -> Result<()>;

/// What reads which file. A `*` is any name.
const CHECKS: [(&str, Check); 23] = [
    (".gitignore", secrets_stay_out),
    ("*.sh", shellcheck),
    ("Dockerfile", hadolint),
    ("Dockerfile.dockerignore", all_that_is_built_is_sent),
    ("README.md", links),
    ("compose.yaml", compose),
    ("debian/*", shellcheck),
    ("garage.toml", |path| fits_schema(path, "garage")),
    ("grafana/shoal.json", dashboard),
    ("grafana/provisioning/dashboards/*.yaml", |path| fits_schema(path, "dashboards")),
    ("grafana/provisioning/datasources/*.yaml", |path| fits_schema(path, "datasources")),
    ("kubernetes/*/kustomization.yaml", |path| fits_schema(path, "kustomization")),
    ("kubernetes/base/*.yaml", |path| kubernetes(path, yaml(path)?.len())),
    ("kubernetes/jobs/names.yaml", |path| fits_schema(path, "names")),
    ("kubernetes/jobs/worker.yaml", scaled_job),
    ("kubernetes/keda/worker.yaml", |path| fits_schema(path, "keda")),
    ("peertube.toml", |_| samples::a_sample_of_instances_names_none_until_it_says_so()),
    ("prometheus/*.yaml", promtool),
    ("rabbitmq-plugins", rabbit_plugins),
    ("shoal.toml", |_| samples::the_program_takes_the_sample_of_settings_as_it_stands_and_with_all_of_it_said()),
    ("systemd/*.service", |path| unit(path, None)),
    ("systemd/sysusers.conf", users),
    ("tokens.toml", |_| samples::a_sample_of_tokens_lets_nobody_in_until_it_says_so()),
];

/// The oldest and the newest Kubernetes whose schemas the resources are to fit.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];

fn is_named_by(path: &str, pattern: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return path == pattern };
    let name = path.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    name.is_some_and(|name| !name.contains('/'))
}

#[test]
fn every_file_is_taken_by_the_tool_that_reads_it() -> Result<()> {
    let named = files()?;
    let mut broken = Vec::new();
    for path in &named {
        match CHECKS.iter().find(|(pattern, _)| is_named_by(path, pattern)) {
            None => broken.push(format!("{path}: nothing reads it: see CHECKS, or take away what is no part of the repository")),
            Some((_, check)) => broken.extend(check(path).err().map(|error| format!("{path}: {error:#}"))),
        }
    }
    let idle = CHECKS.iter().filter(|(pattern, _)| !named.iter().any(|path| is_named_by(path, pattern)));
    broken.extend(idle.map(|(pattern, _)| format!("{pattern}: there is no such file")));
    none(&broken)
}

/// Runs a program of the environment that `make test-deps` makes, in `deploy/`.
fn checker(name: &str, arguments: &[&str]) -> Result<String> {
    let program = fs::canonicalize(root())?.join("target/checkers/bin").join(name);
    ensure!(program.exists(), "{} is not there: run `make test-deps`", program.display());
    tool(program.to_str().context("a path that is no text")?, "python3-venv", arguments, &deploy())
}

fn compose(path: &str) -> Result<()> {
    checker("check-jsonschema", &["--builtin-schema", "vendor.compose-spec", path]).map(drop)
}

/// Against a schema of this folder.
fn fits_schema(path: &str, schema: &str) -> Result<()> {
    let schema = format!("../tests/tests/deploy/schemas/{schema}.yaml");
    checker("check-jsonschema", &["--check-metaschema", &schema])?;
    checker("check-jsonschema", &["--schemafile", &schema, path]).map(drop)
}

fn hadolint(path: &str) -> Result<()> {
    // Debian is of one release, and its packages are to be mended within it: their versions are not named.
    checker("hadolint", &["--no-color", "--ignore", "DL3008", path]).map(drop)
}

fn shellcheck(path: &str) -> Result<()> {
    tool("shellcheck", "shellcheck", &["--format", "gcc", path], &deploy()).map(drop)
}

fn dashboard(path: &str) -> Result<()> {
    checker("python", &["../tests/tests/deploy/dashboard.py", path]).map(drop)
}

/// So many resources, each of a kind that Kubernetes knows and of its form. A path may be anywhere.
fn kubernetes(path: &str, resources: usize) -> Result<()> {
    for version in KUBERNETES {
        let said = checker("kubernetes-validate", &["--strict", "-k", version, path])?;
        // Of a kind that it does not know it only warns.
        let passed = said.lines().filter(|line| line.contains(" passed for resource ")).count();
        ensure!(passed == resources, "{passed} of {resources} resources fit Kubernetes {version}: {said}");
    }
    Ok(())
}

/// A `ScaledJob`, and the Job that it starts once kustomize has copied into it what is written in the Deployment.
fn scaled_job(path: &str) -> Result<()> {
    fits_schema(path, "keda")?;
    let (mut scaled, workers) = (document(path)?, yaml("kubernetes/base/worker.yaml")?);
    let deployment = workers.iter().find(|object| word(object, "kind") == "Deployment").context("no Deployment")?;
    let kustomization = document("kubernetes/jobs/kustomization.yaml")?;
    for replacement in list(&kustomization, "replacements") {
        let from = word(&replacement["source"], "fieldPath");
        let copied = deployment.pointer(&format!("/{}", from.replace('.', "/")));
        let copied = copied.with_context(|| format!("the Deployment has no {from}"))?;
        for to in list(replacement, "targets").flat_map(|target| list(target, "fieldPaths")).filter_map(Value::as_str) {
            let mut place = &mut scaled;
            for key in to.split('.') {
                place = &mut place[key];
            }
            *place = copied.clone();
        }
    }
    let name = word(&scaled["metadata"], "name");
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": scaled["spec"]["jobTargetRef"]
    });
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("job.yaml");
    // JSON is YAML.
    fs::write(&file, job.to_string())?;
    kubernetes(file.to_str().context("a path that is no text")?, 1)
}

fn promtool(path: &str) -> Result<()> {
    let action = match path.trim_start_matches("prometheus/") {
        "prometheus.yaml" => ["check", "config"],
        "rules_test.yaml" => ["test", "rules"],
        _ => ["check", "rules"],
    };
    let said = tool("promtool", "prometheus", &[action[0], action[1], path], &deploy())?;
    ensure!(said.contains("SUCCESS") && !said.contains("FAILED"), "promtool: {said}");
    Ok(())
}

/// A unit, by itself or with a drop-in.
fn unit(path: &str, drop_in: Option<&str>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = fs::canonicalize(shoal::program()?)?;
    let program = program.to_str().context("a path that is no text")?;
    let written = text(path)?;
    ensure!(written.contains("\nExecStart=shoal "), "something else is started");
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).context("a name")?;
    // It is looked whether the program is there.
    fs::write(folder.path().join(name), written.replace("ExecStart=shoal ", &format!("ExecStart={program} ")))?;
    if let Some(drop_in) = drop_in {
        let beside = folder.path().join(format!("{name}.d"));
        fs::create_dir(&beside)?;
        fs::write(beside.join("override.conf"), drop_in)?;
    }
    let said = tool("systemd-analyze", "systemd", &["verify", "--man=no", &format!("./{name}")], folder.path())?;
    // It warns of words that it does not know, and is content.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("shoal-") || line.contains("override.conf")).collect();
    ensure!(ours.is_empty(), "systemd-analyze: {}", ours.join("\n"));
    Ok(())
}

fn users(path: &str) -> Result<()> {
    let path = fs::canonicalize(deploy())?.join(path);
    let path = path.to_str().context("a path that is no text")?;
    tool("systemd-sysusers", "systemd", &["--dry-run", path], &deploy()).map(drop)
}

/// The plugins that are named, and what they stand on, are in this machine's RabbitMQ.
fn rabbit_plugins(path: &str) -> Result<()> {
    let wanted = text(path)?;
    let wanted: BTreeSet<&str> = wanted.trim().trim_end_matches('.').trim_matches(['[', ']']).split(',').map(str::trim).collect();
    let (home, file) = (tempfile::tempdir()?, fs::canonicalize(deploy().join(path))?);
    let variables = [format!("RABBITMQ_ENABLED_PLUGINS_FILE={}", file.display()), format!("HOME={}", home.path().display())];
    // Asked without a server, it starts no daemon either.
    let asks = ["/usr/lib/rabbitmq/bin/rabbitmq-plugins", "-q", "is_enabled", "--offline"];
    let arguments: Vec<&str> = variables.iter().map(String::as_str).chain(asks).chain(wanted).collect();
    tool("env", "rabbitmq-server", &arguments, &deploy()).map(drop)
}

/// Whoever builds an image sends every member of the workspace, and nothing is named that is not there.
fn all_that_is_built_is_sent(path: &str) -> Result<()> {
    let written = text(path)?;
    let sent: BTreeSet<&str> = written.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let lost: Vec<&&str> = sent.iter().filter(|name| !root().join(name).exists()).collect();
    ensure!(written.contains("\n*\n") && lost.is_empty(), "all is kept back but what is there; not there: {lost:?}");
    let manifest: Value = toml::from_str(&fs::read_to_string(root().join("Cargo.toml"))?)?;
    let members: BTreeSet<&str> = list(&manifest["workspace"], "members").filter_map(Value::as_str).collect();
    ensure!(members.len() > 3 && members.is_subset(&sent), "of {members:?} only {sent:?} are sent");
    Ok(())
}

fn secrets_stay_out(path: &str) -> Result<()> {
    ensure!(text(path)?.lines().any(|line| line == "/secrets/"), "what secrets.sh makes may come into the repository");
    Ok(())
}

/// The name by which a heading is linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

/// Links that stay in the repository lead to something.
fn links(path: &str) -> Result<()> {
    let written = text(path)?;
    let headings = written.lines().filter(|line| line.starts_with('#'));
    let anchors: BTreeSet<String> = headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect();
    let targets = written.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    let targets: Vec<&str> = targets.filter(|target| !target.contains("://")).collect();
    ensure!(targets.len() > 5, "only these links were found: {targets:?}");
    let leads = |target: &str| match target.strip_prefix('#') {
        Some(name) => anchors.contains(name),
        None => deploy().join(target.split('#').next().unwrap_or_default()).exists(),
    };
    let lost: Vec<&str> = targets.into_iter().filter(|&target| !leads(target)).collect();
    ensure!(lost.is_empty(), "these links lead nowhere: {lost:?}");
    Ok(())
}

#[test]
fn systemd_takes_what_readme_adds_to_the_scheduler_for_peertube() -> Result<()> {
    let readme = text("README.md")?;
    // The lines of an example are set in by four spaces.
    let lines: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let start = lines.iter().position(|line| *line == "[Service]").context("README.md shows no drop-in")?;
    let is_setting = |line: &&&str| line.starts_with(|c: char| c == '[' || c.is_ascii_uppercase()) && !line.contains(": ");
    let drop_in: Vec<&str> = lines.iter().skip(start).take_while(is_setting).copied().collect();
    ensure!(drop_in.len() == 3 && drop_in.iter().any(|line| line.contains("SHOAL_PEERTUBE_FILE=%d/")), "{drop_in:?}");
    unit("systemd/shoal-scheduler.service", Some(&drop_in.join("\n")))
}
