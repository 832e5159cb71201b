//! Those who wait for something new in a queue, and how to wait without missing it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::sync::Mutex;

/// The wakers of those who wait for something new in a queue; [`Arrival`] is how to be one of them.
#[derive(Debug, Default)]
pub struct Arrivals {
    wakers: Mutex<Vec<Waker>>,
}

impl Arrivals {
    /// Adds a waker, unless it is there already. It is woken once.
    pub fn register(&self, waker: &Waker) {
        let mut wakers = self.wakers.lock();
        if !wakers.iter().any(|w| w.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }

    /// Takes a waker out again.
    pub fn deregister(&self, waker: &Waker) {
        self.wakers.lock().retain(|w| !w.will_wake(waker));
    }

    pub(crate) fn wake(&self) {
        let wakers = std::mem::take(&mut *self.wakers.lock());
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// What somebody waits for: news in any of some queues.
pub trait Wanted {
    /// Calls `each` with the arrivals of every queue.
    fn arrivals(&self, each: &mut dyn FnMut(&Arrivals));

    /// Whether there is something by now.
    fn has_news(&self) -> bool;
}

/// Completes when a look is worth the while. It may be wrong about that, but misses nothing: it is
/// registered before it looks.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Arrival<W: Wanted> {
    wanted: W,
    /// What has been registered with every queue.
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
        self.wanted.arrivals(&mut |arrivals| arrivals.register(context.waker()));
        self.waker = Some(context.waker().clone());
        if self.wanted.has_news() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl<W: Wanted> Drop for Arrival<W> {
    fn drop(&mut self) {
        if let Some(waker) = &self.waker {
            self.wanted.arrivals(&mut |arrivals| arrivals.deregister(waker));
        }
    }
}
