//! Studio jobs: what is to be cut out of a video, joined to it and laid over it, read from a payload.

use std::collections::BTreeMap;

use farm::edit::{self, EditStep, OverlaySpec, STEPS_MAX, Seconds, Share, Stretch};
use farm::job::SourceSpec;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::film::SOURCE_BYTES_MAX;
use super::order::part;

/// Largest watermark, in bytes.
const WATERMARK_BYTES_MAX: u64 = 32 << 20;

/// A task of a studio job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// One that needs nothing but the video.
    Plain(EditStep),
    /// One that needs a file.
    With {
        /// Where the instance has it.
        file: Url,
        /// What it is for.
        role: Role,
    },
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is shown before.
    Intro,
    /// It is shown after.
    Outro,
    /// It is laid over.
    Watermark {
        /// Its height, as a share of the video's.
        height: Share,
        /// Distance to the right edge, as a share of the video's height.
        right: Share,
        /// Distance to the upper edge, as a share of the video's height.
        top: Share,
    },
}

impl Role {
    /// The step that it is, with its file here.
    pub(super) fn step(self, source: SourceSpec) -> EditStep {
        match self {
            Self::Intro => EditStep::Before(source),
            Self::Outro => EditStep::After(source),
            Self::Watermark { height, right, top } => EditStep::Overlay(OverlaySpec { source, height, right, top }),
        }
    }

    /// How large its file may be, in bytes.
    pub(super) fn bytes_max(self) -> u64 {
        match self {
            Self::Intro | Self::Outro => SOURCE_BYTES_MAX,
            Self::Watermark { .. } => WATERMARK_BYTES_MAX,
        }
    }
}

#[derive(Deserialize)]
struct Payload {
    tasks: Vec<Asked>,
}

/// Most characters that are shown of what should have been a number.
const SHOWN_CHARS_MAX: usize = 40;

/// A number, if one is given. Servers hand on what was typed in: it may come as text, and as text without anything in it.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(try_from = "Option<Given>")]
struct Number(Option<f64>);

/// How a number stands in a payload.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a number or a text with one was expected")]
enum Given {
    Number(f64),
    Text(String),
}

impl TryFrom<Option<Given>> for Number {
    type Error = String;

    fn try_from(given: Option<Given>) -> Result<Self, String> {
        let text = match given {
            None => return Ok(Self(None)),
            Some(Given::Number(number)) => return Ok(Self(Some(number))),
            Some(Given::Text(text)) => text,
        };
        match text.trim() {
            "" => Ok(Self(None)),
            text => match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Self(Some(number))),
                _ => Err(format!("'{}' is no number", text.chars().take(SHOWN_CHARS_MAX).collect::<String>().escape_debug())),
            },
        }
    }
}

/// A task as it stands in a payload. Times are in seconds.
#[derive(Deserialize)]
#[serde(tag = "name", content = "options", rename_all = "kebab-case")]
enum Asked {
    Cut {
        #[serde(default)]
        start: Number,
        #[serde(default)]
        end: Number,
    },
    AddIntro {
        file: Url,
    },
    AddOutro {
        file: Url,
    },
    AddWatermark {
        file: Url,
        #[serde(default, rename = "watermarkSizeRatio")]
        height: Number,
        #[serde(default, rename = "horizontalMarginRatio")]
        right: Number,
        // As PeerTube before 8 spells it.
        #[serde(default, rename = "horitonzalMarginRatio")]
        right_before: Number,
        #[serde(default, rename = "verticalMarginRatio")]
        top: Number,
    },
    RemoveSegments {
        segments: Vec<Segment>,
    },
}

#[derive(Deserialize)]
struct Segment {
    #[serde(default)]
    start: Number,
    #[serde(default)]
    end: Number,
}

/// The tasks of a payload, in order.
///
/// # Errors
/// What is not as it should be, in a sentence.
pub(super) fn read(payload: &Value) -> Result<Vec<Task>, String> {
    let Payload { tasks } = part(payload)?;
    if tasks.is_empty() || tasks.len() > STEPS_MAX {
        return Err(format!("payload: {} tasks, 1 to {STEPS_MAX} can be done", tasks.len()));
    }
    let tasks: Vec<Task> =
        tasks.into_iter().map(Asked::read).collect::<Result<_, _>>().map_err(|why| format!("payload: {why}"))?;
    let step = |task: &Task| match task {
        Task::Plain(step) => step.clone(),
        Task::With { file, role } => role.step(at(file.clone())),
    };
    // Before any file is fetched for them.
    edit::check(&tasks.iter().map(step).collect::<Vec<_>>()).map_err(|failure| failure.message)?;
    Ok(tasks)
}

impl Asked {
    fn read(self) -> Result<Task, String> {
        Ok(match self {
            Self::Cut { start, end } => Task::Plain(EditStep::Keep(stretch(start, end)?)),
            Self::RemoveSegments { segments } => {
                let stretches = segments.into_iter().map(|segment| stretch(segment.start, segment.end));
                Task::Plain(EditStep::Remove(stretches.collect::<Result<_, _>>()?))
            }
            Self::AddIntro { file } => Task::With { file, role: Role::Intro },
            Self::AddOutro { file } => Task::With { file, role: Role::Outro },
            Self::AddWatermark { file, height, right, right_before, top } => {
                let share = |number: Option<f64>, name: &str| -> Result<Share, String> {
                    Share::try_from(number.ok_or_else(|| format!("a watermark without {name}"))?)
                };
                let height = share(height.0, "watermarkSizeRatio")?;
                let right = share(right.0.or(right_before.0), "horizontalMarginRatio")?;
                let top = share(top.0, "verticalMarginRatio")?;
                Task::With { file, role: Role::Watermark { height, right, top } }
            }
        })
    }
}

fn stretch(start: Number, end: Number) -> Result<Stretch, String> {
    let from = Seconds::try_from(start.0.unwrap_or(0.0))?;
    Ok(Stretch { from, to: end.0.map(Seconds::try_from).transpose()? })
}

/// What is at a URL that needs no headers.
pub(super) fn at(url: Url) -> SourceSpec {
    SourceSpec { url, headers: BTreeMap::new() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tasks(tasks: &Value) -> Result<Vec<Task>, String> {
        read(&json!({ "tasks": tasks }))
    }

    #[test]
    fn tasks_of_every_version_become_steps() {
        let file: Url =
            "https://tube.example/api/v1/runners/jobs/j/files/videos/v/studio/task-files/a.png".parse().expect("a URL");
        let watermark = |key: &str| {
            let mut options = json!({"file": file, "watermarkSizeRatio": 0.1, "verticalMarginRatio": 0});
            options[key] = json!(0.02);
            json!([{"name": "add-watermark", "options": options}])
        };
        let share = |share: f64| Share::try_from(share).expect("a share");
        let role = Role::Watermark { height: share(0.1), right: share(0.02), top: share(0.0) };
        for key in ["horizontalMarginRatio", "horitonzalMarginRatio"] {
            assert_eq!(tasks(&watermark(key)), Ok(vec![Task::With { file: file.clone(), role }]), "{key}");
        }
        let seconds = |seconds: f64| Seconds::try_from(seconds).expect("a time");
        let keep = |from, to: Option<f64>| Task::Plain(EditStep::Keep(Stretch { from: seconds(from), to: to.map(seconds) }));
        for (options, expected) in [
            (json!({}), keep(0.0, None)),
            (json!({"start": 2}), keep(2.0, None)),
            (json!({"start": null, "end": 3.5}), keep(0.0, Some(3.5))),
            (json!({"start": "1", "end": "4"}), keep(1.0, Some(4.0))),
            (json!({"start": " 1.5 ", "end": ""}), keep(1.5, None)),
            (json!({"start": " ", "end": null}), keep(0.0, None)),
        ] {
            assert_eq!(tasks(&json!([{"name": "cut", "options": options}])), Ok(vec![expected]));
        }
        let rest = json!([{"name": "add-intro", "options": {"file": file}}, {"options": {"file": file}, "name": "add-outro"},
                          {"name": "remove-segments", "options": {"segments": [{"start": 1, "end": 2}, {"start": 5.5, "end": 6}]}}]);
        let stretches = [(1.0, 2.0), (5.5, 6.0)].map(|(from, to)| Stretch { from: seconds(from), to: Some(seconds(to)) });
        let expected = [
            Task::With { file: file.clone(), role: Role::Intro },
            Task::With { file: file.clone(), role: Role::Outro },
            Task::Plain(EditStep::Remove(stretches.to_vec())),
        ];
        assert_eq!(tasks(&rest), Ok(expected.to_vec()));
        // As they were typed in.
        let text = json!([{"options": {"segments": [{"start": "1", "end": "2"}, {"start": "5.5", "end": 6}]}, "name": "remove-segments"}]);
        assert_eq!(tasks(&text), Ok(vec![Task::Plain(EditStep::Remove(stretches.to_vec()))]));
        let text =
            json!({"file": file, "watermarkSizeRatio": "0.1", "horitonzalMarginRatio": "0.02", "verticalMarginRatio": "0"});
        let watermark = Task::With { file, role };
        assert_eq!(tasks(&json!([{"name": "add-watermark", "options": text}])), Ok(vec![watermark]));
    }

    #[test]
    fn what_is_no_edit_is_refused_with_the_reason() {
        let cut = json!({"name": "cut", "options": {"start": 1}});
        for (given, said) in [
            (json!([]), "0 tasks"),
            (json!(vec![cut; STEPS_MAX + 1]), "33 tasks"),
            (json!([{"name": "blur", "options": {}}]), "unknown variant `blur`"),
            (json!([{"name": "cut", "options": {"start": 3, "end": 3}}]), "step 1: from 3 to 3 there is nothing"),
            (json!([{"name": "cut", "options": {"start": -1}}]), "-1 s is not from 0"),
            (json!([{"name": "cut", "options": {"start": "1:30"}}]), "'1:30' is no number"),
            (json!([{"name": "cut", "options": {"end": "inf"}}]), "'inf' is no number"),
            (json!([{"name": "cut", "options": {"end": true}}]), "a number or a text with one was expected"),
            (json!([{"name": "add-intro", "options": {"file": "no URL"}}]), "relative URL"),
            (json!([{"name": "remove-segments", "options": {"segments": []}}]), "0 stretches"),
            (
                json!([{"name": "add-watermark", "options": {"file": "https://a/w", "watermarkSizeRatio": 0.1, "verticalMarginRatio": 0}}]),
                "without horizontalMarginRatio",
            ),
            (
                json!([{"name": "add-watermark", "options": {"file": "https://a/w", "watermarkSizeRatio": "", "verticalMarginRatio": 0}}]),
                "without watermarkSizeRatio",
            ),
            (
                json!([{"name": "add-watermark", "options": {"file": "https://a/w", "watermarkSizeRatio": 2,
                        "horizontalMarginRatio": 0, "verticalMarginRatio": 0}}]),
                "2 is not from 0 to 1",
            ),
        ] {
            let refused = tasks(&given).expect_err("refused");
            assert!(refused.contains(said), "'{said}' in '{refused}'");
        }
    }
}
