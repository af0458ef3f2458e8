//! Every series is documented, and every one is fed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use farm::admin;
use farm::broker::Broker;
use farm::metrics::Process;
use tests::farm::Farm;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A series: its name, type, labels and help. Of labelled series without a value nothing is told: those are made first.
fn documented(text: &str) -> Vec<[String; 4]> {
    let of = |word: &str| {
        let prefix = format!("# {word} ");
        text.lines().filter_map(|line| line.strip_prefix(&prefix)?.split_once(' ')).collect::<Vec<_>>()
    };
    let types = of("TYPE");
    let kind = |name: &str| types.iter().find(|(typed, _)| *typed == name).map_or("", |(_, kind)| *kind);
    let line = |(name, help): (&str, &str)| [name.to_owned(), kind(name).to_owned(), labels(text, name), help.to_owned()];
    of("HELP").into_iter().map(line).collect()
}

/// The names of a series' labels, as its samples show them.
fn labels(text: &str, name: &str) -> String {
    let sample = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let inner = rest.strip_prefix("_bucket").unwrap_or(rest).strip_prefix('{')?;
        let names = inner.split("\",").filter_map(|label| label.split_once("=\"").map(|(label, _)| label));
        Some(names.filter(|label| *label != "le").collect::<Vec<_>>().join(", "))
    };
    text.lines().find_map(sample).unwrap_or_default()
}

/// The table of `docs/metrics.md`.
fn table(process: Process) -> String {
    let mut table = "| series | type | labels | says |\n|---|---|---|---|\n".to_owned();
    for [name, kind, labels, help] in documented(&admin::scrape_sample(process, &Broker::local())) {
        if !name.starts_with("process_") {
            // Writing to a string does not fail.
            let _ = writeln!(table, "| `{name}` | {kind} | {labels} | {help} |");
        }
    }
    table
}

#[test]
fn every_series_is_documented() -> Result<()> {
    let path = root().join("docs/metrics.md");
    let wanted = format!(
        "# Metrics\n\nBoth services show these on their admin port under `/metrics`, and the usual `process_` series. Labels hold no\n\
         names of jobs, tenants or files. This file is made from `farm/src/metrics.rs`; `WRITE_DOCS=1 cargo test -p tests --test\n\
         metrics` writes it anew.\n\n## Scheduler\n\n{}\n## Worker\n\n{}",
        table(Process::Scheduler),
        table(Process::Worker)
    );
    if std::env::var_os("WRITE_DOCS").is_some() {
        fs::write(&path, &wanted)?;
    }
    let there = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    ensure!(there == wanted, "docs/metrics.md is not what farm/src/metrics.rs says; see the file's head for how to write it");
    Ok(())
}

/// Names of the public fields that hold series.
fn fields(text: &str) -> BTreeSet<String> {
    let kinds = ["IntGauge", "IntGaugeVec", "IntCounter", "IntCounterVec", "Histogram", "HistogramVec"];
    let field = |line: &str| {
        let (name, kind) = line.trim().strip_prefix("pub ")?.split_once(": ")?;
        kinds.contains(&kind.trim_end_matches(',')).then(|| name.to_owned())
    };
    text.lines().filter_map(field).collect()
}

fn sources(folder: &Path, found: &mut String) -> Result<()> {
    for item in fs::read_dir(folder)? {
        let path = item?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            found.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[test]
fn every_series_is_fed() -> Result<()> {
    let words = fs::read_to_string(root().join("farm/src/metrics.rs"))?;
    let fields = fields(&words);
    ensure!(fields.len() > 20, "only {} series were found", fields.len());
    let mut code = String::new();
    for folder in ["scheduler/src", "worker/src"] {
        sources(&root().join(folder), &mut code)?;
    }
    // Those of the storage port are fed where they are made.
    let own =
        words.split_once("pub fn storage_observer").map_or("", |(_, rest)| rest.split_once("\n}\n").map_or(rest, |(f, _)| f));
    let unfed: Vec<&String> = fields
        .iter()
        .filter(|name| {
            !code.contains(&format!(".{name}.")) && !code.contains(&format!(".{name}\n")) && !own.contains(&format!(".{name}."))
        })
        .collect();
    ensure!(unfed.is_empty(), "nothing feeds {unfed:?}");
    Ok(())
}

/// What Prometheus' own tool finds amiss with a page of metrics: what cannot be read, and what is named against the custom.
fn promtool(page: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), page)?;
    let run = Command::new("promtool").args(["check", "metrics"]).stdin(File::open(file.path())?).output();
    let run = run.context("promtool cannot be started: install the Debian package prometheus")?;
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    ensure!(run.status.success() && said.trim().is_empty(), "promtool: {}: {said}", run.status);
    Ok(())
}

#[test]
fn prometheus_takes_what_services_show() -> Result<()> {
    let mut farm = Farm::new()?;
    for page in [farm.scheduler()?.metrics()?, farm.worker()?.metrics()?] {
        ensure!(page.contains("\nshoal_"), "nothing is shown: {page}");
        promtool(&page)?;
    }
    // With every series that has a label.
    promtool(&admin::scrape_sample(Process::Scheduler, &Broker::local()))?;
    promtool(&admin::scrape_sample(Process::Worker, &Broker::local()))?;
    ensure!(promtool("# TYPE shoal_tasks counter\nshoal_tasks 1\n").is_err(), "a counter without its ending is taken");
    ensure!(promtool("shoal_leader x\n").is_err(), "what is no number is taken");
    Ok(())
}
