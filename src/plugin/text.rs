//! Times, lists and aligned columns as people read them. Pure.

use crate::api::Time;
use anstyle::Style;
use std::time::Duration;

/// The text for nothing, as kubectl writes it.
pub const NONE: &str = "<none>";

/// The width of paragraphs.
const WIDTH: usize = 100;

/// A cell of a table. Its style does not count towards its width.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell with a style.
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

/// Aligned columns, three spaces apart, without spaces at the end of a line.
pub fn columns(rows: &[Vec<Cell>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.text.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..rows.iter().map(Vec::len).max().unwrap_or_default()).map(width).collect();
    let line = |row: &Vec<Cell>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(index, (Cell { text, style }, width))| {
            let is_last = index + 1 == row.len();
            let padding = if is_last { 0 } else { width + 3 - text.chars().count() };
            format!("{style}{text}{style:#}{:padding$}", "")
        });
        cells.chain(["\n".to_owned()]).collect::<String>()
    };
    rows.iter().map(line).collect()
}

/// Fields, one per line, with their values aligned. A field without a label continues the one before it.
pub fn fields(fields: Vec<(&str, Cell)>) -> String {
    let label = |label: &str| if label.is_empty() { Cell::default() } else { format!("{label}:").into() };
    columns(&fields.into_iter().map(|(name, value)| vec![label(name), value]).collect::<Vec<_>>())
}

/// A paragraph in lines of at most [`WIDTH`] characters, as far as its words allow. Its first line starts with `first`, the others with as
/// many spaces.
pub fn paragraph(first: &str, text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            None => lines.push(format!("{first}{word}")),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => line.extend([" ", word]),
            Some(_) => lines.push(" ".repeat(first.len()) + word),
        }
    }
    lines.join("\n") + "\n"
}

/// A duration in its largest unit that leaves at least two of it: `90s`, `29m`, `47h`, `12d`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// An instant in whole seconds.
pub fn instant(time: Time) -> String {
    time.timestamp().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// How far an instant is: `in 29m`, or `3h ago`.
pub fn distance(time: Time, now: Time) -> String {
    if time > now {
        format!("in {}", human(time.duration_since(now)))
    } else {
        format!("{} ago", human(now.duration_since(time)))
    }
}

/// An instant, and how far it is.
pub fn moment(time: Time, now: Time) -> String {
    format!("{} ({})", instant(time), distance(time, now))
}

/// The items, separated by commas, or [`NONE`].
pub fn listed(items: &[impl AsRef<str>]) -> String {
    let items: Vec<_> = items.iter().map(AsRef::as_ref).collect();
    if items.is_empty() { NONE.to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anstyle::AnsiColor;

    #[test]
    fn columns_are_aligned_by_their_visible_text() {
        let rows = [
            vec!["NAME".into(), "STATE".into(), "PROXY".into()],
            vec!["zoë".into(), Cell::styled("Inactive", AnsiColor::Yellow.on_default()), "desk".into()],
        ];
        let expected = "NAME   STATE      PROXY\nzoë    \u{1b}[33mInactive\u{1b}[0m   desk\n";
        assert_eq!(columns(&rows), expected);
    }

    #[test]
    fn paragraph_is_wrapped_between_words_and_indented() {
        let long = "x".repeat(WIDTH);
        assert_eq!(paragraph("- ", &format!("a b {long} c")), format!("- a b\n  {long}\n  c\n"));
        assert_eq!(paragraph("", &format!("{} a", &long[2..])), format!("{} a\n", &long[2..]));
    }

    #[test]
    fn durations_are_short_and_rounded_down() {
        for (seconds, expected) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7_199, "119m"), (86_400, "24h"), (172_800, "2d")]
        {
            assert_eq!(human(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn moment_says_whether_it_is_past() {
        let now: Time = "2026-11-24T10:00:00.5Z".parse().unwrap();
        assert_eq!(moment(now.after(Duration::from_mins(1)), now), "2026-11-24T10:01:00Z (in 60s)");
        assert_eq!(moment(now.before(Duration::from_hours(1)), now), "2026-11-24T09:00:00Z (60m ago)");
    }
}
