//! Counts what a process does, without slowing down what is timed: in a run of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A system call is entered.
pub(crate) const SYSCALLS: &str = "raw_syscalls:sys_enter";
/// The page cache is asked for the pages of a read, `sendfile` or `splice`; some 15 folios at a time.
pub(crate) const LOOKUPS: &str = "filemap:mm_filemap_get_pages";
/// Pages of the page cache are put into a page table, up to 16 at a time.
pub(crate) const MAPPINGS: &str = "filemap:mm_filemap_map_pages";
/// A page fault in a mapped file.
pub(crate) const FAULTS: &str = "filemap:mm_filemap_fault";
/// A thread gives up its processor or is made to.
pub(crate) const SWITCHES: &str = "context-switches";

/// How events are counted on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// `perf stat` on tracepoints.
    Perf,
    /// `strace -c`: system calls only, and they become slow.
    Strace,
    /// There is neither, or no right to use it.
    None,
}

impl Method {
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Method::Perf => "perf stat -e raw_syscalls:sys_enter on all threads of the broker",
            Method::Strace => "strace -c -f on the broker",
            Method::None => "not counted: neither perf nor strace may be used here",
        }
    }

    /// Tries them on this process.
    pub(crate) fn choose(scratch: &Path) -> Method {
        let works = |method: Method| {
            let counted = method.count(std::process::id(), &[SYSCALLS], scratch, || {
                fs::metadata(scratch).map(drop)
            });
            matches!(counted, Ok((_, Some(ref counts))) if counts[0] > 0.0)
        };
        if works(Method::Perf) {
            return Method::Perf;
        }
        // strace cannot trace the process that waits for it.
        let strace = Command::new("strace").args(["-c", "-o", "/dev/null", "true"]).status();
        if strace.is_ok_and(|status| status.success()) { Method::Strace } else { Method::None }
    }

    /// Runs `work`; how often each event came in the process meanwhile, where that can be told.
    pub(crate) fn count<T>(
        self,
        pid: u32,
        events: &[&str],
        scratch: &Path,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<(T, Option<Vec<f64>>)> {
        match self {
            Method::Perf => perf(pid, events, scratch, work),
            Method::Strace if events == [SYSCALLS] => strace(pid, scratch, work),
            _ => Ok((work()?, None)),
        }
    }
}

/// perf is told over one pipe when to begin and to end, and says over another that it has.
fn perf<T>(
    pid: u32,
    events: &[&str],
    scratch: &Path,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<(T, Option<Vec<f64>>)> {
    let [orders, answers, output] = ["orders", "answers", "counts"].map(|name| scratch.join(name));
    for pipe in [&orders, &answers] {
        let _ = fs::remove_file(pipe);
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, pipe, rustix::fs::FileType::Fifo, mode, 0)?;
    }
    let open = |path| OpenOptions::new().read(true).write(true).open(path);
    let mut to_perf = open(&orders)?;
    let from_perf = open(&answers)?;
    rustix::io::ioctl_fionbio(&from_perf, true)?;
    let control = format!("fifo:{},{}", orders.display(), answers.display());
    let mut command = Command::new("perf");
    command.args(["stat", "-D", "-1", "-x", ",", "--control", &control]);
    command.args(["-e", &events.join(","), "-p", &pid.to_string(), "-o"]).arg(&output);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut perf = command.spawn()?;
    let ready = order(&mut perf, &mut to_perf, &from_perf, "enable\n")?;
    let done = work();
    if ready {
        order(&mut perf, &mut to_perf, &from_perf, "disable\n")?;
    }
    end(&mut perf);
    let text = fs::read_to_string(&output).unwrap_or_default();
    let value = |event: &&str| {
        let line = text.lines().find(|line| line.contains(*event))?;
        line.split(',').next()?.parse().ok()
    };
    let counts = events.iter().map(value).collect::<Option<Vec<f64>>>();
    Ok((done?, counts.filter(|_| ready)))
}

/// Whether perf did what it was told; `false` once it has ended.
fn order(perf: &mut Child, to: &mut File, from: &File, order: &str) -> io::Result<bool> {
    to.write_all(order.as_bytes())?;
    let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    loop {
        let mut fds = [rustix::event::PollFd::new(from, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut fds, Some(&moment))? > 0 {
            let mut answer = [0; 16];
            rustix::io::read(from, &mut answer)?;
            return Ok(true);
        }
        if perf.try_wait()?.is_some() {
            return Ok(false);
        }
    }
}

fn strace<T>(
    pid: u32,
    scratch: &Path,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<(T, Option<Vec<f64>>)> {
    let output = scratch.join("calls");
    let mut command = Command::new("strace");
    command.args(["-c", "-f", "-p", &pid.to_string(), "-o"]).arg(&output);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut strace = command.spawn()?;
    let mut first = String::new();
    let mut messages = BufReader::new(strace.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?);
    messages.read_line(&mut first)?;
    let done = work();
    end(&mut strace);
    let text = fs::read_to_string(&output).unwrap_or_default();
    // "100.00    0.003210           3      1024        12 total"
    let total = text.lines().find(|line| line.ends_with(" total"));
    let calls = total.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    Ok((done?, calls.filter(|_| first.contains("attached")).map(|calls| vec![calls])))
}

fn end(child: &mut Child) {
    let _ = kill_process(Pid::from_child(child), Signal::INT);
    let _ = child.wait();
}
