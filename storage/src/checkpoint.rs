//! How far the log is known to be durable.
//!
//! ```text
//!  checkpoint: two slots, at 0 and 4096; the newest whole one counts
//!  0        8         12       16         24        32          40      44
//!  | magic  | version | clean  | sequence | durable | newest ms | CRC-32 |
//! ```
//!
//! Big-endian. Writing goes to the slots in turn, so that a torn write leaves the one before.
//!
//! ```text
//!  flush mark, at 8192
//!  0          8       12
//!  | position | CRC-32 |
//! ```
//!
//! Behind it, at 8208 and of the same form, a store that fails leaves the position up to which it was
//! durable: the next start has to write again what it finds above.
//!
//! The mark follows every sync of the log and is not synced itself: it outlives the process, and a
//! power cut leaves an older one. It never says more than was durable when it was written.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use longwire_proto::record::crc32;

use crate::disk::{Disk, DiskFile};
use crate::error::{FileError, OpenError};

const MAGIC: u64 = u64::from_be_bytes(*b"LWCHKPT\0");
const VERSION: u32 = 1;
const SLOT_BYTES: u64 = 4096;
const MARK_AT: u64 = 2 * SLOT_BYTES;
const MARK_BYTES: usize = 12;
const FAILURE_AT: u64 = MARK_AT + 16;
const CRC_AT: usize = 40;
const USED_BYTES: usize = CRC_AT + 4;

/// What a checkpoint says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Checkpoint {
    /// The store was closed; the log ends at `durable`.
    pub(crate) clean: bool,
    /// Everything below survives power loss. A boundary between records: a scan can begin here.
    pub(crate) durable: u64,
    /// The newest store timestamp below `durable`, in milliseconds since 1970.
    pub(crate) newest_ms: i64,
}

/// The checkpoint's file.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    file: Arc<dyn DiskFile>,
    sequence: u64,
}

/// What the file says about the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    /// The newest whole checkpoint.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// The last position known to be durable, by the checkpoint or the flush mark; `None` where
    /// neither can be read, and so nobody knows.
    pub(crate) durable: Option<u64>,
    /// The store failed when it was last open: what is in the page cache above *durable* may be
    /// nowhere else, and no sync will bring it to disk.
    pub(crate) failed: bool,
}

impl CheckpointFile {
    /// Opens the file, or makes an empty one.
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> Result<(CheckpointFile, Known), OpenError> {
        let file = disk.open_or_create(path).map_err(FileError::on("open", path))?;
        let (sequence, known) = read_known(&*file, path)?;
        Ok((CheckpointFile { file, sequence }, known))
    }

    /// The place for marks of flushes.
    pub(crate) fn flush_mark(&self) -> FlushMark {
        FlushMark(self.file.clone())
    }

    /// Writes a checkpoint and makes it durable.
    pub(crate) fn write(&mut self, checkpoint: Checkpoint) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let slot = (sequence % 2) * SLOT_BYTES;
        self.file.write_all_at(&mut [IoSlice::new(&encode(sequence, checkpoint))], slot)?;
        self.file.sync()?;
        self.sequence = sequence;
        Ok(())
    }

    /// As [`write`](Self::write), to both slots, and no failure: what they said before is forgotten. A
    /// damaged slot then cannot bring back the word that the store was closed.
    pub(crate) fn write_both(&mut self, checkpoint: Checkpoint) -> io::Result<()> {
        self.file.write_all_at(&mut [IoSlice::new(&[0; MARK_BYTES])], FAILURE_AT)?;
        self.write(checkpoint)?;
        self.write(checkpoint)
    }
}

/// What a checkpoint's file says, and the sequence of its newest slot.
pub(crate) fn read_known(file: &dyn DiskFile, path: &Path) -> Result<(u64, Known), OpenError> {
    let mut newest: Option<(u64, Checkpoint)> = None;
    for slot in 0..2 {
        let bytes = read(file, slot * SLOT_BYTES).map_err(FileError::on("read", path))?;
        let Some((version, sequence, checkpoint)) = decode(&bytes) else {
            continue;
        };
        if version > VERSION {
            let what = format!("has format version {version}; this is version {VERSION}");
            return Err(OpenError::Version { path: path.to_owned(), what });
        }
        if newest.is_none_or(|(known, _)| sequence > known) {
            newest = Some((sequence, checkpoint));
        }
    }
    let mark = read(file, MARK_AT).map_err(FileError::on("read", path))?;
    let (sequence, checkpoint) = newest.unzip();
    let durable = checkpoint.map(|checkpoint| checkpoint.durable).max(decode_mark(&mark));
    let failure = read(file, FAILURE_AT).map_err(FileError::on("read", path))?;
    let failed = decode_mark(&failure).is_some();
    Ok((sequence.unwrap_or(0), Known { checkpoint, durable, failed }))
}

/// Where the flusher notes how far the log is durable.
#[derive(Debug)]
pub(crate) struct FlushMark(Arc<dyn DiskFile>);

impl FlushMark {
    /// Notes that the log is durable up to a position, where it is so already.
    pub(crate) fn write(&self, position: u64) -> io::Result<()> {
        self.0.write_all_at(&mut [IoSlice::new(&encode_mark(position))], MARK_AT)
    }

    /// Notes that the store has failed when the log was durable up to a position.
    pub(crate) fn write_failure(&self, position: u64) -> io::Result<()> {
        self.0.write_all_at(&mut [IoSlice::new(&encode_mark(position))], FAILURE_AT)
    }
}

fn encode_mark(position: u64) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..8].copy_from_slice(&position.to_be_bytes());
    let crc = crc32(&bytes[..8]);
    bytes[8..].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn decode_mark(bytes: &[u8; MARK_BYTES]) -> Option<u64> {
    let (position, crc) = bytes.split_at(8);
    let position = position.try_into().map(u64::from_be_bytes).ok()?;
    (crc == crc32(&bytes[..8]).to_be_bytes()).then_some(position)
}

/// Bytes of the file; zeros where it is shorter, which decode as nothing.
fn read<const N: usize>(file: &dyn DiskFile, at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_at(&mut bytes, at)?;
    Ok(bytes)
}

fn encode(sequence: u64, checkpoint: Checkpoint) -> [u8; USED_BYTES] {
    let mut bytes = [0; USED_BYTES];
    bytes[..8].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[8..12].copy_from_slice(&VERSION.to_be_bytes());
    bytes[12..16].copy_from_slice(&u32::from(checkpoint.clean).to_be_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_be_bytes());
    bytes[24..32].copy_from_slice(&checkpoint.durable.to_be_bytes());
    bytes[32..40].copy_from_slice(&checkpoint.newest_ms.to_be_bytes());
    let crc = crc32(&bytes[..CRC_AT]);
    bytes[CRC_AT..].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8; USED_BYTES]) -> Option<(u32, u64, Checkpoint)> {
    let u32_at = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
    let u64_at = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
    let crc = crc32(&bytes[..CRC_AT]);
    let whole = u64_at(0) == MAGIC && u32_at(CRC_AT) == crc;
    let checkpoint =
        Checkpoint { clean: u32_at(12) == 1, durable: u64_at(24), newest_ms: u64_at(32) as i64 };
    whole.then(|| (u32_at(8), u64_at(16), checkpoint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_damaged_slot_leaves_the_checkpoint_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        let (mut file, none) = CheckpointFile::open(&RealDisk, &path).unwrap();
        assert_eq!(none, Known { checkpoint: None, durable: None, failed: false });
        let older = Checkpoint { clean: false, durable: 10, newest_ms: 1 };
        let newer = Checkpoint { clean: true, durable: 20, newest_ms: 2 };
        file.write(older).unwrap();
        file.write(newer).unwrap();
        assert_eq!(checkpoint_in(&path), Some(newer));

        for bit in 0..USED_BYTES * 8 {
            let damaged = dir.path().join("damaged");
            std::fs::write(&damaged, flipped(&path, bit)).unwrap(); // slot 0 has sequence 2
            assert_eq!(checkpoint_in(&damaged), Some(older));
        }
    }

    #[test]
    fn a_damaged_slot_never_says_again_that_the_store_was_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        let (mut file, _) = CheckpointFile::open(&RealDisk, &path).unwrap();
        file.write(Checkpoint { clean: true, durable: 10, newest_ms: 1 }).unwrap();
        file.write_both(Checkpoint { clean: false, durable: 10, newest_ms: 1 }).unwrap();
        for bit in [0, SLOT_BYTES as usize * 8] {
            let damaged = dir.path().join("damaged");
            std::fs::write(&damaged, flipped(&path, bit)).unwrap();
            assert!(!checkpoint_in(&damaged).unwrap().clean);
        }
    }

    #[test]
    fn the_flush_mark_counts_only_if_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        let (mut file, _) = CheckpointFile::open(&RealDisk, &path).unwrap();
        file.write(Checkpoint { durable: 10, ..Checkpoint::default() }).unwrap();
        file.flush_mark().write(25).unwrap();
        assert_eq!(CheckpointFile::open(&RealDisk, &path).unwrap().1.durable, Some(25));
        std::fs::write(&path, flipped(&path, (8192 + 7) * 8)).unwrap();
        assert_eq!(CheckpointFile::open(&RealDisk, &path).unwrap().1.durable, Some(10));
    }

    fn checkpoint_in(path: &Path) -> Option<Checkpoint> {
        CheckpointFile::open(&RealDisk, path).unwrap().1.checkpoint
    }

    fn flipped(path: &Path, bit: usize) -> Vec<u8> {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    }

    #[test]
    fn a_failure_is_known_until_a_start_has_dealt_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        let (file, _) = CheckpointFile::open(&RealDisk, &path).unwrap();
        file.flush_mark().write_failure(7).unwrap();
        let (mut file, known) = CheckpointFile::open(&RealDisk, &path).unwrap();
        assert!(known.failed);
        file.write_both(Checkpoint::default()).unwrap();
        assert!(!CheckpointFile::open(&RealDisk, &path).unwrap().1.failed);
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        let mut bytes = encode(1, Checkpoint::default());
        bytes[11] = 9;
        let crc = crc32(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_be_bytes());
        std::fs::write(&path, bytes).unwrap();
        let refused = CheckpointFile::open(&RealDisk, &path).unwrap_err();
        assert!(refused.to_string().contains("format version 9"), "{refused}");
    }
}
