//! As fast as it goes.

use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use longwire_benches::{cpu_time, histogram};
use longwire_storage::{AppendPath, Queue, Store};

use crate::case::{Closed, append, encode, store};

/// A run ends early after so many bytes, so that a fast one does not fill the disk.
const BYTES_MAX: usize = 1 << 30;
const WARM_UP: Duration = Duration::from_millis(30);

/// What one run has shown.
pub(crate) struct Outcome {
    pub(crate) bytes: f64,
    pub(crate) appends: f64,
    pub(crate) time: Duration,
    pub(crate) cpu: Duration,
    pub(crate) latency: Histogram<u64>,
}

/// Appends for so long. The encoding is part of the time and the CPU time, not of the latency.
pub(crate) fn run(dir: &Path, path: AppendPath, case: &Closed, time: Duration) -> Outcome {
    let (store, queues) = store(dir, path, case.durability, case.threads);
    appends(&store, &queues[0], case, WARM_UP);
    let (began, cpu) = (Instant::now(), cpu_time());
    let mut latency = histogram();
    std::thread::scope(|scope| {
        let spawn = |queue| {
            let store = &store;
            scope.spawn(move || appends(store, queue, case, time))
        };
        let threads: Vec<_> = queues.iter().map(|queue| spawn(queue)).collect();
        threads.into_iter().for_each(|thread| latency.add(thread.join().unwrap()).unwrap());
    });
    let appends = latency.len() as f64;
    let outcome = Outcome {
        bytes: appends * (case.batch * case.body_bytes) as f64,
        appends,
        time: began.elapsed(),
        cpu: cpu_time() - cpu,
        latency,
    };
    store.close().unwrap();
    outcome
}

/// One thread's appends.
fn appends(store: &Store, queue: &Queue, case: &Closed, time: Duration) -> Histogram<u64> {
    let (body, mut records) = (vec![b'x'; case.body_bytes], Vec::new());
    let most = (BYTES_MAX / (case.threads * case.batch * case.body_bytes)).max(1) as u64;
    let (mut latency, began) = (histogram(), Instant::now());
    while latency.is_empty() || (began.elapsed() < time && latency.len() < most) {
        encode(&mut records, queue, &body, case.batch);
        let began = Instant::now();
        append(store, queue, case.durability, &mut records);
        latency.record(began.elapsed().as_nanos() as u64).unwrap();
    }
    latency
}
