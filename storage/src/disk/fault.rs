//! A disk in memory that records what is done to it, and fails where it is told to.
//!
//! Its files can be mapped and sent like any other. From its journal [`CrashModel`](super::CrashModel)
//! makes what a power cut could have left at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, memfd_create};

use super::crash;
use super::faults::{Fault, Faults, Outcome, Verb};
use super::journal::{Event, FileId};
use super::real::FOLIO_BYTES_MAX;
use super::{Disk, DiskFile, DiskLock, Mapping};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const PAGE_BYTES: usize = 4096;

/// The disk; clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct FaultDisk {
    world: Arc<Mutex<World>>,
}

#[derive(Debug, Default)]
struct World {
    names: BTreeMap<PathBuf, Node>,
    dirs: BTreeSet<PathBuf>,
    next_id: FileId,
    journal: Vec<Event>,
    /// Every call that was made: verb, and kind of path.
    calls: BTreeSet<(Verb, String)>,
    faults: Faults,
    /// Bytes that all files together may have.
    capacity: Option<u64>,
    locked: BTreeSet<PathBuf>,
    /// Blocks of files that cannot be read.
    bad_blocks: Vec<(PathBuf, u64)>,
    /// How many calls were made.
    count: u64,
}

#[derive(Debug, Clone)]
struct Node {
    id: FileId,
    file: Arc<File>,
    /// What the journal knows of a file that is mapped: what differs was stored through the mapping.
    known: Arc<Mutex<Option<Vec<u8>>>>,
}

/// A file and what is in it, but for zeros.
pub(super) struct FileImage {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) chunks: Vec<(u64, Vec<u8>)>,
}

impl FaultDisk {
    /// A disk with these files, all of them durable.
    pub(super) fn with_files(
        files: impl IntoIterator<Item = FileImage>,
        dirs: BTreeSet<PathBuf>,
    ) -> io::Result<FaultDisk> {
        let disk = FaultDisk::default();
        {
            let mut world = disk.world.lock();
            world.journal.extend(dirs.iter().cloned().map(Event::MakeDir));
            world.dirs = dirs;
            for FileImage { path, bytes, chunks } in files {
                let node = world.create(&path, bytes)?;
                for (at, chunk) in chunks {
                    node.file.write_all_at(&chunk, at)?;
                    let bytes = chunk.into();
                    world.journal.push(Event::Write { file: node.id, at, bytes });
                }
            }
            world.journal.push(Event::SyncAll);
        }
        Ok(disk)
    }

    /// Adds a fault, for calls from now on.
    pub fn add_fault(&self, fault: Fault) {
        self.world.lock().faults.all.push(fault);
    }

    /// All calls go well from now on.
    pub fn clear_faults(&self) {
        self.world.lock().faults.all.clear();
    }

    /// How many calls have not done what they should.
    pub fn faults_met(&self) -> u64 {
        self.world.lock().faults.met
    }

    /// Limits the bytes that all files together may have; `None`: no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world.lock().capacity = bytes;
    }

    /// Lets every read of the block with this byte of a file fail.
    pub fn add_bad_block(&self, path: &Path, at: u64) {
        self.world.lock().bad_blocks.push((path.to_owned(), at / PAGE_BYTES as u64));
    }

    /// How many events have been recorded so far.
    pub fn events(&self) -> usize {
        self.world.lock().journal.len()
    }

    /// What has been recorded.
    pub fn journal(&self) -> Vec<Event> {
        self.world.lock().journal.clone()
    }

    /// How many calls have been made.
    pub fn calls(&self) -> u64 {
        self.world.lock().count
    }

    /// The kinds of calls that have been made: which verb, on which kind of path.
    pub fn sites(&self) -> BTreeSet<(Verb, String)> {
        self.world.lock().calls.clone()
    }

    /// The files, with what is in them now.
    pub fn files(&self) -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
        let world = self.world.lock();
        world.names.iter().map(|(path, node)| Ok((path.clone(), node.read()?))).collect()
    }

    /// Replaces what is in a file, or makes it; `None` removes it. Nothing is recorded.
    pub fn put(&self, path: &Path, bytes: Option<&[u8]>) -> io::Result<()> {
        let mut world = self.world.lock();
        match bytes {
            None => drop(world.names.remove(path)),
            Some(bytes) => {
                let node = world.new_node(bytes.len() as u64)?;
                node.file.write_all_at(bytes, 0)?;
                world.names.insert(path.to_owned(), node);
            }
        }
        Ok(())
    }

    /// Another disk with the same files, all of them durable: what a process leaves that dies.
    pub fn copy(&self) -> io::Result<FaultDisk> {
        let image = |(path, content): (PathBuf, Vec<u8>)| FileImage {
            path,
            bytes: content.len() as u64,
            chunks: vec![(0, content)],
        };
        let dirs = self.world.lock().dirs.clone();
        FaultDisk::with_files(self.files()?.into_iter().map(image), dirs)
    }

    /// Counts a call and lets it meet its fault. `true`: it has to succeed without doing anything.
    fn call(&self, verb: Verb, path: &Path) -> io::Result<bool> {
        self.meet(verb, path).map_err(Outcome::error)
    }

    fn meet(&self, verb: Verb, path: &Path) -> Result<bool, Outcome> {
        let mut world = self.world.lock();
        world.count += 1;
        world.calls.insert((verb, kind_of(path)));
        world.faults.meet(verb, path)
    }

    fn open_file(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.world.lock();
        let node = match world.names.get(path) {
            Some(node) => node.clone(),
            None if create => world.create(path, 0)?,
            None => return Err(ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(FaultFile { disk: self.clone(), path: path.to_owned(), node }))
    }
}

/// What kind of file or folder of a store a path is.
fn kind_of(path: &Path) -> String {
    let text = path.to_string_lossy();
    let kinds = ["commitlog", "consumequeue", "views.redb", "checkpoint", "lock"];
    let kind = kinds.iter().find(|kind| text.contains(*kind));
    kind.map_or("folder", |kind| kind).to_owned()
}

impl World {
    fn new_node(&mut self, bytes: u64) -> io::Result<Node> {
        let file = File::from(memfd_create("longwire", MemfdFlags::CLOEXEC)?);
        file.set_len(bytes)?;
        self.next_id += 1;
        Ok(Node { id: self.next_id, file: Arc::new(file), known: Arc::default() })
    }

    fn create(&mut self, path: &Path, bytes: u64) -> io::Result<Node> {
        self.reserve(bytes)?;
        let node = self.new_node(bytes)?;
        self.names.insert(path.to_owned(), node.clone());
        self.journal.push(Event::Link(path.to_owned(), node.id));
        if bytes > 0 {
            self.journal.push(Event::Resize(node.id, bytes));
        }
        Ok(node)
    }

    fn used(&self) -> io::Result<u64> {
        self.names.values().map(|node| Ok(node.file.metadata()?.len())).sum()
    }

    /// Whether there is room for more bytes.
    fn reserve(&self, bytes: u64) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if self.used()? + bytes > capacity => {
                Err(io::Error::from_raw_os_error(ENOSPC))
            }
            _ => Ok(()),
        }
    }
}

impl Node {
    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.file.metadata()?.len() as usize];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

impl Disk for FaultDisk {
    fn create_reserved(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.call(Verb::CreateReserved, path)?;
        let mut world = self.world.lock();
        if world.names.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let node = world.create(path, bytes)?;
        Ok(Arc::new(FaultFile { disk: self.clone(), path: path.to_owned(), node }))
    }

    fn open_or_create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.call(Verb::OpenOrCreate, path)?;
        self.open_file(path, true)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.call(Verb::Open, path)?;
        self.open_file(path, false)
    }

    fn open_readonly(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.call(Verb::OpenReadonly, path)?;
        self.open_file(path, false)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.call(Verb::List, dir)?;
        let world = self.world.lock();
        let paths = world.names.keys().chain(&world.dirs);
        let names = paths.filter(|path| path.parent() == Some(dir));
        let names = names.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        Ok(names.collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        if self.call(Verb::CreateDir, dir)? {
            return Ok(Vec::new());
        }
        let mut world = self.world.lock();
        let all = dir.ancestors().filter(|dir| dir.parent().is_some());
        let mut missing: Vec<_> = all.map(Path::to_owned).collect();
        missing.retain(|dir| !world.dirs.contains(dir));
        missing.reverse();
        world.dirs.extend(missing.iter().cloned());
        world.journal.extend(missing.iter().cloned().map(Event::MakeDir));
        Ok(missing)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if self.call(Verb::Remove, path)? {
            return Ok(());
        }
        let mut world = self.world.lock();
        world.names.remove(path).ok_or(ErrorKind::NotFound)?;
        world.journal.push(Event::Unlink(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.call(Verb::Rename, from)? {
            return Ok(());
        }
        let mut world = self.world.lock();
        let moved = |path: &Path| match path.strip_prefix(from).ok()? {
            rest if rest.as_os_str().is_empty() => Some(to.to_owned()),
            rest => Some(to.join(rest)),
        };
        let dirs: Vec<_> = world.dirs.iter().filter_map(|d| Some((d.clone(), moved(d)?))).collect();
        for (old, new) in dirs {
            world.dirs.remove(&old);
            world.dirs.insert(new.clone());
            world.journal.push(Event::MakeDir(new));
        }
        let files: Vec<_> =
            world.names.keys().filter_map(|path| Some((path.clone(), moved(path)?))).collect();
        for (old, new) in files {
            if let Some(node) = world.names.remove(&old) {
                world.journal.push(Event::Link(new.clone(), node.id));
                world.journal.push(Event::Unlink(old));
                world.names.insert(new, node);
            }
        }
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        if self.call(Verb::RemoveDir, dir)? {
            return Ok(());
        }
        let mut world = self.world.lock();
        world.names.retain(|path, _| !path.starts_with(dir));
        world.dirs.retain(|path| !path.starts_with(dir));
        world.journal.push(Event::RemoveDir(dir.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if !self.call(Verb::SyncDir, dir)? {
            self.world.lock().journal.push(Event::SyncDir(dir.to_owned()));
        }
        Ok(())
    }

    fn sync_file_system(&self, dir: &Path) -> io::Result<()> {
        match self.meet(Verb::SyncFileSystem, dir) {
            Ok(true) => {}
            Ok(false) => self.world.lock().journal.push(Event::SyncAll),
            Err(outcome) => {
                let mut world = self.world.lock();
                let files: Vec<_> = world.names.values().map(|node| node.id).collect();
                world.journal.extend(files.into_iter().map(Event::SyncFailed));
                return Err(outcome.error());
            }
        }
        Ok(())
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.call(Verb::FreeBytes, dir)?;
        let world = self.world.lock();
        let used = world.used()?;
        Ok(world.capacity.map_or(u64::MAX / 2, |capacity| capacity.saturating_sub(used)))
    }

    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        self.call(Verb::Lock, path)?;
        self.take_lock(path)
    }

    fn lock_shared(&self, path: &Path) -> io::Result<DiskLock> {
        self.call(Verb::LockShared, path)?;
        self.take_lock(path)
    }
}

impl FaultDisk {
    fn take_lock(&self, path: &Path) -> io::Result<DiskLock> {
        if !self.world.lock().locked.insert(path.to_owned()) {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(DiskLock::new(Unlock { disk: self.clone(), path: path.to_owned() }))
    }
}

/// Gives a lock back when dropped.
struct Unlock {
    disk: FaultDisk,
    path: PathBuf,
}

impl Drop for Unlock {
    fn drop(&mut self) {
        self.disk.world.lock().locked.remove(&self.path);
    }
}

#[derive(Debug)]
struct FaultFile {
    disk: FaultDisk,
    path: PathBuf,
    node: Node,
}

impl FaultFile {
    fn call(&self, verb: Verb) -> io::Result<bool> {
        self.disk.call(verb, &self.path)
    }

    fn record(&self, event: Event) {
        self.disk.world.lock().journal.push(event);
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let size = self.node.file.metadata()?.len();
        let end = at + bytes.len() as u64;
        if end > size {
            self.disk.world.lock().reserve(end - size)?;
            self.record(Event::Resize(self.node.id, end));
        }
        self.node.file.write_all_at(bytes, at)?;
        self.know(at, bytes);
        self.record(Event::Write { file: self.node.id, at, bytes: bytes.into() });
        Ok(())
    }

    fn know(&self, at: u64, bytes: &[u8]) {
        if let Some(known) = &mut *self.node.known.lock() {
            known[at as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    /// What was not written is dropped; what was stored through the mapping, too.
    fn sync_failed(&self, outcome: Outcome) -> io::Result<()> {
        if let Some(known) = &mut *self.node.known.lock() {
            *known = self.node.read()?;
        }
        self.record(Event::SyncFailed(self.node.id));
        Err(outcome.error())
    }

    /// Drops clean pages from the cache, in whole folios: what a failed sync has not written is gone.
    fn evict(&self, from: u64) -> io::Result<()> {
        let journal = self.disk.journal();
        let Some(mut stored) = crash::stored(&journal, self.node.id) else { return Ok(()) };
        let (mut known, live) = (self.node.known.lock(), self.node.read()?);
        stored.resize(live.len(), 0);
        let first = (from / FOLIO_BYTES_MAX * FOLIO_BYTES_MAX) as usize;
        for at in (first..live.len()).step_by(PAGE_BYTES) {
            let page = at..(at + PAGE_BYTES).min(live.len());
            // What was stored through a mapping is still to be written.
            if known.as_ref().is_some_and(|known| known[page.clone()] != live[page.clone()]) {
                continue;
            }
            self.node.file.write_all_at(&stored[page.clone()], at as u64)?;
            if let Some(known) = &mut *known {
                known[page.clone()].copy_from_slice(&stored[page]);
            }
        }
        Ok(())
    }

    /// Records as durable what was stored through the mapping.
    fn record_stores(&self) -> io::Result<()> {
        let mut known = self.node.known.lock();
        let Some(known) = &mut *known else { return Ok(()) };
        let live = self.node.read()?;
        let pages = known.chunks_mut(PAGE_BYTES).zip(live.chunks(PAGE_BYTES));
        for (number, (known, live)) in pages.enumerate().filter(|(_, (known, live))| known != live)
        {
            known.copy_from_slice(live);
            let (file, at) = (self.node.id, (number * PAGE_BYTES) as u64);
            self.record(Event::SyncRange { file, at, bytes: (*live).into() });
        }
        Ok(())
    }
}

impl DiskFile for FaultFile {
    fn bytes(&self) -> io::Result<u64> {
        self.call(Verb::Bytes)?;
        Ok(self.node.file.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.call(Verb::ReadAt)?;
        let blocks = at / PAGE_BYTES as u64..(at + buffer.len() as u64).div_ceil(PAGE_BYTES as u64);
        let bad = |(path, block): &(PathBuf, u64)| *path == self.path && blocks.contains(block);
        if self.disk.world.lock().bad_blocks.iter().any(bad) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let mut read = 0;
        while read < buffer.len() {
            match self.node.file.read_at(&mut buffer[read..], at + read as u64)? {
                0 => break,
                some => read += some,
            }
        }
        Ok(read)
    }

    fn read_resident_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.call(Verb::ReadResidentAt)?;
        self.node.file.read_at(buffer, at)
    }

    fn data_ranges(&self, from: u64) -> io::Result<Vec<Range<u64>>> {
        self.call(Verb::DataRanges)?;
        self.evict(from)?;
        let bytes = self.node.file.metadata()?.len();
        let all = from..bytes;
        Ok(if all.is_empty() { Vec::new() } else { vec![all] })
    }

    fn write_all_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        match self.disk.meet(Verb::WriteAllAt, &self.path) {
            Ok(true) => Ok(()),
            Ok(false) => self.write(&bytes, at),
            Err(outcome) => {
                if matches!(outcome, Outcome::Short(_)) {
                    self.write(&bytes[..bytes.len() / 2], at)?;
                }
                Err(outcome.error())
            }
        }
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        if self.call(Verb::SetBytes)? {
            return Ok(());
        }
        let size = self.node.file.metadata()?.len();
        self.disk.world.lock().reserve(bytes.saturating_sub(size))?;
        self.node.file.set_len(bytes)?;
        self.record(Event::Resize(self.node.id, bytes));
        Ok(())
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        if self.call(Verb::Zero)? {
            return Ok(());
        }
        let zeros = vec![0; len as usize];
        self.node.file.write_all_at(&zeros, at)?;
        self.know(at, &zeros);
        self.record(Event::Zero { file: self.node.id, at, len });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        match self.disk.meet(Verb::Sync, &self.path) {
            Ok(true) => {}
            Ok(false) => {
                self.record_stores()?;
                self.record(Event::Sync(self.node.id));
            }
            Err(outcome) => return self.sync_failed(outcome),
        }
        Ok(())
    }

    fn map(&self, bytes: usize, filled: usize) -> io::Result<Mapping> {
        self.call(Verb::Map)?;
        *self.node.known.lock() = Some(self.node.read()?);
        Mapping::new(&self.node.file, bytes, filled)
    }

    fn sync_mapped(&self, mapping: &Mapping, from: usize, to: usize) -> io::Result<()> {
        match self.disk.meet(Verb::SyncMapped, &self.path) {
            Ok(true) => {}
            Ok(false) => {
                mapping.sync(from, to)?;
                let (first, end) = (from & !4095, to.next_multiple_of(4096));
                let mut bytes = vec![0; end - first];
                let read = self.node.file.read_at(&mut bytes, first as u64)?;
                bytes.truncate(read);
                self.know(first as u64, &bytes);
                let bytes = bytes.into();
                let (file, at) = (self.node.id, first as u64);
                self.record(Event::SyncRange { file, at, bytes });
            }
            Err(outcome) => return self.sync_failed(outcome),
        }
        Ok(())
    }

    fn drop_cache(&self, from: u64) -> io::Result<()> {
        self.call(Verb::DropCache)?;
        self.evict(from)
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.node.file.as_fd()
    }
}
