//! Frames on their way into the socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::net::TcpStream;

use super::{Wire, lost};

/// Slices handed to one write, the most that the kernel takes (`UIO_MAXIOV`).
const SLICES_MAX: usize = 1024;

/// The parts of a frame's body, which are never copied together. Whoever submits them may keep them
/// too, to send them again.
pub(crate) type Body = Arc<Vec<Bytes>>;

/// A frame, and how far it has been written.
pub(super) struct OutFrame {
    id: u64,
    head: Bytes,
    body: Body,
    /// Parts that have been written, the head among them.
    parts_written: usize,
    /// Bytes written of the part that follows.
    bytes_written: usize,
}

impl OutFrame {
    pub(super) fn new(id: u64, head: Bytes, body: Body) -> OutFrame {
        OutFrame { id, head, body, parts_written: 0, bytes_written: 0 }
    }

    fn part(&self, number: usize) -> Option<&Bytes> {
        match number.checked_sub(1) {
            None => Some(&self.head),
            Some(index) => self.body.get(index),
        }
    }

    /// What is left to write.
    fn rest(&self) -> impl Iterator<Item = &[u8]> {
        let mut begin = self.bytes_written;
        let parts = (self.parts_written..).map_while(|number| self.part(number));
        parts.map(move |part| &part[std::mem::take(&mut begin)..])
    }

    /// Counts what has been written from here on; returns how much of that was of later frames, and
    /// `None` if this one has something left.
    fn advance(&mut self, written: usize) -> Option<usize> {
        self.bytes_written += written;
        while let Some(part) = self.part(self.parts_written) {
            if self.bytes_written < part.len() {
                return None;
            }
            self.bytes_written -= part.len();
            self.parts_written += 1;
        }
        Some(self.bytes_written)
    }

    fn is_begun(&self) -> bool {
        self.parts_written > 0 || self.bytes_written > 0
    }
}

/// Frames not yet written, in the order of their ids. Bounded by who submits.
pub(super) struct Outbox {
    frames: VecDeque<OutFrame>,
    /// `None` once the connection has ended.
    socket: Option<Arc<TcpStream>>,
}

impl Outbox {
    pub(super) fn new(socket: Arc<TcpStream>) -> Outbox {
        Outbox { frames: VecDeque::new(), socket: Some(socket) }
    }

    pub(super) fn push(&mut self, frame: OutFrame) {
        self.frames.push_back(frame);
    }

    /// Writes what the socket takes without waiting; `true` if that was everything.
    pub(super) fn write_some(&mut self) -> io::Result<bool> {
        let Some(socket) = &self.socket else {
            return Ok(true);
        };
        while !self.frames.is_empty() {
            let parts = self.frames.iter().flat_map(OutFrame::rest).take(SLICES_MAX);
            let slices: SmallVec<[_; 16]> = parts.map(IoSlice::new).collect();
            let written = socket.try_write_vectored(&slices);
            drop(slices);
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => advance(&mut self.frames, written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Writes everything, waiting as needed.
    pub(super) async fn drain(&mut self) -> io::Result<()> {
        while !self.write_some()? {
            if let Some(socket) = &self.socket {
                socket.writable().await?;
            }
        }
        Ok(())
    }

    /// Closes the socket and drops the frames. Returns the first of which nothing was written; the
    /// ids from there on never left.
    pub(super) fn close(&mut self) -> Option<u64> {
        self.socket = None;
        let first_unsent = self.frames.iter().find(|frame| !frame.is_begun()).map(|frame| frame.id);
        self.frames.clear();
        first_unsent
    }
}

fn advance(frames: &mut VecDeque<OutFrame>, mut written: usize) {
    while let Some(frame) = frames.front_mut() {
        let Some(of_later) = frame.advance(written) else {
            return;
        };
        written = of_later;
        frames.pop_front();
    }
}

/// The writer task: finishes what a submitter had to leave.
pub(super) async fn run(wire: Arc<Wire>, socket: Arc<TcpStream>) {
    loop {
        wire.backlog.notified().await;
        loop {
            if wire.outbox.lock().socket.is_none() {
                return;
            }
            if let Err(error) = socket.writable().await {
                return wire.fail(lost(&error));
            }
            // It was full, so the broker has taken something.
            wire.progress.note();
            let written = wire.outbox.lock().write_some();
            match written {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => return wire.fail(lost(&error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_frames_goes_on_where_writing_has_stopped() {
        let frame = |id, parts: [&'static str; 4]| {
            let [head, body @ ..] = parts.map(|part| Bytes::from_static(part.as_bytes()));
            OutFrame::new(id, head, Body::new(body.to_vec()))
        };
        let frames = || [frame(1, ["head", "abc", "", "defgh"]), frame(2, ["more", "", "i", ""])];
        let rest = |frames: &VecDeque<OutFrame>| -> Vec<u8> {
            frames.iter().flat_map(OutFrame::rest).flatten().copied().collect()
        };
        let whole = rest(&frames().into());
        assert_eq!(whole, b"headabcdefghmorei");
        for first in 0..=whole.len() {
            for second in first..=whole.len() {
                let mut left = VecDeque::from(frames());
                advance(&mut left, first);
                advance(&mut left, second - first);
                assert_eq!(rest(&left), whole[second..], "{first}, then up to {second}");
                let begun: Vec<_> = left.iter().map(|f| (f.id, f.is_begun())).collect();
                let expected: &[_] = match second {
                    0 => &[(1, false), (2, false)],
                    1..12 => &[(1, true), (2, false)],
                    12 => &[(2, false)],
                    13..17 => &[(2, true)],
                    _ => &[],
                };
                assert_eq!(begun, expected, "{first}, then up to {second}");
            }
        }
    }
}
