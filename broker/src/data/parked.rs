//! Parked fetches: long polls that wait until one of their queues has something.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use longwire_storage::{IndexRead, Store};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::connection::Connection;
use super::fetch::{Fetch, Found};
use super::writer;

/// Answers the fetch as soon as there is something for it, at the latest at the deadline; not at
/// all once the connection has ended.
pub(super) async fn wait(
    connection: Arc<Connection>,
    mut fetch: Box<Fetch>,
    slot: OwnedSemaphorePermit,
    deadline: Instant,
) {
    let store = &connection.plane.state.store;
    let mut timed_out = false;
    loop {
        let plan = tokio::select! {
            biased;
            () = connection.ended.cancelled() => return,
            permit = connection.plans.clone().acquire_owned() => permit,
        };
        let (Ok(plan), Some((same, found))) = (plan, look(&connection, fetch).await) else {
            return;
        };
        fetch = same;
        if !found.is_empty() || timed_out {
            fetch.answer(&connection, found, slot, plan);
            // It is large, and most of a parked fetch's life not needed.
            return Box::pin(writer::write(&connection)).await;
        }
        drop((plan, found));
        let _parked = Parked::new(&connection.plane.state.metrics.parked_fetches);
        tokio::select! {
            biased;
            () = connection.ended.cancelled() => return,
            () = sleep_until(deadline) => timed_out = true,
            () = (Arrival { fetch: &fetch, store, waker: None }) => {}
        }
        fetch.drop_deleted(store);
    }
}

/// Looks here, or where it can wait for the disk if it must.
async fn look(connection: &Arc<Connection>, mut fetch: Box<Fetch>) -> Option<(Box<Fetch>, Found)> {
    let store = &connection.plane.state.store;
    if let Ok(found) = fetch.look(store, IndexRead::ResidentOnly) {
        return Some((fetch, found));
    }
    let store = store.clone();
    let looked = connection.plane.pool.run(move || {
        let found = fetch.look(&store, IndexRead::MayBlock).unwrap_or_default();
        (fetch, found)
    });
    match looked.await {
        Ok(looked) => Some(looked),
        Err(error) => {
            tracing::warn!(peer = %connection.peer, %error, "a fetch failed");
            connection.abort();
            None
        }
    }
}

/// Completes when a look is worth the while. It may be wrong about that, but misses nothing.
struct Arrival<'a> {
    fetch: &'a Fetch,
    store: &'a Store,
    /// What has been registered with every queue.
    waker: Option<Waker>,
}

impl Future for Arrival<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.waker.is_some() {
            return Poll::Ready(());
        }
        for (queue, _) in self.fetch.queues() {
            queue.arrivals().register(context.waker());
        }
        self.waker = Some(context.waker().clone());
        if self.fetch.has_news(self.store) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        if let Some(waker) = &self.waker {
            for (queue, _) in self.fetch.queues() {
                queue.arrivals().deregister(waker);
            }
        }
    }
}

/// Counts a parked fetch while it is one.
struct Parked<'a>(&'a Gauge);

impl<'a> Parked<'a> {
    fn new(gauge: &'a Gauge) -> Parked<'a> {
        gauge.inc();
        Parked(gauge)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
