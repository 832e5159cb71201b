//! Choices made from a target's bytes, and files that hold them.

use std::path::Path;
use std::sync::Arc;

use longwire_storage::disk::{Disk, DiskFile, RealDisk};
use tempfile::TempDir;

/// Hands out the bytes one after another; zeros where there are no more.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let bytes = self.bytes(N);
        taken[..bytes.len()].copy_from_slice(bytes);
        taken
    }

    pub(super) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Text of up to 255 bytes; what is not UTF-8 is passed over.
    pub(super) fn text(&mut self) -> &'a str {
        let count = self.byte().into();
        str::from_utf8(self.bytes(count)).unwrap_or_default()
    }
}

/// A folder in memory, where there is one.
pub(super) fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    folder.expect("a temporary folder can be made")
}

/// A file with these bytes.
pub(super) fn file(path: &Path, bytes: &[u8]) -> Arc<dyn DiskFile> {
    std::fs::write(path, bytes).expect("a temporary file can be written");
    RealDisk.open(path).expect("it can be opened")
}
