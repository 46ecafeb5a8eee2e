//! What the view shows, derived from what the kernel tells. Pure: instants come with the snapshots.
//!
//! The kernel counts (`cpu_us`, tokens); a share or a rate is the difference of two snapshots over the
//! time between them. A figure that nobody can know (the first snapshot, a counter that began anew, a
//! kernel that does not tell) is `None`, never 0.

use std::collections::{BTreeMap, HashMap};
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::process::{Exit, Pid, ProcessState};

/// The states in the order in which they are told: what may want attention first, what has ended last.
pub(super) const STATES: [ProcessState; 6] = [
    ProcessState::Runnable,
    ProcessState::Approval,
    ProcessState::Waiting,
    ProcessState::Stopped,
    ProcessState::Swapped,
    ProcessState::Zombie,
];

/// The word of a state, as the filter takes it.
pub(super) fn word(state: ProcessState) -> &'static str {
    match state {
        ProcessState::Runnable => "running",
        ProcessState::Approval => "approval",
        ProcessState::Waiting => "waiting",
        ProcessState::Stopped => "stopped",
        ProcessState::Swapped => "swapped",
        ProcessState::Zombie => "ended",
    }
}

/// A line of `ps --json`. What an older kernel does not tell is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::cli) struct Process {
    /// Process id.
    pub(in crate::cli) pid: Pid,
    /// Its parent.
    pub(in crate::cli) ppid: Option<Pid>,
    /// Name for people. A guest may have chosen it.
    pub(in crate::cli) name: String,
    /// Agent image.
    pub(in crate::cli) agent: String,
    /// `provider/model`.
    pub(in crate::cli) model: Option<String>,
    /// Scheduling group.
    pub(in crate::cli) group: String,
    /// State letter.
    pub(in crate::cli) state: ProcessState,
    /// What it waits on.
    pub(in crate::cli) waiting_on: Option<String>,
    /// −20…19, as it was set.
    pub(in crate::cli) nice: i8,
    /// Fuel used.
    pub(in crate::cli) fuel: u64,
    /// Slices used.
    pub(in crate::cli) slices: u64,
    /// Prompt tokens.
    pub(in crate::cli) tokens_in: u64,
    /// Of them cached.
    pub(in crate::cli) tokens_cached: u64,
    /// Generated tokens.
    pub(in crate::cli) tokens_out: u64,
    /// Price; `None` = unknown.
    pub(in crate::cli) micro_usd: Option<u64>,
    /// Tool calls made.
    pub(in crate::cli) tool_calls: u64,
    /// Pages in the window.
    pub(in crate::cli) pages_resident: Option<u64>,
    /// Pages in the store only.
    pub(in crate::cli) pages_swapped: Option<u64>,
    /// How it ended.
    pub(in crate::cli) exit: Option<Exit>,
    /// What it was asked to do.
    #[serde(default)]
    pub(in crate::cli) task: Option<String>,
    /// Microseconds that it has run on a worker.
    #[serde(default)]
    pub(in crate::cli) cpu_us: Option<u64>,
    /// Its slice of this moment, in microseconds.
    #[serde(default)]
    pub(in crate::cli) slice_us: Option<u64>,
    /// The nice value that it runs at.
    #[serde(default)]
    pub(in crate::cli) effective_nice: Option<i8>,
    /// Who lends it that nice value, by waiting for it.
    #[serde(default)]
    pub(in crate::cli) inherits_from: Option<Pid>,
    /// The root of its agent tree.
    #[serde(default)]
    pub(in crate::cli) tree: Option<Pid>,
}

impl Process {
    /// Prompt and generated tokens together.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens_in.saturating_add(self.tokens_out)
    }
}

/// What was seen at one instant.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Snapshot {
    /// When, for rates.
    pub(in crate::cli) at: Instant,
    /// When, for people: Unix milliseconds.
    pub(in crate::cli) at_ms: u64,
    /// Whether a kernel told it; else it is what the store has.
    pub(in crate::cli) live: bool,
    /// All processes.
    pub(in crate::cli) processes: Vec<Process>,
    /// The text of `aok metrics`; empty where there is none.
    pub(in crate::cli) prometheus: String,
}

impl Snapshot {
    /// What is seen now.
    pub(in crate::cli) fn now(live: bool, processes: Vec<Process>, prometheus: String) -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        Self { at: Instant::now(), at_ms, live, processes, prometheus }
    }
}

/// A process with what is derived of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// As the kernel tells it.
    #[serde(flatten)]
    pub(super) process: Process,
    /// Share of one worker since the last snapshot, in percent.
    pub(super) cpu_percent: Option<f64>,
    /// Tokens per second since the last snapshot.
    pub(super) tokens_per_second: Option<f64>,
    /// Name, agent, group and state word in lower case, for the order by name and the filter. Kept, since
    /// every key that is typed looks through all of them.
    #[serde(skip)]
    pub(super) lower: String,
}

/// What is told of all processes together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Totals {
    /// Processes by state letter; every letter is there.
    pub(super) states: BTreeMap<&'static str, u64>,
    /// Worker time of all processes since the last snapshot, in percent of one worker.
    pub(super) cpu_percent: Option<f64>,
    /// Share of the workers' time since the kernel started, in percent of all of them.
    pub(super) cpu_mean_percent: Option<f64>,
    /// Runnable processes per worker.
    pub(super) scheduler_load: Option<f64>,
    /// The longest slice that a runnable process has now, in microseconds.
    pub(super) slice_us: Option<u64>,
    /// Worker threads.
    pub(super) workers: Option<u64>,
    /// Tokens per second since the last snapshot.
    pub(super) tokens_per_second: Option<f64>,
    /// What all processes have cost, as far as it is known.
    pub(super) micro_usd: Option<u64>,
    /// Tool calls per second, mean of the last minute.
    pub(super) tool_calls_per_second: Option<f64>,
    /// Resident memory of the kernel.
    pub(super) memory_bytes: Option<u64>,
}

/// A snapshot with all that is derived of it and the one before.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Reading {
    /// Unix milliseconds.
    pub(super) at_ms: u64,
    /// Whether a kernel told it.
    #[serde(rename = "kernel")]
    pub(super) live: bool,
    /// Of all processes.
    #[serde(flatten)]
    pub(super) totals: Totals,
    /// Of each.
    #[serde(rename = "processes")]
    pub(super) rows: Vec<Row>,
}

/// The counters of one process.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    cpu_us: Option<u64>,
    tokens: u64,
}

/// Makes rates out of counters.
#[derive(Debug, Default)]
pub(super) struct Meter(Option<Before>);

/// The snapshot before.
#[derive(Debug)]
struct Before {
    at: Instant,
    live: bool,
    /// PIDs are never reused and rise, so a higher one began since.
    newest: Pid,
    counters: HashMap<Pid, Counters>,
}

impl Meter {
    /// Derives all figures of a snapshot, and keeps its counters for the next.
    pub(super) fn read(&mut self, snapshot: Snapshot) -> Reading {
        let Snapshot { at, at_ms, live, processes, prometheus } = snapshot;
        // What a kernel counts since it started is not to be compared with what a store has.
        let before = self.0.take().filter(|b| b.live == live && at > b.at);
        let mut counters = HashMap::with_capacity(processes.len());
        let mut newest = Pid(0);
        let mut rows = Vec::with_capacity(processes.len());
        for process in processes {
            let now = Counters { cpu_us: process.cpu_us, tokens: process.tokens() };
            newest = newest.max(process.pid);
            counters.insert(process.pid, now);
            let (cpu_percent, tokens_per_second) =
                before.as_ref().map_or((None, None), |b| b.rates(process.pid, now, at));
            let lower = [&process.name, &process.agent, &process.group, word(process.state)].join("\n").to_lowercase();
            rows.push(Row { process, cpu_percent, tokens_per_second, lower });
        }
        self.0 = Some(Before { at, live, newest, counters });
        Reading { at_ms, live, totals: totals(&rows, if live { &prometheus } else { "" }), rows }
    }
}

impl Before {
    fn rates(&self, pid: Pid, now: Counters, at: Instant) -> (Option<f64>, Option<f64>) {
        let then = match self.counters.get(&pid) {
            Some(then) => *then,
            None if pid > self.newest => Counters { cpu_us: Some(0), tokens: 0 },
            None => return (None, None),
        };
        let seconds = at.saturating_duration_since(self.at).as_secs_f64();
        let rate = |now: u64, then: u64| Some(rounded(now.checked_sub(then)? as f64 / seconds));
        let cpu = now.cpu_us.zip(then.cpu_us).and_then(|(now, then)| Some(rate(now, then)? / 1e4));
        (cpu.map(rounded), rate(now.tokens, then.tokens))
    }
}

/// Two decimals: no more is meant.
fn rounded(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

fn totals(rows: &[Row], prometheus: &str) -> Totals {
    let mut all = Totals { states: STATES.map(|s| (s.letter(), 0)).into(), ..Totals::default() };
    let add = |sum: &mut Option<f64>, x: Option<f64>| {
        if let Some(x) = x {
            *sum = Some(rounded(sum.unwrap_or(0.0) + x));
        }
    };
    for row in rows {
        let p = &row.process;
        *all.states.entry(p.state.letter()).or_default() += 1;
        add(&mut all.cpu_percent, row.cpu_percent);
        add(&mut all.tokens_per_second, row.tokens_per_second);
        if let Some(price) = p.micro_usd {
            all.micro_usd = Some(all.micro_usd.unwrap_or(0).saturating_add(price));
        }
        if p.state == ProcessState::Runnable {
            all.slice_us = all.slice_us.max(p.slice_us);
        }
    }
    for (name, value) in samples(prometheus) {
        match name {
            "aok_cpu_usage" => all.cpu_mean_percent = Some(rounded(value * 100.0)),
            "aok_scheduler_load" => all.scheduler_load = Some(rounded(value)),
            "aok_tool_calls_per_second" => all.tool_calls_per_second = Some(rounded(value)),
            "aok_memory_usage_bytes" => all.memory_bytes = Some(value as u64),
            "aok_workers" => all.workers = Some(value as u64),
            _ => {}
        }
    }
    all
}

/// The samples without labels whose value is known.
fn samples(prometheus: &str) -> impl Iterator<Item = (&str, f64)> {
    prometheus.lines().filter(|l| !l.starts_with('#')).filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next()?, words.next()?.parse::<f64>().ok()?);
        value.is_finite().then_some((name, value))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    /// A process of which only the PID matters.
    pub(in crate::cli::top) fn process(pid: u64) -> Process {
        let line = json!({
            "pid": pid, "ppid": null, "name": format!("p{pid}"), "agent": "assistant", "model": "script/x",
            "group": "users", "state": "S", "waiting_on": "model", "nice": 0, "fuel": 1000, "slices": 2,
            "tokens_in": 0, "tokens_cached": 0, "tokens_out": 0, "micro_usd": null, "tool_calls": 0,
            "pages_resident": null, "pages_swapped": null, "exit": null,
        });
        serde_json::from_value(line).unwrap()
    }

    /// What a kernel tells `ms` after `start`.
    pub(in crate::cli::top) fn snapshot(start: Instant, ms: u64, processes: Vec<Process>) -> Snapshot {
        Snapshot {
            at: start + Duration::from_millis(ms),
            at_ms: ms,
            live: true,
            processes,
            prometheus: METRICS.to_owned(),
        }
    }

    const METRICS: &str = "# HELP aok_cpu_usage x\n# TYPE aok_cpu_usage gauge\naok_cpu_usage 0.25\n\
        aok_context_hit_rate NaN\naok_gateway_latency_seconds_bucket{le=\"0.1\"} 3\naok_scheduler_load 1.5\n\
        aok_memory_usage_bytes 123000000\naok_tool_calls_per_second 0.5\naok_workers 2\nnonsense\n";

    fn busy(pid: u64, cpu_us: u64, tokens: u64) -> Process {
        Process { cpu_us: Some(cpu_us), tokens_out: tokens, ..process(pid) }
    }

    #[test]
    fn rates_are_differences_over_time() {
        let start = Instant::now();
        let mut meter = Meter::default();
        let first = meter.read(snapshot(start, 0, vec![busy(1, 1_000, 10), busy(2, 0, 0)]));
        assert_eq!((first.rows[0].cpu_percent, first.rows[0].tokens_per_second), (None, None));
        assert_eq!(first.totals.cpu_percent, None);
        // 3 began since, 4 did too but does not tell its time.
        let four = Process { cpu_us: None, ..busy(4, 0, 8) };
        let second =
            meter.read(snapshot(start, 2_000, vec![busy(1, 1_001_000, 110), busy(2, 0, 0), busy(3, 500_000, 0), four]));
        let rates: Vec<_> = second.rows.iter().map(|r| (r.cpu_percent, r.tokens_per_second)).collect();
        assert_eq!(
            rates,
            [(Some(50.0), Some(50.0)), (Some(0.0), Some(0.0)), (Some(25.0), Some(0.0)), (None, Some(4.0))]
        );
        assert_eq!((second.totals.cpu_percent, second.totals.tokens_per_second), (Some(75.0), Some(54.0)));
    }

    #[test]
    fn what_cannot_be_known_is_not_zero() {
        let start = Instant::now();
        let mut meter = Meter::default();
        meter.read(snapshot(start, 0, vec![busy(5, 1_000, 10)]));
        // A counter that began anew; a PID that was not told before, though it is old.
        let next = meter.read(snapshot(start, 1_000, vec![busy(5, 10, 5), busy(2, 7, 7)]));
        assert!(next.rows.iter().all(|r| r.cpu_percent.is_none() && r.tokens_per_second.is_none()));
        // The same instant again, and then the store instead of the kernel.
        let same = meter.read(snapshot(start, 1_000, vec![busy(5, 20, 5)]));
        assert_eq!(same.rows[0].cpu_percent, None);
        let stored = meter.read(Snapshot { live: false, ..snapshot(start, 2_000, vec![busy(5, 20, 5)]) });
        assert_eq!((stored.rows[0].cpu_percent, stored.totals.scheduler_load), (None, None));
        assert_eq!(Meter::default().read(snapshot(start, 0, Vec::new())).totals.micro_usd, None);
    }

    #[test]
    fn totals_are_of_all_processes_and_of_the_metrics() {
        let run = |pid, slice| Process { state: ProcessState::Runnable, slice_us: Some(slice), ..process(pid) };
        let paid = Process { micro_usd: Some(7), slice_us: Some(9_000), ..process(3) };
        let read = Meter::default().read(snapshot(Instant::now(), 0, vec![run(1, 500), run(2, 1_500), paid]));
        let t = read.totals;
        assert_eq!(t.states, [("A", 0), ("R", 2), ("S", 1), ("T", 0), ("W", 0), ("Z", 0)].into());
        assert_eq!((t.slice_us, t.micro_usd, t.workers), (Some(1_500), Some(7), Some(2)));
        assert_eq!((t.cpu_mean_percent, t.scheduler_load), (Some(25.0), Some(1.5)));
        assert_eq!((t.memory_bytes, t.tool_calls_per_second), (Some(123_000_000), Some(0.5)));
    }

    #[test]
    fn a_line_of_an_older_kernel_is_understood_and_its_json_says_null() {
        let read = Meter::default().read(snapshot(Instant::now(), 5, vec![process(1)]));
        let told = serde_json::to_value(&read).unwrap();
        assert_eq!((&told["at_ms"], &told["kernel"], &told["states"]["S"]), (&json!(5), &json!(true), &json!(1)));
        let p = &told["processes"][0];
        assert_eq!((&p["pid"], &p["state"], &p["name"]), (&json!(1), &json!("S"), &json!("p1")));
        for unknown in ["cpu_us", "cpu_percent", "tokens_per_second", "effective_nice", "tree", "task"] {
            assert!(p.get(unknown).is_some_and(serde_json::Value::is_null), "{unknown}");
        }
        assert!(p.get("lower").is_none());
    }
}
