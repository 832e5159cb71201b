//! The task that keeps fetches outstanding for every queue.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use longwire_proto::data::{request_header::Request, response_header::Response};

use super::Shared;
use super::prefetch::{FETCH_WAIT_MS, FetchLimits, Next, Plan};
use crate::backoff::Backoff;
use crate::connection::{Answer, Body, Connection, Reply, Session};
use crate::{Error, ErrorKind};

/// A broker that keeps a fetch so much longer than asked for, and sends nothing else meanwhile, is
/// taken for dead.
const ANSWER_SLACK: Duration = Duration::from_secs(15);
/// A fetch is taken for lost where another was asked for so many times later than it should have been
/// answered, and has its answer.
const LOST_AFTER: u32 = 4;
/// How long a queue is left alone that the broker could not read.
const DELAY: Duration = Duration::from_millis(500);

/// Tells the application when nothing is fetched any more, also where that is because the fetcher
/// panicked or its runtime was shut down.
pub(super) struct Ending(pub(super) Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ended.store(true, SeqCst);
        self.0.arrived.notify_one();
    }
}

/// Runs until the consumer is closed.
pub(super) async fn run(ending: Ending, connection: Connection) {
    let shared = ending.0.clone();
    let mut connection = Some(connection);
    let mut delay_over: Option<Instant> = None;
    while !shared.closing.is_cancelled() {
        let now = Instant::now();
        if delay_over.is_some_and(|at| at <= now) {
            shared.queues.lock().undelay();
            delay_over = None;
        }
        connection = connection.filter(|connection| !connection.is_closed());
        if connection.is_none() && shared.queues.lock().wants() {
            connection = reconnect(&shared).await;
        }
        let mut silent = None;
        if let Some(open) = &connection {
            fetch(&shared, open);
            if open.is_closed() {
                continue;
            }
            let patience = Duration::from_millis(FETCH_WAIT_MS.into()) + ANSWER_SLACK;
            silent = open.silent_since().map(|since| since + patience);
            let is_silent = silent.is_some_and(|silent| silent <= now);
            if is_silent || open.is_overtaken(LOST_AFTER * patience) {
                let message = "the broker does not answer fetches";
                open.close(Error::new(ErrorKind::Timeout, message));
                continue;
            }
        }
        if delay_over.is_none() && shared.queues.lock().has_delayed() {
            delay_over = Some(Instant::now() + DELAY);
        }
        let woken = shared.closing.run_until_cancelled(shared.fetch.notified());
        match [delay_over, silent].into_iter().flatten().min() {
            Some(at) => drop(tokio::time::timeout_at(at.into(), woken).await),
            None => drop(woken.await),
        }
    }
}

/// Sends every fetch that is wanted and allowed, as long as there is a connection: over one that has
/// ended a fetch fails at once, and its queues want to be fetched again.
fn fetch(shared: &Arc<Shared>, connection: &Connection) {
    let limits = FetchLimits {
        prefetch_bytes_max: shared.config.prefetch_bytes_max,
        in_flight_max: connection.hello().max_in_flight.max(1) as usize,
    };
    while !connection.is_closed() {
        let next = shared.queues.lock().plan(&limits);
        match next {
            Next::Fetch(plan) => {
                let request = Request::Fetch(plan.request());
                let reply = FetchReply { shared: shared.clone(), plan };
                connection.submit(request, Body::default(), Box::new(reply));
            }
            Next::Wait => return,
            Next::Repack => {
                // Its queues then want to be fetched, all together, over a new connection.
                let message = "closed to ask for changed queues anew";
                return connection.close(Error::new(ErrorKind::ConnectionLost, message));
            }
        }
    }
}

/// Dials until there is a connection; `None` once the consumer is closed.
async fn reconnect(shared: &Shared) -> Option<Connection> {
    let mut backoff = Backoff::default();
    while !shared.closing.is_cancelled() {
        match shared.client.open_connection(&Session::none()).await {
            Ok(connection) => return Some(connection),
            Err(error) => {
                let pause = backoff.next();
                tracing::warn!(%error, ?pause, "the consumer has no connection; dialling again");
                let _ = tokio::time::timeout(pause, shared.closing.cancelled()).await;
            }
        }
    }
    None
}

struct FetchReply {
    shared: Arc<Shared>,
    plan: Plan,
}

impl Reply for FetchReply {
    fn complete(self: Box<Self>, answer: Result<Answer, Error>) {
        let FetchReply { shared, plan } = *self;
        let (response, body) = match answer {
            Ok(Answer { response: Response::Fetch(response), body }) => (response, body),
            Ok(_) => {
                tracing::error!("the broker answered a fetch with something else");
                shared.queues.lock().missed(plan, true);
                return shared.fetch.notify_one();
            }
            Err(error) => {
                let refused = error.kind() == ErrorKind::Refused;
                if refused {
                    tracing::warn!(%error, "a fetch was refused; asking again after a pause");
                }
                shared.queues.lock().missed(plan, refused);
                return shared.fetch.notify_one();
            }
        };
        let mut queues = shared.queues.lock();
        if let Err(error) = queues.arrived(plan, response, &body, shared.config.reset()) {
            queues.report(error);
        }
        let dirty = queues.take_dirty();
        drop(queues);
        if dirty {
            shared.dirty.notify_one();
        }
        shared.fetch.notify_one();
        // The last one woken runs first.
        shared.arrived.notify_one();
    }
}
