//! The real disk, of which a call can be made to fail.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use longwire_storage::disk::{Disk, DiskFile, DiskLock, Mapping, RealDisk};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// How many calls are left until one fails, and how it does.
#[derive(Debug, Default)]
pub(super) struct Countdown {
    /// 0: none will.
    left: AtomicU32,
    no_space: AtomicBool,
    /// All calls after it fail, too.
    sticky: AtomicBool,
}

impl Countdown {
    pub(super) fn start(&self, calls: u32, no_space: bool, sticky: bool) {
        self.no_space.store(no_space, SeqCst);
        self.sticky.store(sticky, SeqCst);
        self.left.store(calls, SeqCst);
    }

    pub(super) fn stop(&self) {
        self.left.store(0, SeqCst);
    }

    fn call(&self) -> io::Result<()> {
        let stays =
            |left| if left == 1 && self.sticky.load(SeqCst) { None } else { Some(left - 1) };
        let left = self.left.fetch_update(SeqCst, SeqCst, |left| match left {
            0 => None,
            left => stays(left),
        });
        match left {
            Ok(1) | Err(1) => {
                let code = if self.no_space.load(SeqCst) { ENOSPC } else { EIO };
                Err(io::Error::from_raw_os_error(code))
            }
            _ => Ok(()),
        }
    }
}

/// A disk whose changing calls count down.
#[derive(Debug, Clone, Default)]
pub(super) struct FailingDisk(pub(super) Arc<Countdown>);

impl FailingDisk {
    fn file(&self, file: io::Result<Arc<dyn DiskFile>>) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(FailingFile { file: file?, countdown: self.0.clone() }))
    }
}

impl Disk for FailingDisk {
    fn create_reserved(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.0.call()?;
        self.file(RealDisk.create_reserved(path, bytes))
    }

    fn open_or_create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.0.call()?;
        self.file(RealDisk.open_or_create(path))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.file(RealDisk.open(path))
    }

    fn open_readonly(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.file(RealDisk.open_readonly(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.call()?;
        RealDisk.create_dir(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.call()?;
        RealDisk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.call()?;
        RealDisk.rename(from, to)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.call()?;
        RealDisk.remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.call()?;
        RealDisk.sync_dir(dir)
    }

    fn sync_file_system(&self, dir: &Path) -> io::Result<()> {
        self.0.call()?;
        RealDisk.sync_file_system(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        RealDisk.free_bytes(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        RealDisk.lock(path)
    }

    fn lock_shared(&self, path: &Path) -> io::Result<DiskLock> {
        RealDisk.lock_shared(path)
    }
}

#[derive(Debug)]
struct FailingFile {
    file: Arc<dyn DiskFile>,
    countdown: Arc<Countdown>,
}

impl DiskFile for FailingFile {
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buffer, at)
    }

    fn read_resident_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_resident_at(buffer, at)
    }

    fn data_from(&self, at: u64) -> io::Result<Option<u64>> {
        self.file.data_from(at)
    }

    fn write_all_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        self.countdown.call()?;
        self.file.write_all_at(slices, at)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.countdown.call()?;
        self.file.set_bytes(bytes)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        self.countdown.call()?;
        self.file.zero(at, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.countdown.call()?;
        self.file.sync()
    }

    fn map(&self, bytes: usize, filled: usize) -> io::Result<Mapping> {
        self.countdown.call()?;
        self.file.map(bytes, filled)
    }

    fn sync_mapped(&self, mapping: &Mapping, from: usize, to: usize) -> io::Result<()> {
        self.countdown.call()?;
        self.file.sync_mapped(mapping, from, to)
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.file.drop_cache()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
