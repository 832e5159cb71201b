//! Sends what was read and keeps account of what was stored.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use longwire_client::{AckLevel, Delivery, Error, ErrorKind, Message, Producer};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::input::{Input, Portion};
use super::lines::{Ending, Piece};
use super::{EOL_NONE, EOL_PROPERTY};
use crate::error::{Exit, Failure};
use crate::{interrupt, output};

/// Portions whose deliveries may be outstanding, beside what the producer's own buffer bounds.
const PORTIONS_AHEAD: usize = 64;

/// What every message of the run is given.
#[derive(Debug)]
pub(crate) struct Labels {
    pub(crate) topic: Arc<str>,
    pub(crate) key: Option<String>,
    pub(crate) key_separator: Option<String>,
    pub(crate) tag: Option<String>,
    pub(crate) properties: Vec<(String, String)>,
    pub(crate) queue: Option<u32>,
    /// The queue of what has no key, so that it keeps its order.
    pub(crate) keyless_queue: u32,
}

/// What was stored.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) messages: u64,
    /// Of bodies.
    pub(crate) bytes: u64,
    /// What all of it has reached.
    pub(crate) level: Option<AckLevel>,
}

/// Sends everything, or what comes before the first failure, and waits until it is stored; after an
/// interruption not for long.
pub(crate) async fn all(
    producer: &Producer,
    input: Input,
    labels: &Labels,
    rate: Option<u32>,
    quiet: bool,
    interrupted: &CancellationToken,
) -> (Sent, Result<(), Failure>) {
    let progress = progress(input.bytes.filter(|_| !quiet));
    let (deliveries, settled) = mpsc::channel(PORTIONS_AHEAD);
    let given_up = interrupted.clone();
    let given_up = async move { interrupt::given_up(&given_up).await };
    let mut settling = tokio::spawn(settle(settled, given_up));
    let mut sending = Sending {
        producer,
        labels,
        names: input.names(),
        pace: rate.map(Pace::new),
        interrupted,
        enqueued: 0,
    };
    let all_sent = async {
        let outcome = sending.run(input, &progress, &deliveries).await;
        // Its error, if any, is also that of a delivery.
        let _ = producer.flush().await;
        // Until here settling ends only by a failure, or because it is given up.
        drop(deliveries);
        outcome
    };
    // Sending ends first unless a message could not be stored, or is given up: a broker that is lost
    // while standard input is silent must be told at once.
    let (outcome, settled) = tokio::select! {
        outcome = Box::pin(all_sent) => (outcome, settling.await),
        settled = &mut settling => (Err(Failure::interrupted()), settled),
    };
    progress.finish_and_clear();
    match settled {
        Ok((sent, None)) => match sending.enqueued - sent.messages {
            0 => (sent, outcome),
            unknown => {
                let failure = unanswered(sent.messages, unknown);
                (sent, Err(failure))
            }
        },
        Ok((sent, Some(error))) => {
            let stored = format!("stored before it: {}", output::count(sent.messages, "message"));
            (sent, Err(Failure::from(error).and(&stored)))
        }
        Err(error) => (Sent::default(), Err(Failure::failed(format!("cannot send: {error}")))),
    }
}

fn unanswered(stored: u64, unknown: u64) -> Failure {
    let message = format!(
        "interrupted: {} stored; {} more may have been or not, as no acknowledgement came",
        output::count(stored, "message"),
        output::grouped(unknown)
    );
    Failure::new(Exit::Interrupted, message)
}

/// A message on its way, and the length of its body.
pub(crate) type UnderWay = (Delivery, usize);

struct Sending<'a> {
    producer: &'a Producer,
    labels: &'a Labels,
    names: Vec<String>,
    pace: Option<Pace>,
    interrupted: &'a CancellationToken,
    /// Messages handed to the producer.
    enqueued: u64,
}

impl Sending<'_> {
    /// Sends every piece in order. Deliveries of one portion go to `deliveries` together.
    async fn run(
        &mut self,
        input: Input,
        progress: &ProgressBar,
        deliveries: &mpsc::Sender<Vec<UnderWay>>,
    ) -> Result<(), Failure> {
        let reading = input.read();
        let mut portions = reading.map_err(|error| {
            Failure::failed(format!("cannot start the thread that reads: {error}"))
        })?;
        let interrupted = self.interrupted;
        loop {
            let portion = tokio::select! {
                portion = portions.recv() => portion,
                () = interrupted.cancelled() => return Err(Failure::interrupted()),
            };
            let Some(portion) = portion else {
                return Ok(());
            };
            let mut under_way = Vec::new();
            let outcome = tokio::select! {
                outcome = self.portion(portion?, progress, &mut under_way) => outcome,
                () = interrupted.cancelled() => Err(Failure::interrupted()),
            };
            // Nobody takes them where a delivery has failed already, which is then what is told.
            let _ = deliveries.send(under_way).await;
            outcome?;
        }
    }

    async fn portion(
        &mut self,
        portion: Portion,
        progress: &ProgressBar,
        under_way: &mut Vec<UnderWay>,
    ) -> Result<(), Failure> {
        under_way.reserve(portion.pieces.len());
        let mut read = 0;
        for piece in portion.pieces {
            read += piece.body.len() as u64 + u64::from(piece.ending == Ending::Newline);
            let (file, number) = (&self.names[portion.file], piece.number);
            let (message, bytes) = self.labels.message(piece, file)?;
            if let Some(pace) = &mut self.pace {
                pace.wait().await;
            }
            let enqueued = self.producer.enqueue(message).await;
            let delivery = enqueued.map_err(|error| self.labels.explain(error, file, number))?;
            under_way.push((delivery, bytes));
            self.enqueued += 1;
        }
        progress.inc(read);
        Ok(())
    }
}

/// Counts what is stored, up to the first message that is not, or until it is given up.
pub(crate) async fn settle(
    deliveries: mpsc::Receiver<Vec<UnderWay>>,
    given_up: impl Future<Output = ()>,
) -> (Sent, Option<Error>) {
    let mut sent = Sent::default();
    let error = tokio::select! {
        biased;
        error = count(deliveries, &mut sent) => error,
        () = given_up => None,
    };
    (sent, error)
}

async fn count(mut deliveries: mpsc::Receiver<Vec<UnderWay>>, sent: &mut Sent) -> Option<Error> {
    while let Some(portion) = deliveries.recv().await {
        for (delivery, bytes) in portion {
            match delivery.await {
                Ok(receipt) => {
                    sent.messages += 1;
                    sent.bytes += bytes as u64;
                    let level = sent.level.map_or(receipt.level, |level| level.min(receipt.level));
                    sent.level = Some(level);
                }
                Err(error) => return Some(error),
            }
        }
    }
    None
}

impl Labels {
    /// The message of one piece, with the length of its body.
    fn message(&self, piece: Piece, file: &str) -> Result<(Message, usize), Failure> {
        let Piece { mut body, number, ending } = piece;
        let mut key = self.key.clone();
        if let Some(separator) = &self.key_separator {
            let found = body.windows(separator.len()).position(|w| w == separator.as_bytes());
            let Some(at) = found else {
                return Err(refused(file, number, "has no key separator"));
            };
            let Ok(text) = str::from_utf8(&body[..at]) else {
                return Err(refused(file, number, "has a key that is not UTF-8"));
            };
            key = Some(text.to_owned());
            body = body.slice(at + separator.len()..);
        }
        let bytes = body.len();
        let mut message = Message::new(self.topic.clone(), body);
        let key = key.filter(|key| !key.is_empty());
        // By its key, a message finds its queue itself.
        let queue = self.queue.or_else(|| key.is_none().then_some(self.keyless_queue));
        if let Some(key) = key {
            message = message.key(key);
        }
        if let Some(tag) = &self.tag {
            message = message.tag(tag);
        }
        for (name, value) in &self.properties {
            message = message.property(name, value);
        }
        if ending != Ending::Newline {
            message = message.property(EOL_PROPERTY, EOL_NONE);
        }
        if let Some(queue) = queue {
            message = message.queue(queue);
        }
        Ok((message, bytes))
    }

    /// Why the message of a piece could not be handed to the producer.
    fn explain(&self, error: Error, file: &str, number: u64) -> Failure {
        match error.kind() {
            // Beside bodies, only keys differ from line to line.
            ErrorKind::InvalidArgument if self.key_separator.is_some() => {
                refused(file, number, &format!("cannot be sent: {error}"))
            }
            _ => error.into(),
        }
    }
}

fn refused(file: &str, number: u64, why: &str) -> Failure {
    let message = format!("{file}: line {number} {why}; everything before it was sent");
    Failure::new(Exit::InputRefused, message)
}

fn progress(bytes: Option<u64>) -> ProgressBar {
    // Hidden by itself where standard error is not a terminal.
    let Some(bytes) = bytes else {
        return ProgressBar::hidden();
    };
    let bar = ProgressBar::new(bytes);
    let style = "{bar:30} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left";
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Lets so many messages a second through; what was missed is not made up for.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    fn new(per_second: u32) -> Pace {
        Pace { interval: Duration::from_secs(1) / per_second.max(1), next: Instant::now() }
    }

    async fn wait(&mut self) {
        let now = Instant::now();
        // Timers are no finer than this; below it, messages go in small bunches.
        if self.next > now + Duration::from_millis(1) {
            tokio::time::sleep_until(self.next).await;
        }
        // A pause of the input gives no right to more than a bunch afterwards.
        let earliest = now.checked_sub(Duration::from_millis(10)).unwrap_or(now);
        self.next = self.next.max(earliest) + self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pace_holds_the_rate_whatever_the_rate_is() {
        for rate in [10, 1_000, 50_000] {
            let started = Instant::now();
            let mut pace = Pace::new(rate);
            for _ in 0..rate * 2 {
                pace.wait().await;
            }
            let took = started.elapsed().as_secs_f64();
            assert!((1.85..2.15).contains(&took), "{rate} a second: {took}");
        }
    }
}
