//! What a source's own times say of its start, its end and its tracks' distance holds for what is made of it: edit lists of
//! MP4, and time stamps that begin before or long after 0.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tests::clip::{Clip, Container};
use tests::hls::Presentation;
use tests::reader::{Frame, Sound};
use tests::{process, reader, rules, shoal, sync};

/// Sound that ends so near to the source's ends with it: a packet of AAC.
const PACKET_NS: i64 = 1024 * 1_000_000_000 / 48_000;
/// By how much picture and sound may be off: half a frame, since frames move to the nearest place of the grid, and 1 ms.
const OFF_NS_MAX: i64 = 21_000_000;
/// Stretch at the end in which sound must still be heard.
const END_SAMPLES: usize = 2400;
/// Least mean square there: the clips' faint tone has 0.0008.
const HEARD_POWER_MIN: f32 = 0.0003;

/// A source made of a clip without encoding it again.
struct Case {
    file: &'static str,
    clip: Clip,
    /// What `ffmpeg` is told of the clip as input for the picture, and for the sound.
    inputs: [&'static [&'static str]; 2],
    /// What it is told of the output.
    output: &'static [&'static str],
    /// By how much sound comes after its picture then, in ns.
    late_ns: i64,
}

fn clip() -> Clip {
    Clip::new("25", 12)
}

impl Case {
    /// A clip cut or moved as a whole.
    fn whole(file: &'static str, clip: Clip, input: &'static [&'static str], output: &'static [&'static str]) -> Self {
        Self { file, clip, inputs: [input; 2], output, late_ns: 0 }
    }

    fn make(&self, folder: &Path) -> Result<PathBuf> {
        let file = folder.join(self.file);
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error"]);
        for options in self.inputs {
            ffmpeg.args(options).arg("-i").arg(self.clip.file()?);
        }
        ffmpeg.args(["-map", "0:v", "-map", "1:a", "-c", "copy"]).args(self.output).arg(&file);
        process::run(&mut ffmpeg, Duration::from_secs(60))?.success()?;
        Ok(file)
    }

    /// What is wrong with what is made of it, against what `ffmpeg` sees in it.
    fn faults(&self) -> Result<Vec<String>> {
        let folder = tempfile::tempdir()?;
        let source = self.make(folder.path())?;
        let mut wanted = Seen::of(&source, &source)?;
        if self.output == FRAGMENTED {
            // Of these `ffmpeg` shows what the edit list cuts at the start.
            wanted.frames.retain(|frame| frame.time_ns >= 0);
            wanted.beeps_ns.retain(|&beep| beep > -OFF_NS_MAX);
        }
        let output = folder.path().join("out");
        shoal::done(&source, &output, &["--ladder", "240", "--chunk-seconds", "4"])?;
        let presentation = Presentation::read(&output)?;
        let made = Seen::of(&presentation.rendition("v240")?.path, &presentation.rendition("a0")?.path)?;
        let mut faults = rules::faults(&output)?;
        let mut seen = vec![sync::Seen { reader: "ffmpeg".to_owned(), offsets_ns: made.offsets_ns()? }];
        if self.late_ns >= 0 {
            // Where the picture comes later, its first frame is held: a flash of many frames.
            seen.extend(sync::readers(&presentation)?);
        }
        for seen in seen {
            if seen.offsets_ns.iter().any(|offset| (offset - self.late_ns).abs() > OFF_NS_MAX) {
                faults.push(format!("{}: sound {:?} ns late instead of {}", seen.reader, seen.offsets_ns, self.late_ns));
            }
        }
        faults.extend(made.picture_faults(&wanted));
        faults.extend(made.sound_faults(&wanted));
        Ok(faults)
    }
}

/// Picture and sound of a source or a result, in the eyes of `ffmpeg`.
struct Seen {
    frames: Vec<Frame>,
    sound: Sound,
    beeps_ns: Vec<i64>,
}

impl Seen {
    fn of(picture: &Path, sound: &Path) -> Result<Self> {
        let frames = reader::frames(picture, "0:v:0")?;
        let sound = reader::sound(sound, "0:a:0")?;
        let beeps_ns = sound.beeps_ns();
        Ok(Self { frames, sound, beeps_ns })
    }

    /// By how much beeps come after their flashes, in ns; a frame that is held before its own time counts at the last.
    fn offsets_ns(&self) -> Result<Vec<i64>> {
        let own = self.frames.iter().zip(self.frames.iter().skip(1)).filter(|(frame, next)| frame.number != next.number);
        let frames: Vec<Frame> = own.map(|(frame, _)| *frame).chain(self.frames.last().copied()).collect();
        reader::sync_ns(&reader::flashes_ns(&frames), &self.beeps_ns)
    }

    /// When a number is first shown, in ns.
    fn shown_ns(&self, number: u32) -> Option<i64> {
        self.frames.iter().find(|frame| frame.number == Ok(number)).map(|frame| frame.time_ns)
    }

    /// Every frame of the source is shown at its time to half a frame, counted from a flash in the middle; the grid may
    /// have had to leave one out at each end.
    fn picture_faults(&self, wanted: &Self) -> Vec<String> {
        let numbers = |seen: &Self| seen.frames.iter().filter_map(|frame| frame.number.ok()).collect::<Vec<_>>();
        let (made, source) = (numbers(self), numbers(wanted));
        let Some(&middle) = source.get(source.len() / 2) else { return vec!["no frames in the source".to_owned()] };
        let (Some(here_ns), Some(there_ns)) = (self.shown_ns(middle), wanted.shown_ns(middle)) else {
            return vec![format!("frame {middle} is not shown")];
        };
        let mut faults = Vec::new();
        for &number in source.iter().skip(1).rev().skip(1) {
            match (self.shown_ns(number), wanted.shown_ns(number)) {
                (Some(made_ns), Some(wanted_ns)) if ((made_ns - here_ns) - (wanted_ns - there_ns)).abs() <= OFF_NS_MAX => {}
                (made_ns, wanted_ns) => faults.push(format!("frame {number} is shown at {made_ns:?} instead of {wanted_ns:?}")),
            }
        }
        // The frame through which the source is cut: `ffmpeg` leaves it out.
        let more: BTreeSet<_> = made.iter().filter(|number| !source.contains(number)).collect();
        if more.len() > 1 {
            faults.push(format!("frames {more:?} are not the source's"));
        }
        faults.truncate(5);
        faults
    }

    /// Sound ends as long after its first beep as in the source, and is heard until then.
    fn sound_faults(&self, wanted: &Self) -> Vec<String> {
        let end_ns = |seen: &Self| {
            let first_beep_ns = seen.beeps_ns.first().copied().unwrap_or(i64::MIN / 2);
            seen.sound.time_ns(seen.sound.samples.len()) - first_beep_ns
        };
        let (made_ns, wanted_ns) = (end_ns(self), end_ns(wanted));
        let mut faults = Vec::new();
        if made_ns + PACKET_NS < wanted_ns || made_ns > wanted_ns + 2 * PACKET_NS {
            faults.push(format!("sound ends {made_ns} ns after the first beep instead of {wanted_ns}"));
        }
        let samples = &self.sound.samples;
        let padded = usize::try_from((made_ns - wanted_ns).max(0) * 48 / 1_000_000).unwrap_or(0);
        let end = &samples[..samples.len().saturating_sub(padded + 1024)];
        let end = &end[end.len().saturating_sub(END_SAMPLES)..];
        let power = end.iter().map(|sample| sample * sample).sum::<f32>() / END_SAMPLES as f32;
        if power < HEARD_POWER_MIN {
            faults.push(format!("silence at the end: power {power}"));
        }
        faults
    }
}

fn check_all(cases: &[Case]) -> Result<()> {
    let mut found = Vec::new();
    for case in cases {
        let faults = case.faults().unwrap_or_else(|error| vec![format!("{error:#}")]);
        found.extend(faults.into_iter().map(|fault| format!("{}: {fault}", case.file)));
    }
    assert_eq!(found, Vec::<String>::new());
    Ok(())
}

const FRAGMENTED: &[&str] = &["-movflags", "frag_keyframe+delay_moov+default_base_moof"];

#[test]
fn a_start_that_was_cut_without_encoding() -> Result<()> {
    let ntsc = Clip::new("30000/1001", 12);
    check_all(&[
        // Before the second key frame and behind it, in the middle of a frame and at one.
        Case::whole("cut.mp4", clip(), &["-ss", "2.37"], &[]),
        Case::whole("at-a-frame.mp4", clip(), &["-ss", "2.4"], &[]),
        Case::whole("later.mp4", clip(), &["-ss", "6.21"], &[]),
        Case::whole("ntsc.mp4", ntsc, &["-ss", "2.37"], &[]),
        Case::whole("cut.mov", clip(), &["-ss", "2.37"], &["-c:a", "pcm_s16le"]),
        Case::whole("fragmented.mp4", clip(), &["-ss", "2.37"], FRAGMENTED),
    ])
}

#[test]
fn an_end_that_was_cut_without_encoding() -> Result<()> {
    check_all(&[
        Case::whole("end.mp4", clip(), &["-t", "7.53"], &[]),
        Case::whole("both.mp4", clip(), &["-ss", "2.37", "-t", "6.5"], &[]),
    ])
}

#[test]
fn without_a_list_reordered_pictures_keep_their_last_frames() -> Result<()> {
    let (folder, clip) = (tempfile::tempdir()?, clip());
    let (source, output) = (folder.path().join("none.mp4"), folder.path().join("out"));
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-i"]).arg(clip.file()?).args(["-map", "0:v", "-c", "copy", "-use_editlist", "0"]).arg(&source);
    process::run(&mut ffmpeg, Duration::from_secs(60))?.success()?;
    shoal::done(&source, &output, &["--ladder", "240", "--chunk-seconds", "4"])?;
    let made = reader::frames(&Presentation::read(&output)?.rendition("v240")?.path, "0:v:0")?;
    let numbers: Vec<u32> = made.iter().filter_map(|frame| frame.number.ok()).collect();
    assert_eq!(numbers, clip.numbers());
    Ok(())
}

#[test]
fn tracks_that_do_not_start_together() -> Result<()> {
    let sound_late = |file, output| Case {
        inputs: [&[], &["-itsoffset", "0.7"]],
        late_ns: 700_000_000,
        ..Case::whole(file, clip(), &[], output)
    };
    let picture_late = |file, output| Case {
        inputs: [&["-itsoffset", "0.7"], &[]],
        late_ns: -700_000_000,
        ..Case::whole(file, clip(), &[], output)
    };
    check_all(&[
        sound_late("sound-late.mp4", &[]),
        sound_late("sound-late-fragmented.mp4", FRAGMENTED),
        sound_late("sound-late.mkv", &[]),
        picture_late("picture-late.mp4", &[]),
        picture_late("picture-late-fragmented.mp4", FRAGMENTED),
    ])
}

#[test]
fn sound_that_ends_before_its_picture() -> Result<()> {
    let short = |file, output| Case { inputs: [&[], &["-t", "11.2"]], ..Case::whole(file, clip(), &[], output) };
    check_all(&[
        short("short.mp4", &[]),
        short("short-fragmented.mp4", FRAGMENTED),
        short("short.mkv", &[]),
        short("short.ts", &[]),
    ])
}

#[test]
fn time_stamps_before_zero() -> Result<()> {
    const KEPT: &[&str] = &["-avoid_negative_ts", "disabled"];
    check_all(&[
        Case::whole("before.ts", clip().container(Container::Ts), &["-itsoffset", "-2.1"], KEPT),
        Case::whole("before.mp4", clip(), &["-itsoffset", "-0.4"], KEPT),
    ])
}
