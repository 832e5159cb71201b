//! The store's model notices bugs that are planted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../fuzz/src/targets/mod.rs"]
pub mod targets;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use longwire_storage::{Plant, plant};

#[test]
fn a_planted_bug_is_caught_by_the_committed_corpus() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/store_model");
    let inputs: Vec<_> = fs::read_dir(dir).unwrap().map(|e| fs::read(e.unwrap().path())).collect();
    for bug in [Plant::AckBeforeSync, Plant::NoDirectorySync, Plant::SyncRetried] {
        plant(Some(bug));
        let caught = inputs.iter().any(|input| {
            let input = input.as_ref().unwrap();
            catch_unwind(|| targets::run("store_model", input)).is_err()
        });
        plant(None);
        assert!(caught, "{bug:?} goes unnoticed");
    }
}
