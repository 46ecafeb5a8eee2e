//! Who spawned whom, of the processes that live under this kernel.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use super::lock;
use crate::process::Pid;

/// The tree. An orphan belongs to its spawner's spawner, or to nobody.
#[derive(Debug, Default)]
pub(super) struct Tree(Mutex<Edges>);

#[derive(Debug, Default)]
struct Edges {
    above: HashMap<Pid, Pid>,
    below: HashMap<Pid, BTreeSet<Pid>>,
}

impl Tree {
    /// A process lives.
    pub(super) fn add(&self, pid: Pid, spawner: Option<Pid>) {
        let Some(spawner) = spawner else { return };
        let mut edges = lock(&self.0);
        edges.above.insert(pid, spawner);
        edges.below.entry(spawner).or_default().insert(pid);
    }

    /// Who has it now: its spawner, or who adopted it.
    pub(super) fn above(&self, pid: Pid) -> Option<Pid> {
        lock(&self.0).above.get(&pid).copied()
    }

    /// A process ended: those that it leaves behind, and who has them now.
    pub(super) fn remove(&self, pid: Pid) -> (Vec<Pid>, Option<Pid>) {
        let mut edges = lock(&self.0);
        let heir = edges.above.remove(&pid);
        if let Some(siblings) = heir.and_then(|heir| edges.below.get_mut(&heir)) {
            siblings.remove(&pid);
        }
        let orphans: Vec<_> = edges.below.remove(&pid).unwrap_or_default().into_iter().collect();
        for orphan in &orphans {
            match heir {
                Some(heir) => {
                    edges.above.insert(*orphan, heir);
                    edges.below.entry(heir).or_default().insert(*orphan);
                }
                None => drop(edges.above.remove(orphan)),
            }
        }
        if let Some(heir) = heir.filter(|heir| edges.below.get(heir).is_some_and(BTreeSet::is_empty)) {
            edges.below.remove(&heir);
        }
        (orphans, heir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_go_up() {
        let tree = Tree::default();
        for (pid, spawner) in [(1, None), (2, Some(1)), (3, Some(2)), (4, Some(2)), (5, Some(3))] {
            tree.add(Pid(pid), spawner.map(Pid));
        }
        assert_eq!(tree.remove(Pid(2)), (vec![Pid(3), Pid(4)], Some(Pid(1))));
        assert_eq!((tree.above(Pid(3)), tree.above(Pid(5))), (Some(Pid(1)), Some(Pid(3))));
        assert_eq!(tree.remove(Pid(1)), (vec![Pid(3), Pid(4)], None));
        assert_eq!(tree.above(Pid(3)), None);
        for pid in [3, 4, 5] {
            tree.remove(Pid(pid));
        }
        let edges = lock(&tree.0);
        assert!(edges.above.is_empty() && edges.below.is_empty(), "{edges:?}");
    }
}
