//! A position that only rises, and those who wait for it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use crate::sync::thread::{self, Thread};
use crate::sync::{AtomicU64, Mutex};

/// A position that only rises. Threads and futures can wait until it has reached a value.
///
/// Raising it costs one store and one load while nobody waits for what it reaches.
#[derive(Debug)]
pub struct Watermark {
    position: AtomicU64,
    /// The lowest position somebody waits for; read without the lock by those who raise the position.
    lowest: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: Option<Arc<str>>,
    next_id: u64,
    wakers: BTreeMap<(u64, u64), Waker>,
}

/// The position will not be reached: the store was closed or has failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct WatermarkClosed {
    /// Why.
    pub reason: Arc<str>,
}

impl Watermark {
    pub(crate) fn new(position: u64) -> Watermark {
        Watermark {
            position: AtomicU64::new(position),
            lowest: AtomicU64::new(u64::MAX),
            waiting: Mutex::default(),
        }
    }

    /// The position reached.
    pub fn get(&self) -> u64 {
        self.position.load(SeqCst)
    }

    /// A future that completes when the position has been reached. It works on any runtime.
    pub fn reached(&self, position: u64) -> Reached<'_> {
        Reached { watermark: self, position, id: None }
    }

    /// Blocks the thread until the position has been reached.
    pub fn wait(&self, position: u64) -> Result<(), WatermarkClosed> {
        self.wait_until(position, None).map(|_| ())
    }

    /// As [`wait`](Self::wait), up to a deadline. `false` if that came first.
    pub(crate) fn wait_until(
        &self,
        position: u64,
        deadline: Option<Instant>,
    ) -> Result<bool, WatermarkClosed> {
        let mut reached = pin!(self.reached(position));
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(result) = reached.as_mut().poll(&mut context) {
                return result.map(|()| true);
            }
            match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(left) if left.is_zero() => return Ok(false),
                Some(left) => thread::park_timeout(left),
            }
        }
    }

    /// Raises the position; a lower one changes nothing.
    pub(crate) fn advance(&self, position: u64) {
        self.position.fetch_max(position, SeqCst);
        // Whoever registers sets `lowest` before looking at `position` once more, so either that look
        // sees the new position or this one sees the waiter.
        if self.lowest.load(SeqCst) <= position {
            self.wake();
        }
    }

    /// Ends all waiting, now and later, for what has not been reached.
    pub(crate) fn close(&self, reason: &Arc<str>) {
        let wakers = {
            let mut waiting = self.waiting.lock();
            waiting.closed.get_or_insert_with(|| reason.clone());
            self.lowest.store(u64::MAX, SeqCst);
            std::mem::take(&mut waiting.wakers)
        };
        wakers.into_values().for_each(Waker::wake);
    }

    fn set_lowest(&self, waiting: &Waiting) {
        let lowest =
            waiting.wakers.first_key_value().map_or(u64::MAX, |((position, _), _)| *position);
        self.lowest.store(lowest, SeqCst);
    }

    fn wake(&self) {
        let reached = {
            let mut waiting = self.waiting.lock();
            let later = waiting.wakers.split_off(&(self.get() + 1, 0));
            let reached = std::mem::replace(&mut waiting.wakers, later);
            self.set_lowest(&waiting);
            reached
        };
        reached.into_values().for_each(Waker::wake);
    }
}

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a [`Watermark`]; see [`Watermark::reached`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Reached<'a> {
    watermark: &'a Watermark,
    position: u64,
    id: Option<u64>,
}

impl Future for Reached<'_> {
    type Output = Result<(), WatermarkClosed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let watermark = self.watermark;
        if watermark.get() >= self.position {
            return Poll::Ready(Ok(()));
        }
        let mut waiting = watermark.waiting.lock();
        if let Some(reason) = &waiting.closed {
            return Poll::Ready(Err(WatermarkClosed { reason: reason.clone() }));
        }
        let id = *self.id.get_or_insert_with(|| {
            waiting.next_id += 1;
            waiting.next_id
        });
        waiting.wakers.insert((self.position, id), context.waker().clone());
        watermark.set_lowest(&waiting);
        if watermark.get() < self.position {
            return Poll::Pending;
        }
        waiting.wakers.remove(&(self.position, id));
        watermark.set_lowest(&waiting);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Reached<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut waiting = self.watermark.waiting.lock();
            waiting.wakers.remove(&(self.position, id));
            self.watermark.set_lowest(&waiting);
        }
    }
}
