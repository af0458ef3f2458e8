//! `shoal peertube`: makes this farm a runner of instances, and keeps the file that says of which.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use farm::{Code, Failure};
use scheduler::peertube::settings::{self, Instance, Token};
use scheduler::peertube::{register, unregister};
use serde_json::json;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};
use url::Url;

use crate::arguments::{InstanceFile, PeerTube, PeerTubeCommand, Register, Unregister};
use crate::ending::{print_json, print_line, say};
use crate::services::read;

/// Variable that holds the registration token.
const TOKEN_VARIABLE: &str = "SHOAL_REGISTRATION_TOKEN";

/// Does what is asked.
///
/// # Errors
/// What the instance says, or what is wrong with the file.
pub async fn run(arguments: &PeerTube) -> Result<(), Failure> {
    match &arguments.command {
        PeerTubeCommand::Register(asked) => add(asked).await,
        PeerTubeCommand::List(file) => list(file),
        PeerTubeCommand::Unregister(asked) => remove(asked).await,
    }
}

impl PeerTube {
    /// Whether an error is one JSON object.
    pub fn json(&self) -> bool {
        match &self.command {
            PeerTubeCommand::Register(asked) => asked.file.json,
            PeerTubeCommand::List(file) => file.json,
            PeerTubeCommand::Unregister(asked) => asked.file.json,
        }
    }
}

async fn add(asked: &Register) -> Result<(), Failure> {
    let url = settings::address(&asked.url)?;
    let file = &asked.file.file;
    let known = instances(file)?;
    if known.iter().any(|instance| instance.url == url) {
        return Err(Failure::new(Code::InvalidRequest, format!("{}: {url} is there already", file.display())));
    }
    let token = match &asked.token_file {
        Some(file) => Some(read(file)?),
        None => std::env::var(TOKEN_VARIABLE).ok(),
    };
    let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
    let missing = || Failure::new(Code::InvalidRequest, format!("no token: set {TOKEN_VARIABLE}, or give --token-file FILE"));
    let mut document = document(file)?;
    let mut line = Table::new();
    line.insert("url", value(url.as_str()));
    line.insert("name", value(&asked.name));
    line.insert("runner_token", value("ptrt-"));
    let lines = document.entry("instances").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    let odd = || Failure::new(Code::InvalidRequest, format!("{}: 'instances' is no list of tables", file.display()));
    lines.as_array_of_tables_mut().ok_or_else(odd)?.push(line);
    // What could not be read again is not registered.
    settings::read(&document.to_string())?;
    let runner_token = register(&url, &Token::from(token.ok_or_else(missing)?), &asked.name).await?;
    let lines = document.get_mut("instances").and_then(Item::as_array_of_tables_mut);
    if let Some(line) = lines.and_then(|lines| lines.iter_mut().last()) {
        line.insert("runner_token", value(runner_token.reveal()));
    }
    if let Err(failure) = write(file, &document) {
        // Nobody would know its token.
        let _ = unregister(&url, &runner_token).await;
        return Err(failure);
    }
    if asked.file.json {
        print_json(&json!({ "url": url, "name": asked.name, "file": file }));
        return Ok(());
    }
    say(&format!("this farm is '{}' at {url}; start: shoal scheduler --peertube {}", asked.name, file.display()));
    Ok(())
}

fn list(file: &InstanceFile) -> Result<(), Failure> {
    let instances = instances(&file.file)?;
    if file.json {
        let shown = instances
            .iter()
            .map(|instance| json!({ "url": instance.url, "name": instance.name, "tenant": instance.policy.tenant }));
        print_json(&json!({ "instances": shown.collect::<Vec<_>>() }));
        return Ok(());
    }
    for Instance { url, name, policy, .. } in instances {
        print_line(&format!("{url} as '{name}', tenant {}", policy.tenant));
    }
    Ok(())
}

async fn remove(asked: &Unregister) -> Result<(), Failure> {
    let (url, file) = (settings::address(&asked.url)?, &asked.file.file);
    let known = instances(file)?;
    let unknown = || Failure::new(Code::InvalidRequest, format!("{}: {url} is not there", file.display()));
    let instance = known.iter().find(|instance| instance.url == url).ok_or_else(unknown)?;
    unregister(&url, &instance.token).await?;
    let mut document = document(file)?;
    if let Some(lines) = document.get_mut("instances").and_then(Item::as_array_of_tables_mut) {
        lines.retain(|line| {
            let own = line.get("url").and_then(Item::as_str).and_then(|text| Url::parse(text).ok());
            own.as_ref() != Some(&url)
        });
    }
    write(file, &document)?;
    if asked.file.json {
        print_json(&json!({ "url": url }));
        return Ok(());
    }
    say(&format!("{url} knows this farm no more"));
    Ok(())
}

/// The instances of a file; none when it is not there.
fn instances(file: &Path) -> Result<Vec<Instance>, Failure> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    settings::read(&read(file)?).map_err(|failure| Failure::new(failure.code, format!("{}: {}", file.display(), failure.message)))
}

fn document(file: &Path) -> Result<DocumentMut, Failure> {
    if !file.exists() {
        return Ok(DocumentMut::new());
    }
    // It could be read a moment ago; what stands in it is not repeated.
    read(file)?.parse().map_err(|_| Failure::new(Code::InvalidRequest, format!("{}: no TOML", file.display())))
}

/// Puts a file in its place whole, for nobody but its owner.
fn write(file: &Path, document: &DocumentMut) -> Result<(), Failure> {
    let refused = |error: std::io::Error| Failure::new(Code::InvalidRequest, format!("{}: {error}", file.display()));
    let new = file.with_extension("toml.new");
    let _ = fs::remove_file(&new);
    let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(refused)?;
    open.write_all(document.to_string().as_bytes()).and_then(|()| open.sync_all()).map_err(refused)?;
    fs::rename(&new, file).map_err(refused)
}
