//! Answers of one connection that wait to be written.

use std::collections::VecDeque;

use bytes::Bytes;
use longwire_storage::Ranges;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

/// One frame to be sent. Dropping it frees its request's place among the unanswered.
#[derive(Debug)]
pub(super) struct Response {
    /// Length words and header.
    pub(super) head: Bytes,
    /// The body.
    pub(super) ranges: Ranges,
    /// The request's place among the unanswered of its connection.
    pub(super) _slot: OwnedSemaphorePermit,
    /// Where there is a body: its place among the plans of its connection.
    pub(super) _plan: Option<OwnedSemaphorePermit>,
}

impl Response {
    /// One without a body.
    pub(super) fn of_head(head: Bytes, slot: OwnedSemaphorePermit) -> Response {
        Response { head, ranges: Ranges::new(), _slot: slot, _plan: None }
    }
}

/// Bounded by the connection's unanswered requests: each response holds a place among them.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Response>,
    /// Somebody has the turn to write, and will take what comes meanwhile.
    writing: bool,
    closed: bool,
}

impl Outbox {
    /// Adds a response. After [`close`](Self::close) it is dropped.
    pub(super) fn push(&self, response: Response) {
        let mut state = self.state.lock();
        if !state.closed {
            state.waiting.push_back(response);
        }
    }

    /// Takes the turn to write, if there is something and nobody has it.
    pub(super) fn take_turn(&self) -> bool {
        let mut state = self.state.lock();
        let free = !state.writing && !state.closed && !state.waiting.is_empty();
        state.writing |= free;
        free
    }

    /// Moves everything that waits into the empty `batch`. Where there is nothing, the turn is over
    /// and the answer `false`.
    pub(super) fn next(&self, batch: &mut VecDeque<Response>) -> bool {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.waiting, batch);
        state.writing = !batch.is_empty();
        state.writing
    }

    /// Drops everything, now and later.
    pub(super) fn close(&self) {
        let dropped = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        drop(dropped);
    }
}
