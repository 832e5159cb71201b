//! Classes that break a store in this process, on a disk in memory that records and fails.

pub(super) mod bit_flips;
pub(super) mod call_errors;
pub(super) mod crash_images;
pub(super) mod derived_loss;
pub(super) mod sync_errors;
mod truth;
mod workload;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longwire_storage::disk::FaultDisk;
use longwire_storage::{AppendPath, OpenError, Store, StoreConfig};

/// Where the store is on the disk in memory.
const DIR: &str = "/data/store";

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

/// The bytes of the log's files.
fn log_bytes(disk: &FaultDisk) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let files = disk.files().expect("files in memory can be read");
    let dir = Path::new(DIR).join("commitlog");
    files.into_iter().filter(|(path, _)| path.starts_with(&dir)).collect()
}
