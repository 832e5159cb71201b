//! How soon a consumer that waits has a record.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use longwire_benches::{histogram, percentiles_us};
use longwire_proto::data::{self, request_header::Request, response_header::Response};
use longwire_proto::frame::{self, Prefix};
use longwire_proto::limits::{PROTOCOL_VERSION, RESPONSE_FRAME_BYTES_MAX};
use longwire_tests::noise;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::measure::Plan;
use crate::store::{ArmBroker, PARKED_TOPIC, RECORD_BYTES, record};

/// From before a produce request of one record is sent until the fetch that was parked is answered,
/// and until the produce request is. The record becomes visible in between the two sends, so the
/// first is more than the time since then.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parked {
    pub(crate) fetched_p50_us: f64,
    pub(crate) fetched_p99_us: f64,
    /// Without anybody waiting: produce, durability `write`, acknowledged.
    pub(crate) acknowledged_p50_us: f64,
}

pub(crate) fn measure(plan: &Plan<'_>, broker: &mut ArmBroker) -> io::Result<Parked> {
    plan.pinning.serve();
    let address = broker.running().addresses().data;
    plan.pinning.consume();
    let mut producer = Connection::open(address)?;
    let mut consumer = Connection::open(address)?;
    let records = record(PARKED_TOPIC, 0, &noise(1, RECORD_BYTES));
    let (mut fetched, mut acknowledged) = (histogram(), histogram());
    let took = |since: Instant| since.elapsed().as_nanos() as u64;
    let began = Instant::now();
    while began.elapsed() < plan.moment * plan.rounds as u32 {
        let sent = Instant::now();
        producer.send(produce(), &records)?;
        let next = producer.produced()?;
        acknowledged.record(took(sent)).map_err(io::Error::other)?;

        consumer.send(fetch(next, Duration::from_secs(10)), &[])?;
        // Requests are taken up in order: once this one is answered, that one is parked.
        consumer.send(fetch(next, Duration::ZERO), &[])?;
        consumer.receive()?;
        let sent = Instant::now();
        producer.send(produce(), &records)?;
        let answer = consumer.receive()?;
        fetched.record(took(sent)).map_err(io::Error::other)?;
        let Some(Response::Fetch(answer)) = answer.response else {
            return Err(io::Error::other("a fetch was refused"));
        };
        if answer.results.iter().map(|result| result.bytes as usize).sum::<usize>() != RECORD_BYTES
        {
            return Err(io::Error::other(format!("not the record at {next}: {answer:?}")));
        }
        producer.produced()?;
    }
    let [fetched_p50_us, fetched_p99_us, _] = percentiles_us(&fetched);
    let acknowledged_p50_us = percentiles_us(&acknowledged)[0];
    Ok(Parked { fetched_p50_us, fetched_p99_us, acknowledged_p50_us })
}

fn produce() -> Request {
    let run = data::ProduceRun { topic: PARKED_TOPIC.into(), queue: 0, bytes: RECORD_BYTES as u32 };
    let durability = data::Durability::Write.into();
    Request::Produce(data::ProduceRequest { durability, runs: vec![run] })
}

fn fetch(offset: u64, wait: Duration) -> Request {
    let queue = data::FetchQueue { queue: 0, offset, max_bytes: 0 };
    let topic =
        data::FetchTopic { topic: PARKED_TOPIC.into(), queues: vec![queue], ..Default::default() };
    Request::Fetch(data::FetchRequest {
        max_wait_ms: wait.as_millis() as u32,
        max_bytes: RECORD_BYTES as u32,
        topics: vec![topic],
    })
}

/// A connection that waits for each answer.
struct Connection {
    stream: TcpStream,
    next_id: u64,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut connection = Connection { stream, next_id: 1, buffer: Vec::new() };
        let client_id = "fetch benchmark".into();
        let hello = data::HelloRequest { protocol_version: PROTOCOL_VERSION, client_id };
        connection.send(Request::Hello(hello), &[])?;
        connection.receive()?;
        Ok(connection)
    }

    fn send(&mut self, request: Request, body: &[u8]) -> io::Result<()> {
        let header = data::RequestHeader { correlation_id: self.next_id, request: Some(request) };
        self.next_id += 1;
        let mut frame = frame::head(&header, body.len()).map_err(io::Error::other)?.to_vec();
        frame.extend_from_slice(body);
        self.stream.write_all(&frame)
    }

    /// The header of the next answer; its body is passed over.
    fn receive(&mut self) -> io::Result<data::ResponseHeader> {
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
    fn produced(&mut self) -> io::Result<u64> {
        match self.receive()?.response {
            Some(Response::Produce(answer)) if answer.results.iter().all(|r| r.code == 0) => {
                let extent = answer.results.first().and_then(|result| result.extents.first());
                extent.map(|extent| extent.offset + 1).ok_or_else(|| io::Error::other("no offset"))
            }
            other => Err(io::Error::other(format!("not produced: {other:?}"))),
        }
    }
}
