//! Where a broker is, and how to show that without its secrets.

use std::fmt;

use lapin::uri::AMQPUri;
use url::Url;

use crate::broker::BrokerError;

/// Seconds between heartbeats where the URL does not say. A peer that is silent twice as long is taken for gone.
const HEARTBEAT_S: u16 = 15;

/// The address of a broker with its credentials. Shown, it is without them.
#[derive(Clone)]
pub(super) struct Address {
    uri: AMQPUri,
    shown: String,
}

impl Address {
    /// # Errors
    /// [`BrokerError::Unavailable`] when the URL is not one of a broker.
    pub(super) fn new(url: &Url) -> Result<Self, BrokerError> {
        let mut url = url.clone();
        if url.path() == "/" {
            // To the letter that is the virtual host with the empty name, which nobody means.
            url.set_path("");
        }
        let refused = |why: String| BrokerError::Unavailable(format!("not the URL of a broker: {why}"));
        let mut uri: AMQPUri = url.as_str().parse().map_err(refused)?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        let shown = format!("{}://{}:{}/{}", uri.scheme, uri.authority.host, uri.authority.port, uri.vhost.trim_matches('/'));
        Ok(Self { uri, shown })
    }

    pub(super) fn uri(&self) -> AMQPUri {
        self.uri.clone()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Result<Address, BrokerError> {
        Address::new(&Url::parse(url).unwrap())
    }

    #[test]
    fn what_is_shown_holds_no_secret() {
        let given = address("amqps://mira:s3cr3t%21@mq.example:5671/farm?heartbeat=30&auth_mechanism=plain").unwrap();
        assert_eq!(given.to_string(), "amqps://mq.example:5671/farm");
        assert_eq!(format!("{given:?}"), "amqps://mq.example:5671/farm");
        assert_eq!(given.uri.authority.userinfo.password, "s3cr3t!");
        assert_eq!(given.uri.query.heartbeat, Some(30));
        for broken in ["http://mira:s3cr3t@mq", "amqp://mira:s3cr3t@mq?heartbeat=x", "amqp://mira:s3cr3t@mq?auth_mechanism=x"] {
            let error = address(broken).unwrap_err().to_string();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }

    #[test]
    fn nothing_and_a_slash_mean_the_usual_virtual_host() {
        for url in ["amqp://mq", "amqp://mq/", "amqp://mq/%2f"] {
            let given = address(url).unwrap();
            assert_eq!((given.uri.vhost.as_str(), given.uri.authority.port), ("/", 5672), "{url}");
            assert_eq!(given.uri.query.heartbeat, Some(HEARTBEAT_S));
        }
    }
}
