//! The terminal while the view has it: raw, on its alternate screen, and given back on every way out.
//!
//! 1. [`Screen::open`] takes the terminal over.
//! 2. Dropping the screen gives it back: at the end, after an error, and when a signal ends the loop.
//! 3. A panic gives it back before its message is written, which would be lost on the alternate screen.
//!    If the view survives it (another task panicked), the next drawing takes the terminal over again.

use std::io::{self, BufWriter, Stdout, Write as _};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::cursor::{Hide, Show};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;

/// Whether the terminal is taken over. The process has but one.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The backend that draws on standard output, a whole picture at a time.
pub(super) type Backend = CrosstermBackend<BufWriter<Stdout>>;

/// A terminal that is taken over.
pub(super) struct Screen {
    /// To draw on.
    pub(super) terminal: Terminal<Backend>,
}

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// What the terminal says. It is then as it was.
    pub(super) fn open() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        let terminal = Terminal::new(CrosstermBackend::new(BufWriter::new(io::stdout())))?;
        let screen = Self { terminal };
        take_over()?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Takes the terminal over again if a panic gave it back, and tells whether it did.
///
/// # Errors
/// What the terminal says.
pub(super) fn retake() -> io::Result<bool> {
    if TAKEN.load(Ordering::Acquire) {
        return Ok(false);
    }
    take_over()?;
    Ok(true)
}

fn take_over() -> io::Result<()> {
    TAKEN.store(true, Ordering::Release);
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen, Hide)
}

fn give_back() {
    if TAKEN.swap(false, Ordering::AcqRel) {
        // A terminal that is gone needs nothing back, and there is nobody to tell.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = io::stdout().flush();
        let _ = disable_raw_mode();
    }
}
