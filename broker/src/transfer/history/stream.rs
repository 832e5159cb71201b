//! Blocks of one segment on their way to a connection, on threads that may wait for the disk.
//!
//! Whoever sends also reads, as long as the block that it needs next is not there; one other thread
//! reads ahead, if the pool has one to spare. So two reads are under way while the socket takes what
//! the disk gives. While it takes nothing no thread is kept, once all blocks ahead have been read.
//!
//! After each call that sends, and before each that reads, the thread lets others go first. That it
//! gives way is not enough: the scheduler lets who runs go on for a while, and the p99 of a fetch at
//! the tail was 101-126 us instead of 63-68.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use longwire_storage::Range;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;

use super::super::HISTORY_CALL_BYTES_MAX;
use super::super::cold::IoPool;
use super::super::rest::Piece;
use super::super::socket::Socket;
use super::super::splice::Pipe;

/// What is read at a time, and what a pipe holds. To ask for a block, and to take it, holds up a core for
/// as long as it is large, 32 us for 512 KiB: with 256 KiB the p99 of a fetch at the tail was 1.49-1.63
/// of alone's, with 128 it is 1.38-1.40. A GB takes 346 ms of a processor instead of 287.
const BLOCK_BYTES: u64 = 128 << 10;

/// Blocks that are read ahead of the one being sent.
pub(super) const BLOCKS_MAX: usize = 5;

/// Where reads past the page cache begin and end.
const ALIGNMENT: u64 = 4096;

/// Blocks of one segment, one behind the other, on their way to a connection.
#[derive(Debug)]
pub(super) struct Stream {
    /// A range of the segment, which keeps it readable.
    range: Range,
    file: File,
    socket: OwnedFd,
    /// The address in the file that it begins with.
    begin: u64,
    /// The block being sent, locked by whoever sends.
    first: Mutex<Option<First>>,
    ahead: Mutex<Ahead>,
    /// Told when a block has been read.
    was_read: Condvar,
    _lease: Lease,
}

/// A place among the streams, and the task that sees to it that the stream ends. Both go with it.
type Lease = (OwnedSemaphorePermit, AbortOnDropHandle<()>);

#[derive(Debug)]
struct Ahead {
    blocks: VecDeque<Block>,
    /// The address in the file after the last block.
    next: u64,
    /// Nothing is read beyond: the end of the range that it began with, until another goes on from there.
    limit: u64,
    /// Empty ones.
    pipes: Vec<Pipe>,
    /// Whether a thread reads ahead.
    has_reader: bool,
}

/// A block that has been, or is being, read.
#[derive(Debug)]
struct Block {
    /// The address in the file of its first byte, where a page begins.
    begin: u64,
    /// The address after the last byte that may be sent.
    end: u64,
    /// `None` while it is being read.
    pipe: Option<io::Result<Pipe>>,
}

/// What is left of the block being sent.
#[derive(Debug)]
struct First {
    /// The address in the file of the first byte in the pipe.
    at: u64,
    end: u64,
    pipe: Pipe,
}

/// How far [`Stream::send`] came. Nothing sent, and room in the socket: the stream does not lead there,
/// or has broken off.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) bytes: usize,
    /// The socket takes no more.
    pub(crate) is_full: bool,
    /// For so long the disk was waited for.
    pub(super) waited: Duration,
}

impl Stream {
    /// A stream from the first byte of a piece on. Nothing is read yet.
    pub(super) fn begin(
        piece: &Piece<'_>,
        socket: &Socket<'_>,
        lease: Lease,
    ) -> io::Result<Stream> {
        Ok(Stream {
            range: piece.range.clone(),
            file: piece.range.open_direct()?,
            socket: socket.try_clone()?,
            begin: piece.file_offset(),
            first: Mutex::new(None),
            ahead: Mutex::new(Ahead {
                blocks: VecDeque::with_capacity(BLOCKS_MAX),
                next: piece.file_offset(),
                limit: piece.range.file_offset() + piece.range.len() as u64,
                pipes: Vec::new(),
                has_reader: false,
            }),
            was_read: Condvar::new(),
            _lease: lease,
        })
    }

    pub(super) fn segment_base(&self) -> u64 {
        self.range.segment_base()
    }

    /// Sends up to `len` of the `left` bytes from an address in the file on, as far as the stream leads
    /// there and the socket takes them. It waits for the disk, and never for the socket.
    pub(super) fn send(
        self: &Arc<Stream>,
        begin: u64,
        len: usize,
        left: usize,
        pool: &IoPool,
    ) -> io::Result<Sent> {
        let mut first = self.first.lock();
        let mut sent = Sent::default();
        while sent.bytes < len {
            let at = begin + sent.bytes as u64;
            let Some(block) = self.block_at(at, &mut first, &mut sent.waited, pool) else {
                break;
            };
            let call =
                ((block.end - at) as usize).min(len - sent.bytes).min(HISTORY_CALL_BYTES_MAX);
            match block.pipe.send(&self.socket, call, left > sent.bytes + call) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    block.at += bytes as u64;
                    sent.bytes += bytes;
                    yield_now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sent.is_full = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// Goes on to the byte at an address, passing over what is before it; `None` if the stream does not
    /// lead there, or has broken off.
    fn block_at<'a>(
        self: &Arc<Stream>,
        at: u64,
        first: &'a mut Option<First>,
        waited: &mut Duration,
        pool: &IoPool,
    ) -> Option<&'a mut First> {
        while !first.as_ref().is_some_and(|block| (block.at..block.end).contains(&at)) {
            let mut ahead = self.ahead.lock();
            ahead.pipes.extend(first.take().and_then(First::into_empty_pipe));
            if at == ahead.limit {
                // Probably the next range will follow, too.
                ahead.limit = u64::MAX;
            }
            if !ahead.leads_to(at) {
                return None;
            }
            self.have_read_ahead(&mut ahead, pool);
            let block = self.next_block(&mut ahead, waited)?;
            let pipe = block.pipe?.inspect_err(|error| pool.streams.note(error)).ok()?;
            *first = Some(First { at: block.begin, end: block.end, pipe });
        }
        if let Some(block) = first.as_mut()
            && let Err(error) = block.pass_over(at, pool)
        {
            pool.streams.note(&error);
            *first = None;
        }
        first.as_mut()
    }

    /// Takes the next block as soon as it has been read, and reads others meanwhile; `None` if there
    /// is none.
    fn next_block(
        &self,
        ahead: &mut MutexGuard<'_, Ahead>,
        waited: &mut Duration,
    ) -> Option<Block> {
        let since = (!ahead.has_read_first()).then(Instant::now);
        while !ahead.has_read_first() {
            if !self.read_next(ahead) {
                if ahead.blocks.is_empty() {
                    return None;
                }
                self.was_read.wait(ahead);
            }
        }
        *waited += since.map_or(Duration::ZERO, |since| since.elapsed());
        ahead.blocks.pop_front()
    }

    /// Has another thread read ahead, if there is one to spare.
    fn have_read_ahead(self: &Arc<Stream>, ahead: &mut Ahead, pool: &IoPool) {
        if !ahead.has_reader
            && self.has_next(ahead)
            && let Some(thread) = pool.free_thread()
        {
            ahead.has_reader = true;
            let stream = self.clone();
            drop(thread.start(move || stream.read_ahead()));
        }
    }

    fn read_ahead(&self) {
        let mut ahead = self.ahead.lock();
        while self.read_next(&mut ahead) {}
        ahead.has_reader = false;
    }

    /// Reads the next block, unless there is none to read, or it is in memory: what is gets to the socket
    /// sooner from there. That does not go for the first, of which only the beginning may be.
    fn read_next(&self, ahead: &mut MutexGuard<'_, Ahead>) -> bool {
        let position = self.segment_base() + ahead.next;
        let is_resident = || self.range.is_resident(position, position + 1);
        if !self.has_next(ahead) || ahead.next > self.begin && is_resident() {
            return false;
        }
        let begin = ahead.next / ALIGNMENT * ALIGNMENT;
        let end = (begin + BLOCK_BYTES).min(self.end(ahead));
        ahead.next = end;
        ahead.blocks.push_back(Block { begin, end, pipe: None });
        let pipe = ahead.pipes.pop();
        let pipe = MutexGuard::unlocked(ahead, || {
            yield_now();
            let pipe = pipe.map_or_else(empty_pipe, Ok)?;
            fill(&pipe, &self.file, begin, end).map(|()| pipe)
        });
        if let Some(block) = ahead.blocks.iter_mut().find(|block| block.end == end) {
            block.pipe = Some(pipe);
        }
        self.was_read.notify_all();
        true
    }

    /// Whether another block is to be read.
    fn has_next(&self, ahead: &Ahead) -> bool {
        ahead.blocks.len() < BLOCKS_MAX && ahead.next < self.end(ahead)
    }

    /// Up to this address blocks are read. All records are complete there, and so will not change any more.
    fn end(&self, ahead: &Ahead) -> u64 {
        ahead.limit.min(self.range.segment_end() - self.segment_base())
    }
}

impl Ahead {
    /// Whether the first of the blocks has been read.
    fn has_read_first(&self) -> bool {
        self.blocks.front().is_some_and(|first| first.pipe.is_some())
    }

    /// Whether the byte at an address is in one of the blocks, or the next to be read.
    fn leads_to(&self, at: u64) -> bool {
        let begin = self.blocks.front().map_or(self.next, |first| first.begin);
        (begin..=self.next).contains(&at)
    }
}

impl First {
    /// Goes on to the byte at an address in it.
    fn pass_over(&mut self, at: u64, pool: &IoPool) -> io::Result<()> {
        if at > self.at {
            let sink = pool.sink.as_deref().ok_or(io::ErrorKind::NotFound)?;
            self.pipe.discard((at - self.at) as usize, sink)?;
            self.at = at;
        }
        Ok(())
    }

    /// The pipe, if all that it had is gone: at the end of the log it has the rest of a page as well.
    fn into_empty_pipe(self) -> Option<Pipe> {
        (self.at == self.end && self.end.is_multiple_of(ALIGNMENT)).then_some(self.pipe)
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
