//! Short runs of the classes of `torture` that break real broker processes. The long runs are commands:
//! see the binary.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use longwire_storage::Plant;
use longwire_tests::torture::{Class, Options, Report};

fn run(class: &str, options: Options) -> Report {
    let report = Class::find(class).expect("a class of that name").run(&options);
    println!("{}", report.line());
    if let Some(reason) = &report.skipped {
        longwire_tests::skip(reason);
    }
    report
}

fn options(count: u64) -> Options {
    Options { count: Some(count), seed: longwire_tests::random(), ..Options::default() }
}

/// Whether the class cannot be run here at all.
fn is_skipped(report: &Report) -> bool {
    report.cycles == 0 && report.skipped.is_some()
}

/// Every promise holds, in all cycles that were asked for.
fn holds(class: &str, options: Options) {
    let cycles = options.count;
    let report = run(class, options);
    assert_eq!(report.violations, 0);
    assert!(Some(report.cycles) == cycles || is_skipped(&report), "{}", report.line());
}

fn power_cut(file_system: &str, torn: bool) -> Options {
    Options { torn, file_system: Some(file_system.to_owned()), ..options(6) }
}

#[test]
fn what_was_acked_survives_every_kill() {
    holds("kill", options(8));
}

#[test]
fn what_was_flushed_survives_power_cuts_on_ext4() {
    holds("power-cut", power_cut("ext4", false));
}

#[test]
fn what_was_flushed_survives_power_cuts_on_xfs() {
    holds("power-cut", power_cut("xfs", false));
}

#[test]
fn what_was_flushed_survives_torn_and_reordered_pages_on_ext4() {
    holds("power-cut", power_cut("ext4", true));
}

#[test]
fn what_was_flushed_survives_torn_and_reordered_pages_on_xfs() {
    holds("power-cut", power_cut("xfs", true));
}

#[test]
fn an_ack_before_the_sync_is_caught_by_power_cuts() {
    let file_system = Some("ext4".to_owned());
    let planted = Options { plant: Some(Plant::AckBeforeSync), file_system, ..options(50) };
    let report = run("power-cut", planted);
    assert!(report.violations > 0 || is_skipped(&report), "{}", report.line());
}

#[test]
fn views_ahead_of_their_content_are_caught_by_kills() {
    let planted = Options { plant: Some(Plant::ViewAhead), ..options(50) };
    assert!(run("kill", planted).violations > 0);
}

#[test]
fn full_disks_end_no_broker_and_lose_nothing_on_ext4() {
    holds("disk-full", Options { file_system: Some("ext4".to_owned()), ..options(4) });
}

#[test]
fn full_disks_end_no_broker_and_lose_nothing_in_memory() {
    holds("disk-full", Options { file_system: Some("tmpfs".to_owned()), ..options(4) });
}

#[test]
fn a_broker_that_stood_still_goes_on_and_has_lost_nothing() {
    holds("stop", options(2));
}

#[test]
fn clocks_that_jump_lose_nothing_and_delete_nothing_at_once() {
    holds("clock", options(1));
}

#[test]
fn slow_and_vanished_peers_cost_little_and_go() {
    holds("slow-peers", options(1));
}

/// Runs no cycle of a class, from a folder without a broker, where what builds one fails.
fn without_a_broker(class: &str) -> Output {
    let torture = Path::new(env!("CARGO_BIN_EXE_torture"));
    let profile = torture.parent().expect("a file is in a folder");
    let target = tempfile::tempdir_in(profile).expect("a folder");
    let there = target.path().join("debug").join("torture");
    fs::create_dir(there.with_file_name("")).expect("a folder");
    fs::hard_link(torture, &there).expect("another name for the binary");
    let mut command = Command::new(there);
    command.args([class, "--cycles", "0"]).env_remove("LONGWIRE_TEST_BROKER").env("CARGO", "false");
    command.output().expect("torture can be started")
}

#[test]
fn the_broker_is_built_before_a_run_that_needs_it_and_this_is_said() {
    let (needs_it, does_not) = (without_a_broker("kill"), without_a_broker("derived-loss"));
    let said = String::from_utf8_lossy(&needs_it.stderr);
    assert!(said.starts_with("building longwire-broker") && !needs_it.status.success(), "{said}");
    let said = String::from_utf8_lossy(&does_not.stderr);
    assert!(said.is_empty() && does_not.status.success(), "{said}");
}
