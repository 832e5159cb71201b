//! Every way a fetch can leave a real broker process, over loopback: `cargo bench --bench fetch`.
//!
//! `--help` says what it takes and what it leaves.
#![allow(clippy::unwrap_used, missing_docs)]

mod answer;
mod cell;
mod check;
mod client;
mod copies;
mod events;
mod html;
mod matrix;
mod measure;
mod one_record;
mod parked;
mod pinning;
mod plot;
mod process;
mod produced;
mod reference;
mod report;
mod store;
mod verdicts;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use cell::{Cell, Cells};
use events::Method;
use matrix::{Arm, Case};
use measure::Plan;
use pinning::Pinning;
use report::Run;
use store::ArmBroker;

/// Of every connection, the broker's and the bare servers'. BBR, the default of some systems, paces
/// loopback and makes `sendfile` several times slower.
const CONGESTION_CONTROL: &str = "cubic";

const USAGE: &str = "\
Every way a fetch can leave a real broker process, over loopback

Usage: cargo bench --bench fetch -- [OPTIONS]

  --quick          Fewer and shorter cases
  --copy           Clients copy what they receive instead of dropping it in the kernel
  --only TEXT      Only cases whose description contains it; marks then lack figures
  --set KEY=VALUE  A setting for every broker
  --save           Also write docs/benchmarks/fetch.md and docs/images/fetch.svg

The report goes to target/longwire-bench: fetch.html, fetch.md, fetch.svg (its main plot), fetch.json
(one object per cell) and fetch-run.json (conditions, references, marks).
It fails where the report is not complete, never on a figure.";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fetch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let has = |flag: &str| env::args().any(|arg| arg == flag);
    if has("--help") || has("-h") {
        println!("{USAGE}");
        return Ok(());
    }
    longwire_tests::binary::build_broker();
    let quick = has("--quick");
    let began = Instant::now();
    let folder = target_folder().join("longwire-bench");
    fs::create_dir_all(&folder)?;
    let scratch = tempfile::tempdir_in(&folder)?;
    let plan = Plan {
        sizes: if quick { store::QUICK } else { store::FULL },
        rounds: if quick { 2 } else { 5 },
        moment: Duration::from_millis(if quick { 60 } else { 400 }),
        copy: has("--copy"),
        pinning: Pinning::choose(),
        method: Method::choose(scratch.path()),
        scratch: scratch.path(),
    };
    let mut cases = if quick { matrix::quick() } else { matrix::full() };
    let only = value_of("--only");
    if let Some(only) = &only {
        cases.retain(|case| case.describe().contains(only));
    }
    let conditions = conditions(&plan, &folder);
    for (name, value) in &conditions {
        println!("{name}: {value}");
    }
    println!("making the log, and a copy for each of {} arms", Arm::ALL.len());
    let setting = value_of("--set");
    let mut arms = store::prepare(scratch.path(), &plan.sizes, setting.as_deref(), !quick)?;
    println!("brokers start, after {:.0} s", began.elapsed().as_secs_f64());
    plan.warm(&mut arms)?;
    let (segment, mut references) = (first_segment(&arms[0])?, Vec::new());
    let copies = copies::measure(&plan, &mut arms)?;
    println!("copies counted, after {:.0} s", began.elapsed().as_secs_f64());
    let mut cells = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        // The bare servers take turns with the arms they are held against.
        let compared = [matrix::STREAM, matrix::NEWEST].contains(case);
        let measured = plan.case(&mut arms, case, || {
            if compared || references.is_empty() {
                references.push(reference::round(&plan, &segment)?);
            }
            Ok(())
        })?;
        print_case(number + 1, cases.len(), case, &measured);
        cells.extend(measured);
    }
    let reference = reference::middle(&references);
    let parked = parked::measure(&plan, &mut arms[0])?;
    let produced = produced::measure(&plan, &mut arms)?;
    let echo_beside = reference::echo_beside(&plan, &mut arms[0])?;
    drop(arms);

    let verdicts = verdicts::verdicts(Cells(&cells), &reference, &parked, &produced, &echo_beside);
    let run = Run { conditions, reference, parked, produced, echo_beside, copies, verdicts };
    write(&folder, &run, &cells)?;
    if only.is_none() {
        check::check(&folder, &cases).map_err(io::Error::other)?;
    }
    if has("--save") {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        for (name, into) in [("fetch.svg", "images"), ("fetch.md", "benchmarks")] {
            fs::create_dir_all(docs.join(into))?;
            fs::copy(folder.join(name), docs.join(into).join(name))?;
        }
    }
    conclude(&run, &cells);
    println!(
        "\n{}, after {:.0} s",
        folder.join("fetch.html").display(),
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// What stands behind a flag.
fn value_of(flag: &str) -> Option<String> {
    env::args().skip_while(|arg| arg != flag).nth(1)
}

/// What the figures depend on.
fn conditions(plan: &Plan<'_>, folder: &Path) -> Vec<(String, String)> {
    // The system's congestion control is not the run's.
    let of_system = longwire_benches::conditions(folder)
        .into_iter()
        .filter(|(name, _)| *name != "congestion control");
    let bodies = if plan.copy { "copied" } else { "dropped in the kernel (MSG_TRUNC)" };
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let sizes = plan.sizes;
    let mib = sizes.contiguous + sizes.ten + sizes.mixed + sizes.thousand + sizes.tail;
    let more = [
        ("congestion control", format!("{CONGESTION_CONTROL}, set on every listener")),
        ("broker", broker_version()),
        ("pinning", plan.pinning.describe()),
        ("rounds", format!("{} of {} ms, the arms in turn", plan.rounds, plan.moment.as_millis())),
        ("log", format!("{mib} MiB of records of {} bytes", store::RECORD_BYTES)),
        ("page cache", "hot: fetched before; cold: broker stopped, evicted, started".into()),
        ("bodies at the client", bodies.into()),
        ("system calls", plan.method.describe().into()),
        ("setting of every broker", value_of("--set").unwrap_or_else(|| "none".into())),
        ("load average at the start", load.split(' ').next().unwrap_or("?").into()),
    ];
    of_system.chain(more).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn broker_version() -> String {
    let output = Command::new(longwire_tests::binary::broker_binary()).arg("--version").output();
    output.map_or("?".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The folder that cargo builds into, above the profile's and that of this program.
fn target_folder() -> PathBuf {
    let program = env::current_exe().unwrap();
    program.ancestors().nth(3).unwrap().to_owned()
}

fn first_segment(broker: &ArmBroker) -> io::Result<PathBuf> {
    let mut segments: Vec<PathBuf> = fs::read_dir(broker.folder().join("commitlog"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    segments.sort();
    segments.into_iter().next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn print_case(number: usize, of: usize, case: &Case, cells: &[Cell]) {
    println!("{number}/{of} {}", case.describe());
    for cell in cells {
        println!(
            "  {:9} p50 {:8.1}  p99 {:8.1} us  {:6.0} MB/s  {:7.0} ms/GB  {:8.1} us/fetch  {} calls",
            cell.arm.name(),
            cell.p50_us,
            cell.p99_us,
            cell.mb_per_s,
            cell.cpu_ms_per_gb,
            cell.cpu_us_per_fetch,
            cell.syscalls_per_fetch.map_or("-".into(), |calls| format!("{calls:.1}")),
        );
    }
}

fn write(folder: &Path, run: &Run, cells: &[Cell]) -> io::Result<()> {
    let all = Cells(cells);
    // One object a line.
    let lines: Result<Vec<String>, _> = cells.iter().map(serde_json::to_string).collect();
    fs::write(folder.join("fetch.json"), format!("[\n{}\n]\n", lines?.join(",\n")))?;
    fs::write(folder.join("fetch-run.json"), serde_json::to_string_pretty(run)?)?;
    fs::write(folder.join("fetch.md"), report::markdown(run, all))?;
    fs::write(folder.join("fetch.html"), html::html(run, all))?;
    fs::write(folder.join("fetch.svg"), report::main_plot(all).svg(true) + "\n")
}

fn conclude(run: &Run, cells: &[Cell]) {
    for table in report::tables(run, Cells(cells)).iter().take(3) {
        println!("\n{}", table.title);
        for row in &table.rows {
            println!("  {}", row.join(" | "));
        }
    }
    println!("\nWhen is which path better?");
    for sentence in answer::answer(Cells(cells)) {
        println!("  {sentence}");
    }
}
