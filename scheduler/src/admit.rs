//! What a farm takes in from outside: beyond a message that can be understood, places that outsiders may name.

use farm::job::{JobSpec, shown_url};
use farm::{Code, Failure};
use url::Url;

/// What outsiders may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Whether sources and outputs may be `file:` URLs, which are those of this machine and of every worker.
    pub allow_file_urls: bool,
}

/// Longest URL in bytes.
const URL_BYTES_MAX: usize = 4096;
/// Most headers to send for a source, and most bytes of them all.
const HEADERS_MAX: usize = 32;
const HEADER_BYTES_MAX: usize = 16 << 10;
/// Lengths of the secret of a signed call, in bytes.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 8..=1024;

/// Refuses what may not be asked for, naming the field.
///
/// # Errors
/// [`Code::InvalidRequest`].
pub fn admit(spec: &JobSpec, policy: Policy) -> Result<(), Failure> {
    spec.check()?;
    place("source.url", &spec.source.url, &["https", "http", "s3"], policy)?;
    place("output.url", &spec.output.url, &["s3"], policy)?;
    let headers = &spec.source.headers;
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if headers.len() > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
        return refuse(format!("source.headers: more than {HEADERS_MAX} headers or {HEADER_BYTES_MAX} bytes"));
    }
    let Some(notify) = &spec.notify else { return Ok(()) };
    if !["https", "http"].contains(&notify.url.scheme()) || notify.url.as_str().len() > URL_BYTES_MAX {
        return refuse(format!("notify.url: {} is not http or https", shown_url(&notify.url)));
    }
    if !SECRET_BYTES.contains(&notify.secret.len()) {
        return refuse(format!("notify.secret: use {} to {} bytes", SECRET_BYTES.start(), SECRET_BYTES.end()));
    }
    Ok(())
}

fn place(field: &str, url: &Url, schemes: &[&str], policy: Policy) -> Result<(), Failure> {
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
    Ok(())
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
        let (closed, open) = (Policy::default(), Policy { allow_file_urls: true });
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
            assert_eq!(admit(&spec(source, output), closed).is_ok(), closed_takes, "{source} {output}");
            assert_eq!(admit(&spec(source, output), open).is_ok(), open_takes, "{source} {output}");
        }
        let refused = admit(&spec("file:///a", "s3://b/o/"), closed).expect_err("refused");
        assert!(refused.message.starts_with("source.url:"), "{refused}");
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
            let refused = admit(&job, Policy::default()).err().map(|failure| failure.message).unwrap_or_default();
            assert!(refused.starts_with(field) && field.is_empty() == refused.is_empty(), "{refused}");
        }
    }
}
