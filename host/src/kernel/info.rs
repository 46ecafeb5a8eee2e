//! What the façade tells about its parts: the objects of CONTRACT §3, §4, §6 and §8, field by field.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::abi::Effect;
use crate::capability::{Needs, Permissions};
use crate::contract::Item;
use crate::hook::Standing;
use crate::overlay::{Action, Kind};
use crate::process::{Exit, ProcessState, Seq};

/// A line of `ps`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Process id.
    pub pid: u64,
    /// Its parent.
    pub ppid: Option<u64>,
    /// Name for people.
    pub name: String,
    /// Agent image.
    pub agent: String,
    /// `provider/model`.
    pub model: Option<String>,
    /// Scheduling group.
    pub group: String,
    /// State letter.
    pub state: ProcessState,
    /// What it waits on.
    pub waiting_on: Option<String>,
    /// −20…19.
    pub nice: i8,
    /// Fuel used.
    pub fuel: u64,
    /// Slices used.
    pub slices: u64,
    /// Prompt tokens.
    pub tokens_in: u64,
    /// Of them cached.
    pub tokens_cached: u64,
    /// Generated tokens.
    pub tokens_out: u64,
    /// Price; `None` = unknown.
    pub micro_usd: Option<u64>,
    /// Tool calls made.
    pub tool_calls: u64,
    /// Pages in the window; `None` where no kernel holds them.
    pub pages_resident: Option<u64>,
    /// Pages in the store only.
    pub pages_swapped: Option<u64>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// What it was asked to do.
    #[serde(default)]
    pub task: String,
    /// The root of its tree.
    #[serde(default)]
    pub tree: u64,
    /// Microseconds that a worker ran it under this kernel; `None` where no kernel runs it.
    #[serde(default)]
    pub cpu_us: Option<u64>,
    /// The slice that it gets at this moment, in microseconds.
    #[serde(default)]
    pub slice_us: Option<u64>,
    /// The nice value that it runs at: its own, or that of one that waits for it.
    #[serde(default)]
    pub effective_nice: Option<i8>,
    /// Who waits for it and lends it that.
    #[serde(default)]
    pub inherits_from: Option<u64>,
}

/// A line of `diff`, of `apply` and of `discard`: one file, directory or link that a process changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileChange {
    /// As guests see it: the name of the mount, and the path in it.
    pub path: String,
    /// What became of it.
    pub change: Action,
    /// What it is; what it was, if it is gone.
    pub kind: Kind,
    /// What the original was when the process first touched it; `None` if there was none.
    pub base: Option<FileBase>,
    /// Bytes that it has now; `None` if it is gone.
    pub bytes: Option<u64>,
    /// Why it cannot be applied; `None` if it can.
    pub conflict: Option<String>,
    /// The change of a text as a unified diff, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// What an original was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileBase {
    /// Its bytes; 0 for a directory.
    pub bytes: u64,
    /// SHA-256 of its content in hex; `None` for what has none, or may not be read.
    pub sha256: Option<String>,
}

/// A line of `tool ls`, and `tool show`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolInfo {
    /// Full name.
    pub name: String,
    /// Plugin that serves it.
    pub plugin: String,
    /// Its name within the plugin.
    pub tool: String,
    /// For the model.
    pub description: String,
    /// What a repeated call does.
    pub effect: Effect,
    /// Arguments.
    pub input_schema: Value,
    /// Result.
    pub output_schema: Option<Value>,
    /// `bundled`, `directory` or `mcp`.
    pub source: String,
    /// `ready` or `refused`.
    pub state: String,
}

/// A line of `plugin ls`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PluginInfo {
    /// Name.
    pub name: String,
    /// File; `None` for bundled ones.
    pub file: Option<String>,
    /// `tool`, `agent`.
    pub kind: Vec<String>,
    /// `loading`, `loaded` or `refused`: how its file is. A refused one goes on serving what it served.
    pub state: String,
    /// From its manifest.
    pub version: Option<String>,
    /// SHA-256, hex; `None` where the file could not be read.
    pub digest: Option<String>,
    /// Contract version, or `foreign`; `None` where it could not be told.
    pub contract: Option<String>,
    /// Full tool names.
    pub tools: Vec<String>,
    /// Hook points.
    pub hooks: Vec<String>,
    /// Agent names.
    pub agents: Vec<String>,
    /// What its manifest asks for.
    pub requested: Permissions,
    /// What the operator grants it, in aok.toml and by `aok plugin grant`.
    pub granted: Permissions,
    /// Whether the operator trusts this very component: its hooks may rewrite.
    pub trusted: bool,
    /// Calls since the kernel started.
    pub calls: u64,
    /// Of them failed.
    pub errors: u64,
    /// Why it is refused.
    pub diagnosis: Option<Diagnosis>,
}

/// A hook at one point (CONTRACT §7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookInfo {
    /// Its point.
    pub point: String,
    /// Its plugin, or the name of a native one.
    pub plugin: String,
    /// `validate`, `authorize`, `policy` or `telemetry`.
    pub phase: String,
    /// Lower ones are asked first.
    pub priority: i32,
    /// A glob on what the event is about.
    pub matcher: Option<String>,
    /// Whether it may rewrite.
    pub trusted: bool,
    /// `active`; `barred`: it failed too often and is not asked; `inactive`: nothing happens at its point.
    pub state: String,
    /// Why it is barred.
    pub reason: Option<String>,
    /// Events that it was asked about.
    pub calls: u64,
    /// Those that it refused.
    pub denied: u64,
    /// Those that it gave no valid answer to.
    pub failures: u64,
}

impl From<Standing> for HookInfo {
    fn from(s: Standing) -> Self {
        let state = match (s.at.point.is_active(), &s.barred) {
            (false, _) => "inactive",
            (true, Some(_)) => "barred",
            (true, None) => "active",
        };
        Self {
            point: s.at.point.name().to_owned(),
            plugin: s.plugin,
            phase: s.at.phase.name().to_owned(),
            priority: s.at.priority,
            matcher: s.at.matcher,
            trusted: s.trusted,
            state: state.to_owned(),
            reason: s.barred,
            calls: s.calls,
            denied: s.denied,
            failures: s.failures,
        }
    }
}

/// What a change of a plugin's grants came to (`plugin grant`, `revoke` and `trust`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GrantReport {
    /// The plugin.
    pub name: String,
    /// What its manifest asks for.
    pub requested: Permissions,
    /// What it is granted now.
    pub granted: Permissions,
    /// Whether its component is trusted now.
    pub trusted: bool,
    /// What the operator should know: what has no effect, or what is missing.
    pub notes: Vec<String>,
}

/// Why a plugin is refused, for its author.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Closed code (`docs/plugins.md`).
    pub code: String,
    /// What is wrong with what.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// What a component file is (`plugin doctor`, `plugin inspect`): told from its bytes, nothing of it is run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PluginReport {
    /// The file; `None` for a bundled component.
    pub file: Option<String>,
    /// The name that it makes.
    pub name: String,
    /// Whether it can be loaded, as far as its bytes and its manifest tell.
    pub ok: bool,
    /// `tool`, `hook` or `agent`; `None` where it could not be told.
    pub kind: Option<String>,
    /// Contract version, or `foreign`; `None` where it could not be told.
    pub contract: Option<String>,
    /// Size.
    pub bytes: u64,
    /// SHA-256, hex.
    pub digest: Option<String>,
    /// From its manifest.
    pub version: Option<String>,
    /// What its manifest asks for.
    pub requested: Permissions,
    /// What its code asks for.
    pub needs: Needs,
    /// What it imports.
    pub imports: Vec<Item>,
    /// What it exports.
    pub exports: Vec<Item>,
    /// Why it is refused.
    pub diagnosis: Option<Diagnosis>,
    /// Each difference from the contract.
    pub drift: Vec<String>,
    /// Functions of a foreign component that are no tools, and why.
    pub left_out: Vec<String>,
}

/// A line of `agent ls`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Name.
    pub name: String,
    /// Plugin that serves it.
    pub plugin: String,
    /// SHA-256, hex.
    pub digest: String,
    /// `bundled` or `directory`.
    pub source: String,
}

/// A page of `context PID`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PageInfo {
    /// Page id.
    pub id: u64,
    /// Kind.
    pub kind: crate::storage::PageKind,
    /// `head`, `history` or `swapped`.
    pub region: String,
    /// Size.
    pub tokens: u32,
    /// Whether `tokens` is exact.
    pub exact: bool,
    /// In the window.
    pub resident: bool,
    /// Never evicted.
    pub pinned: bool,
    /// 0 to 1.
    pub importance: f32,
    /// How often read.
    pub accesses: u32,
    /// SHA-256 of the text.
    pub hash: String,
    /// Why it is where it is.
    pub why: String,
    /// Whether the provider's prefix cache held it last time; `None` = unknown.
    pub cached: Option<bool>,
}

/// The report of a tool call from outside (`tool call --json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallReport {
    /// Full tool name.
    pub tool: String,
    /// The client process that made it.
    pub pid: u64,
    /// The result as JSON text, or why there is none.
    pub outcome: Result<String, crate::abi::Error>,
    /// Fuel of the call.
    pub fuel: u64,
    /// Peak bytes of the tool's memories.
    pub memory_bytes: u64,
    /// Microseconds.
    pub duration_us: u64,
    /// Journal position.
    pub seq: Seq,
}

/// The answer of `audit verify`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AuditVerdict {
    /// Every chain holds.
    Good {
        /// `true`.
        ok: bool,
        /// Records checked.
        records: u64,
    },
    /// One does not.
    Bad {
        /// `false`.
        ok: bool,
        /// Whose chain.
        pid: u64,
        /// Where.
        seq: u64,
        /// `changed`, `missing`, `reordered` or `truncated`.
        why: String,
    },
}

/// How a check of `doctor` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It works.
    Ok,
    /// Something is missing that aok can do without.
    Warn,
    /// Something that aok needs is broken.
    Fail,
}

impl Health {
    /// Its word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// A line of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub state: Health,
    /// What was found.
    pub detail: String,
    /// What to do; `None` where there is nothing to do.
    pub fix: Option<String>,
}

impl Check {
    /// It works.
    pub fn ok(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check: check.into(), state: Health::Ok, detail: detail.into(), fix: None }
    }

    /// It does not, and aok can do without it.
    pub fn warn(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { state: Health::Warn, fix: Some(fix.into()), ..Self::ok(check, detail) }
    }

    /// It does not, and aok needs it.
    pub fn fail(check: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { state: Health::Fail, fix: Some(fix.into()), ..Self::ok(check, detail) }
    }
}

/// A line of `doctor --prove-limits`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The limit.
    pub limit: String,
    /// Whether it stopped the guest, and where it should.
    pub held: bool,
    /// What the guest was allowed.
    pub declared: u64,
    /// What it got; `None` where that cannot be told.
    pub observed: Option<u64>,
    /// What the two count.
    pub unit: String,
    /// The limit that stopped the guest; `None` where none did.
    pub stopped_by: Option<String>,
    /// What the caller of such a guest is told.
    pub message: String,
}
