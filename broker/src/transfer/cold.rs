//! Cold ranges: read into the page cache by a bounded pool of threads before a socket's task
//! touches them.
//!
//! `sendfile` and a mapped slice both block the calling thread on a page that is not in memory,
//! also where the socket does not block. So every piece is probed first, unless it is near the
//! log's end; and what is missing is read by threads that may wait, never by one that serves
//! sockets, and never together with the sending, so that a slow consumer holds no thread.

use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::time::Instant;

use longwire_storage::Range;
use rustix::io::ReadWriteFlags;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};

use super::rest::{Pieces, Rest};
use crate::metrics::Metrics;

/// How much is read in at a time: long enough for a disk, short enough to share the pool fairly.
const LOAD_BYTES: usize = 1 << 20;

/// Distance between the probes of one piece, and the size of one read: what the kernel evicts or
/// reads ahead at a time is no larger.
const PROBE_BYTES: usize = 256 << 10;

/// A page that is resident vouches for the block of this many bytes it lies in: what was written or
/// read in together mostly stays together. Where it does not, sending waits for the disk for a few
/// pages. Asking for each of a thousand scattered records would cost as much as sending them.
const BLOCK_BYTES_LOG2: u32 = 14;

/// How many blocks are remembered while the pieces of one window are looked at.
const BLOCKS_REMEMBERED: usize = 256;

/// The threads that may wait for a disk.
#[derive(Debug, Clone)]
pub(crate) struct IoPool {
    threads: Arc<Semaphore>,
}

impl IoPool {
    /// A pool that runs at most this many calls at a time; further ones queue.
    pub(crate) fn new(threads: usize) -> IoPool {
        IoPool { threads: Arc::new(Semaphore::new(threads.max(1))) }
    }

    /// Runs a call that may block.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let permit = self.threads.clone().acquire_owned().await.map_err(io::Error::other)?;
        self.start(permit, call).await.map_err(io::Error::other)
    }

    /// Starts a call that may block, unless all threads are busy.
    fn try_start<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<JoinHandle<T>> {
        let permit = self.threads.clone().try_acquire_owned().ok()?;
        Some(self.start(permit, call))
    }

    fn start<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        spawn_blocking(move || {
            let _permit = permit;
            call()
        })
    }
}

/// What is known to be resident of the bytes about to be sent.
#[derive(Debug, Default)]
pub(super) struct Warmth {
    /// So many of the next bytes are.
    known: usize,
    /// The load of so many bytes after those is under way.
    loading: Option<(JoinHandle<io::Result<()>>, usize)>,
    /// Something was not, so what follows is probably not either.
    cold: bool,
}

impl Warmth {
    /// Makes the next `bytes` resident, and starts reading on where the ranges have been cold.
    pub(super) async fn warm(
        &mut self,
        rest: &Rest<'_>,
        bytes: usize,
        pool: &IoPool,
        metrics: &Metrics,
    ) -> io::Result<()> {
        while self.known < bytes {
            if let Some((load, loaded)) = self.loading.take() {
                let begun = Instant::now();
                load.await.map_err(io::Error::other)??;
                metrics.cold_wait(begun.elapsed());
                self.known += loaded;
                continue;
            }
            let next = rest.pieces(self.known, LOAD_BYTES);
            let window = LOAD_BYTES.min(rest.body() - self.known);
            if !are_resident(next.clone()) {
                let begun = Instant::now();
                pool.run(load(next)).await??;
                metrics.cold_wait(begun.elapsed());
                self.cold = true;
            }
            self.known += window;
        }
        self.read_ahead(rest, bytes, pool);
        Ok(())
    }

    /// So many bytes have been sent.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.known = self.known.saturating_sub(bytes);
    }

    fn read_ahead(&mut self, rest: &Rest<'_>, bytes: usize, pool: &IoPool) {
        let ahead = self.known - bytes;
        if self.cold && self.loading.is_none() && ahead < LOAD_BYTES && self.known < rest.body() {
            let window = LOAD_BYTES.min(rest.body() - self.known);
            let next = rest.pieces(self.known, window);
            if are_resident(next.clone()) {
                self.known += window;
            } else {
                self.loading = pool.try_start(load(next)).map(|load| (load, window));
            }
        }
    }
}

/// Reads pieces into memory. It waits for the disk, so it runs on the pool.
fn load(pieces: Pieces<'_>) -> impl FnOnce() -> io::Result<()> + Send + 'static {
    let pieces: Vec<(Range, usize, usize)> =
        pieces.map(|piece| (piece.range.clone(), piece.at, piece.len)).collect();
    move || {
        let mut buffer = vec![0; PROBE_BYTES];
        for (range, at, len) in pieces {
            for from in (at..at + len).step_by(PROBE_BYTES) {
                let step = PROBE_BYTES.min(at + len - from);
                range.read_at(from, &mut buffer[..step])?;
            }
        }
        Ok(())
    }
}

/// Whether all pieces can be sent without waiting for a disk, as far as their first and last pages,
/// and one in between every [`PROBE_BYTES`], can tell. About 0.6 us for each page asked for.
fn are_resident(mut pieces: Pieces<'_>) -> bool {
    // Queues that were written to together lie interleaved, so a fetch of several comes by the same
    // blocks again. Each has one place here; 0 is none.
    let mut resident = [0; BLOCKS_REMEMBERED];
    pieces.all(|piece| {
        if piece.range.is_tail() {
            return true;
        }
        let last = piece.at + piece.len - 1;
        let mut probes = (piece.at..last).step_by(PROBE_BYTES).chain([last]);
        probes.all(|at| {
            let block = 1 + ((piece.range.position() + at as u64) >> BLOCK_BYTES_LOG2);
            let remembered = &mut resident[block as usize % BLOCKS_REMEMBERED];
            if std::mem::replace(remembered, block) == block {
                return true;
            }
            is_resident(piece.range, at)
        })
    })
}

/// One byte, read only if that needs no disk. The kernel starts to read the page ahead otherwise.
///
/// `cachestat` would not do: it counts pages that are still being read.
fn is_resident(range: &Range, at: usize) -> bool {
    let mut byte = [0];
    let offset = range.file_offset() + at as u64;
    let read = rustix::io::preadv2(
        range.file(),
        &mut [IoSliceMut::new(&mut byte)],
        offset,
        ReadWriteFlags::NOWAIT,
    );
    matches!(read, Ok(1))
}
