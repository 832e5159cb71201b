//! The question answered from the figures: when is which path better, and by what factor?

use crate::cell::{Cell, Cells, size};
use crate::matrix::{Arm, Beside, Case, Layout, Residency};

/// Paths within this of the best count as good as it.
const EVEN: f64 = 1.05;

/// Sentences, each about one line through the matrix.
pub(crate) fn answer(cells: Cells<'_>) -> Vec<String> {
    let mut sentences = Vec::new();
    for layout in Layout::ALL {
        let line = |case: &Case| {
            let steady = case.residency == Residency::Hot && case.beside == Beside::Alone;
            steady && case.layout == layout && case.connections == 1 && case.in_flight == 1
        };
        let what = format!("{}, hot, one fetch at a time", layout.name());
        sentences.extend(by_size(cells, &what, line));
    }
    let rest = cells.cases().into_iter().filter(|case| {
        case.connections > 1
            || case.in_flight > 1
            || case.residency == Residency::Cold
            || case.beside == Beside::CatchUp
    });
    for case in rest {
        if let Some((best, others)) = ranking(cells, case) {
            sentences.push(format!("{}: {best}; {others}.", case.describe()));
        }
    }
    sentences
}

/// Neighbouring sizes at which the same path is best, together.
fn by_size(cells: Cells<'_>, what: &str, line: impl Fn(&Case) -> bool) -> Option<String> {
    let mut cases: Vec<Case> = cells.cases().into_iter().filter(line).collect();
    cases.sort_by_key(|case| case.size);
    let best: Vec<(Case, Arm)> = cases
        .into_iter()
        .filter_map(|case| Some((case, forced(cells, case).next()?.arm)))
        .collect();
    let parts: Vec<String> = best
        .chunk_by(|a, b| a.1 == b.1)
        .map(|run| {
            let (from, to) = (run[0].0.size, run[run.len() - 1].0.size);
            let span = if from == to {
                format!("at {}", size(from))
            } else {
                format!("from {} to {}", size(from), size(to))
            };
            let arm = run[0].1;
            format!("{span} {} takes the least CPU ({})", arm.name(), factors(cells, run))
        })
        .collect();
    (!parts.is_empty()).then(|| format!("{what}: {}.", parts.join("; ")))
}

/// How much more each other path takes over a run of sizes, and adaptive.
fn factors(cells: Cells<'_>, run: &[(Case, Arm)]) -> String {
    let others = Arm::ALL.into_iter().filter(|arm| *arm != run[0].1);
    let factor = |arm: Arm| {
        let ratios: Vec<f64> = run
            .iter()
            .filter_map(|(case, best)| {
                let (best, other) = (cells.find(*best, *case)?, cells.find(arm, *case)?);
                Some(other.cpu_us_per_fetch / best.cpu_us_per_fetch)
            })
            .collect();
        let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let high = ratios.iter().copied().fold(0.0, f64::max);
        let span =
            if high - low < 0.05 { format!("{high:.2}") } else { format!("{low:.2}-{high:.2}") };
        format!("{} {span}", arm.name())
    };
    others.map(factor).collect::<Vec<_>>().join(", ")
}

fn ranking(cells: Cells<'_>, case: Case) -> Option<(String, String)> {
    let (figure, [takes, take]) = decisive(case);
    let best = forced(cells, case).next()?;
    let even: Vec<&str> = forced(cells, case)
        .filter(|cell| figure(cell) <= figure(best) * EVEN)
        .map(|cell| cell.arm.name())
        .collect();
    let mut all: Vec<&Cell> = cells.at(case).collect();
    all.sort_by(|a, b| figure(a).total_cmp(&figure(b)));
    let others: Vec<String> = all
        .into_iter()
        .filter(|cell| !even.contains(&cell.arm.name()))
        .map(|cell| {
            let (name, ratio) = (cell.arm.name(), figure(cell) / figure(best));
            let (p99, rate) = (cell.p99_us / best.p99_us, cell.mb_per_s / best.mb_per_s);
            match case.beside {
                Beside::Alone => format!("{name} {ratio:.2} (p99 {p99:.2}, MB/s {rate:.2})"),
                Beside::CatchUp => format!("{name} {ratio:.2} (MB/s {rate:.2})"),
            }
        })
        .collect();
    let verb = if even.len() == 1 { takes } else { take };
    Some((format!("{} {verb}", even.join(" and ")), others.join(", ")))
}

/// What the arms are ranked by: CPU, but for cases beside a catch-up reader. There a fetch is the
/// tail's or the reader's, in a mixture that differs from arm to arm.
fn decisive(case: Case) -> (fn(&Cell) -> f64, [&'static str; 2]) {
    match case.beside {
        Beside::Alone => {
            (|cell| cell.cpu_us_per_fetch, ["takes the least CPU", "take the least CPU"])
        }
        Beside::CatchUp => (|cell| cell.p99_us, ["has the lowest p99", "have the lowest p99"]),
    }
}

/// The single paths at a case, the best first.
fn forced(cells: Cells<'_>, case: Case) -> impl Iterator<Item = &Cell> {
    let (figure, _) = decisive(case);
    let mut arms: Vec<&Cell> = cells.at(case).filter(|cell| cell.arm != Arm::Adaptive).collect();
    arms.sort_by(|a, b| figure(a).total_cmp(&figure(b)));
    arms.into_iter()
}
