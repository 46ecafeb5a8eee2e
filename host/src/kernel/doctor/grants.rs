//! The plugins' grants: whether they can be read, and whether each secret has a value here.

use crate::grants::{Error, Grants};
use crate::kernel::info::Check;

/// `None` where nothing is granted. `is_set`: whether the environment has a variable.
pub(super) fn grants(opened: Result<&Grants, &Error>, is_set: impl Fn(&str) -> bool) -> Option<Check> {
    const NAME: &str = "grants";
    let all = match opened {
        Ok(grants) => grants.all(),
        Err(e) => {
            let fix = "correct that file; one that aok wrote may also be removed, and its grants made again";
            return Some(Check::fail(NAME, super::text(e), fix));
        }
    };
    let plugins = all.len();
    let secrets = all.iter().flat_map(|(plugin, granted)| granted.secrets.iter().map(move |s| (plugin, &s.name)));
    let missing: Vec<String> =
        secrets.filter(|(_, name)| !is_set(name)).map(|(plugin, name)| format!("{name} of `{plugin}`")).collect();
    match (plugins, missing.is_empty()) {
        (0, _) => None,
        (_, true) => Some(Check::ok(NAME, super::count(plugins, "plugin"))),
        (_, false) => Some(Check::warn(
            NAME,
            format!("{}; secrets without a value: {}", super::count(plugins, "plugin"), missing.join(", ")),
            "set these variables where aok is started, or take the secrets back with `aok plugin revoke`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::kernel::info::Health;

    #[test]
    fn a_secret_without_a_value_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let none = std::collections::BTreeMap::new();
        let opened = Grants::open(&none, Path::new("aok.toml"), dir.path(), &[]).unwrap();
        assert_eq!(grants(Ok(&opened), |_| false), None);
        let more = crate::capability::Permissions { secrets: vec!["KEY@h".parse().unwrap()], ..Default::default() };
        opened.grant("p", &more).unwrap();
        assert_eq!(grants(Ok(&opened), |_| true).unwrap().state, Health::Ok);
        let warned = grants(Ok(&opened), |_| false).unwrap();
        assert!(warned.state == Health::Warn && warned.detail.contains("KEY of `p`"), "{warned:?}");
        std::fs::write(dir.path().join(crate::grants::FILE), "= 3").unwrap();
        let broken = Grants::open(&none, Path::new("aok.toml"), dir.path(), &[]);
        assert_eq!(grants(broken.as_ref(), |_| true).unwrap().state, Health::Fail);
    }
}
