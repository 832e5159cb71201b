//! A store at work on a disk in memory, with everything noted that it acknowledges.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use longwire_proto::record::RecordDraft;
use longwire_storage::disk::FaultDisk;
use longwire_storage::{
    AppendError, AppendPath, CommittedOffset, Durability, OpenError, RecordRun, Store, StoreConfig,
    TopicConfig, TopicError,
};

use super::config;
use super::truth::{Truth, body};

/// Topics with two queues each, and whether they wait for a flush.
const TOPICS: [(&str, Durability); 2] =
    [("flushed", Durability::Flush), ("written", Durability::Write)];
const QUEUES: u32 = 2;
/// Bytes of log that retention leaves.
const RETAINED_BYTES: u64 = 320 << 10;

/// A store that is being worked with.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) disk: FaultDisk,
    pub(super) store: Arc<Store>,
    pub(super) truth: Truth,
    rng: Rng,
}

impl Workload {
    /// Opens a store on a disk and makes its topics.
    pub(super) fn start(
        disk: FaultDisk,
        path: AppendPath,
        rng: Rng,
    ) -> Result<Workload, OpenError> {
        let config = StoreConfig {
            retention_bytes: Some(RETAINED_BYTES),
            retention_check_interval: Duration::from_millis(30),
            ..config(path)
        };
        let store = Store::open_on(Arc::new(disk.clone()), config)?;
        Ok(Workload { disk, store, truth: Truth::default(), rng })
    }

    /// Makes the topics; part of the work, as it can fail like the rest of it.
    pub(super) fn make_topics(&mut self) -> Result<(), String> {
        for (name, durability) in TOPICS {
            let config = TopicConfig { durability, ..TopicConfig::new(name, QUEUES) };
            self.store.create_topic(config).map_err(|error| error.to_string())?;
            let at = self.disk.events();
            for queue in 0..QUEUES {
                self.truth.acked(name, queue, 0, at);
            }
        }
        Ok(())
    }

    /// Does one thing, by chance. An error is what a client would be told.
    pub(super) fn step(&mut self) -> Result<(), String> {
        self.note_firsts();
        match self.rng.u32(..100) {
            0..70 => self.append(),
            70..88 => self.commit(),
            88..94 => self.temporary(),
            _ => {
                std::thread::sleep(Duration::from_millis(self.rng.u64(..15)));
                Ok(())
            }
        }
    }

    /// Closes the store, if it can be, and gives its disk and the truth.
    pub(super) fn finish(mut self) -> (FaultDisk, Truth) {
        // One that has failed says so; its threads have ended all the same.
        let _ = self.store.close();
        self.note_firsts();
        (self.disk, self.truth)
    }

    /// Gives the disk as it is if the process dies, and the truth.
    pub(super) fn killed(mut self) -> Result<(FaultDisk, Truth), String> {
        let left = self.disk.copy().map_err(|error| error.to_string())?;
        // Afterwards: retention may go on removing meanwhile.
        self.note_firsts();
        Ok((left, self.truth))
    }

    fn note_firsts(&mut self) {
        self.truth.note_firsts(&self.store, self.disk.events());
    }

    /// Appends a few messages to one queue, and mostly waits for them where that is what their topic
    /// promises.
    pub(super) fn append(&mut self) -> Result<(), String> {
        let (topic, durability) = TOPICS[self.rng.usize(..TOPICS.len())];
        let id = self.rng.u32(..QUEUES);
        let queue = self.store.topic(topic).and_then(|topic| topic.queue(id));
        let queue = queue.ok_or("the topic is gone")?;
        let seeds: Vec<u64> = (0..self.rng.usize(1..8)).map(|_| self.rng.u64(..)).collect();
        let mut bytes = Vec::new();
        for seed in &seeds {
            let body = body(*seed);
            let draft = RecordDraft { topic, queue: id, body: &body, ..RecordDraft::default() };
            draft.encode(&mut bytes).map_err(|error| error.to_string())?;
        }
        let mut run = RecordRun::check(topic, id, &mut bytes).map_err(|error| error.to_string())?;
        let extents = match self.store.append_blocking(&queue, &mut run) {
            Ok(extents) => extents,
            Err(error) => {
                if self.store.failure().is_some() {
                    self.truth.attempted(topic, id, &seeds);
                }
                return Err(told(error));
            }
        };
        let mut seeds = seeds.into_iter();
        for extent in &extents {
            for offset in extent.offset..extent.offset + u64::from(extent.records) {
                self.truth.appended(topic, id, offset, seeds.next().unwrap_or_default());
            }
        }
        let Some(last) = extents.last() else { return Ok(()) };
        // Sometimes several share a flush.
        if durability == Durability::Flush && self.rng.u32(..3) > 0 {
            self.store.flushed_blocking(last.end).map_err(|closed| closed.to_string())?;
            let end = last.offset + u64::from(last.records);
            self.truth.acked(topic, id, end, self.disk.events());
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), String> {
        let offset =
            self.truth.commits.last().map_or(0, |(offset, _)| *offset) + self.rng.u64(1..5);
        let committed = CommittedOffset { topic: "flushed".into(), queue: 0, offset };
        self.truth.commits.push((offset, None));
        let end = loop {
            match self.store.commit_offsets("g", std::slice::from_ref(&committed)) {
                Err(AppendError::NotReady) => self.store.wait_for_segment().map_err(told)?,
                result => break result.map_err(told)?,
            }
        };
        self.store.flushed_blocking(end).map_err(|closed| closed.to_string())?;
        self.store.dispatched().wait(end).map_err(|closed| closed.to_string())?;
        let at = self.disk.events();
        if let Some(last) = self.truth.commits.last_mut() {
            last.1 = Some(at);
        }
        Ok(())
    }

    /// Makes or deletes a topic.
    fn temporary(&mut self) -> Result<(), String> {
        let from = self.disk.events();
        let exists = self.store.topic("temporary").is_some();
        // Until it is answered, nobody knows.
        self.truth.temporary.push((!exists, from, usize::MAX));
        let changed: Result<(), TopicError> = match exists {
            true => self.store.delete_topic("temporary"),
            false => self.store.create_topic(TopicConfig::new("temporary", 1)).map(drop),
        };
        changed.map_err(|error| error.to_string())?;
        let to = self.disk.events();
        if let Some(last) = self.truth.temporary.last_mut() {
            last.2 = to;
        }
        Ok(())
    }
}

fn told(error: AppendError) -> String {
    error.to_string()
}
