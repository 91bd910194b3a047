//! Draws the rows with a target as an SVG: each bar shows a share of its target. Pure.

use crate::report::{Row, Summary, Target, figure, target};

/// All lengths are in pixels.
const WIDTH: f64 = 860.0;
const LINE: f64 = 30.0;
const TOP: f64 = 56.0;
/// The start of the bars, and their maximum length.
const LEFT: f64 = 430.0;
const BAR: f64 = 250.0;
/// The share of the target at the end of the longest bar.
const LONGEST: f64 = 1.5;

/// Uses the light or dark colour scheme of the reader.
const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}.small{font-size:11px;fill:#59636e}.end{text-anchor:end}\
.met{fill:#1a7f37}.missed{fill:#cf222e}.track{fill:#d1d9e0;opacity:.4}.line{stroke:#59636e;stroke-dasharray:3 3}\
.spread{stroke:#1f2328;stroke-width:1.5}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.met{fill:#3fb950}.missed{fill:#f85149}\
.track{fill:#3d444d}.line{stroke:#9198a1}.spread{stroke:#f0f6fc}}";

/// Draws one bar per row. A bar that ends left of the dashed line meets its target, and shorter is better.
pub fn draw(rows: &[Row], caption: &str) -> String {
    let bars: Vec<_> = rows.iter().filter_map(|row| Some((row, row.target?, row.compared()?))).collect();
    let bottom = bars.iter().fold(TOP, |bottom, _| bottom + LINE);
    let height = bottom + 30.0;
    let head = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"Benchmarks of switchboard against their targets\">\n<style>{STYLE}</style>\n\
         <text x=\"{}\" y=\"24\" class=\"small end\">met</text><text x=\"{}\" y=\"24\" class=\"small\">missed</text>\n\
         <text x=\"{}\" y=\"42\" class=\"small\" text-anchor=\"middle\">target</text>\n",
        at(1.0) - 8.0,
        at(1.0) + 8.0,
        at(1.0),
    );
    let mut y = TOP - LINE;
    let bars: Vec<String> = bars
        .into_iter()
        .map(|(row, bound, summary)| {
            y += LINE;
            bar(row, bound, summary, y)
        })
        .collect();
    let foot = format!(
        "<line x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{bottom}\" class=\"line\"/>\n\
         <text x=\"16\" y=\"{}\" class=\"small\">{}</text>\n</svg>\n",
        TOP - 8.0,
        bottom + 18.0,
        escaped(caption),
        x = at(1.0),
    );
    head + &bars.concat() + &foot
}

fn bar(row: &Row, bound: Target, summary: Summary, y: f64) -> String {
    let Summary { median, min, max } = summary;
    let share = |figure: f64| match bound {
        Target::AtLeast(least) => least / figure,
        Target::AtMost(most) if most > 0.0 => figure / most,
        // A target of zero has no share, so the figure itself is drawn.
        Target::AtMost(_) => figure,
    };
    let class = if row.is_met() == Some(true) { "met" } else { "missed" };
    let text = if row.baseline.is_empty() { figure(median, row.unit) } else { format!("{median:.2}") };
    format!(
        "<text x=\"{}\" y=\"{base}\" class=\"end\">{}</text>\
         <rect x=\"{LEFT}\" y=\"{top}\" width=\"{BAR}\" height=\"16\" rx=\"3\" class=\"track\"/>\
         <rect x=\"{LEFT}\" y=\"{top}\" width=\"{}\" height=\"16\" rx=\"3\" class=\"{class}\"/>\
         <line x1=\"{}\" y1=\"{middle}\" x2=\"{}\" y2=\"{middle}\" class=\"spread\"/>\
         <text x=\"{}\" y=\"{base}\">{}<tspan class=\"small\"> ({})</tspan></text>\n",
        LEFT - 10.0,
        escaped(&row.name),
        (at(share(median)) - LEFT).max(2.0),
        at(share(min)),
        at(share(max)),
        LEFT + BAR + 10.0,
        escaped(&text),
        escaped(&target(row).unwrap_or_default()),
        base = y + 13.0,
        top = y,
        middle = y + 8.0,
    )
}

/// The position of a share of the target.
fn at(share: f64) -> f64 {
    (LEFT + BAR * (share / LONGEST).clamp(0.0, 1.0)).round()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Unit;

    #[test]
    fn bar_ends_left_of_the_line_if_the_target_is_met() {
        let rows = [
            Row::pairs(1, "creates", Unit::PerSecond, &[(50.0, 100.0)]).target(Target::AtLeast(0.45)),
            Row::pairs(6, "restart <&>", Unit::Seconds, &[(16.0, 10.0)]).target(Target::AtMost(1.5)),
            Row::figures(5, "no target", Unit::Bytes, &[1.0]),
        ];
        let svg = draw(&rows, "a machine");
        assert_eq!(svg.matches("class=\"track\"").count(), 2, "a bar for each row with a target");
        assert!(svg.contains("height=\"16\" rx=\"3\" class=\"met\"") && svg.contains("rx=\"3\" class=\"missed\""));
        assert!(svg.contains("restart &lt;&amp;&gt;") && svg.contains("≥ 0.45") && svg.contains("a machine"));
        assert!(at(0.9) < at(1.0) && at(1.07) > at(1.0) && at(9.0) <= LEFT + BAR);
    }
}
