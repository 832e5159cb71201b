//! The marks, what was measured for each, and whether it is reached.

use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Cells, Round};
use crate::matrix::{
    Arm, Beside, Case, KIB, Layout, NEWEST, NEWEST_BESIDE, Residency, SCATTERED, STREAM,
};
use crate::parked::Parked;
use crate::produced::Produced;
use crate::reference::{EchoBeside, Reference};

/// No arm is better than adaptive by more than this, or by more than the noise.
const REGRET: f64 = 1.05;

/// One row of the verdict table.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verdict {
    pub(crate) mark: String,
    pub(crate) measured: String,
    pub(crate) reached: bool,
}

type Figure = fn(&Round) -> f64;

/// Where an arm was better than adaptive.
struct Regret {
    case: Case,
    what: &'static str,
    best: Arm,
    ratio: f64,
    /// By how much the rounds of the two arms differ among themselves.
    noise: f64,
}

pub(crate) fn verdicts(
    cells: Cells<'_>,
    reference: &Reference,
    parked: &Parked,
    produced: &[Produced],
    echo_beside: &EchoBeside,
) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut judge = |mark: &str, measured: Option<(f64, String)>, holds: fn(f64) -> bool| {
        let (figure, measured) = measured.unwrap_or((f64::NAN, "not measured".into()));
        verdicts.push(Verdict { mark: mark.into(), measured, reached: holds(figure) });
    };
    let ratio = |case: Case, over: Arm, unit: &str, of: fn(&Cell) -> f64| {
        let (ours, theirs) = (cells.find(Arm::Adaptive, case)?, cells.find(over, case)?);
        let (ours, theirs) = (of(ours), of(theirs));
        Some((ours / theirs, format!("{:.2} ({ours:.1} / {theirs:.1} {unit})", ours / theirs)))
    };
    let per_gb: fn(&Cell) -> f64 = |cell| cell.cpu_ms_per_gb;

    let stream = ratio(STREAM, Arm::Buffered, "ms/GB", per_gb);
    judge("streaming: broker CPU per GB, of buffered's, at most 0.30", stream, |x| x <= 0.30);
    let bare = reference.sendfile_cpu_ms_per_gb;
    let over_bare = cells.find(Arm::Adaptive, STREAM).map(|cell| {
        let ours = cell.cpu_ms_per_gb;
        (ours / bare, format!("{:.2} ({ours:.1} / {bare:.1} ms/GB)", ours / bare))
    });
    judge("streaming: of a bare sendfile loop's, at most 1.15", over_bare, |x| x <= 1.15);
    let faster = ratio(STREAM, Arm::Buffered, "MB/s", |cell| cell.mb_per_s);
    judge("streaming: throughput, of buffered's, at least 1.5", faster, |x| x >= 1.5);
    let each = ratio(SCATTERED, Arm::Sendfile, "ms/GB", per_gb);
    let each = each.map(|(figure, mut text)| {
        for case in [64, 128].map(|kib| Case::hot(Layout::Thousand, kib * KIB)) {
            if let Some((_, alone)) = ratio(case, Arm::Sendfile, "ms/GB", per_gb) {
                text += &format!("; at {}, one connection: {alone}", case.describe());
            }
        }
        (figure, text)
    });
    judge("1,000 queues: CPU, of one sendfile per record's, at most 0.25", each, |x| x <= 0.25);
    let scattered = ratio(SCATTERED, Arm::Buffered, "ms/GB", per_gb);
    judge("1,000 queues: CPU, of buffered's, at most 1", scattered, |x| x <= 1.0);
    let echo = reference.epoll_echo_cpu_us;
    let small = cells.find(Arm::Adaptive, NEWEST).map(|cell| {
        let ours = cell.cpu_us_per_fetch;
        (ours / echo, format!("{:.2} ({ours:.1} / {echo:.1} us)", ours / echo))
    });
    judge("one record at the tail: CPU, of an epoll echo's, at most 1.2", small, |x| x <= 1.2);
    let (soon, late) = (parked.fetched_p50_us, parked.fetched_p99_us);
    let waited = (soon, format!("{soon:.0} us (p99 {late:.0}), from sending the produce request"));
    judge("a parked fetch is answered within 100 us at p50", Some(waited), |x| x <= 100.0);
    let tail = tail_beside(cells, echo_beside);
    judge("tail p99 beside a catch-up reader, of alone, at most 1.5", tail, |x| x <= 1.5);
    let acknowledged = produced_beside(produced);
    judge("the same of one record produced, until acknowledged", acknowledged, |x| x <= 1.5);
    judge("hot and alone: better than every single arm somewhere", best_gain(cells), |x| x < 1.0);
    let mark = "no regret, hot and alone: p50, p99 and CPU within 5 % of the best of buffered, mmap and sendfile, or the noise";
    verdicts.push(no_regret(cells, mark, |arm| arm != Arm::Splice));
    let mark = "the same with splice among them, which is measured for the record";
    verdicts.push(no_regret(cells, mark, |_| true));
    verdicts
}

/// By what factor the p99 of a fetch at the tail is longer beside a catch-up reader.
fn tail_beside(cells: Cells<'_>, echo: &EchoBeside) -> Option<(f64, String)> {
    let p99 = |arm| {
        let (alone, beside) = (cells.find(arm, NEWEST)?, cells.find(arm, NEWEST_BESIDE)?);
        Some((alone.p99_us, beside.p99_us))
    };
    let (factor, text) = beside(p99(Arm::Adaptive), p99(Arm::Sendfile))?;
    let (alone, with) = (echo.alone_us[1], echo.beside_us[1]);
    let bare = format!("{:.2} ({with:.0} / {alone:.0} us)", with / alone);
    Some((factor, format!("{text}; {bare} of an echo server on the core of the broker")))
}

/// The same of a record produced.
fn produced_beside(produced: &[Produced]) -> Option<(f64, String)> {
    let p99 = |arm| {
        let of = produced.iter().find(|of| of.arm == arm)?;
        Some((of.alone_us[1], of.beside_us[1]))
    };
    beside(p99(Arm::Adaptive), p99(Arm::Sendfile))
}

/// The p99 alone and beside a catch-up reader, adaptive's and `sendfile`'s.
fn beside(adaptive: Option<(f64, f64)>, forced: Option<(f64, f64)>) -> Option<(f64, String)> {
    let ((alone, with), (forced_alone, forced_with)) = (adaptive?, forced?);
    let (factor, forced) = (with / alone, forced_with / forced_alone);
    let text = format!(
        "{factor:.2} ({with:.0} / {alone:.0} us); {forced:.2} where sendfile is forced on the threads that serve sockets"
    );
    Some((factor, text))
}

/// Where adaptive uses the least CPU of all, and how much of the next.
fn best_gain(cells: Cells<'_>) -> Option<(f64, String)> {
    let gain = |case: Case| {
        let ours = cells.find(Arm::Adaptive, case)?;
        let others = cells.at(case).filter(|cell| cell.arm != Arm::Adaptive);
        let best = others.min_by(|a, b| a.cpu_us_per_fetch.total_cmp(&b.cpu_us_per_fetch))?;
        Some((ours.cpu_us_per_fetch / best.cpu_us_per_fetch, case, best.arm))
    };
    let judged = cells.cases().into_iter().filter(is_steady).filter_map(gain);
    let (ratio, case, next) = judged.min_by(|a, b| a.0.total_cmp(&b.0))?;
    let text = format!("CPU {ratio:.2} of {}'s at {}", next.name(), case.describe());
    Some((ratio, text))
}

/// Whether nothing but the path differs between the arms.
fn is_steady(case: &Case) -> bool {
    case.residency == Residency::Hot && case.beside == Beside::Alone
}

/// Holds adaptive against the best of the other arms that count.
fn no_regret(cells: Cells<'_>, mark: &str, counts: fn(Arm) -> bool) -> Verdict {
    let mut points = 0;
    let mut outside = Vec::new();
    let mut within = 0;
    for case in cells.cases().into_iter().filter(is_steady) {
        let figures: [(&str, Figure); 3] = [
            ("p50", |round| round.p50_us),
            ("p99", |round| round.p99_us),
            ("CPU", |round| round.cpu_us_per_fetch),
        ];
        for (what, figure) in figures {
            let Some(regret) = regret(cells, case, what, figure, counts) else { continue };
            points += 1;
            if regret.ratio <= REGRET {
                within += 1;
            } else if regret.ratio > 1.0 + regret.noise {
                outside.push(regret);
            }
        }
    }
    outside.sort_by(|a, b| b.ratio.total_cmp(&a.ratio));
    let noisy = points - within - outside.len();
    let mut measured =
        format!("{within} of {points} figures within 5 %, {noisy} more within the noise");
    for regret in outside.iter().take(6) {
        measured += &format!(
            "; {} {:.2} of {}'s at {} (noise {:.0} %)",
            regret.what,
            regret.ratio,
            regret.best.name(),
            regret.case.describe(),
            regret.noise * 100.0
        );
    }
    if outside.len() > 6 {
        measured += &format!("; and {} more", outside.len() - 6);
    }
    Verdict { mark: mark.into(), measured, reached: points > 0 && outside.is_empty() }
}

fn regret(
    cells: Cells<'_>,
    case: Case,
    what: &'static str,
    figure: Figure,
    counts: fn(Arm) -> bool,
) -> Option<Regret> {
    let spread = |cell: &Cell| {
        let mut all: Vec<f64> = cell.rounds.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        let middle = all[all.len() / 2];
        (middle, (all[all.len() - 1] - all[0]) / middle)
    };
    let (ours, noise) = spread(cells.find(Arm::Adaptive, case)?);
    let others = cells.at(case).filter(|cell| cell.arm != Arm::Adaptive && counts(cell.arm));
    let (best, (theirs, noise_there)) =
        others.map(|cell| (cell.arm, spread(cell))).min_by(|(_, a), (_, b)| a.0.total_cmp(&b.0))?;
    Some(Regret { case, what, best, ratio: ours / theirs, noise: noise.max(noise_there) })
}
