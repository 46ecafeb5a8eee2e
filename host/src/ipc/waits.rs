//! Who waits for whom: refuses a wait that would close a cycle, and lends the claim of who waits to whom it waits for.
//!
//! A wait is an edge of a graph as long as its guard lives. A process may wait for several others at once, and several
//! may wait for it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::process::Pid;

/// Lends the claim of the first to the second until what it returns is dropped.
pub type Lend = dyn Fn(Pid, Pid) -> Option<Box<dyn Send>> + Send + Sync;

/// The graph.
#[derive(Default)]
pub struct Waits {
    edges: Mutex<HashMap<Pid, Vec<Pid>>>,
    lend: OnceLock<Box<Lend>>,
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waits").field("edges", &*self.edges()).finish_non_exhaustive()
    }
}

/// A wait that could never end: each of these waits for the next, and the last for the first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", told(.0))]
pub struct Cycle(pub Vec<Pid>);

fn told(path: &[Pid]) -> String {
    let names: Vec<_> = path.iter().map(|pid| format!("process {pid}")).collect();
    format!("{} would wait for each other for ever", names.join(", "))
}

/// A wait under way. It ends with this.
pub struct Wait<'a> {
    waits: &'a Waits,
    waiter: Pid,
    on: Pid,
    _loan: Option<Box<dyn Send>>,
}

impl fmt::Debug for Wait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wait({} on {})", self.waiter, self.on)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut edges = self.waits.edges();
        if let Some(on) = edges.get_mut(&self.waiter) {
            if let Some(at) = on.iter().position(|pid| *pid == self.on) {
                on.swap_remove(at);
            }
            if on.is_empty() {
                edges.remove(&self.waiter);
            }
        }
    }
}

impl Waits {
    fn edges(&self) -> MutexGuard<'_, HashMap<Pid, Vec<Pid>>> {
        // Whole at every instant.
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how claims are lent. The first one stays.
    pub fn set_lend(&self, lend: Box<Lend>) {
        // A kernel has one run queue.
        let _ = self.lend.set(lend);
    }

    /// Those that wait for a process, directly or through others.
    #[must_use]
    pub fn waiters(&self, on: Pid) -> Vec<Pid> {
        let edges = self.edges();
        let mut found = vec![on];
        let mut at = 0;
        while let Some(pid) = found.get(at).copied() {
            let direct = edges.iter().filter(|(_, awaited)| awaited.contains(&pid)).map(|(waiter, _)| *waiter);
            for waiter in direct {
                if !found.contains(&waiter) {
                    found.push(waiter);
                }
            }
            at += 1;
        }
        found.split_off(1)
    }

    /// Those that a process waits for, directly or through others.
    #[must_use]
    pub fn awaited(&self, by: Pid) -> Vec<Pid> {
        let edges = self.edges();
        let mut found = vec![by];
        let mut at = 0;
        while let Some(pid) = found.get(at).copied() {
            for on in edges.get(&pid).into_iter().flatten() {
                if !found.contains(on) {
                    found.push(*on);
                }
            }
            at += 1;
        }
        found.split_off(1)
    }

    /// Begins a wait.
    ///
    /// # Errors
    /// The cycle that it would close; then nothing is changed.
    pub fn begin(&self, waiter: Pid, on: Pid) -> Result<Wait<'_>, Cycle> {
        {
            let mut edges = self.edges();
            if let Some(path) = path(&edges, on, waiter) {
                return Err(Cycle(path));
            }
            edges.entry(waiter).or_default().push(on);
        }
        let _loan = self.lend.get().and_then(|lend| lend(waiter, on));
        Ok(Wait { waits: self, waiter, on, _loan })
    }
}

/// A way from one to the other along the edges.
fn path(edges: &HashMap<Pid, Vec<Pid>>, from: Pid, to: Pid) -> Option<Vec<Pid>> {
    let mut seen = HashSet::from([from]);
    let mut open = vec![vec![from]];
    while let Some(path) = open.pop() {
        let last = *path.last()?;
        if last == to {
            return Some(path);
        }
        for next in edges.get(&last).into_iter().flatten() {
            if seen.insert(*next) {
                let mut longer = path.clone();
                longer.push(*next);
                open.push(longer);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_cycle_is_refused_to_who_would_close_it() {
        let waits = Waits::default();
        assert_eq!(waits.begin(Pid(1), Pid(1)).unwrap_err(), Cycle(vec![Pid(1)]));
        let first = waits.begin(Pid(1), Pid(2)).unwrap();
        let _second = waits.begin(Pid(2), Pid(3)).unwrap();
        let cycle = waits.begin(Pid(3), Pid(1)).unwrap_err();
        assert_eq!(cycle, Cycle(vec![Pid(1), Pid(2), Pid(3)]));
        assert_eq!((waits.waiters(Pid(3)), waits.awaited(Pid(1))), (vec![Pid(2), Pid(1)], vec![Pid(2), Pid(3)]));
        assert_eq!((waits.waiters(Pid(1)), waits.awaited(Pid(3))), (vec![], vec![]));
        assert_eq!(cycle.to_string(), "process 1, process 2, process 3 would wait for each other for ever");
        drop(first);
        drop(waits.begin(Pid(3), Pid(1)).unwrap());
        assert_eq!(waits.edges().len(), 1);
    }

    #[test]
    fn a_claim_is_lent_as_long_as_the_wait() {
        struct Loan(Arc<AtomicUsize>);
        impl Drop for Loan {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let loans = Arc::new(AtomicUsize::new(0));
        let waits = Waits::default();
        let count = Arc::clone(&loans);
        waits.set_lend(Box::new(move |_, on| {
            (on != Pid(9)).then(|| {
                count.fetch_add(1, Ordering::SeqCst);
                Box::new(Loan(Arc::clone(&count))) as Box<dyn Send>
            })
        }));
        let wait = waits.begin(Pid(1), Pid(2)).unwrap();
        let none = waits.begin(Pid(1), Pid(9)).unwrap();
        assert_eq!(loans.load(Ordering::SeqCst), 1);
        drop((wait, none));
        assert_eq!(loans.load(Ordering::SeqCst), 0);
        assert!(waits.edges().is_empty());
    }
}
