//! What each fuzz target does with its bytes. A body panics where something does not hold.
//!
//! libFuzzer calls these (`fuzz/run`), and so does `tests/suites/fuzz_corpus.rs` with the committed
//! corpus, on any toolchain.

mod checkpoint;
mod configuration;
mod consume_queue;
mod frame;
mod input;
mod produce;
mod record;
mod segment_scan;
mod store_model;
mod views;

/// A target's body.
pub type Target = fn(&[u8]);

/// All targets, by the names of their binaries and corpora.
pub const TARGETS: [(&str, Target); 9] = [
    ("checkpoint", checkpoint::run),
    ("configuration", configuration::run),
    ("consume_queue", consume_queue::run),
    ("frame", frame::run),
    ("produce", produce::run),
    ("record", record::run),
    ("segment_scan", segment_scan::run),
    ("store_model", store_model::run),
    ("views", views::run),
];

/// Runs the target of a name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("a target of that name").1(data);
}
