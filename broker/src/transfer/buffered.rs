//! `read` and `write` through a buffer of this process: what every other path is measured against,
//! and what is left where `sendfile` is refused.

use std::io::{self, IoSlice};

use super::CALL_BYTES_MAX;
use super::rest::{Piece, Rest};
use super::socket::{Socket, send_slices};

/// Bytes that have been read and not yet sent.
#[derive(Debug, Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// Sends the rest of the head and the next bytes of ranges, which must be resident.
    pub(super) async fn send(
        &mut self,
        socket: &Socket<'_>,
        rest: &Rest<'_>,
        pieces: impl Iterator<Item = Piece<'_>>,
    ) -> io::Result<usize> {
        self.0.clear();
        self.0.reserve(rest.head.len() + rest.body().min(CALL_BYTES_MAX));
        self.0.extend_from_slice(rest.head);
        for piece in pieces {
            let from = self.0.len();
            self.0.resize(from + piece.len, 0);
            piece.range.read_at(piece.at, &mut self.0[from..])?;
        }
        let more = rest.head.len() + rest.body() > self.0.len();
        let mut left = &self.0[..];
        while !left.is_empty() {
            let sent =
                socket.write(|stream| send_slices(stream, &[IoSlice::new(left)], more)).await?;
            left = &left[sent..];
        }
        Ok(self.0.len())
    }
}
