//! All lines through the broker: produced and, at the same time, consumed and checked.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use longwire_client::{Client, Consumer, Error, Message};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::source::Source;
use super::verify::{Chain, Receipts};
use super::{PRODUCER_BUFFER_BYTES, TOPIC};
use crate::error::Failure;
use crate::produce::lines::Ending;
use crate::produce::send::{UnderWay, settle};

/// Nothing arriving for so long means that nothing more will.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const RECEIVE_MAX: usize = 4096;
const PORTIONS_AHEAD: usize = 64;

/// What came of it.
#[derive(Debug)]
pub(super) struct Bulk {
    pub(super) messages: u64,
    /// Of bodies.
    pub(super) bytes: u64,
    /// Lines longer than a message make several messages; so many more than lines.
    pub(super) cuts: u64,
    pub(super) duplicates: u64,
    pub(super) produced_in: Duration,
    /// From the first message received to the last.
    pub(super) consumed_in: Duration,
    pub(super) problems: Vec<String>,
}

impl Bulk {
    /// Sends everything, and waits until it has come back or it is clear that it does not.
    pub(super) async fn run(
        client: &Client,
        members: Vec<Consumer>,
        source: Source,
        queues: u32,
        progress: &ProgressBar,
    ) -> Result<Bulk, Failure> {
        let receipts = Arc::new(Receipts::new(queues));
        let mut receiving = JoinSet::new();
        for member in members {
            receiving.spawn(receive(member, Arc::clone(&receipts), progress.clone()));
        }
        let started = Instant::now();
        let sent = send(client, source, queues, &receipts).await?;
        let produced_in = started.elapsed();
        let messages = sent.chains.iter().map(|chain| chain.lines).sum();
        receipts.expect(messages);
        completed(&receipts).await;

        let (mut first, mut last) = (None::<Instant>, None::<Instant>);
        while let Some(member) = receiving.join_next().await {
            let outcome = member.map_err(|error| Failure::failed(format!("a member: {error}")))?;
            match outcome {
                Ok(None) => {}
                Ok(Some((began, ended))) => {
                    first = Some(first.map_or(began, |first| first.min(began)));
                    last = Some(last.map_or(ended, |last| last.max(ended)));
                }
                Err(error) => receipts.fail(error.to_string()),
            }
        }
        let description = client.admin().describe_topic(TOPIC).await?;
        let ends: Vec<_> = description.queues.iter().map(|queue| queue.max_offset).collect();
        Ok(Bulk {
            messages,
            bytes: sent.chains.iter().map(|chain| chain.bytes).sum(),
            cuts: sent.cuts,
            duplicates: receipts.duplicates(),
            produced_in,
            consumed_in: first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first),
            problems: receipts.problems(&sent.chains, &ends),
        })
    }
}

struct SentLines {
    /// By queue.
    chains: Vec<Chain>,
    cuts: u64,
}

/// Sends each portion of lines to the next queue, and waits until all of it is acknowledged.
async fn send(
    client: &Client,
    source: Source,
    queues: u32,
    receipts: &Receipts,
) -> Result<SentLines, Failure> {
    let producer = client.producer().buffer_bytes_max(PRODUCER_BUFFER_BYTES).build().await?;
    let (deliveries, settled) = mpsc::channel::<Vec<UnderWay>>(PORTIONS_AHEAD);
    let settling = tokio::spawn(settle(settled, pending()));
    let mut portions = source
        .read()
        .map_err(|error| Failure::failed(format!("cannot start the thread that reads: {error}")))?;
    let topic: Arc<str> = TOPIC.into();
    let mut chains = vec![Chain::default(); queues as usize];
    let (mut cuts, mut portion_number) = (0, 0_u64);
    while let Some(portion) = portions.recv().await {
        let pieces = match portion {
            Ok(pieces) => pieces,
            Err(failure) => {
                receipts.note(format!("left out: {failure}"));
                continue;
            }
        };
        let queue = (portion_number % u64::from(queues)) as u32;
        portion_number += 1;
        let chain = &mut chains[queue as usize];
        let mut under_way = Vec::with_capacity(pieces.len());
        for piece in pieces {
            cuts += u64::from(piece.ending == Ending::Cut);
            chain.add(&piece.body);
            let bytes = piece.body.len();
            let message = Message::new(Arc::clone(&topic), piece.body).queue(queue);
            under_way.push((producer.enqueue(message).await?, bytes));
        }
        if deliveries.send(under_way).await.is_err() {
            break;
        }
    }
    drop(deliveries);
    producer.flush().await?;
    let settled = settling.await;
    match settled.map_err(|error| Failure::failed(format!("cannot send: {error}")))? {
        (_, Some(error)) => return Err(error.into()),
        (_, None) => producer.close().await?,
    }
    Ok(SentLines { chains, cuts })
}

/// Receives until everything has come; returns when the first and the last message did.
async fn receive(
    mut member: Consumer,
    receipts: Arc<Receipts>,
    progress: ProgressBar,
) -> Result<Option<(Instant, Instant)>, Error> {
    let mut times = None;
    loop {
        let received = tokio::select! {
            biased;
            () = receipts.done.cancelled() => break,
            received = member.recv_many(RECEIVE_MAX) => received,
        };
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                receipts.fail(error.to_string());
                break;
            }
        };
        let began = times.map_or_else(Instant::now, |(began, _)| began);
        let mut bytes = 0;
        for message in &received {
            let body = message.body();
            receipts.add(message.queue(), message.offset(), &body);
            // With the newline, as the file has it.
            bytes += body.len() as u64 + 1;
        }
        times = Some((began, Instant::now()));
        progress.inc(bytes);
    }
    member.close().await?;
    Ok(times)
}

/// Waits until everything has come, something is wrong, or nothing comes any more.
async fn completed(receipts: &Receipts) {
    let mut seen = receipts.lines();
    while tokio::time::timeout(STALL_TIMEOUT, receipts.done.cancelled()).await.is_err() {
        let now = receipts.lines();
        if now == seen {
            receipts.fail(format!("nothing has come back for {} s", STALL_TIMEOUT.as_secs()));
        }
        seen = now;
    }
}
