//! A line plot as inline SVG.

use std::fmt::Write;

/// Room beside the plot for labels; on the right for half of `99.9999 %`.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 34.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 48.0;

/// An axis: its name with the unit, what it reaches from and to, and where labels stand.
#[derive(Debug)]
pub(super) struct Axis {
    pub(super) name: String,
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) ticks: Vec<(f64, String)>,
}

/// A line over two axes. Coordinates are those of the axes.
#[derive(Debug)]
pub(super) struct Plot {
    /// What is shown, for those who cannot see it.
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) line: Vec<(f64, f64)>,
}

impl Axis {
    /// Where a value lies between the ends, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        ((value - self.from) / (self.to - self.from).max(1e-9)).clamp(0.0, 1.0)
    }

    /// An axis from 0 with at most so many round labels.
    pub(super) fn from_zero(name: &str, most: f64, labels: usize) -> Axis {
        // Where there is nothing, what an axis goes to means nothing either.
        let most = if most > 0.0 { most.max(1e-6) } else { 1.0 };
        let step = round_step(most / labels.max(1) as f64);
        let count = (most / step).ceil().max(1.0) as u32;
        let ticks = (0..=count).map(|n| f64::from(n) * step).map(|at| (at, short(at))).collect();
        Axis { name: name.to_owned(), from: 0.0, to: f64::from(count) * step, ticks }
    }

    /// The same axis up to there and no further.
    pub(super) fn ending_at(mut self, end: f64) -> Axis {
        self.ticks.retain(|&(at, _)| at <= end);
        self.to = end;
        self
    }
}

/// The next of 1, 2 and 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let round = [1.0, 2.0, 5.0, 10.0].into_iter().find(|round| round * power >= step * 0.999);
    round.unwrap_or(10.0) * power
}

/// A number in few characters: `1.5k`, `20M`.
fn short(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 1e9 => (value / 1e9, "G"),
        value if value >= 1e6 => (value / 1e6, "M"),
        value if value >= 1e3 => (value / 1e3, "k"),
        value => (value, ""),
    };
    // As fine as the steps of the shortest axis; multiples of a step are not exact.
    format!("{}{unit}", (value * 1e9).round() / 1e9)
}

impl Plot {
    /// Draws it so wide and high, in pixels.
    pub(super) fn svg(&self, class: &str, width: f64, height: f64) -> String {
        let (inner_width, inner_height) = (width - LEFT - RIGHT, height - TOP - BOTTOM);
        let x = |value: f64| LEFT + self.x.place(value) * inner_width;
        let y = |value: f64| TOP + (1.0 - self.y.place(value)) * inner_height;
        let (right, bottom) = (width - RIGHT, height - BOTTOM);
        let mut svg = format!(
            "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
             aria-label=\"{}\">\n",
            self.title
        );
        // Writing to a string cannot fail.
        for (at, label) in &self.y.ticks {
            let at = y(*at);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
        for (at, label) in &self.x.ticks {
            let at = x(*at);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                bottom + 17.0
            );
        }
        let points: Vec<_> = self.line.iter().map(|&(at, value)| (x(at), y(value))).collect();
        svg.push_str(&drawn(&points));
        let (middle, centre) = (LEFT + inner_width / 2.0, TOP + inner_height / 2.0);
        let _ = write!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(13 {centre:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text>\n</svg>",
            height - 10.0,
            self.x.name,
            self.y.name
        );
        svg
    }
}

/// A line through points of the drawing. One alone makes no line that could be seen.
fn drawn(points: &[(f64, f64)]) -> String {
    if let [(x, y)] = points {
        return format!("<circle class=\"point\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>\n");
    }
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    format!("<polyline class=\"line\" points=\"{}\"/>\n", points.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_from_zero_have_few_round_labels_that_enclose_the_values() {
        for most in [0.0, 1e-7, 4e-5, 0.7, 3.0, 10.0, 99.0, 1_234.0, 5e6] {
            let axis = Axis::from_zero("messages/s", most, 5);
            assert!(axis.to >= most && axis.ticks.len() <= 7, "{most}: {axis:?}");
            assert_eq!(axis.ticks[0].1, "0");
        }
        let labels = |most| Axis::from_zero("", most, 4).ticks.into_iter().map(|(_, label)| label);
        assert_eq!(labels(1_600.0).collect::<Vec<_>>(), ["0", "500", "1k", "1.5k", "2k"]);
        let short: Vec<_> = labels(0.0005).collect();
        assert_eq!(short, ["0", "0.0002", "0.0004", "0.0006"]);
        let cut = Axis::from_zero("seconds", 6.1, 8).ending_at(6.1);
        assert_eq!((cut.to, cut.ticks.last().unwrap().0), (6.1, 6.0));
    }

    #[test]
    fn every_point_lies_within_the_plot() {
        let axis = |to| Axis::from_zero("a", to, 5);
        let line = vec![(0.0, 0.0), (5.0, 7.0), (10.0, 20.0)];
        let plot = Plot { title: "t".into(), x: axis(10.0), y: axis(20.0), line };
        let svg = plot.svg("wide", 400.0, 200.0);
        let points = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let points: Vec<(f64, f64)> = points
            .split(' ')
            .map(|point| point.split_once(',').unwrap())
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        assert_eq!(points[0], (LEFT, 200.0 - BOTTOM));
        assert_eq!(points[2], (400.0 - RIGHT, TOP));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
    }
}
