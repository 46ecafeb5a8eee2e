//! Notices when an agent goes in circles: the same calls with the same results, over and over.
//!
//! A turn counts by what was called and what came of it, errors included; the ids that the model gives its calls
//! do not count. Results matter, since polling something that changes is no circle.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use agent_os_sdk::step::Called;

/// How often a cycle must follow itself before it counts as a circle.
const ROUNDS: usize = 3;

/// The longest cycle that is looked for: A, B, C, D, A, B, C, D …
const MAX_PERIOD: usize = 4;

/// The last turns of an agent.
#[derive(Default)]
pub(crate) struct Circles {
    turns: VecDeque<Turn>,
}

struct Turn {
    fingerprint: u64,
    summary: String,
}

impl Circles {
    /// Takes note of a turn; when it closes a circle, says what was repeated.
    pub(crate) fn after(&mut self, called: &[Called]) -> Option<String> {
        if self.turns.len() == ROUNDS * MAX_PERIOD {
            self.turns.pop_front();
        }
        self.turns.push_back(Turn { fingerprint: fingerprint(called), summary: summary(called) });
        let period = (1..=MAX_PERIOD).find(|period| self.repeats_every(*period))?;
        let cycle = self.turns.iter().skip(self.turns.len() - period);
        let cycle: Vec<_> = cycle.map(|turn| turn.summary.as_str()).collect();
        Some(format!("{ROUNDS} times in a row, with the same results: {}", cycle.join(", then ")))
    }

    /// Whether the last `ROUNDS` × `period` turns are one cycle of that length, repeated.
    fn repeats_every(&self, period: usize) -> bool {
        let Some(first) = self.turns.len().checked_sub(ROUNDS * period) else {
            return false;
        };
        (first + period..self.turns.len())
            .all(|turn| self.turns[turn].fingerprint == self.turns[turn - period].fingerprint)
    }
}

/// `DefaultHasher::new` has fixed keys, so that a replayed run decides alike.
fn fingerprint(called: &[Called]) -> u64 {
    let mut hasher = DefaultHasher::new();
    called.len().hash(&mut hasher);
    for Called { call, content } in called {
        (&call.name, &call.arguments).hash(&mut hasher);
        match content {
            Ok(result) => (true, result).hash(&mut hasher),
            Err(error) => (false, &error.message).hash(&mut hasher),
        }
    }
    hasher.finish()
}

/// The calls as a person reads them, with the error where there was one.
fn summary(called: &[Called]) -> String {
    let mut text = String::new();
    for Called { call, content } in called {
        if !text.is_empty() {
            text.push_str(" and ");
        }
        let _ = write!(text, "{}({})", call.name, short(&call.arguments));
        if let Err(error) = content {
            let _ = write!(text, ", which failed: {}", short(&error.message));
        }
    }
    text
}

fn short(text: &str) -> String {
    const LONGEST: usize = 160;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_os_sdk::{Error, tools};

    fn turn(name: &str, arguments: &str, result: Result<&str, &str>, id: usize) -> Vec<Called> {
        vec![Called { call: call(name, arguments, id), content: result.map(str::to_owned).map_err(Error::io) }]
    }

    fn call(name: &str, arguments: &str, id: usize) -> tools::ToolCall {
        tools::ToolCall { id: id.to_string(), name: name.to_owned(), arguments: arguments.to_owned() }
    }

    /// The turn, counted from 1, at which `names` is called a circle. Each name is a turn; `!` marks a failing one.
    fn stops_at(names: &[&str]) -> Option<usize> {
        let mut circles = Circles::default();
        names
            .iter()
            .enumerate()
            .position(|(id, name)| {
                let result = if name.starts_with('!') { Err("broken") } else { Ok("1") };
                circles.after(&turn(name, "{}", result, id)).is_some()
            })
            .map(|index| index + 1)
    }

    #[test]
    fn three_equal_turns_are_a_circle_whatever_their_ids() {
        assert_eq!(stops_at(&["a", "a", "a"]), Some(3));
        assert_eq!(stops_at(&["b", "a", "a", "b", "a", "a", "a"]), Some(7));
        assert_eq!(stops_at(&["!a", "!a", "!a"]), Some(3));
    }

    #[test]
    fn cycles_are_circles_too() {
        assert_eq!(stops_at(&["a", "b", "a", "b", "a", "b"]), Some(6));
        assert_eq!(stops_at(&["x", "a", "!b", "a", "!b", "a", "!b"]), Some(7));
        assert_eq!(stops_at(&["a", "b", "c", "a", "b", "c", "a", "b", "c"]), Some(9));
        assert_eq!(stops_at(&["a", "b", "c", "d", "a", "b", "c", "d", "a", "b", "c", "d"]), Some(12));
    }

    #[test]
    fn progress_is_no_circle() {
        assert_eq!(stops_at(&["a", "b", "a", "c", "a", "d", "a", "b", "a", "c"]), None);
        let mut circles = Circles::default();
        for count in 0..50 {
            assert_eq!(circles.after(&turn("poll", "{}", Ok(&count.to_string()), 1)), None);
            assert_eq!(circles.after(&turn("read", &format!("{{\"offset\":{count}}}"), Ok("same"), 1)), None);
        }
        assert!(circles.turns.len() <= ROUNDS * MAX_PERIOD);
    }

    #[test]
    fn the_report_names_calls_and_failures() {
        let mut circles = Circles::default();
        let report = (0..3).find_map(|id| circles.after(&turn("fs__read", r#"{"path":"x"}"#, Err("no file x"), id)));
        assert_eq!(
            report.unwrap(),
            r#"3 times in a row, with the same results: fs__read({"path":"x"}), which failed: no file x"#
        );
    }
}
