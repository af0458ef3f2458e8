//! What is to be submitted: the INPUTs of a command line, and the lines of lists.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use farm::{Code, Failure};
use glob::{MatchOptions, glob_with};

/// Most jobs of a call.
const JOBS_MAX: usize = 10_000;
/// Largest list, in bytes.
const LIST_BYTES_MAX: u64 = 16 << 20;
/// What standard input is called.
const STANDARD_INPUT: &str = "-";
/// How patterns are read: as shells do it.
const AS_SHELLS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// The sources of a call. Many have each a folder of its own, however few they are: a list may be short.
#[derive(Debug, PartialEq, Eq)]
pub enum Inputs {
    /// One INPUT.
    One(String),
    /// Several, or a list.
    Many(Vec<String>),
}

/// Gathers what a command line names; `from` is a file with a list.
///
/// # Errors
/// When a list cannot be read, a pattern fits nothing, or there are none or too many.
pub fn gather(inputs: &[String], from: Option<&Path>) -> Result<Inputs, Failure> {
    if let ([one], None) = (inputs, from)
        && one != STANDARD_INPUT
    {
        return Ok(Inputs::One(one.clone()));
    }
    let mut all = Vec::new();
    for input in inputs {
        if input == STANDARD_INPUT {
            add_list(&mut all, &text(Path::new(STANDARD_INPUT))?)?;
        } else {
            all.push(input.clone());
        }
    }
    if let Some(from) = from {
        add_list(&mut all, &text(from)?)?;
    }
    match all.len() {
        0 => Err(Failure::new(Code::InvalidRequest, "the list names nothing")),
        count if count > JOBS_MAX => Err(too_many()),
        _ => Ok(Inputs::Many(all)),
    }
}

/// The text of a list.
fn text(path: &Path) -> Result<String, Failure> {
    let refused = |why: &dyn std::fmt::Display| Failure::new(Code::InvalidRequest, format!("{}: {why}", path.display()));
    let mut text = String::new();
    let read = if path == Path::new(STANDARD_INPUT) {
        std::io::stdin().take(LIST_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(LIST_BYTES_MAX + 1).read_to_string(&mut text))
    };
    let bytes = read.map_err(|error| refused(&error))?;
    if bytes as u64 > LIST_BYTES_MAX {
        return Err(refused(&format!("larger than {LIST_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Adds what a list names: a source a line, without empty lines and those that begin with `#`.
fn add_list(all: &mut Vec<String>, text: &str) -> Result<(), Failure> {
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        add_line(all, line)?;
        if all.len() > JOBS_MAX {
            return Err(too_many());
        }
    }
    Ok(())
}

/// Adds what a line names. A pattern names files; what is a file as it stands, or a URL, is no pattern: names have brackets too.
fn add_line(all: &mut Vec<String>, line: &str) -> Result<(), Failure> {
    if !line.contains(['*', '?', '[']) || line.contains("://") || Path::new(line).exists() {
        all.push(line.to_owned());
        return Ok(());
    }
    let refused = |why: &dyn std::fmt::Display| Failure::new(Code::InvalidRequest, format!("{line} is no pattern: {why}"));
    let unreadable = |why: &dyn std::fmt::Display| Failure::new(Code::SourceUnreadable, format!("{line}: {why}"));
    let before = all.len();
    for found in glob_with(line, AS_SHELLS).map_err(|error| refused(&error))? {
        let path = found.map_err(|error| unreadable(&error))?;
        if !path.is_file() {
            continue;
        }
        let named = path.to_str().ok_or_else(|| unreadable(&format!("{} is no text", path.display())))?;
        all.push(named.to_owned());
        if all.len() > JOBS_MAX {
            return Err(too_many());
        }
    }
    if all.len() == before {
        return Err(unreadable(&"no file has such a name"));
    }
    Ok(())
}

fn too_many() -> Failure {
    Failure::new(Code::InvalidRequest, format!("more than {JOBS_MAX} sources: divide them"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn one_input_is_one_and_several_or_a_list_are_many() {
        assert_eq!(gather(&texts(&["a.mp4"]), None), Ok(Inputs::One("a.mp4".to_owned())));
        assert_eq!(gather(&texts(&["a.mp4", "b.mp4"]), None), Ok(Inputs::Many(texts(&["a.mp4", "b.mp4"]))));
        let folder = tempfile::tempdir().expect("a folder");
        let list = folder.path().join("list.txt");
        fs::write(&list, "# films\n\n  https://tube.example/1?a=[b]*  \r\n#s3://b/no\ns3://b/k\n").expect("written");
        let named = texts(&["https://tube.example/1?a=[b]*", "s3://b/k"]);
        assert_eq!(gather(&[], Some(&list)), Ok(Inputs::Many(named)));
        fs::write(&list, "s3://b/k\n").expect("written");
        assert_eq!(gather(&[], Some(&list)), Ok(Inputs::Many(texts(&["s3://b/k"]))));
        assert_eq!(gather(&texts(&["a.mp4"]), Some(&list)), Ok(Inputs::Many(texts(&["a.mp4", "s3://b/k"]))));
    }

    #[test]
    fn patterns_name_files_and_a_file_with_brackets_is_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_str().expect("a text").to_owned();
        for name in ["b.mp4", "a.mp4", ".c.mp4", "film [1].mp4", "a.txt"] {
            fs::write(path(name), "").expect("written");
        }
        fs::create_dir(path("d.mp4")).expect("made");
        let list = folder.path().join("list");
        let named = |text: String| {
            fs::write(&list, text).expect("written");
            gather(&[], Some(&list))
        };
        assert_eq!(named(path("[ab].mp4")), Ok(Inputs::Many(vec![path("a.mp4"), path("b.mp4")])));
        assert_eq!(named(path("*.mp4")), Ok(Inputs::Many(vec![path("a.mp4"), path("b.mp4"), path("film [1].mp4")])));
        assert_eq!(named(path("film [1].mp4")), Ok(Inputs::Many(vec![path("film [1].mp4")])));
        assert_eq!(named(path("*.mkv")).map_err(|failure| failure.code), Err(Code::SourceUnreadable));
        assert_eq!(named(path("a**b*")).map_err(|failure| failure.code), Err(Code::InvalidRequest));
    }

    #[test]
    fn lists_that_are_empty_too_long_or_not_there_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let list = folder.path().join("list");
        let refused = |text: &str| {
            fs::write(&list, text).expect("written");
            gather(&[], Some(&list)).expect_err("refused").message
        };
        assert_eq!(refused("# nothing\n"), "the list names nothing");
        assert!(refused(&"s3://b/k\n".repeat(JOBS_MAX + 1)).contains("more than 10000 sources"));
        fs::remove_file(&list).expect("gone");
        assert_eq!(gather(&[], Some(&list)).map_err(|failure| failure.code), Err(Code::InvalidRequest));
    }
}
