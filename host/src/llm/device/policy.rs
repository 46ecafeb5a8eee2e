//! Which waiting call of a group goes next: one trait, and the orders that others have published.
//!
//! A policy is pure: it sees what is known of a call and of its program, and `now` as a number, so that
//! the simulator drives the very code that the kernel runs. It knows no slots, no limits and no groups.
//!
//! All of the orders are work-conserving, which is enough for throughput (arXiv 2504.07347); they differ in
//! the mean and in the tail of what a whole program takes.

use std::fmt;
use std::sync::Arc;

use super::expected::Expected;

/// The names that [`by_name`] knows, the default first.
pub const NAMES: [&str; 5] = ["expected", "fifo", "round-robin", "program-order", "attained-service"];

/// The policy of that name; `None` when [`NAMES`] does not have it.
#[must_use]
pub fn by_name(name: &str) -> Option<Box<dyn Policy>> {
    Some(match name {
        "expected" => Box::new(Expected::default()),
        "fifo" => Box::new(Fifo),
        "round-robin" => Box::new(RoundRobin),
        "program-order" => Box::new(ProgramOrder),
        "attained-service" => Box::new(AttainedService),
        _ => return None,
    })
}

/// A call that waits.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// When it was made, in seconds of the device's clock.
    pub since: f64,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// What its nice value weighs, 1 at nice 0.
    pub weight: f64,
}

/// What the device knows of a process tree that asks for models.
#[derive(Clone, Debug)]
pub struct Program {
    /// The root's process id.
    pub id: u64,
    /// The agent that made the tree's first call.
    pub agent: Arc<str>,
    /// When that call was made, in seconds of the device's clock.
    pub arrived: f64,
    /// Slot seconds that it has had, in calls that ended.
    pub served: f64,
    /// Seconds that its calls have waited for slots, those that still wait not counted.
    pub waited: f64,
    /// Slots that it was given.
    pub turns: u32,
    /// `served` at the end of each call that counted, oldest first; the first [`Program::MOST_CALLS`].
    pub course: Vec<f32>,
}

impl Program {
    /// Calls of a program that are remembered one by one.
    pub const MOST_CALLS: usize = 4096;
}

/// A rank: `base` at a time, and lower by `rate` each second. The lowest is next; of two that are equal, the
/// call that joined the queue first.
///
/// It says how it changes, so that the policy looks at a waiting call once, and not at each free slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rank {
    /// What it is at `from`.
    pub base: f64,
    /// Seconds of the device's clock.
    pub from: f64,
    /// Per second.
    pub rate: f64,
}

impl Rank {
    /// One that stays.
    #[must_use]
    pub fn fixed(base: f64) -> Self {
        Self { base, from: 0.0, rate: 0.0 }
    }

    /// The time since `from`, weighted: the longer ago, the lower.
    #[must_use]
    pub fn since(from: f64, weight: f64) -> Self {
        Self { base: 0.0, from, rate: weight }
    }

    /// Its value at a time.
    #[must_use]
    pub fn at(self, now: f64) -> f64 {
        self.rate.mul_add(self.from - now, self.base)
    }
}

/// An order of the calls that wait in one group. It is called under the device's lock: it must not block.
pub trait Policy: Send + fmt::Debug {
    /// The rank of a call. It is asked again when a call of the same program ended or the weight changed.
    fn rank(&self, call: &Call, program: &Program) -> Rank;

    /// A program ended: the last that is heard of it.
    fn finished(&mut self, program: &Program) {
        let _ = program;
    }
}

/// First come, first served, call by call; a heavy call's wait counts as that much longer.
#[derive(Clone, Copy, Debug)]
pub struct Fifo;

impl Policy for Fifo {
    fn rank(&self, call: &Call, _: &Program) -> Rank {
        Rank::since(call.since, call.weight)
    }
}

/// Programs take turns: none has its next call before every other one that waits has had as many.
#[derive(Clone, Copy, Debug)]
pub struct RoundRobin;

impl Policy for RoundRobin {
    fn rank(&self, call: &Call, program: &Program) -> Rank {
        Rank::fixed(f64::from(program.turns) / call.weight)
    }
}

/// First come, first served by program: the program FCFS of Continuum (arXiv 2511.02230).
#[derive(Clone, Copy, Debug)]
pub struct ProgramOrder;

impl Policy for ProgramOrder {
    fn rank(&self, call: &Call, program: &Program) -> Rank {
        Rank::since(program.arrived, call.weight)
    }
}

/// The program that has had the least service first: PLAS of Autellix (arXiv 2502.13965).
#[derive(Clone, Copy, Debug)]
pub struct AttainedService;

impl Policy for AttainedService {
    fn rank(&self, call: &Call, program: &Program) -> Rank {
        Rank::fixed(program.served / call.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_and_no_others_are_known() {
        assert!(NAMES.iter().all(|name| by_name(name).is_some()));
        assert!(by_name("Expected").is_none() && by_name("").is_none());
    }

    /// Which of three calls each policy takes, by hand: (call made, program arrived, served, turns).
    #[test]
    fn each_order_is_its_own() {
        let of = |(since, arrived, served, turns): (f64, f64, f64, u32), weight: f64| {
            let program = Program { id: 1, agent: "a".into(), arrived, served, waited: 0.0, turns, course: vec![] };
            (Call { since, prompt_tokens: 0, weight }, program)
        };
        // The first waits longest, the second's program came first, the third's has had least.
        let calls = [(10.0, 9.0, 3.0, 2), (20.0, 1.0, 9.0, 1), (30.0, 25.0, 0.5, 5)];
        let first = |policy: &str, weights: [f64; 3]| {
            let policy = by_name(policy).unwrap();
            let ranks = calls.iter().zip(weights).map(|(c, w)| {
                let (call, program) = of(*c, w);
                policy.rank(&call, &program).at(40.0)
            });
            ranks.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
        };
        let even = [1.0; 3];
        assert_eq!(first("fifo", even), 0);
        assert_eq!(first("program-order", even), 1);
        assert_eq!(first("round-robin", even), 1);
        assert_eq!(first("attained-service", even), 2);
        assert_eq!(first("fifo", [1.0, 1.0, 4.0]), 2);
        assert_eq!(first("program-order", [2.0, 1.0, 1.0]), 0);
        assert_eq!(first("attained-service", [10.0, 1.0, 1.0]), 0);
        assert_eq!(first("round-robin", [1.0, 1.0, 9.0]), 2);
    }

    #[test]
    fn every_order_of_the_configuration_is_one_of_these() {
        let named: Vec<_> = crate::config::CallOrder::ALL.into_iter().map(crate::config::CallOrder::name).collect();
        assert_eq!(named, NAMES);
        assert!(NAMES.iter().all(|name| by_name(name).is_some()) && by_name("other").is_none());
    }
}
