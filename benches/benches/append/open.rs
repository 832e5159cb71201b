//! At a fixed rate, with latency from when an append was due, and what reaches the device.

use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use longwire_benches::histogram;
use longwire_storage::AppendPath;

use crate::case::{Open, append, encode, store};
use crate::device::Written;

/// A sleep may take so much longer than asked.
const SLEEP_SLACK: Duration = Duration::from_micros(100);

/// What one run has shown.
pub(crate) struct Outcome {
    pub(crate) latency: Histogram<u64>,
    /// Bytes written to the device for each byte of log, as [`crate::device::method`] says.
    pub(crate) device_bytes_per_byte: Option<f64>,
    /// The same as the kernel accounts to this process.
    pub(crate) process_bytes_per_byte: Option<f64>,
}

/// Appends for so long. An append that cannot begin in time is late, and its wait counts.
pub(crate) fn run(dir: &Path, path: AppendPath, case: &Open, time: Duration) -> Outcome {
    let (store, queues) = store(dir, path, case.durability, 1);
    let (queue, body, mut records) = (&queues[0], vec![b'x'; case.body_bytes], Vec::new());
    for _ in 0..10 {
        encode(&mut records, queue, &body, 1);
        append(&store, queue, case.durability, &mut records);
    }
    let written = Written::settled(dir);
    let appended = store.stats().bytes_appended;
    let interval = Duration::from_secs(1) / case.rate;
    let (mut latency, start) = (histogram(), Instant::now());
    for number in 0.. {
        let due = start + interval * number;
        if due - start >= time {
            break;
        }
        encode(&mut records, queue, &body, 1);
        wait_until(due);
        append(&store, queue, case.durability, &mut records);
        latency.record(due.elapsed().as_nanos() as u64).unwrap();
    }
    let appended = store.stats().bytes_appended - appended;
    store.close().unwrap();
    let written = Written::settled(dir).since(&written);
    let per_byte = |bytes: u64| bytes as f64 / appended as f64;
    Outcome {
        latency,
        device_bytes_per_byte: written.device.map(per_byte),
        process_bytes_per_byte: written.process.map(per_byte),
    }
}

/// Sleeps while there is much time left, and spins for the rest.
fn wait_until(due: Instant) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        match left.checked_sub(SLEEP_SLACK) {
            Some(sleep) if !sleep.is_zero() => std::thread::sleep(sleep),
            _ => std::hint::spin_loop(),
        }
    }
}
