//! `longwire bench end-to-end`.

use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::arrivals::Arrivals;
use super::cpu::CpuMeter;
use super::load::{Lanes, Ready, Sent};
use super::progress::Progress;
use super::record::Record;
use super::report::{Percentiles, Report};
use super::stamp::STAMP_BYTES;
use super::target::Target;
use super::{FileArgs, LengthArgs, LoadArgs, TopicArgs, conclude, files::Files};
use crate::Global;
use crate::error::{Exit, Failure};
use crate::{interrupt, output};

/// Nothing arriving for so long means that nothing more will.
const STALL_MAX: Duration = Duration::from_secs(10);
/// The same where Ctrl-C has ended the run.
const STALL_MAX_INTERRUPTED: Duration = Duration::from_secs(1);

/// How long messages take from producer to consumer, and whether all arrive
///
/// Producers and consumers run at once, in this process. Each body carries when it was meant to be
/// sent and a number; the latency is from then to its receipt, and what is lost, duplicated or out
/// of order is counted over the whole run, the warm-up included. If there is any, the exit code
/// is 1. For --rate and latency without it see 'longwire bench produce --help'.
#[derive(Debug, Args)]
pub(crate) struct EndToEndArgs {
    /// Number of consumers; they share the queues. Default: as many as --clients, or queues.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    consumers: Option<u32>,
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
pub(super) async fn run(global: &Global, args: EndToEndArgs) -> Result<(), Failure> {
    let interrupted = interrupt::token();
    if args.load.size.has_floor() && args.load.size.min() < STAMP_BYTES {
        return Err(Failure::usage(format!(
            "end-to-end needs --size {STAMP_BYTES} at least: bodies carry when they were sent"
        )));
    }
    let files = Files::open(&args.files)?;
    let target = Target::open(global, &args.topic, &interrupted).await?;
    let outcome = Box::pin(measure(global, &args, &target, &interrupted)).await;
    target.close(global, &interrupted).await;
    let (report, record) = outcome?;
    let verified = report.integrity.as_ref().is_some_and(|found| found.verified);
    conclude(global, report, record, files, &interrupted)?;
    if verified { Ok(()) } else { Err(Failure::reported(Exit::Failed)) }
}

async fn measure(
    global: &Global,
    args: &EndToEndArgs,
    target: &Target,
    interrupted: &CancellationToken,
) -> Result<(Report, Record), Failure> {
    let clients = args.load.clients;
    let consumers = args.consumers.unwrap_or(clients.min(target.queues));
    if consumers > target.queues {
        return Err(Failure::usage(format!(
            "{consumers} consumers cannot share {}",
            output::count(target.queues.into(), "queue")
        )));
    }
    let stop = interrupted.child_token();
    let run = fastrand::u64(..);
    let setup = async {
        let ready = Ready::connect(&args.load, target).await?;
        Ok((ready, Arrivals::connect(target, run, clients, consumers).await?))
    };
    let (ready, arrivals) = interrupt::race(interrupted, setup).await?;
    // The clock starts once everyone is connected.
    let plan = args.length.plan(&args.load);
    let (start, measured_from) = (plan.start(), plan.measured_from());
    let cpu = CpuMeter::starting_at(measured_from);
    let receiving = arrivals.receive(start, measured_from);
    let load = ready.start(&args.load, target, plan, Some(run), &stop);
    let lanes = Lanes::clone(&load.lanes);
    let progress = Progress::start(global.quiet, "end to end", receiving.recorders().to_vec());
    let sent = load.finish(&stop).await?;
    let patience = match interrupted.is_cancelled() {
        true => STALL_MAX_INTERRUPTED,
        false => STALL_MAX,
    };
    let (mut record, found) = receiving.complete(target, &lanes, patience).await;
    drop(progress);
    let cpu = cpu.used_seconds().await;

    let mut report = Report::begun("end-to-end", target, clients, Some(&args.load));
    report.warmup_seconds = args.length.warmup().as_secs_f64();
    let took = record.last.map_or(Duration::ZERO, |last| last - measured_from);
    report.measured(&record, took);
    tell_of_sending(&mut report, &mut record, sent, &args.load);
    report.integrity = Some(found);
    report.client_cpu_seconds = cpu;
    Ok((report, record))
}

/// What the producers' side has to tell goes into the report of the consumers'.
fn tell_of_sending(report: &mut Report, record: &mut Record, sent: Sent, load: &LoadArgs) {
    report.latency_of = load.latency_of("the receipt");
    report.ack_us = Some(Percentiles::of(&sent.record.latency));
    report.send_delay_us = load.rate.map(|_| Percentiles::of(&sent.delays));
    report.level = sent.record.level.map(|level| level.name());
    for (name, count) in sent.record.errors {
        *record.errors.entry(name).or_default() += count;
    }
    record.first_error = sent.record.first_error.or(record.first_error.take());
}
