//! Sends messages when they are due.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio_util::sync::CancellationToken;

use super::plan::{Plan, Slot};
use super::record::{note_time, times};

/// Nobody notices later than this that a run has been stopped.
const NAP_MAX: Duration = Duration::from_millis(50);

/// Where messages go. Futures need not be `Send`: each client has a thread of its own.
pub(super) trait Sink {
    /// Waits until another message may be sent, where the plan does not say when; false for no more.
    async fn ready(&mut self) -> bool;

    /// Sends a message; returns once it is on its way, or false for no more.
    async fn put(&mut self, slot: Slot) -> bool;
}

/// Sends one client's messages until the plan ends or the run is stopped. Returns by how much each
/// measured message was handed over later than intended.
///
/// It blocks its thread while nothing is due: the timers of the runtime are too coarse, as they
/// count milliseconds.
pub(super) async fn drive(
    plan: &Plan,
    client: u32,
    sink: &mut impl Sink,
    stop: &CancellationToken,
) -> Histogram<u64> {
    sharpen_timers();
    let mut delays = times();
    for sent in 0.. {
        if !plan.is_open() && !sink.ready().await {
            break;
        }
        let Some(slot) = plan.next(client, sent) else {
            break;
        };
        let Some(now) = wait_until(slot.due, stop) else {
            break;
        };
        if slot.measured {
            note_time(&mut delays, now - slot.due);
        }
        if !sink.put(slot).await {
            break;
        }
    }
    delays
}

/// The time, once it is `due`; `None` when the run has been stopped.
fn wait_until(due: Instant, stop: &CancellationToken) -> Option<Instant> {
    while !stop.is_cancelled() {
        let now = Instant::now();
        match due.checked_duration_since(now) {
            Some(left) if !left.is_zero() => std::thread::sleep(left.min(NAP_MAX)),
            _ => return Some(now),
        }
    }
    None
}

/// By default the kernel may let this thread sleep 50 us longer than asked.
#[cfg(target_os = "linux")]
fn sharpen_timers() {
    // Where it is refused, the delays in the report show it.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

#[cfg(not(target_os = "linux"))]
fn sharpen_timers() {}

#[cfg(test)]
mod tests {
    use super::super::plan::Length;
    use super::*;

    const STALL: Duration = Duration::from_millis(300);

    /// Takes messages at once, but for one that keeps it busy.
    struct SlowOnce {
        taken: u64,
        latency: Histogram<u64>,
    }

    impl Sink for SlowOnce {
        async fn ready(&mut self) -> bool {
            true
        }

        async fn put(&mut self, slot: Slot) -> bool {
            self.taken += 1;
            if self.taken == 100 {
                std::thread::sleep(STALL);
            }
            note_time(&mut self.latency, slot.due.elapsed());
            true
        }
    }

    async fn drive_slow_once(rate: Option<&str>) -> (SlowOnce, Histogram<u64>) {
        let rate = rate.map(|rate| rate.parse().unwrap());
        let plan = Plan::new(Instant::now(), Duration::ZERO, Length::Messages(1_000), rate, 1);
        let mut sink = SlowOnce { taken: 0, latency: times() };
        let delays = drive(&plan, 0, &mut sink, &CancellationToken::new()).await;
        (sink, delays)
    }

    #[tokio::test]
    async fn stall_delays_every_message_that_was_due_meanwhile() {
        let (sink, delays) = drive_slow_once(Some("1k")).await;
        assert_eq!((sink.taken, delays.len()), (1_000, 1_000));
        // Of the 300 due within the stall, those of its first 200 ms waited 100 ms or more.
        let waited = sink.latency.count_between(100_000_000, u64::MAX);
        assert!(waited >= 190, "only {waited} messages show the stall");
        assert!(sink.latency.value_at_quantile(0.85) >= 100_000_000);
        // The one that stalled was sent in time; those behind it were not.
        assert!(delays.count_between(100_000_000, u64::MAX) >= 190);
    }

    #[tokio::test]
    async fn closed_loop_shows_a_stall_once_which_is_why_the_report_says_so() {
        let (sink, _) = drive_slow_once(None).await;
        assert_eq!(sink.latency.count_between(STALL.as_nanos() as u64 - 1_000_000, u64::MAX), 1);
    }

    #[tokio::test]
    async fn run_that_is_stopped_ends_although_nothing_is_due_for_long() {
        let plan = Plan::new(
            Instant::now(),
            Duration::ZERO,
            Length::Messages(2),
            Some("0.001".parse().unwrap()),
            1,
        );
        let stop = CancellationToken::new();
        stop.cancel();
        let mut sink = SlowOnce { taken: 0, latency: times() };
        let delays = drive(&plan, 0, &mut sink, &stop).await;
        assert_eq!((sink.taken, delays.len()), (0, 0));
    }
}
