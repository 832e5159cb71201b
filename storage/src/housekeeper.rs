//! Checkpoints and retention, on a thread of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::checkpoint::{Checkpoint, CheckpointFile};
use crate::commit_log::CommitLog;
use crate::disk::{Disk, is_out_of_descriptors};
use crate::dispatcher::Dispatcher;
use crate::error::AppendError;
use crate::marks::Marks;
use crate::plant::{Plant, planted};
use crate::queue::Queue;
use crate::reserve::Reserve;
use crate::retention::{Choose, RetainError, Retention};
use crate::segment_supply::is_full;
use crate::views::Views;
use crate::views::database::{NotedQueue, ViewDatabase, io_error};
use crate::watermark::WatermarkClosed;

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
    pub(crate) reserve: Reserve,
    pub(crate) checkpoint: Mutex<CheckpointFile>,
    pub(crate) retention: Retention,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) retention_interval: Duration,
}

impl Housekeeper {
    /// The thread's loop. `carry` appends what is chosen again and waits until that is durable and folded.
    pub(crate) fn run(&self, carry: impl Fn(Choose<'_>) -> Result<(), AppendError>) {
        let dispatched = &self.marks.dispatched;
        let mut done = dispatched.get();
        let mut noted = done;
        // None while there is nothing new: an idle store wakes this thread for retention alone.
        let mut checkpoint_due = None;
        let mut retention_due = Instant::now() + self.retention_interval;
        loop {
            let (position, deadline) = match checkpoint_due {
                None => (done + 1, retention_due),
                Some(due) => (noted + self.checkpoint_bytes, retention_due.min(due)),
            };
            // The wait fails when the store is closed.
            if dispatched.wait_until(position, Some(deadline)).is_err() {
                return;
            }
            let (reached, now) = (dispatched.get(), Instant::now());
            if reached > done {
                checkpoint_due.get_or_insert(now + self.checkpoint_interval);
            }
            let due = checkpoint_due.is_some_and(|due| now >= due);
            let written = if due || reached - done >= self.views_due() {
                (done, noted, checkpoint_due) = (reached, reached, None);
                self.write_checkpoint(false)
            } else if reached >= noted + self.checkpoint_bytes {
                noted = reached;
                self.note_durable(&mut self.checkpoint.lock(), false)
            } else {
                Ok(())
            };
            if let Err(error) = written
                && !self.can_go_on("a checkpoint", error)
            {
                return;
            }
            if Instant::now() >= retention_due {
                retention_due = Instant::now() + self.retention_interval;
                match self.retain(&carry) {
                    Ok(()) => {}
                    Err(RetainError::Append(error)) => {
                        tracing::warn!(%error, "retention cannot append; it tries again later");
                    }
                    Err(RetainError::Io(error)) => {
                        if !self.can_go_on("retention", error) {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Whether the next turn can try again: only where all that was missing is space, or a descriptor.
    /// The next start then has more to read.
    fn can_go_on(&self, what: &str, error: io::Error) -> bool {
        if is_full(&error) {
            let missing = if is_out_of_descriptors(&error) { "file descriptor" } else { "space" };
            tracing::warn!(%error, "no {missing} for {what}");
            return true;
        }
        // A store that is closed meanwhile, or has failed elsewhere, has not failed here.
        let is_closed = error.get_ref().is_some_and(|error| error.is::<WatermarkClosed>());
        if !is_closed {
            self.marks.poison(format!("{what} failed: {error}"));
        }
        false
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

    /// As [`write_checkpoint`](Self::write_checkpoint), with the reserve where there is no other space:
    /// what follows makes room.
    pub(crate) fn checkpoint_to_make_room(&self) -> io::Result<()> {
        match self.write_checkpoint(false) {
            Err(error) if is_full(&error) => {
                self.reserve.release()?;
                self.write_checkpoint(false)
            }
            result => result,
        }
    }

    /// Says in the checkpoint how far the log is durable: from there a start after a crash scans it.
    fn note_durable(&self, file: &mut CheckpointFile, clean: bool) -> io::Result<()> {
        let newest_ms = self.log.segments().last().map_or(0, |newest| newest.newest_ms());
        file.write(Checkpoint { clean, durable: self.marks.durable.get(), newest_ms })
    }

    fn write_views(&self, dispatched: u64, queues: &[Arc<Queue>]) -> io::Result<()> {
        let noted = self.sync_queues(queues)?;
        let (views, changes) = self.views.write().take_changes();
        let dispatched = match planted(Plant::ViewAhead) {
            true => self.marks.written.get().max(dispatched + 1),
            false => dispatched,
        };
        // A view on disk must never know of a record that a power cut takes back; the consume queues
        // may have entries of a pass that goes on now.
        let known = self.marks.written.get();
        let written = self.marks.flush(known).map_err(io::Error::other).and_then(|()| {
            let first = self.log.first_position();
            self.database.checkpoint(first, &views, &changes, dispatched, &noted).map_err(io_error)
        });
        written.inspect_err(|_| self.views.write().changes.merge(changes))
    }

    /// Brings consume queues to disk, for a checkpoint to note.
    fn sync_queues(&self, queues: &[Arc<Queue>]) -> io::Result<Vec<NotedQueue>> {
        let live: Vec<_> = queues.iter().filter(|queue| !queue.is_deleted()).collect();
        let mut noted = Vec::with_capacity(live.len());
        let mut ends = Vec::with_capacity(live.len());
        for queue in &live {
            let (files, end) = queue.index.store()?;
            let (topic, created_position) = (queue.topic().clone(), queue.created_position());
            noted.push(NotedQueue { topic, created_position, queue: queue.id(), files });
            ends.push(end);
        }
        if live.len() > SYNC_EACH_MAX {
            self.disk.sync_file_system(self.log.dir())?;
            live.iter().zip(ends).for_each(|(queue, end)| queue.index.note_synced(end));
        } else {
            live.iter().try_for_each(|queue| queue.unless_deleted(queue.index.sync()))?;
            let dirs: BTreeMap<_, _> =
                live.iter().map(|queue| (queue.files().dir(), queue)).collect();
            for (dir, queue) in &dirs {
                queue.unless_deleted(self.disk.sync_dir(dir))?;
            }
            // A topic's folder may be as new as its files.
            let parents: BTreeSet<_> = dirs.keys().filter_map(|dir| dir.parent()).collect();
            parents.into_iter().try_for_each(|dir| self.disk.sync_dir(dir))?;
        }
        Ok(noted)
    }
}
