//! The data plane: framed TCP, on a port and a runtime of its own.
//!
//! ```text
//!             ┌─ one task for each connection ─────────────┐
//!  socket ──► │ reader ─► produce ─► append ─► answer      │──► outbox ──► writer ──► socket
//!             │        └► fetch ───► plan ───► answer      │      ▲
//!             └──────────┬─────────────┬───────────────────┘      │
//!                        │ flush       │ nothing there            │
//!                        ▼             ▼                          │
//!                   acks: durable   parked fetch: arrivals ───────┘
//! ```
//!
//! Requests of one connection are read, and records appended, in order; answers go out as they are
//! ready. Nothing grows without a bound: connections, unanswered requests of one, memory of
//! requests being read and of parked fetches, plans waiting to be sent. Where a bound is reached, the
//! broker stops reading. A connection that only waits costs a task and no buffer, and arms no timer.

mod acks;
mod budget;
mod connection;
mod fetch;
mod listener;
mod outbox;
mod parked;
mod produce;
mod reader;
mod sessions;
mod writer;

use std::sync::Arc;

use longwire_proto::ErrorCode;
use tokio::sync::Semaphore;

use crate::state::BrokerState;
use crate::transfer::IoPool;

pub(crate) use listener::{bind, serve};

use budget::Budget;
use sessions::Sessions;

/// How many appends may wait on a thread for the next segment; further ones queue.
const ROLL_WAITS_MAX: usize = 4;

/// What all connections share.
#[derive(Debug)]
struct Plane {
    state: Arc<BrokerState>,
    /// Threads that may wait for a disk to read.
    pool: IoPool,
    /// What requests being read may take.
    budget: Arc<Budget>,
    /// Bytes that parked fetches may still take.
    parked: Arc<Semaphore>,
    /// Threads that may wait for the next segment.
    rolls: Semaphore,
    sessions: Sessions,
}

impl Plane {
    fn new(state: Arc<BrokerState>) -> Plane {
        let limits = &state.config.limits;
        let parked = usize::try_from(limits.parked_memory_bytes).unwrap_or(usize::MAX);
        Plane {
            pool: IoPool::new(state.config.transfer.io_threads),
            budget: Budget::new(limits.request_memory_bytes),
            parked: Arc::new(Semaphore::new(parked.min(Semaphore::MAX_PERMITS))),
            rolls: Semaphore::new(ROLL_WAITS_MAX),
            sessions: Sessions::default(),
            state,
        }
    }
}

/// Why a request, or a part of it, is refused: the code, and a text for people.
#[derive(Debug, Clone)]
struct Refusal {
    code: ErrorCode,
    message: String,
}

impl Refusal {
    fn new(code: ErrorCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

impl From<crate::state::Failure> for Refusal {
    fn from((code, message): crate::state::Failure) -> Refusal {
        Refusal { code, message }
    }
}
