//! The fields of the outside contract's objects, and whether an object has them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub(crate) const PS: &str = "pid ppid name agent model group state waiting_on nice fuel slices tokens_in tokens_cached tokens_out \
                  micro_usd tool_calls pages_resident pages_swapped exit task tree cpu_us slice_us effective_nice \
                  inherits_from";
pub(crate) const TOOL: &str = "name plugin tool description effect input_schema output_schema source state";
pub(crate) const PLUGIN: &str =
    "name file kind state version digest contract tools hooks agents requested granted trusted calls errors diagnosis";
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

/// What was published, by its SHA-256. A line is added for a new version; none is ever changed.
const PUBLISHED: [(&str, &str); 2] = [
    ("0.1.0/plugin.wit", "bf3bc5fb07f049cf4fd26b8ff836994fcfe51e1c60b0fb7c497e07253a186f5b"),
    ("0.1.0/types.wit", "e3508a438ee555bddb2f3e9edadc7745ba4bf21ce53037fb230293a4ccdbacef"),
];

#[test]
fn a_published_contract_never_changes() {
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    for (file, hash) in PUBLISHED {
        let bytes = fs::read(wit.join("archive").join(file)).unwrap();
        let found: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(found, hash, "wit/archive/{file} is published: put it back, and make a new version for a change");
    }
    for package in ["types", "plugin"] {
        let text = fs::read_to_string(wit.join(package).join(format!("{package}.wit"))).unwrap();
        let version =
            text.split_once(&format!("package agent-os:{package}@")).and_then(|(_, rest)| rest.split_once(';'));
        let (version, _) = version.expect("a package has a version");
        let archived = wit.join("archive").join(version).join(format!("{package}.wit"));
        let published = fs::read_to_string(&archived).unwrap_or_default();
        assert_eq!(
            text,
            published,
            "wit/{package} differs from {}: a change of the contract is a new version, with a file there",
            archived.display()
        );
    }
}
