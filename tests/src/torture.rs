//! The `torture` binary: one subcommand for each way of breaking a broker or its store.
//!
//! Each class is a file below `torture/` with a function from [`Options`] to a [`Report`]; `CLASSES`
//! lists them. A class counts what it did, says every violation on standard error as it is found, and
//! leaves nothing behind.

mod clock;
mod committer;
mod disk_full;
mod healthy_pair;
mod kill;
mod power_cut;
mod scene;
mod slow_peers;
mod stop;
mod store;
mod torn_pages;
mod witness;

use std::time::{Duration, Instant};

use longwire_storage::Plant;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::binary::broker_binary;
use crate::broker_process::{BrokerCommand, BrokerProcess};
use crate::history::{Problems, Verified};

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How many cycles, images or faults; `None`: the class's short run.
    pub count: Option<u64>,
    /// Gives a run's choices.
    pub seed: u64,
    /// The bug to be planted.
    pub plant: Option<Plant>,
    /// Persist random subsets of unsynced pages before each power cut.
    pub torn: bool,
    /// Every fault there is in one part of the store, where a class can go through them all.
    pub all: bool,
    /// The file system, where a class makes one: `ext4`, `xfs` or `tmpfs`; `None`: each in turn.
    pub file_system: Option<String>,
}

/// How a class went: one line of JSON.
#[derive(Debug, Clone)]
pub struct Report {
    class: &'static str,
    began: Instant,
    seed: u64,
    /// Cycles, images or faults that were tried.
    pub cycles: u64,
    /// Messages that were acknowledged.
    pub acked: u64,
    /// Acknowledged messages that were not there afterwards.
    pub lost: u64,
    /// Messages that were there more often than their outcome allows.
    pub duplicated: u64,
    /// Messages out of their order.
    pub misordered: u64,
    /// Broken promises of any kind, the above among them.
    pub violations: u64,
    /// Why the class, or a part of it, could not be run.
    pub skipped: Option<String>,
    /// Figures of this class alone, by name.
    pub figures: serde_json::Map<String, Value>,
}

impl Report {
    /// A report of a run that begins now.
    pub fn new(class: &'static str, options: &Options) -> Report {
        Report {
            class,
            began: Instant::now(),
            seed: options.seed,
            cycles: 0,
            acked: 0,
            lost: 0,
            duplicated: 0,
            misordered: 0,
            violations: 0,
            skipped: None,
            figures: serde_json::Map::new(),
        }
    }

    /// Counts a broken promise, and says which.
    pub fn violation(&mut self, what: impl std::fmt::Display) {
        self.violations += 1;
        eprintln!("{} (seed {}, cycle {}): {what}", self.class, self.seed, self.cycles);
    }

    /// Counts what holding a history against the log came to, and says what was wrong. Whether
    /// nothing was.
    pub fn count(&mut self, (verified, problems): (Verified, Problems)) -> bool {
        self.acked += verified.acked as u64;
        self.count_problems(&problems);
        problems.count() == 0
    }

    /// Counts and says what is wrong.
    pub fn count_problems(&mut self, problems: &Problems) {
        self.lost += problems.lost;
        self.duplicated += problems.duplicated;
        self.misordered += problems.misordered;
        if problems.count() > 0 {
            self.violation(problems);
            self.violations += problems.count() - 1;
        }
    }

    /// Says why the class, or a part of it, is not run here.
    pub fn skip(&mut self, reason: impl std::fmt::Display) {
        let reasons = self.skipped.take().map_or_else(String::new, |before| before + "; ");
        self.skipped = Some(format!("{reasons}{reason}"));
    }

    /// Adds a figure of this class.
    pub fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// How long the run has taken so far.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The line of JSON a run ends with.
    pub fn line(&self) -> String {
        let mut line = json!({
            "class": self.class,
            "cycles": self.cycles,
            "acked": self.acked,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "misordered": self.misordered,
            "violations": self.violations,
            "seconds": (self.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            "seed": self.seed,
            "skipped": self.skipped,
        });
        if let Value::Object(line) = &mut line {
            line.extend(self.figures.clone());
        }
        line.to_string()
    }
}

/// A way of breaking things.
#[derive(Debug)]
pub struct Class {
    /// Its name on the command line.
    pub name: &'static str,
    run: fn(&Options) -> Report,
    starts_brokers: bool,
}

impl Class {
    const fn of_brokers(name: &'static str, run: fn(&Options) -> Report) -> Class {
        Class { name, run, starts_brokers: true }
    }

    const fn of_stores(name: &'static str, run: fn(&Options) -> Report) -> Class {
        Class { name, run, starts_brokers: false }
    }

    /// The class of that name.
    pub fn find(name: &str) -> Option<&'static Class> {
        CLASSES.iter().find(|class| class.name == name)
    }

    /// Breaks things. The broker's binary is there before the run's clock starts.
    pub fn run(&self, options: &Options) -> Report {
        // One with a bug planted is another binary.
        if self.starts_brokers && options.plant.is_none() {
            broker_binary();
        }
        (self.run)(options)
    }
}

/// Every class.
pub const CLASSES: &[Class] = &[
    Class::of_brokers("kill", kill::run),
    Class::of_brokers("power-cut", power_cut::run),
    Class::of_brokers("disk-full", disk_full::run),
    Class::of_brokers("stop", stop::run),
    Class::of_brokers("clock", clock::run),
    Class::of_brokers("slow-peers", slow_peers::run),
    Class::of_stores("crash-images", store::crash_images::run),
    Class::of_stores("sync-errors", store::sync_errors::run),
    Class::of_stores("call-errors", store::call_errors::run),
    Class::of_stores("bit-flips", store::bit_flips::run),
    Class::of_stores("derived-loss", store::derived_loss::run),
];

/// Far longer than anything takes here: it only keeps a broken broker from hanging a run.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the clients of a class run on.
fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

/// Starts a broker that has to start.
fn start(command: &BrokerCommand) -> Result<BrokerProcess, String> {
    command.try_start().map_err(|refused| refused.to_string())
}
