//! `KvCacheOptimizer`: where each page stands in the prompt and what of it is shown.
//!
//! It owns the order of the window and the abridged form of pages that are too large. It must not
//! know eviction or the store.
//!
//! A provider reuses a prompt up to the first byte that changed, so the order is by how rarely a part
//! changes: system, task, stub of what was swapped out, history in id order, newest turn. Nothing moves
//! once it is shown; between two evictions a window is the one before plus what was appended.

use std::collections::BTreeMap;

use super::page::{ContextPage, marker};
use super::tokens;
use crate::abi::{Message, ToolCall};
use crate::storage::PageKind;

/// A page over this share of the window (a divisor) is shown abridged …
const OVERSIZED: u32 = 2;
/// … and takes up no more than this share then.
const ABRIDGED: u32 = 4;
/// No page is cut below so many tokens: its wrapping and the note that says where the rest is.
const FLOOR: u32 = 64;

/// Lays the window out.
#[derive(Clone, Copy, Debug)]
pub struct KvCacheOptimizer {
    window: u32,
}

impl KvCacheOptimizer {
    pub(super) fn new(window: u32) -> Self {
        Self { window }
    }

    /// What a page takes up in the window unless the window is too small for what must stay.
    /// Depends on nothing but the page, so it does not change while the page is resident.
    pub(super) fn shown(&self, page: &ContextPage) -> u32 {
        let tokens = page.meta.tokens;
        // Tool schemas reach the provider whole and beside the messages: nothing can be cut off there.
        if page.kind == PageKind::Tools || tokens <= self.window / OVERSIZED {
            return tokens;
        }
        tokens.min((self.window / ABRIDGED).max(FLOOR))
    }

    /// The size above which pages are cut so that all of them fit into `room`: the largest such size,
    /// so that the largest pages pay first. `u32::MAX` when they fit as they are.
    pub(super) fn ceiling<'a>(&self, pages: impl Iterator<Item = &'a ContextPage>, room: u32) -> u32 {
        let mut room = room;
        let mut sizes = Vec::new();
        for page in pages {
            if page.kind == PageKind::Tools {
                room = room.saturating_sub(page.meta.tokens);
            } else {
                sizes.push(self.shown(page));
            }
        }
        sizes.sort_unstable();
        let mut left = room;
        for (i, &size) in sizes.iter().enumerate() {
            let share = left / u32::try_from(sizes.len() - i).unwrap_or(u32::MAX);
            if size > share {
                return share.max(FLOOR);
            }
            left -= size;
        }
        u32::MAX
    }

    /// The messages of the head pages in their order, the stub, and the history turn by turn.
    pub(super) fn messages(
        &self,
        head: &[&ContextPage],
        stub: Option<String>,
        history: &[&ContextPage],
        ceiling: u32,
    ) -> Vec<Message> {
        let mut out = Vec::with_capacity(head.len() + history.len() + 1);
        for page in head.iter().filter(|p| p.kind != PageKind::Tools) {
            let text = self.text(page, ceiling);
            out.push(if page.kind == PageKind::System { Message::System { text } } else { Message::User { text } });
        }
        out.extend(stub.map(|text| Message::User { text }));
        // A turn stands where its first page does, so that each call is followed by its results.
        let mut turns: BTreeMap<u64, Vec<&ContextPage>> = BTreeMap::new();
        for page in history {
            turns.entry(page.turn).or_default().push(page);
        }
        for turn in turns.values() {
            self.turn(turn, ceiling, &mut out);
        }
        out
    }

    /// The leading page, the results of its calls, then what else belongs to the turn. Providers refuse
    /// a call without a result and a result without a call, so each call gets exactly one.
    fn turn(&self, pages: &[&ContextPage], ceiling: u32, out: &mut Vec<Message>) {
        let mut open: Vec<(&str, &str)> = Vec::new();
        let mut others = Vec::new();
        for page in pages {
            if let Some((id, name)) = &page.answers
                && let Some(at) = open.iter().position(|(open, _)| open == id)
            {
                open.remove(at);
                let text = self.text(page, ceiling);
                out.push(Message::Tool { call_id: id.clone(), name: name.clone(), text });
            } else if page.kind == PageKind::Assistant {
                open.extend(page.tool_calls.iter().map(|c| (c.id.as_str(), c.name.as_str())));
                out.push(self.assistant(page, ceiling));
            } else {
                others.extend(self.note(page, ceiling));
            }
        }
        out.extend(open.into_iter().map(|(id, name)| Message::Tool {
            call_id: id.to_owned(),
            name: name.to_owned(),
            text: "(this call has no result)".to_owned(),
        }));
        out.extend(others);
    }

    /// A page without a role of its own: a message of the user with a marker, because a system message
    /// after the head is refused by some providers and moved by others. Tool schemas reach the provider
    /// apart, wherever their page stands.
    fn note(&self, page: &ContextPage, ceiling: u32) -> Option<Message> {
        let text = format!("{}{}", marker(page.kind), self.text(page, ceiling));
        (page.kind != PageKind::Tools).then_some(Message::User { text })
    }

    fn assistant(&self, page: &ContextPage, ceiling: u32) -> Message {
        let cap = self.shown(page).min(ceiling);
        if page.meta.tokens <= cap {
            return Message::Assistant { text: page.text.clone(), tool_calls: page.tool_calls.clone() };
        }
        // Arguments are JSON, so they cannot be cut: the largest go as a whole, as often as it takes.
        let mut calls = page.tool_calls.clone();
        let mut sizes: Vec<_> = calls.iter().map(tokens::of_call).enumerate().collect();
        sizes.sort_unstable_by_key(|&(_, size)| std::cmp::Reverse(size));
        for (i, size) in sizes {
            if calls_tokens(&calls) <= cap / 2 || size <= FLOOR {
                break;
            }
            let note = format!("{size} tokens of arguments are left out here; page {} has them", page.id);
            calls[i].arguments = serde_json::json!({ "abridged": note }).to_string();
        }
        let text = abridged(page, &page.text, cap.saturating_sub(calls_tokens(&calls)));
        Message::Assistant { text, tool_calls: calls }
    }

    fn text(&self, page: &ContextPage, ceiling: u32) -> String {
        let cap = self.shown(page).min(ceiling);
        if page.meta.tokens <= cap {
            return page.text.clone();
        }
        // The wrapping that the text does not pay for: the ids of the call that it answers.
        let answers = page.answers.as_ref().map_or(0, |(id, name)| tokens::upper_bound(id) + tokens::upper_bound(name));
        abridged(page, &page.text, cap.saturating_sub(answers))
    }
}

fn calls_tokens(calls: &[ToolCall]) -> u32 {
    calls.iter().map(tokens::of_call).fold(0, u32::saturating_add)
}

/// The head of `text` and where the rest is, together within `cap` tokens of a message.
fn abridged(page: &ContextPage, text: &str, cap: u32) -> String {
    let whole = tokens::upper_bound(text);
    let head = tokens::prefix(text, cap.saturating_sub(FLOOR));
    if head.len() == text.len() {
        return text.to_owned();
    }
    let shown = tokens::upper_bound(head);
    format!("{head}\n… page {} continues: {shown} of {whole} tokens shown; read the rest by its id", page.id)
}
