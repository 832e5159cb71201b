//! Pauses between frames of small runs, while more queues are ready than a frame holds.
//!
//! The more queues there are, the longer each waits for its turn, and the more it has by then: at most
//! 160 ms with 10,000 queues. Without the pauses, small runs keep client and broker too busy for larger
//! ones ever to gather. But where whoever enqueues waits for answers, nothing gathers meanwhile. So a
//! pause looks whether something still comes once all that was sent has been answered.

use std::time::{Duration, Instant};

/// From one frame of small runs to the next.
const INTERVAL: Duration = Duration::from_millis(4);
/// The end of it, in which it is looked whether something still comes: by then, who waits for answers
/// has sent again what those to the last frame let it send.
const LOOKED_AT: Duration = Duration::from_millis(1);
/// Pauses in a row that brought nothing until they are left out: a thread that enqueues may only have
/// had to wait for a processor.
const VAIN_MAX: u32 = 4;
/// For how long they are left out then, until one finds out anew.
const VAIN_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct SmallRuns {
    pause: Option<Pause>,
    /// How many pauses in a row brought nothing.
    vain: u32,
    /// No pause begins before.
    none_before: Option<Instant>,
}

#[derive(Debug)]
struct Pause {
    /// When it is time to look what waits, and then again at the end.
    first_look: Option<Instant>,
    end: Instant,
    /// The bytes that waited at the first look, if nothing was in flight then.
    waited: Option<usize>,
}

impl SmallRuns {
    /// A frame of small runs goes out: the next one pauses.
    pub(super) fn sent(&mut self, now: Instant) {
        if self.none_before.is_none_or(|none_before| none_before <= now) {
            let end = now + INTERVAL;
            self.pause = Some(Pause { first_look: Some(end - LOOKED_AT), end, waited: None });
        }
    }

    /// Told at every time of [`next_look`](Self::next_look), and as often as one likes, how many bytes
    /// wait to be sent and how many frames are in flight.
    pub(super) fn look(&mut self, now: Instant, waiting_bytes: usize, in_flight: usize) {
        let Some(pause) = &mut self.pause else {
            return;
        };
        if pause.first_look.is_some_and(|first_look| now >= first_look) {
            pause.first_look = None;
            if in_flight == 0 {
                pause.waited = Some(waiting_bytes);
                pause.end = pause.end.max(now + LOOKED_AT);
            }
        }
        if now < pause.end {
            return;
        }
        if let Some(waited) = pause.waited {
            self.vain = if waiting_bytes > waited { 0 } else { self.vain + 1 };
        }
        self.pause = None;
        if self.vain >= VAIN_MAX {
            self.none_before = Some(now + VAIN_INTERVAL);
        }
    }

    pub(super) fn is_pausing(&self) -> bool {
        self.pause.is_some()
    }

    pub(super) fn next_look(&self) -> Option<Instant> {
        self.pause.as_ref().map(|pause| pause.first_look.unwrap_or(pause.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a frame, and pauses while the bytes that wait grow by so many at the end.
    fn pause(runs: &mut SmallRuns, now: &mut Instant, grows: usize, in_flight: usize) -> bool {
        runs.sent(*now);
        let paused = runs.is_pausing();
        let mut waiting = 5_000;
        while let Some(at) = runs.next_look() {
            *now = at;
            runs.look(at, waiting, in_flight);
            waiting += grows;
        }
        *now += Duration::from_millis(1);
        paused
    }

    #[test]
    fn pauses_are_left_out_where_nothing_comes_without_an_answer() {
        let (mut runs, mut now) = (SmallRuns::default(), Instant::now());
        for _ in 0..VAIN_MAX {
            assert!(pause(&mut runs, &mut now, 0, 0));
        }
        assert!(!pause(&mut runs, &mut now, 0, 0), "they brought nothing");
        now += VAIN_INTERVAL;
        assert!(pause(&mut runs, &mut now, 0, 0), "it finds out anew");
        assert!(!pause(&mut runs, &mut now, 0, 0), "and once is enough then");
        now += VAIN_INTERVAL;
        assert!(pause(&mut runs, &mut now, 1, 0));
        assert!(pause(&mut runs, &mut now, 0, 0), "something came in the last one");
    }

    #[test]
    fn a_pause_with_something_in_flight_tells_nothing() {
        let (mut runs, mut now) = (SmallRuns::default(), Instant::now());
        for _ in 0..2 * VAIN_MAX {
            assert!(pause(&mut runs, &mut now, 0, 1), "an answer may still bring something");
        }
    }
}
