//! Requests to servers that strangers name: sources of jobs, and whom to call at their end.
//!
//! A name is resolved once, what it leads to is checked, and the connection goes there and nowhere else: a name that leads
//! elsewhere a moment later changes nothing. Redirects are for the caller to follow, with a check of each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::ClientBuilder;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Where requests may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// To any server: for those who could reach it by themselves.
    #[default]
    Anywhere,
    /// To servers of the public Internet, and to those in these networks.
    PublicAnd(Arc<[IpNet]>),
}

/// A request may not go where it is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// An address that is not public, nor in a network that is allowed. Which, is not told.
    #[error("its server is at an address that jobs may not reach")]
    Address,
    /// A port below 1024 on which no web server is.
    #[error("port {0} is not for web servers")]
    Port(u16),
}

impl Reach {
    /// Whether an address may be reached.
    pub fn admits(&self, address: IpAddr) -> bool {
        match self {
            Self::Anywhere => true,
            Self::PublicAnd(networks) => {
                let address = address.to_canonical();
                is_public(address) || networks.iter().any(|network| network.contains(&address))
            }
        }
    }

    /// Whether a URL may be asked for, as far as it says by itself; names are looked at when they are resolved.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, url: &Url) -> Result<(), Forbidden> {
        if *self == Self::Anywhere {
            return Ok(());
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) | None => None,
        };
        if address.is_some_and(|address| !self.admits(address)) {
            return Err(Forbidden::Address);
        }
        match url.port() {
            Some(port) if port < 1024 && ![80, 443].contains(&port) => Err(Forbidden::Port(port)),
            _ => Ok(()),
        }
    }

    /// A client whose connections go to no other addresses, to be set up further. It follows no redirect.
    pub fn client(&self) -> ClientBuilder {
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")));
        match self {
            Self::Anywhere => builder,
            Self::PublicAnd(_) => builder.dns_resolver(Arc::new(self.clone())),
        }
    }
}

impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let admitted: Vec<SocketAddr> = found.iter().copied().filter(|found| reach.admits(found.ip())).collect();
            match (admitted.is_empty(), found.is_empty()) {
                (true, false) => Err(Forbidden::Address.into()),
                _ => Ok(Box::new(admitted.into_iter()) as Addrs),
            }
        })
    }
}

/// Why a request came to nothing, if it was for this: somewhere below it.
pub fn forbidden(error: &(dyn std::error::Error + 'static)) -> Option<Forbidden> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(forbidden) = error.downcast_ref::<Forbidden>() {
            return Some(*forbidden);
        }
        cause = error.source();
    }
    None
}

/// Whether an address is of the public Internet (IANA's registries of special-purpose addresses).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    );
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match address.segments() {
        // NAT64 and 6to4 lead to the IPv4 address that is in them.
        [0x64, 0xFF9B, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo and others of protocols; documentation, twice.
        [0x2001, 0..=0x1FF, ..] | [0x2001, 0xDB8, ..] | [0x3FFF, 0..=0xFFF, ..] => false,
        [first, ..] => first & 0xE000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn only_the_public_internet_is_public() {
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.0.0.1",
            "128.0.0.1",
            "169.253.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            "::ffff:1.1.1.1",
            "2001:200::1",
            "3fff:1000::1",
        ] {
            assert!(is_public(address(public).to_canonical()), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
            "fec0::1",
        ] {
            assert!(!is_public(address(special).to_canonical()), "{special}");
            assert!(Reach::Anywhere.admits(address(special)));
        }
    }

    #[test]
    fn networks_that_are_allowed_can_be_reached_in_any_guise() {
        let reach = Reach::PublicAnd(["10.1.0.0/16", "fd00:1::/32"].map(|net| net.parse().expect("a network")).into());
        for (to, may) in
            [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("10.2.0.1", false), ("fd00:1::5", true), ("fd00:2::5", false)]
        {
            assert_eq!(reach.admits(address(to)), may, "{to}");
        }
    }

    #[test]
    fn urls_are_refused_for_what_they_say() {
        let reach = Reach::PublicAnd(Arc::new([]));
        let check = |url: &str| reach.check(&url.parse().expect("a URL"));
        for refused in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://017700000001/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://169.254.169.254/latest/meta-data/",
            "https://0/",
            "http://[fd00:ec2::254]/",
        ] {
            assert_eq!(check(refused), Err(Forbidden::Address), "{refused}");
        }
        assert_eq!(check("http://example.org:25/"), Err(Forbidden::Port(25)));
        for taken in ["http://example.org/", "https://example.org:8443/", "http://1.1.1.1:443/"] {
            assert_eq!(check(taken), Ok(()), "{taken}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_not_followed() {
        let reach = Reach::PublicAnd(Arc::new([]));
        let client = reach.client().build().expect("a client");
        let error = client.get("http://localhost:9/").send().await.expect_err("refused");
        assert_eq!(forbidden(&error), Some(Forbidden::Address), "{error:?}");
        let open = Reach::Anywhere.client().build().expect("a client");
        let error = open.get("http://localhost:9/").send().await.expect_err("nobody is there");
        assert_eq!(forbidden(&error), None, "{error:?}");
    }
}
