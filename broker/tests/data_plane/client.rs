//! A data-plane client of a few lines, so that the tests see exactly what is on the wire.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use longwire_proto::ErrorCode;
use longwire_proto::data::{self, request_header::Request, response_header::Response};
use longwire_proto::frame::{self, Prefix};
use longwire_proto::limits::RESPONSE_FRAME_BYTES_MAX;
use longwire_proto::record::{RecordDraft, RecordView};

/// Far longer than anything here takes: it only keeps a broken broker from hanging the tests.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: BytesMut,
    next_id: u64,
}

impl Client {
    /// A connection that has said hello.
    pub(crate) fn connect(addr: SocketAddr) -> Client {
        Client::connect_in(addr, b"")
    }

    /// A connection of a session.
    pub(crate) fn connect_in(addr: SocketAddr, session: &[u8]) -> Client {
        let mut client = Client::connect_silently(addr);
        let hello = client.call(hello(1, session), &[]);
        assert!(matches!(hello, Response::Hello(_)), "{hello:?}");
        client
    }

    /// A connection that has said nothing yet.
    pub(crate) fn connect_silently(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, buffer: BytesMut::new(), next_id: 1 }
    }

    /// Sends a request and returns its correlation id.
    pub(crate) fn send(&mut self, request: Request, body: &[u8]) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.stream.write_all(&encode(id, request, body)).unwrap();
        id
    }

    /// The next answer: correlation id, response and body. `None` once the broker has closed.
    pub(crate) fn receive(&mut self) -> Option<(u64, Response, BytesMut)> {
        loop {
            if let Some(prefix) = Prefix::parse(&self.buffer, RESPONSE_FRAME_BYTES_MAX).unwrap()
                && let Some(frame) =
                    frame::take::<data::ResponseHeader>(&mut self.buffer, prefix).unwrap()
            {
                return Some((
                    frame.header.correlation_id,
                    frame.header.response.unwrap(),
                    frame.body,
                ));
            }
            let mut bytes = [0; 64 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(read) => self.buffer.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// Sends a request and returns the answer to it, which must be the next one.
    pub(crate) fn call(&mut self, request: Request, body: &[u8]) -> Response {
        let id = self.send(request, body);
        let (answered, response, _) = self.receive().unwrap();
        assert_eq!(answered, id);
        response
    }

    /// Produces one run and returns its result.
    pub(crate) fn produce(
        &mut self,
        topic: &str,
        queue: u32,
        records: &[u8],
    ) -> data::ProduceResult {
        match self.call(produce(topic, queue, records.len(), data::Durability::Topic), records) {
            Response::Produce(mut answer) => answer.results.remove(0),
            other => panic!("{other:?}"),
        }
    }

    /// Produces bodies to one queue, which must succeed, and returns the first offset.
    pub(crate) fn produce_bodies(
        &mut self,
        topic: &str,
        queue: u32,
        bodies: &[impl AsRef<[u8]>],
    ) -> u64 {
        let result = self.produce(topic, queue, &records(topic, queue, bodies));
        assert_eq!((result.code, &*result.message), (0, ""));
        result.extents[0].offset
    }

    /// Produces the first bodies of a queue and waits until consumers see them, which is a moment
    /// after the acknowledgement.
    pub(crate) fn produce_visible(&mut self, topic: &str, queue: u32, bodies: &[impl AsRef<[u8]>]) {
        self.produce_bodies(topic, queue, bodies);
        self.assert_queue_holds(topic, queue, 1 << 20, bodies);
    }

    pub(crate) fn fetch(&mut self, request: data::FetchRequest) -> (data::FetchResponse, BytesMut) {
        let id = self.send(Request::Fetch(request), &[]);
        self.fetched(id)
    }

    /// The answer to a fetch that has been sent.
    pub(crate) fn fetched(&mut self, id: u64) -> (data::FetchResponse, BytesMut) {
        match self.receive().unwrap() {
            (answered, Response::Fetch(response), body) => {
                assert_eq!(answered, id);
                let bytes: u64 = response.results.iter().map(|r| u64::from(r.bytes)).sum();
                assert_eq!(bytes, body.len() as u64, "the results account for the whole body");
                (response, body)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Fetches everything from an offset of a queue on and checks it: order, checksums, bodies.
    pub(crate) fn assert_queue_holds(
        &mut self,
        topic: &str,
        queue: u32,
        bytes_max: u32,
        bodies: &[impl AsRef<[u8]>],
    ) {
        let mut offset = 0;
        while offset < bodies.len() as u64 {
            let request = fetch(topic, &[(queue, offset)], bytes_max, PATIENCE);
            let (response, body) = self.fetch(request);
            let result = &response.results[0];
            assert_eq!((result.index, result.code), (0, 0));
            for record in split(&body) {
                assert_eq!(
                    (record.topic(), record.queue(), record.offset()),
                    (topic, queue, offset)
                );
                let expected = bodies[offset as usize].as_ref();
                assert!(record.body() == expected, "offset {offset} of queue {queue}");
                offset += 1;
            }
            assert_eq!(result.next_offset, offset);
        }
        assert_eq!(offset, bodies.len() as u64);
    }

    /// The code of the error frame that must come next, after which the broker must close.
    pub(crate) fn error_and_close(&mut self) -> ErrorCode {
        let code = self.error(0);
        assert!(self.receive().is_none(), "the connection goes on after {code}");
        code
    }

    /// The code of the error frame that must come next.
    pub(crate) fn error(&mut self, id: u64) -> ErrorCode {
        match self.receive() {
            Some((answered, Response::Error(error), _)) => {
                assert_eq!(answered, id);
                assert!(!error.message.is_empty());
                ErrorCode::from_number(error.code).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn hello(protocol_version: u32, session: &[u8]) -> Request {
    let session = session.to_vec();
    Request::Hello(data::HelloRequest { protocol_version, client_id: "test".into(), session })
}

pub(crate) fn produce(
    topic: &str,
    queue: u32,
    bytes: usize,
    durability: data::Durability,
) -> Request {
    let run = data::ProduceRun { topic: topic.into(), queue, bytes: bytes as u32 };
    Request::Produce(data::ProduceRequest { durability: durability.into(), runs: vec![run] })
}

/// A fetch of queues of one topic, each from an offset on.
pub(crate) fn fetch(
    topic: &str,
    queues: &[(u32, u64)],
    max_bytes: u32,
    max_wait: Duration,
) -> data::FetchRequest {
    let queues = queues
        .iter()
        .map(|&(queue, offset)| data::FetchQueue { queue, offset, max_bytes: 0 })
        .collect();
    let topic = data::FetchTopic {
        created_position: None,
        topic: topic.into(),
        tag_hashes: vec![],
        queues,
    };
    data::FetchRequest { max_wait_ms: max_wait.as_millis() as u32, max_bytes, topics: vec![topic] }
}

pub(crate) fn encode(correlation_id: u64, request: Request, body: &[u8]) -> Vec<u8> {
    let header = data::RequestHeader { correlation_id, request: Some(request) };
    let mut bytes = frame::head(&header, body.len()).unwrap().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn records(topic: &str, queue: u32, bodies: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for body in bodies {
        let draft = RecordDraft { topic, queue, body: body.as_ref(), ..RecordDraft::default() };
        draft.encode(&mut bytes).unwrap();
    }
    bytes
}

pub(crate) fn tagged_record(topic: &str, queue: u32, tag: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    RecordDraft { topic, queue, tag, body, ..RecordDraft::default() }.encode(&mut bytes).unwrap();
    bytes
}

/// The records of a body, each with its checksum verified.
pub(crate) fn split(mut body: &[u8]) -> Vec<RecordView<'_>> {
    let mut records = Vec::new();
    while !body.is_empty() {
        let record = RecordView::parse(body).unwrap();
        record.verify_checksum().unwrap();
        body = &body[record.size()..];
        records.push(record);
    }
    records
}

/// Bytes that differ from one seed to the next and do not repeat soon.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}
