//! Frames are taken whole or not at all, and their lengths are never believed before they are checked.
#![allow(clippy::unwrap_used)]

#[path = "support/hex.rs"]
mod hex;

use bytes::{Bytes, BytesMut};
use longwire_proto::data::{
    FetchQueue, FetchRequest, FetchTopic, ProduceRequest, ProduceRun, RequestHeader,
    ResponseHeader, request_header::Request,
};
use longwire_proto::frame::{self, FrameError, PREFIX_BYTES, Prefix};
use longwire_proto::limits::{
    FRAME_HEADER_BYTES_MAX, REQUEST_FRAME_BYTES_MAX, RESPONSE_FRAME_BYTES_MAX,
};
use proptest::prelude::*;

fn produce(correlation_id: u64, runs: Vec<ProduceRun>) -> RequestHeader {
    let request = Request::Produce(ProduceRequest { durability: 0, runs });
    RequestHeader { correlation_id, request: Some(request) }
}

/// Everything the kernel has given to this process, in KiB.
fn address_space_peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_lying_length_reserves_no_memory() {
    let before = address_space_peak_kib();
    let mut buffer = BytesMut::with_capacity(64);
    // A frame of 16 MiB with a header of 64 KiB, of which only the first bytes are there.
    buffer.extend_from_slice(&hex::bytes("00fffff0 ffff 0801 1a"));
    let prefix = Prefix::parse(&buffer, RESPONSE_FRAME_BYTES_MAX).unwrap().unwrap();
    assert_eq!(prefix.frame_bytes(), 4 + 0x00ff_fff0);
    assert!(frame::take::<RequestHeader>(&mut buffer, prefix).unwrap().is_none());
    assert_eq!(buffer.capacity(), 64);

    // Headers whose strings, messages and packed numbers claim 2 GiB and more.
    for header in ["1a ffffffff07", "1a08 12ffffffff0f 0a01", "22 0a 1a ffffffff07 12 ffffffff07"] {
        let header = hex::bytes(header);
        let length = (2 + header.len()) as u32;
        let mut buffer = BytesMut::from(&length.to_be_bytes()[..]);
        buffer.extend_from_slice(&(header.len() as u16).to_be_bytes());
        buffer.extend_from_slice(&header);
        let prefix = Prefix::parse(&buffer, REQUEST_FRAME_BYTES_MAX).unwrap().unwrap();
        let error = frame::take::<RequestHeader>(&mut buffer, prefix).unwrap_err();
        assert!(matches!(error, FrameError::Header(_)), "{error}");
    }
    let grown = address_space_peak_kib() - before;
    assert!(grown < 1 << 20, "{grown} KiB were reserved for lengths that lied");
}

#[test]
fn a_frame_over_the_limit_is_refused_from_its_length_alone() {
    let length = (REQUEST_FRAME_BYTES_MAX as u32 + 1).to_be_bytes();
    let error = Prefix::parse(&length, REQUEST_FRAME_BYTES_MAX).unwrap_err();
    let max = REQUEST_FRAME_BYTES_MAX;
    assert_eq!(error, FrameError::TooLarge { bytes: max + 1, max });
    let length = (REQUEST_FRAME_BYTES_MAX as u32).to_be_bytes();
    assert_eq!(Prefix::parse(&length, REQUEST_FRAME_BYTES_MAX), Ok(None));
}

#[test]
fn a_head_that_would_not_fit_its_lengths_is_refused() {
    let run = || ProduceRun { topic: "t".repeat(127), queue: u32::MAX, bytes: u32::MAX };
    let long = produce(1, (0..600).map(|_| run()).collect());
    let error = frame::head(&long, 0).unwrap_err();
    assert!(matches!(error, FrameError::HeaderLength { header, .. } if header > 65_535), "{error}");
    for body_bytes in [u32::MAX as usize, usize::MAX] {
        let error = frame::head(&produce(1, vec![]), body_bytes).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { .. }), "{error}");
    }
}

#[test]
fn an_empty_frame_is_a_header_without_a_request() {
    let mut buffer = BytesMut::from(&hex::bytes("00000002 0000")[..]);
    let prefix = Prefix::parse(&buffer, 100).unwrap().unwrap();
    assert_eq!((prefix.header_bytes, prefix.body_bytes, prefix.frame_bytes()), (0, 0, 6));
    let frame = frame::take::<RequestHeader>(&mut buffer, prefix).unwrap().unwrap();
    assert_eq!((frame.header, frame.body.len()), (RequestHeader::default(), 0));
}

#[test]
fn fields_of_later_versions_are_passed_over() {
    // correlation id 5, and a field 99 this build does not know.
    let mut buffer = BytesMut::from(&hex::bytes("00000009 0007 0805 9a06026869")[..]);
    let prefix = Prefix::parse(&buffer, 100).unwrap().unwrap();
    let frame = frame::take::<RequestHeader>(&mut buffer, prefix).unwrap().unwrap();
    assert_eq!(frame.header, RequestHeader { correlation_id: 5, request: None });
}

fn headers() -> impl Strategy<Value = RequestHeader> {
    let run = ("[a-z]{0,10}", any::<u32>(), any::<u32>());
    let runs = prop::collection::vec(run, 0..6).prop_map(|runs| {
        let run = |(topic, queue, bytes)| ProduceRun { topic, queue, bytes };
        let runs = runs.into_iter().map(run).collect();
        Request::Produce(ProduceRequest { durability: 2, runs })
    });
    let queue = (any::<u32>(), any::<u64>(), any::<u32>());
    let topic = (
        "[a-z]{0,10}",
        prop::collection::vec(any::<i32>(), 0..4),
        prop::collection::vec(queue, 0..4),
    );
    let fetch = prop::collection::vec(topic, 0..4).prop_map(|topics| {
        let queue = |(queue, offset, max_bytes)| FetchQueue { queue, offset, max_bytes };
        let topic = |(topic, tag_hashes, queues): (_, _, Vec<_>)| FetchTopic {
            created_position: None,
            topic,
            tag_hashes,
            queues: queues.into_iter().map(queue).collect(),
        };
        let topics = topics.into_iter().map(topic).collect();
        Request::Fetch(FetchRequest { max_wait_ms: 500, max_bytes: 1 << 20, topics })
    });
    (any::<u64>(), prop::option::of(prop_oneof![runs, fetch]))
        .prop_map(|(correlation_id, request)| RequestHeader { correlation_id, request })
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn frames_come_back_one_by_one_however_the_bytes_arrive(
        sent in prop::collection::vec(
            (headers(), prop::collection::vec(any::<u8>(), 0..40)), 1..5),
        step in 1_usize..50,
    ) {
        let mut wire = Vec::new();
        for (header, body) in &sent {
            wire.extend_from_slice(&frame::head(header, body.len()).unwrap());
            wire.extend_from_slice(body);
        }
        let mut received = Vec::new();
        let mut buffer = BytesMut::new();
        for piece in wire.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(prefix) = Prefix::parse(&buffer, REQUEST_FRAME_BYTES_MAX).unwrap() {
                let Some(frame) = frame::take::<RequestHeader>(&mut buffer, prefix).unwrap() else {
                    break;
                };
                received.push((frame.header, frame.body.to_vec()));
            }
        }
        prop_assert_eq!(received, sent);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_grow_the_buffer(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        max in prop::sample::select(vec![0, 10, 300, REQUEST_FRAME_BYTES_MAX, usize::MAX]),
    ) {
        let mut buffer = BytesMut::from(&bytes[..]);
        let capacity = buffer.capacity();
        if let Ok(Some(prefix)) = Prefix::parse(&buffer, max) {
            prop_assert!(prefix.header_bytes <= FRAME_HEADER_BYTES_MAX);
            prop_assert!(prefix.frame_bytes() <= max.saturating_add(4));
            let _ = frame::take::<RequestHeader>(&mut buffer.clone(), prefix);
            let _ = frame::take::<ResponseHeader>(&mut buffer, prefix);
        }
        prop_assert!(buffer.capacity() <= capacity);
    }

    #[test]
    fn arbitrary_headers_in_a_sound_frame_never_panic(
        header in prop::collection::vec(any::<u8>(), 0..300),
        body_bytes in 0_usize..20,
    ) {
        let mut buffer = BytesMut::from(&((2 + header.len() + body_bytes) as u32).to_be_bytes()[..]);
        buffer.extend_from_slice(&(header.len() as u16).to_be_bytes());
        buffer.extend_from_slice(&header);
        buffer.resize(buffer.len() + body_bytes, 0);
        let prefix = Prefix::parse(&buffer, REQUEST_FRAME_BYTES_MAX).unwrap().unwrap();
        prop_assert_eq!(prefix, Prefix { header_bytes: header.len(), body_bytes });
        prop_assert_eq!(prefix.frame_bytes(), PREFIX_BYTES + header.len() + body_bytes);
        match frame::take::<RequestHeader>(&mut buffer, prefix) {
            Ok(frame) => prop_assert_eq!(frame.unwrap().body.len(), body_bytes),
            Err(error) => prop_assert!(matches!(error, FrameError::Header(_))),
        }
        prop_assert_eq!(Bytes::from(buffer).len(), 0, "the frame is gone from the buffer");
    }
}
