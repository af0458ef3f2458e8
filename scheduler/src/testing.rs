//! What the tests of this crate share: sources, jobs and what workers leave behind, as data.

use std::collections::BTreeMap;

use farm::job::{JobSpec, Layout};
use farm::media::{AudioTrack, Colour, Interlace, MediaInfo, Orientation, Timing, TrackId, VideoTrack};
use farm::plan::{Plan, RenditionId};
use farm::rate::SECOND_NS;
use farm::stills::Stills;
use farm::task::{Account, Cost, Encoded, KeyFrame, Marker, Object, Outcome, Segment, TaskId, Token};
use farm::text::{TextAccount, TextTrackPlan, Texts};
use farm::{Rate, keys};

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
        h264: None,
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
        aac: None,
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
        version: None,
        container: "video/x-matroska".to_owned(),
        duration_ns,
        header_duration_ns: None,
        video,
        audio,
        text: Vec::new(),
        dropped: Vec::new(),
        chapters: Vec::new(),
        warnings: Vec::new(),
    }
}

/// What a perfect execution of a task makes: sizes are made up, but never twice the same in a row.
pub fn marker(plan: &Plan, info: &MediaInfo, task: &TaskId, token: &Token, markers: &BTreeMap<TaskId, Marker>) -> Marker {
    let outcome = match task {
        TaskId::Probe | TaskId::ProbeOther(_) => Outcome::Probed { info: Box::new(info.clone()) },
        TaskId::Video(number) | TaskId::First(number) => {
            let video = plan.passes().find(|pass| pass.task(*number) == *task).expect("a picture").video;
            let chunk = &video.chunks[*number as usize];
            let first = chunk.start / u64::from(video.segment_frames);
            let renditions = video.rungs.iter().map(|rung| {
                let divisor = rung.divisor.get();
                let rate = video.rate.divided_by(divisor).expect("a rate");
                let segments = video.segments(chunk).into_iter();
                let samples = segments.map(|frames| (frames.end - frames.start).div_ceil(divisor.into()));
                let gop_frames = u64::from(video.gop_frames / divisor);
                let segments = samples.zip(first..).map(|(samples, number)| {
                    let ticks = u64::from(rate.frame_ticks());
                    let gops = samples.div_ceil(gop_frames);
                    let key_frame = |gop| KeyFrame { ticks: gop * gop_frames * ticks, offset: 24 + 500 * gop, bytes: 300 + gop };
                    Segment {
                        ticks: samples * ticks,
                        samples: samples.try_into().expect("a number of frames"),
                        bytes: 500 * gops + 10 * u64::from(rung.height) + number % 7,
                        key_frames: (0..gops).map(key_frame).collect(),
                    }
                });
                encoded(plan.layout, &rung.id, "avc1.640028", rate.timescale(), first, segments.collect(), token)
            });
            let account = Account { kept: chunk.end - chunk.start, ..Account::default() };
            Outcome::Encoded { renditions: renditions.collect(), account }
        }
        TaskId::Audio(index) => {
            let audio = &plan.audio[*index as usize];
            // One more than the samples fill: the decoder warms up on the first.
            let mut packets = audio.samples.div_ceil(1024) + 1;
            let most = audio.segment_ns * u64::from(audio.rate) / SECOND_NS / 1024;
            let mut segments = Vec::new();
            while packets > 0 {
                let samples = packets.min(most);
                packets -= samples;
                segments.push(Segment {
                    ticks: samples * 1024,
                    samples: samples.try_into().expect("packets"),
                    bytes: samples * 300,
                    key_frames: Vec::new(),
                });
            }
            let account = Account { kept: audio.samples, ..Account::default() };
            let renditions = vec![encoded(plan.layout, &audio.id, "mp4a.40.2", audio.rate, 0, segments, token)];
            Outcome::Encoded { renditions, account }
        }
        TaskId::Stills => {
            let plan = plan.stills.as_ref().expect("still pictures");
            let poster = plan.poster.as_ref().map(|poster| (object(keys::poster(token), 1000), poster.candidates_ns[0]));
            let tiles = plan.storyboard.as_ref().map(|board| board.tiles.clone()).unwrap_or_default();
            let sheets = plan.storyboard.as_ref().map_or(0, |board| tiles.len().div_ceil(board.sheet_tiles()));
            let sheets = (0..sheets).map(|number| object(keys::sheet(token, number), 2000)).collect();
            Outcome::Pictured { stills: Stills { poster, sheets, tiles } }
        }
        TaskId::Text => {
            let plan = plan.text.as_ref().expect("text");
            let made = |track: &TextTrackPlan| {
                let segments =
                    (1..=plan.segments().len()).map(|number| object(keys::text_segment(&track.id, token, number), 100));
                Texts {
                    rendition: track.id.clone(),
                    segments: segments.collect(),
                    account: TextAccount { cues: 3, plainer: 1, cut: 0 },
                }
            };
            Outcome::Texted { renditions: plan.tracks.iter().map(made).collect() }
        }
        TaskId::Mp4(id) => Outcome::Packed { object: object(keys::download(id, token), 5000) },
        TaskId::Pack(id) => {
            let mut bytes = 0;
            for made in parts(markers, id) {
                bytes += if bytes == 0 { made.init.bytes } else { 0 };
                bytes += made.segments.iter().map(|segment| segment.bytes).sum::<u64>();
            }
            Outcome::Packed { object: object(keys::whole(id, token), bytes) }
        }
    };
    Marker {
        task: task.clone(),
        token: token.clone(),
        outcome,
        cost: Cost { cpu_ms: 100, wall_ms: 60, rss_kib: 1000 },
        device: None,
        attempt: Some(1),
        worker: None,
    }
}

/// What the tasks of a rendition made of it, in order.
fn parts<'a>(markers: &'a BTreeMap<TaskId, Marker>, id: &'a RenditionId) -> impl Iterator<Item = &'a Encoded> {
    let made = markers.values().filter_map(|marker| match &marker.outcome {
        Outcome::Encoded { renditions, .. } => Some(renditions),
        Outcome::Probed { .. } | Outcome::Pictured { .. } | Outcome::Texted { .. } | Outcome::Packed { .. } => None,
    });
    made.flatten().filter(move |made| made.rendition == *id)
}

fn encoded(
    layout: Layout,
    id: &RenditionId,
    codecs: &str,
    timescale: u32,
    first: u64,
    segments: Vec<Segment>,
    token: &Token,
) -> Encoded {
    let objects = match layout {
        Layout::Segments | Layout::Both => segments
            .iter()
            .zip(first..)
            .map(|(segment, number)| object(keys::segment(id, token, number), segment.bytes))
            .collect(),
        Layout::SingleFile => vec![object(keys::part(id, token, 0), segments.iter().map(|segment| segment.bytes).sum())],
    };
    let init = Object { sha256: format!("init of {id}"), ..object(keys::init(id, token), 700) };
    Encoded { rendition: id.clone(), codecs: codecs.to_owned(), timescale, init, objects, segments, samples: None }
}

fn object(key: String, bytes: u64) -> Object {
    Object { sha256: format!("content of {key}"), key, bytes }
}

/// Markers of every task of a plan.
pub fn markers(plan: &Plan, info: &MediaInfo) -> BTreeMap<TaskId, Marker> {
    let mut markers = BTreeMap::new();
    for task in [TaskId::Probe].into_iter().chain(TaskId::encodes_of(plan)).chain(TaskId::joins_of(plan)) {
        let made = marker(plan, info, &task, &Token::random(), &markers);
        markers.insert(task, made);
    }
    markers
}
