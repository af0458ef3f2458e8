//! Edits, storyboards, and sound that stands apart: made of the original, and nothing made twice.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tests::clip::Clip;
use tests::farm::Farm;
use tests::peertube::{Instance, Like, State, Task, Trouble, V7_3, V8_2};
use tests::service::Service;
use tests::{process, reader, stills};

use super::{LIMIT, clip, farm, jobs_of, nothing_secret, whole};

const RED: &str = "0xE02020";

/// A picture that is red all over.
fn red(folder: &Path) -> Result<PathBuf> {
    let file = folder.join("red.png");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", &format!("color={RED}:size=64x64"), "-frames:v", "1"]);
    process::run(ffmpeg.arg(&file), LIMIT)?.success()?;
    Ok(file)
}

/// The mean colour of the middle of a watermark a tenth as high as a picture of 360 lines, 0.02 of that from the right edge and
/// 0.45 from the upper one, in the first frame.
fn colour(file: &Path) -> Result<Vec<u8>> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg
        .args(["-v", "error", "-nostdin", "-i"])
        .arg(file)
        .args(["-vf", "crop=20:20:605:170,scale=1:1:flags=area,format=rgb24"]);
    ffmpeg.args(["-frames:v", "1", "-f", "rawvideo", "pipe:1"]);
    Ok(process::run(&mut ffmpeg, LIMIT)?.success()?.stdout)
}

/// Frames of these numbers, from the first to before the last, one stretch after the other, are in each picture of the video, 25
/// in a second.
fn shows(instance: &Instance, video: &str, stretches: &[(u32, u32)]) -> Result<()> {
    let wanted: Vec<u32> = stretches.iter().flat_map(|&(first, end)| first..end).collect();
    for file in instance.files(video).into_iter().filter(|file| file.resolution > 0) {
        let frames = reader::frames(&file.path, "0:v:0")?;
        let numbers: Vec<u32> = frames.iter().map(|frame| frame.number.unwrap_or(u32::MAX)).collect();
        ensure!(numbers == wanted, "{}: {numbers:?} instead of {stretches:?}", file.path.display());
        let first_ns = frames.first().context("a frame")?.time_ns;
        let odd = (0_i64..).zip(&frames).find(|(place, frame)| (frame.time_ns - first_ns - place * 40_000_000).abs() > 1_000_000);
        ensure!(odd.is_none(), "{}: at its place is not {odd:?}", file.path.display());
    }
    Ok(())
}

/// The sound of the web video of this resolution goes with its picture, to its end, and so does every sound that stands alone:
/// of what was cut away nothing is heard.
fn is_in_sync(instance: &Instance, video: &str, resolution: u32) -> Result<()> {
    let files = instance.files(video);
    let web = files.iter().find(|file| file.resolution == resolution && file.playlist.is_none()).context("a web video")?;
    let alone: Vec<_> = files.iter().filter(|file| file.resolution == 0).collect();
    ensure!(!alone.is_empty(), "no sound stands alone: {files:?}");
    let frames = reader::frames(&web.path, "0:v:0")?;
    let picture_ns = i64::try_from(frames.len())? * 40_000_000;
    for file in alone.into_iter().chain([web]) {
        let (sound, shown) = (reader::sound(&file.path, "0:a:0")?, file.path.display());
        let offsets = reader::sync_ns(&reader::flashes_ns(&frames), &sound.beeps_ns()).with_context(|| shown.to_string())?;
        let apart_max_ns = if file.playlist.is_some() { 30_000_000 } else { 20_000_000 };
        ensure!(offsets.iter().all(|offset| offset.abs() < apart_max_ns), "{shown}: {offsets:?}");
        let sound_ns = sound.duration_ns();
        ensure!((sound_ns - picture_ns).abs() < 100_000_000, "{shown}: {sound_ns} ns of sound for {picture_ns}");
    }
    Ok(())
}

/// Every runner job was done at the first try, in so many jobs of the farm, and the source was fetched once.
fn nothing_twice(instance: &Instance, farm: &Farm, scheduler: &Service, jobs: usize) -> Result<()> {
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    ensure!(instance.jobs().iter().all(|job| job.accepted == 1 && job.failures == 0), "{:?}", instance.jobs());
    ensure!(jobs_of(farm)? == jobs, "{} jobs of the farm instead of {jobs}", jobs_of(farm)?);
    let fetched = scheduler.series("shoal_peertube_sources_total", "from=\"fetched\"");
    ensure!(fetched == Some(1.0), "fetched {fetched:?} times");
    nothing_secret(farm)
}

fn edited(like: Like) -> Result<()> {
    let instance = Instance::start(like)?;
    let mut farm = farm(&instance, "")?;
    let (scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    let (intro, outro) = (Clip::new("25", 2).file()?, Clip::new("25", 1).file()?);
    let red = red(farm.folder.path())?;
    let video = instance.upload(&clip(10).file()?, 360, 25)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    let watermark = Task::Watermark { file: &red, ratios: [0.1, 0.02, 0.45] };
    let (cut, removed) = (Task::Cut(3.0, Some(7.6)), Task::Remove(&[(1.2, 2.2)]));
    // Stretches can be removed from 8.2 on.
    let (tasks, main): (Vec<Task<'_>>, Vec<(u32, u32)>) = match like.storyboards {
        true => (vec![cut, removed, Task::Intro(&intro), Task::Outro(&outro), watermark], vec![(75, 105), (130, 190)]),
        false => (vec![cut, Task::Intro(&intro), Task::Outro(&outro), watermark], vec![(75, 190)]),
    };
    // The instance takes it, and the runner does not hear of that.
    instance.trouble(Trouble::LostAnswer, 1);
    instance.edit(&video, &tasks)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    ensure!(instance.troubles_left() == 0, "the answer was not lost");
    shows(&instance, &video, &[vec![(0, 50)], main, vec![(0, 25)]].concat())?;
    is_in_sync(&instance, &video, 360)?;
    let files = instance.files(&video);
    let web = files.iter().find(|file| file.resolution == 360 && file.playlist.is_none()).context("a web video")?;
    let seen = colour(&web.path)?;
    ensure!(matches!(seen[..], [r, g, b] if r > 150 && g < 100 && b < 100), "{seen:?} where the watermark is");
    // One ladder of the upload, one of the edit: all forms that were asked for after it were there.
    nothing_twice(&instance, &farm, &scheduler, 2)?;
    // Edited once more, it is still made of the original.
    instance.edit(&video, &[Task::Cut(0.0, Some(3.0))])?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    shows(&instance, &video, &[(0, 50), (75, 100)])?;
    nothing_twice(&instance, &farm, &scheduler, 3)
}

#[test]
fn an_edited_video_is_made_of_the_original_with_all_that_is_asked_for_after_it() -> Result<()> {
    edited(V7_3)
}

#[test]
fn edits_are_read_as_later_servers_spell_them() -> Result<()> {
    edited(V8_2)
}

#[test]
fn an_edit_that_is_stopped_leaves_the_video_as_it_was() -> Result<()> {
    let instance = Instance::start(V7_3)?;
    let mut farm = farm(&instance, "")?;
    let (scheduler, worker) = (farm.scheduler()?, farm.worker()?);
    let clip = clip(10);
    let video = instance.upload(&clip.file()?, 360, 25)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    // So that it does not come to its end meanwhile.
    worker.freeze();
    instance.edit(&video, &[Task::Cut(2.0, None)])?;
    farm.until("the farm has it", || Ok(jobs_of(&farm)? == 2))?;
    instance.cancel();
    let results = || Ok::<_, anyhow::Error>(farm.keys("state/jobs/")?.iter().filter(|key| key.contains("/result-")).count());
    farm.until("the farm stops", || Ok(results()? == 2))?;
    worker.thaw();
    instance.transcode(&video, 360, 25);
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    whole(&instance, &video, &clip)?;
    nothing_twice(&instance, &farm, &scheduler, 2)
}

#[test]
fn an_edit_is_as_large_as_what_it_takes_the_place_of_and_is_made_once_though_it_is_asked_for_again() -> Result<()> {
    let instance = Instance::start(V7_3)?;
    let mut farm = farm(&instance, "")?;
    let (scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    // Its largest picture is smaller than the source, as where an admin wants none so large.
    let video = instance.upload(&clip(10).file()?, 240, 25)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    instance.trouble(Trouble::OfferedAgain, 1);
    instance.edit(&video, &[Task::Cut(2.0, None)])?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    ensure!(instance.troubles_left() == 0, "it was not asked for again");
    shows(&instance, &video, &[(50, 250)])?;
    let (edits, others): (Vec<_>, Vec<_>) = instance.jobs().into_iter().partition(|job| job.kind == "video-studio-transcoding");
    ensure!(edits.iter().map(|job| (job.accepted, job.failures)).eq([(2, 0)]), "{edits:?}");
    ensure!(others.iter().all(|job| job.accepted == 1 && job.failures == 0), "{others:?}");
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    ensure!(jobs_of(&farm)? == 2, "{} jobs of the farm", jobs_of(&farm)?);
    ensure!(scheduler.series("shoal_peertube_sources_total", "from=\"fetched\"") == Some(1.0), "fetched more than once");
    Ok(())
}

#[test]
fn a_file_of_a_task_that_cannot_be_had_costs_no_second_source_and_leaves_nothing() -> Result<()> {
    let instance = Instance::start(V8_2)?;
    // So that the edit is what has the source fetched.
    let mut farm = farm(&instance, "jobs = ['studio']\n")?;
    let (scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    let (intro, outro) = (Clip::new("25", 2).file()?, Clip::new("25", 1).file()?);
    let video = instance.upload(&clip(4).file()?, 360, 25)?;
    instance.trouble(Trouble::NoTaskFile(1), 1);
    instance.edit(&video, &[Task::Intro(&intro), Task::Outro(&outro)])?;
    let edit = || instance.jobs().into_iter().find(|job| job.kind == "video-studio-transcoding");
    farm.until("it is edited", || Ok(edit().is_some_and(|job| job.state == State::Completed)))?;
    let edit = edit().context("an edit")?;
    ensure!(edit.failures == 1 && edit.error.contains("no such file"), "{edit:?}");
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    shows(&instance, &video, &[(0, 50), (0, 100), (0, 25)])?;
    ensure!(scheduler.series("shoal_peertube_sources_total", "from=\"fetched\"") == Some(1.0), "fetched more than once");
    let keys = farm.keys("state/peertube/")?;
    let files = keys.iter().filter(|key| key.ends_with("/file")).count();
    ensure!(files == 2, "{files} files of tasks: {keys:?}");
    Ok(())
}

#[test]
fn a_scheduler_that_is_killed_in_an_edit_leaves_it_to_the_next() -> Result<()> {
    let instance = Instance::start(V8_2)?;
    let mut farm = farm(&instance, "")?;
    let (mut first, _worker) = (farm.scheduler()?, farm.worker()?);
    let intro = Clip::new("25", 2).file()?;
    let video = instance.upload(&clip(40).file()?, 360, 25)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    instance.edit(&video, &[Task::Cut(1.0, None), Task::Intro(&intro)])?;
    let is_begun = || instance.jobs().iter().any(|job| job.kind == "video-studio-transcoding" && job.progress > 0);
    farm.until("it is being made", || Ok(is_begun()))?;
    first.kill()?;
    let _second = farm.scheduler()?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    shows(&instance, &video, &[(0, 50), (25, 1000)])?;
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    ensure!(instance.jobs().iter().all(|job| job.accepted == 1 && job.failures == 0), "{:?}", instance.jobs());
    ensure!(jobs_of(&farm)? == 2, "{} jobs of the farm", jobs_of(&farm)?);
    Ok(())
}

/// Each picture of a storyboard of 192x108 shows this frame.
fn board_shows(instance: &Instance, video: &str, columns: u32, numbers: &[u32]) -> Result<()> {
    let sheet = instance.storyboard(video).context("a storyboard")?;
    for (place, number) in (0..).zip(numbers) {
        let (x, y) = (place % columns * 192, place / columns * 108);
        let seen = stills::barcode(&sheet, [x, y, 192, 108])?;
        ensure!(seen.number == Ok(*number), "picture {place} shows {:?} instead of {number}", seen.number);
    }
    Ok(())
}

#[test]
fn a_storyboard_shows_the_frame_of_each_time_also_of_an_edited_video() -> Result<()> {
    let instance = Instance::start(V8_2)?;
    let mut farm = farm(&instance, "")?;
    let (scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    let video = instance.upload(&clip(10).file()?, 360, 25)?;
    instance.ask_storyboard(&video, (192, 108), (5, 2), 1)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    board_shows(&instance, &video, 5, &[0, 25, 50, 75, 100, 125, 150, 175, 200, 225])?;
    nothing_twice(&instance, &farm, &scheduler, 2)?;
    instance.edit(&video, &[Task::Cut(2.0, Some(6.0))])?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    // One place more than there are pictures: the sheet is as large as was asked for all the same.
    instance.ask_storyboard(&video, (192, 108), (5, 1), 1)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    board_shows(&instance, &video, 5, &[50, 75, 100, 125])?;
    nothing_twice(&instance, &farm, &scheduler, 4)?;
    // What was made of it is forgotten: the instance still has it.
    let seals: Vec<String> = farm.keys("state/jobs/")?.into_iter().filter(|key| key.ends_with("/seal.json")).collect();
    farm.delete(&seals)?;
    instance.ask_storyboard(&video, (192, 108), (4, 1), 1)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    board_shows(&instance, &video, 4, &[50, 75, 100, 125])?;
    // As of a video that is much wider than high: no number could be read, but it is as large as it has to be.
    instance.ask_storyboard(&video, (192, 8), (4, 1), 1)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    nothing_twice(&instance, &farm, &scheduler, 6)
}

/// A clip and its picture and sound, each in a file of its own.
fn apart(folder: &Path, clip: &Clip) -> Result<(PathBuf, PathBuf)> {
    let (picture, sound) = (folder.join("picture.mp4"), folder.join("sound.mp4"));
    for (without, file) in [("-an", &picture), ("-vn", &sound)] {
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin", "-y", "-i"]).arg(clip.file()?).args(["-c", "copy", without]).arg(file);
        process::run(&mut ffmpeg, LIMIT)?.success()?;
    }
    Ok((picture, sound))
}

#[test]
fn sound_that_stands_apart_is_fetched_too_whoever_asks_first() -> Result<()> {
    let clip = clip(10);
    for like in [V7_3, V8_2] {
        let instance = Instance::start(like)?;
        let mut farm = farm(&instance, "")?;
        let (_scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
        let (picture, sound) = apart(farm.folder.path(), &clip)?;
        let video = instance.upload_apart(&picture, &sound, 360)?;
        if like.storyboards {
            // It needs no sound, and does not say that there is one.
            instance.ask_storyboard(&video, (192, 108), (5, 2), 1)?;
            instance.until_done(LIMIT).with_context(|| farm.logs())?;
            board_shows(&instance, &video, 5, &[0, 25, 50])?;
        }
        instance.transcode(&video, 360, 25);
        instance.until_done(LIMIT).with_context(|| farm.logs())?;
        ensure!(instance.faults().is_empty(), "{like:?}: {:?}", instance.faults());
        whole(&instance, &video, &clip)?;
        let files = instance.files(&video);
        let heard = files.iter().find(|file| file.resolution == 0 && file.playlist.is_some()).context("a sound")?;
        let beeps = reader::sound(&heard.path, "0:a:0")?.beeps_ns();
        let wanted: Vec<i64> = clip.flashes().iter().map(|&flash| clip.start_ns(flash)).collect();
        ensure!(beeps.len() == wanted.len(), "{like:?}: {beeps:?}");
        ensure!(beeps.iter().zip(&wanted).all(|(beep, wanted)| (beep - wanted).abs() < 30_000_000), "{beeps:?} for {wanted:?}");
        // Where the picture comes with the first order, everything is made at that one.
        ensure!(like.storyboards || jobs_of(&farm)? == 1, "{} jobs of the farm", jobs_of(&farm)?);
        // Edited, the sound is the picture's.
        instance.edit(&video, &[Task::Cut(3.0, Some(7.6))])?;
        instance.until_done(LIMIT).with_context(|| farm.logs())?;
        ensure!(instance.faults().is_empty(), "{like:?}: {:?}", instance.faults());
        shows(&instance, &video, &[(75, 190)])?;
        is_in_sync(&instance, &video, 360)?;
    }
    Ok(())
}

#[test]
fn what_an_admin_leaves_to_others_is_not_taken() -> Result<()> {
    let instance = Instance::start(V8_2)?;
    let mut farm = farm(&instance, "jobs = ['studio']\n")?;
    let (_scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    let video = instance.upload(&clip(4).file()?, 360, 25)?;
    instance.ask_storyboard(&video, (192, 108), (2, 2), 1)?;
    instance.edit(&video, &[Task::Cut(1.0, None)])?;
    let studio = |state: State| instance.jobs().iter().any(|job| job.kind == "video-studio-transcoding" && job.state == state);
    farm.until("it is edited", || Ok(studio(State::Completed)))?;
    let others = instance.jobs().into_iter().filter(|job| job.kind != "video-studio-transcoding");
    ensure!(others.map(|job| job.accepted).sum::<u32>() == 0, "{:?}", instance.jobs());
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    Ok(())
}
