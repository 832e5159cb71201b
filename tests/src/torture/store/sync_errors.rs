//! A sync fails, at any place of a store's life, for ever or once: nothing is acknowledged after it,
//! and what was acknowledged before survives a power cut.

use std::time::{Duration, Instant};

use fastrand::Rng;
use longwire_storage::AppendPath;
use longwire_storage::disk::{CrashModel, Fault, FaultDisk, Outcome, Survives};

use super::restart;
use super::workload::Workload;
use crate::torture::{Options, Report};

/// The syncs that fail, one in each run, if no other number is given.
const SYNCS: u64 = 200;
/// How much work there may be before the sync comes.
const STEPS_MAX: usize = 2_000;
const EIO: i32 = 5;
/// How long a failed store may take to say so.
const TELL_MAX: Duration = Duration::from_secs(1);

/// Lets each of the first `count` syncs (200 if not given) fail: for ever, and once.
pub(in crate::torture) fn run(options: &Options) -> Report {
    let mut report = Report::new("sync-errors", options);
    let mut rng = Rng::with_seed(options.seed);
    let mut failed = 0_u64;
    for after in 0..options.count.unwrap_or(SYNCS) {
        for times in [u64::MAX, 1] {
            report.cycles += 1;
            let path = if after % 4 == 3 { AppendPath::Mapped } else { AppendPath::Pwrite };
            failed += u64::from(one(after, times, path, &mut rng, &mut report));
        }
    }
    report.figure("failed_stores", failed);
    report
}

/// One store whose sync number `after` fails; whether the store has noticed.
fn one(after: u64, times: u64, path: AppendPath, rng: &mut Rng, report: &mut Report) -> bool {
    let disk = FaultDisk::default();
    let outcome = Outcome::Error(EIO);
    let fault = Fault { verb: None, syncs_only: true, path: String::new(), after, times, outcome };
    disk.add_fault(fault);
    let Ok(mut workload) = Workload::start(disk.clone(), path, rng.fork()) else {
        // It did not start, and so has acknowledged nothing.
        return true;
    };
    let mut told = workload.make_topics().err();
    for _ in 0..STEPS_MAX {
        if told.is_some() || disk.faults_met() > 0 {
            break;
        }
        told = workload.step().err();
    }
    if disk.faults_met() == 0 {
        report.violation(format!("sync {after} never comes; refused: {told:?}"));
    }
    let failed = after_failure(&mut workload, after, report);
    let (disk, truth) = workload.finish();
    report.acked += truth.acked_by(usize::MAX);
    disk.clear_faults();
    let mut model = CrashModel::default();
    disk.journal().iter().for_each(|event| model.pass(event));
    let cut = model.image(Survives::Nothing);
    let torn = model.image(Survives::Any(&mut |below| rng.u64(..below)));
    let images = [("the process dies", disk.copy()), ("power goes", cut), ("power goes", torn)];
    for (what, image) in images {
        restart(image, &truth, &format!("sync {after}, then {what}"), report);
    }
    failed
}

/// What must hold once a sync has failed: the store says so, and takes nothing more. Whether it does.
fn after_failure(workload: &mut Workload, after: u64, report: &mut Report) -> bool {
    let began = Instant::now();
    while workload.store.failure().is_none() && began.elapsed() < TELL_MAX {
        std::thread::yield_now();
    }
    let Some(reason) = workload.store.failure() else {
        report.violation(format!("sync {after} failed, and the store does not say so"));
        return false;
    };
    if !reason.contains("failed") {
        report.violation(format!("sync {after}: {reason:?} says nothing"));
    }
    let acked = workload.truth.acked_by(usize::MAX);
    for _ in 0..10 {
        if workload.append().is_ok() {
            report.violation(format!("sync {after}: an append succeeds after the failure"));
        }
    }
    if workload.truth.acked_by(usize::MAX) > acked {
        report.violation(format!("sync {after}: acknowledged after the failure"));
    }
    true
}
