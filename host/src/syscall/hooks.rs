//! Stages 2 and 7: what the hooks at a call's points are shown, and what becomes of what they say.

use serde_json::{Value, json};

use super::caller::now_ms;
use super::dispatch::Done;
use super::path::Act;
use super::{Caller, Options, Outcome, Syscall};
use crate::abi::{Errno, Error, ToolCall};
use crate::hook::subject::{
    Failed, LlmCall, LlmDone, LlmOutcome, Page, QuotaExceeded, Sent, Spawned, StepBegun, StepDone, ToolCalled,
    ToolDone, ToolOutcome,
};
use crate::hook::{self, Hook, HookEvent};
use crate::process::Input;
use crate::tool::Lookup;

/// What the hooks before a call made of it.
pub(super) enum Gate {
    /// It goes on; `Some` names the hooks that rewrote it.
    Open(Syscall, Option<String>),
    /// It is refused: with this error, by that hook.
    Shut(Syscall, Error, String),
    /// A person is to decide, says this hook, and asks this.
    Ask(Syscall, String, String),
}

impl Caller {
    /// Stage 2.
    pub(super) async fn before_hooks(&self, act: &Act, syscall: Syscall) -> Gate {
        let Some((point, object, subject)) = self.before(&syscall) else { return Gate::Open(syscall, None) };
        let asked = self.ask_hooks(act, self.hook_event(act.ticket.seq, point, object, subject)).await;
        match asked.outcome {
            hook::Outcome::Denied { by, reason } => {
                let error = Error::new(Errno::Denied, format!("the hook `{by}` refused it: {reason}"));
                return Gate::Shut(syscall, error, by);
            }
            hook::Outcome::Asks { .. } | hook::Outcome::Pass => {}
        }
        let by = (!asked.rewritten_by.is_empty()).then(|| asked.rewritten_by.join(", "));
        let syscall = match &by {
            None => syscall,
            Some(by) => match rewrite(&syscall, asked.subject) {
                Ok(new) => new,
                Err(why) => {
                    let error = Error::new(
                        Errno::Denied,
                        format!("the hook `{by}` rewrote it at {point} into what cannot be: {why}"),
                    );
                    return Gate::Shut(syscall, error, by.clone());
                }
            },
        };
        match asked.outcome {
            hook::Outcome::Asks { by, reason } => Gate::Ask(syscall, by, reason),
            _ => Gate::Open(syscall, by),
        }
    }

    /// The point before a call, the name of what it is about, and the subject; none where nobody stands.
    fn before(&self, syscall: &Syscall) -> Option<(Hook, String, Value)> {
        let hooks = &self.services().hooks;
        match syscall {
            Syscall::Call { call, .. } if hooks.listens(Hook::BeforeToolCall) => {
                Some((Hook::BeforeToolCall, call.name.clone(), json!(self.tool_called(call))))
            }
            Syscall::Generate(options) if hooks.listens(Hook::BeforeLlmCall) => {
                Some((Hook::BeforeLlmCall, self.model_of(options), json!(LlmCall::from(options.clone()))))
            }
            Syscall::Step if hooks.listens(Hook::BeforeStep) => {
                Some((Hook::BeforeStep, self.spec().agent.clone(), json!(StepBegun { usage: self.usage() })))
            }
            Syscall::Send { .. } | Syscall::Publish { .. } if hooks.listens(Hook::OnMessage) => {
                let sent = sent(syscall)?;
                Some((Hook::OnMessage, sent.topic.clone(), json!(sent)))
            }
            Syscall::Read { page } if hooks.listens(Hook::BeforePageIn) => {
                let page = self.swapped_page(*page)?;
                Some((Hook::BeforePageIn, kind_name(&page), json!(page)))
            }
            _ => None,
        }
    }

    /// Stage 7; `refused`: the call was not made. Its result may be rewritten or withheld then no more.
    pub(super) async fn after_hooks(
        &self,
        act: &Act,
        syscall: &Syscall,
        done: Done,
        refused: bool,
    ) -> (Done, Option<Held>) {
        let hooks = &self.services().hooks;
        if let Outcome::Failed(error) = &done.outcome
            && hooks.listens(Hook::OnError)
        {
            let (call, object) = (syscall.name().to_owned(), syscall.object());
            let subject = json!(Failed { call, object: object.clone(), error: error.into() });
            self.ask_hooks(act, self.hook_event(act.ticket.seq, Hook::OnError, object, subject)).await;
        }
        let (point, object, subject) = match syscall {
            Syscall::Call { call, .. } if hooks.listens(Hook::AfterToolCall) => {
                (Hook::AfterToolCall, call.name.clone(), json!(self.tool_done(call, &done)))
            }
            Syscall::Generate(options) if hooks.listens(Hook::AfterLlmCall) => {
                (Hook::AfterLlmCall, self.model_of(options), json!(llm_done(options, &done)))
            }
            _ => return (done, None),
        };
        let event = self.hook_event(act.ticket.seq, point, object, subject);
        if refused {
            let asked = hooks.tell(event, self.fuel_left()).await;
            self.charge_hooks(act, asked.fuel);
            return (done, None);
        }
        let asked = self.ask_hooks(act, event).await;
        match asked.outcome {
            hook::Outcome::Denied { by, reason } => {
                let error = Error::new(Errno::Denied, format!("the hook `{by}` withheld the result: {reason}"));
                (Done { outcome: Outcome::Failed(error), ..done }, Some(Held { by, verb: "withhold" }))
            }
            _ if asked.rewritten_by.is_empty() => (done, None),
            _ => {
                let by = asked.rewritten_by.join(", ");
                match rewritten_outcome(&done.outcome, asked.subject) {
                    Ok(outcome) => (Done { outcome, ..done }, Some(Held { by, verb: "rewrite" })),
                    Err(why) => {
                        let error = Error::new(
                            Errno::Denied,
                            format!("the hook `{by}` rewrote the result at {point} into what cannot be: {why}"),
                        );
                        (Done { outcome: Outcome::Failed(error), ..done }, Some(Held { by, verb: "withhold" }))
                    }
                }
            }
        }
    }

    /// Asks the hooks of a point on the process's account.
    pub(super) async fn ask_hooks(&self, act: &Act, event: HookEvent) -> hook::Asked {
        let asked = self.services().hooks.ask(event, self.fuel_left()).await;
        self.charge_hooks(act, asked.fuel);
        asked
    }

    fn charge_hooks(&self, act: &Act, fuel: u64) {
        self.add_fuel(fuel);
        act.hook_fuel.fetch_add(fuel, std::sync::atomic::Ordering::Relaxed);
    }

    /// Tells the hooks of a point where they can only look; the fuel that they used, which is charged.
    pub async fn tell_hooks(&self, point: Hook, object: String, subject: impl FnOnce() -> Value) -> u64 {
        let hooks = &self.services().hooks;
        if !hooks.listens(point) {
            return 0;
        }
        let event = self.hook_event(self.position(), point, object, subject());
        let fuel = hooks.ask(event, self.fuel_left()).await.fuel;
        self.add_fuel(fuel);
        fuel
    }

    /// Tells that the process exists.
    pub async fn tell_spawned(&self) {
        let spec = self.spec();
        let subject = || {
            let (name, task, model) = (spec.name.clone(), spec.task.clone(), spec.model.clone());
            json!(Spawned { name, task, model, group: spec.group.clone(), nice: spec.nice })
        };
        self.tell_hooks(Hook::AfterAgentSpawn, spec.agent.clone(), subject).await;
    }

    /// Tells that a limit or a quota ends the process.
    pub async fn tell_quota(&self, limit: &str, message: &str) {
        let subject = || json!(QuotaExceeded { limit: limit.to_owned(), message: message.to_owned() });
        self.tell_hooks(Hook::OnQuotaExceeded, limit.to_owned(), subject).await;
    }

    /// Tells that a turn is over; the fuel of the hooks.
    pub(super) async fn tell_step(&self, tool_calls: usize) -> u64 {
        let subject = || json!(StepDone { tool_calls: tool_calls as u64, usage: self.usage() });
        self.tell_hooks(Hook::AfterStep, self.spec().agent.clone(), subject).await
    }

    fn hook_event(&self, seq: u64, point: Hook, object: String, subject: Value) -> HookEvent {
        let spec = self.spec();
        HookEvent { point, pid: Some(spec.pid), seq, agent: spec.agent.clone(), object, at_ms: now_ms(), subject }
    }

    /// Tells that a page left the window or came back.
    pub(super) async fn tell_page(&self, act: &Act, point: Hook, page: &Page) {
        if self.services().hooks.listens(point) {
            self.ask_hooks(act, self.hook_event(act.ticket.seq, point, kind_name(page), json!(page))).await;
        }
    }

    /// Asks whether pages may leave the window; those that may not.
    pub(super) async fn kept_pages(&self, act: &Act, pages: Vec<Page>) -> Vec<u64> {
        let mut kept = Vec::new();
        for page in pages {
            let event = self.hook_event(act.ticket.seq, Hook::BeforePageOut, kind_name(&page), json!(page));
            if self.ask_hooks(act, event).await.outcome != hook::Outcome::Pass {
                kept.push(page.page);
            }
        }
        kept
    }

    fn model_of(&self, options: &Options) -> String {
        options.model.as_ref().or(self.spec().model.as_ref()).cloned().unwrap_or_default()
    }

    fn tool_called(&self, call: &ToolCall) -> ToolCalled {
        let effect = match self.services().tools.find(&call.name) {
            Lookup::Found(entry) => Some(entry.spec.effect),
            Lookup::Ambiguous(_) | Lookup::Unknown => None,
        };
        let arguments = serde_json::from_str(&call.arguments).unwrap_or_else(|_| Value::from(call.arguments.as_str()));
        ToolCalled { id: call.id.clone(), name: call.name.clone(), arguments, effect }
    }

    fn tool_done(&self, call: &ToolCall, done: &Done) -> ToolDone {
        let outcome = match &done.outcome {
            Outcome::Text(text) => {
                ToolOutcome::Ok(serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str())))
            }
            Outcome::Failed(e) => ToolOutcome::Error(e.into()),
            _ => ToolOutcome::Ok(Value::Null),
        };
        ToolDone { call: self.tool_called(call), outcome, fuel: done.cost.fuel, duration_us: done.cost.duration_us }
    }
}

/// What became of a result, for the audit record.
pub(super) struct Held {
    pub(super) by: String,
    pub(super) verb: &'static str,
}

fn llm_done(options: &Options, done: &Done) -> LlmDone {
    let outcome = match &done.outcome {
        Outcome::Reply(reply) => LlmOutcome::Reply(reply.clone()),
        Outcome::Failed(e) => LlmOutcome::Error(e.into()),
        other => LlmOutcome::Error((&Error::new(Errno::Io, format!("a model call gave {other:?}"))).into()),
    };
    LlmDone { call: options.clone().into(), outcome }
}

/// The word for a page's kind, which matchers are held against.
fn kind_name(page: &Page) -> String {
    json!(page.kind).as_str().unwrap_or_default().to_owned()
}

/// The syscall that a rewritten subject stands for. The subject fits its schema.
fn rewrite(syscall: &Syscall, subject: Value) -> Result<Syscall, String> {
    match syscall {
        Syscall::Call { call, page } => {
            let new: ToolCalled = serde_json::from_value(subject).map_err(|e| e.to_string())?;
            if new.id != call.id {
                return Err("`id` must stay as it is".to_owned());
            }
            let call = ToolCall { id: new.id, name: new.name, arguments: new.arguments.to_string() };
            Ok(Syscall::Call { call, page: *page })
        }
        Syscall::Generate(_) => serde_json::from_value::<LlmCall>(subject)
            .map(|call| Syscall::Generate(call.into()))
            .map_err(|e| e.to_string()),
        Syscall::Send { .. } | Syscall::Publish { .. } => rewrite_message(syscall, subject),
        _ => Err("there is nothing to rewrite".to_owned()),
    }
}

/// A message as hooks are shown it.
fn sent(syscall: &Syscall) -> Option<Sent> {
    let (to, topic, body, reply_to) = match syscall {
        Syscall::Send { to, topic, body, reply_to } => (Some(*to), topic, body, *reply_to),
        Syscall::Publish { topic, body } => (None, topic, body, None),
        _ => return None,
    };
    let text = String::from_utf8(body.0.clone()).ok();
    Some(Sent { to: to.map(|pid| pid.0), topic: topic.clone(), text, bytes: body.0.len() as u64, reply_to })
}

fn rewrite_message(syscall: &Syscall, subject: Value) -> Result<Syscall, String> {
    let new: Sent = serde_json::from_value(subject).map_err(|e| e.to_string())?;
    let old = sent(syscall).ok_or("it is no message")?;
    if (new.to, new.reply_to) != (old.to, old.reply_to) {
        return Err("`to` and `reply_to` must stay as they are".to_owned());
    }
    let (mut syscall, body) = (syscall.clone(), new.text.map(|text| Input(text.into_bytes())));
    if let Syscall::Send { topic, body: old, .. } | Syscall::Publish { topic, body: old } = &mut syscall {
        *topic = new.topic;
        // Bytes that are no text are not shown, so they stay.
        if let Some(body) = body {
            *old = body;
        }
    }
    Ok(syscall)
}

/// The outcome that a rewritten subject holds. The rest of it is what was, and not looked at: a number that is read and
/// written again may have other last digits.
fn rewritten_outcome(outcome: &Outcome, mut subject: Value) -> Result<Outcome, String> {
    let new = subject.get_mut("outcome").map(Value::take).unwrap_or_default();
    if let Outcome::Reply(reply) = outcome {
        return match serde_json::from_value(new).map_err(|e| e.to_string())? {
            // What it cost is a fact.
            LlmOutcome::Reply(new) => Ok(Outcome::Reply(crate::abi::Reply { usage: reply.usage, ..new })),
            LlmOutcome::Error(failure) => Ok(Outcome::Failed(failure.into())),
        };
    }
    if new.get("reply").is_some() {
        return Err("a model call that failed has no reply".to_owned());
    }
    match serde_json::from_value(new).map_err(|e| e.to_string())? {
        ToolOutcome::Ok(value) => Ok(Outcome::Text(value.to_string())),
        ToolOutcome::Error(failure) => Ok(Outcome::Failed(failure.into())),
    }
}

impl From<Options> for LlmCall {
    fn from(o: Options) -> Self {
        let Options { model, tools, temperature, max_tokens, response_schema } = o;
        Self { model, tools, temperature, max_tokens, response_schema }
    }
}

impl From<LlmCall> for Options {
    fn from(c: LlmCall) -> Self {
        let LlmCall { model, tools, temperature, max_tokens, response_schema } = c;
        Self { model, tools, temperature, max_tokens, response_schema }
    }
}
