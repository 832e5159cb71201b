//! The real file system.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, seek, statvfs, syncfs};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev};

use super::{Disk, DiskFile, DiskLock, Mapping};

/// Zeros are written in steps of this size where a file system cannot zero a range by itself.
const ZERO_STEP_BYTES: u64 = 1 << 20;

/// The largest folios that readahead makes.
pub(super) const FOLIO_BYTES_MAX: u64 = 2 << 20;

/// Most slices of one call (`IOV_MAX`).
const SLICES_MAX: usize = 1024;

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl RealDisk {
    fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
        // Messages are nobody else's business.
        let file = options.read(true).write(true).mode(0o600).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }
}

impl Disk for RealDisk {
    fn create_reserved(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        // Without KEEP_SIZE: the size is durable with the file and fdatasync has less to do.
        if let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // A half-made file must not be found by the next start.
            fs::remove_file(path)?;
            return Err(error.into());
        }
        Ok(Arc::new(RealFile(file)))
    }

    fn open_or_create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Self::open_with(path, OpenOptions::new().create(true).truncate(false))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Self::open_with(path, &mut OpenOptions::new())
    }

    fn open_readonly(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(File::open(path)?)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let missing =
            dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.is_dir());
        let missing: Vec<_> = missing.map(Path::to_owned).collect();
        fs::create_dir_all(dir)?;
        Ok(missing.into_iter().rev().collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn sync_file_system(&self, dir: &Path) -> io::Result<()> {
        Ok(syncfs(File::open(dir)?)?)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let figures = statvfs(dir)?;
        Ok(figures.f_bavail * figures.f_frsize)
    }

    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        let options = &mut OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        took(file.try_lock())?;
        file.set_len(0)?;
        file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)?;
        Ok(DiskLock::new(file))
    }

    fn lock_shared(&self, path: &Path) -> io::Result<DiskLock> {
        let file = File::open(path)?;
        took(file.try_lock_shared())?;
        Ok(DiskLock::new(file))
    }
}

fn took(locked: Result<(), TryLockError>) -> io::Result<()> {
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => ErrorKind::WouldBlock.into(),
        TryLockError::Error(error) => error,
    })
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match self.0.read_at(&mut buffer[read..], at + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn read_resident_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut slices = [io::IoSliceMut::new(buffer)];
        match preadv2(&self.0, &mut slices, at, ReadWriteFlags::NOWAIT) {
            Ok(read) => Ok(read),
            // File systems without RWF_NOWAIT: nothing is known to be resident.
            Err(Errno::OPNOTSUPP | Errno::PERM) => Err(ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn data_ranges(&self, from: u64) -> io::Result<Vec<Range<u64>>> {
        self.drop_cache(from)?;
        let bytes = self.bytes()?;
        let mut ranges = Vec::new();
        let mut at = from;
        while at < bytes {
            let start = match seek(&self.0, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                // File systems that do not tell.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
                Err(error) => return Err(error.into()),
            };
            at = seek(&self.0, SeekFrom::Hole(start)).unwrap_or(bytes).max(start + 1);
            ranges.push(start..at);
        }
        Ok(ranges)
    }

    fn write_all_at(&self, mut slices: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
        while !slices.is_empty() {
            let some = &slices[..slices.len().min(SLICES_MAX)];
            match pwritev(&self.0, some, at) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    IoSlice::advance_slices(&mut slices, written);
                    at += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        if len == 0 || fallocate(&self.0, FallocateFlags::ZERO_RANGE, at, len).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; ZERO_STEP_BYTES.min(len) as usize];
        let mut done = 0;
        while done < len {
            let step = ZERO_STEP_BYTES.min(len - done);
            self.0.write_all_at(&zeros[..step as usize], at + done)?;
            done += step;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn map(&self, bytes: usize, filled: usize) -> io::Result<Mapping> {
        Mapping::new(&self.0, bytes, filled)
    }

    fn sync_mapped(&self, mapping: &Mapping, from: usize, to: usize) -> io::Result<()> {
        mapping.sync(from, to)
    }

    fn drop_cache(&self, from: u64) -> io::Result<()> {
        // A folio goes only if all of it may.
        let from = from / FOLIO_BYTES_MAX * FOLIO_BYTES_MAX;
        Ok(fadvise(&self.0, from, None, Advice::DontNeed)?)
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
