//! Connections that are refused because there are too many.

use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

/// That connections are refused is said at most this often.
const WARN_PAUSE: Duration = Duration::from_secs(60);

/// Counts those of one listener, and says so in the log now and then.
#[derive(Debug)]
pub(crate) struct Refusals {
    /// What there are too many connections of.
    plane: &'static str,
    /// The setting to blame, or what takes its place.
    limit: &'static str,
    connections_max: usize,
    count: Counter,
    warned: Option<Instant>,
}

impl Refusals {
    pub(crate) fn new(
        plane: &'static str,
        limit: &'static str,
        connections_max: usize,
        count: Counter,
    ) -> Refusals {
        Refusals { plane, limit, connections_max, count, warned: None }
    }

    pub(crate) fn connections_max(&self) -> usize {
        self.connections_max
    }

    pub(crate) fn note(&mut self) {
        self.count.inc();
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_PAUSE) {
            self.warned = Some(Instant::now());
            let Refusals { plane, limit, connections_max, .. } = self;
            tracing::warn!(%plane, %limit, connections_max, "too many connections: more are refused");
        }
    }
}
