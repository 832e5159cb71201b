//! Every state that a power cut could leave of a store at work: prefixes and subsets of what was not
//! synced, the last write torn at any byte, names that were not made durable.

use fastrand::Rng;
use longwire_storage::AppendPath;
use longwire_storage::disk::{CrashModel, Event, FaultDisk, Survives};

use super::truth::Truth;
use super::workload::Workload;
use super::{log_bytes, open};
use crate::torture::{Options, Report};

const IMAGES: u64 = 5_000;
/// Images made of one run of the workload, and the steps of that run.
const IMAGES_PER_RUN: u64 = 1_000;
const STEPS: usize = 160;
/// Of one write, every place it can be torn at is tried where it is no longer than this.
const SWEEP_BYTES_MAX: usize = 600;

/// Makes `count` images (5,000 if not given) and recovers each.
pub(in crate::torture) fn run(options: &Options) -> Report {
    let mut report = Report::new("crash-images", options);
    let images = options.count.unwrap_or(IMAGES);
    let mut rng = Rng::with_seed(options.seed);
    while report.cycles < images && report.violations < 20 {
        let path = if rng.u32(..4) == 0 { AppendPath::Mapped } else { AppendPath::Pwrite };
        match work(path, rng.fork()) {
            Ok((disk, truth)) => {
                report.acked += truth.acked_by(usize::MAX);
                let left = (images - report.cycles).min(IMAGES_PER_RUN);
                crash_everywhere(&disk.journal(), &truth, left, &mut rng, &mut report);
            }
            Err(error) => report.violation(format!("the workload failed: {error}")),
        }
    }
    report
}

fn work(path: AppendPath, rng: Rng) -> Result<(FaultDisk, Truth), String> {
    let started = Workload::start(FaultDisk::default(), path, rng);
    let mut workload = started.map_err(|error| error.to_string())?;
    workload.make_topics()?;
    for _ in 0..STEPS {
        workload.step()?;
    }
    Ok(workload.finish())
}

/// Cuts the power at moments spread over the journal.
fn crash_everywhere(
    journal: &[Event],
    truth: &Truth,
    images: u64,
    rng: &mut Rng,
    report: &mut Report,
) {
    let end = report.cycles + images;
    let mut model = CrashModel::default();
    for (number, event) in journal.iter().enumerate() {
        model.pass(event);
        let left = (journal.len() - number) as u64;
        // As many here as keep the rest evenly spread.
        let mut here = end.saturating_sub(report.cycles).div_ceil(left);
        if here == 0 || (here == 1 && rng.u64(..left) >= end.saturating_sub(report.cycles)) {
            continue;
        }
        let last = model.pending().checked_sub(1);
        let torn = last.and_then(|last| model.write_len(last)).unwrap_or(0);
        if torn > 0 && torn <= SWEEP_BYTES_MAX && rng.u32(..40) == 0 {
            let events = last.unwrap_or(0);
            for torn in 0..torn {
                let image = model.image(Survives::Prefix { events, torn });
                recover(image, truth, number + 1, rng, report);
            }
        }
        while here > 0 {
            here -= 1;
            let pending = model.pending();
            let image = match rng.u32(..8) {
                0 => model.image(Survives::Nothing),
                1 => model.image(Survives::Prefix { events: pending, torn: 0 }),
                2 | 3 => {
                    let events = rng.usize(..=pending);
                    let torn = model.write_len(events).map_or(0, |len| rng.usize(..=len));
                    model.image(Survives::Prefix { events, torn })
                }
                _ => model.image(Survives::Any(&mut |below| rng.u64(..below))),
            };
            recover(image, truth, number + 1, rng, report);
        }
    }
}

/// Opens an image, holds it against the truth, and now and then does so once more.
fn recover(
    image: std::io::Result<FaultDisk>,
    truth: &Truth,
    event: usize,
    rng: &mut Rng,
    report: &mut Report,
) {
    report.cycles += 1;
    let disk = match image {
        Ok(disk) => disk,
        Err(error) => return report.violation(format!("no image can be made: {error}")),
    };
    if !check(&disk, truth, event, report) {
        return;
    }
    match rng.u32(..8) {
        0 => {
            let once = log_bytes(&disk);
            if let Ok(again) = disk.copy()
                && check(&again, truth, event, report)
                && log_bytes(&again) != once
            {
                report.violation("recovering twice gives other bytes");
            }
        }
        1 => {
            // Power goes again, somewhere in the recovery.
            let journal = disk.journal();
            let mut model = CrashModel::default();
            let until = rng.usize(..=journal.len());
            let begin = journal.iter().position(|event| matches!(event, Event::SyncAll));
            let until = until.max(begin.map_or(0, |begin| begin + 1));
            journal[..until].iter().for_each(|event| model.pass(event));
            if let Ok(again) = model.image(Survives::Any(&mut |below| rng.u64(..below))) {
                check(&again, truth, event, report);
            }
        }
        _ => {}
    }
}

fn check(disk: &FaultDisk, truth: &Truth, event: usize, report: &mut Report) -> bool {
    let store = match open(disk) {
        Ok(store) => store,
        Err(error) => {
            report.violation(format!("event {event}: the store does not start: {error}"));
            return false;
        }
    };
    let found = truth.check(&store, event);
    drop(store);
    report.lost += found.lost;
    report.misordered += found.misordered;
    let wrong = found.problems.iter().chain(&found.told);
    wrong.clone().for_each(|problem| report.violation(format!("event {event}: {problem}")));
    wrong.count() == 0
}
