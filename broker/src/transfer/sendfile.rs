//! Long ranges: from the page cache to the socket without passing through this process.

use std::io;

use rustix::io::Errno;
use tokio::net::TcpStream;

use super::rest::Piece;

/// Sends a piece of a range as far as the socket takes it; at least one byte of it.
pub(super) fn send(stream: &TcpStream, piece: &Piece<'_>) -> io::Result<usize> {
    let mut offset = piece.file_offset();
    match rustix::fs::sendfile(stream, piece.range.file(), Some(&mut offset), piece.len) {
        // The file is shorter than its range; trying again would spin.
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        result => Ok(result?),
    }
}

/// Whether the kernel cannot send this file to this socket, so that only another path will do.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    let refusals = [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS];
    Errno::from_io_error(error).is_some_and(|errno| refusals.contains(&errno))
}
