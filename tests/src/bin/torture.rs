//! Breaks a broker, or its store, in one of many ways, and sees whether its promises hold.
//!
//! `cargo run --release -p longwire-tests --bin torture -- CLASS [OPTIONS]`
//!
//! Ends with one line of JSON on standard output. Exit status: 0 every promise held, 1 one did not,
//! 64 usage.

use std::process::ExitCode;

use clap::Parser;
use longwire_storage::{Plant, plant};
use longwire_tests::planted_broker;
use longwire_tests::torture::{CLASSES, Class, Options, Report};

/// Break a broker or its store, and see whether its promises hold.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to break.
    #[arg(value_parser = class_names())]
    class: String,
    /// How many cycles, images or faults; the class's short run if not given.
    #[arg(long, visible_alias = "images", value_name = "N")]
    cycles: Option<u64>,
    /// Repeats the choices of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
    /// A bug to plant first: the run should then fail.
    #[arg(long, value_name = "NAME", value_parser = plant_names())]
    plant: Option<String>,
    /// Persist random subsets of unsynced pages before each power cut.
    #[arg(long)]
    torn: bool,
    /// Flip every bit of one whole segment (bit-flips only).
    #[arg(long, conflicts_with = "cycles")]
    all: bool,
    /// The file system to make; each that the class knows, in turn, if not given.
    #[arg(long, value_name = "NAME", value_parser = ["ext4", "xfs", "tmpfs"])]
    fs: Option<String>,
}

fn class_names() -> Vec<&'static str> {
    CLASSES.iter().map(|class| class.name).collect()
}

fn plant_names() -> Vec<&'static str> {
    Plant::ALL.iter().map(|(name, _)| *name).collect()
}

fn main() -> ExitCode {
    if let Some(status) = planted_broker::run_if_asked(std::env::args().skip(1)) {
        return status;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done where not even that can be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let bug = arguments
        .plant
        .and_then(|name| Plant::ALL.iter().find(|(known, _)| *known == name).map(|(_, bug)| *bug));
    plant(bug);
    let options = Options {
        count: arguments.cycles,
        seed: arguments.seed.unwrap_or_else(longwire_tests::random),
        plant: bug,
        torn: arguments.torn,
        all: arguments.all,
        file_system: arguments.fs,
    };
    let Some(class) = Class::find(&arguments.class) else {
        return ExitCode::from(64);
    };
    // What breaks the class itself proves nothing, and must not look as if it did.
    let report = std::panic::catch_unwind(|| class.run(&options)).unwrap_or_else(|_| {
        let mut report = Report::new(class.name, &options);
        report.violation("the run has panicked, and what it had counted is lost");
        report
    });
    println!("{}", report.line());
    ExitCode::from(u8::from(report.violations > 0))
}
