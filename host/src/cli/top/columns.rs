//! The columns of the table: what each says of a process, how wide it is, and which go first where there
//! is no room. Both the view and the plain snapshots have them from here.

use super::figures::{Process, Row};
use crate::cli::format::{count, cut, micros, one_line, optional, usd};
use crate::process::Exit;

/// The longest foreign text that is looked at: more is on no terminal.
const LONGEST: usize = 400;

/// A column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    /// Its head.
    pub(super) title: &'static str,
    /// Terminal columns that it takes; of those that grow, at least.
    pub(super) width: u16,
    /// Its place among those that stay when there is no room; 0 stays longest.
    pub(super) rank: u8,
    /// How it uses its room.
    pub(super) kind: Kind,
    /// What it says.
    pub(super) cell: fn(&Row) -> String,
}

/// How a column uses its room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A number, to the right.
    Number,
    /// A text of at most its width.
    Word,
    /// A text that takes what is left.
    Text,
}

/// So many columns are shown before those that grow get more than they need.
const CORE: u8 = 10;

/// What those that grow get before further columns are shown.
const COMFORT: u16 = 24;

/// The column that the tree is drawn in.
pub(super) const NAME: &str = "NAME";

const fn column(title: &'static str, rank: u8, width: u16, kind: Kind, cell: fn(&Row) -> String) -> Column {
    Column { title, width, rank, kind, cell }
}

/// All columns, from the left.
pub(super) const COLUMNS: [Column; 18] = [
    column("PID", 0, 6, Kind::Number, |r| r.process.pid.to_string()),
    column("PPID", 13, 6, Kind::Number, |r| optional(r.process.ppid)),
    column("S", 2, 1, Kind::Word, |r| r.process.state.letter().to_owned()),
    column("NI", 7, 4, Kind::Number, |r| nice(&r.process)),
    column("CPU%", 3, 5, Kind::Number, |r| percent(r.cpu_percent)),
    column("SLICE", 12, 7, Kind::Number, |r| slice(r.process.slice_us)),
    column("TOK/S", 5, 5, Kind::Number, |r| rate(r.tokens_per_second)),
    column("TOKENS", 10, 6, Kind::Number, |r| count(r.process.tokens())),
    column("COST", 6, 8, Kind::Number, |r| usd(r.process.micro_usd)),
    column("PAGES", 9, 7, Kind::Number, |r| pages(&r.process)),
    column("TOOLS", 8, 5, Kind::Number, |r| count(r.process.tool_calls)),
    column("FUEL", 16, 6, Kind::Number, |r| count(r.process.fuel)),
    column("SLICES", 17, 6, Kind::Number, |r| count(r.process.slices)),
    column("GROUP", 11, 10, Kind::Word, |r| r.process.group.clone()),
    column("AGENT", 14, 12, Kind::Word, |r| r.process.agent.clone()),
    column("MODEL", 15, 18, Kind::Word, |r| optional(r.process.model.as_ref())),
    column(NAME, 1, 12, Kind::Text, |r| r.process.name.clone()),
    column("WAITS ON / END", 4, 14, Kind::Text, |r| status(&r.process)),
];

/// The columns that fit `width` with one space between them, in their order: those of the least rank that
/// have room together. There is always one.
pub(super) fn fitting(width: u16) -> Vec<&'static Column> {
    let mut ranked: Vec<&Column> = COLUMNS.iter().collect();
    ranked.sort_by_key(|c| c.rank);
    let mut room = width;
    let mut least = 0;
    for column in ranked {
        // More columns only where names and reasons are not cramped by them.
        let comfort = if least == CORE { COMFORT } else { 0 };
        let needs = column.width + u16::from(least > 0) + comfort;
        if least > 0 && needs > room {
            break;
        }
        room = room.saturating_sub(needs);
        least += 1;
    }
    COLUMNS.iter().filter(|c| c.rank < least).collect()
}

/// A foreign text on one line, of bearable length, in which nothing steers a terminal or turns its
/// writing direction round.
pub(super) fn clean(text: &str) -> String {
    let start: String = text.chars().filter(|c| !steers(*c)).take(LONGEST).collect();
    one_line(&start)
}

/// Format characters that are not seen themselves: marks of direction, joiners, the byte-order mark.
fn steers(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// [`clean`], cut to `width` terminal columns.
pub(super) fn fit(text: &str, width: u16) -> String {
    cut(&clean(text), Some(usize::from(width)))
}

/// The nice value that it runs at; `*` where somebody lends it.
fn nice(p: &Process) -> String {
    match p.effective_nice {
        Some(nice) if nice != p.nice => format!("{nice}*"),
        _ => p.nice.to_string(),
    }
}

/// A share in percent.
pub(super) fn percent(x: Option<f64>) -> String {
    optional(x.map(|x| if x < 99.95 { format!("{x:.1}") } else { format!("{x:.0}") }))
}

/// Something per second.
pub(super) fn rate(x: Option<f64>) -> String {
    optional(x.map(|x| match x {
        // Not negative, and an `as` of what is too large is the largest there is.
        100.0.. => count(x.round() as u64),
        _ => format!("{x:.1}"),
    }))
}

/// A slice of so many microseconds.
pub(super) fn slice(us: Option<u64>) -> String {
    optional(us.map(|us| match us {
        1_000..10_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => micros(us),
    }))
}

/// Pages in the window and in the store only.
fn pages(p: &Process) -> String {
    match (p.pages_resident, p.pages_swapped) {
        (None, None) => "-".to_owned(),
        (resident, swapped) => format!("{}/{}", optional(resident.map(count)), optional(swapped.map(count))),
    }
}

/// How it ended, or what keeps it from going on.
pub(super) fn status(p: &Process) -> String {
    match &p.exit {
        Some(exit @ Exit::Success(_)) => exit.status().to_owned(),
        Some(exit) => format!("{}: {}", exit.status(), exit.message()),
        None => p.waiting_on.clone().unwrap_or_else(|| "-".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::process;
    use super::*;

    #[test]
    fn ranks_are_places() {
        let mut ranks: Vec<_> = COLUMNS.iter().map(|c| usize::from(c.rank)).collect();
        ranks.sort_unstable();
        assert_eq!(ranks, (0..COLUMNS.len()).collect::<Vec<_>>());
    }

    #[test]
    fn the_less_important_go_first() {
        let titles = |width| fitting(width).iter().map(|c| c.title).collect::<Vec<_>>().join(" ");
        assert_eq!(titles(1), "PID");
        assert_eq!(titles(28), "PID S CPU% NAME");
        assert_eq!(titles(78), "PID S NI CPU% TOK/S COST PAGES TOOLS NAME WAITS ON / END");
        assert!(!titles(106).contains("TOKENS") && titles(107).contains("TOKENS"));
        assert_eq!(fitting(200).len(), COLUMNS.len());
        for width in 0..250 {
            let used: u16 = fitting(width).iter().map(|c| c.width + 1).sum();
            assert!(used <= width + 1 || used == 7, "{used} of {width}");
            assert!(COLUMNS.iter().all(|c| usize::from(c.width) >= c.title.len()), "a head is cut");
        }
    }

    #[test]
    fn figures_are_short_and_unknown_ones_a_dash() {
        let texts = |f: fn(Option<f64>) -> String, xs: &[f64]| xs.iter().map(|x| f(Some(*x))).collect::<Vec<_>>();
        assert_eq!(texts(percent, &[0.0, 5.25, 99.94, 99.99, 200.0]), ["0.0", "5.2", "99.9", "100", "200"]);
        assert_eq!(texts(rate, &[0.0, 99.9, 150.6, 20_000.0]), ["0.0", "99.9", "151", "20.0k"]);
        assert_eq!([Some(7), Some(1_250), Some(12_000), None].map(slice), ["7 µs", "1.2 ms", "12 ms", "-"]);
        assert_eq!((percent(None), rate(None)), ("-".into(), "-".into()));
        let mut p = process(1);
        assert_eq!((nice(&p), pages(&p), status(&p)), ("0".into(), "-".into(), "model".into()));
        (p.effective_nice, p.pages_resident) = (Some(-20), Some(12_345));
        assert_eq!((nice(&p), pages(&p)), ("-20*".into(), "12.3k/-".into()));
        (p.effective_nice, p.pages_swapped) = (Some(0), Some(4));
        assert_eq!((nice(&p), pages(&p)), ("0".into(), "12.3k/4".into()));
        p.exit = Some(Exit::OverQuota("fuel".into()));
        assert_eq!(status(&p), "over-quota: fuel");
        p.exit = Some(Exit::Success("a long answer".into()));
        assert_eq!(status(&p), "success");
    }

    #[test]
    fn foreign_texts_are_harmless_and_not_long() {
        assert_eq!(clean("a\u{1b}[2J\r\nb\u{9b}1m\u{7}\u{202e}c\u{200d}\u{feff}d"), "a [2J  b 1m cd");
        assert_eq!(clean(&"x".repeat(1 << 20)).len(), LONGEST);
        assert_eq!(fit("日本語テキスト", 7), "日本語…");
    }
}
