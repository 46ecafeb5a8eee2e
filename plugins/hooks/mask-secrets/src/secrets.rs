//! What looks like a secret, and its mask. Each place of a text is looked at a bounded number of times, so that no
//! text makes the hook run into its limits.

const MASK: &str = "[masked]";

/// A key that begins with a word of its own.
struct Key {
    prefix: &'static str,
    /// Characters that must follow, at least.
    length: usize,
    /// What they can be.
    of: fn(u8) -> bool,
}

const KEYS: [Key; 9] = [
    // OpenAI, Anthropic and others after them.
    Key { prefix: "sk-", length: 20, of: is_token },
    Key { prefix: "ghp_", length: 36, of: is_alphanumeric },
    Key { prefix: "gho_", length: 36, of: is_alphanumeric },
    Key { prefix: "ghu_", length: 36, of: is_alphanumeric },
    Key { prefix: "ghs_", length: 36, of: is_alphanumeric },
    Key { prefix: "ghr_", length: 36, of: is_alphanumeric },
    Key { prefix: "github_pat_", length: 22, of: is_token },
    Key { prefix: "AKIA", length: 16, of: is_upper },
    Key { prefix: "ASIA", length: 16, of: is_upper },
];

const PEM_BEGIN: &str = "-----BEGIN ";
const PEM_END: &str = "-----END ";
const PEM_DASHES: &str = "-----";

/// Most bytes between the dashes of a PEM line.
const PEM_LABEL: usize = 64;

/// How each part of a JWT that is an object begins: base64 of `{"`.
const JWT: &str = "eyJ";

/// Fewest characters of a part of a JWT.
const JWT_PART: usize = 10;

/// The text with its secrets masked, if it has any.
pub(crate) fn mask(text: &str) -> Option<String> {
    let mut masked = String::new();
    let (mut at, mut copied) = (0, 0);
    while at < text.len() {
        let Some(end) = secret_at(text, at) else {
            at += 1;
            continue;
        };
        masked.push_str(&text[copied..at]);
        masked.push_str(MASK);
        (at, copied) = (end, end);
    }
    if copied == 0 {
        return None;
    }
    masked.push_str(&text[copied..]);
    Some(masked)
}

/// Where the secret that begins at `at` ends, if one begins there. All that begins or ends one is ASCII, so both are
/// places between characters.
fn secret_at(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes[at] == b'-' {
        return pem(text, at);
    }
    let before = at.checked_sub(1).map(|before| bytes[before]);
    if !bytes[at].is_ascii_alphabetic() || before.is_some_and(is_alphanumeric) {
        return None;
    }
    let end = KEYS.iter().find_map(|key| key.at(bytes, at));
    // A part of one is looked through to its end, so only where no other can have been.
    if end.is_none() && !before.is_some_and(is_token) { jwt(bytes, at) } else { end }
}

impl Key {
    fn at(&self, bytes: &[u8], at: usize) -> Option<usize> {
        let rest = bytes[at..].strip_prefix(self.prefix.as_bytes())?;
        let key = rest.get(..self.length)?;
        if !key.iter().all(|byte| (self.of)(*byte)) || !self.is_random(rest) {
            return None;
        }
        Some(bytes.len() - rest.len() + run(rest, self.of))
    }

    /// Whether it can be a key and not words: `sk-` begins ordinary names too, and those have no digits.
    fn is_random(&self, rest: &[u8]) -> bool {
        self.prefix != "sk-" || rest.iter().take(64).take_while(|byte| is_token(**byte)).any(u8::is_ascii_digit)
    }
}

/// The whole block of a private key; to the end of the text, where its last line is missing.
fn pem(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let label = bytes[at..].strip_prefix(PEM_BEGIN.as_bytes())?;
    let label = &label[..label.len().min(PEM_LABEL)];
    let label = &label[..find(label, PEM_DASHES)?];
    find(label, "PRIVATE KEY")?;
    let Some(last) = text[at..].find(PEM_END).map(|last| at + last + PEM_END.len()) else {
        return Some(text.len());
    };
    let end = text[last..].find(PEM_DASHES).map_or(text.len(), |dashes| last + dashes + PEM_DASHES.len());
    Some(end)
}

fn jwt(bytes: &[u8], at: usize) -> Option<usize> {
    let part = |at: usize, prefix: &str| {
        let part = bytes.get(at..)?;
        let length = run(part, is_token);
        (part.starts_with(prefix.as_bytes()) && length >= JWT_PART).then_some(at + length)
    };
    let dot = |at: usize| (bytes.get(at) == Some(&b'.')).then_some(at + 1);
    let header = part(at, JWT)?;
    let payload = part(dot(header)?, JWT)?;
    part(dot(payload)?, "")
}

/// How many of the first bytes are `of` a kind.
fn run(bytes: &[u8], of: fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|byte| of(**byte)).count()
}

fn find(bytes: &[u8], what: &str) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what.as_bytes())
}

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn is_upper(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(mask(text).as_deref().unwrap_or(text), expected, "{text}");
    }

    /// A made-up key: it is put together here, so that no scanner of sources takes it for one.
    fn key(prefix: &str, length: usize) -> String {
        prefix.chars().chain("A1B2C3D4E5".chars().cycle().take(length)).collect()
    }

    const JWT_LIKE: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlLW9m";

    #[test]
    fn keys_are_masked_and_the_rest_stays() {
        for (prefix, length, least) in [
            ("sk-", 20, 20),
            ("sk-proj-", 60, 15),
            ("ghp_", 36, 36),
            ("github_pat_", 40, 22),
            ("AKIA", 16, 16),
            ("ASIA", 16, 16),
        ] {
            let secret = key(prefix, length);
            check(&format!("key={secret}"), "key=[masked]");
            check(&format!("ü {secret}, \"{secret}\"\nend"), "ü [masked], \"[masked]\"\nend");
            check(&format!("my-{secret}"), "my-[masked]");
            // Within a word it is none, and neither is a short one.
            let inside = format!("x{secret}");
            check(&inside, &inside);
            let short = &secret[..prefix.len() + least - 1];
            check(short, short);
        }
    }

    #[test]
    fn tokens_are_masked() {
        check(&format!("Bearer {JWT_LIKE}"), "Bearer [masked]");
        check(&format!("{{\"jwt\":\"{JWT_LIKE}\"}} {JWT_LIKE}."), "{\"jwt\":\"[masked]\"} [masked].");
        for plain in ["eyJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0", "eyJ.eyJ.x"] {
            check(plain, plain);
        }
    }

    #[test]
    fn private_keys_are_masked_with_their_lines() {
        for label in ["PRIVATE KEY", "RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK"] {
            let block = format!("-----BEGIN {label}-----\nMIIE\n-----END {label}-----");
            check(&format!("a\n{block}\nb\n{block}"), "a\n[masked]\nb\n[masked]");
        }
        check("a -----BEGIN PRIVATE KEY-----\nMIIE and no more", "a [masked]");
        check("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIV", "[masked]");
        let public = "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----";
        check(public, public);
        check("-----BEGIN ", "-----BEGIN ");
    }

    #[test]
    fn ordinary_texts_stay() {
        for plain in [
            "",
            "-",
            "the task-force-of-twenty-five-people met",
            "sk-this-is-a-long-name-of-a-ski-resort",
            "AKIA",
            "ghp_ sk- eyJ",
            "näh: sk-ü",
        ] {
            check(plain, plain);
        }
    }

    #[test]
    fn no_text_takes_long() {
        for piece in ["sk-", "eyJ-", "eyJ.", "-----BEGIN ", "-----BEGIN PRIVATE", "AKIA-", "ghp_"] {
            let text = piece.repeat(400_000 / piece.len());
            let start = std::time::Instant::now();
            check(&text, &text);
            assert!(start.elapsed().as_secs() < 20, "{piece}");
        }
    }
}
