//! The task's state machine: one byte, changed only by atomic read-modify-writes.
//!
//! It owns every rule about who may queue, poll or drop a task and when. It must not know futures,
//! queues or threads: each method is one transition and returns what its caller has to do next.
//!
//! | life     | workers polling it | meaning                                                     |
//! |----------|--------------------|-------------------------------------------------------------|
//! | Idle     | 0                  | blocked: waits for its waker                                |
//! | Queued   | 0                  | runnable: an entry with its newest ticket is on its way     |
//! | Running  | 1                  | polled, not woken since the poll began                      |
//! | Notified | 1                  | polled, woken since the poll began                          |
//! | Held     | 0                  | runnable, kept off the queue by STOP                        |
//! | Done     | 0                  | the future is gone or about to be dropped                   |
//!
//! An entry that comes up for a task that is not Queued is void.
//!
//! Two flags lie beside it: STOP (do not poll) and KILL (drop as soon as no worker polls).
//!
//! Every call writes, even where the value stays the same: a wake that finds the task already
//! notified must still hand its writes over to the poll that follows, and only a write releases. The writes
//! are sequentially consistent: who queues a task and who gives it a loan, or buries its worker, each write
//! first and then look, and one of them must see the other's write.

use std::sync::atomic::{AtomicU8, Ordering};

const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const NOTIFIED: u8 = 3;
const HELD: u8 = 4;
const DONE: u8 = 5;
const LIFE: u8 = 0b0000_0111;
const STOP: u8 = 0b0000_1000;
const KILL: u8 = 0b0001_0000;

/// What a task is doing, as `ps` and the metrics see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// In a run queue.
    Runnable,
    /// A worker polls it.
    Running,
    /// Off the queue until its waker fires.
    Blocked,
    /// Not polled until it is continued.
    Stopped,
    /// Its future finished or was dropped.
    Done,
}

/// After a wake, or after a `cont`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The caller must put it into a queue, once.
    Enqueue,
    /// Nothing: it is queued, polled, stopped or done, and remembers.
    Nothing,
}

/// After a worker took it from a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The worker must poll it.
    Poll,
    /// The entry is void: the task is stopped or done.
    Skip,
}

/// After a poll that returned `Pending`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pended {
    /// Woken, and the slice has intervals left: poll again at once.
    Again,
    /// Woken, and the slice is over: the worker must put it into a queue.
    Requeue,
    /// Blocked or stopped: the worker lets go of it.
    Parked,
    /// Killed: the worker must drop the future.
    Drop,
}

/// After a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Killed {
    /// Nobody polls it: the caller must drop the future.
    Drop,
    /// The worker that polls it will, or somebody already does.
    Elsewhere,
}

#[derive(Debug)]
pub(super) struct State(AtomicU8);

impl State {
    /// A new task is queued: its creator must put it into a queue.
    pub(super) fn queued() -> Self {
        Self(AtomicU8::new(QUEUED))
    }

    pub(super) fn get(&self) -> TaskState {
        let s = self.0.load(Ordering::Acquire);
        match s & LIFE {
            DONE => TaskState::Done,
            RUNNING | NOTIFIED => TaskState::Running,
            _ if s & STOP != 0 => TaskState::Stopped,
            IDLE => TaskState::Blocked,
            _ => TaskState::Runnable,
        }
    }

    pub(super) fn wake(&self) -> Woken {
        self.change(|s| match s & LIFE {
            IDLE if s & STOP != 0 => (with(s, HELD), Woken::Nothing),
            IDLE => (with(s, QUEUED), Woken::Enqueue),
            RUNNING => (with(s, NOTIFIED), Woken::Nothing),
            _ => (s, Woken::Nothing),
        })
    }

    pub(super) fn take(&self) -> Taken {
        self.change(|s| match s & LIFE {
            QUEUED if s & STOP != 0 => (with(s, HELD), Taken::Skip),
            QUEUED => (with(s, RUNNING), Taken::Poll),
            _ => (s, Taken::Skip),
        })
    }

    /// `more`: the slice has intervals left.
    pub(super) fn pending(&self, more: bool) -> Pended {
        self.change(|s| match s & LIFE {
            _ if s & KILL != 0 => (with(s, DONE), Pended::Drop),
            RUNNING => (with(s, IDLE), Pended::Parked),
            NOTIFIED if s & STOP != 0 => (with(s, HELD), Pended::Parked),
            NOTIFIED if more => (with(s, RUNNING), Pended::Again),
            NOTIFIED => (with(s, QUEUED), Pended::Requeue),
            _ => (s, Pended::Parked),
        })
    }

    /// After a poll that finished or panicked; only the worker that polls may call it.
    pub(super) fn finished(&self) {
        self.change(|s| (with(s, DONE), ()));
    }

    /// After the death of the worker that polled it. False if that poll was over already.
    pub(super) fn fail(&self) -> bool {
        self.change(|s| match s & LIFE {
            RUNNING | NOTIFIED => (with(s, DONE), true),
            _ => (s, false),
        })
    }

    /// Whether an entry of it is in a queue, or about to be.
    pub(super) fn is_queued(&self) -> bool {
        self.0.load(Ordering::SeqCst) & LIFE == QUEUED
    }

    pub(super) fn stop(&self) {
        self.change(|s| (s | STOP, ()));
    }

    pub(super) fn cont(&self) -> Woken {
        self.change(|s| match s & LIFE {
            HELD => (with(s & !STOP, QUEUED), Woken::Enqueue),
            _ => (s & !STOP, Woken::Nothing),
        })
    }

    pub(super) fn kill(&self) -> Killed {
        self.change(|s| match s & LIFE {
            IDLE | QUEUED | HELD => (with(s | KILL, DONE), Killed::Drop),
            _ => (s | KILL, Killed::Elsewhere),
        })
    }

    fn change<T: Copy>(&self, step: impl Fn(u8) -> (u8, T)) -> T {
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            let (next, action) = step(seen);
            match self.0.compare_exchange_weak(seen, next, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => return action,
                Err(now) => seen = now,
            }
        }
    }
}

/// `s` with another life, its flags kept.
fn with(s: u8, life: u8) -> u8 {
    s & !LIFE | life
}

#[cfg(test)]
mod tests {
    //! Each transition is one atomic step, so every interleaving of threads is a path through a finite
    //! graph: these tests walk all of it.

    use std::collections::HashSet;

    use super::*;

    /// Where the entry with the newest ticket is. Older ones are void, so they need no place here.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    enum Newest {
        Nowhere,
        /// Its ticket is drawn; who drew it will push it.
        Drawn,
        Queued,
    }

    /// The world around one task, as small as the rules allow.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    struct World {
        state: u8,
        newest: Newest,
        /// Workers that popped an entry, found its ticket the newest, and have not taken the task yet.
        popped: u8,
        /// Workers inside a poll of it.
        polling: u8,
        /// An event came for which no poll has begun since.
        unseen: bool,
        /// Times the future was dropped.
        drops: u8,
        killed: bool,
        /// Who still has to act on what a transition told it: draw a ticket and push, or drop.
        owes_entry: u8,
        owes_drop: u8,
        /// Those who saw it queued and will give it a new entry for that; and how many may still come.
        refiling: u8,
        refiles_left: u8,
    }

    fn on<T>(w: &mut World, f: impl FnOnce(&State) -> T) -> T {
        let state = State(AtomicU8::new(w.state));
        let action = f(&state);
        w.state = state.0.into_inner();
        action
    }

    /// All worlds that one atomic step of any thread leads to.
    fn steps(w: World) -> Vec<World> {
        let mut out = Vec::new();
        let mut push = |f: &dyn Fn(&mut World)| {
            let mut n = w;
            f(&mut n);
            out.push(n);
        };
        push(&|n| {
            n.unseen = true;
            n.owes_entry += u8::from(on(n, State::wake) == Woken::Enqueue);
        });
        push(&|n| on(n, State::stop));
        push(&|n| n.owes_entry += u8::from(on(n, State::cont) == Woken::Enqueue));
        push(&|n| {
            n.killed = true;
            n.owes_drop += u8::from(on(n, State::kill) == Killed::Drop);
        });
        if w.refiles_left > 0 {
            push(&|n| {
                n.refiles_left -= 1;
                n.refiling += u8::from(on(n, State::is_queued));
            });
        }
        if w.refiling > 0 {
            push(&|n| {
                n.refiling -= 1;
                n.newest = Newest::Drawn;
            });
        }
        if w.owes_entry > 0 {
            push(&|n| {
                n.owes_entry -= 1;
                n.newest = Newest::Drawn;
            });
        }
        match w.newest {
            Newest::Nowhere => {}
            Newest::Drawn => push(&|n| n.newest = Newest::Queued),
            Newest::Queued => push(&|n| {
                n.newest = Newest::Nowhere;
                n.popped += 1;
            }),
        }
        if w.owes_drop > 0 {
            push(&|n| {
                n.owes_drop -= 1;
                n.drops += 1;
            });
        }
        if w.popped > 0 {
            push(&|n| {
                n.popped -= 1;
                if on(n, State::take) == Taken::Poll {
                    n.polling += 1;
                    n.unseen = false;
                }
            });
            // The claim of the entry was lent and is not any more.
            push(&|n| {
                n.popped -= 1;
                n.owes_entry += u8::from(on(n, State::is_queued));
            });
        }
        if w.polling > 0 {
            poll_ends(w, &mut out);
        }
        out.retain(|n| n.owes_entry < 4);
        out
    }

    fn poll_ends(w: World, out: &mut Vec<World>) {
        for more in [false, true] {
            let mut n = w;
            match on(&mut n, |s| s.pending(more)) {
                Pended::Again => n.unseen = false,
                Pended::Requeue => {
                    n.polling -= 1;
                    n.owes_entry += 1;
                }
                Pended::Parked => n.polling -= 1,
                Pended::Drop => {
                    n.polling -= 1;
                    n.owes_drop += 1;
                }
            }
            out.push(n);
        }
        // The poll finished or panicked, or its worker died.
        let mut n = w;
        on(&mut n, State::finished);
        n.polling -= 1;
        n.owes_drop += 1;
        out.push(n);
        let mut n = w;
        assert!(on(&mut n, State::fail));
        n.polling -= 1;
        n.owes_drop += 1;
        out.push(n);
    }

    fn every_world() -> HashSet<World> {
        let start = World {
            state: QUEUED,
            newest: Newest::Nowhere,
            popped: 0,
            polling: 0,
            unseen: true,
            drops: 0,
            killed: false,
            owes_entry: 1,
            owes_drop: 0,
            refiling: 0,
            refiles_left: 2,
        };
        let mut seen = HashSet::from([start]);
        let mut todo = vec![start];
        while let Some(w) = todo.pop() {
            for next in steps(w) {
                if seen.insert(next) {
                    todo.push(next);
                }
            }
        }
        seen
    }

    #[test]
    fn no_interleaving_loses_it_polls_it_twice_or_drops_it_twice() {
        let worlds = every_world();
        assert!(worlds.len() > 300, "the walk is not trivial: {}", worlds.len());
        for w in worlds {
            let life = w.state & LIFE;
            assert!(w.polling <= 1, "polled twice: {w:?}");
            assert!(w.drops + w.owes_drop <= 1, "dropped twice: {w:?}");
            assert_eq!(w.polling == 1, matches!(life, RUNNING | NOTIFIED), "{w:?}");
            assert_eq!(w.drops + w.owes_drop == 1, life == DONE, "{w:?}");
            if life == QUEUED {
                let comes_up = w.newest != Newest::Nowhere || w.popped > 0 || w.owes_entry > 0;
                assert!(comes_up, "queued, but in no queue: {w:?}");
            }
        }
    }

    #[test]
    fn no_interleaving_loses_a_wake() {
        for w in every_world() {
            // A wake that no poll has seen: the task is on its way to one, or held back by STOP, or over.
            if w.unseen {
                assert!(matches!(w.state & LIFE, QUEUED | NOTIFIED | HELD | DONE), "{w:?}");
            }
            // A held task is stopped, so that `cont` is what brings it back.
            if w.state & LIFE == HELD {
                assert!(w.state & STOP != 0, "{w:?}");
            }
        }
    }

    #[test]
    fn a_kill_ends_in_a_drop_as_soon_as_nobody_polls() {
        for w in every_world().into_iter().filter(|w| w.killed && w.polling == 0) {
            assert_eq!(w.drops + w.owes_drop, 1, "{w:?}");
        }
    }

    #[test]
    fn a_stopped_task_is_not_taken_for_a_poll() {
        for w in every_world() {
            let stopped = w.state & STOP != 0;
            let mut next = w;
            if on(&mut next, State::take) == Taken::Poll {
                assert!(!stopped, "{w:?}");
            }
            let mut next = w;
            if w.polling == 1 && on(&mut next, |s| s.pending(true)) == Pended::Again {
                assert!(!stopped, "{w:?}");
            }
        }
    }
}
