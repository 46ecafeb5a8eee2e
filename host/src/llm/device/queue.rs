//! The device's state without threads, timers or futures: who waits, who has a slot, who is next.
//!
//! Time is a number of seconds that the caller gives and that never falls. The kernel drives it by the
//! machine's clock, the simulator and the tests by their own.
//!
//! A free slot goes to the group that is furthest behind its share (`shares`), in it to the call of the
//! lowest rank (`policy`), and only when neither a pause nor the minute (`minute`) holds that call up. It
//! is not passed by one that the minute would allow: a large prompt would never have its turn.

use std::collections::HashMap;
use std::sync::Arc;

use super::minute::{Limits, Minute};
use super::policy::{Call, Policy, Program, Rank};
use super::shares::{Charge, Shares};
use crate::process::weight;

/// Programs that are remembered; of more, those that are neither waiting nor running are forgotten.
const MOST_PROGRAMS: usize = 65_536;

/// On whose behalf a call waits: its own process's, or that of one that waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The group whose share pays.
    pub group: Arc<str>,
    /// The group's weight, 1024 being the usual one.
    pub group_weight: u32,
    /// −20 … 19.
    pub nice: i8,
}

impl Default for Standing {
    fn default() -> Self {
        Self { group: "default".into(), group_weight: weight::NORMAL, nice: 0 }
    }
}

/// A call that asks for a slot.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The process that makes it, for [`Queue::raise`].
    pub pid: u64,
    /// The root of its process tree.
    pub program: u64,
    /// Its agent's name.
    pub agent: Arc<str>,
    /// Its own standing.
    pub standing: Standing,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
}

/// What [`Queue::next`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// This call has a slot now.
    Grant(u64),
    /// This call is next and has to wait until then, in seconds of the device's clock.
    At(u64, f64),
    /// Nobody waits, or no slot is free.
    Nothing,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    pid: u64,
    program: u64,
    own: Standing,
    raised: Option<Standing>,
    call: Call,
    /// When it joined the queue: later than `call.since` for an attempt that is made again.
    joined: f64,
    rank: Rank,
}

impl Waiter {
    fn standing(&self) -> &Standing {
        self.raised.as_ref().unwrap_or(&self.own)
    }
}

#[derive(Debug)]
struct Running {
    program: u64,
    group: Arc<str>,
    charge: Charge,
    since: f64,
    prompt_tokens: u32,
}

#[derive(Debug)]
struct Tree {
    program: Program,
    /// Calls that wait or run.
    active: usize,
    ended: bool,
}

/// Slots and those who want them.
#[derive(Debug)]
pub struct Queue {
    slots: usize,
    policy: Box<dyn Policy>,
    minute: Minute,
    shares: Shares,
    waiting: HashMap<Arc<str>, Vec<Waiter>>,
    running: HashMap<u64, Running>,
    programs: HashMap<u64, Tree>,
    paused: f64,
    last_id: u64,
}

fn weight_of(standing: &Standing) -> f64 {
    f64::from(weight::of_nice(standing.nice)) / f64::from(weight::NORMAL)
}

impl Queue {
    /// A queue for at least one slot.
    #[must_use]
    pub fn new(slots: usize, policy: Box<dyn Policy>, limits: Limits) -> Self {
        Self {
            slots: slots.max(1),
            policy,
            minute: Minute::new(limits),
            shares: Shares::new(),
            waiting: HashMap::new(),
            running: HashMap::new(),
            programs: HashMap::new(),
            paused: 0.0,
            last_id: 0,
        }
    }

    /// Takes in a call that was made at `since`, which is `now` or earlier; its id, by which the others name it.
    pub fn push(&mut self, ticket: Ticket, since: f64, now: f64) -> u64 {
        self.last_id += 1;
        let Ticket { pid, program: id, agent, standing: own, prompt_tokens } = ticket;
        if self.programs.len() >= MOST_PROGRAMS && !self.programs.contains_key(&id) {
            self.programs.retain(|_, t| t.active > 0);
        }
        let tree = self.programs.entry(id).or_insert_with(|| Tree {
            program: Program { id, agent, arrived: since, served: 0.0, waited: 0.0, turns: 0, course: Vec::new() },
            active: 0,
            ended: false,
        });
        tree.active += 1;
        let call = Call { since, prompt_tokens, weight: weight_of(&own) };
        let rank = self.policy.rank(&call, &tree.program);
        self.enter(Waiter { id: self.last_id, pid, program: id, own, raised: None, call, joined: now, rank });
        self.last_id
    }

    fn enter(&mut self, waiter: Waiter) {
        let Standing { group, group_weight, .. } = waiter.standing();
        self.shares.join(group, *group_weight);
        match self.waiting.get_mut(group) {
            Some(waiters) => waiters.push(waiter),
            None => drop(self.waiting.insert(Arc::clone(group), vec![waiter])),
        }
    }

    /// Takes out the waiting calls that `which` names.
    fn take(&mut self, which: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        let mut taken = Vec::new();
        for (group, waiters) in &mut self.waiting {
            let before = taken.len();
            taken.extend(waiters.extract_if(.., |w| which(w)));
            (before..taken.len()).for_each(|_| self.shares.leave(group));
        }
        self.waiting.retain(|_, waiters| !waiters.is_empty());
        taken
    }

    /// A waiting call is given up.
    pub fn cancel(&mut self, id: u64) {
        for waiter in self.take(|w| w.id == id) {
            self.rest(waiter.program);
        }
    }

    /// One call of a program less waits or runs.
    fn rest(&mut self, program: u64) {
        let Some(tree) = self.programs.get_mut(&program) else { return };
        tree.active -= 1;
        if tree.ended && tree.active == 0 {
            self.forget(program);
        }
    }

    fn forget(&mut self, program: u64) {
        if let Some(tree) = self.programs.remove(&program) {
            self.policy.finished(&tree.program);
        }
    }

    /// Raises the calls of a process that wait to the standing of one that waits for it; `None` when that
    /// one does so no longer. A nice value is never made worse by it.
    pub fn raise(&mut self, pid: u64, to: Option<&Standing>) {
        for mut waiter in self.take(|w| w.pid == pid) {
            waiter.raised = to.map(|to| Standing { nice: to.nice.min(waiter.own.nice), ..to.clone() });
            waiter.call.weight = weight_of(waiter.standing());
            if let Some(tree) = self.programs.get(&waiter.program) {
                waiter.rank = self.policy.rank(&waiter.call, &tree.program);
            }
            self.enter(waiter);
        }
    }

    /// Gives nobody a slot until then, in seconds of the device's clock. A later pause counts, an earlier
    /// one does not.
    pub fn pause_until(&mut self, at: f64) {
        self.paused = self.paused.max(at);
    }

    /// Gives a free slot to the call that is next. It is asked until it says something else than
    /// [`Next::Grant`]: after each change, and at the time of [`Next::At`].
    pub fn next(&mut self, now: f64) -> Next {
        if self.running.len() >= self.slots {
            return Next::Nothing;
        }
        let Some(group) = self.shares.next().cloned() else { return Next::Nothing };
        // A group that the shares take for waiting is in `waiting`.
        let Some(waiters) = self.waiting.get_mut(&group) else { return Next::Nothing };
        let order = |a: &Waiter, b: &Waiter| a.rank.at(now).total_cmp(&b.rank.at(now)).then(a.id.cmp(&b.id));
        let Some((at, next)) = waiters.iter().enumerate().min_by(|a, b| order(a.1, b.1)) else {
            return Next::Nothing;
        };
        if self.paused > now {
            return Next::At(next.id, self.paused);
        }
        if let Err(later) = self.minute.admit(now, next.call.prompt_tokens) {
            return Next::At(next.id, later);
        }
        let Waiter { id, program, call, joined, .. } = waiters.swap_remove(at);
        if waiters.is_empty() {
            self.waiting.remove(&group);
        }
        if let Some(tree) = self.programs.get_mut(&program) {
            tree.program.turns += 1;
            tree.program.waited += (now - joined).max(0.0);
        }
        let charge = self.shares.charge(&group);
        self.running.insert(id, Running { program, group, charge, since: now, prompt_tokens: call.prompt_tokens });
        Next::Grant(id)
    }

    /// A call gives its slot back. Its group and its program are charged for the time; it is one of the
    /// program's calls in the history only if it `counts` (a failed attempt does not).
    pub fn release(&mut self, id: u64, now: f64, counts: bool) {
        let Some(Running { program, group, charge, since, .. }) = self.running.remove(&id) else { return };
        let seconds = (now - since).max(0.0);
        self.shares.settle(&group, charge, seconds);
        if let Some(tree) = self.programs.get_mut(&program) {
            tree.program.served += seconds;
            if counts && tree.program.course.len() < Program::MOST_CALLS {
                tree.program.course.push(tree.program.served as f32);
            }
            if tree.active > 1 {
                let waiters = self.waiting.values_mut().flatten().filter(|w| w.program == program);
                waiters.for_each(|w| w.rank = self.policy.rank(&w.call, &tree.program));
            }
        }
        self.rest(program);
    }

    /// A call gives its slot back and asked nobody: what the minute allowed it is for the next.
    pub fn return_unused(&mut self, id: u64, now: f64) {
        if let Some(running) = self.running.get(&id) {
            self.minute.not_made(running.prompt_tokens);
        }
        self.release(id, now, false);
    }

    /// A process tree ended: the policy learns from it once its last call is over.
    pub fn finished(&mut self, program: u64) {
        let Some(tree) = self.programs.get_mut(&program) else { return };
        tree.ended = true;
        if tree.active == 0 {
            self.forget(program);
        }
    }

    /// Calls that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.values().map(Vec::len).sum()
    }

    /// Programs that are remembered.
    #[must_use]
    pub fn programs(&self) -> usize {
        self.programs.len()
    }

    /// Calls that have a slot.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }
}
