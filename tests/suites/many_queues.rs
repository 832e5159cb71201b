//! Thousands of queues in one broker take little memory, few descriptors, and a short restart.
//!
//! `LONGWIRE_QUEUES` says how many (2,000 if not set). The comparison with few queues is the binary
//! `many-queues`.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use longwire_tests::many_queues::Run;

const DESCRIPTORS_MAX: usize = 600;
const ANONYMOUS_MIB_MAX: f64 = 250.0;
/// The promise is 2 s; a build without optimisation on a busy machine gets more.
const RESTART_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_queues_are_produced_to_and_consumed_within_bounds() {
    let queues = std::env::var("LONGWIRE_QUEUES").ok().and_then(|queues| queues.parse().ok());
    let queues: u32 = queues.unwrap_or(2_000);
    let run = Run { queues, messages_per_queue: 15, body_bytes: 256 };
    let folder = tempfile::tempdir().unwrap();
    let outcome = run.go(folder.path()).await;
    println!("{run:?}: {outcome:?}");
    assert!(outcome.descriptors < DESCRIPTORS_MAX, "{} descriptors", outcome.descriptors);
    assert!(outcome.anonymous_mib < ANONYMOUS_MIB_MAX, "{} MiB", outcome.anonymous_mib);
    assert!(outcome.restart < RESTART_MAX, "{:?}", outcome.restart);
    assert!(outcome.restart_after_kill < RESTART_MAX, "{:?}", outcome.restart_after_kill);
}
