//! The path of a URL as rules see it. Servers disagree on what `%2e`, `%2f`, `\` and `..;` mean, so a
//! path in which one server may find another path has no plain form, and no glob covers it.

use std::borrow::Cow;

/// How often escapes may be wrapped in escapes before the path is taken for a disguise.
const MAX_DEPTH: usize = 4;

/// The plain form of a URL's path: its escapes undone once. `None` where the path hides another one:
/// a dot segment, or an escape that is a separator, a control character, an escape in turn that is one
/// of these, or no escape at all.
pub(super) fn plain(path: &str) -> Option<String> {
    let once = unescape(path)?;
    let mut seen = once.clone();
    // A server that undoes escapes twice must not find more than one that does it once.
    for _ in 0..MAX_DEPTH {
        if !is_harmless(path, &seen) {
            return None;
        }
        let deeper = unescape(&seen).map(Cow::into_owned);
        match deeper {
            Some(deeper) if deeper != seen => seen = Cow::Owned(deeper),
            _ => return Some(once.into_owned()),
        }
    }
    None
}

/// Whether undoing the escapes of `path` gave nothing that separates or leads up.
fn is_harmless(path: &str, seen: &str) -> bool {
    let is_dots = |segment: &str| {
        // `..;x` is `..` to servers that know parameters of segments.
        let name = segment.split(';').next().unwrap_or_default();
        matches!(name, "." | "..")
    };
    let separators = |text: &str| text.bytes().filter(|b| *b == b'/').count();
    separators(seen) == separators(path)
        && !seen.contains('\\')
        && !seen.chars().any(char::is_control)
        && !seen.split('/').any(is_dots)
}

/// Undoes the %-escapes once; `None` where one is broken or the text is no UTF-8 then.
fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' { digit(rest.next())? << 4 | digit(rest.next())? } else { byte });
    }
    String::from_utf8(bytes).map(Cow::Owned).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_once() {
        for (path, form) in [
            ("/", "/"),
            ("/v1/a.b/..c", "/v1/a.b/..c"),
            ("/%76%31/x", "/v1/x"),
            ("/k%C3%B6ln", "/köln"),
            ("/100%25/x", "/100%/x"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/a//b", "/a//b"),
        ] {
            assert_eq!(plain(path).as_deref(), Some(form), "{path}");
        }
    }

    #[test]
    fn a_path_that_hides_another_one_has_no_plain_form() {
        for path in [
            "/v1/..",
            "/v1/../admin",
            "/v1/%2e%2e/admin",
            "/v1/.%2E/admin",
            "/v1/%2e%2e%2fadmin",
            "/v1%2fadmin",
            "/v1/..%2fadmin",
            "/v1/%252e%252e%252fadmin",
            "/v1%25252fadmin",
            "/v1/..;/admin",
            "/v1/%2e%2e;x/admin",
            "/v1/..%5cadmin",
            "/v1\\admin",
            "/v1/%00",
            "/v1/%0d%0ax",
            "/v1/%zz",
            "/v1/%2",
            "/v1/%ff",
            "/%2525252525252525",
        ] {
            assert_eq!(plain(path), None, "{path}");
        }
    }
}
