//! What was acknowledged survives kill -9, again and again, and so do committed offsets.
//!
//! `LONGWIRE_KILLS` says how many kills at `flush` (20 if not set), and half as many at `write`.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use longwire_client::{
    Client, Consumer, Durability, NewTopic, OffsetPoint, QueueOffset, TagFilter, TopicDurability,
};
use longwire_tests::broker_process::{Addresses, BrokerCommand};
use longwire_tests::history::{MessageId, read_topic};
use longwire_tests::load::Load;
use longwire_tests::segment_reader::SegmentReader;
use longwire_tests::wait::within;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const TOPIC: &str = "orders";
const QUEUES: u32 = 8;
/// The promise is 2 s; a build without optimisation on a busy machine gets more.
const READY_MAX: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);

/// Offsets by queue.
type Offsets = BTreeMap<u32, u64>;

fn kills() -> usize {
    std::env::var("LONGWIRE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acked_at_flush_and_what_was_committed_survives_every_kill() {
    survives(kills(), Durability::Flush, TopicDurability::Flush).await;
}

/// The process dies, not the machine: the page cache has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acked_as_written_survives_the_death_of_the_process() {
    survives(kills() / 2, Durability::Write, TopicDurability::Write).await;
}

async fn survives(kills: usize, acked_at: Durability, durability: TopicDurability) {
    let folder = tempfile::tempdir().unwrap();
    let command = BrokerCommand::new(folder.path())
        .on(Addresses::fixed())
        .set("storage.segment_bytes=4MiB")
        .set("storage.checkpoint_interval=200ms")
        .set("storage.checkpoint_bytes=1MiB");
    let mut broker = command.start();
    let client = Client::connect(broker.control()).await.unwrap();
    let topic = NewTopic::new(TOPIC).queues(QUEUES).durability(durability);
    client.admin().create_topic(topic).await.unwrap();

    let audit = Audit::start(&client).await;
    let load = Load::start(&client, TOPIC, 4, acked_at, Duration::ZERO).await;
    let mut committed = Offsets::new();
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        let billing = Billing::start(&client, committed.clone()).await;
        let target = load.acked() + 300 + (longwire_tests::random() % 3_000) as usize;
        within("acknowledgements after a restart", PATIENCE, load.reaches(target)).await;
        within("a commit after a restart", PATIENCE, billing.commits()).await;
        broker.kill();
        let end = billing.stop().await;
        if kill % 4 == 3 {
            // Somewhere in its recovery, or right behind it.
            command.kill_after(Duration::from_millis(longwire_tests::random() % 40));
        }
        broker = command.start();
        slowest = slowest.max(broker.ready_after);
        // What is derived from the log is not built anew for every kill.
        assert!(!broker.log().contains("are missing"), "kill {kill}: {}", broker.log());
        committed = committed_offsets(&client, "billing").await;
        end.assert_survived_as(&committed, kill);
    }
    let history = load.stop().await;
    let verified = history.verify(&read_topic(&client, TOPIC).await);
    println!("{kills} kills, slowest restart {slowest:?}, {verified:?}");
    let seen = audit.finish(&client).await;
    println!("a consumer that lived through all of it: {seen:?}");
    assert!(verified.acked >= kills * 300);
    assert!(slowest < READY_MAX, "a restart took {slowest:?}");
    broker.stop();
    // A reader that is not Longwire's finds the same log.
    let log = SegmentReader::open(folder.path()).unwrap();
    let messages = log.map(Result::unwrap).filter(|message| message.topic == TOPIC);
    assert_eq!(messages.count(), verified.stored);
}

async fn committed_offsets(client: &Client, group: &str) -> Offsets {
    let committed = client.admin().committed(group).await.unwrap();
    committed.into_iter().map(|at| (at.queue, at.offset)).collect()
}

/// A group's member that commits what it has received, until the broker is killed.
struct Billing {
    stop: CancellationToken,
    commits: watch::Receiver<usize>,
    task: JoinHandle<BillingEnd>,
}

/// Where a group's commits stood when the broker was killed.
#[derive(Debug, Default)]
struct BillingEnd {
    /// What the broker has confirmed.
    confirmed: Offsets,
    /// What has been sent to it, confirmed or not.
    sent: Offsets,
}

impl BillingEnd {
    fn assert_survived_as(&self, committed: &Offsets, kill: usize) {
        for (queue, offset) in committed {
            let at_least = self.confirmed.get(queue).copied().unwrap_or(0);
            let at_most = self.sent.get(queue).copied().unwrap_or(0);
            assert!(
                (at_least..=at_most).contains(offset),
                "kill {kill}: {at_least} was committed for queue {queue}, and {at_most} tried; \
                 now it is {offset}"
            );
        }
        for queue in self.confirmed.keys() {
            assert!(committed.contains_key(queue), "kill {kill}: queue {queue} has no offset");
        }
    }
}

impl Billing {
    /// Joins, and checks that what comes first of each queue is what was committed.
    async fn start(client: &Client, resume_at: Offsets) -> Billing {
        let consumer =
            client.consumer().group("billing").subscribe(TOPIC, TagFilter::all()).auto_commit(None);
        let consumer = within("joining", PATIENCE, consumer.build()).await.unwrap();
        let (counter, commits) = watch::channel(0);
        let stop = CancellationToken::new();
        let task = tokio::spawn(Billing::run(consumer, resume_at, counter, stop.clone()));
        Billing { stop, commits, task }
    }

    async fn run(
        mut consumer: Consumer,
        resume_at: Offsets,
        commits: watch::Sender<usize>,
        stop: CancellationToken,
    ) -> BillingEnd {
        let mut end = BillingEnd { confirmed: resume_at.clone(), sent: resume_at.clone() };
        let mut next = resume_at;
        let mut killed = std::pin::pin!(stop.cancelled());
        loop {
            let received = tokio::select! {
                received = consumer.recv_many(50) => received.unwrap(),
                () = &mut killed => return end,
            };
            for message in received {
                let expected = next.entry(message.queue()).or_default();
                assert_eq!(message.offset(), *expected, "in queue {}", message.queue());
                *expected += 1;
            }
            end.sent.clone_from(&next);
            let confirmed = tokio::select! {
                confirmed = consumer.commit() => confirmed.is_ok(),
                () = &mut killed => return end,
            };
            if confirmed {
                end.confirmed.clone_from(&next);
                commits.send_modify(|commits| *commits += 1);
            }
        }
    }

    async fn commits(&self) {
        let _ = self.commits.clone().wait_for(|commits| *commits > 0).await;
    }

    async fn stop(self) -> BillingEnd {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

/// A consumer that lives through every kill, and notes what it is given.
struct Audit {
    seen: Arc<Mutex<Seen>>,
    progress: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    next: Offsets,
    ids: HashMap<(u32, u64), MessageId>,
    repeated: usize,
    errors: Vec<String>,
}

/// What the consumer was given in all.
#[derive(Debug)]
#[allow(dead_code, reason = "shown by its `Debug` form")]
struct Summary {
    messages: usize,
    repeated: usize,
    errors: usize,
}

impl Audit {
    async fn start(client: &Client) -> Audit {
        let consumer = client
            .consumer()
            .group("audit")
            .subscribe(TOPIC, TagFilter::all())
            .auto_commit(Some(Duration::from_millis(100)));
        let mut consumer = consumer.build().await.unwrap();
        let (counter, progress) = watch::channel(0);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noting = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let received = consumer.recv_many(200).await;
                noting.lock().note(received);
                counter.send_modify(|answers| *answers += 1);
            }
        });
        Audit { seen, progress, task }
    }

    /// Waits until everything has been seen.
    async fn finish(mut self, client: &Client) -> Summary {
        let ends = client.admin().list_offsets(TOPIC, OffsetPoint::Latest).await.unwrap();
        let ends: Vec<QueueOffset> = ends.into_iter().filter(|end| end.offset > 0).collect();
        let all_seen = |seen: &Seen| {
            ends.iter().all(|end| seen.next.get(&end.queue).copied() == Some(end.offset))
        };
        let done = async {
            while !all_seen(&self.seen.lock()) {
                self.progress.changed().await.unwrap();
            }
        };
        within("everything reaches the consumer that stayed", PATIENCE, done).await;
        self.task.abort();
        let seen = self.seen.lock();
        println!("its errors: {:?}", seen.errors);
        Summary { messages: seen.ids.len(), repeated: seen.repeated, errors: seen.errors.len() }
    }
}

impl Seen {
    fn note(&mut self, received: Result<Vec<longwire_client::Received>, longwire_client::Error>) {
        let received = match received {
            Ok(received) => received,
            Err(error) => return self.errors.push(error.to_string()),
        };
        for message in received {
            let place = (message.queue(), message.offset());
            let id = MessageId::of(&message.body());
            let id = id.unwrap_or_else(|| panic!("wrong bytes at {place:?}"));
            let next = self.next.entry(place.0).or_default();
            assert!(place.1 <= *next, "{place:?} came where {next} was to come: a gap");
            *next = (*next).max(place.1 + 1);
            match self.ids.insert(place, id) {
                None => {}
                Some(before) => {
                    assert_eq!(before, id, "{place:?} has changed");
                    self.repeated += 1;
                }
            }
        }
    }
}
