//! Checkpoints and retention, on a thread of their own.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::checkpoint::{Checkpoint, CheckpointFile};
use crate::commit_log::CommitLog;
use crate::disk::Disk;
use crate::dispatcher::Dispatcher;
use crate::marks::Marks;
use crate::queue::Queue;
use crate::retention::Retention;
use crate::views::Views;
use crate::views::database::ViewDatabase;
use crate::views::system_topic::SystemRecord;

/// From this many changed files on, one sync of the file system is cheaper than one of each.
const SYNC_EACH_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct Housekeeper {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) log: Arc<CommitLog>,
    pub(crate) marks: Arc<Marks>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) views: Arc<RwLock<Views>>,
    pub(crate) database: ViewDatabase,
    pub(crate) checkpoint: Mutex<CheckpointFile>,
    pub(crate) retention: Retention,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) retention_interval: Duration,
}

impl Housekeeper {
    /// The thread's loop. `carry` appends records again and waits until they are durable and folded.
    pub(crate) fn run(&self, carry: impl Fn(Vec<SystemRecord>) -> Result<(), String>) {
        let mut done = self.marks.dispatched.get();
        let mut retention_due = Instant::now() + self.retention_interval;
        loop {
            // Early only if much was appended. The wait fails when the store is closed.
            let deadline = retention_due.min(Instant::now() + self.checkpoint_interval);
            let dispatched = &self.marks.dispatched;
            if dispatched
                .wait_until(done + self.checkpoint_bytes, Some(deadline))
                .is_err()
            {
                return;
            }
            if dispatched.get() > done {
                done = dispatched.get();
                if let Err(error) = self.write_checkpoint(false) {
                    self.marks
                        .poison(format!("writing a checkpoint failed: {error}"));
                    return;
                }
            }
            if Instant::now() >= retention_due {
                retention_due = Instant::now() + self.retention_interval;
                if let Err(error) = self.retain(&carry) {
                    tracing::error!(%error, "retention failed; it tries again later");
                }
            }
        }
    }

    /// Makes every view durable up to where the dispatcher is, and says so in the checkpoint.
    pub(crate) fn write_checkpoint(&self, clean: bool) -> io::Result<()> {
        let mut file = self.checkpoint.lock();
        let dispatched = self.marks.dispatched.get();
        self.flush(dispatched)?;
        let queues = std::mem::take(&mut *self.dispatcher.unsynced.lock());
        self.sync_queues(&queues)?;
        let ends: Vec<_> = queues
            .iter()
            .map(|q| ((q.topic().clone(), q.id()), q.index.end()))
            .collect();
        {
            let mut views = self.views.write();
            // A view on disk must never know of a record that a power cut takes back.
            self.flush(views.folded)?;
            let changes = std::mem::take(&mut views.changes);
            let position = dispatched.max(views.folded);
            self.database
                .checkpoint(&views, &changes, position, &ends)
                .map_err(|error| io::Error::other(error.to_string()))?;
        }
        let newest_ms = self
            .log
            .segments()
            .last()
            .map_or(0, |newest| newest.newest_ms());
        let durable = self.marks.durable.get();
        file.write(Checkpoint {
            clean,
            durable,
            dispatched,
            newest_ms,
        })
    }

    fn flush(&self, position: u64) -> io::Result<()> {
        self.marks.flush_wanted.advance(position);
        self.marks.durable.wait(position).map_err(io::Error::other)
    }

    fn sync_queues(&self, queues: &[Arc<Queue>]) -> io::Result<()> {
        let live = || queues.iter().filter(|queue| !queue.is_deleted());
        live().try_for_each(|queue| queue.store_index())?;
        let mut dirs: Vec<_> = live().map(|queue| queue.files().dir()).collect();
        dirs.dedup();
        if queues.len() > SYNC_EACH_MAX {
            return self.disk.sync_file_system(self.log.dir());
        }
        live().try_for_each(|queue| queue.sync_index())?;
        dirs.into_iter().try_for_each(|dir| self.disk.sync_dir(dir))
    }

    /// Removes expired segments, one after another.
    fn retain(
        &self,
        carry: &impl Fn(Vec<SystemRecord>) -> Result<(), String>,
    ) -> Result<(), String> {
        let segments = self.log.segments();
        for segment in &segments[..self.retention.expired(&segments)] {
            let carried = self.views.read().carried_forward(segment.end());
            if !carried.is_empty() {
                carry(carried)?;
            }
            self.write_checkpoint(false)
                .map_err(|error| error.to_string())?;
            if self.marks.durable.get() < segment.end() {
                return Ok(()); // Not flushed yet; next time.
            }
            self.log.pop_oldest();
            for topic in self.dispatcher.topics.all() {
                for queue in topic.queues() {
                    queue
                        .index
                        .trim(segment.end())
                        .map_err(|error| error.to_string())?;
                }
            }
            segment
                .unlink(&*self.disk)
                .map_err(|error| error.to_string())?;
            tracing::info!(path = %segment.path().display(), "removed an expired segment");
        }
        Ok(())
    }
}
