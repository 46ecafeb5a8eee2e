//! What a guest may reach: directories, and hosts of the network. Pure: it resolves no name and opens nothing.
//!
//! A request leaves only when two questions are answered with yes: may this call ask for this host
//! ([`may_ask`]), and, for every address that the host's name leads to, may it connect there
//! ([`may_connect`])? The second keeps a granted name from leading into the operator's own network.

mod permissions;
mod rights;
mod url_path;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use permissions::{ANY, Asked, HttpPermission, Permissions, SecretPermission, Side};
pub use rights::{Hidden, Network, PluginRights, Refusal, Rights, Secret};
use url_path::plain as url_path;

/// What a component's imports ask for, beside what every tool has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Files: `wasi:filesystem`.
    pub files: bool,
    /// The network: `wasi:http`.
    pub network: bool,
    /// Environment variables, and so secrets: `wasi:cli/environment`.
    pub environment: bool,
    /// WASI 0.3, which the operator must allow: `[plugins] wasi03`.
    pub wasi03: bool,
}

/// A part of the network that tools may reach, as the operator writes it: `example.com`,
/// `example.com:8080`, `*.example.com`, `10.0.0.7`, `[::1]:8080`, `10.0.0.0/8`.
///
/// Without a port it covers what a URL without a port means: 80 for http, 443 for https.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostGrant {
    target: Target,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Target {
    /// A host name, in lower case and without a final dot.
    Name(String),
    /// All names below this one, which is not among them.
    Below(String),
    /// One address.
    Address(IpAddr),
    /// The addresses that share so many first bits.
    Network(IpAddr, u8),
    /// Every host, at every port: only in a manifest, where it means whichever the operator names.
    Any,
}

/// Why a text is no [`HostGrant`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; give HOST, HOST:PORT, *.DOMAIN, an IP address or a network like 10.0.0.0/8")]
pub struct BadGrant(String);

impl FromStr for HostGrant {
    type Err = BadGrant;

    fn from_str(text: &str) -> Result<Self, BadGrant> {
        let bad = |why: &str| BadGrant(why.to_owned());
        if text.contains("://") {
            return Err(bad("it is a URL and not a host: leave the scheme and the path out"));
        }
        let (host, port) = split_port(text)?;
        let target = match host.split_once('/') {
            Some((address, bits)) => network(address, bits)?,
            None => match address(host) {
                Some(address) => Target::Address(address),
                None => match host.strip_prefix("*.") {
                    Some(domain) => Target::Below(name(domain)?),
                    None => Target::Name(name(host)?),
                },
            },
        };
        Ok(Self { target, port })
    }
}

impl HostGrant {
    /// Reads a host as a manifest may have it: as [`FromStr`] does, and `*`.
    ///
    /// # Errors
    /// Why it is none.
    pub fn pattern(text: &str) -> Result<Self, BadGrant> {
        if text == ANY { Ok(Self { target: Target::Any, port: None }) } else { text.parse() }
    }

    /// Whether it is a manifest's `*`.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.target == Target::Any
    }

    /// Whether it names its port.
    #[must_use]
    pub fn has_port(&self) -> bool {
        self.port.is_some()
    }

    /// Whether it covers a destination.
    #[must_use]
    pub fn covers(&self, to: &Destination) -> bool {
        self.is_any() || self.covers_port(to) && self.covers_host(&to.host)
    }
}

/// Cuts `:PORT` off. What has colons and no brackets is an IPv6 address without a port.
fn split_port(text: &str) -> Result<(&str, Option<u16>), BadGrant> {
    let bare_v6 = !text.starts_with('[') && text.matches(':').count() > 1;
    let Some((host, port)) = text.rsplit_once(':').filter(|(host, _)| !bare_v6 && !open_bracket(host)) else {
        return Ok((text, None));
    };
    match number(port, 5) {
        Some(port) if port > 0 => Ok((host, Some(port))),
        _ => Err(BadGrant(format!("`{port}` is no port: a port is a number from 1 to 65535"))),
    }
}

/// Whether the text ends within brackets, as `[:` of `[::1]` does.
fn open_bracket(text: &str) -> bool {
    text.contains('[') && !text.contains(']')
}

/// A number of ASCII digits alone: no sign, at most so many.
fn number(text: &str, digits: usize) -> Option<u16> {
    let plain = !text.is_empty() && text.len() <= digits && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// An address in its usual spelling, an IPv6 one also in brackets.
fn address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse().map(IpAddr::V6).ok(),
        None => text.parse().ok(),
    }
}

fn network(text: &str, bits: &str) -> Result<Target, BadGrant> {
    let Some(base) = address(text) else {
        return Err(BadGrant(format!("`{text}` before the `/` is no IP address, and a host has no path")));
    };
    let most = if base.is_ipv4() { 32 } else { 128 };
    let bits = number(bits, 3).and_then(|n| u8::try_from(n).ok()).filter(|n| *n <= most);
    let Some(bits) = bits else {
        return Err(BadGrant(format!("the number after the `/` is 0 to {most}")));
    };
    let first = masked(base, bits);
    if first != base {
        return Err(BadGrant(format!("{base} is not the first address of its network, which is {first}/{bits}")));
    }
    Ok(Target::Network(base, bits))
}

/// The address with all but its first bits cleared.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

/// A host name in the form in which names are compared.
fn name(text: &str) -> Result<String, BadGrant> {
    let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if !text.is_ascii() {
        return Err(BadGrant(format!("`{text}` is not ASCII: write its `xn--` form")));
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if text.len() > 253 || !text.split('.').all(label) {
        return Err(BadGrant(format!("`{text}` is no host name")));
    }
    if ends_in_number(&text) {
        return Err(BadGrant(format!("`{text}` is neither a name nor an IP address in its usual spelling")));
    }
    Ok(text)
}

/// Whether URLs take a host for an IPv4 address: by its last label, a number in any notation.
fn ends_in_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or(host);
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    digits(last) || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl fmt::Display for HostGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.target, self.port) {
            (Target::Name(name), _) => f.write_str(name)?,
            (Target::Below(domain), _) => write!(f, "*.{domain}")?,
            (Target::Address(IpAddr::V6(v6)), Some(_)) => write!(f, "[{v6}]")?,
            (Target::Address(ip), _) => write!(f, "{ip}")?,
            (Target::Network(IpAddr::V6(v6), bits), Some(_)) => write!(f, "[{v6}]/{bits}")?,
            (Target::Network(ip, bits), _) => write!(f, "{ip}/{bits}")?,
            (Target::Any, _) => f.write_str(ANY)?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for HostGrant {
    type Error = BadGrant;

    fn try_from(text: String) -> Result<Self, BadGrant> {
        text.parse()
    }
}

impl From<HostGrant> for String {
    fn from(grant: HostGrant) -> Self {
        grant.to_string()
    }
}

/// Where a request is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The host of its URL.
    pub host: Host,
    /// The port, the scheme's own where the URL has none.
    pub port: u16,
    /// Whether the scheme is https.
    pub tls: bool,
}

/// A host of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name, in lower case and without a final dot.
    Name(String),
    /// An address, written out.
    Address(IpAddr),
}

impl Host {
    /// Reads the host of a URL that was brought into its normal form: IPv6 in brackets.
    #[must_use]
    pub fn of_url(host: &str) -> Self {
        match address(host) {
            Some(address) => Self::Address(address),
            None => Self::Name(host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()),
        }
    }
}

impl Destination {
    /// The grant that covers exactly this destination, as it is written after `--host`.
    #[must_use]
    pub fn grant(&self) -> String {
        let port = (self.port != self.usual_port()).then_some(self.port);
        self.at(port)
    }

    fn usual_port(&self) -> u16 {
        if self.tls { 443 } else { 80 }
    }

    fn at(&self, port: Option<u16>) -> String {
        match (&self.host, port) {
            (Host::Name(name), None) => name.clone(),
            (Host::Name(name), Some(port)) => format!("{name}:{port}"),
            (Host::Address(ip), None) => ip.to_string(),
            (Host::Address(IpAddr::V4(ip)), Some(port)) => format!("{ip}:{port}"),
            (Host::Address(IpAddr::V6(ip)), Some(port)) => format!("[{ip}]:{port}"),
        }
    }

    /// The same destination, its host replaced by one of the addresses that it leads to.
    #[must_use]
    pub fn resolved(&self, address: IpAddr) -> Self {
        Self { host: Host::Address(address), ..self.clone() }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.at(Some(self.port)))
    }
}

impl HostGrant {
    fn covers_port(&self, to: &Destination) -> bool {
        self.port.unwrap_or_else(|| to.usual_port()) == to.port
    }

    fn covers_address(&self, address: IpAddr) -> bool {
        match &self.target {
            Target::Address(granted) => *granted == address,
            Target::Network(first, bits) => first.is_ipv4() == address.is_ipv4() && masked(address, *bits) == *first,
            Target::Name(_) | Target::Below(_) | Target::Any => false,
        }
    }

    fn covers_host(&self, host: &Host) -> bool {
        match (&self.target, host) {
            (Target::Name(granted), Host::Name(name)) => granted == name,
            (Target::Below(domain), Host::Name(name)) => {
                name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (_, Host::Address(address)) => self.covers_address(*address),
            (_, Host::Name(_)) => false,
        }
    }
}

/// Whether a request may be made to this host and port. A name needs a grant of that name: the grant
/// of an address that it happens to lead to is none.
#[must_use]
pub fn may_ask(grants: &[HostGrant], to: &Destination) -> bool {
    grants.iter().any(|g| g.covers(to))
}

/// Whether a request that may be made may connect to this address of its host: one of the public
/// network, or one that is itself granted. `localhost` means what it says.
#[must_use]
pub fn may_connect<'a>(grants: impl IntoIterator<Item = &'a HostGrant>, to: &Destination, address: IpAddr) -> bool {
    const LOCALHOST: &str = "localhost";
    let granted = |g: &HostGrant| {
        let by_name = || {
            address.is_loopback()
                && matches!(&to.host, Host::Name(name) if name == LOCALHOST)
                && matches!(&g.target, Target::Name(name) if name == LOCALHOST)
        };
        g.covers_port(to) && (g.covers_address(address) || by_name())
    };
    is_public(address) || grants.into_iter().any(granted)
}

/// Whether an address is one of a host on the public network: globally routable unicast. What is
/// reserved, or carries an IPv4 address that is not public, is not.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

/// By IANA's registry of special-purpose addresses, with what is not unicast.
const NOT_PUBLIC_V4: [(Ipv4Addr, u8); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast; reserved, with broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

fn is_public_v4(address: Ipv4Addr) -> bool {
    !NOT_PUBLIC_V4.iter().any(|(first, bits)| masked(address.into(), *bits) == IpAddr::V4(*first))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match [a, b] {
        // NAT64: the IPv4 address is what is reached.
        [0x64, 0xff9b] => [c, d, e, f] == [0; 4] && is_public_v4(v4(g, h)),
        // 6to4, likewise.
        [0x2002, high] => is_public_v4(v4(high, c)),
        // Protocol assignments, among them Teredo, ORCHID and benchmarks; documentation, twice.
        [0x2001, 0..=0x1ff | 0xdb8] | [0x3fff, 0..=0xfff] => false,
        // All of global unicast. Outside are loopback, mapped and compatible IPv4, unique-local,
        // link-local, site-local and multicast addresses, and what nobody was given yet.
        _ => (0x2000..=0x3fff).contains(&a),
    }
}

#[cfg(test)]
mod tests;
