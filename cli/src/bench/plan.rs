//! When each message of a run is to be sent, and when the run is over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::rate::Rate;

/// How much is measured, after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    Messages(u64),
    Time(Duration),
}

/// A message that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    /// When it is intended to be sent. Latency counts from here.
    pub(super) due: Instant,
    /// False in the warm-up.
    pub(super) measured: bool,
}

/// The plan of a run, shared by its clients.
///
/// At a rate the plan is made before anything is sent and does not change with what happens (an open
/// loop): a message that cannot leave in time was due all the same, and what it waits is part of its
/// latency. Without a rate a message is due whenever its client is able to send it (a closed loop).
#[derive(Debug)]
pub(super) struct Plan {
    start: Instant,
    warmup: Duration,
    length: Length,
    rate: Option<f64>,
    clients: u64,
    /// Measured messages handed out in a closed loop.
    taken: AtomicU64,
}

impl Plan {
    pub(super) fn new(
        start: Instant,
        warmup: Duration,
        length: Length,
        rate: Option<Rate>,
        clients: u32,
    ) -> Plan {
        let (rate, clients) = (rate.map(Rate::per_second), u64::from(clients));
        Plan { start, warmup, length, rate, clients, taken: AtomicU64::new(0) }
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }

    /// When the warm-up is over.
    pub(super) fn measured_from(&self) -> Instant {
        self.start + self.warmup
    }

    pub(super) fn is_open(&self) -> bool {
        self.rate.is_some()
    }

    /// A client's next message, the one after `sent` others; `None` when the run is over.
    pub(super) fn next(&self, client: u32, sent: u64) -> Option<Slot> {
        match self.rate {
            Some(rate) => self.scheduled(rate, sent * self.clients + u64::from(client)),
            None => self.immediate(Instant::now()),
        }
    }

    /// The clients take turns, so that all of them together keep the rate evenly.
    fn scheduled(&self, rate: f64, number: u64) -> Option<Slot> {
        let first_measured = (self.warmup.as_secs_f64() * rate).ceil() as u64;
        let measured = number >= first_measured;
        let over = match self.length {
            Length::Messages(messages) => measured && number - first_measured >= messages,
            Length::Time(time) => number as f64 / rate >= (self.warmup + time).as_secs_f64(),
        };
        let due = self.start + Duration::from_secs_f64(number as f64 / rate);
        (!over).then_some(Slot { due, measured })
    }

    fn immediate(&self, now: Instant) -> Option<Slot> {
        let measured = now >= self.measured_from();
        let over = match self.length {
            Length::Messages(messages) => {
                measured && self.taken.fetch_add(1, Ordering::Relaxed) >= messages
            }
            Length::Time(time) => now >= self.measured_from() + time,
        };
        (!over).then_some(Slot { due: now, measured })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(warmup_ms: u64, length: Length, rate: Option<&str>, clients: u32) -> Plan {
        let rate = rate.map(|rate| rate.parse().unwrap());
        Plan::new(Instant::now(), Duration::from_millis(warmup_ms), length, rate, clients)
    }

    fn all(plan: &Plan, client: u32) -> Vec<Slot> {
        (0..).map_while(|sent| plan.next(client, sent)).collect()
    }

    #[test]
    fn open_loop_is_planned_evenly_over_its_clients() {
        let plan = plan(0, Length::Messages(10), Some("1k"), 3);
        let mut due: Vec<_> = (0..3).flat_map(|client| all(&plan, client)).collect();
        due.sort_by_key(|slot| slot.due);
        let ms: Vec<_> = due.iter().map(|slot| (slot.due - plan.start()).as_millis()).collect();
        assert_eq!(ms, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn warm_up_comes_on_top_and_is_not_measured() {
        for length in [Length::Messages(40), Length::Time(Duration::from_millis(400))] {
            let plan = plan(100, length, Some("100"), 2);
            let slots: Vec<_> = (0..2).flat_map(|client| all(&plan, client)).collect();
            assert_eq!(slots.iter().filter(|slot| slot.measured).count(), 40, "{length:?}");
            assert_eq!(slots.len(), 50);
            assert!(slots.iter().all(|s| s.measured == (s.due >= plan.measured_from())));
        }
    }

    #[test]
    fn closed_loop_hands_out_exactly_what_is_to_be_measured() {
        let plan = plan(0, Length::Messages(5), None, 2);
        assert_eq!(all(&plan, 0).len() + all(&plan, 1).len(), 5);
        assert!(!plan.is_open());
    }
}
