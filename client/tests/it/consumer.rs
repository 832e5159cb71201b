use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use longwire_client::{
    Compression, Consumer, ErrorCode, ErrorKind, Message, QueueOffset, StartAt, TagFilter,
    TopicQueue,
};
use tokio::time::timeout;

use crate::mock::{Act, Mock};

pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) async fn receive(consumer: &mut Consumer, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    while bodies.len() < count {
        let received = timeout(SOON, consumer.recv_many(count - bodies.len())).await;
        let received = received.unwrap_or_else(|_| panic!("only {bodies:?} arrived")).unwrap();
        bodies.extend(received.iter().map(|m| String::from_utf8(m.body().to_vec()).unwrap()));
    }
    bodies
}

pub(crate) async fn silent(consumer: &mut Consumer) {
    let more = timeout(Duration::from_millis(100), consumer.recv()).await;
    assert!(more.is_err(), "{more:?}");
}

pub(crate) fn committed(mock: &Mock, queue: u32) -> Option<u64> {
    mock.state.committed.lock().get(&("g".into(), "t".into(), queue)).copied()
}

/// Waits until this is committed for queue 0.
pub(crate) async fn until_committed(mock: &Mock, offset: u64) {
    let reached = async {
        while committed(mock, 0) != Some(offset) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, reached).await.unwrap();
}

#[test]
fn a_connection_that_ends_right_after_its_hello_is_replaced() {
    let (done, is_done) = std::sync::mpsc::channel();
    // On a thread of its own, which a consumer that never lets go of it could keep from ending.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // For several fetches at a time: the first to meet a closed socket ends the connection.
            let mock = Mock::start(&[("t", 1000)]).await;
            mock.store("t", 0, &[b"here"]);
            *mock.state.brief_connections.lock() = 3;
            let client = mock.client().await;
            let consumer = client.consumer().subscribe("t", TagFilter::all()).broadcast();
            let consumer = consumer.start_at(StartAt::Earliest);
            let mut consumer = consumer.build().await.unwrap();
            done.send(receive(&mut consumer, 1).await).unwrap();
        });
    });
    assert_eq!(is_done.recv_timeout(2 * SOON).unwrap(), ["here"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_producers_send_arrives_whole_and_in_order_per_queue() {
    let mock = Mock::start(&[("t", 4)]).await;
    let client = mock.client().await;
    let consumer = client.consumer().subscribe("t", TagFilter::all()).broadcast();
    let mut consumer = consumer.prefetch_bytes_max(200_000).build().await.unwrap();
    let producer = client.producer().build().await.unwrap();
    let sent = tokio::spawn(async move {
        for n in 0..5000_u32 {
            let body = [&n.to_be_bytes()[..], &vec![n as u8; n as usize % 700]].concat();
            let message = Message::new("t", body).key(format!("k{}", n % 40)).tag("a");
            let _dropped = producer.enqueue(message).await.unwrap();
        }
        producer.close().await.unwrap();
    });
    let mut next = [0; 4];
    let mut last: Vec<Option<u32>> = vec![None; 40];
    let mut count = 0;
    while count < 5000 {
        for message in timeout(SOON, consumer.recv_many(64)).await.unwrap().unwrap() {
            let queue = message.queue() as usize;
            assert_eq!(message.offset(), next[queue]);
            next[queue] += 1;
            let body = message.body();
            let n = u32::from_be_bytes(body[..4].try_into().unwrap());
            assert_eq!(body.len(), 4 + n as usize % 700);
            assert_eq!(message.key(), Some(&*format!("k{}", n % 40)));
            assert!(last[n as usize % 40].replace(n) < Some(n), "the order of a key");
            count += 1;
        }
    }
    sent.await.unwrap();
    consumer.close().await.unwrap();
}

#[tokio::test]
async fn a_corrupt_record_stops_its_queue_and_no_other() {
    let mock = Mock::start(&[("t", 2)]).await;
    mock.store("t", 0, &[b"a0", b"a1", b"a2"]);
    mock.store("t", 1, &[b"b0"]);
    {
        let mut topics = mock.state.topics.lock();
        let record = &mut topics.get_mut("t").unwrap()[0][1];
        let mut bytes = record.to_vec();
        bytes[90] ^= 1;
        *record = Bytes::from(bytes);
    }
    let client = mock.client().await;
    let consumer = client.consumer().subscribe("t", TagFilter::all()).broadcast();
    let mut consumer = consumer.build().await.unwrap();
    let (mut bodies, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        match timeout(SOON, consumer.recv()).await.unwrap() {
            Ok(message) => bodies.push(message.body()),
            Err(error) => errors.push(error),
        }
    }
    bodies.sort();
    assert_eq!(bodies, ["a0", "b0"]);
    assert_eq!(errors.len(), 1);
    let record = errors[0].record().unwrap().clone();
    assert_eq!(errors[0].kind(), ErrorKind::CorruptRecord);
    assert_eq!((record.queue.clone(), record.offset), (TopicQueue::new("t", 0), 1));
    silent(&mut consumer).await;

    mock.store("t", 1, &[b"b1"]);
    assert_eq!(receive(&mut consumer, 1).await, ["b1"], "the other queue goes on");
    consumer.seek(&record.queue, record.offset + 1).unwrap();
    assert_eq!(receive(&mut consumer, 1).await, ["a2"]);
}

#[tokio::test]
async fn nonsense_from_the_broker_is_refused_and_the_consumer_goes_on() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"x"]);
    let mut acts = [
        Act::Raw(Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff, 0, 0])),
        Act::Raw(Bytes::from_static(&[0, 0, 0, 10, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8])),
        Act::Drop,
        Act::Refuse(ErrorCode::Overloaded),
    ]
    .into_iter();
    mock.on_fetch(move |_| acts.next().unwrap_or(Act::Serve));
    let client = mock.client().await;
    let consumer = client.consumer().assign([TopicQueue::new("t", 0)]);
    let mut consumer = consumer.build().await.unwrap();
    assert_eq!(receive(&mut consumer, 1).await, ["x"]);
}

#[tokio::test]
async fn the_broker_filters_by_hash_and_the_client_by_tag() {
    let mock = Mock::start(&[("t", 1)]).await;
    let client = mock.client().await;
    let producer = client.producer().build().await.unwrap();
    for (tag, body) in [("Aa", "1"), ("BB", "2"), ("x", "3"), ("", "4"), ("Aa", "5")] {
        producer.send(Message::new("t", body).tag(tag)).await.unwrap();
    }
    let filter = TagFilter::parse("Aa || nothing");
    let consumer = client.consumer().group("g").subscribe("t", filter);
    let consumer = consumer.auto_commit(Some(Duration::from_millis(1)));
    let mut consumer = consumer.build().await.unwrap();
    assert_eq!(receive(&mut consumer, 2).await, ["1", "5"]);
    producer.send(Message::new("t", "6").tag("BB")).await.unwrap();
    tokio::select! {
        received = consumer.recv() => panic!("{received:?}"),
        () = until_committed(&mock, 6) => {} // while more is awaited
    }
    producer.send(Message::new("t", "7").tag("x")).await.unwrap();
    silent(&mut consumer).await;
    consumer.close().await.unwrap();
    assert_eq!(committed(&mock, 0), Some(7), "what the filter passes over counts as consumed");
}

#[tokio::test]
async fn a_group_goes_on_where_it_has_committed() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"0", b"1", b"2", b"3"]);
    let client = mock.client().await;
    let build = || {
        let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
        consumer.auto_commit(None).build()
    };
    let mut consumer = build().await.unwrap();
    assert_eq!(consumer.assignment(), [TopicQueue::new("t", 0)]);
    receive(&mut consumer, 2).await;
    consumer.commit().await.unwrap();
    receive(&mut consumer, 1).await;
    drop(consumer);

    let mut consumer = build().await.unwrap();
    let message = timeout(SOON, consumer.recv()).await.unwrap().unwrap();
    assert_eq!(message.offset(), 2);
    consumer.commit_offsets(&[message.next_offset()]).await.unwrap();
    consumer.close().await.unwrap();
    assert_eq!(committed(&mock, 0), Some(3));
    let commit = mock.state.commits.lock()[0].clone();
    assert_eq!((&*commit.member_id, commit.generation), ("me", 1));
}

#[tokio::test]
async fn automatic_commit_leaves_out_what_the_application_may_still_work_on() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"0", b"1", b"2"]);
    let client = mock.client().await;
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
    let consumer = consumer.auto_commit(Some(Duration::from_millis(20)));
    let mut consumer = consumer.build().await.unwrap();
    receive(&mut consumer, 1).await;
    receive(&mut consumer, 1).await;
    until_committed(&mock, 1).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(committed(&mock, 0), Some(1), "message 1 is still being worked on");
    consumer.close().await.unwrap();
    assert_eq!(committed(&mock, 0), Some(2));
}

#[tokio::test]
async fn seek_pause_and_resume_take_effect_at_once_even_while_a_fetch_is_parked() {
    let mock = Mock::start(&[("t", 2)]).await;
    mock.store("t", 0, &[b"0", b"1", b"2"]);
    let client = mock.client().await;
    let queue = TopicQueue::new("t", 0);
    let consumer = client.consumer().subscribe("t", TagFilter::all()).broadcast();
    let mut consumer = consumer.build().await.unwrap();
    receive(&mut consumer, 3).await;
    assert_eq!(consumer.position(&queue), Some(3));
    for _ in 0..50 {
        consumer.seek(&queue, 1).unwrap();
        assert_eq!(receive(&mut consumer, 2).await, ["1", "2"], "while a fetch is parked");
    }
    consumer.pause(std::slice::from_ref(&queue));
    mock.store("t", 0, &[b"3"]);
    mock.store("t", 1, &[b"other"]);
    assert_eq!(receive(&mut consumer, 1).await, ["other"]);
    silent(&mut consumer).await;
    consumer.resume(std::slice::from_ref(&queue));
    assert_eq!(receive(&mut consumer, 1).await, ["3"]);
    consumer.seek_to_time(&queue, 0).await.unwrap();
    assert_eq!(receive(&mut consumer, 4).await, ["0", "1", "2", "3"]);
    let unknown = consumer.seek(&TopicQueue::new("t", 9), 0).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_topic_deleted_is_reported_not_created_and_read_from_its_beginning_once_it_is_back() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"old", b"older"]);
    let client = mock.client().await;
    let consumer = client.consumer().subscribe("t", TagFilter::all()).broadcast();
    let mut consumer = consumer.build().await.unwrap();
    receive(&mut consumer, 2).await;
    mock.delete("t");
    let error = timeout(SOON, consumer.recv()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownQueue));
    assert_eq!(consumer.assignment(), []);

    mock.state.topics.lock().insert("t".into(), vec![Vec::new()]);
    mock.store("t", 0, &[b"new"]);
    // It is looked for every 10 s.
    let message = timeout(2 * SOON, consumer.recv()).await.unwrap().unwrap();
    assert_eq!((&message.body()[..], message.offset()), (&b"new"[..], 0));
    let asks = mock.state.topic_asks.lock();
    assert!(asks[0] && !asks[1..].contains(&true), "only the first creates it: {asks:?}");
}

#[tokio::test]
async fn an_offset_out_of_range_goes_on_where_the_policy_says() {
    for (start_at, expected) in [(StartAt::Earliest, "2"), (StartAt::Latest, "new")] {
        let mock = Mock::start(&[("t", 1)]).await;
        mock.store("t", 0, &[b"0", b"1", b"2"]);
        *mock.state.retained_from.lock() = 2;
        let client = mock.client().await;
        let queue = TopicQueue::new("t", 0);
        let consumer = client.consumer().assign([queue.clone()]).start_at(start_at);
        let mut consumer = consumer.build().await.unwrap();
        consumer.seek(&queue, 0).unwrap();
        if start_at == StartAt::Latest {
            silent(&mut consumer).await;
        }
        mock.store("t", 0, &[b"new"]);
        assert_eq!(receive(&mut consumer, 1).await, [expected]);
    }
}

#[tokio::test]
async fn a_slow_application_bounds_what_is_fetched() {
    let mock = Mock::start(&[("t", 1)]).await;
    let body = vec![0; 1000];
    mock.store("t", 0, &vec![&body[..]; 2000]);
    let asked = std::sync::Arc::new(parking_lot::Mutex::new(0_u64));
    let furthest = asked.clone();
    mock.on_fetch(move |request| {
        *furthest.lock() = request.topics[0].queues[0].offset;
        Act::Serve
    });
    let client = mock.client().await;
    let consumer = client.consumer().assign([TopicQueue::new("t", 0)]);
    let mut consumer = consumer.prefetch_bytes_max(100_000).build().await.unwrap();
    timeout(SOON, consumer.recv()).await.unwrap().unwrap();
    silent_for_a_while().await;
    assert!(*asked.lock() <= 100, "asked for offset {} with room for 91", asked.lock());
    receive(&mut consumer, 1999).await;
}

pub(crate) async fn silent_for_a_while() {
    tokio::time::sleep(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn settings_that_contradict_each_other_are_refused() {
    let mock = Mock::start(&[("t", 1)]).await;
    let client = mock.client().await;
    let all = TagFilter::all;
    let queue = || [TopicQueue::new("t", 0)];
    let builders = [
        client.consumer(),
        client.consumer().group("g"),
        client.consumer().subscribe("t", all()),
        client.consumer().subscribe("t", all()).group("g").broadcast(),
        client.consumer().subscribe("t", all()).broadcast().assign(queue()),
        client.consumer().subscribe("not a topic", all()).group("g"),
        client.consumer().subscribe("t", all()).group("not a group"),
        client
            .consumer()
            .subscribe("t", TagFilter::any((0..300).map(|n| n.to_string())))
            .group("g"),
    ];
    for builder in builders {
        assert_eq!(builder.build().await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    let consumer = client.consumer().assign(queue()).build().await.unwrap();
    let offsets = [QueueOffset::new("t", 0, 1)];
    let error = consumer.commit_offsets(&offsets).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn automatic_commits_that_fail_are_not_tried_again_at_once() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"x"]);
    *mock.state.refuse_commits.lock() = Some(ErrorCode::StorageFull);
    let client = mock.client().await;
    let consumer = client.consumer().group("g").assign([TopicQueue::new("t", 0)]);
    let mut consumer = consumer.auto_commit(Some(Duration::ZERO)).build().await.unwrap();
    receive(&mut consumer, 1).await;
    silent(&mut consumer).await;
    let asks = mock.state.commit_asks.load(SeqCst);
    assert!((1..20).contains(&asks), "{asks} commits");
    *mock.state.refuse_commits.lock() = None;
    until_committed(&mock, 1).await;
}

#[tokio::test]
async fn compressed_messages_are_handed_out_as_far_as_there_is_room_for_their_bodies() {
    let mock = Mock::start(&[("t", 2)]).await;
    let client = mock.client().await;
    let producer = client.producer().compression(Compression::Zstd).build().await.unwrap();
    for n in 0..40_u32 {
        let body = n.to_string().repeat(50_000);
        producer.enqueue(Message::new("t", body).queue(n % 2)).await.unwrap();
    }
    producer.flush().await.unwrap();
    let queues = [0, 1].map(|queue| TopicQueue::new("t", queue));
    let consumer = client.consumer().assign(queues).prefetch_bytes_max(200_000);
    let mut consumer = consumer.build().await.unwrap();
    let mut next = [0; 2];
    while next != [20, 20] {
        let received = timeout(SOON, consumer.recv_many(100)).await.unwrap().unwrap();
        let bytes: usize = received.iter().map(|message| message.body().len()).sum();
        assert!(bytes < 300_000, "{bytes} bytes at once");
        for message in received {
            let queue = message.queue() as usize;
            assert_eq!(message.offset(), next[queue]);
            next[queue] += 1;
        }
    }
}

#[tokio::test]
async fn without_a_group_nothing_can_be_committed_not_even_nothing() {
    let mock = Mock::start(&[("t", 1)]).await;
    let client = mock.client().await;
    let consumer = client.consumer().assign([TopicQueue::new("t", 0)]).build().await.unwrap();
    for committed in [consumer.commit().await, consumer.commit_offsets(&[]).await] {
        assert_eq!(committed.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    consumer.close().await.unwrap();
}
