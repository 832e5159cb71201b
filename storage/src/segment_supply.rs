//! Prepares what the appender will need, on a thread of its own: the next segment, and warm pages or
//! written blocks ahead of the tail.
//!
//! An append must never take a page fault or make a file. So the next segment is created and its
//! space reserved once the newest is half full, and for mapped stores the pages ahead of the tail are
//! faulted in before the tail reaches them.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::appender::Appender;
use crate::config::{AppendPath, StoreConfig};
use crate::disk::{Disk, is_out_of_descriptors};
use crate::error::AppendError;
use crate::marks::Marks;
use crate::segment::Segment;
use crate::zeros;

/// How far ahead of the tail pages are kept warm: tens of milliseconds of appends at full speed.
const WARM_AHEAD_BYTES: u64 = 32 << 20;
/// One step of warming, which takes 1-3 ms; the thread looks up in between.
const WARM_STEP_BYTES: u64 = 4 << 20;
/// After a full disk, or without a descriptor, another try is made at most this often.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// As long as the same thing is missing, that is said at most this often.
const WARN_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct SegmentSupply {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    append_path: AppendPath,
    state: Mutex<State>,
    /// The thread has something to do.
    work: Condvar,
    /// A segment is ready, or cannot be had.
    ready: Condvar,
    /// The position at which the appender has to call for work; spares it the lock.
    call_at: AtomicU64,
    /// The flusher's, in the same way, for more zeros.
    call_for_zeros_at: AtomicU64,
}

#[derive(Debug)]
struct State {
    ready: VecDeque<Arc<Segment>>,
    /// How many segments are to be ready.
    wanted: usize,
    next_base: u64,
    newest: Arc<Segment>,
    written: u64,
    /// Up to here pages have been faulted in.
    warm: u64,
    /// Up to here [`zeros`] have been written, if that is beyond the tail.
    zeroed: u64,
    /// Up to here they are wanted.
    zeros_wanted: u64,
    /// When the last try to make a segment failed for something that can pass, and what was missing.
    refused: Option<(Instant, AppendError)>,
    /// When that was last said in the log, and the kind of error; until one can be made again.
    warned: Option<(Instant, io::ErrorKind)>,
    stopped: bool,
}

impl SegmentSupply {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        config: &StoreConfig,
        newest: Arc<Segment>,
    ) -> SegmentSupply {
        let (next_base, written) = (newest.end(), newest.filled_end());
        let state = State {
            ready: VecDeque::new(),
            wanted: 0,
            next_base,
            newest,
            written,
            warm: written,
            zeroed: written,
            zeros_wanted: written,
            refused: None,
            warned: None,
            stopped: false,
        };
        SegmentSupply {
            disk,
            dir,
            segment_bytes: config.segment_bytes,
            append_path: config.append_path,
            state: Mutex::new(state),
            work: Condvar::new(),
            ready: Condvar::new(),
            call_at: AtomicU64::new(0),
            call_for_zeros_at: AtomicU64::new(0),
        }
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Makes sure that `count` segments can be taken, or says why not.
    pub(crate) fn reserve(&self, count: usize) -> Result<(), AppendError> {
        if count == 0 {
            return Ok(());
        }
        let mut state = self.state.lock();
        if state.ready.len() >= count {
            return Ok(());
        }
        state.wanted = state.wanted.max(count);
        if let Some((since, error)) = &state.refused
            && since.elapsed() < RETRY_PAUSE
        {
            return Err(error.clone());
        }
        state.refused = None;
        self.work.notify_one();
        Err(AppendError::NotReady)
    }

    /// Blocks until a segment that was reserved is ready or cannot be had.
    pub(crate) fn wait(&self) -> Result<(), AppendError> {
        let mut state = self.state.lock();
        while state.ready.len() < state.wanted && !state.stopped && state.refused.is_none() {
            self.ready.wait(&mut state);
        }
        match &state.refused {
            _ if state.stopped => Err(AppendError::Closed),
            Some((_, error)) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// The segment to go on with.
    pub(crate) fn take(&self) -> Option<Arc<Segment>> {
        let mut state = self.state.lock();
        let segment = state.ready.pop_front()?;
        state.wanted = state.wanted.saturating_sub(1);
        state.newest = segment.clone();
        (state.written, state.warm) = (segment.base(), segment.base());
        self.call_at.store(0, Relaxed);
        Some(segment)
    }

    /// Tells how far the newest segment is written; cheap unless there is something to prepare.
    pub(crate) fn written(&self, newest: &Segment, end: u64) {
        if end < self.call_at.load(Relaxed) {
            return;
        }
        let mut state = self.state.lock();
        state.written = end;
        if end >= newest.base() + self.segment_bytes / 2 {
            state.wanted = state.wanted.max(1);
        }
        let next = (end + WARM_AHEAD_BYTES / 4).min(newest.end());
        self.call_at.store(next, Relaxed);
        self.work.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.work.notify_all();
        self.ready.notify_all();
    }

    /// Has zeros written ahead of the tail, which is at `written` or beyond.
    pub(crate) fn want_zeros(&self, written: u64) {
        if self.append_path != AppendPath::Pwrite || written < self.call_for_zeros_at.load(Relaxed)
        {
            return;
        }
        self.call_for_zeros_at.store(written + zeros::STEP_BYTES, Relaxed);
        let mut state = self.state.lock();
        state.written = state.written.max(written);
        state.zeros_wanted = written + zeros::AHEAD_BYTES;
        self.work.notify_one();
    }

    /// The thread's loop, until [`stop`](Self::stop).
    pub(crate) fn run(&self, marks: &Marks, appender: &Appender) {
        let mut state = self.state.lock();
        while !state.stopped {
            if state.ready.len() < state.wanted && state.refused.is_none() {
                let base = state.next_base;
                drop(state);
                let made = Segment::create(&*self.disk, &self.dir, base, self.segment_bytes);
                state = self.state.lock();
                self.made(&mut state, made, marks);
            } else if let Some((segment, from, to)) = self.to_warm(&state) {
                drop(state);
                // Only speed is lost where a file system cannot populate.
                let warmed = segment.populate(from, to).is_ok();
                state = self.state.lock();
                if state.newest.base() == segment.base() {
                    state.warm = if warmed { to } else { segment.end() };
                }
            } else if let Some((segment, from, to)) = self.to_zero(&state) {
                drop(state);
                let zeroed = self.zero(&segment, from, to, appender);
                state = self.state.lock();
                state.zeroed = to;
                match zeroed {
                    Ok(()) => {}
                    // Only speed is lost.
                    Err(error) if is_full(&error) => state.zeroed = segment.end(),
                    Err(error) => {
                        marks.poison(format!("preparing a segment failed: {error}"));
                        state.stopped = true;
                        self.ready.notify_all();
                    }
                }
            } else {
                self.work.wait(&mut state);
            }
        }
    }

    fn made(&self, state: &mut State, made: io::Result<Segment>, marks: &Marks) {
        match made {
            Ok(segment) => {
                state.next_base = segment.end();
                state.ready.push_back(Arc::new(segment));
                state.refused = None;
                if state.warned.take().is_some() {
                    tracing::info!(dir = %self.dir.display(), "segments can be made again");
                }
            }
            Err(error) if is_full(&error) => {
                self.warn(state, &error);
                let missing = match is_out_of_descriptors(&error) {
                    true => AppendError::NoDescriptor,
                    false => AppendError::Full,
                };
                state.refused = Some((Instant::now(), missing));
            }
            Err(error) => {
                marks.poison(format!("creating a segment failed: {error}"));
                state.stopped = true;
            }
        }
        self.ready.notify_all();
    }

    /// Every producer that tries again leads to another try, and each fails alike.
    fn warn(&self, state: &mut State, error: &io::Error) {
        let known = |(at, kind): (Instant, _)| kind == error.kind() && at.elapsed() < WARN_PAUSE;
        if state.warned.is_some_and(known) {
            return;
        }
        tracing::warn!(
            dir = %self.dir.display(), bytes = self.segment_bytes, %error,
            "the next segment cannot be made; writes are refused until it can"
        );
        state.warned = Some((Instant::now(), error.kind()));
    }

    /// The next step of zeros, if they are wanted there.
    fn to_zero(&self, state: &State) -> Option<(Arc<Segment>, u64, u64)> {
        let end = state.newest.end();
        let from = state.zeroed.max(state.written).next_multiple_of(zeros::STEP_BYTES);
        let to = (from + zeros::STEP_BYTES).min(end);
        (from < to && to <= state.zeros_wanted).then(|| (state.newest.clone(), from, to))
    }

    fn zero(&self, segment: &Segment, from: u64, to: u64, appender: &Appender) -> io::Result<()> {
        for (at, zeros) in zeros::pieces(from, to) {
            appender.write_zeros(at, at + zeros.len() as u64)?;
        }
        // Through a descriptor of its own: the kernel tells of a failed write once for each, and the
        // flusher must hear of it too. Where there is none to be had, its next sync takes longer.
        self.disk.open(segment.path()).map_or(Ok(()), |file| file.sync())
    }

    /// The next pages to fault in, if the tail is close enough to them.
    fn to_warm(&self, state: &State) -> Option<(Arc<Segment>, u64, u64)> {
        if self.append_path != AppendPath::Mapped {
            return None;
        }
        let end = state.newest.end();
        let from = state.warm.max(state.written) & !4095;
        let goal = (state.written + WARM_AHEAD_BYTES).min(end);
        let to = (from + WARM_STEP_BYTES).min(goal) & !4095;
        (from < to).then(|| (state.newest.clone(), from, to))
    }
}

/// Whether an error says that there is no space, or no file descriptor, which can pass.
pub(crate) fn is_full(error: &io::Error) -> bool {
    // By its kind: redb's errors have lost their number.
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || is_out_of_descriptors(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[test]
    fn zeros_are_written_only_as_far_as_wanted_and_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { segment_bytes: 16 << 20, ..StoreConfig::new(dir.path()) };
        let store = Store::open(config.clone()).unwrap();
        let (written, supply) = (store.written().get(), &store.supply);
        assert_eq!(supply.to_zero(&supply.state.lock()).map(|(_, from, _)| from), None);
        supply.want_zeros(written);
        let done = |state: &State| supply.to_zero(state).is_none() && state.zeroed > written;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(&supply.state.lock()) {
            assert!(Instant::now() < deadline, "no zeros came");
            std::thread::yield_now();
        }
        let zeroed = supply.state.lock().zeroed;
        let ahead = written + zeros::AHEAD_BYTES - zeros::STEP_BYTES..=written + zeros::AHEAD_BYTES;
        assert!(ahead.contains(&zeroed), "{zeroed}");
        store.close().unwrap();
        drop(store);
        assert_eq!(Store::open(config).unwrap().written().get(), written, "the log ends as before");
    }
}
