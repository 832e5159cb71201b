//! A report as one HTML file that needs nothing else.

use std::fmt::Write;

use hdrhistogram::Histogram;

use super::plot::{Axis, Plot};
use super::report::{Report, microseconds};

/// Steps to each halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 8;
/// Wide screens and phones get drawings of their own, so that text is never scaled to nothing.
const WIDE: (f64, f64) = (880.0, 340.0);
const NARROW: (f64, f64) = (340.0, 280.0);

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --rule: #d9dee5; --paper: #fff;
  --line: #0b63c4; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7ed; --soft: #9aa5b4; --rule: #343c48;
  --paper: #14181e; --line: #6cb2ff; --bad: #ff8a80; } }
body { margin: 0 auto; padding: 24px 16px 48px; max-width: 880px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 17px; margin: 32px 0 8px; }
p { margin: 4px 0; color: var(--soft); overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top; font-weight: normal; }
th { color: var(--soft); } td.figure { text-align: right; white-space: nowrap; }
td.note { color: var(--soft); overflow-wrap: anywhere; } .bad { color: var(--bad); }
svg { display: block; width: 100%; height: auto; } svg.narrow { display: none; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--rule); } svg .line { fill: none; stroke: var(--line);
  stroke-width: 2; stroke-linejoin: round; } svg .point { fill: var(--line); }
@media (max-width: 600px) { svg.wide { display: none; } svg.narrow { display: block; } }
";

/// The page.
pub(super) fn page(report: &Report, latency: &Histogram<u64>) -> String {
    let title = format!("longwire bench {}", report.mode);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"
    );
    // Writing to a string cannot fail.
    let _ = writeln!(page, "<h2>Latency by percentile</h2>");
    let _ = writeln!(page, "<p>{}</p>", escape(&report.latency_of));
    both_widths(&mut page, |labels| latency_plot(latency, labels));
    times_table(&mut page, report);
    let _ = writeln!(page, "<h2>Throughput over time</h2>");
    both_widths(&mut page, |labels| throughput_plot(report, labels));
    let _ = writeln!(page, "<h2>What was done</h2>\n<table>");
    for [name, figure, note] in report.facts() {
        let bad = if note.contains("NOT VERIFIED") { " bad" } else { "" };
        let _ = writeln!(
            page,
            "<tr><th>{}</th><td class=\"figure\">{}</td><td class=\"note{bad}\">{}</td></tr>",
            escape(&name),
            escape(&figure),
            escape(&note)
        );
    }
    let _ = writeln!(page, "</table>\n</body></html>");
    page
}

/// Percentiles stand below each other: six columns do not fit a phone.
fn times_table(page: &mut String, report: &Report) {
    let times = report.times();
    let _ = write!(page, "<table class=\"times\">\n<tr><th>us</th>");
    for (name, _) in &times {
        let _ = write!(page, "<th>{name}</th>");
    }
    let _ = writeln!(page, "</tr>");
    for (row, (quantile, _)) in report.latency_us.columns().iter().enumerate() {
        let _ = write!(page, "<tr><th>{quantile}</th>");
        for (_, figures) in &times {
            let _ = write!(page, "<td>{}</td>", microseconds(figures.columns()[row].1));
        }
        let _ = writeln!(page, "</tr>");
    }
    let _ = writeln!(page, "</table>");
}

fn both_widths(page: &mut String, plot: impl Fn(usize) -> Plot) {
    let _ = writeln!(page, "{}", plot(8).svg("wide", WIDE.0, WIDE.1));
    let _ = writeln!(page, "{}", plot(4).svg("narrow", NARROW.0, NARROW.1));
}

/// Latency against the percentile, both logarithmic: the tail gets as much room as the middle.
fn latency_plot(latency: &Histogram<u64>, labels: usize) -> Plot {
    let nines = |quantile: f64| -(1.0 - quantile).max(1e-12).log10();
    // The last percentile that so many values tell apart.
    let most = (latency.len().max(10) as f64).log10();
    let line: Vec<(f64, f64)> = latency
        .iter_quantiles(TICKS_PER_HALF_DISTANCE)
        .map(|step| (nines(step.quantile_iterated_to()), step.value_iterated_to()))
        .filter(|&(nines, _)| nines <= most)
        .map(|(nines, ns)| (nines, (ns.max(1) as f64).log10()))
        .collect();
    let from = line.first().map_or(3.0, |&(_, least)| least.floor());
    let to = line.last().map_or(6.0, |&(_, most)| most.ceil()).max(from + 1.0);
    let mut ticks: Vec<(f64, String)> = vec![(0.0, "0 %".into())];
    let every = (most / labels as f64).ceil().max(1.0) as usize;
    for count in (1..=most.floor() as usize).step_by(every) {
        let percent = match count {
            1 => "90".to_owned(),
            2 => "99".to_owned(),
            _ => format!("99.{}", "9".repeat(count - 2)),
        };
        ticks.push((count as f64, percent + " %"));
    }
    let time = |power: i32| match power {
        ..3 => format!("{} ns", 10_u64.pow(power.max(0) as u32)),
        3..6 => format!("{} us", 10_u64.pow((power - 3) as u32)),
        6..9 => format!("{} ms", 10_u64.pow((power - 6) as u32)),
        _ => format!("{} s", 10_u64.pow((power - 9) as u32)),
    };
    let powers = (from as i32)..=(to as i32);
    Plot {
        title: "latency by percentile".into(),
        x: Axis { name: "percentile".into(), from: 0.0, to: most, ticks },
        y: Axis {
            name: "latency".into(),
            from,
            to,
            ticks: powers.map(|power| (f64::from(power), time(power))).collect(),
        },
        line,
    }
}

fn throughput_plot(report: &Report, labels: usize) -> Plot {
    let rates = &report.timeline;
    // Each point stands for the stretch around it, the last of which ends with the run.
    let at = |index: usize| {
        let begins = index as f64 * rates.seconds_per_point;
        f64::midpoint(begins, (begins + rates.seconds_per_point).min(report.seconds))
    };
    let line = rates.messages_per_s.iter().enumerate().map(|(i, &rate)| (at(i), rate)).collect();
    let most = rates.messages_per_s.iter().copied().fold(0.0, f64::max);
    Plot {
        title: "throughput over time".into(),
        x: Axis::from_zero("seconds after the warm-up", report.seconds, labels)
            .ending_at(report.seconds),
        y: Axis::from_zero("messages/s", most, 4),
        line,
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
