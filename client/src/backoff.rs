//! Growing pauses between attempts.

use std::time::Duration;

use crate::random::random;

const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(2);

/// Doubles from 20 ms to 2 s. Each pause is between half of that and all of it, so that many clients
/// that lost a broker together do not come back together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The pause before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = Backoff::after(self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        pause
    }

    /// The pause after `attempts` earlier ones.
    pub(crate) fn after(attempts: u32) -> Duration {
        let full = FIRST.saturating_mul(1 << attempts.min(10)).min(LONGEST);
        full / 2 + full.mul_f64((random() % 1024) as f64 / 2048.0)
    }

    /// Begins again with the shortest pause.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_over() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= FIRST && pauses[0] >= FIRST / 2, "{pauses:?}");
        assert!(pauses[39] <= LONGEST && pauses[39] >= LONGEST / 2, "{pauses:?}");
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
