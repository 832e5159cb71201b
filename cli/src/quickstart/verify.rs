//! Decides whether what came back is what was sent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::output::{count, grouped};

/// Problems that are spelled out; one damaged queue could otherwise fill the screen.
const PROBLEMS_MAX: usize = 10;

/// A running hash over the lines of one queue, in order, each with its length.
#[derive(Debug, Clone, Default)]
pub(super) struct Chain {
    hash: Sha256,
    pub(super) lines: u64,
    pub(super) bytes: u64,
}

impl Chain {
    pub(super) fn add(&mut self, line: &[u8]) {
        // With its length, so that no other way of cutting the same bytes gives the same hash.
        self.hash.update((line.len() as u64).to_le_bytes());
        self.hash.update(line);
        self.lines += 1;
        self.bytes += line.len() as u64;
    }

    fn digest(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }
}

/// What has been received of each queue. Shared by the members of the group.
#[derive(Debug)]
pub(super) struct Receipts {
    queues: Vec<Mutex<Chain>>,
    lines: AtomicU64,
    duplicates: AtomicU64,
    /// How many lines there are to receive, once that is known.
    expected: AtomicU64,
    problems: Mutex<Vec<String>>,
    /// Everything has come, or nothing can be right any more.
    pub(super) done: CancellationToken,
}

impl Receipts {
    pub(super) fn new(queues: u32) -> Receipts {
        Receipts {
            queues: (0..queues).map(|_| Mutex::default()).collect(),
            lines: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            expected: AtomicU64::new(u64::MAX),
            problems: Mutex::default(),
            done: CancellationToken::new(),
        }
    }

    /// Takes in a line. One that was there already, as after a queue has changed hands, counts as
    /// repeated; one that comes too early means that another is missing.
    pub(super) fn add(&self, queue: u32, offset: u64, line: &[u8]) {
        let Some(chain) = self.queues.get(queue as usize) else {
            return self.fail(format!("a message came from queue {queue}, which does not exist"));
        };
        let mut chain = chain.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < chain.lines {
            self.duplicates.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if offset > chain.lines {
            let next = chain.lines;
            drop(chain);
            return self.fail(format!("queue {queue}: offset {offset} came where {next} was next"));
        }
        chain.add(line);
        drop(chain);
        self.lines.fetch_add(1, Ordering::SeqCst);
        self.check_complete();
    }

    /// How many different lines have come.
    pub(super) fn lines(&self) -> u64 {
        self.lines.load(Ordering::SeqCst)
    }

    pub(super) fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }

    /// Says how many lines there are in all.
    pub(super) fn expect(&self, lines: u64) {
        self.expected.store(lines, Ordering::SeqCst);
        self.check_complete();
    }

    /// Records that something is wrong.
    pub(super) fn note(&self, problem: String) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.len() < PROBLEMS_MAX {
            problems.push(problem);
        }
    }

    /// The same, and ends the waiting.
    pub(super) fn fail(&self, problem: String) {
        self.note(problem);
        self.done.cancel();
    }

    fn check_complete(&self) {
        // The last line and the number of lines come in any order; whoever is later sees both.
        if self.lines() >= self.expected.load(Ordering::SeqCst) {
            self.done.cancel();
        }
    }

    /// Everything that is wrong, given what was sent to each queue and the offset each ended at.
    pub(super) fn problems(&self, sent: &[Chain], ends: &[u64]) -> Vec<String> {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (queue, (sent, received)) in sent.iter().zip(&self.queues).enumerate() {
            let received = received.lock().unwrap_or_else(PoisonError::into_inner);
            let end = ends.get(queue).copied().unwrap_or_default();
            if sent.lines != received.lines {
                problems.push(format!(
                    "queue {queue}: sent {}, received {}",
                    count(sent.lines, "line"),
                    grouped(received.lines)
                ));
            } else if sent.digest() != received.digest() {
                problems.push(format!("queue {queue}: what came back differs from what was sent"));
            } else if end != sent.lines {
                problems.push(format!(
                    "queue {queue}: sent {}, stored {}",
                    count(sent.lines, "line"),
                    grouped(end)
                ));
            }
        }
        problems.truncate(PROBLEMS_MAX);
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(lines: &[&[u8]]) -> Chain {
        let mut chain = Chain::default();
        lines.iter().for_each(|line| chain.add(line));
        chain
    }

    #[test]
    fn same_lines_in_order_verify_even_if_some_come_twice() {
        let receipts = Receipts::new(2);
        receipts.add(0, 0, b"a");
        receipts.expect(3);
        receipts.add(0, 1, b"");
        receipts.add(0, 0, b"a");
        assert!(!receipts.done.is_cancelled());
        receipts.add(1, 0, b"c");
        assert!(receipts.done.is_cancelled());
        assert_eq!(receipts.duplicates(), 1);
        assert_eq!(receipts.problems(&[sent(&[b"a", b""]), sent(&[b"c"])], &[2, 1]), [""; 0]);
    }

    #[test]
    fn anything_missing_changed_cut_otherwise_or_stored_twice_does_not_verify() {
        let received = |lines: &[(u64, &[u8])]| {
            let receipts = Receipts::new(1);
            lines.iter().for_each(|(offset, line)| receipts.add(0, *offset, line));
            receipts
        };
        let good = sent(&[b"ab", b"c"]);
        let ok = received(&[(0, b"ab"), (1, b"c")]);
        assert!(ok.problems(std::slice::from_ref(&good), &[2]).is_empty());
        assert!(!ok.problems(std::slice::from_ref(&good), &[3]).is_empty(), "stored twice");
        for lines in [
            &[(0, &b"ab"[..])][..],
            &[(0, b"ab"), (1, b"d")],
            &[(0, b"a"), (1, b"bc")],
            &[(0, b"c"), (1, b"ab")],
            &[(0, b"ab"), (2, b"c")],
        ] {
            let problems = received(lines).problems(std::slice::from_ref(&good), &[2]);
            assert!(!problems.is_empty(), "{lines:?}");
        }
        let gap = received(&[(1, b"x")]);
        assert!(gap.done.is_cancelled(), "nobody waits for what cannot come");
    }
}
