//! Space that is kept back, so that a full disk can be made room on.
//!
//! Before retention removes a segment, a checkpoint has to be written, and on a full disk there is no
//! space for that. So a file of its own holds some, which is given back for as long as that takes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::Disk;
use crate::segment_supply::is_full;

/// Enough for a checkpoint of thousands of queues.
const BYTES_MAX: u64 = 4 << 20;

#[derive(Debug)]
pub(crate) struct Reserve {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// The reserve of a store with segments of this size; [`fill`](Self::fill) makes it.
    pub(crate) fn new(disk: Arc<dyn Disk>, path: PathBuf, segment_bytes: u64) -> Reserve {
        // Never enough for the next segment, which would be made of it at once.
        Reserve { disk, path, bytes: (segment_bytes / 2).min(BYTES_MAX) }
    }

    /// Takes the space, unless it is taken already. On a full disk there is none; later, perhaps.
    pub(crate) fn fill(&self) -> io::Result<()> {
        match self.disk.open(&self.path) {
            Ok(file) if file.bytes()? == self.bytes => return Ok(()),
            Ok(_) => self.disk.remove(&self.path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match self.disk.create_reserved(&self.path, self.bytes) {
            Err(error) if !is_full(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives the space back.
    pub(crate) fn release(&self) -> io::Result<()> {
        match self.disk.remove(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
