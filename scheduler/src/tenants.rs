//! Who may use the farm: tenants and their tokens, read from a TOML file, and again when it is changed; weights and hardware at
//! the start alone.
//!
//! ```toml
//! [[tenants]]
//! name = "tube.example"
//! token_sha256 = "…"   # hex of the SHA-256 of the token; or `token = "…"`
//! weight = 2           # share of the farm against others, 1 to 1000; 1 when absent
//! max_jobs = 100       # jobs that have not ended; no limit when absent
//! admin = false        # an admin sees and submits jobs of every tenant
//! hardware = "prefer"  # or "require", "avoid": for jobs that do not say; "prefer" when absent
//! places = ["s3://videos/tube/"]   # below which its outputs are, and its sources in storage; anywhere when absent
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use farm::job::Hardware;
use farm::{Code, Failure};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use tokio::sync::watch;
use url::Url;

/// Shortest token that is taken, in bytes: a short one can be guessed.
const TOKEN_BYTES_MIN: usize = 16;
/// Most tenants of a farm.
const TENANTS_MAX: usize = 10_000;
/// How often it is looked whether the file says something else.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// A tenant.
#[derive(Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its name, as in jobs.
    pub name: String,
    /// Its share of the farm against others, 1 to 1000.
    pub weight: u32,
    /// Most jobs that have not ended.
    pub jobs_max: Option<usize>,
    /// Whether it sees and submits jobs of every tenant.
    pub is_admin: bool,
    /// Whether hardware encodes its jobs, where they do not say.
    pub hardware: Option<Hardware>,
    /// Below which places its outputs are, and its sources in storage; anywhere when absent.
    pub places: Option<Vec<Url>>,
    token_sha256: [u8; 32],
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant").field("name", &self.name).field("is_admin", &self.is_admin).finish_non_exhaustive()
    }
}

/// All who may use the farm.
#[derive(Clone, Debug, Default)]
pub struct Tenants {
    all: Vec<Tenant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tenants: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    token: Option<String>,
    token_sha256: Option<String>,
    #[serde(default = "one")]
    weight: u32,
    max_jobs: Option<usize>,
    #[serde(default)]
    admin: bool,
    hardware: Option<Hardware>,
    places: Option<Vec<Url>>,
}

fn one() -> u32 {
    1
}

/// Reads TOML that holds secrets.
///
/// # Errors
/// Where it is wrong and how, and never what stands there: the error of the TOML reader quotes the line, which may hold a token.
pub(crate) fn read_secret_toml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
        let said = error.message();
        // What follows the kind of such an error is the value.
        let said = if said.starts_with("invalid") { said.split(':').next().unwrap_or_default() } else { said };
        format!("line {line}: {said}")
    })
}

impl Tenants {
    /// Reads the file's text.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`], naming the tenant and never a token.
    pub fn read(text: &str) -> Result<Self, Failure> {
        let file: File = read_secret_toml(text).map_err(|why| {
            let message = format!("the tokens file cannot be understood, {why}");
            Failure::new(Code::InvalidRequest, message)
        })?;
        if file.tenants.len() > TENANTS_MAX {
            return Err(Failure::new(Code::InvalidRequest, format!("more than {TENANTS_MAX} tenants")));
        }
        let all = file.tenants.into_iter().map(Line::check).collect::<Result<Vec<Tenant>, Failure>>()?;
        for (place, tenant) in all.iter().enumerate() {
            if all.iter().take(place).any(|other| other.token_sha256 == tenant.token_sha256) {
                return Err(Failure::new(Code::InvalidRequest, format!("tenant {}: another has the same token", tenant.name)));
            }
        }
        Ok(Self { all })
    }

    /// Whose token this is. Takes as long for any token: every tenant's is compared, in constant time.
    pub fn of_token(&self, token: &str) -> Option<&Tenant> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = u32::MAX;
        for (place, tenant) in (0_u32..).zip(&self.all) {
            let is_it: Choice = tenant.token_sha256.ct_eq(&digest);
            found.conditional_assign(&place, is_it);
        }
        self.all.get(found as usize)
    }

    /// Whether this tenant is one of them, as it is here, token and all.
    pub fn has(&self, tenant: &Tenant) -> bool {
        self.all.contains(tenant)
    }

    /// Shares of the farm by tenant, for those whose is not 1.
    pub fn weights(&self) -> BTreeMap<String, u32> {
        let others = self.all.iter().filter(|tenant| tenant.weight != 1);
        others.map(|tenant| (tenant.name.clone(), tenant.weight)).collect()
    }

    /// Whether hardware encodes, by tenant, for those of whom it is said.
    pub fn hardware(&self) -> BTreeMap<String, Hardware> {
        self.all.iter().filter_map(|tenant| Some((tenant.name.clone(), tenant.hardware?))).collect()
    }

    /// The places that a tenant keeps to: of all who go by that name together. None where it may go anywhere.
    pub fn places_of(&self, name: &str) -> Option<Vec<&Url>> {
        let mut own = self.all.iter().filter(|tenant| tenant.name == name).filter_map(|tenant| tenant.places.as_ref()).peekable();
        own.peek()?;
        Some(own.flatten().collect())
    }
}

/// All who may use the farm, as the file has them by now: clones say the same at any time.
#[derive(Clone, Debug)]
pub struct Register {
    current: Arc<watch::Sender<Arc<Tenants>>>,
}

impl Default for Register {
    fn default() -> Self {
        Self::new(Tenants::default())
    }
}

impl Register {
    /// These, until others are.
    pub fn new(tenants: Tenants) -> Self {
        Self { current: Arc::new(watch::Sender::new(Arc::new(tenants))) }
    }

    /// Who it is now.
    pub fn now(&self) -> Arc<Tenants> {
        Arc::clone(&self.current.borrow())
    }

    /// Looks again and again what `read` gives, until the future is dropped; `taken` is what it gave before. Of what changes
    /// two looks have to agree: somebody may be writing. What cannot be understood, or names nobody any more, changes nothing:
    /// a token that was to be taken back works on, and it is said that it does.
    pub async fn follow(self, taken: String, read: impl Fn() -> Result<String, Failure> + Send + Sync + 'static) {
        let read = Arc::new(read);
        let (mut taken, mut seen) = (Ok(taken.clone()), Ok(taken));
        loop {
            tokio::time::sleep(LOOK_PAUSE).await;
            let read = Arc::clone(&read);
            let Ok(text) = tokio::task::spawn_blocking(move || read()).await else { continue };
            let is_settled = text == std::mem::replace(&mut seen, text.clone());
            if !is_settled || text == taken {
                continue;
            }
            let nobody = || Failure::new(Code::InvalidRequest, "the tokens file names nobody");
            let read = text.as_ref().map_err(Failure::clone).and_then(|text| Tenants::read(text));
            match read.and_then(|tenants| if tenants.all.is_empty() { Err(nobody()) } else { Ok(tenants) }) {
                Ok(tenants) => {
                    tracing::info!(tenants = tenants.all.len(), "the tokens file was read again");
                    self.current.send_replace(Arc::new(tenants));
                }
                Err(failure) => tracing::error!(%failure, "the tokens file cannot be read again: what it said before holds"),
            }
            taken = text;
        }
    }
}

impl Line {
    fn check(self) -> Result<Tenant, Failure> {
        let refuse = |what: &str| Err(Failure::new(Code::InvalidRequest, format!("tenant {}: {what}", self.name)));
        if self.name.is_empty() || self.name.len() > 253 || self.name.chars().any(char::is_control) {
            return refuse("name: use 1 to 253 printable characters");
        }
        if !(1..=1000).contains(&self.weight) {
            return refuse("weight: use 1 to 1000");
        }
        if let Some(place) = self.places.iter().flatten().find(|place| !["s3", "file"].contains(&place.scheme())) {
            return refuse(&format!("places: {place} is neither s3: nor file:"));
        }
        let token_sha256 = match (&self.token, &self.token_sha256) {
            (Some(token), None) if token.len() < TOKEN_BYTES_MIN => return refuse("token: shorter than 16 bytes"),
            (Some(token), None) => Sha256::digest(token.as_bytes()).into(),
            (None, Some(hex)) => match unhex(hex) {
                Some(digest) => digest,
                None => return refuse("token_sha256: not 64 hex digits"),
            },
            _ => return refuse("give token or token_sha256, and not both"),
        };
        let Self { name, weight, max_jobs: jobs_max, admin: is_admin, hardware, places, .. } = self;
        Ok(Tenant { name, weight, jobs_max, is_admin, hardware, places, token_sha256 })
    }
}

fn unhex(hex: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (place, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_tenant_and_no_other_does() {
        let digest: String = Sha256::digest(b"the token of two").iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!(
            "[[tenants]]\nname = 'one'\ntoken = 'the token of one'\nweight = 3\nmax_jobs = 5\nplaces = ['s3://b/one/']\n\
             [[tenants]]\nname = 'two'\ntoken_sha256 = '{digest}'\nadmin = true\n"
        );
        let tenants = Tenants::read(&text).expect("tenants");
        let one = tenants.of_token("the token of one").expect("one");
        assert_eq!((one.name.as_str(), one.weight, one.jobs_max, one.is_admin), ("one", 3, Some(5), false));
        assert!(tenants.of_token("the token of two").is_some_and(|two| two.name == "two" && two.is_admin));
        for unknown in ["", "the token of", "the token of one ", &digest] {
            assert_eq!(tenants.of_token(unknown), None, "{unknown}");
        }
        assert_eq!(tenants.weights(), BTreeMap::from([("one".to_owned(), 3)]));
        assert_eq!(tenants.places_of("one"), Some(vec![&"s3://b/one/".parse().expect("a URL")]));
        assert_eq!((tenants.places_of("two"), tenants.places_of("nobody")), (None, None));
        assert!(!format!("{tenants:?}").contains("token"));
    }

    #[test]
    fn a_wrong_file_is_refused_by_the_name_of_what_is_wrong_and_no_token_is_told() {
        for (text, said) in [
            ("[[tenants]]\nname = 'a'", "tenant a: give token"),
            ("[[tenants]]\nname = 'a'\ntoken = 'secret'", "shorter than 16"),
            ("[[tenants]]\nname = 'a'\ntoken_sha256 = 'secret'", "64 hex digits"),
            ("[[tenants]]\nname = 'a'\ntoken = 'a-secret-of-some-length'\nwait = 1", "line 4: unknown field"),
            ("[[tenants]]\nname = 'a'\nweight = 'secret'", "line 3: invalid type"),
            ("[[tenants]]\nname = 'a'\nplaces = ['https://x/']", "tenant a: places"),
            ("[[tenants]]\nname = 'a'\ntoken = 'a-secret-of-some-length\n", "line 3"),
            ("[[tenants]]\nname = 'a'\ntoken = 'a-secret-of-some-length'\nweight = 0", "weight"),
            (
                "[[tenants]]\nname='a'\ntoken='a-secret-of-some-length'\n[[tenants]]\nname='b'\ntoken='a-secret-of-some-length'",
                "tenant b: another has the same token",
            ),
        ] {
            let refused = Tenants::read(text).expect_err("refused").message;
            assert!(refused.contains(said) && !refused.contains("secret"), "'{said}' in '{refused}'");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_file_says_by_now_holds_if_it_can_be_understood() {
        let of = |name: &str| format!("[[tenants]]\nname = '{name}'\ntoken = 'the token of {name}'\n");
        let file = Arc::new(std::sync::Mutex::new(of("one")));
        let register = Register::new(Tenants::read(&of("one")).expect("tenants"));
        let read = Arc::clone(&file);
        let read = move || Ok(read.lock().expect("not poisoned").clone());
        let followed = tokio::spawn(register.clone().follow(of("one"), read));
        let knows = |name: &str| register.now().of_token(&format!("the token of {name}")).is_some();
        for (text, one, two) in [
            (of("one"), true, false),
            (of("two"), false, true),
            ("[[tenants]]".to_owned(), false, true),
            (format!("{}{}", of("one"), of("two")), true, true),
            (String::new(), true, true),
        ] {
            *file.lock().expect("not poisoned") = text.clone();
            tokio::time::sleep(4 * LOOK_PAUSE).await;
            assert_eq!((knows("one"), knows("two")), (one, two), "{text}");
        }
        for half in 0..of("two").len() {
            *file.lock().expect("not poisoned") = of("two").chars().take(half).collect();
            tokio::time::sleep(LOOK_PAUSE).await;
            assert!(knows("one"), "what is being written does not count");
        }
        followed.abort();
    }
}
