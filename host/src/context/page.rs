//! `ContextPage`: one page of a process's context as the page table holds it.
//!
//! It owns what a page is and which turn it belongs to. It must not know windows or eviction.

use sha2::{Digest as _, Sha256};

use super::tokens::Counter;
use crate::abi::ToolCall;
use crate::process::{Pid, Seq};
use crate::storage::{PageKind, PageMeta, PageRecord};

/// A page that is to be appended.
#[derive(Clone, Debug, PartialEq)]
pub struct NewPage {
    /// Its id: unused so far, greater than that of any page that should come before it.
    pub id: u64,
    /// The journal position that makes it; 0 at spawn.
    pub seq: Seq,
    /// What it is.
    pub kind: PageKind,
    /// Its text.
    pub text: String,
    /// An assistant page's calls.
    pub tool_calls: Vec<ToolCall>,
    /// A tool result's `(call id, tool name)`.
    pub answers: Option<(String, String)>,
    /// 0 to 1; the kind's default when `None`.
    pub importance: Option<f32>,
    /// Never evicted.
    pub pinned: bool,
    /// Unix milliseconds.
    pub now_ms: u64,
}

/// An entry of the page table. A swapped page keeps everything but its text and its calls' arguments,
/// which are in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct ContextPage {
    /// Its id; the window is in the order of ids.
    pub id: u64,
    /// What it is.
    pub kind: PageKind,
    /// Its text while it is resident; empty when swapped.
    pub text: String,
    /// The first characters of the text, kept when it is swapped.
    pub preview: String,
    /// Its calls while it is resident; empty when swapped.
    pub tool_calls: Vec<ToolCall>,
    /// A tool result's `(call id, tool name)`.
    pub answers: Option<(String, String)>,
    /// What changes during its life.
    pub meta: PageMeta,
    /// SHA-256 of the text, hex.
    pub hash: String,
    /// The page that leads its turn: the assistant page whose call it answers, else itself. The pages
    /// of a turn are evicted together.
    pub turn: u64,
}

/// Characters of a page's preview.
const PREVIEW_CHARS: usize = 80;

impl ContextPage {
    pub(super) fn new(record: PageRecord, turn: u64) -> Self {
        let PageRecord { id, kind, text, tool_calls, answers, meta, hash, .. } = record;
        let preview = text.chars().take(PREVIEW_CHARS).collect();
        let mut page = Self { id, kind, text, preview, tool_calls, answers, meta, hash, turn };
        if !meta.resident {
            page.swap_out();
        }
        page
    }

    /// Lets go of what the store has.
    pub(super) fn swap_out(&mut self) {
        self.meta.resident = false;
        self.text = String::new();
        self.tool_calls = Vec::new();
    }

    /// Whether it opens a turn that may call tools, so that the newest such one is the current turn.
    pub(super) fn leads(&self) -> bool {
        matches!(self.kind, PageKind::User | PageKind::Assistant)
    }
}

impl NewPage {
    /// The record that the store keeps. `resident`: whether the page is in the window from the start.
    pub(super) fn into_record(self, pid: Pid, importance: f32, resident: bool, counter: Counter) -> PageRecord {
        let answers = self.answers.as_ref().map(|(id, name)| (id.as_str(), name.as_str()));
        let tokens =
            counter.of_parts(&self.text, &self.tool_calls, answers).saturating_add(counter.text(marker(self.kind)));
        // How a provider writes calls, their results and schemas into its prompt is not public.
        let plain = self.tool_calls.is_empty() && answers.is_none() && self.kind != PageKind::Tools;
        let hash = Sha256::digest(self.text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        let meta = PageMeta {
            tokens,
            exact: plain && counter.is_exact(),
            importance,
            pinned: self.pinned,
            resident,
            accessed_ms: self.now_ms,
            accesses: 0,
        };
        PageRecord {
            pid,
            id: self.id,
            seq: self.seq,
            kind: self.kind,
            text: self.text,
            tool_calls: self.tool_calls,
            answers: self.answers,
            meta,
            hash,
            created_ms: self.now_ms,
        }
    }
}

/// What stands before a page in the history that has no role of its own in the providers' protocols.
pub(super) fn marker(kind: PageKind) -> &'static str {
    match kind {
        PageKind::User | PageKind::Assistant | PageKind::Task => "",
        PageKind::System => "[instructions]\n",
        PageKind::Tools => "[tools]\n",
        PageKind::Note => "[note]\n",
        PageKind::ToolCall => "[tool call]\n",
        PageKind::ToolResult => "[tool result]\n",
        PageKind::Recalled => "[recalled]\n",
        PageKind::Summary => "[summary]\n",
    }
}

/// How much a page of this kind matters unless its maker says otherwise.
pub(super) fn default_importance(kind: PageKind) -> f32 {
    match kind {
        PageKind::System | PageKind::Tools => 1.0,
        PageKind::Task => 0.9,
        PageKind::User => 0.7,
        _ => 0.5,
    }
}
