//! Which group goes next: weighted fair queueing over the slot seconds that groups use.
//!
//! Each group has a virtual time: slot seconds used, divided by its weight. The group with calls waiting
//! whose virtual time is least goes next (start-time fair queueing, Goyal et al., SIGCOMM 1996). A call's
//! service is known only afterwards, so it is charged what calls took of late when it gets its slot, and
//! the difference when it gives the slot back.
//!
//! A group that was idle comes back at most [`LAG`] behind the others: what it did not use meanwhile is
//! gone, and a pause of a moment costs it nothing. One that is new has no such credit.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::process::weight;

/// Slot seconds, at weight 1024, that a group may make good at once.
pub(super) const LAG: f64 = 10.0;

/// Groups that are remembered while they are idle.
const MOST_IDLE: usize = 1024;

/// One group.
#[derive(Debug, Default)]
struct Group {
    /// Relative to the usual weight.
    weight: f64,
    /// Virtual time in seconds.
    time: f64,
    waiting: usize,
    running: usize,
}

/// All groups that have calls, and some that had.
#[derive(Debug)]
pub(super) struct Shares {
    groups: BTreeMap<Arc<str>, Group>,
    /// The virtual time of the group that went last: what the others are measured by.
    time: f64,
    /// Slot seconds that a call takes, as of late.
    usual: f64,
}

/// What a call was charged when it got its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charge(f64);

impl Shares {
    pub(super) fn new() -> Self {
        Self { groups: BTreeMap::new(), time: 0.0, usual: 1.0 }
    }

    /// A call of the group waits.
    pub(super) fn join(&mut self, name: &Arc<str>, group_weight: u32) {
        let time = self.time;
        if self.groups.len() >= MOST_IDLE && !self.groups.contains_key(name) {
            self.groups.retain(|_, g| g.waiting + g.running > 0 || g.time > time - LAG);
        }
        let group = self.groups.entry(Arc::clone(name)).or_insert_with(|| Group { time, ..Group::default() });
        group.weight = f64::from(group_weight.max(1)) / f64::from(weight::NORMAL);
        if group.waiting + group.running == 0 {
            group.time = group.time.max(time - LAG);
        }
        group.waiting += 1;
    }

    /// A call of the group does not wait any longer and got no slot.
    pub(super) fn leave(&mut self, name: &str) {
        if let Some(group) = self.groups.get_mut(name) {
            group.waiting -= 1;
        }
    }

    /// The group whose call goes next.
    pub(super) fn next(&self) -> Option<&Arc<str>> {
        let waiting = self.groups.iter().filter(|(_, g)| g.waiting > 0);
        waiting.min_by(|a, b| a.1.time.total_cmp(&b.1.time)).map(|(name, _)| name)
    }

    /// A waiting call of the group gets a slot.
    pub(super) fn charge(&mut self, name: &str) -> Charge {
        let charge = Charge(self.usual);
        if let Some(group) = self.groups.get_mut(name) {
            self.time = self.time.max(group.time);
            group.waiting -= 1;
            group.running += 1;
            group.time += charge.0 / group.weight;
        }
        charge
    }

    /// A call of the group gave its slot back after so many seconds.
    pub(super) fn settle(&mut self, name: &str, charge: Charge, seconds: f64) {
        self.usual += (seconds - self.usual) / 32.0;
        if let Some(group) = self.groups.get_mut(name) {
            group.running -= 1;
            group.time += (seconds - charge.0) / group.weight;
        }
    }
}
