//! Classes that break a store in this process, on a disk in memory that records and fails.

pub(super) mod bit_flips;
pub(super) mod call_errors;
pub(super) mod crash_images;
pub(super) mod derived_loss;
pub(super) mod sync_errors;
mod truth;
mod workload;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use longwire_storage::disk::FaultDisk;
use longwire_storage::{AppendPath, OpenError, Store, StoreConfig};

use self::truth::Truth;
use self::workload::Workload;
use super::Report;

/// Where the store is on the disk in memory.
const DIR: &str = "/data/store";
/// Later than any event of a disk: whatever was acknowledged has to be there.
const EVERYTHING: usize = usize::MAX - 1;

/// Small segments, and checkpoints all the time.
fn config(path: AppendPath) -> StoreConfig {
    StoreConfig {
        segment_bytes: 64 << 10,
        append_path: path,
        flush_interval: Duration::from_millis(5),
        checkpoint_interval: Duration::from_millis(20),
        checkpoint_bytes: 48 << 10,
        ..StoreConfig::new(DIR)
    }
}

/// Opens what is on a disk as it is: nothing expires.
fn open(disk: &FaultDisk) -> Result<Arc<Store>, OpenError> {
    let quiet = StoreConfig {
        checkpoint_interval: Duration::from_secs(3600),
        checkpoint_bytes: 1 << 40,
        ..config(AppendPath::Pwrite)
    };
    Store::open_on(Arc::new(disk.clone()), quiet)
}

/// A store that has done so many things: closed, or as the death of its process leaves it.
fn worked(closed: bool, steps: usize, rng: Rng) -> Result<(FaultDisk, Truth), String> {
    let started = Workload::start(FaultDisk::default(), AppendPath::Pwrite, rng);
    let mut workload = started.map_err(|error| error.to_string())?;
    workload.make_topics()?;
    for _ in 0..steps {
        workload.step()?;
    }
    if closed { Ok(workload.finish()) } else { workload.killed() }
}

/// Starts a store on an image and holds it against everything that was acknowledged; `what` was done
/// to it. Neither is a reader to be told of errors: nothing that was acknowledged is damaged.
fn restart(image: io::Result<FaultDisk>, truth: &Truth, what: &str, report: &mut Report) {
    let image = match image {
        Ok(image) => image,
        Err(error) => return report.violation(format!("{what}: no image can be made: {error}")),
    };
    match open(&image) {
        Ok(store) => {
            let found = truth.check(&store, EVERYTHING);
            report.lost += found.lost;
            report.misordered += found.misordered;
            for problem in found.problems.iter().chain(&found.told) {
                report.violation(format!("{what}: {problem}"));
            }
        }
        Err(error) => report.violation(format!("{what}: the store does not start: {error}")),
    }
}

/// The folder of the log's files.
fn log() -> PathBuf {
    Path::new(DIR).join("commitlog")
}

/// The bytes of the log's files.
fn log_bytes(disk: &FaultDisk) -> Vec<(PathBuf, Vec<u8>)> {
    let files = disk.files().expect("files in memory can be read");
    files.into_iter().filter(|(path, _)| path.starts_with(log())).collect()
}
