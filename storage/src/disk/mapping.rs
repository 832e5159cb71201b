//! The mapping of a segment, shared soundly between one writer and many readers.
//!
//! ```text
//!  0             filled                          bytes
//!  |-- complete ----|-- the one tail's ------------|
//! ```
//!
//! Bytes below *filled* are done for good and may be borrowed by anyone; bytes above it belong to the
//! one [`MappedTail`]. The tail copies and then raises *filled* with Release; readers load it with
//! Acquire and slice only below it. So no reference ever overlaps a store.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};

use memmap2::{Advice, MmapOptions, MmapRaw};
use smallvec::SmallVec;

/// Whether so many pages are in memory can be asked without an allocation.
const PAGES_USUAL: usize = 16;

/// A shared mapping of the first bytes of a file.
///
/// The file must not be truncated while it is mapped (SIGBUS); segments are only ever unlinked.
#[derive(Debug)]
pub struct Mapping {
    raw: MmapRaw,
    filled: AtomicUsize,
    has_tail: AtomicBool,
}

impl Mapping {
    pub(super) fn new(file: &File, bytes: usize, filled: usize) -> io::Result<Mapping> {
        assert!(filled <= bytes);
        let raw = MmapOptions::new().len(bytes).map_raw(file)?;
        // Single-page folios: a sync then writes what was appended and not the whole large folio.
        raw.advise(Advice::Random)?;
        Ok(Mapping { raw, filled: AtomicUsize::new(filled), has_tail: AtomicBool::new(false) })
    }

    /// How many bytes from the start are complete.
    pub(crate) fn filled(&self) -> usize {
        self.filled.load(Acquire)
    }

    /// Complete bytes; `None` if some of the range are not.
    pub(crate) fn slice(&self, from: usize, to: usize) -> Option<&[u8]> {
        if from > to || to > self.filled() {
            return None;
        }
        // SAFETY: `to <= filled <= raw.len()`, so the range is mapped. Bytes below `filled` are never
        // stored to again: the only store goes through `MappedTail::put`, which is unique and writes
        // at or above `filled`. The Acquire load above pairs with the Release store in `publish`.
        Some(unsafe { std::slice::from_raw_parts(self.raw.as_ptr().add(from), to - from) })
    }

    /// Whether all pages between two bytes are in memory. Neither reads them in nor waits for them.
    pub(crate) fn is_resident(&self, from: usize, to: usize) -> bool {
        assert!(from < to && to <= self.raw.len(), "bytes outside of the mapping");
        let page_size = rustix::param::page_size();
        let mut states: SmallVec<[u8; PAGES_USUAL]> = SmallVec::new();
        let first = from - from % page_size;
        states.resize((to - first).div_ceil(page_size), 0);
        // SAFETY: the pages lie in the mapping, and the kernel tells of each in one byte.
        let told = unsafe {
            let pages = self.raw.as_mut_ptr().add(first).cast();
            libc::mincore(pages, to - first, states.as_mut_ptr())
        };
        told == 0 && states.iter().all(|state| state & 1 == 1)
    }

    /// Makes the pages of a range durable. They are those of complete bytes and maybe a part of the
    /// page the tail is writing, which the kernel copies as it is.
    pub(super) fn sync(&self, from: usize, to: usize) -> io::Result<()> {
        self.raw.flush_range(from, to - from)
    }

    /// Faults in and dirties the pages of a range, so that a later store does not.
    pub(crate) fn populate(&self, from: usize, to: usize) -> io::Result<()> {
        self.raw.advise_range(Advice::PopulateWrite, from, to - from)
    }

    /// The right to write above *filled*. `None` if somebody has it already.
    pub(crate) fn tail(self: &Arc<Self>) -> Option<MappedTail> {
        let first = !self.has_tail.swap(true, AcqRel);
        first.then(|| MappedTail { at: self.filled(), mapping: self.clone() })
    }
}

/// The one writer of a mapping.
#[derive(Debug)]
pub(crate) struct MappedTail {
    mapping: Arc<Mapping>,
    /// Where the next byte goes; at or above `filled`.
    at: usize,
}

impl MappedTail {
    /// Where the next byte goes.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Copies `bytes` behind those written before. Readers see them after [`publish`](Self::publish).
    ///
    /// # Panics
    ///
    /// If they do not fit; the appender rolls before that.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        assert!(end <= self.mapping.raw.len(), "a write past the end of the segment");
        // SAFETY: the range is mapped by the assertion; it lies at or above `filled`, where no
        // reference exists, and `self` is the only writer (`Mapping::tail` hands out one).
        unsafe {
            let to = self.mapping.raw.as_mut_ptr().add(self.at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        self.at = end;
    }

    /// Moves past bytes that were written through the file, which shares its pages with the mapping.
    pub(crate) fn skip(&mut self, bytes: usize) {
        assert!(self.at + bytes <= self.mapping.raw.len(), "a write past the end of the segment");
        self.at += bytes;
    }

    /// Lets readers see everything written so far.
    pub(crate) fn publish(&self) {
        self.mapping.filled.store(self.at, Release);
    }
}
