//! `--edit`: steps of editing as a job has them, only that a path may stand where a URL does.

use farm::edit::EditStep;
use farm::{Code, Failure};
use serde_json::Value;
use url::Url;

/// Reads steps; `locate` makes a URL of what they name as a source.
///
/// # Errors
/// [`Code::InvalidRequest`] for the first that is none, by its number; those of `locate`.
pub fn steps(text: &str, locate: impl Fn(&str) -> Result<Url, Failure>) -> Result<Vec<EditStep>, Failure> {
    let refused = |why: String| Failure::new(Code::InvalidRequest, format!("--edit: {why}"));
    let steps: Vec<Value> = serde_json::from_str(text).map_err(|error| refused(format!("not a list of steps: {error}")))?;
    let read = |(number, mut step): (u32, Value)| {
        if let Some(url) = source_of(&mut step) {
            *url = locate(url.as_str())?.into();
        }
        serde_json::from_value(step).map_err(|error| refused(format!("step {number}: {error}")))
    };
    (1..).zip(steps).map(read).collect()
}

/// What a step calls another source, if it names one.
fn source_of(step: &mut Value) -> Option<&mut String> {
    let (name, said) = step.as_object_mut()?.iter_mut().next()?;
    let source = if name == "overlay" { said.get_mut("source")? } else { said };
    match source.get_mut("url")? {
        Value::String(url) => Some(url),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn located(text: &str) -> Result<Url, Failure> {
        match text {
            "nowhere.mp4" => Err(Failure::new(Code::SourceUnreadable, "it is not there")),
            _ if text.contains("://") => Ok(Url::parse(text).expect("a URL")),
            _ => Ok(Url::parse(&format!("file:///here/{text}")).expect("a URL")),
        }
    }

    #[test]
    fn paths_become_urls_and_urls_stay_as_they_are() {
        let text = r#"[{"keep": {"from": 1.5, "to": 20}}, {"remove": [{"from": 3, "to": 4}]}, {"before": {"url": "intro.mp4"}},
            {"overlay": {"source": {"url": "mark.png"}, "height": 0.1}}, {"sound": {"url": "s3://b/s", "headers": {"a": "b"}}}]"#;
        let read = steps(text, located).expect("steps");
        let urls: Vec<&str> = read.iter().filter_map(EditStep::source).map(|source| source.url.as_str()).collect();
        assert_eq!((read.len(), urls), (5, vec!["file:///here/intro.mp4", "file:///here/mark.png", "s3://b/s"]));
        assert_eq!(steps("[]", located), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_step_is_refused_by_its_number_in_one_line() {
        for (text, code, said) in [
            ("intro.mp4", Code::InvalidRequest, "--edit: not a list of steps"),
            (r#"{"keep": {}}"#, Code::InvalidRequest, "--edit: not a list of steps"),
            (r#"[{"keep": {}}, {"blur": {}}]"#, Code::InvalidRequest, "--edit: step 2: unknown variant `blur`"),
            (r#"[{"before": {"url": 7}}]"#, Code::InvalidRequest, "--edit: step 1: invalid type"),
            (r#"["before"]"#, Code::InvalidRequest, "--edit: step 1: "),
            (r#"[{"keep": {"from": -1}}]"#, Code::InvalidRequest, "-1 s is not from 0"),
            (r#"[{"after": {"url": "nowhere.mp4"}}]"#, Code::SourceUnreadable, "it is not there"),
        ] {
            let failure = steps(text, located).expect_err("refused");
            assert_eq!(failure.code, code, "{text}");
            assert!(failure.message.contains(said) && !failure.message.contains('\n'), "'{said}' in '{}'", failure.message);
        }
    }
}
