//! Token counts without a tokenizer: a cautious bound from the bytes of a text.
//!
//! It owns the constants. It must not know pages or models; a count that a provider reports is better
//! and replaces this one.

use crate::abi::{Message, ToolCall};

/// Role markers and separators that providers put around one message.
const PER_MESSAGE: u32 = 8;
/// The wrapping of one tool call.
const PER_CALL: u32 = 12;

/// Bounds the tokens of `text` from above for what agents read and write: byte-level tokenizers of
/// today's models need about one token per four bytes of English or code and per three of dense JSON.
/// One per three is counted, one per two for digits and for bytes beyond ASCII, which split finer.
/// Text made of nothing but random characters can exceed it, which is why counts from here are marked
/// as not exact.
#[must_use]
pub fn upper_bound(text: &str) -> u32 {
    let mut count = Count::default();
    text.chars().for_each(|c| count.add(c));
    count.tokens()
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
    let calls = calls.iter().map(of_call).fold(0, u32::saturating_add);
    let answers = answers.map_or(0, |(id, name)| upper_bound(id).saturating_add(upper_bound(name)));
    PER_MESSAGE.saturating_add(upper_bound(text)).saturating_add(calls).saturating_add(answers)
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
        if c.is_ascii() && !c.is_ascii_digit() {
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
