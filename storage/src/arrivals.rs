//! Those who wait for something new in a queue, and how to wait without missing it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::sync::Mutex;

/// Which block of its topic a queue belongs to, and its bit in the block.
pub fn block_of(queue: u32) -> (u32, u64) {
    (queue / u64::BITS, 1 << (queue % u64::BITS))
}

/// Those who wait for something new in a block of neighbouring queues, so that waiting for many costs
/// little more than waiting for one; [`Arrival`] is how to be one of them.
#[derive(Debug, Default)]
pub struct Arrivals {
    waiting: Mutex<Vec<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    /// A bit for each queue of the block.
    queues: u64,
    waker: Waker,
}

impl Arrivals {
    /// Adds queues to those that a waker waits for, each by its bit in the block
    /// ([`block_of`]). The first that has news wakes it, once for all of them.
    pub fn register(&self, queues: u64, waker: &Waker) {
        let mut waiting = self.waiting.lock();
        match waiting.iter_mut().find(|known| known.waker.will_wake(waker)) {
            Some(known) => known.queues |= queues,
            None => waiting.push(Waiting { queues, waker: waker.clone() }),
        }
    }

    /// Takes a waker out again.
    pub fn deregister(&self, waker: &Waker) {
        self.waiting.lock().retain(|known| !known.waker.will_wake(waker));
    }

    /// Wakes those who wait for one of these queues.
    pub(crate) fn wake(&self, queues: u64) {
        let mut waiting = self.waiting.lock();
        let woken: Vec<_> = waiting.extract_if(.., |known| known.queues & queues != 0).collect();
        drop(waiting);
        woken.into_iter().for_each(|known| known.waker.wake());
    }
}

/// What somebody waits for: news in any of some queues.
pub trait Wanted {
    /// Calls `each` with the arrivals of every block, and which of its queues are wanted.
    fn arrivals(&self, each: &mut dyn FnMut(&Arrivals, u64));

    /// Whether there is something by now.
    fn has_news(&self) -> bool;
}

/// Completes when a look is worth the while. It may be wrong about that, but misses nothing: it is
/// registered before it looks.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Arrival<W: Wanted> {
    wanted: W,
    /// What has been registered with every block.
    waker: Option<Waker>,
}

impl<W: Wanted> Arrival<W> {
    /// Waits for this from its first poll on.
    pub fn new(wanted: W) -> Arrival<W> {
        Arrival { wanted, waker: None }
    }
}

impl<W: Wanted + Unpin> Future for Arrival<W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.waker.is_some() {
            return Poll::Ready(());
        }
        self.wanted.arrivals(&mut |arrivals, queues| arrivals.register(queues, context.waker()));
        self.waker = Some(context.waker().clone());
        if self.wanted.has_news() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl<W: Wanted> Drop for Arrival<W> {
    fn drop(&mut self) {
        if let Some(waker) = &self.waker {
            self.wanted.arrivals(&mut |arrivals, _| arrivals.deregister(waker));
        }
    }
}
