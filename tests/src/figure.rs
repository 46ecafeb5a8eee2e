//! What a bench prints: one JSON object per figure.

use std::time::{Duration, Instant};

use serde::Serialize;

/// A measured figure beside its baseline of the same run.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// The bench.
    pub bench: &'static str,
    /// The figure's name.
    pub figure: &'static str,
    /// What was measured.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The same in the baseline.
    pub baseline: Option<f64>,
    /// Value over baseline.
    pub ratio: Option<f64>,
    /// The physical bound, where there is one.
    pub limit: Option<f64>,
    /// What `value` must not exceed, or must reach.
    pub target: Option<f64>,
    /// Whether it is kept.
    pub ok: Option<bool>,
}

impl Figure {
    /// A figure that is wanted at or below `target`.
    #[must_use]
    pub fn at_most(bench: &'static str, figure: &'static str, value: f64, unit: &'static str, target: f64) -> Self {
        let ok = Some(value <= target);
        Self { bench, figure, value, unit, baseline: None, ratio: None, limit: None, target: Some(target), ok }
    }

    /// A figure that is wanted at or above `target`.
    #[must_use]
    pub fn at_least(bench: &'static str, figure: &'static str, value: f64, unit: &'static str, target: f64) -> Self {
        Self { ok: Some(value >= target), ..Self::at_most(bench, figure, value, unit, target) }
    }

    /// A figure that is told and has no target.
    #[must_use]
    pub fn plain(bench: &'static str, figure: &'static str, value: f64, unit: &'static str) -> Self {
        Self { bench, figure, value, unit, baseline: None, ratio: None, limit: None, target: None, ok: None }
    }

    /// Adds what the baseline measured.
    #[must_use]
    pub fn beside(mut self, baseline: f64) -> Self {
        self.baseline = Some(baseline);
        self.ratio = Some(self.value / baseline);
        self
    }

    /// Prints it as one line of JSON.
    #[allow(clippy::print_stdout, reason = "this is the bench's output")]
    pub fn print(&self) {
        match serde_json::to_string(self) {
            Ok(line) => println!("{line}"),
            Err(e) => println!("{{\"error\":\"{e}\"}}"),
        }
    }
}

/// The median of `rounds` runs of `f`, and its value.
pub fn median(rounds: usize, mut f: impl FnMut() -> f64) -> f64 {
    let mut all: Vec<f64> = (0..rounds.max(1)).map(|_| f()).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// How long `f` takes.
pub fn timed<T>(f: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let value = f();
    (start.elapsed(), value)
}
