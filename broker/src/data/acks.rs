//! Produce answers that wait until their records are durable, and in the views: who has been answered
//! finds the message, and counts it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::connection::Connection;
use super::produce::Answer;
use super::writer;

/// The waiting answers of one connection. They were appended in this order, so the one in front is
/// durable first: one task waits for it, and sends all that one flush has covered together.
///
/// Bounded by the connection's unanswered requests: each answer holds a place among them.
#[derive(Debug, Default)]
pub(super) struct Acks {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Each with the position that must have been reached.
    waiting: VecDeque<(u64, Answer)>,
    /// A task waits for the first.
    attended: bool,
}

/// Sends the answer once everything below `end` is durable and in the views.
pub(super) fn when_durable(connection: &Arc<Connection>, end: u64, answer: Answer) {
    let mut state = connection.acks.state.lock();
    state.waiting.push_back((end, answer));
    if !state.attended {
        state.attended = true;
        tokio::spawn(attend(connection.clone()));
    }
}

async fn attend(connection: Arc<Connection>) {
    let store = &connection.plane.state.store;
    let reached = async |end| {
        store.flushed(end).await?;
        store.dispatched().reached(end).await
    };
    while let Some(end) = connection.acks.first_end() {
        if let Err(closed) = reached(end).await {
            // What was appended may or may not be on disk. No answer says so best.
            tracing::debug!(peer = %connection.peer, %closed, "unanswered produce requests");
            connection.abort();
            connection.acks.state.lock().waiting.clear();
            continue;
        }
        let done = store.durable().get().min(store.dispatched().get());
        while let Some(answer) = connection.acks.pop_reached(done) {
            answer.send(&connection);
        }
        writer::flush(&connection);
    }
}

impl Acks {
    /// What the first answer waits for; where there is none, the task that asks must end.
    fn first_end(&self) -> Option<u64> {
        let mut state = self.state.lock();
        let end = state.waiting.front().map(|(end, _)| *end);
        state.attended = end.is_some();
        end
    }

    fn pop_reached(&self, done: u64) -> Option<Answer> {
        let mut state = self.state.lock();
        let reached = state.waiting.front().is_some_and(|(end, _)| *end <= done);
        if reached { state.waiting.pop_front().map(|(_, answer)| answer) } else { None }
    }
}
