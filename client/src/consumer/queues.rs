//! What a consumer knows of each of its queues.
//!
//! Everything that was fetched, or is being fetched, carries the queue's *epoch*. A seek, a pause or
//! a loss of the queue changes the epoch, and whatever still arrives for the old one is dropped.
//!
//! A queue in its current epoch that is neither paused nor halted is in exactly one place: it wants to be fetched, or
//! one outstanding fetch asks for it, or it waits out a delay.

mod memory;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::builder::Mode;
use super::chunk::{Chunk, Source};
use crate::message::{QueueOffset, TopicQueue};
use crate::{Error, ErrorKind};
use memory::{Memory, Position};

/// Errors not yet told to the application; beyond that the oldest is dropped.
const ERRORS_MAX: usize = 1024;

/// A queue, for as long as it is assigned. Never used twice.
pub(super) type QueueId = u64;

/// A queue in an epoch.
pub(super) type Key = (QueueId, u64);

/// Puts the states of neighbouring queues side by side, as they are mostly looked up in turn, several
/// times for each message. Ids are counted up here, and need no defence against who chooses them.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, id: u64) {
        // A hash map takes the place from the lowest bits, and from the highest seven a tag by which
        // it tells entries apart that want the same place.
        self.0 ^= id ^ (id << 57);
    }
}

#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) states: HashMap<QueueId, QueueState, BuildHasherDefault<IdHasher>>,
    ids: HashMap<TopicQueue, QueueId>,
    /// Given up, and not yet forgotten: the application may still work on their messages.
    leaving: HashMap<TopicQueue, QueueId>,
    /// Not to be handed out until they are resumed, whatever becomes of them meanwhile.
    paused: HashSet<TopicQueue>,
    memory: Memory,
    /// Lost before a commit: how far the application had come there.
    unsaved: HashMap<TopicQueue, u64>,
    last_id: QueueId,
    last_epoch: u64,
    /// To be fetched, the longest waiting first.
    pub(super) wanting: VecDeque<Wanted>,
    /// To be fetched after a pause.
    pub(super) delayed: Vec<Wanted>,
    /// The last epoch that ended another: those that began before may be over.
    pub(super) last_change: u64,
    /// Some that are wanted, or delayed, may be of an epoch that is over.
    pub(super) stale: bool,
    /// With fetched records, in the order in which they are handed out.
    pub(super) ready: VecDeque<Key>,
    /// With messages handed out since the last call of the application.
    touched: Vec<QueueId>,
    /// How often the application has asked for more.
    asked: u64,
    /// Bytes fetched and not handed out.
    pub(super) buffered_bytes: usize,
    /// Bytes that outstanding fetches may bring.
    pub(super) reserved_bytes: usize,
    /// Fetches without an answer.
    pub(super) outstanding: usize,
    /// How many fetches ask for all queues: no packing anew makes them fewer. 0 where that is not known.
    pub(super) packed: usize,
    /// How many queues that was counted for.
    pub(super) packed_queues: usize,
    /// A fetch is held back until no more than this is buffered or reserved.
    pub(super) starved: Option<usize>,
    errors: VecDeque<Error>,
    mode: Mode,
    /// Something may have to be committed.
    dirty: bool,
}

/// A queue to be fetched. It has all a fetch needs: of thousands of queues, most find nothing new
/// most of the time, and their states are left alone.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) key: Key,
    pub(super) source: Arc<Source>,
    /// The offset to ask for.
    pub(super) offset: u64,
}

#[derive(Debug)]
pub(super) struct QueueState {
    pub(super) source: Arc<Source>,
    pub(super) epoch: u64,
    /// It stands before a bad record, or cannot be read at all, until the application seeks.
    halted: bool,
    pub(super) chunks: VecDeque<Chunk>,
    /// In `ready`, or just being handed out from.
    pub(super) listed: bool,
    /// Where the consumer began.
    begin: u64,
    /// The offset after what has been handed out.
    handed: u64,
    /// The offset after what the application is done with: it has asked for more, or committed.
    done: u64,
    /// What is known to be committed.
    committed: Option<u64>,
    touched: bool,
    /// Something has been handed out.
    begun: bool,
    /// The application has been told that its commit failed, and counts on a repetition if the queue
    /// is lost.
    repeats: bool,
}

/// Where a newly assigned queue begins.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) queue: TopicQueue,
    /// Of its topic.
    pub(super) created_position: Option<u64>,
    pub(super) offset: u64,
    /// What the group has committed, or what need not be committed.
    pub(super) committed: Option<u64>,
    /// Where the consumer stood in it, if it comes back.
    pub(super) back: Option<Position>,
}

impl Start {
    pub(super) fn new(
        queue: TopicQueue,
        created_position: Option<u64>,
        offset: u64,
        committed: Option<u64>,
    ) -> Start {
        Start { queue, created_position, offset, committed, back: None }
    }
}

impl Queues {
    pub(super) fn new(mode: Mode) -> Queues {
        Queues { mode, ..Queues::default() }
    }

    fn new_epoch(&mut self) -> u64 {
        self.last_epoch += 1;
        self.last_epoch
    }

    /// Takes on a queue. One that is assigned already stays as it is.
    pub(super) fn assign(&mut self, start: Start, source: Arc<Source>) {
        if self.ids.contains_key(&start.queue) {
            return;
        }
        self.last_id += 1;
        let (id, epoch) = (self.last_id, self.new_epoch());
        // Unless it comes back while the application still works on messages of it.
        let back = start.back.filter(|back| !back.touched || back.asked == self.asked);
        let done = back.map_or(start.offset, |back| back.done);
        let state = QueueState {
            source,
            epoch,
            halted: false,
            chunks: VecDeque::new(),
            listed: false,
            begin: start.back.map_or(start.offset, |back| back.begin),
            handed: start.offset,
            done,
            committed: start.committed,
            touched: back.is_some_and(|back| back.touched),
            begun: start.back.is_some_and(|back| back.begun),
            repeats: false,
        };
        if state.touched {
            self.touched.push(id);
        }
        // It goes on where the application had come to, so nothing has been lost; or it goes back,
        // and the application knows.
        let lost_before = if start.back.is_some() { u64::MAX } else { start.offset };
        self.save(&start.queue, lost_before);
        self.dirty |= start.committed != Some(done);
        self.ids.insert(start.queue, id);
        self.states.insert(id, state);
        self.want(id);
    }

    /// Stops handing out messages of every queue that `keep` does not want.
    pub(super) fn give_up(&mut self, keep: impl Fn(&TopicQueue) -> bool) {
        let gone: Vec<TopicQueue> = self.ids.keys().filter(|name| !keep(name)).cloned().collect();
        for name in gone {
            if let Some(id) = self.ids.remove(&name) {
                self.detach(id);
                self.leaving.insert(name, id);
            }
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Whether the application may still work on messages of queues that were given up.
    pub(super) fn leaves_work(&self) -> bool {
        let state = |id| self.states.get(id);
        self.leaving.values().filter_map(state).any(|state| state.touched)
    }

    /// Forgets the queues that were given up. Returns how many, and what there is to commit for them.
    pub(super) fn forget(&mut self) -> (usize, Vec<QueueOffset>) {
        let states = &mut self.states;
        let gone: Vec<_> = self.leaving.drain().filter_map(|(_, id)| states.remove(&id)).collect();
        for state in gone.iter().filter(|state| state.is_unsaved()) {
            self.unsaved.insert(state.source.name.clone(), state.handed);
        }
        (gone.len(), gone.iter().filter_map(QueueState::uncommitted).collect())
    }

    /// A queue that was lost before everything handed out of it was committed.
    pub(super) fn unsaved(&self) -> Option<&TopicQueue> {
        self.unsaved.keys().next()
    }

    /// The application knows of the queues that were lost.
    pub(super) fn forget_unsaved(&mut self) {
        self.unsaved.clear();
    }

    /// Drops what was fetched of a queue and makes every outstanding fetch of it void.
    fn detach(&mut self, id: QueueId) -> Option<&mut QueueState> {
        let epoch = self.new_epoch();
        let state = self.states.get_mut(&id)?;
        let dropped: usize = state.chunks.drain(..).map(|chunk| chunk.bytes_left()).sum();
        self.buffered_bytes -= dropped;
        state.epoch = epoch;
        state.listed = false;
        (self.last_change, self.stale) = (epoch, true);
        Some(state)
    }

    fn id(&self, queue: &TopicQueue) -> Result<QueueId, Error> {
        self.ids.get(queue).copied().ok_or_else(|| {
            let message = format!("queue {queue} is not assigned to this consumer");
            Error::new(ErrorKind::InvalidArgument, message)
        })
    }

    /// Goes on at `offset`, also in a queue that stood still.
    pub(super) fn seek(&mut self, queue: &TopicQueue, offset: u64) -> Result<(), Error> {
        let id = self.id(queue)?;
        let Some(state) = self.detach(id) else {
            return Ok(());
        };
        (state.handed, state.done) = (offset, offset);
        state.halted = false;
        self.want(id);
        self.dirty = true;
        Ok(())
    }

    /// Stops handing out messages of a queue, and fetching them. What was fetched is dropped.
    pub(super) fn pause(&mut self, queue: &TopicQueue) {
        let Ok(id) = self.id(queue) else { return };
        if self.paused.insert(queue.clone()) {
            self.detach(id);
        }
    }

    /// Ends a pause. A queue that stands before a bad record keeps standing.
    pub(super) fn resume(&mut self, queue: &TopicQueue) {
        if self.paused.remove(queue)
            && let Ok(id) = self.id(queue)
        {
            self.want(id);
        }
    }

    /// Has a queue fetched of which nothing has been fetched, unless it is paused or halted.
    fn want(&mut self, id: QueueId) {
        if let Some(state) = self.states.get(&id)
            && !state.halted
            && !self.paused.contains(&state.source.name)
        {
            let (key, source) = ((id, state.epoch), state.source.clone());
            self.wanting.push_back(Wanted { key, source, offset: state.handed });
        }
    }

    /// Stops a queue until the application seeks, and tells it why.
    pub(super) fn halt(&mut self, id: QueueId, why: Error) {
        if let Some(state) = self.detach(id) {
            state.halted = true;
        }
        self.report(why);
    }

    /// The broker does not know a queue any more, as `why` says.
    pub(super) fn gone(&mut self, id: QueueId, why: Error) {
        match self.mode {
            Mode::Assigned => {
                self.halt(id, why);
                if let Some(state) = self.states.get_mut(&id) {
                    state.cut_loose();
                }
            }
            // What has its name later is another queue.
            Mode::Broadcast => {
                self.halt(id, why);
                if let Some(state) = self.states.remove(&id) {
                    self.ids.remove(&state.source.name);
                }
            }
            // The group says so too, once for all queues, and what to read instead.
            Mode::Member => {
                tracing::debug!(%why, "a queue is left alone until the group assigns anew");
                if let Some(state) = self.detach(id) {
                    state.halted = true;
                }
            }
        }
    }

    /// Forgets every queue of these topics, of which nothing is left to be read or committed.
    pub(super) fn forget_topics(&mut self, gone: impl Fn(&str) -> bool) {
        self.give_up(|queue| !gone(&queue.topic));
        self.forget();
        self.unsaved.retain(|queue, _| !gone(&queue.topic));
        self.memory.forget(gone);
    }

    /// Leaves an error for the application.
    pub(super) fn report(&mut self, error: Error) {
        if self.errors.len() == ERRORS_MAX {
            self.errors.pop_front();
        }
        self.errors.push_back(error);
    }

    pub(super) fn take_error(&mut self) -> Option<Error> {
        self.errors.pop_front()
    }

    /// The state of a queue if it is still in the epoch of `key`.
    pub(super) fn current(&mut self, key: Key) -> Option<&mut QueueState> {
        self.states.get_mut(&key.0).filter(|state| state.epoch == key.1)
    }

    /// Handing out has come to `offset`.
    pub(super) fn handed_out(&mut self, id: QueueId, offset: u64) {
        let Some(state) = self.states.get_mut(&id) else {
            return;
        };
        if state.handed != offset {
            state.handed = offset;
            state.begun = true;
            if !state.touched {
                state.touched = true;
                self.touched.push(id);
            }
        }
    }

    /// Nothing lies before `offset` any more that could be handed out, and nothing is under way.
    pub(super) fn passed_over(&mut self, id: QueueId, offset: u64) {
        let Some(state) = self.states.get_mut(&id) else {
            return;
        };
        state.handed = offset;
        if !state.touched {
            state.done = offset;
            self.dirty = true;
        }
    }

    /// The application asks for more: it is done with what it has.
    pub(super) fn done(&mut self) {
        self.asked += 1;
        for id in self.touched.drain(..) {
            if let Some(state) = self.states.get_mut(&id) {
                state.touched = false;
                state.done = state.handed;
                self.dirty = true;
            }
        }
    }

    /// Whether something may have to be committed, since this was last asked.
    pub(super) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// What there is to commit.
    pub(super) fn uncommitted(&self) -> Vec<(QueueId, QueueOffset)> {
        let states = self.states.iter();
        states.filter_map(|(id, state)| Some((*id, state.uncommitted()?))).collect()
    }

    /// These have been committed.
    pub(super) fn committed(&mut self, positions: &[(QueueId, QueueOffset)]) {
        for (id, position) in positions {
            if let Some(state) = self.states.get_mut(id) {
                state.committed = Some(position.offset);
                state.repeats = false;
            }
            if !self.unsaved.is_empty() {
                let queue = TopicQueue::new(position.topic.clone(), position.queue);
                self.save(&queue, position.offset);
            }
        }
    }

    /// Nothing that had been handed out of a queue before this offset is lost any more.
    fn save(&mut self, queue: &TopicQueue, offset: u64) {
        if self.unsaved.get(queue).is_some_and(|handed| *handed <= offset) {
            self.unsaved.remove(queue);
        }
    }

    /// The application has committed offsets of its own choice. They stand until it goes on.
    pub(super) fn committed_explicitly(&mut self, offsets: &[QueueOffset]) {
        for offset in offsets {
            let queue = TopicQueue::new(offset.topic.clone(), offset.queue);
            self.save(&queue, offset.offset);
            let id = self.ids.get(&queue).or_else(|| self.leaving.get(&queue));
            if let Some(state) = id.and_then(|id| self.states.get_mut(id)) {
                state.committed = Some(offset.offset);
                state.done = offset.offset;
                state.repeats = false;
            }
        }
    }

    pub(super) fn assignment(&self) -> Vec<TopicQueue> {
        let mut queues: Vec<TopicQueue> = self.ids.keys().cloned().collect();
        queues.sort();
        queues
    }

    pub(super) fn contains(&self, queue: &TopicQueue) -> bool {
        self.ids.contains_key(queue)
    }

    /// Whether there is a queue to fetch from.
    pub(super) fn wants(&mut self) -> bool {
        if std::mem::take(&mut self.stale) {
            let states = &self.states;
            let is_current = |wanted: &Wanted| {
                states.get(&wanted.key.0).is_some_and(|state| state.epoch == wanted.key.1)
            };
            self.wanting.retain(is_current);
            self.delayed.retain(is_current);
        }
        !self.wanting.is_empty()
    }

    pub(super) fn has_delayed(&self) -> bool {
        !self.delayed.is_empty()
    }

    /// The offset of the message to be handed out next.
    pub(super) fn position(&self, queue: &TopicQueue) -> Option<u64> {
        Some(self.states.get(self.ids.get(queue)?)?.handed)
    }
}

impl QueueState {
    /// The topic is gone. There is nothing to be committed for it, and where the application seeks, it
    /// is in what has the name then.
    fn cut_loose(&mut self) {
        self.source = Arc::new(Source { created_position: None, ..(*self.source).clone() });
        (self.done, self.committed) = (self.handed, Some(self.handed));
    }

    /// Whether something was handed out that is not committed.
    fn is_unsaved(&self) -> bool {
        self.begun && self.committed != Some(self.handed)
    }

    fn uncommitted(&self) -> Option<QueueOffset> {
        let name = &self.source.name;
        (self.committed != Some(self.done)).then(|| QueueOffset {
            topic: name.topic.clone(),
            queue: name.queue,
            offset: self.done,
        })
    }
}
