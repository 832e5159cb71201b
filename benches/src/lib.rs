//! What the benchmarks share: conditions to print, CPU time, figures.
//!
//! A benchmark of Longwire alternates its arms within one run, prints the conditions it ran under,
//! and gives percentiles and CPU time. It never fails on a figure.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::Histogram;

/// The conditions of the system that decide what figures mean, by name.
pub fn conditions(dir: &Path) -> [(&'static str, String); 6] {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("?");
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    [
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("cores", cores.to_string()),
        ("processor", model.trim_start_matches([' ', '\t', ':']).to_owned()),
        ("file system", file_system(dir)),
        ("read-ahead", read_ahead(dir)),
        ("congestion control", read("/proc/sys/net/ipv4/tcp_congestion_control")),
    ]
}

/// The [`conditions`] as a line to print.
pub fn conditions_line(dir: &Path) -> String {
    conditions(dir).map(|(name, value)| format!("{name} {value}")).join(" | ")
}

/// The name of the file system a folder is on.
fn file_system(dir: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let of = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (at, kind) = (fields.next()?, fields.next()?);
        dir.starts_with(at).then(|| (at.len(), kind.to_owned()))
    };
    let longest = mounts.lines().filter_map(of).max_by_key(|(length, _)| *length);
    longest.map_or_else(|| "?".into(), |(_, kind)| kind)
}

/// How much the kernel reads ahead from the device a folder is on.
fn read_ahead(dir: &Path) -> String {
    let Some(device) = block_device(dir) else { return "unknown, on no block device".into() };
    let of = |queue| fs::read_to_string(device.join(queue).join("read_ahead_kb"));
    // A partition has none of its own.
    let kib = of("queue").or_else(|_| of("../queue"));
    kib.map_or_else(|_| "?".into(), |kib| format!("{} KiB", kib.trim()))
}

/// What the kernel tells of the block device a folder is on; `None` if it is on none.
pub fn block_device(dir: &Path) -> Option<PathBuf> {
    let device = fs::metadata(dir).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (major != 0).then(|| format!("/sys/dev/block/{major}:{minor}").into())
}

/// CPU time this process has used, in user and kernel mode.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    // Neither can be negative: both count from the start of the process.
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// p50, p99 and p99.9 of latencies recorded in nanoseconds, in microseconds.
pub fn percentiles_us(histogram: &Histogram<u64>) -> [f64; 3] {
    [0.5, 0.99, 0.999].map(|q| histogram.value_at_quantile(q) as f64 / 1e3)
}

/// An empty histogram for latencies in nanoseconds.
pub fn histogram() -> Histogram<u64> {
    // Three digits of any value; such a histogram can always be made.
    Histogram::new(3).unwrap_or_else(|_| unreachable!("3 significant digits are allowed"))
}

/// The middle one of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
