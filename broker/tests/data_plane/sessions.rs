//! Connections of one session: the next one ends the one before, and comes after all of it.

use std::io::Write;
use std::time::Duration;

use longwire_proto::ErrorCode;
use longwire_proto::data::Durability;
use longwire_proto::data::request_header::Request;
use longwire_proto::limits::SESSION_BYTES_MAX;

use crate::TestBroker;
use crate::client::{Client, encode, fetch, hello, produce, records};

#[test]
fn nothing_of_a_connection_is_appended_after_the_hello_of_the_next_of_its_session() {
    let broker = TestBroker::start_with(|config| config.limits.in_flight_per_connection = 1);
    Client::connect(broker.addr()).produce_bodies("t", 1, &["so that there is a topic"]);
    let mut before = Client::connect_in(broker.addr(), b"s");
    // The broker reads the produce only when the fetch is answered: nothing comes for it.
    let wait = Duration::from_secs(60);
    let mut both = encode(2, Request::Fetch(fetch("t", &[(0, 0)], 1024, wait)), &[]);
    let late = records("t", 0, &["late"]);
    both.extend_from_slice(&encode(3, produce("t", 0, late.len(), Durability::Topic), &late));
    before.stream.write_all(&both).unwrap();

    let mut next = Client::connect_in(broker.addr(), b"s");
    assert_eq!(next.produce_bodies("t", 0, &["again"]), 0);
    assert!(before.receive().is_none(), "it is closed");
    // By now the broker has seen all of it.
    next.produce_bodies("t", 0, &["next"]);
    next.assert_queue_holds("t", 0, 1024, &["again", "next"]);
}

#[test]
fn connections_of_other_sessions_or_of_none_do_not_touch_each_other() {
    let broker = TestBroker::start();
    let mut connections = [&b""[..], b"", b"a", b"b"].map(|s| Client::connect_in(broker.addr(), s));
    for (connection, offset) in connections.iter_mut().zip(0..) {
        assert_eq!(connection.produce_bodies("t", 0, &["m"]), offset);
    }
}

#[test]
fn a_session_can_be_gone_on_with_after_its_connection_has_gone() {
    let broker = TestBroker::start();
    for offset in 0..10 {
        let mut connection = Client::connect_in(broker.addr(), b"s");
        assert_eq!(connection.produce_bodies("t", 0, &["m"]), offset);
    }
}

#[test]
fn a_session_with_too_long_a_name_is_refused() {
    let broker = TestBroker::start();
    let mut client = Client::connect_silently(broker.addr());
    client.send(hello(1, &[7; SESSION_BYTES_MAX + 1]), &[]);
    assert_eq!(client.error_and_close(), ErrorCode::InvalidRequest);
}
