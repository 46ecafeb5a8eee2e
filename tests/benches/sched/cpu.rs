//! The run queue with guests that compute: rates, shares, latencies, and how the simulator agrees.
//!
//! Fuel is counted in intervals of [`INTERVAL`], the kernel's own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_os_kernel::engine::YIELD_INTERVAL as INTERVAL;
use agent_os_kernel::process::Pid;
use agent_os_kernel::scheduler::sim::{Pattern, SimTask, Simulation};
use agent_os_kernel::scheduler::{Nice, PolicyKind, Scheduler, Settings, SliceRule, TaskHandle, TaskSpec, TaskState};
use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use system_tests::figure::Figure;
use tokio::runtime::Runtime;

use super::BENCH;
use super::fifo::{Fifo, Run};
use super::guest::{Counted, Guest};

const WORKERS: usize = 2;
/// Fuel of a slice where dispatching itself is measured.
const SMALL: u64 = 1_000;
const SEED: u64 = 7;
const WAKES: usize = 1_000;
const KILLS: usize = 300;
const WARM_UP: Duration = Duration::from_millis(300);

pub(crate) struct Cpu<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) guest: Guest,
    /// How long equal agents run; other loads run a sixth of it.
    pub(crate) time: Duration,
}

/// A spinner with the intervals that it has had.
struct Spinner {
    task: TaskHandle,
    polls: Arc<AtomicU64>,
}

fn spec(pid: u64, group: &str, tree: u64, nice: i64) -> TaskSpec {
    TaskSpec { pid: Pid(pid), group: Arc::from(group), tree, nice: Nice::new(nice).unwrap_or_default() }
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * q).round() as usize).copied().unwrap_or(f64::NAN)
}

impl Cpu<'_> {
    pub(crate) fn run(&self) -> Result<Vec<Figure>> {
        let mut figures = self.dispatch()?;
        figures.push(self.equal()?);
        figures.push(self.weights()?);
        figures.extend(self.flood()?);
        figures.extend(self.wakes()?);
        figures.extend(self.kills()?);
        figures.extend(self.inversion()?);
        figures.push(self.agreement()?);
        Ok(figures)
    }

    fn start(&self, settings: Settings) -> Result<Scheduler> {
        Ok(Scheduler::start(settings, self.runtime.handle().clone())?)
    }

    fn spinner(&self, scheduler: &Scheduler, spec: &TaskSpec) -> Spinner {
        let polls = Arc::default();
        let task = scheduler.add(spec, Counted::new(self.guest.clone().spin(INTERVAL), &polls));
        Spinner { task, polls }
    }

    /// Intervals of each between two moments.
    fn measure(&self, spinners: &[Spinner], time: Duration) -> Vec<f64> {
        let read = || spinners.iter().map(|s| s.polls.load(Ordering::Relaxed)).collect::<Vec<_>>();
        std::thread::sleep(WARM_UP);
        let before = read();
        std::thread::sleep(time);
        read().into_iter().zip(before).map(|(now, then)| (now - then) as f64).collect()
    }

    fn per_second(slices: impl Fn() -> u64) -> f64 {
        std::thread::sleep(WARM_UP);
        let (before, since) = (slices(), Instant::now());
        std::thread::sleep(Duration::from_millis(700));
        (slices() - before) as f64 / since.elapsed().as_secs_f64()
    }

    /// Slices of 1 000 fuel, of 100 and of 1 000 guests, beside a naive queue in turns.
    fn dispatch(&self) -> Result<Vec<Figure>> {
        let zero = Duration::ZERO;
        let slice = SliceRule { target_latency: zero, floor: zero, ceiling: zero };
        let mut figures = Vec::new();
        let mut least = (f64::INFINITY, f64::INFINITY, f64::NAN);
        for guests in [100, 1_000] {
            let (mut fair, mut fifo, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..5 {
                let scheduler = self.start(Settings { policy: PolicyKind::Fair, slice, ..Settings::new(WORKERS) })?;
                for pid in 1..=guests {
                    scheduler.add(&TaskSpec::new(Pid(pid)), self.guest.clone().spin(SMALL));
                }
                let ours = Self::per_second(|| scheduler.load().slices);
                scheduler.shutdown();
                let runs = (0..guests).map(|_| Box::pin(self.guest.clone().spin(SMALL)) as Run).collect();
                let naive = Fifo::start(WORKERS, runs);
                let theirs = Self::per_second(|| naive.slices());
                drop(naive);
                ratios.push(ours / theirs);
                fair.push(ours);
                fifo.push(theirs);
            }
            let (ratio, ours, theirs) =
                (quantile(&mut ratios, 0.5), quantile(&mut fair, 0.5), quantile(&mut fifo, 0.5));
            let name = if guests == 100 { "dispatch_100_per_s" } else { "dispatch_1000_per_s" };
            figures.push(Figure::plain(BENCH, name, ours, "slices/s").beside(theirs));
            if ratio < least.1 {
                least.1 = ratio;
            }
            if ours < least.0 {
                (least.0, least.2) = (ours, theirs);
            }
        }
        figures.push(Figure::at_least(BENCH, "dispatch_per_s", least.0, "slices/s", 1e6).beside(least.2));
        figures.push(Figure::at_least(BENCH, "dispatch_over_fifo", least.1, "ratio", 0.5));
        Ok(figures)
    }

    fn equal(&self) -> Result<Figure> {
        let scheduler = self.start(Settings::new(WORKERS))?;
        let all: Vec<_> = (1..=64).map(|pid| self.spinner(&scheduler, &TaskSpec::new(Pid(pid)))).collect();
        let had = self.measure(&all, self.time);
        let (sum, squares) = had.iter().fold((0.0, 0.0), |(s, q), v| (s + v, q + v * v));
        Ok(Figure::at_least(BENCH, "jain_64", sum * sum / (64.0 * squares), "index", 0.99))
    }

    /// Groups of weights 1, 2 and 4 with four agents each: the greatest error of a share.
    fn weights(&self) -> Result<Figure> {
        let scheduler = self.start(Settings::new(WORKERS))?;
        let mut all = Vec::new();
        for class in 0..3_u64 {
            let group = format!("g{class}");
            scheduler.set_group_weight(&group, 1024 << class);
            for n in 1..=4 {
                let pid = class * 4 + n;
                all.push(self.spinner(&scheduler, &spec(pid, &group, pid, 0)));
            }
        }
        let had = self.measure(&all, self.time / 6);
        let unit = had.iter().sum::<f64>() / 7.0;
        let error = |(class, had): (i32, &[f64])| (had.iter().sum::<f64>() / (unit * 2_f64.powi(class)) - 1.0).abs();
        let worst = (0..).zip(had.chunks(4)).map(error).fold(0.0, f64::max);
        Ok(Figure::at_most(BENCH, "weights_err_pct", 100.0 * worst, "%", 3.0))
    }

    /// Ten groups, one of which has a hundred times as many agents: what the others get of their fair share.
    fn flood(&self) -> Result<Vec<Figure>> {
        let mut shares = Vec::new();
        for policy in [PolicyKind::Fair, PolicyKind::RoundRobin] {
            let scheduler = self.start(Settings { policy, ..Settings::new(WORKERS) })?;
            let mut all: Vec<_> =
                (1..10).map(|pid| self.spinner(&scheduler, &spec(pid, &format!("t{pid}"), pid, 0))).collect();
            all.extend((10..110).map(|pid| self.spinner(&scheduler, &spec(pid, "flood", pid, 0))));
            let had = self.measure(&all, self.time / 6);
            let fair = had.iter().sum::<f64>() / 10.0;
            shares.push(had[..9].iter().fold(f64::INFINITY, |least, had| least.min(100.0 * had / fair)));
        }
        let [fair, in_turn] = shares[..] else { return Ok(Vec::new()) };
        Ok(vec![Figure::at_least(BENCH, "flood_min_share_pct", fair, "%", 98.0).beside(in_turn)])
    }

    /// From a wake to the poll, in ms, of one task that a thread wakes at random; and the slice of that time, in ms.
    fn wake(&self, spinners: u64, policy: PolicyKind, wakes: usize) -> Result<(Vec<f64>, f64)> {
        let scheduler = self.start(Settings { policy, ..Settings::new(WORKERS) })?;
        let _all: Vec<_> = (2..2 + spinners).map(|pid| self.spinner(&scheduler, &TaskSpec::new(Pid(pid)))).collect();
        std::thread::sleep(WARM_UP);
        let (send, mut sent) = tokio::sync::mpsc::unbounded_channel::<Instant>();
        let (tell, told) = std::sync::mpsc::channel();
        scheduler.add(&TaskSpec::new(Pid(1)), async move {
            while let Some(sent) = sent.recv().await {
                // The bench has ended where nobody listens.
                let _ = tell.send(sent.elapsed().as_secs_f64() * 1e3);
            }
        });
        let mut rng = StdRng::seed_from_u64(SEED);
        let mut times = Vec::new();
        for _ in 0..wakes {
            std::thread::sleep(Duration::from_micros(rng.random_range(3_000..9_000)));
            send.send(Instant::now()).context("the woken one is there")?;
            times.push(told.recv().context("it is woken")?);
        }
        let slice = scheduler.load().slice_ns.into_iter().max().unwrap_or(0) as f64 / 1e6;
        Ok((times, slice))
    }

    fn wakes(&self) -> Result<Vec<Figure>> {
        let (mut alone, _) = self.wake(0, PolicyKind::Fair, WAKES / 2)?;
        let (mut among, slice) = self.wake(100, PolicyKind::Fair, WAKES)?;
        let (mut in_turn, _) = self.wake(100, PolicyKind::RoundRobin, WAKES / 10)?;
        let floor = quantile(&mut alone, 0.99);
        let p99 = quantile(&mut among, 0.99);
        // Both bounds hold: two slices, and 5 ms.
        let wanted = Figure::at_most(BENCH, "wake_p99_ms", p99, "ms", 5.0_f64.min((2.0 * slice).max(floor)));
        Ok(vec![
            Figure { limit: Some(floor), ..wanted.beside(quantile(&mut in_turn, 0.99)) },
            Figure::plain(BENCH, "wake_p50_ms", quantile(&mut among, 0.5), "ms").beside(quantile(&mut in_turn, 0.5)),
            Figure::plain(BENCH, "wake_slice_ms", slice, "ms"),
        ])
    }

    /// From a kill of a spinner that runs to the drop of its instance.
    fn kills(&self) -> Result<Vec<Figure>> {
        let scheduler = self.start(Settings::new(WORKERS))?;
        let _all: Vec<_> = (1..=20).map(|pid| self.spinner(&scheduler, &TaskSpec::new(Pid(pid)))).collect();
        std::thread::sleep(WARM_UP);
        let slice = scheduler.load().slice_ns.into_iter().max().unwrap_or(0) as f64 / 1e6;
        let (tell, told) = std::sync::mpsc::channel();
        let mut times = Vec::new();
        while times.len() < KILLS {
            let since: Arc<Mutex<Option<Instant>>> = Arc::default();
            let (guard, guest) = (Dropped(Arc::clone(&since), tell.clone()), self.guest.clone());
            let task = scheduler.add(&TaskSpec::new(Pid(100)), async move {
                let _guard = guard;
                guest.spin(INTERVAL).await;
            });
            while task.state() != TaskState::Running {
                std::thread::yield_now();
            }
            *since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            let runs = task.state() == TaskState::Running;
            self.runtime.block_on(task.kill());
            let took = told.recv().context("it is dropped")?;
            if runs {
                times.push(took);
            }
        }
        let p50 = quantile(&mut times, 0.5);
        Ok(vec![
            Figure::at_most(BENCH, "kill_p99_ms", quantile(&mut times, 0.99), "ms", slice + 1.0),
            Figure::plain(BENCH, "kill_p50_ms", p50, "ms"),
        ])
    }

    /// How long a waiter waits for one that computes so many intervals, in ms.
    fn section(&self, between: u64, lend: bool) -> Result<f64> {
        const SECTION: u64 = 600;
        let scheduler = self.start(Settings::new(WORKERS))?;
        let _between: Vec<_> =
            (10..10 + between).map(|pid| self.spinner(&scheduler, &spec(pid, "mid", pid, 0))).collect();
        scheduler.set_group_weight("low", 20);
        let (begin, gate) = tokio::sync::oneshot::channel::<()>();
        let (release, locked) = tokio::sync::oneshot::channel::<()>();
        let guest = self.guest.clone();
        let low = scheduler.add(&spec(1, "low", 1, 19), async move {
            // Without a sender the bench has ended.
            if gate.await.is_err() {
                return;
            }
            let mut release = Some(release);
            let mut spin = Box::pin(guest.spin(INTERVAL));
            let mut left = SECTION;
            std::future::poll_fn(move |cx| {
                left = left.saturating_sub(1);
                if left == 0
                    && let Some(release) = release.take()
                {
                    let _ = release.send(());
                }
                spin.as_mut().poll(cx)
            })
            .await;
        });
        let high = scheduler.add(&spec(2, "high", 2, -10), async { drop(locked.await) });
        std::thread::sleep(WARM_UP);
        let since = Instant::now();
        let loan = lend.then(|| high.lend_to(&low));
        begin.send(()).ok().context("the holder waits")?;
        self.runtime.block_on(high.done());
        drop(loan);
        Ok(since.elapsed().as_secs_f64() * 1e3)
    }

    fn inversion(&self) -> Result<Vec<Figure>> {
        let runs =
            |n: usize, between, lend| -> Result<Vec<f64>> { (0..n).map(|_| self.section(between, lend)).collect() };
        let (mut alone, mut lent, mut bare) = (runs(21, 0, false)?, runs(21, 40, true)?, runs(3, 40, false)?);
        let slice = SliceRule::default().slice_ns(20) as f64 / 1e6;
        let section = quantile(&mut alone, 0.5);
        let beyond = (quantile(&mut lent, 0.5) - section) / slice;
        Ok(vec![
            Figure::at_most(BENCH, "inversion_slices", beyond.max(0.0), "slices", 1.0)
                .beside((quantile(&mut bare, 0.5) - section) / slice),
            Figure::plain(BENCH, "inversion_worst_ms", quantile(&mut lent, 1.0), "ms").beside(section),
        ])
    }

    /// The same tasks in the simulator and for real: the greatest difference of a share.
    fn agreement(&self) -> Result<Figure> {
        let list: [(u64, &str, u64, i64); 9] = [
            (10, "a", 10, 0),
            (1, "a", 1, 0),
            (2, "a", 1, -5),
            (3, "b", 3, 0),
            (4, "b", 4, 3),
            (5, "b", 4, 0),
            (6, "c", 6, 0),
            (7, "c", 7, 0),
            (8, "c", 8, 5),
        ];
        let mut sim = Simulation::new(WORKERS);
        sim.group_weights = vec![("c".to_owned(), 2048)];
        // A tree weighs what its root's nice says, here as there.
        let task = |(_, group, tree, nice): &(u64, &str, u64, i64)| SimTask {
            nice: Nice::new(*nice).unwrap_or_default(),
            ..SimTask::new(group, *tree, Pattern::Spinner)
        };
        sim.tasks = list.iter().map(task).collect();
        let scheduler = self.start(Settings::new(WORKERS))?;
        scheduler.set_group_weight("c", 2048);
        let all: Vec<_> = list
            .iter()
            .map(|(pid, group, tree, nice)| self.spinner(&scheduler, &spec(*pid, group, *tree, *nice)))
            .collect();
        let time = self.time / 6;
        let before: Vec<u64> = {
            std::thread::sleep(WARM_UP);
            all.iter().map(|s| s.task.cpu_ns()).collect()
        };
        std::thread::sleep(time);
        let real: Vec<f64> = all.iter().zip(before).map(|(s, b)| (s.task.cpu_ns() - b) as f64).collect();
        let virt: Vec<f64> =
            sim.run(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)).into_iter().map(|u| u.cpu_ns as f64).collect();
        let share = |of: &[f64], n: usize| of[n] / of.iter().sum::<f64>();
        let worst = (0..list.len()).map(|n| (share(&real, n) / share(&virt, n) - 1.0).abs()).fold(0.0, f64::max);
        Ok(Figure::at_most(BENCH, "simulator_differs_pct", 100.0 * worst, "%", 5.0))
    }
}

/// Tells how long after the moment in it it was dropped, in ms.
struct Dropped(Arc<Mutex<Option<Instant>>>, std::sync::mpsc::Sender<f64>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let took = since.map_or(f64::NAN, |since| since.elapsed().as_secs_f64() * 1e3);
        // The bench has ended where nobody listens.
        let _ = self.1.send(took);
    }
}
