//! SIGSTOP for seconds, then SIGCONT, under load: as a machine that hangs, or a virtual one that moves.

use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;

use super::committer::{Offsets, committed_offsets};
use super::scene::{GROUP, Scene};
use super::{Options, PATIENCE, Report, runtime};
use crate::broker_process::BrokerCommand;

const SHORT_RUN: u64 = 5;
/// Milliseconds a broker stands still.
const STOPPED_MS: std::ops::Range<u64> = 1_000..4_000;
/// How soon it has to go on.
const GOES_ON_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn run(options: &Options) -> Report {
    let mut report = Report::new("stop", options);
    if let Err(problem) = runtime().block_on(stops(options, &mut report)) {
        report.violation(problem);
    }
    report
}

async fn stops(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut rng = Rng::with_seed(options.seed);
    let append_path = if rng.bool() { "pwrite" } else { "mapped" };
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let command = BrokerCommand::new(folder.path())
        .plant(options.plant)
        .set("storage.segment_bytes=4MiB")
        .set(format!("storage.append_path={append_path}"))
        .set("storage.checkpoint_interval=200ms");
    let scene = Scene::start(command, false, Duration::from_millis(1)).await?;
    // One member for all of it: nobody is thrown out for what the broker did not hear.
    let committer = scene.committer(Offsets::new()).await?;
    let mut slowest = Duration::ZERO;
    for _ in 0..options.count.unwrap_or(SHORT_RUN) {
        report.cycles += 1;
        scene.acks(rng.usize(50..500), PATIENCE).await?;
        committer.commits(1).await?;
        scene.broker.signal(Signal::STOP);
        tokio::time::sleep(Duration::from_millis(rng.u64(STOPPED_MS))).await;
        scene.broker.signal(Signal::CONT);
        let went_on = Instant::now();
        scene.acks(50, GOES_ON_WITHIN).await?;
        committer.commits(1).await?;
        slowest = slowest.max(went_on.elapsed());
    }
    let commits = committer.stop().await?;
    let committed = committed_offsets(&scene.client, GROUP).await?;
    commits.problems(&committed).iter().for_each(|problem| report.violation(problem));
    let (again, _) = scene.finish(report).await?;
    report.figure("slowest_to_go_on_ms", slowest.as_millis() as u64);
    report.figure("consumed_again", again);
    Ok(())
}
