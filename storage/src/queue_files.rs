//! The consume-queue files of one topic, through a bounded cache of open ones.
//!
//! `consumequeue/{topic}/{queue}-{byte offset of the first entry, 20 digits}`

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::consume_queue::{ENTRY_BYTES, FILE_ENTRIES, IndexRead};
use crate::disk::{Disk, DiskFile, read_exact_at};

const FILE_BYTES: u64 = FILE_ENTRIES * ENTRY_BYTES;
/// Most consume-queue files that are open at once.
const OPEN_FILES_MAX: usize = 256;

/// A folder's number, a queue, and the byte its file begins at.
type FileKey = (u64, u32, u64);

#[derive(Debug)]
struct OpenFile {
    file: Arc<dyn DiskFile>,
    /// The use of the cache that was the last of this file.
    used: u64,
}

/// Open files, the one used longest ago closed first.
#[derive(Debug)]
pub(crate) struct FileCache {
    disk: Arc<dyn Disk>,
    state: Mutex<CacheState>,
}

#[derive(Debug, Default)]
struct CacheState {
    open: HashMap<FileKey, OpenFile>,
    uses: u64,
}

impl FileCache {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Arc<FileCache> {
        Arc::new(FileCache { disk, state: Mutex::default() })
    }

    fn get(
        &self,
        key: FileKey,
        open: impl FnOnce(&dyn Disk) -> io::Result<Arc<dyn DiskFile>>,
    ) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.uses += 1;
        let now = state.uses;
        if let Some(open) = state.open.get_mut(&key) {
            open.used = now;
            return Ok(open.file.clone());
        }
        let file = open(&*self.disk)?;
        if state.open.len() >= OPEN_FILES_MAX {
            let oldest = state.open.iter().min_by_key(|(_, open)| open.used).map(|(k, _)| *k);
            oldest.map(|key| state.open.remove(&key));
        }
        state.open.insert(key, OpenFile { file: file.clone(), used: now });
        Ok(file)
    }

    fn forget(&self, which: impl Fn(&FileKey) -> bool) {
        self.state.lock().open.retain(|key, _| !which(key));
    }
}

/// The folder of one topic's consume queues.
#[derive(Debug)]
pub(crate) struct QueueFiles {
    cache: Arc<FileCache>,
    dir: PathBuf,
    /// Tells folders apart in the cache, also two that had the same path one after another.
    number: u64,
    made: AtomicBool,
    /// What the folder held when it was opened: queue to byte offsets of its files, ascending.
    found: Mutex<HashMap<u32, Vec<u64>>>,
}

impl QueueFiles {
    /// The folder with what is in it.
    pub(crate) fn open(cache: Arc<FileCache>, dir: PathBuf) -> io::Result<QueueFiles> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let mut found: HashMap<u32, Vec<u64>> = HashMap::new();
        let names = cache.disk.list(&dir)?;
        for (queue, base) in names.iter().filter_map(|name| parse_file_name(name)) {
            found.entry(queue).or_default().push(base);
        }
        found.values_mut().for_each(|bases| bases.sort_unstable());
        let made = AtomicBool::new(!names.is_empty());
        let number = NUMBERS.fetch_add(1, Relaxed);
        Ok(QueueFiles { cache, dir, number, made, found: Mutex::new(found) })
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The offsets the files of a queue reach from and to.
    pub(crate) fn extent(&self, queue: u32) -> io::Result<(u64, u64)> {
        let Some((first, last)) =
            self.found.lock().get(&queue).and_then(|bases| Some((*bases.first()?, *bases.last()?)))
        else {
            return Ok((0, 0));
        };
        let bytes = self.file(queue, last, false)?.bytes()?.min(FILE_BYTES);
        Ok((first / ENTRY_BYTES, (last + bytes) / ENTRY_BYTES))
    }

    /// Writes entries from an offset on; they must not cross the end of a file.
    pub(crate) fn write(&self, queue: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = offset * ENTRY_BYTES;
        let base = at - at % FILE_BYTES;
        if !self.made.swap(true, Relaxed) {
            self.cache.disk.create_dir(&self.dir)?;
        }
        self.file(queue, base, true)?.write_all_at(&mut [IoSlice::new(bytes)], at - base)?;
        let mut found = self.found.lock();
        let bases = found.entry(queue).or_default();
        if bases.last() != Some(&base) {
            bases.push(base);
        }
        Ok(())
    }

    /// Reads entries from an offset on; they must not cross the end of a file.
    pub(crate) fn read(
        &self,
        queue: u32,
        offset: u64,
        bytes: &mut [u8],
        how: IndexRead,
    ) -> io::Result<()> {
        let at = offset * ENTRY_BYTES;
        let base = at - at % FILE_BYTES;
        let file = self.file(queue, base, false)?;
        match how {
            IndexRead::MayBlock => read_exact_at(&*file, bytes, at - base),
            IndexRead::ResidentOnly => match file.read_resident_at(bytes, at - base)? {
                read if read == bytes.len() => Ok(()),
                _ => Err(io::ErrorKind::WouldBlock.into()),
            },
        }
    }

    /// Makes what has been written to a queue's newest file durable.
    pub(crate) fn sync(&self, queue: u32) -> io::Result<()> {
        let bases = self.found.lock().get(&queue).cloned().unwrap_or_default();
        // Between two checkpoints a queue can have gone on to its next file.
        bases.iter().rev().take(2).try_for_each(|&base| self.file(queue, base, false)?.sync())
    }

    /// Cuts a queue's files behind an offset.
    pub(crate) fn truncate(&self, queue: u32, end: u64) -> io::Result<()> {
        let end = end * ENTRY_BYTES;
        let mut found = self.found.lock();
        let Some(bases) = found.get_mut(&queue) else {
            return Ok(());
        };
        while let Some(&last) = bases.last() {
            if last < end {
                let file = self.file(queue, last, false)?;
                if last + file.bytes()? > end {
                    file.set_bytes(end - last)?;
                }
                break;
            }
            self.remove(queue, last)?;
            bases.pop();
        }
        Ok(())
    }

    /// Removes a queue's files that have only entries below an offset, except the newest.
    pub(crate) fn remove_below(&self, queue: u32, offset: u64) -> io::Result<()> {
        let mut found = self.found.lock();
        let Some(bases) = found.get_mut(&queue) else {
            return Ok(());
        };
        while bases.len() > 1 && bases[0] + FILE_BYTES <= offset * ENTRY_BYTES {
            self.remove(queue, bases[0])?;
            bases.remove(0);
        }
        Ok(())
    }

    /// Removes the folder with everything in it.
    pub(crate) fn remove_all(&self) -> io::Result<()> {
        self.cache.forget(|(number, _, _)| *number == self.number);
        self.found.lock().clear();
        if self.made.swap(false, Relaxed) { self.cache.disk.remove_dir(&self.dir) } else { Ok(()) }
    }

    fn remove(&self, queue: u32, base: u64) -> io::Result<()> {
        self.cache.forget(|key| *key == (self.number, queue, base));
        self.cache.disk.remove(&self.dir.join(file_name(queue, base)))
    }

    fn file(&self, queue: u32, base: u64, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.cache.get((self.number, queue, base), |disk| {
            let path = self.dir.join(file_name(queue, base));
            if create { disk.open_or_create(&path) } else { disk.open(&path) }
        })
    }
}

fn file_name(queue: u32, base: u64) -> String {
    format!("{queue}-{base:020}")
}

fn parse_file_name(name: &str) -> Option<(u32, u64)> {
    let (queue, base) = name.split_once('-')?;
    let base = (base.len() == 20).then(|| base.parse::<u64>().ok())??;
    (base % FILE_BYTES == 0).then_some((queue.parse().ok()?, base))
}
