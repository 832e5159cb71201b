//! How much memory the process takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);

/// Peaks, in KiB; `None` where the system does not say (it is Linux's `/proc/self/status`).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MemoryPeaks {
    /// Memory that is not file mappings.
    pub(super) anonymous_kib: Option<u64>,
    /// With the parts of mapped files that were in memory.
    pub(super) resident_kib: Option<u64>,
}

/// Looks at the process's memory while it runs: the kernel keeps a peak of the whole, in which
/// the mapped log is counted, but none of the part that is not mapped.
#[derive(Debug)]
pub(super) struct MemoryWatch {
    peak_kib: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MemoryWatch {
    pub(super) fn start() -> MemoryWatch {
        let (peak_kib, stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (peak, stop) = (Arc::clone(&peak_kib), Arc::clone(&stopped));
        let watch = move || {
            while !stop.load(Ordering::Relaxed) && sample(&peak) {
                std::thread::park_timeout(SAMPLE_INTERVAL);
            }
        };
        let thread = std::thread::Builder::new().name("memory".to_owned()).spawn(watch).ok();
        MemoryWatch { peak_kib, stopped, thread }
    }

    pub(super) fn stop(self) -> MemoryPeaks {
        sample(&self.peak_kib);
        let peak = self.peak_kib.load(Ordering::Relaxed);
        MemoryPeaks {
            anonymous_kib: (peak > 0).then_some(peak),
            resident_kib: status_kib("VmHWM:"),
        }
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It only reads a file.
            let _ = thread.join();
        }
    }
}

/// False where there is nothing to be read.
fn sample(peak_kib: &AtomicU64) -> bool {
    match status_kib("RssAnon:") {
        Some(kib) => {
            peak_kib.fetch_max(kib, Ordering::Relaxed);
            true
        }
        None => false,
    }
}

fn status_kib(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn peak_is_remembered_after_the_memory_is_gone() {
        let watch = MemoryWatch::start();
        let before = status_kib("RssAnon:").unwrap();
        let block = vec![1_u8; 64 << 20];
        sample(&watch.peak_kib);
        assert_eq!(block[block.len() / 2], 1);
        drop(block);
        let peaks = watch.stop();
        assert!(peaks.anonymous_kib.unwrap() >= before / 2 + (60 << 10));
        assert!(peaks.resident_kib.unwrap() >= 60 << 10);
    }
}
