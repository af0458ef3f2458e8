//! URLs of sources, outputs and calls: what may be asked for, and how they are shown.
#![no_main]

use std::net::IpAddr;
use std::sync::Arc;

use farm::job::{JobId, shown_url};
use farm::outbound::Reach;
use libfuzzer_sys::fuzz_target;
use url::{Host, Url};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    drop(JobId::try_from(text.to_owned()));
    let Ok(url) = Url::parse(text) else { return };
    let shown = shown_url(&url);
    if let Some(password) = url.password().filter(|password| password.len() > 8) {
        let rest = format!("{}{}", url.path(), url.host_str().unwrap_or_default());
        assert!(!shown.contains(password) || rest.contains(password), "{shown} shows a password");
    }
    if Reach::PublicAnd(Arc::new([])).check(&url).is_ok() {
        let inner = match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback() || address.is_private() || address.is_link_local(),
            Some(Host::Ipv6(address)) => match IpAddr::V6(address).to_canonical() {
                IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
                IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
            },
            Some(Host::Domain(_)) | None => false,
        };
        assert!(!inner, "{url} leads inside");
    }
});
