//! The fields of the outside contract's objects, and whether an object has them.

use std::collections::BTreeSet;

use serde_json::Value;

pub(crate) const PS: &str = "pid ppid name agent model group state waiting_on nice fuel slices tokens_in tokens_cached tokens_out \
                  micro_usd tool_calls pages_resident pages_swapped exit";
pub(crate) const TOOL: &str = "name plugin tool description effect input_schema output_schema source state";
pub(crate) const PLUGIN: &str =
    "name file kind state version digest contract tools hooks agents calls errors diagnosis";
pub(crate) const PAGE: &str = "id kind region tokens exact resident pinned importance accesses hash why cached";
pub(crate) const AUDIT: &str = "seq pid at_ms event object decision by prev hash";
pub(crate) const LOG: &str = "pid seq at_ms level source message";

/// The object has exactly these fields.
#[track_caller]
pub(crate) fn has_exactly(object: &Value, fields: &str) {
    let found: BTreeSet<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    let expected: BTreeSet<&str> = fields.split(' ').collect();
    assert_eq!(found, expected, "{object}");
}

/// The object has at least these fields.
#[track_caller]
pub(crate) fn has(object: &Value, fields: &str) {
    for field in fields.split(' ') {
        assert!(object.get(field).is_some(), "`{field}` is missing: {object}");
    }
}
