//! Cold ranges: read into the page cache by a bounded pool of threads before a socket's task
//! touches them.
//!
//! `sendfile` and a mapped slice both block the calling thread on a page that is not in memory,
//! also where the socket does not block. So every piece is probed first, unless it is near the
//! log's end or where was read ahead; and what is missing is read by threads that may wait for a
//! disk, never by one that serves sockets. They never wait for a socket, so that no slow consumer
//! holds one.

use std::cell::{Cell, LazyCell};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use longwire_storage::Range;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};

use super::history::Streams;
use super::load::{ReadAhead, load};
use super::rest::{Pieces, Rest};
use crate::metrics::Metrics;

/// How much is read in at a time: long enough for a disk, short enough to share the pool fairly.
const LOAD_BYTES: usize = 1 << 20;

/// Distance between the probes of one piece.
const PROBE_BYTES: usize = 512 << 10;

/// A block of this many bytes that is resident, all of it, is not asked for again for a second or two:
/// doing so for each of a thousand scattered records would cost as much as sending them. All of it,
/// because short pieces are copied through the mapping, where a page that cannot be read ends the
/// process: no neighbour may vouch for it.
const BLOCK_BYTES_LOG2: u32 = 16;

/// How many blocks are remembered: 1 GiB of them in 128 KiB of memory.
const BLOCKS_REMEMBERED: usize = 16 << 10;

/// By how much the threads that read cold ranges give way to those that serve sockets: where cores
/// are scarce, who catches up on history costs who waits at the tail milliseconds otherwise.
const NICENESS: i32 = 10;

/// The threads that may wait for a disk, and so also send what nobody else is to wait for.
#[derive(Debug, Clone)]
pub(crate) struct IoPool {
    threads: Arc<Semaphore>,
    vouched: Arc<Vouched>,
    /// `/dev/null`, which takes pages without looking at them.
    pub(super) sink: Option<Arc<File>>,
    pub(super) streams: Arc<Streams>,
    /// Whether ranges are read in before they are sent.
    warms: bool,
}

/// Blocks of the log that were resident a moment ago. Queues that were written to together
/// lie interleaved, so fetches of all of them come by the same blocks.
#[derive(Debug)]
struct Vouched {
    began: Instant,
    /// Each block has one place: its number, and in the lowest bits the second it was looked at.
    blocks: Box<[AtomicU64]>,
}

impl Vouched {
    const SECOND_BITS: u32 = 20;

    fn new() -> Vouched {
        let blocks = std::iter::repeat_with(AtomicU64::default).take(BLOCKS_REMEMBERED);
        Vouched { began: Instant::now(), blocks: blocks.collect() }
    }

    /// The seconds of the clock that [`holds`](Self::holds) and [`note`](Self::note) go by. What was
    /// never noted is always too old.
    fn now(&self) -> u64 {
        2 + self.began.elapsed().as_secs()
    }

    fn place(&self, position: u64) -> (u64, &AtomicU64) {
        let block = position >> BLOCK_BYTES_LOG2;
        (block, &self.blocks[block as usize % BLOCKS_REMEMBERED])
    }

    fn holds(&self, position: u64, now: u64) -> bool {
        let (block, place) = self.place(position);
        let noted = place.load(Relaxed);
        let age = now.wrapping_sub(noted) % (1 << Self::SECOND_BITS);
        noted >> Self::SECOND_BITS == block && age <= 1
    }

    fn note(&self, position: u64, now: u64) {
        let (block, place) = self.place(position);
        place.store((block << Self::SECOND_BITS) | (now % (1 << Self::SECOND_BITS)), Relaxed);
    }
}

impl IoPool {
    /// A pool that runs at most this many calls at a time; further ones queue. With 0 ranges are sent
    /// without a look, and all else runs one at a time.
    pub(crate) fn new(threads: usize) -> IoPool {
        let warms = threads > 0;
        let threads = Arc::new(Semaphore::new(threads.max(1)));
        let sink = File::options().write(true).open("/dev/null").ok().map(Arc::new);
        let (vouched, streams) = (Arc::new(Vouched::new()), Arc::new(Streams::new()));
        IoPool { threads, vouched, sink, streams, warms }
    }

    /// A clock of whole seconds.
    pub(super) fn now(&self) -> u64 {
        self.vouched.now()
    }

    /// Runs a call that may block.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let permit = self.threads.clone().acquire_owned().await.map_err(io::Error::other)?;
        Thread(permit).start(call).await.map_err(io::Error::other)
    }

    /// A thread, unless all are busy.
    pub(super) fn free_thread(&self) -> Option<Thread> {
        self.threads.clone().try_acquire_owned().map(Thread).ok()
    }
}

/// The right to have one of the pool's threads make a call.
#[derive(Debug)]
pub(super) struct Thread(OwnedSemaphorePermit);

impl Thread {
    /// Starts a call that may block.
    pub(super) fn start<T: Send + 'static>(
        self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        spawn_blocking(move || {
            let _permit = self.0;
            give_way();
            call()
        })
    }
}

/// What is known to be resident of the bytes about to be sent.
#[derive(Debug, Default)]
pub(super) struct Warmth {
    /// So many of the next bytes are.
    known: usize,
    /// Something was not.
    pub(super) was_cold: bool,
}

impl Warmth {
    /// Whether the next `bytes` are resident, or nobody cares.
    pub(super) fn is_warm(
        &mut self,
        rest: &Rest<'_>,
        bytes: usize,
        ahead: &ReadAhead,
        pool: &IoPool,
    ) -> bool {
        while pool.warms && self.known < bytes {
            let next = rest.pieces(self.known, LOAD_BYTES);
            let is_warm = ahead.covers(next.clone(), pool);
            if !is_warm.unwrap_or_else(|| are_resident(next, &pool.vouched)) {
                return false;
            }
            self.known += LOAD_BYTES.min(rest.body() - self.known);
        }
        true
    }

    /// Makes the next `bytes` resident.
    pub(super) async fn warm(
        &mut self,
        rest: &Rest<'_>,
        bytes: usize,
        ahead: &ReadAhead,
        pool: &IoPool,
        metrics: &Metrics,
    ) -> io::Result<()> {
        while !self.is_warm(rest, bytes, ahead, pool) {
            let begun = Instant::now();
            pool.run(load(rest.pieces(self.known, LOAD_BYTES), pool.sink.clone())).await??;
            metrics.cold_wait(begun.elapsed());
            self.was_cold = true;
            self.known += LOAD_BYTES.min(rest.body() - self.known);
        }
        Ok(())
    }

    /// So many bytes have been sent.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.known = self.known.saturating_sub(bytes);
    }
}

/// Makes the calling thread, which stays one of the pool's, give way.
fn give_way() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    if !DONE.replace(true) {
        // Linux: of this thread alone. Not allowed, it reads all the same.
        let _ = rustix::process::setpriority_process(None, NICENESS);
    }
}

/// Whether all pieces can be sent without waiting for a disk, as far as their first and last pages,
/// and one in between every [`PROBE_BYTES`], can tell.
fn are_resident(mut pieces: Pieces<'_>, vouched: &Vouched) -> bool {
    let now = LazyCell::new(|| vouched.now());
    pieces.all(|piece| {
        if piece.range.is_tail() {
            return true;
        }
        let last = piece.at + piece.len - 1;
        let mut probes = (piece.at..last).step_by(PROBE_BYTES).chain([last]);
        probes.all(|at| is_resident(piece.range, piece.range.position() + at as u64, *now, vouched))
    })
}

/// Whether the page at a position of a range is, by what is known of its block.
fn is_resident(range: &Range, position: u64, now: u64, vouched: &Vouched) -> bool {
    if vouched.holds(position, now) {
        return true;
    }
    let block = position >> BLOCK_BYTES_LOG2 << BLOCK_BYTES_LOG2;
    let end = (block + (1 << BLOCK_BYTES_LOG2)).min(range.segment_end());
    if range.is_resident(block.max(range.segment_base()), end) {
        vouched.note(position, now);
        return true;
    }
    range.is_resident(position, position + 1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use longwire_proto::record::RecordDraft;
    use longwire_storage::{IndexRead, RecordRun, Store, StoreConfig, TagFilter, TopicConfig};
    use rustix::fs::{Advice, fadvise};

    use super::*;

    #[test]
    fn no_page_vouches_for_a_neighbour_that_is_not_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { segment_bytes: 1 << 20, ..StoreConfig::new(dir.path()) };
        let store = Store::open(config).unwrap();
        let queue = store.create_topic(TopicConfig::new("t", 1)).unwrap().queue(0).unwrap();
        let mut bytes = Vec::new();
        RecordDraft { topic: "t", body: &[1; 256 << 10], ..RecordDraft::default() }
            .encode(&mut bytes)
            .unwrap();
        let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
        let end = store.append_blocking(&queue, &mut run).unwrap().last().unwrap().end;
        store.flushed_blocking(end).unwrap();
        let plan = store.plan_read(&queue, 0, 1 << 20, &TagFilter::All, IndexRead::MayBlock);
        let range = plan.unwrap().ranges.remove(0);

        let path = dir.path().join("commitlog").join(format!("{:020}", 0));
        let file = File::open(path).unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        fadvise(&file, 0, None, Advice::Random).unwrap();
        let position = 128 << 10;
        if is_resident(&range, position, 2, &Vouched::new()) {
            eprintln!("skipped: this file system keeps everything in memory");
            return;
        }
        file.read_at(&mut [0], position).unwrap();
        let vouched = Vouched::new();
        assert!(is_resident(&range, position, 2, &vouched));
        assert!(!is_resident(&range, position + 4096, 2, &vouched), "it would have to be read in");
        file.read_exact_at(&mut [0; 64 << 10], position).unwrap();
        assert!(is_resident(&range, position, 2, &vouched));
        assert!(vouched.holds(position + 4096, 2), "all of the block is");
    }

    #[test]
    fn a_resident_block_is_not_asked_for_again_and_not_for_long() {
        let vouched = Vouched::new();
        let now = vouched.now();
        let block = 1 << BLOCK_BYTES_LOG2;
        assert!(!vouched.holds(0, now), "nothing was looked at");
        vouched.note(block + 5, now);
        assert!(vouched.holds(block, now) && vouched.holds(2 * block - 1, now + 1));
        assert!(!vouched.holds(block, now + 2), "too long ago");
        assert!(!vouched.holds(2 * block, now) && !vouched.holds(block - 1, now));
        let same_place = block * (1 + BLOCKS_REMEMBERED as u64);
        assert!(!vouched.holds(same_place, now));
        vouched.note(same_place, now);
        assert!(!vouched.holds(block, now), "its place was taken");
    }
}
