//! One record at a time, produced and fetched.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use longwire_proto::data::{self, request_header::Request, response_header::Response};
use longwire_proto::frame::{self, Prefix};
use longwire_proto::limits::{PROTOCOL_VERSION, RESPONSE_FRAME_BYTES_MAX};
use prost::Message;

use crate::store::{ONE_RECORD_TOPIC, RECORD_BYTES};

/// One record for queue 0 of [`ONE_RECORD_TOPIC`].
pub(crate) fn produce() -> Request {
    let run =
        data::ProduceRun { topic: ONE_RECORD_TOPIC.into(), queue: 0, bytes: RECORD_BYTES as u32 };
    let durability = data::Durability::Write.into();
    Request::Produce(data::ProduceRequest { durability, runs: vec![run] })
}

/// What is there from an offset on of the same queue.
pub(crate) fn fetch(offset: u64, wait: Duration) -> Request {
    let queue = data::FetchQueue { queue: 0, offset, max_bytes: 0 };
    let topic = data::FetchTopic {
        created_position: None,
        topic: ONE_RECORD_TOPIC.into(),
        queues: vec![queue],
        ..Default::default()
    };
    Request::Fetch(data::FetchRequest {
        max_wait_ms: wait.as_millis() as u32,
        max_bytes: RECORD_BYTES as u32,
        topics: vec![topic],
    })
}

/// A connection that waits for each answer.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    next_id: u64,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut connection = Connection { stream, next_id: 1, buffer: Vec::new() };
        let client_id = "fetch benchmark".into();
        let hello = data::HelloRequest {
            protocol_version: PROTOCOL_VERSION,
            client_id,
            session: Vec::new(),
        };
        connection.send(Request::Hello(hello), &[])?;
        connection.receive()?;
        Ok(connection)
    }

    pub(crate) fn send(&mut self, request: Request, body: &[u8]) -> io::Result<()> {
        let header = data::RequestHeader { correlation_id: self.next_id, request: Some(request) };
        self.next_id += 1;
        let mut frame = frame::head(&header, body.len()).map_err(io::Error::other)?.to_vec();
        frame.extend_from_slice(body);
        self.stream.write_all(&frame)
    }

    /// The header of the next answer; its body is passed over.
    pub(crate) fn receive(&mut self) -> io::Result<data::ResponseHeader> {
        let mut bytes = [0; 4096];
        loop {
            let prefix = Prefix::parse(&self.buffer, RESPONSE_FRAME_BYTES_MAX);
            if let Some(prefix) = prefix.map_err(io::Error::other)?
                && self.buffer.len() >= prefix.frame_bytes()
            {
                let header = &self.buffer[frame::PREFIX_BYTES..][..prefix.header_bytes];
                let header = data::ResponseHeader::decode(header).map_err(io::Error::other)?;
                self.buffer.drain(..prefix.frame_bytes());
                return Ok(header);
            }
            match self.stream.read(&mut bytes)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.buffer.extend_from_slice(&bytes[..read]),
            }
        }
    }

    /// The offset behind the record that was produced.
    pub(crate) fn produced(&mut self) -> io::Result<u64> {
        match self.receive()?.response {
            Some(Response::Produce(answer)) if answer.results.iter().all(|r| r.code == 0) => {
                let extent = answer.results.first().and_then(|result| result.extents.first());
                extent.map(|extent| extent.offset + 1).ok_or_else(|| io::Error::other("no offset"))
            }
            other => Err(io::Error::other(format!("not produced: {other:?}"))),
        }
    }
}
