//! A queue, and the topic it is a lane of.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

use arc_swap::ArcSwap;
use parking_lot::RwLock;

use longwire_proto::name::is_system_topic;

use crate::arrivals::{Arrivals, block_of};
use crate::consume_queue::ConsumeQueue;
use crate::marks::Marks;
use crate::queue_files::QueueFiles;

/// When records of a topic are acknowledged and become visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Once they are in the page cache: a power cut can take the newest back.
    Write,
    /// Once they are flushed to disk.
    #[default]
    Flush,
}

/// How a topic is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    /// Its name.
    pub name: String,
    /// How many queues it has.
    pub queues: u32,
    /// When its records are acknowledged and visible.
    pub durability: Durability,
    /// How long records are kept, in milliseconds; 0: as the broker is configured.
    pub retention_ms: u64,
    /// How many bytes of records are kept; 0: as the broker is configured.
    pub retention_bytes: u64,
    /// When it was created, in milliseconds since 1970. Set by the store.
    pub created_ms: i64,
}

impl TopicConfig {
    /// A topic with the default settings.
    pub fn new(name: impl Into<String>, queues: u32) -> TopicConfig {
        TopicConfig {
            name: name.into(),
            queues,
            durability: Durability::default(),
            retention_ms: 0,
            retention_bytes: 0,
            created_ms: 0,
        }
    }
}

/// Changes to a topic; what is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicUpdate {
    /// More queues than now.
    pub queues: Option<u32>,
    /// When its records are acknowledged and visible.
    pub durability: Option<Durability>,
    /// How long records are kept, in milliseconds; 0: as the broker is configured.
    pub retention_ms: Option<u64>,
    /// How many bytes of records are kept; 0: as the broker is configured.
    pub retention_bytes: Option<u64>,
}

/// A topic that exists, or did until a moment ago.
#[derive(Debug)]
pub struct Topic {
    name: Arc<str>,
    config: RwLock<TopicConfig>,
    /// Whether consumers see only what is flushed; shared with the queues.
    flush: Arc<AtomicBool>,
    /// Records before this position belong to an earlier topic of the same name.
    created_position: u64,
    files: Arc<QueueFiles>,
    queues: ArcSwap<Vec<Arc<Queue>>>,
    /// How far the log must be dispatched before there may be too many bytes of this topic.
    trim_at: AtomicU64,
}

impl Topic {
    pub(crate) fn new(config: TopicConfig, created_position: u64, files: QueueFiles) -> Topic {
        Topic {
            name: config.name.as_str().into(),
            flush: Arc::new(AtomicBool::new(config.durability == Durability::Flush)),
            config: RwLock::new(config),
            created_position,
            files: Arc::new(files),
            queues: ArcSwap::default(),
            trim_at: AtomicU64::new(0),
        }
    }

    /// Whether there may be too many bytes of this topic where the log is dispatched up to there.
    pub(crate) fn may_be_too_large(&self, dispatched: u64) -> bool {
        dispatched >= self.trim_at.load(Relaxed)
    }

    /// There are not, before the log is dispatched up to there or the topic is changed.
    pub(crate) fn fits_until(&self, dispatched: u64) {
        self.trim_at.store(dispatched, Relaxed);
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// How it is set up now.
    pub fn config(&self) -> TopicConfig {
        self.config.read().clone()
    }

    /// When its records are acknowledged and visible.
    pub fn durability(&self) -> Durability {
        if self.flush.load(Relaxed) { Durability::Flush } else { Durability::Write }
    }

    /// One of its queues.
    pub fn queue(&self, id: u32) -> Option<Arc<Queue>> {
        self.queues.load().get(id as usize).cloned()
    }

    /// All of its queues, in the order of their numbers.
    pub fn queues(&self) -> Vec<Arc<Queue>> {
        Vec::clone(&self.queues.load())
    }

    /// All of its queues, in the order of their numbers, as one value that is not copied.
    pub fn queue_table(&self) -> Arc<Vec<Arc<Queue>>> {
        self.queues.load_full()
    }

    /// Whether it is one of Longwire's own.
    pub fn is_system(&self) -> bool {
        is_system_topic(&self.name)
    }

    /// Where in the log it was created, which tells it from every other topic that had or has its name.
    pub fn created_position(&self) -> u64 {
        self.created_position
    }

    pub(crate) fn files(&self) -> &Arc<QueueFiles> {
        &self.files
    }

    /// Takes over a configuration and makes the queues that are missing.
    pub(crate) fn configure(
        &self,
        config: TopicConfig,
        marks: &Arc<Marks>,
        mut index: impl FnMut(u32) -> io::Result<ConsumeQueue>,
    ) -> io::Result<()> {
        self.flush.store(config.durability == Durability::Flush, Relaxed);
        let mut queues = self.queues();
        for id in queues.len() as u32..config.queues {
            let neighbour = queues.last().filter(|last| block_of(last.id).0 == block_of(id).0);
            let arrivals = neighbour.map(|queue| queue.arrivals.clone()).unwrap_or_default();
            let queue = Queue {
                topic: self.name.clone(),
                created_position: self.created_position,
                id,
                flush: self.flush.clone(),
                next_offset: AtomicU64::new(0),
                deleted: AtomicBool::new(false),
                unsynced: AtomicBool::new(false),
                touched: AtomicU64::new(0),
                index: index(id)?,
                files: self.files.clone(),
                arrivals,
                marks: marks.clone(),
            };
            queue.next_offset.store(queue.index.end(), Relaxed);
            queues.push(Arc::new(queue));
        }
        self.queues.store(Arc::new(queues));
        *self.config.write() = config;
        self.trim_at.store(0, Relaxed);
        Ok(())
    }
}

/// An ordered lane of a topic.
#[derive(Debug)]
pub struct Queue {
    topic: Arc<str>,
    created_position: u64,
    id: u32,
    flush: Arc<AtomicBool>,
    /// The offset the next appended record gets; the appender's.
    next_offset: AtomicU64,
    deleted: AtomicBool,
    /// Its index has entries since the last checkpoint.
    unsynced: AtomicBool,
    /// The last pass of the dispatcher that added to it.
    touched: AtomicU64,
    pub(crate) index: ConsumeQueue,
    files: Arc<QueueFiles>,
    /// Shared by the queues of a block.
    arrivals: Arc<Arrivals>,
    marks: Arc<Marks>,
}

impl Queue {
    /// The topic's name.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Its number in the topic.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The first retained offset.
    pub fn min_offset(&self) -> u64 {
        self.index.first()
    }

    /// One past the last visible offset.
    pub fn max_offset(&self) -> u64 {
        if !self.flush.load(Relaxed) {
            return self.index.end();
        }
        // An index that cannot be read makes nothing visible; the read itself reports the error.
        self.index.end_below(self.marks.durable.get()).unwrap_or_else(|_| self.index.first())
    }

    /// The first retained offset and one past the last visible one, with one look where that is
    /// enough.
    pub fn offsets(&self) -> (u64, u64) {
        let visible = self.visible_position();
        self.index.extent_below(visible).unwrap_or_else(|| (self.min_offset(), self.max_offset()))
    }

    /// Whether an offset is where the queue ends for those who read it: there is nothing to look for
    /// yet. Where nothing invisible lies behind it, that is known without a look at the index.
    pub fn ends_at(&self, offset: u64) -> bool {
        offset == self.next_offset() || offset == self.max_offset()
    }

    /// Those who wait for something to become visible in this queue or its neighbours in a
    /// block ([`block_of`]).
    pub fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// Wakes those who wait for something to become visible in this queue.
    pub(crate) fn wake(&self) {
        self.arrivals.wake(block_of(self.id).1);
    }

    /// The position up to which records of this queue are visible.
    pub(crate) fn visible_position(&self) -> u64 {
        if self.flush.load(Relaxed) { self.marks.durable.get() } else { u64::MAX }
    }

    /// Whether consumers see only what is flushed.
    pub(crate) fn waits_for_flush(&self) -> bool {
        self.flush.load(Relaxed)
    }

    pub(crate) fn next_offset(&self) -> u64 {
        self.next_offset.load(Relaxed)
    }

    pub(crate) fn set_next_offset(&self, offset: u64) {
        self.next_offset.store(offset, Relaxed);
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Acquire)
    }

    /// What was not found because the topic has been deleted is no failure: its files go while others
    /// are still at work on its queues.
    pub(crate) fn unless_deleted<T: Default>(&self, result: io::Result<T>) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_deleted() => {
                Ok(T::default())
            }
            result => result,
        }
    }

    /// To be called before its files go.
    pub(crate) fn delete(&self) {
        self.deleted.store(true, Release);
        self.wake();
    }

    /// Notes new entries; `true` if there were none since the last checkpoint.
    pub(crate) fn mark_unsynced(&self) -> bool {
        !self.unsynced.swap(true, AcqRel)
    }

    /// Notes a pass of the dispatcher; `true` the first time in that pass.
    pub(crate) fn touch(&self, pass: u64) -> bool {
        self.touched.swap(pass, Relaxed) != pass
    }

    /// A checkpoint begins that brings every entry of before to disk.
    pub(crate) fn clear_unsynced(&self) {
        self.unsynced.store(false, Release);
    }

    /// Records before this position belong to an earlier topic of the same name.
    pub(crate) fn created_position(&self) -> u64 {
        self.created_position
    }

    pub(crate) fn files(&self) -> &QueueFiles {
        &self.files
    }
}
