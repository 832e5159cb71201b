//! Long runs that are not in memory: from the disk to the socket past the page cache.
//!
//! ```text
//!  log ── a little ahead ──► pipe, pipe, pipe, pipe ── by reference ──► socket
//!  └───────────────────────── threads of the pool ─────────────────────────┘
//! ```
//!
//! Who catches up on history reads it once. In the page cache it would push out what others are about
//! to read, and to put it there costs more than to read it: memory for every page of it, and calls
//! of the kernel that hold up a core for as long as the device's read-ahead takes. A `splice` from a
//! file that was opened with `O_DIRECT` has the disk write into pages that nobody else knows; they go
//! to the socket by reference and are free when they have been received. The process does not see
//! the bytes on this way either.
//!
//! A thread that may wait for the disk also sends what it has read, as long as the socket takes it: to
//! hand each block over to the thread that serves the socket would wake that for each, and those
//! whom it serves would wait while it sends.

mod stream;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::cold::IoPool;
use super::rest::Piece;
use super::sendfile::is_refusal;
use super::socket::Socket;
use crate::metrics::Metrics;
use stream::{BLOCKS_MAX, Stream};

pub(super) use stream::Sent;

/// A range of at least this length is worth a stream: below, most of a block would be read in vain.
const RANGE_BYTES_MIN: usize = 256 << 10;

/// Streams at a time; further connections read by way of the page cache. A stream keeps up to
/// 768 KiB of the kernel's memory until its connection goes on or ends; a user's pipes may have 64 MiB.
const STREAMS_MAX: usize = 8;

/// Descriptors that all streams take at most: two for each pipe, of which one more than there are
/// blocks ahead is being sent, and for the segment's file and the socket.
pub(crate) const FILES_MAX: usize = STREAMS_MAX * (2 * (BLOCKS_MAX + 1) + 2);

/// A stream that nobody has gone on with for so long, or up to twice as long, ends: it keeps a place, and
/// the segment's file, also after retention has removed that.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// What the streams of one broker share.
#[derive(Debug)]
pub(super) struct Streams {
    places: Arc<Semaphore>,
    /// The file system cannot read past the page cache.
    refused: AtomicBool,
}

impl Streams {
    pub(super) fn new() -> Streams {
        Streams { places: Arc::new(Semaphore::new(STREAMS_MAX)), refused: AtomicBool::new(false) }
    }

    fn note(&self, error: &io::Error) {
        if is_refusal(error) && !self.refused.swap(true, Relaxed) {
            tracing::info!(%error, "the log cannot be read past the page cache here");
        } else {
            tracing::debug!(%error, "history is read by way of the page cache");
        }
    }
}

/// The stream of one connection, while it reads history.
#[derive(Debug, Default)]
pub(super) struct History(Arc<Slot>);

#[derive(Debug, Default)]
struct Slot {
    /// Locked by whoever has the turn to write, so that nobody who sends ever waits for it.
    stream: Mutex<Option<Arc<Stream>>>,
    is_active: AtomicBool,
    /// Since [`Slot::end_when_idle`] looked the last time.
    was_used: AtomicBool,
}

impl History {
    /// Whether the connection has a stream.
    pub(super) fn is_active(&self) -> bool {
        self.0.is_active.load(Relaxed)
    }

    /// Whether a stream for a piece would be worth the while, if that is not in memory.
    pub(super) fn suits(piece: &Piece<'_>, pool: &IoPool) -> bool {
        piece.range.len() >= RANGE_BYTES_MIN
            && pool.sink.is_some()
            && !pool.streams.refused.load(Relaxed)
    }

    /// Begins a stream at a piece that it [suits](Self::suits) and that is not in memory; `false` where
    /// there cannot be one.
    pub(super) fn begin(&self, piece: &Piece<'_>, socket: &Socket<'_>, pool: &IoPool) -> bool {
        let Ok(place) = pool.streams.places.clone().try_acquire_owned() else {
            return false;
        };
        let idle =
            AbortOnDropHandle::new(tokio::spawn(Slot::end_when_idle(Arc::downgrade(&self.0))));
        let stream = Stream::begin(piece, socket, (place, idle));
        let stream = stream.inspect_err(|error| pool.streams.note(error)).ok();
        self.0.stream.try_lock().is_ok_and(|mut locked| self.0.set(&mut locked, stream))
    }

    /// Sends bytes of a piece, the first of `left` bytes, as far as the socket takes them; `None` if the
    /// stream does not lead to it, or has broken off: it has ended then, and nothing was sent.
    pub(super) async fn send(
        &self,
        piece: &Piece<'_>,
        left: usize,
        pool: &IoPool,
        metrics: &Metrics,
    ) -> io::Result<Option<Sent>> {
        self.0.was_used.store(true, Relaxed);
        let mut locked = self.0.stream.lock().await;
        if let Some(stream) = &*locked
            && stream.segment_base() == piece.range.segment_base()
        {
            let (begin, len) = (piece.file_offset(), piece.len);
            let (stream, streams_pool) = (stream.clone(), pool.clone());
            let sent = pool.run(move || stream.send(begin, len, left, &streams_pool)).await??;
            if !sent.waited.is_zero() {
                metrics.cold_wait(sent.waited);
            }
            if sent.bytes > 0 || sent.is_full {
                return Ok(Some(sent));
            }
        }
        self.0.set(&mut locked, None);
        Ok(None)
    }
}

impl Slot {
    fn set(&self, locked: &mut Option<Arc<Stream>>, stream: Option<Stream>) -> bool {
        self.is_active.store(stream.is_some(), Relaxed);
        *locked = stream.map(Arc::new);
        locked.is_some()
    }

    async fn end_when_idle(slot: Weak<Slot>) {
        loop {
            sleep(IDLE_MAX).await;
            let Some(slot) = slot.upgrade() else { return };
            // Where it is locked it is used: a peer that takes nothing is not waited for for ever.
            if let Ok(mut locked) = slot.stream.try_lock()
                && !slot.was_used.swap(false, Relaxed)
            {
                slot.set(&mut locked, None);
            }
        }
    }
}
