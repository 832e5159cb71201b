//! How far a frame has been sent.

use longwire_storage::Range;

/// What is left of one frame: the end of its head, and the ranges behind it.
#[derive(Debug)]
pub(super) struct Rest<'a> {
    pub(super) head: &'a [u8],
    ranges: &'a [Range],
    /// How many bytes of the first range are gone.
    at: usize,
    /// How many bytes of ranges are left.
    body: usize,
}

/// Bytes of one range.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) range: &'a Range,
    /// Where in the range they begin.
    pub(super) at: usize,
    pub(super) len: usize,
}

impl Piece<'_> {
    /// The position in the log of its first byte.
    pub(super) fn position(&self) -> u64 {
        self.range.position() + self.at as u64
    }

    /// Where in its segment's file it begins.
    pub(super) fn file_offset(&self) -> u64 {
        self.range.file_offset() + self.at as u64
    }
}

impl<'a> Rest<'a> {
    pub(super) fn new(head: &'a [u8], ranges: &'a [Range]) -> Rest<'a> {
        Rest { head, ranges, at: 0, body: ranges.iter().map(Range::len).sum() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head.is_empty() && self.body == 0
    }

    /// How many bytes of ranges are left.
    pub(super) fn body(&self) -> usize {
        self.body
    }

    /// The next `len` bytes of ranges after `skip`, or as many as there are.
    pub(super) fn pieces(&self, skip: usize, len: usize) -> Pieces<'a> {
        Pieces { ranges: self.ranges, at: self.at + skip, left: len }
    }

    /// Takes note that `sent` bytes are gone; `of_body` is told how many of them were of ranges.
    pub(super) fn advance(&mut self, sent: usize, of_body: impl FnOnce(usize)) {
        let head = sent.min(self.head.len());
        self.head = &self.head[head..];
        let body = sent - head;
        of_body(body);
        self.body -= body;
        self.at += body;
        while let Some((range, later)) = self.ranges.split_first()
            && self.at >= range.len()
        {
            self.at -= range.len();
            self.ranges = later;
        }
    }
}

/// See [`Rest::pieces`]. None of them is empty.
#[derive(Debug, Clone)]
pub(super) struct Pieces<'a> {
    ranges: &'a [Range],
    at: usize,
    left: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.left == 0 {
            return None;
        }
        loop {
            let (range, later) = self.ranges.split_first()?;
            self.ranges = later;
            if self.at < range.len() {
                let (at, len) = (self.at, self.left.min(range.len() - self.at));
                (self.at, self.left) = (0, self.left - len);
                return Some(Piece { range, at, len });
            }
            self.at -= range.len();
        }
    }
}
