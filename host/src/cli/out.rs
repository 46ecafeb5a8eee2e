//! Where a command's output goes: the result on stdout, everything else on stderr, for people or as
//! JSON, from one value.

use std::io::{self, IsTerminal as _, Write};

use console::Term;
use futures_util::stream::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::error::Error;
use super::format::{cut, harmless};
use crate::server::Lines;
use crate::server::error::ApiError;

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// Text, from the left.
    Left(&'static str),
    /// Numbers, to the right.
    Right(&'static str),
}

/// A command's output.
pub(super) struct Out {
    /// JSON lines, not text for people.
    pub(super) json: bool,
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
    /// Columns of the terminal that stdout is; `None` where it is none.
    stdout_width: Option<usize>,
    /// The same of stderr.
    pub(super) stderr_width: Option<usize>,
}

impl Out {
    /// The process's own streams.
    pub(super) fn new(json: bool) -> Self {
        let width =
            |terminal: bool, term: Term| terminal.then(|| term.size_checked().map_or(80, |(_, w)| usize::from(w)));
        Self {
            json,
            stdout_width: width(io::stdout().is_terminal(), Term::stdout()),
            stderr_width: width(io::stderr().is_terminal(), Term::stderr()),
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
        }
    }

    /// Writes a line of the result and hands it on at once.
    pub(super) fn line(&mut self, line: &str) -> Result<(), Error> {
        writeln!(self.stdout, "{line}")?;
        self.stdout.flush()?;
        Ok(())
    }

    /// Writes a guest's text as the result: byte for byte into a pipe, without control sequences on
    /// a terminal.
    pub(super) fn guest_text(&mut self, text: &str) -> Result<(), Error> {
        let text = if self.stdout_width.is_some() { harmless(text) } else { text.to_owned() };
        self.line(text.strip_suffix('\n').unwrap_or(&text))
    }

    /// Writes a line to stderr. That nobody reads it is no reason to stop.
    pub(super) fn side(&mut self, line: &str) {
        let _ = writeln!(self.stderr, "{line}");
    }

    /// Whether there is a person at a terminal who can be asked.
    pub(super) fn asks(&self) -> bool {
        !self.json && self.stderr_width.is_some() && io::stdin().is_terminal()
    }

    /// Tells something that is neither result nor error.
    pub(super) fn notice(&mut self, message: &str, hint: &str) {
        if self.json {
            self.side(&json!({ "notice": { "message": message, "hint": hint } }).to_string());
        } else {
            self.side(&format!("aok: {message}\n  {hint}"));
        }
    }

    /// Tells why the command failed.
    pub(super) fn error(&mut self, error: &ApiError) {
        if self.json {
            self.side(&json!({ "error": error }).to_string());
        } else {
            let text = format!("error[{}]: {}\n  hint: {}", error.code.name(), error.message, error.hint);
            self.side(&if self.stderr_width.is_some() { harmless(&text) } else { text });
        }
    }

    /// Shows an answer: its lines as they are, or a table of them.
    pub(super) async fn list<T: DeserializeOwned>(
        &mut self,
        lines: Lines,
        columns: &[Column],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), Error> {
        let items = self.items(lines).await?;
        if !self.json {
            self.table(columns, &items.iter().map(row).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Reads an answer. With `--json` its lines are written as they come and nothing is left to show.
    pub(super) async fn items<T: DeserializeOwned>(&mut self, mut lines: Lines) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        while let Some(line) = lines.next().await {
            let line = line?;
            if self.json {
                self.line(&line)?;
            } else {
                items.push(serde_json::from_str(&line)?);
            }
        }
        Ok(items)
    }

    /// Writes aligned columns; on a terminal no line is wider than it.
    pub(super) fn table(&mut self, columns: &[Column], rows: &[Vec<String>]) -> Result<(), Error> {
        let heads = columns.iter().map(|(Column::Left(name) | Column::Right(name))| (*name).to_owned()).collect();
        let lines: Vec<Vec<String>> = std::iter::once(heads)
            .chain(rows.iter().map(|row| row.iter().map(|cell| super::format::one_line(cell)).collect()))
            .collect();
        let widths: Vec<usize> = (0..columns.len())
            .map(|i| lines.iter().filter_map(|l| l.get(i)).map(|c| console::measure_text_width(c)).max().unwrap_or(0))
            .collect();
        for line in &lines {
            let mut text = String::new();
            for ((cell, column), width) in line.iter().zip(columns).zip(&widths) {
                let pad = " ".repeat(width.saturating_sub(console::measure_text_width(cell)));
                match column {
                    Column::Left(_) => text.extend([cell.as_str(), pad.as_str(), "  "]),
                    Column::Right(_) => text.extend([pad.as_str(), cell.as_str(), "  "]),
                }
            }
            let text = cut(text.trim_end(), self.stdout_width);
            writeln!(self.stdout, "{text}")?;
        }
        self.stdout.flush()?;
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::stream;
    use serde_json::Value;

    use super::*;
    use crate::server::error::Code;

    /// A stream that can be read afterwards.
    #[derive(Clone, Default)]
    pub(in crate::cli) struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Sink {
        pub(in crate::cli) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Sink {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// An output into memory: itself, stdout, stderr.
    pub(in crate::cli) fn memory(json: bool, width: Option<usize>) -> (Out, Sink, Sink) {
        let (stdout, stderr) = (Sink::default(), Sink::default());
        let out = Out {
            json,
            stdout: Box::new(stdout.clone()),
            stderr: Box::new(stderr.clone()),
            stdout_width: width,
            stderr_width: width,
        };
        (out, stdout, stderr)
    }

    fn rows() -> Vec<Vec<String>> {
        vec![vec!["größe".into(), "7".into(), "one".into()], vec!["日本".into(), "123".into(), "a\u{1b}[31m\nb".into()]]
    }

    const COLUMNS: [Column; 3] = [Column::Left("NAME"), Column::Right("N"), Column::Left("NOTE")];

    #[test]
    fn columns_are_aligned_by_what_is_seen() {
        let (mut out, stdout, _) = memory(false, None);
        out.table(&COLUMNS, &rows()).unwrap();
        assert_eq!(stdout.text(), "NAME     N  NOTE\ngröße    7  one\n日本   123  a [31m b\n");
    }

    #[test]
    fn a_terminal_is_not_overrun() {
        let (mut out, stdout, _) = memory(false, Some(12));
        out.table(&COLUMNS, &rows()).unwrap();
        assert_eq!(stdout.text(), "NAME     N …\ngröße    7 …\n日本   123 …\n");
    }

    #[tokio::test]
    async fn json_lines_pass_as_they_are_and_tables_come_from_the_same() {
        let lines = || stream::iter(vec![Ok("{\"b\":1,  \"a\":2}".to_owned())]).boxed();
        let row = |v: &Value| vec![v["a"].to_string()];
        let (mut out, stdout, _) = memory(true, None);
        out.list(lines(), &[Column::Right("A")], row).await.unwrap();
        assert_eq!(stdout.text(), "{\"b\":1,  \"a\":2}\n");
        let (mut out, stdout, _) = memory(false, None);
        out.list(lines(), &[Column::Right("A")], row).await.unwrap();
        assert_eq!(stdout.text(), "A\n2\n");
    }

    #[tokio::test]
    async fn a_failure_within_an_answer_ends_the_command() {
        let failing = stream::iter(vec![Ok("1".to_owned()), Err(ApiError::new(Code::KernelGone, "m", "h"))]).boxed();
        let (mut out, stdout, _) = memory(true, None);
        assert_eq!(out.items::<Value>(failing).await.unwrap_err().exit(), 5);
        assert_eq!(stdout.text(), "1\n");
    }

    #[test]
    fn errors_and_notices_are_text_or_json() {
        let error = ApiError::new(Code::Denied, "no", "ask");
        let (mut out, stdout, stderr) = memory(false, None);
        out.error(&error);
        out.notice("m", "h");
        assert_eq!(stderr.text(), "error[denied]: no\n  hint: ask\naok: m\n  h\n");
        let (mut json, _, stderr) = memory(true, None);
        json.error(&error);
        json.notice("m", "h");
        let expected = "{\"error\":{\"code\":\"denied\",\"message\":\"no\",\"hint\":\"ask\"}}\n{\"notice\":{\"message\":\"m\",\"hint\":\"h\"}}\n";
        assert_eq!(stderr.text(), expected);
        assert_eq!(stdout.text(), "");
    }

    #[test]
    fn a_guests_text_is_whole_in_a_pipe_and_harmless_on_a_terminal() {
        let text = "a\u{1b}[2J\nb\n";
        let (mut out, stdout, _) = memory(false, None);
        out.guest_text(text).unwrap();
        assert_eq!(stdout.text(), text);
        let (mut out, stdout, _) = memory(false, Some(80));
        out.guest_text(text).unwrap();
        assert_eq!(stdout.text(), "a[2J\nb\n");
    }
}
