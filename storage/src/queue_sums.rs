//! Checksums of a consume queue's files, kept up as the files are written.
//!
//! Entries are RocketMQ's and have no room for a checksum of their own. So a checkpoint notes one of
//! each file, and a start sees whether the file still is what was written.

use std::io;

use crc32fast::Hasher;

use crate::consume_queue::{ENTRY_BYTES, FILE_ENTRIES};

/// A file of a consume queue, as far as it has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueFile {
    /// The offset its first entry stands for: a multiple of [`FILE_ENTRIES`].
    pub(crate) base: u64,
    /// One past the offset of its last entry.
    pub(crate) end: u64,
    /// CRC-32 of its bytes.
    pub(crate) crc: u32,
}

impl QueueFile {
    /// How many bytes it has.
    pub(crate) fn bytes(&self) -> u64 {
        (self.end - self.base) * ENTRY_BYTES
    }
}

/// The files of one queue, oldest first; the last one is being written.
#[derive(Debug, Clone, Default)]
pub(crate) struct QueueSums {
    files: Vec<QueueFile>,
    newest: Hasher,
}

impl QueueSums {
    /// Takes the sums over that a checkpoint has noted. `read` gives the bytes of one file, as many as
    /// it should have; `false` if a file is not what it was.
    pub(crate) fn check(
        files: &[QueueFile],
        mut read: impl FnMut(&QueueFile) -> io::Result<Option<Vec<u8>>>,
    ) -> io::Result<Option<QueueSums>> {
        let mut sums = QueueSums { files: files.to_vec(), newest: Hasher::new() };
        let adjoin = |pair: &[QueueFile]| {
            pair[0].end == pair[1].base && pair[0].end == pair[0].base + FILE_ENTRIES
        };
        if !files.windows(2).all(adjoin) {
            return Ok(None);
        }
        for file in files {
            let Some(bytes) = read(file)? else {
                return Ok(None);
            };
            sums.newest = Hasher::new();
            sums.newest.update(&bytes);
            if sums.newest.clone().finalize() != file.crc {
                return Ok(None);
            }
        }
        Ok(Some(sums))
    }

    /// Entries have been written from an offset on, none of them across the end of a file.
    pub(crate) fn add(&mut self, offset: u64, bytes: &[u8]) {
        let base = offset - offset % FILE_ENTRIES;
        if self.files.last().is_none_or(|file| file.base != base) {
            self.files.push(QueueFile { base, end: base, crc: 0 });
            self.newest = Hasher::new();
        }
        let Some(file) = self.files.last_mut() else { return };
        // A hole reads as zeros.
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut hole = ((offset - file.end) * ENTRY_BYTES) as usize;
        while hole > 0 {
            let step = hole.min(ZEROS.len());
            self.newest.update(&ZEROS[..step]);
            hole -= step;
        }
        self.newest.update(bytes);
        file.end = offset + bytes.len() as u64 / ENTRY_BYTES;
        file.crc = self.newest.clone().finalize();
    }

    /// The files that hold entries from an offset on; always the newest.
    pub(crate) fn files_from(&self, offset: u64) -> &[QueueFile] {
        &self.files[self.old(offset)..]
    }

    /// Whether some files, beside the newest, only have entries below an offset.
    pub(crate) fn has_old(&self, offset: u64) -> bool {
        self.old(offset) > 0
    }

    /// Forgets the files that only have entries below an offset, except the newest.
    pub(crate) fn forget_below(&mut self, offset: u64) {
        self.files.drain(..self.old(offset));
    }

    fn old(&self, offset: u64) -> usize {
        let old = self.files.partition_point(|file| file.end <= offset);
        old.min(self.files.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_the_whole_file_however_it_was_written() {
        let mut file = vec![0; 300 * ENTRY_BYTES as usize];
        file[100 * ENTRY_BYTES as usize..].fill(7);
        let mut sums = QueueSums::default();
        sums.add(100, &file[100 * 20..250 * 20]);
        sums.add(250, &file[250 * 20..]);
        let stored = QueueFile { base: 0, end: 300, crc: crc32fast::hash(&file) };
        assert_eq!(sums.files_from(0), [stored]);

        let bytes = |_: &QueueFile| Ok(Some(file.clone()));
        let mut again = QueueSums::check(&[stored], bytes).unwrap().unwrap();
        again.add(300, &[9; 20]);
        sums.add(300, &[9; 20]);
        assert_eq!(again.files_from(0), sums.files_from(0), "it goes on from where it was");

        file[5000] ^= 1;
        let bytes = |_: &QueueFile| Ok(Some(file.clone()));
        assert!(QueueSums::check(&[stored], bytes).unwrap().is_none());
    }

    #[test]
    fn each_file_has_a_sum_of_its_own() {
        let mut sums = QueueSums::default();
        sums.add(FILE_ENTRIES - 1, &[1; 20]);
        sums.add(FILE_ENTRIES, &[2; 20]);
        assert_eq!(sums.files_from(0).len(), 2);
        assert_eq!(sums.files_from(FILE_ENTRIES)[0].base, FILE_ENTRIES);
        sums.forget_below(FILE_ENTRIES);
        assert_eq!(sums.files_from(0).len(), 1);
        sums.forget_below(u64::MAX);
        assert_eq!(sums.files_from(0).len(), 1, "the newest stays");
    }
}
