//! The task that sends what is ready, keeps the connection, and gives up on what is too old.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use longwire_proto::data::request_header::Request;

use super::small_runs::SmallRuns;
use super::{Shared, frame};
use crate::backoff::Backoff;
use crate::connection::Connection;
use crate::{Error, ErrorKind};

/// Most frames in flight.
const FRAMES_IN_FLIGHT_MAX: usize = 16;
/// With so many in flight, a frame waits until it is worth its cost: what is small grows meanwhile.
const SMALL_FRAMES_IN_FLIGHT_MAX: usize = 2;
/// A broker that has been silent for so long, with something to answer, is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Without a connection, how often it is looked for what has become too old, at least.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// Ends the producer with its sender, also where that panics or its runtime is shut down.
pub(super) struct Ending(pub(super) Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Runs until the producer is closed and nothing is left to send.
pub(super) async fn run(ending: Ending, connection: Connection) {
    let shared = ending.0.clone();
    let mut connection = Some(connection);
    let mut small_runs = SmallRuns::default();
    loop {
        let now = Instant::now();
        let closing = shared.closed.load(SeqCst);
        if closing {
            if shared.is_empty() {
                return;
            }
            shared.hurry();
        }
        let due = shared.schedule.release_due(now);
        if shared.lingers_in_the_way() {
            shared.hurry();
        }
        connection = connection.filter(|connection| !connection.is_closed());
        if connection.is_none() && shared.schedule.ready_lanes() > 0 {
            connection = reconnect(&shared).await;
        }
        small_runs.look(now, shared.waiting_bytes(), shared.frames_in_flight.load(Relaxed));
        let mut silent = None;
        if let Some(connection) = &connection {
            send(&shared, connection, now, &mut small_runs);
            if connection.is_closed() {
                continue;
            }
            silent = patience_ends(&shared, connection);
            if silent.is_some_and(|silent| silent <= now) {
                let message = "the broker does not answer";
                connection.close(Error::new(ErrorKind::Timeout, message));
                continue;
            }
        }
        let woken = shared.schedule.wake.notified();
        match [due, silent, small_runs.next_look()].into_iter().flatten().min() {
            Some(at) => {
                let _ = tokio::time::timeout_at(at.into(), woken).await;
            }
            None => woken.await,
        }
    }
}

/// When a broker that answers nothing until then is given up: it is silent, or an answer that comes
/// later is too late for its messages.
fn patience_ends(shared: &Shared, connection: &Connection) -> Option<Instant> {
    let silent = connection.silent_since()? + SILENCE_MAX;
    let too_late = connection.oldest_unanswered()? + shared.config.delivery_timeout;
    Some(silent.min(too_late))
}

/// Sends frames while there is something ready, room in flight, and a connection.
fn send(shared: &Arc<Shared>, connection: &Connection, now: Instant, small_runs: &mut SmallRuns) {
    let most = FRAMES_IN_FLIGHT_MAX.min(connection.hello().max_in_flight.max(1) as usize);
    while !connection.is_closed() {
        let in_flight = shared.frames_in_flight.load(Relaxed);
        let spread = shared.schedule.is_full_of_runs() && shared.has_much_waiting();
        if shared.spread.swap(spread, Relaxed) && !spread {
            shared.arena.release();
        }
        let paused = small_runs.is_pausing() && !shared.hurried.load(Relaxed) && spread;
        let worth = (in_flight < SMALL_FRAMES_IN_FLIGHT_MAX && !paused)
            || shared.schedule.fills_a_frame()
            || shared.is_crowded();
        if in_flight >= most || !worth {
            return;
        }
        let Some(frame) = frame::collect(shared, now) else {
            shared.hurried.store(false, Relaxed);
            return;
        };
        if frame.has_small_runs && spread {
            small_runs.sent(now);
        }
        shared.frames_in_flight.fetch_add(1, Relaxed);
        connection.submit(Request::Produce(frame.request), frame.body, frame.reply);
    }
}

/// Dials until there is a connection, or nothing to send is left that is young enough.
async fn reconnect(shared: &Shared) -> Option<Connection> {
    let mut backoff = Backoff::default();
    loop {
        let dialled = shared.client.open_connection(&shared.session);
        let error = match expiring_meanwhile(shared, dialled).await {
            Ok(connection) => {
                shared.meet(&connection);
                return Some(connection);
            }
            Err(error) => error,
        };
        let pause = backoff.next();
        tracing::warn!(%error, ?pause, "the producer has no connection; dialling again");
        *shared.unreachable.lock() = Some(error);
        expiring_meanwhile(shared, tokio::time::sleep(pause)).await;
        if shared.schedule.ready_lanes() == 0 {
            return None;
        }
    }
}

/// Waits for `what`, and fails what becomes too old meanwhile.
async fn expiring_meanwhile<T>(shared: &Shared, what: impl Future<Output = T>) -> T {
    let mut what = std::pin::pin!(what);
    loop {
        let now = Instant::now();
        let due = shared.schedule.release_due(now);
        let too_old = expire_ready(shared, now);
        // What is to be sent again may come back later than what is younger.
        let look = now + LOOK_INTERVAL_MAX;
        let at = due.into_iter().chain(too_old).fold(look, Instant::min);
        tokio::select! {
            done = &mut what => return done,
            () = tokio::time::sleep_until(at.into()) => {}
            () = shared.schedule.wake.notified(), if shared.schedule.ready_lanes() == 0 => {}
        }
    }
}

/// Fails what is ready and too old. Returns when the next will be.
fn expire_ready(shared: &Shared, now: Instant) -> Option<Instant> {
    let timeout = shared.config.delivery_timeout;
    let created_before = now.checked_sub(timeout);
    let mut oldest = None;
    for _ in 0..shared.schedule.ready_lanes() {
        let Some(lane) = shared.schedule.pop_ready() else {
            break;
        };
        if created_before.is_some_and(|before| shared.expire(&lane, before)) {
            continue;
        }
        oldest = oldest.into_iter().chain(lane.oldest()).min();
        shared.schedule.push_ready_back(lane);
    }
    oldest.map(|created| created + timeout)
}
