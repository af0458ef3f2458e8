//! The command line: a contract that scripts call.

mod farm;
mod manual;

pub use self::farm::{Connection, Delete, Doctor, JobCommand, Scheduler, Server, Status, Submit, Worker};
pub use self::farm::{InstanceFile, PeerTube, PeerTubeCommand, Register, Unregister};
pub use self::manual::{Completions, Man};

use std::path::PathBuf;
use std::str::FromStr;

use ::farm::Failure;
use ::farm::job::{
    AutoLadder, Copying, Damage, Hardware, JobSpec, LadderSpec, Layout, Loudness, Make, Mp4, PosterSpec, Publishing, RungSpec,
    StoryboardSpec,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use url::Url;
use worker::ChildCommand;
use worker::sandbox::{Sandboxing, has_registry};

use crate::edit;

/// Turns any video or audio into multi-resolution HLS.
#[derive(Parser)]
#[command(name = "shoal", version, about, arg_required_else_help = true)]
pub struct Arguments {
    /// Settings in a TOML file: names as of the flags, at the top or below the name of a command. Flags and variables go
    /// first.
    #[arg(long, global = true, env = "SHOAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines look on standard error.
    #[arg(long, global = true, env = "SHOAL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What can be done.
#[derive(Subcommand)]
pub enum Command {
    /// Make an HLS ladder of a file or URL, on this machine.
    Transcode(Transcode),
    /// Say what a file or URL is.
    Probe(Probe),
    /// List the encoders of this machine, whether they work, and which would be used; or those of a running farm.
    Encoders(Encoders),
    /// Run the farm's scheduler: takes jobs, hands out tasks, publishes results.
    Scheduler(Scheduler),
    /// Run a worker of the farm: takes tasks and encodes.
    Worker(Worker),
    /// Give a job to a running farm, or many at once.
    Submit(Submit),
    /// Show how a job of a running farm stands, or list the jobs.
    Status(Status),
    /// Stop a job of a running farm.
    Cancel(JobCommand),
    /// Take up a failed job of a running farm again; what is done stays done.
    Retry(JobCommand),
    /// Delete what jobs of a running farm that have ended have made.
    Delete(Delete),
    /// Be a remote runner of instances of PeerTube.
    #[command(name = "peertube")]
    PeerTube(PeerTube),
    /// Check everything that a farm needs, and say how to mend what is wrong.
    Doctor(Doctor),
    /// Print a file of settings for --config: all that there are, and none of them set.
    Settings,
    /// Print what a shell needs to complete command lines.
    Completions(Completions),
    /// Print the manual page.
    Man(Man),
    /// One attempt of a task: started by a worker, with a socket.
    #[command(hide = true)]
    Child(Child),
}

/// `shoal child`.
#[derive(Args)]
pub struct Child {
    /// How it is kept in.
    #[command(flatten)]
    pub sandbox: Sandbox,
    /// Do nothing but have GStreamer look for its plugins, and write down what there is: children that are kept in cannot.
    #[arg(long)]
    pub prepare: bool,
}

/// How children are kept in.
#[derive(Args)]
pub struct Sandbox {
    /// Whether the processes that read sources are kept from files, network and other processes.
    #[arg(long, env = "SHOAL_SANDBOX", value_enum, default_value_t = SandboxName::BestEffort)]
    pub sandbox: SandboxName,
}

/// How `--sandbox` names what to do.
#[derive(Clone, Copy, ValueEnum)]
pub enum SandboxName {
    /// Yes, or nothing is read.
    Require,
    /// As far as the kernel can.
    BestEffort,
    /// No.
    Off,
}

impl From<SandboxName> for Sandboxing {
    fn from(name: SandboxName) -> Self {
        match name {
            SandboxName::Require => Self::Require,
            SandboxName::BestEffort => Self::BestEffort,
            SandboxName::Off => Self::Off,
        }
    }
}

impl Sandbox {
    /// How this program starts its children. What they cannot do for themselves is done.
    pub fn child(&self) -> ChildCommand {
        if !has_registry() {
            // Where it cannot be written, every child looks for itself: a fifth of a second each.
            let _ = std::process::Command::new("/proc/self/exe").args(["child", "--prepare"]).status();
        }
        let name = match self.sandbox {
            SandboxName::Require => "require",
            SandboxName::BestEffort => "best-effort",
            SandboxName::Off => "off",
        };
        ChildCommand::this_program(["child", "--sandbox", name].map(str::to_owned).to_vec())
    }
}

/// `shoal transcode`.
#[derive(Args)]
pub struct Transcode {
    /// A file, or an http(s) or s3 URL.
    pub input: String,
    /// The folder to write to, made when it is not there; or s3://bucket/prefix.
    #[arg(long, short, env = "SHOAL_OUTPUT")]
    pub output: String,
    /// What to make.
    #[command(flatten)]
    pub result: Wanted,
    /// Pieces of work done at a time; one per core when not given.
    #[arg(long, env = "SHOAL_SLOTS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub slots: Option<u16>,
    /// How children are kept in.
    #[command(flatten)]
    pub sandbox: Sandbox,
    /// Print the result, or the error, as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What a job is to make, wherever it runs.
#[derive(Args)]
pub struct Wanted {
    /// HLS, or nothing but the poster and the storyboard that are asked for.
    #[arg(long, env = "SHOAL_MAKE", value_enum, default_value_t = MakeName::Hls)]
    pub make: MakeName,
    /// Which pictures to make: auto, heights as 1080,720,480, or a JSON list of rungs.
    #[arg(long, env = "SHOAL_LADDER", default_value = "auto")]
    pub ladder: Ladder,
    /// One file per segment, one file per rendition, or both.
    #[arg(long, env = "SHOAL_LAYOUT", value_enum, default_value_t = LayoutName::Segments)]
    pub layout: LayoutName,
    /// Make a plain MP4 of each rung besides, with sound.
    #[arg(long, env = "SHOAL_MP4")]
    pub mp4: bool,
    /// Whether to go on with a damaged source.
    #[arg(long, env = "SHOAL_DAMAGE", value_enum, default_value_t = DamageName::BestEffort)]
    pub damage: DamageName,
    /// Whether packets of the source are handed on as they are where they fit.
    #[arg(long, env = "SHOAL_COPY", value_enum, default_value_t = CopyName::WhenFits)]
    pub copy: CopyName,
    /// Whether hardware encodes: where it is there unless something else is said.
    #[arg(long, env = "SHOAL_HARDWARE", value_enum)]
    pub hardware: Option<HardwareName>,
    /// Whether a small rung, or the largest, can be played before all others are made.
    #[arg(long, env = "SHOAL_PUBLISH", value_enum, default_value_t = PublishName::AtEnd)]
    pub publish: PublishName,
    /// Wanted duration of a segment, 1 to 30 seconds.
    #[arg(long, env = "SHOAL_SEGMENT_SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=30))]
    pub segment_seconds: u32,
    /// Wanted duration of a piece of work, 1 to 3600 seconds.
    #[arg(long, env = "SHOAL_CHUNK_SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub chunk_seconds: Option<u32>,
    /// Whether to bring sound to a common loudness: -16 LUFS, with true peaks of at most -1.5 dB.
    #[arg(long, env = "SHOAL_LOUDNESS", value_enum, default_value_t = LoudnessName::Off)]
    pub loudness: LoudnessName,
    /// Make a poster: a picture that stands for the video before it plays.
    #[arg(long, env = "SHOAL_POSTER")]
    pub poster: bool,
    /// Make a storyboard: sheets of so many small pictures across and down, and a WebVTT track that leads to them. Or a JSON
    /// object, as a job message has it.
    #[arg(long, env = "SHOAL_STORYBOARD", value_name = "COLUMNSxROWS", num_args = 0..=1, require_equals = true, default_missing_value = "10x10")]
    pub storyboard: Option<Storyboard>,
    /// What is done to the source before, step by step: a JSON list as in a job, in which a path may stand for a URL.
    #[arg(long, env = "SHOAL_EDIT", hide_env_values = true, value_name = "JSON")]
    pub edit: Option<String>,
}

impl Wanted {
    /// Puts what is asked for into a job. `locate` makes a URL of what is named as a source.
    ///
    /// # Errors
    /// When the steps of editing are none, or name what is not there.
    pub fn ask(&self, spec: &mut JobSpec, locate: impl Fn(&str) -> Result<Url, Failure>) -> Result<(), Failure> {
        spec.make = self.make.into();
        spec.ladder = self.ladder.0.clone();
        spec.output.layout = self.layout.into();
        spec.output.mp4 = if self.mp4 { Mp4::EachRung } else { Mp4::None };
        spec.damage = self.damage.into();
        spec.copy = self.copy.into();
        spec.hardware = self.hardware.map(Into::into);
        spec.publish = self.publish.into();
        spec.segment_seconds = self.segment_seconds;
        spec.chunk_seconds = self.chunk_seconds;
        spec.audio.loudness = self.loudness.into();
        spec.poster = self.poster.then(PosterSpec::default);
        spec.storyboard = self.storyboard.as_ref().map(|storyboard| storyboard.0.clone());
        if let Some(text) = &self.edit {
            spec.edit = edit::steps(text, locate)?;
        }
        Ok(())
    }
}

/// How `--storyboard` names a storyboard.
#[derive(Clone)]
pub struct Storyboard(pub StoryboardSpec);

impl FromStr for Storyboard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with('{') {
            return serde_json::from_str(text).map(Self).map_err(|e| format!("not a storyboard: {e}"));
        }
        let grid = text.split_once('x').and_then(|(columns, rows)| Some((columns.parse().ok()?, rows.parse().ok()?)));
        let (columns, rows) = grid.ok_or_else(|| format!("'{text}' is no grid; use 10x10, or a JSON object"))?;
        Ok(Self(StoryboardSpec { columns, rows, ..StoryboardSpec::default() }))
    }
}

/// `shoal probe`.
#[derive(Args)]
pub struct Probe {
    /// A file, or an http(s) or s3 URL.
    pub input: String,
    /// How the child is kept in.
    #[command(flatten)]
    pub sandbox: Sandbox,
    /// Print everything as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `shoal encoders`.
#[derive(Args)]
pub struct Encoders {
    /// List what the workers of a running farm encode with, and try nothing on this machine.
    #[arg(long)]
    pub farm: bool,
    /// Which farm.
    #[command(flatten)]
    pub server: Server,
    /// How the children are kept in that try them.
    #[command(flatten)]
    pub sandbox: Sandbox,
    /// Print the list as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// How `--make` names what is made.
#[derive(Clone, Copy, ValueEnum)]
pub enum MakeName {
    /// HLS of picture, sound and text.
    Hls,
    /// Still pictures alone.
    Stills,
}

impl From<MakeName> for Make {
    fn from(name: MakeName) -> Self {
        match name {
            MakeName::Hls => Self::Hls,
            MakeName::Stills => Self::Stills,
        }
    }
}

/// How `--layout` names the layouts.
#[derive(Clone, Copy, ValueEnum)]
pub enum LayoutName {
    /// One file per segment.
    Segments,
    /// One file per rendition, read by byte ranges.
    SingleFile,
    /// Both, of the same packets.
    Both,
}

impl From<LayoutName> for Layout {
    fn from(name: LayoutName) -> Self {
        match name {
            LayoutName::Segments => Self::Segments,
            LayoutName::SingleFile => Self::SingleFile,
            LayoutName::Both => Self::Both,
        }
    }
}

/// How `--publish` names when a result can be played.
#[derive(Clone, Copy, ValueEnum)]
pub enum PublishName {
    /// When all of it is made.
    AtEnd,
    /// A small rung with sound first, and then all.
    InStages,
    /// The largest rung with sound first, and then all.
    LargestFirst,
    /// The same where that rung is copied, or else all at the end.
    CopyFirst,
}

impl From<PublishName> for Publishing {
    fn from(name: PublishName) -> Self {
        match name {
            PublishName::AtEnd => Self::AtEnd,
            PublishName::InStages => Self::InStages,
            PublishName::LargestFirst => Self::LargestFirst,
            PublishName::CopyFirst => Self::CopyFirst,
        }
    }
}

/// How `--loudness` names what to do.
#[derive(Clone, Copy, ValueEnum)]
pub enum LoudnessName {
    /// Leave it as it is.
    Off,
    /// Bring it to a common loudness by EBU R 128.
    EbuR128,
}

impl From<LoudnessName> for Loudness {
    fn from(name: LoudnessName) -> Self {
        match name {
            LoudnessName::Off => Self::Off,
            LoudnessName::EbuR128 => Self::EbuR128,
        }
    }
}

/// How `--damage` names what to do.
#[derive(Clone, Copy, ValueEnum)]
pub enum DamageName {
    /// Conceal the damage and say so; fail when less than half decodes.
    BestEffort,
    /// Fail at any damage.
    Strict,
}

impl From<DamageName> for Damage {
    fn from(name: DamageName) -> Self {
        match name {
            DamageName::BestEffort => Self::BestEffort,
            DamageName::Strict => Self::Strict,
        }
    }
}

/// How `--copy` names what to do.
#[derive(Clone, Copy, ValueEnum)]
pub enum CopyName {
    /// Copy what fits.
    WhenFits,
    /// Encode everything.
    Never,
}

impl From<CopyName> for Copying {
    fn from(name: CopyName) -> Self {
        match name {
            CopyName::WhenFits => Self::WhenFits,
            CopyName::Never => Self::Never,
        }
    }
}

/// How `--hardware` names what to do.
#[derive(Clone, Copy, ValueEnum)]
pub enum HardwareName {
    /// Hardware where it is there.
    Prefer,
    /// Hardware, or nothing.
    Require,
    /// The processor.
    Avoid,
}

impl From<HardwareName> for Hardware {
    fn from(name: HardwareName) -> Self {
        match name {
            HardwareName::Prefer => Self::Prefer,
            HardwareName::Require => Self::Require,
            HardwareName::Avoid => Self::Avoid,
        }
    }
}

/// How `--ladder` names a ladder.
#[derive(Clone)]
pub struct Ladder(pub LadderSpec);

impl FromStr for Ladder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "auto" {
            return Ok(Self(LadderSpec::Auto(AutoLadder::default())));
        }
        if text.starts_with('[') {
            let rungs: Vec<RungSpec> = serde_json::from_str(text).map_err(|e| format!("not a list of rungs: {e}"))?;
            return Ok(Self(LadderSpec::Rungs(rungs)));
        }
        let rung = |height: &str| {
            let height = height
                .trim()
                .parse()
                .map_err(|_| format!("'{height}' is not a height; use auto, 1080,720,480 or a JSON list"))?;
            Ok::<_, String>(RungSpec { height, fps: None, video: None })
        };
        text.split(',').map(rung).collect::<Result<_, _>>().map(|rungs| Self(LadderSpec::Rungs(rungs)))
    }
}

/// Where state is kept below an output folder while a job runs.
pub fn state_folder(output: &std::path::Path) -> PathBuf {
    output.join(".shoal")
}
