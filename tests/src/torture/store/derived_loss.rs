//! Everything that is derived from the log is deleted, cut short or garbled, one file at a time and
//! all together: the next start serves what was acknowledged, and knows what was committed.

use std::path::{Path, PathBuf};

use fastrand::Rng;
use longwire_storage::AppendPath;
use longwire_storage::disk::FaultDisk;

use super::truth::Truth;
use super::workload::Workload;
use super::{DIR, open};
use crate::torture::{Options, Report};

const ROUNDS: u64 = 4;
const STEPS: usize = 120;

/// Breaks every view of `count` stores (4 if not given), closed ones and killed ones in turn.
pub(in crate::torture) fn run(options: &Options) -> Report {
    let mut report = Report::new("derived-loss", options);
    let mut rng = Rng::with_seed(options.seed);
    for round in 0..options.count.unwrap_or(ROUNDS) {
        match prepare(round % 2 == 0, rng.fork()) {
            Ok((disk, truth)) => {
                report.acked += truth.acked_by(usize::MAX);
                break_views(&disk, &truth, &mut rng, &mut report);
            }
            Err(error) => report.violation(format!("the workload failed: {error}")),
        }
    }
    report
}

fn prepare(closed: bool, rng: Rng) -> Result<(FaultDisk, Truth), String> {
    let started = Workload::start(FaultDisk::default(), AppendPath::Pwrite, rng);
    let mut workload = started.map_err(|error| error.to_string())?;
    workload.make_topics()?;
    for _ in 0..STEPS {
        workload.step()?;
    }
    if closed { Ok(workload.finish()) } else { workload.killed() }
}

fn break_views(disk: &FaultDisk, truth: &Truth, rng: &mut Rng, report: &mut Report) {
    let files = disk.files().expect("files in memory can be read");
    let (queues, maps) = (Path::new(DIR).join("consumequeue"), Path::new(DIR).join("views.redb"));
    let views: Vec<_> =
        files.into_iter().filter(|(path, _)| path.starts_with(&queues) || *path == maps).collect();
    for (path, bytes) in &views {
        for (how, broken) in breakages(bytes, rng) {
            let change = [(path.clone(), broken)];
            restart(disk, truth, &change, &format!("{} {how}", path.display()), report);
        }
    }
    for pair in views.windows(2) {
        let swapped = [
            (pair[0].0.clone(), Some(pair[1].1.clone())),
            (pair[1].0.clone(), Some(pair[0].1.clone())),
        ];
        restart(disk, truth, &swapped, &format!("{} swapped", pair[0].0.display()), report);
    }
    let gone = |only: &dyn Fn(&Path) -> bool| -> Vec<_> {
        let chosen = views.iter().filter(|(path, _)| only(path));
        chosen.map(|(path, _)| (path.clone(), None)).collect()
    };
    restart(disk, truth, &gone(&|path| path.starts_with(&queues)), "no consume queues", report);
    restart(disk, truth, &gone(&|_| true), "no views at all", report);
}

/// A file that is gone, cut short, or not what it was.
fn breakages(bytes: &[u8], rng: &mut Rng) -> Vec<(String, Option<Vec<u8>>)> {
    let mut all = vec![("deleted".to_owned(), None)];
    for len in [0, 1, bytes.len() / 2, bytes.len().saturating_sub(1), rng.usize(..=bytes.len())] {
        let len = len.min(bytes.len());
        all.push((format!("cut to {len} bytes"), Some(bytes[..len].to_vec())));
    }
    all.push(("zeroed".to_owned(), Some(vec![0; bytes.len()])));
    let noise = std::iter::repeat_with(|| rng.u8(..)).take(bytes.len()).collect();
    all.push(("replaced by noise".to_owned(), Some(noise)));
    for _ in 0..4 {
        let mut garbled = bytes.to_vec();
        if garbled.is_empty() {
            continue;
        }
        let at = rng.usize(..garbled.len());
        let len = rng.usize(1..200).min(garbled.len() - at);
        garbled[at..at + len].iter_mut().for_each(|byte| *byte = rng.u8(..));
        all.push((format!("garbled at {at} for {len} bytes"), Some(garbled)));
    }
    all
}

fn restart(
    disk: &FaultDisk,
    truth: &Truth,
    changes: &[(PathBuf, Option<Vec<u8>>)],
    what: &str,
    report: &mut Report,
) {
    report.cycles += 1;
    let changed = disk.copy().and_then(|copy| {
        changes.iter().try_for_each(|(path, bytes)| copy.put(path, bytes.as_deref()))?;
        Ok(copy)
    });
    let copy = match changed {
        Ok(copy) => copy,
        Err(error) => return report.violation(format!("{what}: {error}")),
    };
    match open(&copy) {
        Ok(store) => {
            let found = truth.check(&store, usize::MAX - 1);
            report.lost += found.lost;
            report.misordered += found.misordered;
            for problem in found.problems.iter().chain(&found.told) {
                report.violation(format!("{what}: {problem}"));
            }
        }
        Err(error) => report.violation(format!("{what}: the store does not start: {error}")),
    }
}
