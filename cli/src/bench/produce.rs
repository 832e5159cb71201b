//! `longwire bench produce`.

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::cpu::CpuMeter;
use super::load::Ready;
use super::progress::Progress;
use super::record::Record;
use super::report::{Percentiles, Report};
use super::target::Target;
use super::{FileArgs, LengthArgs, LoadArgs, TopicArgs, conclude, files::Files};
use crate::Global;
use crate::error::Failure;
use crate::interrupt;

/// How fast messages are stored, and how long that takes
///
/// With --rate messages are sent by a schedule that does not wait for the broker (an open loop), and
/// the latency of each counts from the time it was meant to be sent: what a stall holds up is
/// late, and counts as late. Without --rate each client keeps --in-flight messages on their way
/// (a closed loop): that finds the highest throughput, but latency then includes the queueing.
#[derive(Debug, Args)]
pub(crate) struct ProduceArgs {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    length: LengthArgs,
    #[command(flatten)]
    topic: TopicArgs,
    #[command(flatten)]
    files: FileArgs,
}

/// Runs the command.
pub(super) async fn run(global: &Global, args: ProduceArgs) -> Result<(), Failure> {
    let interrupted = interrupt::token();
    let files = Files::open(&args.files)?;
    let target = Target::open(global, &args.topic, &interrupted).await?;
    let outcome = Box::pin(measure(global, &args, &target, &interrupted)).await;
    target.close(global, &interrupted).await;
    let (report, record) = outcome?;
    conclude(global, report, record, files, &interrupted)
}

async fn measure(
    global: &Global,
    args: &ProduceArgs,
    target: &Target,
    interrupted: &CancellationToken,
) -> Result<(Report, Record), Failure> {
    let stop = interrupted.child_token();
    let ready = interrupt::race(interrupted, Ready::connect(&args.load, target)).await?;
    let plan = args.length.plan(&args.load);
    let measured_from = plan.measured_from();
    let cpu = CpuMeter::starting_at(measured_from);
    let load = ready.start(&args.load, target, plan, None, &stop);
    let progress = Progress::start(global.quiet, "producing", load.recorders.clone());
    let sent = load.finish(&stop).await?;
    drop(progress);
    let cpu = cpu.used_seconds().await;

    let mut report = Report::begun("produce", target, args.load.clients, Some(&args.load));
    report.warmup_seconds = args.length.warmup().as_secs_f64();
    let took = sent.record.last.map_or_else(Default::default, |last| last - measured_from);
    report.measured(&sent.record, took);
    report.latency_of = args.load.latency_of("the acknowledgement");
    report.send_delay_us = args.load.rate.map(|_| Percentiles::of(&sent.delays));
    report.client_cpu_seconds = cpu;
    Ok((report, sent.record))
}
