//! Token counts: exact where a model's tokenizer is public, else a cautious bound from the bytes.
//!
//! It owns the constants and knows which models have which tokenizer. It must not know pages. What a
//! provider reports of a whole prompt narrows the bound (see `PageManager::calibrate`).
//!
//! `bpe-openai` counts OpenAI's encodings exactly, in linear time on any text (others take quadratic
//! time on some), with the vocabularies inside.

use crate::abi::{Message, ToolCall};

/// Role markers and separators that providers put around one message.
const PER_MESSAGE: u32 = 8;
/// The wrapping of one tool call.
const PER_CALL: u32 = 12;

/// Bounds the tokens of `text` from above for what agents read and write: byte-level tokenizers of
/// today's models need about one token per four bytes of English or code and up to one per two of dense
/// JSON. One per three letters or spaces is counted, one per two bytes of anything else: digits, signs
/// and bytes beyond ASCII split finer.
/// Text made of nothing but random characters can exceed it, which is why counts from here are marked
/// as not exact.
#[must_use]
pub fn upper_bound(text: &str) -> u32 {
    let mut count = Count::default();
    text.chars().for_each(|c| count.add(c));
    count.tokens()
}

/// How the tokens of a model are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counter {
    /// [`upper_bound`].
    #[default]
    Bound,
    /// OpenAI's encoding of its models since GPT-4o.
    O200k,
    /// OpenAI's encoding of GPT-4 and GPT-3.5.
    Cl100k,
}

/// What OpenAI's chat format puts around one message: two markers and the role.
const EXACT_PER_MESSAGE: u32 = 4;

impl Counter {
    /// The counter of `provider/model`. Models behind another name or server have the bound, whatever
    /// they are called.
    #[must_use]
    pub fn of_model(name: &str) -> Self {
        let Some(model) = name.strip_prefix("openai/") else { return Self::Bound };
        let is = |family: &str| {
            model == family || model.strip_prefix(family).is_some_and(|rest| rest.starts_with(['-', '.']))
        };
        if ["gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "o1", "o3", "o4", "chatgpt-4o"].into_iter().any(is) {
            Self::O200k
        } else if ["gpt-4", "gpt-3.5"].into_iter().any(is) {
            Self::Cl100k
        } else {
            Self::Bound
        }
    }

    /// Whether plain text is counted as the model counts it.
    #[must_use]
    pub fn is_exact(self) -> bool {
        self != Self::Bound
    }

    /// Tokens of a text.
    #[must_use]
    pub fn text(self, text: &str) -> u32 {
        let exact = |t: &bpe_openai::Tokenizer| u32::try_from(t.count(text)).unwrap_or(u32::MAX);
        match self {
            Self::Bound => upper_bound(text),
            Self::O200k => exact(bpe_openai::o200k_base()),
            Self::Cl100k => exact(bpe_openai::cl100k_base()),
        }
    }

    pub(super) fn of_parts(self, text: &str, calls: &[ToolCall], answers: Option<(&str, &str)>) -> u32 {
        let wrapping = if self.is_exact() { EXACT_PER_MESSAGE } else { PER_MESSAGE };
        let all = |parts: &[&str]| parts.iter().map(|t| self.text(t)).fold(0, u32::saturating_add);
        let calls = calls
            .iter()
            .map(|c| PER_CALL.saturating_add(all(&[&c.id, &c.name, &c.arguments])))
            .fold(0, u32::saturating_add);
        let answers = answers.map_or(0, |(id, name)| all(&[id, name]));
        wrapping.saturating_add(self.text(text)).saturating_add(calls).saturating_add(answers)
    }
}

/// Bounds a message, its wrapping and its tool calls included.
#[must_use]
pub fn of_message(message: &Message) -> u32 {
    match message {
        Message::System { text } | Message::User { text } => of_parts(text, &[], None),
        Message::Assistant { text, tool_calls } => of_parts(text, tool_calls, None),
        Message::Tool { call_id, name, text } => of_parts(text, &[], Some((call_id, name))),
    }
}

pub(super) fn of_parts(text: &str, calls: &[ToolCall], answers: Option<(&str, &str)>) -> u32 {
    Counter::Bound.of_parts(text, calls, answers)
}

pub(super) fn of_call(call: &ToolCall) -> u32 {
    [&call.id, &call.name, &call.arguments].into_iter().map(|t| upper_bound(t)).fold(PER_CALL, u32::saturating_add)
}

/// The longest prefix of `text` whose bound is at most `tokens`.
pub(super) fn prefix(text: &str, tokens: u32) -> &str {
    let mut count = Count::default();
    for (at, c) in text.char_indices() {
        count.add(c);
        if count.tokens() > tokens {
            return &text[..at];
        }
    }
    text
}

#[derive(Default)]
struct Count {
    plain: u64,
    fine: u64,
}

impl Count {
    fn add(&mut self, c: char) {
        if c.is_ascii_alphabetic() || c.is_ascii_whitespace() {
            self.plain += 1;
        } else {
            self.fine += c.len_utf8() as u64;
        }
    }

    fn tokens(&self) -> u32 {
        u32::try_from(self.plain.div_ceil(3) + self.fine.div_ceil(2)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_counts_bytes_by_class() {
        for (text, tokens) in [("", 0), ("a", 1), ("abcdef", 2), ("1234", 2), ("ab12", 2), ("日本", 3), ("🦀", 2)] {
            assert_eq!(upper_bound(text), tokens, "{text}");
        }
    }

    #[test]
    fn openai_models_are_counted_as_they_count() {
        // Counts as published for these encodings.
        assert_eq!(Counter::Cl100k.text("tiktoken is great!"), 6);
        assert_eq!(Counter::O200k.text("hello world"), 2);
        for (model, counter) in [
            ("openai/gpt-4o-mini", Counter::O200k),
            ("openai/gpt-4.1", Counter::O200k),
            ("openai/o3", Counter::O200k),
            ("openai/gpt-4", Counter::Cl100k),
            ("openai/gpt-4-turbo", Counter::Cl100k),
            ("openai/gpt-40", Counter::Bound),
            ("openrouter/gpt-4o", Counter::Bound),
            ("openai/llama", Counter::Bound),
        ] {
            assert_eq!(Counter::of_model(model), counter, "{model}");
        }
    }

    #[test]
    fn the_bound_is_over_the_exact_count_of_what_agents_read_and_write() {
        let json = serde_json::json!({"path": "a/b.rs", "lines": [1, 22, 333], "ok": true, "note": "héllo wörld"});
        let code = include_str!("tokens.rs");
        for text in [code, &json.to_string(), "The quick brown fox jumps over the lazy dog.", "日本語のテキスト"]
        {
            for counter in [Counter::O200k, Counter::Cl100k] {
                assert!(counter.text(text) <= upper_bound(text), "{counter:?}: {text}");
            }
        }
    }

    #[test]
    fn a_prefix_is_the_longest_that_fits() {
        let text = "Grüße aus 1234 日本!";
        for tokens in 0..20 {
            let head = prefix(text, tokens);
            assert!(upper_bound(head) <= tokens);
            if let Some(next) = text[head.len()..].chars().next() {
                assert!(upper_bound(&format!("{head}{next}")) > tokens);
            }
        }
    }
}
