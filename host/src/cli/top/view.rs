//! Draws the model. It changes nothing but where the table is scrolled to, works at every size from 1×1
//! up, and says nothing by colour alone. Every foreign text goes through [`clean`] or [`fit`].

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Clear, Paragraph, Row as TableRow, Table};

use super::columns::{Column, Kind, NAME, clean, fit, fitting, percent, rate, slice, status};
use super::figures::{Row, STATES, Totals};
use super::keys::Prompt;
use super::model::{Model, Shown};
use crate::cli::format::{bytes, count, optional, usd};
use crate::process::ProcessState;

/// What the last line says while nothing is asked; as much of it as fits.
const KEYS: [&str; 9] =
    ["h help", "q quit", "/ filter", "s sort", "x signal", "n nice", "t tree", "r reverse", "p pause"];

/// What `h` shows.
const HELP: &str = "
 Up Down k j   a process up, down      s  next order: cpu pid tokens cost
 PgUp PgDn     a page up, down            name state
 Home          the first line,         r  reverse the order
               whoever comes there     t  tree, or list
 End           the last process        p  pause, or go on
 Ctrl-L        draw all anew           n  nice: -20 (most) to 19 (least)
 q Ctrl-C      leave                   x  signal: TERM KILL STOP CONT
 Esc           give up what is asked,  /  filter: a part of name, agent,
               else the filter,           group or state, or one letter:
               else leave              R running     A waiting for approval
                                       S waiting     T stopped
 CPU%   of one worker                  W swapped out Z ended
 NI *   lent by who waits for it
 PAGES  in the window / swapped out    Any key goes back.
 TOK/S  prompt and answer";

/// Deepest indentation in the tree; deeper ones are drawn there too.
const DEEPEST: usize = 8;

/// How things are set apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    /// Whether there may be colours. Bold, dim and reverse are no colours.
    pub(super) colour: bool,
}

impl Theme {
    fn colour(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn state(self, state: ProcessState) -> Style {
        match state {
            ProcessState::Runnable => self.colour(Color::Green),
            ProcessState::Approval => self.colour(Color::Yellow).add_modifier(Modifier::BOLD),
            ProcessState::Waiting => Style::new(),
            ProcessState::Stopped => self.colour(Color::Magenta),
            ProcessState::Swapped | ProcessState::Zombie => Style::new().add_modifier(Modifier::DIM),
        }
    }
}

/// How many lines each part has, from the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    totals: u16,
    detail: u16,
    /// A line of its own for prompt and notice; else they take the place of the keys.
    message: u16,
    keys: u16,
}

impl Parts {
    fn of(height: u16) -> Self {
        match height {
            16.. => Self { totals: 3, detail: 2, message: 1, keys: 1 },
            8.. => Self { totals: 2, detail: 1, message: 0, keys: 1 },
            4.. => Self { totals: 1, detail: 0, message: 0, keys: 1 },
            2.. => Self { totals: 0, detail: 0, message: 0, keys: 1 },
            _ => Self { totals: 0, detail: 0, message: 0, keys: 0 },
        }
    }
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model, theme: Theme, every: &str) {
    let area = frame.area();
    let parts = Parts::of(area.height);
    let mut top = area.y;
    let mut take = |height: u16| {
        let part = Rect { y: top, height: height.min(area.bottom().saturating_sub(top)), ..area };
        top += part.height;
        part
    };
    let totals = take(parts.totals);
    let table = take(area.height.saturating_sub(parts.totals + parts.detail + parts.message + parts.keys));
    let (detail, message, keys) = (take(parts.detail), take(parts.message), take(parts.keys));
    lines(frame, totals, &totals_text(model, every), Style::new().add_modifier(Modifier::BOLD));
    if model.help {
        frame.render_widget(Clear, table);
        frame.render_widget(Paragraph::new(HELP), table);
    } else {
        draw_table(frame, table, model, theme);
    }
    if let Some(row) = model.selected() {
        lines(frame, detail, &detail_text(row), Style::new());
    }
    let footer = [keys_text(keys.width)];
    match said(model, theme) {
        Some(said) if message.height == 0 => draw_said(frame, keys, &said),
        said => {
            lines(frame, keys, &footer, Style::new().add_modifier(Modifier::DIM));
            if let Some(said) = said {
                draw_said(frame, message, &said);
            }
        }
    }
}

/// Writes lines, each cut to the width.
fn lines(frame: &mut Frame<'_>, area: Rect, texts: &[String], style: Style) {
    let lines: Vec<Line<'_>> = texts.iter().map(|t| Line::from(fit(t, area.width))).collect();
    frame.render_widget(Paragraph::new(lines).style(style), area);
}

/// Writes what is asked or told, and shows where the next letter goes.
fn draw_said(frame: &mut Frame<'_>, area: Rect, said: &Said) {
    let text = format!("{}{}", said.text, said.keys);
    lines(frame, area, &[text], said.style);
    if said.typing && !area.is_empty() {
        let width = u16::try_from(Line::from(clean(&said.text)).width()).unwrap_or(u16::MAX);
        frame.set_cursor_position((area.x + width.min(area.width - 1), area.y));
    }
}

/// The table: its head, and as many processes as fit.
fn draw_table(frame: &mut Frame<'_>, area: Rect, model: &mut Model, theme: Theme) {
    // The first column marks the selected line for who sees no reverse; a space follows it.
    let room = area.width.saturating_sub(2);
    let columns = fitting(room);
    let widths = widths(&columns, room);
    let head = columns.iter().map(|c| aligned(c, c.title.to_owned()));
    let head = TableRow::new(std::iter::once(Cell::default()).chain(head))
        .style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
    let cursor = model.cursor();
    let tree = model.tree;
    let (offset, visible) = model.visible(usize::from(area.height.saturating_sub(1)));
    let rows = visible.enumerate().map(|(i, (shown, row))| {
        let selected = offset + i == cursor;
        let cells = columns.iter().zip(&widths).map(|(c, width)| cell(c, *width, row, tree.then_some(shown)));
        let mark = Cell::from(if selected { ">" } else { " " });
        let style = theme.state(row.process.state);
        let style = if selected { style.add_modifier(Modifier::REVERSED) } else { style };
        TableRow::new(std::iter::once(mark).chain(cells)).style(style)
    });
    let constraints = std::iter::once(1).chain(widths.iter().copied()).map(Constraint::Length);
    let table = Table::new(rows.collect::<Vec<_>>(), constraints.collect::<Vec<_>>()).header(head).column_spacing(1);
    frame.render_widget(table, area);
    if model.len() == 0 && area.height > 1 {
        let text = match (model.live, model.all()) {
            (None, _) => "looking …",
            (_, 0) => "no processes",
            _ => "no process matches the filter",
        };
        let below = Rect { y: area.y + 1, height: 1, ..area };
        lines(frame, below, &[format!("  {text}")], Style::new().add_modifier(Modifier::DIM));
    }
}

/// The width of each column: what is left goes to those that grow, the status first among equals.
fn widths(columns: &[&Column], width: u16) -> Vec<u16> {
    let spaces = u16::try_from(columns.len().saturating_sub(1)).unwrap_or(u16::MAX);
    let fixed: u16 = columns.iter().map(|c| c.width).sum();
    let mut left = width.saturating_sub(fixed.saturating_add(spaces));
    let mut growing = columns.iter().filter(|c| c.kind == Kind::Text).count();
    let grow = |c: &&Column| {
        if c.kind != Kind::Text {
            return c.width;
        }
        // The last one takes the odd rest; a name is seldom longer than this.
        let most = if growing > 1 { 32u16.saturating_sub(c.width).min(left / 2) } else { left };
        growing -= 1;
        left -= most;
        c.width + most
    };
    columns.iter().map(grow).collect()
}

fn cell(column: &Column, width: u16, row: &Row, tree: Option<Shown>) -> Cell<'static> {
    let text = clean(&(column.cell)(row));
    let text = match tree {
        Some(Shown { depth: depth @ 1.., .. }) if column.title == NAME => {
            format!("{}└ {text}", "  ".repeat((depth - 1).min(DEEPEST)))
        }
        _ => text,
    };
    aligned(column, fit(&text, width))
}

fn aligned(column: &Column, text: String) -> Cell<'static> {
    let text = Text::from(text);
    Cell::from(if column.kind == Kind::Number { text.right_aligned() } else { text })
}

/// The header: who and how many, what they use, how they are shown.
fn totals_text(model: &Model, every: &str) -> [String; 3] {
    let t = &model.totals;
    let who = match model.live {
        None => "aok top · looking".to_owned(),
        Some(live) => format!("aok top · {}", who_text(live, t)),
    };
    let used = used_text(t);
    let direction = if model.reverse { " reversed" } else { "" };
    let mut how = vec![format!("by {}{direction}", model.sort.name())];
    if model.tree {
        how.push("tree".to_owned());
    }
    if !model.filter.is_empty() {
        how.push(format!("filter {:?}: {}", clean(&model.filter), model.len()));
    }
    how.push(format!("line {} of {}", (model.cursor() + 1).min(model.len()), model.len()));
    how.push(if model.paused { "PAUSED, p goes on".to_owned() } else { format!("every {every}") });
    [who, used, how.join(" · ")]
}

/// Who there is, and what they came to: a kernel where there is one, processes by state, cost, memory.
pub(super) fn who_text(live: bool, t: &Totals) -> String {
    let there = |s: &ProcessState| t.states.get(s.letter()).filter(|n| **n > 0).map(|n| format!("{n} {}", s.letter()));
    let states: Vec<String> = STATES.iter().filter_map(there).collect();
    let colon = if states.is_empty() { "" } else { ": " };
    let kernel = if live { "" } else { "no kernel · " };
    let all: u64 = t.states.values().sum();
    let (cost, memory) = (usd(t.micro_usd), optional(t.memory_bytes.map(bytes)));
    format!("{kernel}{all} processes{colon}{} · {cost} · {memory}", states.join(", "))
}

/// What all of them use now.
pub(super) fn used_text(t: &Totals) -> String {
    let cpu = match (t.cpu_percent, t.cpu_mean_percent) {
        (Some(now), _) => format!("{}%", percent(Some(now))),
        (None, Some(mean)) => format!("{}% (mean)", percent(Some(mean))),
        (None, None) => "-".to_owned(),
    };
    let (workers, load) = (optional(t.workers), optional(t.scheduler_load.map(|x| format!("{x:.2}"))));
    let (slice, tokens, tools) = (slice(t.slice_us), rate(t.tokens_per_second), rate(t.tool_calls_per_second));
    format!("workers {workers} · cpu {cpu} · load {load} · slice {slice} · {tokens} tok/s · {tools} tools/s")
}

/// Who the selected process is, and what it does.
fn detail_text(row: &Row) -> [String; 2] {
    let p = &row.process;
    let name = clean(&p.name);
    let doing = match (&p.exit, &p.waiting_on) {
        (Some(_), _) => status(p),
        (None, Some(what)) => format!("waits on {what}"),
        (None, None) => super::figures::word(p.state).to_owned(),
    };
    let task = p.task.as_ref().map(|t| format!(" · task: {t}")).unwrap_or_default();
    let doing = format!("{} {name}: {doing}{task}", p.pid);
    let mut who = vec![format!("agent {}", p.agent), format!("group {}", p.group)];
    who.extend(p.model.clone());
    who.push(match (p.effective_nice.filter(|n| *n != p.nice), p.inherits_from) {
        (Some(at), Some(from)) => format!("nice {}, runs at {at} lent by {from}", p.nice),
        (Some(at), None) => format!("nice {}, runs at {at}", p.nice),
        (None, _) => format!("nice {}", p.nice),
    });
    who.extend(p.tree.map(|root| format!("tree {root}")));
    who.push(format!("{} slices, {} fuel", count(p.slices), count(p.fuel)));
    who.push(format!("{} cached", count(p.tokens_cached)));
    [doing, who.join(" · ")]
}

/// What is asked or told.
struct Said {
    text: String,
    /// What may be pressed, behind it.
    keys: &'static str,
    style: Style,
    /// Whether letters go to the end of the text.
    typing: bool,
}

fn said(model: &Model, theme: Theme) -> Option<Said> {
    let bad = theme.colour(Color::Red).add_modifier(Modifier::BOLD);
    let style = Style::new().add_modifier(Modifier::BOLD);
    let asks = |text| Said { text, keys: "", style, typing: false };
    Some(match &model.prompt {
        Some(Prompt::Filter { .. }) => {
            let keys = "  [Enter keeps, Esc gives up]";
            Said { keys, typing: true, ..asks(format!("filter: {}", model.filter)) }
        }
        Some(Prompt::Nice { pid, name, text, wrong: false }) => {
            let text = format!("nice of {pid} ({name}), -20 to 19: {text}");
            Said { keys: "  [Enter, Esc]", typing: true, ..asks(text) }
        }
        Some(Prompt::Nice { pid, text, wrong: true, .. }) => {
            let text = format!("a whole number from -20 to 19! nice of {pid}: {text}");
            Said { text, keys: "  [Enter, Esc]", style: bad, typing: true }
        }
        Some(Prompt::Signal { pid, name }) => {
            asks(format!("signal: t TERM, k KILL, s STOP, c CONT, Esc none; to {pid} ({name})"))
        }
        Some(Prompt::Kill { pid, name }) => {
            Said { style: bad, ..asks(format!("KILL {pid} ({name}) without a chance to finish? y/N")) }
        }
        None => {
            let notice = model.notice()?;
            let (mark, style) = if notice.bad { ("!", bad) } else { ("·", style) };
            Said { style, ..asks(format!("{mark} {}", notice.text)) }
        }
    })
}

/// As many of the keys as fit whole.
fn keys_text(width: u16) -> String {
    let mut text = String::new();
    for key in KEYS {
        if text.len() + 2 + key.len() > usize::from(width) {
            break;
        }
        text.push_str(if text.is_empty() { "" } else { "  " });
        text.push_str(key);
    }
    text
}

#[cfg(test)]
mod tests {
    use crossterm::event::KeyCode;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::figures::Process;
    use super::super::figures::tests::process;
    use super::super::keys::{press, tests::key};
    use super::super::model::tests::seen;
    use super::*;
    use crate::process::{Exit, Pid};

    /// What is drawn, line by line, without the spaces at the ends.
    fn drawn(model: &mut Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model, Theme { colour: false }, "1 s")).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn typed(model: &mut Model, text: &str) {
        for c in text.chars() {
            press(model, key(if c == '\n' { KeyCode::Enter } else { KeyCode::Char(c) }));
        }
    }

    /// One of each state.
    fn one_of_each() -> Vec<Process> {
        let p = |pid, name: &str, state, cpu: u64, tokens: u64| Process {
            name: name.into(),
            state,
            cpu_us: Some(cpu),
            tokens_out: tokens,
            waiting_on: None,
            tool_calls: pid * 3,
            micro_usd: Some(pid * 1_234),
            pages_resident: Some(12),
            pages_swapped: Some(pid),
            ..process(pid)
        };
        vec![
            Process { slice_us: Some(1_250), ..p(1, "planner", ProcessState::Runnable, 912_000, 40) },
            Process {
                ppid: Some(Pid(1)),
                waiting_on: Some("model script/x".into()),
                nice: 5,
                effective_nice: Some(-3),
                inherits_from: Some(Pid(1)),
                tree: Some(Pid(1)),
                task: Some("read the notes\nand sum up".into()),
                ..p(2, "reader", ProcessState::Waiting, 310_000, 412)
            },
            Process {
                ppid: Some(Pid(2)),
                waiting_on: Some("approval 7".into()),
                ..p(3, "writer", ProcessState::Approval, 0, 0)
            },
            p(4, "spinner", ProcessState::Stopped, 0, 0),
            p(5, "dormant", ProcessState::Swapped, 0, 0),
            Process {
                exit: Some(Exit::Failure("no such file: a.txt".into())),
                ..p(6, "courier", ProcessState::Zombie, 0, 0)
            },
        ]
    }

    #[test]
    fn eighty_columns() {
        let mut model = seen(one_of_each());
        press(&mut model, key(KeyCode::Down));
        let lines = drawn(&mut model, 80, 24);
        let expected = [
            "aok top · 6 processes: 1 R, 1 A, 1 S, 1 T, 1 W, 1 Z · $0.0259 · 123 MB",
            "workers 2 · cpu 122% · load 1.50 · slice 1.2 ms · 452 tok/s · 0.5 tools/s",
            "by cpu · line 2 of 6 · every 1 s",
            "     PID S   NI  CPU% TOK/S     COST   PAGES TOOLS NAME          WAITS ON / END",
            "       1 R    0  91.2  40.0  $0.0012    12/1     3 planner       -",
            ">      2 S  -3*  31.0   412  $0.0024    12/2     6 reader        model script/x",
            "       3 A    0   0.0   0.0  $0.0037    12/3     9 writer        approval 7",
            "       4 T    0   0.0   0.0  $0.0049    12/4    12 spinner       -",
            "       5 W    0   0.0   0.0  $0.0061    12/5    15 dormant       -",
            "       6 Z    0   0.0   0.0  $0.0074    12/6    18 courier       failure: no su…",
        ];
        assert_eq!(lines[..10], expected, "\n{}", lines.join("\n"));
        let end = [
            "2 reader: waits on model script/x · task: read the notes and sum up",
            "agent assistant · group users · script/x · nice 5, runs at -3 lent by 1 · tree …",
            "",
            "h help  q quit  / filter  s sort  x signal  n nice  t tree  r reverse  p pause",
        ];
        assert_eq!(lines[20..], end, "\n{}", lines.join("\n"));
    }

    #[test]
    fn a_wide_terminal_has_every_column() {
        let mut model = seen(one_of_each());
        let lines = drawn(&mut model, 200, 40);
        for title in super::super::columns::COLUMNS.map(|c| c.title) {
            assert!(lines[3].contains(title), "{title} in {}", lines[3]);
        }
        let lines = drawn(&mut model, 140, 40);
        assert!(lines[3].contains("PAGES") && lines[3].contains("GROUP"), "{}", lines.join("\n"));
        assert!(lines[9].ends_with("failure: no such file: a.txt"), "{}", lines.join("\n"));
    }

    #[test]
    fn a_narrow_one_has_what_matters() {
        let lines = drawn(&mut seen(one_of_each()), 30, 8);
        let expected = [
            "aok top · 6 processes: 1 R, 1…",
            "workers 2 · cpu 122% · load 1…",
            "     PID S  CPU% NAME",
            ">      1 R  91.2 planner",
            "       2 S  31.0 reader",
            "       3 A   0.0 writer",
            "1 planner: running",
            "h help  q quit  / filter",
        ];
        assert_eq!(lines, expected, "\n{}", lines.join("\n"));
    }

    #[test]
    fn every_size_is_drawn_in_every_mode() {
        for mode in ["", "h", "/pla", "n99\n", "x", "xk", "t", "/zzz\n"] {
            let mut model = seen(one_of_each());
            typed(&mut model, mode);
            let widths = [1, 2, 5, 19, 34, 81];
            for (width, height) in widths.into_iter().flat_map(|w| (1..=17).map(move |h| (w, h))) {
                assert_eq!(drawn(&mut model, width, height).len(), usize::from(height), "{mode} {width}x{height}");
            }
        }
        drawn(&mut seen(one_of_each()), 500, 200);
        drawn(&mut Model::new(), 1, 1);
    }

    #[test]
    fn the_tree_is_indented_and_not_without_end() {
        let mut model = seen(one_of_each());
        typed(&mut model, "t");
        let lines = drawn(&mut model, 80, 24);
        assert!(lines[5].contains(" └ reader ") && lines[6].contains("   └ writ"), "\n{}", lines.join("\n"));
        let chain = (1..=100).map(|pid| Process { ppid: (pid > 1).then(|| Pid(pid - 1)), ..process(pid) });
        let mut model = seen(chain.collect());
        typed(&mut model, "t");
        press(&mut model, key(KeyCode::End));
        assert!(drawn(&mut model, 140, 24).iter().any(|l| l.contains("└ p100")));
    }

    #[test]
    fn prompts_and_notices_are_on_their_line() {
        let line = |keys: &str| {
            let mut model = seen(one_of_each());
            typed(&mut model, keys);
            drawn(&mut model, 80, 24)[22].clone()
        };
        assert_eq!(line("/rea"), "filter: rea  [Enter keeps, Esc gives up]");
        assert_eq!(line("n-5"), "nice of 1 (planner), -20 to 19: -5  [Enter, Esc]");
        assert_eq!(line("n20\n"), "a whole number from -20 to 19! nice of 1: 20  [Enter, Esc]");
        assert_eq!(line("n\n"), "a whole number from -20 to 19! nice of 1:   [Enter, Esc]");
        assert_eq!(line("x"), "signal: t TERM, k KILL, s STOP, c CONT, Esc none; to 1 (planner)");
        assert_eq!(line("xk"), "KILL 1 (planner) without a chance to finish? y/N");
        assert_eq!(line("xkn"), "· nothing was killed");
        // The cursor is where the next letter goes, whatever was typed.
        let mut model = seen(one_of_each());
        typed(&mut model, "/日本  [x");
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &mut model, Theme { colour: false }, "1 s")).unwrap();
        terminal.backend_mut().assert_cursor_position((16, 22));
        let mut model = seen(one_of_each());
        model.look_failed("the store failed");
        assert_eq!(drawn(&mut model, 80, 24)[22], "! the store failed");
        // Where there is no line of its own, it takes that of the keys.
        assert_eq!(drawn(&mut model, 80, 10)[9], "! the store failed");
        typed(&mut model, "p");
        assert!(drawn(&mut model, 80, 24)[2].ends_with("PAUSED, p goes on"));
        typed(&mut model, "/zz\n");
        let lines = drawn(&mut model, 80, 24);
        assert!(lines[2].contains("filter \"zz\": 0"), "{}", lines[2]);
        assert_eq!(lines[4], "  no process matches the filter");
        typed(&mut model, "h");
        assert!(drawn(&mut model, 80, 24).iter().any(|l| l.ends_with("answer")), "the help has no room");
        assert!(HELP.lines().all(|l| l.len() < 80));
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let evil = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\r\n\u{202e}x";
        let p = Process {
            name: evil.into(),
            agent: evil.into(),
            group: evil.into(),
            model: Some(evil.into()),
            waiting_on: Some(evil.into()),
            task: Some(evil.into()),
            ..process(1)
        };
        let dead = Process { exit: Some(Exit::Failure(evil.into())), ..p.clone() };
        for keys in ["", "x", "n", "xk", "t"] {
            let mut model = seen(vec![p.clone(), Process { pid: Pid(2), ..dead.clone() }]);
            typed(&mut model, keys);
            model.tell(evil, true);
            for width in [30, 80, 200] {
                let all = drawn(&mut model, width, 24).concat();
                assert!(!all.chars().any(|c| c.is_control() || c == '\u{202e}'), "{all:?}");
                assert!(width < 80 || all.contains("]0;owned"), "{all}");
            }
        }
    }

    #[test]
    fn wide_characters_keep_the_columns() {
        let name = "日本語のとても長い名前のエージェント";
        let mut model = seen(vec![Process { name: name.into(), waiting_on: Some("here".into()), ..process(1) }]);
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &mut model, Theme { colour: true }, "1 s")).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let head = (0..80).find(|x| buffer[(*x, 3)].symbol() == "W").unwrap();
        assert_eq!(buffer[(head, 4)].symbol(), "h");
    }

    #[test]
    fn colour_is_for_who_wants_it() {
        let colours = |colour| {
            let mut model = seen(one_of_each());
            model.tell("bad", true);
            let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
            terminal.draw(|frame| draw(frame, &mut model, Theme { colour }, "1 s")).unwrap();
            terminal
                .backend()
                .buffer()
                .content()
                .iter()
                .filter(|c| c.fg != Color::Reset || c.bg != Color::Reset)
                .count()
        };
        assert_eq!(colours(false), 0);
        assert!(colours(true) > 0);
    }
}
