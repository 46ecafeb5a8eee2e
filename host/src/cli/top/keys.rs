//! What each key does: to the model, or, where it takes somebody else, as an [`Action`] for the caller.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::columns::clean;
use super::model::Model;
use crate::process::{Pid, Signal};

/// The most characters of a filter or a number that is typed.
const TYPED: usize = 64;

/// What the view wants done. The caller does it and tells how it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Action {
    /// Sends a signal.
    Signal {
        /// To whom.
        pid: Pid,
        /// Which.
        signal: Signal,
    },
    /// Sets a nice value.
    Nice {
        /// Whose.
        pid: Pid,
        /// −20…19.
        nice: i8,
    },
    /// Leaves.
    Quit,
}

impl Action {
    /// What is done, as its end is told: "TERM to process 3".
    pub(super) fn name(self) -> String {
        match self {
            Self::Signal { pid, signal } => format!("{} to process {pid}", signal.name()),
            Self::Nice { pid, nice } => format!("nice {nice} for process {pid}"),
            Self::Quit => "quit".to_owned(),
        }
    }
}

/// The signal that a key chooses.
fn signal_of(key: char) -> Option<Signal> {
    match key.to_ascii_lowercase() {
        't' => Some(Signal::Term),
        'k' => Some(Signal::Kill),
        's' => Some(Signal::Stop),
        'c' => Some(Signal::Cont),
        _ => None,
    }
}

/// What is being asked on the line below the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    /// A filter, in force while it is typed; then the one before it, for who changes their mind.
    Filter {
        /// In force before.
        before: String,
    },
    /// A nice value.
    Nice {
        /// Whose.
        pid: Pid,
        /// Its name.
        name: String,
        /// What is typed.
        text: String,
        /// Whether what was typed is no nice value.
        wrong: bool,
    },
    /// Which signal.
    Signal {
        /// To whom.
        pid: Pid,
        /// Its name.
        name: String,
    },
    /// Whether KILL is meant.
    Kill {
        /// Whom.
        pid: Pid,
        /// Its name.
        name: String,
    },
}

/// Takes a key.
pub(super) fn press(model: &mut Model, key: KeyEvent) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    model.forget_notice();
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    if control && key.code == KeyCode::Char('c') {
        return Some(Action::Quit);
    }
    let code = match key.code {
        // The one control key that is of use while typing; the others mean nothing.
        KeyCode::Char('u') if control => KeyCode::Delete,
        KeyCode::Char(_) if control || key.modifiers.contains(KeyModifiers::ALT) => return None,
        code => code,
    };
    if let Some(prompt) = model.prompt.take() {
        return answer(model, prompt, code);
    }
    if model.help {
        // Any key but those that leave the program closes it.
        model.help = false;
        return (code == KeyCode::Char('q')).then_some(Action::Quit);
    }
    command(model, code)
}

/// A key while nothing is asked.
fn command(model: &mut Model, code: KeyCode) -> Option<Action> {
    match code {
        KeyCode::Char('q') => return Some(Action::Quit),
        KeyCode::Esc if model.filter.is_empty() => return Some(Action::Quit),
        KeyCode::Esc => model.set_filter(""),
        KeyCode::Up | KeyCode::Char('k') => model.step(-1),
        KeyCode::Down | KeyCode::Char('j') => model.step(1),
        KeyCode::PageUp => model.page(-1),
        KeyCode::PageDown => model.page(1),
        KeyCode::Home => model.first(),
        KeyCode::End => model.last(),
        KeyCode::Char('/') => model.prompt = Some(Prompt::Filter { before: model.filter.clone() }),
        KeyCode::Char('s') => model.sort_next(),
        KeyCode::Char('r') => model.turn(),
        KeyCode::Char('t') => model.toggle_tree(),
        KeyCode::Char('p') => model.paused = !model.paused,
        KeyCode::Char('h' | '?') => model.help = true,
        KeyCode::Char('n') => {
            ask(model, |pid, name| Prompt::Nice { pid, name, text: String::new(), wrong: false });
        }
        KeyCode::Char('x') => ask(model, |pid, name| Prompt::Signal { pid, name }),
        _ => {}
    }
    None
}

/// Asks something about the selected process, which stays the one that is meant.
fn ask(model: &mut Model, prompt: impl FnOnce(Pid, String) -> Prompt) {
    model.pin();
    match model.selected().map(|row| (row.process.pid, clean(&row.process.name))) {
        Some((pid, name)) => model.prompt = Some(prompt(pid, name)),
        None => model.tell("there is no process to choose", true),
    }
}

/// A key while `prompt` is asked, which is no longer the model's.
fn answer(model: &mut Model, prompt: Prompt, code: KeyCode) -> Option<Action> {
    match (prompt, code) {
        (Prompt::Filter { before }, KeyCode::Esc) => model.set_filter(before),
        (Prompt::Filter { .. }, KeyCode::Enter) => {}
        (prompt @ Prompt::Filter { .. }, code) => {
            let mut text = model.filter.clone();
            if edit(&mut text, code) {
                model.set_filter(text);
            }
            model.prompt = Some(prompt);
        }
        (_, KeyCode::Esc) => {}
        (Prompt::Nice { pid, text, .. }, KeyCode::Enter) if nice(&text).is_some() => {
            return nice(&text).map(|nice| Action::Nice { pid, nice });
        }
        (Prompt::Nice { pid, name, mut text, .. }, code) => {
            edit(&mut text, code);
            model.prompt = Some(Prompt::Nice { pid, name, text, wrong: code == KeyCode::Enter });
        }
        (Prompt::Signal { pid, name }, KeyCode::Char(key)) => match signal_of(key) {
            Some(Signal::Kill) => model.prompt = Some(Prompt::Kill { pid, name }),
            Some(signal) => return Some(Action::Signal { pid, signal }),
            None => model.prompt = Some(Prompt::Signal { pid, name }),
        },
        (prompt @ Prompt::Signal { .. }, _) => model.prompt = Some(prompt),
        (Prompt::Kill { pid, .. }, KeyCode::Char('y' | 'Y')) => {
            return Some(Action::Signal { pid, signal: Signal::Kill });
        }
        // Only a yes is one.
        (Prompt::Kill { .. }, _) => model.tell("nothing was killed", false),
    }
    None
}

/// The nice value that is typed, if it is one.
fn nice(text: &str) -> Option<i8> {
    text.trim().replace('−', "-").parse().ok().filter(|n| (-20..=19).contains(n))
}

/// Changes a typed text, and tells whether it did.
fn edit(text: &mut String, code: KeyCode) -> bool {
    match code {
        KeyCode::Char(c) if !c.is_control() && text.chars().count() < TYPED => text.push(c),
        KeyCode::Backspace => return text.pop().is_some(),
        KeyCode::Delete => text.clear(),
        _ => return false,
    }
    true
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::figures::tests::process;
    use super::super::model::Sort;
    use super::super::model::tests::seen;
    use super::*;

    pub(in crate::cli::top) fn key(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    /// Presses what is typed; `\n` is Enter, `\u{1b}` Esc, `\u{8}` Backspace.
    fn typed(model: &mut Model, text: &str) -> Option<Action> {
        let code = |c| match c {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            '\u{8}' => KeyCode::Backspace,
            c => KeyCode::Char(c),
        };
        text.chars().map(|c| press(model, key(code(c)))).last().flatten()
    }

    fn model() -> Model {
        let mut model = seen((1..=30).map(process).collect());
        model.sort_next();
        model.visible(10).1.count();
        model
    }

    #[test]
    fn movement() {
        let mut m = model();
        for (code, line) in [
            (KeyCode::Down, 1),
            (KeyCode::Char('j'), 2),
            (KeyCode::Up, 1),
            (KeyCode::Char('k'), 0),
            (KeyCode::PageDown, 10),
            (KeyCode::PageUp, 0),
            (KeyCode::End, 29),
            (KeyCode::Home, 0),
            (KeyCode::Left, 0),
        ] {
            assert_eq!(press(&mut m, key(code)), None);
            assert_eq!(m.cursor(), line, "{code:?}");
        }
    }

    #[test]
    fn switches() {
        let mut m = model();
        typed(&mut m, "srtph");
        assert!(m.sort == Sort::Tokens && m.reverse && m.tree && m.paused && m.help);
        // The key that closes the help does nothing else.
        typed(&mut m, "p");
        assert!(m.paused && !m.help);
        typed(&mut m, "rtp?");
        assert!(!m.reverse && !m.tree && !m.paused && m.help);
    }

    #[test]
    fn ways_out() {
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        for prepared in ["", "h", "x", "n1", "/a", "xk"] {
            let mut m = model();
            typed(&mut m, prepared);
            assert_eq!(press(&mut m, control('c')), Some(Action::Quit), "after {prepared:?}");
        }
        assert_eq!(typed(&mut model(), "q"), Some(Action::Quit));
        assert_eq!(typed(&mut model(), "hq"), Some(Action::Quit));
        assert_eq!(typed(&mut model(), "\u{1b}"), Some(Action::Quit));
        // What is open is closed first, then the filter goes.
        assert_eq!(typed(&mut model(), "h\u{1b}"), None);
        assert_eq!(typed(&mut model(), "x\u{1b}"), None);
        let mut m = model();
        assert_eq!(typed(&mut m, "/p1\n\u{1b}"), None);
        assert_eq!(m.filter, "");
        assert_eq!(typed(&mut m, "\u{1b}"), Some(Action::Quit));
        // Neither other control keys nor releases are commands.
        assert_eq!(press(&mut m, control('q')), None);
        let released = KeyEvent { kind: KeyEventKind::Release, ..key(KeyCode::Char('q')) };
        assert_eq!(press(&mut m, released), None);
    }

    #[test]
    fn a_filter_is_in_force_while_it_is_typed() {
        let mut m = model();
        typed(&mut m, "/P12");
        assert_eq!((m.len(), m.filter.as_str()), (1, "P12"));
        typed(&mut m, "\u{8}");
        assert_eq!(m.len(), 11);
        typed(&mut m, "\n");
        assert_eq!((m.prompt.clone(), m.len()), (None, 11));
        // Another one that is given up leaves it as it was.
        typed(&mut m, "/zz");
        assert_eq!(m.len(), 0);
        typed(&mut m, "\u{1b}");
        assert_eq!(m.filter, "P1");
        press(&mut m, key(KeyCode::Char('/')));
        press(&mut m, KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL));
        typed(&mut m, &format!("\u{8}{}", "q".repeat(200)));
        assert_eq!(m.filter.len(), TYPED);
    }

    #[test]
    fn nice_is_checked_where_it_is_typed() {
        let pid = Pid(2);
        for (text, nice) in [("5", 5), ("-20", -20), ("−3", -3), ("+19", 19), (" 0 ", 0)] {
            assert_eq!(typed(&mut model(), &format!("jn{text}\n")), Some(Action::Nice { pid, nice }), "{text}");
        }
        for text in ["", "20", "-21", "x", "1.5", "999999999999", "- 1"] {
            let mut m = model();
            assert_eq!(typed(&mut m, &format!("jn{text}\n")), None, "{text}");
            assert!(
                matches!(&m.prompt, Some(Prompt::Nice { wrong: true, text: t, .. }) if t == text),
                "{:?}",
                m.prompt
            );
            // Another key is another try.
            press(&mut m, key(KeyCode::Delete));
            assert_eq!(typed(&mut m, "7\n"), Some(Action::Nice { pid, nice: 7 }));
            assert_eq!(m.prompt, None);
        }
    }

    #[test]
    fn signals_go_to_the_selected_one_and_kill_is_asked_twice() {
        let pid = Pid(3);
        for (key, signal) in [("t", Signal::Term), ("s", Signal::Stop), ("c", Signal::Cont), ("T", Signal::Term)] {
            assert_eq!(typed(&mut model(), &format!("jjx{key}")), Some(Action::Signal { pid, signal }), "{key}");
        }
        assert_eq!(typed(&mut model(), "jjxky"), Some(Action::Signal { pid, signal: Signal::Kill }));
        for no in ["n", "\n", "k", "q"] {
            let mut m = model();
            assert_eq!(typed(&mut m, &format!("jjxk{no}")), None);
            assert_eq!((m.prompt.is_none(), m.notice().unwrap().text.as_str()), (true, "nothing was killed"));
        }
        let mut m = model();
        assert_eq!(typed(&mut m, "jjxz\n"), None);
        assert!(matches!(m.prompt, Some(Prompt::Signal { .. })));
    }

    #[test]
    fn who_is_asked_about_is_meant_whatever_comes_between() {
        let start = std::time::Instant::now();
        let mut m = model();
        typed(&mut m, "x");
        let others = (2..=4).map(process).collect();
        m.take(super::super::figures::tests::snapshot(start, 9_000, others));
        assert_eq!(typed(&mut m, "t"), Some(Action::Signal { pid: Pid(1), signal: Signal::Term }));
    }

    #[test]
    fn nobody_cannot_be_asked_about() {
        let mut m = seen(Vec::new());
        for c in ["x", "n"] {
            assert_eq!(typed(&mut m, c), None);
            assert!(m.prompt.is_none() && m.notice().unwrap().bad);
        }
        for code in [KeyCode::Down, KeyCode::PageDown, KeyCode::End, KeyCode::Up, KeyCode::Home] {
            press(&mut m, key(code));
        }
        assert_eq!((m.cursor(), m.notice()), (0, None));
    }
}
