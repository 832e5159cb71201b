//! Long runs that are not in memory: from the disk to the socket past the page cache.
//!
//! ```text
//!  log ── threads of the pool, a little ahead ──► pipe, pipe, pipe, pipe ── by reference ──► socket
//! ```
//!
//! Who catches up on history reads it once. In the page cache it would push out what others are about
//! to read, and to put it there costs more than to read it: memory for every page of it, and calls
//! of the kernel that hold up a core for as long as the device's read-ahead takes. A `splice` from a
//! file that was opened with `O_DIRECT` has the disk write into pages that nobody else knows; they go
//! to the socket by reference and are free when they have been received. The process does not see
//! the bytes on this way either.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use longwire_storage::Range;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::HISTORY_CALL_BYTES_MAX;
use super::cold::IoPool;
use super::rest::Piece;
use super::sendfile::is_refusal;
use super::socket::Socket;
use super::splice::Pipe;
use crate::metrics::Metrics;

/// A range of at least this length is worth a stream: below, most of a block would be read in vain.
const RANGE_BYTES_MIN: usize = 256 << 10;

/// What is read at a time, and what a pipe holds. With blocks of 64 KiB a GB takes twice the CPU; each of
/// 512 KiB holds up its core for 32 us twice, when it is asked for and when it has come.
const BLOCK_BYTES: u64 = 256 << 10;

/// Blocks under way to one connection: a disk is faster with several reads at a time.
const BLOCKS_MAX: usize = 6;

/// Streams at a time; further connections read by way of the page cache. A stream keeps up to
/// 1.5 MiB of the kernel's memory until its connection goes on or ends; a user's pipes may have 64.
const STREAMS_MAX: usize = 8;

/// Descriptors that all streams take at most: two for each pipe, and one for the segment's file.
pub(crate) const FILES_MAX: usize = STREAMS_MAX * (2 * BLOCKS_MAX + 1);

/// A stream that nobody has gone on with for so long, or up to twice as long, ends: it keeps a place, and
/// the segment's file, also after retention has removed that.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// Where reads past the page cache begin and end.
const ALIGNMENT: u64 = 4096;

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
    stream: Mutex<Option<Box<Stream>>>,
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
        piece.range.len() >= RANGE_BYTES_MIN && !pool.streams.refused.load(Relaxed)
    }

    /// Begins a stream at a piece that it [suits](Self::suits) and that is not in memory; `false` where
    /// there cannot be one.
    pub(super) fn begin(&self, piece: &Piece<'_>, pool: &IoPool) -> bool {
        let Ok(place) = pool.streams.places.clone().try_acquire_owned() else {
            return false;
        };
        let idle =
            AbortOnDropHandle::new(tokio::spawn(Slot::end_when_idle(Arc::downgrade(&self.0))));
        let stream = Stream::begin(piece, (place, idle), pool);
        let stream = stream.inspect_err(|error| pool.streams.note(error)).ok();
        self.0.stream.try_lock().is_ok_and(|mut locked| self.0.set(&mut locked, stream))
    }

    /// Sends bytes of a piece, the first of `left` bytes; `None` if the stream does not lead to it, or
    /// has broken off: it has ended then, and nothing was sent.
    pub(super) async fn send(
        &self,
        piece: &Piece<'_>,
        left: usize,
        socket: &Socket<'_>,
        pool: &IoPool,
        metrics: &Metrics,
    ) -> io::Result<Option<usize>> {
        self.0.was_used.store(true, Relaxed);
        let mut locked = self.0.stream.lock().await;
        let Some(stream) = &mut *locked else {
            return Ok(None);
        };
        match stream.advance(piece, pool, metrics).await {
            Ok(true) => {}
            over => {
                if let Err(error) = over {
                    pool.streams.note(&error);
                }
                self.0.set(&mut locked, None);
                return Ok(None);
            }
        }
        stream.send(piece.len, left, socket, pool).await.map(Some)
    }
}

impl Slot {
    fn set(&self, locked: &mut Option<Box<Stream>>, stream: Option<Stream>) -> bool {
        self.is_active.store(stream.is_some(), Relaxed);
        *locked = stream.map(Box::new);
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

/// Blocks of one segment, one behind the other, on their way to a connection.
#[derive(Debug)]
struct Stream {
    /// A range of the segment, which keeps it readable.
    range: Range,
    file: Arc<File>,
    blocks: VecDeque<Block>,
    /// The address in the file after the last block.
    next: u64,
    /// Nothing is read beyond: the end of the range that it began with, until another goes on from there.
    limit: u64,
    _lease: Lease,
}

/// A place among the streams, and the task that sees to it that the stream ends. Both go with it.
type Lease = (OwnedSemaphorePermit, AbortOnDropHandle<()>);

/// Bytes of a segment's file that are, or soon will be, in a pipe.
#[derive(Debug)]
struct Block {
    /// The address of the first byte in the pipe.
    at: u64,
    /// The address after the last byte that may be sent.
    end: u64,
    pipe: Filling,
}

#[derive(Debug)]
enum Filling {
    Begun(AbortOnDropHandle<io::Result<Pipe>>),
    Done(Pipe),
}

impl Stream {
    fn begin(piece: &Piece<'_>, lease: Lease, pool: &IoPool) -> io::Result<Stream> {
        let mut stream = Stream {
            range: piece.range.clone(),
            file: Arc::new(piece.range.open_direct()?),
            blocks: VecDeque::with_capacity(BLOCKS_MAX),
            next: piece.file_offset(),
            limit: piece.range.file_offset() + piece.range.len() as u64,
            _lease: lease,
        };
        stream.read(None, pool)?;
        stream.read_on(None, pool);
        Ok(stream)
    }

    /// Has blocks read as far as there should be some, one of them into this pipe, which is empty.
    fn read_on(&mut self, mut pipe: Option<Pipe>, pool: &IoPool) {
        while self.blocks.len() < BLOCKS_MAX && self.next_is_cold() {
            if let Err(error) = self.read(pipe.take(), pool) {
                return pool.streams.note(&error);
            }
        }
    }

    /// Whether there is another block in the segment, and not in memory: what is gets there sooner.
    fn next_is_cold(&self) -> bool {
        self.next < self.end() && !self.range.is_resident(self.position(), self.position() + 1)
    }

    fn read(&mut self, pipe: Option<Pipe>, pool: &IoPool) -> io::Result<()> {
        let from = self.next / ALIGNMENT * ALIGNMENT;
        let end = (from + BLOCK_BYTES).min(self.end());
        let pipe = pipe.map_or_else(empty_pipe, Ok)?;
        let (file, pool) = (self.file.clone(), pool.clone());
        let read =
            async move { pool.run(move || fill(&pipe, &file, from, end).map(|()| pipe)).await? };
        let pipe = Filling::Begun(AbortOnDropHandle::new(tokio::spawn(read)));
        self.next = end;
        self.blocks.push_back(Block { at: from, end, pipe });
        Ok(())
    }

    /// The position in the log of the next byte to read.
    fn position(&self) -> u64 {
        self.range.segment_base() + self.next
    }

    /// Up to this address blocks are read. All records are complete there, and so will not change any more.
    fn end(&self) -> u64 {
        self.limit.min(self.range.segment_end() - self.range.segment_base())
    }

    /// Goes on to the first byte of a piece, and waits until it has been read; `false` if the stream
    /// does not lead there.
    async fn advance(
        &mut self,
        piece: &Piece<'_>,
        pool: &IoPool,
        metrics: &Metrics,
    ) -> io::Result<bool> {
        let begin = piece.file_offset();
        let Some(sink) = pool.sink.as_deref() else { return Ok(false) };
        if piece.range.segment_base() != self.range.segment_base() {
            return Ok(false);
        }
        if self.blocks.is_empty() && begin == self.next {
            // Probably the next range will follow, too.
            self.limit = u64::MAX;
            self.read_on(None, pool);
        }
        while let Some(first) = self.blocks.front_mut()
            && (first.at..self.next).contains(&begin)
        {
            let (passed_over, ends) = (begin.min(first.end) - first.at, begin >= first.end);
            let pipe = first.filled(metrics).await?;
            if passed_over > 0 {
                pipe.discard(passed_over as usize, sink)?;
                first.at += passed_over;
            }
            if !ends {
                return Ok(true);
            }
            self.pass_on(pool);
        }
        Ok(false)
    }

    /// Sends at least one byte of the first block, and of what was asked for.
    async fn send(
        &mut self,
        len: usize,
        left: usize,
        socket: &Socket<'_>,
        pool: &IoPool,
    ) -> io::Result<usize> {
        let Some(Block { at, end, pipe: Filling::Done(pipe) }) = self.blocks.front_mut() else {
            return Ok(0);
        };
        let len = len.min((*end - *at) as usize).min(HISTORY_CALL_BYTES_MAX);
        let sent = pipe.send(socket, len, left > len).await?;
        *at += sent as u64;
        if at == end {
            self.pass_on(pool);
        }
        Ok(sent)
    }

    /// Goes on to the next block, and has another one read in the place of the first.
    fn pass_on(&mut self, pool: &IoPool) {
        let pipe = self.blocks.pop_front().and_then(Block::into_empty_pipe);
        self.read_on(pipe, pool);
    }
}

impl Block {
    /// Waits until it has been read.
    async fn filled(&mut self, metrics: &Metrics) -> io::Result<&Pipe> {
        loop {
            match self.pipe {
                Filling::Done(ref pipe) => return Ok(pipe),
                Filling::Begun(ref mut reading) => {
                    let waits = (!reading.is_finished()).then(Instant::now);
                    let pipe = reading.await.map_err(io::Error::other)??;
                    if let Some(since) = waits {
                        metrics.cold_wait(since.elapsed());
                    }
                    self.pipe = Filling::Done(pipe);
                }
            }
        }
    }

    /// The pipe, if all that it had is gone: at the end of the log it has the rest of a page as well.
    fn into_empty_pipe(self) -> Option<Pipe> {
        match self.pipe {
            Filling::Done(pipe) if self.end.is_multiple_of(ALIGNMENT) => Some(pipe),
            _ => None,
        }
    }
}

/// A pipe that a block fits into.
fn empty_pipe() -> io::Result<Pipe> {
    let pipe = Pipe::new()?;
    pipe.set_size(BLOCK_BYTES as usize)?;
    Ok(pipe)
}

/// Reads whole pages of a file, from an offset on at least up to another.
fn fill(pipe: &Pipe, file: &File, mut from: u64, end: u64) -> io::Result<()> {
    while from < end {
        let len = (end - from).next_multiple_of(ALIGNMENT);
        from += pipe.fill(file, from, len as usize)? as u64;
    }
    Ok(())
}
