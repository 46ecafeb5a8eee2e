//! Changes of text files as unified diffs.

use std::time::Duration;

use similar::{Algorithm, TextDiff};

/// Files up to this many bytes are compared line by line.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// After so long a coarser comparison is good enough.
const PATIENCE: Duration = Duration::from_millis(500);

/// The unified diff of two texts; `None` where one is no text.
#[must_use]
pub fn unified(name: &str, old: &[u8], new: &[u8]) -> Option<String> {
    let text = |bytes| std::str::from_utf8(bytes).ok().filter(|text: &&str| !text.contains('\0'));
    let (old, new) = (text(old)?, text(new)?);
    let diff = TextDiff::configure().algorithm(Algorithm::Myers).timeout(PATIENCE).diff_lines(old, new);
    let side = |prefix: char, text: &str| {
        if text.is_empty() { "/dev/null".to_owned() } else { format!("{prefix}/{name}") }
    };
    Some(diff.unified_diff().context_radius(3).header(&side('a', old), &side('b', new)).to_string())
}

/// A name in which nothing but the name is said: a diff is read by its lines.
pub(super) fn plain(name: &str) -> String {
    name.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_compared_by_lines_and_the_rest_is_not() {
        let diff = unified("w/f", b"one\ntwo\nthree\n", b"one\n2\nthree\n").unwrap();
        assert_eq!(diff, "--- a/w/f\n+++ b/w/f\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n");
        assert!(unified("f", b"", b"x").unwrap().contains("--- /dev/null\n+++ b/f\n"));
        assert_eq!(plain("a\u{1b}[2J\n+x"), "a\\u{1b}[2J\\n+x");
        assert_eq!(unified("f", b"a\0", b"b"), None);
        assert_eq!(unified("f", b"a", b"\xff"), None);
    }
}
