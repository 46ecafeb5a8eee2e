//! `HookChain`: which hooks stand where, in which order they are asked, and what becomes of their answers.

use std::cmp::Ordering as Order;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wildmatch::WildMatch;

use super::{Answer, Fall, Handler, Hook, HookEvent, Phase, Power, Verdict, subject};

/// Failures in a row after which a hook is barred.
const STRIKES: u32 = 3;

/// What the chain as a whole says.
#[derive(Debug)]
pub struct Asked {
    /// The verdict.
    pub outcome: Outcome,
    /// The subject as the last hook left it.
    pub subject: Value,
    /// The hooks that rewrote it, in order.
    pub rewritten_by: Vec<String>,
    /// Fuel that the hooks used.
    pub fuel: u64,
}

/// The verdict of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No hook objected.
    Pass,
    /// A hook refused.
    Denied {
        /// Its name.
        by: String,
        /// Its reason.
        reason: String,
    },
    /// A hook wants a person to decide, and none refused.
    Asks {
        /// Its name.
        by: String,
        /// Its question.
        reason: String,
    },
}

/// Where a hook wants to stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// The point.
    pub point: Hook,
    /// Its place there.
    pub phase: Phase,
    /// Lower ones are asked first; of equal ones, the hook whose name comes first.
    pub priority: i32,
    /// A glob (`*`, `?`) on the event's object; all when absent.
    pub matcher: Option<String>,
}

/// A hook at one point, as `hook ls` shows it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Where, and in which order.
    pub at: Subscription,
    /// The plugin, or the name of a native hook.
    pub plugin: String,
    /// Whether it may rewrite.
    pub trusted: bool,
    /// Why it is not asked any more.
    pub barred: Option<String>,
    /// Events that it was asked about.
    pub calls: u64,
    /// Those that it refused.
    pub denied: u64,
    /// Those that it gave no valid answer to.
    pub failures: u64,
}

/// What all places of one hook share.
#[derive(Debug)]
struct Reputation {
    name: String,
    /// Registered by the program around the kernel, and no plugin's.
    native: bool,
    trusted: AtomicBool,
    strikes: AtomicU32,
    barred: OnceLock<String>,
}

struct Entry {
    at: Subscription,
    glob: Option<WildMatch>,
    hook: Arc<Reputation>,
    handler: Arc<dyn Handler>,
    calls: AtomicU64,
    denied: AtomicU64,
    failures: AtomicU64,
}

impl Entry {
    fn concerns(&self, event: &HookEvent) -> bool {
        self.glob.as_ref().is_none_or(|glob| glob.matches(&event.object))
    }

    /// Whether what it says counts.
    fn decides(&self) -> bool {
        self.at.phase != Phase::Telemetry && self.at.point.power() != Power::Observe
    }

    fn order(&self, other: &Self) -> Order {
        let key = |e: &Self| (e.at.phase, e.at.priority);
        key(self).cmp(&key(other)).then_with(|| self.hook.name.cmp(&other.hook.name))
    }

    /// Asks it, holds its answer against what it may say, and counts.
    async fn ask(&self, event: &HookEvent, fuel: u64) -> Answer {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut answer = self.handler.on_event(event, fuel).await;
        if let Ok(verdict) = &answer.verdict
            && self.decides()
            && let Err(why) = self.may_say(event.point, verdict)
        {
            answer.verdict = Err(Fall::Own(why));
        }
        match &answer.verdict {
            Ok(verdict) => {
                self.hook.strikes.store(0, Ordering::Relaxed);
                if matches!(verdict, Verdict::Deny(_)) {
                    self.denied.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(_) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        answer
    }

    fn may_say(&self, point: Hook, verdict: &Verdict) -> Result<(), String> {
        let name = &self.hook.name;
        match verdict {
            Verdict::Rewrite(_) if !self.hook.trusted.load(Ordering::Relaxed) => Err(format!(
                "it rewrote the subject, and only trusted hooks may: `aok plugin trust {name}` pins its component"
            )),
            Verdict::Rewrite(new) => subject::check(point, new)
                .map_err(|why| format!("it rewrote the subject into one that does not fit {point}: {why}")),
            Verdict::Ask(_) if point.power() == Power::Filter => {
                Err("it asked a person about a result, which can only be let through, rewritten or denied".to_owned())
            }
            _ => Ok(()),
        }
    }
}

type Points = [Vec<Arc<Entry>>; Hook::ALL.len()];
type OnBarred = Box<dyn Fn(&str, &str) + Send + Sync>;

/// All hooks, native and components, by point and in the order in which they are asked.
#[derive(Default)]
pub struct HookChain {
    points: RwLock<Arc<Points>>,
    /// A bit for each point where somebody stands, so that the others cost a load.
    listening: AtomicU32,
    on_barred: OnceLock<OnBarred>,
}

impl fmt::Debug for HookChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookChain").finish_non_exhaustive()
    }
}

/// A hook that is a Rust function. It runs in the caller's turn and must not block.
struct Native<F>(F);

impl<F> fmt::Debug for Native<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Native")
    }
}

#[async_trait]
impl<F: Fn(&HookEvent) -> Verdict + Send + Sync> Handler for Native<F> {
    async fn on_event(&self, event: &HookEvent, _: u64) -> Answer {
        Answer { verdict: Ok((self.0)(event)), fuel: 0 }
    }
}

impl HookChain {
    /// Calls `f` with a hook's name and the reason when it is barred. The first one that is set stays.
    pub fn when_barred(&self, f: impl Fn(&str, &str) + Send + Sync + 'static) {
        drop(self.on_barred.set(Box::new(f)));
    }

    /// Adds a native hook, trusted as the program is that it is part of. `name` is what a refused caller is told.
    pub fn register(
        &self,
        at: Subscription,
        name: impl Into<String>,
        callback: impl Fn(&HookEvent) -> Verdict + Send + Sync + 'static,
    ) {
        let hook = Arc::new(Reputation::new(name.into(), true, true));
        let entry = Entry::new(at, hook, Arc::new(Native(callback)));
        self.change(|points| {
            let place = &mut points[entry.at.point.index()];
            place.push(Arc::new(entry));
            place.sort_by(|a, b| a.order(b));
        });
    }

    /// Puts a plugin's hooks in the place of those that it had, in one step, with a clean record.
    pub fn swap(&self, plugin: &str, at: Vec<Subscription>, handler: &Arc<dyn Handler>, trusted: bool) {
        let hook = Arc::new(Reputation::new(plugin.to_owned(), false, trusted));
        self.change(|points| {
            remove(points, plugin);
            for at in at {
                let place = &mut points[at.point.index()];
                place.push(Arc::new(Entry::new(at, Arc::clone(&hook), Arc::clone(handler))));
                place.sort_by(|a, b| a.order(b));
            }
        });
    }

    /// Takes a plugin's hooks out. One that is being asked ends as it would have.
    pub fn withdraw(&self, plugin: &str) {
        self.change(|points| remove(points, plugin));
    }

    /// Says whether a plugin's hooks may rewrite.
    pub fn trust(&self, plugin: &str, trusted: bool) {
        let points = self.points();
        for entry in points.iter().flatten().filter(|e| e.hook.is_of(plugin)) {
            entry.hook.trusted.store(trusted, Ordering::Relaxed);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Points)) {
        let mut points = self.points.write().unwrap_or_else(PoisonError::into_inner);
        let mut new = Points::clone(&points);
        change(&mut new);
        let listening = Hook::ALL.into_iter().filter(|p| !new[p.index()].is_empty()).map(|p| 1 << p.index()).sum();
        *points = Arc::new(new);
        self.listening.store(listening, Ordering::Release);
    }

    fn points(&self) -> Arc<Points> {
        Arc::clone(&self.points.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether anybody stands at `point`; the subject need not be built otherwise.
    #[must_use]
    pub fn listens(&self, point: Hook) -> bool {
        self.listening.load(Ordering::Acquire) & (1 << point.index()) != 0
    }

    /// Whether nobody stands anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listening.load(Ordering::Acquire) == 0
    }

    /// Every hook at every point, by point and in the order in which they are asked.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        self.points().iter().flatten().map(|e| e.standing()).collect()
    }

    /// Asks the hooks of `event.point` with at most so much fuel: those that decide until one refuses, then those that
    /// watch, which are told what was decided.
    pub async fn ask(&self, event: HookEvent, fuel: u64) -> Asked {
        self.ask_some(event, fuel, |_| true).await
    }

    /// Tells those that watch about something that others have refused already.
    pub async fn tell(&self, event: HookEvent, fuel: u64) -> Asked {
        self.ask_some(event, fuel, |entry| !entry.decides()).await
    }

    async fn ask_some(&self, mut event: HookEvent, fuel: u64, wanted: impl Fn(&Entry) -> bool) -> Asked {
        let points = self.points();
        let entries = points[event.point.index()].iter().filter(|e| wanted(e) && e.concerns(&event));
        let (deciding, watching): (Vec<_>, Vec<_>) = entries.partition(|e| e.decides());
        let mut used = 0;
        let mut outcome = Outcome::Pass;
        let mut rewritten_by = Vec::new();
        for entry in deciding {
            match self.verdict(entry, &event, fuel - used, &mut used).await {
                Verdict::Allow => {}
                Verdict::Rewrite(subject) => {
                    rewritten_by.push(entry.hook.name.clone());
                    event.subject = subject;
                }
                Verdict::Ask(reason) if outcome == Outcome::Pass => {
                    outcome = Outcome::Asks { by: entry.hook.name.clone(), reason };
                }
                Verdict::Ask(_) => {}
                Verdict::Deny(reason) => {
                    outcome = Outcome::Denied { by: entry.hook.name.clone(), reason };
                    break;
                }
            }
        }
        if !watching.is_empty() {
            let plain = (event.point.power() == Power::Gate).then(|| event.subject.clone());
            if plain.is_some() {
                event.subject["decision"] = decision(&outcome, &rewritten_by);
            }
            for entry in watching {
                self.verdict(entry, &event, fuel - used, &mut used).await;
            }
            if let Some(plain) = plain {
                event.subject = plain;
            }
        }
        Asked { outcome, subject: event.subject, rewritten_by, fuel: used }
    }

    /// What one hook's answer comes to: that of a gate which fails is a refusal, that of an observer nothing.
    async fn verdict(&self, entry: &Entry, event: &HookEvent, fuel: u64, used: &mut u64) -> Verdict {
        let hook = &entry.hook;
        let refused = |why: String| if entry.decides() { Verdict::Deny(why) } else { Verdict::Allow };
        if let Some(why) = hook.barred.get() {
            return refused(format!("it is barred ({why}); replace or remove it, or start the kernel again"));
        }
        let answer = entry.ask(event, fuel).await;
        *used = used.saturating_add(answer.fuel.min(fuel));
        let fall = match answer.verdict {
            Ok(verdict) => return verdict,
            Err(fall) => fall,
        };
        tracing::warn!(hook = hook.name, point = %event.point, "the hook gave no verdict: {}", fall.why());
        if matches!(fall, Fall::Own(_)) && hook.strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES {
            let why = format!("{STRIKES} failures in a row, the last at {}: {}", event.point, fall.why());
            if hook.barred.set(why.clone()).is_ok()
                && let Some(tell) = self.on_barred.get()
            {
                tell(&hook.name, &why);
            }
        }
        refused(format!("it failed: {}", fall.why()))
    }
}

fn decision(outcome: &Outcome, rewritten_by: &[String]) -> Value {
    let said = |verdict: &str, by: Option<&str>, reason: Option<&str>| {
        json!(subject::Decision {
            verdict: verdict.to_owned(),
            by: by.map(str::to_owned),
            reason: reason.map(str::to_owned),
        })
    };
    match outcome {
        Outcome::Denied { by, reason } => said("deny", Some(by), Some(reason)),
        Outcome::Asks { by, reason } => said("ask", Some(by), Some(reason)),
        Outcome::Pass => match rewritten_by.last() {
            Some(by) => said("rewrite", Some(by), None),
            None => said("allow", None, None),
        },
    }
}

fn remove(points: &mut Points, plugin: &str) {
    for place in points {
        place.retain(|e| !e.hook.is_of(plugin));
    }
}

impl Reputation {
    fn new(name: String, native: bool, trusted: bool) -> Self {
        Self { name, native, trusted: trusted.into(), strikes: AtomicU32::new(0), barred: OnceLock::new() }
    }

    fn is_of(&self, plugin: &str) -> bool {
        !self.native && self.name == plugin
    }
}

impl Entry {
    fn new(at: Subscription, hook: Arc<Reputation>, handler: Arc<dyn Handler>) -> Self {
        let glob = at.matcher.as_deref().map(WildMatch::new);
        Self { at, glob, hook, handler, calls: 0.into(), denied: 0.into(), failures: 0.into() }
    }

    fn standing(&self) -> Standing {
        Standing {
            at: self.at.clone(),
            plugin: self.hook.name.clone(),
            trusted: self.hook.trusted.load(Ordering::Relaxed),
            barred: self.hook.barred.get().cloned(),
            calls: self.calls.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

impl Subscription {
    /// The place of a hook that says nothing more.
    #[must_use]
    pub fn at(point: Hook) -> Self {
        Self { point, phase: Phase::default(), priority: 0, matcher: None }
    }
}

#[cfg(test)]
mod tests;
