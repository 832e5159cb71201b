//! The store as the broker sees it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use longwire_proto::limits::QUEUES_PER_TOPIC_MAX;
use longwire_proto::name::{check_group, check_topic};
use longwire_proto::store::{GroupRecord, OffsetsRecord, QueueOffset, TopicOffsets};
use parking_lot::{Mutex, RwLock};

use crate::appender::{Appended, Appender, QueueRun, Room, now_ms};
use crate::commit_log::CommitLog;
use crate::consume_queue::IndexRead;
use crate::disk::DiskLock;
use crate::dispatcher::Dispatcher;
use crate::error::{AppendError, CloseError, GroupError, ReadError, TopicError};
use crate::flusher::Flusher;
use crate::housekeeper::Housekeeper;
use crate::marks::Marks;
use crate::queue::{Queue, Topic, TopicConfig, TopicUpdate};
use crate::read_plan::{self, ReadPlan, TagFilter};
use crate::retention::Choose;
use crate::run::RecordRun;
use crate::segment_supply::SegmentSupply;
use crate::topics::Topics;
use crate::views::system_topic::SystemRecord;
use crate::views::{CommittedOffset, Views, topic_record};
use crate::watermark::Watermark;

/// One broker's log with everything derived from it.
///
/// All calls can be made from any thread. Those that say so block; the others never wait for a disk.
#[derive(Debug)]
pub struct Store {
    pub(crate) log: Arc<CommitLog>,
    pub(crate) marks: Arc<Marks>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) views: Arc<RwLock<Views>>,
    pub(crate) appender: Arc<Appender>,
    pub(crate) supply: Arc<SegmentSupply>,
    pub(crate) flusher: Arc<Flusher>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) housekeeper: Arc<Housekeeper>,
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
    /// One change of topics or groups at a time: each looks, records, and waits.
    pub(crate) changing: Mutex<()>,
    /// Where the last system record ends. Held while one is appended, for as short as that.
    pub(crate) system: Mutex<u64>,
    /// Held until the store is closed.
    pub(crate) lock: Mutex<Option<DiskLock>>,
}

/// How often retention lets others append system records first, before it has them wait for it.
const CARRY_TRIES: u32 = 100;

/// Figures of a store at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreStats {
    /// The first position that is still there.
    pub first_position: u64,
    /// The end of the log in the page cache.
    pub written_position: u64,
    /// Up to here it survives power loss.
    pub durable_position: u64,
    /// Up to here it is in the views.
    pub dispatched_position: u64,
    /// How many segments there are.
    pub segments: u64,
    /// Records appended since the store was opened.
    pub records_appended: u64,
    /// Bytes appended since the store was opened.
    pub bytes_appended: u64,
    /// Syncs of segments since the store was opened.
    pub syncs: u64,
}

impl Store {
    /// Starts the threads; for `open`.
    pub(crate) fn start(self: &Arc<Store>) -> io::Result<()> {
        let supply = (self.supply.clone(), self.marks.clone(), self.appender.clone());
        let flusher = (self.flusher.clone(), self.dispatcher.clone());
        let dispatcher = self.dispatcher.clone();
        let housekeeper = self.housekeeper.clone();
        // Weak: the store's threads must not keep it alive.
        let store = Arc::downgrade(self);
        let carry = move |choose: Choose<'_>| match store.upgrade() {
            Some(store) => store.carry_forward(choose),
            None => Err(AppendError::Closed),
        };
        let spawn = |name: &'static str, run: Box<dyn FnOnce() + Send>| {
            let marks = self.marks.clone();
            let run = move || marks.guard(name, run);
            thread::Builder::new().name(format!("lw-{name}")).spawn(run)
        };
        self.threads.lock().extend([
            spawn("supply", Box::new(move || supply.0.run(&supply.1, &supply.2)))?,
            spawn("flusher", Box::new(move || flusher.0.run(|| flusher.1.flushed())))?,
            spawn("dispatcher", Box::new(move || dispatcher.run()))?,
            spawn("housekeeper", Box::new(move || housekeeper.run(carry)))?,
        ]);
        Ok(())
    }

    /// Stops appending, flushes, brings the views to disk and marks the store as cleanly closed.
    /// Blocks; a second call does nothing.
    pub fn close(&self) -> Result<(), CloseError> {
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            return Ok(());
        }
        self.appender.close();
        let end = self.marks.written.get();
        let flushed = self.marks.flush(end).and_then(|()| self.marks.dispatched.wait(end));
        self.supply.stop();
        self.dispatcher.stop();
        self.marks.close(&"the store is closed".into());
        for thread in threads {
            // One that panicked has made the store fail.
            let _ = thread.join();
        }
        for queue in self.topics.all().iter().flat_map(|topic| topic.queues()) {
            queue.wake();
        }
        let checkpoint = match self.marks.failure() {
            Some(reason) => Err(CloseError::Poisoned(reason)),
            None => flushed
                .map_err(|error| error.to_string())
                .and_then(|()| self.housekeeper.write_checkpoint(true).map_err(|e| e.to_string()))
                .map_err(CloseError::Checkpoint),
        };
        // Whoever takes the lock next may open the files while somebody still holds this store.
        self.housekeeper.database.close();
        self.lock.lock().take();
        checkpoint
    }

    /// A topic by name; also Longwire's own.
    pub fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.get(name)
    }

    /// All topics, also Longwire's own, in no order.
    pub fn topics(&self) -> Vec<Arc<Topic>> {
        self.topics.all()
    }

    /// Creates a topic. Blocks until that is durable.
    pub fn create_topic(&self, mut config: TopicConfig) -> Result<Arc<Topic>, TopicError> {
        check_topic(&config.name)?;
        let _changing = self.changing.lock();
        let topic = self.topics.get(&config.name);
        if topic.as_ref().is_some_and(|topic| topic.is_system()) {
            return Err(TopicError::System(config.name));
        }
        if topic.is_some() {
            return Err(TopicError::Exists(config.name));
        }
        check_queues(&config.name, config.queues, 1)?;
        config.created_ms = now_ms();
        self.record_topic(config)
    }

    /// Changes a topic. Blocks until that is durable.
    pub fn update_topic(&self, name: &str, update: TopicUpdate) -> Result<Arc<Topic>, TopicError> {
        let _changing = self.changing.lock();
        let mut config = self.changeable_topic(name)?.config();
        if let Some(queues) = update.queues {
            check_queues(name, queues, config.queues)?;
            config.queues = queues;
        }
        config.durability = update.durability.unwrap_or(config.durability);
        config.retention_ms = update.retention_ms.unwrap_or(config.retention_ms);
        config.retention_bytes = update.retention_bytes.unwrap_or(config.retention_bytes);
        self.record_topic(config)
    }

    /// Deletes a topic with its queues. Blocks until that is durable.
    pub fn delete_topic(&self, name: &str) -> Result<(), TopicError> {
        let _changing = self.changing.lock();
        let topic = self.changeable_topic(name)?;
        let mut record = topic_record(&topic.config());
        record.deleted = true;
        // Nothing can be appended to the queues behind the record that deletes them; and where it cannot
        // be appended, they go on.
        let delete = || topic.queues().iter().for_each(|queue| queue.delete());
        Ok(self.append_system_then(SystemRecord::Topic(record), delete)?)
    }

    fn changeable_topic(&self, name: &str) -> Result<Arc<Topic>, TopicError> {
        match self.topics.get(name) {
            None => Err(TopicError::Unknown(name.to_owned())),
            Some(topic) if topic.is_system() => Err(TopicError::System(name.to_owned())),
            Some(topic) => Ok(topic),
        }
    }

    fn record_topic(&self, config: TopicConfig) -> Result<Arc<Topic>, TopicError> {
        let name = config.name.clone();
        self.append_system(SystemRecord::Topic(topic_record(&config)))?;
        self.topics.get(&name).ok_or(TopicError::Unknown(name))
    }

    /// All groups, in the order of their names.
    pub fn groups(&self) -> Vec<String> {
        self.views.read().groups.keys().map(|name| name.to_string()).collect()
    }

    /// Whether there is such a group.
    pub fn group_exists(&self, name: &str) -> bool {
        self.views.read().groups.contains_key(name)
    }

    /// Creates a group, if there is none of that name. Blocks until that is durable.
    pub fn create_group(&self, name: &str) -> Result<(), GroupError> {
        check_group(name)?;
        let _changing = self.changing.lock();
        if self.group_exists(name) {
            return Ok(());
        }
        let created_ms = now_ms();
        let record = GroupRecord { name: name.to_owned(), deleted: false, created_ms };
        Ok(self.append_system(SystemRecord::Group(record))?)
    }

    /// Deletes a group with what it has committed so far. Does not block, as
    /// [`commit_offsets`](Self::commit_offsets).
    pub fn delete_group(&self, name: &str) -> Result<u64, GroupError> {
        if !self.group_exists(name) {
            return Err(GroupError::Unknown(name.to_owned()));
        }
        let record = GroupRecord { name: name.to_owned(), deleted: true, created_ms: 0 };
        let record = SystemRecord::Group(record);
        Ok(self.append_record(&mut self.system.lock(), &record, Room::AllButKept, || {})?)
    }

    /// Everything a group has committed.
    pub fn committed(&self, group: &str) -> Vec<CommittedOffset> {
        self.views.read().committed(group)
    }

    /// What a group has committed for one queue.
    pub fn committed_offset(&self, group: &str, topic: &str, queue: u32) -> Option<u64> {
        let views = self.views.read();
        Some(views.groups.get(group)?.offsets.get(topic)?.get(&queue)?.value)
    }

    /// Records committed offsets; the group comes into being if it is new. Does not block: the commit
    /// holds when both [`durable`](Self::durable) and [`dispatched`](Self::dispatched) have reached
    /// the position returned. Fails with [`AppendError::NotReady`] as [`append`](Self::append) does; then
    /// [`wait_for_segment`](Self::wait_for_segment).
    pub fn commit_offsets(
        &self,
        group: &str,
        offsets: &[CommittedOffset],
    ) -> Result<u64, AppendError> {
        let mut topics: BTreeMap<&str, Vec<QueueOffset>> = BTreeMap::new();
        for CommittedOffset { topic, queue, offset } in offsets {
            let committed = QueueOffset { queue: *queue, offset: *offset };
            topics.entry(topic).or_default().push(committed);
        }
        let topics = topics.into_iter().map(|(topic, queues)| {
            let topic = topic.to_owned();
            TopicOffsets { topic, queues }
        });
        let topics = topics.collect();
        let record = OffsetsRecord { group: group.to_owned(), topics };
        let record = SystemRecord::Offsets(record);
        self.append_record(&mut self.system.lock(), &record, Room::AllButKept, || {})
    }

    /// Appends runs to their queues, in order; each with all of its records or none, as the inner
    /// results tell. Never blocks: where the next segment is not ready it fails as a whole with
    /// [`AppendError::NotReady`].
    pub fn append_all(&self, runs: &mut [QueueRun<'_, '_>]) -> Result<Vec<Appended>, AppendError> {
        let appended = self.appender.append(runs)?;
        self.appended(runs, &appended);
        Ok(appended)
    }

    /// As [`append_all`](Self::append_all), but waits for the next segment. Blocks.
    pub fn append_all_blocking(
        &self,
        runs: &mut [QueueRun<'_, '_>],
    ) -> Result<Vec<Appended>, AppendError> {
        let appended = self.appender.append_blocking(runs)?;
        self.appended(runs, &appended);
        Ok(appended)
    }

    /// Appends one run. Never blocks, as [`append_all`](Self::append_all).
    pub fn append(&self, queue: &Queue, run: &mut RecordRun<'_>) -> Appended {
        self.append_all(&mut [(queue, run)])?.remove(0)
    }

    /// Appends one run; waits for the next segment. Blocks.
    pub fn append_blocking(&self, queue: &Queue, run: &mut RecordRun<'_>) -> Appended {
        self.append_all_blocking(&mut [(queue, run)])?.remove(0)
    }

    fn appended(&self, runs: &[QueueRun<'_, '_>], appended: &[Appended]) {
        let flushed = runs.iter().zip(appended).filter(|((queue, _), _)| queue.waits_for_flush());
        let ends = flushed.filter_map(|(_, extents)| Some(extents.as_ref().ok()?.last()?.end));
        ends.max().into_iter().for_each(|end| self.marks.flush_wanted.advance(end));
        self.dispatcher.appended();
    }

    /// Waits for the segment whose absence made an append fail with [`AppendError::NotReady`]. Blocks.
    pub fn wait_for_segment(&self) -> Result<(), AppendError> {
        self.supply.wait()
    }

    /// Waits for a position to become durable, and sees to it that it does so soon.
    pub fn flushed(&self, position: u64) -> crate::watermark::Reached<'_> {
        self.marks.flush_wanted.advance(position);
        self.marks.durable.reached(position)
    }

    /// As [`flushed`](Self::flushed), for a thread. Blocks.
    pub fn flushed_blocking(&self, position: u64) -> Result<(), crate::watermark::WatermarkClosed> {
        self.marks.flush(position)
    }

    /// Resolves a read of one queue into ranges: at least one record if there is a visible one, and
    /// no more than `bytes_max` beyond that. An empty plan means that there is nothing yet.
    pub fn plan_read(
        &self,
        queue: &Queue,
        offset: u64,
        bytes_max: u64,
        filter: &TagFilter,
        index: IndexRead,
    ) -> Result<ReadPlan, ReadError> {
        read_plan::plan_read(&self.log, &self.marks, queue, offset, bytes_max, filter, index)
    }

    /// The first offset whose record was stored at or after a time, in milliseconds since 1970; the
    /// end of the queue if there is none. Blocks.
    pub fn offset_at_time(&self, queue: &Queue, time_ms: i64) -> Result<u64, ReadError> {
        Ok(read_plan::offset_at_time(&self.log, queue, time_ms)?)
    }

    /// The end of the log in the page cache.
    pub fn written(&self) -> &Watermark {
        &self.marks.written
    }

    /// Up to where the log survives power loss.
    pub fn durable(&self) -> &Watermark {
        &self.marks.durable
    }

    /// Up to where the log is in the views.
    pub fn dispatched(&self) -> &Watermark {
        &self.marks.dispatched
    }

    /// Figures of this moment.
    pub fn stats(&self) -> StoreStats {
        let (records_appended, bytes_appended) = self.appender.appended();
        StoreStats {
            first_position: self.log.first_position(),
            written_position: self.marks.written.get(),
            durable_position: self.marks.durable.get(),
            dispatched_position: self.marks.dispatched.get(),
            segments: self.log.segments().len() as u64,
            records_appended,
            bytes_appended,
            syncs: self.flusher.syncs.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    /// Messages that retention has removed before a group had committed them, by group and topic, since
    /// the store was opened.
    pub fn overtaken(&self) -> Vec<(Arc<str>, Arc<str>, u64)> {
        let overtaken = self.housekeeper.retention.overtaken.lock();
        let rows = overtaken.iter();
        rows.map(|((group, topic), messages)| (group.clone(), topic.clone(), *messages)).collect()
    }

    /// Bytes that can still be taken up on the store's file system.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.housekeeper.disk.free_bytes(self.log.dir())
    }

    /// Why the store has failed, if it has. It then acknowledges nothing any more; the process should
    /// end, and the next start recovers what was acknowledged.
    pub fn failure(&self) -> Option<String> {
        self.marks.failure().map(|reason| reason.to_string())
    }

    /// Completes when the store has failed, with the reason. It works on any runtime.
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        let marks = self.marks.clone();
        async move {
            // `failed` is never closed, only reached.
            let _ = marks.failed.reached(1).await;
            marks.failure().map_or_else(String::new, |reason| reason.to_string())
        }
    }

    /// Appends a record of a system topic and waits until it is durable and folded.
    pub(crate) fn append_system(&self, record: SystemRecord) -> Result<(), AppendError> {
        self.append_system_then(record, || {})
    }

    /// The same, with a change that is made before anything else can be appended.
    fn append_system_then(
        &self,
        record: SystemRecord,
        change: impl Fn(),
    ) -> Result<(), AppendError> {
        let end = loop {
            let appended =
                self.append_record(&mut self.system.lock(), &record, Room::AllButKept, &change);
            match appended {
                Err(AppendError::NotReady) => {}
                result => break result?,
            }
            self.supply.wait()?;
        };
        self.folded(end)
    }

    /// Appends again what only the oldest segment says, and waits until it is durable and folded.
    ///
    /// What is chosen is the latest there is, and no system record comes in between: what an older one
    /// says would be taken for newer.
    fn carry_forward(&self, choose: Choose<'_>) -> Result<(), AppendError> {
        let mut tries = 0;
        loop {
            let mut system_end = self.system.lock();
            let end = *system_end;
            if self.marks.dispatched.get() < end {
                tries += 1;
                if tries <= CARRY_TRIES {
                    drop(system_end);
                    self.marks.dispatched.wait(end)?;
                    continue;
                }
                self.marks.dispatched.wait(end)?;
            }
            let append = |record| self.append_record(&mut system_end, &record, Room::All, || {});
            let ends: Result<Vec<u64>, _> = choose().into_iter().map(append).collect();
            drop(system_end);
            match ends {
                Ok(ends) => return ends.last().map_or(Ok(()), |&end| self.folded(end)),
                Err(AppendError::NotReady) => self.supply.wait()?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until a system record that ends at this position is durable and folded.
    fn folded(&self, end: u64) -> Result<(), AppendError> {
        self.marks.durable.wait(end)?;
        Ok(self.marks.dispatched.wait(end)?)
    }

    /// Appends a record of a system topic, which ends where it is told then. Never blocks, as
    /// [`append_all`](Self::append_all).
    fn append_record(
        &self,
        system_end: &mut u64,
        record: &SystemRecord,
        room: Room,
        change: impl FnOnce(),
    ) -> Result<u64, AppendError> {
        let too_large = |bytes: usize| AppendError::RecordTooLarge { bytes: bytes as u64, max: 0 };
        let mut bytes = record.encode(now_ms()).map_err(|_| too_large(0))?;
        let len = bytes.len();
        let mut run =
            RecordRun::check(record.topic(), 0, &mut bytes).map_err(|_| too_large(len))?;
        let queue = self.topics.get(record.topic()).and_then(|topic| topic.queue(0));
        let queue = queue.ok_or(AppendError::TopicDeleted)?;
        let extents = self.appender.append_then((&queue, &mut run), room, change)?;
        let end = extents.last().map_or(0, |extent| extent.end);
        *system_end = end;
        self.marks.flush_wanted.advance(end);
        self.dispatcher.appended();
        Ok(end)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Without `close` the threads end all the same, and the next start recovers.
        self.appender.close();
        self.supply.stop();
        self.dispatcher.stop();
        self.marks.close(&"the store is closed".into());
        // None of them must touch a file behind the lock's end. One of them may be dropping the store.
        let here = thread::current().id();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.thread().id() != here {
                let _ = thread.join();
            }
        }
        self.housekeeper.database.close();
    }
}

fn check_queues(name: &str, asked: u32, min: u32) -> Result<(), TopicError> {
    let reason = match asked {
        0 => "a topic needs at least one",
        _ if asked > QUEUES_PER_TOPIC_MAX => "the limit is 65536",
        _ if asked < min => "queues can be added, never taken away",
        _ => return Ok(()),
    };
    Err(TopicError::Queues { name: name.to_owned(), asked, reason })
}
