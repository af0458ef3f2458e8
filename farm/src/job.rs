//! The job message, version 1: what a submitter asks for.
//!
//! Unknown fields are refused by name; [`JobSpec::check`] refuses values out of range. The JSON Schema is generated from
//! these types.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::edit::{self, EditStep, STEPS_MAX};
use crate::{Code, Failure, Quality, Rate};

/// Name of a job, unique in a farm: 1 to 128 letters, digits, `-`, `_` or `.`, so that it can stand in keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"))]
pub struct JobId(String);

impl JobId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JobId {
    type Error = Failure;

    fn try_from(text: String) -> Result<Self, Failure> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.is_empty() || text.len() > 128 || !text.chars().all(allowed) || text.starts_with('.') {
            let message =
                format!("'{text}' is not a job id: use 1 to 128 letters, digits, '-', '_' or '.', not starting with '.'");
            return Err(Failure::new(Code::InvalidRequest, message));
        }
        Ok(Self(text))
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a submitter asks for: turn this source into HLS there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Version of this message: always 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// The submitter's own key; the same id twice is the same job. Made up when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<JobId>,
    /// Who the job is for; shares of the farm are by tenant.
    #[serde(default = "default_tenant")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[^\x00-\x1f\x7f-\x9f]*$"))]
    pub tenant: String,
    /// What to transcode.
    pub source: SourceSpec,
    /// What is done to it before, step by step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = STEPS_MAX))]
    pub edit: Vec<EditStep>,
    /// Where the result goes.
    pub output: OutputSpec,
    /// What to make of it.
    #[serde(default, skip_serializing_if = "Make::is_hls")]
    pub make: Make,
    /// Which pictures to make of it.
    #[serde(default)]
    pub ladder: LadderSpec,
    /// How to make the sound.
    #[serde(default)]
    pub audio: AudioSpec,
    /// What to do about a source that is damaged.
    #[serde(default)]
    pub damage: Damage,
    /// Whether the source's own packets may be a rendition.
    #[serde(default)]
    pub copy: Copying,
    /// Whether hardware encodes the picture. As the tenant has it when absent, and otherwise preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// When what is made can be played.
    #[serde(default)]
    pub publish: Publishing,
    /// A picture that stands for the video before it plays. None is made when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poster: Option<PosterSpec>,
    /// Sheets of small pictures to find a place in the video by. None are made when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storyboard: Option<StoryboardSpec>,
    /// Wanted duration of a segment in seconds, 1 to 30.
    #[serde(default = "default_segment_seconds")]
    #[schemars(range(min = 1, max = 30))]
    pub segment_seconds: u32,
    /// Wanted duration of a chunk in seconds, 1 to 3600. Chosen by Shoal when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub chunk_seconds: Option<u32>,
    /// Jobs of the same tenant with a higher priority go first.
    #[serde(default)]
    pub priority: i32,
    /// Whom to tell when it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<NotifySpec>,
}

fn default_tenant() -> String {
    "default".to_owned()
}

fn default_segment_seconds() -> u32 {
    4
}

/// Where the source is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// `https://…`, `http://…`, `s3://bucket/key` or `file:///path`.
    pub url: Url,
    /// Headers to send with every request for it. They may hold credentials: never logged.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

impl fmt::Debug for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.keys().collect();
        f.debug_struct("SourceSpec").field("url", &shown_url(&self.url)).field("headers", &names).finish()
    }
}

/// A URL as it may be shown: without user, password, query and fragment, which may hold credentials.
pub fn shown_url(url: &Url) -> String {
    let mut shown = url.clone();
    // A URL that cannot carry them (file:) refuses; then there is nothing to hide.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.set_fragment(None);
    shown.to_string()
}

/// Where and in which shape the result goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// Prefix under which everything is written: `s3://bucket/prefix/` or `file:///folder/`.
    pub url: Url,
    /// One object per segment, or one per rendition.
    #[serde(default)]
    pub layout: Layout,
    /// Which plain MP4 files to make besides, of the same packets.
    #[serde(default)]
    pub mp4: Mp4,
}

/// How the media bytes of a rendition are laid out in objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// An init segment and one object per media segment.
    #[default]
    Segments,
    /// One fragmented MP4 per rendition, addressed by byte ranges.
    SingleFile,
    /// Both, of the same packets: segments with the usual playlists, and files with playlists of their own.
    Both,
}

impl Layout {
    /// Whether there is a file per rendition.
    pub fn has_files(self) -> bool {
        matches!(self, Self::SingleFile | Self::Both)
    }
}

/// What a job makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Make {
    /// HLS of picture, sound and text, and the still pictures that are asked for.
    #[default]
    Hls,
    /// The still pictures that are asked for, and nothing else: no playlists, and nothing is encoded.
    Stills,
}

impl Make {
    /// Whether it is HLS.
    pub fn is_hls(&self) -> bool {
        *self == Self::Hls
    }
}

/// Plain MP4 files, to be downloaded or played without HLS: picture and sound together, what a player needs before all media.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mp4 {
    /// None.
    #[default]
    None,
    /// One of each rung with the sound that plays when nobody chose; of that sound alone where there is no picture.
    EachRung,
    /// As `each-rung`, and one of that sound alone in any case.
    EachRungAndSound,
}

/// Which renditions of the picture to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LadderSpec {
    /// Every usual height up to the source's.
    Auto(AutoLadder),
    /// Just these.
    Rungs(#[schemars(length(min = 1, max = RUNGS_MAX))] Vec<RungSpec>),
}

impl Default for LadderSpec {
    fn default() -> Self {
        Self::Auto(AutoLadder::default())
    }
}

/// Limits on the automatic ladder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AutoLadder {
    /// No rung above this height (the short edge of the picture), in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 4320))]
    pub max_height: Option<u32>,
}

/// One rendition of the picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RungSpec {
    /// Short edge of the picture in pixels, 16 to 4320; made even. Never above the source's, which it is with 4320.
    #[schemars(range(min = 16, max = 4320))]
    pub height: u32,
    /// Highest frame rate; the source's own is kept when lower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fps: Option<Rate>,
    /// Codec and rate control. Capped quality with the usual cap when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video: Option<VideoSpec>,
}

/// Codec and rate control of a rung: `quality` (with an optional cap) or `bitrate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VideoSpec {
    /// The codec.
    #[serde(default)]
    pub codec: VideoCodec,
    /// Constant quality, 1 (best) to 50, on x264's CRF scale, to the tenth. Devices and AV1 take the nearest whole number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// Average rate in bit/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 8_000, max = 400_000_000))]
    pub bitrate: Option<u32>,
    /// Highest rate in bit/s, over two seconds with `quality`, over one second with `bitrate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 8_000, max = 400_000_000))]
    pub max_bitrate: Option<u32>,
}

/// A video codec that can be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VideoCodec {
    /// H.264, High profile, 8-bit 4:2:0.
    #[default]
    H264,
    /// HEVC, Main profile, 8-bit 4:2:0: three fifths of the bits, for players that have it (Apple's all, browsers some).
    Hevc,
    /// AV1, Main profile, 8-bit 4:2:0: seven tenths of the bits, for players of recent years.
    Av1,
}

impl VideoCodec {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::H264, Self::Hevc, Self::Av1];

    /// How names of renditions in this codec end; the usual one goes without saying.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::H264 => "",
            Self::Hevc => "-hevc",
            Self::Av1 => "-av1",
        }
    }

    /// Shortest side of a picture that its encoder takes, in pixels.
    pub fn side_min(self) -> u32 {
        match self {
            Self::H264 => 2,
            Self::Hevc => 16,
            Self::Av1 => 4,
        }
    }

    /// Highest average rate that its encoder takes, in bit/s.
    fn bitrate_max(self) -> u32 {
        match self {
            Self::H264 | Self::Av1 => 400_000_000,
            Self::Hevc => 102_400_000,
        }
    }

    /// How much CPU time encoding takes beside H.264, in whole times (measured on 360p of animation; README has figures).
    pub fn effort(self) -> u32 {
        match self {
            Self::H264 => 1,
            Self::Hevc => 3,
            Self::Av1 => 12,
        }
    }
}

/// How to make the sound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AudioSpec {
    /// The codec.
    #[serde(default)]
    pub codec: AudioCodec,
    /// Whether to bring the loudness to a common level.
    #[serde(default)]
    pub loudness: Loudness,
}

/// An audio codec that can be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AudioCodec {
    /// AAC-LC.
    #[default]
    Aac,
}

/// What to do about loudness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Loudness {
    /// Leave it as it is.
    #[default]
    Off,
    /// Bring it to -16 LUFS (EBU R 128) with true peaks of at most -1.5 dB of full scale.
    EbuR128,
}

/// What to do about a source that is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Damage {
    /// Conceal it, go on, and say so, as long as half of the frames decode.
    #[default]
    BestEffort,
    /// Fail at anything that would be worth a warning.
    Strict,
}

/// Whether packets of the source are handed on as they are where they fit what is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Copying {
    /// They are, wherever the result is as good: no generation of quality is lost, and their encoding costs nothing.
    #[default]
    WhenFits,
    /// Everything is encoded.
    Never,
}

/// Whether hardware encodes the picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Hardware {
    /// It does, where a worker offers it.
    #[default]
    Prefer,
    /// It does, or the job is refused once its source is known. Where a device fails, pieces are made on the processor all the
    /// same.
    Require,
    /// It does not.
    Avoid,
}

/// When a result can be played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Publishing {
    /// When all of it is made.
    #[default]
    AtEnd,
    /// A small rung, sound and text as soon as they are whole: the multivariant playlist names these first, and is written anew
    /// with all others at the end. The source is decoded once more for that.
    InStages,
    /// As in stages, but what comes first is the largest rung.
    LargestFirst,
    /// The same where that rung is copied, for then it is there at once; or else at the end.
    CopyFirst,
}

/// A picture that stands for the video.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PosterSpec {
    /// Short edge of the picture in pixels, 16 to 4320; made even. Never above the source's, which it is when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 4320))]
    pub height: Option<u32>,
}

/// Sheets of small pictures, and a WebVTT track that says which one stands for which time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StoryboardSpec {
    /// Pictures beside each other on a sheet, 1 to 64.
    #[serde(default = "default_grid")]
    #[schemars(range(min = 1, max = 64))]
    pub columns: u32,
    /// Rows of pictures on a sheet, 1 to 64.
    #[serde(default = "default_grid")]
    #[schemars(range(min = 1, max = 64))]
    pub rows: u32,
    /// Short edge of each picture in pixels, 1 to 720; made even. Never above the source's.
    #[serde(default = "default_tile_height")]
    #[schemars(range(min = 1, max = 720))]
    pub height: u32,
    /// Wanted time between two pictures in seconds, 1 to 3600; a sheet that is full is followed by another. When absent, all
    /// of the video is on one sheet. There is no more than one picture for each key frame of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub seconds: Option<u32>,
    /// Width of each picture in pixels, 1 to 720. When given, every picture has just this width and `height`, odd or not,
    /// whatever its shape was; `seconds` is to be given too, and each picture is the frame on screen at its multiple of them,
    /// not a key frame near it. There is one sheet, always of full size: places that are left over are black, and what there
    /// is no place for is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 720))]
    pub exact_width: Option<u32>,
}

impl Default for StoryboardSpec {
    fn default() -> Self {
        let (columns, rows, height) = (default_grid(), default_grid(), default_tile_height());
        Self { columns, rows, height, seconds: None, exact_width: None }
    }
}

fn default_grid() -> u32 {
    10
}

fn default_tile_height() -> u32 {
    90
}

/// A signed call when a job has ended.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotifySpec {
    /// Where to POST the result event.
    pub url: Url,
    /// Key of the signature. Never logged.
    pub secret: String,
}

impl fmt::Debug for NotifySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotifySpec").field("url", &shown_url(&self.url)).field("secret", &"***").finish()
    }
}

/// Most rungs a job may ask for.
pub const RUNGS_MAX: usize = 16;

impl JobSpec {
    /// A job with every setting at its default.
    pub fn new(source: Url, output: Url) -> Self {
        Self {
            version: 1,
            id: None,
            tenant: default_tenant(),
            source: SourceSpec { url: source, headers: BTreeMap::new() },
            edit: Vec::new(),
            output: OutputSpec { url: output, layout: Layout::default(), mp4: Mp4::default() },
            make: Make::default(),
            ladder: LadderSpec::default(),
            audio: AudioSpec::default(),
            damage: Damage::default(),
            copy: Copying::default(),
            hardware: None,
            publish: Publishing::default(),
            poster: None,
            storyboard: None,
            segment_seconds: default_segment_seconds(),
            chunk_seconds: None,
            priority: 0,
            notify: None,
        }
    }

    /// Refuses values that are out of range, naming the field.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for the first value out of range.
    pub fn check(&self) -> Result<(), Failure> {
        let refuse = |message: String| Err(Failure::new(Code::InvalidRequest, message));
        if self.version != 1 {
            return refuse(format!("version: {} is not known, this farm reads version 1", self.version));
        }
        if self.tenant.is_empty() || self.tenant.len() > 253 || self.tenant.chars().any(char::is_control) {
            return refuse("tenant: use 1 to 253 printable characters".to_owned());
        }
        if !(1..=30).contains(&self.segment_seconds) {
            return refuse(format!("segment_seconds: {} is not from 1 to 30", self.segment_seconds));
        }
        if let Some(seconds) = self.chunk_seconds.filter(|s| !(1..=3600).contains(s)) {
            return refuse(format!("chunk_seconds: {seconds} is not from 1 to 3600"));
        }
        edit::check(&self.edit)?;
        self.check_stills()?;
        match &self.ladder {
            LadderSpec::Auto(AutoLadder { max_height: Some(height) }) if !(16..=4320).contains(height) => {
                refuse(format!("ladder: max_height {height} is not from 16 to 4320"))
            }
            LadderSpec::Auto(_) => Ok(()),
            LadderSpec::Rungs(rungs) if rungs.is_empty() || rungs.len() > RUNGS_MAX => {
                refuse(format!("ladder: {} rungs, 1 to {RUNGS_MAX} can be made", rungs.len()))
            }
            LadderSpec::Rungs(rungs) => rungs.iter().try_for_each(RungSpec::check),
        }
    }
}

impl JobSpec {
    fn check_stills(&self) -> Result<(), Failure> {
        let refuse = |message: String| Err(Failure::new(Code::InvalidRequest, message));
        if let Some(height) = self.poster.as_ref().and_then(|poster| poster.height).filter(|h| !(16..=4320).contains(h)) {
            return refuse(format!("poster: height {height} is not from 16 to 4320"));
        }
        if !self.edit.is_empty() && (self.poster.is_some() || self.storyboard.is_some()) {
            return refuse("edit: no still pictures are made of an edited video".to_owned());
        }
        if self.make == Make::Stills && self.poster.is_none() && self.storyboard.is_none() {
            return refuse("make: for stills, ask for a poster or a storyboard".to_owned());
        }
        let Some(StoryboardSpec { columns, rows, height, seconds, exact_width }) = self.storyboard else { return Ok(()) };
        if !(1..=64).contains(&columns) || !(1..=64).contains(&rows) {
            return refuse(format!("storyboard: a grid of {columns}x{rows} is not from 1x1 to 64x64"));
        }
        if !(1..=720).contains(&height) {
            return refuse(format!("storyboard: height {height} is not from 1 to 720"));
        }
        if let Some(seconds) = seconds.filter(|seconds| !(1..=3600).contains(seconds)) {
            return refuse(format!("storyboard: seconds {seconds} is not from 1 to 3600"));
        }
        match exact_width {
            Some(width) if !(1..=720).contains(&width) => refuse(format!("storyboard: exact_width {width} is not from 1 to 720")),
            Some(_) if seconds.is_none() => refuse("storyboard: exact_width needs seconds".to_owned()),
            _ => Ok(()),
        }
    }
}

impl RungSpec {
    fn check(&self) -> Result<(), Failure> {
        let refuse = |what: String| Err(Failure::new(Code::InvalidRequest, format!("ladder: rung {}: {what}", self.height)));
        if !(16..=4320).contains(&self.height) {
            return refuse("height is not from 16 to 4320".to_owned());
        }
        let Some(video) = &self.video else { return Ok(()) };
        const RATES: std::ops::RangeInclusive<u32> = 8_000..=400_000_000;
        match (video.quality, video.bitrate) {
            (Some(_), Some(_)) => return refuse("give quality or bitrate, not both".to_owned()),
            (None, Some(bitrate)) if video.max_bitrate.is_some_and(|max| max < bitrate) => {
                return refuse(format!("max_bitrate is below bitrate {bitrate}"));
            }
            (None, Some(bitrate)) if bitrate > video.codec.bitrate_max() => {
                return refuse(format!("bitrate {bitrate} is more than its codec's {}", video.codec.bitrate_max()));
            }
            _ => {}
        }
        match [video.bitrate, video.max_bitrate].into_iter().flatten().find(|rate| !RATES.contains(rate)) {
            Some(rate) => refuse(format!("{rate} bit/s is not from {} to {}", RATES.start(), RATES.end())),
            None => Ok(()),
        }
    }
}
