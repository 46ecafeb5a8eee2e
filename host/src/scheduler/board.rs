//! Where runnable tasks go: to which worker's queue, whom they make give way, what a worker takes next.
//!
//! It owns all queues, what each worker runs at this moment, and the length of slices. It knows no thread
//! and no clock: the simulator drives this very code in virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

use super::queue::{Entry, Near, PolicyKind, Queue};
use super::share::{Bounds, Claim, Place, Shares};

/// Differences below this many virtual nanoseconds move no task to another worker and preempt nobody: as
/// long as a short slice, so that it stays invisible, and many times what such a move costs.
const MARGIN_NS: i64 = 100_000;

/// A worker looks at the other queues' heads no more often than this; with slices of the default length
/// before every slice.
const LOOK_EVERY_NS: u64 = 100_000;

/// How long slices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceRule {
    /// The time in which every runnable task of a worker should get a turn. 10 ms: a tenth of what a
    /// person notices.
    pub target_latency: Duration,
    /// No slice is shorter, however many are runnable. 0.2 ms: a switch with its cold caches costs a few
    /// µs, so less than 2 % of that.
    pub floor: Duration,
    /// No slice is longer, however few are runnable. 5 ms: what a wake waits at worst if it may not
    /// preempt.
    pub ceiling: Duration,
}

impl Default for SliceRule {
    fn default() -> Self {
        Self {
            target_latency: Duration::from_millis(10),
            floor: Duration::from_micros(200),
            ceiling: Duration::from_millis(5),
        }
    }
}

impl SliceRule {
    /// Nanoseconds for each of `runnable` tasks of one worker. The floor wins over a lower ceiling.
    #[must_use]
    pub fn slice_ns(&self, runnable: usize) -> u64 {
        Slices::from(*self).ns(runnable)
    }
}

/// The same in nanoseconds, for every poll.
#[derive(Clone, Copy, Debug)]
struct Slices {
    target: u64,
    floor: u64,
    ceiling: u64,
}

impl From<SliceRule> for Slices {
    fn from(rule: SliceRule) -> Self {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Self { target: nanos(rule.target_latency), floor: nanos(rule.floor), ceiling: nanos(rule.ceiling) }
    }
}

impl Slices {
    fn ns(self, runnable: usize) -> u64 {
        (self.target / (runnable as u64).max(1)).min(self.ceiling).max(self.floor)
    }

    /// A sleeper may come back half a target latency behind the others: enough to be served at once, and
    /// no more than that ahead of anybody. Who runs may be four of them behind, which only a task that
    /// cannot use its share ever is. Use off the CPU delays by a hundred of them: a second.
    fn bounds(self) -> Bounds {
        let times = |n| self.target.saturating_mul(n);
        Bounds { woken: self.target / 2, running: times(4), charged: times(100) }
    }
}

/// What others see of a worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Seat {
    /// It has a task; the place below is that task's.
    busy: AtomicBool,
    /// Its task shall end its slice after the current interval.
    give_way: AtomicBool,
    dead: AtomicBool,
    /// The running task's place, as five words. A reader may see a mix of two tasks': it then makes one
    /// give way too early, or not.
    place: [AtomicU64; 5],
}

impl Seat {
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    pub(super) fn must_give_way(&self) -> bool {
        self.give_way.load(Ordering::Relaxed)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Tells the others which claim runs here, and again after each charge.
    pub(super) fn runs(&self, claim: &Claim) {
        let p = claim.place();
        for (to, from) in self.place.iter().zip([p.group, p.group_vruntime, p.tree, p.tree_vruntime, p.vruntime]) {
            to.store(from, Ordering::Relaxed);
        }
    }

    pub(super) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    fn place(&self) -> Place {
        let [group, group_vruntime, tree, tree_vruntime, vruntime] =
            self.place.each_ref().map(|word| word.load(Ordering::Relaxed));
        Place { group, group_vruntime, tree, tree_vruntime, vruntime }
    }
}

/// The queues of all workers and their seats.
pub(super) struct Board<T> {
    pub(super) policy: PolicyKind,
    slices: Slices,
    pub(super) shares: Arc<Shares>,
    queues: Box<[Queue<T>]>,
    pub(super) seats: Box<[Seat]>,
}

impl<T: Send + 'static> Board<T> {
    pub(super) fn new(workers: usize, policy: PolicyKind, rule: SliceRule) -> Self {
        let slices = Slices::from(rule);
        let shares = Arc::new(Shares::new(workers, slices.bounds()));
        Self {
            policy,
            slices,
            queues: (0..workers).map(|w| Queue::new(policy.order(w, &shares))).collect(),
            seats: (0..workers).map(|_| Seat::default()).collect(),
            shares,
        }
    }

    /// Queues an entry that nobody runs: at its home or at another sleeper's, where that worker sleeps;
    /// else where the task that runs is furthest ahead of it, which must give way then; else at home.
    /// Returns the worker.
    pub(super) fn put(&self, entry: Entry<T>, home: usize, asleep: impl Fn(usize) -> bool) -> usize {
        self.shares.admit(&entry.claim, entry.reason);
        let (mut to, gives_way) = self.route(&entry, home, asleep);
        if self.seats[to].is_dead() {
            to = self.alive(to);
        }
        self.queues[to].push(entry);
        if gives_way {
            self.seats[to].give_way.store(true, Ordering::Release);
        }
        to
    }

    fn route(&self, entry: &Entry<T>, home: usize, asleep: impl Fn(usize) -> bool) -> (usize, bool) {
        let n = self.seats.len();
        let from_home = || (0..n).map(|i| (home + i) % n);
        if let Some(sleeper) = from_home().find(|w| asleep(*w)) {
            return (sleeper, false);
        }
        if self.policy == PolicyKind::RoundRobin {
            return (home, false);
        }
        let place = entry.claim.place();
        let ahead = from_home().filter_map(|w| {
            let seat = &self.seats[w];
            let lead = seat.place().lead_over(&place);
            // One that gives way already does so for somebody else: better another one.
            (seat.is_busy() && lead > MARGIN_NS).then(|| (!seat.must_give_way(), lead, w))
        });
        // The first of equals, which is home if it is one of them.
        let most = ahead.reduce(|best, next| if (next.0, next.1) > (best.0, best.1) { next } else { best });
        most.map_or((home, false), |(_, _, w)| (w, true))
    }

    /// Makes a worker's task end its slice after its interval, and others see it at its true claim's place.
    pub(super) fn give_way(&self, worker: usize, claim: &Claim) {
        self.seats[worker].runs(claim);
        self.seats[worker].give_way.store(true, Ordering::Release);
    }

    /// What worker `me` runs next, after `back`, what it ran, is in its queue again. It looks at the other
    /// queues if its own is empty, and from time to time: `looked_ns` is when it last did.
    pub(super) fn next(&self, me: usize, now_ns: u64, looked_ns: &mut u64, back: Option<Entry<T>>) -> Option<Entry<T>> {
        // Lowered before the look, which sees what was queued before it was raised.
        if self.seats[me].must_give_way() {
            self.seats[me].give_way.swap(false, Ordering::Acquire);
        }
        if let Some(entry) = &back {
            self.shares.admit(&entry.claim, entry.reason);
        }
        let own = &self.queues[me];
        if self.queues.len() == 1 || now_ns.saturating_sub(*looked_ns) < LOOK_EVERY_NS {
            let next = if let Some(entry) = back { own.swap(entry) } else { own.pop() };
            return next.or_else(|| self.steal(me));
        }
        *looked_ns = now_ns;
        if let Some(entry) = back {
            own.push(entry);
        }
        self.take_lagging(me).or_else(|| own.pop()).or_else(|| self.steal(me))
    }

    /// Whether what `me` runs goes on after `used_ns` nanoseconds of its slice. The more tasks wait behind
    /// it the shorter the slice, also when they come while it runs: else it would be far ahead of them.
    pub(super) fn goes_on(&self, me: usize, used_ns: u64) -> bool {
        if self.seats[me].must_give_way() {
            return false;
        }
        // The division only where the answer depends on it.
        used_ns < self.slices.floor || used_ns < self.slices.ceiling && used_ns < self.slice_ns(me)
    }

    /// How long a slice of worker `me` is now.
    pub(super) fn slice_ns(&self, me: usize) -> u64 {
        self.slices.ns(self.queues[me].len() + 1)
    }

    /// What comes first in another queue and has had less than the own head, if the difference counts: of
    /// all, else of the own head's group, else of its tree. Without the latter a group that is never first in
    /// two queues at once would be served from both alike, however many of its tasks are in each.
    fn take_lagging(&self, me: usize) -> Option<Entry<T>> {
        let (mine, claim) = self.queues[me].try_head(Near::Any)?;
        [Near::Any, Near::Group(&claim), Near::Tree(&claim)].into_iter().find_map(|near| {
            let others = self.queues.iter().enumerate().filter(|(w, q)| *w != me && q.len() > 0);
            let heads = others.filter_map(|(w, q)| Some((w, q.try_head(near)?.0.lead_over(&mine))));
            let (other, lead) = heads.min_by_key(|(_, lead)| *lead)?;
            if lead >= -MARGIN_NS {
                return None;
            }
            // It may have been taken since.
            let lags = |place: Place| place.lead_over(&mine) < -MARGIN_NS;
            self.queues[other].pop_if(near, |policy| policy.head(near).is_some_and(|(place, _)| lags(place)))
        })
    }

    /// Takes the head of the busiest other queue; it stays with this worker from then on.
    fn steal(&self, me: usize) -> Option<Entry<T>> {
        loop {
            let others = self.queues.iter().enumerate().filter(|(w, _)| *w != me);
            let (_, busiest) = others.max_by_key(|(_, q)| q.len()).filter(|(_, q)| q.len() > 0)?;
            // It may have been emptied since: look for another then.
            if let Some(entry) = busiest.pop() {
                return Some(entry);
            }
        }
    }

    /// Whether tasks wait in a worker's own queue.
    pub(super) fn leaves_some(&self, me: usize) -> bool {
        self.queues[me].len() > 0
    }

    pub(super) fn has_queued(&self) -> bool {
        self.queues.iter().any(|q| q.len() > 0)
    }

    /// The living worker with the fewest tasks, the one that it runs included.
    pub(super) fn emptiest(&self) -> usize {
        let load = |w: &usize| self.queues[*w].len() + usize::from(self.seats[*w].is_busy());
        let alive = (0..self.queues.len()).filter(|w| !self.seats[*w].is_dead());
        alive.min_by_key(load).unwrap_or(0)
    }

    /// A living worker, `preferred` if it is one or if there is none.
    pub(super) fn alive(&self, preferred: usize) -> usize {
        let n = self.seats.len();
        (0..n).map(|i| (preferred + i) % n).find(|w| !self.seats[*w].is_dead()).unwrap_or(preferred)
    }

    pub(super) fn workers_alive(&self) -> usize {
        self.seats.iter().filter(|s| !s.is_dead()).count()
    }

    /// Takes a worker out of the game. What its queue held is forgotten: the caller queues those tasks anew.
    pub(super) fn bury_worker(&self, me: usize) {
        self.seats[me].dead.store(true, Ordering::SeqCst);
        self.seats[me].set_busy(false);
        fence(Ordering::SeqCst);
        self.queues[me].reset(self.policy.order(me, &self.shares));
    }

    /// Drops all entries.
    pub(super) fn clear(&self) {
        for queue in &self.queues {
            while queue.pop().is_some() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::Reason;
    use super::super::share::TaskSpec;
    use super::*;
    use crate::process::Pid;

    fn board(policy: PolicyKind) -> Board<u64> {
        Board::new(3, policy, SliceRule::default())
    }

    /// A claim of a group of its own that has had so many milliseconds.
    fn claim(board: &Board<u64>, pid: u64, had_ms: u64) -> Arc<Claim> {
        let claim = board.shares.join(&TaskSpec { group: Arc::from(pid.to_string()), ..TaskSpec::new(Pid(pid)) });
        claim.charge(had_ms * 1_000_000);
        claim
    }

    fn entry(item: u64, claim: &Arc<Claim>) -> Entry<u64> {
        Entry { item, claim: Arc::clone(claim), ticket: 0, since_ns: item, reason: Reason::Woken }
    }

    fn runs(board: &Board<u64>, worker: usize, had_ms: u64) {
        board.seats[worker].runs(&claim(board, 100 + worker as u64, had_ms));
        board.seats[worker].set_busy(true);
    }

    fn giving_way(board: &Board<u64>) -> Vec<bool> {
        board.seats.iter().map(Seat::must_give_way).collect()
    }

    #[test]
    fn slices_are_the_target_by_the_runnable_within_bounds() {
        let rule = SliceRule::default();
        for (runnable, us) in [(0, 5_000), (1, 5_000), (2, 5_000), (4, 2_500), (20, 500), (50, 200), (1_000_000, 200)] {
            assert_eq!(rule.slice_ns(runnable), us * 1_000, "{runnable}");
        }
        let crossed = SliceRule { floor: Duration::from_millis(7), ..rule };
        assert_eq!(crossed.slice_ns(1), 7_000_000);
    }

    #[test]
    fn a_wake_goes_to_a_sleeper_its_own_first() {
        let board = board(PolicyKind::Fair);
        runs(&board, 0, 50);
        let woken = claim(&board, 1, 0);
        assert_eq!(board.put(entry(1, &woken), 1, |w| w > 0), 1);
        assert_eq!(board.put(entry(2, &woken), 0, |w| w == 2), 2);
        assert_eq!(giving_way(&board), [false; 3]);
    }

    #[test]
    fn else_the_one_furthest_ahead_gives_way_that_does_not_already() {
        let board = board(PolicyKind::Fair);
        for (worker, had_ms) in [(0, 20), (1, 50), (2, 30)] {
            runs(&board, worker, had_ms);
        }
        let nobody = |_| false;
        let woken = claim(&board, 1, 10);
        assert_eq!(board.put(entry(1, &woken), 0, nobody), 1);
        assert_eq!(giving_way(&board), [false, true, false]);
        assert_eq!(board.put(entry(2, &woken), 0, nobody), 2);
        assert_eq!(board.put(entry(3, &woken), 0, nobody), 0);
        assert_eq!(board.put(entry(4, &woken), 0, nobody), 1, "all give way: behind the one furthest ahead");
        // Who has had more than all that run waits at home.
        let board = super::tests::board(PolicyKind::Fair);
        (0..3).for_each(|w| runs(&board, w, 1));
        assert_eq!(board.put(entry(1, &claim(&board, 1, 100)), 2, nobody), 2);
        assert_eq!(giving_way(&board), [false; 3]);
    }

    #[test]
    fn round_robin_makes_nobody_give_way() {
        let board = board(PolicyKind::RoundRobin);
        (0..3).for_each(|w| runs(&board, w, 50));
        assert_eq!(board.put(entry(1, &claim(&board, 1, 0)), 2, |_| false), 2);
        assert_eq!(giving_way(&board), [false; 3]);
    }

    #[test]
    fn a_worker_takes_what_lags_elsewhere_when_it_looks_and_anything_when_it_is_idle() {
        for policy in [PolicyKind::Fair, PolicyKind::RoundRobin] {
            let board = board(policy);
            let (ahead, behind) = (claim(&board, 1, 50), claim(&board, 2, 10));
            // Round robin goes by the time of coming, which is the item's number here.
            let (late, early) = (entry(9_000_000, &ahead), entry(1, &behind));
            board.queues[0].push(late);
            board.queues[1].push(early);
            let mut looked_ns = 1_000;
            let next = |now_ns, looked_ns: &mut u64| board.next(0, now_ns, looked_ns, None).map(|e| e.item);
            assert_eq!(next(1_000 + LOOK_EVERY_NS, &mut looked_ns), Some(1));
            assert_eq!(next(1_001 + LOOK_EVERY_NS, &mut looked_ns), Some(9_000_000));
            assert_eq!(next(1_001 + LOOK_EVERY_NS, &mut looked_ns), None);
            board.queues[2].push(entry(3, &behind));
            assert_eq!(next(1_002 + LOOK_EVERY_NS, &mut looked_ns), Some(3));
        }
    }

    #[test]
    fn the_dead_get_nothing_and_new_tasks_go_where_least_is() {
        let board = board(PolicyKind::Fair);
        board.queues[1].push(entry(1, &claim(&board, 1, 0)));
        runs(&board, 2, 0);
        assert_eq!(board.emptiest(), 0);
        board.bury_worker(0);
        assert_eq!((board.emptiest(), board.workers_alive()), (1, 2));
        assert_eq!(board.put(entry(2, &claim(&board, 2, 0)), 0, |_| false), 1);
    }
}
