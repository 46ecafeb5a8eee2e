//! The kernel's nine metrics (CONTRACT §8) as Prometheus text.
//!
//! It owns their names, units and counters. Nothing in the kernel reads them back, and it knows no
//! clock: instants come from the caller, and so do the figures that others keep ([`Gauges`]).

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Upper bounds of the gateway latency's buckets, in seconds: a cached local answer to a long reply.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// The tool-call rate is a mean over so many seconds.
const RATE_SECONDS: u64 = 60;

/// Figures of this instant, which other parts keep.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Share of the workers' time that was spent running guests since the kernel started, 0 to 1.
    pub cpu_usage: f64,
    /// Resident memory of the kernel process.
    pub memory_bytes: u64,
    /// Processes that have not ended.
    pub active_agents: u64,
    /// Whether the store answered.
    pub storage_healthy: bool,
    /// Runnable and running processes per worker.
    pub scheduler_load: f64,
    /// From the wake of a process to its turn.
    pub wake_to_run: Times,
    /// From entering a run queue to a turn.
    pub queue_wait: Times,
}

/// Times in buckets of powers of two nanoseconds: bucket `i` holds what is shorter than 2^i ns and not in the one
/// before; the last has no upper end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// How many in each.
    pub counts: Vec<u64>,
    /// All of them together, in nanoseconds.
    pub sum_ns: u64,
}

/// The counters that the kernel feeds. Shared by reference; every method takes `&self`.
#[derive(Debug)]
pub struct Metrics {
    hits: AtomicU64,
    faults: AtomicU64,
    swapped_out: AtomicU64,
    started: Instant,
    tool_calls: Mutex<Rate>,
    /// One per bound of [`BUCKETS`], then one for the rest; each observation is in one only.
    latency: [AtomicU64; BUCKETS.len() + 1],
    latency_us: AtomicU64,
}

/// Events per second of the last minute, the oldest first.
#[derive(Debug, Default)]
struct Rate(VecDeque<(u64, u64)>);

impl Metrics {
    /// All at zero, for a kernel that starts `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            hits: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            swapped_out: AtomicU64::new(0),
            started: now,
            tool_calls: Mutex::default(),
            latency: Default::default(),
            latency_us: AtomicU64::new(0),
        }
    }

    /// A page was read: resident, or swapped.
    pub fn observe_page_read(&self, resident: bool) {
        let counter = if resident { &self.hits } else { &self.faults };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// So many pages were swapped out.
    pub fn observe_swap_out(&self, pages: u64) {
        self.swapped_out.fetch_add(pages, Ordering::Relaxed);
    }

    /// A tool was called, whatever came of it.
    pub fn observe_tool_call(&self, now: Instant) {
        let second = self.second(now);
        let mut rate = self.tool_calls.lock().unwrap_or_else(PoisonError::into_inner);
        rate.forget_before(second);
        match rate.0.back_mut() {
            Some((last, count)) if *last >= second => *count += 1,
            _ => rate.0.push_back((second, 1)),
        }
    }

    /// A model call took so long, failed ones included.
    pub fn observe_gateway(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.latency[bucket].fetch_add(1, Ordering::Relaxed);
        self.latency_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The nine metrics in Prometheus' text format. The hit rate is `NaN` before the first read, as
    /// Prometheus writes a figure that is not known.
    #[must_use]
    pub fn render(&self, now: Instant, gauges: &Gauges) -> String {
        let (hits, faults) = (self.hits.load(Ordering::Relaxed) as f64, self.faults.load(Ordering::Relaxed) as f64);
        let mut out = String::with_capacity(2048);
        let gauge = |out: &mut String, name, help, value| metric(out, name, "gauge", help, value);
        gauge(&mut out, "aok_cpu_usage", "Share of worker time spent running agents, 0 to 1.", gauges.cpu_usage);
        let help = "Resident memory of the kernel process.";
        gauge(&mut out, "aok_memory_usage_bytes", help, gauges.memory_bytes as f64);
        let help = "Share of page reads that found the page in the window, 0 to 1.";
        gauge(&mut out, "aok_context_hit_rate", help, hits / (hits + faults));
        let swapped_out = self.swapped_out.load(Ordering::Relaxed) as f64;
        metric(&mut out, "aok_swap_count_total", "counter", "Pages swapped out of a window.", swapped_out);
        gauge(&mut out, "aok_active_agents", "Processes that have not ended.", gauges.active_agents as f64);
        let help = "Tool calls per second, mean of the last minute.";
        gauge(&mut out, "aok_tool_calls_per_second", help, self.tool_call_rate(now));
        self.render_latency(&mut out);
        let health = f64::from(u8::from(gauges.storage_healthy));
        gauge(&mut out, "aok_storage_health", "1 if the store answers, else 0.", health);
        let help = "Runnable and running processes per worker.";
        gauge(&mut out, "aok_scheduler_load", help, gauges.scheduler_load);
        let help = "From the wake of a process to its turn on a worker.";
        render_times(&mut out, "aok_scheduler_wake_seconds", help, &gauges.wake_to_run);
        let help = "From entering a run queue to a turn on a worker.";
        render_times(&mut out, "aok_scheduler_queue_seconds", help, &gauges.queue_wait);
        out
    }

    fn render_latency(&self, out: &mut String) {
        const NAME: &str = "aok_gateway_latency_seconds";
        header(out, NAME, "histogram", "Time of model calls, failed ones included.");
        let mut below = 0;
        let bounds = BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&self.latency) {
            below += count.load(Ordering::Relaxed);
            line(out, format_args!("{NAME}_bucket{{le=\"{bound}\"}} {below}"));
        }
        let sum = self.latency_us.load(Ordering::Relaxed) as f64 / 1e6;
        line(out, format_args!("{NAME}_sum {sum}"));
        line(out, format_args!("{NAME}_count {below}"));
    }

    fn tool_call_rate(&self, now: Instant) -> f64 {
        let second = self.second(now);
        let mut rate = self.tool_calls.lock().unwrap_or_else(PoisonError::into_inner);
        rate.forget_before(second);
        let calls: u64 = rate.0.iter().map(|(_, count)| count).sum();
        calls as f64 / RATE_SECONDS as f64
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs()
    }
}

impl Rate {
    /// Lets go of what is older than the minute that ends with `second`.
    fn forget_before(&mut self, second: u64) {
        while self.0.front().is_some_and(|(at, _)| at + RATE_SECONDS <= second) {
            self.0.pop_front();
        }
    }
}

/// Buckets from about 1 µs to about 1 s, each four times the one before.
fn render_times(out: &mut String, name: &str, help: &str, times: &Times) {
    header(out, name, "histogram", help);
    let all: u64 = times.counts.iter().sum();
    for power in (10..=30).step_by(2) {
        let below: u64 = times.counts.iter().take(power + 1).sum();
        let bound = (1_u64 << power) as f64 / 1e9;
        line(out, format_args!("{name}_bucket{{le=\"{bound}\"}} {below}"));
    }
    line(out, format_args!("{name}_bucket{{le=\"+Inf\"}} {all}"));
    line(out, format_args!("{name}_sum {}", times.sum_ns as f64 / 1e9));
    line(out, format_args!("{name}_count {all}"));
}

fn metric(out: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    header(out, name, kind, help);
    line(out, format_args!("{name} {value}"));
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    line(out, format_args!("# HELP {name} {help}"));
    line(out, format_args!("# TYPE {name} {kind}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_a_cumulative_histogram() {
        let mut counts = vec![0; 40];
        (counts[5], counts[12], counts[13], counts[39]) = (1, 2, 3, 4);
        let mut out = String::new();
        render_times(&mut out, "x", "help", &Times { counts, sum_ns: 2_000_000_000 });
        for expected in [
            "x_bucket{le=\"0.000001024\"} 1",
            "x_bucket{le=\"0.000004096\"} 3",
            "x_bucket{le=\"0.000016384\"} 6",
            "x_bucket{le=\"1.073741824\"} 6",
            "x_bucket{le=\"+Inf\"} 10",
            "x_sum 2",
            "x_count 10",
        ] {
            assert!(out.lines().any(|line| line == expected), "{expected} is not in\n{out}");
        }
    }

    const NAMES: [&str; 11] = [
        "aok_cpu_usage",
        "aok_memory_usage_bytes",
        "aok_context_hit_rate",
        "aok_swap_count_total",
        "aok_active_agents",
        "aok_tool_calls_per_second",
        "aok_gateway_latency_seconds",
        "aok_storage_health",
        "aok_scheduler_load",
        "aok_scheduler_wake_seconds",
        "aok_scheduler_queue_seconds",
    ];

    fn value(text: &str, name: &str) -> f64 {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    #[test]
    fn the_names_come_with_help_and_type_before_their_samples() {
        let now = Instant::now();
        let text = Metrics::new(now).render(now, &Gauges::default());
        let mut seen = Vec::new();
        let mut lines = text.lines().peekable();
        while let Some(help) = lines.next() {
            let name = help.strip_prefix("# HELP ").unwrap().split(' ').next().unwrap();
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"));
            let mut samples = 0;
            while lines.next_if(|l| !l.starts_with('#')).is_some_and(|l| l.starts_with(name)) {
                samples += 1;
            }
            assert!(if kind == "histogram" { samples > 10 } else { samples == 1 }, "{name}: {samples}");
            seen.push(name.to_owned());
        }
        assert_eq!(seen, NAMES);
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn values_are_what_was_observed() {
        let now = Instant::now();
        let m = Metrics::new(now);
        assert!(value(&m.render(now, &Gauges::default()), "aok_context_hit_rate").is_nan());
        (0..3).for_each(|_| m.observe_page_read(true));
        m.observe_page_read(false);
        m.observe_swap_out(5);
        for ms in [1, 10, 11, 700, 500_000] {
            m.observe_gateway(Duration::from_millis(ms));
        }
        let gauges = Gauges {
            cpu_usage: 0.25,
            memory_bytes: 1 << 33,
            active_agents: 3,
            storage_healthy: true,
            scheduler_load: 1.5,
            ..Gauges::default()
        };
        let text = m.render(now, &gauges);
        for (name, expected) in [
            ("aok_cpu_usage", 0.25),
            ("aok_memory_usage_bytes", 8_589_934_592.0),
            ("aok_context_hit_rate", 0.75),
            ("aok_swap_count_total", 5.0),
            ("aok_active_agents", 3.0),
            ("aok_storage_health", 1.0),
            ("aok_scheduler_load", 1.5),
            ("aok_gateway_latency_seconds_bucket{le=\"0.005\"}", 1.0),
            ("aok_gateway_latency_seconds_bucket{le=\"0.01\"}", 2.0),
            ("aok_gateway_latency_seconds_bucket{le=\"1\"}", 4.0),
            ("aok_gateway_latency_seconds_bucket{le=\"120\"}", 4.0),
            ("aok_gateway_latency_seconds_bucket{le=\"+Inf\"}", 5.0),
            ("aok_gateway_latency_seconds_count", 5.0),
            ("aok_gateway_latency_seconds_sum", 500.722),
        ] {
            assert_eq!(value(&text, name), expected, "{name}");
        }
    }

    #[test]
    fn the_tool_call_rate_is_of_the_last_minute() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let m = Metrics::new(start);
        let rate = |s| value(&m.render(at(s), &Gauges::default()), "aok_tool_calls_per_second");
        (0..120).for_each(|_| m.observe_tool_call(at(1)));
        (0..60).for_each(|_| m.observe_tool_call(at(30)));
        // Earlier than the newest: counted, not lost.
        (0..60).for_each(|_| m.observe_tool_call(at(29)));
        assert_eq!([rate(30), rate(60), rate(61), rate(89), rate(90)], [4.0, 4.0, 2.0, 2.0, 0.0]);
    }
}
