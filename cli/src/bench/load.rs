//! Clients that send: one producer, one connection and one thread each.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use longwire_client::{Delivery, Error, Message, Producer};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::body::Bodies;
use super::pace::{self, Sink};
use super::plan::{Plan, Slot};
use super::record::{Record, Recorder, merge_times, times};
use super::sequence::Settled;
use super::stamp::Stamp;
use super::{LoadArgs, target::Target};
use crate::error::Failure;
use crate::interrupt;

/// A message without an answer for so long has failed.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// After so many errors of one client a run is pointless.
const ERRORS_MAX: u64 = 1_000;
/// What is kept for each client and queue must fit into memory.
const LANES_MAX: u64 = 1_000_000;

/// What one client sent to one queue has become, for each client and queue.
pub(super) type Lanes = Arc<[Mutex<Settled>]>;

/// Clients at work.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) recorders: Vec<Arc<Recorder>>,
    pub(super) lanes: Lanes,
    plan: Arc<Plan>,
    sending: Vec<JoinHandle<Histogram<u64>>>,
    settling: Vec<JoinHandle<JoinSet<()>>>,
    producers: Vec<Producer>,
}

/// What they have done.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) record: Record,
    /// By how much messages were handed to the client library later than intended.
    pub(super) delays: Histogram<u64>,
}

/// Clients that are connected and have not begun.
#[derive(Debug)]
pub(super) struct Ready {
    bodies: Bodies,
    producers: Vec<Producer>,
}

impl Ready {
    /// Connects the clients, which takes its time: the plan's clock starts when they are let go.
    pub(super) async fn connect(args: &LoadArgs, target: &Target) -> Result<Ready, Failure> {
        let clients = args.clients;
        if u64::from(clients) * u64::from(target.queues) > LANES_MAX {
            return Err(Failure::usage(format!(
                "{clients} clients and {} queues are too many together: at most {LANES_MAX} pairs",
                target.queues
            )));
        }
        let bodies = Bodies::new(args.size.clone());
        let mut producers = Vec::new();
        for _ in 0..clients {
            producers.push(producer(args, target).await?);
        }
        Ok(Ready { bodies, producers })
    }

    /// Lets them go. With `run`, messages are stamped with it.
    pub(super) fn start(
        self,
        args: &LoadArgs,
        target: &Target,
        plan: Plan,
        run: Option<u64>,
        stop: &CancellationToken,
    ) -> Load {
        let Ready { bodies, producers } = self;
        let clients = args.clients;
        let lanes = (0..clients as usize * target.queues as usize).map(|_| Mutex::default());
        let mut load = Load {
            recorders: Vec::new(),
            lanes: lanes.collect(),
            plan: Arc::new(plan),
            sending: Vec::new(),
            settling: Vec::new(),
            producers: producers.clone(),
        };
        for (number, producer) in (0..clients).zip(producers) {
            let recorder = Arc::new(Recorder::new(load.plan.measured_from()));
            load.recorders.push(Arc::clone(&recorder));
            let in_flight = args.in_flight(target.queues) as usize;
            let window = (!load.plan.is_open()).then(|| Semaphore::new(in_flight));
            let shared = Arc::new(Shared {
                client: number,
                recorder,
                window,
                lanes: Arc::clone(&load.lanes),
                stop: stop.clone(),
            });
            let sender = Sender {
                producer,
                topic: Arc::clone(&target.name),
                queues: target.queues,
                keys: args.keys,
                bodies: bodies.for_client(number),
                run,
                start: load.plan.start(),
                // Clients begin at different queues.
                turn: u64::from(number),
                lanes: (0..target.queues).map(|_| None).collect(),
                settling: JoinSet::new(),
                shared,
            };
            load.spawn(sender, stop.clone());
        }
        load
    }
}

impl Load {
    fn spawn(&mut self, mut sender: Sender, stop: CancellationToken) {
        let plan = Arc::clone(&self.plan);
        let runtime = tokio::runtime::Handle::current();
        let (ended, settling) = tokio::sync::oneshot::channel();
        self.sending.push(tokio::task::spawn_blocking(move || {
            let number = sender.shared.client;
            let delays = runtime.block_on(pace::drive(&plan, number, &mut sender, &stop));
            let Sender { settling, .. } = sender;
            // Nobody is there to take it only where the run has failed.
            let _ = ended.send(settling);
            delays
        }));
        self.settling.push(tokio::spawn(async { settling.await.unwrap_or_default() }));
    }

    /// Waits until everything is sent and has an outcome, or the run has been stopped.
    pub(super) async fn finish(self, stop: &CancellationToken) -> Result<Sent, Failure> {
        let mut delays = times();
        for sending in self.sending {
            let sent = sending.await;
            let sent = sent.map_err(|error| Failure::failed(format!("a client: {error}")))?;
            merge_times(&mut delays, &sent);
        }
        let settled = async {
            for producer in &self.producers {
                // Each delivery tells its own outcome.
                let _ = producer.flush().await;
            }
            for settling in self.settling {
                settling.await.unwrap_or_default().join_all().await;
            }
        };
        tokio::select! {
            () = settled => {}
            () = interrupt::given_up(stop) => {}
        }
        let mut record = Record::new(self.plan.measured_from());
        self.recorders.iter().for_each(|recorder| record.merge(recorder.take()));
        Ok(Sent { record, delays })
    }
}

async fn producer(args: &LoadArgs, target: &Target) -> Result<Producer, Failure> {
    let producer = target
        .client
        .producer()
        .durability(target.producer_durability())
        .compression(args.compression.to_client())
        // Whoever asks for compression wants to see what it costs.
        .compress_bytes_min(1)
        .delivery_timeout(DELIVERY_TIMEOUT)
        .batch_bytes_max(usize::try_from(args.batch).unwrap_or(usize::MAX))
        .linger(args.linger);
    Ok(producer.build().await?)
}

/// What a client and the tasks that settle its messages share.
#[derive(Debug)]
struct Shared {
    client: u32,
    recorder: Arc<Recorder>,
    /// Room for messages in flight, in a closed loop.
    window: Option<Semaphore>,
    lanes: Lanes,
    stop: CancellationToken,
}

/// A message that has been handed over.
#[derive(Debug)]
struct UnderWay {
    delivery: Delivery,
    slot: Slot,
    bytes: u64,
}

/// One client.
#[derive(Debug)]
struct Sender {
    producer: Producer,
    topic: Arc<str>,
    queues: u32,
    keys: Option<u32>,
    bodies: Bodies,
    run: Option<u64>,
    start: Instant,
    turn: u64,
    /// By queue: where its messages are settled, and how many there have been. A queue's messages
    /// are acknowledged in their order, so each queue can be waited for in order, beside the others.
    lanes: Vec<Option<(mpsc::UnboundedSender<UnderWay>, u64)>>,
    settling: JoinSet<()>,
    shared: Arc<Shared>,
}

impl Sink for Sender {
    async fn ready(&mut self) -> bool {
        let Some(window) = &self.shared.window else {
            return true;
        };
        tokio::select! {
            biased;
            permit = window.acquire() => permit.map(tokio::sync::SemaphorePermit::forget).is_ok(),
            () = self.shared.stop.cancelled() => false,
        }
    }

    async fn put(&mut self, slot: Slot) -> bool {
        let turn = self.turn;
        self.turn += 1;
        let key = self.keys.map(|keys| turn % u64::from(keys));
        // A key stays in its queue; below 2^32.
        let queue = (key.unwrap_or(turn) % u64::from(self.queues)) as u32;
        let stamp = self.run.map(|run| Stamp {
            run,
            sequence: self.lanes[queue as usize].as_ref().map_or(0, |(_, sent)| *sent),
            due_ns: (slot.due - self.start).as_nanos() as u64,
            client: self.shared.client,
            measured: slot.measured,
        });
        let body = self.bodies.next(stamp);
        let bytes = body.len() as u64;
        let mut message = Message::new(Arc::clone(&self.topic), body).queue(queue);
        if let Some(key) = key {
            message = message.key(format!("key-{key}"));
        }
        let enqueued = tokio::select! {
            biased;
            enqueued = self.producer.enqueue(message) => enqueued,
            () = self.shared.stop.cancelled() => return false,
        };
        match enqueued {
            Ok(delivery) => self.settle(queue, UnderWay { delivery, slot, bytes }),
            Err(error) => self.shared.failed(&error),
        }
        true
    }
}

impl Sender {
    fn settle(&mut self, queue: u32, message: UnderWay) {
        let Sender { lanes, settling, shared, queues, .. } = self;
        let (lane, sent) = lanes[queue as usize].get_or_insert_with(|| {
            // Bounded by the producer's buffer: a message that has no room there never gets here.
            let (lane, messages) = mpsc::unbounded_channel();
            let index = shared.client as usize * *queues as usize + queue as usize;
            settling.spawn(settle(messages, index, Arc::clone(shared)));
            (lane, 0)
        });
        *sent += 1;
        // Fails only where the run has been given up.
        let _ = lane.send(message);
    }
}

/// Waits for the outcome of each message of a lane.
async fn settle(
    mut messages: mpsc::UnboundedReceiver<UnderWay>,
    index: usize,
    shared: Arc<Shared>,
) {
    while let Some(UnderWay { delivery, slot, bytes }) = messages.recv().await {
        let outcome = delivery.await;
        let now = Instant::now();
        let mut settled = shared.lanes[index].lock().unwrap_or_else(PoisonError::into_inner);
        if outcome.is_err() {
            let number = settled.count;
            settled.failed.push(number);
        }
        settled.count += 1;
        drop(settled);
        match outcome {
            Ok(receipt) => {
                let mut record = shared.recorder.lock();
                record.message(slot, now, bytes);
                record.reached(receipt.level);
                drop(record);
                shared.room();
            }
            Err(error) => shared.failed(&error),
        }
    }
}

impl Shared {
    fn failed(&self, error: &Error) {
        let mut record = self.recorder.lock();
        record.failed(error);
        let hopeless = record.error_count() >= ERRORS_MAX;
        drop(record);
        if hopeless {
            self.stop.cancel();
        }
        self.room();
    }

    fn room(&self) {
        if let Some(window) = &self.window {
            window.add_permits(1);
        }
    }
}
