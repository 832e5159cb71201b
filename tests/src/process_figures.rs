//! What a process takes of the machine, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

/// A moment's figures of one process.
#[derive(Debug, Clone)]
pub struct ProcessFigures {
    /// Resident memory that is not file mappings.
    pub anonymous_bytes: u64,
    /// Open file descriptors.
    pub descriptors: usize,
    /// What each thread has spent since it began; by its number and its name.
    pub threads: BTreeMap<(u32, String), Spent>,
}

/// What was spent of the processors.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// Time on a processor.
    pub cpu: Duration,
    /// How often a thread went to sleep, and so was or will be woken.
    pub wakes: u64,
}

impl ProcessFigures {
    /// Of a process, by its id.
    pub fn of(pid: u32) -> io::Result<ProcessFigures> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let id = task?.file_name();
            // A thread may end while it is looked at.
            if let Some(id) = id.to_str().and_then(|id| id.parse().ok())
                && let Ok(name) = fs::read_to_string(format!("/proc/{pid}/task/{id}/comm"))
                && let Ok(spent) = Spent::by_thread(pid, id)
            {
                threads.insert((id, name.trim().to_owned()), spent);
            }
        }
        Ok(ProcessFigures {
            anonymous_bytes: field(&status, "RssAnon:")? * 1024,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads,
        })
    }

    /// [`anonymous_bytes`](Self::anonymous_bytes) in MiB.
    pub fn anonymous_mib(&self) -> f64 {
        self.anonymous_bytes as f64 / f64::from(1 << 20)
    }

    /// What each thread that there is now has spent since an earlier moment, by its name.
    pub fn spent_since(&self, before: &ProcessFigures) -> Vec<(&str, Spent)> {
        let mut spent = Vec::with_capacity(self.threads.len());
        for (thread, now) in &self.threads {
            let then = before.threads.get(thread).copied().unwrap_or_default();
            let cpu = now.cpu.saturating_sub(then.cpu);
            let wakes = now.wakes.saturating_sub(then.wakes);
            spent.push((&*thread.1, Spent { cpu, wakes }));
        }
        spent
    }
}

impl Spent {
    fn by_thread(pid: u32, thread: u32) -> io::Result<Spent> {
        let folder = format!("/proc/{pid}/task/{thread}");
        // Nanoseconds on a processor, nanoseconds of waiting for one, turns.
        let turns = fs::read_to_string(format!("{folder}/schedstat"))?;
        let status = fs::read_to_string(format!("{folder}/status"))?;
        Ok(Spent {
            cpu: Duration::from_nanos(field(&turns, "")?),
            wakes: field(&status, "voluntary_ctxt_switches:")?,
        })
    }
}

/// The number behind `name` on the first line that begins so.
fn field(text: &str, name: &str) -> io::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {name} there")))
}
