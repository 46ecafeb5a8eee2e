//! What programs of an agent went on to use, learned from those that ended.
//!
//! Kept per agent and for all together: of the programs that made a call after their k-th, how much service
//! they had from there to their end. A fixed number of sums, whatever the number of programs; older programs
//! count less and less. Nothing is written to the store: after a restart it is learned again.

use std::collections::HashMap;
use std::sync::Arc;

use super::policy::Program;

/// Calls that are told apart; later ones share steps, each an eighth wider than the one before.
const STEPS: usize = 96;
const EXACT: usize = 48;

/// Programs after which all that came before counts half.
const HALF_LIFE: f64 = 1000.0;

/// Agents of whom something is kept; the one heard of longest ago makes room.
const MOST_AGENTS: usize = 1024;

/// Samples that are worth as much as the guess that they replace.
const DOUBT: f64 = 2.0;

/// The step of programs that made `calls` calls.
fn step(calls: usize) -> usize {
    if calls < EXACT {
        return calls;
    }
    // Lossless enough: beyond EXACT only the order of magnitude matters.
    let beyond = (calls as f64 / EXACT as f64).ln() / 1.125_f64.ln();
    (EXACT + beyond as usize).min(STEPS - 1)
}

/// Programs that reached a step, and what they had from there on.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    programs: f64,
    /// Slot seconds.
    remaining: f64,
}

#[derive(Clone, Debug)]
struct Sums {
    steps: Vec<Step>,
    /// The `learned` of the history when it was last added to.
    last: u64,
}

impl Sums {
    fn add(&mut self, program: &Program, learned: u64) {
        let total = program.course.last().copied().unwrap_or_default();
        let decay = 0.5_f64.powf((learned - self.last).min(1) as f64 / HALF_LIFE);
        for s in &mut self.steps {
            *s = Step { programs: s.programs * decay, remaining: s.remaining * decay };
        }
        let before = std::iter::once(0.0).chain(program.course.iter().copied());
        // One more call was made from each of these but the last.
        for (calls, served) in before.take(program.course.len()).enumerate() {
            let s = &mut self.steps[step(calls)];
            s.programs += 1.0;
            s.remaining += f64::from(total - served);
        }
        self.last = learned;
    }

    /// `guess`, corrected by as many samples as there are.
    fn correct(&self, calls: usize, guess: f64) -> f64 {
        let s = self.steps[step(calls)];
        DOUBT.mul_add(guess, s.remaining) / (DOUBT + s.programs)
    }
}

/// The history of all agents.
#[derive(Clone, Debug)]
pub struct History {
    all: Sums,
    agents: HashMap<Arc<str>, Sums>,
    /// Programs so far.
    learned: u64,
}

impl Default for History {
    fn default() -> Self {
        let all = Sums { steps: vec![Step::default(); STEPS], last: 0 };
        Self { all, agents: HashMap::new(), learned: 0 }
    }
}

impl History {
    /// Learns from a program that ended.
    pub fn learn(&mut self, program: &Program) {
        if program.course.is_empty() {
            return;
        }
        self.learned += 1;
        self.all.add(program, self.learned);
        if !self.agents.contains_key(&program.agent) && self.agents.len() >= MOST_AGENTS {
            let oldest = self.agents.iter().min_by_key(|(_, sums)| sums.last).map(|(agent, _)| Arc::clone(agent));
            oldest.and_then(|agent| self.agents.remove(&agent));
        }
        let none = || Sums { steps: vec![Step::default(); STEPS], last: self.learned };
        self.agents.entry(Arc::clone(&program.agent)).or_insert_with(none).add(program, self.learned);
    }

    /// The service that a program which waits for one more call is expected to have yet, in slot seconds.
    ///
    /// Of the programs of its agent that made as many calls, the mean; with few of them, drawn to the mean
    /// of all agents; with few of those, to as much again as it has had, which by itself is the order of
    /// attained service.
    #[must_use]
    pub fn expected(&self, program: &Program) -> f64 {
        let calls = program.course.len();
        let guess = self.all.correct(calls, program.served);
        self.agents.get(&program.agent).map_or(guess, |sums| sums.correct(calls, guess))
    }
}
