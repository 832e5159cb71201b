//! Cuts a stream of bytes into message bodies, without ever holding more than one piece and one
//! read of it.

use std::io::{self, Read};

use bytes::{Bytes, BytesMut};

/// Bodies are slices of buffers of this size, so it is what a single short body can keep in memory.
const BUFFER_BYTES: usize = 256 * 1024;

/// Most that is read at a time. A pipe does not give more.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Where one body ends and the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    /// At every newline, which belongs to no body.
    Lines {
        /// What becomes of a line longer than the limit.
        overlong: Overlong,
    },
    /// Nowhere: all of it is one body.
    Whole,
    /// After so many bytes. Not zero.
    Chunks(usize),
}

/// What becomes of a line that is longer than a message can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlong {
    /// [`CutError::TooLong`].
    Refuse,
    /// Pieces of the limit each, the last of which is shorter.
    Cut,
}

/// One message body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) body: Bytes,
    /// Counted from 1: the line it stands in, or the number of the chunk.
    pub(crate) number: u64,
    pub(crate) ending: Ending,
}

/// What stood behind a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A newline.
    Newline,
    /// The rest of the same line.
    Cut,
    /// Something that is no line ending: the end, or the next chunk.
    Open,
}

/// Why there is no next piece.
#[derive(Debug)]
pub(crate) enum CutError {
    /// The source could not be read.
    Read(io::Error),
    /// The piece with this number is longer than a message can be.
    TooLong { number: u64 },
}

/// The cutter of one source.
#[derive(Debug)]
pub(crate) struct Cutter<R> {
    source: R,
    split: Split,
    bytes_max: usize,
    /// What was read and not yet handed out.
    pending: BytesMut,
    /// So much of `pending` is known to hold no end of a piece.
    scanned: usize,
    number: u64,
    ended: bool,
}

impl<R: Read> Cutter<R> {
    /// Cuts `source` into pieces of at most `bytes_max` bytes.
    pub(crate) fn new(source: R, split: Split, bytes_max: usize) -> Self {
        let pending = BytesMut::new();
        let (number, scanned) = (1, 0);
        Cutter { source, split, bytes_max, pending, scanned, number, ended: false }
    }

    /// Appends to `pieces` what one read completes, which may be nothing. False at the end.
    ///
    /// What was appended before an error is whole and in order.
    pub(crate) fn advance(&mut self, pieces: &mut Vec<Piece>) -> Result<bool, CutError> {
        if self.ended {
            return Ok(false);
        }
        let read = self.fill().map_err(CutError::Read)?;
        self.ended = read == 0;
        match self.split {
            Split::Lines { overlong } => self.cut_lines(overlong, pieces)?,
            Split::Chunks(bytes) => self.cut_chunks(bytes.min(self.bytes_max), pieces),
            Split::Whole => self.cut_whole(pieces)?,
        }
        Ok(!self.ended)
    }

    fn fill(&mut self) -> io::Result<usize> {
        // A new buffer only when this one is used up: a pipe that trickles must not pin one for
        // every line.
        if self.pending.capacity() == self.pending.len() {
            self.pending.reserve(BUFFER_BYTES);
        }
        let filled = self.pending.len();
        self.pending.resize(self.pending.capacity().min(filled + READ_BYTES_MAX), 0);
        let outcome = loop {
            match self.source.read(&mut self.pending[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        };
        self.pending.truncate(filled + *outcome.as_ref().unwrap_or(&0));
        outcome
    }

    fn cut_lines(&mut self, overlong: Overlong, pieces: &mut Vec<Piece>) -> Result<(), CutError> {
        loop {
            let end = self.pending[self.scanned..].iter().position(|&b| b == b'\n');
            let length = self.scanned + end.unwrap_or(self.pending.len() - self.scanned);
            if length > self.bytes_max {
                if overlong == Overlong::Refuse {
                    self.ended = true;
                    return Err(CutError::TooLong { number: self.number });
                }
                self.take(self.bytes_max, Ending::Cut, pieces);
            } else if end.is_some() {
                self.take(length, Ending::Newline, pieces);
                let _newline = self.pending.split_to(1);
                self.number += 1;
            } else {
                self.scanned = length;
                // A line that was cut just at its end leaves no empty rest behind.
                if self.ended && length > 0 {
                    self.take(length, Ending::Open, pieces);
                }
                return Ok(());
            }
        }
    }

    fn cut_chunks(&mut self, bytes: usize, pieces: &mut Vec<Piece>) {
        while self.pending.len() >= bytes || (self.ended && !self.pending.is_empty()) {
            self.take(bytes.min(self.pending.len()), Ending::Open, pieces);
            self.number += 1;
        }
    }

    fn cut_whole(&mut self, pieces: &mut Vec<Piece>) -> Result<(), CutError> {
        if self.pending.len() > self.bytes_max {
            self.ended = true;
            return Err(CutError::TooLong { number: 1 });
        }
        if self.ended {
            self.take(self.pending.len(), Ending::Open, pieces);
        }
        Ok(())
    }

    fn take(&mut self, bytes: usize, ending: Ending, pieces: &mut Vec<Piece>) {
        let body = self.pending.split_to(bytes).freeze();
        self.scanned = 0;
        pieces.push(Piece { body, number: self.number, ending });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: Split = Split::Lines { overlong: Overlong::Refuse };

    /// Gives the bytes in reads of `step`, with an interruption before each.
    struct Trickle<'a> {
        rest: &'a [u8],
        step: usize,
        interrupted: bool,
    }

    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.interrupted = !self.interrupted;
            if self.interrupted {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = self.step.min(out.len()).min(self.rest.len());
            out[..n].copy_from_slice(&self.rest[..n]);
            self.rest = &self.rest[n..];
            Ok(n)
        }
    }

    fn cut(bytes: &[u8], split: Split, bytes_max: usize) -> (Vec<Piece>, Option<CutError>) {
        let mut seen: Option<Vec<Piece>> = None;
        let mut failure = None;
        for step in [1, 2, 3, 7, usize::MAX] {
            let source = Trickle { rest: bytes, step, interrupted: false };
            let mut cutter = Cutter::new(source, split, bytes_max);
            let mut pieces = Vec::new();
            failure = loop {
                match cutter.advance(&mut pieces) {
                    Ok(true) => {}
                    Ok(false) => break None,
                    Err(error) => break Some(error),
                }
            };
            if let Some(seen) = &seen {
                assert_eq!(seen, &pieces, "how the bytes arrive changes nothing");
            }
            seen = Some(pieces);
        }
        (seen.unwrap(), failure)
    }

    fn bodies(bytes: &[u8], split: Split, bytes_max: usize) -> Vec<(Vec<u8>, u64, Ending)> {
        let (pieces, failure) = cut(bytes, split, bytes_max);
        assert!(failure.is_none(), "{failure:?}");
        pieces.into_iter().map(|p| (p.body.to_vec(), p.number, p.ending)).collect()
    }

    fn line(body: &[u8], number: u64) -> (Vec<u8>, u64, Ending) {
        (body.to_vec(), number, Ending::Newline)
    }

    fn open(body: &[u8], number: u64) -> (Vec<u8>, u64, Ending) {
        (body.to_vec(), number, Ending::Open)
    }

    fn part(body: &[u8], number: u64) -> (Vec<u8>, u64, Ending) {
        (body.to_vec(), number, Ending::Cut)
    }

    #[test]
    fn lines_keep_every_byte_but_the_newline() {
        assert_eq!(bodies(b"", LINES, 9), []);
        assert_eq!(bodies(b"\n", LINES, 9), [line(b"", 1)]);
        assert_eq!(bodies(b"\n\n", LINES, 9), [line(b"", 1), line(b"", 2)]);
        assert_eq!(bodies(b"a\n\nb", LINES, 9), [line(b"a", 1), line(b"", 2), open(b"b", 3)]);
        assert_eq!(
            bodies(b"a\r\n\0\xff\n\r", LINES, 9),
            [line(b"a\r", 1), line(b"\0\xff", 2), open(b"\r", 3)]
        );
    }

    #[test]
    fn line_over_the_limit_is_refused_after_those_before_it() {
        let (pieces, failure) = cut(b"1234\n1\n12345\n1\n", LINES, 4);
        assert_eq!(pieces.iter().map(|p| &p.body[..]).collect::<Vec<_>>(), [&b"1234"[..], b"1"]);
        assert!(matches!(failure, Some(CutError::TooLong { number: 3 })), "{failure:?}");
        let (pieces, failure) = cut(b"12345", LINES, 4);
        assert!(pieces.is_empty() && matches!(failure, Some(CutError::TooLong { number: 1 })));
    }

    #[test]
    fn line_over_the_limit_is_cut_without_leaving_an_empty_rest() {
        let cut = Split::Lines { overlong: Overlong::Cut };
        assert_eq!(bodies(b"12345678\n", cut, 4), [part(b"1234", 1), line(b"5678", 1)]);
        assert_eq!(bodies(b"12345678", cut, 4), [part(b"1234", 1), open(b"5678", 1)]);
        assert_eq!(
            bodies(b"a\n123456789\n\n", cut, 4),
            [line(b"a", 1), part(b"1234", 2), part(b"5678", 2), line(b"9", 2), line(b"", 3)]
        );
    }

    #[test]
    fn longest_line_passes_and_one_byte_more_does_not() {
        let max = 4 * 1024 * 1024;
        for (length, fits) in [(max, true), (max + 1, false)] {
            let mut bytes = vec![b'x'; length];
            bytes.push(b'\n');
            let mut cutter = Cutter::new(&bytes[..], LINES, max);
            let mut pieces = Vec::new();
            let outcome = loop {
                match cutter.advance(&mut pieces) {
                    Ok(true) => {}
                    outcome => break outcome,
                }
            };
            assert_eq!((outcome.is_ok(), pieces.len()), (fits, usize::from(fits)));
        }
    }

    #[test]
    fn chunks_and_whole_files_know_no_lines() {
        assert_eq!(
            bodies(b"ab\ncd", Split::Chunks(2), 9),
            [open(b"ab", 1), open(b"\nc", 2), open(b"d", 3)]
        );
        assert_eq!(bodies(b"abcd", Split::Chunks(2), 9), [open(b"ab", 1), open(b"cd", 2)]);
        assert_eq!(bodies(b"", Split::Chunks(2), 9), []);
        assert_eq!(bodies(b"a\nb\n", Split::Whole, 9), [open(b"a\nb\n", 1)]);
        assert_eq!(bodies(b"", Split::Whole, 9), [open(b"", 1)]);
        let (pieces, failure) = cut(b"12345", Split::Whole, 4);
        assert!(pieces.is_empty() && matches!(failure, Some(CutError::TooLong { number: 1 })));
    }
}
