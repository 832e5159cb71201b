//! Both ways of writing a segment, in process: `cargo bench --bench append`.
//!
//! Decides the default of `storage.append_path`. Arms alternate within a run; figures are medians
//! over the rounds. `--quick` runs less. Beside the table it writes
//! `target/longwire-bench/append.json`.
#![allow(clippy::unwrap_used, missing_docs)]

mod case;
mod closed;
mod device;
mod open;
mod report;

use std::path::Path;
use std::time::Duration;

use longwire_benches::conditions_line;
use longwire_storage::AppendPath;
use longwire_tests::bare_write::bare_write;

use case::{Closed, Open};
use report::Report;

const PATHS: [AppendPath; 2] = [AppendPath::Mapped, AppendPath::Pwrite];

/// How much is run.
struct Extent {
    rounds: usize,
    closed_time: Duration,
    open_time: Duration,
    threads: &'static [usize],
    /// Written and removed before each run, so that the host has found the memory for it.
    found_bytes: u64,
}

const FULL: Extent = Extent {
    rounds: 3,
    closed_time: Duration::from_millis(500),
    open_time: Duration::from_secs(3),
    threads: &[1, 2, 4, 8],
    found_bytes: 5 << 28,
};
const QUICK: Extent = Extent {
    rounds: 1,
    closed_time: Duration::from_millis(60),
    open_time: Duration::from_millis(300),
    threads: &[1, 8],
    found_bytes: 64 << 20,
};

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let extent = if quick { QUICK } else { FULL };
    let dir = tempfile::tempdir_in(".").unwrap();
    let mut report = Report::new(conditions_line(dir.path()), extent.rounds);

    report.closed_header();
    for case in Closed::all(extent.threads) {
        let runs = alternating(&extent, dir.path(), |dir, path| {
            closed::run(dir, path, &case, extent.closed_time)
        });
        report.closed(&case, runs);
    }
    report.open_header(&device::method(dir.path()));
    for case in Open::ALL {
        let runs = alternating(&extent, dir.path(), |dir, path| {
            open::run(dir, path, &case, extent.open_time)
        });
        report.open(&case, runs);
    }
    report.write();
}

/// The runs of each path, one after another within each round, each in a folder of its own.
fn alternating<T>(
    extent: &Extent,
    dir: &Path,
    run: impl Fn(&Path, AppendPath) -> T,
) -> [(AppendPath, Vec<T>); 2] {
    let mut runs = PATHS.map(|path| (path, Vec::new()));
    for _ in 0..extent.rounds {
        for (path, runs) in &mut runs {
            let folder = tempfile::tempdir_in(dir).unwrap();
            bare_write(folder.path(), extent.found_bytes);
            runs.push(run(folder.path(), *path));
        }
    }
    runs
}
