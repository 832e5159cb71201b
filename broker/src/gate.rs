//! Who gets in to control plane and HTTP: so many at a time, each with a time to say what it wants.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::RecvFlags;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, timeout_at};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::descriptors::is_shortage;
use crate::refusals::Refusals;
use crate::transfer::send_slices;

/// How long to rest when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long nobody may get a place before those that come are refused.
const PLACE_WAIT: Duration = Duration::from_secs(1);
/// How long one that is refused may take to ask for something. Those behind it wait as long.
const GREETING_WAIT: Duration = Duration::from_millis(20);
/// More than a client sends before it is answered.
const GREETING_BYTES: usize = 4096;

/// A listener with limits. A connection over the limit takes the place of the one that has been there
/// for longest without having said what it wants; where there is none such, it waits, and is refused
/// where no place becomes free soon.
#[derive(Debug)]
pub(crate) struct Gate {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    silent: Arc<Mutex<Silent>>,
    /// Since when somebody has waited for a place and nobody has got one.
    full_since: Option<Instant>,
    refusals: Refusals,
    rules: Rules,
}

/// What is asked of every connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// A connection is cut when it is older than this ...
    pub(crate) greeting_timeout: Duration,
    /// ... and has sent fewer bytes; `usize::MAX` cuts each at that age.
    pub(crate) greeting_bytes: usize,
    /// Silence before the kernel probes the peer, and how long the probes may go unanswered.
    pub(crate) keepalive: Option<(Duration, Duration)>,
    /// What one too many is told before it is closed.
    pub(crate) refusal: &'static [u8],
}

/// The connections that have not said what they want, in the order they came, and what cuts each.
#[derive(Debug, Default)]
struct Silent {
    next: u64,
    cuts: BTreeMap<u64, CancellationToken>,
}

/// What to call when a connection has said what it wants: it keeps its place from then on.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    number: u64,
    silent: Arc<Mutex<Silent>>,
}

impl Heard {
    pub(crate) fn note(&self) {
        self.silent.lock().cuts.remove(&self.number);
    }
}

impl Gate {
    pub(crate) fn new(listener: TcpListener, rules: Rules, refusals: Refusals) -> Gate {
        let slots = Arc::new(Semaphore::new(refusals.connections_max()));
        Gate { listener, slots, silent: Arc::default(), full_since: None, refusals, rules }
    }

    /// The next connection there is room for.
    pub(crate) async fn admit(&mut self) -> (Guarded, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => match self.slot().await {
                    Some(slot) => return (self.guard(stream, slot), peer),
                    None => self.refuse(&stream).await,
                },
                Err(error) => {
                    if is_shortage(&error) {
                        tracing::warn!(%error, "no connection can be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }

    /// A place, if there is one soon enough.
    async fn slot(&mut self) -> Option<OwnedSemaphorePermit> {
        let mut slot = Arc::clone(&self.slots).try_acquire_owned().ok();
        if slot.is_none() {
            let silent = self.silent.lock().cuts.pop_first();
            if let Some((_, cut)) = silent {
                cut.cancel();
                self.full_since = None;
            }
            // Not each for itself: the last of many that come together would wait for minutes.
            let since = *self.full_since.get_or_insert_with(Instant::now);
            let free = timeout_at(since + PLACE_WAIT, Arc::clone(&self.slots).acquire_owned());
            slot = free.await.ok().and_then(Result::ok);
        }
        if slot.is_some() {
            self.full_since = None;
        }
        slot
    }

    /// Says why, to those who listen.
    async fn refuse(&mut self, stream: &TcpStream) {
        self.refusals.note();
        // What comes after the end, or is left unread, makes it a reset, which can overtake the rest;
        // and a client is told nothing about what it has not asked yet.
        tokio::time::sleep(GREETING_WAIT).await;
        let _ = rustix::net::recv(stream, &mut [0; GREETING_BYTES], RecvFlags::DONTWAIT);
        let _ = send_slices(stream, &[IoSlice::new(self.rules.refusal)], false);
    }

    fn guard(&self, stream: TcpStream, slot: OwnedSemaphorePermit) -> Guarded {
        if let Err(error) = self.prepare(&stream) {
            tracing::debug!(%error, "socket options were refused");
        }
        let deadline = tokio::time::sleep_until(Instant::now() + self.rules.greeting_timeout);
        let cut = CancellationToken::new();
        let mut silent = self.silent.lock();
        let number = silent.next;
        silent.next += 1;
        silent.cuts.insert(number, cut.clone());
        Guarded {
            stream,
            deadline: Some(Box::pin(deadline)),
            cut: Some(Box::pin(cut.cancelled_owned())),
            greeting_left: self.rules.greeting_bytes,
            heard: Heard { number, silent: Arc::clone(&self.silent) },
            _slot: slot,
        }
    }

    fn prepare(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let Some((interval, timeout)) = self.rules.keepalive else {
            return Ok(());
        };
        const PROBES: u32 = 3;
        let socket = SockRef::from(stream);
        let probes = TcpKeepalive::new()
            .with_time(interval)
            .with_interval((timeout / PROBES).max(Duration::from_secs(1)))
            .with_retries(PROBES);
        socket.set_tcp_keepalive(&probes)?;
        // Probes stop while something is unacknowledged; this bounds that case.
        socket.set_tcp_user_timeout(Some(interval + timeout))
    }
}

impl axum::serve::Listener for Gate {
    type Io = Guarded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guarded, SocketAddr) {
        self.admit().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that got in. Its slot is free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Guarded {
    stream: TcpStream,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Completes when another needs its place more.
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    greeting_left: usize,
    heard: Heard,
    _slot: OwnedSemaphorePermit,
}

impl Guarded {
    pub(crate) fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Fails where it has had its time, or has lost its place.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.cut.as_mut().is_some_and(|cut| cut.as_mut().poll(context).is_ready()) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match self.deadline.as_mut().map(|deadline| deadline.as_mut().poll(context)) {
            Some(Poll::Ready(())) => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.heard.note();
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.greeting_left != usize::MAX {
            let read = buffer.filled().len() - before;
            self.greeting_left = self.greeting_left.saturating_sub(read);
            if self.greeting_left == 0 {
                self.heard.note();
                (self.deadline, self.cut) = (None, None);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl tonic::transport::server::Connected for Guarded {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
