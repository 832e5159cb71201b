//! What a power cut can leave of what was done to a recording disk.
//!
//! ```text
//!  journal   | write | link | write | sync | write | write | ...
//!                                    ^ durable      ^ pending: may survive, each page for itself
//! ```
//!
//! Durable is what a sync has covered: of a file its bytes and size, of a directory the names in it.
//! Everything else may survive or not. Of a page that was written several times any state it has been
//! in may survive, so never a later write without an earlier one of the same page.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;

use super::fault::{FaultDisk, FileImage};
use super::journal::{Event, FileId};

const PAGE_BYTES: u64 = 4096;

/// What survives of the pending events.
pub enum Survives<'a> {
    /// None of them.
    Nothing,
    /// The first so many; of the write behind them, if it is one, its first bytes.
    Prefix {
        /// How many.
        events: usize,
        /// Bytes of the next write.
        torn: usize,
    },
    /// Any; the function gives a random number below its argument.
    Any(&'a mut dyn FnMut(u64) -> u64),
}

impl std::fmt::Debug for Survives<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Survives::Nothing => f.write_str("nothing"),
            Survives::Prefix { events, torn } => write!(f, "{events} events and {torn} bytes"),
            Survives::Any(_) => f.write_str("any"),
        }
    }
}

/// The durable state of a recording disk at one event of its journal, and what is pending there.
#[derive(Debug, Clone, Default)]
pub struct CrashModel {
    durable: State,
    pending: Vec<Event>,
}

#[derive(Debug, Clone, Default)]
struct State {
    names: BTreeMap<PathBuf, FileId>,
    dirs: BTreeSet<PathBuf>,
    files: HashMap<FileId, Content>,
}

#[derive(Debug, Clone, Default)]
struct Content {
    bytes: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl CrashModel {
    /// Passes over the next event of the journal.
    pub fn pass(&mut self, event: &Event) {
        match event {
            Event::Sync(file) => self.settle(|event| event.file() == Some(*file)),
            Event::SyncDir(dir) => self.settle(|event| event.directory() == Some(dir)),
            Event::SyncAll => self.settle(|_| true),
            // The size is the file system's own, which would not go on without it.
            Event::SyncFailed(file) => self
                .pending
                .retain(|event| event.file() != Some(*file) || matches!(event, Event::Resize(..))),
            Event::SyncRange { file, at, bytes } => {
                self.settle(|event| matches!(event, Event::Resize(of, _) if of == file));
                let (at, len) = (*at, bytes.len() as u64);
                let written = |event: &Event| match event {
                    Event::Write { file: of, at: from, bytes } => {
                        of == file && *from >= at && from + bytes.len() as u64 <= at + len
                    }
                    _ => false,
                };
                self.pending.retain(|event| !written(event));
                self.durable.write(*file, at, bytes, |_| true);
            }
            event => self.pending.push(event.clone()),
        }
    }

    fn settle(&mut self, is_durable: impl Fn(&Event) -> bool) {
        let (now, later) = self.pending.drain(..).partition::<Vec<_>, _>(is_durable);
        self.pending = later;
        now.iter().for_each(|event| self.durable.apply(event, |_| true));
    }

    /// How many events are pending.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The length of a pending event, if it is a write.
    pub fn write_len(&self, event: usize) -> Option<usize> {
        match self.pending.get(event)? {
            Event::Write { bytes, .. } => Some(bytes.len()),
            _ => None,
        }
    }

    /// A disk as a power cut leaves it.
    ///
    /// # Errors
    ///
    /// If its files cannot be made in memory.
    pub fn image(&self, survives: Survives<'_>) -> io::Result<FaultDisk> {
        let mut state = self.durable.clone();
        match survives {
            Survives::Nothing => {}
            Survives::Prefix { events, torn } => {
                self.pending.iter().take(events).for_each(|event| state.apply(event, |_| true));
                if let Some(Event::Write { file, at, bytes }) = self.pending.get(events) {
                    state.write(*file, *at, &bytes[..torn.min(bytes.len())], |_| true);
                }
            }
            Survives::Any(below) => self.any(&mut state, below),
        }
        state.disk()
    }

    /// Chooses for every name and size whether it survives, and for every page in which state.
    fn any(&self, state: &mut State, below: &mut dyn FnMut(u64) -> u64) {
        let count = self.pending.len() as u64;
        let mut until: HashMap<(FileId, u64), u64> = HashMap::new();
        for (number, event) in self.pending.iter().enumerate() {
            if event.directory().is_some() || matches!(event, Event::Resize(..)) {
                if below(2) == 0 {
                    state.apply(event, |_| true);
                }
                continue;
            }
            let Some(file) = event.file() else { continue };
            state.apply(event, |page| {
                let end = until.entry((file, page)).or_insert_with(|| match below(4) {
                    0 => 0,
                    1 => count,
                    _ => below(count + 1),
                });
                (number as u64) < *end
            });
        }
    }
}

/// What a file's clean pages hold on disk, and its dirty ones in memory, if a sync of it has failed;
/// else the two are the same.
pub(super) fn stored(journal: &[Event], file: FileId) -> Option<Vec<u8>> {
    let failed = |event: &Event| matches!(event, Event::SyncFailed(of) if *of == file);
    if !journal.iter().any(failed) {
        return None;
    }
    let mut model = CrashModel::default();
    journal.iter().for_each(|event| model.pass(event));
    let (mut state, pending) = (model.durable, model.pending);
    let dirty = pending.iter().filter(|event| event.file() == Some(file));
    dirty.for_each(|event| state.apply(event, |_| true));
    let content = state.files.remove(&file).unwrap_or_default();
    let mut bytes = vec![0; content.bytes as usize];
    for (at, chunk) in content.chunks() {
        bytes[at as usize..][..chunk.len()].copy_from_slice(&chunk);
    }
    Some(bytes)
}

impl State {
    /// Applies an event, of writes only the pages that are wanted.
    fn apply(&mut self, event: &Event, wanted: impl FnMut(u64) -> bool) {
        match event {
            Event::Link(path, file) => drop(self.names.insert(path.clone(), *file)),
            Event::Unlink(path) => drop(self.names.remove(path)),
            Event::MakeDir(path) => drop(self.dirs.insert(path.clone())),
            Event::RemoveDir(dir) => {
                self.dirs.retain(|path| !path.starts_with(dir));
                self.names.retain(|path, _| !path.starts_with(dir));
            }
            Event::Write { file, at, bytes } => self.write(*file, *at, bytes, wanted),
            Event::Zero { file, at, len } => {
                self.write(*file, *at, &vec![0; *len as usize], wanted);
            }
            Event::Resize(file, bytes) => {
                let content = self.files.entry(*file).or_default();
                if *bytes < content.bytes {
                    content.cut(*bytes);
                }
                content.bytes = *bytes;
            }
            _ => {}
        }
    }

    fn write(&mut self, file: FileId, at: u64, bytes: &[u8], mut wanted: impl FnMut(u64) -> bool) {
        let content = self.files.entry(file).or_default();
        let mut done = 0;
        while done < bytes.len() {
            let from = at + done as u64;
            let (page, within) = (from / PAGE_BYTES, (from % PAGE_BYTES) as usize);
            let step = (PAGE_BYTES as usize - within).min(bytes.len() - done);
            if wanted(page) {
                let page =
                    content.pages.entry(page).or_insert_with(|| vec![0; PAGE_BYTES as usize]);
                page[within..within + step].copy_from_slice(&bytes[done..done + step]);
            }
            done += step;
        }
    }

    fn disk(mut self) -> io::Result<FaultDisk> {
        // A name survives only with the folders it is in.
        let dirs = std::mem::take(&mut self.dirs);
        let is_there = |path: &std::path::Path| {
            path.ancestors().skip(1).all(|dir| dir.parent().is_none() || dirs.contains(dir))
        };
        let dirs: BTreeSet<_> = dirs.iter().filter(|dir| is_there(dir)).cloned().collect();
        let files = &self.files;
        let named = self.names.iter().filter(|(path, _)| is_there(path));
        let images = named.map(|(path, file)| {
            let content = files.get(file).cloned().unwrap_or_default();
            FileImage { path: path.clone(), bytes: content.bytes, chunks: content.chunks() }
        });
        FaultDisk::with_files(images, dirs.clone())
    }
}

impl Content {
    /// Forgets what lies behind a size.
    fn cut(&mut self, bytes: u64) {
        self.pages.retain(|page, _| page * PAGE_BYTES < bytes);
        if let Some(page) = self.pages.get_mut(&(bytes / PAGE_BYTES)) {
            page[(bytes % PAGE_BYTES) as usize..].fill(0);
        }
    }

    /// What is in it, but for zeros, up to its size.
    fn chunks(mut self) -> Vec<(u64, Vec<u8>)> {
        self.cut(self.bytes);
        let bytes = self.bytes;
        let mut chunks: Vec<(u64, Vec<u8>)> = Vec::new();
        for (page, mut content) in self.pages {
            let at = page * PAGE_BYTES;
            content.truncate((bytes - at) as usize);
            match chunks.last_mut() {
                Some((from, chunk)) if *from + chunk.len() as u64 == at => {
                    chunk.append(&mut content)
                }
                _ => chunks.push((at, content)),
            }
        }
        chunks
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::path::Path;

    use super::*;
    use crate::disk::{Disk, Fault, Outcome, Verb};

    fn file_of(disk: &FaultDisk) -> Option<Vec<u8>> {
        disk.files().unwrap().remove(Path::new("/d/f"))
    }

    fn model(disk: &FaultDisk) -> CrashModel {
        let mut model = CrashModel::default();
        disk.journal().iter().for_each(|event| model.pass(event));
        model
    }

    #[test]
    fn only_what_was_synced_is_sure_to_survive() {
        let disk = FaultDisk::default();
        disk.create_dir(Path::new("/d")).unwrap();
        let file = disk.create_reserved(Path::new("/d/f"), 8).unwrap();
        let write = |text: &[u8], at| file.write_all_at(&mut [IoSlice::new(text)], at).unwrap();
        write(b"abcd", 0);
        file.sync().unwrap();
        assert_eq!(file_of(&model(&disk).image(Survives::Nothing).unwrap()), None, "no name");
        disk.sync_dir(Path::new("/d")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        write(b"xyz", 1);
        let model = model(&disk);
        let image = |survives| file_of(&model.image(survives).unwrap()).unwrap();
        assert_eq!(image(Survives::Nothing), b"abcd\0\0\0\0");
        assert_eq!(image(Survives::Prefix { events: 0, torn: 2 }), b"axyd\0\0\0\0");
        assert_eq!(image(Survives::Prefix { events: 1, torn: 0 }), b"axyz\0\0\0\0");
    }

    #[test]
    fn what_a_failed_sync_dropped_stays_lost_whatever_follows() {
        let disk = FaultDisk::default();
        let file = disk.create_reserved(Path::new("/f"), 4).unwrap();
        file.sync().unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        file.write_all_at(&mut [IoSlice::new(b"abcd")], 0).unwrap();
        let outcome = Outcome::Error(5);
        let (verb, path) = (Some(Verb::Sync), String::new());
        disk.add_fault(Fault { verb, syncs_only: false, path, after: 0, times: 1, outcome });
        assert!(file.sync().is_err());
        file.sync().unwrap();
        let survived = model(&disk).image(Survives::Nothing).unwrap().files().unwrap();
        assert_eq!(survived[Path::new("/f")], [0; 4]);
        assert_eq!(disk.files().unwrap()[Path::new("/f")], b"abcd", "the cache still shows it");
    }
}
