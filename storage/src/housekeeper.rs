//! Checkpoints and retention, on a thread of their own.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longwire_proto::store::QueueOffset;
use parking_lot::{Mutex, RwLock};

use crate::checkpoint::{Checkpoint, CheckpointFile};
use crate::commit_log::CommitLog;
use crate::disk::Disk;
use crate::dispatcher::Dispatcher;
use crate::marks::Marks;
use crate::plant::{Plant, planted};
use crate::queue::Queue;
use crate::retention::Retention;
use crate::segment_supply::is_full;
use crate::views::Views;
use crate::views::database::{QueueEnd, ViewDatabase, io_error};
use crate::views::system_topic::SystemRecord;

/// Log bytes that are worth bringing the consume queue of one more queue to disk.
const BYTES_PER_QUEUE: u64 = 100 << 10;
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
        let dispatched = &self.marks.dispatched;
        let mut done = dispatched.get();
        let mut noted = done;
        let mut checkpoint_due = Instant::now() + self.checkpoint_interval;
        let mut retention_due = Instant::now() + self.retention_interval;
        loop {
            // Early only if much was appended. The wait fails when the store is closed.
            let deadline = retention_due.min(checkpoint_due);
            if dispatched.wait_until(noted + self.checkpoint_bytes, Some(deadline)).is_err() {
                return;
            }
            let (reached, due) = (dispatched.get(), Instant::now() >= checkpoint_due);
            let written = if reached > done && (due || reached - done >= self.views_due()) {
                (done, noted) = (reached, reached);
                self.write_checkpoint(false)
            } else if reached >= noted + self.checkpoint_bytes {
                noted = reached;
                self.note_durable(&mut self.checkpoint.lock(), false)
            } else {
                Ok(())
            };
            match written {
                Ok(()) => {}
                // The next start has more to read, that is all. The next turn tries again.
                Err(error) if is_full(&error) => {
                    tracing::warn!(%error, "no space for a checkpoint");
                }
                Err(error) => {
                    self.marks.poison(format!("writing a checkpoint failed: {error}"));
                    return;
                }
            }
            if due {
                checkpoint_due = Instant::now() + self.checkpoint_interval;
            }
            if Instant::now() >= retention_due {
                retention_due = Instant::now() + self.retention_interval;
                if let Err(error) = self.retain(&carry) {
                    tracing::error!(%error, "retention failed; it tries again later");
                }
            }
        }
    }

    /// After how many bytes the views are brought to disk: what that costs goes with the number of
    /// queues that have changed, and what a start then has to dispatch again stays bounded.
    fn views_due(&self) -> u64 {
        let unsynced = self.dispatcher.unsynced.lock().len() as u64;
        (unsynced * BYTES_PER_QUEUE).clamp(self.checkpoint_bytes, 4 * self.checkpoint_bytes)
    }

    /// Makes every view durable up to where the dispatcher is, and says so in the checkpoint.
    pub(crate) fn write_checkpoint(&self, clean: bool) -> io::Result<()> {
        let mut file = self.checkpoint.lock();
        let dispatched = self.marks.dispatched.get();
        self.marks.flush(dispatched).map_err(io::Error::other)?;
        let queues = std::mem::take(&mut *self.dispatcher.unsynced.lock());
        // Of all, before the first is written: should one fail, those behind it are marked again too.
        queues.iter().for_each(|queue| queue.clear_unsynced());
        if let Err(error) = self.write_views(dispatched, &queues) {
            let again = queues.into_iter().filter(|queue| queue.mark_unsynced());
            self.dispatcher.unsynced.lock().extend(again);
            return Err(error);
        }
        self.note_durable(&mut file, clean)
    }

    /// Says in the checkpoint how far the log is durable: from there a start after a crash scans it.
    fn note_durable(&self, file: &mut CheckpointFile, clean: bool) -> io::Result<()> {
        let newest_ms = self.log.segments().last().map_or(0, |newest| newest.newest_ms());
        file.write(Checkpoint { clean, durable: self.marks.durable.get(), newest_ms })
    }

    fn write_views(&self, dispatched: u64, queues: &[Arc<Queue>]) -> io::Result<()> {
        let ends = self.sync_queues(dispatched, queues)?;
        let (views, changes) = self.views.write().take_changes();
        let dispatched = match planted(Plant::ViewAhead) {
            true => self.marks.written.get().max(dispatched + 1),
            false => dispatched,
        };
        // A view on disk must never know of a record that a power cut takes back.
        let written = self.marks.flush(views.folded).map_err(io::Error::other).and_then(|()| {
            self.database.checkpoint(&views, &changes, dispatched, &ends).map_err(io_error)
        });
        written.inspect_err(|_| self.views.write().changes.merge(changes))
    }

    /// Brings consume queues to disk; returns where each of them is, there, with the records below
    /// `dispatched`.
    fn sync_queues(&self, dispatched: u64, queues: &[Arc<Queue>]) -> io::Result<Vec<QueueEnd>> {
        let live = || queues.iter().filter(|queue| !queue.is_deleted());
        let stored = live().map(|queue| {
            // Without the entries behind it, which a start cuts off.
            let end = queue.index.end_below(dispatched)?;
            queue.store_index()?;
            Ok(((queue.topic().clone(), queue.id()), end))
        });
        let ends = stored.collect::<io::Result<_>>()?;
        if queues.len() > SYNC_EACH_MAX {
            self.disk.sync_file_system(self.log.dir())?;
        } else {
            live().try_for_each(|queue| queue.sync_index())?;
            let mut dirs: Vec<_> = live().map(|queue| queue.files().dir()).collect();
            dirs.dedup();
            dirs.into_iter().try_for_each(|dir| self.disk.sync_dir(dir))?;
        }
        Ok(ends)
    }

    /// Removes expired segments, one after another.
    fn retain(
        &self,
        carry: &impl Fn(Vec<SystemRecord>) -> Result<(), String>,
    ) -> Result<(), String> {
        let segments = self.log.segments();
        for segment in &segments[..self.retention.expired(&segments)] {
            let floors = self.floors(segment.end()).map_err(|error| error.to_string())?;
            let carried = self.views.read().carried_forward(segment.end(), &floors);
            if !carried.is_empty() {
                carry(carried)?;
            }
            self.write_checkpoint(false).map_err(|error| error.to_string())?;
            if self.marks.durable.get() < segment.end() {
                return Ok(()); // Not flushed yet; next time.
            }
            self.log.pop_oldest();
            for topic in self.dispatcher.topics.all() {
                for queue in topic.queues() {
                    queue.index.trim(segment.end()).map_err(|error| error.to_string())?;
                }
            }
            segment.unlink(&*self.disk).map_err(|error| error.to_string())?;
            tracing::info!(path = %segment.path().display(), "removed an expired segment");
        }
        Ok(())
    }

    /// The ends of the queues that have no record from a position on, by topic.
    fn floors(&self, position: u64) -> io::Result<HashMap<Arc<str>, Vec<QueueOffset>>> {
        let mut floors: HashMap<Arc<str>, Vec<QueueOffset>> = HashMap::new();
        for queue in self.dispatcher.topics.all().iter().flat_map(|topic| topic.queues()) {
            let offset = queue.index.end();
            if offset > 0 && queue.index.last()?.is_none_or(|last| last.position < position) {
                let floor = QueueOffset { queue: queue.id(), offset };
                floors.entry(queue.topic().clone()).or_default().push(floor);
            }
        }
        Ok(floors)
    }
}
