//! What an instance asks for: the jobs that it makes, and their payloads.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Instance, Job, State, Stored, World, lock, uuid};

/// A task of a studio job. Times are in seconds.
#[derive(Clone, Copy, Debug)]
pub enum Task<'a> {
    /// Keeps what is from one time to another.
    Cut(f64, Option<f64>),
    /// Takes stretches out.
    Remove(&'a [(f64, f64)]),
    /// Puts another video before it.
    Intro(&'a Path),
    /// Puts another video after it.
    Outro(&'a Path),
    /// Lays a picture over it.
    Watermark {
        /// The picture.
        file: &'a Path,
        /// Its height, and its distances to the right and upper edges, as shares of the video's height.
        ratios: [f64; 3],
    },
}

impl Instance {
    /// Has everything made of a video anew.
    pub fn transcode(&self, video: &str, short: u32, fps: u32) {
        let mut world = lock(&self.world);
        world.graph(video, short, fps);
        let _ = world.calls.send(());
    }

    /// Has a video edited.
    ///
    /// # Errors
    /// When the files for it cannot be copied.
    pub fn edit(&self, video: &str, tasks: &[Task<'_>]) -> Result<()> {
        let mut world = lock(&self.world);
        let job = uuid();
        let tasks = tasks.iter().enumerate().map(|(place, task)| world.task((job.as_str(), video), place, task));
        let tasks: Vec<Value> = tasks.collect::<Result<_>>()?;
        let input = world.input(&job, video);
        let payload = json!({ "input": input, "output": {}, "tasks": tasks });
        world.push((job, video), "video-studio-transcoding", payload, None);
        let _ = world.calls.send(());
        Ok(())
    }

    /// Has a storyboard made: how large each picture is, how many there are beside and below each other, and how many seconds
    /// lie between two.
    ///
    /// # Errors
    /// When it is of a version without these.
    pub fn ask_storyboard(&self, video: &str, size: (u32, u32), count: (u32, u32), seconds: u32) -> Result<()> {
        let mut world = lock(&self.world);
        ensure!(world.like.storyboards, "it makes storyboards itself");
        let job = uuid();
        let sides = |(width, height): (u32, u32)| json!({ "width": width, "height": height });
        let payload = json!({ "input": { "videoFileUrl": world.files(&job, video, "max-quality") }, "output": {},
                              "sprites": { "size": sides(size), "count": sides(count), "duration": seconds } });
        world.push((job, video), "generate-video-storyboard", payload, None);
        let _ = world.calls.send(());
        Ok(())
    }
}

impl World {
    /// Keeps a file of a video.
    pub(super) fn store(&self, video: &str, file: &Path, resolution: u32) -> Result<Stored> {
        let extension = file.extension().context("an extension")?.to_string_lossy();
        let path = self.folder.join(format!("{video}-{resolution}.{extension}"));
        std::fs::copy(file, &path)?;
        Ok(Stored { path, resolution, playlist: None, sound: true })
    }

    /// The best file of a video: for its picture, or for its sound.
    pub(super) fn best(&self, video: &str, for_sound: bool) -> Option<&Stored> {
        let files = self.videos.get(video)?;
        files.iter().filter(|file| file.sound || !for_sound).max_by_key(|file| file.resolution)
    }

    /// Where a job finds a file of a video.
    fn files(&self, job: &str, video: &str, rest: &str) -> String {
        format!("{}/api/v1/runners/jobs/{job}/files/videos/{video}/{rest}", self.base)
    }

    /// Where a job finds picture and sound of a video.
    fn input(&self, job: &str, video: &str) -> Value {
        let mut input = json!({ "videoFileUrl": self.files(job, video, "max-quality") });
        if self.like.apart.is_some() {
            let is_apart = self.best(video, false).is_some_and(|best| !best.sound);
            let sound = is_apart.then(|| self.files(job, video, "max-quality/audio"));
            input["separatedAudioFileUrl"] = json!(Vec::from_iter(sound));
        }
        input
    }

    fn task(&self, (job, video): (&str, &str), place: usize, task: &Task<'_>) -> Result<Value> {
        let kept = |file: &Path| {
            let extension = file.extension().context("an extension")?.to_string_lossy();
            let name = format!("{job}-{place}.{extension}");
            std::fs::copy(file, self.folder.join(&name))?;
            Ok::<_, anyhow::Error>(self.files(job, video, &format!("studio/task-files/{name}")))
        };
        let number = |number: f64| if self.like.typed { json!(number.to_string()) } else { json!(number) };
        let (name, options) = match *task {
            Task::Cut(start, None) => ("cut", json!({ "start": number(start) })),
            Task::Cut(start, Some(end)) => ("cut", json!({ "start": number(start), "end": number(end) })),
            Task::Remove(stretches) => {
                let segments = stretches.iter().map(|&(start, end)| json!({ "start": number(start), "end": number(end) }));
                ("remove-segments", json!({ "segments": Vec::from_iter(segments) }))
            }
            Task::Intro(file) => ("add-intro", json!({ "file": kept(file)? })),
            Task::Outro(file) => ("add-outro", json!({ "file": kept(file)? })),
            Task::Watermark { file, ratios: [height, right, top] } => {
                let (height, top) = (number(height), number(top));
                let mut options = json!({ "file": kept(file)?, "watermarkSizeRatio": height, "verticalMarginRatio": top });
                options[self.like.margin] = number(right);
                ("add-watermark", options)
            }
        };
        Ok(json!({ "name": name, "options": options }))
    }

    /// Everything that is made of a video: of one that was uploaded or edited the picture at its own size first, then the others;
    /// of one whose sound stands apart the sound first.
    pub(super) fn graph(&mut self, video: &str, short: u32, fps: u32) {
        let smaller = self.like.resolutions.iter().copied().filter(|resolution| *resolution < short);
        let smaller: Vec<u32> = smaller.collect();
        if self.best(video, false).is_some_and(|best| !best.sound) {
            let sound = self.add(video, "vod-hls-transcoding", 0, 0, None);
            for resolution in [short].into_iter().chain(smaller.into_iter().filter(|resolution| *resolution > 0)) {
                self.add(video, "vod-hls-transcoding", resolution, fps, Some(&sound));
            }
            return;
        }
        let first = self.add(video, "vod-web-video-transcoding", short, fps, None);
        self.add(video, "vod-hls-transcoding", short, fps, Some(&first));
        if self.like.apart == Some(true) {
            self.add(video, "vod-hls-transcoding", 0, 0, Some(&first));
        }
        for resolution in smaller {
            let own_fps = if resolution == 0 { 0 } else { fps };
            let web = self.add(video, "vod-web-video-transcoding", resolution, own_fps, Some(&first));
            if resolution > 0 {
                self.add(video, "vod-hls-transcoding", resolution, own_fps, Some(&web));
            }
        }
    }

    /// A job that makes a form of a video.
    pub(super) fn add(&mut self, video: &str, kind: &'static str, resolution: u32, fps: u32, after: Option<&str>) -> String {
        let job = uuid();
        let mut payload = json!({ "input": self.input(&job, video), "output": { "resolution": resolution, "fps": fps } });
        if resolution == 0 && self.like.storyboards {
            payload["input"]["videoFileUrl"] = json!(self.files(&job, video, "max-quality/audio"));
        }
        if kind == "vod-audio-merge-transcoding" {
            let [sound, picture] = ["max-quality", "previews/max-quality"].map(|rest| self.files(&job, video, rest));
            payload["input"] = json!({ "audioFileUrl": sound, "previewFileUrl": picture });
        }
        if kind == "vod-hls-transcoding"
            && let Some(apart) = self.like.apart
        {
            payload["output"]["separatedAudio"] = json!(apart);
        }
        self.push((job, video), kind, payload, after)
    }

    fn push(&mut self, (uuid, video): (String, &str), kind: &'static str, payload: Value, after: Option<&str>) -> String {
        let state = if after.is_some() { State::Waiting } else { State::Pending };
        self.jobs.push(Job {
            uuid: uuid.clone(),
            video: video.to_owned(),
            kind,
            payload,
            state,
            failures: 0,
            error: String::new(),
            accepted: 0,
            progress: 0,
            token: None,
            heard: Instant::now(),
            after: after.map(str::to_owned),
        });
        uuid
    }
}
