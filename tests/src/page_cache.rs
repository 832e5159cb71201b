//! What of a file the kernel holds in memory.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Brings a file to the device and drops it from the page cache, but for pages that somebody has mapped.
pub fn evict(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

/// How many bytes of the pages that hold the first `len` bytes of a file, at least one, are in memory.
/// Nothing is read in by asking.
pub fn resident_bytes(path: &Path, len: usize) -> io::Result<usize> {
    let file = File::open(path)?;
    let page = rustix::param::page_size();
    let mut pages = vec![0_u8; len.div_ceil(page)];
    // SAFETY: the mapping is a new one, is not read through, and is gone before this returns; the
    // kernel tells in one byte of each of its pages.
    #[allow(unsafe_code)]
    let told = unsafe {
        let map = mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &file, 0)?;
        let told = libc::mincore(map, len, pages.as_mut_ptr());
        let told = if told == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        munmap(map, len)?;
        told
    };
    told?;
    Ok(pages.iter().filter(|state| **state & 1 == 1).count() * page)
}
