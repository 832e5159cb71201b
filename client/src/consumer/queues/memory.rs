//! What a consumer knows of its queues while it has no membership.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{QueueState, Queues, Start};
use crate::message::TopicQueue;

/// A member that comes back within this time goes on where it stood, even where that was not
/// committed: as long as its queues come back to it, nothing is repeated.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Where the consumer stood when its membership ended.
#[derive(Debug, Default)]
pub(super) struct Memory {
    since: Option<Instant>,
    positions: HashMap<TopicQueue, Position>,
}

/// How far a consumer has come in a queue; the fields but the last are those of [`QueueState`].
#[derive(Debug, Clone, Copy)]
pub(in crate::consumer) struct Position {
    pub(super) begin: u64,
    handed: u64,
    pub(super) done: u64,
    committed: Option<u64>,
    pub(super) touched: bool,
    pub(super) begun: bool,
    /// How often the application had asked for more by then.
    pub(super) asked: u64,
}

impl Memory {
    /// Topics that are gone have nothing to come back to.
    pub(super) fn forget(&mut self, gone: impl Fn(&str) -> bool) {
        self.positions.retain(|queue, _| !gone(&queue.topic));
    }
}

impl Position {
    fn of(state: &QueueState, asked: u64) -> Position {
        let &QueueState { begin, handed, done, committed, touched, begun, repeats, .. } = state;
        let position = Position { begin, handed, done, committed, touched, begun, asked };
        if repeats { position.after_last_commit() } else { position }
    }

    /// Everything that is not committed is to be handed out again.
    fn after_last_commit(self) -> Position {
        let offset = self.committed.unwrap_or(self.begin);
        Position { handed: offset, done: offset, touched: false, begun: false, ..self }
    }
}

impl Start {
    /// The queue comes back to a consumer that stood there, which may be before what it has committed
    /// itself; unless the group has come further. Where the broker knows of less than was committed, it
    /// is not the queue it was.
    fn go_on_at(&mut self, mut back: Position) {
        let committed = self.committed.unwrap_or(0);
        let further = self.committed > back.committed && committed <= back.handed;
        if further {
            back.done = back.done.max(committed);
        }
        if further || self.committed == back.committed {
            (self.offset, self.back) = (back.handed, Some(back));
        }
    }
}

impl Queues {
    /// The membership ends: keeps where the consumer stands, for when its queues come back.
    pub(in crate::consumer) fn remember(&mut self) {
        if self.ids.is_empty() {
            return;
        }
        let (ids, states, asked) = (&self.ids, &self.states, self.asked);
        let position = |(queue, id): (&TopicQueue, _)| {
            Some((queue.clone(), Position::of(states.get(id)?, asked)))
        };
        let positions = ids.iter().filter_map(position).collect();
        self.memory = Memory { since: Some(Instant::now()), positions };
    }

    /// Has queues that come back go on where the consumer stood. The others are forgotten.
    pub(in crate::consumer) fn recall(&mut self, starts: &mut [Start]) {
        let Memory { since, positions } = std::mem::take(&mut self.memory);
        if since.is_none_or(|since| since.elapsed() >= REMEMBERED) {
            return;
        }
        for start in starts {
            if let Some(&position) = positions.get(&start.queue) {
                start.go_on_at(position);
            }
        }
    }

    /// The application has been told that it could not commit: queues that come back are handed out
    /// again from the last commit on.
    pub(in crate::consumer) fn repeat_uncommitted(&mut self) {
        for state in self.states.values_mut() {
            state.repeats |= state.is_unsaved();
        }
        for (queue, position) in &mut self.memory.positions {
            if self.unsaved.contains_key(queue) {
                *position = position.after_last_commit();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::chunk::Source;
    use super::super::super::filter::TagFilter;
    use super::*;

    /// Assigns a queue of which nothing is committed, and that would begin at `offset`.
    fn assign(queues: &mut Queues, offset: u64) {
        let queue = TopicQueue::new("t", 0);
        let source =
            Source { name: queue.clone(), filter: TagFilter::all().into(), created_position: None };
        let mut start = [Start::new(queue, None, offset, None)];
        queues.recall(&mut start);
        let [start] = start;
        queues.assign(start, source.into());
    }

    #[test]
    fn without_a_commit_a_queue_is_repeated_from_where_it_was_begun() {
        let queue = TopicQueue::new("t", 0);
        for (told, position) in [(false, 45), (true, 40)] {
            let mut queues = Queues::default();
            assign(&mut queues, 40);
            queues.handed_out(queues.ids[&queue], 45);
            queues.done();
            if told {
                queues.repeat_uncommitted();
            }
            queues.remember();
            queues.give_up(|_| false);
            queues.forget();
            assign(&mut queues, 100);
            assert_eq!(queues.position(&queue), Some(position));
        }
    }
}
