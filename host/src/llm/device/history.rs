//! What programs went on to use, learned from those that ended.
//!
//! Kept per agent and for all together: of the programs that made a call after their k-th, how much service
//! they had from there to their end, and how that went with what they had had before. Sums only, of a fixed
//! number, whatever the number of programs; older programs count less and less. Nothing is written to the
//! store: after a restart it is learned again.

use std::collections::HashMap;
use std::sync::Arc;

use super::policy::Program;

/// Numbers of calls that are told apart one by one; larger ones share steps, each an eighth wider.
const EXACT: usize = 48;

/// Steps in all: they reach a hundred thousand calls.
const STEPS: usize = EXACT + 64;

/// What a sum keeps of itself with each program that is added: a half after a thousand.
const KEEP: f64 = 0.999_307;

/// Programs that the running means look back on.
const WINDOW: f64 = 500.0;

/// Agents of whom something is kept; the one heard of longest ago makes room.
const MOST_AGENTS: usize = 1024;

/// Programs that are worth as much as the guess that they correct.
const DOUBT: f64 = 2.0;

/// The same for the slope, which few programs tell badly.
const SLOPE_DOUBT: f64 = 3.0;

/// The step of programs that made `calls` calls.
fn step(calls: usize) -> usize {
    match calls.checked_sub(EXACT) {
        None => calls,
        Some(_) => (EXACT + ((calls as f64 / EXACT as f64).ln() / 1.125_f64.ln()) as usize).min(STEPS - 1),
    }
}

/// Programs that made a call from this step on: sums over them, in slot seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    programs: f64,
    had: f64,
    had_squared: f64,
    left: f64,
    had_left: f64,
}

impl Step {
    fn fade(&mut self) {
        for sum in [&mut self.programs, &mut self.had, &mut self.had_squared, &mut self.left, &mut self.had_left] {
            *sum *= KEEP;
        }
    }

    fn add(&mut self, had: f64, left: f64) {
        self.programs += 1.0;
        self.had += had;
        self.had_squared += had * had;
        self.left += left;
        self.had_left += had * left;
    }

    /// `guess` of what is left, corrected by these programs: the line through them at `had`.
    fn correct(&self, had: f64, guess: f64) -> f64 {
        let n = self.programs;
        if n <= 0.0 {
            return guess;
        }
        let (mean_had, mean_left) = (self.had / n, self.left / n);
        let spread = self.had_squared / n - mean_had * mean_had;
        let together = self.had_left / n - mean_had * mean_left;
        // Each of the two doubts draws the slope to none.
        let trust = (n / (n + SLOPE_DOUBT)).powi(2);
        let slope = if spread > 1e-9 { trust * together / spread } else { 0.0 };
        let line = slope.mul_add(had - mean_had, mean_left).max(0.1 * mean_left);
        (DOUBT * guess + n * line) / (DOUBT + n)
    }
}

#[derive(Clone, Debug)]
struct Sums {
    steps: Vec<Step>,
    /// Which program it last learned from.
    last: u64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { steps: vec![Step::default(); STEPS], last: 0 }
    }
}

impl Sums {
    fn learn(&mut self, course: &[f32], nth: u64) {
        self.last = nth;
        self.steps.iter_mut().for_each(Step::fade);
        let total = course.last().map_or(0.0, |s| f64::from(*s));
        let had = std::iter::once(0.0).chain(course.iter().map(|s| f64::from(*s)));
        // After the last of its calls it made none: that is no sample.
        for (calls, had) in had.take(course.len()).enumerate() {
            self.steps[step(calls)].add(had, total - had);
        }
    }
}

/// Means over the programs that ended of late.
#[derive(Clone, Copy, Debug, Default)]
struct Means {
    programs: f64,
    work: f64,
    work_squared: f64,
    wait: f64,
    error_squared: f64,
}

/// What is usual among the programs that ended of late.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usual {
    /// Slot seconds of a program.
    pub(super) work: f64,
    /// Seconds that a program waits for slots.
    pub(super) wait: f64,
    /// How much of the variance of `work` was expected when the programs came: 0 nothing, 1 all of it.
    pub(super) explained: f64,
}

/// The history of all agents.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    all: Sums,
    agents: HashMap<Arc<str>, Sums>,
    means: Means,
    /// Programs so far.
    learned: u64,
}

impl History {
    /// Learns from a program that ended.
    pub(super) fn learn(&mut self, program: &Program) {
        let Some(total) = program.course.last().map(|s| f64::from(*s)) else { return };
        let error = self.left(&program.agent, 0, 0.0) - total;
        let m = &mut self.means;
        m.programs = (m.programs + 1.0).min(WINDOW);
        let n = m.programs;
        m.work += (total - m.work) / n;
        m.work_squared += (total * total - m.work_squared) / n;
        m.wait += (program.waited - m.wait) / n;
        m.error_squared += (error * error - m.error_squared) / n;

        self.learned += 1;
        self.all.learn(&program.course, self.learned);
        if !self.agents.contains_key(&program.agent) && self.agents.len() >= MOST_AGENTS {
            let oldest = self.agents.iter().min_by_key(|(_, sums)| sums.last).map(|(agent, _)| Arc::clone(agent));
            oldest.and_then(|agent| self.agents.remove(&agent));
        }
        self.agents.entry(Arc::clone(&program.agent)).or_default().learn(&program.course, self.learned);
    }

    /// The service that a program which wants one more call is expected to have yet, in slot seconds.
    ///
    /// What programs of its agent went on to use after as many calls; where few are known, drawn to what all
    /// programs did; where few of those are, to as much again as it has had, which by itself is the order
    /// of attained service.
    #[must_use]
    pub(super) fn expected(&self, program: &Program) -> f64 {
        self.left(&program.agent, program.course.len(), program.served)
    }

    fn left(&self, agent: &str, calls: usize, had: f64) -> f64 {
        let at = step(calls);
        let guess = self.all.steps[at].correct(had, had);
        self.agents.get(agent).map_or(guess, |sums| sums.steps[at].correct(had, guess))
    }

    /// What is usual; nothing is while no program has ended.
    #[must_use]
    pub(super) fn usual(&self) -> Usual {
        let m = self.means;
        let variance = m.work.mul_add(-m.work, m.work_squared);
        let explained = if variance > 1e-9 { (1.0 - m.error_squared / variance).clamp(0.0, 1.0) } else { 0.0 };
        Usual { work: m.work, wait: m.wait, explained }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of so many calls of one second each, `done` of which are over.
    fn program(agent: &str, calls: usize) -> Program {
        let course: Vec<f32> = (1..=calls).map(|n| n as f32).collect();
        let served = calls as f64;
        Program { id: 1, agent: agent.into(), arrived: 0.0, served, waited: 0.0, turns: 0, course }
    }

    #[test]
    fn each_agent_has_its_own_history_and_strangers_have_everybodys() {
        let mut history = History::default();
        assert_eq!(history.expected(&program("short", 3)), 3.0, "as much again as it has had");
        for _ in 0..200 {
            history.learn(&program("short", 4));
            history.learn(&program("long", 40));
        }
        let left = |agent: &str, calls: usize| history.expected(&program(agent, calls));
        assert!((left("short", 0) - 4.0).abs() < 0.3, "{}", left("short", 0));
        assert!((left("long", 0) - 40.0).abs() < 0.7, "{}", left("long", 0));
        assert!((left("long", 30) - 10.0).abs() < 0.7, "{}", left("long", 30));
        assert!((left("new", 0) - 22.0).abs() < 0.5, "{}", left("new", 0));
        // None that made four calls was short.
        assert!((left("new", 4) - 36.0).abs() < 0.7, "{}", left("new", 4));
        // Longer than anything that was seen: as much again.
        assert_eq!(left("long", 100), 100.0);
        assert!(history.usual().explained > 0.8, "{:?}", history.usual());
        assert!((history.usual().work - 22.0).abs() < 0.1, "{:?}", history.usual());
    }

    #[test]
    fn what_a_program_has_had_tells_of_what_it_will_have() {
        let mut history = History::default();
        for n in 0..400 {
            // Two calls each: whoever had a long first one has a second as long.
            let first = if n % 2 == 0 { 1.0 } else { 3.0 };
            history.learn(&Program { course: vec![first, 2.0 * first], ..program("a", 0) });
        }
        let left = |had: f64| history.expected(&Program { served: had, ..program("a", 1) });
        assert!((left(1.0) - 1.0).abs() < 0.1 && (left(3.0) - 3.0).abs() < 0.1, "{} {}", left(1.0), left(3.0));
        assert!(left(-100.0) > 0.0, "what is left is never nothing");
    }

    #[test]
    fn what_changes_is_learned_anew_and_little_is_kept() {
        let mut history = History::default();
        (0..2000).for_each(|_| history.learn(&program("a", 4)));
        (0..4000).for_each(|_| history.learn(&program("a", 20)));
        let left = history.expected(&program("a", 0));
        assert!(left > 18.0, "{left}");
        for n in 0..3 * MOST_AGENTS {
            history.learn(&program(&n.to_string(), 1));
        }
        assert_eq!(history.agents.len(), MOST_AGENTS);
        history.learn(&program("endless", Program::MOST_CALLS));
        assert!(step(usize::MAX) < STEPS && step(EXACT) == EXACT && step(EXACT - 1) == EXACT - 1);
    }

    #[test]
    fn names_that_tell_nothing_explain_nothing() {
        let mut history = History::default();
        for n in 0..1000_usize {
            let agent = if n.is_multiple_of(3) { "a" } else { "b" };
            history.learn(&program(agent, if (n / 3).is_multiple_of(2) { 2 } else { 20 }));
        }
        assert!(history.usual().explained < 0.05, "{:?}", history.usual());
    }
}
