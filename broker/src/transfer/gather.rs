//! Short ranges: one `sendmsg` of mapped slices, the shortest of them copied together first.

use std::cell::RefCell;
use std::io::{self, IoSlice};

use smallvec::SmallVec;
use tokio::net::TcpStream;

use super::rest::Piece;
use super::socket::send_slices;

/// Most slices of one call. What a slice costs does not fall with their number, so the kernel's
/// own limit of 1024 would buy nothing but stack.
pub(super) const SLICES_MAX: usize = 256;

/// So many need no allocation.
const SLICES_USUAL: usize = 16;

thread_local! {
    /// Where short pieces are put together. It is filled and sent within one call that does not
    /// wait, so one for each runtime thread does, however many consumers there are.
    static STAGING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Sends what is left of the head and then the pieces, as far as the socket takes them.
///
/// Pieces of ranges shorter than `copy_below` are copied. All of them must be resident, and
/// together they must be no more than [`CALL_BYTES_MAX`](super::CALL_BYTES_MAX) bytes in
/// [`SLICES_MAX`] pieces.
pub(super) fn send<'a>(
    stream: &TcpStream,
    head: &[u8],
    pieces: impl Iterator<Item = Piece<'a>> + Clone,
    copy_below: usize,
    more: bool,
) -> io::Result<usize> {
    STAGING.with_borrow_mut(|staging| {
        staging.clear();
        for piece in pieces.clone().filter(|piece| piece.range.len() < copy_below) {
            staging.extend_from_slice(mapped(&piece));
        }
        let mut slices: SmallVec<[IoSlice<'_>; SLICES_USUAL]> = SmallVec::new();
        let mut push = |bytes| slices.push(IoSlice::new(bytes));
        push(head);
        let (mut from, mut to) = (0, 0);
        for piece in pieces {
            if piece.range.len() < copy_below {
                to += piece.len;
            } else {
                if from < to {
                    push(&staging[from..to]);
                }
                from = to;
                push(mapped(&piece));
            }
        }
        if from < to {
            push(&staging[from..to]);
        }
        send_slices(stream, &slices, more)
    })
}

fn mapped<'a>(piece: &Piece<'a>) -> &'a [u8] {
    &piece.range.bytes()[piece.at..piece.at + piece.len]
}
