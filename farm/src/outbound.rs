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

    /// Of what a name leads to, what may be reached.
    fn admitted(&self, found: &[SocketAddr]) -> Result<Addrs, Forbidden> {
        let admitted: Vec<SocketAddr> = found.iter().copied().filter(|found| self.admits(found.ip())).collect();
        match (admitted.is_empty(), found.is_empty()) {
            (true, false) => Err(Forbidden::Address),
            _ => Ok(Box::new(admitted.into_iter())),
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
            Ok(reach.admitted(&found)?)
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

/// A public address at which every machine of Azure is answered by its host, with settings and secrets of that machine.
const AZURE_HOST: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

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
    !is_special && address != AZURE_HOST
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
mod tests;
