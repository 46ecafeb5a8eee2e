//! A simulation of the device in virtual time, for loads that one machine cannot hold. The queue and the
//! policies are the kernel's own; programs, service and tool times are made up, from a seed.
//!
//! A call's service is `new prompt tokens / 8000 + output tokens / 60 + 0.05` seconds of a slot; a token is
//! four characters. After a call the program's tools take `exp(N(−0.5, 1))` seconds. Programs arrive as a
//! Poisson process; their calls are those of recorded runs, and one program in twenty makes [`LONG`] times
//! as many and has another agent's name.
//!
//! The same jobs and the same seed give the same numbers, whatever the machine.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Deserialize;

use super::minute::Limits;
use super::policy::{Call, Policy, Program, Rank};
use super::queue::{Next, Queue, Standing, Ticket};

/// How much longer the long programs are.
pub const LONG: usize = 6;

/// The share of programs that are long.
pub const LONG_SHARE: f64 = 0.05;

/// One call of a recorded run.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Seconds of a slot.
    pub service: f64,
    /// Tokens of the whole prompt.
    pub prompt_tokens: u32,
}

/// The calls of one recorded run.
pub type Trace = Vec<Step>;

#[derive(Deserialize)]
struct Line {
    task_id: usize,
    messages: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Asked>>,
}

#[derive(Deserialize)]
struct Asked {
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    arguments: String,
}

/// The recorded runs of a file of JSON lines with `task_id` and `messages`, by task.
///
/// # Errors
/// The first line that is not such a run.
pub fn traces(jsonl: &str) -> Result<Vec<(usize, Trace)>, serde_json::Error> {
    let lines = jsonl.lines().filter(|l| !l.trim().is_empty());
    lines.map(|line| serde_json::from_str::<Line>(line).map(|run| (run.task_id, trace(&run.messages)))).collect()
}

fn trace(messages: &[Said]) -> Trace {
    let (mut all, mut new, mut steps) = (0.0, 0.0, Vec::new());
    for said in messages {
        let called = said.tool_calls.iter().flatten().map(|c| c.function.name.len() + c.function.arguments.len());
        let text = said.content.as_ref().map_or(0, |text| text.chars().count());
        let tokens = (text + called.sum::<usize>()) as f64 / 4.0;
        if said.role == "assistant" {
            steps.push(Step { service: new / 8000.0 + tokens / 60.0 + 0.05, prompt_tokens: all as u32 });
            new = 0.0;
        } else {
            new += tokens;
        }
        all += tokens;
    }
    steps
}

/// A program of the simulation.
#[derive(Clone, Debug)]
pub struct Job {
    /// When it comes, in seconds.
    pub arrives: f64,
    /// Its agent.
    pub agent: Arc<str>,
    /// Its calls.
    pub calls: Trace,
    /// What its tools take after each call, in seconds.
    pub tools: Vec<f64>,
    /// Its group and nice value.
    pub standing: Standing,
}

/// What makes a set of jobs.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// How many.
    pub programs: usize,
    /// Slots that they are for.
    pub slots: usize,
    /// Work that comes over work that the slots can do.
    pub load: f64,
    /// Of everything random.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self { programs: 2000, slots: 4, load: 0.95, seed: 1 }
    }
}

/// A value of the standard normal distribution (Box and Muller).
fn normal(rng: &mut StdRng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Jobs drawn from `traces`, in the order of their arrival; none when there are no traces.
#[must_use]
pub fn jobs(traces: &[Trace], setup: Setup) -> Vec<Job> {
    if traces.is_empty() {
        return Vec::new();
    }
    let mut rng = StdRng::seed_from_u64(setup.seed);
    let work = traces.iter().flatten().map(|step| step.service).sum::<f64>() / traces.len() as f64;
    let work = work * (LONG_SHARE * LONG as f64 + (1.0 - LONG_SHARE));
    let rate = setup.load * setup.slots as f64 / work;
    let mut arrives = 0.0;
    let mut job = |_| {
        arrives -= (1.0 - rng.random::<f64>()).ln() / rate;
        let long = rng.random::<f64>() < LONG_SHARE;
        let calls = traces[rng.random_range(0..traces.len())].repeat(if long { LONG } else { 1 });
        let tools = calls.iter().map(|_| (normal(&mut rng) - 0.5).exp()).collect();
        let agent = if long { "researcher" } else { "clerk" }.into();
        Job { arrives, agent, calls, tools, standing: Standing::default() }
    };
    (0..setup.programs).map(&mut job).collect()
}

/// Deals the names out anew among the jobs: what they tell is worth nothing then.
pub fn shuffle_names(jobs: &mut [Job], seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    for at in (1..jobs.len()).rev() {
        let other = rng.random_range(0..=at);
        let agent = Arc::clone(&jobs[at].agent);
        jobs[at].agent = std::mem::replace(&mut jobs[other].agent, agent);
    }
}

/// Has a policy learn from jobs as if they had run, each having waited `waited` seconds.
pub fn teach(policy: &mut dyn Policy, jobs: &[Job], waited: f64) {
    for (id, job) in (0..).zip(jobs) {
        let mut served = 0.0;
        let mut after = |step: &Step| {
            served += step.service;
            served as f32
        };
        let course: Vec<f32> = job.calls.iter().map(&mut after).collect();
        let turns = u32::try_from(course.len()).unwrap_or(u32::MAX);
        let agent = Arc::clone(&job.agent);
        policy.finished(&Program { id, agent, arrived: job.arrives, served, waited, turns, course });
    }
}

/// The policy that knows what each program has yet to do, and does the least first: what an expectation of
/// the work that is left can reach in the mean.
#[derive(Debug)]
pub struct Oracle(Vec<Vec<f64>>);

impl Oracle {
    /// One that knows `jobs`, which [`run`] is given too.
    #[must_use]
    pub fn new(jobs: &[Job]) -> Self {
        let left = |job: &Job| {
            let total: f64 = job.calls.iter().map(|step| step.service).sum();
            let less = |left: &mut f64, step: &Step| Some(std::mem::replace(left, *left - step.service));
            job.calls.iter().scan(total, less).collect()
        };
        Self(jobs.iter().map(left).collect())
    }
}

impl Policy for Oracle {
    fn rank(&self, _: &Call, program: &Program) -> Rank {
        let job = usize::try_from(program.id).ok().and_then(|id| self.0.get(id));
        Rank::fixed(job.and_then(|left| left.get(program.course.len())).copied().unwrap_or_default())
    }
}

/// What happens to a job, at a time in seconds. The order is that of time, then of the variants.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Event {
    at: f64,
    job: usize,
    /// The call that ends; none when the next one is made.
    ends: Option<u64>,
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then((self.job, self.ends).cmp(&(other.job, other.ends)))
    }
}

/// How a job went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Went {
    /// Seconds from its arrival to the end of its last call; none when the run ended before.
    pub took: Option<f64>,
    /// Slot seconds of its calls that ended.
    pub served: f64,
    calls: usize,
}

/// Runs jobs on a device with so many slots until all are done or it is `until`, in seconds. Job `n` is
/// program `n`.
#[must_use]
pub fn run(jobs: &[Job], slots: usize, policy: Box<dyn Policy>, until: f64) -> Vec<Went> {
    let mut queue = Queue::new(slots, policy, Limits::default());
    let arrival = |(job, j): (usize, &Job)| Reverse(Event { at: j.arrives, job, ends: None });
    let mut events: BinaryHeap<_> = jobs.iter().enumerate().map(arrival).collect();
    let mut went = vec![Went::default(); jobs.len()];
    let mut waiting = HashMap::new();
    while let Some(Reverse(Event { at: now, job, ends })) = events.pop().filter(|e| e.0.at <= until) {
        let (this, so_far) = (&jobs[job], &mut went[job]);
        match ends {
            None => {
                let Some(step) = this.calls.get(so_far.calls) else { continue };
                let ticket = Ticket {
                    pid: job as u64,
                    program: job as u64,
                    agent: Arc::clone(&this.agent),
                    standing: this.standing.clone(),
                    prompt_tokens: step.prompt_tokens,
                };
                waiting.insert(queue.push(ticket, now, now), job);
            }
            Some(call) => {
                queue.release(call, now, true);
                so_far.served += this.calls[so_far.calls].service;
                so_far.calls += 1;
                if so_far.calls == this.calls.len() {
                    so_far.took = Some(now - this.arrives);
                    queue.finished(job as u64);
                } else {
                    events.push(Reverse(Event { at: now + this.tools[so_far.calls - 1], job, ends: None }));
                }
            }
        }
        while let Next::Grant(call) = queue.next(now) {
            if let Some(job) = waiting.remove(&call) {
                let service = jobs[job].calls[went[job].calls].service;
                events.push(Reverse(Event { at: now + service, job, ends: Some(call) }));
            }
        }
    }
    went
}

/// The mean and the 99th percentile of what the jobs took that are done, in seconds.
#[must_use]
pub fn mean_and_p99(went: &[Went]) -> (f64, f64) {
    let mut took: Vec<f64> = went.iter().filter_map(|w| w.took).collect();
    took.sort_by(f64::total_cmp);
    let mean = took.iter().sum::<f64>() / took.len().max(1) as f64;
    (mean, took.get(took.len() * 99 / 100).copied().unwrap_or(f64::NAN))
}

/// Jobs of ten tenants who all have more to do than their share of the slots: each of `group-0` … `group-8`
/// keeps twice the slots busy, `group-9` a hundred times as much. Their tools take no time.
#[must_use]
pub fn flood(traces: &[Trace], slots: usize, seed: u64) -> Vec<Job> {
    let each = slots * 2;
    let mut all = jobs(traces, Setup { programs: each * 109, slots, load: 1.0, seed });
    for (n, job) in all.iter_mut().enumerate() {
        let group = (n / each).min(9);
        job.standing.group = format!("group-{group}").into();
        job.arrives = 0.0;
        job.calls = job.calls.repeat(200);
        job.tools = vec![0.0; job.calls.len()];
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::expected::Expected;
    use super::super::policy::by_name;
    use super::*;

    /// Runs as short as a test wants them: 2 to 20 calls of about a second.
    fn made_up(seed: u64) -> Vec<Trace> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut step = |_| Step { service: 0.2 + 1.6 * rng.random::<f64>(), prompt_tokens: 1000 };
        (2..=20).map(|calls| (0..calls).map(&mut step).collect()).collect()
    }

    fn policies(name: &str, jobs: &[Job]) -> Box<dyn Policy> {
        by_name(name).unwrap_or_else(|| Box::new(Oracle::new(jobs)))
    }

    #[test]
    fn recorded_runs_are_read_and_broken_ones_are_told() {
        let line = r#"{"task_id":4,"messages":[{"role":"system","content":"12345678"},{"role":"user","content":"1234"},
            {"role":"assistant","content":null,"tool_calls":[{"function":{"name":"find","arguments":"{\"a\":1}!"}}]},
            {"role":"tool","content":"1234"},{"role":"assistant","content":"12345678"}]}"#;
        let all = traces(&line.replace('\n', "")).unwrap();
        let [(4, steps)] = all.as_slice() else { panic!("{all:?}") };
        let service: Vec<f64> = steps.iter().map(|s| s.service).collect();
        assert_eq!(service, [3.0 / 8000.0 + 3.0 / 60.0 + 0.05, 1.0 / 8000.0 + 2.0 / 60.0 + 0.05]);
        assert_eq!(steps.iter().map(|s| s.prompt_tokens).collect::<Vec<_>>(), [3, 7]);
        assert!(traces("{\"task_id\":1}").is_err());
        assert!(jobs(&[], Setup::default()).is_empty());
    }

    #[test]
    fn a_run_is_the_same_again_and_no_policy_loses_work() {
        let jobs = jobs(&made_up(1), Setup { programs: 300, ..Setup::default() });
        let work: f64 = jobs.iter().flat_map(|j| &j.calls).map(|s| s.service).sum();
        for name in super::super::policy::NAMES.iter().chain(&["oracle"]) {
            let once = run(&jobs, 4, policies(name, &jobs), f64::INFINITY);
            assert_eq!(once, run(&jobs, 4, policies(name, &jobs), f64::INFINITY), "{name}");
            assert!(once.iter().all(|w| w.took.is_some()), "{name}");
            assert!((once.iter().map(|w| w.served).sum::<f64>() - work).abs() < 1e-6, "{name}");
        }
    }

    /// Mean ratios over a few seeds, which are printed.
    fn over(base: &str, seeds: std::ops::Range<u64>, ours: impl Fn(&mut Vec<Job>) -> Box<dyn Policy>) -> (f64, f64) {
        let n = (seeds.end - seeds.start) as f64;
        let mut sums = (0.0, 0.0);
        for seed in seeds.clone() {
            let mut set = jobs(&made_up(seed), Setup { programs: 1000, seed, ..Setup::default() });
            let (mean, p99) = mean_and_p99(&run(&set, 4, policies(base, &set), f64::INFINITY));
            let policy = ours(&mut set);
            let (our_mean, our_p99) = mean_and_p99(&run(&set, 4, policy, f64::INFINITY));
            sums = (sums.0 + our_mean / mean / n, sums.1 + our_p99 / p99 / n);
        }
        println!("seeds {seeds:?} over {base}: mean {:.3}, p99 {:.3}", sums.0, sums.1);
        sums
    }

    #[test]
    fn the_default_beats_fifo_in_the_mean_and_keeps_its_tail() {
        let (mean, p99) = over("fifo", 1..9, |_| Box::new(Expected::default()));
        assert!(mean < 0.85 && p99 < 1.05, "{mean} {p99}");
        let (best, _) = over("fifo", 1..9, |jobs| Box::new(Oracle::new(jobs)));
        assert!(best < mean, "nobody beats the one who knows: {best} {mean}");
    }

    #[test]
    fn names_that_are_wrong_leave_it_no_worse_than_attained_service() {
        let (mean, p99) = over("attained-service", 1..9, |jobs| {
            shuffle_names(jobs, 7);
            Box::new(Expected::default())
        });
        assert!(mean < 1.02 && p99 < 1.0, "{mean} {p99}");
    }

    #[test]
    fn a_tenant_that_floods_leaves_the_others_their_share() {
        let until = 2000.0;
        let jobs = flood(&made_up(3), 4, 3);
        for name in super::super::policy::NAMES {
            let mut served = [0.0; 10];
            for (job, went) in jobs.iter().zip(run(&jobs, 4, policies(name, &jobs), until)) {
                let group: usize = job.standing.group.trim_start_matches("group-").parse().unwrap();
                served[group] += went.served;
            }
            let fair = until * 4.0 / 10.0;
            let least = served.iter().copied().fold(f64::INFINITY, f64::min) / fair;
            assert!(least >= 0.98, "{name}: {served:?} of {fair}");
        }
    }
}
