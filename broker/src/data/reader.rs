//! Takes frames off a connection.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use longwire_proto::ErrorCode;
use longwire_proto::data::RequestHeader;
use longwire_proto::frame::{self, Frame, FrameError, Prefix};
use longwire_proto::limits::{REQUEST_BODY_BYTES_MAX, REQUEST_FRAME_BYTES_MAX};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::budget::Charge;
use super::connection::{Connection, End};
use super::{Refusal, writer};

/// What a connection may buffer without being charged for it.
const BASE_BYTES: usize = 4 << 10;

/// How much is read at a time from a peer that sends without a pause.
const APPETITE_BYTES_MAX: usize = 256 << 10;

thread_local! {
    /// Where peers that send little are read from. What is read leaves it within the same call.
    static COMMON: RefCell<[u8; BASE_BYTES]> = const { RefCell::new([0; BASE_BYTES]) };
}

/// Reads frames, and holds a buffer only while a part of one is there.
///
/// The buffer grows with what has really arrived, not with what a length word promises; only up to
/// the largest frame the peer has completed before is it made in one step.
#[derive(Debug)]
pub(super) struct FrameReader {
    socket: OwnedReadHalf,
    buffer: BytesMut,
    /// For the buffer's memory, where that is more than [`BASE_BYTES`].
    charge: Charge,
    /// How much to read at a time: what the peer has lately had ready.
    appetite: usize,
    /// The largest frame so far.
    largest: usize,
    /// When the frame that has begun must be complete.
    deadline: Option<Instant>,
    /// Completes when nothing more is to be read.
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl FrameReader {
    /// Reads until the token is cancelled.
    pub(super) fn new(
        socket: OwnedReadHalf,
        charge: Charge,
        ended: CancellationToken,
    ) -> FrameReader {
        FrameReader {
            socket,
            buffer: BytesMut::new(),
            charge,
            appetite: BASE_BYTES,
            largest: 0,
            deadline: None,
            ended: Box::pin(ended.cancelled_owned()),
        }
    }

    /// The next frame. Its memory is this reader's: drop it before the next call.
    ///
    /// Before it reads, everything that has been answered is written.
    pub(super) async fn next(
        &mut self,
        connection: &Arc<Connection>,
    ) -> Result<Frame<RequestHeader>, End> {
        // Its buffer held that one frame exactly.
        if self.charge.is_overdrawn() && self.buffer.is_empty() {
            self.release();
        }
        loop {
            let prefix = read_prefix(&self.buffer)?;
            if let Some(prefix) = prefix
                && let Some(frame) = frame::take(&mut self.buffer, prefix).map_err(broken)?
            {
                self.largest = self.largest.max(prefix.frame_bytes());
                self.deadline = None;
                self.charge.awaits_nothing();
                return Ok(frame);
            }
            writer::flush(connection);
            connection.kept.pause().await;
            let read = if self.is_idle() {
                self.read_first().await
            } else {
                self.make_room(prefix.map(|p| p.frame_bytes()), connection).await?;
                self.read_more().await
            };
            match read {
                Some(Ok(0)) => return Err(End::Closed),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::debug!(peer = %connection.peer, %error, "a connection was lost");
                    return Err(End::Closed);
                }
                None => self.wait(connection).await?,
            }
        }
    }

    /// Reads and forgets whatever comes, until the peer closes.
    pub(super) async fn discard(&mut self) {
        self.buffer = BytesMut::with_capacity(BASE_BYTES);
        while matches!(self.socket.read_buf(&mut self.buffer).await, Ok(1..)) {
            self.buffer.clear();
        }
    }

    /// Whether nothing is in hand, of a peer that sends little.
    fn is_idle(&self) -> bool {
        self.buffer.is_empty() && self.appetite == BASE_BYTES
    }

    /// Reads what is there to where all connections of the thread do, and keeps a copy; `None` where
    /// nothing is. Else every short request, and every look in vain, would cost an allocation of a size
    /// that allocators are slow at.
    async fn read_first(&mut self) -> Option<io::Result<usize>> {
        let read = poll_fn(|context| {
            COMMON.with_borrow_mut(|common| {
                let mut common = ReadBuf::new(&mut common[..]);
                let read = Pin::new(&mut self.socket).poll_read(context, &mut common);
                self.buffer.extend_from_slice(common.filled());
                Poll::Ready(read)
            })
        });
        match read.await {
            Poll::Ready(read) => Some(read.map(|()| self.adapt(self.buffer.len(), BASE_BYTES))),
            Poll::Pending => None,
        }
    }

    /// Reads what is there behind what is in hand; `None` where nothing is.
    async fn read_more(&mut self) -> Option<io::Result<usize>> {
        let room = self.buffer.capacity() - self.buffer.len();
        let mut read = pin!(self.socket.read_buf(&mut self.buffer));
        match poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await {
            Poll::Ready(read) => Some(read.map(|bytes| self.adapt(bytes, room))),
            Poll::Pending => None,
        }
    }

    /// Waits until there is something to read, with no buffer where no frame has begun.
    async fn wait(&mut self, connection: &Connection) -> Result<(), End> {
        if self.buffer.is_empty() {
            self.release();
            return tokio::select! {
                biased;
                () = &mut self.ended => Err(connection.end()),
                readable = self.socket.readable() => readable.map_err(|_| End::Closed),
            };
        }
        let frame_timeout = connection.plane.state.config.limits.frame_timeout;
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + frame_timeout);
        self.charge.awaits_peer(self.buffer.len());
        tokio::select! {
            biased;
            () = &mut self.ended => Err(connection.end()),
            readable = self.socket.readable() => readable.map_err(|_| End::Closed),
            () = sleep_until(deadline) => {
                let message = format!("a frame was not complete within {frame_timeout:?}");
                Err(End::Protocol(Refusal::new(ErrorCode::Timeout, message)))
            }
            () = self.charge.called_in() => {
                connection.plane.state.metrics.slow_frames.inc();
                let message = "a frame came too slowly while others waited for its memory";
                Err(End::Protocol(Refusal::new(ErrorCode::Overloaded, message)))
            }
        }
    }

    /// Makes room to read into: for a frame of so many bytes, where that is known yet.
    async fn make_room(
        &mut self,
        frame_bytes: Option<usize>,
        connection: &Connection,
    ) -> Result<(), End> {
        let have = self.buffer.len();
        let trusted = (2 * have).max(self.largest).max(BASE_BYTES);
        // Always more than is there: an incomplete frame is longer than that, `trusted` twice as
        // long, and a prefix shorter than the base.
        let least = frame_bytes.map_or(BASE_BYTES, |bytes| bytes.min(trusted));
        let wanted = least.max(self.appetite);
        if self.has_room(wanted) {
            return Ok(());
        }
        // With room for the next frame's beginning, so that it seldom has to be moved.
        let ample = wanted + self.appetite;
        let capacity = if wanted <= BASE_BYTES {
            wanted
        } else if self.charge.try_raise(ample) {
            ample
        } else if self.has_room(least) {
            return Ok(());
        } else if least <= BASE_BYTES {
            least
        } else {
            // All that the frame will ever need, so as not to wait a second time with more in hand.
            let whole = frame_bytes.unwrap_or(least);
            self.charge.awaits_nothing();
            tokio::select! {
                biased;
                () = &mut self.ended => return Err(connection.end()),
                () = self.charge.raise(whole) => {}
            }
            // The peer was not at fault for this wait.
            self.deadline = None;
            whole
        };
        let mut grown = BytesMut::with_capacity(capacity);
        grown.extend_from_slice(&self.buffer);
        self.buffer = grown;
        Ok(())
    }

    /// Whether the buffer's memory, with what is there moved to its beginning if that is cheap,
    /// holds so many bytes.
    fn has_room(&mut self, bytes: usize) -> bool {
        self.buffer.try_reclaim(bytes.saturating_sub(self.buffer.len()))
    }

    /// Gives back the buffer, whatever is in it.
    pub(super) fn release(&mut self) {
        self.buffer = BytesMut::new();
        self.charge.release();
    }

    /// So much was read where there was so much room. Returns the former.
    fn adapt(&mut self, read: usize, room: usize) -> usize {
        if read == room {
            self.appetite = (2 * self.appetite).min(APPETITE_BYTES_MAX);
        } else if read < self.appetite / 4 {
            self.appetite = (self.appetite / 2).max(BASE_BYTES);
        }
        read
    }
}

/// The prefix of the frame that begins here, once it is there and within the limits.
fn read_prefix(bytes: &[u8]) -> Result<Option<Prefix>, End> {
    let prefix = Prefix::parse(bytes, REQUEST_FRAME_BYTES_MAX).map_err(broken)?;
    match prefix {
        Some(Prefix { body_bytes, .. }) if body_bytes > REQUEST_BODY_BYTES_MAX => {
            let max = REQUEST_BODY_BYTES_MAX;
            let message = format!("a body of {body_bytes} bytes is over the limit of {max}");
            Err(End::Protocol(Refusal::new(ErrorCode::FrameTooLarge, message)))
        }
        prefix => Ok(prefix),
    }
}

fn broken(error: FrameError) -> End {
    let code = match error {
        FrameError::TooLarge { .. } => ErrorCode::FrameTooLarge,
        _ => ErrorCode::BadFrame,
    };
    End::Protocol(Refusal::new(code, error.to_string()))
}
