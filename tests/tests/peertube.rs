//! A farm as a remote runner of instances of PeerTube: stand-ins that hold it to the protocol, with real processes over a real
//! RabbitMQ and a real S3 server.

#[path = "peertube/edits.rs"]
mod edits;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::clip::Clip;
use tests::farm::Farm;
use tests::peertube::{Instance, REGISTRATION, State, Trouble, V6_2, V7_3};
use tests::player::play;
use tests::service::Service;
use tests::{process, reader};

const LIMIT: Duration = Duration::from_secs(120);

/// A source of 360p that cannot be copied, of so many seconds.
fn clip(seconds: u32) -> Clip {
    Clip::new("25", seconds)
}

/// A farm that serves this instance.
fn farm(instance: &Instance, more: &str) -> Result<Farm> {
    let mut farm = Farm::new()?;
    farm.instances = Some(instance.file("one", more)?);
    Ok(farm)
}

/// Jobs of the farm that were given to it.
fn jobs_of(farm: &Farm) -> Result<usize> {
    let keys = farm.keys("state/jobs/")?;
    Ok(keys.iter().filter(|key| key.ends_with("/spec.json")).count())
}

/// The runner's tokens, which nobody may see.
fn nothing_secret(farm: &Farm) -> Result<()> {
    let logs = farm.logs();
    ensure!(!["ptrt-", "ptrjt-", "ptrrt-"].iter().any(|token| logs.contains(token)), "a token in the logs:\n{logs}");
    Ok(())
}

/// Every frame of the clip is in each picture that was handed in, at its time.
fn whole(instance: &Instance, video: &str, clip: &Clip) -> Result<()> {
    for file in instance.files(video).into_iter().filter(|file| file.resolution > 0) {
        let frames = reader::frames(&file.path, "0:v:0")?;
        let faults = reader::frame_faults(&frames, &clip.numbers(), |number| clip.start_ns(number));
        ensure!(faults.is_empty(), "{}: {faults:?}", file.path.display());
    }
    Ok(())
}

#[test]
fn a_video_is_fetched_and_encoded_once_and_handed_in_in_every_form() -> Result<()> {
    let instance = Instance::start(V7_3)?;
    let mut farm = farm(&instance, "")?;
    let (scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    let clip = clip(10);
    let source = clip.file()?;
    let video = instance.upload(&source, 360, 25)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    let forms: BTreeMap<(u32, bool), usize> = instance.files(&video).iter().fold(BTreeMap::new(), |mut forms, file| {
        *forms.entry((file.resolution, file.playlist.is_some())).or_default() += 1;
        forms
    });
    let wanted = [0, 144, 240, 360].into_iter().flat_map(|resolution| [((resolution, false), 1), ((resolution, true), 1)]);
    ensure!(forms == wanted.collect(), "{forms:?}");
    whole(&instance, &video, &clip)?;
    ensure!(jobs_of(&farm)? == 1, "{} jobs of the farm", jobs_of(&farm)?);
    // Every job looks at how the best file begins; only the first one fetches.
    let source_bytes = fs::metadata(&source)?.len();
    let looks = 8 * (64 << 10);
    ensure!(instance.sent_bytes() <= source_bytes + looks, "{} bytes sent of {source_bytes}", instance.sent_bytes());
    ensure!(instance.jobs().iter().all(|job| job.accepted == 1), "{:?}", instance.jobs());
    ensure!(scheduler.series("shoal_peertube_sources_total", "from=\"fetched\"") == Some(1.0), "fetched more than once");
    ensure!(scheduler.series("shoal_peertube_sources_total", "from=\"kept\"") == Some(7.0), "not kept");
    ensure!(source_bytes > looks, "a source of {source_bytes} bytes fetched twice could not be told");
    nothing_secret(&farm)
}

#[test]
fn a_rung_that_is_copied_is_handed_in_while_the_others_are_still_to_be_made() -> Result<()> {
    let instance = Instance::start(V7_3)?;
    let mut farm = farm(&instance, "")?;
    let (_scheduler, workers) = (farm.scheduler()?, [farm.worker()?, farm.worker()?]);
    // Long enough that two others take a while.
    let clip = Clip { gop: 75, ..clip(80) };
    let video = instance.upload(&clip.file()?, 360, 25)?;
    let done = |end: &str| Ok(farm.keys("state/jobs/")?.iter().any(|key| key.contains("/done/") && key.ends_with(end)));
    farm.until("the largest rung is made", || done("/mp4-v360"))?;
    // Nothing else is made until it has been handed in.
    workers.iter().for_each(Service::freeze);
    ensure!(!done("/video-00000")?, "all rungs were made together");
    let handed_in = || instance.files(&video).iter().filter(|file| file.resolution == 360).count();
    farm.until("it is handed in in both forms", || Ok(handed_in() == 2))?;
    ensure!(!done("/video-00000")?, "the others were made by workers that do nothing");
    workers.iter().for_each(Service::thaw);
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    ensure!(jobs_of(&farm)? == 1, "{} jobs of the farm", jobs_of(&farm)?);
    whole(&instance, &video, &clip)
}

#[test]
fn sound_stands_with_the_picture_where_a_server_wants_it_so_and_a_browser_plays_it() -> Result<()> {
    let instance = Instance::start(V6_2)?;
    let mut farm = farm(&instance, "ahead = true\ncopy = false\n")?;
    let (_scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    let clip = clip(12);
    let video = instance.upload(&clip.file()?, 360, 25)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    let untouched = instance.jobs().iter().filter(|job| job.kind == "video-transcription").all(|job| job.accepted == 0);
    ensure!(untouched, "a job that nobody here can do");
    whole(&instance, &video, &clip)?;
    // As the server publishes it.
    let folder = tempfile::tempdir()?;
    let mut master = "#EXTM3U\n#EXT-X-VERSION:3\n".to_owned();
    for file in instance.files(&video) {
        let Some(playlist) = &file.playlist else { continue };
        let text = fs::read_to_string(playlist)?;
        let name = text.lines().find(|line| line.ends_with(".mp4")).context("a name")?;
        fs::copy(&file.path, folder.path().join(name))?;
        fs::write(folder.path().join(format!("{}.m3u8", file.resolution)), &text)?;
        let width = file.resolution * 16 / 9;
        master += &format!(
            "#EXT-X-STREAM-INF:BANDWIDTH={},RESOLUTION={width}x{},CODECS=\"avc1.64001e,mp4a.40.2\"\n{}.m3u8\n",
            file.resolution * 1000,
            file.resolution,
            file.resolution
        );
    }
    fs::write(folder.path().join("master.m3u8"), master)?;
    let played = play(folder.path(), "master.m3u8", 4, Duration::from_secs(90))?;
    ensure!(played.said.errors.is_empty() && played.said.ended, "{:?}", played.said.errors);
    ensure!(played.said.level_count == 2, "{} levels", played.said.level_count);
    let faults = played.frame_faults(&clip);
    ensure!(faults.is_empty(), "{faults:?}");
    let offsets = played.offsets_ns(&clip)?;
    ensure!(offsets.iter().all(|offset| offset.abs() < clip.start_ns(1) / 2), "{offsets:?}");
    Ok(())
}

#[test]
fn what_goes_wrong_on_the_way_is_tried_again_and_what_cannot_be_is_said() -> Result<()> {
    let instance = Instance::start(V7_3)?;
    for (trouble, times) in [
        (Trouble::Request(429), 1),
        (Trouble::Request(503), 1),
        (Trouble::LostRace, 1),
        (Trouble::BreakOff(70_000), 3),
        (Trouble::HangUp, 1),
        (Trouble::Success(502), 1),
        (Trouble::TooSlow, 1),
        // Longer than any small request may take.
        (Trouble::LongAnswer(65), 1),
    ] {
        instance.trouble(trouble, times);
    }
    let mut farm = farm(&instance, "")?;
    let (_scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    let clip = clip(10);
    let video = instance.upload(&clip.file()?, 360, 25)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    ensure!(instance.troubles_left() == 0, "{} troubles did not come to pass", instance.troubles_left());
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    let failed: Vec<_> = instance.jobs().into_iter().filter(|job| job.failures > 0).collect();
    let [slow] = &failed[..] else { panic!("{failed:?}") };
    ensure!(slow.error.contains("http_timeouts.request") && slow.failures == 1, "{}", slow.error);
    whole(&instance, &video, &clip)?;
    ensure!(jobs_of(&farm)? == 1, "what was made is made once");
    // What is no video.
    let fake = farm.folder.path().join("fake.mp4");
    fs::write(&fake, b"nothing that could be played")?;
    instance.upload(&fake, 360, 25)?;
    let last = || instance.jobs().into_iter().rev().find(|job| job.payload["output"]["resolution"] == 360 && job.failures > 0);
    farm.until("it is given up", || Ok(last().is_some_and(|job| job.state == State::Errored)))?;
    let said = last().context("a job")?;
    ensure!(said.failures == 5 && !said.error.is_empty(), "{said:?}");
    nothing_secret(&farm)
}

#[test]
fn what_nobody_wants_any_more_is_stopped_and_what_was_lost_is_found_again() -> Result<()> {
    let instance = Instance::start(V7_3)?;
    let mut farm = farm(&instance, "")?;
    let (_scheduler, worker) = (farm.scheduler()?, farm.worker()?);
    let clip = clip(60).size(1280, 720);
    instance.upload(&clip.file()?, 720, 25)?;
    let is_begun = || instance.jobs().iter().any(|job| job.progress > 0);
    farm.until("it is being made", || Ok(is_begun()))?;
    // So that it does not come to its end meanwhile.
    worker.freeze();
    // The server lost sight of the runner, and offers the job again: it goes on where it was.
    instance.lose();
    farm.until("it is taken again", || Ok(instance.jobs().iter().any(|job| job.accepted == 2)))?;
    let results =
        || -> Result<Vec<String>> { Ok(farm.keys("state/jobs/")?.into_iter().filter(|key| key.contains("/result-")).collect()) };
    // What is not waited for is stopped after ten seconds.
    std::thread::sleep(Duration::from_secs(15));
    let cancelled = farm.keys("state/jobs/")?.into_iter().any(|key| key.contains("cancel"));
    ensure!(jobs_of(&farm)? == 1 && results()?.is_empty() && !cancelled, "stopped, or made twice:\n{}", farm.logs());
    instance.cancel();
    farm.until("the farm stops", || Ok(!results()?.is_empty()))?;
    worker.thaw();
    farm.until("nothing is encoded", || Ok(worker.children().is_empty()))?;
    let result = farm.object(results()?.first().context("a result")?)?.context("a result")?;
    ensure!(String::from_utf8_lossy(&result).contains("cancelled"), "{result:?}");
    ensure!(farm.keys("state/peertube/")?.iter().all(|key| !key.contains("/jobs/")), "a runner job is still held");
    Ok(())
}

#[test]
fn a_scheduler_that_is_killed_leaves_its_jobs_to_the_next_and_nothing_is_done_twice() -> Result<()> {
    let instance = Instance::start(V7_3)?;
    let mut farm = farm(&instance, "")?;
    let (mut first, _worker) = (farm.scheduler()?, farm.worker()?);
    let clip = clip(40);
    let video = instance.upload(&clip.file()?, 360, 25)?;
    farm.until("it is being made", || Ok(instance.jobs().iter().any(|job| job.progress > 0)))?;
    first.kill()?;
    let (_second, _third) = (farm.scheduler()?, farm.scheduler()?);
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    ensure!(instance.jobs().iter().all(|job| job.accepted == 1 && job.failures == 0), "{:?}", instance.jobs());
    ensure!(jobs_of(&farm)? == 1, "{} jobs of the farm", jobs_of(&farm)?);
    whole(&instance, &video, &clip)
}

#[test]
fn a_dead_instance_and_one_that_knows_the_runner_no_more_hold_up_nobody() -> Result<()> {
    let (instance, other) = (Instance::start(V7_3)?, Instance::start(V6_2)?);
    let dead = "[[instances]]\nurl = 'http://127.0.0.1:9/'\nname = 'dead'\nrunner_token = 'ptrt-dead'\n";
    let mut farm = farm(&instance, dead)?;
    let both = format!(
        "{}{}",
        fs::read_to_string(farm.instances.clone().context("a file")?)?,
        fs::read_to_string(other.file("two", "")?)?
    );
    let file = farm.folder.path().join("instances.toml");
    fs::write(&file, both)?;
    farm.instances = Some(file);
    other.revoke();
    let (scheduler, _worker) = (farm.scheduler()?, farm.worker()?);
    instance.upload(&clip(10).file()?, 360, 25)?;
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    ensure!(instance.faults().is_empty() && other.faults().is_empty(), "{:?} {:?}", instance.faults(), other.faults());
    ensure!(other.requests() < 20, "{} requests to one that knows nobody here", other.requests());
    let up = |url: &str| {
        let slug = url.trim_start_matches("http://").trim_end_matches('/').replace(':', "-");
        scheduler.series("shoal_peertube_up", &format!("peertube=\"{slug}\""))
    };
    ensure!(up(&instance.url()) == Some(1.0) && up("http://127.0.0.1:9/") == Some(0.0), "one is up and one is not");
    ensure!(farm.logs().contains("register it again"), "{}", farm.logs());
    Ok(())
}

/// The sound of a clip in a file of its own, and a picture.
fn sound_and_picture(folder: &Path, clip: &Clip) -> Result<(PathBuf, PathBuf)> {
    let (sound, picture) = (folder.join("sound.flac"), folder.join("picture.jpg"));
    let ffmpeg = |arguments: &[&OsStr]| {
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin", "-y"]).args(arguments);
        process::run(&mut ffmpeg, LIMIT)?.success()
    };
    ffmpeg(&["-i".as_ref(), clip.file()?.as_ref(), "-vn".as_ref(), sound.as_ref()])?;
    let drawn = ["-f", "lavfi", "-i", "testsrc=size=850x480", "-frames:v", "1", "-q:v", "2"].map(OsStr::new);
    ffmpeg(&[&drawn[..], &[picture.as_ref()]].concat())?;
    Ok((sound, picture))
}

#[test]
fn a_sound_gets_the_picture_that_stands_for_it_for_as_long_as_it_lasts() -> Result<()> {
    let instance = Instance::start(V7_3)?;
    let mut farm = farm(&instance, "")?;
    let clip = clip(10);
    let (sound, picture) = sound_and_picture(farm.folder.path(), &clip)?;
    // Killed while the farm makes AAC of the sound, which the next one goes on with.
    let mut first = farm.scheduler()?;
    let video = instance.upload_sound(&sound, &picture)?;
    farm.until("the farm has the sound", || Ok(jobs_of(&farm)? == 1))?;
    first.kill()?;
    let (_second, _worker) = (farm.scheduler()?, farm.worker()?);
    instance.until_done(LIMIT).with_context(|| farm.logs())?;
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    ensure!(instance.jobs().iter().all(|job| job.accepted == 1 && job.failures == 0), "{:?}", instance.jobs());
    ensure!(jobs_of(&farm)? == 2, "{} jobs of the farm: one for the sound, one for the film", jobs_of(&farm)?);
    let files = instance.files(&video);
    let sizes: Vec<(u32, bool)> = files.iter().map(|file| (file.resolution, file.playlist.is_some())).collect();
    ensure!([(480, false), (480, true), (240, false)].iter().all(|size| sizes.contains(size)), "{sizes:?}");
    for file in files.iter().filter(|file| file.resolution == 480) {
        // Every frame beside the picture, in colours that no matrix changes. Colours at half the size cost so much at edges.
        let mut measure = Command::new("ffmpeg");
        measure.args(["-nostdin", "-i"]).arg(&file.path).args(["-loop", "1", "-i"]).arg(&picture);
        measure.args(["-lavfi", "[0:v]scale,format=gbrp[a];[1:v]scale,format=gbrp[b];[a][b]psnr=shortest=1"]);
        let said = process::run(measure.args(["-f", "null", "-"]), LIMIT)?.success()?.stderr;
        let least = said.rsplit_once(" min:").and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<f64>().ok());
        ensure!(least.is_some_and(|least| least > 24.0), "{}: {least:?}\n{said}", file.path.display());
        let frames = reader::frames(&file.path, "0:v:0")?.len();
        ensure!((250..=252).contains(&frames), "{frames} frames for ten seconds");
    }
    let web = files.iter().find(|file| file.resolution == 480 && file.playlist.is_none()).context("a web video")?;
    let beeps = reader::sound(&web.path, "0:a:0")?.beeps_ns();
    let wanted: Vec<i64> = clip.flashes().iter().map(|&flash| clip.start_ns(flash)).collect();
    ensure!(beeps.len() == wanted.len(), "{beeps:?}");
    ensure!(beeps.iter().zip(&wanted).all(|(beep, wanted)| (beep - wanted).abs() < 20_000_000), "{beeps:?} for {wanted:?}");
    Ok(())
}

#[test]
fn a_flood_from_one_instance_does_not_hold_up_the_video_of_another() -> Result<()> {
    let (flooding, tiny) = (Instance::start(V7_3)?, Instance::start(V7_3)?);
    let mut farm = farm(&flooding, "")?;
    let both = [farm.instances.clone().context("a file")?, tiny.file("two", "")?].map(fs::read_to_string);
    let file = farm.folder.path().join("instances.toml");
    fs::write(&file, both.into_iter().collect::<Result<String, _>>()?)?;
    farm.instances = Some(file);
    let source = clip(10).file()?;
    // In turn with others the flood has one slot for each of theirs; first come, first served, it would have all of them.
    const FLOOD: usize = 16;
    for _ in 0..FLOOD {
        flooding.upload(&source, 360, 25)?;
    }
    let _scheduler = farm.scheduler()?;
    let forms = || flooding.jobs().into_iter().filter(|job| job.kind == "vod-web-video-transcoding");
    let waiting = || forms().filter(|job| job.state != State::Completed).count();
    farm.until("the whole flood is taken", || Ok(forms().all(|job| job.state != State::Pending)))?;
    tiny.upload(&source, 360, 25)?;
    farm.until("the other's is taken", || Ok(tiny.jobs().iter().any(|job| job.state == State::Processing)))?;
    let before = waiting();
    let _worker = farm.worker()?;
    tiny.until_done(LIMIT).with_context(|| farm.logs())?;
    let left = waiting();
    ensure!(left * 2 >= before, "of {before} jobs of the flood {left} are left when the other's is done:\n{}", farm.logs());
    ensure!(flooding.faults().is_empty() && tiny.faults().is_empty(), "{:?} {:?}", flooding.faults(), tiny.faults());
    Ok(())
}

#[test]
fn a_farm_is_registered_and_forgotten_by_command() -> Result<()> {
    let instance = Instance::start(V7_3)?;
    let farm = Farm::new()?;
    let file = farm.folder.path().join("peertube.toml");
    let (url, path) = (instance.url(), file.to_str().context("a path")?);
    let token = farm.folder.path().join("registration");
    fs::write(&token, format!("{REGISTRATION}\n"))?;
    let token = token.to_str().context("a path")?;
    let register =
        |token: &str| farm.run(&["peertube", "register", "--url", &url, "--token-file", token, "--file", path, "--json"]);
    let wrong = farm.folder.path().join("wrong");
    fs::write(&wrong, "ptrrt-none")?;
    let (code, told) = register(wrong.to_str().context("a path")?)?;
    ensure!(
        code == Some(2) && told["error"]["message"].as_str().is_some_and(|said| said.contains("registration token")),
        "{told}"
    );
    ensure!(!file.exists(), "nothing was registered");
    fs::write(&file, "# what an admin wrote\n")?;
    let (code, told) = register(token)?;
    ensure!(code == Some(0) && !told.to_string().contains("ptr"), "{told}");
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&file)?) & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    ensure!(fs::read_to_string(&file)?.contains("# what an admin wrote\n"), "a comment is gone");
    let (code, told) = register(token)?;
    ensure!(code == Some(2) && told["error"]["message"].as_str().is_some_and(|said| said.contains("already")), "{told}");
    let (_, listed) = farm.run(&["peertube", "list", "--file", path, "--json"])?;
    ensure!(listed["instances"][0]["url"] == url && !listed.to_string().contains("ptrt"), "{listed}");
    let (code, told) = farm.run(&["peertube", "unregister", "--url", &url, "--file", path, "--json"])?;
    ensure!(code == Some(0), "{told}");
    let (_, listed) = farm.run(&["peertube", "list", "--file", path, "--json"])?;
    ensure!(listed["instances"] == serde_json::json!([]), "{listed}");
    ensure!(instance.faults().is_empty(), "{:?}", instance.faults());
    Ok(())
}
