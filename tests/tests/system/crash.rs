//! `kill -9` at random moments, and at chosen ones: a scripted run ends as if nobody had killed it, or says what it does not know.
//!
//! Real processes all the way: `aok`, its SQLite file, and the model server, which outlives the kills and counts.
//! The first run of a scenario compiles, the second is the undisturbed one that the others are measured against.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::support::{ModelServer, World};

/// Replies of the model in one run, the answer included.
const STEPS: u64 = 30;

/// How long the model takes, so that some kills hit a request that is under way.
const DELAY_MS: u64 = 5;

/// Far more than the run needs: nothing is swapped out here.
const WINDOW: u32 = 128_000;

const SIGKILL: i32 = 9;

/// Kills of each scenario with constrained calls.
const KILLS: usize = 200;

/// Kills of the scenario with native calls, half in mid-stream and half in mid-tool.
const NATIVE_KILLS: usize = 100;

/// The native model's pace: milliseconds between the pieces of a reply, so that a kill finds it in one.
const PACE_MS: u64 = 2;

/// Of the events that mark a moment, so many pass at most before the kill.
const PASSING: usize = 8;

/// A run that is killed again and again: the world it is in, and what it looks like undisturbed.
struct Scenario {
    world: World,
    script: Vec<Value>,
    /// Whether the model calls tools by itself; then it is killed in mid-stream and in mid-tool.
    native: bool,
    kills: usize,
    rng: StdRng,
    /// How long an undisturbed run takes.
    expected: Duration,
    /// Kills still to be done.
    left: usize,
    last_pid: u64,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    runs: usize,
    kills: usize,
    /// Kills at a piece of the model's text.
    streams: usize,
    /// Kills at the start of a tool call.
    tools: usize,
    /// Kills before the process was in the store.
    unborn: usize,
    /// Kills after the exit was in the store.
    late: usize,
    repeated_requests: usize,
    interrupted: usize,
    /// Interrupted calls that had not happened.
    lost: usize,
}

/// One `aok` from its start to its end, or to its killing.
struct Life {
    killed: bool,
    events: Vec<Value>,
    code: Option<i32>,
    stderr: String,
}

/// One process over all of its lives.
struct Run {
    pid: u64,
    kills: usize,
    exit: Value,
    /// Everything that was said, life after life.
    events: Vec<Value>,
    /// Requests that the server had at a kill, and the turn whose reply was surely durable by then.
    settled: Vec<(usize, u64)>,
    server: ModelServer,
}

impl Scenario {
    fn new(script: Vec<Value>) -> Self {
        Self::with(script, false, KILLS)
    }

    #[allow(clippy::print_stderr, reason = "a seed is no use unless it is printed")]
    fn with(script: Vec<Value>, native: bool, kills: usize) -> Self {
        let seed = std::env::var("AOK_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
        eprintln!("seed {seed} (set AOK_SEED to repeat it)");
        Self {
            world: World::new(),
            script,
            native,
            kills,
            rng: StdRng::seed_from_u64(seed),
            expected: Duration::ZERO,
            left: 0,
            last_pid: 0,
            tally: Tally::default(),
        }
    }

    /// Two runs without a kill; the second one is measured. The kills are drawn from then on.
    fn undisturbed(&mut self) -> Run {
        self.run();
        let began = Instant::now();
        let run = self.run();
        self.expected = began.elapsed();
        assert_eq!(run.server.requests().len() as u64, STEPS);
        self.left = self.kills;
        self.tally = Tally::default();
        run
    }

    /// Runs the script once, killed at random moments while there are kills left.
    fn run(&mut self) -> Run {
        let model = self.world.script(&self.script);
        let pace = PACE_MS.to_string();
        let options: &[&str] = if self.native { &["--native", "--pace-ms", &pace] } else { &[] };
        let server = ModelServer::start_with(Path::new(model.trim_start_matches("script/")), options);
        self.world.configure(&server.config(WINDOW));
        for entry in fs::read_dir(self.world.work()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        self.tally.runs += 1;
        let mut run = Run { pid: 0, kills: 0, exit: Value::Null, events: Vec::new(), settled: Vec::new(), server };
        loop {
            let life = self.life(run.pid);
            run.pid = life.pid().unwrap_or(run.pid);
            let has_exit = life.events.last().is_some_and(|e| e["type"] == "exit");
            if life.killed {
                self.left -= 1;
                self.tally.kills += 1;
                self.tally.late += usize::from(has_exit);
                run.kills += 1;
                run.settled.extend(life.settled_turn().map(|turn| (run.server.requests().len(), turn)));
                run.pid = self.spawned_or(run.pid);
            } else if has_exit {
                assert_eq!(life.code, Some(0), "{:?}\n{}", life.events.last(), life.stderr);
            } else {
                // The kill came between the durable exit and its event.
                self.tally.late += 1;
                assert!(life.stderr.contains("has ended"), "{:?}\n{}", life.events, life.stderr);
            }
            let over = !life.killed || has_exit;
            run.events.extend(life.events);
            if over {
                break;
            }
        }
        run.exit = self.exit_of(run.pid);
        self.last_pid = run.pid;
        run
    }

    /// The process that a killed `aok` may have put into the store without having said so.
    fn spawned_or(&mut self, known: u64) -> u64 {
        if known != 0 {
            return known;
        }
        let all = self.world.run(&["--json", "ps"]).exits(0).lines();
        let newest = all.iter().filter_map(|p| p["pid"].as_u64()).max().unwrap_or(0);
        if newest > self.last_pid {
            return newest;
        }
        self.tally.unborn += 1;
        0
    }

    fn life(&mut self, pid: u64) -> Life {
        let (work, pid_text) = (format!("{}:rw", self.world.work().display()), pid.to_string());
        let mut args = vec!["--json", "run"];
        if pid == 0 {
            args.extend(["--task", "Do what the script says.", "--model", "fake/m", "--dir", &work, "--direct"]);
        } else {
            args.extend(["--resume", &pid_text]);
        }
        let stderr = self.world.dir.path().join("stderr");
        let mut command = self.world.aok(&args);
        command.stdout(Stdio::piped()).stderr(fs::File::create(&stderr).unwrap());
        let mut child = command.spawn().expect("aok can be started");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let moment = self.moment();
        let mut passing = moment.passing();
        let (send, come) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut from = 0;
            while stdout.read_until(b'\n', &mut bytes).expect("a pipe can be read") > 0 {
                if moment.is_marked_by(&bytes[from..]) {
                    passing = passing.saturating_sub(1);
                    if passing == 0 {
                        // The other side may have stopped waiting, here and below.
                        let _ = send.send(true);
                    }
                }
                from = bytes.len();
            }
            let _ = send.send(false);
            bytes
        });
        let kill = match moment {
            Moment::None => false,
            Moment::After(time) => come.recv_timeout(time).is_err(),
            Moment::Text(_) | Moment::Tool(_) => come.recv().expect("the reader says how it ended"),
        };
        if kill {
            child.kill().expect("it has not been waited for");
        }
        let status = child.wait().unwrap();
        let bytes = reader.join().unwrap();
        if status.signal() == Some(SIGKILL) {
            self.tally.streams += usize::from(matches!(moment, Moment::Text(_)));
            self.tally.tools += usize::from(matches!(moment, Moment::Tool(_)));
        }
        // A killed process may have got half a line out.
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        let text = std::str::from_utf8(&bytes[..whole]).expect("aok prints UTF-8");
        Life {
            killed: status.signal() == Some(SIGKILL),
            code: status.code(),
            events: text.lines().map(|l| serde_json::from_str(l).expect("each line is JSON")).collect(),
            stderr: fs::read_to_string(&stderr).unwrap(),
        }
    }

    /// When the next life is killed.
    fn moment(&mut self) -> Moment {
        match self.left {
            0 => Moment::None,
            _ if !self.native => Moment::After(self.expected.mul_f64(self.rng.random::<f64>())),
            left if left % 2 == 0 => Moment::Text(self.rng.random_range(1..=PASSING * 4)),
            _ => Moment::Tool(self.rng.random_range(1..=PASSING)),
        }
    }

    fn exit_of(&self, pid: u64) -> Value {
        let all = self.world.run(&["--json", "ps"]).exits(0).lines();
        let row = all.iter().find(|p| p["pid"] == pid).unwrap_or_else(|| panic!("no process {pid} in {all:?}"));
        assert_eq!(row["state"], "Z", "{row}");
        row["exit"].clone()
    }

    /// Decisions about a process's calls of one kind, in their order.
    fn decisions(&self, pid: u64, event: &str) -> Vec<String> {
        let tail = self.world.run(&["--json", "audit", "tail", &pid.to_string(), "-n", "10000"]).exits(0).lines();
        let of_kind = tail.iter().filter(|r| r["event"] == event);
        of_kind.map(|r| r["decision"].as_str().expect("a decision is text").to_owned()).collect()
    }

    #[allow(clippy::print_stderr, reason = "how many kills hit what is the figure of this test")]
    fn finish(&self) {
        let verdict = self.world.run(&["--json", "audit", "verify"]).exits(0).lines();
        assert_eq!(verdict[0]["ok"], true, "{verdict:?}");
        let all = self.world.run(&["--json", "ps"]).exits(0).lines();
        assert!(all.iter().all(|p| p["exit"]["status"] == "success"), "{all:?}");
        eprintln!("an undisturbed run took {:?}; {:?}", self.expected, self.tally);
        assert_eq!(self.tally.kills, self.kills);
    }

    /// The model was asked each thing once, but for a request whose outcome a kill made the kernel lose.
    fn check_requests(&mut self, run: &Run) {
        let requests = run.server.requests();
        let indices: Vec<u64> = requests.iter().map(|r| r.index).collect();
        let steps_on = |pair: &[u64]| pair[1] == pair[0] || pair[1] == pair[0] + 1;
        assert_eq!((indices.first(), indices.last()), (Some(&1), Some(&STEPS)), "{indices:?}");
        // Whoever has asked the next thing has the reply to the one before in the journal.
        assert!(indices.windows(2).all(steps_on), "asked again after the next request: {indices:?}");
        let repeats = indices.len() - usize::try_from(STEPS).unwrap();
        assert!(repeats <= run.kills, "{repeats} repeats by {} kills: {indices:?}", run.kills);
        for (count, turn) in &run.settled {
            let again = indices[*count..].iter().find(|index| *index <= turn);
            assert_eq!(again, None, "turn {turn} had called a tool when its kernel was killed: {indices:?}");
        }
        let mut bodies: BTreeMap<u64, &str> = BTreeMap::new();
        for request in &requests {
            let first = bodies.entry(request.index).or_insert(&request.body_hash);
            assert_eq!(*first, request.body_hash, "request {} was not the same when repeated", request.index);
        }
        let last = requests.last().expect("there is one");
        assert!(last.completed, "the answer was never sent");
        assert_eq!(self.decisions(run.pid, "generate"), vec!["allow"; usize::try_from(STEPS).unwrap()]);
        self.tally.repeated_requests += repeats;
    }
}

/// A moment for a kill.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Never.
    None,
    /// After a time.
    After(Duration),
    /// At the so-manieth piece of text: in mid-stream.
    Text(usize),
    /// At the so-manieth start of a tool: in mid-tool.
    Tool(usize),
}

impl Moment {
    fn passing(self) -> usize {
        match self {
            Self::None | Self::After(_) => 0,
            Self::Text(n) | Self::Tool(n) => n,
        }
    }

    fn is_marked_by(self, line: &[u8]) -> bool {
        let has = |text: &str| line.windows(text.len()).any(|w| w == text.as_bytes());
        match self {
            Self::None | Self::After(_) => false,
            Self::Text(_) => has(r#""type":"text""#),
            Self::Tool(_) => has(r#""type":"tool_start""#),
        }
    }
}

impl Life {
    fn pid(&self) -> Option<u64> {
        self.events.first().and_then(|e| e["pid"].as_u64())
    }

    /// The last turn of which a tool with effects was seen to start: before that, all of the past is durable.
    fn settled_turn(&self) -> Option<u64> {
        let starts = self.events.iter().filter(|e| e["type"] == "tool_start");
        let outward = starts.filter(|e| matches!(e["name"].as_str(), Some("fs__write" | "fs__append")));
        outward.filter_map(|e| turn_of(e["id"].as_str()?)).max()
    }
}

/// The kernel's ids of a constrained reply's calls are `call_TURN` and `call_TURN_N`, the script's own are a
/// letter and the turn.
fn turn_of(call_id: &str) -> Option<u64> {
    call_id.split('_').nth(1).or(call_id.get(1..))?.parse().ok()
}

fn call(id: String, name: &str, arguments: Value) -> Value {
    json!({ "id": id, "name": name, "arguments": arguments })
}

fn files(dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read_to_string(e.path()).unwrap())).collect()
}

/// Writes, reads and computes; later steps use what earlier ones gave.
fn idempotent_script() -> Vec<Value> {
    let mut lines = Vec::new();
    let mut expect = "Do what the script says.".to_owned();
    for k in 1..STEPS {
        let file = |k: u64| format!("work/f{k:02}.txt");
        let (product, quotient) = (k * 7, k * 2);
        let eval = |id: String| call(id, "calc__eval", json!({ "expression": format!("{k}*7") }));
        let (calls, next) = match k % 3 {
            1 => {
                let earlier = if k > 1 { format!(" after {{{{c{}.value}}}}", k - 1) } else { String::new() };
                let content = format!("step {k}{earlier}\n");
                (vec![call(format!("w{k}"), "fs__write", json!({ "path": file(k), "content": content }))], file(k))
            }
            2 => (
                vec![call(format!("r{k}"), "fs__read", json!({ "path": file(k - 1) })), eval(format!("c{k}"))],
                format!("{{\"value\":{product}}}"),
            ),
            _ => (
                vec![
                    call(format!("w{k}"), "fs__write", json!({ "path": file(k), "content": format!("step {k}\n") })),
                    call(format!("l{k}"), "fs__write", json!({ "path": "work/last.txt", "content": k.to_string() })),
                    call(format!("c{k}"), "calc__eval", json!({ "expression": format!("{k}*4/2") })),
                ],
                format!("{{\"value\":{quotient}}}"),
            ),
        };
        lines.push(json!({ "tool_calls": calls, "expect": expect, "delay_ms": DELAY_MS }));
        expect = next;
    }
    lines.push(json!({
        "text": format!("The last product is {{{{c{}.value}}}}.", STEPS - 1), "expect": expect, "delay_ms": DELAY_MS
    }));
    lines
}

#[test]
fn a_run_with_idempotent_tools_ends_as_if_it_had_never_been_killed() {
    ends_as_if_undisturbed(Scenario::new(idempotent_script()));
}

#[test]
fn a_run_with_native_calls_that_is_killed_in_mid_stream_and_in_mid_tool_ends_so_too() {
    let mut script = idempotent_script();
    for (line, turn) in script.iter_mut().zip(1..STEPS) {
        line["text"] = format!("Now I go on with step {turn} of what I was told.").into();
    }
    let scenario = ends_as_if_undisturbed(Scenario::with(script, true, NATIVE_KILLS));
    let Tally { streams, tools, .. } = scenario.tally;
    assert!(streams >= NATIVE_KILLS / 3 && tools >= NATIVE_KILLS / 3, "{:?}", scenario.tally);
}

fn ends_as_if_undisturbed(mut scenario: Scenario) -> Scenario {
    let calls = |l: &Value| l["tool_calls"].as_array().map_or(0, Vec::len);
    let calls: usize = scenario.script.iter().map(calls).sum();
    let undisturbed = scenario.undisturbed();
    assert_eq!(undisturbed.exit, json!({ "status": "success", "message": "The last product is 203." }));
    let written = files(&scenario.world.work());
    assert_eq!(
        (written.len(), written["f28.txt"].as_str(), written["last.txt"].as_str()),
        (20, "step 28 after 54\n", "27")
    );
    while scenario.left > 0 {
        let run = scenario.run();
        assert_eq!(run.exit, undisturbed.exit);
        assert_eq!(files(&scenario.world.work()), written);
        scenario.check_requests(&run);
        // One outcome for each call, and not one of them in doubt.
        assert_eq!(scenario.decisions(run.pid, "call"), vec!["allow"; calls]);
    }
    scenario.finish();
    scenario
}

/// The lines that the script of appends adds, in order.
fn appended() -> Vec<Vec<String>> {
    let calls_of = |k: u64| if k.is_multiple_of(4) { 3 } else { 1 };
    (1..STEPS).map(|k| (1..=calls_of(k)).map(|j| format!("line {k}.{j}.")).collect()).collect()
}

fn destructive_script() -> Vec<Value> {
    let mut lines = Vec::new();
    let mut expect = "Do what the script says.".to_owned();
    for turn in appended() {
        let append = |line: &String| {
            call(line.clone(), "fs__append", json!({ "path": "work/log.txt", "content": format!("{line}\n") }))
        };
        let calls: Vec<Value> = turn.iter().map(append).collect();
        lines.push(json!({ "tool_calls": calls, "expect": expect, "delay_ms": DELAY_MS }));
        // What was called stands beside what came of it, so this holds for an interrupted call too.
        expect = turn.last().expect("each turn appends").clone();
    }
    lines.push(json!({ "text": "All is said.", "expect": expect, "delay_ms": DELAY_MS }));
    lines
}

#[test]
fn a_destructive_call_happens_at_most_once_and_a_lost_one_is_reported() {
    let lines: Vec<String> = appended().concat();
    let mut scenario = Scenario::new(destructive_script());
    let undisturbed = scenario.undisturbed();
    assert_eq!(undisturbed.exit, json!({ "status": "success", "message": "All is said." }));
    assert_eq!(logged(&scenario), lines);
    while scenario.left > 0 {
        let run = scenario.run();
        assert_eq!(run.exit, undisturbed.exit);
        scenario.check_requests(&run);
        let found = logged(&scenario);
        let in_file: BTreeSet<&String> = found.iter().collect();
        let kept: Vec<String> = lines.iter().filter(|l| in_file.contains(l)).cloned().collect();
        assert_eq!(found, kept, "a line is there twice, out of order, or none of the script's");
        // Calls with effects run one after the other, so their records are in the script's order.
        let decisions = scenario.decisions(run.pid, "call");
        assert_eq!(decisions.len(), lines.len(), "each call has one outcome");
        let mut interrupted = BTreeSet::new();
        for (line, decision) in lines.iter().zip(&decisions) {
            match decision.as_str() {
                "allow" => assert!(in_file.contains(line), "`{line}` was reported as done and is not there"),
                "interrupted" => assert!(interrupted.insert(line)),
                other => panic!("`{line}` was decided as `{other}`"),
            }
        }
        assert!(interrupted.len() <= run.kills, "{interrupted:?} by {} kills", run.kills);
        scenario.tally.interrupted += interrupted.len();
        scenario.tally.lost += lines.len() - found.len();
        check_reports(&run, &lines, &interrupted);
    }
    scenario.finish();
}

fn logged(scenario: &Scenario) -> Vec<String> {
    let text = fs::read_to_string(scenario.world.work().join("log.txt")).unwrap();
    assert!(text.ends_with('\n'), "half a line was written: {text:?}");
    text.lines().map(str::to_owned).collect()
}

/// What was said of each call while it happened agrees with the audit log. A kill may cut a report off, or lose the
/// outcome that was already reported: then the call is reported again, as interrupted.
fn check_reports(run: &Run, lines: &[String], interrupted: &BTreeSet<&String>) {
    let mut reported = BTreeSet::new();
    for end in run.events.iter().filter(|e| e["type"] == "tool_end") {
        let id = end["id"].as_str().expect("a call has an id");
        let nth = id.split('_').nth(2).unwrap_or("1");
        let line = format!("line {}.{nth}.", turn_of(id).expect("the kernel's ids name the turn"));
        assert!(lines.contains(&line), "{end}");
        if end["ok"] == true {
            assert!(reported.insert(line.clone()), "`{line}` was reported as done twice");
        } else {
            assert_eq!(end["error"]["code"], "interrupted", "{end}");
            assert!(interrupted.contains(&line), "`{line}` was reported as interrupted and is recorded as done");
        }
    }
}
