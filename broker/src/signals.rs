//! The signals that tell the broker to stop.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What tells a process to stop may tell it twice at once, itself and as one of its group, and not
/// mean it: signals so soon after the first say nothing new.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    /// A terminal that is gone; not listened to under `nohup`.
    hang_up: Option<Signal>,
}

impl StopSignals {
    /// Listens from now on.
    pub(crate) fn listen() -> io::Result<StopSignals> {
        // Listening would end the ignoring.
        let hang_up = (!ignores_hang_up()).then(|| signal(SignalKind::hangup())).transpose()?;
        let (terminate, interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(StopSignals { terminate, interrupt, hang_up })
    }

    /// The next signal's name.
    pub(crate) async fn next(&mut self) -> &'static str {
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = hang_up => "SIGHUP",
        }
    }

    /// Completes at a signal that is not the first one again.
    pub(crate) async fn second(&mut self) {
        let began = Instant::now();
        loop {
            self.next().await;
            if began.elapsed() >= SAME_SIGNAL {
                return;
            }
        }
    }
}

/// Whether who started the process had it ignore SIGHUP.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is that of signal 1.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 > 0)
}
