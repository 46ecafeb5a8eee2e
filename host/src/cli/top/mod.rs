//! `aok top`: the processes, live.
//!
//! Where what it shows comes from is a [`Source`]'s business. [`figures`] derives shares, rates and totals,
//! [`model`] keeps order, filter and selection, [`keys`] says what a key does, [`view`] draws, [`screen`]
//! holds the terminal, [`batch`] writes plain snapshots. This file is the loop around them. While a
//! snapshot or an action is on its way, keys are taken and the screen is drawn all the same.

mod batch;
mod columns;
mod figures;
mod kernel;
mod keys;
mod model;
mod screen;
mod view;

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _};
use std::pin::Pin;
use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyCode, KeyModifiers};
use futures_util::stream::{Stream, StreamExt as _};
use ratatui::Terminal;
use ratatui::backend::Backend;
use tokio::time::{Instant, sleep_until};

use super::error::{Error, usage};
use super::out::Out;
use super::session::Signals;
use crate::server::error::{ApiError, Code};
pub(super) use figures::Snapshot;
pub(super) use kernel::Kernel;
pub(super) use keys::Action;
use model::Model;
use view::Theme;

/// Until the second snapshot, which is the first with shares and rates.
const SOON: Duration = Duration::from_millis(300);

/// How long the view waits for what does not come.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For a look, before it says that it waits.
    look: Duration,
    /// When leaving, for actions that are on their way.
    farewell: Duration,
}

const PATIENCE: Patience = Patience { look: Duration::from_secs(5), farewell: Duration::from_secs(2) };

/// Watch processes live: what they use, what they wait on; signal and renice them
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Seconds between two looks, 0.2 to 60
    #[arg(long, short = 'd', value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
    /// Write plain snapshots instead; with --json, one object each
    #[arg(long, short)]
    batch: bool,
    /// End after N snapshots
    #[arg(short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    n: Option<u64>,
}

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.2..=60.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds from 0.2 to 60 is needed".to_owned()),
    }
}

/// What the view needs from outside.
pub(super) trait Source {
    /// Looks at all processes and the metrics: a kernel's where one runs, else what the store has.
    ///
    /// # Errors
    /// There is nothing to be seen. It is asked again at the next look.
    async fn snapshot(&self) -> Result<Snapshot, ApiError>;

    /// Carries out a signal or a nice value; never [`Action::Quit`].
    ///
    /// # Errors
    /// Why it was not done, for the user.
    async fn act(&self, action: Action) -> Result<(), ApiError>;
}

/// Runs the view on this process's terminal, or writes snapshots.
pub(super) async fn run<S: Source>(args: Args, source: &S, out: &mut Out) -> Result<(), Error> {
    if args.batch || out.json {
        return batch::run(source, args.interval, args.n, out).await;
    }
    if args.n.is_some() {
        return Err(usage("`-n` counts snapshots, and the live view has none", "add `--batch` or `--json`"));
    }
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if dumb || !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(usage(
            "the live view needs a terminal for its input and its output",
            "write snapshots with `aok top --batch` or `--json`, or run it in a terminal",
        ));
    }
    let theme = Theme { colour: std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) };
    let mut signals = Signals::listen()?;
    let mut screen = screen::Screen::open().map_err(|e| terminal_failed(&e))?;
    let mut live = Live { source, theme, every: args.interval, patience: PATIENCE, model: Model::new() };
    // The screen is dropped, and the terminal given back, before anybody reports the end.
    tokio::select! {
        end = live.run(&mut screen.terminal, EventStream::new(), screen::retake) => end,
        signal = signals.next() => Err(Error::Interrupted(signal, None)),
    }
}

fn terminal_failed(error: &impl std::fmt::Display) -> Error {
    let hint = "check the terminal, or write snapshots with `aok top --batch`";
    Error::Failed(ApiError::new(Code::Io, format!("the terminal cannot be used: {error}"), hint))
}

/// Something of the source that is on its way.
type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + 'a>>;

/// Waits for what is on its way, for ever where nothing is. Cancel safe.
async fn settled<T>(slot: &mut Option<Pending<'_, T>>) -> Result<T, ApiError> {
    let Some(pending) = slot else { return std::future::pending().await };
    let end = pending.await;
    *slot = None;
    end
}

/// The live view.
struct Live<'a, S> {
    source: &'a S,
    theme: Theme,
    every: Duration,
    patience: Patience,
    model: Model,
}

impl<'a, S: Source> Live<'a, S> {
    /// Draws and takes keys until the user leaves.
    ///
    /// `retake` is asked before each drawing whether all must be drawn anew.
    async fn run<B: Backend>(
        &mut self,
        terminal: &mut Terminal<B>,
        mut events: impl Stream<Item = io::Result<Event>> + Unpin,
        retake: impl Fn() -> io::Result<bool>,
    ) -> Result<(), Error> {
        let source = self.source;
        let mut looking: Option<Pending<'a, Snapshot>> = Some(Box::pin(source.snapshot()));
        let mut acts = Acts { source, queue: VecDeque::new(), running: None };
        // When to look next, and whether at once when the look that is on its way ends.
        let (mut next, mut again) = (Instant::now(), false);
        // When to say that a look takes long.
        let mut patience = Instant::now() + self.patience.look;
        let mut looks = 0_u32;
        let mut redraw = false;
        loop {
            if retake().map_err(|e| terminal_failed(&e))? || std::mem::take(&mut redraw) {
                forget_drawn(terminal).map_err(|e| terminal_failed(&e))?;
            }
            self.draw(terminal)?;
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        redraw = asks_for_all(&event);
                        match self.take(&event) {
                            Some(Action::Quit) => break,
                            Some(action) => {
                                self.model.tell(format!("{} …", action.name()), false);
                                acts.add(action);
                            }
                            None => {}
                        }
                    }
                    Some(Err(e)) => return Err(terminal_failed(&e)),
                    None => return Err(terminal_failed(&"it was closed")),
                },
                seen = settled(&mut looking) => {
                    self.see(seen);
                    looks = looks.saturating_add(1);
                    next = Instant::now() + if looks == 1 { self.every.min(SOON) } else { self.every };
                    if std::mem::take(&mut again) {
                        next = Instant::now();
                    }
                }
                (action, end) = acts.next() => {
                    self.tell(action, end);
                    // What it changed is of interest now; a look that began before may not show it.
                    (next, again) = (Instant::now(), looking.is_some());
                }
                () = sleep_until(next), if looking.is_none() && !self.model.paused => {
                    looking = Some(Box::pin(source.snapshot()));
                    patience = Instant::now() + self.patience.look;
                }
                () = sleep_until(patience), if looking.is_some() => {
                    self.model.look_failed("no answer yet; still waiting");
                    patience = Instant::now() + self.patience.look;
                }
            }
        }
        acts.finish(self.patience.farewell).await.map_err(Error::Failed)
    }

    fn draw<B: Backend>(&mut self, terminal: &mut Terminal<B>) -> Result<(), Error> {
        let every = format!("{} s", self.every.as_secs_f64());
        let drawn = terminal.draw(|frame| view::draw(frame, &mut self.model, self.theme, &every));
        drawn.map(drop).map_err(|e| terminal_failed(&e))
    }

    fn take(&mut self, event: &Event) -> Option<Action> {
        match event {
            Event::Key(key) => keys::press(&mut self.model, *key),
            // A changed size is drawn in the next round like everything.
            _ => None,
        }
    }

    fn see(&mut self, seen: Result<Snapshot, ApiError>) {
        match seen {
            // One that was on its way when `p` was pressed would move what is being read.
            Ok(_) if self.model.paused => {}
            Ok(snapshot) => self.model.take(snapshot),
            Err(e) => self.model.look_failed(format!("{}; {}", e.message, e.hint)),
        }
    }

    fn tell(&mut self, action: Action, end: Result<(), ApiError>) {
        match end {
            Ok(()) => self.model.tell(format!("done: {}", action.name()), false),
            Err(e) => self.model.tell(format!("{}: {}; {}", action.name(), e.message, e.hint), true),
        }
    }
}

/// Whether everything is to be drawn anew: Ctrl-L, for a screen that something else wrote on.
fn asks_for_all(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('l')
}

/// Empties the screen, so that all of it is drawn next.
///
/// [`Terminal::clear`] would ask the terminal where its cursor is, and the answer comes among the keys,
/// where somebody else reads it.
fn forget_drawn<B: Backend>(terminal: &mut Terminal<B>) -> Result<(), B::Error> {
    terminal.backend_mut().clear()?;
    // What was drawn last is now compared with nothing.
    terminal.swap_buffers();
    Ok(())
}

/// The actions that are not done yet, in their order.
struct Acts<'a, S> {
    source: &'a S,
    queue: VecDeque<Action>,
    running: Option<(Action, Pending<'a, ()>)>,
}

impl<S: Source> Acts<'_, S> {
    fn add(&mut self, action: Action) {
        self.queue.push_back(action);
    }

    /// The end of the next; never where there is none. Cancel safe.
    async fn next(&mut self) -> (Action, Result<(), ApiError>) {
        if self.running.is_none() {
            let Some(action) = self.queue.pop_front() else { return std::future::pending().await };
            self.running = Some((action, Box::pin(self.source.act(action))));
        }
        let Some((action, pending)) = &mut self.running else { return std::future::pending().await };
        let end = (*action, pending.await);
        self.running = None;
        end
    }

    /// Lets those that were asked for before leaving come to their end; the first that fails is told.
    async fn finish(mut self, patience: Duration) -> Result<(), ApiError> {
        let until = Instant::now() + patience;
        let mut end = Ok(());
        while self.running.is_some() || !self.queue.is_empty() {
            match tokio::time::timeout_at(until, self.next()).await {
                Ok((_, done)) => end = end.and(done),
                Err(_) => {
                    let hint = "`aok ps` shows what became of it";
                    return end.and(Err(ApiError::new(
                        Code::KernelGone,
                        "the kernel did not confirm the last action",
                        hint,
                    )));
                }
            }
        }
        end
    }
}

#[cfg(test)]
mod tests;
