//! `fs__search`: lines that match, in a file or below a directory.

use agent_os_sdk::{CallContext, Effect, Result, Tool};
use regex_lite::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::grant::{Grants, Kind};
use crate::path::{GrantPath, Within};

const MAX_MATCHES: usize = 200;
const MAX_FILE: u64 = 4 * 1024 * 1024;
const MAX_FILES: usize = 20_000;
const MAX_SKIPPED: usize = 50;
/// Longest line that a match shows, in characters.
const MAX_LINE: usize = 300;

/// Searches the lines of a file, or of all files below a directory, for a regular expression. A pattern that is not
/// a valid one is searched for as plain text. Leaves out `.git`, symbolic links and binary files.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Search {
    /// The file or directory, beginning with the name of a granted directory; `.` searches all granted ones.
    path: String,
    /// A regular expression, for example `fn \w+_test` or `(?i)error`.
    pattern: String,
}

/// What was found.
#[derive(Default, Serialize, JsonSchema)]
pub(crate) struct Found {
    matches: Vec<Match>,
    files_searched: usize,
    /// Files that were left out though they were asked for, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<Skipped>,
    /// Whether there may be more than is given here; a narrower path or pattern finds it.
    truncated: bool,
}

#[derive(Serialize, JsonSchema)]
struct Match {
    path: String,
    /// Counted from 1.
    line: usize,
    text: String,
}

#[derive(Serialize, JsonSchema)]
struct Skipped {
    path: String,
    reason: String,
}

impl Tool for Search {
    const NAME: &'static str = "search";
    const EFFECT: Effect = Effect::ReadOnly;
    type Output = Found;

    fn call(self, _: &CallContext) -> Result<Found> {
        let grants = Grants::of_this_call();
        let pattern = Pattern::new(&self.pattern);
        let mut found = Found::default();
        match GrantPath::parse(&self.path)? {
            GrantPath::Root => {
                for path in grants.paths()? {
                    found.below(&grants, path, &pattern)?;
                }
            }
            GrantPath::Within(path) if is_directory(&grants, &path)? => found.below(&grants, path, &pattern)?,
            GrantPath::Within(path) => found.in_file(&grants, &path, &pattern)?,
        }
        Ok(found)
    }
}

fn is_directory(grants: &Grants, path: &Within) -> Result<bool> {
    Ok(Kind::from(grants.find(path)?.stat(path)?.type_) == Kind::Directory)
}

impl Found {
    /// Searches everything below a directory, in the order of the names. A directory or file that cannot be read
    /// is named and does not end the search.
    fn below(&mut self, grants: &Grants, directory: Within, pattern: &Pattern) -> Result<()> {
        let grant = grants.find(&directory)?;
        let mut open = vec![(directory, Kind::Directory)];
        while let Some((path, kind)) = open.pop() {
            if self.is_full() {
                self.truncated = true;
                return Ok(());
            }
            if kind == Kind::File {
                self.in_file(grants, &path, pattern).unwrap_or_else(|error| self.skip(&path, error.message));
                continue;
            }
            match grant.entries(&path) {
                // The last is taken up first.
                Ok(entries) => open.extend(entries.iter().rev().filter_map(|entry| {
                    let wanted = match entry.kind {
                        Kind::File => true,
                        Kind::Directory => entry.name != ".git",
                        Kind::Link | Kind::Other => false,
                    };
                    wanted.then(|| (path.child(&entry.name), entry.kind))
                })),
                Err(error) => self.skip(&path, error.message),
            }
        }
        Ok(())
    }

    fn in_file(&mut self, grants: &Grants, path: &Within, pattern: &Pattern) -> Result<()> {
        let grant = grants.find(path)?;
        let (file, size) = grant.open(path)?;
        if size > MAX_FILE {
            self.skip(path, format!("{size} bytes, over the limit of {MAX_FILE} of a search"));
            return Ok(());
        }
        let bytes = grant.read(path, &file, 0, MAX_FILE)?;
        self.files_searched += 1;
        if let Some(text) = std::str::from_utf8(&bytes).ok().filter(|text| !text.contains('\0')) {
            self.in_text(&path.to_string(), text, pattern);
        }
        Ok(())
    }

    fn in_text(&mut self, path: &str, text: &str, pattern: &Pattern) {
        // Most files have no match: one pass over the whole is much cheaper than one per line.
        if !pattern.may_match(text) {
            return;
        }
        for (number, line) in text.lines().enumerate() {
            if pattern.matches(line) {
                if self.matches.len() == MAX_MATCHES {
                    self.truncated = true;
                    return;
                }
                self.matches.push(Match { path: path.to_owned(), line: number + 1, text: shortened(line) });
            }
        }
    }

    fn is_full(&self) -> bool {
        self.truncated || self.files_searched >= MAX_FILES
    }

    fn skip(&mut self, path: &Within, reason: String) {
        if self.skipped.len() < MAX_SKIPPED {
            self.skipped.push(Skipped { path: path.to_string(), reason });
        } else {
            self.truncated = true;
        }
    }
}

fn shortened(line: &str) -> String {
    let line = line.trim_end();
    match line.char_indices().nth(MAX_LINE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

enum Pattern {
    Text(String),
    Regex(Regex),
}

impl Pattern {
    fn new(pattern: &str) -> Self {
        let is_plain = !pattern.contains(['\\', '.', '+', '*', '?', '(', ')', '|', '[', ']', '{', '}', '^', '$']);
        match Regex::new(pattern) {
            Ok(regex) if !is_plain => Self::Regex(regex),
            _ => Self::Text(pattern.to_owned()),
        }
    }

    /// Whether some line of `text` may match; never false when one does.
    fn may_match(&self, text: &str) -> bool {
        match self {
            Self::Text(wanted) => text.contains(wanted.as_str()),
            // `^` and `$` mean a line's ends there and the text's here, so the text as a whole tells nothing.
            Self::Regex(_) => true,
        }
    }

    fn matches(&self, line: &str) -> bool {
        match self {
            Self::Text(wanted) => line.contains(wanted.as_str()),
            Self::Regex(regex) => regex.is_match(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pattern: &str, text: &str) -> Vec<usize> {
        let mut found = Found::default();
        found.in_text("docs/x", text, &Pattern::new(pattern));
        found.matches.iter().map(|found| found.line).collect()
    }

    #[test]
    fn regular_expressions_and_plain_text() {
        let text = "one\ntwo (2)\nthree\r\nfour";
        assert_eq!(lines("t", text), [2, 3]);
        assert_eq!(lines("^t.*e$", text), [3]);
        assert_eq!(lines("(?i)ONE|four", text), [1, 4]);
        assert_eq!(lines("(2", text), [2], "not a regular expression, so it is text");
        assert_eq!(lines("", text), [1, 2, 3, 4]);
        assert_eq!(lines("five", text), [0; 0]);
    }

    #[test]
    fn matches_and_lines_are_capped() {
        let mut found = Found::default();
        found.in_text("docs/x", &"x\n".repeat(MAX_MATCHES), &Pattern::new("x"));
        assert_eq!((found.matches.len(), found.truncated), (MAX_MATCHES, false));
        found.in_text("docs/y", "x", &Pattern::new("x"));
        assert_eq!((found.matches.len(), found.truncated), (MAX_MATCHES, true));
        assert_eq!(shortened(&"é".repeat(400)).chars().count(), MAX_LINE + 1);
    }
}
