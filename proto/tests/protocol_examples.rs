//! Holds docs/protocol.md and docs/format.md to the code: every example, error code and limit on the
//! pages is compared with what this crate encodes.
#![allow(clippy::unwrap_used)]

#[path = "support/hex.rs"]
mod hex;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use longwire_proto::data::{
    AckLevel, Durability, ErrorResponse, Extent, FetchQueue, FetchRequest, FetchResponse,
    FetchResult, FetchTopic, HelloRequest, HelloResponse, ProduceRequest, ProduceResponse,
    ProduceResult, ProduceRun, RequestHeader, ResponseHeader, request_header::Request,
    response_header::Response,
};
use longwire_proto::frame::{self, Prefix};
use longwire_proto::record::{self, Placement, RecordDraft, RecordView, tag_hash};
use longwire_proto::{ErrorCode, limits, name};

const PROTOCOL: &str = include_str!("../../docs/protocol.md");

/// The bytes of every example on a page: fenced blocks that begin with "```hex NAME". Of each line
/// the part before a semicolon counts; `[NAME]` stands for an earlier example.
fn examples(page: &str) -> BTreeMap<&str, Vec<u8>> {
    let mut examples: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for block in page.split("```hex ").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (text, _) = rest.split_once("```").unwrap();
        let mut bytes = Vec::new();
        for line in text.lines() {
            let code = line.split(';').next().unwrap().trim();
            match code.strip_prefix('[').and_then(|code| code.strip_suffix(']')) {
                Some(earlier) => bytes.extend_from_slice(&examples[earlier]),
                None => bytes.extend(hex::bytes(code)),
            }
        }
        let repeated = examples.insert(name, bytes);
        assert!(repeated.is_none(), "two examples are called {name}");
    }
    examples
}

fn request(correlation_id: u64, request: Request, body: &[u8]) -> Vec<u8> {
    let header = RequestHeader { correlation_id, request: Some(request) };
    [&frame::head(&header, body.len()).unwrap(), body].concat()
}

fn response(correlation_id: u64, response: Response, body: &[u8]) -> Vec<u8> {
    let header = ResponseHeader { correlation_id, response: Some(response) };
    [&frame::head(&header, body.len()).unwrap(), body].concat()
}

/// The record all examples are about, as the producer sends it.
fn sent_record() -> Vec<u8> {
    let draft = RecordDraft {
        topic: "orders",
        queue: 3,
        born_timestamp_ms: 1_700_000_000_000,
        born_host: "10.0.0.1:54321".parse().unwrap(),
        tag: "paid",
        keys: "k1",
        body: b"hello",
        ..RecordDraft::default()
    };
    let mut bytes = Vec::new();
    draft.encode(&mut bytes).unwrap();
    bytes
}

/// The same record as the log keeps it.
fn stored_record() -> Vec<u8> {
    let mut bytes = sent_record();
    let placement = Placement {
        offset: 7,
        position: 4096,
        store_timestamp_ms: 1_700_000_000_123,
        store_host: "10.0.0.2:7650".parse().unwrap(),
    };
    record::seal(&mut bytes, &placement);
    bytes
}

fn hellos() -> [(&'static str, Vec<u8>); 2] {
    let asked =
        HelloRequest { protocol_version: 1, client_id: "worker-1".into(), session: Vec::new() };
    let answered = HelloResponse {
        protocol_version: limits::PROTOCOL_VERSION,
        broker_version: "0.1.0".into(),
        max_frame_bytes: limits::REQUEST_FRAME_BYTES_MAX as u32,
        max_in_flight: 256,
        store_host_ipv6: false,
    };
    [
        ("hello-request", request(1, Request::Hello(asked), b"")),
        ("hello-response", response(1, Response::Hello(answered), b"")),
    ]
}

fn produces() -> [(&'static str, Vec<u8>); 3] {
    let record = sent_record();
    let run = ProduceRun { topic: "orders".into(), queue: 3, bytes: record.len() as u32 };
    let asked = ProduceRequest { durability: Durability::Flush.into(), runs: vec![run] };
    let appended = ProduceResult {
        level: AckLevel::Flushed.into(),
        extents: vec![Extent { records: 1, offset: 7, position: 4096 }],
        ..ProduceResult::default()
    };
    let refused = ProduceResult {
        code: ErrorCode::UnknownQueue.number(),
        message: "topic orders has 2 queues".into(),
        ..ProduceResult::default()
    };
    let answer = |result| Response::Produce(ProduceResponse { results: vec![result] });
    [
        ("produce-request", request(2, Request::Produce(asked), &record)),
        ("produce-response", response(2, answer(appended), b"")),
        ("produce-response-refused", response(2, answer(refused), b"")),
    ]
}

fn fetches() -> [(&'static str, Vec<u8>); 4] {
    let record = stored_record();
    let asked = FetchRequest {
        max_wait_ms: 5_000,
        max_bytes: 1 << 20,
        topics: vec![FetchTopic {
            created_position: None,
            topic: "orders".into(),
            tag_hashes: vec![tag_hash("paid")],
            queues: vec![
                FetchQueue { queue: 2, offset: 0, max_bytes: 0 },
                FetchQueue { queue: 3, offset: 7, max_bytes: 65_536 },
            ],
        }],
    };
    let found = FetchResult {
        index: 1,
        bytes: record.len() as u32,
        next_offset: 8,
        max_offset: 8,
        ..FetchResult::default()
    };
    let out_of_range = FetchResult {
        index: 1,
        code: ErrorCode::OffsetOutOfRange.number(),
        next_offset: 7,
        min_offset: 100,
        max_offset: 250,
        ..FetchResult::default()
    };
    let answer = |results| Response::Fetch(FetchResponse { results });
    [
        ("fetch-request", request(3, Request::Fetch(asked), b"")),
        ("fetch-response", response(3, answer(vec![found]), &record)),
        ("fetch-response-empty", response(3, answer(vec![]), b"")),
        ("fetch-response-out-of-range", response(3, answer(vec![out_of_range]), b"")),
    ]
}

fn error() -> (&'static str, Vec<u8>) {
    let code = ErrorCode::FrameTooLarge.number();
    let message = "a frame of 16777216 bytes is over the limit of 8454145".into();
    ("error-response", response(0, Response::Error(ErrorResponse { code, message }), b""))
}

fn compare(page: &str, expected: &[(&str, Vec<u8>)]) {
    let examples = examples(page);
    for (name, bytes) in expected {
        let written = examples.get(name).map_or(&[][..], Vec::as_slice);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(written, bytes, "example {name} should be: {hex}");
    }
}

#[test]
fn every_frame_on_the_page_is_what_the_encoder_makes() {
    let records = [("record-sent", sent_record()), ("record-stored", stored_record())];
    let all = [records.as_slice(), &hellos(), &produces(), &fetches(), &[error()]].concat();
    compare(PROTOCOL, &all);
}

#[test]
fn every_frame_on_the_page_can_be_taken_apart_again() {
    for (name, bytes) in examples(PROTOCOL) {
        if name.starts_with("record-") {
            assert_eq!(RecordView::parse(&bytes).unwrap().size(), bytes.len(), "{name}");
        } else if !name.starts_with("grpc-") {
            let prefix = Prefix::parse(&bytes, limits::RESPONSE_FRAME_BYTES_MAX).unwrap().unwrap();
            assert_eq!(prefix.frame_bytes(), bytes.len(), "{name}");
            let mut buffer = BytesMut::from(&bytes[..]);
            let body = if name.contains("request") {
                frame::take::<RequestHeader>(&mut buffer, prefix).unwrap().unwrap().body
            } else {
                frame::take::<ResponseHeader>(&mut buffer, prefix).unwrap().unwrap().body
            };
            assert!(body.is_empty() || RecordView::parse(&body).is_ok(), "{name}");
            assert_eq!(Bytes::from(buffer).len(), 0, "{name}");
        }
    }
}

/// The cells of the table row that begins with this cell.
fn row<'a>(page: &'a str, first: &str) -> Vec<&'a str> {
    let start = format!("| {first} |");
    let mut rows = page.lines().filter(|line| line.starts_with(&start));
    let row = rows.next().unwrap_or_else(|| panic!("no table row begins with {first:?}"));
    assert_eq!(rows.next(), None, "two table rows begin with {first:?}");
    row.trim_matches('|').split('|').map(str::trim).collect()
}

#[test]
fn the_error_table_lists_every_code() {
    for &code in ErrorCode::ALL {
        let retriable = if code.is_retriable() { "yes" } else { "no" };
        let row = format!("| {} | `{}` | {retriable} | `", code.number(), code.name());
        assert!(PROTOCOL.contains(&row), "missing: {row}");
    }
}

#[test]
fn the_limits_on_the_page_are_the_limits_of_the_code() {
    for (what, limit) in [
        ("data-plane version", limits::PROTOCOL_VERSION as usize),
        ("header of a frame", limits::FRAME_HEADER_BYTES_MAX),
        ("body of a request", limits::REQUEST_BODY_BYTES_MAX),
        ("request frame", limits::REQUEST_FRAME_BYTES_MAX),
        ("records of one fetch", limits::FETCH_BYTES_MAX),
        ("response frame", limits::RESPONSE_FRAME_BYTES_MAX),
        ("runs in a produce", limits::RUNS_PER_PRODUCE_MAX),
        ("queues in a fetch", limits::QUEUES_PER_FETCH_MAX),
        ("tag hashes of a fetched topic", limits::TAGS_PER_FETCH_MAX),
        ("parked time of a fetch", limits::FETCH_WAIT_MS_MAX as usize),
        ("record", limits::RECORD_BYTES_MAX),
        ("body of a record", limits::BODY_BYTES_MAX),
        ("properties of a record", limits::PROPERTIES_BYTES_MAX),
        ("session", limits::SESSION_BYTES_MAX),
        ("topic name", limits::TOPIC_BYTES_MAX),
        ("group name", limits::GROUP_BYTES_MAX),
        ("queues of a topic", limits::QUEUES_PER_TOPIC_MAX as usize),
    ] {
        let number: String = row(PROTOCOL, what)[1].split(' ').next().unwrap().replace(',', "");
        assert_eq!(number, limit.to_string(), "{what}");
    }
    assert!(PROTOCOL.contains(&format!("`{}`", name::SYSTEM_PREFIX)));
}

/// What only the control plane has.
#[cfg(feature = "grpc")]
mod control_plane {
    use super::*;
    use longwire_proto::control::{
        Assignment, JoinRequest, Released, Subscribe, TopicQueues, join_request::Request,
    };
    use longwire_proto::status;
    use prost::Message;

    fn grpc(message: &impl Message) -> Vec<u8> {
        let bytes = message.encode_to_vec();
        [&[0], &(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()
    }

    #[test]
    fn every_message_on_the_page_is_what_the_encoder_makes() {
        let subscribe = Subscribe {
            group: "billing".into(),
            topics: vec!["orders".into()],
            client_id: "worker-1".into(),
        };
        let assignment = Assignment {
            member_id: "18bcfe56800-1".into(),
            generation: 8,
            topics: vec![TopicQueues {
                topic: "orders".into(),
                queues: vec![0],
                created_position: 2048,
            }],
            unknown_topics: Vec::new(),
        };
        let released = Released { generation: 8 };
        let join = |request| grpc(&JoinRequest { request: Some(request) });
        let error = status(ErrorCode::UnknownTopic, "no topic t");
        let expected = [
            ("grpc-join-subscribe", join(Request::Subscribe(subscribe))),
            ("grpc-assignment", grpc(&assignment)),
            ("grpc-join-released", join(Request::Released(released))),
            ("grpc-error-details", error.details().to_vec()),
        ];
        compare(PROTOCOL, &expected);
    }

    #[test]
    fn the_error_table_names_the_grpc_status_of_every_code() {
        for &code in ErrorCode::ALL {
            let grpc = format!("{:?}", status(code, "").code());
            let mut upper = String::new();
            for c in grpc.chars() {
                if c.is_uppercase() && !upper.is_empty() {
                    upper.push('_');
                }
                upper.push(c.to_ascii_uppercase());
            }
            let start = format!("| {} | `{}` | ", code.number(), code.name());
            let row = PROTOCOL.lines().find(|line| line.starts_with(&start)).unwrap();
            assert!(row.contains(&format!("| `{upper}` |")), "{row} should say {upper}");
        }
    }
}
