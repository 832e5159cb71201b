//! A client that knows nothing but the bytes on docs/protocol.md is served as the page says.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use longwire_broker::{Broker, Config};
use longwire_tests::page::{PROTOCOL, examples, hex};

struct Scene {
    broker: Broker,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn start() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let broker = Broker::start(Config::ephemeral(dir.path())).await.unwrap();
        Scene { broker, _dir: dir }
    }

    /// A data connection, before its hello.
    fn dial(&self) -> Wire {
        let stream = TcpStream::connect(self.broker.data_addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Wire(stream)
    }

    /// A data connection that has said hello.
    fn connect(&self) -> Wire {
        let mut wire = self.dial();
        wire.send(&examples(PROTOCOL)["hello-request"]);
        wire.frame();
        wire
    }
}

struct Wire(TcpStream);

impl Wire {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The next frame, whole.
    fn frame(&mut self) -> Vec<u8> {
        let mut frame = vec![0; 4];
        self.0.read_exact(&mut frame).unwrap();
        let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
        frame.resize(4 + length, 0);
        self.0.read_exact(&mut frame[4..]).unwrap();
        frame
    }

    /// Everything up to the end of the connection.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        rest
    }
}

/// The header of a frame, as bytes, and its body.
fn split(frame: &[u8]) -> (&[u8], &[u8]) {
    let header = usize::from(u16::from_be_bytes([frame[4], frame[5]]));
    frame[6..].split_at(header)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn a_hello_is_answered_byte_for_byte() {
    let scene = Scene::start().await;
    let page = examples(PROTOCOL);
    let mut wire = scene.dial();
    wire.send(&page["hello-request"]);
    assert_eq!(wire.frame(), page["hello-response"]);
}

#[tokio::test]
async fn the_record_on_the_page_is_stored_and_fetched() {
    let scene = Scene::start().await;
    let page = examples(PROTOCOL);
    let mut wire = scene.connect();
    wire.send(&page["produce-request"]);
    let answer = wire.frame();
    // Correlation id 2; a result at level "flushed" with an extent of one record, at offset 0.
    assert!(answer[6..].starts_with(&hex("0802 22")), "{answer:02x?}");
    assert!(
        contains(&answer, &hex("1802 22")) && contains(&answer, &hex("0801 18")),
        "{answer:02x?}"
    );

    // The page's fetch, from offset 0 of queue 3 on and without a filter for queue 2's sake.
    let fetch =
        hex("00000021 001f 0803 221b 088827 10808040 1a12 0a066f7264657273 1204988ba303 1a02 0803");
    wire.send(&fetch);
    let answer = wire.frame();
    let (header, body) = split(&answer);
    assert!(header.starts_with(&hex("0803 2a")), "{header:02x?}");
    let (sent, stored) = (&page["record-sent"], &page["record-stored"]);
    assert_eq!(body.len(), sent.len());
    assert_eq!(body[20..28], [0; 8], "offset 0");
    for untouched in [0..20, 36..56, 72..120 + 9] {
        assert_eq!(body[untouched.clone()], sent[untouched.clone()], "{untouched:?}");
        assert_eq!(body[untouched.clone()], stored[untouched]);
    }
    let crc = crc32fast::hash(&body[..120]) & 0x7FFF_FFFF;
    let digits: String = format!("{crc:010}").chars().rev().collect();
    assert_eq!(&body[129..139], digits.as_bytes());

    wire.send(&page["fetch-request"]);
    let answer = wire.frame();
    // Queue 3 has one record, so offset 7 is out of its range, which ends at 1.
    assert!(contains(&answer, &hex("0801 1004 2007 3001")), "{answer:02x?}");
}

#[tokio::test]
async fn a_fetch_that_finds_nothing_is_answered_when_its_time_is_up() {
    let scene = Scene::start().await;
    let page = examples(PROTOCOL);
    let mut wire = scene.connect();
    wire.send(&page["produce-request"]);
    wire.frame();
    // Queue 0, offset 0, 20 ms.
    wire.send(&hex("00000018 0016 0803 2212 0814 10808040 1a0a 0a066f7264657273 1a00"));
    assert_eq!(wire.frame(), page["fetch-response-empty"]);
}

#[tokio::test]
async fn a_queue_the_topic_does_not_have_is_refused_for_its_run_only() {
    let scene = Scene::start().await;
    let page = examples(PROTOCOL);
    let mut wire = scene.connect();
    let record = &page["record-sent"];
    // Two runs: queue 3, and queue 99, whose record says 99 as well.
    let mut other = record.clone();
    other[12..16].copy_from_slice(&99_u32.to_be_bytes());
    let mut frame =
        hex("0802 1a20 0802 120d 0a066f7264657273 1003 188c01 120d 0a066f7264657273 1063 188c01");
    let header_bytes = frame.len() as u16;
    let length = 2 + frame.len() + record.len() + other.len();
    frame.splice(0..0, [&(length as u32).to_be_bytes()[..], &header_bytes.to_be_bytes()].concat());
    wire.send(&[frame, record.clone(), other].concat());
    let answer = wire.frame();
    let (header, _) = split(&answer);
    assert!(contains(header, &hex("1802 22")), "the first is stored: {header:02x?}");
    assert!(contains(header, &hex("0803 12")), "the second is not: {header:02x?}");
}

#[tokio::test]
async fn a_frame_over_the_limit_gets_the_error_on_the_page_and_ends_the_connection() {
    let scene = Scene::start().await;
    let mut wire = scene.connect();
    wire.send(&16_777_216_u32.to_be_bytes());
    assert_eq!(wire.rest(), examples(PROTOCOL)["error-response"]);
}

#[tokio::test]
async fn what_the_page_says_about_bad_beginnings_is_true() {
    let scene = Scene::start().await;
    let page = examples(PROTOCOL);
    let code_of = |frame: &[u8]| {
        let (header, _) = split(frame);
        let at = header.iter().position(|&byte| byte == 0x12).unwrap();
        assert_eq!(header[at + 2], 0x08, "{header:02x?}");
        header[at + 3]
    };

    let mut wire = scene.dial();
    wire.send(&page["fetch-request"]);
    assert_eq!(code_of(&wire.rest()), 6, "the first frame is no hello: INVALID_REQUEST");

    let mut wire = scene.dial();
    wire.send(&hex("00000008 0006 0801 1202 0802"));
    assert_eq!(code_of(&wire.rest()), 16, "version 2: UNSUPPORTED_VERSION");

    let mut wire = scene.dial();
    wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(code_of(&wire.rest()), 8, "1195725856 bytes: FRAME_TOO_LARGE");

    let mut wire = scene.connect();
    wire.send(&hex("00000004 0009 0000"));
    assert_eq!(code_of(&wire.rest()), 7, "a header longer than its frame: BAD_FRAME");

    let mut wire = scene.connect();
    wire.send(&hex("00000004 0002 0805"));
    let refused = wire.frame();
    assert_eq!((code_of(&refused), &refused[6..8]), (6, &hex("0805")[..]), "no request");
    wire.send(&page["produce-request"]);
    assert!(wire.frame()[6..].starts_with(&hex("0802 22")), "and the connection goes on");
}
