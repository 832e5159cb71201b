//! The consume-queue files of one topic, through a bounded cache of open ones.
//!
//! `consumequeue/{topic}/{queue}-{byte offset of the first entry, 20 digits}`

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::consume_queue::{ENTRY_BYTES, FILE_ENTRIES, IndexRead};
use crate::disk::{Disk, DiskFile, is_bad_block, read_exact_at};
use crate::queue_sums::QueueFile;

const FILE_BYTES: u64 = FILE_ENTRIES * ENTRY_BYTES;
/// Most consume-queue files that are open at once.
pub const QUEUE_FILES_OPEN_MAX: usize = 256;

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
        if state.open.len() >= QUEUE_FILES_OPEN_MAX {
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

/// What there is of a topic's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Folder {
    /// Made with its first file.
    Absent,
    Made,
    /// Gone with its topic. A checkpoint may still be at work on the queues, and must not bring it back.
    Deleted,
}

/// The folder of one topic's consume queues.
#[derive(Debug)]
pub(crate) struct QueueFiles {
    cache: Arc<FileCache>,
    dir: PathBuf,
    /// Tells folders apart in the cache, also two that had the same path one after another.
    number: u64,
    folder: Mutex<Folder>,
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
        let folder = if names.is_empty() { Folder::Absent } else { Folder::Made };
        let number = NUMBERS.fetch_add(1, Relaxed);
        Ok(QueueFiles { cache, dir, number, folder: folder.into(), found: found.into() })
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps the files of a queue that a checkpoint has noted, at the lengths it has noted, and removes
    /// all others; `false` if one of them is missing or too short.
    pub(crate) fn keep_only(&self, queue: u32, noted: &[QueueFile]) -> io::Result<bool> {
        let mut found = self.found.lock();
        let bases = found.entry(queue).or_default();
        let wanted: Vec<u64> = noted.iter().map(|file| file.base * ENTRY_BYTES).collect();
        for &base in bases.iter().filter(|base| !wanted.contains(base)) {
            self.remove(queue, base)?;
        }
        bases.retain(|base| wanted.contains(base));
        if *bases != wanted {
            return Ok(false);
        }
        for (noted, &base) in noted.iter().zip(&wanted) {
            let file = self.file(queue, base)?;
            match file.bytes()? {
                bytes if bytes < noted.bytes() => return Ok(false),
                bytes if bytes > noted.bytes() => file.set_bytes(noted.bytes())?,
                _ => {}
            }
        }
        Ok(true)
    }

    /// The bytes a file was noted with; `None` if it has fewer, or not all can be read.
    pub(crate) fn read_whole(&self, queue: u32, noted: &QueueFile) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; noted.bytes() as usize];
        let file = self.file(queue, noted.base * ENTRY_BYTES)?;
        match file.read_at(&mut bytes, 0) {
            // The log has everything that was in it.
            Err(error) if is_bad_block(&error) => Ok(None),
            read => Ok((read? == bytes.len()).then_some(bytes)),
        }
    }

    /// Writes entries from an offset on; they must not cross the end of a file. Those of a deleted topic
    /// are dropped.
    pub(crate) fn write(&self, queue: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = offset * ENTRY_BYTES;
        let base = at - at % FILE_BYTES;
        let Some(file) = self.file_to_write(queue, base)? else {
            return Ok(());
        };
        file.write_all_at(&mut [IoSlice::new(bytes)], at - base)?;
        let mut found = self.found.lock();
        let bases = found.entry(queue).or_default();
        if bases.last() != Some(&base) {
            bases.push(base);
        }
        Ok(())
    }

    /// Reads entries from an offset on, which must not cross the end of a file, and returns how many
    /// bytes. Fewer than asked for only where the next ones are not in memory; at least one entry.
    pub(crate) fn read(
        &self,
        queue: u32,
        offset: u64,
        bytes: &mut [u8],
        how: IndexRead,
    ) -> io::Result<usize> {
        let at = offset * ENTRY_BYTES;
        let base = at - at % FILE_BYTES;
        let file = self.file(queue, base)?;
        match how {
            IndexRead::MayBlock => read_exact_at(&*file, bytes, at - base).map(|()| bytes.len()),
            IndexRead::ResidentOnly => {
                let read = file.read_resident_at(bytes, at - base)?;
                if read < ENTRY_BYTES as usize {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(read)
            }
        }
    }

    /// Makes what has been written to a file durable.
    pub(crate) fn sync(&self, queue: u32, file: &QueueFile) -> io::Result<()> {
        self.file(queue, file.base * ENTRY_BYTES)?.sync()
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
        self.remove_folder(Folder::Absent)
    }

    /// As [`remove_all`](Self::remove_all), for good: the topic has been deleted.
    pub(crate) fn delete(&self) -> io::Result<()> {
        self.remove_folder(Folder::Deleted)
    }

    fn remove_folder(&self, then: Folder) -> io::Result<()> {
        let before = std::mem::replace(&mut *self.folder.lock(), then);
        self.found.lock().clear();
        if before == Folder::Made {
            self.cache.disk.remove_dir(&self.dir)?;
        }
        self.cache.forget(|(number, _, _)| *number == self.number);
        Ok(())
    }

    fn remove(&self, queue: u32, base: u64) -> io::Result<()> {
        self.cache.forget(|key| *key == (self.number, queue, base));
        self.cache.disk.remove(&self.dir.join(file_name(queue, base)))
    }

    /// A file that is made if it is absent; `None` where the topic has been deleted.
    fn file_to_write(&self, queue: u32, base: u64) -> io::Result<Option<Arc<dyn DiskFile>>> {
        // Locked until the file is there: a folder that is deleted meanwhile takes it along.
        let mut folder = self.folder.lock();
        match *folder {
            Folder::Deleted => return Ok(None),
            Folder::Absent => _ = self.cache.disk.create_dir(&self.dir)?,
            Folder::Made => {}
        }
        *folder = Folder::Made;
        self.cached(queue, base, true).map(Some)
    }

    /// A file that is there.
    fn file(&self, queue: u32, base: u64) -> io::Result<Arc<dyn DiskFile>> {
        // Locked until it is open: by now its path may be that of another topic's file.
        let folder = self.folder.lock();
        if *folder == Folder::Deleted {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.cached(queue, base, false)
    }

    fn cached(&self, queue: u32, base: u64, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.cache.get((self.number, queue, base), |disk| {
            let path = self.dir.join(file_name(queue, base));
            if create { disk.open_or_create(&path) } else { disk.open(&path) }
        })
    }
}

pub(crate) fn file_name(queue: u32, base: u64) -> String {
    format!("{queue}-{base:020}")
}

pub(crate) fn parse_file_name(name: &str) -> Option<(u32, u64)> {
    let (queue, base) = name.split_once('-')?;
    let base = (base.len() == 20).then(|| base.parse::<u64>().ok())??;
    (base % FILE_BYTES == 0).then_some((queue.parse().ok()?, base))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn files_of_a_deleted_topic_are_never_those_of_the_one_that_follows() {
        let dir = tempfile::tempdir().unwrap();
        let cache = FileCache::new(Arc::new(RealDisk));
        let open = || QueueFiles::open(cache.clone(), dir.path().join("t")).unwrap();
        let entry = [1; ENTRY_BYTES as usize];
        let (deleted, mut read) = (open(), entry);
        deleted.write(0, 0, &entry).unwrap();
        deleted.delete().unwrap();
        let next = open();
        next.write(0, 0, &[2; ENTRY_BYTES as usize]).unwrap();
        let error = deleted.read(0, 0, &mut read, IndexRead::MayBlock).unwrap_err();
        assert_eq!((error.kind(), read), (io::ErrorKind::NotFound, entry));
        next.read(0, 0, &mut read, IndexRead::MayBlock).unwrap();
        assert_eq!(read, [2; ENTRY_BYTES as usize]);
    }
}
