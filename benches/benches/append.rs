//! Both ways of writing a segment, in process: `cargo bench --bench append`.
//!
//! Decides the default of `storage.append_path`. Arms alternate within a run; figures are medians
//! over the rounds. `--quick` runs less.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use longwire_benches::{conditions, cpu_time, histogram, median, percentiles_us};
use longwire_proto::record::RecordDraft;
use longwire_storage::{AppendPath, Durability, Queue, RecordRun, Store, StoreConfig, TopicConfig};

const PATHS: [AppendPath; 2] = [AppendPath::Mapped, AppendPath::Pwrite];

struct Case {
    name: &'static str,
    durability: Durability,
    body_bytes: usize,
    batch: usize,
    threads: usize,
    /// How many runs each thread appends, at full length.
    runs: usize,
}

const CASES: [Case; 6] = [
    Case {
        name: "write, 1 KiB x 1000",
        durability: Durability::Write,
        body_bytes: 1024,
        batch: 1000,
        threads: 1,
        runs: 1000,
    },
    Case {
        name: "write, 1 KiB x 1",
        durability: Durability::Write,
        body_bytes: 1024,
        batch: 1,
        threads: 1,
        runs: 200_000,
    },
    Case {
        name: "write, 1 KiB x 1, 4 threads",
        durability: Durability::Write,
        body_bytes: 1024,
        batch: 1,
        threads: 4,
        runs: 50_000,
    },
    Case {
        name: "flush, 1 KiB x 1",
        durability: Durability::Flush,
        body_bytes: 1024,
        batch: 1,
        threads: 1,
        runs: 1_000,
    },
    Case {
        name: "flush, 1 KiB x 1, 64 threads",
        durability: Durability::Flush,
        body_bytes: 1024,
        batch: 1,
        threads: 64,
        runs: 100,
    },
    Case {
        name: "flush, 1 KiB x 1000, 2 threads",
        durability: Durability::Flush,
        body_bytes: 1024,
        batch: 1000,
        threads: 2,
        runs: 200,
    },
];

#[derive(Default)]
struct Figures {
    mb_per_s: Vec<f64>,
    cpu_ms_per_gb: Vec<f64>,
    latency_us: [Vec<f64>; 3],
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let (rounds, share) = if quick { (1, 20) } else { (3, 1) };
    let dir = tempfile::tempdir_in(".").unwrap();
    println!("append: {} | rounds {rounds}", conditions(dir.path()));
    println!(
        "{:32} {:7} {:>9} {:>12} {:>9} {:>9} {:>9}",
        "case", "path", "MB/s", "CPU ms/GB", "p50 us", "p99 us", "p99.9 us"
    );
    for case in &CASES {
        let mut figures: [Figures; 2] = Default::default();
        for _ in 0..rounds {
            for (path, figures) in PATHS.iter().zip(&mut figures) {
                let runs = (case.runs / share).max(10);
                run(dir.path(), *path, case, runs, figures);
            }
        }
        for (path, figures) in PATHS.iter().zip(figures) {
            let [p50, p99, p999] = figures.latency_us.map(median);
            println!(
                "{:32} {:7} {:9.0} {:12.0} {p50:9.1} {p99:9.1} {p999:9.1}",
                case.name,
                format!("{path:?}").to_lowercase(),
                median(figures.mb_per_s),
                median(figures.cpu_ms_per_gb),
            );
        }
    }
}

fn run(dir: &std::path::Path, path: AppendPath, case: &Case, runs: usize, figures: &mut Figures) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let store =
        Store::open(StoreConfig { append_path: path, ..StoreConfig::new(dir.path()) }).unwrap();
    let config =
        TopicConfig { durability: case.durability, ..TopicConfig::new("t", case.threads as u32) };
    let queues = store.create_topic(config).unwrap().queues();
    let warm = Instant::now() + Duration::from_millis(100);
    while Instant::now() < warm {
        append(&store, &queues[0], case);
    }
    let (began, cpu) = (Instant::now(), cpu_time());
    let mut all = histogram();
    std::thread::scope(|scope| {
        let threads: Vec<_> = queues
            .iter()
            .map(|queue| {
                let store = &store;
                scope.spawn(move || {
                    let mut latency = histogram();
                    for _ in 0..runs {
                        latency.record(append(store, queue, case).as_nanos() as u64).unwrap();
                    }
                    latency
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| all.add(thread.join().unwrap()).unwrap());
    });
    let bytes = (runs * case.batch * case.body_bytes * case.threads) as f64;
    figures.mb_per_s.push(bytes / 1e6 / began.elapsed().as_secs_f64());
    figures.cpu_ms_per_gb.push((cpu_time() - cpu).as_secs_f64() * 1e3 / (bytes / 1e9));
    for (all, now) in figures.latency_us.iter_mut().zip(percentiles_us(&all)) {
        all.push(now);
    }
    store.close().unwrap();
}

/// Appends one run and waits for its acknowledgement; the encoding before it does not count.
fn append(store: &Store, queue: &Queue, case: &Case) -> Duration {
    let body = vec![b'x'; case.body_bytes];
    let mut bytes = Vec::new();
    for _ in 0..case.batch {
        RecordDraft { topic: "t", queue: queue.id(), body: &body, ..Default::default() }
            .encode(&mut bytes)
            .unwrap();
    }
    let began = Instant::now();
    let mut run = RecordRun::check("t", queue.id(), &mut bytes).unwrap();
    let end = store.append_blocking(queue, &mut run).unwrap().last().unwrap().end;
    if case.durability == Durability::Flush {
        store.flushed_blocking(end).unwrap();
    }
    began.elapsed()
}
