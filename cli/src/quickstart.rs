//! `longwire quickstart`: a whole broker, a producer and a group, on the user's own files.

mod bulk;
mod latency;
mod memory;
mod report;
mod source;
mod verify;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use longwire_broker::{Broker, Config};
use longwire_client::{Client, Consumer, NewTopic, TagFilter};

use crate::Global;
use crate::error::{Exit, Failure};
use crate::quickstart::bulk::Bulk;
use crate::quickstart::memory::MemoryWatch;
use crate::quickstart::report::Report;
use crate::quickstart::source::{Source, Survey};
use crate::topic::DurabilityArg;
use crate::{interrupt, output};

const TOPIC: &str = "quickstart";
const GROUP: &str = "quickstart-readers";
const MEMBERS: usize = 2;
/// How long the members may take to share the queues between them.
const SHARE_TIMEOUT: Duration = Duration::from_secs(15);
const SHARE_CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// Room for messages on their way, on each side.
const PRODUCER_BUFFER_BYTES: usize = 16 << 20;
const PREFETCH_BYTES: usize = 8 << 20;

/// See it work: a broker of its own, your files through it, every line verified
///
/// Starts a broker in a temporary folder and in this process, sends every line of the file or of
/// all files under the folder PATH as a message, receives them as a group of two members, and
/// compares what came back with what was sent: byte for byte, and in order within each queue.
/// Then it measures single messages, one at a time, and prints what it saw. The temporary folder
/// takes the size of the files and some 130 bytes more a line; TMPDIR says where it is made.
///
/// Folders named target or .git are left out, and symbolic links are not followed. Lines longer
/// than a message (4 MiB) are cut.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct QuickstartArgs {
    /// A file or folder. Default: the sources of the repository around the current folder, else of
    /// the one this was built from.
    path: Option<PathBuf>,
    /// Number of queues.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    queues: u32,
    /// When messages are acknowledged and can be consumed.
    #[arg(long, value_enum, default_value_t = DurabilityArg::Write)]
    durability: DurabilityArg,
}

/// More than this program makes, and few enough for any limit of open files.
const CONNECTIONS_MAX: usize = 64;

/// Runs the command.
pub(crate) async fn run(global: &Global, args: QuickstartArgs) -> Result<(), Failure> {
    let interrupted = interrupt::token();
    let source = Source::find(args.path.as_deref())?;
    let survey = source.survey()?;
    let progress = progress(&survey, global.quiet || global.json);
    // Whatever ends it, the folder is removed when this is dropped.
    let folder = tempfile::Builder::new()
        .prefix("longwire-quickstart-")
        .tempdir()
        .map_err(|error| Failure::failed(format!("cannot make a temporary folder: {error}")))?;
    let mut config = Config::ephemeral(folder.path());
    config.storage.segment_bytes = segment_bytes(&survey);
    config.storage.retention_age = None;
    config.limits.connections_max = CONNECTIONS_MAX;

    let demonstration = Box::pin(demonstrate(source, survey, &args, config, &progress));
    let report = interrupt::race(&interrupted, demonstration).await;
    progress.finish_and_clear();
    let report = report?;
    if global.json {
        output::json(&report)?;
    } else {
        output::line(&report.table())?;
    }
    match report.verified {
        true => Ok(()),
        false => Err(Failure::reported(Exit::Failed)),
    }
}

async fn demonstrate(
    source: Source,
    survey: Survey,
    args: &QuickstartArgs,
    config: Config,
    progress: &ProgressBar,
) -> Result<Report, Failure> {
    let memory = MemoryWatch::start();
    let broker = Broker::start(config)
        .await
        .map_err(|error| Failure::failed(format!("cannot start a broker: {error}")))?;
    let client = Client::connect(broker.control_addr().to_string()).await?;
    let durability = args.durability.to_client();
    let topic = NewTopic::new(TOPIC).queues(args.queues).durability(durability);
    client.admin().create_topic(topic).await?;
    let members = join(&client, args.queues).await?;

    let path = source.path().display().to_string();
    let bulk = Bulk::run(&client, members, source, args.queues, progress).await?;
    progress.set_message("measuring single messages");
    let latency = latency::measure(&client, durability).await?;
    let statistics = client.admin().statistics().await?;
    let report = Report::new(report::Facts {
        path,
        files: survey.files,
        queues: args.queues,
        durability,
        members: MEMBERS,
        bulk,
        latency,
        transfer_bytes: statistics.transfer_bytes,
        memory: memory.stop(),
    });
    // Its folder goes away with everything in it.
    let _ = broker.shutdown().await;
    Ok(report)
}

/// The members of the group, once the queues are shared between them.
///
/// Queues that change hands while they are read are another story, told by the broker's tests.
async fn join(client: &Client, queues: u32) -> Result<Vec<Consumer>, Failure> {
    let mut members: Vec<Consumer> = Vec::with_capacity(MEMBERS);
    for _ in 0..MEMBERS {
        let consumer = client
            .consumer()
            .group(GROUP)
            .subscribe(TOPIC, TagFilter::all())
            .prefetch_bytes_max(PREFETCH_BYTES);
        members.push(consumer.build().await?);
    }
    let shared = || {
        let shares = members.iter().map(|member| member.assignment().len());
        let busy = shares.clone().filter(|&share| share > 0).count();
        shares.sum::<usize>() == queues as usize && busy == MEMBERS.min(queues as usize)
    };
    let deadline = Instant::now() + SHARE_TIMEOUT;
    while !shared() {
        if Instant::now() > deadline {
            let message = "the members of the group did not get the queues shared between them";
            return Err(Failure::new(Exit::TimedOut, message));
        }
        tokio::time::sleep(SHARE_CHECK_INTERVAL).await;
    }
    Ok(members)
}

/// Small enough that a few files do not take gigabytes of disk, large enough that many do not
/// need hundreds of segments.
fn segment_bytes(survey: &Survey) -> u64 {
    if survey.bytes < 128 << 20 { 64 << 20 } else { 256 << 20 }
}

fn progress(survey: &Survey, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(survey.bytes);
    let style = "{bar:30} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {msg}";
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
