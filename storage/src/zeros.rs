//! Blocks ahead of the tail that have been written before, so that small syncs are short.
//!
//! Into a segment that is reserved but was never written, every sync also commits the file system's
//! journal, because it turns reserved blocks into written ones. So while small syncs follow one
//! another closely, zeros are written a bounded way ahead of the tail, and brought to the device by
//! the supply's thread, off the flusher's way.
//!
//! ```text
//!  |-- records ----|-- zeros, written once --|-- reserved, never written --|
//!                tail                 at most AHEAD_BYTES
//! ```
//!
//! The device then writes these bytes twice. Large syncs, where that would cost more than it saves,
//! never ask for it.
//!
//! Zeros never meet a record: the appender writes them itself, with its lock held and above its tail.
//! No position depends on them; where they are missing, a sync takes longer.

use std::time::{Duration, Instant};

/// What the file system writes at least.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// How far ahead of the tail: tens of milliseconds of small syncs at full speed.
pub(crate) const AHEAD_BYTES: u64 = 8 << 20;
/// What is brought to the device at a time. Less would commit the journal more often.
pub(crate) const STEP_BYTES: u64 = 1 << 20;
/// What is written at a time with the appender's lock held: about 15 us.
pub(crate) const PIECE_BYTES: u64 = 64 << 10;

/// Syncs of no more than this take longer for the journal than for the bytes.
const SMALL_SYNC_BYTES: u64 = 256 << 10;
/// Syncs that begin so soon after the one before belong to the same rush.
const RUSH_PAUSE_MAX: Duration = Duration::from_millis(2);
/// After so many of them in a row it is worth the while.
const RUSH_SYNCS: u32 = 32;

static ZEROS: [u8; PIECE_BYTES as usize] = [0; PIECE_BYTES as usize];

/// Zeros for the bytes between two positions that are no further apart than a few pieces.
pub(crate) fn pieces(from: u64, to: u64) -> impl Iterator<Item = (u64, &'static [u8])> {
    let starts = (from..to).step_by(PIECE_BYTES as usize);
    starts.map(move |at| (at, &ZEROS[..PIECE_BYTES.min(to - at) as usize]))
}

/// Tells a rush of small syncs.
#[derive(Debug, Default)]
pub(crate) struct Rush {
    syncs: u32,
    ended: Option<Instant>,
}

impl Rush {
    /// A sync of so many bytes began and ended then; `true` while there is a rush.
    pub(crate) fn synced(&mut self, bytes: u64, began: Instant, ended: Instant) -> bool {
        let soon = |last| began.saturating_duration_since(last) <= RUSH_PAUSE_MAX;
        let goes_on = bytes <= SMALL_SYNC_BYTES && self.ended.is_some_and(soon);
        self.syncs = if goes_on { self.syncs.saturating_add(1) } else { 0 };
        self.ended = Some(ended);
        self.syncs >= RUSH_SYNCS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_syncs_close_to_one_another_are_a_rush() {
        let now = Instant::now();
        let at = |us: u64| now + Duration::from_micros(us);
        let rush_of = |bytes: u64, pause: u64| {
            let mut rush = Rush::default();
            let syncs = (0..100).map(|i| (at(i * (pause + 100)), at(i * (pause + 100) + 100)));
            syncs.map(|(began, ended)| rush.synced(bytes, began, ended)).collect::<Vec<_>>()
        };
        let rush = rush_of(40_000, 50);
        assert_eq!(rush.iter().position(|rushes| *rushes), Some(RUSH_SYNCS as usize));
        assert!(rush[RUSH_SYNCS as usize..].iter().all(|rushes| *rushes));
        assert!(!rush_of(1 << 20, 50).contains(&true), "large syncs");
        assert!(!rush_of(40_000, 10_000).contains(&true), "a slow trickle");
    }

    #[test]
    fn pieces_cover_exactly_what_is_asked_for() {
        let covered: Vec<_> = pieces(4096, 4096 + 150_000).map(|(at, z)| (at, z.len())).collect();
        assert_eq!(covered, [(4096, 65_536), (69_632, 65_536), (135_168, 18_928)]);
        assert_eq!(pieces(10, 10).count(), 0);
    }
}
