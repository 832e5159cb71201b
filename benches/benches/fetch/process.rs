//! What a process has used so far, by the kernel's own counters.

use std::fs;
use std::io;
use std::time::Duration;

/// The sums over a process's threads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    /// Time on a processor (`schedstat` of every thread), in nanoseconds.
    pub(crate) cpu_ns: u64,
    /// How often a thread went to sleep.
    pub(crate) voluntary: u64,
    /// How often a thread was made to give way.
    pub(crate) involuntary: u64,
    pub(crate) minor_faults: u64,
    pub(crate) major_faults: u64,
    /// Bytes that came from the disk for it.
    pub(crate) disk_bytes: u64,
}

impl Counters {
    pub(crate) fn of(pid: u32) -> io::Result<Counters> {
        let mut sum = Counters::default();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let folder = task?.path();
            // A thread may end while it is looked at.
            let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
            sum.cpu_ns += field(&read("schedstat"), "");
            let status = read("status");
            sum.voluntary += field(&status, "voluntary_ctxt_switches:");
            sum.involuntary += field(&status, "nonvoluntary_ctxt_switches:");
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let number = |i: usize| fields.get(i).and_then(|f| f.parse().ok()).unwrap_or(0);
        (sum.minor_faults, sum.major_faults) = (number(7), number(9));
        // Only the owner may read it.
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        sum.disk_bytes = field(&io, "read_bytes:");
        Ok(sum)
    }

    pub(crate) fn since(self, before: Counters) -> Counters {
        Counters {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            voluntary: self.voluntary.saturating_sub(before.voluntary),
            involuntary: self.involuntary.saturating_sub(before.involuntary),
            minor_faults: self.minor_faults.saturating_sub(before.minor_faults),
            major_faults: self.major_faults.saturating_sub(before.major_faults),
            disk_bytes: self.disk_bytes.saturating_sub(before.disk_bytes),
        }
    }
}

/// Time the calling thread has been on a processor.
pub(crate) fn thread_cpu() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

/// The number behind `name` on the first line that begins so; 0 where there is none.
fn field(text: &str, name: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
