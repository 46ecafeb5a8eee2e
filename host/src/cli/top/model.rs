//! The state of the view: which processes, in which order, which one is selected. Pure.
//!
//! It knows neither the terminal nor the kernel. A new snapshot and each change of order or filter costs
//! one pass over the processes and one sort; a movement costs nothing of that.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use super::figures::{Meter, Reading, Row, STATES, Snapshot, Totals};
use super::keys::Prompt;
use crate::process::Pid;

/// What the processes are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// Share of the processor, the busiest first.
    Cpu,
    /// PID, the oldest first.
    Pid,
    /// Tokens used, the most first.
    Tokens,
    /// Price, the dearest first.
    Cost,
    /// Name, by the alphabet.
    Name,
    /// State: what runs or asks first, what has ended last.
    State,
}

impl Sort {
    /// All, in the order of the key that changes it.
    pub(super) const ALL: [Self; 6] = [Self::Cpu, Self::Pid, Self::Tokens, Self::Cost, Self::Name, Self::State];

    /// Its word.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Pid => "pid",
            Self::Tokens => "tokens",
            Self::Cost => "cost",
            Self::Name => "name",
            Self::State => "state",
        }
    }

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|s| *s == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    /// Which of two comes first, without a decision between equals.
    pub(super) fn compare(self, a: &Row, b: &Row) -> Ordering {
        let (p, q) = (&a.process, &b.process);
        let rank = |row: &Row| STATES.iter().position(|s| *s == row.process.state);
        match self {
            // Where nobody knows the time, fuel tells who works.
            Self::Cpu => share(b).total_cmp(&share(a)).then(q.fuel.cmp(&p.fuel)),
            Self::Pid => Ordering::Equal,
            Self::Tokens => q.tokens().cmp(&p.tokens()),
            Self::Cost => q.micro_usd.cmp(&p.micro_usd),
            Self::Name => a.lower.cmp(&b.lower),
            Self::State => rank(a).cmp(&rank(b)),
        }
    }
}

/// An unknown share is below every known one.
fn share(row: &Row) -> f64 {
    row.cpu_percent.unwrap_or(-1.0)
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// Place of its process in the snapshot.
    row: usize,
    /// How many of its ancestors are above it; 0 where this is no tree.
    pub(super) depth: usize,
}

/// Something that the user is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    /// What.
    pub(super) text: String,
    /// Whether it is a failure.
    pub(super) bad: bool,
}

/// All that the view shows.
#[derive(Debug)]
pub(super) struct Model {
    meter: Meter,
    rows: Vec<Row>,
    shown: Vec<Shown>,
    /// Figures of all processes.
    pub(super) totals: Totals,
    /// Whether the last snapshot is a kernel's; `None` before the first.
    pub(super) live: Option<bool>,
    /// Whether one was a kernel's.
    had_kernel: bool,
    /// The order.
    pub(super) sort: Sort,
    /// Whether it is turned round.
    pub(super) reverse: bool,
    /// Children below their parents.
    pub(super) tree: bool,
    /// What a process must match; empty = all do.
    pub(super) filter: String,
    /// Nothing is looked at.
    pub(super) paused: bool,
    /// The help covers the table.
    pub(super) help: bool,
    /// What is being asked.
    pub(super) prompt: Option<Prompt>,
    /// What became of the last action.
    notice: Option<Notice>,
    /// What is wrong with looking; stays until it is not.
    trouble: Option<Notice>,
    /// The selected process; `None`: whichever is on the first line.
    selected: Option<Pid>,
    cursor: usize,
    offset: usize,
    page: usize,
}

impl Model {
    /// Nothing seen yet; the busiest first.
    pub(super) fn new() -> Self {
        Self {
            meter: Meter::default(),
            rows: Vec::new(),
            shown: Vec::new(),
            totals: Totals::default(),
            live: None,
            had_kernel: false,
            sort: Sort::Cpu,
            reverse: false,
            tree: false,
            filter: String::new(),
            paused: false,
            help: false,
            prompt: None,
            notice: None,
            trouble: None,
            selected: None,
            cursor: 0,
            offset: 0,
            page: 1,
        }
    }

    /// Takes what was seen. The selected process stays selected wherever it goes.
    pub(super) fn take(&mut self, snapshot: Snapshot) {
        let Reading { live, totals, rows, .. } = self.meter.read(snapshot);
        self.had_kernel |= live;
        let text = match (live, self.had_kernel) {
            (true, _) => None,
            (false, true) => Some("the kernel is gone; this is what the store has, until there is a kernel again"),
            (false, false) => Some("no kernel runs; this is what the store has"),
        };
        self.trouble = text.map(|text| Notice { text: text.to_owned(), bad: false });
        (self.live, self.totals, self.rows) = (Some(live), totals, rows);
        self.arrange();
    }

    /// Nothing could be seen; what was seen last stays.
    pub(super) fn look_failed(&mut self, why: impl Into<String>) {
        self.trouble = Some(Notice { text: why.into(), bad: true });
    }

    /// Tells something until the next key.
    pub(super) fn tell(&mut self, text: impl Into<String>, bad: bool) {
        self.notice = Some(Notice { text: text.into(), bad });
    }

    /// What to tell: the last action's end, else what is wrong with looking.
    pub(super) fn notice(&self) -> Option<&Notice> {
        self.notice.as_ref().or(self.trouble.as_ref())
    }

    /// Takes the last action's end away.
    pub(super) fn forget_notice(&mut self) {
        self.notice = None;
    }

    /// Processes that the filter lets through.
    pub(super) fn len(&self) -> usize {
        self.shown.len()
    }

    /// All processes.
    pub(super) fn all(&self) -> usize {
        self.rows.len()
    }

    /// Place of the selected one among [`Self::len`].
    pub(super) fn cursor(&self) -> usize {
        self.cursor
    }

    /// The selected process.
    pub(super) fn selected(&self) -> Option<&Row> {
        self.shown.get(self.cursor).map(|s| &self.rows[s.row])
    }

    /// The processes that fit on `page` lines, the selected one among them: the first one's place, and they.
    pub(super) fn visible(&mut self, page: usize) -> (usize, impl Iterator<Item = (Shown, &Row)>) {
        self.page = page.max(1);
        let last = self.shown.len().saturating_sub(self.page);
        let least = (self.cursor + 1).saturating_sub(self.page);
        self.offset = self.offset.max(least).min(self.cursor).min(last);
        let lines = self.shown.iter().skip(self.offset).take(page);
        (self.offset, lines.map(|s| (*s, &self.rows[s.row])))
    }

    /// All that are shown, in order.
    #[cfg(test)]
    fn pids(&self) -> Vec<u64> {
        self.shown.iter().map(|s| self.rows[s.row].process.pid.0).collect()
    }

    /// Orders by the next criterion, in its own direction.
    pub(super) fn sort_next(&mut self) {
        (self.sort, self.reverse) = (self.sort.next(), false);
        self.arrange();
    }

    /// Turns the order round.
    pub(super) fn turn(&mut self) {
        self.reverse = !self.reverse;
        self.arrange();
    }

    /// Shows a tree, or a list again.
    pub(super) fn toggle_tree(&mut self) {
        self.tree = !self.tree;
        self.arrange();
    }

    /// Shows what matches only.
    pub(super) fn set_filter(&mut self, filter: impl Into<String>) {
        self.filter = filter.into();
        self.arrange();
    }

    /// Moves the selection by lines.
    pub(super) fn step(&mut self, lines: isize) {
        self.go_to(self.cursor.saturating_add_signed(lines));
    }

    /// Moves the selection by pages.
    pub(super) fn page(&mut self, pages: isize) {
        // A page is no longer than a terminal.
        self.step(pages.saturating_mul(isize::try_from(self.page).unwrap_or(isize::MAX)));
    }

    /// Selects the first line, whichever process comes to be there.
    pub(super) fn first(&mut self) {
        (self.cursor, self.selected) = (0, None);
    }

    /// Selects the last.
    pub(super) fn last(&mut self) {
        self.go_to(usize::MAX);
    }

    /// Holds on to the process that is selected now.
    pub(super) fn pin(&mut self) {
        self.selected = self.selected().map(|row| row.process.pid);
    }

    fn go_to(&mut self, line: usize) {
        self.cursor = line.min(self.shown.len().saturating_sub(1));
        self.pin();
    }

    /// Filters and orders anew, and finds the selected process again.
    fn arrange(&mut self) {
        let filter = Filter::of(&self.filter);
        let mut order: Vec<usize> = (0..self.rows.len()).filter(|i| filter.takes(&self.rows[*i])).collect();
        let (rows, sort, reverse) = (&self.rows, self.sort, self.reverse);
        order.sort_by(|a, b| {
            let (a, b) = (&rows[*a], &rows[*b]);
            let by_pid = a.process.pid.cmp(&b.process.pid);
            let order = sort.compare(a, b);
            match (reverse, sort) {
                (true, Sort::Pid) => by_pid.reverse(),
                (true, _) => order.reverse().then(by_pid),
                (false, _) => order.then(by_pid),
            }
        });
        self.shown =
            if self.tree { tree(rows, &order) } else { order.into_iter().map(|row| Shown { row, depth: 0 }).collect() };
        let Some(pid) = self.selected else {
            self.cursor = 0;
            return;
        };
        match self.shown.iter().position(|s| self.rows[s.row].process.pid == pid) {
            Some(line) => self.cursor = line,
            None => self.go_to(self.cursor),
        }
    }
}

/// What a process must match.
enum Filter {
    /// One capital letter of a state: that state.
    State(&'static str),
    /// A part of name, agent, group or state word, in lower case.
    Part(String),
}

impl Filter {
    fn of(text: &str) -> Self {
        match STATES.iter().find(|s| s.letter() == text) {
            Some(state) => Self::State(state.letter()),
            None => Self::Part(text.to_lowercase()),
        }
    }

    fn takes(&self, row: &Row) -> bool {
        match self {
            Self::State(letter) => row.process.state.letter() == *letter,
            Self::Part(text) => row.lower.contains(text.as_str()),
        }
    }
}

/// Puts children below their parents, siblings in the order given. Who has no parent here is a root, and
/// so is one of each circle, which no kernel makes but a broken store might.
fn tree(rows: &[Row], order: &[usize]) -> Vec<Shown> {
    let here: HashSet<Pid> = order.iter().map(|i| rows[*i].process.pid).collect();
    let mut children: HashMap<Pid, Vec<usize>> = HashMap::new();
    let mut roots = Vec::new();
    for &i in order {
        match rows[i].process.ppid.filter(|p| here.contains(p) && *p != rows[i].process.pid) {
            Some(parent) => children.entry(parent).or_default().push(i),
            None => roots.push(i),
        }
    }
    let mut seen = vec![false; rows.len()];
    let mut shown = Vec::with_capacity(order.len());
    // The roots first; then whatever they do not lead to.
    for &root in roots.iter().chain(order) {
        let mut next = vec![Shown { row: root, depth: 0 }];
        while let Some(line) = next.pop() {
            if std::mem::replace(&mut seen[line.row], true) {
                continue;
            }
            shown.push(line);
            let below = children.get(&rows[line.row].process.pid).into_iter().flatten().rev();
            next.extend(below.map(|&row| Shown { row, depth: line.depth + 1 }));
        }
    }
    shown
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Instant;

    use super::super::figures::Process;
    use super::super::figures::tests::{process, snapshot};
    use super::*;
    use crate::process::ProcessState;

    /// A model that has seen these, twice.
    pub(in crate::cli::top) fn seen(processes: Vec<Process>) -> Model {
        let start = Instant::now();
        let mut model = Model::new();
        let idle = processes.iter().cloned().map(|p| Process { cpu_us: p.cpu_us.map(|_| 0), tokens_out: 0, ..p });
        model.take(snapshot(start, 0, idle.collect()));
        model.take(snapshot(start, 1_000, processes));
        model
    }

    fn some() -> Vec<Process> {
        let p = |pid, name: &str, cpu, tokens, usd, state| Process {
            name: name.into(),
            cpu_us: Some(cpu),
            tokens_out: tokens,
            micro_usd: usd,
            state,
            ..process(pid)
        };
        vec![
            p(1, "beta", 10, 5, None, ProcessState::Zombie),
            p(2, "Alpha", 900_000, 7, Some(3), ProcessState::Runnable),
            p(3, "gamma", 500_000, 900, Some(9), ProcessState::Waiting),
            p(4, "delta", 500_000, 0, Some(1), ProcessState::Approval),
        ]
    }

    #[test]
    fn every_order_and_its_reverse() {
        let mut model = seen(some());
        let expected = [
            (Sort::Cpu, [2, 3, 4, 1], [1, 3, 4, 2]),
            (Sort::Pid, [1, 2, 3, 4], [4, 3, 2, 1]),
            (Sort::Tokens, [3, 2, 1, 4], [4, 1, 2, 3]),
            (Sort::Cost, [3, 2, 4, 1], [1, 4, 2, 3]),
            (Sort::Name, [2, 1, 4, 3], [3, 4, 1, 2]),
            (Sort::State, [2, 4, 3, 1], [1, 3, 4, 2]),
        ];
        for (sort, forward, backward) in expected {
            assert_eq!((model.sort, model.pids()), (sort, forward.to_vec()));
            model.turn();
            assert_eq!(model.pids(), backward, "{sort:?} reversed");
            model.sort_next();
        }
        assert_eq!((model.sort, model.reverse), (Sort::Cpu, false));
    }

    #[test]
    fn the_filter_is_a_part_of_name_agent_group_or_state() {
        let mut all = some();
        all[0].agent = "Courier".into();
        all[1].group = "night".into();
        let mut model = seen(all);
        for (filter, expected) in [
            ("ALPH", vec![2]),
            ("courier", vec![1]),
            ("NIGHT", vec![2]),
            ("approv", vec![4]),
            ("ended", vec![1]),
            ("R", vec![2]),
            ("Z", vec![1]),
            ("mma", vec![3]),
            ("nobody", vec![]),
            ("", vec![2, 3, 4, 1]),
        ] {
            model.set_filter(filter);
            assert_eq!(model.pids(), expected, "{filter}");
            assert_eq!(model.selected().map(|r| r.process.pid.0), expected.first().copied());
        }
    }

    #[test]
    fn the_tree_has_children_below_their_parents_whatever_the_parents() {
        let child = |pid, ppid| Process { ppid: Some(Pid(ppid)), ..process(pid) };
        // 9's parent is unknown, 10 is its own, 11 and 12 are each other's.
        let mut model = seen(vec![
            process(1),
            child(2, 1),
            child(3, 2),
            child(4, 1),
            child(9, 77),
            child(10, 10),
            child(11, 12),
            child(12, 11),
        ]);
        model.sort_next();
        model.toggle_tree();
        let depths = |m: &Model| m.shown.iter().map(|s| s.depth).collect::<Vec<_>>();
        assert_eq!((model.pids(), depths(&model)), (vec![1, 2, 3, 4, 9, 10, 11, 12], vec![0, 1, 2, 1, 0, 0, 0, 1]));
        model.turn();
        assert_eq!(model.pids(), [10, 9, 1, 4, 2, 3, 12, 11]);
        // A child whose parent does not match stands alone.
        model.set_filter("p3");
        assert_eq!((model.pids(), depths(&model)), (vec![3], vec![0]));
    }

    #[test]
    fn the_selection_stays_with_its_process() {
        let start = Instant::now();
        let mut model = Model::new();
        let at = |cpu: [u64; 3]| {
            (1..=3).zip(cpu).map(|(pid, us)| Process { cpu_us: Some(us), ..process(pid) }).collect::<Vec<_>>()
        };
        let selected = |m: &Model| m.selected().map(|r| r.process.pid.0);
        model.take(snapshot(start, 0, at([0, 0, 0])));
        // Unmoved, it is the first line.
        model.take(snapshot(start, 1_000, at([0, 0, 9_000])));
        assert_eq!((selected(&model), model.pids()), (Some(3), vec![3, 1, 2]));
        model.step(1);
        model.take(snapshot(start, 2_000, at([0, 9_000, 9_000])));
        assert_eq!((selected(&model), model.pids(), model.cursor()), (Some(1), vec![2, 1, 3], 1));
        model.turn();
        assert_eq!((selected(&model), model.cursor()), (Some(1), 0));
        // It is gone: whoever is in its place.
        model.turn();
        model.take(snapshot(start, 3_000, at([0, 20_000, 9_000])[1..].to_vec()));
        assert_eq!((selected(&model), model.cursor()), (Some(3), 1));
        model.take(snapshot(start, 4_000, Vec::new()));
        assert_eq!((selected(&model), model.cursor()), (None, 0));
        model.first();
        model.take(snapshot(start, 5_000, at([1, 0, 0])));
        assert_eq!(model.cursor(), 0);
    }

    #[test]
    fn movement_stops_at_the_ends_and_the_page_follows() {
        let mut model = seen((1..=100).map(process).collect());
        model.sort_next();
        let first = |m: &mut Model| {
            let (offset, lines) = m.visible(10);
            (offset, lines.count())
        };
        assert_eq!(first(&mut model), (0, 10));
        model.step(-1);
        assert_eq!(model.cursor(), 0);
        model.page(1);
        assert_eq!((first(&mut model), model.cursor()), ((1, 10), 10));
        model.last();
        assert_eq!((first(&mut model), model.cursor()), ((90, 10), 99));
        model.page(1);
        model.step(1);
        assert_eq!((first(&mut model), model.cursor()), ((90, 10), 99));
        model.page(-1);
        assert_eq!((first(&mut model), model.cursor()), ((89, 10), 89));
        // Fewer processes, and a window of no height.
        model.set_filter("p1");
        assert_eq!(first(&mut model).1, 10);
        assert_eq!(model.visible(0).1.count(), 0);
        model.first();
        assert_eq!(first(&mut model), (0, 10));
    }

    #[test]
    fn a_kernel_that_is_gone_is_told_until_there_is_one() {
        let start = Instant::now();
        let mut model = Model::new();
        let stored = |ms| Snapshot { live: false, ..snapshot(start, ms, vec![process(1)]) };
        let told = |m: &Model| m.notice().map(|n| n.text.clone()).unwrap_or_default();
        model.take(stored(0));
        assert!(told(&model).starts_with("no kernel runs"), "{}", told(&model));
        model.take(snapshot(start, 1, Vec::new()));
        assert_eq!(told(&model), "");
        model.take(stored(2));
        model.take(stored(3));
        assert!(told(&model).starts_with("the kernel is gone"), "{}", told(&model));
        model.look_failed("the store failed");
        assert!(model.notice().unwrap().bad);
        model.tell("done", false);
        assert_eq!(told(&model), "done");
        model.forget_notice();
        assert_eq!(told(&model), "the store failed");
        model.take(stored(4));
        assert!(told(&model).starts_with("the kernel is gone"), "{}", told(&model));
    }

    #[test]
    fn ten_thousand_processes_stay_fast() {
        let deep = |pid: u64| Process { ppid: (pid > 1).then(|| Pid(pid - 1)), cpu_us: Some(pid), ..process(pid) };
        let mut model = seen((1..=10_000).map(deep).collect());
        let began = Instant::now();
        for _ in 0..Sort::ALL.len() {
            model.sort_next();
            model.toggle_tree();
            model.set_filter("p1");
            model.set_filter("");
            model.last();
            assert_eq!(model.visible(50).1.count(), 50);
        }
        // Some 24 arrangements, of a moment each even unoptimised; a quadratic one would take minutes.
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
        assert_eq!(model.len(), 10_000);
    }
}
