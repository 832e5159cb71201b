//! One TCP connection to the data plane, from hello to its end.
//!
//! Requests are pipelined and matched to their answers by correlation id. A request is written by
//! whoever submits it, as far as the socket takes it at once; a writer task finishes what is left. A
//! reader task hands each answer to its [`Reply`], on the spot.

mod outbox;
mod progress;
mod reader;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use longwire_proto::data::{
    HelloRequest, HelloResponse, RequestHeader, ResponseHeader, request_header::Request,
    response_header::Response,
};
use longwire_proto::{frame, limits};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::random::random;
use crate::{Error, ErrorKind};
pub(crate) use outbox::Body;
use outbox::{OutFrame, Outbox};
use progress::Progress;
use reader::FrameReader;

/// An answer with the bytes behind it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) body: Bytes,
}

/// What is to happen when a request is answered or cannot be.
///
/// Called exactly once, mostly on the reader task: it must be short and must not block. An error
/// tells by [`Error::outcome_unknown`] whether the broker may have acted on the request.
pub(crate) trait Reply: Send {
    fn complete(self: Box<Self>, answer: Result<Answer, Error>);
}

/// Connections that replace each other: the broker reads nothing more of one once it has answered the
/// hello of the next. So what is sent again over that one comes after all that was sent before.
#[derive(Debug)]
pub(crate) struct Session {
    name: Box<[u8]>,
}

impl Session {
    /// One that nobody else has.
    pub(crate) fn new() -> Session {
        Session { name: [random(), random()].map(u64::to_be_bytes).concat().into() }
    }

    /// For a connection that stands alone.
    pub(crate) fn none() -> Session {
        Session { name: Box::default() }
    }
}

/// A connection that has said hello. Dropping it closes it and fails what is unanswered.
#[derive(Debug)]
pub(crate) struct Connection {
    wire: Arc<Wire>,
    hello: HelloResponse,
    local: SocketAddr,
    tasks: [AbortHandle; 2],
}

struct Wire {
    /// Locked before `pending` where both are needed.
    outbox: Mutex<Outbox>,
    pending: Mutex<Pending>,
    /// Wakes the writer task: the socket did not take everything.
    backlog: Notify,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Pending {
    /// By correlation id, and so in the order of submission.
    requests: BTreeMap<u64, (Instant, Box<dyn Reply>)>,
    last_id: u64,
    /// When the last submitted of the requests answered so far was.
    newest_answered: Option<Instant>,
    /// Why the connection has ended.
    closed: Option<Error>,
}

impl Connection {
    /// Dials `address` and exchanges hellos, all within `timeout`.
    pub(crate) async fn open(
        address: &str,
        client_id: &str,
        session: &Session,
        timeout: Duration,
    ) -> Result<Connection, Error> {
        match tokio::time::timeout(timeout, Connection::dial(address, client_id, session)).await {
            Ok(opened) => opened,
            Err(_) => {
                let message = format!("no hello from the data plane at {address} in {timeout:?}");
                Err(Error::new(ErrorKind::Unreachable, message))
            }
        }
    }

    async fn dial(address: &str, client_id: &str, session: &Session) -> Result<Connection, Error> {
        let unreachable = |error: std::io::Error| {
            let message = format!("cannot reach the broker's data plane at {address}: {error}");
            Error::new(ErrorKind::Unreachable, message)
        };
        let stream = TcpStream::connect(address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let local = stream.local_addr().map_err(unreachable)?;
        let stream = Arc::new(stream);
        let progress = Arc::new(Progress::new());
        let mut reader = FrameReader::new(stream.clone(), progress.clone());
        let mut outbox = Outbox::new(stream.clone());

        let hello = Request::Hello(HelloRequest {
            protocol_version: limits::PROTOCOL_VERSION,
            client_id: client_id.to_owned(),
            session: session.name.to_vec(),
        });
        let header = RequestHeader { correlation_id: 1, request: Some(hello) };
        let head = frame::head(&header, 0).map_err(|error| Error::invalid(error.to_string()))?;
        outbox.push(OutFrame::new(1, head, Body::default()));
        outbox.drain().await.map_err(unreachable)?;
        let (header, _) = reader.next().await?;
        let hello = read_hello(header, address)?;

        let wire = Arc::new(Wire {
            outbox: Mutex::new(outbox),
            pending: Mutex::new(Pending { last_id: 1, ..Pending::default() }),
            backlog: Notify::new(),
            progress,
        });
        let read = tokio::spawn(reader::run(reader, wire.clone())).abort_handle();
        let write = tokio::spawn(outbox::run(wire.clone(), stream)).abort_handle();
        Ok(Connection { wire, hello, local, tasks: [read, write] })
    }

    /// What the broker said of itself.
    pub(crate) fn hello(&self) -> &HelloResponse {
        &self.hello
    }

    /// This end of the connection.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends a request. The caller bounds how many are unanswered.
    ///
    /// Must not be called with a lock held that the reply takes: it may be called from here.
    pub(crate) fn submit(&self, request: Request, body: Body, reply: Box<dyn Reply>) {
        let mut outbox = self.wire.outbox.lock();
        let mut pending = self.wire.pending.lock();
        if let Some(closed) = pending.closed.clone() {
            drop((pending, outbox, body));
            return reply.complete(Err(closed.unsent()));
        }
        let id = pending.last_id + 1;
        let header = RequestHeader { correlation_id: id, request: Some(request) };
        let body_bytes = body.iter().map(Bytes::len).sum();
        let head = match frame::head(&header, body_bytes) {
            Ok(head) => head,
            Err(error) => {
                drop((pending, outbox, body));
                return reply.complete(Err(Error::invalid(error.to_string())));
            }
        };
        pending.last_id = id;
        pending.requests.insert(id, (Instant::now(), reply));
        drop(pending);

        outbox.push(OutFrame::new(id, head, body));
        let written = outbox.write_some();
        drop(outbox);
        match written {
            Ok(true) => {}
            Ok(false) => self.wire.backlog.notify_one(),
            Err(error) => self.wire.fail(lost(&error)),
        }
    }

    /// When the oldest request that is not yet answered was submitted.
    pub(crate) fn oldest_unanswered(&self) -> Option<Instant> {
        self.wire.pending.lock().requests.first_key_value().map(|(_, (since, _))| *since)
    }

    /// Since when the broker has been silent: the submission of the oldest request that is not yet
    /// answered, or what was last seen of the broker since.
    pub(crate) fn silent_since(&self) -> Option<Instant> {
        self.oldest_unanswered().map(|since| since.max(self.wire.progress.last()))
    }

    /// Whether a request submitted so much later than the oldest unanswered one has been answered. What
    /// is on its way over a slow link is not overtaken: answers come one after the other.
    pub(crate) fn is_overtaken(&self, by: Duration) -> bool {
        let pending = self.wire.pending.lock();
        let oldest = pending.requests.first_key_value().map(|(_, (since, _))| *since);
        let ahead = pending.newest_answered.zip(oldest);
        ahead.is_some_and(|(newest, oldest)| newest.saturating_duration_since(oldest) > by)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.wire.pending.lock().closed.is_some()
    }

    /// Ends the connection and fails what is unanswered with `why`.
    pub(crate) fn close(&self, why: Error) {
        for task in &self.tasks {
            task.abort();
        }
        self.wire.fail(why);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close(Error::new(ErrorKind::ConnectionLost, "the data connection was closed"));
    }
}

impl Wire {
    /// Takes the reply that waits for `id`.
    fn answered(&self, id: u64) -> Option<Box<dyn Reply>> {
        let mut pending = self.pending.lock();
        let (since, reply) = pending.requests.remove(&id)?;
        pending.newest_answered = pending.newest_answered.max(Some(since));
        Some(reply)
    }

    /// Ends the connection: a request of which nothing was written has definitely not taken effect,
    /// every other may have.
    fn fail(&self, why: Error) {
        let mut outbox = self.outbox.lock();
        let mut pending = self.pending.lock();
        if pending.closed.is_some() {
            return;
        }
        pending.closed = Some(why.clone());
        let requests = std::mem::take(&mut pending.requests);
        let first_unsent = outbox.close();
        drop((pending, outbox));
        self.backlog.notify_one();

        for (id, (_, reply)) in requests {
            let sent = first_unsent.is_none_or(|unsent| id < unsent);
            let why = why.clone();
            reply.complete(Err(if sent { why.with_unknown_outcome() } else { why.unsent() }));
        }
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

fn read_hello(header: ResponseHeader, address: &str) -> Result<HelloResponse, Error> {
    match header.response {
        Some(Response::Hello(hello)) if hello.protocol_version == limits::PROTOCOL_VERSION => {
            Ok(hello)
        }
        Some(Response::Error(error)) => {
            let message = format!("the broker at {address} refused the hello: {}", error.message);
            Err(Error::refused(error.code, message))
        }
        _ => {
            let message = format!("{address} did not answer as a Longwire data plane of version 1");
            Err(Error::new(ErrorKind::Protocol, message))
        }
    }
}

fn lost(error: &std::io::Error) -> Error {
    Error::new(ErrorKind::ConnectionLost, format!("the data connection was lost: {error}"))
}

#[cfg(test)]
mod tests;
