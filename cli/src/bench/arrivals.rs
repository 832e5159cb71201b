//! Clients that receive what the run sends, and check it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use longwire_client::{Consumer, Received, StartAt, TagFilter, TopicQueue};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::load::Lanes;
use super::plan::Slot;
use super::record::{Record, Recorder};
use super::report::Integrity;
use super::sequence::Sequence;
use super::stamp::Stamp;
use super::target::Target;
use crate::error::Failure;

const RECEIVE_MAX: usize = 4096;
/// A consumer that fails so often in a row has nothing more to give.
const ERRORS_MAX: u64 = 100;

/// Consumers that are connected and stand at the end of their queues.
#[derive(Debug)]
pub(super) struct Arrivals {
    consumers: Vec<Consumer>,
    run: u64,
    queues: u32,
    clients: u32,
}

impl Arrivals {
    /// Connects `consumers` that share the queues, for what `clients` will send from now on.
    pub(super) async fn connect(
        target: &Target,
        run: u64,
        clients: u32,
        consumers: u32,
    ) -> Result<Arrivals, Failure> {
        let mut connected = Vec::new();
        for number in 0..consumers {
            let mine = (0..target.queues).filter(|queue| queue % consumers == number);
            let consumer = target
                .client
                .consumer()
                .subscribe(Arc::clone(&target.name), TagFilter::all())
                .assign(mine.map(|queue| TopicQueue::new(Arc::clone(&target.name), queue)))
                .start_at(StartAt::Latest)
                .auto_commit(None)
                .build()
                .await?;
            connected.push(consumer);
        }
        Ok(Arrivals { consumers: connected, run, queues: target.queues, clients })
    }

    /// Receives, in a run that began at `start` and is measured later on.
    pub(super) fn receive(self, start: Instant, measured_from: Instant) -> Receiving {
        let lanes = self.clients as usize * self.queues as usize;
        let check = Arc::new(Check {
            run: self.run,
            start,
            queues: self.queues,
            sequences: (0..lanes).map(|_| Mutex::default()).collect(),
            arrived: Notify::new(),
        });
        let (mut tasks, mut recorders) = (JoinSet::new(), Vec::new());
        let done = CancellationToken::new();
        for consumer in self.consumers {
            let recorder = Arc::new(Recorder::new(measured_from));
            recorders.push(Arc::clone(&recorder));
            tasks.spawn(receive(consumer, Arc::clone(&check), recorder, done.clone()));
        }
        Receiving { check, recorders, tasks, done, measured_from }
    }
}

/// Consumers at work.
#[derive(Debug)]
pub(super) struct Receiving {
    check: Arc<Check>,
    recorders: Vec<Arc<Recorder>>,
    tasks: JoinSet<()>,
    done: CancellationToken,
    measured_from: Instant,
}

/// What has arrived, for each client and queue.
#[derive(Debug)]
struct Check {
    run: u64,
    start: Instant,
    queues: u32,
    sequences: Vec<Mutex<Sequence>>,
    /// Rings with every batch that brought something of this run.
    arrived: Notify,
}

impl Receiving {
    pub(super) fn recorders(&self) -> &[Arc<Recorder>] {
        &self.recorders
    }

    /// Waits until all that was acknowledged has arrived, or nothing of this run has come for as long
    /// as `patience`. Call it when everything sent has an outcome.
    pub(super) async fn complete(
        mut self,
        settled: &Lanes,
        patience: Duration,
    ) -> (Record, Integrity) {
        loop {
            let arrived = self.check.arrived.notified();
            if self.check.found(settled).lost == 0 {
                break;
            }
            if tokio::time::timeout(patience, arrived).await.is_err() {
                break;
            }
        }
        self.done.cancel();
        while self.tasks.join_next().await.is_some() {}
        let mut record = Record::new(self.measured_from);
        self.recorders.iter().for_each(|recorder| record.merge(recorder.take()));
        (record, self.check.found(settled))
    }
}

async fn receive(
    mut consumer: Consumer,
    check: Arc<Check>,
    recorder: Arc<Recorder>,
    done: CancellationToken,
) {
    loop {
        let received = tokio::select! {
            biased;
            received = consumer.recv_many(RECEIVE_MAX) => received,
            () = done.cancelled() => return,
        };
        let now = Instant::now();
        let mut record = recorder.lock();
        match received {
            Ok(received) => {
                let ours = received.iter().filter(|m| check.add(m, now, &mut record)).count();
                if ours > 0 {
                    check.arrived.notify_one();
                }
            }
            Err(error) => {
                record.failed(&error);
                if record.error_count() >= ERRORS_MAX {
                    return;
                }
            }
        }
    }
}

impl Check {
    /// Takes in a message; whether it is of this run, and not of others in the same topic.
    fn add(&self, message: &Received, now: Instant, record: &mut Record) -> bool {
        let body = message.body();
        let Some(stamp) = Stamp::decode(&body).filter(|stamp| stamp.run == self.run) else {
            return false;
        };
        let lane = stamp.client as usize * self.queues as usize + message.queue() as usize;
        let Some(sequence) = self.sequences.get(lane) else {
            return false;
        };
        let is_first = sequence.lock().unwrap_or_else(PoisonError::into_inner).add(stamp.sequence);
        if is_first {
            let due = self.start + Duration::from_nanos(stamp.due_ns);
            record.message(Slot { due, measured: stamp.measured }, now, body.len() as u64);
        }
        true
    }

    fn found(&self, settled: &Lanes) -> Integrity {
        let mut found = Integrity {
            verified: false,
            acknowledged: 0,
            received: 0,
            lost: 0,
            duplicated: 0,
            out_of_order: 0,
        };
        for (sequence, settled) in self.sequences.iter().zip(settled.iter()) {
            let sequence = sequence.lock().unwrap_or_else(PoisonError::into_inner);
            let settled = settled.lock().unwrap_or_else(PoisonError::into_inner);
            found.acknowledged += settled.count - settled.failed.len() as u64;
            found.received += sequence.received;
            found.lost += sequence.lost(&settled);
            found.duplicated += sequence.duplicated;
            found.out_of_order += sequence.out_of_order;
        }
        found.verified = found.lost + found.duplicated + found.out_of_order == 0;
        found
    }
}
