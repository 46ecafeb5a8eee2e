//! What a component file is, told from its bytes before any of it is compiled or run: which world it
//! was built for, in which version, what it asks for, and where it differs from the contract in `wit/`.

mod drift;
mod foreign;

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use wit_parser::decoding::{DecodedWasm, decode};
use wit_parser::{Function, InterfaceId, Resolve, TypeDefKind, WorldId, WorldItem};

use crate::capability::Needs;
use drift::Comparison;
pub use foreign::{Comments, ForeignTool, Toolbox};

/// Why a plugin is refused, for its author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Closed code (`docs/plugins.md`).
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// The version of the contract that this kernel serves.
pub const VERSION: &str = "0.1.0";

/// What stands in the place of a version where a component was not written for the contract.
pub const FOREIGN: &str = "foreign";

/// The role of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Exports `agent-os:plugin/tool-provider`.
    Tool,
    /// Exports `agent-os:plugin/hook-handler`.
    Hook,
    /// Exports `agent-os:agent/agent-entry`.
    Agent,
    /// Exports functions that the contract knows nothing of: each is a tool.
    Foreign,
}

impl Role {
    /// The roles that the contract has.
    const OURS: [(Self, &str); 3] = [
        (Self::Tool, "agent-os:plugin/tool-provider"),
        (Self::Hook, "agent-os:plugin/hook-handler"),
        (Self::Agent, "agent-os:agent/agent-entry"),
    ];

    /// The word in `plugin ls`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tool | Self::Foreign => "tool",
            Self::Hook => "hook",
            Self::Agent => "agent",
        }
    }

    /// The contract that it was written for: its version, or `foreign`.
    #[must_use]
    pub fn contract(self) -> &'static str {
        if self == Self::Foreign { FOREIGN } else { VERSION }
    }

    /// The interface that makes a component this, without its version.
    fn interface(self) -> Option<&'static str> {
        Self::OURS.iter().find(|(role, _)| *role == self).map(|(_, interface)| *interface)
    }
}

/// WASI 0.2, as far as the kernel has it. An agent is a function of its journal, so it has no network.
const WASI: [&str; 6] = ["wasi:io/", "wasi:cli/", "wasi:clocks/", "wasi:random/", "wasi:sockets/", "wasi:filesystem/"];
/// WASI 0.3, as far as the kernel has it.
const WASI03: [&str; 5] = ["wasi:cli/", "wasi:clocks/", "wasi:random/", "wasi:sockets/", "wasi:filesystem/"];
const HTTP: &str = "wasi:http/";
const FILES: &str = "wasi:filesystem/";
const ENVIRONMENT: &str = "wasi:cli/environment@";

/// A component's imports and exports.
#[derive(Debug)]
pub struct Shape {
    resolve: Resolve,
    world: WorldId,
    /// What its section `aok-docs` says of its functions.
    comments: Result<Comments, Fault>,
}

/// An interface or function of a component's border, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// `package:name/interface@version`, or a function's own name.
    pub name: String,
    /// Its functions with their types, as in WIT.
    pub functions: Vec<String>,
}

impl Shape {
    /// Reads a component.
    ///
    /// # Errors
    /// What is wrong with bytes that are no component.
    pub fn read(bytes: &[u8]) -> Result<Self, Fault> {
        check_magic(bytes)?;
        match decode(bytes) {
            Ok(DecodedWasm::Component(resolve, world)) => {
                Ok(Self { resolve, world, comments: Comments::within(bytes) })
            }
            Ok(DecodedWasm::WitPackage(..)) => Err(Fault {
                code: "invalid_component",
                message: "the file is a WIT package: it holds types and no code".into(),
                hint: HOW_TO_BUILD.into(),
            }),
            Err(e) => Err(broken(bytes, &format!("{e:#}"))),
        }
    }

    /// What the component is, once it is sure that it fits the contract; `wasi03`: whether WASI 0.3 is allowed.
    ///
    /// # Errors
    /// Another version, a drift, an import that the kernel does not have, no role.
    pub fn check(&self, wasi03: bool) -> Result<Role, Fault> {
        let role = self.role()?;
        self.check_imports(role, wasi03)?;
        let drift = self.drift();
        if drift.is_empty() {
            if role == Role::Foreign {
                self.check_toolbox()?;
            }
            return Ok(role);
        }
        Err(Fault { code: "contract_drift", message: drift.join("; "), hint: HOW_TO_FIX.into() })
    }

    /// That at least one of a foreign component's functions can be called.
    fn check_toolbox(&self) -> Result<(), Fault> {
        if let Err(fault) = &self.comments {
            return Err(fault.clone());
        }
        let toolbox = self.toolbox();
        if !toolbox.tools.is_empty() {
            return Ok(());
        }
        Err(Fault {
            code: "no_role",
            message: format!("none of its functions can be a tool: {}", toolbox.left_out.join("; ")),
            hint: "export a function of plain values (docs/plugins.md), or the tool world of the contract".into(),
        })
    }

    /// What it says that it is.
    ///
    /// # Errors
    /// Another version of the contract, an interface that the contract does not have, no role at all.
    pub fn role(&self) -> Result<Role, Fault> {
        let exports = self.exports();
        let versions = self.other_versions();
        if !versions.is_empty() {
            return Err(Fault {
                code: "contract_version",
                message: format!(
                    "it was built for another version of the contract: {}; this kernel serves {VERSION}",
                    versions.join(", ")
                ),
                hint: HOW_TO_FIX.into(),
            });
        }
        let named = |interface: &str| format!("{interface}@{VERSION}");
        let exported = |interface: &str| exports.iter().any(|e| e.name == named(interface));
        if let Some((role, _)) = Role::OURS.into_iter().find(|(_, interface)| exported(interface)) {
            return Ok(role);
        }
        let ours = Role::OURS.map(|(_, interface)| format!("`{}`", named(interface))).join(", ");
        if let Some(near) = exports.iter().find(|e| e.name.starts_with("agent-os:")) {
            return Err(Fault {
                code: "contract_drift",
                message: format!(
                    "it exports `{}`, which the contract does not have; a plugin exports {ours}",
                    near.name
                ),
                hint: HOW_TO_FIX.into(),
            });
        }
        if self.has_functions() {
            return Ok(Role::Foreign);
        }
        Err(Fault {
            code: "no_role",
            message: format!(
                "it exports no function and none of {ours}, so it is neither a tool nor a hook nor an agent"
            ),
            hint: "export a function, or the tool world of the contract".into(),
        })
    }

    /// The `agent-os` interfaces of other versions on the component's border.
    fn other_versions(&self) -> Vec<String> {
        let all = self.imports().into_iter().chain(self.exports());
        let others = all.filter(|i| i.name.starts_with("agent-os:") && !i.name.ends_with(&format!("@{VERSION}")));
        others.map(|i| format!("`{}`", i.name)).collect()
    }

    fn check_imports(&self, role: Role, wasi03: bool) -> Result<(), Fault> {
        let imports = self.imports();
        let quoted = |names: Vec<&str>| names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        let all = |is: &dyn Fn(&str) -> bool| imports.iter().map(|i| i.name.as_str()).filter(|n| is(n)).collect();
        let p3: Vec<&str> = all(&is_wasi03);
        if !p3.is_empty() && !wasi03 {
            return Err(Fault {
                code: "wasi03_off",
                message: format!("it imports {}: WASI 0.3, which is experimental and off", quoted(p3)),
                hint: "build it for WASI 0.2, or set `wasi03 = true` under `[plugins]` in aok.toml".into(),
            });
        }
        let p2 = |n: &str| n.contains("@0.2.") && (n.starts_with(HTTP) || WASI.iter().any(|w| n.starts_with(w)));
        let p3 = |n: &str| role != Role::Agent && is_wasi03(n) && WASI03.iter().any(|w| n.starts_with(w));
        let unknown: Vec<&str> = all(&|n| !n.starts_with("agent-os:") && !p2(n) && !p3(n));
        if !unknown.is_empty() {
            return Err(Fault {
                code: "unknown_import",
                message: format!("it imports {}, which this kernel does not offer", quoted(unknown)),
                hint: "build it against the `agent-os:plugin` or `agent-os:agent` world alone, plus WASI 0.2".into(),
            });
        }
        let http: Vec<&str> = all(&|n| n.starts_with(HTTP));
        if role == Role::Agent && !http.is_empty() {
            return Err(Fault {
                code: "unknown_import",
                message: format!(
                    "it is an agent and imports {}; an agent must be a function of its journal",
                    quoted(http)
                ),
                hint: "let it call a tool for that".into(),
            });
        }
        Ok(())
    }

    /// Everything in which the component's `agent-os` interfaces differ from the contract, each in a
    /// sentence; nothing where it has no role.
    #[must_use]
    pub fn drift(&self) -> Vec<String> {
        let Ok(role) = self.role() else { return Vec::new() };
        let mut comparison = Comparison::new(&self.resolve, contract());
        let world = &self.resolve.worlds[self.world];
        for item in world.imports.values() {
            let WorldItem::Interface { id, .. } = item else { continue };
            let Some(name) = self.resolve.id_of(*id).filter(|name| name.starts_with("agent-os:")) else { continue };
            match interface(contract(), &name) {
                None => comparison.say(format!("it imports `{name}`, which the contract does not have")),
                Some(_) if role != Role::Agent && name.starts_with("agent-os:agent/") => {
                    comparison.say(format!("it is a {} and imports `{name}`, which only agents have", role.name()));
                }
                Some(ours) => comparison.import(*id, ours, &name),
            }
        }
        for item in world.exports.values() {
            let WorldItem::Interface { id, .. } = item else { continue };
            let is_role = |name: &String| role.interface().is_some_and(|interface| name.starts_with(interface));
            let Some(name) = self.resolve.id_of(*id).filter(is_role) else { continue };
            if let Some(ours) = interface(contract(), &name) {
                comparison.export(*id, ours, &name);
            }
        }
        comparison.sentences()
    }

    /// What its imports ask for.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let imports = self.imports();
        let asks_for = |package: &str| imports.iter().any(|i| i.name.starts_with(package));
        let wasi03 = imports.iter().any(|i| is_wasi03(&i.name));
        Needs { files: asks_for(FILES), network: asks_for(HTTP), environment: asks_for(ENVIRONMENT), wasi03 }
    }

    /// What it imports.
    #[must_use]
    pub fn imports(&self) -> Vec<Item> {
        self.items(&self.resolve.worlds[self.world].imports)
    }

    /// What it exports.
    #[must_use]
    pub fn exports(&self) -> Vec<Item> {
        self.items(&self.resolve.worlds[self.world].exports)
    }

    fn items<'a>(&self, items: impl IntoIterator<Item = (&'a wit_parser::WorldKey, &'a WorldItem)>) -> Vec<Item> {
        let signature = |f: &Function| drift::signature(&self.resolve, f);
        let item = |(key, item): (&wit_parser::WorldKey, &WorldItem)| {
            let functions = match item {
                WorldItem::Interface { id, .. } => {
                    self.resolve.interfaces[*id].functions.values().map(signature).collect()
                }
                WorldItem::Function(function) => vec![signature(function)],
                WorldItem::Type { .. } => return None,
            };
            Some(Item { name: self.resolve.name_world_key(key), functions })
        };
        items.into_iter().filter_map(item).collect()
    }
}

/// Whether an interface is one of WASI 0.3.
pub(crate) fn is_wasi03(name: &str) -> bool {
    name.starts_with("wasi:") && name.contains("@0.3.")
}

const HOW_TO_BUILD: &str =
    "build it as a component (for Rust: `aok plugin build`, `wit-component`, or a `wasm32-wasip2` target)";
const HOW_TO_FIX: &str = "rebuild it with the SDK, or the WIT files, of this aok's version";

fn check_magic(bytes: &[u8]) -> Result<(), Fault> {
    if bytes.is_empty() {
        return Err(Fault { code: "empty_file", message: "the file is empty".into(), hint: "copy it again".into() });
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(Fault {
            code: "not_wasm",
            message: "the file is not WebAssembly: it does not start with `\\0asm`".into(),
            hint: HOW_TO_BUILD.into(),
        });
    }
    if bytes.get(4..8) == Some(&[1, 0, 0, 0]) {
        return Err(Fault {
            code: "core_module",
            message: "the file is a core WebAssembly module, not a component".into(),
            hint: HOW_TO_BUILD.into(),
        });
    }
    Ok(())
}

/// What is wrong with a component that a parser refused with `why`.
pub(crate) fn broken(bytes: &[u8], why: &str) -> Fault {
    let cut = ["unexpected end", "unexpected-eof"].iter().any(|words| why.contains(words));
    // The size that a section says reaches past the file.
    if bytes.len() < 8 || cut || why.contains("section range") && why.contains("is out of bounds") {
        return Fault {
            code: "truncated",
            message: format!("the component ends too early, after {} bytes", bytes.len()),
            hint: "copy it again; write to another name and rename it".into(),
        };
    }
    let cause = why.rsplit(": ").next().unwrap_or(why);
    Fault {
        code: "invalid_component",
        message: format!("the component is not valid: {cause}"),
        hint: HOW_TO_BUILD.into(),
    }
}

/// The contract as `wit/` has it.
fn contract() -> &'static Resolve {
    static CONTRACT: OnceLock<Resolve> = OnceLock::new();
    CONTRACT.get_or_init(|| {
        let mut resolve = Resolve::default();
        for (path, text) in [
            ("types.wit", include_str!("../../wit/types/types.wit")),
            ("plugin.wit", include_str!("../../wit/plugin/plugin.wit")),
            ("agent.wit", include_str!("../../wit/agent/agent.wit")),
        ] {
            // The bindings of this crate were generated from the same files.
            resolve.push_source(path, text).expect("the contract is valid WIT");
        }
        resolve
    })
}

fn interface(resolve: &Resolve, name: &str) -> Option<InterfaceId> {
    resolve.interfaces.iter().map(|(id, _)| id).find(|id| resolve.id_of(*id).as_deref() == Some(name))
}

/// The type behind names for it.
fn behind(resolve: &Resolve, ty: wit_parser::Type) -> wit_parser::Type {
    let mut ty = ty;
    while let wit_parser::Type::Id(id) = ty {
        let TypeDefKind::Type(inner) = resolve.types[id].kind else { break };
        ty = inner;
    }
    ty
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_has_what_the_roles_are_told_by() {
        for (role, name) in Role::OURS {
            assert!(interface(contract(), &format!("{name}@{VERSION}")).is_some(), "{role:?}");
        }
    }

    #[test]
    fn the_bundled_components_fit() {
        for (name, role) in [("assistant", Role::Agent), ("fs", Role::Tool), ("http", Role::Tool)] {
            let bundled = crate::plugin::bundled().iter().find(|b| b.name == name).unwrap();
            let shape = Shape::read(bundled.component).unwrap();
            assert_eq!(shape.check(false), Ok(role), "{name}");
            assert_eq!((shape.needs().files, shape.needs().network), (name == "fs", name == "http"));
        }
    }

    #[test]
    fn the_examples_are_hooks_that_need_nothing_and_take_no_bundled_name() {
        for example in crate::plugin::examples() {
            let shape = Shape::read(example.component).unwrap();
            assert_eq!(shape.check(false), Ok(Role::Hook), "{}", example.name);
            assert!(!shape.needs().files && !shape.needs().network, "{}", example.name);
            assert!(crate::plugin::bundled().iter().all(|b| b.name != example.name), "{}", example.name);
        }
    }

    #[test]
    fn bytes_that_are_no_component_are_told_apart() {
        let whole = crate::plugin::bundled()[0].component;
        for (bytes, code) in [
            (&b""[..], "empty_file"),
            (b"#!/bin/sh", "not_wasm"),
            (b"\0asm\x01\0\0\0", "core_module"),
            (b"\0asm", "truncated"),
            (&whole[..whole.len() / 2], "truncated"),
            (&whole[..whole.len() - 1], "truncated"),
            (b"\0asm\x0d\0\x01\0\xff\xff\xff\xff\xff\xff", "invalid_component"),
        ] {
            let fault = Shape::read(bytes).map(|_| ()).unwrap_err();
            assert_eq!(fault.code, code, "{fault:?}");
        }
        let nothing = Shape::read(b"\0asm\x0d\0\x01\0").unwrap();
        assert_eq!(nothing.check(false).unwrap_err().code, "no_role");
    }

    #[test]
    fn no_damage_makes_it_panic() {
        use rand::{RngExt as _, SeedableRng as _};
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let whole = crate::plugin::bundled().iter().map(|b| b.component).min_by_key(|c| c.len()).unwrap();
        for _ in 0..300 {
            let mut bytes = whole[..rng.random_range(0..=whole.len())].to_vec();
            for _ in 0..rng.random_range(0..4) {
                if !bytes.is_empty() {
                    let at = rng.random_range(0..bytes.len());
                    bytes[at] = rng.random();
                }
            }
            if let Ok(shape) = Shape::read(&bytes) {
                let _ = shape.check(rng.random());
            }
        }
    }
}
