//! Cutting a file system's power, and deciding what its disk has before.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `_IOR('X', 125, __u32)`: `EXT4_IOC_SHUTDOWN`, `XFS_IOC_GOINGDOWN`.
const SHUTDOWN: libc::Ioctl = 0x8004_587D_u32 as libc::Ioctl;
/// Not even the journal's own buffers reach the disk any more.
static NO_LOG_FLUSH: u32 = 2;

/// Cuts the power of the ext4 or xfs mounted at a folder: what its disk does not have is lost, and
/// every later access fails until it is mounted again.
pub fn cut(mounted: &Path) -> io::Result<()> {
    let folder = File::open(mounted)?;
    // SAFETY: the call reads one u32 behind the pointer, which outlives it.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(folder.as_raw_fd(), SHUTDOWN, &raw const NO_LOG_FLUSH) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Begins to bring bytes of a file to its disk, without making anything durable that is not there yet.
pub fn begin_write_back(file: &File, at: u64, bytes: u64) -> io::Result<()> {
    sync_range(file, at, bytes, libc::SYNC_FILE_RANGE_WRITE)
}

/// Waits for all that [`begin_write_back`] has begun in a file.
pub fn await_write_back(file: &File) -> io::Result<()> {
    sync_range(file, 0, 0, libc::SYNC_FILE_RANGE_WAIT_BEFORE)
}

fn sync_range(file: &File, at: u64, bytes: u64, flags: libc::c_uint) -> io::Result<()> {
    let (at, bytes) = (at as libc::off64_t, bytes as libc::off64_t);
    // SAFETY: no memory is passed, and the descriptor is open for as long as `file` is borrowed.
    #[allow(unsafe_code)]
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), at, bytes, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
