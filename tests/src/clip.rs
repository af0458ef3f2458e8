//! Makes test clips whose every frame says which one it is, and whose every second can be seen and heard.
//!
//! A frame carries its number as a bar code ([`crate::barcode`]). The frame nearest to each whole second is lit by a flash,
//! and with that frame's first instant a beep begins. Pictures and samples are computed here and encoded by `ffmpeg`; the
//! same [`Clip`] is the same file, so clips are kept below the target folder and made once.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use farm::Rate;
use farm::rate::SECOND_NS;

use crate::{barcode, process};

/// Samples per second of every clip's sound.
pub const AUDIO_RATE: u32 = 48_000;
/// How long a beep lasts, in samples: 30 ms.
pub const BEEP_SAMPLES: u32 = 1440;
/// Amplitude of a beep; the background stays below a tenth of it.
pub const BEEP_AMPLITUDE: f32 = 0.6;
/// Changes with what is drawn, so that clips of an older harness are not taken for ours.
const EDITION: u32 = 1;
/// Longer lists of frames are named by their hash: file names have a limit.
const NAME_BYTES_MAX: usize = 64;
const ENCODE_LIMIT: Duration = Duration::from_secs(300);

/// Into what a clip is put, with the codecs usual for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// MP4 with H.264 and AAC.
    Mp4,
    /// Matroska with H.264 and AAC; time stamps in whole ms.
    Mkv,
    /// MPEG-TS with H.264 and AAC; time does not start at 0.
    Ts,
    /// WebM with VP8 and Vorbis.
    Webm,
    /// QuickTime with JPEG pictures in 4:2:2 and full range, and PCM, as cameras write it.
    Mov,
}

impl Container {
    /// The usual file name extension.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4",
            Self::Mkv => "mkv",
            Self::Ts => "ts",
            Self::Webm => "webm",
            Self::Mov => "mov",
        }
    }
}

/// What a clip is to be.
#[derive(Clone, Debug)]
pub struct Clip {
    /// Width in pixels, even.
    pub width: usize,
    /// Height in pixels, even.
    pub height: usize,
    /// Frames per second.
    pub rate: Rate,
    /// Frames drawn, up to 65 536.
    pub frames: u32,
    /// Distance of key frames, in frames.
    pub gop: u32,
    /// Container and codecs.
    pub container: Container,
    /// Whether there is sound.
    pub audio: bool,
    /// By how much the beeps are late, in ms, negative for early: wrong sync, made on purpose.
    pub beeps_late_ms: i32,
    /// Frames drawn and then left out, keeping the time stamps of the others: a variable frame rate.
    pub left_out: Vec<Range<u32>>,
    /// Frames drawn with the number of the frame before: a fault, made on purpose.
    pub doubled: Vec<u32>,
}

impl Clip {
    /// A clip of 640×360 pixels in MP4, with a key frame every 7 s (never where a segment of ours would begin, but for
    /// every 28 s, and too seldom to be copied), with sound in sync.
    ///
    /// # Panics
    /// When `rate` is no frame rate.
    pub fn new(rate: &str, seconds: u32) -> Self {
        let rate: Rate = rate.parse().expect("a frame rate");
        let frames = u32::try_from(rate.nearest_frame(u64::from(seconds) * SECOND_NS)).expect("a short clip");
        let gop = u32::try_from(rate.nearest_frame(7 * SECOND_NS)).expect("a frame rate");
        let (audio, container) = (true, Container::Mp4);
        Self { width: 640, height: 360, rate, frames, gop, container, audio, beeps_late_ms: 0, left_out: vec![], doubled: vec![] }
    }

    /// The same of another size.
    #[must_use]
    pub fn size(self, width: usize, height: usize) -> Self {
        Self { width, height, ..self }
    }

    /// The same in another container.
    #[must_use]
    pub fn container(self, container: Container) -> Self {
        Self { container, ..self }
    }

    /// The same with these frames left out.
    #[must_use]
    pub fn leave_out(mut self, frames: Range<u32>) -> Self {
        self.left_out.push(frames);
        self
    }

    /// The frames that flash, in order: the even frame nearest to each whole second. Even, so that it is also there at
    /// half the rate.
    pub fn flashes(&self) -> Vec<u32> {
        let frame_at = |second: u64| self.rate.nearest_frame(second * SECOND_NS / 2) * 2;
        let numbers = (0..).map(frame_at).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        numbers.take_while(|&n| n < self.frames).collect()
    }

    /// The numbers that can be seen, in order of presentation.
    pub fn numbers(&self) -> Vec<u32> {
        let seen = |n: &u32| !self.left_out.iter().any(|range| range.contains(n));
        (0..self.frames).filter(seen).map(|n| if self.doubled.contains(&n) { n - 1 } else { n }).collect()
    }

    /// When frame `number` begins, in ns after the first.
    pub fn start_ns(&self, number: u32) -> i64 {
        i64::try_from(self.rate.start_ns(u64::from(number))).unwrap_or(i64::MAX)
    }

    /// How long the clip lasts, in ns.
    pub fn duration_ns(&self) -> i64 {
        self.start_ns(self.frames)
    }

    /// The clip as a file; made when it is not there yet.
    ///
    /// # Errors
    /// When `ffmpeg` is missing or fails, or the target folder cannot be written.
    pub fn file(&self) -> Result<PathBuf> {
        let folder = process::target_folder()?.join("test-clips");
        fs::create_dir_all(&folder)?;
        let file = folder.join(self.name());
        if !file.exists() {
            // Another test may be at it too, each in a folder of its own. The first stays: somebody may be reading it, and a source
            // that is replaced is another one.
            let making = tempfile::Builder::new().prefix(".making-").tempdir_in(&folder)?;
            let made = self.encode(making.path()).with_context(|| format!("making {}", self.name()))?;
            match fs::hard_link(made, &file) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
        }
        Ok(file)
    }

    fn name(&self) -> String {
        let ranges = |ranges: &[Range<u32>]| ranges.iter().map(|r| format!("_{}-{}", r.start, r.end)).collect::<String>();
        let doubled: String = self.doubled.iter().map(|n| format!("_{n}")).collect();
        let (mut left_out, rate) = (ranges(&self.left_out), self.rate.to_string().replace('/', "-"));
        if left_out.len() > NAME_BYTES_MAX {
            let mut hasher = std::hash::DefaultHasher::new();
            left_out.hash(&mut hasher);
            left_out = format!("_{:016x}", hasher.finish());
        }
        let audio = if self.audio { format!("beeps{}ms", self.beeps_late_ms) } else { "silent".to_owned() };
        let Self { width, height, frames, gop, container, .. } = self;
        let extension = container.extension();
        format!("e{EDITION}_{width}x{height}_{rate}fps_{frames}f_gop{gop}_{audio}_out{left_out}_doubled{doubled}.{extension}")
    }

    fn encode(&self, folder: &Path) -> Result<PathBuf> {
        let (sound, file) = (folder.join("sound.s16"), folder.join("clip").with_extension(self.container.extension()));
        let (size, rate) = (format!("{}x{}", self.width, self.height), self.rate.to_string());
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args([
            "-v", "error", "-nostdin", "-y", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", &size, "-r", &rate, "-i", "pipe:0",
        ]);
        if self.audio {
            self.write_pcm(io::BufWriter::new(fs::File::create(&sound)?))?;
            ffmpeg.args(["-f", "s16le", "-ar", "48000", "-ac", "2", "-i"]).arg(&sound);
        }
        if !self.left_out.is_empty() {
            let ranges: Vec<_> = self.left_out.iter().map(|r| format!("between(n,{},{})", r.start, r.end - 1)).collect();
            ffmpeg.args(["-vf", &format!("select='not({})'", ranges.join("+")), "-fps_mode", "passthrough"]);
        }
        ffmpeg.args(["-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact"]);
        // Tags that say what the picture is made in, as cameras write them: nothing is left to guess.
        ffmpeg.args(["-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv"]);
        let gop = self.gop.to_string();
        match self.container {
            Container::Webm => {
                let speed =
                    ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-threads", "1", "-b:v", "2M", "-g", &gop];
                ffmpeg.args(speed).args(["-c:a", "libvorbis", "-b:a", "128k"]);
            }
            Container::Mov => {
                ffmpeg.args(["-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj422p", "-color_range", "pc", "-c:a", "pcm_s16le"]);
            }
            Container::Mp4 | Container::Mkv | Container::Ts => {
                let x264 = format!("keyint={gop}:min-keyint={gop}:scenecut=0:bframes=3:threads=1");
                ffmpeg.args(["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-x264-params", &x264]);
                ffmpeg.args(["-c:a", "aac", "-b:a", "160k"]);
            }
        }
        process::run_fed(ffmpeg.arg(&file), ENCODE_LIMIT, |input| self.draw(input))?.success()?;
        Ok(file)
    }

    fn draw(&self, output: &mut impl Write) -> io::Result<()> {
        let flashes = self.flashes();
        let luma = self.width * self.height;
        let mut frame = vec![128_u8; luma + luma / 2];
        for n in 0..self.frames {
            let number = if self.doubled.contains(&n) { n - 1 } else { n };
            barcode::draw(&mut frame[..luma], self.width, self.height, number, flashes.contains(&n));
            output.write_all(&frame)?;
        }
        Ok(())
    }

    /// The whole sound as 16-bit little-endian stereo: a faint tone that slides slowly, so that no stretch of it is like
    /// another, and the beeps.
    fn write_pcm(&self, mut output: impl Write) -> io::Result<()> {
        let late_ns = i64::from(self.beeps_late_ms) * 1_000_000;
        let starts: Vec<i64> = self.flashes().into_iter().map(|number| self.sample_at(self.start_ns(number) + late_ns)).collect();
        let mut next = 0;
        for at in 0..self.sample_at(self.duration_ns()) {
            while starts.get(next + 1).is_some_and(|start| *start <= at) {
                next += 1;
            }
            let into = starts.get(next).map(|start| at - start).filter(|into| (0..i64::from(BEEP_SAMPLES)).contains(into));
            let tone =
                into.map_or(0.0, |into| f64::from(BEEP_AMPLITUDE) * (std::f64::consts::TAU * 1000.0 * seconds(into)).cos());
            #[expect(clippy::cast_possible_truncation, reason = "samples are within -1 and 1")]
            let sample = ((background(seconds(at)) + tone) * 32_767.0) as i16;
            output.write_all(&sample.to_le_bytes())?;
            output.write_all(&sample.to_le_bytes())?;
        }
        output.flush()
    }

    fn sample_at(&self, ns: i64) -> i64 {
        let scaled = i128::from(ns) * i128::from(AUDIO_RATE) + i128::from(SECOND_NS / 2);
        i64::try_from(scaled.div_euclid(i128::from(SECOND_NS))).unwrap_or(i64::MAX)
    }
}

/// How long the background slides before it begins anew; never where a beep begins.
const SLIDE_SECONDS: f64 = 120.5;

fn background(at_s: f64) -> f64 {
    // A slide from 200 Hz up by 10 Hz each second, from the start again before it is too high to be told from noise: its phase is
    // the integral of its frequency.
    let at_s = at_s % SLIDE_SECONDS;
    0.04 * (std::f64::consts::TAU * (at_s * (200.0 + 5.0 * at_s)).fract()).sin()
}

#[expect(clippy::cast_precision_loss, reason = "a clip has far fewer than 2^52 samples")]
fn seconds(sample: i64) -> f64 {
    sample as f64 / f64::from(AUDIO_RATE)
}
