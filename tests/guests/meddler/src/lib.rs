//! Stands at all points and does what the subject tells it to: the word after `meddle:` in any of its texts chooses.
//! What says nothing, or a word that is none, is let through.

#![allow(unconditional_recursion, reason = "that is what one of the words is for")]

use std::hint::black_box;

use agent_os_sdk::{Error, Event, Hook, Point, Result, Subscription, Verdict, log, state};
use serde_json::Value;
use wasip2::cli::environment::get_environment;
use wasip2::clocks::monotonic_clock;
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags};

const HOUR_NS: u64 = 3_600_000_000_000;

struct Meddler;

impl Hook for Meddler {
    fn subscriptions() -> Vec<Subscription> {
        Point::ALL.map(Subscription::at).to_vec()
    }

    fn on_event(event: Event) -> Result<Verdict> {
        let Some(word) = word(&event.subject) else {
            return Ok(Verdict::Allow);
        };
        Ok(match word {
            "deny" => Verdict::deny("meddler says no"),
            "ask" => Verdict::ask("meddler asks"),
            "rewrite" => Verdict::rewrite(&meddled(event.read()?))?,
            "rewrite-invalid" => Verdict::Rewrite(r#"{"nonsense":true}"#.to_owned()),
            "rewrite-nojson" => Verdict::Rewrite("{".to_owned()),
            "big" => Verdict::deny("x".repeat(64 << 20)),
            "files" => Verdict::deny(files()),
            "env" => Verdict::deny(format!("variables: {:?}", get_environment())),
            "count" => {
                state::update("count", |old| Ok((number(old.unwrap_or(b"0"))? + 1).to_string().into_bytes()))?;
                Verdict::Allow
            }
            "log" => {
                log::info("meddled");
                Verdict::Allow
            }
            "sleep" => {
                monotonic_clock::subscribe_duration(HOUR_NS).block();
                Verdict::Allow
            }
            hostile => misbehave(hostile),
        })
    }
}

/// Does not come back, for a word that says so.
fn misbehave(word: &str) -> Verdict {
    match word {
        "loop" => {
            let mut turns = 0_u64;
            loop {
                turns = black_box(turns.wrapping_add(1));
            }
        }
        "trap" => panic!("meddler panicked on purpose"),
        "recurse" => Verdict::deny(deeper(0).to_string()),
        "memory" => {
            let mut blocks: Vec<Vec<u8>> = Vec::new();
            loop {
                blocks.push(black_box(vec![1; 1 << 20]));
            }
        }
        "flood" => {
            let line = "flood ".repeat(200);
            loop {
                log::info(&line);
            }
        }
        "host-loop" => loop {
            // Whatever it answers: the point is to ask.
            let _ = black_box(state::get("key"));
        },
        _ => Verdict::Allow,
    }
}

/// A frame that the compiler can neither drop nor turn into a loop: it is needed after the call.
fn deeper(depth: u64) -> u64 {
    let here = black_box(depth);
    let below = deeper(here + 1);
    black_box(here) ^ below
}

/// The word of the first marker in a subject.
fn word(subject: &str) -> Option<&str> {
    let (_, rest) = subject.split_once("meddle:")?;
    let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(rest.len());
    Some(&rest[..end])
}

/// The subject with the marker replaced in each of its texts.
fn meddled(subject: Value) -> Value {
    match subject {
        Value::String(text) => Value::String(text.replace("meddle:rewrite", "meddled")),
        Value::Array(items) => items.into_iter().map(meddled).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, meddled(value))).collect(),
        other => other,
    }
}

fn number(text: &[u8]) -> Result<u64> {
    let text = String::from_utf8_lossy(text);
    text.parse().map_err(|error| Error::invalid(format!("the counter holds `{text}`: {error}")))
}

/// What of the file system it can get at: each preopened directory, and whether each of its entries can be opened.
fn files() -> String {
    let directories: Vec<String> =
        get_directories().iter().map(|(directory, name)| format!("{name}: {:?}", entries(directory))).collect();
    format!("directories: {directories:?}")
}

fn entries(directory: &Descriptor) -> Vec<String> {
    let stream = match directory.read_directory() {
        Ok(stream) => stream,
        Err(error) => return vec![error.to_string()],
    };
    let mut seen = Vec::new();
    while let Ok(Some(entry)) = stream.read_directory_entry() {
        let opened = directory
            .open_at(PathFlags::empty(), &entry.name, OpenFlags::empty(), DescriptorFlags::READ)
            .map(|_| "opened");
        seen.push(format!("{} {opened:?}", entry.name));
    }
    seen
}

agent_os_sdk::export_hook!(Meddler);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_word_of_a_subject_is_found_in_any_text() {
        for (subject, expected) in [
            (json!({ "name": "fs__read", "arguments": { "path": "a" } }), None),
            (json!({ "task": "please meddle:deny this" }), Some("deny")),
            (json!({ "arguments": { "x": ["meddle:rewrite-invalid"] } }), Some("rewrite-invalid")),
            (json!({ "task": "meddle:nothing" }), Some("nothing")),
        ] {
            assert_eq!(word(&subject.to_string()), expected, "{subject}");
        }
    }

    #[test]
    fn a_rewrite_changes_texts_and_nothing_else() {
        let subject = json!({ "a": ["meddle:rewrite!", 1], "meddle:rewrite": { "b": "x meddle:rewrite y" } });
        assert_eq!(meddled(subject), json!({ "a": ["meddled!", 1], "meddle:rewrite": { "b": "x meddled y" } }));
    }
}
