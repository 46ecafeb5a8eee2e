//! The loop, with a scripted source and scripted keys.

use std::cell::{Cell, RefCell};

use clap::Parser as _;
use crossterm::event::KeyEvent;
use futures_util::stream;
use ratatui::backend::TestBackend;
use serde_json::Value;

use super::figures::tests::process;
use super::*;
use crate::cli::out::tests::memory;
use crate::process::Pid;

/// A kernel that is there until it is not.
#[derive(Default)]
struct Fake {
    looks: Cell<u64>,
    done: RefCell<Vec<Action>>,
    /// How long a look takes.
    slow: Duration,
    /// How long an action takes.
    slow_act: Duration,
    /// From this look on, the store answers.
    gone_from: Option<u64>,
    /// What every action ends with.
    refusal: Option<ApiError>,
}

impl Source for Fake {
    async fn snapshot(&self) -> Result<Snapshot, ApiError> {
        tokio::time::sleep(self.slow).await;
        let look = self.looks.get() + 1;
        self.looks.set(look);
        let live = self.gone_from.is_none_or(|gone| look < gone);
        let busy = |pid| Process { cpu_us: Some(look * 1_000 * pid), ..process(pid) };
        Ok(Snapshot::now(live, (1..=3).map(busy).collect(), "aok_scheduler_load 1\n".to_owned()))
    }

    async fn act(&self, action: Action) -> Result<(), ApiError> {
        tokio::time::sleep(self.slow_act).await;
        self.done.borrow_mut().push(action);
        self.refusal.clone().map_or(Ok(()), Err)
    }
}

/// Keys, 20 ms apart. `\u{c}` is Ctrl-L.
fn typed(text: &str) -> impl Stream<Item = io::Result<Event>> + Unpin {
    let events: Vec<_> = text
        .chars()
        .map(|c| match c {
            '\u{c}' => KeyEvent::new(KeyCode::Char('l'), KeyModifiers::CONTROL),
            c => KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE),
        })
        .collect();
    Box::pin(stream::iter(events).then(async |key| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(Event::Key(key))
    }))
}

fn live(source: &Fake) -> Live<'_, Fake> {
    let patience = Patience { look: Duration::from_millis(200), farewell: Duration::from_millis(100) };
    let every = Duration::from_millis(30);
    Live { source, theme: Theme { colour: false }, every, patience, model: Model::new() }
}

/// Runs the view and returns how it ended and what it drew last.
async fn watch(source: &Fake, keys: &str) -> (Result<(), Error>, String) {
    let mut terminal = Terminal::new(TestBackend::new(100, 20)).unwrap();
    let mut live = live(source);
    let end = live.run(&mut terminal, typed(keys), || Ok(false)).await;
    (end, terminal.backend().to_string())
}

#[tokio::test]
async fn it_looks_again_and_again_until_it_is_left() {
    let source = Fake::default();
    let (end, drawn) = watch(&source, &format!("{}q", "j".repeat(20))).await;
    assert!(end.is_ok());
    assert!(source.looks.get() > 2, "{} looks", source.looks.get());
    assert!(drawn.contains("aok top · 3 processes: 3 S"), "{drawn}");
}

#[tokio::test]
async fn a_pause_looks_at_nothing() {
    let source = Fake::default();
    let (_, drawn) = watch(&source, &format!("p{}q", "j".repeat(50))).await;
    assert_eq!(source.looks.get(), 1);
    assert!(drawn.contains("PAUSED"), "{drawn}");
}

#[tokio::test]
async fn actions_are_carried_out_in_order_and_their_end_is_told() {
    let refusal = ApiError::new(Code::BadState, "process 1 has ended", "`aok ps` shows it");
    let source = Fake { refusal: Some(refusal), slow_act: Duration::from_millis(50), ..Fake::default() };
    // The second is still on its way when the view is left: it is carried out, and its failure told.
    let (end, drawn) = watch(&source, "jxt\u{c}\u{c}xsq").await;
    let signal = |signal| Action::Signal { pid: Pid(2), signal };
    assert_eq!(*source.done.borrow(), [signal(Signal::Term), signal(Signal::Stop)]);
    assert_eq!(end.unwrap_err().exit(), 2);
    assert!(!drawn.contains("KILL"), "{drawn}");
}

#[tokio::test]
async fn an_end_is_told_on_the_message_line() {
    for (refusal, expected) in [
        (None, "· TERM to process 1"),
        (
            Some(ApiError::new(Code::ReadOnly, "no kernel runs", "start one")),
            "! TERM to process 1: no kernel runs; start one",
        ),
    ] {
        let source = Fake { refusal, ..Fake::default() };
        let mut terminal = Terminal::new(TestBackend::new(100, 20)).unwrap();
        let mut live = live(&source);
        let keys = Box::pin(typed("sxt").chain(stream::pending()));
        let watching = live.run(&mut terminal, keys, || Ok(false));
        assert!(tokio::time::timeout(Duration::from_millis(300), watching).await.is_err());
        let drawn = terminal.backend().to_string();
        assert!(drawn.contains(expected), "{drawn}");
    }
}

#[tokio::test]
async fn keys_are_taken_while_the_kernel_is_silent() {
    let source = Fake { slow: Duration::from_secs(3_600), ..Fake::default() };
    let (end, drawn) = watch(&source, &format!("{}q", "j".repeat(20))).await;
    assert!(end.is_ok());
    assert!(drawn.contains("looking") && drawn.contains("no answer yet"), "{drawn}");
}

#[tokio::test]
async fn a_silent_action_does_not_keep_the_user() {
    let source = Fake { slow_act: Duration::from_secs(3_600), ..Fake::default() };
    let (end, _) = watch(&source, "jxtq").await;
    assert_eq!(end.unwrap_err().exit(), 5);
}

#[tokio::test]
async fn a_kernel_that_goes_is_told_and_the_store_is_shown() {
    let source = Fake { gone_from: Some(3), ..Fake::default() };
    let (_, drawn) = watch(&source, &format!("{}q", "j".repeat(30))).await;
    assert!(drawn.contains("the kernel is gone") && drawn.contains("no kernel · 3 processes"), "{drawn}");
    assert!(source.looks.get() > 4);
}

#[tokio::test]
async fn a_terminal_that_closes_ends_it() {
    let (end, _) = watch(&Fake::default(), "jj").await;
    let Err(Error::Failed(e)) = end else { panic!("{end:?}") };
    assert_eq!((e.code, e.message.as_str()), (Code::Io, "the terminal cannot be used: it was closed"));
}

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(words: &[&str]) -> Result<Args, clap::Error> {
    Cli::try_parse_from([&["top"], words].concat()).map(|c| c.args)
}

#[test]
fn the_interval_has_bounds() {
    assert_eq!(args(&[]).unwrap().interval, Duration::from_secs(1));
    assert_eq!(args(&["--interval", "0.2"]).unwrap().interval, Duration::from_millis(200));
    for bad in ["0", "0.1", "60.5", "-1", "NaN", "inf", "x", ""] {
        assert!(args(&[&format!("--interval={bad}")]).is_err(), "{bad}");
    }
    assert!(args(&["-n", "0"]).is_err());
}

#[tokio::test]
async fn plain_snapshots_are_as_many_as_asked_for() {
    let (mut out, stdout, stderr) = memory(false, None);
    run(args(&["--batch", "-n", "2", "--interval=0.2"]).unwrap(), &Fake::default(), &mut out).await.unwrap();
    let text = stdout.text();
    assert_eq!(text.matches("aok top · ").count(), 2, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with(" · 3 processes: 3 S · - · -") && lines[1].starts_with("workers - · cpu "), "{text}");
    // The busiest first, with a share from the first snapshot on.
    assert!(lines[2].starts_with("PID  PPID  S") && lines[3].starts_with("  3 "), "{text}");
    assert_eq!((lines[6], lines.len()), ("", 14));
    assert_eq!(stderr.text(), "");
}

#[tokio::test]
async fn json_snapshots_are_one_object_each() {
    let source = Fake { gone_from: Some(3), ..Fake::default() };
    let (mut out, stdout, stderr) = memory(true, None);
    run(args(&["-n", "2", "--interval=0.2"]).unwrap(), &source, &mut out).await.unwrap();
    let told: Vec<Value> = stdout.text().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(told.len(), 2);
    assert_eq!((&told[0]["kernel"], &told[1]["kernel"]), (&true.into(), &false.into()));
    assert!(told[0]["at_ms"].is_u64() && told[0]["processes"][0]["cpu_percent"].is_f64(), "{}", told[0]);
    assert_eq!((&told[0]["scheduler_load"], &told[1]["scheduler_load"]), (&1.0.into(), &Value::Null));
    assert_eq!(stderr.text().matches("no kernel runs").count(), 1);
}

#[tokio::test]
async fn without_a_terminal_it_says_what_else_there_is() {
    // Only where the tests themselves have none, as in every CI.
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return;
    }
    let (mut out, stdout, _) = memory(false, None);
    let end = run(args(&[]).unwrap(), &Fake::default(), &mut out).await;
    let told = end.unwrap_err().report().unwrap();
    assert!(told.code == Code::BadUsage && told.hint.contains("--batch"), "{told:?}");
    let end = run(args(&["-n", "3"]).unwrap(), &Fake::default(), &mut out).await;
    assert_eq!(end.unwrap_err().exit(), 2);
    assert_eq!(stdout.text(), "");
}
