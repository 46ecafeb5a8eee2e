//! `ToolRegistry`: which tools there are, by full name and by bare name.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::Invoke;
use crate::abi::ToolSpec;
use crate::capability::{Needs, Permissions};
use crate::quota::Limits;

/// Where a tool comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Inside the binary.
    Bundled,
    /// A plugin directory.
    Directory,
}

impl Source {
    /// The word in `tool ls`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bundled => "bundled",
            Self::Directory => "directory",
        }
    }
}

/// A registered tool.
#[derive(Debug)]
pub struct Entry {
    /// What agents see; `spec.name` is the full name.
    pub spec: ToolSpec,
    /// The plugin.
    pub plugin: String,
    /// The name within the plugin.
    pub tool: String,
    /// Where from.
    pub source: Source,
    /// What its code asks for.
    pub needs: Needs,
    /// What its manifest asks for.
    pub asked: Arc<Permissions>,
    /// Limits of one call.
    pub limits: Limits,
    /// Whether the plugin has one instance for all calls of a process.
    pub stateful: bool,
    /// Checks arguments.
    pub validator: jsonschema::Validator,
    /// Runs it.
    pub code: Arc<dyn Invoke>,
}

/// What a name means.
#[derive(Debug)]
pub enum Lookup {
    /// One tool.
    Found(Arc<Entry>),
    /// A bare name that several plugins serve: their full names.
    Ambiguous(Vec<String>),
    /// None.
    Unknown,
}

/// The full name of a plugin's tool (CONTRACT §3).
#[must_use]
pub fn full_name(plugin: &str, tool: &str) -> String {
    let clean = |s: &str| -> String {
        s.chars()
            .map(|c| match c {
                'a'..='z' | '0'..='9' | '_' => c,
                'A'..='Z' => c.to_ascii_lowercase(),
                _ => '_',
            })
            .collect()
    };
    let (plugin, tool) = (clean(plugin), clean(tool));
    let name = if plugin == tool { tool } else { format!("{plugin}__{tool}") };
    if name.len() <= 64 {
        return name;
    }
    let digest = Sha256::digest(name.as_bytes());
    let tail: String = digest[..4].iter().map(|b| format!("{b:02x}")).collect();
    format!("{}_{tail}", &name[..55])
}

/// All tools. A clash of full names is refused where it arises, by the plugin that comes second.
#[derive(Debug)]
pub struct ToolRegistry {
    tools: RwLock<BTreeMap<String, Arc<Entry>>>,
    changes: watch::Sender<u64>,
}

impl Default for ToolRegistry {
    fn default() -> Self {
        Self { tools: RwLock::default(), changes: watch::Sender::new(0) }
    }
}

impl ToolRegistry {
    /// Puts a plugin's tools in the place of those that it had, at once: a call sees the old set or the
    /// new one. If one of the names is taken, all stays as it was.
    ///
    /// # Errors
    /// The taken name and the plugin that has it.
    pub fn swap(&self, plugin: &str, entries: Vec<Entry>) -> Result<(), (String, String)> {
        let mut tools = self.tools.write().unwrap_or_else(PoisonError::into_inner);
        for (i, entry) in entries.iter().enumerate() {
            let name = &entry.spec.name;
            if let Some(taken) = tools.get(name).filter(|t| t.plugin != plugin) {
                return Err((name.clone(), taken.plugin.clone()));
            }
            if entries[..i].iter().any(|e| e.spec.name == *name) {
                return Err((name.clone(), entry.plugin.clone()));
            }
        }
        tools.retain(|_, tool| tool.plugin != plugin);
        tools.extend(entries.into_iter().map(|e| (e.spec.name.clone(), Arc::new(e))));
        drop(tools);
        self.changes.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Takes a plugin's tools out. Calls under way end as they would have.
    pub fn withdraw(&self, plugin: &str) {
        let mut tools = self.tools.write().unwrap_or_else(PoisonError::into_inner);
        let before = tools.len();
        tools.retain(|_, tool| tool.plugin != plugin);
        let changed = tools.len() != before;
        drop(tools);
        if changed {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    /// Counts the changes of the table: whoever lists tools can wait for the next one.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The tool of a full name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Entry>> {
        self.tools.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Looks a full or bare name up.
    #[must_use]
    pub fn find(&self, name: &str) -> Lookup {
        if let Some(entry) = self.get(name) {
            return Lookup::Found(entry);
        }
        let all = self.all();
        let mut matches = all.into_iter().filter(|e| e.tool == name);
        match (matches.next(), matches.next()) {
            (None, _) => Lookup::Unknown,
            (Some(one), None) => Lookup::Found(one),
            (Some(one), Some(two)) => {
                Lookup::Ambiguous([one, two].into_iter().chain(matches).map(|e| e.spec.name.clone()).collect())
            }
        }
    }

    /// All tools by full name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.tools.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Effect;
    use crate::tool::{Invocation, Report};

    #[derive(Debug)]
    struct Nothing;

    #[async_trait::async_trait]
    impl Invoke for Nothing {
        async fn invoke(&self, _: Invocation) -> Report {
            unreachable!("the registry calls nothing")
        }
    }

    fn entry(plugin: &str, tool: &str) -> Entry {
        let schema = serde_json::json!({ "type": "object" });
        Entry {
            validator: jsonschema::validator_for(&schema).unwrap(),
            spec: ToolSpec {
                name: full_name(plugin, tool),
                description: String::new(),
                input_schema: schema,
                output_schema: None,
                effect: Effect::Pure,
            },
            plugin: plugin.into(),
            tool: tool.into(),
            source: Source::Bundled,
            needs: Needs::default(),
            asked: Arc::default(),
            limits: Limits::TOOL,
            stateful: false,
            code: Arc::new(Nothing),
        }
    }

    #[test]
    fn names_are_made_safe_for_every_model_api() {
        for (plugin, tool, full) in [
            ("fs", "read", "fs__read"),
            ("my-plugin", "Do It", "my_plugin__do_it"),
            ("echo", "echo", "echo"),
            ("a.b", "ä", "a_b___"),
        ] {
            assert_eq!(full_name(plugin, tool), full);
        }
        let long = full_name(&"p".repeat(32), &"t".repeat(60));
        assert_eq!(long.len(), 64);
        assert_ne!(long, full_name(&"p".repeat(32), &"t".repeat(61)));
    }

    #[test]
    fn bare_names_work_while_they_are_unambiguous() {
        let r = ToolRegistry::default();
        r.swap("fs", vec![entry("fs", "read"), entry("fs", "list")]).unwrap();
        assert!(matches!(r.find("read"), Lookup::Found(e) if e.spec.name == "fs__read"));
        r.swap("web", vec![entry("web", "read")]).unwrap();
        assert!(matches!(r.find("read"), Lookup::Ambiguous(c) if c == ["fs__read", "web__read"]));
        assert!(matches!(r.find("fs__read"), Lookup::Found(_)));
        assert!(matches!(r.find("nothing"), Lookup::Unknown));
    }

    #[test]
    fn a_clash_changes_nothing() {
        let r = ToolRegistry::default();
        r.swap("a-b", vec![entry("a-b", "x")]).unwrap();
        r.swap("other", vec![entry("other", "z")]).unwrap();
        let clash = r.swap("a_b", vec![entry("a_b", "y"), entry("a_b", "x")]).unwrap_err();
        assert_eq!(clash, ("a_b__x".to_owned(), "a-b".to_owned()));
        assert!(r.get("a_b__y").is_none() && r.get("other__z").is_some());
        assert!(r.swap("t", vec![entry("t", "A"), entry("t", "a")]).is_err(), "two of its own make one name");
    }

    #[test]
    fn a_swap_replaces_a_plugins_tools_and_no_others() {
        let r = ToolRegistry::default();
        let mut changes = r.changes();
        r.swap("p", vec![entry("p", "old"), entry("p", "both")]).unwrap();
        r.swap("q", vec![entry("q", "x")]).unwrap();
        let held = r.get("p__both").unwrap();
        r.swap("p", vec![entry("p", "both"), entry("p", "new")]).unwrap();
        let names: Vec<_> = r.all().iter().map(|e| e.spec.name.clone()).collect();
        assert_eq!(names, ["p__both", "p__new", "q__x"]);
        assert!(!Arc::ptr_eq(&held, &r.get("p__both").unwrap()));
        assert_eq!(*changes.borrow_and_update(), 3);
        r.withdraw("p");
        r.withdraw("nothing");
        assert_eq!((r.all().len(), *changes.borrow()), (1, 4));
    }
}
