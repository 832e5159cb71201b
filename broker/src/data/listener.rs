//! Binds the data port and accepts connections.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use longwire_proto::ErrorCode;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::Plane;
use super::connection::{self, error_head};
use crate::broker::StartError;
use crate::config::Config;
use crate::descriptors::is_shortage;
use crate::refusals::Refusals;
use crate::state::BrokerState;
use crate::transfer::send_slices;

/// Connections the kernel completes before they are accepted.
const BACKLOG: i32 = 1024;

/// How long to leave connections waiting when the process or the system has no descriptor left: no
/// event tells when there is one again.
const NO_DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);

/// A peer that is silent for so long is probed by the kernel ...
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
/// ... so often, with this pause, and its connection ends where none is answered: its machine is gone.
const KEEPALIVE_PROBES: u32 = 4;
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(15);

/// How long open connections get to finish once the broker stops.
const STOP_TIMEOUT: Duration = Duration::from_millis(350);

/// Binds the data port. Congestion control, where configured, is set here and inherited: a
/// connection that has begun with another keeps that one's pacing.
pub(crate) fn bind(config: &Config) -> Result<TcpListener, StartError> {
    let address = config.listen.data;
    let fail = |source| StartError::Listen { setting: "listen.data", address, source };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP));
    let socket = socket.map_err(fail)?;
    if let Some(name) = &config.transfer.congestion_control {
        socket
            .set_tcp_congestion(name.as_bytes())
            .map_err(|source| StartError::CongestionControl { name: name.clone(), source })?;
    }
    listen(&socket, address).map_err(fail)?;
    Ok(socket.into())
}

fn listen(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)
}

/// Serves connections until the broker stops; then ends them and returns.
pub(crate) async fn serve(listener: tokio::net::TcpListener, state: Arc<BrokerState>) {
    let plane = Arc::new(Plane::new(state));
    let connections = TaskTracker::new();
    let free = Arc::new(Semaphore::new(plane.state.config.limits.connections_max));
    tokio::select! {
        () = plane.state.shutdown.cancelled() => {}
        () = accept_all(&listener, &plane, &connections, &free) => {}
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(STOP_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "data connections did not end in time");
    }
}

async fn accept_all(
    listener: &tokio::net::TcpListener,
    plane: &Arc<Plane>,
    connections: &TaskTracker,
    free: &Arc<Semaphore>,
) {
    let state = &plane.state;
    let (max, refused) =
        (state.config.limits.connections_max, state.metrics.refused_connections.clone());
    let mut refusals = Refusals::new("data plane", "limits.connections_max", max, refused);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if is_shortage(&error) {
                    tracing::warn!(%error, "cannot accept data connections for now");
                    tokio::time::sleep(NO_DESCRIPTOR_PAUSE).await;
                } else {
                    tracing::debug!(%error, "a connection ended before it was accepted");
                }
                continue;
            }
        };
        let Ok(place) = free.clone().try_acquire_owned() else {
            refusals.note();
            refuse(&stream, plane);
            continue;
        };
        if let Err(error) = set_options(&stream, &plane.state.config) {
            tracing::debug!(%peer, %error, "a connection ended at once");
            continue;
        }
        let plane = plane.clone();
        connections.spawn(async move {
            plane.state.metrics.connections.inc();
            connection::run(&plane, stream, peer).await;
            plane.state.metrics.connections.dec();
            drop(place);
        });
    }
}

/// Tells the peer there are too many, as far as that is possible without waiting.
fn refuse(stream: &TcpStream, plane: &Plane) {
    plane.state.metrics.error(ErrorCode::Overloaded);
    if let Some(head) = error_head(0, ErrorCode::Overloaded, "too many connections") {
        let _ = send_slices(stream, &[IoSlice::new(&head)], false);
    }
}

fn set_options(stream: &TcpStream, config: &Config) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME);
    let keepalive = keepalive.with_interval(KEEPALIVE_PAUSE).with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    if let Some(bytes) = config.transfer.notsent_lowat_bytes {
        socket.set_tcp_notsent_lowat(u32::try_from(bytes).unwrap_or(u32::MAX))?;
    }
    if let Some(bytes) = config.transfer.send_buffer_bytes {
        socket.set_send_buffer_size(usize::try_from(bytes).unwrap_or(usize::MAX))?;
    }
    Ok(())
}
