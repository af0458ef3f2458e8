//! `report.json`: what was made, of what, by which settings, and at what cost.

use std::collections::BTreeMap;

use farm::edit::EditPlan;
use farm::job::{JobSpec, Layout, shown_url};
use farm::media::{Chapter, DroppedTrack, MediaInfo};
use farm::plan::{Plan, RateControl, RenditionId};
use farm::stills::{Showing, Stills, StillsPlan};
use farm::task::{Account, Cost, TaskId};
use farm::text::TextAccount;
use farm::{Class, Rate, keys};
use serde::{Deserialize, Serialize};

use crate::damage::{self, Accounts};
use crate::playlist::Bandwidth;
use crate::seal::{Fallback, Medium, Rendition, Seal, TextRendition};

/// Version of the report's form.
pub const VERSION: u32 = 1;

/// What was made, of what, and at what cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this form: always 1.
    pub version: u32,
    /// What it was made of.
    pub source: SourceReport,
    /// How long the result lasts in ns.
    pub duration_ns: u64,
    /// How media bytes are laid out.
    pub layout: Layout,
    /// What the source's edits came to, if there were some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<EditPlan>,
    /// How the picture's work was cut up, if there is one.
    pub grid: Option<GridReport>,
    /// Everything that was made.
    pub renditions: Vec<RenditionReport>,
    /// The still pictures, if some were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stills: Option<StillsReport>,
    /// Renditions of text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<TextReport>,
    /// What became of the source's frames.
    pub frames: Option<Account>,
    /// What became of the samples, by rendition of sound.
    pub samples: Vec<SamplesReport>,
    /// What it cost.
    pub cost: CostReport,
    /// The devices that encoded something of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceReport>,
    /// What was made on the processor because a device failed at it, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<Fallback>,
    /// What was decided that a viewer may wonder about.
    pub notes: Vec<String>,
    /// What a viewer of the result should know.
    pub warnings: Vec<String>,
    /// Streams that are not used, and why.
    pub dropped: Vec<DroppedTrack>,
    /// Chapters, by the result's time in ns.
    pub chapters: Vec<Chapter>,
}

impl Report {
    /// Whether it is of still pictures alone: there is no playlist that would say that the result is whole.
    pub fn is_of_stills_alone(&self) -> bool {
        self.renditions.is_empty()
    }

    /// Whether it is of these still pictures, and of nothing else: their keys hold the names of executions.
    pub fn is_of(&self, made: &Stills) -> bool {
        let poster = self.stills.iter().filter_map(|stills| stills.poster.as_ref()).map(|poster| &poster.key);
        let sheets = self.stills.iter().filter_map(|stills| stills.storyboard.as_ref()).flat_map(|board| &board.sheets);
        let told: Vec<&String> = poster.chain(sheets).collect();
        self.is_of_stills_alone() && !told.is_empty() && told.into_iter().eq(made.objects().map(|object| &object.key))
    }
}

/// The source in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Where it came from, without anything that may be secret.
    pub url: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Media type of the container.
    pub container: String,
    /// How long it lasts by content, in ns.
    pub duration_ns: u64,
    /// How long its header says, in ns.
    pub header_duration_ns: Option<u64>,
    /// Stream time at which the result starts, in ns.
    pub origin_ns: u64,
    /// The picture that was used.
    pub picture: Option<PictureReport>,
    /// The sound that was used.
    pub sound: Vec<SoundReport>,
}

/// A picture track in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PictureReport {
    /// Name of the codec.
    pub codec: String,
    /// Width of the coded picture in pixels.
    pub width: u32,
    /// Height of the coded picture in pixels.
    pub height: u32,
    /// Frames per second.
    pub rate: Rate,
    /// Whether each frame falls on its own place of that rate.
    pub constant: bool,
    /// Frames.
    pub frames: u64,
    /// Bits per second on average.
    pub average_bps: u64,
}

/// A sound track in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SoundReport {
    /// Name of the codec.
    pub codec: String,
    /// Samples per second.
    pub rate: u32,
    /// Channels.
    pub channels: u32,
    /// Bits per second on average.
    pub average_bps: u64,
    /// Language, if said.
    pub language: Option<String>,
}

/// The frame grid and how it was cut up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GridReport {
    /// Frames per second.
    pub rate: Rate,
    /// Frames in all.
    pub frames: u64,
    /// Frames of a closed GOP.
    pub gop_frames: u32,
    /// Frames of a segment.
    pub segment_frames: u32,
    /// Pieces of work.
    pub chunks: usize,
}

/// A rendition in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RenditionReport {
    /// Its name in paths.
    pub id: RenditionId,
    /// What it carries.
    pub medium: Medium,
    /// Codec string (RFC 6381).
    pub codecs: String,
    /// Where its packets come from.
    pub made: Making,
    /// Whose encoder the plan has for it; none for sound and what is copied.
    pub encoder: Option<Class>,
    /// How its bits were limited; none of that for sound.
    pub rate_control: Option<RateControl>,
    /// Bit rate that was asked of the encoder, for sound.
    pub asked_bps: Option<u32>,
    /// Media segments.
    pub segments: usize,
    /// Bytes of all media segments.
    pub bytes: u64,
    /// Bits per second on average.
    pub average_bps: u64,
    /// Bits per second at most, as RFC 8216 defines it.
    pub peak_bps: u64,
    /// The plain MP4 that is named after it, if one was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mp4: Option<FileReport>,
}

/// A file in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// Where it is, under the output prefix.
    pub key: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Where a rendition's packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Making {
    /// Of an encoder.
    Encoded,
    /// Of the source, as they are.
    Copied,
}

/// The still pictures in short. Keys are under the output prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StillsReport {
    /// The poster, when one could be made.
    pub poster: Option<PosterReport>,
    /// The storyboard, when one could be made.
    pub storyboard: Option<StoryboardReport>,
}

/// A poster in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PosterReport {
    /// Where it is.
    pub key: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// When the video shows it, by the result's time in ns.
    pub shown_ns: u64,
}

/// A storyboard in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoryboardReport {
    /// The WebVTT track that leads from time to picture.
    pub track: String,
    /// Its sheets, in order.
    pub sheets: Vec<String>,
    /// Pictures on all sheets.
    pub pictures: usize,
    /// Pictures beside each other on a sheet.
    pub columns: u32,
    /// Rows of pictures on a sheet.
    pub rows: u32,
    /// Width of a picture in pixels.
    pub width: u32,
    /// Height of a picture in pixels.
    pub height: u32,
}

/// A rendition of text in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextReport {
    /// Its name in paths.
    pub id: RenditionId,
    /// Name of the source's format.
    pub codec: String,
    /// Language, if said.
    pub language: Option<String>,
    /// Name to show.
    pub name: String,
    /// Media segments.
    pub segments: usize,
    /// What became of the source's cues.
    pub account: TextAccount,
}

/// What became of the samples of a rendition of sound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplesReport {
    /// The rendition.
    pub id: RenditionId,
    /// Its samples.
    pub account: Account,
}

/// What a job cost. Executions that failed or did not count are not in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CostReport {
    /// CPU time in ms, user and system.
    pub cpu_ms: u64,
    /// Wall time of all executions together in ms.
    pub wall_ms: u64,
    /// Largest resident memory of one execution in KiB.
    pub rss_kib_max: u64,
    /// The same by task.
    pub tasks: Vec<TaskCost>,
}

/// A device, and what it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Which.
    pub device: String,
    /// The tasks that were done with it.
    pub tasks: Vec<TaskId>,
}

/// What a task cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskCost {
    /// The task.
    pub task: TaskId,
    /// What it cost.
    pub cost: Cost,
}

/// The report of a finished job.
pub fn report(spec: &JobSpec, info: &MediaInfo, plan: &Plan, seal: &Seal) -> Report {
    let accounts = Accounts::of(plan, seal);
    let samples = plan.audio.iter().zip(&accounts.samples);
    Report {
        version: VERSION,
        source: source(spec, info, plan),
        duration_ns: plan.duration_ns,
        layout: plan.layout,
        edit: plan.edit.clone(),
        grid: plan.video.as_ref().map(|video| GridReport {
            rate: video.rate,
            frames: video.frames,
            gop_frames: video.gop_frames,
            segment_frames: video.segment_frames,
            chunks: video.chunks.len(),
        }),
        renditions: seal.renditions.iter().map(|made| rendition(plan, &accounts, seal, made)).collect(),
        warnings: damage::warnings(info, plan, &accounts),
        stills: plan.stills.as_ref().zip(seal.stills.as_ref()).map(|(asked, made)| stills(asked, made, plan.origin_ns)),
        text: texts(info, seal),
        frames: accounts.frames,
        samples: samples.map(|(audio, account)| SamplesReport { id: audio.id.clone(), account: *account }).collect(),
        cost: cost(seal),
        devices: devices(seal),
        fallbacks: seal.fallbacks.clone(),
        notes: notes(plan, seal),
        dropped: info.dropped.clone(),
        chapters: chapters(info, plan),
    }
}

fn source(spec: &JobSpec, info: &MediaInfo, plan: &Plan) -> SourceReport {
    let used = plan.video.as_ref().map(|video| video.track).or(plan.stills.as_ref().map(|stills| stills.track));
    let picture = used.and_then(|used| info.video.iter().find(|track| track.track == used));
    // What is heard of an edited video may be of other sources.
    let heard = plan.audio.iter().filter(|_| plan.edit.is_none());
    let sound = heard.filter_map(|audio| info.audio.iter().find(|track| track.track == audio.track));
    SourceReport {
        url: shown_url(&spec.source.url),
        bytes: info.bytes,
        container: info.container.clone(),
        duration_ns: info.duration_ns,
        header_duration_ns: info.header_duration_ns,
        origin_ns: plan.origin_ns,
        picture: picture.map(|track| PictureReport {
            codec: track.codec.clone(),
            width: track.width,
            height: track.height,
            rate: track.timing.rate,
            constant: track.timing.constant,
            frames: track.timing.frames,
            average_bps: track.bitrate,
        }),
        sound: sound
            .map(|track| SoundReport {
                codec: track.codec.clone(),
                rate: track.rate,
                channels: track.channels,
                average_bps: track.bitrate,
                language: track.language.clone(),
            })
            .collect(),
    }
}

fn rendition(plan: &Plan, accounts: &Accounts, seal: &Seal, made: &Rendition) -> RenditionReport {
    let rung = plan.rungs().into_iter().map(|(rung, _)| rung).find(|rung| rung.id == made.id);
    let audio = plan.audio.iter().zip(&accounts.samples).find(|(audio, _)| audio.id == made.id);
    let is_copied = rung.is_some_and(|rung| rung.is_copied()) || audio.is_some_and(|(_, account)| account.copied > 0);
    let bandwidth = Bandwidth::of(made);
    let mp4 = seal.mp4.iter().find(|download| download.id == made.id).map(|download| &download.object);
    RenditionReport {
        id: made.id.clone(),
        medium: made.medium.clone(),
        codecs: made.codecs.clone(),
        made: if is_copied { Making::Copied } else { Making::Encoded },
        encoder: rung.filter(|rung| !rung.is_copied()).map(|rung| rung.class),
        rate_control: rung.map(|rung| rung.rate_control),
        asked_bps: audio.filter(|_| !is_copied).map(|(audio, _)| audio.bitrate),
        segments: made.segments().count(),
        bytes: made.bytes(),
        average_bps: bandwidth.average_bps,
        peak_bps: bandwidth.peak_bps,
        mp4: mp4.map(|object| FileReport { key: object.key.clone(), bytes: object.bytes }),
    }
}

fn stills(plan: &StillsPlan, made: &Stills, origin_ns: u64) -> StillsReport {
    let poster = plan.poster.as_ref().zip(made.poster.as_ref()).map(|(plan, (object, shown_ns))| PosterReport {
        key: object.key.clone(),
        width: plan.width,
        height: plan.height,
        shown_ns: shown_ns.saturating_sub(origin_ns),
    });
    let board = plan.storyboard.as_ref().filter(|_| !made.tiles.is_empty());
    let storyboard = board.map(|board| StoryboardReport {
        track: keys::STORYBOARD.to_owned(),
        sheets: made.sheets.iter().map(|sheet| sheet.key.clone()).collect(),
        pictures: made.tiles.len(),
        columns: board.columns,
        rows: board.rows,
        width: board.width,
        height: board.height,
    });
    StillsReport { poster, storyboard }
}

fn texts(info: &MediaInfo, seal: &Seal) -> Vec<TextReport> {
    let report = |TextRendition { track, made }: &TextRendition| TextReport {
        id: track.id.clone(),
        codec: info.text.iter().find(|found| found.stream == track.stream).map(|found| found.codec.clone()).unwrap_or_default(),
        language: track.language.clone(),
        name: track.name.clone(),
        segments: made.segments.len(),
        account: made.account,
    };
    seal.text.iter().map(report).collect()
}

/// Sound that is raised by more is worth a note.
const MUCH_RAISED_MILLIDB: i32 = 25_000;

/// The plan's notes, and what could not be done.
fn notes(plan: &Plan, seal: &Seal) -> Vec<String> {
    let mut notes = plan.notes.clone();
    let levelled = seal.executions.iter().filter_map(|execution| execution.account?.levelling);
    let most = levelled.map(|levelling| levelling.gain_millidb).max().filter(|gain| *gain > MUCH_RAISED_MILLIDB);
    notes.extend(
        most.map(|gain| format!("the sound is very soft and is raised by {} dB: its noise comes up with it", gain / 1000)),
    );
    for TextRendition { track, made } in &seal.text {
        let TextAccount { plainer, cut, .. } = made.account;
        if plainer > 0 {
            notes.push(format!("text '{}': {plainer} cues lose their places, fonts or colours", track.name));
        }
        if cut > 0 {
            notes.push(format!("text '{}': {cut} cues beyond what is read are left out", track.name));
        }
    }
    let Some((asked, made)) = plan.stills.as_ref().zip(seal.stills.as_ref()) else { return notes };
    if asked.poster.is_some() && made.poster.is_none() {
        notes.push("there is no poster: no key frame of the picture decodes by itself".to_owned());
    }
    let Some(board) = &asked.storyboard else { return notes };
    let tiles = board.tiles.len();
    if made.tiles.len() < tiles {
        let passed_over = tiles - made.tiles.len();
        let what = match board.showing {
            Showing::KeyFrames => "are left out: their key frames do not decode by themselves",
            Showing::Exact => "do not decode: their places show what was before",
        };
        notes.push(format!("{passed_over} of {tiles} pictures of the storyboard {what}"));
    }
    notes
}

fn cost(seal: &Seal) -> CostReport {
    seal.executions.iter().fold(CostReport::default(), |mut sum, execution| {
        sum.cpu_ms += execution.cost.cpu_ms;
        sum.wall_ms += execution.cost.wall_ms;
        sum.rss_kib_max = sum.rss_kib_max.max(execution.cost.rss_kib);
        sum.tasks.push(TaskCost { task: execution.task.clone(), cost: execution.cost });
        sum
    })
}

/// The tasks by the device that they were done with.
fn devices(seal: &Seal) -> Vec<DeviceReport> {
    let mut devices: BTreeMap<&str, Vec<TaskId>> = BTreeMap::new();
    for execution in &seal.executions {
        if let Some(device) = &execution.device {
            devices.entry(device).or_default().push(execution.task.clone());
        }
    }
    devices.into_iter().map(|(device, tasks)| DeviceReport { device: device.to_owned(), tasks }).collect()
}

/// The source's chapters by the result's time, as far as they lie in it.
fn chapters(info: &MediaInfo, plan: &Plan) -> Vec<Chapter> {
    let shown = |ns: u64| ns.saturating_sub(plan.origin_ns).min(plan.duration_ns);
    let chapters = info.chapters.iter().map(|chapter| Chapter {
        start_ns: shown(chapter.start_ns),
        end_ns: shown(chapter.end_ns),
        title: chapter.title.clone(),
    });
    // Edits move them.
    chapters.filter(|chapter| plan.edit.is_none() && chapter.start_ns < plan.duration_ns).collect()
}

#[cfg(test)]
mod tests;
