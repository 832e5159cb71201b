//! Bytes that are no frames, frames that lie, and garbage on every port.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use longwire_proto::ErrorCode;
use longwire_proto::data::{self, request_header::Request, response_header::Response};
use longwire_proto::limits::{PROTOCOL_VERSION, REQUEST_FRAME_BYTES_MAX};
use longwire_tests::broker_process::http_get;
use longwire_tests::frame_client::{FrameClient, encode, fetch, hello, record};
use longwire_tests::noise;

use crate::Scene;

#[test]
fn garbage_on_any_port_harms_nobody() {
    let scene = Scene::start(&[]);
    let addresses = scene.broker.addresses();
    let before = scene.broker.figures();
    for seed in 0..60 {
        let garbage = noise(seed, 1 + (seed as usize * 1_713) % 60_000);
        for address in [addresses.data, addresses.control, addresses.http] {
            shout(address, &garbage);
            // What the other ports speak, and the beginning of their own.
            shout(address, b"GET /metrics HTTP/1.1\r\n\r\n");
            shout(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\xff\x04\x00\x00\x00\x00\x00");
            shout(address, &encode(1, hello(), &garbage));
        }
    }
    assert!(http_get(addresses.http, "/health/ready").unwrap().contains("200 OK"));
    let after = scene.broker.figures();
    println!("RssAnon {:.1} MiB, then {:.1} MiB", before.anonymous_mib(), after.anonymous_mib());
    assert!(after.anonymous_mib() < before.anonymous_mib() + 32.0);
    scene.assert_unharmed();
}

/// Sends bytes and reads what comes until the broker closes, or is done with them.
fn shout(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The broker may close before it has read all of it.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn frames_with_lying_lengths_are_refused_and_the_connection_is_closed() {
    let scene = Scene::start(&[]);
    let over = (REQUEST_FRAME_BYTES_MAX as u32 + 1).to_be_bytes();
    for (bytes, code) in [
        (&[0xff, 0xff, 0xff, 0xff][..], ErrorCode::FrameTooLarge),
        (&over, ErrorCode::FrameTooLarge),
        (&[0, 0, 0, 0], ErrorCode::BadFrame),
        (&[0, 0, 0, 1, 0], ErrorCode::BadFrame),
        // A header longer than its frame.
        (&[0, 0, 0, 10, 0, 9], ErrorCode::BadFrame),
        (&[0, 0, 0, 2, 255, 255], ErrorCode::BadFrame),
        // A header that is no protobuf, and one with a length inside that goes beyond it.
        (&[0, 0, 0, 6, 0, 4, 255, 255, 255, 255], ErrorCode::BadFrame),
        (&[0, 0, 0, 6, 0, 4, 0x1a, 0x7f, 1, 2], ErrorCode::BadFrame),
    ] {
        let mut client = scene.connect();
        client.stream.write_all(bytes).unwrap();
        assert_eq!(client.error_and_close(), code, "{bytes:?}");
    }
    scene.assert_unharmed();
}

#[test]
fn a_frame_cut_short_by_the_end_of_the_connection_has_no_effect() {
    let scene = Scene::start(&[]);
    let bytes = record("cut", 0, &noise(7, 5_000));
    let run = data::ProduceRun { topic: "cut".into(), queue: 0, bytes: bytes.len() as u32 };
    let request = data::ProduceRequest { durability: 0, runs: vec![run] };
    let frame = encode(5, Request::Produce(request), &bytes);
    for cut in [1, 3, 5, 7, 30, frame.len() / 2, frame.len() - 1] {
        let mut client = scene.connect();
        client.stream.write_all(&frame[..cut]).unwrap();
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert!(client.receive().is_none(), "cut at {cut}");
    }
    let mut client = scene.connect();
    client.stream.write_all(&frame).unwrap();
    match client.receive() {
        Some((5, Response::Produce(answer), _)) => {
            assert_eq!((answer.results[0].code, answer.results[0].extents[0].offset), (0, 0));
        }
        other => panic!("{other:?}"),
    }
    scene.assert_unharmed();
}

#[test]
fn the_order_and_version_of_a_conversation_are_kept() {
    let scene = Scene::start(&[]);
    let address = scene.broker.addresses().data;
    let mut other = FrameClient::connect_silently(address).unwrap();
    let version = PROTOCOL_VERSION + 1;
    let request = data::HelloRequest {
        protocol_version: version,
        client_id: "new".into(),
        session: Vec::new(),
    };
    match other.call(Request::Hello(request), &[]) {
        Response::Error(error) => assert_eq!(error.code, ErrorCode::UnsupportedVersion.number()),
        answer => panic!("{answer:?}"),
    }
    assert!(other.receive().is_none());

    let mut silent = FrameClient::connect_silently(address).unwrap();
    silent.send(Request::Fetch(fetch("t", &[(0, 0)], 1, Duration::ZERO)), &[]);
    assert_eq!(silent.error_and_close(), ErrorCode::InvalidRequest);

    // A request of a kind that nobody knows, under correlation id 5: the connection goes on.
    let mut client = scene.connect();
    client.stream.write_all(&[0, 0, 0, 7, 0, 5, 0x08, 5, 0xf8, 0x01, 1]).unwrap();
    match client.receive() {
        Some((5, Response::Error(error), _)) => {
            assert_eq!(error.code, ErrorCode::InvalidRequest.number());
        }
        answer => panic!("{answer:?}"),
    }
    assert_eq!(client.produce("t", 0, &record("t", 0, b"after")).code, 0);
    scene.assert_unharmed();
}

#[test]
fn requests_beyond_their_limits_are_refused_as_a_whole() {
    let scene = Scene::start(&[]);
    let mut client = scene.connect();
    let mut refused = |request: Request, body: &[u8]| match client.call(request, body) {
        Response::Error(error) if !error.message.is_empty() => {
            ErrorCode::from_number(error.code).unwrap()
        }
        other => panic!("{other:?}"),
    };
    let run = |bytes| data::ProduceRun { topic: "t".into(), queue: 0, bytes };
    let produce = |durability, runs| Request::Produce(data::ProduceRequest { durability, runs });
    let bytes = record("t", 0, b"x");
    let length = bytes.len() as u32;
    // Runs that say they are longer, or shorter, than the body; a durability that is none; too many.
    for request in [
        produce(0, vec![run(length + 1)]),
        produce(0, vec![run(length - 1)]),
        produce(0, vec![run(u32::MAX), run(length + 1)]),
        produce(9, vec![run(length)]),
        produce(0, vec![run(0); 257]),
    ] {
        assert_eq!(refused(request, &bytes), ErrorCode::InvalidRequest);
    }
    let many: Vec<(u32, u64)> = (0..1_025).map(|queue| (queue, 0)).collect();
    let request = Request::Fetch(fetch("t", &many, 1 << 20, Duration::ZERO));
    assert_eq!(refused(request, &[]), ErrorCode::InvalidRequest);
    scene.assert_unharmed();
}
