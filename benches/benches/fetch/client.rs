//! Consumers that are cheaper than any broker: frames are told apart, bodies thrown away unread.
//!
//! Bodies are taken off the socket with `MSG_TRUNC`, which drops them in the kernel. So the client is
//! not the limit, and no copy of the receiver disturbs the caches: it is as near as loopback comes to
//! a network card. `--copy` reads them instead.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use longwire_benches::histogram;
use longwire_proto::data::{self, request_header::Request, response_header::Response};
use longwire_proto::frame::{self, Prefix};
use longwire_proto::limits::{PROTOCOL_VERSION, RESPONSE_FRAME_BYTES_MAX};
use prost::Message;
use rustix::event::epoll;
use rustix::net::{RecvFlags, recv};

use crate::matrix::{Case, Residency};
use crate::store::{RECORD_BYTES, Records};

/// How much of an answer is read in order to be looked at.
const LOOKED_AT_BYTES: usize = 4 << 10;
/// How much is thrown away in one call.
const DISCARD_BYTES: usize = 1 << 20;
/// The same for who gives way: no one else runs during a call.
const GIVING_WAY_BYTES: usize = 64 << 10;
/// Far longer than any answer takes: it only keeps a broken broker from hanging the benchmark.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was fetched, and how long each took.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) latency: Histogram<u64>,
    pub(crate) fetches: u64,
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
}

impl Outcome {
    fn count(&mut self, bytes: usize, took: Duration) -> io::Result<()> {
        self.latency.record(took.as_nanos() as u64).map_err(io::Error::other)?;
        self.fetches += 1;
        self.bytes += bytes as u64;
        Ok(())
    }
}

/// Connections that fetch, all served by the calling thread.
#[derive(Debug)]
pub(crate) struct Client {
    connections: Vec<Connection>,
    epoll: std::os::fd::OwnedFd,
    scratch: Vec<u8>,
    flags: RecvFlags,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    records: Records,
    /// The next fetch, counted through all queues.
    slot: u64,
    /// How many fetches it may still begin.
    left: u64,
    next_id: u64,
    pending: Vec<(u64, Instant)>,
    buffer: Vec<u8>,
    /// The answer under way: its number, its body, and what of that is still to come.
    current: Option<(u64, usize, usize)>,
}

impl Client {
    /// Connects and says hello. Connection 3 of 4 begins at three quarters of the records. Where they
    /// are cold it ends before the next one's: what that has fetched is not cold any more.
    pub(crate) fn connect(
        address: SocketAddr,
        records: Records,
        case: &Case,
        copy: bool,
    ) -> io::Result<Client> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(case.connections);
        let share = records.slots(case.size) / case.connections as u64;
        let left = if case.residency == Residency::Cold { share } else { u64::MAX };
        for number in 0..case.connections {
            let slot = records.slots(case.size) * number as u64 / case.connections as u64;
            let connection = Connection::open(address, records, slot, left)?;
            let data = epoll::EventData::new_u64(number as u64);
            epoll::add(&epoll, &connection.stream, data, epoll::EventFlags::IN)?;
            connections.push(connection);
        }
        let flags = if copy { RecvFlags::empty() } else { RecvFlags::TRUNC };
        Ok(Client { connections, epoll, scratch: vec![0; DISCARD_BYTES], flags })
    }

    /// Takes no more than it must of the core that others measure on: consumers of another group are on
    /// another machine. For the calling thread, which is to be the one that runs it.
    pub(crate) fn give_way(&mut self) -> io::Result<()> {
        self.scratch.truncate(GIVING_WAY_BYTES);
        Ok(rustix::process::setpriority_process(None, 19)?)
    }

    /// Fetches as long as `more` says so, told how many were begun and how long it has been, and there is
    /// something left to fetch.
    pub(crate) fn run(
        &mut self,
        case: &Case,
        mut more: impl FnMut(u64, Duration) -> bool,
    ) -> io::Result<Outcome> {
        let (began, mut begun) = (Instant::now(), 0);
        let mut outcome =
            Outcome { latency: histogram(), fetches: 0, bytes: 0, elapsed: Duration::ZERO };
        for connection in &mut self.connections {
            for _ in 0..connection.left.min(case.in_flight as u64) {
                connection.fetch(case.size, Instant::now())?;
                begun += 1;
            }
        }
        let mut going = true;
        let mut events = Vec::with_capacity(self.connections.len());
        let patience = rustix::event::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        while outcome.fetches < begun {
            events.clear();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            if epoll::wait(&self.epoll, buffer, Some(&patience))? == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the broker does not answer"));
            }
            for event in &events {
                let connection = &mut self.connections[event.data.u64() as usize];
                while let Some((bytes, sent)) = connection.receive(&mut self.scratch, self.flags)? {
                    let now = Instant::now();
                    outcome.count(bytes, now - sent)?;
                    going = going && more(begun, now - began);
                    if going && connection.left > 0 {
                        connection.fetch(case.size, Instant::now())?;
                        begun += 1;
                    }
                    // What the socket still has is told again; what has been read is not.
                    if connection.buffer.is_empty() {
                        break;
                    }
                }
            }
        }
        outcome.elapsed = began.elapsed();
        Ok(outcome)
    }
}

impl Connection {
    fn open(address: SocketAddr, records: Records, slot: u64, left: u64) -> io::Result<Connection> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let hello = data::HelloRequest {
            protocol_version: PROTOCOL_VERSION,
            client_id: "fetch benchmark".into(),
            session: Vec::new(),
        };
        stream.write_all(&encode(1, Request::Hello(hello))?)?;
        let mut prefix = [0; frame::PREFIX_BYTES];
        stream.read_exact(&mut prefix)?;
        let parsed = Prefix::parse(&prefix, RESPONSE_FRAME_BYTES_MAX).map_err(io::Error::other)?;
        let rest = parsed.map_or(0, |prefix| prefix.header_bytes + prefix.body_bytes);
        stream.read_exact(&mut vec![0; rest])?;
        stream.set_nonblocking(true)?;
        let buffer = Vec::with_capacity(LOOKED_AT_BYTES);
        let (pending, current) = (Vec::new(), None);
        Ok(Connection { stream, records, slot, left, next_id: 2, pending, buffer, current })
    }

    /// Asks for the next records.
    fn fetch(&mut self, size: usize, now: Instant) -> io::Result<()> {
        let (queue, offset) = self.records.at(self.slot, size);
        self.slot = (self.slot + 1) % self.records.slots(size);
        self.left -= 1;
        let queue = data::FetchQueue { queue, offset, max_bytes: 0 };
        let topic = data::FetchTopic {
            created_position: None,
            topic: self.records.topic.into(),
            tag_hashes: Vec::new(),
            queues: vec![queue],
        };
        let request =
            data::FetchRequest { max_wait_ms: 0, max_bytes: size as u32, topics: vec![topic] };
        let id = self.next_id;
        self.next_id += 1;
        self.stream.write_all(&encode(id, Request::Fetch(request))?)?;
        self.pending.push((id, now));
        Ok(())
    }

    /// Takes in what has come, up to the end of an answer: the bytes of its body, and when it was
    /// asked for.
    fn receive(
        &mut self,
        scratch: &mut [u8],
        discard: RecvFlags,
    ) -> io::Result<Option<(usize, Instant)>> {
        loop {
            if self.current.is_none() {
                self.current = self.parse()?;
            }
            if let Some((id, body, 0)) = self.current {
                self.current = None;
                let at = self.pending.iter().position(|(pending, _)| *pending == id);
                let at = at.ok_or_else(|| io::Error::other("an answer nobody asked for"))?;
                return Ok(Some((body, self.pending.swap_remove(at).1)));
            }
            let received = match &mut self.current {
                Some((_, _, left)) => {
                    let len = (*left).min(scratch.len());
                    let received = recv(&self.stream, &mut scratch[..len], discard);
                    received.map(|(_, bytes)| {
                        *left -= bytes;
                        bytes
                    })
                }
                None => {
                    let room = rustix::buffer::spare_capacity(&mut self.buffer);
                    recv(&self.stream, room, RecvFlags::empty()).map(|(_, bytes)| bytes)
                }
            };
            match received {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The head of the next answer, if all of it is there.
    fn parse(&mut self) -> io::Result<Option<(u64, usize, usize)>> {
        let prefix = Prefix::parse(&self.buffer, RESPONSE_FRAME_BYTES_MAX);
        let Some(prefix) = prefix.map_err(io::Error::other)? else {
            return Ok(None);
        };
        let head = frame::PREFIX_BYTES + prefix.header_bytes;
        let Some(header) = self.buffer.get(frame::PREFIX_BYTES..head) else {
            return Ok(None);
        };
        let header = data::ResponseHeader::decode(header).map_err(io::Error::other)?;
        match &header.response {
            Some(Response::Fetch(answer)) if answer.results.iter().all(|r| r.code == 0) => {}
            other => {
                return Err(io::Error::other(format!("not an answer with records: {other:?}")));
            }
        }
        if prefix.body_bytes < RECORD_BYTES {
            return Err(io::Error::other("an answer without records"));
        }
        let here = prefix.body_bytes.min(self.buffer.len() - head);
        self.buffer.drain(..head + here);
        Ok(Some((header.correlation_id, prefix.body_bytes, prefix.body_bytes - here)))
    }
}

fn encode(correlation_id: u64, request: Request) -> io::Result<Vec<u8>> {
    let header = data::RequestHeader { correlation_id, request: Some(request) };
    Ok(frame::head(&header, 0).map_err(io::Error::other)?.to_vec())
}
