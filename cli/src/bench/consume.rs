//! `longwire bench consume`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use longwire_client::{Consumer, Error, StartAt, TagFilter, TopicQueue};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cpu::CpuMeter;
use super::load::{Lanes, Ready};
use super::plan::{Length, Plan};
use super::progress::Progress;
use super::record::{Amount, Record, Recorder};
use super::report::Report;
use super::target::Target;
use super::{FileArgs, LoadArgs, TopicArgs, conclude, files::Files};
use crate::Global;
use crate::error::{Exit, Failure};
use crate::{interrupt, output};

/// What a topic of its own is filled with, unless something else is asked for.
const FILL_BYTES: f64 = 256.0 * 1024.0 * 1024.0;
/// What says how a topic is filled.
const FILL_ARGS: [&str; 8] =
    ["rate", "in_flight", "size", "keys", "compression", "batch", "linger", "durability"];
const RECEIVE_MAX: usize = 4096;
/// A topic that has messages gives some within this time.
const IDLE_MAX: Duration = Duration::from_secs(15);
const ERRORS_MAX: u64 = 100;

/// How fast messages come back
///
/// Reads what is in the topic, from its first message to the last there is at the start. A topic of
/// its own is filled first, in the way the other options say. The clients share the queues among
/// them. With --duration they begin again at the first message until the time is over.
#[derive(Debug, Args)]
#[command(mut_args(only_to_fill))]
pub(crate) struct ConsumeArgs {
    /// Most messages to read. Fills a topic of its own with so many. Default: all, or to fill it
    /// 256 MiB of bodies, but no more than 1,000,000 messages.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    messages: Option<u64>,
    /// Read for so long, again from the start where the end is reached.
    #[arg(short, long, value_name = "TIME", value_parser = super::time_not_zero)]
    duration: Option<Duration>,
    #[command(flatten)]
    fill: LoadArgs,
    #[command(flatten)]
    topic: TopicArgs,
    #[command(flatten)]
    files: FileArgs,
}

/// Refuses what only says how to fill a topic, where the topic is there already.
fn only_to_fill(arg: clap::Arg) -> clap::Arg {
    let name = arg.get_id().as_str();
    match FILL_ARGS.contains(&name) {
        true => arg.conflicts_with("topic"),
        false => arg,
    }
}

/// Runs the command.
pub(super) async fn run(global: &Global, args: ConsumeArgs) -> Result<(), Failure> {
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
    args: &ConsumeArgs,
    target: &Target,
    interrupted: &CancellationToken,
) -> Result<(Report, Record), Failure> {
    let clients = args.fill.clients;
    if clients > target.queues {
        return Err(Failure::usage(format!(
            "{clients} clients cannot share {}; give --clients {} or more --queues",
            output::count(target.queues.into(), "queue"),
            target.queues
        )));
    }
    let ranges = match target.own {
        true => fill(global, args, target, interrupted).await?,
        false => interrupt::race(interrupted, present(target)).await?,
    };
    if ranges.iter().all(|span| span.first >= span.end) && !interrupted.is_cancelled() {
        let message = format!("there is nothing to read in topic {}", target.name);
        return Err(Failure::failed(message));
    }

    let connecting = consumers(target, &ranges, clients as usize);
    let readers = interrupt::race(interrupted, connecting).await?;
    let cpu = CpuMeter::starting_at(Instant::now());
    let (record, took) = read(global, args, target, readers, interrupted).await?;
    let cpu = cpu.used_seconds().await;
    let fill = target.own.then_some(&args.fill);
    let mut report = Report::begun("consume", target, clients, fill);
    report.measured(&record, took);
    report.latency_of = format!("one call that receives up to {RECEIVE_MAX} messages");
    report.client_cpu_seconds = cpu;
    Ok((report, record))
}

/// What is in the topic.
async fn present(target: &Target) -> Result<Vec<Span>, Failure> {
    let queues = target.describe().await?.queues;
    let spans = queues.iter().map(|q| Span::new(q.queue, q.min_offset, q.max_offset));
    let mut spans: Vec<Span> = spans.collect();
    spans.sort_by_key(|span| span.queue);
    Ok(spans)
}

/// Makes the messages that are then read. What the broker has acknowledged may take a moment to be
/// visible, so what there is to read is what was acknowledged, not what the broker shows.
async fn fill(
    global: &Global,
    args: &ConsumeArgs,
    target: &Target,
    interrupted: &CancellationToken,
) -> Result<Vec<Span>, Failure> {
    let stop = interrupted.child_token();
    let by_bytes = (FILL_BYTES / args.fill.size.mean().max(1.0)) as u64;
    let length = Length::Messages(args.messages.unwrap_or(by_bytes.clamp(1, 1_000_000)));
    let LoadArgs { rate, clients, .. } = args.fill;
    let ready = interrupt::race(interrupted, Ready::connect(&args.fill, target)).await?;
    let plan = Plan::new(Instant::now(), Duration::ZERO, length, rate, clients);
    let load = ready.start(&args.fill, target, plan, None, &stop);
    let _progress = Progress::start(global.quiet, "filling", load.recorders.clone());
    let lanes = Lanes::clone(&load.lanes);
    let sent = load.finish(&stop).await?;
    if let Some(error) = sent.record.first_error {
        return Err(Failure::from(error).and("the topic could not be filled"));
    }
    let mut spans: Vec<Span> = (0..target.queues).map(|queue| Span::new(queue, 0, 0)).collect();
    for of_client in lanes.chunks(spans.len()) {
        for (span, lane) in spans.iter_mut().zip(of_client) {
            span.end += lane.lock().unwrap_or_else(PoisonError::into_inner).count;
        }
    }
    Ok(spans)
}

/// What is to be read of a queue, and how far that is.
#[derive(Debug, Clone)]
struct Span {
    queue: u32,
    first: u64,
    /// Behind the last.
    end: u64,
    next: u64,
}

impl Span {
    fn new(queue: u32, first: u64, end: u64) -> Span {
        Span { queue, first, end, next: first }
    }
}

async fn read(
    global: &Global,
    args: &ConsumeArgs,
    target: &Target,
    readers: Vec<(Consumer, Vec<Span>)>,
    interrupted: &CancellationToken,
) -> Result<(Record, Duration), Failure> {
    let stop = interrupted.child_token();
    // A topic of its own that is read for some time is read over and over.
    let limit = args.messages.filter(|_| !(target.own && args.duration.is_some()));
    let left = Arc::new(AtomicU64::new(limit.unwrap_or(u64::MAX)));
    let start = Instant::now();
    readers.iter().for_each(|(consumer, _)| consumer.resume(&consumer.assignment()));
    let until = args.duration.map(|time| start + time);
    let (mut reading, mut recorders) = (JoinSet::new(), Vec::new());
    for (consumer, spans) in readers {
        let recorder = Arc::new(Recorder::new(start));
        recorders.push(Arc::clone(&recorder));
        let (topic, left) = (Arc::clone(&target.name), Arc::clone(&left));
        let reader = Reader { consumer, topic, spans, recorder, left, until };
        reading.spawn(reader.run(stop.clone()));
    }
    let progress = Progress::start(global.quiet, "consuming", recorders.clone());
    while let Some(ended) = reading.join_next().await {
        ended.map_err(|error| Failure::failed(format!("a client: {error}")))??;
    }
    drop(progress);
    let mut record = Record::new(start);
    recorders.iter().for_each(|recorder| record.merge(recorder.take()));
    let took = record.last.map_or(Duration::ZERO, |last| last - start);
    Ok((record, took))
}

/// A consumer for each client, none of which has begun, with what it is to read.
async fn consumers(
    target: &Target,
    ranges: &[Span],
    clients: usize,
) -> Result<Vec<(Consumer, Vec<Span>)>, Failure> {
    let mut readers = Vec::new();
    for client_number in 0..clients {
        let mine = ranges.iter().filter(|span| span.queue as usize % clients == client_number);
        let spans: Vec<Span> = mine.filter(|span| span.first < span.end).cloned().collect();
        if spans.is_empty() {
            continue;
        }
        let queues = spans.iter().map(|span| TopicQueue::new(Arc::clone(&target.name), span.queue));
        let consumer = target
            .client
            .consumer()
            .subscribe(Arc::clone(&target.name), TagFilter::all())
            .assign(queues)
            .start_at(StartAt::Earliest)
            .auto_commit(None)
            .build()
            .await?;
        // What it would fetch before the start would come too fast.
        consumer.pause(&consumer.assignment());
        readers.push((consumer, spans));
    }
    Ok(readers)
}

/// One client.
struct Reader {
    consumer: Consumer,
    topic: Arc<str>,
    spans: Vec<Span>,
    recorder: Arc<Recorder>,
    /// How many messages all clients may still read.
    left: Arc<AtomicU64>,
    until: Option<Instant>,
}

impl Reader {
    async fn run(mut self, stop: CancellationToken) -> Result<(), Failure> {
        loop {
            if self.spans.iter().all(|span| span.next >= span.end) && !self.again()? {
                return Ok(());
            }
            let asked = Instant::now();
            let until = tokio::time::Instant::from_std(self.until.unwrap_or(asked));
            let received = tokio::select! {
                received = self.consumer.recv_many(RECEIVE_MAX) => received,
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(until), if self.until.is_some() => return Ok(()),
                () = tokio::time::sleep(IDLE_MAX) => {
                    if self.recorder.lock().error_count() > 0 {
                        return Ok(());
                    }
                    let message = format!("no message of topic {} came in time", self.topic);
                    return Err(Failure::new(Exit::TimedOut, message));
                }
            };
            let now = Instant::now();
            let received = match received {
                Ok(received) => received,
                Err(error) => {
                    if self.failed(&error) {
                        return Ok(());
                    }
                    continue;
                }
            };
            let mut amount = Amount::default();
            for message in &received {
                if self.counts(message.queue(), message.offset()) {
                    amount.add(Amount { messages: 1, bytes: message.body().len() as u64 });
                }
            }
            if amount.messages > 0 {
                self.recorder.lock().batch(now, now - asked, amount);
            }
            if self.left.load(Ordering::Relaxed) == 0 {
                return Ok(());
            }
        }
    }

    /// Notes an error; returns whether it is pointless to go on.
    fn failed(&mut self, error: &Error) -> bool {
        if let Some(record) = error.record() {
            // Nothing more comes of its queue.
            self.spans.retain(|span| span.queue != record.queue.queue);
        }
        let mut record = self.recorder.lock();
        record.failed(error);
        self.spans.is_empty() || record.error_count() >= ERRORS_MAX
    }

    /// Whether a message is one of those to be read, and not one too many.
    fn counts(&mut self, queue: u32, offset: u64) -> bool {
        let Ok(index) = self.spans.binary_search_by_key(&queue, |span| span.queue) else {
            return false;
        };
        let span = &mut self.spans[index];
        // What has come since the start, or was on its way when reading began again.
        if offset >= span.end || offset < span.next {
            return false;
        }
        span.next = offset + 1;
        let take = |left: u64| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Begins again, where there is time left.
    fn again(&mut self) -> Result<bool, Failure> {
        if self.until.is_none_or(|until| Instant::now() >= until) {
            return Ok(false);
        }
        for span in &mut self.spans {
            span.next = span.first;
            let queue = TopicQueue::new(Arc::clone(&self.topic), span.queue);
            self.consumer.seek(&queue, span.first)?;
        }
        Ok(true)
    }
}
