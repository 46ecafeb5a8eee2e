//! A simulation of the device in virtual time, for loads that one machine cannot hold. The queue and the
//! policies are the kernel's own; only programs, service and tool times are made up, from a seed.
//!
//! A call's service is `new prompt tokens / 8000 + output tokens / 60 + 0.05` seconds of a slot; a token is
//! four characters. Between two calls of a program its tools take `exp(N(−0.5, 1))` seconds. Programs arrive
//! as a Poisson process; their calls are those of recorded runs, and one in twenty of them is
//! [`LONG`] times as long and has another agent's name.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
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
}

/// What makes a run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Programs.
    pub programs: usize,
    /// Slots.
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

fn work(trace: &Trace) -> f64 {
    trace.iter().map(|s| s.service).sum()
}

/// A standard normal value (Box and Muller).
fn normal(rng: &mut StdRng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// The programs of a run, drawn from `traces`.
#[must_use]
pub fn jobs(traces: &[Trace], setup: Setup) -> Vec<Job> {
    let mut rng = StdRng::seed_from_u64(setup.seed);
    let mean = traces.iter().map(work).sum::<f64>() / traces.len() as f64;
    let mean = mean * (LONG_SHARE * LONG as f64 + (1.0 - LONG_SHARE));
    let rate = setup.load * setup.slots as f64 / mean;
    let mut at = 0.0;
    (0..setup.programs)
        .map(|_| {
            at -= (1.0 - rng.random::<f64>()).ln() / rate;
            let long = rng.random::<f64>() < LONG_SHARE;
            let trace = &traces[rng.random_range(0..traces.len())];
            let calls = trace.repeat(if long { LONG } else { 1 });
            let tools = calls.iter().map(|_| (normal(&mut rng) - 0.5).exp()).collect();
            Job { arrives: at, agent: if long { "researcher" } else { "clerk" }.into(), calls, tools }
        })
        .collect()
}

/// Names dealt out anew among the same jobs: what they tell is worth nothing then.
pub fn shuffle_names(jobs: &mut [Job], seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    for at in (1..jobs.len()).rev() {
        let other = rng.random_range(0..=at);
        let (a, b) = (Arc::clone(&jobs[at].agent), Arc::clone(&jobs[other].agent));
        (jobs[at].agent, jobs[other].agent) = (b, a);
    }
}

/// Knows what each program has yet to do: the bound of what a prediction can reach.
#[derive(Debug)]
pub struct Oracle(Vec<Vec<f64>>);

impl Oracle {
    /// Knows these jobs.
    #[must_use]
    pub fn new(jobs: &[Job]) -> Self {
        let left = |job: &Job| {
            let mut left: Vec<f64> = job.calls.iter().rev().scan(0.0, |sum, s| Some({ *sum += s.service; *sum })).collect();
            left.reverse();
            left
        };
        Self(jobs.iter().map(left).collect())
    }
}

impl Policy for Oracle {
    fn rank(&self, _: &Call, program: &Program) -> Rank {
        let left = &self.0[program.id as usize];
        Rank::fixed(left[program.course.len()])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The program's next call is made.
    Asks(usize),
    /// The call ends.
    Ends(u64, usize),
}

/// Seconds that order as numbers do.
#[derive(Clone, Copy, Debug, PartialEq)]
struct At(f64);

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Runs the jobs to the end; what each took from its arrival on, in seconds.
#[must_use]
pub fn run(jobs: &[Job], slots: usize, policy: Box<dyn Policy>) -> Vec<f64> {
    let mut queue = Queue::new(slots, policy, Limits::default());
    let standing = Standing::default();
    let mut events: BinaryHeap<Reverse<(At, Event)>> =
        jobs.iter().enumerate().map(|(n, job)| Reverse((At(job.arrives), Event::Asks(n)))).collect();
    let mut done = vec![0; jobs.len()];
    let mut took = vec![0.0; jobs.len()];
    let mut asked = std::collections::HashMap::new();
    while let Some(Reverse((At(now), event))) = events.pop() {
        match event {
            Event::Asks(n) => {
                let ticket = Ticket {
                    pid: n as u64,
                    program: n as u64,
                    agent: Arc::clone(&jobs[n].agent),
                    standing: standing.clone(),
                    prompt_tokens: jobs[n].calls[done[n]].prompt_tokens,
                };
                asked.insert(queue.push(ticket, now), n);
            }
            Event::Ends(id, n) => {
                queue.release(id, now, true);
                done[n] += 1;
                if done[n] == jobs[n].calls.len() {
                    took[n] = now - jobs[n].arrives;
                    queue.finished(n as u64);
                } else {
                    events.push(Reverse((At(now + jobs[n].tools[done[n] - 1]), Event::Asks(n))));
                }
            }
        }
        while let Next::Grant(id) = queue.next(now) {
            if let Some(n) = asked.remove(&id) {
                events.push(Reverse((At(now + jobs[n].calls[done[n]].service), Event::Ends(id, n))));
            }
        }
    }
    took
}
