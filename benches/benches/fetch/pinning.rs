//! Which core does what: the scheduler's choice changes a round trip by a factor of four.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The broker's core, and the clients'.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pinning(Option<(usize, usize)>);

impl Pinning {
    /// The first and the last core this process may use; none where there is only one.
    pub(crate) fn choose() -> Pinning {
        let cores: Vec<usize> = sched_getaffinity(None)
            .map(|set| (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
            .unwrap_or_default();
        Pinning(match cores[..] {
            [first, .., last] => Some((first, last)),
            _ => None,
        })
    }

    /// Puts the calling thread, and what it starts, where servers run.
    pub(crate) fn serve(self) {
        self.pin(|(server, _)| server);
    }

    /// Puts the calling thread where clients run.
    pub(crate) fn consume(self) {
        self.pin(|(_, client)| client);
    }

    fn pin(self, which: impl FnOnce((usize, usize)) -> usize) {
        if let Some(cores) = self.0 {
            let mut set = CpuSet::new();
            set.set(which(cores));
            // Unpinned figures are worth less, not nothing.
            let _ = sched_setaffinity(None, &set);
        }
    }

    pub(crate) fn describe(self) -> String {
        match self.0 {
            Some((server, client)) => format!("servers on core {server}, clients on core {client}"),
            None => "none".into(),
        }
    }
}
