//! A data-plane client of a few lines: the suites see, and send, exactly what is on the wire.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use longwire_proto::ErrorCode;
use longwire_proto::data::{self, request_header::Request, response_header::Response};
use longwire_proto::frame::{self, Prefix};
use longwire_proto::limits::RESPONSE_FRAME_BYTES_MAX;
use longwire_proto::record::{RecordDraft, RecordView};

/// Far longer than any answer takes: it only keeps a broken broker from hanging a suite.
const PATIENCE: Duration = Duration::from_secs(60);

/// A data connection.
#[derive(Debug)]
pub struct FrameClient {
    /// For bytes that are no frames.
    pub stream: TcpStream,
    buffer: BytesMut,
    next_id: u64,
}

impl FrameClient {
    /// A connection that has said hello.
    ///
    /// # Panics
    ///
    /// If the broker does not answer with its own.
    pub fn connect(address: SocketAddr) -> FrameClient {
        let mut client = FrameClient::connect_silently(address).expect("a connection");
        let hello = client.call(hello(), &[]);
        assert!(matches!(hello, Response::Hello(_)), "{hello:?}");
        client
    }

    /// A connection that has said nothing yet.
    pub fn connect_silently(address: SocketAddr) -> io::Result<FrameClient> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(FrameClient { stream, buffer: BytesMut::new(), next_id: 1 })
    }

    /// Sends a request and returns its correlation id.
    ///
    /// # Panics
    ///
    /// If it cannot be sent.
    pub fn send(&mut self, request: Request, body: &[u8]) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.stream.write_all(&encode(id, request, body)).expect("the request goes out");
        id
    }

    /// The next answer: correlation id, response and body. `None` once the broker has closed.
    ///
    /// # Panics
    ///
    /// If what comes is no frame, or nothing comes for long.
    pub fn receive(&mut self) -> Option<(u64, Response, BytesMut)> {
        let mut bytes = vec![0; 256 * 1024];
        loop {
            let prefix = Prefix::parse(&self.buffer, RESPONSE_FRAME_BYTES_MAX).expect("a frame");
            if let Some(prefix) = prefix {
                let taken = frame::take::<data::ResponseHeader>(&mut self.buffer, prefix);
                if let Some(frame) = taken.expect("a header") {
                    let response = frame.header.response.expect("a response");
                    return Some((frame.header.correlation_id, response, frame.body));
                }
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(read) => self.buffer.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// Sends a request and returns the answer to it, which must be the next one.
    ///
    /// # Panics
    ///
    /// If the broker closes, or answers something else first.
    pub fn call(&mut self, request: Request, body: &[u8]) -> Response {
        let id = self.send(request, body);
        let (answered, response, _) = self.receive().expect("an answer");
        assert_eq!(answered, id, "the request that is answered");
        response
    }

    /// Produces records as one run and returns its result.
    ///
    /// # Panics
    ///
    /// If there is no result.
    pub fn produce(&mut self, topic: &str, queue: u32, records: &[u8]) -> data::ProduceResult {
        let run = data::ProduceRun { topic: topic.into(), queue, bytes: records.len() as u32 };
        let request = data::ProduceRequest { durability: 0, runs: vec![run] };
        match self.call(Request::Produce(request), records) {
            Response::Produce(mut answer) if answer.results.len() == 1 => answer.results.remove(0),
            other => panic!("{other:?}"),
        }
    }

    /// Fetches; the answer and its records.
    ///
    /// # Panics
    ///
    /// If the answer is of another kind.
    pub fn fetch(&mut self, request: data::FetchRequest) -> (data::FetchResponse, BytesMut) {
        let id = self.send(Request::Fetch(request), &[]);
        match self.receive() {
            Some((answered, Response::Fetch(response), body)) => {
                assert_eq!(answered, id, "the request that is answered");
                (response, body)
            }
            other => panic!("{other:?}"),
        }
    }

    /// The code of the error frame that must come next, and after which the broker must close.
    ///
    /// # Panics
    ///
    /// If something else comes.
    pub fn error_and_close(&mut self) -> ErrorCode {
        let code = match self.receive() {
            Some((0, Response::Error(error), _)) if !error.message.is_empty() => error.code,
            other => panic!("not an error of the connection: {other:?}"),
        };
        assert!(self.receive().is_none(), "the connection goes on after error {code}");
        ErrorCode::from_number(code).expect("one of the stable codes")
    }
}

/// The first request of a connection.
pub fn hello() -> Request {
    Request::Hello(data::HelloRequest {
        protocol_version: 1,
        client_id: "suite".into(),
        session: Vec::new(),
    })
}

/// A fetch of queues of one topic, each from an offset on.
pub fn fetch(topic: &str, queues: &[(u32, u64)], bytes: u32, wait: Duration) -> data::FetchRequest {
    let queues =
        queues.iter().map(|&(queue, offset)| data::FetchQueue { queue, offset, max_bytes: 0 });
    let topic = data::FetchTopic {
        created_position: None,
        topic: topic.into(),
        tag_hashes: vec![],
        queues: queues.collect(),
    };
    data::FetchRequest {
        max_wait_ms: wait.as_millis() as u32,
        max_bytes: bytes,
        topics: vec![topic],
    }
}

/// A request as bytes.
///
/// # Panics
///
/// If its header is too long for a frame.
pub fn encode(correlation_id: u64, request: Request, body: &[u8]) -> Vec<u8> {
    let header = data::RequestHeader { correlation_id, request: Some(request) };
    let mut bytes = frame::head(&header, body.len()).expect("a header that fits").to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// One record, as a producer makes it.
///
/// # Panics
///
/// If it is outside the limits.
pub fn record(topic: &str, queue: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let draft = RecordDraft { topic, queue, body, ..RecordDraft::default() };
    draft.encode(&mut bytes).expect("a record within the limits");
    bytes
}

/// The records of a body, each with its checksum verified.
///
/// # Panics
///
/// If one is not a record, or damaged.
pub fn split(mut body: &[u8]) -> Vec<RecordView<'_>> {
    let mut records = Vec::new();
    while !body.is_empty() {
        let record = RecordView::parse(body).expect("a record");
        record.verify_checksum().expect("the checksum it was stored with");
        body = &body[record.size()..];
        records.push(record);
    }
    records
}
