//! Sessions: a client that lost its connection says with the hello of the next one that it goes on.
//!
//! What it had sent over the one before can still be on its way. The client sends it again and goes on,
//! so appended later it would be out of order. Therefore only the latest connection of a session is
//! read, and what was begun for the one before is ended first.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection::{Connection, End};

/// Every session that has a connection, by the name its client gave it.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<Vec<u8>, Session>>);

#[derive(Debug)]
struct Session {
    /// Held by the one connection that is read.
    reading: Arc<Semaphore>,
    latest: Weak<Connection>,
}

/// A connection's right to be read as that of its session.
#[derive(Debug)]
pub(super) struct Entered {
    connection: Arc<Connection>,
    session: Vec<u8>,
    reading: Option<OwnedSemaphorePermit>,
}

/// Ends the session's connection, if it has one, and waits until nothing that came over that can be
/// appended any more.
pub(super) async fn enter(connection: &Arc<Connection>, session: Vec<u8>) -> Result<Entered, End> {
    let (reading, before) = {
        let mut sessions = connection.plane.sessions.0.lock();
        let known = sessions.entry(session.clone()).or_insert_with(|| Session {
            reading: Arc::new(Semaphore::new(1)),
            latest: Weak::new(),
        });
        let before = mem::replace(&mut known.latest, Arc::downgrade(connection));
        (known.reading.clone(), before.upgrade())
    };
    let mut entered = Entered { connection: connection.clone(), session, reading: None };
    if let Some(before) = before {
        tracing::debug!(peer = %before.peer, "a connection is replaced by the next of its session");
        before.abort();
    }
    entered.reading = tokio::select! {
        biased;
        () = connection.ended.cancelled() => return Err(connection.end()),
        reading = reading.acquire_owned() => reading.ok()
    };
    Ok(entered)
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.reading = None;
        let mut sessions = self.connection.plane.sessions.0.lock();
        // Others that wait for their turn, or have it, know the session by this one semaphore.
        if sessions.get(&self.session).is_some_and(|known| Arc::strong_count(&known.reading) == 1) {
            sessions.remove(&self.session);
        }
    }
}
