//! Numbers, sizes, times and foreign texts as people read them. Pure.

/// 1234567 as `1.2M`; below 10 000 as it is.
pub(super) fn count(n: u64) -> String {
    scaled(n, 1_000, &["", "k", "M", "G", "T", "P", "E"], 10_000)
}

/// 1234 as `1.2 kB`.
pub(super) fn bytes(n: u64) -> String {
    scaled(n, 1_000, &[" B", " kB", " MB", " GB", " TB", " PB", " EB"], 1_000)
}

fn scaled(n: u64, step: u64, units: &[&str], plain_below: u64) -> String {
    if n < plain_below {
        return format!("{n}{}", units[0]);
    }
    let mut scale = step;
    let mut unit = 1;
    while n / scale >= step && unit + 1 < units.len() {
        scale = scale.saturating_mul(step);
        unit += 1;
    }
    let (whole, tenth) = (n / scale, n % scale / (scale / 10));
    if whole >= 100 { format!("{whole}{}", units[unit]) } else { format!("{whole}.{tenth}{}", units[unit]) }
}

/// Microseconds as `3 ms`.
pub(super) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000_000 => format!("{} ms", us / 1_000),
        10_000_000..600_000_000 => format!("{} s", us / 1_000_000),
        _ => format!("{} min", us / 60_000_000),
    }
}

/// Micro-USD as `$0.0012`; an unknown price as `-`.
pub(super) fn usd(micro: Option<u64>) -> String {
    match micro {
        Some(n) => format!("${}.{:04}", n / 1_000_000, n % 1_000_000 / 100),
        None => "-".to_owned(),
    }
}

/// What may be absent, `-` where it is.
pub(super) fn optional(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// Unix milliseconds as `2026-01-31 23:59:59.123` (UTC).
pub(super) fn instant(ms: u64) -> String {
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    // Days to a date of the Gregorian calendar, counting years from March so that a leap day is last.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (s, milli) = (in_day / 1_000, in_day % 1_000);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{milli:03}", s / 3_600, s / 60 % 60, s % 60)
}

/// A guest's text on one line, unable to steer the terminal.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A name that a guest may have chosen, in which nothing but the name is said.
pub(super) fn name(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A guest's text with its lines and tabs, unable to steer the terminal.
pub(super) fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// Cuts `text` to `width` columns, with `…` where something is missing.
pub(super) fn cut(text: &str, width: Option<usize>) -> String {
    match width {
        Some(width) => console::truncate_str(text, width, "…").into_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            ["0", "9999", "10.0k", "123k", "1.2M"],
            [0, 9_999, 10_000, 123_456, 1_234_567].map(count).each_ref().map(String::as_str)
        );
        assert_eq!(["999 B", "1.2 kB", "4.1 MB"], [999, 1_234, 4_194_304].map(bytes).each_ref().map(String::as_str));
        assert_eq!(count(u64::MAX), "18.4E");
        assert_eq!(
            ["7 µs", "3 ms", "12 s", "10 min"],
            [7, 3_999, 12_000_000, 600_000_000].map(micros).each_ref().map(String::as_str)
        );
        assert_eq!((usd(Some(1_234_567)), usd(Some(99)), usd(None)), ("$1.2345".into(), "$0.0000".into(), "-".into()));
    }

    #[test]
    fn instants_are_dates() {
        assert_eq!(instant(0), "1970-01-01 00:00:00.000");
        assert_eq!(instant(951_782_400_000), "2000-02-29 00:00:00.000");
        assert_eq!(instant(1_735_689_599_999), "2024-12-31 23:59:59.999");
        assert_eq!(instant(4_107_542_400_000), "2100-03-01 00:00:00.000");
        assert!(!instant(u64::MAX).is_empty());
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2Jb\r\nc"), "a [2Jb  c");
        assert_eq!(harmless("a\u{1b}[2Jb\r\n\tc\u{9b}1m"), "a[2Jb\n\tc1m");
    }

    #[test]
    fn wide_characters_count_twice() {
        assert_eq!(cut("日本語テキスト", Some(7)), "日本語…");
        assert_eq!(cut("short", Some(7)), "short");
        assert_eq!(cut("anything", None), "anything");
    }
}
