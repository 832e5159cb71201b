//! Who waits for whom in a store, under every interleaving of the threads.
//!
//! The files under test are the store's own, compiled here with loom's primitives in place of the
//! system's. Interleavings with up to [`PREEMPTIONS`] preemptions are tried; more of them with
//! `LOOM_MAX_PREEMPTIONS=5 cargo test -p longwire-storage --test loom --release`.
#![allow(clippy::unwrap_used)]

#[path = "../../src/arrivals.rs"]
pub mod arrivals;
#[path = "../../src/call.rs"]
pub mod call;
#[path = "../../src/marks.rs"]
#[allow(dead_code, reason = "no part of a store runs here")]
pub mod marks;
#[path = "../../src/unflushed.rs"]
pub mod unflushed;
#[path = "../../src/watermark.rs"]
pub mod watermark;

mod dispatching;
mod flushing;
mod parking;
mod sync;
mod waiting;

/// What the files under test know of queues: who waits, and up to where there are records.
mod queue {
    use std::sync::Arc;

    use crate::arrivals::Arrivals;
    use crate::sync::Mutex;

    #[derive(Debug, Default)]
    pub(crate) struct Queue {
        /// Its bit in the block.
        pub(crate) bit: u64,
        pub(crate) arrivals: Arc<Arrivals>,
        /// Where in the log the newest record ends.
        pub(crate) end: Mutex<u64>,
    }

    impl Queue {
        pub(crate) fn wake(&self) {
            self.arrivals.wake(self.bit);
        }
    }
}

const PREEMPTIONS: usize = 2;

fn model(threads: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(threads);
}
