//! `fs__read`: a window of a text file, cut where characters begin.

use agent_os_sdk::{CallContext, Effect, Error, Result, Tool};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::grant::Grants;
use crate::path::GrantPath;

const DEFAULT_LIMIT: u64 = 64 * 1024;
const MAX_LIMIT: u64 = 1024 * 1024;

/// The longest UTF-8 character, so the smallest window that always holds one.
const LONGEST_CHARACTER: u64 = 4;

/// Reads a text file, or a part of a long one: the result says where to go on.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Read {
    /// The file, for example `docs/readme.md`; it begins with the name of a granted directory.
    path: String,
    /// The byte to begin at; 0 when absent.
    offset: Option<u64>,
    /// The most bytes to read; 65536 when absent, at most 1048576.
    limit: Option<u64>,
}

/// A part of a file.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct Part {
    text: String,
    /// Where the text begins in the file, in bytes.
    offset: u64,
    /// The text's length in bytes.
    bytes: u64,
    /// The file's size in bytes.
    size: u64,
    /// Whether the file goes on after the text.
    truncated: bool,
    /// Where to go on, when it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_offset: Option<u64>,
}

impl Tool for Read {
    const NAME: &'static str = "read";
    const EFFECT: Effect = Effect::ReadOnly;
    type Output = Part;

    fn call(self, _: &CallContext) -> Result<Part> {
        let path = GrantPath::parse_within(&self.path)?;
        let grants = Grants::of_this_call();
        let grant = grants.find(&path)?;
        let (file, size) = grant.open(&path)?;
        let offset = self.offset.unwrap_or(0);
        if offset > size {
            return Err(Error::invalid(format!("offset {offset} is past the end of `{path}`, which has {size} bytes")));
        }
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT).clamp(LONGEST_CHARACTER, MAX_LIMIT);
        let bytes = grant.read(&path, &file, offset, limit)?;
        part(&bytes, offset, size).ok_or_else(|| {
            Error::invalid(format!(
                "`{path}` is not UTF-8 text but binary data of {size} bytes; it cannot be read here"
            ))
        })
    }
}

/// Makes the answer of the bytes at `offset`, or `None` when they are not text.
fn part(bytes: &[u8], offset: u64, size: u64) -> Option<Part> {
    // An offset amid a character moves to the next one.
    let skipped = if offset == 0 { 0 } else { bytes.iter().take(3).take_while(|byte| is_continuation(**byte)).count() };
    let rest = &bytes[skipped..];
    let text = match std::str::from_utf8(rest) {
        Ok(text) => text,
        // No `error_len`: the window ends amid a character. At the file's end there is no more of it to come.
        Err(error) if error.error_len().is_none() && offset + (bytes.len() as u64) < size => {
            std::str::from_utf8(&rest[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if text.contains('\0') {
        return None;
    }
    let (begin, length) = (offset + skipped as u64, text.len() as u64);
    let next = begin + length;
    let truncated = next < size;
    Some(Part {
        text: text.to_owned(),
        offset: begin,
        bytes: length,
        size,
        truncated,
        next_offset: truncated.then_some(next),
    })
}

fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_any_size_give_the_whole_text_back() {
        let text = "añ€🙂\nz".repeat(20);
        for limit in 4..40 {
            let (mut offset, mut read) = (0, String::new());
            loop {
                let end = (offset + limit).min(text.len());
                let part = part(&text.as_bytes()[offset..end], offset as u64, text.len() as u64).unwrap();
                read.push_str(&part.text);
                let Some(next) = part.next_offset else { break };
                assert!(next > offset as u64, "no progress at {offset} with {limit}");
                offset = usize::try_from(next).unwrap();
            }
            assert_eq!(read, text, "limit {limit}");
        }
    }

    #[test]
    fn an_offset_amid_a_character_moves_to_the_next() {
        let bytes = "€x".as_bytes();
        for offset in 1..3 {
            let part = part(&bytes[offset..], offset as u64, 4).unwrap();
            assert_eq!((part.text.as_str(), part.offset, part.truncated), ("x", 3, false));
        }
    }

    #[test]
    fn binary_data_is_no_text() {
        assert_eq!(part(b"\xff\xfe\0", 0, 3), None);
        assert_eq!(part(b"a\0b", 0, 3), None);
        assert_eq!(part("€".as_bytes().split_last().unwrap().1, 0, 2), None, "the file ends amid a character");
        assert_eq!(part(b"", 0, 0).unwrap().text, "");
    }
}
