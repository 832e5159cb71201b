//! Clients that receive what the run sends, and check it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use longwire_client::{Consumer, Error, Received, StartAt, TagFilter, TopicQueue};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

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
        let (end, ending) = watch::channel(Rest::default());
        for consumer in self.consumers {
            let recorder = Arc::new(Recorder::new(measured_from));
            recorders.push(Arc::clone(&recorder));
            let receiver = Receiver { check: Arc::clone(&check), recorder };
            tasks.spawn(receiver.receive(consumer, ending.clone()));
        }
        Receiving { check, recorders, tasks, end, measured_from }
    }
}

/// Consumers at work.
#[derive(Debug)]
pub(super) struct Receiving {
    check: Arc<Check>,
    recorders: Vec<Arc<Recorder>>,
    tasks: JoinSet<()>,
    end: watch::Sender<Rest>,
    measured_from: Instant,
}

/// What consumers still have to read when they are told to end.
#[derive(Debug, Clone, Default)]
struct Rest {
    /// Queues, and up to where.
    ends: Vec<(TopicQueue, u64)>,
    patience: Duration,
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
        target: &Target,
        settled: &Lanes,
        patience: Duration,
    ) -> (Record, Integrity) {
        let mut record = Record::new(self.measured_from);
        let mut rest = Rest { ends: Vec::new(), patience };
        if self.all_arrive(settled, patience).await {
            // A copy of a message that was sent again may lie behind the last one.
            match target.ends().await {
                Ok(ends) => rest.ends = ends,
                Err(error) => record.failed(&error),
            }
        }
        // Fails only where every consumer has given up.
        let _ = self.end.send(rest);
        while self.tasks.join_next().await.is_some() {}
        self.recorders.iter().for_each(|recorder| record.merge(recorder.take()));
        (record, self.check.found(settled))
    }

    async fn all_arrive(&self, settled: &Lanes, patience: Duration) -> bool {
        loop {
            let arrived = self.check.arrived.notified();
            if self.check.found(settled).lost == 0 {
                return true;
            }
            if tokio::time::timeout(patience, arrived).await.is_err() {
                return false;
            }
        }
    }
}

/// What one consumer receives goes here.
#[derive(Debug)]
struct Receiver {
    check: Arc<Check>,
    recorder: Arc<Recorder>,
}

impl Receiver {
    async fn receive(self, mut consumer: Consumer, mut ending: watch::Receiver<Rest>) {
        loop {
            let received = tokio::select! {
                biased;
                received = consumer.recv_many(RECEIVE_MAX) => received,
                _ = ending.changed() => break,
            };
            if !self.take(received) {
                return;
            }
        }
        let Rest { ends, patience } = ending.borrow().clone();
        let is_ahead = |(queue, end): &(TopicQueue, u64), consumer: &Consumer| {
            consumer.position(queue).is_some_and(|position| position < *end)
        };
        while ends.iter().any(|end| is_ahead(end, &consumer)) {
            let received = tokio::time::timeout(patience, consumer.recv_many(RECEIVE_MAX)).await;
            if !received.is_ok_and(|received| self.take(received)) {
                return;
            }
        }
    }

    /// Takes in what a consumer received; false where it has nothing more to give.
    fn take(&self, received: Result<Vec<Received>, Error>) -> bool {
        let now = Instant::now();
        let mut record = self.recorder.lock();
        match received {
            Ok(received) => {
                let check = &self.check;
                let ours = received.iter().filter(|m| check.add(m, now, &mut record)).count();
                if ours > 0 {
                    check.arrived.notify_one();
                }
                true
            }
            Err(error) => {
                record.failed(&error);
                record.error_count() < ERRORS_MAX
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

#[cfg(test)]
mod tests {
    use longwire_broker::{Broker, Config};
    use longwire_client::Message;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::Global;
    use crate::bench::TopicArgs;
    use crate::bench::sequence::Settled;
    use crate::topic::DurabilityArg;

    const RUN: u64 = 7;
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn target(broker: &Broker) -> Target {
        let address = broker.control_addr().to_string();
        let global = Global { broker: address, json: false, quiet: true };
        let durability = Some(DurabilityArg::Write);
        let args = TopicArgs { topic: None, queues: 1, keep_topic: false, durability };
        Target::open(&global, &args, &CancellationToken::new()).await.unwrap()
    }

    /// Has to wait for the broker again and again.
    async fn hardly_fetching_ahead(target: &Target) -> Arrivals {
        let consumer = target
            .client
            .consumer()
            .subscribe(Arc::clone(&target.name), TagFilter::all())
            .assign([TopicQueue::new(Arc::clone(&target.name), 0)])
            .start_at(StartAt::Latest)
            .auto_commit(None)
            .prefetch_bytes_max(1);
        let consumers = vec![consumer.build().await.unwrap()];
        Arrivals { consumers, run: RUN, queues: 1, clients: 1 }
    }

    #[tokio::test]
    async fn copy_of_a_message_far_behind_the_last_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let broker = Broker::start(Config::ephemeral(folder.path())).await.unwrap();
        let target = target(&broker).await;
        let arrivals = hardly_fetching_ahead(&target).await;
        let stamp = Stamp { run: RUN, sequence: 0, due_ns: 0, client: 0, measured: true };
        let ours = stamp.encode().to_vec();
        let producer = target.client.producer().build().await.unwrap();
        let others = std::iter::repeat_n(vec![0; 64 << 10], 64);
        for body in [ours.clone()].into_iter().chain(others).chain([ours]) {
            let message = Message::new(Arc::clone(&target.name), body).queue(0);
            producer.send(message).await.unwrap();
        }
        let now = Instant::now();
        let lanes = Lanes::from([Mutex::new(Settled { count: 1, failed: Vec::new() })]);
        let receiving = arrivals.receive(now, now);
        let (record, found) = receiving.complete(&target, &lanes, PATIENCE).await;
        assert_eq!((found.received, found.lost, found.duplicated), (1, 0, 1), "{record:?}");
        assert!(!found.verified && record.error_count() == 0);
        broker.shutdown().await.unwrap();
    }
}
