//! The LLM device on recorded programs, in virtual time: the kernel's own queue and policies, beside FIFO, the
//! published orders and one that knows the future. All runs of a seed have the same programs, arrivals and
//! tool times, so ratios are paired; intervals are Student's t over the seeds' ratios at 95 %.
//!
//! Programs come from the runs of `tau-airline` in `AOK_DATA_DIR`. Of its tasks every second one is for learning
//! beforehand (`warm`), the others are what is run; `cold` learns only while it runs.

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use agent_os_kernel::llm::device::Policy;
use agent_os_kernel::llm::device::expected::{AGEING, Expected};
use agent_os_kernel::llm::device::policy::by_name;
use agent_os_kernel::llm::device::sim::{Job, Oracle, Setup, Trace, Went, flood, jobs, mean_and_p99, run as simulate};
use agent_os_kernel::llm::device::sim::{shuffle_names, teach, traces};
use anyhow::{Context as _, Result, ensure};
use system_tests::figure::Figure;

const BENCH: &str = "sched";
const SLOTS: usize = 4;
/// Seeds of a load.
const SEEDS: u64 = 16;
/// Seeds of the load that has targets.
const GOAL_SEEDS: u64 = 96;
const LOADS: [f64; 6] = [0.5, 0.7, 0.8, 0.9, 0.95, 0.98];
/// Where the targets hold.
const GOAL: f64 = 0.95;
/// Seconds of the flood.
const FLOOD: f64 = 5000.0;
/// What a program of the training tasks is taken to have waited, in seconds.
const WAITED: f64 = 40.0;

/// A row of the table.
#[derive(Clone, Copy, PartialEq)]
enum Row {
    Named(&'static str),
    /// The default with this ageing, having learned from the training tasks.
    Warm(f64),
    /// The default, and the names dealt out anew.
    Shuffled,
    Oracle,
}

const COLD: Row = Row::Named("expected");
const ROWS: [Row; 8] = [
    Row::Named("fifo"),
    Row::Named("round-robin"),
    Row::Named("program-order"),
    Row::Named("attained-service"),
    COLD,
    Row::Warm(AGEING),
    Row::Shuffled,
    Row::Oracle,
];
/// Ageing from the mean's end of the frontier to the tail's.
const FRONTIER: [f64; 9] = [0.0, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.5, 1.0];

impl Row {
    fn label(self) -> String {
        match self {
            COLD => "expected, cold".to_owned(),
            Self::Named(name) => name.to_owned(),
            Self::Warm(AGEING) => "expected, warm".to_owned(),
            Self::Warm(ageing) => format!("expected, warm, ageing {ageing}"),
            Self::Shuffled => "expected, names shuffled".to_owned(),
            Self::Oracle => "oracle".to_owned(),
        }
    }

    fn policy(self, set: &[Job], training: &[Job]) -> Result<Box<dyn Policy>> {
        Ok(match self {
            Self::Named(name) => by_name(name).with_context(|| format!("no policy {name}"))?,
            Self::Shuffled => Box::new(Expected::default()),
            Self::Oracle => Box::new(Oracle::new(set)),
            Self::Warm(ageing) => {
                let mut policy = Expected::with_ageing(ageing);
                teach(&mut policy, training, WAITED);
                Box::new(policy)
            }
        })
    }

    /// Mean and p99 of each seed, in seconds.
    fn measure(self, sets: &[Vec<Job>], training: &[Job]) -> Result<Vec<(f64, f64)>> {
        let one = |(seed, set): (u64, &Vec<Job>)| {
            let mut set = set.clone();
            if self == Self::Shuffled {
                shuffle_names(&mut set, seed);
            }
            let policy = self.policy(&set, training)?;
            Ok(mean_and_p99(&simulate(&set, SLOTS, policy, f64::INFINITY)))
        };
        (1..).zip(sets).map(one).collect()
    }
}

/// A mean and half of its 95 % interval.
#[derive(Clone, Copy)]
struct Estimate {
    mean: f64,
    half: f64,
}

impl Estimate {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        // Student's t at 97.5 %: 1.96 and the first two terms of its expansion in 1/(n − 1).
        let t = 1.96 + 2.37 / (n - 1.0) + 2.82 / (n - 1.0).powi(2);
        Self { mean, half: t * (variance / n).sqrt() }
    }
}

/// What a row gave at a load: seconds, and ratios to FIFO's.
struct Measured {
    row: Row,
    load: f64,
    mean: f64,
    p99: f64,
    mean_ratio: Estimate,
    p99_ratio: Estimate,
}

fn airline() -> Result<(Vec<Trace>, Vec<Trace>)> {
    let data = env::var_os("AOK_DATA_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    let file = data.join("tau-airline/trajectories.jsonl");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("{} cannot be read; AOK_DATA_DIR names the directory of the data", file.display()))?;
    let all = traces(&text)?;
    let mut tasks: Vec<usize> = all.iter().map(|(task, _)| *task).collect();
    tasks.sort_unstable();
    tasks.dedup();
    // By their place and not by their number: a part of the data has even numbers only.
    let (train, test): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(task, _)| tasks.binary_search(task).is_ok_and(|place| place % 2 == 0));
    let only = |of: Vec<(usize, Trace)>| of.into_iter().map(|(_, trace)| trace).collect::<Vec<_>>();
    ensure!(!train.is_empty() && !test.is_empty(), "{} has too few tasks", file.display());
    Ok((only(train), only(test)))
}

fn at_load(load: f64, seeds: u64, rows: &[Row], test: &[Trace], training: &[Job]) -> Result<Vec<Measured>> {
    let sets: Vec<Vec<Job>> =
        (1..=seeds).map(|seed| jobs(test, Setup { load, seed, slots: SLOTS, ..Setup::default() })).collect();
    let fifo = Row::Named("fifo").measure(&sets, training)?;
    let all = rows.iter().map(|&row| {
        let went = row.measure(&sets, training)?;
        let over = |of: fn(&(f64, f64)) -> f64| {
            let ratios: Vec<f64> = went.iter().zip(&fifo).map(|(a, b)| of(a) / of(b)).collect();
            Estimate::of(&ratios)
        };
        let mean = |of: fn(&(f64, f64)) -> f64| went.iter().map(of).sum::<f64>() / went.len() as f64;
        Ok(Measured {
            row,
            load,
            mean: mean(|w| w.0),
            p99: mean(|w| w.1),
            mean_ratio: over(|w| w.0),
            p99_ratio: over(|w| w.1),
        })
    });
    all.collect()
}

/// What each tenant got of its fair share while the tenth floods; the least of the other nine.
fn flooded(test: &[Trace]) -> Result<f64> {
    let set = flood(test, SLOTS, 1);
    let went = simulate(&set, SLOTS, by_name("expected").context("the default")?, FLOOD);
    let mut served = std::collections::BTreeMap::new();
    for (job, went) in set.iter().zip(went) {
        *served.entry(&*job.standing.group).or_insert(0.0) += went.served;
    }
    let fair = FLOOD * SLOTS as f64 / 10.0;
    Ok(served.values().map(|s| s / fair).fold(f64::INFINITY, f64::min))
}

/// Nine tenants who each want `load` of their share, as programs that come by and by, alone and beside a tenth that
/// wants a hundred times as much: what they were served beside it over alone, and their mean times in seconds.
fn beside_a_flood(test: &[Trace], load: f64) -> Result<(f64, f64, f64)> {
    let of = |group: String, load: f64, seed: u64| {
        let setup = Setup { programs: 200_000, slots: SLOTS, load: load / 10.0, seed };
        let mut set = jobs(test, setup);
        set.retain(|job| job.arrives < FLOOD);
        let group: std::sync::Arc<str> = group.into();
        set.iter_mut().for_each(|job| job.standing.group = std::sync::Arc::clone(&group));
        set
    };
    let mut set: Vec<Job> = (0..9).flat_map(|n| of(format!("tenant-{n}"), load, n + 1)).collect();
    let own = set.len();
    let default = || by_name("expected").context("the default");
    let served = |went: &[Went]| went[..own].iter().map(|w| w.served).sum::<f64>();
    let alone = simulate(&set, SLOTS, default()?, FLOOD);
    set.extend(of("flood".to_owned(), 100.0 * load, 10));
    let beside = simulate(&set, SLOTS, default()?, FLOOD);
    Ok((served(&beside) / served(&alone), mean_and_p99(&beside[..own]).0, mean_and_p99(&alone).0))
}

fn table(all: &[Measured]) -> String {
    let mut text = "load | policy | mean s | p99 s | mean / FIFO | p99 / FIFO\n".to_owned();
    for m in all {
        let (a, b) = (m.mean_ratio, m.p99_ratio);
        let _ = writeln!(
            text,
            "{:.2} | {} | {:.1} | {:.0} | {:.3} ± {:.3} | {:.3} ± {:.3}",
            m.load,
            m.row.label(),
            m.mean,
            m.p99,
            a.mean,
            a.half,
            b.mean,
            b.half
        ); // a String takes everything
    }
    text
}

/// The figures, and a table of all rows and loads for people.
///
/// # Errors
/// The data is not there.
pub(crate) fn run() -> Result<(Vec<Figure>, String)> {
    let (train, test) = airline()?;
    let training = jobs(&train, Setup { programs: 400, seed: 0, ..Setup::default() });
    let mut all = Vec::new();
    for load in LOADS {
        let seeds = if load == GOAL { GOAL_SEEDS } else { SEEDS };
        all.extend(at_load(load, seeds, &ROWS, &test, &training)?);
    }
    let find = |row: Row| all.iter().find(|m| m.row == row && m.load == GOAL).context("a row of the table");
    let (fifo, plas) = (find(Row::Named("fifo"))?, find(Row::Named("attained-service"))?);
    let (cold, warm, shuffled, oracle) =
        (find(COLD)?, find(Row::Warm(AGEING))?, find(Row::Shuffled)?, find(Row::Oracle)?);
    let most = |name, value: Estimate, target, limit| Figure {
        limit: Some(limit),
        ..Figure::at_most(BENCH, name, value.mean, "ratio", target)
    };
    let plain = |name, value, unit| Figure::plain(BENCH, name, value, unit);
    let mut figures = vec![
        most("llm_mean_over_fifo", cold.mean_ratio, 0.75, oracle.mean_ratio.mean),
        most("llm_p99_over_fifo", cold.p99_ratio, 1.0, oracle.p99_ratio.mean),
        plain("llm_mean_over_fifo_interval", cold.mean_ratio.half, "± ratio"),
        plain("llm_p99_over_fifo_interval", cold.p99_ratio.half, "± ratio"),
        plain("llm_mean_s", cold.mean, "s").beside(fifo.mean),
        plain("llm_p99_s", cold.p99, "s").beside(fifo.p99),
        plain("llm_warm_mean_over_fifo", warm.mean_ratio.mean, "ratio"),
        plain("llm_warm_p99_over_fifo", warm.p99_ratio.mean, "ratio"),
        Figure::at_most(BENCH, "llm_shuffled_mean_s", shuffled.mean, "s", plas.mean).beside(plas.mean),
        Figure::at_most(BENCH, "llm_shuffled_p99_s", shuffled.p99, "s", plas.p99).beside(plas.p99),
    ];
    figures.push(Figure::at_most(BENCH, "llm_flood_share_lost", 1.0 - flooded(&test)?, "of fair share", 0.02));
    let (served, beside, alone) = beside_a_flood(&test, 0.8)?;
    figures.push(Figure::at_most(BENCH, "llm_flood_demand_lost", 1.0 - served, "of demand", 0.02));
    figures.push(plain("llm_flood_others_mean_s", beside, "s").beside(alone));
    all.extend(at_load(GOAL, SEEDS, &FRONTIER.map(Row::Warm), &test, &training)?);
    Ok((
        figures,
        format!("seeds 1 to {SEEDS}, at {GOAL} in the first part 1 to {GOAL_SEEDS}; {SLOTS} slots\n{}", table(&all)),
    ))
}
