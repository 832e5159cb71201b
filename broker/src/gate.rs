//! Who gets in to control plane and HTTP: so many at a time, each with a time to say what it wants.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::descriptors::is_shortage;

/// How long to rest when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A listener with limits. A connection over the limit takes the place of the one that has been there
/// for longest without having said what it wants; where there is none such, it waits.
#[derive(Debug)]
pub(crate) struct Gate {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    silent: Arc<Mutex<Silent>>,
    rules: Rules,
}

/// What is asked of every connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) connections_max: usize,
    /// A connection is cut when it is older than this ...
    pub(crate) greeting_timeout: Duration,
    /// ... and has sent fewer bytes; `usize::MAX` cuts each at that age.
    pub(crate) greeting_bytes: usize,
    /// Silence before the kernel probes the peer, and how long the probes may go unanswered.
    pub(crate) keepalive: Option<(Duration, Duration)>,
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
    pub(crate) fn new(listener: TcpListener, rules: Rules) -> Gate {
        let slots = Arc::new(Semaphore::new(rules.connections_max));
        Gate { listener, slots, silent: Arc::default(), rules }
    }

    /// The next connection there is room for.
    pub(crate) async fn admit(&self) -> (Guarded, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => return (self.guard(stream, self.slot().await), peer),
                Err(error) => {
                    if is_shortage(&error) {
                        tracing::warn!(%error, "no connection can be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }

    async fn slot(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
                return slot;
            }
            if let Some((_, cut)) = self.silent.lock().cuts.pop_first() {
                cut.cancel();
            }
            // The semaphore is never closed.
            if let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await {
                return slot;
            }
        }
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
        slices: &[io::IoSlice<'_>],
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
