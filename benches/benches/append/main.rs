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

use longwire_benches::conditions;
use longwire_storage::AppendPath;

use case::{Closed, Open};
use report::Report;

const PATHS: [AppendPath; 2] = [AppendPath::Mapped, AppendPath::Pwrite];

/// How much is run.
struct Extent {
    rounds: usize,
    closed_time: Duration,
    open_time: Duration,
    threads: &'static [usize],
}

const FULL: Extent = Extent {
    rounds: 3,
    closed_time: Duration::from_millis(500),
    open_time: Duration::from_secs(3),
    threads: &[1, 2, 4, 8],
};
const QUICK: Extent = Extent {
    rounds: 1,
    closed_time: Duration::from_millis(60),
    open_time: Duration::from_millis(300),
    threads: &[1, 8],
};

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let extent = if quick { QUICK } else { FULL };
    let dir = tempfile::tempdir_in(".").unwrap();
    let mut report = Report::new(conditions(dir.path()), extent.rounds);

    report.closed_header();
    for case in Closed::all(extent.threads) {
        let runs = alternating(extent.rounds, dir.path(), |dir, path| {
            closed::run(dir, path, &case, extent.closed_time)
        });
        report.closed(&case, runs);
    }
    report.open_header(&device::method(dir.path()));
    for case in Open::ALL {
        let runs = alternating(extent.rounds, dir.path(), |dir, path| {
            open::run(dir, path, &case, extent.open_time)
        });
        report.open(&case, runs);
    }
    report.write();
}

/// The runs of each path, one after another within each round, each in a folder of its own.
fn alternating<T>(
    rounds: usize,
    dir: &Path,
    run: impl Fn(&Path, AppendPath) -> T,
) -> [(AppendPath, Vec<T>); 2] {
    let mut runs = PATHS.map(|path| (path, Vec::new()));
    for _ in 0..rounds {
        for (path, runs) in &mut runs {
            let folder = tempfile::tempdir_in(dir).unwrap();
            runs.push(run(folder.path(), *path));
        }
    }
    runs
}
