//! Whether an answer stands on what the tools really returned. It reads the kernel's own event lines
//! and knows nothing about models.

use std::collections::BTreeSet;

use serde_json::Value;

/// What a run's events say about its answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The answer gives the figures that were asked for as the tools returned them, and no other figure.
    Right {
        /// Tool calls that returned a result.
        calls: usize,
        /// The figures.
        figures: Vec<String>,
    },
    /// It does not.
    Wrong {
        /// Figures that the tools returned for what was asked and the answer lacks.
        missing: Vec<String>,
        /// Figures of the answer that are none of those.
        invented: Vec<String>,
    },
    /// The tools returned no figure about what was asked, so the answer cannot stand on one.
    NothingRead,
    /// The run ended without an answer.
    NoAnswer {
        /// The kernel's reason.
        why: String,
    },
}

/// Judges the events of `aok run --json` on `task`, which names a thing: the truth is what the tools
/// returned on lines of the form `THING: figures`.
pub(crate) fn judge(events: &[Value], task: &str) -> Verdict {
    let task = task.to_lowercase();
    let words: BTreeSet<&str> = task.split(|c: char| !c.is_alphabetic()).collect();
    let exit = events.iter().rev().find(|event| event["type"] == "exit");
    let Some(answer) = exit.and_then(|event| event["answer"].as_str()) else {
        let why = exit.and_then(|event| event["message"].as_str()).unwrap_or("there is no exit event");
        return Verdict::NoAnswer { why: why.to_owned() };
    };
    let results: Vec<String> = events
        .iter()
        .filter(|event| event["type"] == "tool_end" && event["ok"] == true)
        .map(|event| text(&event["result"]))
        .collect();
    let truth: BTreeSet<String> =
        results.iter().flat_map(|result| result.lines()).flat_map(|line| facts(line, &words)).collect();
    if truth.is_empty() {
        return Verdict::NothingRead;
    }
    let stated = numbers(answer);
    if stated == truth {
        return Verdict::Right { calls: results.len(), figures: stated.into_iter().collect() };
    }
    Verdict::Wrong {
        missing: truth.difference(&stated).cloned().collect(),
        invented: stated.difference(&truth).cloned().collect(),
    }
}

/// What can be said of an answer about files that this program knows nothing of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Support {
    /// Each figure of the answer stands in a tool's result, or in the task.
    Found {
        /// Tool calls that returned a result.
        calls: usize,
        /// The figures.
        figures: Vec<String>,
    },
    /// Some do not.
    Missing {
        /// Tool calls that returned a result.
        calls: usize,
        /// Figures that no tool returned.
        invented: Vec<String>,
    },
    /// The answer has no figure.
    NoFigures {
        /// Tool calls that returned a result.
        calls: usize,
    },
    /// The run ended without an answer.
    NoAnswer {
        /// The kernel's reason.
        why: String,
    },
}

/// Holds the figures of an answer against everything that the tools returned.
pub(crate) fn support(events: &[Value], task: &str) -> Support {
    let exit = events.iter().rev().find(|event| event["type"] == "exit");
    let Some(answer) = exit.and_then(|event| event["answer"].as_str()) else {
        let why = exit.and_then(|event| event["message"].as_str()).unwrap_or("there is no exit event");
        return Support::NoAnswer { why: why.to_owned() };
    };
    let good = events.iter().filter(|event| event["type"] == "tool_end" && event["ok"] == true);
    let results: Vec<String> = good.map(|event| text(&event["result"])).collect();
    let calls = results.len();
    let stated = numbers(answer);
    let known: BTreeSet<String> = results.iter().flat_map(|r| numbers(r)).chain(numbers(task)).collect();
    let invented: Vec<String> = stated.difference(&known).cloned().collect();
    match (stated.is_empty(), invented.is_empty()) {
        (true, _) => Support::NoFigures { calls },
        (_, true) => Support::Found { calls, figures: stated.into_iter().collect() },
        _ => Support::Missing { calls, invented },
    }
}

/// The numbers after `WORD:` in a line, for a word that stands by itself; none where it is prose.
fn facts(line: &str, words: &BTreeSet<&str>) -> BTreeSet<String> {
    let line = line.to_lowercase();
    let named = line.match_indices(':').find(|(at, _)| {
        let word = line[..*at].rsplit(char::is_whitespace).next().unwrap_or("");
        !word.is_empty() && words.contains(word)
    });
    named.map(|(at, _)| numbers(&line[at..])).unwrap_or_default()
}

/// Everything that a result says, without JSON's quotes and escapes (`\n7` would hide the 7).
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join("\n"),
        Value::Object(fields) => fields.values().map(text).collect::<Vec<_>>().join("\n"),
        other => other.to_string(),
    }
}

/// The numbers of a text in one spelling: no thousands separators, no empty decimals. Digits inside a
/// word (`q3`, `sha256`) are no number.
pub(crate) fn numbers(text: &str) -> BTreeSet<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = BTreeSet::new();
    let mut i = 0;
    while i < chars.len() {
        if !chars[i].is_ascii_digit() || i > 0 && (chars[i - 1].is_alphanumeric() || chars[i - 1] == '_') {
            i += 1;
            continue;
        }
        let start = i;
        while i < chars.len() && (chars[i].is_ascii_digit() || continues(&chars, i)) {
            i += 1;
        }
        if !chars.get(i).is_some_and(|next| next.is_alphabetic() || *next == '_') {
            found.insert(spelled(&chars[start..i]));
        }
    }
    found
}

/// Whether the separator at `at` stands inside a number: a decimal point, or a comma before exactly
/// three digits.
fn continues(chars: &[char], at: usize) -> bool {
    let digits = chars[at + 1..].iter().take_while(|c| c.is_ascii_digit()).count();
    match chars[at] {
        '.' => digits > 0,
        ',' => digits == 3,
        _ => false,
    }
}

fn spelled(digits: &[char]) -> String {
    let plain: String = digits.iter().filter(|c| **c != ',').collect();
    match plain.split_once('.') {
        Some((whole, fraction)) if fraction.chars().all(|c| c == '0') => whole.to_owned(),
        Some((whole, fraction)) if !fraction.contains('.') => format!("{whole}.{}", fraction.trim_end_matches('0')),
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TASK: &str = "How many mugs are in shop/stock.txt, and what does one mug cost in shop/prices.txt?";

    fn ask_about_mugs(results: &[Value], answer: &str) -> Verdict {
        let mut events: Vec<Value> =
            results.iter().map(|result| json!({"type": "tool_end", "ok": true, "result": result})).collect();
        events.push(json!({"type": "exit", "status": "success", "answer": answer}));
        judge(&events, TASK)
    }

    fn wrong(missing: &[&str], invented: &[&str]) -> Verdict {
        let owned = |figures: &[&str]| figures.iter().map(|&figure| figure.to_owned()).collect();
        Verdict::Wrong { missing: owned(missing), invented: owned(invented) }
    }

    #[test]
    fn an_answer_is_held_against_the_tool_results() {
        let stock = json!({"text": "Order mugs when fewer than 30 are left.\nmugs: 1240\nteapots: 7\n"});
        let prices = json!({"matches": [{"line": 1, "text": "shop/prices.txt:3: mugs: 8.50 each"}]});
        let both = [stock, prices];
        assert_eq!(
            ask_about_mugs(&both, "There are 1,240 mugs at 8.5."),
            Verdict::Right { calls: 2, figures: vec!["1240".to_owned(), "8.5".to_owned()] }
        );
        assert_eq!(ask_about_mugs(&both, "There are 8.50 mugs at 8.50."), wrong(&["1240"], &[]));
        assert_eq!(ask_about_mugs(&both, "1240 mugs at 8.50, 7 teapots"), wrong(&[], &["7"]));
        assert_eq!(ask_about_mugs(&both, "There are many mugs."), wrong(&["1240", "8.5"], &[]));
        assert_eq!(ask_about_mugs(&[], "1240"), Verdict::NothingRead);
    }

    #[test]
    fn an_answer_about_unknown_files_is_supported_or_not() {
        let ask = |result: Value, answer: &str| {
            let events =
                [json!({"type": "tool_end", "ok": true, "result": result}), json!({"type": "exit", "answer": answer})];
            support(&events, "Name 3 of them.")
        };
        let listing = json!({"entries": [{"name": "a.txt", "size": 120}, {"name": "b.txt", "size": 7}]});
        assert_eq!(
            ask(listing.clone(), "3 files; a.txt has 120 bytes"),
            Support::Found { calls: 1, figures: vec!["120".to_owned(), "3".to_owned()] }
        );
        assert_eq!(
            ask(listing.clone(), "a.txt has 121"),
            Support::Missing { calls: 1, invented: vec!["121".to_owned()] }
        );
        assert_eq!(ask(listing, "two files"), Support::NoFigures { calls: 1 });
        assert!(matches!(support(&[], ""), Support::NoAnswer { .. }));
    }

    #[test]
    fn failed_calls_support_nothing() {
        let events = [
            json!({"type": "tool_end", "ok": false, "error": {"code": "not-found", "message": "mugs: 7"}}),
            json!({"type": "exit", "status": "success", "answer": "7"}),
        ];
        assert_eq!(judge(&events, TASK), Verdict::NothingRead);
    }

    #[test]
    fn a_run_without_an_answer_says_why() {
        let events = [json!({"type": "exit", "status": "over-quota", "message": "tokens"})];
        assert_eq!(judge(&events, TASK), Verdict::NoAnswer { why: "tokens".to_owned() });
        assert_eq!(judge(&[], TASK), Verdict::NoAnswer { why: "there is no exit event".to_owned() });
    }

    #[test]
    fn numbers_have_one_spelling() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(numbers(text).into_iter().collect::<Vec<_>>(), expected, "{text}");
        };
        check("1,240 or 1240.00", &["1240"]);
        check("8.50.", &["8.5"]);
        check("1, 2,3", &["1", "2", "3"]);
        check("q3 sha256 7th x_9", &[]);
        check("3.14\n2", &["2", "3.14"]);
        check("", &[]);
    }
}
