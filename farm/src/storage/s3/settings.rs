//! How S3 is reached: read from the environment in one place, and turned into a client.

use std::fmt;
use std::time::Duration;

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_sdk_s3::{Client, Config};
use url::Url;

use crate::storage::StorageError;

/// Longest wait for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Usual longest wait for the answer to a request without a body.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Slowest transfer that is waited for, in bytes per second. One that stands still is given up sooner.
const SLOWEST_BYTES_PER_SECOND: u64 = 128 << 10;
/// Tries of a request, the first included, when the server is busy or the connection breaks.
const TRIES_MAX: u32 = 5;
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// How S3 is reached.
#[derive(Clone)]
pub struct S3Settings {
    /// The server; none for AWS itself.
    pub endpoint: Option<Url>,
    /// The region that requests are signed for.
    pub region: String,
    /// The public half of the credentials.
    pub access_key_id: String,
    /// The secret half. Never shown.
    pub secret_access_key: String,
    /// What temporary credentials come with. Never shown.
    pub session_token: Option<String>,
    /// Which requests carry checksums.
    pub checksums: Checksums,
    /// Whether the bucket is named in the path (`http://server/bucket/key`) and not in the host.
    pub path_style: bool,
    /// Longest wait for an answer, and for a body that stands still; those that send or bring much get more. 30 s unless set.
    pub answer_wait: Duration,
}

/// Which requests carry checksums, and which answers are compared with theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksums {
    /// All on AWS, elsewhere as [`Checksums::Required`]: many servers refuse or garble what AWS added in 2025.
    #[default]
    Auto,
    /// All.
    Always,
    /// Those that S3 demands.
    Required,
}

impl fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, region, checksums, path_style, .. } = self;
        let endpoint = endpoint.as_ref().map(crate::job::shown_url);
        let shown = (&endpoint, region, checksums, path_style);
        f.debug_tuple("S3Settings").field(&shown).finish()
    }
}

impl S3Settings {
    /// As the environment has it. Endpoint: `SHOAL_S3_ENDPOINT`, `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`. Region:
    /// `AWS_REGION` or `AWS_DEFAULT_REGION`, else `us-east-1`. Credentials: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`
    /// and `AWS_SESSION_TOKEN`. `SHOAL_S3_CHECKSUMS`: `auto`, `always` or `required`. `SHOAL_S3_PATH_STYLE`: `true` or
    /// `false`; without it, path style for every server but AWS.
    ///
    /// # Errors
    /// [`StorageError::Denied`] without credentials; [`StorageError::Unavailable`] for a value that makes no sense.
    pub fn from_env() -> Result<Self, StorageError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`S3Settings::from_env`], from these variables. An empty one counts as absent.
    ///
    /// # Errors
    /// As [`S3Settings::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, StorageError> {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()).map(|value| (*name, value)))
        };
        let needed = |name| {
            let missing = || StorageError::Denied(format!("S3: {name} is not set"));
            first(&[name]).map(|(_, value)| value).ok_or_else(missing)
        };
        let senseless = |name: &str, why: &str| StorageError::Unavailable {
            key: name.to_owned(),
            why: format!("the variable is to be {why}"),
        };
        let endpoint = first(&["SHOAL_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
        let endpoint = endpoint.map(|(name, text)| check_endpoint(&text).ok_or_else(|| senseless(name, "an http(s) URL")));
        let endpoint = endpoint.transpose()?;
        let checksums = match first(&["SHOAL_S3_CHECKSUMS"]).map(|(_, value)| value).as_deref() {
            None | Some("auto") => Checksums::Auto,
            Some("always") => Checksums::Always,
            Some("required") => Checksums::Required,
            Some(_) => return Err(senseless("SHOAL_S3_CHECKSUMS", "auto, always or required")),
        };
        let path_style = match first(&["SHOAL_S3_PATH_STYLE"]).map(|(_, value)| value).as_deref() {
            None => !is_aws(endpoint.as_ref()),
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(_) => return Err(senseless("SHOAL_S3_PATH_STYLE", "true or false")),
        };
        Ok(Self {
            endpoint,
            region: first(&["AWS_REGION", "AWS_DEFAULT_REGION"]).map_or_else(|| "us-east-1".to_owned(), |(_, value)| value),
            access_key_id: needed("AWS_ACCESS_KEY_ID")?,
            secret_access_key: needed("AWS_SECRET_ACCESS_KEY")?,
            session_token: first(&["AWS_SESSION_TOKEN"]).map(|(_, value)| value),
            checksums,
            path_style,
            answer_wait: ANSWER_WAIT,
        })
    }

    /// A client of its own, with its own connections.
    pub(super) fn client(&self) -> Client {
        let Self { access_key_id, secret_access_key, session_token, .. } = self;
        let credentials = Credentials::new(access_key_id, secret_access_key, session_token.clone(), None, "settings");
        let (calculation, validation) = match self.checksums {
            Checksums::Auto if is_aws(self.endpoint.as_ref()) => always(),
            Checksums::Always => always(),
            Checksums::Auto | Checksums::Required => {
                (RequestChecksumCalculation::WhenRequired, ResponseChecksumValidation::WhenRequired)
            }
        };
        let stalls = StalledStreamProtectionConfig::enabled().grace_period(self.answer_wait).build();
        // Before this version, a client made without `aws-config` neither retries nor times out.
        let config = Config::builder().behavior_version(BehaviorVersion::v2026_01_12());
        let mut config = config
            .region(Region::new(self.region.clone()))
            .credentials_provider(credentials)
            .force_path_style(self.path_style)
            .request_checksum_calculation(calculation)
            .response_checksum_validation(validation)
            .retry_config(RetryConfig::standard().with_max_attempts(TRIES_MAX).with_max_backoff(PAUSE_MAX))
            .timeout_config(wait_for(transfer_wait(self.answer_wait, 0)))
            .stalled_stream_protection(stalls);
        if let Some(endpoint) = &self.endpoint {
            config = config.endpoint_url(endpoint.as_str().trim_end_matches('/'));
        }
        Client::from_conf(config.build())
    }
}

fn always() -> (RequestChecksumCalculation, ResponseChecksumValidation) {
    (RequestChecksumCalculation::WhenSupported, ResponseChecksumValidation::WhenSupported)
}

/// The longest transfer of so many bytes, with so long a wait for the answer.
pub(super) fn transfer_wait(answer_wait: Duration, bytes: u64) -> Duration {
    answer_wait + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND)
}

/// The limits of a request, each try of which may take so long. The SDK's read time-out counts from the first byte sent, so it has
/// to grow with the body.
pub(super) fn wait_for(wait: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_WAIT)
        .read_timeout(wait)
        .operation_attempt_timeout(wait)
        .operation_timeout(wait * 3)
        .build()
}

/// An endpoint is an `http(s)` URL of a server, without credentials.
fn check_endpoint(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    (matches!(url.scheme(), "http" | "https") && url.has_host() && plain).then_some(url)
}

fn is_aws(endpoint: Option<&Url>) -> bool {
    endpoint.and_then(Url::host_str).is_none_or(|host| host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<S3Settings, StorageError> {
        let usual = [("AWS_ACCESS_KEY_ID", "id-of-key"), ("AWS_SECRET_ACCESS_KEY", "sesame")];
        let all: Vec<_> = variables.iter().chain(&usual).collect();
        S3Settings::from_variables(|name| all.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn a_server_of_ones_own_is_asked_by_path_and_aws_by_host() {
        let own = settings(&[("SHOAL_S3_ENDPOINT", "http://127.0.0.1:9000"), ("AWS_ENDPOINT_URL", "http://other")]);
        let own = own.expect("settings");
        assert!(own.path_style && own.endpoint.as_ref().is_some_and(|url| url.port() == Some(9000)));
        assert_eq!((own.region.as_str(), own.checksums), ("us-east-1", Checksums::Auto));
        let aws = settings(&[("AWS_REGION", "eu-west-3"), ("SHOAL_S3_ENDPOINT", "")]).expect("settings");
        assert!(!aws.path_style && aws.endpoint.is_none() && aws.region == "eu-west-3");
        assert!(!is_aws(Url::parse("https://amazonaws.com.evil.example").ok().as_ref()));
    }

    #[test]
    fn what_makes_no_sense_is_named_and_no_secret_is_shown() {
        for (name, value) in [
            ("SHOAL_S3_ENDPOINT", "localhost:9000"),
            ("AWS_ENDPOINT_URL", "https://user:sesame@s3.example"),
            ("SHOAL_S3_CHECKSUMS", "sometimes"),
            ("SHOAL_S3_PATH_STYLE", "maybe"),
        ] {
            let error = settings(&[(name, value)]).expect_err(name).to_string();
            assert!(error.contains(name) && !error.contains("sesame"), "{error}");
        }
        let none = S3Settings::from_variables(|_| None).expect_err("no credentials").to_string();
        assert!(none.contains("AWS_ACCESS_KEY_ID is not set"), "{none}");
        let shown = format!("{:?}", settings(&[("AWS_SESSION_TOKEN", "open")]).expect("settings"));
        assert!(!shown.contains("sesame") && !shown.contains("open") && !shown.contains("id-of-key"), "{shown}");
    }
}
