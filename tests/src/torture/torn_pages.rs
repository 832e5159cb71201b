//! Lets a random part of what a process has written reach the disk, as the kernel may at any time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;

use crate::power::{await_write_back, begin_write_back};

const PAGE_BYTES: usize = 4096;

/// Brings a random subset of the pages of every file below `folder` to disk, without syncing any.
pub(super) fn persist_some(folder: &Path, rng: &mut Rng) -> io::Result<()> {
    let share = *rng.choice(&[0.1, 0.5, 0.9]).unwrap_or(&0.5);
    let mut files = Vec::new();
    for path in files_below(folder)? {
        let file = File::open(&path)?;
        let pages = file.metadata()?.len().div_ceil(PAGE_BYTES as u64);
        for page in 0..pages {
            if rng.f64() < share {
                begin_write_back(&file, page * PAGE_BYTES as u64, PAGE_BYTES as u64)?;
            }
        }
        files.push(file);
    }
    files.iter().try_for_each(await_write_back)?;
    // Pages of space that was only reserved count as written once the journal says so, and any sync of
    // any file brings the journal to disk.
    let other = File::create(folder.with_extension("other"))?;
    other.write_all_at(b"x", 0)?;
    other.sync_all()
}

fn files_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => files.extend(files_below(&entry.path())?),
            false => files.push(entry.path()),
        }
    }
    Ok(files)
}

/// What the page cache has of the log's segments, to be held against what the disk has after a cut.
#[derive(Debug)]
pub(super) struct Written(Vec<(PathBuf, Vec<u8>)>);

/// What the disk has of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Survival {
    /// Pages that are not there as they were written.
    pub(super) lost: u64,
    /// Pages that are, behind one that is not.
    pub(super) kept_behind: u64,
}

impl Written {
    pub(super) fn read(log: &Path) -> io::Result<Written> {
        let mut segments = files_below(log)?;
        segments.sort();
        let read = |path: PathBuf| fs::read(&path).map(|bytes| (path, bytes));
        segments.into_iter().map(read).collect::<io::Result<_>>().map(Written)
    }

    /// Compares it, page by page, with what is there now.
    pub(super) fn survival(&self) -> io::Result<Survival> {
        let mut survival = Survival::default();
        for (path, written) in &self.0 {
            let mut page_now = vec![0; PAGE_BYTES];
            let file = File::open(path).ok();
            for (at, page) in (0_u64..).step_by(PAGE_BYTES).zip(written.chunks(PAGE_BYTES)) {
                if page.iter().all(|byte| *byte == 0) {
                    continue;
                }
                let now = &mut page_now[..page.len()];
                let there = file.as_ref().is_some_and(|file| file.read_exact_at(now, at).is_ok());
                match (there && now == page, survival.lost) {
                    (true, 0) => {}
                    (true, _) => survival.kept_behind += 1,
                    (false, _) => survival.lost += 1,
                }
            }
        }
        Ok(survival)
    }
}
