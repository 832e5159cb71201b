//! Groups: queues are shared, move when members come and go, and nothing is lost on the way.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use longwire_client::{
    Admin, Client, Consumer, Durability, ErrorCode, Message, NewTopic, QueueOffset, Receipt,
    TagFilter, TopicQueue, TopicUpdate,
};
use longwire_tests::broker_process::{BrokerCommand, BrokerProcess};
use longwire_tests::load::Load;
use longwire_tests::member_process::{MemberEvent, MemberProcess, Said};
use longwire_tests::wait::{until, until_async, within};
use rustix::process::Signal;
use tempfile::TempDir;

/// How fast queues have to move.
const MOVES_WITHIN: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    broker: BrokerProcess,
    client: Client,
    _folder: TempDir,
}

impl Scene {
    async fn start(settings: &[&str]) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let command = BrokerCommand::new(folder.path()).set("storage.segment_bytes=16MiB");
        let command = settings.iter().fold(command, |command, setting| command.set(*setting));
        let broker = command.start();
        let client = Client::connect(broker.control()).await.unwrap();
        Scene { broker, client, _folder: folder }
    }

    fn admin(&self) -> Admin {
        self.client.admin()
    }

    async fn create(&self, topic: &str, queues: u32) {
        self.admin().create_topic(NewTopic::new(topic).queues(queues)).await.unwrap();
    }

    async fn send(&self, topic: &str, queue: u32, bodies: std::ops::Range<u32>) -> Vec<Receipt> {
        let producer = self.client.producer().build().await.unwrap();
        let mut receipts = Vec::new();
        let mut deliveries = Vec::new();
        for body in bodies {
            let message = Message::new(topic, body.to_string()).queue(queue);
            deliveries.push(producer.enqueue(message).await.unwrap());
        }
        for delivery in deliveries {
            receipts.push(delivery.await.unwrap());
        }
        receipts
    }

    async fn join(&self, group: &str, topics: &[&str]) -> Consumer {
        let mut consumer = self.client.consumer().group(group).auto_commit(None);
        for topic in topics {
            consumer = consumer.subscribe(*topic, TagFilter::all());
        }
        within("joining", PATIENCE, consumer.build()).await.unwrap()
    }

    fn member(&self, client_id: &str) -> MemberProcess {
        let binary = Path::new(env!("CARGO_BIN_EXE_group-member"));
        MemberProcess::start(binary, &self.broker.control(), "g", "t", client_id)
    }

    /// The queues of each member, by what it calls itself.
    async fn owners(&self) -> BTreeMap<String, BTreeSet<u32>> {
        let Ok(group) = self.admin().describe_group("g").await else {
            return BTreeMap::new();
        };
        let queues = |member: longwire_client::GroupMember| {
            let queues = member.assigned.iter().map(|queue| queue.queue).collect();
            (member.client_id, queues)
        };
        group.members.into_iter().map(queues).collect()
    }

    /// Waits until the queues are divided so, by number, among these members; how long it took.
    async fn shared(&self, queues: &[(&str, usize)]) -> Duration {
        let wanted: BTreeMap<String, usize> =
            queues.iter().map(|(member, count)| ((*member).into(), *count)).collect();
        let shared = || async {
            let owners = self.owners().await;
            let counts = owners.into_iter().map(|(member, queues)| (member, queues.len()));
            (counts.collect::<BTreeMap<_, _>>() == wanted).then_some(())
        };
        until_async(&format!("the queues are divided {wanted:?}"), PATIENCE, shared).await.0
    }

    async fn committed(&self, queue: u32) -> Option<u64> {
        let committed = self.admin().committed("g").await.unwrap();
        committed.into_iter().find(|at| at.queue == queue).map(|at| at.offset)
    }
}

/// The next `count` messages as (queue, offset).
async fn receive(consumer: &mut Consumer, count: usize) -> Vec<(u32, u64)> {
    let mut received = Vec::new();
    let done = async {
        while received.len() < count {
            let more = consumer.recv_many(count - received.len()).await.unwrap();
            received.extend(more.iter().map(|message| (message.queue(), message.offset())));
        }
    };
    within("messages", PATIENCE, done).await;
    received
}

#[tokio::test]
async fn a_restarted_consumer_resumes_at_its_committed_offset() {
    let scene = Scene::start(&[]).await;
    scene.create("t", 2).await;
    scene.send("t", 0, 0..300).await;
    scene.send("t", 1, 0..300).await;

    let mut first = scene.join("g", &["t"]).await;
    let received = receive(&mut first, 250).await;
    first.commit().await.unwrap();
    let after = |queue| received.iter().filter(|(q, _)| *q == queue).count() as u64;
    let committed = [after(0), after(1)];
    // What is received and not committed comes again.
    receive(&mut first, 100).await;
    drop(first);

    let mut second = scene.join("g", &["t"]).await;
    let rest = receive(&mut second, 600 - 250).await;
    for queue in [0, 1] {
        let offsets: Vec<u64> =
            rest.iter().filter(|(q, _)| *q == queue).map(|(_, offset)| *offset).collect();
        let expected: Vec<u64> = (committed[queue as usize]..300).collect();
        assert_eq!(offsets, expected, "of queue {queue}");
    }
    second.commit().await.unwrap();
    second.close().await.unwrap();
    assert_eq!((scene.committed(0).await, scene.committed(1).await), (Some(300), Some(300)));
}

/// What one member did with one queue without a break in between.
#[derive(Debug)]
struct Stint {
    began: Instant,
    first: u64,
    last: u64,
    committed: u64,
}

/// The stints of a member, by queue.
fn stints(said: &[Said]) -> BTreeMap<u32, Vec<Stint>> {
    let mut stints: BTreeMap<u32, Vec<Stint>> = BTreeMap::new();
    for Said { at, event } in said {
        match event {
            MemberEvent::Got { queue, offset, .. } => {
                let of_queue = stints.entry(*queue).or_default();
                match of_queue.last_mut().filter(|stint| stint.last + 1 == *offset) {
                    Some(stint) => stint.last = *offset,
                    None => of_queue.push(Stint {
                        began: *at,
                        first: *offset,
                        last: *offset,
                        committed: *offset,
                    }),
                }
            }
            MemberEvent::Committed { queue, offset } => {
                if let Some(stint) = stints.get_mut(queue).and_then(|stints| stints.last_mut()) {
                    stint.committed = stint.committed.max(*offset);
                }
            }
            MemberEvent::Refused(_) => {}
            MemberEvent::Other(line) => panic!("a member said {line:?}"),
        }
    }
    stints
}

/// Every member's stints follow one another without a gap, and none begins before what was committed.
/// Returns how many messages were handed out more than once.
fn assert_repeats_lie_after_commits(members: &[&MemberProcess]) -> u64 {
    let mut by_queue: BTreeMap<u32, Vec<Stint>> = BTreeMap::new();
    for member in members {
        for (queue, stints) in stints(&member.said()) {
            by_queue.entry(queue).or_default().extend(stints);
        }
    }
    let mut repeated = 0;
    for (queue, stints) in &mut by_queue {
        stints.sort_by_key(|stint| stint.began);
        for pair in stints.windows(2) {
            let [before, after] = pair else { continue };
            assert!(after.first <= before.last + 1, "queue {queue}, a gap: {before:?} {after:?}");
            assert!(
                after.first >= before.committed,
                "queue {queue}, again although committed: {before:?} {after:?}"
            );
            repeated += before.last + 1 - after.first;
        }
    }
    repeated
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_move_to_a_third_member_and_from_a_killed_one_and_nothing_is_lost() {
    let scene = Scene::start(&[]).await;
    scene.create("t", 8).await;
    let load =
        Load::start(&scene.client, "t", 2, Durability::Topic, Duration::from_millis(2)).await;
    let a = scene.member("a");
    let mut b = scene.member("b");
    scene.shared(&[("a", 4), ("b", 4)]).await;
    for member in [&a, &b] {
        let got = || (member.got_since(Instant::now() - PATIENCE) > 0).then_some(());
        until("both members are handed messages", PATIENCE, got);
    }

    within("load", PATIENCE, load.reaches(300)).await;

    let joined = Instant::now();
    let c = scene.member("c");
    let moved = || async {
        let owners = scene.owners().await;
        let fair =
            owners.len() == 3 && owners.values().all(|queues| (2..=3).contains(&queues.len()));
        (fair && c.got_since(joined) > 0).then_some(())
    };
    let (to_third, ()) = until_async("a third member gets its share", PATIENCE, moved).await;

    within("load", PATIENCE, load.reaches(load.acked() + 200)).await;
    let owned = scene.owners().await.remove("b").unwrap();
    let killed = Instant::now();
    b.kill();
    let moved = || async {
        let owners = scene.owners().await;
        let taken: BTreeSet<u32> = owners.values().flatten().copied().collect();
        let handed: BTreeSet<u32> = [&a, &c]
            .iter()
            .flat_map(|member| stints_since(member, killed))
            .filter(|queue| owned.contains(queue))
            .collect();
        (owners.len() == 2 && taken.len() == 8 && handed == owned).then_some(())
    };
    let (from_killed, ()) =
        until_async("others read the queues of the killed", PATIENCE, moved).await;

    let history = load.stop().await;
    let all: BTreeSet<(u32, u64)> = history.places().map(|(place, _)| place).collect();
    let places = |member: &MemberProcess| -> Vec<(u32, u64)> {
        let place = |said: &Said| match said.event {
            MemberEvent::Got { queue, offset, .. } => Some((queue, offset)),
            _ => None,
        };
        member.said().iter().filter_map(place).collect()
    };
    let complete = || {
        let got: BTreeSet<(u32, u64)> = [&a, &b, &c].into_iter().flat_map(places).collect();
        all.is_subset(&got).then_some(())
    };
    until("every acked message is handed out", PATIENCE, complete);
    let acked: BTreeMap<(u32, u64), _> = history.places().collect();
    for member in [&a, &b, &c] {
        for said in member.said().iter() {
            if let MemberEvent::Got { queue, offset, id } = said.event {
                assert_eq!(acked.get(&(queue, offset)), Some(&id), "{}", member.client_id);
            }
        }
    }
    let repeated = assert_repeats_lie_after_commits(&[&a, &b, &c]);
    println!(
        "{} messages, {repeated} handed out again; to the third member after {to_third:?}, \
         from the killed one after {from_killed:?}",
        all.len()
    );
    assert!(to_third < MOVES_WITHIN && from_killed < MOVES_WITHIN);
}

/// The queues a member was handed messages of since `since`.
fn stints_since(member: &MemberProcess, since: Instant) -> BTreeSet<u32> {
    let queue = |said: &Said| match said.event {
        MemberEvent::Got { queue, .. } if said.at > since => Some(queue),
        _ => None,
    };
    member.said().iter().filter_map(queue).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_is_replaced_and_its_late_commit_is_refused() {
    let scene = Scene::start(&["groups.ping_interval=1s", "groups.ping_timeout=1s"]).await;
    scene.create("t", 2).await;
    let load =
        Load::start(&scene.client, "t", 1, Durability::Topic, Duration::from_millis(2)).await;
    let a = scene.member("a");
    let b = scene.member("b");
    scene.shared(&[("a", 1), ("b", 1)]).await;
    let queue = *scene.owners().await["b"].first().unwrap();
    let has_committed = || b.committed().get(&queue).copied().filter(|offset| *offset > 0);
    until("the member commits", PATIENCE, has_committed);

    b.signal(Signal::STOP);
    let replaced = scene.shared(&[("a", 2)]).await;
    let (past, newest) = (b.committed()[&queue], || a.committed().get(&queue).copied());
    let moved_on = || newest().filter(|offset| *offset > past);
    until("the other member commits for the queue", PATIENCE, moved_on);
    let refusals = |member: &MemberProcess| {
        let refused = |said: &&Said| matches!(said.event, MemberEvent::Refused(_));
        member.said().iter().filter(refused).count()
    };
    let before = refusals(&b);
    let resumed = Instant::now();
    b.signal(Signal::CONT);
    scene.shared(&[("a", 1), ("b", 1)]).await;
    let back = || (!stints_since(&b, resumed).is_empty()).then_some(());
    until("the member that hung is handed messages again", PATIENCE, back);
    load.stop().await;

    println!(
        "replaced after {replaced:?}; {} commits of the one that hung were refused",
        refusals(&b) - before
    );
    assert!(replaced < MOVES_WITHIN, "{replaced:?}");
    let offset = scene.committed(queue).await.unwrap();
    assert!(offset > past, "the commit went back to {offset}, from more than {past}");
    assert_repeats_lie_after_commits(&[&a, &b]);
}

#[tokio::test]
async fn a_commit_for_a_queue_that_went_to_another_member_is_refused() {
    let scene = Scene::start(&[]).await;
    scene.create("t", 2).await;
    scene.send("t", 0, 0..10).await;
    scene.send("t", 1, 0..10).await;
    let mut a = scene.join("g", &["t"]).await;
    receive(&mut a, 20).await;
    a.commit().await.unwrap();
    let b = scene.join("g", &["t"]).await;
    let parted =
        || async { (a.assignment().len() == 1 && b.assignment().len() == 1).then_some(()) };
    until_async("the queues are shared", MOVES_WITHIN, parted).await;

    let lost = b.assignment().remove(0);
    let stale = [QueueOffset::new(lost.topic.clone(), lost.queue, 3)];
    let error = a.commit_offsets(&stale).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotOwner), "{error}");
    assert_eq!(scene.committed(lost.queue).await, Some(10));
    b.commit_offsets(&stale).await.unwrap();
    assert_eq!(scene.committed(lost.queue).await, Some(3), "its owner may go back");
}

#[tokio::test]
async fn a_commit_tells_that_a_queue_was_lost_before_it() {
    let scene = Scene::start(&[]).await;
    scene.create("t", 2).await;
    scene.send("t", 0, 0..10).await;
    scene.send("t", 1, 0..10).await;
    let mut a = scene.join("g", &["t"]).await;
    receive(&mut a, 20).await;
    let b = scene.join("g", &["t"]).await;
    let moved = || async { (b.assignment().len() == 1).then_some(()) };
    until_async("a queue moves although its messages are being worked on", PATIENCE, moved).await;
    let lost = b.assignment().remove(0);
    let error = a.commit().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotOwner), "{error}");
    assert!(error.to_string().contains(&lost.to_string()), "{error}");
    assert_eq!(scene.committed(lost.queue).await, None);
    assert_eq!(scene.committed(1 - lost.queue).await, Some(10), "what it still has is committed");
    a.commit().await.unwrap();
}

#[tokio::test]
async fn a_deleted_topic_does_not_keep_those_of_others_from_being_committed() {
    let scene = Scene::start(&["broker.auto_create_topics=false"]).await;
    for topic in ["goes", "stays"] {
        scene.create(topic, 1).await;
        scene.send(topic, 0, 0..3).await;
    }
    let queues = ["goes", "stays"].map(|topic| TopicQueue::new(topic, 0));
    let consumer = scene.client.consumer().group("g").auto_commit(None).assign(queues);
    let mut consumer = consumer.build().await.unwrap();
    receive(&mut consumer, 6).await;
    scene.admin().delete_topic("goes").await.unwrap();
    consumer.commit().await.unwrap();
    assert_eq!(scene.committed(0).await, Some(3));
}

#[tokio::test]
async fn queues_and_topics_that_come_later_are_consumed() {
    let scene = Scene::start(&[]).await;
    scene.create("t", 1).await;
    let mut consumer = scene.join("g", &["t", "later"]).await;
    scene.send("t", 0, 0..1).await;
    assert_eq!(receive(&mut consumer, 1).await, [(0, 0)]);

    let began = Instant::now();
    scene.admin().update_topic("t", TopicUpdate::new().queues(3)).await.unwrap();
    scene.send("t", 2, 0..1).await;
    assert_eq!(receive(&mut consumer, 1).await, [(2, 0)]);
    let queues = began.elapsed();

    scene.admin().delete_topic("later").await.unwrap();
    let error = within("the end of a topic", PATIENCE, consumer.recv()).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic), "{error}");
    let began = Instant::now();
    scene.create("later", 2).await;
    scene.send("later", 1, 0..1).await;
    let next = within("a message of the new topic", PATIENCE, consumer.recv()).await.unwrap();
    assert_eq!((&**next.topic(), next.queue()), ("later", 1));
    println!("new queues after {queues:?}, a new topic after {:?}", began.elapsed());
    consumer.close().await.unwrap();
}
