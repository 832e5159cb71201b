//! A producer and a consumer that must notice nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use longwire_client::{Client, Durability, Message, NewTopic, TagFilter, TopicDurability};
use longwire_tests::wait::within;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a message may take from `send` to `recv`, beside any attack, on a busy machine. Far below every
/// timeout of the broker: nobody is waited for.
const LATENCY_MAX: Duration = Duration::from_secs(5);
/// Round trips that count as going on.
const ROUND_TRIPS_MIN: u64 = 20;
const PACE: Duration = Duration::from_millis(5);

/// Sends a message, waits until the consumer has it, and sends the next.
pub(crate) struct Healthy {
    runtime: Runtime,
    stop: CancellationToken,
    trips: Arc<AtomicU64>,
    task: JoinHandle<Duration>,
}

impl Healthy {
    pub(crate) fn start(broker: String) -> Healthy {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let (stop, trips) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let (begun, begins) = mpsc::channel();
        let trip = Trips { stop: stop.clone(), trips: trips.clone(), begun };
        let task = runtime.spawn(trip.run(broker));
        begins.recv().expect("the healthy pair begins");
        Healthy { runtime, stop, trips, task }
    }

    /// Waits for some more round trips, now that the attack is on, and checks how the worst one went.
    pub(crate) fn assert_undisturbed(self) {
        let target = self.trips.load(Ordering::Relaxed) + ROUND_TRIPS_MIN;
        let gone_on = || (self.trips.load(Ordering::Relaxed) >= target).then_some(());
        longwire_tests::wait::until("the healthy pair goes on", Duration::from_secs(60), gone_on);
        self.stop.cancel();
        let slowest = self.runtime.block_on(self.task).expect("the healthy pair ends well");
        println!(
            "{} round trips beside it, the slowest {slowest:?}",
            self.trips.load(Ordering::Relaxed)
        );
        assert!(slowest < LATENCY_MAX, "a round trip took {slowest:?}");
    }
}

struct Trips {
    stop: CancellationToken,
    trips: Arc<AtomicU64>,
    begun: mpsc::Sender<()>,
}

impl Trips {
    async fn run(self, broker: String) -> Duration {
        let client = Client::connect(broker).await.unwrap();
        let name = format!("healthy-{:x}", longwire_tests::random());
        let topic = NewTopic::new(&name).queues(2).durability(TopicDurability::Write);
        client.admin().create_topic(topic).await.unwrap();
        let producer = client.producer().durability(Durability::Topic).build().await.unwrap();
        let consumer = client.consumer().group(&name).subscribe(&*name, TagFilter::all());
        let mut consumer = consumer.build().await.unwrap();
        let mut slowest = Duration::ZERO;
        let mut number = 0_u64;
        while !self.stop.is_cancelled() {
            let began = Instant::now();
            let body = format!("healthy {number}");
            let sent = producer.send(Message::new(&*name, body.clone()).queue((number % 2) as u32));
            within("a healthy send", LATENCY_MAX, sent).await.unwrap();
            let received = within("a healthy receive", LATENCY_MAX, consumer.recv()).await.unwrap();
            assert_eq!(received.body(), body);
            slowest = slowest.max(began.elapsed());
            number += 1;
            self.trips.store(number, Ordering::Relaxed);
            if number == 1 {
                let _ = self.begun.send(());
            }
            tokio::time::sleep(PACE).await;
        }
        consumer.close().await.unwrap();
        producer.close().await.unwrap();
        slowest
    }
}
