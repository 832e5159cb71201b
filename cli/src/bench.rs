//! `longwire bench`.

mod arrivals;
mod body;
mod consume;
mod cpu;
mod end_to_end;
mod files;
mod hdr;
mod html;
mod load;
mod pace;
mod plan;
mod plot;
mod produce;
mod progress;
mod rate;
mod record;
mod report;
mod sequence;
mod stamp;
mod target;
mod timeline;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::Global;
use crate::bench::body::Sizes;
use crate::bench::files::Files;
use crate::bench::plan::{Length, Plan};
use crate::bench::rate::Rate;
use crate::bench::record::Record;
use crate::error::Failure;
use crate::produce::CompressionArg;
use crate::size;
use crate::topic::DurabilityArg;

/// What is measured where nothing is said.
const DURATION: Duration = Duration::from_secs(10);

/// Longer times are slips of the pen, and would reach beyond what a clock can tell.
const TIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Messages on their way: for each queue, and at least and at most in all.
const IN_FLIGHT_PER_QUEUE: u32 = 16;
const IN_FLIGHT_MIN: u32 = 4096;
const IN_FLIGHT_MAX: u32 = 1_000_000;

/// A duration of a run: `500ms`, `30s`, up to 30 days.
fn time(text: &str) -> Result<Duration, String> {
    match size::duration(text)? {
        time if time <= TIME_MAX => Ok(time),
        _ => Err("at most 30 days".to_owned()),
    }
}

/// Like [`time`], but not none.
fn time_not_zero(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("it must not be 0".to_owned()),
        time => Ok(time),
    }
}

/// `longwire bench ...`
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    Produce(produce::ProduceArgs),
    Consume(consume::ConsumeArgs),
    EndToEnd(end_to_end::EndToEndArgs),
}

/// Where to measure.
#[derive(Debug, Args)]
#[command(next_help_heading = "Topic")]
struct TopicArgs {
    /// An existing topic. Default: one of its own, which is deleted at the end.
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Queues of its own topic.
    #[arg(long, value_name = "N", default_value_t = 8, conflicts_with = "topic",
        value_parser = clap::value_parser!(u32).range(1..=65_536))]
    queues: u32,
    /// Do not delete its own topic.
    #[arg(long, conflicts_with = "topic")]
    keep_topic: bool,
    /// When messages are acknowledged. Default: as the topic, or the broker, is configured.
    #[arg(long, value_enum)]
    durability: Option<DurabilityArg>,
}

/// What is sent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
struct LoadArgs {
    /// Messages a second of all clients together, e.g. 500, 20k or 1.5M. Default: as fast as it goes.
    #[arg(short, long, value_name = "N")]
    rate: Option<Rate>,
    /// Most messages each client has on their way where there is no --rate, as far as its buffer of
    /// 64 MiB holds them. Default: 16 for each queue, but 4096 to 1,000,000.
    #[arg(long, value_name = "N", conflicts_with = "rate",
        value_parser = clap::value_parser!(u32).range(1..=IN_FLIGHT_MAX.into()))]
    in_flight: Option<u32>,
    /// Number of clients; each has a connection of its own.
    #[arg(short, long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=256))]
    clients: u32,
    /// Bytes of a body: 1KiB, evenly between two (100..10KiB), or lognormal:MEDIAN[:SIGMA].
    #[arg(short, long, value_name = "SIZE", default_value = "1KiB")]
    size: Sizes,
    /// Give messages so many different keys, in turn; each key stays in one queue. Default: none.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keys: Option<u32>,
    /// Compress bodies. They consist of repeated words, like text.
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    compression: CompressionArg,
    /// Most bytes of a queue's messages in one request.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size::bytes_not_zero)]
    batch: u64,
    /// Wait so long for more messages before a request is sent that is not full.
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = time)]
    linger: Duration,
}

/// How much is measured.
#[derive(Debug, Args)]
#[command(next_help_heading = "Length")]
struct LengthArgs {
    /// Measure so many messages.
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "duration",
        value_parser = clap::value_parser!(u64).range(1..))]
    messages: Option<u64>,
    /// Measure for so long; with --rate all that was due in that time. Default: 10s.
    #[arg(short, long, value_name = "TIME", value_parser = time_not_zero)]
    duration: Option<Duration>,
    /// Go on for so long before anything is measured.
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = time)]
    warmup: Duration,
}

/// What is left behind.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
struct FileArgs {
    /// Write all percentiles of the latency to this file, as HdrHistogram's plotter reads them.
    #[arg(long, value_name = "FILE")]
    hdr: Option<PathBuf>,
    /// Write the report with plots to this file: one page that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl LengthArgs {
    fn warmup(&self) -> Duration {
        self.warmup
    }

    /// The plan of a run that begins now.
    fn plan(&self, load: &LoadArgs) -> Plan {
        let length = match self.messages {
            Some(messages) => Length::Messages(messages),
            None => Length::Time(self.duration.unwrap_or(DURATION)),
        };
        Plan::new(Instant::now(), self.warmup, length, load.rate, load.clients)
    }
}

impl LoadArgs {
    /// Most messages each client has on their way to a topic with so many queues: with less than a few
    /// for each, it is the waiting for answers that is measured.
    fn in_flight(&self, queues: u32) -> u32 {
        let usual = queues.saturating_mul(IN_FLIGHT_PER_QUEUE);
        self.in_flight.unwrap_or(usual.clamp(IN_FLIGHT_MIN, IN_FLIGHT_MAX))
    }

    /// What a latency means that ends there.
    fn latency_of(&self, end: &str) -> String {
        match self.rate {
            Some(_) => format!("from the intended send time to {end} (open loop)"),
            None => format!(
                "from the send to {end} (closed loop: it includes the queueing behind what each \
                 client has in flight; use --rate to measure latency)"
            ),
        }
    }
}

/// Runs the command.
pub(crate) async fn run(global: &Global, command: BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Produce(args) => Box::pin(produce::run(global, args)).await,
        BenchCommand::Consume(args) => Box::pin(consume::run(global, args)).await,
        BenchCommand::EndToEnd(args) => Box::pin(end_to_end::run(global, args)).await,
    }
}

/// Tells what was measured; a run that met errors, or was ended early, fails after that.
fn conclude(
    global: &Global,
    mut report: report::Report,
    record: Record,
    files: Files,
    interrupted: &CancellationToken,
) -> Result<(), Failure> {
    report.interrupted = interrupted.is_cancelled();
    report.errors = record.errors;
    // Either may fail, and what was measured is then still in the other.
    let printed = report.print(global.json);
    files.write(&report, &record.latency)?;
    printed?;
    match record.first_error {
        _ if report.interrupted => Err(Failure::interrupted()),
        Some(error) => Err(Failure::from(error)),
        None => Ok(()),
    }
}
