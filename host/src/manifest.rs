//! `NAME.toml` beside a component (CONTRACT §6): what a plugin's author says about it. Every key is
//! optional, an unknown one is refused, and no limit is zero or without a number.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::abi::Effect;
use crate::capability::{Permissions, Side};
use crate::contract::Fault;
use crate::quota::Limits;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Manifest {
    /// The plugin's name: that of the file, where it is given.
    pub name: Option<String>,
    /// Its version, for people.
    pub version: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// One instance per calling process, instead of one per call.
    pub stateful: bool,
    /// Less than the operator's `[limits]`.
    pub limits: LimitWishes,
    /// What it asks for; none of it holds without the operator's grant.
    pub permissions: Permissions,
    /// What is said about single tools, by their names within the plugin.
    pub tools: BTreeMap<String, ToolNote>,
    /// How it is subscribed, where it is a hook.
    pub hook: Option<HookNote>,
}

/// `[limits]`: each within what the operator allows a tool call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitWishes {
    /// Fuel.
    pub fuel: Option<u64>,
    /// Bytes, or a text such as `64MiB`.
    pub memory: Option<Size>,
    /// Microseconds, or a text such as `500ms`.
    pub wall: Option<Wall>,
    /// Bytes of a result, or a text such as `64KiB`.
    pub output: Option<Size>,
    /// Calls into the kernel.
    pub host_calls: Option<u64>,
}

/// `[tools.T]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolNote {
    /// What a repeated call does.
    pub effect: Option<Effect>,
    /// What the model is told.
    pub description: Option<String>,
}

/// `[hook]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HookNote {
    /// Points, as `BEFORE_TOOL_CALL`: those of the component's that hold; all when empty.
    pub points: Vec<String>,
    /// Lower comes first; the component's own when absent.
    pub priority: Option<i32>,
    /// `validate`, `authorize`, `policy` or `telemetry`.
    pub phase: Option<String>,
    /// Glob on the object.
    #[serde(rename = "match")]
    pub matcher: Option<String>,
}

impl Manifest {
    /// Reads the manifest of the plugin `name`.
    ///
    /// # Errors
    /// `invalid_manifest`, with the line; another plugin's name; a limit of zero.
    pub fn parse(name: &str, text: &str) -> Result<Self, Fault> {
        let manifest: Self = toml::from_str(text).map_err(|e| bad(name, e.to_string().trim_end().to_owned()))?;
        if let Some(other) = manifest.name.as_ref().filter(|n| *n != name) {
            return Err(bad(name, format!("its `name` is `{other}`, and the file makes the plugin `{name}`")));
        }
        let l = &manifest.limits;
        let zero = [
            ("fuel", l.fuel == Some(0)),
            ("memory", l.memory == Some(Size(0))),
            ("wall", l.wall == Some(Wall(0))),
            ("output", l.output == Some(Size(0))),
            ("host_calls", l.host_calls == Some(0)),
        ];
        if let Some((limit, _)) = zero.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(bad(name, format!("its limit `{limit}` is zero: nothing could run")));
        }
        manifest.permissions.check(Side::Manifest).map_err(|why| bad(name, format!("in `[permissions]`, {why}")))?;
        Ok(manifest)
    }

    /// The limits of one call: what the manifest asks for, under what the operator allows.
    ///
    /// # Errors
    /// `limit_too_high`: it asks for more, so it would not work with less.
    pub fn within(&self, allowed: Limits) -> Result<Limits, Fault> {
        let l = &self.limits;
        let wall_ms = l.wall.map(|w| w.0.div_ceil(1_000));
        let within = |limit: &str, wished: Option<u64>, most: u64| match wished {
            None => Ok(most),
            Some(wished) if wished <= most => Ok(wished),
            Some(wished) => Err(Fault {
                code: "limit_too_high",
                message: format!("its manifest asks for {wished} of `{limit}`, and the most is {most}"),
                hint: format!("ask for less, or raise `{limit}` under `[limits]` in aok.toml"),
            }),
        };
        Ok(Limits {
            fuel: within("fuel", l.fuel, allowed.fuel)?,
            memory: within("memory", l.memory.map(|s| s.0), allowed.memory)?,
            wall_ms: within("wall_ms", wall_ms, allowed.wall_ms)?,
            output: within("output", l.output.map(|s| s.0), allowed.output)?,
            host_calls: within("host_calls", l.host_calls, allowed.host_calls)?,
            ..allowed
        })
    }

    /// Checks that it says nothing that an agent could not keep.
    ///
    /// # Errors
    /// Limits of a call, or tools.
    pub fn check_agent(&self) -> Result<(), Fault> {
        self.check_tools(std::iter::empty())?;
        if self.limits != LimitWishes::default() {
            return Err(Fault {
                code: "invalid_manifest",
                message: "its `[limits]` are those of a tool's call, and it is an agent".into(),
                hint: "leave them out: an agent's limits are given to its run, with --max-fuel for example".into(),
            });
        }
        if self.stateful {
            return Err(Fault {
                code: "invalid_manifest",
                message: "`stateful` is about the calls of a tool, and it is an agent".into(),
                hint: "leave it out: an agent has one instance for its whole run".into(),
            });
        }
        Ok(())
    }

    /// Checks that it says nothing that a hook could not keep.
    ///
    /// # Errors
    /// `stateful`, or tools.
    pub fn check_hook(&self) -> Result<(), Fault> {
        self.check_tools(std::iter::empty())?;
        if self.stateful {
            return Err(Fault {
                code: "invalid_manifest",
                message: "`stateful` is about the calls of a tool, and it is a hook".into(),
                hint: "leave it out: a hook keeps what it needs in its `state`".into(),
            });
        }
        Ok(())
    }

    /// Checks that each `[tools.T]` is about a tool that there is.
    ///
    /// # Errors
    /// `unknown_tool`, naming those that there are.
    pub fn check_tools<'a>(&self, tools: impl Iterator<Item = &'a str> + Clone) -> Result<(), Fault> {
        match self.tools.keys().find(|name| !tools.clone().any(|tool| tool == *name)) {
            None => Ok(()),
            Some(name) => Err(Fault {
                code: "unknown_tool",
                message: format!("its manifest speaks of a tool `{name}` that it does not have"),
                hint: match tools.collect::<Vec<_>>() {
                    none if none.is_empty() => "it has no tools: leave that out".to_owned(),
                    some => format!("its tools are: {}", some.join(", ")),
                },
            }),
        }
    }
}

fn bad(name: &str, why: String) -> Fault {
    Fault {
        code: "invalid_manifest",
        message: format!("its manifest {name}.toml is wrong: {why}"),
        hint: "docs/plugins.md lists the keys".into(),
    }
}

/// Bytes: a number, or a text with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// Microseconds: a number, or a text with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wall(pub u64);

const SIZES: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
const TIMES: [(&str, u64); 4] = [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000)];

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let how = "bytes, or a text with B, KiB, MiB or GiB";
        deserializer.deserialize_any(Quantity { units: &SIZES, how }).map(Self)
    }
}

impl<'de> Deserialize<'de> for Wall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let how = "microseconds, or a text with us, ms, s or m";
        deserializer.deserialize_any(Quantity { units: &TIMES, how }).map(Self)
    }
}

struct Quantity {
    units: &'static [(&'static str, u64)],
    how: &'static str,
}

impl Visitor<'_> for Quantity {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.how)
    }

    fn visit_i64<E: de::Error>(self, n: i64) -> Result<u64, E> {
        u64::try_from(n).map_err(|_| E::invalid_value(de::Unexpected::Signed(n), &self))
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<u64, E> {
        Ok(n)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim_start());
        let scale = self.units.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
        let value = number.parse::<u64>().ok().zip(scale).and_then(|(n, scale)| n.checked_mul(scale));
        value.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::MIB;

    #[test]
    fn a_full_manifest_is_read() {
        let text = r#"
            name = "web-search"
            version = "1.2.0"
            description = "Searches the web."
            [limits]
            fuel = 5_000_000
            memory = "64MiB"
            wall = "2s"
            output = 65536
            host_calls = 10
            [permissions]
            read = ["/srv/data"]
            http = [{ host = "api.example.com", methods = ["GET"], paths = ["/v1/*"] }]
            secrets = [{ name = "KEY", hosts = ["api.example.com"] }]
            [tools.search]
            effect = "read-only"
            description = "Finds pages."
            [hook]
            points = ["BEFORE_TOOL_CALL"]
            priority = -3
            phase = "policy"
            match = "fs__*"
        "#;
        let m = Manifest::parse("web-search", text).unwrap();
        assert_eq!(m.tools["search"].effect, Some(Effect::ReadOnly));
        let limits = m.within(Limits::TOOL).unwrap();
        assert_eq!((limits.fuel, limits.memory, limits.wall_ms), (5_000_000, 64 * MIB, 2_000));
        assert_eq!((limits.output, limits.host_calls, limits.tables), (65_536, 10, Limits::TOOL.tables));
        assert!(m.check_tools(["search"].into_iter()).is_ok());
        assert_eq!(m.check_tools(["find"].into_iter()).unwrap_err().code, "unknown_tool");
        let limited = Manifest::parse("x", "[limits]\nfuel = 5").unwrap();
        assert_eq!(limited.check_agent().unwrap_err().code, "invalid_manifest");
        assert!(Manifest::default().check_agent().is_ok());
        let stateful = Manifest::parse("x", "stateful = true").unwrap();
        assert!(stateful.stateful && stateful.check_agent().unwrap_err().message.contains("`stateful`"));
    }

    #[test]
    fn what_is_wrong_with_a_manifest_is_said() {
        for (text, says) in [
            ("nmae = \"x\"", "nmae"),
            ("[limits]\nfule = 1", "fule"),
            ("[limits]\nfuel = 0", "`fuel` is zero"),
            ("[limits]\nmemory = \"0MiB\"", "`memory` is zero"),
            ("[limits]\nmemory = \"64 apples\"", "bytes, or a text"),
            ("[limits]\nwall = -1", "microseconds"),
            ("[limits]\nmemory = \"99999999999999999999GiB\"", "bytes, or a text"),
            ("[limits]\nfuel = \"unlimited\"", "fuel"),
            ("name = \"y\"", "`name` is `y`"),
            ("[tools.t]\neffect = \"harmless\"", "harmless"),
            ("[permissions]\nhttp = [{ host = \"http://x/\" }]", "URL"),
            ("[permissions]\nread = [\"data\"]", "absolute"),
            ("[permissions]\nwrite = [\"/a/../b\"]", "absolute"),
            ("[permissions]\nraed = []", "raed"),
            ("stateful = \"yes\"", "stateful"),
            ("= 3", "line 1"),
        ] {
            let fault = Manifest::parse("x", text).unwrap_err();
            assert_eq!(fault.code, "invalid_manifest", "{text}");
            assert!(fault.message.contains(says), "{text}: {}", fault.message);
        }
    }

    #[test]
    fn more_than_the_operator_allows_is_refused() {
        let m = Manifest::parse("x", "[limits]\nmemory = \"1GiB\"").unwrap();
        let fault = m.within(Limits::TOOL).unwrap_err();
        assert_eq!(fault.code, "limit_too_high");
        assert!(fault.message.contains("1073741824") && fault.hint.contains("`memory`"), "{fault:?}");
    }
}
