//! Every call a store makes on a disk fails, with every error that is plausible: it does not panic and
//! does not hang, and what it has acknowledged is there at the next start.

use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use fastrand::Rng;
use longwire_proto::record::RecordDraft;
use longwire_storage::disk::{CrashModel, Fault, FaultDisk, Outcome, Survives, Verb};
use longwire_storage::{
    AppendPath, IndexRead, ReadError, RecordRun, Store, StoreConfig, TagFilter, TopicConfig,
    salvage_on, verify_on,
};

use super::truth::Truth;
use super::workload::Workload;
use super::{DIR, config, open, restart};
use crate::torture::{Options, Report};

const STEPS: usize = 40;
/// EIO, ENOSPC, EINTR, EMFILE, EDQUOT.
const ERRORS: [i32; 5] = [5, 28, 4, 24, 122];
/// Queues that make a checkpoint sync the whole file system.
const MANY_QUEUES: u32 = 300;
/// How long retention may take to remove a segment.
const TRIM_MAX: Duration = Duration::from_secs(5);
/// Far longer than a run takes.
const HANG: Duration = Duration::from_secs(60);

/// Where a fault strikes: a verb, and a kind of path.
type Site = (Verb, String);

/// Lets the calls of every site fail, `count` times for each error (once if not given).
pub(in crate::torture) fn run(options: &Options) -> Report {
    let mut report = Report::new("call-errors", options);
    let mut rng = Rng::with_seed(options.seed);
    let sites = match all_sites(rng.fork()) {
        Ok(sites) => sites,
        Err(error) => {
            report.violation(format!("a run without faults fails: {error}"));
            return report;
        }
    };
    for verb in Verb::ALL {
        if !sites.iter().any(|(known, _)| *known == verb) {
            report.violation(format!("no run makes the call {verb:?}"));
        }
    }
    for site in &sites {
        let errors = ERRORS.into_iter().map(Outcome::Error);
        let errors = errors.chain((site.0 == Verb::WriteAllAt).then_some(Outcome::Short(28)));
        for outcome in errors {
            for _ in 0..options.count.unwrap_or(1) {
                // Not every life comes by the site often enough for any number of calls to go well.
                let after = if rng.u32(..3) == 0 { 0 } else { rng.u64(..25) };
                if !strike(site, outcome, after, &mut rng, &mut report)
                    && !strike(site, outcome, 0, &mut rng, &mut report)
                {
                    report.violation(format!("no life comes by {site:?}"));
                }
            }
        }
    }
    let names: Vec<_> = sites.iter().map(|(verb, kind)| format!("{verb:?} {kind}")).collect();
    report.figure("sites", names);
    report
}

/// Every site that some run reaches.
fn all_sites(mut rng: Rng) -> Result<BTreeSet<Site>, String> {
    let mut sites = BTreeSet::new();
    for path in [AppendPath::Pwrite, AppendPath::Mapped] {
        let disk = FaultDisk::default();
        match live(&disk, path, rng.fork()).told {
            None => sites.extend(disk.sites()),
            Some(error) => return Err(error),
        }
    }
    Ok(sites)
}

/// What a life of a store came to.
#[derive(Debug)]
struct Lived {
    truth: Truth,
    /// The disk when everything in the truth was there: before retention could remove any of it.
    early: io::Result<FaultDisk>,
    /// What a client was told last.
    told: Option<String>,
}

/// A whole life of a store: open, work, many queues, close, open again, verify, salvage.
fn live(disk: &FaultDisk, path: AppendPath, mut rng: Rng) -> Lived {
    let mut workload = match Workload::start(disk.clone(), path, rng.fork()) {
        Ok(workload) => workload,
        Err(error) => {
            let told = Some(error.to_string());
            return Lived { truth: Truth::default(), early: disk.copy(), told };
        }
    };
    let mut told = workload.make_topics().err();
    for _ in 0..STEPS {
        // A full disk passes; what has failed stays failed.
        if told.is_some() && workload.store.failure().is_some() {
            break;
        }
        told = workload.step().err().or(told);
    }
    let closed = workload.store.close().map_err(|error| error.to_string());
    told = told.or(closed.err());
    let (disk, truth) = workload.finish();
    let early = disk.copy();
    let later = many_queues(&disk).and_then(|()| look_into(&disk));
    Lived { truth, early, told: told.or(later.err()) }
}

/// More queues than a checkpoint syncs one by one; then retention, and a start that finds their files.
fn many_queues(disk: &FaultDisk) -> Result<(), String> {
    let store = open(disk).map_err(text)?;
    let topic = store.create_topic(TopicConfig::new("many", MANY_QUEUES)).map_err(text)?;
    for queue in topic.queues() {
        let mut bytes = Vec::new();
        let (id, body) = (queue.id(), [7; 1000]);
        let draft = RecordDraft { topic: "many", queue: id, body: &body, ..Default::default() };
        draft.encode(&mut bytes).map_err(text)?;
        let mut run = RecordRun::check("many", id, &mut bytes).map_err(text)?;
        store.append_blocking(&queue, &mut run).map_err(text)?;
    }
    store.close().map_err(text)?;
    let retaining = StoreConfig {
        retention_bytes: Some(128 << 10),
        retention_check_interval: Duration::from_millis(5),
        ..config(AppendPath::Pwrite)
    };
    let store = Store::open_on(Arc::new(disk.clone()), retaining).map_err(text)?;
    let first = store.stats().first_position;
    let began = Instant::now();
    let waits = || store.stats().first_position == first && store.failure().is_none();
    while waits() && began.elapsed() < TRIM_MAX {
        std::thread::yield_now();
    }
    store.close().map_err(text)?;
    let store = open(disk).map_err(text)?;
    let topic = store.topic("many").ok_or("topic many is gone")?;
    for queue in topic.queues() {
        // From memory alone, as a fetch asks first.
        let first = queue.min_offset();
        let planned = store.plan_read(&queue, first, 1, &TagFilter::All, IndexRead::ResidentOnly);
        planned.map(drop).or_else(|error| match error {
            ReadError::IndexCold => Ok(()),
            error => Err(error.to_string()),
        })?;
    }
    store.delete_topic("many").map_err(text)?;
    store.close().map_err(text)
}

fn look_into(disk: &FaultDisk) -> Result<(), String> {
    verify_on(Arc::new(disk.clone()), Path::new(DIR)).map_err(text)?;
    let to = Path::new("/data/copy");
    let salvaged = salvage_on(Arc::new(disk.clone()), Path::new(DIR), to);
    salvaged.map(drop).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// One life with one fault in it, behind so many calls that go well; whether a call has met it.
fn strike(site: &Site, outcome: Outcome, after: u64, rng: &mut Rng, report: &mut Report) -> bool {
    report.cycles += 1;
    let (verb, kind) = site.clone();
    let what = format!("{verb:?} of {kind} fails with {outcome:?} after {after}");
    let is_mapped = verb == Verb::SyncMapped || (after > 0 && rng.u32(..4) == 0);
    let path = if is_mapped { AppendPath::Mapped } else { AppendPath::Pwrite };
    let disk = FaultDisk::default();
    let times = if rng.bool() { 1 } else { u64::MAX };
    let path_part = if kind == "folder" { String::new() } else { kind };
    let verb = Some(verb);
    disk.add_fault(Fault { verb, syncs_only: false, path: path_part, after, times, outcome });
    let (send, receive) = channel();
    let (living, forked) = (disk.clone(), rng.fork());
    std::thread::spawn(move || {
        let lived = catch_unwind(AssertUnwindSafe(|| live(&living, path, forked)));
        // Nobody listens any more to one that hangs.
        let _ = send.send(lived);
    });
    match receive.recv_timeout(HANG) {
        Err(_) => report.violation(format!("{what}: it hangs")),
        Ok(Err(_)) => report.violation(format!("{what}: it panics")),
        Ok(Ok(lived)) => restart_all(&disk, lived, &what, report),
    }
    disk.faults_met() > 0
}

/// Starts what the life has left: in the middle, at its end, and after a power cut.
fn restart_all(disk: &FaultDisk, lived: Lived, what: &str, report: &mut Report) {
    let Lived { mut truth, early, .. } = lived;
    report.acked += truth.acked_by(usize::MAX);
    restart(early, &truth, &format!("{what}, then a restart in between"), report);
    // Retention may have removed any message by now.
    truth.forget_firsts();
    disk.clear_faults();
    let mut model = CrashModel::default();
    disk.journal().iter().for_each(|event| model.pass(event));
    let cut = model.image(Survives::Nothing);
    for (after, image) in [("a restart", disk.copy()), ("a power cut", cut)] {
        restart(image, &truth, &format!("{what}, then {after}"), report);
    }
}
