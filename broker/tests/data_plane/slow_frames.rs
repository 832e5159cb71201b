//! Frames that come slowly or never, beside those of clients that behave.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use longwire_proto::ErrorCode;
use longwire_proto::data::Durability;
use longwire_proto::limits::REQUEST_FRAME_BYTES_MAX;

use crate::TestBroker;
use crate::client::{Client, encode, noise, produce, records};

/// More than enough for all frames of a test to be called in, and far from the frame's own time-out.
const BOUND: Duration = Duration::from_secs(10);
const SLOW_FRAMES: &str = "longwire_slow_frames_total";

/// Room for two of the largest frames.
fn broker() -> TestBroker {
    TestBroker::start_with(|config| {
        config.limits.request_memory_bytes = 2 * REQUEST_FRAME_BYTES_MAX as u64;
    })
}

/// A client that has sent all but the end of a large frame, or as much as the broker takes.
fn attacker(addr: SocketAddr) -> Client {
    let frame = encode(9, produce("t", 0, 8 << 20, Durability::Topic), &vec![0; 8 << 20]);
    let mut client = Client::connect(addr);
    client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let _ = client.stream.write_all(&frame[..8_000_000]);
    client
}

/// Frames of every size get through.
fn assert_answered_in_time(addr: SocketAddr) {
    let mut honest = Client::connect(addr);
    for bytes in [1_000, 16_000, 65_000, 1 << 20, 4 << 20] {
        let records = records("honest", 0, &[noise(1, bytes)]);
        let began = Instant::now();
        assert_eq!(honest.produce("honest", 0, &records).code, 0);
        assert!(began.elapsed() < BOUND, "{bytes} bytes took {:?}", began.elapsed());
    }
}

#[test]
fn unfinished_frames_make_way_for_those_of_others() {
    let broker = broker();
    let mut attackers: Vec<Client> = (0..8).map(|_| attacker(broker.addr())).collect();
    assert_answered_in_time(broker.addr());
    assert!(broker.metric(SLOW_FRAMES) >= 1.0);
    // Those that began first have held memory longest.
    assert_eq!(attackers[0].error_and_close(), ErrorCode::Overloaded);
}

#[test]
fn a_byte_now_and_then_keeps_no_memory_from_others() {
    let broker = broker();
    let addr = broker.addr();
    let over = AtomicBool::new(false);
    let trickle = |mut client: Client| {
        while !over.load(Relaxed) && client.stream.write_all(&[0]).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let client = attacker(addr);
            scope.spawn(|| trickle(client));
        }
        let answered = std::panic::catch_unwind(|| assert_answered_in_time(addr));
        over.store(true, Relaxed);
        answered.unwrap();
    });
    assert!(broker.metric(SLOW_FRAMES) >= 1.0);
}

#[test]
fn a_slow_link_is_left_alone_while_nobody_needs_its_memory() {
    let broker = broker();
    let bytes = records("t", 0, &[noise(1, 200_000)]);
    let frame = encode(9, produce("t", 0, bytes.len(), Durability::Topic), &bytes);
    let mut slow = Client::connect(broker.addr());
    let mut fast = Client::connect(broker.addr());
    for part in frame.chunks(10_000) {
        slow.stream.write_all(part).unwrap();
        fast.produce_bodies("others", 0, &[noise(2, 100_000)]);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(slow.receive().unwrap().0, 9);
    assert_eq!(broker.metric(SLOW_FRAMES), 0.0);
}
