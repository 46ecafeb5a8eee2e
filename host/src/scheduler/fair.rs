//! The fair order: one worker's runnable tasks in heaps of heaps, group by group, tree by tree.
//!
//! It owns the nesting. Virtual runtimes are not its own (`share.rs`): other workers raise them while they
//! are keys here. They only grow, so a key is at worst too small: the head of a heap is compared with the
//! account before it counts, and sinks to its place if it is behind.

use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::queue::{Entry, Policy};
use super::share::{Group, NO_SLOT, Place, Shares, Tree};

/// One worker's tasks, each group and tree in the heap above while something of it is queued here.
pub(super) struct Fair<T> {
    worker: usize,
    shares: Arc<Shares>,
    order: BinaryHeap<Ranked<u32>>,
    groups: Slots<OfGroup>,
    trees: Slots<OfTree<T>>,
    /// Empty heaps that keep their memory: a tree of one task comes and goes with each slice.
    spare: Vec<BinaryHeap<Ranked<Entry<T>>>>,
    len: usize,
    /// Numbers what enters: the older one first where virtual runtimes are equal.
    entered: u64,
}

struct OfGroup {
    group: Arc<Group>,
    /// Its trees' slots.
    order: BinaryHeap<Ranked<u32>>,
}

struct OfTree<T> {
    tree: Arc<Tree>,
    order: BinaryHeap<Ranked<Entry<T>>>,
}

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

    fn peek(&self, slot: u32) -> Option<&V> {
        self.values.get(slot as usize)?.as_ref()
    }

    fn free(&mut self, slot: u32) -> Option<V> {
        let value = self.values.get_mut(slot as usize)?.take();
        self.free.push(slot);
        value
    }
}

/// Brings a heap's head up to date.
fn settle<V>(heap: &mut BinaryHeap<Ranked<V>>, key_of: impl Fn(&V) -> u64) {
    loop {
        // Alone it is the head, whatever its key: an account that others write to stays unread.
        if heap.len() <= 1 {
            return;
        }
        let Some(mut head) = heap.peek_mut() else {
            return;
        };
        let key = key_of(&head.value);
        if key <= head.key {
            return;
        }
        // Written through, so that the heap sifts.
        head.key = key;
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

    /// The slots of the group and the tree that come first, each with its heap's head up to date.
    fn first(&mut self) -> Option<(u32, u32)> {
        let (groups, trees) = (&mut self.groups, &mut self.trees);
        settle(&mut self.order, |slot| groups.peek(*slot).map_or(0, |g| g.group.vruntime()));
        let group_slot = self.order.peek()?.value;
        let group = groups.get(group_slot)?;
        settle(&mut group.order, |slot| trees.peek(*slot).map_or(0, |t| t.tree.vruntime()));
        let tree_slot = group.order.peek()?.value;
        let tree = trees.get(tree_slot)?;
        settle(&mut tree.order, |entry| entry.claim.vruntime());
        Some((group_slot, tree_slot))
    }

    /// The slot of a tree, which is queued along with its group if it is not yet.
    fn slot_of(&mut self, group: &Arc<Group>, tree: &Arc<Tree>) -> u32 {
        let found = tree.slots[self.worker].load(Ordering::Relaxed);
        if found != NO_SLOT {
            return found;
        }
        let mut group_slot = group.slots[self.worker].load(Ordering::Relaxed);
        if group_slot == NO_SLOT {
            group_slot = self.groups.put(OfGroup { group: Arc::clone(group), order: BinaryHeap::new() });
            group.slots[self.worker].store(group_slot, Ordering::Relaxed);
            self.order.push(Ranked { key: group.vruntime(), entered: self.entered, value: group_slot });
        }
        let order = self.spare.pop().unwrap_or_default();
        let tree_slot = self.trees.put(OfTree { tree: Arc::clone(tree), order });
        tree.slots[self.worker].store(tree_slot, Ordering::Relaxed);
        if let Some(group) = self.groups.get(group_slot) {
            group.order.push(Ranked { key: tree.vruntime(), entered: self.entered, value: tree_slot });
        }
        tree_slot
    }

    /// Takes the first tree out of its group, and the group, the first too, out of the order if it was
    /// the last one.
    fn drop_first(&mut self, group_slot: u32, tree_slot: u32) {
        if let Some(tree) = self.trees.free(tree_slot) {
            tree.tree.slots[self.worker].store(NO_SLOT, Ordering::Relaxed);
            self.spare.push(tree.order);
        }
        let Some(group) = self.groups.get(group_slot) else {
            return;
        };
        group.order.pop();
        if group.order.is_empty() {
            self.order.pop();
            if let Some(group) = self.groups.free(group_slot) {
                group.group.slots[self.worker].store(NO_SLOT, Ordering::Relaxed);
            }
        }
    }
}

impl<T: Send> Policy<T> for Fair<T> {
    fn enqueue(&mut self, entry: Entry<T>) {
        self.entered += 1;
        let slot = self.slot_of(&entry.claim.group, &entry.claim.tree);
        if let Some(tree) = self.trees.get(slot) {
            tree.order.push(Ranked { key: entry.claim.vruntime(), entered: self.entered, value: entry });
            self.len += 1;
        }
    }

    fn next(&mut self) -> Option<Entry<T>> {
        let (group_slot, tree_slot) = self.first()?;
        let tree = self.trees.get(tree_slot)?;
        let entry = tree.order.pop()?.value;
        if tree.order.is_empty() {
            self.drop_first(group_slot, tree_slot);
        }
        self.len -= 1;
        self.shares.picked(&entry.claim);
        Some(entry)
    }

    fn head(&mut self) -> Option<Place> {
        let (_, tree_slot) = self.first()?;
        Some(self.trees.get(tree_slot)?.order.peek()?.value.claim.place())
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
    use super::super::share::{Bounds, Claim, TaskSpec};
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
        let order: Vec<_> = std::iter::from_fn(|| fair.next()).map(|e| e.item).collect();
        assert_eq!(order, [2, 1, 0, 3]);
        assert!(fair.head().is_none() && fair.len() == 0);
    }

    #[test]
    fn equals_are_served_in_the_order_of_their_coming() {
        let shares = shares();
        let mut fair = Fair::new(0, Arc::clone(&shares));
        for i in 0..10 {
            fair.enqueue(entry(i, &join(&shares, i as u64, "a", i as u64 % 3)));
        }
        let order: Vec<_> = std::iter::from_fn(|| fair.next()).map(|e| e.item).collect();
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
                    let place = fair.head();
                    let Some(got) = fair.next().map(|e| e.item) else {
                        assert!(queued.is_empty());
                        continue;
                    };
                    assert_eq!(place, Some(claims[got].place()));
                    for other in &queued {
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
