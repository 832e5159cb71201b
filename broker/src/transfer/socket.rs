//! The writing side of a non-blocking socket.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A connection to write to, which gives up on a peer that takes nothing any more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Socket<'a> {
    stream: &'a TcpStream,
    stall_timeout: Duration,
}

impl<'a> Socket<'a> {
    /// `stall_timeout` is how long the peer may take nothing before writing fails.
    pub(crate) fn new(stream: &'a TcpStream, stall_timeout: Duration) -> Socket<'a> {
        Socket { stream, stall_timeout }
    }

    /// Runs a call that writes, waiting for room first where the socket is full.
    ///
    /// The call may fail with `WouldBlock` for EAGAIN only: the runtime then waits for an edge.
    pub(crate) async fn write<T>(
        &self,
        mut call: impl FnMut(&TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match self.stream.try_io(Interest::WRITABLE, || call(self.stream)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => return result,
            }
            // Seldom, and large: without it an answer that need not wait takes half the memory.
            Box::pin(self.room()).await?;
        }
    }

    /// Another descriptor of it.
    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    /// Waits for room that somebody else has found there is not.
    pub(super) async fn wait_for_room(&self) -> io::Result<()> {
        self.write(|stream| {
            // Asked anew, and not taken from them: the runtime must not miss room made meanwhile. The
            // kernel gives an edge for room that `poll` has missed, as for room that a call has.
            let mut fds = [PollFd::new(stream, PollFlags::OUT)];
            match poll(&mut fds, Some(&Timespec::default()))? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        })
        .await
    }

    /// Waits for room.
    async fn room(&self) -> io::Result<()> {
        match timeout(self.stall_timeout, self.stream.writable()).await {
            Ok(writable) => writable,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the peer has stopped reading")),
        }
    }
}

/// One `sendmsg`. With `more`, the kernel may hold the last packet back: bytes must follow.
pub(crate) fn send_slices(
    stream: &TcpStream,
    slices: &[IoSlice<'_>],
    more: bool,
) -> io::Result<usize> {
    let flags = if more { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
    Ok(rustix::net::sendmsg(stream, slices, &mut SendAncillaryBuffer::default(), flags)?)
}
