//! What has been written to the disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use longwire_benches::block_device;

/// The kernel counts sectors of this size, whatever the device has.
const SECTOR_BYTES: u64 = 512;

/// Bytes written so far; `None` where nobody counts.
pub(crate) struct Written {
    /// To the block device, by whichever process.
    pub(crate) device: Option<u64>,
    /// Handed to the block layer for pages this process has made dirty.
    pub(crate) process: Option<u64>,
}

impl Written {
    /// Brings everything that is dirty on the file system to the device, and reads the counters.
    pub(crate) fn settled(dir: &Path) -> Written {
        // Where the folder has been removed or refuses, the counters only lag.
        let _ = File::open(dir).map(|folder| rustix::fs::syncfs(&folder));
        Written { device: device(dir), process: process() }
    }

    /// What has been written after `before`.
    pub(crate) fn since(&self, before: &Written) -> Written {
        let since = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before?));
        Written {
            device: since(self.device, before.device),
            process: since(self.process, before.process),
        }
    }
}

/// How bytes written are counted for files in this folder.
pub(crate) fn method(dir: &Path) -> String {
    let device = match stat_file(dir).filter(|file| file.exists()) {
        Some(file) => format!(
            "device: sectors written in {}, other processes included, between two syncfs",
            file.display()
        ),
        None => "device: not counted, as the file system is on no block device".to_owned(),
    };
    format!("{device}; process: write_bytes in /proc/self/io; both with checkpoints and views")
}

/// The statistics of the block device that a folder is on.
fn stat_file(dir: &Path) -> Option<PathBuf> {
    Some(block_device(dir)?.join("stat"))
}

fn device(dir: &Path) -> Option<u64> {
    let stat = fs::read_to_string(stat_file(dir)?).ok()?;
    // The seventh field: sectors written.
    Some(stat.split_whitespace().nth(6)?.parse::<u64>().ok()? * SECTOR_BYTES)
}

fn process() -> Option<u64> {
    let io = fs::read_to_string("/proc/self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.trim().parse().ok()
}
