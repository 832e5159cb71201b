//! Parked fetches: long polls that wait until one of their queues has something.

use std::sync::Arc;
use std::time::Duration;

use longwire_storage::{Arrival, Arrivals, IndexRead, Store, Wanted};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::connection::Connection;
use super::fetch::{Fetch, Found};
use super::writer;

/// What a parked fetch takes beside the queues it names: its task, timer and the like.
pub(super) const TASK_BYTES: usize = 1 << 10;
/// Its place among those that wait for a block of queues.
pub(super) const ARRIVAL_BYTES: usize = 48;

/// How long a fetch waits for which there is no memory left: long enough for its client not to spin,
/// short enough not to hold up what it has sent behind the fetch.
const CROWDED_WAIT: Duration = Duration::from_millis(100);

/// How long a fetch still waits once its filter has passed over something: the client is to commit
/// that it need not be looked at again, and should not ask anew for each.
const PROGRESS_WAIT: Duration = Duration::from_secs(1);

/// Leaves the fetch to a task of its own, which waits until there is an answer, or for so long.
///
/// Where parked fetches take all the memory they may, this connection waits itself, a little, and is not
/// read from meanwhile: so each has one fetch that is served, however many others have parked.
pub(super) async fn park(
    connection: &Arc<Connection>,
    fetch: Box<Fetch>,
    slot: OwnedSemaphorePermit,
    wait_max: Duration,
    look_first: bool,
) {
    let bytes = u32::try_from(fetch.parked_bytes()).unwrap_or(u32::MAX);
    let Ok(memory) = connection.plane.parked.clone().try_acquire_many_owned(bytes) else {
        writer::flush(connection);
        let deadline = Instant::now() + wait_max.min(CROWDED_WAIT);
        return Box::pin(wait(connection, fetch, slot, deadline, look_first)).await;
    };
    let connection = connection.clone();
    let deadline = Instant::now() + wait_max;
    tokio::spawn(async move {
        wait(&connection, fetch, slot, deadline, look_first).await;
        drop(memory);
        // It is large, and most of a parked fetch's life not needed.
        Box::pin(writer::write(&connection)).await;
    });
}

/// Queues the answer as soon as there is something for it, at the latest at the deadline; not at
/// all once the peer has gone. `look_first`: before it waits, as what is not in memory has
/// not been looked at yet.
async fn wait(
    connection: &Arc<Connection>,
    mut fetch: Box<Fetch>,
    slot: OwnedSemaphorePermit,
    mut deadline: Instant,
    mut look_first: bool,
) {
    let store = &connection.plane.state.store;
    let mut timed_out = false;
    loop {
        if !std::mem::take(&mut look_first) {
            if fetch.has_progress() {
                deadline = deadline.min(Instant::now() + PROGRESS_WAIT);
            }
            let _parked = Parked::new(&connection.plane.state.metrics.parked_fetches);
            tokio::select! {
                biased;
                () = connection.parted.cancelled() => return,
                () = sleep_until(deadline) => timed_out = true,
                () = Arrival::new(News { fetch: &fetch, store }) => {}
            }
            fetch.drop_deleted(store);
        }
        let Ok(plan) = connection.plan().await else {
            return;
        };
        let Some((same, found)) = look(connection, fetch).await else {
            return;
        };
        fetch = same;
        if !found.is_empty() || timed_out {
            return fetch.answer(connection, found, slot, plan);
        }
        drop(plan);
        // Where a filter fits little, one look follows another.
        tokio::task::yield_now().await;
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

/// What a parked fetch waits for.
struct News<'a> {
    fetch: &'a Fetch,
    store: &'a Store,
}

impl Wanted for News<'_> {
    fn arrivals(&self, each: &mut dyn FnMut(&Arrivals, u64)) {
        self.fetch.arrivals(each);
    }

    fn has_news(&self) -> bool {
        self.fetch.has_news(self.store)
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
