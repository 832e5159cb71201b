//! Reads bytes of the log into the page cache, on threads that may wait for a disk.
//!
//! The kernel reads ahead of whoever reads on: as much at a time as the device's `read_ahead_kb` says,
//! on the thread that comes by the mark it left before. With 8 MiB that held up a thread that serves
//! sockets for 0.6 ms. So what a connection that reads history will probably want next is read here
//! first, and the marks in it are gone when it is sent.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use longwire_storage::Range;

use super::cold::IoPool;
use super::rest::Pieces;

/// What is read at a time. The kernel does not let others run meanwhile.
pub(super) const STEP_BYTES: usize = 256 << 10;

/// How far is read ahead of what was sent.
const AHEAD_BYTES: u64 = 4 << 20;

/// Pieces with no more than this between them are read in as one, and what lies between with them: a
/// disk takes longer for two reads, and other queues of the group want it soon.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// Ahead is only read where at least one byte of so many was wanted.
const SPARSENESS_MAX: u64 = 16;

/// Bytes of one segment, from byte `at` of a range in it, perhaps beyond that range's end.
#[derive(Debug)]
struct Span {
    range: Range,
    at: usize,
    len: usize,
}

/// Reads pieces into memory.
pub(super) fn load(
    pieces: Pieces<'_>,
    sink: Option<Arc<File>>,
) -> impl FnOnce() -> io::Result<()> + Send + use<> + 'static {
    let spans = spans(pieces);
    move || spans.iter().try_for_each(|span| span.read(sink.as_deref()))
}

/// What covers the pieces.
fn spans(pieces: Pieces<'_>) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for piece in pieces {
        let begin = piece.position();
        match spans.last_mut() {
            Some(last) if last.reaches(piece.range, begin) => {
                last.len += (begin - last.end()) as usize + piece.len;
            }
            _ => spans.push(Span { range: piece.range.clone(), at: piece.at, len: piece.len }),
        }
    }
    spans
}

impl Span {
    /// The position in the log after the last byte.
    fn end(&self) -> u64 {
        self.range.position() + (self.at + self.len) as u64
    }

    /// Whether it nearly adjoins bytes at `begin`, of a range of the same segment.
    fn reaches(&self, range: &Range, begin: u64) -> bool {
        let gap = begin.checked_sub(self.end());
        self.range.segment_base() == range.segment_base()
            && gap.is_some_and(|gap| gap <= GAP_BYTES_MAX)
    }

    /// By reference, as copying a GB takes 60 to 100 ms; by a copy where that is refused.
    fn read(&self, sink: Option<&File>) -> io::Result<()> {
        match sink.map(|sink| self.reference(sink)) {
            Some(Ok(())) => Ok(()),
            _ => self.copy(),
        }
    }

    fn reference(&self, sink: &File) -> io::Result<()> {
        let mut from = self.range.file_offset() + self.at as u64;
        let end = from + self.len as u64;
        while from < end {
            let step = STEP_BYTES.min((end - from) as usize);
            if rustix::fs::sendfile(sink, self.range.file(), Some(&mut from), step)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    fn copy(&self) -> io::Result<()> {
        let mut buffer = vec![0; STEP_BYTES.min(self.len)];
        (0..self.len).step_by(STEP_BYTES).try_for_each(|from| {
            let step = STEP_BYTES.min(self.len - from);
            self.range.read_at(self.at + from, &mut buffer[..step])
        })
    }
}

/// For so long what has been read ahead counts as resident, in seconds.
const FRESH_SECONDS: u64 = 1;

/// How far has been read what a connection will probably fetch next.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead(Arc<Progress>);

#[derive(Debug, Default)]
struct Progress {
    /// Up to this position of the log it is being read; 0 where the connection does not read history.
    begun: AtomicU64,
    /// Up to this one it has been.
    done: AtomicU64,
    /// When that was begun, by the pool's clock.
    second: AtomicU64,
}

impl ReadAhead {
    /// Whether the connection reads history.
    pub(super) fn is_active(&self) -> bool {
        self.0.begun.load(Relaxed) > 0
    }

    /// Whether all pieces have been read ahead; `None` if they are not near where that is done, or it is
    /// so long ago that they may have been evicted.
    pub(super) fn covers(&self, mut pieces: Pieces<'_>, pool: &IoPool) -> Option<bool> {
        let (begun, done) = (self.0.begun.load(Relaxed), self.0.done.load(Relaxed));
        let first = pieces.clone().next().map(|piece| piece.position());
        let follows = first.is_some_and(|first| is_near(first, begun));
        let is_fresh = || pool.now() - self.0.second.load(Relaxed) <= FRESH_SECONDS;
        (follows && is_fresh()).then(|| {
            pieces.all(|piece| {
                let begin = piece.position();
                is_near(begin, begun) && begin + piece.len as u64 <= done
            })
        })
    }

    /// Reads on behind an answer, if some of it was cold, or if it is what was read ahead before.
    pub(super) fn follow(&self, answer: &[Range], was_cold: bool, pool: &IoPool) {
        let (begun, done) = (self.0.begun.load(Relaxed), self.0.done.load(Relaxed));
        if begun == 0 && !was_cold {
            return;
        }
        let Some(last) = answer.iter().max_by_key(|range| range.end()) else {
            return;
        };
        let end = last.end();
        let from = match next(begun, done, end, was_cold) {
            Next::From(from) if !last.is_tail() && !is_sparse(answer, end) => from,
            Next::Later => return,
            _ => return self.0.begun.store(0, Relaxed),
        };
        let to = last.segment_end().min(end + AHEAD_BYTES);
        if to <= from {
            return;
        }
        let Some(thread) = pool.free_thread() else { return };
        let at = (from - last.position()) as usize;
        let span = Span { range: last.clone(), at, len: (to - from) as usize };
        let (progress, sink) = (self.0.clone(), pool.sink.clone());
        let read = move || {
            // What cannot be read is missed when it is wanted. An older read may be the slower one.
            if span.read(sink.as_deref()).is_ok() && progress.begun.load(Relaxed) == to {
                progress.done.store(to, Relaxed);
            }
        };
        self.0.done.store(from, Relaxed);
        self.0.begun.store(to, Relaxed);
        self.0.second.store(pool.now(), Relaxed);
        // Nobody waits for it.
        drop(thread.start(read));
    }
}

/// What to do next about reading ahead.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Enough is under way.
    Later,
    From(u64),
    /// The connection reads something else now.
    Stop,
}

/// For an answer that ended at position `end`, where was read up to `done`, and to `begun` soon.
fn next(begun: u64, done: u64, end: u64, was_cold: bool) -> Next {
    match begun.checked_sub(end) {
        Some(left) if left <= AHEAD_BYTES && (done < begun || left > AHEAD_BYTES / 2) => {
            Next::Later
        }
        Some(left) if left <= AHEAD_BYTES => Next::From(begun),
        // It has overtaken what was read, or begun to read elsewhere.
        _ if was_cold || is_near(end, begun) => Next::From(end),
        _ => Next::Stop,
    }
}

/// Whether somebody at a position may be the one for whom was read ahead up to `begun`.
fn is_near(position: u64, begun: u64) -> bool {
    begun > 0 && position.abs_diff(begun) <= 2 * AHEAD_BYTES
}

/// Whether an answer is only a little of the log that it spans up to `end`.
fn is_sparse(answer: &[Range], end: u64) -> bool {
    let begin = answer.iter().map(Range::position).min().unwrap_or(end);
    let wanted: u64 = answer.iter().map(|range| range.len() as u64).sum();
    (end - begin) / SPARSENESS_MAX > wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn is_read_ahead_for_who_goes_on_and_not_for_who_goes_elsewhere() {
        let next = |begun, done, end, was_cold| next(begun * MIB, done * MIB, end * MIB, was_cold);
        let from = |position| Next::From(position * MIB);
        assert_eq!(next(0, 0, 100, true), from(100), "the first cold answer");
        assert_eq!(next(104, 104, 101, false), Next::Later, "there is enough");
        assert_eq!(next(104, 104, 102, false), from(104));
        assert_eq!(next(104, 100, 103, false), Next::Later, "one at a time");
        assert_eq!(next(104, 100, 106, false), from(106), "it was overtaken");
        assert_eq!(next(104, 104, 900, false), Next::Stop);
        assert_eq!(next(104, 104, 9, false), Next::Stop);
        assert_eq!(next(104, 104, 900, true), from(900), "cold elsewhere");
    }
}
