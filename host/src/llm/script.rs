//! The script model: JSON Lines, one reply a line (CONTRACT §5), for demos and tests.
//!
//! A script is parsed whole when it is opened, so that a wrong line is found before any process
//! exists. It has no memory: the k-th line that counts for an agent answers that agent's k-th
//! request, and so a resumed process goes on where it was. It knows no process and no tool.
//!
//! Beyond the contract's table:
//! - Blank lines are skipped and count for nothing.
//! - `{{ID}}` gives the result as JSON text, or bare where the result is a JSON string;
//!   `{{ID.key}}` gives one field of it. An id that no earlier line calls is refused at opening.
//! - `arguments` is an object; a string is taken as the arguments' text as it is, even if that is
//!   no JSON, because models send such things.
//! - `usage` absent is estimated at four bytes a token, nothing cached. No script has a price.
//! - `raw` is the body of the HTTP answer. Served directly it is read as an OpenAI chat
//!   completion, and what is none is [`Error::Malformed`].
//! - `stream_cut` sends the first half of the text and then breaks the connection.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use super::{Delta, Error, Provider, Request, shorten};
use crate::abi::{Finish, Message, Reply, TokenUsage, ToolCall};

/// The window of a script model: that of the large hosted models.
const WINDOW: u32 = 128_000;

/// A parsed script.
#[derive(Clone, Debug)]
pub struct Script {
    path: PathBuf,
    lines: Vec<Line>,
}

/// One line: one reply.
#[derive(Clone, Debug)]
pub struct Line {
    /// Line of the file, from 1.
    pub number: usize,
    /// The only agent that the line counts for; all when `None`.
    pub agent: Option<String>,
    /// The reply's text, before substitution.
    pub text: String,
    /// The calls that it asks for, before substitution.
    pub tool_calls: Vec<Call>,
    /// What it is said to have used; estimated when `None`.
    pub usage: Option<TokenUsage>,
    /// How long the model takes.
    pub delay: Duration,
    /// Text that the newest message must contain.
    pub expect: Option<String>,
    /// The error that is answered instead.
    pub error: Option<ErrorLine>,
    /// The bytes that are answered instead.
    pub raw: Option<String>,
    /// Whether the connection breaks in the middle of the text.
    pub stream_cut: bool,
}

/// A call in a script.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The call's id.
    pub id: String,
    /// Full tool name.
    pub name: String,
    /// An object, or a string that is sent as it is.
    pub arguments: Value,
}

/// A provider's error in a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorLine {
    /// HTTP status, 400 to 599.
    pub status: u16,
    /// What the `retry-after` header says, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLine {
    text: Option<String>,
    tool_calls: Option<Vec<Call>>,
    usage: Option<RawUsage>,
    delay_ms: Option<u64>,
    expect: Option<String>,
    error: Option<ErrorLine>,
    agent: Option<String>,
    raw: Option<String>,
    #[serde(default)]
    stream_cut: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUsage {
    input: u32,
    #[serde(default)]
    cached: u32,
    output: u32,
}

impl Script {
    /// Reads and checks a script.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] naming the file, and the line where one is wrong.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let wrong = |why: String| Error::UnknownModel { model: format!("script/{}", path.display()), why };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("the file cannot be read: {e}")))?;
        Self::parse(path, &text).map_err(wrong)
    }

    /// Checks a script's text; `path` is only for messages.
    ///
    /// # Errors
    /// The line and what is wrong with it.
    pub fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let mut lines: Vec<Line> = Vec::new();
        for (i, json) in text.lines().enumerate() {
            if json.trim().is_empty() {
                continue;
            }
            let number = i + 1;
            let raw: RawLine = serde_json::from_str(json).map_err(|e| format!("line {number}: {e}"))?;
            let line = Line::from_raw(number, raw).map_err(|why| format!("line {number}: {why}"))?;
            for id in line.references() {
                let known = lines.iter().any(|l| l.may_precede(&line) && l.tool_calls.iter().any(|c| c.id == id));
                if !known {
                    return Err(format!("line {number}: {{{{{id}}}}} quotes a call that no earlier line makes"));
                }
            }
            lines.push(line);
        }
        Ok(Self { path: path.to_owned(), lines })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lines that count for `agent`, in order.
    pub fn lines<'a>(&'a self, agent: &'a str) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(move |l| l.agent.as_deref().is_none_or(|a| a == agent))
    }

    /// The line that answers the `index`-th request of `agent`, counted from 1.
    ///
    /// # Errors
    /// [`Error::ScriptExhausted`].
    pub fn line<'a>(&'a self, agent: &'a str, index: u64) -> Result<&'a Line, Error> {
        let at = index.checked_sub(1).and_then(|i| usize::try_from(i).ok());
        at.and_then(|at| self.lines(agent).nth(at)).ok_or_else(|| Error::ScriptExhausted {
            script: self.path.display().to_string(),
            lines: self.lines(agent).count(),
            request: index,
        })
    }
}

impl Line {
    fn from_raw(number: usize, raw: RawLine) -> Result<Self, String> {
        let speaks = raw.text.is_some() || raw.tool_calls.is_some();
        if raw.error.is_some() && (speaks || raw.raw.is_some() || raw.stream_cut) {
            return Err("`error` stands alone, beside `expect`, `delay_ms` and `agent`".to_owned());
        }
        if raw.raw.is_some() && speaks {
            return Err("`raw` is the whole reply; leave out `text` and `tool_calls`".to_owned());
        }
        if let Some(e) = raw.error
            && !(400..=599).contains(&e.status)
        {
            return Err(format!("`error.status` is {}; give 400 to 599", e.status));
        }
        let tool_calls = raw.tool_calls.unwrap_or_default();
        if let Some(c) = tool_calls.iter().find(|c| !c.arguments.is_object() && !c.arguments.is_string()) {
            return Err(format!("`arguments` of call `{}` is neither an object nor a string", c.id));
        }
        Ok(Self {
            number,
            agent: raw.agent,
            text: raw.text.unwrap_or_default(),
            tool_calls,
            usage: raw.usage.map(|u| TokenUsage {
                input: u.input,
                cached: u.cached,
                output: u.output,
                micro_usd: None,
            }),
            delay: Duration::from_millis(raw.delay_ms.unwrap_or(0)),
            expect: raw.expect,
            error: raw.error,
            raw: raw.raw,
            stream_cut: raw.stream_cut,
        })
    }

    fn may_precede(&self, later: &Self) -> bool {
        self.agent.is_none() || later.agent.is_none() || self.agent == later.agent
    }

    /// Ids of the calls whose results the line quotes.
    #[must_use]
    pub fn references(&self) -> Vec<String> {
        let mut ids = Vec::new();
        let mut note = |s: &str| {
            for (_, name) in placeholders(s) {
                let id = name.split('.').next().unwrap_or(name).to_owned();
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        };
        note(&self.text);
        for call in &self.tool_calls {
            for_each_string(&call.arguments, &mut note);
        }
        ids
    }

    /// Checks `expect` against the newest message.
    ///
    /// # Errors
    /// [`Error::ScriptMismatch`].
    pub fn check_newest(&self, newest: &str) -> Result<(), Error> {
        match &self.expect {
            Some(expect) if !newest.contains(expect.as_str()) => {
                Err(Error::ScriptMismatch { line: self.number, expect: expect.clone(), got: shorten(newest, 200) })
            }
            _ => Ok(()),
        }
    }

    /// The text and the calls, with the results that they quote.
    ///
    /// # Errors
    /// [`Error::Malformed`] where a quoted result is missing or has no such field.
    pub fn fill(&self, results: &HashMap<String, String>) -> Result<(String, Vec<ToolCall>), Error> {
        let fill = |s: &str| {
            fill_in(s, results).map_err(|why| Error::Malformed {
                provider: "script".to_owned(),
                message: format!("line {}: {why}", self.number),
            })
        };
        let mut calls = Vec::with_capacity(self.tool_calls.len());
        for call in &self.tool_calls {
            let arguments = match &call.arguments {
                Value::String(text) => fill(text)?,
                value => map_strings(value, &fill)?.to_string(),
            };
            calls.push(ToolCall { id: call.id.clone(), name: call.name.clone(), arguments });
        }
        Ok((fill(&self.text)?, calls))
    }
}

/// The `{{NAME}}` of a string with their places; other braces are text.
fn placeholders(s: &str) -> impl Iterator<Item = (std::ops::Range<usize>, &str)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        while let Some(open) = s[from..].find("{{").map(|i| from + i) {
            let Some(close) = s[open..].find("}}").map(|i| open + i) else {
                break;
            };
            let name = &s[open + 2..close];
            let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
            if !name.is_empty() && name.chars().all(is_name) {
                from = close + 2;
                return Some((open..close + 2, name));
            }
            from = open + 1;
        }
        None
    })
}

fn fill_in(s: &str, results: &HashMap<String, String>) -> Result<String, String> {
    let mut out = String::with_capacity(s.len());
    let mut from = 0;
    for (place, name) in placeholders(s) {
        out.push_str(&s[from..place.start]);
        from = place.end;
        let mut path = name.split('.');
        let id = path.next().unwrap_or(name);
        let result = results.get(id).ok_or_else(|| format!("call `{id}` has no result yet"))?;
        // An error is given as plain text, which is no JSON and is quoted as it is.
        let mut value = serde_json::from_str::<Value>(result).unwrap_or_else(|_| Value::String(result.clone()));
        for key in path {
            value = value
                .get_mut(key)
                .map(Value::take)
                .ok_or_else(|| format!("the result of call `{id}` has no `{key}`: {}", shorten(result, 120)))?;
        }
        match value {
            Value::String(text) => out.push_str(&text),
            _ if name == id => out.push_str(result),
            other => out.push_str(&other.to_string()),
        }
    }
    out.push_str(&s[from..]);
    Ok(out)
}

fn for_each_string(value: &Value, note: &mut impl FnMut(&str)) {
    match value {
        Value::String(s) => note(s),
        Value::Array(items) => items.iter().for_each(|v| for_each_string(v, note)),
        Value::Object(map) => map.values().for_each(|v| for_each_string(v, note)),
        _ => {}
    }
}

fn map_strings(value: &Value, fill: &impl Fn(&str) -> Result<String, Error>) -> Result<Value, Error> {
    Ok(match value {
        Value::String(s) => Value::String(fill(s)?),
        Value::Array(items) => Value::Array(items.iter().map(|v| map_strings(v, fill)).collect::<Result<_, _>>()?),
        Value::Object(map) => Value::Object(
            map.iter().map(|(k, v)| Ok((k.clone(), map_strings(v, fill)?))).collect::<Result<_, Error>>()?,
        ),
        other => other.clone(),
    })
}

/// Splits a text where a model's tokens would end, so that streaming shows.
pub fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(' ')
}

#[async_trait]
impl Provider for Script {
    async fn generate(&self, request: Arc<Request>, deltas: UnboundedSender<Delta>) -> Result<Reply, Error> {
        let line = self.line(&request.agent, request.index)?;
        line.check_newest(request.messages.last().map_or("", Message::text))?;
        if !line.delay.is_zero() {
            tokio::time::sleep(line.delay).await;
        }
        if let Some(error) = line.error {
            return Err(Error::Status {
                provider: "script".to_owned(),
                status: error.status,
                message: format!("line {} of the script says so", line.number),
                retry_after: error.retry_after_ms.map(Duration::from_millis),
            });
        }
        let (text, tool_calls) = match &line.raw {
            Some(body) => read_completion(body, line.number)?,
            None => line.fill(&request.results)?,
        };
        let sent = if line.stream_cut { first_half(&text) } else { &text };
        for piece in pieces(sent) {
            // Nobody has to listen.
            let _ = deltas.send(Delta::Text(piece.to_owned()));
        }
        if line.stream_cut {
            return Err(Error::Unreachable {
                provider: "script".to_owned(),
                url: self.path.display().to_string(),
                message: format!("line {} cuts the stream", line.number),
            });
        }
        let usage = line.usage.unwrap_or_else(|| super::estimate_usage(&request.messages, &text, &tool_calls));
        let finish = if tool_calls.is_empty() { Finish::Stop } else { Finish::ToolCalls };
        Ok(Reply { text, tool_calls, finish, usage })
    }

    fn references(&self, agent: &str, index: u64) -> Vec<String> {
        self.line(agent, index).map(Line::references).unwrap_or_default()
    }

    fn window(&self, _model: &str) -> u32 {
        WINDOW
    }
}

/// The part of a text that is sent before the connection breaks.
#[must_use]
pub fn first_half(text: &str) -> &str {
    &text[..text.floor_char_boundary(text.len() / 2)]
}

fn read_completion(body: &str, line: usize) -> Result<(String, Vec<ToolCall>), Error> {
    #[derive(Deserialize)]
    struct Completion {
        choices: Vec<Choice>,
    }
    #[derive(Deserialize)]
    struct Choice {
        message: Said,
    }
    #[derive(Deserialize)]
    struct Said {
        content: Option<String>,
        #[serde(default)]
        tool_calls: Vec<Wanted>,
    }
    #[derive(Deserialize)]
    struct Wanted {
        id: String,
        function: Function,
    }
    #[derive(Deserialize)]
    struct Function {
        name: String,
        arguments: String,
    }
    let malformed = |why: String| Error::Malformed {
        provider: "script".to_owned(),
        message: format!("line {line}: {why}: {}", shorten(body, 120)),
    };
    let completion: Completion = serde_json::from_str(body).map_err(|e| malformed(e.to_string()))?;
    let Some(choice) = completion.choices.into_iter().next() else {
        return Err(malformed("it has no choices".to_owned()));
    };
    let calls = choice.message.tool_calls.into_iter().map(|w| ToolCall {
        id: w.id,
        name: w.function.name,
        arguments: w.function.arguments,
    });
    Ok((choice.message.content.unwrap_or_default(), calls.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Script {
        Script::parse(Path::new("s.jsonl"), text).unwrap()
    }

    fn request(index: u64, newest: &str, results: &[(&str, &str)]) -> Request {
        Request {
            model: String::new(),
            agent: "assistant".to_owned(),
            index,
            messages: vec![Message::User { text: newest.to_owned() }],
            tools: Vec::new(),
            temperature: None,
            max_tokens: None,
            response_schema: None,
            results: results.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            claim: crate::llm::Claim::default(),
        }
    }

    async fn ask(script: &Script, request: Request) -> (Result<Reply, Error>, String) {
        let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
        let reply = script.generate(Arc::new(request), tx).await;
        let mut streamed = String::new();
        while let Some(delta) = rx.recv().await {
            if let Delta::Text(piece) = delta {
                streamed.push_str(&piece);
            }
        }
        (reply, streamed)
    }

    #[tokio::test]
    async fn the_kth_line_that_counts_answers_and_text_streams() {
        let s = script(
            "{\"text\":\"other\",\"agent\":\"x\"}\n\n{\"text\":\"a b\"}\n{\"text\":\"c\",\"usage\":{\"input\":7,\"cached\":2,\"output\":3}}\n",
        );
        let (reply, streamed) = ask(&s, request(1, "go", &[])).await;
        assert_eq!((reply.unwrap().text.as_str(), streamed.as_str()), ("a b", "a b"));
        let reply = ask(&s, request(2, "go", &[])).await.0.unwrap();
        assert_eq!(reply.usage, TokenUsage { input: 7, cached: 2, output: 3, micro_usd: None });
        let over = ask(&s, request(3, "go", &[])).await.0.unwrap_err();
        assert!(matches!(over, Error::ScriptExhausted { lines: 2, request: 3, .. }), "{over}");
        assert!(ask(&s, request(0, "go", &[])).await.0.is_err());
    }

    #[tokio::test]
    async fn results_are_filled_in_whole_by_field_and_in_arguments() {
        let s = script(concat!(
            r#"{"tool_calls":[{"id":"c1","name":"calc__eval","arguments":{"expression":"1+1"}}]}"#,
            "\n",
            r#"{"text":"{{c1}} {{c1.value}} {{ no }} {{","tool_calls":[{"id":"c2","name":"t","arguments":{"deep":["{{c1.value}}*2"],"n":1}}]}"#,
        ));
        assert_eq!(s.references("assistant", 2), ["c1"]);
        let (reply, _) = ask(&s, request(2, "", &[("c1", r#"{"value":2}"#)])).await;
        let reply = reply.unwrap();
        assert_eq!(reply.text, r#"{"value":2} 2 {{ no }} {{"#);
        assert_eq!(reply.tool_calls[0].arguments, r#"{"deep":["2*2"],"n":1}"#);
        assert_eq!(reply.finish, Finish::ToolCalls);
        let (missing, _) = ask(&s, request(2, "", &[])).await;
        assert!(missing.unwrap_err().to_string().contains("c1"));
        let (error_text, _) = ask(&s, request(2, "", &[("c1", "denied: no")])).await;
        assert!(error_text.unwrap_err().to_string().contains("no `value`"));
    }

    #[tokio::test]
    async fn errors_cuts_raw_bytes_and_mismatches_are_told_apart() {
        let s = script(concat!(
            "{\"error\":{\"status\":429,\"retry_after_ms\":5}}\n",
            "{\"text\":\"one two three four\",\"stream_cut\":true}\n",
            "{\"raw\":\"{\\\"choices\\\":[\"}\n",
            "{\"raw\":\"{\\\"choices\\\":[{\\\"message\\\":{\\\"content\\\":\\\"hi\\\"}}]}\"}\n",
            "{\"expect\":\"apples\",\"text\":\"x\"}\n",
        ));
        assert!(matches!(ask(&s, request(1, "", &[])).await.0, Err(Error::Status { status: 429, .. })));
        let (cut, streamed) = ask(&s, request(2, "", &[])).await;
        assert!(matches!(cut, Err(Error::Unreachable { .. })));
        assert_eq!(streamed, "one two t");
        assert!(matches!(ask(&s, request(3, "", &[])).await.0, Err(Error::Malformed { .. })));
        assert_eq!(ask(&s, request(4, "", &[])).await.0.unwrap().text, "hi");
        let mismatch = ask(&s, request(5, "pears", &[])).await.0.unwrap_err();
        assert_eq!(
            mismatch.to_string(),
            "script_mismatch: script line 5 expects `apples`, the newest message is `pears`"
        );
        assert!(ask(&s, request(5, "two apples", &[])).await.0.is_ok());
    }

    #[test]
    fn a_wrong_line_is_named_when_the_script_is_opened() {
        let check = |text: &str, part: &str| {
            let why = Script::parse(Path::new("s.jsonl"), text).unwrap_err();
            assert!(why.contains(part), "{why}");
        };
        check("{\"text\":\"a\"}\n{\"txt\":\"b\"}", "line 2: unknown field `txt`");
        check("nonsense", "line 1");
        check("{\"error\":{\"status\":200}}", "400 to 599");
        check("{\"error\":{\"status\":500},\"text\":\"a\"}", "stands alone");
        check("{\"raw\":\"x\",\"text\":\"a\"}", "whole reply");
        check("{\"tool_calls\":[{\"id\":\"c\",\"name\":\"t\",\"arguments\":3}]}", "call `c`");
        check("{\"text\":\"{{c9}}\"}", "c9");
        check("{\"delay_ms\":-1}", "line 1");
        let missing = Script::open(Path::new("/nowhere/s.jsonl")).unwrap_err().to_string();
        assert!(missing.contains("script//nowhere/s.jsonl"), "{missing}");
    }
}
