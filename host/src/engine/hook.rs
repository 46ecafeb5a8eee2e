//! Hook components: asked once for what they want to hear of, then run for each event in a fresh store.

use std::time::Instant;

use wasmtime::component::{Component, ComponentExportIndex};

use super::limits::{Fall as End, classify};
use super::nested::Nested;
use super::{Engine, link_refusal};
use crate::abi::{Errno, Error, ToolResult};
use crate::bindings::hook::exports::agent_os::plugin::hook_handler as wit;
use crate::capability::Rights;
use crate::contract::Fault;
use crate::hook::{Fall, Hook, Phase, Question, Report, Subscription, Verdict};
use crate::quota::Limits;
use crate::tool::{Session, SessionEnd};

/// Most subscriptions of one component.
const MAX_SUBSCRIPTIONS: usize = 256;

/// A hook plugin's code, linked and ready to be instantiated.
#[derive(Debug)]
pub struct HookImage {
    code: Nested,
    subscriptions: ComponentExportIndex,
    on_event: ComponentExportIndex,
}

/// The interface that hooks are called through.
const HANDLER: &str = "agent-os:plugin/hook-handler@0.1.0";

impl HookImage {
    pub(super) fn new(engine: &Engine, component: &Component, limits: Limits) -> Result<Self, Fault> {
        let handler = component.get_export_index(None, HANDLER);
        let find = |name: &str| {
            let index = handler.and_then(|h| component.get_export_index(Some(&h), name));
            index.ok_or_else(|| link_refusal(&wasmtime::Error::msg(format!("it exports no `{name}`"))))
        };
        let (subscriptions, on_event) = (find("subscriptions")?, find("on-event")?);
        Ok(Self { code: Nested::new(engine, component, limits)?, subscriptions, on_event })
    }

    /// Asks the component what it wants to hear of, with no rights.
    pub(super) async fn subscriptions(&self) -> Result<Vec<Subscription>, Fault> {
        let refusal = |message: String| Fault {
            code: "subscriptions_failed",
            message,
            hint: "`subscriptions` must return without files, state or other rights".into(),
        };
        let limits = self.code.limits();
        let session = Session::detached(limits.log);
        let began = Instant::now();
        let mut store = self.code.store(session, Rights::default(), None, limits.fuel, began).map_err(refusal)?;
        let listed = self.code.within_wall(began, async {
            let instance = self.code.instantiate(&mut store).await?;
            let ask = instance.get_typed_func::<(), (Vec<wit::Subscription>,)>(&mut store, self.subscriptions)?;
            ask.call_async(&mut store, ()).await
        });
        let (all,) = listed.await.map_err(|e| match classify(&e, &store.data().meter) {
            End::Limit(_, why) | End::Trap(why) => refusal(format!("`subscriptions` failed: {why}")),
            End::Busy => refusal("`subscriptions` failed: too many guests run at once".to_owned()),
            End::Stop(stop) => refusal(format!("`subscriptions` failed: {stop}")),
        })?;
        if all.is_empty() || all.len() > MAX_SUBSCRIPTIONS {
            return Err(Fault {
                code: "invalid_subscriptions",
                message: format!("it has {} subscriptions; a hook has 1 to {MAX_SUBSCRIPTIONS}", all.len()),
                hint: "name the points that it wants in `subscriptions`".into(),
            });
        }
        Ok(all.into_iter().map(subscription).collect())
    }

    /// Answers one event.
    pub(crate) async fn answer(&self, question: Question<'_>, rights: Rights) -> Report {
        let Question { event, fuel: left, session } = question;
        let limits = self.code.limits();
        let fuel = left.min(limits.fuel);
        let began = Instant::now();
        let failed =
            |why: String| Report { verdict: Err(Fall::Elsewhere(why)), fuel: 0, session: SessionEnd::default() };
        let mut store = match self.code.store(session, rights, None, fuel, began) {
            Ok(store) => store,
            Err(why) => return failed(why),
        };
        let shown = wit::Event {
            point: point_to(event.point),
            pid: event.pid.map(|pid| pid.0),
            agent: event.pid.map(|_| event.agent.clone()),
            at_ms: event.at_ms,
            subject: event.subject.to_string(),
        };
        let called = self.code.within_wall(began, async {
            let instance = self.code.instantiate(&mut store).await?;
            let ask = instance.get_typed_func::<(&wit::Event,), (wit::Verdict,)>(&mut store, self.on_event)?;
            ask.call_async(&mut store, (&shown,)).await
        });
        let called = called.await;
        let verdict = match called {
            Ok((verdict,)) => Ok(verdict),
            Err(e) => Err(match classify(&e, &store.data().meter) {
                End::Limit(name, _) if name == "fuel" && fuel < limits.fuel => {
                    Fall::Elsewhere(format!("its caller had {fuel} fuel left"))
                }
                End::Limit(name, why) => Fall::Own(format!("{name}: {why}")),
                End::Busy => Fall::Elsewhere("too many guests run at once".to_owned()),
                End::Stop(stop) => Fall::Elsewhere(stop.to_string()),
                End::Trap(why) => Fall::Own(why),
            }),
        };
        let used = fuel.saturating_sub(store.get_fuel().unwrap_or(0));
        let mut words = words(verdict.as_ref().ok());
        let session = store.data_mut().close(&mut words);
        let verdict = verdict.and_then(|verdict| said(verdict, words, limits.output));
        Report { session: session.end(verdict.is_ok()), verdict, fuel: used }
    }
}

/// The words of a verdict: a document, or a reason.
fn words(verdict: Option<&wit::Verdict>) -> ToolResult {
    match verdict {
        Some(wit::Verdict::Rewrite(subject)) => Ok(subject.clone()),
        Some(wit::Verdict::Deny(reason) | wit::Verdict::Ask(reason)) => Err(Error::new(Errno::Denied, reason.clone())),
        Some(wit::Verdict::Allow) | None => Ok(String::new()),
    }
}

/// The verdict of a component in these words, if it is one.
fn said(verdict: wit::Verdict, words: ToolResult, most: u64) -> Result<Verdict, Fall> {
    let words = words.unwrap_or_else(|e| e.message);
    if words.len() as u64 > most {
        return Err(Fall::Own(format!("output: it answered with {} bytes, its `output` limit is {most}", words.len())));
    }
    Ok(match verdict {
        wit::Verdict::Allow => Verdict::Allow,
        wit::Verdict::Deny(_) => Verdict::Deny(words),
        wit::Verdict::Ask(_) => Verdict::Ask(words),
        wit::Verdict::Rewrite(_) => {
            let subject = serde_json::from_str(&words);
            Verdict::Rewrite(
                subject.map_err(|e| Fall::Own(format!("it rewrote the subject into what is no JSON: {e}")))?,
            )
        }
    })
}

fn subscription(s: wit::Subscription) -> Subscription {
    let phase = match s.phase {
        wit::Phase::Validate => Phase::Validate,
        wit::Phase::Authorize => Phase::Authorize,
        wit::Phase::Policy => Phase::Policy,
        wit::Phase::Telemetry => Phase::Telemetry,
    };
    Subscription { point: point_of(s.point), phase, priority: s.priority, matcher: s.matcher }
}

macro_rules! points {
    ($($name:ident),* $(,)?) => {
        fn point_of(point: wit::Point) -> Hook {
            match point {
                $(wit::Point::$name => Hook::$name,)*
            }
        }

        fn point_to(point: Hook) -> wit::Point {
            match point {
                $(Hook::$name => wit::Point::$name,)*
            }
        }
    };
}

points!(
    BeforeAgentSpawn,
    AfterAgentSpawn,
    BeforeStep,
    AfterStep,
    BeforeLlmCall,
    AfterLlmCall,
    BeforeToolCall,
    AfterToolCall,
    BeforePageOut,
    AfterPageOut,
    BeforePageIn,
    AfterPageIn,
    BeforeCheckpoint,
    AfterCheckpoint,
    OnMessage,
    OnQuotaExceeded,
    OnApproval,
    OnSignal,
    OnAgentExit,
    OnError,
    OnPluginLoad,
    OnPluginUnload,
    OnKernelStart,
    OnKernelStop,
);
