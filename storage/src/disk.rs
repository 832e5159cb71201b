//! The one narrow door between `storage` and the operating system's files.
//!
//! Every create, preallocation, map, write, sync, rename and removal goes through [`Disk`] and
//! [`DiskFile`], so that a test can record, reorder and fail them.

#[cfg(feature = "testing")]
mod crash;
#[cfg(feature = "testing")]
mod fault;
#[cfg(feature = "testing")]
mod faults;
#[cfg(feature = "testing")]
mod journal;
mod mapping;
mod real;

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

#[cfg(feature = "testing")]
pub use crash::{CrashModel, Survives};
#[cfg(feature = "testing")]
pub use fault::FaultDisk;
#[cfg(feature = "testing")]
pub use faults::{Fault, Outcome, Verb};
#[cfg(feature = "testing")]
pub use journal::{Event, FileId};
pub(crate) use mapping::{MappedTail, Mapping};
pub use real::RealDisk;

/// Calls on directories and whole files.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// Makes a new file of exactly `bytes` zero bytes, all of them reserved on the device: writing to
    /// it later cannot run out of space. Fails if the file exists.
    fn create_reserved(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file for reading and writing, making an empty one if there is none.
    fn open_or_create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file that must exist for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file that must exist for reading alone; writing to it fails.
    fn open_readonly(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// The names in a directory, sorted. An absent directory has none.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes a directory and those above it; returns the ones that were not there, outermost first.
    /// They are durable when the directories they are in have been synced.
    fn create_dir(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives a file or directory another name on the same file system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a directory with all that is in it.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes everything on the file system of `dir` durable, in one call.
    fn sync_file_system(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that can still be taken up on the file system of `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Takes the exclusive lock on a file until the guard is dropped; `WouldBlock` if another
    /// process has it.
    fn lock(&self, path: &Path) -> io::Result<DiskLock>;

    /// Keeps others from taking the exclusive lock, without writing to the file, which must exist;
    /// `WouldBlock` if another process has the exclusive lock.
    fn lock_shared(&self, path: &Path) -> io::Result<DiskLock>;
}

/// A lock on a file, until it is dropped.
pub struct DiskLock(#[allow(dead_code, reason = "held, not read")] Box<dyn Send + Sync>);

impl DiskLock {
    /// A lock that lasts as long as `guard`.
    pub fn new(guard: impl Send + Sync + 'static) -> DiskLock {
        DiskLock(Box::new(guard))
    }
}

impl std::fmt::Debug for DiskLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskLock")
    }
}

/// Calls on one open file. All of them can be made from any thread.
pub trait DiskFile: Send + Sync + std::fmt::Debug {
    /// Its size.
    fn bytes(&self) -> io::Result<u64>;

    /// Reads at a byte address; fewer bytes than asked for only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// As [`read_at`](Self::read_at), but only from memory: `WouldBlock` if a disk would be needed.
    fn read_resident_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// The parts at or behind `from` that may not be zero, in order, as far as the file system knows.
    /// What is cached and not dirty leaves the cache: it would count, and so would what is read ahead
    /// of a reader that looks from part to part.
    fn data_ranges(&self, from: u64) -> io::Result<Vec<Range<u64>>>;

    /// Writes all bytes of the slices, one after another. What the slices are afterwards is
    /// unspecified.
    fn write_all_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> io::Result<()>;

    /// Cuts or extends the file.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;

    /// Makes `len` bytes read as zero, keeping their space reserved.
    fn zero(&self, at: u64, len: u64) -> io::Result<()>;

    /// Makes the contents durable (`fdatasync`).
    fn sync(&self) -> io::Result<()>;

    /// Maps the first `bytes` of the file, of which the first `filled` are complete.
    fn map(&self, bytes: usize, filled: usize) -> io::Result<Mapping>;

    /// Makes part of a mapping durable (`msync`).
    fn sync_mapped(&self, mapping: &Mapping, from: usize, to: usize) -> io::Result<()>;

    /// Tells the kernel that the cached pages of the file can go, from a little before a place on.
    fn drop_cache(&self, from: u64) -> io::Result<()>;

    /// The file once more, to read past the page cache (`O_DIRECT`); `InvalidInput` where the file
    /// system cannot.
    fn open_direct(&self) -> io::Result<File> {
        // By its descriptor: it may have lost its name meanwhile.
        let path = format!("/proc/self/fd/{}", self.as_fd().as_raw_fd());
        let flags = OFlags::DIRECT.bits() as i32;
        File::options().read(true).custom_flags(flags).open(path)
    }

    /// The descriptor, to send from.
    fn as_fd(&self) -> BorrowedFd<'_>;
}

/// Whether an error says that the device cannot read a block.
pub(crate) fn is_bad_block(error: &io::Error) -> bool {
    is_errno(error, &[Errno::IO])
}

/// Whether an error says that the process, or the system, has no file descriptor left.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    is_errno(error, &[Errno::MFILE, Errno::NFILE])
}

fn is_errno(error: &io::Error, numbers: &[Errno]) -> bool {
    let number = error.raw_os_error();
    numbers.iter().any(|errno| number == Some(errno.raw_os_error()))
}

/// Reads exactly `buffer.len()` bytes, or fails with `UnexpectedEof`.
pub(crate) fn read_exact_at(file: &dyn DiskFile, buffer: &mut [u8], at: u64) -> io::Result<()> {
    match file.read_at(buffer, at)? {
        read if read == buffer.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
