//! The file of instances: which ones this farm is a runner of, and how it works for each.
//!
//! ```toml
//! [[instances]]
//! url = "https://tube.example.org"
//! name = "shoal"                       # as it is shown to the instance's admins
//! runner_token = "ptrt-…"              # or runner_token_file = "/run/secrets/tube"
//! # from here on what is usual:
//! tenant = "tube.example.org"          # whose share of the farm its jobs have
//! priority = 0                         # among jobs of one tenant the higher goes first
//! jobs = ["vod", "studio", "storyboard"]   # what is done for it; the rest is left to other runners
//! jobs_max = 16                        # runner jobs held at a time
//! quality = 23                         # x264's CRF, 1 to 50, to the tenth; as below when absent
//! copy = true                          # hand on the source's own packets where they fit
//! loudness = "off"                     # or "ebu-r128"
//! ahead = true                         # make the whole ladder at the first job of a video
//! largest_first = false                # hand in the largest rung while the others are made, also where it is not copied
//! keep_hours = 6                       # sources and results, after they were last asked for
//! keep_gigabytes = 100                 # of them all; those that were not asked for longest go first
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farm::job::{Loudness, Publishing};
use farm::{Code, Failure, Quality};
use serde::Deserialize;
use url::Url;

use crate::tenants::read_secret_toml;

/// Most bytes of a token, and of a name.
const TOKEN_BYTES_MAX: usize = 1000;
const NAME_BYTES_MAX: usize = 100;
/// Most runner jobs held at a time.
const JOBS_MAX: std::ops::RangeInclusive<usize> = 1..=256;

/// A runner's token, or that of one of its jobs. Never shown.
#[derive(Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// The token as text, to be sent and stored.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Token {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// An instance that this farm is a runner of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Where it is reached.
    pub url: Url,
    /// What the runner is called there.
    pub name: String,
    /// What it knows the runner by.
    pub token: Token,
    /// How this farm works for it.
    pub policy: Policy,
}

/// A kind of work for an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Every form of a video.
    Vod,
    /// Edits of videos.
    Studio,
    /// Sheets of small pictures.
    Storyboard,
}

impl Work {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Vod, Self::Studio, Self::Storyboard];
}

/// How this farm works for an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whose share of the farm its jobs have.
    pub tenant: String,
    /// Among jobs of one tenant the higher goes first.
    pub priority: i32,
    /// What is done for it.
    pub jobs: BTreeSet<Work>,
    /// Runner jobs held at a time.
    pub jobs_max: usize,
    /// Quality of every rung. When absent that of [`super::ladder`].
    pub quality: Option<Quality>,
    /// Whether the source's own packets are handed on where they fit.
    pub copy: bool,
    /// What to do about loudness.
    pub loudness: Loudness,
    /// Whether the whole ladder is made at the first job of a video.
    pub ahead: bool,
    /// What is made first.
    pub publish: Publishing,
    /// How long sources and results are kept after they were last asked for.
    pub keep: Duration,
    /// How many bytes of them are kept.
    pub keep_bytes: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    instances: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    url: Url,
    name: String,
    runner_token: Option<Token>,
    runner_token_file: Option<PathBuf>,
    tenant: Option<String>,
    #[serde(default)]
    priority: i32,
    #[serde(default = "usual_jobs")]
    jobs: BTreeSet<Work>,
    #[serde(default = "usual_jobs_max")]
    jobs_max: usize,
    quality: Option<Quality>,
    #[serde(default = "yes")]
    copy: bool,
    #[serde(default)]
    loudness: Loudness,
    #[serde(default = "yes")]
    ahead: bool,
    #[serde(default)]
    largest_first: bool,
    #[serde(default = "usual_keep_hours")]
    keep_hours: u32,
    #[serde(default = "usual_keep_gigabytes")]
    keep_gigabytes: u32,
}

fn usual_keep_hours() -> u32 {
    6
}

fn usual_keep_gigabytes() -> u32 {
    100
}

fn usual_jobs() -> BTreeSet<Work> {
    Work::ALL.into()
}

fn usual_jobs_max() -> usize {
    16
}

fn yes() -> bool {
    true
}

impl Instance {
    /// A name for it that can stand in keys and labels: `tube.example.org`, `127.0.0.1-9000`.
    pub fn slug(&self) -> String {
        slug(&self.url)
    }
}

fn slug(url: &Url) -> String {
    let port = url.port().map(|port| format!("-{port}")).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' };
    format!("{}{port}", url.host_str().unwrap_or_default()).chars().map(plain).collect()
}

/// An instance's address: what is below it is the protocol's.
///
/// # Errors
/// [`Code::InvalidRequest`] for anything but `http://host/` and `https://host/`.
pub fn address(url: &Url) -> Result<Url, Failure> {
    let is_plain = ["http", "https"].contains(&url.scheme()) && url.host_str().is_some() && url.path() == "/";
    if !is_plain || url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(Failure::new(Code::InvalidRequest, "instance: use https://host/, without path, user or query"));
    }
    Ok(url.clone())
}

/// The instances of a file's text. Files of tokens are read.
///
/// # Errors
/// [`Code::InvalidRequest`]: what is wrong by its name, never a token.
pub fn read(text: &str) -> Result<Vec<Instance>, Failure> {
    let file: File = read_secret_toml(text).map_err(|why| Failure::new(Code::InvalidRequest, why))?;
    let mut slugs = BTreeSet::new();
    let mut instances = Vec::new();
    for line in file.instances {
        let instance = line.check()?;
        if !slugs.insert(instance.slug()) {
            return Err(Failure::new(Code::InvalidRequest, format!("{}: named twice", instance.url)));
        }
        instances.push(instance);
    }
    Ok(instances)
}

impl Line {
    fn check(self) -> Result<Instance, Failure> {
        let url = address(&self.url)?;
        let refuse = |what: &str| Err(Failure::new(Code::InvalidRequest, format!("{url}: {what}")));
        let token = match (self.runner_token, self.runner_token_file) {
            (Some(token), None) => token,
            (None, Some(path)) => read_token(&path)?,
            _ => return refuse("give runner_token or runner_token_file, and not both"),
        };
        if token.reveal().is_empty() || token.reveal().len() > TOKEN_BYTES_MAX {
            return refuse("runner_token: use 1 to 1000 bytes");
        }
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return refuse("name: use 1 to 100 bytes");
        }
        let tenant = self.tenant.unwrap_or_else(|| slug(&url));
        if tenant.is_empty() || tenant.len() > 253 || tenant.chars().any(char::is_control) {
            return refuse("tenant: use 1 to 253 printable characters");
        }
        if self.jobs.is_empty() {
            return refuse("jobs: name one at least");
        }
        if !JOBS_MAX.contains(&self.jobs_max) {
            return refuse("jobs_max: use 1 to 256");
        }
        let policy = Policy {
            tenant,
            priority: self.priority,
            jobs: self.jobs,
            jobs_max: self.jobs_max,
            quality: self.quality,
            copy: self.copy,
            loudness: self.loudness,
            ahead: self.ahead,
            publish: if self.largest_first { Publishing::LargestFirst } else { Publishing::CopyFirst },
            keep: Duration::from_secs(3600) * self.keep_hours,
            keep_bytes: u64::from(self.keep_gigabytes) * 1_000_000_000,
        };
        Ok(Instance { url, name: self.name, token, policy })
    }
}

fn read_token(path: &Path) -> Result<Token, Failure> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| Failure::new(Code::InvalidRequest, format!("{}: {error}", path.display())))?;
    Ok(Token(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_have_what_is_usual_unless_told_otherwise() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = folder.path().join("token");
        std::fs::write(&secret, "ptrt-two\n").expect("written");
        let text = format!(
            "[[instances]]\nurl = 'https://tube.example.org'\nname = 'shoal'\nrunner_token = 'ptrt-one'\n\
             [[instances]]\nurl = 'http://[::1]:9000/'\nname = 'b'\nrunner_token_file = '{}'\ntenant = 'two'\npriority = -3\n\
             jobs = ['storyboard', 'vod']\n\
             jobs_max = 2\nquality = 20\ncopy = false\nloudness = 'ebu-r128'\nahead = false\nlargest_first = true\n\
             keep_hours = 1\nkeep_gigabytes = 2\n",
            secret.display()
        );
        let instances = read(&text).expect("instances");
        let [one, two] = &instances[..] else { panic!("{instances:?}") };
        assert_eq!((one.slug().as_str(), one.token.reveal()), ("tube.example.org", "ptrt-one"));
        assert_eq!((one.policy.tenant.as_str(), one.policy.jobs_max, one.policy.ahead), ("tube.example.org", 16, true));
        assert_eq!((&one.policy.jobs, one.policy.publish), (&Work::ALL.into(), Publishing::CopyFirst));
        assert_eq!((two.slug().as_str(), two.token.reveal()), ("___1_-9000", "ptrt-two"));
        let told = Policy {
            tenant: "two".to_owned(),
            priority: -3,
            jobs: [Work::Vod, Work::Storyboard].into(),
            jobs_max: 2,
            quality: Some(Quality::of_tenths(200)),
            copy: false,
            loudness: Loudness::EbuR128,
            ahead: false,
            publish: Publishing::LargestFirst,
            keep: Duration::from_secs(3600),
            keep_bytes: 2_000_000_000,
        };
        assert_eq!(two.policy, told);
        assert!(!format!("{instances:?}").contains("ptrt"));
        assert_eq!(read(""), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_named_and_no_token_is_told() {
        let with = |rest: &str| format!("[[instances]]\nurl = 'https://a/'\nname = 'a'\nrunner_token = 'secret'\n{rest}");
        for (text, said) in [
            (with("jobs = []"), "jobs: name one"),
            (with("jobs = ['captions']"), "line 5: unknown variant"),
            (with("jobs_max = 0"), "jobs_max"),
            (with("quality = 51"), "quality"),
            (with("runner_token_file = 'x'"), "not both"),
            (with("speed = 'secret'"), "line 5: unknown field"),
            (with("priority = 'secret'"), "line 5: invalid type"),
            (with("[[instances]]\nurl = 'https://a/'\nname = 'b'\nrunner_token = 'secret'"), "named twice"),
            ("[[instances]]\nurl = 'https://a/b'\nname = 'a'\nrunner_token = 'secret'".to_owned(), "without path"),
            ("[[instances]]\nurl = 'https://u:secret@a/'\nname = 'a'\nrunner_token = 'x'".to_owned(), "without path, user"),
            ("[[instances]]\nurl = 'https://a'\nname = 'a'".to_owned(), "give runner_token"),
            ("[[instances]]\nurl = 'https://a'\nname = 'a'\nrunner_token = ''".to_owned(), "1 to 1000"),
        ] {
            let refused = read(&text).expect_err("refused").message;
            assert!(refused.contains(said) && !refused.contains("secret"), "'{said}' in '{refused}'");
        }
    }
}
