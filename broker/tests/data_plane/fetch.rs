//! Fetch: parking, errors, filters, fairness.

use std::io::Write;
use std::time::{Duration, Instant};

use longwire_proto::ErrorCode;
use longwire_proto::data::{FetchQueue, FetchRequest, FetchTopic};
use longwire_proto::data::{request_header::Request, response_header::Response};
use longwire_proto::record::{RecordView, tag_hash};

use crate::TestBroker;
use crate::client::{Client, encode, fetch, noise, split, tagged_record};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_parked_fetch_is_answered_when_something_arrives() {
    let broker = TestBroker::start();
    let (mut producer, mut consumer) =
        (Client::connect(broker.addr()), Client::connect(broker.addr()));
    producer.produce_visible("t", 0, &["first"]);
    for round in 1..20 {
        let queues: Vec<(u32, u64)> = (0..8).map(|q| (q, if q == 0 { round } else { 0 })).collect();
        let id = consumer.send(Request::Fetch(fetch("t", &queues, 1 << 20, LONG)), &[]);
        producer.produce_bodies("t", 0, &[format!("round {round}")]);
        let (response, body) = consumer.fetched(id);
        assert_eq!(response.results.len(), 1);
        assert_eq!((response.results[0].index, response.results[0].next_offset), (0, round + 1));
        assert_eq!(split(&body)[0].body(), format!("round {round}").as_bytes());
    }
}

#[test]
fn fetches_of_one_connection_park_independently() {
    let broker = TestBroker::start();
    let (mut producer, mut consumer) =
        (Client::connect(broker.addr()), Client::connect(broker.addr()));
    producer.produce_bodies("t", 7, &["so that the topic exists"]);
    let ids: Vec<u64> = (0..7)
        .map(|queue| consumer.send(Request::Fetch(fetch("t", &[(queue, 0)], 1 << 20, LONG)), &[]))
        .collect();
    for queue in (0..7).rev() {
        producer.produce_bodies("t", queue, &[format!("to {queue}")]);
        let (_, body) = consumer.fetched(ids[queue as usize]);
        assert_eq!(split(&body)[0].body(), format!("to {queue}").as_bytes());
    }
}

#[test]
fn a_fetch_of_many_queues_in_any_order_is_answered_by_each_of_them() {
    let broker = TestBroker::start_with(|config| config.broker.default_queues = 150);
    let (mut producer, mut consumer) =
        (Client::connect(broker.addr()), Client::connect(broker.addr()));
    producer.produce_visible("t", 141, &["so that the topic exists"]);
    // Every other queue, those of one end and the other in turn.
    let mut wanted: Vec<(u32, u64)> =
        (0..37).flat_map(|n| [(2 * n, 0), (148 - 2 * n, 0)]).collect();
    for queue in [0, 62, 64, 76, 126, 128, 148] {
        let id = consumer.send(Request::Fetch(fetch("t", &wanted, 1 << 20, LONG)), &[]);
        until(|| broker.metric("longwire_parked_fetches") == 1.0);
        // A neighbour that nobody waits for.
        producer.produce_visible("t", queue + 1, &["not wanted"]);
        let body = format!("to {queue}");
        producer.produce_bodies("t", queue, &[&body]);
        let (response, fetched) = consumer.fetched(id);
        assert_eq!(response.results.len(), 1, "{response:?}");
        assert_eq!(wanted[response.results[0].index as usize].0, queue);
        assert_eq!(split(&fetched)[0].body(), body.as_bytes());
        // The next fetch goes on from here.
        let at = response.results[0].index as usize;
        wanted[at].1 = response.results[0].next_offset;
    }
}

#[test]
fn a_fetch_that_finds_nothing_ends_empty_at_its_deadline() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    client.produce_visible("t", 0, &["x"]);
    for wait in [Duration::ZERO, Duration::from_millis(150)] {
        let begun = Instant::now();
        let (response, _) = client.fetch(fetch("t", &[(0, 1), (1, 0)], 1 << 20, wait));
        assert!(response.results.is_empty(), "{response:?}");
        assert!(begun.elapsed() >= wait);
    }
    assert_eq!(broker.metric("longwire_parked_fetches"), 0.0);
}

#[test]
fn parked_fetches_are_dropped_with_their_connection() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    client.produce_visible("t", 0, &["x"]);
    for _ in 0..10 {
        client.send(Request::Fetch(fetch("t", &[(0, 1)], 1 << 20, LONG)), &[]);
    }
    until(|| broker.metric("longwire_parked_fetches") == 10.0);
    drop(client);
    until(|| broker.metric("longwire_parked_fetches") == 0.0);
    until(|| broker.metric("longwire_connections") == 0.0);
}

#[test]
fn a_client_that_has_gone_is_noticed_also_where_no_more_may_be_read_from_it() {
    let broker = TestBroker::start_with(|config| config.limits.in_flight_per_connection = 2);
    Client::connect(broker.addr()).produce_visible("t", 0, &["x"]);
    for sent in [2, 3] {
        let mut client = Client::connect(broker.addr());
        for _ in 0..sent {
            client.send(Request::Fetch(fetch("t", &[(0, 1)], 1 << 20, LONG)), &[]);
        }
        until(|| broker.metric("longwire_parked_fetches") == 2.0);
        drop(client);
        until(|| broker.metric("longwire_parked_fetches") == 0.0);
        until(|| broker.metric("longwire_connections") == 0.0);
    }
}

#[test]
fn a_parked_fetch_is_told_of_the_topic_that_is_deleted_and_of_no_other() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let topic = |name: &str, queues: &[(u32, u64)]| fetch(name, queues, 0, LONG).topics.remove(0);
    for name in ["stays", "goes", "stays-too"] {
        client.produce_visible(name, 0, &["x"]);
    }
    let topics = vec![
        topic("stays", &[(0, 1), (1, 0)]),
        topic("goes", &[(0, 1), (1, 0)]),
        topic("stays-too", &[(0, 1)]),
    ];
    let request = FetchRequest { max_wait_ms: 60_000, max_bytes: 1 << 20, topics };
    let id = client.send(Request::Fetch(request), &[]);
    until(|| broker.metric("longwire_parked_fetches") == 1.0);
    broker.store().delete_topic("goes").unwrap();
    let (mut response, _) = client.fetched(id);
    response.results.sort_by_key(|result| result.index);
    let codes: Vec<(u32, u32)> = response.results.iter().map(|r| (r.index, r.code)).collect();
    let unknown = ErrorCode::UnknownTopic.number();
    assert_eq!(codes, [(2, unknown), (3, unknown)]);
}

#[test]
fn stopping_does_not_wait_for_parked_fetches() {
    let mut broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    client.produce_visible("t", 0, &["x"]);
    client.send(Request::Fetch(fetch("t", &[(0, 1)], 1 << 20, LONG)), &[]);
    until(|| broker.metric("longwire_parked_fetches") == 1.0);
    let begun = Instant::now();
    broker.stop();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(client.receive().is_none());
}

#[test]
fn an_offset_out_of_range_is_answered_with_the_range() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    client.produce_visible("t", 0, &["a", "b", "c"]);
    for offset in [4, u64::MAX] {
        let (response, _) = client.fetch(fetch("t", &[(0, offset)], 1 << 20, LONG));
        let result = &response.results[0];
        assert_eq!(result.code, ErrorCode::OffsetOutOfRange.number());
        assert_eq!((result.min_offset, result.max_offset), (0, 3));
    }
}

#[test]
fn errors_of_one_queue_do_not_keep_the_records_of_another() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    client.produce_visible("t", 0, &["x"]);
    let topic = |name: &str, queues: &[(u32, u64)]| fetch(name, queues, 0, LONG).topics.remove(0);
    let request = FetchRequest {
        max_wait_ms: 60_000,
        max_bytes: 1 << 20,
        topics: vec![topic("nowhere", &[(0, 0)]), topic("t", &[(99, 0), (0, 0), (1, 9)])],
    };
    let (mut response, body) = client.fetch(request);
    response.results.sort_by_key(|result| result.index);
    let codes: Vec<(u32, u32)> = response.results.iter().map(|r| (r.index, r.code)).collect();
    let expected = [
        (0, ErrorCode::UnknownTopic.number()),
        (1, ErrorCode::UnknownQueue.number()),
        (2, 0),
        (3, ErrorCode::OffsetOutOfRange.number()),
    ];
    assert_eq!(codes, expected);
    assert_eq!(split(&body)[0].body(), b"x");
}

#[test]
fn a_filter_passes_over_other_tags_and_says_how_far() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let tags = ["a", "b", "a", "a", "b", "c"];
    let records: Vec<Vec<u8>> =
        tags.iter().map(|tag| tagged_record("t", 0, tag, tag.as_bytes())).collect();
    client.produce("t", 0, &records.concat());
    client.assert_queue_holds("t", 0, 1 << 20, &tags);

    let tagged = |tag: &str, offset, wait: Duration| FetchRequest {
        max_wait_ms: wait.as_millis() as u32,
        max_bytes: 1 << 20,
        topics: vec![FetchTopic {
            created_position: None,
            topic: "t".into(),
            tag_hashes: vec![tag_hash(tag)],
            queues: vec![FetchQueue { queue: 0, offset, max_bytes: 0 }],
        }],
    };
    let (response, body) = client.fetch(tagged("b", 0, LONG));
    assert_eq!(split(&body).iter().map(RecordView::offset).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(response.results[0].next_offset, 6);

    // Nothing fits: the answer at the deadline still tells where to go on.
    let (response, body) = client.fetch(tagged("none", 0, Duration::from_millis(50)));
    assert!(body.is_empty());
    assert_eq!((response.results[0].bytes, response.results[0].next_offset), (0, 6));

    // And it does so long before a deadline that is far away.
    let begun = Instant::now();
    let (response, body) = client.fetch(tagged("none", 0, LONG));
    assert!(body.is_empty() && begun.elapsed() < LONG / 2);
    assert_eq!(response.results[0].next_offset, 6);

    // While parked, what does not fit does not end the wait at once.
    let mut producer = Client::connect(broker.addr());
    let id = client.send(Request::Fetch(tagged("z", 6, LONG)), &[]);
    for tag in ["y", "y", "z"] {
        producer.produce("t", 0, &tagged_record("t", 0, tag, b"late"));
    }
    let (mut response, mut body) = client.fetched(id);
    if body.is_empty() {
        // It took more than a second to produce them.
        let next = response.results[0].next_offset;
        (response, body) = client.fetch(tagged("z", next, LONG));
    }
    assert_eq!((split(&body)[0].offset(), response.results[0].next_offset), (8, 9));
}

#[test]
fn a_limit_of_bytes_holds_but_one_record_is_always_sent() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let bodies: Vec<Vec<u8>> = (0..50).map(|i| noise(i, 1000)).collect();
    for queue in 0..8 {
        client.produce_visible("t", queue, &bodies);
    }
    let queues: Vec<(u32, u64)> = (0..8).map(|queue| (queue, 0)).collect();
    let (_, body) = client.fetch(fetch("t", &queues, 1, LONG));
    assert_eq!(split(&body).len(), 1);
    for bytes_max in [1_000, 5_000, 100_000, 300_000] {
        let (_, body) = client.fetch(fetch("t", &queues, bytes_max, LONG));
        let (got, max) = (body.len(), bytes_max as usize);
        assert!(got <= max.max(split(&body)[0].size()), "{got} bytes for {max}");
        assert!(got + 1_200 > max, "{got} bytes for {max}");
    }
    let mut request = fetch("t", &queues, 1 << 20, LONG);
    request.topics[0].queues.iter_mut().for_each(|queue| queue.max_bytes = 2_500);
    let (response, _) = client.fetch(request);
    assert_eq!(response.results.len(), 8);
    assert!(response.results.iter().all(|r| r.bytes <= 2_500 && r.next_offset == 2));
}

#[test]
fn no_queue_starves_under_a_limit_of_bytes() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let mut offsets = [0; 8];
    for queue in 0..8 {
        client.produce_visible("t", queue, &vec![[7; 500]; 100]);
    }
    for _ in 0..32 {
        let queues: Vec<(u32, u64)> = (0..8).zip(offsets).collect();
        let (response, _) = client.fetch(fetch("t", &queues, 1_000, LONG));
        response.results.iter().for_each(|r| offsets[r.index as usize] = r.next_offset);
    }
    assert!(offsets.iter().all(|&offset| offset >= 2), "{offsets:?}");
}

#[test]
fn no_queue_starves_whatever_ids_a_client_gives_and_in_whatever_turns_it_asks() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    for queue in 0..4 {
        client.produce_visible("t", queue, &vec![[7; 500]; 100]);
    }
    let mut offsets = [0; 4];
    let id = 3;
    for turn in 0..64 {
        let set = if turn % 2 == 0 { [0, 1] } else { [2, 3] };
        let queues = set.map(|queue: u32| (queue, offsets[queue as usize]));
        let request = Request::Fetch(fetch("t", &queues, 500, LONG));
        client.stream.write_all(&encode(id, request, &[])).unwrap();
        let (response, _) = client.fetched(id);
        for result in response.results {
            offsets[set[result.index as usize] as usize] = result.next_offset;
        }
    }
    assert!(offsets.iter().all(|&offset| offset >= 8), "{offsets:?}");
}

#[test]
fn a_fetch_that_makes_no_sense_is_refused_and_the_connection_goes_on() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let mut tagged = fetch("t", &[(0, 0)], 1, LONG);
    tagged.topics[0].tag_hashes = (0..257).collect();
    let none = FetchRequest { max_wait_ms: 9, max_bytes: 9, topics: vec![] };
    let mut beside = fetch("t", &[(0, 0)], 1, LONG);
    beside.topics.push(FetchTopic::default());
    for request in [none, beside, fetch("t", &[(0, 0); 1025], 1, LONG), tagged] {
        let id = client.send(Request::Fetch(request), &[]);
        assert_eq!(client.error(id), ErrorCode::InvalidRequest);
    }
    client.produce_bodies("t", 0, &["x"]);
}

/// Waits for something that another thread brings about.
fn until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn fetches_that_wait_take_no_more_than_their_memory_and_others_are_served_all_the_same() {
    let broker = TestBroker::start_with(|config| {
        config.limits.parked_memory_bytes = 1 << 20;
        config.broker.default_queues = 1024;
    });
    let mut producer = Client::connect(broker.addr());
    producer.produce_visible("t", 0, &["first"]);

    // Each takes at least 24 bytes for each queue.
    let all: Vec<(u32, u64)> = (1..1024).map(|queue| (queue, 0)).collect();
    let parked_max = f64::from(1 << 20) / (24.0 * all.len() as f64);
    let mut greedy = Client::connect(broker.addr());
    let begun = Instant::now();
    for _ in 0..50 {
        greedy.send(Request::Fetch(fetch("t", &all, 1 << 20, LONG)), &[]);
    }
    // Those that find no room are answered one after another, without records.
    let (mut answered, mut parked) = (0, 50.0);
    while f64::from(answered) + parked_max < 50.0 {
        let (_, response, _) = greedy.receive().unwrap();
        assert!(matches!(response, Response::Fetch(found) if found.results.is_empty()));
        answered += 1;
        parked = broker.metric("longwire_parked_fetches");
    }
    assert!(begun.elapsed() < LONG / 2, "none of them was answered for its time");
    assert!(0.0 < parked && parked <= parked_max + 1.0, "{parked} are parked");
    // What room is left, in which a large one does not fit.
    let mut small = Client::connect(broker.addr());
    for _ in 0..50 {
        small.send(Request::Fetch(fetch("t", &all[..1], 1 << 20, LONG)), &[]);
    }
    assert!(matches!(small.receive(), Some((_, Response::Fetch(_), _))));

    // A consumer is told at once of what arrives, and does not spin while there is nothing.
    let mut consumer = Client::connect(broker.addr());
    for round in 1..4 {
        let begun = Instant::now();
        let (response, _) = consumer.fetch(fetch("t", &[(0, round)], 1 << 20, LONG));
        assert_eq!(response.results.len(), 0);
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(50) && waited < LONG / 4, "{waited:?}");
        let id = consumer.send(Request::Fetch(fetch("t", &[(0, round)], 1 << 20, LONG)), &[]);
        producer.produce_bodies("t", 0, &[format!("round {round}")]);
        let (mut response, mut body) = consumer.fetched(id);
        while response.results.is_empty() {
            (response, body) = consumer.fetch(fetch("t", &[(0, round)], 1 << 20, LONG));
        }
        assert_eq!(split(&body)[0].body(), format!("round {round}").as_bytes());
    }

    // What they took is there again when they are gone.
    drop((greedy, small));
    until(|| broker.metric("longwire_parked_fetches") == 0.0);
    consumer.send(Request::Fetch(fetch("t", &[(0, 4)], 1 << 20, LONG)), &[]);
    consumer.send(Request::Fetch(fetch("t", &[(1, 0)], 1 << 20, LONG)), &[]);
    until(|| broker.metric("longwire_parked_fetches") == 2.0);
}
