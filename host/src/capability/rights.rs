//! The rights of one call, and what is said of a request that they do not cover.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Asked, Destination, HostGrant, HttpPermission, may_ask, may_connect, url_path};
use crate::process::Mount;

/// The rights of one call. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Directories, each by the name the guest sees.
    pub mounts: Vec<Mount>,
    /// Hosts that its requests may go to, whatever their method and path.
    pub hosts: Vec<HostGrant>,
    /// What a plugin of a directory has beside; `None` where that is nothing, and for bundled ones.
    pub plugin: Option<Arc<PluginRights>>,
}

/// What the manifest of a plugin of a directory asks for and its operator grants.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PluginRights {
    /// The plugin.
    pub name: String,
    /// Requests that the manifest asks for.
    pub asked: Vec<HttpPermission>,
    /// Requests that the operator grants.
    pub granted: Vec<HttpPermission>,
    /// Environment variables with their values.
    pub env: Vec<(String, String)>,
    /// Secrets that the guest sees by their placeholders.
    pub secrets: Vec<Secret>,
}

/// A secret of one plugin.
#[derive(Debug, PartialEq, Eq)]
pub struct Secret {
    /// Its name, which is the variable that the guest sees.
    pub name: String,
    /// What the guest sees in its place: letters and digits, which nobody can guess.
    pub placeholder: String,
    /// Its value.
    pub value: Hidden,
    /// Hosts that the manifest asks it for.
    pub asked: Vec<HostGrant>,
    /// Hosts that the operator grants it for.
    pub granted: Vec<HostGrant>,
}

/// A text that no log, error or debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl Hidden {
    /// Hides a text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the one place that sends it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// The network of one call: the part of its rights that its requests are held against.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// As in [`Rights`].
    pub hosts: Vec<HostGrant>,
    /// As in [`Rights`].
    pub plugin: Option<Arc<PluginRights>>,
}

/// Why a request does not leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is refused, and which grant would allow it: for the operator's log.
    pub text: String,
    /// Whether the guest and its caller are told too. Addresses inside are the operator's to know.
    pub open: bool,
}

impl Network {
    /// Whether a request may be made: by the hosts of the run, or by both the plugin's manifest and its operator.
    ///
    /// # Errors
    /// What is missing.
    pub fn may_ask(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        if may_ask(&self.hosts, asked.to) {
            return Ok(());
        }
        let Some(plugin) = &self.plugin else {
            return Err(self.refusal(&format!("the host {}", asked.to), asked.to));
        };
        let covers = |rules: &[HttpPermission]| rules.iter().any(|rule| rule.covers(asked));
        let what = format!("{} {}{}", asked.method, asked.to, asked.path);
        let text = match (covers(&plugin.asked), covers(&plugin.granted)) {
            (true, true) => return Ok(()),
            (false, _) => format!(
                "network: {what} is not among the requests that the manifest of `{}` asks for, under `http` of \
                 `[permissions]`",
                plugin.name
            ),
            (true, false) => {
                let known = plugin.granted.iter().any(|rule| rule.host.covers(asked.to));
                let host = asked.to.grant();
                let grant = if known {
                    // A path that hides another one is covered only by rules without paths.
                    format!("\"http={} {host}{}\"", asked.method, url_path(asked.path).unwrap_or_default())
                } else {
                    format!("http={host}")
                };
                let name = &plugin.name;
                format!("network: {what} is not granted to `{name}`; `aok plugin grant {name} {grant}` grants it")
            }
        };
        Err(Refusal { text, open: true })
    }

    /// Whether a request that may be made may connect to this address of its host.
    ///
    /// # Errors
    /// What is missing, for the operator alone.
    pub fn may_connect(&self, to: &Destination, address: IpAddr) -> Result<(), Refusal> {
        let rules = self.plugin.iter().flat_map(|plugin| plugin.granted.iter().map(|rule| &rule.host));
        if may_connect(self.hosts.iter().chain(rules), to, address) {
            return Ok(());
        }
        let what = format!("the address {address} of {to}, which is not of the public network,");
        Err(Refusal { open: false, ..self.refusal(&what, &to.resolved(address)) })
    }

    /// The refusal of something, with the grant of a host that would allow it.
    #[must_use]
    pub fn refusal(&self, what: &str, to: &Destination) -> Refusal {
        let grant = match &self.plugin {
            Some(plugin) => format!("aok plugin grant {} http={}", plugin.name, to.grant()),
            None => format!("--host {}", to.grant()),
        };
        Refusal { text: format!("network: {what} is not granted; `{grant}` grants it"), open: true }
    }
}

impl Secret {
    /// Whether it may be sent to a destination. In clear it goes only where the operator names the port.
    ///
    /// # Errors
    /// What is missing.
    pub fn may_go(&self, plugin: &str, to: &Destination) -> Result<(), Refusal> {
        let (name, host) = (&self.name, to.grant());
        let covers = |hosts: &[HostGrant]| hosts.iter().any(|h| h.covers(to));
        let text = if !covers(&self.asked) {
            format!("secret: the manifest of `{plugin}` does not ask for the secret `{name}` at the host {to}")
        } else if !covers(&self.granted) {
            format!(
                "secret: the secret `{name}` is not granted to `{plugin}` for the host {to}; `aok plugin grant {plugin} \
                 secret={name}@{host}` grants it"
            )
        } else if !to.tls && !self.granted.iter().any(|h| h.covers(to) && h.has_port()) {
            format!(
                "secret: the secret `{name}` does not go to {to} in clear; use https, or `aok plugin grant {plugin} \
                 secret={name}@{to}`, with the port"
            )
        } else {
            return Ok(());
        };
        Err(Refusal { text, open: true })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Host;
    use super::*;

    fn to(host: &str, port: u16, tls: bool) -> Destination {
        Destination { host: Host::of_url(host), port, tls }
    }

    fn plugin(asked: &[&str], granted: &[&str]) -> Network {
        let rules = |texts: &[&str]| {
            let host = |t: &&str| {
                if *t == "*" { HttpPermission::to(HostGrant::pattern(t).unwrap()) } else { t.parse().unwrap() }
            };
            texts.iter().map(host).collect()
        };
        let plugin =
            PluginRights { name: "p".into(), asked: rules(asked), granted: rules(granted), ..PluginRights::default() };
        Network { hosts: Vec::new(), plugin: Some(Arc::new(plugin)) }
    }

    #[test]
    fn both_sides_must_cover_a_request() {
        let to = to("h", 443, true);
        let ask = |asked: &[&str], granted: &[&str], method: &str, path: &str| {
            plugin(asked, granted).may_ask(&Asked { to: &to, method, path }).map_err(|r| r.text)
        };
        assert_eq!(ask(&["h"], &["h"], "GET", "/x"), Ok(()));
        assert_eq!(ask(&["*"], &["GET h/v1/*"], "GET", "/v1/x"), Ok(()));
        for (asked, granted, method, path, word) in [
            (&["h"][..], &[][..], "GET", "/x", "`aok plugin grant p http=h`"),
            (&["h"], &["GET h"], "PUT", "/x", "`aok plugin grant p \"http=PUT h/x\"`"),
            (&["*"], &["h/v1/*"], "GET", "/v2", "`aok plugin grant p \"http=GET h/v2\"`"),
            (&["GET h"], &["h"], "PUT", "/x", "the manifest of `p`"),
            (&["h"], &["h/v1/*"], "GET", "/v1/%2e%2e%2fx", "`aok plugin grant p \"http=GET h\"`"),
            (&[], &["h"], "GET", "/x", "the manifest of `p`"),
            (&["h/v1/*"], &["h"], "GET", "/v1/%2e%2e%2fx", "the manifest of `p`"),
        ] {
            let refusal = ask(asked, granted, method, path).unwrap_err();
            assert!(refusal.contains(word), "{refusal}");
        }
        let of_a_run = Network { hosts: vec!["h".parse().unwrap()], plugin: None };
        assert!(of_a_run.may_ask(&Asked { to: &to, method: "PUT", path: "/%2e%2e%2fx" }).is_ok());
    }

    #[test]
    fn an_address_inside_is_the_operators_to_grant() {
        let to = to("wiki.corp", 80, false);
        let inside: IpAddr = "10.1.2.3".parse().unwrap();
        let refusal = plugin(&["wiki.corp", "10.1.2.3"], &["wiki.corp"]).may_connect(&to, inside).unwrap_err();
        assert!(refusal.text.contains("aok plugin grant p http=10.1.2.3") && !refusal.open, "{refusal:?}");
        assert!(plugin(&["wiki.corp"], &["wiki.corp", "10.0.0.0/8"]).may_connect(&to, inside).is_ok());
    }

    #[test]
    fn a_secret_goes_where_both_sides_send_it_and_not_in_clear() {
        let secret = |asked: &[&str], granted: &[&str]| Secret {
            name: "K".into(),
            placeholder: "x".into(),
            value: Hidden::new("value".into()),
            asked: asked.iter().map(|h| HostGrant::pattern(h).unwrap()).collect(),
            granted: granted.iter().map(|h| h.parse().unwrap()).collect(),
        };
        let may = |asked: &[&str], granted: &[&str], to: &Destination| {
            secret(asked, granted).may_go("p", to).map_err(|r| r.text).err().unwrap_or_default()
        };
        assert_eq!(may(&["h"], &["h"], &to("h", 443, true)), "");
        assert_eq!(may(&["*"], &["h:8080"], &to("h", 8080, false)), "");
        assert!(may(&["h"], &["h"], &to("h", 80, false)).contains("secret=K@h:80`, with the port"));
        assert!(may(&["h"], &["i"], &to("h", 443, true)).contains("secret=K@h`"));
        assert!(may(&["i"], &["h"], &to("h", 443, true)).contains("manifest of `p`"));
        assert!(!format!("{:?}", secret(&["h"], &["h"])).contains("value\""));
    }
}
