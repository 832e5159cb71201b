//! Plots as SVG: lines over sizes, and bars.

use std::fmt::Write;

use crate::cell::size;
use crate::matrix::Arm;

/// Colours and letters of all plots, in light and dark. It belongs into the page, or into an SVG that
/// stands alone.
pub(crate) const STYLE: &str = "\
:root{--ink:#1f2328;--faint:#59636e;--grid:#d8dee4;--paper:#ffffff;\
--adaptive:#cf222e;--buffered:#57606a;--mmap:#1a7f37;--sendfile:#0969da;--splice:#9a6700}\
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--faint:#9198a1;--grid:#30363d;\
--paper:#0d1117;--adaptive:#ff7b72;--buffered:#9ea7b3;--mmap:#56d364;--sendfile:#58a6ff;\
--splice:#e3b341}}\
.plot text{font:12px system-ui,sans-serif;fill:var(--ink)}\
.plot .title{font-weight:600;font-size:14px}.plot .faint{fill:var(--faint)}\
.plot .paper{fill:var(--paper)}.plot .grid{stroke:var(--grid);stroke-width:1}\
.plot .line{fill:none;stroke-width:2}\
.plot .s-adaptive{stroke:var(--adaptive)}.plot .f-adaptive{fill:var(--adaptive)}\
.plot .s-buffered{stroke:var(--buffered)}.plot .f-buffered{fill:var(--buffered)}\
.plot .s-mmap{stroke:var(--mmap)}.plot .f-mmap{fill:var(--mmap)}\
.plot .s-sendfile{stroke:var(--sendfile)}.plot .f-sendfile{fill:var(--sendfile)}\
.plot .s-splice{stroke:var(--splice)}.plot .f-splice{fill:var(--splice)}";

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 468.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = 268.0;
/// Bars of which the highest is so many times the lowest are drawn on a logarithmic axis.
const FAR_APART: f64 = 50.0;

/// Figures of each arm over fetch sizes, both axes logarithmic.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) title: String,
    /// With its unit.
    pub(crate) figure: String,
    pub(crate) series: Vec<(Arm, Vec<(usize, f64)>)>,
}

/// Figures of each arm in a few cases: from 0, or logarithmic where they are too far apart for that.
#[derive(Debug)]
pub(crate) struct Bars {
    pub(crate) title: String,
    /// With its unit.
    pub(crate) figure: String,
    pub(crate) groups: Vec<Group>,
}

/// The bars of one case, and the two lines below them.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) labels: [String; 2],
    pub(crate) bars: Vec<(Arm, f64)>,
}

impl Lines {
    pub(crate) fn svg(&self, alone: bool) -> String {
        let arms: Vec<Arm> = self.series.iter().map(|(arm, _)| *arm).collect();
        let mut svg = begin(&self.title, &self.figure, &arms, alone);
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let mut sizes: Vec<usize> = points().map(|point| point.0).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else {
            return svg + "</svg>";
        };
        let (low, high) = points().fold((f64::INFINITY, 0.0_f64), |(low, high), point| {
            (low.min(point.1), high.max(point.1))
        });
        let (low, high) = (low * 0.9, high * 1.1);
        let (from, to) = ((*first as f64 * 0.85).log2(), (*last as f64 * 1.18).log2());
        let x = |size: usize| LEFT + ((size as f64).log2() - from) / (to - from) * (RIGHT - LEFT);
        let y = |figure: f64| {
            BOTTOM - (figure.ln() - low.ln()) / (high.ln() - low.ln()) * (BOTTOM - TOP)
        };
        for tick in decades(low, high) {
            horizontal(&mut svg, y(tick), tick);
        }
        for bytes in &sizes {
            let at = x(*bytes);
            let (label, unit) = size(*bytes).split_once(' ').map_or_else(
                || (size(*bytes), String::new()),
                |(number, unit)| (number.to_owned(), unit.to_owned()),
            );
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{BOTTOM}"/>"#
            );
            text(&mut svg, (at, BOTTOM + 17.0), "middle", "", &label);
            text(&mut svg, (at, BOTTOM + 31.0), "middle", "faint", &unit);
        }
        text(&mut svg, ((LEFT + RIGHT) / 2.0, HEIGHT - 5.0), "middle", "faint", "fetch size");
        // Adaptive last, so that it lies on top.
        for (arm, points) in self.series.iter().rev() {
            let name = arm.name();
            let path: Vec<String> =
                points.iter().map(|(size, f)| format!("{:.1},{:.1}", x(*size), y(*f))).collect();
            let dash = if *arm == Arm::Adaptive { "" } else { r#" stroke-dasharray="5 2""# };
            let path = path.join(" ");
            let _ = write!(svg, r#"<polyline class="line s-{name}" points="{path}"{dash}/>"#);
            for (size, figure) in points {
                let (cx, cy) = (x(*size), y(*figure));
                let _ = write!(
                    svg,
                    r#"<circle class="f-{name}" cx="{cx:.1}" cy="{cy:.1}" r="3"><title>{name}, {}: {}</title></circle>"#,
                    crate::cell::size(*size),
                    number(*figure)
                );
            }
        }
        svg + "</svg>"
    }
}

impl Bars {
    pub(crate) fn svg(&self) -> String {
        let mut arms: Vec<Arm> =
            self.groups.iter().flat_map(|group| group.bars.iter().map(|bar| bar.0)).collect();
        arms.sort_unstable();
        arms.dedup();
        let bars = || self.groups.iter().flat_map(|group| &group.bars);
        let (low, high) =
            bars().filter(|bar| bar.1 > 0.0).fold((f64::INFINITY, 0.0_f64), |(low, high), bar| {
                (low.min(bar.1), high.max(bar.1 * 1.05))
            });
        let far_apart = high / low > FAR_APART;
        let note = if far_apart { ", logarithmic" } else { "" };
        let mut svg = begin(&self.title, &format!("{}{note}", self.figure), &arms, false);
        if high <= 0.0 {
            return svg + "</svg>";
        }
        let base = if far_apart { 10_f64.powf(low.log10().floor()) } else { 0.0 };
        let y = |figure: f64| {
            let part = match far_apart {
                true => (figure.max(base) / base).ln() / (high / base).ln(),
                false => figure / high,
            };
            BOTTOM - part * (BOTTOM - TOP)
        };
        let step = steps(high);
        let ticks = match far_apart {
            true => decades(base, high),
            false => (0..=(high / step) as usize).map(|nth| nth as f64 * step).collect(),
        };
        ticks.iter().for_each(|tick| horizontal(&mut svg, y(*tick), *tick));
        let wide = (RIGHT - LEFT) / self.groups.len() as f64;
        for (at, Group { labels, bars }) in self.groups.iter().enumerate() {
            let left = LEFT + wide * (at as f64 + 0.1);
            let bar = wide * 0.8 / bars.len().max(1) as f64;
            for (nth, (arm, figure)) in bars.iter().enumerate() {
                let (name, top, x) = (arm.name(), y(*figure), left + bar * nth as f64);
                let _ = write!(
                    svg,
                    r#"<rect class="f-{name}" x="{x:.1}" y="{top:.1}" width="{:.1}" height="{:.1}"><title>{name}, {}: {}</title></rect>"#,
                    bar * 0.86,
                    (BOTTOM - top).max(0.5),
                    labels.join(" "),
                    number(*figure)
                );
            }
            let middle = LEFT + wide * (at as f64 + 0.5);
            text(&mut svg, (middle, BOTTOM + 17.0), "middle", "", &labels[0]);
            text(&mut svg, (middle, BOTTOM + 33.0), "middle", "faint", &labels[1]);
        }
        svg + "</svg>"
    }
}

/// The frame of a plot: title, what the vertical axis shows, and which colour is which arm.
fn begin(title: &str, figure: &str, arms: &[Arm], alone: bool) -> String {
    let mut svg = if alone {
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" width="720" height="480" role="img"><title>{title}</title><style>{STYLE}</style><rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>"#
        )
    } else {
        format!(
            r#"<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{title}</title>"#
        )
    };
    text(&mut svg, (8.0, 18.0), "start", "title", title);
    let mut x = 8.0;
    for arm in arms {
        let name = arm.name();
        let _ = write!(
            svg,
            r#"<rect class="f-{name}" x="{x:.1}" y="29" width="11" height="11" rx="2"/>"#
        );
        text(&mut svg, (x + 16.0, 39.0), "start", "", name);
        x += 34.0 + 7.2 * name.len() as f64;
    }
    text(&mut svg, (LEFT - 54.0, TOP - 7.0), "start", "faint", figure);
    svg
}

fn horizontal(svg: &mut String, y: f64, figure: f64) {
    let _ = write!(svg, r#"<line class="grid" x1="{LEFT}" y1="{y:.1}" x2="{RIGHT}" y2="{y:.1}"/>"#);
    text(svg, (LEFT - 6.0, y + 4.0), "end", "", &number(figure));
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, class: &str, text: &str) {
    let class = if class.is_empty() { String::new() } else { format!(r#" class="{class}""#) };
    let _ =
        write!(svg, r#"<text{class} x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
}

/// 1, 2, 5, 10, 20 ... between two figures; only powers of ten where those would be too many.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let many = (high / low).log10() > 3.0;
    let factors: &[f64] = if many { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let from = low.log10().floor() as i32;
    let to = high.log10().ceil() as i32;
    let ticks = (from..=to).flat_map(|power| factors.iter().map(move |f| f * 10_f64.powi(power)));
    ticks.filter(|tick| (low..=high).contains(tick)).collect()
}

/// A round step that divides a height into three to seven.
fn steps(high: f64) -> f64 {
    let power = 10_f64.powf((high / 3.0).log10().floor());
    [5.0, 2.0, 1.0].map(|f| f * power).into_iter().find(|step| high / step >= 3.0).unwrap_or(power)
}

fn number(figure: f64) -> String {
    if figure >= 100.0 {
        format!("{figure:.0}")
    } else if figure >= 10.0 || figure.fract() == 0.0 {
        format!("{}", (figure * 10.0).round() / 10.0)
    } else {
        format!("{}", (figure * 100.0).round() / 100.0)
    }
}
