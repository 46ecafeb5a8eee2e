//! Tool calls out of the pieces in which they stream.

use serde_json::Value;

use crate::abi::ToolCall;
use crate::config::ProviderKind;

/// Puts streamed pieces of calls together. genai gives pieces of arguments on OpenAI's wire and the
/// arguments so far on Anthropic's.
pub(super) struct Calls {
    kind: ProviderKind,
    pub(super) made: Vec<ToolCall>,
}

impl Calls {
    pub(super) fn new(kind: ProviderKind) -> Self {
        Self { kind, made: Vec::new() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.made.iter().map(|c| c.arguments.len() + c.name.len() + c.id.len()).sum()
    }

    pub(super) fn add(&mut self, piece: genai::chat::ToolCall) {
        let arguments = match piece.fn_arguments {
            Value::String(text) => text,
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let same_id = self.made.iter().rposition(|c| c.id == piece.call_id);
        if self.kind == ProviderKind::Anthropic {
            match same_id {
                Some(at) => self.made[at].arguments = arguments,
                None => self.made.push(ToolCall { id: piece.call_id, name: piece.fn_name, arguments }),
            }
            return;
        }
        let at = if piece.fn_name.is_empty() {
            // A later piece: it has its call's place, which genai spells `call_PLACE` where no id is given.
            let place = piece.call_id.strip_prefix("call_").and_then(|n| n.parse::<usize>().ok());
            same_id.or(place.filter(|p| *p < self.made.len())).or(self.made.len().checked_sub(1))
        } else {
            // Some servers repeat id and name with each piece, some give whole calls one id.
            same_id.filter(|at| serde_json::from_str::<Value>(&self.made[*at].arguments).is_err())
        };
        match at {
            Some(at) => self.made[at].arguments.push_str(&arguments),
            None => self.made.push(ToolCall { id: piece.call_id, name: piece.fn_name, arguments }),
        }
    }
}

/// Calls with an id each: one that is missing or stands twice is replaced. Empty arguments are `{}`.
pub(super) fn with_ids(mut calls: Vec<ToolCall>, index: u64) -> Vec<ToolCall> {
    for at in 0..calls.len() {
        let (before, rest) = calls.split_at_mut(at);
        let call = &mut rest[0];
        if call.id.is_empty() || before.iter().any(|c| c.id == call.id) {
            call.id = format!("call_{index}_{}", at + 1);
        }
        if call.arguments.trim().is_empty() {
            call.arguments = "{}".to_owned();
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(id: &str, name: &str, arguments: &str) -> genai::chat::ToolCall {
        genai::chat::ToolCall {
            call_id: id.to_owned(),
            fn_name: name.to_owned(),
            fn_arguments: Value::String(arguments.to_owned()),
            thought_signatures: None,
        }
    }

    fn put_together(kind: ProviderKind, pieces: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
        let mut calls = Calls::new(kind);
        pieces.iter().for_each(|(id, name, arguments)| calls.add(piece(id, name, arguments)));
        with_ids(calls.made, 3).into_iter().map(|c| (c.id, c.name, c.arguments)).collect()
    }

    fn call(id: &str, name: &str, arguments: &str) -> (String, String, String) {
        (id.to_owned(), name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn pieces_of_calls_find_each_other() {
        use ProviderKind::{Anthropic, Openai};
        let two = [("x", "a", "{\"n\""), ("call_0", "", ":1}"), ("y", "b", ""), ("call_1", "", "{}")];
        assert_eq!(put_together(Openai, &two), [call("x", "a", "{\"n\":1}"), call("y", "b", "{}")]);
        let interleaved = [("x", "a", ""), ("y", "b", ""), ("call_1", "", "{\"k\":2}"), ("call_0", "", "{}")];
        assert_eq!(put_together(Openai, &interleaved), [call("x", "a", "{}"), call("y", "b", "{\"k\":2}")]);
        let repeated = [("x", "a", "{\"n\""), ("x", "a", ":1}")];
        assert_eq!(put_together(Openai, &repeated), [call("x", "a", "{\"n\":1}")]);
        let one_id = [("call_0", "a", "{\"n\":1}"), ("call_0", "a", "{\"n\":2}")];
        assert_eq!(
            put_together(Openai, &one_id),
            [call("call_0", "a", "{\"n\":1}"), call("call_3_2", "a", "{\"n\":2}")]
        );
        let nameless = [("call_9", "", "{}")];
        assert_eq!(put_together(Openai, &nameless), [call("call_9", "", "{}")]);
        let so_far = [("x", "a", ""), ("x", "a", "{\"n\""), ("x", "a", "{\"n\":1}"), ("y", "b", "")];
        assert_eq!(put_together(Anthropic, &so_far), [call("x", "a", "{\"n\":1}"), call("y", "b", "{}")]);
    }
}
