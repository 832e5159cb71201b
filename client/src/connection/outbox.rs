//! Frames on their way into the socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use longwire_proto::limits::RUNS_PER_PRODUCE_MAX;
use tokio::net::TcpStream;

use super::{Wire, lost};

/// Slices handed to one write: a frame with the most runs, and its head. The kernel takes up to 1024.
const SLICES_MAX: usize = RUNS_PER_PRODUCE_MAX + 1;

/// A frame: its head and the parts of its body, which are never copied together.
pub(super) struct OutFrame {
    id: u64,
    parts: VecDeque<Bytes>,
    begun: bool,
}

impl OutFrame {
    pub(super) fn new(id: u64, head: Bytes, body: Vec<Bytes>) -> OutFrame {
        let mut parts = VecDeque::from(body);
        parts.push_front(head);
        parts.retain(|part| !part.is_empty());
        OutFrame { id, parts, begun: false }
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
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let parts = self.frames.iter().flat_map(|frame| &frame.parts);
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(parts) {
                *slice = IoSlice::new(part);
                count += 1;
            }
            match socket.try_write_vectored(&slices[..count]) {
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
        let first_unsent = self.frames.iter().find(|frame| !frame.begun).map(|frame| frame.id);
        self.frames.clear();
        first_unsent
    }
}

fn advance(frames: &mut VecDeque<OutFrame>, mut written: usize) {
    while let Some(frame) = frames.front_mut() {
        while let Some(part) = frame.parts.front_mut() {
            if written == 0 {
                return;
            }
            frame.begun = true;
            let step = written.min(part.len());
            part.advance(step);
            written -= step;
            if part.is_empty() {
                frame.parts.pop_front();
            }
        }
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
            let written = wire.outbox.lock().write_some();
            match written {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => return wire.fail(lost(&error)),
            }
        }
    }
}
