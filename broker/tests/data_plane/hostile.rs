//! What breaks the protocol gets a stable error, and harms nobody else.

use std::io::Write;
use std::time::Duration;

use longwire_proto::ErrorCode;
use longwire_proto::data::Durability;
use longwire_proto::limits::{REQUEST_BODY_BYTES_MAX, REQUEST_FRAME_BYTES_MAX};

use crate::TestBroker;
use crate::client::{Client, encode, hello, noise, produce, records};

/// Runs `attack` on a connection that has said hello, while another goes on undisturbed.
fn beside_a_good_client(attack: impl FnOnce(&mut Client)) {
    let broker = TestBroker::start();
    let mut good = Client::connect(broker.addr());
    assert_eq!(good.produce_bodies("t", 0, &["before"]), 0);
    attack(&mut Client::connect(broker.addr()));
    assert_eq!(good.produce_bodies("t", 0, &["after"]), 1);
    good.assert_queue_holds("t", 0, 1 << 20, &["before", "after"]);
}

#[test]
fn garbage_is_answered_with_an_error_and_closed() {
    for seed in 0..20 {
        beside_a_good_client(|client| {
            // A write may fail: the broker closes as soon as it knows.
            let _ = client.stream.write_all(&noise(seed, 100_000));
            let code = client.error_and_close();
            assert!(matches!(code, ErrorCode::BadFrame | ErrorCode::FrameTooLarge), "{code}");
        });
    }
}

#[test]
fn text_of_another_protocol_is_answered_with_an_error_and_closed() {
    let broker = TestBroker::start();
    let mut client = Client::connect_silently(broker.addr());
    client.stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(client.error_and_close(), ErrorCode::FrameTooLarge);
}

#[test]
fn a_length_over_the_limit_is_refused_from_its_four_bytes_alone() {
    for length in [REQUEST_FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
        beside_a_good_client(|client| {
            client.stream.write_all(&length.to_be_bytes()).unwrap();
            assert_eq!(client.error_and_close(), ErrorCode::FrameTooLarge);
        });
    }
}

#[test]
fn a_body_over_its_limit_is_refused_where_the_frame_is_within_its_own() {
    let header = 16;
    let frame = 2 + header + REQUEST_BODY_BYTES_MAX + 1;
    beside_a_good_client(|client| {
        client.stream.write_all(&(frame as u32).to_be_bytes()).unwrap();
        client.stream.write_all(&(header as u16).to_be_bytes()).unwrap();
        assert_eq!(client.error_and_close(), ErrorCode::FrameTooLarge);
    });
}

#[test]
fn lengths_that_contradict_each_other_are_refused() {
    for frame in
        [&[0, 0, 0, 0][..], &[0, 0, 0, 1, 0], &[0, 0, 0, 10, 0, 9], &[0, 0, 0, 2, 255, 255]]
    {
        beside_a_good_client(|client| {
            client.stream.write_all(frame).unwrap();
            assert_eq!(client.error_and_close(), ErrorCode::BadFrame);
        });
    }
}

#[test]
fn a_header_that_is_no_protobuf_is_refused() {
    beside_a_good_client(|client| {
        client.stream.write_all(&[0, 0, 0, 6, 0, 4, 255, 255, 255, 255]).unwrap();
        assert_eq!(client.error_and_close(), ErrorCode::BadFrame);
    });
}

#[test]
fn a_request_of_an_unknown_kind_is_refused_and_the_connection_goes_on() {
    beside_a_good_client(|client| {
        // Correlation id 5 and a field nobody knows.
        client.stream.write_all(&[0, 0, 0, 7, 0, 5, 0x08, 5, 0xF8, 0x01, 1]).unwrap();
        assert_eq!(client.error(5), ErrorCode::InvalidRequest);
        client.produce_bodies("other", 0, &["x"]);
    });
}

#[test]
fn the_first_frame_must_be_a_hello() {
    let broker = TestBroker::start();
    let mut client = Client::connect_silently(broker.addr());
    let bytes = records("t", 0, &["x"]);
    client.send(produce("t", 0, bytes.len(), Durability::Topic), &bytes);
    assert_eq!(client.error_and_close(), ErrorCode::InvalidRequest);
}

#[test]
fn a_frame_cut_short_by_the_end_of_the_connection_is_forgotten() {
    let broker = TestBroker::start();
    let bytes = records("t", 0, &["x"]);
    let frame = encode(9, produce("t", 0, bytes.len(), Durability::Topic), &bytes);
    for cut in [1, 4, 6, 20, frame.len() - 1] {
        let mut client = Client::connect(broker.addr());
        client.stream.write_all(&frame[..cut]).unwrap();
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.receive().is_none());
    }
    assert_eq!(Client::connect(broker.addr()).produce_bodies("t", 0, &["x"]), 0);
}

#[test]
fn requests_before_the_end_of_the_connection_are_answered() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let bytes = records("t", 0, &["x"]);
    for _ in 0..10 {
        client.send(produce("t", 0, bytes.len(), Durability::Flush), &bytes);
    }
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..10 {
        assert!(client.receive().is_some());
    }
    assert!(client.receive().is_none());
}

#[test]
fn a_frame_may_arrive_byte_by_byte() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let bytes = records("t", 0, &["slow"]);
    let frame = encode(9, produce("t", 0, bytes.len(), Durability::Topic), &bytes);
    for byte in frame {
        client.stream.write_all(&[byte]).unwrap();
    }
    assert!(client.receive().is_some());
    client.assert_queue_holds("t", 0, 1 << 20, &["slow"]);
}

#[test]
fn a_client_that_does_not_finish_its_frame_is_told_and_closed() {
    let broker = TestBroker::start_with(|config| {
        config.limits.frame_timeout = Duration::from_millis(100);
    });
    let bytes = records("t", 0, &[noise(1, 100_000)]);
    let frame = encode(9, produce("t", 0, bytes.len(), Durability::Topic), &bytes);
    for cut in [2, 5, 50, 50_000] {
        let mut client = Client::connect(broker.addr());
        client.stream.write_all(&frame[..cut]).unwrap();
        assert_eq!(client.error_and_close(), ErrorCode::Timeout);
    }
}

#[test]
fn a_client_that_says_no_hello_is_told_and_closed() {
    let broker = TestBroker::start_with(|config| {
        config.limits.hello_timeout = Duration::from_millis(100);
    });
    let mut silent = Client::connect_silently(broker.addr());
    assert_eq!(silent.error_and_close(), ErrorCode::Timeout);
    let mut slow = Client::connect_silently(broker.addr());
    slow.stream.write_all(&encode(1, hello(1, b""), &[])[..5]).unwrap();
    assert_eq!(slow.error_and_close(), ErrorCode::Timeout);
}

#[test]
fn a_quiet_connection_is_left_alone_after_its_hello() {
    let broker = TestBroker::start_with(|config| {
        config.limits.hello_timeout = Duration::from_millis(100);
        config.limits.frame_timeout = Duration::from_millis(100);
        config.limits.stall_timeout = Duration::from_millis(100);
    });
    let mut client = Client::connect(broker.addr());
    std::thread::sleep(Duration::from_millis(400));
    client.produce_bodies("t", 0, &["still there"]);
}
