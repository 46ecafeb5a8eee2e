//! `fs`: tools on the files of the directories that the operator granted with `--dir`.
//!
//! Each granted directory appears under its base name, so a path is `docs/readme.md` and never absolute. The
//! kernel's preopens are the boundary; what this plugin adds are results and errors that a model can act on.

mod grant;
mod path;
mod read;
mod search;
mod write;

use agent_os_sdk::{CallContext, Effect, Result, Tool};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use grant::{Grants, Kind};
use path::GrantPath;

/// Most entries that `list` gives.
const MAX_ENTRIES: usize = 1_000;

/// Lists a directory: name, kind and size of each entry, sorted by name. The path `.` lists the directories that
/// are granted.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct List {
    /// The directory, for example `docs/guides`; it begins with the name of a granted directory.
    path: String,
}

#[derive(Serialize, JsonSchema)]
struct Listing {
    entries: Vec<Entry>,
    /// Whether there are more entries than are listed.
    truncated: bool,
}

#[derive(Serialize, JsonSchema)]
struct Entry {
    name: String,
    kind: Kind,
    /// Size in bytes, of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// Of a granted directory: whether it may be written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    writable: Option<bool>,
}

impl Tool for List {
    const NAME: &'static str = "list";
    const EFFECT: Effect = Effect::ReadOnly;
    type Output = Listing;

    fn call(self, _: &CallContext) -> Result<Listing> {
        let grants = Grants::of_this_call();
        let entries = match GrantPath::parse(&self.path)? {
            GrantPath::Root => {
                return Ok(Listing { entries: grants.list()?, truncated: false });
            }
            GrantPath::Within(within) => grants.find(&within)?.entries(&within)?,
        };
        let truncated = entries.len() > MAX_ENTRIES;
        Ok(Listing { entries: entries.into_iter().take(MAX_ENTRIES).collect(), truncated })
    }
}

agent_os_sdk::export_tools!(List, read::Read, search::Search, write::Write, write::Append);
