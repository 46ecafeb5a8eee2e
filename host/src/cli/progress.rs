//! What a run shows on stderr while it works: a line per call, and on a terminal one line below
//! that says what it is doing now.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::format::{bytes, count, cut, micros, one_line, usd};
use super::out::Out;
use crate::process::{Event, EventKind, ProcessState};

/// The longest line where no terminal sets a width.
const PIPED_WIDTH: usize = 400;

/// The view of one running process.
pub(super) struct Progress {
    /// The line below, on a terminal.
    bar: Option<ProgressBar>,
    width: usize,
    tally: Tally,
}

impl Progress {
    /// A view on `out`'s stderr.
    pub(super) fn new(out: &Out) -> Self {
        let bar = out.stderr_width.filter(|_| !out.json).map(|_| {
            let bar = ProgressBar::new_spinner();
            // A fixed, valid template; were it refused, indicatif's own stays.
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, width: out.stderr_width.unwrap_or(PIPED_WIDTH), tally: Tally::default() }
    }

    /// Shows an event.
    pub(super) fn show(&mut self, event: &Event, out: &mut Out) {
        self.tally.count(&event.kind);
        let line = line(event).map(|l| cut(&l, Some(self.width)));
        match &self.bar {
            Some(bar) => {
                if let Some(line) = line {
                    bar.suspend(|| out.side(&line));
                }
                bar.set_message(self.tally.now());
            }
            None => {
                if let Some(line) = line {
                    out.side(&line);
                }
            }
        }
    }

    /// Takes the line below away.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The line that an event leaves behind, if any.
fn line(event: &Event) -> Option<String> {
    Some(match &event.kind {
        EventKind::Spawned { agent, model, .. } => {
            let model = model.as_deref().unwrap_or("no model");
            one_line(&format!("process {}: {agent} on {model}", event.pid))
        }
        EventKind::ToolStart { name, arguments, .. } => one_line(&format!("→ {name} {arguments}")),
        EventKind::ToolEnd { name, ok: true, result, duration_us, .. } => {
            let size = result.as_ref().map_or(0, |r| r.to_string().len() as u64);
            one_line(&format!("← {name} {} in {}", bytes(size), micros(*duration_us)))
        }
        EventKind::ToolEnd { name, error, duration_us, .. } => {
            one_line(&format!("✗ {name} {} ({})", error_text(error.as_ref()), micros(*duration_us)))
        }
        EventKind::LlmEnd { input, cached, output, micro_usd, finish } => {
            let price = micro_usd.map(|n| format!(", {}", usd(Some(n)))).unwrap_or_default();
            one_line(&format!("· model: {input} tokens in ({cached} cached), {output} out{price}, {finish}"))
        }
        EventKind::PageOut { page, tokens } => format!("· page {page} ({tokens} tokens) left the window"),
        EventKind::PageIn { page, tokens } => format!("· page {page} ({tokens} tokens) came back"),
        EventKind::Ask { approval, reason } => one_line(&format!("? approval {approval}: {reason}")),
        EventKind::State { state: ProcessState::Approval } => "· waiting for approval".to_owned(),
        EventKind::Exit { status, usage, .. } => {
            let price = usage.micro_usd.map(|n| format!(", {}", usd(Some(n)))).unwrap_or_default();
            format!(
                "process {}: {status} after {} tool calls, {} tokens{price}, {}",
                event.pid,
                usage.tool_calls,
                count(usage.tokens_in.saturating_add(usage.tokens_out)),
                micros(usage.wall_us),
            )
        }
        EventKind::State { .. } | EventKind::LlmStart { .. } | EventKind::Text { .. } => return None,
    })
}

/// A tool error as `code: message`.
fn error_text(error: Option<&Value>) -> String {
    let field = |name: &str| error.and_then(|e| e.get(name)).and_then(Value::as_str).unwrap_or("?");
    format!("{}: {}", field("code"), field("message"))
}

/// What a process is doing and has used, from its events.
#[derive(Debug, Default)]
struct Tally {
    tokens: u64,
    /// `None` while no price is known.
    micro_usd: Option<u64>,
    /// The tools that run now, by call.
    tools: BTreeMap<String, String>,
    /// The model that works now, and what it is doing.
    model: Option<String>,
    waiting: bool,
}

impl Tally {
    fn count(&mut self, kind: &EventKind) {
        match kind {
            EventKind::LlmStart { model, prompt_tokens } => {
                self.model = Some(format!("asking {} ({} tokens)", one_line(model), count(u64::from(*prompt_tokens))));
            }
            EventKind::Text { .. } => {
                if let Some(doing) = &mut self.model {
                    "the model writes".clone_into(doing);
                }
            }
            EventKind::LlmEnd { input, output, micro_usd, .. } => {
                self.model = None;
                self.tokens += u64::from(*input) + u64::from(*output);
                if let Some(price) = micro_usd {
                    self.micro_usd = Some(self.micro_usd.unwrap_or(0).saturating_add(*price));
                }
            }
            EventKind::ToolStart { id, name, .. } => {
                self.tools.insert(id.clone(), one_line(name));
            }
            EventKind::ToolEnd { id, .. } => {
                self.tools.remove(id);
            }
            EventKind::State { state } => self.waiting = *state == ProcessState::Approval,
            EventKind::Spawned { .. }
            | EventKind::Ask { .. }
            | EventKind::PageOut { .. }
            | EventKind::PageIn { .. }
            | EventKind::Exit { .. } => {}
        }
    }

    fn now(&self) -> String {
        let doing = if self.waiting {
            "waiting for approval".to_owned()
        } else if !self.tools.is_empty() {
            format!("running {}", self.tools.values().cloned().collect::<Vec<_>>().join(", "))
        } else {
            self.model.clone().unwrap_or_else(|| "thinking".to_owned())
        };
        let price = self.micro_usd.map(|n| format!(" · {}", usd(Some(n)))).unwrap_or_default();
        format!("{doing} · {} tokens{price}", count(self.tokens))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::out::tests::memory;
    use super::*;
    use crate::process::{Pid, Usage};

    fn event(kind: EventKind) -> Event {
        Event { pid: Pid(3), seq: 1, at_ms: 0, kind }
    }

    fn tool_end(ok: bool, result: Option<Value>, error: Option<Value>) -> EventKind {
        EventKind::ToolEnd { id: "1".into(), name: "fs__read".into(), ok, result, error, duration_us: 3_100 }
    }

    fn llm_end(micro_usd: Option<u64>) -> EventKind {
        EventKind::LlmEnd { input: 100, cached: 80, output: 20, micro_usd, finish: "stop".into() }
    }

    fn tool_start() -> EventKind {
        EventKind::ToolStart { id: "1".into(), name: "fs__read".into(), arguments: json!({"path": "a\nb"}) }
    }

    #[test]
    fn each_event_has_its_line() {
        let check = |kind, expected: Option<&str>| assert_eq!(line(&event(kind)).as_deref(), expected);
        let spawned =
            EventKind::Spawned { agent: "assistant".into(), model: Some("script/x".into()), task: "t".into() };
        check(spawned, Some("process 3: assistant on script/x"));
        check(EventKind::State { state: ProcessState::Waiting }, None);
        check(EventKind::State { state: ProcessState::Approval }, Some("· waiting for approval"));
        check(EventKind::LlmStart { model: "m".into(), prompt_tokens: 1 }, None);
        check(EventKind::Text { delta: "x".into() }, None);
        check(llm_end(None), Some("· model: 100 tokens in (80 cached), 20 out, stop"));
        check(llm_end(Some(1_500)), Some("· model: 100 tokens in (80 cached), 20 out, $0.0015, stop"));
        check(tool_start(), Some(r#"→ fs__read {"path":"a\nb"}"#));
        check(tool_end(true, Some(json!("x".repeat(1_198))), None), Some("← fs__read 1.2 kB in 3 ms"));
        let error = json!({"code": "denied", "message": "not\u{1b}granted", "limit": null});
        check(tool_end(false, None, Some(error)), Some("✗ fs__read denied: not granted (3 ms)"));
        check(tool_end(false, None, None), Some("✗ fs__read ?: ? (3 ms)"));
        check(EventKind::PageOut { page: 7, tokens: 30 }, Some("· page 7 (30 tokens) left the window"));
        check(EventKind::PageIn { page: 7, tokens: 30 }, Some("· page 7 (30 tokens) came back"));
        let usage = Usage { tool_calls: 2, tokens_in: 900, tokens_out: 100, wall_us: 5_000, ..Usage::default() };
        let exit = EventKind::Exit { status: "success".into(), answer: Some("42".into()), message: None, usage };
        check(exit, Some("process 3: success after 2 tool calls, 1000 tokens, 5 ms"));
    }

    #[test]
    fn the_line_below_says_what_happens_now() {
        let mut tally = Tally::default();
        let mut after = |kind: EventKind| {
            tally.count(&kind);
            tally.now()
        };
        assert_eq!(
            after(EventKind::LlmStart { model: "m".into(), prompt_tokens: 100 }),
            "asking m (100 tokens) · 0 tokens"
        );
        assert_eq!(after(EventKind::Text { delta: "x".into() }), "the model writes · 0 tokens");
        assert_eq!(after(llm_end(None)), "thinking · 120 tokens");
        assert_eq!(after(tool_start()), "running fs__read · 120 tokens");
        assert_eq!(after(tool_end(true, None, None)), "thinking · 120 tokens");
        assert_eq!(after(llm_end(Some(2_000))), "thinking · 240 tokens · $0.0020");
        assert!(after(EventKind::State { state: ProcessState::Approval }).starts_with("waiting for approval"));
    }

    #[test]
    fn a_pipe_gets_plain_lines() {
        let (mut out, stdout, stderr) = memory(false, None);
        let mut progress = Progress::new(&out);
        progress.show(&event(tool_start()), &mut out);
        progress.show(&event(EventKind::Text { delta: "x".into() }), &mut out);
        progress.show(&event(tool_end(true, Some(json!(1)), None)), &mut out);
        assert_eq!(stderr.text(), "→ fs__read {\"path\":\"a\\nb\"}\n← fs__read 1 B in 3 ms\n");
        assert_eq!(stdout.text(), "");
    }
}
