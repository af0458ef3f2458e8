//! What the tests of this crate share: sources and jobs as data.

use farm::Rate;
use farm::job::JobSpec;
use farm::media::{AudioTrack, Colour, Interlace, MediaInfo, Orientation, Timing, TrackId, VideoTrack};
use farm::rate::SECOND_NS;

/// A frame rate that is known to be one.
pub fn rate(text: &str) -> Rate {
    text.parse().expect("a frame rate")
}

/// A job with every setting at its default.
pub fn spec() -> JobSpec {
    let url = |text: &str| text.parse().expect("a URL");
    JobSpec::new(url("file:///source.mkv"), url("file:///out/"))
}

/// A picture track from 0 on.
pub fn picture(width: u32, height: u32, fps: &str, seconds: u64) -> VideoTrack {
    let rate = rate(fps);
    let end_ns = seconds * SECOND_NS;
    VideoTrack {
        track: TrackId(0),
        codec: "H.264".to_owned(),
        width,
        height,
        pixel_aspect: (1, 1),
        orientation: Orientation::default(),
        format: "I420".to_owned(),
        colour: Colour::BT709,
        interlace: Interlace::Progressive,
        timing: Timing { rate, start_ns: 0, end_ns, frames: rate.nearest_frame(end_ns), constant: true },
        bitrate: 0,
        key_frames_ns: vec![0],
        language: None,
    }
}

/// A sound track from 0 on.
pub fn sound(number: u32, hertz: u32, seconds: u64) -> AudioTrack {
    AudioTrack {
        track: TrackId(number),
        codec: "MPEG-4 AAC".to_owned(),
        rate: hertz,
        channels: 2,
        start_ns: 0,
        end_ns: seconds * SECOND_NS,
        bitrate: 0,
        language: None,
        title: None,
    }
}

/// A source of these tracks.
pub fn source(video: Vec<VideoTrack>, audio: Vec<AudioTrack>) -> MediaInfo {
    let ends = video.iter().map(|track| track.timing.end_ns).chain(audio.iter().map(|track| track.end_ns));
    let duration_ns = ends.max().unwrap_or(0);
    MediaInfo {
        bytes: 1_000_000,
        container: "video/x-matroska".to_owned(),
        duration_ns,
        header_duration_ns: None,
        video,
        audio,
        dropped: Vec::new(),
        chapters: Vec::new(),
        warnings: Vec::new(),
    }
}
