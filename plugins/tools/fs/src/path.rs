//! Paths as models write them: `GRANT/rest`, always with `/`, `.` and `..` taken out by their text.

use agent_os_sdk::{Error, Result};

/// A path of a call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum GrantPath {
    /// `.` or nothing: what lies above the granted directories.
    Root,
    /// Something in a granted directory, or that directory.
    Within(Within),
}

/// A path below a granted directory's name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Within {
    /// The granted directory's name.
    pub(crate) grant: String,
    /// What follows it, `.` for the directory itself.
    pub(crate) rest: String,
}

impl GrantPath {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.contains('\0') {
            return Err(Error::invalid(format!("the path {text:?} contains a NUL character")));
        }
        if text.starts_with('/') {
            return Err(Error::denied(format!(
                "`{text}` is absolute; a path begins with the name of a granted directory, and `.` lists those"
            )));
        }
        let mut parts = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.pop().is_none() => {
                    return Err(Error::denied(format!(
                        "`{text}` leads out of the granted directories with `..`; the path `.` lists what is granted"
                    )));
                }
                ".." => {}
                part => parts.push(part),
            }
        }
        match parts.split_first() {
            None => Ok(Self::Root),
            Some((grant, [])) => Ok(Self::Within(Within { grant: (*grant).to_owned(), rest: ".".to_owned() })),
            Some((grant, rest)) => Ok(Self::Within(Within { grant: (*grant).to_owned(), rest: rest.join("/") })),
        }
    }

    /// The path of one file or directory; `.` is none.
    pub(crate) fn parse_within(text: &str) -> Result<Within> {
        match Self::parse(text)? {
            Self::Within(within) => Ok(within),
            Self::Root => Err(Error::invalid(format!(
                "`{text}` names no file; a path is GRANTED_DIRECTORY/FILE, and the path `.` lists what is granted"
            ))),
        }
    }
}

impl Within {
    /// The path of `name` in this directory.
    pub(crate) fn child(&self, name: &str) -> Self {
        let rest = if self.rest == "." { name.to_owned() } else { format!("{}/{name}", self.rest) };
        Self { grant: self.grant.clone(), rest }
    }

    /// The paths of the directories above it within the grant, outermost first.
    pub(crate) fn parents(&self) -> impl Iterator<Item = &str> {
        self.rest.match_indices('/').map(|(end, _)| &self.rest[..end])
    }
}

impl std::fmt::Display for Within {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.rest == "." { f.write_str(&self.grant) } else { write!(f, "{}/{}", self.grant, self.rest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_os_sdk::Errno;

    fn parsed(text: &str) -> String {
        match GrantPath::parse(text) {
            Ok(GrantPath::Root) => "root".to_owned(),
            Ok(GrantPath::Within(within)) => format!("{}|{}", within.grant, within.rest),
            Err(error) => format!("{:?}", error.code),
        }
    }

    #[test]
    fn paths_begin_with_a_grant() {
        for (text, expected) in [
            ("", "root"),
            (".", "root"),
            ("./", "root"),
            ("docs", "docs|."),
            ("docs/", "docs|."),
            ("./docs//a/./b.md", "docs|a/b.md"),
            ("docs/a/../b.md", "docs|b.md"),
            ("docs/..", "root"),
            ("docs/../secret/x", "secret|x"),
            ("docs/..x", "docs|..x"),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn what_leads_outside_is_refused() {
        for (text, code) in [
            ("/etc/passwd", Errno::Denied),
            ("..", Errno::Denied),
            ("../x", Errno::Denied),
            ("docs/../../x", Errno::Denied),
            ("docs/\0", Errno::Invalid),
        ] {
            assert_eq!(parsed(text), format!("{code:?}"), "{text}");
        }
        assert_eq!(GrantPath::parse_within("docs/..").unwrap_err().code, Errno::Invalid);
    }

    #[test]
    fn children_and_parents() {
        let docs = GrantPath::parse_within("docs").unwrap();
        let file = docs.child("a").child("b").child("c.md");
        assert_eq!(file.to_string(), "docs/a/b/c.md");
        assert_eq!(file.parents().collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(docs.child("x").parents().count(), 0);
        assert_eq!(docs.to_string(), "docs");
    }
}
