//! `shoal settings`: a file of settings as `--config` reads it, with all that there are and none of them set. It is made of the
//! command line, as help is.

use clap::{Arg, Command, CommandFactory as _};
use toml::Value;

use crate::arguments::Arguments;
use crate::ending::print_text;
use crate::manual::shown;

/// What stands at the head of the file.
const HEAD: &str = "\
# Settings of shoal, as `shoal settings` prints them: all that a file takes which is named by --config or SHOAL_CONFIG.
# None is set: whoever takes the # away before a name sets it. Flags go before variables, and these before the file.
# What stands above the first [command] is for every command that knows it, the rest for the command alone.
";
/// Longest line of a comment, in bytes; a longer word stands alone.
const LINE_BYTES_MAX: usize = 120;

/// A setting of a command.
#[derive(PartialEq, Eq)]
struct Setting {
    name: String,
    help: String,
    variable: Option<String>,
    takes: Takes,
    value: Usual,
}

/// What a setting takes.
#[derive(PartialEq, Eq)]
enum Takes {
    /// What its help says.
    Text,
    /// True or false.
    Switch,
    /// One of these words.
    Words(Vec<String>),
    /// A whole number, from one to the other.
    Numbers(String, String),
}

/// What stands behind the name of a setting.
#[derive(PartialEq, Eq)]
enum Usual {
    /// What it is unless somebody says otherwise.
    Default(String),
    /// It has no default: what it may look like.
    Example(String),
}

/// Prints the file.
pub fn print() {
    print_text(&file());
}

/// The file: first what several commands know and all of them in the same way, and then of each command the rest.
fn file() -> String {
    let command = shown(&Arguments::command());
    let all: Vec<(&str, Vec<Setting>)> = command.get_subcommands().map(|part| (part.get_name(), settings(part))).collect();
    let is_common = |setting: &Setting| {
        let mut same = all.iter().flat_map(|(_, settings)| settings).filter(|other| other.name == setting.name);
        same.clone().count() > 1 && same.all(|other| other == setting)
    };
    let mut text = HEAD.to_owned();
    let mut named: Vec<&str> = Vec::new();
    for setting in all.iter().flat_map(|(_, settings)| settings).filter(|setting| is_common(setting)) {
        if !named.contains(&setting.name.as_str()) {
            text.push_str(&setting.lines());
            named.push(&setting.name);
        }
    }
    for (name, settings) in &all {
        let own: String = settings.iter().filter(|setting| !is_common(setting)).map(Setting::lines).collect();
        if !own.is_empty() {
            text.push_str(&format!("\n[{name}]\n{own}"));
        }
    }
    text
}

/// The settings of a command: its flags, as a file names them.
fn settings(command: &Command) -> Vec<Setting> {
    command.get_arguments().filter_map(|argument| setting(command.get_name(), argument)).collect()
}

fn setting(command: &str, argument: &Arg) -> Option<Setting> {
    let long = argument.get_long()?;
    let id = argument.get_id().as_str();
    let words: Vec<String> = argument.get_possible_values().iter().map(|word| word.get_name().to_owned()).collect();
    let is_switch = !argument.get_action().takes_values();
    let takes = match range(command, long) {
        _ if is_switch => Takes::Switch,
        Some((from, to)) => Takes::Numbers(from, to),
        None if words.is_empty() => Takes::Text,
        None => Takes::Words(words),
    };
    let default = argument.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    let value = match default {
        Some(value) => Usual::Default(value),
        None if is_switch => Usual::Default(false.to_string()),
        None => Usual::Example(example(id).to_owned()),
    };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
    Some(Setting { name: id.replace('_', "-"), help, variable, takes, value })
}

/// The whole numbers that a flag takes, as is said when it is given one that is never among them.
fn range(command: &str, long: &str) -> Option<(String, String)> {
    let refused = Arguments::command().try_get_matches_from(["shoal", command, &format!("--{long}=-1")]).err()?;
    let why = std::error::Error::source(&refused)?.to_string();
    let (from, to) = why.strip_prefix("-1 is not in ")?.split_once("..=")?;
    Some((from.to_owned(), to.to_owned()))
}

/// What a setting without a default may look like.
fn example(id: &str) -> &'static str {
    match id {
        "admin_listen" => "127.0.0.1:9420",
        "after" | "id" => "film-1",
        "allow_networks" => "10.1.0.0/16",
        "broker" => "amqp://shoal:password@broker.example.org/%2f",
        "broker_file" => "/etc/shoal/broker",
        "chunk_seconds" => "60",
        "dir" => "man",
        "edit" => r#"[{"keep": {"from": 1.5, "to": 20}}]"#,
        "from" => "films.txt",
        "hardware" => "prefer",
        "idle_seconds" => "600",
        "keep_days" => "365",
        "listen" => "127.0.0.1:8420",
        "notify_url" => "https://tube.example.org/done",
        "otlp_endpoint" => "http://127.0.0.1:4318",
        "otlp_headers_file" => "/etc/shoal/otlp-headers",
        "output" => "s3://videos/film-1/",
        "peertube" => "/etc/shoal/peertube.toml",
        "s3_endpoint" => "https://s3.example.org",
        "server" => "https://farm.example.org",
        "slots" => "2",
        "storage" => "s3://farm/state/",
        "storyboard" => "10x10",
        "tasks" => "40",
        "tenant" => "tube.example.org",
        "token_file" => "/etc/shoal/token",
        "tokens" => "/etc/shoal/tokens.toml",
        _ => "",
    }
}

impl Setting {
    /// What the file has of it.
    fn lines(&self) -> String {
        let variable = self.variable.as_ref().map(|name| format!("{name}. ")).unwrap_or_default();
        let takes = match &self.takes {
            Takes::Text => String::new(),
            Takes::Switch => "true or false. ".to_owned(),
            Takes::Words(words) => format!("{}. ", words.join(", ")),
            Takes::Numbers(from, to) => format!("{from} to {to}. "),
        };
        let (usual, value) = match &self.value {
            Usual::Default(value) => (format!("Default: {}", written(value)), value),
            Usual::Example(value) => ("No default; for example:".to_owned(), value),
        };
        let help = format!("{}.", self.help.trim_end_matches('.'));
        let told = [help, format!("{variable}{takes}{usual}")].map(|sentence| comment(&sentence)).concat();
        format!("\n{told}#{} = {}\n", self.name, written(value))
    }
}

/// A value as TOML has it.
fn written(value: &str) -> String {
    if value.parse::<i64>().is_ok() || value.parse::<bool>().is_ok() {
        value.to_owned()
    } else {
        Value::String(value.to_owned()).to_string()
    }
}

/// A text as lines of a comment.
fn comment(text: &str) -> String {
    let mut lines = vec!["#".to_owned()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= LINE_BYTES_MAX || *line == "#" => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("# {word}")),
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use clap::FromArgMatches as _;
    use toml::Table;

    use super::*;
    use crate::config;

    const UPDATE: &str = "UPDATE_SETTINGS";

    /// The file with everything in it set.
    fn all_set() -> Table {
        let is_set = |line: &str| line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
        let text = file();
        let lines: Vec<&str> = text.lines().map(|line| if is_set(line) { line.trim_start_matches('#') } else { line }).collect();
        toml::from_str(&lines.join("\n")).expect("TOML")
    }

    /// The settings of a table, without those of tables in it.
    fn named(table: &Table) -> BTreeSet<String> {
        table.iter().filter(|(_, value)| !value.is_table()).map(|(name, _)| name.clone()).collect()
    }

    #[test]
    fn the_sample_is_what_is_printed() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/shoal.toml");
        if std::env::var_os(UPDATE).is_some() {
            fs::write(&path, file()).expect("deploy/shoal.toml is written");
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == file(), "deploy/shoal.toml is not what is printed: run `{UPDATE}=1 cargo test -p cli settings`");
    }

    #[test]
    fn nothing_is_set_in_it() {
        let table: Table = toml::from_str(&file()).expect("TOML");
        for (name, value) in table {
            assert!(value.as_table().is_some_and(Table::is_empty), "{name}");
        }
    }

    #[test]
    fn every_line_is_taken_as_it_stands() {
        let command = config::apply(Arguments::command(), all_set()).expect("settings");
        for part in shown(&Arguments::command()).get_subcommands().filter(|part| !part.has_subcommands()) {
            // Positional arguments are no settings.
            let first = |argument: &Arg| argument.get_possible_values().first().map(|word| word.get_name().to_owned());
            let given = part.get_positionals().map(|argument| first(argument).unwrap_or_else(|| "film".to_owned()));
            let line = ["shoal".to_owned(), part.get_name().to_owned()].into_iter().chain(given);
            let taken = command.clone().try_get_matches_from(line).and_then(|matches| Arguments::from_arg_matches(&matches));
            assert!(taken.is_ok(), "{}: {}", part.get_name(), taken.err().map(|error| error.to_string()).unwrap_or_default());
        }
    }

    #[test]
    fn every_flag_of_every_command_is_in_it_once_for_each_with_its_variable() {
        let (text, table) = (file(), all_set());
        let common = named(&table);
        for part in shown(&Arguments::command()).get_subcommands() {
            let own = table.get(part.get_name()).and_then(Value::as_table).map(named).unwrap_or_default();
            for argument in part.get_arguments() {
                let Some(long) = argument.get_long() else { continue };
                assert!(own.contains(long) != common.contains(long), "{}: {long}", part.get_name());
                let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                assert!(text.contains(&variable), "{long}: {variable}");
            }
        }
        assert!(["storage", "broker"].iter().all(|name| common.contains(*name)), "{common:?}");
        assert!(!text.contains("spot-endpoint") && !text.contains("[child]"), "what is hidden");
        assert!(!text.contains(" = \"\"\n"), "a setting without an example");
    }

    #[test]
    fn ranges_words_and_defaults_are_those_of_the_command_line() {
        let text = file();
        for lines in [
            "# SHOAL_SEGMENT_SECONDS. 1 to 30. Default: 4\n#segment-seconds = 4\n",
            "# SHOAL_LAYOUT. segments, single-file, both. Default: \"segments\"\n#layout = \"segments\"\n",
            "# SHOAL_MP4. true or false. Default: false\n#mp4 = false\n",
            "# SHOAL_KEEP_DAYS. 1 to 36500. No default; for example:\n#keep-days = 365\n",
            "# SHOAL_STORAGE. No default; for example:\n#storage = \"s3://farm/state/\"\n",
        ] {
            assert!(text.contains(lines), "{lines} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= LINE_BYTES_MAX), "a line is too long");
    }
}
