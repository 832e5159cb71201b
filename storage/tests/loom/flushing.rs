//! Acknowledgements, the flusher's turn, and the end of both.

use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::thread::{self, JoinHandle};

use crate::marks::Marks;
use crate::model;

struct Log {
    marks: Marks,
    tail: Mutex<u64>,
    /// What the disk has; `durable` must never say more.
    synced: AtomicU64,
}

impl Log {
    fn new() -> Arc<Log> {
        let (tail, synced) = (Mutex::new(0), AtomicU64::new(0));
        Arc::new(Log { marks: Marks::new(0, 0), tail, synced })
    }

    fn append(&self) -> u64 {
        let mut tail = self.tail.lock().unwrap();
        *tail += 1;
        self.marks.written.advance(*tail);
        *tail
    }

    /// The flusher's loop, with `sync` for the disk, which can fail.
    fn flusher(self: &Arc<Log>, sync: fn(u64) -> bool) -> JoinHandle<()> {
        let log = self.clone();
        thread::spawn(move || {
            let marks = &log.marks;
            loop {
                let next = marks.durable.get() + 1;
                let work = marks.written.wait(next).and_then(|()| marks.flush_wanted.wait(next));
                if work.is_err() {
                    return;
                }
                let written = marks.written.get();
                if !sync(written) {
                    let reason = marks.poison("the disk failed".into());
                    assert_eq!(&*reason, "the disk failed");
                    return;
                }
                log.synced.store(written, Relaxed);
                marks.durable.advance(written);
            }
        })
    }

    /// Appends and waits for the flush; whether that was acknowledged.
    fn acknowledged(&self) -> bool {
        let end = self.append();
        let flushed = self.marks.flush(end).is_ok();
        assert!(!flushed || self.synced.load(Relaxed) >= end, "acknowledged before the sync");
        flushed
    }
}

#[test]
fn every_append_is_acknowledged_after_its_sync_and_closing_ends_the_flusher() {
    model(|| {
        let log = Log::new();
        let flusher = log.flusher(|_| true);
        let other = thread::spawn({
            let log = log.clone();
            move || log.acknowledged()
        });
        assert!(log.acknowledged());
        assert!(other.join().unwrap());
        log.marks.close(&"closed".into());
        flusher.join().unwrap();
    });
}

#[test]
fn after_a_failed_sync_nobody_is_acknowledged_and_nobody_hangs() {
    model(|| {
        let log = Log::new();
        let flusher = log.flusher(|_| false);
        let other = thread::spawn({
            let log = log.clone();
            move || log.acknowledged()
        });
        let watcher = loom::future::block_on(async {
            let acknowledged = log.acknowledged();
            log.marks.failed.reached(1).await.unwrap();
            acknowledged
        });
        assert!(!watcher && !other.join().unwrap());
        assert_eq!(log.marks.failure().as_deref(), Some("the disk failed"));
        flusher.join().unwrap();
    });
}

#[test]
fn a_store_that_closes_while_others_append_leaves_nobody_waiting() {
    model(|| {
        let log = Log::new();
        let flusher = log.flusher(|_| true);
        let other = thread::spawn({
            let log = log.clone();
            move || log.acknowledged()
        });
        let end = log.marks.written.get();
        log.marks.flush(end).unwrap();
        log.marks.close(&"closed".into());
        other.join().unwrap();
        flusher.join().unwrap();
    });
}
