//! `doctor --prove-limits`: a hostile guest for each limit, run here and now under a small value of it
//! and ample values of the others, in the sandbox that tools run in. The guest is `plugins/proof.wat`.

use std::time::Instant;

use super::info::Proof;
use super::{Error, Kernel};
use crate::abi::Effect;
use crate::capability::{Needs, Rights};
use crate::engine::{Engine, Image, STACK};
use crate::plugin;
use crate::process::Pid;
use crate::quota::{Limits, MIB};
use crate::storage::{Durability, Store};
use crate::tool::{Client, Entry, Kept, Report, Source, ToolExecutor};

/// So much of everything that the limit on trial is met first; a guest that passes it still ends.
const AMPLE: Limits = Limits {
    fuel: 1_000_000_000_000_000,
    memory: 256 * MIB,
    tables: 20_000,
    instances: 64,
    wall_ms: 20_000,
    output: 16 * MIB,
    log: 64 * MIB,
    host_calls: 100_000_000,
    host_call_bytes: 32 * MIB,
};

/// How much later than declared a busy machine may stop a guest by its wall time, in milliseconds.
const LATE: u64 = 2_000;

/// The length of a line that the guest logs where it logs to fill the log, with what a line costs beside.
const LINE: u64 = 100 + crate::tool::LOG_LINE_OVERHEAD;

/// Table elements that the guest takes between two lines.
const ELEMENTS: u64 = 100;

/// A limit on trial.
struct Trial {
    limit: &'static str,
    unit: &'static str,
    declared: u64,
    limits: Limits,
}

fn trials() -> [Trial; 9] {
    let trial = |limit, unit, declared, limits| Trial { limit, unit, declared, limits };
    [
        trial("fuel", "fuel", 200_000_000, Limits { fuel: 200_000_000, ..AMPLE }),
        trial("wall", "ms", 300, Limits { wall_ms: 300, ..AMPLE }),
        trial("memory", "bytes", 32 * MIB, Limits { memory: 32 * MIB, ..AMPLE }),
        trial("tables", "elements", 5_000, Limits { tables: 5_000, ..AMPLE }),
        // A component of one module has two more instances that join it to its imports.
        trial("instances", "instances", 2, Limits { instances: 2, ..AMPLE }),
        trial("stack", "bytes", STACK, AMPLE),
        trial("output", "bytes", MIB, Limits { output: MIB, ..AMPLE }),
        trial("log", "bytes", 10_000, Limits { log: 10_000, ..AMPLE }),
        trial("host-calls", "calls", 500, Limits { host_calls: 500, ..AMPLE }),
    ]
}

/// How a guest ended.
struct End {
    stopped_by: Option<String>,
    observed: Option<u64>,
    message: String,
}

impl Kernel {
    /// Runs a hostile guest for each limit and tells what stopped it. Needs no data directory and
    /// touches none.
    ///
    /// # Errors
    /// [`Error::Engine`] where no guest can be run at all.
    pub async fn prove_limits() -> Result<Vec<Proof>, Error> {
        // Building the engine takes some milliseconds of a thread.
        let opened = tokio::task::spawn_blocking(|| Engine::open(None, false)).await;
        let engine = opened.map_err(|e| Error::Engine(e.to_string()))?.map_err(Error::Engine)?;
        let executor = ToolExecutor::new(Store::open("memory:", Durability::Process).await?);
        let mut proofs = Vec::new();
        for trial in trials() {
            let end = run(&engine, &executor, &trial).await?;
            proofs.push(judge(&trial, end));
        }
        Ok(proofs)
    }
}

fn judge(trial: &Trial, end: End) -> Proof {
    let late = if trial.limit == "wall" { LATE } else { 0 };
    let within = end.observed.is_none_or(|o| o <= trial.declared + late);
    Proof {
        limit: trial.limit.to_owned(),
        held: within && end.stopped_by.as_deref() == Some(trial.limit),
        declared: trial.declared,
        observed: end.observed,
        unit: trial.unit.to_owned(),
        stopped_by: end.stopped_by,
        message: end.message,
    }
}

async fn run(engine: &Engine, executor: &ToolExecutor, trial: &Trial) -> Result<End, Error> {
    let guest = plugin::proof();
    let (image, spec) = match engine.load(guest.digest, guest.component, &|_| Ok(trial.limits)).await {
        Ok(Image::Tools(image, mut specs, _)) if specs.len() == 1 => (image, specs.remove(0)),
        Ok(_) => return Err(Error::Engine("the guest that proves the limits is not what it was".to_owned())),
        // It has too many instances to be started even once.
        Err(refusal) if trial.limit == "instances" && refusal.message.contains("instances") => {
            return Ok(End { stopped_by: Some("instances".to_owned()), observed: Some(0), message: refusal.message });
        }
        Err(refusal) => return Err(Error::Engine(refusal.message)),
    };
    let validator = jsonschema::validator_for(&spec.input_schema).map_err(|e| Error::Engine(e.to_string()))?;
    let tool = Entry {
        plugin: guest.name.to_owned(),
        // The guest misbehaves by the name that it is called by.
        tool: trial.limit.to_owned(),
        spec: crate::abi::ToolSpec { name: trial.limit.to_owned(), effect: Effect::Pure, ..spec },
        source: Source::Bundled,
        needs: Needs::default(),
        asked: std::sync::Arc::default(),
        limits: trial.limits,
        stateful: false,
        validator,
        code: image,
    };
    let began = Instant::now();
    let client = Client {
        pid: Pid::KERNEL,
        idempotency_key: "proof".to_owned(),
        rights: Rights::default(),
        area: None,
        fuel: trial.limits.fuel,
        kept: &Kept::default(),
    };
    let report = executor.run(&tool, "{}".to_owned(), client).await;
    let wall_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(ended(trial.limit, report, wall_ms))
}

/// What a report says of a guest: what it got is counted by what it left behind.
fn ended(limit: &str, report: Report, wall_ms: u64) -> End {
    let lines = report.session.lines.len() as u64;
    let observed = match limit {
        "fuel" => Some(report.fuel),
        "wall" => Some(wall_ms),
        "memory" => Some(report.memory_bytes),
        "tables" => Some(lines * ELEMENTS),
        "output" => Some(report.result.as_ref().map_or(0, |text| text.len() as u64)),
        "log" => Some(lines * LINE),
        "host-calls" => Some(lines),
        _ => None,
    };
    match report.result {
        Ok(_) => End { stopped_by: None, observed, message: "nothing stopped it".to_owned() },
        Err(e) => End { stopped_by: e.limit, observed, message: e.message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_only_if_it_is_the_one_that_stopped_the_guest_and_in_time() {
        let trial = Trial { limit: "memory", unit: "bytes", declared: 10, limits: AMPLE };
        let held = |by: Option<&str>, observed| {
            let end = End { stopped_by: by.map(str::to_owned), observed, message: String::new() };
            judge(&trial, end).held
        };
        assert!(held(Some("memory"), Some(10)) && held(Some("memory"), None));
        assert!(!held(Some("memory"), Some(11)) && !held(Some("fuel"), Some(1)) && !held(None, Some(1)));
        let wall = Trial { limit: "wall", unit: "ms", declared: 10, limits: AMPLE };
        let end = |ms| End { stopped_by: Some("wall".into()), observed: Some(ms), message: String::new() };
        assert!(judge(&wall, end(10 + LATE)).held && !judge(&wall, end(11 + LATE)).held);
    }
}
