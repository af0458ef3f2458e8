//! What an instance asks for, read from a runner job's payload.

use serde::Deserialize;
use serde_json::Value;
use url::Url;

/// The types of runner jobs that are done here, by their names in the protocol.
pub(super) const JOB_TYPES: [&str; 3] = ["vod-web-video-transcoding", "vod-hls-transcoding", MERGE];

/// The type that gives a sound a picture.
const MERGE: &str = "vod-audio-merge-transcoding";

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
    /// Short edge of the picture in pixels; none for sound alone.
    pub(super) rung: Option<Size>,
    /// In what form.
    pub(super) form: Form,
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

impl Form {
    /// As it is counted.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::WebVideo => "web_video",
            Self::Together | Self::Apart => "hls",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    input: Input,
    output: Output,
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
#[serde(rename_all = "camelCase")]
struct Output {
    resolution: u32,
    fps: u32,
    // Absent before PeerTube 6.3.
    #[serde(default)]
    separated_audio: bool,
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
        let Payload { input, output } = Payload::deserialize(payload).map_err(|error| format!("payload: {error}"))?;
        let form = match (kind, output.separated_audio) {
            ("vod-web-video-transcoding" | MERGE, _) => Form::WebVideo,
            ("vod-hls-transcoding", true) => Form::Apart,
            ("vod-hls-transcoding", false) => Form::Together,
            (other, _) => return Err(format!("type: '{other}' is not done here")),
        };
        let path: Vec<&str> = input.video_file_url.path_segments().map(Iterator::collect).unwrap_or_default();
        let video = path.iter().skip_while(|part| **part != "videos").nth(1);
        let video = video.filter(|name| is_name(name)).ok_or("payload: the input's URL names no video")?.to_string();
        let rung = (output.resolution > 0).then_some(Size { short: output.resolution, fps: output.fps });
        let picture = input.preview_file_url.filter(|_| kind == MERGE);
        if kind == MERGE && picture.is_none() {
            return Err("payload: there is no previewFileUrl".to_owned());
        }
        let sound = input.separated_audio_file_url.into_iter().next();
        Ok(Self { video, input: input.video_file_url, sound, picture, rung, form })
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
        let rung = Some(Size { short: 720, fps: 25 });
        let old = json!({"input": {"videoFileUrl": INPUT}, "output": {"resolution": 720, "fps": 25}});
        let order = Order { video, input, sound: None, picture: None, rung, form: Form::WebVideo };
        assert_eq!(Order::read("vod-web-video-transcoding", &old), Ok(order.clone()));
        assert_eq!(Order::read("vod-hls-transcoding", &old), Ok(Order { form: Form::Together, ..order.clone() }));
        let new = json!({"input": {"videoFileUrl": INPUT, "separatedAudioFileUrl": [format!("{INPUT}/audio")]},
                         "output": {"resolution": 0, "fps": 0, "separatedAudio": true, "later": 1}});
        let preview = "https://tube.example/api/v1/runners/jobs/j/files/videos/9c9de5e8/previews/max-quality";
        let merge =
            json!({"input": {"audioFileUrl": INPUT, "previewFileUrl": preview}, "output": {"resolution": 720, "fps": 25}});
        assert_eq!(Order::read(MERGE, &merge), Ok(Order { picture: preview.parse().ok(), ..order.clone() }));
        let sound = format!("{INPUT}/audio").parse().ok();
        assert_eq!(Order::read("vod-hls-transcoding", &new), Ok(Order { form: Form::Apart, rung: None, sound, ..order }));
    }

    #[test]
    fn what_is_no_order_is_refused_with_the_reason() {
        let named = |url: &str| json!({"input": {"videoFileUrl": url}, "output": {"resolution": 720, "fps": 25}});
        for (kind, payload, said) in [
            ("vod-hls-transcoding", json!({"input": {}}), "videoFileUrl"),
            ("vod-hls-transcoding", named("no URL"), "relative URL"),
            (MERGE, named(INPUT), "previewFileUrl"),
            ("vod-hls-transcoding", named("https://tube.example/files/videos/"), "names no video"),
            ("vod-hls-transcoding", named("https://tube.example/files/videos/..%2f/x"), "names no video"),
            ("video-transcription", named(INPUT), "'video-transcription' is not done here"),
        ] {
            let refused = Order::read(kind, &payload).expect_err("refused");
            assert!(refused.contains(said), "'{said}' in '{refused}'");
        }
    }
}
