//! Where the texts of a JSON document are, without reading the document.

use std::ops::Range;

/// The strings that are values, not keys, within the field `field` of the document's object, each with its quotes.
pub(crate) fn values_of(json: &str, field: &str) -> Vec<Range<usize>> {
    let bytes = json.as_bytes();
    let mut found = Vec::new();
    let (mut at, mut depth, mut within) = (0, 0_usize, false);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                let end = end_of(bytes, at);
                if !is_key(bytes, end) {
                    if within {
                        found.push(at..end);
                    }
                } else if depth == 1 {
                    within = json.get(at + 1..end - 1) == Some(field);
                }
                at = end;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    found
}

/// The place after the string that begins at `start`.
fn end_of(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Whether the string that ends before `end` names a field.
fn is_key(bytes: &[u8], end: usize) -> bool {
    bytes[end..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: &[&str]) {
        let found: Vec<_> = values_of(json, "outcome").into_iter().map(|range| &json[range]).collect();
        assert_eq!(found, expected, "{json}");
    }

    #[test]
    fn values_within_the_field_are_found_and_nothing_else() {
        check(r#"{"call":{"outcome":"x"},"outcome":{"ok":"a"},"fuel":1,"z":"b"}"#, &[r#""a""#]);
        check(r#"{ "outcome" : { "ok" : [ "a", {"k" : "b"}, 1, null ] } }"#, &[r#""a""#, r#""b""#]);
        check(r#"{"outcome":{"ok":{"a\"b":"c\\","d":"\"}"}},"x":"y"}"#, &[r#""c\\""#, r#""\"}""#]);
        check(r#"{"outcome":"ü:","x":[]}"#, &[r#""ü:""#]);
        check(r#"{"x":{"outcome":"a"}}"#, &[]);
    }

    #[test]
    fn what_is_no_json_ends_too() {
        for odd in ["", "\"", "{\"outcome\":\"", "{\"outcome\":\"\\", "]]}}{\"outcome", "\"\\\""] {
            check(odd, &values_of(odd, "outcome").into_iter().map(|range| &odd[range]).collect::<Vec<_>>());
        }
    }
}
