//! The real disk, of which a call can be made to fail, and which knows what a power cut would leave.
//!
//! Durable is what a file held when it was last synced, and the names a folder had when that was. A file
//! with a durable name that was never synced is empty after a power cut. Folders themselves stay.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longwire_storage::disk::{Disk, DiskFile, DiskLock, Mapping, RealDisk};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// How a call fails.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fault {
    /// For lack of space, else with an I/O error.
    pub(super) no_space: bool,
    /// All calls after it fail, too.
    pub(super) sticky: bool,
}

#[derive(Debug, Default)]
struct State {
    root: PathBuf,
    /// Contents at the last sync, by the path below the root.
    synced: BTreeMap<PathBuf, Vec<u8>>,
    /// Names at the last sync of their folder.
    names: BTreeSet<PathBuf>,
    /// Contents at a sync that failed: the kernel takes these pages for clean then, and writes only what
    /// changes later.
    dropped: BTreeMap<PathBuf, Vec<u8>>,
    fault: Fault,
}

/// A disk with the folder of one store.
#[derive(Debug, Clone, Default)]
pub(super) struct ModelDisk {
    state: Arc<Mutex<State>>,
    /// Calls until one fails; 0: none will.
    left: Arc<AtomicU32>,
}

impl ModelDisk {
    /// The same in another folder, for the next store; what the one before still does is not seen here.
    pub(super) fn moved(&self, root: &Path) -> ModelDisk {
        let State { synced, names, .. } = &*self.state();
        let (synced, names) = (synced.clone(), names.clone());
        let state = State { root: root.to_owned(), synced, names, ..State::default() };
        ModelDisk { state: Arc::new(Mutex::new(state)), ..ModelDisk::default() }
    }

    /// Lets the call fail that is so many calls from now.
    pub(super) fn fail_at(&self, calls: u32, fault: Fault) {
        self.state().fault = fault;
        self.left.store(calls, SeqCst);
    }

    pub(super) fn heal(&self) {
        self.left.store(0, SeqCst);
    }

    /// Writes what a power cut leaves to another folder; all of it is durable there.
    pub(super) fn cut_power(&self, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let names = state.names.clone();
        state.synced.retain(|name, _| names.contains(name));
        for name in names {
            let path = to.join(&name);
            fs::create_dir_all(path.parent().unwrap_or(to))?;
            fs::write(path, state.synced.entry(name).or_default())?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self) -> io::Result<()> {
        let fault = self.state().fault;
        let next = |left: u32| match left {
            0 => None,
            1 if fault.sticky => Some(1),
            left => Some(left - 1),
        };
        match self.left.fetch_update(SeqCst, SeqCst, next) {
            Ok(1) => Err(io::Error::from_raw_os_error(if fault.no_space { ENOSPC } else { EIO })),
            _ => Ok(()),
        }
    }

    fn file(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let name = self.state().name(path);
        Arc::new(ModelFile { file, path: path.to_owned(), name, disk: self.clone() })
    }
}

impl State {
    fn name(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_owned()
    }

    /// The names in a folder are what they are there now.
    fn sync_names(&mut self, dir: &Path) -> io::Result<()> {
        let below = self.name(dir);
        self.names.retain(|name| name.parent() != Some(&below));
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_file() {
                self.names.insert(self.name(&path));
            }
        }
        Ok(())
    }

    /// A sync of a file, or of a range of it, has succeeded or failed.
    fn sync_contents(&mut self, file: &ModelFile, range: Option<Range<usize>>, succeeded: bool) {
        // A file that has lost its name has nothing that a start could find.
        let Ok(contents) = fs::read(&file.path) else {
            return;
        };
        if !succeeded {
            self.dropped.insert(file.name.clone(), contents);
            return;
        }
        let dropped = self.dropped.get(&file.name);
        let synced = self.synced.entry(file.name.clone()).or_default();
        // The size is durable with the contents.
        synced.resize(contents.len(), 0);
        for at in range.unwrap_or(0..contents.len()) {
            if dropped.is_none_or(|dropped| dropped.get(at) != Some(&contents[at])) {
                synced[at] = contents[at];
            }
        }
    }

    fn sync_all(&mut self, dir: &Path) -> io::Result<()> {
        self.sync_names(dir)?;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                self.sync_all(&path)?;
            } else {
                self.synced.insert(self.name(&path), fs::read(&path)?);
            }
        }
        Ok(())
    }
}

impl Disk for ModelDisk {
    fn create_reserved(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.call()?;
        Ok(self.file(path, RealDisk.create_reserved(path, bytes)?))
    }

    fn open_or_create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.call()?;
        Ok(self.file(path, RealDisk.open_or_create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, RealDisk.open(path)?))
    }

    fn open_readonly(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, RealDisk.open_readonly(path)?))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.call()?;
        RealDisk.create_dir(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        RealDisk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?;
        RealDisk.rename(from, to)?;
        let mut state = self.state();
        let (from, to) = (state.name(from), state.name(to));
        let contents = state.synced.remove(&from);
        state.synced.extend(contents.map(|contents| (to, contents)));
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.call()?;
        RealDisk.remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call()?;
        self.state().sync_names(dir)
    }

    fn sync_file_system(&self, _: &Path) -> io::Result<()> {
        self.call()?;
        let mut state = self.state();
        let root = state.root.clone();
        state.sync_all(&root)
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
struct ModelFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    /// The path below the root.
    name: PathBuf,
    disk: ModelDisk,
}

impl DiskFile for ModelFile {
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
        self.disk.call()?;
        self.file.write_all_at(slices, at)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.disk.call()?;
        self.file.set_bytes(bytes)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        self.disk.call()?;
        self.file.zero(at, len)
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.disk.call().and_then(|()| self.file.sync());
        self.disk.state().sync_contents(self, None, synced.is_ok());
        synced
    }

    fn map(&self, bytes: usize, filled: usize) -> io::Result<Mapping> {
        self.disk.call()?;
        self.file.map(bytes, filled)
    }

    fn sync_mapped(&self, mapping: &Mapping, from: usize, to: usize) -> io::Result<()> {
        let synced = self.disk.call().and_then(|()| self.file.sync_mapped(mapping, from, to));
        self.disk.state().sync_contents(self, Some(from..to), synced.is_ok());
        synced
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.file.drop_cache()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
