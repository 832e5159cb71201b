//! One data connection, from its hello to its end.

use std::net::{Shutdown, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use longwire_proto::ErrorCode;
use longwire_proto::data::{self, request_header::Request, response_header};
use longwire_proto::frame::{self, Frame};
use longwire_proto::limits::{PROTOCOL_VERSION, REQUEST_FRAME_BYTES_MAX, SESSION_BYTES_MAX};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::acks::Acks;
use super::outbox::{Outbox, Response};
use super::reader::FrameReader;
use super::sessions::{self, Entered};
use super::{Plane, Refusal, fetch, produce, writer};
use crate::transfer::Kept;

/// How many read plans of one connection may wait to be sent: one is being sent, the next is ready.
const PLANS_MAX: usize = 2;

/// How long what is under way may take once the broker stops.
const STOP_ANSWERS_TIMEOUT: Duration = Duration::from_millis(250);

/// How long to read on after an error frame, so that the peer reads it before it learns that the
/// connection is gone.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it is looked whether a peer that has sent more than may be read is still there.
const UNREAD_LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What the tasks of one connection share.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) plane: Arc<Plane>,
    pub(super) peer: SocketAddr,
    stream: OwnedWriteHalf,
    pub(super) outbox: Outbox,
    pub(super) acks: Acks,
    /// Requests that may be read; an unanswered one holds a permit.
    in_flight: Arc<Semaphore>,
    /// Read plans that may wait to be sent.
    plans: Arc<Semaphore>,
    /// Fetches so far.
    pub(super) fetches: AtomicU64,
    /// What sending keeps from one frame to the next.
    pub(super) kept: Kept,
    /// Cancelled when nothing more will be read: the peer has gone, or the broker stops.
    pub(super) ended: CancellationToken,
    /// Cancelled with `ended`; before it where the peer closes its side while there are requests that may
    /// not be read yet. Parked fetches are then waited for by nobody.
    pub(super) parted: CancellationToken,
    /// Nothing more is written, so nothing more is to be done of what has been read.
    aborted: AtomicBool,
}

/// Why reading from a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The peer closed it or cannot be reached, or the connection was aborted.
    Closed,
    /// The broker stops.
    Stopping,
    /// The peer broke the protocol; it is told so.
    Protocol(Refusal),
}

impl Connection {
    /// The socket, to write to.
    pub(super) fn stream(&self) -> &TcpStream {
        self.stream.as_ref()
    }

    /// Ends the connection at once. Nothing that waits is written, nothing more is read.
    pub(super) fn abort(&self) {
        self.aborted.store(true, Relaxed);
        self.outbox.close();
        self.ended.cancel();
        let _ = SockRef::from(self.stream()).shutdown(Shutdown::Both);
    }

    /// Queues the answer to a request. Somebody has to [`writer::flush`] or [`writer::write`] it.
    pub(super) fn answer(
        &self,
        correlation_id: u64,
        response: response_header::Response,
        slot: OwnedSemaphorePermit,
    ) {
        match head(correlation_id, response, 0) {
            Some(head) => self.outbox.push(Response::of_head(head, slot)),
            // Nobody would know what became of the request.
            None => self.abort(),
        }
    }

    /// Queues the refusal of a whole request.
    pub(super) fn refuse(&self, correlation_id: u64, refusal: Refusal, slot: OwnedSemaphorePermit) {
        self.plane.state.metrics.error(refusal.code);
        let error = error_response(refusal.code, refusal.message);
        self.answer(correlation_id, error, slot);
    }

    /// A place among the unanswered requests; waits where there is none.
    async fn slot(self: &Arc<Self>) -> Result<OwnedSemaphorePermit, End> {
        if let Ok(slot) = self.in_flight.clone().try_acquire_owned() {
            return Ok(slot);
        }
        // It is large, and mostly not needed.
        Box::pin(self.awaited_slot()).await
    }

    /// Nobody reads meanwhile, and so nobody else would notice that the peer has gone; then parked fetches
    /// give up their places.
    async fn awaited_slot(self: &Arc<Self>) -> Result<OwnedSemaphorePermit, End> {
        let mut slot = pin!(self.place(&self.in_flight));
        tokio::select! {
            biased;
            slot = &mut slot => return slot,
            () = self.no_more_to_come() => self.parted.cancel(),
        }
        slot.await
    }

    /// Waits until the peer has closed its side, or the connection is broken.
    async fn no_more_to_come(&self) {
        // What has not been read yet makes the socket ready all the time.
        while let Ok(ready) = self.stream().ready(Interest::READABLE).await
            && !ready.is_read_closed()
        {
            sleep(UNREAD_LOOK_INTERVAL).await;
        }
    }

    /// A place among the read plans; waits where there is none, and the connection is not read from.
    pub(super) async fn plan(self: &Arc<Self>) -> Result<OwnedSemaphorePermit, End> {
        self.place(&self.plans).await
    }

    async fn place(self: &Arc<Self>, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, End> {
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Ok(place);
        }
        // What waits to be written takes places.
        writer::flush(self);
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(self.end()),
            place = places.clone().acquire_owned() => place.map_err(|_| End::Closed),
        }
    }

    /// What ended the connection, once `ended` is cancelled.
    pub(super) fn end(&self) -> End {
        if self.plane.state.shutdown.is_cancelled() { End::Stopping } else { End::Closed }
    }
}

/// Serves one connection until it ends.
pub(super) async fn run(plane: &Arc<Plane>, stream: TcpStream, peer: SocketAddr) {
    let (read, write) = stream.into_split();
    let in_flight = plane.state.config.limits.in_flight_per_connection.max(1) as usize;
    let ended = plane.state.shutdown.child_token();
    let connection = Arc::new(Connection {
        plane: plane.clone(),
        peer,
        stream: write,
        outbox: Outbox::default(),
        acks: Acks::default(),
        in_flight: Arc::new(Semaphore::new(in_flight)),
        plans: Arc::new(Semaphore::new(PLANS_MAX)),
        fetches: AtomicU64::new(0),
        kept: Kept::default(),
        parted: ended.child_token(),
        ended,
        aborted: AtomicBool::new(false),
    });
    let charge = plane.budget.charge(peer);
    let mut reader = FrameReader::new(read, charge, connection.ended.clone());
    let end = converse(&connection, &mut reader).await;
    Box::pin(finish(&connection, reader, end)).await;
}

async fn converse(connection: &Arc<Connection>, reader: &mut FrameReader) -> End {
    let hello_timeout = connection.plane.state.config.limits.hello_timeout;
    let _entered = match timeout(hello_timeout, greet(connection, reader)).await {
        Ok(Ok(entered)) => entered,
        Ok(Err(end)) => return end,
        Err(_) => {
            let message = format!("no hello within {hello_timeout:?}");
            return End::Protocol(Refusal::new(ErrorCode::Timeout, message));
        }
    };
    loop {
        let next = async {
            let slot = connection.slot().await?;
            Ok((slot, reader.next(connection).await?))
        };
        match next.await {
            Ok(_) if connection.aborted.load(Relaxed) => return End::Closed,
            Ok((slot, frame)) => dispatch(connection, frame, slot).await,
            Err(end) => return end,
        }
    }
}

/// Reads the hello and answers it. Gives the connection's place in its session, if it has one.
async fn greet(
    connection: &Arc<Connection>,
    reader: &mut FrameReader,
) -> Result<Option<Entered>, End> {
    let slot = connection.slot().await?;
    let header = reader.next(connection).await?.header;
    let Some(Request::Hello(hello)) = header.request else {
        let message = "the first frame of a connection must be a hello";
        return Err(End::Protocol(Refusal::new(ErrorCode::InvalidRequest, message)));
    };
    if hello.protocol_version != PROTOCOL_VERSION {
        let asked = hello.protocol_version;
        let message = format!("version {asked} is not spoken here, only {PROTOCOL_VERSION}");
        let refusal = Refusal::new(ErrorCode::UnsupportedVersion, message);
        connection.refuse(header.correlation_id, refusal, slot);
        return Err(End::Closed);
    }
    if hello.session.len() > SESSION_BYTES_MAX {
        let message = format!("a session has more than {SESSION_BYTES_MAX} bytes");
        return Err(End::Protocol(Refusal::new(ErrorCode::InvalidRequest, message)));
    }
    let entered = match hello.session {
        session if session.is_empty() => None,
        session => Some(sessions::enter(connection, session).await?),
    };
    tracing::debug!(peer = %connection.peer, client = hello.client_id, "a client has connected");
    let state = &connection.plane.state;
    let answer = data::HelloResponse {
        protocol_version: PROTOCOL_VERSION,
        broker_version: env!("CARGO_PKG_VERSION").to_owned(),
        max_frame_bytes: REQUEST_FRAME_BYTES_MAX as u32,
        max_in_flight: state.config.limits.in_flight_per_connection,
        store_host_ipv6: state.store_host.is_ipv6(),
    };
    connection.answer(header.correlation_id, response_header::Response::Hello(answer), slot);
    Ok(entered)
}

async fn dispatch(
    connection: &Arc<Connection>,
    frame: Frame<data::RequestHeader>,
    slot: OwnedSemaphorePermit,
) {
    let id = frame.header.correlation_id;
    match frame.header.request {
        Some(Request::Produce(request)) => {
            produce::handle(connection, id, request, frame.body, slot).await;
        }
        Some(Request::Fetch(request)) => fetch::handle(connection, id, request, slot).await,
        Some(Request::Hello(_)) => {
            let refusal = Refusal::new(ErrorCode::InvalidRequest, "a second hello");
            connection.refuse(id, refusal, slot);
        }
        None => {
            let message = "the request is missing, or of a kind this broker does not know";
            connection.refuse(id, Refusal::new(ErrorCode::InvalidRequest, message), slot);
        }
    }
}

/// Answers what can still be answered and closes the connection.
async fn finish(connection: &Arc<Connection>, mut reader: FrameReader, end: End) {
    connection.ended.cancel();
    // What follows can take a while, and others may be waiting for the memory.
    reader.release();
    let protocol_error = match end {
        End::Closed | End::Stopping => None,
        End::Protocol(refusal) => Some(refusal),
    };
    let told = protocol_error.is_some();
    let answered = async {
        if let Some(refusal) = protocol_error
            && let Ok(slot) = connection.in_flight.clone().acquire_owned().await
        {
            tracing::debug!(peer = %connection.peer, %refusal.code, refusal.message, "bad connection");
            connection.refuse(0, refusal, slot);
        }
        writer::write(connection).await;
        let all = connection.plane.state.config.limits.in_flight_per_connection.max(1);
        let _ = connection.in_flight.acquire_many(all).await;
    };
    let stopped = async {
        connection.plane.state.shutdown.cancelled().await;
        sleep(STOP_ANSWERS_TIMEOUT).await;
    };
    tokio::select! {
        () = answered => {}
        () = stopped => {}
    }
    if told {
        let _ = SockRef::from(connection.stream()).shutdown(Shutdown::Write);
        tokio::select! {
            _ = timeout(LINGER_TIMEOUT, reader.discard()) => {}
            () = connection.plane.state.shutdown.cancelled() => {}
        }
    }
    connection.abort();
}

/// Length words and header of an answer; `None` where the header is over its limit.
pub(super) fn head(
    correlation_id: u64,
    response: response_header::Response,
    body_bytes: usize,
) -> Option<Bytes> {
    let header = data::ResponseHeader { correlation_id, response: Some(response) };
    frame::head(&header, body_bytes).ok()
}

/// A whole frame with an error.
pub(super) fn error_head(correlation_id: u64, code: ErrorCode, message: &str) -> Option<Bytes> {
    head(correlation_id, error_response(code, message.to_owned()), 0)
}

fn error_response(code: ErrorCode, message: String) -> response_header::Response {
    response_header::Response::Error(data::ErrorResponse { code: code.number(), message })
}
