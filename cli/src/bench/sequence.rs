//! Whether what one client sent to one queue has arrived: all of it, once, in order.

use std::collections::BTreeMap;

/// Gaps that are remembered one by one; what is missing beyond that is lost for good.
const GAPS_MAX: usize = 10_000;

/// Follows the numbers that arrive, which should be 0, 1, 2 and so on.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    /// Everything from here on has not arrived.
    next: u64,
    /// What has not arrived below `next`: first number, and the first behind the gap.
    gaps: BTreeMap<u64, u64>,
    forgotten: u64,
    /// Different numbers.
    pub(super) received: u64,
    pub(super) duplicated: u64,
    pub(super) out_of_order: u64,
}

/// What has been settled of what one client sent to one queue, in the order it was sent.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// How many have an outcome.
    pub(super) count: u64,
    /// Those of them that were not acknowledged, rising.
    pub(super) failed: Vec<u64>,
}

impl Sequence {
    /// Takes in a number; false if it had arrived before.
    pub(super) fn add(&mut self, number: u64) -> bool {
        if number >= self.next {
            if number > self.next {
                if self.gaps.len() < GAPS_MAX {
                    self.gaps.insert(self.next, number);
                } else {
                    self.forgotten += number - self.next;
                }
            }
            self.next = number + 1;
            self.received += 1;
            return true;
        }
        let gap = self.gaps.range(..=number).next_back().map(|(&first, &end)| (first, end));
        let Some((first, end)) = gap.filter(|&(_, end)| number < end) else {
            self.duplicated += 1;
            return false;
        };
        self.gaps.remove(&first);
        if first < number {
            self.gaps.insert(first, number);
        }
        if number + 1 < end {
            self.gaps.insert(number + 1, end);
        }
        self.received += 1;
        self.out_of_order += 1;
        true
    }

    /// How many acknowledged messages have not arrived.
    pub(super) fn lost(&self, settled: &Settled) -> u64 {
        let missing = |first: u64, end: u64| {
            let end = end.min(settled.count);
            let failed = |number| settled.failed.partition_point(|&failed| failed < number) as u64;
            if first < end { end - first - (failed(end) - failed(first)) } else { 0 }
        };
        let gaps: u64 = self.gaps.iter().map(|(&first, &end)| missing(first, end)).sum();
        gaps + missing(self.next, settled.count) + self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(numbers: &[u64]) -> Sequence {
        let mut sequence = Sequence::default();
        numbers.iter().for_each(|&number| {
            sequence.add(number);
        });
        sequence
    }

    fn settled(count: u64, failed: &[u64]) -> Settled {
        Settled { count, failed: failed.to_vec() }
    }

    #[test]
    fn what_arrives_once_and_in_order_is_all_there_is_to_see() {
        let seen = after(&[0, 1, 2, 3]);
        assert_eq!((seen.lost(&settled(4, &[])), seen.duplicated, seen.out_of_order), (0, 0, 0));
        assert_eq!(seen.lost(&settled(2, &[])), 0, "arrived before it was acknowledged");
    }

    #[test]
    fn lost_repeated_and_late_messages_are_told_apart() {
        let seen = after(&[0, 5, 2, 2, 0, 3, 5]);
        assert_eq!((seen.duplicated, seen.out_of_order), (3, 2));
        assert_eq!(seen.lost(&settled(6, &[])), 2, "1 and 4");
        assert_eq!(seen.lost(&settled(8, &[])), 4, "1, 4, 6 and 7");
        assert_eq!(seen.lost(&settled(4, &[])), 1, "4 has no outcome yet");
    }

    #[test]
    fn what_was_not_acknowledged_is_not_missed() {
        let seen = after(&[0, 3]);
        assert_eq!(seen.lost(&settled(6, &[1, 5])), 2, "2 and 4");
        assert_eq!(seen.lost(&settled(4, &[1, 2, 3])), 0, "3 was stored all the same");
    }

    #[test]
    fn memory_is_bounded_however_many_gaps_there_are() {
        let numbers: Vec<u64> = (0..30_000).map(|number| number * 2 + 1).collect();
        let seen = after(&numbers);
        assert_eq!(seen.gaps.len(), GAPS_MAX);
        assert_eq!(seen.lost(&settled(60_000, &[])), 30_000);
    }
}
