//! What the clients cost.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

/// CPU time this process has used, in user and kernel mode; `None` where the system does not say.
#[cfg(target_os = "linux")]
fn cpu_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
    Some(Duration::new(seconds, nanos))
}

#[cfg(not(target_os = "linux"))]
fn cpu_time() -> Option<Duration> {
    None
}

/// Measures the CPU time of this process from an instant on.
#[derive(Debug)]
pub(super) struct CpuMeter {
    start: Instant,
    at_start: JoinHandle<Option<Duration>>,
}

impl CpuMeter {
    pub(super) fn starting_at(start: Instant) -> CpuMeter {
        // What takes less time than it takes to start a task has its cost too.
        let at_once = (start <= Instant::now()).then(cpu_time);
        let at_start = async move {
            if let Some(time) = at_once {
                return time;
            }
            tokio::time::sleep_until(start.into()).await;
            cpu_time()
        };
        CpuMeter { start, at_start: tokio::spawn(at_start) }
    }

    /// What has been used since then, in seconds; nothing before then.
    pub(super) async fn used_seconds(self) -> Option<f64> {
        let now = cpu_time()?;
        if Instant::now() < self.start {
            self.at_start.abort();
            return Some(0.0);
        }
        let at_start = self.at_start.await.ok()??;
        Some(now.saturating_sub(at_start).as_secs_f64())
    }
}
