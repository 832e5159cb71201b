//! Short runs of the classes of `torture` that break a store in memory; and each bug that can be planted
//! is caught by one of them.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;

/// Runs a class; whether every promise held, and its report.
fn torture(arguments: &[&str]) -> (bool, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torture"));
    let output = command.args(arguments).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let last = String::from_utf8_lossy(&output.stdout).lines().last().map(str::to_owned);
    let report = last.and_then(|line| serde_json::from_str(&line).ok());
    let report: Value = report.unwrap_or_else(|| panic!("{arguments:?} gave no report:\n{told}"));
    println!("{report}");
    for line in told.lines().filter(|line| line.contains("(seed ")).take(10) {
        println!("{line}");
    }
    (output.status.success(), report)
}

fn holds(arguments: &[&str]) {
    let (held, report) = torture(arguments);
    assert!(held, "{report}");
    assert_eq!((&report["violations"], &report["lost"]), (&0.into(), &0.into()), "{report}");
    assert!(report["cycles"].as_u64() > Some(0), "{report}");
}

/// A run is of one store or a few, and chance may leave nothing in them that the bug could harm: in up
/// to one run of six.
const RUNS: usize = 5;

fn is_caught(plant: &str, arguments: &[&str]) {
    let arguments = [arguments, &["--plant", plant]].concat();
    let caught = (0..RUNS).any(|_| {
        let (held, report) = torture(&arguments);
        !held && report["violations"].as_u64() > Some(0)
    });
    assert!(caught, "{plant} went unseen: the reports are above");
}

#[test]
fn every_image_a_power_cut_can_leave_recovers_with_all_that_was_acked() {
    holds(&["crash-images", "--images", "1500"]);
}

#[test]
fn nothing_is_acked_after_a_failed_sync_and_nothing_before_it_is_lost() {
    holds(&["sync-errors", "--cycles", "40"]);
}

#[test]
fn every_call_can_fail_with_every_error_and_nothing_acked_is_lost() {
    holds(&["call-errors"]);
}

#[test]
fn a_flipped_bit_is_noticed_or_makes_no_difference() {
    holds(&["bit-flips", "--cycles", "1200"]);
}

#[test]
fn lost_or_garbled_views_are_built_again() {
    holds(&["derived-loss", "--cycles", "2"]);
}

#[test]
fn an_ack_before_its_sync_is_caught() {
    is_caught("ack-before-sync", &["crash-images", "--images", "1000"]);
}

#[test]
fn a_directory_that_is_not_synced_is_caught() {
    is_caught("no-directory-sync", &["crash-images", "--images", "1000"]);
}

#[test]
fn a_sync_that_is_tried_again_is_caught() {
    is_caught("sync-retried", &["sync-errors", "--cycles", "60"]);
}

#[test]
fn a_log_that_is_cut_at_any_damage_is_caught() {
    is_caught("truncate-at-any-damage", &["bit-flips", "--cycles", "2000"]);
}

#[test]
fn a_view_that_is_ahead_of_its_content_is_caught() {
    is_caught("view-ahead", &["derived-loss", "--cycles", "2"]);
}

#[test]
fn a_seed_repeats_the_choices_of_a_run() {
    let flips = |seed: &str| {
        let (held, report) = torture(&["bit-flips", "--cycles", "64", "--seed", seed]);
        assert!(held, "{report}");
        report["log_choices_crc"].as_u64().unwrap()
    };
    assert_eq!(flips("7"), flips("7"));
    assert_ne!(flips("7"), flips("8"));
}
