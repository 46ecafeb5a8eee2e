//! The tools of this plugin: each is a struct, whose fields are the arguments. What a model reads of a tool and
//! its arguments are the doc comments.

use std::collections::BTreeMap;

use agent_os_sdk::{CallContext, Effect, Error, Result, Tool};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Counts the words of a text, and tells the most frequent one.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CountWords {
    /// The text; words are what spaces separate.
    text: String,
}

#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct Counted {
    /// How many words there are.
    words: usize,
    /// The word that occurs most often, in lower case; the first in the alphabet of several.
    most_frequent: String,
}

impl Tool for CountWords {
    const NAME: &'static str = "count_words";
    /// What a repeated call does: `Pure`, `ReadOnly`, `Idempotent` or `Destructive`.
    const EFFECT: Effect = Effect::Pure;
    type Output = Counted;

    fn call(self, _: &CallContext) -> Result<Counted> {
        let mut counts = BTreeMap::new();
        for word in self.text.split_whitespace() {
            *counts.entry(word.to_lowercase()).or_insert(0) += 1;
        }
        let words = counts.values().sum();
        // Of equal counts the last one wins: so from the end of the alphabet.
        let most_frequent = counts.into_iter().rev().max_by_key(|(_, count)| *count);
        let (most_frequent, _) = most_frequent.ok_or_else(|| Error::invalid("the text has no words"))?;
        Ok(Counted { words, most_frequent })
    }
}

// Further tools go into the same list.
agent_os_sdk::export_tools!(CountWords);

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> Result<Counted> {
        let context = CallContext { caller: 1, deadline_ms: 0, idempotency_key: String::new() };
        CountWords { text: text.to_owned() }.call(&context)
    }

    #[test]
    fn words_are_counted() {
        assert_eq!(count("to be or not to be").unwrap(), Counted { words: 6, most_frequent: "be".to_owned() });
        assert!(count(" ").is_err());
    }
}
