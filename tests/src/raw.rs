//! Raw pictures, and how like their original they are (VMAF).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::process;

const LIMIT: Duration = Duration::from_secs(900);

/// A file of raw 4:2:0.
pub struct Raw {
    /// Where it is.
    pub file: PathBuf,
    /// Width and height of a frame in pixels.
    pub size: (u32, u32),
}

impl Raw {
    /// What tells `ffmpeg` to read it, at a rate.
    pub fn input(&self, rate: &str) -> Vec<String> {
        let size = format!("{}x{}", self.size.0, self.size.1);
        let path = self.file.display().to_string();
        ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-r", rate, "-s", &size, "-i", &path].map(str::to_owned).to_vec()
    }

    /// The picture of a file, decoded; `size` is that of its frames.
    ///
    /// # Errors
    /// When `ffmpeg` fails.
    pub fn of(input: &Path, size: (u32, u32), file: PathBuf) -> Result<Self> {
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin", "-y", "-i"]).arg(input).args(["-map", "0:v:0", "-fps_mode", "passthrough"]);
        ffmpeg.args(["-f", "rawvideo", "-pix_fmt", "yuv420p"]).arg(&file);
        process::run(&mut ffmpeg, LIMIT)?.success()?;
        Ok(Self { file, size })
    }

    /// How many frames there are.
    ///
    /// # Errors
    /// When the file is gone.
    pub fn frames(&self) -> Result<u64> {
        Ok(fs::metadata(&self.file)?.len() / (u64::from(self.size.0) * u64::from(self.size.1) * 3 / 2))
    }

    /// VMAF of it, scaled up to the size of `reference`, by the `ffmpeg` that `VMAF_FFMPEG` names.
    ///
    /// # Errors
    /// When they do not have equally many frames, or there is no such program.
    pub fn vmaf(&self, reference: &Self) -> Result<f64> {
        ensure!(self.frames()? == reference.frames()?, "{} frames of {}", self.frames()?, reference.frames()?);
        let program = std::env::var_os("VMAF_FFMPEG").context("VMAF_FFMPEG names no ffmpeg with libvmaf")?;
        let mut ffmpeg = Command::new(program);
        let (width, height) = reference.size;
        let graph = format!("[0:v]scale={width}:{height}:flags=bicubic[made];[made][1:v]libvmaf=n_threads=2");
        ffmpeg.args(["-nostdin", "-hide_banner"]).args(self.input("25")).args(reference.input("25"));
        let said = process::run(ffmpeg.args(["-lavfi", &graph, "-f", "null", "-"]), LIMIT)?.success()?.stderr;
        let score = said.rsplit("VMAF score:").next().and_then(|rest| rest.split_whitespace().next());
        score.context("no score")?.parse().with_context(|| said.clone())
    }
}

/// Size of a file's picture, as it is coded.
///
/// # Errors
/// When it has none.
pub fn size_of(file: &Path) -> Result<(u32, u32)> {
    let mut ffprobe = Command::new("ffprobe");
    ffprobe.args(["-v", "error", "-select_streams", "v:0", "-show_entries", "stream=width,height", "-of", "csv=p=0"]);
    let said = process::run(ffprobe.arg(file), LIMIT)?.success()?.text();
    let (width, height) = said.trim().trim_end_matches(',').split_once(',').context("no size")?;
    Ok((width.parse()?, height.parse()?))
}
