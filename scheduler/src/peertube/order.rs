//! What an instance asks for, read from a runner job's payload.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use super::settings::Work;
use super::studio::{self, Task};

/// The types of runner jobs that are done here, by their names in the protocol, and which kind of work each is.
pub(super) const JOB_TYPES: [(&str, Work); 5] =
    [(WEB_VIDEO, Work::Vod), (HLS, Work::Vod), (MERGE, Work::Vod), (STUDIO, Work::Studio), (STORYBOARD, Work::Storyboard)];

const WEB_VIDEO: &str = "vod-web-video-transcoding";
const HLS: &str = "vod-hls-transcoding";
/// The type that gives a sound a picture.
const MERGE: &str = "vod-audio-merge-transcoding";
const STUDIO: &str = "video-studio-transcoding";
const STORYBOARD: &str = "generate-video-storyboard";

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// The video, by the instance's name for it.
    pub(super) video: String,
    /// Where the picture is, and what sound there is with it.
    pub(super) input: Url,
    /// Where the sound is, when it stands apart.
    pub(super) sound: Option<Url>,
    /// Where the picture is that is to be seen with the sound that the input is.
    pub(super) picture: Option<Url>,
    /// What is to be made of it.
    pub(super) wanted: Wanted,
}

/// What is to be made of a video.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The video itself.
    Film {
        /// Which picture; none for sound alone.
        rung: Option<Size>,
        /// In what form.
        form: Form,
    },
    /// An edited video, which takes its place: what is done to it, one after the other.
    Studio(Vec<Task>),
    /// A sheet of small pictures.
    Storyboard(Sheet),
}

impl Wanted {
    /// As it is counted.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Film { form: Form::WebVideo, .. } => "web_video",
            Self::Film { form: Form::Together | Form::Apart, .. } => "hls",
            Self::Studio(_) => "studio",
            Self::Storyboard(_) => "storyboard",
        }
    }
}

/// A sheet of small pictures: one for each so many seconds, each row from left to right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sheet {
    /// Pictures beside each other.
    pub(super) columns: u32,
    /// Rows of pictures.
    pub(super) rows: u32,
    /// Width of each in pixels.
    pub(super) width: u32,
    /// Height of each in pixels.
    pub(super) height: u32,
    /// Time between two, in seconds.
    pub(super) seconds: u32,
}

impl Sheet {
    /// Refuses what the farm does not make.
    fn check(self) -> Result<Self, String> {
        for (what, value, least, most) in [
            ("count", self.columns, 1, 64),
            ("count", self.rows, 1, 64),
            ("size", self.width, 1, 720),
            ("size", self.height, 1, 720),
            ("duration", self.seconds, 1, 3600),
        ] {
            if !(least..=most).contains(&value) {
                return Err(format!("payload: sprites: a {what} of {value} is not from {least} to {most}"));
            }
        }
        Ok(self)
    }
}

/// The picture that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Short edge in pixels.
    pub(super) short: u32,
    /// Frames per second.
    pub(super) fps: u32,
}

/// The form of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A plain MP4.
    WebVideo,
    /// A fragmented MP4 of picture and sound, and its playlist.
    Together,
    /// A fragmented MP4 of picture alone, or of sound alone, and its playlist.
    Apart,
}

#[derive(Deserialize)]
struct Incoming {
    input: Input,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Input {
    #[serde(alias = "audioFileUrl")]
    video_file_url: Url,
    preview_file_url: Option<Url>,
    // Absent before PeerTube 6.3.
    #[serde(default)]
    separated_audio_file_url: Vec<Url>,
}

#[derive(Deserialize)]
struct Outgoing {
    output: Output,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Output {
    resolution: u32,
    fps: u32,
    // Absent before PeerTube 6.3.
    #[serde(default)]
    separated_audio: bool,
}

#[derive(Deserialize)]
struct Storyboard {
    sprites: Sprites,
}

#[derive(Deserialize)]
struct Sprites {
    size: Sides,
    count: Sides,
    /// Seconds.
    duration: u32,
}

#[derive(Deserialize)]
struct Sides {
    width: u32,
    height: u32,
}

/// A part of a payload.
pub(super) fn part<T: DeserializeOwned>(payload: &Value) -> Result<T, String> {
    T::deserialize(payload).map_err(|error| format!("payload: {error}"))
}

/// Whether a name from outside can stand in keys and paths.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

impl Order {
    /// Reads a payload.
    ///
    /// # Errors
    /// What is not as it should be, in a sentence.
    pub(super) fn read(kind: &str, payload: &Value) -> Result<Self, String> {
        let Incoming { input } = part(payload)?;
        let wanted = match kind {
            WEB_VIDEO | HLS | MERGE => {
                let Outgoing { output } = part(payload)?;
                let form = match (kind, output.separated_audio) {
                    (HLS, true) => Form::Apart,
                    (HLS, false) => Form::Together,
                    _ => Form::WebVideo,
                };
                let rung = (output.resolution > 0).then_some(Size { short: output.resolution, fps: output.fps });
                Wanted::Film { rung, form }
            }
            STUDIO => Wanted::Studio(studio::read(payload)?),
            STORYBOARD => {
                let Storyboard { sprites: Sprites { size, count, duration } } = part(payload)?;
                let (columns, rows) = (count.width, count.height);
                Wanted::Storyboard(Sheet { columns, rows, width: size.width, height: size.height, seconds: duration }.check()?)
            }
            other => return Err(format!("type: '{other}' is not done here")),
        };
        let path: Vec<&str> = input.video_file_url.path_segments().map(Iterator::collect).unwrap_or_default();
        let video = path.iter().skip_while(|part| **part != "videos").nth(1);
        let video = video.filter(|name| is_name(name)).ok_or("payload: the input's URL names no video")?.to_string();
        let picture = input.preview_file_url.filter(|_| kind == MERGE);
        if kind == MERGE && picture.is_none() {
            return Err("payload: there is no previewFileUrl".to_owned());
        }
        // The input of an order for the sound alone may be that very file.
        let sound = input.separated_audio_file_url.into_iter().next().filter(|sound| *sound != input.video_file_url);
        Ok(Self { video, input: input.video_file_url, sound, picture, wanted })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const INPUT: &str =
        "https://tube.example/api/v1/runners/jobs/j/files/videos/9c9de5e8-0a1e-484a-b099-e80766180a6d/max-quality";

    #[test]
    fn payloads_of_every_version_are_read() {
        let video = "9c9de5e8-0a1e-484a-b099-e80766180a6d".to_owned();
        let input: Url = INPUT.parse().expect("a URL");
        let film = |short: u32, form| {
            let rung = (short > 0).then_some(Size { short, fps: 25 });
            Wanted::Film { rung, form }
        };
        let old = json!({"input": {"videoFileUrl": INPUT}, "output": {"resolution": 720, "fps": 25}});
        let order = Order { video, input, sound: None, picture: None, wanted: film(720, Form::WebVideo) };
        assert_eq!(Order::read(WEB_VIDEO, &old), Ok(order.clone()));
        assert_eq!(Order::read(HLS, &old), Ok(Order { wanted: film(720, Form::Together), ..order.clone() }));
        let new = json!({"input": {"videoFileUrl": INPUT, "separatedAudioFileUrl": [format!("{INPUT}/audio")]},
                         "output": {"resolution": 0, "fps": 0, "separatedAudio": true, "later": 1}});
        let preview = "https://tube.example/api/v1/runners/jobs/j/files/videos/9c9de5e8/previews/max-quality";
        let merge =
            json!({"input": {"audioFileUrl": INPUT, "previewFileUrl": preview}, "output": {"resolution": 720, "fps": 25}});
        assert_eq!(Order::read(MERGE, &merge), Ok(Order { picture: preview.parse().ok(), ..order.clone() }));
        let sound: Option<Url> = format!("{INPUT}/audio").parse().ok();
        let apart = Order { wanted: film(0, Form::Apart), sound: sound.clone(), ..order.clone() };
        assert_eq!(Order::read(HLS, &new), Ok(apart));
        let sprites = json!({"size": {"width": 192, "height": 108}, "count": {"width": 5, "height": 2}, "duration": 3});
        let board = json!({"input": {"videoFileUrl": INPUT}, "output": {}, "sprites": sprites});
        let sheet = Sheet { columns: 5, rows: 2, width: 192, height: 108, seconds: 3 };
        let storyboard = |sheet| Order { wanted: Wanted::Storyboard(sheet), ..order.clone() };
        assert_eq!(Order::read(STORYBOARD, &board), Ok(storyboard(sheet)));
        // Of a video that is 24 times as wide as it is high.
        let mut wide = board;
        wide["sprites"]["size"]["height"] = json!(8);
        assert_eq!(Order::read(STORYBOARD, &wide), Ok(storyboard(Sheet { height: 8, ..sheet })));
        let cut = json!({"input": new["input"], "output": {}, "tasks": [{"name": "cut", "options": {"end": 3}}]});
        let studio = Order::read(STUDIO, &cut).expect("an order");
        assert!(matches!(&studio.wanted, Wanted::Studio(tasks) if tasks.len() == 1), "{studio:?}");
        assert_eq!((studio.sound, studio.wanted.word()), (sound, "studio"));
    }

    #[test]
    fn what_is_no_order_is_refused_with_the_reason() {
        let named = |url: &str| json!({"input": {"videoFileUrl": url}, "output": {"resolution": 720, "fps": 25}});
        let sprites = |width: u32, columns: u32, seconds: u32| {
            let (size, count) = (json!({"width": width, "height": 108}), json!({"width": columns, "height": 2}));
            json!({"input": {"videoFileUrl": INPUT}, "sprites": {"size": size, "count": count, "duration": seconds}})
        };
        for (kind, payload, said) in [
            (HLS, json!({"input": {}}), "videoFileUrl"),
            (HLS, named("no URL"), "relative URL"),
            (MERGE, named(INPUT), "previewFileUrl"),
            (HLS, named("https://tube.example/files/videos/"), "names no video"),
            (HLS, named("https://tube.example/files/videos/..%2f/x"), "names no video"),
            ("video-transcription", named(INPUT), "'video-transcription' is not done here"),
            (STUDIO, named(INPUT), "tasks"),
            (STORYBOARD, named(INPUT), "sprites"),
            (STORYBOARD, sprites(0, 5, 1), "a size of 0 is not from 1 to 720"),
            (STORYBOARD, sprites(192, 65, 1), "a count of 65 is not from 1 to 64"),
            (STORYBOARD, sprites(192, 5, 0), "a duration of 0 is not from 1 to 3600"),
        ] {
            let refused = Order::read(kind, &payload).expect_err("refused");
            assert!(refused.contains(said), "'{said}' in '{refused}'");
        }
    }
}
