//! How a store is set up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use longwire_proto::limits::RECORD_BYTES_MAX;

/// The smallest segment, in bytes. Small ones are for tests; records must fit into one.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// The largest segment, in bytes: the blank record's size is a signed 32-bit number.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// How bytes enter a segment. Both ways go through the page cache, where readers see either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AppendPath {
    /// Stores into the mapping, whose pages are faulted in ahead of the tail; made durable by `msync`
    /// of the appended range. No system call for an append, but one page at a time is prepared.
    Mapped,
    /// `pwrite` into the file; made durable by `fdatasync`. The kernel fills large folios at once, and
    /// a sync finds no mapped page to write-protect. `cargo bench --bench append` compares the two.
    #[default]
    Pwrite,
}

/// Settings of a store. [`StoreConfig::new`] gives the defaults.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Where its files are. Made if absent.
    pub dir: PathBuf,
    /// Size of a new segment: 64 KiB to 1 GiB, a multiple of 4 KiB. Existing segments keep theirs.
    pub segment_bytes: u64,
    /// How bytes enter a segment.
    pub append_path: AppendPath,
    /// What every record says about the broker that stored it.
    pub store_host: SocketAddr,
    /// How long records of topics with durability `write` may stay unflushed.
    pub flush_interval: Duration,
    /// At most this long between two checkpoints while there is something new.
    pub checkpoint_interval: Duration,
    /// At most this many bytes of log between two checkpoints: what a start after a crash scans.
    pub checkpoint_bytes: u64,
    /// Segments whose newest record is older than this are removed. `None`: never.
    pub retention_age: Option<Duration>,
    /// The oldest segments are removed while the log is larger than this. `None`: never.
    pub retention_bytes: Option<u64>,
    /// How often retention looks.
    pub retention_check_interval: Duration,
}

impl StoreConfig {
    /// The defaults, in this folder.
    pub fn new(dir: impl Into<PathBuf>) -> StoreConfig {
        StoreConfig {
            dir: dir.into(),
            segment_bytes: SEGMENT_BYTES_MAX,
            append_path: AppendPath::default(),
            store_host: SocketAddr::from(([127, 0, 0, 1], 7650)),
            flush_interval: Duration::from_millis(500),
            checkpoint_interval: Duration::from_secs(10),
            checkpoint_bytes: 256 << 20,
            retention_age: None,
            retention_bytes: None,
            retention_check_interval: Duration::from_secs(10),
        }
    }

    /// The largest record a segment of this size can hold, in bytes.
    pub(crate) fn record_bytes_max(&self) -> u64 {
        (self.segment_bytes - longwire_proto::record::BLANK_BYTES as u64)
            .min(RECORD_BYTES_MAX as u64)
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let bytes = self.segment_bytes;
        if !is_segment_size(bytes) {
            return Err(format!(
                "segment_bytes is {bytes}: it must be from {SEGMENT_BYTES_MIN} to \
                 {SEGMENT_BYTES_MAX} and a multiple of 4096"
            ));
        }
        Ok(())
    }
}

/// Whether a segment's file can have been made of this size.
pub(crate) fn is_segment_size(bytes: u64) -> bool {
    (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(4096)
}
