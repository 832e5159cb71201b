//! Who gets in to control plane and HTTP: so many at a time, each with a time to say what it wants.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// How long to rest when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A listener with limits. Connections over the limit wait in the system's backlog.
#[derive(Debug)]
pub(crate) struct Gate {
    listener: TcpListener,
    slots: Arc<Semaphore>,
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

impl Gate {
    pub(crate) fn new(listener: TcpListener, rules: Rules) -> Gate {
        Gate { listener, slots: Arc::new(Semaphore::new(rules.connections_max)), rules }
    }

    /// The next connection there is room for.
    pub(crate) async fn admit(&self) -> (Guarded, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => return (self.guard(stream, slot), peer),
                Err(error) => {
                    let out_of_files = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
                    if error.raw_os_error().is_some_and(|code| out_of_files.contains(&code)) {
                        tracing::warn!(%error, "no connection can be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }

    fn guard(&self, stream: TcpStream, slot: OwnedSemaphorePermit) -> Guarded {
        if let Err(error) = self.prepare(&stream) {
            tracing::debug!(%error, "socket options were refused");
        }
        let deadline = tokio::time::sleep_until(Instant::now() + self.rules.greeting_timeout);
        Guarded {
            stream,
            deadline: Some(Box::pin(deadline)),
            greeting_left: self.rules.greeting_bytes,
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
    greeting_left: usize,
    _slot: OwnedSemaphorePermit,
}

impl Guarded {
    fn check_deadline(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().map(|deadline| deadline.as_mut().poll(context)) {
            Some(Poll::Ready(())) => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_deadline(context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.greeting_left != usize::MAX {
            let read = buffer.filled().len() - before;
            self.greeting_left = self.greeting_left.saturating_sub(read);
            if self.greeting_left == 0 {
                self.deadline = None;
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
        self.check_deadline(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_deadline(context)?;
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
