//! Writes the answers of a connection.
//!
//! There is no writing task: whoever has an answer ready takes the turn, and writes what others add
//! meanwhile. So an answer usually leaves on the thread that made it, without a hand-over.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use smallvec::SmallVec;
use tokio::io::Interest;

use super::connection::Connection;
use super::outbox::Response;
use crate::transfer::{Socket, Transfer, send_slices};

/// Most answers without a body in one call.
const HEADS_MAX: usize = 64;
/// So many need no allocation.
const HEADS_USUAL: usize = 4;

/// Writes what waits in the outbox as far as that is possible now; a task does the rest.
pub(super) fn flush(connection: &Arc<Connection>) {
    let Some(mut turn) = Turn::take(connection) else {
        return;
    };
    match turn.write_heads_now() {
        Ok(true) => {}
        Ok(false) => begin(Box::pin(turn.write())),
        Err(error) => turn.fail(&error),
    }
}

/// Goes on here until it would have to wait; a task does the rest. A small answer mostly is through by
/// then, and making a task for it would cost a sixth of what the broker does for it in all.
fn begin(mut write: Pin<Box<impl Future<Output = ()> + Send + 'static>>) {
    // Whatever it waits for is told of the task's own waker when that polls it.
    if write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        tokio::spawn(write);
    }
}

/// Writes what waits in the outbox, unless somebody else already does.
pub(super) async fn write(connection: &Arc<Connection>) {
    if let Some(turn) = Turn::take(connection) {
        turn.write().await;
    }
}

/// The right to write to the connection.
///
/// Given up without having come to an end, which leaves half a frame behind, it aborts the
/// connection.
struct Turn {
    connection: Arc<Connection>,
    batch: VecDeque<Response>,
    /// How much of the first head is gone.
    sent: usize,
    over: bool,
}

impl Turn {
    fn take(connection: &Arc<Connection>) -> Option<Turn> {
        connection.outbox.take_turn().then(|| Turn {
            connection: connection.clone(),
            batch: VecDeque::new(),
            sent: 0,
            over: false,
        })
    }

    /// Writes answers without a body until there are none, which ends the turn, or until writing
    /// would have to wait.
    fn write_heads_now(&mut self) -> io::Result<bool> {
        while self.has_next() {
            if self.next_has_body() {
                return Ok(false);
            }
            let stream = self.connection.stream();
            match stream.try_io(Interest::WRITABLE, || self.send_heads()) {
                Ok(sent) => self.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Writes until there is nothing left, which ends the turn.
    async fn write(mut self) {
        if let Err(error) = self.write_all().await {
            self.fail(&error);
        }
    }

    async fn write_all(&mut self) -> io::Result<()> {
        while self.has_next() {
            let plane = &self.connection.plane;
            let limits = &plane.state.config.limits;
            let socket = Socket::new(self.connection.stream(), limits.stall_timeout);
            if self.next_has_body() {
                let Some(response) = self.batch.pop_front() else {
                    break;
                };
                let mode = plane.state.config.transfer.mode;
                let kept = &self.connection.kept;
                let transfer = Transfer::new(socket, mode, kept, &plane.pool, &plane.state.metrics);
                transfer.send(&response.head, &response.ranges).await?;
            } else {
                let sent = socket.write(|_| self.send_heads()).await?;
                self.advance(sent);
                tokio::task::consume_budget().await;
            }
        }
        Ok(())
    }

    fn has_next(&mut self) -> bool {
        if self.batch.is_empty() {
            self.over = !self.connection.outbox.next(&mut self.batch);
        }
        !self.over
    }

    fn next_has_body(&self) -> bool {
        self.batch.front().is_some_and(|response| !response.ranges.is_empty())
    }

    /// One call with the heads of the next answers that have no body.
    fn send_heads(&self) -> io::Result<usize> {
        let heads = self.batch.iter().take_while(|response| response.ranges.is_empty());
        let mut gone = self.sent;
        let slices: SmallVec<[IoSlice<'_>; HEADS_USUAL]> = heads
            .take(HEADS_MAX)
            .map(|response| IoSlice::new(&response.head[std::mem::take(&mut gone)..]))
            .collect();
        send_slices(self.connection.stream(), &slices, false)
    }

    fn advance(&mut self, sent: usize) {
        self.sent += sent;
        while let Some(first) = self.batch.front()
            && self.sent >= first.head.len()
        {
            self.sent -= first.head.len();
            self.batch.pop_front();
        }
    }

    fn fail(self, error: &io::Error) {
        tracing::debug!(peer = %self.connection.peer, %error, "an answer could not be written");
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.over {
            self.connection.abort();
        }
    }
}
