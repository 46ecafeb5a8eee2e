//! The fair order: one worker's runnable tasks in heaps of heaps, group by group, tree by tree.
//!
//! It owns the nesting. Virtual runtimes are not its own (`share.rs`): other workers raise them while they
//! are keys here. They only grow, so a key is at worst too small: the head of a heap is compared with the
//! account before it counts, and sinks to its place if it is behind.

use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::queue::{Entry, Near, Policy};
use super::share::{Claim, Group, NO_SLOT, Place, Shares, Tree};

/// One worker's tasks, each group and tree in the heap above from the first task that is queued here until
/// it comes first without any.
pub(super) struct Fair<T> {
    worker: usize,
    shares: Arc<Shares>,
    order: BinaryHeap<Ranked<u32>>,
    groups: Slots<OfGroup>,
    trees: Slots<OfTree<T>>,
    /// Empty heaps that keep their memory: trees of one task come and go.
    spare: Vec<TaskHeap<T>>,
    len: usize,
    /// Numbers what enters: the older one first where virtual runtimes are equal.
    entered: u64,
}

struct OfGroup {
    group: Arc<Group>,
    /// In all its trees.
    tasks: usize,
    /// Its trees' slots.
    order: BinaryHeap<Ranked<u32>>,
}

struct OfTree<T> {
    tree: Arc<Tree>,
    order: TaskHeap<T>,
}

type TaskHeap<T> = BinaryHeap<Ranked<Entry<T>>>;

/// Something with its key. Reversed, because the standard heap gives the greatest first.
struct Ranked<V> {
    key: u64,
    entered: u64,
    value: V,
}

impl<V> Ord for Ranked<V> {
    fn cmp(&self, other: &Self) -> Order {
        (other.key, other.entered).cmp(&(self.key, self.entered))
    }
}

impl<V> PartialOrd for Ranked<V> {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl<V> PartialEq for Ranked<V> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl<V> Eq for Ranked<V> {}

/// Values by number; a freed number is used again.
struct Slots<V> {
    values: Vec<Option<V>>,
    free: Vec<u32>,
}

impl<V> Slots<V> {
    const fn new() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }

    fn put(&mut self, value: V) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.values[slot as usize] = Some(value);
            return slot;
        }
        self.values.push(Some(value));
        // As many as tasks at most: memory ends long before 2³².
        u32::try_from(self.values.len() - 1).unwrap_or(NO_SLOT)
    }

    fn get(&mut self, slot: u32) -> Option<&mut V> {
        self.values.get_mut(slot as usize)?.as_mut()
    }

    fn free(&mut self, slot: u32) -> Option<V> {
        let value = self.values.get_mut(slot as usize)?.take();
        self.free.push(slot);
        value
    }
}

/// Brings a heap of slots' head up to date and gives it; `key_of` says `None` of what is to leave the heap.
fn settle(heap: &mut BinaryHeap<Ranked<u32>>, mut key_of: impl FnMut(u32) -> Option<u64>) -> Option<u32> {
    loop {
        let mut head = heap.peek_mut()?;
        match key_of(head.value) {
            None => drop(PeekMut::pop(head)),
            Some(key) if key <= head.key => return Some(head.value),
            // Written through, so that the heap sifts.
            Some(key) => head.key = key,
        }
    }
}

impl<T> Fair<T> {
    pub(super) fn new(worker: usize, shares: Arc<Shares>) -> Self {
        Self {
            worker,
            shares,
            order: BinaryHeap::new(),
            groups: Slots::new(),
            trees: Slots::new(),
            spare: Vec::new(),
            len: 0,
            entered: 0,
        }
    }

    /// The slot of the group that comes first.
    fn first_group(&mut self) -> Option<u32> {
        let Self { worker, order, groups, trees, spare, .. } = self;
        settle(order, |slot| {
            let group = groups.get(slot)?;
            if group.tasks > 0 {
                return Some(group.group.vruntime());
            }
            for tree in std::mem::take(&mut group.order) {
                free_tree(*worker, trees, spare, tree.value);
            }
            group.group.slots[*worker].store(NO_SLOT, Ordering::Relaxed);
            groups.free(slot);
            None
        })
    }

    /// The slot of the tree of a group that comes first.
    fn first_tree(&mut self, group: u32) -> Option<u32> {
        let Self { worker, groups, trees, spare, .. } = self;
        settle(&mut groups.get(group)?.order, |slot| {
            let tree = trees.get(slot)?;
            if tree.order.is_empty() {
                free_tree(*worker, trees, spare, slot);
                return None;
            }
            Some(tree.tree.vruntime())
        })
    }

    /// The slots of the group and the tree of the task that comes first, which is its tree's head then.
    fn first(&mut self, near: Near<'_>) -> Option<(u32, u32)> {
        let worker = self.worker;
        let slot_in = |slots: &[AtomicU32]| Some(slots[worker].load(Ordering::Relaxed)).filter(|s| *s != NO_SLOT);
        let group = match near {
            Near::Any => self.first_group()?,
            Near::Group(claim) | Near::Tree(claim) => slot_in(&claim.group.slots)?,
        };
        let tree = match near {
            Near::Any | Near::Group(_) => self.first_tree(group)?,
            Near::Tree(claim) => slot_in(&claim.tree.slots)?,
        };
        let order = &mut self.trees.get(tree)?.order;
        loop {
            let mut head = order.peek_mut()?;
            let key = head.value.claim.vruntime();
            if key <= head.key {
                return Some((group, tree));
            }
            head.key = key;
        }
    }

    /// The slots of a group and a tree of it, which are put into the heaps if they are not there.
    fn slots_of(&mut self, group: &Arc<Group>, tree: &Arc<Tree>) -> (u32, u32) {
        let mut group_slot = group.slots[self.worker].load(Ordering::Relaxed);
        if group_slot == NO_SLOT {
            group_slot = self.groups.put(OfGroup { group: Arc::clone(group), tasks: 0, order: BinaryHeap::new() });
            group.slots[self.worker].store(group_slot, Ordering::Relaxed);
            self.order.push(Ranked { key: group.vruntime(), entered: self.entered, value: group_slot });
        }
        let mut tree_slot = tree.slots[self.worker].load(Ordering::Relaxed);
        if tree_slot == NO_SLOT {
            let order = self.spare.pop().unwrap_or_default();
            tree_slot = self.trees.put(OfTree { tree: Arc::clone(tree), order });
            tree.slots[self.worker].store(tree_slot, Ordering::Relaxed);
            if let Some(group) = self.groups.get(group_slot) {
                group.order.push(Ranked { key: tree.vruntime(), entered: self.entered, value: tree_slot });
            }
        }
        (group_slot, tree_slot)
    }
}

fn free_tree<T>(worker: usize, trees: &mut Slots<OfTree<T>>, spare: &mut Vec<TaskHeap<T>>, slot: u32) {
    if let Some(tree) = trees.free(slot) {
        tree.tree.slots[worker].store(NO_SLOT, Ordering::Relaxed);
        spare.push(tree.order);
    }
}

impl<T: Send> Policy<T> for Fair<T> {
    fn enqueue(&mut self, entry: Entry<T>) {
        self.entered += 1;
        let (group, tree) = self.slots_of(&entry.claim.group, &entry.claim.tree);
        if let (Some(group), Some(tree)) = (self.groups.get(group), self.trees.get(tree)) {
            group.tasks += 1;
            tree.order.push(Ranked { key: entry.claim.vruntime(), entered: self.entered, value: entry });
            self.len += 1;
        }
    }

    fn next(&mut self, near: Near<'_>) -> Option<Entry<T>> {
        let (group, tree) = self.first(near)?;
        let entry = self.trees.get(tree)?.order.pop()?.value;
        // Emptied groups and trees stay until they are first: most get their task back before.
        self.groups.get(group)?.tasks -= 1;
        self.len -= 1;
        self.shares.picked(&entry.claim);
        Some(entry)
    }

    fn head(&mut self, near: Near<'_>) -> Option<(Place, Arc<Claim>)> {
        let (_, tree) = self.first(near)?;
        let claim = &self.trees.get(tree)?.order.peek()?.value.claim;
        Some((claim.place(), Arc::clone(claim)))
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl<T> Drop for Fair<T> {
    /// A queue that took this one's place finds no slot numbers of it.
    fn drop(&mut self) {
        for group in self.groups.values.iter().flatten() {
            group.group.slots[self.worker].store(NO_SLOT, Ordering::Relaxed);
        }
        for tree in self.trees.values.iter().flatten() {
            tree.tree.slots[self.worker].store(NO_SLOT, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::super::queue::Reason;
    use super::super::share::{Bounds, TaskSpec};
    use super::super::weights::Nice;
    use super::*;
    use crate::process::Pid;

    fn shares() -> Arc<Shares> {
        Arc::new(Shares::new(2, Bounds { woken: 0, running: 0, charged: 0 }))
    }

    fn join(shares: &Shares, pid: u64, group: &str, tree: u64) -> Arc<Claim> {
        shares.join(&TaskSpec { pid: Pid(pid), group: Arc::from(group), tree, nice: Nice::default() })
    }

    fn entry(item: usize, claim: &Arc<Claim>) -> Entry<usize> {
        Entry { item, claim: Arc::clone(claim), ticket: 0, since_ns: 0, reason: Reason::SliceUsed }
    }

    #[test]
    fn the_first_group_then_the_first_tree_then_the_first_task() {
        let shares = shares();
        let mut fair = Fair::new(0, Arc::clone(&shares));
        let claims: Vec<_> = [("a", 1), ("a", 1), ("a", 2), ("b", 3)]
            .iter()
            .enumerate()
            .map(|(i, (group, tree))| join(&shares, 10 + i as u64, group, *tree))
            .collect();
        for (i, ns) in [30, 10, 5, 100].into_iter().enumerate() {
            claims[i].charge(ns);
            fair.enqueue(entry(i, &claims[i]));
        }
        // Group a has 45 and b 100; in a, tree 1 has 40 and tree 2 has 5.
        let order: Vec<_> = std::iter::from_fn(|| fair.next(Near::Any)).map(|e| e.item).collect();
        assert_eq!(order, [2, 1, 0, 3]);
        assert!(fair.head(Near::Any).is_none() && fair.len() == 0);
    }

    #[test]
    fn equals_are_served_in_the_order_of_their_coming() {
        let shares = shares();
        let mut fair = Fair::new(0, Arc::clone(&shares));
        for i in 0..10 {
            fair.enqueue(entry(i, &join(&shares, i as u64, "a", i as u64 % 3)));
        }
        let order: Vec<_> = std::iter::from_fn(|| fair.next(Near::Any)).map(|e| e.item).collect();
        // Tree by tree, each in order: nobody was charged in between.
        assert_eq!(order, [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]);
    }

    /// Keys go stale whenever somebody else is charged: what comes out must be the least all the same.
    #[test]
    fn the_head_is_the_least_whatever_is_charged_meanwhile() {
        let seed = super::super::tests::seed();
        let mut rng = StdRng::seed_from_u64(seed);
        let shares = shares();
        let mut fair = Fair::new(1, Arc::clone(&shares));
        let claims: Vec<_> = (0..60)
            .map(|i| {
                let group = rng.random_range(0..4);
                join(&shares, i, &format!("g{group}"), 100 * group + rng.random_range(0..3))
            })
            .collect();
        let mut queued: Vec<usize> = Vec::new();
        let mut free: Vec<usize> = (0..claims.len()).collect();
        for _ in 0..20_000 {
            match rng.random_range(0..3) {
                0 if !free.is_empty() => {
                    let i = free.swap_remove(rng.random_range(0..free.len()));
                    fair.enqueue(entry(i, &claims[i]));
                    queued.push(i);
                }
                1 => claims[rng.random_range(0..claims.len())].charge(rng.random_range(0..1_000)),
                _ => {
                    // Among all, or in some group or tree only.
                    let of = &claims[rng.random_range(0..claims.len())];
                    let near = [Near::Any, Near::Any, Near::Group(of), Near::Tree(of)][rng.random_range(0..4)];
                    let counts = |other: &usize| match near {
                        Near::Any => true,
                        Near::Group(of) => Arc::ptr_eq(&of.group, &claims[*other].group),
                        Near::Tree(of) => Arc::ptr_eq(&of.tree, &claims[*other].tree),
                    };
                    let place = fair.head(near).map(|(place, _)| place);
                    let Some(got) = fair.next(near).map(|e| e.item) else {
                        assert!(!queued.iter().any(counts));
                        continue;
                    };
                    assert_eq!(place, Some(claims[got].place()));
                    for other in queued.iter().filter(|other| counts(other)) {
                        let lead = claims[got].place().lead_over(&claims[*other].place());
                        assert!(lead <= 0, "{got} came before {other}, which it is {lead} ahead of");
                    }
                    queued.retain(|i| *i != got);
                    free.push(got);
                }
            }
            assert_eq!(fair.len(), queued.len());
        }
    }
}
