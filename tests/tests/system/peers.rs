//! Processes and each other: children, waits, signals, messages, locks, becoming another agent; each over a restart of
//! the kernel too, and each bad request with its answer.

use std::time::Duration;

use agent_os_kernel::config::{Config, GroupConfig, SchedulerConfig};
use agent_os_kernel::hook::{Hook, HookEvent, Verdict};
use agent_os_kernel::kernel::{Kernel, SpawnRequest};
use agent_os_kernel::process::{Exit, Pid, ProcessState, Signal};
use agent_os_kernel::quota::{OnQuota, Raise, ResourceQuota};
use serde_json::{Value, json};

use super::support::{PATIENCE, STEPPER, World};

struct Lab {
    world: World,
    model: String,
}

impl Lab {
    fn new() -> Self {
        let world = World::new();
        world.install(STEPPER);
        let model = world.script(&[json!({ "text": "hello" })]);
        Self { world, model }
    }

    async fn kernel(&self) -> Kernel {
        self.kernel_with(Config::default()).await
    }

    async fn kernel_with(&self, config: Config) -> Kernel {
        let builder = Kernel::builder(self.world.data()).plugin_dir(self.world.plugins()).config(config);
        builder.start().await.expect("a kernel starts")
    }

    fn request(&self, task: &Value) -> SpawnRequest {
        SpawnRequest {
            agent: "stepper".to_owned(),
            task: task.to_string(),
            model: Some(self.model.clone()),
            group: Some("g".to_owned()),
            ..SpawnRequest::default()
        }
    }

    async fn spawn(&self, kernel: &Kernel, task: Value) -> Pid {
        kernel.spawn(self.request(&task)).await.unwrap().0
    }

    async fn run(&self, kernel: &Kernel, task: Value) -> Value {
        let pid = self.spawn(kernel, task).await;
        answer(kernel, pid).await
    }
}

async fn exit(kernel: &Kernel, pid: Pid) -> Exit {
    tokio::time::timeout(PATIENCE, kernel.wait(pid)).await.expect("it takes moments unless it hangs").unwrap()
}

async fn answer(kernel: &Kernel, pid: Pid) -> Value {
    match exit(kernel, pid).await {
        Exit::Success(answer) => serde_json::from_str(&answer).expect("the guests answer in JSON"),
        other => panic!("process {pid}: {other:?}"),
    }
}

fn spawn(task: Value) -> Value {
    json!({ "peers": "spawn", "agent": "stepper", "task": task })
}

fn wait(pid: impl Into<Value>) -> Value {
    json!({ "peers": "wait", "pid": pid.into() })
}

fn sleep(ms: u64) -> Value {
    json!({ "op": "sleep", "ms": ms })
}

fn receive() -> Value {
    json!({ "peers": "receive" })
}

fn lock(name: &str) -> Value {
    json!({ "peers": "lock", "name": name })
}

fn unlock(name: &str) -> Value {
    json!({ "peers": "unlock", "name": name })
}

/// The code of an error, and that its message has each of the words.
fn failed(result: &Value, code: &str, words: &[&str]) {
    let (found, message) = (&result["error"]["code"], result["error"]["message"].as_str().unwrap_or_default());
    assert!(found == code && words.iter().all(|word| message.contains(word)), "{result} is not {code} {words:?}");
}

/// `None` where there is no such process yet.
async fn state(kernel: &Kernel, pid: Pid) -> Option<(ProcessState, Option<String>)> {
    let all = kernel.ps().await.unwrap();
    all.into_iter().find(|p| p.pid == pid.0).map(|info| (info.state, info.waiting_on))
}

async fn until(kernel: &Kernel, pid: Pid, wanted: ProcessState, on: Option<&str>) {
    for _ in 0..2_000 {
        if let Some((state, waiting_on)) = state(kernel, pid).await
            && state == wanted
            && on.is_none_or(|on| waiting_on.as_deref() == Some(on))
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("process {pid} is {:?} and not {wanted:?} {on:?}", state(kernel, pid).await);
}

// Children.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_runs_beside_its_spawner_and_its_end_is_waited_for() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let child = json!({
        "peers": "spawn", "agent": "stepper", "name": "kid", "nice": 5, "input": "bytes for it",
        "task": [{ "op": "input" }, { "op": "pid" }],
    });
    let failing = spawn(json!([{ "op": "fail", "message": "no luck" }]));
    let said = lab.run(&kernel, json!([child, wait("$0"), failing, wait("$2"), wait("$0")])).await;
    assert_eq!((&said[0], &said[2]), (&json!(2), &json!(3)));
    let text: Value = serde_json::from_str(said[1]["success"].as_str().unwrap()).unwrap();
    assert_eq!(text, json!(["bytes for it", 2]));
    assert_eq!((&said[3], &said[4]), (&json!({ "failure": "no luck" }), &said[1]), "an end can be asked for again");
    let all = kernel.ps().await.unwrap();
    let kid = all.iter().find(|p| p.pid == 2).unwrap();
    assert_eq!((kid.ppid, kid.name.as_str(), kid.nice, kid.group.as_str()), (Some(1), "kid", 5, "g"));
    let spawned = kernel.audit_tail(Some(Pid(2)), 100).await.unwrap().into_iter().find(|r| r.event == "spawn").unwrap();
    assert_eq!((&*spawned.object, &*spawned.by), ("stepper", "process 1"));
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_told_and_change_nothing() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let other = lab.spawn(&kernel, json!([sleep(600_000)])).await;
    let mut stranger = lab.request(&json!([sleep(600_000)]));
    stranger.group = Some("h".to_owned());
    let (stranger, _events) = kernel.spawn(stranger).await.unwrap();
    let asked = |key: &str, value: Value| {
        let mut spawn = spawn(json!([]));
        spawn[key] = value;
        spawn
    };
    let quiet = spawn(json!([]));
    let cases: Vec<(Value, &str, &[&str])> = vec![
        (asked("nice", json!(-1)), "denied", &["-1", "no lower"]),
        (asked("nice", json!(20)), "invalid", &["-20 to 19", "20"]),
        (asked("agent", json!("nobody")), "not-found", &["nobody", "stepper"]),
        (asked("task", json!(" ")), "invalid", &["task is empty"]),
        (asked("quota", json!({ "tokens": 0 })), "invalid", &["`tokens`", "positive"]),
        (asked("quota", json!({ "tokns": 3 })), "invalid", &["tokns", "tool_calls"]),
        (asked("model", json!("nowhere/x")), "invalid", &["nowhere"]),
        (wait(77), "not-found", &["77"]),
        (wait(other.0), "denied", &["another tree"]),
        (wait(3), "invalid", &["itself"]),
        (json!({ "peers": "wait", "pid": 4, "timeout_ms": u64::MAX }), "invalid", &["over the limit"]),
        (json!({ "peers": "signal", "pid": other.0, "kind": "kill" }), "denied", &["does not descend", "KILL"]),
        (json!({ "peers": "signal", "pid": 3, "kind": "stop" }), "denied", &["does not descend"]),
        (json!({ "peers": "signal", "pid": 77, "kind": "stop" }), "not-found", &["77"]),
        (json!({ "peers": "signal", "pid": 4, "kind": "term" }), "not-found", &["has ended"]),
        (json!({ "peers": "send", "to": stranger.0, "topic": "t", "body": "" }), "denied", &["another group"]),
        (json!({ "peers": "send", "to": 4, "topic": "t", "body": "" }), "not-found", &["has ended"]),
        (json!({ "peers": "send", "to": other.0, "topic": "", "body": "" }), "invalid", &["topic"]),
        (
            json!({ "peers": "send", "to": other.0, "topic": "t", "body": "x".repeat((256 << 10) + 1) }),
            "too-large",
            &["262144"],
        ),
        (json!({ "peers": "reply", "message": 5, "body": "" }), "not-found", &["process 0"]),
        (unlock("never taken"), "invalid", &["does not hold"]),
        (lock("a\nb"), "invalid", &["control"]),
        (json!({ "peers": "exec", "agent": "nobody", "task": "x" }), "not-found", &["nobody"]),
        (json!({ "peers": "exec", "agent": "stepper", "task": "" }), "invalid", &["task is empty"]),
    ];
    let mut task = vec![quiet, wait("$0")];
    task.extend(cases.iter().map(|(operation, ..)| operation.clone()));
    let said = lab.run(&kernel, json!(task)).await;
    for (result, (operation, code, words)) in said.as_array().unwrap()[2..].iter().zip(&cases) {
        println!("{operation}");
        failed(result, code, words);
    }
    assert_eq!(state(&kernel, other).await.unwrap().0, ProcessState::Waiting);
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_would_close_a_circle_of_waits_is_told() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    // 1 waits for 2, which waits for 3, which would wait for 1.
    let grandchild = json!([sleep(300), wait(1)]);
    let child = json!([spawn(grandchild), wait("$0")]);
    let said = lab.run(&kernel, json!([spawn(child), wait("$0")])).await;
    let child: Value = serde_json::from_str(said[1]["success"].as_str().unwrap()).unwrap();
    let grandchild: Value = serde_json::from_str(child[1]["success"].as_str().unwrap()).unwrap();
    failed(&grandchild[1], "invalid", &["process 1, process 2, process 3", "wait for each other"]);
    // Two locks in two orders, and a request to who waits for its sender.
    let second = json!([lock("b"), { "peers": "send", "to": 4, "topic": "go", "body": "" }, sleep(200), lock("a")]);
    let task = json!([lock("a"), spawn(second), receive(), lock("b"), unlock("a"), wait("$1")]);
    let said = lab.run(&kernel, task).await;
    let second: Value = serde_json::from_str(said[5]["success"].as_str().unwrap()).unwrap();
    failed(&second[3], "invalid", &["wait for each other"]);
    assert_eq!(said[3], Value::Null, "the other end gave up its lock with its end: {said}");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_ends_at_the_limit_of_its_tree() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let idle = || spawn(json!([sleep(600_000)]));
    let bomb: Vec<Value> = (0..12).map(|_| idle()).collect();
    // A child may have more than its spawner has, and gets no more.
    let mut greedy = spawn(json!(bomb));
    greedy["quota"] = json!({ "children": 1000 });
    let mut request = lab.request(&json!([greedy, wait("$0"), idle()]));
    request.quota = ResourceQuota { children: 8, ..ResourceQuota::STANDARD };
    let (pid, _events) = kernel.spawn(request).await.unwrap();
    let said = answer(&kernel, pid).await;
    let bomb: Value = serde_json::from_str(said[1]["success"].as_str().unwrap()).unwrap();
    let spawned = bomb.as_array().unwrap().iter().filter(|r| r.is_u64()).count();
    assert_eq!(spawned, 7, "{bomb}");
    failed(&bomb[7], "quota", &["process 1", "8 children", "spawn when"]);
    // Its own place is free again.
    assert!(said[2].is_u64(), "{said}");
    // Orphans are adopted: by the spawner's spawner, and then by nobody.
    let all = kernel.ps().await.unwrap();
    let orphans: Vec<_> = all.iter().filter(|p| p.exit.is_none()).collect();
    assert!(orphans.len() == 8 && orphans.iter().all(|p| p.ppid.is_none()), "{orphans:?}");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_and_a_group_share_their_limits() {
    let lab = Lab::new();
    let group = GroupConfig { tool_calls: 3, ..GroupConfig::default() };
    let config = Config { groups: [("g".to_owned(), group)].into(), ..Config::default() };
    let kernel = lab.kernel_with(config.clone()).await;
    let call = || json!({ "op": "call", "name": "calc__eval", "arguments": { "expression": "1+1" } });
    let child = || spawn(json!([call(), call()]));
    let mut request = lab.request(&json!([child(), wait("$0"), call()]));
    request.quota = ResourceQuota { tool_calls: 2, ..ResourceQuota::STANDARD };
    let (pid, _events) = kernel.spawn(request).await.unwrap();
    match exit(&kernel, pid).await {
        Exit::OverQuota(why) => assert!(why.contains("process 1") && why.contains("tool-calls"), "{why}"),
        other => panic!("{other:?}"),
    }
    let (pid, _events) = kernel.spawn(lab.request(&json!([call(), call()]))).await.unwrap();
    match exit(&kernel, pid).await {
        Exit::OverQuota(why) => assert!(why.contains("group g") && why.contains("[groups]"), "{why}"),
        other => panic!("{other:?}"),
    }
    kernel.shutdown().await;
    // The next kernel has the same books.
    let kernel = lab.kernel_with(config).await;
    let (pid, _events) = kernel.spawn(lab.request(&json!([call()]))).await.unwrap();
    assert!(matches!(exit(&kernel, pid).await, Exit::OverQuota(_)));
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_may_suspend_a_process_until_it_is_raised() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let request = SpawnRequest {
        quota: ResourceQuota { fuel: 3_000_000, ..ResourceQuota::STANDARD },
        on_quota: OnQuota::Suspend,
        ..lab.request(&json!([{ "op": "state_put", "key": "k", "value": "v" }, { "op": "spin", "turns": 2_000_000 }]))
    };
    let (pid, _events) = kernel.spawn(request).await.unwrap();
    let why = tokio::time::timeout(PATIENCE, kernel.wait(pid)).await.unwrap().unwrap_err().to_string();
    assert!(why.contains("fuel") && why.contains("--resume"), "{why}");
    let (letter, waiting_on) = state(&kernel, pid).await.unwrap();
    assert!(letter == ProcessState::Stopped && waiting_on.unwrap().starts_with("quota fuel"));
    assert_eq!(kernel.resume_all().await.unwrap(), 0, "it does not go on by itself");
    let nothing = kernel.raise(pid, Raise { fuel: Some(0), ..Raise::default() }).await.unwrap_err();
    assert!(nothing.to_string().contains("0 fuel"), "{nothing}");
    // With too little it stops again, and what it did is not done twice.
    for fuel in [4_000_000, 4_000_000_000] {
        kernel.raise(pid, Raise { fuel: Some(fuel), ..Raise::default() }).await.unwrap();
        drop(kernel.resume(pid).await.unwrap());
        let end = tokio::time::timeout(PATIENCE, kernel.wait(pid)).await.unwrap();
        assert_eq!(end.is_ok(), fuel > 4_000_000, "{end:?}");
    }
    assert_eq!(answer(&kernel, pid).await[0], 1, "the revision of a key that was put once");
    let late = kernel.raise(pid, Raise { fuel: Some(9), ..Raise::default() }).await.unwrap_err();
    assert!(late.to_string().contains("has ended"), "{late}");
    kernel.shutdown().await;
}

// Messages.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_topics_requests_and_replies() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let server = json!([
        { "peers": "subscribe", "topic": "news" },
        { "peers": "receive", "topic": "question" },
        { "peers": "reply", "message": "$1.id", "body": "42" },
        { "peers": "receive", "topic": "news", "timeout_ms": 5000 },
        { "peers": "unsubscribe", "topic": "news" },
        { "peers": "send", "to": 1, "topic": "ready", "body": "" },
        receive(),
        { "peers": "receive", "topic": "bye" },
    ]);
    let client = json!([
        spawn(server),
        { "peers": "send", "to": "$0", "topic": "noise", "body": "first" },
        { "peers": "request", "to": "$0", "topic": "question", "body": "6*7", "timeout_ms": 20_000 },
        { "peers": "publish", "topic": "news", "body": "extra" },
        { "peers": "receive", "topic": "ready" },
        { "peers": "publish", "topic": "news", "body": "nobody hears" },
        { "peers": "receive", "timeout_ms": 1 },
        { "peers": "request", "to": "$0", "topic": "question", "body": "again?", "timeout_ms": 1 },
        { "peers": "send", "to": "$0", "topic": "bye", "body": "" },
        wait("$0"),
    ]);
    let said = lab.run(&kernel, client).await;
    assert_eq!((&said[2]["body"], &said[2]["sender"], &said[2]["topic"]), (&json!("42"), &json!(2), &json!("reply")));
    assert_eq!((&said[3], &said[5], &said[6]), (&json!(1), &json!(0), &Value::Null));
    failed(&said[7], "timeout", &["process 2", "1 ms"]);
    let server: Value = serde_json::from_str(said[9]["success"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&server[1]["body"], &server[3]["body"], &server[6]["topic"]),
        (&json!("6*7"), &json!("extra"), &json!("noise"))
    );
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_locks_and_children_survive_the_kernel() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let child = json!([lock("a"), { "peers": "send", "to": 1, "topic": "mine", "body": "" }, receive(), sleep(50), unlock("a")]);
    let parent = json!([
        spawn(child),
        { "peers": "receive", "topic": "mine" },
        { "peers": "send", "to": 1, "topic": "kept", "body": "over the restart" },
        { "peers": "receive", "topic": "after" },
        { "peers": "lock", "name": "a", "timeout_ms": 1 },
        { "peers": "send", "to": "$0", "topic": "go on", "body": "" },
        lock("a"),
        { "peers": "receive", "topic": "kept" },
        wait("$0"),
    ]);
    let pid = lab.spawn(&kernel, parent).await;
    until(&kernel, pid, ProcessState::Waiting, Some("message")).await;
    until(&kernel, Pid(2), ProcessState::Waiting, Some("message")).await;
    kernel.shutdown().await;

    let kernel = lab.kernel().await;
    // Its child goes on with it.
    drop(kernel.resume(pid).await.unwrap());
    until(&kernel, Pid(2), ProcessState::Waiting, Some("message")).await;
    lab.run(&kernel, json!([{ "peers": "send", "to": 1, "topic": "after", "body": "" }])).await;
    let said = answer(&kernel, pid).await;
    failed(&said[4], "timeout", &["`a`", "process 2 holds it"]);
    assert_eq!((&said[6], &said[7]["body"]), (&Value::Null, &json!("over the restart")));
    assert!(said[8]["success"].is_string(), "{said}");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_may_refuse_a_message_or_change_it() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    kernel.register_hook(Hook::OnMessage, "censor", |event: &HookEvent| match event.subject["text"].as_str() {
        Some("secret") => Verdict::Deny("it is a secret".to_owned()),
        Some("rude") => {
            let mut subject = event.subject.clone();
            subject["text"] = json!("kind");
            Verdict::Rewrite(subject)
        }
        _ => Verdict::Allow,
    });
    let send = |body: &str| json!({ "peers": "send", "to": 1, "topic": "t", "body": body });
    let said = lab
        .run(&kernel, json!([send("secret"), send("rude"), receive(), { "peers": "receive", "timeout_ms": 1 }]))
        .await;
    failed(&said[0], "denied", &["censor", "it is a secret"]);
    assert_eq!((&said[2]["body"], &said[3]), (&json!("kind"), &Value::Null));
    kernel.shutdown().await;
}

// Signals.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_cont_and_kill_from_a_spawner() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let signal = |kind: &str| json!({ "peers": "signal", "pid": "$0", "kind": kind });
    let spinner = spawn(json!([{ "op": "spin", "turns": u64::MAX / 2 }]));
    let task = json!([
        spinner, signal("stop"), receive(), signal("cont"), { "peers": "wait", "pid": "$0", "timeout_ms": 20 },
        signal("kill"), wait("$0"), signal("kill"),
    ]);
    let pid = lab.spawn(&kernel, task).await;
    until(&kernel, Pid(2), ProcessState::Stopped, None).await;
    lab.run(&kernel, json!([{ "peers": "send", "to": pid.0, "topic": "t", "body": "" }])).await;
    let said = answer(&kernel, pid).await;
    failed(&said[4], "timeout", &["process 2"]);
    assert_eq!(said[6], json!({ "killed": "process 1 sent KILL" }));
    failed(&said[7], "not-found", &["has ended"]);
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn term_gives_one_chance_and_then_ends_it() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    // It waits, is told, says goodbye and ends by itself.
    let polite = lab.spawn(&kernel, json!([sleep(600_000), { "op": "log", "message": "goodbye" }])).await;
    until(&kernel, polite, ProcessState::Waiting, Some("timer")).await;
    kernel.signal(polite, Signal::Term, "enough", None).await.unwrap();
    let said = answer(&kernel, polite).await;
    failed(&said[0], "interrupted", &["told to end", "10000 ms"]);
    // One that is deaf is killed when its time is over, also in the middle of computing.
    let deaf = lab.spawn(&kernel, json!([{ "op": "spin", "turns": u64::MAX / 2 }])).await;
    kernel.signal(deaf, Signal::Term, "enough", Some(Duration::from_millis(50))).await.unwrap();
    match exit(&kernel, deaf).await {
        Exit::Killed(why) => assert!(why.contains("enough") && why.contains("50 ms"), "{why}"),
        other => panic!("{other:?}"),
    }
    // So is one that goes back to sleep.
    let sleepy = lab.spawn(&kernel, json!([sleep(600_000), sleep(600_000)])).await;
    until(&kernel, sleepy, ProcessState::Waiting, Some("timer")).await;
    kernel.signal(sleepy, Signal::Term, "enough", Some(Duration::from_millis(50))).await.unwrap();
    assert!(matches!(exit(&kernel, sleepy).await, Exit::Killed(_)));
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_process_stays_so_over_a_restart_and_a_dormant_one_can_be_killed() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let stopped = lab.spawn(&kernel, json!([sleep(100), { "op": "pid" }])).await;
    let left = lab.spawn(&kernel, json!([lock("a"), sleep(600_000)])).await;
    until(&kernel, left, ProcessState::Waiting, Some("timer")).await;
    kernel.signal(stopped, Signal::Stop, "", None).await.unwrap();
    kernel.shutdown().await;

    let kernel = lab.kernel().await;
    kernel.signal(left, Signal::Kill, "too old", None).await.unwrap();
    assert_eq!(exit(&kernel, left).await, Exit::Killed("too old".to_owned()));
    assert!(kernel.signal(left, Signal::Kill, "", None).await.unwrap_err().to_string().contains("has ended"));
    assert_eq!(lab.run(&kernel, json!([lock("a")])).await, json!([null]), "its lock went with it");
    assert_eq!(kernel.resume_all().await.unwrap(), 0);
    assert_eq!(state(&kernel, stopped).await.unwrap().0, ProcessState::Stopped);
    kernel.signal(stopped, Signal::Cont, "", None).await.unwrap();
    assert_eq!(answer(&kernel, stopped).await, json!([null, stopped.0]));
    assert!(kernel.audit_verify().await.is_ok_and(|v| format!("{v:?}").contains("Good")));
    kernel.shutdown().await;
}

// Exec.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_makes_a_process_another_agent_with_a_fresh_journal() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let put = |value: &str| json!({ "op": "state_put", "key": "k", "value": value });
    let append = |text: &str| json!({ "op": "append", "kind": "note", "text": text });
    let last = json!([{ "op": "input" }, { "op": "state_get", "key": "k" }, append("two"), { "op": "pid" }, receive(), { "op": "generate" }]);
    let exec = |task: Value, input: &str| json!({ "peers": "exec", "agent": "stepper", "task": task, "input": input });
    let middle = json!([put("second"), exec(last, "from the second")]);
    let first = json!([put("first"), append("one"), sleep(1), sleep(1), exec(middle, "")]);
    let pid = lab.spawn(&kernel, first).await;
    until(&kernel, pid, ProcessState::Waiting, Some("message")).await;
    kernel.shutdown().await;

    // The journal is that of the last agent, and a resume replays no other.
    let kernel = lab.kernel().await;
    drop(kernel.resume(pid).await.unwrap());
    until(&kernel, pid, ProcessState::Waiting, Some("message")).await;
    lab.run(&kernel, json!([{ "peers": "send", "to": pid.0, "topic": "t", "body": "" }])).await;
    let said = answer(&kernel, pid).await;
    assert_eq!((&said[0], &said[1]["value"], &said[3]), (&json!("from the second"), &json!("second"), &json!(pid.0)));
    assert_eq!(said[5]["text"], "hello");
    let pages = kernel.context(pid).await.unwrap();
    let notes = pages.iter().filter(|p| format!("{:?}", p.kind) == "Note").count();
    assert_eq!(notes, 2, "pages stay and go on: {pages:?}");
    let tasks: Vec<bool> = pages.iter().filter(|p| format!("{:?}", p.kind) == "Task").map(|p| p.pinned).collect();
    assert_eq!(tasks, [false, false, true], "the task of each, the last one pinned: {pages:?}");
    let execs = kernel.audit_tail(Some(pid), 1_000).await.unwrap().into_iter().filter(|r| r.event == "exec").count();
    assert_eq!(execs, 2);
    assert!(kernel.audit_verify().await.is_ok_and(|v| format!("{v:?}").contains("Good")));
    kernel.shutdown().await;
}

// Swapped out whole.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_process_leaves_memory_and_comes_back_by_a_message() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let waiter = json!([{ "op": "append", "kind": "note", "text": "kept" }, receive(), { "op": "pages" }]);
    let parent = json!([spawn(waiter), wait("$0")]);
    let pid = lab.spawn(&kernel, parent).await;
    until(&kernel, Pid(2), ProcessState::Waiting, Some("message")).await;
    assert!(kernel.swap_out(Pid(2)).await.unwrap());
    assert!(!kernel.swap_out(pid).await.unwrap(), "one that waits for another stays");
    until(&kernel, Pid(2), ProcessState::Swapped, Some("message")).await;
    let send = || json!([{ "peers": "send", "to": 2, "topic": "t", "body": "wake up" }]);
    lab.run(&kernel, send()).await;
    let said = answer(&kernel, pid).await;
    let child: Value = serde_json::from_str(said[1]["success"].as_str().unwrap()).unwrap();
    assert_eq!(child[1]["body"], "wake up");
    assert!(child[2].to_string().contains("kept"), "{child}");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dormant_process_outlasts_the_kernel_and_its_timer_goes_on() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let sleeper = lab.spawn(&kernel, json!([sleep(1_500), { "op": "pid" }])).await;
    let listener = lab.spawn(&kernel, json!([receive()])).await;
    let killed = lab.spawn(&kernel, json!([receive()])).await;
    for (pid, on) in [(sleeper, "timer"), (listener, "message"), (killed, "message")] {
        until(&kernel, pid, ProcessState::Waiting, Some(on)).await;
        assert!(kernel.swap_out(pid).await.unwrap());
    }
    kernel.shutdown().await;
    let began = std::time::Instant::now();
    let kernel = lab.kernel().await;
    assert_eq!(kernel.resume_all().await.unwrap(), 0, "what is out comes back by itself");
    assert_eq!(state(&kernel, listener).await.unwrap().0, ProcessState::Swapped);
    assert_eq!(answer(&kernel, sleeper).await, json!([null, sleeper.0]));
    assert!(began.elapsed() < PATIENCE);
    // A message finds it after the restart, and a signal too.
    lab.run(&kernel, json!([{ "peers": "send", "to": listener.0, "topic": "t", "body": "late" }])).await;
    assert_eq!(answer(&kernel, listener).await[0]["body"], "late");
    kernel.signal(killed, Signal::Term, "enough", None).await.unwrap();
    failed(&answer(&kernel, killed).await[0], "interrupted", &["told to end"]);
    assert!(kernel.audit_verify().await.is_ok_and(|v| format!("{v:?}").contains("Good")));
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_only_wait_are_swapped_out_by_age() {
    let lab = Lab::new();
    let scheduler = SchedulerConfig { swap_after_s: Some(0), ..SchedulerConfig::default() };
    let kernel = lab.kernel_with(Config { scheduler, ..Config::default() }).await;
    let idle = lab.spawn(&kernel, json!([receive(), receive()])).await;
    until(&kernel, idle, ProcessState::Swapped, None).await;
    for _ in 0..2 {
        lab.run(&kernel, json!([{ "peers": "send", "to": idle.0, "topic": "t", "body": "x" }])).await;
    }
    answer(&kernel, idle).await;
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_ends_with_who_would_answer_it() {
    let lab = Lab::new();
    let kernel = lab.kernel().await;
    let ask = json!({ "peers": "request", "to": "$0", "topic": "q", "body": "" });
    let said = lab.run(&kernel, json!([spawn(json!([receive()])), ask])).await;
    failed(&said[1], "not-found", &["process 2 ended (success) before it answered"]);
    kernel.shutdown().await;
}
