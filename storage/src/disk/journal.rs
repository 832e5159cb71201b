//! What was done to a recording disk, in order.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tells files apart, also two that had the same name one after another.
pub type FileId = u64;

/// A change that a power cut may or may not leave behind, or a sync that makes changes durable.
#[derive(Debug, Clone)]
pub enum Event {
    /// A file got a name: it was created, or renamed.
    Link(PathBuf, FileId),
    /// A name went.
    Unlink(PathBuf),
    /// A directory was made.
    MakeDir(PathBuf),
    /// A directory went, with all that was in it.
    RemoveDir(PathBuf),
    /// Bytes were written to a file.
    Write {
        /// The file.
        file: FileId,
        /// Where the first byte went.
        at: u64,
        /// The bytes.
        bytes: Arc<[u8]>,
    },
    /// Bytes of a file became zeros.
    Zero {
        /// The file.
        file: FileId,
        /// Where they begin.
        at: u64,
        /// How many there are.
        len: u64,
    },
    /// A file got another size.
    Resize(FileId, u64),
    /// What had been done to a file is durable now.
    Sync(FileId),
    /// Part of a file is durable, with these bytes in it.
    SyncRange {
        /// The file.
        file: FileId,
        /// Where it begins.
        at: u64,
        /// What stood there.
        bytes: Arc<[u8]>,
    },
    /// A sync failed: the kernel has dropped what it could not write, and will not write it later.
    SyncFailed(FileId),
    /// The names in a directory are durable now.
    SyncDir(PathBuf),
    /// Everything is durable now.
    SyncAll,
}

impl Event {
    /// The directory whose sync makes the event durable; `None` for what is done to files.
    pub(crate) fn directory(&self) -> Option<&Path> {
        match self {
            Event::Link(path, _)
            | Event::Unlink(path)
            | Event::MakeDir(path)
            | Event::RemoveDir(path) => Some(path.parent().unwrap_or(Path::new("/"))),
            _ => None,
        }
    }

    /// The file whose sync makes the event durable; `None` for names.
    pub(crate) fn file(&self) -> Option<FileId> {
        match self {
            Event::Write { file, .. } | Event::Zero { file, .. } | Event::Resize(file, _) => {
                Some(*file)
            }
            _ => None,
        }
    }
}
