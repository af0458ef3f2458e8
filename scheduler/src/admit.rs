//! What a farm takes in from outside: beyond a message that can be understood, places that outsiders may name.

use farm::edit::others;
use farm::job::{JobSpec, SourceSpec, shown_url};
use farm::{Code, Failure};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::tenants::{Register, Tenants};

/// What outsiders may ask for.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Whether sources and outputs may be `file:` URLs, which are those of this machine and of every worker.
    pub allow_file_urls: bool,
    /// Where the farm keeps its own: nobody's source, and nobody's output.
    pub state: Option<Url>,
    /// Who asks: some keep to places, below which their outputs are, and their sources in storage.
    pub tenants: Register,
}

/// Longest URL in bytes.
const URL_BYTES_MAX: usize = 4096;
/// Most headers to send for a source, and most bytes of them all.
const HEADERS_MAX: usize = 32;
const HEADER_BYTES_MAX: usize = 16 << 10;
/// Headers that say how a request is made: which part is asked for of whom, and where it ends.
const HEADERS_OURS: [&str; 17] = [
    "host",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "range",
    "if-range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
];
/// Lengths of the secret of a signed call, in bytes.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 8..=1024;

/// Refuses what may not be asked for, naming the field.
///
/// # Errors
/// [`Code::InvalidRequest`].
pub fn admit(spec: &JobSpec, policy: &Policy) -> Result<(), Failure> {
    admit_for(spec, policy, &policy.tenants.now())
}

/// As [`admit`], by the tenants that were asked whose token it is: one who is taken out of the file meanwhile is bound to its
/// places to the end.
///
/// # Errors
/// As [`admit`].
pub fn admit_for(spec: &JobSpec, policy: &Policy, tenants: &Tenants) -> Result<(), Failure> {
    spec.check()?;
    let places = tenants.places_of(&spec.tenant);
    let of = (spec.tenant.as_str(), places.as_deref(), policy);
    source("source", &spec.source, of)?;
    for (number, _, other) in others(&spec.edit) {
        source(&format!("edit: source {number}"), other, of)?;
    }
    place("output.url", &spec.output.url, &["s3"], of)?;
    let Some(notify) = &spec.notify else { return Ok(()) };
    if !["https", "http"].contains(&notify.url.scheme()) || notify.url.as_str().len() > URL_BYTES_MAX {
        return refuse(format!("notify.url: {} is not http or https", shown_url(&notify.url)));
    }
    if !SECRET_BYTES.contains(&notify.secret.len()) {
        return refuse(format!("notify.secret: use {} to {} bytes", SECRET_BYTES.start(), SECRET_BYTES.end()));
    }
    Ok(())
}

fn source(field: &str, source: &SourceSpec, of: (&str, Option<&[&Url]>, &Policy)) -> Result<(), Failure> {
    place(&format!("{field}.url"), &source.url, &["https", "http", "s3"], of)?;
    let headers = &source.headers;
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if headers.len() > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
        return refuse(format!("{field}.headers: more than {HEADERS_MAX} headers or {HEADER_BYTES_MAX} bytes"));
    }
    let is_ours = |name: &&String| HEADERS_OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours));
    match headers.keys().find(is_ours) {
        Some(name) => refuse(format!("{field}.headers: {name} is not for jobs to say")),
        None => Ok(()),
    }
}

fn place(
    field: &str,
    url: &Url,
    schemes: &[&str],
    (tenant, places, policy): (&str, Option<&[&Url]>, &Policy),
) -> Result<(), Failure> {
    let scheme = url.scheme();
    if scheme == "file" && !policy.allow_file_urls {
        return refuse(format!("{field}: file: URLs are not allowed here; whoever runs the farm can allow them"));
    }
    if scheme != "file" && !schemes.contains(&scheme) {
        return refuse(format!("{field}: '{scheme}:' is not possible here: use {}", schemes.join(", ")));
    }
    if url.as_str().len() > URL_BYTES_MAX {
        return refuse(format!("{field}: longer than {URL_BYTES_MAX} bytes"));
    }
    if !["file", "s3"].contains(&scheme) {
        return Ok(());
    }
    let is_plain = url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    if scheme == "s3" && (!is_plain || url.port().is_some()) {
        return refuse(format!("{field}: use s3://bucket/key and nothing else"));
    }
    if goes_about(url) {
        return refuse(format!("{field}: its path is not a plain one"));
    }
    if policy.state.as_ref().is_some_and(|state| is_below(url, state)) {
        return refuse(format!("{field}: the farm keeps its own there"));
    }
    match places {
        Some(places) if !places.iter().any(|place| is_below(url, place)) => {
            refuse(format!("{field}: {} is not among the places of tenant {tenant}", shown_url(url)))
        }
        _ => Ok(()),
    }
}

/// The path of a place in storage, as storage reads it, with `/` at its end alone; nothing where it cannot be read.
fn folder(url: &Url) -> Option<String> {
    let path = percent_decode_str(url.path().trim_start_matches('/')).decode_utf8().ok()?;
    let path = path.trim_end_matches('/');
    Some(if path.is_empty() { String::new() } else { format!("{path}/") })
}

/// Whether a path may lead elsewhere than it says: by parts that go up or stay, or that folders pass over.
fn goes_about(url: &Url) -> bool {
    let is_odd = |part: &str| [".", ".."].contains(&part) || part.is_empty() && url.scheme() == "file";
    folder(url).is_none_or(|path| !path.is_empty() && path.trim_end_matches('/').split('/').any(is_odd))
}

/// Whether a place in storage is another, or below it.
fn is_below(url: &Url, place: &Url) -> bool {
    let (Some(path), Some(below)) = (folder(url), folder(place)) else { return false };
    (url.scheme(), url.host_str()) == (place.scheme(), place.host_str()) && path.starts_with(&below)
}

fn refuse(message: String) -> Result<(), Failure> {
    Err(Failure::new(Code::InvalidRequest, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use farm::job::NotifySpec;

    fn spec(source: &str, output: &str) -> JobSpec {
        JobSpec::new(source.parse().expect("a URL"), output.parse().expect("a URL"))
    }

    #[test]
    fn files_are_for_those_who_run_the_farm() {
        let (closed, open) = (Policy::default(), Policy { allow_file_urls: true, ..Policy::default() });
        let cases = [
            ("https://x/a.mkv", "s3://b/o/", true, true),
            ("http://x/a.mkv", "s3://b/o/", true, true),
            ("s3://b/a.mkv", "s3://b/o/", true, true),
            ("file:///etc/passwd", "s3://b/o/", false, true),
            ("https://x/a.mkv", "file:///etc/", false, true),
            ("https://x/a.mkv", "https://x/o/", false, false),
            ("ftp://x/a.mkv", "s3://b/o/", false, false),
        ];
        for (source, output, closed_takes, open_takes) in cases {
            assert_eq!(admit(&spec(source, output), &closed).is_ok(), closed_takes, "{source} {output}");
            assert_eq!(admit(&spec(source, output), &open).is_ok(), open_takes, "{source} {output}");
        }
        let refused = admit(&spec("file:///a", "s3://b/o/"), &closed).expect_err("refused");
        assert!(refused.message.starts_with("source.url:"), "{refused}");
    }

    #[test]
    fn a_tenant_keeps_to_its_places_and_nobody_gets_at_the_farms_own() {
        let url = |text: &str| text.parse::<Url>().expect("a URL");
        let tube = "[[tenants]]\nname = 'tube'\ntoken = 'a token of some length'\n\
                    places = ['s3://videos/tube/', 'file:///srv/tube/']\n";
        let tenants = Register::new(Tenants::read(tube).expect("tenants"));
        let policy = Policy { allow_file_urls: true, state: Some(url("s3://farm/state/")), tenants };
        let takes = |tenant: &str, source: &str, output: &str| {
            let job = JobSpec { tenant: tenant.to_owned(), ..spec(source, output) };
            admit(&job, &policy).map_err(|failure| failure.message)
        };
        const ANYWHERE: &str = "https://x/a.mkv";
        for inside in
            ["s3://videos/tube/", "s3://videos/tube", "s3://videos//tube/1/", "s3://videos/t%75be/1", "file:///srv/tube/1/"]
        {
            assert_eq!(takes("tube", ANYWHERE, inside), Ok(()), "{inside}");
            assert_eq!(takes("tube", inside, "s3://videos/tube/1/"), Ok(()), "{inside}");
        }
        for outside in [
            "s3://videos/",
            "s3://videos/tuber/",
            "s3://videos/tub",
            "s3://videos/other/tube/",
            "s3://other/tube/",
            "s3://videos/tube/../other/",
            "s3://videos/tube/..%2Fother/",
            "file:///srv/tube/..%2fother/",
            "file:///srv/tube/%2e%2e/other/",
            "file:///etc/",
            "s3://videos/tube/%FF/",
        ] {
            assert!(takes("tube", ANYWHERE, outside).is_err_and(|why| why.starts_with("output.url:")), "{outside}");
            assert!(takes("tube", outside, "s3://videos/tube/1/").is_err_and(|why| why.starts_with("source.url:")), "{outside}");
        }
        assert_eq!(takes("unbound", "s3://a/b.mkv", "s3://anywhere/else/"), Ok(()));
        let own = ["s3://farm/state/", "s3://farm/state", "s3://farm/state/jobs/", "s3://farm/s%74ate/peertube/x"];
        let about = [
            "s3://farm/x/..%2Fstate/jobs/",
            "s3://farm/.%2Fstate/",
            "s3://farm/state/%FF/",
            "file:///srv//state/",
            "file:///srv/x%2F..%2Fstate/",
            "file:///srv/.%2Fstate/",
            "file:///srv/state%2F%2Fjobs/",
        ];
        for own in own.into_iter().chain(about) {
            assert!(takes("unbound", ANYWHERE, own).is_err(), "{own}");
            assert!(takes("unbound", own, "s3://anywhere/").is_err(), "{own}");
        }
        assert_eq!(takes("unbound", ANYWHERE, "s3://farm/videos/"), Ok(()));
    }

    #[test]
    fn a_call_needs_an_address_and_a_secret() {
        let mut job = spec("https://x/a.mkv", "s3://b/o/");
        for (url, secret, field) in [
            ("gopher://x/", "long enough", "notify.url"),
            ("https://x/", "short", "notify.secret"),
            ("https://x/", "long enough", ""),
        ] {
            job.notify = Some(NotifySpec { url: url.parse().expect("a URL"), secret: secret.to_owned() });
            let refused = admit(&job, &Policy::default()).err().map(|failure| failure.message).unwrap_or_default();
            assert!(refused.starts_with(field) && field.is_empty() == refused.is_empty(), "{refused}");
        }
    }

    #[test]
    fn a_place_in_storage_is_a_bucket_and_a_key() {
        for odd in ["s3://user@b/a.mkv", "s3://user:word@b/a.mkv", "s3://b:9000/a.mkv", "s3://b/a.mkv?x", "s3://b/a.mkv#x"] {
            let refused = admit(&spec(odd, "s3://b/o/"), &Policy::default()).expect_err(odd);
            assert!(refused.message.starts_with("source.url: use s3:"), "{odd}: {refused}");
            assert!(admit(&spec("https://x/a.mkv", odd), &Policy::default()).is_err(), "{odd}");
        }
    }

    #[test]
    fn how_a_source_is_asked_for_is_not_for_jobs_to_say() {
        let mut job = spec("https://x/a.mkv", "s3://b/o/");
        for (name, is_taken) in [("x-key", true), ("Authorization", true), ("Host", false), ("RANGE", false), ("te", false)] {
            job.source.headers = [(name.to_owned(), "1".to_owned())].into();
            assert_eq!(admit(&job, &Policy::default()).is_ok(), is_taken, "{name}");
        }
    }
}
