//! Bounds: connections, memory of requests, answers nobody reads.

use std::time::Duration;

use longwire_proto::ErrorCode;
use longwire_proto::data::{Durability, request_header::Request, response_header::Response};

use crate::TestBroker;
use crate::client::{Client, fetch, noise, produce, records};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_connection_too_many_is_told_so_and_there_is_room_again_later() {
    let broker = TestBroker::start_with(|config| config.limits.connections_max = 2);
    let first = Client::connect(broker.addr());
    let mut second = Client::connect(broker.addr());
    let mut third = Client::connect_silently(broker.addr());
    assert_eq!(third.error_and_close(), ErrorCode::Overloaded);
    second.produce_bodies("t", 0, &["undisturbed"]);
    drop(first);
    // The broker notices a moment later.
    loop {
        let mut next = Client::connect_silently(broker.addr());
        next.send(crate::client::hello(1, b""), &[]);
        match next.receive() {
            Some((_, Response::Hello(_), _)) => break,
            Some((_, Response::Error(error), _)) => {
                assert_eq!(error.code, ErrorCode::Overloaded.number());
            }
            other => assert!(other.is_none(), "{other:?}"),
        }
    }
}

#[test]
fn the_kernel_probes_a_quiet_peer() {
    let broker = TestBroker::start();
    let client = Client::connect(broker.addr());
    let port = |addr: std::net::SocketAddr| format!(":{:04X}", addr.port());
    let (ours, theirs) = (port(broker.addr()), port(client.stream.local_addr().unwrap()));
    let probed = || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut broker_side = fields.filter(|f| f[1].ends_with(&ours) && f[2].ends_with(&theirs));
        // A timer of kind 2 is that of keepalive; while something is unacknowledged there is another.
        broker_side.any(|fields| fields[5].starts_with("02:"))
    };
    let begun = std::time::Instant::now();
    while !probed() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no such timer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_consumer_that_stops_reading_is_cut_off_and_holds_up_nobody() {
    let broker = TestBroker::start_with(|config| {
        config.limits.stall_timeout = Duration::from_millis(300);
    });
    let mut producer = Client::connect(broker.addr());
    let bodies: Vec<Vec<u8>> = (0..32).map(|i| noise(i, 1 << 20)).collect();
    for body in &bodies {
        producer.produce_bodies("t", 0, std::slice::from_ref(body));
    }
    producer.assert_queue_holds("t", 0, 8 << 20, &bodies);

    let mut stuck = Client::connect(broker.addr());
    for _ in 0..50 {
        stuck.send(Request::Fetch(fetch("t", &[(0, 0)], 16 << 20, LONG)), &[]);
    }
    let mut consumer = Client::connect(broker.addr());
    consumer.assert_queue_holds("t", 0, 8 << 20, &bodies);
    let begun = std::time::Instant::now();
    while broker.metric("longwire_connections") > 2.0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the stuck connection stays");
        std::thread::sleep(Duration::from_millis(20));
    }
    consumer.assert_queue_holds("t", 0, 8 << 20, &bodies);
}

#[test]
fn a_producer_that_reads_no_answers_is_not_read_from_without_end() {
    let broker = TestBroker::start_with(|config| config.limits.in_flight_per_connection = 4);
    let mut client = Client::connect(broker.addr());
    let mut other = Client::connect(broker.addr());
    other.produce_bodies("t", 0, &["x"]);
    // All places are taken by parked fetches, so the produce request behind them has to wait.
    for _ in 0..4 {
        client.send(Request::Fetch(fetch("t", &[(1, 0)], 1 << 20, LONG)), &[]);
    }
    let bytes = records("t", 2, &["behind"]);
    let id = client.send(produce("t", 2, bytes.len(), Durability::Topic), &bytes);
    let early = other.fetch(fetch("t", &[(2, 0)], 1 << 20, Duration::from_millis(200)));
    assert!(early.0.results.is_empty(), "it was read although four were unanswered");
    other.produce_bodies("t", 1, &["free"]);
    let mut answered = false;
    for _ in 0..5 {
        answered |= client.receive().unwrap().0 == id;
    }
    assert!(answered);
}

#[test]
fn requests_share_little_memory_without_blocking_each_other_for_good() {
    let broker = TestBroker::start_with(|config| {
        config.limits.request_memory_bytes = longwire_proto::limits::REQUEST_FRAME_BYTES_MAX as u64;
    });
    let addr = broker.addr();
    let bodies: Vec<Vec<u8>> = (0..2).map(|i| noise(i, 3 << 20)).collect();
    std::thread::scope(|scope| {
        for queue in 0..8 {
            let bodies = &bodies;
            scope.spawn(move || {
                let mut client = Client::connect(addr);
                for _ in 0..4 {
                    let bytes = records("t", queue, bodies);
                    assert_eq!(client.produce("t", queue, &bytes).code, 0);
                }
            });
        }
    });
    let expected: Vec<&Vec<u8>> = bodies.iter().cycle().take(8).collect();
    Client::connect(addr).assert_queue_holds("t", 5, 8 << 20, &expected);
}
