//! The rules of the house, checked on the sources: what must stay pure, who may know whom, what a file looks like.
//!
//! Code is looked at as the compiler does, token by token, so that words in comments and texts do not count.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use proc_macro2::{TokenStream, TokenTree};

const CRATES: [&str; 6] = ["farm", "pipelines", "scheduler", "worker", "cli", "tests"];

/// Files of the scheduler that decide: functions of their arguments, and nothing else.
const PURE: [&str; 18] = [
    "plan",
    "copy",
    "pace",
    "ladder",
    "step",
    "seal",
    "damage",
    "playlist",
    "stills",
    "text",
    "dispatch",
    "report",
    "pin",
    "wanted",
    "published",
    "workers",
    "edit",
    "traces",
];

/// What a pure file cannot do without one of these: read a clock, draw lots, wait, or reach for anything outside.
const IMPURE: [&str; 16] = [
    "tokio",
    "async",
    "await",
    "std::time",
    "SystemTime",
    "Instant",
    "rand",
    "random",
    "reqwest",
    "fs",
    "net",
    "std::env",
    "std::process",
    "std::thread",
    "Storage",
    "Broker",
];

/// The only files that may hold `unsafe`: system calls and C libraries.
const UNSAFE: [&str; 6] = [
    "pipelines/src/scale/zimg.rs",
    "worker/src/attempt_tests.rs",
    "worker/src/child.rs",
    "worker/src/memory.rs",
    "worker/src/process.rs",
    "worker/src/sandbox_tests.rs",
];

const FILE_LINES_MAX: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A source file, its path relative to the root.
struct Source {
    path: String,
    text: String,
}

/// Every Rust file of the workspace.
fn sources() -> Result<Vec<Source>> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        CRATES.iter().flat_map(|name| ["src", "tests", "examples", "benches"].map(|part| Path::new(name).join(part))).collect();
    while let Some(folder) = folders.pop() {
        let Ok(listing) = fs::read_dir(root().join(&folder)) else { continue };
        for item in listing {
            let item = item?;
            let path = folder.join(item.file_name());
            if item.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(Source { path: path.display().to_string(), text: fs::read_to_string(item.path())? });
            }
        }
    }
    for name in CRATES {
        ensure!(found.iter().any(|source| source.path.starts_with(&format!("{name}/src/"))), "no sources of {name} were found");
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// A word or sign of code and its line, from 1. Texts, numbers and comments are left out.
type Token = (String, usize);

fn tokens(text: &str) -> Result<Vec<Token>> {
    fn add(stream: TokenStream, tokens: &mut Vec<Token>) {
        for tree in stream {
            let line = tree.span().start().line;
            match tree {
                TokenTree::Group(group) => add(group.stream(), tokens),
                TokenTree::Ident(word) => tokens.push((word.to_string(), line)),
                TokenTree::Punct(sign) => tokens.push((sign.as_char().to_string(), line)),
                TokenTree::Literal(_) => {}
            }
        }
    }
    let mut all = Vec::new();
    add(text.parse().map_err(|error| anyhow::anyhow!("not Rust: {error}"))?, &mut all);
    Ok(all)
}

/// The lines on which `wanted` stands in the code.
fn lines_with(text: &str, wanted: &str) -> Result<Vec<usize>> {
    let (code, wanted) = (tokens(text)?, tokens(wanted)?);
    let same = |window: &&[Token]| window.iter().zip(&wanted).all(|(a, b)| a.0 == b.0);
    Ok(code.windows(wanted.len()).filter(same).filter_map(|window| window.first().map(|token| token.1)).collect())
}

/// One line per place in those files where one of `forbidden` stands.
fn uses<'a>(files: impl Iterator<Item = &'a Source>, forbidden: &[&str], rule: &str) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for source in files {
        for word in forbidden {
            let lines = lines_with(&source.text, word).with_context(|| source.path.clone())?;
            broken.extend(lines.into_iter().map(|line| format!("{}:{line}: `{word}`: {rule}", source.path)));
        }
    }
    Ok(broken)
}

fn none(broken: &[String]) -> Result<()> {
    ensure!(broken.is_empty(), "rules of the house are broken:\n{}", broken.join("\n"));
    Ok(())
}

#[test]
fn what_decides_is_pure() -> Result<()> {
    let sources = sources()?;
    let pure: BTreeSet<String> = PURE.iter().map(|name| format!("scheduler/src/{name}.rs")).collect();
    for path in &pure {
        ensure!(sources.iter().any(|source| source.path == *path), "{path} is not there: a pure file was moved, tell this test");
    }
    // What such a file is split into is as pure; its tests need not be.
    let parts: Vec<String> = PURE.iter().map(|name| format!("scheduler/src/{name}/")).collect();
    let files = sources.iter().filter(|source| {
        let part = parts.iter().any(|folder| source.path.starts_with(folder)) && !source.path.ends_with("/tests.rs");
        pure.contains(&source.path) || part
    });
    none(&uses(files, &IMPURE, "this file decides, it does not act")?)
}

#[test]
fn crates_keep_to_themselves() -> Result<()> {
    let sources = sources()?;
    let of = |name: &'static str| sources.iter().filter(move |source| source.path.starts_with(&format!("{name}/")));
    let mut broken = uses(of("pipelines"), &["tokio"], "pipelines block; they know no runtime")?;
    broken.extend(uses(of("scheduler"), &["worker::", "use worker"], "scheduler and worker never know each other")?);
    broken.extend(uses(of("worker"), &["scheduler::", "use scheduler"], "scheduler and worker never know each other")?);
    none(&broken)
}

/// The names of what a crate is linked with on this platform: by itself (depth 1), or also by way of others.
fn linked_with(name: &str, depth: u8) -> Result<BTreeSet<String>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["tree", "--offline", "--edges=normal", "--prefix=none", "--format={p}", "--package", name]);
    let listing = cargo.arg(format!("--depth={depth}")).current_dir(root()).output()?;
    ensure!(listing.status.success(), "cargo tree: {}", String::from_utf8_lossy(&listing.stderr));
    // Each line is `name version`, and the first is the crate itself.
    let listing = String::from_utf8(listing.stdout)?;
    Ok(listing.lines().skip(1).filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

#[test]
fn crates_are_linked_with_what_they_may_know() -> Result<()> {
    let mut broken = Vec::new();
    for (name, depth, forbidden) in [
        ("farm", u8::MAX, &["gstreamer", "glib", "pipelines", "scheduler", "worker"][..]),
        // By way of `farm`, for whose types it comes, a runtime is linked; here is none asked for.
        ("pipelines", 1, &["tokio", "futures", "reqwest", "scheduler", "worker"]),
        ("scheduler", u8::MAX, &["gstreamer", "glib", "pipelines", "worker"]),
        ("worker", u8::MAX, &["scheduler"]),
    ] {
        let linked = linked_with(name, depth)?;
        let found = forbidden.iter().filter(|other| linked.contains(**other));
        broken.extend(found.map(|other| format!("{name}/Cargo.toml: {name} is linked with `{other}`")));
    }
    ensure!(linked_with("worker", u8::MAX)?.contains("gstreamer-sys"), "the list of links is not complete: GStreamer is missing");
    none(&broken)
}

#[test]
fn unsafe_is_where_it_is_expected() -> Result<()> {
    let sources = sources()?;
    for path in UNSAFE {
        ensure!(sources.iter().any(|source| source.path == path), "{path} is not there: take it off the list in this test");
    }
    let files = sources.iter().filter(|source| !UNSAFE.contains(&&*source.path));
    none(&uses(files, &["unsafe"], "only the files listed in this test may be unsafe")?)
}

#[test]
fn nothing_is_left_to_do() -> Result<()> {
    let sources = sources()?;
    let mut broken = uses(sources.iter(), &["todo!", "unimplemented!", "dbg!"], "not done")?;
    // Put together here so that this file does not hold the words itself.
    let words = [concat!("FIX", "ME"), concat!("XX", "X"), concat!("/wo", "rk/main"), concat!("/wo", "rk/shared")];
    for source in &sources {
        let lines = (1..).zip(source.text.lines());
        let found = lines.filter_map(|(line, text)| words.iter().find(|word| text.contains(**word)).map(|word| (line, word)));
        broken.extend(found.map(|(line, word)| format!("{}:{line}: `{word}` does not belong here", source.path)));
    }
    none(&broken)
}

#[test]
fn a_file_says_what_it_is_for_and_is_short() -> Result<()> {
    let mut broken = Vec::new();
    for Source { path, text } in sources()? {
        if !text.starts_with("//! ") {
            broken.push(format!("{path}:1: does not open with a `//!` sentence"));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            broken.push(format!("{path}: {lines} lines, more than {FILE_LINES_MAX}: divide it"));
        }
    }
    none(&broken)
}

#[test]
fn every_case_of_a_contract_is_run() -> Result<()> {
    let mut broken = Vec::new();
    for path in ["tests/src/contract/broker.rs", "tests/src/contract/storage.rs"] {
        let code = tokens(&fs::read_to_string(root().join(path))?)?;
        let words: Vec<&str> = code.iter().map(|token| &*token.0).collect();
        let cases: Vec<&str> = words.windows(4).filter(|w| w.starts_with(&["pub", "async", "fn"])).map(|w| w[3]).collect();
        ensure!(cases.len() >= 15, "{path}: only {} cases were found", cases.len());
        let listed = |case: &&&str| words.iter().filter(|word| word == case).count() > 1;
        broken
            .extend(cases.iter().filter(|case| !listed(case)).map(|case| format!("{path}: `{case}` is not in the macro's list")));
    }
    none(&broken)
}

#[test]
fn the_readme_names_every_crate() -> Result<()> {
    let readme = fs::read_to_string(root().join("README.md")).context("README.md")?;
    let missing = CRATES.iter().filter(|name| !readme.contains(&format!("`{name}")) && !readme.contains(&format!("{name}/")));
    none(&missing.map(|name| format!("README.md: says nothing about `{name}`")).collect::<Vec<_>>())
}

#[test]
fn a_rule_sees_code_and_nothing_else() -> Result<()> {
    let text = "//! tokio\nuse std::time::Duration; // tokio\nlet lively = \"tokio \\\" std::fs\"; /* rand */\n\
                let a = 'r'; fn f() { rand::rng(); std :: fs::read(r#\"net\"#); todo!() }\nlet randomly = unsafe_code;";
    for (word, lines) in [
        ("tokio", vec![]),
        ("std::time", vec![2]),
        ("std::fs", vec![4]),
        ("fs", vec![4]),
        ("net", vec![]),
        ("rand", vec![4]),
        ("todo!", vec![4]),
        ("unsafe", vec![]),
        ("random", vec![]),
    ] {
        ensure!(lines_with(text, word)? == lines, "`{word}`: {:?}", lines_with(text, word)?);
    }
    Ok(())
}

/// A claim whose test is gone, or called otherwise by now, is held by nothing.
#[test]
fn security_names_tests_that_are_there() -> Result<()> {
    let text = fs::read_to_string(root().join("SECURITY.md"))?;
    let (mut names, mut checked) = (Vec::new(), 0);
    for line in text.lines() {
        names.clear();
        // What stands between backticks, and whether a parenthesis opens before it.
        let mut before = "";
        for (place, part) in line.split('`').enumerate() {
            if place % 2 == 0 {
                before = part;
            } else if part.ends_with(".rs") && before.ends_with('(') && !names.is_empty() {
                let code = fs::read_to_string(root().join(part)).with_context(|| part.to_owned())?;
                for name in names.drain(..) {
                    ensure!(code.contains(&format!("fn {name}(")), "{part} has no {name}");
                    checked += 1;
                }
            } else if part.matches('_').count() >= 3 && part.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                names.push(part);
            }
        }
        ensure!(names.is_empty(), "no file is named for {names:?}");
    }
    ensure!(checked > 40, "only {checked} tests are named");
    Ok(())
}
