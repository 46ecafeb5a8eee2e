//! The loop, with a scripted source and scripted keys.

use std::cell::{Cell, RefCell};

use clap::Parser as _;
use crossterm::event::KeyEvent;
use futures_util::stream;
use ratatui::backend::TestBackend;
use serde_json::Value;

use super::figures::Process;
use super::figures::tests::process;
use super::*;
use crate::cli::out::tests::memory;
use crate::process::{Pid, Signal};

/// A kernel that is there until it is not.
#[derive(Default)]
struct Fake {
    looks: Cell<u64>,
    done: RefCell<Vec<Action>>,
    /// From this look on, none comes to an end.
    silent_from: Option<u64>,
    /// No action comes to an end before this says so.
    holds: Cell<bool>,
    /// From this look on, the store answers.
    gone_from: Option<u64>,
    /// What every action ends with.
    refusal: Option<ApiError>,
}

impl Source for Fake {
    async fn snapshot(&self) -> Result<Snapshot, ApiError> {
        let look = self.looks.get() + 1;
        if self.silent_from.is_some_and(|silent| look >= silent) {
            std::future::pending::<()>().await;
        }
        self.looks.set(look);
        let live = self.gone_from.is_none_or(|gone| look < gone);
        let busy = |pid| Process { cpu_us: Some(look * 1_000 * pid), ..process(pid) };
        Ok(Snapshot::now(live, (1..=3).map(busy).collect(), "aok_scheduler_load 1\n".to_owned()))
    }

    async fn act(&self, action: Action) -> Result<(), ApiError> {
        until(|| !self.holds.get()).await;
        self.done.borrow_mut().push(action);
        self.refusal.clone().map_or(Ok(()), Err)
    }
}

/// Waits until something is so.
async fn until(so: impl Fn() -> bool) {
    while !so() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What a user does.
enum Step<'a> {
    /// Presses these, one after the other; `\u{c}` is Ctrl-L.
    Press(&'static str),
    /// Waits until something is so.
    Until(Box<dyn Fn() -> bool + 'a>),
}

fn looked<'a>(source: &'a Fake, times: u64) -> Step<'a> {
    Step::Until(Box::new(move || source.looks.get() >= times))
}

fn acted<'a>(source: &'a Fake, times: usize) -> Step<'a> {
    Step::Until(Box::new(move || source.done.borrow().len() >= times))
}

/// Runs the view for a user who does this, and returns how it ended and what it drew last.
async fn watch(source: &Fake, every: Duration, steps: Vec<Step<'_>>) -> (Result<(), Error>, String) {
    let event = |c| match c {
        '\u{c}' => KeyEvent::new(KeyCode::Char('l'), KeyModifiers::CONTROL),
        c => KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE),
    };
    let events = stream::iter(steps).then(async |step| match step {
        Step::Press(keys) => keys.chars().map(|c| Ok(Event::Key(event(c)))).collect(),
        Step::Until(so) => {
            until(so).await;
            Vec::new()
        }
    });
    let patience = Patience { look: Duration::from_millis(50), farewell: Duration::from_millis(50) };
    let mut live = Live { source, theme: Theme { colour: false }, every, patience, model: Model::new() };
    let mut terminal = Terminal::new(TestBackend::new(100, 20)).unwrap();
    let end = live.run(&mut terminal, Box::pin(events.flat_map(stream::iter)), || Ok(false)).await;
    (end, terminal.backend().to_string())
}

const OFTEN: Duration = Duration::from_millis(5);
const HOURLY: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn it_looks_again_and_again_until_it_is_left() {
    let source = Fake::default();
    let (end, drawn) = watch(&source, OFTEN, vec![looked(&source, 5), Step::Press("jq")]).await;
    assert!(end.is_ok());
    assert!(drawn.contains("aok top · 3 processes: 3 S"), "{drawn}");
}

#[tokio::test]
async fn a_pause_looks_at_nothing() {
    let source = Fake::default();
    let paused = Cell::new(None);
    let wait = Step::Until(Box::new(|| {
        // Some fifty times as long as it is from one look to the next.
        let since = paused.get().unwrap_or_else(Instant::now);
        paused.set(Some(since));
        since.elapsed() > OFTEN * 50
    }));
    let (_, drawn) = watch(&source, OFTEN, vec![looked(&source, 1), Step::Press("p"), wait, Step::Press("jq")]).await;
    assert!(source.looks.get() <= 2, "{} looks", source.looks.get());
    assert!(drawn.contains("PAUSED"), "{drawn}");
}

#[tokio::test]
async fn actions_are_carried_out_in_order_and_the_last_one_is_not_lost() {
    let source = Fake { refusal: Some(ended()), holds: Cell::new(true), ..Fake::default() };
    let release = Step::Until(Box::new(|| {
        source.holds.set(false);
        true
    }));
    // Both are still on their way when the view is left.
    let steps = vec![looked(&source, 1), Step::Press("\u{c}jxtxs"), release, Step::Press("q")];
    let (end, _) = watch(&source, HOURLY, steps).await;
    let signal = |signal| Action::Signal { pid: Pid(2), signal };
    assert_eq!(*source.done.borrow(), [signal(Signal::Term), signal(Signal::Stop)]);
    assert!(end.is_ok() || end.unwrap_err().exit() == 2);
}

fn ended() -> ApiError {
    ApiError::new(Code::BadState, "process 1 has ended", "`aok ps` shows it")
}

#[tokio::test]
async fn an_end_is_told_on_the_message_line() {
    for (refusal, expected) in [
        (None, "· done: TERM to process 1"),
        (Some(ended()), "! TERM to process 1: process 1 has ended; `aok ps` shows it"),
    ] {
        let source = Fake { refusal, ..Fake::default() };
        // The look that it brings begins after its end was told.
        let steps = vec![looked(&source, 1), Step::Press("sxt"), acted(&source, 1), looked(&source, 2)];
        let (end, drawn) = watch(&source, HOURLY, steps).await;
        assert!(end.is_err() && drawn.contains(expected), "{drawn}");
    }
}

#[tokio::test]
async fn what_an_action_changed_is_looked_at_at_once() {
    let source = Fake::default();
    // The first two looks come by themselves, the next would come in an hour.
    let steps = vec![looked(&source, 2), Step::Press("xt"), looked(&source, 3), Step::Press("xs"), looked(&source, 4)];
    let watching = watch(&source, HOURLY, steps);
    assert!(tokio::time::timeout(Duration::from_secs(60), watching).await.is_ok());
    assert_eq!(source.done.borrow().len(), 2);
}

#[tokio::test]
async fn keys_are_taken_while_the_kernel_is_silent() {
    let source = Fake { silent_from: Some(1), ..Fake::default() };
    let began = Instant::now();
    let wait = Step::Until(Box::new(move || began.elapsed() > Duration::from_millis(400)));
    let (end, drawn) = watch(&source, OFTEN, vec![wait, Step::Press("\u{c}q")]).await;
    assert!(end.is_ok());
    assert!(drawn.contains("aok top · looking") && drawn.contains("no answer yet"), "{drawn}");
}

#[tokio::test]
async fn a_silent_action_does_not_keep_the_user() {
    let source = Fake { holds: Cell::new(true), ..Fake::default() };
    let watching = watch(&source, OFTEN, vec![looked(&source, 1), Step::Press("jxtq")]);
    let (end, _) = tokio::time::timeout(Duration::from_secs(60), watching).await.unwrap();
    assert_eq!(end.unwrap_err().exit(), 5);
}

#[tokio::test]
async fn a_kernel_that_goes_is_told_and_the_store_is_shown() {
    let source = Fake { gone_from: Some(3), ..Fake::default() };
    let (_, drawn) = watch(&source, OFTEN, vec![looked(&source, 6), Step::Press("jq")]).await;
    assert!(drawn.contains("the kernel is gone") && drawn.contains("no kernel · 3 processes"), "{drawn}");
}

#[test]
fn what_something_else_wrote_on_the_screen_is_drawn_over() {
    let mut terminal = Terminal::new(TestBackend::new(20, 3)).unwrap();
    let mut model = Model::new();
    let mut draw = |terminal: &mut Terminal<TestBackend>| {
        terminal.draw(|frame| view::draw(frame, &mut model, Theme { colour: false }, "1 s")).unwrap();
        terminal.backend().to_string()
    };
    let good = draw(&mut terminal);
    let mut strange = ratatui::buffer::Cell::default();
    strange.set_symbol("#");
    terminal.backend_mut().draw([(3, 1, &strange), (4, 2, &strange)].into_iter()).unwrap();
    assert!(draw(&mut terminal).contains('#'));
    forget_drawn(&mut terminal).unwrap();
    assert_eq!(draw(&mut terminal), good);
}

#[tokio::test]
async fn a_terminal_that_closes_ends_it() {
    let source = Fake::default();
    let (end, _) = watch(&source, OFTEN, vec![Step::Press("jj")]).await;
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
