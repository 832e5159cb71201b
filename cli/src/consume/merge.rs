//! Several queues as one stream, in the order of their positions in the log.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Merges lanes, each of which is filled in ascending order of position.
///
/// An item may leave only when no open lane could still bring an earlier one, that is, when every
/// open lane holds something. Lanes that do not are *awaited*.
#[derive(Debug)]
pub(crate) struct Merge<T> {
    lanes: Vec<Lane<T>>,
    /// Position of the first item of every lane that has one.
    heads: BinaryHeap<Reverse<(u64, usize)>>,
    awaited: usize,
    bytes: u64,
    bytes_max: u64,
}

#[derive(Debug)]
struct Lane<T> {
    items: VecDeque<Item<T>>,
    open: bool,
    held: bool,
}

#[derive(Debug)]
struct Item<T> {
    position: u64,
    bytes: u64,
    value: T,
}

impl<T> Merge<T> {
    /// A merge of no lanes that wants to hold no more than `bytes_max`.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Merge { lanes: Vec::new(), heads: BinaryHeap::new(), awaited: 0, bytes: 0, bytes_max }
    }

    /// Adds an empty lane, open or closed, which gets the next number from 0 on.
    pub(crate) fn add_lane(&mut self, open: bool) {
        self.lanes.push(Lane { items: VecDeque::new(), open, held: false });
        self.awaited += usize::from(open);
    }

    /// Adds an item behind those of its lane.
    pub(crate) fn push(&mut self, lane: usize, position: u64, bytes: u64, value: T) {
        let items = &mut self.lanes[lane].items;
        debug_assert!(items.back().is_none_or(|last| last.position < position));
        if items.is_empty() {
            self.heads.push(Reverse((position, lane)));
            self.awaited -= usize::from(self.lanes[lane].open);
        }
        self.bytes += bytes;
        self.lanes[lane].items.push_back(Item { position, bytes, value });
    }

    /// Says that nothing more will come in this lane.
    pub(crate) fn close(&mut self, lane: usize) {
        let lane = &mut self.lanes[lane];
        self.awaited -= usize::from(lane.open && lane.items.is_empty());
        lane.open = false;
    }

    /// The next item of all; `None` while a lane is awaited, and at the end.
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.awaited > 0 {
            return None;
        }
        let Reverse((_, index)) = self.heads.pop()?;
        let lane = &mut self.lanes[index];
        let item = lane.items.pop_front()?;
        self.bytes -= item.bytes;
        match lane.items.front() {
            Some(next) => self.heads.push(Reverse((next.position, index))),
            None => self.awaited += usize::from(lane.open),
        }
        Some(item.value)
    }

    /// Whether something must come, or a lane be closed, before anything may leave.
    pub(crate) fn is_awaiting(&self) -> bool {
        self.awaited > 0
    }

    /// Whether every lane is closed and empty.
    pub(crate) fn is_done(&self) -> bool {
        self.awaited == 0 && self.heads.is_empty()
    }

    /// Whether the lane may still bring something.
    pub(crate) fn is_open(&self, lane: usize) -> bool {
        self.lanes[lane].open
    }

    /// Which lanes are to be held back from now on, and which let go again.
    ///
    /// Above the limit a lane that holds something is held back. An empty lane never is, so the
    /// merge cannot stand still, and goes beyond its limit by what such lanes bring.
    pub(crate) fn balance(&mut self) -> Balance {
        let over = self.bytes >= self.bytes_max;
        // Well below it, so that lanes do not flutter.
        let under = self.bytes <= self.bytes_max / 2;
        let mut balance = Balance::default();
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let empty = lane.items.is_empty();
            if lane.held && (empty || under) {
                lane.held = false;
                balance.release.push(index);
            } else if !lane.held && over && !empty {
                lane.held = true;
                balance.hold.push(index);
            }
        }
        balance
    }
}

/// What [`Merge::balance`] asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    pub(crate) hold: Vec<usize>,
    pub(crate) release: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_lanes<T>(lanes: usize, bytes_max: u64) -> Merge<T> {
        let mut merge = Merge::new(bytes_max);
        (0..lanes).for_each(|_| merge.add_lane(true));
        merge
    }

    #[test]
    fn nothing_leaves_before_every_open_lane_has_spoken() {
        let mut merge = open_lanes(3, 1000);
        merge.push(0, 10, 1, 10);
        merge.push(0, 40, 1, 40);
        merge.push(1, 20, 1, 20);
        assert_eq!(merge.pop(), None, "lane 2 may still bring position 5");
        merge.push(2, 5, 1, 5);
        assert_eq!(merge.pop(), Some(5));
        assert_eq!(merge.pop(), None);
        merge.close(2);
        assert_eq!(merge.pop(), Some(10));
        assert_eq!(merge.pop(), Some(20));
        assert_eq!(merge.pop(), None);
        merge.close(1);
        assert_eq!(merge.pop(), Some(40));
        assert!(!merge.is_done());
        merge.close(0);
        assert!(merge.is_done() && merge.pop().is_none());
    }

    #[test]
    fn any_interleaving_of_arrivals_gives_the_order_of_the_log() {
        // A fixed walk through many arrival orders; the lanes hold 300 positions between them.
        let mut seed = 7_u64;
        let mut random = move |bound: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % bound
        };
        for _ in 0..50 {
            let lanes = 1 + random(9);
            let mut rest: Vec<VecDeque<u64>> = vec![VecDeque::new(); lanes as usize];
            for position in 0..300 {
                rest[random(lanes) as usize].push_back(position);
            }
            let mut merge = open_lanes(rest.len(), 20);
            let mut held = vec![false; rest.len()];
            let mut out = Vec::new();
            while !merge.is_done() {
                let lane = random(lanes) as usize;
                if held[lane] {
                    assert!(held.contains(&false), "someone may always run");
                    continue;
                }
                match rest[lane].pop_front() {
                    Some(position) => merge.push(lane, position, 1, position),
                    None => merge.close(lane),
                }
                out.extend(std::iter::from_fn(|| merge.pop()));
                let balance = merge.balance();
                balance.hold.iter().for_each(|&lane| held[lane] = true);
                balance.release.iter().for_each(|&lane| held[lane] = false);
            }
            assert_eq!(out, (0..300).collect::<Vec<_>>());
        }
    }

    #[test]
    fn full_merge_holds_back_all_but_the_lanes_it_awaits() {
        let mut merge = open_lanes(2, 10);
        merge.push(0, 1, 10, ());
        assert_eq!(merge.balance(), Balance { hold: vec![0], release: vec![] });
        assert_eq!(merge.balance(), Balance::default());
        merge.push(1, 2, 1, ());
        merge.close(1);
        assert!(merge.pop().is_some());
        assert_eq!(merge.balance(), Balance { hold: vec![], release: vec![0] });
    }
}
