//! kill -9 of the broker under load, some times again while it recovers.

use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;

use super::committer::{Offsets, committed_offsets};
use super::scene::{GROUP, Scene};
use super::{Options, PATIENCE, Report, runtime, start};
use crate::broker_process::{Addresses, BrokerCommand};

const SHORT_RUN: u64 = 10;
/// Kills of one store, after which the whole of it is verified.
const ROUND: u64 = 25;
/// What a restart after kill -9 may take, where the broker is built for use.
const READY_MAX: Duration = Duration::from_secs(2);

pub(super) fn run(options: &Options) -> Report {
    let mut report = Report::new("kill", options);
    let mut rng = Rng::with_seed(options.seed);
    let cycles = options.count.unwrap_or(SHORT_RUN);
    let mut figures = Figures::default();
    while report.cycles < cycles {
        let kills = ROUND.min(cycles - report.cycles);
        let round = round(kills, options, rng.fork(), &mut report, &mut figures);
        if let Err(problem) = runtime().block_on(round) {
            report.violation(problem);
            break;
        }
    }
    report.figure("slowest_restart_ms", figures.slowest.as_millis() as u64);
    report.figure("consumed_again", figures.consumed_again);
    report
}

#[derive(Debug, Default)]
struct Figures {
    slowest: Duration,
    consumed_again: u64,
}

/// Some kills of one store.
async fn round(
    kills: u64,
    options: &Options,
    mut rng: Rng,
    report: &mut Report,
    figures: &mut Figures,
) -> Result<(), String> {
    let append_path = if rng.bool() { "pwrite" } else { "mapped" };
    let segment_mib = rng.u32(1..=4);
    // Also at `write`: what is in the page cache does not go with the process.
    let at_write = rng.u8(..3) == 0;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let command = BrokerCommand::new(folder.path())
        .on(Addresses::fixed())
        .plant(options.plant)
        .set(format!("storage.segment_bytes={segment_mib}MiB"))
        .set(format!("storage.append_path={append_path}"))
        .set("storage.checkpoint_interval=200ms")
        .set("storage.checkpoint_bytes=1MiB");
    let mut scene = Scene::start(command, at_write, Duration::ZERO).await?;
    let mut committed = Offsets::new();
    for _ in 0..kills {
        report.cycles += 1;
        let committer = scene.committer(committed.clone()).await?;
        scene.acks(rng.usize(300..3_000), PATIENCE).await?;
        committer.commits(1).await?;
        tokio::time::sleep(Duration::from_micros(rng.u64(..5_000))).await;
        scene.broker.signal(Signal::KILL);
        scene.broker.wait();
        let commits = committer.stop().await?;
        if rng.u8(..4) == 0 {
            // Somewhere in its recovery, or right behind it.
            scene.command().kill_after(Duration::from_millis(rng.u64(..40)));
        }
        scene.broker = start(scene.command())?;
        check_start(report, scene.broker.ready_after, &scene.broker.log());
        figures.slowest = figures.slowest.max(scene.broker.ready_after);
        committed = committed_offsets(&scene.client, GROUP).await?;
        commits.problems(&committed).iter().for_each(|problem| report.violation(problem));
    }
    let (again, _) = scene.finish(report).await?;
    figures.consumed_again += again;
    Ok(())
}

fn check_start(report: &mut Report, took: Duration, log: &str) {
    if took > READY_MAX && !cfg!(debug_assertions) {
        report.violation(format!("a restart took {took:?}:\n{log}"));
    }
    // What is derived from the log is not built anew for every kill.
    if log.contains("building") {
        report.violation(format!("views were built again:\n{log}"));
    }
}
