//! Pages of a file into a pipe, and from the pipe to the socket: what `sendfile` does inside the kernel,
//! done from outside. For bytes in the page cache that is twice the calls for the same pages, and here
//! to be measured.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::CALL_BYTES_MAX;
use super::rest::Piece;
use super::socket::Socket;

/// What pages pass through on their way to a socket. Who uses it counts what it holds.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    pub(super) fn new() -> io::Result<Pipe> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Pipe { read, write })
    }

    /// Makes room for so many bytes; refused where the user's pipes have too many already.
    pub(super) fn set_size(&self, bytes: usize) -> io::Result<()> {
        Ok(fcntl_setpipe_size(&self.write, bytes).map(drop)?)
    }

    /// Takes up bytes of a file from an offset on, as many as there is room for; returns how many.
    pub(super) fn fill(&self, file: impl AsFd, mut offset: u64, len: usize) -> io::Result<usize> {
        let nothing = SpliceFlags::empty();
        match splice(file, Some(&mut offset), &self.write, None, len, nothing)? {
            // The file is shorter than what it is said to hold; trying again would spin.
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            filled => Ok(filled),
        }
    }

    /// Sends bytes that it holds as far as the socket takes them; with `more`, bytes must follow.
    pub(super) fn send(&self, socket: impl AsFd, len: usize, more: bool) -> io::Result<usize> {
        let no_wait = SpliceFlags::NONBLOCK;
        let flags = if more { no_wait | SpliceFlags::MORE } else { no_wait };
        Ok(splice(&self.read, None, socket, None, len, flags)?)
    }

    /// Gives bytes that it holds to `/dev/null`.
    pub(super) fn discard(&self, mut len: usize, sink: &File) -> io::Result<()> {
        while len > 0 {
            len -= splice(&self.read, None, sink, None, len, SpliceFlags::empty())?;
        }
        Ok(())
    }
}

/// The pipe of one connection, made when it is first used. It is empty between two sends; where one
/// fails or is dropped half way, the connection ends, and the pipe with it.
#[derive(Debug, Default)]
pub(crate) struct SplicePipe(OnceLock<Pipe>);

impl SplicePipe {
    /// Sends bytes of a piece, which must be resident; at least one. With `more`, bytes must follow.
    ///
    /// Only one send at a time. An error that [`is_refusal`](super::sendfile::is_refusal) recognises
    /// has sent nothing.
    pub(super) async fn send(
        &self,
        socket: &Socket<'_>,
        piece: &Piece<'_>,
        more: bool,
    ) -> io::Result<usize> {
        let pipe = self.pipe()?;
        let filled = pipe.fill(piece.range.file(), piece.file_offset(), piece.len)?;
        let mut left = filled;
        while left > 0 {
            let more = more || filled < piece.len;
            let sent = socket.write(|stream| pipe.send(stream, left, more)).await;
            // The pipe holds bytes, so no other path may take over.
            left -=
                sent.map_err(|error| io::Error::new(error.kind(), format!("splice: {error}")))?;
        }
        Ok(filled)
    }

    fn pipe(&self) -> io::Result<&Pipe> {
        if let Some(pipe) = self.0.get() {
            return Ok(pipe);
        }
        let pipe = Pipe::new()?;
        // A smaller one does as well, with more calls.
        let _ = pipe.set_size(CALL_BYTES_MAX);
        Ok(self.0.get_or_init(|| pipe))
    }
}
