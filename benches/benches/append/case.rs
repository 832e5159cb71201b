//! What is appended, and how.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use longwire_proto::record::RecordDraft;
use longwire_storage::{AppendPath, Durability, Queue, RecordRun, Store, StoreConfig, TopicConfig};

const SIZES: [usize; 4] = [100, 1 << 10, 16 << 10, 1 << 20];

/// Threads that append as fast as they are acknowledged.
pub(crate) struct Closed {
    pub(crate) durability: Durability,
    pub(crate) body_bytes: usize,
    /// Records of one append.
    pub(crate) batch: usize,
    pub(crate) threads: usize,
}

impl Closed {
    /// Every size with these numbers of threads, and what batches and many waiters do.
    pub(crate) fn all(threads: &[usize]) -> Vec<Closed> {
        let mut cases = Vec::new();
        for durability in [Durability::Write, Durability::Flush] {
            for body_bytes in SIZES {
                for &threads in threads {
                    cases.push(Closed { durability, body_bytes, batch: 1, threads });
                }
            }
        }
        let more = [
            (Durability::Write, 1000, 1),
            (Durability::Flush, 1000, 2),
            (Durability::Flush, 1, 64),
        ];
        cases.extend(more.map(|(durability, batch, threads)| Closed {
            durability,
            body_bytes: 1 << 10,
            batch,
            threads,
        }));
        cases
    }
}

/// One thread that appends records at a fixed rate.
pub(crate) struct Open {
    pub(crate) durability: Durability,
    pub(crate) body_bytes: usize,
    /// Records a second.
    pub(crate) rate: u32,
}

impl Open {
    pub(crate) const ALL: [Open; 4] = [
        Open { durability: Durability::Write, body_bytes: 1 << 10, rate: 20_000 },
        Open { durability: Durability::Write, body_bytes: 16 << 10, rate: 2_000 },
        Open { durability: Durability::Flush, body_bytes: 1 << 10, rate: 1_000 },
        Open { durability: Durability::Flush, body_bytes: 16 << 10, rate: 500 },
    ];
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Closed { durability, body_bytes, batch, threads } = self;
        let (durability, size) = (durability_name(*durability), size(*body_bytes));
        write!(f, "{durability}, {size} x {batch}, {threads} thr")
    }
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Open { durability, body_bytes, rate } = self;
        write!(f, "{}, {}, {rate}/s", durability_name(*durability), size(*body_bytes))
    }
}

pub(crate) fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Write => "write",
        Durability::Flush => "flush",
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        1_048_576.. => format!("{} MiB", bytes >> 20),
        1_024.. => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

/// A store with a topic that has a queue for each thread.
pub(crate) fn store(
    dir: &Path,
    path: AppendPath,
    durability: Durability,
    queues: usize,
) -> (Arc<Store>, Vec<Arc<Queue>>) {
    let config = StoreConfig { append_path: path, ..StoreConfig::new(dir) };
    let store = Store::open(config).unwrap();
    let topic = TopicConfig { durability, ..TopicConfig::new("t", queues as u32) };
    let queues = store.create_topic(topic).unwrap().queues();
    (store, queues)
}

/// Encodes an append's records, in place of what was there.
pub(crate) fn encode(records: &mut Vec<u8>, queue: &Queue, body: &[u8], batch: usize) {
    records.clear();
    for _ in 0..batch {
        RecordDraft { topic: "t", queue: queue.id(), body, ..Default::default() }
            .encode(records)
            .unwrap();
    }
}

/// Appends records and waits for their acknowledgement.
pub(crate) fn append(store: &Store, queue: &Queue, durability: Durability, records: &mut [u8]) {
    let mut run = RecordRun::check("t", queue.id(), records).unwrap();
    let end = store.append_blocking(queue, &mut run).unwrap().last().unwrap().end;
    if durability == Durability::Flush {
        store.flushed_blocking(end).unwrap();
    }
}
