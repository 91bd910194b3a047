//! The measured figures and their evaluation: pairs, ratios, medians, targets and the table. Pure.

use serde::Serialize;

/// The unit of a figure, which also determines its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Operations per second.
    #[serde(rename = "1/s")]
    PerSecond,
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Bytes of memory.
    #[serde(rename = "B")]
    Bytes,
    /// A count.
    #[serde(rename = "")]
    Count,
}

/// The target of a row. It applies to the ratio if the row has a baseline, otherwise to the figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// The median, the minimum and the maximum of some figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The middle figure, or the mean of the two middle ones.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The number of the scenario.
    pub scenario: u8,
    /// The name of the measurement.
    pub name: String,
    /// The unit of the figures.
    pub unit: Unit,
    /// The figures of switchboard, one per run.
    pub ours: Vec<f64>,
    /// The figures of the baseline, measured alternately with ours. Empty if there is no baseline.
    pub baseline: Vec<f64>,
    /// The target, if there is one.
    pub target: Option<Target>,
}

impl Row {
    /// A row with a baseline, from pairs of consecutive measurements.
    pub fn pairs(scenario: u8, name: impl Into<String>, unit: Unit, pairs: &[(f64, f64)]) -> Self {
        let (ours, baseline) = pairs.iter().copied().unzip();
        Self { scenario, name: name.into(), unit, ours, baseline, target: None }
    }

    /// A row without a baseline.
    pub fn figures(scenario: u8, name: impl Into<String>, unit: Unit, figures: &[f64]) -> Self {
        Self { scenario, name: name.into(), unit, ours: figures.to_vec(), baseline: Vec::new(), target: None }
    }

    /// Sets the target.
    pub fn target(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// Ours ÷ baseline for each pair; `None` without a baseline.
    pub fn ratio(&self) -> Option<Summary> {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.baseline).map(|(ours, baseline)| ours / baseline).collect();
        Summary::of(&ratios)
    }

    /// The figures that are compared with the target.
    pub fn compared(&self) -> Option<Summary> {
        self.ratio().or_else(|| Summary::of(&self.ours))
    }

    /// Whether the median meets the target; `None` without a target.
    pub fn is_met(&self) -> Option<bool> {
        let median = self.compared()?.median;
        Some(match self.target? {
            Target::AtLeast(bound) => median >= bound,
            Target::AtMost(bound) => median <= bound,
        })
    }
}

impl Summary {
    /// Summarizes figures; `None` if there are none.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Self { median, min, max })
    }
}

/// The percentile of `figures` at `share`, such as 0.99; 0 if there are none.
pub fn percentile(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * as_f64(sorted.len())).ceil();
    (1_u32..).zip(sorted.iter()).find(|(number, _)| f64::from(*number) >= rank).map_or(0.0, |(_, figure)| *figure)
}

/// A count as a figure.
pub fn as_f64(count: usize) -> f64 {
    // The counts are far below 2^32.
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// A figure with its significant digits and its unit.
pub fn figure(value: f64, unit: Unit) -> String {
    match unit {
        Unit::PerSecond => format!("{}/s", digits(value)),
        Unit::Seconds => format!("{} s", digits(value)),
        Unit::Milliseconds => format!("{} ms", digits(value)),
        Unit::Bytes if value.abs() >= 10_485_760.0 => format!("{} MiB", digits(value / 1_048_576.0)),
        Unit::Bytes if value.abs() >= 10_240.0 => format!("{} KiB", digits(value / 1024.0)),
        Unit::Bytes => format!("{} B", digits(value)),
        Unit::Count => digits(value),
    }
}

fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        size if size < f64::EPSILON => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    // Removes trailing zeros: `2.00` becomes `2`.
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A target as text: `≥ 0.45` or `≤ 1 s`.
pub fn target(row: &Row) -> Option<String> {
    let has_baseline = !row.baseline.is_empty();
    let bound = |bound| if has_baseline { digits(bound) } else { figure(bound, row.unit) };
    Some(match row.target? {
        Target::AtLeast(least) => format!("≥ {}", bound(least)),
        Target::AtMost(most) => format!("≤ {}", bound(most)),
    })
}

/// Formats the table as Markdown with aligned columns.
pub fn table(rows: &[Row]) -> String {
    let head = ["#", "what", "ours", "baseline", "ratio", "min … max", "target", ""].map(str::to_owned);
    let mut lines = vec![head];
    for row in rows {
        let median = |figures: &[f64]| Summary::of(figures).map(|summary| figure(summary.median, row.unit));
        let spread = match (row.ratio(), Summary::of(&row.ours)) {
            (Some(Summary { min, max, .. }), _) => format!("{} … {}", digits(min), digits(max)),
            (None, Some(Summary { min, max, .. })) if row.ours.len() > 1 => {
                format!("{} … {}", figure(min, row.unit), figure(max, row.unit))
            }
            _ => String::new(),
        };
        lines.push([
            row.scenario.to_string(),
            row.name.clone(),
            median(&row.ours).unwrap_or_default(),
            median(&row.baseline).unwrap_or_default(),
            row.ratio().map(|ratio| digits(ratio.median)).unwrap_or_default(),
            spread,
            target(row).unwrap_or_default(),
            row.is_met().map_or("", |is_met| if is_met { "met" } else { "NOT MET" }).to_owned(),
        ]);
    }
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default())
        .collect();
    let padded = |line: &[String; 8]| -> Vec<String> {
        line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect()
    };
    let mut text: Vec<String> = lines.iter().map(|line| format!("| {} |", padded(line).join(" | "))).collect();
    let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    text.insert(1, format!("|-{}-|", rules.join("-|-")));
    text.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(pairs: &[(f64, f64)], target: Target) -> Row {
        Row::pairs(1, "creates", Unit::PerSecond, pairs).target(target)
    }

    #[test]
    fn median_of_an_even_count_is_between_the_middle_figures() {
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 8.0]), Some(Summary { median: 3.0, min: 1.0, max: 8.0 }));
        assert_eq!(Summary::of(&[4.0, 1.0, 8.0]), Some(Summary { median: 4.0, min: 1.0, max: 8.0 }));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn percentile_is_one_of_the_figures() {
        let figures: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert!((percentile(&figures, 0.5) - 100.0).abs() < f64::EPSILON);
        assert!((percentile(&figures, 0.99) - 198.0).abs() < f64::EPSILON);
        assert!((percentile(&figures, 1.0) - 200.0).abs() < f64::EPSILON);
        assert!((percentile(&[7.0], 0.5) - 7.0).abs() < f64::EPSILON);
        assert!(percentile(&[], 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn ratio_is_computed_per_pair_and_not_from_medians() {
        // Both medians are 200, but the figures of each pair differ.
        let row = ratio(&[(100.0, 200.0), (200.0, 400.0), (400.0, 100.0)], Target::AtLeast(0.5));
        assert_eq!(row.ratio(), Some(Summary { median: 0.5, min: 0.5, max: 4.0 }));
        assert_eq!(row.is_met(), Some(true));
    }

    #[test]
    fn target_bounds_the_ratio_or_the_figure_without_a_baseline() {
        assert_eq!(ratio(&[(44.0, 100.0)], Target::AtLeast(0.45)).is_met(), Some(false));
        assert_eq!(ratio(&[(46.0, 100.0)], Target::AtMost(0.45)).is_met(), Some(false));
        let figures = Row::figures(7, "lateness", Unit::Seconds, &[0.5]);
        assert_eq!(figures.is_met(), None);
        assert_eq!(figures.clone().target(Target::AtMost(1.0)).is_met(), Some(true));
        assert_eq!(figures.target(Target::AtLeast(1.0)).is_met(), Some(false));
    }

    #[test]
    fn figures_are_printed_with_significant_digits() {
        let cases = [
            (1234.5, Unit::PerSecond, "1234/s"),
            (12.34, Unit::Milliseconds, "12.3 ms"),
            (0.456, Unit::Seconds, "0.46 s"),
            (0.0123, Unit::Seconds, "0.012 s"),
            (5.0, Unit::Count, "5"),
            (0.0, Unit::Count, "0"),
            (100.0, Unit::Count, "100"),
            (900.0, Unit::Bytes, "900 B"),
            (20_480.0, Unit::Bytes, "20 KiB"),
            (104_857_600.0, Unit::Bytes, "100 MiB"),
        ];
        for (value, unit, text) in cases {
            assert_eq!(figure(value, unit), text);
        }
    }

    #[test]
    fn table_shows_whether_each_target_is_met() {
        let rows = [
            ratio(&[(46.0, 100.0), (50.0, 100.0), (40.0, 100.0)], Target::AtLeast(0.45)),
            Row::figures(7, "lateness", Unit::Seconds, &[1.5]).target(Target::AtMost(1.0)),
            Row::figures(5, "memory", Unit::Bytes, &[512.0]),
        ];
        let expected = "\
            | # | what     | ours  | baseline | ratio | min … max | target |         |\n\
            |---|----------|-------|----------|-------|-----------|--------|---------|\n\
            | 1 | creates  | 46/s  | 100/s    | 0.46  | 0.4 … 0.5 | ≥ 0.45 | met     |\n\
            | 7 | lateness | 1.5 s |          |       |           | ≤ 1 s  | NOT MET |\n\
            | 5 | memory   | 512 B |          |       |           |        |         |\n";
        assert_eq!(table(&rows), expected);
    }
}
