//! What is kept of a video while an instance asks for its forms: the source, which is fetched once, and the jobs made of it.
//!
//! An instance says where the *best* file of a video is, and that is soon one that was handed in here: made of a picture that
//! was encoded already. So each file that is handed in is remembered by size and beginning. As long as the instance has the
//! source or one of those, the source that is kept is still what the video was made of.
//!
//! A video that is edited gets another version, made of the same source. Which one the instance has is told by the file that it
//! has: so an edit that comes to nothing, or whose end was not heard of, leaves no doubt.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::BytesMut;
use farm::edit::EditStep;
use farm::job::JobId;
use farm::storage::{Kind, Part, Storage, StorageError};
use farm::{Failure, keys};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use url::Url;

use super::answer::{HEAD_BYTES, digest};
use super::ladder::{self, Asked, OWN};
use super::order::{Sheet, Size, Wanted};
use super::protocol::{Client, Refusal, chunk};
use super::settings::Token;
use crate::scheduler::fetch_if_there;

/// Size of the pieces in which a source is stored while it comes in, in bytes: object stores take 10 000 of them at most.
const PIECE_BYTES: usize = 16 << 20;
/// Largest source, in bytes.
pub(super) const SOURCE_BYTES_MAX: u64 = 10_000 * PIECE_BYTES as u64;
/// How often the rest of a source is asked for when the connection breaks without having brought anything, and the wait before.
const BREAKS_MAX: u32 = 8;
const BREAK_PAUSE: Duration = Duration::from_secs(2);

/// Longest that fetching a source may take.
const FETCH_MAX: Duration = Duration::from_secs(12 * 3600);

/// By what a file is told from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Look {
    /// Its size; none where the server does not say.
    pub(super) bytes: Option<u64>,
    /// The digest of its beginning.
    pub(super) head: String,
}

impl Look {
    /// Whether both are of the same file, as far as can be told.
    pub(super) fn fits(&self, other: &Self) -> bool {
        self.head == other.head && (self.bytes.is_none() || other.bytes.is_none() || self.bytes == other.bytes)
    }
}

/// Versions of a video that are remembered.
const VERSIONS_MAX: usize = 8;
/// Files that are remembered of a version.
const KNOWN_MAX: usize = 256;

/// A job that was given to the farm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    /// Its name.
    pub(super) job: JobId,
    /// Whether something of it was handed in: the instance is going to ask for the rest.
    #[serde(default)]
    pub(super) handed_in: bool,
    /// What it makes.
    #[serde(flatten)]
    pub(super) makes: Makes,
}

/// What a job makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Makes {
    /// The film, in every form.
    Rungs {
        /// In these sizes.
        rungs: Vec<Asked>,
        /// Short edges that the instance has asked for by now.
        asked: Vec<u32>,
    },
    /// A sheet of small pictures.
    Sheet(Sheet),
}

impl Made {
    fn serves(&self, wanted: &Wanted) -> bool {
        match (&self.makes, wanted) {
            (Makes::Rungs { rungs, .. }, Wanted::Film { rung: Some(size), .. }) => {
                rungs.iter().any(|own| own.short == size.short && [0, size.fps].contains(&own.fps))
            }
            (Makes::Rungs { .. }, Wanted::Film { rung: None, .. } | Wanted::Studio(_)) => true,
            (Makes::Sheet(own), Wanted::Storyboard(sheet)) => own == sheet,
            (Makes::Rungs { .. }, Wanted::Storyboard(_)) | (Makes::Sheet(_), Wanted::Film { .. } | Wanted::Studio(_)) => false,
        }
    }
}

/// A version of a video.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Film {
    /// Key of the source.
    pub(super) source: String,
    /// What is done to it.
    #[serde(default)]
    pub(super) edit: Vec<EditStep>,
    /// The runner job that asked for that last, if one did.
    #[serde(default)]
    pub(super) editor: Option<String>,
    /// Files that the instance may have of it: the source unless it is edited, and what was handed in.
    pub(super) known: Vec<Look>,
    /// Jobs made of it.
    pub(super) made: Vec<Made>,
}

impl Film {
    /// Whether a file is one of those that are known to be this film.
    pub(super) fn knows(&self, seen: &Look) -> bool {
        self.known.iter().any(|known| known.fits(seen))
    }

    /// Whether it was made by editing this one.
    pub(super) fn is_edited_from(&self, base: &Self) -> bool {
        self.source == base.source && self.edit.starts_with(&base.edit)
    }

    /// How large the picture is in the file that the instance has, as it was asked for; none where that file is the source, and
    /// where nobody has said.
    pub(super) fn size_in(&self, seen: &Look) -> Option<Size> {
        if self.editor.is_none() && self.known.first().is_some_and(|source| source.fits(seen)) {
            return None;
        }
        let largest = |made: &Made| match &made.makes {
            Makes::Rungs { rungs, asked } => rungs.first().copied().filter(|largest| asked.contains(&largest.short)),
            Makes::Sheet(_) => None,
        };
        let sized = self.made.iter().filter_map(largest).filter(|largest| *largest != OWN && largest.fps > 0);
        sized.map(|Asked { short, fps }| Size { short, fps }).max_by_key(|size| size.short)
    }

    /// The job that makes what is asked for, if there is one.
    pub(super) fn made(&mut self, wanted: &Wanted) -> Option<&mut Made> {
        self.made.iter_mut().find(|made| made.serves(wanted))
    }

    /// A file of one of its jobs is about to be handed in. With the first one it is known how large the film is: of an edit the
    /// instance asks by what it finds in that file.
    fn hand_in(&mut self, job: &JobId, look: Look, sizes: &[Size]) {
        let is_first_edit = self.editor.is_some() && self.known.is_empty();
        let mut made = self.made.iter_mut().find(|made| made.job == *job);
        if let Some(made) = &mut made {
            made.handed_in = true;
        }
        if let Some(Made { makes: Makes::Rungs { rungs, asked }, .. }) = made
            && (is_first_edit || rungs.contains(&OWN))
            && !sizes.is_empty()
        {
            let before = rungs.first().map_or(0, |largest| largest.short);
            *rungs = ladder::rungs_sized(sizes);
            let own = rungs.first().map_or(0, |largest| largest.short);
            asked.iter_mut().filter(|short| **short == before).for_each(|short| *short = own);
        }
        if !self.known.contains(&look) && self.known.len() < KNOWN_MAX {
            self.known.push(look);
        }
    }
}

/// What is known of a video.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Record")]
pub(super) struct Video {
    /// Its versions, the one that was asked for last before all others.
    pub(super) versions: Vec<Film>,
}

/// What stands in storage: a version by itself is of a time when there was but one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Record {
    Versions { versions: Vec<Film> },
    One(Film),
}

impl From<Record> for Video {
    fn from(record: Record) -> Self {
        match record {
            Record::Versions { versions } => Self { versions },
            Record::One(film) => Self { versions: vec![film] },
        }
    }
}

impl Video {
    /// Takes a version out.
    pub(super) fn take(&mut self, is_it: impl Fn(&Film) -> bool) -> Option<Film> {
        let place = self.versions.iter().position(is_it)?;
        Some(self.versions.remove(place))
    }

    /// Puts a version in, before all others; the last one is forgotten when they are too many.
    pub(super) fn put(&mut self, film: Film) {
        self.versions.insert(0, film);
        self.versions.truncate(VERSIONS_MAX);
    }

    /// A file of a job is about to be handed in: how it looks, and the sizes that the job has made.
    pub(super) fn hand_in(&mut self, job: &JobId, look: Look, sizes: &[Size]) {
        if let Some(film) = self.versions.iter_mut().find(|film| film.made.iter().any(|made| made.job == *job)) {
            film.hand_in(job, look, sizes);
        }
    }

    /// Jobs that were given to the farm for runner jobs that are not held any more, by whether any of this video is held, and the
    /// names of all that are.
    pub(super) fn orphans(&self, is_held: bool, held: &BTreeSet<String>) -> Vec<JobId> {
        let is_orphan = |film: &&Film| match &film.editor {
            // What the instance does not have yet is of that studio job alone.
            Some(editor) if film.known.is_empty() => !held.contains(editor),
            Some(_) | None => !is_held,
        };
        let made = self.versions.iter().filter(is_orphan).flat_map(|film| &film.made);
        made.filter(|made| !made.handed_in).map(|made| made.job.clone()).collect()
    }

    /// Jobs that were given to the farm for what a runner job asks for.
    pub(super) fn jobs_for(&self, runner_job: &str, wanted: &Wanted) -> Vec<JobId> {
        let is_meant = |film: &&Film| match wanted {
            Wanted::Studio(_) => film.editor.as_deref() == Some(runner_job),
            // What the instance does not have yet is of that studio job alone.
            Wanted::Film { .. } | Wanted::Storyboard(_) => !film.known.is_empty(),
        };
        let made = self.versions.iter().filter(is_meant).flat_map(|film| &film.made);
        made.filter(|made| made.serves(wanted)).map(|made| made.job.clone()).collect()
    }
}

/// Where an instance's videos are kept.
#[derive(Clone)]
pub(super) struct Films {
    pub(super) state: Storage,
    /// The state's URL.
    pub(super) url: Url,
    pub(super) slug: String,
}

impl Films {
    pub(super) fn prefix(&self, video: &str) -> String {
        keys::peertube_video(&self.slug, video)
    }

    fn key(&self, video: &str) -> String {
        format!("{}film.json", self.prefix(video))
    }

    /// What is known of a video.
    ///
    /// # Errors
    /// Storage's.
    pub(super) async fn get(&self, video: &str) -> Result<Option<Video>, Failure> {
        fetch_if_there(&self.state, &self.key(video)).await
    }

    /// Remembers a video.
    ///
    /// # Errors
    /// Storage's.
    pub(super) async fn put(&self, video: &str, known: &Video) -> Result<(), Failure> {
        let content = serde_json::to_vec(known).map_err(|error| Failure::new(farm::Code::Internal, error.to_string()))?;
        Ok(self.state.put(&self.key(video), content.into(), Kind::Json).await?)
    }

    /// The URL by which workers reach a key.
    ///
    /// # Errors
    /// When the state has no such URL.
    pub(super) fn url_of(&self, key: &str) -> Result<Url, Failure> {
        let mut url = self.url.clone();
        let odd = || Failure::new(farm::Code::InvalidRequest, "storage: its URL can have no path".to_owned());
        url.path_segments_mut().map_err(|()| odd())?.pop_if_empty().extend(key.split('/'));
        Ok(url)
    }
}

/// What the instance has now.
pub(super) async fn look(client: &Client, job_token: &Token, input: &Url) -> Result<Look, Refusal> {
    let (mut answer, bytes) = client.file(input, job_token, 0, Some(HEAD_BYTES as u64 - 1)).await?;
    let mut head = BytesMut::new();
    while head.len() < HEAD_BYTES
        && let Some(chunk) = chunk(&mut answer).await?
    {
        head.extend_from_slice(&chunk);
    }
    head.truncate(HEAD_BYTES);
    Ok(Look { bytes, head: digest(&head) })
}

/// Fetches a source of up to `bytes_max` to `key`; how it looks. Where the connection breaks it goes on. Nothing is left of what
/// is not whole.
///
/// # Errors
/// What the instance says, or storage.
pub(super) async fn fetch(
    client: &Client,
    state: &Storage,
    job_token: &Token,
    input: &Url,
    key: &str,
    (wanted, bytes_max): (&Look, u64),
) -> Result<Look, Refusal> {
    let late = |_| Err(Refusal::Unreachable("a file takes too long to come".to_owned()));
    let fetched = timeout(FETCH_MAX, pieces(client, state, job_token, input, (key, bytes_max))).await.unwrap_or_else(late);
    let fetched = fetched.and_then(|look| match look.fits(wanted) {
        true => Ok(look),
        false => Err(Refusal::BrokenOff("a file changed while it was fetched".to_owned())),
    });
    if fetched.is_err() {
        let folder = key.rsplit_once('/').map_or(key, |(folder, _)| folder);
        let left = state.list(&format!("{folder}/")).await?;
        state.delete(&left.into_iter().map(|entry| entry.key).collect::<Vec<_>>()).await?;
    }
    fetched
}

async fn pieces(
    client: &Client,
    state: &Storage,
    job_token: &Token,
    input: &Url,
    (key, bytes_max): (&str, u64),
) -> Result<Look, Refusal> {
    let mut incoming =
        Incoming { state, key, bytes_max, pieces: Vec::new(), held: BytesMut::new(), head: BytesMut::new(), stored: 0 };
    let (mut total, mut breaks) = (None, 0);
    loop {
        let before = incoming.bytes();
        let why = match connection(client, job_token, input, &mut incoming, &mut total).await {
            Ok(()) => "the instance broke off in a file".to_owned(),
            Err(Refusal::Unreachable(why) | Refusal::BrokenOff(why)) => why,
            Err(refusal) => return Err(refusal),
        };
        if total.is_some_and(|total| incoming.bytes() >= total) {
            return incoming.finish().await;
        }
        breaks = if incoming.bytes() > before { 1 } else { breaks + 1 };
        if breaks > BREAKS_MAX {
            return Err(Refusal::BrokenOff(why));
        }
        tokio::time::sleep(BREAK_PAUSE).await;
    }
}

/// Takes in what one connection brings, from where the last one broke.
async fn connection(
    client: &Client,
    job_token: &Token,
    input: &Url,
    incoming: &mut Incoming<'_>,
    total: &mut Option<u64>,
) -> Result<(), Refusal> {
    let (mut answer, size) = client.file(input, job_token, incoming.bytes(), None).await?;
    if total.is_some() && size.is_some() && *total != size {
        return Err(Refusal::BrokenOff("a file changed while it was fetched".to_owned()));
    }
    *total = size.or(*total);
    while let Some(chunk) = chunk(&mut answer).await? {
        if incoming.bytes() + chunk.len() as u64 > total.unwrap_or(u64::MAX).min(incoming.bytes_max) {
            let bytes_max = incoming.bytes_max;
            return Err(Refusal::Refused(format!("its file is larger than it says, or than {bytes_max} bytes")));
        }
        incoming.push(&chunk).await?;
    }
    // Without a size, the end is the end.
    total.get_or_insert(incoming.bytes());
    Ok(())
}

/// A file on its way into storage.
struct Incoming<'a> {
    state: &'a Storage,
    key: &'a str,
    /// How large it may get.
    bytes_max: u64,
    /// Keys of what is stored.
    pieces: Vec<String>,
    /// What is not stored yet.
    held: BytesMut,
    /// How the file begins.
    head: BytesMut,
    /// Bytes that are stored.
    stored: u64,
}

impl Incoming<'_> {
    fn bytes(&self) -> u64 {
        self.stored + self.held.len() as u64
    }

    async fn push(&mut self, chunk: &[u8]) -> Result<(), StorageError> {
        let missing = HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(chunk.get(..missing.min(chunk.len())).unwrap_or_default());
        self.held.extend_from_slice(chunk);
        while self.held.len() >= PIECE_BYTES {
            self.store(PIECE_BYTES).await?;
        }
        Ok(())
    }

    async fn store(&mut self, bytes: usize) -> Result<(), StorageError> {
        let key = format!("{}.{}", self.key, self.pieces.len());
        self.state.put(&key, self.held.split_to(bytes).freeze(), Kind::VideoMp4).await?;
        self.stored += bytes as u64;
        self.pieces.push(key);
        Ok(())
    }

    /// Puts the file in its place.
    async fn finish(mut self) -> Result<Look, Refusal> {
        let look = Look { bytes: Some(self.bytes()), head: digest(&self.head) };
        if self.pieces.is_empty() {
            self.state.put(self.key, self.held.freeze(), Kind::VideoMp4).await?;
            return Ok(look);
        }
        if !self.held.is_empty() {
            self.store(self.held.len()).await?;
        }
        let parts: Vec<Part> = self.pieces.iter().map(|key| Part::whole(key.as_str())).collect();
        self.state.join(self.key, &parts, Kind::VideoMp4).await?;
        self.state.delete(&self.pieces).await?;
        Ok(look)
    }
}

#[cfg(test)]
mod tests {
    use farm::edit::{Seconds, Stretch};

    use super::super::order::Form;
    use super::*;

    fn look(head: &str) -> Look {
        Look { bytes: Some(9), head: head.to_owned() }
    }

    fn made(job: &str, makes: Makes) -> Made {
        Made { job: JobId::try_from(job.to_owned()).expect("a name"), handed_in: false, makes }
    }

    fn film(known: &[&str], made: Vec<Made>) -> Film {
        let known = known.iter().map(|head| look(head)).collect();
        Film { source: "peertube/a/videos/v/t/source".to_owned(), edit: Vec::new(), editor: None, known, made }
    }

    fn rung(short: u32, fps: u32) -> Wanted {
        Wanted::Film { rung: Some(Size { short, fps }), form: Form::WebVideo }
    }

    fn edit() -> Vec<EditStep> {
        vec![EditStep::Keep(Stretch { from: Seconds::default(), to: None })]
    }

    const SHEET: Sheet = Sheet { columns: 5, rows: 2, width: 192, height: 108, seconds: 3 };

    #[test]
    fn records_of_before_there_were_edits_are_read() {
        let old = r#"{"source":"peertube/a/videos/v/t/source","known":[{"bytes":9,"head":"one"}],
                      "made":[{"job":"pt-1","rungs":[{"short":720,"fps":25}],"asked":[720]}]}"#;
        let rungs = Makes::Rungs { rungs: vec![Asked { short: 720, fps: 25 }], asked: vec![720] };
        let mut video: Video = serde_json::from_str(old).expect("a record");
        assert_eq!(video, Video { versions: vec![film(&["one"], vec![made("pt-1", rungs)])] });
        let sheet = vec![made("pt-2", Makes::Sheet(SHEET))];
        video.put(Film { edit: edit(), editor: Some("r".to_owned()), ..film(&[], sheet) });
        let written = serde_json::to_string(&video).expect("JSON");
        assert_eq!(serde_json::from_str::<Video>(&written).expect("a record"), video);
    }

    #[test]
    fn a_job_serves_what_it_makes() {
        let rungs = Makes::Rungs { rungs: vec![Asked { short: 720, fps: 25 }, Asked { short: 240, fps: 0 }], asked: vec![720] };
        let mut film = film(&["one"], vec![made("sheet", Makes::Sheet(SHEET)), made("rungs", rungs)]);
        let mut of = |wanted: &Wanted| film.made(wanted).map(|made| made.job.to_string());
        for (wanted, job) in [
            (rung(720, 25), Some("rungs")),
            (rung(720, 30), None),
            (rung(240, 30), Some("rungs")),
            (rung(480, 25), None),
            (Wanted::Film { rung: None, form: Form::Apart }, Some("rungs")),
            (Wanted::Storyboard(SHEET), Some("sheet")),
            (Wanted::Storyboard(Sheet { seconds: 4, ..SHEET }), None),
        ] {
            assert_eq!(of(&wanted).as_deref(), job, "{wanted:?}");
        }
    }

    #[test]
    fn nobody_waits_for_an_edit_whose_runner_job_is_not_held_though_another_of_its_video_is() {
        let film = |known: &[&str], editor: Option<&str>, job: &str| Film {
            editor: editor.map(str::to_owned),
            ..film(known, vec![made(job, Makes::Sheet(SHEET))])
        };
        let versions = vec![film(&["one"], None, "first"), film(&["two"], Some("r"), "handed-in"), film(&[], Some("s"), "begun")];
        let mut video = Video { versions };
        video.hand_in(&JobId::try_from("handed-in".to_owned()).expect("a name"), look("two"), &[]);
        let of = |is_held, held: &[&str]| {
            let orphans = video.orphans(is_held, &held.iter().map(ToString::to_string).collect());
            orphans.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of(true, &["s", "t"]), [""; 0]);
        assert_eq!(of(true, &["r", "t"]), ["begun"]);
        assert_eq!(of(false, &["t"]), ["first", "begun"], "what comes after the largest rung will be asked for");
    }

    #[test]
    fn an_edit_is_found_by_what_was_handed_in_and_takes_nothing_from_what_it_was_made_of() {
        let rungs = |asked: Asked| Makes::Rungs { rungs: vec![asked], asked: vec![asked.short] };
        let before = film(&["one", "two"], vec![made("first", rungs(Asked { short: 720, fps: 50 }))]);
        let after = Film { edit: edit(), editor: Some("r".to_owned()), ..film(&[], vec![made("edit", rungs(OWN))]) };
        assert!(after.is_edited_from(&before) && !before.is_edited_from(&after));
        let size = Some(Size { short: 720, fps: 50 });
        assert_eq!(before.size_in(&look("two")), size, "as large as what was handed in");
        assert_eq!(before.size_in(&look("one")), None, "the source is as large as it is");
        assert_eq!(after.size_in(&look("three")), None, "nobody has said");
        let mut video = Video::default();
        video.put(before.clone());
        video.put(after);
        let studio = Wanted::Studio(Vec::new());
        let jobs = |video: &Video, of: &str, wanted: &Wanted| {
            video.jobs_for(of, wanted).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(jobs(&video, "r", &studio), ["edit"]);
        assert_eq!(jobs(&video, "other", &studio), [""; 0]);
        assert_eq!(jobs(&video, "r", &rung(720, 50)), ["first"], "nobody has the edit yet");
        let (job, sizes) = (JobId::try_from("edit".to_owned()).expect("a name"), [(720, 50), (240, 25)]);
        video.hand_in(&job, look("three"), &sizes.map(|(short, fps)| Size { short, fps }));
        let found = video.take(|film| film.knows(&look("three"))).expect("the edit");
        let known = Makes::Rungs { rungs: vec![Asked { short: 720, fps: 50 }, Asked { short: 240, fps: 25 }], asked: vec![720] };
        assert_eq!(found.made, [Made { handed_in: true, ..made("edit", known) }]);
        assert_eq!(found.size_in(&look("three")), size);
        assert_eq!(video.take(|film| film.knows(&look("two"))), Some(before));
        for number in 0..9 {
            video.put(film(&[number.to_string().as_str()], Vec::new()));
        }
        assert!(video.versions.len() == VERSIONS_MAX && video.take(|film| film.knows(&look("0"))).is_none(), "{video:?}");
    }
}
