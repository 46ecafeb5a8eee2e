use std::sync::Mutex;

use super::*;

fn event(subject: Value) -> HookEvent {
    HookEvent {
        point: Hook::BeforeToolCall,
        pid: Some(crate::process::Pid(1)),
        seq: 1,
        agent: "a".into(),
        object: "fs__read".into(),
        at_ms: 0,
        subject,
    }
}

fn call(name: &str) -> Value {
    json!({ "id": "1", "name": name, "arguments": {}, "effect": null })
}

/// Says what it is told to, and notes what it was shown.
#[derive(Debug)]
struct Puppet {
    says: Result<Verdict, Fall>,
    seen: Mutex<Vec<Value>>,
}

impl Puppet {
    fn new(says: Result<Verdict, Fall>) -> Arc<Self> {
        Arc::new(Self { says, seen: Mutex::default() })
    }

    fn seen(&self) -> Vec<Value> {
        self.seen.lock().unwrap().clone()
    }
}

#[async_trait]
impl Handler for Puppet {
    async fn on_event(&self, event: &HookEvent, _: u64) -> Answer {
        self.seen.lock().unwrap().push(event.subject.clone());
        Answer { verdict: self.says.clone(), fuel: 7 }
    }
}

fn stands(chain: &HookChain, name: &str, at: Subscription, trusted: bool, says: Result<Verdict, Fall>) -> Arc<Puppet> {
    let puppet = Puppet::new(says);
    let handler: Arc<dyn Handler> = puppet.clone();
    chain.swap(name, vec![at], &handler, trusted);
    puppet
}

fn before_call(phase: Phase) -> Subscription {
    Subscription { phase, ..Subscription::at(Hook::BeforeToolCall) }
}

fn append(letter: char) -> impl Fn(&HookEvent) -> Verdict {
    move |e| Verdict::Rewrite(call(&format!("{}{letter}", e.subject["name"].as_str().unwrap())))
}

#[tokio::test]
async fn hooks_are_asked_by_phase_priority_and_name_and_see_what_the_one_before_wrote() {
    let chain = HookChain::default();
    assert!(!chain.listens(Hook::BeforeToolCall));
    let at = |phase, priority| Subscription { priority, ..before_call(phase) };
    chain.register(at(Phase::Policy, 0), "b", append('4'));
    chain.register(at(Phase::Policy, 0), "a", append('3'));
    chain.register(at(Phase::Policy, -1), "z", append('2'));
    chain.register(at(Phase::Validate, 9), "y", append('1'));
    assert!(chain.listens(Hook::BeforeToolCall) && !chain.listens(Hook::AfterToolCall));
    let asked = chain.ask(event(call("x")), 100).await;
    assert_eq!((&asked.outcome, &asked.subject), (&Outcome::Pass, &call("x1234")));
    assert_eq!(asked.rewritten_by, ["y", "z", "a", "b"]);
}

#[tokio::test]
async fn a_denial_ends_the_asking_and_those_who_watch_are_told() {
    let chain = HookChain::default();
    let watcher = stands(&chain, "watch", before_call(Phase::Telemetry), false, Ok(Verdict::Deny("ignored".into())));
    chain.register(before_call(Phase::Policy), "guard", |_| Verdict::Deny("no".into()));
    chain.register(before_call(Phase::Policy), "later", |_| panic!("asked after a denial"));
    let asked = chain.ask(event(call("x")), 100).await;
    assert_eq!(asked.outcome, Outcome::Denied { by: "guard".into(), reason: "no".into() });
    assert_eq!((asked.subject, asked.fuel), (call("x"), 7), "the decision is for those who watch");
    assert_eq!(watcher.seen()[0]["decision"], json!({ "verdict": "deny", "by": "guard", "reason": "no" }));
}

#[tokio::test]
async fn a_question_waits_for_those_who_may_still_refuse() {
    let chain = HookChain::default();
    stands(&chain, "ask", before_call(Phase::Authorize), false, Ok(Verdict::Ask("sure?".into())));
    let asked = chain.ask(event(call("x")), 100).await;
    assert_eq!(asked.outcome, Outcome::Asks { by: "ask".into(), reason: "sure?".into() });
    stands(&chain, "deny", before_call(Phase::Policy), false, Ok(Verdict::Deny("no".into())));
    let asked = chain.ask(event(call("x")), 100).await;
    assert_eq!(asked.outcome, Outcome::Denied { by: "deny".into(), reason: "no".into() });
}

#[tokio::test]
async fn only_the_trusted_rewrite_and_only_into_what_fits() {
    let chain = HookChain::default();
    let rewrite =
        |name: Value| Ok(Verdict::Rewrite(json!({ "id": "1", "name": name, "arguments": {}, "effect": null })));
    stands(&chain, "w", before_call(Phase::Policy), false, rewrite("y".into()));
    let denied = |asked: Asked| match asked.outcome {
        Outcome::Denied { by, reason } if by == "w" => reason,
        other => panic!("{other:?}"),
    };
    let why = denied(chain.ask(event(call("x")), 100).await);
    assert!(why.contains("`aok plugin trust w`"), "{why}");
    chain.trust("w", true);
    assert_eq!(chain.ask(event(call("x")), 100).await.subject, call("y"));
    stands(&chain, "w", before_call(Phase::Policy), true, rewrite(3.into()));
    let why = denied(chain.ask(event(call("x")), 100).await);
    assert!(why.contains("BEFORE_TOOL_CALL") && why.contains("/name"), "{why}");
}

#[tokio::test]
async fn a_gate_that_fails_refuses_and_is_barred_in_the_end() {
    let chain = HookChain::default();
    let told: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let sink = Arc::clone(&told);
    chain.when_barred(move |hook, why| sink.lock().unwrap().push((hook.to_owned(), why.to_owned())));
    let own = || Err(Fall::Own("it trapped".into()));
    let gate = stands(&chain, "gate", before_call(Phase::Policy), false, own());
    for n in 1..=5 {
        let asked = chain.ask(event(call("x")), 100).await;
        let Outcome::Denied { by, reason } = asked.outcome else { panic!("{asked:?}") };
        assert_eq!(by, "gate");
        assert_eq!(reason.contains("barred"), n > 3, "{n}: {reason}");
    }
    assert_eq!(gate.seen().len(), 3, "a barred hook is not run");
    let standing = &chain.standings()[0];
    assert!(standing.failures == 3 && standing.barred.as_ref().is_some_and(|why| why.contains("it trapped")));
    assert_eq!(told.lock().unwrap().len(), 1);
    // Its successor starts anew.
    stands(&chain, "gate", before_call(Phase::Policy), false, Ok(Verdict::Allow));
    assert_eq!(chain.ask(event(call("x")), 100).await.outcome, Outcome::Pass);
    // What is not its fault counts for nothing.
    stands(&chain, "gate", before_call(Phase::Policy), false, Err(Fall::Elsewhere("no room".into())));
    for _ in 0..5 {
        assert!(matches!(chain.ask(event(call("x")), 100).await.outcome, Outcome::Denied { .. }));
    }
    assert_eq!(chain.standings()[0].barred, None);
}

#[tokio::test]
async fn an_observer_that_fails_is_passed_over() {
    let chain = HookChain::default();
    let at = Subscription::at(Hook::OnAgentExit);
    let broken = stands(&chain, "broken", at.clone(), false, Err(Fall::Own("it trapped".into())));
    let good = stands(&chain, "good", at, false, Ok(Verdict::Allow));
    for _ in 0..5 {
        let exit = HookEvent { point: Hook::OnAgentExit, ..event(json!({})) };
        assert_eq!(chain.ask(exit, 100).await.outcome, Outcome::Pass);
    }
    assert_eq!((broken.seen().len(), good.seen().len()), (3, 5));
}

#[tokio::test]
async fn a_matcher_is_held_against_the_object() {
    let chain = HookChain::default();
    for (matcher, counts) in [("fs__*", 1), ("fs__rea?", 1), ("fs", 0), ("*", 1), ("http__*", 0)] {
        let at = Subscription { matcher: Some(matcher.to_owned()), ..before_call(Phase::Policy) };
        let puppet = stands(&chain, "m", at, false, Ok(Verdict::Allow));
        chain.ask(event(call("x")), 100).await;
        assert_eq!(puppet.seen().len(), counts, "{matcher}");
    }
    chain.withdraw("m");
    assert!(!chain.listens(Hook::BeforeToolCall) && chain.standings().is_empty());
}

#[tokio::test]
async fn what_another_refused_is_told_to_those_who_watch_alone() {
    let chain = HookChain::default();
    let at = |phase| Subscription { phase, ..Subscription::at(Hook::AfterToolCall) };
    let filter = stands(&chain, "filter", at(Phase::Policy), false, Ok(Verdict::Allow));
    let watcher = stands(&chain, "watch", at(Phase::Telemetry), false, Ok(Verdict::Allow));
    let refused = HookEvent { point: Hook::AfterToolCall, ..event(json!({})) };
    chain.tell(refused, 100).await;
    assert_eq!((filter.seen().len(), watcher.seen().len()), (0, 1));
}
