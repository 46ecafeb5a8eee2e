//! dev
use super::history::History;
use super::policy::{Call, Policy, Program, Rank};

#[derive(Clone, Debug)]
pub struct Expected {
    history: History,
    pub ageing: f64,
    pub grace: f64,
    pub mode: u32,
}

impl Default for Expected {
    fn default() -> Self {
        Self { history: History::default(), ageing: 0.3, grace: 2.0, mode: 0 }
    }
}

impl Policy for Expected {
    fn rank(&self, call: &Call, program: &Program) -> Rank {
        let left = self.history.expected(program);
        let total = left + program.served;
        let free = self.grace * total;
        let falls_from = match self.mode {
            0 => call.since - program.waited + free,
            1 => program.arrived + free,
            _ => call.since - program.waited + self.grace * 20.0,
        };
        let mut base = left / call.weight;
        if falls_from < call.since { }
        Rank { base, falls_from, rate: self.ageing * call.weight }
    }
    fn finished(&mut self, program: &Program) {
        self.history.learn(program);
    }
}
