//! Hello and produce.

use std::time::{Duration, Instant};

use longwire_proto::ErrorCode;
use longwire_proto::data::{
    AckLevel, Durability, ProduceRequest, ProduceRun, request_header::Request,
    response_header::Response,
};
use longwire_proto::limits::REQUEST_FRAME_BYTES_MAX;
use longwire_proto::record::RecordView;

use crate::TestBroker;
use crate::client::{Client, fetch, hello, noise, produce, records, split};

#[test]
fn hello_tells_the_limits() {
    let broker = TestBroker::start();
    let mut client = Client::connect_silently(broker.addr());
    let Response::Hello(answer) = client.call(hello(1, b""), &[]) else { panic!("no hello") };
    assert_eq!(answer.protocol_version, 1);
    assert_eq!(answer.max_frame_bytes as usize, REQUEST_FRAME_BYTES_MAX);
    assert!(answer.max_in_flight > 0);
    assert!(!answer.store_host_ipv6);
    assert!(!answer.broker_version.is_empty());
}

#[test]
fn another_protocol_version_is_refused_and_the_connection_closed() {
    let broker = TestBroker::start();
    let mut client = Client::connect_silently(broker.addr());
    let id = client.send(hello(2, b""), &[]);
    assert_eq!(client.error(id), ErrorCode::UnsupportedVersion);
    assert!(client.receive().is_none());
}

#[test]
fn an_answer_says_where_each_record_is_and_what_it_has_reached() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let bytes = records("t", 3, &["a", "bc", "def"]);
    let result = client.produce("t", 3, &bytes);
    assert_eq!(result.code, 0);
    assert!(result.level >= i32::from(AckLevel::Written));
    let [extent] = &result.extents[..] else { panic!("{result:?}") };
    assert_eq!((extent.records, extent.offset), (3, 0));

    let (_, body) = client.fetch(fetch("t", &[(3, 0)], 1 << 20, Duration::from_secs(10)));
    let stored = split(&body);
    assert_eq!(stored.iter().map(RecordView::body).collect::<Vec<_>>(), [&b"a"[..], b"bc", b"def"]);
    let mut position = extent.position;
    for record in stored {
        assert_eq!(record.position(), position);
        position += record.size() as u64;
    }
}

#[test]
fn flush_is_answered_once_the_records_are_flushed_whatever_the_topic_says() {
    let broker = TestBroker::start_with(|config| {
        config.storage.flush_interval = Duration::from_secs(60);
    });
    let mut client = Client::connect(broker.addr());
    let bytes = records("t", 0, &["x"]);
    let written = produce("t", 0, bytes.len(), Durability::Write);
    let Response::Produce(answer) = client.call(written, &bytes) else { panic!() };
    assert_eq!(answer.results[0].level(), AckLevel::Written);

    let begun = Instant::now();
    let flushed = produce("t", 0, bytes.len(), Durability::Flush);
    let Response::Produce(answer) = client.call(flushed, &bytes) else { panic!() };
    assert_eq!(answer.results[0].level(), AckLevel::Flushed);
    assert!(begun.elapsed() < Duration::from_secs(30), "a flush was asked for, not waited for");
}

#[test]
fn pipelined_requests_are_appended_in_the_order_they_were_sent() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let mut sent = Vec::new();
    for i in 0..500 {
        let bytes = records("t", 0, &[format!("message {i}")]);
        // Answers at `flush` come later than those at `write` and must not change the order.
        let durability = if i % 3 == 0 { Durability::Flush } else { Durability::Write };
        sent.push(client.send(produce("t", 0, bytes.len(), durability), &bytes));
    }
    for _ in 0..500 {
        let (id, response, _) = client.receive().unwrap();
        let Response::Produce(answer) = response else { panic!("{response:?}") };
        let place = sent.iter().position(|&s| s == id).unwrap();
        assert_eq!(answer.results[0].extents[0].offset, place as u64);
    }
}

#[test]
fn a_run_that_fails_does_not_harm_the_others() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let good = records("t", 0, &["good"]);
    let mut corrupt = records("t", 1, &["body"]);
    let at = RecordView::parse(&corrupt).unwrap().body_range().start;
    corrupt[at] ^= 1;
    let system = records("%SYS%TOPICS", 0, &["x"]);
    let runs: Vec<(&str, u32, &[u8], u32)> = vec![
        ("t", 0, &good, 0),
        ("t", 1, &corrupt, ErrorCode::CorruptRecord.number()),
        ("t", 2, &good, ErrorCode::InvalidRecord.number()),
        ("other", 0, &good, ErrorCode::InvalidRecord.number()),
        ("t", 99, &good, ErrorCode::UnknownQueue.number()),
        ("%SYS%TOPICS", 0, &system, ErrorCode::SystemTopic.number()),
        ("no/name", 0, &good, ErrorCode::InvalidName.number()),
        ("t", 0, &good[..good.len() - 1], ErrorCode::InvalidRecord.number()),
        ("t", 0, &[], ErrorCode::InvalidRecord.number()),
        ("t", 0, &good, 0),
    ];
    let body = runs.iter().map(|run| run.2).collect::<Vec<_>>().concat();
    let request = ProduceRequest {
        durability: Durability::Write.into(),
        runs: runs
            .iter()
            .map(|&(topic, queue, bytes, _)| ProduceRun {
                topic: topic.into(),
                queue,
                bytes: bytes.len() as u32,
            })
            .collect(),
    };
    let Response::Produce(answer) = client.call(Request::Produce(request), &body) else { panic!() };
    for (run, result) in runs.iter().zip(&answer.results) {
        assert_eq!(result.code, run.3, "{} {}: {}", run.0, run.1, result.message);
        assert_eq!(result.code == 0, !result.extents.is_empty());
        assert_eq!(result.code == 0, result.message.is_empty());
    }
    client.assert_queue_holds("t", 0, 1 << 20, &["good", "good"]);
}

#[test]
fn a_run_without_a_topic_is_of_the_topic_before() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let records = [("t", 0), ("t", 1), ("u", 0), ("u", 1)].map(|(t, q)| records(t, q, &["x"]));
    let bytes = records[0].len() as u32;
    let run = |(topic, queue): (&str, u32)| ProduceRun { topic: topic.into(), queue, bytes };
    let runs = [("t", 0), ("", 1), ("u", 0), ("", 1)].map(run).to_vec();
    let request = ProduceRequest { durability: Durability::Write.into(), runs };
    let Response::Produce(answer) = client.call(Request::Produce(request), &records.concat())
    else {
        panic!()
    };
    assert!(answer.results.iter().all(|result| result.code == 0), "{answer:?}");
    for (topic, queue) in [("t", 0), ("t", 1), ("u", 0), ("u", 1)] {
        client.assert_queue_holds(topic, queue, 1 << 20, &["x"]);
    }

    let runs = vec![ProduceRun { topic: String::new(), queue: 0, bytes }];
    let request = ProduceRequest { durability: 0, runs };
    let Response::Produce(answer) = client.call(Request::Produce(request), &records[0]) else {
        panic!()
    };
    assert_eq!(answer.results[0].code, ErrorCode::InvalidName.number(), "there is none before");
}

#[test]
fn hundreds_of_refusals_fit_into_one_answer() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let topic = "n".repeat(126) + "/";
    let run = ProduceRun { topic, queue: 0, bytes: 0 };
    let request = ProduceRequest { durability: 0, runs: vec![run; 256] };
    let Response::Produce(answer) = client.call(Request::Produce(request), &[]) else { panic!() };
    assert_eq!(answer.results.len(), 256);
    assert!(answer.results.iter().all(|r| r.code == ErrorCode::InvalidName.number()));
}

#[test]
fn a_request_that_contradicts_itself_is_refused_and_the_connection_goes_on() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let bytes = records("t", 0, &["x"]);
    for wrong in [bytes.len() - 1, bytes.len() + 1, 0, u32::MAX as usize] {
        let id = client.send(produce("t", 0, wrong, Durability::Topic), &bytes);
        assert_eq!(client.error(id), ErrorCode::InvalidRequest);
    }
    let run = ProduceRun { topic: "t".into(), queue: 0, bytes: 0 };
    let runs = vec![run.clone(); 257];
    let id = client.send(Request::Produce(ProduceRequest { durability: 0, runs }), &[]);
    assert_eq!(client.error(id), ErrorCode::InvalidRequest);
    let request = ProduceRequest { durability: 17, runs: vec![run] };
    let id = client.send(Request::Produce(request), &[]);
    assert_eq!(client.error(id), ErrorCode::InvalidRequest);
    let id = client.send(hello(1, b""), &[]);
    assert_eq!(client.error(id), ErrorCode::InvalidRequest);
    assert_eq!(client.produce_bodies("t", 0, &["x"]), 0);
}

#[test]
fn the_largest_record_is_taken_and_a_larger_one_refused_as_such() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let body = noise(1, longwire_proto::limits::BODY_BYTES_MAX);
    client.produce_bodies("t", 0, &[&body]);
    client.assert_queue_holds("t", 0, 1, &[&body]);

    // No encoder makes it, so a header says it is larger than it may be.
    let mut bytes = records("t", 0, &["x"]);
    bytes.resize(5 << 20, 0);
    let size = bytes.len() as u32;
    bytes[..4].copy_from_slice(&size.to_be_bytes());
    let result = client.produce("t", 0, &bytes);
    assert_eq!(result.code, ErrorCode::MessageTooLarge.number());
}

#[test]
fn records_keep_their_order_while_the_log_rolls() {
    let broker = TestBroker::start_with(|config| config.storage.segment_bytes = 1 << 20);
    let mut client = Client::connect(broker.addr());
    let bodies: Vec<Vec<u8>> = (0..400).map(|i| noise(i, 20_000)).collect();
    for batch in bodies.chunks(16) {
        let bytes = records("t", 0, batch);
        client.send(produce("t", 0, bytes.len(), Durability::Write), &bytes);
    }
    for _ in 0..bodies.len().div_ceil(16) {
        let (_, response, _) = client.receive().unwrap();
        let Response::Produce(answer) = response else { panic!("{response:?}") };
        assert_eq!(answer.results[0].code, 0, "{}", answer.results[0].message);
    }
    client.assert_queue_holds("t", 0, 4 << 20, &bodies);
}
