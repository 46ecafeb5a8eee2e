//! The default order: the program first that is expected to have least work left, with more and more regard
//! for those that have waited longer than is usual.
//!
//! The mean time of a program is least when the one with the least work left goes first. What is left is not
//! known; what programs of the same agent went on to use is ([`super::history`]). With it, this is the order
//! of shortest expected remaining time (SERPT), the plain relative of the Gittins index: it asks for a mean
//! where that one asks for the whole distribution. Without a history it is the order of attained service.
//!
//! That alone leaves those that are expected to be long behind for too long. So a program's earlier waits
//! count against its work by their square: measured in the wait that is usual, one of k times that length
//! is worth `AGEING × k²` usual programs. The square leaves those alone that wait as others do, and moves
//! those that would be the tail. How much of it is applied depends on how much of programs' work the
//! names of their agents explain: what tail costs in the mean, a good expectation has saved before.
//!
//! There is nothing to set: work and wait are measured in what was usual of late.

use super::history::History;
use super::policy::{Call, Policy, Program, Rank};

/// The work, in usual programs, that a wait of the usual length is worth where the expectation explains
/// everything: of a little over five times that length, a whole one.
pub const AGEING: f64 = 0.035;

/// The part of it that is left where the expectation explains nothing.
const AT_LEAST: f64 = 0.125;

/// Seconds of work that each second of the present wait is worth. A call that waits has no newcomer
/// before it after 20 s for each second of work that its program is expected to have left.
const PER_SECOND: f64 = 0.05;

/// Least expected work first, less what the wait is worth.
#[derive(Clone, Debug)]
pub struct Expected {
    history: History,
    ageing: f64,
}

impl Default for Expected {
    fn default() -> Self {
        Self::with_ageing(AGEING)
    }
}

impl Expected {
    /// With another weight of long waits than [`AGEING`]; 0 is for the mean alone. For comparison.
    #[must_use]
    pub fn with_ageing(ageing: f64) -> Self {
        Self { history: History::default(), ageing }
    }
}

impl Policy for Expected {
    fn rank(&self, call: &Call, program: &Program) -> Rank {
        let usual = self.history.usual();
        let left = self.history.expected(program);
        let part = (1.0 - usual.explained).mul_add(AT_LEAST, usual.explained);
        // Where hardly anybody waits, a wait is long when it is longer than the work.
        let long = usual.wait.max(usual.work).max(f64::MIN_POSITIVE);
        let waits = program.waited / long;
        let worth = self.ageing * part * usual.work;
        Rank {
            base: left / call.weight - worth * waits * waits * call.weight,
            from: call.since,
            rate: (2.0 * worth * waits / long + PER_SECOND) * call.weight,
        }
    }

    fn finished(&mut self, program: &Program) {
        self.history.learn(program);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(agent: &str, calls: usize, waited: f64) -> Program {
        let course: Vec<f32> = (1..=calls).map(|n| n as f32).collect();
        Program { id: 1, agent: agent.into(), arrived: 0.0, served: calls as f64, waited, turns: 0, course }
    }

    fn call(since: f64, weight: f64) -> Call {
        Call { since, prompt_tokens: 0, weight }
    }

    /// Clerks make 5 calls of a second, researchers 50; each waits 10 s in all.
    fn learned() -> Expected {
        let mut policy = Expected::default();
        for n in 0..400 {
            let (agent, calls) = if n % 4 == 0 { ("researcher", 50) } else { ("clerk", 5) };
            policy.finished(&program(agent, calls, 10.0));
        }
        policy
    }

    #[test]
    fn before_anything_is_learned_it_is_attained_service() {
        let policy = Expected::default();
        let rank = |calls| policy.rank(&call(0.0, 1.0), &program("a", calls, 0.0)).base;
        assert!(rank(0) < rank(1) && rank(1) < rank(7));
        assert!(rank(3).is_finite());
    }

    #[test]
    fn the_agent_that_has_less_to_do_goes_first_and_a_long_wait_turns_it() {
        let policy = learned();
        let at = |agent, calls, waited| policy.rank(&call(0.0, 1.0), &program(agent, calls, waited)).at(0.0);
        assert!(at("clerk", 0, 0.0) < at("researcher", 0, 0.0));
        assert!(at("researcher", 48, 0.0) < at("clerk", 0, 0.0), "two calls left are less than five");
        // The usual wait changes little, ten times that much does.
        assert!(at("clerk", 0, 0.0) < at("researcher", 0, 20.0));
        assert!(at("researcher", 0, 200.0) < at("clerk", 0, 0.0));
    }

    #[test]
    fn no_newcomer_passes_for_long_and_nice_counts() {
        let policy = learned();
        let rank = |agent, since, weight| policy.rank(&call(since, weight), &program(agent, 0, 0.0));
        let old = rank("researcher", 0.0, 1.0);
        let bound = 20.0 * old.base;
        assert!(rank("clerk", 1.0, 1.0).at(1.0) < old.at(1.0));
        assert!(old.at(bound + 1.0) < rank("clerk", bound + 1.0, 1.0).at(bound + 1.0));
        assert!(rank("researcher", 0.0, 20.0).at(0.0) < rank("clerk", 0.0, 1.0).at(0.0));
    }
}
