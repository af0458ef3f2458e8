//! Hardware encoders, which are preferred where they work, and whose failures cost a piece of the work each and no more. A
//! scheduler and a worker as `shoal transcode` has them; the worker's children are this program, with elements in the place of
//! a driver's that fail as they are told ([`stand_in`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use farm::broker::Broker;
use farm::encoder::{Device, Offer};
use farm::job::{Copying, Hardware, JobId, JobSpec, LadderSpec, Layout, Mp4, RungSpec, VideoCodec, VideoSpec};
use farm::storage::Storage;
use farm::task::{TaskId, Word};
use farm::{Class, Code, Failure, Life, keys};
use scheduler::report::Report;
use scheduler::scheduler::Aftercare;
use scheduler::{JobResult, Scheduler};
use tempfile::TempDir;
use tests::clip::Clip;
use tests::hls::Presentation;
use tests::{mp4, process, reader};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};
use url::Url;
use worker::sandbox::Sandboxing;
use worker::{ChildCommand, Devices, Worker};

use self::stand_in::{Behaviour, Fault};

#[path = "hardware/stand_in.rs"]
mod stand_in;

/// Longest wait for what must come: a machine of two cores that others use too.
const LIMIT: Duration = Duration::from_secs(180);
/// Longest silence of a child that is to be found hanging. Of others it is the usual: machines may be slow.
const STALL: Duration = Duration::from_secs(5);
/// Longest time that a reader may take.
const READ_LIMIT: Duration = Duration::from_secs(60);
/// The only device of most tests, as reports and failures name it.
const DEVICE: &str = "nvenc on /dev/stand-in0";
const NVENC: &[Class] = &[Class::Nvenc];
/// Two rungs, the smaller one the smallest that devices are asked for.
const HEIGHTS: &[u32] = &[180, 144];

/// What all jobs are made of: three pieces of 4 s, of two GOPs each.
fn clip() -> Clip {
    Clip::new("25", 12).size(320, 180)
}

/// The child of a worker, whose last argument says how its elements behave.
#[test]
#[ignore = "is started by the workers of the other tests"]
fn child() -> Result<()> {
    let how = std::env::args().next_back().unwrap_or_default();
    // Whoever runs all tests that are ignored says nothing of the kind.
    let Ok(behaviour) = serde_json::from_str(&how) else { return Ok(()) };
    pipelines::init()?;
    stand_in::register(behaviour)?;
    // This is not the first thread of its process, so it cannot be walled in.
    let is_done = worker::child::main(Sandboxing::Off) == ExitCode::SUCCESS;
    std::process::exit(i32::from(!is_done));
}

/// A worker with devices of these classes that behave like this.
fn settings(behaviour: &Behaviour, classes: &[Class]) -> Result<worker::Settings> {
    let how = serde_json::to_string(behaviour)?;
    let args = ["--ignored", "--exact", "--nocapture", "child", &how].map(str::to_owned);
    let device = |class: &Class| Device { class: *class, number: 0, node: "/dev/stand-in0".into() };
    let devices = Devices::These(classes.iter().map(device).collect());
    let usual = worker::Settings::new(2, ChildCommand::this_program(args.to_vec()));
    let stall = if matches!(behaviour, Behaviour::From(_, Fault::Hangs)) { STALL } else { usual.stall };
    Ok(worker::Settings { stall, devices, ..usual })
}

/// A scheduler and a worker.
struct Farm {
    worker: Option<worker::Handle>,
    scheduler: scheduler::Handle,
    broker: Broker,
    state: Storage,
    folder: TempDir,
}

/// What came of a job.
struct Made {
    output: PathBuf,
    report: Report,
}

impl Farm {
    fn start(settings: worker::Settings) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (state, broker) = (Storage::folder(&folder.path().join("state")), Broker::local());
        // What is known of a job is looked at when it has ended.
        let usual = scheduler::Settings::for_slots(settings.slots);
        let usual = scheduler::Settings { aftercare: Aftercare::Later, ..usual };
        let scheduler = Scheduler::start(usual, state.clone(), broker.clone());
        let mut farm = Self { worker: None, scheduler, broker, state, folder };
        farm.replace_worker(settings)?;
        Ok(farm)
    }

    /// Ends the worker as if it died, and starts another.
    fn replace_worker(&mut self, settings: worker::Settings) -> Result<()> {
        self.worker = None;
        self.worker = Some(Worker::start(settings, self.state.clone(), self.broker.clone())?);
        Ok(())
    }

    /// A job with rungs of these heights, whose result goes into a folder of this name.
    fn spec(&self, name: &str, heights: &[u32]) -> Result<JobSpec> {
        let no_url = |()| anyhow!("a path that is no URL");
        let output = self.folder.path().join(name);
        fs::create_dir_all(&output)?;
        let source = Url::from_file_path(clip().file()?).map_err(no_url)?;
        let mut spec = JobSpec::new(source, Url::from_directory_path(&output).map_err(no_url)?);
        let rung = |height: &u32| RungSpec { height: *height, fps: None, video: None };
        spec.ladder = LadderSpec::Rungs(heights.iter().map(rung).collect());
        (spec.segment_seconds, spec.chunk_seconds, spec.copy) = (2, Some(4), Copying::Never);
        Ok(spec)
    }

    /// Does a job, however it ends.
    async fn ended(&self, spec: JobSpec) -> Result<(JobId, JobResult)> {
        let job = self.scheduler.submit(spec).await?;
        let ended = timeout(LIMIT, self.scheduler.wait(&job)).await.context("the job hangs")??;
        Ok((job, ended))
    }

    /// Does a job, which must work.
    async fn done(&self, spec: JobSpec) -> Result<Made> {
        let output = spec.output.url.to_file_path().map_err(|()| anyhow!("a URL that is no path"))?;
        let (job, ended) = self.ended(spec).await?;
        ensure!(matches!(ended, JobResult::Done(_)), "{ended:?}");
        let report: Report = serde_json::from_slice(&fs::read(output.join(keys::REPORT))?)?;
        let made = Made { output, report };
        let failed = self.state.list(&keys::fail_prefix(&job, Life::FIRST)).await?.len();
        made.says_what_fell_back(failed)?;
        Ok(made)
    }
}

impl Made {
    /// Each failure of a device is told with the device and the reason, and costs one piece of the work that is not made on the
    /// device then; `failed` attempts are on record.
    fn says_what_fell_back(&self, failed: usize) -> Result<()> {
        let (fallbacks, on_device) = (&self.report.fallbacks, self.on_device());
        ensure!(failed == fallbacks.len(), "{failed} attempts failed, and these are told: {fallbacks:?}");
        let tasks: BTreeSet<&TaskId> = fallbacks.iter().map(|fallback| &fallback.task).collect();
        ensure!(tasks.len() == fallbacks.len(), "one failed twice: {fallbacks:?}");
        for fallback in fallbacks {
            let Failure { code, message, .. } = &fallback.failure;
            ensure!(fallback.attempt == 1 && *code == Code::DeviceFailed, "{fallback:?}");
            ensure!(message.strip_prefix(DEVICE).is_some_and(|reason| reason.len() > 2), "no device or no reason: {message}");
            ensure!(!on_device.contains(&fallback.task.to_string()), "{} is made on the device all the same", fallback.task);
        }
        Ok(())
    }

    /// Whose encoder the plan has for each rung.
    fn encoders(&self) -> BTreeMap<&str, Class> {
        self.report.renditions.iter().filter_map(|made| Some((made.id.0.as_str(), made.encoder?))).collect()
    }

    /// The tasks that were done on [`DEVICE`].
    fn on_device(&self) -> Vec<String> {
        let devices = self.report.devices.iter().filter(|device| device.device == DEVICE);
        let mut tasks: Vec<String> = devices.flat_map(|device| device.tasks.iter().map(ToString::to_string)).collect();
        tasks.sort();
        tasks
    }

    /// The tasks that were to be done on a device and were not.
    fn fallen_back(&self) -> Vec<String> {
        self.report.fallbacks.iter().map(|fallback| fallback.task.to_string()).collect()
    }

    /// Every frame of every rung is there once and in order, and every GOP is a segment. How many init segments each rung has one
    /// after another.
    fn is_whole(&self) -> Result<BTreeMap<String, usize>> {
        let rungs = self.encoders().into_keys();
        let inits = rungs.map(|id| {
            let folder = tempfile::tempdir()?;
            let runs = runs(&self.output.join(id).join("index.m3u8"), folder.path()).with_context(|| id.to_owned())?;
            has_every_frame(&runs).with_context(|| id.to_owned())?;
            Ok((id.to_owned(), runs.len()))
        });
        let inits: BTreeMap<String, usize> = inits.collect::<Result<_>>()?;
        ensure!(inits.len() >= HEIGHTS.len(), "rungs are missing: {inits:?}");
        Ok(inits)
    }
}

/// The media of a playlist as files, one for each init segment that it names, with what is to be decoded with that: as players
/// take them, and as `ffmpeg` alone does not, which skips all init segments of a playlist but the first.
fn runs(playlist: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read(playlist)?;
    let listed = m3u8_rs::parse_media_playlist_res(&text).map_err(|error| anyhow!("{}: {error}", playlist.display()))?;
    let beside = playlist.parent().context("a folder")?;
    let (mut runs, mut current): (Vec<Vec<u8>>, Option<(String, mp4::Track)>) = (Vec::new(), None);
    for segment in &listed.segments {
        if let Some(map) = &segment.map
            && current.as_ref().is_none_or(|(uri, _)| *uri != map.uri)
        {
            let init = fs::read(beside.join(&map.uri))?;
            current = Some((map.uri.clone(), mp4::track(&init)?));
            runs.push(init);
        }
        let ((_, track), run) = current.as_ref().zip(runs.last_mut()).context("no EXT-X-MAP")?;
        let bytes = fs::read(beside.join(&segment.uri))?;
        let samples = track.samples(&bytes)?;
        ensure!(samples.first().is_some_and(|first| first.sync && first.idr), "{} begins with no key frame", segment.uri);
        let others = samples.iter().skip(1).filter(|sample| sample.sync || sample.idr).count();
        ensure!(others == 0, "{} has {others} key frames more than one", segment.uri);
        run.extend(bytes);
    }
    let write = |(number, run): (usize, Vec<u8>)| {
        let path = folder.join(format!("{number}.mp4"));
        fs::write(&path, run)?;
        Ok(path)
    };
    runs.into_iter().enumerate().map(write).collect()
}

/// These files one after another have every frame of the clip once, in order and at its time.
fn has_every_frame(files: &[PathBuf]) -> Result<()> {
    let mut frames = Vec::new();
    for file in files {
        frames.extend(reader::frames(file, "0:v:0")?);
    }
    let clip = clip();
    let faults = reader::frame_faults(&frames, &clip.numbers(), |number| clip.start_ns(number));
    ensure!(faults.is_empty(), "{faults:?}");
    Ok(())
}

/// A file is decoded from one end to the other without a word, and has every frame.
fn is_whole_file(file: &Path) -> Result<()> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "warning", "-xerror", "-i"]).arg(file).args(["-map", "0:v", "-f", "null", "-"]);
    let said = process::run(&mut ffmpeg, READ_LIMIT)?.success()?.stderr;
    ensure!(said.is_empty(), "{}: {said}", file.display());
    has_every_frame(&[file.to_owned()]).with_context(|| file.display().to_string())
}

/// Of a job with a file per rendition and plain MP4 files, every file is whole.
fn has_whole_files(made: &Made) -> Result<()> {
    let presentation = Presentation::read(&made.output)?;
    let mut files: Vec<PathBuf> = Vec::new();
    for rung in presentation.videos() {
        ensure!(rung.files.len() == 1, "{}: {:?}", rung.name(), rung.files);
        files.extend(rung.files.iter().cloned());
    }
    let plain = made.report.renditions.iter().filter_map(|rendition| rendition.mp4.as_ref());
    files.extend(plain.map(|file| made.output.join(&file.key)));
    ensure!(files.len() == 2 * HEIGHTS.len(), "{files:?}");
    files.iter().try_for_each(|file| is_whole_file(file))
}

fn chunk(number: u32) -> String {
    TaskId::Video(number).to_string()
}

/// Waits until a worker says that it offers this.
async fn offered(words: &mut Receiver<Word>, is_it: impl Fn(&Offer) -> bool) -> Result<()> {
    let hear = async {
        loop {
            match words.recv().await {
                Ok(Word::Offer(offer)) if is_it(&offer) => return Ok(()),
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => bail!("nobody says anything any more"),
            }
        }
    };
    timeout(LIMIT, hear).await.context("it is not offered")?
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_classes_the_preferred_one_is_pinned_and_codecs_that_it_lacks_are_left_to_the_processor() -> Result<()> {
    let farm = Farm::start(settings(&Behaviour::Honest, &[Class::Vaapi, Class::Nvenc])?)?;
    let mut spec = farm.spec("mixed", HEIGHTS)?;
    let video = |codec| Some(VideoSpec { codec, quality: Some(farm::Quality::of_tenths(300)), bitrate: None, max_bitrate: None });
    spec.ladder = LadderSpec::Rungs(vec![
        RungSpec { height: 180, fps: None, video: video(VideoCodec::H264) },
        RungSpec { height: 144, fps: None, video: video(VideoCodec::H264) },
        RungSpec { height: 144, fps: None, video: video(VideoCodec::Hevc) },
    ]);
    let made = farm.done(spec).await?;
    let wanted = [("v180", Class::Nvenc), ("v144", Class::Nvenc), ("v144-hevc", Class::Cpu)];
    assert_eq!(made.encoders(), BTreeMap::from(wanted));
    assert_eq!(made.on_device(), [chunk(0), chunk(1), chunk(2)]);
    assert_eq!(made.report.devices.len(), 1, "{:?}", made.report.devices);
    assert_eq!(made.fallen_back(), Vec::<String>::new());
    let inits = made.is_whole()?;
    assert!(inits.len() == 3 && inits.values().all(|count| *count == 1), "{inits:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_may_avoid_hardware_and_may_require_it() -> Result<()> {
    let farm = Farm::start(settings(&Behaviour::Honest, NVENC)?)?;
    let avoiding = JobSpec { hardware: Some(Hardware::Avoid), ..farm.spec("avoid", HEIGHTS)? };
    let made = farm.done(avoiding).await?;
    assert!(made.encoders().values().all(Class::is_cpu), "{:?}", made.encoders());
    assert!(made.report.devices.is_empty(), "{:?}", made.report.devices);
    made.is_whole()?;
    let requiring = JobSpec { hardware: Some(Hardware::Require), ..farm.spec("require", HEIGHTS)? };
    let made = farm.done(requiring).await?;
    assert!(made.encoders().values().all(|class| *class == Class::Nvenc), "{:?}", made.encoders());
    assert_eq!(made.on_device(), [chunk(0), chunk(1), chunk(2)]);
    made.is_whole()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_device_works_none_is_used_and_who_requires_one_is_refused() -> Result<()> {
    for classes in [&[][..], NVENC] {
        let farm = Farm::start(settings(&Behaviour::Refuses, classes)?)?;
        let made = farm.done(farm.spec("prefer", HEIGHTS)?).await?;
        assert!(made.encoders().values().all(Class::is_cpu), "{:?}", made.encoders());
        assert_eq!((made.report.devices.len(), made.fallen_back().len()), (0, 0), "what was never offered cannot fail");
        made.is_whole()?;
        let requiring = JobSpec { hardware: Some(Hardware::Require), ..farm.spec("require", HEIGHTS)? };
        let (_, ended) = farm.ended(requiring).await?;
        let JobResult::Failed { failure, .. } = ended else { bail!("{ended:?}") };
        assert!(failure.code == Code::InvalidRequest && failure.message.contains("hardware"), "{failure:?}");
    }
    Ok(())
}

/// Nobody says how many encoders may be open at a time: one task finds it out.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_sessions_is_found_and_kept_to() -> Result<()> {
    let behaviour = Behaviour::Sessions { most: 2, name: format!("shoal-stand-in-{}", std::process::id()) };
    // A task at a time, so that all that are open are its own.
    let farm = Farm::start(worker::Settings { slots: 1, ..settings(&behaviour, NVENC)? })?;
    let mut words = farm.broker.listen();
    let first = farm.done(farm.spec("first", &[180, 160, 144])?).await?;
    assert_eq!(first.encoders().values().filter(|class| class.is_hardware()).count(), 3, "it is not known before");
    assert_eq!(first.fallen_back(), [chunk(0)]);
    first.is_whole()?;
    offered(&mut words, |offer| offer.encoders.iter().any(|offered| offered.sessions_max == Some(2))).await?;
    let second = farm.done(farm.spec("second", &[180, 160, 144])?).await?;
    let wanted = [("v180", Class::Nvenc), ("v160", Class::Nvenc), ("v144", Class::Cpu)];
    assert_eq!(second.encoders(), BTreeMap::from(wanted));
    assert_eq!(second.on_device(), [chunk(0), chunk(1), chunk(2)]);
    assert_eq!(second.fallen_back(), Vec::<String>::new());
    second.is_whole()?;
    Ok(())
}

/// What goes wrong in the last piece of the work, from this second on, costs that piece and nothing else. The reason.
async fn one_piece_falls_back(second: u64, fault: Fault) -> Result<String> {
    let farm = Farm::start(settings(&Behaviour::From(second, fault), NVENC)?)?;
    let made = farm.done(farm.spec("out", HEIGHTS)?).await?;
    assert!(made.encoders().values().all(|class| *class == Class::Nvenc), "{:?}", made.encoders());
    assert_eq!(made.on_device(), [chunk(0), chunk(1)]);
    assert_eq!(made.fallen_back(), [chunk(2)]);
    made.is_whole()?;
    Ok(made.report.fallbacks.first().context("a fallback")?.failure.message.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_dies_in_the_middle_costs_a_piece() -> Result<()> {
    let reason = one_piece_falls_back(10, Fault::Dies).await?;
    assert!(reason.contains(stand_in::DYING_WORDS), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_its_process_along_costs_a_piece() -> Result<()> {
    let reason = one_piece_falls_back(10, Fault::Aborts).await?;
    assert!(reason.contains("SIGABRT"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_costs_a_piece() -> Result<()> {
    let reason = one_piece_falls_back(10, Fault::Hangs).await?;
    assert!(reason.contains("said nothing for 5 s"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_picture_than_went_in_is_not_let_out() -> Result<()> {
    let reason = one_piece_falls_back(10, Fault::ShowsAnother).await?;
    assert!(reason.contains("is not what went in"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_are_not_let_out() -> Result<()> {
    let reason = one_piece_falls_back(10, Fault::WritesNoise).await?;
    assert!(reason.contains("is not what went in"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn key_frames_that_are_not_made_are_missed() -> Result<()> {
    let reason = one_piece_falls_back(8, Fault::ForgetsKeyFrames).await?;
    assert!(reason.contains("a segment does not start with a key frame"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_lost_is_missed() -> Result<()> {
    let reason = one_piece_falls_back(10, Fault::LosesAFrame).await?;
    assert!(reason.contains("made 99 frames of 100"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn parameter_sets_that_change_within_a_piece_are_noticed() -> Result<()> {
    let reason = one_piece_falls_back(10, Fault::ChangesSets).await?;
    assert!(reason.contains("its parameter sets change"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_other_parameter_sets_are_played_with_their_own() -> Result<()> {
    let farm = Farm::start(settings(&Behaviour::OtherSetsEvery(4), NVENC)?)?;
    let made = farm.done(farm.spec("out", HEIGHTS)?).await?;
    assert_eq!(made.on_device(), [chunk(0), chunk(1), chunk(2)]);
    assert_eq!(made.fallen_back(), Vec::<String>::new());
    let inits = made.is_whole()?;
    assert!(inits.values().all(|count| *count == 3), "{inits:?}");
    Ok(())
}

/// The same job, each rung as a file and as a plain MP4.
fn as_files(spec: JobSpec) -> JobSpec {
    let mut spec = spec;
    (spec.output.layout, spec.output.mp4) = (Layout::SingleFile, Mp4::EachRung);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_file_pieces_of_other_parameter_sets_are_made_on_the_processor() -> Result<()> {
    // A piece at a time, so that the sets of the first are those that count.
    let farm = Farm::start(worker::Settings { slots: 1, ..settings(&Behaviour::OtherSetsEvery(4), NVENC)? })?;
    let made = farm.done(as_files(farm.spec("out", HEIGHTS)?)).await?;
    // The last is made on the device again, which is not put aside for what it may do elsewhere.
    assert_eq!(made.on_device(), [chunk(0), chunk(2)]);
    assert_eq!(made.fallen_back(), [chunk(1)]);
    let reason = &made.report.fallbacks.first().context("a fallback")?.failure.message;
    assert!(reason.contains("parameter sets"), "{reason}");
    has_whole_files(&made)
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_a_device_and_of_the_processor_make_one_file() -> Result<()> {
    let farm = Farm::start(settings(&Behaviour::From(10, Fault::Dies), NVENC)?)?;
    let made = farm.done(as_files(farm.spec("out", HEIGHTS)?)).await?;
    assert_eq!(made.on_device(), [chunk(0), chunk(1)]);
    assert_eq!(made.fallen_back(), [chunk(2)]);
    has_whole_files(&made)
}

/// What fails is put aside, is not believed before it has proven itself, and is used again then.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_well_again_is_used_again() -> Result<()> {
    let marks = tempfile::tempdir()?;
    let behaviour = Behaviour::FallsIll { second: 10, mark: marks.path().join("ill") };
    let farm = Farm::start(settings(&behaviour, NVENC)?)?;
    let mut words = farm.broker.listen();
    let first = farm.done(farm.spec("first", HEIGHTS)?).await?;
    assert_eq!(first.fallen_back(), [chunk(2)]);
    first.is_whole()?;
    offered(&mut words, |offer| !offer.encoders.is_empty()).await?;
    offered(&mut words, |offer| offer.encoders.is_empty()).await?;
    offered(&mut words, |offer| !offer.encoders.is_empty()).await?;
    let second = farm.done(farm.spec("second", HEIGHTS)?).await?;
    assert_eq!(second.on_device(), [chunk(0), chunk(1), chunk(2)]);
    assert_eq!(second.fallen_back(), Vec::<String>::new());
    second.is_whole()?;
    Ok(())
}

/// A plan stays as it is when the devices that it was made for are gone; nothing waits for them to come back.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_planned_for_a_device_is_made_without_when_its_worker_is_gone() -> Result<()> {
    // From its second piece on the job cannot go on while that worker is there.
    let hanging = worker::Settings { stall: LIMIT, ..settings(&Behaviour::From(4, Fault::Hangs), NVENC)? };
    let mut farm = Farm::start(hanging)?;
    let spec = farm.spec("out", HEIGHTS)?;
    let job = farm.scheduler.submit(spec.clone()).await?;
    let first = keys::done(&job, &TaskId::Video(0));
    let is_done = async {
        while farm.state.get(&first).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LIMIT, is_done).await.context("the first piece is not made")?;
    farm.replace_worker(settings(&Behaviour::Honest, &[])?)?;
    // The same job under the same name: it is only waited for.
    let made = farm.done(JobSpec { id: Some(job), ..spec }).await?;
    assert!(made.encoders().values().all(|class| *class == Class::Nvenc), "{:?}", made.encoders());
    assert_eq!(made.on_device(), [chunk(0)]);
    assert_eq!(made.fallen_back(), Vec::<String>::new(), "whoever is gone has not failed");
    made.is_whole()?;
    Ok(())
}
