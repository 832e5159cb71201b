//! What `sendfile` does inside the kernel, done from outside: from the page cache into a pipe, and from
//! the pipe to the socket. Twice the calls for the same pages; it is here to be measured.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::CALL_BYTES_MAX;
use super::rest::Piece;
use super::socket::Socket;

/// The pipe of one connection, made when it is first used. It is empty between two sends; where one
/// fails or is dropped half way, the connection ends, and the pipe with it.
#[derive(Debug, Default)]
pub(crate) struct SplicePipe(OnceLock<Pipe>);

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

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
        let mut offset = piece.range.file_offset() + piece.at as u64;
        let (file, no_wait) = (piece.range.file(), SpliceFlags::NONBLOCK);
        let filled =
            splice(file, Some(&mut offset), &pipe.write, None, piece.len, SpliceFlags::empty())?;
        if filled == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut left = filled;
        while left > 0 {
            let follows = more || filled < piece.len;
            let flags = if follows { no_wait | SpliceFlags::MORE } else { no_wait };
            let sent = socket
                .write(|stream| Ok(splice(&pipe.read, None, stream, None, left, flags)?))
                .await
                // The pipe holds bytes, so no other path may take over.
                .map_err(|error| io::Error::new(error.kind(), format!("splice: {error}")))?;
            left -= sent;
        }
        Ok(filled)
    }

    fn pipe(&self) -> io::Result<&Pipe> {
        if let Some(pipe) = self.0.get() {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A smaller one does as well, with more calls.
        let _ = fcntl_setpipe_size(&write, CALL_BYTES_MAX);
        Ok(self.0.get_or_init(|| Pipe { read, write }))
    }
}
